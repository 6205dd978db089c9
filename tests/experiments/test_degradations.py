"""The degradations: a row for each, the picture, and that the same settings repeat them."""

import numpy as np
import pytest
from experiment_helpers import read_table, run_experiment

from pulse_jax import images, operators

pytestmark = pytest.mark.slow  # half a minute each: compiling

TINY = (
    "--generator=experiment_helpers:linear",
    "--inputs=1",
    "--restarts=2",
    "--steps=2",
    "--factor=4",
    "--eps=0.2",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the results of a first run."""
    folder = tmp_path_factory.mktemp("degradations")
    result = run_experiment("degradations", *TINY, "--workdir=first", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_operator_is_shown(folder):
    rows = read_table(folder / "first" / "table.csv")
    texts = [row["operator"] for row in rows]
    shown = {link.partition(":")[0] for text in texts for link in text.split(",")}
    assert shown == set(operators.OPERATORS) - {"psf"}  # of a file
    assert [row["input"] for row in rows] == ["8×8"] * 3 + ["32×32"] * 4 + ["8×8"] * 2
    assert np.ptp(images.load_image(folder / "first" / "degradations.png")) > 0.5


@pytest.mark.parametrize(
    ("name", "text", "factor"),
    [("mask", "mask:0.5", 1), ("blur and bicubic", "blur:2,bicubic", 4)],
)
def test_the_error_is_that_of_the_degraded_result(folder, name, text, factor):
    operator = operators.parse(text)(factor)
    with np.load(folder / "first" / "cells" / f"{name}.npz") as cell:
        for image, l2 in zip(cell["images"][0], cell["l2"][0], strict=True):
            error = float(np.mean((operator(image) - cell["inputs"][0]) ** 2))
            assert l2 == pytest.approx(error, rel=1e-5)  # in float32, which is added up otherwise


def test_the_same_settings_give_the_same_rows(folder):
    arguments = "--config=first/config.json", "--workdir=again"
    result = run_experiment("degradations", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    for name in ("table.csv",):
        assert (folder / "again" / name).read_bytes() == (folder / "first" / name).read_bytes()


def test_a_second_run_only_computes_what_is_missing(folder):
    (folder / "first" / "cells" / "grey.npz").unlink()
    cells = {path: path.stat().st_mtime_ns for path in (folder / "first" / "cells").iterdir()}
    result = run_experiment("degradations", *TINY, "--workdir=first", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    timings = read_table(folder / "first" / "timings.csv")
    assert [row["cell"] for row in timings] == ["grey"]
