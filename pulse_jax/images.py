"""Pictures: files through Pillow on one side, float32 arrays (H, W, 3) in [0, 1] on the other."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pulse_jax.files import one_line, write

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


class ImageError(ValueError):
    """A file or folder that can't be read or written; the message is one line that names it."""


def list_images(folder):
    """The images in a folder, as two sorted lists of paths: `(images, skipped)`.

    An image is a file whose suffix, in any case, is one of `SUFFIXES`. All else in the folder is
    skipped, hidden files and sub-folders too. Raises ImageError where the folder is missing, can't
    be read or holds no image.
    """
    images, skipped = [], []
    try:
        for entry in sorted(Path(folder).iterdir()):
            hidden = entry.name.startswith(".")
            is_image = entry.suffix.lower() in SUFFIXES and entry.is_file() and not hidden
            (images if is_image else skipped).append(entry)
    except OSError as error:
        raise ImageError(f"{folder}: can't be read: {one_line(error)}") from error
    if not images:
        raise ImageError(f"{folder}: holds no image ({', '.join(SUFFIXES)})")
    return images, skipped


def load_image(path):
    """Read a PNG, JPEG, WebP, BMP or TIFF file as float32 `(H, W, 3)` in [0, 1].

    The content decides the format, not the suffix. Of an animation or a document the first frame
    is read; the EXIF orientation is applied; colour profiles are not.

    - 8 bits a channel or fewer: v / 255; grey is repeated, palettes and CMYK become RGB.
    - transparency: composited onto white, αv + (1 − α).
    - 16-bit grey: v / 65535. Pillow keeps only the upper 8 bits of 16-bit colour.
    - float grey (TIFF): as it is.

    Raises ImageError where the file isn't such an image, is damaged or larger than
    `PIL.Image.MAX_IMAGE_PIXELS`, or its values lie outside [0, 1].
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, mostly
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # From a stream, as Pillow maps a path into memory and then garbles rotated TIFFs.
            with open(path, "rb") as stream, Image.open(stream, formats=_FORMATS) as file:
                return _to_float(ImageOps.exif_transpose(file))
    except UnidentifiedImageError as error:
        reason = "not a PNG, JPEG, WebP, BMP or TIFF image that Pillow can decode"
        raise ImageError(f"{path}: can't be read: {reason}") from error
    except Exception as error:  # on a damaged file, decoders raise whatever they stumble over
        raise ImageError(f"{path}: can't be read: {one_line(error)}") from error


def save_image(path, image):
    """Write a float image `(H, W, 3)` as an 8-bit PNG; see `to_uint8`.

    The file appears at `path` whole or not at all. Raises ImageError where the image has another
    shape or isn't finite, or the file can't be written.
    """
    try:
        if np.ndim(image) != 3 or np.shape(image)[2] != 3:
            raise ValueError(f"an image is (H, W, 3), not {np.shape(image)}")
        png = io.BytesIO()
        Image.fromarray(to_uint8(image)).save(png, format="PNG")
        write(path, png.getvalue())
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: can't be written: {one_line(error)}") from error


def to_uint8(image):
    """Clip to [0, 1] and round to the nearest of 256 levels; ValueError where not finite."""
    image = np.asarray(image, np.float64)
    if not np.isfinite(image).all():
        raise ValueError("image has values that are not finite")
    return np.rint(255 * image.clip(0, 1)).astype(np.uint8)


def resize_nearest(image, factor):
    """Repeat every pixel `factor` times along both sides: `(H, W, 3)` to `(fH, fW, 3)`."""
    return np.asarray(image).repeat(factor, axis=0).repeat(factor, axis=1)


def grid(rows):
    """Tile rows of images `(H, W, 3)` of one size into a contact sheet on white.

    Neighbours are max(1, W // 32) pixels apart; a short row is filled with white.
    """
    shapes = {np.shape(image) for row in rows for image in row}
    if len(shapes) != 1:
        raise ValueError(f"a grid takes images of one size, not {sorted(shapes)}")
    height, width, channels = shapes.pop()
    gap = max(1, width // 32)
    columns = max(len(row) for row in rows)
    down, across = height + gap, width + gap
    sheet = np.ones((len(rows) * down - gap, columns * across - gap, channels), np.float32)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            sheet[i * down : i * down + height, j * across : j * across + width] = image
    return sheet


def _to_float(image):
    """Any Pillow image as float32 `(H, W, 3)` in [0, 1]."""
    if image.mode == "F" or image.mode.startswith("I"):  # grey, with more than 8 bits
        grey = np.asarray(image, np.float32) / (1 if image.mode == "F" else 65535)
        if not (grey.min() >= 0 and grey.max() <= 1):  # NaN fails both
            raise ValueError(f"values from {grey.min():g} to {grey.max():g} lie outside [0, 1]")
        if "transparency" in image.info:  # a value of grey
            grey[np.asarray(image) == image.info["transparency"]] = 1
        return np.stack([grey] * 3, axis=-1)
    rgba = np.asarray(image.convert("RGBA"), np.float32) / 255
    colour, alpha = rgba[..., :3], rgba[..., 3:]
    return colour * alpha + (1 - alpha)
