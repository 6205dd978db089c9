"""README's first picture and those of the cards' samples come from one command each."""

import numpy as np
import pytest
from experiment_helpers import run_experiment

import pulse_jax
from pulse_jax.generators import checkpoint
from pulse_jax.images import load_image


@pytest.mark.slow
def test_the_picture_is_that_of_the_card(tmp_path):
    result = run_experiment("search_picture", "--output=shown.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    made = load_image(tmp_path / "shown.png")
    shown = load_image(checkpoint.find(pulse_jax.Settings.generator) / "search.png")
    # Each processor rounds otherwise, and searches part from each other.
    assert made.shape == shown.shape and np.median(np.abs(made - shown)) < 2 / 255


@pytest.mark.slow
def test_the_samples_are_those_of_the_card(tmp_path):
    result = run_experiment("sample_picture", "--output=shown.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    made = load_image(tmp_path / "shown.png")
    shown = load_image(checkpoint.find(pulse_jax.Settings.generator) / "samples.png")
    assert made.shape == shown.shape and np.abs(made - shown).max() < 2.5 / 255
