"""StyleGAN 2 against the numbers of rosinality's and NVIDIA's PyTorch programs."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import as_dtype, both_precisions, golden, relative_error, weights

from pulse_jax.generators.official.ada import from_ada
from pulse_jax.generators.official.parameters import hwio, persistent_modules, persistent_state
from pulse_jax.generators.official.rosinality import from_rosinality
from pulse_jax.generators.style_network import attribute_features, truncate
from pulse_jax.generators.stylegan2 import Discriminator, StyleGAN2, minibatch_deviation

in_both_precisions = both_precisions(1e-4, 1e-9)
NVIDIA = ["sg2ada", "sg2ada_fp16cfg"]
every_program = pytest.mark.parametrize("program", ["rosinality", *NVIDIA])


def nchw(images):
    return images.transpose(0, 3, 1, 2)


@functools.partial(jax.jit, static_argnums=0)
def synthesise(module, w, noise, params):
    return module.apply({"params": params}, w, noise, method="synthesis")


def nvidia(name, network):
    """A network of a pickle of stylegan2-ada-pytorch, and its state dict."""
    root = weights(f"{name}.pkl")[network]
    return root, persistent_state(persistent_modules(root))


def reference(program, network="G_ema"):
    """A module, its parameters unrounded, its constant noise maps, and golden arrays."""
    arrays = golden(program)
    if program == "rosinality":
        checkpoint = weights("rosinality.pt")
        module, params = from_rosinality(checkpoint["g_ema"], checkpoint.get("latent_avg"))
        constant = [checkpoint["g_ema"][f"noises.noise_{i}"] for i in range(9)]
        arrays["w"] = np.repeat(arrays["w"][:, None], module.num_layers, axis=1)
        return module, params, constant, arrays
    root, state = nvidia(program, network)
    module, params = from_ada(root)
    names = [f"b{2 ** (i // 2 + 2)}.conv{i % 2}" for i in range(1, module.num_layers)]
    constant = [state[f"synthesis.{name}.noise_const"][None, None] for name in names]
    return module, params, constant, arrays


def discriminator_from_nvidia(state, sides):
    """Discriminator's parameters from NVIDIA's `D`."""

    def dense(name):
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    def conv(name):
        return {"kernel": hwio(state[f"{name}.weight"]), "bias": state[f"{name}.bias"]}

    params = {"4x4_conv": conv("b4.conv"), "logit": dense("b4.out")}
    params[f"{sides[-1]}x{sides[-1]}_from_rgb"] = conv(f"b{sides[-1]}.fromrgb")
    for side in sides[1:]:
        params[f"{side}x{side}_conv"] = conv(f"b{side}.conv0")
        params[f"{side}x{side}_conv_down"] = conv(f"b{side}.conv1")
        params[f"{side}x{side}_skip"] = {"kernel": hwio(state[f"b{side}.skip.weight"])}
    fc = dense("b4.fc")  # NVIDIA flattens (C, H, W), ours (H, W, C)
    kernel = fc["kernel"].reshape(-1, 16, fc["bias"].size).swapaxes(0, 1)
    params["dense"] = fc | {"kernel": kernel.reshape(fc["kernel"].shape)}
    return params


def cases(program, arrays, constant):
    """Golden images: (w of two images, noise, images of the first or both, gradients by name)."""
    explicit = [arrays[f"noise{i}"] for i in range(len(constant))]
    if program == "rosinality":
        gradients = {"w": arrays["grad_w_mixed"]}
        gradients |= {i: arrays[f"grad_noise{i}"] for i in range(len(constant))}
        return {
            "explicit noise": (arrays["w_mixed"], explicit, arrays["image_w_mixed"], gradients),
            "constant noise": (arrays["w"], constant, arrays["image"], {}),
            "truncated": (arrays["w_trunc"], constant, arrays["image_trunc"], {}),
        }
    gradients = {"w": arrays["img_explicit_grad_ws_64"]}
    gradients |= {i: arrays[f"img_explicit_grad_noise{i}_64"] for i in range(len(constant))}
    w, zero = arrays["ws_mixed"], [np.zeros_like(noise) for noise in constant]
    of_w = {"w": arrays["img_mixed_const_grad_ws_64"]}
    return {
        "explicit noise": (w, explicit, arrays["img_explicit_64"], gradients),
        "constant noise": (w, constant, arrays["img_mixed_const_64"], of_w),
        "no noise": (w, zero, arrays["img_mixed_none_64r32"], {}),
        "z": (arrays["w_psi1_64"][:2], constant, arrays["img_z_psi1_const_64r32"], {}),
        "truncated": (arrays["w_trunc_64"][:2], constant, arrays["img_z_trunc_const_64r32"], {}),
    }


@in_both_precisions
@every_program
def test_mapping_and_truncation_equal_the_reference(program, x64, dtype, bound):
    module, params, _, arrays = reference(program)
    truncated_layers = {"w": 0, "w_psi1_64": 0, "w_trunc": None, "w_trunc_64": None}
    truncated_layers |= {"w_trunc_cut_64": 6}
    with jax.enable_x64(x64):
        params, z = as_dtype((params, arrays["z"]), dtype)
        mapping = jax.jit(functools.partial(module.apply, method="mapping"))
        w = mapping({"params": params}, z)
        w = np.repeat(w[:, None], module.num_layers, axis=1)
        for name in truncated_layers.keys() & arrays.keys():
            psi, layers = float(arrays["psi"]), truncated_layers[name]
            average = params["latent_average"]
            truncated = jax.jit(truncate, static_argnums=(2, 3))(w, average, psi, layers)
            assert truncated.dtype == dtype
            assert relative_error(truncated, arrays[name]) <= bound, name


def test_attributes_are_seen_as_numbers_and_kinds():
    z = np.float32([[0, 0.6744898, 3, 0, 0, -1, 1], [-9, 9, 0, 0, 0, 0, 0]])
    features = jax.jit(attribute_features, static_argnums=1)
    found = features(z, (3, 2))
    numbers = [[0, 0.6744898, 0, 0.5, 1, 0, 0, 1], [-9, 9, -1, 1, -1, -1, 0, 0]]
    kinds = [[1, 0, 0, 0, 1], [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2]]
    np.testing.assert_allclose(found, np.concatenate([numbers, kinds], axis=1), atol=1e-6)
    slightly = features(np.float32([[0, 0.1]]), (2,))
    np.testing.assert_allclose(slightly, [[1 / (1 + np.exp(0.8)), 1 / (1 + np.exp(-0.8))]], 1e-6)


@in_both_precisions
@every_program
def test_synthesis_and_its_gradients_equal_the_reference(program, x64, dtype, bound):
    module, params, constant, arrays = reference(program)

    def loss(w, noise, params):
        image = nchw(synthesise(module, w, noise, params))
        return jnp.sum(image * arrays["cotangent"].astype(dtype)), image

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    for name, (w, noise, expected, gradients) in cases(program, arrays, constant).items():
        noise = [np.broadcast_to(value, (2, *value.shape[1:])) for value in noise]
        with jax.enable_x64(x64):
            (grad_w, grad_noise), image = gradient(*as_dtype((w, noise, params), dtype))
        assert image.dtype == grad_w.dtype == dtype
        rounding = 1e-7 if expected.dtype == np.float32 else 0
        assert relative_error(image[: len(expected)], expected) <= max(bound, rounding), name
        for i, grad in gradients.items():
            actual = grad_w if i == "w" else grad_noise[i]
            assert relative_error(actual, grad) <= bound, f"{name}: gradient of {i}"


@in_both_precisions
@pytest.mark.parametrize("program", NVIDIA)
def test_the_network_without_moving_average_is_another(program, x64, dtype, bound):
    images, (_, _, _, arrays) = {}, reference(program)
    for network in ("G", "G_ema"):
        module, params, constant, _ = reference(program, network)
        with jax.enable_x64(x64):
            inputs = as_dtype((arrays["ws_mixed"][:1], constant, params), dtype)
            image = synthesise(module, *inputs)
        images[network] = nchw(image)[:, :, ::4, ::4]
    assert relative_error(images["G"], arrays["G_not_ema_img_sub4_64"]) <= bound
    assert relative_error(images["G_ema"], arrays["G_not_ema_img_sub4_64"]) > 0.1


@in_both_precisions
def test_discriminator_equals_the_reference(x64, dtype, bound):
    module, params, constant, arrays = reference("sg2ada")
    discriminator = Discriminator(module.channels)
    _, state = nvidia("sg2ada", "D")
    weights = discriminator_from_nvidia(state, (4, 8, 16, 32, 64))
    with jax.enable_x64(x64):
        noise = [np.zeros_like(value) for value in constant]
        inputs = as_dtype((arrays["ws_mixed"][:1], noise, params), dtype)
        image = synthesise(module, *inputs)
        score = jax.jit(discriminator.apply)({"params": as_dtype(weights, dtype)}, image)
    assert relative_error(score, arrays["D_score_64"][:, 0]) <= bound


def test_the_deviation_is_that_of_every_second_image_of_eight():
    x = np.random.default_rng(0).normal(size=(8, 2, 2, 3)).astype(np.float32)
    channel = minibatch_deviation(x, 4)
    assert channel.shape == (8, 2, 2, 1)
    for first in (0, 1):
        deviation = np.sqrt(x[first::2].astype(np.float64).var(axis=0) + 1e-8).mean()
        np.testing.assert_allclose(channel[first::2], deviation, rtol=1e-6)


def test_the_deviation_of_few_images_is_that_of_all():
    x = np.random.default_rng(1).normal(size=(3, 2, 2, 1))
    expected = np.sqrt(x.var(axis=0) + 1e-8).mean()
    np.testing.assert_allclose(
        minibatch_deviation(x, 4), np.full((3, 2, 2, 1), expected), rtol=1e-6
    )


def test_batches_that_do_not_divide_into_groups_are_refused():
    with pytest.raises(ValueError, match="6 images"):
        minibatch_deviation(np.zeros((6, 2, 2, 1)), 4)


def test_every_convolution_of_a_gradient_step_is_in_canonical_form():
    module = StyleGAN2(8, (4, 3), latent_size=5, mapping_layers=1)
    w = jnp.ones((2, module.num_layers, 5))
    noise = [jnp.ones((2, *shape)) for shape in module.noise_shapes]
    params = jax.eval_shape(module.init, jax.random.key(0), w[:, 0], noise)["params"]

    def loss(w, noise, params):
        return jnp.sum(synthesise(module, w, noise, params) ** 2)

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    program = gradient.lower(w, noise, params).compile().as_text()
    convolutions = re.findall(r"dim_labels=(\w+->\w+)", program)
    assert len(convolutions) >= 6  # three of 3×3, forwards and backwards
    assert set(convolutions) == {"b01f_01io->b01f"}


def test_channels_that_do_not_fit_the_resolution_are_refused():
    module = StyleGAN2(resolution=64, channels=(8, 8, 8))
    with pytest.raises(ValueError, match="64"):
        module.init(jax.random.key(0), jnp.ones((1, 512)), [])


def test_convolutions_in_bfloat16():
    """Noise maps and images of that dtype set that of the convolutions; the ends stay float32."""
    network, judge = StyleGAN2(8, (6, 4), 5, 1), Discriminator((6, 4))
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((4, 4, 5), np.float32))
    noise = [rng.standard_normal((4, *shape), np.float32) for shape in network.noise_shapes]

    def weights(module, *inputs):
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)

    params = weights(network, w[:, 0], noise), weights(judge, np.zeros((4, 8, 8, 3), np.float32))

    @jax.jit(static_argnums=1)
    def compute(params, dtype):
        image = network.apply(params[0], w, as_dtype(noise, dtype), method="synthesis")
        return image, judge.apply(params[1], image.astype(dtype))

    for exact, found in zip(compute(params, "float32"), compute(params, "bfloat16"), strict=True):
        assert found.dtype == jnp.float32
        assert 1e-5 < relative_error(found, exact) < 0.1
