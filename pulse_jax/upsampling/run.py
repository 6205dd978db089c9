"""`upsample`: all of a run, from pictures and settings to results."""

import contextlib
import dataclasses
import importlib.util
import logging
import math
import secrets
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

import pulse_jax
from pulse_jax.driver import fitting_slots, is_out_of_memory
from pulse_jax.files import attempt, counted, expanded, held, one_line, write
from pulse_jax.generators import Generator, checkpoint, style_generator
from pulse_jax.generators.diffusion import DiffusionModel, diffusion_generator
from pulse_jax.generators.digests import network_digest
from pulse_jax.generators.plug_in import plug_in
from pulse_jax.generators.reader import Reader
from pulse_jax.operators import Operator, is_flat, plug_ins
from pulse_jax.plug_in import attempt as attempt_call
from pulse_jax.plug_in import is_plug_in, raised_in_callback
from pulse_jax.posterior import Posterior
from pulse_jax.progress import Course, Progress
from pulse_jax.search import Search, SearchState
from pulse_jax.types import Params
from pulse_jax.upsampling import by_seed, configuration, draws, familiarity, report, results
from pulse_jax.upsampling.pictures import (
    Picture,
    Source,
    check_space,
    for_seeds,
    list_sources,
    read_pictures,
    told,
)
from pulse_jax.upsampling.restarts import chunk, in_turn, make_draw, search_all
from pulse_jax.upsampling.results import Restart, save
from pulse_jax.upsampling.settings import DIFFUSION, LOSS, RECIPES, STYLES, Settings
from pulse_jax.upsampling.writer import Writer

log = logging.getLogger("pulse_jax")


@dataclass(frozen=True)
class Results:
    """What `upsample` returns.

    `pictures` has each picture for each seed, with `rows` (restart → what results.csv says of it),
    `images()`, `latents()`, a posterior's `maps()`, `error`, and `unlike`, which says how it is
    unlike what the generator makes, if it is. One that was cut out also has `put_back(image)`.
    `failures` has a line for each picture that could not be read and each file that could not be
    written. `settings` include the seeds that were drawn. `stopped` says why the run ended before
    all was done, or nothing. The same call does the rest.
    """

    pictures: tuple[Picture, ...]
    failures: tuple[str, ...]
    settings: Settings
    stopped: str = ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all restarts that are done."""
        return [row for picture in self.pictures for _, row in sorted(picture.rows.items())]


@dataclass
class Run:
    """What belongs together while a run lasts."""

    settings: Settings
    generator: Generator
    params: Params
    searches: Mapping[int, tuple[Operator, Search]]  # by side
    seeds: tuple[int, ...]
    pictures: list[Picture]
    output: Path | None
    config: dict[str, Any]
    slots: int  # on each device
    named: Sequence[str] = ()  # the files and folders that the pictures are from
    # By side, in place of searches.
    densities: Mapping[int, tuple[Operator, Posterior]] = field(default_factory=dict)
    reader: tuple[Reader, Params] | None = None  # of the draws' attributes

    def is_complete(self, picture: Picture) -> bool:
        return len(picture.rows) == self.settings.results

    def failed(self, picture: Picture) -> int:
        """How many of its restarts had no finite loss, or ended early without having met eps."""
        if self.settings.noise is not None:
            return 0  # chains haven't met then
        longest, goal = self.settings.steps, self.settings.loss().eps
        stops = self.settings.stop_at_eps
        return sum(
            math.isinf(row["l2"])
            or (row["steps"] < longest and not (stops and row["l2"] <= np.float32(goal)))
            for row in picture.rows.values()
        )

    def repetition(self) -> list[str]:
        """The command's arguments that make the results once more, to the byte."""
        searches = self.settings.noise is None
        settings = dataclasses.replace(self.settings, batch_size=self.slots if searches else None)
        return [*self.named, *settings.as_flags()]

    def save_config(self) -> None:
        if self.output is not None and jax.process_index() == 0:
            configuration.save(self.output, self.config | {"slots": self.slots})


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
        output = None if output_dir is None else expanded(output_dir).absolute()
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
    degradation = told(settings.degradation)
    generator, params = make_generator(settings)
    _check_label(settings, generator)
    if settings.noise is None:
        settings = dataclasses.replace(settings, loss_str=_choose_loss(settings, generator))
    elif not importlib.util.find_spec("blackjax"):
        install = 'pip install "pulse_jax[posterior]"'
        raise ValueError(f"noise={settings.noise}: posterior samples take blackjax: {install}")
    elif generator.classes:
        known = f"{settings.generator} has {generator.classes}"
        raise ValueError(f"noise={settings.noise}: a posterior takes no classes, and {known}")
    check_space(settings)
    if isinstance(given, Iterable) and not isinstance(given, str | np.ndarray | jax.Array):
        given = list(given)
    sources = list_sources(given, settings.generator)
    networks = network_digest(params)
    found, failures = read_pictures(sources, settings, generator, networks, degradation)
    if not found:
        return Run(settings, generator, params, {}, (), [], output, {}, 0), failures
    earlier = {} if output is None else _opened(output, resume, at_end)
    seeds = _choose_seeds(settings, earlier)
    settings = dataclasses.replace(settings, seeds=seeds)
    if settings.noise is None:
        settings = dataclasses.replace(settings, scheme=settings.chosen_scheme)
    pictures = list(for_seeds(found, seeds, output))
    parts = settings, generator, params, degradation, pictures
    searches = _build(*parts) if settings.noise is None else {}
    config = configuration.describe(settings, params)
    if output is not None:
        configuration.check(output, earlier, config)
    # While a search is under way, slots that are left open are as many as before.
    before = earlier.get("slots") if output and configuration.is_under_way(output) else None
    named = [given] if isinstance(given, str | Path) else given if isinstance(given, list) else []
    run = Run(settings, generator, params, searches, seeds, pictures, output, config, 0)
    run.named = [str(source) for source in named if isinstance(source, str | Path)]
    if settings.noise is not None:
        run.densities = _build_densities(*parts)
        run.reader = checkpoint.load_reader(settings.generator)
    run.slots = _agreed(before or choose_slots(run))
    run.save_config()
    return run, failures


