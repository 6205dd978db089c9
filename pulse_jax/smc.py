"""Sequential Monte Carlo: particles that go from the prior to the posterior, by blackjax.

    particles, info = smc(key, posterior, params, target, particles)

`pip install "pulse_jax[posterior]"` installs blackjax.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray

from pulse_jax.chains import LONGEST_STEP
from pulse_jax.extras import blackjax
from pulse_jax.losses import Scalar
from pulse_jax.posterior import Position, Posterior
from pulse_jax.samplers import Number, Sampler, geodesic_hmc, hmc
from pulse_jax.types import Degraded, Params

NONE = -1e24  # the loglikelihood of a particle without a density: finite, since 0 · ∞ is no number


class SMCInfo(NamedTuple):
    """What sequential Monte Carlo did at each weight of the likelihood."""

    weights: Float[np.ndarray, "temperatures"]  # from 0 to 1
    acceptance_rates: Float[np.ndarray, "temperatures"]
    log_evidence: float  # log p(y), with all constants of the likelihood


def smc(
    key: PRNGKeyArray,
    posterior: Posterior,
    params: Params,
    target: Degraded,
    particles: Position,
    *,
    transitions: int = 5,
    leapfrogs: int = 8,
    acceptance_rate: float = 0.7,
) -> tuple[Position, SMCInfo]:
    """Particles that go from the prior to the posterior, by adaptive tempering of the likelihood.

    For posteriors with several modes, between which chains don't go: particles are shared out to
    modes as these are likely, while the likelihood is still flat. `particles`: a few hundred draws
    of the prior, with leaves (particles, ...). The likelihood's weight rises to 1 so that the
    effective number of particles is half of theirs each time; then they are resampled, and moved by
    `hmc`, or `geodesic_hmc` on spheres (Del Moral, Doucet and Jasra, JRSS B 68, 2006; by blackjax).
    Each weight takes `transitions` of so many leapfrogs. The step size follows the acceptance rate
    and the weight.

    Returns particles that count alike, and `SMCInfo`. Raises ValueError if the density is finite at
    none of the particles.
    """
    step_size, evidence, now = 0.1, 0.0, 0.0
    weights: list[float] = []
    rates: list[float] = []
    state = blackjax("smc.tempered").init(particles)
    while now < 1:
        now = float(state.tempering_param)  # at which particles are moved, before it rises
        key, step_key = jax.random.split(key)
        usable, state, increment, rate = _step(
            step_key, transitions, leapfrogs, posterior, params, target, state, step_size
        )
        if not usable:
            raise ValueError("the density is finite at none of the particles")
        evidence += float(increment)
        weights.append(now)
        rates.append(float(rate))
        narrower = math.sqrt(now / state.tempering_param) if now else 1.0  # of what is determined
        step_size = min(step_size * narrower * math.exp(rate - acceptance_rate), LONGEST_STEP)
    return state.particles, SMCInfo(np.array(weights), np.array(rates), evidence)


@functools.partial(jax.jit, static_argnames=("transitions", "leapfrogs"))
def _step(
    key: PRNGKeyArray,
    transitions: int,
    leapfrogs: int,
    posterior: Posterior,
    params: Params,
    target: Degraded,
    state: Any,
    step_size: Number,
) -> tuple[Bool[Array, ""], Any, Scalar, Scalar]:
    """Whether a particle has a density, and blackjax's step of all, with a kernel of ours."""
    make_sampler = geodesic_hmc if posterior.prior == "spheres" else hmc

    def nothing(position: Position) -> Scalar:
        """The prior, as blackjax sees it: it is in our sampler's flow."""
        return jnp.zeros(())

    def kernel(weighted: Callable[[Position], Scalar]) -> Sampler:
        """With the likelihood to the power of its weight."""
        return make_sampler(lambda params, target, at: weighted(at), step_size, leapfrogs)

    def loglikelihood(position: Position) -> Scalar:
        """Of a particle, which weighs nothing if its density isn't finite."""
        value = posterior.loglikelihood(params, target, position)
        return jnp.where(jnp.isfinite(value), value, NONE)

    step = blackjax("smc.adaptive_tempered").build_kernel(
        nothing,
        loglikelihood,
        lambda key, state, weighted: kernel(weighted).step(key, params, target, state),
        lambda position, weighted: kernel(weighted).init(params, target, position),
        blackjax("smc.resampling").systematic,
        target_ess=0.5,
    )
    usable = (jax.vmap(loglikelihood)(state.particles) > NONE).any()
    state, info = step(key, state, transitions, {})
    rate = jnp.mean(info.update_info.acceptance_rate)
    return usable, state, info.log_likelihood_increment, rate
