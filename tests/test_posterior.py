"""Likelihoods as densities, and posteriors of a generator."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats
from search_helpers import GENERATOR, MATRIX

from pulse_jax import Generator, likelihoods, operators, posterior
from pulse_jax.losses import Criterion

SHAPE = (2, 2, 3)
RNG = np.random.default_rng(0)
LR = jnp.asarray(RNG.uniform(0.2, 0.8, SHAPE), jnp.float32)
TARGET = jnp.asarray(RNG.uniform(0.2, 0.8, SHAPE), jnp.float32)
WIDTHS = np.asarray(RNG.uniform(0.05, 0.2, SHAPE), np.float32)
LIKELIHOODS = {
    "gaussian": likelihoods.gaussian(0.1),
    "map": likelihoods.gaussian(WIDTHS),
    "unknown_sigma": likelihoods.unknown_sigma(0.02, 1.0),
    "student_t": likelihoods.student_t(0.1, 5.0),
    "poisson": likelihoods.poisson(50.0),
}
each = pytest.mark.parametrize("name", LIKELIHOODS)


def log_uniform_sigma(square, n, least, most):
    """log of the integral of N(r; 0, σ² I) over log σ, divided by its range; ‖r‖² = square."""

    def logpdf(s):
        return -n * s - square / 2 * math.exp(-2 * s) - n / 2 * math.log(2 * math.pi)

    top = min(max(math.log(square / n) / 2, math.log(least)), math.log(most))
    area, _ = integrate.quad(
        lambda s: math.exp(logpdf(s) - logpdf(top)), math.log(least), math.log(most), points=[top]
    )
    return logpdf(top) + math.log(area / math.log(most / least))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gaussian", stats.norm(LR, 0.1).logpdf(TARGET).sum()),
        ("map", stats.norm(LR, WIDTHS).logpdf(TARGET).sum()),
        ("student_t", stats.t(5, LR, 0.1).logpdf(TARGET).sum()),
        ("unknown_sigma", log_uniform_sigma(float(np.sum((LR - TARGET) ** 2)), 12, 0.02, 1.0)),
    ],
)
def test_densities(name, expected):
    # The sum over σ is the integral up to a hundredth, both ends being counted in full.
    atol = 0.1 if name == "unknown_sigma" else 1e-4
    assert LIKELIHOODS[name].logpdf(LR, TARGET) == pytest.approx(expected, abs=atol)


@pytest.mark.parametrize("degrees", [0.5, 30, 1e4, 1e6, 1e12])
def test_students_density_keeps_its_digits(degrees):
    """Of many degrees, too, where it is nearly Gaussian."""
    expected = stats.t(degrees, LR, 0.1).logpdf(TARGET).sum()
    found = likelihoods.student_t(0.1, degrees).logpdf(LR, TARGET)
    assert found == pytest.approx(expected, abs=1e-4)


def test_poissons_density_of_counts():
    counts = np.array(RNG.poisson(50 * np.asarray(LR)))
    expected = stats.poisson(50 * np.asarray(LR)).logpmf(counts).sum() + counts.size * math.log(50)
    found = LIKELIHOODS["poisson"].logpdf(LR, jnp.asarray(counts / 50, jnp.float32))
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", sorted(set(LIKELIHOODS) - {"map"}))
def test_values_that_are_no_data_do_not_count(name):
    which = np.zeros(SHAPE, bool)
    which[0] = [True, False, True]
    likelihood, found = LIKELIHOODS[name], likelihoods.of_values(LIKELIHOODS[name], which)
    lr, target = LR[0, :, ::2], TARGET[0, :, ::2]
    part = likelihood.logpdf(lr[None], target[None])
    np.testing.assert_allclose(found.logpdf(LR, TARGET), part, rtol=1e-6)
    precision = found.precision(LR, TARGET)
    np.testing.assert_allclose(
        precision[0, :, ::2], likelihood.precision(lr[None], target[None])[0], rtol=1e-6
    )
    assert (np.asarray(precision)[~which] == 0).all()
    drawn = found.sample(jax.random.key(0), LR)
    np.testing.assert_array_equal(drawn == LR, ~which)


@pytest.mark.parametrize("gain", [10, 1e4, 1e6, 1e8])
def test_poissons_density_of_bright_pictures_keeps_its_digits(gain):
    rng = np.random.default_rng(0)
    lr = rng.uniform(0.05, 0.95, (16, 16, 3)).astype(np.float32)
    target = (rng.poisson(gain * lr.astype(float)) / gain).astype(np.float32)
    moved = (lr + rng.standard_normal(lr.shape) * np.sqrt(lr / gain) / 10).astype(np.float32)
    moved = np.maximum(moved, 0.01)
    likelihood, y = likelihoods.poisson(gain), gain * target.astype(float)
    for x in lr, moved:
        rate = gain * x.astype(float)
        expected = np.sum(special.xlogy(y, rate) - rate - special.gammaln(y + 1) + math.log(gain))
        assert likelihood.logpdf(x, target) == pytest.approx(expected, abs=0.05)


@each
def test_its_draws_have_its_density(name):
    """Scores of draws have mean 0, and their covariance is Fisher's information."""
    likelihood, draws = LIKELIHOODS[name], 10_000
    keys = jax.random.split(jax.random.key(0), draws)

    @jax.jit
    @jax.vmap
    def score(key):
        y = likelihood.sample(key, LR)
        return jax.grad(likelihood.logpdf)(LR, y), likelihood.precision(LR, y)

    scores, precision = (np.asarray(x, np.float64).reshape(draws, -1) for x in score(keys))
    error = scores.std(0) / math.sqrt(draws)
    np.testing.assert_array_less(np.abs(scores.mean(0)), 5 * error)
    if name != "unknown_sigma":  # where the picture's own value tells about σ
        np.testing.assert_allclose(np.mean(scores**2, 0), precision[0], rtol=0.12)


