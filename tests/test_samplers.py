"""Samplers: against closed forms, against each other, and their laws of motion."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import precisions
from jax.flatten_util import ravel_pytree

from pulse_jax import Generator, likelihoods, posterior, samplers
from pulse_jax.chains import preconditioner
from pulse_jax.samplers import GAUSSIAN, SPHERES

CHAINS = 4000


def flat(positions):
    """(chains, d), of positions of many chains."""
    return np.asarray(jax.vmap(lambda z: ravel_pytree(z)[0])(positions), np.float64)


@jax.jit
def transitions(key, sampler, params, targets, positions, number):
    """Positions of many chains after so many transitions, and the last acceptance rates."""
    state = jax.vmap(sampler.init, (None, 0, 0))(params, targets, positions)

    def transition(i, carry):
        state, _ = carry
        keys = jax.random.split(jax.random.fold_in(key, i), state.count.size)
        state, info = jax.vmap(sampler.step, (0, None, 0, 0))(keys, params, targets, state)
        return state, info.acceptance_rate

    start = state, jnp.zeros(state.count.size)
    state, rates = jax.lax.fori_loop(0, number, transition, start)
    return state.position, rates


def run(sampler, density, params, number):
    """Draws (chains, d) after so many transitions of chains that start in the prior."""
    keys = jax.random.split(jax.random.key(0), CHAINS + 1)
    targets = jnp.broadcast_to(TARGET, (CHAINS, *TARGET.shape))
    start = jax.vmap(density.sample)(keys[1:])
    positions, rates = transitions(keys[0], sampler, params, targets, start, number)
    assert rates.mean() > 0.1
    return flat(positions)


def assert_means(values, expected, errors=5):
    """The means of many independent rows, within five standard errors."""
    values = np.asarray(values, np.float64)
    error = values.std(0) / math.sqrt(len(values))
    np.testing.assert_array_less(np.abs(values.mean(0) - expected), errors * error)


# --- On N(0, I): a decoder of 3 + 2 latents, seen as four values, linear or bent. ---


def sample(key):
    key_a, key_b = jax.random.split(key)
    return {"a": jax.random.normal(key_a, (1, 3)), "b": jax.random.normal(key_b, (1, 2))}, {}


def synthesize(params, latents, frozen):
    z = jnp.concatenate([latents["a"][0], latents["b"][0]])
    return (0.5 + params["matrix"] @ (z + params["bend"] * jnp.sin(2 * z))).reshape(2, 2, 1)


DECODER, SIGMA = Generator(2, sample, synthesize), 0.08
DENSITY = posterior.build(DECODER, lambda x: x, likelihoods.gaussian(SIGMA))
LINEAR = {"matrix": 0.1 * jax.random.normal(jax.random.key(7), (4, 5)), "bend": 0.0}
BENT = LINEAR | {"bend": 0.5}
TARGET = jnp.array([0.7, 0.4, 0.5, 0.6]).reshape(2, 2, 1)


@pytest.fixture(scope="module")
def learned():
    """The preconditioner of the linear decoder, at three positions."""
    positions = jax.vmap(DENSITY.sample)(jax.random.split(jax.random.key(0), 3))
    return preconditioner(DENSITY, LINEAR, TARGET, positions)


@pytest.fixture
def on_gaussian(request, learned):
    made = {
        "hmc": lambda: samplers.hmc(DENSITY.loglikelihood, 0.2, 8),
        "preconditioned": lambda: samplers.hmc(DENSITY.loglikelihood, 0.4, 3, learned),
        "pcn": lambda: samplers.pcn(DENSITY.loglikelihood, 0.4),
    }
    return made[request.param]()


each_on_gaussian = pytest.mark.parametrize(
    "on_gaussian", ["hmc", "preconditioned", "pcn"], indirect=True
)


def closed_form():
    """Mean and covariance of the linear decoder's posterior."""
    matrix = np.asarray(LINEAR["matrix"], np.float64)
    covariance = np.linalg.inv(np.eye(5) + matrix.T @ matrix / SIGMA**2)
    return covariance @ matrix.T @ (np.ravel(TARGET) - 0.5) / SIGMA**2, covariance


