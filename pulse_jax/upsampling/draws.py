"""Posterior samples of a picture: chains that are warmed up, drawn from, and judged.

The chains of a picture move together. What is under way is saved every `PATIENCE` seconds, or less
often, so that saving takes at most `SHARE` of the time. A run that is cut off at any moment loses
no more than that interval, or the current chunk if it takes longer. The state is saved whole each
time, and the draws since the last time in a file of their own.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from pulse_jax import chains, diagnostics
from pulse_jax.chains import Warming, WarmUp
from pulse_jax.files import counted, npz, one_line, write
from pulse_jax.generators.reader import Reader
from pulse_jax.losses import l2
from pulse_jax.posterior import Position, Posterior
from pulse_jax.progress import Course, Progress, Underway
from pulse_jax.samplers import Info
from pulse_jax.starts import by_name
from pulse_jax.types import AnyArray, Degraded, Params
from pulse_jax.upsampling import results
from pulse_jax.upsampling.estimates import Estimates, image_of
from pulse_jax.upsampling.kept_draws import (
    LARGEST,
    POSITION,
    KeptDraws,
    check_shapes,
    make_plan,
    numbers,
)
from pulse_jax.upsampling.parts import Run
from pulse_jax.upsampling.pictures import Picture
from pulse_jax.upsampling.restarts import PATIENCE, SHARE, Draw, make_draw, restart_keys
from pulse_jax.upsampling.results import Restart, save
from pulse_jax.upsampling.settings import Settings

log = logging.getLogger("pulse_jax")

PROJECTIONS = 20  # of an image to random directions, by which chains are judged
STATISTICS = "log density", *(f"projection {i}" for i in range(1, PROJECTIONS + 1))
CHUNK = 10  # transitions between two looks at the chains, at most


class Now(NamedTuple):
    """How far a picture's chains are, after each chunk."""

    made: int  # transitions of each chain in this chunk
    left: int  # that each still has to make, as far as is known
    told: str  # in words
    underway: Callable[[], list[Underway]]  # shows where they are


