"""Diffusion, consistency and flow models, which provide what a search needs: a `Generator`."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from pulse_jax.generators.diffusion import solvers
from pulse_jax.generators.diffusion.schedules import Schedule
from pulse_jax.images import CHANNELS
from pulse_jax.types import Frozen, Generator, Latents, Params


@runtime_checkable
class NetworkModule(Protocol):
    """A Flax module that is applied to (x, t), or to (x, t, labels) if there are classes.

    If it returns twice as many channels, the first half counts, as the second is a variance.
    """

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Of one x: (h, w, c)."""

    @property
    def classes(self) -> int:
        """How many classes there are."""

    def apply(self, variables: Any, *inputs: Any) -> Any:
        """As Flax has it."""


@runtime_checkable
class DecoderModule(Protocol):
    """A Flax module that is applied to what the solver yields, and makes an image in [−1, 1]."""

    @property
    def factor(self) -> int:
        """How many times the sides grow."""

    def image_channels(self, latents: int) -> int:
        """The channels of the images, from those of the latents."""

    def apply(self, variables: Any, *inputs: Any) -> Any:
        """As Flax has it."""


@dataclass(frozen=True)
class DiffusionModel:
    """A network, what it was trained for, and for latent models a decoder: all but the weights.

    Without a `schedule`, as where a file tells of none, a solver must be named. The parameters are
    {"network": …, "decoder": …}, where a decoder without any may be left out.
    """

    network: NetworkModule
    schedule: Schedule | None = None
    decoder: DecoderModule | None = None

    @property
    def resolution(self) -> int:
        """The side of the images."""
        side = self.network.noise_shape[0]
        return side if self.decoder is None else side * self.decoder.factor

    @property
    def channels(self) -> int:
        """How many channels the images have."""
        channels = self.network.noise_shape[-1]
        return channels if self.decoder is None else self.decoder.image_channels(channels)


def diffusion_generator(model: DiffusionModel, solver: str | None = None) -> Generator:
    """A `Generator` from a diffusion, consistency or flow model and a deterministic solver.

    The latents are a dict: "noise_0" (1, h, w, c) is where the solver starts, and the noise of its
    later steps, if it takes any, is "noise_1" and so on. Each is one point. There are no styles.
    The class of a model with classes is `frozen["label"]`, which `sample` draws.

    `solver` is written as in `solvers.parse`, and is by default the usual one of the model's
    schedule. Raises ValueError if it is no solver, isn't for the model's schedule, or must be
    named, and for images of other channels than 1, 3 or 4.
    """
    network, decoder, schedule = model.network, model.decoder, model.schedule
    if solver is None:
        if schedule is None:
            raise ValueError("the model tells of no schedule, so a solver must be named")
        solver = schedule.usual
    solve = solvers.parse(solver)
    schedule = schedule or solve.schedule()
    if not isinstance(schedule, solve.schedule):
        raise ValueError(f"solver={solver} doesn't go with the model, but {schedule.usual} does")
    try:
        solve.check(schedule)
    except ValueError as error:
        raise ValueError(f"solver={solver}: {error}") from error
    if model.channels not in CHANNELS:
        told = f"{model.channels} channels, and only 1, 3 and 4 are supported"
        raise ValueError(f"the model's images have {told}")
    h, w, channels = network.noise_shape

    def sample(key: PRNGKeyArray) -> tuple[Latents, Frozen]:
        label_key, *keys = jax.random.split(key, 1 + solve.noises)
        noises = (jax.random.normal(k, (1, h, w, channels)) for k in keys)
        latents = {f"noise_{i}": noise for i, noise in enumerate(noises)}
        if not network.classes:
            return latents, {}
        return latents, {"label": jax.random.randint(label_key, (), 0, network.classes)}

    def synthesize(params: Params, latents: Latents, frozen: Frozen) -> Float[Array, "R R C"]:
        def apply(x: Array, t: Array) -> Array:
            labels = (jnp.full(len(x), frozen["label"]),) if network.classes else ()
            return network.apply({"params": params["network"]}, x, t, *labels)[..., :channels]

        noises = [jnp.asarray(latents[f"noise_{i}"]) for i in range(solve.noises)]
        x = solve(apply, noises, schedule)
        if decoder is not None:
            x = decoder.apply({"params": params.get("decoder", {})}, x)
        return (x[0] + 1) / 2

    return Generator(
        model.resolution, sample, synthesize, channels=model.channels, classes=network.classes
    )