def test_the_preconditioner_is_the_root_of_a_linear_decoders_covariance(learned):
    _, covariance = closed_form()
    _, directions, scales = map(np.asarray, learned)
    root = np.eye(5) + directions @ np.diag(scales - 1) @ directions.T
    np.testing.assert_allclose(root @ root, covariance, atol=1e-5)


@each_on_gaussian
def test_a_linear_decoders_posterior(on_gaussian):
    mean, covariance = closed_form()
    draws = run(on_gaussian, DENSITY, LINEAR, 100)
    assert_means(draws, mean)
    rest = draws - mean
    assert_means(rest[:, :, None] * rest[:, None], covariance)


@each_on_gaussian
def test_a_bent_decoders_posterior_is_that_of_importance_sampling(on_gaussian):
    """Draws of the prior, weighted by the likelihood: no sampler."""
    prior = jax.vmap(DENSITY.sample)(jax.random.split(jax.random.key(5), 400_000))
    values = jax.jit(jax.vmap(DENSITY.loglikelihood, (None, None, 0)))(BENT, TARGET, prior)
    weights, prior = np.asarray(jax.nn.softmax(values), np.float64), flat(prior)
    assert 1 / np.sum(weights**2) > 1000  # effective draws
    draws = run(on_gaussian, DENSITY, BENT, 100)
    for function in (lambda z: z, np.square, np.sin):
        assert_means(function(draws), weights @ function(prior), errors=7)  # of both


@each_on_gaussian
def test_latents_and_pictures_keep_their_joint_density(on_gaussian):
    """Geweke (JASA 99, 2004): z from the prior and y from z are one draw of p(z, y).

    Transitions of z given y must keep it so. Here y comes with each chain, from its first z.
    """
    keys = jax.random.split(jax.random.key(1), 3)
    start = jax.vmap(DENSITY.sample)(jax.random.split(keys[0], CHAINS))
    clean = jax.vmap(DENSITY.degraded, (None, 0))(BENT, start)
    noise_keys = jax.random.split(keys[1], CHAINS)
    targets = jax.vmap(DENSITY.likelihood.sample)(noise_keys, clean)
    end, _ = transitions(keys[2], on_gaussian, BENT, targets, start, 5)
    end, start = flat(end), flat(start)
    assert np.abs(end - start).mean() > 0.1
    y = np.asarray(targets).reshape(-1, 4)
    assert_means(end, 0)
    assert_means(end[:, :, None] * end[:, None], np.eye(5))
    assert_means(end[:, :, None] * y[:, None] - start[:, :, None] * y[:, None], 0)
    assert_means(np.cos(2 * end), math.exp(-2))
    bent = end + BENT["bend"] * np.sin(2 * end)
    residual = (y - 0.5 - bent @ np.asarray(BENT["matrix"]).T) / SIGMA
    assert_means(residual**2, 1)  # the noise is as wide as it was


# --- On two spheres of radius √3. ---


def on_spheres(params, target, z):
    """Von Mises–Fisher's and Bingham's densities, a coupling of both spheres, and data."""
    x = z["x"] / math.sqrt(3)  # (2, 3), of unit vectors
    data = (target.ravel() - params["matrix"] @ x.ravel()) / SIGMA
    fields = jnp.sum(params["field"] * x) + x[0] @ params["bingham"] @ x[0]
    return fields + params["coupling"] * x[0] @ x[1] - params["data"] * jnp.sum(data**2) / 2


NO_FIELDS = {
    "field": jnp.zeros((2, 3)),
    "bingham": jnp.zeros((3, 3)),
    "coupling": 0.0,
    "matrix": 0.1 * jax.random.normal(jax.random.key(8), (4, 6)),
    "data": 0.0,
}
SPHERICAL = posterior.build(
    Generator(2, lambda key: ({"x": jax.random.normal(key, (2, 3))}, {}), synthesize),
    lambda x: x,
    likelihoods.gaussian(SIGMA),
    prior="spheres",
)


@pytest.fixture
def spherical(request):
    made = {
        "geodesic_hmc": lambda: samplers.geodesic_hmc(on_spheres_of_latents, 0.4, 5),
        "geodesic_slice": lambda: samplers.geodesic_slice(on_spheres_of_latents),
        "pcn": lambda: samplers.pcn(on_spheres_of_latents, 0.7, SPHERES),
    }
    return made[request.param]()


