"""Generators of other programs: by the name of a callable, or refused in one line."""

import csv
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from helpers import relative_error
from PIL import Image

import pulse_jax
from pulse_jax import __main__ as command

DECODERS = """
import jax
import jax.numpy as jnp

import pulse_jax

PARAMS = {"axes": 0.05 * jax.random.normal(jax.random.key(0), (20, 8 * 8 * 3))}

def sample(key):
    return jax.random.normal(key, (1, 20)), ()

def synthesize(params, latents, frozen):
    return 0.5 + (latents[0] @ params["axes"]).reshape(8, 8, 3)

def make():
    return pulse_jax.Generator(8, sample, synthesize), PARAMS

def make_with_styles():
    def sample(key):
        keys = jax.random.split(key)
        return {"style": jax.random.normal(keys[0], (1, 20))}, {"grain": jax.random.normal(keys[1])}

    def synthesize(params, latents, frozen):
        image = 0.5 + (latents["style"][0] @ params["axes"]).reshape(8, 8, 3)
        return image + 0.01 * frozen["grain"]

    def styles(params, latents, frozen):
        return jnp.concatenate([latents["style"], latents["style"] ** 3])

    return pulse_jax.Generator(8, sample, synthesize, styles), PARAMS

def fails():
    raise OSError("no weights\\nat all")

def without_params():
    return pulse_jax.Generator(8, sample, synthesize)

def with_a_flat_latent():
    return make()[0]._replace(sample=lambda key: (jax.random.normal(key, (20,)), ())), PARAMS

def with_equal_names():
    return make()[0]._replace(sample=lambda key: 2 * ((jax.random.normal(key, (1, 20)),),)), PARAMS

def with_a_name_in_use():
    def sample(key):
        return {"row": jax.random.normal(key, (1, 20))}, ()
    return make()[0]._replace(sample=sample), PARAMS

def with_one_style():
    return make()[0]._replace(styles=lambda params, latents, frozen: latents[0]), PARAMS

def with_other_images():
    return make()[0]._replace(resolution=16), PARAMS

def with_other_types(what):
    generator, z = make()[0], jnp.zeros((1, 20))
    changes = {
        "resolution": generator._replace(resolution=8.0),
        "sample": generator._replace(sample=lambda key: {"z": z}),
        "no latents": generator._replace(sample=lambda key: ({}, ())),
        "no spheres": generator._replace(sample=lambda key: (z[:0], ())),
        "latents": generator._replace(sample=lambda key: (z.astype(int), ())),
        "styles": generator._replace(styles=lambda p, latents, frozen: latents.astype(int)),
        "images": generator._replace(synthesize=lambda *inputs: 1j * synthesize(*inputs)),
    }
    return changes[what], PARAMS

def with_other_params():
    return make()[0], {"axis": PARAMS["axes"]}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with modules to plug in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "decoders.py").write_text(DECODERS)
    (tmp_path / "broken_decoders.py").write_text("import pulse_jax.nothing")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "decoders.py").write_text("from decoders import make")
    yield tmp_path
    for name in ("decoders", "broken_decoders", "inner", "inner.decoders"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(folder):
    """Run the command on one picture, with few steps; returns the output folder."""
    pixels = np.random.default_rng(0).integers(90, 160, (2, 2, 3), np.uint8)
    (folder / "in").mkdir()
    Image.fromarray(pixels).save(folder / "in" / "a.png")

    def run(*arguments):
        defaults = [
            "--input_dir=in",
            "--output_dir=out",
            f"--cache_dir={folder / 'cache'}",
            "--seed=0",
        ]
        defaults += ["--restarts=2", "--batch_size=2", "--learning_rate=0.1"]
        with flagsaver.flagsaver():
            command.run(command.parse(["pulse_jax", *defaults, *arguments]))
        return folder / "out"

    return run


@pytest.mark.parametrize("name", ["decoders:make", "inner.decoders:make"])
def test_a_callable_in_the_current_folder_is_loaded(folder, name):
    generator, params = pulse_jax.load(name)
    latents, frozen = generator.sample(jax.random.key(1))
    expected = 0.5 + (latents[0] @ params["axes"]).reshape(8, 8, 3)
    assert relative_error(generator.synthesize(params, latents, frozen), expected) <= 1e-6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:make", "importing nowhere raised ModuleNotFoundError: No module named 'nowhere'"),
        ("inner.nowhere:make", "No module named 'inner.nowhere'"),
        ("broken_decoders:make", "No module named 'pulse_jax.nothing'"),
        ("decoders:nothing", "decoders has no nothing"),
        ("decoders:PARAMS", "PARAMS is a dict, which can't be called"),
        ("decoders:fails", r"fails\(\) raised OSError: no weights at all"),
        ("decoders:sample", r"sample\(\) raised TypeError: sample\(\) missing 1 .*"),
        ("decoders:dict", "decoders has no dict"),
        ("builtins:dict", r"dict\(\) returned a dict, not \(Generator, params\)"),
        ("decoders:without_params", r"returned a Generator, not \(Generator, params\)"),
        ("decoders:with_a_flat_latent", r"shape \(20,\): axis 0 counts spheres, .* is \(1, d\)"),
        ("decoders:with_equal_names", "'0' is both in its latents and in what is frozen"),
        ("decoders:with_a_name_in_use", "'row' can't be the name of a latent: results use it"),
        ("decoders:with_one_style", r"its styles have shape \(20,\), not \(layers, d\)"),
        ("decoders:with_other_images", r"images have shape \(8, 8, 3\), not \(16, 16, 3\)"),
        ("decoders:with_other_params", "its synthesize raised KeyError: 'axes'"),
        ("decoders:with_other_types:resolution", "its resolution is 8.0, not a whole number"),
        ("decoders:with_other_types:sample", r"sample returned a dict, not \(latents, frozen\)"),
        ("decoders:with_other_types:no latents", "its latents are empty"),
        ("decoders:with_other_types:no spheres", r"latents has shape \(0, 20\): axis 0 .*"),
        ("decoders:with_other_types:latents", "latents has the type int32, not one of floats"),
        ("decoders:with_other_types:styles", "styles have the type int32, not one of floats"),
        ("decoders:with_other_types:images", "images have the type complex64, not one of floats"),
    ],
)
def test_what_breaks_the_contract_is_told_in_one_line(folder, name, message):
    with pytest.raises(ValueError, match=rf"^generator={name}: [^\n]*{message}$"):
        pulse_jax.load(name)


def test_its_latent_space_is_its_own(folder):
    with pytest.raises(ValueError, match=r"has its own latents, without noise_type$"):
        pulse_jax.load("decoders:make", noise_type="zero")


def test_the_command_searches_it_for_the_picture_alone(run, folder):
    output = run("--generator=decoders:make", "--eps=0.01")
    with (output / "results.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["converged", "converged"]
    config = json.loads((output / "config.json").read_text())
    assert config["--loss_str"] == "100*L2"
    with np.load(output / "a" / "latents.npz") as file:
        assert set(file) == {"latents", "generator"}
        latents = file["latents"]
    generator, params = pulse_jax.load("decoders:make")
    for k, z in enumerate(latents, 1):
        png = pulse_jax.images.load_image(output / "a" / f"hr_0{k}.png")
        image = generator.synthesize(params, z, ())
        assert np.abs(png - jnp.clip(image, 0, 1)).max() <= 0.5 / 255 + 1e-5


def test_styles_of_its_own_are_compared(run, folder):
    output = run("--generator=decoders:make_with_styles")
    config = json.loads((output / "config.json").read_text())
    assert config["--loss_str"] == "100*L2+0.05*GEOCROSS"
    with np.load(output / "a" / "latents.npz") as file:
        shapes = {name: file[name].shape for name in file if name != "generator"}
    assert shapes == {"style": (2, 1, 20), "grain": (2,)}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--noise_type=zero", "--noise_type=zero: noise_type is for StyleGANs"),
        ("--num_trainable_noise_layers=4", "noise_layers=4: num_trainable_noise_layers is for"),
        ("--bad_noise_layers=3.17", "--bad_noise_layers=3.17: bad_noise_layers is for StyleGANs"),
        ("--tile_latent", "--tile_latent=True: tile_latent is for StyleGANs"),
        ("--style_spread=0.5", "--style_spread=0.5: style_spread is for StyleGANs"),
        ("--loss_str=100*L2+0.05*GEOCROSS", "GEOCROSS compares style vectors"),
        ("--generator=decoders:fails", "no weights at all"),
    ],
)
def test_flags_that_it_has_no_use_for_end_in_one_line(run, argument, message):
    with pytest.raises(SystemExit, match=rf"^pulse_jax: [^\n]*{message}[^\n]*$"):
        run("--generator=decoders:make", argument)


def test_defaults_given_by_hand_do_no_harm(run):
    run("--generator=decoders:make", "--noise_type=trainable", "--notile_latent", "--steps=1")


def test_it_has_no_examples(run):
    message = r"^pulse_jax: [^\n]*no examples: give pictures, as --input_dir=FOLDER$"
    with pytest.raises(SystemExit, match=message), flagsaver.flagsaver():
        command.run(command.parse(["pulse_jax", "--generator=decoders:make"]))
