"""pulse_jax_convert: what it writes loads as the source did; what it may not overwrite stays."""

import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from command_helpers import run_module
from helpers import DATA, relative_error

import pulse_jax
from pulse_jax import convert
from pulse_jax.generators import checkpoint, fit_latents, official, published, style_generator

ROOT = Path(__file__).parents[1]
FILES = {  # → what is said of it
    "sg1_tf.pkl": "StyleGAN, 128×128 pixels, 57,255 parameters, z 40, w 12 × 32",
    "sg2_tf.pkl": "StyleGAN2, 64×64 pixels, 55,984 parameters, z 32, w 10 × 32",
    "sg2ada.pkl": "StyleGAN2, 64×64 pixels, 62,000 parameters, z 32, w 10 × 32",
    "sg2ada_fp16cfg.pkl": "StyleGAN2, 32×32 pixels, 51,455 parameters, z 24, w 8 × 24",
    "sg3R.pkl": "StyleGAN3, 32×32 pixels, 4,350 parameters, z 20, w 9 × 16",
    "sg3T.pkl": "StyleGAN3, 64×64 pixels, 38,282 parameters, z 24, w 11 × 28",
    "rosinality.pt": "StyleGAN2, 64×64 pixels, 50,100 parameters, z 32, w 10 × 32",
    "rosinality_train.pt": "StyleGAN2, 64×64 pixels, 50,100 parameters, z 32, w 10 × 32",
}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run the command in an empty folder; returns its exit code. Latent fits are quick ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    quick = functools.partial(fit_latents, samples=1000, chunk_size=1000)
    monkeypatch.setattr(checkpoint, "fit_latents", quick)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["pulse_jax_convert", *map(str, arguments)])
        try:
            convert.main()
        except SystemExit as exit:
            return exit.code
        return 0

    return command


def assert_same(one, other):
    """The same networks and parameters, bit by bit, from two things to load."""
    (network, params), (other_network, other_params) = map(checkpoint.load_network, (one, other))
    assert network == other_network
    assert checkpoint.digest(params) == checkpoint.digest(other_params)


def contents(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * n.startswith("sg3")) for n in FILES]
)
def test_a_published_file_whatever_its_name(command, tmp_path, capsys, name):
    shutil.copy(DATA / name, "weights")
    assert command("weights", "--output=out") == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[0] == f"weights: {FILES[name]}"
    assert told.out.splitlines()[1].endswith(" MB of float32 in out")
    assert not told.err
    assert {path.split("/")[0] for path in contents(Path("out"))} == {"spec.json", "generator"}
    assert_same("weights", "out")
    assert capsys.readouterr().err == (
        "weights: computing its latent fit; `pulse_jax_convert weights` would store it\n"
    )

    network, params = checkpoint.load_network("weights")
    generator = style_generator(network)
    synthesize = jax.jit(generator.synthesize)  # compiled once for both
    sample = generator.sample(jax.random.key(1))
    image = synthesize(params, *sample)
    assert np.isfinite(image).all() and np.std(image) > 1e-3
    np.testing.assert_array_equal(synthesize(pulse_jax.load("out")[1], *sample), image)


def test_a_diffusion_model(command, capsys):
    """Its schedule and decoder come along; there is no latent fit."""
    assert command(DATA / "modern" / "flow", "--output=out") == 0
    told = capsys.readouterr()
    assert "DiffusionModel, 16×16 pixels, 55,983 parameters, noise 16 × 16 × 3" in told.out
    assert not told.err
    assert_same(DATA / "modern" / "flow", "out")