def test_the_precision_of_an_unknown_sigma_is_that_of_the_residual():
    likelihood = likelihoods.unknown_sigma()
    target = 0.07 * np.sign(RNG.standard_normal((32, 32, 3)))
    precision = likelihood.precision(jnp.zeros((32, 32, 3)), jnp.asarray(target, jnp.float32))
    np.testing.assert_allclose(precision, 0.07**-2, rtol=0.02)


def test_an_exact_fit_is_not_infinitely_likely():
    likelihood = likelihoods.unknown_sigma()
    values = [likelihood.logpdf(LR, LR + off) for off in (0.0, 1e-4, 1e-3, 1e-2)]
    assert all(np.isfinite(values))
    assert abs(values[0] - values[1]) < 0.1  # of less than rounding to 8 bits: no difference
    assert values[1] > values[2] + 1 and values[2] > values[3] + 10


def test_a_sum_over_sigmas_is_finer_than_the_picture_tells():
    values = []
    for size in np.geomspace(0.03, 0.04, 20):
        residual = np.full((64, 64, 3), size)
        expected = log_uniform_sigma(np.sum(residual**2), residual.size, 0.001, 1)
        found = likelihoods.unknown_sigma(0.001, 1).logpdf(
            jnp.zeros(residual.shape), jnp.asarray(residual, jnp.float32)
        )
        values.append(found - expected)
    assert np.ptp(values) < 0.02


@pytest.mark.parametrize("size", [1, 16, 17, 100_003])
def test_sums_of_many_numbers(size):
    values = np.full(size, 1.2345, np.float32)
    expected = values.astype(np.float64).sum()
    assert likelihoods.pairwise_sum(jnp.asarray(values)) == pytest.approx(expected, rel=5e-7)