def make_generator(settings: Settings) -> tuple[Generator, Params]:
    """The generator that settings name, with the latent space or solver that they name."""
    name = settings.generator
    if is_plug_in(name):
        _refuse(settings, STYLES, "StyleGANs")
        _refuse(settings, DIFFUSION, "diffusion models")
        return plug_in(name)
    network, params = checkpoint.load_network(name, settings.space)
    if isinstance(network, DiffusionModel):
        _refuse(settings, STYLES, "StyleGANs")
        return diffusion_generator(network, settings.solver), params
    _refuse(settings, DIFFUSION, "diffusion models")
    generator = style_generator(
        network,
        noise_type=settings.noise_type,
        trainable_noise_layers=settings.num_trainable_noise_layers,
        zero_noise_layers=_existing(settings.bad_noise_layers, len(network.noise_shapes)),
        tile_latent=settings.tile_latent,
        equal_start=settings.equal_start and settings.style_spread is None,
        style_spread=settings.style_spread,
        space=settings.space,
        joint_sphere=settings.joint_sphere,
        exact_radius=settings.exact_radius,
        dtype=None if settings.dtype == "float32" else settings.dtype,
    )
    return generator, params


def _refuse(settings: Settings, group: str, kind: str) -> None:
    """Raises ValueError if a setting of a group isn't a default. It is for another kind."""
    for setting in dataclasses.fields(Settings):
        name = setting.name
        usual = [getattr(recipe, name) for recipe in RECIPES.values()]
        if setting.metadata["group"] == group and getattr(settings, name) not in usual:
            told = f"{name} is for {kind}: {settings.generator} has no such thing"
            raise ValueError(f"{name}={settings.as_json()[name]}: {told}")


