"""The generator contract, and the latent space in which PULSE searches a StyleGAN."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import golden, relative_error

from pulse_jax import driver, losses, operators, schemes, search
from pulse_jax.generators import Generator, fit_latents, gaussian_fit, style_generator
from pulse_jax.generators.stylegan import StyleGAN
from pulse_jax.generators.stylegan2 import StyleGAN2

STYLEGAN = StyleGAN(resolution=16, channels=(4, 3, 2), latent_size=5, mapping_layers=2)
STYLEGAN2 = StyleGAN2(resolution=16, channels=(4, 3, 2), latent_size=5, mapping_layers=2)
both_networks = pytest.mark.parametrize("network", [STYLEGAN, STYLEGAN2], ids=["1", "2"])


def noise_layers(tree):
    return {int(name.removeprefix("noise_")) for name in tree if name != "style"}


def layers_by_role(network, **latent_space):
    """The noise layers that `sample` gives to the search, leaves as drawn, and leaves at zero."""
    latents, frozen = style_generator(network, **latent_space).sample(jax.random.key(0))
    maps = latents | frozen
    shapes = [maps[f"noise_{i}"].shape for i in range(len(network.noise_shapes))]
    assert tuple(shapes) == network.noise_shapes
    zero = {i for i in noise_layers(maps) if not maps[f"noise_{i}"].any()}
    return noise_layers(latents), noise_layers(frozen) - zero, zero


@pytest.mark.parametrize(
    ("latent_space", "searched", "fixed", "zero"),
    [
        ({}, {0, 1, 2, 3}, set(), {4}),
        ({"trainable_noise_layers": 2}, {0, 1}, {2, 3}, {4}),
        ({"trainable_noise_layers": 18}, {0, 1, 2, 3}, set(), {4}),
        ({"trainable_noise_layers": 3, "zero_noise_layers": (1,)}, {0, 2}, {3, 4}, {1}),
        ({"zero_noise_layers": ()}, {0, 1, 2, 3, 4}, set(), set()),
        ({"noise_type": "fixed"}, set(), {0, 1, 2, 3}, {4}),
        ({"noise_type": "fixed", "zero_noise_layers": (0, 3)}, set(), {1, 2, 4}, {0, 3}),
        ({"noise_type": "zero"}, set(), set(), {0, 1, 2, 3, 4}),
        ({"noise_type": "zero", "zero_noise_layers": ()}, set(), set(), {0, 1, 2, 3, 4}),
    ],
)
def test_noise_maps_are_searched_fixed_or_zero(latent_space, searched, fixed, zero):
    assert layers_by_role(STYLEGAN2, **latent_space) == (searched, fixed, zero)


def test_stylegan_1_has_a_noise_map_more():
    assert layers_by_role(STYLEGAN) == ({0, 1, 2, 3, 4}, set(), {5})


@pytest.mark.parametrize(
    ("latent_space", "message"),
    [
        ({"noise_type": "random"}, "zero, fixed, trainable, normalised, got 'random'"),
        ({"zero_noise_layers": (2, 5)}, "0 to 4, got 5"),
        ({"zero_noise_layers": (-1,)}, "0 to 4, got -1"),
        ({"trainable_noise_layers": -2}, "at least 0, got -2"),
        ({"space": "v"}, "w, w_full, z, got 'v'"),
        ({"style_spread": 1.5}, r"\[0, 1\], got 1.5"),
        ({"style_spread": float("nan")}, r"\[0, 1\], got nan"),
        ({"dtype": "int32"}, "dtype must be a type of floats, got 'int32'"),
        ({"style_spread": 0.5, "tile_latent": True}, "=0.5 excludes tile_latent$"),
        ({"style_spread": 0.5, "equal_start": True}, "=0.5 excludes equal_start$"),
        ({"style_spread": 0.5, "joint_sphere": True}, "=0.5 excludes joint_sphere$"),
    ],
)
def test_latent_spaces_that_do_not_exist_are_refused(latent_space, message):
    with pytest.raises(ValueError, match=message):
        style_generator(STYLEGAN2, **latent_space)


def test_samples_are_standard_normal_and_differ():
    generator = style_generator(STYLEGAN2, zero_noise_layers=(), trainable_noise_layers=3)
    keys = jax.random.split(jax.random.key(1), 400)
    latents, frozen = jax.jit(jax.vmap(generator.sample))(keys)
    assert latents["style"].shape == (400, 6, 5)
    leaves = [np.asarray(leaf).reshape(400, -1) for leaf in jax.tree.leaves((latents, frozen))]
    values = np.concatenate(leaves, axis=1)  # a row for each sample
    assert np.unique(values[:2]).size >= values[:2].size - 2  # nothing is drawn twice
    assert abs(values.mean()) <= 5 / np.sqrt(values.size)
    assert abs((values**2).mean() - 1) <= 5 * np.sqrt(2 / values.size)


def latent_fit(size):
    generator = np.random.default_rng(3)
    mean, std = generator.normal(size=size), generator.uniform(0.5, 2, size)
    return {"mean": mean.astype("f4"), "std": std.astype("f4")}


@both_networks
@pytest.mark.parametrize("tile_latent", [False, True])
def test_styles_are_affine_in_z_up_to_a_leaky_relu(network, tile_latent):
    generator = style_generator(network, tile_latent=tile_latent)
    latents, _ = generator.sample(jax.random.key(2))
    z = np.asarray(latents["style"], np.float64)
    assert z.shape == ((1 if tile_latent else 6), 5)
    fit = latent_fit(5)
    x = fit["std"] * z + fit["mean"]
    gain = {StyleGAN: 1, StyleGAN2: np.sqrt(2)}[type(network)]
    expected = np.broadcast_to(gain * np.where(x > 0, x, 0.2 * x), (6, 5))
    assert relative_error(generator.styles({"latent_fit": fit}, latents, {}), expected) <= 1e-6


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_styles_share_a_part(spread):
    """Each layer's z is standard normal, and those of two layers are correlated by 1 − ρ²."""
    generator = style_generator(STYLEGAN2, style_spread=spread)
    fit = {"mean": np.full(5, 100, "f4"), "std": np.ones(5, "f4")}  # no kink is near
    latents, _ = jax.jit(jax.vmap(generator.sample))(jax.random.split(jax.random.key(3), 4000))
    assert {name: latents[name].shape[1:] for name in ("common", "own")} == {
        "common": (1, 5),
        "own": (6, 5),
    }
    styles = jax.jit(jax.vmap(generator.styles, (None, 0, None)))({"latent_fit": fit}, latents, {})
    z = np.asarray(styles / np.sqrt(2) - 100).transpose(0, 2, 1).reshape(-1, 6)
    expected = (1 - spread**2) * np.ones((6, 6)) + spread**2 * np.eye(6)
    assert np.abs(np.cov(z, rowvar=False) - expected).max() <= 5 * np.sqrt(2 / len(z))


