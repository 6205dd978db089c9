"""Schemes: each one's formula, its set, and what it finds; the samplers' distributions."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from helpers import golden, relative_error, trajectory

from pulse_jax import Generator, Loss, build, schemes
from pulse_jax.optimizers import OPTIMIZERS, SCHEDULES, langevin, lbfgs, pcn, sphere_adam
from pulse_jax.schemes import CARRY, SCHEMES, SUITED, TANGENT_STEPS

every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
OFF_SPHERE = "none", "gaussian_prior", "radial_prior", "soft_shell"
ON_SPHERE = [name for name in SCHEMES if name not in (*OFF_SPHERE, "ball", "rescale_every")]
# Where the base's gradient is tangent, and where its momentum is too.
TANGENT_GRADIENT = "reparametrise", "tangent_gradient", *[n for n in TANGENT_STEPS if "geo" in n]


def pairs(names, bases):
    """Of schemes and bases those that go together."""
    return [
        (scheme, base)
        for scheme in names
        for base in bases
        if base not in SUITED or scheme in SUITED[base][1]
    ]


def norms(x, axes=-1):
    return np.sqrt(np.sum(np.asarray(x, np.float64) ** 2, axes))


def tangent(z, v):
    return v - z * (z * v).sum(-1, keepdims=True) / (z**2).sum(-1, keepdims=True)


def turned(z, t):
    """The exponential map of rows, as in its formula."""
    radius = norms(z)[:, None]
    angle = norms(t)[:, None] / radius
    return np.cos(angle) * z + np.sin(angle) * t / angle


def rescaled(z, y):
    return y * norms(z)[:, None] / norms(y)[:, None]


# The first step with u = −0.125 g: z' of z and g.
FIRST_STEPS = {
    "none": lambda z, g: z - 0.125 * g,
    "gaussian_prior": lambda z, g: z - 0.125 * (g + 1e-3 * z),
    "radial_prior": lambda z, g: (
        z - 0.125 * (g + 1e-3 * (1 - (z.shape[1] - 1) / norms(z)[:, None] ** 2) * z)
    ),
    "soft_shell": lambda z, g: (
        z - 0.125 * (g + 1e-3 * 2 * (1 - math.sqrt(z.shape[1]) / norms(z)[:, None]) * z)
    ),
    "ball": lambda z, g: (z - 0.125 * g) * np.minimum(1, norms(z) / norms(z - 0.125 * g))[:, None],
    "rescale": lambda z, g: rescaled(z, z - 0.125 * g),
    "rescale_every": lambda z, g: z - 0.125 * g,
    "reparametrise": lambda z, g: rescaled(z, z - 0.125 * tangent(z, g)),
    "tangent_gradient": lambda z, g: rescaled(z, z - 0.125 * tangent(z, g)),
    "tangent_update": lambda z, g: rescaled(z, z - 0.125 * tangent(z, g)),
    "geodesic": lambda z, g: turned(z, -0.125 * tangent(z, g)),
    "geodesic_projected": lambda z, g: turned(z, -0.125 * tangent(z, g)),
    "geodesic_parallel": lambda z, g: turned(z, -0.125 * tangent(z, g)),
    "fixed_angle": lambda z, g: turned(
        z, -0.125 * tangent(z, g) * (norms(z) / norms(tangent(z, g)))[:, None]
    ),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_a_step_is_its_formula(name):
    rng = np.random.default_rng(0)
    z, g = rng.standard_normal((2, 5, 12)) * [[[1]], [[3]]]
    with jax.enable_x64(True):
        optimizer = SCHEMES[name](optax.sgd(0.125))
        updates, _ = optimizer.update(
            jnp.asarray(g), optimizer.init(jnp.asarray(z)), jnp.asarray(z)
        )
    assert relative_error(z + np.asarray(updates), FIRST_STEPS[name](z, g)) <= 1e-9


def test_rescale_every_rescales_each_such_step():
    z = jax.random.normal(jax.random.key(0), (3, 8))
    optimizer = SCHEMES["rescale_every"](optax.sgd(0.1), 4)
    path = trajectory(optimizer, lambda z: jnp.sum(jnp.cos(z)), z, 12)[1]
    ratios = norms(path) / norms(z)
    np.testing.assert_allclose(ratios[3::4], 1, rtol=1e-6)
    assert (np.abs(np.delete(ratios, np.s_[3::4], 0) - 1) > 1e-4).all()


@pytest.mark.parametrize("name", TANGENT_GRADIENT)
def test_the_base_is_given_a_tangent(name):
    given = []

    def record(updates, state, params=None):
        given.append((updates, params))
        return updates, state

    base = optax.GradientTransformation(lambda params: (), record)
    z, g = jax.random.normal(jax.random.key(0), (2, 4, 100))
    optimizer = SCHEMES[name](base)
    optimizer.update(g, optimizer.init(z), z)
    [(tangents, points)] = given
    cosines = np.sum(np.asarray(tangents * points, float), -1) / norms(tangents) / norms(points)
    assert np.abs(cosines).max() <= 1e-6


@pytest.mark.parametrize(("transport", "keeps"), [("projected", False), ("parallel", True)])
def test_momentum_is_carried_along(transport, keeps):
    z, g = jax.random.normal(jax.random.key(0), (2, 4, 50))
    for base in optax.sgd(0.3, momentum=0.9), optax.adam(0.3), sphere_adam(0.3):
        optimizer = SCHEMES[f"geodesic_{transport}"](base)
        updates, state = optimizer.update(g, optimizer.init(z), z)
        _, unmoved = SCHEMES["geodesic"](base).update(g, SCHEMES["geodesic"](base).init(z), z)
        for name in "mu", "trace":
            moment, before = optax.tree.get(state, name), optax.tree.get(unmoved, name)
            if moment is None:
                continue
            cosines = np.sum(moment * (z + updates), -1) / norms(moment) / norms(z)
            assert np.abs(cosines).max() <= 1e-6  # tangent where the step has ended
            change = np.abs(norms(moment) / norms(before) - 1).max()
            assert change <= 1e-5 if keeps else change > 1e-5


@pytest.mark.parametrize(
    ("run", "base"),
    [
        ("sgd", optax.sgd),
        # Its learning rate and eps are for the norm of a gradient, ours for the root mean square.
        ("adam", lambda rate: sphere_adam(rate / math.sqrt(24), eps=1e-8 / math.sqrt(24))),
    ],
)
def test_geodesic_projected_equals_geoopt(run, base):
    """Not its SGD with momentum: that starts with an unprojected gradient, off the sphere."""
    known = golden("sphere_geometry")
    with jax.enable_x64(True):
        matrix, start = jnp.asarray(known[f"{run}_A"]), jnp.asarray(known[f"{run}_x0"])
        optimizer = SCHEMES["geodesic_projected"](base(known[f"{run}_lr"].item()))

        def loss(x):
            return jnp.einsum("ni,ij,nj->", x, matrix, x)

        values, path = trajectory(optimizer, loss, start, 50)
    assert relative_error(values, known[f"{run}_loss"]) <= 1e-8
    assert relative_error(path, known[f"{run}_traj"]) <= 1e-8


@pytest.mark.parametrize(("scheme", "base"), [*pairs(SCHEMES, ["adam"]), ("rescale", "lbfgs")])
def test_stays_on_its_set_in_float32(scheme, base):
    """1000 steps down a slope, on vectors of unlike norms and on a noise map."""
    key = jax.random.key(0)
    latents = [jax.random.normal(key, (10, 128)) * jnp.geomspace(0.1, 10, 10)[:, None]]
    latents += [jax.random.normal(key, (1, 8, 8))]
    slopes = [jnp.cos(x) for x in latents]

    def loss(params):
        return sum(jnp.vdot(x, slope) for x, slope in zip(params, slopes, strict=True))

    optimizer = SCHEMES[scheme](OPTIMIZERS[base](0.05))
    values, params = jax.jit(lambda p: trajectory(optimizer, loss, p, 1000))(latents)
    lowest = 0  # on a sphere, opposite the slope
    for start, path, slope in zip(latents, params, slopes, strict=True):
        assert path.dtype == "float32"
        axes = tuple(range(1 - start.ndim, 0))
        radius = norms(start, axes)
        ratios = norms(path, axes) / radius
        if scheme == "ball":
            assert ratios.max() <= 1 + 1e-6
        elif scheme not in OFF_SPHERE:
            ends = ratios[9::10] if scheme == "rescale_every" else ratios
            assert np.abs(ends - 1).max() <= 1e-6
        lowest -= np.sum(radius * norms(slope, axes))
    assert values[-1] < 0.9 * lowest


@pytest.mark.parametrize(
    ("scheme", "base"),
    [*pairs(SCHEMES, ["sphere_adam"]), ("rescale", "lbfgs"), ("geodesic", "adam")],
)
def test_turns_with_the_coordinates(scheme, base):
    """A rotated problem has the rotated trajectory, but for Adam's moments per coordinate."""
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.standard_normal((10, 10)))
    form = rng.standard_normal((10, 10))

    def loss(z):
        return jnp.sum(jnp.cos(z @ form)) + jnp.sum((z @ form) ** 2) / 10

    with jax.enable_x64(True):
        optimizer = SCHEMES[scheme](OPTIMIZERS[base](0.05))
        start = jnp.asarray(rng.standard_normal((3, 10)))
        one = trajectory(optimizer, loss, start, 10)[1]
        other = trajectory(optimizer, lambda z: loss(z @ rotation.T), start @ rotation, 10)[1]
    error = relative_error(other, np.asarray(one) @ rotation)
    assert error > 1e-3 if base == "adam" else error <= 1e-9


