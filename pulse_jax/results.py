"""What a run leaves on disk: a folder for each picture, and one table of all.

A restart's images and its part, latents and figures together, are written as soon as it is done;
before, its part holds the state that the search goes on from. From the parts of all restarts come
the picture's overview, latents and table. So whoever stops loses nothing that was done, several
processes can share the work, and a later run takes it up.
"""

import csv
import functools
import io
import json
import math
import shutil
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from pulse_jax import curves, images, video
from pulse_jax.files import load_arrays, one_line, write
from pulse_jax.starts import GENERATOR

# What a run writes beside the pictures' folders.
OF_THE_RUN = ("config.json", "index.html", "results.csv", "timings.csv")


@dataclass(eq=False)
class Picture:
    """A picture to upsample, and what is known of its results."""

    path: Path
    target: np.ndarray  # (h, h, 3) in [0, 1]
    variance: float  # of its pixels, as far as the operator shows them
    folder: Path  # for its results
    networks: str  # the digest of the generator's
    start: tuple | None = None  # (latents, frozen) of an earlier run's restarts
    rows: dict = field(default_factory=dict)  # restart → its row of the table
    error: str = ""  # why its results can't be saved

    @property
    def side(self):
        return len(self.target)

    def relative(self, l2):
        """An l2 over the variance: that of the best image of one colour is 1. It has no unit.

        For a picture that has one colour itself, it is infinite.
        """
        return l2 / self.variance if self.variance else math.inf

    @functools.cached_property
    def pixels(self):
        """A checksum of them, with 8 bits: what tells pictures apart where restarts are drawn."""
        return zlib.crc32(images.to_uint8(self.target).tobytes())

    @functools.cached_property
    def checksum(self):
        """Of its pixels and of where its restarts start."""
        arrays = jax.tree.leaves(self.start)
        return functools.reduce(lambda sum, x: zlib.crc32(x.tobytes(), sum), arrays, self.pixels)


@dataclass(eq=False)
class Restart:
    """One of a picture's restarts, from 1, and how far its search is."""

    picture: Picture
    number: int
    longest: int  # steps that it makes at most
    steps: int = 0
    curve: np.ndarray = None  # (2, longest): l2 and loss of each iterate, NaN if not reached
    state: list | None = None  # arrays from which to go on after these steps

    @property
    def part(self):
        """Where its progress is kept, and then its result, until all of the picture are done."""
        return self.picture.folder / "parts" / f"{self.number:06d}.npz"


def attempt(function, *arguments):
    """Call it; if that can't read or write a file, print and return why, in one line."""
    try:
        function(*arguments)
        return ""
    except ValueError as error:
        complaint = one_line(error)
    except OSError as error:
        complaint = one_line(f"{error.filename2 or error.filename}: {one_line(error)}")
    tqdm.write(f"pulse_jax: {complaint}", file=sys.stderr)
    return complaint


def save(picture, function, *arguments):
    """Write something of a picture; the first failure is its last, and spares the others."""
    picture.error = picture.error or attempt(function, picture, *arguments)


def take_up(picture):
    """Read the rows of the restarts that an earlier run, or another process, has done.

    Raises ValueError if they are of other pixels, or started elsewhere.
    """
    table = picture.folder / "results.csv"
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = [json.loads(str(part["row"])) for part in _parts(picture)]
    if any(str(row.get("checksum")) != str(picture.checksum) for row in rows):
        kind = "picture" if picture.start is None else "picture or start"
        raise ValueError(f"{picture.folder} holds results of another {kind} than {picture.path}")
    picture.rows = {int(row["restart"]): row for row in rows if "status" in row}
    for row in picture.rows.values():  # of an earlier version
        row.setdefault("l2_relative", picture.relative(float(row["l2_saved"])))
    if table.is_file():
        clear(picture)


def take_up_restart(picture, restart):
    """Read how far an earlier run has come with a restart, if it has begun."""
    restart.steps, restart.state = 0, None
    restart.curve = np.full((2, restart.longest), np.nan, np.float32)
    if restart.part.is_file():
        arrays = load_arrays(restart.part)
        restart.curve, restart.steps = arrays["curve"], json.loads(str(arrays["row"]))["steps"]
        restart.state = [arrays[f"{i:03d}"] for i in range(len(arrays) - 2)]


def identity(restart, seed):
    """What tells a restart's row from others."""
    picture = restart.picture
    return {
        "image": picture.path.name,
        "checksum": picture.checksum,
        "restart": restart.number,
        "seed": seed,
    }


