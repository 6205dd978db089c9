"""Base optimisers and samplers, as optax transformations, and their learning rates.

Any optimiser of optax can be the base of a scheme. Those with names are here, and those that optax
doesn't have. `schemes` says how latents lie on spheres.
"""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, Integer, PRNGKeyArray, PyTree

from pulse_jax import plug_in, sphere
from pulse_jax.static import compiled
from pulse_jax.types import LARGEST_FACTOR, AnyArray, Latents, misfit

Scalar: TypeAlias = Float[Array, ""]
Count: TypeAlias = Integer[Array, ""]
Time: TypeAlias = Float[Array, "*counts"]  # as a share of all steps, or a rate at such times
Pairs: TypeAlias = PyTree[Float[AnyArray, "_ _ ..."]]


class LBFGSState(NamedTuple):
    """State of all spheres together. Tangents are at `point`. The newest of m pairs is first."""

    point: Latents  # the last one accepted
    value: Scalar  # of the objective there
    gradient: Latents  # its tangent part
    direction: Latents  # in which points are tried
    fraction: Scalar  # of the direction that is tried now
    steps: Pairs  # from one accepted point to the next
    changes: Pairs  # of the gradient over that step


def lbfgs(
    learning_rate: optax.ScalarOrSchedule, memory: int = 10
) -> optax.GradientTransformationExtraArgs:
    """L-BFGS on spheres, with one evaluation of the objective for each update.

    It is the two-loop recursion (Nocedal and Wright, Numerical Optimization, 2006, algorithm 7.4)
    on the product of all spheres. Gradients are tangent, points move along geodesics, and the last
    `memory` steps and gradient changes follow by parallel transport (Huang, Gallivan and Absil,
    SIAM Journal on Optimization 25, 2015). A pair without positive curvature isn't kept.

    The line search is spread over updates, so that under `vmap` no restart waits for another. A
    point that lowers the objective enough (Armijo, 1e-4) is accepted. Otherwise, the next point
    lies between it and the last accepted one, where a parabola through both is lowest. A point
    whose value or gradient isn't finite doesn't lower the objective. If the first points aren't
    finite and have a direction, the search goes on downhill from each by the first step's length.

    `learning_rate` is the length of the first step, relative to the norm of all latents. If it is a
    schedule, its value at 0 counts. Updates need the point and the value there, as a search passes
    them.
    """
    # Compiled, since one call of a schedule has a dozen operations.
    length = compiled(learning_rate)(0) if callable(learning_rate) else learning_rate

    def init(params: Latents) -> LBFGSState:
        zero, number = optax.tree.zeros_like(params), jnp.zeros((), float)
        pairs = jax.tree.map(lambda leaf: jnp.zeros((memory, *leaf.shape), leaf.dtype), params)
        return LBFGSState(params, number + jnp.inf, zero, zero, number, pairs, pairs)

    def move_on(point: Latents, value: Scalar, gradient: Latents, state: LBFGSState) -> LBFGSState:
        """The state at a point that is accepted, with a new direction."""
        finite = jnp.isfinite(value)
        step = optax.tree.scale(state.fraction, state.direction)
        transport = partial(_each_sphere, sphere.transport, state.point, point)
        step, before = transport(step), transport(state.gradient)
        steps, changes = jax.vmap(transport)(state.steps), jax.vmap(transport)(state.changes)

        change = optax.tree.sub(gradient, before)
        lengths = optax.tree.norm(step) * optax.tree.norm(change)
        curved = (_inner(step, change) > 1e-6 * lengths) & jnp.isfinite(state.value)

        def keep(pairs: Pairs, new: Latents) -> Pairs:
            def push(
                old: Float[Array, "pairs n *point"], x: Float[Array, "n *point"]
            ) -> Float[Array, "pairs n *point"]:
                return jnp.where(curved, jnp.concatenate([x[None], old[:-1]]), old)

            return jax.tree.map(push, pairs, new)

        steps, changes = keep(steps, step), keep(changes, change)
        reach = length * optax.tree.norm(point)
        quasi_newton = _two_loops(steps, changes, gradient, reach)
        downhill = optax.tree.scale(-reach, _unit(gradient))
        direction = optax.tree.where(finite, quasi_newton, downhill)
        gradient = optax.tree.where(finite, gradient, optax.tree.zeros_like(gradient))
        return LBFGSState(point, value, gradient, direction, jnp.ones_like(value), steps, changes)

    def update(
        updates: Latents,
        state: LBFGSState,
        params: Latents | None = None,
        *,
        value: Scalar,
        **extra_args: Any,
    ) -> tuple[Latents, LBFGSState]:
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(updates))
        gradient = _each_sphere(sphere.tangent, params, _without_infinity(updates))
        value = jnp.where(finite, value, jnp.inf)
        slope = state.fraction * _inner(state.gradient, state.direction)
        accepted = value <= state.value + 1e-4 * slope  # the first point always
        parabola = -slope / (2 * (value - state.value - slope))
        shrink = jnp.where(finite, jnp.clip(parabola, 0.1, 0.5), 0.1)
        back = state._replace(fraction=shrink * state.fraction)
        on = move_on(params, value, gradient, state)
        state = optax.tree.where(accepted, on, back)
        step = optax.tree.scale(state.fraction, state.direction)
        return optax.tree.sub(_each_sphere(sphere.exp, state.point, step), params), state

    return optax.GradientTransformationExtraArgs(init, update)


