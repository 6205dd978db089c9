"""Which scheme finds realistic images that downscale right, and how fast?

    python experiments/ablate_projection.py --preset=full

Every scheme searches for the same held-out faces from the same starting points, with Adam and the
original's learning rate, 0.4, unless its line says otherwise (`VARIANTS`). For each restart: the
l2 of the result, the evaluations of the generator until an iterate met l2 1e-3, how far the result
is from the spheres that it started on, | ‖z‖/‖start‖ − 1 |, and the score of the generator's
discriminator; for each input the difference of its results.

The sphere is there for realism: without any hold on the norm (`none`) as many restarts meet l2, and
latents drift off. A prior in its place nearly keeps realism; the Gaussian's meets l2 less often.
With --preset=full it is ×4, since at ×8 the bundled generator meets 1e-3 nearly always.

Intervals hold with 95%: means are over inputs (Student), and for the share that met an l2, an
input with K restarts counts as one trial (Wilson). "evaluations" is the mean over restarts, those
that never met 1e-3 with all their steps. Names with "− rescale" compare with the original's scheme
on the same inputs, pair by pair.

Writes table.csv, rows of every restart in cells/, ablation.png and pictures.png. --preset=quick:
five schemes, 3 faces with 4 restarts of 60 steps, 3 minutes on two cores; full: all, 12 faces with
4 restarts, half an hour.
"""

from functools import partial

import jax
import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from common import harness
from common.metrics import bracketed, diversity, mean_interval, mean_share, paired, realism

import pulse_jax
from pulse_jax import images, schemes

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "variants",
    None,
    "These of VARIANTS in this script are compared. Without it, the preset chooses.",
)
BOUNDS = 1e-3, 2e-3
COLUMNS = "evaluations", "distance", "realism", "diversity"


def adam(schedule):
    return pulse_jax.OPTIMIZERS["adam"](schedule(0.4))


# Name → (scheme, base of a schedule that takes the largest learning rate).
VARIANTS = {name: (name, adam) for name in pulse_jax.SCHEMES} | {
    "rescale + sphere_adam": ("rescale", lambda s: pulse_jax.OPTIMIZERS["sphere_adam"](s(0.4))),
    "geodesic_parallel + sphere_adam": (
        "geodesic_parallel",
        lambda s: pulse_jax.OPTIMIZERS["sphere_adam"](s(0.4)),
    ),
    "fixed_angle + sgd 0.1": ("fixed_angle", lambda s: pulse_jax.OPTIMIZERS["sgd"](s(0.1))),
    "rescale + lbfgs": ("rescale", lambda s: pulse_jax.OPTIMIZERS["lbfgs"](0.1)),
    "geodesic + langevin": (
        "geodesic",
        lambda s: pulse_jax.SAMPLERS["langevin"](s(0.4), 1e-3, jax.random.key(0)),
    ),
    "rescale + pcn": (
        "rescale",
        lambda s: pulse_jax.SAMPLERS["pcn"](s(0.1), 1e-3, jax.random.key(0)),
    ),
}
QUICK = ["rescale", "none", "ball", "geodesic_parallel", "rescale + lbfgs"]
PRESETS = {
    "quick": {"inputs": 3, "restarts": 4, "steps": 60, "variants": QUICK},
    "full": {"inputs": 12, "restarts": 4, "factor": 4, "variants": list(VARIANTS)},
}


def main(folder):
    harness.check_not_empty("variants")
    if FLAGS.restarts < 2:
        raise ValueError(f"--restarts={FLAGS.restarts}: diversity takes at least 2")
    for name in FLAGS.variants:
        if name not in VARIANTS:
            raise ValueError(f"--variants={name}: none of {'; '.join(VARIANTS)}")
    generator, params = pulse_jax.load(FLAGS.generator)
    operator = pulse_jax.operators.bicubic(FLAGS.factor)
    truth = harness.held_out(generator.resolution)
    inputs = harness.as_saved(harness.degraded(operator, truth))
    score = realism(FLAGS.generator)

    rows, shown = {}, {}
    for name in FLAGS.variants:
        compute = partial(search, name, generator, params, operator, inputs)
        found = folder.arrays(name, compute)
        rows[name] = folder.rows(name, partial(measure, found, score))
        shown[name] = found["images"]
    folder.table("table.csv", [line(name, rows, COLUMNS, "rescale") for name in rows])
    folder.figure("ablation.png", draw(rows))
    folder.figure("pictures.png", draw_pictures(truth, inputs, shown))


