"""The comparison: rows of each method, and that the same settings repeat them."""

import csv
import math

import numpy as np
import pytest
from experiment_helpers import run_experiment

pytestmark = pytest.mark.slow
TINY = "--inputs=2 --restarts=2 --steps=3 --train_steps=2 --reference=160"
METHODS = ["truth", "nearest", "bicubic", "Lanczos", "network", "mean of PULSE", "PULSE"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("baselines")


@pytest.fixture(scope="module")
def first(folder):
    result = run_experiment("compare_baselines", *TINY.split(), "--workdir=first", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "first"


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_method_has_a_row_for_each_face(first):
    rows = {name: table(first / "cells" / f"{name}.csv") for name in METHODS}
    assert all([row["face"] for row in cell] == ["0", "1"] for cell in rows.values())
    columns = list(rows["truth"][0])
    assert columns[:5] == ["face", "PSNR", "SSIM", "NIQE", "l2"] and columns[-1] == "score"
    found = {name: {k: float(v) for k, v in cell[0].items()} for name, cell in rows.items()}
    assert math.isinf(found["truth"]["PSNR"]) and found["truth"]["SSIM"] == 1
    assert found["truth"]["energy"] == found["truth"]["energy in the beard"] == 1
    assert found["truth"]["l2"] < 1e-5  # rounding of the input
    for name in METHODS[1:]:
        assert 5 < found[name]["PSNR"] < 40 and 0 < found[name]["SSIM"] < 1
        assert found[name]["NIQE"] > 0 and found[name]["energy"] > 0
    assert found["bicubic"]["energy"] < 0.2
    assert found["bicubic"]["NIQE"] > found["truth"]["NIQE"]


def test_the_table_has_all_methods_and_the_lead(first):
    lines = table(first / "table.csv")
    assert [line["method"] for line in lines] == [
        *METHODS[:4],
        "network, 2 steps",
        *METHODS[5:],
        "PULSE against network",
        "PULSE against mean of PULSE",
    ]

    def column(name, key):
        return np.array([float(row[key]) for row in table(first / "cells" / f"{name}.csv")])

    for line, other in zip(lines[-2:], ("network", "mean of PULSE"), strict=True):
        niqe = (column("PULSE", "NIQE") - column(other, "NIQE")).mean()
        assert line["NIQE"].startswith(f"{niqe:.3g} [")
        energy = np.exp(np.log(column("PULSE", "energy") / column(other, "energy")).mean())
        assert line["energy"].startswith(f"{energy:.3g} [")
    for name in ("measures.png", "pictures.png"):
        assert (first / name).stat().st_size > 10_000


def test_the_same_settings_give_the_same_rows(folder, first):
    result = run_experiment(
        "compare_baselines", f"--config={first}/config.json", "--workdir=again", cwd=folder
    )
    assert result.returncode == 0, result.stderr
    for name in ["table.csv", *(f"cells/{name}.csv" for name in METHODS)]:
        assert (folder / "again" / name).read_bytes() == (first / name).read_bytes()


def test_a_second_run_only_computes_what_is_missing(folder, first):
    cells = {path: path.stat().st_mtime_ns for path in (first / "cells").iterdir()}
    (first / "cells" / "bicubic.csv").unlink()
    cells.pop(first / "cells" / "bicubic.csv")
    result = run_experiment("compare_baselines", *TINY.split(), "--workdir=first", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    assert [row["cell"] for row in table(first / "timings.csv")] == ["bicubic"]


def test_bad_settings_are_told_in_one_line(folder, first):
    result = run_experiment("compare_baselines", "--images=x", "--workdir=bad", cwd=folder)
    complaint = "--images=x: the network is only trained on drawn faces"
    assert result.returncode != 0 and result.stderr == f"compare_baselines: {complaint}\n"