def test_poissons_precision_is_0_where_the_rate_is_that_of_the_least_value():
    lr = jnp.asarray([[[-0.2, 0.0, 0.5]]])
    found = LIKELIHOODS["poisson"].precision(lr, jnp.full(lr.shape, 0.1))
    np.testing.assert_allclose(found, [[[0, 0, 100]]], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (likelihoods.gaussian, (0.0,), "sigma must be finite and above 0, got 0.0"),
        (likelihoods.gaussian, (np.array([0.1, np.nan]),), "sigma .* got nan"),
        (likelihoods.student_t, (0.1, -1.0), "degrees must be finite and above 0, got -1.0"),
        (likelihoods.poisson, (np.inf,), "gain must be finite and above 0, got inf"),
        (likelihoods.gaussian, (np.array([0.1, 1e-50]),), "sigma 1e-50 is 0 in float32"),
        (likelihoods.poisson, (1e99,), "gain 1e\\+99 is infinite in float32"),
        (likelihoods.gaussian, (1e-17,), "sigma must be at least 3.16e-08, got 1e-17"),
        (likelihoods.student_t, (1e-8,), "sigma must be at least 3.16e-08, got 1e-08"),
        (likelihoods.unknown_sigma, (1e-17,), "least must be at least 3.16e-08, got 1e-17"),
        (likelihoods.poisson, (1e30,), "gain must be at most 1e\\+15, got 1e\\+30"),
        (likelihoods.unknown_sigma, (0.2, 0.1), "0 < least < most, got 0.2 and 0.1"),
    ],
)
def test_bad_widths(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments)


def test_likelihoods_from_a_line():
    for noise, made in (
        (0.1, likelihoods.gaussian(0.1)),
        ("gaussian:0.1", likelihoods.gaussian(0.1)),
        ("unknown_sigma", likelihoods.unknown_sigma()),
        ("unknown_sigma:0.02:1", likelihoods.unknown_sigma(0.02, 1.0)),
        ("student_t:0.1", likelihoods.student_t(0.1)),
        ("poisson:50", likelihoods.poisson(50.0)),
    ):
        assert likelihoods.parse(noise) == made


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ("gauss:1", "'gauss' is no number and none of gaussian, unknown_sigma"),
        ("poisson", "'poisson' should be poisson:GAIN, with numbers"),
        ("student_t:wide", "'student_t:wide' should be student_t:SIGMA:DEGREES, with numbers"),
        ("gaussian:1:2", "should be gaussian:SIGMA"),
        ("poisson:0", "gain must be finite and above 0, got 0"),
    ],
)
def test_lines_that_are_no_likelihoods(noise, message):
    with pytest.raises(ValueError, match=message):
        likelihoods.parse(noise)


def test_a_map_of_another_shape(unchecked):
    with pytest.raises(ValueError, match=r"sigma of shape \(3, 2, 3\) doesn't fit"):
        likelihoods.gaussian(np.ones((3, 2, 3))).logpdf(LR, TARGET)
    with pytest.raises(ValueError, match="target's shape"):
        likelihoods.gaussian(0.1).logpdf(LR, TARGET[:1])


def test_a_likelihood_is_a_loss():
    loss = likelihoods.NegativeLogLikelihood(LIKELIHOODS["gaussian"], 0.01)
    assert isinstance(loss, Criterion) and not loss.needs_styles and loss.eps == 0.01
    assert loss(LR, TARGET, None) == -LIKELIHOODS["gaussian"].logpdf(LR, TARGET)


# --- Posteriors. ---


def build(**options):
    return posterior.build(GENERATOR, operators.area(4), likelihoods.gaussian(0.1), **options)


@pytest.mark.parametrize("prior", posterior.PRIORS)
@pytest.mark.parametrize("noise", posterior.NOISE)
def test_the_log_density_is_that_of_its_parts(prior, noise):
    density = build(prior=prior, noise=noise)
    position = density.sample(jax.random.key(0))
    latents, frozen = density.split(position)
    sampled = [*jax.tree.leaves(latents), *(jax.tree.leaves(frozen) if noise == "sampled" else ())]
    assert len(sampled) == len(jax.tree.leaves(position))
    if noise == "zero":
        assert not frozen["noise"].any()
    image = GENERATOR.synthesize(MATRIX, latents, frozen)
    np.testing.assert_array_equal(density.image(MATRIX, position), image)
    lr = operators.area(4)(image)
    target = lr + 0.05
    expected = stats.norm(lr, 0.1).logpdf(target).sum()
    assert density.loglikelihood(MATRIX, target, position) == pytest.approx(expected, rel=1e-5)
    expected = 0 if prior == "spheres" else sum(stats.norm().logpdf(z).sum() for z in sampled)
    assert density.logprior(position) == pytest.approx(expected, rel=1e-5)


