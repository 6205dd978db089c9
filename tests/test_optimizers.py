"""Optimisers: the reference's trajectories, and the sphere held over a long run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import golden, relative_error

from pulse_jax.optimizers import OPTIMIZERS, SCHEDULES, SCHEMES, _two_loops, lbfgs

G = golden("spherical")
PARTS = "init", "target", "coef"
LEARNING_RATE, STEPS = G["lr"].item(), G["steps"].item()
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def trajectory(optimizer, loss, params, steps):
    """Losses before each step and params after it: (steps,) and (steps, ...) per leaf."""

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params, value=value)
        params = optax.apply_updates(params, updates)
        return (params, state), (value, params)

    return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[1]


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
@pytest.mark.parametrize(("x64", "bound"), [(False, 1e-6), (True, 1e-14)])
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


@every_scheme
@every_optimizer
def test_stays_on_its_sphere_in_float32(scheme, optimizer):
    """1000 large steps down a slope, on vectors of unlike norms and on a noise map."""
    key = jax.random.key(0)
    latents = [jax.random.normal(key, (10, 128)) * jnp.geomspace(0.1, 10, 10)[:, None]]
    latents += [jax.random.normal(key, (1, 8, 8))]
    slopes = [100 * jnp.cos(x) for x in latents]

    def loss(params):
        return sum(jnp.vdot(x, slope) for x, slope in zip(params, slopes, strict=True))

    optimizer = scheme(OPTIMIZERS[optimizer](0.4))
    values, params = jax.jit(lambda p: trajectory(optimizer, loss, p, 1000))(latents)
    lowest = 0  # on a sphere, opposite the slope
    for start, path, slope in zip(latents, params, slopes, strict=True):
        assert path.dtype == "float32"
        axes = tuple(range(1 - start.ndim, 0))
        radius = norms(start, axes)
        np.testing.assert_allclose(norms(path, axes), np.tile(radius, (1000, 1)), rtol=1e-6)
        lowest -= np.sum(radius * norms(slope, axes))
    assert values[-1] < 0.9 * lowest


@every_scheme
def test_a_vector_at_0_stays_there_and_finite(scheme):
    latents = jnp.zeros((2, 3))
    optimizer = scheme(optax.adam(0.4))
    for gradient, bound in [(jnp.zeros((2, 3)), 0), (jnp.ones((2, 3)), 4e-5)]:
        updates, _ = optimizer.update(gradient, optimizer.init(latents), latents)
        assert np.max(norms(updates, -1)) <= bound


@every_scheme
@every_optimizer
def test_compiles_once_and_maps_over_restarts(scheme, optimizer):
    optimizer = scheme(OPTIMIZERS[optimizer](SCHEDULES["linear1cycledrop"](0.4, 10)))
    traces = []

    @jax.jit
    @jax.vmap
    def step(gradient, state, params):
        traces.append(None)
        updates, state = optimizer.update(
            gradient, state, params, value=0.0, grad=gradient, value_fn=lambda p: 0.0
        )
        return optax.apply_updates(params, updates), state

    params = {"styles": jax.random.normal(jax.random.key(0), (3, 4, 16))}
    state = jax.vmap(optimizer.init)(params)
    alone = jax.tree.map(lambda x: x[1], params)
    alone_state, update_alone = optimizer.init(alone), jax.jit(optimizer.update)
    for _ in range(3):
        gradient = jax.tree.map(jnp.sin, params)
        params, state = step(gradient, state, params)
        gradient = jax.tree.map(jnp.sin, alone)
        updates, alone_state = update_alone(gradient, alone_state, alone, value=0.0)
        alone = optax.apply_updates(alone, updates)
    assert len(traces) == 1
    assert relative_error(params["styles"][1], alone["styles"]) <= 1e-5


@every_scheme
def test_bad_latents(scheme):
    optimizer = scheme(optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"\(5,\)"):
        optimizer.init(jnp.ones(5))
    with pytest.raises(ValueError, match="params"):
        optimizer.update(jnp.ones((1, 5)), optimizer.init(jnp.ones((1, 5))))


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
def test_bad_schedules(schedule, learning_rate, steps, told):
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
        values, path = trajectory(SCHEMES["rescale"](lbfgs(0.1)), loss, start, 100)
    assert relative_error(values[-1], 9 * sum(e.eigenvalues[0] for e in eigen)) <= 1e-12
    for x, e in zip(path[-1], eigen, strict=True):
        assert abs(x @ e.eigenvectors[:, 0]) >= 3 * (1 - 1e-9)
    assert (np.diff(values[:40]) > 0).mean() <= 0.1  # later ones are lost in rounding
    assert (np.minimum.accumulate(values)[1:] <= values[:-1]).all()


def test_lbfgs_goes_back_from_where_the_objective_is_not_finite():
    def loss(params):
        return jnp.where(params[0, 0] < 0.5, jnp.nan, params[0, 0])

    start = jnp.asarray([[1.0, 0.0, 0.1]])
    values, path = trajectory(SCHEMES["rescale"](lbfgs(2.0)), loss, start, 30)
    assert not np.isfinite(values).all()
    assert np.isfinite(path).all() and values[np.isfinite(values)][-1] < 0.6
