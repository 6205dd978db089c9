"""Products of a matrix and an image. Under `vmap`, each image keeps a product of its own.

JAX would merge the products of many images into one, which a CPU divides among its threads. The
last digits of an image would then depend on its place among the others. So a product is a primitive
of its own here. Its rules keep it linear for JAX, and its matrix is made within the program.
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
    """A x, or Aᵀ x if `transposed`, where A = make(size, dtype) has `size` columns.

    `make` consists of JAX operations and can be hashed. The product has full precision, which an
    accelerator's default hasn't.
    """
    return _product.bind(image, make=make, size=size, transposed=transposed)


def _compute(
    x: Float[Array, "*several n m"], *, make: Make, size: int, transposed: bool
) -> Float[Array, "*several k m"]:
    """Each image gets a product of its own."""
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
