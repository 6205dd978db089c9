"""Sphere geometry: the numbers of geoopt, the laws of the sphere, and its degenerate points."""

from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden, relative_error

import pulse_jax.sphere

G = golden("sphere_geometry")
NAMES = "tangent", "retract", "exp", "log", "transport", "distance"
# Each is one program, not some twenty.
sphere = SimpleNamespace(**{name: jax.jit(getattr(pulse_jax.sphere, name)) for name in NAMES})


def orthogonal(size, seed=0):
    """Two orthogonal float64 vectors of length 3."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, 2)))
    return 3 * basis.T


@pytest.mark.parametrize("i", [0, 1])
def test_equals_geoopt(i):
    with jax.enable_x64(True):
        x, y, v, w, ambient = (
            jnp.asarray(G[f"geometry{i}_{k}"]) for k in ("x", "y", "v", "w", "ambient")
        )
        results = {
            "tangent": jax.vmap(sphere.tangent)(x, ambient),
            "exp": jax.vmap(sphere.exp)(x, v),
            "retract": jax.vmap(sphere.retract)(x, v),
            "log": jax.vmap(sphere.log)(x, y),
            "transport_parallel": jax.vmap(sphere.transport)(x, y, w),
            "dist": jax.vmap(sphere.distance)(x, y),
        }
    # Here y[0] = x[0]. geoopt clamps its cosine, so that a point is 4.5e-4 R away from itself.
    expected = G | {f"geometry{i}_dist": np.append(0, G[f"geometry{i}_dist"][1:])}
    for name, result in results.items():
        assert relative_error(result, expected[f"geometry{i}_{name}"]) <= 1e-10, name


def test_tangents_are_orthogonal_and_projected_once():
    with jax.enable_x64(True):
        x, v = np.random.default_rng(0).normal(size=(2, 3, 5, 7))
        u = sphere.tangent(x, v)
        assert abs(np.vdot(x, u)) <= 1e-13 * np.linalg.norm(x) * np.linalg.norm(v)
        assert relative_error(sphere.tangent(x, u), u) <= 1e-14


@pytest.mark.parametrize("move", [sphere.exp, sphere.retract])
@pytest.mark.parametrize("size", [1e-30, 1e-4, 1.0, 100.0])
def test_moves_stay_on_the_sphere(move, size):
    x, v = np.random.default_rng(0).normal(size=(2, 1000, 1, 4, 16)).astype(np.float32)
    v = size * jax.vmap(sphere.tangent)(x, v)
    moved = jax.vmap(move)(x, v)
    norm, expected = (np.linalg.norm(np.reshape(z, (1000, 64)), axis=1) for z in (moved, x))
    np.testing.assert_allclose(norm, expected, rtol=1e-6)


@pytest.mark.parametrize("angle", [1e-4, 1.0, 3.0, np.pi - 1e-4])
def test_exp_log_and_transport_agree(angle):
    with jax.enable_x64(True):
        x, e = orthogonal(20)
        v, w = angle * e, sphere.tangent(x, np.arange(20.0))
        y = sphere.exp(x, v)
        back = sphere.log(y, x)
        carried = sphere.transport(x, y, w)
        assert relative_error(sphere.log(x, y), v) <= 1e-10
        assert relative_error(sphere.distance(x, y), 3 * angle) <= 1e-10
        # A geodesic carries its own direction, and comes back the way it went.
        assert relative_error(sphere.transport(x, y, v), -back) <= 1e-10
        assert relative_error(np.vdot(carried, carried), np.vdot(w, w)) <= 1e-13
        assert abs(np.vdot(carried, y)) <= 1e-10 * np.linalg.norm(w)
        assert relative_error(sphere.transport(y, x, carried), w) <= 1e-10


@pytest.mark.parametrize("angle", [1e-6, 1e-3, 0.5, 2.5, np.pi - 1e-3, np.pi - 1e-6])
def test_angles_keep_their_digits_in_float32(angle):
    """Against float64 formulas, for the same points: those that are left after rounding."""
    x, e = orthogonal(512)
    x, y = np.float32(x), np.float32(np.cos(angle) * x + np.sin(angle) * e)
    distance, log = sphere.distance(x, y), sphere.log(x, y)

    x, y = np.float64(x), np.float64(y)
    across = y - np.vdot(x, y) / np.vdot(x, x) * x
    sine, cosine = np.linalg.norm(x) * np.linalg.norm(across), np.vdot(x, y)
    expected = np.linalg.norm(x) * np.arctan2(sine, cosine)
    assert relative_error(distance, expected) <= 1e-6
    assert relative_error(log, expected * across / np.linalg.norm(across)) <= 1e-6


ZERO, X = np.zeros((2, 3), np.float32), np.array([[1, -2, 0], [3, 0.5, 2]], np.float32)
V = np.array([[2, 1, 7], [1, -6, 0]], np.float32)  # tangent at X
DEGENERATE = {
    "tangent at 0": (sphere.tangent, (ZERO, X), ZERO),
    "tangent of 0": (sphere.tangent, (X, ZERO), ZERO),
    "retract from 0": (sphere.retract, (ZERO, X), ZERO),
    "retract by 0": (sphere.retract, (X, ZERO), X),
    "retract to 0": (sphere.retract, (X, -X), X),
    "exp from 0": (sphere.exp, (ZERO, X), ZERO),
    "exp by 0": (sphere.exp, (X, ZERO), X),
    "log at 0": (sphere.log, (ZERO, ZERO), ZERO),
    "log of itself": (sphere.log, (X, X), ZERO),
    "log of its opposite": (sphere.log, (X, -X), ZERO),
    "transport at 0": (sphere.transport, (ZERO, ZERO, ZERO), ZERO),
    "transport of 0": (sphere.transport, (X, X[::-1], ZERO), ZERO),
    "transport to itself": (
        sphere.transport,
        (X, X, sphere.tangent(X, X**2)),
        sphere.tangent(X, X**2),
    ),
    "transport to its opposite": (sphere.transport, (X, -X, V), V),
    "distance at 0": (sphere.distance, (ZERO, ZERO), 0),
    "distance to itself": (sphere.distance, (X, X), 0),
    "distance to its opposite": (sphere.distance, (X, -X), np.pi * np.linalg.norm(X)),
}


@pytest.mark.parametrize(("function", "arguments", "expected"), DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_points(function, arguments, expected):
    np.testing.assert_allclose(function(*arguments), expected, rtol=1e-6, atol=1e-6)
    for derivative in (jax.jacrev, jax.jacfwd):
        for jacobian in jacobians(derivative, function, len(arguments))(*arguments):
            assert np.isfinite(jacobian).all()


@cache
def jacobians(derivative, function, arguments):
    return jax.jit(derivative(function, range(arguments)))


def test_first_derivatives_at_coincident_points():
    projector = jax.jacrev(sphere.tangent, 1)(X, ZERO)
    identity = np.eye(6).reshape(2, 3, 2, 3)
    assert relative_error(jax.jacrev(sphere.exp, 1)(X, ZERO), identity) <= 1e-6
    assert relative_error(jax.jacrev(sphere.log, 1)(X, X), projector) <= 1e-6


def test_uniform():
    """10,000 points: exact norms, and the first two moments of the uniform distribution."""
    keys = jax.random.split(jax.random.key(0), 10_000)
    uniform = jax.jit(jax.vmap(lambda key: pulse_jax.sphere.uniform(key, (2, 4), 5.0)))
    points = np.reshape(uniform(keys), (-1, 8))
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 5, rtol=1e-6)
    covariance = 25 / 8
    assert np.abs(points.mean(0)).max() <= 4 * np.sqrt(covariance / 10_000)
    assert np.abs(points.T @ points / 10_000 - covariance * np.eye(8)).max() <= 0.05 * covariance
