"""Draw faces, and the small pictures that they downscale to.

    python experiments/draw_faces.py --output_dir=runs/faces --count=4 --factor=8

Writes truth/face_01.png … and input/face_01.png …, whose side is size / factor, and sheet.png with
all faces side by side. Different seeds give different faces. The examples of checkpoints/faces64
are the inputs with the default flags, and checkpoints/faces.png is the sheet with --count=64
--size=128.
"""

import math

from common import door
from common.faces import album

import jax
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax import images
from pulse_jax.files import expanded

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", "runs/faces", "The pictures are written into this folder.")
flags.DEFINE_integer("count", 4, "This many faces are drawn.", lower_bound=1)
flags.DEFINE_integer("size", 64, "The faces have this side.", **door.SIDE)
flags.DEFINE_integer("factor", 8, "The small pictures are smaller by this factor.", lower_bound=1)
flags.DEFINE_string("operator", "bicubic", "Faces are degraded in this way, as in blur:2,bicubic.")
flags.DEFINE_integer(
    "seed", 2003, "The faces depend on this number. The trainer draws its own with 0.", **door.SEED
)
MOST = 2**28  # pixels of all faces together, which take a dozen bytes each


def main():
    if FLAGS.count * FLAGS.size**2 > MOST:
        told = f"--count={FLAGS.count} faces of --size={FLAGS.size}"
        raise ValueError(f"{told} have more than {MOST} pixels")
    operator = pulse_jax.operators.parse(FLAGS.operator)(FLAGS.factor)
    keys = jax.random.split(jax.random.key(FLAGS.seed), FLAGS.count)
    faces = album(keys, FLAGS.size)
    for kind, pictures in (("truth", faces), ("input", jax.vmap(operator)(faces))):
        folder = expanded(FLAGS.output_dir, "--output_dir") / kind
        folder.mkdir(parents=True, exist_ok=True)
        for k, picture in enumerate(np.asarray(pictures), 1):
            images.save_image(folder / f"face_{k:02d}.png", picture)
    columns = math.isqrt(FLAGS.count)
    rows = [faces[k : k + columns] for k in range(0, FLAGS.count, columns)]
    images.save_image(expanded(FLAGS.output_dir, "--output_dir") / "sheet.png", images.grid(rows))
    return FLAGS.output_dir


if __name__ == "__main__":
    door.run(main)
