"""The bundled generator: what is promised about it, measured anew."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

import pulse_jax
from pulse_jax import __main__ as command
from pulse_jax import images
from pulse_jax.generators import checkpoint

ROOT = Path(__file__).parents[1]
FACES64 = checkpoint.find("faces64")


def test_the_bundle_is_whole_and_small():
    assert {path.name for path in FACES64.iterdir()} >= {"spec.json", "README.md", "examples"}
    assert sum(path.stat().st_size for path in FACES64.rglob("*")) < 10e6
    generator, params = pulse_jax.load("faces64")
    image = generator.synthesize(params, *generator.sample(jax.random.key(0)))
    assert image.shape == (64, 64, 3)
    examples, _ = images.list_images(FACES64 / "examples")
    assert [images.load_image(path).shape for path in examples] == 4 * [(8, 8, 3)]


def test_the_discriminator_prefers_samples_to_noise():
    generator, params = pulse_jax.load("faces64")
    score, weights = pulse_jax.load_discriminator("faces64")
    samples = jax.vmap(generator.sample)(jax.random.split(jax.random.key(0), 8))
    pictures = jax.jit(jax.vmap(generator.synthesize, (None, 0, 0)))(params, *samples)
    noise = jax.random.uniform(jax.random.key(1), pictures.shape)
    score = jax.jit(score)
    assert np.median(score(weights, pictures)) > np.median(score(weights, noise))


def test_without_flags_the_examples_are_upsampled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with flagsaver.flagsaver(cache_dir=str(tmp_path / "cache")):
        command.run(command.parse(["pulse_jax", "--steps=2", "--restarts=2"]))
    for k in (1, 2, 3, 4):
        assert len(list((tmp_path / "runs" / f"face_0{k}").glob("hr_*.png"))) == 2


@pytest.mark.slow
def test_the_three_figures_of_the_model_card(tmp_path):
    script = ROOT / "experiments" / "evaluate_generator.py"
    arguments = [sys.executable, script, f"--output_dir={tmp_path}"]
    subprocess.run(arguments, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures["success"] >= 0.95
    assert 0.7 <= figures["sharpness"] <= 1.2
    assert figures["diversity"] >= 0.03
