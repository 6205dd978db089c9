"""Do different starts give different answers, and in what?

    python experiments/diversity.py --preset=full

Each held-out face is made small and searched from several starts, with the original's recipe. Two
things are measured on the results that have met eps:

- How much do they differ? Every pair of an input's results is compared as it is and downscaled,
  where all should equal the input. They are drawn with the same noise maps, so that differences are
  due to the styles alone. Pairs of different faces are measured too.
- What differs? A small network (common/reader.py), trained here on freshly drawn faces, reads their
  attributes off an image. For each attribute, there is half the mean square difference of two
  results of an input (their variance), and half that of a result and the true face. Both are over
  the variance of faces. The first is 0 if the results agree. The second is 0 if they are right, and
  1 if they might as well be of another face. If starts found all that fits, in proportion, both
  would be equal. The second is larger if the generator or the search has preferences.

Attributes count if they are read with R² ≥ 0.5 on faces which the reader hasn't seen. Numbers are
taken as they are, hues and angles as points of a circle, and kinds as a 1 among 0s. Both sides of a
difference are read off images. Intervals hold the mean over inputs with 95%.

With faces64, results of one input differ 2.5 times as much as what they downscale to, and pairs of
faces 1.1 times. Clothing, eyes and nose vary most, and skin, hair colour and background least.
Nearly all vary less than they are off the truth, so the generator has preferences.

Writes distances.csv, attributes.csv, diversity.png and pictures.png, which has pairs of rows: a
face and its results, and below each what it downscales to. --preset=quick takes 6 faces, 8 starts,
a reader that has seen less, and 3 minutes on two cores. full takes 16 faces, 8 starts and 8
minutes.
"""

import itertools
from functools import partial

from common import harness
from common.faces import Attributes
from common.metrics import as_saved, bracketed, mean_interval
from common.reader import batches, by_attribute, labelled_faces, r_squared, read_images, train

import jax
import matplotlib.pyplot as plt
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax import images

FLAGS = flags.FLAGS
flags.DEFINE_integer(
    "train_steps",
    None,
    "The reader is trained in this many steps. Without it, the preset chooses.",
    1,
)
flags.DEFINE_integer("test_faces", 512, "The reader is tested on this many faces.", 16)
flags.DEFINE_float("r2", 0.5, "Attributes count that are read at least this well.")
flags.DEFINE_integer("shown", 6, "The picture shows this many faces.", 1)

PRESETS = {
    "quick": {"inputs": 6, "restarts": 8, "train_steps": 400},
    "full": {"inputs": 16, "restarts": 8, "train_steps": 2000},
}


def main(folder):
    if FLAGS.images is not None:
        raise ValueError(f"--images={FLAGS.images}: the reader is only trained on drawn faces")
    if FLAGS.restarts < 2:
        raise ValueError(f"--restarts={FLAGS.restarts}: differences take at least 2")
    generator, params = pulse_jax.load(FLAGS.generator)
    operator = pulse_jax.OPERATORS["bicubic"](FLAGS.factor)
    truth = harness.held_out(generator.resolution)
    found = folder.arrays("search", partial(search, generator, params, operator, truth))
    results, met = found["images"], found["l2"] <= FLAGS.eps
    if met.sum(axis=1).max() < 2:
        raise ValueError(f"--eps={FLAGS.eps}: no input has two results that meet it")
    draw = batches(generator.resolution)
    reader_key = jax.random.fold_in(jax.random.key(FLAGS.seed), 2)
    reader = folder.arrays("reader", partial(train, draw, reader_key, FLAGS.train_steps))

    pairs = folder.rows("pairs", partial(distances, truth, results, met, operator))
    readings = folder.rows("readings", partial(read, draw, reader, truth, results, met))
    differences, attributes = summarise_distances(pairs), summarise_readings(readings)
    if not attributes:
        raise ValueError(f"--r2={FLAGS.r2}: the reader reads no attribute so well")
    folder.table("distances.csv", table(differences))
    folder.table("attributes.csv", table(attributes))
    folder.figure("diversity.png", draw_figure(pairs, attributes))
    folder.picture("pictures.png", list(picture_rows(truth, results, operator)))


def search(generator, params, operator, truth):
    """Results (N, K, R, R, 3), all with the noise maps of their input's first, and their l2."""
    built = harness.build(generator, operator)
    inputs = as_saved(harness.degraded(operator, truth))
    found = harness.search_all(generator, params, operator, built, inputs)
    alike = harness.with_equal_noise(generator, params, found)
    small = np.stack([harness.degraded(operator, batch) for batch in alike])
    l2 = np.mean((small - inputs[:, None]) ** 2, axis=(2, 3, 4))
    return {"images": alike, "l2": l2}


# --- How much differs. ---


