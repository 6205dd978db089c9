"""A map of the Earth is cut into crops that are true to scale and show land."""

import numpy as np
from experiment_helpers import complaints

from pulse_jax.images import load_image, save_image


def crops(folder):
    return [load_image(path) for path in sorted(folder.iterdir())]


def test_a_map_is_cut_into_crops(tmp_path):
    rows, columns = np.mgrid[:256, :512]
    latitude = 90 - rows * 180 / 256
    land = (columns < 128) | (columns >= 400)  # up to 90° west, and from 101° east
    meridians = columns // 4 % 2
    pixels = [np.where(land, 0.9, 0.1), meridians, np.where(land, abs(latitude) / 180, 0.6)]
    save_image(tmp_path / "map.png", np.stack(pixels, axis=-1))
    assert complaints("crop_earth", "--map=map.png --resolution=32", cwd=tmp_path) == [None]
    train = crops(tmp_path / "runs" / "earth" / "train")
    assert len(train) > 100 and len(crops(tmp_path / "runs" / "earth" / "held_out")) > 5
    shares = [np.mean(crop[..., 0] > 0.5) for crop in train]
    assert min(shares) >= 0.1 and max(shares) == 1
    on_land = [crop for crop, share in zip(train, shares, strict=True) if share == 1]
    # Meridians are as many times closer together as the cosine of the latitude says.
    for crop in on_land:
        middle = np.deg2rad(180 * crop[15:17, :, 2].mean())
        crossed = np.count_nonzero(np.diff(crop[16, :, 1] > 0.5))
        assert abs(crossed - 8 / np.cos(middle)) < 2

    save_image(tmp_path / "sea.png", np.broadcast_to(np.eye(3)[2], (256, 512, 3)))
    save_image(tmp_path / "other.png", np.zeros((200, 300, 3)))
    of_sea = "--map=sea.png --resolution=32 --output_dir=none"
    nowhere = "--map=~nosuch/map.png", "--map=map.png --output_dir=~nosuch"
    bad = f"{of_sea} --latitude=10", f"{of_sea} --land=0.5", *nowhere
    bad = *bad, "--map=other.png --output_dir=none"
    *lines, last = complaints("crop_earth", "--map=map.png", *bad, cwd=tmp_path)
    rows = "28.4 rows of the map are up to there, and crops have 32"
    assert lines == [
        "crop_earth: runs/earth/train isn't empty",
        f"crop_earth: --latitude=10: {rows}",
        "crop_earth: --land=0.5: none of 778 crops has so much",
        "crop_earth: --map=~nosuch/map.png: no home is known for ~nosuch",
        "crop_earth: --output_dir=~nosuch: no home is known for ~nosuch",
    ]
    assert "--map=other.png: 300×200 is no map of all of the Earth" in last
    assert not (tmp_path / "none").exists()
