"""What a search needs of a generator, and the style generators that provide it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pulse_jax.generators.layers import leaky_relu

NOISE_TYPES = ("zero", "fixed", "trainable")


class Generator(NamedTuple):
    """A decoder of Gaussian variables, for one image; `vmap` it for more.

    Whatever provides these functions can be searched: a GAN, a VAE, a flow. All are pure; `params`
    is always an argument. A function that returns `(Generator, params)` is loaded by its name,
    my_package.my_module:make.

    `resolution`: the side R of its images.
    `sample(key) → (latents, frozen)`: two pytrees of standard normal variables, of which the search
        moves the first. Axis 0 of a leaf of `latents` counts spheres, the others are coordinates:
        styles (L, d) are L points, a noise map (1, H, W) is one.
    `synthesize(params, latents, frozen) → image` (R, R, 3), nominally in [0, 1], not clipped. It
        must have reverse-mode derivatives. Those of `style_generator` have no others: second ones
        are reverse over reverse, and forward mode (`jax.jvp`, `jax.hessian`) raises TypeError.
    `styles(params, latents) → (L, d)`: the style vectors that GEOCROSS compares; None if there are
        none.
    """

    resolution: int
    sample: Callable[[jax.Array], tuple[Any, Any]]
    synthesize: Callable[[Any, Any, Any], jax.Array]
    styles: Callable[[Any, Any], jax.Array] | None = None


def style_generator(
    network,
    *,
    noise_type="trainable",
    trainable_noise_layers=5,
    zero_noise_layers=None,
    tile_latent=False,
    equal_start=False,
    dtype=None,
):
    """A `Generator` from a StyleGAN, in PULSE's latent space (arXiv 2003.03808).

    The mapping network's output is nearly Gaussian once its last activation is undone. So a style
    vector is, per coordinate,
        w = gain · leaky_relu(std · z + mean, 0.2), z ~ N(0, I),
    with mean and std from `params["latent_fit"]`. Each of the L style vectors has its own z, or all
    share one with `tile_latent`. With `equal_start`, which the reference doesn't have, they are
    equal in a sample, as in the images that the generator was trained for, and then go their ways.

    `network`: a `StyleGAN`, 2 or 3. `noise_type`: "zero", "fixed" (all noise maps are drawn,
    then left alone) or "trainable" (all are drawn, and the first `trainable_noise_layers`, or all
    if there are fewer, are searched too). The noise maps numbered in `zero_noise_layers`, by
    default the last alone, are zero and not searched, whatever the type.

    `dtype`, such as jnp.bfloat16, is that of weights and activations; by default they stay as they
    are. Latents and images don't change theirs.

    Latents: {"style": (L, d), or (1, d) with `tile_latent`, and "noise_i": (1, H, W) for each
    noise map i that is searched}; the other noise maps are frozen. Raises ValueError for an unknown
    noise type, a layer to zero that doesn't exist, or a negative number of layers.
    """
    noise_layers = len(network.noise_shapes)
    zero = set(range(noise_layers)[-1:] if zero_noise_layers is None else zero_noise_layers)
    if noise_type not in NOISE_TYPES:
        raise ValueError(f"noise_type must be one of {', '.join(NOISE_TYPES)}, got {noise_type!r}")
    if unknown := zero - set(range(noise_layers)):
        raise ValueError(f"noise layers are numbered 0 to {noise_layers - 1}, got {max(unknown)}")
    if trainable_noise_layers < 0:
        raise ValueError(f"trainable_noise_layers must be at least 0, got {trainable_noise_layers}")
    if noise_type == "zero":
        zero = set(range(noise_layers))
    searched = set(range(trainable_noise_layers)) - zero if noise_type == "trainable" else set()

    def sample(key):
        style_key, *noise_keys = jax.random.split(key, 1 + noise_layers)
        vectors = 1 if tile_latent else network.num_layers
        drawn = 1 if equal_start else vectors
        style = jax.random.normal(style_key, (drawn, network.latent_size))
        latents = {"style": jnp.broadcast_to(style, (vectors, network.latent_size))}
        frozen = {}
        for i, (noise_key, shape) in enumerate(zip(noise_keys, network.noise_shapes, strict=True)):
            noise = jnp.zeros(shape) if i in zero else jax.random.normal(noise_key, shape)
            (latents if i in searched else frozen)[f"noise_{i}"] = noise
        return latents, frozen

    def styles(params, latents):
        fit = params["latent_fit"]
        w = leaky_relu(latents["style"] * fit["std"] + fit["mean"], network.activation_gain)
        return jnp.broadcast_to(w, (network.num_layers, network.latent_size))

    def synthesize(params, latents, frozen):
        maps = latents | frozen
        noise = [maps[f"noise_{i}"][None] for i in range(noise_layers)]
        w = styles(params, latents)[None]
        inputs = {"params": params}, w, noise
        if dtype is not None:
            inputs = jax.tree.map(lambda x: x.astype(dtype), inputs)
        image = network.apply(*inputs, method="synthesis")[0]
        return (image.astype(w.dtype) + 1) / 2

    return Generator(network.resolution, sample, synthesize, styles)


def fit_latents(network, params, key, samples=1_000_000, chunk_size=10_000, progress=iter):
    """The `gaussian_fit` of a network's own style vectors w = mapping(z), z ~ N(0, I).

    At least `samples` latents z are drawn and mapped, `chunk_size` at a time, so that memory
    doesn't grow with their number (the reference maps a million in one allocation). `progress`, as
    tqdm, takes a sequence with an item for each chunk, and iterates over it. Raises ValueError for
    fewer than 2 samples or a chunk size below 1.
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")

    @jax.jit
    def chunk(params, key):
        z = jax.random.normal(key, (chunk_size, network.z_size))
        return network.apply({"params": params}, z, method="mapping")

    keys = jax.random.split(key, -(-samples // chunk_size))
    return gaussian_fit((chunk(params, k) for k in progress(keys)), network.activation_gain)


def gaussian_fit(chunks, activation_gain=1.0):
    """Fits a Gaussian to style vectors before their last activation.

    `chunks`: an iterable of arrays w (n, d). Their leaky ReLU with its gain is undone; then
    {"mean": (d,), "std": (d,)}, float32, are the mean and the unbiased standard deviation of each
    coordinate. Chunks are merged in float64 (Chan, Golub and LeVeque, 1979). Raises ValueError for
    fewer than 2 style vectors in all.
    """
    count, mean, squares = 0, 0.0, 0.0
    for w in chunks:
        w = np.asarray(w, np.float64) / activation_gain
        x = np.where(w >= 0, w, 5 * w)
        total = count + len(x)
        difference = x.mean(axis=0) - mean
        squares += ((x - x.mean(axis=0)) ** 2).sum(axis=0) + difference**2 * count * len(x) / total
        mean += difference * len(x) / total
        count = total
    if count < 2:
        raise ValueError(f"a Gaussian is fitted to at least 2 style vectors, got {count}")
    std = np.sqrt(squares / (count - 1))
    return {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}
