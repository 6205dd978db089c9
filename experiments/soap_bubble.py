"""Is a Gaussian's mass on a sphere, and what becomes of images off it?

    python experiments/soap_bubble.py --preset=full

In d dimensions, the norm of a standard normal point is near √d. Its standard deviation is about
1/√2, whatever d is. So the mass lies in a shell, which for large d is thin as a soap bubble. Low
values of ‖z‖ are as unlikely as high ones, although the density is highest at 0. That is why PULSE
keeps each style on its sphere. There are two measurements:

- Norms of normal points, over √d, for several d. The figure shows their histograms and the density
  of the chi distribution.
- Pairs of the generator's samples whose styles are moved in or out, to 0.2 … 3 times the radius √d.
  The table has the difference of the two images, and the score that the discriminator gives them.
  All layers have the same style. Intervals hold the mean over pairs with 95%, also for differences
  from radius 1.

Towards the centre, all styles become one, and all images the average face. Outside, images
overshoot. The discriminator doesn't mind the average, but samples no longer differ there.

Writes table.csv and soap_bubble.png. --inputs is the number of pairs, and nothing is searched.
--preset=quick takes 32 pairs and half a minute on two cores, and full 256 and a minute and a half.
"""

from functools import partial

from common import harness
from common.metrics import bracketed, mean_interval, paired, realism, render

import jax
import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from scipy.stats import chi

import pulse_jax
from pulse_jax import images

FLAGS = flags.FLAGS
flags.DEFINE_integer("points", 20_000, "This many normal points are drawn for each dimension.", 1)
flags.DEFINE_integer("shown", 4, "The figure shows this many samples.", 1)
PRESETS = {"quick": {"inputs": 32}, "full": {"inputs": 256}}
DIMENSIONS = 2, 8, 32, 128, 512
RADII = 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0  # times √d
MEASURES = {"difference": "RMS difference of two samples", "score": "discriminator's score"}
BINS = np.linspace(0, 2.5, 101)


def main(folder):
    generator, params = pulse_jax.load(FLAGS.generator, equal_start=True)
    norms = folder.rows("norms", measure_norms)
    moved = folder.arrays("samples", partial(sample, generator, params))
    rows = folder.rows("pairs", partial(measure, moved))
    folder.table("table.csv", [line(radius, rows) for radius in RADII])
    folder.figure("soap_bubble.png", draw(norms, rows, moved["shown"]))


def measure_norms():
    """Histograms of the norm over √d: a row for each bin."""
    rng = np.random.default_rng((FLAGS.seed, 1))
    for d in DIMENSIONS:
        norms = np.linalg.norm(rng.standard_normal((FLAGS.points, d), np.float32), axis=1)
        density, _ = np.histogram(norms / np.sqrt(d), BINS, density=True)
        for low, high, value in zip(BINS[:-1], BINS[1:], density, strict=True):
            yield {"d": d, "norm": float((low + high) / 2), "density": float(value)}


def sample(generator, params):
    """Scores and differences (radii, N) of pairs at each radius, images (radii, shown, R, R, 3)."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(FLAGS.seed), 2), 2 * FLAGS.inputs)
    latents, frozen = jax.vmap(generator.sample)(keys)
    style = latents["style"]  # (2N, L, d)
    style *= np.sqrt(style.shape[-1]) / np.linalg.norm(style, axis=-1, keepdims=True)
    score = realism(FLAGS.generator)
    found = {"score": [], "difference": [], "shown": []}
    for radius in RADII:
        batch = render(generator, params, latents | {"style": radius * style}, frozen)
        a, b = batch[::2], batch[1::2]
        found["score"].append((score(a) + score(b)) / 2)
        found["difference"].append(np.sqrt(np.mean((a - b) ** 2, axis=(1, 2, 3))))
        found["shown"].append(batch[: FLAGS.shown])
    return {name: np.stack(values) for name, values in found.items()}


def measure(moved):
    """A row for each radius and pair."""
    for radius, *columns in zip(RADII, *(moved[name] for name in MEASURES), strict=True):
        for i, values in enumerate(zip(*columns, strict=True)):
            measures = {name: float(v) for name, v in zip(MEASURES, values, strict=True)}
            yield {"radius": radius, "pair": i} | measures


def at_radius(radius, rows, name):
    return np.array([row[name] for row in rows if row["radius"] == radius])


def line(radius, rows):
    found = {"radius over √d": radius}
    for name, label in MEASURES.items():
        values, at_one = (at_radius(r, rows, name) for r in (radius, 1.0))
        found[label] = bracketed(*mean_interval(values))
        found[f"{name} − that at 1"] = bracketed(*paired(values, at_one))
    return found


def draw(norms, rows, shown):
    figure = plt.figure(figsize=(9.5, 3.3 + 0.95 * shown.shape[1]), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(3.3, 0.95 * shown.shape[1]))
    left, *others = above.subplots(1, 3)
    for k, d in enumerate(DIMENSIONS):
        bins = [row for row in norms if row["d"] == d]
        x, density = ([row[name] for row in bins] for name in ("norm", "density"))
        left.fill_between(x, density, step="mid", alpha=0.35, color=f"C{k}", lw=0, label=f"d = {d}")
        fine = np.linspace(0, 2.5, 1000)
        left.plot(fine, np.sqrt(d) * chi.pdf(np.sqrt(d) * fine, d), color=f"C{k}", lw=1)
    left.set(xlim=(0, 2.5), ylim=(0, None))
    left.set_xlabel("norm of normal points, over √d")
    left.set_ylabel("density")
    left.legend(fontsize="small")

    for axis, (name, label) in zip(others, MEASURES.items(), strict=True):
        curve = np.array([mean_interval(at_radius(r, rows, name)) for r in RADII])
        axis.plot(RADII, curve[:, 0], "o-", color="C2", ms=4)
        axis.fill_between(RADII, curve[:, 1], curve[:, 2], color="C2", alpha=0.2, lw=0)
        axis.axvline(1, color="0.6", lw=1)
        axis.set_xlabel("norm of the style, over √d")
        axis.set_ylabel(label)

    axis = below.subplots()
    axis.imshow(images.grid(shown.swapaxes(0, 1)))
    axis.set_xticks(harness.middles(shown.shape[2], len(RADII)), [f"{r:g}" for r in RADII])
    axis.set_yticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("samples of the generator, by the norm of their style over √d")
    return figure


if __name__ == "__main__":
    harness.run(main, PRESETS)
