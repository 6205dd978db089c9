"""Grown networks compute at first what the small ones did."""

from common.grow import grown

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from pulse_jax.generators.layers import blur, upsample
from pulse_jax.generators.stylegan2 import SMOOTHING, Discriminator, StyleGAN2

GROWN = jax.jit(grown, static_argnums=2)
SMALL, LARGE = (6, 4), (6, 4, 7)  # channels at side 4, 8, and 16


def networks(channels, seed):
    """`judge(params, x)`, `synthesize(params, w, noise)`, and random parameters without zeros."""
    side = 2 ** (len(channels) + 1)
    generator, discriminator = StyleGAN2(side, channels, 5, 2), Discriminator(channels)

    def init(key):
        noise = [jnp.zeros((1, *shape)) for shape in generator.noise_shapes]
        image = jnp.zeros((1, side, side, 3))
        return {
            "generator": generator.init(key, jnp.zeros((1, 5)), noise)["params"],
            "discriminator": discriminator.init(key, image)["params"],
        }

    def judge(params, x):
        return discriminator.apply({"params": params["discriminator"]}, x)

    def synthesize(params, w, noise):
        return generator.apply({"params": params["generator"]}, w, noise, method="synthesis")

    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
    return judge, synthesize, params


def latents(channels):
    """Style vectors and noise maps of four images."""
    rng = np.random.default_rng(2)
    layers = 2 * len(channels)
    sides = [2 ** (i // 2 + 2) for i in range(1, layers)]
    noise = [rng.normal(size=(4, 1, side, side)) for side in sides]
    return rng.normal(size=(4, layers, 5)), noise


def fresh(params):
    """With biases of 0, as networks start."""
    flat = flatten_dict(params)
    return unflatten_dict({k: 0 * x if k[-1] == "bias" else x for k, x in flat.items()})


def test_grown_networks_compute_the_same():
    with jax.enable_x64():
        small_judge, small_synthesize, small = networks(SMALL, 0)
        judge, synthesize, large = networks(LARGE, 1)
        params = GROWN(small, fresh(large), 8)
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, large)

        w, noise = latents(LARGE)
        known = 2 * len(SMALL)
        expected = jax.jit(small_synthesize)(small, w[:, :known], noise[: known - 1])
        found = jax.jit(synthesize)(params, w, noise)
        np.testing.assert_allclose(found, jax.jit(upsample)(expected), rtol=1e-9)

        x = np.random.default_rng(3).normal(size=(4, 16, 16, 3))
        shrunk = jax.jit(lambda x: blur(x, SMOOTHING, (1, 1))[:, ::2, ::2])(x)
        expected = jax.jit(small_judge)(small, shrunk)
        assert np.ptp(expected) > 0.01
        np.testing.assert_allclose(jax.jit(judge)(params, x), expected, rtol=1e-9)


def test_all_new_layers_learn():
    """Those behind the new ToRGB, which is 0, from the second step on."""
    judge, synthesize, large = networks(LARGE, 1)
    params = GROWN(networks(SMALL, 0)[2], fresh(large), 8)
    params["generator"]["synthesis"]["16x16_to_rgb"]["kernel"] += 0.01

    @jax.jit
    @jax.grad
    def gradient(params):
        inputs = jax.tree.map(jnp.asarray, latents(LARGE))
        return judge(params, synthesize(params, *inputs)).sum()

    for name, leaf in flatten_dict(gradient(params)).items():
        if any(part.startswith("16x16") for part in name):
            assert np.abs(leaf).max() > 0, name


def test_too_few_channels():
    small, large = networks(SMALL, 0)[2], networks((6, 4, 5), 1)[2]
    with pytest.raises(ValueError, match="5 channels at side 16 are too few to grow: 6"):
        GROWN(small, large, 8)
