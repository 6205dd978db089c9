"""The drawn faces: the same at every size, evenly sampled, every attribute seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from portraits import HAIR, KINDS, RANGES, Attributes, draw, face, sample_attributes

faces = jax.jit(jax.vmap(face, (0, None)), static_argnums=1)
drawn = jax.jit(jax.vmap(draw, (0, None)), static_argnums=1)


@pytest.fixture(scope="module")
def attributes():
    keys = jax.random.split(jax.random.key(7), 4000)
    return jax.jit(jax.vmap(sample_attributes))(keys)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(0), 48)


def test_images_are_in_range_and_differ(keys):
    images, attributes = faces(keys, 64)
    assert images.shape == (48, 64, 64, 3) and images.dtype == jnp.float32
    assert attributes.skin.shape == (48,)
    assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    flat = np.asarray(images).reshape(48, -1)
    apart = np.abs(flat[:, None] - flat).mean(-1) + np.eye(48)
    assert apart.min() > 0.02


def test_a_face_is_a_function_of_its_key(keys):
    images, attributes = faces(keys, 64)
    again, same = faces(keys[::-1], 64)
    np.testing.assert_array_equal(again[::-1], images)
    for one, other in zip(attributes, same, strict=True):
        np.testing.assert_array_equal(other[::-1], one)


def test_sizes_show_the_same_face(keys):
    """Averaged over 4 x 4 pixels, a face at 256 is that at 64; no point samples, no enlargement."""
    small, large = np.asarray(faces(keys, 64)[0])[:8], np.asarray(faces(keys[:8], 256)[0])
    averaged = large.reshape(8, 64, 4, 64, 4, 3).mean((2, 4))
    enlarged = np.asarray(jax.image.resize(small, large.shape, "bicubic"))

    def rms(a, b):
        return np.sqrt(((a - b) ** 2).mean())

    assert np.abs(averaged - small).mean() < 0.009
    assert rms(averaged, small) < 0.022
    assert rms(large[:, 2::4, 2::4], small) > 0.024
    assert rms(enlarged, large) > 0.025  # skin and hair have detail that 64 pixels can't hold


def test_numbers_are_uniform(attributes):
    quantiles = np.linspace(0.05, 0.95, 19)
    for name, (lo, hi) in RANGES.items():
        unit = (np.asarray(getattr(attributes, name)) - lo) / (hi - lo)
        assert np.abs(np.quantile(unit, quantiles) - quantiles).max() < 0.035, name


def test_kinds_are_even(attributes):
    for name, kinds in KINDS.items():
        distinct = list(dict.fromkeys(kinds))
        share = np.bincount(getattr(attributes, name), minlength=len(distinct)) / 4000
        expected = [kinds.count(kind) / len(kinds) for kind in distinct]
        np.testing.assert_allclose(share, expected, atol=0.035, err_msg=name)


def test_attributes_are_independent(attributes):
    """Also in their spread: correlations of the values and of their distances to the mean."""
    values = np.stack([np.asarray(x, np.float64) for x in attributes])
    spread = np.abs(values - values.mean(1, keepdims=True))
    rows = len(values)
    between = np.corrcoef(np.concatenate([values, spread]))
    between[np.arange(2 * rows) % rows == np.arange(2 * rows)[:, None] % rows] = 0
    assert np.abs(between).max() < 0.08


def plain():
    """A face on which every attribute shows."""
    middle = {name: (lo + hi) / 2 for name, (lo, hi) in RANGES.items()}
    kinds = dict.fromkeys(KINDS, 0) | {"hair_style": list(HAIR).index("side parted"), "glasses": 1}
    seen = {"freckles": 0.9, "smile": 0.5, "mouth_open": 0.3, "background_turn": 0.5}
    return Attributes(**(middle | kinds | seen))


def sweep(base, name, values):
    """Images (len(values), 64, 64, 3) that differ in one attribute alone."""
    batch = jax.tree.map(lambda x: np.full(len(HAIR), x, type(x)), base)
    swept = getattr(batch, name)
    swept[: len(values)] = values
    return np.asarray(drawn(batch, 64))[: len(values)]


@pytest.mark.parametrize("name", Attributes._fields)
def test_every_attribute_is_seen(name):
    """From one end of its range to the other, pixels change by far more than a grey level."""
    base = plain()
    if name == "hair_length":
        base = base._replace(hair_style=list(HAIR).index("bob"))
    ends = list(range(len(set(KINDS[name])))) if name in KINDS else RANGES[name]
    if name == "background_angle":
        ends = (0.0, np.pi / 2)  # -π and π are one direction
    if name in ("clothing_hue", "background_hue"):
        ends = (0.0, 0.5)  # hues are a circle
    images = sweep(base, name, ends)
    apart = np.abs(images[:, None] - images).max((-3, -2, -1)) + np.eye(len(ends))
    assert apart.min() > 0.04


def test_details_hide_in_the_coarse_picture():
    """Gaze turns the eyes at full size by far more than it changes an average over 8 x 8 pixels."""
    images = sweep(plain(), "gaze", (-1.0, 1.0))
    coarse = images.reshape(2, 8, 8, 8, 8, 3).mean((2, 4))
    assert np.abs(images[0] - images[1]).max() > 0.3
    assert np.abs(coarse[0] - coarse[1]).max() < 0.06
