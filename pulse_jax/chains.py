"""Many chains of a sampler: where they begin, their warm-up, and their draws.

    positions = starts(keys, posterior, params, target)
    state, sampler = warm_up(key, posterior, params, target, positions)
    state, draws, info = draw(key, sampler, params, target, state, 200)

Axis 0 of positions and states counts chains, and axis 1 of starts those of a chain. `diagnostics`
says whether chains have met. Dual averaging is blackjax's, which `pip install
"pulse_jax[posterior]"` installs.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Integer, Key, PRNGKeyArray

from pulse_jax.extras import blackjax
from pulse_jax.losses import Scalar
from pulse_jax.posterior import Position, Posterior
from pulse_jax.samplers import (
    Info,
    LogLikelihood,
    Number,
    Preconditioner,
    Sampler,
    State,
    geodesic_hmc,
    hmc,
    times,
)
from pulse_jax.static import argument
from pulse_jax.types import AnyArray, Degraded, Params

STARTS = 4  # of a chain, which goes on from one of them
DRAWS = 64  # of the prior, of which each start is one
FIRST_STEP = 0.05  # in radians, before it is adapted
LONGEST_STEP = 1.0  # in radians: where the prior's flow is all there is, no step is turned down


@functools.partial(jax.jit, static_argnames="draws")
def draw(
    key: PRNGKeyArray, sampler: Sampler, params: Params, target: Degraded, state: State, draws: int
) -> tuple[State, Position, Info]:
    """So many transitions of each chain: (state, positions, info).

    `state`: of many chains, as from `warm_up`. Leaves of positions and info are (chains, draws,
    ...). Keys of transitions are split from `key`, and keys of chains from these.
    """

    def transition(state: State, key: PRNGKeyArray) -> tuple[State, tuple[Position, Info]]:
        state, info = _step(key, sampler, params, target, state)
        return state, (state.position, info)

    state, (positions, info) = jax.lax.scan(transition, state, jax.random.split(key, draws))
    positions, info = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (positions, info))
    return state, positions, info


def _step(
    key: PRNGKeyArray, sampler: Sampler, params: Params, target: Degraded, state: State
) -> tuple[State, Info]:
    """A transition of each chain."""
    keys = jax.random.split(key, state.count.size)
    return jax.vmap(sampler.step, (0, None, None, 0))(keys, params, target, state)


def placements(number: int) -> tuple[NamedSharding, NamedSharding]:
    """How arrays lie on this process's devices: whole on each, and so many chains in equal shares.

    As many devices take part as have equal shares.
    """
    devices = jax.local_devices()
    count = next(k for k in range(len(devices), 0, -1) if number % k == 0)
    mesh = Mesh(devices[:count], "chains")
    return NamedSharding(mesh, P()), NamedSharding(mesh, P("chains"))


def as_placed(array: AnyArray, like: Array) -> Array:
    """An array on the devices that hold another, or on any if that isn't bound to some."""
    return jax.device_put(array, like.sharding) if like.committed else jnp.asarray(array)


class _Plan(NamedTuple):
    """What is constant in a warm-up."""

    spheres: bool
    leapfrogs: int
    acceptance_rate: float


def _kernel(
    plan: _Plan, loglikelihood: LogLikelihood, step_size: Number, learned: Preconditioner | None
) -> Sampler:
    """The sampler that suits the prior."""
    if plan.spheres:
        return geodesic_hmc(loglikelihood, step_size, plan.leapfrogs)
    return hmc(loglikelihood, step_size, plan.leapfrogs, learned)


