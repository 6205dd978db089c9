"""Is an average of all that could be there blurred, and is PULSE sharp?

    python experiments/compare_baselines.py --preset=full

The faces have stubble, moustaches and beards, since that is what an average smooths away. Small
pictures of them are enlarged by nearest neighbour, by Pillow's bicubic and Lanczos, by a
convolutional network that is trained here on the mean squared error, and by PULSE with the
original's recipe. Of PULSE there are the first restart and, to see what an average does, the mean
of all restarts. The truth is measured too, which tells the best possible value of each measure.

PSNR, the peak signal-to-noise ratio, and SSIM, the structural similarity, compare with the truth.
The other measures don't: l2, the mean squared error of the result when downscaled again; NIQE, the
natural image quality evaluator, and the Fréchet distance, both to other bearded faces; the energy
above the Nyquist frequency of the input, over that of the true face, in the whole image and in the
pixels that the facial hair covers; and the score of the generator's discriminator, if it tells
faces from samples that are far off. Intervals hold the mean over faces with 95%.

With faces64, the network's pictures have half the energy of true faces, and PULSE's a little more
than true faces. PULSE is more natural by NIQE, and its PSNR is 4 dB lower. The mean of four
restarts isn't blurred either, and better than one by NIQE, since they are much alike.

Writes table.csv, measures.png and pictures.png. --preset=quick takes 8 faces and a network that has
seen less, and 3 minutes on two cores. full takes 24 faces and 6 minutes.
"""

from functools import partial

from common import harness
from common.faces import draw, face, sample_attributes
from common.metrics import (
    as_saved,
    bracketed,
    frechet,
    frechet_features,
    high_pass,
    mean_interval,
    niqe,
    niqe_model,
    psnr,
    realism,
    realism_auc,
    ssim,
)

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from absl import flags
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image
from scipy.fft import dctn

import pulse_jax
from pulse_jax import images
from pulse_jax.files import counted
from pulse_jax.images import LUMA

FLAGS = flags.FLAGS
flags.DEFINE_integer(
    "train_steps",
    None,
    "The network is trained in this many steps. Without it, the preset chooses.",
    1,
)
flags.DEFINE_integer(
    "reference", 512, "NIQE and the Fréchet distance compare with this many other faces.", 8
)
flags.DEFINE_integer("shown", 6, "The picture shows this many faces.", 1)

PRESETS = {
    "quick": {"inputs": 8, "restarts": 4, "train_steps": 400},
    "full": {"inputs": 24, "restarts": 4, "train_steps": 1500},
}
RATIOS = "energy", "energy in the beard"  # to the true face's
BATCH = 16  # faces in a training step


def main(folder):
    if FLAGS.images is not None:
        raise ValueError(f"--images={FLAGS.images}: the network is only trained on drawn faces")
    generator, params = pulse_jax.load(FLAGS.generator)
    operator = pulse_jax.OPERATORS["bicubic"](FLAGS.factor)
    faces, beards = bearded_faces(generator.resolution, FLAGS.inputs + FLAGS.reference)
    truth, reference = faces[: FLAGS.inputs], faces[FLAGS.inputs :]
    inputs = as_saved(harness.degraded(operator, truth))

    network = folder.arrays("network", partial(train, operator, generator.resolution))
    found = folder.arrays("PULSE", partial(search, generator, params, operator, inputs))["images"]
    results = {
        "truth": truth,
        "nearest": enlarge(inputs, Image.NEAREST),
        "bicubic": enlarge(inputs, Image.BICUBIC),
        "Lanczos": enlarge(inputs, Image.LANCZOS),
        "network": apply(network, inputs),
        "mean of PULSE": as_saved(found.mean(axis=1)),
        "PULSE": found[:, 0],
    }
    (trust,) = folder.rows("realism", partial(trust_rows, reference))
    score = realism(FLAGS.generator) if trust["AUC"] >= 0.9 else None
    model = niqe_model(reference)
    judge = partial(measure, truth, inputs, operator, beards[: FLAGS.inputs], model, score)
    rows = {name: folder.rows(name, partial(judge, batch)) for name, batch in results.items()}
    distances = folder.rows("frechet", partial(frechet_rows, results, reference))
    folder.table("table.csv", summary(rows, distances))
    folder.figure("measures.png", draw_measures(rows, results))
    folder.figure("pictures.png", draw_pictures(inputs, results))


