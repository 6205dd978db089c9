"""How sharp and how different images are, for the scripts that judge results of a search."""

import itertools

import jax
import numpy as np

from pulse_jax import images


def as_saved(batch):
    """Images as 8-bit files hold them."""
    return images.to_uint8(batch).astype(np.float32) / 255


def with_noise_of_first(latents, frozen):
    """The same styles, all with the noise maps of the first restart: what differs is theirs."""
    first = jax.tree.map(lambda leaf: leaf[:1].repeat(len(leaf), axis=0), (latents, frozen))
    return first[0] | {"style": latents["style"]}, first[1]


def laplacian_energy(x):
    """Mean square of the 4-neighbour Laplacian of each image: (N, H, W, C) → (N,)."""
    centre = x[:, 1:-1, 1:-1]
    neighbours = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    return np.mean((neighbours - 4 * centre) ** 2, axis=(1, 2, 3))


def pairwise_rms(batch):
    """Root mean square difference of two images, averaged over all pairs."""
    pairs = itertools.combinations(batch, 2)
    return np.mean([np.sqrt(np.mean((a - b) ** 2)) for a, b in pairs])