def on_spheres_of_latents(params, target, position):
    return on_spheres(params, target, position[0])


each_on_spheres = pytest.mark.parametrize(
    "spherical", ["geodesic_hmc", "geodesic_slice", "pcn"], indirect=True
)


def unit_vectors(sampler, fields, number=60):
    return run(sampler, SPHERICAL, NO_FIELDS | fields, number).reshape(-1, 2, 3) / math.sqrt(3)


def langevin_function(kappa):
    """The mean of ⟨μ, x⟩ where the density on the unit sphere is exp(κ ⟨μ, x⟩)."""
    return 1 / math.tanh(kappa) - 1 / kappa


@each_on_spheres
def test_von_mises_and_fishers_mean(spherical):
    mu = np.array([[0.6, 0, 0.8], [0, -1, 0]])
    kappas = np.array([3.0, 0.5])
    x = unit_vectors(spherical, {"field": jnp.array(kappas[:, None] * mu)})
    np.testing.assert_allclose(np.linalg.norm(x, axis=2), 1, atol=1e-6)
    assert_means(np.sum(x * mu, 2), [langevin_function(kappa) for kappa in kappas])
    assert_means(x, [langevin_function(k) * m for k, m in zip(kappas, mu, strict=True)])


@each_on_spheres
def test_binghams_second_moments(spherical):
    bingham = np.array([[2.0, 1, 0], [1, -1, 0.5], [0, 0.5, -1]])
    # On a grid of angles, by the midpoint rule.
    height, angle = np.meshgrid(
        (np.arange(1000) + 0.5) / 500 - 1, 2 * np.pi * (np.arange(200) + 0.5) / 200
    )
    ring = np.sqrt(1 - height**2)
    grid = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], -1).reshape(-1, 3)
    weights = np.exp(np.einsum("ni,ij,nj->n", grid, bingham, grid))
    moments = np.einsum("n,ni,nj->ij", weights / weights.sum(), grid, grid)
    x = unit_vectors(spherical, {"bingham": jnp.array(bingham)})
    assert_means(x[:, 0, :, None] * x[:, 0, None], moments)
    assert_means(x[:, 1, :, None] * x[:, 1, None], np.eye(3) / 3)


@each_on_spheres
def test_two_spheres_that_are_coupled(spherical):
    x = unit_vectors(spherical, {"coupling": 2.0})
    assert_means(np.sum(x[:, 0] * x[:, 1], 1), langevin_function(2))
    assert_means(x, 0)


@each_on_spheres
def test_points_and_pictures_keep_their_joint_density(spherical):
    """As above (Geweke, 2004)."""
    keys = jax.random.split(jax.random.key(1), 3)
    params = NO_FIELDS | {"data": 1.0}
    start = jax.vmap(SPHERICAL.sample)(jax.random.split(keys[0], CHAINS))
    before = flat(start) / math.sqrt(3)
    noise = SIGMA * jax.random.normal(keys[1], (CHAINS, 4))
    y = before @ np.asarray(params["matrix"]).T + np.asarray(noise)
    targets = jnp.asarray(y.reshape(-1, 2, 2, 1), jnp.float32)
    end, _ = transitions(keys[2], spherical, params, targets, start, 5)
    after = flat(end) / math.sqrt(3)
    assert np.abs(after - before).mean() > 0.1
    assert_means(after, 0)
    moments = np.kron(np.eye(2), np.eye(3) / 3)
    assert_means(after[:, :, None] * after[:, None], moments)
    assert_means(after[:, :, None] * y[:, None] - before[:, :, None] * y[:, None], 0)
    residual = (y - after @ np.asarray(params["matrix"]).T) / SIGMA
    assert_means(residual**2, 1)


# --- Laws of motion. ---


def trajectory(flow, loglikelihood, position, velocity, leapfrogs=20, step_size=0.2):
    """The position and velocity after so many leapfrogs, of a density without params."""
    value, gradient = jax.value_and_grad(loglikelihood, argnums=2)({}, TARGET, position)
    state = samplers.State(position, value, gradient, jnp.zeros((), int))

    def move(_, moving):
        return samplers.leapfrog(loglikelihood, flow, step_size, {}, TARGET, *moving)

    state, velocity = jax.lax.fori_loop(0, leapfrogs, move, (state, velocity))
    return state.position, velocity


