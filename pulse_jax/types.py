"""Types that signatures share. Shapes are those of one example: `vmap` adds axes outside."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray, PyTree

AnyArray = jax.Array | np.ndarray

# Axis 0 of a leaf counts spheres, the others are coordinates.
Latents: TypeAlias = PyTree[Float[AnyArray, "_ _ ..."]]
Frozen: TypeAlias = PyTree[ArrayLike]
Params: TypeAlias = PyTree[ArrayLike]


class Generator(NamedTuple):
    """A decoder of Gaussian variables, for one image; `vmap` it for more.

    Whatever provides these functions can be searched: a GAN, a VAE, a flow. All are pure; `params`
    is always an argument. A function that returns `(Generator, params)` is loaded by its name,
    my_package.my_module:make.

    `resolution`: the side R of its images.
    `sample(key) → (latents, frozen)`: two pytrees of standard normal variables, of which the search
        moves the first. Axis 0 of a leaf of `latents` counts spheres, the others are coordinates:
        styles (L, d) are L points, a noise map (1, H, W) is one.
    `synthesize(params, latents, frozen) → image`, nominally in [0, 1], not clipped. It must have
        reverse-mode derivatives. Those of `style_generator` have no others: second ones are reverse
        over reverse, and forward mode (`jax.jvp`, `jax.hessian`) raises TypeError.
    `styles(params, latents)`: the style vectors that GEOCROSS compares; None if there are none.
    """

    resolution: int
    sample: Callable[[PRNGKeyArray], tuple[Latents, Frozen]]
    synthesize: Callable[[Params, Latents, Frozen], Float[Array, "R R 3"]]
    styles: Callable[[Params, Latents], Float[Array, "layers d"]] | None = None