def save_progress(picture, restart, seed, state):
    """The arrays from which to go on."""
    row = identity(restart, seed) | {"steps": restart.steps}
    _save_part(restart, row, {f"{i:03d}": array for i, array in enumerate(state)})


def save_restart(picture, restart, row, hr, lr, latents):
    """A restart's image, also downscaled again, if it is finite; its latents and its row."""
    picture.folder.mkdir(parents=True, exist_ok=True)
    if np.isfinite(hr).all():
        images.save_image(picture.folder / f"hr_{restart.number:02d}.png", hr)
        images.save_image(picture.folder / f"lr_{restart.number:02d}.png", lr)
    _save_part(restart, row, latents)


def save_frame(picture, restart, image):
    """The image after the restart's steps, for the video, if it is finite."""
    if np.isfinite(image).all():
        restart.part.parent.mkdir(parents=True, exist_ok=True)
        frame = video.frame(image)
        images.save_image(restart.part.with_suffix(f".{restart.steps:06d}.png"), frame)


def save_intermediate(picture, number, step, hr, lr):
    """The best image so far, named as in the reference: HR/NAME_00.png and LR/NAME_00.png."""
    name = picture.folder.name + number
    for kind, image in (("HR", hr), ("LR", lr)):
        if np.isfinite(image).all():
            (picture.folder / kind).mkdir(parents=True, exist_ok=True)
            images.save_image(picture.folder / kind / f"{name}_{step:02d}.png", image)


def overview(picture, resolution, eps):
    """From the parts of the restarts that are done, what shows them together; returns the parts."""
    rows = [picture.rows[restart] for restart in sorted(picture.rows)]
    found = [images.load_image(path) for path in _images(picture)]
    small = Image.fromarray(images.to_uint8(picture.target))
    smooth = np.asarray(small.resize((resolution, resolution), Image.BICUBIC)) / 255
    enlarged = images.resize_nearest(picture.target, resolution // picture.side)
    images.save_image(picture.folder / "input.png", picture.target)
    images.save_image(picture.folder / "bicubic.png", smooth)
    images.save_image(picture.folder / "grid.png", images.grid([[enlarged, smooth, *found]]))
    parts = [part for part in _parts(picture) if "status" in json.loads(str(part["row"]))]
    best = min(range(len(rows)), key=lambda i: rank(rows[i]))
    by_step = np.stack([part["curve"] for part in parts], axis=1)
    write(picture.folder / "l2.svg", curves.draw(by_step[0], "l2", best, eps))
    write(picture.folder / "loss.svg", curves.draw(by_step[1], "loss", best))
    return parts


def finish(picture, resolution, eps):
    """What is about all restarts of a picture; the last, results.csv, says that it is done.

    If frames have been saved, a video too.
    """
    if (picture.folder / "results.csv").is_file():
        return
    parts = overview(picture, resolution, eps)
    names = [name for name in parts[0] if name not in ("row", "curve")]
    latents = {name: np.stack([part[name] for part in parts]) for name in names}
    latents[GENERATOR] = picture.networks
    write(picture.folder / "latents.npz", _npz(latents))
    rows = [picture.rows[restart] for restart in sorted(picture.rows)]
    frames = [sorted(picture.folder.glob(f"parts/{int(row['restart']):06d}.*.png")) for row in rows]
    if any(frames):
        found = [images.load_image(path) for path in _images(picture)]
        video.save(picture.folder, frames, found)
    write(picture.folder / "results.csv", as_csv(rows))
    clear(picture)


def clear(picture):
    """Remove what a complete picture no longer needs."""
    shutil.rmtree(picture.folder / "parts", ignore_errors=True)
    clear_temporary(picture.folder)


def clear_temporary(folder):
    """Remove what was half written when a process was killed."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def rank(row):
    """Sorts rows: lowest l2 first, what is not finite last."""
    error = float(row["l2_saved"])
    return math.isnan(error), error


def as_csv(rows):
    """A table with a header, from dicts with the same keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _images(picture):
    """The files of its results, in the order of the restarts; none of one that isn't finite."""
    paths = [picture.folder / f"hr_{restart:02d}.png" for restart in sorted(picture.rows)]
    return [path for path in paths if path.is_file()]


def _parts(picture):
    """In the order of the restarts."""
    for path in sorted((picture.folder / "parts").glob("*.npz")):
        yield load_arrays(path)


def _save_part(restart, row, arrays):
    restart.part.parent.mkdir(parents=True, exist_ok=True)
    write(restart.part, _npz(arrays | {"curve": restart.curve, "row": json.dumps(row)}))


def _npz(arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
