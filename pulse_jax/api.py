"""The public names, which `pulse_jax` has from here."""

from pulse_jax import (
    calibration,
    chains,
    diagnostics,
    generators,
    images,
    likelihoods,
    losses,
    operators,
    optimizers,
    posterior,
    samplers,
    schemes,
    smc,
    sphere,
)
from pulse_jax.driver import Slots, run, stream
from pulse_jax.generators import Generator, style_generator
from pulse_jax.generators.checkpoint import load, load_discriminator
from pulse_jax.generators.style_network import truncate
from pulse_jax.losses import Loss
from pulse_jax.operators import OPERATORS
from pulse_jax.optimizers import OPTIMIZERS, SAMPLERS, SCHEDULES
from pulse_jax.progress import Progress, Underway
from pulse_jax.schemes import SCHEMES
from pulse_jax.search import STATUS, Search, SearchInfo, SearchState, build, status
from pulse_jax.starts import interpolate, load_latents, vary
from pulse_jax.upsampling.run import Results, upsample
from pulse_jax.upsampling.settings import RECIPES, Settings

__all__ = [
    "OPERATORS",
    "OPTIMIZERS",
    "RECIPES",
    "SAMPLERS",
    "SCHEDULES",
    "SCHEMES",
    "STATUS",
    "Generator",
    "Loss",
    "Progress",
    "Results",
    "Search",
    "SearchInfo",
    "SearchState",
    "Settings",
    "Slots",
    "Underway",
    "build",
    "calibration",
    "chains",
    "diagnostics",
    "generators",
    "images",
    "interpolate",
    "likelihoods",
    "load",
    "load_discriminator",
    "load_latents",
    "losses",
    "operators",
    "optimizers",
    "posterior",
    "run",
    "samplers",
    "schemes",
    "smc",
    "sphere",
    "status",
    "stream",
    "style_generator",
    "truncate",
    "upsample",
    "vary",
]
