"""Every kind of file is written here, with Pillow where it can, then read and compared by pixel."""

import contextlib
import io
import os
import re
import struct
import subprocess
import sys
import types
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import DATA
from PIL import Image, ImageCms, PngImagePlugin

from pulse_jax import images
from pulse_jax.images import (
    ImageError,
    ImageWarning,
    list_images,
    load_image,
    load_kernel,
    on_white,
    save_image,
)

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
GREY16 = np.random.default_rng(1).integers(0, 65536, (4, 6)).astype(np.uint16)
ORIENTATION = 0x0112  # the EXIF tag
# What is told is expected.
pytestmark = pytest.mark.filterwarnings("error::pulse_jax.images.ImageWarning")
several_formats = pytest.mark.parametrize(
    "name, options", [("a.png", {}), ("a.tif", {}), ("a.webp", {"lossless": True})]
)
UPRIGHT = {  # what a viewer does to the stored pixels, for each of its values
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


def mode(path):
    with Image.open(path) as file:
        return file.mode


def with_mode(mode, pixels):
    return Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())


def check(path, expected, atol=1e-7, **options):
    """The file reads as `expected`, an image or (H, W) grey."""
    image = load_image(path, **options)
    assert image.dtype == np.float32
    expected = np.asarray(expected)
    if expected.ndim == 2:
        expected = np.stack([expected] * 3, axis=-1)
    assert image.shape == expected.shape
    np.testing.assert_allclose(image, expected, rtol=0, atol=atol)


def rejected(path, *reasons, **options):
    """Reading fails with one line: the file's name and the reasons."""
    with pytest.raises(ImageError) as raised:
        load_image(path, **options)
    message = str(raised.value)
    assert message.startswith(f"{path}: can't be read: ") and "\n" not in message
    assert all(reason in message for reason in reasons), message


def told(path, *notes):
    """A context in which just one line is told of the file, with these notes."""
    return pytest.warns(ImageWarning, match=rf"^{re.escape(str(path))}: .*{'.*'.join(notes)}")


