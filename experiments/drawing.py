"""The drawing itself as a generator: its latents are the attributes of a face.

    cd experiments
    pulse_jax --generator=drawing:make:64 --input_dir=../checkpoints/faces64/examples

A drawn face is a function of its attributes, and these of standard normal coordinates
(`common.faces.attributes_of`). So no network is needed to search it, and a search answers in
numbers that mean something, such as the turn of the head. All numbers lie on one sphere. Kinds,
such as that of the glasses, have no gradient: each restart keeps those that it has drawn. So most
restarts don't come near a given picture. Of 32 for the four pictures above, one met l2 0.001.

It takes minutes to compile.
"""

from common import faces

import jax
import jax.numpy as jnp

import pulse_jax


def make(side):
    """The generator of faces of that side, and its parameters, of which there are none."""
    numbers = len(faces.NUMBERS)

    def sample(key):
        z_key, texture_key = jax.random.split(key)
        z = jax.random.normal(z_key, (faces.LATENTS,))
        frozen = {"kinds": z[numbers:], "texture": jax.random.uniform(texture_key)}
        return {"numbers": z[None, :numbers]}, frozen

    def synthesize(params, latents, frozen):
        z = jnp.concatenate([latents["numbers"][0], frozen["kinds"]])
        return faces.draw(faces.attributes_of(z, frozen["texture"]), side)

    return pulse_jax.Generator(side, sample, synthesize), {}
