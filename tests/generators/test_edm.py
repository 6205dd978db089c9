"""EDM's networks and solvers, against the numbers of EDM itself. Networks are tiny and random."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_helpers import read_rows, write_picture
from helpers import DATA, golden, relative_error

from pulse_jax.generators import checkpoint, official
from pulse_jax.generators.diffusion import schedules, solvers
from pulse_jax.generators.diffusion.blocks import Attention, Resnet, fir_down, mean_of_4
from pulse_jax.generators.diffusion.edm import EDMPrecond
from pulse_jax.generators.layers import upsample
from pulse_jax.generators.official import read, read_network
from pulse_jax.generators.official.parameters import persistent_modules
from pulse_jax.generators.official.unpickle import Instance
from pulse_jax.images import load_image

EDM = DATA / "modern" / "edm"


def nhwc(images):
    return np.asarray(images).transpose(0, 2, 3, 1)


class Denoiser:
    """A network in a file, in float64 or float32, and the numbers of EDM."""

    def __init__(self, name, dtype):
        self.model, params = read_network(EDM / f"{name}.pkl")
        self.arrays, self.dtype = golden(f"modern/edm/{name}"), dtype
        self.params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params["network"])

    def __call__(self, params, x, sigma):
        labels = ()
        if self.model.network.classes:
            labels = (jnp.asarray(self.arrays["class_labels"].argmax(1)),)
        return self.model.network.apply({"params": params}, x, sigma, *labels)

    def compiled(self, function):
        """`function(params, x, sigma)`, and its gradient for x, of the arrays' cotangent."""

        @jax.jit
        def run(params, x, sigma):
            value, pull = jax.vjp(lambda x: function(params, x, sigma), x)
            return value, *pull(jnp.asarray(nhwc(self.arrays["cotangent"]), self.dtype))

        def check(x, sigma, names, bound):
            with jax.enable_x64(self.dtype == np.float64):
                x = jnp.asarray(nhwc(self.arrays[x]), self.dtype)
                results = run(self.params, x, jnp.asarray(self.arrays[sigma], self.dtype))
            for result, name in zip(results, names, strict=False):
                assert result.dtype == self.dtype
                assert relative_error(result, nhwc(self.arrays[name])) <= bound, name

        return check


def check_network(name, dtype, bound):
    denoiser = Denoiser(name, dtype)
    check = denoiser.compiled(denoiser)
    for i in range(3):
        check(f"x{i}", f"sigma{i}", (f"D{i}", f"grad_x{i}"), bound)
    return denoiser


@pytest.mark.parametrize("name", ["edm_ncsnpp", "edm_adm_strided"])
def test_networks_and_their_gradients(name):
    check_network(name, np.float64, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edm_ddpmpp", "edm_ddpmpp_cond", "edm_adm"])
def test_the_other_networks(name):
    denoiser = check_network(name, np.float64, 1e-9)
    denoiser.compiled(denoiser)("x_mixed", "sigma_mixed", ("D_mixed",), 1e-9)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("edm_ddpmpp", 2e-5),
        ("edm_ncsnpp", 2e-4),
        ("edm_ddpmpp_cond", 2e-5),
        ("edm_adm", 2e-5),
        ("edm_adm_strided", 2e-5),
    ],
)
def test_networks_in_float32(name, bound):
    check_network(name, np.float32, bound)


def check_solver(name, text, prefix, dtype=np.float64, bound=1e-8):
    denoiser = Denoiser(name, dtype)
    solve = solvers.parse(text)

    def image(params, z, _):
        network = functools.partial(denoiser, params)
        return solve(network, [z], denoiser.model.schedule)

    names = f"{prefix}_image", f"{prefix}_grad_z"
    denoiser.compiled(image)("z", "sigma0", names, bound)


def test_heuns_steps():
    check_solver("edm_ddpmpp", "heun:4", "heun4")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "prefix"),
    [
        ("edm_ddpmpp", "heun:1", "heun1"),
        ("edm_ddpmpp", "heun:2", "heun2"),
        ("edm_ddpmpp", "heun:9", "heun9"),
        ("edm_ncsnpp", "heun:9", "heun9"),
        ("edm_ddpmpp_cond", "heun:4", "heun4"),
        ("edm_adm", "heun:4", "heun4"),
        ("edm_adm", "one_step:2.5", "distilled"),
        ("edm_ncsnpp", "one_step:2.5", "distilled"),
    ],
)
def test_other_solvers(name, text, prefix):
    check_solver(name, text, prefix)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("text", ["heun:1", "heun:9", "one_step:2.5"])