def random_params(network):
    """Parameters of the right shapes, none of them 0, and a latent fit."""
    generator = np.random.default_rng(4)
    inputs = np.ones((1, 5), "f4"), [np.ones((1, *s), "f4") for s in network.noise_shapes]
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    params = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype("f4"), shapes)
    return params | {"latent_fit": latent_fit(5)}


@both_networks
def test_an_image_is_that_of_its_styles_and_noise_maps(network):
    generator, params = style_generator(network, trainable_noise_layers=2), random_params(network)
    latents, frozen = generator.sample(jax.random.key(4))
    noise = [(latents | frozen)[f"noise_{i}"][None] for i in range(len(network.noise_shapes))]

    synthesize = jax.jit(generator.synthesize)
    image = synthesize(params, latents, frozen)
    w = generator.styles(params, latents, {})[None]
    expected = jax.jit(partial(network.apply, method="synthesis"))({"params": params}, w, noise)[0]
    assert image.shape == (16, 16, 3)
    assert relative_error(2 * image - 1, expected) <= 1e-5
    for name in ("style", "noise_0", "noise_1"):  # each has a part in it
        other = latents | {name: latents[name][..., ::-1]}
        assert jnp.abs(synthesize(params, other, frozen) - image).max() > 1e-3


def test_a_zero_noise_map_is_zero_whatever_another_generator_drew():
    params = random_params(STYLEGAN2)
    generator = style_generator(STYLEGAN2, noise_type="zero")
    latents, frozen = generator.sample(jax.random.key(0))
    _, drawn = style_generator(STYLEGAN2, noise_type="fixed").sample(jax.random.key(0))
    synthesize = jax.jit(generator.synthesize)
    image, again = (synthesize(params, latents, maps) for maps in (frozen, drawn))
    np.testing.assert_array_equal(again, image)


