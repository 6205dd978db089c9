"""What is cut out can be put back."""

import numpy as np
import pytest

from pulse_jax.align import cut_out, put_back
from pulse_jax.images import to_uint8

SQUARE = np.array([[0, 0], [0, 1], [1, 1], [1, 0]])  # the corners, in their order


def turned(centre, half, degrees):
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (2 * SQUARE - 1) * half @ turn + centre


@pytest.fixture(scope="module")
def photograph():
    """Smooth, so that resampling hardly changes it."""
    y, x = np.indices((70, 90))
    waves = [np.sin(x / 9 + y / 15), np.cos(x / 12 - y / 10), np.sin(x * y / 900)]
    return (0.5 + 0.3 * np.stack(waves, axis=-1)).astype(np.float32)


def test_a_square_of_whole_pixels_is_blended_as_it_is(photograph):
    face = np.random.default_rng(0).uniform(size=(40, 40, 3))
    quad = SQUARE * 40 + np.array([20, 10]) - 0.5
    result = put_back(photograph, [(face, quad)])
    place = (np.arange(40) + 0.5) / 40
    t = np.clip(np.minimum(place, 1 - place) / 0.1, 0, 1)
    t = np.minimum(t[:, None], t[None])
    weight = (3 * t**2 - 2 * t**3)[..., None]
    assert weight.max() == 1 and weight.min() < 0.1
    expected = photograph.copy()
    expected[10:50, 20:60] += weight * (face - expected[10:50, 20:60])
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert photograph[30, 40, 0] != result[30, 40, 0]  # the original isn't written to


@pytest.mark.parametrize(
    ("quad", "side", "bound"),
    [
        (turned([45, 35], 22, 20), 200, 2),
        (turned([45, 35], 22, 20), 33, 4),
        (turned([80, 60], 22, -70), 200, 10),  # beyond the photograph, whose rim is blurred
    ],
)
def test_what_was_cut_out_is_where_it_was(photograph, quad, side, bound):
    pixels = np.rint(255 * photograph).astype(np.uint8)
    face = cut_out(pixels, quad, side).astype(np.float32) / 255
    result = put_back(photograph, [(face, quad)])
    assert np.abs(result - photograph).max() < bound / 255
    marked = put_back(photograph, [(np.ones_like(face), quad)])
    inside = np.abs(marked - photograph).max(axis=2) > 0
    assert 0.15 < inside.mean() < 0.35 and marked.max() == 1


def test_images_of_integers_are_not_put_back(unchecked, photograph):
    face, quad = np.zeros((8, 8, 3)), np.array([[4.0, 4], [4, 9], [9, 9], [9, 4]])
    for whole, part in ((to_uint8(photograph), face), (photograph, to_uint8(face))):
        with pytest.raises(ValueError, match=r"an image has floats in \[0, 1\], not uint8"):
            put_back(whole, [(part, quad)])


def test_with_an_outscale_the_photograph_is_larger(photograph):
    quad = turned([45, 35], 20, 10)
    y, x = np.indices((80, 80)) + 0.5
    face = np.stack([x, y, x + y], axis=-1) / 160  # which has more pixels than the photograph
    result = put_back(photograph, [(face, quad)], outscale=3)
    small = put_back(photograph, [(face, quad)])
    assert result.shape == (210, 270, 3)
    assert np.abs(result[1::3, 1::3] - small).max() < 0.02 < np.abs(small - photograph).max()
    assert put_back(photograph, [(face, quad)], outscale=1.01).shape == (71, 91, 3)
    with pytest.raises(ValueError, match="outscale=0: must be finite and above 0"):
        put_back(photograph, [(face, quad)], outscale=0)


def test_a_square_beyond_the_photograph_changes_nothing(photograph):
    result = put_back(photograph, [(np.ones((8, 8, 3)), turned([200, 200], 10, 0))])
    assert np.array_equal(result, photograph)
