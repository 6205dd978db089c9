"""Faces cut out of photographs as the FFHQ data set defines it (Karras et al., 2019, appendix A).

Landmarks give a square, rotated as the face is. It is cut out in four steps, each of which takes a
picture with a square in it and returns another: `shrunk`, `cropped`, `padded`, `transformed`.

Coordinates are in pixels, x to the right and y down. A pixel's centre has whole coordinates.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

Quad = Float[np.ndarray, "4 2"]  # top left, bottom left, bottom right, top right
SMALLEST = 2.0  # pixels: the side of a square of which something can be seen


class Region(NamedTuple):
    """A picture, and a square in it that may reach beyond it."""

    picture: UInt8[np.ndarray, "h w 3"]
    quad: Quad

    @property
    def side(self) -> float:
        """The square's, in pixels."""
        return side(self.quad)

    @property
    def border(self) -> int:
        """The pixels around the square that are kept as well."""
        return max(round(self.side / 10), 3)

    def reach(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what the square covers, with the border."""
        low, high = np.floor(self.quad.min(axis=0)), np.ceil(self.quad.max(axis=0))
        left, top, right, bottom = (int(value) for value in (*low, *high))
        border = self.border
        return left - border, top - border, right + border, bottom + border


def face_quad(landmarks: Float[np.ndarray, "points 2"]) -> Quad:
    """The square of a face: its corners top left, bottom left, bottom right and top right.

    The face has 68 landmarks, in the order of iBUG 300-W, or 5: left eye, right eye, nose, left and
    right corner of the mouth, as one sees them. Let e lead from the left eye to the right one, and
    m from the middle of the eyes to that of the mouth. Half of the square's side is then
    max(2|e|, 1.8|m|). It points along e − m⟂, where m⟂ is m turned by a quarter from x towards y.
    The centre is 0.1 m below the eyes.

    Five landmarks are an approximation: FFHQ's eyes are means of six landmarks each. Raises
    ValueError for another number of landmarks, for values that aren't finite, and for a square of
    less than two pixels.
    """
    if landmarks.shape == (68, 2):
        left_eye, right_eye = landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)
        left_mouth, right_mouth = landmarks[48], landmarks[54]
    elif landmarks.shape == (5, 2):
        left_eye, right_eye, _, left_mouth, right_mouth = landmarks
    else:
        raise ValueError(f"a face has 68 or 5 landmarks (x, y), not an array {landmarks.shape}")
    if not np.isfinite(landmarks).all():
        raise ValueError("a landmark isn't finite")
    eyes, between = (left_eye + right_eye) / 2, right_eye - left_eye
    down = (left_mouth + right_mouth) / 2 - eyes
    x = between - _turned(down)
    half = max(2 * np.hypot(*between), 1.8 * np.hypot(*down))
    if not (np.hypot(*x) > 0 and 2 * half >= SMALLEST):
        raise ValueError("the landmarks of a face lie in one point")
    x *= half / np.hypot(*x)
    y, centre = _turned(x), eyes + 0.1 * down
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def side(quad: Quad) -> float:
    """The side of a square, in pixels."""
    return float(np.hypot(*(quad[3] - quad[0])))


def angle(quad: Quad) -> float:
    """How far a square is turned, in degrees, clockwise as one sees it."""
    across, down = quad[3] - quad[0]
    return float(np.degrees(np.arctan2(down, across)))


def cut_out(
    picture: UInt8[np.ndarray, "h w 3"],
    quad: Quad,
    side: int = 1024,
    *,
    supersampling: int = 4,
    padding: bool = True,
) -> UInt8[np.ndarray, "{side} {side} 3"]:
    """Cut a square out of a picture, upright and `side` pixels wide, as FFHQ's faces were cut out.

    What the square has beyond the picture is the picture's reflection, blurred towards the rim. It
    is black without `padding`. The square is first sampled with `supersampling` times as many
    pixels. FFHQ and PULSE have sides of 1024 pixels, and 4096 before. Raises ValueError for a
    square that lies outside of the picture.
    """
    height, width, _ = picture.shape
    low, high = quad.min(axis=0), quad.max(axis=0)
    if (high < 0).any() or (low > [width - 1, height - 1]).any():
        raise ValueError(f"the square of a face lies outside of the {width}×{height} pixels")
    region = cropped(shrunk(Region(picture, quad), side))
    if padding:
        region = padded(region)
    return transformed(region, side, supersampling)


def shrunk(region: Region, side: int) -> Region:
    """Divide the sides of a picture whose square is some k ≥ 2 times as large as needed by k.

    "As needed" is twice the side that is wanted.
    """
    factor = int(region.side / side / 2)
    if factor <= 1:
        return region
    height, width, _ = region.picture.shape
    size = max(1, round(width / factor)), max(1, round(height / factor))
    picture = Image.fromarray(region.picture).resize(size, Image.Resampling.LANCZOS)
    return Region(np.asarray(picture), region.quad / factor)


def cropped(region: Region) -> Region:
    """Drop what is farther from the square than the border."""
    height, width, _ = region.picture.shape
    left, top, right, bottom = region.reach()
    left, top = max(left, 0), max(top, 0)
    picture = region.picture[top : min(bottom, height), left : min(right, width)]
    return Region(picture, region.quad - np.array([left, top]))


def padded(region: Region) -> Region:
    """Reflect the picture where the square reaches beyond it.

    The rim is blurred, and its colour becomes the median's, the more so the farther out it is.
    """
    from scipy.ndimage import gaussian_filter

    height, width, _ = region.picture.shape
    left, top, right, bottom = region.reach()
    pad = max(-left, 0), max(-top, 0), max(right - width, 0), max(bottom - height, 0)
    if max(pad) <= region.border - 4:
        return region
    left, top, right, bottom = (max(amount, round(0.3 * region.side)) for amount in pad)
    around = ((top, bottom), (left, right), (0, 0))
    image = np.pad(region.picture.astype(np.float32), around, "reflect")
    rows, columns = (np.arange(size, dtype=np.float32) for size in image.shape[:2])
    down = np.minimum(rows / top, rows[::-1] / bottom)
    across = np.minimum(columns / left, columns[::-1] / right)
    outwards = 1 - np.minimum(down[:, None, None], across[None, :, None])
    sigma = 0.02 * region.side
    blurred = gaussian_filter(image, (sigma, sigma, 0))
    image += (blurred - image) * np.clip(3 * outwards + 1, 0, 1)
    image += (np.median(image, axis=(0, 1)) - image) * np.clip(outwards, 0, 1)
    picture = np.rint(image).clip(0, 255).astype(np.uint8)
    return Region(picture, region.quad + np.array([left, top]))


def transformed(
    region: Region, side: int, supersampling: int
) -> UInt8[np.ndarray, "{side} {side} 3"]:
    """The square itself: sampled bilinearly with more pixels, then reduced to `side`."""
    sampled = side * supersampling
    corners = tuple((region.quad + 0.5).flatten().tolist())  # Pillow's centres are at halves
    image = Image.fromarray(region.picture).transform(
        (sampled, sampled), Image.Transform.QUAD, corners, Image.Resampling.BILINEAR
    )
    if supersampling > 1:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _turned(vector: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
    """A vector turned by a quarter, from x towards y."""
    return np.array([-vector[1], vector[0]])
