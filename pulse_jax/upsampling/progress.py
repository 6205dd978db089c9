"""How far a run is and how long it may take, and the bar that a terminal shows of it."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from pulse_jax.files import counted
from pulse_jax.upsampling.results import Restart

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger("pulse_jax")
# What JAX announces: a program is ready to be compiled; the cache has it; it is compiled.
LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
FOUND = "/jax/compilation_cache/cache_hits"
COMPILED = "/jax/core/compile/backend_compile_duration"
PATIENCE = 1.0  # seconds that a program may take without a word
BAR = "{percentage:3.0f}%|{bar}| {desc}, {elapsed}{postfix}"


class Progress(NamedTuple):
    """How far a run is: what its callback is given before the first chunk of steps and after each.

    What earlier sittings have done doesn't count.
    """

    restarts: int  # to be searched
    ended: int  # of these
    made: int  # steps of all of them
    left: float  # steps that they are likely to make still; at first the most that there can be
    seconds: float | None  # that these are likely to take; None as long as that can't be told


class Course:
    """Estimates the `progress` of a run.

    `jobs`: the restarts. `steps`: the most that each makes. `stops`: whether one may make fewer.
    `slots`: how many are searched at once.
    """

    def __init__(self, jobs: Sequence[Restart], steps: int, stops: bool, slots: int) -> None:
        self.restarts, self.steps = len(jobs), steps
        # The first restarts to end are the quickest: one learns from as many as began with them.
        self.enough = max(1, min(slots, len(jobs) // 2)) if stops else 0
        self.most = sum(steps - job.steps for job in jobs)  # steps still to make
        self.made = self.ended = 0
        self.compiled: tuple[float, int] | None = None  # (time, steps made) when all has run once
        self.progress = Progress(self.restarts, 0, 0, self.most, None)

    def note(self, made: int, done: Sequence[Restart]) -> None:
        """After a chunk: how many steps it made, the restarts that are done."""
        now = time.perf_counter()
        self.made += made
        self.ended += len(done)
        self.most -= made + sum(self.steps - job.steps for job in done)
        seconds, left = None, float(self.most)
        known = self.ended >= self.enough
        if known:
            left = steps_left(self.most, self.restarts - self.ended, self.made, self.ended)
        if self.compiled is None or self.ended == len(done) > 0:
            self.compiled = now, self.made
        elif known and left and self.made > self.compiled[1]:
            seconds = left * (now - self.compiled[0]) / (self.made - self.compiled[1])
        self.progress = Progress(self.restarts, self.ended, self.made, left, seconds)


def steps_left(most: int, restarts: int, made: int, ended: int) -> float:
    """Steps that `restarts` are likely to make, at most `most`.

    They end as often as the others have: `ended` in the `made` steps of all, those included that
    still search.
    """
    return min(most, restarts * made / ended) if ended else most


class Bar:
    """A bar of a run, with the time that is left; that is also told in a line, once. A context."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.told = False

    def __call__(self, progress: Progress) -> None:
        if self.bar is None:
            off = not progress.restarts
            self.bar = tqdm(bar_format=BAR, disable=off, total=1, miniters=0, mininterval=0.5)
        if progress.seconds is not None:
            self.bar.set_postfix_str(f"about {duration(progress.seconds)} to go", refresh=False)
            if not self.told:
                used = memory()
                in_use = f", {used / 1e9:.1f} GB in use" if used else ""
                log.info(f"about {duration(progress.seconds)} to go{in_use}")
            self.told = True
        self.bar.total, self.bar.n = progress.made + progress.left, progress.made
        done = f"{progress.ended} of {counted(progress.restarts, 'restart')}"
        self.bar.set_description_str(done, refresh=False)
        self.bar.update(0)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str("", refresh=False)
            self.bar.close()


def duration(seconds: float) -> str:
    """A time in the unit in which people would give it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def memory() -> int | None:
    """Most bytes in use so far, on an accelerator or else by this process; None if not counted."""
    statistics = jax.local_devices()[0].memory_stats()
    return int(statistics["peak_bytes_in_use"]) if statistics else process_memory()


def process_memory() -> int | None:
    """Most bytes that this process has used so far; None where the system doesn't count them."""
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


@contextlib.contextmanager
def compilation_told() -> Iterator[None]:
    """Until the context ends, the first compilation that one has to wait for is told in a line."""
    timer: threading.Timer | None = None
    told = False

    def tell() -> None:
        nonlocal told
        if not told:
            log.info("compiling the search for this machine; later runs like it start sooner")
        told = True

    def on_event(event: str, *_: Any, **__: Any) -> None:
        nonlocal timer
        if event == LOWERED:
            timer = threading.Timer(PATIENCE, tell)
            timer.start()
        elif event in (FOUND, COMPILED) and timer:
            timer.cancel()

    jax.monitoring.register_event_listener(on_event)
    jax.monitoring.register_event_duration_secs_listener(on_event)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_listener(on_event)
        jax.monitoring.unregister_event_duration_listener(on_event)
