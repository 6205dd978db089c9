"""Which scheme finds realistic images that downscale right, and how fast?

    python experiments/ablate_projection.py --preset=full

Every scheme searches for the same held-out faces from the same starting points, with Adam and the
original's learning rate, 0.4, unless its line in `VARIANTS` says otherwise. Each restart is
measured by the l2 of its result, the evaluations of the generator until an iterate met l2 1e-3, the
distance | ‖z‖/‖start‖ − 1 | from the spheres that it started on, and the score of the generator's
discriminator, if it has one. Each input is measured by the difference of its results.

The sphere is there for realism. Without any hold on the norm (`none`), as many restarts meet 1e-3,
but latents drift off. A prior instead of the sphere nearly keeps realism, but the Gaussian's meets
1e-3 less often. --preset=full downscales by a factor of 4, since through faces64 nearly all
restarts meet 1e-3 at a factor of 8.

Intervals hold with 95%. Means are over inputs (Student). For the share that met an l2, an input
with K restarts counts as one trial (Wilson). "evaluations" is the mean over restarts, and a restart
that never met 1e-3 counts with all its steps. Names with "− rescale" compare with the original's
scheme on the same inputs, pair by pair.

A scheme of your own, a callable in a file of yours that makes one, is compared in the same way:

    python experiments/ablate_projection.py --variants=rescale,my_file:my_scheme --seeds=0:5

With --seeds, all is done once for each of these seeds. They vary the random starting points, or
with --vary=pictures the pictures that are searched for. What isn't varied is as --seed says. So one
tells how much the figures depend on where searches begin, and the other how much on the pictures.
by_seed.csv and by_seed.png hold each seed's means, and their mean over seeds.

Writes table.csv, rows of every restart in cells/, ablation.png and pictures.png. --preset=quick
compares five schemes on 3 faces with 4 restarts of 60 steps, in 3 minutes on two cores. full
compares all on 12 faces with 4 restarts, in half an hour.
"""

from functools import lru_cache, partial

from common import harness
from common.metrics import as_saved, bracketed, mean_interval, mean_share, paired, realism
from common.restarts import (
    BOUNDS,
    SCORE,
    by_input,
    draw_pictures,
    evaluations,
    line,
    measure,
    met,
)

import jax
import matplotlib.pyplot as plt
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax import schemes
from pulse_jax.generators.checkpoint import comes_with

WHAT = "pictures", "search"  # that seeds may be for
FLAGS = flags.FLAGS
flags.DEFINE_string(
    "seeds", None, "All is done once for each of these seeds, as 0,1,2 or 0:3, instead of --seed."
)
flags.DEFINE_enum(
    "vary",
    "search",
    WHAT,
    "The seeds of --seeds are for the starting points of the searches, or for the pictures.",
)
flags.DEFINE_list(
    "variants",
    None,
    "These of VARIANTS in this script are compared. Without it, the preset chooses.",
)
COLUMNS = "evaluations", "distance", SCORE, "diversity"


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
        variant(name)
    seeds = read_seeds()
    if FLAGS.seeds and FLAGS.vary == "pictures" and FLAGS.images:
        told = f"those of --images={FLAGS.images} don't vary with a seed"
        raise ValueError(f"--vary=pictures: {told}")
    generator, params = pulse_jax.load(FLAGS.generator)
    operator = pulse_jax.operators.bicubic(FLAGS.factor)
    score = realism(FLAGS.generator) if comes_with(FLAGS.generator, "discriminator") else None

    # Those of --images are the same for all seeds, and what is odd about them is told once.
    held_out = lru_cache(maxsize=1)(partial(harness.held_out, generator.resolution))

    by_seed, shown = {name: {} for name in FLAGS.variants}, {}
    for seed in seeds:
        pictures_seed, search_seed = (seed if FLAGS.vary == x else None for x in WHAT)
        truth = held_out(pictures_seed)
        inputs = as_saved(harness.degraded(operator, truth))
        for name in FLAGS.variants:
            cell = name.replace(":", " ") + (f", seed {seed}" if FLAGS.seeds else "")
            compute = partial(search, name, generator, params, operator, inputs, search_seed)
            found = folder.arrays(cell, compute)
            by_seed[name][seed] = folder.rows(cell, partial(measure, found, score))
            if seed == seeds[0]:
                shown[name] = found["images"]
        if seed == seeds[0]:
            pictures = draw_pictures(truth, inputs, shown)
    rows = {name: pooled(list(of_seed.values())) for name, of_seed in by_seed.items()}
    columns = [name for name in COLUMNS if score or name != SCORE]
    folder.table("table.csv", [line(name, rows, columns, "rescale") for name in rows])
    folder.figure("ablation.png", draw(rows))
    folder.figure("pictures.png", pictures)
    if len(seeds) > 1:
        folder.table("by_seed.csv", list(seed_lines(by_seed)))
        folder.figure("by_seed.png", draw_seeds(by_seed))


def read_seeds():
    """The seeds of --seeds, or else of --seed. Raises ValueError if they can't be read."""
    if FLAGS.seeds is None:
        return (FLAGS.seed,)
    try:
        return pulse_jax.Settings.from_json({"seeds": FLAGS.seeds}).seeds
    except ValueError as error:
        raise ValueError(f"--{error}") from error