# Adam's update by coordinates can be radial where the gradient isn't: without a tangent gradient
# the point then stays, short of the goal.
STUCK_WITH_ADAM = "rescale", "ball", "rescale_every", "tangent_update"
# Without a bound the quadratic form's minimum is at infinity, or with the Gaussian's density at 0.
NO_MINIMUM = "none", "gaussian_prior"
PENALISED = "gaussian_prior", "radial_prior", "soft_shell"


@pytest.mark.parametrize(
    ("scheme", "base"),
    pairs([name for name in SCHEMES if name not in NO_MINIMUM], ["adam", "sphere_adam"]),
)
def test_finds_the_smallest_eigenvector(scheme, base):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((20, 20))
    matrix = (matrix + matrix.T) / 2
    eigen = np.linalg.eigh(matrix)
    build = partial(SCHEMES[scheme], weight=40.0) if scheme in PENALISED else SCHEMES[scheme]
    rate = 0.01 if base == "sgd" else 0.1
    optimizer = build(OPTIMIZERS[base](SCHEDULES["linear1cycledrop"](rate, 2000)))
    start = jnp.asarray(rng.standard_normal((2, 20)), jnp.float32)
    _, path = trajectory(optimizer, lambda z: jnp.einsum("ni,ij,nj->", z, matrix, z), start, 2000)
    cosines = path[-1] @ eigen.eigenvectors[:, 0] / norms(path[-1])
    found = np.abs(cosines).min() >= 0.999
    assert found != (base == "adam" and scheme in STUCK_WITH_ADAM)


