"""Write the crops of a photograph that no generator was trained on, as PNG files.

    python experiments/crop_held_out.py --data=galaxies --output_dir=runs/galaxies/held_out

The crops don't overlap. Other experiments take the folder as --images, with
--generator=galaxies64 or tissue64. At a side of 64 there are 45 of galaxies and 16 of tissue.
"""

from common import door
from common.data import PHOTOGRAPHS, held_out_crops

from absl import flags

from pulse_jax import images
from pulse_jax.files import expanded

FLAGS = flags.FLAGS
flags.DEFINE_enum("data", "galaxies", list(PHOTOGRAPHS), "This photograph is cropped.")
flags.DEFINE_string("output_dir", "runs/held_out", "The crops are written into this folder.")
flags.DEFINE_integer("resolution", 64, "The crops have this side.", **door.SIDE)


def main():
    folder = expanded(FLAGS.output_dir, "--output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    for k, crop in enumerate(held_out_crops(FLAGS.data, FLAGS.resolution), 1):
        images.save_image(folder / f"{FLAGS.data}_{k:03d}.png", crop)
    return folder


if __name__ == "__main__":
    door.run(main)
