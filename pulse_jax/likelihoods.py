"""Likelihoods p(y | x): how far a degraded image x = D(G(z)) may be from the picture y.

Pictures are in [0, 1] as everywhere, and the widths of likelihoods have this unit, so that there is
no temperature: a search that minimises 100 MSE and samples at temperature T has
σ² = n T / 200, n the number of the picture's values.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import betaln, gammaln, logsumexp, xlog1py, xlogy
from jax.tree_util import register_dataclass
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from pulse_jax import plug_in
from pulse_jax.losses import Scalar, Styles, check_target
from pulse_jax.types import LARGEST_FACTOR, AnyArray, Degraded, misfit

Width: TypeAlias = float | Float[AnyArray, "..."]  # for all values, or a map of the picture's shape

FINEST = LARGEST_FACTOR**-0.5  # width: the gradient of a log density grows as 1/σ²
ROUNDING = 1 / (255 * math.sqrt(12))  # the standard deviation of rounding to 8 bits, in [0, 1]


@runtime_checkable
class Likelihood(Protocol):
    """How a picture y comes about from the degraded image x = D(G(z)). It sees both, unclamped.

    A likelihood is a pytree of its widths: new ones don't recompile, and a map of them is no
    constant of the program. New bounds of `unknown_sigma` recompile, since they say how many widths
    there are. `sample` and `logpdf` are of one density, which is what calibration rests on.
    """

    def logpdf(self, lr: Degraded, target: Degraded) -> Scalar:
        """log p(y | x), with all constants."""

    def sample(self, key: PRNGKeyArray, lr: Degraded) -> Degraded:
        """A picture drawn from p(y | x)."""

    def precision(self, lr: Degraded, target: Degraded) -> Degraded:
        """About Fisher's information on each value of x, in units of 1/x²: for preconditioners.

        A preconditioner that is off costs time and changes no density. A value whose precision is 0
        where x is white counts as no data where chains begin.
        """


def gaussian(sigma: Width) -> Likelihood:
    """y = x + σ ξ, ξ ~ N(0, I). `sigma`: of each pixel and channel, one number or a map.

    Raises ValueError for a σ that isn't finite in float32 and at least `FINEST`.
    """
    _check("sigma", sigma, least=FINEST)
    return _Gaussian(sigma)


def unknown_sigma(least: float = ROUNDING, most: float = 1.0) -> Likelihood:
    """`gaussian` where σ isn't known: log σ is uniform between two bounds, and summed over.

    p(y | x) = mean_k N(y; x, σ_k² I), with σ_k from `least` to `most` in equal ratios, which are
    finer than a picture of n values tells apart: log σ is known to 1/√(2n) at best. The lower bound
    is the rounding of the file, 1/(255 √12) for 8 bits. Without one the posterior would have no
    finite mass: z can fit y exactly, where p grows as σ⁻ⁿ. Raises ValueError for bounds that aren't
    0 < least < most < ∞, and for a lower one below `FINEST`.
    """
    if not 0 < least < most < math.inf:
        raise ValueError(f"the bounds of sigma must be 0 < least < most, got {least} and {most}")
    _check("least", least, least=FINEST)
    _check("most", most)
    return _UnknownSigma(least, most)


def student_t(sigma: Width, degrees: float = 4.0) -> Likelihood:
    """y = x + σ τ, τ of Student's t with `degrees` of freedom: some values may be far off.

    σ is the scale, as a number or a map; the standard deviation is σ √(ν/(ν − 2)) for ν > 2 degrees
    (Lange, Little and Taylor, JASA 84, 1989). Raises ValueError for a σ or ν that isn't finite and
    above 0 in float32, and for a σ below `FINEST`.
    """
    _check("sigma", sigma, least=FINEST)
    _check("degrees", degrees)
    return _StudentT(sigma, degrees)


def poisson(gain: Width) -> Likelihood:
    """gain · y ~ Poisson(gain · x): counts of photons, `gain` of them at the value 1.

    The mass of a count, times the gain to be per unit of y, and continued by Γ between counts. A
    rate can't be negative, and operators overshoot: x below 1e-4 counts as 1e-4. Raises ValueError
    for a gain that isn't above 0 in float32 and at most 1e15.
    """
    _check("gain", gain, most=LARGEST_FACTOR)
    return _Poisson(gain)


def of_values(likelihood: Likelihood, which: Bool[np.ndarray, "h w c"]) -> Likelihood:
    """A likelihood of some of a picture's values: the others are no data, as in the hole of a mask.

    A width must then be one number, since those values come to it as a picture (n, 1, 1).
    """
    return _OfValues(likelihood, np.flatnonzero(which))


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "gaussian": gaussian,
    "unknown_sigma": unknown_sigma,
    "student_t": student_t,
    "poisson": poisson,
}


def parse(noise: float | str) -> Likelihood:
    """A likelihood from a line such as `student_t:0.03:5`; a number alone is the σ of `gaussian`.

    A name of `LIKELIHOODS` is followed by its parameters after colons. Raises ValueError for what
    can't be read, and for widths that can't be.
    """
    if not isinstance(noise, str):
        return gaussian(noise)
    name, *values = noise.split(":")
    if name not in LIKELIHOODS:
        raise ValueError(f"{name!r} is no number and none of {', '.join(LIKELIHOODS)}")
    parameters = [plug_in.number(value) for value in values]
    wanted = inspect.signature(LIKELIHOODS[name]).parameters.values()
    least = sum(parameter.default is parameter.empty for parameter in wanted)
    if not least <= len(values) <= len(wanted) or any(isinstance(x, str) for x in parameters):
        takes = ":".join([name, *(parameter.name.upper() for parameter in wanted)])
        raise ValueError(f"{noise!r} should be {takes}, with numbers")
    return LIKELIHOODS[name](*map(float, parameters))


@register_dataclass
@dataclass(frozen=True)
class _Gaussian:
    sigma: Width

    def logpdf(self, lr: Degraded, target: Degraded) -> Scalar:
        sigma = _map("sigma", self.sigma, lr, target)
        z = (target - lr) / sigma
        return -pairwise_sum(z**2 / 2 + jnp.log(sigma)) - lr.size * math.log(2 * math.pi) / 2

    def sample(self, key: PRNGKeyArray, lr: Degraded) -> Degraded:
        return lr + _map("sigma", self.sigma, lr, lr) * jax.random.normal(key, lr.shape)

    def precision(self, lr: Degraded, target: Degraded) -> Degraded:
        return _map("sigma", self.sigma, lr, target) ** -2


@register_dataclass
@dataclass(frozen=True)
class _UnknownSigma:
    least: float = field(metadata={"static": True})
    most: float = field(metadata={"static": True})

    def _sigmas(self, values: int) -> Float[Array, "k"]:
        ratio = math.log(self.most / self.least)
        return jnp.geomspace(self.least, self.most, 1 + math.ceil(ratio * math.sqrt(2 * values)))

    def _logpdfs(
        self, lr: Degraded, target: Degraded
    ) -> tuple[Float[Array, "k"], Float[Array, "k"]]:
        """The sigmas, and log N(y; x, σ² I) for each."""
        check_target(lr, target)
        sigmas, square = self._sigmas(lr.size), pairwise_sum((target - lr) ** 2)
        constant = lr.size * math.log(2 * math.pi) / 2
        return sigmas, -square / (2 * sigmas**2) - lr.size * jnp.log(sigmas) - constant

    def logpdf(self, lr: Degraded, target: Degraded) -> Scalar:
        sigmas, logpdfs = self._logpdfs(lr, target)
        return logsumexp(logpdfs) - math.log(sigmas.size)

    def sample(self, key: PRNGKeyArray, lr: Degraded) -> Degraded:
        sigma_key, noise_key = jax.random.split(key)
        sigma = jax.random.choice(sigma_key, self._sigmas(lr.size))
        return lr + sigma * jax.random.normal(noise_key, lr.shape)

    def precision(self, lr: Degraded, target: Degraded) -> Degraded:
        sigmas, logpdfs = self._logpdfs(lr, target)
        return jnp.full(lr.shape, jnp.sum(jax.nn.softmax(logpdfs) * sigmas**-2))


@register_dataclass
@dataclass(frozen=True)
class _StudentT:
    sigma: Width
    degrees: float

    def logpdf(self, lr: Degraded, target: Degraded) -> Scalar:
        sigma, nu = _map("sigma", self.sigma, lr, target), jnp.asarray(self.degrees, float)
        constant = -betaln(0.5, nu / 2) - jnp.log(nu) / 2  # gammaln's differ by too little
        tail = (nu + 1) / 2 * jnp.log1p(((target - lr) / sigma) ** 2 / nu)
        return pairwise_sum(constant - jnp.log(sigma) - tail)

    def sample(self, key: PRNGKeyArray, lr: Degraded) -> Degraded:
        return lr + _map("sigma", self.sigma, lr, lr) * jax.random.t(key, self.degrees, lr.shape)

    def precision(self, lr: Degraded, target: Degraded) -> Degraded:
        sigma = _map("sigma", self.sigma, lr, target)
        return (self.degrees + 1) / ((self.degrees + 3) * sigma**2)


@register_dataclass
@dataclass(frozen=True)
class _Poisson:
    gain: Width

    def logpdf(self, lr: Degraded, target: Degraded) -> Scalar:
        gain = _map("gain", self.gain, lr, target)
        # Of a count at its own rate, less half the deviance: the whole terms of a bright picture
        # would lose all digits of their sum.
        excess = jnp.maximum(lr, 1e-4) - target
        relative = excess / jnp.where(target > 0, target, 1)  # of the rate over the count
        half_deviance = gain * excess - xlog1py(gain * target, relative)
        return pairwise_sum(_log_peak(gain * target) + jnp.log(gain) - half_deviance)

    def sample(self, key: PRNGKeyArray, lr: Degraded) -> Degraded:
        gain = _map("gain", self.gain, lr, lr)
        return jax.random.poisson(key, gain * jnp.maximum(lr, 1e-4), lr.shape) / gain

    def precision(self, lr: Degraded, target: Degraded) -> Degraded:
        gain = _map("gain", self.gain, lr, target)
        return jnp.where(lr > 1e-4, gain / jnp.maximum(lr, 1e-4), 0)  # where the rate follows x


@register_dataclass
@dataclass(frozen=True)
class _OfValues:
    likelihood: Likelihood
    which: Int[AnyArray, "n"]  # among all values, as `ravel` has them

    def _of(self, picture: Degraded) -> Float[AnyArray, "n 1 1"]:
        return jnp.ravel(picture)[self.which, None, None]

    def _among(self, others: Degraded, values: Float[AnyArray, "n 1 1"]) -> Degraded:
        return jnp.ravel(others).at[self.which].set(values[:, 0, 0]).reshape(others.shape)

    def logpdf(self, lr: Degraded, target: Degraded) -> Scalar:
        check_target(lr, target)
        return self.likelihood.logpdf(self._of(lr), self._of(target))

    def sample(self, key: PRNGKeyArray, lr: Degraded) -> Degraded:
        """What is no data stays as in x."""
        return self._among(lr, self.likelihood.sample(key, self._of(lr)))

    def precision(self, lr: Degraded, target: Degraded) -> Degraded:
        values = self.likelihood.precision(self._of(lr), self._of(target))
        return self._among(jnp.zeros_like(lr), values)


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """−log p(y | x) as what a search minimises (a `losses.Criterion`).

    Its minimum on the spheres is the likeliest answer, and the optimisers `langevin` and `pcn`
    sample the posterior with it at temperature 1. `eps`: the mean squared error at which a restart
    has converged; σ² is what noise of that width leaves.
    """

    likelihood: Likelihood
    eps: float
    needs_styles: bool = field(default=False, init=False)

    def __call__(self, lr: Degraded, target: Degraded, styles: Styles | None) -> Scalar:
        return -self.likelihood.logpdf(lr, target)


def pairwise_sum(values: Float[AnyArray, "..."]) -> Scalar:
    """The sum by sixteen numbers at a time, whose rounding grows as the logarithm of their count.

    One running sum of a large picture's log density is off by tenths in float32 (Higham, SIAM
    Journal on Scientific Computing 14, 1993). Sums by pairs would take more steps.
    """
    values = jnp.ravel(values)
    while values.size > 1:
        blocks = jnp.pad(values, (0, -values.size % 16)).reshape(16, -1)
        values = jax.lax.optimization_barrier(blocks.sum(0))  # or XLA joins sums
    return values.sum()


def _log_peak(count: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(cᶜ e⁻ᶜ / c!), the largest of a count c's mass over all rates, by Stirling's series.

    The series isn't exact for small counts, of which it is the formula itself.
    """
    small = jnp.minimum(count, 30)
    large = jnp.maximum(count, 30)
    series = -jnp.log(2 * math.pi * large) / 2 - 1 / (12 * large) + 1 / (360 * large**3)
    return jnp.where(count < 30, xlogy(small, small) - small - gammaln(small + 1), series)