@pytest.mark.parametrize(
    ("scheme", "base"),
    # Unbounded, `none` turns towards it for ever and gets there at infinity.
    pairs([name for name in SCHEMES if name != "none"], ["sgd", "adam"]),
)
def test_finds_the_mean_direction_of_a_von_mises_fisher_sample(scheme, base):
    mu = np.eye(10)[0]
    sample = scipy.stats.vonmises_fisher(mu, 5).rvs(200, random_state=0)
    mean = sample.mean(axis=0) / norms(sample.mean(axis=0))

    def loss(z):
        return -jnp.sum(z @ sample.T) / len(sample)

    start = jax.random.normal(jax.random.key(0), (2, 10))
    build = partial(SCHEMES[scheme], weight=0.5) if scheme in PENALISED else SCHEMES[scheme]
    optimizer = build(OPTIMIZERS[base](SCHEDULES["linear1cycledrop"](0.3, 1000)))
    _, path = trajectory(optimizer, loss, start, 1000)
    found = np.min(path[-1] @ mean / norms(path[-1])) >= 0.999
    assert found != (base == "adam" and scheme in STUCK_WITH_ADAM)


@every_scheme
def test_zero_gradients_and_opposite_points_stay_finite(scheme):
    z = jax.random.normal(jax.random.key(0), (2, 8))
    radial = 3 * z  # whose tangent part is 0
    for base in optax.sgd(0.1, momentum=0.9), optax.adam(0.1), sphere_adam(0.1):
        optimizer = scheme(base)
        state, point = optimizer.init(z), z
        for gradient in jnp.zeros_like(z), radial, jnp.zeros_like(z):
            updates, state = optimizer.update(gradient, state, point)
            point = point + updates
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((point, state)))

    # A step to the other side of the sphere, and on from there.
    side = jnp.roll(z, 1, axis=1)
    across = jax.vmap(schemes.sphere.tangent)(z, side)
    across *= np.pi * norms(z)[:, None] / norms(across)[:, None]
    optimizer = scheme(optax.sgd(1.0, momentum=0.9))
    state, point = optimizer.init(z), z
    for gradient in -across, -2 * z, across:
        updates, state = optimizer.update(gradient, state, point)
        point = point + updates
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((point, state)))


