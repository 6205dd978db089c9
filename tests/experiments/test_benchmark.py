"""The benchmark: its PyTorch search is ours, its count of operations the official one."""

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiment_helpers import (
    complaints,
    read_table,
    run_code,
    run_experiment,
    save_small_generator,
)
from helpers import relative_error

import pulse_jax
from pulse_jax.generators import stylegan

ROOT = Path(__file__).parents[2]


def python(*arguments):
    """A process of its own, since scripts and the command define flags of the same names."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "experiments")))
    }
    command = [sys.executable, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_pytorch_search_is_ours(monkeypatch, traced_alone):
    """Images, then l2 over ten steps; layers are fused from side 16 on, to have a small one."""
    torch_stylegan = pytest.importorskip("torch_stylegan", exc_type=ImportError)
    for module in (stylegan, torch_stylegan):
        monkeypatch.setattr(module, "FUSED_FROM", 16)
    network = stylegan.StyleGAN(16, (8, 8, 4), latent_size=8, mapping_layers=1)
    noise = [jnp.zeros((1, *shape)) for shape in network.noise_shapes]
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8)), noise)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    params["latent_fit"] = {"mean": rng.standard_normal(8, np.float32), "std": np.full(8, 1.5)}
    generator, loss = pulse_jax.style_generator(network), pulse_jax.Loss()
    schedule = pulse_jax.SCHEDULES["linear1cycledrop"](0.4, 100)
    optimizer = pulse_jax.SCHEMES["rescale"](pulse_jax.OPTIMIZERS["adam"](schedule))
    search = pulse_jax.build(generator, pulse_jax.operators.bicubic(2), loss, optimizer)
    samples = jax.vmap(generator.sample)(jax.random.split(jax.random.key(1), 2))
    target = rng.random((2, 8, 8, 3), np.float32)

    rates = schedule(np.arange(10))
    theirs = torch_stylegan.Search(params, *samples, target, loss, np.asarray(rates))
    ours = jax.jit(jax.vmap(generator.synthesize, (None, 0, 0)))(params, *samples)
    assert relative_error(theirs.images(), ours) <= 1e-5
    _, info = pulse_jax.run(search, params, target, jax.vmap(search.init)(*samples), 10)
    l2 = np.stack([theirs.step() for _ in range(10)], axis=1)
    assert l2[0, -1] < l2[0, 0]
    assert relative_error(l2, info.l2) <= 1e-3


def test_operations_of_the_official_stylegan(tmp_path):
    """At 1024², image and gradient: 128 thousand million."""
    code = "import benchmark as b; print(b.step_operations(b.StyleGAN(1024, b.bench.CHANNELS)))"
    result = run_code(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert abs(float(result.stdout) / 1e9 - 128) < 1


@pytest.mark.slow
def test_steps_are_measured(tmp_path):
    script = [ROOT / "experiments" / "benchmark.py", f"--workdir={tmp_path}", "--repeats=2"]
    table = python(*script, "--generators=stylegan8", "--recipes=original", "--restarts=2")
    with (tmp_path / "steps.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    header, _, line, told = table.splitlines()
    assert told == f"{tmp_path} has the results"
    assert header == "|" + "|".join(row) + "|" and line.startswith("|stylegan8|2|float32|original|")
    labels = [row.pop(name) for name in ("generator", "restarts", "dtype", "recipe")]
    assert labels == ["stylegan8", "2", "float32", "original"]
    assert row.pop("accepted/s") == row.pop("l2 added") == ""  # random weights
    assert all(0 < float(value) < math.inf for value in row.values())


def measure_small(script, mode, folder):
    """The one row of a benchmark's mode: two restarts of one picture, for a small network."""
    save_small_generator(folder / "small")
    sizes = ["--recipes=fast", "--faces=1", "--restarts=2", "--slots=1", "--steps=6", "--repeats=2"]
    flags = [f"--mode={mode}", "--generators=small", f"--workdir={folder / 'results'}", *sizes]
    result = run_experiment(script, *flags, cwd=folder)
    assert result.returncode == 0, result.stderr
    (row,) = read_table(folder / "results" / f"{mode}.csv")
    return row


@pytest.mark.slow
def test_a_search_on_all_cores_is_compared_with_one_on_a_single_device(tmp_path):
    row = measure_small("benchmark", "cores", tmp_path)
    assert row["restarts"] == "2" and int(row["cores"]) >= 1
    assert float(row["evaluations/s"]) > 0 and float(row["range"].split("–")[0]) > 0


def test_bad_lists_end_in_one_line(tmp_path):
    flags = "--dtypes=float7", "--generators=nothing", "--restarts=0", "--recipes=slow"
    for flag, line in zip(flags, complaints("benchmark", *flags, cwd=tmp_path), strict=True):
        assert line.startswith(f"benchmark: {flag}")
