"""What checks the package's functions against their signatures, in conftest.py."""

import functools

import beartype

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
