"""Pictures as files, which Pillow reads and writes, and as float32 arrays in [0, 1]."""

import contextlib
import io
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Integer, UInt8
from PIL import (
    ExifTags,
    Image,
    ImageCms,
    ImageFile,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from pulse_jax.files import one_line, write
from pulse_jax.types import AnyArray

ValueRange = tuple[float, float] | Literal["auto"]
CHANNELS = 1, 3, 4  # that images can have: grey, colours, colours and alpha
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue: ITU-R BT.601
_Stream = io.BufferedReader | io.BytesIO

# Formats that Pillow registers but doesn't itself decode to the values that they mean: EPS starts
# Ghostscript, IPTC opens what is inside it as any format, MPEG is only identified, and the zero and
# the unit of FITS's numbers are left out. Where WMF isn't a stub, Windows draws it.
_NOT_DECODED = {"EPS", "FITS", "IPTC", "MPEG", "WMF"}
_HEIF_SUFFIXES = {".heic", ".heif", ".hif"}
_FITS_SUFFIXES = {".fits", ".fit", ".fts"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
# Formats of which Pillow scales grey of more than 8 bits to 16.
_GREY_16 = {"PNG", "PPM", "JPEG2000"}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_UNSIGNED, _SIGNED = 1, 2  # of _SAMPLE_FORMAT
_FITS = b"SIMPLE  ="  # how such files begin
_LARGEST_PROFILE = 2**26  # bytes


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
    formats = {*_formats(), "MPO"}  # opened as the JPEG that it begins with
    suffixes = {suffix for suffix, name in Image.EXTENSION.items() if name in formats}
    suffixes |= _HEIF_SUFFIXES | _FITS_SUFFIXES
    images: list[Path] = []
    skipped: list[Path] = []
    try:
        for entry in sorted(Path(folder).iterdir()):
            hidden = entry.name.startswith(".")
            is_image = entry.suffix.lower() in suffixes and entry.is_file() and not hidden
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
                image = _read(stream, Path(path).suffix.lower(), value_range, channels, notes)
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
    rounded = False
    try:
        with warnings.catch_warnings(), open(path, "rb") as stream:
            warnings.simplefilter("ignore")
            head = stream.read(len(_FITS))
            stream.seek(0)
            if head.startswith(b"\x93NUMPY"):
                values = np.load(stream, allow_pickle=False)
            elif head == _FITS:
                values = _read_fits(stream)
            else:
                try:
                    picture, tiles = _open(stream, Path(path).suffix.lower())
                except UnidentifiedImageError as error:
                    stream.seek(0)
                    raise ValueError(_reason(stream, stream.read(12), error)) from error
                if picture.mode == "P":
                    raise ValueError("its numbers are colours of a palette, not values")
                if (frames := getattr(picture, "n_frames", 1)) > 1:
                    raise ValueError(f"it holds {frames} pictures, and a kernel is one")
                values = _stored(picture, tiles)
                rounded = values.dtype.itemsize == 1
        if values.ndim != 2 or values.dtype.kind not in "fiu":
            raise ValueError(
                f"it holds {values.shape} of {values.dtype}, not a 2-D array of numbers"
            )
    except Exception as error:  # as in `load_image`
        raise ImageError(f"{path}: can't be read: {one_line(error)}") from error
    if rounded:
        told = "its 8 bits round the kernel to 256 levels, which may cut off a faint rim"
        warnings.warn(one_line(f"{path}: {told}"), ImageWarning, stacklevel=2)
    return values.astype(np.float64)


def save_image(path: str | Path, image: Float[AnyArray, "h w c"]) -> None:
    """Write an image as an 8-bit PNG of grey, colours, or colours and alpha; see `to_uint8`.

    The file appears at `path` whole or not at all. Raises ImageError if the image has another shape
    or isn't finite, if the name's end is that of another format, and if the file can't be written.
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
    """Clip to [0, 1] and round to the nearest of 256 levels. NaN or infinity raise ValueError."""
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("image has values that are not finite")
    return np.rint(255 * values.clip(0, 1)).astype(np.uint8)


def _to_pillow(image: Float[AnyArray, "h w c"]) -> Image.Image:
    """Pillow's image of 8 bits."""
    values = to_uint8(image)
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)


def on_white(image: Float[AnyArray, "h w c"]) -> Float[AnyArray, "h w 3"]:
    """An image in colours: grey is repeated, and alpha composited onto white."""
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

    Neighbours are max(1, W // 32) pixels apart. White fills up a short row.
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


def _formats(suffix: str | None = None) -> list[str]:
    """Pillow's names of the raster formats that it decodes by itself.

    With a suffix, these are the formats that a file with it may have. A format without a signature,
    which Pillow would find in many a damaged file, needs its own suffix.
    """
    with contextlib.suppress(ImportError):  # another's decoder, of HEIF, if it is installed
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    names = []
    for name in Image.ID:
        factory, has_signature = Image.OPEN[name]
        stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
        by_suffix = suffix is None or Image.EXTENSION.get(suffix) == name
        if name not in _NOT_DECODED and not stub and (has_signature or by_suffix):
            names.append(name)
    return names


def _read(
    stream: _Stream,
    suffix: str,
    value_range: ValueRange | None,
    channels: int,
    notes: list[str],
) -> Float32[np.ndarray, "h w {channels}"]:
    """The picture in a file, in [0, 1]. What is odd about it is added to `notes`."""
    is_fits = stream.read(len(_FITS)) == _FITS
    stream.seek(0)
    try:
        if is_fits:
            image, tiles = Image.fromarray(_read_fits(stream).astype(np.float32)), ""
        else:
            image, tiles = _open(stream, suffix)
    except Exception as error:
        if is_fits:
            raise
        stream.seek(0)
        head = stream.read(12)
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            bare, metadata = _bare_png(head + stream.read())
            image, tiles = _open(io.BytesIO(bare), suffix)
            image.info |= metadata
            notes.append("Pillow can't read its metadata; only EXIF and colour profile count")
        else:
            raise ValueError(_reason(stream, head, error)) from error
    orientation = _orientation(image, notes)
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    if tags and _PHOTOMETRIC not in tags and image.mode[0] in "1LIF":
        raise ValueError(
            "it doesn't say whether black or white is zero (PhotometricInterpretation)"
        )
    if image.mode == "F" or image.mode[0] == "I" or tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED:
        colour, alpha = _numbers(image, tiles, tags, value_range, notes)
    else:
        if re.search(r";16[BLN]|'RGB', \d{4}", tiles):  # PNG and TIFF, PPM
            notes.append("only the upper 8 bits of its 16-bit colours are read")
        key = image.info.get("transparency")  # as stored, where Pillow has scaled the pixels
        if isinstance(key, int) and (depth := re.search(r"'L;([24])'", tiles)):
            image.info["transparency"] = key * 255 // (2 ** int(depth[1]) - 1)
        elif isinstance(key, tuple) and ";16B" in tiles:
            image.info["transparency"] = tuple(value >> 8 for value in key)
        colour, alpha = _colours(image, notes)
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


def _open(stream: _Stream, suffix: str) -> tuple[Image.Image, str]:
    """A decoded Pillow image, and as text the tiles that it had before, which tell how."""
    # From a stream, since Pillow maps a path into memory and then garbles rotated TIFFs.
    image = Image.open(stream, formats=_formats(suffix))
    tiles = str(image.tile)
    image.load()
    return image, tiles


def _read_fits(stream: _Stream) -> Float[np.ndarray, "h w"] | Integer[np.ndarray, "h w"]:
    """The first picture in a FITS file, with its lowest row, which is stored first, at the end."""
    try:
        from astropy.io import fits
    except ImportError as error:
        install = 'pip install "pulse_jax[fits]"'
        raise ValueError(f"a FITS picture, which takes another package: {install}") from error
    with fits.open(stream, memmap=False) as parts:
        arrays = [part.data for part in parts if part.is_image and part.data is not None]
    if not arrays:
        raise ValueError("a FITS file without a picture")
    values = np.squeeze(arrays[0])
    if values.ndim != 2:
        raise ValueError(f"its picture has the shape {arrays[0].shape}, not two axes")
    return values[::-1]


def _bare_png(content: bytes) -> tuple[bytes, dict[Any, bytes]]:
    """The part of a PNG file that makes its pixels, as a file, and its profile and EXIF block.

    Pillow refuses files with large or damaged chunks of metadata.
    """
    kept, metadata, start = [content[:8]], dict[Any, bytes](), 8
    while start + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        data = content[start + 8 : end - 4]
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append(content[start:end])
        elif kind == b"eXIf":
            metadata["exif"] = b"Exif\0\0" + data
        elif kind == b"iCCP":
            with contextlib.suppress(zlib.error):
                compressed = data.partition(b"\0")[2][1:]
                profile = zlib.decompressobj().decompress(compressed, _LARGEST_PROFILE)
                metadata["icc_profile"] = profile
        start = end
    return b"".join(kept), metadata


def _reason(stream: _Stream, head: bytes, error: Exception) -> str:
    """Why a file can't be read."""
    if head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS:
        return "a HEIF picture, which takes another package: pip install pillow-heif"
    if not isinstance(error, UnidentifiedImageError):
        return one_line(error)
    if head[:2] in (b"II", b"MM"):
        with contextlib.suppress(Exception):  # no TIFF after all
            tags = TiffImagePlugin.ImageFileDirectory_v2(head[:8])
            stream.seek(tags.next)
            tags.load(stream)
            bits, kinds = tags.get(_BITS_PER_SAMPLE, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
            kind = {1: "unsigned", 2: "signed", 3: "float"}.get(kinds[0], "unknown")
            white = ", in which white is zero" * (tags[_PHOTOMETRIC] == 0)
            return (
                f"Pillow can't decode a TIFF of {len(bits)} × {bits[0]} bits ({kind}, "
                f"{'big' if head[:2] == b'MM' else 'little'}-endian){white}; "
                f"save it with 8 or 16 bits"
            )
    return "not a picture that Pillow can decode"


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """EXIF's, from 1 to 8; of a TIFF Pillow has applied it."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as with damaged pixels
        notes.append("its EXIF block can't be read and is ignored")
        return 1
    return value if isinstance(value, int) and value in range(1, 9) else 1


def _numbers(
    image: Image.Image, tiles: str, tags: Any, value_range: ValueRange | None, notes: list[str]
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w 1"] | None]:
    """Grey in [0, 1] of numbers whose meaning depends on the file, and alpha, if any."""
    values = _stored(image, tiles)
    bits, kind = tags.get(_BITS_PER_SAMPLE, (16,))[0], tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0]
    transparent = image.info.get("transparency")
    alpha = None if transparent is None else (values != transparent).astype(np.float32)[..., None]

    lowest, highest = float(values.min()), float(values.max())
    found = f"values from {lowest:g} to {highest:g}"
    scaled = "--value_range=LOW,HIGH or --value_range=auto scales them"
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    if value_range is not None:
        low, high = (lowest, highest) if value_range == "auto" else value_range
        if not low < high:
            raise ValueError(f"a range of values from {low:g} to {high:g} is empty")
        outside = int(((values < low) | (values > high)).sum())
        if outside:
            notes.append(f"{outside} of its {values.size} values are clipped; {found} were there")
    elif image.mode == "F":
        low, high = 0, 1
        if lowest < 0 or highest > 1:
            raise ValueError(f"its {found} lie outside [0, 1]; {scaled}")
    elif (tags and kind == _UNSIGNED) or image.format in _GREY_16:
        low, high = 0, 2**bits - 1
    else:
        raise ValueError(f"it doesn't say which of its {found} are black and white; {scaled}")
    grey = np.clip((np.float64(values) - low) / (high - low), 0, 1)
    if tags and tags[_PHOTOMETRIC] == 0:
        grey = 1 - grey
    if value_range is None and highest < high / 4:
        notes.append(f"its {found} are less than a quarter of what it can hold ({high}); {scaled}")
    levels = np.arange(256, dtype=np.uint8)
    curve = None
    if value_range is None:
        curve = _in_srgb(Image.fromarray(levels[None]), image.info.get("icc_profile"), notes)
    curves = levels[:, None].repeat(3, axis=1) if curve is None else np.asarray(curve)[0]
    return np.stack([np.interp(255 * grey, levels, c / 255) for c in curves.T], axis=-1), alpha


def _stored(
    image: Image.Image, tiles: str
) -> Float[np.ndarray, "h w *channels"] | Integer[np.ndarray, "h w *channels"]:
    """The numbers of a picture as its file has them, which Pillow reads as other types."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    bits, kind = tags.get(_BITS_PER_SAMPLE, (16,))[0], tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0]
    if tags and kind == _UNSIGNED and bits == 32:
        return values.view(np.uint32)
    if tags and kind == _SIGNED and bits == 8:
        return values.view(np.int8)
    if "libtiff" in tiles and re.search(r";\d\dB[SF]", tiles) and sys.byteorder == "little":
        # Pillow forgets to where the values were compressed.
        return (values.astype(np.int16) if bits == 16 else values).byteswap()
    return values


def _colours(
    image: Image.Image, notes: list[str]
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w 1"] | None]:
    """Colour in [0, 1] of any other image, and alpha, if any."""
    rgba = image.convert("RGBA")
    opaque = image if image.mode == "CMYK" else rgba.convert("RGB")
    if image.mode in ("1", "L", "LA", "La"):
        opaque = opaque.convert("L")
    converted = _in_srgb(opaque, image.info.get("icc_profile"), notes)
    colour = np.asarray(rgba.convert("RGB") if converted is None else converted, np.float32) / 255
    if not image.has_transparency_data:
        return colour, None
    return colour, np.asarray(rgba.getchannel("A"), np.float32)[..., None] / 255


def _in_srgb(image: Image.Image, icc: bytes | None, notes: list[str]) -> Image.Image | None:
    """An image of mode L, RGB or CMYK converted from a colour profile; None if it can stay.

    It stays if there is no profile that can be used, or if no value would change by more than one
    level, so that values with sRGB's profile are kept to the bit.
    """
    if not icc:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        space = profile.profile.xcolor_space.strip()
        mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}[space]
        if image.mode != mode:
            if (image.mode, mode) != ("L", "RGB"):
                raise ValueError(f"it is for {space}")
            image = image.convert("RGB")
        convert = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        converted = convert.apply(image)
        if mode != "CMYK":
            change = np.asarray(converted, int) - np.asarray(image.convert("RGB"))
            if np.abs(change).max() <= 1:
                return None
        return converted
    except Exception as error:  # as with damaged pixels
        notes.append(f"its colour profile can't be used and is ignored ({one_line(error)})")
        return None
