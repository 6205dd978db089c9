"""How good, how sharp and how different images are, and how sure one can be of a mean.

Batches of images are NumPy arrays (N, H, W, 3) in [0, 1], and so are the results. Nothing here
needs downloaded weights.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve
from scipy.special import gamma
from scipy.stats import t
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import pulse_jax
from pulse_jax import calibration, images
from pulse_jax.images import LUMA

# --- What is compared. ---


def as_saved(batch):
    """Images as 8-bit files hold them."""
    return images.to_uint8(np.asarray(batch)).astype(np.float32) / 255


def render(generator, params, latents, frozen):
    """Images (N, R, R, 3) of latents, with 8 bits, computed a few at a time."""
    return as_saved(_draw(generator.synthesize, params, (latents, frozen)))


@functools.partial(jax.jit, static_argnums=0)
def _draw(synthesize, params, samples):
    return jax.lax.map(lambda z: synthesize(params, *z), samples, batch_size=8)


def with_noise_of_first(latents, frozen):
    """The same styles, all with the first restart's noise maps, so that only styles differ."""
    first = jax.tree.map(lambda leaf: leaf[:1].repeat(len(leaf), axis=0), (latents, frozen))
    styles = {name: leaf for name, leaf in latents.items() if not name.startswith("noise_")}
    return first[0] | styles, first[1]


# --- Against the truth. ---


def psnr(batch, truth):
    """Peak signal-to-noise ratio of each image, −10 log₁₀ of the mean square error, in dB: (N,).

    It is infinite for the truth itself.
    """
    with np.errstate(divide="ignore"):
        return np.array(
            [peak_signal_noise_ratio(t, x, data_range=1) for x, t in zip(batch, truth, strict=True)]
        )


def ssim(batch, truth):
    """Structural similarity of each image, the mean over its channels, at most 1: (N,).

    As in Wang et al., "Image quality assessment: from error visibility to structural similarity",
    IEEE TIP 2004: a Gaussian window of σ = 1.5 pixels, 11 × 11. Raises ValueError for images that
    are smaller than that.
    """
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return np.array(
        [
            structural_similarity(t, x, data_range=1, channel_axis=-1, **wang)
            for x, t in zip(batch, truth, strict=True)
        ]
    )


# --- Sharpness and diversity. ---


def laplacian_energy(batch):
    """Mean square of the 4-neighbour Laplacian of each image: (N,)."""
    centre = batch[:, 1:-1, 1:-1]
    neighbours = batch[:, :-2, 1:-1] + batch[:, 2:, 1:-1] + batch[:, 1:-1, :-2] + batch[:, 1:-1, 2:]
    return np.mean((neighbours - 4 * centre) ** 2, axis=(1, 2, 3))


