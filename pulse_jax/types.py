"""Types that signatures share. Shapes are those of one example: `vmap` adds axes outside."""

from typing import TypeAlias

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, PyTree

AnyArray = jax.Array | np.ndarray

# Axis 0 of a leaf counts spheres, the others are coordinates.
Latents: TypeAlias = PyTree[Float[AnyArray, "_ _ ..."]]
Frozen: TypeAlias = PyTree[ArrayLike]
Params: TypeAlias = PyTree[ArrayLike]
