"""Two searches in small: of a linear generator, and of random StyleGANs."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pulse_jax import SCHEMES, Generator, Loss, build, operators, style_generator
from pulse_jax.generators.stylegan import StyleGAN
from pulse_jax.generators.stylegan2 import StyleGAN2

NAN, INF = np.nan, np.inf


def take(tree, rows):
    """Some rows, or one, of the leaves."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], tree)


def same_bytes(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


# --- A linear generator: (8, 8, 3) images from two styles and a frozen noise map. ---


def linear_generator(traces=None):
    """`params` is the matrix; `traces`, a list, grows when an image is traced."""

    def sample(key):
        style_key, noise_key = jax.random.split(key)
        noise = 0.01 * jax.random.normal(noise_key, (1, 8, 8))
        return {"style": jax.random.normal(style_key, (2, 16))}, {"noise": noise}

    def synthesize(params, latents, frozen):
        if traces is not None:
            traces.append(None)
        image = jnp.einsum("ld,ldhwc->hwc", latents["style"], params)
        return 0.5 + image + frozen["noise"][0, :, :, None]

    return Generator(8, sample, synthesize, lambda params, latents, frozen: latents["style"])


GENERATOR, AREA = linear_generator(), operators.area(4)
MATRIX = 0.1 * jax.random.normal(jax.random.key(0), (2, 16, 8, 8, 3))
LINEAR = build(GENERATOR, AREA, Loss(), SCHEMES["rescale"](optax.adam(0.1)))
SAMPLES = jax.jit(jax.vmap(GENERATOR.sample))(jax.random.split(jax.random.key(1), 10))
STARTS, FOUND = take(SAMPLES, slice(5)), take(SAMPLES, slice(5, None))
IMAGES = jax.jit(jax.vmap(GENERATOR.synthesize, (None, 0, 0)))(MATRIX, *FOUND)
TARGETS = np.asarray(jax.jit(jax.vmap(AREA))(IMAGES))  # (5, 2, 2, 3), all of which can be met


def start(restarts, search=LINEAR):
    """The states of so many restarts, at most five."""
    return take(jax.jit(jax.vmap(search.init))(*STARTS), slice(restarts))


# --- Small random StyleGANs. ---

every_network = pytest.mark.parametrize("network", [StyleGAN, StyleGAN2])
TARGET = jnp.full((8, 8, 3), 0.4)


@functools.cache
def style_search(network):
    network = network(16, (8, 8, 4), latent_size=8, mapping_layers=2)
    noise = [jnp.zeros((1, *shape)) for shape in network.noise_shapes]
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8)), noise)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    params["latent_fit"] = {"mean": jnp.zeros(8), "std": jnp.ones(8)}
    generator = style_generator(network)
    search = build(generator, operators.bicubic(2), Loss(), SCHEMES["rescale"](optax.adam(0.1)))
    keys = jax.random.split(jax.random.key(1), 4)
    latents, frozen = jax.jit(jax.vmap(generator.sample))(keys)
    state = jax.jit(jax.vmap(search.init))(latents, frozen)
    return SimpleNamespace(generator=generator, params=params, search=search, state=state)
