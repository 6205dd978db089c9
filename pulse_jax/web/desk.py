"""Searches for the visitors of a page: what they may ask for, and what they see of it meanwhile."""

import logging
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pulse_jax.files import counted, one_line
from pulse_jax.progress import Progress
from pulse_jax.upsampling.bar import duration
from pulse_jax.upsampling.pictures import Picture, image_path
from pulse_jax.upsampling.results import rank
from pulse_jax.upsampling.run import Results, upsample
from pulse_jax.upsampling.settings import RECIPES, Settings
from pulse_jax.upsampling.summary import line

log = logging.getLogger("pulse_jax")

BYTES = 20 * 2**20  # of a picture's file
PIXELS = 50_000_000  # of a picture
RESTARTS = 32  # of a search
SECONDS = 600.0  # that a search may take
QUEUE = 8  # searches that wait while one is under way
INTERVAL = 0.5  # seconds between two looks at a search
# Any text would let visitors name files of the server, and modules for it to run.
OPERATORS = "bicubic", "area", "lanczos", "blur:2,bicubic", "motion:5:45,bicubic", "grey,bicubic"
CROPS = "whole", "center", "face", "square"


class Form(NamedTuple):
    """What a visitor has filled in. `square` is X,Y,SIDE, for the crop of that name."""

    picture: str | None
    generator: str
    operator: str = "bicubic"
    recipe: str = "fast"
    restarts: float = 8
    crop: str = "center"
    square: str = ""
    input_size: float | None = None

    def settings(self, generators: Sequence[str]) -> Settings:
        """Raises ValueError, in one line, for what the page doesn't offer."""
        offers = {"generator": generators, "operator": OPERATORS, "recipe": [*RECIPES]}
        for name, offered in (offers | {"crop": CROPS}).items():
            if (value := getattr(self, name)) not in offered:
                raise ValueError(one_line(f"{name}={value} is none of {', '.join(offered)}"))
        if not 1 <= self.restarts <= RESTARTS:
            raise ValueError(
                f"restarts={self.restarts:g}: must be at least 1 and at most {RESTARTS}"
            )
        crops = {"whole": None, "square": self.square.strip()}
        given = {
            "generator": self.generator,
            "operator": self.operator,
            "restarts": int(self.restarts),
            "crop": crops.get(self.crop, self.crop),
            "input_size": int(self.input_size) if self.input_size else None,
        }
        return Settings.from_json(RECIPES[self.recipe].as_json() | given)

    def check_picture(self) -> Path:
        """The picture's path. Raises ValueError if there is none, or one that is too large."""
        if not self.picture:
            raise ValueError("there is no picture yet: drop one, or take an example")
        path = Path(self.picture)
        if (size := path.stat().st_size) > BYTES:
            raise ValueError(
                f"{path.name} has {size / 2**20:.1f} MiB, and {BYTES / 2**20:.0f} are the most"
            )
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (OSError, ValueError, Image.DecompressionBombError):
            return path  # the search tells why it can't be read
        if width * height > PIXELS:
            raise ValueError(
                f"{path.name} has {width}×{height} pixels, and {PIXELS / 1e6:g} megapixels are "
                f"the most"
            )
        return path


def square_at(path: str, x: float, y: float, square: str) -> str:
    """The square X,Y,SIDE around a point of a picture, moved into it where it would reach beyond.

    Its side is that of the `square` before, or half the picture's shorter one.
    """
    with Image.open(path) as image:
        width, height = image.size
    try:
        side = int(square.split(",")[2])
    except (IndexError, ValueError):
        side = min(width, height) // 2
    side = max(1, min(side, width, height))
    left, top = (
        round(min(max(at - side / 2, 0), most - side)) for at, most in ((x, width), (y, height))
    )
    return f"{left},{top},{side}"


class View(NamedTuple):
    """What a visitor sees of a search."""

    told: str
    images: Sequence[tuple[str, str]] = ()  # (path, caption)
    ended: bool = False
    folder: Path | None = None  # of the results, once it holds any
    failed: bool = False


@dataclass(eq=False)
class Task:
    """A search that a visitor has asked for."""

    picture: Path
    folder: Path
    settings: Settings
    stopped: threading.Event = field(default_factory=threading.Event)
    late: bool = False  # it has taken all its time
    progress: Progress | None = None
    future: "futures.Future[Results]" = field(default_factory=futures.Future)


