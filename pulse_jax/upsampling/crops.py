"""Squares cut out of pictures before they are upsampled."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from pulse_jax.align import cut_out, face_quad, find_faces, read_landmarks
from pulse_jax.align.detector import check_detector
from pulse_jax.align.ffhq import Quad, angle, side
from pulse_jax.files import expanded
from pulse_jax.images import on_white, to_uint8
from pulse_jax.upsampling.settings import Settings

Image: TypeAlias = Float[np.ndarray, "_ _ c"]


class Crop(NamedTuple):
    """A square to cut out of a picture: how, where, and the same in words."""

    cut: Callable[[Image], Image]
    quad: Quad
    told: str
    landmarks: Float[np.ndarray, "_ 2"] | None = None  # of a face


def make_find(
    settings: Settings, resolution: int, channels: int
) -> Callable[[str, Image], list[Crop]]:
    """A function `find(name, image)`: the squares that the settings name in a picture of this name.

    Faces are cut out with `resolution`. The function raises ValueError if there is no such square.
    This one does so if faces can't be found at all, or not for images of so many channels.
    """
    crop = settings.crop
    if crop != "face":
        return lambda name, image: [_square(image, crop)]
    if channels == 4:
        raise ValueError(f"crop=face is for photographs, and {settings.generator} has alpha")
    path = settings.landmarks
    given = None if path is None else read_landmarks(expanded(path, "landmarks"))
    if given is None:
        check_detector()

    def find(name: str, image: Image) -> list[Crop]:
        faces = find_faces(to_uint8(on_white(image))) if given is None else given.get(name, [])
        if not faces:
            where = "was found" if given is None else f"is in landmarks={settings.landmarks}"
            raise ValueError(f"no face {where}")
        return [_face(face, i, len(faces), resolution) for i, face in enumerate(faces, 1)]

    return find


def _face(landmarks: Float[np.ndarray, "_ 2"], number: int, count: int, resolution: int) -> Crop:
    quad = face_quad(landmarks)

    def cut(image: Image) -> Image:
        face = cut_out(to_uint8(on_white(image)), quad, resolution)
        return face[..., : image.shape[2]].astype(np.float32) / 255

    told = (
        f"cut out as face {number} of {count}, a square {side(quad):.0f} pixels wide and turned by "
        f"{angle(quad):.0f}°, at {resolution}×{resolution} pixels"
    )
    return Crop(cut, quad, told, landmarks)


def _square(image: Image, crop: tuple[int, int, int] | str | None) -> Crop:
    height, width, _ = image.shape
    if isinstance(crop, tuple):
        x, y, size = crop
    else:
        size = min(height, width)
        x, y = (width - size) // 2, (height - size) // 2
    if x + size > width or y + size > height:
        raise ValueError(
            f"crop={x},{y},{size} reaches beyond its {width}×{height} pixels; crop=center takes "
            f"the largest square in its middle"
        )
    quad = np.array([[0, 0], [0, 1], [1, 1], [1, 0]]) * size + np.array([x, y]) - 0.5
    told = f"cropped to {size}×{size} pixels at {x},{y}"
    return Crop(lambda image: image[y : y + size, x : x + size], quad, told)
