"""Which degradations can be undone? One face through each operator, and what the search finds.

    python experiments/degradations.py --preset=full

Nothing in the search is about downscaling, and it takes any linear operator. Here, held-out faces
are downscaled, blurred, moved, cut and turned grey, and each is searched from several starts with
the original's recipe. The table gives the share of restarts whose degraded image is within eps of
the input in mean square, and the median of that error. In the interval each face counts as one
trial.

An operator that keeps pixels, as a mask or grey does, asks more of the generator than one that
averages over many, since a drawn face that the generator has never seen is a little off its range
everywhere. With faces64, one of five restarts meets eps with a mask, and none in grey: the median
error is 1.4 and 2 times eps. With the other operators, all restarts meet it.

Writes table.csv, rows of every restart in cells/, and degradations.png, which has a row for each
operator: the truth, the input, the results. --preset=quick takes 1 face and 3 minutes on two cores,
and full 4 faces and 4 minutes.
"""

from functools import partial

from common import harness
from common.metrics import as_saved, bracketed, mean_share

import matplotlib.pyplot as plt
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax import images, operators

FLAGS = flags.FLAGS
PRESETS = {"quick": {"inputs": 1, "restarts": 4}, "full": {"inputs": 4, "restarts": 4}}
# Downscalers take --factor. Lengths are those of the bundled generator's 64 pixels.
DEGRADATIONS = {
    "bicubic": "bicubic",
    "area": "area",
    "lanczos": "lanczos",
    "blur": "blur:4",
    "motion": "motion:20:30",
    "mask": "mask:0.5",
    "grey": "grey",
    "blur and bicubic": "blur:2,bicubic",
    "grey and bicubic": "grey,bicubic",
}


def main(folder):
    generator, params = pulse_jax.load(FLAGS.generator)
    truth = harness.held_out(generator.resolution)
    found = {
        name: folder.arrays(name, partial(search, generator, params, text, truth))
        for name, text in DEGRADATIONS.items()
    }
    rows = {name: folder.rows(name, partial(restarts, cell)) for name, cell in found.items()}
    folder.table("table.csv", [line(name, found[name]["inputs"], rows[name]) for name in rows])
    folder.figure("degradations.png", draw(truth, found))


def search(generator, params, text, truth):
    """The inputs, as 8-bit files hold them, the results and their l2."""
    shrinks = any(name in text for name in operators.DOWNSCALERS)
    operator = operators.parse(text)(FLAGS.factor if shrinks else 1)
    inputs = as_saved(harness.degraded(operator, truth))
    built = harness.build(generator, operator)
    found = harness.search_all(generator, params, operator, built, inputs)
    return {"inputs": inputs, "images": found.images, "l2": found.l2}


def restarts(cell):
    """A row for each restart."""
    for (i, k), l2 in np.ndenumerate(cell["l2"]):
        yield {"input": i, "restart": k, "l2": float(l2)}


def line(name, inputs, rows):
    """A line of the table."""
    l2 = np.reshape([row["l2"] for row in rows], (-1, FLAGS.restarts))
    met = (l2 <= FLAGS.eps).mean(axis=1)
    return {
        "operator": DEGRADATIONS[name],
        "input": "×".join(map(str, inputs.shape[1:3])),
        "converged": bracketed(*mean_share(met)),
        "median l2": float(np.median(l2)),
    }


def draw(truth, found):
    """A picture of the first face's results."""
    figure, axes = plt.subplots(len(found), 1, figsize=(6.4, 0.9 * len(found) + 0.1))
    for axis, (name, cell) in zip(axes, found.items(), strict=True):
        enlarged = images.resize_nearest(
            cell["inputs"][0], truth.shape[1] // cell["inputs"].shape[1]
        )
        axis.imshow(images.grid([[truth[0], enlarged, *cell["images"][0][:4]]]))
        axis.set_ylabel(DEGRADATIONS[name], rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    titles = "truth", "input", "results"
    for x, title in zip(harness.middles(truth.shape[1], len(titles)), titles, strict=True):
        axes[0].text(x, -4, title, ha="center")
    figure.subplots_adjust(left=0.22, right=0.99, top=0.97, bottom=0.01, hspace=0.06)
    return figure


if __name__ == "__main__":
    harness.run(main, PRESETS)
