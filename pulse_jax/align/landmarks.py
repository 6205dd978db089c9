"""Landmarks of faces in a file: found by a program of one's own, or corrected by hand.

It is a JSON object. For each picture, by its file's name, it lists the faces, and for each face the
68 or 5 points that `face_quad` takes, as [x, y] in pixels from the centre of the top left pixel:

    {"photo.jpg": [[[206, 102], [249, 105], [227, 130], [204, 142], [247, 144]]]}
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pulse_jax.align.ffhq import face_quad
from pulse_jax.files import one_line, read_json, write

Faces = Sequence[Float[np.ndarray, "_ 2"]]


def read_landmarks(path: str | Path) -> dict[str, Faces]:
    """The faces of each picture. Raises ValueError, in one line, if that isn't what it holds."""
    faces: dict[str, Faces] = {}
    for name, listed in read_json(Path(path)).items():
        try:
            faces[name] = [np.array(face, float).reshape(len(face), 2) for face in listed]
            for face in faces[name]:
                face_quad(face)
        except (TypeError, ValueError) as error:
            reason = f"{path}: the faces of {name!r} can't be read: {one_line(error)}"
            raise ValueError(reason) from error
    return faces


def write_landmarks(path: str | Path, faces: Mapping[str, Faces]) -> None:
    """Write such a file, with a line for each picture. Raises OSError."""
    lines = [
        f"{json.dumps(name)}: {json.dumps([face.tolist() for face in listed])}"
        for name, listed in faces.items()
    ]
    write(path, "{\n" + ",\n".join(lines) + "\n}\n")
