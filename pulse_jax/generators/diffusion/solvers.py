"""Solvers: how a diffusion, consistency or flow network turns noise into an image.

A schedule, from `schedules`, says what the network was trained to compute, and a solver how it is
applied. A solver is called as `solver(network, noises, schedule)`: `network(x, t)` is the network
with its parameters, and `noises` are `solver.noises` arrays (n, h, w, c) that would be standard
normal if sampled. All are deterministic: noise that enters in later steps is among the `noises`.
Several steps are a scan, and each is computed anew for the gradient, so memory grows with one
network, not with the steps.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from pulse_jax.files import near
from pulse_jax.generators.diffusion.blocks import Images
from pulse_jax.generators.diffusion.schedules import (
    MOST_TIMES,
    ConsistencySchedule,
    EDMSchedule,
    FlowSchedule,
    Network,
    NoiseSchedule,
)

SPACINGS = ("trailing", "leading", "linspace")


@runtime_checkable
class Solver(Protocol):
    """How a network is applied. See the module's docstring."""

    schedule: ClassVar[type[Any]]

    @property
    def noises(self) -> int:
        """How many noises it takes."""

    def check(self, schedule: Any) -> None:
        """Raises ValueError if a schedule has too few times."""

    def __call__(self, network: Network, noises: Sequence[Array], schedule: Any) -> Images:
        """The image of these noises, or what a decoder makes an image of."""


@dataclass(frozen=True)
class _Stepwise:
    steps: int

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_TIMES:
            raise ValueError(f"there are from 1 to {MOST_TIMES} steps, not {self.steps}")

    def check(self, schedule: Any) -> None:
        total = schedule.num_train_timesteps
        if self.steps > total:
            raise ValueError(f"there are {total} times in all, fewer than {self.steps} steps")


@dataclass(frozen=True)
class DDIM(_Stepwise):
    """The deterministic sampler of Song et al., arXiv 2010.02502, with so many steps.

    x_0 = (x − √(1 − A_t) ε) / √A_t, clipped as the schedule says, then
    x = √A_s x_0 + √(1 − A_s) ε with s = t − T // steps, where ε isn't computed anew after the clip.
    As in diffusers, s isn't always the next of the times: those follow from `spacing`. With
    "trailing", the first is the last t, where x is noise. With "leading", it is not.
    """

    spacing: str = "trailing"

    schedule: ClassVar[type[Any]] = NoiseSchedule
    noises: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spacing not in SPACINGS:
            raise ValueError(f"the spacing {self.spacing!r} is none of {', '.join(SPACINGS)}")

    def check(self, schedule: NoiseSchedule) -> None:
        """Raises ValueError if a schedule has too few times."""
        super().check(schedule)
        if (first := self.times(schedule)[0]) >= schedule.num_train_timesteps:
            raise ValueError(f"time {first:g} is none of {schedule.num_train_timesteps} times")

    def times(self, schedule: NoiseSchedule) -> Float[np.ndarray, "steps"]:
        """The times that are visited, as whole numbers."""
        total, steps = schedule.num_train_timesteps, self.steps
        backwards = np.arange(steps)[::-1]
        if self.spacing == "leading":
            return schedule.stride(steps) * backwards + float(schedule.steps_offset)
        if self.spacing == "linspace":
            return np.round(np.linspace(0, total - 1, steps))[::-1]
        return np.round(total - np.arange(steps) * total / steps) - 1

    def __call__(
        self, network: Network, noises: Sequence[Array], schedule: NoiseSchedule
    ) -> Images:
        alphas, times = schedule.alphas_cumprod(), self.times(schedule)
        index = times.astype(int)
        following = schedule.following(index)
        end = 1.0 if schedule.set_alpha_to_one else alphas[0]
        next_alphas = np.where(following >= 0, alphas[following], end)

        def step(x: Array, constants: tuple[Array, ...]) -> Array:
            t, a, b, next_a, next_b = constants  # the roots of A and 1 − A, now and next
            output = network(x, t)
            match schedule.prediction_type:
                case "epsilon":
                    start, noise = (x - b * output) / a, output
                case "v_prediction":
                    start, noise = a * x - b * output, a * output + b * x
                case _:
                    start, noise = output, (x - a * output) / b
            if schedule.clip_sample:
                start = clip(start, schedule.clip_sample_range)
                if schedule.noise_is_of_clipped:
                    noise = (x - a * start) / b
            return next_a * start + next_b * noise

        roots = [np.sqrt(v) for a in (alphas[index], next_alphas) for v in (a, 1 - a)]
        return _iterate(step, noises[0], schedule.time_scale * times, *roots)


