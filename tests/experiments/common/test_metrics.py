"""The measures: known values, recovered parameters, and the order of what is plainly better."""

from common.metrics import (
    as_saved,
    auc,
    diversity,
    fit_aggd,
    fit_ggd,
    frechet,
    frechet_features,
    high_pass,
    laplacian_energy,
    mean_interval,
    mean_share,
    nearest_crops,
    nearest_pictures,
    niqe,
    niqe_model,
    paired,
    precision_recall,
    psnr,
    realism,
    realism_auc,
    ssim,
    wilson,
)

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from test_faces import SAMPLE, drawn

import pulse_jax


@pytest.fixture(scope="module")
def faces():
    keys = jax.random.split(jax.random.key(5), 192)
    return as_saved(drawn(SAMPLE(keys)))


@pytest.fixture(scope="module")
def samples():
    generator, params = pulse_jax.load("faces64")

    @jax.jit
    def draw(params, keys):
        def one(key):
            return generator.synthesize(params, *generator.sample(key))

        return jax.lax.map(one, keys, batch_size=8)

    return as_saved(draw(params, jax.random.split(jax.random.key(6), 64)))


def blurred(batch, sigma):
    return gaussian_filter(batch, (0, sigma, sigma, 0))


def noisy(batch, deviation):
    noise = np.random.default_rng(0).standard_normal(batch.shape, np.float32)
    return (batch + deviation * noise).clip(0, 1)


# --- Against the truth. ---


def test_psnr_of_known_errors():
    truth = np.full((2, 16, 16, 3), 0.5)
    wrong = truth + np.array([0.1, 0.01])[:, None, None, None]
    np.testing.assert_allclose(psnr(wrong, truth), [20, 40], atol=1e-6)


def test_ssim_is_of_each_image_and_at_most_1(faces):
    truth = faces[:4]
    changed = truth.copy()
    changed[1] = blurred(truth, 1)[1]
    changed[2] = blurred(truth, 2)[2]
    found = ssim(changed, truth)
    assert found[0] == found[3] == 1 and found[2] < found[1] < 1


def test_ssim_of_constants():
    """Only the means differ: (2ab + C) / (a² + b² + C) with C = 0.01² (the paper's eq. 6)."""
    a, b = 0.4, 0.6
    found = ssim(np.full((1, 11, 11, 3), a), np.full((1, 11, 11, 3), b))
    np.testing.assert_allclose(found, (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4), atol=1e-9)
    with pytest.raises(ValueError):
        ssim(np.zeros((1, 10, 10, 3)), np.zeros((1, 10, 10, 3)))


# --- Sharpness and diversity. ---


def test_what_a_small_picture_can_hold_has_no_high_frequencies():
    """A cosine below the Nyquist frequency of the small picture, and one above it."""
    at = (np.arange(64) + 0.5) / 64
    slow, fast = (np.cos(np.pi * k * at)[:, None, None] * np.ones((64, 3)) for k in (7, 8))
    batch = np.stack([slow, fast, slow.swapaxes(0, 1), fast.swapaxes(0, 1), slow + fast])
    high = high_pass(batch, 8)
    energies = (high**2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(energies, [0, 0.5, 0, 0.5, 0.5], atol=1e-9)
    np.testing.assert_allclose(high[4], fast, atol=1e-9)


def test_energies_tell_blur(faces):
    for energy in (laplacian_energy, lambda x: (high_pass(x, 8) ** 2).mean(axis=(1, 2, 3))):
        levels = [energy(x) for x in (faces[:8], blurred(faces[:8], 1), blurred(faces[:8], 2))]
        assert (levels[0] > levels[1]).all() and (levels[1] > levels[2]).all()


def test_diversity_is_the_mean_over_pairs():
    batch = np.array([0.0, 0.1, 0.4])[:, None, None, None] * np.ones((4, 4, 3))
    np.testing.assert_allclose(diversity(batch), (0.1 + 0.4 + 0.3) / 3)


# --- NIQE. ---


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0])
def test_generalised_gaussians_are_recovered(shape):
    """|x|^α / β^α has a gamma distribution of shape 1/α."""
    rng = np.random.default_rng(0)
    x = 0.7 * rng.gamma(1 / shape, size=200_000) ** (1 / shape) * rng.choice([-1, 1], 200_000)
    np.testing.assert_allclose(fit_ggd(x), (shape, 0.7), rtol=0.03)


