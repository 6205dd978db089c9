"""`upsample`: all of a run, from pictures and settings to results.

`parts` makes what the run takes. `restarts` searches, or else `draws` draws from posteriors.
"""

import contextlib
import dataclasses
import logging
import secrets
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pulse_jax.capacity import is_out_of_memory
from pulse_jax.files import attempt, counted, expanded, held, one_line, write
from pulse_jax.generators import checkpoint
from pulse_jax.generators.digests import network_digest
from pulse_jax.plug_in import raised_in_callback
from pulse_jax.progress import Progress
from pulse_jax.upsampling import (
    by_seed,
    configuration,
    draws,
    familiarity,
    report,
    restarts,
    results,
    traced,
)
from pulse_jax.upsampling.parts import (
    Run,
    build_posteriors,
    build_searches,
    completed,
    make_generator,
    make_operators,
)
from pulse_jax.upsampling.pictures import (
    Picture,
    Source,
    check_space,
    for_seeds,
    list_sources,
    log_oddities,
    read_pictures,
)
from pulse_jax.upsampling.results import save
from pulse_jax.upsampling.settings import RECIPES, Settings
from pulse_jax.upsampling.writer import Writer

log = logging.getLogger("pulse_jax")


@dataclass(frozen=True)
class Results:
    """What `upsample` returns.

    `pictures` has each picture for each seed, with `rows` (restart → what results.csv says of it),
    `images()`, `latents()`, a posterior's `maps()`, `error`, and `unlike`, which says how it is
    unlike what the generator makes, if it is. One that was cut out also has `put_back(image)`.
    `failures` has a line for each picture that could not be read, or all of whose restarts failed,
    and for each file that could not be written. `unmet` are the pictures whose chains have not met,
    so that their maps must not be used. `settings` include the seeds that were drawn.
    `stopped` says why the run ended before all was done, or nothing. The same call does the rest.
    """

    pictures: tuple[Picture, ...]
    failures: tuple[str, ...]
    settings: Settings
    stopped: str = ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all restarts that are done."""
        return [row for picture in self.pictures for _, row in sorted(picture.rows.items())]

    @property
    def unmet(self) -> list[Picture]:
        """The pictures whose chains have not met: their maps must not be used."""
        return [picture for picture in self.pictures if results.is_apart(picture)]


def upsample(
    pictures: Source | Iterable[Source] | None = None,
    output_dir: str | Path | None = None,
    settings: Settings = RECIPES["fast"],
    progress: Callable[[Progress], None] | None = None,
    *,
    resume: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> Results:
    """Upsample small pictures: for each, several large ones that downscale to it.

    `pictures` is a folder, a file, an array (h, w, C) in [0, 1], or several of these. C is the
    generator's number of channels. By default, these are the generator's examples. Results are
    written into the folder `output_dir` as they come, and if the call is cut off, the same call
    goes on from there. None keeps them in memory. `progress` is called before the first chunk of
    steps and after each. What it raises ends the run. `resume` says whether the folder may hold
    results of the same settings already. `stop()` is asked after each chunk. If it is true, what is
    under way is saved, and the run ends.

    No restart or picture ever touches another, and what fails is in the results. What is odd is
    logged to "pulse_jax". Raises ValueError, in one line, if nothing can be done: the generator
    can't be read, a part of your own fails, or the folder can't be written or holds results of
    other settings.
    """
    with contextlib.ExitStack() as at_end:
        # Absolute, since a part that plugs in may change the current folder.
        output = None if output_dir is None else expanded(output_dir, "output_dir").absolute()
        try:
            run, failures = _prepare(pictures, output, settings, resume, at_end)
            if not run.pictures:
                return Results((), tuple(failures), run.settings)
            return _carry_out(run, failures, progress or (lambda _: None), stop)
        except jax.errors.JaxRuntimeError as error:
            if not (raised := raised_in_callback(error)):
                raise
            raise ValueError(f"a callback of a part raised {raised}") from error


def _prepare(
    given: Source | Iterable[Source] | None,
    output: Path | None,
    settings: Settings,
    resume: bool,
    at_end: contextlib.ExitStack,
) -> tuple[Run, list[str]]:
    """Do all that can fail before the search. `at_end` lets the output folder go."""
    degradation = log_oddities(settings.degradation)
    generator, params = make_generator(settings)
    settings = completed(settings, generator)
    check_space(settings)
    if isinstance(given, Iterable) and not isinstance(given, str | np.ndarray | jax.Array):
        given = list(given)
    sources, failures = list_sources(given, settings.generator)
    networks = network_digest(params)
    found, unread = read_pictures(sources, settings, generator, networks, degradation)
    failures += unread
    if not found:
        return Run(settings, generator, params), failures
    earlier = {} if output is None else _opened(output, resume, at_end)
    seeds = _choose_seeds(settings, earlier)
    settings = dataclasses.replace(settings, seeds=seeds)
    of_seeds = list(for_seeds(found, seeds, output))
    # Placed once, since else each image would copy the weights to the device anew.
    run = Run(settings, generator, jax.device_put(params), seeds, of_seeds, output)
    named = [given] if isinstance(given, str | Path) else given if isinstance(given, list) else []
    run.named = [str(source) for source in named if isinstance(source, str | Path)]
    run.operators = make_operators(run, degradation)
    if settings.noise is None:
        run.searches = build_searches(run)
    else:
        run.posteriors = build_posteriors(run)
        run.reader = checkpoint.load_reader(settings.generator)
    run.config = configuration.describe(settings, params, run.reader)
    run.keep = traced.keep(settings, run.config)
    if output is not None:
        places = [picture.place for picture in run.pictures]
        configuration.check(output, places, earlier, run.config)
    # While a search is under way, slots that are left open are as many as before.
    before = earlier.get("slots") if output and configuration.is_under_way(output) else None
    run.devices, slots = restarts.choose_slots(run, before)
    run.slots = _agreed(slots)
    run.save_config()
    return run, failures


def _opened(output: Path, resume: bool, at_end: contextlib.ExitStack) -> dict[str, Any]:
    """Hold the output folder, and read the configuration of the results in it."""
    try:
        if jax.process_index() == 0:
            at_end.enter_context(held(output))
    except ValueError as error:
        raise ValueError(f"output_dir={output}: {error}") from error
    except OSError as error:
        raise ValueError(f"output_dir={output} can't be written: {one_line(error)}") from error
    earlier = configuration.read(output)
    if earlier and not resume:
        raise ValueError(f"output_dir={output} holds results already, and resume is off")
    return earlier


def _choose_seeds(settings: Settings, earlier: Mapping[str, Any]) -> tuple[int, ...]:
    """The seeds of the settings, or of an earlier run, or else a new one of the first process."""
    if settings.seeds is not None:
        return settings.seeds
    if "--seeds" in earlier:
        return Settings.from_json({"seeds": earlier["--seeds"]}).seeds or ()
    return (_agreed(secrets.randbelow(2**32)),)


def _agreed(number: int) -> int:
    """The number that process 0 has."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.uint32(number)))