@contextlib.contextmanager
def untold():
    """A context in which what is told doesn't matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        yield


def tiff(values, bits=16, kind=1, order="<", photometric=1, compressed=False, data=None):
    """A TIFF of grey (H, W); `data`: its pixels, where they are packed. No tag that is None."""
    height, width = values.shape
    if data is None:
        letter = {1: "u", 2: "i", 3: "f"}[kind]
        data = values.astype(f"{order}{letter}{bits // 8}").tobytes()
    data = zlib.compress(data) if compressed else data
    tags = {256: width, 257: height, 258: bits, 259: 8 if compressed else 1, 262: photometric}
    tags |= {273: 8, 277: 1, 278: height, 279: len(data), 339: kind}
    tags = {tag: value for tag, value in tags.items() if value is not None}
    entries = [struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items()]
    data += bytes(len(data) % 2)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8 + len(data))
    count = struct.pack(order + "H", len(entries))
    return head + data + count + b"".join(entries) + bytes(4)


def png_chunk(kind, content):
    checksum = zlib.crc32(kind + content).to_bytes(4)
    return len(content).to_bytes(4) + kind + content + checksum


def png(width, height, bits, kind, rows, key=None):
    """A PNG of rows as they are stored; `key`: what is transparent."""
    content = png_chunk(b"IHDR", struct.pack(">II5B", width, height, bits, kind, 0, 0, 0))
    content += png_chunk(b"tRNS", key) if key else b""
    content += png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def png_with(chunk):
    """A PNG of RGB with one more chunk before its pixels."""
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    return file.getvalue()[:33] + chunk + file.getvalue()[33:]


def icc_profile(space, connection, tags):
    """A colour profile, version 2: of these four-letter tags."""
    table, content = struct.pack(">I", len(tags)), b""
    start = 132 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(content), len(data))
        content += data + bytes(-len(data) % 4)
    size = start + len(content)
    d50 = struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    head = struct.pack(
        ">I4sI4s4s4s12x4s", size, b"", 0x02400000, b"prtr", space, connection, b"acsp"
    )
    head = (head + bytes(28) + d50).ljust(128, b"\0")
    return head + table + content


def xyz(*values):
    return struct.pack(">4s4x3i", b"XYZ ", *(round(65536 * value) for value in values))


WHITE_POINT = xyz(0.9642, 1, 0.8249)
LINEAR_GREY = icc_profile(
    b"GRAY", b"XYZ ", {b"wtpt": WHITE_POINT, b"kTRC": struct.pack(">4s4xI", b"curv", 0)}
)
IDENTITY = struct.pack(">9i", *[65536 * (i % 4 == 0) for i in range(9)])
RAMP = bytes(range(256))
# Where ink is, L* = 50; else 100. Between them it is linear.
INKS = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + IDENTITY + 4 * RAMP
INKS += bytes([255, 128, 128]) + 15 * bytes([128, 128, 128]) + 3 * RAMP
GREY_INKS = icc_profile(b"CMYK", b"Lab ", {b"wtpt": WHITE_POINT, b"A2B0": INKS})


# As cameras write it: of version 2, its curve a table, its primaries rounded.
TABLE = np.linspace(0, 1, 1024)
TABLE = np.where(TABLE <= 0.04045, TABLE / 12.92, ((TABLE + 0.055) / 1.055) ** 2.4)
CURVE = struct.pack(">4s4xI", b"curv", 1024) + np.rint(65535 * TABLE).astype(">u2").tobytes()
PRIMARIES = {
    b"rXYZ": xyz(0.43607, 0.22249, 0.01392),
    b"gXYZ": xyz(0.38515, 0.71687, 0.09708),
    b"bXYZ": xyz(0.14307, 0.06061, 0.71410),
}
CURVES = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), CURVE)
CAMERA_SRGB = icc_profile(b"RGB ", b"XYZ ", {b"wtpt": WHITE_POINT} | PRIMARIES | CURVES)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def in_srgb(linear):
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.png", {}),
        ("a.PNG", {}),
        ("a.bmp", {}),
        ("a.tif", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
        ("a.webp", {"lossless": True}),
    ],
)
def test_colour_is_exact(tmp_path, name, options):
    Image.fromarray(RGB).save(tmp_path / name, **options)
    check(tmp_path / name, RGB / 255)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG"])
def test_jpeg(tmp_path, name):
    smooth = np.add.outer(np.arange(16), 2 * np.arange(16))[..., None] * [1, 2, 3] + 20
    Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / name, quality=100, subsampling=0)
    check(tmp_path / name, smooth / 255, atol=4 / 255)


def test_content_decides_the_format(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", format="PNG")
    check(tmp_path / "a.jpg", RGB / 255)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_grey_palette_and_one_bit(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(RGB[..., 0]).save(path)
    check(path, RGB[..., 0] / 255)

    bits = RGB[..., 0] > 127
    Image.fromarray(bits).save(path)
    assert mode(path) == "1"
    check(path, bits)

    colours = np.array([[255, 0, 51], [0, 102, 255], [17, 34, 68]], np.uint8)
    indices = RGB[..., 0] % 3
    palette = Image.fromarray(indices).convert("P")
    palette.putpalette(colours.tobytes())
    palette.save(path)
    assert mode(path) == "P"
    check(path, colours[indices] / 255)


@several_formats
def test_alpha_is_composited_onto_white(tmp_path, name, options):
    alpha = RGB[..., 1].clip(1)  # lossless WebP drops the colour of pixels with alpha 0
    rgba = np.dstack([RGB, alpha])
    Image.fromarray(rgba).save(tmp_path / name, **options)
    a = alpha[..., None] / 255
    check(tmp_path / name, a * RGB / 255 + (1 - a))


def test_alpha_is_kept_where_it_is_a_channel(tmp_path):
    alpha = RGB[..., 1]
    rgba = np.dstack([RGB, alpha])
    save_image(tmp_path / "a.png", rgba / 255)
    assert mode(tmp_path / "a.png") == "RGBA"
    loaded = load_image(tmp_path / "a.png", channels=4)
    np.testing.assert_array_equal(loaded, np.float32(rgba / 255))

    Image.fromarray(RGB).save(tmp_path / "opaque.png")
    loaded = load_image(tmp_path / "opaque.png", channels=4)
    np.testing.assert_array_equal(loaded, np.float32(np.dstack([RGB / 255, 0 * alpha + 1])))


def test_grey_is_one_channel(tmp_path):
    save_image(tmp_path / "grey.png", RGB[..., :1] / 255)
    assert mode(tmp_path / "grey.png") == "L"
    loaded = load_image(tmp_path / "grey.png", channels=1)
    np.testing.assert_array_equal(loaded, np.float32(RGB[..., :1] / 255))

    Image.fromarray(RGB).save(tmp_path / "colours.png")
    with pytest.warns(ImageWarning, match="its colours become grey"):
        loaded = load_image(tmp_path / "colours.png", channels=1)
    luma = RGB / 255 @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(loaded[..., 0], luma, rtol=1e-6)


def test_grey_and_alpha_can_be_shown_on_white():
    grey = np.full((2, 2, 1), 0.25)
    np.testing.assert_array_equal(on_white(grey), np.full((2, 2, 3), 0.25))
    half = np.full((2, 2, 4), [0.2, 0.4, 0.6, 0.5])
    np.testing.assert_allclose(on_white(half), np.full((2, 2, 3), [0.6, 0.7, 0.8]))


def test_grey_with_alpha(tmp_path):
    pixels = np.array([[[0, 255], [0, 0], [100, 51]]], np.uint8)
    with_mode("LA", pixels).save(tmp_path / "a.png")
    check(tmp_path / "a.png", [[0, 1, 0.2 * 100 / 255 + 0.8]])


def test_transparency_without_an_alpha_channel(tmp_path):
    path = tmp_path / "a.png"
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(path, transparency=b"\x00\x33\xff")
    check(path, [[[1, 1, 1], [0.8, 1, 0.8], [0, 0, 1]]])

    key = np.array([[[1, 2, 3], [3, 2, 1]]], np.uint8)
    Image.fromarray(key).save(path, transparency=(1, 2, 3))
    check(path, [[[1, 1, 1], [3 / 255, 2 / 255, 1 / 255]]])

    Image.fromarray(np.array([[7, 8]], np.uint8)).save(path, transparency=7)
    check(path, [[1, 8 / 255]])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey(tmp_path, name):
    Image.fromarray(GREY16).save(tmp_path / name)
    assert mode(tmp_path / name) == "I;16"
    check(tmp_path / name, GREY16 / 65535)


def test_a_transparent_value_of_16_bit_grey_is_white(tmp_path):
    Image.fromarray(GREY16).save(tmp_path / "a.png", transparency=int(GREY16[1, 2]))
    expected = GREY16 / 65535
    expected[1, 2] = 1
    check(tmp_path / "a.png", expected)


def test_16_bit_grey_of_the_other_byte_order(tmp_path):
    Image.fromarray(GREY16.astype(">u2")).save(tmp_path / "a.tif")
    assert mode(tmp_path / "a.tif") == "I;16B"
    check(tmp_path / "a.tif", GREY16 / 65535)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, "float"])
def test_white_may_be_zero(tmp_path, bits, compressed):
    path = tmp_path / "a.tif"
    if bits == "float":
        values = np.arange(16).reshape(2, 8) / 15
        path.write_bytes(tiff(values, 32, 3, photometric=0, compressed=compressed))
        return check(path, 1 - np.float32(values))
    values = np.arange(16).reshape(2, 8) * 4096 // 2 ** (16 - bits)
    if bits < 8:
        each = (values[..., None] >> np.arange(bits)[::-1]) & 1
        data = np.packbits(each.reshape(2, -1), axis=1).tobytes()
    else:
        data = None
    for photometric in (0, 1):
        content = tiff(values, bits, photometric=photometric, compressed=compressed, data=data)
        path.write_bytes(content)
        grey = values / (2**bits - 1)
        check(path, grey if photometric else 1 - grey)


def test_12_bits_are_full_at_4095(tmp_path):
    values = np.array([[0, 1, 0x123, 0xFFF], [0x800, 0xABC, 7, 4000]])
    digits = "".join(f"{value:03x}" for value in values.ravel())
    (tmp_path / "a.tif").write_bytes(tiff(values, 12, data=bytes.fromhex(digits)))
    check(tmp_path / "a.tif", values / 4095)


def test_32_bits_without_a_sign(tmp_path):
    values = np.array([[0, 1, 2**31], [2**32 - 1, 2**31 - 1, 3 * 10**9]])
    (tmp_path / "a.tif").write_bytes(tiff(values, 32))
    check(tmp_path / "a.tif", values / (2**32 - 1))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_what_integers_with_a_sign_mean_is_asked(tmp_path, bits, order, compressed):
    counts = np.array([[-30, 3, 100], [7, 127, 64]]) if bits == 8 else np.array([[30, 337, 99]])
    lowest, highest = int(counts.min()), int(counts.max())
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(counts, bits, 2, order, compressed=compressed))
    rejected(path, f"from {lowest} to {highest}", "--value_range=LOW,HIGH", "--value_range=auto")
    for value_range in ("auto", (lowest, highest)):
        expected = (counts - lowest) / (highest - lowest)
        check(path, expected, value_range=value_range)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_the_order_of_bytes(tmp_path, order, compressed):
    path = tmp_path / "a.tif"
    values = np.array([[0, 0.25, 0.7], [1, 0.001, 0.5]])
    path.write_bytes(tiff(values, 32, 3, order, compressed=compressed))
    check(path, np.float32(values))
    path.write_bytes(tiff(np.int32(60000 * values), 16, 1, order, compressed=compressed))
    check(path, np.int32(60000 * values) / 65535)


def test_float_tiff(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.float32(GREY16 / 65535)).save(path)
    check(path, GREY16 / 65535)
    for value in (-0.5, 255):
        Image.fromarray(np.array([[0.5, value]], np.float32)).save(path)
        low, high = sorted([0.5, value])
        rejected(path, f"from {low:g} to {high:g} lie outside [0, 1]", "--value_range=")
        check(path, [[0, 1] if value > 0 else [1, 0]], value_range="auto")
    for value in (np.nan, np.inf):
        Image.fromarray(np.array([[0.5, value]], np.float32)).save(path)
        for value_range in (None, "auto", (0, 1)):
            rejected(path, "not finite", value_range=value_range)


def test_value_range(tmp_path):
    path = tmp_path / "a.tif"
    values = np.array([[100, 300, 500, 700]])
    path.write_bytes(tiff(values))
    with told(path, "values from 100 to 700 ", "less than a quarter", r"65535", "--value_range="):
        check(path, values / 65535)
    check(path, [[0, 1 / 3, 2 / 3, 1]], value_range="auto")
    check(path, values / 1000, value_range=(0, 1000))
    with told(path, "2 of its 4 values are clipped", "from 100 to 700"):
        check(path, [[0, 0, 1, 1]], value_range=(300, 500))
    path.write_bytes(tiff(values, photometric=0))
    check(path, 1 - values / 1000, value_range=(0, 1000))
    path.write_bytes(tiff(np.full((2, 2), 700)))
    rejected(path, "from 700 to 700 is empty", value_range="auto")
    Image.fromarray(RGB).save(tmp_path / "a.png")
    check(tmp_path / "a.png", RGB / 255, value_range=(0, 1000))  # has its own


@pytest.mark.parametrize("bits", [10, 14])
def test_packed_bits_that_pillow_cannot_decode(tmp_path, bits):
    (tmp_path / "a.tif").write_bytes(tiff(np.zeros((2, 8)), bits, data=bytes(2 * bits)))
    rejected(tmp_path / "a.tif", f"{bits} bits", "save it with 8 or 16 bits")


def test_other_tiffs_that_pillow_cannot_decode(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(GREY16, order=">", photometric=0))
    rejected(path, "16 bits (unsigned, big-endian), in which white is zero")
    path.write_bytes(tiff(GREY16, 64, 3))
    rejected(path, "64 bits (float")


@pytest.mark.parametrize("photometric", ["rgb", "separated"])
@pytest.mark.parametrize("order", "<>")
def test_deep_planes_that_pillow_garbles(tmp_path, photometric, order):
    """Those of 8 bits, and compressed ones, are read right."""
    tifffile, path = pytest.importorskip("tifffile"), tmp_path / "a.tif"
    count = 3 if photometric == "rgb" else 4
    planes = np.random.default_rng(0).integers(0, 65536, (count, 5, 7), np.uint16)
    options = {"photometric": photometric, "byteorder": order}
    tifffile.imwrite(path, planes, planarconfig="separate", **options)
    rejected(path, f"garbles a TIFF of {count} × 16 bits in planes", "pixel by pixel")
    tifffile.imwrite(path, np.moveaxis(planes, 0, -1), planarconfig="contig", **options)
    with untold():
        expected = load_image(path)
    for values, compression in ((planes, "zlib"), ((planes >> 8).astype(np.uint8), None)):
        tifffile.imwrite(path, values, compression=compression, planarconfig="separate", **options)
        with untold():
            check(path, expected, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_black_or_white_is_not_guessed(tmp_path, bits):
    (tmp_path / "a.tif").write_bytes(tiff(GREY16 % 256, bits, photometric=None))
    rejected(tmp_path / "a.tif", "PhotometricInterpretation")


@pytest.mark.parametrize(
    "bits, row, key, expected",
    [
        (1, [0b01000000], 1, [0, 1, 0, 0]),
        (2, [0b00011011], 1, [0, 1, 2 / 3, 1]),
        (4, [0x03, 0x7F], 3, [0, 1, 7 / 15, 1]),
    ],
)
def test_a_transparent_value_of_grey_with_few_bits(tmp_path, bits, row, key, expected):
    content = png(4, 1, bits, 0, bytes([0, *row]), struct.pack(">H", key))
    (tmp_path / "a.png").write_bytes(content)
    check(tmp_path / "a.png", [expected])


def test_a_transparent_value_of_deep_colour(tmp_path):
    row = struct.pack(">x6H", 1000, 2000, 3000, 40000, 50000, 60000)
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, row, struct.pack(">3H", 1000, 2000, 3000)))
    expected = np.array([[[65535, 65535, 65535], [40000, 50000, 60000]]]) / 65535
    with untold():
        check(tmp_path / "a.png", expected, atol=1 / 255)


def test_deep_colour_is_told(tmp_path):
    deep = np.random.default_rng(3).integers(0, 65536, (2, 2, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    (tmp_path / "a.png").write_bytes(png(2, 2, 16, 2, rows))
    (tmp_path / "a.ppm").write_bytes(b"P6 2 2 65535\n" + deep.tobytes())
    for name in ("a.png", "a.ppm"):
        with told(tmp_path / name, "upper 8 bits"):
            check(tmp_path / name, deep / 65535, atol=1 / 255)


def test_cmyk(tmp_path):
    cmyk = np.array([[[255, 0, 0, 0], [0, 0, 0, 255], [0, 0, 0, 0], [0, 102, 255, 0]]], np.uint8)
    with_mode("CMYK", cmyk).save(tmp_path / "a.tif")
    check(tmp_path / "a.tif", [[[0, 1, 1], [0, 0, 0], [1, 1, 1], [1, 0.6, 0]]])


@pytest.mark.parametrize("orientation", UPRIGHT)
@several_formats
def test_exif_orientation(tmp_path, name, options, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(RGB).save(tmp_path / name, exif=exif, **options)
    check(tmp_path / name, UPRIGHT[orientation](RGB) / 255)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_of_a_jpeg(tmp_path, orientation):
    corner = np.zeros((16, 24, 3), np.uint8)
    corner[:8, :8] = 255  # whole blocks, which JPEG keeps
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(corner).save(tmp_path / "a.jpg", exif=exif, subsampling=0)
    check(tmp_path / "a.jpg", UPRIGHT[orientation](corner) / 255, atol=2 / 255)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("grey", [GREY16, RGB[..., 0]], ids=["16 bit", "8 bit"])
def test_exif_orientation_of_grey(tmp_path, name, grey):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(grey).save(tmp_path / name, exif=exif)
    check(tmp_path / name, UPRIGHT[6](grey) / np.iinfo(grey.dtype).max)


@several_formats
def test_first_frame_of_several(tmp_path, name, options):
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    first.save(tmp_path / name, save_all=True, append_images=[second], **options)
    with Image.open(tmp_path / name) as file:
        assert file.n_frames == 2
    check(tmp_path / name, RGB / 255)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif"])
@pytest.mark.parametrize("part", [0, 0.02, 0.5, 0.9])
def test_truncated_files_are_rejected(tmp_path, name, part):
    path = tmp_path / name
    noise = np.random.default_rng(2).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    rejected(path, "not a picture that Pillow can decode" if part == 0 else "")


def test_other_files_are_rejected(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("no image")
    rejected(path, "not a picture that Pillow can decode")
    Image.fromarray(RGB).save(path, format="TGA")  # which nothing but its suffix tells
    rejected(path, "not a picture that Pillow can decode")
    rejected(tmp_path / "none.png", "No such file or directory")
    rejected(tmp_path, "Is a directory")


@pytest.mark.parametrize("name", ["a.eps", "a.ps", "a.pdf", "a.png"])
def test_no_picture_starts_a_program(tmp_path, monkeypatch, name):
    for kind in {"pdf": ["PDF"], "png": ["EPS", "PDF"]}.get(name[2:], ["EPS"]):
        Image.fromarray(RGB).save(tmp_path / name, format=kind)
        monkeypatch.setattr(subprocess, "Popen", None)
        rejected(tmp_path / name, "not a picture that Pillow can decode")
    (tmp_path / "b.png").touch()
    skipped = [] if name == "a.png" else [tmp_path / name]
    assert list_images(tmp_path)[1] == skipped


LOSSLESS = "gif png apng bmp dib pcx ppm pnm qoi tga sgi rgb jp2 j2k tif dds ico"
LOSSY = "jpg jpe jfif jpeg mpo avif webp"


@pytest.mark.parametrize("suffix", (LOSSLESS + " " + LOSSY).split())
def test_all_formats_that_pillow_decodes_by_itself(tmp_path, suffix):
    path = tmp_path / f"a.{suffix.upper()}"
    lossless = suffix in LOSSLESS.split()
    colours = [[250, 40, 10], [20, 200, 60] if lossless else [250, 40, 10]]  # no edges to blur
    image = np.array(colours, np.uint8)[np.indices((2, 2)).sum(0) % 2]
    image = image.repeat(16, axis=0).repeat(16, axis=1)
    options = {"sizes": [(32, 32)]} if suffix == "ico" else {}
    options |= {"save_all": True} if suffix == "mpo" else {}
    Image.fromarray(image).save(path, **options)
    check(path, image / 255, atol=1e-7 if lossless else 0.03)
    assert list_images(tmp_path) == ([path], [])


def test_numbers_in_portable_maps(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 1023\n" + struct.pack(">2H", 1023, 341))
    check(tmp_path / "a.pgm", [[1, 1 / 3]], atol=1e-5)
    (tmp_path / "a.pfm").write_bytes(b"Pf 2 1 -1.0\n" + struct.pack("<2f", 0.25, 1))
    check(tmp_path / "a.pfm", [[0.25, 1]])


def test_fits(tmp_path, monkeypatch):
    fits = pytest.importorskip("astropy.io.fits")
    values = np.arange(6, dtype=np.float32).reshape(2, 3) / 8
    fits.writeto(tmp_path / "a.fits", values)
    assert np.array_equal(load_image(tmp_path / "a.fits")[..., 0], values[::-1])
    counts = np.int16(800 * values)[None]  # with an axis of length 1, in the first extension
    table = fits.BinTableHDU.from_columns([fits.Column("x", "D", array=[1.0])])
    parts = [fits.PrimaryHDU(), table, fits.ImageHDU(counts)]
    fits.HDUList(parts).writeto(tmp_path / "b.FIT")
    rejected(tmp_path / "b.FIT", "values from 0 to 500 lie outside [0, 1]", "--value_range")
    found = load_image(tmp_path / "b.FIT", (0, 800), channels=1)
    np.testing.assert_allclose(found[..., 0], values[::-1], atol=1e-6)
    fits.HDUList(parts[:2]).writeto(tmp_path / "c.fits")
    rejected(tmp_path / "c.fits", "a FITS file without a picture")
    fits.writeto(tmp_path / "d.fits", np.zeros((3, 2, 2)))
    rejected(tmp_path / "d.fits", "shape (3, 2, 2), not two axes")
    assert [path.name for path in list_images(tmp_path)[0]] == [
        "a.fits",
        "b.FIT",
        "c.fits",
        "d.fits",
    ]
    monkeypatch.setitem(sys.modules, "astropy.io", None)
    rejected(tmp_path / "a.fits", 'pip install "pulse_jax[fits]"')


def test_fits_of_a_telescope(tmp_path):
    """Large counts keep their digits, a row is a picture, and what follows needn't be whole."""
    fits = pytest.importorskip("astropy.io.fits")
    row = np.arange(8.0)[None] / 8
    fits.writeto(tmp_path / "counts.fits", 1e9 + row)
    found = load_image(tmp_path / "counts.fits", (1e9, 1e9 + 1), channels=1)
    np.testing.assert_allclose(found[..., 0], row, rtol=1e-6)
    assert np.array_equal(load_kernel(tmp_path / "counts.fits"), 1e9 + row)
    parts = fits.HDUList([fits.PrimaryHDU(row.astype(np.float32) / 2), fits.ImageHDU(row)])
    parts.writeto(tmp_path / "cut.fits")
    content = (tmp_path / "cut.fits").read_bytes()
    (tmp_path / "cut.fits").write_bytes(content[:-2880])
    assert np.array_equal(load_image(tmp_path / "cut.fits")[..., 0], row / 2)


