"""How far a run is, and how long it may still take."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

MEASURED = 1.0  # seconds of steps, at least, that tell how long others take


class Underway(NamedTuple):
    """What a restart in the last chunk of steps, or a chain, has come to so far."""

    picture: Any  # of `Results`
    number: int  # of the restart or chain
    l2: float
    image: Float[np.ndarray, "r r c"]  # the best so far, or the chain's present one; with 8 bits
    latents: dict[str, np.ndarray]  # as in latents.npz, without its axis 0


class Progress(NamedTuple):
    """How far a run is. Its callback gets this before the first chunk of steps and after each.

    It doesn't count what earlier runs have done.
    """

    restarts: int  # to be searched
    ended: int  # of these
    made: int  # steps of all of them
    left: float  # steps that they are likely to make still; at first the most that there can be
    seconds: float | None  # that these are likely to take; None as long as that can't be told
    told: str = ""  # what is under way, where chains are
    underway: Callable[[], Sequence[Underway]] = tuple  # of `upsample`; for the callback alone


class Course:
    """Estimates the `progress` of a run.

    `most` is the most steps that all restarts together can make. `stops` says whether they may make
    fewer. `slots` are searched at once.
    """

    def __init__(self, restarts: int, most: int, stops: bool, slots: int) -> None:
        self.restarts, self.most = restarts, most  # steps still to make
        # The first to end are the quickest, so one waits for as many as began with them.
        self.enough = max(1, min(slots, restarts // 2)) if stops else 0
        self.made = self.ended = 0
        self.since: tuple[float, int] | None = None  # (time, steps made) when all has run once
        self.refills = False  # whether the first have ended in the last chunk
        self.progress = Progress(restarts, 0, 0, most, None)

    def note(self, made: int, ended: int, spared: int) -> None:
        """Note a chunk: its steps, the restarts it ended, and the steps that it made needless."""
        now = time.perf_counter()
        self.made += made
        self.ended += ended
        self.most -= made + spared
        seconds, left = None, float(self.most)
        known = self.ended >= self.enough
        if known:
            left = steps_left(self.most, self.restarts - self.ended, self.made, self.ended)
        # Programs are compiled in the first chunk, in the one in which the first restarts end, for
        # their images, and in the next one, for those that take their places.
        first_end = self.ended == ended > 0
        if self.since is None or first_end or self.refills:
            self.since = now, self.made
        elif known and left and now - self.since[0] >= MEASURED and self.made > self.since[1]:
            seconds = left * (now - self.since[0]) / (self.made - self.since[1])
        self.refills = first_end
        self.progress = Progress(self.restarts, self.ended, self.made, left, seconds)


def steps_left(most: int, restarts: int, made: int, ended: int) -> float:
    """Steps that `restarts` are likely to make, at most `most`.

    They are taken to end as often as the others have: `ended` in the `made` steps of all, which
    includes those that still search.
    """
    return min(most, restarts * made / ended) if ended else most
