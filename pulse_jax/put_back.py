"""Put results back into the photograph that their pictures were cut out of.

    pulse_jax_put_back large/photo_1                        # its best result, into put_back.png
    pulse_jax_put_back large/photo_1 --pick=3 --outscale=2  # restart 3, in a larger photograph
    pulse_jax_put_back large/photo_1 large/photo_2          # both faces of one photograph

A result is named by its folder, which `pulse_jax` with `--crop` has written. It is blended with the
photograph at its rim.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from jaxtyping import Float32

from pulse_jax.align import put_back
from pulse_jax.align.ffhq import Quad
from pulse_jax.console import ended_in_one_line, make_output_safe, parsed
from pulse_jax.files import counted, expanded, one_line, read_json
from pulse_jax.images import ValueRange, load_image, save_image
from pulse_jax.upsampling.pictures import image_path, load_photograph
from pulse_jax.upsampling.results import CROP, rank, read_table


def main() -> None:
    """The console script: folders of results in, a photograph out."""
    values, named = parse(sys.argv)
    with ended_in_one_line("pulse_jax_put_back"):
        whole = photograph_with([expanded(name) for name in named], values.pick, values.outscale)
        save_image(expanded(values.output), whole)
        height, width, _ = whole.shape
        results = counted(len(named), "result")
        told = f"{values.output}: {results} in the photograph, {width}×{height} pixels"
        print(one_line(told))


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


def photograph_with(
    folders: Sequence[Path], pick: int | None = None, outscale: float = 1
) -> Float32[np.ndarray, "h w c"]:
    """A photograph with the results in these folders; of each, the restart `pick`, or the best.

    Raises ValueError, in one line, if a folder holds no such result, or one of another photograph,
    or if that has changed meanwhile.
    """
    found = [_read(folder, pick) for folder in folders]
    path, channels = found[0][0], max(image.shape[2] for *_, image, _ in found)
    for folder, (other, value_range, sha256, *_) in zip(folders, found, strict=True):
        if other != path:
            raise ValueError(f"{folder}: its photograph is {other}, not {path}")
        photograph = load_photograph(Path(path), value_range, channels, sha256)
    return put_back(photograph, [(image, quad) for *_, image, quad in found], outscale)


def _read(
    folder: Path, pick: int | None
) -> tuple[str, ValueRange | None, str | None, Float32[np.ndarray, "r r c"], Quad]:
    """(path, range of values and SHA-256 of the photograph, result, its square) of a folder."""
    path = folder / CROP
    try:
        if not path.is_file():
            told = "name the folder of a picture that was cut out with --crop, such as runs/photo_1"
            raise ValueError(f"there is no {path}: {told}")
        place = read_json(path)
        photograph, value_range = str(place["photograph"]), place["value_range"]
        quad = np.array(place["quad"], float).reshape(4, 2)
        if pick is None:
            path = folder / "results.csv"
            pick = int(min(read_table(path), key=rank)["restart"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        told = one_line(error)
        raise ValueError(told if str(path) in told else f"{path}: can't be read: {told}") from error
    value_range = tuple(value_range) if isinstance(value_range, list) else value_range
    result = image_path(folder, pick)
    if not result.is_file():
        raise ValueError(f"{folder}: it has no result {pick}, which would be {result.name}")
    image = load_image(result, channels=4)
    image = image if (image[..., 3] < 1).any() else image[..., :3]
    return photograph, value_range, place.get("SHA-256"), image, quad


if __name__ == "__main__":
    make_output_safe()
    main()
