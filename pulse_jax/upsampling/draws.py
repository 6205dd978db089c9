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
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from pulse_jax import chains, diagnostics
from pulse_jax.chains import Warming, WarmUp
from pulse_jax.files import counted, load_arrays, npz, one_line, write
from pulse_jax.generators.reader import Reader
from pulse_jax.images import save_image
from pulse_jax.losses import Image, l2
from pulse_jax.posterior import Position, Posterior
from pulse_jax.progress import Course, Progress, Underway
from pulse_jax.samplers import Info
from pulse_jax.starts import GENERATOR, by_name
from pulse_jax.types import AnyArray, Params
from pulse_jax.upsampling import maps, results
from pulse_jax.upsampling.parts import Run
from pulse_jax.upsampling.pictures import Picture
from pulse_jax.upsampling.restarts import PATIENCE, SHARE, Draw, make_draw, restart_keys
from pulse_jax.upsampling.results import APART, MET, Restart, save
from pulse_jax.upsampling.settings import Settings

log = logging.getLogger("pulse_jax")

LARGEST_RHAT = 1.05  # of chains that have met, of all statistics
PROJECTIONS = 20  # of an image to random directions, by which chains are judged
STATISTICS = "log density", *(f"projection {i}" for i in range(1, PROJECTIONS + 1))
CHUNK = 10  # transitions between two looks at the chains, at most
LARGEST = 2**28  # values in an array of a picture: of its images, or of its Jacobians


class Now(NamedTuple):
    """How far a picture's chains are, after each chunk."""

    made: int  # transitions of each chain in this chunk
    left: int  # that each still has to make, as far as is known
    told: str  # in words
    underway: Callable[[], list[Underway]]  # shows where they are


class Plan(NamedTuple):
    """How often each chain draws, and which draws are kept: those of numbers that these divide.

    What a doubled plan keeps of the earlier draws, the one before has kept too.
    """

    draws: int
    thinning: int  # for positions, whose images are shown
    stride: int  # for images that the maps are made from; it divides `thinning`

    def doubled(self, values: int) -> "Plan":
        """The plan for twice as many draws. `values`: of an image of each chain."""
        fits = 2 * self.draws * values <= self.stride * LARGEST
        return Plan(2 * self.draws, 2 * self.thinning, self.stride if fits else 2 * self.stride)


