"""Data sets: their batches are functions of a key, and held-out areas never get into them."""

from common import door
from common.data import PHOTOGRAPHS, crops, drawn_faces, folder, held_out_crops, photograph

import jax
import numpy as np
import pytest

from pulse_jax import images


def occurs(crop, picture):
    """Whether a crop (R, R, 3) of 8 bits is somewhere in a picture, in one of 8 symmetries."""
    side = len(crop)
    windows = np.lib.stride_tricks.sliding_window_view(picture, (side, side), axis=(0, 1))
    forms = [np.rot90(form, k) for form in (crop, crop[:, ::-1]) for k in range(4)]
    for form in forms:
        alike = (windows[..., 0, 0] == form[0, 0]).all(axis=-1)  # candidates by their corner
        if (windows[alike] == form.transpose(2, 0, 1)).all(axis=(1, 2, 3)).any():
            return True
    return False


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photographs_crops_are_of_the_part_they_are_drawn_from(name):
    found = photograph(name, 32)
    rows = len(PHOTOGRAPHS[name]())
    assert found.train.shape[1] + found.held_out.shape[1] == rows
    assert rows / 5 < found.held_out.shape[1] < rows / 3
    for source, other in [(found.train, found.held_out), (found.held_out, found.train)]:
        batch = np.asarray(found.draw(source, jax.random.key(0), 6)[0])
        assert batch.shape == (6, 32, 32, 3)
        crops = np.rint((batch + 1) * 127.5).astype(np.uint8)
        assert all(occurs(crop, source[0]) for crop in crops)
        assert not any(occurs(crop, other[0]) for crop in crops)


def test_all_places_and_symmetries_are_drawn():
    rows, columns, colours = np.meshgrid(range(3), range(4), range(3), indexing="ij")
    picture = (rows * 40 + columns * 10 + colours).astype(np.uint8)
    draw = jax.jit(crops(2, 8), static_argnums=2)
    batch, _ = draw(picture[None], jax.random.key(0), 600)
    assert len(np.unique(np.asarray(batch), axis=0)) == 2 * 3 * 8
    mirrored, _ = jax.jit(crops(2, 2), static_argnums=2)(picture[None], jax.random.key(0), 200)
    assert len(np.unique(np.asarray(mirrored), axis=0)) == 2 * 3 * 2


def test_batches_repeat_by_key():
    found = photograph("tissue", 16)
    batches = [np.asarray(found.draw(found.train, jax.random.key(k), 2)[0]) for k in (3, 3, 4)]
    assert np.array_equal(batches[0], batches[1]) and not np.array_equal(batches[0], batches[2])


def test_held_out_faces_are_others():
    """By their attributes; to draw them would take long to compile."""
    found = drawn_faces(8)
    attributes = jax.jit(lambda source: found.draw(source, jax.random.key(0), 2)[1])
    train, held_out = attributes(found.train), attributes(found.held_out)
    for ours, others in zip(train, held_out, strict=True):
        assert len(ours) == len(others) == 2
    assert not (train.skin == held_out.skin).any()


@pytest.mark.slow
def test_drawn_batches_are_of_faces_from_minus_1_to_1():
    found = drawn_faces(8)
    draw = jax.jit(found.draw, static_argnums=2)
    train, held_out = (
        draw(source, jax.random.key(0), 2)[0] for source in (found.train, found.held_out)
    )
    assert np.abs(train - held_out).max() > 0.1
    for batch in (train, held_out):
        assert batch.shape == (2, 8, 8, 3) and -1 <= batch.min() < 0 < batch.max() <= 1


def test_a_folder_is_cropped_mirrored_and_split(tmp_path):
    for k in range(21):
        shape = [(8, 8, 3), (12, 20, 3), (30, 9, 3)][k % 3]
        images.save_image(tmp_path / f"{k:02d}.png", np.random.default_rng(k).random(shape))
    found = folder(tmp_path, 8)
    assert found.train.shape == (19, 8, 8, 3) and found.held_out.shape == (2, 8, 8, 3)
    batch = np.asarray(found.draw(found.train, jax.random.key(0), 200)[0])
    square = 2 * images.load_image(tmp_path / "00.png") - 1  # needs no crop
    both = [np.abs(batch - s).max(axis=(1, 2, 3)) < 1e-5 for s in (square, square[:, ::-1])]
    assert both[0].any() and both[1].any() and not (both[0] & both[1]).any()
    for path in sorted(tmp_path.iterdir())[9:]:
        path.unlink()
    few = folder(tmp_path, 8)
    assert not door.failed and len(few.train) == len(few.held_out) == 9


def test_a_damaged_image_keeps_none_of_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(door, "failed", False)
    for name in "ac":
        images.save_image(tmp_path / f"{name}.png", np.zeros((8, 8, 3)))
    (tmp_path / "b.png").write_bytes(b"")
    found = folder(tmp_path, 8)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'b.png'}: " in line
    assert len(found.train) == 2 and door.failed
    for name in "ac":
        (tmp_path / f"{name}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no image that can be read"):
        folder(tmp_path, 8)


def test_held_out_crops_tile_the_held_out_area():
    crops = held_out_crops("tissue", 64)
    area = photograph("tissue", 64).held_out[0]
    assert crops.shape == (16, 64, 64, 3) and len(held_out_crops("galaxies", 64)) == 45
    assert np.array_equal(crops[9], area[64:, 64:128] / np.float32(255))


def test_a_side_that_leaves_nothing_held_out_is_told():
    with pytest.raises(ValueError, match="--data=tissue: 128 rows are held out, no side of 256"):
        photograph("tissue", 256)
