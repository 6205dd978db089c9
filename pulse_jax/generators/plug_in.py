"""Generators of other programs, named as module:callable."""

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from pulse_jax.files import one_line
from pulse_jax.generators import Generator
from pulse_jax.starts import by_name
from pulse_jax.types import Params

_NAME = re.compile(r"(?:[^\W\d]\w*\.)*[^\W\d]\w*:[^\W\d]\w*")


def is_plug_in(name: object) -> bool:
    """Whether this is written as my_package.my_module:make."""
    return _NAME.fullmatch(str(name)) is not None


def plug_in(name: str) -> tuple[Generator, Params]:
    """What a callable returns.

    `name`: my_package.my_module:make. Modules are looked for in the current folder first, as
    `python -m` does. Raises ValueError, in one line with the name, if there is no such callable, if
    it raises something, or if what it returns breaks the contract of `Generator`: latents whose
    axis 0 counts spheres, styles (L, d), images (R, R, 3), and all names of arrays different.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = _attempt(f"importing {module_name}", importlib.import_module, module_name)
        if not hasattr(module, attribute):
            raise ValueError(f"{module_name} has no {attribute}")
        make = getattr(module, attribute)
        if not callable(make):
            raise ValueError(f"{attribute} is a {type(make).__name__}, which can't be called")
        made = _attempt(f"{attribute}()", make)
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Generator)):
            raise ValueError(
                f"{attribute}() returned a {type(made).__name__}, not (Generator, params)"
            )
        _check(*made)
    except ValueError as error:
        raise ValueError(f"generator {name!r}: {error}") from error
    return made


def source_digest(name: str) -> str | None:
    """SHA-256 of the file that defines a plug-in's module; None where there is no such file.

    Raises OSError if it can't be read.
    """
    path = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    if path is None or not os.path.isfile(path):
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _attempt(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it; whatever it raises becomes one line."""
    try:
        return function(*arguments)
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)[:300]}"
        raise ValueError(f"{what} raised {reason}") from error


def _check(generator: Generator, params: Params) -> None:
    """Holds a generator to its contract, from shapes alone."""
    key = jax.random.key(0)
    latents, frozen = _attempt("its sample", jax.eval_shape, generator.sample, key)
    for leaf in jax.tree.leaves(latents):
        if leaf.ndim < 2:
            raise ValueError(
                f"a leaf of its latents has shape {leaf.shape}: axis 0 counts spheres, so that one "
                f"vector of d coordinates is (1, d)"
            )
    by_name(latents, frozen)
    if generator.styles is not None:
        styles = _attempt("its styles", jax.eval_shape, generator.styles, params, latents)
        if getattr(styles, "ndim", None) != 2:
            raise ValueError(
                f"its styles have shape {getattr(styles, 'shape', None)}, not (layers, d)"
            )
    image = _attempt(
        "its synthesize", jax.eval_shape, generator.synthesize, params, latents, frozen
    )
    side = generator.resolution
    if getattr(image, "shape", None) != (side, side, 3):
        raise ValueError(
            f"its images have shape {getattr(image, 'shape', None)}, not ({side}, {side}, 3)"
        )
