"""Does the search denoise? What does it find for an input that isn't the downscaled picture?

    python experiments/noise_robustness.py --preset=full

Held-out faces are downscaled and spoiled, as in the paper's figures: by Gaussian noise of several
strengths or salt and pepper after downscaling, or by motion blur before it. The spoiled input is
searched with the original's recipe. Then two root mean square distances to the clean input are
compared: that of the spoiled input, and that of the downscaled result. If the second is smaller,
the search has removed more of what was added than it has missed of the picture. All that it knows
of noise is the generator, which can't draw it. Motion blur is also searched with an operator that
blurs before it downscales, so that the blur is known.

With faces64, the result is nearer from a σ of 10 on, and about half as far at 25 and 50. If less is
spoiled, as by the motion blur, it isn't nearer, since eps lets it err by 7 of 255.

The paper's motion blur has 100 pixels at a factor of 64, and ours is as long in pixels of the
input. Units are those of 8-bit pixels, 0 to 255. Intervals hold the mean over faces with 95%, also
for the difference of the two distances.

Writes table.csv, noise.png with the distances by the strength of the noise, and pictures.png.
--preset=quick takes 4 faces with 2 restarts and 3 minutes on two cores, and full 8 faces with 2 and
4 minutes.
"""

from functools import partial

from common import harness
from common.metrics import as_saved, bracketed, mean_interval, paired

import matplotlib.pyplot as plt
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax import images, operators

FLAGS = flags.FLAGS
PRESETS = {"quick": {"inputs": 4, "restarts": 2}, "full": {"inputs": 8, "restarts": 2}}
SIGMAS = 0, 5, 10, 25, 50, 100  # of 255
NOISE = {f"noise {sigma}": sigma for sigma in SIGMAS}
DENSITY = 0.05  # of salt and pepper, together
OTHERS = "salt and pepper", "motion blur", "motion blur, known"
SHOWN = "noise 25", "noise 50", *OTHERS


def main(folder):
    generator, params = pulse_jax.load(FLAGS.generator)
    downscale = operators.bicubic(FLAGS.factor)
    blurred = operators.compose(operators.motion(100 / 64 * FLAGS.factor, 30), downscale)
    truth = harness.held_out(generator.resolution)
    clean = as_saved(harness.degraded(downscale, truth))
    inputs = {name: add_noise(clean, sigma) for name, sigma in NOISE.items()}
    inputs["salt and pepper"] = salt_and_pepper(clean)
    inputs["motion blur"] = as_saved(harness.degraded(blurred, truth))
    inputs["motion blur, known"] = inputs["motion blur"]

    searches = {d: harness.build(generator, d) for d in (downscale, blurred)}
    results = {}
    for name, batch in inputs.items():
        known = blurred if name.endswith("known") else downscale
        search = partial(harness.search_all, generator, params, known, searches[known], batch)
        cell = folder.arrays(name, lambda search=search: {"images": search().images})
        results[name] = cell["images"]

    rows = folder.rows("distances", partial(distances, downscale, clean, inputs, results))
    folder.table("table.csv", [line(name, rows) for name in inputs])
    folder.figure("noise.png", draw_distances(rows))
    folder.figure("pictures.png", draw_pictures(downscale, truth, clean, inputs, results))


def add_noise(clean, sigma):
    """Images with Gaussian noise, as 8-bit files hold them. Sigma only changes its strength."""
    noise = np.random.default_rng((FLAGS.seed, 1)).standard_normal(clean.shape)
    return as_saved(clean + sigma / 255 * noise)


def salt_and_pepper(clean):
    """Images in which some pixels are black or white."""
    chance = np.random.default_rng((FLAGS.seed, 2)).uniform(size=clean.shape[:3])[..., None]
    return np.where(chance < DENSITY / 2, 0, np.where(chance < DENSITY, 1, clean))


def distances(downscale, clean, inputs, results):
    """A row for each input and restart: root mean square distances, of 255."""

    def rms(a, b):
        return 255 * float(np.sqrt(np.mean((a - b) ** 2)))

    for name, batch in results.items():
        for i, restarts in enumerate(batch):
            small = harness.degraded(downscale, restarts)
            for k, found in enumerate(small):
                yield {
                    "cell": name,
                    "input": i,
                    "restart": k,
                    "input to clean": rms(inputs[name][i], clean[i]),
                    "result to clean": rms(found, clean[i]),
                }


def by_input(name, rows, column):
    """Means over the restarts of each input (N,), since restarts depend on one another."""
    values = [row[column] for row in rows if row["cell"] == name]
    return np.reshape(values, (FLAGS.inputs, FLAGS.restarts)).mean(axis=1)


def line(name, rows):
    before, after = (by_input(name, rows, f"{of} to clean") for of in ("input", "result"))
    return {
        "input": name,
        "its distance to the clean one": bracketed(*mean_interval(before)),
        "the result's": bracketed(*mean_interval(after)),
        "difference": bracketed(*paired(after, before)),
    }


def draw_distances(rows):
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.5, 3.6), width_ratios=(3, 2), layout="constrained", sharey=True
    )
    for of, colour, label in (("input", "C3", "spoiled input"), ("result", "C2", "result")):
        column = f"{of} to clean"
        curve = np.array([mean_interval(by_input(name, rows, column)) for name in NOISE])
        left.plot(SIGMAS, curve[:, 0], "o-", color=colour, ms=4, label=label)
        left.fill_between(SIGMAS, curve[:, 1], curve[:, 2], color=colour, alpha=0.2, lw=0)
        for at, name in enumerate(OTHERS):
            mean, low, high = mean_interval(by_input(name, rows, column))
            right.errorbar(at, mean, [[mean - low], [high - mean]], fmt="o", color=colour)
    left.set_xlabel("standard deviation of the Gaussian noise, of 255")
    left.set_ylabel("RMS distance to the clean input, of 255")
    left.set_ylim(bottom=0)
    left.legend()
    right.set_xticks(range(len(OTHERS)), [name.replace(", ", ",\n") for name in OTHERS])
    right.set_xlim(-0.5, len(OTHERS) - 0.5)
    return figure


def draw_pictures(downscale, truth, clean, inputs, results):
    """A picture of the first face's results."""
    figure, axes = plt.subplots(len(SHOWN), 1, figsize=(6.6, 1.05 * len(SHOWN) + 0.2))

    def enlarge(image):
        return images.resize_nearest(np.clip(image, 0, 1), FLAGS.factor)

    for axis, name in zip(axes, SHOWN, strict=True):
        result = results[name][0, 0]
        smalls = clean[0], inputs[name][0], np.asarray(downscale(result))
        axis.imshow(images.grid([[truth[0], *map(enlarge, smalls), result]]))
        axis.set_ylabel(name.replace(", ", ",\n"), rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    titles = "truth", "downscaled", "input", "result, downscaled", "result"
    for x, title in zip(harness.middles(truth.shape[1], len(titles)), titles, strict=True):
        axes[0].text(x, -4, title, ha="center", fontsize="x-small")
    figure.subplots_adjust(left=0.2, right=0.99, top=0.94, bottom=0.01, hspace=0.04)
    return figure


if __name__ == "__main__":
    harness.run(main, PRESETS)
