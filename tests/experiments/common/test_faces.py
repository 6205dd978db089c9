"""The drawn faces: the same at every size, evenly sampled, every attribute seen.

All are drawn by one program, since it takes long to compile.
"""

from common import faces
from common.faces import (
    HAIR,
    KINDS,
    LATENTS,
    NUMBERS,
    RANGES,
    Attributes,
    attributes_of,
    draw,
    face,
    root,
    sample_attributes,
)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

BATCH = 12
SAMPLE = jax.jit(jax.vmap(sample_attributes))
DRAW = jax.jit(jax.vmap(lambda attributes: draw(attributes, 64)))


def drawn(attributes):
    """Images (N, 64, 64, 3) of attributes (N,)."""
    count = len(attributes.skin)
    filled = jax.tree.map(lambda x: np.resize(x, -(-count // BATCH) * BATCH), attributes)
    batches = [
        DRAW(jax.tree.map(lambda x, i=i: x[i : i + BATCH], filled)) for i in range(0, count, BATCH)
    ]
    return np.concatenate(batches)[:count]


@pytest.fixture(scope="module", params=["sampled", "of latents"])
def attributes(request):
    if request.param == "sampled":
        return SAMPLE(jax.random.split(jax.random.key(7), 4000))
    z_key, texture_key = jax.random.split(jax.random.key(8))
    z, textures = (
        jax.random.normal(z_key, (4000, LATENTS)),
        jax.random.uniform(texture_key, (4000,)),
    )
    return jax.jit(jax.vmap(attributes_of))(z, textures)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(0), 24)


@pytest.fixture(scope="module")
def images(keys):
    return drawn(SAMPLE(keys))


def test_images_are_in_range_and_differ(images):
    assert images.shape == (24, 64, 64, 3) and images.dtype == jnp.float32
    assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    flat = images.reshape(24, -1)
    apart = np.abs(flat[:, None] - flat).mean(-1) + np.eye(24)
    assert apart.min() > 0.02


def test_a_face_is_a_function_of_its_key(keys, images):
    """Whatever else is in its batch."""
    np.testing.assert_array_equal(drawn(SAMPLE(keys[::-1]))[::-1], images)


def test_an_album_has_a_face_for_each_key(keys, monkeypatch):
    def draw_one(key, size):
        return np.full((size, size, 3), jax.random.key_data(key)[-1]), None

    monkeypatch.setattr(faces, "compiled_face", draw_one)
    pages = faces.album(keys, 2)
    assert pages.shape == (24, 2, 2, 3)
    np.testing.assert_array_equal(pages[:, 0, 0, 0], jax.random.key_data(keys)[:, -1])


@pytest.mark.slow
def test_sizes_show_the_same_face(keys, images):
    """Averaged over 4 x 4 pixels, a face at 256 is that at 64; no point samples, no enlargement."""
    small = images[:8]
    large = np.asarray(jax.jit(jax.vmap(lambda key: face(key, 256)[0]))(keys[:8]))
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


def test_a_latent_is_read_as_numbers_and_kinds():
    z = np.zeros(LATENTS, np.float32)
    z[NUMBERS.index("skin")], z[NUMBERS.index("yaw")] = 9, -9
    groups = np.split(z[len(NUMBERS) :], np.cumsum([len(kinds) for kinds in KINDS.values()])[:-1])
    for group, entry in zip(groups, (3, 2, 3, 1, 0), strict=True):  # views of z
        group[entry] = 1
    found = attributes_of(z, 0.25)
    assert (found.skin, found.yaw, found.texture) == (1, -0.5, 0.25)
    assert found.background_angle == pytest.approx(0, abs=1e-6)
    # Of the entries for facial hair four say none, of those for glasses two.
    kinds = [int(getattr(found, name)) for name in KINDS]
    assert kinds == [3, 0, 2, 1, 0]


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


def ends(name):
    """Faces that differ in one attribute alone: of each kind, or from one end to the other."""
    base = plain()
    if name == "hair_length":
        base = base._replace(hair_style=list(HAIR).index("bob"))
    values = range(len(set(KINDS[name]))) if name in KINDS else RANGES[name]
    if name == "background_angle":
        values = (0.0, np.pi / 2)  # -π and π are one direction
    if name in ("clothing_hue", "background_hue"):
        values = (0.0, 0.5)  # hues are a circle
    return [base._replace(**{name: value}) for value in values]


@pytest.fixture(scope="module")
def swept():
    """For each attribute, the images of `ends`."""
    faces = {name: ends(name) for name in Attributes._fields}
    batch = [face for group in faces.values() for face in group]
    kinds = [np.int32 if name in KINDS else np.float32 for name in Attributes._fields]
    columns = [np.array(*x) for x in zip(zip(*batch, strict=True), kinds, strict=True)]
    found = iter(drawn(Attributes(*columns)))
    return {name: np.stack([next(found) for _ in group]) for name, group in faces.items()}


@pytest.mark.parametrize("name", Attributes._fields)
def test_every_attribute_is_seen(swept, name):
    """Pixels change by far more than a grey level."""
    images = swept[name]
    apart = np.abs(images[:, None] - images).max((-3, -2, -1)) + np.eye(len(images))
    assert apart.min() > 0.04


def test_details_hide_in_the_coarse_picture(swept):
    """Gaze turns the eyes at full size by far more than it changes an average over 8 x 8 pixels."""
    images = swept["gaze"]
    coarse = images.reshape(2, 8, 8, 8, 8, 3).mean((2, 4))
    assert np.abs(images[0] - images[1]).max() > 0.3
    assert np.abs(coarse[0] - coarse[1]).max() < 0.06


def test_a_root_has_a_derivative_everywhere():
    x = jnp.array([-1.0, 0, 4])
    np.testing.assert_array_equal(root(x), [0, 0, 2])
    np.testing.assert_array_equal(jax.vmap(jax.grad(root))(x), [0, 0, 0.25])


@pytest.mark.slow
def test_derivatives_by_all_numbers_are_finite():
    """And each number has a part in some image."""

    @jax.jit
    def derivatives(z, texture):
        def image(numbers):
            return draw(attributes_of(jnp.concatenate([numbers, z[len(NUMBERS) :]]), texture), 64)

        numbers = z[: len(NUMBERS)]
        along = jnp.eye(len(NUMBERS))
        return jax.lax.map(lambda way: jax.jvp(image, (numbers,), (way,))[1], along)

    found = []
    for key in jax.random.split(jax.random.key(1), 6):
        z = jax.random.normal(key, (LATENTS,))
        found.append(np.abs(derivatives(z, jax.random.uniform(key))).max(axis=(1, 2, 3)))
    assert np.isfinite(found).all()
    assert (np.max(found, axis=0) > 0).all()
