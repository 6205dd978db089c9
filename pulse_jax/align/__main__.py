"""Cut the faces out of photographs, as the FFHQ data set cuts them out.

    pulse_jax_align photo.jpg folder/            # into ./faces, 1024×1024 pixels each
    pulse_jax_align photo.jpg --landmarks=corrected.json --side=256

All faces of each picture are found and written, from left to right, as NAME.png, or as NAME_1.png,
NAME_2.png and so on if there are several. Their landmarks are added to landmarks.json, which
--landmarks takes, here and in pulse_jax. If a picture has no face or can't be read, a line says so,
and the others go on.
"""

if __name__ == "__main__":  # before the imports, which take seconds, and of which JAX's may fail
    from pulse_jax import console

    console.align()  # doesn't return

import os
import sys
import warnings
from pathlib import Path

import numpy as np
from absl import flags

from pulse_jax.align import cut_out, face_quad, find_faces, read_landmarks, write_landmarks
from pulse_jax.align.detector import check_detector
from pulse_jax.align.landmarks import Faces
from pulse_jax.console import ended_in_one_line, one_by_one, parsed
from pulse_jax.files import counted, expanded, one_line
from pulse_jax.images import ImageWarning, list_images, load_image, save_image, to_uint8

LARGEST = 4096  # pixels: the side of a face, which is first sampled finer and takes a gigabyte


def main() -> None:
    """The console script: photographs in, faces out."""
    values, named = parse(sys.argv)
    with ended_in_one_line("pulse_jax_align"):
        path = values.landmarks
        given = None if path is None else read_landmarks(expanded(path, "--landmarks"))
        if given is None:
            check_detector()
        try:
            if not align_all(named, expanded(values.output, "--output"), values.side, given):
                sys.exit(1)
        except OSError as error:
            told = f"--output={values.output} can't be written: {one_line(error)}"
            raise ValueError(told) from error


def parse(argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags' values, and the pictures and folders. An error ends the command with one line."""
    values = flags.FlagValues()  # not those of the other commands in this process
    flags.DEFINE_string("output", "faces", "Faces are written into this folder.", values)
    flags.DEFINE_integer(
        "side", 1024, "Faces have this side, in pixels.", 1, LARGEST, flag_values=values
    )
    flags.DEFINE_string(
        "landmarks",
        None,
        "Faces lie where this JSON file says. It lists, for each picture by its file's name, the "
        "faces, each as 68 or 5 points [x, y]. Without it, they are found.",
        values,
    )
    named = parsed("pulse_jax_align", __doc__, values, argv)
    if not named:
        sys.exit("pulse_jax_align: give pictures, or folders of pictures")
    return values, named


def align_all(named: list[str], output: Path, side: int, given: dict[str, Faces] | None) -> bool:
    """Write the faces of all pictures, and their landmarks. Returns whether all had some."""
    paths, found_in, written = list[Path](), dict[str, Faces](), dict[Path, Path]()

    def look(named: str) -> None:
        path = expanded(named)
        # os.path also takes names that the system doesn't, which can't be read.
        paths.extend(list_images(path)[0] if os.path.isdir(path) else [path])

    def one(path: Path) -> None:
        if path.name in found_in:
            raise ValueError(f"{path}: another picture is also called {path.name}")
        found = align(path, output, side, given, written)
        found_in[path.name] = found
        print(one_line(f"{path}: {counted(len(found), 'face')}"))

    output.mkdir(parents=True, exist_ok=True)
    marks = output / "landmarks.json"
    earlier = read_landmarks(marks) if marks.is_file() else {}
    all_listed = one_by_one("pulse_jax_align", named, look)
    try:
        return one_by_one("pulse_jax_align", paths, one) and all_listed
    finally:  # also of what is done before Ctrl-C
        if found_in:  # those of other pictures aren't lost, which may have been corrected
            write_landmarks(marks, {**earlier, **(given or {}), **found_in})
            faces = f"{counted(len(written), 'face')} of {counted(len(found_in), 'picture')}"
            print(one_line(f"{faces} written into {output}, and the landmarks into {marks}"))


def align(
    path: Path, output: Path, side: int, given: dict[str, Faces] | None, written: dict[Path, Path]
) -> Faces:
    """Write the faces of one picture, and return their landmarks.

    `written` gets the file of each face, with its picture. Raises ValueError if there are none, if
    a file can't be read or written, and before one would replace another face or the picture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        picture: np.ndarray = to_uint8(load_image(path))
    try:
        found = find_faces(picture) if given is None else given.get(path.name, [])
        faces = [cut_out(picture, face_quad(landmarks), side) for landmarks in found]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not found:
        raise ValueError(f"{path}: no face {'was found' if given is None else 'has landmarks'}")
    numbers = [""] if len(found) == 1 else [f"_{i}" for i in range(1, len(found) + 1)]
    files = [output / f"{path.stem}{number}.png" for number in numbers]
    for file in files:
        if file.exists() and file.samefile(path):
            raise ValueError(f"{path}: its face would replace it; take another --output")
        if file in written:
            raise ValueError(f"{path}: {file} is already a face of {written[file]}")
    for file, face in zip(files, faces, strict=True):
        save_image(file, face / 255)
        written[file] = path
    return found
