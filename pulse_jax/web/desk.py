"""Searches for the visitors of a page: what they may ask for, and what they see of it meanwhile."""

import contextlib
import logging
import re
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image

from pulse_jax.align import write_landmarks
from pulse_jax.files import counted, figure, npz, one_line, write
from pulse_jax.images import load_image, save_image
from pulse_jax.upsampling.bar import duration
from pulse_jax.upsampling.report import SAMPLES
from pulse_jax.upsampling.settings import RECIPES, Settings
from pulse_jax.upsampling.summary import line
from pulse_jax.web.task import INTERVAL, Shown, Task

log = logging.getLogger("pulse_jax")

BYTES = 20 * 2**20  # of a picture's file
PIXELS = 50_000_000  # of a picture
RESTARTS = 32  # of a search
SECONDS = 600.0  # that a search may take
QUEUE = 8  # searches that wait while one is under way
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
        square = self.square.replace(" ", "")
        if self.crop == "square" and not re.fullmatch("[0-9]{1,6}(,[0-9]{1,6}){2}", square):
            told = one_line(self.square[:40])
            raise ValueError(f"X,Y,SIDE={told}: three whole numbers of pixels, such as 20,10,64")
        crops = {"whole": None, "square": square}
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
        try:
            size = path.stat().st_size
        except OSError as error:  # uploads are removed after a day
            raise ValueError(f"{path.name} is gone from the server: drop it once more") from error
        if size > BYTES:
            raise ValueError(
                f"{path.name} has {size / 2**20:.1f} MiB, and {BYTES / 2**20:.0f} are the most"
            )
        most = f"{PIXELS / 1e6:g} megapixels are the most"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Pillow, which has another limit
                with Image.open(path) as image:
                    width, height = image.size
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path.name} is too large: {most}") from error
        except (OSError, ValueError):
            return path  # the search tells why it can't be read
        if width * height > PIXELS:
            raise ValueError(f"{path.name} has {width}×{height} pixels, and {most}")
        return path


def size_of(path: str) -> tuple[int, int]:
    """(width, height) of a picture as browsers and searches show it: turned as its EXIF block says.

    Raises OSError for a picture that can't be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            with contextlib.suppress(Exception):  # Pillow's, of damaged metadata
                if image.getexif().get(ExifTags.Base.Orientation, 1) > 4:
                    return height, width
    except Image.DecompressionBombError as error:
        raise OSError(one_line(error)) from error
    return width, height


def square_at(path: str, x: float, y: float, square: str) -> str:
    """The square X,Y,SIDE around a point of a picture, moved into it where it would reach beyond.

    Its side is that of the `square` before, or half the picture's shorter one. Raises OSError as
    `size_of` does.
    """
    width, height = size_of(path)
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
    images: Sequence[Shown] = ()
    ended: bool = False
    folders: Sequence[Path] = ()  # of the visitor's searches, whose results have a page
    failed: bool = False
    chosen: Shown | None = None  # one of the images


@dataclass(eq=False)
class Visit:
    """What a visitor's page shows: a search, and those that went on from its results."""

    tasks: list[Task] = field(default_factory=list)
    chosen: Shown | None = None

    @property
    def images(self) -> list[Shown]:
        return [one for task in self.tasks for one in task.images()]


