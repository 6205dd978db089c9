"""Many chains: starts, warm-up, draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pulse_jax import Generator, chains, diagnostics, likelihoods, posterior, samplers

needs_blackjax = pytest.mark.skipif(
    "not __import__('importlib').util.find_spec('blackjax')", reason="takes blackjax"
)
MATRIX = 0.3 * jax.random.normal(jax.random.key(7), (4, 6))
TARGET = jnp.array([0.7, 0.4, 0.5, 0.6]).reshape(2, 2, 1)


def density(sigma=0.05, prior="gaussian"):
    def synthesize(params, latents, frozen):
        return (0.5 + params @ latents["z"].ravel()).reshape(2, 2, 1)

    generator = Generator(2, lambda key: ({"z": jax.random.normal(key, (2, 3))}, {}), synthesize)
    return posterior.build(generator, lambda x: x, likelihoods.gaussian(sigma), prior=prior)


def starts(density, number):
    return jax.jit(jax.vmap(density.sample))(jax.random.split(jax.random.key(1), number))


def single(positions):
    """One start of each chain."""
    return jax.tree.map(lambda leaf: leaf[:, None], positions)


def test_chains_begin_where_a_lowered_likelihood_has_them():
    """With the weight at which the mean deviance of the prior's draws is that of a perfect fit."""
    keys = jax.random.split(jax.random.key(3), 4000)
    found = chains.starts(keys, density(), MATRIX, TARGET, number=1)[0]["z"].reshape(4000, 6)
    matrix, residual = np.asarray(MATRIX), np.asarray(TARGET).ravel() - 0.5
    weight = 4 / (np.sum(residual**2) + np.sum(matrix**2))  # over σ², which cancels
    covariance = np.linalg.inv(np.eye(6) + weight * matrix.T @ matrix)
    mean = covariance @ matrix.T @ residual * weight
    np.testing.assert_allclose(found.mean(0), mean, atol=0.06)
    np.testing.assert_allclose(np.cov(found.T), covariance, atol=0.08)
    assert np.abs(covariance - np.eye(6)).max() > 0.3
    again = chains.starts(keys[:1], density(), MATRIX, TARGET, number=3, draws=1)[0]["z"]
    alone = [density().sample(key)[0]["z"] for key in jax.random.split(keys[0], (3, 2))[:, 1]]
    np.testing.assert_array_equal(again[0], alone)


def test_values_that_are_no_data_leave_the_starts_as_they_are():
    """Those of a grey picture in three channels are those of the picture in one."""
    one = density()
    generator = Generator(
        2, one.generator.sample, lambda *given: jnp.tile(one.generator.synthesize(*given), 3)
    )
    which = np.broadcast_to([True, False, False], (2, 2, 3))
    three = posterior.build(
        generator, lambda x: x, likelihoods.of_values(likelihoods.gaussian(0.05), which)
    )
    keys = jax.random.split(jax.random.key(3), 100)
    expected = chains.starts(keys, one, MATRIX, TARGET)[0]["z"]
    found = chains.starts(keys, three, MATRIX, jnp.tile(TARGET, 3))[0]["z"]
    np.testing.assert_array_equal(found, expected)


def test_black_values_are_data():
    """Poisson's precision at them is 0, since a rate can't fall below theirs."""
    target = TARGET.at[0].set(0)
    one = posterior.build(density().generator, lambda x: x, likelihoods.poisson(1000.0))
    deviance = 2 * (one.likelihood.logpdf(target, target) + 1e5)
    weight = chains._first_weight(one, target, jnp.full(3, -1e5))
    assert float(weight) == pytest.approx(target.size / float(deviance), rel=1e-6)


def test_no_chain_begins_where_there_is_no_density():
    def synthesize(params, latents, frozen):
        z = latents["z"][0, 0]
        return jnp.where(z > 0, jnp.nan, params * z).reshape(1, 1, 1)

    generator = Generator(1, lambda key: ({"z": jax.random.normal(key, (1, 1))}, {}), synthesize)
    made = posterior.build(generator, lambda x: x, likelihoods.gaussian(0.5))
    keys = jax.random.split(jax.random.key(3), 100)
    found = chains.starts(keys, made, 1.0, jnp.zeros((1, 1, 1)))[0]["z"]
    assert jnp.all(found <= 0) and len(np.unique(found)) == 100 * chains.STARTS


