"""Hostile input: files, names, folders and disks that aren't as one would wish.

Every file ends in a result or in one line, nothing is written outside the output folder, and no
result overwrites another's.
"""

import contextlib
import importlib.metadata
import io
import os
import subprocess
import tempfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command_helpers import contents, fails, read_rows, write_picture
from PIL import Image, PngImagePlugin

import pulse_jax
from pulse_jax import files, images
from pulse_jax.upsampling.pictures import OF_THE_RUN

GENERATOR = "experiment_helpers:linear"  # of 32×32 pixels
SIDE = 4
RNG = np.random.default_rng(0)


@pytest.fixture
def run(run):
    return partial(run, "--steps=2", "--restarts=1", generator=GENERATOR)


def picture(mode="RGB", side=SIDE):
    pixels = RNG.integers(60, 200, (side, side, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(), "JPEG", exif=exif)


def grey(values, kind, dtype):
    return encoded(Image.fromarray(np.full((SIDE, SIDE), values, dtype)), kind)


def transparent_palette():
    return encoded(picture().quantize(4), transparency=1)


def png_of(width, height):
    """One that claims a size, with hardly any content."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content).to_bytes(4)
        return len(content).to_bytes(4) + kind + content + checksum

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b"")


def with_text(text):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", text, zip=True)
    return encoded(picture(), pnginfo=info)


def flipped(content):
    """With one bit of its pixels wrong."""
    middle = content.index(b"IDAT") + 12
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def animated(kind, **options):
    return encoded(picture(), kind, save_all=True, append_images=[picture()], **options)


PNG, JPEG = encoded(picture()), encoded(picture(side=16), "JPEG")
WEBP, TIFF, BMP = (encoded(picture(), kind) for kind in ("WEBP", "TIFF", "BMP"))
SQUARE = encoded(picture(), "JPEG")

# Name → content, of pictures that have results.
GOOD = {
    "rgb.png": PNG,
    "UPPER.PNG": encoded(picture()),
    "photo.jpg": SQUARE,
    "progressive.jpeg": encoded(picture(), "JPEG", progressive=True),
    "web.webp": WEBP,
    "old.bmp": BMP,
    "scan.tif": TIFF,
    "one_bit.png": encoded(picture("1")),
    "grey.png": encoded(picture("L")),
    "grey_alpha.png": encoded(picture("LA")),
    "alpha.png": encoded(picture("RGBA")),
    "palette.png": encoded(picture().quantize(4)),
    "palette_transparent.png": transparent_palette(),
    "cmyk.jpg": encoded(picture("CMYK"), "JPEG"),
    "cmyk.tiff": encoded(picture("CMYK"), "TIFF"),
    "16_bit.png": grey(30000, "PNG", np.uint16),
    "16_bit.tif": grey(40000, "TIFF", np.uint16),
    "float.tif": grey(0.4, "TIFF", np.float32),
    "animated.webp": animated("WEBP"),
    "animated.png": animated("PNG"),
    "pages.tif": animated("TIFF"),
    **{f"rotated_{orientation}.jpg": rotated(orientation) for orientation in range(1, 9)},
    "png_as.jpg": PNG,
    "jpeg_as.png": SQUARE,
    "webp_as.bmp": WEBP,
    "gif_as.png": encoded(picture().quantize(4), "GIF"),
    "commented.png": with_text("harmless"),
    "bomb_of_text.png": with_text("0" * 2**24),
    "with trailing bytes.png": PNG + b"PK\x03\x04",
    # Names.
    "same.png": encoded(picture()),
    "same.jpg": encoded(picture(), "JPEG"),
    "same.png.bmp": encoded(picture(), "BMP"),
    " spaces around .png": PNG,
    "two\nlines.png": PNG,
    "tab\tand bell\a.png": PNG,
    "\x1b[31mred.png": PNG,
    "Ünïcödé 像 🎨.png": PNG,
    "right\u202eto left.png": PNG,
    os.fsdecode(b"latin1_\xe9.png"): PNG,
    "a..png": PNG,
    "x...png": PNG,
    "-rf.png": PNG,
    "--help.png": PNG,
    "%2e%2e%2fup.png": PNG,
    "x\\..\\up.png": PNG,
    "$(touch pwned).png": PNG,
    "`touch pwned`;#?.png": PNG,
    "<img src=x onerror=alert(1)>.png": PNG,
    "\"'&amp;.png": PNG,
    "index.html.png": encoded(picture()),
    "config.json.png": encoded(picture()),
    "results.csv.png": encoded(picture()),
    "n" * 240 + ".png": PNG,
}
# Of those that are refused.
BAD = {
    "empty.png": b"",
    "one_byte.jpg": b"\x89",
    "signature.png": PNG[:8],
    "cut.png": PNG[: len(PNG) // 2],
    "cut.jpg": JPEG[: len(JPEG) // 2],
    "cut.webp": WEBP[: len(WEBP) // 2],
    "cut.tif": TIFF[: len(TIFF) // 2],
    "cut.bmp": BMP[: len(BMP) // 2],
    "flipped.png": flipped(PNG),
    "random.png": RNG.bytes(1000),
    "zeros.png": bytes(1000),
    "text.jpg": b"no picture",
    "page.png": b"<!doctype html><script>alert(1)</script>",
    "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>',
    "pdf_as.png": b"%PDF-1.7\n%%EOF\n",
    "postscript_as.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n",
    "bomb.png": png_of(2**31 - 1, 2**31 - 1),
    "large_bomb.png": png_of(30000, 30000),
    "no_width.png": png_of(0, 4),
    "row.png": encoded(picture().resize((32, 1))),
    "column.png": encoded(picture().resize((1, 32))),
    "odd.png": encoded(picture(side=3)),
    "too_large.png": encoded(picture(side=64)),
    "nan.tif": grey(np.nan, "TIFF", np.float32),
    "infinite.tif": grey(np.inf, "TIFF", np.float32),
    "negative.tif": grey(-0.1, "TIFF", np.float32),
    "signed.tif": grey(30, "TIFF", np.int32),
    "phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
}
# Of what is no picture, by what it is made with.
SKIPPED = {
    "folder.png": os.mkdir,
    "pipe.png": os.mkfifo,
    "loop.png": lambda path: os.symlink("loop.png", path),
    "dangling.png": lambda path: os.symlink("nowhere", path),
    "to_folder.png": lambda path: os.symlink("..", path),
    ".hidden.png": lambda path: path.write_bytes(PNG),
    "...png": lambda path: path.write_bytes(PNG),
    "noext": lambda path: path.write_bytes(PNG),
    "notes.txt": lambda path: path.write_bytes(b"text"),
}


@pytest.mark.filterwarnings("ignore::pulse_jax.images.ImageWarning")
def test_a_folder_of_everything(run, tmp_path, monkeypatch, capfd):
    assert len(GOOD) + len(BAD) + len(SKIPPED) >= 80
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in (GOOD | BAD).items():
        (folder / name).write_bytes(content)
    (folder / "link.png").symlink_to("rgb.png")
    for name, make in SKIPPED.items():
        make(folder / name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as exit:
        run(f"--input_dir={folder}")
    assert exit.value.code == 1
    output = tmp_path / "out"
    captured = capfd.readouterr()
    lines = [s for s in captured.err.splitlines() if s.startswith("pulse_jax: ")]
    assert "Traceback" not in captured.err

    assert len(lines) == len(BAD)
    for name in BAD:
        assert sum(f"{folder / name}: " in line for line in lines) == 1, name
    skipped = [s for s in captured.out.splitlines() if s.startswith("skipped ")]
    reasons = dict.fromkeys(SKIPPED, "not a picture")
    reasons |= dict.fromkeys(("folder.png", "to_folder.png"), "a folder, which can be named, too")
    reasons |= dict.fromkeys((".hidden.png", "...png"), "hidden")
    assert skipped == sorted(f"skipped {folder / name}: {why}" for name, why in reasons.items())

    rows = read_rows(output)
    expected = {name.encode(errors="backslashreplace").decode() for name in GOOD}
    assert {row["image"] for row in rows} == expected | {"link.png"}
    assert len(rows) == len(GOOD) + 1
    pictures = images.list_images(folder)[0]
    taken = [name for path in pictures for name in (path.name, path.stem)]
    taken += OF_THE_RUN
    for name in GOOD:
        stem = Path(name).stem
        name_of_folder = name if taken.count(stem) > 1 else stem
        found = images.load_image(output / name_of_folder / "input.png")
        assert np.abs(found - images.load_image(folder / name)).max() <= 0.5 / 255 + 1e-6, name
        assert {"hr_01.png", "lr_01.png", "latents.npz"} <= contents(output / name_of_folder).keys()
    for path in set(tmp_path.rglob("*")) - before:
        assert path.is_relative_to(output), path
    page = (output / "index.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "\u202e" not in page


def test_two_pictures_of_one_folder(run, tmp_path, capsys):
    """As on disks that know no case, which a link stands for."""
    for name in ("a.png", "A.jpg"):
        write_picture(tmp_path / "in" / name, seed=len(name) + ord(name[0]))
    folder = run(f"--input_dir={tmp_path / 'in'}")
    assert {row["image"] for row in read_rows(folder)} == {"a.png", "A.jpg"}
    (tmp_path / "other" / "a").mkdir(parents=True)
    (tmp_path / "other" / "A").symlink_to("a")
    line = fails(
        run, capsys, f"--input_dir={tmp_path / 'in'}", f"--output_dir={tmp_path / 'other'}"
    )
    assert "a.png: on this disk, its folder " in line and "is that of A.jpg: rename one" in line
    assert {row["image"] for row in read_rows(tmp_path / "other")} == {"A.jpg"}
    assert contents(tmp_path / "other" / "a") == contents(folder / "A")


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(run, small_disk, tmp_path, capsys):
    for name in "abcd":
        write_picture(tmp_path / "in" / f"{name}.png", seed=ord(name))
    flags = f"--input_dir={tmp_path / 'in'}", "--restarts=4", f"--output_dir={small_disk / 'out'}"
    with pytest.raises(SystemExit) as exit:
        run(*flags)
    assert exit.value.code == 1
    lines = [s for s in capsys.readouterr().err.splitlines() if s.startswith("pulse_jax: ")]
    assert lines and all("No space left on device" in line for line in lines)
    for path in (small_disk / "out").rglob("*.png"):
        images.load_image(path)
    subprocess.run(["mount", "-o", "remount,size=10m", small_disk], check=True)
    run(*flags)
    run(*flags, f"--output_dir={tmp_path / 'whole'}")
    for name in "abcd":
        assert contents(small_disk / "out" / name) == contents(tmp_path / "whole" / name)
    assert not list((small_disk / "out").rglob(".*.tmp"))


@pytest.fixture
def as_nobody():
    """A folder that all may use, and a context in which this process isn't root."""

    @contextlib.contextmanager
    def context():
        own = os.geteuid()
        os.seteuid(own or 65534)
        try:
            yield
        finally:
            os.seteuid(own)

    "".encode("cp437")  # of .npz files: Python loads the codec when it first needs it
    try:
        with context():
            importlib.metadata.version("jax")
            Path(pulse_jax.__file__).read_bytes()
    except (OSError, importlib.metadata.PackageNotFoundError):
        pytest.skip("an ordinary user can't read this installation")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder), context
        for path in Path(folder).iterdir():
            path.chmod(0o700)  # can be removed again


