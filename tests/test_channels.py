"""Generators of grey images, of images with alpha, and with classes, through the command."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_helpers import fails, read_rows, write_picture
from PIL import Image

from pulse_jax import likelihoods, operators, posterior
from pulse_jax.generators import checkpoint, style_generator
from pulse_jax.generators.stylegan2 import StyleGAN2
from pulse_jax.images import load_image
from pulse_jax.upsampling.run import upsample
from pulse_jax.upsampling.settings import Settings

MODES = {1: "L", 4: "RGBA"}


def make(folder, **fields):
    """Write a StyleGAN 2 of 8×8 pixels and random weights into a folder."""
    network = StyleGAN2(8, (6, 4), 5, 1, **fields)
    noise = [jnp.zeros((1, *shape)) for shape in network.noise_shapes]
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 5)), noise)["params"]
    shape = (network.classes, 5) if network.classes else (5,)
    mean = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    fit = {"mean": mean, "std": np.ones(shape, np.float32)}
    checkpoint.save(folder, generator=(network, params | {"latent_fit": fit}))
    return folder


@pytest.fixture(
    scope="module", params=[1, pytest.param(4, marks=pytest.mark.slow)], ids=MODES.values()
)
def made(request, tmp_path_factory):
    """(channels, a folder with a StyleGAN 2 of so many)."""
    folder = tmp_path_factory.mktemp("generator")
    return request.param, make(folder, image_channels=request.param)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A folder with a StyleGAN 2 of three classes."""
    return make(tmp_path_factory.mktemp("generator"), classes=3, label_size=4)


def test_pictures_and_results_have_the_generators_channels(made, run, tmp_path):
    channels, folder = made
    pixels = np.random.default_rng(0).integers(60, 200, (4, 4, channels), np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels.squeeze()).save(tmp_path / "in" / "a.png")
    flags = [f"--input_dir={tmp_path / 'in'}", "--restarts=2", "--save_intermediate"]
    out = run(*flags, "--save_video", generator=folder)

    names = ["input", "bicubic", "grid", "hr_01", "lr_02"]
    opened = {name: Image.open(out / "a" / f"{name}.png") for name in names}
    assert {image.mode for image in opened.values()} == {MODES[channels]}
    np.testing.assert_array_equal(np.asarray(opened["input"]), pixels.squeeze())
    assert opened["hr_01"].size == (8, 8) and opened["grid"].size[1] == 8
    assert (out / "index.html").is_file() and any(out.glob("a/search.*"))
    assert len(list(out.glob("a/HR/*.png"))) == 6

    generator, params = checkpoint.load(folder)
    assert generator.channels == channels
    with np.load(out / "a" / "latents.npz") as file:
        arrays = {name: jnp.asarray(file[name][0]) for name in file if name != "generator"}
    image = jax.jit(generator.synthesize)(params, arrays, {})
    hr = load_image(out / "a" / "hr_01.png", channels=channels)
    np.testing.assert_allclose(np.clip(image, 0, 1), hr, rtol=0, atol=0.51 / 255)

    (row, _) = read_rows(out)
    target = pixels / np.float32(255)
    l2 = np.mean((operators.bicubic(2)(hr) - target) ** 2)
    np.testing.assert_allclose(float(row["l2_saved"]), l2, rtol=1e-4)
    variance = np.mean((target - target.mean((0, 1))) ** 2)
    np.testing.assert_allclose(float(row["l2_relative"]), l2 / variance, rtol=1e-4)


def test_an_array_has_the_generators_channels(made):
    channels, folder = made
    settings = Settings(generator=str(folder), restarts=1, steps=1, seeds=(0,))
    results = upsample([np.full((4, 4, 3), 0.5, np.float32)], settings=settings)
    assert f"a picture is an array (h, w, {channels}) of floats" in results.failures[0]


@pytest.mark.parametrize("channels", MODES)
def test_what_an_operator_does_not_show_is_left_out(channels):
    picture = np.random.default_rng(0).random((4, 4, channels), np.float32)
    unseen = operators.discard_unseen(operators.mask(0.5), picture)
    np.testing.assert_array_equal(unseen, operators.mask(0.5)(picture))
    np.testing.assert_array_equal(operators.discard_unseen(operators.area(1), picture), picture)