@needs_blackjax
def test_chains_of_several_starts_end_in_the_likely_mode():
    """Where z < 0, the misfit is never below 5 standard deviations, but a short warm-up ends there
    from many starts."""

    def synthesize(params, latents, frozen):
        z = latents["z"][0, 0]
        misfit = jnp.where(z > 0, z - 1, jnp.sqrt((z + 1) ** 2 + params**2))
        return misfit.reshape(1, 1, 1)

    generator = Generator(1, lambda key: ({"z": jax.random.normal(key, (1, 1))}, {}), synthesize)
    made = posterior.build(generator, lambda x: x, likelihoods.gaussian(0.1))
    inputs = made, 0.5, jnp.zeros((1, 1, 1))
    shares = []
    for number in 1, 8:
        positions = chains.starts(jax.random.split(jax.random.key(0), 400), *inputs, number, 1)
        state, _ = chains.warm_up(
            jax.random.key(1), *inputs, positions, transitions=20, precondition=False
        )
        shares.append(float(jnp.mean(state.position[0]["z"] < 0)))
    assert shares[0] > 0.2 and shares[1] < 0.05


@needs_blackjax
def test_chains_that_have_left_where_there_is_no_density_go_on_from_there():
    class Bounded(type(likelihoods.gaussian(0.1))):
        def logpdf(self, lr, target):
            return jnp.where(lr.sum() > 0, -jnp.inf, 0.0)

    def synthesize(params, latents, frozen):
        return params * latents["z"].reshape(1, 1, 1)

    generator = Generator(1, lambda key: ({"z": jax.random.normal(key, (1, 1))}, {}), synthesize)
    made = posterior.build(generator, lambda x: x, jax.tree_util.register_dataclass(Bounded)(0.1))
    positions = {"z": jnp.linspace(-1, 1, 20).reshape(20, 1, 1, 1)}, ()
    warm_up = chains.WarmUp(made, transitions=60, precondition=False)
    inputs = 1.0, jnp.zeros((1, 1, 1))
    warming = warm_up.init(*inputs, positions)
    warming = warm_up.step(jax.random.key(0), *inputs, warming, 30)
    left = jnp.isfinite(warming.state.loglikelihood) & (positions[0]["z"].ravel() > 0)
    assert left.any() and not jnp.isfinite(warming.score[left]).any()
    np.testing.assert_array_equal(warming.kept.position[0]["z"], warming.state.position[0]["z"])


@needs_blackjax
@pytest.mark.parametrize("prior", posterior.PRIORS)
def test_a_warm_up_finds_the_posterior_and_the_step_size(prior):
    made = density(prior=prior)
    params = MATRIX.at[2:].set(0)  # all four values are met in two places on the spheres
    positions = starts(made, 64)
    density_at = jax.jit(jax.vmap(made.loglikelihood, (None, None, 0)))
    first = density_at(params, TARGET, positions)
    best = made.likelihood.logpdf(TARGET, TARGET)
    assert best - first.mean() > 20  # of two, where noise of this width leaves the picture
    state, sampler = chains.warm_up(
        jax.random.key(2), made, params, TARGET, single(positions), transitions=100, leapfrogs=8
    )
    assert best - state.loglikelihood.mean() < 8
    step_size = sampler.step.args[2]
    state, draws, info = chains.draw(jax.random.key(3), sampler, params, TARGET, state, 200)
    assert info.acceptance_rate.shape == (64, 200)
    assert 0.55 < info.acceptance_rate.mean() < 0.9 or step_size == 1  # radian: enough
    figures = diagnostics.diagnose(draws[0]["z"])
    assert figures.rhat.shape == (2, 3) and figures.rhat.max() < 1.2


@needs_blackjax
def test_a_warm_up_learns_a_linear_decoders_covariance():
    made = density()
    _, sampler = chains.warm_up(
        jax.random.key(2),
        made,
        MATRIX,
        TARGET,
        single(starts(made, 8)),
        transitions=10,
        leapfrogs=2,
    )
    flow = sampler.step.args[1]
    learned = jax.tree.leaves(flow.velocity, is_leaf=lambda x: hasattr(x, "scales"))[0]
    scales = np.sort(np.asarray(learned.scales))
    expected = np.linalg.svd(np.asarray(MATRIX) / 0.05, compute_uv=False)
    np.testing.assert_allclose(scales, [*np.sort((1 + expected**2) ** -0.5), 1, 1], rtol=1e-3)


def test_draws_are_of_their_keys_and_go_on():
    made = density()
    sampler = samplers.pcn(made.loglikelihood, 0.3)
    init = jax.jit(jax.vmap(sampler.init, (None, None, 0)))
    start = init(MATRIX, TARGET, starts(made, 3))
    end, draws, info = chains.draw(jax.random.key(0), sampler, MATRIX, TARGET, start, 20)
    z = np.asarray(draws[0]["z"])
    assert z.shape == (3, 20, 2, 3) and info.energy.shape == (3, 20)
    np.testing.assert_array_equal(end.position[0]["z"], z[:, -1])
    np.testing.assert_array_equal(end.count, 20)
    _, again, _ = chains.draw(jax.random.key(0), sampler, MATRIX, TARGET, start, 20)
    _, other, _ = chains.draw(jax.random.key(1), sampler, MATRIX, TARGET, start, 20)
    np.testing.assert_array_equal(again[0]["z"], z)
    assert (np.asarray(other[0]["z"]) != z).any()