def test_solvers_in_float32(text):
    prefix = {"one_step:2.5": "distilled"}.get(text, text.replace(":", ""))
    check_solver("edm_ddpmpp", text, prefix, np.float32, 1e-3)


def test_levels_are_those_of_edm():
    for steps in (2, 4, 9):
        levels = golden("modern/edm/edm_ddpmpp")[f"heun{steps}_t"]
        np.testing.assert_allclose(schedules.EDMSchedule().sigmas(steps), levels[:-1], rtol=1e-12)


def test_a_score_of_images_from_0_to_1_is_a_denoiser_of_others():
    """Of N(0.5, 0.25), where the others are N(0, 1)."""
    schedule = schedules.ScoreSchedule(0.01, 50.0)
    denoise = schedule.denoiser(lambda x, sigma: (0.5 - x) / (0.25 + sigma**2))
    x = jnp.linspace(-2, 2, 12).reshape(1, 2, 2, 3)
    for sigma in (0.1, 1.0, 50.0):
        found = denoise(x, jnp.asarray(sigma))
        np.testing.assert_allclose(found, x / (1 + sigma**2), atol=1e-5)
    np.testing.assert_allclose(schedule.sigmas(3)[[0, -1]], [100, 0.02], rtol=1e-12)
    with pytest.raises(ValueError, match=r"sigma is from 2\.0 to 1\.0"):
        schedules.ScoreSchedule(2.0, 1.0)


def test_a_denoiser_of_gaussian_data_is_solved_exactly():
    """Of N(0, 1), D(x, σ) = x / (1 + σ²). So x / √(1 + σ²) is constant along the flow."""
    z = jnp.linspace(-2, 2, 12, dtype=np.float32).reshape(1, 2, 2, 3)
    schedule = schedules.EDMSchedule()

    def denoise(x, sigma):
        return x / (1 + sigma**2)

    errors = []
    for steps in (16, 32):
        image = solvers.parse(f"heun:{steps}")(denoise, [z], schedule)
        errors.append(np.abs(image - 80 * z / np.sqrt(1 + 80**2)).max())
    assert errors[0] <= 0.2 and errors[1] <= errors[0] / 3  # of second order
    image = solvers.parse("heun:1")(denoise, [z], schedule)
    np.testing.assert_allclose(image, denoise(80 * z, 80.0), atol=1e-4)
    image = solvers.parse("one_step:2.5")(denoise, [z], schedule)
    np.testing.assert_allclose(image, denoise(2.5 * z, 2.5), rtol=1e-6)
    linear = solvers.parse("one_step:2.5:linear")
    gradient = jax.grad(lambda z: linear(denoise, [z], schedule).sum())(z)
    assert not gradient.any()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("heun:0", "from 1 to 100000 steps, not 0"),
        ("heun:two", "steps of heun is no number: 'two'"),
        ("one_step:0", "must be above 0 and finite, not 0.0"),
        ("one_step:nan", "must be above 0 and finite, not nan"),
        ("one_step", "ONE_STEP:SIGMA|one_step:SIGMA"),
    ],
)
def test_solvers_that_are_none(text, told):
    with pytest.raises(ValueError, match=told):
        solvers.parse(text)


