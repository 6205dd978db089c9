"""Squares cut out of pictures before they are upsampled."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pulse_jax.upsampling.settings import Settings


class Crop(NamedTuple):
    """A square of a picture, and how it was cut out, in words."""

    image: Float[np.ndarray, "h w c"]
    told: str = ""


def cut(image: Float[np.ndarray, "h w c"], settings: Settings) -> Crop:
    """The square that the settings name; without one, all of the picture.

    Raises ValueError if the square isn't in the picture.
    """
    height, width, _ = image.shape
    if settings.crop is None:
        return Crop(image)
    if settings.crop == "center":
        side = min(height, width)
        x, y = (width - side) // 2, (height - side) // 2
    else:
        x, y, side = settings.crop
    if x + side > width or y + side > height:
        raise ValueError(
            f"crop={x},{y},{side} reaches beyond its {width}×{height} pixels; crop=center fits"
        )
    square = image[y : y + side, x : x + side]
    return Crop(square, f"cropped to {side}×{side} pixels at {x},{y}")