def test_a_heif_picture_is_told_what_to_install(tmp_path, monkeypatch):
    for brand, name in [(b"heic", "a.heic"), (b"mif1", "b.heif"), (b"heix", "c.jpg")]:
        content = b"\0\0\0\x18ftyp" + brand + bytes(4) + b"mif1heic" + bytes(100)
        (tmp_path / name).write_bytes(content)
        rejected(tmp_path / name, "HEIF", "pip install pillow-heif")
    assert list_images(tmp_path)[1] == []
    asked = []
    package = types.SimpleNamespace(register_heif_opener=lambda: asked.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    list_images(tmp_path)
    assert asked


@pytest.mark.parametrize("limit", [20, 10])  # Pillow warns above the limit, raises above its double
def test_decompression_bombs_are_rejected(tmp_path, monkeypatch, limit):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    told = f"it has more than {limit / 1e6:.3g} megapixels, Pillow's limit against files that fill"
    rejected(tmp_path / "a.png", told, "reduce or cut it first, or raise PIL.Image.MAX_IMAGE_PIXEL")


@pytest.mark.parametrize(
    "name",
    ["odd_exif.png", "grey16_white_is_zero.tif", "p3.png", "alpha_all_zero.bmp", "edge.jfif"],
)
def test_reported_pictures(name):
    with untold():
        image = load_image(DATA / "reports" / name)
    assert image.shape == (8, 8, 3)
    if name != "edge.jfif":
        expected = np.load(DATA / "reports" / f"{name}.npy")
        np.testing.assert_allclose(image, expected, rtol=0, atol=1 / 255)


ODD_EXIF = {
    "no header": b"Exif\0\0no TIFF",
    "cut": b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12",
    "empty": b"Exif\0\0",
    "beyond its end": b"Exif\0\0II*\0\xff\xff\xff\x7f",
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("exif", ODD_EXIF.values(), ids=ODD_EXIF.keys())
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg"])
def test_odd_exif_does_not_matter(tmp_path, name, exif):
    flat = np.full((8, 8, 3), 100, np.uint8)
    Image.fromarray(flat).save(tmp_path / name, exif=exif, lossless=True)
    with untold():
        check(tmp_path / name, flat / 255)


def test_odd_exif_is_told(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=ODD_EXIF["no header"])
    with told(tmp_path / "a.png", "EXIF block can't be read"):
        check(tmp_path / "a.png", RGB / 255)


def test_odd_exif_in_a_tiff(tmp_path):
    content = io.BytesIO()
    Image.fromarray(RGB).save(content, "TIFF", tiffinfo={ORIENTATION: 6, 0x8769: 1})
    place = content.getvalue().index(struct.pack("<H", 0x8769)) + 2
    odd = bytearray(content.getvalue())
    odd[place : place + 10] = struct.pack("<HII", 4, 1, 2)
    (tmp_path / "a.tif").write_bytes(odd)
    check(tmp_path / "a.tif", UPRIGHT[6](RGB) / 255)


def test_large_and_damaged_chunks_of_a_png(tmp_path):
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "0" * 2**21, zip=True)
    Image.fromarray(RGB).save(path, pnginfo=info, exif=exif, transparency=tuple(RGB[1, 2].tolist()))
    expected = RGB / 255
    expected[1, 2] = 1
    with told(path, "metadata"):
        check(path, UPRIGHT[6](expected))
    wrong = bytearray(png_chunk(b"tEXt", b"Comment\0text"))
    wrong[-1] ^= 1
    for chunk in (bytes(wrong), png_chunk(b"gAMA", b"?"), png_chunk(b"zTXt", b"Comment\0\7?")):
        path.write_bytes(png_with(chunk))
        with told(path, "metadata"):
            check(path, RGB / 255)


def test_a_profile_of_more_than_a_megabyte_counts(tmp_path):
    with Image.open(DATA / "reports" / "p3.png") as file:
        profile, pixels = file.info["icc_profile"], np.asarray(file)
    padding = np.random.default_rng(4).bytes(2**21)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, icc_profile=profile + padding)
    with told(path, "metadata"):
        check(path, np.load(DATA / "reports" / "p3.png.npy"), atol=1 / 255)


