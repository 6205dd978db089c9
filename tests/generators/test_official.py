"""Published weights become the networks of this project; those that don't fit are refused."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA, golden, relative_error, weights

from pulse_jax.generators import fit_latents, official, style_generator
from pulse_jax.generators.official import from_pulse, read_network
from pulse_jax.generators.official.parameters import persistent_modules, persistent_state
from pulse_jax.generators.official.tensorflow import from_tensorflow
from pulse_jax.generators.official.unpickle import Instance
from pulse_jax.generators.style_network import truncate
from pulse_jax.generators.stylegan import StyleGAN
from pulse_jax.generators.stylegan2 import StyleGAN2
from pulse_jax.generators.stylegan3 import StyleGAN3

# PULSE.


def pulse_states():
    return [
        dict(weights(f"sg1_torch_r128_{network}_zip.pt")) for network in ("synthesis", "mapping")
    ]


def test_hyperparameters_of_pulse_follow_from_its_shapes():
    module, params = from_pulse(*pulse_states())
    assert (module.resolution, module.channels) == (128, (24, 24, 24, 24, 16, 8))
    assert (module.latent_size, module.mapping_layers, module.norm_epsilon) == (48, 8, 1e-5)
    assert sorted(params) == ["mapping", "synthesis"]
    assert params["synthesis"]["128x128_conv_up"]["kernel"].shape == (3, 3, 16, 8)

    module, params = from_pulse(weights("sg1_torch_r32_synthesis_zip.pt"))
    assert (module.resolution, module.channels, module.latent_size) == (32, (20, 20, 20, 16), 24)
    assert sorted(params) == ["synthesis"]


def test_gaussian_fit_becomes_the_latent_fit():
    fit = weights("gaussian_fit.pt")
    synthesis = weights("pulse_e2e_synthesis_zip.pt")
    _, params = from_pulse(synthesis, gaussian_fit=fit)
    assert sorted(params) == ["latent_fit", "synthesis"]
    np.testing.assert_array_equal(params["latent_fit"]["std"], fit["std"])
    fit["mean"] = fit["mean"][:-1]
    with pytest.raises(ValueError, match="latent_fit/mean"):
        from_pulse(synthesis, gaussian_fit=fit)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("torgb.weight", None),
        ("torgb.weight", np.zeros((3, 9, 1, 1))),
        ("torgb.bias", "text"),
        ("blocks.4x4.const", np.zeros((1, 23, 4, 4))),
        ("blocks.16x16.conv1.weight", None),
        ("blocks.64x64.epi1.style_mod.lin.weight", np.zeros((32, 47))),
        ("blocks.64x64.conv0_up.intermediate.kernel", np.ones((1, 1, 3, 3)) / 9),
        ("blocks.256x256.conv1.weight", np.zeros((8, 8, 3, 3))),
        ("blocks.64x64.conv0_up.intermediate.kernel", np.zeros((0, 1, 3, 3))),
        ("blocks.2x2.conv1.weight", np.zeros((8, 8, 3, 3))),
        ("blocks.4x4.conv1.weight", np.zeros((24, 24, 3, 3))),
        ("dense3.weight", np.zeros((48, 47))),
        ("dense8.weight", np.zeros((48, 48))),
        ("dense2.bias", None),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused(name, value):
    synthesis, mapping = pulse_states()
    state = mapping if name.startswith("dense") else synthesis
    state[name] = value
    if value is None:
        del state[name]
    with pytest.raises(ValueError, match=r"PULSE|shape"):
        from_pulse(synthesis, mapping)


@pytest.mark.parametrize("states", [([1],), ({1: 2},), ({}, {}), (np.zeros(3),)])
def test_objects_that_are_no_state_dicts_are_refused(states):
    with pytest.raises(ValueError, match="PULSE"):
        from_pulse(*states)


# The TensorFlow programs.


@functools.partial(jax.jit, static_argnums=0)
def tensorflow_images(network, params, w, noise):
    noise = [jnp.broadcast_to(each, (len(w), *each.shape[1:])) for each in noise]
    return network.apply({"params": params}, w, noise, method="synthesis").transpose(0, 3, 1, 2)


def constant_noise(network):
    variables = dict(network.state["components"]["synthesis"].state["variables"])
    return [variables[f"noise{i}"] for i in range(sum(name[:5] == "noise" for name in variables))]


@pytest.mark.optimised
@pytest.mark.parametrize("name", ["sg1_tf", "sg2_tf"])
def test_tensorflow_networks_equal_the_reference(name):
    arrays, noise = golden(name), constant_noise(weights(f"{name}.pkl")[2])
    network, params = read_network(DATA / f"{name}.pkl")
    mapping = jax.jit(functools.partial(network.apply, method="mapping"))
    w = mapping({"params": params}, jnp.asarray(arrays["z"]))
    w = jnp.repeat(w[:, None], network.num_layers, axis=1)
    assert relative_error(w, arrays["w_broadcast"]) <= 2e-6
    cutoff = int(arrays["cutoff"])  # -1 for all layers
    average, psi = params["latent_average"], float(arrays["psi"])
    w_trunc = truncate(w, average, psi, None if cutoff < 0 else cutoff)
    assert relative_error(w_trunc, arrays["w_trunc"]) <= 2e-6

    for styles, image in ((w, "psi1"), (w_trunc, "trunc"), (arrays["w_mixed"], "w_mixed")):
        images = tensorflow_images(network, params, styles, noise)
        assert relative_error(images, arrays[f"image_{image}"]) <= 2e-5, image


@pytest.mark.optimised
@pytest.mark.parametrize("name", ["sg1_tf", "sg2_tf"])
def test_the_network_without_moving_average_is_another(name):
    arrays, tree = golden(name), weights(f"{name}.pkl")
    images = []
    for network in (tree[0], tree[2]):
        module, params = from_tensorflow(network)
        mapping = jax.jit(functools.partial(module.apply, method="mapping"))
        w = mapping({"params": params}, jnp.asarray(arrays["z"]))
        w = jnp.repeat(w[:, None], module.num_layers, axis=1)
        image = tensorflow_images(module, params, w, constant_noise(network))
        images.append(image[:1, :, ::4, ::4])
    assert relative_error(images[0], arrays["image_psi1_of_G_sub4"]) <= 2e-5
    assert relative_error(images[1], arrays["image_psi1_of_G_sub4"]) > 0.1


def test_tensorflow_networks_of_ada_are_clamped(monkeypatch):
    tree = weights("sg2_tf.pkl")
    tree[2].state["components"]["synthesis"].state["static_kwargs"]["conv_clamp"] = 256
    monkeypatch.setattr(official, "read", lambda path: tree)
    network, _ = read_network("network.pkl")
    assert network.conv_clamp == 256


# Every format.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "sg1_tf.pkl",
            StyleGAN(128, (20, 20, 20, 20, 16, 8), 32, 8, 40, 36, norm_epsilon=1e-8),
        ),
        ("sg2_tf.pkl", StyleGAN2(64, (24, 24, 24, 16, 8), 32, 8, 32, 40)),
        ("sg2ada.pkl", StyleGAN2(64, (24, 24, 24, 24, 16), 32)),
        ("sg2ada_fp16cfg.pkl", StyleGAN2(32, (28, 28, 28, 16), 24, 3, conv_clamp=2.0)),
        ("rosinality.pt", StyleGAN2(64, (24, 24, 20, 16, 12), 32)),
    ],
)
def test_hyperparameters_follow_from_the_file(name, expected):
    network, params = read_network(DATA / name)
    assert network == expected
    assert sorted(params) == ["latent_average", "mapping", "synthesis"]
    for leaf in jax.tree.leaves(params):
        assert leaf.dtype == np.float32 and leaf.flags.owndata


@pytest.mark.parametrize("name", ["sg3T", "sg3R"])
def test_stylegan_3_is_told_from_2(name):
    network, params = read_network(DATA / f"{name}.pkl")
    assert isinstance(network, StyleGAN3)
    assert sorted(params) == ["latent_average", "mapping", "synthesis"]


def test_checkpoints_of_rosinalitys_trainer_have_no_average():
    network, params = read_network(DATA / "rosinality_train.pt")
    converted, expected = read_network(DATA / "rosinality.pt")
    del expected["latent_average"]
    assert network == converted
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_the_latents_of_a_network_whose_z_is_larger_than_w_are_fitted():
    network, params = read_network(DATA / "sg1_tf.pkl")
    assert (network.z_size, network.latent_size) == (40, 32)
    fit = fit_latents(network, params, jax.random.key(0), samples=1000, chunk_size=100)
    assert fit["mean"].shape == fit["std"].shape == (32,)
    latents, _ = style_generator(network).sample(jax.random.key(1))
    assert latents["style"].shape == (12, 32)


# Images of other channels.


def with_channels(tree, kept):
    """A tree whose images have these of its channels."""
    for name, state in persistent_modules(tree["G_ema"]).items():
        if name.endswith((".torgb", "L7_32_3")):  # StyleGAN 2's and 3's
            arrays = state["_parameters"]
            arrays |= {part: arrays[part][kept] for part in ("weight", "bias")}
    return tree


@pytest.mark.parametrize("kept", [[1], [2, 0, 1, 0]])
def test_grey_images_and_those_with_alpha(kept, monkeypatch):
    images = {}
    for name, channels in {"whole": [0, 1, 2], "some": kept}.items():
        tree = with_channels(weights("sg2ada_fp16cfg.pkl"), channels)
        monkeypatch.setattr(official, "read", lambda path, tree=tree: tree)
        network, params = read_network("network.pkl")
        generator = style_generator(network, space="z")
        assert generator.channels == len(channels)
        images[name] = jax.jit(generator.synthesize)(params, *generator.sample(jax.random.key(0)))
    np.testing.assert_allclose(images["some"], images["whole"][..., kept], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["sg2ada_fp16cfg", "sg3R"])
def test_images_of_two_channels_are_refused(name, monkeypatch):
    tree = with_channels(weights(f"{name}.pkl"), [0, 1])
    assert re.search("images have 2 channels, and only 1, 3 and 4", refused(tree, monkeypatch))


# Classes.


def with_classes(tree, classes=3, size=7):
    """A tree whose mapping network also sees the class of an image."""
    modules, random = persistent_modules(tree["G_ema"]), np.random.default_rng(0)
    modules[""]["c_dim"] = classes
    first = modules["mapping.fc0"]["_parameters"]
    more = 50 * random.normal(size=(len(first["weight"]), size))  # as wide as what is there
    first["weight"] = np.concatenate([first["weight"], more], axis=1)
    weight, bias = random.normal(size=(size, classes)), random.normal(size=size)
    modules["mapping"]["_modules"]["embed"] = module(weight=weight, bias=bias)
    return tree


def styles_of_class(tree, z, label):
    """Style vectors of StyleGAN 2 ADA, in float64, by the formulas of its paper's program."""

    def normalised(x):
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-8)

    arrays = {k: np.float64(v) for k, v in persistent_state(persistent_modules(tree)).items()}
    weight, bias = (arrays[f"mapping.embed.{part}"] for part in ("weight", "bias"))
    embedded = weight[:, label] / np.sqrt(weight.shape[1]) + bias
    x = np.concatenate([normalised(z), normalised(np.tile(embedded, (len(z), 1)))], axis=1)
    for i in range(sum(name.startswith("mapping.fc") for name in arrays) // 2):
        weight, bias = (arrays[f"mapping.fc{i}.{part}"] for part in ("weight", "bias"))
        x = x @ weight.T * 0.01 / np.sqrt(weight.shape[1]) + 0.01 * bias
        x = np.sqrt(2) * np.where(x > 0, x, 0.2 * x)
    return x


@pytest.mark.parametrize("name", ["sg2ada_fp16cfg", "sg3R"])
def test_networks_with_classes(name, monkeypatch):
    tree = with_classes(weights(f"{name}.pkl"))
    monkeypatch.setattr(official, "read", lambda path: tree)
    network, params = read_network("network.pkl")
    assert (network.classes, network.label_size) == (3, 7)
    z = np.random.default_rng(1).normal(size=(4, network.z_size))
    of_class, mapping = [], jax.jit(functools.partial(network.apply, method="mapping"))
    for label in range(3):
        labels = jnp.full(4, label)
        w = mapping({"params": params}, jnp.float32(z), labels)
        of_class.append(w)
        assert relative_error(w, styles_of_class(tree["G_ema"], z, label)) <= 1e-5
    assert relative_error(of_class[1], of_class[2]) > 0.05

    fit = fit_latents(network, params, jax.random.key(0), samples=300, chunk_size=50)
    assert fit["mean"].shape == fit["std"].shape == (3, network.latent_size)
    generator = style_generator(network)
    assert generator.classes == 3
    latents, frozen = generator.sample(jax.random.key(0))
    for label in range(3):
        own = {name: leaf[label] for name, leaf in fit.items()}
        w = network.activation_gain * (own["std"] * latents["style"] + own["mean"])
        styles = generator.styles({"latent_fit": fit}, latents, frozen | {"label": label})
        assert relative_error(styles, np.where(w > 0, w, 0.2 * w)) <= 1e-6
    styles = style_generator(network, space="z", tile_latent=True).styles
    z = {"style": jnp.float32(z[:1])}
    assert relative_error(styles(params, z, {"label": 2})[0], of_class[2][0]) <= 1e-6


# A generator alone, and in wrappers.


def module(**parts):
    """A PyTorch module with these in it; arrays are its parameters."""
    arrays = {name: part for name, part in parts.items() if not isinstance(part, Instance)}
    modules = {name: part for name, part in parts.items() if isinstance(part, Instance)}
    state = {"_parameters": arrays, "_buffers": {}, "_modules": modules}
    return Instance("Module", state)


def as_module(state):
    """The module whose state dict that is."""
    inner = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        if rest:
            inner.setdefault(first, {})[rest] = value
        else:
            inner[first] = value
    parts = {k: as_module(v) if isinstance(v, dict) else v for k, v in inner.items()}
    return module(**parts)


def prefixed(state, prefix="module."):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sg1_tf.pkl", lambda tree: tree[2]),
        ("sg2_tf.pkl", lambda tree: tree[2]),
        ("sg2ada_fp16cfg.pkl", lambda tree: tree["G_ema"]),
        ("sg2ada_fp16cfg.pkl", lambda tree: {"G_ema": module(module=tree["G_ema"])}),
        ("sg3R.pkl", lambda tree: tree["G_ema"]),
        ("rosinality_train.pt", lambda tree: tree["g_ema"]),
        ("rosinality_train.pt", lambda tree: as_module(tree["g_ema"])),
        ("rosinality_train.pt", lambda tree: prefixed(tree["g_ema"])),
        ("rosinality.pt", lambda tree: tree | {"g_ema": as_module(tree["g_ema"])}),
        ("rosinality.pt", lambda tree: tree | {"g_ema": prefixed(tree["g_ema"])}),
        ("rosinality.pt", lambda tree: tree | {"g_ema": prefixed(tree["g_ema"], "_orig_mod.")}),
    ],
)
def test_a_generator_alone_or_in_a_wrapper_is_the_same(name, change, monkeypatch):
    monkeypatch.setattr(official, "checked", lambda network, params: params)
    network, params = read_network(DATA / name)
    tree = change(weights(name))
    monkeypatch.setattr(official, "read", lambda path: tree)
    other_network, other_params = read_network("network.pkl")
    assert other_network == network
    jax.tree.map(np.testing.assert_array_equal, other_params, params)


