"""The soap bubble: norms, scores and the figure, and that the same settings repeat them."""

import numpy as np
import pytest
from experiment_helpers import complaints, read_table, save_small_generator

from pulse_jax import images
from pulse_jax.files import held

TINY = (
    "--generator=small",
    "--inputs=3",
    "--shown=2",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the results of a first run."""
    folder = tmp_path_factory.mktemp("soap_bubble")
    save_small_generator(folder / "small")
    assert complaints("soap_bubble", "--workdir=first", always=TINY, cwd=folder) == [None]
    return folder


def test_norms_are_those_of_normal_points(folder):
    rows = read_table(folder / "first" / "cells" / "norms.csv")
    table = np.array([[float(value) for value in row.values()] for row in rows])
    for d in (2, 8, 32, 128, 512):
        _, norm, density = table[table[:, 0] == d].T
        weight = density / density.sum()
        mean = weight @ norm
        assert density.sum() * (norm[1] - norm[0]) == pytest.approx(1)
        assert weight @ norm**2 == pytest.approx(1, abs=0.02)
        spread = np.sqrt(weight @ (norm - mean) ** 2)
        assert spread == pytest.approx(np.sqrt(0.5 / d), rel=0.1)


def test_every_radius_has_a_row_for_each_pair(folder):
    rows = read_table(folder / "first" / "cells" / "pairs.csv")
    radii = ["0.2", "0.4", "0.6", "0.8", "1.0", "1.25", "1.5", "2.0", "2.5", "3.0"]
    assert [(row["radius"], row["pair"]) for row in rows] == [(r, i) for r in radii for i in "012"]
    with np.load(folder / "first" / "cells" / "samples.npz") as cell:
        shown = cell["shown"]
    assert shown.shape == (10, 2, 8, 8, 3)
    difference = [float(row["difference"]) for row in rows if row["pair"] == "0"]
    np.testing.assert_allclose(
        difference, np.sqrt(np.mean((shown[:, 0] - shown[:, 1]) ** 2, axis=(1, 2, 3))), rtol=1e-5
    )
    assert difference[0] != difference[4] != difference[9]
    table = read_table(folder / "first" / "table.csv")
    assert table[4]["score − that at 1"].split()[0] == "0"
    assert np.ptp(images.load_image(folder / "first" / "soap_bubble.png")) > 0.5


def test_a_folder_is_for_one_run_at_a_time(folder):
    """Another one, with other settings, would be refused only once a cell is there."""
    with held(folder / "begun"):
        told = ["soap_bubble: --workdir=begun: another run is writing there"]
        assert complaints("soap_bubble", "--workdir=begun", always=TINY, cwd=folder) == told
        assert not list((folder / "begun").iterdir())


def test_the_same_settings_give_the_same_rows(folder):
    flags = "--config=first/config.json --workdir=again"
    assert complaints("soap_bubble", flags, cwd=folder) == [None]
    for name in ("cells/norms.csv", "cells/pairs.csv", "table.csv"):
        assert (folder / "again" / name).read_bytes() == (folder / "first" / name).read_bytes()


def test_a_second_run_only_computes_what_is_missing(folder):
    (folder / "first" / "cells" / "norms.csv").unlink()
    cells = {path: path.stat().st_mtime_ns for path in (folder / "first" / "cells").iterdir()}
    assert complaints("soap_bubble", "--workdir=first", always=TINY, cwd=folder) == [None]
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    timings = read_table(folder / "first" / "timings.csv")
    assert [row["cell"] for row in timings] == ["norms"]


def test_results_of_other_weights_are_refused(folder):
    save_small_generator(folder / "other" / "small", seed=1)
    for name in ("config.json", "cells"):
        (folder / "other" / name).symlink_to(folder / "first" / name)
    (line,) = complaints("soap_bubble", "--workdir=.", always=TINY, cwd=folder / "other")
    assert line.startswith("soap_bubble: --workdir=. has results of other settings: SHA-256")


def test_bad_configs_end_in_one_line(tmp_path):
    (tmp_path / "other.json").write_text('{"flags": {"spaces": ["w"]}}')
    missing, other = "--config=given.json", "--config=other.json"
    assert complaints("soap_bubble", missing, other, cwd=tmp_path) == [
        f"soap_bubble: {missing}: can't be read: No such file or directory",
        f"soap_bubble: {other} is of another script: it has --spaces",
    ]
