"""Products of a matrix and an image that stay products of one image under `vmap`.

JAX would make one product of those of many images, which a CPU cuts between its threads: an image's
last digits then depend on its place among the others. As a primitive of its own, with rules for
transposing and mapping, a product is linear for JAX, and the matrix is made within the program.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Float

Make = Callable[[int, Any], Float[Array, "rows columns"]]


def product(
    make: Make, image: Float[Array, "n m"], size: int, transposed: bool = False
) -> Float[Array, "k m"]:
    """A x, or Aᵀ x if `transposed`, for x and A = make(size, dtype), with `size` columns.

    `make` is a function that can be hashed, of JAX operations. Nothing is rounded beforehand, as an
    accelerator's default precision would.
    """
    return _product.bind(image, make=make, size=size, transposed=transposed)


def _compute(
    x: Float[Array, "*several n m"], *, make: Make, size: int, transposed: bool
) -> Float[Array, "*several k m"]:
    """Each of the several is a product of its own."""
    matrix = make(size, x.dtype)
    matrix = jnp.broadcast_to(matrix, (*x.shape[:-2], *matrix.shape))
    several = tuple(range(x.ndim - 2))
    contracted = x.ndim - 2 if transposed else x.ndim - 1
    dimensions = ((contracted,), (x.ndim - 2,)), (several, several)
    return lax.dot_general(matrix, x, dimensions, precision="highest")


def _transpose(cotangent: Array, _: Any, *, transposed: bool, **others: Any) -> list[Array]:
    return [_product.bind(cotangent, transposed=not transposed, **others)]


def _batch(inputs: Sequence[Array], axes: Sequence[int], **others: Any) -> tuple[Array, int]:
    return _product.bind(jnp.moveaxis(inputs[0], axes[0], 0), **others), 0


_product = Primitive("product")
_product.def_impl(jax.jit(_compute, static_argnames=("make", "size", "transposed")))
_product.def_abstract_eval(
    lambda x, **others: jax.core.ShapedArray(
        jax.eval_shape(functools.partial(_compute, **others), x).shape, x.dtype
    )
)
ad.deflinear2(_product, _transpose)
batching.primitive_batchers[_product] = _batch
mlir.register_lowering(_product, mlir.lower_fun(_compute, multiple_results=False))
