"""StyleGAN 2 (Karras et al., CVPR 2020): the skip generator, the residual discriminator."""

import functools
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jaxtyping import Float

from pulse_jax.generators.layers import (
    SQRT2,
    Dense,
    blur,
    conv2d,
    equalised_kernel,
    leaky_relu,
    strided_conv2d,
    transposed_conv2d,
    upsample,
)
from pulse_jax.generators.style_network import Images, NoiseMaps, StyleNetwork, Styles
from pulse_jax.types import AnyArray

SMOOTHING = (0.125, 0.375, 0.375, 0.125)  # the resampling filter [1, 3, 3, 1], normalised
DOUBLED = tuple(2 * tap for tap in SMOOTHING)  # keeps the mean after zero insertion


class StyleGAN2(StyleNetwork):
    """Mapping and synthesis networks of StyleGAN 2.

    `channels` are those at side 4, 8, …, `resolution`. Each convolution takes its own style vector;
    a side's ToRGB shares that of the next side's first convolution, as in the official programs.
    `conv_clamp` bounds the magnitude of what each layer puts out, ToRGBs included, where a network
    was trained so (stylegan2-ada-pytorch does it for the sake of float16).
    """

    conv_clamp: float | None = None

    activation_gain: ClassVar[float] = SQRT2  # of the mapping's leaky ReLUs

    @property
    def noise_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """One noise map (1, H, W) for each convolution: one at side 4, two at every other side."""
        return tuple((1, 2 ** (i // 2 + 2), 2 ** (i // 2 + 2)) for i in range(1, self.num_layers))

    def setup(self) -> None:
        super().setup()
        self.synthesis_network = Synthesis(
            self.channels, self.conv_clamp, self.image_channels, name="synthesis"
        )


class Synthesis(nn.Module):
    """Convolutions compute in the noise maps' dtype, styles and the sum of the ToRGBs in w's."""

    channels: tuple[int, ...]
    clamp: float | None
    image_channels: int

    @nn.compact
    def __call__(self, w: Styles, noise: NoiseMaps) -> Images:
        conv = functools.partial(StyledConv, clamp=self.clamp)
        to_rgb = functools.partial(ToRGB, self.image_channels, clamp=self.clamp)
        const = self.param("const", nn.initializers.normal(1.0), (1, 4, 4, self.channels[0]))
        x = jnp.broadcast_to(const.astype(noise[0].dtype), (w.shape[0], *const.shape[1:]))
        x = conv(self.channels[0], name="4x4_conv")(x, w[:, 0], noise[0])
        image = to_rgb(name="4x4_to_rgb")(x, w[:, 1])
        for k, features in enumerate(self.channels[1:]):
            side, i = 8 * 2**k, 2 * k + 1
            x = conv(features, up=True, name=f"{side}x{side}_conv_up")(x, w[:, i], noise[i])
            x = conv(features, name=f"{side}x{side}_conv")(x, w[:, i + 1], noise[i + 1])
            image = upsample(image) + to_rgb(name=f"{side}x{side}_to_rgb")(x, w[:, i + 2])
        return image


def clamped(x: Float[Array, "*shape"], clamp: float | None) -> Float[Array, "*shape"]:
    """x, no further from 0 than `clamp`, if that is a number."""
    return x if clamp is None else jnp.clip(x, -clamp, clamp)


class StyledConv(nn.Module):
    """Modulated 3×3 convolution, noise, bias, leaky ReLU, clamp.

    The style scales the input, and demodulation the output (equation 3 of the paper), so the
    kernel stays one for all images of a batch.
    """

    features: int
    up: bool = False
    clamp: float | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w i"],
        w: Float[Array, "n d"],
        noise: Float[Array, "n 1 H W"],
    ) -> Float[Array, "n H W o"]:
        kernel = equalised_kernel(self, (3, 3, x.shape[-1], self.features))
        style = Dense(x.shape[-1], bias_init=1.0, name="style")(w)
        energy = jnp.sum(kernel**2, axis=(0, 1))
        demodulation = lax.rsqrt(style**2 @ energy + 1e-8)
        dtype = x.dtype
        x, kernel = x * style[:, None, None].astype(dtype), kernel.astype(dtype)
        if self.up:
            x = blur(transposed_conv2d(x, kernel), DOUBLED, (1, 0))
        else:
            x = conv2d(x, kernel, (1, 1))
        strength = self.param("noise_strength", nn.initializers.zeros, ())
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x * demodulation[:, None, None].astype(dtype)
        x = x + strength.astype(dtype) * noise.transpose(0, 2, 3, 1) + bias.astype(dtype)
        return clamped(leaky_relu(x, SQRT2), self.clamp)


class ToRGB(nn.Module):
    """Modulated 1×1 convolution to colours, without demodulation, and clamp."""

    features: int
    clamp: float | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], w: Float[Array, "n d"]
    ) -> Float[Array, "n h w {self.features}"]:
        kernel = equalised_kernel(self, (1, 1, x.shape[-1], self.features))
        style = Dense(x.shape[-1], bias_init=1.0, name="style")(w)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = conv2d(x * style[:, None, None].astype(x.dtype), kernel.astype(x.dtype), (0, 0))
        return clamped(x.astype(w.dtype) + bias, self.clamp)


