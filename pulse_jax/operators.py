"""Linear degradations D of one image: what is known about the picture is y = D(x).

An operator is a pair of pure functions, the map and its adjoint. Bicubic and area downscaling are
separable, D(x) = A x Bᵀ per channel, and are computed just so, as two matrix products: the border
rule is part of the small matrices, and the adjoint is their transposes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Operator(NamedTuple):
    """A linear map D of one image, called like a function: `operator(image)`.

    `apply`: D, (H, W, C) -> (H / factor, W / factor, C), floating point in and out.
    `adjoint`: Dᵀ, back to (H, W, C), with ⟨D x, y⟩ = ⟨x, Dᵀ y⟩.
    """

    name: str
    factor: int
    apply: Callable[[jax.Array], jax.Array]
    adjoint: Callable[[jax.Array], jax.Array]

    def __call__(self, image):
        return self.apply(image)


def bicubic(factor):
    """Bicubic downscaling by an integer factor k ≥ 1, as PULSE's `BicubicDownSample` computes it.

    Separable, stride k, with 4k taps: the cubic convolution kernel of Keys (1981), a = −½,
        w(t) = 3/2|t|³ − 5/2|t|² + 1          for |t| ≤ 1
        w(t) = −1/2|t|³ + 5/2|t|² − 4|t| + 2  for 1 < |t| ≤ 2
    at t = (i + ½)/k − 2, i = 0 … 4k − 1, divided by their sum. Reflect padding of ⌊3k/2⌋ pixels
    before and ⌈3k/2⌉ after. The values keep their unit and may overshoot its range. For k = 1 it is
    a half-pixel shift, not the identity.

    Raises ValueError for a bad k, and when applied: to anything but an (H, W, C) floating-point
    image, or if k doesn't divide a side or a side isn't larger than the padding.
    """
    _check_factor(factor)
    t = np.abs((np.arange(4 * factor) + 0.5) / factor - 2)
    inner, outer = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    taps = np.where(t <= 1, inner, outer)
    # The reference's taps are float32 whatever the image is; the rounding shows (4e-9) in float64.
    taps = np.float32(taps / taps.sum())
    before, after = 3 * factor // 2, -(-3 * factor // 2)

    def matrix(size):
        if size <= after:
            raise ValueError(
                f"bicubic({factor}) needs sides larger than {after} pixels, got {size}"
            )
        pixels = np.pad(np.arange(size), (before, after), mode="reflect")
        rows = np.arange(size // factor)[:, None]
        result = np.zeros((size // factor, size))
        np.add.at(result, (rows, pixels[rows * factor + np.arange(4 * factor)]), taps)
        return result

    return _separable("bicubic", factor, matrix)


def area(factor):
    """Area downscaling by an integer factor k ≥ 1: the mean of each k × k box.

    Raises ValueError for a bad k, and when applied: to anything but an (H, W, C) floating-point
    image, or if k doesn't divide a side.
    """
    _check_factor(factor)

    def matrix(size):
        return np.kron(np.eye(size // factor), np.full((1, factor), 1 / factor))

    return _separable("area", factor, matrix)


OPERATORS = {"bicubic": bicubic, "area": area}


def _separable(name, factor, matrix):
    """The operator A x Bᵀ, where matrix(size) is the (size / factor, size) map of one axis."""

    def check(image):
        if image.ndim != 3:
            raise ValueError(f"{name} takes one image (H, W, C), got shape {image.shape}; vmap it")
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise ValueError(f"{name} takes a floating-point image, got {image.dtype}")

    def product(rows, image, columns):
        # At the default precision an accelerator would round the inputs: TF32 or bfloat16.
        rows, columns = (jnp.asarray(m, image.dtype) for m in (rows, columns))
        image = jnp.einsum("ih,hwc->iwc", rows, image, precision="highest")
        return jnp.einsum("jw,iwc->ijc", columns, image, precision="highest")

    def apply(image):
        check(image)
        height, width, _ = image.shape
        if height % factor or width % factor:
            raise ValueError(
                f"{name}: factor {factor} does not divide the image's {height}×{width}"
            )
        return product(matrix(height), image, matrix(width))

    def adjoint(image):
        check(image)
        height, width, _ = image.shape
        return product(matrix(height * factor).T, image, matrix(width * factor).T)

    return Operator(name, factor, apply, adjoint)


def _check_factor(factor):
    if isinstance(factor, bool) or not isinstance(factor, int | np.integer) or factor < 1:
        raise ValueError(f"factor must be an integer of at least 1, got {factor!r}")
