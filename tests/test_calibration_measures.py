"""Tests of calibration: normal posteriors in closed form, and chains that pass through truths."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pulse_jax import calibration, samplers

SIMULATIONS, DRAWS = 400, 31


def simulate(width=1.0, shift=0.0, seed=0):
    """Truths (S, 3) and draws of x given y = x + ξ, whose posterior is N(y/2, I/2) or is wrong."""
    rng = np.random.default_rng(seed)
    truths = rng.standard_normal((SIMULATIONS, 3))
    y = truths + rng.standard_normal(truths.shape)
    noise = rng.standard_normal((SIMULATIONS, DRAWS, 3))
    return truths, (y / 2)[:, None] + shift + width * np.sqrt(0.5) * noise


def test_calibrated_draws_pass():
    rng = np.random.default_rng(1)
    values = [calibration.uniformity(calibration.ranks(rng, *simulate(seed=i))) for i in range(60)]
    assert np.mean(np.array(values) < 0.05) < 0.15
    assert np.mean(np.array(values) < 0.5) > 0.2  # no test that passes everything
    coverage = calibration.tarp(rng, *simulate())
    assert calibration.uniformity(coverage) > 0.01
    value, low, high = calibration.delta_cal(*simulate())
    assert low < 1 < high and low < value < high
    assert high - low < 0.25


@pytest.mark.parametrize(
    ("fault", "delta"),
    [({"width": 0.5}, 0.25), ({"width": 1.5}, 2.25), ({"shift": 0.5}, 0.67)],
    ids=["narrow", "wide", "shifted"],
)
def test_others_are_found(fault, delta):
    rng = np.random.default_rng(1)
    assert calibration.uniformity(calibration.ranks(rng, *simulate(**fault))) < 1e-4
    value, low, high = calibration.delta_cal(*simulate(**fault))
    assert value == pytest.approx(delta, rel=0.15) and not low < 1 < high
    if "width" in fault:
        assert calibration.uniformity(calibration.tarp(rng, *simulate(**fault))) < 1e-4


def test_expected_coverage_is_exact_for_few_simulations_in_many_dimensions():
    rng = np.random.default_rng(0)
    truths = rng.standard_normal((100, 4, 50))  # a hundred times four simulations
    y = truths + rng.standard_normal(truths.shape)
    draws = (y / 2)[:, :, None] + np.sqrt(0.5) * rng.standard_normal((100, 4, DRAWS, 50))
    shares = [calibration.tarp(rng, *few) for few in zip(truths, draws, strict=True)]
    assert calibration.uniformity(np.concatenate(shares)) > 0.01


def test_expected_coverage_of_half_precision():
    """Of so many dimensions, a sum of squares is infinite in float16."""
    truths, draws = (np.tile(x[:8], 20000).astype("f2") for x in simulate())
    half, single = (
        calibration.tarp(np.random.default_rng(0), truths.astype(kind), draws.astype(kind))
        for kind in ("f2", "f4")
    )
    np.testing.assert_array_equal(half, single)


def test_the_interval_of_delta_cal_holds_for_few_simulations():
    intervals = []
    for seed in range(10):
        truths, draws = simulate(seed=seed)
        few = zip(truths.reshape(-1, 8, 3), draws.reshape(-1, 8, DRAWS, 3), strict=True)
        intervals += [calibration.delta_cal(*one) for one in few]
    assert 0.92 < np.mean([low < 1 < high for _, low, high in intervals]) < 0.97
    assert calibration.delta_cal(truths, np.zeros_like(draws)) == (0, 0, 0)


def test_draws_that_ignore_the_picture_are_found_by_what_depends_on_it():
    """Those of the prior. Their own ranks, coverage and Δcal are right."""
    rng = np.random.default_rng(0)
    truths, draws = rng.standard_normal((SIMULATIONS, 3)), simulate()[1]
    y, prior = truths + rng.standard_normal(truths.shape), rng.standard_normal(draws.shape)
    assert calibration.uniformity(calibration.ranks(rng, truths, prior)) > 0.01
    assert calibration.uniformity(calibration.tarp(rng, truths, prior)) > 0.01
    delta = calibration.delta_cal(truths, prior)
    assert delta.low < 1 < delta.high
    fits = ((truths - y) ** 2).sum(-1), ((prior - y[:, None]) ** 2).sum(-1)
    assert calibration.uniformity(calibration.ranks(rng, *fits)) < 1e-4


def test_delta_cal_knows_the_number_of_draws():
    """Of posteriors of the width 0, it would be far off."""
    truths, draws = simulate()
    few = calibration.delta_cal(truths, draws[:, :2])
    assert few.low < 1 < few.high
    narrow = calibration.delta_cal(*simulate(width=0.5))
    few = calibration.delta_cal(truths, simulate(width=0.5)[1][:, :2])
    assert narrow.value < few.value == pytest.approx(0.25 * 1.5 / (1 + 0.25 / 2), rel=0.15)


def test_delta_cal_knows_how_alike_draws_of_a_chain_are():
    rng, again = np.random.default_rng(0), 0.8
    truths = rng.standard_normal((SIMULATIONS, 3))
    draws = rng.standard_normal((SIMULATIONS, DRAWS, 3))  # each posterior is the prior
    for t in range(1, DRAWS):
        draws[:, t] = again * draws[:, t - 1] + np.sqrt(1 - again**2) * draws[:, t]
    lags = np.arange(1, DRAWS)
    number = DRAWS / (1 + 2 * ((1 - lags / DRAWS) * again**lags).sum())
    assert calibration.delta_cal(truths, draws).high < 1
    known = calibration.delta_cal(truths, draws, np.full(SIMULATIONS, number))
    assert known.low < 1 < known.high and known.high - known.low < 0.25
    with pytest.raises(ValueError, match="above 1, got 1"):
        calibration.delta_cal(truths, draws, np.ones(SIMULATIONS))


def test_reliability_counts_what_came_true():
    probabilities = np.repeat([0.05, 0.7, 1.0], [40, 20, 30])
    outcomes = np.repeat([True, False, True, False, True], [2, 38, 14, 6, 30])
    found = calibration.reliability(probabilities, outcomes)
    assert found.counts.tolist() == [40, 20, 30]  # two of the five bins are empty
    np.testing.assert_allclose(found.stated, [0.05, 0.7, 1.0])
    np.testing.assert_allclose(found.observed, [0.05, 0.7, 1.0])
    expected = [
        stats.binomtest(k, n).proportion_ci(method="wilson")
        for k, n in ((2, 40), (14, 20), (30, 30))
    ]
    np.testing.assert_allclose(found.low, [interval.low for interval in expected], atol=1e-6)
    np.testing.assert_allclose(found.high, [interval.high for interval in expected], atol=1e-6)
    for count in range(1, 40):
        never = calibration.reliability(np.zeros(count), np.zeros(count, bool))
        assert np.signbit(never.low).tolist() == [False]  # or a table would have -0.00
    with pytest.raises(ValueError, match=r"from 0 to 1, got 1\.1"):
        calibration.reliability(np.array([0.5, 1.1]), np.array([True, False]))


def test_predictions_of_one_simulation_count_together():
    """Ten that agree are one, and no prediction counts for more than one."""
    true = np.random.default_rng(0).random(200) < 0.7
    found = calibration.reliability(np.full((200, 10), 0.7), true[:, None].repeat(10, 1))
    expected = calibration.reliability(np.full(200, 0.7), true)
    assert found.counts == 2000 and found.observed == expected.observed
    np.testing.assert_allclose(found[3:], expected[3:])
    never, rarely = np.zeros((200, 10)), np.zeros((200, 10), bool)
    found = calibration.reliability(never, rarely)
    np.testing.assert_allclose(found[3:], calibration.reliability(never[:, 0], rarely[:, 0])[3:])
    either = calibration.reliability(np.full((200, 2), 0.5), np.stack([true, ~true], axis=1))
    expected = stats.binomtest(100, 200).proportion_ci(method="wilson")
    np.testing.assert_allclose((either.low, either.high), np.array(expected)[:, None])
    of_49 = np.full((98, 49), 1 / 49)  # 49 · (1 / 49) isn't 1 in float64
    found = calibration.reliability(of_49, np.arange(49) == np.zeros((98, 1)))
    expected = stats.binomtest(2, 98).proportion_ci(method="wilson")
    np.testing.assert_allclose((found.low, found.high), np.array(expected)[:, None])


def test_a_probability_that_one_simulation_has_is_measured_without_a_warning():
    probabilities = np.full((6, 4), 0.1)
    probabilities[0, 0] = 0.9
    found = calibration.reliability(probabilities, probabilities > 0.5)
    expected = stats.binomtest(1, 1).proportion_ci(method="wilson")
    np.testing.assert_allclose((found.low[1], found.high[1]), expected)


def test_draws_that_are_calibrated_are_reliable_and_narrow_ones_are_not():
    for width, holds in ((1.0, True), (0.3, False)):
        truths, draws = simulate(width=width)
        shares = (draws > 0).mean(1).ravel()
        found = calibration.reliability(shares, (truths > 0).ravel(), bins=4)
        inside = (found.low - 0.05 < found.stated) & (found.stated < found.high + 0.05)
        assert inside.all() == holds and found.counts.sum() == truths.size


def test_ranks_of_equal_values_are_random():
    shares = calibration.ranks(
        np.random.default_rng(0), np.zeros((2000, 1)), np.zeros((2000, 9, 1))
    )
    assert calibration.uniformity(shares) > 0.01
    first = calibration.ranks(np.random.default_rng(0), np.zeros((50, 1)), np.ones((50, 9, 1)))
    assert first.min() > 0 and first.max() < 0.1


@pytest.mark.parametrize("kind", ["hmc", "pcn"])
def test_truths_have_uniform_ranks_in_chains_that_pass_through_them(kind):
    """Although the chains hardly move; and a density that is wrong shows."""

    def loglikelihood(params, target, z):
        residual = target[..., 0] - (z["x"] + params["bend"] * z["x"] ** 3)
        return -jnp.sum(residual**2) / (2 * params["sigma"] ** 2)

    makers = {
        "hmc": lambda: samplers.hmc(loglikelihood, 0.05, 6),
        "pcn": lambda: samplers.pcn(loglikelihood, 0.3),
    }
    sampler, right = makers[kind](), {"bend": 0.1, "sigma": 0.3}
    keys = jax.random.split(jax.random.key(0), 3)
    truths = jax.random.normal(keys[0], (1000, 1, 2))
    noise = jax.random.normal(keys[1], truths.shape)
    y = (truths + right["bend"] * truths**3 + right["sigma"] * noise)[..., None]

    @jax.jit
    @jax.vmap
    def energies(key, y, x, params):
        def energy(x):
            return jnp.stack([loglikelihood(params, y, {"x": x}) - jnp.sum(x**2) / 2, x[0, 0]])

        chain = calibration.through_truth(key, sampler, params, y, {"x": x}, 7, 3)
        return energy(x), jax.vmap(energy)(chain["x"])

    def p_value(sigma):
        params = jax.tree.map(lambda x: jnp.full(1000, x), right | {"sigma": sigma})
        chain_keys = jax.random.split(keys[2], 1000)
        truth, draws = energies(chain_keys, y, truths, params)
        shares = calibration.ranks(np.random.default_rng(0), truth, draws)
        return calibration.uniformity(shares)

    assert p_value(0.3) > 0.01
    assert p_value(0.15) < 1e-4


def test_what_cannot_be_judged_is_told(unchecked):
    rng, (truths, draws) = np.random.default_rng(0), simulate()
    with pytest.raises(ValueError, match=r"^1 of the 37200 draws are NaN, which has no rank$"):
        calibration.ranks(rng, truths, np.where(draws == draws.max(), np.nan, draws))
    with pytest.raises(ValueError, match=r"^at least 2 simulations are needed, got 1$"):
        calibration.tarp(rng, truths[:1], draws[:1])
    with pytest.raises(ValueError, match=r"^at least 2 simulations are needed, got 1$"):
        calibration.uniformity(truths[:1])
    with pytest.raises(ValueError, match=r"^at least 2 draws are needed, got 1$"):
        calibration.delta_cal(truths, draws[:, :1])
    with pytest.raises(ValueError, match=r"^at least 2 simulations are needed, got 1$"):
        calibration.delta_cal(truths[:1], draws[:1])
    ranks, tarp = (partial(measure, rng) for measure in (calibration.ranks, calibration.tarp))
    for measure in (ranks, tarp, calibration.delta_cal):
        for others in (draws.swapaxes(0, 1), draws[..., :1], draws[0]):
            with pytest.raises(ValueError, match=r"^draws of truths \(.*\) have an axis more"):
                measure(truths, others)
        with pytest.raises(ValueError, match=r"^there are no draws$"):
            measure(truths, draws[:, :0])
    for wrong in (np.nan, 1.5):
        with pytest.raises(ValueError, match=rf"^shares must be from 0 to 1, got {wrong}$"):
            calibration.uniformity(np.array([0.5, wrong, 0.2]))


def test_the_command_does_not_wait_for_the_tests_of_uniformity():
    code = "import sys, pulse_jax.__main__, pulse_jax; pulse_jax.build; print([*sys.modules])"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "'pulse_jax.calibration'" in loaded and "'scipy.stats'" not in loaded
