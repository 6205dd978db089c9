"""StyleGAN 2 against the numbers of rosinality's and NVIDIA's PyTorch programs."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA, golden, relative_error

from pulse_jax.generators.official import read
from pulse_jax.generators.stylegan2 import Discriminator, StyleGAN2, minibatch_deviation

both_precisions = pytest.mark.parametrize(
    ("x64", "dtype", "bound"), [(False, "float32", 1e-4), (True, "float64", 1e-9)]
)
both_programs = pytest.mark.parametrize("program", ["rosinality", "sg2ada"])


def as_dtype(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def nchw(images):
    return images.transpose(0, 3, 1, 2)


def hwio(weight):
    return weight.transpose(2, 3, 1, 0)


def synthesise(module, w, noise, params):
    return module.apply({"params": params}, w, noise, method="synthesis")


def as_float64(state):
    """A state dict, exact under the scaling that some conversions need."""
    return {name: value.astype(np.float64) for name, value in state.items()}


def nvidia_state(network):
    prefix, arrays = f"{network}.", golden("sg2ada_weights")
    names = [name for name in arrays if name.startswith(prefix)]
    return as_float64({name.removeprefix(prefix): arrays[name] for name in names})


def dense(state, name):
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def from_rosinality(state, sides):
    """StyleGAN2's parameters from rosinality's `g_ema`."""

    def modulated(name, bias):
        return {
            "kernel": hwio(state[f"{name}.conv.weight"][0]),
            "bias": state[f"{name}.{bias}"].reshape(-1),
            "style": dense(state, f"{name}.conv.modulation"),
        }

    def conv(name):
        strength = state[f"{name}.noise.weight"][0]
        return modulated(name, "activate.bias") | {"noise_strength": strength}

    synthesis = {
        "const": state["input.input"].transpose(0, 2, 3, 1),
        "4x4_conv": conv("conv1"),
        "4x4_to_rgb": modulated("to_rgb1", "bias"),
    }
    for k, side in enumerate(sides[1:]):
        synthesis[f"{side}x{side}_conv_up"] = conv(f"convs.{2 * k}")
        synthesis[f"{side}x{side}_conv"] = conv(f"convs.{2 * k + 1}")
        synthesis[f"{side}x{side}_to_rgb"] = modulated(f"to_rgbs.{k}", "bias")
    mapping = {f"dense_{i}": dense(state, f"style.{i + 1}") for i in range(8)}
    return {"mapping": mapping, "synthesis": synthesis}


def unscaled(kernel):
    """NVIDIA's program takes 3×3 kernels as they are, ours divides by sqrt(fan_in)."""
    return kernel * math.sqrt(math.prod(kernel.shape[:3]))


def from_nvidia(state, sides):
    """StyleGAN2's parameters from NVIDIA's `G_ema`."""

    def modulated(name):
        return {
            "kernel": hwio(state[f"{name}.weight"]),
            "bias": state[f"{name}.bias"],
            "style": dense(state, f"{name}.affine"),
        }

    def conv(name):
        layer = modulated(name) | {"noise_strength": state[f"{name}.noise_strength"]}
        return layer | {"kernel": unscaled(layer["kernel"])}

    synthesis = {"const": state["synthesis.b4.const"].transpose(1, 2, 0)[None]}
    for side in sides:
        block = f"synthesis.b{side}"
        if side > 4:
            synthesis[f"{side}x{side}_conv_up"] = conv(f"{block}.conv0")
        synthesis[f"{side}x{side}_conv"] = conv(f"{block}.conv1")
        synthesis[f"{side}x{side}_to_rgb"] = modulated(f"{block}.torgb")
    mapping = {f"dense_{i}": dense(state, f"mapping.fc{i}") for i in range(8)}
    return {"mapping": mapping, "synthesis": synthesis}


