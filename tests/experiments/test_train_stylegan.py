"""The trainer: what it writes, and that a resumed run is the uninterrupted one.

Each run is a process of its own, since the scripts and the command define flags of the same names.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pulse_jax
from pulse_jax import images
from pulse_jax.generators import checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for k, shape in enumerate([(8, 8, 3), (12, 20, 3), (30, 9, 3)]):
        images.save_image(folder / f"{k}.png", np.random.default_rng(k).random(shape))
    return folder


def python(*arguments, cwd):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "experiments"))),
        "JAX_COMPILATION_CACHE_DIR": str(cwd / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, folder):
    tiny = "--resolution=8 --channels=6,4 --latent_size=5 --mapping_layers=1 --batch_size=4"
    often = "--r1_interval=2 --save_steps=2 --noise_rate=0.5"
    script = [ROOT / "experiments" / "train_stylegan.py", f"--data_dir={folder}"]
    script += [*tiny.split(), *often.split()]
    for name, count in (("whole", 16), ("parts", 8), ("parts", 16)):
        python(*script, f"--output_dir={name}", f"--images={count}", cwd=tmp_path)

    whole, parts = (
        checkpoint.load_network(tmp_path / name / "generator")[1] for name in ("whole", "parts")
    )
    assert checkpoint.digest(whole) == checkpoint.digest(parts)

    with (tmp_path / "parts" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["images"]) for row in rows] == [8, 16]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    samples = images.load_image(tmp_path / "parts" / "samples_00000016.png")
    assert samples.shape == (8 * 9 - 1, 8 * 9 - 1, 3)

    generator, params = pulse_jax.load(tmp_path / "parts" / "generator")
    image = generator.synthesize(params, *generator.sample(jax.random.key(0)))
    assert image.shape == (8, 8, 3) and np.isfinite(image).all()
    score, weights = pulse_jax.load_discriminator(tmp_path / "parts" / "generator")
    assert np.isfinite(score(weights, jnp.stack([image] * 4))).all()


def test_folder_batches_are_crops_of_the_images_and_repeat_by_step(tmp_path, folder):
    code = f"""
import numpy, train_stylegan
train_stylegan.FLAGS(["", "--output_dir=", "--resolution=8", "--batch_size=64"])
batch = train_stylegan.folder_batches({str(folder)!r})
numpy.save("batches.npy", [batch(3), batch(3), batch(4)])
"""
    python("-c", code, cwd=tmp_path)
    first, again, other = np.load(tmp_path / "batches.npy")
    assert first.shape == (64, 8, 8, 3)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    square = 2 * images.load_image(folder / "0.png") - 1  # needs no crop
    found = [np.abs(first - s).max(axis=(1, 2, 3)) < 1e-5 for s in (square, square[:, ::-1])]
    assert found[0].any() and found[1].any() and not (found[0] & found[1]).any()
