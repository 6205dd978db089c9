"""StyleGAN 1 against PULSE's own numbers."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import as_dtype, both_precisions, golden, relative_error, weights

from pulse_jax.generators.official import from_pulse
from pulse_jax.generators.stylegan import StyleGAN

in_both_precisions = both_precisions(1e-4, 1e-9)


def pulse(synthesis, mapping=None):
    """PULSE's networks in tests/data as (module, params)."""
    states = [name and weights(f"{name}_zip.pt") for name in (synthesis, mapping)]
    return from_pulse(*states)


def nchw(images):
    return images.transpose(0, 3, 1, 2)


@in_both_precisions
@pytest.mark.parametrize("name", ["sg1_torch_r32_synthesis", "sg1_torch_r128_synthesis"])
def test_synthesis_and_its_gradients_equal_the_reference(name, x64, dtype, bound):
    arrays = golden(name)
    module, params = pulse(name)
    noise = [arrays[f"noise{i}"] for i in range(module.num_layers)]

    def loss(w, noise, params):
        image = nchw(module.apply({"params": params}, w, noise, method="synthesis"))
        return jnp.sum(image * arrays["cotangent"].astype(dtype)), image

    with jax.enable_x64(x64):
        inputs = as_dtype((arrays["w"], noise, params), dtype)
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        (grad_w, grad_noise), image = gradient(*inputs)

    assert image.dtype == grad_w.dtype == dtype
    assert relative_error(image, arrays["image"]) <= bound
    assert relative_error(grad_w, arrays["grad_w"]) <= bound
    for i, grad in enumerate(grad_noise):
        expected = arrays[f"grad_noise{i}"]  # float32 where the map is large
        rounding = 1e-7 if expected.dtype == np.float32 else 0
        assert relative_error(grad, expected) <= max(bound, rounding), f"noise {i}"


@in_both_precisions
def test_mapping_and_its_gradient_equal_the_reference(x64, dtype, bound):
    arrays = golden("sg1_torch_r128_mapping")
    module, params = pulse("sg1_torch_r128_synthesis", "sg1_torch_r128_mapping")

    with jax.enable_x64(x64):
        params, z = as_dtype((params, arrays["z"]), dtype)

        @jax.jit
        def gradient(params, z):
            apply = partial(module.apply, {"params": params}, method="mapping")
            w, pullback = jax.vjp(apply, z)
            return w, *pullback(jnp.zeros_like(w).at[:4].set(arrays["cotangent4"]))

        w, grad_z = gradient(params, z)

    assert relative_error(w, arrays["w"]) <= bound
    assert relative_error(grad_z[:4], arrays["grad_z4"]) <= bound


@in_both_precisions
def test_mapping_from_strided_views_equals_the_reference(x64, dtype, bound):
    arrays = golden("sg1_torch_mapping512_strided")
    # Any synthesis network with latents of the same size goes with this mapping.
    module, params = pulse("pulse_e2e_synthesis", "sg1_torch_mapping512_strided")

    with jax.enable_x64(x64):
        params, z = as_dtype((params, arrays["z"]), dtype)
        w = jax.jit(partial(module.apply, method="mapping"))({"params": params}, z)

    assert relative_error(w, arrays["w"]) <= bound


def small_network(resolution, channels):
    """A module with all parameters 1, and inputs z, w, noise for two images."""
    module = StyleGAN(resolution, channels, latent_size=5, mapping_layers=1)
    keys = iter(jax.random.split(jax.random.key(0), 20))
    z = jax.random.normal(next(keys), (2, 5))
    w = jax.random.normal(next(keys), (2, module.num_layers, 5))
    noise = [jax.random.normal(next(keys), (2, *shape)) for shape in module.noise_shapes]
    shapes = jax.eval_shape(module.init, jax.random.key(0), z, noise)
    return module, jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes), z, w, noise


def test_a_latent_gives_the_image_of_its_style_in_every_layer():
    module, params, z, _, noise = small_network(4, (3,))
    assert module.num_layers == 2
    assert module.noise_shapes == ((1, 4, 4), (1, 4, 4))

    @jax.jit
    def twice(params, z, noise):
        w = jnp.stack([module.apply(params, z, method="mapping")] * 2, axis=1)
        return module.apply(params, z, noise), module.apply(params, w, noise, method="synthesis")

    image, of_styles = twice(params, z, noise)
    assert image.shape == (2, 4, 4, 3)
    assert relative_error(image, of_styles) <= 1e-6


def test_every_convolution_of_a_gradient_step_is_in_canonical_form():
    module, params, _, w, noise = small_network(8, (4, 3))

    def loss(w, noise, params):
        return jnp.sum(module.apply(params, w, noise, method="synthesis") ** 2)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    program = gradient.lower(w, noise, params).compile().as_text()
    convolutions = re.findall(r"dim_labels=(\w+->\w+)", program)
    assert len(convolutions) >= 6  # three of 3×3, forwards and backwards
    assert set(convolutions) == {"b01f_01io->b01f"}


def test_channels_that_do_not_fit_the_resolution_are_refused():
    module = StyleGAN(resolution=64, channels=(8, 8, 8))
    with pytest.raises(ValueError, match="64"):
        module.init(jax.random.key(0), jnp.ones((1, 512)), [])