class Discriminator(nn.Module):
    """Residual discriminator: images in [-1, 1] → logits.

    A higher logit means more like the training data. `channels` as in the generator, from side 4
    up. One feature is the standard deviation over groups of `group_size` images: n is a multiple
    of that, or less. The convolutions compute in the images' dtype, and what follows the last
    downscaling at least in float32.
    """

    channels: tuple[int, ...]
    group_size: int = 4

    @nn.compact
    def __call__(self, image: Float[Array, "n side side 3"]) -> Float[Array, "n"]:
        side = 4 * 2 ** (len(self.channels) - 1)
        x = Conv(self.channels[-1], 1, name=f"{side}x{side}_from_rgb")(image)
        for features in self.channels[-2::-1]:
            name = f"{side}x{side}"
            y = Conv(x.shape[-1], 3, name=f"{name}_conv")(x)
            y = Conv(features, 3, down=True, name=f"{name}_conv_down")(y)
            x = blur(x, SMOOTHING, (1, 1))[:, ::2, ::2]
            x = (Conv(features, 1, activate=False, name=f"{name}_skip")(x) + y) / SQRT2
            side //= 2
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = jnp.concatenate([x, minibatch_deviation(x, self.group_size)], axis=-1)
        x = Conv(self.channels[0], 3, name="4x4_conv")(x)
        x = x.reshape(x.shape[0], -1)
        x = leaky_relu(Dense(self.channels[0], name="dense")(x), SQRT2)
        return Dense(1, name="logit")(x)[:, 0]


class Conv(nn.Module):
    """Convolution, bias and leaky ReLU.

    `down` filters and halves the image on the way; `activate=False` is the bare kernel.
    """

    features: int
    size: int
    down: bool = False
    activate: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n H W o"]:
        kernel = equalised_kernel(self, (self.size, self.size, x.shape[-1], self.features))
        kernel = kernel.astype(x.dtype)
        if self.down:
            x = strided_conv2d(blur(x, SMOOTHING, (2, 3)), kernel)
        else:
            x = conv2d(x, kernel, (self.size // 2, self.size // 2))
        if not self.activate:
            return x
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return leaky_relu(x + bias.astype(x.dtype), SQRT2)


def minibatch_deviation(x: Float[AnyArray, "n h w c"], group_size: int) -> Float[Array, "n h w 1"]:
    """One channel with the mean standard deviation over each group.

    Of G groups, image i is in group i mod G. Raises ValueError if n isn't a multiple of
    `group_size`, nor less.
    """
    n, h, w, c = x.shape
    group_size = min(group_size, n)
    if n % group_size:
        raise ValueError(f"{n} images don't divide into groups of {group_size}")
    groups = x.reshape(group_size, n // group_size, h, w, c)
    deviation = jnp.sqrt(jnp.var(groups, axis=0) + 1e-8).mean(axis=(1, 2, 3))
    return jnp.broadcast_to(jnp.tile(deviation, group_size)[:, None, None, None], (n, h, w, 1))
