import os
from pathlib import Path

import pytest

from pulse_jax.files import one_line, write


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
