"""What a terminal shows while one waits: a bar, the time that is left, and compilation."""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
from tqdm import tqdm

from pulse_jax.files import counted
from pulse_jax.progress import Progress

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


class Bar:
    """A context with a run's bar and the time that is left, which a line also tells once."""

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
        if progress.ended < progress.restarts:  # or 99.5% would be written as 100%
            self.bar.n = min(self.bar.n, 0.99 * self.bar.total)
        done = f"{progress.ended} of {counted(progress.restarts, 'restart')}"
        self.bar.set_description_str(progress.told or done, refresh=False)
        self.bar.update(0)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str("", refresh=False)
            self.bar.close()


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours, as people would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def memory() -> int | None:
    """The most bytes used so far, on an accelerator or else by this process; None if unknown."""
    statistics = jax.local_devices()[0].memory_stats()
    return int(statistics["peak_bytes_in_use"]) if statistics else process_memory()


def process_memory() -> int | None:
    """The most bytes that this process has used so far; None if the system doesn't count them."""
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


@contextlib.contextmanager
def compilation_told() -> Iterator[None]:
    """A context in which one line tells of the first compilation that one has to wait for."""
    timer: threading.Timer | None = None
    told = False

    def tell() -> None:
        nonlocal told
        if not told:
            log.info("compiling for this machine; later runs like it start sooner")
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
