"""Whether a picture is like those that its generator makes.

For pictures of a generator's own, searches have been made once, and `own_pictures.json` beside its
weights says what they came to. A picture is unlike what the generator knows if its own search comes
to something else: if its restarts end farther from it, or if the discriminator, which has learnt
what the generator's images look like, takes their images for less real.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from pulse_jax.files import expanded, figure, read_json, write
from pulse_jax.generators.checkpoint import bundled, load_discriminator
from pulse_jax.plug_in import is_plug_in
from pulse_jax.types import AnyArray
from pulse_jax.upsampling.pictures import Picture
from pulse_jax.upsampling.results import APART
from pulse_jax.upsampling.settings import LOSS, SEARCH, STYLES, Settings

FILE = "own_pictures.json"
SCORES = "scores.json"  # in a picture's folder: of each of its images
DEVIATIONS = 3  # of single images' scores, from their mean

Score = Callable[[Float[AnyArray, "side side c"]], float]


class Figures(NamedTuple):
    """What the restarts of one picture have come to."""

    l2: float  # the median, of images as saved
    scores: list[float]  # the discriminator's, of images that are finite


def measure(picture: Picture) -> Figures:
    """The figures of a picture that has scores."""
    l2 = float(np.median([row["l2_saved"] for row in picture.rows.values()]))
    return Figures(l2, list(picture.scores.values()))


def has_scores(picture: Picture) -> bool:
    """Whether a picture's images have been scored before. A damaged file counts as none."""
    if picture.folder is not None and (path := picture.folder / SCORES).is_file():
        with contextlib.suppress(ValueError):
            picture.scores = read_json(path)
    return bool(picture.scores)


def note_scores(picture: Picture, score: Score) -> None:
    """Score a picture's images, and keep the scores for later runs."""
    picture.scores = {str(number): score(image) for number, image in picture.images().items()}
    if picture.folder is not None:
        write(picture.place / SCORES, json.dumps(picture.scores) + "\n")


def make_score(generator: str) -> Score:
    """The discriminator's score of one image, in a batch of its own. Raises ValueError."""
    discriminator, params = load_discriminator(generator)
    score = jax.jit(lambda params, image: discriminator(params, image[None])[0])
    return lambda image: float(score(params, np.asarray(image, np.float32)))


def summarise(figures: Sequence[Figures]) -> dict[str, float]:
    """What is kept of the own pictures of one size."""
    scores = np.concatenate([one.scores for one in figures])
    return {
        "pictures": len(figures),
        "largest l2": max(one.l2 for one in figures),
        "mean score": float(np.mean(scores)),
        "deviation of scores": float(np.std(scores, ddof=1)),
    }


def read(settings: Settings) -> dict[str, Any]:
    """The own pictures' figures by their side, or {} if there are none for such a search.

    They are of searches with the settings' defaults. Raises ValueError if they can't be read.
    """
    usual = Settings()
    alike = usual, dataclasses.replace(usual, loss_str=LOSS, scheme=usual.chosen_scheme)
    for field in dataclasses.fields(Settings):
        counts = field.name == "operator" or field.metadata["group"] in (SEARCH, STYLES)
        if counts and all(getattr(settings, field.name) != getattr(x, field.name) for x in alike):
            return {}
    if is_plug_in(settings.generator):
        return {}
    path = bundled().get(settings.generator, expanded(settings.generator)) / FILE
    return read_json(path) if path.is_file() else {}


def difference(picture: Picture, settings: Settings, own: dict[str, Any]) -> str:
    """How a picture with scores is unlike those of the generator's own, in words, or nothing.

    An l2 counts if it is above eps, and if the search had as many steps as those of the own
    pictures. Scores count if their mean is three standard deviations below that of the own results.
    The deviation is that of single results, so the number of restarts needn't be known. The draws
    of chains that have not met are no samples yet, so they tell nothing of a picture.
    """
    known = own.get(str(picture.side))
    apart = any(row.get("status") == APART for row in picture.rows.values())
    if known is None or apart:
        return ""
    found, reasons = measure(picture), []
    searched = settings.noise is None and settings.steps >= Settings().steps
    if searched and found.l2 > max(settings.eps, known["largest l2"]):
        reasons.append(
            f"half of its restarts end farther from it than an l2 of {figure(found.l2)}, and for "
            f"{known['pictures']} pictures of the generator's own that is at most "
            f"{figure(known['largest l2'])}"
        )
    mean, deviation = known["mean score"], known["deviation of scores"]
    if found.scores and (its_mean := np.mean(found.scores)) < mean - DEVIATIONS * deviation:
        reasons.append(
            f"the discriminator takes its results for less real: it gives them {its_mean:.1f}, and "
            f"those of the generator's own pictures {mean:.1f} ± {deviation:.1f}"
        )
    return f"unlike what {settings.generator} knows: {'; '.join(reasons)}" if reasons else ""
