"""The experiment about mixing, in small."""

import pytest
from experiment_helpers import read_table, run_experiment, save_small_generator

pytestmark = pytest.mark.slow  # compiles five samplers, twice


def test_gradients_help_chains_to_meet(tmp_path):
    save_small_generator(tmp_path / "small")
    arguments = (
        *("--generator=small", "--factor=4", "--inputs=1", "--restarts=4", "--steps=20"),
        *("--evaluations=960", "--workdir=out"),
    )
    result = run_experiment("mixing", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = read_table(tmp_path / "out" / "table.csv")
    assert len(rows) == 10
    linear = {row["sampler"]: row for row in rows if row["decoder"] == "linear decoder"}
    for name, row in linear.items():
        accepted = float(row["acceptance"])
        assert 0.15 < accepted < 0.35 if name == "pcn" else accepted > 0.5, name
    jumps = {name: float(row["jumps per 1,000 evaluations"]) for name, row in linear.items()}
    assert jumps["hmc"] > 5 * jumps["pcn"]
    priors = read_table(tmp_path / "out" / "priors.csv")
    assert [row["decoder"] for row in priors] == ["linear decoder", "generator"]
    assert float(priors[0]["ratio of deviations"]) == pytest.approx(1, abs=0.15)


def test_too_little_is_told_before_the_work(tmp_path):
    result = run_experiment("mixing", "--restarts=1", cwd=tmp_path)
    assert result.stderr == "mixing: --restarts=1: R-hat takes at least 2\n"
