"""The command on other systems: with other outputs, devices and settings of JAX, other Pythons."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from command_helpers import read_rows, write_picture

from pulse_jax import files

ROOT = Path(__file__).parents[1]
PYTHONPATH = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
UPSAMPLE = "from pulse_jax.console import upsample; upsample()"
CONVERT = "from pulse_jax.console import convert; convert()"


def python(code, *arguments, shell='"$@"', **variables):
    """Python in a process of its own, as `shell` runs it."""
    return subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": PYTHONPATH} | variables,
        capture_output=True,
        text=True,
        errors="replace",
    )


@pytest.fixture
def flags(compiled, tmp_path):
    """Of a small search, which compiles in no time."""
    write_picture(tmp_path / "in" / "a.png")
    folders = [f"--input_dir={tmp_path / 'in'}", f"--output_dir={tmp_path / 'out'}"]
    folders += [f"--cache_dir={compiled}", "--generator=experiment_helpers:linear"]
    return [*folders, "--recipe=original", "--restarts=1", "--steps=5", "--seed=0"]


# --- What it prints to. ---

TALK = """
import sys
from pulse_jax.console import make_output_safe
make_output_safe()
with open(sys.argv[1], "w") as file:
    for stream in (sys.stdout, sys.stderr):
        print(9 * "Köln × €\\n", file=stream, flush=True)
    file.write("all the work")
sys.exit(3)
"""


@pytest.mark.parametrize(
    "shell",
    [
        '"$@" >&-',
        '"$@" 2>&-',
        '"$@" <&- >&- 2>&-',
        '"$@" >/dev/full 2>/dev/full',
        '"$@" 2>&1 | head -1; exit ${PIPESTATUS[0]}',
        '"$@" | true; exit ${PIPESTATUS[0]}',
    ],
)
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_no_output_ends_the_work(tmp_path, shell, encoding):
    path = tmp_path / "work"
    result = python(TALK, path, shell=shell, PYTHONIOENCODING=encoding)
    assert result.returncode == 3
    assert path.read_text() == "all the work"
    assert "Error" not in result.stdout + result.stderr


def test_what_the_terminal_lacks_is_escaped(tmp_path):
    result = python(TALK, tmp_path / "work", PYTHONIOENCODING="ascii")
    assert result.stdout == result.stderr == 9 * "K\\xf6ln \\xd7 \\u20ac\n" + "\n"


def test_a_search_that_nobody_listens_to(flags, tmp_path):
    shell = '"$@" 2>&- | true; exit ${PIPESTATUS[0]}'
    result = python(UPSAMPLE, *flags, shell=shell, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len(read_rows(tmp_path / "out")) == 1
    assert (tmp_path / "out" / "index.html").is_file()


# --- What starts it. ---


@pytest.mark.parametrize("code", [UPSAMPLE, CONVERT])
def test_an_interrupt_during_the_imports_is_silent(tmp_path, code):
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT); raise ImportError"
    (tmp_path / "jax.py").write_text(interrupt)
    result = python(code, PYTHONPATH=os.pathsep.join((str(tmp_path), PYTHONPATH)))
    assert (result.stdout, result.stderr) == ("", "")
    assert result.returncode in (-signal.SIGINT, 128 + signal.SIGINT)


without_gpu = pytest.mark.skipif(jax.default_backend() == "gpu", reason="it works here")


@pytest.mark.parametrize(
    ("code", "variable"),
    [
        (UPSAMPLE, "JAX_PLATFORMS=cpuu"),
        pytest.param(UPSAMPLE, "JAX_PLATFORMS=cuda", marks=without_gpu),
        pytest.param(CONVERT, "JAX_PLATFORMS=cuda", marks=without_gpu),
        (CONVERT, "JAX_ENABLE_X64=yess"),
    ],
)
def test_variables_of_jax_are_told_as_such(code, variable):
    name, value = variable.split("=")
    result = python(code, "--output_dir=out" if code is UPSAMPLE else "none", **{name: value})
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("pulse_jax") and name in line and value in line


# --- What Python lacks on Windows. ---

WINDOWS = f"""
import os, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
del os.sysconf
{UPSAMPLE}
"""


def test_a_search_without_what_windows_lacks(flags, tmp_path):
    result = python(WINDOWS, *flags, "--steps=30")
    assert result.returncode == 0, result.stderr
    assert len(read_rows(tmp_path / "out")) == 1


def test_files_are_synced_with_leave_to_write_them(tmp_path, monkeypatch):
    """Windows refuses it else."""
    fcntl = pytest.importorskip("fcntl")

    def fsync(number):
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(os, "fsync", fsync)
    files.write(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
