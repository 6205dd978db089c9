"""What a slot computes doesn't depend on how many there are.

Compilers make another program of each number of slots, and have got one wrong (docs/upstream.md).
So each part of a search is compiled for 1, 2 and 8, in float32, and compared with what it gives in
float64, where XLA optimises little and generates its code in another way.
"""

from contextlib import contextmanager
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_helpers import read_rows
from experiment_helpers import linear
from search_helpers import LINEAR, MATRIX, STARTS, TARGETS, take
from test_operators import ALL as ALL_OPERATORS

from pulse_jax import sphere
from pulse_jax.driver import stream
from pulse_jax.generators import checkpoint
from pulse_jax.generators.stylegan import StyleGAN
from pulse_jax.generators.stylegan2 import StyleGAN2
from pulse_jax.generators.stylegan3 import StyleGAN3
from pulse_jax.images import save_image
from pulse_jax.losses import Loss, geocross, l1, l2
from pulse_jax.operators import bicubic
from pulse_jax.optimizers import OPTIMIZERS, SAMPLERS
from pulse_jax.schemes import SCHEMES

pytestmark = pytest.mark.optimised

SLOTS = 1, 2, 8
BOUND = 1e-5  # of an array's largest magnitude
OPTIONS = {StyleGAN3: {"critical_layers": 1, "margin": 2}}


def random(*shape, seed=0):
    """Of as many slots as there are at most."""
    return np.random.default_rng(seed).standard_normal((SLOTS[-1], *shape)).astype(np.float32)


@cache
def mapped(function):
    """Compiled, over slots."""
    return jax.jit(jax.vmap(function))


@contextmanager
def lightly():
    """XLA optimises little."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def check(function, *arguments):
    """`function` is about one slot; the arguments' axis 0 counts slots."""
    arguments = jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), arguments)
    with lightly(), jax.enable_x64(True):
        expected = numbers(mapped(function)(*jax.tree.map(as_float64, arguments)))
    for slots in SLOTS:
        some = jax.tree.map(lambda x, n=slots: x[:n], arguments)
        actual = numbers(mapped(function)(*some))
        for ours, exact in zip(actual, (x[:slots] for x in expected), strict=True):
            assert ours.shape == exact.shape
            assert np.abs(ours - exact).max() <= BOUND * np.abs(exact).max(), slots


def as_float64(x):
    return np.asarray(x, float) if jnp.issubdtype(x.dtype, jnp.floating) else x


def numbers(tree):
    """Its leaves but random keys."""
    return [np.asarray(x, float) for x in jax.tree.leaves(tree) if not is_key(x)]


def is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


# --- Optimisers, samplers and schemes, in the middle of a search. ---

LATENTS = {"style": random(18, 512), "noise": random(1, 8, 8, seed=1)}
HISTORY = 12  # updates: more than L-BFGS remembers
BASES = {name: make(0.05) for name, make in OPTIMIZERS.items()}
BASES |= {name: make(0.05, 1.0, jax.random.key(0)) for name, make in SAMPLERS.items()}
UPDATES = BASES | {f"{name} adam": make(BASES["adam"]) for name, make in SCHEMES.items()}
UPDATES |= {f"{name} sgdm": SCHEMES[name](BASES["sgdm"]) for name in SCHEMES if "geodesic_" in name}


@jax.jit
@jax.vmap
@jax.value_and_grad
def objective(latents):
    """L-BFGS gets on with it so steadily that it remembers as many pairs as it can."""

    def bowl(x):
        return jnp.sum(jnp.geomspace(1, 100, x.shape[-1]) * (x - 1) ** 2) / 2

    return sum(map(bowl, jax.tree.leaves(latents)))


