"""Every kind of file is written here with Pillow, then read back and compared pixel by pixel."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pulse_jax import images
from pulse_jax.images import ImageError, list_images, load_image, save_image

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
GREY16 = np.random.default_rng(1).integers(0, 65536, (4, 6)).astype(np.uint16)
ORIENTATION = 0x0112  # the EXIF tag
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


def check(path, expected, atol=1e-7):
    """The file reads as `expected`, an image or (H, W) grey."""
    image = load_image(path)
    assert image.dtype == np.float32
    expected = np.asarray(expected)
    if expected.ndim == 2:
        expected = np.stack([expected] * 3, axis=-1)
    assert image.shape == expected.shape
    np.testing.assert_allclose(image, expected, rtol=0, atol=atol)


def rejected(path, reason):
    """Reading fails with one line: the file's name and the reason."""
    with pytest.raises(ImageError) as raised:
        load_image(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: can't be read: ") and reason in message
    assert "\n" not in message


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


def test_grey_with_alpha(tmp_path):
    pixels = np.array([[[0, 255], [0, 0], [100, 51]]], np.uint8)
    Image.fromarray(pixels, "LA").save(tmp_path / "a.png")
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


def test_32_bit_grey_holds_16_bit_values(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(GREY16.astype(np.int32)).save(path)
    check(path, GREY16 / 65535)
    for value in (65536, -1):
        Image.fromarray(np.full((2, 2), value, np.int32)).save(path)
        rejected(path, "outside [0, 1]")


def test_float_tiff(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.float32(GREY16 / 65535)).save(path)
    check(path, GREY16 / 65535)
    for value in (np.nan, np.inf, -0.1, 255):
        Image.fromarray(np.array([[0.5, value]], np.float32)).save(path)
        rejected(path, "outside [0, 1]")


def test_cmyk(tmp_path):
    cmyk = np.array([[[255, 0, 0, 0], [0, 0, 0, 255], [0, 0, 0, 0], [0, 102, 255, 0]]], np.uint8)
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.tif")
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
    rejected(path, "not a PNG, JPEG, WebP, BMP or TIFF image" if part == 0 else "")


def test_other_files_are_rejected(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("no image")
    rejected(path, "not a PNG, JPEG, WebP, BMP or TIFF image")
    Image.fromarray(RGB).save(path, format="GIF")
    rejected(path, "not a PNG, JPEG, WebP, BMP or TIFF image")
    rejected(tmp_path / "none.png", "No such file or directory")
    rejected(tmp_path, "Is a directory")


@pytest.mark.parametrize("limit", [20, 10])  # Pillow warns above the limit, raises above its double
def test_decompression_bombs_are_rejected(tmp_path, monkeypatch, limit):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    rejected(tmp_path / "a.png", "decompression bomb")


@pytest.mark.filterwarnings("error")
def test_faulty_metadata_do_not_matter(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12")
    check(tmp_path / "a.png", RGB / 255)


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
        (np.zeros((2, 2)), "(2, 2)"),
        (np.zeros((2, 2, 4)), "(2, 2, 4)"),
    ],
)
def test_images_that_can_not_be_saved(tmp_path, image, reason):
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
    names = ["a.JPG", "b.png", "c.jpeg", "d.WebP", "e.bmp", "f.tif", "g.TIFF"]
    for name in [*reversed(names), "notes.txt", "._b.png", "z.gif", "png"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found, skipped = list_images(str(tmp_path))
    assert [p.name for p in found] == [
        "a.JPG",
        "b.png",
        "c.jpeg",
        "d.WebP",
        "e.bmp",
        "f.tif",
        "g.TIFF",
    ]
    assert found[0] == tmp_path / "a.JPG"
    assert [p.name for p in skipped] == ["._b.png", "folder.png", "notes.txt", "png", "z.gif"]


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


def test_grid_takes_one_size():
    with pytest.raises(ValueError, match=r"\(2, 2, 3\), \(4, 4, 3\)"):
        images.grid([[np.zeros((4, 4, 3)), np.zeros((2, 2, 3))]])
    with pytest.raises(ValueError, match=r"not \[\]"):
        images.grid([])
