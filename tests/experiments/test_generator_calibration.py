"""The experiment about calibration of a generator's posterior, in small."""

import numpy as np
import pytest
from experiment_helpers import read_table, run_experiment, save_small_generator

from pulse_jax import images

pytestmark = pytest.mark.slow  # compiles four samplers and a search


def test_all_are_judged_and_a_second_run_computes_nothing(tmp_path):
    save_small_generator(tmp_path / "small")
    arguments = (
        *("--generator=small", "--factor=4", "--inputs=10", "--restarts=5", "--workdir=out"),
        "--eps=1",  # so that searches end where they begin
    )
    for _ in range(2):
        result = run_experiment("generator_calibration", *arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    rows = {row["samples"]: row for row in read_table(tmp_path / "out" / "table.csv")}
    assert len(rows) == 5
    assert all(0 <= float(row["p-value of ranks"]) <= 1 for row in rows.values())
    assert float(rows["hmc"]["p-value of ranks"]) > 0.001
    assert float(rows["hmc"]["draws per truth moved"]) > 0.05  # or no fault could show
    assert [name for name, row in rows.items() if row["Δcal"]] == ["restarts of a search"]
    cells = tmp_path / "out" / "cells"
    assert len(list(cells.iterdir())) == 10  # of eight truths, and of two
    starts = [np.load(cells / f"restarts of a search {i}.npz")["draws"] for i in ("000", "008")]
    apart = np.abs(starts[0].reshape(-1, 1, 192) - starts[1].reshape(-1, 192)).max(-1)
    assert apart.min() > 0.01  # no two searches begin at the same point
    assert np.ptp(images.load_image(tmp_path / "out" / "calibration.png")) > 0.5


def test_too_little_is_told_before_the_work(tmp_path):
    result = run_experiment("generator_calibration", "--restarts=1", cwd=tmp_path)
    assert result.stderr == "generator_calibration: --restarts=1: Δcal takes at least 2\n"
