"""What a run leaves on disk: a folder for each picture, and one table of all.

As soon as a restart is done, its images are written, and its part, a file of its latents and
figures. Before that, the part holds the state from which the search goes on. The picture's
overview, latents and table are made from the parts of all restarts. So a run that stops loses
nothing that was done, several processes can share the work, and a later run takes it up.
"""

import csv
import dataclasses
import io
import json
import math
import shutil
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from pulse_jax import images
from pulse_jax.files import attempt, counted, kept_dtype, load_arrays, npz, one_line, write
from pulse_jax.starts import GENERATOR
from pulse_jax.types import AnyArray
from pulse_jax.upsampling import curves, video
from pulse_jax.upsampling.pictures import Picture, image_path

CROP, PUT_BACK = "crop.json", "put_back.png"  # where a picture was in a photograph; the best there
Row = Mapping[str, Any]  # of results.csv
NO_PART = "can't be read: it holds no part of a search"
MET, APART = "met", "not met"  # the status of a posterior's draws, whose chains have met or not


@dataclass(eq=False)
class Restart:
    """One of a picture's restarts, from 1, and how far its search is."""

    picture: Picture
    number: int
    longest: int  # steps that it makes at most
    steps: int = 0
    curve: Any = None  # (2, longest): l2 and loss of each iterate, NaN if not reached
    state: list[np.ndarray] | None = None  # arrays from which to go on after these steps

    @property
    def part(self) -> Path:
        """The file of its progress, and then of its result, until the whole picture is done."""
        return self.picture.place / "parts" / f"{self.number:06d}.npz"

    def snapshot(self) -> "Restart":
        """A copy that the search doesn't change."""
        return dataclasses.replace(self, curve=self.curve.copy(), state=None)


def save(picture: Picture, function: Callable[..., Any], *arguments: Any) -> None:
    """Write something of a picture. After a first failure, nothing more of it is written.

    The writer's thread may note a failure while this goes on, which is kept.
    """
    if not picture.error and (complaint := attempt(function, picture, *arguments)):
        picture.error = complaint


def tell_apart(pictures: Iterable[Picture]) -> None:
    """Note which pictures can't have a folder of their own on a disk that knows no case."""
    alike = defaultdict[str, list[Picture]](list)
    for picture in pictures:
        if picture.folder is not None:
            name = unicodedata.normalize("NFC", str(picture.folder)).casefold()
            save(picture, _claim, alike[name])
            alike[name].append(picture)


def _claim(picture: Picture, alike: Sequence[Picture]) -> None:
    """Raises ValueError if the picture's folder is that of another whose name is like its own."""
    for other in alike:
        other.place.mkdir(parents=True, exist_ok=True)
        if picture.place.exists() and picture.place.samefile(other.place):
            told = f"on this disk, its folder {picture.place} is that of {other.name}"
            raise ValueError(f"{picture.name}: {told}: rename one of them")


def take_up(picture: Picture, number: int) -> None:
    """Read the rows of the restarts that an earlier run, or another process, has done.

    `number`: of the rows of a picture's table, which is written when all is done. Raises ValueError
    if it has others, and if rows belong to other pixels or to another start, or can't be read.
    """
    if picture.folder is None:
        return
    table = picture.place / "results.csv"
    rows: Sequence[Row] = (
        read_table(table) if table.is_file() else [row for _, row, _ in _parts(picture)]
    )
    if any(str(row.get("checksum")) != str(picture.checksum) for row in rows):
        kind = "picture" if picture.start is None else "picture or start"
        raise ValueError(f"{picture.place} holds results of another {kind} than {picture.name}")
    try:
        done: list[dict[str, Any]] = [_typed(row) for row in rows if "status" in row]
        for row in done:  # of an earlier version
            row.setdefault("l2_relative", picture.relative(row["l2_saved"]))
        by_restart = {row["restart"]: row for row in done}
    except (ValueError, KeyError) as error:
        told = f"its results can't be read: {one_line(error)}"
        raise ValueError(f"{picture.place}: {told}") from error
    if table.is_file() and len(by_restart) != number:
        told = f"it has {counted(len(by_restart), 'result')}, and {number} were written"
        raise ValueError(f"{table}: can't be read: {told}")
    picture.rows = by_restart
    if table.is_file() and not is_apart(picture):
        clear(picture)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, with text as values. Raises OSError, and ValueError if it is damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a row has more cells than there are columns, or fewer")
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}: can't be read: {one_line(error)}") from error
    return rows


def _typed(row: Row) -> dict[str, Any]:
    """A row of a table, with numbers in place of their text."""

    def number(text: Any) -> int | float:
        return int(text) if str(text).lstrip("-").isdigit() else float(text)

    return {k: v if k in ("image", "status") else number(v) for k, v in row.items()}


