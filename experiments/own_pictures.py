"""What does a search come to for pictures of the generator's own? The command compares with it.

    python experiments/own_pictures.py --sides=16,8

Pictures are drawn from the generator and downscaled, and upsampled with the command's defaults.
own_pictures.json beside the generator's weights keeps the l2 and the steps of their restarts and,
if the generator has a discriminator, the scores that it gives their images. If those of another
picture are far off, the command says that it is unlike what the generator knows. A side takes some
minutes on one core.
"""

import json

from common import door

import jax
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax.files import write
from pulse_jax.generators.checkpoint import comes_with, find
from pulse_jax.images import to_uint8
from pulse_jax.upsampling import familiarity
from pulse_jax.upsampling.parts import make_generator

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "generator", pulse_jax.Settings.generator, "This generator's own pictures are measured."
)
flags.DEFINE_list("sides", ["16"], "They are downscaled to each of these sides.")
flags.DEFINE_integer("pictures", 12, "So many are drawn.", lower_bound=2)
flags.DEFINE_integer("seed", 0, "They depend on this number.", **door.SEED)


def main():
    settings = pulse_jax.Settings(generator=FLAGS.generator, seeds=(FLAGS.seed,))
    path = find(FLAGS.generator, "--generator") / familiarity.FILE
    judged = comes_with(FLAGS.generator, "discriminator")
    score = familiarity.make_score(FLAGS.generator) if judged else None
    found = json.loads(path.read_text()) if path.is_file() else {}
    measured = []

    def measure(side):
        pictures = draw(settings, side)
        results = pulse_jax.upsample(pictures, None, settings)
        for picture in results.pictures if score else ():
            familiarity.note_scores(picture, score)
        figures = [familiarity.measure(p, settings.steps) for p in results.pictures]
        found[side] = familiarity.summarise(figures)
        print(f"{side}: {found[side]}", flush=True)
        write(path, json.dumps(found, indent=2) + "\n")
        measured.append(side)

    door.one_by_one(FLAGS.sides, measure)
    return path if measured else None


def draw(settings, side):
    """Pictures of the generator's own, downscaled as 8-bit files."""
    generator, params = make_generator(settings)
    if not side.isdecimal() or int(side) == 0 or generator.resolution % int(side):
        raise ValueError(f"--sides={side} does not divide the generator's {generator.resolution}")
    operator = settings.degradation()(generator.resolution // int(side))

    @jax.jit
    def picture(params, key):
        return operator(generator.synthesize(params, *generator.sample(key)).clip(0, 1))

    keys = jax.random.split(jax.random.key(FLAGS.seed), FLAGS.pictures)
    return [to_uint8(picture(params, key)).astype(np.float32) / 255 for key in keys]


if __name__ == "__main__":
    door.run(main)
