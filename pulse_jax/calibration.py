"""Whether posterior samples are calibrated, measured where the truth is known.

A truth z is drawn from the prior, and its picture y from the likelihood. Then z is itself a draw of
the posterior p(z | y), and nothing may tell it from a sampler's. So its rank among them is uniform,
whatever number is ranked. All of this is exact for truths that the generator drew; with others it
measures the generator too.

Draws of the prior, which ignore the picture, pass all of this, unless a number is ranked that
depends on the picture, as the log density does (Modrák et al., arXiv 2211.02383).

Arrays are (simulations, draws, ...), one posterior for each simulation, with independent draws.
"""

from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Bool, Float, Integer, PRNGKeyArray

from pulse_jax.posterior import Position
from pulse_jax.samplers import Sampler, State
from pulse_jax.types import AnyArray, Degraded, Params


def ranks(
    rng: np.random.Generator,
    truths: Float[AnyArray, "simulations *statistics"],
    draws: Float[AnyArray, "simulations draws *statistics"],
) -> Float[np.ndarray, "simulations *statistics"]:
    """Of each truth among its draws, as a share: uniform in (0, 1) if they are calibrated.

    (k + u) / (N + 1), where k of the N draws are below the truth and u is uniform, so that the
    share is too; draws that equal it are below or above at random. This is simulation-based
    calibration (Talts, Betancourt, Simpson, Vehtari and Gelman, arXiv 1804.06788). Raises
    ValueError for NaN, which has no rank, and for draws that aren't of these truths.
    """
    truths, draws = _matched(truths, draws)
    for name, values in (("truths", truths), ("draws", draws)):
        if missing := np.isnan(values).sum():
            raise ValueError(f"{missing} of the {values.size} {name} are NaN, which has no rank")
    below = np.sum(draws < truths[:, None], axis=1)
    equal = np.sum(draws == truths[:, None], axis=1)
    spread = rng.uniform(size=truths.shape) * (equal + 1)
    return (below + spread) / (draws.shape[1] + 1)


def uniformity(shares: Float[AnyArray, "simulations *statistics"]) -> float:
    """The p-value of all statistics' ranks together.

    Two tests of Cramér and von Mises for each statistic: of the share u, which sees a bias, and of
    |2u − 1|, which sees samples that are too narrow or too wide. The least p-value counts, times
    the number of tests (Bonferroni), at most 1: of calibrated samples, at most a share α has one
    below α. Raises ValueError for fewer than 2 simulations, and for shares outside [0, 1].
    """
    from scipy import stats  # here, since each start of the command would wait for it

    _check_number("simulations", len(shares))
    _check_shares("shares", shares := np.asarray(shares))
    columns = shares.reshape(len(shares), -1).T
    tested = [u for column in columns for u in (column, np.abs(2 * column - 1))]
    least = min(stats.cramervonmises(u, "uniform").pvalue for u in tested)
    return float(min(1, least * len(tested)))


def tarp(
    rng: np.random.Generator,
    truths: Float[AnyArray, "simulations d"],
    draws: Float[AnyArray, "simulations draws d"],
) -> Float[np.ndarray, "simulations"]:
    """Of each truth's distance to a random point among its draws', as `ranks`: expected coverage.

    The points are other simulations' truths. The credible regions are balls about them, and the
    share of truths with a rank below α is the coverage of regions of credibility α, in all
    dimensions at once (Lemos, Coogan, Hezaveh and Perreault-Levasseur, ICML 2023). Coordinates
    count relative to the standard deviations of truths and draws together: were it the truths'
    alone, distances would tell a truth from its draws. Raises ValueError for fewer than 2
    simulations, and as `ranks` does.
    """
    truths, draws = _matched(truths, draws)
    _check_number("simulations", len(truths))
    points = np.roll(truths, rng.integers(1, len(truths)), axis=0)
    dtype = np.result_type(truths, draws, np.float32)  # squares of half precision overflow
    every = np.concatenate([truths[:, None], draws], axis=1, dtype=dtype)
    scale = every.std((0, 1))
    apart = (every - points[:, None]) / np.where(scale > 0, scale, 1)
    distances = np.linalg.norm(apart, axis=-1)  # (simulations, 1 + draws)
    return ranks(rng, distances[:, 0], distances[:, 1:])


