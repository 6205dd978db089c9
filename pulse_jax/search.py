"""The search of PULSE (Menon et al., CVPR 2020, arXiv 2003.03808).

For a low-resolution picture y, find latents z on their spheres whose image downscales to it:
    minimise loss(D(G(z)), y), step by step, from many starting points z.

Everything up to `run` is about one restart: one starting point for one target. `run` maps it over
many.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pulse_jax.losses import l2
from pulse_jax.operators import Operator
from pulse_jax.schemes import SphereOptimizer, none
from pulse_jax.static import argument

STATUS = ("converged", "missed eps", "not finite")


class Best(NamedTuple):
    """An iterate of a restart and what was measured on it."""

    latents: Any
    l2: jax.Array  # () mean squared error of the downscaled image, not clamped at eps
    loss: jax.Array  # ()
    step: jax.Array  # () updates made before this iterate


class SearchState(NamedTuple):
    """What the next step of one restart needs."""

    latents: Any  # on their spheres
    frozen: Any  # Gaussian variables that stay as they were drawn
    optimizer: optax.OptState
    step: jax.Array  # () updates made so far
    best: Best


class SearchInfo(NamedTuple):
    """What one step measured on the iterate that it started from."""

    l2: jax.Array
    loss: jax.Array
    grad_norm: jax.Array


class Search(NamedTuple):
    """A search for one restart, as two pure functions.

    `init(latents, frozen) → SearchState`: at a sample of the generator.
    `step(params, target, state) → (SearchState, SearchInfo)`: one update, `target` (h, w, 3) in
        [0, 1]. For `jit` it is a pytree of the operator's arrays, as an argument; searches that are
        built alike, of equal parts, share what is compiled.
    `eps`: the l2 at which a restart has converged.
    """

    init: Callable[[Any, Any], SearchState]
    step: Callable[[Any, jax.Array, SearchState], tuple[SearchState, SearchInfo]]
    eps: float


def build(generator, operator, loss, optimizer):
    """A `Search` from a `Generator`, an operator (H, W, 3) → (h, w, 3), a `Loss` and an optimiser.

    The optimiser, from optax, must keep the latents where they belong: see `SCHEMES`. Without a
    scheme it counts as one with `none`. It is passed `value`, `grad` and `value_fn` with every
    update.

    The best iterate is the one of lowest loss among those with l2 ≤ eps, or of lowest l2 as long as
    there is none. This deviates from the reference, which returns the last image, and compares
    sums over its batch. An iterate is measured by the step that leaves it: the last one isn't.

    Raises ValueError if the loss needs style vectors and the generator has none, or for a sampler
    that has no bounds without a scheme.
    """
    if loss.needs_styles and generator.styles is None:
        raise ValueError("the loss compares style vectors (geocross), and this generator has none")
    if not isinstance(optimizer, SphereOptimizer):
        optimizer = none(optimizer)
    synthesize, styles_of, update = generator.synthesize, generator.styles, optimizer.update

    def init(latents, frozen):
        nothing = jnp.asarray(jnp.inf, float)
        best = Best(latents, nothing, nothing, jnp.zeros((), int))
        return SearchState(latents, frozen, optimizer.init(latents), jnp.zeros((), int), best)

    def step(degrade, params, target, state):
        def objective(latents):
            image = synthesize(params, latents, state.frozen)  # (H, W, 3)
            lr = degrade(image)  # (h, w, 3)
            styles = styles_of(params, latents) if loss.needs_styles else None
            return loss(lr, target, styles), l2(lr, target)

        (value, error), grad = jax.value_and_grad(objective, has_aux=True)(state.latents)
        seen = Best(state.latents, error, value, state.step)
        best = _select(_is_better(seen, state.best, loss.eps), seen, state.best)
        updates, optimizer_state = update(
            grad,
            state.optimizer,
            state.latents,
            value=value,
            grad=grad,
            value_fn=lambda latents: objective(latents)[0],
        )
        latents = optax.apply_updates(state.latents, updates)
        info = SearchInfo(error, value, optax.tree.norm(grad))
        return SearchState(latents, state.frozen, optimizer_state, state.step + 1, best), info

    degrade = argument(operator.apply if isinstance(operator, Operator) else operator)
    return Search(init, argument(step, degrade), loss.eps)


def _is_better(a, b, eps):
    """Whether `Best` a is to be kept rather than b; never if it isn't finite."""
    finite = jnp.isfinite(a.l2) & jnp.isfinite(a.loss)
    both_met = (a.l2 <= eps) & (b.l2 <= eps)
    return finite & jnp.where(both_met, a.loss < b.loss, a.l2 < b.l2)


