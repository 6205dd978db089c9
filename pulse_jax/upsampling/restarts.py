"""Restarts of many pictures, searched together and saved.

A restart is saved when it is done. What is under way is saved every `PATIENCE` seconds, or less
often, so that saving takes at most `SHARE` of the time. A run that is cut off at any moment loses
no more than that interval, or the current chunk if it takes longer.
"""

import functools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key, UInt32

import pulse_jax
from pulse_jax import starts
from pulse_jax.capacity import fit_slots, is_out_of_memory
from pulse_jax.driver import Slots, Start, advance
from pulse_jax.files import attempt, counted
from pulse_jax.generators import Generator
from pulse_jax.losses import l2
from pulse_jax.progress import Course, Progress, Underway
from pulse_jax.search import STATUS, Best, Search, SearchInfo, SearchState
from pulse_jax.static import compiled
from pulse_jax.types import Frozen, Latents
from pulse_jax.upsampling import results
from pulse_jax.upsampling.parts import SMALL, Run
from pulse_jax.upsampling.pictures import Picture
from pulse_jax.upsampling.results import Restart, save
from pulse_jax.upsampling.settings import Settings
from pulse_jax.upsampling.traced import IN_MEMORY, Keep
from pulse_jax.upsampling.writer import Writer

log = logging.getLogger("pulse_jax")
PATIENCE = 1.0  # seconds
SHARE = 0.02  # of the time, for saving what is under way

Draw = Callable[[Sequence[Restart]], tuple[Latents, Frozen]]
Look = Callable[[], Sequence[Underway]]
Chunk = tuple[int, list[Restart], Look]  # steps made, jobs that are done, what was in the slots
Program = Callable[..., tuple[SearchState, SearchInfo]]  # called as `driver.advance`