def bearded_faces(resolution, count):
    """Fresh faces (N, R, R, 3) with facial hair, and which pixels it changes (N, R, R)."""
    keys = jax.random.split(jax.random.key(FLAGS.seed), 4 * count + 64)  # half of all have some
    attributes = jax.jit(jax.vmap(sample_attributes))(keys)
    chosen = np.flatnonzero(attributes.facial_hair)[:count]
    attributes = jax.tree.map(lambda x: x[chosen], attributes)
    shaved = attributes._replace(facial_hair=jnp.zeros_like(attributes.facial_hair))
    paint = jax.jit(jax.vmap(lambda a: draw(a, resolution)))
    with_hair, without = as_saved(paint(attributes)), as_saved(paint(shaved))
    return with_hair, np.abs(with_hair - without).max(axis=-1) > 0.02


# --- The methods. ---


def enlarge(inputs, filtering):
    """8-bit images, enlarged by one of Pillow's filters."""
    side = inputs.shape[1] * FLAGS.factor
    small = [Image.fromarray(images.to_uint8(x)) for x in inputs]
    return np.stack([np.float32(x.resize((side, side), filtering)) / 255 for x in small])


class Network(nn.Module):
    """Residual blocks at the input's size, then doublings. Its output is added to a bicubic one.

    Pixels are shuffled out of channels (Shi et al., CVPR 2016).
    """

    factor: int

    @nn.compact
    def __call__(self, lr):
        conv = partial(nn.Conv, kernel_size=(3, 3))
        count, height, width, _ = lr.shape
        full = (count, self.factor * height, self.factor * width, 3)
        x = conv(64)(lr - 0.5)
        for _ in range(4):
            x = x + conv(64)(nn.relu(conv(64)(x)))
        while 2 * x.shape[1] < full[1]:
            x = nn.relu(shuffle(conv(4 * 48)(x)))
        return jax.image.resize(lr, full, "bicubic") + shuffle(conv(4 * 3)(x))


def shuffle(x):
    """(N, h, w, 4C) → (N, 2h, 2w, C)."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height, width, 2, 2, channels // 4).swapaxes(2, 3)
    return x.reshape(count, 2 * height, 2 * width, channels // 4)


def train(operator, resolution):
    """The flat parameters of the network after --train_steps on freshly drawn faces."""
    if FLAGS.factor < 2 or FLAGS.factor & (FLAGS.factor - 1):
        raise ValueError(
            f"--factor={FLAGS.factor}: the network doubles sides, so it must be a power of 2"
        )
    network = Network(FLAGS.factor)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, FLAGS.train_steps))
    key = jax.random.fold_in(jax.random.key(FLAGS.seed), 2)

    @jax.jit
    def init(key):
        side = resolution // FLAGS.factor
        params = network.init(key, jnp.zeros((1, side, side, 3)))
        return params, optimizer.init(params)

    @partial(jax.jit, donate_argnums=0)
    def step(state, key):
        keys = jax.random.split(key, BATCH)
        truth = jax.vmap(lambda key: face(key, resolution)[0])(keys)
        inputs = jax.vmap(operator)(truth)

        def error(params):
            return jnp.mean((network.apply(params, inputs) - truth) ** 2)

        params, moments = state
        updates, moments = optimizer.update(jax.grad(error)(params), moments)
        return optax.apply_updates(params, updates), moments

    state = init(key)
    for i in range(FLAGS.train_steps):
        state = step(state, jax.random.fold_in(key, i))
    return flatten_dict(state[0], sep="/")


def apply(params, inputs):
    network = Network(FLAGS.factor)
    return as_saved(jax.jit(network.apply)(unflatten_dict(params, sep="/"), inputs))


def search(generator, params, operator, inputs):
    """The results of all restarts of PULSE, with the original's recipe."""
    built = harness.build(generator, operator)
    return {"images": harness.search_all(generator, params, operator, built, inputs).images}


# --- The measures. ---


def trust_rows(reference):
    """How well the discriminator tells faces from samples that are far off."""
    yield {"AUC": float(realism_auc(FLAGS.generator, reference[:128]))}


def measure(truth, inputs, operator, beards, model, score, batch):
    """A row for each face."""
    high, true_high = (
        (high_pass(x, FLAGS.factor) ** 2).mean(axis=-1) for x in (batch, truth)
    )  # (N, R, R)
    energy = high.mean(axis=(1, 2)) / true_high.mean(axis=(1, 2))
    in_beard = (high * beards).sum(axis=(1, 2)) / (true_high * beards).sum(axis=(1, 2))
    l2 = ((harness.degraded(operator, batch) - inputs) ** 2).mean(axis=(1, 2, 3))
    columns = {
        "PSNR": psnr(batch, truth),
        "SSIM": ssim(batch, truth),
        "NIQE": niqe(batch, model),
        "l2": l2,
        "energy": energy,
        "energy in the beard": in_beard,
    }
    if score is not None:
        columns["score"] = score(batch)
    for i, values in enumerate(zip(*columns.values(), strict=True)):
        yield {"face": i} | {k: float(v) for k, v in zip(columns, values, strict=True)}


