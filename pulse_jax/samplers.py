"""Samplers of a posterior p(z | y) ∝ p(z) exp(loglikelihood(params, target, z)), one chain each.

All have one contract, that of blackjax with this project's arguments:

    sampler = hmc(posterior.loglikelihood, step_size=0.05)
    state = sampler.init(params, target, position)
    state, info = sampler.step(key, params, target, state)

They leave the posterior as it is, exactly: errors of a step are accepted or not. The prior is in
the sampler, as the `Flow` along which it moves points: N(0, I) for `hmc`, uniform on spheres of
radius √d for `geodesic_hmc` and `geodesic_slice`, either one for `pcn`. `vmap` a step over keys and
states for many chains, or leave that to `chains`, which finds the step size too.

A position is a pytree whose leaves count points on axis 0, as a generator's latents do. A sampler
is a pytree of its arrays, so that new step sizes or operators don't recompile.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Bool, Float, Integer, PRNGKeyArray

from pulse_jax import sphere
from pulse_jax.likelihoods import pairwise_sum
from pulse_jax.losses import Scalar
from pulse_jax.posterior import Position, onto_spheres
from pulse_jax.static import argument
from pulse_jax.types import Degraded, Params

Velocity: TypeAlias = Position
LogLikelihood: TypeAlias = Callable[[Params, Degraded, Position], Scalar]
Number: TypeAlias = float | Scalar

DIVERGENCE = 1000  # a gain of energy above which a transition counts as divergent, as in blackjax


class State(NamedTuple):
    """What the next transition of one chain needs."""

    position: Position
    loglikelihood: Scalar  # there
    gradient: Position  # of it; () for samplers without
    count: Integer[Array, ""]  # type: ignore[assignment]  # transitions made; tuples have a `count`


class Info(NamedTuple):
    """What one transition of one chain measured."""

    acceptance_rate: Scalar  # the proposal's probability
    energy: Scalar  # of the state arrived at: −log p(z, y) up to a constant, and kinetic energy
    is_divergent: Bool[Array, ""]  # the proposal's energy is too high, or not finite
    evaluations: Integer[Array, ""]  # of the likelihood, or of it with its gradient


class Sampler(NamedTuple):
    """A sampler for one chain, as two pure functions, which are pytrees.

    `init(params, target, position)`: the state at a position, which is put onto spheres if the
        prior is on them.
    `step(key, params, target, state)`: one transition, to a new state and its `Info`.
    """

    init: Callable[[Params, Degraded, Position], State]
    step: Callable[[PRNGKeyArray, Params, Degraded, State], tuple[State, Info]]


# --- What is known in closed form: the flow of the prior. ---


class Flow(NamedTuple):
    """Hamiltonian dynamics without the likelihood, solved exactly, about a reference measure.

    With H(z, v) = −log p(z) + K(v) − loglikelihood, `move` follows a part of H and keeps volume,
    and `kick` follows the rest.

    `place(z)`: the point of the support that is meant by z.
    `velocity(key, z)`: v drawn from exp(−K).
    `move(z, v, t)`: (z, v) after a time t, exactly.
    `kick(z, g)`: dv/dt of what `move` leaves out, g being the gradient of the loglikelihood.
    `energy(z, v)`: −log p(z) + K(v), up to a constant.
    """

    place: Callable[[Position], Position]
    velocity: Callable[[PRNGKeyArray, Position], Velocity]
    move: Callable[[Position, Velocity, Number], tuple[Position, Velocity]]
    kick: Callable[[Position, Position], Velocity]
    energy: Callable[[Position, Velocity], Scalar]


def _noise(key: PRNGKeyArray, z: Position) -> Velocity:
    return optax.tree.random_like(key, z)


def _square(z: Position) -> Scalar:
    return optax.tree.sum(jax.tree.map(lambda leaf: pairwise_sum(leaf**2), z))


def _rotate(z: Position, v: Velocity, t: Number) -> tuple[Position, Velocity]:
    cos, sin = jnp.cos(t), jnp.sin(t)
    turned = optax.tree.add(times(cos, z), times(sin, v))
    return turned, optax.tree.sub(times(cos, v), times(sin, z))


def times(number: Number, z: Position) -> Position:
    """A number times z, in the types of z, whatever that of the number."""
    return jax.tree.map(lambda leaf: jnp.asarray(number, leaf.dtype) * leaf, z)


def _on_great_circle(
    x: Float[Array, "*point"], v: Float[Array, "*point"], t: Number
) -> tuple[Float[Array, "*point"], Float[Array, "*point"]]:
    """x cos ωt + (v/ω) sin ωt with ω = ‖v‖/R, and its derivative in time."""
    time = jnp.asarray(t, x.dtype)
    return jax.jvp(lambda time: sphere.exp(x, time * v), (time,), (jnp.ones_like(time),))


def _along_geodesics(z: Position, v: Velocity, t: Number) -> tuple[Position, Velocity]:
    leaves, treedef = jax.tree.flatten(z)
    moved = [
        jax.vmap(_on_great_circle, (0, 0, None))(x, u, t)
        for x, u in zip(leaves, jax.tree.leaves(v), strict=True)
    ]
    z, v = (jax.tree.unflatten(treedef, part) for part in zip(*moved, strict=True))
    z = onto_spheres(z)  # against drift
    return z, _tangent(z, v)


def _tangent(z: Position, v: Velocity) -> Velocity:
    return jax.tree.map(jax.vmap(sphere.tangent), z, v)


GAUSSIAN = Flow(
    place=argument(lambda z: z),
    velocity=argument(_noise),
    move=argument(_rotate),
    kick=argument(lambda z, gradient: gradient),
    energy=argument(lambda z, v: (_square(z) + _square(v)) / 2),
)
"""N(0, I): a rotation, z cos t + v sin t (Beskos, Pinski, Sanz-Serna and Stuart, Stochastic
Processes and their Applications 121, 2011)."""

SPHERES = Flow(
    place=argument(onto_spheres),
    velocity=argument(lambda key, z: _tangent(z, _noise(key, z))),
    move=argument(_along_geodesics),
    kick=argument(_tangent),
    energy=argument(lambda z, v: _square(v) / 2),
)
"""Uniform on spheres of radius √d: geodesics, each sphere at its own speed (Byrne and Girolami,
Scandinavian Journal of Statistics 40, 2013)."""


class Preconditioner(NamedTuple):
    """z = m + A u with A = I + U (diag(s) − I) Uᵀ, for positions as one vector of d coordinates."""

    mean: Float[Array, "d"]
    directions: Float[Array, "d k"]  # U, of orthonormal columns
    scales: Float[Array, "k"]  # s: the posterior's width along each, where the prior's is 1


def _scaled(preconditioner: Preconditioner, power: int, v: Float[Array, "d"]) -> Float[Array, "d"]:
    """A^power v.

    In full precision: if an accelerator rounded the products, velocities of `velocity` wouldn't
    have the density of `energy`, and draws not the posterior's.
    """
    _, directions, scales = preconditioner
    product = functools.partial(jnp.matmul, precision="highest")
    return v + product(directions, (scales**power - 1) * product(directions.T, v))


def about(preconditioner: Preconditioner) -> Flow:
    """The rotation of u in z = m + A u, in terms of z: about m, with velocities from N(0, A²)."""

    def velocity(preconditioner: Preconditioner, key: PRNGKeyArray, z: Position) -> Velocity:
        noise, unravel = ravel_pytree(_noise(key, z))
        return unravel(_scaled(preconditioner, 1, noise))

    def move(
        preconditioner: Preconditioner, z: Position, v: Velocity, t: Number
    ) -> tuple[Position, Velocity]:
        (z, unravel), (v, _) = ravel_pytree(z), ravel_pytree(v)
        z, v = _rotate(z - preconditioner.mean, v, t)
        return unravel(z + preconditioner.mean), unravel(v)

    def kick(preconditioner: Preconditioner, z: Position, gradient: Position) -> Velocity:
        (z, unravel), (gradient, _) = ravel_pytree(z), ravel_pytree(gradient)
        pulled = _scaled(preconditioner, 2, gradient - z)
        return unravel(pulled + z - preconditioner.mean)

    def energy(preconditioner: Preconditioner, z: Position, v: Velocity) -> Scalar:
        v, _ = ravel_pytree(v)
        return (_square(z) + _square(_scaled(preconditioner, -1, v))) / 2

    return Flow(
        GAUSSIAN.place,
        *(argument(function, preconditioner) for function in (velocity, move, kick, energy)),
    )


# --- Samplers. ---


def hmc(
    loglikelihood: LogLikelihood,
    step_size: Number,
    leapfrogs: int = 8,
    preconditioner: Preconditioner | None = None,
) -> Sampler:
    """Hamiltonian Monte Carlo on the prior N(0, I), whose part of the flow is exact.

    A leapfrog is a kick v + (ε/2) ∇loglikelihood, the prior's rotation z cos ε + v sin ε, and
    another kick (Beskos et al., 2011): without data every step is accepted, in any dimension. With
    a `preconditioner` the same is done in u, z = m + A u, and the kicks have the rest of the
    density. Lengths of trajectories vary about `leapfrogs`, from half to one and a half of it, so
    that none is in tune with a period; all chains have the same, so that none waits for another.

    `step_size` is ε, in radians of the rotation. Costs a gradient for each leapfrog.
    """
    flow = GAUSSIAN if preconditioner is None else about(preconditioner)
    return _hamiltonian(flow, loglikelihood, step_size, leapfrogs)


def geodesic_hmc(loglikelihood: LogLikelihood, step_size: Number, leapfrogs: int = 8) -> Sampler:
    """Hamiltonian Monte Carlo on spheres of radius √d, with a prior uniform on them.

    Velocities are tangent, v ~ N(0, I) projected. A leapfrog is a kick (ε/2) P ∇loglikelihood, the
    geodesic x cos ωε + (v/ω) sin ωε with ω = ‖v‖/R on each sphere, and another kick (Byrne and
    Girolami, 2013; Lan, Zhou and Shahbaba, ICML 2014). Points are rescaled against drift. Lengths
    of trajectories as in `hmc`; a coordinate moves about as far there for the same `step_size`.
    """
    return _hamiltonian(SPHERES, loglikelihood, step_size, leapfrogs)


def pcn(loglikelihood: LogLikelihood, beta: Number, flow: Flow = GAUSSIAN) -> Sampler:
    """Preconditioned Crank–Nicolson: proposes √(1 − β²) z + β ξ, ξ ~ N(0, I), no gradient.

    That is the prior's flow alone, for a time arcsin β, β in (0, 1] (Cotter, Roberts, Stuart and
    White, Statistical Science 28, 2013). With the flow `SPHERES` it is a random walk along
    geodesics. Costs one evaluation. A slow reference, with moves of any size accepted or not.
    """
    if not _holds(beta, lambda beta: 0 < beta <= 1):
        raise ValueError(f"beta must be in (0, 1], got {beta}")
    step = argument(_pcn_step, argument(loglikelihood), flow, beta)
    return Sampler(argument(_init, argument(loglikelihood), flow), step)


def geodesic_slice(loglikelihood: LogLikelihood) -> Sampler:
    """Geodesic slice sampling on spheres of radius √d, with a prior uniform on them.

    Draws a level below the density, a great circle through each point and one angle for all of
    them, and shrinks the range of angles to 0 until the density is above the level (Habeck,
    Hasenpflug, Kodgirwar and Rudolf, arXiv 2301.08056, algorithm 2; a product of spheres has one
    common angle). Nothing to tune, no gradient; costs some evaluations. A slow reference.
    """
    step = argument(_slice_step, argument(loglikelihood))
    return Sampler(argument(_init, argument(loglikelihood), SPHERES), step)


def _hamiltonian(
    flow: Flow, loglikelihood: LogLikelihood, step_size: Number, leapfrogs: int
) -> Sampler:
    if not _holds(step_size, lambda step_size: 0 <= step_size < math.inf):
        raise ValueError(f"step_size must be finite and at least 0, got {step_size}")
    if not _holds(leapfrogs, lambda number: number >= 1 and number == int(number)):
        raise ValueError(f"leapfrogs must be a whole number of at least 1, got {leapfrogs}")
    loglikelihood = argument(loglikelihood)
    step = argument(_hamiltonian_step, loglikelihood, flow, step_size, leapfrogs)
    return Sampler(argument(_init_with_gradient, loglikelihood, flow), step)


def _holds(value: Any, condition: Callable[[Any], Any]) -> bool:
    """Whether a number meets a condition; while it is traced, nothing is known of it."""
    return isinstance(value, jax.core.Tracer) or bool(condition(value))


def _init(
    loglikelihood: LogLikelihood, flow: Flow, params: Params, target: Degraded, position: Position
) -> State:
    position = flow.place(_floats(position))
    value = loglikelihood(params, target, position)
    return State(position, value, (), jnp.zeros((), int))


def _floats(position: Position) -> Position:
    """The position. Raises ValueError if it has numbers of another kind, which don't move."""
    for leaf in jax.tree.leaves(position):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"positions must be floats, got {jnp.result_type(leaf)}")
    return position


