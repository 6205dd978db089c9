"""Make samples.png of the model cards: what a generator draws, before any search.

    python experiments/sample_picture.py --generator=decoder64

Samples of a StyleGAN come out of its mapping network, with one style for all layers and with noise.
None is left out. They are enlarged twice if the side is below 64.
"""

from common import door
from common.metrics import render

import jax
from absl import flags

import pulse_jax
from pulse_jax import images
from pulse_jax.files import expanded
from pulse_jax.generators import checkpoint, style_generator
from pulse_jax.generators.diffusion import DiffusionModel, diffusion_generator

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "generator", pulse_jax.Settings.generator, "The samples are those of this generator."
)
flags.DEFINE_integer("rows", 8, "The picture has so many rows of samples.", 1, 100)
flags.DEFINE_integer("columns", 8, "Each row has so many samples.", 1, 100)
flags.DEFINE_integer("seed", 0, "The samples depend on this number.", **door.SEED)
flags.DEFINE_string("output", "runs/samples.png", "The picture is written into this file.")


def main():
    path = expanded(FLAGS.output, "--output")
    network, params = checkpoint.load_network(FLAGS.generator, "z")
    if isinstance(network, DiffusionModel):
        generator = diffusion_generator(network)
    else:
        generator = style_generator(network, space="z", equal_start=True, zero_noise_layers=())
    keys = jax.random.split(jax.random.key(FLAGS.seed), FLAGS.rows * FLAGS.columns)
    samples = render(generator, params, *jax.vmap(generator.sample)(keys))
    rows = samples.reshape(FLAGS.rows, FLAGS.columns, *samples.shape[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = images.grid(rows)
    images.save_image(path, images.resize_nearest(sheet, 2) if generator.resolution < 64 else sheet)
    return path


if __name__ == "__main__":
    door.run(main)
