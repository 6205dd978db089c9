"""Sequential Monte Carlo."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from test_chains import MATRIX, TARGET, density, needs_blackjax, starts

from pulse_jax import Generator, likelihoods, posterior, smc


@needs_blackjax
@pytest.mark.parametrize("prior", posterior.PRIORS)
def test_particles_are_shared_out_to_modes(prior):
    """Of a latent whose absolute value alone is seen: no chain goes from one mode to the other."""

    def synthesize(params, latents, frozen):
        return jnp.abs(latents["z"][0, 0] + params).reshape(1, 1, 1)

    generator = Generator(1, lambda key: ({"z": jax.random.normal(key, (1, 3))}, {}), synthesize)
    made = posterior.build(generator, lambda x: x, likelihoods.gaussian(0.1), prior=prior)
    particles = starts(made, 2000)
    offset, target = 0.2, jnp.full((1, 1, 1), 1.0)  # modes at 0.8 and -1.2
    found, info = smc.smc(jax.random.key(2), made, offset, target, particles)
    z = np.asarray(found[0]["z"])[:, 0, 0]
    # The prior of one coordinate is N(0, 1), or even on a sphere of three (Archimedes).
    grid = np.linspace(-math.sqrt(3), math.sqrt(3), 20001) * (1 if prior == "spheres" else 3)
    prior_density = np.ones_like(grid) if prior == "spheres" else stats.norm().pdf(grid)
    prior_density /= prior_density.sum()
    joint = prior_density * stats.norm(np.abs(grid + offset), 0.1).pdf(1.0)
    share = joint[grid > 0].sum() / joint.sum()
    assert np.mean(z > 0) == pytest.approx(share, abs=0.06)
    assert info.log_evidence == pytest.approx(math.log(joint.sum()), abs=0.15)
    above = z[z > 0]
    weights = joint[grid > 0] / joint[grid > 0].sum()
    assert above.mean() == pytest.approx(weights @ grid[grid > 0], abs=0.01)
    assert above.std() == pytest.approx(0.1, rel=0.1)
    assert info.weights[-1] == 1 and np.all(np.diff(info.weights) >= 0)
    assert np.all(info.acceptance_rates > 0.1)


@needs_blackjax
def test_a_particle_without_a_density_weighs_nothing():
    made = density(0.3)
    particles = jax.tree.map(lambda leaf: leaf.at[0].set(np.nan), starts(made, 200))
    found, info = smc.smc(jax.random.key(2), made, MATRIX, TARGET, particles)
    assert np.isfinite(found[0]["z"]).all() and np.isfinite(info.log_evidence)
    assert len(info.weights) > 2


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Above:
    """y is possible if x is above a bound, and has the same density for all such x."""

    bound: float
    elsewhere: float

    def logpdf(self, lr, target):
        return jnp.where(lr.sum() > self.bound, -3.0, self.elsewhere)

    def sample(self, key, lr):
        return lr

    def precision(self, lr, target):
        return jnp.zeros_like(lr)


def above(bound, elsewhere):
    """The posterior of the first of two coordinates, which is all that is seen."""

    def synthesize(params, latents, frozen):
        return latents["z"][0, 0].reshape(1, 1, 1)

    generator = Generator(1, lambda key: ({"z": jax.random.normal(key, (1, 2))}, {}), synthesize)
    return posterior.build(generator, lambda x: x, Above(bound, elsewhere))


@needs_blackjax
@pytest.mark.parametrize("elsewhere", [-jnp.inf, jnp.nan])
def test_the_evidence_counts_where_the_prior_has_no_density(elsewhere):
    """Less than half of the prior is possible, so that no weight of the likelihood keeps half."""
    made = above(1.0, elsewhere)
    particles = starts(made, 2000)
    found, info = smc.smc(jax.random.key(2), made, {}, jnp.zeros((1, 1, 1)), particles)
    assert (found[0]["z"][:, 0, 0] > 1).all()
    assert info.log_evidence == pytest.approx(-3 + stats.norm.logsf(1), abs=0.15)


@needs_blackjax
def test_particles_without_any_density_are_told():
    made = above(np.inf, -jnp.inf)
    with pytest.raises(ValueError, match="finite at none of the particles"):
        smc.smc(jax.random.key(2), made, {}, jnp.zeros((1, 1, 1)), starts(made, 8))