@pytest.mark.slow
@pytest.mark.parametrize("block", ["b0", "b1"])
def test_blocks_with_several_heads(block):
    arrays = golden("modern/edm/edm_block_heads")
    given = json.loads(str(arrays[f"{block}_args"]))
    heads, features = int(arrays[f"{block}_num_heads"]), len(arrays[f"{block}.norm2.weight"])
    own = {k.removeprefix(f"{block}."): v for k, v in arrays.items() if k.startswith(f"{block}.")}
    assert heads > 1, given

    def layer(name):
        weight = np.asarray(own[f"{name}.weight"], np.float64)
        norm = weight.ndim == 1
        axes = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[weight.ndim]
        kernel = {"scale" if norm else "kernel": weight.transpose(axes)}
        return kernel | {"bias": np.asarray(own[f"{name}.bias"], np.float64)}

    names = {
        "norm1": "norm0",
        "conv1": "conv0",
        "time_emb_proj": "affine",
        "norm2": "norm1",
        "conv2": "conv1",
        "conv_shortcut": "skip",
    }
    resnet = {ours: layer(name) for ours, name in names.items() if f"{name}.weight" in own}
    qkv, proj = layer("qkv"), layer("proj")
    attention = {"group_norm": layer("norm2")}
    for i, letter in enumerate("qkv"):
        attention[f"to_{letter}"] = {
            "kernel": qkv["kernel"][0, 0, :, i::3],
            "bias": qkv["bias"][i::3],
        }
    attention["to_out_0"] = {"kernel": proj["kernel"][0, 0], "bias": proj["bias"]}

    down = mean_of_4 if own["conv0.resample_filter"].shape[-1] == 2 else fir_down
    resample = down if given.get("down") else upsample
    before = len(own["norm0.weight"])
    eps, scale = given.get("eps", 1e-5), given.get("skip_scale", 1)
    adaptive = given.get("adaptive_scale", True)
    groups = min(32, before // 4), min(32, features // 4)
    first = Resnet(
        features, groups, eps, adaptive, resample, "conv_shortcut" in resnet, divisor=1 / scale
    )
    second = Attention(features // heads, groups[1], eps, 1 / scale)
    with jax.enable_x64(True):

        def run(x, e):
            # Ours applies an activation to embeddings first, so their part is in the bias here.
            of_image = {"kernel": jnp.zeros((1, e.size)), "bias": e}
            y = first.apply({"params": resnet | {"time_emb_proj": of_image}}, x[None], emb)
            return second.apply({"params": attention}, y)[0]

        emb = jnp.zeros((1, 1))
        dense = resnet["time_emb_proj"]
        e = np.float64(arrays[f"{block}_emb"]) @ dense["kernel"] + dense["bias"]
        x = jnp.asarray(nhwc(arrays[f"{block}_x"]), float)
        y, pull = jax.vjp(lambda x: jax.vmap(run)(x, e), x)
        (gradient,) = pull(jnp.asarray(nhwc(arrays[f"{block}_cotangent"]), float))
    assert relative_error(y, nhwc(arrays[f"{block}_y"])) <= 1e-9
    assert relative_error(gradient, nhwc(arrays[f"{block}_grad_x"])) <= 1e-9


# --- Files. ---


def test_settings_are_those_of_the_file():
    model, params = read_network(EDM / "edm_ddpmpp_cond.pkl")
    assert model.network == EDMPrecond(16, 3, "SongUNet", 8, (2, 1, 3), 1, (16,), 3)
    assert (model.resolution, model.channels, model.schedule.usual) == (16, 3, "heun:9")
    assert list(params) == ["network"]
    for leaf in jax.tree.leaves(params):
        assert leaf.dtype == np.float32 and leaf.flags.owndata


def test_a_denoiser_alone_is_the_same(monkeypatch):
    _, expected = read_network(EDM / "edm_ncsnpp.pkl")
    tree = read(EDM / "edm_ncsnpp.pkl")["ema"]
    monkeypatch.setattr(official, "read", lambda path: tree)
    _, params = read_network("network.pkl")
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(
    ("module", "part", "entry", "value", "told"),
    [
        ("model", "_init_kwargs", "decoder_type", "skip", "decoder_type = 'skip' is not supported"),
        ("model", "_init_kwargs", "encoder_type", "skip", "encoder_type must be among standard"),
        ("model", "_init_kwargs", "resample_filter", [1, 2, 1], "resample_filter must be among"),
        ("model", "_init_kwargs", "model_channels", 10**6, "model_channels = 1000000 is not"),
        ("model", "_init_kwargs", "model_channels", "many", "model_channels = 'many' is not"),
        ("model", "_init_kwargs", "num_blocks", 10**4, "entries for 10000 blocks"),
        ("model", "_init_kwargs", "channel_mult", [1] * 17, "channel_mult is a list of 17"),
        ("model", "_init_kwargs", "channel_mult", [2, 2], "map_layer_linear_1_|_weight is float32"),
        ("model", "_init_kwargs", "label_dim", 4, "lacks map_label_bias"),
        ("model.dec.8x8_in0", None, "num_heads", 2, "model.dec.8x8_in0.num_heads = 2"),
        ("model.enc.8x8_block0", None, "skip_scale", 1, "model.enc.8x8_block0.skip_scale = 1"),
        ("model.enc.8x8_down.conv0", "_buffers", "resample_filter", np.ones((2, 2)), "is not"),
        ("model.enc.8x8_down.conv0", "_parameters", "weight", None, "conv0.bias. has no place"),
        ("model.dec.16x16_up.conv1", "_parameters", "bias", np.zeros(3), "conv2_bias is"),
        ("model.enc.16x16_conv", "_parameters", "extra", np.zeros(3), "16x16_conv.extra' has no"),
    ],
)
def test_files_that_do_not_fit(module, part, entry, value, told, monkeypatch):
    tree = read(EDM / "edm_ddpmpp.pkl")
    state = persistent_modules(tree["ema"])[module]
    (state[part] if part else state)[entry] = value
    assert_refused(tree, told, monkeypatch)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: Instance("VEPrecond", root.state), "class 'VEPrecond' is not supported"),
        (lambda root: root.state["_modules"]["model"], "holds no generator, but a 'SongUNet'"),
        (lambda root: Instance("EDMPrecond", {}), "a 'EDMPrecond'"),
    ],
)
def test_networks_of_other_classes(change, told, monkeypatch):
    assert_refused({"ema": change(read(EDM / "edm_ddpmpp.pkl")["ema"])}, told, monkeypatch)