@functools.partial(jax.jit, static_argnames=("number", "draws"))
def starts(
    keys: Key[Array, "chains"],
    posterior: Posterior,
    params: Params,
    target: Degraded,
    number: int = STARTS,
    draws: int = DRAWS,
) -> Position:
    """Where chains begin, so many times each: at draws of the prior which are near the picture.

    Of so many draws, one is chosen as likely as its likelihood has it, with the weight at which
    `warm_up` would begin at all these draws (importance resampling). Chains have nothing in common
    but this weight, so that they still are as far apart as R-hat needs. Costs an evaluation without
    gradient for each draw. Leaves are (chains, number, ...).
    """

    def value(key: PRNGKeyArray) -> Scalar:
        value = posterior.loglikelihood(params, target, posterior.sample(key))
        return jnp.where(jnp.isnan(value), -jnp.inf, value)  # which is never chosen

    split = jax.vmap(lambda key: jax.random.split(key, (number, draws + 1)))(keys)
    drawn = split[..., 1:].reshape(len(keys), -1)
    values = jax.vmap(functools.partial(jax.lax.map, value))(drawn)
    values = values.reshape(len(keys), number, draws)
    weight = _first_weight(posterior, target, values)
    chosen = jax.vmap(jax.vmap(jax.random.categorical))(split[..., 0], weight * values)
    # Made anew, since all of them at once may be too large.
    return jax.vmap(jax.vmap(lambda keys, i: posterior.sample(keys[1 + i])))(split, chosen)


