"""Many restarts of a search, through slots on all devices: `run` and `stream`."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Integer

from pulse_jax.progress import Course, Progress
from pulse_jax.search import Search, SearchInfo, SearchState
from pulse_jax.static import argument
from pulse_jax.types import AnyArray, Params, check_kind

Start: TypeAlias = Callable[
    [Integer[np.ndarray, "slots"]], tuple[Float[AnyArray, "slots h w c"], SearchState]
]


class Slots(NamedTuple):
    """What `stream` yields after each chunk of steps. Axis 0 of everything counts the slots."""

    numbers: Integer[np.ndarray, "slots"]  # of the restart in each slot, -1 in an empty one
    done: Bool[np.ndarray, "slots"]  # restarts that have ended with this chunk
    state: SearchState  # to be read before the next chunk, which takes its memory
    info: SearchInfo  # (slots, chunk), NaN for steps not taken


def stream(
    search: Search,
    params: Params,
    start: Start,
    restarts: int,
    steps: int,
    *,
    slots: int,
    chunk: int = 5,
    stop_at_eps: bool = False,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[Progress], None] | None = None,
    program: Callable[..., tuple[SearchState, SearchInfo]] | None = None,
) -> Iterator[Slots]:
    """Search many restarts, `slots` of them at a time on each device, and yield `Slots`.

    `start(numbers) → (targets, states)` provides restarts by number, from 0 to `restarts` − 1: the
    targets in [0, 1] and the states, as from `jax.vmap(search.init)`. It is called with as many
    numbers as there are slots, each time that some have become free.

    A restart ends when its state has made `steps` steps, when its latents are no longer finite or,
    with `stop_at_eps`, with the step that finds an l2 of at most `search.eps`. Its slot then goes
    to the next one, so that none waits for the slowest. The host looks every `chunk` steps which
    have ended, and until then these wait unchanged. `progress` is called before the first chunk,
    and after each before that is yielded. What it raises ends the search.

    Slots are spread over `devices`, by default all local ones. One compilation serves all restarts,
    targets and weights of the same shapes. What happens in a slot depends, to the byte, on what is
    in it and on `slots` alone. On a CPU it also depends on the number of devices, since the threads
    that there are decide how larger convolutions are added up.

    A CPU's devices are parts of it, as many as `jax.config.update("jax_num_cpu_devices", n)` says
    at a program's start. XLA gives a convolution of few channels no more than one core, so a search
    on as many devices as cores is faster.

    `program` makes the steps of a chunk, in place of `pulse_jax.driver.advance`, as which it is
    called.

    Raises ValueError for fewer than one restart, step, slot or step in a chunk, for a target of
    integers, and for what is no `Search`.
    """
    check_kind(search, Search, "search must be a Search")
    counts = {"restarts": restarts, "steps": steps, "slots": slots, "chunk": chunk}
    for name, count in counts.items():
        if not isinstance(count, int | np.integer):
            raise ValueError(f"{name} must be a whole number, got {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    mesh, replicated, split = placements(devices)
    step, params = jax.device_put((argument(search.step), params), replicated)
    goal = search.eps if stop_at_eps else -np.inf
    course = Course(restarts, restarts * steps, stop_at_eps, slots * mesh.size)
    tell, program = progress or (lambda _: None), program or advance
    tell(course.progress)

    waiting = iter(range(restarts))
    numbers = np.full(slots * mesh.size, -1)
    content = None
    while True:
        free = numbers < 0
        numbers[free] = [next(waiting, -1) for _ in range(free.sum())]
        used = numbers >= 0
        fresh = free & used
        if not used.any():
            return
        if fresh.any():
            targets, new = start(np.maximum(numbers, 0))
            if mesh.devices.flat[0].platform == "cpu":
                # As host's arrays: to split a device's takes a program for each.
                targets, new = jax.device_get((targets, new))
            taken: Any = np.where(used, new.step, steps)
            new = new._replace(step=taken)
            # Copied, since `advance` takes the memory of what it is given.
            given = jax.device_put((targets, new), split, may_alias=False)
            content = given if content is None else _refill(fresh, given, content)
        assert content is not None
        targets, state = content
        before = np.array(state.step)
        state, info = program(step, params, targets, state, steps, goal, length=chunk, mesh=mesh)
        content = targets, state
        done = used & ~np.asarray(_are_running(state, steps, goal))
        after = np.array(state.step)
        made = int((after - before)[used].sum())
        spared = int(before[fresh].sum() + (steps - after)[done].sum())  # made earlier, or never
        course.note(made, int(done.sum()), spared)
        tell(course.progress)
        yield Slots(numbers.copy(), done, state, jax.tree.map(np.asarray, info))
        numbers[done] = -1


def run(
    search: Search,
    params: Params,
    target: Float[AnyArray, "*restarts h w c"],
    state: SearchState,
    steps: int,
    *,
    slots: int | None = None,
    chunk: int = 5,
    stop_at_eps: bool = False,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[SearchState, SearchInfo]:
    """`stream` for restarts that are at hand, with the results in their order.

    `state` is of B restarts, from `jax.vmap(search.init)`. `target` is one image in [0, 1], or one
    for each restart. At most `slots` restarts are searched at once on each device, by default all.

    Returns (state, info) of the B restarts. Leaves of info are (B, steps), NaN after an early stop.
    Raises ValueError as `stream` does, for a target of the wrong shape, and for other states.
    """
    check_kind(state, SearchState, "state must be of the search")
    if state.step.ndim != 1:
        raise ValueError(f"run takes the states of many restarts, got steps {state.step.shape}")
    restarts = state.step.size
    if target.shape[:-3] not in ((), (restarts,)):
        raise ValueError(f"target must be one image or {restarts} images, got {target.shape}")
    mesh, replicated, _ = placements(devices)
    if slots is None:
        slots = -(-restarts // mesh.size)

    # Where they are searched, since others may hold them.
    target, state = jax.device_put((target, state), replicated)
    targets = jnp.broadcast_to(target, (restarts, *target.shape[-3:]))
    start = state
    info: SearchInfo | None = None
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
        progress=progress,
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
    assert info is not None  # of at least one chunk
    return state, info


def placements(
    devices: Sequence[jax.Device] | None,
) -> tuple[Mesh, NamedSharding, NamedSharding]:
    """The mesh of the devices, and how arrays lie on it: whole on each, and split by slots."""
    mesh = Mesh(jax.local_devices() if devices is None else devices, "slots")
    return mesh, NamedSharding(mesh, P()), NamedSharding(mesh, P("slots"))


@functools.partial(jax.jit, static_argnames=("length", "mesh"), donate_argnames="state")
def advance(
    step: Callable[..., tuple[SearchState, SearchInfo]],
    params: Params,
    targets: Float[Array, "slots h w c"],
    state: SearchState,
    steps: int | Integer[Array, ""],
    goal: float | Float[Array, ""],
    *,
    length: int,
    mesh: Mesh,
) -> tuple[SearchState, SearchInfo]:
    """`length` steps in every slot whose restart hasn't ended. Leaves of info are (slots, length).

    Weights and targets are arguments, so that new ones don't recompile. Each device runs the
    program of its own slots. One of several does nothing if no restart in its slots goes on. `step`
    is a search's, as a pytree.
    """

    def one(
        step: Callable[..., tuple[SearchState, SearchInfo]],
        params: Params,
        target: Float[Array, "h w c"],
        state: SearchState,
    ) -> tuple[SearchState, SearchInfo]:
        def move(state: SearchState, _: None) -> tuple[SearchState, SearchInfo]:
            running = _is_running(state, steps, goal)
            moved, info = step(params, target, state)
            info = jax.tree.map(lambda x: jnp.where(running, x, jnp.nan), info)
            return optax.tree.where(running, moved, state), info

        return jax.lax.scan(move, state, length=length)

    def own(*inputs: Any) -> tuple[SearchState, SearchInfo]:
        # Compiled, so that it is traced once.
        every = jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0)), inline=True)
        if mesh.size == 1:
            return every(*inputs)
        *_, state = inputs
        shapes = jax.eval_shape(every, *inputs)[1]

        def idle(*inputs: Any) -> tuple[SearchState, SearchInfo]:
            return state, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

        return jax.lax.cond(_are_running(state, steps, goal).any(), every, idle, *inputs)

    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(P(), P(), P("slots"), P("slots")),
        out_specs=P("slots"),
        check_vma=False,  # generators needn't know of the mesh
    )(step, params, targets, state)


def _is_running(
    state: SearchState, steps: int | Integer[Array, ""], goal: float | Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether one restart goes on. One whose latents aren't finite has nowhere to go."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.latents)]
    return (state.step < steps) & (state.best.l2 > goal) & jnp.all(jnp.array(finite))


# Compiled, since one call of each has dozens of leaves.
@jax.jit
def _are_running(
    state: SearchState, steps: int | Integer[Array, ""], goal: float | Float[Array, ""]
) -> Bool[Array, "slots"]:
    return jax.vmap(_is_running, (0, None, None))(state, steps, goal)


@jax.jit
def _take(tree: Any, rows: Integer[AnyArray, "slots"]) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


@jax.jit
def _put(tree: Any, rows: Any, where: Integer[AnyArray, "slots"]) -> Any:
    return jax.tree.map(lambda leaf, row: leaf.at[where].set(row, mode="drop"), tree, rows)


@jax.jit
def _refill(fresh: Bool[AnyArray, "slots"], new: Any, old: Any) -> Any:
    return jax.vmap(optax.tree.where)(fresh, new, old)
