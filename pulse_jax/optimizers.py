"""Optimisers on spheres, as optax transformations, and their learning rates.

A Gaussian of d dimensions has its mass near the sphere of radius √d, so latents are searched on
spheres. Latents are a pytree of arrays (n, ...): axis 0 counts n spheres, the other axes are one
point's coordinates, so style vectors (L, d) lie on L spheres and a noise map (1, H, W) on one.

A scheme turns a base optimiser into one that knows the spheres. It is a chain: links before, around
or after the base, the last of which puts the point back where it belongs, whatever came before.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pulse_jax import sphere


class KeepNormsState(NamedTuple):
    norms: optax.Params  # the latents' pytree, each leaf (n, 1, ...)


def keep_norms():
    """The last link of a chain: keep each vector's norm at its value in `init`.

    With x = params + update of one sphere and R its initial norm, the new update is
    R x/‖x‖ − params, where ‖x‖ = √(Σx² + 1e-9) as in the reference, so that 0 is safe: a vector
    that starts at 0 stays within 4e-5 of it. The norms don't drift, since R is kept.

    `init` raises ValueError for a leaf with fewer than two axes, `update` if `params` is missing.
    """

    def init(params):
        return KeepNormsState(jax.tree.map(_norms, params))

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("keep_norms needs the point: call update(gradient, state, params)")

        def onto_sphere(update, point, norm):
            moved = point + update
            return moved * (norm / _norms(moved)) - point

        return jax.tree.map(onto_sphere, updates, params, state.norms), state

    return optax.GradientTransformationExtraArgs(init, update)


def rescale(base):
    """The optimiser of PULSE (arXiv 2003.03808): a step of `base`, then back onto the spheres.

    The step is taken in the ambient space and the result divided by its length; gradients aren't
    projected, and the moments of `base` know nothing of the sphere.
    """
    return optax.chain(base, keep_norms())


class LBFGSState(NamedTuple):
    """Of all spheres together. Tangents are at `point`; of the m pairs the newest comes first."""

    point: optax.Params  # the last one accepted
    value: jax.Array  # () of the objective there
    gradient: optax.Params  # its tangent part
    direction: optax.Params  # in which points are tried
    fraction: jax.Array  # () of the direction that is tried now
    steps: optax.Params  # (m, n, ...) from one accepted point to the next
    changes: optax.Params  # (m, n, ...) of the gradient over that step


def lbfgs(learning_rate, memory=10):
    """L-BFGS on spheres, with one evaluation of the objective for each update.

    The two-loop recursion (Nocedal and Wright, Numerical Optimization, 2006, algorithm 7.4) on the
    product of all spheres: gradients are tangent, points move along geodesics, and the last
    `memory` steps and gradient changes follow by parallel transport (Huang, Gallivan and Absil,
    SIAM Journal on Optimization 25, 2015). A pair without positive curvature isn't kept.

    The line search is spread over updates, so that under `vmap` no restart waits for another's: a
    point that lowers the objective enough (Armijo, 1e-4) is accepted; else the next one is tried
    between it and the last accepted, where a parabola through both is lowest.

    `learning_rate`: length of the first step, relative to the norm of all latents; of a schedule
    the value at 0. Updates need the point and the value there, as a search passes them.
    """
    length = learning_rate(0) if callable(learning_rate) else learning_rate

    def init(params):
        zero, number = optax.tree.zeros_like(params), jnp.zeros((), float)
        pairs = jax.tree.map(lambda leaf: jnp.zeros((memory, *leaf.shape), leaf.dtype), params)
        return LBFGSState(params, number + jnp.inf, zero, zero, number, pairs, pairs)

    def move_on(point, value, gradient, state):
        """The state at a point that is accepted, with a new direction."""
        step = optax.tree.scale(state.fraction, state.direction)
        transport = partial(_each_sphere, sphere.transport, state.point, point)
        step, before = transport(step), transport(state.gradient)
        steps, changes = jax.vmap(transport)(state.steps), jax.vmap(transport)(state.changes)

        change = optax.tree.sub(gradient, before)
        lengths = optax.tree.norm(step) * optax.tree.norm(change)
        curved = optax.tree.vdot(step, change) > 1e-6 * lengths

        def keep(pairs, new):
            def push(old, x):
                return jnp.where(curved, jnp.concatenate([x[None], old[:-1]]), old)

            return jax.tree.map(push, pairs, new)

        steps, changes = keep(steps, step), keep(changes, change)
        direction = _two_loops(steps, changes, gradient, length * optax.tree.norm(point))
        return LBFGSState(point, value, gradient, direction, jnp.ones_like(value), steps, changes)

    def update(updates, state, params=None, *, value, **extra_args):
        gradient = _each_sphere(sphere.tangent, params, updates)
        slope = state.fraction * optax.tree.vdot(state.gradient, state.direction)
        accepted = value <= state.value + 1e-4 * slope  # the first point always
        parabola = -slope / (2 * (value - state.value - slope))
        shrink = jnp.where(jnp.isfinite(value), jnp.clip(parabola, 0.1, 0.5), 0.1)
        back = state._replace(fraction=shrink * state.fraction)
        on = move_on(params, value, gradient, state)
        state = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), on, back)
        step = optax.tree.scale(state.fraction, state.direction)
        return optax.tree.sub(_each_sphere(sphere.exp, state.point, step), params), state

    return optax.GradientTransformationExtraArgs(init, update)


def _two_loops(steps, changes, gradient, length):
    """−H g with the inverse Hessian H of the pairs; −g with the given length if there are none.

    Carried out on the coefficients of −H g in terms of all these vectors, whose inner products are
    all that it takes (Chen, Wang and Zhou, NeurIPS 2014).
    """
    vectors = jax.tree.map(
        lambda s, y, g: jnp.concatenate([s, y, g[None]]), steps, changes, gradient
    )
    flat = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(vectors)]  # (2m + 1, ·)
    products = sum(jnp.matmul(x, x.T, precision="highest") for x in flat)
    m = len(products) // 2
    curvature = jnp.diag(products[:m, m:])  # ⟨s, y⟩ of each pair, 0 where there is none
    inverse = jnp.where(curvature > 0, 1 / jnp.where(curvature > 0, curvature, 1), 0)
    gradient_norm = jnp.sqrt(products[-1, -1])
    initial = jnp.where(
        curvature[0] > 0,
        curvature[0] / jnp.where(curvature[0] > 0, products[m, m], 1),
        length / jnp.where(gradient_norm > 0, gradient_norm, 1),
    )

    coefficients, alphas = jnp.zeros(2 * m + 1).at[-1].set(-1), []
    for i in range(m):  # from the newest pair
        alphas.append(inverse[i] * jnp.sum(products[i] * coefficients))
        coefficients = coefficients.at[m + i].add(-alphas[i])
    coefficients *= initial
    for i in reversed(range(m)):
        beta = inverse[i] * jnp.sum(products[m + i] * coefficients)
        coefficients = coefficients.at[i].add(alphas[i] - beta)
    return jax.tree.map(
        lambda x: jnp.sum(coefficients.reshape(-1, *[1] * (x.ndim - 1)) * x, axis=0), vectors
    )


def _each_sphere(function, *trees):
    """Apply a function of `sphere` to all spheres of the latents."""
    return jax.tree.map(jax.vmap(function), *trees)


def fixed(learning_rate, steps):
    """A constant learning rate.

    Raises ValueError for a learning rate that isn't finite and above 0, or `steps` that isn't an
    integer of at least 1.
    """
    return _schedule(learning_rate, steps, jnp.ones_like)


def linear1cycle(learning_rate, steps):
    """From a tenth of `learning_rate` up to it at half time and down again, in straight lines.

    learning_rate · c(t), c(t) = (9(1 − |2t − 1|) + 1) / 10, t = step / steps. Raises ValueError as
    `fixed` does.
    """
    return _schedule(learning_rate, steps, _one_cycle)


def linear1cycledrop(learning_rate, steps):
    """`linear1cycle` in the first nine tenths, then down to a thousandth of `learning_rate`.

    With c and t as there: learning_rate · c(t / 0.9) for t < 0.9, then
    learning_rate (0.1 − 0.99(t − 0.9)). Raises ValueError as `fixed` does.
    """

    def shape(t):
        return jnp.where(t < 0.9, _one_cycle(t / 0.9), 0.1 - 0.99 * (t - 0.9))

    return _schedule(learning_rate, steps, shape)


# Scheme(base optimiser) -> optimiser that keeps to the spheres.
SCHEMES = {"rescale": rescale}

# Optimiser(learning rate or schedule); the first four as in the reference, with torch's defaults.
OPTIMIZERS = {
    "sgd": optax.sgd,
    "sgdm": partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
    "adamax": optax.adamax,
    "lbfgs": lbfgs,
}

# Schedule(peak learning rate, number of steps) -> learning rate of each step, counted from 0.
SCHEDULES = {"fixed": fixed, "linear1cycle": linear1cycle, "linear1cycledrop": linear1cycledrop}


def _norms(x):
    """√(Σx² + 1e-9) over all axes but the first: (n, ...) -> (n, 1, ...)."""
    if x.ndim < 2:
        raise ValueError(f"latents must be (spheres, coordinates ...), got shape {x.shape}")
    return jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim)), keepdims=True) + 1e-9)


def _one_cycle(t):
    return (9 * (1 - jnp.abs(2 * t - 1)) + 1) / 10


def _schedule(learning_rate, steps, shape):
    """learning_rate · shape(step / steps), held after the last step."""
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning rate must be finite and above 0, got {learning_rate}")
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")

    def schedule(count):
        # An int32 count would divide in float32 even where the latents are float64.
        t = jnp.asarray(count, float) / steps
        return learning_rate * shape(jnp.minimum(t, 1))

    return schedule
