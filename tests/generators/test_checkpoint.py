"""Generators on disk: what is saved comes back, what is damaged is refused in one line."""

import functools
import io
import json
import shutil
import sys
import types

import common.reader

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA, golden, relative_error

from pulse_jax.generators import checkpoint, fit_latents
from pulse_jax.generators.official import read
from pulse_jax.generators.reader import Reader
from pulse_jax.generators.stylegan import StyleGAN
from pulse_jax.generators.stylegan2 import Discriminator, StyleGAN2


def random_params(module, *inputs):
    """Parameters of the right shapes; quicker than the module's own."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype("f4"), shapes)


def with_params(network):
    """A generator and its parameters, the latent fit included."""
    z = np.zeros((1, network.latent_size), np.float32)
    noise = [np.zeros((1, *shape), np.float32) for shape in network.noise_shapes]
    fit = {"mean": z[0] - 0.25, "std": z[0] + 0.75}
    return network, random_params(network, z, noise) | {"latent_fit": fit}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a generator and a discriminator, and what was saved."""
    folder = tmp_path_factory.mktemp("saved") / "generator"
    discriminator = Discriminator(channels=(6, 4), group_size=2)
    networks = {
        "generator": with_params(StyleGAN2(8, (40, 3), latent_size=5, mapping_layers=1)),
        "discriminator": (discriminator, random_params(discriminator, np.zeros((1, 8, 8, 3)))),
    }
    checkpoint.save(folder, **networks)
    return folder, networks


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "copy")


