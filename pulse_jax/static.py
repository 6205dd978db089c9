"""Functions as arguments of compiled programs.

`jit` compiles anew for a function that doesn't equal an earlier one, and Python's functions equal
themselves alone. Those of a search are made by calls, as `optax.adam(0.1)` makes two: here they are
equal if they were made alike. Arrays that a function needs become arguments, not constants.
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
    """A pytree that is called as function(*arrays, ...): the arrays are its leaves.

    The function is static, and equal to others made alike. A `jax.tree_util.Partial` stays as it
    is, if no arrays are given.
    """
    if isinstance(function, Partial) and not arrays:
        return function
    return Partial(Static(function), *arrays)


class Static:
    """A function that equals those of the same code which close over equal values."""

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
    """What x is determined by, as a value to compare: of an object that may change, the object.

    The functions that a function calls by name belong to its module. Those of `__main__` may be
    defined anew at any time, as in a notebook: its functions equal themselves alone.
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
    """Whether jaxtyping has made it, to check what another function is passed and returns.

    It is made anew for each function, and changes nothing in what that computes.
    """
    return function.__globals__.get("__name__") == "jaxtyping._decorator"


class _Itself:
    """An object, which equals itself alone."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.x is other.x

    def __hash__(self) -> int:
        return id(self.x)
