"""The drawing as a generator: its latents are the numbers of faces, and its images are faces."""

from common import faces

import jax
import numpy as np
import pytest

import pulse_jax


def test_it_keeps_the_contract_of_generators():
    """Loading it traces an image. Numbers are searched, on one sphere; the rest is frozen."""
    generator, params = pulse_jax.load("drawing:make:16")
    latents, frozen = generator.sample(jax.random.key(0))
    assert generator.resolution == 16 and params == {} and generator.styles is None
    assert latents["numbers"].shape == (1, len(faces.NUMBERS))
    assert frozen["kinds"].shape == (faces.LATENTS - len(faces.NUMBERS),)
    others, _ = generator.sample(jax.random.key(1))
    assert np.abs(latents["numbers"] - others["numbers"]).min() > 0


@pytest.mark.slow
def test_its_images_are_the_faces_of_its_attributes():
    generator, params = pulse_jax.load("drawing:make:16")
    latents, frozen = generator.sample(jax.random.key(0))
    z = np.concatenate([latents["numbers"][0], frozen["kinds"]])
    expected = jax.jit(faces.draw, static_argnums=1)(faces.attributes_of(z, frozen["texture"]), 16)
    image = jax.jit(generator.synthesize)(params, latents, frozen)
    np.testing.assert_allclose(image, expected, atol=1e-5)