def variant(name):
    """A scheme's name, and its base of a schedule.

    Of `VARIANTS`, or else that of any scheme as the command takes it, with Adam. Raises ValueError
    if it is neither.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    try:
        schemes.parse(name)
    except ValueError as error:
        known = "; ".join(VARIANTS)
        raise ValueError(f"--variants={name}: none of {known}, and no scheme: {error}") from error
    return name, adam


def search(name, generator, params, operator, inputs, seed):
    scheme, base = variant(name)

    def schedule(largest):
        return pulse_jax.SCHEDULES["linear1cycledrop"](largest, FLAGS.steps)

    optimizer = schemes.parse(scheme)(base(schedule))
    built = harness.build(generator, operator, optimizer)
    found = harness.search_all(generator, params, operator, built, inputs, seed=seed)
    return {
        "inputs": inputs,
        "start": jax.tree.leaves(found.start)[0].reshape(*found.l2.shape, -1),
        "images": found.images,
        "l2": found.l2,
        "evaluations": evaluations(found),
        "distance": distance(found.start, found.state.best.latents).reshape(found.l2.shape),
    }


def distance(start, latents):
    """Mean of | ‖z‖ / ‖z at the start‖ − 1 | over the spheres of each restart: (N,)."""

    def norms(leaf):
        return np.linalg.norm(np.float64(leaf).reshape(*leaf.shape[:2], -1), axis=-1)

    pairs = zip(jax.tree.leaves(latents), jax.tree.leaves(start), strict=True)
    ratios = np.concatenate([norms(z) / norms(first) for z, first in pairs], axis=1)
    return np.abs(ratios - 1).mean(axis=1)


def pooled(of_seeds):
    """The rows of all seeds. Other pictures count as inputs, and other starts as restarts."""
    pictures = FLAGS.vary == "pictures"
    rows = []
    for i, own in enumerate(of_seeds):
        further = {
            "input": i * FLAGS.inputs * pictures,
            "restart": i * FLAGS.restarts * (not pictures),
        }
        rows += [row | {name: row[name] + more for name, more in further.items()} for row in own]
    return sorted(rows, key=lambda row: (row["input"], row["restart"]))


# Of by_seed.csv and by_seed.png: what is averaged over all restarts of a seed.
QUANTITIES = {
    f"success@{BOUNDS[0]:g}": lambda rows: met(rows, BOUNDS[0]).mean(),
    "evaluations": lambda rows: by_input(rows, "evaluations").mean(),
    SCORE: lambda rows: by_input(rows, SCORE).mean(),
}


def quantities(rows):
    """Those of `QUANTITIES` that rows have."""
    return [name for name in QUANTITIES if name != SCORE or SCORE in rows[0]]


def seed_values(of_seeds, quantity):
    """One number for each seed: (S,)."""
    return np.array([float(QUANTITIES[quantity](rows)) for rows in of_seeds.values()])


def seed_lines(by_seed):
    """A line for each variant and quantity: each seed's mean, and the mean of these means."""
    reference = by_seed.get("rescale")
    for name, of_seeds in by_seed.items():
        for quantity in quantities(next(iter(of_seeds.values()))):
            values = seed_values(of_seeds, quantity)
            line = {"": name, "seeds vary": FLAGS.vary, "quantity": quantity}
            line |= {f"seed {seed}": v for seed, v in zip(of_seeds, values.tolist(), strict=True)}
            line["mean over seeds"] = bracketed(*mean_interval(values))
            if reference:
                pair = values, seed_values(reference, quantity)
                line["mean − rescale"] = bracketed(*paired(*pair))
            yield line


def draw_seeds(by_seed):
    """Each seed's mean as a point, and their mean with its interval."""
    size = 13, 1.8 + 0.3 * len(by_seed)
    shown = quantities(next(iter(next(iter(by_seed.values())).values())))
    figure, axes = plt.subplots(1, len(shown), figsize=size, sharey=True)
    places = np.arange(len(by_seed))[::-1]
    for axis, quantity in zip(axes, shown, strict=True):
        for place, of_seeds in zip(places, by_seed.values(), strict=True):
            values = seed_values(of_seeds, quantity)
            mean, low, high = mean_interval(values)
            axis.plot([low, high], [place, place], color="0.6", linewidth=2)
            axis.plot(values, np.full(len(values), place), ".", color="0.3", markersize=4)
            axis.plot(mean, place, "o", color="C0")
        axis.set_xlabel(quantity)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(places, by_seed)
    seeds = len(next(iter(by_seed.values())))
    figure.suptitle(f"{seeds} seeds, of the {FLAGS.vary}", fontsize="medium")
    figure.tight_layout()
    return figure


def draw(rows):
    """A figure of the success, and of the others' cost and score less those of the first."""
    places = np.arange(len(rows))[::-1]
    first = next(iter(rows))

    def more(name, own):
        return paired(by_input(own, name), by_input(rows[first], name))

    columns = {
        f"share of restarts with l2 ≤ {BOUNDS[0]:g}": lambda own: mean_share(met(own, BOUNDS[0])),
        f"evaluations until then, less those of {first}": partial(more, "evaluations"),
    }
    if SCORE in rows[first][0]:
        columns[f"discriminator's score, less that of {first}"] = partial(more, SCORE)
    size = 13, 1.5 + 0.3 * len(rows)
    figure, axes = plt.subplots(1, len(columns), figsize=size, sharey=True)
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


if __name__ == "__main__":
    harness.run(main, PRESETS)