def _init_with_gradient(
    loglikelihood: LogLikelihood, flow: Flow, params: Params, target: Degraded, position: Position
) -> State:
    position = flow.place(_floats(position))
    value, gradient = jax.value_and_grad(loglikelihood, argnums=2)(params, target, position)
    return State(position, value, gradient, jnp.zeros((), int))


def _hamiltonian_step(
    loglikelihood: LogLikelihood,
    flow: Flow,
    step_size: Number,
    leapfrogs: int | Integer[Array, ""],
    key: PRNGKeyArray,
    params: Params,
    target: Degraded,
    state: State,
) -> tuple[State, Info]:
    velocity_key, key = jax.random.split(key)
    velocity = flow.velocity(velocity_key, state.position)
    number = _varied(leapfrogs, state.count)

    def move(_: Any, moving: tuple[State, Velocity]) -> tuple[State, Velocity]:
        return leapfrog(loglikelihood, flow, step_size, params, target, *moving)

    proposal, final = jax.lax.fori_loop(0, number, move, (state, velocity))
    return _accept(key, flow, state, velocity, proposal, final, number)


def leapfrog(
    loglikelihood: LogLikelihood,
    flow: Flow,
    step_size: Number,
    params: Params,
    target: Degraded,
    state: State,
    velocity: Velocity,
) -> tuple[State, Velocity]:
    """Half a kick, the prior's flow for a time `step_size`, half a kick.

    It keeps volume, and is undone by a leapfrog with the velocity reversed.
    """

    def kick(position: Position, gradient: Position, velocity: Velocity) -> Velocity:
        return optax.tree.add(velocity, times(step_size / 2, flow.kick(position, gradient)))

    velocity = kick(state.position, state.gradient, velocity)
    position, velocity = flow.move(state.position, velocity, step_size)
    value, gradient = jax.value_and_grad(loglikelihood, argnums=2)(params, target, position)
    velocity = kick(position, gradient, velocity)
    return State(position, value, gradient, state.count), velocity


