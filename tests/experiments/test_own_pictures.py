"""Own pictures: what their searches come to is kept beside the weights, size by size."""

import json
import shutil

import pytest
from experiment_helpers import run_code, run_experiment

from pulse_jax.generators import checkpoint


@pytest.mark.slow
def test_figures_are_kept_for_each_side(tmp_path):
    shutil.copytree(checkpoint.find("faces64"), tmp_path / "faces")
    earlier = {"pictures": 3, "largest l2": 0.1}
    (tmp_path / "faces" / "own_pictures.json").write_text(json.dumps({"16": earlier}))
    flags = "--generator=faces", "--pictures=2", "--sides=7,8"
    result = run_experiment("own_pictures", *flags, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert "own_pictures: --sides=7 does not divide the generator's 64" in result.stderr
    found = json.loads((tmp_path / "faces" / "own_pictures.json").read_text())
    assert found["16"] == earlier and found["8"]["pictures"] == 2
    assert 1 < found["8"]["largest steps"] < 60
    assert found["8"]["largest l2"] < 2e-3 and -5 < found["8"]["mean score"] < 0


def test_without_a_result_none_is_promised(tmp_path):
    code = """
import sys
import own_pictures

sys.argv = ["own_pictures.py", "--generator=faces64", "--sides=7,9"]
own_pictures.door.run(own_pictures.main)
"""
    result = run_code(code, cwd=tmp_path)
    for side in 7, 9:
        assert f"--sides={side} does not divide the generator's 64" in result.stderr
    assert "SystemExit: 1" in result.stderr and result.stdout == ""
