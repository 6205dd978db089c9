"""Settings: all that the results of a run depend on besides its pictures, as one frozen value."""

import contextlib
import dataclasses
import math
import numbers
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optax

from pulse_jax import likelihoods, losses, operators, optimizers, schemes
from pulse_jax.files import expanded
from pulse_jax.generators import NOISE_TYPES, SPACES
from pulse_jax.generators.diffusion import solvers
from pulse_jax.images import ImageWarning
from pulse_jax.operators import OPERATORS, Operator
from pulse_jax.optimizers import OPTIMIZERS, SCHEDULES
from pulse_jax.plug_in import is_plug_in
from pulse_jax.schemes import SCHEMES
from pulse_jax.types import misfit
from pulse_jax.upsampling.notation import (
    CROP,
    LAYERS,
    MANY,
    NOISE,
    RANGE,
    SEEDS,
    SLOTS,
    Notation,
    as_flag,
)

# A search aims a little below eps: clipping to [0, 1] and rounding to 8 bits may raise the error of
# what is saved, and it is what is saved that has to meet eps.
HEADROOM = 0.8
LOSS = "100*L2+0.05*GEOCROSS"  # PULSE's
# What a setting of each type is made from, beside its notation, and how messages call it.
TAKEN = {
    bool: (bool | np.bool_, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str | Path, "text"),
}
SHOWN = 32  # draws of a picture, about, that are kept as images
# Settings of other groups that a sampler has no use for.
OF_A_SEARCH = "eps", "batch_size", "save_intermediate", "save_video"