def test_one_sphere_and_the_exact_radius():
    generator = style_generator(STYLEGAN2, joint_sphere=True, exact_radius=True)
    latents, _ = generator.sample(jax.random.key(5))
    apart, _ = style_generator(STYLEGAN2).sample(jax.random.key(5))
    assert latents["style"].shape == (1, 6, 5)
    for name, leaf in latents.items():
        np.testing.assert_allclose(np.sum(np.square(leaf)), leaf.size, rtol=1e-5)
        ratios = np.ravel(leaf) / np.ravel(apart[name])
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)  # the same sample, rescaled
    params = {"latent_fit": latent_fit(5)}
    styles = style_generator(STYLEGAN2).styles(params, {"style": latents["style"][0]}, {})
    np.testing.assert_array_equal(generator.styles(params, latents, {}), styles)


def test_the_space_z_is_the_mapping_networks_input():
    params = random_params(STYLEGAN2)
    generator = style_generator(STYLEGAN2, space="z")
    latents, _ = generator.sample(jax.random.key(5))
    expected = STYLEGAN2.apply({"params": params}, latents["style"], method="mapping")
    assert relative_error(generator.styles(params, latents, {}), expected) <= 1e-6


def test_the_space_of_the_full_covariance_has_it():
    """Undone activations of its styles are distributed as those that were fitted."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 5)) @ rng.standard_normal((5, 5)) + rng.standard_normal(5)
    w = np.sqrt(2) * np.where(x > 0, x, 0.2 * x)
    fit = gaussian_fit([w[:1000], w[1000:]], np.sqrt(2), full=True)
    assert relative_error(fit["factor"] @ fit["factor"].T, np.cov(x.T)) <= 1e-5
    plain = gaussian_fit([w], np.sqrt(2))
    assert relative_error(fit["std"], plain["std"]) <= 1e-6
    generator = style_generator(STYLEGAN2, space="w_full")
    z = rng.standard_normal((6, 5)).astype(np.float32)
    y = z @ fit["factor"].T + fit["mean"]
    expected = np.sqrt(2) * np.where(y > 0, y, 0.2 * y)
    assert relative_error(generator.styles({"latent_fit": fit}, {"style": z}, {}), expected) <= 1e-5


@pytest.mark.parametrize("noise_type", ["trainable", "normalised"])
def test_more_noise_maps_than_there_are_is_all(noise_type):
    generator = style_generator(STYLEGAN2, noise_type=noise_type, trainable_noise_layers=99)
    sample = jax.eval_shape(generator.sample, jax.random.key(0))
    assert len(sample[0]) == len(STYLEGAN2.noise_shapes)  # the style, and all maps but the last
    jax.eval_shape(generator.synthesize, random_params(STYLEGAN2), *sample)


def test_normalised_noise_enters_with_mean_0_and_mean_square_1():
    arguments = {"trainable_noise_layers": 2}
    generator = style_generator(STYLEGAN2, noise_type="normalised", **arguments)
    plain, params = style_generator(STYLEGAN2, **arguments), random_params(STYLEGAN2)
    latents, frozen = generator.sample(jax.random.key(4))
    normal = dict(latents)
    for name in "noise_0", "noise_1":
        noise = latents[name] - latents[name].mean()
        normal[name] = noise / jnp.sqrt(jnp.mean(noise**2))
    image = jax.jit(generator.synthesize)(params, latents, frozen)
    synthesize = jax.jit(plain.synthesize)
    assert relative_error(image, synthesize(params, normal, frozen)) <= 1e-5
    assert jnp.abs(image - synthesize(params, latents, frozen)).max() > 1e-4


@both_networks
def test_an_equal_start_is_that_of_one_style_in_all_layers(network):
    latents, _ = style_generator(network, equal_start=True).sample(jax.random.key(5))
    assert latents["style"].shape == (6, 5)
    np.testing.assert_array_equal(latents["style"], np.tile(latents["style"][:1], (6, 1)))
    assert len(np.unique(latents["style"])) == 5


def image_and_gradient(network, **latent_space):
    """Of a random network."""
    generator, params = style_generator(network, **latent_space), random_params(network)
    latents, frozen = generator.sample(jax.random.key(6))

    def loss(latents):
        image = generator.synthesize(params, latents, frozen)
        return jnp.sum(image * jnp.sin(jnp.arange(image.size).reshape(image.shape))), image

    gradient, image = jax.jit(jax.grad(loss, has_aux=True))(latents)
    return image, gradient["style"]


@both_networks
def test_bfloat16_is_close_and_a_type_of_activations_alone(network):
    image, gradient = image_and_gradient(network)
    close, close_gradient = image_and_gradient(network, dtype="bfloat16")
    assert close.dtype == close_gradient.dtype == "float32"
    assert 1e-5 <= relative_error(close, image) <= 0.05
    assert 1e-5 <= relative_error(close_gradient, gradient) <= 0.1


@both_networks
def test_float64_latents_take_float32_weights(network):
    with jax.enable_x64():
        params = jax.tree.map(jnp.float32, random_params(network))
        generator = style_generator(network)
        latents, frozen = generator.sample(jax.random.key(6))
        assert latents["style"].dtype == "float64"
        image = jax.eval_shape(generator.synthesize, params, latents, frozen)
        assert image.dtype == "float64"


# The latent fit.


def test_gaussian_fit_equals_the_reference():
    arrays = golden("sg1_torch_r128_mapping")
    fit = gaussian_fit([arrays["w"]])
    assert fit["mean"].dtype == fit["std"].dtype == np.float32
    assert relative_error(fit["mean"], arrays["fit_mean"]) <= 1e-7
    assert relative_error(fit["std"], arrays["fit_std"]) <= 1e-7


def test_gaussian_fit_does_not_depend_on_the_chunks():
    w = golden("sg1_torch_r128_mapping")["w"]
    whole = gaussian_fit([w])
    for cuts in ([1], [7, 8, 250], range(1, 300)):
        parts = gaussian_fit(iter(np.split(w, cuts)))
        for name in ("mean", "std"):
            assert relative_error(parts[name], whole[name]) <= 1e-7


def test_gaussian_fit_undoes_the_gain():
    w = golden("sg1_torch_r128_mapping")["w"]
    scaled, plain = gaussian_fit([np.sqrt(2) * w], np.sqrt(2)), gaussian_fit([w])
    assert relative_error(scaled["mean"], plain["mean"]) <= 1e-7
    assert relative_error(scaled["std"], plain["std"]) <= 1e-7


@both_networks
def test_latents_are_fitted_as_one_big_batch_would_be(network):
    z = jax.random.normal(jax.random.key(6), (20_000, 5))
    params = random_params(network)
    params["mapping"] = jax.tree.map(lambda leaf: 100 * leaf, params["mapping"])
    w = network.apply({"params": params}, z, method="mapping")
    expected = gaussian_fit([w], network.activation_gain)
    fit = fit_latents(network, params, jax.random.key(8), samples=20_000, chunk_size=1_000)
    error = 5 * np.sqrt(2 / 20_000)  # of the difference of two independent estimates
    assert (np.abs(fit["mean"] - expected["mean"]) <= error * expected["std"]).all()
    assert relative_error(fit["std"], expected["std"]) <= error


@pytest.mark.parametrize("count", [0, 1])
def test_a_gaussian_needs_two_style_vectors(count):
    with pytest.raises(ValueError, match=f"at least 2 style vectors, got {count}"):
        gaussian_fit([np.ones((1, 5))] * count)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"samples": 1}, "samples .* 2, got 1"), ({"chunk_size": 0}, "chunk_size .* 1, got 0")],
)
def test_latents_are_fitted_to_enough_samples(sizes, message):
    with pytest.raises(ValueError, match=message):
        fit_latents(STYLEGAN, {}, jax.random.key(0), **sizes)


# Another generator.


def linear_decoder(side, size):
    """The simplest generator there is: an image that is linear in one Gaussian vector."""

    def sample(key):
        return jax.random.normal(key, (1, size)), None

    def synthesize(params, latents, frozen):
        return 0.5 + (latents[0] @ params).reshape(side, side, 3)

    return Generator(side, sample, synthesize)


def test_a_generator_need_not_be_a_stylegan():
    generator = linear_decoder(8, 20)
    params = 0.05 * jax.random.normal(jax.random.key(0), (20, 8 * 8 * 3))
    latents, frozen = generator.sample(jax.random.key(1))
    target = operators.area(4)(generator.synthesize(params, latents, frozen))
    with pytest.warns(UserWarning, match="GEOCROSS is left out"):
        search.build(generator, operators.area(4), losses.Loss(), optax.sgd(1.0))

    loss = losses.Loss(l2=100, geocross=0, eps=1e-5)
    optimizer = schemes.SCHEMES["rescale"](optax.adam(0.1))
    linear = search.build(generator, operators.area(4), loss, optimizer)
    latents, frozen = jax.jit(jax.vmap(generator.sample))(jax.random.split(jax.random.key(2), 3))
    state = jax.jit(jax.vmap(linear.init))(latents, frozen)
    state, info = driver.run(linear, params, target, state, 200)
    assert (info.l2[:, 0] > 1e-3).all()
    assert (state.best.l2 <= 1e-5).all()
    image = generator.synthesize(params, state.best.latents[0], None)
    assert jnp.mean((operators.area(4)(image) - target) ** 2) <= 1.01e-5
