"""Pictures as files, which Pillow reads and writes, and as float32 arrays in [0, 1]."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

from pulse_jax.decoding import ValueRange as ValueRange
from pulse_jax.decoding import decode, stored_numbers, suffixes
from pulse_jax.files import one_line, write
from pulse_jax.types import AnyArray

CHANNELS = 1, 3, 4  # that images can have: grey, colours, colours and alpha
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue: ITU-R BT.601


class ImageError(ValueError):
    """A file or folder that can't be read or written; the message is one line that names it."""


class ImageWarning(UserWarning):
    """A picture was read, but is odd; the message is one line that names its file and says how."""


def list_images(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """The images in a folder and what else is in it, sorted: `(images, skipped)`.

    An image is a file whose suffix, in upper or lower case, belongs to a raster format that Pillow
    decodes by itself, or to HEIF. All else in the folder is skipped, and so are hidden files and
    sub-folders. Raises ImageError if the folder is missing, can't be read or holds no image.
    """
    known = suffixes()
    images: list[Path] = []
    skipped: list[Path] = []
    try:
        for entry in sorted(Path(folder).iterdir()):
            hidden = entry.name.startswith(".")
            is_image = entry.suffix.lower() in known and entry.is_file() and not hidden
            (images if is_image else skipped).append(entry)
    except OSError as error:
        raise ImageError(f"{folder}: can't be read: {one_line(error)}") from error
    if not images:
        raise ImageError(f"{folder}: holds no image that can be read, such as a PNG or a JPEG")
    return images, skipped


def load_image(
    path: str | Path, value_range: ValueRange | None = None, channels: int = 3
) -> Float32[np.ndarray, "h w {channels}"]:
    """Read a picture, in [0, 1], with as many of the `CHANNELS`.

    It reads all raster formats that Pillow decodes without starting another program. The content
    decides the format, not the suffix. An animation or a document is read as its first frame. The
    EXIF orientation is applied. An embedded colour profile other than sRGB is converted to sRGB.

    - Up to 8 bits a channel become v / 255. Grey is repeated, and palettes and CMYK become RGB.
      Pillow keeps the upper 8 bits of deeper colour.
    - Transparency is composited onto white, αv + (1 − α). An alpha that is 0 everywhere is ignored.
    - Grey of unsigned integers of B > 8 bits becomes v / (2ᴮ − 1).
    - Grey of floats (TIFF, PFM) stays as it is, and all numbers of FITS (with the extra `fits`),
      whose lowest row is stored first.
    - TIFFs in which white is zero become 1 − x.
    - With one channel, colours become their luma, and grey isn't repeated.
    - With four, the alpha is kept in place of being composited. It is 1 in a picture without.

    `value_range` is for grey of more than 8 bits, or with a sign. It gives the stored values (low,
    high) that become 0 and 1, and values beyond them are clipped. With "auto", these are the lowest
    and the highest of the picture. Colour profiles are then ignored.

    Issues one `ImageWarning` for a picture that is odd: its metadata can't be read, an alpha was
    ignored, or its values use little of their range. Raises ImageError if the file isn't such an
    image, is damaged or is larger than `PIL.Image.MAX_IMAGE_PIXELS`. It also does so if the file
    doesn't say which values are black and white, as with signed integers or floats outside [0, 1].
    """
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, mostly
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open(path, "rb") as stream:
                decoded = decode(stream, Path(path).suffix.lower(), value_range, notes)
            image = _in_channels(*decoded, channels, notes)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        most = f"{(Image.MAX_IMAGE_PIXELS or 0) / 1e6:.3g} megapixels"
        raise ImageError(
            f"{path}: can't be read: it has more than {most}, Pillow's limit against files that "
            "fill the memory: reduce or cut it first, or raise PIL.Image.MAX_IMAGE_PIXELS in Python"
        ) from error
    except Exception as error:  # on a damaged file, decoders raise whatever they stumble over
        raise ImageError(f"{path}: can't be read: {one_line(error)}") from error
    if notes:
        warnings.warn(one_line(f"{path}: {'; '.join(notes)}"), ImageWarning, stacklevel=2)
    return image


def _in_channels(
    colour: Float[np.ndarray, "_ _ 3"],
    alpha: Float[np.ndarray, "_ _ 1"] | None,
    orientation: int,
    channels: int,
    notes: list[str],
) -> Float32[np.ndarray, "h w {channels}"]:
    """What was decoded, upright, and with so many channels. What is lost is added to `notes`."""
    if channels == 4:
        alpha = np.ones_like(colour[..., :1]) if alpha is None else alpha
        colour = np.concatenate([colour, alpha], axis=-1)
    elif alpha is not None and not alpha.any():
        notes.append("its alpha channel is 0 everywhere and is ignored")
    elif alpha is not None:
        colour = colour * alpha + (1 - alpha)
    if channels == 1:
        is_grey = (colour == colour[..., :1]).all()
        colour = colour[..., :1] if is_grey else (colour @ LUMA)[..., None]
        notes.extend([] if is_grey else ["its colours become grey"])
    if orientation > 4:
        colour = colour.swapaxes(0, 1)
    down, across = ((1, 1), (1, -1), (-1, -1), (-1, 1))[(orientation - 1) % 4]
    return np.ascontiguousarray(colour[::down, ::across], np.float32)


def load_mask(path: str | Path) -> Bool[np.ndarray, "h w"]:
    """Read a picture as a mask, True where it is white: where the mean of its channels exceeds ½.

    Raises ImageError as `load_image` does.
    """
    return load_image(path).mean(axis=-1) > 0.5


def load_kernel(path: str | Path) -> Float[np.ndarray, "h w"]:
    """Read a 2-D array of numbers as they are stored: of a .npy file, FITS, or a grey picture.

    FITS has its lowest row first, and it becomes the last. Issues an `ImageWarning` for a picture
    of 8 bits. Raises ImageError if the file can't be read, or holds another array or several
    pictures.
    """
    try:
        with warnings.catch_warnings(), open(path, "rb") as stream:
            warnings.simplefilter("ignore")
            values, is_picture = stored_numbers(stream, Path(path).suffix.lower())
        if values.ndim != 2 or values.dtype.kind not in "fiu":
            raise ValueError(
                f"it holds {values.shape} of {values.dtype}, not a 2-D array of numbers"
            )
    except Exception as error:  # as in `load_image`
        raise ImageError(f"{path}: can't be read: {one_line(error)}") from error
    if is_picture and values.dtype.itemsize == 1:
        told = "its 8 bits round the kernel to 256 levels, which may cut off a faint rim"
        warnings.warn(one_line(f"{path}: {told}"), ImageWarning, stacklevel=2)
    return values.astype(np.float64)


def save_image(path: str | Path, image: Float[AnyArray, "h w c"]) -> None:
    """Write an image as an 8-bit PNG of grey, colours, or colours and alpha; see `to_uint8`.

    The file appears at `path` whole or not at all. Raises ImageError if the image has another
    shape, has integers or isn't finite, if the name's end is that of another format, and if the
    file can't be written.
    """
    try:
        suffix = Path(path).suffix.lower()
        if (kind := Image.registered_extensions().get(suffix, "PNG")) != "PNG":
            raise ValueError(f"it would be a PNG, and {suffix} is for {kind}: name it .png")
        if np.ndim(image) != 3 or np.shape(image)[2] not in CHANNELS:
            raise ValueError(f"an image is (H, W, 1, 3 or 4), not {np.shape(image)}")
        png = io.BytesIO()
        _to_pillow(image).save(png, format="PNG")
        write(path, png.getvalue())
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: can't be written: {one_line(error)}") from error


def to_uint8(image: Float[AnyArray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Clip to [0, 1] and round to the nearest of 256 levels.

    NaN or infinity raise ValueError, and so do integers.
    """
    check_floats(image)
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("image has values that are not finite")
    return np.rint(255 * values.clip(0, 1)).astype(np.uint8)


def check_floats(image: AnyArray) -> None:
    """Raises ValueError for an image of integers, such as 0 to 255: all above 1 would be white."""
    if (kind := np.asarray(image).dtype).kind in "biu":
        raise ValueError(f"an image has floats in [0, 1], not {kind}")


def _to_pillow(image: Float[AnyArray, "h w c"]) -> Image.Image:
    """Pillow's image of 8 bits."""
    values = to_uint8(image)
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)


def on_white(image: Float[AnyArray, "h w c"]) -> Float[AnyArray, "h w 3"]:
    """An image in colours: grey is repeated, and alpha composited onto white.

    Raises ValueError for one of integers.
    """
    check_floats(image)
    colour, alpha = image[..., :3], image[..., 3:]
    if alpha.shape[2]:
        colour = colour * alpha + (1 - alpha)
    return np.asarray(colour).repeat(3 // colour.shape[2], axis=2)


def resize(
    image: Float[AnyArray, "h w c"], side: int, resampling: Image.Resampling
) -> Float[np.ndarray, "{side} {side} c"]:
    """An image resized by Pillow, with 8 bits."""
    resized = np.asarray(_to_pillow(image).resize((side, side), resampling))
    return resized.reshape(side, side, -1) / 255


def resize_nearest(
    image: Float[AnyArray, "h w c"], factor: int
) -> Float[np.ndarray, "{factor}*h {factor}*w c"]:
    """Repeat every pixel `factor` times along both sides."""
    return np.asarray(image).repeat(factor, axis=0).repeat(factor, axis=1)


def resample(
    image: Float[AnyArray, "_ _ c"], height: int, width: int, kernel: str
) -> Float32[np.ndarray, "{height} {width} c"]:
    """An image resized by Pillow, without rounding; antialiased where it becomes smaller.

    The kernel, "bicubic", "lanczos" or "area", is as wide as the larger pixels. What it lacks
    beyond the border is left out. The values may overshoot their range.
    """
    resampling = Image.Resampling[{"area": "BOX"}.get(kernel, kernel.upper())]
    channels = np.moveaxis(np.asarray(image, np.float32), -1, 0)
    resized = [Image.fromarray(channel).resize((width, height), resampling) for channel in channels]
    return np.stack([np.asarray(channel) for channel in resized], axis=-1)


def grid(rows: Sequence[Sequence[Float[AnyArray, "_ _ _"]]]) -> Float32[np.ndarray, "h w c"]:
    """Tile rows of images of one size into a contact sheet on white.

    Neighbours are max(1, W // 32) pixels apart. White fills up a short row. Raises ValueError for
    images of several sizes, or of integers.
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
            check_floats(image)
            sheet[i * down : i * down + height, j * across : j * across + width] = image
    return sheet
