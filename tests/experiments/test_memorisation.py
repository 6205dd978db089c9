"""Whether samples repeat the training data: copies are found at any place, turned or mirrored."""

import memorisation
import numpy as np


def test_the_nearest_crop_of_a_copy_is_the_copy():
    rng = np.random.default_rng(0)
    area = rng.uniform(size=(20, 30, 3)).astype(np.float32)
    copies = [
        area[5:13, 20:28],
        np.rot90(area, 1)[3:11, 7:15],
        area[:, ::-1][12:20, :8],
        np.rot90(area, 3)[:, ::-1][20:28, 12:20],
    ]
    found = memorisation.nearest(np.stack(copies), area)
    assert found["distance"].max() < 1e-6
    np.testing.assert_allclose(found["crop"], copies, atol=1e-6)


def test_distances_are_those_of_a_plain_search():
    rng = np.random.default_rng(1)
    area, image = rng.uniform(size=(9, 10, 3)), rng.uniform(size=(1, 8, 8, 3))
    turns = [np.rot90(area, k) for k in range(4)]
    crops = [
        turned[y : y + 8, x : x + 8]
        for turned in turns + [t[:, ::-1] for t in turns]
        for y in range(turned.shape[0] - 7)
        for x in range(turned.shape[1] - 7)
    ]
    expected = min(np.sqrt(np.mean((image[0] - crop) ** 2)) for crop in crops) / image.std()
    found = memorisation.nearest(image, area)
    np.testing.assert_allclose(found["distance"], [expected], rtol=1e-9)


def test_copies_are_told_from_held_out_crops():
    samples, crops = np.array([0.1, 0.2, 0.9]), np.array([0.5, 0.6, 0.7, 0.8])
    of_samples, of_crops = memorisation.summarise(samples, crops)
    assert of_samples["share nearer than all crops"] == 2 / 3
    assert of_samples["nearest"] == 0.1 and of_crops["share nearer than all crops"] == 0
    assert of_samples["mean − that of crops"].startswith("-0.25 [")
