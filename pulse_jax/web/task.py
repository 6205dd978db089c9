"""A search that a visitor has asked for, and the images that it has to show so far."""

import threading
import time
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pulse_jax.files import attempt, figure, load_arrays, npz, write
from pulse_jax.images import save_image
from pulse_jax.progress import Progress, Underway
from pulse_jax.starts import GENERATOR
from pulse_jax.upsampling.pictures import Picture, image_path
from pulse_jax.upsampling.results import clear
from pulse_jax.upsampling.run import Results, upsample
from pulse_jax.upsampling.settings import Settings

INTERVAL = 0.5  # seconds between two looks at a search
SHARE = 0.05  # of a search's time, for images of what is under way
SO_FAR = "so_far"  # the folder of these images, in that of their picture


@dataclass(eq=False)
class Shown:
    """An image that a visitor sees, and can choose. It stays the same while it improves."""

    task: "Task"
    name: str  # of the picture's folder
    noun: str  # what it is: a restart, a chain or a draw
    number: int
    path: Path
    l2: float
    ended: bool = False  # it is a result, and not under way any more
    best: bool = False  # of its picture and search

    @property
    def caption(self) -> str:
        """In a few words."""
        star = "★ " if self.best else ""
        several = [self.name] if len(self.task.pictures) > 1 else []
        which = ", ".join([*self.task.title, *several, f"{self.noun} {self.number}"])
        return f"{star}{which}, l2 {'' if self.ended else 'so far '}{figure(self.l2)}"

    @property
    def picture(self) -> Picture:
        return self.task.pictures[self.name]

    def latents(self) -> dict[str, np.ndarray]:
        """As in latents.npz, of this image alone. Raises ValueError if they can't be read."""
        place = self.picture.place
        if not self.ended:
            return load_arrays(self.path.with_suffix(".npz"))
        if (place / "latents.npz").is_file():
            arrays, index = self.picture.latents(), sorted(self.picture.rows).index(self.number)
            return {k: x if k == GENERATOR else x[index : index + 1] for k, x in arrays.items()}
        part = load_arrays(place / "parts" / f"{self.number:06d}.npz")  # others aren't done
        arrays = {k: x[None] for k, x in part.items() if k not in ("row", "curve")}
        return arrays | {GENERATOR: np.array(self.picture.networks)}


@dataclass(eq=False)
class Task:
    """A search that a visitor has asked for."""

    picture: Path
    folder: Path
    settings: Settings
    title: tuple[str, ...] = ()  # in captions
    stopped: threading.Event = field(default_factory=threading.Event)
    late: bool = False  # it has taken all its time
    progress: Progress | None = None
    future: "futures.Future[Results]" = field(default_factory=futures.Future)
    pictures: dict[str, Picture] = field(default_factory=dict)  # by their folders' names
    shown: dict[tuple[str, str, int], Shown] = field(default_factory=dict)  # as they came
    due: float = 0.0  # when it is time for images of what is under way

    def carry_out(self, seconds: float) -> Results:
        """Do it, in at most so many seconds."""
        until = time.monotonic() + seconds

        def stop() -> bool:
            self.late = self.late or time.monotonic() > until
            return self.late or self.stopped.is_set()

        results = upsample([self.picture], self.folder, self.settings, self.note, stop=stop)
        self.pictures |= {picture.place.name: picture for picture in results.pictures}
        self.mark_best()
        attempt(self.clear)
        return results

    def stop(self) -> None:
        self.stopped.set()
        self.future.cancel()  # if it still waits

    def note(self, progress: Progress) -> None:
        """Keep images of what is under way, at a pace that hardly costs time."""
        self.progress = progress
        began = time.monotonic()
        if began < self.due or self.stopped.is_set():
            return
        if not (underway := progress.underway()):
            return
        for one in underway:
            attempt(self._keep, one)
        now = time.monotonic()
        self.due = now + max(INTERVAL, (now - began) / SHARE)

    def _keep(self, one: Underway) -> None:
        """Write an image, and its latents as `init_from` takes them, unless it is the same."""
        picture = self.pictures[one.picture.place.name] = one.picture
        noun = "restart" if self.settings.noise is None else "chain"
        key = picture.place.name, noun, one.number
        if key in self.shown and self.shown[key].l2 == one.l2:
            return
        path = picture.place / SO_FAR / f"{one.number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        latents = {name: np.asarray(leaf)[None] for name, leaf in one.latents.items()}
        write(path.with_suffix(".npz"), npz(latents | {GENERATOR: picture.networks}))
        save_image(path, one.image)
        if key in self.shown:
            self.shown[key].l2 = one.l2
        else:
            self.shown[key] = Shown(self, *key, path, one.l2)

    def images(self) -> list[Shown]:
        """What there is to see, in the order in which it came. Results replace what led to them."""
        noun = "restart" if self.settings.noise is None else "draw"
        for name, picture in list(self.pictures.items()):
            for number, row in sorted(picture.rows.items()):
                path = image_path(picture.place, number)
                if path.is_file():
                    key = name, noun, number
                    one = self.shown.setdefault(key, Shown(self, *key, path, row["l2_saved"]))
                    one.path, one.l2, one.ended = path, row["l2_saved"], True
                    if noun == "draw":
                        self._forget_chains(name)
        return list(self.shown.values())

    def _forget_chains(self, name: str) -> None:
        for key in list(self.shown):
            if key[:2] == (name, "chain"):
                self.shown.pop(key, None)

    def mark_best(self) -> None:
        """Mark each picture's result of lowest l2. Of draws, none is better than the others."""
        for name in self.pictures if self.settings.noise is None else ():
            ended = [one for one in self.images() if one.ended and one.name == name]
            if len(ended) > 1:
                min(ended, key=lambda one: one.l2).best = True

    def clear(self) -> None:
        """Remove the images of what was under way, where results have taken their place.

        Draws of chains that have not met are removed too: they are large, and no search of the page
        goes on with them.
        """
        shown = self.images()
        for name, picture in self.pictures.items():
            if self.settings.noise is not None:
                clear(picture)
            left = {one.number for one in shown if one.name == name and not one.ended}
            for path in (picture.place / SO_FAR).glob("*.*"):
                if int(path.stem) not in left:
                    path.unlink(missing_ok=True)
            if not left and (picture.place / SO_FAR).is_dir():
                (picture.place / SO_FAR).rmdir()
