"""Photographs in and back: faces are found, cut out as generators of faces know them, and put back.

for landmarks in find_faces(photograph):              # with the extra `align`
    quad = face_quad(landmarks)                       # where the face is
    face = cut_out(photograph, quad, side=1024)       # as the FFHQ data set has faces
    put_back(photograph, [(face, quad)])              # where it was
"""

from pulse_jax.align.detector import find_faces
from pulse_jax.align.ffhq import cut_out, face_quad
from pulse_jax.align.landmarks import read_landmarks, write_landmarks
from pulse_jax.align.paste import put_back

__all__ = [
    "cut_out",
    "face_quad",
    "find_faces",
    "put_back",
    "read_landmarks",
    "write_landmarks",
]
