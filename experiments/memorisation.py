"""Does a generator repeat parts of the photograph, or the pictures, that it was trained on?

    python experiments/memorisation.py --generator=tissue64 --data=tissue --preset=full
    python experiments/memorisation.py --generator=earth64 --data_dir=runs/earth/train \\
        --images=runs/earth/held_out --inputs=93 --preset=full

Each sample is compared with all crops of the training area, at every place and in all eight
symmetries of a square, and so are crops of the held-out area. With --data_dir, they are compared
with the pictures of that folder, and so are those of --images. A distance is the root mean square
difference to the nearest of them, over the standard deviation of the image: 0 is a copy, and about
1 is what an image of one colour has. Samples of a generator that repeats its data are nearer to the
data than held-out crops are.

Means are compared with a 95% interval (Welch). Writes table.csv, rows of all images in cells/, and
pictures.png: the samples that are nearest to the data, and below each the crop that it is near to.
--preset=quick: 32 samples; full: 256. --inputs is the number of pictures of --images.
"""

from functools import partial

from common import harness
from common.data import PHOTOGRAPHS, held_out_crops, photograph, read_all
from common.metrics import bracketed, nearest_crops, nearest_pictures, render

import jax
import numpy as np
from absl import flags
from scipy.stats import ttest_ind

import pulse_jax
from pulse_jax import images
from pulse_jax.files import expanded

FLAGS = flags.FLAGS
flags.DEFINE_enum("data", None, list(PHOTOGRAPHS), "The generator was trained on this photograph.")
flags.DEFINE_string("data_dir", None, "The generator was trained on the pictures in this folder.")
flags.DEFINE_integer("samples", None, "Without it, the preset chooses the number of samples.", 2)
flags.DEFINE_integer("shown", 8, "pictures.png shows this many pairs.", 1)
PRESETS = {"quick": {"samples": 32, "inputs": 8}, "full": {"samples": 256, "inputs": 64}}


def main(folder):
    if (FLAGS.data is None) == (FLAGS.data_dir is None):
        raise ValueError("--data or --data_dir says what the generator was trained on")
    if (FLAGS.data_dir is None) != (FLAGS.images is None):
        raise ValueError("--data_dir goes with --images: pictures that weren't trained on")
    generator, params = pulse_jax.load(FLAGS.generator, equal_start=True)
    nearest, crops = against(generator.resolution)
    keys = jax.random.split(jax.random.key(FLAGS.seed), FLAGS.samples)
    samples = render(generator, params, *jax.vmap(generator.sample)(keys))

    found = folder.arrays("nearest_samples", partial(nearest, samples))
    others = folder.arrays("nearest_held_out", partial(nearest, crops))
    folder.table("table.csv", summarise(found["distance"], others["distance"]))
    best = np.argsort(found["distance"])[: FLAGS.shown]
    folder.picture("pictures.png", [samples[best], found["crop"][best]])


def against(side):
    """`nearest(batch)` among what the generator was trained on, and what it wasn't trained on."""
    if FLAGS.data:
        area = photograph(FLAGS.data, side).train[0] / np.float32(255)
        return partial(nearest_crops, area=area), held_out_crops(FLAGS.data, side)

    def read(path):
        picture = images.load_image(path)
        if picture.shape != (side, side, 3):
            raise ValueError(f"{path} is no colour picture of {side}×{side} pixels")
        return picture

    pictures = read_all(expanded(FLAGS.data_dir, "--data_dir"), read)
    return partial(nearest_pictures, pictures=np.stack(pictures)), harness.held_out(side)


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