def take_up_restart(picture: Picture, restart: Restart) -> None:
    """Read how far an earlier run has got with a restart, if it had begun it."""
    restart.steps, restart.state = 0, None
    restart.curve = np.full((2, restart.longest), np.nan, np.float32)
    if picture.folder is not None and restart.part.is_file():
        row, arrays = _part(restart.part)
        names = [f"{i:03d}" for i in range(len(arrays) - 1)]
        if arrays.keys() != {"curve", *names} or not _is_alike(arrays["curve"], restart.curve):
            raise ValueError(f"{restart.part}: {NO_PART}")
        restart.curve, restart.steps = arrays["curve"], row.get("steps", 0)
        restart.state = [arrays[name] for name in names]


def check_state(picture: Picture, restart: Restart, likes: Sequence[jax.ShapeDtypeStruct]) -> None:
    """Raises ValueError if a restart's arrays aren't such as this search goes on from."""
    state = restart.state or []
    if len(state) != len(likes) or not all(map(_is_alike, state, likes)):
        told = "of another run or version; remove it to begin this restart anew"
        raise ValueError(f"{restart.part}: {told}")


def _is_alike(array: np.ndarray, like: np.ndarray | jax.ShapeDtypeStruct) -> bool:
    """Whether it has the same shape, and numbers of the same kind."""
    return (array.shape, array.dtype.kind) == (like.shape, kept_dtype(like.dtype).kind)


def identity(restart: Restart) -> dict[str, Any]:
    """The columns that tell a restart's row from others."""
    picture = restart.picture
    return {
        "image": picture.name,
        "checksum": picture.checksum,
        "restart": restart.number,
        "seed": picture.seed,
    }


def save_progress(picture: Picture, restart: Restart, state: Sequence[np.ndarray]) -> None:
    """Save the arrays from which the search goes on."""
    if picture.folder is None:
        return
    row = identity(restart) | {"steps": restart.steps}
    _save_part(restart, row, {f"{i:03d}": array for i, array in enumerate(state)})


def save_restart(
    picture: Picture,
    restart: Restart,
    row: Row,
    hr: Float[np.ndarray, "r r c"],
    lr: Float[np.ndarray, "h h c"],
    latents: dict[str, np.ndarray],
) -> None:
    """Save a restart's latents and row and, if it is finite, its image, large and downscaled."""
    if picture.folder is None:
        picture.kept[restart.number] = hr, latents
        return
    save_images(picture, restart.number, hr, lr)
    _save_part(restart, row, latents)


def save_images(
    picture: Picture, number: int, hr: Float[np.ndarray, "r r c"], lr: Float[np.ndarray, "h h c"]
) -> None:
    """Save a result's image, large and downscaled, if it is finite."""
    picture.place.mkdir(parents=True, exist_ok=True)
    if np.isfinite(hr).all():
        images.save_image(image_path(picture.place, number), hr)
        images.save_image(picture.place / f"lr_{number:02d}.png", lr)


def save_frame(picture: Picture, restart: Restart, image: Float[np.ndarray, "r r c"]) -> None:
    """Save the restart's present image for the video, if it is finite."""
    if np.isfinite(image).all():
        restart.part.parent.mkdir(parents=True, exist_ok=True)
        frame = video.frame(image)
        images.save_image(restart.part.with_suffix(f".{restart.steps:06d}.png"), frame)


def save_intermediate(
    picture: Picture,
    number: str,
    step: int,
    hr: Float[np.ndarray, "r r c"],
    lr: Float[np.ndarray, "h h c"],
) -> None:
    """Save the best image so far, named as in the reference: HR/NAME_00.png, LR/NAME_00.png."""
    name = picture.place.name + number
    for kind, image in (("HR", hr), ("LR", lr)):
        if np.isfinite(image).all():
            (picture.place / kind).mkdir(parents=True, exist_ok=True)
            images.save_image(picture.place / kind / f"{name}_{step:02d}.png", image)


def overview(picture: Picture, resolution: int, eps: float) -> list[dict[str, np.ndarray]]:
    """Write what shows the restarts that are done together. Returns their parts."""
    rows = [picture.rows[restart] for restart in sorted(picture.rows)]
    save_grid(picture, resolution)
    parts = _done(picture)
    best = min(range(len(rows)), key=lambda i: rank(rows[i]))
    by_step = np.stack([part["curve"] for part in parts], axis=1)
    restart = rows[best]["restart"]
    if picture.origin is not None and (hr := picture.images().get(restart)) is not None:
        images.save_image(picture.place / PUT_BACK, picture.put_back(hr))
    write(picture.place / "l2.svg", curves.draw(by_step[0], "l2", best, eps))
    write(picture.place / "loss.svg", curves.draw(by_step[1], "loss", best))
    return parts


