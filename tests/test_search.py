"""The search: best iterates, independent restarts, slots, and the program that is compiled."""

import functools
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import relative_error
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.sharding import Mesh

from pulse_jax import (
    SCHEMES,
    Generator,
    Loss,
    build,
    operators,
    run,
    status,
    stream,
    style_generator,
)
from pulse_jax.generators.stylegan import StyleGAN
from pulse_jax.generators.stylegan2 import StyleGAN2
from pulse_jax.search import STATUS, advance, fitting_slots
from pulse_jax.static import Static

NAN, INF = np.nan, np.inf
PROGRAMS = ClosedJaxpr, Jaxpr


def take(tree, rows):
    """Some rows, or one, of the leaves."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], tree)


def same_bytes(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


# --- A linear generator: (8, 8, 3) images from two styles and a frozen noise map. ---


def linear_generator(traces=None):
    """`params` is the matrix; `traces`, a list, grows when an image is traced."""

    def sample(key):
        style_key, noise_key = jax.random.split(key)
        noise = 0.01 * jax.random.normal(noise_key, (1, 8, 8))
        return {"style": jax.random.normal(style_key, (2, 16))}, {"noise": noise}

    def synthesize(params, latents, frozen):
        if traces is not None:
            traces.append(None)
        image = jnp.einsum("ld,ldhwc->hwc", latents["style"], params)
        return 0.5 + image + frozen["noise"][0, :, :, None]

    return Generator(8, sample, synthesize, lambda params, latents: latents["style"])


GENERATOR, AREA = linear_generator(), operators.area(4)
MATRIX = 0.1 * jax.random.normal(jax.random.key(0), (2, 16, 8, 8, 3))
LINEAR = build(GENERATOR, AREA, Loss(), SCHEMES["rescale"](optax.adam(0.1)))
SAMPLES = jax.vmap(GENERATOR.sample)(jax.random.split(jax.random.key(1), 10))
STARTS, FOUND = take(SAMPLES, slice(5)), take(SAMPLES, slice(5, None))
IMAGES = jax.vmap(GENERATOR.synthesize, (None, 0, 0))(MATRIX, *FOUND)
TARGETS = np.asarray(jax.vmap(AREA)(IMAGES))  # (5, 2, 2, 3), all of which can be met


def start(restarts, search=LINEAR):
    """The states of so many restarts, at most five."""
    return take(jax.jit(jax.vmap(search.init))(*STARTS), slice(restarts))


# --- Small random StyleGANs. ---

every_network = pytest.mark.parametrize("network", [StyleGAN, StyleGAN2])
TARGET = jnp.full((8, 8, 3), 0.4)


@functools.cache
def style_search(network):
    network = network(16, (8, 8, 4), latent_size=8, mapping_layers=2)
    noise = [jnp.zeros((1, *shape)) for shape in network.noise_shapes]
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8)), noise)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    params["latent_fit"] = {"mean": jnp.zeros(8), "std": jnp.ones(8)}
    generator = style_generator(network)
    search = build(generator, operators.bicubic(2), Loss(), SCHEMES["rescale"](optax.adam(0.1)))
    keys = jax.random.split(jax.random.key(1), 4)
    latents, frozen = jax.vmap(generator.sample)(keys)
    state = jax.jit(jax.vmap(search.init))(latents, frozen)
    return SimpleNamespace(generator=generator, params=params, search=search, state=state)


@every_network
def test_the_whole_flow(network):
    s = style_search(network)
    state, info = run(s.search, s.params, TARGET, s.state, steps=10)
    assert info.l2.shape == info.loss.shape == info.grad_norm.shape == (4, 10)
    assert (state.step == 10).all()

    result = state.best
    assert (result.l2 < info.l2[:, 0]).all()
    np.testing.assert_array_equal(result.l2, info.l2.min(1))  # none has met eps
    np.testing.assert_array_equal(result.step, info.l2.argmin(1))
    synthesize = jax.jit(jax.vmap(s.generator.synthesize, (None, 0, 0)))
    lrs = jax.vmap(operators.bicubic(2))(synthesize(s.params, result.latents, state.frozen))
    assert relative_error(jnp.mean((lrs - TARGET) ** 2, (1, 2, 3)), result.l2) <= 1e-5


def test_a_restart_that_is_not_finite_leaves_the_others_alone():
    s = style_search(StyleGAN2)
    broken = s.state.latents | {"style": s.state.latents["style"].at[2, 0, 0].set(NAN)}
    expected = run(s.search, s.params, TARGET, s.state, steps=10)
    actual = run(s.search, s.params, TARGET, s.state._replace(latents=broken), steps=10)
    assert same_bytes(take(actual, [0, 1, 3]), take(expected, [0, 1, 3]))
    assert np.isnan(actual[1].l2[2]).all()
    assert status(actual[0].best.l2, s.search.eps).tolist() == [1, 1, 2, 1]


# --- Which iterate is the best. ---

# (l2 at each step, loss at each step, best step, its status), with eps = 1.
SCRIPTS = {
    "lowest l2 as long as none meets eps": ([3, 2, 2.5], [1, 9, 0], 1, "missed eps"),
    "lowest loss among those that meet it": ([3, 0.9, 0.5, 0.8], [0, 5, 4, 3], 3, "converged"),
    "lower loss outside eps": ([0.9, 2, 0.8], [5, 0, 6], 0, "converged"),
    "higher loss once eps is met": ([1.5, 0.9], [1, 5], 1, "converged"),
    "eps itself meets it": ([0.5, 1, 2], [2, 1, 0], 1, "converged"),
    "the first of equals within eps": ([0.5, 0.4], [1, 1], 0, "converged"),
    "the first of equals outside eps": ([2, 2], [1, 0], 0, "missed eps"),
    "nan first": ([NAN, 2, NAN, 3], [NAN, 0, NAN, 0], 1, "missed eps"),
    "nan last": ([0.5, NAN], [1, NAN], 0, "converged"),
    "inf first": ([INF, 2], [INF, 0], 1, "missed eps"),
    "a loss of nan": ([2, 0.5, 3], [1, NAN, 0], 0, "missed eps"),
    "a loss of -inf": ([0.5, 0.4], [1, -INF], 0, "converged"),
    "nothing finite": ([NAN, INF], [NAN, INF], 0, "not finite"),
}


class ScriptedLoss:
    eps, needs_styles = 1.0, True

    def __call__(self, lr, target, styles):
        return styles


def test_the_best_iterate():
    """Each restart reads its l2 and loss from a script in its latents, next to the time.

    What isn't finite is there as a number, since latents that aren't would end the restart.
    """
    as_number = {"nan": 1e9, "posinf": 2e9, "neginf": -2e9}

    def now(latents):
        x = latents["script"][:, latents["time"][0, 0].astype(int)]
        return jnp.where(x == 1e9, NAN, jnp.where(jnp.abs(x) == 2e9, x * INF, x))

    def tick(updates, state, params=None):
        return jax.tree.map(jnp.zeros_like, updates) | {"time": jnp.ones((1, 1))}, state

    generator = Generator(
        1,
        sample=None,
        synthesize=lambda params, latents, frozen: jnp.sqrt(now(latents)[0]).reshape(1, 1, 1),
        styles=lambda params, latents: now(latents)[1],
    )
    clock = optax.GradientTransformation(lambda params: optax.EmptyState(), tick)
    search = build(generator, lambda image: image, ScriptedLoss(), clock)

    steps = max(len(l2s) for l2s, *_ in SCRIPTS.values())
    scripts = np.full((len(SCRIPTS), 2, steps), NAN)
    for row, (l2s, losses, *_) in zip(scripts, SCRIPTS.values(), strict=True):
        row[:, : len(l2s)] = l2s, losses
    latents = {
        "script": jnp.asarray(np.nan_to_num(scripts, **as_number), jnp.float32),
        "time": jnp.zeros((len(SCRIPTS), 1, 1)),
    }
    state, info = run(
        search, None, jnp.zeros((1, 1, 1)), jax.vmap(search.init)(latents, None), steps
    )
    np.testing.assert_array_equal(info.loss, scripts[:, 1])
    result = state.best
    for i, (name, (l2s, losses, step, outcome)) in enumerate(SCRIPTS.items()):
        assert (result.step[i], result.latents["time"][i, 0, 0]) == (step, step), name
        assert STATUS[status(result.l2[i], search.eps)] == outcome, name
        expected = (INF, INF) if outcome == "not finite" else (l2s[step], losses[step])
        np.testing.assert_allclose((result.l2[i], result.loss[i]), expected, 1e-6, err_msg=name)


# --- Many restarts: targets, slots, compilation, chunks. ---


def test_each_restart_may_have_its_own_target():
    targets, state = TARGETS[:2], start(2)
    together = run(LINEAR, MATRIX, targets, state, steps=10)
    for i, target in enumerate(targets):
        alone = run(LINEAR, MATRIX, target, state, steps=10)
        assert same_bytes(take(together, i), take(alone, i))
        assert not same_bytes(take(together, 1 - i), take(alone, 1 - i))


def test_one_compilation_serves_all_targets_weights_and_refills():
    traces = []
    search = build(linear_generator(traces), AREA, Loss(), optax.sgd(0.1))
    run(search, MATRIX, TARGETS[0], start(2, search), steps=20, slots=2)
    first = len(traces)
    run(search, 2 * MATRIX, TARGETS, start(5, search), steps=40, slots=2, stop_at_eps=True)
    assert len(traces) == first > 0


def test_what_a_stream_is_given_stays_as_it_is():
    """`init` without `jit` returns one array as several leaves."""
    samples = jax.tree.map(jnp.asarray, take(STARTS, slice(2)))
    state = jax.vmap(LINEAR.init)(*samples)
    copy = take(state, slice(None))
    targets = jnp.asarray(TARGETS[:2])
    for _ in stream(LINEAR, MATRIX, lambda numbers: (targets, state), 2, 10, slots=2):
        pass
    assert same_bytes(state, copy) and same_bytes(targets, TARGETS[:2])


@pytest.mark.parametrize("restarts", [1, 5])
def test_what_happens_in_a_slot_depends_on_what_is_in_it_and_their_number(restarts):
    targets, state = TARGETS[:restarts], start(restarts)
    together = run(LINEAR, MATRIX, targets, state, steps=60, slots=2, stop_at_eps=True)
    for row in range(restarts):
        twice = np.array([row, row])
        alone = run(LINEAR, MATRIX, targets[twice], take(state, twice), steps=60, stop_at_eps=True)
        assert same_bytes(take(together, row), take(alone, 0))
    assert len(set(together[1].loss[:, 0].tolist())) == restarts


def test_restarts_past_the_last_step_stay_as_they_are():
    state, _ = run(LINEAR, MATRIX, TARGETS[0], start(2), 10)
    again, info = run(LINEAR, MATRIX, TARGETS[0], state, 8)
    assert same_bytes(again, state) and np.isnan(info.l2).all()


@pytest.mark.parametrize(("steps", "chunk"), [(7, 10), (14, 5), (13, 1)])
def test_chunks_are_steps_one_after_another(steps, chunk):
    target, expected, infos = TARGETS[0], start(2), []
    state, info = run(LINEAR, MATRIX, target, expected, steps, chunk=chunk)
    step = jax.jit(jax.vmap(LINEAR.step, (None, None, 0)))
    for _ in range(steps):
        expected, measured = step(MATRIX, target, expected)
        infos.append(measured)
    expected_info = jax.tree.map(lambda *leaves: np.stack(leaves, 1), *infos)
    assert (state.step == steps).all()
    pairs = zip(
        jax.tree.leaves((state.latents, state.best.latents, info)),
        jax.tree.leaves((expected.latents, expected.best.latents, expected_info)),
        strict=True,
    )
    assert all(relative_error(a, b) <= 1e-5 for a, b in pairs)


def test_a_search_goes_on_from_its_state():
    state, _ = run(LINEAR, MATRIX, TARGETS, start(5), 12)
    state, info = run(LINEAR, MATRIX, TARGETS, state, 20)
    whole, expected = run(LINEAR, MATRIX, TARGETS, start(5), 20)
    assert same_bytes((state, info.l2[:, 12:]), (whole, expected.l2[:, 12:]))
    assert np.isnan(info.l2[:, :12]).all()


# Prints how often a search's program has been compiled, after builds of equal and of other parts.
# In a process of its own, since what checks types in tests makes all functions anew.
ALIKE = """
import sys
import jax, numpy as np, optax
import pulse_jax
from pulse_jax.operators import area, blur, compose, mask
from pulse_jax.search import advance