def _map(name: str, width: Width, lr: Degraded, target: Degraded) -> Float[Array, "h w c"]:
    """A width for each value of the picture."""
    check_target(lr, target)
    width = jnp.asarray(width, float)
    if width.ndim > 3 or any(
        a not in (1, b) for a, b in zip(width.shape[::-1], lr.shape[::-1], strict=False)
    ):
        raise ValueError(f"{name} of shape {width.shape} doesn't fit a picture of {lr.shape}")
    return jnp.broadcast_to(width, lr.shape)


def _check(name: str, width: Width, *, least: float = 0.0, most: float = math.inf) -> None:
    """Raises ValueError for a width that isn't above 0 in float32, or isn't within the bounds."""
    if isinstance(width, jax.core.Tracer):  # nothing is known of it yet
        return
    values = np.ravel(width)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be a number or a map of numbers, got {width!r}")
    bad = values[~(np.isfinite(values) & (values > 0))]
    if bad.size:
        raise ValueError(f"{name} must be finite and above 0, got {bad[0]}")
    for value in values.min(initial=1), values.max(initial=1):
        if told := misfit(float(value)):
            raise ValueError(f"{name} {value} is {told}")
        if value < least:
            raise ValueError(f"{name} must be at least {least:.3g}, got {value}")
        if value > most:
            raise ValueError(f"{name} must be at most {most:.3g}, got {value}")
