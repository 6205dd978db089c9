"""Augmentation: each transformation against what it is said to do, and the strength's rule."""

import common.augment
from common.augment import MAX_P

import jax
import jax.numpy as jnp
import numpy as np

adapted, augment, translated, turned = (
    jax.jit(getattr(common.augment, name))
    for name in ("adapted", "augment", "translated", "turned")
)
cutout_mask = jax.jit(common.augment.cutout_mask, static_argnums=(1, 2, 3))


def random_images(count, side=8):
    return np.random.default_rng(0).uniform(-1, 1, (count, side, side, 3)).astype(np.float32)


def test_no_strength_changes_nothing_and_full_strength_everything():
    batch = random_images(16)
    np.testing.assert_allclose(augment(jax.random.key(0), batch, 0.0), batch, atol=1e-6)
    changed = np.abs(augment(jax.random.key(0), batch, 1.0) - batch).max(axis=(1, 2, 3)) > 0.01
    assert changed.all()
    half = np.abs(augment(jax.random.key(1), batch, 0.1) - batch).max(axis=(1, 2, 3)) > 0.01
    assert 0 < half.sum() < 16


def test_gradients_go_back_to_where_pixels_came_from():
    batch = random_images(3)
    shift, element = np.array([[1, 0], [0, 0], [-2, 3]]), np.array([1, 6, 0])
    weights = random_images(4)[1:]

    @jax.jit
    def product(x):
        return (weights * translated(turned(x, element), shift)).sum()

    gradient, step = jax.jit(jax.grad(product))(batch), random_images(5)[2:]
    expected = product(batch + step) - product(batch)  # it is linear
    np.testing.assert_allclose((gradient * step).sum(), expected, rtol=1e-4)


def test_symmetries_are_those_of_a_square():
    image = random_images(1)[0]
    found = np.asarray(turned(np.stack([image] * 8), np.arange(8)))
    expected = [np.rot90(form, k) for form in (image, image[:, ::-1]) for k in range(4)]
    matches = [[np.array_equal(x, y) for y in expected] for x in found]
    assert np.array_equal(found[0], image)
    assert np.sum(matches, axis=0).tolist() == np.sum(matches, axis=1).tolist() == [1] * 8


def test_translation_reflects():
    batch = random_images(3)
    shift = np.array([[0, 0], [2, -1], [-3, 3]])
    found = np.asarray(translated(batch, shift))
    for x, image, (y, z) in zip(found, batch, shift, strict=True):
        padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="reflect")
        np.testing.assert_allclose(x, padded[3 + y : 11 + y, 3 + z : 11 + z], atol=1e-6)


def test_colours_of_grey_stay_grey():
    """Hue and saturation leave grey alone; brightness and contrast change it."""
    levels = np.linspace(-0.5, 0.5, 8, dtype=np.float32)
    grey = np.broadcast_to(levels[:, None, None], (32, 8, 8, 3))
    found = np.asarray(augment(jax.random.key(2), grey, 1.0))
    assert np.abs(found - found.mean(axis=-1, keepdims=True)).max() < 1e-6
    contrast = np.ptp(found, axis=(1, 2, 3))
    assert contrast.min() < 0.9 and contrast.max() > 1.2


def test_cutout_is_a_square_of_half_the_side():
    masks = np.asarray(cutout_mask(jax.random.key(0), 200, 16, 0.5))[..., 0]
    cut = (masks == 0).sum(axis=(1, 2))
    assert 60 < (cut > 0).sum() < 140
    assert cut.max() in (49, 56, 64)  # none is larger, and at the border less is left
    rows, columns = (masks == 0).any(axis=2).sum(axis=1), (masks == 0).any(axis=1).sum(axis=1)
    assert np.array_equal(cut, rows * columns)


def test_strength_follows_the_discriminator():
    sure, unsure = jnp.full(8, 3.0), jnp.array([1.0, -1.0] * 4)
    np.testing.assert_allclose(adapted(0.3, sure, 1000, 0.6), 0.308, rtol=1e-6)
    np.testing.assert_allclose(adapted(0.3, unsure, 1000, 0.6), 0.292, rtol=1e-6)
    assert adapted(0.0, unsure, 1000, 0.6) == 0
    np.testing.assert_allclose(adapted(MAX_P, sure, 1000, 0.6), MAX_P)