@pytest.mark.parametrize("source", ["pulse", "pulse/synthesis.pt", "pulse/another.name"])
def test_pulse_brings_its_own_latent_fit(command, capsys, source):
    Path("pulse").mkdir()
    for name in ("synthesis.pt", "another.name"):
        shutil.copy(DATA / "pulse_e2e_synthesis_zip.pt", Path("pulse", name))
    shutil.copy(DATA / "gaussian_fit.pt", "pulse")
    assert command(source, "--output=out") == 0
    assert (
        "StyleGAN, 64×64 pixels, 166,171 parameters, z 512, w 10 × 512" in capsys.readouterr().out
    )
    fit = checkpoint.load_network("out")[1]["latent_fit"]
    for name, value in official.read(DATA / "gaussian_fit.pt").items():
        np.testing.assert_array_equal(fit[name], value)
    assert_same(source, "out")
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_the_latent_fit_is_that_of_a_million_latents(tmp_path):
    convert.convert(DATA / "sg2ada_fp16cfg.pkl", tmp_path / "out")
    network, params = official.read_network(DATA / "sg2ada_fp16cfg.pkl")
    expected = fit_latents(network, params, jax.random.key(0), samples=1_000_000)
    fit = checkpoint.load_network(tmp_path / "out")[1]["latent_fit"]
    np.testing.assert_array_equal(fit["mean"], expected["mean"])
    np.testing.assert_array_equal(fit["std"], expected["std"])


@pytest.mark.parametrize("name", ["sg2ada.pkl", "sg3R.pkl"])
def test_bfloat16_halves_the_kernels_on_disk_alone(command, name):
    for dtype in ("float32", "bfloat16"):
        assert command(DATA / name, f"--output={dtype}", f"--dtype={dtype}") == 0
    (network, params), (other, rounded) = map(checkpoint.load_network, ("float32", "bfloat16"))
    assert network == other
    with ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.restore(Path("bfloat16/generator").absolute())
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (stored, params)]
    assert sizes[0] <= 0.6 * sizes[1]

    def check(path, value, rounded, stored):
        value, kernel = np.asarray(value), path[-1].key == "kernel"
        assert rounded.dtype == np.float32
        assert stored.dtype == (jnp.bfloat16 if kernel else np.float32)
        expected = value.astype(jnp.bfloat16).astype(np.float32) if kernel else value
        np.testing.assert_array_equal(rounded, expected)

    jax.tree_util.tree_map_with_path(check, params, rounded, stored)
    generator = style_generator(network)
    synthesize, sample = jax.jit(generator.synthesize), generator.sample(jax.random.key(1))
    assert 0 < relative_error(synthesize(rounded, *sample), synthesize(params, *sample)) <= 0.05


def test_frequencies_keep_their_digits_in_bfloat16(command):
    source = DATA / "modern" / "edm" / "edm_ncsnpp.pkl"
    assert command(source, "--output=out", "--dtype=bfloat16") == 0
    params, (_, rounded) = checkpoint.load_network(source)[1], checkpoint.load_network("out")
    params, rounded = params["network"], rounded["network"]
    np.testing.assert_array_equal(*(tree["map_noise"]["scale"] for tree in (rounded, params)))
    name = "enc_16x16_conv"
    assert relative_error(rounded[name]["kernel"], params[name]["kernel"]) > 1e-4


def test_what_bfloat16_has_rounded_is_not_rounded_again(command):
    shutil.copy(DATA / "sg2_tf.pkl", ".")
    assert command("sg2_tf.pkl", "--dtype=bfloat16") == 0
    assert command("sg2_tf", "--output=again", "--dtype=bfloat16") == 0
    assert command("sg2_tf", "--output=float32") == 0
    digests = [
        checkpoint.digest(checkpoint.load_network(folder)[1])
        for folder in ("sg2_tf", "again", "float32")
    ]
    assert len(set(digests)) == 1