def assert_refused(tree, told, monkeypatch):
    monkeypatch.setattr(official, "read", lambda path: tree)
    with pytest.raises(ValueError, match=told) as raised:
        read_network("network.pkl")
    assert str(raised.value).startswith("network.pkl: ") and "\n" not in str(raised.value)


def test_an_array_has_few_other_names(monkeypatch):
    tree = read(EDM / "edm_adm.pkl")
    arrays = [module["_parameters"] for module in persistent_modules(tree["ema"]).values()]
    assert len({id(a) for part in arrays for a in part.values()}) < sum(map(len, arrays))
    large = np.zeros((2048, 1024, 1, 1), np.float32)
    for part in arrays:
        if np.ndim(part.get("weight")) == 4:
            part["weight"] = large
    assert_refused(tree, "is the same array as", monkeypatch)


def test_a_saved_denoiser_is_the_same(tmp_path):
    model, params = read_network(EDM / "edm_ddpmpp_cond.pkl")
    checkpoint.save(tmp_path / "edm", generator=(model, params))
    loaded, loaded_params = checkpoint.read_network(tmp_path / "edm")
    assert loaded == model
    jax.tree.map(np.testing.assert_array_equal, loaded_params, params)


@pytest.mark.slow
def test_a_search_through_the_command(run, tmp_path):
    write_picture(tmp_path / "in" / "a.png", side=8)
    flags = ["--solver=one_step:2.5", f"--input_dir={tmp_path / 'in'}", "--restarts=3"]
    out = run(*flags, "--steps=4", generator=EDM / "edm_ddpmpp_cond.pkl")
    rows = read_rows(out)
    assert [row["label"] for row in rows] == ["0", "1", "2"]
    with np.load(out / "a" / "latents.npz") as file:
        latents = {name: file[name][1] for name in ("noise_0", "label")}
    assert latents["noise_0"].shape == (1, 16, 16, 3)
    generator, params = checkpoint.load(EDM / "edm_ddpmpp_cond.pkl", solver="one_step:2.5")
    noise, frozen = {"noise_0": jnp.asarray(latents["noise_0"])}, {"label": int(latents["label"])}
    image = jax.jit(generator.synthesize)(params, noise, frozen)
    saved = load_image(out / "a" / "hr_02.png")
    np.testing.assert_allclose(np.clip(image, 0, 1), saved, rtol=0, atol=0.6 / 255)