def kept(first: int, number: int, every: int) -> list[int]:
    """Of so many draws after the `first`, those whose number `every` divides, counted from 1."""
    return [i for i in range(number) if (first + i + 1) % every == 0]


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
        self.statistics = [*STATISTICS, *(self.reader.names if self.reader else ())]
        whole, split = chains.placements(settings.restarts)
        self.params = params
        self.inputs: tuple[Params, Array] = jax.device_put((params, picture.target), whole)
        generator = density.generator
        self.image_shape = generator.resolution, generator.resolution, generator.channels
        jobs = [Restart(picture, number, 0) for number in range(settings.restarts + 1)]
        key, *keys = restart_keys(
            np.full(len(jobs), picture.seed, np.uint32),
            np.full(len(jobs), picture.pixels, np.uint32),
            np.arange(len(jobs)),
        )
        self.warm_up_key, self.draw_key = jax.random.split(key)
        if settings.init_from is None:
            chain_keys = jax.device_put(jnp.stack(keys), split)
            positions = chains.starts(chain_keys, density, *self.inputs)
        else:
            positions = jax.tree.map(lambda leaf: leaf[:, None], density.join(*start(jobs[1:])))
        self.positions = jax.device_put(positions, split)
        # A preconditioner is found from the Jacobians of all chains.
        one = jax.tree.leaves(jax.tree.map(lambda leaf: leaf[:, 0], self.positions))
        size = sum(leaf.size for leaf in one) * picture.target.size
        if size > LARGEST:
            told = "too large for a preconditioner: its chains will meet later"
            log.info(one_line(f"{picture.name}: {told}"))
        self.warm_up = WarmUp(density, settings.steps, precondition=size <= LARGEST)
        size = math.prod(self.image_shape)
        self.values = settings.restarts * size  # of the images of each chain's next draw
        self.plan = Plan(settings.draws, settings.thinning, image_stride(settings, size))
        self.made = 0  # draws of each chain
        self.found: list[dict[str, np.ndarray]] = []  # (chains, draws, ...) of each chunk
        self.saved, self.saved_at, self.cost = 0, time.monotonic(), 0.0  # chunks, and seconds

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
        warming = self.take_up(warming)
        length = chunk_length(self.settings.steps // 2)
        while left := self.warm_up.left(warming):
            warming = self.warm_up.step(self.warm_up_key, *self.inputs, warming, length)
            jax.block_until_ready(warming.state)
            still = self.warm_up.left(warming)
            told = f"{whole - still} of {whole} transitions to warm up"
            shown = partial(self.underway, warming)
            yield Now(left - still, still + self.plan.draws, told, shown)
            if self.save_if_due(warming, stop()):
                return
        sampler, rhat = self.warm_up.sampler(warming), ""
        length = chunk_length(self.settings.draws)
        directions = random_directions(self.image_shape)
        looks = {length * round(self.settings.draws / part / length) for part in (4, 2)}
        while self.made < self.plan.draws or self.goes_on(warming):
            number = min(length, self.plan.draws - self.made)
            key = jax.random.fold_in(self.draw_key, self.made)
            state, positions, info = chains.draw(key, sampler, *self.inputs, warming.state, number)
            warming = warming._replace(state=state)
            looked = self.reader, self.reader_params, directions
            self.note(positions, info, measure(self.density, *self.inputs, *looked, positions))
            if self.made in looks and self.made >= 20:  # each takes a program of its own
                rhat = f", R-hat {diagnostics.rhat(self.all('statistics')).max():.2f}"
            rate = self.all("acceptance_rate").mean()
            told = f"{self.made} of {self.plan.draws} draws, acceptance {rate:.2f}{rhat}"
            left = self.plan.draws - self.made
            yield Now(number, left, told, partial(self.underway, warming))
            if left and self.save_if_due(warming, stop()):
                return

    def goes_on(self, warming: Warming) -> bool:
        """Write the results of all draws. If the chains haven't met, double the plan, if it may be.

        What such chains need to go on is kept, also for a later run whose settings have more draws.
        """
        self.finish()
        if self.picture.folder is not None and results.is_apart(self.picture):
            self.save(warming)
        if not is_wanting(self.picture, self.settings):
            return False
        before = self.plan
        self.plan = before.doubled(self.values)
        first = 0
        for chunk in self.found:
            first += self.thin(chunk, first, before)
        return True

    def thin(self, chunk: dict[str, np.ndarray], first: int, before: Plan) -> int:
        """Leave of a chunk after the `first` draws what the plan keeps. Returns its draws.

        `before`: the plan by which it was kept.
        """
        number = chunk["l2"].shape[1]
        for name in chunk:
            if name == "images" or name.startswith("position_"):
                which = "stride" if name == "images" else "thinning"
                had = kept(first, number, getattr(before, which))
                still = set(kept(first, number, getattr(self.plan, which)))
                chunk[name] = chunk[name][:, [k for k, i in enumerate(had) if i in still]]
        return number

    def note(self, positions: Position, info: Info, measured: dict[str, AnyArray]) -> None:
        """Keep a chunk of draws: all that is measured, and of images and positions some."""
        chunk = {name: np.asarray(values) for name, values in measured.items()}
        chunk |= {name: np.asarray(getattr(info, name)) for name in INFO}
        number = chunk["l2"].shape[1]
        chunk["images"] = chunk["images"][:, kept(self.made, number, self.plan.stride)]
        shown = np.array(kept(self.made, number, self.plan.thinning), int)
        for i, leaf in enumerate(jax.tree.leaves(positions)):
            chunk[f"position_{i:03d}"] = np.asarray(leaf[:, shown])
        self.found.append(chunk)
        self.made += number

    def shapes(self, number: int, plan: Plan) -> dict[str, tuple[int, ...]]:
        """Of what `note` keeps of so many next draws."""
        images, shown = (len(kept(self.made, number, n)) for n in (plan.stride, plan.thinning))
        of_chain: dict[str, tuple[int, ...]] = dict.fromkeys(("l2", *INFO), (number,))
        of_chain["statistics"] = number, len(self.statistics)
        of_chain["images"] = images, *self.image_shape
        for i, leaf in enumerate(jax.tree.leaves(self.positions)):
            of_chain[f"position_{i:03d}"] = shown, *leaf.shape[2:]
        return {name: (self.settings.restarts, *shape) for name, shape in of_chain.items()}

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

    def all(self, name: str) -> Shaped[np.ndarray, "chains draws ..."]:
        """What has been noted so far of this name."""
        return np.concatenate([chunk[name] for chunk in self.found], axis=1)

    def shown(self) -> list[Position]:
        """The thinned draws' positions: of the first time of each chain, then of the next."""
        likes, structure = jax.tree.flatten(self.positions)
        leaves = [self.all(f"position_{i:03d}") for i in range(len(likes))]
        count = self.settings.results
        flat = [leaf.swapaxes(0, 1).reshape(count, *leaf.shape[2:]) for leaf in leaves]
        return [jax.tree.unflatten(structure, [leaf[i] for leaf in flat]) for i in range(count)]

    # --- What the chains have found. ---

    def finish(self) -> None:
        """Write the results of all draws so far, or keep them in memory.

        Images that aren't finite are left out of the maps, whose chains then haven't met. Raises
        ValueError if none is.
        """
        picture, statistics = self.picture, self.all("statistics")
        images = self.all("images")
        images = images.reshape(-1, *images.shape[2:])
        images = images[np.isfinite(images).all((1, 2, 3))]
        if not len(images):
            raise ValueError("none of the draws' images is finite")
        figures = diagnostics.diagnose(statistics)
        judged = judge(figures)
        found, shares = maps.summarise(images), {}
        if self.reader:
            read = statistics[..., len(STATISTICS) :].reshape(-1, len(self.reader.names))
            shares = self.reader.shares(read)
        degrade, latents = jax.jit(self.density.operator), []
        for number, position in enumerate(self.shown(), 1):
            hr = results.eight_bits(image_of(self.density, self.params, position))
            lr = np.asarray(degrade(hr))
            latents.append(by_name(*self.density.split(position)))
            picture.rows[number] = self.record(number, hr, lr) | judged
            if picture.folder is None:
                picture.kept[number] = hr, latents[-1]
            else:
                results.save_images(picture, number, hr, lr)
        if picture.folder is None:
            picture.kept_maps, picture.kept_shares = found, shares
        else:
            lr_mean = results.eight_bits(degrade(found["mean"]))
            self.write_whole(found, lr_mean, latents, figures, shares)

    def write_whole(
        self,
        found: dict[str, Float[np.ndarray, "r r c"]],
        lr_mean: Float[np.ndarray, "h h c"],
        latents: list[dict[str, np.ndarray]],
        figures: diagnostics.Diagnostics,
        shares: dict[str, dict[str, float]],
    ) -> None:
        """Write what is about all draws. results.csv comes last, and says that all is done."""
        picture, statistics = self.picture, self.all("statistics")
        for name, values in found.items():
            maps.save(picture.place, name, values)
        save_image(picture.place / "lr_mean.png", lr_mean)
        results.save_grid(picture, self.density.generator.resolution)
        joined = {name: np.stack([arrays[name] for arrays in latents]) for name in latents[0]}
        write(picture.place / "latents.npz", npz(joined | {GENERATOR: picture.networks}))
        columns = {"mean": statistics.mean((0, 1)), "std": statistics.std((0, 1))}
        columns |= figures._asdict()
        table = [
            {"statistic": name} | {column: float(x[i]) for column, x in columns.items()}
            for i, name in enumerate(self.statistics)
        ]
        write(picture.place / "diagnostics.csv", results.as_csv(table))
        if shares:
            rows = [
                {"attribute": name, "kind": kind, "share": share}
                for name, kinds in shares.items()
                for kind, share in kinds.items()
            ]
            write(picture.place / "attributes.csv", results.as_csv(rows))
        rows = [row for _, row in sorted(picture.rows.items())]
        write(picture.place / "results.csv", results.as_csv(rows))
        if not results.is_apart(picture):
            results.clear(picture)

    def record(
        self, number: int, hr: Float[np.ndarray, "r r c"], lr: Float[np.ndarray, "h h c"]
    ) -> dict[str, Any]:
        """A row of results.csv, of a thinned draw. Raises ValueError as `put_back` does."""
        picture = self.picture
        turn, chain = divmod(number - 1, self.settings.restarts)
        draw = (turn + 1) * self.plan.thinning - 1
        l2_saved = float(l2(lr, picture.target))
        put_back = {} if picture.origin is None else {"l2_put_back": picture.l2_put_back(hr)}
        return results.identity(Restart(picture, number, 0)) | {
            "chain": chain + 1,
            "draw": draw + 1,
            "draws": self.made,
            "l2": float(self.all("l2")[chain, draw]),
            "l2_saved": l2_saved,
            "l2_relative": picture.relative(l2_saved),
            "log_density": float(self.all("statistics")[chain, draw, 0]),
            "acceptance_rate": float(self.all("acceptance_rate")[chain].mean()),
            "divergent": int(self.all("is_divergent")[chain].sum()),
            "evaluations": int(self.all("evaluations")[chain].sum()),
            **put_back,
        }

    # --- What is under way, on disk. ---

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
        if new := self.found[self.saved :]:
            first = self.made - sum(chunk["l2"].shape[1] for chunk in new)
            joined = {name: np.concatenate([chunk[name] for chunk in new], 1) for name in new[0]}
            write(folder / f"draws_{first:06d}.npz", npz(joined | {"row": row}))
        leaves = jax.device_get(jax.tree.leaves(warming._replace(learned=None)))
        arrays = {f"{i:03d}": leaf for i, leaf in enumerate(leaves)}
        write(folder / "state.npz", npz(arrays | {"made": self.made, "row": row}))
        self.saved = len(self.found)

    def take_up(self, start: Warming) -> Warming:
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
        named = {f"{i:03d}": like for i, like in enumerate(likes)}
        shapes: dict[str, tuple[int, ...]] = {name: like.shape for name, like in named.items()}
        arrays = numbers(path)
        check_shapes(path, arrays, shapes | {"made": ()})
        leaves = [chains.as_placed(arrays[name], like) for name, like in named.items()]
        warming = jax.tree.unflatten(structure, leaves)._replace(learned=start.learned)
        total, plans = int(arrays["made"]), [self.plan]
        while plans[-1].draws < total:
            plans.append(plans[-1].doubled(self.values))
        self.plan = plans[-1]
        while self.made < total:
            path = folder / f"draws_{self.made:06d}.npz"
            chunk = numbers(path)
            count = max(1, np.size(chunk.get("l2", ())) // self.settings.restarts)
            plan = next(plan for plan in plans if self.made < plan.draws)  # by which it was kept
            check_shapes(path, chunk, self.shapes(count, plan))
            self.thin(chunk, self.made, plan)
            self.found.append(chunk)
            self.made += count
        self.saved = len(self.found)
        return warming._replace(learned=self.warm_up.learned(*self.inputs, warming))


def numbers(path: Path) -> dict[str, np.ndarray]:
    """The arrays of numbers in a file. Raises ValueError if it can't be read."""
    return {name: array for name, array in load_arrays(path).items() if array.dtype.kind in "biuf"}


def check_shapes(
    path: Path, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ValueError if a file holds other arrays, or of other shapes, than this run keeps."""
    if {name: array.shape for name, array in arrays.items()} != shapes:
        told = f"of another run or version; remove {path.parent} to begin anew"
        raise ValueError(f"{path}: {told}")


def judge(figures: diagnostics.Diagnostics) -> dict[str, Any]:
    """Whether chains have met, in the columns of results.csv: the worst of all statistics."""
    rhat = float(figures.rhat.max())
    ess = float(np.minimum(figures.ess_bulk, figures.ess_tail).min())
    return {"rhat": rhat, "ess": ess, "status": MET if rhat <= LARGEST_RHAT else APART}


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


def image_stride(settings: Settings, size: int) -> int:
    """The draws of which one's image counts in the maps: each, if all fit into memory."""
    values = settings.restarts * settings.draws * size
    strides = range(1, settings.thinning)
    fitting = (n for n in strides if settings.thinning % n == 0 and values <= n * LARGEST)
    return next(fitting, settings.thinning)


def random_directions(shape: tuple[int, int, int]) -> Float[Array, "k r r c"]:
    """The same for all pictures and seeds. A projection has the size of one pixel's deviation."""
    return jax.random.normal(jax.random.key(0), (PROJECTIONS, *shape)) / math.prod(shape) ** 0.5


# Compiled for one image at a time, as for a search, and once for all pictures of a side.
image_of = jax.jit(Posterior.image)


@partial(jax.jit, static_argnames="reader")
def measure(
    density: Posterior,
    params: Params,
    target: Image,
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
