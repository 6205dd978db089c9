"""How many restarts are searched at once: as many slots, on as many devices, as memory holds."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax

from pulse_jax import quotas
from pulse_jax.driver import advance, placements
from pulse_jax.search import Search, SearchState
from pulse_jax.static import argument
from pulse_jax.types import AnyArray, Params


def fit_slots(
    search: Search,
    params: Params,
    target: AnyArray | jax.ShapeDtypeStruct,
    state: SearchState,
    most: int,
    *,
    least: int = 1,
    devices: Sequence[jax.Device] | None = None,
    chunk: int = 5,
    memory: float | None = None,
) -> tuple[Sequence[jax.Device], int]:
    """The devices, and how many slots on each, from `least` to `most`, that fit into `memory`.

    `target` and `state` are of one restart; their leaves are arrays or shapes. `memory` is in
    bytes, on each device. All of a CPU's devices share it, so these become fewer before the slots
    do. The figure is the compiled program's own, for arguments, results and temporaries. By
    default, `memory` is nine tenths of what the device has. For a CPU it is half of the machine's,
    or of the process's quota, or 4 GB if the system doesn't tell.
    """
    memory = _usable_memory() if memory is None else memory
    devices = jax.local_devices() if devices is None else devices
    share_it, slots = devices[0].platform == "cpu", most
    while slots > least or (share_it and len(devices) > 1):
        own = memory / len(devices) if share_it else memory
        needed = _needed_bytes(search, params, target, state, slots * len(devices), devices, chunk)
        if needed <= own:
            break
        if share_it and len(devices) > 1:
            devices = devices[: max(1, int(memory / needed))]
        else:
            fewer = slots // 2 if needed == math.inf else int(slots * own / needed)
            slots = max(least, min(slots - 1, fewer))
    return devices, slots


def _needed_bytes(
    search: Search,
    params: Params,
    target: AnyArray | jax.ShapeDtypeStruct,
    state: SearchState,
    restarts: int,
    devices: Sequence[jax.Device],
    chunk: int,
) -> float:
    """What the program of so many restarts takes on each device; inf if it doesn't compile."""
    mesh, replicated, split = placements(devices)
    step, params = jax.device_put((argument(search.step), params), replicated)

    def several(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((restarts, *x.shape), x.dtype, sharding=split)

    shapes = jax.tree.map(several, (target, state))
    lowered = advance.lower(step, params, *shapes, 1, 0.0, length=chunk, mesh=mesh)
    try:
        figures = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:  # a TPU's, of what it can't hold
        if not is_out_of_memory(error):
            raise
        return math.inf
    assert figures is not None  # all of XLA's backends tell
    return figures.temp_size_in_bytes + figures.argument_size_in_bytes


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of XLA's says so: a GPU's by its code, a CPU's in its text."""
    return any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "Out of memory"))


def _usable_memory() -> float:
    """Bytes that a search may take on the first device."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics:
        return 0.9 * statistics["bytes_limit"]
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # Windows has no such function
        return 4e9
    return min(whole, quotas.memory()) / 2
