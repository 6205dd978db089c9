"""StyleGAN 3 (Karras et al., NeurIPS 2021): alias-free synthesis, configs T and R.

Feature maps are samples of continuous signals of known bandwidth. A nonlinearity adds frequencies
that these samples can't hold. So it is applied to an upsampled signal, and what has become too high
is filtered out before the signal is downsampled again.
"""

import functools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jaxtyping import Float, Float32, PRNGKeyArray

from pulse_jax.generators.layers import SQRT2, Dense, conv2d, leaky_relu
from pulse_jax.generators.style_network import Images, NoiseMaps, StyleNetwork, Styles
from pulse_jax.generators.stylegan2 import clamped


class Signal(NamedTuple):
    """What a layer puts out. The rate and the frequencies are per side of the final image."""

    size: int  # samples along a side, a margin around the image included
    rate: int  # samples
    cutoff: float  # of the low-pass filter
    half_width: float  # of the filter's transition band


class Resampling(NamedTuple):
    """How a convolution's output becomes the next signal: upsampled, leaky ReLU, downsampled."""

    size: int  # of what comes out
    up: int
    up_filter: Float32[np.ndarray, "n"]  # the factor of a separable filter
    down: int
    down_filter: Float32[np.ndarray, "n *n"]  # a factor, too, or (n, n) if radially symmetric
    padding: tuple[int, int]  # zeros before and after the upsampled signal, or samples cropped


Phases = Sequence[Sequence[Float[Array, "n H W c"]]]
"""An upsampled signal: `phases[a][b]` has the samples [a::up, b::up]. So nothing is multiplied with
inserted zeros or computed to be dropped, and a filter adds up contiguous slices."""


