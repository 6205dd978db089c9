"""StyleGAN 3 against the numbers of NVIDIA's PyTorch program, its parts against definitions."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.signal
import scipy.special
from helpers import as_dtype, both_precisions, golden, precisions, relative_error, weights
from jax import lax

from pulse_jax import SCHEMES, Loss, build, operators, style_generator
from pulse_jax.generators import checkpoint
from pulse_jax.generators.official.parameters import persistent_modules, persistent_state
from pulse_jax.generators.official.stylegan3 import from_stylegan3
from pulse_jax.generators.style_network import truncate
from pulse_jax.generators.stylegan3 import (
    FourierFeatures,
    Resampling,
    Signal,
    StyleGAN3,
    border,
    downsample,
    lowpass,
    upsample,
)

CONFIGS = {
    "sg3T": StyleGAN3(64, (*[20] * 7, 16, 16), 28, 2, 24, conv_clamp=256.0),
    "sg3R": StyleGAN3(
        32, (14,) * 7, 16, 2, 20, kernel_size=1, radial_filters=True, conv_clamp=256.0
    ),
}
every_config = pytest.mark.parametrize("config", CONFIGS)
in_both_precisions = both_precisions(1e-4, 1e-8)


def generator_file(config="sg3R"):
    """The persistent module, with its parts by name."""
    root = weights(f"{config}.pkl")["G_ema"]
    return root, persistent_modules(root)


def nchw(images):
    return images.transpose(0, 3, 1, 2)


# Parity.


@in_both_precisions
@every_config
def test_mapping_and_truncation_equal_the_reference(config, x64, dtype, bound):
    module, params = from_stylegan3(generator_file(config)[0])
    arrays = golden(config)
    with jax.enable_x64(x64):
        params, z = as_dtype((params, arrays["z"]), dtype)
        mapping = jax.jit(functools.partial(module.apply, method="mapping"))
        w = mapping({"params": params}, z)
        w = np.repeat(w[:, None], module.num_layers, axis=1)
        truncated = jax.jit(truncate, static_argnums=(2, 3))(w, params["latent_average"], 0.6, 4)
    assert w.dtype == truncated.dtype == dtype
    assert relative_error(w, arrays["w_psi1"]) <= bound
    assert relative_error(truncated, arrays["w_trunc"]) <= bound


@pytest.mark.parametrize(
    ("x64", "dtype", "bound"),
    [
        pytest.param(False, "float32", 1e-4, marks=[pytest.mark.slow, pytest.mark.optimised]),
        (True, "float64", 1e-8),
    ],
)
@every_config
def test_synthesis_and_its_gradient_equal_the_reference(config, x64, dtype, bound):
    module, params = from_stylegan3(generator_file(config)[0])
    arrays = golden(config)

    @jax.jit
    def gradient(w, params, cotangent):
        def loss(w):
            everything = {"capture_intermediates": True, "mutable": "intermediates"}
            image, state = module.apply({"params": params}, w, [], method="synthesis", **everything)
            features = state["intermediates"]["synthesis"]["input"]["__call__"][0]
            return jnp.sum(nchw(image)[2:] * cotangent), (image, features)

        return jax.grad(loss, has_aux=True)(w)

    w = np.concatenate([arrays["w_psi1"], arrays["ws_mixed"]])
    with jax.enable_x64(x64):
        grad, (images, features) = gradient(*as_dtype((w, params, arrays["cotangent"]), dtype))
    assert images.dtype == grad.dtype == dtype
    assert relative_error(nchw(features)[2:], arrays["input_features"]) <= bound
    assert relative_error(nchw(images)[:2], arrays["image_z"]) <= bound
    assert relative_error(nchw(images)[2:], arrays["image_mixed"]) <= bound
    assert relative_error(grad[2:], arrays["grad_ws"]) <= bound
    assert not grad[:2].any()  # one image doesn't depend on another


# The file.


@every_config
def test_settings_follow_from_the_file(config):
    module, _ = from_stylegan3(generator_file(config)[0])
    assert module == CONFIGS[config]


@every_config
def test_filters_are_those_of_the_file(config):
    state = persistent_state(generator_file(config)[1])
    for i, resampling in enumerate(CONFIGS[config].resamplings):
        for part in ("up_filter", "down_filter"):
            (name,) = (name for name in state if re.search(rf"\.L{i}_.*\.{part}$", name))
            np.testing.assert_array_equal(getattr(resampling, part), state[name])


def conditional(modules):
    modules[""]["c_dim"] = 10


def another_margin(modules):
    modules["synthesis"]["_init_kwargs"]["margin_size"] = 12


def another_default(modules):
    modules["synthesis"]["num_critical"] = 1


def another_padding(modules):
    modules["synthesis.L3_52_14"]["padding"] = [-1, -6, -2, -5]


def another_filter(modules):
    modules["synthesis.L2_36_14"]["_buffers"]["down_filter"] = np.full((12, 12), 1 / 144)


def a_separable_filter(modules):
    modules["synthesis.L2_36_14"]["_buffers"]["down_filter"] = np.full(12, 1 / 12)


def another_activation(modules):
    modules["mapping.fc1"]["activation"] = "relu"


def another_clamp(modules):
    modules["synthesis.L1_36_14"]["conv_clamp"] = 2


def no_weight(modules):
    del modules["synthesis.input"]["_parameters"]["weight"]


def one_entry_more(modules):
    modules["synthesis.L0_36_14"]["_parameters"]["noise_strength"] = np.zeros(())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (conditional, "c_dim = 10 is not supported, only 0"),
        (another_margin, "margin_size = 10 is not supported, only 12"),
        (another_default, "num_critical = 1"),
        (another_padding, r"synthesis.L3_52_14.padding = \[-1, -6"),
        (another_filter, "synthesis.L2_36_14.down_filter"),
        (a_separable_filter, "synthesis.L2_36_14.down_filter"),
        (another_activation, "mapping.fc1.activation = 'relu'"),
        (another_clamp, "synthesis.L1_36_14.conv_clamp = 2"),
        (no_weight, "'synthesis.input.weight' is missing"),
        (one_entry_more, "'synthesis.L0_36_14.noise_strength' has no place"),
    ],
)
def test_other_networks_are_refused(change, message):
    root, modules = generator_file()
    change(modules)
    with pytest.raises(ValueError, match=message):
        from_stylegan3(root)


# Filters and resampling.

SIGNALS = [Signal(276, 256, 90.5, 37.5), Signal(36, 16, 2.0, 6.0), Signal(36, 16, 7.9, 0.5)]


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("taps", [12, 24, 3])
def test_separable_filters_are_scipys(signal, taps):
    rate = 2 * signal.rate
    options = {"cutoff": signal.cutoff, "width": 2 * signal.half_width, "fs": rate}
    expected = scipy.signal.firwin(taps, **options)
    np.testing.assert_allclose(lowpass(signal, taps, rate), expected, rtol=1e-7)


@pytest.mark.parametrize("signal", SIGNALS)
def test_radial_filters_are_windowed_jincs(signal):
    taps, rate = 12, 2 * signal.rate
    position = (np.arange(taps) - 5.5) / rate
    r = np.hypot(position[:, None], position)
    attenuation = scipy.signal.kaiser_atten(taps, 2 * signal.half_width / (rate / 2))
    window = np.kaiser(taps, scipy.signal.kaiser_beta(attenuation))
    expected = scipy.special.j1(2 * np.pi * signal.cutoff * r) / r * np.outer(window, window)
    expected /= expected.sum()
    actual = lowpass(signal, taps, rate, radial=True)
    assert np.abs(actual - expected).max() <= 1e-7 * expected.max()


def by_definition(x, resampling):
    """Zeros inserted, padded, filtered, squared; filtered, and every `down`th sample kept."""
    _, up, up_filter, down, down_filter, (before, after) = resampling
    if down_filter.ndim == 1:
        down_filter = np.outer(down_filter, down_filter)

    def convolve(x, kernel, **options):
        channels = x.shape[-1]
        kernel = jnp.tile(kernel[::-1, ::-1, None, None], channels)
        layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": channels}
        return lax.conv_general_dilated(x, kernel, **layout, **options)

    edges = [(before, after + up - 1)] * 2  # zeros after the last sample, too
    strides = {"window_strides": (1, 1), "lhs_dilation": (up, up)}
    y = convolve(x, up**2 * np.outer(up_filter, up_filter), padding=edges, **strides)
    return convolve(y**2, down_filter, padding="VALID", window_strides=(down, down))


def in_phases(x, resampling):
    low, high, skip = border(resampling, x.shape[1])
    crop = (min(low, 0), min(high, 0), 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), crop, crop, (0, 0, 0)))
    phases = upsample(x, resampling, (max(low, 0), max(high, 0)))
    return downsample([[y**2 for y in row] for row in phases], resampling, skip)


@pytest.mark.parametrize(
    ("up", "down", "axes", "rows", "size", "shift"),
    [
        (2, 2, 1, 8, 8, 0),
        (2, 2, 2, 8, 8, 1),
        (2, 2, 1, 14, 6, 0),  # a margin is cropped
        (4, 2, 1, 8, 16, 1),
        (4, 2, 2, 8, 11, 0),
        (4, 4, 1, 6, 6, 2),
        (2, 1, 1, 8, 16, 0),
        (1, 1, 1, 8, 8, 0),
    ],
)
def test_resampling_in_phases_is_resampling(up, down, axes, rows, size, shift):
    """With filters that no symmetry hides from being turned round."""
    rng = np.random.default_rng(0)
    lengths = [6 * up if up > 1 else 1, 4 * down if down > 1 else 1]
    up_filter, down_filter = rng.normal(size=lengths[0]), rng.normal(size=axes * lengths[1:])
    up_filter, down_filter = (f / np.abs(f).sum() for f in (up_filter, down_filter))
    total = (size - 1) * down + sum(lengths) - 1 - rows * up
    before = total // 2 + shift
    resampling = Resampling(size, up, up_filter, down, down_filter, (before, total - before))

    def everything(resample, x):
        def loss(x):
            y = resample(x, resampling)
            return jnp.sum(y**3), y

        def penalty(x):
            return jnp.sum(jax.grad(loss, has_aux=True)(x)[0] ** 2)

        return *jax.value_and_grad(loss, has_aux=True)(x), jax.grad(penalty)(x)

    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, rows, rows, 3)))
        actual = jax.tree.leaves(jax.jit(functools.partial(everything, in_phases))(x))
        expected = jax.tree.leaves(jax.jit(functools.partial(everything, by_definition))(x))
    assert actual[1].shape == (2, size, size, 3)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) <= 1e-12


def test_styles_turn_and_shift_as_the_users_transform_does():
    """With a style at rest, the transform R T gives what the style (R, T) gives."""
    module = FourierFeatures(5, Signal(12, 16, 2.0, 6.0))
    apply = jax.jit(module.apply)
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    cos, sin, x, y = math.cos(0.3), math.sin(0.3), 0.2, -0.1
    moving = params | {"style": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}
    w = 2 * jnp.array([[2 * cos, 2 * sin, 2 * x, 2 * y]])  # of any length
    expected = apply({"params": moving}, w)
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    translation = np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]])
    transformed = params | {"transform": jnp.array(rotation @ translation)}
    actual = apply({"params": transformed}, jnp.zeros((1, 4)))
    assert relative_error(actual, expected) <= 1e-5
    assert relative_error(apply({"params": params}, w), expected) > 0.1


def test_waves_of_many_periods_survive_bfloat16():
    module = FourierFeatures(5, Signal(36, 16, 6.0, 2.0))
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    params, w = as_dtype((params, np.ones((1, 4))), "bfloat16")
    apply = jax.jit(module.apply)
    exact = apply({"params": as_dtype(params, "float32")}, as_dtype(w, "float32"))
    rounded = apply({"params": params}, w)
    assert rounded.dtype == "bfloat16" and relative_error(rounded, exact) <= 0.02


def test_waves_of_many_periods_survive_an_accelerators_default_precision():
    module, w = FourierFeatures(5, Signal(36, 16, 6.0, 2.0)), jnp.zeros((2, 4))
    params = jax.eval_shape(module.init, jax.random.key(0), w)
    *of_waves, of_colours = precisions(module.apply, params, w)
    assert of_waves == 3 * ["HIGHEST"] and of_colours == "DEFAULT"


def test_waves_too_fast_for_the_samples_fade_away():
    module = FourierFeatures(5, Signal(12, 16, 2.0, 6.0))
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    faster = params | {"transform": jnp.diag(jnp.array([1e4, 1e4, 1]))}
    assert not jax.jit(module.apply)({"params": faster}, jnp.zeros((1, 4))).any()


# In use.

TINY = StyleGAN3(16, (6, 5, 4, 3), 8, z_size=7, conv_clamp=256.0)
TARGET = jnp.full((8, 8, 3), 0.4)


@functools.cache
def tiny_params():
    init = jax.jit(TINY.init)
    params = init(jax.random.key(0), jnp.zeros((1, TINY.z_size)), [])["params"]
    return params | {"latent_fit": {"mean": jnp.zeros(8), "std": jnp.ones(8)}}


@functools.cache
def tiny_search():
    generator = style_generator(TINY)
    search = build(generator, operators.bicubic(2), Loss(), SCHEMES["rescale"](optax.adam(0.1)))
    latents = jax.vmap(generator.sample)(jax.random.split(jax.random.key(1), 3))
    return search, tiny_params(), jax.jit(jax.vmap(search.init))(*latents)


@functools.cache
def compiled_steps():
    """Ten steps of the search in a loop."""
    search, params, state = tiny_search()

    @jax.jit
    def steps(params, state):
        step = jax.vmap(search.step, (None, None, 0))
        return lax.scan(lambda state, _: step(params, TARGET, state), state, length=10)

    return steps.lower(params, state).compile()


@pytest.mark.slow
def test_a_search():
    _, params, state = tiny_search()
    assert state.latents["style"].shape == (3, 6, 8)
    assert not state.frozen
    state, info = compiled_steps()(params, state)
    assert np.isfinite(info.loss).all() and np.isfinite(info.grad_norm).all()
    assert (info.grad_norm > 0).all()
    assert (state.best.l2 < info.l2[0]).all()


@pytest.mark.slow
@pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="reads the program of XLA's CPU compiler"
)
@pytest.mark.optimised
def test_convolutions_are_in_canonical_form():
    hlo = compiled_steps().as_text()
    labels = re.findall(r" convolution\(.*dim_labels=([^, ]+)", hlo)
    # Forward and backward; ToRGB becomes a product.
    assert labels == 2 * len(TINY.channels) * ["b01f_01io->b01f"]
    assert hlo.count(" while(") == 1


def test_a_network_saved_and_loaded(tmp_path):
    params = tiny_params()
    checkpoint.save(tmp_path, generator=(TINY, params))
    network, restored = checkpoint.load_network(tmp_path)
    assert network == TINY
    jax.tree.map(np.testing.assert_array_equal, restored, params)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resolution": 48}, "power of two, got 48"),
        ({"critical_layers": 0}, "got 0"),
        ({"critical_layers": 4}, "fewer than the 4 channel counts, got 4"),
        ({"first_stopband": 20.0, "critical_layers": 1, "last_stopband": 0.2}, "must not fall"),
    ],
)
def test_sizes_that_can_not_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TINY.clone(**fields).init(jax.random.key(0), jnp.zeros((1, TINY.z_size)), [])