def warm_up(
    key: PRNGKeyArray,
    posterior: Posterior,
    params: Params,
    target: Degraded,
    positions: Position,
    *,
    transitions: int = 100,
    leapfrogs: int = 8,
    acceptance_rate: float = 0.7,
    precondition: bool = True,
) -> tuple[State, Sampler]:
    """States of chains in the posterior, and a tuned sampler: `hmc`, or `geodesic_hmc` on spheres.

    `positions`: where chains begin, from `starts` or found by a search: leaves are (chains, starts,
    ...). Then come:

    1. From each start, half of the `transitions`. The likelihood is lowered to its width: its
       logarithm has a weight that rises to 1, by equal factors, as a Gaussian's σ would fall. It
       begins where the mean deviance of the starts is that of a perfect fit, n: for a Gaussian,
       with σ as wide as the residuals. A chain that comes into a poor mode doesn't leave it, so
       each chain goes on from one of its starts alone. That is chosen as likely as its weight has
       it in annealed importance sampling (Neal, Statistics and Computing 11, 2001). The weight's
       logarithm is the sum of the loglikelihoods, each times the rise that follows. Chains learn
       nothing of each other thereby, so that R-hat tells if they end in unlike modes.
    2. The other half, at the weight 1. Dual averaging (Hoffman and Gelman, JMLR 15, 2014) adapts
       the step size, which chains share, to the acceptance rate, from each start anew.
    3. On N(0, I), `preconditioner` is computed at the chains, unless `precondition` is off. The
       step size is adapted anew, in `transitions` more.

    Nothing is adapted afterwards: a sampler that goes on to learn from its past is none. Draws of
    the warm-up are not draws of the posterior. What is adapted is so to the chains at which the
    density is finite. Raises ValueError if there are none, for fewer than 2 transitions, and for an
    acceptance rate outside (0, 1).
    """
    whole = WarmUp(posterior, transitions, leapfrogs, acceptance_rate, precondition)
    warming = whole.init(params, target, positions)
    while whole.left(warming):
        warming = whole.step(key, params, target, warming, transitions // 2)
    return warming.state, whole.sampler(warming)


def parts_of_warm_up(transitions: int, starts: int = STARTS) -> list[int]:
    """Transitions of a chain: from each start, at the weight 1, and with the preconditioner."""
    rising = transitions // 2
    return [rising] * starts + [transitions - rising, transitions]


class Warming(NamedTuple):
    """How far a warm-up is: a pytree, of which `learned` can be computed again."""

    state: State
    tuning: Any  # of the step size, as blackjax has it
    first: Scalar  # weight of the loglikelihood
    made: Integer[Array, ""]  # transitions
    starts: State  # (chains, starts, ...)
    score: Float[Array, "chains"]  # log weight of annealed importance sampling, from this start
    kept: State  # where each chain would go on, by the starts so far
    kept_score: Float[Array, "chains"]  # of all starts so far
    middle: Position  # where the preconditioner was computed, or else the start
    learned: Preconditioner | None


@dataclass(frozen=True)
class WarmUp:
    """`warm_up`, some transitions at a time: one can show how far it is, save that and go on."""

    posterior: Posterior
    transitions: int = 100
    leapfrogs: int = 8
    acceptance_rate: float = 0.7
    precondition: bool = True

    def __post_init__(self) -> None:
        if self.transitions < 2:
            raise ValueError(f"transitions must be at least 2, got {self.transitions}")
        if not 0 < self.acceptance_rate < 1:
            raise ValueError(f"acceptance_rate must be in (0, 1), got {self.acceptance_rate}")

    def init(self, params: Params, target: Degraded, positions: Position) -> Warming:
        """The starts of chains. Raises ValueError if the density is finite at none of them."""
        begun = _begun(self.posterior, params, target, positions)
        # Their counts, too, which depend on nothing and would else begin whole on each device.
        begun = jax.tree.map(functools.partial(as_placed, like=begun.loglikelihood), begun)
        if not jnp.isfinite(begun.loglikelihood).any():
            raise ValueError("the density is finite at none of the positions")
        state = _nth(begun, 0)
        learned = None
        if self._learns:
            chains = state.count.size
            flat, _ = ravel_pytree(state.position)
            size, dtype = flat.size // chains, flat.dtype
            rank = min(size, chains * target.size)
            sizes = jnp.zeros(size, dtype), jnp.zeros((size, rank), dtype), jnp.ones(rank, dtype)
            learned = Preconditioner(*sizes)  # none yet, of the same shapes
        score = jnp.zeros_like(state.loglikelihood)
        return Warming(
            state=state,
            tuning=_tuning(self._plan, FIRST_STEP),
            first=_first_weight(self.posterior, target, begun.loglikelihood),
            made=jnp.zeros((), int),
            starts=begun,
            score=score,
            kept=state,
            kept_score=jnp.full_like(score, -jnp.inf),
            middle=state.position,
            learned=learned,
        )

    def left(self, warming: Warming) -> int:
        """How many transitions of each chain are still to be made."""
        return sum(self._parts(warming)) - int(warming.made)

    def step(
        self, key: PRNGKeyArray, params: Params, target: Degraded, warming: Warming, number: int
    ) -> Warming:
        """So many transitions more, but none beyond the present part. `key`: of the whole."""
        parts = self._parts(warming)
        ends = np.cumsum(parts)
        part = int(np.searchsorted(ends, int(warming.made), side="right"))
        begun = int(warming.made) - int(ends[part]) + parts[part]
        if not begun:
            warming = self._begin(part, params, target, warming)
        rises = part < self._number(warming)  # the weight, from each start
        exponents = np.linspace(1, 0, parts[part] + 1) if rises else np.zeros(parts[part] + 1)
        weights = warming.first**exponents
        now = slice(begun, begun + number)
        move_key, choice_key = jax.random.split(jax.random.fold_in(key, part))
        keys = jax.random.split(move_key, parts[part])[now]
        inputs = params, target, warming.state, keys, weights[:-1][now], jnp.diff(weights)[now]
        # On all devices from the first transition on, which is else compiled anew for each place.
        placed = functools.partial(as_placed, like=warming.first)
        adapted = jax.tree.map(placed, (warming.tuning, warming.learned))
        state, tuning, score = _tune(self._plan, self.posterior, *inputs, *adapted)
        warming = warming._replace(
            state=state,
            tuning=tuning,
            made=warming.made + len(keys),
            score=warming.score + score,
        )
        ended = int(warming.made) == ends[part]
        return _choose(choice_key, warming) if rises and ended else warming

    def _number(self, warming: Warming) -> int:
        """Of the starts of each chain."""
        return warming.starts.count.shape[1]

    def _parts(self, warming: Warming) -> list[int]:
        return parts_of_warm_up(self.transitions, self._number(warming))

    def _begin(self, part: int, params: Params, target: Degraded, warming: Warming) -> Warming:
        """What changes before the first transition of a part."""
        number = self._number(warming)
        if part < number:
            return warming._replace(
                state=_nth(warming.starts, part),
                tuning=_tuning(self._plan, FIRST_STEP),
                score=jnp.zeros_like(warming.score),
            )
        if part == number:
            return warming._replace(state=warming.kept)
        tuning = _tuning(self._plan, _step_size(self._plan, warming.tuning))
        warming = warming._replace(tuning=tuning, middle=warming.state.position)
        return warming._replace(learned=self.learned(params, target, warming))

    def learned(self, params: Params, target: Degraded, warming: Warming) -> Preconditioner | None:
        """The preconditioner of a warm-up that was saved without it, computed where it was."""
        if self.left(warming) > self.transitions or not self._learns:
            return warming.learned
        return preconditioner(self.posterior, params, target, warming.middle)

    def sampler(self, warming: Warming) -> Sampler:
        """The sampler of a warm-up that has ended."""
        step_size = _step_size(self._plan, warming.tuning)
        return _kernel(self._plan, self.posterior.loglikelihood, step_size, warming.learned)

    @property
    def _plan(self) -> _Plan:
        return _Plan(self.posterior.prior == "spheres", self.leapfrogs, self.acceptance_rate)

    @property
    def _learns(self) -> bool:
        return self.precondition and self.posterior.prior != "spheres"


@jax.jit
def preconditioner(
    posterior: Posterior, params: Params, target: Degraded, positions: Position
) -> Preconditioner:
    """A = (I + mean Jᵀ F J)^(−1/2) from the exact Jacobians J of D(G(z)) at many chains.

    F is the likelihood's information, 1/σ² for a Gaussian: for a linear generator A² is the
    posterior's covariance. The mean m is that of the chains where the picture says something,
    (I − A²) mean z, and the prior's 0 elsewhere. Chains whose density isn't finite are left out.
    Costs as many gradients per chain as the picture has values.
    """

    def rows(position: Position) -> tuple[Float[Array, "values d"], Scalar]:
        z, unravel = ravel_pytree(position)
        x, pull = jax.vjp(lambda z: posterior.degraded(params, unravel(z)), z)
        weights = jnp.sqrt(posterior.likelihood.precision(x, target)).astype(x.dtype)
        units = jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape) * weights
        rows = jax.lax.map(lambda unit: pull(unit)[0], units)
        return rows, posterior.likelihood.logpdf(x, target)

    jacobians, logpdfs = jax.vmap(rows)(positions)  # (chains, values, d), (chains,)
    zs = jax.vmap(lambda z: ravel_pytree(z)[0])(positions)
    usable = jnp.isfinite(jacobians).all((1, 2)) & jnp.isfinite(logpdfs)
    jacobians = jnp.where(usable[:, None, None], jacobians, 0)
    stacked = jacobians.reshape(-1, jacobians.shape[-1])
    stacked /= jnp.sqrt(jnp.maximum(usable.sum(), 1)).astype(stacked.dtype)
    _, singular, directions = jnp.linalg.svd(stacked, full_matrices=False)  # of (k,), (k, d)
    mean = jnp.mean(zs, 0, where=usable[:, None])
    shares = singular**2 / (1 + singular**2)
    mean = directions.T @ (shares * (directions @ mean))
    return Preconditioner(mean, directions.T, (1 + singular**2) ** -0.5)