def carry_out(
    run: Run, progress: Callable[[Progress], None], stop: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Draw from the posterior of each picture of a run. Yields rows for timings.csv."""
    settings = run.settings
    share = run.pictures[jax.process_index() :: jax.process_count()]
    own = [picture for picture in share if not picture.error and is_wanting(picture, settings)]
    length = warm_up_length(settings) + settings.draws
    course = Course(len(own), len(own) * length, False, 1)
    start = make_draw(run.generator, settings)

    def tell(told: str = "", underway: Callable[[], Sequence[Underway]] = tuple) -> None:
        done = f"{course.ended} of {counted(len(own), 'picture')}"
        told = ", ".join(filter(None, [done, told]))
        progress(course.progress._replace(told=told, underway=underway))

    def draw(picture: Picture) -> None:
        density = run.posteriors[picture.side]
        its_chains = Chains(picture, settings, density, run.params, start, run.reader)
        left = length
        for now in its_chains.run(stop):
            course.note(now.made, 0, left - now.made - now.left)
            left = now.left
            tell(now.told, now.underway)

    tell()
    for side in run.posteriors:
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


class Chains:
    """A picture's chains, and what they have drawn so far.

    `start`: from `make_draw`. `reader`: what tells which attributes the draws have, if anything.
    """

    def __init__(
        self,
        picture: Picture,
        settings: Settings,
        density: Posterior,
        params: Params,
        start: Draw,
        reader: tuple[Reader, Params] | None = None,
    ) -> None:
        self.picture, self.settings, self.density = picture, settings, density
        self.reader: Reader | None
        self.reader_params: Params
        self.reader, self.reader_params = reader or (None, {})
        statistics = [*STATISTICS, *(self.reader.names if self.reader else ())]
        whole, split = chains.placements(settings.restarts)
        self.params = params
        self.inputs: tuple[Params, Array] = jax.device_put((params, picture.target), whole)
        generator = density.generator
        image = generator.resolution, generator.resolution, generator.channels
        self.directions = random_directions(image)
        numbers = np.arange(settings.restarts + 1)  # from 1 on, of the chains
        key, *keys = restart_keys(
            np.full(len(numbers), picture.seed, np.uint32),
            np.full(len(numbers), picture.pixels, np.uint32),
            numbers,
        )
        self.warm_up_key, self.draw_key = jax.random.split(key)
        if settings.init_from is None:
            chain_keys = jax.device_put(jnp.stack(keys), split)
            positions = chains.starts(chain_keys, density, *self.inputs)
        else:
            earlier = start([Restart(picture, int(number), 0) for number in numbers[1:]])
            positions = jax.tree.map(lambda leaf: leaf[:, None], density.join(*earlier))
        self.positions = jax.device_put(positions, split)
        self.warm_up = WarmUp(density, settings.steps, precondition=self.preconditions())
        plan = make_plan(settings.draws, settings.thinning, settings.restarts * math.prod(image))
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("l2", *INFO), ())
        shapes |= {"statistics": (len(statistics),), "images": image}
        shapes |= {name: leaf.shape[2:] for name, leaf in named(self.positions).items()}
        self.kept = KeptDraws(plan, settings.restarts, shapes)
        self.checkpoint = Checkpoint(picture, self.warm_up, self.inputs, self.kept)
        structure = jax.tree.structure(self.positions)
        judged = structure, statistics, self.reader
        self.estimates = Estimates(picture, settings, density, params, self.kept, *judged)

    def preconditions(self) -> bool:
        """Whether the Jacobians of all chains, of which a preconditioner is made, aren't too large.

        On spheres there is none.
        """
        if self.density.prior == "spheres":
            return False
        one = jax.tree.leaves(jax.tree.map(lambda leaf: leaf[:, 0], self.positions))
        if sum(leaf.size for leaf in one) * self.picture.target.size <= LARGEST:
            return True
        told = "too large for a preconditioner: its chains will meet later"
        log.info(one_line(f"{self.picture.name}: {told}"))
        return False

    def run(self, stop: Callable[[], bool]) -> Iterator[Now]:
        """Move the chains to their end, a chunk at a time. `stop()` is asked after each.

        Raises ValueError if the density is finite at none of the starts, or if a file can't be
        read, and OSError if one can't be written.
        """
        whole = warm_up_length(self.settings)
        try:
            warming = self.warm_up.init(*self.inputs, self.positions)
        except ValueError as error:
            told = f"{self.picture.name}: noise={self.settings.noise}: {error}"
            raise ValueError(told) from error
        warming = self.checkpoint.restore(warming)
        length = chunk_length(self.settings.steps // 2)
        while left := self.warm_up.left(warming):
            warming = self.warm_up.step(self.warm_up_key, *self.inputs, warming, length)
            jax.block_until_ready(warming.state)
            still = self.warm_up.left(warming)
            told = f"{whole - still} of {whole} transitions to warm up"
            shown = partial(self.underway, warming)
            yield Now(left - still, still + self.kept.plan.draws, told, shown)
            if self.checkpoint.save_if_due(warming, stop()):
                return
        sampler, rhat = self.warm_up.sampler(warming), ""
        length = chunk_length(self.settings.draws)
        looks = {length * round(self.settings.draws / part / length) for part in (4, 2)}
        kept = self.kept
        while kept.made < kept.plan.draws or self.goes_on(warming):
            number = min(length, kept.plan.draws - kept.made)
            key = jax.random.fold_in(self.draw_key, kept.made)
            state, positions, info = chains.draw(key, sampler, *self.inputs, warming.state, number)
            warming = warming._replace(state=state)
            kept.note(self.measure(positions) | named(positions) | given(info))
            if kept.made in looks and kept.made >= 20:  # each takes a program of its own
                rhat = f", R-hat {diagnostics.rhat(kept.all('statistics')).max():.2f}"
            rate, left = kept.all("acceptance_rate").mean(), kept.plan.draws - kept.made
            told = f"{kept.made} of {kept.plan.draws} draws, acceptance {rate:.2f}{rhat}"
            yield Now(number, left, told, partial(self.underway, warming))
            if left and self.checkpoint.save_if_due(warming, stop()):
                return

    def goes_on(self, warming: Warming) -> bool:
        """Write the results of all draws. If the chains haven't met, double the plan, if it may be.

        What such chains need to go on is kept, also for a later run whose settings have more draws.
        That one doesn't write the same results once more.
        """
        if self.picture.rows.get(1, {}).get("draws") != self.kept.made:
            self.estimates.finish()
            if self.picture.folder is not None and results.is_apart(self.picture):
                self.checkpoint.save(warming)
        if wanting := is_wanting(self.picture, self.settings):
            self.kept.double()
        return wanting

    def measure(self, positions: Position) -> dict[str, AnyArray]:
        looked = self.reader, self.reader_params, self.directions
        return measure(self.density, *self.inputs, *looked, positions)

    def underway(self, warming: Warming) -> list[Underway]:
        """Where the chains are."""
        positions, found = jax.device_get(warming.state.position), []
        for chain in range(self.settings.restarts):
            position = jax.tree.map(lambda leaf, i=chain: leaf[i], positions)
            image = results.eight_bits(image_of(self.density, self.params, position))
            error = float(l2(self.density.operator(image), self.picture.target))
            latents = by_name(*self.density.split(position))
            found.append(Underway(self.picture, chain + 1, error, image, latents))
        return [one for one in found if np.isfinite(one.image).all()]


class Checkpoint:
    """A picture's chains under way, on disk: saved from time to time, and gone on from."""

    def __init__(
        self, picture: Picture, warm_up: WarmUp, inputs: tuple[Params, Array], kept: KeptDraws
    ) -> None:
        self.picture, self.warm_up, self.inputs, self.kept = picture, warm_up, inputs, kept
        self.saved_at, self.cost = time.monotonic(), 0.0  # in seconds

    def save_if_due(self, warming: Warming, stopping: bool) -> bool:
        """Save the state and the draws, if it is time or all is `stopping`. Returns the latter."""
        due = time.monotonic() >= self.saved_at + max(PATIENCE, self.cost / SHARE)
        if (due or stopping) and self.picture.folder is not None:
            began = time.monotonic()
            self.save(warming)
            self.saved_at = time.monotonic()
            self.cost = self.saved_at - began
        return stopping

    def save(self, warming: Warming) -> None:
        """The draws come first: without the state that follows them, they are made once more."""
        folder = self.picture.place / "parts"
        folder.mkdir(parents=True, exist_ok=True)
        row = json.dumps({"checksum": self.picture.checksum})
        self.kept.save(folder, row)
        leaves = jax.device_get(jax.tree.leaves(warming._replace(learned=None)))
        arrays = {f"{i:03d}": leaf for i, leaf in enumerate(leaves)}
        write(folder / "state.npz", npz(arrays | {"made": self.kept.made, "row": row}))

    def restore(self, start: Warming) -> Warming:
        """What an earlier run has saved, or else the start.

        Raises ValueError for a file of a version that kept other arrays, or of other shapes.
        """
        if self.picture.folder is None:
            return start
        folder = self.picture.place / "parts"
        path = folder / "state.npz"
        if not path.is_file():
            return start
        likes, structure = jax.tree.flatten(start._replace(learned=None))
        wanted = {f"{i:03d}": like for i, like in enumerate(likes)}
        shapes: dict[str, tuple[int, ...]] = {name: like.shape for name, like in wanted.items()}
        arrays = numbers(path)
        check_shapes(path, arrays, shapes | {"made": ()})
        leaves = [chains.as_placed(arrays[name], like) for name, like in wanted.items()]
        warming = jax.tree.unflatten(structure, leaves)._replace(learned=start.learned)
        self.kept.read(folder, int(arrays["made"]))
        return warming._replace(learned=self.warm_up.learned(*self.inputs, warming))


def is_wanting(picture: Picture, settings: Settings) -> bool:
    """Whether draws of a picture are still to be made: the first, or as many again.

    Where R-hat isn't finite, since images aren't, more draws don't mend that.
    """
    if len(picture.rows) < settings.results:
        return True
    row = picture.rows[1]
    grows = 2 * row["draws"] <= (settings.max_draws or 0)
    return results.is_apart(picture) and math.isfinite(row["rhat"]) and grows


INFO = "acceptance_rate", "is_divergent", "evaluations"


def given(info: Info) -> dict[str, AnyArray]:
    """What is kept of a transition's info."""
    return {name: getattr(info, name) for name in INFO}


def named(positions: Position) -> dict[str, Array]:
    """The leaves of positions, by the names under which they are kept."""
    return {f"{POSITION}{i:03d}": leaf for i, leaf in enumerate(jax.tree.leaves(positions))}


def warm_up_length(settings: Settings) -> int:
    """In transitions of a chain."""
    starts = chains.STARTS if settings.init_from is None else 1
    return sum(chains.parts_of_warm_up(settings.steps, starts))


def chunk_length(number: int) -> int:
    """Of chunks that make up so many transitions: one program for all, if some length divides it.

    If only short ones do, the last chunk is shorter, and takes a program of its own.
    """
    whole = (n for n in range(CHUNK, CHUNK // 2 - 1, -1) if number % n == 0)
    return next(whole, min(CHUNK, number))


def random_directions(shape: tuple[int, int, int]) -> Float[Array, "k r r c"]:
    """The same for all pictures and seeds. A projection has the size of one pixel's deviation."""
    return jax.random.normal(jax.random.key(0), (PROJECTIONS, *shape)) / math.prod(shape) ** 0.5


@partial(jax.jit, static_argnames="reader")
def measure(
    density: Posterior,
    params: Params,
    target: Degraded,
    reader: Reader | None,
    reader_params: Params,
    directions: Float[Array, "k r r c"],
    positions: Position,
) -> dict[str, AnyArray]:
    """Images of draws (chains, n, ...), and what chains are judged by.

    These are `STATISTICS`, and what a reader reads off the images.
    """

    def one(position: Position) -> dict[str, AnyArray]:
        image = density.image(params, position)
        lr = density.operator(image)
        value = density.likelihood.logpdf(lr, target) + density.logprior(position)
        projections = jnp.tensordot(directions, image, 3)
        statistics = jnp.concatenate([value[None], projections])
        if reader is not None:
            read: Any = reader.apply({"params": reader_params}, jnp.clip(image, 0, 1)[None])
            statistics = jnp.concatenate([statistics, read[0]])
        return {"images": image, "l2": l2(lr, target), "statistics": statistics}

    return jax.vmap(lambda draws: jax.lax.map(one, draws))(positions)