def _existing(given: Sequence[int] | None, layers: int) -> set[int] | None:
    """The `bad_noise_layers` that the network has. None stays None."""
    if given is None:
        return None
    if max(given, default=0) >= layers:
        log.info(
            f"bad_noise_layers: there is no layer {max(given)}, since there are {layers} in all"
        )
    return set(given) & set(range(layers))


def _check_label(settings: Settings, generator: Generator) -> None:
    """Raises ValueError for a class that the generator doesn't have."""
    if settings.label is None or settings.label < generator.classes:
        return
    known = f"classes from 0 to {generator.classes - 1}" if generator.classes else "no classes"
    raise ValueError(f"label={settings.label}: {settings.generator} has {known}")


def _choose_loss(settings: Settings, generator: Generator) -> str:
    """The loss of the settings. By default, it has GEOCROSS if there are styles to compare."""
    if generator.styles is None and settings.loss_str is None:
        return "100*L2"
    if generator.styles is None and settings.loss().needs_styles:
        told = f"GEOCROSS compares style vectors, and {settings.generator} has none"
        raise ValueError(f"loss_str={settings.loss_str}: {told}")
    return settings.loss_str or LOSS


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


def _build(
    settings: Settings,
    generator: Generator,
    params: Params,
    degradation: Callable[[int], Operator],
    pictures: Sequence[Picture],
) -> dict[int, tuple[Operator, Search]]:
    """A search for each side of the pictures."""
    loss, searches = settings.loss(), {}
    for side in sorted({picture.side for picture in pictures}):
        operator = _make_operator(settings, generator, degradation, side)
        search = pulse_jax.build(generator, operator, loss, settings.optimizer())
        if settings.plug_ins():
            target = jax.ShapeDtypeStruct((side, side, generator.channels), np.float32)
            attempt_step(search, generator, params, target)
        searches[side] = operator, search
    return searches


