"""Signatures are checked while the tests run, and say what type checkers of users can read."""

from importlib import resources

import jax
import jaxtyping
import numpy as np
import pytest

from pulse_jax import losses, starts


@pytest.mark.parametrize("shape", [(2, 2, 1), (2, 2), (4,)])
def test_shapes_that_a_signature_forbids_are_refused(shape):
    with pytest.raises(jaxtyping.TypeCheckError, match="target"):
        losses.l2(np.zeros((2, 2, 3)), np.zeros(shape))


def test_leaves_of_trees_that_a_signature_forbids_are_refused():
    with pytest.raises(jaxtyping.TypeCheckError, match="latents"):
        starts.vary(jax.random.key(0), {"style": np.zeros((2, 3)), "noise": np.zeros(3)}, 0.1)


def test_types_are_told_to_type_checkers():
    assert resources.files("pulse_jax").joinpath("py.typed").is_file()
