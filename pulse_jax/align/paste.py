"""Faces put back into the photograph that they were cut out of."""

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image

from pulse_jax.align.ffhq import Quad, side
from pulse_jax.images import check_floats, resample
from pulse_jax.types import AnyArray

FEATHER = 0.1  # of the square's side


def put_back(
    photograph: Float[AnyArray, "_ _ c"],
    faces: Iterable[tuple[Float[AnyArray, "_ _ _"], Quad]],
    outscale: float = 1,
) -> Float32[np.ndarray, "_ _ c"]:
    """A photograph with faces, or other square images, in squares as `face_quad` gives them.

    With an `outscale`, the photograph is first enlarged by this factor (bicubic), so that more of a
    face is seen. A face is reduced to the size of its square if it is larger (Lanczos), and turned
    (bicubic). Its weight is 0 at the square's rim, and 1 from a tenth of the side inwards; it rises
    as 3t² − 2t³ in between. All values are in [0, 1], and what lies outside of the squares keeps
    its own, if `outscale` is 1. A photograph with alpha keeps it under faces without. Raises
    ValueError for images of integers, and for an `outscale` that isn't finite and positive, or that
    makes more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, with which a picture can't be read.
    """
    faces = list(faces)
    for image in (photograph, *(face for face, _ in faces)):
        check_floats(image)
    if not 0 < outscale < np.inf:
        raise ValueError(f"outscale={outscale}: must be finite and above 0")
    result = np.array(photograph, np.float32)
    scale = np.ones(2)  # of x and y
    if outscale != 1:
        rows, columns, _ = result.shape
        height, width = max(1, round(outscale * rows)), max(1, round(outscale * columns))
        if height * width > (most := Image.MAX_IMAGE_PIXELS or math.inf):
            told = f"makes more than {most / 1e6:.3g} megapixels, which Pillow wouldn't read"
            raise ValueError(f"outscale={outscale}: {told}")
        result = resample(result, height, width, "bicubic").clip(0, 1)
        scale = np.array([width / columns, height / rows])
    for face, quad in faces:
        _blend(result, np.asarray(face), (quad + 0.5) * scale - 0.5)
    return result


def _blend(
    photograph: Float32[np.ndarray, "h w c"], face: Float[np.ndarray, "r r _"], quad: Quad
) -> None:
    """Put a face into a square of a photograph, whose first channels are written to."""
    height, width, _ = photograph.shape
    left, top = np.floor(quad.min(axis=0)).astype(int).clip(0, [width, height]).tolist()
    right, bottom = np.ceil(quad.max(axis=0) + 1).astype(int).clip(0, [width, height]).tolist()
    region = photograph[top:bottom, left:right, : face.shape[2]]
    if not region.size:
        return
    size = min(len(face), max(1, round(side(quad))))
    small = face if size == len(face) else resample(face, size, size, "lanczos")
    # The place in the square, from 0 to 1, of the pixel at (x, y) of the region.
    to_square = np.linalg.inv(np.stack([quad[3] - quad[0], quad[1] - quad[0]], axis=1))
    origin = to_square @ (np.array([left, top]) - quad[0])
    warped = _warped(small, to_square * size, origin * size, bottom - top, right - left)
    y, x = np.indices(region.shape[:2])
    places = np.tensordot(to_square, np.stack([x, y]), axes=1) + origin[:, None, None]
    t = np.clip(np.minimum(places, 1 - places).min(axis=0) / FEATHER, 0, 1)
    weight = (3 * t**2 - 2 * t**3).astype(np.float32)[..., None]
    region += weight * (warped.clip(0, 1) - region)


def _warped(
    image: Float[AnyArray, "r r c"],
    matrix: Float[np.ndarray, "2 2"],
    origin: Float[np.ndarray, "2"],
    height: int,
    width: int,
) -> Float32[np.ndarray, "{height} {width} c"]:
    """An image whose pixel (x, y) is that of `image` at matrix · (x, y) + origin.

    The result counts from the centre of a pixel, and `image` from its edge.
    """
    # Pillow counts from the edge in both.
    corner = origin - matrix.sum(axis=1) / 2
    coefficients = np.column_stack([matrix, corner]).flatten().tolist()
    channels = [
        Image.fromarray(channel).transform(
            (width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
        )
        for channel in np.moveaxis(np.asarray(image, np.float32), -1, 0)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)