def _select(condition, a, b):
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def status(l2, eps):
    """Index into `STATUS`: 0 if l2 ≤ eps, 1 if it misses eps, 2 if it isn't finite."""
    return jnp.where(jnp.isfinite(l2), jnp.where(l2 <= eps, 0, 1), 2)


class Slots(NamedTuple):
    """What `stream` yields after each chunk of steps; axis 0 of everything counts the slots."""

    numbers: np.ndarray  # of the restart in each slot, -1 in an empty one
    done: np.ndarray  # whether that restart has ended with this chunk
    state: SearchState  # to be read before the next chunk, which takes its memory
    info: SearchInfo  # (slots, chunk), NaN for steps not taken


def stream(
    search, params, start, restarts, steps, *, slots, chunk=5, stop_at_eps=False, devices=None
):
    """Search many restarts, `slots` of them at a time on each device; yields `Slots`.

    `start(numbers) → (targets, states)` provides restarts by number, from 0 to `restarts` − 1: the
    targets (n, h, w, 3) in [0, 1] and the states, as from `jax.vmap(search.init)`. It is asked for
    as many as there are slots, each time that some have become free.

    A restart ends when its state has made `steps` steps, when its latents are no longer finite or,
    with `stop_at_eps`, with the step that finds an l2 of at most `search.eps`. Its slot then goes
    to the next one, so that none waits for the slowest. The host looks every `chunk` steps which
    have ended; these have waited unchanged.

    Slots are spread over `devices`, by default all local ones. One compilation serves all restarts,
    targets and weights of the same shapes. What happens in a slot depends, to the byte, on what is
    in it and on `slots` alone; on a CPU, where larger convolutions are added up as its threads are
    dealt out, also on the number of devices.

    Raises ValueError for fewer than one restart, step, slot or step in a chunk.
    """
    counts = {"restarts": restarts, "steps": steps, "slots": slots, "chunk": chunk}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    mesh = Mesh(jax.local_devices() if devices is None else devices, "slots")
    step, params = jax.device_put((argument(search.step), params), NamedSharding(mesh, P()))
    split = NamedSharding(mesh, P("slots"))
    goal = search.eps if stop_at_eps else -np.inf

    waiting = iter(range(restarts))
    numbers = np.full(slots * mesh.size, -1)
    content = None
    while True:
        free = numbers < 0
        numbers[free] = [next(waiting, -1) for _ in range(free.sum())]
        fresh = free & (numbers >= 0)
        if (numbers < 0).all():
            return
        if fresh.any():
            # Copied, since `advance` takes the memory of what it is given.
            new = jax.device_put(start(np.maximum(numbers, 0)), split, may_alias=False)
            content = new if content is None else _refill(fresh, new, content)
        targets, state = content
        state, info = advance(step, params, targets, state, steps, goal, length=chunk, mesh=mesh)
        content = targets, state
        done = (numbers >= 0) & ~np.asarray(_are_running(state, steps, goal))
        yield Slots(numbers.copy(), done, state, jax.tree.map(np.asarray, info))
        numbers[done] = -1


