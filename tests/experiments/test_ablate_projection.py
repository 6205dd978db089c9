"""The two ablations: rows of every restart, the table, and that a second run takes them up."""

import numpy as np
import pytest
from experiment_helpers import read_table, run_experiment, save_small_generator

pytestmark = pytest.mark.slow
TINY = "--generator=small", "--inputs=2", "--restarts=2", "--steps=3", "--factor=4"


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("ablate_projection", ("--variants", "rescale", "none")),
        ("latent_space", ("--spaces", "w", "z tiled")),
    ],
)
def test_rows_and_table(script, names, tmp_path):
    flag, first, second = names
    save_small_generator(tmp_path / "small")
    arguments = *TINY, f"{flag}={first},{second}", "--workdir=a"
    result = run_experiment(script, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr

    cells = tmp_path / "a" / "cells"
    rows = read_table(cells / f"{second}.csv")
    assert [(row["input"], row["restart"]) for row in rows] == [
        *map(tuple, ["00", "01", "10", "11"])
    ]
    with np.load(cells / f"{second}.npz") as found:
        np.testing.assert_allclose([float(r["l2"]) for r in rows], found["l2"].ravel(), rtol=1e-6)
        a, b = found["images"][1]
    rms = np.sqrt(np.mean((a - b) ** 2))
    assert float(rows[3]["diversity"]) == pytest.approx(rms, rel=1e-5)
    table = read_table(tmp_path / "a" / "table.csv")
    assert [line[""] for line in table] == [first, second]
    mean = np.mean([float(row["realism"]) for row in rows])
    assert float(table[1]["realism"].split(" ")[0]) == pytest.approx(mean, rel=0.01)
    assert table[0][f"realism − {first}"] == "0 [0, 0]"
    before = [float(row["realism"]) for row in read_table(cells / f"{first}.csv")]
    lead = mean - np.mean(before)
    assert float(table[1][f"realism − {first}"].split(" ")[0]) == pytest.approx(lead, rel=0.01)
    for name in ("pictures.png", *["ablation.png"] * (script == "ablate_projection")):
        assert (tmp_path / "a" / name).stat().st_size > 10_000

    # A cell that is gone is computed again, from the saved settings, to the same bytes.
    before = {path.name: path.read_bytes() for path in cells.glob("*.csv")}
    (cells / f"{second}.npz").unlink()
    (cells / f"{second}.csv").unlink()
    config = tmp_path / "a" / "config.json"
    again = run_experiment(script, f"--config={config}", "--workdir=a", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {path.name: path.read_bytes() for path in cells.glob("*.csv")} == before

    wrong = run_experiment(script, *TINY, f"{flag}=cube", "--workdir=b", cwd=tmp_path)
    assert wrong.returncode == 1 and f"{flag}=cube: none of" in wrong.stderr
    other = run_experiment(script, *arguments, "--seed=7", cwd=tmp_path)
    assert other.returncode == 1 and "--seed=1000, not 7" in other.stderr