def test_files_and_folders_without_permission(run, as_nobody, capsys):
    folder, nobody = as_nobody
    for name in ("a", "b"):
        write_picture(folder / "in" / f"{name}.png", seed=ord(name))
    (folder / "in" / "b.png").chmod(0)
    (folder / "closed").mkdir(mode=0)
    cache = f"--cache_dir={folder / 'cache'}"
    flags = f"--input_dir={folder / 'in'}", f"--output_dir={folder / 'out'}", cache
    with nobody():
        line = fails(run, capsys, *flags)
    assert f"{folder / 'in' / 'b.png'}: can't be read: Permission denied" in line
    assert {row["image"] for row in read_rows(folder / "out")} == {"a.png"}
    with nobody():
        line = fails(run, capsys, f"--input_dir={folder / 'closed'}", *flags[1:])
    assert f"{folder / 'closed'}: can't be read: Permission denied" in line
    with nobody():
        line = fails(run, capsys, flags[0], f"--output_dir={folder / 'closed' / 'out'}", cache)
    assert f"{folder / 'closed' / 'out'}" in line and "Permission denied" in line
    (folder / "in").chmod(0o444)  # its names can be read, its files can't
    capsys.readouterr()
    with nobody():
        line = fails(run, capsys, *flags)
    assert f"{folder / 'in'}: can't be read: Permission denied" in line


def test_names_come_as_one_line():
    assert files.one_line("two\nlines\t\x1b[31m\u202e \udce9 ü") == (
        "two lines \\x1b[31m\\u202e \\udce9 ü"
    )
