"""Diversity: its rows, the attributes' coordinates, and that the same settings repeat them."""

import csv

from common.faces import Attributes

import numpy as np
import pytest
from experiment_helpers import run_experiment

from pulse_jax import images

pytestmark = pytest.mark.slow
TINY = "--inputs=2 --restarts=2 --steps=3 --eps=1 --train_steps=2 --test_faces=16 --r2=-100"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("diversity")


@pytest.fixture(scope="module")
def first(folder):
    """A run's output and its files."""
    result = run_experiment("diversity", *TINY.split(), "--workdir=first", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "first"


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_pair_of_one_input_is_compared(first):
    pairs = table(first / "cells" / "pairs.csv")
    assert [(row["of"], row["input"]) for row in pairs] == [
        ("different faces", "0"),
        ("results of one input", "0"),
        ("results of one input", "1"),
    ]
    assert all(0 < float(row["small"]) < float(row["large"]) < 1 for row in pairs)
    ratios = [float(row["ratio"].split()[0]) for row in table(first / "distances.csv")]
    first_pair = float(pairs[0]["large"]) / float(pairs[0]["small"])
    np.testing.assert_allclose(ratios[0], first_pair, rtol=0.01)


def test_every_attribute_is_read(first):
    rows = table(first / "cells" / "readings.csv")
    expected = [(name, str(i)) for name in Attributes._fields for i in range(2)]
    assert [(row["attribute"], row["input"]) for row in rows] == expected
    for row in rows:
        assert float(row["R²"]) < 1
        assert float(row["among results"]) >= 0 and float(row["from the truth"]) >= 0
    assert len(table(first / "attributes.csv")) == len(Attributes._fields)


def test_pictures_have_two_rows_for_a_face(first):
    assert images.load_image(first / "pictures.png").shape == (4 * 66 - 2, 3 * 66 - 2, 3)
    assert (first / "diversity.png").stat().st_size > 10_000


def test_the_same_settings_give_the_same_rows(folder, first):
    result = run_experiment(
        "diversity", f"--config={first}/config.json", "--workdir=again", cwd=folder
    )
    assert result.returncode == 0, result.stderr
    for name in ("cells/pairs.csv", "cells/readings.csv", "attributes.csv"):
        assert (folder / "again" / name).read_bytes() == (first / name).read_bytes()


def test_a_second_run_only_computes_what_is_missing(folder, first):
    cells = {path: path.stat().st_mtime_ns for path in (first / "cells").iterdir()}
    (first / "attributes.csv").unlink()
    (first / "cells" / "pairs.csv").unlink()
    cells.pop(first / "cells" / "pairs.csv")
    result = run_experiment("diversity", *TINY.split(), "--workdir=first", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    assert (first / "attributes.csv").is_file() and (first / "cells" / "pairs.csv").is_file()
    assert [row["cell"] for row in table(first / "timings.csv")] == ["pairs"]


def test_bad_settings_are_told_in_one_line(folder, first):
    for flag, complaint in {
        "--restarts=1": "--restarts=1: differences take at least 2",
        "--images=x": "--images=x: the reader is only trained on drawn faces",
    }.items():
        result = run_experiment("diversity", flag, "--workdir=bad", cwd=folder)
        assert result.returncode != 0 and result.stderr == f"diversity: {complaint}\n"