def _setting(
    default: Any,
    group: str,
    told: str,
    *,
    choices: Iterable[str] = (),
    low: float = -math.inf,
    high: float = math.inf,
    notation: Notation | None = None,
) -> Any:
    """A field of `Settings`. What is `told` of it is its only description, in help and in docs."""
    metadata = {"group": group, "told": told, "notation": notation}
    limits = {"choices": tuple(choices), "low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata | limits)


# The groups in which help and docs show the settings.
MOST = "The flags that most people need, each with its default"
PICTURES = "How pictures are read and degraded"
STARTS = "Where restarts begin, if not at random"
KEPT = "What is kept"
POSTERIOR = "Posterior samples, in place of a search"
SEARCH = "How restarts are searched"
STYLES = "What is searched, for StyleGANs"
DIFFUSION = "How noise becomes an image, for diffusion and flow models"
HEADINGS = MOST, PICTURES, STARTS, KEPT, POSTERIOR, SEARCH, STYLES, DIFFUSION


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All that the results of `upsample` depend on, besides its pictures.

    Each setting is a flag of the command too. A value that can't be raises ValueError when the
    settings are made, in one line that begins with NAME=VALUE. The settings of a recipe are in
    `RECIPES`, and `dataclasses.replace` changes some: `replace(RECIPES["original"], restarts=4)`.
    """

    generator: str = _setting(
        "decoder128",
        MOST,
        "This generator makes the images: a bundled or published one's name, a folder or file that "
        "holds one, or module:callable of your own.",
    )
    input_size: int | None = _setting(
        None, MOST, "Larger pictures are first brought to this side, in pixels.", low=1
    )
    restarts: int = _setting(
        8,
        MOST,
        "Each picture gets this many results. The flag is also called --duplicates, "
        "and --chains for posterior samples.",
        low=1,
        high=MANY,
    )
    eps: float = _setting(
        1e-3,
        MOST,
        "A result is good enough if the mean squared difference between the picture and the "
        "result, downscaled, is at most this, for values from 0 to 1.",
        low=0,
        high=1,
    )
    steps: int = _setting(
        100,
        MOST,
        "Each restart makes at most this many steps.",
        low=1,
        high=2**31 - 1,  # they are counted by an int32
    )
    seeds: tuple[int, ...] | None = _setting(
        None,
        MOST,
        "All that is random depends on this number. Without it, a new one is drawn and told. With "
        "several, as 0,1,2 or 0:3, each picture gets its results for each of them, and they are "
        "compared. The flag is also called --seed.",
        low=0,
        high=2**32 - 1,
        notation=SEEDS,
    )
    batch_size: int | None = _setting(
        None,
        MOST,
        "This many restarts are searched at once on each device, or on each core of a CPU. With "
        "auto, it is what fits into memory: up to 2 on a core, and elsewhere up to 256, of 16 "
        "megapixels together.",
        low=1,
        high=MANY,
        notation=SLOTS,
    )
    crop: tuple[int, int, int] | Literal["center", "face"] | None = _setting(
        None,
        PICTURES,
        "Of each picture, this square is upsampled: the largest one in its middle (center), each "
        "face, as the FFHQ data set cuts faces out (face), or the SIDE×SIDE pixels that begin X "
        "pixels from the left and Y from the top.",
        low=0,
        notation=CROP,
    )
    landmarks: str | None = _setting(
        None,
        PICTURES,
        "Faces lie where this JSON file says, as pulse_jax_align writes it. Without it, they are "
        "found.",
    )
    operator: str = _setting(
        "bicubic",
        PICTURES,
        "Pictures are assumed to have been degraded in this way, from left to right, as in "
        "blur:2,bicubic. What downscales takes what is left of the factor, which is the side of "
        "the result over the picture's. The choices are "
        f"{', '.join(OPERATORS)}, and module:callable of your own.",
    )
    value_range: tuple[float, float] | Literal["auto"] | None = _setting(
        None,
        PICTURES,
        "In grey pictures of more than 8 bits, LOW,HIGH are the values that are black and white. "
        "With auto, they are each picture's lowest and highest. Without it, the file tells them.",
        notation=RANGE,
    )
    init_from: str | None = _setting(
        None,
        STARTS,
        "Restarts begin at earlier results instead of at random. This is a latents.npz, its "
        "folder, or the output folder of a run, from which each picture takes the results of its "
        "own name.",
    )
    pick: int | None = _setting(
        None,
        STARTS,
        "All restarts begin at the earlier result of this number. Without it, each begins at its "
        "own.",
        low=1,
    )
    vary: float = _setting(
        0.0,
        STARTS,
        "Each restart begins this many degrees away from the earlier result, in a random "
        "direction.",
        low=0,
        high=180,
    )
    label: int | None = _setting(
        None,
        STARTS,
        "Results are of the class of this number, which counts from 0, if the generator has "
        "classes. Without it, restarts take all classes in turn.",
        low=0,
    )
    save_intermediate: bool = _setting(
        False, KEPT, "The best image so far is also written, at every step."
    )
    save_video: bool = _setting(False, KEPT, "A video of each picture's searches is also written.")
    noise: float | str | None = _setting(
        None,
        POSTERIOR,
        "In place of a search, samples of what the picture may show are drawn. The picture is "
        "taken to have this noise: the standard deviation of Gaussian noise, for values from 0 to "
        "1, or unknown_sigma, student_t:SIGMA, poisson:GAIN. Each restart is then a chain with "
        "four starts. From each of these, it makes half of --steps towards the posterior. It goes "
        "on from one of them, and one and a half times --steps tune it.",
        notation=NOISE,
    )
    draws: int = _setting(200, POSTERIOR, "Each chain draws so many samples.", low=4, high=MANY)
    max_draws: int | None = _setting(
        None,
        POSTERIOR,
        "As long as chains have not met, their draws are doubled, up to this number. A run whose "
        "chains have not met goes on if it gets a larger one.",
        low=4,
        high=MANY,
    )
    loss_str: str | None = _setting(
        None,
        SEARCH,
        "The search lowers this weighted sum of L2, L1, GEOCROSS and terms that are "
        f"module:callable of your own. Without it, that is {LOSS}, "
        "or 100*L2 with --style_spread and for generators without style vectors.",
    )
    opt_name: str = _setting(
        "lbfgs",
        SEARCH,
        f"This optimiser lowers the loss. The choices are {', '.join(OPTIMIZERS)}, and "
        "module:callable of your own.",
    )
    scheme: str | None = _setting(
        None,
        SEARCH,
        "This keeps latents where they belong, on their spheres. The choices are "
        f"{', '.join(SCHEMES)}, and module:callable of your own. Without it, it is rescale.",
    )
    learning_rate: float = _setting(0.4, SEARCH, "The learning rate is at most this.")
    lr_schedule: str = _setting(
        "linear1cycledrop",
        SEARCH,
        "The learning rate takes this course.",
        choices=SCHEDULES,
    )
    stop_at_eps: bool = _setting(True, SEARCH, "A restart ends as soon as it has met --eps.")
    noise_type: str = _setting(
        "trainable",
        STYLES,
        "Noise maps are left out (zero), drawn once (fixed), searched as well (trainable), or "
        "searched with a mean of 0 (normalised).",
        choices=NOISE_TYPES,
    )
    num_trainable_noise_layers: int = _setting(
        5, STYLES, "The noise maps of this many layers are searched.", low=0
    )
    bad_noise_layers: tuple[int, ...] | None = _setting(
        None,
        STYLES,
        "Layers of these numbers get no noise, as in 3.17. Without it, the last one gets none.",
        low=0,
        notation=LAYERS,
    )
    tile_latent: bool = _setting(False, STYLES, "All layers share one style, which is searched.")
    equal_start: bool = _setting(
        True,
        STYLES,
        "A restart begins with the same style in all layers, unless there is a --style_spread.",
    )
    style_spread: float | None = _setting(
        None,
        STYLES,
        "Layers share a part of their styles, and this is the weight of each one's own part: with "
        "0 all are the same, and with 1 nothing is shared. It makes GEOCROSS needless.",
        low=0,
        high=1,
    )
    space: str = _setting(
        "w",
        STYLES,
        "Styles are searched whitened by coordinate (w), whitened by their whole covariance "
        "(w_full), or as the mapping network's input (z).",
        choices=SPACES,
    )
    joint_sphere: bool = _setting(
        False, STYLES, "The styles of all layers are searched on one sphere."
    )
    exact_radius: bool = _setting(
        False,
        STYLES,
        "A restart begins at norm √d, with d the number of coordinates, instead of at that of its "
        "Gaussian sample.",
    )
    dtype: str = _setting(
        "float32",
        STYLES,
        "The generator computes with numbers of this type.",
        choices=("float32", "bfloat16"),
    )
    solver: str | None = _setting(
        None,
        DIFFUSION,
        "The image is made of noise by this solver, with so many steps: ddim:10, consistency:2, "
        "flow:8 or heun:9, as the model takes it. ddim:10:leading and ddim:10:linspace visit other "
        "times. With :linear at the end, the gradient leaves the network out, which is up to three "
        "times as fast, and less exact. Without the flag, it is ddim:10, consistency:1, flow:8 or "
        "heun:9.",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _typed(field, getattr(self, field.name))
            _check(field, value)
            object.__setattr__(self, field.name, value)
        self._check_pictures()
        self._check_search()
        self._check_start()
        self._check_posterior()

    def _check_pictures(self) -> None:
        if isinstance(self.crop, tuple) and self.crop[2] < 1:
            raise ValueError(f"crop={CROP.write(self.crop)}: SIDE must be at least 1")
        if self.crop == "face" and self.input_size is None:
            raise ValueError("crop=face: give the side that faces are brought to, as input_size=16")
        if self.landmarks is not None and self.crop != "face":
            raise ValueError(f"landmarks={self.landmarks} is for crop=face")

    def _check_search(self) -> None:
        with _blaming(learning_rate=self.learning_rate):
            self._schedule()
        with _blaming(loss_str=self.loss_str):
            self.loss()
        with _blaming(opt_name=self.opt_name):
            optimizers.parse(self.opt_name)
        with _blaming(scheme=self.scheme):
            schemes.parse(self.chosen_scheme)
        # By name, since making the optimiser would take a device at each import.
        name, suited = self.chosen_scheme.partition(":")[0], self._suited_schemes()
        if name in SCHEMES and name not in suited:
            told = f"the scheme {name} doesn't go with {self.opt_name}, take {' or '.join(suited)}"
            raise ValueError(f"opt_name={self.opt_name}, scheme={self.chosen_scheme}: {told}")
        if self.solver is not None:
            with _blaming(solver=self.solver):
                solvers.parse(self.solver)
        with _blaming(operator=self.operator), warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)  # of a mask, which the run tells once
            self.degradation()

    def _check_start(self) -> None:
        if self.init_from is None:
            for name in ("pick", "vary"):
                if given := getattr(self, name):
                    raise ValueError(f"{name}={given} is for init_from=PATH")
        elif not expanded(self.init_from, "init_from").exists():
            raise ValueError(f"init_from={self.init_from}: no such file or folder")
        if self.pick and not self.vary and self.restarts > 1:
            told = f"pick={self.pick}: all restarts={self.restarts} would "
            if self.noise is not None:  # one chain alone is refused
                raise ValueError(f"{told}begin at the same point; take vary=DEGREES")
            raise ValueError(f"{told}be the same; take restarts=1, or vary=DEGREES")

    def _check_posterior(self) -> None:
        if self.noise is None:
            for name in ("draws", "max_draws"):
                if getattr(self, name) != getattr(Settings, name):
                    raise ValueError(f"{name}={getattr(self, name)} is for noise=SIGMA")
            return
        with _blaming(noise=self.noise):
            likelihoods.parse(self.noise)
        for field in dataclasses.fields(self):
            of_a_search = field.metadata["group"] == SEARCH or field.name in OF_A_SEARCH
            if of_a_search and getattr(self, field.name) != field.default:
                told = f"is for a search, and noise={self.noise} draws samples"
                raise ValueError(f"{field.name}={self._written(field)} {told}")
        if self.restarts < 2:
            told = "one chain alone can't tell whether chains have met"
            raise ValueError(f"restarts={self.restarts}: must be at least 2, since {told}")
        if self.steps < 2:
            raise ValueError(f"steps={self.steps}: the warm-up of chains takes at least 2")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Settings":
        """Settings from values as `as_json` returns them, and as flags have them."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        return cls(**{name: _typed(fields[name], value) for name, value in values.items()})

    def as_json(self) -> dict[str, Any]:
        """The values by their names: numbers, and text where JSON has no type for them."""
        return {field.name: self._written(field) for field in dataclasses.fields(self)}

    def as_flags(self) -> list[str]:
        """The command's flags that make these settings: those that aren't the defaults."""
        given = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return [as_flag(field.name, self._written(field)) for field in given]

    def _written(self, field: dataclasses.Field[Any]) -> Any:
        value, notation = getattr(self, field.name), field.metadata["notation"]
        if notation is None or (value is None and notation is not SLOTS):
            return value
        return notation.write(value)

    # --- The parts of a search that they name. ---

    def loss(self) -> losses.Loss:
        """What a search lowers, towards a little less than eps."""
        return losses.parse(self.chosen_loss, HEADROOM * self.eps)

    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser with its scheme."""
        scheme, schedule = schemes.parse(self.chosen_scheme), self._schedule()
        with _blaming(opt_name=self.opt_name):
            base = optimizers.parse(self.opt_name)(schedule)
        with _blaming(scheme=self.chosen_scheme):
            return scheme(base)

    def degradation(self) -> Callable[[int], Operator]:
        """The operator of a factor."""
        return operators.parse(self.operator)

    def plug_ins(self) -> list[str]:
        """The parts that are callables of a user's own, as they are written."""
        terms = [name for _, name in losses.terms(self.chosen_loss)]
        named = [self.generator, self.opt_name, self.chosen_scheme, *terms]
        return [*filter(is_plug_in, named), *operators.plug_ins(self.operator)]

    def likelihood(self) -> likelihoods.Likelihood:
        """That of the noise, which isn't None."""
        assert self.noise is not None
        return likelihoods.parse(self.noise)

    @property
    def thinning(self) -> int:
        """Each chain's draws of which one is kept as an image: about `SHOWN` are, of all chains."""
        return -(-self.draws // max(1, SHOWN // self.restarts))

    @property
    def results(self) -> int:
        """How many images each picture gets: one for each restart, or the thinned draws."""
        if self.noise is None:
            return self.restarts
        return self.restarts * (self.draws // self.thinning)

    def _schedule(self) -> optax.Schedule:
        return SCHEDULES[self.lr_schedule](self.learning_rate, self.steps)

    @property
    def chosen_loss(self) -> str:
        """The loss. If it is left open, it has GEOCROSS unless layers share a part of styles."""
        return self.loss_str or (LOSS if self.style_spread is None else "100*L2")

    @property
    def chosen_scheme(self) -> str:
        """The scheme. If it is left open, it is the first that suits the optimiser."""
        return self.scheme or self._suited_schemes()[0]

    def _suited_schemes(self) -> list[str]:
        _, suited = schemes.SUITED.get(self.opt_name, (None, list(SCHEMES)))
        return suited


def kind(field: dataclasses.Field[Any]) -> Any:
    """The type of a setting without a notation: bool, int, float or str. Some may be None, too."""
    (found,) = set(typing.get_args(field.type) or (field.type,)) - {types.NoneType}
    return found


def _typed(field: dataclasses.Field[Any], value: Any) -> Any:
    """A value in the setting's own type. Raises ValueError if it is of no such type.

    NumPy's numbers become Python's, and paths become text. A notation reads text, and reads what it
    writes of any other value.
    """
    if value is None and field.default is None:
        return None
    notation, shown = field.metadata["notation"], repr(value)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        if notation is not None:
            shown = value if isinstance(value, str) else notation.write(value)
            return notation.read(shown)
        own = kind(field)
        if isinstance(value, TAKEN[own][0]) and (own is bool or not isinstance(value, bool)):
            return own(value)
    form = TAKEN[kind(field)][1] if notation is None else notation.form
    raise ValueError(f"{field.name}={shown} is not {form}")


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises ValueError if a setting can't have this value."""
    limits, notation = field.metadata, field.metadata["notation"]
    reason = ""
    if limits["choices"] and value not in limits["choices"]:
        reason = f"is none of {', '.join(limits['choices'])}"
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and (told := misfit(number)):
            reason = told
        elif isinstance(number, int | float) and not limits["low"] <= number <= limits["high"]:
            most = f" and at most {limits['high']}" if limits["high"] < math.inf else ""
            reason = f"must be at least {limits['low']}{most}"
    if value == "":
        reason = "must not be empty"
    if value == () and notation is SEEDS:
        reason = "names nothing"
    if notation is SEEDS and value is not None and len(set(value)) < len(value):
        reason = "has a number twice"
    if reason:
        shown = value if notation is None else notation.write(value)
        raise ValueError(f"{field.name}={shown}: {reason}")


@contextlib.contextmanager
def _blaming(**settings: Any) -> Iterator[None]:
    """A context whose errors name these settings and their values first."""
    try:
        yield
    except ValueError as error:
        told = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise ValueError(f"{told}: {error}") from error


# Ways to search, and samples of the posterior instead. The original's search always makes all
# steps; the fast one meets eps as often, with a third of the evaluations or fewer.
# A prior whose layers share a part of their styles draws images as the generator does.
RECIPES = {
    "fast": Settings(),
    "original": Settings(opt_name="adam", stop_at_eps=False, equal_start=False),
    "posterior": Settings(noise=0.03, max_draws=1600, style_spread=0.5),
}
