"""The parts of a run, which its settings name: generator, degradations, searches or posteriors."""

import dataclasses
import importlib.util
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

import pulse_jax
from pulse_jax import posterior
from pulse_jax.extras import TAKES_BLACKJAX
from pulse_jax.generators import Generator, checkpoint, style_generator
from pulse_jax.generators.diffusion import DiffusionModel, diffusion_generator
from pulse_jax.generators.plug_in import plug_in
from pulse_jax.generators.reader import Reader
from pulse_jax.likelihoods import of_values
from pulse_jax.operators import Operator, is_flat, plug_ins, shown
from pulse_jax.plug_in import guarded, is_plug_in
from pulse_jax.posterior import Posterior
from pulse_jax.search import STATUS, Search, SearchState
from pulse_jax.types import Params
from pulse_jax.upsampling import configuration
from pulse_jax.upsampling.pictures import Picture
from pulse_jax.upsampling.settings import DIFFUSION, RECIPES, STYLES, Settings
from pulse_jax.upsampling.traced import IN_MEMORY, Keep

log = logging.getLogger("pulse_jax")
SMALL = 8 * 64**2  # pixels of all slots that fit into any memory


@dataclass
class Run:
    """What belongs together while a run lasts."""

    settings: Settings
    generator: Generator
    params: Params
    seeds: tuple[int, ...] = ()
    pictures: list[Picture] = field(default_factory=list)
    output: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    keep: Keep = IN_MEMORY  # compiles its functions
    devices: Sequence[jax.Device] = ()  # that search
    slots: int = 0  # on each device
    named: Sequence[str] = ()  # the files and folders that the pictures are from
    # By the pictures' side. A run either searches or draws from posteriors.
    operators: Mapping[int, Operator] = field(default_factory=dict)
    searches: Mapping[int, Search] = field(default_factory=dict)
    posteriors: Mapping[int, Posterior] = field(default_factory=dict)
    reader: tuple[Reader, Params] | None = None  # of the draws' attributes

    def is_complete(self, picture: Picture) -> bool:
        return len(picture.rows) == self.settings.results

    def failed(self, picture: Picture) -> int:
        """How many of its restarts had no finite loss, or ended early without having met eps."""
        if self.settings.noise is not None:
            return 0  # chains haven't met then
        longest, goal = self.settings.steps, self.settings.loss().eps
        stops = self.settings.stop_at_eps
        return sum(
            math.isinf(row["l2"])
            or (row["steps"] < longest and not (stops and row["l2"] <= np.float32(goal)))
            for row in picture.rows.values()
        )

    def is_lost(self, picture: Picture) -> bool:
        """Whether all of its restarts failed, and none of them met eps before."""
        met = any(row["status"] == STATUS[0] for row in picture.rows.values())
        return self.failed(picture) == self.settings.results and not met

    def repetition(self) -> list[str]:
        """The command's arguments that make the results once more, to the byte."""
        searches = self.settings.noise is None
        settings = dataclasses.replace(self.settings, batch_size=self.slots if searches else None)
        return [*self.named, *settings.as_flags()]

    def save_config(self) -> None:
        if self.output is not None and jax.process_index() == 0:
            configuration.save(self.output, self.config | {"slots": self.slots})


def make_generator(settings: Settings) -> tuple[Generator, Params]:
    """The generator that settings name, with the latent space or solver that they name."""
    name = settings.generator
    if is_plug_in(name):
        _refuse(settings, STYLES, "StyleGANs")
        _refuse(settings, DIFFUSION, "diffusion models")
        return plug_in(name)
    network, params = checkpoint.load_network(name, settings.space)
    if isinstance(network, DiffusionModel):
        _refuse(settings, STYLES, "StyleGANs")
        return diffusion_generator(network, settings.solver), params
    _refuse(settings, DIFFUSION, "diffusion models")
    generator = style_generator(
        network,
        noise_type=settings.noise_type,
        trainable_noise_layers=settings.num_trainable_noise_layers,
        zero_noise_layers=_existing(settings.bad_noise_layers, len(network.noise_shapes)),
        tile_latent=settings.tile_latent,
        equal_start=settings.equal_start and settings.style_spread is None,
        style_spread=settings.style_spread,
        space=settings.space,
        joint_sphere=settings.joint_sphere,
        exact_radius=settings.exact_radius,
        dtype=None if settings.dtype == "float32" else settings.dtype,
    )
    return generator, params


def _refuse(settings: Settings, group: str, kind: str) -> None:
    """Raises ValueError if a setting of a group isn't a default. It is for another kind.

    The posterior's recipe has defaults of posteriors alone.
    """
    samples = settings.noise is not None
    recipes = [recipe for recipe in RECIPES.values() if recipe.noise is None or samples]
    for setting in dataclasses.fields(Settings):
        name = setting.name
        usual = [getattr(recipe, name) for recipe in recipes]
        if setting.metadata["group"] == group and getattr(settings, name) not in usual:
            told = f"{name} is for {kind}: {settings.generator} has no such thing"
            raise ValueError(f"{name}={settings.as_json()[name]}: {told}")


def _existing(given: Sequence[int] | None, layers: int) -> set[int] | None:
    """The `bad_noise_layers` that the network has. None stays None."""
    if given is None:
        return None
    if max(given, default=0) >= layers:
        log.info(
            f"bad_noise_layers: there is no layer {max(given)}, since there are {layers} in all"
        )
    return set(given) & set(range(layers))


