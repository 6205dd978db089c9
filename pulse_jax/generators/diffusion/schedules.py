"""Schedules: what a diffusion, consistency or flow network was trained to compute.

A schedule says which noise there is at which time, and what the network predicts there. `usual` is
the solver that goes with it by default; see `solvers`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
from jax import Array
from jaxtyping import Float, Int

Network: TypeAlias = Callable[[Array, Array], Array]
"""(x (n, h, w, c), time ()) → (n, h, w, c)."""

MOST_TIMES = 100_000  # that a network can have been trained for, and that a solver visits


@dataclass(frozen=True)
class NoiseSchedule:
    """x_t = √A_t x_0 + √(1 − A_t) ε for whole t from 0 to num_train_timesteps − 1.

    Ho et al., arXiv 2006.11239. A is the cumulative product of 1 − β. The network predicts ε, or
    v = √A ε − √(1 − A) x_0, or x_0 ("sample"). The fields are the keys of diffusers' DDIMScheduler,
    and its defaults. Raises ValueError for an unknown kind of β or of prediction, for β outside
    (0, 1), for ε where the last t leaves nothing but ε, and for a clip to nothing.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False

    usual: ClassVar[str] = "ddim:10"

    def __post_init__(self) -> None:
        if self.beta_schedule not in _BETAS:
            kinds = ", ".join(_BETAS)
            raise ValueError(f"beta_schedule must be one of {kinds}, got {self.beta_schedule!r}")
        _expect_times(self.num_train_timesteps)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"beta is from {self.beta_start} to {self.beta_end}, not in (0, 1)")
        if self.prediction_type not in PREDICTIONS:
            kinds = ", ".join(PREDICTIONS)
            raise ValueError(
                f"prediction_type must be one of {kinds}, got {self.prediction_type!r}"
            )
        if self.prediction_type == "epsilon" and self.rescale_betas_zero_snr:
            raise ValueError("rescale_betas_zero_snr goes with v_prediction or sample")
        if self.prediction_type == "epsilon" and self.alphas_cumprod()[-1] < 1e-12:
            raise ValueError("nothing but ε is left at the last of the times: β is too large")
        if not self.clip_sample_range > 0:
            raise ValueError(f"clip_sample_range must be above 0, got {self.clip_sample_range}")

    def alphas_cumprod(self) -> Float[np.ndarray, "T"]:
        """A_t for all t."""
        betas = _BETAS[self.beta_schedule](self.beta_start, self.beta_end, self.num_train_timesteps)
        alphas = np.cumprod(1 - betas)
        if self.rescale_betas_zero_snr:  # Lin et al., arXiv 2305.08891, algorithm 1
            root = np.sqrt(alphas)
            alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return alphas

    # What a subclass has otherwise.

    noise_is_of_clipped: ClassVar[bool] = False  # whether ε is computed anew after the clip

    @property
    def time_scale(self) -> float:
        """What the network sees of t is this times t."""
        return 1.0

    def stride(self, steps: int) -> int:
        """The distance of so many equally spaced times from 0."""
        return self.num_train_timesteps // steps

    def following(self, index: Int[np.ndarray, "steps"]) -> Int[np.ndarray, "steps"]:
        """The times to which steps at the times `index` lead, where the last is below 0."""
        return index - self.num_train_timesteps // len(index)