def test_state_dicts_of_pulse_in_a_wrapper():
    synthesis, mapping = pulse_states()
    network, params = from_pulse(synthesis, mapping)
    wrapped_network, wrapped = from_pulse(prefixed(synthesis), prefixed(mapping, "_orig_mod."))
    assert wrapped_network == network
    jax.tree.map(np.testing.assert_array_equal, wrapped, params)


# What is refused.


def refused(tree, monkeypatch):
    """The message with which `read_network` refuses a file: one line that names it."""
    monkeypatch.setattr(official, "read", lambda path: tree)
    with pytest.raises(ValueError) as error:
        read_network("network.pkl")
    message = str(error.value)
    assert message.startswith("network.pkl: ")
    assert "\n" not in message and len(message) <= 400
    return message.removeprefix("network.pkl: ")


def changed(arrays, name, value):
    """Replace or add an array, give it another shape (by a function), or, with None, remove it."""
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value(arrays[name]) if callable(value) else value


def narrower(array):
    return array[..., :-1]


@pytest.mark.parametrize(
    ("name", "part", "entry", "value", "reason"),
    [
        ("sg1_tf", "synthesis", "8x8/Conv1/weight", None, "/8x8/Conv1/weight' is missing"),
        ("sg1_tf", "synthesis", "8x8/Conv1/weight", np.zeros(3), "no tensor with 4 axes"),
        ("sg1_tf", "synthesis", "8x8/Conv1/weight", narrower, "/8x8_conv/kernel has shape"),
        ("sg1_tf", "synthesis", "8x8/Conv2/bias", np.zeros(3), "/8x8/Conv2/bias' has no place"),
        ("sg1_tf", "synthesis", "256x256/Conv1/bias", np.zeros(3), "256x256/.*' is missing"),
        ("sg1_tf", "synthesis", "lod", np.float32(2.5), "still growing .*: lod = 2.5"),
        ("sg1_tf", "mapping", "Dense3/bias", None, "'mapping/Dense3/bias' is missing"),
        ("sg1_tf", "mapping", "Dense7/weight", narrower, "mapping/dense_7/kernel has shape"),
        ("sg2_tf", "synthesis", "64x64/ToRGB/mod_bias", None, "64x64/ToRGB/mod_bias' is missing"),
        ("sg2_tf", "synthesis", "64x64/ToRGB/extra", np.zeros(3), "/64x64/ToRGB/extra' has no"),
        ("sg2_tf", "synthesis", "4x4/Conv/noise_strength", np.zeros(3), "tensor with 0 axes"),
        ("sg2_tf", "mapping", "LabelConcat/weight", np.zeros((3, 3)), "LabelConcat/weight' has no"),
        ("sg2_tf", None, "dlatent_avg", narrower, "latent_average has shape"),
        ("sg2_tf", None, "dlatent_avg", None, "'dlatent_avg' is missing"),
        ("sg2_tf", None, "lod", np.float32(1), "lod = 1"),
    ],
)
def test_tensorflow_variables_that_do_not_fit(name, part, entry, value, reason, monkeypatch):
    tree = weights(f"{name}.pkl")
    state = (tree[2].state["components"][part] if part else tree[2]).state
    variables = dict(state["variables"])
    changed(variables, entry, value)
    state["variables"] = list(variables.items())
    assert re.search(reason, refused(tree, monkeypatch))


