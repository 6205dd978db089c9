"""Drawn faces with the latents that they are drawn from, kept on disk to be used several times.

Drawing a face takes a fifth of the time of training on it, or more if the network is small.
"""

import contextlib
from functools import partial

from common import door, faces, reader, training
from common.training import random_key

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from pulse_jax.files import check_free, expanded

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "pool",
    None,
    "Faces are kept in this folder, and drawn if they are missing. Without it, it is one "
    "in the output folder.",
)
flags.DEFINE_integer("pool_images", 32_768, "This many faces are drawn.", 64)

CHUNK = 64  # faces that are drawn in one call
SIDE = 64  # of the smallest that are drawn: smaller ones are averages of these


def check():
    """Raises ValueError for flags that can't be."""
    if FLAGS.pool_images % FLAGS.batch_size:
        raise ValueError(
            f"--pool_images={FLAGS.pool_images} must be a multiple of "
            f"--batch_size={FLAGS.batch_size}"
        )


@partial(jax.jit, static_argnums=1)
def draw(key, side):
    """Latents z (CHUNK, D) and their faces (CHUNK, side, side, 3), 8 bits."""
    z_key, texture_key = jax.random.split(key)
    z = jax.random.normal(z_key, (CHUNK, faces.LATENTS))
    textures = jax.random.uniform(texture_key, (CHUNK,))

    def one(pair):
        return jnp.round(255 * faces.draw(faces.attributes_of(*pair), side)).astype(jnp.uint8)

    return z, jax.lax.map(one, (z, textures))


def stored(output):
    """Latents (N, D) and 8-bit faces (N, side, side, 3) of --pool, drawn if they aren't there.

    A run that was cut off as it drew them draws the rest. Raises ValueError if others are there, or
    while another run draws them.
    """
    folder = expanded(FLAGS.pool, "--pool") if FLAGS.pool else output / "pool"
    count, side = FLAGS.pool_images, drawn_side()
    paths = [folder / f"{name}.npy" for name in ("latents", "faces")]
    if not paths[0].is_file():
        own = folder.absolute() == output  # which this run holds already
        with contextlib.nullcontext() if own else door.alone(folder, "--pool"):
            _draw_all(paths, count, side)
    latents, kept = (np.load(path, mmap_mode="r") for path in paths)
    if kept.shape != (count, side, side, 3):
        raise ValueError(
            f"{folder} holds {len(kept)} faces of side {kept.shape[1]}, not {count} of {side}"
        )
    return latents, kept


def _draw_all(paths, count, side):
    parts = [path.with_name(f".{path.stem}_{FLAGS.seed}.npy") for path in paths]
    kinds = (np.float32, (count, faces.LATENTS)), (np.uint8, (count, side, side, 3))
    latents, kept = _begun(parts, kinds)
    left = [i for i in range(0, count, CHUNK) if not latents[i].any()]
    # Otherwise, a full disk would end the process with SIGBUS.
    check_free(paths[0].parent, len(left) * CHUNK * (latents[0].nbytes + kept[0].nbytes))
    key = random_key("data")
    for i in tqdm(left, unit="chunk", mininterval=5):
        n = min(CHUNK, count - i)
        z, drawn = draw(jax.random.fold_in(key, i // CHUNK), side)
        kept[i : i + n], latents[i : i + n] = drawn[:n], z[:n]
    kept.flush()
    latents.flush()
    parts[1].replace(paths[1])
    parts[0].replace(paths[0])  # the last, since they say that all is there


def _begun(paths, kinds):
    """Arrays in files, each of a type and a shape. Changes go to the files.

    If one isn't there, or has another shape, all are new ones of zeros.
    """
    if all(path.is_file() for path in paths):
        found = [np.load(path, mmap_mode="r+") for path in paths]
        if [array.shape for array in found] == [shape for _, shape in kinds]:
            return found
    pairs = zip(paths, kinds, strict=True)
    return [np.lib.format.open_memmap(path, "w+", *kind) for path, kind in pairs]


def drawn_side():
    return max(FLAGS.resolution, SIDE)


def batch(known, i):
    """Step i's latents, and faces in [0, 1]: each of the pool's once, then in another order."""
    latents, pictures = known
    epoch, at = divmod(i * FLAGS.batch_size, len(latents))
    order = np.random.default_rng((FLAGS.seed, epoch)).permutation(len(latents))
    chosen = order[at : at + FLAGS.batch_size]
    return latents[chosen], in_size(pictures[chosen])


def in_size(pictures):
    """8 bits, as large as the generator's or larger by a power of 2 → [0, 1]."""
    pictures = pictures.astype(np.float32) / 255
    while pictures.shape[1] > FLAGS.resolution:
        pictures = halved(pictures)
    return pictures


def halved(x):
    """Images (N, 2H, 2W, 3), averaged over squares of four pixels."""
    count, height, width, _ = x.shape
    return x.reshape(count, height // 2, 2, width // 2, 2, 3).mean(axis=(2, 4))


def held_out(i):
    """Latents and faces in [0, 1] of chunk i of those that nothing is trained on."""
    z, pictures = draw(jax.random.fold_in(random_key("quality"), i), drawn_side())
    return np.asarray(z), in_size(np.asarray(pictures))


def make_labelled(known):
    """`labelled(key, i)`: batch i of a key's of the faces, and their attributes, for a reader."""
    latents, pictures = known
    # The reader has no use for the texture.
    attributes_of = jax.jit(jax.vmap(partial(faces.attributes_of, texture=0.5)))

    def labelled(key, i):
        chosen = np.asarray(
            jax.random.randint(jax.random.fold_in(key, i), (reader.BATCH,), 0, len(latents))
        )
        return in_size(pictures[chosen]), attributes_of(latents[chosen])

    return labelled


def make_quality(known, output):
    """`quality(samples)` as in `training`, against the pool, in the features of a reader."""

    def others():
        chunks = range(1, 1 + -(-FLAGS.quality_images // CHUNK))
        return np.concatenate([held_out(i)[1] for i in chunks])

    train = in_size(known[1][: FLAGS.quality_images])
    return training.make_quality(output, train, others, make_labelled(known))
