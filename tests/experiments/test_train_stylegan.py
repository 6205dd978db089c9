"""The trainer: what it writes, and that a resumed run is the uninterrupted one."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_stylegan
from absl.testing import flagsaver

import pulse_jax
from pulse_jax import images
from pulse_jax.generators import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for k, shape in enumerate([(8, 8, 3), (12, 20, 3), (30, 9, 3)]):
        images.save_image(folder / f"{k}.png", np.random.default_rng(k).random(shape))
    return folder


@pytest.fixture(autouse=True)
def compile_once(tmp_path_factory):
    """Three runs of one program; compiling it is nearly all of their time."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.getbasetemp() / "cache"), 0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


def train(output, folder, count):
    tiny = "--resolution=8 --channels=6,4 --latent_size=5 --mapping_layers=1 --batch_size=4"
    often = f"--r1_interval=2 --save_steps=2 --images={count}"
    arguments = [f"--output_dir={output}", f"--data_dir={folder}", *tiny.split(), *often.split()]
    with flagsaver.flagsaver():
        train_stylegan.FLAGS(["train_stylegan", *arguments])
        train_stylegan.main(None)


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, folder):
    train(tmp_path / "whole", folder, 16)
    train(tmp_path / "parts", folder, 8)
    train(tmp_path / "parts", folder, 16)

    specs = [(tmp_path / run / "generator" / "spec.json") for run in ("whole", "parts")]
    assert specs[0].exists()
    whole, parts = (checkpoint.load_network(spec.parent)[1] for spec in specs)
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


def test_folder_batches_are_crops_of_the_images_and_repeat_by_step(folder):
    with flagsaver.flagsaver(resolution=8, batch_size=64):
        batch = train_stylegan.folder_batches(folder)
        first, again, other = batch(3), batch(3), batch(4)
    assert first.shape == (64, 8, 8, 3)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    square = 2 * images.load_image(folder / "0.png") - 1  # needs no crop
    found = [np.abs(first - s).max(axis=(1, 2, 3)) < 1e-5 for s in (square, square[:, ::-1])]
    assert found[0].any() and found[1].any() and not (found[0] & found[1]).any()
