"""Whether a picture is like those that its generator makes.

For pictures of a generator's own, searches have been made once, and `own_pictures.json` beside its
weights says what they came to. A picture is unlike what the generator knows if its own search comes
to something else: if its restarts end farther from it or take many more steps, or if the
discriminator, which has learnt what the generator's images look like, takes their images for less
real.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from pulse_jax.files import expanded, figure, read_json, write
from pulse_jax.generators.checkpoint import bundled, load_discriminator
from pulse_jax.plug_in import is_plug_in
from pulse_jax.search import STATUS
from pulse_jax.types import AnyArray
from pulse_jax.upsampling.pictures import Picture
from pulse_jax.upsampling.results import is_apart
from pulse_jax.upsampling.settings import DIFFUSION, LOSS, RECIPES, SEARCH, STYLES, Settings
from pulse_jax.upsampling.traced import IN_MEMORY, Keep

FILE = "own_pictures.json"
SCORES = "scores.json"  # in a picture's folder: of each of its images, and which network's they are
NETWORK = "SHA-256 of the discriminator"
DEVIATIONS = 3  # of single images' scores, from their mean
MORE_STEPS = 3  # times as many as for any of the own pictures

Score = Callable[[Sequence[Float[AnyArray, "side side c"]]], list[float]]


class Figures(NamedTuple):
    """What the restarts of one picture have come to."""

    l2: float  # the median, of images as saved
    steps: float  # the median
    scores: list[float]  # the discriminator's, of images that are finite; [] without one


def measure(picture: Picture, longest: int) -> Figures:
    """The figures of a picture. What has not converged counts as a restart of `longest` steps."""
    rows = picture.rows.values()
    l2 = float(np.median([row["l2_saved"] for row in rows]))
    steps = [row["steps"] if row["status"] == STATUS[0] else longest for row in rows]
    return Figures(l2, float(np.median(steps)), list(picture.scores.values()))


def has_scores(picture: Picture, network: str) -> bool:
    """Whether a picture's images have been scored before, by the discriminator with this digest.

    A damaged file counts as none.
    """
    if picture.folder is not None and (path := picture.folder / SCORES).is_file():
        with contextlib.suppress(ValueError, KeyError):
            found = read_json(path)
            if found[NETWORK] == network:
                picture.scores = found["scores"]
    return bool(picture.scores)


def note_scores(picture: Picture, score: Score, network: str = "") -> None:
    """Score a picture's images, and keep the scores for later runs.

    `network`: the discriminator's digest.
    """
    images = picture.images()
    picture.scores = dict(zip(map(str, images), score([*images.values()]), strict=True))
    if picture.folder is not None:
        content = {NETWORK: network, "scores": picture.scores}
        write(picture.place / SCORES, json.dumps(content) + "\n")


def make_score(
    generator: str, keep: Keep = IN_MEMORY, devices: Sequence[jax.Device] | None = None
) -> Score:
    """The discriminator's scores of images, each in a batch of its own. Raises ValueError.

    Each of the `devices`, by default all local ones, scores one image at a time.
    """
    discriminator, params = load_discriminator(generator)
    mesh = Mesh(jax.local_devices() if devices is None else devices, "images")
    params = jax.device_put(params, NamedSharding(mesh, P()))
    specs: Any = {"in_specs": (P(), P("images")), "out_specs": P("images"), "check_vma": False}
    of_each = keep(f"score {mesh.size}", jax.shard_map(discriminator, mesh=mesh, **specs))

    def score(images: Sequence[Float[AnyArray, "side side c"]]) -> list[float]:
        found: list[float] = []
        for first in range(0, len(images), mesh.size):
            some = images[first : first + mesh.size]
            filled = [*some, *[some[0]] * (mesh.size - len(some))]
            found += of_each(params, np.stack(filled, dtype=np.float32)).tolist()[: len(some)]
        return found

    return score


def summarise(figures: Sequence[Figures]) -> dict[str, float]:
    """What is kept of the own pictures of one size."""
    found: dict[str, float] = {
        "pictures": len(figures),
        "largest l2": max(one.l2 for one in figures),
        "largest steps": max(one.steps for one in figures),
    }
    if scores := [score for one in figures for score in one.scores]:
        found |= {
            "mean score": float(np.mean(scores)),
            "deviation of scores": float(np.std(scores, ddof=1)),
        }
    return found


def read(settings: Settings) -> dict[str, Any]:
    """The own pictures' figures by their side, or {} if there are none for such a search.

    They are of searches with the settings' defaults, with whose scores a posterior's draws are
    compared, too. Raises ValueError if they can't be read.
    """
    usual = Settings()
    alike = [usual, dataclasses.replace(usual, loss_str=LOSS, scheme=usual.chosen_scheme)]
    alike += [] if settings.noise is None else [RECIPES["posterior"]]
    groups = SEARCH, STYLES, DIFFUSION
    for field in dataclasses.fields(Settings):
        counts = field.name == "operator" or field.metadata["group"] in groups
        if counts and all(getattr(settings, field.name) != getattr(x, field.name) for x in alike):
            return {}
    if is_plug_in(settings.generator):
        return {}
    path = bundled().get(settings.generator, expanded(settings.generator)) / FILE
    own = read_json(path) if path.is_file() else {}
    for side, known in own.items():
        if not _is_summary(known):
            raise ValueError(f"{path}: its figures of side {side} can't be read")
    return own


def _is_summary(known: Any) -> bool:
    """Whether this is what `summarise` has made. An earlier version did it without steps."""
    scores = {"mean score", "deviation of scores"}
    return (
        isinstance(known, dict)
        and {"pictures", "largest l2"} <= known.keys()
        and len(scores & known.keys()) != 1
        and all(isinstance(value, int | float) for value in known.values())
    )


def difference(picture: Picture, settings: Settings, own: dict[str, Any]) -> str:
    """How a picture is unlike those of the generator's own, in words, or nothing.

    An l2 counts if it is above eps, and if the search had as many steps as those of the own
    pictures. A search ends at eps, so most l2 are near it, and the steps that this takes tell more.
    They count above three times as many as for any of the own pictures, if the learning rate took
    the same course, and if eps isn't harder to meet. Scores count if their mean is three standard
    deviations below that of the own results. The deviation is that of single results, so the number
    of restarts needn't be known. The draws of chains that have not met are no samples yet, so they
    tell nothing of a picture.
    """
    known = own.get(str(picture.side))
    if known is None or is_apart(picture):
        return ""
    found, usual, reasons = measure(picture, settings.steps), Settings(), []
    searched = settings.noise is None and settings.steps >= usual.steps
    alike = searched and settings.steps == usual.steps and settings.eps >= usual.eps
    far = max(settings.eps, known["largest l2"])
    many = MORE_STEPS * known.get("largest steps", math.inf)
    own_ones = f"and for {known['pictures']} pictures of the generator's own that is at most"
    if searched and found.l2 > far:
        reasons.append(
            f"half of its restarts end farther from it than an l2 of {figure(found.l2)}, "
            f"{own_ones} {figure(known['largest l2'])}"
        )
    elif alike and found.l2 <= far and found.steps > many:  # and no l2 is NaN
        reasons.append(
            f"half of its restarts take {found.steps:g} steps or more, "
            f"{own_ones} {known['largest steps']:g}"
        )
    if found.scores and "mean score" in known:
        mean, deviation = known["mean score"], known["deviation of scores"]
        if (its_mean := np.mean(found.scores)) < mean - DEVIATIONS * deviation:
            reasons.append(
                f"the discriminator takes its results for less real: it gives them {its_mean:.1f}, "
                f"and those of the generator's own pictures {mean:.1f} ± {deviation:.1f}"
            )
    return f"unlike what {settings.generator} knows: {'; '.join(reasons)}" if reasons else ""