@dataclass(frozen=True)
class GuidedSchedule(NoiseSchedule):
    """A `NoiseSchedule` of guided-diffusion (Dhariwal and Nichol, arXiv 2105.05233).

    Its program's DDIM differs from that of diffusers in three ways. A step leads to the next of
    the times. ε is computed anew from the clipped x_0. And "leading" times, which it writes as
    ddimN, are as far from each other as the last can be below T; "linspace" is its plain N. With
    `rescale_timesteps`, the network sees 1000 t / T.
    """

    rescale_timesteps: bool = False

    noise_is_of_clipped: ClassVar[bool] = True

    @property
    def time_scale(self) -> float:
        """1000 / T if rescaled."""
        return 1000 / self.num_train_timesteps if self.rescale_timesteps else 1.0

    def stride(self, steps: int) -> int:
        """The least distance with which so many times, and no more, are below T."""
        return -(-self.num_train_timesteps // steps)

    def following(self, index: Int[np.ndarray, "steps"]) -> Int[np.ndarray, "steps"]:
        """The next of the times, and −1 at the end."""
        return np.append(index[1:], -1)


def _cosine(_start: float, _end: float, steps: int) -> Float[np.ndarray, "T"]:
    """Nichol and Dhariwal, arXiv 2102.09672, equation 17."""
    g = np.cos(np.pi / 2 * (np.arange(steps + 1) / steps + 0.008) / 1.008) ** 2
    return np.minimum(1 - g[1:] / g[:-1], 0.999)


_BETAS: dict[str, Callable[[float, float, int], Float[np.ndarray, "T"]]] = {
    "linear": np.linspace,
    "scaled_linear": lambda start, end, steps: np.linspace(start**0.5, end**0.5, steps) ** 2,
    "squaredcos_cap_v2": _cosine,
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class ConsistencySchedule:
    """The network, with its input and output scaled, takes any noise level σ to the image at once.

    Song et al., arXiv 2303.01469. The levels are those of Karras et al., arXiv 2206.00364, equation
    5, with exponent `rho`. The fields are the keys of diffusers' CMStochasticIterativeScheduler,
    with its defaults.
    """

    num_train_timesteps: int = 40
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0
    clip_denoised: bool = True

    usual: ClassVar[str] = "consistency:1"

    def __post_init__(self) -> None:
        _expect_times(self.num_train_timesteps)
        if not (0 < self.sigma_min < self.sigma_max and self.sigma_data > 0 and self.rho > 0):
            raise ValueError("sigma_min < sigma_max, sigma_data and rho must be above 0")

    def sigmas(self) -> Float[np.ndarray, "T"]:
        """The levels, from the highest to the lowest."""
        ramp = np.linspace(0, 1, self.num_train_timesteps)
        high, low = (s ** (1 / self.rho) for s in (self.sigma_max, self.sigma_min))
        return (high + ramp * (low - high)) ** self.rho


@dataclass(frozen=True)
class FlowSchedule:
    """x = (1 − σ) x_0 + σ z, and the network predicts the velocity z − x_0 at time T σ.

    Flow matching: Lipman et al., arXiv 2210.02747, Liu et al., arXiv 2209.03003. T is
    `num_train_timesteps`. `shift` moves the levels that are visited towards noise.
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0

    usual: ClassVar[str] = "flow:8"

    def __post_init__(self) -> None:
        _expect_times(self.num_train_timesteps)
        if not self.shift > 0:
            raise ValueError(f"shift must be above 0, got {self.shift}")


@dataclass(frozen=True)
class EDMSchedule:
    """The network is the denoiser D(x, σ) of x = x_0 + σ n: the mean of x_0, at any σ.

    Karras et al., arXiv 2206.00364. A student of such a network in one step goes with it too.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    usual: ClassVar[str] = "heun:9"

    def sigmas(self, steps: int) -> Float[np.ndarray, "{steps}"]:
        """So many levels, from the highest to the lowest: equation 5."""
        high, low = (s ** (1 / self.rho) for s in (self.sigma_max, self.sigma_min))
        return (high + np.linspace(0, 1, steps) * (low - high)) ** self.rho

    def denoiser(self, network: Network) -> Network:
        """D, of a network as it was trained."""
        return network


@dataclass(frozen=True)
class ScoreSchedule(EDMSchedule):
    """The network is the score (D(x, σ) − x) / σ² of x = x_0 + σ n, with x_0 in [0, 1].

    Song et al., arXiv 2011.13456: the variance explodes ("VE"). `sigma_min` and `sigma_max` are as
    in diffusers' ScoreSdeVeScheduler, with its defaults. That one draws noise at each step, while
    the solvers here follow the same probability flow without any. They work in [−1, 1], where all
    levels are twice as high.
    """

    sigma_min: float = 0.01
    sigma_max: float = 1348.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"sigma is from {self.sigma_min} to {self.sigma_max}")

    def sigmas(self, steps: int) -> Float[np.ndarray, "{steps}"]:
        """So many levels in [−1, 1], from the highest to the lowest."""
        return 2 * super().sigmas(steps)

    def denoiser(self, network: Network) -> Network:
        """D in [−1, 1], of a score in [0, 1]."""

        def denoise(x: Array, sigma: Array) -> Array:
            # 2 (x' + σ'² s(x', σ')) − 1, where x' = (x + 1) / 2 and σ' = σ / 2.
            return x + sigma**2 / 2 * network((x + 1) / 2, sigma / 2)

        return denoise


Schedule: TypeAlias = NoiseSchedule | ConsistencySchedule | FlowSchedule | EDMSchedule


def _expect_times(number: int) -> None:
    """Raises ValueError for fewer than two times, or more than any network has."""
    if not 2 <= number <= MOST_TIMES:
        raise ValueError(f"num_train_timesteps must be from 2 to {MOST_TIMES}, got {number}")
