"""The experiment about coverage, in small."""

import numpy as np
import pytest
from experiment_helpers import read_table, run_experiment, save_small_generator

from pulse_jax import images

pytestmark = pytest.mark.slow  # compiles a warm-up


def test_both_kinds_of_truths_are_judged_and_a_second_run_computes_nothing(tmp_path):
    save_small_generator(tmp_path / "small")
    arguments = (
        *("--generator=small", "--factor=4", "--inputs=6", "--restarts=3", "--steps=10"),
        *("--draws=20", "--thinning=5", "--workdir=out"),
    )
    for _ in range(2):
        result = run_experiment("coverage", *arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    own, others = read_table(tmp_path / "out" / "table.csv")
    assert own["truths"] == "drawn by the generator"
    assert float(own["p-value of ranks"]) > 0.001
    assert float(own["Δcal"].split()[0]) > 2 * float(others["Δcal"].split()[0])
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 12
    with np.load(tmp_path / "out" / "cells" / "others 000.npz") as cell:
        assert cell["draws"].shape == (12, 192) and cell["read of draws"].shape == (12, 0)
    assert np.ptp(images.load_image(tmp_path / "out" / "coverage.png")) > 0.5
    assert not (tmp_path / "out" / "reliability.csv").exists()  # it has no reader


def test_too_little_is_told_before_the_work(tmp_path):
    result = run_experiment("coverage", "--inputs=1", cwd=tmp_path)
    assert result.stderr == "coverage: --inputs=1: TARP takes at least 2\n"
    result = run_experiment("coverage", "--draws=15", "--thinning=5", cwd=tmp_path)
    assert result.stderr.startswith("coverage: --draws=15 --thinning=5: an effective sample size")