def test_several_sources_are_each_done_on_their_own(command, capsys):
    Path("in").mkdir()
    Path("in/cut.pkl").write_bytes((DATA / "sg2_tf.pkl").read_bytes()[:-1000])
    Path("in/text.pt").write_text("no weights")
    Path("in/empty").mkdir()
    shutil.copy(DATA / "sg2_tf.pkl", "in/sg2_tf.bin")
    sources = ["in/cut.pkl", DATA / "sg2_tf.pkl", "in/text.pt", "in/empty", "nowhere"]
    sources += [300 * "x", "in/sg2_tf.bin", DATA / "gaussian_fit.pt", DATA / "sg3R.pkl"]
    assert command(*sources, "--output=out") == 1
    assert {path.name for path in Path("out").iterdir()} == {"sg2_tf", "sg3R"}
    assert_same(DATA / "sg2_tf.pkl", "out/sg2_tf")
    lines = [s for s in capsys.readouterr().err.splitlines() if s.startswith("pulse_jax_convert: ")]
    bad = ["in/cut.pkl: ", "in/text.pt: ", "generator=in/empty: ", "generator=nowhere: "]
    bad += [f"{300 * 'x'}: ", "in/sg2_tf.bin: out/sg2_tf is taken", "gaussian_fit.pt: "]
    assert len(lines) == len(bad)
    for line, text in zip(lines, bad, strict=True):
        assert text in line


def test_what_is_in_place_of_weights_is_told_alike_everywhere(command, capsys, run):
    Path("page.pkl").write_text("<!DOCTYPE html><title>Sign in</title>")
    line = "page.pkl: a web page saved in place of the weights: download the file itself"
    assert command("page.pkl") == 1
    assert capsys.readouterr().err == f"pulse_jax_convert: {line}\n"
    with pytest.raises(ValueError) as error:
        pulse_jax.load("page.pkl")
    assert str(error.value) == line
    with pytest.raises(SystemExit) as exit:
        run(generator="page.pkl")
    assert str(exit.value.code) == f"pulse_jax: {line}"


def test_a_home_that_nobody_has_is_told_once(command, capsys):
    told = "no home is known for ~nosuch"
    assert command("~nosuch/a.pkl", "b.pkl", "--output=out") == 1
    first, _ = capsys.readouterr().err.splitlines()
    assert first == f"pulse_jax_convert: ~nosuch/a.pkl: {told}"
    line = command("a.pkl", "b.pkl", "--output=~nosuch/out")
    assert line == f"pulse_jax_convert: --output=~nosuch/out: {told}"


def test_by_default_the_folder_has_the_name_of_the_source(command):
    Path("in/gan.v1").mkdir(parents=True)
    shutil.copy(DATA / "sg3R.pkl", "in/stylegan3-r.32x32.pkl")
    shutil.copy(DATA / "pulse_e2e_synthesis_zip.pt", "in/gan.v1/synthesis.pt")
    shutil.copy(DATA / "gaussian_fit.pt", "in/gan.v1")
    assert command("in/stylegan3-r.32x32.pkl", "in/gan.v1/") == 0
    assert {p.name for p in Path().iterdir() if p.name != "in"} == {"stylegan3-r.32x32", "gan.v1"}


# The output folder.


def test_a_converted_generator_is_replaced(command):
    assert command(DATA / "sg3R.pkl", "--output=out") == 0
    (Path("out") / "notes.txt").write_text("mine")
    assert command(DATA / "sg2_tf.pkl", "--output=out") == 0
    assert_same(DATA / "sg2_tf.pkl", "out")
    spec = json.loads(Path("out/spec.json").read_text())
    assert contents(Path("out")) == {"spec.json", "notes.txt", *spec["generator"]["files"]}


def test_other_folders_stay_as_they_are(command, capsys):
    Path("mine").mkdir()
    Path("mine/photo.jpg").write_text("dear to me")
    Path("file").write_text("also")
    shutil.copytree(checkpoint.find("faces64"), "faces64")  # has a discriminator and a model card
    for folder in ("mine", "file", "faces64"):
        before = contents(Path(folder))
        assert command(DATA / "sg3R.pkl", f"--output={folder}") == 1
        assert command(DATA / "sg3R.pkl", f"--output={folder}") == 1
        line, again = capsys.readouterr().err.splitlines()
        told = f"{folder}: Not a directory" if folder == "file" else f"{folder} exists and isn't "
        assert line == again and line.startswith(f"pulse_jax_convert: {told}")
        assert contents(Path(folder)) == before
    assert Path("mine/photo.jpg").read_text() == "dear to me"
    assert Path("file").read_text() == "also"
    assert command("faces64") == 1  # would go into itself
    checkpoint.load_discriminator("faces64/.")


