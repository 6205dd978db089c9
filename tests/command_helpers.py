"""What tests of the command share: pictures for it, and what it leaves."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def run_module(name, *arguments, cwd):
    """`python -m` with no variable set but those by which tests compile lightly."""
    light = {name: os.environ[name] for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")}
    return subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(cwd)} | light,
        capture_output=True,
        text=True,
    )


def fails(run, capsys, *arguments):
    """The one line on stderr of a run that has to fail."""
    with pytest.raises(SystemExit) as exit:
        run(*arguments)
    if isinstance(exit.value.code, str):  # what the interpreter prints, with exit code 1
        lines = [exit.value.code]
    else:
        assert exit.value.code != 0
        lines = [s for s in capsys.readouterr().err.splitlines() if s.startswith("pulse_jax: ")]
    assert len(lines) == 1 and "\n" not in lines[0], lines
    return lines[0]


def write_picture(path, side=4, seed=0, mode="RGB"):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(60, 200, (side, side, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def read_rows(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".png", ".npz")}
