"""Optimisers: the reference's trajectories, its schedules, and L-BFGS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden, relative_error, trajectory

from pulse_jax.optimizers import OPTIMIZERS, SCHEDULES, _two_loops, lbfgs
from pulse_jax.schemes import SCHEMES

G = golden("spherical")
PARTS = "init", "target", "coef"
LEARNING_RATE, STEPS = G["lr"].item(), G["steps"].item()
NAN, INF = np.nan, np.inf
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def norms(x, axes):
    return np.sqrt(np.sum(np.asarray(x, np.float64) ** 2, axes))


@pytest.mark.parametrize("optimizer", ["sgd", "sgdm", "adam", "adamax"])
@every_schedule
def test_rescale_equals_the_reference(optimizer, schedule):
    def search(params, target, coefficient):
        """One sample's trajectory, as a search maps it over restarts."""

        def loss(params):
            parts = zip(params, target, coefficient, strict=True)
            return sum(jnp.sum(c * (p - t) ** 2) / 2 for p, t, c in parts)

        learning_rate = SCHEDULES[schedule](LEARNING_RATE, STEPS)
        sphere_optimizer = SCHEMES["rescale"](OPTIMIZERS[optimizer](learning_rate))
        return trajectory(sphere_optimizer, loss, params, STEPS)

    with jax.enable_x64(True):
        problem = [[jnp.asarray(G[f"p{i}_{part}"]) for i in range(3)] for part in PARTS]
        losses, params = jax.jit(jax.vmap(search))(*problem)

    run = f"{optimizer}_{schedule}"
    assert relative_error(np.asarray(losses).sum(0), G[f"{run}_loss"]) <= 1e-9
    for i, leaf in enumerate(params):
        stored = np.asarray(leaf)[:, G["stored_after_step"] - 1].swapaxes(0, 1)
        assert relative_error(stored, G[f"{run}_p{i}"]) <= 1e-9


@every_schedule
@pytest.mark.parametrize(
    ("x64", "bound"), [pytest.param(False, 1e-6, marks=pytest.mark.optimised), (True, 1e-14)]
)
def test_schedules_equal_the_reference(schedule, x64, bound):
    with jax.enable_x64(x64):
        count = jnp.arange(STEPS, dtype=jnp.int32)
        rates = jax.jit(SCHEDULES[schedule](LEARNING_RATE, STEPS))(count)
    assert rates.dtype == ("float64" if x64 else "float32")
    assert relative_error(rates, G[f"sgd_{schedule}_lr"]) <= bound


@pytest.mark.parametrize(
    ("schedule", "last"), [("fixed", 0.4), ("linear1cycle", 0.04), ("linear1cycledrop", 0.0004)]
)
def test_schedules_hold_after_the_last_step(schedule, last):
    rates = SCHEDULES[schedule](0.4, 50)(np.array([50, 51, 1000]))
    np.testing.assert_allclose(rates, last, rtol=1e-4)


@every_schedule
@pytest.mark.parametrize(
    ("learning_rate", "steps", "told"),
    [
        (0.0, 10, "0.0"),
        (-0.4, 10, "-0.4"),
        (float("nan"), 10, "nan"),
        (0.4, 0, "0"),
        (0.4, 1.5, "1.5"),
    ],
)
def test_bad_schedules(unchecked, schedule, learning_rate, steps, told):
    with pytest.raises(ValueError, match=told):
        SCHEDULES[schedule](learning_rate, steps)