@jax.jit
def _begun(posterior: Posterior, params: Params, target: Degraded, positions: Position) -> State:
    """The states of all starts: one of each chain after another, or they may be too large."""
    plan = _Plan(posterior.prior == "spheres", 1, 0.0)
    init = _kernel(plan, posterior.loglikelihood, 0.0, None).init
    init = functools.partial(init, params, target)
    return jax.vmap(functools.partial(jax.lax.map, init))(positions)


@functools.partial(jax.jit, static_argnames="number")
def _nth(begun: State, number: int) -> State:
    """The states of each chain's start of this number."""
    return jax.tree.map(lambda leaf: leaf[:, number], begun)


@jax.jit
def _choose(key: PRNGKeyArray, warming: Warming) -> Warming:
    """Each chain keeps the start before or takes this one, as likely as their scores have it.

    Where neither has a weight, it takes this one, which may have moved to where there is a density.
    """
    total = jnp.logaddexp(warming.kept_score, warming.score)
    stays = jnp.log(jax.random.uniform(key, total.shape)) >= warming.score - total
    choose = jax.vmap(jnp.where)
    kept = jax.tree.map(functools.partial(choose, stays), warming.kept, warming.state)
    return warming._replace(kept=kept, kept_score=total)


def _first_weight(
    posterior: Posterior, target: Degraded, loglikelihoods: Float[Array, "*points"]
) -> Scalar:
    """At which the mean deviance from a perfect fit is the number of values; at most 1."""
    likelihood = posterior.likelihood
    best = likelihood.logpdf(target, target)
    deviance = 2 * (best - jnp.mean(loglikelihoods, where=jnp.isfinite(loglikelihoods)))
    # Of values that are data. By a white image, as Poisson's have a precision of 0 by a black one.
    number = jnp.sum(likelihood.precision(jnp.ones_like(target), target) > 0)
    return jnp.minimum(1, jnp.maximum(number, 1) / jnp.maximum(deviance, 1))


