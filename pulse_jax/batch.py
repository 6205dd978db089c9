"""Restarts of many pictures, searched together: between the command's flags and its tables.

Each is saved when it is done, and what is under way every `PATIENCE` seconds, so that whoever is
cut off, at whatever moment, loses no more than that or, where it takes longer, the current chunk.
"""

import contextlib
import math
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import pulse_jax
from pulse_jax import results, starts
from pulse_jax.files import counted
from pulse_jax.losses import l2
from pulse_jax.results import save
from pulse_jax.search import STATUS, is_out_of_memory

try:
    import resource
except ImportError:  # not on Windows
    resource = None

PATIENCE = 1.0  # seconds


def in_turn(share):
    """(index of a picture, restart's number) in the order of search: eight pictures in turn.

    A hard picture then doesn't keep the first results of the others waiting, nor does the first
    picture of thousands wait for the last to be complete.
    """
    return sorted(share, key=lambda pair: (pair[0] // 8, pair[1]))


def make_draw(generator, settings):
    """Where jobs start, `draw(jobs) → (latents, frozen)`; `settings`: the command's flags.

    A draw depends on the seed, the picture's pixels and the restart's number alone.
    """

    def start(key, latents, frozen):
        if settings.vary:
            latents = starts.vary(key, latents, math.radians(settings.vary))
        return latents, frozen

    sample, start = jax.jit(jax.vmap(generator.sample)), jax.jit(jax.vmap(start))

    def draw(jobs):
        pixels = np.array([job.picture.pixels for job in jobs], np.uint32)
        numbers = np.array([job.number for job in jobs])
        keys = restart_keys(jax.random.key(settings.seed), pixels, numbers)
        if settings.init_from is None:
            return sample(keys)
        picked = [
            jax.tree.map(lambda x, k=settings.pick or job.number: x[k - 1], job.picture.start)
            for job in jobs
        ]
        return start(keys, *jax.tree.map(lambda *leaves: np.stack(leaves), *picked))

    return draw


@jax.jit
def restart_keys(key, pixels, restarts):
    """Keys (n,) from the seed's, the pictures' 8-bit pixels and the restarts' numbers alone."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, pixels)
    return jax.vmap(jax.random.fold_in)(keys, restarts)


def search_all(jobs, slots, **options):
    """`search_slots`, with half the slots for what is left, each time that memory runs out.

    Yields (slots, steps made, jobs that are done).
    """
    while jobs:
        try:
            for made, done in search_slots(jobs, slots, **options):
                yield slots, made, done
            return
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error) or slots == 1:
                raise
        # Only now, without the error, what the search held is free.
        slots //= 2
        jobs = [job for job in jobs if job.number not in job.picture.rows]
        for job in jobs:
            save(job.picture, results.take_up_restart, job)
        told = f"out of memory: going on with {counted(slots, 'restart')} at once on each device"
        tqdm.write(f"pulse_jax: {told}; bytes may differ from a run that had more", file=sys.stderr)


def search_slots(jobs, slots, *, generator, params, operator, search, draw, settings, stop):
    """Search for restarts of one size and save them; yields (steps made, jobs that are done).

    `draw`: where they start, from `make_draw`. `settings`: the command's flags. `stop()`: asked
    after each chunk; if true, what is under way is saved, and that is all.
    """
    init = jax.jit(jax.vmap(search.init))
    # One at a time: the image is then the same for any number of slots.
    synthesize = jax.jit(generator.synthesize)
    underway = {n: job.state for n, job in enumerate(jobs) if job.state is not None}

    def start(numbers):
        chosen = [jobs[number] for number in numbers]
        state = init(*draw(chosen))
        return np.stack([job.picture.target for job in chosen]), restore(state, numbers, underway)

    def render(latents, frozen):
        """An image as 8-bit files hold it."""
        image = np.asarray(synthesize(params, latents, frozen))
        return np.rint(255 * np.clip(image, 0, 1)) / np.float32(255)

    def look(job, done, latents, best, frozen):
        """Save what a chunk has come to, as far as it is wanted."""
        picture = job.picture
        if settings.save_video:
            save(picture, results.save_frame, job, render(latents, frozen))
        if not (done or settings.save_intermediate):
            return
        hr = render(best.latents, frozen)
        lr = np.asarray(operator(hr))
        if settings.save_intermediate:
            number = "" if settings.restarts == 1 else f"_{job.number}"
            save(picture, results.save_intermediate, number, job.steps - 1, hr, lr)
        if done:
            row = record(job, settings, best, lr)
            picture.rows[job.number] = row
            arrays = starts.by_name(best.latents, frozen)
            save(picture, results.save_restart, job, row, hr, lr, arrays)

    saved = time.monotonic()
    for now in pulse_jax.stream(
        search,
        params,
        start,
        len(jobs),
        settings.steps,
        slots=slots,
        chunk=chunk(settings),
        stop_at_eps=settings.stop_at_eps,
    ):
        full = [(slot, jobs[now.numbers[slot]]) for slot in np.flatnonzero(now.numbers >= 0)]
        made = note(full, now)
        done = [job for slot, job in full if now.done[slot]]
        if done or settings.save_intermediate or settings.save_video:
            seen = jax.device_get((now.state.latents, now.state.best, now.state.frozen))
            for slot, job in full:
                look(job, now.done[slot], *take(seen, slot))
        yield made, done
        stopping = stop()
        if stopping or time.monotonic() > saved + PATIENCE:
            state = jax.device_get(as_data(without_frozen(now.state)))
            for slot, job in full:
                if not now.done[slot]:
                    save(job.picture, results.save_progress, job, settings.seed, take(state, slot))
            saved = time.monotonic()
        if stopping:
            return


def note(full, now):
    """Enter what the steps measured into the curves of their restarts; the number of steps."""
    steps = np.asarray(now.state.step)
    measured = np.stack([now.info.l2, now.info.loss], axis=1)  # (slots, 2, chunk)
    made = 0
    for slot, job in full:
        count = int(steps[slot]) - job.steps
        job.curve[:, job.steps : job.steps + count] = measured[slot, :, :count]
        job.steps += count
        made += count
    return made


def memory():
    """Most bytes that have been in use so far: on an accelerator, else by this process."""
    statistics = jax.local_devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] if statistics else process_memory()


def process_memory():
    """Most bytes that this process has used so far; None where the system doesn't count them."""
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def chunk(settings):
    """Steps between two looks at the restarts, and frames of a video."""
    return 1 if settings.save_intermediate else 2 if settings.save_video else 5


def take(tree, slot):
    return jax.tree.map(lambda leaf: leaf[slot], tree)


def without_frozen(state):
    """What is saved of a state: `draw` gives the rest again."""
    return jax.tree.leaves(state._replace(frozen=()))


def as_data(tree):
    """With random keys as the numbers that they are made of, which files can hold."""

    def data(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(data, tree)


def restore(state, numbers, underway):
    """Put the states that an earlier run had saved where those restarts are."""
    rows = [row for row, number in enumerate(numbers) if number in underway]
    if not rows:
        return state
    leaves, structure = jax.tree.flatten(state._replace(frozen=()))
    saved = zip(*(underway[numbers[row]] for row in rows), strict=True)
    for i, (leaf, values) in enumerate(zip(leaves, saved, strict=True)):
        values = np.stack(values)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            values = jax.random.wrap_key_data(values)
        leaves[i] = leaf.at[np.array(rows)].set(values)
    return jax.tree.unflatten(structure, leaves)._replace(frozen=state.frozen)


def record(job, settings, best, lr):
    """A row of results.csv. Success is measured on the image as saved: clipped, with 8 bits."""
    l2_saved = float(l2(lr, job.picture.target))
    return results.identity(job, settings.seed) | {
        "l2": float(best.l2),
        "l2_saved": l2_saved,
        "l2_relative": job.picture.relative(l2_saved),
        "loss": float(best.loss),
        "best_step": int(best.step),
        "steps": job.steps,
        "status": STATUS[int(pulse_jax.status(l2_saved, settings.eps))],
    }


@contextlib.contextmanager
def noted_signals():
    """A list that gets the number of the first SIGINT or SIGTERM; a second one acts as ever."""
    noted = []

    def handle(number, _):
        noted.append(number)
        reset()
        tqdm.write("pulse_jax: finishing the step", file=sys.stderr)

    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in earlier.items():
        if handler != signal.SIG_IGN:  # as in the background of a script, which Ctrl-C is not for
            signal.signal(number, handle)

    def reset():
        for number, handler in earlier.items():
            signal.signal(number, handler)

    try:
        yield noted
    finally:
        reset()