def quartic(params, target, z):
    """Not a Gaussian, nor alike in all directions."""
    return -sum(jnp.sum((leaf - 0.3) ** 4) + leaf.ravel()[0] for leaf in jax.tree.leaves(z)) / 4


def phase_point(flow, key=3):
    keys = jax.random.split(jax.random.key(key))
    position = {"x": jax.random.normal(keys[0], (2, 3)), "y": jax.random.normal(keys[0], (1, 4))}
    position = flow.place(position)
    return position, flow.velocity(keys[1], position)


def preconditioned_flow():
    directions, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((10, 3)))
    learned = samplers.Preconditioner(
        jnp.linspace(-1, 1, 10), jnp.array(directions), jnp.array([0.3, 0.5, 0.9])
    )
    return samplers.about(learned)


FLOWS = {"gaussian": lambda: GAUSSIAN, "spheres": lambda: SPHERES, "about": preconditioned_flow}
each_flow = pytest.mark.parametrize("flow", FLOWS)


@each_flow
def test_trajectories_are_reversible(flow):
    flow = FLOWS[flow]()
    with jax.enable_x64(True):
        point, velocity = jax.tree.map(lambda x: jnp.asarray(x, float), phase_point(flow))
        point = flow.place(point)
        there = jax.jit(trajectory, static_argnums=1)(flow, quartic, point, velocity)
        assert optax.tree.norm(optax.tree.sub(there[0], point)) > 1
        back = optax.tree.scale(-1, there[1])
        again, turned = jax.jit(trajectory, static_argnums=1)(flow, quartic, there[0], back)
        for end, start in ((again, point), (optax.tree.scale(-1, turned), velocity)):
            assert optax.tree.norm(optax.tree.sub(end, start)) < 1e-6  # chaos amplifies rounding


@each_flow
def test_energy_is_kept_to_second_order(flow):
    flow = FLOWS[flow]()
    with jax.enable_x64(True):
        point, velocity = jax.tree.map(lambda x: jnp.asarray(x, float), phase_point(flow))
        point = flow.place(point)

        @jax.jit
        def error(leapfrogs):
            end = trajectory(flow, quartic, point, velocity, leapfrogs, 0.5 / leapfrogs)
            before, after = (
                flow.energy(z, v) - quartic({}, TARGET, z) for z, v in ((point, velocity), end)
            )
            return jnp.abs(after - before)

        few, many = error(20), error(40)
        assert 0 < few < 0.1
        assert 3.5 < few / many < 4.5


@pytest.mark.parametrize("flow", ["gaussian", "about"])
def test_leapfrogs_keep_volume(flow):
    flow = FLOWS[flow]()
    with jax.enable_x64(True):
        phase = jax.tree.map(lambda x: jnp.asarray(x, float), phase_point(flow))
        start, unravel = ravel_pytree(phase)

        def move(x):
            return ravel_pytree(trajectory(flow, quartic, *unravel(x), leapfrogs=5))[0]

        jacobian = jax.jit(jax.jacfwd(move))(start)
        assert np.abs(jacobian - np.eye(start.size)).max() > 0.5
        assert np.linalg.det(jacobian) == pytest.approx(1, abs=1e-8)


def test_leapfrogs_on_a_sphere_keep_volume():
    """In angles and their momenta, which are canonical coordinates."""

    def embed(angles):
        theta, phi = angles
        ring = jnp.sin(theta)
        x = jnp.stack([ring * jnp.cos(phi), ring * jnp.sin(phi), jnp.cos(theta)])
        return math.sqrt(3) * x[None]

    def move(coordinates):
        angles, momenta = coordinates[:2], coordinates[2:]
        basis = jax.jacfwd(embed)(angles)[0]  # (3, 2)
        velocity = basis @ jnp.linalg.solve(basis.T @ basis, momenta)
        z, v = trajectory(SPHERES, quartic, embed(angles), velocity[None], leapfrogs=5)
        x = z[0] / math.sqrt(3)
        angles = jnp.stack([jnp.arccos(x[2]), jnp.arctan2(x[1], x[0])])
        return jnp.concatenate([angles, jax.jacfwd(embed)(angles)[0].T @ v[0]])

    with jax.enable_x64(True):
        start = jnp.array([1.1, 0.4, 0.8, -1.2])
        jacobian = jax.jit(jax.jacfwd(move))(start)
        assert np.abs(jacobian - np.eye(4)).max() > 0.5
        assert np.linalg.det(jacobian) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("flow", ["gaussian", "spheres"])
