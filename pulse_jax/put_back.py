"""Put results back into the photograph that their pictures were cut out of.

    pulse_jax_put_back large/photo_1                        # its best result, into put_back.png
    pulse_jax_put_back large/photo_1 --pick=3 --outscale=2  # restart 3, in a larger photograph
    pulse_jax_put_back large/photo_1 large/photo_2          # both faces of one photograph

A result is named by its folder, which `pulse_jax` with `--crop` has written. It is blended with the
photograph at its rim. If one can't be put back, a line says why, and the others are.
"""

if __name__ == "__main__":  # before the imports, which take seconds, and of which JAX's may fail
    from pulse_jax import console

    console.put_back()  # doesn't return

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from jaxtyping import Float32

from pulse_jax.align import put_back
from pulse_jax.align.ffhq import Quad
from pulse_jax.console import ended_in_one_line, one_by_one, parsed
from pulse_jax.files import expanded, one_line, read_json
from pulse_jax.images import load_image, save_image
from pulse_jax.upsampling.notation import RANGE
from pulse_jax.upsampling.pictures import image_path, load_photograph
from pulse_jax.upsampling.results import CROP, rank, read_table


class Result(NamedTuple):
    """An image that a folder holds, and where it was in which photograph."""

    path: Path  # of the photograph
    photograph: Float32[np.ndarray, "_ _ _"]
    image: Float32[np.ndarray, "r r c"]
    quad: Quad


def main() -> None:
    """The console script: folders of results in, a photograph out."""
    values, named = parse(sys.argv)
    found: list[Result] = []

    def look(given: str) -> None:
        folder = expanded(given)
        result = read(folder, values.pick)
        if found and result.path != found[0].path:
            told = f"its photograph is {result.path}, not {found[0].path}"
            raise ValueError(f"{folder}: {told}")
        found.append(result)

    with ended_in_one_line("pulse_jax_put_back"):
        output = expanded(values.output, "--output")
        all_found = one_by_one("pulse_jax_put_back", named, look)
        if found:
            write(found, output, values.outscale)
        if not all_found:
            sys.exit(1)


def parse(argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags' values, and the folders. An error ends the command with one line."""
    values = flags.FlagValues()  # not those of the other commands in this process
    flags.DEFINE_integer(
        "pick",
        None,
        "The restart of this number is put back. Without it, the one of lowest l2 is.",
        1,
        flag_values=values,
    )
    flags.DEFINE_float(
        "outscale", 1.0, "The photograph is enlarged by this factor.", flag_values=values
    )
    flags.DEFINE_string("output", "put_back.png", "The photograph is written here.", values)
    named = parsed("pulse_jax_put_back", __doc__, values, argv)
    if not named:
        sys.exit("pulse_jax_put_back: give the folders of results, such as runs/photo_1")
    return values, named


def read(folder: Path, pick: int | None) -> Result:
    """The restart `pick` of a folder, or the best.

    Raises ValueError, in one line, if the folder holds no such result, or if its photograph can't
    be read or has changed meanwhile.
    """
    path = folder / CROP
    try:
        if not path.is_file():
            told = "name the folder of a picture that was cut out with --crop, such as runs/photo_1"
            raise ValueError(f"there is no {path}: {told}")
        place = read_json(path)
        photograph, value_range = Path(str(place["photograph"])), place["value_range"]
        value_range = None if value_range is None else RANGE.read(RANGE.write(value_range))
        quad = np.array(place["quad"], float).reshape(4, 2)
        if not (np.abs(quad) < 2**31).all() or not np.linalg.det(quad[[3, 1]] - quad[0]):
            raise ValueError("its quad is no square of pixels")
        if pick is None:
            path = folder / "results.csv"
            if not (rows := read_table(path)):
                raise ValueError("it has no rows")
            pick = int(min(rows, key=rank)["restart"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        told = one_line(error)
        raise ValueError(told if str(path) in told else f"{path}: can't be read: {told}") from error
    path = image_path(folder, pick)
    if not path.is_file():
        raise ValueError(f"{folder}: it has no result {pick}, which would be {path.name}")
    image = load_image(path, channels=4)
    image = image if (image[..., 3] < 1).any() else image[..., :3]
    whole = load_photograph(photograph, value_range, image.shape[2], place.get("SHA-256"))
    return Result(photograph, whole, image, quad)


def write(found: Sequence[Result], output: Path, outscale: float) -> None:
    """Write the photograph with results in it. Raises ValueError, in one line, if it can't be."""
    if os.path.exists(output) and output.samefile(found[0].path):
        raise ValueError(f"--output={output} would replace the photograph: take another")
    # With alpha, if a result has it.
    photograph = max((result.photograph for result in found), key=lambda image: image.shape[2])
    whole = put_back(photograph, [(result.image, result.quad) for result in found], outscale)
    save_image(output, whole)
    height, width, _ = whole.shape
    results = "1 result is" if len(found) == 1 else f"{len(found)} results are"
    print(one_line(f"{results} in the photograph {output}, which has {width}×{height} pixels"))
