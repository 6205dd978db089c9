"""Photographs in and back: faces are found, cut out as generators of faces know them, and put back.

quad = face_quad(landmarks)                       # where the face is
face = cut_out(photograph, quad, side=1024)       # as the FFHQ data set has faces
"""

from pulse_jax.align.ffhq import cut_out, face_quad

__all__ = ["cut_out", "face_quad"]
