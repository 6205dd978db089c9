"""Generators of other programs, named as module:callable."""

import jax
import jax.numpy as jnp
import numpy as np

from pulse_jax.generators import Generator
from pulse_jax.images import CHANNELS
from pulse_jax.plug_in import call, called, guarded
from pulse_jax.starts import by_name
from pulse_jax.types import Params


def plug_in(name: str) -> tuple[Generator, Params]:
    """The generator and the parameters that a callable returns.

    `name` is my_package.my_module:make, maybe with arguments (see `pulse_jax.plug_in`). By the
    contract of `Generator`, axis 0 of latents counts spheres, styles are (L, d), images are
    (R, R, C), and no two arrays have the same name. Raises ValueError, in one line with the name,
    if there is no such callable, if it raises something, or if it breaks this contract.
    """
    try:
        made = call(name)
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Generator)):
            raise ValueError(
                f"{called(name)} returned a {type(made).__name__}, not (Generator, params)"
            )
        _check(*made)
    except ValueError as error:
        raise ValueError(f"generator={name}: {error}") from error
    return made


def _check(generator: Generator, params: Params) -> None:
    """Hold a generator to its contract, by shapes and types alone."""
    resolution, channels = generator.resolution, generator.channels
    if not isinstance(resolution, int | np.integer):
        raise ValueError(f"its resolution is {resolution!r}, not a whole number")
    drawn = guarded("its sample", jax.eval_shape, generator.sample, jax.random.key(0))
    if not (isinstance(drawn, tuple) and len(drawn) == 2):
        raise ValueError(f"its sample returned a {type(drawn).__name__}, not (latents, frozen)")
    latents, frozen = drawn
    if not (leaves := jax.tree.leaves(latents)):
        raise ValueError("its latents are empty")
    for leaf in leaves:
        if leaf.ndim < 2 or not leaf.size:
            raise ValueError(
                f"a leaf of its latents has shape {leaf.shape}: axis 0 counts spheres, so that one "
                f"vector of d coordinates is (1, d)"
            )
        _check_floats(leaf, "a leaf of its latents has")
    by_name(latents, frozen)
    if generator.styles is not None:
        styles = guarded("its styles", jax.eval_shape, generator.styles, params, latents, frozen)
        if getattr(styles, "ndim", None) != 2:
            raise ValueError(
                f"its styles have shape {getattr(styles, 'shape', None)}, not (layers, d)"
            )
        _check_floats(styles, "its styles have")
    image = guarded("its synthesize", jax.eval_shape, generator.synthesize, params, latents, frozen)
    wanted = resolution, resolution, channels
    if channels not in CHANNELS:
        raise ValueError(f"its images have {channels} channels, not 1, 3 or 4")
    if getattr(image, "shape", None) != wanted:
        raise ValueError(f"its images have shape {getattr(image, 'shape', None)}, not {wanted}")
    _check_floats(image, "its images have")


def _check_floats(array: jax.ShapeDtypeStruct, told: str) -> None:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{told} the type {array.dtype}, not one of floats")
