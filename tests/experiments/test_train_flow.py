"""The trainer of flows: it learns, goes on where it stopped, and makes what the search takes."""

import csv

import jax
import numpy as np
import pytest
from experiment_helpers import complaints
from test_train_stylegan import ROOT, python

import pulse_jax
from pulse_jax import images

SCRIPT = str(ROOT / "experiments" / "train_flow.py")
TINY = "--resolution=8", "--channels=32", "--batch_size=16", "--quality_images=64"


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """Of plain images, dark red and light blue: their folder and the run's."""
    folder = tmp_path_factory.mktemp("flow")
    (folder / "data").mkdir()
    for i in range(8):
        colour = np.float32([[0.3, 0, 0], [0.7, 0.7, 1]][i % 2])
        images.save_image(folder / "data" / f"{i}.png", np.broadcast_to(colour, (8, 8, 3)))
    flags = "--data_dir=data", "--output_dir=run", "--images=3200", "--learning_rate=0.003"
    result = python(SCRIPT, *flags, *TINY, "--ema_images=300", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.mark.slow
def test_samples_are_those_of_the_data(flow):
    generator, params = pulse_jax.load(flow / "generator", solver="flow:8")
    latents, frozen = jax.vmap(generator.sample)(jax.random.split(jax.random.key(0), 32))
    assert latents["noise_0"].shape == (32, 1, 4, 4, 12)
    found = jax.vmap(generator.synthesize, (None, 0, 0))(params, latents, frozen)
    assert found.shape == (32, 8, 8, 3)
    mean = np.asarray(found).mean((1, 2))
    distances = np.abs(mean[:, None] - np.float32([[0.3, 0, 0], [0.7, 0.7, 1]])).max(-1)
    assert np.median(distances.min(1)) < 0.1  # of either, and of both there are several
    assert (np.bincount(distances.argmin(1), minlength=2) >= 4).all()


@pytest.mark.slow
def test_the_loss_falls_and_is_told(flow):
    with (flow / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["loss"]) < 0.7  # 1.3 without learning
    assert float(row["images"]) == 3200
    assert {"frechet", "precision", "recall"} < row.keys()


def test_bad_flags_are_told_in_one_line(tmp_path):
    ends = {
        "--channels=24": "--channels=24 must be a multiple of 32",
        "--fold=3": "--resolution=8 is no multiple of 3, by which --fold=3 and 1 levels of",
        "--data_dir=nowhere": "nowhere",
        "--finish": "--finish takes --stop_minutes",
        "--learning_rate=nan": "--learning_rate=nan: not finite",
        "--channels=9999999": "--channels=9999999 is no whole number from 1 to 1000000",
    }
    always = "--output_dir=run", *TINY
    lines = complaints("train_flow", *ends, always=always, cwd=tmp_path)
    for line, told in zip(lines, ends.values(), strict=True):
        assert line.startswith("train_flow: ") and told in line


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path):
    command = [SCRIPT, "--data=galaxies", "--images=64", *TINY]
    for name, *parts in (("whole", []), ("parts", ["--stop_minutes=0"], ["--stop_minutes=0"], [])):
        for flags in parts:
            result = python(*command, f"--output_dir={name}", *flags, cwd=tmp_path)
            assert result.returncode == 0, result.stderr
    params = [
        pulse_jax.load(tmp_path / name / "generator", solver="flow:2")[1]
        for name in ("whole", "parts")
    ]
    jax.tree.map(np.testing.assert_array_equal, *params)