@pytest.mark.parametrize(
    ("name", "setting", "value", "reason"),
    [
        ("sg1_tf", "label_size", 10, "conditional: label_size = 10"),
        ("sg1_tf", "blur_filter", None, "blur_filter = None "),
        ("sg1_tf", "nonlinearity", "relu", "nonlinearity = 'relu' "),
        ("sg1_tf", "mapping_nonlinearity", "relu", "mapping_nonlinearity = 'relu' "),
        ("sg1_tf", "fused_scale", True, "fused_scale = True "),
        ("sg1_tf", "use_instance_norm", False, "use_instance_norm = False "),
        ("sg2_tf", "label_size", 1, "conditional: label_size = 1"),
        ("sg2_tf", "architecture", "resnet", "architecture = 'resnet' "),
        ("sg2_tf", "architecture", "orig", "architecture = 'orig' "),
        ("sg2_tf", "resample_kernel", [1, 2, 1], r"resample_kernel = \[1, 2, 1\] "),
        ("sg2_tf", "mapping_lrmul", 0.1, "mapping_lrmul = 0.1 "),
    ],
)
def test_tensorflow_settings_that_are_not_supported(name, setting, value, reason, monkeypatch):
    tree = weights(f"{name}.pkl")
    for network in (tree[2], *tree[2].state["components"].values()):
        network.state["static_kwargs"][setting] = value
    assert re.search(reason, refused(tree, monkeypatch))


