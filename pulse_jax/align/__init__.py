"""Photographs in and back: faces are found, cut out as generators of faces know them, and put back.

for landmarks in find_faces(photograph):              # with the extra `align`
    quad = face_quad(landmarks)                       # where the face is
    face = cut_out(photograph, quad, side=1024)       # as the FFHQ data set has faces
    put_back(photograph, [(face, quad)])              # where it was
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pulse_jax.align.detector import find_faces as find_faces
    from pulse_jax.align.ffhq import cut_out as cut_out
    from pulse_jax.align.ffhq import face_quad as face_quad
    from pulse_jax.align.landmarks import read_landmarks as read_landmarks
    from pulse_jax.align.landmarks import write_landmarks as write_landmarks
    from pulse_jax.align.paste import put_back as put_back
else:
    _PARTS = {
        "cut_out": "ffhq",
        "face_quad": "ffhq",
        "find_faces": "detector",
        "put_back": "paste",
        "read_landmarks": "landmarks",
        "write_landmarks": "landmarks",
    }

    # `python -m pulse_jax.align` imports this file before it can tell what JAX complains of.
    def __getattr__(name: str) -> Any:
        """A public name, imported when it is first asked for."""
        if name not in _PARTS:
            raise AttributeError(f"module 'pulse_jax.align' has no attribute {name!r}")
        return getattr(importlib.import_module(f"pulse_jax.align.{_PARTS[name]}"), name)
