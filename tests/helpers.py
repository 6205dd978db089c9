"""What several test files share: golden arrays, how they are compared, runs of an optimiser."""

import functools
import pickle
import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from pulse_jax.generators.official import read

DATA = Path(__file__).parent / "data"


def golden(name):
    """The arrays of `tests/data/<name>.npz`, computed with the original programs."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def weights(name):
    """What `read` reads in `tests/data/<name>`, for tests of other things. It may be changed."""
    return pickle.loads(_pickled(name))


@functools.cache
def _pickled(name):
    return pickle.dumps(read(DATA / name))


def as_dtype(tree, dtype):
    """The arrays of a tree, converted on the host: XLA would compile that for each shape."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf, dtype)), tree)


def both_precisions(float32, float64):
    """Cases of a test of others' numbers, with the bound on the error in each precision.

    In float32 XLA compiles as for users. Float64 is there to tell the formulas from rounding.
    """
    single = pytest.param(False, "float32", float32, marks=pytest.mark.optimised)
    return pytest.mark.parametrize(("x64", "dtype", "bound"), [single, (True, "float64", float64)])


def relative_error(actual, expected):
    """max |actual - expected| / max |expected|."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return np.abs(actual - expected).max() / np.abs(expected).max()


def precisions(function, *arguments):
    """What each product of matrices in a function asks of an accelerator, by its default."""
    with jax.default_matmul_precision("default"):
        program = jax.jit(function).lower(*arguments).as_text()
    return re.findall(r"stablehlo\.dot_general.*precision = \[(\w+), ", program)


def trajectory(optimizer, loss, params, steps):
    """Losses before each step and params after it: (steps,) and (steps, ...) per leaf."""

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params, value=value)
        params = optax.apply_updates(params, updates)
        return (params, state), (value, params)

    @jax.jit
    def run(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[1]

    return run(params)
