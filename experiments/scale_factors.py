"""How much does a smaller input leave open? Consistency, diversity and realism by the factor.

    python experiments/scale_factors.py --preset=full

The same held-out faces are made smaller by 4, 8, 16 and 32 and searched with the original's recipe,
with several restarts each. Each factor has three measures:

- consistency is the mean l2, the mean squared error between input and downscaled result, and the
  share of restarts within eps.
- diversity is the root mean square difference of two results of one input.
- realism is the score of the generator's discriminator.

Diversity and realism are also given for samples of the generator, where the search starts and which
obey no input, and realism for the true faces.

The fewer pixels an input has, the less a result has to obey, and the more it may differ. Intervals
hold means over inputs with 95%. For the share within eps, an input counts as one trial (Wilson).
With faces64, diversity grows steadily, from a third of the samples' to all of it. The score falls a
little, towards that of samples. The 16×16 inputs hold details that the generator reaches in only
half of the restarts.

Writes table.csv, factors.png and pictures.png. --preset=quick takes 4 faces with 4 restarts and 3
minutes on two cores, and full 12 faces with 4 and 4 minutes.
"""

from functools import partial

from common import door, harness
from common.metrics import (
    as_saved,
    bracketed,
    diversity,
    mean_interval,
    mean_share,
    realism,
    render,
)

import jax
import matplotlib.pyplot as plt
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax import images, operators

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "factors",
    ["4", "8", "16", "32"],
    "Faces are downscaled by each of these factors, and searched for each.",
)
MEASURES = {
    "l2": "mean squared error of the input",
    "success": "share of restarts within eps",
    "diversity": "difference of two results",
    "realism": "discriminator's score",
}
PRESETS = {"quick": {"inputs": 4, "restarts": 4}, "full": {"inputs": 12, "restarts": 4}}


def main(folder):
    harness.check_not_empty("factors")
    if FLAGS.restarts < 2:
        raise ValueError(f"--restarts={FLAGS.restarts}: diversity takes at least 2")
    if not FLAGS["factor"].using_default_value:
        raise ValueError(f"--factor={FLAGS.factor}: here --factors says which")
    generator, params = pulse_jax.load(FLAGS.generator)
    truth = harness.held_out(generator.resolution)
    found = {}
    for factor in parse_factors(generator.resolution):
        cell = partial(search, generator, params, factor, truth)
        found[factor] = folder.arrays(f"factor {factor}", cell)

    rows = folder.rows("measures", partial(measure, found))
    others = folder.rows("others", partial(measure_others, generator, params, truth))
    folder.table("table.csv", [*(line(factor, rows) for factor in found), *other_lines(others[0])])
    folder.figure("factors.png", draw_measures(rows, others[0]))
    folder.figure("pictures.png", draw_pictures(truth, found))


def parse_factors(resolution):
    factors = door.whole_numbers("factors")
    for factor in factors:
        if resolution % factor:
            raise ValueError(
                f"--factors={','.join(FLAGS.factors)}: {factor} does not divide the generator's "
                f"{resolution} pixels"
            )
    return factors


def search(generator, params, factor, truth):
    operator = operators.bicubic(factor)
    inputs = as_saved(harness.degraded(operator, truth))
    built = harness.build(generator, operator)
    found = harness.search_all(generator, params, operator, built, inputs)
    return {"inputs": inputs, "images": found.images, "l2": found.l2}


def measure(found):
    """A row for each factor and input, of means over its restarts."""
    score = realism(FLAGS.generator)
    for factor, cell in found.items():
        for i, (batch, l2) in enumerate(zip(cell["images"], cell["l2"], strict=True)):
            yield {
                "factor": factor,
                "input": i,
                "l2": float(l2.mean()),
                "success": float((l2 <= FLAGS.eps).mean()),
                "diversity": float(diversity(batch)),
                "realism": float(score(batch).mean()),
            }


def measure_others(generator, params, truth):
    """Figures to compare with: of samples, which obey no input, and of true faces."""
    key = jax.random.fold_in(jax.random.key(FLAGS.seed), 2)
    samples = jax.vmap(generator.sample)(jax.random.split(key, 64))
    samples = render(generator, params, *samples)
    score = realism(FLAGS.generator)
    yield {
        "diversity of samples": float(diversity(samples)),
        "realism of samples": float(score(samples).mean()),
        "realism of faces": float(score(truth).mean()),
    }


def column(factor, rows, name):
    return np.array([row[name] for row in rows if row["factor"] == factor])


def interval(name, values):
    """(mean, low, high)"""
    return mean_share(values) if name == "success" else mean_interval(values)


def line(factor, rows):
    return {"factor": factor} | {
        name: bracketed(*interval(name, column(factor, rows, name))) for name in MEASURES
    }


def other_lines(others):
    empty = {"l2": "", "success": ""}
    yield {"factor": "samples", **empty} | {
        name: f"{others[f'{name} of samples']:.3g}" for name in ("diversity", "realism")
    }
    score = f"{others['realism of faces']:.3g}"
    yield {"factor": "true faces", **empty, "diversity": "", "realism": score}


def draw_measures(rows, others):
    figure, axes = plt.subplots(2, 2, figsize=(8, 5.2), layout="constrained", sharex=True)
    factors = sorted({row["factor"] for row in rows})
    for axis, (name, label) in zip(axes.flat, MEASURES.items(), strict=True):
        curve = np.array([interval(name, column(factor, rows, name)) for factor in factors])
        axis.plot(factors, curve[:, 0], "o-", color="C2", ms=4)
        axis.fill_between(factors, curve[:, 1], curve[:, 2], color="C2", alpha=0.2, lw=0)
        for of, style in (("samples", ":"), ("faces", "--")):
            if f"{name} of {of}" in others:
                axis.axhline(others[f"{name} of {of}"], color="0.4", ls=style, label=of)
        if name == "l2":
            axis.axhline(FLAGS.eps, color="0.4", ls="-.", label="eps")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small")
        axis.set_ylabel(label)
        axis.set_xscale("log", base=2)
        axis.set_xticks(factors, [f"×{factor}" for factor in factors])
    for axis in axes.flat[:3]:
        axis.margins(y=0.1)
        axis.set_ylim(bottom=0)
    return figure


def draw_pictures(truth, found):
    """A picture of the first two faces' results, with a row for each factor."""
    shown = min(2, len(truth))
    figure, axes = plt.subplots(
        len(found), shown, figsize=(5.2 * shown, 0.9 * len(found) + 0.2), squeeze=False
    )
    for row, (factor, cell) in zip(axes, found.items(), strict=True):
        row[0].set_ylabel(f"×{factor}", rotation=0, ha="right", va="center")
        for i, axis in enumerate(row):
            enlarged = images.resize_nearest(cell["inputs"][i], factor)
            axis.imshow(images.grid([[truth[i], enlarged, *cell["images"][i][:4]]]))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis in axes[0]:
        titles = "truth", "input", "results"
        for x, title in zip(harness.middles(truth.shape[1], len(titles)), titles, strict=True):
            axis.text(x, -4, title, ha="center", fontsize="small")
    figure.subplots_adjust(left=0.05, right=0.99, top=0.94, bottom=0.01, hspace=0.04, wspace=0.04)
    return figure


if __name__ == "__main__":
    harness.run(main, PRESETS)
