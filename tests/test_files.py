import os
from pathlib import Path

import numpy as np
import pytest

from pulse_jax import files
from pulse_jax.files import (
    counted,
    expanded,
    figure,
    held,
    json_object,
    load_arrays,
    near,
    npz,
    one_line,
    read_json,
    write,
)


@pytest.mark.parametrize("content", ["Köln\n", b"\x00\xff"])
def test_what_is_written(tmp_path, content):
    path = tmp_path / "a"
    path.write_text("a longer file from before")
    write(str(path), content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else b"K\xc3\xb6ln\n")
    assert os.listdir(tmp_path) == ["a"]


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("before")
    write_bytes = Path.write_bytes

    def disk_full(path, content):
        write_bytes(path, content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="No space") as raised:
        write(path, b"after")
    assert raised.value.filename == str(path)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["a"]


def test_one_line(tmp_path):
    assert one_line(ValueError(" two\n\n  lines ")) == "two lines"
    assert one_line(MemoryError()) == "MemoryError"
    with pytest.raises(OSError) as raised:
        (tmp_path / "none").read_bytes()
    assert one_line(raised.value) == "No such file or directory"


@pytest.mark.skipif(files.fcntl is None, reason="no locks of files here")
def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        with held(folder):
            assert folder.is_dir()
            with pytest.raises(ValueError, match="another run is writing there"), held(folder):
                pass


def test_homes_are_put_in_for_tildes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert expanded("~/a") == Path("/home/me/a")
    assert expanded("") == Path() and expanded("a/~") == Path("a/~")
    with pytest.raises(ValueError, match=r"^~nosuch/a: no home is known for ~nosuch$"):
        expanded("~nosuch/a")
    with pytest.raises(ValueError, match=r"^--output=~nosuch: no home is known for ~nosuch$"):
        expanded("~nosuch", "--output")
    (tmp_path / "~nosuch").mkdir()
    assert expanded("~nosuch/a") == Path("~nosuch/a")


def test_things_are_counted_in_words():
    assert [counted(n, "picture") for n in (0, 1, 2)] == ["0 pictures", "1 picture", "2 pictures"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file or directory"),
        (b"", "not an .npz file"),
        (b"\x89PNG\r\n\x1a\n", "not an .npz file"),  # which NumPy would take for a pickle
        (npz({"a": np.ones(3)})[:-40], "File is not a zip file"),
    ],
)
def test_arrays_that_can_not_be_read(content, told, tmp_path):
    path = tmp_path / "latents.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_arrays(path)
    assert str(error.value) == f"{path}: can't be read: {told}"


def test_figures_have_one_notation():
    values = [0.0, 7.0, 1.32e-3, 1.2e-4, 9.934e-5, 5e-6, 9.93e-7, 12.345, np.inf]
    assert [figure(value) for value in values] == [
        *("0", "7", "0.00132", "0.000120", "0.0000993", "0.00000500", "9.93e-07", "12.3", "inf")
    ]


def test_names_that_are_near():
    names = ["ffhq1024", "ffhq512", "faces64"]
    assert near("FFHQ", names) == "; did you mean ffhq512 or ffhq1024?"
    assert near("nothing", names) == ""


@pytest.mark.parametrize(
    "content, told",
    [
        ("[" * 100_000, ""),
        ("{", ""),
        ("[]", "no JSON object"),
        ("{}" + " " * 100, "longer than 50"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, content, told):
    """Brackets in brackets, too, which aren't a ValueError of Python's."""
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^{told}"):
        json_object(path, largest=50 if "longer" in told else 10**6)
    if "longer" not in told:
        with pytest.raises(ValueError, match=rf"a\.json: can't be read: {told}"):
            read_json(path)