def choose_slots(run: Run, before: int | None) -> tuple[Sequence[jax.Device], int]:
    """This process's devices that search, and the slots on each of them.

    The slots are what `batch_size` says, or as many as `before`. By default they are what fits, but
    no more than needed or worthwhile. On each core of a CPU that is two: one takes a sixth longer,
    and with more, few restarts would leave cores without work. Two slots of a small generator fit
    anywhere, so the second that it takes to find that out is saved.

    Of a CPU's devices, as many search as have restarts, but two even for one: its bytes are then
    those that it has among others. Where the memory doesn't hold the slots of all, fewer search,
    also when slots are given. So a run that goes on or is repeated has as many as the first, on
    which bytes depend.
    """
    settings, generator, devices = run.settings, run.generator, jax.local_devices()
    if settings.noise is not None:
        return devices, settings.restarts  # chains move together
    given = settings.batch_size or before
    restarts = settings.restarts * len(run.pictures)
    if given:
        most = given
    elif devices[0].platform == "cpu":
        most = min(restarts, 2)
    else:
        needed = -(-restarts // (len(devices) * jax.process_count()))
        most = min(needed, 256, max(1, 2**24 // generator.resolution**2))
    if devices[0].platform == "cpu":  # the generator needn't be copied to all cores
        devices = devices[: max(2, -(-restarts // (most * jax.process_count())))]
    if most * generator.resolution**2 <= SMALL:
        return devices, most
    search = next(iter(run.searches.values()))  # sizes hardly matter: the generator takes it
    state = jax.eval_shape(lambda key: search.init(*generator.sample(key)), jax.random.key(0))
    target = jax.ShapeDtypeStruct(run.pictures[0].target.shape, np.float32)
    shapes = target, state
    options: Any = {"least": given or 1, "devices": devices, "chunk": chunk(settings)}
    return fit_slots(search, run.params, *shapes, most, **options)


def carry_out(
    run: Run, progress: Callable[[Progress], None], stop: Callable[[], bool], writer: Writer
) -> Iterator[dict[str, Any]]:
    """Search for all restarts of a run and save them, size by size. Yields rows for timings.csv."""
    settings, jobs = run.settings, pending(run)
    draw = make_draw(run.generator, settings, run.keep)
    # Where slots are large, finding how many fit has traced a step.
    small = run.slots * run.generator.resolution**2 <= SMALL
    program = run.keep.advance if small else advance
    most = sum(settings.steps - job.steps for job in jobs)
    at_once = run.slots * len(run.devices)
    course = Course(len(jobs), most, settings.stop_at_eps, at_once)
    progress(course.progress)
    for side in run.searches:
        own = [job for job in jobs if job.picture.side == side]
        if not own or stop():
            continue
        began, steps = time.perf_counter(), 0
        search = functools.partial(
            search_slots, run=run, side=side, draw=draw, program=program, writer=writer, stop=stop
        )
        for made, done, underway in search_all(own, run, search, writer):
            steps += made
            course.note(made, len(done), sum(settings.steps - job.steps for job in done))
            progress(course.progress._replace(underway=underway))
            if jax.process_count() == 1:
                resolution = run.generator.resolution
                for picture in filter(run.is_complete, dict.fromkeys(job.picture for job in done)):
                    writer(save, picture, results.finish, resolution, settings.eps)
        seconds = time.perf_counter() - began
        yield {"side": side, "restarts": len(own), "steps": steps, "seconds": seconds}


def pending(run: Run) -> list[Restart]:
    """The restarts that this process has to search, with what earlier runs have come to."""
    usable = [picture for picture in run.pictures if not picture.error]
    numbers = range(1, run.settings.restarts + 1)
    pairs = [(i, k) for i in range(len(usable)) for k in numbers]
    own = in_turn(pairs[jax.process_index() :: jax.process_count()])
    share = [Restart(usable[i], k, run.settings.steps) for i, k in own]
    jobs = [job for job in share if job.number not in job.picture.rows]
    for job in jobs:
        save(job.picture, results.take_up_restart, job)
    if begun := [job for job in jobs if job.state is not None]:
        likes = saved_shapes(run)
        for job in begun:
            save(job.picture, results.check_state, job, likes)
    if len(jobs) < len(share):
        done, whole = len(share) - len(jobs), counted(len(share), "restart")
        log.info(f"{done} of {whole} had been done before: {len(jobs)} to go")
    return [job for job in jobs if not job.picture.error]


def saved_shapes(run: Run) -> list[jax.ShapeDtypeStruct]:
    """The arrays that are saved of a state, which are the same for pictures of all sides."""
    search = next(iter(run.searches.values()))

    def saved(key: Key[Array, ""]) -> Any:
        return as_data(without_frozen(search.init(*run.generator.sample(key))))

    return jax.eval_shape(saved, jax.random.key(0))


def in_turn(share: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(index of a picture, restart's number) in the order of search: eight pictures in turn.

    A hard picture then doesn't keep the first results of the others waiting, nor does the first
    picture of thousands wait for the last to be complete.
    """
    return sorted(share, key=lambda pair: (pair[0] // 8, pair[1]))


def make_draw(generator: Generator, settings: Settings, keep: Keep = IN_MEMORY) -> Draw:
    """A function `draw(jobs) → (latents, frozen)` that says where restarts start.

    A draw depends on the seed, the picture's pixels and the restart's number alone. Without
    a start or a label in the settings, restarts take the generator's classes in turn.
    """

    def start(key: Key[Array, ""], latents: Latents, frozen: Frozen) -> tuple[Latents, Frozen]:
        if settings.vary:
            latents = starts.vary(key, latents, math.radians(settings.vary))
        return latents, frozen

    def labelled(frozen: Any, in_turn: Integer[np.ndarray, "n"]) -> Frozen:
        """Of the class of the settings, of the earlier result, or else the one in turn."""
        if not generator.classes:
            return frozen
        labels: Any = in_turn % generator.classes
        if settings.label is not None:
            labels = np.full_like(in_turn, settings.label)
        elif settings.init_from is not None:
            labels = frozen["label"]
        return frozen | {"label": jnp.asarray(labels)}

    sample, start = keep("sample", jax.vmap(generator.sample)), compiled(jax.vmap(start))

    def draw(jobs: Sequence[Restart]) -> tuple[Latents, Frozen]:
        seeds = np.array([job.picture.seed for job in jobs], np.uint32)
        pixels = np.array([job.picture.pixels for job in jobs], np.uint32)
        numbers = np.array([job.number for job in jobs])
        keys = restart_keys(seeds, pixels, numbers)
        if settings.init_from is None:
            latents, frozen = sample(keys)
            return latents, labelled(frozen, numbers - 1)
        picked = [
            jax.tree.map(lambda x, k=settings.pick or job.number: x[k - 1], job.picture.start)
            for job in jobs
        ]
        latents, frozen = start(keys, *jax.tree.map(lambda *leaves: np.stack(leaves), *picked))
        return latents, labelled(frozen, numbers - 1)

    return draw


@jax.jit
def restart_keys(
    seeds: UInt32[np.ndarray | Array, "n"],
    pixels: UInt32[np.ndarray | Array, "n"],
    restarts: Integer[np.ndarray | Array, "n"],
) -> Key[Array, "n"]:
    """Keys from the seeds, the pictures' 8-bit pixels and the restarts' numbers alone."""
    keys = jax.vmap(jax.random.key)(seeds)
    keys = jax.vmap(jax.random.fold_in)(keys, pixels)
    return jax.vmap(jax.random.fold_in)(keys, restarts)


def search_all(
    jobs: list[Restart],
    run: Run,
    search: Callable[[list[Restart]], Iterator[Chunk]],
    writer: Writer,
) -> Iterator[Chunk]:
    """`search`, of all jobs. Each time that memory runs out, what is left has less: see `halve`."""
    while jobs:
        try:
            yield from search(jobs)
            return
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error) or not halve(run):
                raise
        # What the search held is only free now, without the error.
        writer.wait()
        jobs = [job for job in jobs if job.number not in job.picture.rows]
        for job in jobs:
            save(job.picture, results.take_up_restart, job)


def halve(run: Run) -> bool:
    """Halve a run's slots, or else a CPU's devices, which share its memory, if there are more."""
    if run.slots > 1:
        run.slots //= 2
        told = f"{counted(run.slots, 'restart')} at once on each device; bytes may differ from a "
        told += "run that had more"
    elif run.devices[0].platform == "cpu" and len(run.devices) > 1:
        run.devices = run.devices[: len(run.devices) // 2]
        told = counted(len(run.devices), "device")
    else:
        return False
    log.warning(f"out of memory: going on with {told}")
    attempt(run.save_config)
    return True


def search_slots(
    jobs: list[Restart],
    run: Run,
    side: int,
    draw: Draw,
    program: Program,
    writer: Writer,
    stop: Callable[[], bool],
) -> Iterator[Chunk]:
    """Search for restarts of pictures of one side, in the run's slots, and save them.

    Yields steps made, jobs that are done, and a function that shows all that were in these steps.

    `draw`, from `make_draw`, says where they start, and `program` makes the steps of a chunk.
    `stop()` is asked after each chunk. If it is true, what is under way is saved, and the search
    ends.
    """
    search, settings = run.searches[side], run.settings
    outcomes, saving = Outcomes(run, side, writer), Saving(writer)
    for now in pulse_jax.stream(
        search,
        run.params,
        make_start(jobs, search, draw),
        len(jobs),
        settings.steps,
        slots=run.slots,
        chunk=chunk(settings),
        stop_at_eps=settings.stop_at_eps,
        devices=run.devices,
        program=program,
    ):
        used = np.flatnonzero(now.numbers >= 0).tolist()
        full = [(slot, jobs[now.numbers[slot]]) for slot in used]
        made = note(full, now)
        outcomes.save(full, now)
        done = [job for slot, job in full if now.done[slot]]
        yield made, done, functools.partial(outcomes.underway, full, now)
        stopping = stop()
        if stopping or saving.is_due():
            saving.save([(slot, job) for slot, job in full if not now.done[slot]], now.state)
        if stopping:
            return


def make_start(jobs: Sequence[Restart], search: Search, draw: Draw) -> Start:
    """A function `start(numbers)` of the jobs of these numbers, from which `stream` begins."""
    init = compiled(jax.vmap(search.init))
    begun = {n: job.state for n, job in enumerate(jobs) if job.state is not None}

    def start(numbers: Integer[np.ndarray, "slots"]) -> tuple[np.ndarray, SearchState]:
        chosen = [jobs[number] for number in numbers]
        state = init(*draw(chosen))
        return np.stack([job.picture.target for job in chosen]), restore(state, numbers, begun)

    return start


class Outcomes:
    """What restarts in their slots have come to: as images, and as files."""

    def __init__(self, run: Run, side: int, writer: Writer) -> None:
        self.run, self.operator, self.writer = run, run.operators[side], writer
        # One at a time, so that the image is the same for any number of slots.
        self.synthesize = run.keep("synthesize", run.generator.synthesize)

    def render(self, latents: Latents, frozen: Frozen) -> Float[np.ndarray, "r r c"]:
        return results.eight_bits(self.synthesize(self.run.params, latents, frozen))

    def save(self, full: Sequence[tuple[int, Restart]], now: Slots) -> None:
        """Save those results of a chunk that are wanted. `full`: the slots with a restart."""
        settings = self.run.settings
        each = settings.save_intermediate or settings.save_video
        shown = [(slot, job) for slot, job in full if each or now.done[slot]]
        if not shown:
            return
        seen = jax.device_get((now.state.latents, now.state.best, now.state.frozen))
        for slot, job in shown:
            latents, best, frozen = take(seen, slot)
            if settings.save_video:
                frame = self.render(latents, frozen)
                self.writer(save, job.picture, results.save_frame, job.snapshot(), frame)
            if settings.save_intermediate or now.done[slot]:
                hr = self.render(best.latents, frozen)
                lr = np.asarray(self.operator(hr))
            if settings.save_intermediate:
                number = "" if settings.restarts == 1 else f"_{job.number}"
                so_far = number, job.steps - 1, hr, lr
                self.writer(save, job.picture, results.save_intermediate, *so_far)
            if now.done[slot]:
                self.finish(job, best, frozen, hr, lr)

    def finish(
        self,
        job: Restart,
        best: Best,
        frozen: Frozen,
        hr: Float[np.ndarray, "r r c"],
        lr: Float[np.ndarray, "h h c"],
    ) -> None:
        """Enter a restart's result into its picture's rows, and save it."""
        picture, arrays = job.picture, starts.by_name(best.latents, frozen)
        label = {"label": int(arrays["label"])} if self.run.generator.classes else {}
        row = picture.rows[job.number] = record(job, self.run.settings, best, lr) | label
        if picture.origin is not None:
            row["l2_put_back"] = math.nan
            save(picture, note_put_back, row, hr)
        self.writer(save, picture, results.save_restart, job.snapshot(), row, hr, lr, arrays)

    def underway(self, full: Sequence[tuple[int, Restart]], now: Slots) -> list[Underway]:
        """The best of each restart in a slot, if its image is finite."""
        seen = jax.device_get((now.state.best, now.state.frozen))
        found = []
        for slot, job in full:
            best, frozen = take(seen, slot)
            image, latents = self.render(best.latents, frozen), starts.by_name(best.latents, frozen)
            found.append(Underway(job.picture, job.number, float(best.l2), image, latents))
        return [one for one in found if np.isfinite(one.image).all()]


def note_put_back(picture: Picture, row: dict[str, Any], hr: Float[np.ndarray, "r r c"]) -> None:
    """Enter how far a result is from the input after it was put back into the photograph."""
    row["l2_put_back"] = picture.l2_put_back(hr)


class Saving:
    """Saves what is under way, from time to time."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.last = time.monotonic()
        self.cost = 0.0  # seconds that the last time has taken, here and in the writer's thread
        self.is_written = True

    def is_due(self) -> bool:
        """Whether it is time. It never is before all of the last time has been written."""
        return self.is_written and time.monotonic() >= self.last + max(PATIENCE, self.cost / SHARE)

    def save(self, jobs: Sequence[tuple[int, Restart]], state: SearchState) -> None:
        """Save the states of the restarts in these slots."""
        self.last = time.monotonic()
        host = jax.device_get(as_data(without_frozen(state)))
        copies = [(job.snapshot(), take(host, slot)) for slot, job in jobs]
        self.is_written = False
        self.writer(self._write, copies, time.monotonic() - self.last)

    def _write(self, copies: Sequence[tuple[Restart, Any]], copying: float) -> None:
        began = time.monotonic()
        for job, arrays in copies:
            save(job.picture, results.save_progress, job, arrays)
        self.cost = copying + time.monotonic() - began
        self.is_written = True


def note(full: Sequence[tuple[int, Restart]], now: Slots) -> int:
    """Enter what the steps measured into their restarts' curves. Returns the number of steps."""
    steps = np.asarray(now.state.step)
    measured = np.stack([now.info.l2, now.info.loss], axis=1)  # (slots, 2, chunk)
    made = 0
    for slot, job in full:
        count = int(steps[slot]) - job.steps
        job.curve[:, job.steps : job.steps + count] = measured[slot, :, :count]
        job.steps += count
        made += count
    return made


def chunk(settings: Settings) -> int:
    """Steps between two looks at the restarts, and frames of a video."""
    return 1 if settings.save_intermediate else 2 if settings.save_video else 5


def take(tree: Any, slot: int) -> Any:
    """Copies of what is in a slot, since the search takes the memory of its states."""
    return jax.tree.map(lambda leaf: np.array(leaf[slot]), tree)


def without_frozen(state: SearchState) -> list[Any]:
    """The part of a state that is saved. `draw` gives the rest again."""
    return jax.tree.leaves(state._replace(frozen=()))


def as_data(tree: Any) -> Any:
    """The same tree with random keys as plain numbers, which files can hold."""

    def data(leaf: Array) -> Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(data, tree)


def restore(
    state: SearchState,
    numbers: Integer[np.ndarray, "slots"],
    underway: Mapping[int, list[np.ndarray]],
) -> SearchState:
    """Put the states that an earlier run had saved where those restarts are."""
    rows = [row for row, number in enumerate(numbers) if number in underway]
    if not rows:
        return state
    leaves, structure = jax.tree.flatten(state._replace(frozen=()))
    saved = zip(*(underway[numbers[row]] for row in rows), strict=True)
    for i, (leaf, values) in enumerate(zip(leaves, saved, strict=True)):
        values = np.stack(values)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            values = jax.random.wrap_key_data(jnp.asarray(values))
        else:
            values = values.astype(leaf.dtype)
        leaves[i] = leaf.at[np.array(rows)].set(values)
    return jax.tree.unflatten(structure, leaves)._replace(frozen=state.frozen)


def record(
    job: Restart, settings: Settings, best: Best, lr: Float[np.ndarray, "h h c"]
) -> dict[str, Any]:
    """A row of results.csv. Success is measured on the image as saved: clipped, with 8 bits."""
    l2_saved = float(l2(lr, job.picture.target))
    return results.identity(job) | {
        "l2": float(best.l2),
        "l2_saved": l2_saved,
        "l2_relative": job.picture.relative(l2_saved),
        "loss": float(best.loss),
        "best_step": int(best.step),
        "steps": job.steps,
        "status": STATUS[int(pulse_jax.status(l2_saved, settings.eps))],
    }