class DeltaCal(NamedTuple):
    """Δcal with its interval of 95%."""

    value: float
    low: float
    high: float


def delta_cal(
    truths: Float[AnyArray, "simulations *shape"],
    draws: Float[AnyArray, "simulations draws *shape"],
    effective: Float[AnyArray, "simulations"] | None = None,
) -> DeltaCal:
    """The posteriors' variance over the squared error of their means: 1 if they are calibrated.

    Below 1 the error bars are too short. The mean of N independent draws has the variance σ²/N, so
    that their mean square about it is short of σ² by this, and the squared error exceeds σ² by
    this. So they are divided by 1 − 1/N and 1 + 1/N: calibrated draws have 1 for any N, and others
    come nearer to it as N falls. Where draws come from chains, N is their `effective` number, which
    tells the variance of their mean.

    The interval is Student's for the logarithm, whose error over simulations is known to first
    order. It holds for few simulations too, where a bootstrap's is too short. Raises ValueError for
    fewer than 2 simulations or draws, for draws that aren't of these truths, or for an effective
    number of at most 1.
    """
    from scipy import stats  # here, since each start of the command would wait for it

    truths, draws = _matched(np.asarray(truths, np.float64), np.asarray(draws, np.float64))
    _check_number("simulations", len(truths))
    _check_number("draws", draws.shape[1])
    number = np.float64(draws.shape[1] if effective is None else effective)
    if not (number > 1).all():
        raise ValueError(f"effective numbers of draws must be above 1, got {number.min():g}")
    axes = tuple(range(1, truths.ndim))
    variance = draws.var(1).mean(axes) / (1 - 1 / number)  # (simulations,)
    error = ((draws.mean(1) - truths) ** 2).mean(axes) / (1 + 1 / number)
    value = variance.mean() / error.mean()
    residual = (variance - value * error) / error.mean()
    half = stats.t.ppf(0.975, len(truths) - 1) * stats.sem(residual)
    factor = np.exp(half / value) if value else 1.0  # draws that are all alike have no error
    return DeltaCal(float(value), float(value / factor), float(value * factor))


class Reliability(NamedTuple):
    """How often came true what had about the same probability: a line for each such bin."""

    counts: Integer[np.ndarray, "bins"]  # of predictions
    stated: Float[np.ndarray, "bins"]  # their mean probability
    observed: Float[np.ndarray, "bins"]  # the share of them that came true
    low: Float[np.ndarray, "bins"]  # of the interval of 95% of how often such come true
    high: Float[np.ndarray, "bins"]


def reliability(
    probabilities: Float[AnyArray, "simulations *predictions"],
    outcomes: Bool[AnyArray, "simulations *predictions"],
    bins: int = 5,
) -> Reliability:
    """Whether seven in ten wear glasses of the faces for which that is said to be 70% likely.

    `probabilities`: of draws that show something, and `outcomes`: whether the truth does. Bins of
    the probability have equal widths, and those that are empty are left out. The intervals are
    Wilson's (JASA 22, 1927). Predictions of one simulation, as of all kinds of hair, depend on each
    other, so they count for as many independent ones as have the same variance of the share (Korn
    and Graubard, Survey Methodology 24, 1998). That can't be told if the share is the same in all
    simulations, as where nothing came true. Then each simulation counts once. A share of N draws is
    itself off by up to 1/√(4N), which draws predictions apart that should agree: take many draws.
    Raises ValueError for probabilities outside [0, 1].
    """
    probabilities, outcomes = np.asarray(probabilities, np.float64), np.asarray(outcomes)
    _check_shares("probabilities", probabilities)
    places = np.minimum((probabilities * bins).astype(int), bins - 1)
    inside = places.reshape(len(places), -1, 1) == np.unique(places)
    known = probabilities.reshape(*inside.shape[:2], 1), outcomes.reshape(*inside.shape[:2], 1)
    stated, came_true = (np.where(inside, x, 0).sum(1) for x in known)  # (simulations, bins)
    number = inside.sum(1)
    counts = number.sum(0)
    observed = came_true.sum(0) / counts
    # N times: these are whole numbers, and so 0 where they should be.
    excess = came_true * counts - came_true.sum(0) * number
    spread = ((excess / counts) ** 2).sum(0)  # the variance of the share, times N²
    varies = spread > 0
    alike = counts**2 * observed * (1 - observed) / np.where(varies, spread, 1)
    trials = np.minimum(counts, np.where(varies, alike, (number > 0).sum(0)))
    return Reliability(counts, stated.sum(0) / counts, observed, *wilson(observed, trials))


