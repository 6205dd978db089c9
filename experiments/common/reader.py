"""A small network that reads the attributes of drawn faces off their images.

`experiments/train_reader.py` trains one and tells how well it reads. Its last hidden layer is a
space in which sets of images of faces are compared (`metrics.frechet`, `metrics.precision_recall`),
for which nothing has to be downloaded.

`draw(key, i)` gives batch i of a key's: images of faces (N, R, R, 3) in [0, 1], and their
`Attributes` (N,).
"""

from functools import partial
from pathlib import Path

from common.faces import KINDS, RANGES, Attributes, face

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from pulse_jax.files import npz, write
from pulse_jax.generators.reader import SIDE, Features, Reader

# Their ranges are full turns.
CIRCULAR = "clothing_hue", "background_hue", "background_angle"
# How many coordinates each attribute has.
SIZES = {name: 2 if name in CIRCULAR else 1 for name in Attributes._fields}
SIZES |= {name: len(set(kinds)) for name, kinds in KINDS.items()}
BATCH = 32  # faces that `batches` draws


def network():
    """A reader of the attributes of drawn faces."""
    kinds = {name: tuple(dict.fromkeys(kinds)) for name, kinds in KINDS.items()}
    return Reader(tuple((name, kinds.get(name, size)) for name, size in SIZES.items()))


def encode(attributes):
    """Attributes (N,) as coordinates (N, D), in the order of `Attributes`, of `SIZES` each.

    Numbers lie in [-1, 1], hues and angles are points of a circle, kinds a 1 among 0s.
    """

    def coordinates(name, value):
        if name in KINDS:
            return jax.nn.one_hot(value, SIZES[name])
        low, high = RANGES[name]
        t = (value - low) / (high - low)
        if name in CIRCULAR:
            return jnp.stack([jnp.cos(2 * np.pi * t), jnp.sin(2 * np.pi * t)], axis=-1)
        return 2 * t[:, None] - 1

    return jnp.concatenate([coordinates(*item) for item in attributes._asdict().items()], axis=-1)


def by_attribute(coordinates):
    """Arrays (..., D) of coordinates, split by attribute."""
    ends = np.cumsum(list(SIZES.values()))[:-1]
    return dict(zip(SIZES, np.split(coordinates, ends, axis=-1), strict=True))


def batches(resolution):
    """A `draw(key, i)` of `BATCH` faces. It takes long to compile, so make one for all uses.

    Faces are at most `SIDE` large, since larger ones, which a reader would shrink, take longer.
    """
    side = min(resolution, SIDE)

    @jax.jit
    def draw(key, i):
        keys = jax.random.split(jax.random.fold_in(key, i), BATCH)
        return jax.vmap(face, (0, None))(keys, side)

    return draw


def train(draw, key, steps):
    """A reader's flat parameters, by least squares on a batch of `draw` in each step."""
    reader = network()
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))

    @jax.jit
    def init(key, faces):
        params = reader.init(key, faces)
        return params, optimizer.init(params)

    @partial(jax.jit, donate_argnums=0)
    def step(state, faces, attributes):
        truth = encode(attributes)

        def error(params):
            return jnp.mean((reader.apply(params, faces) - truth) ** 2)

        params, moments = state
        updates, moments = optimizer.update(jax.grad(error)(params), moments)
        return optax.apply_updates(params, updates), moments

    state = init(key, draw(key, 0)[0])
    for i in range(steps):
        state = step(state, *draw(key, i))
    return jax.tree.map(np.asarray, flatten_dict(state[0], sep="/"))


def stored(path, draw, key, steps):
    """The reader in an .npz file, which is trained and written if it isn't there yet.

    Raises ValueError if it is one of other attributes.
    """
    path = Path(path)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, npz(train(draw, key, steps)))
    with np.load(path) as arrays:
        weights = dict(arrays)
    if len(weights["params/Dense_0/bias"]) != sum(SIZES.values()):
        raise ValueError(f"{path}: a reader of other attributes")
    return weights


def compact(weights):
    """The parameters to be stored beside a generator's: kernels in bfloat16, half as large."""
    flat = {
        name: leaf.astype(jnp.bfloat16) if name.endswith("kernel") else leaf
        for name, leaf in weights.items()
    }
    return unflatten_dict(flat, sep="/")["params"]


@partial(jax.jit, static_argnums=0)
def _apply(module, weights, batch):
    return module.apply(weights, batch)


def read_images(weights, batch):
    """The coordinates that are read off images in [0, 1]: (N, D)."""
    return np.asarray(_apply(network(), unflatten_dict(weights, sep="/"), batch))


def features(weights, batch):
    """The last hidden layer, (N, 256), for images (N, R, R, 3) in [0, 1]."""
    params = unflatten_dict(weights, sep="/")["params"]["features"]
    return np.asarray(_apply(Features(), {"params": params}, batch))


def perceptual_distance(weights, x, y):
    """How differently the reader sees images y than x; it can be differentiated.

    The mean absolute differences of what it reads, and of the hidden layer before, each over the
    mean absolute value. Earlier layers tell where each hair lies. (The idea is from Johnson et al.,
    "Perceptual losses for real-time style transfer and super-resolution", ECCV 2016.)
    """
    whole, params = network(), unflatten_dict(weights, sep="/")

    def seen(batch):
        hear = {"capture_intermediates": lambda module, _: isinstance(module, Features)}
        read, found = whole.apply(params, batch, **hear)
        return read, found["intermediates"]["features"]["__call__"][0]

    pairs = zip(seen(x), seen(y), strict=True)
    return sum(jnp.abs(a - b).mean() / jnp.abs(a).mean() for a, b in pairs)


def labelled_faces(draw, key, count):
    """The first faces (N, R, R, 3) of a key, and their coordinates (N, D)."""
    found = [draw(key, i) for i in range(-(-count // BATCH))]
    faces, attributes = jax.tree.map(lambda *x: np.concatenate(x)[:count], *found)
    return faces, np.asarray(encode(attributes))


def r_squared(x, y):
    """1 − the mean square error of x over the variance of y, summed over coordinates."""
    return float(1 - ((x - y) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum())


def scores(draw, weights, key, count):
    """How well a reader reads faces that it hasn't seen, as a row for each attribute."""
    faces, true = labelled_faces(draw, key, count)
    true = by_attribute(true)
    found = by_attribute(read_images(weights, faces))
    for name in Attributes._fields:
        row = {"attribute": name, "R²": r_squared(found[name], true[name])}
        if name in KINDS:
            kinds, best = true[name].argmax(axis=1), found[name].argmax(axis=1)
            row |= {"accuracy": float(np.mean(kinds == best))}
            row |= {"of a guess": float(np.bincount(kinds).max() / count)}
        yield row