def test_motion_turns_with_the_space(flow):
    flow = FLOWS[flow]()
    point, velocity = phase_point(flow)
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))

    def turned(z):
        return z | {"x": z["x"] @ turn}

    def there(params, target, z):
        return quartic(params, target, z | {"x": z["x"] @ turn.T})

    move = jax.jit(trajectory, static_argnums=1)
    ends = move(flow, quartic, point, velocity)
    others = move(flow, there, turned(point), turned(velocity))
    for end, other in zip(ends, others, strict=True):
        np.testing.assert_allclose(turned(end)["x"], other["x"], atol=1e-3)
        np.testing.assert_allclose(end["y"], other["y"], atol=1e-3)


@each_flow
def test_float32_follows_float64(flow):
    flow = FLOWS[flow]()
    start = phase_point(flow)
    single = jax.jit(trajectory, static_argnums=1)(flow, quartic, *start)
    with jax.enable_x64(True):
        start = jax.tree.map(lambda x: jnp.asarray(x, float), start)
        double = jax.jit(trajectory, static_argnums=1)(flow, quartic, *start)
        assert all(leaf.dtype == float for leaf in jax.tree.leaves(double))
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(double), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=3e-4)


@pytest.mark.parametrize("flow", ["gaussian", "spheres"])
def test_the_priors_flow_alone_is_always_accepted(flow):
    """In any dimension: there is no error without a likelihood."""
    flow = FLOWS[flow]()
    z = flow.place({"x": jax.random.normal(jax.random.key(0), (3, 1000))})

    def nothing(params, target, z):
        return jnp.zeros(())

    make = {GAUSSIAN: samplers.hmc, SPHERES: samplers.geodesic_hmc}[flow]
    sampler = make(nothing, 1.0)
    state, info = jax.jit(sampler.step)(jax.random.key(1), {}, TARGET, sampler.init({}, TARGET, z))
    assert info.acceptance_rate > 0.99
    lengths = jnp.sum(state.position["x"] ** 2, 1)
    np.testing.assert_allclose(lengths, 1000, rtol=1e-5 if flow is SPHERES else 0.2)


def test_a_preconditioners_products_are_exact_on_accelerators_too(learned):
    sampler = samplers.hmc(quartic, 0.1, 2, learned)
    position = jax.eval_shape(DENSITY.sample, jax.random.key(0))
    state = jax.eval_shape(sampler.init, {}, TARGET, position)
    found = precisions(sampler.step, jax.random.key(0), {}, TARGET, state)
    assert found and set(found) == {"HIGHEST"}


def test_the_numbers_of_leapfrogs_spread_about_theirs():
    counts = jnp.arange(1000)
    numbers = jax.vmap(samplers._varied, (None, 0))(8, counts)
    found, times = np.unique(numbers, return_counts=True)
    np.testing.assert_array_equal(found, range(4, 13))
    np.testing.assert_allclose(times, 1000 / 9, atol=3)
    assert set(np.array(jax.vmap(samplers._varied, (None, 0))(1, counts))) == {1, 2}


@pytest.mark.parametrize("broken", [jnp.nan, -jnp.inf])
def test_what_is_not_finite_is_turned_down_and_counts_as_divergent(broken):
    def half(params, target, z):
        return jnp.where(z["x"][0, 0] > 0, 0.0, broken)

    position = {"x": jnp.ones((1, 3))}
    for sampler in (samplers.hmc(half, 1.0), samplers.pcn(half, 1.0)):
        start = jax.jit(sampler.init)({}, TARGET, position)
        keys = jax.random.split(jax.random.key(0), 64)
        step = jax.jit(jax.vmap(sampler.step, (0, None, None, None)))
        state, info = step(keys, {}, TARGET, start)
        turned_down = np.asarray(info.is_divergent)
        assert 0.1 < turned_down.mean() < 0.9
        np.testing.assert_array_equal(state.position["x"][turned_down], 1)
        assert (state.position["x"][:, 0, 0] > 0).all()
        np.testing.assert_array_equal(info.acceptance_rate[turned_down], 0)


