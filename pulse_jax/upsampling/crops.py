"""Squares cut out of pictures before they are upsampled."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pulse_jax.align import cut_out, face_quad, find_faces, read_landmarks
from pulse_jax.align.ffhq import Quad, angle, side
from pulse_jax.images import on_white, to_uint8
from pulse_jax.upsampling.settings import Settings

Image = Float[np.ndarray, "h w c"]


class Crop(NamedTuple):
    """A square of a picture, how it was cut out, in words, and where it was."""

    image: Image
    told: str = ""
    quad: Quad | None = None


def make_cut(
    settings: Settings, resolution: int, channels: int
) -> Callable[[str, Image], list[Crop]]:
    """A function `cut(name, image)`: the squares that the settings take of a picture of this name.

    Without `crop`, there is one, which is all of the picture. Faces are cut out with `resolution`.
    The function raises ValueError if there is no such square. This one does so if faces can't be
    found at all, or not for images of so many channels.
    """
    crop = settings.crop
    if crop is None:
        return lambda name, image: [Crop(image)]
    if crop != "face":
        return lambda name, image: [_square(image, crop)]
    if channels == 4:
        raise ValueError(f"crop=face is for photographs, and {settings.generator} has alpha")
    given = None if settings.landmarks is None else read_landmarks(settings.landmarks)
    if given is None:
        find_faces(np.zeros((1, 1, 3), np.uint8))  # which tells now if nothing can find them

    def cut(name: str, image: Image) -> list[Crop]:
        pixels = to_uint8(on_white(image))
        faces = find_faces(pixels) if given is None else given.get(name, [])
        if not faces:
            where = "was found" if given is None else f"is in landmarks={settings.landmarks}"
            raise ValueError(f"no face {where}")
        quads = [face_quad(face) for face in faces]
        return [
            Crop(
                cut_out(pixels, quad, resolution)[..., :channels].astype(np.float32) / 255,
                f"cut out as face {number} of {len(faces)}, a square {side(quad):.0f} pixels wide "
                f"and turned by {angle(quad):.0f}°, at {resolution}×{resolution} pixels",
                quad,
            )
            for number, quad in enumerate(quads, 1)
        ]

    return cut


def _square(image: Image, crop: tuple[int, int, int] | str) -> Crop:
    height, width, _ = image.shape
    if isinstance(crop, str):
        size = min(height, width)
        x, y = (width - size) // 2, (height - size) // 2
    else:
        x, y, size = crop
    if x + size > width or y + size > height:
        raise ValueError(
            f"crop={x},{y},{size} reaches beyond its {width}×{height} pixels; crop=center fits"
        )
    corners = np.array([[0, 0], [0, 1], [1, 1], [1, 0]])
    return Crop(
        image[y : y + size, x : x + size],
        f"cropped to {size}×{size} pixels at {x},{y}",
        corners * size + np.array([x, y]) - 0.5,
    )