holes = np.random.default_rng(0).uniform(size=(2, 8, 8)) < 0.3

def langevin(rate):
    return pulse_jax.SAMPLERS["langevin"](rate, 0.1, jax.random.key(3))

def search(rate=0.1, base=optax.adam, share=0.5, hole=0):
    generator, params = pulse_jax.load(sys.argv[1])
    operator = compose(mask(share), mask(holes[hole]), blur(0.5), area(4))
    optimizer = base(pulse_jax.SCHEDULES["linear1cycledrop"](rate, 20))
    optimizer = pulse_jax.SCHEMES["geodesic"](optimizer)
    search = pulse_jax.build(generator, operator, pulse_jax.Loss(), optimizer)
    state = jax.vmap(search.init)(*jax.vmap(generator.sample)(jax.random.split(jax.random.key(0))))
    _, info = pulse_jax.run(search, params, np.ones((2, 2, 3), np.float32), state, 5)
    print(advance._cache_size(), f"{info.loss[0, 0]:.3f}", end=" ")

for change in {}, {}, {"hole": 1}, {"rate": 0.2}, {"share": 0.25}, {"base": langevin}:
    search(**change)
    search(**change)
"""


def test_searches_built_alike_share_what_is_compiled(generator):
    """Also with other masks, and samplers with equal keys; not with another learning rate."""
    command = [sys.executable, "-c", ALIKE, generator]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert found[::2] == [*"111111223344"]
    losses = found[1::2]
    assert losses[::2] == losses[1::2]
    assert losses[0] == losses[2] != losses[4]  # of the other mask


def test_a_function_equals_those_made_alike():
    def make(value, other=None):
        def function(x):
            return helper(x) + len(other or ())

        def helper(x):
            return x * value

        return Static(function)

    alike = [(2.0,), (np.arange(3),), (jax.random.key(0),), ((1, make(1)),), (2.0, (1, "a"))]
    for arguments in alike:
        assert make(*arguments) == make(*arguments)
        assert hash(make(*arguments)) == hash(make(*arguments))
    made = [make(*x) for x in (*alike, (2,), (True,), (np.arange(3.0),), (jax.random.key(1),))]
    assert all((a == b) == (a is b) for a in made for b in made)
    # What may change in between equals itself alone, and so do functions that can be redefined.
    changing = [1]
    assert make(1, changing) == make(1, changing) != make(1, [1])
    namespace = {"__name__": "__main__"}
    exec("def make(x):\n    return lambda: x", namespace)
    assert Static(namespace["make"](1)) != Static(namespace["make"](1))


def test_a_restart_whose_latents_are_not_finite_ends_at_once():
    """One from its start, one after three steps, whose best is kept."""

    def update(updates, state, params=None):
        broken = jnp.where(params["style"][0, 0] > 50, NAN, 0.0)
        moves = jax.tree.map(lambda u: broken - 0.01 * u, updates)
        moves["style"] = moves["style"].at[0, 0].add(jnp.where(params["style"][0, 0] > 30, 9, 0))
        return moves, state

    breaking = optax.GradientTransformation(lambda params: (), update)
    search = build(GENERATOR, AREA, Loss(), breaking)
    state = start(4, search)
    styles = state.latents["style"].copy()
    styles[1, 1, 1] = NAN
    styles[2, 0, 0] = 35.0  # 44, 53 and then nan
    provided = []

    def provide(numbers):
        provided.append(numbers.tolist())
        return TARGETS[numbers], take(state._replace(latents={"style": styles}), numbers)

    ended = {}
    for slots in stream(search, MATRIX, provide, 4, 8, slots=2, chunk=1):
        for i in np.flatnonzero(slots.done):
            ended[slots.numbers[i]] = take(slots.state, i)
    assert {number: int(s.step) for number, s in ended.items()} == {1: 0, 2: 3, 3: 8, 0: 8}
    assert provided == [[0, 1], [0, 2], [0, 3]]
    assert STATUS[status(ended[1].best.l2, search.eps)] == "not finite"
    assert np.isfinite(ended[2].best.latents["style"]).all() and np.isfinite(ended[2].best.l2)


def test_each_restart_stops_when_it_has_met_eps():
    targets = TARGETS.copy()
    targets[2] = 100  # out of reach
    _, full = run(LINEAR, MATRIX, targets, start(5), 60, slots=2)
    state, info = run(LINEAR, MATRIX, targets, start(5), 60, slots=2, stop_at_eps=True)

    met = full.l2 <= LINEAR.eps
    steps = np.where(met.any(1), met.argmax(1) + 1, 60)
    assert len(set(steps.tolist())) >= 3
    assert state.step.tolist() == steps.tolist()
    for ours, theirs in zip(info, full, strict=True):
        taken = np.arange(60) < steps[:, None]
        assert same_bytes(ours, np.where(taken, theirs, np.float32(NAN)))
    assert status(state.best.l2, LINEAR.eps).tolist() == [0, 0, 1, 0, 0]


def test_a_free_slot_goes_to_the_next_restart():
    targets = TARGETS.copy()
    targets[0] = 100  # out of reach: it keeps its slot

    def provide(numbers):
        asked.append(numbers.tolist())
        return targets[numbers], take(start(5), numbers)

    asked, seen, steps = [], [], {}
    for slots in stream(LINEAR, MATRIX, provide, 4, 60, slots=2, chunk=1, stop_at_eps=True):
        seen.append(slots.numbers.tolist())
        steps |= {slots.numbers[i]: slots.state.step[i].item() for i in np.flatnonzero(slots.done)}
        assert slots.info.l2.shape == (2, 1)
    assert asked == [[0, 1], [0, 2], [0, 3]]
    assert list(steps) == [1, 2, 3, 0]
    others = steps[1] * [[0, 1]] + steps[2] * [[0, 2]] + steps[3] * [[0, 3]]
    assert seen == others + (60 - len(others)) * [[0, -1]]


def test_slots_are_as_many_as_fit():
    one = TARGETS[0], take(start(1), 0)
    memories = 0, 1e5, 1.5e5, 1e12
    slots = [fitting_slots(LINEAR, MATRIX, *one, 64, memory=memory) for memory in memories]
    assert slots == sorted(slots)
    assert slots[0] == 1 < slots[1] < slots[2] < slots[3] == 64


def test_slots_where_the_system_does_not_tell_its_memory(monkeypatch):
    """As on Windows."""
    monkeypatch.delattr("os.sysconf")
    assert fitting_slots(LINEAR, MATRIX, TARGETS[0], take(start(1), 0), 2) == 2


def test_slots_are_fewer_where_a_program_does_not_compile(monkeypatch):
    """As a TPU's compiler has it."""

    def lower(step, params, targets, *others, **options):
        def compile():
            if len(targets) > 4:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in hbm")
            return advance.lower(step, params, targets, *others, **options).compile()

        return SimpleNamespace(compile=compile)

    one = TARGETS[0], take(start(1), 0)
    monkeypatch.setattr("pulse_jax.search.advance", SimpleNamespace(lower=lower))
    assert fitting_slots(LINEAR, MATRIX, *one, 64, memory=1e12) == 4