class Desk:
    """Takes searches and carries them out, one after another, each in a folder of its own.

    A search's picture is kept as OUTPUT/pictures/NAME/FILE, and its results are in
    OUTPUT/results/NAME. Both can be read from other threads meanwhile. Raises ValueError if the
    folder `output` can't be written.
    """

    def __init__(
        self, output: Path, generators: Sequence[str], seconds: float = SECONDS, queue: int = QUEUE
    ) -> None:
        self.pictures, self.results = output / "pictures", output / "results"
        self.generators, self.seconds, self.queue = generators, seconds, queue
        try:
            for folder in (self.pictures, self.results):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"output_dir={output} can't be written: {one_line(error)}") from error
        self._pool = futures.ThreadPoolExecutor(1, "search")
        self._tasks: dict[str, Task] = {}  # the latest of each visitor who has one under way
        self._lock = threading.Lock()

    def search(self, visitor: str, form: Form) -> Iterator[View]:
        """Carry a search out, and yield what its visitor sees, every half second and at the end.

        What is wrong is told in a view, in one line. If the iterator is closed, the search stops.
        """
        try:
            task = self._enter(visitor, form)
        except (ValueError, OSError) as error:
            yield View(one_line(error), ended=True, failed=True)
            return
        try:
            while not task.future.done():
                yield View(self._told(task), self._images(task))
                futures.wait([task.future], INTERVAL)
            yield self._concluded(task)
        finally:
            self._stop(task)
            with self._lock:
                if self._tasks.get(visitor) is task:
                    del self._tasks[visitor]

    def stop(self, visitor: str) -> None:
        """Stop a visitor's search, if there is one. What it has found is kept."""
        with self._lock:
            task = self._tasks.get(visitor)
        if task:
            self._stop(task)

    def close(self) -> None:
        """Stop all searches, and wait until what they have found is on disk."""
        with self._lock:
            tasks = list(self._tasks.values())
        for task in tasks:
            self._stop(task)
        self._pool.shutdown()

    def _enter(self, visitor: str, form: Form) -> Task:
        """Put a search at the end of the queue. Raises ValueError if it can't be carried out."""
        settings, picture = form.settings(self.generators), form.check_picture()
        self.stop(visitor)  # a visitor has one at a time
        with self._lock:
            if sum(not task.future.done() for task in self._tasks.values()) > self.queue:
                raise ValueError(f"the queue is full, with {self.queue} waiting: try again later")
            name = f"{time.strftime('%Y-%m-%d_%H%M%S')}_{secrets.token_hex(8)}"
            own = self.pictures / name
            own.mkdir()
            task = Task(own / picture.name, self.results / name, settings)
            shutil.copyfile(picture, task.picture)
            task.future = self._pool.submit(self._carry_out, task)
            self._tasks.pop(visitor, None)  # or the new one would take the old one's place
            self._tasks[visitor] = task
        return task

    def _carry_out(self, task: Task) -> Results:
        until = time.monotonic() + self.seconds

        def stop() -> bool:
            task.late = task.late or time.monotonic() > until
            return task.late or task.stopped.is_set()

        def note(progress: Progress) -> None:
            task.progress = progress

        return upsample([task.picture], task.folder, task.settings, note, stop=stop)

    def _stop(self, task: Task) -> None:
        task.stopped.set()
        task.future.cancel()  # if it still waits

    def _told(self, task: Task) -> str:
        if task.stopped.is_set():
            return "Stopping."
        if not task.future.running():
            with self._lock:
                others = list(self._tasks.values())
            before = others[: others.index(task)] if task in others else []
            waiting = sum(not other.future.done() for other in before)
            return f"Waiting behind {counted(waiting, 'other')}."
        progress = task.progress
        if progress is None or not progress.made:
            return "Starting. The first search of a kind compiles for a while."
        told = progress.told or f"{progress.ended} of {counted(progress.restarts, 'restart')} done"
        if progress.seconds is not None:
            told += f", about {duration(progress.seconds)} to go"
        return f"{told}."

    def _images(self, task: Task) -> list[tuple[str, str]]:
        """The results so far, with their pictures' names and their own."""
        paths = sorted(task.folder.glob("*/hr_*.png"))
        return [(str(path), f"{path.parent.name}, {path.stem}") for path in paths]

    def _concluded(self, task: Task) -> View:
        """What is told of a search that has ended: its results, the best first."""
        if task.future.cancelled():
            return View("Stopped before it began.", ended=True)
        try:
            results = task.future.result()
        except (ValueError, OSError) as error:
            return View(_without(one_line(error), task), ended=True, failed=True)
        except Exception:
            log.exception("a search of the web page failed")
            return View("The search failed. The server's log says why.", ended=True, failed=True)
        told = [line(picture, results.settings) for picture in results.pictures if picture.rows]
        told += [f"{p.name} is {p.unlike}" for p in results.pictures if p.unlike]
        told += [_without(failure, task) for failure in results.failures]
        if results.stopped:
            limit = f"all {duration(self.seconds)} were taken: " if task.late else ""
            told.append(f"{limit}{results.stopped}")
        images = [entry for picture in results.pictures for entry in _ranked(picture, results)]
        folder = task.folder if (task.folder / "index.html").is_file() else None
        return View("\n\n".join(map(one_line, told)), images, True, folder, bool(results.failures))


def _without(told: str, task: Task) -> str:
    """A message that names the visitor's file, but not where the server keeps it."""
    return told.replace(f"{task.picture.parent}/", "")


def _ranked(picture: Picture, results: Results) -> Iterator[tuple[str, str]]:
    """The images of a picture, the best first, and draws as they come."""
    rows = [picture.rows[number] for number in sorted(picture.rows)]
    samples = results.settings.noise is not None
    for row in rows if samples else sorted(rows, key=rank):
        path = image_path(picture.place, row["restart"])
        if path.is_file():
            noun = "draw" if samples else "restart"
            named = f"{picture.name}, " if len(results.pictures) > 1 else ""
            yield str(path), f"{named}{noun} {row['restart']}, l2 {row['l2_saved']:.2g}"