@pytest.mark.parametrize("pairs", [0, 2, 4])
def test_lbfgs_applies_the_inverse_hessian_of_its_pairs(pairs):
    """Against the update of the whole matrix, of a quadratic in 5 + 4 dimensions."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((9, 9))
    steps, gradient = rng.standard_normal((4, 9)), rng.standard_normal(9)
    steps[pairs:] = 0  # empty places
    changes = steps @ (root @ root.T)
    newest_s, newest_y = steps[0], changes[0]
    scale = newest_s @ newest_y / (newest_y @ newest_y) if pairs else 0.3 / norms(gradient, 0)
    inverse = scale * np.eye(9)
    for s, y in reversed(list(zip(steps[:pairs], changes[:pairs], strict=True))):
        left = np.eye(9) - np.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + np.outer(s, s) / (s @ y)

    def split(x):
        return {"a": jnp.asarray(x[..., :5])[..., None, :], "b": jnp.asarray(x[..., None, 5:])}

    with jax.enable_x64(True):
        direction = _two_loops(split(steps), split(changes), split(gradient), 0.3)
    direction = np.concatenate([direction["a"][0], direction["b"][0]])
    assert relative_error(direction, -inverse @ gradient) <= 1e-12


def test_lbfgs_finds_the_lowest_points_of_quadratic_forms_in_few_evaluations():
    """⟨x, A x⟩ on two spheres: the smallest eigenvectors, by numpy."""
    rng = np.random.default_rng(0)
    matrices = [(a + a.T) / 2 for a in rng.standard_normal((2, 30, 30))]
    eigen = [np.linalg.eigh(matrix) for matrix in matrices]

    def loss(params):
        return jnp.einsum("ni,nij,nj->", params, np.stack(matrices), params)

    with jax.enable_x64(True):
        start = jnp.asarray(rng.standard_normal((2, 30)))
        start *= 3 / jnp.linalg.norm(start, axis=1, keepdims=True)
        found = trajectory(SCHEMES["rescale"](lbfgs(0.1)), loss, start, 100)
    values, path = jax.device_get(found)
    assert relative_error(values[-1], 9 * sum(e.eigenvalues[0] for e in eigen)) <= 1e-12
    for x, e in zip(path[-1], eigen, strict=True):
        assert abs(x @ e.eigenvectors[:, 0]) >= 3 * (1 - 1e-9)
    assert (np.diff(values[:40]) > 0).mean() <= 0.1  # later ones are lost in rounding
    assert (np.minimum.accumulate(values)[1:] <= values[:-1]).all()


@pytest.mark.parametrize("first", ["too large", "inf", "too steep"])
def test_lbfgs_comes_down_from_where_the_objective_is_not_finite(first):
    def loss(params):
        height = params[0, 0]
        if first == "too large":
            return jnp.exp(1000 * jnp.maximum(height - 0.2, 0)) + height
        if first == "too steep":
            return 1e25 * jnp.maximum(height - 0.2, 0) + height
        return height + jnp.where(height > 0.2, INF, 0)

    start = jnp.array([[0.9, 0.3, 0.1]])
    _, path = trajectory(SCHEMES["rescale"](lbfgs(0.2)), loss, start, 60)
    assert np.isfinite(path).all() and path[-1][0, 0] <= 0.2


def test_lbfgs_that_has_no_direction_has_no_place_to_go():
    def loss(params):
        return NAN * params[0, 0]

    _, path = trajectory(SCHEMES["rescale"](lbfgs(0.2)), loss, jnp.array([[0.9, 0.3, 0.1]]), 1)
    assert np.isnan(path).all()


def test_lbfgs_goes_back_from_where_the_gradient_is_not_finite():
    def loss(params):
        return params[0, 0] + 0 * jnp.sqrt(jnp.maximum(params[0, 0] - 0.5, 0))  # below, 0 · inf

    values, path = trajectory(
        SCHEMES["rescale"](lbfgs(2.0)), loss, jnp.array([[1.0, 0.0, 0.1]]), 30
    )
    assert np.isfinite(path).all() and values[-1] < 0.6


def test_lbfgs_goes_back_from_where_the_objective_is_not_finite():
    def loss(params):
        return jnp.where(params[0, 0] < 0.5, jnp.nan, params[0, 0])

    start = jnp.asarray([[1.0, 0.0, 0.1]])
    values, path = trajectory(SCHEMES["rescale"](lbfgs(2.0)), loss, start, 30)
    assert not np.isfinite(values).all()
    assert np.isfinite(path).all() and values[np.isfinite(values)][-1] < 0.6
