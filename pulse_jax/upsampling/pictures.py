"""The pictures of a run: how they are read and resized, and what is known of their results."""

import csv
import dataclasses
import functools
import logging
import math
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pulse_jax import images, operators, starts
from pulse_jax.align import put_back
from pulse_jax.align.ffhq import Quad
from pulse_jax.files import (
    attempt,
    counted,
    expanded,
    file_digest,
    load_arrays,
    one_line,
    read_json,
)
from pulse_jax.generators import Generator, checkpoint
from pulse_jax.operators import Operator
from pulse_jax.types import AnyArray, Frozen, Latents
from pulse_jax.upsampling import crops
from pulse_jax.upsampling.crops import Crop
from pulse_jax.upsampling.settings import Settings

log = logging.getLogger("pulse_jax")

Source: TypeAlias = str | Path | Float[AnyArray, "h w c"]
MAPS = "mean", "std", "q05", "q50", "q95"  # of a posterior
# What a run writes beside the pictures' folders.
OF_THE_RUN = ("config.json", "index.html", "results.csv", "seeds.csv", "seeds.svg", "timings.csv")


@dataclass(frozen=True, eq=False)
class Origin:
    """The photograph that a picture was cut out of."""

    load: Callable[[], crops.Image]
    path: Path | None  # its file, if it has one
    sha256: str  # of the file
    quad: Quad  # where the picture was
    landmarks: Float[np.ndarray, "_ 2"] | None  # if it is a face
    value_range: images.ValueRange | None  # with which it is read
    cut: Callable[[crops.Image], crops.Image]  # cuts out and downscales it, as it was done before


@dataclass(eq=False)
class Picture:
    """A picture to upsample with one seed, and what is known of its results."""

    name: str  # as tables have it
    target: Float[np.ndarray, "h h c"]  # in [0, 1]
    variance: float  # of its pixels, as far as the operator shows them
    networks: str  # the digest of the generator's
    prepared: str = ""  # what was done to it before, in words
    origin: Origin | None = None  # if it was cut out
    start: tuple[Latents, Frozen] | None = None  # of an earlier run's restarts
    seed: int = 0
    folder: Path | None = None  # for its results; None to keep them here
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)  # by restart
    kept: dict[int, tuple[np.ndarray, dict[str, np.ndarray]]] = field(default_factory=dict)
    kept_maps: dict[str, Float[np.ndarray, "r r c"]] = field(default_factory=dict)
    kept_shares: dict[str, dict[str, float]] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)  # the discriminator's, by restart
    unlike: str = ""  # how it is unlike what the generator makes, if it is
    error: str = ""  # why its results can't be saved
    lost: str = ""  # why all of its restarts failed, if they did

    @property
    def place(self) -> Path:
        """The folder of a picture that has one."""
        assert self.folder is not None
        return self.folder

    @property
    def side(self) -> int:
        return len(self.target)

    def relative(self, l2: float) -> float:
        """An l2 over the variance, without a unit: the best image of one colour has 1.

        For a picture that has one colour itself, it is infinite.
        """
        return l2 / self.variance if self.variance else math.inf

    @functools.cached_property
    def pixels(self) -> int:
        """A checksum of the 8-bit pixels, which tells pictures apart where restarts are drawn."""
        return zlib.crc32(images.to_uint8(self.target).tobytes())

    @functools.cached_property
    def checksum(self) -> int:
        """A checksum of its pixels and of where its restarts start."""
        arrays = jax.tree.leaves(self.start)
        return functools.reduce(lambda sum, x: zlib.crc32(x.tobytes(), sum), arrays, self.pixels)

    def images(self) -> dict[int, Float[np.ndarray, "r r c"]]:
        """The results by restart, in [0, 1] with 8 bits. One that isn't finite is left out."""
        if self.folder is None:
            return {number: hr for number, (hr, _) in self.kept.items() if np.isfinite(hr).all()}
        paths = {number: image_path(self.folder, number) for number in sorted(self.rows)}
        channels = self.target.shape[2]
        return {
            number: images.load_image(path, channels=channels)
            for number, path in paths.items()
            if path.is_file()
        }

    def put_back(
        self, image: Float[AnyArray, "r r c"], outscale: float = 1
    ) -> Float[np.ndarray, "_ _ _"]:
        """The photograph that the picture was cut out of, with a result in its place.

        See `align.put_back`. Raises ValueError if the picture wasn't cut out, or if the photograph
        can't be read any more or has changed.
        """
        if self.origin is None:
            raise ValueError(f"{self.name} is a whole picture, not one that was cut out")
        return put_back(self.origin.load(), [(image, self.origin.quad)], outscale)

    def l2_put_back(self, image: Float[AnyArray, "r r c"]) -> float:
        """The l2 of a result that was put back, and then cut out and downscaled as the picture was.

        For an image that isn't finite, it is NaN. Raises ValueError as `put_back` does.
        """
        if not np.isfinite(image).all():
            return math.nan
        whole = images.to_uint8(self.put_back(image)).astype(np.float32) / 255
        if whole.shape[2] > self.target.shape[2]:  # it has alpha, which the picture lacks
            whole = np.asarray(images.on_white(whole))
        assert self.origin is not None
        return float(np.mean((self.origin.cut(whole) - self.target) ** 2))

    def latents(self) -> dict[str, np.ndarray]:
        """Style vectors and noise maps as in latents.npz. Axis 0 of each counts restarts."""
        if self.folder is not None:
            return load_arrays(self.folder / "latents.npz")
        kept = [self.kept[number][1] for number in sorted(self.kept)]
        return {name: np.stack([arrays[name] for arrays in kept]) for name in kept[0]}

    def maps(self) -> dict[str, Float[np.ndarray, "r r c"]]:
        """The posterior's mean, std and quantiles q05, q50 and q95, not clipped; {} of a search."""
        if self.folder is None:
            return self.kept_maps
        paths = [self.folder / f"{name}.npy" for name in MAPS]
        return {path.stem: np.load(path) for path in paths if path.is_file()}

    def shares(self) -> dict[str, dict[str, float]]:
        """The share of draws with each kind of an attribute; {} where nothing reads attributes."""
        if self.folder is None or not (path := self.folder / "attributes.csv").is_file():
            return self.kept_shares
        found: dict[str, dict[str, float]] = {}
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["attribute"], {})[row["kind"]] = float(row["share"])
        return found


