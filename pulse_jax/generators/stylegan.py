"""StyleGAN (Karras et al., CVPR 2019): mapping and synthesis networks, as PULSE uses them."""

from collections.abc import Callable
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
    nearest_conv2d,
)
from pulse_jax.generators.style_network import Images, NoiseMaps, StyleNetwork, Styles

SMOOTHING = (0.25, 0.5, 0.25)  # the resampling filter [1, 2, 1], normalised
FUSED_FROM = 128  # the output side from which the official programs fuse upsampling and convolution


class StyleGAN(StyleNetwork):
    """Mapping and synthesis networks of StyleGAN.

    `channels` are those at side 4, 8, …, `resolution`. `norm_epsilon`, of the instance norm, is
    1e-5 in PULSE and 1e-8 in the official TensorFlow program.
    """

    norm_epsilon: float = 1e-5

    activation_gain: ClassVar[float] = 1.0  # of the mapping's leaky ReLUs

    @property
    def noise_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """One noise map (1, H, W) for each layer, two at every side."""
        return tuple((1, 2 ** (i // 2 + 2), 2 ** (i // 2 + 2)) for i in range(self.num_layers))

    def setup(self) -> None:
        super().setup()
        self.synthesis_network = Synthesis(
            self.channels, self.norm_epsilon, self.image_channels, name="synthesis"
        )


class Synthesis(nn.Module):
    channels: tuple[int, ...]
    norm_epsilon: float
    image_channels: int

    @nn.compact
    def __call__(self, w: Styles, noise: NoiseMaps) -> Images:
        const = self.param("const", nn.initializers.ones, (1, 4, 4, self.channels[0]))
        x = jnp.broadcast_to(const, (w.shape[0], *const.shape[1:]))
        for i in range(2 * len(self.channels)):
            side = 2 ** (i // 2 + 2)
            if i == 0:
                name, convolve = "const", None
            elif i % 2:
                name, convolve = "conv", same_size
            else:
                name, convolve = "conv_up", nearest_up if side < FUSED_FROM else fused_up
            name = f"{side}x{side}_{name}"
            layer = Layer(self.channels[i // 2], convolve, self.norm_epsilon, name=name)
            x = layer(x, w[:, i], noise[i])
        return ToRGB(self.image_channels, name="to_rgb")(x)


def same_size(
    x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "n h w o"]:
    return conv2d(x, kernel, (1, 1))


def nearest_up(
    x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "n 2*h 2*w o"]:
    """Nearest ×2, convolution, blur."""
    return blur(nearest_conv2d(x, kernel), SMOOTHING, (1, 1))


def fused_up(
    x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "n 2*h 2*w o"]:
    """Transposed convolution, blur: the same as `nearest_up` with the kernel flipped."""
    return nearest_up(x, kernel[::-1, ::-1])


class Layer(nn.Module):
    """Convolution (but for the first layer), bias, noise, leaky ReLU, instance norm, style."""

    features: int
    convolve: Callable[[Array, Array], Array] | None
    norm_epsilon: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w i"],
        w: Float[Array, "n d"],
        noise: Float[Array, "n 1 H W"],
    ) -> Float[Array, "n H W o"]:
        if self.convolve is not None:
            kernel = equalised_kernel(self, (3, 3, x.shape[-1], self.features), SQRT2)
            x = self.convolve(x, kernel)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        strength = self.param("noise_strength", nn.initializers.zeros, (self.features,))
        x = leaky_relu(x + bias + strength * noise.transpose(0, 2, 3, 1))

        style = Dense(2 * self.features, name="style")(w)[:, None, None]  # (N, 1, 1, 2C)
        scale, shift = jnp.split(style, 2, axis=-1)
        x = x - jnp.mean(x, axis=(1, 2), keepdims=True)
        variance = jnp.mean(x**2, axis=(1, 2), keepdims=True)
        return x * (lax.rsqrt(variance + self.norm_epsilon) * (scale + 1)) + shift


class ToRGB(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w {self.features}"]:
        kernel = equalised_kernel(self, (1, 1, x.shape[-1], self.features))
        return conv2d(x, kernel, (0, 0)) + self.param(
            "bias", nn.initializers.zeros, (self.features,)
        )