def frechet_rows(results, reference):
    """The distance of each method's results to other faces. The truth's is the least to expect."""
    other = frechet_features(reference)
    for name, batch in results.items():
        yield {"method": name, "Fréchet": frechet(frechet_features(batch), other)}


def summary(rows, distances):
    """Means over the faces with their intervals, and PULSE's lead over what averages."""

    def text(key, values):
        if np.isinf(values).any():  # the PSNR of the truth
            return "∞"
        return bracketed(*interval(key, values))

    columns = {
        name: {key: np.array([row[key] for row in cell]) for key in cell[0] if key != "face"}
        for name, cell in rows.items()
    }
    lines = []
    for (name, values), distance in zip(columns.items(), distances, strict=True):
        line = {key: text(key, column) for key, column in values.items()}
        lines.append({"method": label(name)} | line | {"Fréchet": distance["Fréchet"]})
    for name in ("network", "mean of PULSE"):
        lead = {}
        for key, own in columns["PULSE"].items():
            other = columns[name][key]
            lead[key] = text(key, own / other if key in RATIOS else own - other)
        lines.append({"method": f"PULSE against {name}"} | lead | {"Fréchet": ""})
    return lines


def interval(key, values):
    """(mean, low, high). For ratios this is the geometric mean, which is 1 for equals."""
    if key not in RATIOS:
        return mean_interval(values)
    return np.exp(mean_interval(np.log(values)))


def label(name):
    return f"network, {counted(FLAGS.train_steps, 'step')}" if name == "network" else name


# --- The figures. ---

COLOURS = {"truth": "black", "nearest": "0.6", "bicubic": "C0", "Lanczos": "C9", "network": "C3"}
COLOURS |= {"mean of PULSE": "C8", "PULSE": "C2"}


def draw_measures(rows, results):
    """A figure of the spectra over the truth's, and of the energy in the beard against PSNR."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    true = spectrum(results["truth"])
    at = np.arange(len(true)) * FLAGS.factor / len(true)
    for name, batch in results.items():
        left.plot(at, spectrum(batch) / true, color=COLOURS[name], label=label(name), lw=1.5)
    left.set(yscale="log", ylim=(1e-3, 4), xlim=(0, FLAGS.factor))
    left.axvspan(0, 1, color="0.93")
    left.set_xlabel("frequency, over what the input can hold")
    left.set_ylabel("power, over the true faces'")
    figure.legend(loc="outside upper center", ncols=len(results), fontsize="small")

    for name, cell in rows.items():
        if name == "truth":
            continue
        x, y = (
            interval(key, [row[key] for row in cell]) for key in ("PSNR", "energy in the beard")
        )
        error = [[[v[0] - v[1]], [v[2] - v[0]]] for v in (x, y)]
        right.errorbar(x[0], y[0], *error[::-1], fmt="o", color=COLOURS[name])
    right.axhline(1, color="black", lw=1, ls=":")
    right.set_xlabel("PSNR in dB: close to the truth, pixel by pixel")
    right.set_ylabel("energy in the beard, over the truth's")
    return figure


def spectrum(batch):
    """Mean power of the cosines by frequency, the larger one of the two axes: (R,)."""
    grey = batch @ LUMA
    power = np.mean(dctn(grey, axes=(1, 2), norm="ortho") ** 2, axis=0)
    number = np.arange(len(power))
    number = np.maximum(number[:, None], number)
    return np.bincount(number.ravel(), power.ravel())


def draw_pictures(inputs, results):
    """A row for each of the first faces: the input, then each method, the truth last."""
    enlarged = {"input": results["nearest"]} | {k: results[k] for k in list(results)[2:]}
    columns = enlarged | {"truth": results["truth"]}
    shown = min(FLAGS.shown, len(inputs))
    figure, axes = plt.subplots(
        shown,
        len(columns),
        figsize=(1.35 * len(columns), 1.35 * shown + 0.25),
        squeeze=False,
        layout="constrained",
    )
    for k, (name, batch) in enumerate(columns.items()):
        axes[0, k].set_title(label(name), fontsize="small")
        for i in range(shown):
            axes[i, k].imshow(batch[i])
            axes[i, k].axis("off")
    return figure


if __name__ == "__main__":
    harness.run(main, PRESETS)