def test_a_fixed_angle_is_one():
    z = jax.random.normal(jax.random.key(0), (4, 50)) * jnp.geomspace(0.1, 10, 4)[:, None]
    gradient = (
        jax.random.normal(jax.random.key(1), (4, 50)) * jnp.geomspace(1e-25, 1e10, 4)[:, None]
    )
    optimizer = SCHEMES["fixed_angle"](optax.sgd(0.2))
    updates, _ = optimizer.update(gradient, optimizer.init(z), z)
    cosines = np.sum(z * (z + updates), -1) / norms(z) ** 2
    np.testing.assert_allclose(np.arccos(cosines), 0.2, rtol=1e-4)


def test_lbfgs_of_optax_in_a_free_variable():
    """`reparametrise` passes on value, gradient and function, which its line search needs."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((20, 20))
    matrix = (matrix + matrix.T) / 2

    def loss(z):
        return jnp.einsum("ni,ij,nj->", z, matrix, z)

    optimizer = SCHEMES["reparametrise"](optax.lbfgs())
    z = jnp.asarray(rng.standard_normal((1, 20)), jnp.float32)
    state = optimizer.init(z)

    @jax.jit
    def step(z, state):
        value, gradient = jax.value_and_grad(loss)(z)
        updates, state = optimizer.update(
            gradient, state, z, value=value, grad=gradient, value_fn=loss
        )
        return z + updates, state

    for _ in range(60):
        z, state = step(z, state)
    vector = np.linalg.eigh(matrix).eigenvectors[:, 0]
    assert abs(z[0] @ vector) / norms(z[0]) >= 0.9999


@every_scheme
def test_a_vector_at_0_stays_finite(scheme):
    latents = jnp.zeros((2, 3))
    optimizer = scheme(optax.adam(0.4))
    for gradient, bound in [(jnp.zeros((2, 3)), 0), (jnp.ones((2, 3)), 4e-5)]:
        updates, _ = optimizer.update(gradient, optimizer.init(latents), latents)
        assert np.isfinite(updates).all()
        if scheme.__name__ in ON_SPHERE or scheme.__name__ == "ball":
            assert np.max(norms(updates)) <= bound


@pytest.mark.parametrize(("scheme", "base"), pairs(SCHEMES, ["adam", "pcn", "langevin"]))
def test_compiles_once_and_maps_over_restarts(scheme, base):
    bases = OPTIMIZERS | {
        name: partial(sampler, temperature=0.1, key=jax.random.key(0))
        for name, sampler in (("pcn", pcn), ("langevin", langevin))
    }
    optimizer = SCHEMES[scheme](bases[base](SCHEDULES["linear1cycledrop"](0.4, 10)))
    traces = []

    @jax.jit
    @jax.vmap
    def step(gradient, state, params):
        traces.append(None)
        updates, state = optimizer.update(
            gradient, state, params, value=0.0, grad=gradient, value_fn=lambda p: 0.0
        )
        return optax.apply_updates(params, updates), state

    params = {"styles": jax.random.normal(jax.random.key(0), (3, 4, 16))}
    state = jax.vmap(optimizer.init)(params)
    alone = jax.tree.map(lambda x: x[1], params)
    alone_state, update_alone = optimizer.init(alone), jax.jit(optimizer.update)
    for _ in range(3):
        gradient = jax.tree.map(jnp.sin, params)
        params, state = step(gradient, state, params)
        gradient = jax.tree.map(jnp.sin, alone)
        updates, alone_state = update_alone(gradient, alone_state, alone, value=0.0)
        alone = optax.apply_updates(alone, updates)
    assert len(traces) == 1
    assert relative_error(params["styles"][1], alone["styles"]) <= 1e-5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "none"])
def test_bad_latents(name):
    optimizer = SCHEMES[name](optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"\(5,\)"):
        optimizer.init(jnp.ones(5))
    with pytest.raises(ValueError, match="params"):
        optimizer.update(jnp.ones((1, 5)), optimizer.init(jnp.ones((1, 5))))


def test_without_a_scheme_latents_need_no_spheres():
    optimizer = SCHEMES["none"](optax.sgd(0.25))
    latents = jnp.ones(5)
    updates, _ = optimizer.update(2 * latents, optimizer.init(latents))
    np.testing.assert_array_equal(updates, -0.5 * latents)


def test_parse():
    assert schemes.parse("geodesic") is SCHEMES["geodesic"]
    z = jax.random.normal(jax.random.key(0), (1, 8))
    optimizer = schemes.parse("soft_shell:0.5")(optax.sgd(1.0))
    updates, _ = optimizer.update(jnp.zeros_like(z), optimizer.init(z), z)
    np.testing.assert_allclose(norms(z + updates), math.sqrt(8), rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sphere", "'sphere' is none of rescale, none"),
        ("geodesic:2", "geodesic takes no parameter, got '2'"),
        ("soft_shell:big", "'big'"),
        ("soft_shell:-1", "'-1'"),
        ("soft_shell:nan", "'nan'"),
        ("soft_shell:", "''"),
    ],
)
def test_bad_schemes(text, told):
    with pytest.raises(ValueError, match=told):
        schemes.parse(text)


# Whether `geodesic_parallel` knows all of their momentum; else the field that it doesn't know.
MOMENTUM = {
    "adabelief": None,
    "adadelta": None,
    "adagrad": None,
    "adam": None,
    "adamax": None,
    "adamw": None,
    "adan": "m",
    "amsgrad": None,
    "lion": None,
    "lamb": None,
    "lars": None,
    "lbfgs": "params",
    "nadam": None,
    "novograd": None,
    "optimistic_gradient_descent": "previous_gradient",
    "radam": None,
    "rmsprop": None,
    "rprop": "step_sizes",
    "sgd": None,
    "yogi": None,
}
WRAPPED = {
    "rmsprop with momentum": optax.rmsprop(0.1, momentum=0.9),
    "sgd with momentum": optax.sgd(0.1, momentum=0.9),
    "two momenta": optax.chain(optax.trace(0.9), optax.adam(0.1)),
    "hyperparameters": optax.inject_hyperparams(optax.adam)(0.1),
    "apply_if_finite": optax.apply_if_finite(optax.adam(0.1), 3),
    "sphere_adam": sphere_adam(0.1),
}


@pytest.mark.parametrize("name", CARRY)
@pytest.mark.parametrize("base", [*MOMENTUM, *WRAPPED])
def test_a_momentum_that_is_not_known_is_refused(name, base):
    field = MOMENTUM.get(base)
    optimizer = WRAPPED.get(base) or getattr(optax, base)(0.1)
    if field is None:
        SCHEMES[name](optimizer)
    else:
        with pytest.raises(ValueError, match=f"{name} .*keeps '{field}'"):
            SCHEMES[name](optimizer)
    SCHEMES["geodesic"](optimizer)


def test_a_base_that_knows_the_latents_names_is_looked_at_with_them():
    params = {"style": jnp.ones((2, 3)), "noise": jnp.ones((1, 4))}

    def split(base):
        return optax.partition({"a": base, "b": optax.adam(0.1)}, {"style": "a", "noise": "b"})

    optimizer = SCHEMES["geodesic_parallel"](split(optax.adan(0.1)))
    with pytest.raises(ValueError, match="keeps 'm'"):
        optimizer.init(params)
    with pytest.raises(ValueError, match="langevin"):
        SCHEMES["rescale"](split(langevin(0.1, 1.0, jax.random.key(0)))).init(params)

    optimizer = SCHEMES["geodesic_parallel"](split(optax.sgd(0.1, momentum=0.9)))
    gradient = jax.tree.map(lambda x: jnp.cumsum(x, axis=1), params)
    updates, state = optimizer.update(gradient, optimizer.init(params), params)
    points = optax.apply_updates(params, updates)
    for name, moment in ("style", "trace"), ("noise", "mu"):
        carried = optax.tree.get(state, moment)
        assert np.abs(np.sum(carried[name] * points[name], -1)).max() <= 1e-5


def test_a_scheme_takes_an_optimiser(unchecked):
    with pytest.raises(ValueError, match="rescale takes an optimiser of optax, got <function ada"):
        SCHEMES["rescale"](optax.adam)


@pytest.mark.parametrize("name", ["gaussian_prior", "radial_prior", "soft_shell", "rescale_every"])
@pytest.mark.parametrize("parameter", [0, -1.0, math.nan, math.inf])
def test_bad_parameters(name, parameter):
    with pytest.raises(ValueError, match=f"{name} must be a number above 0, got {parameter}"):
        SCHEMES[name](optax.sgd(0.1), parameter)


@pytest.mark.parametrize("period", [0.5, 2.5])
def test_bad_periods(period):
    with pytest.raises(ValueError, match=str(period)):
        schemes.parse(f"rescale_every:{period}")(optax.sgd(0.1))


# --- Samplers. ---


def chains(optimizer, loss, z, steps):
    """Samples (chains, steps, ...) of many chains; of pCN the accepted points."""
    optimizer = optax.with_extra_args_support(optimizer)

    def one(z):
        def step(carry, _):
            z, state = carry
            value, gradient = jax.value_and_grad(loss)(z)
            updates, state = optimizer.update(gradient, state, z, value=value)
            kept = optax.tree.get(state, "point")
            return (z + updates, state), z if kept is None else kept

        return jax.lax.scan(step, (z, optimizer.init(z)), length=steps)[1]

    return jax.jit(jax.vmap(one))(z)


@pytest.mark.parametrize(
    ("sampler", "rate", "scheme"),
    [
        (langevin, 0.02, "geodesic"),
        (langevin, 0.02, "tangent_update"),
        (pcn, 0.5, "rescale"),
    ],
)
def test_samplers_have_the_moments_of_von_mises_and_fisher(sampler, rate, scheme):
    """exp(κ⟨μ, x⟩) on the sphere of d dimensions, x = z/R; at a temperature other than 1."""
    d, kappa, temperature = 6, 3.0, 0.4
    mu = np.eye(d)[1]

    def loss(z):
        return -temperature * kappa * jnp.sum(z @ mu) / math.sqrt(d)

    z = jax.random.normal(jax.random.key(0), (400, 1, d))
    z *= math.sqrt(d) / jnp.linalg.norm(z, axis=-1, keepdims=True)
    rate *= d / temperature  # in the unit of the angle
    if sampler is pcn:
        rate = 0.5
    optimizer = SCHEMES[scheme](sampler(rate, temperature, jax.random.key(1)))
    x = np.asarray(chains(optimizer, loss, z, 700)[:, 200:, 0], float) / math.sqrt(d)
    assert np.abs(norms(x) - 1).max() <= 1e-5
    along = x @ mu
    first = scipy.special.iv(d / 2, kappa) / scipy.special.iv(d / 2 - 1, kappa)
    second = 1 - (d - 1) / kappa * first

    def near(values, expected):
        """Chains are independent: their means' spread is the error."""
        means = values.mean(axis=1)
        error = means.std() / math.sqrt(len(means))
        assert error <= 0.01
        assert abs(means.mean() - expected) <= 4 * error + 0.01

    near(along, first)
    near(along**2, second)
    near(x[..., 0], 0)
    near(x[..., 0] ** 2, (1 - second) / (d - 1))