def _pcn_step(
    loglikelihood: LogLikelihood,
    flow: Flow,
    beta: Number,
    key: PRNGKeyArray,
    params: Params,
    target: Degraded,
    state: State,
) -> tuple[State, Info]:
    velocity_key, key = jax.random.split(key)
    velocity = flow.velocity(velocity_key, state.position)
    position, final = flow.move(state.position, velocity, jnp.arcsin(beta))
    proposal = state._replace(
        position=position, loglikelihood=loglikelihood(params, target, position)
    )
    return _accept(key, flow, state, velocity, proposal, final, 1)


def _accept(
    key: PRNGKeyArray,
    flow: Flow,
    state: State,
    velocity: Velocity,
    proposal: State,
    final: Velocity,
    evaluations: int | Integer[Array, ""],
) -> tuple[State, Info]:
    """The proposal with probability min(1, exp(−gain of energy)), else the state (Metropolis)."""
    before = flow.energy(state.position, velocity) - state.loglikelihood
    after = flow.energy(proposal.position, final) - proposal.loglikelihood
    stuck = ~jnp.isfinite(before)  # from where a chain goes to any point with a density
    gain = jnp.where(jnp.isfinite(after), jnp.where(stuck, -jnp.inf, after - before), jnp.inf)
    rate = jnp.exp(-jnp.maximum(gain, 0))
    accepted = jax.random.uniform(key) < rate
    state = optax.tree.where(accepted, proposal, state)._replace(count=state.count + 1)
    energy = jnp.where(accepted, after, before)
    info = Info(rate, energy, gain > DIVERGENCE, jnp.asarray(evaluations))
    return state, info


