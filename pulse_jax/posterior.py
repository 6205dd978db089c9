"""The density of answers: p(z | y) ∝ p(z) p(y | D(G(z))), for one picture y.

Every result of a search is *an* answer. How likely each answer is, this density tells: the prior
p(z) says which images the generator makes, and the likelihood how far a degraded image may be from
the picture (see `likelihoods`). `samplers` draws from it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import register_dataclass
from jaxtyping import Float, PRNGKeyArray, PyTree

from pulse_jax.likelihoods import Likelihood, pairwise_sum
from pulse_jax.losses import Scalar
from pulse_jax.operators import Operator, check_operator
from pulse_jax.static import Static, argument
from pulse_jax.types import (
    AnyArray,
    Degraded,
    Frozen,
    Generator,
    Image,
    Latents,
    Params,
    check_kind,
)

Position: TypeAlias = PyTree[Float[AnyArray, "..."]]  # what a chain moves

PRIORS = "gaussian", "spheres"
NOISE = "sampled", "zero"
LABEL = "label"  # the class, among the frozen variables


@register_dataclass
@dataclass(frozen=True)
class Posterior:
    """p(z | y) ∝ p(z) p(y | D(G(z))), made by `build`. Everything is of one chain: `vmap` it.

    A position is (latents, noise): the generator's latents and, if noise is sampled, what else it
    draws. It is a pytree of the operator's and the likelihood's arrays: pass it through `jit` as an
    argument. `sample`, `image`, `degraded` and the log densities are pure functions.
    """

    generator: Generator = field(metadata={"static": True})
    operator: Callable[[Image], Degraded]
    likelihood: Likelihood
    prior: str = field(metadata={"static": True})
    noise: str = field(metadata={"static": True})
    label: int | None = field(default=None, metadata={"static": True})  # the class

    def sample(self, key: PRNGKeyArray) -> Position:
        """A position drawn from the prior.

        It is that of the density. A generator's own `sample` may differ, as with `equal_start`.
        """
        latents, noise = optax.tree.random_like(key, self._zeros())
        position = (latents, noise if self.noise == "sampled" else ())
        return onto_spheres(position) if self.prior == "spheres" else position

    def split(self, position: Position) -> tuple[Latents, Frozen]:
        """(latents, frozen) of a position, as the generator takes them; noise may be zero."""
        latents, noise = position
        if self.noise == "zero":
            _, noise = self._zeros()
        return latents, noise if self.label is None else noise | {LABEL: jnp.asarray(self.label)}

    def join(self, latents: Latents, frozen: Frozen) -> Position:
        """The position of latents and frozen variables as the generator takes them."""
        return latents, self._noise_of(frozen) if self.noise == "sampled" else ()

    def _noise_of(self, frozen: Frozen) -> Frozen:
        """Frozen variables without the class."""
        if self.label is None:
            return frozen
        return {name: leaf for name, leaf in frozen.items() if name != LABEL}

    def _zeros(self) -> tuple[Latents, Frozen]:
        """Of the shapes of what the generator draws."""
        shapes = jax.eval_shape(self.generator.sample, jax.random.key(0))
        latents, frozen = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return latents, self._noise_of(frozen)

    def image(self, params: Params, position: Position) -> Image:
        """G(z), (H, W, C) and not clipped."""
        return self.generator.synthesize(params, *self.split(position))

    def degraded(self, params: Params, position: Position) -> Degraded:
        """x = D(G(z))."""
        return self.operator(self.image(params, position))

    @property
    def loglikelihood(self) -> Callable[[Params, Degraded, Position], Scalar]:
        """log p(y | D(G(z))), called with (params, target, position): what `samplers` take."""
        return argument(_loglikelihood, self)

    def logprior(self, position: Position) -> Scalar:
        """log p(z) with all constants: of N(0, I), or 0 for what is uniform on its spheres."""
        if self.prior == "spheres":
            return jnp.zeros((), float)
        return sum(
            (-pairwise_sum(z**2 + math.log(2 * math.pi)) / 2 for z in jax.tree.leaves(position)),
            start=jnp.zeros((), float),
        )


def build(
    generator: Generator,
    operator: Operator | Callable[[Image], Degraded],
    likelihood: Likelihood,
    *,
    prior: str = "gaussian",
    noise: str = "zero",
    label: int | None = None,
) -> Posterior:
    """The `Posterior` of a generator, a degradation and a likelihood.

    `prior`: "gaussian" is N(0, I) of all latents. "spheres" is uniform on the sphere of radius √d
    of each, where the Gaussian has nearly all its mass; d counts a point's coordinates.

    `noise`: what the generator draws beside its latents is either "sampled", under the same prior,
    or "zero". It is never drawn once and frozen, as in a search: each chain would have a density of
    its own, and together they would be samples of none.

    `label`: the class, of a generator with classes. The density is that of its images alone.

    Raises ValueError for another prior or noise, for a part that is none, and for a class that the
    generator doesn't have, or none where it has some.
    """
    check_kind(generator, Generator, "generator must be a Generator")
    check_operator(operator, (generator.resolution, generator.resolution, generator.channels))
    check_kind(likelihood, Likelihood, "likelihood must be a Likelihood")
    for name, value, known in (("prior", prior, PRIORS), ("noise", noise, NOISE)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if label is None and generator.classes:
        raise ValueError(f"a posterior is of one class, and the generator has {generator.classes}")
    if label is not None and not 0 <= label < generator.classes:
        raise ValueError(f"label must be below the {generator.classes} classes, got {label}")
    functions = Static(generator.sample), Static(generator.synthesize)
    generator = Generator(generator.resolution, *functions, channels=generator.channels)
    degrade = argument(operator.apply if isinstance(operator, Operator) else operator)
    return Posterior(generator, degrade, likelihood, prior, noise, label)


def onto_spheres(position: Position) -> Position:
    """Each point rescaled to norm √d: axis 0 of a leaf counts points, the others coordinates.

    0, which has no direction, stays 0.
    """

    def rescale(leaf: Float[AnyArray, "n *point"]) -> Float[AnyArray, "n *point"]:
        square = jnp.mean(leaf**2, axis=tuple(range(1, leaf.ndim)), keepdims=True)
        return leaf / jnp.sqrt(jnp.where(square > 0, square, 1))

    return jax.tree.map(rescale, position)


def _loglikelihood(
    posterior: Posterior, params: Params, target: Degraded, position: Position
) -> Scalar:
    return posterior.likelihood.logpdf(posterior.degraded(params, position), target)