def wilson(
    share: Float[np.ndarray, "shares"], trials: Float[np.ndarray, "shares"]
) -> tuple[Float[np.ndarray, "shares"], Float[np.ndarray, "shares"]]:
    """Wilson's score intervals of 95% (JASA 22, 1927) of shares that were seen in so many trials.

    They also hold near 0 and 1, and for few trials. Trials must be independent. They needn't be a
    whole number, and one may be a success in part, neither of which SciPy's `binomtest` takes.
    """
    square = NormalDist().inv_cdf(0.975) ** 2 / trials
    middle = (share + square / 2) / (1 + square)
    half = np.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)


def through_truth(
    key: PRNGKeyArray,
    sampler: Sampler,
    params: Params,
    target: Degraded,
    truth: Position,
    draws: int,
    thinning: int = 1,
) -> Position:
    """Draws of one chain that passes through the truth at a random place, the truth not included.

    The truth's rank among them is exactly uniform however slowly the chain moves, where independent
    posteriors would cost too much: from a draw of the posterior a reversible sampler may go
    backwards as well as forwards (Gandy and Scott, arXiv 2001.06465). A faulty sampler shows as far
    as the chain moves. All samplers of `samplers` are reversible. The order of the draws is that in
    which they were made: only ranks are meant.
    """
    place_key, key = jax.random.split(key)
    start = sampler.init(params, target, truth)
    before = thinning * jax.random.randint(place_key, (), 0, draws + 1)  # transitions to it

    def transition(state: State, now: Integer[Array, ""]) -> tuple[State, None]:
        state = optax.tree.where(now == before, start, state)
        # As the chain's transitions are numbered from its first draw on, in both directions.
        state = state._replace(count=jnp.where(now < before, before - 1 - now, now))
        state, _ = sampler.step(jax.random.fold_in(key, now), params, target, state)
        return state, None

    def draw(state: State, numbers: Integer[Array, "thinning"]) -> tuple[State, Position]:
        state, _ = jax.lax.scan(transition, state, numbers)
        return state, state.position

    numbers = jnp.arange(draws * thinning).reshape(draws, thinning)
    return jax.lax.scan(draw, start, numbers)[1]


def _matched(truths: AnyArray, draws: AnyArray) -> tuple[np.ndarray, np.ndarray]:
    """Both on the host. Raises ValueError if the draws aren't (simulations, draws, ...) of them.

    NumPy would stretch what has fewer statistics, and compare it with others.
    """
    truths, draws = np.asarray(truths), np.asarray(draws)
    simulations, *shape = truths.shape
    if draws.ndim < 2 or draws.shape != (simulations, draws.shape[1], *shape):
        told = f"draws of truths {truths.shape} have an axis more, behind the first"
        raise ValueError(f"{told}, got {draws.shape}")
    if not draws.shape[1]:
        raise ValueError("there are no draws")
    return truths, draws


def _check_shares(name: str, values: np.ndarray) -> None:
    outside = values[~((values >= 0) & (values <= 1))]  # NaN is, too
    if outside.size:
        raise ValueError(f"{name} must be from 0 to 1, got {outside[0]}")


def _check_number(name: str, number: int) -> None:
    if number < 2:
        raise ValueError(f"at least 2 {name} are needed, got {number}")
