"""What checks the package's functions against their signatures, in conftest.py."""

import functools

import beartype
import beartype.door
from jaxtyping import _typeguard

CHECKS = {}
CHECK = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # an int is a float


def check(stand_in):
    """The check of a function. jaxtyping passes a stand-in that has its name and signature.

    A function within another is made at each call of the outer one, and to make its check takes a
    millisecond. So it is made at the first call, and what has been made for an equal signature is
    taken again.
    """
    names = stand_in.__module__, stand_in.__qualname__, stand_in.__code__.co_varnames
    key = *names, str(stand_in.__annotations__)

    @functools.wraps(stand_in)
    def checked(*arguments, **named):
        if key not in CHECKS:
            CHECKS[key] = CHECK(stand_in)
        return CHECKS[key](*arguments, **named)

    return checked


def check_leaf(function):
    """The check of a tree's leaves, for which jaxtyping has a function with one argument made.

    Its own takes ten times as long, and is called for each node of each tree.
    """
    (hint,) = function.__annotations__.values()

    def accept(x):
        if not beartype.door.is_bearable(x, hint):
            raise TypeError

    return accept


_typeguard.typechecked = check_leaf