@pytest.fixture(scope="module")
def float32_draws():
    """In float64 the same random numbers as in float32. No later file finds traces of that."""
    draw = partial(optax.tree.random_like, dtype="float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optax.tree, "random_like", draw)
        patch.setattr(jax.random, "uniform", partial(jax.random.uniform, dtype="float32"))
        yield
    jax.clear_caches()


@pytest.mark.usefixtures("float32_draws")
@pytest.mark.parametrize("name", UPDATES)
def test_an_update(name):
    optimizer = optax.with_extra_args_support(UPDATES[name])

    def update(gradient, state, latents, value):
        updates, state = optimizer.update(gradient, state, latents, value=value)
        return optax.apply_updates(latents, updates), state

    step, latents = mapped(update), LATENTS
    with lightly():
        state = mapped(optimizer.init)(latents)
    for _ in range(HISTORY):
        value, gradient = objective(latents)
        latents, state = step(gradient, state, latents, value)
    if name == "lbfgs":
        assert np.asarray(state.steps["style"]).any(axis=(2, 3)).all()
    value, gradient = objective(latents)
    check(update, gradient, state, latents, value)


# --- Everything else: the geometry, losses, operators and generators, with their gradients. ---


def test_the_geometry():
    def functions(x, v):
        y = sphere.retract(x, v)
        tangent = sphere.tangent(x, v)
        moved = sphere.exp(x, tangent), sphere.transport(x, y, tangent)
        return y, tangent, moved, sphere.log(x, y), sphere.distance(x, y)

    check(functions, random(18, 512), random(18, 512, seed=1))


@pytest.mark.parametrize("loss", [l2, l1])
def test_a_loss_of_pixels(loss):
    check(jax.value_and_grad(loss), random(32, 32, 3), random(32, 32, 3, seed=1))


def test_geocross():
    check(jax.value_and_grad(geocross), random(18, 512))


def test_the_weighted_sum():
    loss = jax.value_and_grad(Loss(l1=1.0), (0, 2))
    check(loss, random(8, 8, 3), random(8, 8, 3, seed=1), random(21, 16))


@pytest.mark.parametrize("operator", ALL_OPERATORS.values(), ids=ALL_OPERATORS)
def test_an_operator(operator):
    small = random(32 // operator.factor, 24 // operator.factor, 3, seed=1)
    check(lambda x, y: (operator.apply(x), operator.adjoint(y)), random(32, 24, 3), small)


SLOW_NETWORKS = [pytest.param(n, marks=pytest.mark.slow) for n in (StyleGAN, StyleGAN3)]


@pytest.mark.parametrize("network", [StyleGAN2, *SLOW_NETWORKS])
def test_a_generator(network):
    network = network(8, (8, 8), latent_size=16, mapping_layers=1, **OPTIONS.get(network, {}))
    noise = [random(*shape, seed=i) for i, shape in enumerate(network.noise_shapes)]
    one = jax.tree.map(lambda x: x[:1], noise)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 16)), one)
    rng = np.random.default_rng(0)
    # Scalars, in StyleGAN 3, are magnitudes.
    weights = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    weights = jax.tree.map(lambda x: jnp.asarray(x if x.ndim else np.abs(x)), weights)

    def gradient(styles, noise, cotangent):
        def image(styles):
            params = jax.tree.map(lambda x: x.astype(styles.dtype), weights)
            some = styles[None], [x[None] for x in noise]
            return network.apply(params, *some, method="synthesis")[0]

        result, pull = jax.vjp(image, styles)
        return result, pull(cotangent)

    check(gradient, random(network.num_layers, 16), noise, random(8, 8, 3, seed=9))


# --- Whole searches. ---


def check_alike(found):
    """`found`: for each number of slots, whether restarts have converged, and their steps."""
    converged, steps = zip(*found, strict=True)
    assert np.all(converged)
    evaluations = np.mean(steps, axis=1)
    assert max(evaluations) <= 1.1 * min(evaluations)


def test_as_many_restarts_converge_with_any_number_of_slots():
    init = jax.jit(jax.vmap(LINEAR.init))

    def start(numbers):
        return TARGETS[numbers % 5], init(*take(STARTS, (numbers + numbers // 5) % 5))

    def search(slots):
        chunks = stream(LINEAR, MATRIX, start, 10, 100, slots=slots, chunk=5, stop_at_eps=True)
        ended = [take(now.state, now.done) for now in chunks]
        best = np.concatenate([state.best.l2 for state in ended])
        return best <= LINEAR.eps, np.concatenate([state.step for state in ended])

    check_alike(map(search, SLOTS))


def save_examples(folder):
    """Pictures of images that the linear generator makes."""
    generator, params = linear()
    for seed in range(3):
        image = generator.synthesize(params, *generator.sample(jax.random.key(seed)))
        save_image(folder / f"{seed}.png", bicubic(8).apply(image))


SLOW_BUNDLED = [pytest.param(n, marks=pytest.mark.slow) for n in ("decoder64", "tissue64")]


@pytest.mark.parametrize("name", ["linear", *SLOW_BUNDLED])
def test_the_command(run, tmp_path, name):
    flags = ["--recipe=fast", "--steps=100", "--restarts=2"]
    if name == "linear":
        name = "experiment_helpers:linear"
        save_examples(tmp_path)
        # L-BFGS takes long to compile, and any image of this generator meets the usual eps.
        flags += [str(tmp_path), "--opt_name=adam", "--loss_str=100*L2", "--eps=1e-4"]
    else:
        flags += [str(checkpoint.find(name) / "examples")]

    def search(slots):
        output = run(*flags, f"--batch_size={slots}", generator=name, output=str(slots))
        rows = read_rows(output)
        converged = [row["status"] == "converged" for row in rows]
        return converged, [int(row["steps"]) for row in rows]

    check_alike(map(search, SLOTS))