def completed(settings: Settings, generator: Generator) -> Settings:
    """Settings with what the generator decides filled in. Raises ValueError if they don't fit."""
    _check_label(settings, generator)
    if settings.noise is None:
        loss = _choose_loss(settings, generator)
        return dataclasses.replace(settings, loss_str=loss, scheme=settings.chosen_scheme)
    if not importlib.util.find_spec("blackjax"):
        raise ValueError(f"noise={settings.noise}: {TAKES_BLACKJAX}")
    if generator.classes and settings.label is None:
        known = f"{settings.generator} has {generator.classes}: choose one with label"
        raise ValueError(f"noise={settings.noise}: a posterior is of one class, and {known}")
    latents, _ = jax.eval_shape(generator.sample, jax.random.key(0))
    if isinstance(latents, dict) and "common" in latents:
        return settings
    return dataclasses.replace(settings, style_spread=None)  # the recipe's is for StyleGANs


def _check_label(settings: Settings, generator: Generator) -> None:
    """Raises ValueError for a class that the generator doesn't have."""
    if settings.label is None or settings.label < generator.classes:
        return
    known = f"classes from 0 to {generator.classes - 1}" if generator.classes else "no classes"
    raise ValueError(f"label={settings.label}: {settings.generator} has {known}")


def _choose_loss(settings: Settings, generator: Generator) -> str:
    """The loss of the settings. The default has no GEOCROSS where no styles can be compared."""
    if generator.styles is None and settings.loss_str is None:
        return "100*L2"
    if generator.styles is None and settings.loss().needs_styles:
        told = f"GEOCROSS compares style vectors, and {settings.generator} has none"
        raise ValueError(f"loss_str={settings.loss_str}: {told}")
    return settings.chosen_loss


def make_operators(run: Run, degradation: Callable[[int], Operator]) -> dict[int, Operator]:
    """The degradation for each side of the run's pictures. Raises ValueError for one that fails."""
    settings, generator = run.settings, run.generator
    image_shape = generator.resolution, generator.resolution, generator.channels
    sides = sorted({picture.side for picture in run.pictures})
    made = {side: degradation(generator.resolution // side) for side in sides}
    for side, operator in made.items():
        if not shown(operator, (side, side, generator.channels)).any():  # all would be an answer
            told = "it makes 0 of every image, as a mask whose hole is the whole image does"
            raise ValueError(f"operator={settings.operator}: {told}")
        if plug_ins(settings.operator) and is_flat(operator, image_shape):
            log.warning(
                f"operator={settings.operator}: its gradient is 0 everywhere, so a search has no "
                f"direction to follow"
            )
    return made


def build_searches(run: Run) -> dict[int, Search]:
    """A search for each operator of the run. Raises ValueError if a part doesn't fit."""
    settings, generator, searches = run.settings, run.generator, {}
    for side, operator in run.operators.items():
        search = pulse_jax.build(generator, operator, settings.loss(), settings.optimizer())
        if settings.plug_ins():
            target = jax.ShapeDtypeStruct((side, side, generator.channels), np.float32)
            _trace_step(search, generator, run.params, target)
        searches[side] = search
    return searches


def _trace_step(
    search: Search, generator: Generator, params: Params, target: jax.ShapeDtypeStruct
) -> None:
    """Trace one step. Raises ValueError, in one line, if a part that plugs in doesn't fit."""

    def step(params: Params, target: Float[jax.Array, "h h c"]) -> tuple[SearchState, SearchState]:
        state = search.init(*generator.sample(jax.random.key(0)))
        return state, search.step(params, target, state)[0]

    states = guarded("a step of the search", jax.eval_shape, step, params, target)
    before, after = (jax.tree.map(lambda x: (x.shape, x.dtype), state) for state in states)
    if before != after:
        raise ValueError("a step of the search leaves a state of other shapes than it began with")


def build_posteriors(run: Run) -> dict[int, Posterior]:
    """A density for each operator of the run. Raises ValueError if a part doesn't fit."""
    settings, generator, posteriors = run.settings, run.generator, {}
    for side, operator in run.operators.items():
        density = build_posterior(generator, run.params, operator, settings)
        gradient = jax.grad(density.loglikelihood, argnums=2)
        target = jax.ShapeDtypeStruct((side, side, generator.channels), np.float32)
        position = jax.eval_shape(density.sample, jax.random.key(0))
        guarded("the log density", jax.eval_shape, gradient, run.params, target, position)
        posteriors[side] = density
    return posteriors


def build_posterior(
    generator: Generator, params: Params, operator: Operator, settings: Settings
) -> Posterior:
    """The density that settings name. Noise maps are drawn too, unless nothing is seen of them.

    Its likelihood counts what the operator shows, and that once, as where its pictures are grey.
    """
    zero = settings.noise_type == "zero" or _is_silent(params)
    side, likelihood = generator.resolution // operator.factor, settings.likelihood()
    which = shown(operator, (side, side, generator.channels))
    return posterior.build(
        generator,
        operator,
        likelihood if which.all() else of_values(likelihood, which),
        prior="spheres" if settings.exact_radius else "gaussian",
        noise="zero" if zero else "sampled",
        label=settings.label,
    )


def _is_silent(params: Params) -> bool:
    """Whether all noise maps of a StyleGAN have the strength 0, as those of a decoder may."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    strengths = [leaf for path, leaf in leaves if getattr(path[-1], "key", "") == "noise_strength"]
    return bool(strengths) and not any(np.any(leaf) for leaf in strengths)
