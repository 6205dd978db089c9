"""What a run says while one waits for it: that it compiles, how far it is, how long it may take."""

import contextlib
import threading
import time

import jax
from tqdm import tqdm

from pulse_jax.files import counted

# What JAX announces: a program is ready to be compiled; the cache has it; it is compiled.
LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
FOUND = "/jax/compilation_cache/cache_hits"
COMPILED = "/jax/core/compile/backend_compile_duration"
PATIENCE = 1.0  # seconds that a program may take without a word
BAR = "{percentage:3.0f}%|{bar}| {desc}, {elapsed}{postfix}"


@contextlib.contextmanager
def compilation_told():
    """Until the context ends, the first compilation that one has to wait for is told in a line."""
    timer, told = None, False

    def tell():
        nonlocal told
        if not told:
            tqdm.write("compiling the search for this machine; later runs like it start sooner")
        told = True

    def on_event(event, *_, **__):
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


class Progress:
    """A bar for some restarts, with the time that is left; that is also told in a line, once.

    `jobs`: the restarts. `steps`: the most that each makes. `stops`: whether one may make fewer.
    `slots`: how many are searched at once.
    """

    def __init__(self, jobs, steps, stops, slots):
        self.jobs, self.steps = jobs, steps
        # The first restarts to end are the quickest: one learns from as many as began with them.
        self.enough = max(1, min(slots, len(jobs) // 2)) if stops else 0
        self.most = sum(steps - job.steps for job in jobs)  # steps still to make
        self.made = self.ended = 0
        self.compiled = None  # (time, steps made) when all programs have run once
        self.told = False
        self.bar = tqdm(
            desc=self.count(),
            total=1,
            bar_format=BAR,
            disable=not jobs,
            miniters=0,
            mininterval=0.5,
        )

    def note(self, made, done, memory):
        """After a chunk: how many steps it made, the restarts that are done, the bytes in use."""
        now = time.perf_counter()
        self.made += made
        self.ended += len(done)
        self.most -= made + sum(self.steps - job.steps for job in done)
        left = None
        if self.ended >= self.enough:
            left = steps_left(self.most, len(self.jobs) - self.ended, self.made, self.ended)
        if self.compiled is None or self.ended == len(done) > 0:
            self.compiled = now, self.made
        elif left and self.made > self.compiled[1]:
            seconds = left * (now - self.compiled[0]) / (self.made - self.compiled[1])
            self.bar.set_postfix_str(f"about {duration(seconds)} to go", refresh=False)
            if not self.told:
                used = f", {memory / 1e9:.1f} GB in use" if memory else ""
                tqdm.write(f"about {duration(seconds)} to go{used}")
            self.told = True
        self.show(left)

    def show(self, left):
        """Move the bar to the share of all steps that have been made, as far as that is known."""
        self.bar.total = self.made + (self.most if left is None else left)
        self.bar.n = self.made
        self.bar.set_description_str(self.count(), refresh=False)
        self.bar.update(0)

    def count(self):
        return f"{self.ended} of {counted(len(self.jobs), 'restart')}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.set_postfix_str("", refresh=False)
        self.bar.close()


def steps_left(most, restarts, made, ended):
    """Steps that `restarts` are likely to make, at most `most`.

    They end as often as the others have: `ended` in the `made` steps of all, those included that
    still search.
    """
    return min(most, restarts * made / ended) if ended else most


def duration(seconds):
    """A time in the unit in which people would give it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