class StyleGAN3(StyleNetwork):
    """Mapping and synthesis networks of StyleGAN 3.

    `channels` are those of the convolutions; the Fourier features have the first of them. Each
    convolution takes a style vector, and so do the Fourier features before them and ToRGB after
    them. There is no noise. Config T is the default, R is `kernel_size=1` and `radial_filters`.

    The last `critical_layers` convolutions sample as sparsely as the sampling theorem allows.
    Before them, cutoffs grow geometrically from `first_cutoff` to half the resolution, and the
    least stopbands from `first_stopband` to `last_stopband` times that half. Feature maps have
    `margin` samples more at each side than the image. Filters have `filter_size` taps for each
    sample of the lower rate. Leaky ReLUs work at `lrelu_upsampling` times the higher rate, and
    `conv_clamp` bounds the magnitude of what they and ToRGB put out. See section 3.2 and appendix C
    of the paper.

    Deviation: styles are normalised for each image by itself, in the original over the batch. It
    matters only for the 1e-8 in the demodulation: images differ by less than that.
    """

    mapping_layers: int = 2
    kernel_size: int = 3
    radial_filters: bool = False
    critical_layers: int = 2
    first_cutoff: float = 2.0
    first_stopband: float = 2**2.1
    last_stopband: float = 2**0.3
    margin: int = 10
    filter_size: int = 6
    lrelu_upsampling: int = 2
    conv_clamp: float | None = None
    output_scale: float = 0.25

    activation_gain: ClassVar[float] = SQRT2  # of the mapping's leaky ReLUs

    @property
    def num_layers(self) -> int:
        """Style vectors of one image: those of the convolutions and two more."""
        return len(self.channels) + 2

    def check_sizes(self) -> None:
        """Raises ValueError for a resolution or a number of layers that can't be."""
        if self.resolution < 4 or self.resolution & (self.resolution - 1):
            raise ValueError(f"the resolution must be a power of two, got {self.resolution}")
        if not 1 <= self.critical_layers < len(self.channels):
            raise ValueError(
                f"critical_layers must be at least 1 and fewer than the {len(self.channels)} "
                f"channel counts, got {self.critical_layers}"
            )
        rates = [signal.rate for signal in self.signals]
        if rates != sorted(rates):
            raise ValueError(f"the sampling rates must not fall from layer to layer, got {rates}")

    @property
    def signals(self) -> list[Signal]:
        """The `Signal` of each convolution. The first is that of the Fourier features, too."""
        layers = len(self.channels)
        progress = np.minimum(np.arange(layers) / (layers - self.critical_layers), 1)
        last_cutoff = self.resolution / 2
        last_stopband = last_cutoff * self.last_stopband
        cutoffs = self.first_cutoff * (last_cutoff / self.first_cutoff) ** progress
        stopbands = self.first_stopband * (last_stopband / self.first_stopband) ** progress
        rates = 2 ** np.ceil(np.log2(np.minimum(2 * stopbands, self.resolution)))
        half_widths = np.maximum(stopbands, rates / 2) - cutoffs
        sizes = rates + 2 * self.margin
        sizes[-1] = self.resolution
        columns = sizes.astype(int), rates.astype(int), cutoffs, half_widths
        return [Signal(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    @property
    def resamplings(self) -> list[Resampling]:
        """The `Resampling` of each convolution."""
        signals, result = self.signals, list[Resampling]()
        for i, (source, target) in enumerate(zip(signals[:1] + signals, signals, strict=False)):
            rate = max(source.rate, target.rate) * self.lrelu_upsampling
            up, down = rate // source.rate, rate // target.rate
            radial = self.radial_filters and i < len(signals) - self.critical_layers
            up_filter = lowpass(source, self.filter_size * up if up > 1 else 1, rate)
            down_filter = lowpass(target, self.filter_size * down if down > 1 else 1, rate, radial)
            # What the last sample needs, and what there is of a convolution that loses no border.
            needed = (target.size - 1) * down + len(up_filter) + len(down_filter) - 1
            missing = needed - (source.size + self.kernel_size - 1) * up
            before = (missing + up) // 2  # keeps the image centred
            padding = before, missing - before
            result.append(Resampling(target.size, up, up_filter, down, down_filter, padding))
        return result

    def setup(self) -> None:
        super().setup()
        self.synthesis_network = Synthesis(
            self.channels,
            self.kernel_size,
            self.signals[0],
            tuple(self.resamplings),
            self.conv_clamp,
            self.output_scale,
            self.image_channels,
            name="synthesis",
        )


def lowpass(
    signal: Signal, taps: int, rate: int, radial: bool = False
) -> Float32[np.ndarray, "{taps} *n"]:
    """The low-pass filter for a signal, at a sampling rate; float32, as the original stores it.

    A sinc times a Kaiser window, (taps,), to be used along both axes. Or, if `radial`, what passes
    a disc of frequencies, (taps, taps): a jinc times the window along both axes. Appendix C of the
    paper.
    """
    position = (np.arange(taps) - (taps - 1) / 2) / rate
    # Kaiser's formulas, for the attenuation that so many taps allow and for the window's shape.
    attenuation = 2.285 * (taps - 1) * math.pi * (2 * signal.half_width) / (rate / 2) + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    else:
        excess = max(attenuation - 21, 0)
        beta = 0.5842 * excess**0.4 + 0.07886 * excess
    window = np.kaiser(taps, beta)
    if radial:
        # J1(u) / u is the mean of cos(u cos θ) sin² θ; so many angles give it to the last bit.
        angle = 2 * math.pi * np.arange(128) / 128
        u = 2 * math.pi * signal.cutoff * np.hypot(position[:, None], position)
        jinc = np.cos(u[..., None] * np.cos(angle)) @ np.sin(angle) ** 2
        result = jinc * np.outer(window, window)
    else:
        result = np.sinc(2 * signal.cutoff * position) * window
    return (result / result.sum()).astype(np.float32)


class Synthesis(nn.Module):
    channels: tuple[int, ...]
    kernel_size: int
    input: Signal
    resamplings: tuple[Resampling, ...]
    clamp: float | None
    output_scale: float
    image_channels: int

    @nn.compact
    def __call__(self, w: Styles, noise: NoiseMaps) -> Images:
        x = FourierFeatures(self.channels[0], self.input, name="input")(w[:, 0])
        for i, resampling in enumerate(self.resamplings):
            layer = self.channels[i], self.kernel_size, resampling, self.clamp
            x = FilteredConv(*layer, name=f"conv_{i}")(x, w[:, i + 1])
        to_rgb = ToRGB(self.image_channels, self.clamp, name="to_rgb")
        return to_rgb(x, w[:, -1]) * self.output_scale


class FourierFeatures(nn.Module):
    """Waves that the style turns and shifts, mixed.

    In float32 at least, and in full precision also on accelerators: a wave of several periods would
    be lost in bfloat16.
    """

    features: int
    signal: Signal

    @nn.compact
    def __call__(self, w: Float[Array, "n d"]) -> Float[Array, "n side side c"]:
        def disc(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "n 2"]:
            points = jax.random.normal(key, shape)
            radii = jnp.linalg.norm(points, axis=1, keepdims=True)
            return bandwidth * points / (radii * jnp.exp(radii**2 / 4))

        size, rate, bandwidth, _ = self.signal
        frequencies = self.param("frequencies", disc, (self.features, 2))  # across, down
        phases = self.param("phases", nn.initializers.uniform(1.0), (self.features,))  # in periods
        transform = self.param("transform", lambda key: jnp.eye(3))  # the user's, of the image
        kernel = self.param("kernel", nn.initializers.normal(1.0), (self.features, self.features))

        dtype, wide = w.dtype, jnp.promote_types(w.dtype, jnp.float32)
        w, frequencies, phases = (x.astype(wide) for x in (w, frequencies, phases))
        start = nn.initializers.constant(jnp.array([1.0, 0.0, 0.0, 0.0]))  # as it is
        dense = nn.Dense(
            4,
            kernel_init=nn.initializers.zeros,
            bias_init=start,
            precision="highest",
            name="style",
        )
        style = dense(w / math.sqrt(w.shape[-1]))
        style = style / jnp.linalg.norm(style[:, :2], axis=1, keepdims=True)
        cos, sin, x, y = style.T
        motion = jnp.array([[cos, -sin, sin * y - cos * x], [sin, cos, -sin * x - cos * y]])
        product = functools.partial(jnp.matmul, precision="highest")
        moved = product(frequencies, product(jnp.moveaxis(motion, -1, 0), transform))  # (N, C, 3)
        frequencies, phases = moved[..., :2], phases + moved[..., 2]
        # Waves that the user's transform makes too fast fade away.
        excess = jnp.linalg.norm(frequencies, axis=-1) - bandwidth
        amplitudes = jnp.clip(1 - excess / (rate / 2 - bandwidth), 0, 1)  # (N, C)

        position = jnp.asarray((np.arange(size) - (size - 1) / 2) / rate, wide)[:, None]
        across = position * frequencies[:, None, :, 0] + phases[:, None]  # (N, W, C)
        down = position * frequencies[:, None, :, 1]  # (N, H, C)
        waves = jnp.sin(2 * math.pi * (down[:, :, None] + across[:, None]))
        waves = (waves * amplitudes[:, None, None]).astype(dtype)
        return waves @ (kernel / math.sqrt(self.features))


class FilteredConv(nn.Module):
    """Modulated convolution, bias, and a leaky ReLU between up- and downsampling.

    The style scales the input, and demodulation the output, so the kernel stays one for all images
    of a batch. Both are normalised before.
    """

    features: int
    kernel_size: int
    resampling: Resampling
    clamp: float | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w i"], w: Float[Array, "n d"]
    ) -> Float[Array, "n H W o"]:
        inputs, size = x.shape[-1], self.kernel_size
        shape = (size, size, inputs, self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        kernel = kernel * lax.rsqrt(jnp.mean(kernel**2, axis=(0, 1, 2)))
        style = Dense(inputs, bias_init=1.0, name="style")(w)
        style = style * lax.rsqrt(jnp.mean(style**2, axis=-1, keepdims=True))
        demodulation = lax.rsqrt(style**2 @ jnp.sum(kernel**2, axis=(0, 1)) + 1e-8)
        scale = demodulation * input_gain(self)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        low, high, skip = border(self.resampling, x.shape[1] + size - 1)

        # A full convolution, less the rows that aren't used.
        edges = [size - 1 + min(rows, 0) for rows in (low, high)]
        crop = min(edges[0], 0), min(edges[1], 0)
        x = _pad(x, crop, crop) * style[:, None, None]
        x = conv2d(x, kernel, (max(edges[0], 0), max(edges[1], 0)))

        @jax.checkpoint  # upsampled signals are computed again rather than kept
        def activate(x: Array, scale: Array, bias: Array) -> Array:
            x = x * scale[:, None, None] + bias
            phases = upsample(x, self.resampling, (max(low, 0), max(high, 0)))
            phases = [[clamped(leaky_relu(y, SQRT2), self.clamp) for y in row] for row in phases]
            return downsample(phases, self.resampling, skip)

        return activate(x, scale, bias)


class ToRGB(nn.Module):
    """Modulated 1×1 convolution to colours, without demodulation, and clamp."""

    features: int
    clamp: float | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], w: Float[Array, "n d"]
    ) -> Float[Array, "n h w {self.features}"]:
        inputs = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(1.0), (1, 1, inputs, self.features))
        style = Dense(inputs, bias_init=1.0, name="style")(w) / math.sqrt(inputs)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = conv2d(x * style[:, None, None], kernel, (0, 0)) * input_gain(self) + bias
        return clamped(x, self.clamp)