@pytest.mark.parametrize("profile", [SRGB, CAMERA_SRGB], ids=["littlecms", "camera"])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_a_profile_that_is_srgb_changes_no_bit(tmp_path, name, profile):
    pixels = np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, icc_profile=profile, lossless=True)
    check(tmp_path / name, pixels / 255)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_profiles_in_other_modes(tmp_path, mode):
    with Image.open(DATA / "reports" / "p3.png") as file:
        profile, image = file.info["icc_profile"], file.convert("RGB")
    expected = np.load(DATA / "reports" / "p3.png.npy")
    if mode == "RGBA":
        image.putalpha(51)
        expected = 0.2 * expected + 0.8
    if mode == "P":
        image = image.quantize(256)
        assert (
            np.asarray(image.convert("RGB")) == np.asarray(Image.open(DATA / "reports" / "p3.png"))
        ).all()
    image.save(tmp_path / "a.png", icc_profile=profile)
    check(tmp_path / "a.png", expected, atol=1 / 255)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_profile_of_grey(tmp_path, dtype):
    linear = np.array([[0, 0.2, 0.4], [0.6, 0.8, 1]])
    values = np.rint(linear * np.iinfo(dtype).max).astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.png", icc_profile=LINEAR_GREY)
    check(tmp_path / "a.png", in_srgb(linear), atol=1 / 255)
    Image.fromarray(values).save(tmp_path / "a.png", icc_profile=SRGB)
    check(tmp_path / "a.png", values / np.iinfo(dtype).max)


