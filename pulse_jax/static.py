"""Functions as arguments of compiled programs.

`jit` compiles anew for a function that doesn't equal an earlier one, and a Python function equals
only itself. The functions of a search are made by calls: `optax.adam(0.1)`, for example, makes two.
Here, functions that were made alike are equal. Arrays that a function needs become arguments, not
constants.
"""

import functools
import hashlib
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial


def argument(function: Callable[..., Any], *arrays: Any) -> Partial:
    """A pytree that is called as function(*arrays, ...). The arrays are its leaves.

    The function is static, and it equals others that were made alike. A `jax.tree_util.Partial` is
    returned as it is, if no arrays are given.
    """
    if isinstance(function, Partial) and not arrays:
        return function
    return Partial(Static(function), *arrays)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` of a function of trees. Functions that were made alike share what is compiled."""
    return functools.partial(_call, argument(function))


@jax.jit
def _call(function: Partial, *arguments: Any) -> Any:
    return function(*arguments)


class Static:
    """A function that equals any with the same code and equal values in its closure."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.made_of = function, _made_of(function)
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.made_of == other.made_of

    def __hash__(self) -> int:
        return hash(self.made_of)


def _made_of(x: Any, within: tuple[int, ...] = ()) -> Any:
    """A value that is equal for equal x. For an object that may change, it is the object itself.

    Functions that x calls by name count as fixed, like its module. In `__main__`, as in a notebook,
    they may be defined anew at any time, so a function of `__main__` equals only itself.
    """
    within = (*within, id(x))
    if isinstance(x, types.FunctionType) and _is_check(x):
        return _made_of(vars(x)["__wrapped__"], within)
    if isinstance(x, types.FunctionType) and x.__module__ != "__main__":
        cells = [cell.cell_contents for cell in x.__closure__ or ()]
        if any(id(cell) in within for cell in cells):  # it calls itself
            return x
        contents = (*cells, x.__defaults__, *sorted((x.__kwdefaults__ or {}).items()))
        return id(x.__code__), x.__code__, tuple(_made_of(part, within) for part in contents)
    if isinstance(x, functools.partial):
        parts = x.func, x.args, *sorted(x.keywords.items())
        return type(x), tuple(_made_of(part, within) for part in parts)
    if isinstance(x, tuple):
        return type(x), tuple(_made_of(part, within) for part in x)
    if isinstance(x, jax.Array | np.ndarray) and not isinstance(x, jax.core.Tracer):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        values = np.asarray(jax.random.key_data(x) if is_key else x)
        weak = getattr(x, "weak_type", False)
        return x.dtype, weak, x.shape, hashlib.sha256(values.tobytes()).digest()
    try:
        hash(x)
    except TypeError:
        return _Itself(x)
    return type(x), x


def _is_check(function: types.FunctionType) -> bool:
    """Whether jaxtyping has made this function, to check the arguments of another and its result.

    Each function gets a check of its own, which doesn't change what it computes.
    """
    return function.__globals__.get("__name__") == "jaxtyping._decorator"


class _Itself:
    """A wrapper of an object, equal only for the same object."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.x is other.x

    def __hash__(self) -> int:
        return id(self.x)
