"""Make README's first picture, and search.png of the model cards.

    python experiments/search_picture.py

The command upsamples the generator's examples with seed 0. The picture has a row for each, with the
input, its bicubic enlargement, and eight results. They are enlarged twice if the side is below 128.
It takes as long as the command, less than a minute on two cores with the default generator.
"""

import tempfile

from common import door

import numpy as np
from absl import flags

import pulse_jax
from pulse_jax import images
from pulse_jax.console import use_cores
from pulse_jax.files import expanded

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "generator", pulse_jax.Settings.generator, "The examples of this generator are upsampled."
)
flags.DEFINE_float("style_spread", None, "The search has this setting of the command.", 0, 1)
flags.DEFINE_float("eps", pulse_jax.Settings.eps, "The search has this setting of the command.", 0)
flags.DEFINE_string(
    "loss_str", pulse_jax.Settings.loss_str, "The search has this setting of the command."
)
flags.DEFINE_string("output", "runs/search.png", "The picture is written into this file.")
GAP = ((0, 2), (0, 0), (0, 0))


def main():
    use_cores()  # as the command does, for the same bytes
    names = "generator", "style_spread", "eps", "loss_str"
    named = {name: FLAGS[name].value for name in names}
    with tempfile.TemporaryDirectory() as folder:
        results = pulse_jax.upsample(None, folder, pulse_jax.Settings(**named, seeds=(0,)))
        grids = [images.load_image(picture.place / "grid.png") for picture in results.pictures]
    rows = np.concatenate([np.pad(grid, GAP, constant_values=1) for grid in grids])[:-2]
    if len(grids[0]) < 128:
        rows = images.resize_nearest(rows, 2)
    path = expanded(FLAGS.output, "--output")
    path.parent.mkdir(parents=True, exist_ok=True)
    images.save_image(path, rows)
    return path


if __name__ == "__main__":
    door.run(main)