class _Trial(NamedTuple):
    """A point of the great circles, and the angles among which it was drawn."""

    key: PRNGKeyArray  # of the next
    low: Scalar
    high: Scalar
    angle: Scalar
    position: Position
    loglikelihood: Scalar
    tried: Integer[Array, ""]  # points so far


def _slice_step(
    loglikelihood: LogLikelihood, key: PRNGKeyArray, params: Params, target: Degraded, state: State
) -> tuple[State, Info]:
    velocity_key, level_key, key = jax.random.split(key, 3)
    velocity = onto_spheres(SPHERES.velocity(velocity_key, state.position))  # one radian in time 1
    value = state.loglikelihood
    value = jnp.where(jnp.isfinite(value), value, -jnp.inf)  # below any point with a density
    level = value + jnp.log1p(-jax.random.uniform(level_key))

    def attempt(key: PRNGKeyArray, low: Scalar, high: Scalar, tried: Integer[Array, ""]) -> _Trial:
        key, angle_key = jax.random.split(key)
        angle = jax.random.uniform(angle_key, minval=low, maxval=high)
        position, _ = SPHERES.move(state.position, velocity, angle)
        value = loglikelihood(params, target, position)
        return _Trial(key, low, high, angle, position, value, tried + 1)

    def is_above(trial: _Trial) -> Bool[Array, ""]:
        return (trial.loglikelihood >= level) & jnp.isfinite(trial.loglikelihood)

    def goes_on(trial: _Trial) -> Bool[Array, ""]:
        return ~is_above(trial) & (trial.tried < 100)  # then the range is as small as rounding

    def shrink(trial: _Trial) -> _Trial:
        key, low, high, angle, *_ = trial
        low, high = jnp.where(angle < 0, angle, low), jnp.where(angle < 0, high, angle)
        return attempt(key, low, high, trial.tried)

    turn = jnp.asarray(2 * math.pi, float)
    start_key, key = jax.random.split(key)
    high = turn * jax.random.uniform(start_key)
    first = attempt(key, high - turn, high, jnp.zeros((), int))
    last = jax.lax.while_loop(goes_on, shrink, first)
    found, moved = State(last.position, last.loglikelihood, (), state.count), is_above(last)
    state = optax.tree.where(moved, found, state)._replace(count=state.count + 1)
    return state, Info(moved.astype(float), -state.loglikelihood, ~moved, last.tried)


def _varied(leapfrogs: int | Integer[Array, ""], count: Integer[Array, ""]) -> Integer[Array, ""]:
    """From half to one and a half of it, evenly: by multiples of the golden ratio, modulo 1."""
    golden = count.astype(jnp.uint32) * jnp.uint32(2654435769)  # 2³² (√5 − 1)/2, modulo 2³²
    share = (golden >> 8).astype(float) / 2.0**24
    number = jnp.floor(leapfrogs / 2 + share * (leapfrogs + 1)).astype(int)
    return jnp.maximum(number, 1)