# --- What is compiled. ---


def constants(program):
    """Sizes of the arrays inside a program, its inner programs included."""
    yield from map(np.size, getattr(program, "consts", ()))
    for equation in program.eqns:
        yield from (np.size(x.val) for x in equation.invars if isinstance(x, Literal))
        parameters = jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, PROGRAMS))
        for inner in parameters:
            if isinstance(inner, PROGRAMS):
                yield from constants(inner)


def program():
    """A chunk of ten steps, as `stream` compiles it, of (step, params, targets, state)."""
    mesh = Mesh(jax.devices()[:1], "slots")
    return functools.partial(advance, steps=10, goal=-INF, length=10, mesh=mesh)


def test_weights_targets_and_masks_are_arguments():
    s, targets = style_search(StyleGAN2), jnp.stack(4 * [TARGET])
    taps = 33  # of the blur
    arguments = jax.make_jaxpr(program())(s.search.step, s.params, targets, s.state)
    assert max(constants(arguments)) <= taps

    closed_over = jax.make_jaxpr(functools.partial(program(), s.search.step, s.params))
    assert max(constants(closed_over(targets, s.state))) > taps

    operator = operators.parse("blur:4,motion:5:20,grey,area:2,lanczos,mask:0.5")(4)
    operator = operators.compose(operators.mask(np.eye(64, dtype=bool)), operator)
    image = jnp.ones((64, 64, 3))
    gradient = jax.grad(lambda image, degrade: degrade(image).sum())
    assert max(constants(jax.make_jaxpr(gradient)(image, operator.apply))) <= taps
    assert max(constants(jax.make_jaxpr(gradient, static_argnums=1)(image, operator))) > taps


@pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="reads the program of XLA's CPU compiler"
)
@every_network
def test_convolutions_are_in_canonical_form(network):
    """Others are slow in a loop on a CPU. And no gradient of the weights is left, or its loop."""
    s = style_search(network)
    targets = jnp.stack(4 * [TARGET])
    lowered = jax.jit(program()).lower(s.search.step, s.params, targets, s.state)
    hlo = lowered.compile().as_text()
    labels = re.findall(r" convolution\(.*dim_labels=([^, ]+)", hlo)
    # One at side 4 and two each at 8 and 16, forward and backward; 1×1 ones become products.
    assert labels == 10 * ["b01f_01io->b01f"]
    assert hlo.count(" while(") == 1


# --- Optimisers and errors. ---


def test_the_optimizer_is_passed_the_objective():
    def update(updates, state, params, *, value, grad, value_fn):
        return updates, (value, grad, value_fn(params), value_fn({"style": params["style"] + 1}))

    recorder = optax.GradientTransformationExtraArgs(lambda params: None, update)
    search = build(GENERATOR, AREA, Loss(), recorder)
    step, initial = jax.jit(search.step), take(start(1, search), 0)
    state, info = step(MATRIX, TARGETS[0], initial)
    value, grad, again, elsewhere = state.optimizer
    assert value == info.loss
    assert relative_error(again, value) <= 1e-6
    assert relative_error(optax.tree.norm(grad), info.grad_norm) <= 1e-6

    moved = initial._replace(latents={"style": initial.latents["style"] + 1})
    assert relative_error(elsewhere, step(MATRIX, TARGETS[0], moved)[1].loss) <= 1e-6


