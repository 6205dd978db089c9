"""The searches of a picture as a video: an MP4 where imageio-ffmpeg is installed, else a WebP."""

import importlib.util
import io
import math
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from pulse_jax import images
from pulse_jax.files import one_line, write
from pulse_jax.types import AnyArray

SMALLEST, LARGEST = 128, 256  # side of a restart's image in a video, in pixels
RATE = 12  # frames a second
NAMES = ("search.mp4", "search.webp")

Picture = Float[AnyArray, "side side c"]
Sheet = UInt8[np.ndarray, "h w 3"]


def frame(image: Picture) -> Float[AnyArray, "size size 3"]:
    """An image in [0, 1], on white and resized for a video: to a side from 128 to 256 pixels."""
    side, image = len(image), images.on_white(image)
    if side < SMALLEST:
        return images.resize_nearest(image, SMALLEST // side)
    return images.resize(image, min(side, LARGEST), Image.Resampling.LANCZOS)


def save(folder: Path, frames: Sequence[Sequence[Path]], results: Sequence[Picture]) -> None:
    """Write the video of several restarts side by side into a folder.

    `frames`: the files of each restart's images, whose names end in .STEPS.png. A restart that has
    ended shows its last image until all have ended. `results`: the images that the restarts found,
    which are shown for a second.
    """
    by_step = [{int(path.suffixes[-2][1:]): path for path in paths} for paths in frames if paths]
    sheets = []
    for step in sorted({step for paths in by_step for step in paths}):
        latest = [max((s for s in paths if s <= step), default=min(paths)) for paths in by_step]
        shown = [paths[s] for paths, s in zip(by_step, latest, strict=True)]
        sheets.append(_sheet([images.load_image(path) for path in shown]))
    if len(results) == len(by_step):  # all are finite
        sheets.append(_sheet([frame(image) for image in results]))
    if importlib.util.find_spec("imageio_ffmpeg"):
        write(folder / NAMES[0], _mp4(sheets))
    else:
        write(folder / NAMES[1], _webp(sheets))


def _sheet(pictures: Sequence[Picture]) -> Sheet:
    columns = math.ceil(math.sqrt(1.5 * len(pictures)))
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    return images.to_uint8(images.grid(rows))


def _webp(sheets: list[Sheet]) -> bytes:
    first, *others = map(Image.fromarray, sheets)
    durations = [1000 // RATE] * len(others) + [1000]
    webp = io.BytesIO()
    first.save(
        webp,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=durations,
        loop=0,
        quality=90,
    )
    return webp.getvalue()


def _mp4(sheets: list[Sheet]) -> bytes:
    import imageio_ffmpeg

    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise ValueError(f"{NAMES[0]}: {one_line(error)}") from error
    height, width, _ = sheets[0].shape
    even = ((0, height % 2), (0, width % 2), (0, 0))  # as the colours of H.264 need it
    sheets = [np.pad(sheet, even, mode="edge") for sheet in sheets + sheets[-1:] * RATE]
    size = f"{width + width % 2}x{height + height % 2}"
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(RATE), "-i", "-"]
    coded = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAMES[0]
        # The program is called directly, since the package's own writer forks, which JAX's threads
        # might not survive. It has a session of its own, so that Ctrl-C lets it finish.
        result = subprocess.run(
            [program, "-loglevel", "error", *raw, *coded, path],
            input=b"".join(sheet.tobytes() for sheet in sheets),
            capture_output=True,
            start_new_session=True,
        )
        if result.returncode:
            raise ValueError(f"{NAMES[0]}: {result.stderr.decode(errors='replace')}")
        return path.read_bytes()
