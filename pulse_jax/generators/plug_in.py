"""Generators of other programs, named as module:callable."""

import jax

from pulse_jax.generators import Generator
from pulse_jax.images import CHANNELS
from pulse_jax.plug_in import attempt, call, called
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
    """Hold a generator to its contract, by shapes alone."""
    key = jax.random.key(0)
    latents, frozen = attempt("its sample", jax.eval_shape, generator.sample, key)
    for leaf in jax.tree.leaves(latents):
        if leaf.ndim < 2:
            raise ValueError(
                f"a leaf of its latents has shape {leaf.shape}: axis 0 counts spheres, so that one "
                f"vector of d coordinates is (1, d)"
            )
    by_name(latents, frozen)
    if generator.styles is not None:
        styles = attempt("its styles", jax.eval_shape, generator.styles, params, latents, frozen)
        if getattr(styles, "ndim", None) != 2:
            raise ValueError(
                f"its styles have shape {getattr(styles, 'shape', None)}, not (layers, d)"
            )
    image = attempt("its synthesize", jax.eval_shape, generator.synthesize, params, latents, frozen)
    wanted = generator.resolution, generator.resolution, generator.channels
    if generator.channels not in CHANNELS:
        raise ValueError(f"its images have {generator.channels} channels, not 1, 3 or 4")
    if getattr(image, "shape", None) != wanted:
        raise ValueError(f"its images have shape {getattr(image, 'shape', None)}, not {wanted}")