def test_a_folder_that_cannot_be_made_is_told(command, capsys):
    Path("file").write_text("")
    assert command(DATA / "sg3R.pkl", "--output=file/out") == 1
    assert "pulse_jax_convert: file/out: " in capsys.readouterr().err


def test_what_breaks_off_leaves_nothing(command, monkeypatch, capsys):
    assert command(DATA / "sg3R.pkl", "--output=old") == 0
    before = contents(Path("old"))

    def full(folder, **networks):
        Path(folder, "generator").mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    capsys.readouterr()
    for folder in ("new", "old"):
        assert command(DATA / "sg2_tf.pkl", f"--output={folder}") == 1
        line = f"pulse_jax_convert: {folder}: can't be written: No space left on device\n"
        assert capsys.readouterr().err == line
    assert not Path("new").exists()
    assert contents(Path("old")) == before
    assert pulse_jax.load("old")[0].resolution == 32


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]
    try:
        result = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no disk can be mounted: {error}")
    if result.returncode:
        pytest.skip(f"no disk can be mounted: {result.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_in_one_line(command, small_disk, capfd):
    assert command(DATA / "sg2_tf.pkl", f"--output={small_disk / 'new'}") == 1
    told = f"pulse_jax_convert: {small_disk / 'new'}: can't be written: No space left on device: "
    assert capfd.readouterr().err == f"{told}up to 1.27 MB are needed, and 0.0655 MB are free\n"
    assert not list(small_disk.iterdir())


# Published generators.


@pytest.fixture
def downloaded(command, monkeypatch):
    """ffhq1024 as if it had been downloaded: a small network."""
    folder = published.folder("ffhq1024")
    folder.mkdir(parents=True)
    shutil.copy(DATA / "sg2_tf.pkl", folder / published.PUBLISHED["ffhq1024"].file)
    return folder


def test_a_published_name_is_converted_into_the_cache(command, downloaded, capsys):
    with pytest.raises(ValueError, match=r"^generator=ffhq1024 [^\n]*`pulse_jax_convert \w*`$"):
        pulse_jax.load("ffhq1024")
    assert command("ffhq1024") == 0
    assert "Nvidia" in capsys.readouterr().out
    assert_same(downloaded / published.PUBLISHED["ffhq1024"].file, "ffhq1024")
    assert {"spec.json", "generator"} <= {path.name for path in downloaded.iterdir()}
    assert command("ffhq1024", "--dtype=bfloat16") == 0  # replaced
    assert command("ffhq1024", "--output=here") == 0
    assert_same(downloaded / published.PUBLISHED["ffhq1024"].file, "here")


def test_a_download_that_fails_is_told(command, monkeypatch, capsys):
    def fetch(name):
        raise ValueError(f"{name}: download failed: no connection")

    monkeypatch.setattr(published, "fetch", fetch)
    assert command("ffhq1024") == 1
    line = "pulse_jax_convert: ffhq1024: download failed: no connection\n"
    assert capsys.readouterr().err == line
    assert not published.folder("ffhq1024").exists()


def test_names_of_published_generators_that_are_near_are_listed():
    with pytest.raises(ValueError, match=r"'ffhq102'; did you mean ffhq1024 or "):
        published.fetch("ffhq102")
    with pytest.raises(ValueError, match=r"'nothing': they are ffhq1024, "):
        published.fetch("nothing")


# The command itself.


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "give a file"),
        (["--output=out"], "give a file"),
        (["a.pkl", "--dtype=float16"], "--dtype=float16"),
        (["a.pkl", "--unknown=3"], "unknown"),
    ],
)
def test_bad_flags_end_in_one_line(command, arguments, named):
    message = command(*arguments)
    assert message.startswith("pulse_jax_convert: ") and named in message and "\n" not in message


