"""The bundled generator: what is promised about it, measured anew."""

from common import faces
from common.reader import by_attribute

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from experiment_helpers import read_table, run_experiment

import pulse_jax
from pulse_jax import __main__ as command
from pulse_jax import images
from pulse_jax.generators import checkpoint

BUNDLED = list(checkpoint.bundled())


def test_faces_the_earth_galaxies_and_tissue_are_bundled():
    faces = {"decoder64", "decoder128", "decoder256", "faces64", "faces128", "flow32"}
    assert faces | {"earth64", "galaxies64", "tissue64"} <= set(BUNDLED)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_generator_is_whole_and_small(name):
    """Its examples are small for its side; an example and a sample aren't far apart in tone."""
    folder = checkpoint.find(name)
    files = {path.name for path in folder.iterdir()}
    assert files >= {"spec.json", "README.md", "samples.png", "search.png", "evaluation.png"}
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 10e6
    generator, params = pulse_jax.load(name)
    side = generator.resolution
    assert name.endswith(str(side))
    keys = jax.random.split(jax.random.key(0), 4)
    pictures = jax.jit(jax.vmap(generator.synthesize, (None, 0, 0)))(
        params, *jax.vmap(generator.sample)(keys)
    )
    assert pictures.shape == (4, side, side, 3)
    paths, _ = images.list_images(folder / "examples")
    examples = [images.load_image(path) for path in paths]
    small = max(8, side // 8)
    assert [x.shape for x in examples] == 4 * [(small, small, 3)]
    assert abs(pictures.mean() - np.mean(examples)) < 0.1
    if name == "galaxies64":
        assert 0 < pictures.mean() < 0.2  # dark sky


@pytest.mark.slow
def test_the_discriminator_prefers_samples_to_noise():
    generator, params = pulse_jax.load(pulse_jax.Settings.generator)
    score, weights = pulse_jax.load_discriminator(pulse_jax.Settings.generator)
    samples = jax.vmap(generator.sample)(jax.random.split(jax.random.key(0), 8))
    pictures = jax.jit(jax.vmap(generator.synthesize, (None, 0, 0)))(params, *samples)
    noise = jax.random.uniform(jax.random.key(1), pictures.shape)
    score = jax.jit(score)
    assert np.median(score(weights, pictures)) > np.median(score(weights, noise))


@pytest.mark.slow
def test_the_reader_reads_samples_of_known_attributes():
    """Facial hair is what the decoder has learnt least; a guess would be right half of the time."""
    generator, params = pulse_jax.load("decoder64", space="z", equal_start=True)
    latents, frozen = jax.vmap(generator.sample)(jax.random.split(jax.random.key(0), 128))
    known = jax.vmap(faces.attributes_of, (0, None))(latents["style"][:, 0], 0.5)
    pictures = jax.jit(jax.vmap(generator.synthesize, (None, 0, 0)))(params, latents, frozen)
    reader, weights = checkpoint.load_reader("decoder64")
    read = by_attribute(np.asarray(reader.apply({"params": weights}, pictures.clip(0, 1))))
    right = {name: np.mean(read[name].argmax(1) == getattr(known, name)) for name in faces.KINDS}
    assert right.pop("facial_hair") > 0.5 and right.pop("hair_style") > 0.8
    assert len(right) == 3 and min(right.values()) > 0.9


@pytest.mark.slow
def test_without_flags_the_examples_are_upsampled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with flagsaver.flagsaver(cache_dir=str(tmp_path / "cache")):
        command.run(command.parse(["pulse_jax", "--steps=2", "--restarts=2"]))
    for k in (1, 2, 3, 4):
        assert len(list((tmp_path / "runs" / f"face_0{k}").glob("hr_*.png"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param("original", marks=pytest.mark.xfail(reason="1.34 times as sharp as faces")),
        "fast",
    ],
)
def test_the_three_figures_of_faces64s_model_card(tmp_path, recipe):
    """Sharpness last: by the original's recipe, it misses the bar."""
    flags = ["--generator=faces64", f"--recipe={recipe}", "--inputs=16", "--restarts=8"]
    flags += ["--train_steps=100", "--samples=128", "--workdir=."]
    result = run_experiment("evaluate_generator", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    means = {row["quantity"]: float(row["mean"]) for row in read_table(tmp_path / "summary.csv")}
    assert means["l2 ≤ 0.001"] >= 0.99
    assert means["diversity"] >= 0.03
    quality = {row["images"]: row for row in read_table(tmp_path / "quality.csv")}
    samples, others = (quality[name] for name in ("samples", "drawn faces"))
    assert float(samples["recall"]) < float(others["recall"])  # it shows a part of the variety
    assert 0.8 <= means["sharpness"] <= 1.2
