"""The search of PULSE (Menon et al., CVPR 2020, arXiv 2003.03808).

For a low-resolution picture y, find latents z on their spheres whose image downscales to it:
    minimise loss(D(G(z)), y), step by step, from many starting points z.

Everything up to `run` is about one restart: one starting point for one target. `run` maps it over
many.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pulse_jax.losses import l2

STATUS = ("converged", "missed eps", "not finite")


class Best(NamedTuple):
    """An iterate of a restart and what was measured on it."""

    latents: Any
    l2: jax.Array  # () mean squared error of the downscaled image, not clamped at eps
    loss: jax.Array  # ()
    step: jax.Array  # () updates made before this iterate


class SearchState(NamedTuple):
    """What the next step of one restart needs."""

    latents: Any  # on their spheres
    frozen: Any  # Gaussian variables that stay as they were drawn
    optimizer: optax.OptState
    step: jax.Array  # () updates made so far
    best: Best


class SearchInfo(NamedTuple):
    """What one step measured on the iterate that it started from."""

    l2: jax.Array
    loss: jax.Array
    grad_norm: jax.Array


class Search(NamedTuple):
    """A search for one restart, as two pure functions.

    `init(latents, frozen) → SearchState`: at a sample of the generator.
    `step(params, target, state) → (SearchState, SearchInfo)`: one update, `target` (h, w, 3) in
        [0, 1].
    `eps`: the l2 at which a restart has converged.
    """

    init: Callable[[Any, Any], SearchState]
    step: Callable[[Any, jax.Array, SearchState], tuple[SearchState, SearchInfo]]
    eps: float


def build(generator, operator, loss, optimizer):
    """A `Search` from a `Generator`, an operator (H, W, 3) → (h, w, 3), a `Loss` and an optimiser.

    The optimiser, from optax, must keep the latents where they belong: see `SCHEMES`. It is passed
    `value`, `grad` and `value_fn` with every update.

    The best iterate is the one of lowest loss among those with l2 ≤ eps, or of lowest l2 as long as
    there is none. This deviates from the reference, which returns the last image, and compares
    sums over its batch. An iterate is measured by the step that leaves it: the last one isn't.

    Raises ValueError if the loss needs style vectors and the generator has none.
    """
    if loss.needs_styles and generator.styles is None:
        raise ValueError("the loss compares style vectors (geocross), and this generator has none")
    optimizer = optax.with_extra_args_support(optimizer)

    def init(latents, frozen):
        nothing = jnp.asarray(jnp.inf, float)
        best = Best(latents, nothing, nothing, jnp.zeros((), int))
        return SearchState(latents, frozen, optimizer.init(latents), jnp.zeros((), int), best)

    def step(params, target, state):
        def objective(latents):
            image = generator.synthesize(params, latents, state.frozen)  # (H, W, 3)
            lr = operator(image)  # (h, w, 3)
            styles = generator.styles(params, latents) if loss.needs_styles else None
            return loss(lr, target, styles), l2(lr, target)

        (value, error), grad = jax.value_and_grad(objective, has_aux=True)(state.latents)
        seen = Best(state.latents, error, value, state.step)
        best = _select(_is_better(seen, state.best, loss.eps), seen, state.best)
        updates, optimizer_state = optimizer.update(
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

    return Search(init, step, loss.eps)


def _is_better(a, b, eps):
    """Whether `Best` a is to be kept rather than b; never if it isn't finite."""
    finite = jnp.isfinite(a.l2) & jnp.isfinite(a.loss)
    both_met = (a.l2 <= eps) & (b.l2 <= eps)
    return finite & jnp.where(both_met, a.loss < b.loss, a.l2 < b.l2)


def _select(condition, a, b):
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def status(l2, eps):
    """Index into `STATUS`: 0 if l2 ≤ eps, 1 if it misses eps, 2 if it isn't finite."""
    return jnp.where(jnp.isfinite(l2), jnp.where(l2 <= eps, 0, 1), 2)


def run(
    search, params, target, state, steps, *, slots=None, chunk=10, stop_at_eps=False, on_chunk=None
):
    """Take `steps` steps with each of many restarts.

    `state`: of B restarts, from `jax.vmap(search.init)`. `target`: one image (h, w, 3) in [0, 1],
    or one for each restart (B, h, w, 3). At most `slots` restarts are searched at once, by default
    all; the last group is filled up by repeating a restart, so that one compilation serves every
    group and every target of that size.

    The steps of a group are scans of equal length, the largest divisor of `steps` up to `chunk`:
    1 where there is no other, as for 101 steps. After each scan, `on_chunk(rows, state)` is called
    with the indices of the group's restarts and their state; and with `stop_at_eps` the group ends
    if all its restarts have met eps.

    Returns (state, info) of the B restarts; leaves of info are (B, steps), NaN after an early stop.
    Raises ValueError for fewer than one restart, step, slot or step in a chunk, and for a target of
    the wrong shape.
    """
    if state.step.ndim != 1:
        raise ValueError(f"run takes the states of many restarts, got steps {state.step.shape}")
    restarts = state.step.size
    slots = restarts if slots is None else slots
    counts = {"restarts": restarts, "steps": steps, "slots": slots, "chunk": chunk}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if target.shape[:-3] not in ((), (restarts,)):
        raise ValueError(f"target must be one image or {restarts} images, got {target.shape}")
    targets = jnp.broadcast_to(target, (restarts, *target.shape[-3:]))
    length = max(
        n for n in range(1, min(chunk, steps) + 1) if steps % n == 0
    )  # one scan, one compilation

    groups = []
    for first in range(0, restarts, slots):
        rows = np.arange(first, min(first + slots, restarts))
        used = np.arange(len(rows))
        padded = np.pad(rows, (0, slots - len(rows)), mode="edge")
        group, group_targets = _take((state, targets), padded)
        infos = []
        for _ in range(steps // length):
            group, info = _scan(search.step, params, group_targets, group, length)
            infos.append(info)
            if on_chunk is not None:
                on_chunk(rows, _take(group, used))
            if stop_at_eps and (group.best.l2 <= search.eps).all():
                break
        unmeasured = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), info)
        infos += [unmeasured] * (steps // length - len(infos))
        groups.append(_take((group, _concatenate(infos, axis=1)), used))
    return _concatenate(groups, axis=0)


@functools.partial(jax.jit, static_argnames=("step", "length"))
def _scan(step, params, targets, state, length):
    """`length` steps of a whole group; leaves of its info are (slots, length).

    Weights and targets are arguments, so that new ones don't recompile.
    """
    step = jax.vmap(step, in_axes=(None, 0, 0))
    state, info = jax.lax.scan(lambda state, _: step(params, targets, state), state, length=length)
    return state, jax.tree.map(jnp.transpose, info)


# Compiled, since one call of each has dozens of leaves.
@jax.jit
def _take(tree, rows):
    return jax.tree.map(lambda leaf: leaf[rows], tree)


@functools.partial(jax.jit, static_argnames="axis")
def _concatenate(trees, axis):
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *trees)