def test_help_lists_what_there_is(command, capsys):
    assert command("--help") == 0
    text = capsys.readouterr().out
    for part in ("--output", "--dtype", *published.PUBLISHED):
        assert part in text


def test_the_module_runs_from_another_folder(tmp_path):
    shutil.copy(DATA / "sg3R.pkl", tmp_path)
    result = run_module("pulse_jax.convert", "sg3R.pkl", cwd=tmp_path)
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert "sg3R: " not in result.stdout and "in sg3R" in result.stdout
    checkpoint.load(tmp_path / "sg3R")


# Memory.


def large_stylegan2(monkeypatch, path):
    """A file as StyleGAN 2's program wrote it: config F at 1024×1024, random G, D and Gs."""
    modules = ["dnnlib", "dnnlib.tflib", "dnnlib.tflib.network"]
    for name in modules:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    network_class = type("Network", (), {"__module__": modules[-1]})
    sys.modules[modules[-1]].Network = network_class
    random = np.random.default_rng(0)

    def normal(*shape):
        value = random.normal(size=shape).astype(np.float32)
        return value if shape else value[()]

    def network(variables, **components):
        result = network_class()
        result.__dict__ = {
            "version": 4,
            "name": "G",
            "static_kwargs": {"num_channels": 3, "resolution": 1024, "label_size": 0},
            "components": components,
            "build_module_src": "",
            "build_func_name": "G_main",
            "variables": list(variables.items()),
        }
        return result

    def generator():
        synthesis = {"4x4/Const/const": normal(1, 512, 4, 4), "noise0": normal(1, 1, 4, 4)}

        def layer(name, size, inputs, outputs):
            synthesis[f"{name}/weight"] = normal(size, size, inputs, outputs)
            synthesis[f"{name}/mod_weight"] = normal(512, inputs)
            synthesis[f"{name}/mod_bias"] = normal(inputs)
            synthesis[f"{name}/bias"] = normal(outputs)
            if size == 3:
                synthesis[f"{name}/noise_strength"] = normal()

        inputs = 512
        for r in range(2, 11):
            side, outputs = 2**r, min(16384 // 2 ** (r - 1), 512)
            if side > 4:
                layer(f"{side}x{side}/Conv0_up", 3, inputs, outputs)
                synthesis[f"noise{2 * r - 5}"] = normal(1, 1, side, side)
                synthesis[f"noise{2 * r - 4}"] = normal(1, 1, side, side)
            layer(f"{side}x{side}/{'Conv1' if side > 4 else 'Conv'}", 3, outputs, outputs)
            layer(f"{side}x{side}/ToRGB", 1, outputs, 3)
            inputs = outputs
        mapping = {f"Dense{i}/weight": normal(512, 512) for i in range(8)}
        mapping |= {f"Dense{i}/bias": normal(512) for i in range(8)}
        parts = {"synthesis": network(synthesis), "mapping": network(mapping)}
        return network({"lod": normal() * 0, "dlatent_avg": normal(512)}, **parts)

    with path.open("wb") as file:  # the discriminator has about as many weights
        pickle.dump((generator(), generator(), generator()), file, protocol=4)


@pytest.mark.slow
def test_the_largest_networks_take_less_than_2_gb(tmp_path, monkeypatch):
    source = tmp_path / "large.pkl"
    large_stylegan2(monkeypatch, source)
    assert source.stat().st_size > 360e6
    # Two processes: the peak of the inner one isn't that of this one, which it starts as.
    run = "import subprocess, sys; subprocess.run(sys.argv[1:], check=True); import resource"
    run += "; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    command = [sys.executable, "-m", "pulse_jax.convert", source, "--output=out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", run, *command],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    *told, peak = result.stdout.splitlines()
    peak = int(peak) * (1 if sys.platform == "darwin" else 1024)
    print(*told, f"peak {peak / 1e9:.2f} GB", sep="\n")
    assert "StyleGAN2, 1024×1024 pixels, 30,370,060 parameters, z 512, w 18 × 512" in told[0]
    assert peak < 2e9