def input_gain(module: nn.Module) -> Float[Array, ""]:
    """What gives a layer's input unit variance, from its mean square as tracked in training."""
    return lax.rsqrt(module.param("input_magnitude", nn.initializers.ones, ()))


def border(resampling: Resampling, rows: int) -> tuple[int, int, int]:
    """What `upsample` and `downsample` need to know of an image with so many rows.

    Returns (low, high, skip): how many rows of zeros to add before and after it, or to drop if
    negative, and how many samples come before the first that is used, once it is upsampled.
    """
    size, up, up_filter, down, down_filter, padding = resampling
    low, offset = divmod(padding[0], up)
    skip = up - 1 - offset
    taps, ratio = len(up_filter) // up, up // down
    span = -(-(skip + down * (ratio - 1) + len(down_filter)) // up)
    high = -(-size // ratio) + span + taps - 2 - rows - low
    return low, high, skip


def upsample(
    x: Float[Array, "n h w c"], resampling: Resampling, padding: tuple[int, int]
) -> Phases:
    """The phases of an image with zeros inserted, filtered along both axes with a gain of `up`.

    `padding` = (low, high), rows and columns of zeros that are added first.
    """
    up, taps, none = resampling.up, np.float64(resampling.up_filter), (0, 0)
    kernels = up * taps.reshape(-1, up)[::-1].T  # (phase, tap)
    rows = filter_bank([x], kernels[:, None, :, None], (padding, none))
    return [filter_bank([row], kernels[:, None, None, :], (none, padding)) for row in rows]


def downsample(phases: Phases, resampling: Resampling, skip: int) -> Float[Array, "n size size c"]:
    """An image of every `down`th sample of the filtered signal."""
    size, up, _, down, taps, _ = resampling
    ratio, none = up // down, ((0, 0), (0, 0))  # where sampling rates grow, it has phases, too
    rows = -(-size // ratio)
    span = phases[0][0].shape[1] - rows + 1
    # Which tap the sample `up * i + p` is multiplied with, for each phase of the image.
    sample = up * np.arange(span) + np.arange(up)[:, None]
    tap = sample - skip - down * np.arange(ratio)[:, None, None]  # (phase, p, i)
    selection = np.float64(tap[..., None] == np.arange(len(taps)))
    if taps.ndim == 1:
        kernels = selection @ taps[::-1]
        columns = [filter_bank(row, kernels[:, :, None, :], none) for row in phases]
        turned = zip(*columns, strict=True)
        image: Any = zip(*(filter_bank(c, kernels[..., None], none) for c in turned), strict=True)
    else:
        kernels = np.einsum("apiu,bqjv,uv->abpqij", selection, selection, taps[::-1, ::-1])
        kernels = kernels.reshape(ratio**2, up**2, span, span)
        flat = filter_bank([y for row in phases for y in row], kernels, none)
        image = [flat[a : a + ratio] for a in range(0, ratio**2, ratio)]
    image = jnp.stack([jnp.stack(row, axis=3) for row in image], axis=2)  # (N, H, a, W, b, C)
    return image.reshape(-1, ratio * rows, ratio * rows, image.shape[-1])[:, :size, :size]


def filter_bank(
    images: Sequence[Float[Array, "n h w c"]],
    kernels: Float[np.ndarray, "o i kh kw"],
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> tuple[Float[Array, "n H W c"], ...]:
    """Images y_o = Σ_i x_i ⋆ kernels[o, i], correlated in all channels alike.

    `kernels` are constants. `padding` = ((low, high), (low, high)), of zeros, for the
    two axes; negative, it crops. The derivative rule is the bank turned round; as that of `conv2d`
    it serves reverse mode alone.
    """
    height, width = kernels.shape[2:]
    # XLA's CPU compiler keeps what is padded. Else it fuses the two passes of a separable filter,
    # and computes the first anew for each tap of the second: together up to ten times as slow. So
    # there is a row or column more across these, in what is filtered and not in the result.
    across = (int(height == 1), int(width == 1))

    @jax.custom_vjp
    def apply(images: tuple[Array, ...]) -> tuple[Array, ...]:
        edges = [(low, high + more) for (low, high), more in zip(padding, across, strict=True)]
        images = tuple(_pad(image, *edges) for image in images)
        h, w = images[0].shape[1] - height + 1, images[0].shape[2] - width + 1

        def terms(o: int) -> Iterator[Array]:
            for i, a, b in np.argwhere(kernels[o]):
                yield float(kernels[o, i, a, b]) * images[i][:, a : a + h, b : b + w]

        sums = (functools.reduce(operator.add, terms(o)) for o in range(len(kernels)))
        return tuple(y[:, : h - across[0], : w - across[1]] for y in sums)

    def backward(_: None, cotangents: tuple[Array, ...]) -> tuple[tuple[Array, ...]]:
        turned = kernels.swapaxes(0, 1)[:, :, ::-1, ::-1]
        (top, bottom), (left, right) = padding
        edges = (height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right)
        return (filter_bank(cotangents, turned, edges),)

    apply.defvjp(lambda images: (apply(images), None), backward)
    return apply(tuple(images))


def _pad(
    x: Float[Array, "n h w c"], rows: tuple[int, int], columns: tuple[int, int]
) -> Float[Array, "n H W c"]:
    """Images with (low, high) rows and columns of zeros added, or cropped where negative."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))
