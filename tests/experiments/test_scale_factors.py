"""The factors: rows and figures, and that the same settings repeat them."""

import numpy as np
import pytest
from experiment_helpers import read_table, run_experiment, save_small_generator

from pulse_jax import images

pytestmark = pytest.mark.slow  # half a minute each: compiling

TINY = (
    "--generator=small",
    "--inputs=2",
    "--restarts=2",
    "--steps=3",
    "--factors=2,4",
    "--eps=0.1",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the results of a first run."""
    folder = tmp_path_factory.mktemp("scale_factors")
    save_small_generator(folder / "small")
    result = run_experiment("scale_factors", *TINY, "--workdir=first", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_factor_has_a_row_for_each_input(folder):
    rows = read_table(folder / "first" / "cells" / "measures.csv")
    assert [(row["factor"], row["input"]) for row in rows] == [
        (factor, i) for factor in "24" for i in "01"
    ]
    for row in rows:
        with np.load(folder / "first" / "cells" / f"factor {row['factor']}.npz") as cell:
            found, l2 = (cell[name][int(row["input"])] for name in ("images", "l2"))
        assert float(row["l2"]) == pytest.approx(l2.mean())
        assert float(row["success"]) == (l2 <= 0.1).mean()
        rms = np.sqrt(np.mean((found[0] - found[1]) ** 2))
        assert float(row["diversity"]) == pytest.approx(rms, rel=1e-5)
        assert np.isfinite(float(row["realism"]))


def test_the_table_ends_with_samples_and_true_faces(folder):
    rows = read_table(folder / "first" / "table.csv")
    assert [row["factor"] for row in rows] == ["2", "4", "samples", "true faces"]
    (others,) = read_table(folder / "first" / "cells" / "others.csv")
    assert 0 < float(others["diversity of samples"]) < 1
    assert float(others["realism of samples"]) != float(others["realism of faces"])
    for name in ("factors.png", "pictures.png"):
        assert np.ptp(images.load_image(folder / "first" / name)) > 0.5


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--restarts=1", "--restarts=1: diversity takes at least 2"),
        ("--factors=4,5", "--factors=4,5: 5 does not divide the generator's 8 pixels"),
    ],
)
def test_bad_settings_are_told_in_one_line(folder, flag, complaint):
    workdir = f"--workdir=bad{flag}"
    result = run_experiment("scale_factors", *TINY, flag, workdir, cwd=folder)
    assert result.returncode != 0 and result.stderr == f"scale_factors: {complaint}\n"


def test_the_same_settings_give_the_same_rows(folder):
    arguments = "--config=first/config.json", "--workdir=again"
    result = run_experiment("scale_factors", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    for name in ("cells/measures.csv", "cells/others.csv", "table.csv"):
        assert (folder / "again" / name).read_bytes() == (folder / "first" / name).read_bytes()


def test_a_second_run_only_computes_what_is_missing(folder):
    (folder / "first" / "cells" / "factor 4.npz").unlink()
    cells = {path: path.stat().st_mtime_ns for path in (folder / "first" / "cells").iterdir()}
    result = run_experiment("scale_factors", *TINY, "--workdir=first", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    timings = read_table(folder / "first" / "timings.csv")
    assert [row["cell"] for row in timings] == ["factor 4"]
