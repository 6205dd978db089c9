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

# Optimiser(learning rate or schedule) with the defaults of torch.optim, as in the reference.
OPTIMIZERS = {
    "sgd": optax.sgd,
    "sgdm": partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
    "adamax": optax.adamax,
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
