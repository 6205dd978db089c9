"""What the StyleGANs have in common: all but the synthesis network."""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int

from pulse_jax.generators.layers import SQRT2, Dense, leaky_relu, pixel_norm
from pulse_jax.types import AnyArray

Styles = Float[Array, "n layers d"]
NoiseMaps = Sequence[Float[Array, "n 1 _ _"]]
Images = Float[Array, "n side side c"]


class StyleNetwork(nn.Module):
    """A mapping network, and the synthesis network that an architecture adds.

    An architecture has `activation_gain`, of the mapping's leaky ReLUs, its `noise_shapes`, and in
    `setup` a `synthesis_network`. Unless it says otherwise, `channels` are those at side 4, 8, …,
    `resolution`. Latents z have `z_size` coordinates, the layers of the mapping network
    `mapping_width`, style vectors w `latent_size`, which the others are by default. Where latents
    are attributes, with kinds of so many each, the mapping network sees `attribute_features`, and
    else their direction alone. Images have `image_channels`. Where there are
    `classes`, the mapping network also sees the image's class, as a learnt vector of `label_size`.
    """

    activation_gain: ClassVar[float]

    resolution: int
    channels: tuple[int, ...]
    latent_size: int = 512
    mapping_layers: int = 8
    z_size: int = 0
    mapping_width: int = 0
    attribute_kinds: tuple[int, ...] = ()
    image_channels: int = 3
    classes: int = 0
    label_size: int = 0

    def __post_init__(self) -> None:
        self.z_size = self.z_size or self.latent_size
        self.mapping_width = self.mapping_width or self.latent_size
        super().__post_init__()

    @property
    def num_layers(self) -> int:
        """Style vectors of one image: 2 log2(resolution) − 2."""
        return 2 * len(self.channels)

    @property
    def noise_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """The shapes (1, H, W) of one image's noise maps, if there are any."""
        return ()

    def check_sizes(self) -> None:
        """Raises ValueError if the resolution doesn't fit the number of channels."""
        if 4 * 2 ** (len(self.channels) - 1) != self.resolution:
            raise ValueError(
                f"{len(self.channels)} channel counts {self.channels} don't fit "
                f"resolution {self.resolution}"
            )

    def setup(self) -> None:
        self.check_sizes()
        self.mapping_network = Mapping(
            self.latent_size,
            self.mapping_layers,
            self.activation_gain,
            self.mapping_width,
            self.attribute_kinds,
            self.classes,
            self.label_size,
            name="mapping",
        )

    def mapping(
        self, z: Float[Array, "n z_size"], label: Int[Array, "n"] | None = None
    ) -> Float[Array, "n d"]:
        """Latents z ~ N(0, I), and classes if there are any → style vectors w."""
        return self.mapping_network(z, label)

    def synthesis(self, w: Styles, noise: NoiseMaps) -> Images:
        """Style vectors and a noise map for each of `noise_shapes` → images in about [-1, 1]."""
        return self.synthesis_network(w, noise)

    def __call__(self, z: Float[Array, "n z_size"], noise: NoiseMaps) -> Images:
        """One latent per image, shared by all its layers, and class 0."""
        w = self.mapping(z, jnp.zeros(len(z), int) if self.classes else None)
        return self.synthesis(jnp.repeat(w[:, None], self.num_layers, axis=1), noise)


class Mapping(nn.Module):
    """Each layer's gain is √2, part of it in the weights and part after the activation."""

    latent_size: int
    layers: int
    activation_gain: float
    width: int
    attribute_kinds: tuple[int, ...]
    classes: int
    label_size: int

    @nn.compact
    def __call__(
        self, z: Float[Array, "n z_size"], label: Int[Array, "n"] | None
    ) -> Float[Array, "n d"]:
        kinds = self.attribute_kinds
        x = attribute_features(z, kinds) if kinds else pixel_norm(z)
        if label is not None:
            embedding = Dense(self.label_size, name="embed")(jax.nn.one_hot(label, self.classes))
            x = jnp.concatenate([x, pixel_norm(embedding)], axis=-1)
        gain = SQRT2 / self.activation_gain
        for i in range(self.layers):
            width = self.width if i < self.layers - 1 else self.latent_size
            dense = Dense(width, gain=gain, lr_multiplier=0.01, name=f"dense_{i}")
            x = leaky_relu(dense(x), self.activation_gain)
        return x


def attribute_features(
    z: Float[AnyArray, "n z_size"], kinds: tuple[int, ...]
) -> Float[Array, "n features"]:
    """What Gaussian coordinates say of attributes: 4 features of a number, k of one of k kinds.

    The first coordinates are numbers. They come as z itself, as t = 2Φ(z) − 1, which is uniform in
    [−1, 1], and as cos πt and sin πt, since some numbers are angles. The others come in groups of
    sizes `kinds`: the largest of a group says of which kind something is, and softmax(8z), which
    the network sees, nearly tells it.
    """
    ends = z.shape[-1] - sum(kinds) + np.cumsum([0, *kinds])
    numbers, *groups = jnp.split(z, ends[:-1], axis=-1)
    t = 2 * jax.scipy.special.ndtr(numbers) - 1
    features = [numbers, t, jnp.cos(np.pi * t), jnp.sin(np.pi * t)]
    return jnp.concatenate(features + [jax.nn.softmax(8 * group) for group in groups], axis=-1)


def truncate(
    w: Float[AnyArray, "*batch layers d"],
    average: Float[AnyArray, "d"],
    psi: float,
    layers: int | None = None,
) -> Float[Array, "*batch layers d"]:
    """The truncation trick: style vectors w drawn towards their `average`.

    w' = average + psi · (w − average) in the first `layers`, or in all: with psi from 1 to 0,
    images gain in quality and lose in variety (Karras et al., CVPR 2019, appendix B). The average
    of published weights is in their parameters, as "latent_average".
    """
    layers = w.shape[-2] if layers is None else layers
    factors = jnp.where(jnp.arange(w.shape[-2]) < layers, psi, 1)[:, None]
    return jnp.asarray(average) + factors * (w - average)
