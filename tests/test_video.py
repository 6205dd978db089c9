"""Videos: the frames of restarts side by side, as WebP or MP4."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from pulse_jax import images
from pulse_jax.upsampling import video

COLOURS = np.array([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9]])


def plain(colour, side=128):
    return np.broadcast_to(colour, (side, side, 3)).astype(np.float32)


@pytest.fixture
def frames(tmp_path):
    """Two restarts that fade to their colours; the second ends after four steps."""
    made = []
    for number, ends in ((1, 6), (2, 4)):
        steps = range(2, ends + 1, 2)
        paths = [tmp_path / f"{number:06d}.{step:06d}.png" for step in steps]
        for step, path in zip(steps, paths, strict=True):
            images.save_image(path, plain(COLOURS[number - 1] * step / ends))
        made.append(paths)
    return made


def test_frames_have_a_size_to_look_at():
    assert video.frame(plain(0.5, side=8)).shape == (128, 128, 3)
    assert video.frame(plain(0.5, side=200)).shape == (200, 200, 3)
    assert video.frame(plain(0.5, side=1024)).shape == (256, 256, 3)


def test_a_webp(frames, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    video.save(tmp_path, frames, [plain(0.8 * colour) for colour in COLOURS[:2]])
    with Image.open(tmp_path / "search.webp") as file:
        assert (file.n_frames, file.size) == (4, (260, 128))
        for number, shares in enumerate([(2 / 6, 2 / 4), (4 / 6, 1), (1, 1), (0.8, 0.8)]):
            file.seek(number)
            pixels = np.asarray(file.convert("RGB")) / 255
            seen = pixels[64, 64], pixels[64, 200]
            for share, colour, pixel in zip(shares, COLOURS[:2], seen, strict=True):
                np.testing.assert_allclose(pixel, share * colour, atol=0.03)
        assert file.info["duration"] == 1000


def test_restarts_that_are_not_finite_are_left_out(frames, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    results = [plain(0.8 * colour) for colour in COLOURS[:2]]
    video.save(tmp_path, [frames[0], [], frames[1]], results)
    with Image.open(tmp_path / "search.webp") as file:
        assert (file.n_frames, file.size) == (4, (260, 128))


def test_an_mp4(frames, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="without it, videos are WebP files")
    frames = [[*map(shrink, paths)] for paths in frames]
    results = [plain(colour, side=127) for colour in COLOURS[:2]]
    video.save(tmp_path, frames, results)
    assert not (tmp_path / "search.webp").exists()
    reader = ffmpeg.read_frames(tmp_path / "search.mp4")
    meta = next(reader)
    assert meta["fps"] == video.RATE and meta["size"] == (258, 128)  # even, as the codec needs it
    pictures = [np.frombuffer(frame, np.uint8).reshape(128, 258, 3) for frame in reader]
    assert len(pictures) == 4 + video.RATE
    np.testing.assert_allclose(pictures[-1][64, 64] / 255, COLOURS[0], atol=0.06)
    np.testing.assert_allclose(pictures[0][64, 200] / 255, COLOURS[1] / 2, atol=0.06)


def shrink(path):
    images.save_image(path, images.load_image(path)[1:, 1:])
    return path