@pytest.mark.parametrize(
    ("module", "part", "entry", "value", "reason"),
    [
        ("synthesis.b8.conv0", "_parameters", "weight", None, "b8.conv0.weight' is missing"),
        ("synthesis.b8.conv0", "_parameters", "weight", narrower, "8x8_conv_up/kernel has shape"),
        ("synthesis.b8.torgb", "_parameters", "bias", narrower, "8x8_to_rgb/bias has shape"),
        ("synthesis.b8.torgb.affine", "_parameters", "bias", np.zeros((3, 3)), "with 1 axes"),
        ("synthesis.b8.conv1", "_buffers", "extra", np.zeros(3), "b8.conv1.extra' has no place"),
        ("synthesis.b8", "_modules", "conv1", None, "'synthesis.b8.conv1.weight' is missing"),
        ("mapping", "_buffers", "w_avg", narrower, "latent_average has shape"),
        ("mapping", "_modules", "fc3", None, "'mapping.fc3.weight' is missing"),
        ("mapping.fc7", "_parameters", "weight", lambda w: w[:-1], "dense_7/kernel has shape"),
        ("synthesis.b8", "_buffers", "resample_filter", lambda f: f.T + 1, "b8.resample_filter'"),
        ("synthesis.b8.conv0", "_buffers", "resample_filter", np.ones(2), "conv0.resample_filter'"),
        ("", None, "c_dim", 10, "c_dim = 10 is not supported, only 0"),
        ("synthesis.b16", None, "architecture", "resnet", "b16.architecture = 'resnet' "),
        ("synthesis.b16.conv0", None, "activation", "relu", "b16.conv0.activation = 'relu' "),
        ("synthesis.b16.conv0", None, "up", 1, "b16.conv0.up = 1 "),
        ("synthesis.b16.conv1", None, "use_noise", False, "b16.conv1.use_noise = False "),
        ("synthesis.b16.torgb", None, "conv_clamp", 3, "b16.torgb.conv_clamp = 3 "),
        ("mapping.fc2", None, "activation", "linear", "mapping.fc2.activation = 'linear' "),
        ("mapping.fc2", None, "bias_gain", 1, "mapping.fc2.bias_gain = 1 "),
        ("synthesis", None, "_buffers", None, "not laid out as expected .*_buffers"),
    ],
)
def test_persistent_modules_that_do_not_fit(module, part, entry, value, reason, monkeypatch):
    tree = weights("sg2ada.pkl")
    state = persistent_modules(tree["G_ema"])[module]
    changed(state[part] if part else state, entry, value)
    assert re.search(reason, refused(tree, monkeypatch))