def test_priors_are_drawn_as_they_are_dense():
    """A generator's own draws may be others: here all latents are equal."""

    def sample(key):
        return {"z": jnp.full((3, 4), jax.random.normal(key))}, {"noise": jnp.zeros((1, 2, 2))}

    generator = Generator(4, sample, GENERATOR.synthesize)
    keys = jax.random.split(jax.random.key(0), 2000)
    for prior in posterior.PRIORS:
        density = posterior.build(
            generator, lambda x: x, likelihoods.gaussian(0.1), prior=prior, noise="sampled"
        )
        latents, noise = jax.vmap(density.sample)(keys)
        points = np.asarray(latents["z"])  # (draws, 3, 4)
        np.testing.assert_allclose(np.mean(points**2, 0), 1, atol=0.2)
        assert abs(np.mean(points[:, 0] * points[:, 1])) < 0.05
        assert np.mean(noise["noise"] ** 2) == pytest.approx(1, abs=0.1)
        spread = np.std(np.sum(points**2, 2))
        assert spread < 1e-5 if prior == "spheres" else 2 < spread < 4


def test_new_arrays_do_not_recompile():
    traces = []

    @jax.jit
    def value(density, position, target):
        traces.append(None)
        return density.loglikelihood(MATRIX, target, position)

    for sigma, target in ((0.1, 0.3), (0.2, 0.4)):
        density = posterior.build(GENERATOR, operators.area(4), likelihoods.gaussian(sigma))
        value(density, density.sample(jax.random.key(0)), jnp.full((2, 2, 3), target))
    assert len(traces) == 1


@pytest.mark.parametrize("option", ["prior", "noise"])
def test_unknown_options(option):
    with pytest.raises(ValueError, match=f"{option} must be one of .*, got 'cube'"):
        build(**{option: "cube"})


@pytest.mark.parametrize("make", [likelihoods.gaussian, likelihoods.student_t, likelihoods.poisson])
def test_pictures_are_drawn_with_maps_that_fit(make):
    with pytest.raises(ValueError, match=r"of shape \(5, 2, 2, 3\) doesn't fit"):
        make(np.ones((5, *SHAPE), "f4")).sample(jax.random.key(0), LR)


@pytest.mark.parametrize("name", likelihoods.LIKELIHOODS)
def test_pictures_are_of_floats(unchecked, name):
    likelihood = likelihoods.parse(name if name == "unknown_sigma" else f"{name}:0.1")
    with pytest.raises(ValueError, match=r"floats in \[0, 1\], not of uint8"):
        likelihood.logpdf(LR, np.zeros(LR.shape, np.uint8))


def test_widths_may_be_traced_and_must_be_numbers(unchecked):
    found = jax.jit(lambda sigma: likelihoods.gaussian(sigma).logpdf(LR, TARGET))(0.1)
    np.testing.assert_allclose(found, likelihoods.gaussian(0.1).logpdf(LR, TARGET), rtol=1e-6)
    for width in (None, "wide"):
        with pytest.raises(ValueError, match="sigma must be a number or a map of numbers"):
            likelihoods.gaussian(width)


def test_a_posterior_takes_a_likelihood(unchecked):
    with pytest.raises(ValueError, match="likelihood must be a Likelihood, got <function"):
        posterior.build(GENERATOR, lambda x: x, lambda lr, target: 0.0)
    for name, given in (
        ("generator", (GENERATOR, {})),
        ("operator", "bicubic"),
        ("operator", operators.bicubic),
    ):
        parts = {"generator": GENERATOR, "operator": lambda x: x} | {name: given}
        with pytest.raises(ValueError, match=f"{name} must be an? .*, got "):
            posterior.build(**parts, likelihood=likelihoods.gaussian(0.1))