def test_the_profile_of_cmyk(tmp_path):
    inks = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [255, 0, 0, 0]]], np.uint8)
    with_mode("CMYK", inks).save(tmp_path / "a.tif", icc_profile=GREY_INKS)
    check(tmp_path / "a.tif", [[1, 119 / 255, 119 / 255]], atol=2 / 255)


@pytest.mark.parametrize(
    "profile", [b"no profile", SRGB[:200], GREY_INKS], ids=["text", "cut", "other"]
)
def test_a_profile_that_cannot_be_used_is_told(tmp_path, profile):
    path = tmp_path / "a.png"
    for pixels in (RGB, RGB[..., 0], GREY16):
        Image.fromarray(pixels).save(path, icc_profile=profile)
        with told(path, "colour profile", "ignored"):
            expected = pixels / np.iinfo(pixels.dtype).max
            check(path, expected)


def test_lab(tmp_path):
    lab = np.array([[[255, 0, 0], [136, 0, 0], [0, 0, 0]]], np.uint8)  # L* of 100, 53.3 and 0
    with_mode("LAB", lab).save(tmp_path / "a.tif")
    check(tmp_path / "a.tif", [[1, 0.5, 0]], atol=2 / 255)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.tga"])
def test_an_alpha_of_0_everywhere_is_taken_for_absent(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(np.dstack([RGB, 0 * RGB[..., 0]])).save(path)
    with told(path, "alpha channel is 0 everywhere"):
        check(path, RGB / 255)
    grey = np.dstack([RGB[..., 0], 0 * RGB[..., 0]])
    with_mode("LA", grey).save(path)
    with told(path, "alpha channel is 0 everywhere"):
        check(path, RGB[..., 0] / 255)


def test_saved_images_are_clipped_and_rounded(tmp_path):
    path = tmp_path / "a.png"
    levels = np.arange(256)
    steps = np.repeat(levels[None, :, None], 3, axis=-1)
    for offset in (-0.49, 0, 0.49):
        save_image(path, (steps + offset) / 255)
        check(path, steps / 255)
    save_image(path, np.array([[[-3, 0.5, 7]]], np.float32))
    with Image.open(path) as file:
        assert (file.format, file.mode) == ("PNG", "RGB")
        assert np.asarray(file).tolist() == [[[0, 128, 255]]]  # 127.5 goes to the even number


def test_saving_and_loading_keeps_8_bit_images(tmp_path):
    save_image(tmp_path / "a.png", np.float32(RGB / 255))
    check(tmp_path / "a.png", RGB / 255)
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    "image, reason",
    [
        (np.full((2, 2, 3), np.nan), "not finite"),
        (np.full((2, 2, 3), np.inf), "not finite"),
        (RGB, "an image has floats in [0, 1], not uint8"),
        (np.zeros((2, 2)), "(2, 2)"),
        (np.zeros((2, 2, 2)), "(2, 2, 2)"),
    ],
)
def test_images_that_can_not_be_saved(unchecked, tmp_path, image, reason):
    path = tmp_path / "a.png"
    path.write_text("before")
    with pytest.raises(ImageError) as raised:
        save_image(path, image)
    assert str(raised.value).startswith(f"{path}: can't be written: ")
    assert reason in str(raised.value)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("failing", ["write", "replace"])
