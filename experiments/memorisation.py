"""Does a generator repeat parts of the photograph that it was trained on?

    python experiments/memorisation.py --generator=tissue64 --data=tissue --preset=full

Each sample is compared with all crops of the training area, at every place and in all eight
symmetries of a square, and so are crops of the held-out area. A distance is the root mean square
difference to the nearest of them, over the standard deviation of the image: 0 is a copy, and about
1 is what an image of one colour has. Samples of a generator that repeats its data are nearer to the
data than held-out crops are.

Means are compared with a 95% interval (Welch). Writes table.csv, rows of all images in cells/, and
pictures.png: the samples that are nearest to the data, and below each the crop that it is near to.
--preset=quick: 32 samples; full: 256.
"""

from functools import partial

import jax
import numpy as np
from absl import flags
from common import harness
from common.data import PHOTOGRAPHS, held_out_crops, photograph
from common.metrics import bracketed, nearest_crops
from scipy.stats import ttest_ind

import pulse_jax

FLAGS = flags.FLAGS
flags.DEFINE_enum("data", None, list(PHOTOGRAPHS), "The generator was trained on this photograph.")
flags.DEFINE_integer("samples", None, "Without it, the preset chooses the number of samples.", 2)
flags.DEFINE_integer("shown", 8, "pictures.png shows this many pairs.", 1)
PRESETS = {"quick": {"samples": 32}, "full": {"samples": 256}}


def main(folder):
    if FLAGS.data is None:
        raise ValueError("--data is missing: it says what the generator was trained on")
    generator, params = pulse_jax.load(FLAGS.generator, equal_start=True)
    side = generator.resolution
    area = photograph(FLAGS.data, side).train[0] / np.float32(255)
    keys = jax.random.split(jax.random.key(FLAGS.seed), FLAGS.samples)
    samples = harness.render(generator, params, *jax.vmap(generator.sample)(keys))
    crops = held_out_crops(FLAGS.data, side)

    found = folder.arrays("nearest_samples", partial(nearest_crops, samples, area))
    others = folder.arrays("nearest_held_out", partial(nearest_crops, crops, area))
    folder.table("table.csv", summarise(found["distance"], others["distance"]))
    best = np.argsort(found["distance"])[: FLAGS.shown]
    folder.picture("pictures.png", [samples[best], found["crop"][best]])


def summarise(samples, crops):
    def line(name, found):
        interval = ttest_ind(found, crops, equal_var=False).confidence_interval()
        return {
            "": name,
            "images": len(found),
            "nearest": float(found.min()),
            "mean": float(found.mean()),
            "mean − that of crops": bracketed(found.mean() - crops.mean(), *interval),
            "share nearer than all crops": float(np.mean(found < crops.min())),
        }

    return [line("samples", samples), line("held-out crops", crops)]


if __name__ == "__main__":
    harness.run(main, PRESETS)
