"""How settings are written as text, on a command line and in JSON."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from pulse_jax import plug_in

MANY = 1_000_000  # more restarts, slots, seeds or draws than this are a slip of the pen


class Notation(NamedTuple):
    """How a value is written as text, on a command line and in JSON, if these have no type for it.

    `read` raises ValueError for text of another `form`.
    """

    form: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]


def _split(text: str, separator: str, number: type) -> tuple[Any, ...]:
    return tuple(number(part) for part in text.split(separator) if part)


def _read_seeds(text: str) -> tuple[int, ...]:
    first, colon, end = text.partition(":")
    if colon and not 0 < int(end) - int(first) <= MANY:
        raise ValueError
    return tuple(range(int(first), int(end))) if colon else _split(text, ",", int)


def _read_range(text: str) -> tuple[float, float] | str:
    low, high = (0.0, 1.0) if text == "auto" else _split(text, ",", float)
    if not (math.isfinite(high - low) and low < high):
        raise ValueError
    return text if text == "auto" else (low, high)


def _read_crop(text: str) -> tuple[int, ...] | str:
    if text in ("center", "face"):
        return text
    x, y, side = _split(text, ",", int)
    return x, y, side


def _shortest(value: float) -> str:
    """A number with as many digits as it takes to read the same."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


SEEDS = Notation(
    f"1 to {MANY} numbers, as in 0,1,2 or 0:3",
    _read_seeds,
    lambda seeds: ",".join(map(str, seeds)),
)
SLOTS = Notation(
    "auto or a number of at least 1",
    lambda text: None if text == "auto" else int(text),
    lambda slots: "auto" if slots is None else str(slots),
)
LAYERS = Notation(
    "numbers with dots between, such as 3.17",
    lambda text: _split(text, ".", int),
    lambda layers: ".".join(map(str, layers)),
)
RANGE = Notation(
    "auto or LOW,HIGH, with LOW below HIGH",
    _read_range,
    lambda given: given if given == "auto" else ",".join(map(_shortest, given)),
)
NOISE = Notation("a number or a likelihood", plug_in.number, str)
CROP = Notation(
    "center, face or X,Y,SIDE",
    _read_crop,
    lambda given: given if isinstance(given, str) else ",".join(map(str, given)),
)


def as_flag(name: str, value: Any) -> str:
    """A setting as a command line has it."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={value}"