def test_the_luma_leaves_alpha():
    picture = np.random.default_rng(0).random((4, 4, 4), np.float32)
    for grey in (operators.grey()(picture), operators.discard_unseen(operators.grey(), picture)):
        np.testing.assert_array_equal(grey[..., 3], picture[..., 3])
        luma = picture[..., :3] @ np.float32([0.299, 0.587, 0.114])
        np.testing.assert_allclose(grey[..., :3], np.stack([luma] * 3, -1), rtol=1e-6)


def labels_of(out):
    with np.load(out / "a" / "latents.npz") as file:
        labels = file["label"].tolist()
    assert [int(row["label"]) for row in read_rows(out)] == labels
    return labels


def test_restarts_take_classes_in_turn_or_one(run, classes, capsys, tmp_path):
    write_picture(tmp_path / "in" / "a.png")
    flags = [f"--input_dir={tmp_path / 'in'}", "--restarts=4"]
    out = run(*flags, generator=classes)
    assert labels_of(out) == [0, 1, 2, 0]
    assert "<button>class</button>" in (out / "index.html").read_text(encoding="utf-8")

    # The class counts in the image that is saved, and the search goes on in it.
    generator, params = checkpoint.load(classes)
    with np.load(out / "a" / "latents.npz") as file:
        arrays = {name: jnp.asarray(file[name][1]) for name in file if name != "generator"}
    hr = load_image(out / "a" / "hr_02.png")
    frozen = {"noise_2": arrays.pop("noise_2"), "label": arrays.pop("label")}
    synthesize = jax.jit(generator.synthesize)
    images = [synthesize(params, arrays, frozen | {"label": label}) for label in range(3)]
    errors = [np.abs(np.clip(image, 0, 1) - hr).max() for image in images]
    assert errors[1] <= 0.51 / 255 < min(errors[0], errors[2])
    init = f"--init_from={out}"
    assert labels_of(run(*flags, init, generator=classes, output="more")) == [0, 1, 2, 0]

    out = run(*flags, "--label=2", generator=classes, output="one")
    assert labels_of(out) == [2, 2, 2, 2]
    told = fails(run, capsys, *flags, "--label=3", f"--generator={classes}")
    assert told.endswith(f"--label=3: {classes} has classes from 0 to 2")
    told = fails(run, capsys, *flags, "--label=0")
    assert told.startswith("pulse_jax: --label=0: ") and told.endswith("has no classes")


def test_a_posterior_is_of_one_class(classes):
    generator, params = checkpoint.load(classes)
    build = partial(posterior.build, generator, operators.area(2), likelihoods.gaussian(0.1))
    with pytest.raises(ValueError, match="the generator has 3"):
        build()
    with pytest.raises(ValueError, match="label must be below the 3 classes, got 3"):
        build(label=3)
    with pytest.raises(ValueError, match=r"^noise=0\.1: a posterior is of one class, .* label$"):
        upsample([np.zeros((4, 4, 3))], settings=Settings(generator=str(classes), noise=0.1))

    density = build(noise="sampled", label=1)
    position = density.sample(jax.random.key(0))
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(position))
    latents, frozen = density.split(position)
    assert frozen["label"] == 1 and frozen.keys() == generator.sample(jax.random.key(0))[1].keys()
    jax.tree.map(np.testing.assert_array_equal, density.join(latents, frozen), position)

    @jax.jit
    def three(params, position):
        latents, frozen = density.split(position)
        same, other = (
            generator.synthesize(params, latents, frozen | {"label": label}) for label in (1, 2)
        )
        return density.image(params, position), same, other

    image, same, other = three(params, position)
    np.testing.assert_array_equal(image, same)
    assert np.abs(image - other).max() > 1e-3


@pytest.mark.slow
def test_draws_of_a_class_are_a_start_for_others(run, classes, tmp_path):
    write_picture(tmp_path / "in" / "a.png")
    flags = [f"--input_dir={tmp_path / 'in'}", "--noise=0.1", "--chains=2", "--label=2"]
    usual = "--recipe=posterior", "--batch_size=auto", "--steps=5", "--draws=4"
    for name, more in (("out", []), ("more", [f"--init_from={tmp_path / 'out'}"])):
        with pytest.raises(SystemExit, match="1"):  # so short chains don't meet
            run(*usual, *flags, *more, generator=classes, output=name)
        with np.load(tmp_path / name / "a" / "latents.npz") as file:
            assert set(file["label"].tolist()) == {2}


def test_a_style_generator_tells_its_channels():
    assert style_generator(StyleGAN2(8, (6, 4), 5, 1)).channels == 3