def _dual_averaging(plan: _Plan) -> Any:
    adaptation = blackjax("adaptation.step_size")
    return adaptation.dual_averaging_adaptation(plan.acceptance_rate)


def _tuning(plan: _Plan, step_size: Number) -> Any:
    start, _, _ = _dual_averaging(plan)
    return jax.tree.map(lambda x: jnp.asarray(x, float), start(jnp.asarray(step_size, float)))


def _step_size(plan: _Plan, tuning: Any) -> Scalar:
    """The average over the transitions."""
    _, _, final = _dual_averaging(plan)
    return jnp.minimum(final(tuning), LONGEST_STEP)


@functools.partial(jax.jit, static_argnames="plan")
def _tune(
    plan: _Plan,
    posterior: Posterior,
    params: Params,
    target: Degraded,
    state: State,
    keys: Key[Array, "transitions"],
    weights: Float[Array, "transitions"],
    rises: Float[Array, "transitions"],
    tuning: Any,
    learned: Preconditioner | None,
) -> tuple[State, Any, Float[Array, "chains"]]:
    """Transitions with the loglikelihood times these weights, and the step size adapted to them.

    Also the sums of the loglikelihoods after them, times the rises of the weight that follow.
    States have the likelihood's own value and gradient before and after.
    """
    _, update, _ = _dual_averaging(plan)

    def weighted(state: State, weight: Scalar) -> State:
        value, gradient = times(weight, (state.loglikelihood, state.gradient))
        return state._replace(loglikelihood=value, gradient=gradient)

    def transition(
        carry: tuple[State, Any], now: tuple[PRNGKeyArray, Scalar, Scalar]
    ) -> tuple[tuple[State, Any], Float[Array, "chains"]]:
        (state, tuning), (key, weight, rise) = carry, now
        loglikelihood = argument(_weighted, posterior.loglikelihood, weight)
        step_size = jnp.minimum(jnp.exp(tuning.log_step_size), LONGEST_STEP)
        sampler = _kernel(plan, loglikelihood, step_size, learned)
        state, info = _step(key, sampler, params, target, weighted(state, weight))
        state = weighted(state, 1 / weight)
        usable = jnp.isfinite(state.loglikelihood)
        adapted = update(tuning, jnp.mean(info.acceptance_rate, where=usable))
        tuning = optax.tree.where(usable.any(), adapted, tuning)
        return (state, tuning), jnp.where(usable, rise * state.loglikelihood, -jnp.inf)

    inputs = keys, weights, rises
    (state, tuning), scores = jax.lax.scan(transition, (state, tuning), inputs)
    return state, tuning, scores.sum(0)


def _weighted(
    loglikelihood: LogLikelihood,
    weight: Scalar,
    params: Params,
    target: Degraded,
    position: Position,
) -> Scalar:
    return times(weight, loglikelihood(params, target, position))