@dataclass(frozen=True)
class Consistency(_Stepwise):
    """So many steps of a consistency model, each with a noise of its own.

    The first takes the highest level's noise to an image. Each further one adds noise to it again,
    up to a lower level, and denoises it: σ = √(σ_k² − σ_min²). Algorithm 1 of Song et al., arXiv
    2303.01469. The second of two steps is at level 22 of 40, as in the authors' example, and more
    steps are at equally many levels from each other.
    """

    schedule: ClassVar[type[Any]] = ConsistencySchedule

    @property
    def noises(self) -> int:
        """One for each step."""
        return self.steps

    def levels(self, schedule: ConsistencySchedule) -> Float[np.ndarray, "steps"]:
        """σ of each step."""
        total = schedule.num_train_timesteps
        second_of_two = round(total * 22 / 40)
        spacing = second_of_two if self.steps == 2 else total // self.steps
        return schedule.sigmas()[np.arange(self.steps) * spacing]

    def __call__(
        self, network: Network, noises: Sequence[Array], schedule: ConsistencySchedule
    ) -> Images:
        sigmas, data = self.levels(schedule), schedule.sigma_data
        above = sigmas - schedule.sigma_min
        added = np.sqrt(sigmas**2 - schedule.sigma_min**2)
        added[0] = sigmas[0]
        norms = np.sqrt(sigmas**2 + data**2)
        skips, outs = data**2 / (above**2 + data**2), above * data / norms

        def step(image: Array, constants: tuple[Array, ...]) -> Array:
            noise, added, t, norm, c_skip, c_out = constants
            x = image + added * noise
            image = c_skip * x + c_out * network(x / norm, t)
            return clip(image, 1.0) if schedule.clip_denoised else image

        scales = added, 250 * np.log(sigmas), norms, skips, outs
        return _iterate(step, jnp.zeros_like(noises[0]), jnp.stack(noises), *scales)


@dataclass(frozen=True)
class Flow(_Stepwise):
    """So many Euler steps of dx/dσ = v(x, T σ) from noise at σ = 1 to the image at 0.

    The levels are those of diffusers' FlowMatchEulerDiscreteScheduler: with the shift
    S(u) = s u / (1 + (s − 1) u), equally spaced from S(1) to S(1/T), then shifted once more. The
    last step leads from there to 0.
    """

    schedule: ClassVar[type[Any]] = FlowSchedule
    noises: ClassVar[int] = 1

    def levels(self, schedule: FlowSchedule) -> Float[np.ndarray, "levels"]:
        """σ before each step, and 0."""

        def shifted(u: Any) -> Any:
            return schedule.shift * u / (1 + (schedule.shift - 1) * u)

        ends = shifted(1.0), shifted(1 / schedule.num_train_timesteps)
        return np.append(shifted(np.linspace(*ends, self.steps)), 0.0)

    def __call__(self, network: Network, noises: Sequence[Array], schedule: FlowSchedule) -> Images:
        sigmas = self.levels(schedule)

        def step(x: Array, constants: tuple[Array, ...]) -> Array:
            t, change = constants
            return x + change * network(x, t)

        times = schedule.num_train_timesteps * sigmas[:-1]
        return _iterate(step, noises[0], times, np.diff(sigmas))


@dataclass(frozen=True)
class Heun(_Stepwise):
    """So many steps of dx/dσ = (x − D(x, σ)) / σ, from noise at the highest σ to the image at 0.

    Each step is Heun's, of second order, but for the last, which is Euler's. Algorithm 1 of Karras
    et al., arXiv 2206.00364. With one step, the image is D(σ z, σ), where EDM's σ is 80.
    """

    schedule: ClassVar[type[Any]] = EDMSchedule
    noises: ClassVar[int] = 1

    def check(self, schedule: Any) -> None:
        """Any schedule does."""

    def __call__(self, network: Network, noises: Sequence[Array], schedule: EDMSchedule) -> Images:
        levels = schedule.sigmas(self.steps)
        # Twice at each level but the first: to correct the step towards it, and to begin the next.
        sigmas, corrects = np.repeat(levels, 2)[1:], np.arange(2 * self.steps - 1) % 2
        changes = np.repeat(np.diff(levels, append=0.0), 2)[:-1]
        denoise = schedule.denoiser(network)

        def step(
            state: tuple[Array, Array, Array], constants: tuple[Array, ...]
        ) -> tuple[Array, Array, Array]:
            x, start, slope = state  # where it is, where the step began, and its slope there
            sigma, change, correct = constants
            here = (x - denoise(x, sigma)) / sigma
            start = jnp.where(correct > 0, start, x)
            mean = jnp.where(correct > 0, (slope + here) / 2, here)
            return start + change * mean, start, here

        x = levels[0] * noises[0]
        return _iterate(step, (x, x, x), sigmas, changes, corrects)[0]


