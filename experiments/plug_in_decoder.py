"""A generator that is no GAN, plugged in: principal components of drawn faces.

    cd experiments
    pulse_jax --generator=plug_in_decoder:make --input_dir=../checkpoints/faces64/examples

Probabilistic PCA (Tipping and Bishop, 1999) says that a face is x = μ + W z with z ~ N(0, I): a
linear decoder of one Gaussian vector, which lies on one sphere. μ is the mean of 2,000 faces, and W
has their first 300 principal axes, each times its standard deviation. Its faces are ghostly, as
sums of faces are.
"""

from common.faces import face

import jax
import jax.numpy as jnp

import pulse_jax


def make(faces=2000, side=64, d=300):
    draw = jax.jit(jax.vmap(lambda key: face(key, side)[0].ravel()))
    x = jnp.concatenate([draw(k) for k in jax.random.split(jax.random.key(0), (faces // 50, 50))])
    mean = x.mean(axis=0)
    x = (x - mean) / jnp.sqrt(faces)
    vectors = jnp.linalg.eigh(x @ x.T)[1][:, -d:]
    params = {"mean": mean, "axes": vectors.T @ x}

    def sample(key):
        return jax.random.normal(key, (1, d)), ()  # one sphere; nothing else is drawn

    def synthesize(params, latents, frozen):
        return (params["mean"] + latents[0] @ params["axes"]).reshape(side, side, 3)

    return pulse_jax.Generator(side, sample, synthesize), params