def test_pcn_without_a_sphere_samples_the_posterior_of_a_gaussian():
    """Prior N(0, I), likelihood N(z; b, 1/a): the posterior is N(ab/(1 + a), 1/(1 + a))."""
    a, b, temperature = 3.0, 1.5, 0.7

    def loss(z):
        return temperature * a * jnp.sum((z - b) ** 2) / 2

    z = jax.random.normal(jax.random.key(0), (400, 1, 4))
    optimizer = SCHEMES["none"](pcn(0.6, temperature, jax.random.key(1)))
    samples = np.asarray(chains(optimizer, loss, z, 900)[:, 300:], float)
    assert abs(samples.mean() - a * b / (1 + a)) <= 0.02
    assert abs(samples.var() - 1 / (1 + a)) <= 0.02


@pytest.mark.parametrize("sampler", [langevin, pcn])
def test_samplers_of_restarts_differ_and_repeat(sampler):
    def loss(z):
        return jnp.sum(z**2)

    z = jax.random.normal(jax.random.key(0), (2, 1, 8))
    one = chains(sampler(0.1, 1.0, jax.random.key(1)), loss, z, 5)
    again = chains(sampler(0.1, 1.0, jax.random.key(1)), loss, z, 5)
    other = chains(sampler(0.1, 1.0, jax.random.key(2)), loss, z, 5)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("sampler", "kept"), [(langevin, 1), (pcn, math.sqrt(1 - 0.1**2))], ids=["langevin", "pcn"]
)
def test_the_noise_of_samplers_differs_between_restarts_and_steps(sampler, kept):
    """Where the loss is flat, a step leaves a share of the point and adds noise."""
    z = jax.random.normal(jax.random.key(0), (2, 1, 8))
    optimizer = sampler(0.1, 1.0, jax.random.key(1))
    points = np.asarray(chains(optimizer, lambda z: 0.0 * z.sum(), z, 502), float)
    noise = points[:, 1:] - kept * points[:, :-1]
    of_both = *noise[:, :-1], *noise[:, 1:]  # and the same, one step later
    correlations = np.corrcoef([x.ravel() for x in of_both])
    # The error of a correlation of 4000 pairs is 0.016.
    assert np.abs(correlations - np.eye(4)).max() < 0.08