def _make_operator(
    settings: Settings, generator: Generator, degradation: Callable[[int], Operator], side: int
) -> Operator:
    operator = degradation(generator.resolution // side)
    image_shape = generator.resolution, generator.resolution, generator.channels
    if plug_ins(settings.operator) and is_flat(operator, image_shape):
        log.warning(
            f"operator={settings.operator}: its gradient is 0 everywhere, so a search has no "
            f"direction to follow"
        )
    return operator


def _build_densities(
    settings: Settings,
    generator: Generator,
    params: Params,
    degradation: Callable[[int], Operator],
    pictures: Sequence[Picture],
) -> dict[int, tuple[Operator, Posterior]]:
    """A posterior for each side of the pictures."""
    densities = {}
    for side in sorted({picture.side for picture in pictures}):
        operator = _make_operator(settings, generator, degradation, side)
        density = draws.build(generator, operator, settings)
        gradient = jax.grad(density.loglikelihood, argnums=2)
        target = jax.ShapeDtypeStruct((side, side, generator.channels), np.float32)
        position = jax.eval_shape(density.sample, jax.random.key(0))
        attempt_call("the log density", jax.eval_shape, gradient, params, target, position)
        densities[side] = operator, density
    return densities


def attempt_step(
    search: Search, generator: Generator, params: Params, target: jax.ShapeDtypeStruct
) -> None:
    """Trace one step. Raises ValueError, in one line, if a part that plugs in doesn't fit."""

    def step(params: Params, target: Float[jax.Array, "h h c"]) -> tuple[SearchState, SearchState]:
        state = search.init(*generator.sample(jax.random.key(0)))
        return state, search.step(params, target, state)[0]

    states = attempt_call("a step of the search", jax.eval_shape, step, params, target)
    before, after = (jax.tree.map(lambda x: (x.shape, x.dtype), state) for state in states)
    if before != after:
        raise ValueError("a step of the search leaves a state of other shapes than it began with")


def choose_slots(run: Run) -> int:
    """What `batch_size` says. By default it is what fits, but no more than needed or worthwhile.

    A CPU gains nothing from more than a few, and its first results would come later. A few slots of
    a small generator fit anywhere, so the second that it takes to find that out is saved.
    """
    settings, generator = run.settings, run.generator
    if settings.noise is not None:
        return settings.restarts  # chains move together
    if settings.batch_size is not None:
        return settings.batch_size
    on_cpu = jax.default_backend() == "cpu"
    worthwhile = 8 if on_cpu else min(256, max(1, 2**24 // generator.resolution**2))
    needed = -(-settings.restarts * len(run.pictures) // jax.device_count())
    most = min(needed, worthwhile)
    if most * generator.resolution**2 <= 8 * 64**2:
        return most
    _, search = next(iter(run.searches.values()))  # sizes hardly matter: the generator takes it
    state = jax.eval_shape(lambda key: search.init(*generator.sample(key)), jax.random.key(0))
    target = jax.ShapeDtypeStruct(run.pictures[0].target.shape, np.float32)
    return fitting_slots(search, run.params, target, state, most, chunk=chunk(settings))


def _carry_out(
    run: Run, failures: list[str], progress: Callable[[Progress], None], stop: Callable[[], bool]
) -> Results:
    """Search for all that isn't done yet, and write what is about pictures and the run."""
    pictures, settings = run.pictures, run.settings
    counts = f"{counted(len(pictures) // len(run.seeds), 'picture')} × "
    samples = settings.noise is not None
    counts += f"{counted(settings.restarts, 'chain' if samples else 'restart')}"
    named = settings.as_json()["seeds"]
    several = len(run.seeds) > 1
    counts += f" × {len(run.seeds)} seeds" if several else ""
    log.info(f"{settings.generator}, seed{'s' * several} {named}: {counts}")

    for picture in pictures:
        save(picture, results.take_up)
    jobs = [] if samples else _take_up(run)
    stopped, timings = "", []
    with Writer() as writer:
        try:
            search = partial(_sample, run) if samples else partial(_search, run, jobs, writer)
            timings = list(search(progress, stop))
            if stop():
                usable = [picture for picture in pictures if not picture.error]
                done, total = sum(len(p.rows) for p in usable), settings.results * len(usable)
                noun = "draw" if samples else "restart"
                stopped = f"stopped when {done} of {counted(total, noun)} were done"
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            at_once = "all chains" if samples else "one restart"
            stopped = f"out of memory with {at_once} at once: {one_line(error)[:200]}"
    if jax.process_count() > 1 and not stopped:
        multihost_utils.sync_global_devices("results")
    first = jax.process_index() == 0
    for picture in pictures if first else ():
        save(picture, results.take_up)  # what other processes have done
        _finish(run, picture, bool(stopped))
        if failed := run.failed(picture):
            seed = f", seed {picture.seed}" if several else ""
            counts = f"{failed} of {counted(len(picture.rows), 'restart')} failed"
            told_of = f"{picture.name}{seed}: {counts}"
            log.warning(f"{told_of}, since the loss or its gradient wasn't finite")
        if not (run.is_complete(picture) or stopped):  # the process that failed has told why
            picture.error = picture.error or f"{picture.folder}: not all restarts are saved"
    if first and (complaint := attempt(_compare, run)):
        failures.append(complaint)
    failures += [picture.error for picture in pictures if picture.error]
    if first and run.output is not None:
        failures += _conclude(run, run.output, failures, timings)
    return Results(tuple(pictures), tuple(failures), settings, stopped)


def _take_up(run: Run) -> list[Restart]:
    """The restarts that this process has to search, with what earlier runs have come to."""
    usable = [picture for picture in run.pictures if not picture.error]
    numbers = range(1, run.settings.restarts + 1)
    pairs = [(i, k) for i in range(len(usable)) for k in numbers]
    own = in_turn(pairs[jax.process_index() :: jax.process_count()])
    share = [Restart(usable[i], k, run.settings.steps) for i, k in own]
    jobs = [job for job in share if job.number not in job.picture.rows]
    for job in jobs:
        save(job.picture, results.take_up_restart, job)
    if len(jobs) < len(share):
        done, whole = len(share) - len(jobs), counted(len(share), "restart")
        log.info(f"{done} of {whole} had been done before: {len(jobs)} to go")
    return jobs


def _search(
    run: Run,
    jobs: Sequence[Restart],
    writer: Writer,
    progress: Callable[[Progress], None],
    stop: Callable[[], bool],
) -> Iterator[dict[str, Any]]:
    """Search for all restarts, size by size, and save them. Yields rows for timings.csv."""
    settings = run.settings
    draw = make_draw(run.generator, settings)
    most = sum(settings.steps - job.steps for job in jobs)
    at_once = run.slots * jax.local_device_count()
    course = Course(len(jobs), most, settings.stop_at_eps, at_once)
    progress(course.progress)
    for side, (operator, search) in run.searches.items():
        own = [job for job in jobs if job.picture.side == side]
        if not own or stop():
            continue
        began, steps = time.perf_counter(), 0
        for slots, made, done in search_all(
            own,
            run.slots,
            generator=run.generator,
            params=run.params,
            operator=operator,
            search=search,
            draw=draw,
            settings=settings,
            writer=writer,
            stop=stop,
        ):
            steps += made
            course.note(made, len(done), sum(settings.steps - job.steps for job in done))
            progress(course.progress)
            if jax.process_count() == 1:
                for picture in {job.picture for job in done if run.is_complete(job.picture)}:
                    resolution = run.generator.resolution
                    writer(save, picture, results.finish, resolution, settings.eps)
            if slots < run.slots:  # memory ran out
                run.slots = slots
                attempt(run.save_config)
        seconds = time.perf_counter() - began
        yield {"side": side, "restarts": len(own), "steps": steps, "seconds": seconds}


def _sample(
    run: Run, progress: Callable[[Progress], None], stop: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Draw from the posteriors of all pictures, one by one. Yields rows for timings.csv."""
    settings = run.settings
    share = run.pictures[jax.process_index() :: jax.process_count()]
    own = [picture for picture in share if not (picture.error or run.is_complete(picture))]
    course = Course(len(own), len(own) * (2 * settings.steps + settings.draws), False, 1)
    start = make_draw(run.generator, settings)

    def tell(told: str = "") -> None:
        done = f"{course.ended} of {counted(len(own), 'picture')}"
        progress(course.progress._replace(told=", ".join(filter(None, [done, told]))))

    def draw(picture: Picture) -> None:
        operator, density = run.densities[picture.side]
        chains = draws.Chains(picture, settings, density, run.params, start, run.reader)
        for now in chains.run(stop):
            course.note(now.made, 0, now.spared)
            tell(now.told)
        if chains.made == settings.draws:
            chains.finish(operator)

    tell()
    for side in run.densities:
        began, made = time.perf_counter(), course.made
        pictures = [picture for picture in own if picture.side == side]
        for picture in pictures:
            if not stop():
                save(picture, draw)
                course.note(0, 0 if stop() else 1, 0)
                tell()
        if pictures:
            steps, seconds = course.made - made, time.perf_counter() - began
            row = {"side": side, "restarts": len(pictures) * settings.restarts}
            yield row | {"steps": steps * settings.restarts, "seconds": seconds}


def _finish(run: Run, picture: Picture, stopped: bool) -> None:
    """Write what is about all restarts of a picture, if they are done or none follows."""
    if run.is_complete(picture):
        save(picture, results.finish, run.generator.resolution, run.settings.eps)
    elif stopped and picture.rows and picture.folder is not None:
        save(picture, results.overview, run.generator.resolution, run.settings.eps)


def _compare(run: Run) -> None:
    """Tell which pictures are unlike those that the generator makes, if that is known of them."""
    settings, own = run.settings, familiarity.read(run.settings)
    done = [p for p in run.pictures if str(p.side) in own and run.is_complete(p) and not p.error]
    if not done:
        return
    score = familiarity.make_score(settings.generator)

    def compare(picture: Picture) -> None:
        picture.unlike = familiarity.difference(picture, settings, own, score)
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