def high_pass(batch, factor):
    """What a picture that is smaller by `factor` can't hold: the same shape, around 0.

    That is all above its Nyquist frequency, 1 / (2 factor) cycles a pixel, along either side: the
    cosines (DCT-II) from number H / factor and W / factor on. They are cosines because the Fourier
    transform would take the step from one border to the opposite one for sharpness.
    """
    spectrum = dctn(batch, axes=(1, 2), norm="ortho")
    spectrum[:, : batch.shape[1] // factor, : batch.shape[2] // factor] = 0
    return idctn(spectrum, axes=(1, 2), norm="ortho")


def diversity(batch):
    """Root mean square difference of two images, averaged over all pairs."""
    pairs = itertools.combinations(batch, 2)
    return np.mean([np.sqrt(np.mean((a - b) ** 2)) for a, b in pairs])


# --- NIQE: Mittal, Soundararajan and Bovik, "Making a 'completely blind' image quality analyzer",
# --- IEEE Signal Processing Letters 2013; equations by their numbers there.


class NiqeModel(NamedTuple):
    """The Gaussian of the features of sharp patches of pristine images."""

    mean: np.ndarray  # (36,)
    covariance: np.ndarray  # (36, 36)
    patch: int  # side of the patches, in pixels


def niqe_model(pristine, patch=32):
    """The model that `niqe` compares with, fitted to pristine images (N, H, W, 3).

    The images should be of the domain at hand, since drawings have other statistics than
    photographs. As in the paper, a patch only counts if its mean local deviation is above 0.75 of
    that of the sharpest in its image. The paper's patches have 96 pixels and don't overlap, which
    leaves none in a small image. Ours have 32 and lie a quarter of that apart, so that an image of
    64 has 25.

    Raises ValueError for a patch that isn't a multiple of 8, images with a side below two patches,
    and too few images to fit a covariance.
    """
    features, sharpness = _niqe_features(pristine, patch)
    kept = features[sharpness > 0.75 * sharpness.max(axis=1, keepdims=True)]
    count, size = kept.shape
    if count <= size:
        raise ValueError(
            f"a NIQE model needs more than {size} sharp patches, got {count} in "
            f"{len(pristine)} images"
        )
    return NiqeModel(kept.mean(axis=0), np.cov(kept.T), patch)


def niqe(batch, model):
    """Natural image quality evaluator of each image, the lower the better: (N,).

    Equation 10 is √((μ − ν)ᵀ ((Σ + Σ')/2)⁻¹ (μ − ν)), with the pseudo-inverse, between the model's
    Gaussian and that of all of the image's own patches. It knows neither the truth nor the input.
    Pristine images don't get 0, since their own Gaussian is of few patches, including blunt ones.
    Raises ValueError for images with a side below two patches.
    """
    distances = []
    for features in _niqe_features(batch, model.patch)[0]:
        difference = features.mean(axis=0) - model.mean
        inverse = np.linalg.pinv((np.cov(features.T) + model.covariance) / 2)
        distances.append(np.sqrt(difference @ inverse @ difference))
    return np.array(distances)


def fit_ggd(x, mean=np.mean):
    """Generalised Gaussian of values around 0: (α, β), by moments.

    Its density is α / (2βΓ(1/α)) exp(−(|x|/β)^α): equation 4. `mean` averages over the values of a
    sample, or over those of each patch.
    """
    absolute, square = mean(np.abs(x)), mean(x**2)
    shape = _shape(absolute**2 / np.maximum(square, 1e-12))
    return shape, np.sqrt(square * gamma(1 / shape) / gamma(3 / shape))


def fit_aggd(x, mean=np.mean):
    """Asymmetric generalised Gaussian of values around 0: (γ, η, βₗ, βᵣ), by moments.

    Its density is γ / ((βₗ + βᵣ)Γ(1/γ)) exp(−(|x|/β)^γ) with β = βₗ below 0 and βᵣ above, its mean
    η = (βᵣ − βₗ) Γ(2/γ)/Γ(1/γ): equations 7 and 8. `mean` as in `fit_ggd`.
    """

    def deviation(side):
        return np.sqrt(mean(x**2 * side) / np.maximum(mean(1.0 * side), 1e-12)) + 1e-12

    left, right = deviation(x < 0), deviation(x > 0)
    balance = left / right
    ratio = mean(np.abs(x)) ** 2 / np.maximum(mean(x**2), 1e-12)
    shape = _shape(ratio * (balance**3 + 1) * (balance + 1) / (balance**2 + 1) ** 2)
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    centre = (right - left) * scale * gamma(2 / shape) / gamma(1 / shape)
    return shape, centre, left * scale, right * scale


def _shape(ratio):
    """The α from 0.2 to 10 for which a generalised Gaussian has this (E|x|)² / E x²."""
    shapes = np.arange(0.2, 10, 0.001)
    return np.interp(
        ratio, gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes)), shapes
    )


