"""A small network that reads the attributes of drawn faces off their images.

    python experiments/reader.py --output=runs/reader.npz

trains one and tells how well it reads each attribute on faces that it hasn't seen: R², and for
kinds the accuracy, beside that of the best guess that doesn't look. What it knows of an image
before it speaks, its last hidden layer, is a space in which sets of images of faces are compared
(`metrics.frechet`, `metrics.precision_recall`): nothing has to be downloaded for it.
"""

import io
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from faces import KINDS, RANGES, Attributes, face
from flax.traverse_util import flatten_dict, unflatten_dict

from pulse_jax.files import write

# Their ranges are full turns.
CIRCULAR = "clothing_hue", "background_hue", "background_angle"
SIZES = {name: 2 if name in CIRCULAR else 1 for name in RANGES}
SIZES |= {name: len(set(kinds)) for name, kinds in KINDS.items()}
BATCH = 32  # faces in a training step
SIDE = 64  # larger images are shrunk to it for `features`


def encode(attributes):
    """Attributes of one face as coordinates; in the order of `Attributes`, of `SIZES` each.

    Numbers lie in [-1, 1], hues and angles are points of a circle, kinds a 1 among 0s.
    """

    def coordinates(name, value):
        if name in KINDS:
            return jax.nn.one_hot(value, SIZES[name])
        low, high = RANGES[name]
        t = (value - low) / (high - low)
        if name in CIRCULAR:
            return jnp.stack([jnp.cos(2 * np.pi * t), jnp.sin(2 * np.pi * t)])
        return 2 * t[None] - 1

    return jnp.concatenate([coordinates(*item) for item in attributes._asdict().items()])


def by_attribute(coordinates):
    """Arrays (..., D) of coordinates, for each attribute its own."""
    ends = np.cumsum([SIZES[name] for name in Attributes._fields])[:-1]
    return dict(zip(Attributes._fields, np.split(coordinates, ends, axis=-1), strict=True))


class Reader(nn.Module):
    """Images (N, R, R, 3) in [0, 1] → coordinates of their attributes, or (N, 256) features.

    Its convolutions are of patches that don't overlap: matrix products, which two cores do fast.
    """

    @nn.compact
    def __call__(self, x, features=False):
        x = nn.relu(nn.Dense(96)(patches(x - 0.5, 4)))
        while x.shape[1] > 4:
            x = nn.relu(nn.Dense(192)(patches(x, 2)))
        x = nn.relu(nn.Dense(256)(x.reshape(len(x), -1)))
        return x if features else nn.Dense(sum(SIZES.values()))(x)


def patches(x, side):
    """(N, h, w, C) → (N, h / side, w / side, side² C)."""
    count, height, width, _ = x.shape
    x = x.reshape(count, height // side, side, width // side, side, -1).swapaxes(2, 3)
    return x.reshape(*x.shape[:3], -1)


def train(key, resolution, steps):
    """A reader's parameters, flat: least squares, on freshly drawn faces, `BATCH` in a step."""
    reader = Reader()
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))

    @jax.jit
    def init(key):
        params = reader.init(key, jnp.zeros((1, resolution, resolution, 3)))
        return params, optimizer.init(params)

    @partial(jax.jit, donate_argnums=0)
    def step(state, key):
        faces, attributes = jax.vmap(face, (0, None))(jax.random.split(key, BATCH), resolution)
        truth = jax.vmap(encode)(attributes)

        def error(params):
            return jnp.mean((reader.apply(params, faces) - truth) ** 2)

        params, moments = state
        updates, moments = optimizer.update(jax.grad(error)(params), moments)
        return optax.apply_updates(params, updates), moments

    state = init(key)
    for i in range(steps):
        state = step(state, jax.random.fold_in(key, i))
    return jax.tree.map(np.asarray, flatten_dict(state[0], sep="/"))


def stored(path, key, resolution, steps):
    """The reader in an .npz file, which is trained and written if it isn't there yet."""
    path = Path(path)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, **train(key, resolution, steps))
        write(path, buffer.getvalue())
    with np.load(path) as arrays:
        return dict(arrays)


@partial(jax.jit, static_argnames="features")
def _apply(weights, batch, features=False):
    return Reader().apply(unflatten_dict(weights, sep="/"), batch, features)


def read_images(weights, batch):
    """The coordinates that are read off images in [0, 1]: (N, D)."""
    return np.asarray(_apply(weights, batch))


def features(weights, batch):
    """The last hidden layer, (N, 256), for images (N, R, R, 3) in [0, 1]; see `SIDE`."""
    count, side = batch.shape[:2]
    if side > SIDE:
        factor = side // SIDE
        batch = batch.reshape(count, SIDE, factor, SIDE, factor, 3).mean(axis=(2, 4))
    return np.asarray(_apply(weights, batch, features=True))


def labelled_faces(key, resolution, count):
    """Fresh faces (N, R, R, 3) and their coordinates (N, D)."""

    @jax.jit
    def draw(keys):
        faces, attributes = jax.vmap(face, (0, None))(keys, resolution)
        return faces, jax.vmap(encode)(attributes)

    return jax.tree.map(np.asarray, draw(jax.random.split(key, count)))


def r_squared(x, y):
    """1 − the mean square error of x over the variance of y, summed over coordinates."""
    return float(1 - ((x - y) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum())


def scores(weights, key, resolution, count):
    """How well faces are read that it hasn't seen: a row for each attribute."""
    faces, true = labelled_faces(key, resolution, count)
    true, found = by_attribute(true), by_attribute(read_images(weights, faces))
    for name in Attributes._fields:
        row = {"attribute": name, "R²": r_squared(found[name], true[name])}
        if name in KINDS:
            kinds, best = true[name].argmax(axis=1), found[name].argmax(axis=1)
            row |= {"accuracy": float(np.mean(kinds == best))}
            row |= {"of a guess": float(np.bincount(kinds).max() / count)}
        yield row


def main(_):
    key = jax.random.key(FLAGS.seed)
    weights = stored(FLAGS.output, key, FLAGS.resolution, FLAGS.train_steps)
    for row in scores(weights, jax.random.fold_in(key, FLAGS.train_steps), FLAGS.resolution, 2048):
        print(", ".join(f"{k} {v:.3f}" if k != "attribute" else v for k, v in row.items()))


if __name__ == "__main__":
    from absl import app, flags

    FLAGS = flags.FLAGS
    flags.DEFINE_string("output", "runs/reader.npz", "The reader's file; trained if missing.")
    flags.DEFINE_integer("resolution", 64, "Side of the faces.", lower_bound=8)
    flags.DEFINE_integer("train_steps", 4000, "Of 32 faces.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the faces and the weights.")
    app.run(main)