def _two_loops(steps: Pairs, changes: Pairs, gradient: Latents, length: float | Scalar) -> Latents:
    """−H g with the inverse Hessian H of the pairs. Without pairs, −g with the given length."""
    # All leaves as one vector, so that the loops below are compiled for one.
    gradient, as_tree = ravel_pytree(gradient)  # (d,)
    steps, changes = (jax.vmap(lambda x: ravel_pytree(x)[0])(x) for x in (steps, changes))  # (m, d)
    curvature = jax.vmap(_inner)(steps, changes)  # (m,) ⟨s, y⟩ of each pair, 0 where there is none
    inverse = jnp.where(curvature > 0, 1 / jnp.where(curvature > 0, curvature, 1), 0)
    gradient_norm = jnp.sqrt(_inner(gradient, gradient))
    initial = jnp.where(
        curvature[0] > 0,
        curvature[0] / jnp.where(curvature[0] > 0, _inner(changes[0], changes[0]), 1),
        length / jnp.where(gradient_norm > 0, gradient_norm, 1),
    )

    Vector = Float[Array, "d"]

    def from_newest(
        direction: Vector, pair: tuple[Vector, Vector, Scalar]
    ) -> tuple[Vector, Scalar]:
        step, change, inverse = pair
        alpha = inverse * _inner(step, direction)
        return direction - alpha * change, alpha

    def to_newest(
        direction: Vector, pair: tuple[tuple[Vector, Vector, Scalar], Scalar]
    ) -> tuple[Vector, None]:
        (step, change, inverse), alpha = pair
        beta = inverse * _inner(change, direction)
        return direction + (alpha - beta) * step, None

    # Unrolled: traced once, and no loop within the loop of steps.
    pairs = steps, changes, inverse
    direction, alphas = jax.lax.scan(from_newest, -gradient, pairs, unroll=True)
    direction, _ = jax.lax.scan(
        to_newest, initial * direction, (pairs, alphas), reverse=True, unroll=True
    )
    return as_tree(direction)


def _inner(a: PyTree[AnyArray], b: PyTree[AnyArray]) -> Scalar:
    """⟨a, b⟩ over all spheres together.

    A sum for each leaf: how a CPU adds up a matrix product depends on its threads, and jaxlib
    0.10.2 gets a whole matrix of such sums wrong where it is mapped over one (docs/upstream.md).
    """
    return optax.tree.sum(optax.tree.mul(a, b))


def _without_infinity(vector: Latents) -> Latents:
    """The direction of x if some coordinates are infinite and none is NaN, or else x."""
    infinite = jnp.any(jnp.array([jnp.isinf(leaf).any() for leaf in jax.tree.leaves(vector)]))
    signs = jax.tree.map(lambda x: jnp.where(jnp.isinf(x), jnp.sign(x), 0 * x), vector)
    return optax.tree.where(infinite, signs, vector)


