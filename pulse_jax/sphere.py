"""Geometry of the sphere, for one point.

A point x is an array of any shape that counts as one vector. It lies on the sphere around 0 of
radius R = ‖x‖. A second point y lies on the same sphere, and v is tangent at x unless a function
says otherwise. Angles are in radians, and lengths have the unit of x. The formulas are those of
Absil, Mahony and Sepulchre (Optimization Algorithms on Matrix Manifolds, 2008), written so that
nearly equal and nearly opposite points lose no digits.

Values and derivatives are finite everywhere. Where the geometry leaves them undefined, each
function says what it returns. The sphere of radius 0 is the point 0, and its tangents are 0.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from pulse_jax.types import AnyArray

Vector = Float[AnyArray, "*shape"]
Result = Float[Array, "*shape"]
Scalar = Float[Array, ""]


def tangent(x: Vector, v: Vector) -> Result:
    """The part of any vector v that is tangent at x: v − ⟨x, v⟩/R² x."""
    square = _dot(x, x)
    return jnp.where(square > 0, v - _ratio(_dot(x, v), square) * x, 0)


def retract(x: Vector, v: Vector) -> Result:
    """Move from x by any vector v and rescale: R (x + v)/‖x + v‖. If x + v = 0: x."""
    moved = x + v
    length = _norm(moved)
    return jnp.where(length > 0, _ratio(_norm(x), length) * moved, x)


def exp(x: Vector, v: Vector) -> Result:
    """Move from x along the geodesic that starts as v, by ‖v‖: cos θ x + sin θ/θ v, θ = ‖v‖/R."""
    square = _dot(x, x)
    square_angle = _ratio(_dot(v, v), square)
    # Near 0 as series, in θ² and exact to double precision: ‖v‖ has no derivative at 0.
    small = square_angle < 1e-8
    angle = jnp.sqrt(jnp.where(small, 1, square_angle))
    cos = jnp.where(small, 1 - square_angle / 2, jnp.cos(angle))
    sinc = jnp.where(small, 1 - square_angle / 6, jnp.sin(angle) / angle)
    return jnp.where(square > 0, cos * x + sinc * v, x)


def log(x: Vector, y: Vector) -> Result:
    """The tangent at x whose `exp` is y: `distance` u/‖u‖ with u the part of y tangent at x.

    Opposite points are joined by geodesics in every direction. For them, it returns 0.
    """
    toward = _toward(x, y)
    return _ratio(distance(x, y), _norm(toward), otherwise=1) * toward


def transport(x: Vector, y: Vector, v: Vector) -> Result:
    """v carried in parallel from x to y along their geodesic: v − 2⟨p, v⟩/⟨p, p⟩ p, p = x + y.

    For tangents this is v − ⟨y, v⟩/(R² + ⟨x, y⟩) p. It is a reflection, so it keeps all inner
    products. Between opposite points, the geodesic may start in any direction. For them, it returns
    v, which is tangent there too.
    """
    p = x + y
    return jnp.asarray(v) - 2 * _ratio(_dot(p, v), _dot(p, p)) * p


def distance(x: Vector, y: Vector) -> Scalar:
    """Arc length between x and y: Rθ, θ = atan2(R‖u‖, ⟨x, y⟩) in [0, π], u as in `log`.

    Its derivative is taken as 0 where it has none, at equal and at opposite points.
    """
    sine, cosine = _norm(x) * _norm(_toward(x, y)), _dot(x, y)
    undefined = (sine == 0) & (cosine == 0)
    return _norm(x) * jnp.arctan2(sine, jnp.where(undefined, 1, cosine))


def uniform(
    key: PRNGKeyArray, shape: tuple[int, ...], radius: float | Scalar
) -> Float[Array, "*shape"]:
    """A point of the given shape drawn evenly from the sphere of the given radius."""
    gaussian = jax.random.normal(key, shape)
    return radius * gaussian / _norm(gaussian)


def _toward(x: Vector, y: Vector) -> Result:
    """The part of y that is tangent at x, which y − x and y + x have too: the shorter is exact."""
    return tangent(x, jnp.where(_dot(x, y) > 0, y - x, y + x))


def _dot(a: Vector, b: Vector) -> Scalar:
    # Not a matrix product: an accelerator would round its inputs.
    return jnp.sum(a * b)


def _ratio(a: Scalar, b: Scalar, otherwise: float = 0) -> Scalar:
    """a/b for b ≥ 0, and `otherwise` if b = 0, without a division by 0 in value or derivative."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), otherwise)


def _norm(x: Vector) -> Scalar:
    """‖x‖ with derivative 0 at 0."""
    square = _dot(x, x)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
