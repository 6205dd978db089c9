"""Robustness to noise: its rows and figures, and that the same settings repeat them."""

import numpy as np
import pytest
from experiment_helpers import read_table, run_experiment

from pulse_jax import images

pytestmark = pytest.mark.slow  # half a minute each: compiling

TINY = (
    "--generator=experiment_helpers:linear",
    "--inputs=2",
    "--restarts=2",
    "--steps=3",
    "--factor=4",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the results of a first run."""
    folder = tmp_path_factory.mktemp("noise_robustness")
    result = run_experiment("noise_robustness", *TINY, "--workdir=first", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_input_has_a_row_for_each_restart(folder):
    rows = read_table(folder / "first" / "cells" / "distances.csv")
    cells = [f"noise {sigma}" for sigma in (0, 5, 10, 25, 50, 100)]
    cells += ["salt and pepper", "motion blur", "motion blur, known"]
    assert [(row["cell"], row["input"], row["restart"]) for row in rows] == [
        (cell, i, k) for cell in cells for i in "01" for k in "01"
    ]
    distance = {
        cell: np.mean([float(row["input to clean"]) for row in rows if row["cell"] == cell])
        for cell in cells
    }
    assert distance["noise 0"] == 0
    assert distance["noise 10"] == pytest.approx(10, rel=0.15)
    assert distance["noise 5"] == pytest.approx(distance["noise 10"] / 2, rel=0.05)
    assert distance["noise 100"] < 100  # clipped
    assert 0 < distance["motion blur"] == distance["motion blur, known"]
    assert all(float(row["result to clean"]) > 0 for row in rows)


def test_a_result_differs_with_what_the_search_knows(folder):
    cells = folder / "first" / "cells"
    blind, known = (np.load(cells / f"motion blur{end}.npz")["images"] for end in ("", ", known"))
    assert blind.shape == known.shape == (2, 2, 32, 32, 3)
    assert not np.array_equal(blind, known)


def test_the_table_has_the_differences(folder):
    for row in read_table(folder / "first" / "table.csv"):
        before, after, difference = (
            float(row[name].split()[0])
            for name in ("its distance to the clean one", "the result's", "difference")
        )
        assert difference == pytest.approx(after - before, abs=0.2)
    for name in ("noise.png", "pictures.png"):
        assert np.ptp(images.load_image(folder / "first" / name)) > 0.5


def test_the_same_settings_give_the_same_rows(folder):
    arguments = "--config=first/config.json", "--workdir=again"
    result = run_experiment("noise_robustness", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    for name in ("cells/distances.csv", "table.csv"):
        assert (folder / "again" / name).read_bytes() == (folder / "first" / name).read_bytes()


def test_a_second_run_only_computes_what_is_missing(folder):
    (folder / "first" / "cells" / "noise 25.npz").unlink()
    cells = {path: path.stat().st_mtime_ns for path in (folder / "first" / "cells").iterdir()}
    result = run_experiment("noise_robustness", *TINY, "--workdir=first", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    timings = read_table(folder / "first" / "timings.csv")
    assert [row["cell"] for row in timings] == ["noise 25"]