def _unit(vector: Latents) -> Latents:
    """x at length 1, also if squares of its coordinates aren't finite. 0 stays 0."""
    largest = jnp.max(jnp.array([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(vector)]))
    vector = jax.tree.map(lambda leaf: leaf / jnp.where(largest == 0, 1, largest), vector)
    return optax.tree.scale(1 / jnp.maximum(optax.tree.norm(vector), 1), vector)


def _each_sphere(function: Callable[..., Any], *trees: Latents) -> Latents:
    """Apply a function of `sphere` to all spheres of the latents."""
    return jax.tree.map(jax.vmap(function), *trees)


def sgd(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """Gradient descent: −η g, with η the learning rate and g the gradient.

    Robbins and Monro, Annals of Mathematical Statistics 22, 1951.
    """
    return optax.sgd(learning_rate)


def sgdm(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with momentum: −η m, where m ← μ m + g gathers the gradients.

    μ is the `momentum`. Polyak, USSR Computational Mathematics and Mathematical Physics 4, 1964.
    """
    return optax.sgd(learning_rate, momentum=momentum)


def adam(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Adam: −η m̂/(√v̂ + eps), so that each coordinate moves by about η at each step.

    m ← b1 m + (1 − b1) g and v ← b2 v + (1 − b2) g² are decaying averages, which m̂ and v̂ have
    without their bias towards 0. Kingma and Ba, arXiv 1412.6980, algorithm 1.
    """
    return optax.adam(learning_rate, b1, b2, eps)


def adamax(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Adam with the largest gradient in place of the mean square: −η m̂/u.

    m̂ is as in `adam`, and u ← max(b2 u, |g| + eps). Kingma and Ba, arXiv 1412.6980, algorithm 2.
    """
    return optax.adamax(learning_rate, b1, b2, eps)


class SphereAdamState(NamedTuple):
    """State of `sphere_adam`."""

    count: Count  # type: ignore[assignment]  # tuples have a method of this name
    mu: Latents  # first moments
    nu: Latents  # second moments (n, 1, ...)


def sphere_adam(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Adam with one second moment for each sphere: the mean square of its gradient's coordinates.

    −learning_rate · m̂/(√v̂ + eps), m and v decaying averages of g and ‖g‖²/d, without their bias.
    Unlike Adam's, the update turns with the coordinates, so that no direction on the sphere is
    special (Bécigneul and Ganea, ICLR 2019; they take ‖g‖², so their learning rate is √d times
    this one).
    """

    def init(params: Latents) -> SphereAdamState:
        def per_sphere(leaf: Float[AnyArray, "n *point"]) -> Float[Array, "n *ones"]:
            return jnp.zeros((leaf.shape[0], *[1] * (leaf.ndim - 1)), leaf.dtype)

        nu = jax.tree.map(per_sphere, params)
        return SphereAdamState(jnp.zeros((), int), optax.tree.zeros_like(params), nu)

    def update(
        updates: Latents, state: SphereAdamState, params: Latents | None = None
    ) -> tuple[Latents, SphereAdamState]:
        def mean_square(g: Float[AnyArray, "n *point"]) -> Float[Array, "n *ones"]:
            return jnp.mean(g**2, axis=tuple(range(1, g.ndim)), keepdims=True)

        count = state.count + 1
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(jax.tree.map(mean_square, updates), state.nu, b2, 1)
        mean = optax.tree.bias_correction(mu, b1, count)
        square = optax.tree.bias_correction(nu, b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mean, square)
        return updates, SphereAdamState(count, mu, nu)

    return optax.chain(
        optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate)
    )


class LangevinState(NamedTuple):
    """State of `langevin`."""

    count: Count  # type: ignore[assignment]
    key: PRNGKeyArray


def langevin(
    learning_rate: optax.ScalarOrSchedule, temperature: float, key: PRNGKeyArray
) -> optax.GradientTransformation:
    """Unadjusted Langevin dynamics: −η g + √(2ηT) ξ, ξ ~ N(0, I), η the learning rate.

    No step is ever turned down, so that samples have an error that only a smaller η makes smaller,
    and a warning says so: `samplers` have none. With the scheme `geodesic` or `tangent_update` it
    samples the sphere with a density in proportion to exp(−loss/T), up to an error of the order of
    η (the geodesic Langevin algorithm: Wang, Lei and Panageas, NeurIPS 2020); others would bias it.
    Noise comes from `key` and the starting point, so that restarts mapped over have their own.
    Raises ValueError for a temperature that isn't finite and at least 0.
    """
    _check_temperature(temperature)
    warnings.warn(
        "langevin is unadjusted: its samples have an error of the order of the learning rate",
        stacklevel=2,
    )

    def init(params: Latents) -> LangevinState:
        return LangevinState(jnp.zeros((), int), _key_of_start(key, params))

    def update(
        updates: Latents, state: LangevinState, params: Latents | None = None
    ) -> tuple[Latents, LangevinState]:
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        noise_key, next_key = jax.random.split(state.key)
        noise = optax.tree.random_like(noise_key, updates)
        width = jnp.sqrt(2 * rate * temperature)
        updates = jax.tree.map(lambda g, xi: width * xi - rate * g, updates, noise)
        return updates, LangevinState(state.count + 1, next_key)

    return optax.GradientTransformation(init, update)


class PCNState(NamedTuple):
    """State of `pcn`."""

    count: Count  # type: ignore[assignment]
    key: PRNGKeyArray
    point: Latents  # the last one accepted
    value: Scalar  # of the objective there


def pcn(
    learning_rate: optax.ScalarOrSchedule, temperature: float, key: PRNGKeyArray
) -> optax.GradientTransformationExtraArgs:
    """The preconditioned Crank–Nicolson sampler: proposes √(1 − β²) z + β ξ, ξ ~ N(0, I).

    β, in (0, 1], is the learning rate. A proposal is accepted with probability
    min(1, exp((loss(z) − loss(z'))/T)), else z stays (Cotter, Roberts, Stuart and White,
    Statistical Science 28, 2013, on whose scale the prior is N(0, I)). With the scheme `none` it
    samples in proportion to exp(−loss/T) N(z; 0, I), with `rescale` to exp(−loss/T) on spheres of
    radius √d (Lie, Rudolf, Sprungk and Sullivan, Scandinavian Journal of Statistics 50, 2023), in
    both cases exactly, in the long run. With the loss `likelihoods.NegativeLogLikelihood` and T = 1
    that is the posterior. For chains with their own keys and diagnostics, see `samplers.pcn`.

    No gradient is used. Each update judges the last proposal and makes the next: the points that a
    search visits are the proposals, `point` of the state the sample. Randomness as in `langevin`.
    Updates need the point and the value there. Raises ValueError for a temperature that isn't
    finite and at least 0.
    """
    _check_temperature(temperature)

    def init(params: Latents) -> PCNState:
        infinity = jnp.asarray(jnp.inf, float)
        return PCNState(jnp.zeros((), int), _key_of_start(key, params), params, infinity)

    def update(
        updates: Latents,
        state: PCNState,
        params: Latents | None = None,
        *,
        value: float | Scalar,
        **extra_args: Any,
    ) -> tuple[Latents, PCNState]:
        beta = learning_rate(state.count) if callable(learning_rate) else learning_rate
        chance_key, noise_key, next_key = jax.random.split(state.key, 3)
        # Not a quotient of exponentials, and false where the value isn't finite.
        height = -temperature * jnp.log(jax.random.uniform(chance_key, minval=1e-37))
        accepted = value <= state.value + height
        point, value_there = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old),
            (params, value),
            (state.point, state.value),
        )
        noise = optax.tree.random_like(noise_key, params)
        updates = jax.tree.map(
            lambda z, xi, last: jnp.sqrt(1 - beta**2) * z + beta * xi - last, point, noise, params
        )
        return updates, PCNState(state.count + 1, next_key, point, value_there)

    return optax.GradientTransformationExtraArgs(init, update)