def test_modules_that_contain_each_other_end(monkeypatch):
    empty = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    itself = Instance("Generator", empty | {"_modules": {}})
    itself.state["_modules"]["module"] = itself
    assert "too many modules" in refused({"G_ema": itself}, monkeypatch)
    twice = Instance("Generator", empty)
    for _ in range(20):
        twice = Instance("Generator", empty | {"_modules": {"a": twice, "b": twice}})
    assert "too many modules" in refused({"G_ema": twice}, monkeypatch)
    wide = Instance("Generator", empty | {"_modules": {f"m{i}": twice for i in range(1000)}})
    assert "too many modules" in refused({"G_ema": wide}, monkeypatch)
    named = Instance("Generator", empty | {"_modules": {"a.b": twice}})
    assert "'a.b' is no module's or parameter's name" in refused({"G_ema": named}, monkeypatch)


@pytest.mark.parametrize(
    ("entry", "value", "reason"),
    [
        ("convs.3.conv.weight", None, "'convs.3.conv.weight' is missing"),
        ("convs.3.conv.weight", narrower, "16x16_conv/kernel has shape"),
        ("convs.3.conv.weight", lambda w: w + np.nan, "16x16_conv/kernel has values that are"),
        ("convs.4.conv.blur.kernel", lambda k: k / 4, "'convs.4.conv.blur.kernel' is not"),
        ("to_rgbs.2.upsample.kernel", np.ones((4, 4)), "'to_rgbs.2.upsample.kernel' is not"),
        ("to_rgbs.4.bias", np.zeros((1, 3, 1, 1)), "'convs.8.conv.weight' is missing"),
        ("style.9.weight", np.zeros((32, 32)), "'style.9.bias' is missing"),
        ("input.extra", np.zeros(3), "'input.extra' has no place"),
    ],
)
def test_state_dicts_of_rosinality_that_do_not_fit(entry, value, reason, monkeypatch):
    tree = weights("rosinality.pt")
    changed(tree["g_ema"], entry, value)
    assert re.search(reason, refused(tree, monkeypatch))


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"d": {}, "args": None}, "a discriminator"),
        ({"D": None, "augment_pipe": None}, "a discriminator"),
        (Instance("Discriminator", {}), "a 'Discriminator'"),
        ((1, 2, Instance("dnnlib.tflib.network.Network", {}))[:2], "a tuple"),
        (
            {"blocks.4x4.const": 1},
            "PULSE's synthesis network, without gaussian_fit.pt or mapping.pt",
        ),
        ({"dense0.weight": 1}, "PULSE's mapping network"),
        ({"mean": 1, "std": 1}, "PULSE's latent fit"),
        ({"model": 1, "epoch": 2}, "'model', 'epoch'"),
        ({"G": 1, "D": 2}, "the generator 'G' without its moving average, 'G_ema'"),
        ({"g": {}, "d": {}}, "the generator 'g' without its moving average, 'g_ema'"),
        ([1], "a list"),
        (np.zeros(3), "a ndarray"),
        ({}, "no generator"),
    ],
)
def test_what_holds_no_generator_is_said(tree, reason, monkeypatch):
    assert reason in refused(tree, monkeypatch)


