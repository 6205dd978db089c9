"""What several U-Nets and decoders share. Images are NHWC, and all convolutions are canonical.

Parameters have the names that diffusers gives them.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jaxtyping import Float

from pulse_jax.generators.layers import blur, conv2d, strided_conv2d

Images = Float[Array, "_ _ _ _"]  # n, h, w and c, which may all change
FIR = (0.125, 0.375, 0.375, 0.125)


def same(x: Images, kernel: Float[Array, "k k i o"]) -> Images:
    """Cross-correlation with zero padding, which keeps the sides."""
    return conv2d(x, kernel, ((len(kernel) - 1) // 2,) * 2)


def halved(x: Images, kernel: Float[Array, "3 3 i o"]) -> Images:
    """3×3 cross-correlation with stride 2 and zero padding 1."""
    return strided_conv2d(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), kernel)


def halved_below(x: Images, kernel: Float[Array, "3 3 i o"]) -> Images:
    """3×3 cross-correlation with stride 2, and one row and column of zeros at the end."""
    return strided_conv2d(jnp.pad(x, ((0, 0), (0, 2), (0, 2), (0, 0))), kernel)


class Conv(nn.Module):
    """A convolution with a bias: `convolve` says of what kind."""

    features: int
    size: int = 3
    convolve: Callable[[Array, Array], Array] = same
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Images) -> Images:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        y = self.convolve(x, jnp.asarray(kernel))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))
        return y


def group_norm(groups: int, eps: float, name: str) -> nn.GroupNorm:
    """Group norm with the biased variance over the channels of a group and all pixels."""
    return nn.GroupNorm(groups, epsilon=eps, use_fast_variance=False, name=name)


def mean_of_4(x: Images) -> Images:
    """Half the sides, by means over 2×2 pixels."""
    n, h, w, c = x.shape
    return jnp.mean(x.reshape(n, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def nearest(x: Images) -> Images:
    """Twice the sides, by copies of pixels."""
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c))
    return x.reshape(n, 2 * h, 2 * w, c)


def fir_down(x: Images) -> Images:
    """Half the sides, with the filter [1, 3, 3, 1] / 8 along both axes."""
    return blur(x, FIR, (1, 1))[:, ::2, ::2]


class Resnet(nn.Module):
    """Norm, SiLU and 3×3 convolution, twice, beside the input.

    `resample` works on both paths. The embedding `emb` (n, e) of the time is added before the
    second norm, or with `scale_shift` scales and shifts after it. The 1×1 convolution of the input
    is there if the channels change, or if `shortcut`. The sum is divided by `divisor`.
    """

    features: int
    groups: tuple[int, int]  # of the two norms
    eps: float
    scale_shift: bool = False
    resample: Callable[[Array], Array] | None = None
    shortcut: bool = False
    divisor: float = 1.0

    @nn.compact
    def __call__(self, x: Images, emb: Float[Array, "_ e"] | None = None) -> Images:
        h = nn.silu(group_norm(self.groups[0], self.eps, "norm1")(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = Conv(self.features, name="conv1")(h)
        norm2 = group_norm(self.groups[1], self.eps, "norm2")
        if emb is None:
            h = norm2(h)
        else:
            width = (1 + self.scale_shift) * self.features
            e = nn.Dense(width, name="time_emb_proj")(nn.silu(emb))[:, None, None]
            if self.scale_shift:
                scale, shift = jnp.split(e, 2, axis=-1)
                h = norm2(h) * (1 + scale) + shift
            else:
                h = norm2(h + e)
        h = Conv(self.features, name="conv2")(nn.silu(h))
        if self.shortcut or x.shape[-1] != self.features:
            x = Conv(self.features, 1, name="conv_shortcut")(x)
        return (x + h) / self.divisor


class Attention(nn.Module):
    """Self-attention among all pixels, beside the input. The sum is divided by `divisor`."""

    head_size: int | None  # None: one head
    groups: int | None  # None: no norm
    eps: float
    divisor: float = 1.0

    @nn.compact
    def __call__(self, x: Images) -> Images:
        n, h, w, c = x.shape
        tokens = x if self.groups is None else group_norm(self.groups, self.eps, "group_norm")(x)
        tokens = tokens.reshape(n, h * w, c)
        q, k, v = (
            nn.Dense(c, name=name)(tokens).reshape(n, h * w, -1, self.head_size or c)
            for name in ("to_q", "to_k", "to_v")
        )
        y = nn.dot_product_attention(q, k, v).reshape(n, h * w, c)
        return (x + nn.Dense(c, name="to_out_0")(y).reshape(x.shape)) / self.divisor


def angles_of_time(
    t: Float[Array, "n"], frequencies: Float[np.ndarray, "f"]
) -> tuple[Float[Array, "n f"], Float[Array, "n f"]]:
    """sin and cos of t · frequency, whose error in float32 doesn't grow with the angle.

    The product is formed in two parts a + b. a has factors of 12 bits, so it is exact, and b is
    small. In one part, an angle near 1000 is off by up to 6e-5.
    """
    exponent_bits = 8 if t.dtype == jnp.float32 else 11
    coarse_t = lax.reduce_precision(t, exponent_bits, 11)[:, None]
    mantissa, exponent = np.frexp(frequencies)
    coarse = np.ldexp(np.round(mantissa * 2**12) / 2**12, exponent)
    fine = (frequencies - coarse).astype(t.dtype)
    coarse = coarse.astype(t.dtype)
    a = coarse_t * coarse
    b = (t[:, None] - coarse_t) * coarse + t[:, None] * fine
    sin_a, cos_a, sin_b, cos_b = jnp.sin(a), jnp.cos(a), jnp.sin(b), jnp.cos(b)
    return sin_a * cos_b + cos_a * sin_b, cos_a * cos_b - sin_a * sin_b


def frequencies(count: int, shift: float = 0.0) -> Float[np.ndarray, "count"]:
    """10000^(−i / (count − shift)) for i < count: those of the positional features of a time."""
    return 10000.0 ** (-np.arange(count) / (count - shift))


class FourierFeatures(nn.Module):
    """[sin, cos] of 2π ln(t) w, for frequencies w that are kept as parameters."""

    features: int

    @nn.compact
    def __call__(self, t: Float[Array, "n"]) -> Float[Array, "n features"]:
        w: Any = self.param("scale", nn.initializers.normal(16.0), (self.features // 2,))
        turns = jnp.log(t)[:, None] * w
        angles = 2 * jnp.pi * (turns - jnp.round(turns))  # whole turns would cost digits
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """linear_2(silu(linear_1(features of a time)))."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n f"]) -> Float[Array, "n features"]:
        x = nn.silu(nn.Dense(self.features, name="linear_1")(x))
        return nn.Dense(self.features, name="linear_2")(x)
