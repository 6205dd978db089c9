"""Style generators, which provide what a search needs: a `Generator`."""

import itertools
import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int, PRNGKeyArray

from pulse_jax.generators.layers import leaky_relu
from pulse_jax.generators.style_network import StyleNetwork
from pulse_jax.types import AnyArray, Frozen, Latents, Params
from pulse_jax.types import Generator as Generator

NOISE_TYPES = ("zero", "fixed", "trainable", "normalised")
SPACES = ("w", "w_full", "z")


def style_generator(
    network: StyleNetwork,
    *,
    noise_type: str = "trainable",
    trainable_noise_layers: int = 5,
    zero_noise_layers: Collection[int] | None = None,
    tile_latent: bool = False,
    equal_start: bool = False,
    style_spread: float | None = None,
    space: str = "w",
    joint_sphere: bool = False,
    exact_radius: bool = False,
    dtype: DTypeLike | None = None,
) -> Generator:
    """A `Generator` from a StyleGAN, in PULSE's latent space (arXiv 2003.03808).

    The mapping network's output is nearly Gaussian once its last activation is undone. So a style
    vector is, per coordinate,
        w = gain · leaky_relu(std · z + mean, 0.2), z ~ N(0, I),
    with mean and std from `params["latent_fit"]`. Each of the L style vectors has its own z, or all
    share one with `tile_latent`. With `equal_start`, which the reference doesn't have, they are
    equal in a sample, as in the images that the generator was trained for. The search then moves
    each by itself.

    With `style_spread`, the z of layer l is √(1 − ρ²) z_0 + ρ e_l, where ρ is the spread, and z_0
    and all e_l are N(0, I). Each layer's z is still N(0, I), and those of two layers are correlated
    by 1 − ρ². This is a prior that generates samples, which GEOCROSS is not: at 0 all layers have
    one style, and at 1 they are independent.

    That is the `space` "w". The space "w_full" whitens by the whole covariance of these
    coordinates, whose root is `params["latent_fit"]["factor"]`. It is the P_N space of Zhu et al.,
    arXiv 2012.09036. The space "z" is the mapping network's own input.

    One point has d coordinates, or with `joint_sphere` all L d of them. Its norm is that of the
    Gaussian sample, which is χ-distributed. With `exact_radius`, the norm is the root of the number
    of its coordinates. Noise maps follow the same rule.

    `noise_type` is one of these:

    - "zero": all noise maps are zero.
    - "fixed": all noise maps are drawn, then left alone.
    - "trainable": all are drawn, and the first `trainable_noise_layers` are searched too, or all if
      there are fewer.
    - "normalised": as "trainable", but what is searched enters the network with mean 0 and mean
      square 1, as in StyleGAN 2's projector.

    The noise maps with numbers in `zero_noise_layers` are zero and not searched, whatever the type.
    By default, that is the last one alone.

    A network with classes has a latent fit for each, and the class is `frozen["label"]`, which
    `sample` draws.

    Weights and activations have the type `dtype`, such as jnp.bfloat16. By default they stay as
    they are. Latents and images keep their types.

    The latents are a dict. "style" is (L, d), or (1, d) with `tile_latent`, or (1, L, d) with
    `joint_sphere`. With `style_spread`, "common" (1, d) and "own" (L, d) replace it. "noise_i" is
    (1, H, W), for each noise map i that is searched. The other noise maps are frozen.

    Raises ValueError for an unknown noise type or space, for a layer to zero that doesn't exist,
    for a negative number of layers, for a `dtype` that isn't of floats, and for a `style_spread`
    outside [0, 1] or together with `tile_latent`, `equal_start` or `joint_sphere`.
    """
    noise_layers = len(network.noise_shapes)
    zero, searched = _sort_noise(
        noise_layers, noise_type, trainable_noise_layers, zero_noise_layers
    )
    if space not in SPACES:
        raise ValueError(f"space must be one of {', '.join(SPACES)}, got {space!r}")
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a type of floats, got {dtype!r}")
    if style_spread is not None:
        if not 0 <= style_spread <= 1:
            raise ValueError(f"style_spread must be in [0, 1], got {style_spread}")
        others = {
            "tile_latent": tile_latent,
            "equal_start": equal_start,
            "joint_sphere": joint_sphere,
        }
        if excluded := [name for name, given in others.items() if given]:
            raise ValueError(f"style_spread={style_spread} excludes {' and '.join(excluded)}")
    size = network.z_size if space == "z" else network.latent_size

    def draw_style(key: PRNGKeyArray) -> Latents:
        vectors = 1 if tile_latent else network.num_layers
        if style_spread is not None:
            common, own = jnp.split(jax.random.normal(key, (1 + vectors, size)), [1])
            return {"common": common, "own": own}
        drawn = 1 if equal_start else vectors
        style = jnp.broadcast_to(jax.random.normal(key, (drawn, size)), (vectors, size))
        return {"style": style[None] if joint_sphere else style}

    def sample(key: PRNGKeyArray) -> tuple[Latents, Frozen]:
        style_key, *noise_keys = jax.random.split(key, 1 + noise_layers)
        latents = draw_style(style_key)
        frozen: dict[str, Array] = {}
        for i, (noise_key, shape) in enumerate(zip(noise_keys, network.noise_shapes, strict=True)):
            noise = jnp.zeros(shape) if i in zero else jax.random.normal(noise_key, shape)
            (latents if i in searched else frozen)[f"noise_{i}"] = noise
        if network.classes:
            label_key = jax.random.fold_in(key, 1 + noise_layers)
            frozen["label"] = jax.random.randint(label_key, (), 0, network.classes)
        if exact_radius:
            latents = jax.tree.map(_with_unit_mean_square, latents)
        return latents, frozen

    def styles(params: Params, latents: Latents, frozen: Frozen) -> Float[Array, "layers d"]:
        if style_spread is None:
            z = jnp.asarray(latents["style"]).reshape(-1, size)
        else:
            common, own = jnp.asarray(latents["common"]), jnp.asarray(latents["own"])
            z = math.sqrt(1 - style_spread**2) * common + style_spread * own
        w: Any
        if space == "z":
            label = jnp.full(len(z), frozen["label"]) if network.classes else None
            w = network.apply({"params": params}, z, label, method="mapping")
        else:
            fit = params["latent_fit"]
            if network.classes:
                fit = jax.tree.map(lambda leaf: leaf[frozen["label"]], fit)
            if space == "w_full":
                z = jnp.matmul(z, fit["factor"].T, precision="highest")
            else:
                z = z * fit["std"]
            w = leaky_relu(z + fit["mean"], network.activation_gain)
        return jnp.broadcast_to(w, (network.num_layers, network.latent_size))

    def synthesize(params: Params, latents: Latents, frozen: Frozen) -> Float[Array, "R R C"]:
        maps = latents | frozen
        if noise_type == "normalised":
            for i in searched:
                noise = maps[f"noise_{i}"]
                maps[f"noise_{i}"] = _with_unit_mean_square(noise - jnp.mean(noise))
        w = styles(params, latents, frozen)[None]
        # Maps of `zero` stay 0, even if another generator drew them.
        noise = [
            jnp.zeros((1, *shape), w.dtype) if i in zero else maps[f"noise_{i}"][None]
            for i, shape in enumerate(network.noise_shapes)
        ]
        kind = w.dtype if dtype is None else dtype
        inputs = jax.tree.map(lambda x: x.astype(kind), ({"params": params}, w, noise))
        image = network.apply(*inputs, method="synthesis")[0]
        return (image.astype(w.dtype) + 1) / 2

    channels, classes = network.image_channels, network.classes
    return Generator(network.resolution, sample, synthesize, styles, channels, classes)