def _carry_out(
    run: Run, failures: list[str], progress: Callable[[Progress], None], stop: Callable[[], bool]
) -> Results:
    """Search for all that isn't done yet, and write what is about pictures and the run."""
    pictures = run.pictures
    log.info(_headline(run))
    results.tell_apart(pictures)
    for picture in pictures:
        save(picture, results.take_up, run.settings.results)
    stopped, timings = _search(run, progress, stop)
    if jax.process_count() > 1 and not stopped:
        multihost_utils.sync_global_devices("results")
    first = jax.process_index() == 0
    for picture in pictures if first else ():
        _finish(run, picture, bool(stopped))
    if first and (complaint := attempt(_compare, run)):
        failures.append(complaint)
    failures += [told for picture in pictures if (told := picture.error or picture.lost)]
    if first and run.output is not None:
        failures += _conclude(run, run.output, failures, timings)
    return Results(tuple(pictures), tuple(failures), run.settings, stopped)


def _headline(run: Run) -> str:
    """What is upsampled how often, in a line."""
    settings, seeds = run.settings, len(run.seeds)
    noun = "restart" if settings.noise is None else "chain"
    counts = [counted(len(run.pictures) // seeds, "picture"), counted(settings.restarts, noun)]
    counts += [f"{seeds} seeds"] if seeds > 1 else []
    named = f"seed{'s' * (seeds > 1)} {settings.as_json()['seeds']}"
    return f"{settings.generator}, {named}: {' × '.join(counts)}"


def _search(
    run: Run, progress: Callable[[Progress], None], stop: Callable[[], bool]
) -> tuple[str, list[dict[str, Any]]]:
    """Search, or draw, until all is done or `stop()`. Why it has stopped, and rows for timings.csv.

    Where memory doesn't hold the least that can be searched, that is a reason to stop, too.
    """
    samples = run.settings.noise is not None
    stopped, timings = "", []
    with Writer() as writer:
        try:
            if samples:
                timings = list(draws.carry_out(run, progress, stop))
            else:
                timings = list(restarts.carry_out(run, progress, stop, writer))
            if stop():
                stopped = _stopped(run)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            at_once = "all chains" if samples else "one restart"
            if not samples and len(run.devices) > 1:
                at_once += f" on each of {len(run.devices)} devices"
            stopped = f"out of memory with {at_once} at once: {one_line(error)[:200]}"
    return stopped, timings


def _stopped(run: Run) -> str:
    """How much was done when the run was stopped, or nothing if that was all."""
    usable = [picture for picture in run.pictures if not picture.error]
    if run.settings.noise is None:
        noun, done = "restart", sum(len(picture.rows) for picture in usable)
        total = run.settings.results * len(usable)
    else:
        noun, total = "picture", len(usable)
        done = sum(not draws.is_wanting(picture, run.settings) for picture in usable)
    return f"stopped when {done} of {counted(total, noun)} were done" if done < total else ""


def _finish(run: Run, picture: Picture, stopped: bool) -> None:
    """Write what is about all restarts of a picture, if they are done or none follows.

    Other processes may have done some of them. What has failed is told.
    """
    save(picture, results.take_up, run.settings.results)
    if run.is_complete(picture):
        save(picture, results.finish, run.generator.resolution, run.settings.eps)
    elif stopped and picture.rows and picture.folder is not None:
        save(picture, results.overview, run.generator.resolution, run.settings.eps)
    if failed := run.failed(picture):
        seed = f", seed {picture.seed}" if len(run.seeds) > 1 else ""
        counts = f"{failed} of {counted(len(picture.rows), 'restart')} failed"
        why = "since the loss or its gradient wasn't finite"
        complaint = one_line(f"{picture.name}{seed}: {counts}, {why}")
        log.warning(complaint)
        if run.is_lost(picture):
            picture.lost = complaint
    if not (run.is_complete(picture) or stopped):  # the process that failed has told why
        picture.error = picture.error or f"{picture.folder}: not all restarts are saved"


def _compare(run: Run) -> None:
    """Tell which pictures are unlike those that the generator makes, if that is known of them."""
    settings, own = run.settings, familiarity.read(run.settings)
    done = [p for p in run.pictures if str(p.side) in own and run.is_complete(p) and not p.error]
    scored = [picture for picture in done if "mean score" in own[str(picture.side)]]
    network = checkpoint.entry_digest(settings.generator, "discriminator")
    if unscored := [picture for picture in scored if not familiarity.has_scores(picture, network)]:
        score = familiarity.make_score(settings.generator, run.keep, run.devices)
        for picture in unscored:
            save(picture, familiarity.note_scores, score, network)

    def compare(picture: Picture) -> None:
        picture.unlike = familiarity.difference(picture, settings, own)
        if picture.unlike:
            log.warning(one_line(f"{picture.name} is {picture.unlike}"))

    for picture in done:
        save(picture, compare)


def _conclude(
    run: Run, output: Path, failures: Sequence[str], timings: Sequence[dict[str, Any]]
) -> list[str]:
    """Write what is about all pictures, and their `failures`. Returns what fails here."""
    rows = [row for picture in run.pictures for _, row in sorted(picture.rows.items())]
    tables = {"results.csv": rows, "timings.csv": list(timings)}
    complaints = []
    if len(run.seeds) > 1 and rows and run.settings.noise is None:
        tables["seeds.csv"] = by_seed.table(rows)
        drawing = by_seed.draw(tables["seeds.csv"])
        complaints.append(attempt(write, output / "seeds.svg", drawing))
    for name, table in tables.items():
        if table:
            complaints.append(attempt(write, output / name, results.as_csv(table)))
    config = run.config | {"slots": run.slots}
    command = shlex.join(["pulse_jax", *run.repetition(), "--output_dir=repeated"])
    complaints.append(attempt(report.save, output, run.pictures, config, failures, command))
    results.clear_temporary(output)
    return [line for line in complaints if line]
