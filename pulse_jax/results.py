"""What a run leaves on disk: a folder for each picture, and one table of all.

A restart's images and its part, latents and figures together, are written as soon as it is done;
from the parts of all restarts come the picture's overview, latents and table. So whoever stops
loses nothing that was done, several processes can share the work, and a later run takes it up.
"""

import csv
import io
import json
import shutil
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pulse_jax import images
from pulse_jax.files import one_line, write


@dataclass(eq=False)
class Picture:
    """A picture to upsample, and what is known of its results."""

    path: Path
    target: np.ndarray  # (h, h, 3) in [0, 1]
    folder: Path  # for its results
    rows: dict = field(default_factory=dict)  # restart → its row of the table
    error: str = ""  # why its results can't be saved

    @property
    def side(self):
        return len(self.target)

    @property
    def checksum(self):
        """Of its pixels, with 8 bits."""
        return zlib.crc32(images.to_uint8(self.target).tobytes())


def attempt(function, *arguments):
    """Call it; if that can't read or write a file, print and return why, in one line."""
    try:
        function(*arguments)
        return ""
    except ValueError as error:
        complaint = one_line(error)
    except OSError as error:
        complaint = f"{error.filename2 or error.filename}: {one_line(error)}"
    tqdm.write(f"pulse_jax: {complaint}", file=sys.stderr)
    return complaint


def save(picture, function, *arguments):
    """Write something of a picture; the first failure is its last, and spares the others."""
    picture.error = picture.error or attempt(function, picture, *arguments)


def take_up(picture):
    """Read the rows of the restarts that an earlier run, or another process, has done.

    Raises ValueError if they are of other pixels.
    """
    table = picture.folder / "results.csv"
    if table.is_file():
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = [json.loads(str(part["row"])) for part in _parts(picture)]
    if any(str(row.get("checksum")) != str(picture.checksum) for row in rows):
        raise ValueError(f"{picture.folder} holds results of another picture than {picture.path}")
    picture.rows = {int(row["restart"]): row for row in rows}


def save_restart(picture, row, hr, lr, latents):
    """A restart's image, also downscaled again, if it is finite; its latents and its row."""
    parts = picture.folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    restart = row["restart"]
    if np.isfinite(hr).all():
        images.save_image(picture.folder / f"hr_{restart:02d}.png", hr)
        images.save_image(picture.folder / f"lr_{restart:02d}.png", lr)
    write(parts / f"{restart:06d}.npz", _npz(latents | {"row": json.dumps(row)}))


def save_intermediate(picture, number, step, hr, lr):
    """The best image so far, named as in the reference: HR/NAME_00.png and LR/NAME_00.png."""
    name = picture.folder.name + number
    for kind, image in (("HR", hr), ("LR", lr)):
        if np.isfinite(image).all():
            (picture.folder / kind).mkdir(parents=True, exist_ok=True)
            images.save_image(picture.folder / kind / f"{name}_{step:02d}.png", image)


def finish(picture, resolution):
    """From the parts of all restarts: grid.png, latents.npz, results.csv; the last says done."""
    if (picture.folder / "results.csv").is_file():
        return
    rows = [picture.rows[restart] for restart in sorted(picture.rows)]
    paths = [picture.folder / f"hr_{int(row['restart']):02d}.png" for row in rows]
    found = [images.load_image(path) for path in paths if path.is_file()]
    small = Image.fromarray(images.to_uint8(picture.target))
    smooth = np.asarray(small.resize((resolution, resolution), Image.BICUBIC)) / 255
    enlarged = images.resize_nearest(picture.target, resolution // picture.side)
    images.save_image(picture.folder / "grid.png", images.grid([[enlarged, smooth, *found]]))
    parts = list(_parts(picture))
    names = [name for name in parts[0] if name != "row"]
    latents = {name: np.stack([part[name] for part in parts]) for name in names}
    write(picture.folder / "latents.npz", _npz(latents))
    write(picture.folder / "results.csv", as_csv(rows))
    shutil.rmtree(picture.folder / "parts")
    for path in picture.folder.glob(".*.tmp"):  # half written when a process was killed
        path.unlink()


def as_csv(rows):
    """A table with a header, from dicts with the same keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _parts(picture):
    """In the order of the restarts."""
    for path in sorted((picture.folder / "parts").glob("*.npz")):
        with np.load(path, allow_pickle=False) as part:
            yield dict(part)


def _npz(arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
