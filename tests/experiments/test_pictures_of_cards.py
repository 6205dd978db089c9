"""README's first picture and the cards' others come from one command each."""

import numpy as np
import pytest
from experiment_helpers import run_experiment

import pulse_jax
from pulse_jax.generators import checkpoint
from pulse_jax.images import load_image


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, name, of_all",
    # Each processor rounds otherwise, and searches part from each other.
    [("search_picture", "search.png", np.median), ("sample_picture", "samples.png", np.max)],
)
def test_a_picture_is_that_of_the_card(tmp_path, script, name, of_all):
    result = run_experiment(script, "--output=made.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    made = load_image(tmp_path / "made.png")
    shown = load_image(checkpoint.find(pulse_jax.Settings.generator) / name)
    assert made.shape == shown.shape and of_all(np.abs(made - shown)) < 2 / 255
