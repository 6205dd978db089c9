"""Many restarts: targets, slots, chunks, progress, and the program that is compiled."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import relative_error
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.sharding import Mesh
from search_helpers import (
    AREA,
    GENERATOR,
    INF,
    LINEAR,
    MATRIX,
    NAN,
    STARTS,
    TARGET,
    TARGETS,
    every_network,
    linear_generator,
    same_bytes,
    start,
    style_search,
    take,
)

from pulse_jax import Loss, build, operators, run, status, stream
from pulse_jax.driver import advance
from pulse_jax.generators.stylegan2 import StyleGAN2
from pulse_jax.progress import Progress
from pulse_jax.search import STATUS

PROGRAMS = ClosedJaxpr, Jaxpr


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


@pytest.mark.optimised
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


# --- Progress. ---


@pytest.mark.parametrize("stop_at_eps", [False, True])
def test_progress_is_told_before_the_first_chunk_and_after_each(stop_at_eps, monkeypatch):
    monkeypatch.setattr("pulse_jax.progress.MEASURED", 0.0)  # a faster machine has nothing to tell
    told, options = [], {"slots": 2, "stop_at_eps": stop_at_eps}
    state, _ = run(LINEAR, MATRIX, TARGETS, start(5), 60, progress=told.append, **options)
    assert told[0] == Progress(restarts=5, ended=0, made=0, left=300, seconds=None)
    made = [now.made for now in told]
    assert made == sorted(set(made)) and made[1] <= 2 * 5
    assert made[-1] == state.step.sum()
    assert [now.ended for now in told] == sorted(now.ended for now in told)
    assert (told[-1].ended, told[-1].left) == (5, 0)
    if not stop_at_eps:
        assert all(now.made + now.left == 300 for now in told)
        assert told[-2].seconds > 0

    # Before each chunk is yielded; steps that were made before don't count.
    again = []
    for slots in stream(
        LINEAR,
        MATRIX,
        lambda numbers: (TARGETS[numbers], take(state, numbers)),
        5,
        70,
        slots=5,
        chunk=4,
        progress=again.append,
    ):
        assert again[-1].ended == sum(slots.done) or len(again) > 2
    assert again[-1].made == 350 - state.step.sum()


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


# --- Errors. ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"slots": 0}, "slots must be at least 1, got 0"),
        ({"chunk": -1}, "chunk must be at least 1, got -1"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"slots": "2"}, "slots must be a whole number, got '2'"),
        ({"target": np.zeros((2, 2, 3), np.uint8)}, r"floats in \[0, 1\], not of uint8"),
        ({"state": start(0)}, "restarts must be at least 1, got 0"),
        ({"search": "LINEAR"}, "search must be a Search, got 'LINEAR'"),
        ({"state": (0, 0)}, r"state must be of the search, got \(0, 0\)"),
        ({"state": take(start(1), 0)}, r"many restarts, got steps \(\)"),
        ({"target": jnp.zeros((4, 4, 3))}, r"\(4, 4, 3\).*\(2, 2, 3\)"),
        ({"target": jnp.zeros((5, 2, 2, 3))}, r"2 images, got \(5, 2, 2, 3\)"),
        ({"target": jnp.zeros((1, 2, 2, 2, 3))}, r"2 images, got \(1, 2, 2, 2, 3\)"),
    ],
)
def test_bad_arguments(unchecked, arguments, told):
    good = {"search": LINEAR, "params": MATRIX, "steps": 10}
    good |= {"target": jnp.zeros((2, 2, 3)), "state": start(2)}
    with pytest.raises(ValueError, match=told):
        run(**good | arguments)
