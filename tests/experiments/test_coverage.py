"""The experiment about coverage, in small."""

import json

import numpy as np
import pytest
from experiment_helpers import (
    complaints,
    read_table,
    run_code,
    run_experiment,
    save_small_generator,
)
from test_chains import needs_blackjax

from pulse_jax import images

EFFECTIVE = """
import json, coverage, numpy as np
coverage.FLAGS(["", "--restarts=4"])
rng = np.random.default_rng(0)
alone = rng.standard_normal((4, 50, 8), np.float32)
alike = np.broadcast_to(alone[:, :1], alone.shape)
draws = np.stack([alone, alike + 1e-3 * alone, alike]).reshape(3, 200, 8)
print(json.dumps(coverage.effective(rng, draws).tolist()))
"""


@needs_blackjax
def test_draws_of_a_chain_count_as_they_differ(tmp_path):
    result = run_code(EFFECTIVE, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    alone, alike, stuck = json.loads(result.stdout)
    assert 100 < alone < 300
    assert 4 <= alike < 6 and stuck == 4


@pytest.mark.slow  # compiles a warm-up
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
    first, second = complaints("coverage", "--inputs=1", "--draws=15 --thinning=5", cwd=tmp_path)
    assert first == "coverage: --inputs=1: TARP takes at least 2"
    assert second.startswith("coverage: --draws=15 --thinning=5: an effective sample size")


@needs_blackjax
def test_other_pictures_are_read_before_the_work(tmp_path):
    save_small_generator(tmp_path / "small")
    flags = "--generator=small --factor=4 --images=nowhere --workdir=out"
    (line,) = complaints("coverage", flags, cwd=tmp_path)
    assert line.startswith("coverage: nowhere: can't be read")
    assert not list((tmp_path / "out").glob("cells/*"))