def image_path(folder: Path, restart: int) -> Path:
    """The path of a restart's image."""
    return folder / f"hr_{restart:02d}.png"


def list_sources(
    pictures: Source | Iterable[Source] | None, generator: str
) -> tuple[list[Source], list[str]]:
    """The pictures that are named, and a line for each folder that holds none or can't be read.

    They are a folder's, one, several, or the generator's examples. Raises ValueError if there are
    no examples, or if nothing is named.
    """
    if pictures is None:
        examples = checkpoint.bundled().get(generator, expanded(generator)) / "examples"
        if not examples.is_dir():
            raise ValueError(
                f"generator={generator} has no examples: give pictures, as input_dir=FOLDER"
            )
        pictures = examples
    if isinstance(pictures, str | Path):
        pictures = [pictures]
    # What is no picture is told as one thing, and not as the rows of it.
    if not isinstance(pictures, Iterable) or getattr(pictures, "ndim", 4) < 4:
        alone: Any = pictures
        return [alone], []
    sources: list[Source] = []
    complaints = [attempt(lambda given=given: sources.extend(_of(given))) for given in pictures]
    if not complaints:
        raise ValueError("there are no pictures")
    return sources, [complaint for complaint in complaints if complaint]


def _of(given: Source) -> list[Source]:
    """The picture itself, or those of a folder. Raises ValueError if it holds none."""
    if not isinstance(given, str | Path):
        return [given]
    path = expanded(given)
    if not path.is_dir():
        return [path]
    paths, skipped = images.list_images(path)
    for path in skipped:
        hidden = "hidden" if path.name.startswith(".") else "not a picture"
        reason = "a folder, which can be named, too" if path.is_dir() else hidden
        log.info(one_line(f"skipped {path}: {reason}"))
    return list(paths)