def test_chains_from_one_point_are_not_one_chain():
    made = density()
    sampler = samplers.pcn(made.loglikelihood, 0.3)
    one = jax.tree.map(lambda leaf: jnp.repeat(leaf, 4, 0), starts(made, 1))
    start = jax.jit(jax.vmap(sampler.init, (None, None, 0)))(MATRIX, TARGET, one)
    _, draws, _ = chains.draw(jax.random.key(0), sampler, MATRIX, TARGET, start, 20)
    assert len(np.unique(draws[0]["z"][:, -1, 0, 0])) == 4


def test_too_short_a_warm_up():
    made = density()
    with pytest.raises(ValueError, match="transitions must be at least 2, got 1"):
        positions = single(starts(made, 2))
        chains.warm_up(jax.random.key(0), made, MATRIX, TARGET, positions, transitions=1)


FAR = float(jnp.finfo(jnp.result_type(float)).max) ** 0.75  # whose square is infinite


@needs_blackjax
@pytest.mark.parametrize("bad", [np.nan, FAR])  # where the density isn't a number, or is 0
def test_a_chain_without_a_density_spares_the_others(bad):
    made = density()
    positions = jax.tree.map(lambda leaf: leaf.at[0].set(bad), starts(made, 8))
    state, sampler = chains.warm_up(
        jax.random.key(2), made, MATRIX, TARGET, single(positions), transitions=40, leapfrogs=4
    )
    assert jnp.isfinite(state.loglikelihood[1:]).all()
    assert 0.01 < sampler.step.args[2] <= 1
    best = made.likelihood.logpdf(TARGET, TARGET)
    assert best - state.loglikelihood[1:].mean() < 10
    everywhere = jax.tree.map(lambda leaf: jnp.full_like(leaf, bad), positions)
    with pytest.raises(ValueError, match="finite at none of the positions"):
        chains.warm_up(jax.random.key(2), made, MATRIX, TARGET, single(everywhere))


@needs_blackjax
def test_last_starts_without_a_density_leave_the_step_size_as_it_was():
    made = density()
    several = jax.tree.map(lambda leaf: leaf.reshape(4, 2, *leaf.shape[1:]), starts(made, 8))
    positions = jax.tree.map(lambda leaf: leaf.at[:, 1].set(np.nan), several)
    state, sampler = chains.warm_up(
        jax.random.key(2), made, MATRIX, TARGET, positions, transitions=20, leapfrogs=4
    )
    assert 0.01 < sampler.step.args[2] <= 1
    assert (state.position[0]["z"] != several[0]["z"][:, 0]).all()


@needs_blackjax
@pytest.mark.parametrize("placed", [False, True])
def test_a_warm_up_compiles_its_transitions_once(placed):
    made, inputs = density(), (MATRIX, TARGET)
    chains._tune.clear_cache()
    positions = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), starts(made, 4))
    if placed:
        whole, split = chains.placements(2)
        inputs, positions = jax.device_put(inputs, whole), jax.device_put(positions, split)
    chains.warm_up(jax.random.key(2), made, *inputs, positions, transitions=6)
    assert chains._tune._cache_size() == 1


@needs_blackjax
def test_positions_of_a_file_are_moved_in_double_precision():
    with jax.enable_x64():
        made = density()
        positions = jax.tree.map(lambda leaf: leaf.astype("float32"), starts(made, 4))
        state, sampler = chains.warm_up(
            jax.random.key(2), made, MATRIX, TARGET, single(positions), transitions=4
        )
        _, draws, _ = chains.draw(jax.random.key(3), sampler, MATRIX, TARGET, state, 3)
        assert draws[0]["z"].dtype == "float32"
        for made_with in (
            samplers.hmc(made.loglikelihood, np.float64(0.1)),
            samplers.geodesic_hmc(made.loglikelihood, np.float64(0.1)),
            samplers.pcn(made.loglikelihood, np.float64(0.1)),
        ):
            one = jax.tree.map(lambda leaf: leaf[0], positions)
            state = jax.jit(made_with.init)(MATRIX, TARGET, one)
            state, _ = jax.jit(made_with.step)(jax.random.key(0), MATRIX, TARGET, state)
            assert state.position[0]["z"].dtype == "float32"


@pytest.mark.parametrize("rate", [0, 1, 2, np.nan])
def test_an_acceptance_rate_that_cannot_be(rate):
    made = density()
    with pytest.raises(ValueError, match=r"acceptance_rate must be in \(0, 1\)"):
        chains.warm_up(
            jax.random.key(2), made, MATRIX, TARGET, single(starts(made, 4)), acceptance_rate=rate
        )