def _key_of_start(key: PRNGKeyArray, params: Latents) -> PRNGKeyArray:
    """The key of one restart: its start, drawn at random, tells it from the others."""
    for leaf in jax.tree.leaves(params):
        bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
        key = jax.random.fold_in(key, jnp.sum(bits, dtype=jnp.uint32))
    return key


def _check_temperature(temperature: float) -> None:
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be finite and at least 0, got {temperature}")


def fixed(learning_rate: float, steps: int) -> optax.Schedule:
    """A constant learning rate.

    Raises ValueError for a learning rate that isn't above 0, is above 1e15 or is too small for
    float32, or fewer steps than 1.
    """
    return _schedule(learning_rate, steps, jnp.ones_like)


def linear1cycle(learning_rate: float, steps: int) -> optax.Schedule:
    """From a tenth of `learning_rate` up to it at half time and down again, in straight lines.

    learning_rate · c(t), c(t) = (9(1 − |2t − 1|) + 1) / 10, t = step / steps. Raises ValueError as
    `fixed` does.
    """
    return _schedule(learning_rate, steps, _one_cycle)


def linear1cycledrop(learning_rate: float, steps: int) -> optax.Schedule:
    """`linear1cycle` in the first nine tenths, then down to a thousandth of `learning_rate`.

    With c and t as there: learning_rate · c(t / 0.9) for t < 0.9, then
    learning_rate (0.1 − 0.99(t − 0.9)). Raises ValueError as `fixed` does.
    """

    def shape(t: Time) -> Time:
        return jnp.where(t < 0.9, _one_cycle(t / 0.9), 0.1 - 0.99 * (t - 0.9))

    return _schedule(learning_rate, steps, shape)


