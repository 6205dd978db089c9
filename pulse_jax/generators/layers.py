"""Building blocks of the style generators: convolutions, resampling filters, equalised layers.

Images are NHWC, and kernels HWIO. Every convolution here has stride 1, and so has every input
gradient, since XLA's CPU compiler runs no other form fast inside a loop. Resampling convolutions
are written in polyphase form, in which nothing is multiplied with inserted zeros.
"""

import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jaxtyping import Float

SQRT2 = math.sqrt(2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv2d(
    x: Float[Array, "n h w i"], kernel: Float[Array, "k k i o"], padding: tuple[int, int]
) -> Float[Array, "n H W o"]:
    """Cross-correlation of images with a square kernel.

    `padding` is the number of zeros before and after, along both axes. The input gradient is the
    correlation of the cotangent with the flipped, transposed kernel. Derivatives are in reverse
    mode, to any order, as reverse over reverse. Forward mode (`jax.jvp`, `jax.hessian`) raises
    TypeError.
    """

    def correlate(x: Array, kernel: Array, padding: tuple[int, int] = padding) -> Array:
        return lax.conv_general_dilated(
            x, kernel, (1, 1), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def padded(x: Array, kernel: Array) -> Array:
        return correlate(x, kernel, (0, 1))[:, :-1, :-1]

    if kernel.shape[0] > 1 and padding == (0, 0):
        # Without any padding XLA's CPU compiler takes three to four times as long.
        return lax.platform_dependent(x, kernel, cpu=padded, default=correlate)
    return correlate(x, kernel)


def _conv2d_forward(
    x: Array, kernel: Array, padding: tuple[int, int]
) -> tuple[Array, tuple[Array, Array]]:
    return conv2d(x, kernel, padding), (x, kernel)


def _conv2d_backward(
    padding: tuple[int, int], residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    (low, high), size = padding, kernel.shape[0]
    # The barrier has XLA take the flipped kernel out of a loop of steps that share their weights.
    flipped = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    grad_x = conv2d(cotangent, flipped, (size - 1 - low, size - 1 - high))
    return grad_x, _kernel_gradient(x, cotangent, size, padding)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _kernel_gradient(
    x: Float[Array, "n h w i"],
    cotangent: Float[Array, "n H W o"],
    size: int,
    padding: tuple[int, int],
) -> Float[Array, "{size} {size} i o"]:
    """The gradient of `conv2d` for its kernel; dead code where the weights are frozen."""
    return lax.platform_dependent(
        x,
        cotangent,
        cpu=functools.partial(_as_products, size=size, padding=padding),
        default=functools.partial(_as_convolution, padding=padding),
    )


def _as_convolution(
    x: Float[Array, "n h w i"], cotangent: Float[Array, "n H W o"], padding: tuple[int, int]
) -> Float[Array, "k k i o"]:
    return lax.conv_general_dilated(
        x, cotangent, (1, 1), (padding, padding), dimension_numbers=("CHWN", "IHWO", "HWNC")
    )


def _as_products(
    x: Float[Array, "n h w i"],
    cotangent: Float[Array, "n H W o"],
    size: int,
    padding: tuple[int, int],
) -> Float[Array, "{size} {size} i o"]:
    """Image by image, since one's patches fit in the cache: about twice as fast on a CPU."""
    (_, height, width, outputs), inputs = cotangent.shape, x.shape[-1]

    def add_image(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        image, cotangent = pair
        shifts = [image[i : i + height, j : j + width] for i in range(size) for j in range(size)]
        patches = jnp.concatenate(shifts, axis=-1).reshape(height * width, -1)
        return total + cotangent.reshape(height * width, outputs).T @ patches, None

    x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    start = jnp.zeros((outputs, size * size * inputs), x.dtype)
    total, _ = lax.scan(add_image, start, (x, cotangent))
    return total.reshape(outputs, size, size, inputs).transpose(1, 2, 3, 0)


# A 3-tap kernel u, spread over 2 output phases a and 2 input taps t of a polyphase form: [a, t, u].
_NEAREST = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float32)
_TRANSPOSED = np.array([[[0, 0, 1], [1, 0, 0]], [[0, 0, 0], [0, 1, 0]]], np.float32)
# The same for stride 2, over the 2 positions t and the 2 input phases a: [t, a, u].
_STRIDED = np.array([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 0]]], np.float32)


def _spread(
    kernel: Float[Array, "3 3 i o"], phases: Float[np.ndarray, "2 2 3"]
) -> Float[Array, "2 2 2 2 i o"]:
    """Σ_uv phases[·, ·, u] phases[·, ·, v] kernel[u, v, I, O].

    It is computed by sums, which are exact at any matmul precision.
    """
    phases = phases.astype(kernel.dtype)
    rows: Any = sum(phases[:, :, u, None, None, None] * kernel[u] for u in range(3))
    return sum(phases[:, :, v, None, None] * rows[:, :, None, None, v] for v in range(3))


def _polyphase_up(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "3 3 i o"],
    phases: Float[np.ndarray, "2 2 3"],
) -> Float[Array, "n 2*h+2 2*w+2 o"]:
    """A convolution that doubles the sides, at the cost of a 2×2 one into 4 O channels."""
    small = _spread(kernel, phases).transpose(1, 3, 4, 0, 2, 5)
    # The barrier: as in `conv2d`'s derivative.
    small = lax.optimization_barrier(small.reshape(2, 2, kernel.shape[2], -1))
    y = conv2d(x, small, (1, 1))
    n, h, w, _ = y.shape
    y = y.reshape(n, h, w, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(n, 2 * h, 2 * w, -1)


def nearest_conv2d(
    x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "n 2*h 2*w o"]:
    """Nearest-neighbour ×2, then a 3×3 cross-correlation with zero padding 1."""
    return _polyphase_up(x, kernel, _NEAREST)[:, 1:-1, 1:-1]


def transposed_conv2d(
    x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "n 2*h+2 2*w+2 o"]:
    """Transposed 3×3 convolution with stride 2.

    Zeros are inserted into the input, and the kernel is flipped. The last row and column are 0.
    """
    return _polyphase_up(x, kernel, _TRANSPOSED)


def strided_conv2d(
    x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "n h//2-1 w//2-1 o"]:
    """3×3 cross-correlation with stride 2 and without padding.

    The sides must be even. The input's last row and column don't count.
    """
    n, h, w, inputs = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, inputs).transpose(0, 1, 3, 2, 4, 5)
    small = _spread(kernel, _STRIDED).transpose(0, 2, 1, 3, 4, 5)
    return conv2d(
        x.reshape(n, h // 2, w // 2, 4 * inputs), small.reshape(2, 2, 4 * inputs, -1), (0, 0)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def blur(
    x: Float[Array, "n h w c"], taps: tuple[float, ...], padding: tuple[int, int]
) -> Float[Array, "n H W c"]:
    """Correlate each channel with the separable filter `taps` ⊗ `taps`.

    `padding` is the number of zeros before and after, along both axes. The derivative rule applies
    the filter reversed. XLA's own rule adds up padded copies, which takes six times as long. As
    with `conv2d`, there is reverse mode only.
    """
    for axis in (1, 2):
        widths = [(0, 0)] * x.ndim
        widths[axis] = padding
        padded = jnp.pad(x, widths)
        size = padded.shape[axis] - len(taps) + 1
        slices = (lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(len(taps)))
        x = cast(Array, sum(tap * part for tap, part in zip(taps, slices, strict=True)))
    return x


def _blur_backward(
    taps: tuple[float, ...], padding: tuple[int, int], _: None, cotangent: Array
) -> tuple[Array]:
    low, high = padding
    return (blur(cotangent, taps[::-1], (len(taps) - 1 - low, len(taps) - 1 - high)),)


blur.defvjp(lambda x, taps, padding: (blur(x, taps, padding), None), _blur_backward)


def upsample(x: Float[Array, "n h w c"]) -> Float[Array, "n 2*h 2*w c"]:
    """Zero insertion ×2 and the filter [1, 3, 3, 1] / 4 along both axes."""
    for axis in (1, 2):
        size = x.shape[axis]
        widths = [(0, 0)] * x.ndim
        widths[axis] = (1, 1)
        padded = jnp.pad(x, widths)
        before = lax.slice_in_dim(padded, 0, size, axis=axis)
        after = lax.slice_in_dim(padded, 2, size + 2, axis=axis)
        pairs = jnp.stack([(before + 3 * x) / 4, (3 * x + after) / 4], axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x


def leaky_relu(x: Float[Array, "*shape"], gain: float = 1.0) -> Float[Array, "*shape"]:
    """gain · max(x, 0.2 x), with slope 0.2 · gain at 0 as in PyTorch."""
    return gain * jnp.where(x > 0, x, 0.2 * x)


def pixel_norm(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """z / sqrt(mean z² + 1e-8) along the last axis: the mapping network's first step."""
    return z * lax.rsqrt(jnp.mean(z**2, axis=-1, keepdims=True) + 1e-8)


class Dense(nn.Module):
    """x · kernel · gain · lr_multiplier / sqrt(fan_in) + bias · lr_multiplier.

    "Equalised learning rate" (Karras et al., ICLR 2018, section 4.1): the stored weights have
    standard deviation 1 / lr_multiplier.
    """

    features: int
    gain: float = 1.0
    lr_multiplier: float = 1.0
    bias_init: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "n inputs"]) -> Float[Array, "n outputs"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1 / self.lr_multiplier), shape)
        bias = self.param("bias", nn.initializers.constant(self.bias_init), (self.features,))
        scale = self.gain * self.lr_multiplier / math.sqrt(shape[0])
        return x @ (kernel * scale) + bias * self.lr_multiplier


def equalised_kernel(
    module: nn.Module, shape: tuple[int, int, int, int], gain: float = 1.0
) -> Float[Array, "h w i o"]:
    """A module's parameter `kernel`, times gain / sqrt(fan_in).

    It is stored with standard deviation 1.
    """
    kernel = module.param("kernel", nn.initializers.normal(1.0), shape)
    return jnp.asarray(kernel * (gain / math.sqrt(math.prod(shape[:3]))))