def search(name, generator, params, operator, inputs):
    scheme, base = VARIANTS[name]

    def schedule(largest):
        return pulse_jax.SCHEDULES["linear1cycledrop"](largest, FLAGS.steps)

    optimizer = schemes.parse(scheme)(base(schedule))
    built = harness.build(generator, operator, optimizer)
    found = harness.search_all(generator, params, operator, built, inputs)
    l2 = np.asarray(found.info.l2)
    met = l2 <= BOUNDS[0]
    evaluations = np.where(met.any(1), met.argmax(1) + 1, l2.shape[1])
    return {
        "images": found.images,
        "l2": found.l2,
        "evaluations": evaluations.reshape(found.l2.shape),
        "distance": distance(found.start, found.state.best.latents).reshape(found.l2.shape),
    }


def distance(start, latents):
    """Mean of | ‖z‖ / ‖z at the start‖ − 1 | over the spheres of each restart: (N,)."""

    def norms(leaf):
        return np.linalg.norm(np.float64(leaf).reshape(*leaf.shape[:2], -1), axis=-1)

    pairs = zip(jax.tree.leaves(latents), jax.tree.leaves(start), strict=True)
    ratios = np.concatenate([norms(z) / norms(first) for z, first in pairs], axis=1)
    return np.abs(ratios - 1).mean(axis=1)


def measure(found, score):
    """A row for each restart, of all that was found out about it; diversity is its input's."""
    single = [name for name, values in found.items() if values.ndim == 2]
    for i, batch in enumerate(found["images"]):
        scores, spread = score(batch), float(diversity(batch))
        for k in range(len(batch)):
            row = {"input": i, "restart": k} | {name: found[name][i, k] for name in single}
            yield row | {"realism": float(scores[k]), "diversity": spread}


def by_input(rows, name):
    """Means over the restarts of each input: (N,)."""
    values = np.array([row[name] for row in rows], float)
    return values.reshape(-1, FLAGS.restarts).mean(axis=1)


def met(rows, bound):
    """Shares of the restarts of each input that met an l2: (N,)."""
    return np.reshape([row["l2"] <= bound for row in rows], (-1, FLAGS.restarts)).mean(axis=1)


def line(name, rows, columns, reference):
    """Of the table: what the rows of a name say, compared with those of the reference."""

    own = rows[name]
    figures = {"": name}
    for bound in BOUNDS:
        figures[f"success@{bound:g}"] = bracketed(*mean_share(met(own, bound)))
    for column in columns:
        figures[column] = bracketed(*mean_interval(by_input(own, column)))
    if reference in rows:
        other = rows[reference]
        shares = (met(both, BOUNDS[0]) for both in (own, other))
        figures[f"success@{BOUNDS[0]:g} − {reference}"] = bracketed(*paired(*shares))
        for column in columns:
            pair = by_input(own, column), by_input(other, column)
            figures[f"{column} − {reference}"] = bracketed(*paired(*pair))
    return figures


def draw(rows):
    """Success, and what the others take and give compared with the first, face by face."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 1.5 + 0.3 * len(rows)), sharey=True)
    places = np.arange(len(rows))[::-1]
    first = next(iter(rows))

    def more(name, own):
        return paired(by_input(own, name), by_input(rows[first], name))

    columns = {
        f"share of restarts with l2 ≤ {BOUNDS[0]:g}": lambda own: mean_share(met(own, BOUNDS[0])),
        f"evaluations until then, less those of {first}": partial(more, "evaluations"),
        f"discriminator's score, less that of {first}": partial(more, "realism"),
    }
    for axis, (title, interval) in zip(axes, columns.items(), strict=True):
        for place, own in zip(places, rows.values(), strict=True):
            mean, low, high = interval(own)
            axis.plot([low, high], [place, place], color="0.6", linewidth=2)
            axis.plot(mean, place, "o", color="C0")
        axis.set_xlabel(title)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(places, rows)
    figure.tight_layout()
    return figure


def draw_pictures(truth, inputs, shown):
    """Of each scheme the first restart, for the first inputs."""
    count = min(6, len(truth))
    enlarged = [images.resize_nearest(picture, FLAGS.factor) for picture in inputs[:count]]
    lines = {"face": truth[:count], "input": enlarged}
    lines |= {name: batch[:count, 0] for name, batch in shown.items()}
    figure, axes = plt.subplots(
        len(lines), count, figsize=(1.1 * count + 2.2, 1.1 * len(lines)), squeeze=False
    )
    for row, (name, pictures) in zip(axes, lines.items(), strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(np.clip(picture, 0, 1))
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.tight_layout(pad=0.3)
    return figure


if __name__ == "__main__":
    harness.run(main, PRESETS)
