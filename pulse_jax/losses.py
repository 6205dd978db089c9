"""Losses of one restart, as plain functions and their weighted sum.

The reference sums each term over its batch. Here a restart stands alone, and `vmap` and a sum give
the reference's numbers.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from pulse_jax import plug_in
from pulse_jax.static import Static
from pulse_jax.types import LARGEST_FACTOR, AnyArray, Degraded, check_kind, misfit

Styles = Float[AnyArray, "layers d"]
Scalar = Float[Array, ""]


def l2(lr: Degraded, target: Degraded, eps: float = 0.0) -> Scalar:
    """Mean squared error over pixels and channels, at least eps: PULSE's L2 of one image.

    max(mean((lr − target)²), eps). Below eps the gradient is 0. Raises ValueError if the shapes
    differ, and for a target of integers.
    """
    check_target(lr, target)
    return _at_least(eps, jnp.mean((lr - target) ** 2))


def l1(lr: Degraded, target: Degraded, eps: float = 0.0) -> Scalar:
    """Ten times the mean absolute error, itself at least eps: PULSE's L1 of one image.

    10 max(mean |lr − target|, eps). Below eps the gradient is 0. Raises ValueError if the shapes
    differ, and for a target of integers.
    """
    check_target(lr, target)
    return 10 * _at_least(eps, jnp.mean(jnp.abs(lr - target)))


def geocross(styles: Styles) -> Scalar:
    """Spread of the directions of one image's styles: GEOCROSS of PULSE (arXiv 2003.03808).

    mean_ij(d θ_ij²) / 8 over all L² ordered pairs of the L rows w_i of `styles`, where
    θ_ij = 2 atan2(|w_i − w_j|, |w_i + w_j|) is their angle if their lengths are equal, and |v| is
    √(v·v + 1e-9). One vector alone has no spread: 0. The reference's 512 is d here. Raises
    ValueError if `styles` has other than two axes.
    """
    if styles.ndim != 2:
        raise ValueError(f"geocross takes the styles of one image (L, d), got {styles.shape}")
    layers, d = styles.shape
    if layers == 1:
        return jnp.zeros((), styles.dtype)

    # Not from the Gram matrix: the angle of two nearly equal vectors would drown in its rounding.
    a, b = styles[:, None], styles  # (L, 1, d), (L, d)
    apart = jnp.sqrt(jnp.sum((a - b) ** 2, -1) + 1e-9)  # (L, L)
    along = jnp.sqrt(jnp.sum((a + b) ** 2, -1) + 1e-9)
    angle = 2 * jnp.arctan2(apart, along)
    return jnp.mean(d * angle**2) / 8


@runtime_checkable
class Criterion(Protocol):
    """What a search minimises for one restart. `Loss` is one."""

    @property
    def eps(self) -> float:
        """The l2 at which a restart has converged."""

    @property
    def needs_styles(self) -> bool:
        """Whether it is given style vectors, instead of None."""

    def __call__(self, lr: Degraded, target: Degraded, styles: Styles | None) -> Scalar: ...


# A user's own term: term(D(x), y) → scalar.
Term: TypeAlias = Callable[[Degraded, Degraded], Scalar]


@dataclass(frozen=True)
class Loss:
    """The weighted sum of `l2`, `l1`, `geocross` and other terms that a search minimises.

    The default is PULSE's 100 L2 + 0.05 GEOCROSS. `l2` and `l1` stop improving at eps, a mean
    squared or absolute error of images in [0, 1]. `others` are pairs of a weight and a term of
    yours, term(D(x), y). A term of weight 0 is not computed. Raises ValueError for a weight that is
    below 0, above 1e15 or too small for float32, for weights that are all 0, for a term that is no
    function, and for eps < 0.
    """

    l2: float = 100.0
    l1: float = 0.0
    geocross: float = 0.05
    eps: float = 1e-3
    others: tuple[tuple[float, Term], ...] = ()

    def __post_init__(self) -> None:
        weights = {"l2": self.l2, "l1": self.l1, "geocross": self.geocross}
        weights |= {f"others[{i}]": weight for i, (weight, _) in enumerate(self.others)}
        for name, weight in weights.items():
            if not 0 <= weight <= LARGEST_FACTOR:
                most = f"{LARGEST_FACTOR:g}"
                raise ValueError(f"the weight of {name} must be from 0 to {most}, got {weight}")
            if told := misfit(weight):
                raise ValueError(f"the weight {weight} of {name} is {told}")
        for i, (_, term) in enumerate(self.others):
            check_kind(term, Callable, f"others[{i}] must have a function of D(x) and y")
        if not any(weights.values()):
            raise ValueError("a loss needs a term with a weight other than 0")
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must be finite and at least 0, got {self.eps}")

    @property
    def needs_styles(self) -> bool:
        return self.geocross != 0

    def __call__(self, lr: Degraded, target: Degraded, styles: Styles | None) -> Scalar:
        """The loss of one restart, from D(x), y and the styles, if `needs_styles`."""
        total: Any = 0.0
        if self.l2:
            total += self.l2 * l2(lr, target, self.eps)
        if self.l1:
            total += self.l1 * l1(lr, target, self.eps)
        if self.geocross:
            assert styles is not None
            total += self.geocross * geocross(styles)
        for weight, term in self.others:
            if weight:
                total += weight * term(lr, target)
        return total


def parse(text: str, eps: float) -> Loss:
    """A `Loss` from the reference's notation: 100*L2+0.05*GEOCROSS.

    A term of your own is written as my_module:huber:0.1. It is called as huber(0.1) (see `plug_in`)
    and returns term(D(x), y) → scalar. Raises ValueError for what can't be read.
    """
    weights = {"l2": 0.0, "l1": 0.0, "geocross": 0.0}
    others = []
    for factor, name in terms(text):
        weight = plug_in.number(factor or "1")
        if isinstance(weight, str) or not 0 <= weight <= LARGEST_FACTOR:
            told = f"must be a number from 0 to {LARGEST_FACTOR:g}, got {factor!r}"
            raise ValueError(f"the weight of {name} {told}")
        if plug_in.is_plug_in(name):
            term = plug_in.call(name)
            if not callable(term):
                told = f"{plug_in.called(name)} returned a {type(term).__name__}"
                raise ValueError(f"{told}, not a function of D(x) and y")
            others.append((float(weight), Static(term)))
        elif name.lower() in weights:
            weights[name.lower()] += weight
        else:
            raise ValueError(f"{name!r} is none of L2, L1, GEOCROSS and no module:callable")
    return Loss(**weights, eps=eps, others=tuple(others))


def terms(text: str) -> list[tuple[str, str]]:
    """The weights, maybe empty, and the names of the terms of such a line."""
    # The plus sign of a number like 1e+3 doesn't part terms.
    parts = [term.rpartition("*") for term in re.split(r"\+(?!(?<=\d[eE]\+)\d)", text)]
    return [(weight, name.strip()) for weight, _, name in parts]


def _at_least(eps: float, value: Scalar) -> Scalar:
    # Unlike jnp.maximum, this has the whole gradient at equality, as the reference's clamp has.
    return jnp.where(value < eps, eps, value)


def check_target(lr: Degraded, target: Degraded) -> None:
    """Raises ValueError if a target isn't of the degraded image's shape, or isn't of floats.

    Integers are those of a picture's file, such as 0 to 255, and no image in [0, 1] comes near.
    """
    if lr.shape != target.shape:
        raise ValueError(f"the target's shape {target.shape} is not the image's {lr.shape}")
    if not jnp.issubdtype(target.dtype, jnp.floating):
        raise ValueError(f"the target must be of floats in [0, 1], not of {target.dtype}")
