"""Faces are cut out as FFHQ's were.

tests/data/ffhq has pictures with landmarks, and what the data set's program made of them with
Pillow 9.5: the square and the sizes after each step, and the faces.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pulse_jax.align import cut_out, face_quad
from pulse_jax.align.ffhq import Region, cropped, padded, shrunk, side

DATA = Path(__file__).parent.parent / "data" / "ffhq"
CASES = (
    *("plain.256_1024", "plain.64_256", "plain.32_32", "small.256_1024", "small.64_256"),
    *("border.256_1024", "border.64_256", "border.64_256_nopad"),
)


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "ffhq.npz") as file:
        return dict(file)


def region_of(name, golden):
    picture = np.asarray(Image.open(DATA / f"{name}.png"))
    return Region(picture, face_quad(golden[f"{name}.landmarks"]))


def size(region):
    height, width, _ = region.picture.shape
    return width, height


def is_near(picture, expected):
    """Within one grey level, in less than one value of 1000."""
    differences = np.abs(picture.astype(int) - expected)
    return differences.max() <= 1 and (differences > 0).mean() < 1e-3


@pytest.mark.parametrize("case", CASES)
def test_squares_sizes_and_pictures_are_the_data_sets(golden, case):
    name, kind = case.split(".")
    out, sampled, *nopad = kind.split("_")
    expected = {key.removeprefix(f"{case}."): value for key, value in golden.items()}

    def check(region, step):
        np.testing.assert_allclose(region.quad, expected[f"quad_{step}"], rtol=0, atol=1e-9)
        np.testing.assert_equal(size(region), expected[f"size_{step}"])

    region = region_of(name, golden)
    np.testing.assert_allclose(region.quad, expected["quad0"], rtol=0, atol=1e-9)
    assert region.side == pytest.approx(float(expected["qsize0"]), abs=1e-9)
    small = shrunk(region, int(out))
    check(small, "after_shrink")
    assert small.side == pytest.approx(float(expected["qsize"]), abs=1e-9)
    assert small.border == expected["border"]
    cut = cropped(small)
    check(cut, "after_crop")
    final = cut if nopad else padded(cut)
    check(final, "final")
    if "padded_image" in expected:
        assert is_near(final.picture, expected["padded_image"])
    options = {"supersampling": int(sampled) // int(out), "padding": not nopad}
    face = cut_out(region.picture, region.quad, int(out), **options)
    assert is_near(face, expected["output"])


def test_five_landmarks_that_lie_where_68_have_their_means_give_the_same_square(golden):
    many = golden["plain.landmarks"]
    five = np.stack([many[36:42].mean(0), many[42:48].mean(0), many[30], many[48], many[54]])
    np.testing.assert_allclose(face_quad(five), face_quad(many), atol=1e-9)


def test_a_square_follows_its_landmarks(golden):
    """It turns, grows and moves as they do."""
    landmarks = golden["plain.landmarks"]
    angle = np.radians(30)
    turn = 2 * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    moved = face_quad(landmarks @ turn + [7, -3])
    np.testing.assert_allclose(moved, face_quad(landmarks) @ turn + [7, -3], atol=1e-9)
    assert side(moved) == pytest.approx(2 * side(face_quad(landmarks)))


@pytest.mark.parametrize(
    ("landmarks", "told"),
    [
        (np.zeros((4, 2)), r"a face has 68 or 5 landmarks \(x, y\), not an array \(4, 2\)"),
        (np.full((5, 2), np.nan), "a landmark isn't finite"),
        (np.ones((5, 2)), "the landmarks of a face lie in one point"),
    ],
)
def test_landmarks_of_no_face_are_refused(landmarks, told):
    with pytest.raises(ValueError, match=told):
        face_quad(landmarks)


def test_a_picture_that_is_a_speck_of_its_square_is_cut_out():
    """Reduced by as much as the square, it would have no pixel."""
    quad = 1e6 * np.array([[-1.0, -1], [-1, 1], [1, 1], [1, -1]])
    assert (cut_out(np.full((9, 5, 3), 77, np.uint8), quad, 8) == 77).all()