@pytest.mark.parametrize("broken", [jnp.nan, -jnp.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda f: samplers.hmc(f, 1.0),
        lambda f: samplers.geodesic_hmc(f, 1.0),
        lambda f: samplers.pcn(f, 1.0),
        samplers.geodesic_slice,
    ],
    ids=["hmc", "geodesic_hmc", "pcn", "geodesic_slice"],
)
def test_chains_leave_a_start_without_a_density(make, broken):
    def half(params, target, z):
        return jnp.where(z["x"][0, 0] > 0, 0.0, broken)

    sampler = make(half)
    start = jax.jit(sampler.init)({}, TARGET, {"x": -jnp.ones((1, 3))})
    keys = jax.random.split(jax.random.key(0), 32)
    state, _ = jax.jit(jax.vmap(sampler.step, (0, None, None, None)))(keys, {}, TARGET, start)
    has_density = np.asarray(state.position["x"][:, 0, 0] > 0)
    assert has_density.any()
    np.testing.assert_array_equal(state.loglikelihood[has_density], 0)
    np.testing.assert_array_equal(state.position["x"][~has_density], -1)


def test_new_step_sizes_do_not_recompile():
    traces = []

    def counted(params, target, z):
        traces.append(None)
        return quartic(params, target, z)

    position, _ = phase_point(GAUSSIAN)
    step = jax.jit(lambda sampler, *rest: sampler.step(*rest))
    for step_size, leapfrogs in ((0.1, 4), (0.2, 7)):
        sampler = samplers.hmc(counted, step_size, leapfrogs)
        state = samplers.State(position, jnp.zeros(()), position, jnp.zeros((), int))
        _, info = step(sampler, jax.random.key(0), {}, TARGET, state)
        assert info.evaluations == leapfrogs // 2
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda f: samplers.hmc(f, 0.1, 0), "leapfrogs must be a whole number .* got 0"),
        (lambda f: samplers.hmc(f, 0.1, 2.5), "leapfrogs must be a whole number .* got 2.5"),
        (lambda f: samplers.hmc(f, -0.1), "step_size must be finite and at least 0, got -0.1"),
        (lambda f: samplers.geodesic_hmc(f, np.nan), "step_size must be .* got nan"),
        (lambda f: samplers.pcn(f, 0), r"beta must be in \(0, 1\], got 0"),
        (lambda f: samplers.pcn(f, 1.5), r"beta must be in \(0, 1\], got 1.5"),
        (lambda f: samplers.pcn(f, np.nan), r"beta must be in \(0, 1\], got nan"),
    ],
)
def test_bad_tunings_are_told(unchecked, make, told):
    with pytest.raises(ValueError, match=told):
        make(quartic)


@pytest.mark.parametrize("make", [samplers.hmc, samplers.geodesic_hmc, samplers.pcn])
def test_positions_must_be_floats(unchecked, make):
    z = {"z": jnp.ones((2, 3), int)}
    with pytest.raises(ValueError, match="positions must be floats, got int32"):
        make(quartic, 0.1).init({}, TARGET, z)


def test_a_chain_goes_from_a_point_without_density_to_one_with_it():
    """Where the loglikelihood is −∞ on half of the space; on spheres by the slice sampler too."""

    def half(params, target, z):
        return jnp.where(z["z"][0, 0] > 0, 0.0, -jnp.inf)

    z = {"z": jnp.array([[-1.0, 1, 0.5]])}
    for make in (
        lambda f: samplers.pcn(f, 0.9),
        lambda f: samplers.pcn(f, 0.9, SPHERES),
        samplers.geodesic_slice,
    ):
        sampler = make(half)
        step = jax.jit(sampler.step)
        state = jax.jit(sampler.init)({}, TARGET, z)
        assert state.loglikelihood == -jnp.inf
        for i in range(40):
            state, info = step(jax.random.key(i), {}, TARGET, state)
            assert info.is_divergent == (info.acceptance_rate == 0)
            if jnp.isfinite(state.loglikelihood):
                break
        assert state.position["z"][0, 0] > 0