class Desk:
    """Takes searches and carries them out, one after another.

    A visitor's picture is kept as OUTPUT/pictures/NAME/FILE. The results of a search of it are in
    OUTPUT/results/NAME/1_search, and those of searches that go on from there are beside it, as
    2_vary or 3_refine. All can be read from other threads meanwhile. Raises ValueError if the
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
        self._visits: dict[str, Visit] = {}
        self._lock = threading.Lock()
        self._beginning = threading.Lock()  # one search after another begins

    # --- What visitors do. ---

    def search(self, visitor: str, form: Form) -> Iterator[View]:
        """Carry a search out, and yield what its visitor sees, every half second and at the end.

        What is wrong is told in a view, in one line. A visitor has one search at a time: a second
        click has the views of the one that is under way. If the iterator is closed, it stops.
        """
        return self._carry_out(visitor, partial(self._first, visitor, form))

    def vary(self, visitor: str, degrees: float, restarts: float) -> Iterator[View]:
        """As `search`, with restarts that begin so many degrees away from the chosen image."""
        return self._carry_out(visitor, partial(self._varied, visitor, degrees, restarts))

    def refine(self, visitor: str) -> Iterator[View]:
        """As `search`, with a restart that goes on from the chosen image to a tenth of its l2."""
        return self._carry_out(visitor, partial(self._refined, visitor))

    def choose(self, visitor: str, index: int) -> Shown | None:
        """The image of this index among those that the visitor sees, which is chosen now."""
        visit = self._visits.get(visitor, Visit())
        images = visit.images
        visit.chosen = images[index] if 0 <= index < len(images) else visit.chosen
        return visit.chosen

    def put_back(self, visitor: str) -> tuple[Path, str]:
        """The photograph with the chosen image in it, as a file, and what is to be told of it.

        Raises ValueError, in one line, if there is no such image, or it is of a whole picture.
        """
        chosen = self._chosen(visitor)
        picture = chosen.picture
        image = load_image(chosen.path, channels=picture.target.shape[2])
        path = chosen.path.with_name(f"put_back_{chosen.path.stem}.png")
        save_image(path, picture.put_back(image))
        error = picture.l2_put_back(image)
        return path, f"{chosen.caption}; put back, l2 {figure(error)}"

    def is_busy(self, visitor: str) -> bool:
        """Whether a search of this visitor is under way, or waits."""
        return self._under_way(visitor) is not None

    def stop(self, visitor: str) -> None:
        """Stop a visitor's search, if there is one. What it has found is kept."""
        with self._lock:
            task = self._tasks.get(visitor)
        if task:
            task.stop()

    def leave(self, visitor: str) -> None:
        """Stop it, and forget what the visitor has seen, since the page is closed."""
        self.stop(visitor)
        self._visits.pop(visitor, None)

    def close(self) -> None:
        """Stop all searches, and wait until what they have found is on disk."""
        with self._lock:
            tasks = list(self._tasks.values())
        for task in tasks:
            task.stop()
        self._pool.shutdown()

    # --- What becomes of it. ---

    def _carry_out(self, visitor: str, make: Callable[[], Task]) -> Iterator[View]:
        try:
            with self._beginning:
                task = self._under_way(visitor) or make()
        except (ValueError, OSError) as error:
            yield self._view(visitor, one_line(error), ended=True, failed=True)
            return
        try:
            while not task.future.done():
                yield self._view(visitor, self._told(task))
                futures.wait([task.future], INTERVAL)
            yield self._concluded(visitor, task)
        finally:
            task.stop()
            with self._lock:
                if self._tasks.get(visitor) is task:
                    del self._tasks[visitor]

    def _under_way(self, visitor: str) -> Task | None:
        with self._lock:
            task = self._tasks.get(visitor)
        return task if task and not task.future.done() else None

    def _first(self, visitor: str, form: Form) -> Task:
        """The first search of a picture. Raises ValueError if it can't be carried out."""
        settings, picture = form.settings(self.generators), form.check_picture()
        self._check_queue()
        name = f"{time.strftime('%Y-%m-%d_%H%M%S')}_{secrets.token_hex(8)}"
        own = self.pictures / name
        own.mkdir()
        task = Task(own / picture.name, self.results / name / "1_search", settings)
        shutil.copyfile(picture, task.picture)
        self._visits[visitor] = Visit()
        return self._submit(visitor, task)

    def _varied(self, visitor: str, degrees: float, restarts: float) -> Task:
        for name, value, most in (("degrees", degrees, 90), ("restarts", restarts, RESTARTS)):
            if not 1 <= value <= most:
                raise ValueError(f"{name}={value:g}: must be at least 1 and at most {most}")
        return self._next(visitor, "vary", vary=float(degrees), restarts=int(restarts))

    def _refined(self, visitor: str) -> Task:
        eps = self._chosen(visitor).l2 / 10
        eps = min(eps, self._visits[visitor].tasks[0].settings.eps)
        # Adam would first leave the place.
        how = {"opt_name": Settings.opt_name, "stop_at_eps": True}
        return self._next(visitor, "refine", eps=eps, restarts=1, **how)

    def _next(self, visitor: str, kind: str, **given: Any) -> Task:
        """A search from the chosen image on. Raises ValueError if it can't be carried out."""
        chosen, visit = self._chosen(visitor), self._visits[visitor]
        self._check_queue()
        first, number = visit.tasks[0], len(visit.tasks) + 1
        folder = first.folder.with_name(f"{number}_{kind}")
        folder.mkdir(exist_ok=True)
        start = folder / "start.npz"
        write(start, npz(chosen.latents()))
        given |= {"init_from": str(start), "pick": 1, "noise": None}
        if first.settings.crop == "face":  # of several, the chosen one
            assert chosen.picture.origin is not None
            landmarks, face = folder / "landmarks.json", chosen.picture.origin.landmarks
            assert face is not None
            write_landmarks(landmarks, {first.picture.name: [face]})
            given["landmarks"] = str(landmarks)
        settings = replace(first.settings, **given)
        task = Task(first.picture, folder, settings, (f"{kind} {number}",))
        return self._submit(visitor, task)

    def _chosen(self, visitor: str) -> Shown:
        """What a visitor has chosen. Raises ValueError if that is nothing, or still changes."""
        visit = self._visits.get(visitor, Visit())
        if visit.chosen is None or visit.chosen not in visit.images:
            raise ValueError("no image is chosen yet: click one")
        if not visit.chosen.task.future.done():
            raise ValueError("the search is still under way: stop it, or wait")
        return visit.chosen

    def _check_queue(self) -> None:
        with self._lock:
            if sum(not task.future.done() for task in self._tasks.values()) > self.queue:
                raise ValueError(f"the queue is full, with {self.queue} waiting: try again later")

    def _submit(self, visitor: str, task: Task) -> Task:
        """Put a search at the end of the queue."""
        with self._lock:
            task.future = self._pool.submit(task.carry_out, self.seconds)
            self._tasks.pop(visitor, None)  # or the new one would take the old one's place
            self._tasks[visitor] = task
            self._visits.setdefault(visitor, Visit()).tasks.append(task)
        return task

    # --- What visitors see of it. ---

    def _view(self, visitor: str, told: str, **others: Any) -> View:
        visit = self._visits.get(visitor, Visit())
        images = visit.images
        chosen = visit.chosen if visit.chosen in images else None
        folders = [t.folder for t in visit.tasks if (t.folder / "index.html").is_file()]
        return View(told, images, chosen=chosen, folders=folders, **others)

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

    def _concluded(self, visitor: str, task: Task) -> View:
        """What is told of a search that has ended."""
        view = partial(self._view, visitor, ended=True)
        if task.future.cancelled():
            return view("Stopped before it began.")
        try:
            results = task.future.result()
        except (ValueError, OSError) as error:
            return view(_without(one_line(error), task), failed=True)
        except Exception:
            log.exception("a search of the web page failed")
            return view("The search failed. The server's log says why.", failed=True)
        told = [line(picture, results.settings) for picture in results.pictures if picture.rows]
        # The page has no flags, and each of its searches a folder of its own.
        told = [re.sub("; to draw on, .*", "", one).replace(" --eps=", " eps=") for one in told]
        if results.settings.noise is not None and told:
            told.append(" ".join(SAMPLES.terms[name] for name in ("R-hat", "ESS")))
        told += [f"⚠ {p.name} is {p.unlike}" for p in results.pictures if p.unlike]
        told += [_without(failure, task) for failure in results.failures]
        if results.stopped:
            limit = f"all {duration(self.seconds)} were taken: " if task.late else ""
            told.append(f"{limit}{results.stopped}")
        return view("\n\n".join(map(one_line, told)), failed=bool(results.failures))


def _without(told: str, task: Task) -> str:
    """A message that names the visitor's file, but not where the server keeps it."""
    return told.replace(f"{task.picture.parent}/", "")
