"""README's first picture and the cards' others come from one command each."""

import numpy as np
import pytest
from experiment_helpers import run_experiment

import pulse_jax
from pulse_jax.generators import checkpoint
from pulse_jax.images import load_image


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, name", [("search_picture", "search.png"), ("sample_picture", "samples.png")]
)
def test_a_picture_is_that_of_the_card(tmp_path, script, name):
    result = run_experiment(script, "--output=made.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    made = load_image(tmp_path / "made.png")
    shown = load_image(checkpoint.find(pulse_jax.Settings.generator) / name)
    # Each processor rounds otherwise, and searches part from each other.
    assert made.shape == shown.shape and np.median(np.abs(made - shown)) < 2 / 255