@pytest.mark.parametrize("shape", [0.7, 2.0])
def test_asymmetric_generalised_gaussians_are_recovered(shape):
    """A side is drawn with the share of its scale; E x is the third parameter."""
    rng = np.random.default_rng(0)
    left, right = 0.3, 0.9
    is_right = rng.random(400_000) < right / (left + right)
    size = rng.gamma(1 / shape, size=400_000) ** (1 / shape)
    x = size * np.where(is_right, right, -left)
    found = fit_aggd(x)
    np.testing.assert_allclose(found, (shape, x.mean(), left, right), rtol=0.03)


def test_niqe_gets_worse_with_blur_and_with_noise(faces):
    model = niqe_model(faces[:128])
    held_out = niqe(faces[128:], model).mean()
    for damage, levels in ((blurred, (0.6, 1.2, 2.4)), (noisy, (0.03, 0.06, 0.12))):
        worse = [held_out, *(niqe(damage(faces[128:], level), model).mean() for level in levels)]
        assert np.all(np.diff(worse) > 0.05 * held_out), worse
    assert abs(held_out / niqe(faces[:128], model).mean() - 1) < 0.1


def test_niqe_says_what_it_needs(faces):
    with pytest.raises(ValueError, match=r"at least 128, got \(1, 64"):
        niqe_model(faces[:1], patch=64)
    with pytest.raises(ValueError, match="multiple of 8, got 36"):
        niqe_model(faces[:1], patch=36)
    with pytest.raises(ValueError, match="more than 36 sharp patches"):
        niqe_model(faces[:1])


# --- Realism. ---


def test_realism_is_of_each_image_alone(faces):
    score = realism("faces64")
    one, other = score(faces[:8]), score(faces[4:12])
    np.testing.assert_allclose(one[4:], other[:4], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_discriminator_tells_faces_from_samples_at_twice_the_radius(faces):
    assert realism_auc("faces64", faces[:64]) >= 0.9


def test_auc_counts_pairs():
    assert auc([3, 4], [1, 2]) == 1 and auc([1, 2], [3, 4]) == 0
    assert auc([1, 2], [1, 3]) == (0.5 + 0 + 1 + 0) / 4


# --- Fréchet distance. ---


def test_frechet_of_known_gaussians():
    """Axis by axis: (μ − ν)² + (σ − τ)²; samples with exactly these moments."""
    cross = np.concatenate([np.eye(3), -np.eye(3)]) * np.sqrt(5 / 2)  # unit covariance
    a, b = cross * [1, 2, 3], cross * [2, 2, 5] + [0, 1, 0]
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))
    np.testing.assert_allclose(frechet(a @ turn, b @ turn), 1 + 1 + 4, rtol=1e-9)
    assert abs(frechet(a, a)) < 1e-9
    with pytest.raises(ValueError, match="got 1 and 6"):
        frechet(a[:1], b)


def test_frechet_orders_what_is_plainly_better(faces, samples):
    real = frechet_features(faces[64:])
    sets = faces[:64], samples, blurred(faces[:64], 1), noisy(faces[:64], 0.2)
    distances = [frechet(frechet_features(x), real) for x in sets]
    assert np.all(np.diff(distances) > 0.2 * distances[0]), distances