def test_an_optimizer_with_a_line_search():
    search = build(GENERATOR, AREA, Loss(), SCHEMES["rescale"](optax.lbfgs()))
    initial = start(3, search)
    state, info = run(search, MATRIX, TARGETS[:3], initial, steps=10)
    assert (state.best.l2 < 0.05 * info.l2[:, 0]).all()
    radii = [np.linalg.norm(s.latents["style"], axis=-1) for s in (state, initial)]
    assert relative_error(*radii) <= 1e-5


def test_a_loss_of_styles_needs_a_generator_with_styles():
    generator = GENERATOR._replace(styles=None)
    with pytest.raises(ValueError, match="geocross"):
        build(generator, AREA, Loss(geocross=0.05), optax.sgd(0.1))
    search = build(generator, AREA, Loss(geocross=0), optax.sgd(0.1))
    _, info = run(search, MATRIX, TARGETS[:2], start(2, search), steps=1)
    np.testing.assert_allclose(info.loss, 100 * info.l2, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"slots": 0}, "slots must be at least 1, got 0"),
        ({"chunk": -1}, "chunk must be at least 1, got -1"),
        ({"state": start(0)}, "restarts must be at least 1, got 0"),
        ({"state": take(start(1), 0)}, r"many restarts, got steps \(\)"),
        ({"target": jnp.zeros((4, 4, 3))}, r"\(4, 4, 3\).*\(2, 2, 3\)"),
        ({"target": jnp.zeros((5, 2, 2, 3))}, r"2 images, got \(5, 2, 2, 3\)"),
        ({"target": jnp.zeros((1, 2, 2, 2, 3))}, r"2 images, got \(1, 2, 2, 2, 3\)"),
    ],
)
def test_bad_arguments(unchecked, arguments, told):
    good = {"target": jnp.zeros((2, 2, 3)), "state": start(2), "steps": 10}
    with pytest.raises(ValueError, match=told):
        run(LINEAR, MATRIX, **good | arguments)
