"""Readers: small networks that tell from an image what it shows, such as glasses."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from pulse_jax.types import AnyArray

Images = Float[AnyArray, "n side side 3"]
SIDE = 64  # larger images are shrunk to it


class Features(nn.Module):
    """Images (n, R, R, 3) in [0, 1] → (n, 256).

    Its convolutions are of patches that don't overlap, so they are matrix products, which two cores
    do fast.
    """

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "n 256"]:
        x = nn.relu(nn.Dense(96)(_patches(_shrunk(jnp.asarray(x)) - 0.5, 4)))
        while x.shape[1] > 4:
            x = nn.relu(nn.Dense(192)(_patches(x, 2)))
        return nn.relu(nn.Dense(256)(x.reshape(len(x), -1)))


class Reader(nn.Module):
    """Images (n, R, R, 3) in [0, 1] → coordinates (n, D) of their attributes.

    `attributes` are names, each with the names of its kinds, or with the number of its coordinates.
    Of a kind there is a 1 among 0s, as far as the network can tell; the largest counts.
    """

    attributes: tuple[tuple[str, int | tuple[str, ...]], ...]

    @property
    def sizes(self) -> dict[str, int]:
        """How many coordinates each attribute has."""
        return {name: k if isinstance(k, int) else len(k) for name, k in self.attributes}

    @property
    def names(self) -> list[str]:
        """What each coordinate tells."""
        found = []
        for name, kinds in self.attributes:
            if isinstance(kinds, int):
                found += [name] if kinds == 1 else [f"{name} {i}" for i in range(1, kinds + 1)]
            else:
                found += [f"{name}: {kind}" for kind in kinds]
        return found

    def shares(self, coordinates: Float[np.ndarray, "n d"]) -> dict[str, dict[str, float]]:
        """The share of the images that show each kind: attribute → kind → share."""
        found, first = {}, 0
        for name, kinds in self.attributes:
            size = self.sizes[name]
            if not isinstance(kinds, int):
                best = coordinates[:, first : first + size].argmax(axis=1)
                counts = np.bincount(best, minlength=size) / len(best)
                found[name] = dict(zip(kinds, counts.tolist(), strict=True))
            first += size
        return found

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "n d"]:
        features: Any = Features(name="features")(x)
        return nn.Dense(sum(self.sizes.values()))(features)


def undetermined(shares: Mapping[str, Mapping[str, float]], certain: float = 0.95) -> str:
    """The attributes that less than a share `certain` of images agree on, in words, or nothing."""
    found = []
    for name, kinds in shares.items():
        kind = max(kinds, key=lambda kind: kinds[kind])
        if kinds[kind] < certain:
            found.append(f"{name.replace('_', ' ')} ({kind} in {kinds[kind]:.0%} of draws)")
    return ", ".join(found)


def _shrunk(x: Float[Array, "n side side 3"]) -> Float[Array, "n s s 3"]:
    """Images averaged to `SIDE`, a divisor of their side. Smaller ones stay as they are."""
    count, side = x.shape[:2]
    factor = max(1, side // SIDE)
    return x.reshape(count, side // factor, factor, side // factor, factor, 3).mean(axis=(2, 4))


def _patches(x: Float[Array, "n h w c"], side: int) -> Float[Array, "n i j p"]:
    """(n, h, w, c) → (n, h / side, w / side, side² c)."""
    count, height, width, _ = x.shape
    x = x.reshape(count, height // side, side, width // side, side, -1).swapaxes(2, 3)
    return x.reshape(*x.shape[:3], -1)