def test_precision_and_recall_of_known_sets():
    """Points on a line, a step apart: a ball reaches to the third neighbour."""
    real = np.arange(10.0)[:, None]
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    assert precision_recall(real, real / 100 + 5) == (1, 0.1)  # good, but all alike
    few_good = np.concatenate([real, 1000 * (1 + real)])
    assert precision_recall(real, few_good) == (0.5, 1)
    with pytest.raises(ValueError, match="3 neighbours take more images than 3 and 10"):
        precision_recall(real[:3], real)


def test_wavelets_have_no_mean_and_a_direction():
    """Stripes and their negative have the same features; stripes across, others."""
    stripes = 0.5 + 0.3 * np.sin(2.3 * np.arange(32))[:, None, None] * np.ones((32, 3))
    flat = np.full((32, 32, 3), 0.5)
    batch = np.float32([stripes, stripes.swapaxes(0, 1), flat, flat + 0.1])
    down, across, grey, lighter = frechet_features(batch)
    np.testing.assert_allclose(grey[3:], np.log(1e-3), atol=1e-3)
    np.testing.assert_allclose(lighter[3:], grey[3:], atol=1e-3)
    assert np.abs(down - across)[3:].max() > 1


# --- How sure. ---


def test_wilson_has_the_published_intervals():
    """Newcombe, Statistics in Medicine 1998, table I: score intervals without continuity."""
    for (successes, trials), interval in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        np.testing.assert_allclose(wilson(successes, trials), interval, atol=6e-5)
        mirrored = wilson(trials - successes, trials)
        np.testing.assert_allclose(mirrored, (1 - interval[1], 1 - interval[0]), atol=6e-5)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def test_an_image_is_one_trial():
    """However many restarts its share is of."""
    assert mean_share([1, 0.5, 0, 0.5]) == (0.5, *wilson(2, 4))


@pytest.mark.parametrize("count", [2, 5, 40])
def test_intervals_hold_the_mean(count):
    """95% of those of 4,000 samples, however small they are."""
    draws = np.random.default_rng(0).normal(1, size=(count, 4000))
    mean, low, high = mean_interval(draws)
    np.testing.assert_allclose(mean, draws.mean(axis=0))
    assert np.mean((low <= 1) & (high >= 1)) == pytest.approx(0.95, abs=0.01)
    assert np.isnan(mean_interval([1.0])[1])


def test_paired_intervals_ignore_what_images_share():
    rng = np.random.default_rng(0)
    shared, noise = 10 * rng.standard_normal(50), 0.1 * rng.standard_normal(50)
    mean, low, high = paired(shared + 1 + noise, shared)
    assert 0.9 < low < mean < high < 1.1 and abs(mean - 1 - noise.mean()) < 1e-9


def test_the_nearest_crop_of_a_copy_is_the_copy():
    rng = np.random.default_rng(0)
    area = rng.uniform(size=(20, 30, 3)).astype(np.float32)
    copies = [
        area[5:13, 20:28],
        np.rot90(area, 1)[3:11, 7:15],
        area[:, ::-1][12:20, :8],
        np.rot90(area, 3)[:, ::-1][20:28, 12:20],
    ]
    found = nearest_crops(np.stack(copies), area)
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
    found = nearest_crops(image, area)
    np.testing.assert_allclose(found["distance"], [expected], rtol=1e-9)


def test_of_pictures_the_nearest_is_that_of_an_area_as_small():
    rng = np.random.default_rng(2)
    pictures, batch = rng.uniform(size=(2, 5, 8, 8, 3)).astype(np.float32)
    found = nearest_pictures(batch, pictures)
    each = [nearest_crops(batch, picture) for picture in pictures]
    nearest = np.argmin([other["distance"] for other in each], 0)
    for i, k in enumerate(nearest):
        np.testing.assert_allclose(found["distance"][i], each[k]["distance"][i], rtol=1e-5)
        np.testing.assert_array_equal(found["crop"][i], np.float32(each[k]["crop"][i]))