def discriminator_from_nvidia(state, sides):
    """Discriminator's parameters from NVIDIA's `D`."""

    def conv(name):
        return {"kernel": hwio(state[f"{name}.weight"]), "bias": state[f"{name}.bias"]}

    params = {"4x4_conv": conv("b4.conv"), "logit": dense(state, "b4.out")}
    params[f"{sides[-1]}x{sides[-1]}_from_rgb"] = conv(f"b{sides[-1]}.fromrgb")
    for side in sides[1:]:
        params[f"{side}x{side}_conv"] = conv(f"b{side}.conv0")
        params[f"{side}x{side}_conv_down"] = conv(f"b{side}.conv1")
        params[f"{side}x{side}_skip"] = {"kernel": hwio(state[f"b{side}.skip.weight"])}
    fc = dense(state, "b4.fc")  # NVIDIA flattens (C, H, W), ours (H, W, C)
    kernel = fc["kernel"].reshape(-1, 16, fc["bias"].size).swapaxes(0, 1)
    params["dense"] = fc | {"kernel": kernel.reshape(fc["kernel"].shape)}
    return params


def reference(program):
    """A module, its parameters in float64, and golden arrays under the names of rosinality's."""
    arrays, sides = golden(program), (4, 8, 16, 32, 64)
    if program == "rosinality":
        state = as_float64(read(DATA / "rosinality.pt")["g_ema"])
        return StyleGAN2(64, (24, 24, 20, 16, 12), 32), from_rosinality(state, sides), arrays
    renamed = {"w": arrays["w_psi1_64"][:, 0], "w_mixed": arrays["ws_mixed"]}
    renamed |= {"image_w_mixed": arrays["img_explicit_64"]}
    renamed |= {"grad_w_mixed": arrays["img_explicit_grad_ws_64"]}
    renamed |= {f"grad_noise{i}": arrays[f"img_explicit_grad_noise{i}_64"] for i in range(9)}
    module = StyleGAN2(64, (24, 24, 24, 24, 16), 32)
    return module, from_nvidia(nvidia_state("G_ema"), sides), arrays | renamed


@both_precisions
@both_programs
def test_mapping_equals_the_reference(program, x64, dtype, bound):
    module, params, arrays = reference(program)
    with jax.enable_x64(x64):
        params, z = as_dtype((params, arrays["z"]), dtype)
        w = module.apply({"params": params}, z, method="mapping")
    assert w.dtype == dtype
    assert relative_error(w, arrays["w"]) <= bound


@both_precisions
@both_programs
def test_synthesis_and_its_gradients_equal_the_reference(program, x64, dtype, bound):
    module, params, arrays = reference(program)
    noise = [arrays[f"noise{i}"] for i in range(len(module.noise_shapes))]

    def loss(w, noise, params):
        image = nchw(synthesise(module, w, noise, params))
        return jnp.sum(image * arrays["cotangent"].astype(dtype)), image

    with jax.enable_x64(x64):
        inputs = as_dtype((arrays["w_mixed"], noise, params), dtype)
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        (grad_w, grad_noise), image = gradient(*inputs)

    assert image.dtype == grad_w.dtype == dtype
    assert relative_error(image, arrays["image_w_mixed"]) <= bound
    assert relative_error(grad_w, arrays["grad_w_mixed"]) <= bound
    for i, grad in enumerate(grad_noise):
        assert relative_error(grad, arrays[f"grad_noise{i}"]) <= bound, f"noise {i}"


@both_precisions
def test_discriminator_equals_the_reference(x64, dtype, bound):
    module, params, arrays = reference("sg2ada")
    discriminator = Discriminator(module.channels)
    weights = discriminator_from_nvidia(nvidia_state("D"), (4, 8, 16, 32, 64))
    with jax.enable_x64(x64):
        noise = [np.zeros((1, *shape)) for shape in module.noise_shapes]
        inputs = as_dtype((arrays["ws_mixed"][:1], noise, params), dtype)
        image = jax.jit(synthesise, static_argnums=0)(module, *inputs)
        score = jax.jit(discriminator.apply)({"params": as_dtype(weights, dtype)}, image)
    assert relative_error(nchw(image), arrays["img_mixed_none_64r32"]) <= max(bound, 1e-7)
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