def test_a_failing_save_leaves_the_old_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.png"
    save_image(path, np.zeros((2, 2, 3)))

    def disk_full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    write_bytes = Path.write_bytes

    def half_written(path, content):
        write_bytes(path, content[:4])
        disk_full()

    if failing == "write":
        monkeypatch.setattr(Path, "write_bytes", half_written)
    else:
        monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(ImageError, match=r"a\.png: can't be written: No space left on device"):
        save_image(path, np.ones((2, 2, 3)))
    check(path, np.zeros((2, 2)))
    assert os.listdir(tmp_path) == ["a.png"]


def test_no_folder_to_save_into(tmp_path):
    (tmp_path / "file").touch()
    for folder, reason in [("none", "No such file or directory"), ("file", "Not a directory")]:
        with pytest.raises(ImageError, match=f"a.png: can't be written: {reason}"):
            save_image(tmp_path / folder / "a.png", np.zeros((2, 2, 3)))


def test_list_images(tmp_path):
    names = ["a.JPG", "b.png", "c.jpeg", "d.WebP", "e.bmp", "f.tif", "g.TIFF", "h.HEIC", "i.gif"]
    others = [
        "._b.png",
        "folder.png",
        "notes.txt",
        "png",
        "x.h5",
        "x.mpg",
        "z.eps",
        "z.pdf",
        "z.wmf",
    ]
    (tmp_path / "folder.png").mkdir()
    for name in [*reversed(names), *others]:
        if name != "folder.png":
            (tmp_path / name).touch()
    found, skipped = list_images(str(tmp_path))
    assert found == [tmp_path / name for name in names]
    assert [p.name for p in skipped] == others