def save_grid(picture: Picture, resolution: int) -> None:
    """Write the input, its bicubic enlargement, and both beside the images that are done.

    If it was cut out of a photograph in a file, that is written too.
    """
    found = list(picture.images().values())
    smooth = images.resize(picture.target, resolution, Image.Resampling.BICUBIC)
    enlarged = images.resize_nearest(picture.target, resolution // picture.side)
    images.save_image(picture.place / "input.png", picture.target)
    images.save_image(picture.place / "bicubic.png", smooth)
    images.save_image(picture.place / "grid.png", images.grid([[enlarged, smooth, *found]]))
    if (origin := picture.origin) is not None and origin.path is not None:
        place = {
            "photograph": str(origin.path.absolute()),
            "SHA-256": origin.sha256,
            "quad": origin.quad.tolist(),
            "value_range": origin.value_range,
        }
        write(picture.place / CROP, json.dumps(place) + "\n")


def finish(picture: Picture, resolution: int, eps: float) -> None:
    """Write what is about all restarts of a picture, also a video if frames have been saved.

    results.csv comes last, and says that all is done.
    """
    if picture.folder is None or (picture.place / "results.csv").is_file():
        return
    parts = overview(picture, resolution, eps)
    names = [name for name in parts[0] if name != "curve"]
    latents = {name: np.stack([part[name] for part in parts]) for name in names}
    write(picture.place / "latents.npz", npz(latents | {GENERATOR: picture.networks}))
    rows = [picture.rows[restart] for restart in sorted(picture.rows)]
    frames = [sorted(picture.place.glob(f"parts/{row['restart']:06d}.*.png")) for row in rows]
    if any(frames):
        video.save(picture.place, frames, list(picture.images().values()))
    write(picture.place / "results.csv", as_csv(rows))
    clear(picture)


def clear(picture: Picture) -> None:
    """Remove what a complete picture no longer needs."""
    shutil.rmtree(picture.place / "parts", ignore_errors=True)
    clear_temporary(picture.place)


def clear_temporary(folder: Path) -> None:
    """Remove what was half written when a process was killed."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def eight_bits(image: Float[AnyArray, "h w c"]) -> Float[np.ndarray, "h w c"]:
    """An image as 8-bit files hold it."""
    return np.rint(255 * np.clip(np.asarray(image), 0, 1)) / np.float32(255)


def is_apart(picture: Picture) -> bool:
    """Whether these are draws of chains that have not met."""
    return any(row.get("status") == APART for row in picture.rows.values())


def verdict(row: Row) -> str:
    """Whether the chains of a posterior have met, in words. `row`: of any of its draws."""
    figures = f"R-hat {float(row['rhat']):.2f}, ESS {float(row['ess']):.0f}"
    if row["status"] == MET:
        return figures
    told = f"the chains have not met, so its maps must not be used: {figures}"
    return f"{told}; to draw on, give --max_draws={2 * int(row['draws'])} or more"


def rank(row: Row) -> tuple[bool, float]:
    """A key that sorts rows by l2, the lowest first, and what isn't finite last."""
    error = float(row["l2_saved"])
    return math.isnan(error), error


def as_csv(rows: Sequence[Row]) -> str:
    """A table with a header, from dicts with the same keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _done(picture: Picture) -> list[dict[str, np.ndarray]]:
    """The arrays of the parts that are done. Raises ValueError if those of one are unlike others.

    Such are of another version. Which of them they are, their shapes don't tell.
    """
    done = [(path, arrays) for path, row, arrays in _parts(picture) if "status" in row]
    for path, arrays in done[1:]:
        first, others = done[0]
        if arrays.keys() != others.keys() or not all(
            _is_alike(array, others[name]) for name, array in arrays.items()
        ):
            told = f"unlike {first.name} beside it; remove one of them to begin its restart anew"
            raise ValueError(f"{path}: {told}")
    return [arrays for _, arrays in done]


def _parts(picture: Picture) -> Iterator[tuple[Path, Row, dict[str, np.ndarray]]]:
    """The files of its parts, their rows and arrays, in the order of its restarts.

    Raises ValueError.
    """
    for path in sorted((picture.place / "parts").glob("*.npz")):
        yield path, *_part(path)


def _part(path: Path) -> tuple[Row, dict[str, np.ndarray]]:
    """The row and the arrays in a part's file. Raises ValueError if it isn't one."""
    arrays = load_arrays(path)
    try:
        row = json.loads(str(arrays.pop("row")))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {NO_PART}") from error
    if not isinstance(row, dict) or ("status" in row and "curve" not in arrays):
        raise ValueError(f"{path}: {NO_PART}")
    return row, arrays


def _save_part(restart: Restart, row: Row, arrays: dict[str, np.ndarray]) -> None:
    restart.part.parent.mkdir(parents=True, exist_ok=True)
    write(restart.part, npz(arrays | {"curve": restart.curve, "row": json.dumps(row)}))