def distances(truth, results, met, operator):
    """A row for each pair of results of one input, and for pairs of different faces."""

    def rms(a, b):
        return float(np.sqrt(np.mean((a - b) ** 2)))

    small = harness.degraded(operator, truth)
    for i in range(0, len(truth) - 1, 2):  # a face in one pair: pairs are independent
        row = {"of": "different faces", "input": i, "large": rms(*truth[i : i + 2])}
        yield row | {"small": rms(*small[i : i + 2])}
    for i, batch in enumerate(results):
        batch = batch[met[i]]
        small = harness.degraded(operator, batch)
        for a, b in itertools.combinations(range(len(batch)), 2):
            row = {"of": "results of one input", "input": i, "large": rms(batch[a], batch[b])}
            yield row | {"small": rms(small[a], small[b])}


def summarise_distances(pairs):
    """Means over inputs of the mean over pairs, and how much larger the one is than the other."""
    lines = []
    for kind in dict.fromkeys(pair["of"] for pair in pairs):
        chosen = [pair for pair in pairs if pair["of"] == kind]
        inputs = np.array([pair["input"] for pair in chosen])
        large, small = (
            np.array(
                [
                    np.mean([pair[side] for pair in chosen if pair["input"] == i])
                    for i in np.unique(inputs)
                ]
            )
            for side in ("large", "small")
        )
        columns = {"RMS difference": large, "downscaled": small, "ratio": large / small}
        lines.append(
            {"pairs of": kind, "inputs": len(large), "pairs": len(chosen)}
            | {name: mean_interval(values) for name, values in columns.items()}
        )
    return lines


# --- What differs. ---


def read(draw, weights, truth, results, met):
    """A row for each attribute and input: how well it is read, its spread and its error."""
    key = jax.random.fold_in(jax.random.key(FLAGS.seed), 3)
    faces, true = labelled_faces(draw, key, FLAGS.test_faces)

    def readings(batch):
        return by_attribute(read_images(weights, batch))

    true, of_faces, of_truth = by_attribute(true), readings(faces), readings(truth)
    of_results = [readings(batch) for batch in results]
    for name in Attributes._fields:
        quality = r_squared(of_faces[name], true[name])
        variance = of_faces[name].var(axis=0).sum()
        for i in np.flatnonzero(met.sum(axis=1) > 1):
            found = of_results[i][name][met[i]]  # (restarts, coordinates)
            spread = found.var(axis=0, ddof=1).sum() / variance
            error = ((found - of_truth[name][i]) ** 2).sum(axis=1).mean() / (2 * variance)
            row = {"attribute": name, "R²": quality, "input": int(i)}
            yield row | {"among results": float(spread), "from the truth": float(error)}


def summarise_readings(readings):
    """For each attribute that is read well, R² and both means with their intervals."""
    found = []
    for name in dict.fromkeys(row["attribute"] for row in readings):
        rows = [row for row in readings if row["attribute"] == name]
        columns = {
            key: mean_interval([row[key] for row in rows])
            for key in ("among results", "from the truth")
        }
        if rows[0]["R²"] >= FLAGS.r2:
            found.append({"attribute": name.replace("_", " "), "R²": rows[0]["R²"]} | columns)
    return sorted(found, key=lambda row: -row["among results"][0])


# --- What is written. ---


def table(summary):
    return [
        {k: bracketed(*v) if isinstance(v, tuple) else v for k, v in row.items()} for row in summary
    ]


def draw_figure(pairs, summary):
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(9.5, 0.17 * len(summary) + 1.4),
        width_ratios=(1, 1.2),
        layout="constrained",
    )
    for kind, colour in (("results of one input", "C2"), ("different faces", "black")):
        chosen = [pair for pair in pairs if pair["of"] == kind]
        sides = [[pair[side] for pair in chosen] for side in ("small", "large")]
        left.plot(*sides, ".", color=colour, ms=3, alpha=0.5, label=kind)
    left.axline((0.01, 0.01), (0.1, 0.1), color="0.6", lw=1, zorder=0)
    left.set(xscale="log", yscale="log", aspect="equal")
    left.set_xlabel("RMS difference, downscaled")
    left.set_ylabel("RMS difference, in high resolution")
    left.legend(fontsize="small")

    for row, at in zip(summary, range(len(summary), 0, -1), strict=True):
        for key, colour, shift in (("among results", "C2", 0.15), ("from the truth", "C3", -0.15)):
            mean, low, high = row[key]
            error = [[mean - low], [high - mean]]
            label = key if at == 1 else None
            right.errorbar(mean, at + shift, xerr=error, fmt=".", color=colour, label=label)
    names = [row["attribute"] for row in summary]
    right.set_yticks(range(len(names), 0, -1), names, fontsize="small")
    right.set(xscale="log", xlabel="half the mean square difference, over that of faces")
    right.axvline(1, color="0.6", lw=1, zorder=0)
    right.legend(fontsize="small", loc="lower right")
    return figure


def picture_rows(truth, results, operator):
    """A face and its results; below, what they downscale to."""
    for face_, batch in list(zip(truth, results, strict=True))[: FLAGS.shown]:
        row = np.stack([face_, *batch[:8]])
        yield row
        yield [images.resize_nearest(x, FLAGS.factor) for x in harness.degraded(operator, row)]


if __name__ == "__main__":
    harness.run(main, PRESETS)