def _sort_noise(
    layers: int, noise_type: str, trainable: int, zero: Collection[int] | None
) -> tuple[frozenset[int], frozenset[int]]:
    """Of so many noise maps, the numbers of those that are zero, and of those that are searched.

    Raises ValueError as `style_generator` does.
    """
    if noise_type not in NOISE_TYPES:
        raise ValueError(f"noise_type must be one of {', '.join(NOISE_TYPES)}, got {noise_type!r}")
    every = frozenset(range(layers))
    chosen = frozenset(range(layers)[-1:] if zero is None else zero)
    if unknown := chosen - every:
        raise ValueError(f"noise layers are numbered 0 to {layers - 1}, got {max(unknown)}")
    if trainable < 0:
        raise ValueError(f"trainable_noise_layers must be at least 0, got {trainable}")
    if noise_type == "zero":
        return every, frozenset()
    if noise_type == "fixed":
        return chosen, frozenset()
    return chosen, frozenset(range(min(trainable, layers))) - chosen


def _with_unit_mean_square(x: Float[Array, "n *point"]) -> Float[Array, "n *point"]:
    """Each point rescaled to the root of the number of its coordinates."""
    axes = tuple(range(1, x.ndim))
    return x * lax.rsqrt(jnp.mean(x**2, axis=axes, keepdims=True))