def test_state_dicts_without_their_architecture(monkeypatch):
    root = weights("sg2ada_fp16cfg.pkl")["G_ema"]
    state = persistent_state(persistent_modules(root))
    for tree in (state, {"G": state, "D": state, "G_ema": state}, {"g_ema": state}):
        reason = refused(tree, monkeypatch)
        assert reason.startswith("holds no generator, but state dicts ('")
        assert "lack the network's architecture: save the network itself" in reason


def rectangular(array):
    return array[..., :2]


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("sg1_tf.pkl", "4x4/Const/const"),
        ("sg2_tf.pkl", "4x4/Const/const"),
        ("sg2ada_fp16cfg.pkl", "const"),
        ("rosinality.pt", "input.input"),
    ],
)
def test_networks_of_which_the_learned_input_is_not_square(name, entry, monkeypatch):
    match weights(name):
        case (_, _, tree):
            state = tree.state["components"]["synthesis"].state
            variables = dict(state["variables"])
            variables[entry] = rectangular(variables[entry])
            state["variables"] = list(variables.items())
        case {"G_ema": tree}:
            parameters = persistent_modules(tree)["synthesis.b4"]["_parameters"]
            parameters[entry] = rectangular(parameters[entry])
        case tree:
            tree["g_ema"][entry] = rectangular(tree["g_ema"][entry])
    reason = "the network isn't square, which it must be: its learned input is 4×2"
    assert refused(tree, monkeypatch) == reason


