"""Drawn faces with the latents that they are drawn from, kept on disk to be used several times.

Drawing a face takes a fifth of the time of training on it, or more if the network is small.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from common import faces

CHUNK = 64  # faces that are drawn in one call
SIDE = 64  # of the smallest that are drawn: smaller ones are averages of these


@partial(jax.jit, static_argnums=1)
def draw(key, side):
    """Latents z (CHUNK, D) and their faces (CHUNK, side, side, 3), 8 bits."""
    z_key, texture_key = jax.random.split(key)
    z = jax.random.normal(z_key, (CHUNK, faces.LATENTS))
    textures = jax.random.uniform(texture_key, (CHUNK,))

    def one(pair):
        return jnp.round(255 * faces.draw(faces.attributes_of(*pair), side)).astype(jnp.uint8)

    return z, jax.lax.map(one, (z, textures))


def stored(folder, key, count, side):
    """Latents (count, D) and 8-bit faces (count, side, side, 3), drawn if they aren't there.

    Raises ValueError if others are there.
    """
    paths = [folder / f"{name}.npy" for name in ("latents", "faces")]
    if not paths[0].is_file():
        folder.mkdir(parents=True, exist_ok=True)
        kept = np.lib.format.open_memmap(paths[1], "w+", np.uint8, (count, side, side, 3))
        latents = np.zeros((count, faces.LATENTS), np.float32)
        for i in tqdm(range(0, count, CHUNK), unit="chunk", mininterval=5):
            n = min(CHUNK, count - i)
            z, drawn = draw(jax.random.fold_in(key, i // CHUNK), side)
            latents[i : i + n], kept[i : i + n] = z[:n], drawn[:n]
        kept.flush()
        np.save(paths[0], latents)
    latents, kept = (np.load(path, mmap_mode="r") for path in paths)
    if kept.shape != (count, side, side, 3):
        raise ValueError(
            f"{folder} holds {len(kept)} faces of side {kept.shape[1]}, not {count} of {side}"
        )
    return latents, kept