def fit_latents(
    network: StyleNetwork,
    params: Params,
    key: PRNGKeyArray,
    samples: int = 1_000_000,
    chunk_size: int = 10_000,
    progress: Callable[[Any], Iterable[Any]] = iter,
    full: bool = False,
) -> dict[str, Float[np.ndarray, "..."]]:
    """The `gaussian_fit` of a network's own style vectors w = mapping(z), z ~ N(0, I).

    At least `samples` latents z are drawn and mapped, `chunk_size` at a time. So memory doesn't
    grow with their number, while the reference maps a million in one allocation. `progress` takes a
    sequence with an item for each chunk and iterates over it, as tqdm does. If `full`, the fit
    includes a factor of the covariance, for the space "w_full". A network with classes shares the
    samples among them, and axis 0 of each array counts classes. Raises ValueError for fewer than 2
    samples and for a chunk size below 1.
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")

    @jax.jit
    def chunk(params: Params, key: PRNGKeyArray, label: Int[Array, ""]) -> Float[Array, "n d"]:
        z = jax.random.normal(key, (chunk_size, network.z_size))
        labels = jnp.full(chunk_size, label) if network.classes else None
        w: Any = network.apply({"params": params}, z, labels, method="mapping")
        return w

    classes = max(1, network.classes)
    each = -(-samples // (chunk_size * classes))  # chunks
    keys = jax.random.split(key, classes * each)
    numbered = [(key, i // each) for i, key in enumerate(keys)]
    chunks = (chunk(params, key, label) for key, label in progress(numbered))
    fits = [
        gaussian_fit(itertools.islice(chunks, each), network.activation_gain, full=full)
        for _ in range(classes)
    ]
    return jax.tree.map(lambda *of_class: np.stack(of_class), *fits) if network.classes else fits[0]


def gaussian_fit(
    chunks: Iterable[Float[AnyArray, "_ d"]], activation_gain: float = 1.0, full: bool = False
) -> dict[str, Float[np.ndarray, "..."]]:
    """Fits a Gaussian to style vectors before their last activation.

    The leaky ReLU of the chunks is undone, and its gain too. Then "mean" (d,) and "std" (d,), in
    float32, are the mean and the unbiased standard deviation of each coordinate. With `full`,
    "factor" (d, d) is the symmetric root of the unbiased covariance. Chunks are merged in float64
    (Chan, Golub and LeVeque, 1979). Raises ValueError for fewer than 2 style vectors in all.
    """

    def products(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d *d"]:
        return x.T @ x if full else (x**2).sum(axis=0)

    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for w in chunks:
        w = np.asarray(w, np.float64) / activation_gain
        x = np.where(w >= 0, w, 5 * w)
        total = count + len(x)
        difference = x.mean(axis=0) - mean
        squares = squares + products(x - x.mean(axis=0))
        squares = squares + products(difference[None]) * count * len(x) / total
        mean = mean + difference * len(x) / total
        count = total
    if count < 2:
        raise ValueError(f"a Gaussian is fitted to at least 2 style vectors, got {count}")
    covariance = squares / (count - 1)
    std = np.sqrt(np.diag(covariance) if full else covariance)
    fit = {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}
    if full:
        values, vectors = np.linalg.eigh(covariance)
        factor = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
        fit["factor"] = factor.astype(np.float32)
    return fit