def _niqe_features(batch, patch):
    """Features (N, patches, 36) and sharpness (N, patches): 18 features at each of two scales."""
    if patch % 8:
        raise ValueError(f"patch must be a multiple of 8, got {patch}")
    if min(batch.shape[1:3]) < 2 * patch:
        raise ValueError(
            f"NIQE with patches of {patch} needs sides of at least {2 * patch}, got {batch.shape}"
        )
    height, width = (side - side % (patch // 4) for side in batch.shape[1:3])
    grey = 255 * (batch[:, :height, :width].astype(np.float64) @ LUMA)
    features, sharpness = [], []
    for side in (patch, patch // 2):
        mean = functools.partial(_patch_means, patch=side)
        normalised, deviation = _mscn(grey)
        sharpness.append(mean(deviation))
        features += fit_ggd(normalised, mean)
        _, height, width = grey.shape
        padded = np.pad(normalised, ((0, 0), (1, 1), (1, 1)), mode="reflect")
        for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
            neighbour = padded[:, 1 + down :, 1 + across :][:, :height, :width]
            features += fit_aggd(normalised * neighbour, mean)
        half = (width // 2, height // 2)
        grey = np.stack([Image.fromarray(x).resize(half, Image.BICUBIC) for x in np.float32(grey)])
    return np.stack(features, axis=-1), sharpness[0]


def _mscn(grey):
    """Mean-subtracted, contrast-normalised coefficients, and the local deviation: equations 1–3."""
    blur = functools.partial(
        gaussian_filter, sigma=7 / 6, radius=3, axes=(1, 2), mode="nearest", output=np.float64
    )
    mean = blur(grey)
    deviation = np.sqrt(np.maximum(blur(np.float64(grey) ** 2) - mean**2, 0))
    return (grey - mean) / (deviation + 1), deviation


def _patch_means(x, patch):
    """Means over patches that lie a quarter of their side apart: (N, H, W) → (N, patches)."""
    step = patch // 4
    count, height, width = x.shape
    blocks = x.reshape(count, height // step, step, width // step, step).mean(axis=(2, 4))
    windows = np.lib.stride_tricks.sliding_window_view(blocks, (4, 4), axis=(1, 2))
    return windows.mean(axis=(-2, -1)).reshape(count, -1)


# --- Realism. ---


def realism(name):
    """A function `score(images) → (N,)` by a generator's discriminator. Higher is more real.

    One of its features is how much the images of a batch differ. Here each is judged in a batch of
    its own, where that is 0. So scores are lower than in training, but independent of other images.
    `realism_auc` says how far to trust them, and for faces64 that is 1. Raises ValueError as
    `pulse_jax.load_discriminator` does.
    """
    discriminator, params = pulse_jax.load_discriminator(name)

    @jax.jit
    def score(params, batch):
        return jax.lax.map(lambda x: discriminator(params, x[None])[0], batch, batch_size=8)

    return lambda batch: np.asarray(score(params, jnp.asarray(batch)))


def realism_auc(name, real, seed=0):
    """The `auc` with which `realism` tells real images from samples at twice the radius.

    Twice as far from the origin as a Gaussian has its mass, images fall apart. `real` are images
    (N, R, R, 3) that neither network was trained on. As many samples are drawn.
    """
    generator, params = pulse_jax.load(name)

    @jax.jit
    def draw(params, keys):
        def one(key):
            latents, frozen = generator.sample(key)
            return generator.synthesize(params, jax.tree.map(lambda z: 2 * z, latents), frozen)

        return jax.lax.map(one, keys, batch_size=8)

    score = realism(name)
    samples = as_saved(draw(params, jax.random.split(jax.random.key(seed), len(real))))
    return auc(score(real), score(samples))


def auc(positive, negative):
    """Area under the ROC curve: how often a positive value exceeds a negative one. Ties are half.

    It is 1 if all do, and ½ if the values tell nothing.
    """
    differences = np.asarray(positive)[:, None] - np.asarray(negative)
    return np.mean(np.sign(differences) + 1) / 2


# --- Fréchet distance. ---


def frechet(features_a, features_b):
    """Squared Fréchet distance of two sets of features (N, d), as Gaussians, like FID.

    |μ − ν|² + tr(Σ + Σ' − 2(Σ^½ Σ' Σ^½)^½) (Dowson and Landau, 1982), in float64. A set that is not
    much larger than d seems further off than it is. So compare sets of one size, and with the value
    for real images. Raises ValueError for a set of fewer than 2.
    """
    a, b = np.float64(features_a), np.float64(features_b)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a Fréchet distance takes at least 2 of each, got {len(a)} and {len(b)}")
    difference = a.mean(axis=0) - b.mean(axis=0)
    covariance_a, covariance_b = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_b @ root), 0)).sum()
    return difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross


def precision_recall(features_real, features_fake, k=3):
    """Improved precision and recall of two sets of features (N, d): both in [0, 1].

    They are the share of generated images that lie in the support of the real ones, and of real
    images in the support of the generated ones. The support is the union of balls around a set's
    points that reach to each one's k-th neighbour (Kynkäänniemi et al., NeurIPS 2019, equations 1
    and 2). Low precision means bad images, and low recall means few different ones. Two sets of
    real images have some 0.8 or 0.9, not 1. Raises ValueError for a set of no more than k.
    """
    real, fake = np.float64(features_real), np.float64(features_fake)
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"{k} neighbours take more images than {len(real)} and {len(fake)}")

    def squared_distances(a, b):
        return (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T

    def support(points):  # squared radii; a point's own distance, 0, is the first
        return np.partition(squared_distances(points, points), k, axis=1)[:, k]

    between = squared_distances(real, fake)
    precision = (between <= support(real)[:, None]).any(axis=0).mean()
    recall = (between <= support(fake)).any(axis=1).mean()
    return float(precision), float(recall)


def nearest_crops(batch, area):
    """For each image, the crop of an area (H, W, 3) that is nearest to it, and their distance.

    Crops lie at every place, in all eight symmetries of a square. A distance is the root mean
    square difference over the standard deviation of the image. Returns arrays "distance" (N,) and
    "crop" (N, R, R, 3).
    """
    side = batch.shape[1]
    turns = [np.rot90(np.float64(area), k) for k in range(4)]
    symmetries = turns + [turned[:, ::-1] for turned in turns]
    energies = [_windowed(turned**2, np.ones((side, side, 3))) for turned in symmetries]
    distances, crops = [], []
    for image in batch:
        best = np.inf
        for turned, energy in zip(symmetries, energies, strict=True):
            squares = (image**2).sum() + energy - 2 * _windowed(turned, image)
            at = np.unravel_index(squares.argmin(), squares.shape)
            if squares[at] < best:
                best, crop = squares[at], turned[at[0] : at[0] + side, at[1] : at[1] + side]
        distances.append(np.sqrt(np.mean((image - crop) ** 2)) / image.std())
        crops.append(crop)
    return {"distance": np.array(distances), "crop": np.stack(crops)}


def nearest_pictures(batch, pictures):
    """As `nearest_crops`, among whole pictures (M, R, R, 3) in place of an area's crops."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float32)
    energies = (flat**2).sum(1)
    best = np.full(len(batch), np.inf, np.float32)
    crops = np.empty_like(batch)
    for mirrored in (False, True):
        for turns in range(4):
            turned = np.rot90(batch[:, :, ::-1] if mirrored else batch, turns, (1, 2))
            squares = energies - 2 * turned.reshape(len(batch), -1) @ flat.T
            nearer = np.flatnonzero(squares.min(1) < best)
            best[nearer] = squares.min(1)[nearer]
            back = np.rot90(pictures[squares.argmin(1)[nearer]], -turns, (1, 2))
            crops[nearer] = back[:, :, ::-1] if mirrored else back
    errors = np.sqrt(np.mean((batch - crops) ** 2, (1, 2, 3)))
    return {"distance": errors / batch.std((1, 2, 3)), "crop": crops}


def _windowed(area, image):
    """The inner product of an image with the crop at each place, over all channels."""
    return fftconvolve(area, image[::-1, ::-1, ::-1], mode="valid")[..., 0]


def frechet_features(batch):
    """What `frechet` compares: scattering coefficients of each image, (N, 115) at a side of 64.

    They come from two layers of fixed wavelets (Bruna and Mallat, "Invariant scattering convolution
    networks", PAMI 2013), so there is nothing to train or download. A layer takes the modulus of
    Morlet wavelets in four directions, on the image or the map of the layer before, which is halved
    again and again as long as a side has 8 pixels. The second layer takes coarser scales than the
    first. Each map gives log(mean + 0.001), so that a change by some factor counts the same at each
    scale. 0.001 is what rounding to 8 bits does. The means of the three colours are added. The
    features measure textures and edges, and can't tell a face from its parts in disorder. Two sets
    of drawn faces that share none are 0.5 apart if each has 64, and 0.05 if each has 512. Faces and
    others that are blurred by one pixel are 10 apart.
    """

    @jax.jit
    def compute(batch):
        return jax.lax.map(_scattering, batch, batch_size=16)

    return np.asarray(compute(jnp.asarray(batch)))


def _scattering(image):
    """Features of one image (H, W, 3)."""
    grey = image @ jnp.asarray(LUMA, image.dtype)
    x, means = grey[None], []
    while min(x.shape[1:]) >= 8:
        first = _modulus(x)  # (4, h, w)
        means.append(first)
        coarser = _halve(first)
        while min(coarser.shape[1:]) >= 8:
            means.append(_modulus(coarser))  # (16, h, w)
            coarser = _halve(coarser)
        x = _halve(x)
    means = jnp.concatenate([m.mean(axis=(1, 2)) for m in means])
    return jnp.concatenate([image.mean(axis=(0, 1)), jnp.log(means + 1e-3)])


def _modulus(maps):
    """Moduli of four wavelets on each map: (C, h, w) → (4C, h, w)."""
    padded = jnp.pad(maps, ((0, 0), (3, 3), (3, 3)), mode="symmetric")[..., None]
    filtered = jax.lax.conv_general_dilated(
        padded,
        jnp.asarray(_wavelets(), maps.dtype),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    real, imaginary = filtered[..., :4], filtered[..., 4:]
    moduli = jnp.sqrt(real**2 + imaginary**2).transpose(0, 3, 1, 2)
    return moduli.reshape(-1, *maps.shape[1:])


def _halve(maps):
    """Means of 2 × 2 pixels: (C, h, w) → (C, h/2, w/2)."""
    count, height, width = maps.shape
    even = maps[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(count, height // 2, 2, width // 2, 2).mean(axis=(2, 4))


def _wavelets():
    """Morlet wavelets in four directions, real parts, then imaginary ones: (7, 7, 1, 8).

    e^{iξ·x} − κ under a Gaussian of 0.8 pixels, |ξ| = 3π/4, with κ for a mean of 0.
    """
    y, x = np.mgrid[-3:4, -3:4]
    envelope = np.exp(-(x**2 + y**2) / (2 * 0.8**2))
    envelope /= envelope.sum()
    found = []
    for angle in np.pi * np.arange(4) / 4:
        wave = np.exp(0.75j * np.pi * (x * np.cos(angle) + y * np.sin(angle)))
        found.append(envelope * (wave - (envelope * wave).sum()))
    return np.stack([w.real for w in found] + [w.imag for w in found], axis=-1)[:, :, None]


# --- How sure. ---


def wilson(successes, trials):
    """Interval (low, high) of 95% of a share of which `successes` of `trials` were seen.

    It is that of `calibration.wilson`. Raises ValueError for counts that can't be.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials can't be")
    low, high = calibration.wilson(np.array([successes / trials]), np.array([trials], float))
    return float(low[0]), float(high[0])


def mean_interval(values):
    """Mean over axis 0, and the interval that holds it with 95%: (mean, low, high).

    It is Student's, of 1908, which holds for few values too. The bootstrap, percentiles of
    resampled means, doesn't: for five normal values, it holds the mean with 84%. What depends on
    one another, such as restarts for one image, must be one value, so pass the means per image. A
    single value says nothing of others, and its interval is NaN.
    """
    values = np.asarray(values, np.float64)
    count, mean = len(values), values.mean(axis=0)
    if count == 1:
        return mean, mean * np.nan, mean * np.nan
    half = t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / np.sqrt(count)
    return mean, mean - half, mean + half


def mean_share(shares):
    """Mean over images of the share of an image's restarts that met something: (mean, low, high).

    The interval is Wilson's, for 95%. Restarts for one image aren't independent, so each image
    counts as one trial.
    """
    shares = np.asarray(shares, np.float64)
    return float(shares.mean()), *wilson(shares.sum(), len(shares))


def paired(a, b):
    """`mean_interval` of a − b, where a and b measure the same images."""
    return mean_interval(np.subtract(a, b))


def bracketed(mean, low, high):
    """Such an interval as text."""
    return f"{mean:.3g} [{low:.3g}, {high:.3g}]"
