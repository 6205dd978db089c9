"""Where should one search? The latent space, with or without GEOCROSS and noise maps.

    python experiments/latent_space.py --preset=full

This is the ablation that the paper left out. The original searches one whitened style vector for
each layer ("w") and five noise maps, and draws the styles together with GEOCROSS. Each variant
changes one of these. All search for the same held-out faces. A restart's start is drawn from the
same key, so it is the same point if the space is the same.

Each is measured by the share of restarts that met l2 1e-3 and 2e-3, the evaluations until the first
was met, the score of the generator's discriminator, the difference of two results of one input, and
GEOCROSS of the results. Intervals hold with 95%. Means are over inputs (Student). For shares, an
input counts as one trial (Wilson).

In a space with fewer dimensions, or one that keeps to what the mapping network makes, less is
found. With faces64, all restarts meet 1e-3 in "w", 78 to 63% in "w full covariance", "z" and "w
tiled", and 22 and 13% in the other tiled ones. "z" has slightly better scores; without GEOCROSS
they are much worse. An equal start, one sphere for all layers and the radius √d change nothing to
speak of, and faces64 makes nothing of its noise maps.

Writes table.csv, rows of every restart in cells/, and pictures.png. --preset=quick: five variants,
3 faces with 4 restarts, 3 minutes on two cores; full: all, 8 faces with 4, a quarter of an hour.
"""

from functools import partial

from common import harness
from common.metrics import as_saved, realism
from common.restarts import draw_pictures, evaluations, line, measure

import jax
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax.losses import geocross

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "spaces", None, "These of SPACES in this script are compared. Without it, the preset chooses."
)
flags.DEFINE_enum(
    "recipe", "original", harness.SEARCHES, "The search has this recipe of the command."
)

# Name → (arguments of the latent space, weight of GEOCROSS).
SPACES = {
    "w": ({}, 0.05),
    "w without GEOCROSS": ({}, 0.0),
    "w tiled": ({"tile_latent": True}, 0.0),
    "w equal start": ({"equal_start": True}, 0.05),
    "w spread 0.3": ({"style_spread": 0.3}, 0.0),
    "w spread 0.5": ({"style_spread": 0.5}, 0.0),
    "w spread 0.7": ({"style_spread": 0.7}, 0.0),
    "w spread 0.5 with GEOCROSS": ({"style_spread": 0.5}, 0.05),
    "w one sphere for all layers": ({"joint_sphere": True}, 0.05),
    "w radius √d": ({"exact_radius": True}, 0.05),
    "w noise fixed": ({"noise_type": "fixed"}, 0.05),
    "w noise zero": ({"noise_type": "zero"}, 0.05),
    "w noise normalised": ({"noise_type": "normalised"}, 0.05),
    "w full covariance": ({"space": "w_full"}, 0.05),
    "w full covariance tiled": ({"space": "w_full", "tile_latent": True}, 0.0),
    "z": ({"space": "z"}, 0.05),
    "z tiled": ({"space": "z", "tile_latent": True}, 0.0),
}
COLUMNS = "evaluations", "realism", "diversity", "GEOCROSS"
QUICK = ["w", "w without GEOCROSS", "w tiled", "w noise zero", "z"]
PRESETS = {
    "quick": {"inputs": 3, "restarts": 4, "spaces": QUICK},
    "full": {"inputs": 8, "restarts": 4, "spaces": list(SPACES)},
}


def main(folder):
    harness.check_not_empty("spaces")
    if FLAGS.restarts < 2:
        raise ValueError(f"--restarts={FLAGS.restarts}: diversity takes at least 2")
    for name in FLAGS.spaces:
        if name not in SPACES:
            raise ValueError(f"--spaces={name} is none of {'; '.join(SPACES)}")
    resolution = pulse_jax.load(FLAGS.generator)[0].resolution
    operator = pulse_jax.operators.bicubic(FLAGS.factor)
    truth = harness.held_out(resolution)
    inputs = as_saved(harness.degraded(operator, truth))
    score = realism(FLAGS.generator)

    rows, shown = {}, {}
    for name in FLAGS.spaces:
        found = folder.arrays(name, partial(search, name, operator, inputs))
        rows[name] = folder.rows(name, partial(measure, found, score))
        shown[name] = found["images"]
    folder.table("table.csv", [line(name, rows, COLUMNS, "w") for name in rows])
    folder.figure("pictures.png", draw_pictures(truth, inputs, shown))


def search(name, operator, inputs):
    arguments, weight = SPACES[name]
    recipe = pulse_jax.RECIPES[FLAGS.recipe]
    if "style_spread" not in arguments:  # which says how styles differ
        arguments = {"equal_start": recipe.equal_start} | arguments
    generator, params = pulse_jax.load(FLAGS.generator, **arguments)
    built = harness.build(generator, operator, harness.optimizer_of(FLAGS.recipe), weight)
    stop = recipe.stop_at_eps
    found = harness.search_all(generator, params, operator, built, inputs, stop_at_eps=stop)
    styles_of = jax.jit(jax.vmap(generator.styles, (None, 0, 0)))
    styles = styles_of(params, found.state.best.latents, found.state.frozen)
    spread = np.asarray(jax.vmap(geocross)(styles), float).reshape(found.l2.shape)
    return {
        "images": found.images,
        "l2": found.l2,
        "evaluations": evaluations(found),
        "GEOCROSS": spread,
    }


if __name__ == "__main__":
    harness.run(main, PRESETS)