def run(
    search, params, target, state, steps, *, slots=None, chunk=5, stop_at_eps=False, devices=None
):
    """`stream` for restarts that are at hand, with the results in their order.

    `state`: of B restarts, from `jax.vmap(search.init)`. `target`: one image (h, w, 3) in [0, 1],
    or one for each restart (B, h, w, 3). At most `slots` restarts are searched at once on each
    device, by default all.

    Returns (state, info) of the B restarts; leaves of info are (B, steps), NaN after an early stop.
    Raises ValueError as `stream` does, and for a target of the wrong shape.
    """
    if state.step.ndim != 1:
        raise ValueError(f"run takes the states of many restarts, got steps {state.step.shape}")
    restarts = state.step.size
    if target.shape[:-3] not in ((), (restarts,)):
        raise ValueError(f"target must be one image or {restarts} images, got {target.shape}")
    targets = jnp.broadcast_to(target, (restarts, *target.shape[-3:]))
    if slots is None:
        slots = -(-restarts // (jax.local_device_count() if devices is None else len(devices)))

    start, info = state, None
    taken = np.array(state.step)
    for now in stream(
        search,
        params,
        lambda numbers: _take((targets, start), numbers),
        restarts,
        steps,
        slots=slots,
        chunk=chunk,
        stop_at_eps=stop_at_eps,
        devices=devices,
    ):
        if info is None:
            info = jax.tree.map(lambda m: np.full((restarts, steps), np.nan, m.dtype), now.info)
        for slot in np.flatnonzero(now.numbers >= 0):
            row = now.numbers[slot]
            count = np.clip(steps - taken[row], 0, chunk)
            for whole, part in zip(info, now.info, strict=True):
                whole[row, taken[row] : taken[row] + count] = part[slot, :count]
            taken[row] = now.state.step[slot]
        if now.done.any():
            rows = np.where(now.done, now.numbers, restarts)  # out of range: dropped
            state = _put(state, now.state, rows)
    return state, info


def fitting_slots(search, params, target, state, most, *, chunk=5, memory=None):
    """How many slots, from 1 to `most`, fit into `memory` bytes on each device.

    `target` and `state`: of one restart, as arrays or shapes. The figure is the compiled program's
    own: of arguments, results and temporaries. `memory` is by default nine tenths of what the
    device has, or half of the machine's for a CPU; 4 GB where the system doesn't tell.
    """
    statistics = jax.local_devices()[0].memory_stats()
    if memory is None and statistics:
        memory = 0.9 * statistics["bytes_limit"]
    elif memory is None:
        try:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
        except (AttributeError, ValueError):  # Windows has no such function
            memory = 4e9
    mesh = Mesh(jax.local_devices(), "slots")
    step, params = jax.device_put((argument(search.step), params), NamedSharding(mesh, P()))
    split = NamedSharding(mesh, P("slots"))
    slots = most
    while slots > 1:
        count = slots * mesh.size

        def several(x, count=count):
            return jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=split)

        shapes = jax.tree.map(several, (target, state))
        lowered = advance.lower(step, params, *shapes, 1, 0.0, length=chunk, mesh=mesh)
        try:
            figures = lowered.compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:  # a TPU's, of what it can't hold
            if not is_out_of_memory(error):
                raise
            slots //= 2
            continue
        needed = figures.temp_size_in_bytes + figures.argument_size_in_bytes
        if needed <= memory:
            break
        slots = max(1, min(slots - 1, int(slots * memory / needed)))
    return slots


def is_out_of_memory(error):
    """Whether an error of XLA's says so: a GPU's by its code, a CPU's in its text."""
    return any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "Out of memory"))


def _is_running(state, steps, goal):
    """Of one restart. One whose latents aren't finite has nowhere to go."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.latents)]
    return (state.step < steps) & (state.best.l2 > goal) & jnp.all(jnp.array(finite))


@functools.partial(jax.jit, static_argnames=("length", "mesh"), donate_argnames="state")
def advance(step, params, targets, state, steps, goal, *, length, mesh):
    """`length` steps in every slot, none where the restart has ended; info is (slots, length).

    Weights and targets are arguments, so that new ones don't recompile. Each device runs the
    program of its own slots. `step`: a search's, as a pytree.
    """

    def one(step, params, target, state):
        def move(state, _):
            running = _is_running(state, steps, goal)
            moved, info = step(params, target, state)
            info = jax.tree.map(lambda x: jnp.where(running, x, jnp.nan), info)
            return _select(running, moved, state), info

        return jax.lax.scan(move, state, length=length)

    return jax.shard_map(
        jax.vmap(one, in_axes=(None, None, 0, 0)),
        mesh=mesh,
        in_specs=(P(), P(), P("slots"), P("slots")),
        out_specs=P("slots"),
        check_vma=False,  # generators needn't know of the mesh
    )(step, params, targets, state)


# Compiled, since one call of each has dozens of leaves.
@jax.jit
def _are_running(state, steps, goal):
    return jax.vmap(_is_running, (0, None, None))(state, steps, goal)


@jax.jit
def _take(tree, rows):
    return jax.tree.map(lambda leaf: leaf[rows], tree)


@jax.jit
def _put(tree, rows, where):
    return jax.tree.map(lambda leaf, row: leaf.at[where].set(row, mode="drop"), tree, rows)


@jax.jit
def _refill(fresh, new, old):
    return jax.vmap(_select)(fresh, new, old)