# Optimiser(learning rate or schedule); the first four as in the reference, with torch's defaults.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "sgdm": sgdm,
    "adam": adam,
    "adamax": adamax,
    "sphere_adam": sphere_adam,
    "lbfgs": lbfgs,
}


def parse(text: str) -> Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]:
    """An optimiser of a command line: a name of `OPTIMIZERS`, or one of your own.

    Your own is written as my_module:my_optimizer. It is called as my_optimizer(schedule), with
    arguments as my_optimizer(schedule, 0.9) (see `plug_in`), and returns an optax transformation.
    Raises ValueError for an unknown name and for one that isn't found. What is returned raises it
    if your own returns something else.
    """
    if text in OPTIMIZERS:
        return OPTIMIZERS[text]
    if not plug_in.is_plug_in(text):
        known = ", ".join(OPTIMIZERS)
        raise ValueError(f"{text!r} is none of {known} and no module:callable")
    plug_in.find(text)
    return partial(plugged_in, text)


def plugged_in(text: str, first: Any) -> optax.GradientTransformation:
    """The transformation that a plug-in makes of a schedule or a base, or else ValueError."""
    made = plug_in.call(text, first)
    if not isinstance(made, optax.GradientTransformation):
        told = f"{plug_in.called(text)} returned a {type(made).__name__}"
        raise ValueError(f"{told}, not an optax.GradientTransformation")
    return made


# Sampler(learning rate or schedule, temperature, key).
SAMPLERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "langevin": langevin,
    "pcn": pcn,
}

# Schedule(peak learning rate, number of steps) -> learning rate of each step, counted from 0.
SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "fixed": fixed,
    "linear1cycle": linear1cycle,
    "linear1cycledrop": linear1cycledrop,
}


def _one_cycle(t: Time) -> Time:
    return (9 * (1 - jnp.abs(2 * t - 1)) + 1) / 10


def _schedule(learning_rate: float, steps: int, shape: Callable[[Time], Time]) -> optax.Schedule:
    """learning_rate · shape(step / steps), held after the last step."""
    if not 0 < learning_rate <= LARGEST_FACTOR:
        told = f"must be above 0 and at most {LARGEST_FACTOR:g}, got {learning_rate}"
        raise ValueError(f"learning rate {told}")
    if told := misfit(learning_rate):
        raise ValueError(f"learning rate {learning_rate} is {told}")
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")

    def schedule(count: int | Integer[AnyArray, "*counts"]) -> Time:
        # An int32 count would divide in float32 even where the latents are float64.
        t = jnp.asarray(count, float) / steps
        return learning_rate * shape(jnp.minimum(t, 1))

    return schedule