def test_folders_without_images(tmp_path):
    (tmp_path / "notes.txt").touch()
    for path, reason in [
        (tmp_path, "holds no image"),
        (tmp_path / "none", "No such file or directory"),
        (tmp_path / "notes.txt", "Not a directory"),
    ]:
        with pytest.raises(ImageError) as raised:
            list_images(path)
        assert str(raised.value).startswith(f"{path}: ") and reason in str(raised.value)
        assert "\n" not in str(raised.value)


def test_resize_nearest():
    image = np.arange(12.0).reshape(2, 2, 3)
    large = images.resize_nearest(image, 3)
    assert large.shape == (6, 6, 3)
    for i in range(6):
        for j in range(6):
            np.testing.assert_array_equal(large[i, j], image[i // 3, j // 3])


def test_grid():
    black, grey = np.zeros((32, 64, 3)), np.full((32, 64, 3), 0.5)
    sheet = images.grid([[black, grey], [grey]])
    assert sheet.dtype == np.float32
    expected = np.ones((32 + 2 + 32, 64 + 2 + 64, 3))  # gaps of 64 / 32 pixels
    expected[:32, :64] = 0
    expected[:32, 66:] = 0.5
    expected[34:, :64] = 0.5
    np.testing.assert_array_equal(sheet, expected)
    assert images.grid([[np.zeros((4, 4, 3))] * 2]).shape == (4, 9, 3)  # never without a gap


def test_images_of_integers_are_no_images(unchecked):
    for function in (images.to_uint8, on_white, lambda image: images.grid([[image]])):
        for kind in (np.uint8, np.int64, bool):
            with pytest.raises(ValueError, match=r"an image has floats in \[0, 1\], not"):
                function(RGB.astype(kind))


def test_grid_takes_one_size():
    with pytest.raises(ValueError, match=r"\(2, 2, 3\), \(4, 4, 3\)"):
        images.grid([[np.zeros((4, 4, 3)), np.zeros((2, 2, 3))]])
    with pytest.raises(ValueError, match=r"not \[\]"):
        images.grid([])
