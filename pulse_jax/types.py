"""Types that signatures share, and the numbers that float32, in which searches compute, can hold.

Shapes are those of one example: `vmap` adds axes outside.
"""

import math
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray, PyTree

AnyArray = jax.Array | np.ndarray
LARGEST_FACTOR = 1e15  # of gradients: a float32 holds the squares of what comes of it
# The smallest number above 0 of float32 that XLA doesn't take as 0, and the largest.
TINY, HUGE = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))

Image: TypeAlias = Float[AnyArray, "H W C"]
Degraded: TypeAlias = Float[AnyArray, "h w C"]  # of H / factor × W / factor pixels
# Axis 0 of a leaf counts spheres, the others are coordinates.
Latents: TypeAlias = PyTree[Float[AnyArray, "_ _ ..."]]
Frozen: TypeAlias = PyTree[ArrayLike]
Params: TypeAlias = PyTree[ArrayLike]


def misfit(number: float) -> str:
    """Why float32, in which searches compute, can't hold a number, in words, or nothing."""
    if not math.isfinite(number):
        return "not finite"
    if abs(number) > HUGE:
        return f"infinite in float32, which ends at {HUGE:.2g}"
    if 0 < abs(number) < TINY:
        return f"0 in float32, which begins at {TINY:.2g}"
    return ""


def check_kind(given: object, kind: Any, told: str) -> None:
    """Raises ValueError, which has `told` what it must be, if a part is of another kind.

    So parts that are taken for each other, as a name or a class for what it stands for, are found
    where they are put together, not where they run.
    """
    if isinstance(given, type) or not isinstance(given, kind):
        raise ValueError(f"{told}, got {reprlib.repr(given)}")


class Generator(NamedTuple):
    """A decoder of Gaussian variables, for one image; `vmap` it for more.

    Whatever provides these functions can be searched: a GAN, a VAE, a flow. All functions are pure,
    and `params` is always an argument. A function that returns `(Generator, params)` is loaded by
    its name, `my_package.my_module:make`.

    - `resolution` is the side R of the images, and `channels` their number C of channels: 3 for
      colours, 1 for grey, or 4 for colours and alpha.
    - `sample(key) → (latents, frozen)` draws two pytrees of standard normal variables. The search
      moves the first alone. Axis 0 of a leaf of `latents` counts spheres, and the other axes are
      coordinates: styles (L, d) are L points, and a noise map (1, H, W) is one point.
    - `synthesize(params, latents, frozen)` makes the image, nominally in [0, 1] and not clipped. It
      must have reverse-mode derivatives. Generators of `style_generator` have no others: their
      second derivatives are reverse over reverse, and forward mode (`jax.jvp`, `jax.hessian`)
      raises TypeError.
    - `styles(params, latents, frozen)` gives the style vectors that GEOCROSS compares. It is None
      if there are none.
    - `classes` is how many classes of images there are, if the user can choose one. Then `frozen`
      is a dict, and its "label" is the class's number, which counts from 0. `sample` draws it.
    """

    resolution: int
    sample: Callable[[PRNGKeyArray], tuple[Latents, Frozen]]
    synthesize: Callable[[Params, Latents, Frozen], Float[Array, "R R C"]]
    styles: Callable[[Params, Latents, Frozen], Float[Array, "layers d"]] | None = None
    channels: int = 3
    classes: int = 0
