"""What the trainer learns from: drawn faces, crops of a photograph, or a folder of images.

Images are (N, R, R, 3) in [-1, 1], computed on the device as a function of a key. A part is held
out and never trained on: the bottom quarter of a photograph, or the last tenth of a folder. Drawn
faces need no such part.

The photographs come with scikit-image and are in the public domain: `galaxies` is the Hubble
eXtreme Deep Field (NASA, ESA), and `tissue` a section of colon with an antibody's stain.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable
from itertools import takewhile
from typing import Any, NamedTuple

from common import door, faces
from common.augment import turned

import jax
import jax.numpy as jnp
import numpy as np
import skimage.data
from absl import flags
from jax import lax
from PIL import Image, ImageOps

from pulse_jax import images
from pulse_jax.files import expanded, file_digest

FLAGS = flags.FLAGS
PHOTOGRAPHS = {
    "galaxies": skimage.data.hubble_deep_field,
    "tissue": skimage.data.immunohistochemistry,
}


class DataSet(NamedTuple):
    """Two sources of images, and how to draw from one.

    `draw(source, key, count)` → images (count, R, R, 3), and the `Attributes` of drawn faces, or
    None.
    """

    train: Any
    held_out: Any
    draw: Callable


def drawn_faces(resolution):
    """Faces, each drawn afresh. There is no end of them, and the sources differ in the keys."""

    def draw(source, key, count):
        keys = jax.random.split(jax.random.fold_in(key, source), count)
        pictures, attributes = jax.vmap(faces.face, (0, None))(keys, resolution)
        return 2 * pictures - 1, attributes

    return DataSet(np.uint32(0), np.uint32(1), draw)


def photograph(name, resolution):
    """Crops of one of `PHOTOGRAPHS` at any place, in all eight symmetries of a square."""
    picture = PHOTOGRAPHS[name]()[None]
    cut = picture.shape[1] * 3 // 4
    held_out = picture.shape[1] - cut
    if resolution > held_out:
        raise ValueError(f"--data={name}: {held_out} rows are held out, no side of {resolution}")
    return DataSet(picture[:, :cut], picture[:, cut:], crops(resolution, 8))


def folder(path, resolution):
    """The images of a folder, cropped to squares of one size, mirrored or not; kept in memory.

    The last tenth in the order of their names is held out. If there are fewer than ten, all serve
    as both. Files that can't be read are left out, as by `read_all`.
    """

    def read(path):
        picture = Image.fromarray(images.to_uint8(images.load_image(path)))
        return ImageOps.fit(picture, (resolution, resolution), Image.Resampling.LANCZOS)

    data = np.stack(read_all(path, read))
    held_out = len(data) // 10
    train, rest = (data[:-held_out], data[-held_out:]) if held_out else (data, data)
    return DataSet(train, rest, crops(resolution, 2))


def read_all(folder, read, most=math.inf):
    """`read(path)` of the images in a folder, or of the first that it can take, at `most` so many.

    Of one that it can't take, a line says so. Raises ValueError if it can take none.
    """
    found = []
    paths = takewhile(lambda _: len(found) < most, images.list_images(folder)[0])
    door.one_by_one(paths, lambda path: found.append(read(path)))
    if not found:
        raise ValueError(f"{folder}: holds no image that can be read")
    return found


def checksums(*names):
    """Of the images in each folder that these flags give, by the name that settings have for it.

    A damaged image may be mended, and then it is another setting. Who reads the images tells what
    can't be read.
    """
    found = {}
    for name in names:
        if name in FLAGS and FLAGS[name].value is not None:
            sha256 = hashlib.sha256()
            with contextlib.suppress(ValueError):  # there is no such folder
                for path in images.list_images(expanded(FLAGS[name].value))[0]:
                    with contextlib.suppress(ValueError):
                        sha256.update(file_digest(path).encode())
            found[f"SHA-256 of --{name}"] = sha256.hexdigest()
    return found


def crops(side, symmetries):
    """`draw` for a source of 8-bit pictures (N, H, W, 3). 2 symmetries are mirror images."""

    def draw(pictures, key, count):
        keys = jax.random.split(key, 4)
        corner = [
            jax.random.randint(k, (count,), 0, total - size + 1)
            for k, total, size in zip(keys, pictures.shape, (1, side, side), strict=False)
        ]

        def crop(i, y, x):
            return lax.dynamic_slice(pictures, (i, y, x, 0), (1, side, side, 3))[0]

        batch = jax.vmap(crop)(*corner)
        batch = turned(batch, jax.random.randint(keys[3], (count,), 0, symmetries))
        return batch.astype(jnp.float32) / 127.5 - 1, None

    return draw


def held_out_crops(name, resolution):
    """All crops of a photograph's held-out area that don't overlap: (N, R, R, 3) in [0, 1]."""
    area = photograph(name, resolution).held_out[0]
    rows, columns = area.shape[0] // resolution, area.shape[1] // resolution
    area = area[: rows * resolution, : columns * resolution]
    tiles = area.reshape(rows, resolution, columns, resolution, 3).swapaxes(1, 2)
    return tiles.reshape(-1, resolution, resolution, 3) / np.float32(255)
