"""The search of PULSE (Menon et al., CVPR 2020, arXiv 2003.03808).

For a low-resolution picture y, find latents z on their spheres whose image downscales to it:
    minimise loss(D(G(z)), y), step by step, from many starting points z.

All of this is about one restart: one starting point for one target. `driver` maps it over many.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Bool, Float, Integer

from pulse_jax.losses import Criterion, Loss, l2
from pulse_jax.operators import Operator, check_operator
from pulse_jax.schemes import SphereOptimizer, none
from pulse_jax.static import argument
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

STATUS = ("converged", "missed eps", "not finite")


class Best(NamedTuple):
    """An iterate of a restart and what was measured on it."""

    latents: Latents
    l2: Float[Array, ""]  # mean squared error of the downscaled image, not clamped at eps
    loss: Float[Array, ""]
    step: Integer[Array, ""]  # updates made before this iterate


class SearchState(NamedTuple):
    """What the next step of one restart needs."""

    latents: Latents  # on their spheres
    frozen: Frozen  # Gaussian variables that stay as they were drawn
    optimizer: optax.OptState
    step: Integer[Array, ""]  # updates made so far
    best: Best


class SearchInfo(NamedTuple):
    """What one step measured on the iterate that it started from."""

    l2: Float[Array, ""]
    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


class Search(NamedTuple):
    """A search for one restart, as two pure functions.

    - `init(latents, frozen)` gives the state at a sample of the generator.
    - `step(params, target, state)` makes one update, for a `target` in [0, 1]. For `jit`, `step`
      itself is an argument, a pytree of the operator's arrays. Searches that are built alike, of
      equal parts, share what is compiled.
    - `eps` is the l2 at which a restart has converged.
    """

    init: Callable[[Latents, Frozen], SearchState]
    step: Callable[[Params, Degraded, SearchState], tuple[SearchState, SearchInfo]]
    eps: float


def build(
    generator: Generator,
    operator: Operator | Callable[[Image], Degraded],
    loss: Criterion,
    optimizer: optax.GradientTransformation,
) -> Search:
    """A `Search` from a generator, a degradation, a loss and an optimiser from optax.

    The optimiser must keep the latents where they belong, as a scheme of `SCHEMES` does. Without a
    scheme, it counts as one with `none`. It is passed `value`, `grad` and `value_fn` with every
    update.

    The best iterate is the one of lowest loss among those with l2 ≤ eps, or of lowest l2 as long as
    there is none. This deviates from the reference, which returns the last image, and compares
    sums over its batch. An iterate is measured by the step that leaves it, so the last one isn't.

    If the generator has no style vectors, a `Loss` is taken without GEOCROSS, and a warning says
    so. Raises ValueError for another loss that needs them, for one of GEOCROSS alone, for a sampler
    that has no bounds without a scheme, and for a part that is none, such as the name of one.
    """
    check_kind(generator, Generator, "generator must be a Generator")
    check_operator(operator, (generator.resolution, generator.resolution, generator.channels))
    check_kind(loss, Criterion, "loss must be a Loss, or what has its methods")
    check_kind(optimizer, optax.GradientTransformation, "optimizer must be one of optax")
    if generator.styles is None and isinstance(loss, Loss) and loss.geocross:
        try:
            loss = dataclasses.replace(loss, geocross=0.0)
        except ValueError:  # nothing is left
            told = "a loss of GEOCROSS alone compares style vectors, and this generator has none"
            raise ValueError(told) from None
        warnings.warn("GEOCROSS is left out: this generator has no style vectors", stacklevel=2)
    styles_of = generator.styles if loss.needs_styles else None
    if loss.needs_styles and styles_of is None:
        raise ValueError("the loss compares style vectors, and this generator has none")
    if not isinstance(optimizer, SphereOptimizer):
        optimizer = none(optimizer)
    synthesize, update = generator.synthesize, optimizer.update

    def init(latents: Latents, frozen: Frozen) -> SearchState:
        nothing = jnp.asarray(jnp.inf, float)
        best = Best(latents, nothing, nothing, jnp.zeros((), int))
        return SearchState(latents, frozen, optimizer.init(latents), jnp.zeros((), int), best)

    def step(
        degrade: Callable[[Image], Degraded],
        params: Params,
        target: Degraded,
        state: SearchState,
    ) -> tuple[SearchState, SearchInfo]:
        def objective(latents: Latents) -> tuple[Float[Array, ""], Float[Array, ""]]:
            image = synthesize(params, latents, state.frozen)  # (H, W, C)
            lr = degrade(image)  # (h, w, C)
            styles = None if styles_of is None else styles_of(params, latents, state.frozen)
            return loss(lr, target, styles), l2(lr, target)

        (value, error), grad = jax.value_and_grad(objective, has_aux=True)(state.latents)
        seen = Best(state.latents, error, value, state.step)
        best = optax.tree.where(_is_better(seen, state.best, loss.eps), seen, state.best)
        updates, optimizer_state = update(
            grad,
            state.optimizer,
            state.latents,
            value=value,
            grad=grad,
            value_fn=lambda latents: objective(latents)[0],
        )
        latents = optax.apply_updates(state.latents, updates)
        info = SearchInfo(error, value, optax.tree.norm(grad))
        return SearchState(latents, state.frozen, optimizer_state, state.step + 1, best), info

    degrade = argument(operator.apply if isinstance(operator, Operator) else operator)
    return Search(init, argument(step, degrade), loss.eps)


def _is_better(a: Best, b: Best, eps: float) -> Bool[Array, ""]:
    """Whether a is better than b. It never is if it isn't finite."""
    finite = jnp.isfinite(a.l2) & jnp.isfinite(a.loss)
    both_met = (a.l2 <= eps) & (b.l2 <= eps)
    return finite & jnp.where(both_met, a.loss < b.loss, a.l2 < b.l2)


@jax.jit  # since it is several operations, each of which would be compiled
def status(
    l2: float | np.floating[Any] | Float[AnyArray, "*several"], eps: float | Float[Array, ""]
) -> Integer[Array, "*several"]:
    """Index into `STATUS`: 0 if l2 ≤ eps, 1 if it misses eps, 2 if it isn't finite."""
    return jnp.where(jnp.isfinite(l2), jnp.where(l2 <= eps, 0, 1), 2)
