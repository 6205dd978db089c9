"""EDM's denoisers as a Flax module: networks of DDPM++, NCSN++ and ADM kind."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int

from pulse_jax.generators.diffusion.blocks import (
    FIR,
    Attention,
    Conv,
    FourierFeatures,
    Images,
    Resnet,
    TimeEmbedding,
    angles_of_time,
    fir_down,
    frequencies,
    group_norm,
    mean_of_4,
    nearest,
)
from pulse_jax.generators.layers import SQRT2, blur, conv2d, upsample

# Resampling filters as files write them: how they double and halve the sides, and their taps.
FILTERS = {(1, 1): (nearest, mean_of_4, (0.5, 0.5)), (1, 3, 3, 1): (upsample, fir_down, FIR)}


class EDMPrecond(nn.Module):
    """The denoiser D(x, σ) of noisy images x = x_0 + σ n: the mean of x_0.

    D = c_skip x + c_out F(c_in x, ln(σ) / 4), where the network F sees inputs of unit variance
    (Karras et al., arXiv 2206.00364, table 1). `apply({"params": params}, x, sigma)` takes images
    (n, side, side, channels) and σ for all of them or (n,), one for each. With `label_dim` it also
    takes the classes `labels` (n,).

    F is a "SongUNet", DDPM++ or NCSN++ of Song et al., arXiv 2011.13456, or a "DhariwalUNet", ADM
    of Dhariwal and Nichol, arXiv 2105.05233. The fields are the arguments of the authors' program.
    Raises ValueError for other kinds, and for a filter that isn't among `FILTERS`.
    """

    img_resolution: int
    img_channels: int
    model_type: str
    model_channels: int
    channel_mult: tuple[int, ...]
    num_blocks: int
    attn_resolutions: tuple[int, ...]
    label_dim: int = 0
    channel_mult_emb: int = 4
    channel_mult_noise: int = 1
    embedding_type: str = "positional"
    encoder_type: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        for name, known in {
            "model_type": ("SongUNet", "DhariwalUNet"),
            "embedding_type": ("positional", "fourier"),
            "encoder_type": ("standard", "residual"),
            "resample_filter": FILTERS,
        }.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be among {', '.join(map(str, known))}, got {value}")
        super().__post_init__()

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """The height, width and channels of what the network takes."""
        return self.img_resolution, self.img_resolution, self.img_channels

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.label_dim

    @property
    def is_adm(self) -> bool:
        """Whether it is a DhariwalUNet."""
        return self.model_type == "DhariwalUNet"

    @property
    def eps(self) -> float:
        """That of all norms."""
        return 1e-5 if self.is_adm else 1e-6

    def heads(self, features: int) -> int:
        """How many heads an attention has, which isn't there at all if they are 0."""
        return features // 64 if self.is_adm else 1

    @nn.compact
    def __call__(
        self, x: Images, sigma: Float[Array, "*levels"], labels: Int[Array, "n"] | None = None
    ) -> Images:
        sigma = jnp.atleast_1d(jnp.asarray(sigma))
        emb = self._embed(sigma, labels).astype(x.dtype)
        s = sigma[:, None, None, None]
        norm = jnp.sqrt(s**2 + self.sigma_data**2)
        denoised = self._decode(*self._encode(x / norm, emb), emb)
        return (self.sigma_data / norm) ** 2 * x + s * self.sigma_data / norm * denoised

    def _embed(
        self, sigma: Float[Array, "levels"], labels: Int[Array, "n"] | None
    ) -> Float[Array, "_ e"]:
        """The embedding of noise levels and classes, before its last activation."""
        features = self.model_channels * self.channel_mult_noise
        if self.embedding_type == "fourier":
            vector = FourierFeatures(features, name="map_noise")(sigma)
        else:
            end = 0.0 if self.is_adm else 1.0
            sin, cos = angles_of_time(jnp.log(sigma) / 4, frequencies(features // 2, end))
            vector = jnp.concatenate([cos, sin] if self.is_adm else [sin, cos], axis=-1)
        embedding = TimeEmbedding(self.model_channels * self.channel_mult_emb, name="map_layer")
        if not self.label_dim:
            return embedding(vector)
        if labels is None:
            raise ValueError("a network with classes takes labels")
        one_hot = jax.nn.one_hot(labels, self.label_dim, dtype=vector.dtype)
        if self.is_adm:
            emb = embedding(vector)
            return emb + nn.Dense(emb.shape[-1], use_bias=False, name="map_label")(one_hot)
        one_hot = math.sqrt(self.label_dim) * one_hot
        return embedding(vector + nn.Dense(features, name="map_label")(one_hot))

    def _encode(self, x: Images, emb: Float[Array, "_ e"]) -> tuple[Images, list[Array]]:
        """The features of the lowest level, and what the decoder needs of all."""
        _, down, taps = FILTERS[self.resample_filter]

        def filtered(x: Images, kernel: Float[Array, "3 3 i o"]) -> Images:
            """3×3 cross-correlation, then the filter of every second pixel."""
            padding = 1 + (len(taps) - 1) // 2
            return blur(conv2d(x, kernel, (padding, padding)), taps, (0, 0))[:, ::2, ::2]

        first = self.model_channels * (self.channel_mult[0] if self.is_adm else 1)
        side, image = self.img_resolution, x
        h = Conv(first, name=f"enc_{side}x{side}_conv")(x)
        stack = [h]
        for level, multiple in enumerate(self.channel_mult):
            if level:
                side //= 2
                h = self._block(f"enc_{side}x{side}_down", h, emb, h.shape[-1], resample=down)
                if self.encoder_type == "residual":
                    name = f"enc_{side}x{side}_aux_residual"
                    image = Conv(h.shape[-1], convolve=filtered, name=name)(image)
                    image = h = (h + image) / SQRT2
                stack.append(h)
            for i in range(self.num_blocks):
                name, attention = f"enc_{side}x{side}_block{i}", side in self.attn_resolutions
                h = self._block(name, h, emb, self.model_channels * multiple, attention)
                stack.append(h)
        return h, stack

    def _decode(self, h: Images, stack: list[Array], emb: Float[Array, "_ e"]) -> Images:
        up, _, _ = FILTERS[self.resample_filter]
        levels = len(self.channel_mult)
        for level in reversed(range(levels)):
            side = self.img_resolution >> level
            name = f"dec_{side}x{side}"
            if level == levels - 1:
                h = self._block(f"{name}_in0", h, emb, h.shape[-1], attention=True)
                h = self._block(f"{name}_in1", h, emb, h.shape[-1])
            else:
                h = self._block(f"{name}_up", h, emb, h.shape[-1], resample=up)
            for i in range(self.num_blocks + 1):
                h = jnp.concatenate([h, stack.pop()], axis=-1)
                last = i == self.num_blocks
                attention = side in self.attn_resolutions and (self.is_adm or last)
                features = self.model_channels * self.channel_mult[level]
                h = self._block(f"{name}_block{i}", h, emb, features, attention)
        prefix = "out" if self.is_adm else f"dec_{self.img_resolution}x{self.img_resolution}_aux"
        norm = group_norm(_groups(h.shape[-1]), self.eps, f"{prefix}_norm")
        return Conv(self.img_channels, name=f"{prefix}_conv")(nn.silu(norm(h)))

    def _block(
        self,
        name: str,
        h: Images,
        emb: Float[Array, "_ e"],
        features: int,
        attention: bool = False,
        resample: Callable[[Array], Array] | None = None,
    ) -> Images:
        before, divisor = h.shape[-1], 1.0 if self.is_adm else SQRT2
        h = Resnet(
            features,
            (_groups(before), _groups(features)),
            self.eps,
            scale_shift=self.is_adm,
            resample=resample,
            shortcut=resample is not None and not self.is_adm,
            divisor=divisor,
            name=name,
        )(h, emb)
        if attention and (heads := self.heads(features)):
            size, groups = features // heads, _groups(features)
            h = Attention(size, groups, self.eps, divisor, name=f"{name}_attention")(h)
        return h


def _groups(channels: int) -> int:
    """The groups of a norm of so many channels."""
    return min(32, channels // 4)
