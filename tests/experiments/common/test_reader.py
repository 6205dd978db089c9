"""The reader of attributes: its coordinates, figures, features; `test_diversity.py` trains it."""

from common import reader
from common.faces import KINDS, RANGES, Attributes, sample_attributes

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from pulse_jax import generators


def test_attributes_are_coordinates():
    values = {name: jnp.float32([low]) for name, (low, _) in RANGES.items()}
    values |= {name: jnp.int32([len(set(kinds)) - 1]) for name, kinds in KINDS.items()}
    coordinates = reader.encode(Attributes(**values))
    found = reader.by_attribute(np.asarray(coordinates)[0])
    assert tuple(found) == Attributes._fields
    for name, x in found.items():
        if name in KINDS:
            assert x.tolist() == [0] * (len(x) - 1) + [1]
        else:
            np.testing.assert_allclose(x, [1, 0] if name in reader.CIRCULAR else [-1], atol=1e-6)


def test_a_reader_of_other_attributes_is_refused(tmp_path, monkeypatch):
    """It learns from batches of labelled faces, and its file serves for these alone."""

    @jax.jit
    def draw(key, i):
        attributes = jax.vmap(sample_attributes)(jax.random.split(key, 2))
        return jnp.ones((2, 8, 8, 3)), attributes

    arguments = draw, jax.random.key(0), 2
    path = tmp_path / "reader.npz"
    weights, again = (reader.stored(path, *arguments) for _ in range(2))
    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    monkeypatch.setattr(reader, "SIZES", reader.SIZES | {"skin": 2})
    with pytest.raises(ValueError, match="a reader of other attributes"):
        reader.stored(path, *arguments)


def test_r_squared():
    y = np.array([[0.0, 1], [2, 1], [1, 4]])
    assert reader.r_squared(y, y) == 1
    assert reader.r_squared(np.broadcast_to(y.mean(axis=0), y.shape), y) == 0
    assert reader.r_squared(-y, y) < 0


def test_features_of_a_larger_image_are_those_of_the_smaller(monkeypatch):
    monkeypatch.setattr(generators.reader, "SIDE", 16)
    batch = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    params = jax.jit(reader.network().init)(jax.random.key(0), batch)
    weights = flatten_dict(params, sep="/")
    found = reader.features(weights, batch)
    assert found.shape == (3, 256) and found.min() == 0 and found.std() > 0
    large = batch.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(reader.features(weights, large), found, rtol=1e-4, atol=1e-5)


def test_the_perceptual_distance():
    """0 for the same images; what is read counts, and the layer before."""
    batch = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    coordinates = sum(reader.SIZES.values())
    params = jax.jit(reader.network().init)(jax.random.key(0), batch)
    weights = flatten_dict(params, sep="/")
    distance = jax.jit(reader.perceptual_distance)
    assert distance(weights, batch, batch) == 0
    near, far = (distance(weights, batch, t * batch) for t in (0.99, 0.9))
    assert 0 < near < far
    gradient = jax.jit(jax.grad(reader.perceptual_distance, 2))(weights, batch, 0.9 * batch)
    assert np.isfinite(gradient).all() and np.any(gradient)
    # If it reads the same in all images, only the hidden layer tells them apart.
    blind = weights | {"params/Dense_0/kernel": np.zeros((256, coordinates), np.float32)}
    blind["params/Dense_0/bias"] = np.ones(coordinates, np.float32)
    read, other = (reader.read_images(weights, x) for x in (batch, 0.9 * batch))
    expected = far - np.abs(read - other).mean() / np.abs(read).mean()
    found = distance(blind, batch, 0.9 * batch)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
