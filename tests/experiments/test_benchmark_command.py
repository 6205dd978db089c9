"""What the command costs: beside its search alone, and until its first result."""

import os

import pytest
from experiment_helpers import complaints, run_python
from test_benchmark import measure_small


@pytest.mark.slow
def test_the_command_is_compared_with_its_search(tmp_path):
    """It ends in an error if they have found anything else."""
    row = measure_small("benchmark_command", "whole", tmp_path)
    assert row["restarts"] == "2" and row["slots"] == "1" and int(row["devices"]) >= 1
    assert 0 < float(row["mean steps"]) <= 6
    whole, alone = float(row["command s"]), float(row["search s"])
    least, most = map(float, row["range"].split("–"))
    assert 0 < least <= most and whole > 0 and alone > 0
    assert least - 1e-3 <= float(row["command / search"]) <= most + 1e-3


@pytest.mark.slow
def test_the_start_is_compared_with_the_import_of_jax(tmp_path):
    """It ends in an error if the command does without a result."""
    row = measure_small("benchmark_command", "start", tmp_path)
    assert row["restarts"] == "2"
    assert float(row["range"].split("–")[0]) > 1  # the command imports JAX, too


def test_bad_lists_end_in_one_line(tmp_path):
    flags = "--generators=nothing", "--restarts=0", "--recipes=slow"
    for flag, line in zip(
        flags, complaints("benchmark_command", *flags, cwd=tmp_path), strict=True
    ):
        assert line.startswith(f"benchmark_command: {flag}")


def test_who_ends_it_ends_the_command_that_it_times(tmp_path):
    ending = "import os, pathlib, signal, time; pathlib.Path('pid').write_text(str(os.getpid()))\n"
    ending += "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    (tmp_path / "pulse_jax").mkdir()
    (tmp_path / "pulse_jax" / "__init__.py").touch()  # without it, the true one is taken
    (tmp_path / "pulse_jax" / "__main__.py").write_text(ending)
    code = """
import sys
sys.path.pop(0)  # where the command is that ends it

from pathlib import Path
from types import SimpleNamespace
import benchmark_command as script

script.time_start(SimpleNamespace(as_flags=list), Path())
"""
    result = run_python("-c", code, cwd=tmp_path)
    assert result.stderr.endswith("KeyboardInterrupt\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