def test_networks_of_pulse_that_are_not_square():
    synthesis, mapping = pulse_states()
    synthesis["blocks.4x4.const"] = rectangular(synthesis["blocks.4x4.const"])
    with pytest.raises(ValueError, match=r"isn't square, .* its learned input is 4×2"):
        from_pulse(synthesis, mapping)


@pytest.mark.parametrize(
    ("name", "part", "setting", "value"),
    [
        ("sg2ada_fp16cfg.pkl", "", "img_resolution", [32, 16]),
        ("sg2ada_fp16cfg.pkl", "", "init_res", (4, 3)),
        ("sg3R.pkl", "synthesis", "img_resolution", [32, 16]),
        ("sg3R.pkl", "synthesis.input", "size", np.array([18, 36])),
    ],
)
def test_networks_that_say_that_they_are_not_square(name, part, setting, value, monkeypatch):
    tree = weights(name)
    persistent_modules(tree["G_ema"])[part][setting] = value
    assert re.search("^the network isn't square, .*×", refused(tree, monkeypatch))


def test_other_networks_of_tensorflow_are_refused(monkeypatch):
    generator, discriminator, _ = weights("sg2_tf.pkl")
    assert "'D_stylegan2' is no StyleGAN" in refused((1, generator, discriminator), monkeypatch)