@dataclass(frozen=True)
class OneStep:
    """The image D(σ z, σ) of a denoiser, or of a student that was trained to compute it so."""

    sigma: float

    schedule: ClassVar[type[Any]] = EDMSchedule
    noises: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"the noise level must be above 0 and finite, not {self.sigma}")

    def check(self, schedule: Any) -> None:
        """Any schedule does."""

    def __call__(self, network: Network, noises: Sequence[Array], schedule: EDMSchedule) -> Images:
        denoise = schedule.denoiser(network)
        return denoise(self.sigma * noises[0], jnp.asarray(self.sigma, noises[0].dtype))


@dataclass(frozen=True)
class LinearJacobian:
    """A solver whose networks are held constant in the gradient, which is an approximation.

    The search then sees the linear part of each step alone, and no network is differentiated. Of
    three evaluations for each step, one is left, or two if images are clipped, where the gradient
    depends on what was clipped. Chihaoui et al. (BIRD), arXiv 2405.19572.
    """

    solver: Solver

    @property
    def schedule(self) -> type[Any]:
        """The schedules that it goes with."""
        return self.solver.schedule

    @property
    def noises(self) -> int:
        """How many noises it takes."""
        return self.solver.noises

    def check(self, schedule: Any) -> None:
        """As the solver has it."""
        self.solver.check(schedule)

    def __call__(self, network: Network, noises: Sequence[Array], schedule: Any) -> Images:
        def constant(x: Array, t: Array) -> Array:
            return lax.stop_gradient(network(x, t))

        return self.solver(constant, noises, schedule)


def clip(x: Float[Array, "*shape"], limit: float) -> Float[Array, "*shape"]:
    """x within ±limit. Its gradient is 1 inside and on the limits, and 0 outside."""
    return jnp.where(jnp.abs(x) <= limit, x, limit * jnp.sign(lax.stop_gradient(x)))


def _iterate(step: Callable[[Any, tuple[Array, ...]], Any], x: Any, *constants: Any) -> Any:
    """Apply `step` to x once for each row of the constants.

    The gradient computes each step anew, so that memory grows with one network. Of a single step,
    it would need as much memory and half as much time again.
    """
    kind = jax.tree.leaves(x)[0].dtype
    rows = tuple(jnp.asarray(c, kind) for c in constants)
    if len(rows[0]) == 1:
        return step(x, tuple(column[0] for column in rows))

    def body(x: Any, row: tuple[Array, ...]) -> tuple[Any, None]:
        return step(x, row), None

    return lax.scan(jax.checkpoint(body, prevent_cse=False), x, rows)[0]


SOLVERS: dict[str, type[Any]] = {
    "ddim": DDIM,
    "consistency": Consistency,
    "flow": Flow,
    "heun": Heun,
    "one_step": OneStep,
}
LINEAR = "linear"


def parse(text: str) -> Solver:
    """The solver that a text names: ddim:10, ddim:3:leading, consistency:2, flow:8, heun:9,
    one_step:2.5.

    With :linear at the end, its gradient is that of `LinearJacobian`. Raises ValueError for a text
    of another form.
    """
    name, *arguments = text.split(":")
    if name not in SOLVERS:
        raise ValueError(f"no solver {name!r}{near(name, SOLVERS) or f': {_forms()}'}")
    linear = arguments[-1:] == [LINEAR]
    arguments = arguments[:-1] if linear else arguments
    fields = dataclasses.fields(SOLVERS[name])
    required = sum(field.default is dataclasses.MISSING for field in fields)
    if not required <= len(arguments) <= len(fields):
        raise ValueError(f"solvers are written as {_forms()}, not as {text!r}")
    values, kinds = [], typing.get_type_hints(SOLVERS[name])
    for field, argument in zip(fields, arguments, strict=False):
        try:
            values.append(kinds[field.name](argument))
        except ValueError:
            raise ValueError(f"{field.name} of {name} is no number: {argument!r}") from None
    solver: Solver = SOLVERS[name](*values)
    return cast(Solver, LinearJacobian(solver)) if linear else solver


def _forms() -> str:
    """How solvers are written, for messages."""
    forms = []
    for name, solver in SOLVERS.items():
        fields = dataclasses.fields(solver)
        required = [f.name.upper() for f in fields if f.default is dataclasses.MISSING]
        optional = [f"[:{f.name.upper()}]" for f in fields if f.default is not dataclasses.MISSING]
        forms.append(":".join([name, *required]) + "".join(optional))
    return f"{', '.join(forms)}, each with :{LINEAR} at its end or not"