def assert_same(actual, expected):
    """The same trees, bit by bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def refused(folder, load=checkpoint.load, named="generator {}"):
    """The message with which a generator is refused: one line that names the folder."""
    with pytest.raises(ValueError) as error:
        load(folder)
    message, start = str(error.value), f"{named.format(folder)}: "
    assert message.startswith(start)
    assert "\n" not in message and len(message) < 500
    return message.removeprefix(start)


def test_what_is_saved_comes_back(saved):
    folder, networks = saved
    network, params = checkpoint.load_network(folder)
    assert network == networks["generator"][0]
    assert_same(params, networks["generator"][1])
    assert checkpoint.digest(params) == checkpoint.digest(networks["generator"][1])


def test_without_room_nothing_is_begun(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10**6))
    with pytest.raises(OSError, match="No space left on device: up to"):
        checkpoint.save(tmp_path / "new", **saved[1])
    assert not list(tmp_path.iterdir())


def test_a_stylegan_comes_back_and_replaces_what_was_there(copied):
    network, params = with_params(StyleGAN(4, (3,), latent_size=5, norm_epsilon=1e-8))
    checkpoint.save(copied, generator=(network, params))
    loaded, loaded_params = checkpoint.load_network(copied)
    assert loaded == network
    assert_same(loaded_params, params)


@pytest.mark.parametrize("space", ["w", "z"])
def test_a_generator_of_attributes_comes_back(tmp_path, space):
    """Two numbers, a kind of three and one of two."""
    sizes = {"latent_size": 5, "mapping_layers": 2, "z_size": 7, "mapping_width": 6}
    network = StyleGAN2(8, (4, 3), attribute_kinds=(3, 2), **sizes)
    noise = [np.zeros((1, *shape), np.float32) for shape in network.noise_shapes]
    params = random_params(network, np.zeros((1, 7), np.float32), noise)
    fit = fit_latents(network, params, jax.random.key(0), 100, 50)
    checkpoint.save(tmp_path, generator=(network, params | {"latent_fit": fit}))
    assert checkpoint.load_network(tmp_path)[0] == network
    generator, loaded = checkpoint.load(tmp_path, space=space, tile_latent=True)
    style = jnp.array([[0.3, -1, 2, 0, 0, -1, 1]])[:, : None if space == "z" else 5]
    latents = {"style": style}
    w = generator.styles(loaded, latents, {})
    assert w.shape == (network.num_layers, 5)
    if space == "z":
        expected = network.apply({"params": params}, style, method="mapping")
        assert relative_error(w[0], expected[0]) <= 1e-6
        # Not the direction of z alone counts.
        assert relative_error(generator.styles(loaded, {"style": 2 * style}, {}), w) > 1e-3


def test_a_loaded_generator_is_that_of_its_network_and_can_be_compiled(saved):
    folder, networks = saved
    network, params = networks["generator"]
    generator, loaded = checkpoint.load(folder, noise_type="fixed", tile_latent=True)
    latents, frozen = generator.sample(jax.random.key(0))
    assert generator.resolution == 8
    assert latents["style"].shape == (1, 5)
    assert sorted(frozen) == ["noise_0", "noise_1", "noise_2"]
    image = jax.jit(generator.synthesize)(loaded, latents, frozen)
    w = generator.styles(params, latents, {})[None]
    noise = [frozen[f"noise_{i}"][None] for i in range(3)]
    synthesis = jax.jit(functools.partial(network.apply, method="synthesis"))
    expected = synthesis({"params": params}, w, noise)[0]
    assert relative_error(2 * image - 1, expected) <= 1e-6


def test_a_loaded_discriminator_scores_images_of_0_to_1(saved):
    folder, networks = saved
    discriminator, params = networks["discriminator"]
    images = jax.random.uniform(jax.random.key(3), (4, 8, 8, 3))
    score, loaded = checkpoint.load_discriminator(folder)
    assert_same(loaded, params)
    expected = jax.jit(discriminator.apply)({"params": params}, 2 * images - 1)
    assert expected.shape == (4,)
    assert relative_error(jax.jit(score)(loaded, images), expected) <= 1e-6


def test_a_reader_is_added_and_comes_back(copied):
    """What its attributes are, too; the other networks stay as they are."""
    before = checkpoint.load(copied)[1]
    assert checkpoint.load_reader(copied) is None
    reader = Reader((("tone", 1), ("glasses", ("none", "round"))))
    params = random_params(reader, np.zeros((1, 8, 8, 3)))
    checkpoint.add(copied, reader=(reader, params))
    found, loaded = checkpoint.load_reader(copied)
    assert found == reader and found.names == ["tone", "glasses: none", "glasses: round"]
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load(copied)[1], before)
    assert checkpoint.load_reader("some:plug_in") is None


def test_the_entry_of_other_weights_has_another_digest(copied):
    reader = Reader((("glasses", ("none", "round")),))
    params = random_params(reader, np.zeros((1, 8, 8, 3)))
    found = [checkpoint.entry_digest(copied, name) for name in ("generator", "reader")]
    for factor in 1, 2:
        checkpoint.add(copied, reader=(reader, jax.tree.map(lambda x, f=factor: f * x, params)))
        found += [checkpoint.entry_digest(copied, name) for name in ("generator", "reader")]
    assert len({*found[::2]}) == 1 and found[1] == "" and len({*found[1::2]}) == 3
    assert checkpoint.entry_digest("some:plug_in", "reader") == ""


def test_the_bundled_readers_are_of_drawn_faces():
    for name in ("decoder64", "decoder128", "decoder256", "faces64", "faces128"):
        reader, params = checkpoint.load_reader(name)
        assert reader == common.reader.network()
        image = np.full((1, 64, 64, 3), 0.5, np.float32)
        read = jax.eval_shape(reader.apply, {"params": params}, image)
        assert read.shape == (1, sum(common.reader.SIZES.values()))


def test_a_digest_tells_any_two_trees_apart():
    tree = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    others = [
        {"a": tree["a"], "c": tree["b"]},
        {"a": tree["a"].T, "b": tree["b"]},
        {"a": tree["a"].view(np.int32), "b": tree["b"]},
        {"a": -tree["a"], "b": tree["b"]},
        {"a": tree["a"], "b": np.nextafter(tree["b"], 2)},
        {"a": tree["a"]},
    ]
    assert len({checkpoint.digest(other) for other in [tree, *others]}) == 7


def test_bundled_generators_have_names(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(
        checkpoint, "__file__", str(tmp_path / "pulse_jax/generators/checkpoint.py")
    )
    for name in ("second", "first"):
        shutil.copytree(saved[0], tmp_path / "checkpoints" / name)
    assert checkpoint.bundled() == {
        name: tmp_path / "checkpoints" / name for name in ("first", "second")
    }
    assert_same(checkpoint.load("second")[1], saved[1]["generator"][1])
    shutil.move(tmp_path / "checkpoints", tmp_path / "pulse_jax" / "checkpoints")  # as in a wheel
    assert checkpoint.find("first") == tmp_path / "pulse_jax" / "checkpoints" / "first"
    with pytest.raises(ValueError, match=r"generator=third: .* the bundled first, second, "):
        checkpoint.load("third")
    with pytest.raises(ValueError, match=f"generator={tmp_path}: "):
        checkpoint.load(tmp_path)


def test_a_path_may_start_at_home(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved[0].parent))
    assert checkpoint.find("~/generator") == saved[0]


def test_a_path_that_the_system_refuses(monkeypatch):
    with pytest.raises(ValueError, match=r"^generator=a{300}: [^\n]+$"):
        checkpoint.find(300 * "a")

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint.Path, "is_file", denied)
    with pytest.raises(ValueError, match=r"^generator=locked/a: Permission denied$"):
        checkpoint.find("locked/a")


def test_every_file_counts(saved, copied):
    files = [path for path in copied.rglob("*") if path.is_file()]
    assert sum("discriminator" in path.parts for path in files) >= 3
    for path in files:
        load = checkpoint.load
        if "discriminator" in path.parts:
            load = checkpoint.load_discriminator
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        refused(copied, load)
        path.unlink()
        if path.name == "spec.json":
            with pytest.raises(ValueError, match=rf"={copied}: .*no folder with a spec\.json"):
                load(copied)
        else:
            assert path.name in refused(copied, load)
        path.write_bytes(content)
        load(copied)


def test_every_byte_counts(saved, copied):
    random = np.random.default_rng(0)
    for path in (path for path in copied.rglob("*") if path.is_file()):
        load = checkpoint.load
        if "discriminator" in path.parts:
            load = checkpoint.load_discriminator
        content = path.read_bytes()
        end = len(content)
        if path.name == "spec.json":  # where what `load` doesn't read begins
            end = content.index(b'"discriminator"')
        for position in random.integers(end, size=20):
            damaged = bytearray(content)
            damaged[position] ^= 1 << random.integers(8)
            path.write_bytes(damaged)
            refused(copied, load)
        path.write_bytes(content)


def test_a_generator_without_discriminator_is_one(copied):
    spec = json.loads((copied / "spec.json").read_text())
    del spec["discriminator"]
    (copied / "spec.json").write_text(json.dumps(spec))
    checkpoint.load(copied)
    message = refused(copied, checkpoint.load_discriminator)
    assert message == "can't read its discriminator: spec.json has no known 'discriminator'"


def test_saved_files_do_not_tell_where_they_were_saved(saved):
    for path in saved[0].rglob("*"):
        assert path.is_dir() or str(saved[0]).encode() not in path.read_bytes(), path


# PULSE's folders.


def test_a_folder_of_pulse_with_its_fit(tmp_path):
    shutil.copy(DATA / "pulse_e2e_synthesis_legacy.pt", tmp_path / "synthesis.pt")
    message = rf"^{tmp_path}/synthesis.pt: [^\n]* without gaussian_fit.pt or mapping.pt$"
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path)
    shutil.copy(DATA / "gaussian_fit.pt", tmp_path)
    network, params = checkpoint.load_network(tmp_path)
    assert isinstance(network, StyleGAN) and network.latent_size == 512
    assert_same(params["latent_fit"], dict(read(DATA / "gaussian_fit.pt")))
    assert checkpoint.load(tmp_path)[0].resolution == network.resolution
    assert "No such file" in refused(tmp_path, checkpoint.load_discriminator)


def test_a_folder_of_pulse_with_its_mapping_network(tmp_path, monkeypatch):
    for name in ("synthesis", "mapping"):
        shutil.copy(DATA / f"sg1_torch_r128_{name}_zip.pt", tmp_path / f"{name}.pt")
    enough = functools.partial(fit_latents, samples=20_000)  # a million take seconds
    monkeypatch.setattr(checkpoint, "fit_latents", enough)
    fit = checkpoint.load_network(tmp_path)[1]["latent_fit"]
    arrays = golden("sg1_torch_r128_mapping")  # of 300 latents, against our many
    error = np.abs(fit["mean"] - arrays["fit_mean"]) / arrays["fit_std"]
    assert error.max() <= 5 / np.sqrt(300)
    assert np.abs(fit["std"] / arrays["fit_std"] - 1).max() <= 5 / np.sqrt(600)


def test_a_bar_runs_on_a_terminal_alone(tmp_path, monkeypatch):
    for name in ("synthesis", "mapping"):
        shutil.copy(DATA / f"sg1_torch_r128_{name}_zip.pt", tmp_path / f"{name}.pt")
    quick = functools.partial(fit_latents, samples=1000, chunk_size=100)
    monkeypatch.setattr(checkpoint, "fit_latents", quick)
    for terminal in (False, True):
        stderr = io.StringIO()
        stderr.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stderr", stderr)
        checkpoint.load(tmp_path)
        hint, *bar = stderr.getvalue().splitlines()
        assert hint == (
            f"{tmp_path}: computing its latent fit; `pulse_jax_convert {tmp_path}` would store it"
        )
        assert ("latent fit" in "".join(bar)) == bool(bar) == terminal


def test_parts_of_pulse_that_do_not_go_together_are_refused(tmp_path):
    shutil.copy(DATA / "sg1_torch_r128_synthesis_zip.pt", tmp_path / "synthesis.pt")
    shutil.copy(DATA / "gaussian_fit.pt", tmp_path)  # of 512 coordinates, not 48
    assert "latent_fit/mean" in refused(tmp_path, named="{}/synthesis.pt")


def test_truncated_parts_of_pulse_are_refused(tmp_path):
    shutil.copy(DATA / "gaussian_fit.pt", tmp_path)
    content = (DATA / "pulse_e2e_synthesis_zip.pt").read_bytes()
    (tmp_path / "synthesis.pt").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=rf"^{tmp_path}/synthesis\.pt: truncated[^\n]*$"):
        checkpoint.load(tmp_path)
