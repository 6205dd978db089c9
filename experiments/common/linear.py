"""A linear decoder, whose posteriors are known and cheap."""

import jax
import jax.numpy as jnp
import numpy as np

import pulse_jax


def linear_decoder(side, size):
    """(generator, params): images (side, side, 3) that are linear in two latent vectors of a size.

    Pixels have the mean 0.5 and a deviation of 1.2.
    """

    def sample(key):
        return {"z": jax.random.normal(key, (2, size))}, {}

    def synthesize(params, latents, frozen):
        return 0.5 + jnp.einsum("ld,ldhwc->hwc", latents["z"], params)

    directions = np.random.default_rng(0).standard_normal((2, size, side, side, 3), np.float32)
    return pulse_jax.Generator(side, sample, synthesize), 0.3 * (8 / size) ** 0.5 * directions
