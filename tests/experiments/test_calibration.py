"""The experiment about calibration, in small."""

import numpy as np
import pytest
from experiment_helpers import read_table, run_experiment

from pulse_jax import images

pytestmark = pytest.mark.slow  # compiles four samplers


def test_right_samples_pass_and_wrong_ones_do_not(tmp_path):
    arguments = "--inputs=128", "--restarts=9", "--generator=experiment_helpers:linear"
    result = run_experiment("calibration", *arguments, "--workdir=first", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = read_table(tmp_path / "first" / "table.csv")
    p_values = {row["samples"]: float(row["p-value of ranks (SBC)"]) for row in rows}
    assert len(rows) == 6 and min(p_values["hmc"], p_values["geodesic_hmc"]) > 0.01
    others = [p for name, p in p_values.items() if not name.endswith("hmc")]
    assert len(others) == 4 and max(others) < 0.01
    assert np.ptp(images.load_image(tmp_path / "first" / "calibration.png")) > 0.5


def test_too_little_is_told_before_the_work(tmp_path):
    result = run_experiment("calibration", "--inputs=1", cwd=tmp_path)
    assert result.stderr == "calibration: --inputs=1: TARP takes at least 2\n"