def test_pcn_turns_down_what_is_not_finite():
    def loss(z):
        return jnp.where(z[0, 0] > 0, jnp.nan, 0.0)

    z = -jnp.abs(jax.random.normal(jax.random.key(0), (20, 1, 4)))
    samples = chains(pcn(1.0, 1.0, jax.random.key(1)), loss, z, 50)
    assert (samples[..., 0] <= 0).all() and (np.diff(samples[:, :, 0, 0], axis=1) != 0).any()


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("base", SUITED)
def test_a_scheme_that_would_spoil_its_base_is_refused(name, base):
    samplers = {"langevin": langevin, "pcn": pcn}
    make = samplers.get(base)
    optimizer = make(0.1, 1.0, jax.random.key(0)) if make else lbfgs(0.1)
    clipped = optax.chain(optax.clip(1.0), optimizer)
    if name in SUITED[base][1]:
        SCHEMES[name](optimizer)
        SCHEMES[name](clipped)
        return
    for refused in optimizer, clipped:
        with pytest.raises(ValueError, match=f"scheme {name} doesn't go with {base}"):
            SCHEMES[name](refused)


def test_no_scheme_counts_as_none():
    generator = Generator(4, None, lambda params, latents, frozen: latents)
    parts = generator, lambda image: image, Loss(geocross=0)
    with pytest.raises(ValueError, match="scheme none doesn't go with langevin"):
        build(*parts, langevin(0.1, 1.0, jax.random.key(0)))
    build(*parts, pcn(0.1, 1.0, jax.random.key(0)))
    build(*parts, SCHEMES["geodesic"](langevin(0.1, 1.0, jax.random.key(0))))


def test_langevin_says_that_it_is_unadjusted():
    with pytest.warns(UserWarning, match="langevin is unadjusted"):
        langevin(0.1, 1.0, jax.random.key(0))


@pytest.mark.parametrize("sampler", [langevin, pcn])
@pytest.mark.parametrize("temperature", [-1.0, float("inf"), float("nan")])
def test_bad_temperatures(sampler, temperature):
    with pytest.raises(ValueError, match=str(temperature)):
        sampler(0.1, temperature, jax.random.key(0))
