"""What the numbers in the files of pictures mean: colours in [0, 1], as far as Pillow tells them.

`images` has what the rest of the package calls.
"""

import contextlib
import io
import re
import struct
import sys
import zlib
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from PIL import (
    ExifTags,
    Image,
    ImageCms,
    ImageFile,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from pulse_jax.files import one_line

Stream = io.BufferedReader | io.BytesIO
ValueRange = tuple[float, float] | Literal["auto"]

# Formats that Pillow registers but doesn't itself decode to the values that they mean: EPS starts
# Ghostscript, IPTC opens what is inside it as any format, MPEG is only identified, and the zero and
# the unit of FITS's numbers are left out. Where WMF isn't a stub, Windows draws it.
_NOT_DECODED = {"EPS", "FITS", "IPTC", "MPEG", "WMF"}
_HEIF_SUFFIXES = {".heic", ".heif", ".hif"}
_FITS_SUFFIXES = {".fits", ".fit", ".fts"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
# Formats of which Pillow scales grey of more than 8 bits to 16.
_GREY_16 = {"PNG", "PPM", "JPEG2000"}
# TIFF's tags.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR_CONFIGURATION, _SAMPLE_FORMAT = 258, 262, 284, 339
_UNSIGNED, _SIGNED = 1, 2  # of _SAMPLE_FORMAT
_FITS = b"SIMPLE  ="  # how such files begin
_LARGEST_PROFILE = 2**26  # bytes


class Decoded(NamedTuple):
    """A picture as its file has it, in [0, 1]."""

    colour: Float[np.ndarray, "h w 3"]  # three equal values where it is grey
    alpha: Float[np.ndarray, "h w 1"] | None  # if it has some
    orientation: int  # EXIF's, from 1 to 8: how rows and columns are to be turned


def suffixes() -> set[str]:
    """Those of the files that can be decoded, in lower case."""
    formats = {*_formats(), "MPO"}  # opened as the JPEG that it begins with
    found = {suffix for suffix, name in Image.EXTENSION.items() if name in formats}
    return found | _HEIF_SUFFIXES | _FITS_SUFFIXES


def decode(
    stream: Stream, suffix: str, value_range: ValueRange | None, notes: list[str]
) -> Decoded:
    """The picture in a file, whose name has this suffix. What is odd about it is added to `notes`.

    Raises whatever decoders stumble over where the file is damaged.
    """
    is_fits = stream.read(len(_FITS)) == _FITS
    stream.seek(0)
    values = None
    try:
        if is_fits:
            values = _read_fits(stream)
            image, tiles = Image.fromarray(values.astype(np.float32)), ""
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
        # Pillow holds float32, which is too coarse for the counts of a telescope.
        values = _stored(image, tiles) if values is None else values
        colour, alpha = _numbers(image, values, tags, value_range, notes)
    else:
        if re.search(r";16[BLN]|'RGB', \d{4}", tiles):  # PNG and TIFF, PPM
            notes.append("only the upper 8 bits of its 16-bit colours are read")
        key = image.info.get("transparency")  # as stored, where Pillow has scaled the pixels
        if isinstance(key, int) and (depth := re.search(r"'L;([24])'", tiles)):
            image.info["transparency"] = key * 255 // (2 ** int(depth[1]) - 1)
        elif isinstance(key, tuple) and ";16B" in tiles:
            image.info["transparency"] = tuple(value >> 8 for value in key)
        colour, alpha = _colours(image, notes)
    return Decoded(colour, alpha, orientation)


def stored_numbers(stream: Stream, suffix: str) -> tuple[np.ndarray, bool]:
    """The numbers in a .npy file, FITS or a picture as they are stored, and whether it is the last.

    Raises as `decode` does, and ValueError for pictures with a palette and several in one file.
    """
    head = stream.read(len(_FITS))
    stream.seek(0)
    if head.startswith(b"\x93NUMPY"):
        return np.load(stream, allow_pickle=False), False
    if head == _FITS:
        return _read_fits(stream), False
    try:
        picture, tiles = _open(stream, suffix)
    except UnidentifiedImageError as error:
        stream.seek(0)
        raise ValueError(_reason(stream, stream.read(12), error)) from error
    if picture.mode == "P":
        raise ValueError("its numbers are colours of a palette, not values")
    if (frames := getattr(picture, "n_frames", 1)) > 1:
        raise ValueError(f"it holds {frames} pictures, and a kernel is one")
    return _stored(picture, tiles), True


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


def _open(stream: Stream, suffix: str) -> tuple[Image.Image, str]:
    """A decoded Pillow image, and as text the tiles that it had before, which tell how."""
    # From a stream, since Pillow maps a path into memory and then garbles rotated TIFFs.
    image = Image.open(stream, formats=_formats(suffix))
    tiles, tags = str(image.tile), getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (1,))
    if tags.get(_PLANAR_CONFIGURATION) == 2 and len(bits) > 1 and bits[0] > 8 and "'raw'" in tiles:
        kind = f"{len(bits)} × {bits[0]} bits in planes that aren't compressed"
        raise ValueError(f"Pillow garbles a TIFF of {kind}; save it pixel by pixel, or compressed")
    image.load()
    return image, tiles


def _read_fits(stream: Stream) -> Float[np.ndarray, "h w"] | Integer[np.ndarray, "h w"]:
    """The first picture in a FITS file, with its lowest row, which is stored first, at the end."""
    try:
        from astropy.io import fits
    except ImportError as error:
        install = 'pip install "pulse_jax[fits]"'
        raise ValueError(f"a FITS picture, which takes another package: {install}") from error
    with fits.open(stream, memmap=False) as parts:
        arrays = (part.data for part in parts if part.is_image and part.data is not None)
        found = next(arrays, None)  # what follows need not be whole
    if found is None:
        raise ValueError("a FITS file without a picture")
    alone = [axis for axis, size in enumerate(found.shape) if size == 1]
    values = found.squeeze(tuple(alone[: max(found.ndim - 2, 0)]))
    if values.ndim != 2:
        raise ValueError(f"its picture has the shape {found.shape}, not two axes")
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


def _reason(stream: Stream, head: bytes, error: Exception) -> str:
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
    image: Image.Image,
    values: Float[np.ndarray, "h w"] | Integer[np.ndarray, "h w"],
    tags: Any,
    value_range: ValueRange | None,
    notes: list[str],
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w 1"] | None]:
    """Grey in [0, 1] of numbers whose meaning depends on the file, and alpha, if any."""
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