def read_pictures(
    sources: Sequence[Source],
    settings: Settings,
    generator: Generator,
    networks: str,
    degradation: Callable[[int], Operator],
) -> tuple[dict[str, Picture], list[str]]:
    """The pictures that can be used, by their folders' names, and a line for each that can't.

    `networks`: the digest of the generator's.
    """
    load_photograph.cache_clear()  # files may have changed since another run
    names = [s.name if isinstance(s, Path) else f"{i:02d}" for i, s in enumerate(sources, 1)]
    find = crops.make_find(settings, generator.resolution, generator.channels)
    reading = _Reading(settings, generator, networks, degradation, find)
    found: list[tuple[str, Picture]] = []

    def read(name: str, source: Source) -> None:
        found.extend(reading.pictures(name, source))

    complaints = [attempt(read, name, s) for name, s in zip(names, sources, strict=True)]
    unread = [name for name, complaint in zip(names, complaints, strict=True) if complaint]
    pictures, refused = reading.by_folder(found, unread)
    return pictures, [complaint for complaint in (*complaints, *refused) if complaint]


@dataclass(frozen=True)
class _Reading:
    """How a run reads its pictures. Each goes with what messages call it, `told`."""

    settings: Settings
    generator: Generator
    networks: str  # the digest of the generator's
    degradation: Callable[[int], Operator]
    find: Callable[[str, crops.Image], list[Crop]]  # of `crops.make_find`

    def pictures(self, name: str, source: Source) -> Iterator[tuple[str, Picture]]:
        """The picture of a source, or those that are cut out of it. Raises ValueError."""
        told = str(source) if isinstance(source, Path) else f"picture {name}"
        image = _read(told, source, self.settings, self.generator.channels)
        origin = self._make_origin(source, image)
        try:
            squares = [None] if self.settings.crop is None else self.find(name, image)
            targets = [self._target(square.cut(image) if square else image) for square in squares]
        except ValueError as error:
            raise ValueError(f"{told}: {error}") from error
        for number, (square, (target, smaller)) in enumerate(zip(squares, targets, strict=True), 1):
            if prepared := ", then ".join(filter(None, [square and square.told, smaller])):
                log.info(one_line(f"{told}: {prepared}"))
            variance = self._variance(told, target)
            own = name
            if len(squares) > 1:
                own = f"{Path(name).stem}_{number}{Path(name).suffix}"
            cut_out = origin(square) if square else None
            yield told, Picture(own, target, variance, self.networks, prepared, cut_out)

    def _target(self, image: crops.Image) -> tuple[crops.Image, str]:
        """What is searched for, and how the image was downscaled to it, in words."""
        return _bring_to_size(image, self.settings, self.generator, self.degradation)

    def _make_origin(self, source: Source, image: crops.Image) -> Callable[[Crop], Origin]:
        """A function `origin(square)` of what is cut out of an image."""
        path = source if isinstance(source, Path) else None
        digest = "" if path is None else file_digest(path)
        value_range = self.settings.value_range
        channels = self.generator.channels
        photograph = functools.partial(load_photograph, path, value_range, channels, digest)
        load = photograph if path else lambda: image

        def cut_again(square: Crop, photograph: crops.Image) -> crops.Image:
            return self._target(square.cut(photograph))[0]

        def origin(square: Crop) -> Origin:
            cut = functools.partial(cut_again, square)
            return Origin(load, path, digest, square.quad, square.landmarks, value_range, cut)

        return origin

    def _variance(self, told: str, target: crops.Image) -> float:
        """The variance of a target. It is told where an image of one colour meets eps."""
        operator = self.degradation(self.generator.resolution // len(target))
        variance, eps = operators.variance(operator, target), self.settings.eps
        if variance <= eps and self.settings.noise is None:
            faint = (
                f"is faint: with its variance of {variance:.2g}, an image of one colour would "
                f"converge too; eps={eps:g} is too high to prevent that"
            )
            alike = "has one colour throughout, so an image of that colour would converge, too"
            log.info(one_line(f"{told} {faint if variance else alike}"))
        return variance

    def by_folder(
        self, found: Sequence[tuple[str, Picture]], unread: Sequence[str]
    ) -> tuple[dict[str, Picture], list[str]]:
        """Pictures by their folders' names, with their starts, and what is wrong with each.

        The folder of a picture's results keeps its suffix, where its name would else be taken, also
        by that of a picture that can't be read.
        """
        names = [*unread, *(picture.name for _, picture in found)]
        taken = Counter(Path(name).stem for name in names)
        taken.update([*OF_THE_RUN, ".", "..", *names])  # "..", as of a picture ...png
        pictures: dict[str, Picture] = {}
        unsigned = []

        def enter(told: str, picture: Picture) -> None:
            stem = Path(picture.name).stem
            folder = picture.name if taken[stem] > 1 else stem
            if self.settings.init_from is not None:
                start = _read_start(folder, self.settings, self.generator, self.networks)
                picture.start, signed = start
                unsigned.extend([] if signed else [told])
            if folder in pictures:
                raise ValueError(f"{told}: another picture is also called {picture.name}")
            pictures[folder] = picture

        complaints = [attempt(enter, *one) for one in found]
        if unsigned:
            told = f"init_from={self.settings.init_from} doesn't say which generator it is of"
            log.info(f"{told}; {self.settings.generator} is assumed")
        return pictures, complaints


def log_oddities(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it, and log what is odd about the pictures that it reads, a line for each."""
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", images.ImageWarning)
        result = function(*arguments)
    for note in noted:
        log.info(str(note.message))
    return result


def _read(
    told_as: str, source: Source, settings: Settings, channels: int
) -> Float[np.ndarray, "h w {channels}"]:
    if isinstance(source, Path):
        return log_oddities(images.load_image, source, settings.value_range, channels)
    assert not isinstance(source, str)  # `list_sources` makes paths of them
    return _checked_array(told_as, source, channels)


@functools.lru_cache(maxsize=2)  # of several faces, and of restarts that are done in turn
def load_photograph(
    path: Path, value_range: images.ValueRange | None, channels: int, sha256: str | None
) -> crops.Image:
    """A photograph from which a picture was cut out. What was odd about it has been told.

    For results of three channels, it has its alpha too, if any. Raises ValueError if it can't be
    read, or if the SHA-256 of its file is another one.
    """
    if sha256 is not None and file_digest(path) != sha256:
        raise ValueError(f"{path}: it has changed since its picture was cut out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", images.ImageWarning)
        image = images.load_image(path, value_range, 4 if channels == 3 else channels)
    alpha = image[..., 3:]
    is_opaque = (alpha == 1).all() or not alpha.any()  # the latter is ignored in pictures, too
    return image[..., :3] if channels == 3 and is_opaque else image


def _bring_to_size(
    image: Float[np.ndarray, "h w c"],
    settings: Settings,
    generator: Generator,
    degradation: Callable[[int], Operator],
) -> tuple[Float[np.ndarray, "s s c"], str]:
    """A square whose side divides the generator's, and how it was downscaled to it, in words.

    `input_size` names the side. An image is downscaled as the operator does it where it is larger
    by a whole factor, and with Pillow's kernel of the same name where it isn't. If the operator
    doesn't downscale, that is bicubic.
    """
    height, width, channels = image.shape
    resolution, size = generator.resolution, settings.input_size or height
    fitting_sides = functools.partial(_fitting_sides, resolution, channels, degradation)
    if height != width:
        fits = resolution % (settings.input_size or min(height, width)) == 0
        raise ValueError(
            f"it has {width}×{height} pixels and isn't square"
            f"{fitting_sides()}; crop=center takes a square of it, or crop=face a face"
            f"{'' if fits else ', and input_size=SIDE brings that to one that fits'}"
        )
    if size > height:
        fitting = fitting_sides(height)
        raise ValueError(f"input_size={size} is more than its {counted(height, 'pixel')}{fitting}")
    if resolution % size:
        named = f"input_size={size}" if settings.input_size else f"its side of {size} pixels"
        raise ValueError(
            f"{named} does not divide the generator's {resolution}"
            f"{fitting_sides()}; input_size=SIDE brings larger pictures to "
            f"one that does"
        )
    links = [link.partition(":")[0] for link in settings.operator.split(",")]
    name = next((link for link in links if link in operators.DOWNSCALERS), "bicubic")
    downscaled = ""
    try:
        if size < height:
            downscaled = f"downscaled from {height} to {counted(size, 'pixel')} ({name})"
            if height % size:
                image = images.resample(image, size, size, name)
            else:
                image = np.asarray(operators.DOWNSCALERS[name](height // size)(jnp.asarray(image)))
            image = image.clip(0, 1)
        return operators.discard_unseen(degradation(resolution // size), image), downscaled
    except ValueError as error:
        fitting = fitting_sides()
        told = f"operator={settings.operator}: {error}"
        raise ValueError(f"at a side of {counted(size, 'pixel')}, {told}{fitting}") from error


def _checked_array(
    told_as: str, image: AnyArray, channels: int
) -> Float[np.ndarray, "h w {channels}"]:
    """A picture that is given as an array."""
    array = np.asarray(image)
    floats = np.issubdtype(array.dtype, np.floating)
    if not (array.ndim == 3 and array.shape[2] == channels and array.size and floats):
        raise ValueError(
            f"{told_as}: a picture is an array (h, w, {channels}) of floats, not {array.shape} of "
            f"{array.dtype}"
        )
    if not (array.min() >= 0 and array.max() <= 1):  # NaN fails both
        raise ValueError(f"{told_as}: it has values outside [0, 1]")
    return array.astype(np.float32)


@functools.cache
def _fitting_sides(
    resolution: int,
    channels: int,
    degradation: Callable[[int], Operator],
    most: int = sys.maxsize,
) -> str:
    """The end of a message, with the sides that pictures can have, up to `most` pixels."""
    image = jax.ShapeDtypeStruct((resolution, resolution, channels), np.float32)

    def fits(side: int) -> bool:
        try:
            jax.eval_shape(degradation(resolution // side).apply, image)
            return True
        except ValueError:
            return False

    divisors = [side for side in range(1, resolution + 1) if resolution % side == 0]
    sides = [str(side) for side in divisors if side <= most and fits(side)]
    return f"; sides of {', '.join(sides)} pixels fit" if sides else ""


def check_space(settings: Settings) -> None:
    """Raises ValueError if the run of `init_from` has searched another space or spread.

    The shapes of its latents don't tell these.
    """
    if settings.init_from is None:
        return
    given = expanded(settings.init_from).absolute()
    configs = [folder / "config.json" for folder in (given, *given.parents[:2])]
    config = next((path for path in configs if path.is_file()), None)
    earlier = read_json(config) if config else {}
    for name in ("space", "style_spread"):
        now = getattr(settings, name)
        if (had := earlier.get(f"--{name}", now)) != now:
            told = f"init_from={settings.init_from} has searched"
            raise ValueError(f"{told} {name}={had}, not {now}")


def _read_start(
    name: str, settings: Settings, generator: Generator, networks: str
) -> tuple[tuple[Latents, Frozen], bool]:
    """(latents, frozen) of the restarts that `init_from` has for a picture.

    The second value says whether their file tells that they are of these `networks`.
    """
    given = expanded(str(settings.init_from))
    choices = [given / "latents.npz", given / name / "latents.npz"] if given.is_dir() else [given]
    path = next((choice for choice in choices if choice.is_file()), choices[-1])
    start, found = starts.read_latents(path, generator)
    starts.check_networks(path, found, networks)
    count = len(jax.tree.leaves(start)[0])
    if count < (settings.pick or settings.restarts):
        needed = f"pick={settings.pick}" if settings.pick else f"restarts={settings.restarts}"
        there = counted(count, "restart")
        raise ValueError(f"{needed}: {path} holds {there}; with pick=NUMBER, all start from one")
    return start, found is not None


def for_seeds(
    pictures: dict[str, Picture], seeds: Sequence[int], output: Path | None
) -> Iterator[Picture]:
    """Each picture for each seed. Several seeds have a folder each."""
    for seed in seeds:
        folder = output if output is None or len(seeds) == 1 else output / f"seed_{seed}"
        for name, picture in pictures.items():
            own = None if folder is None else folder / name
            fresh: dict[str, Any] = {"rows": {}, "kept": {}, "kept_maps": {}, "kept_shares": {}}
            yield dataclasses.replace(picture, seed=seed, folder=own, **fresh)
