"""The command: what it writes, what it promises about seeds, and how it takes bad input."""

import csv
import itertools
import json
import re
import secrets
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from command_helpers import contents, fails, read_rows, run_module, write_picture
from PIL import Image

import pulse_jax
from pulse_jax import __main__ as command
from pulse_jax import convert, images
from pulse_jax.files import held
from pulse_jax.generators import checkpoint
from pulse_jax.generators.digests import network_digest
from pulse_jax.upsampling import restarts

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run_linear(run):
    """With a generator that compiles in no time, for what isn't about StyleGANs."""
    return partial(run, generator="experiment_helpers:linear")


def test_what_is_written(run, generator, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png", seed=1)
    write_picture(tmp_path / "in" / "b.JPG", seed=2)
    write_picture(tmp_path / "in" / "wide.bmp", side=2, seed=3)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    output = run(f"--input_dir={tmp_path / 'in'}", "--operator=area")

    operator = pulse_jax.operators.area(2)
    expected = {f"{kind}_0{k}.png" for kind in ("hr", "lr") for k in (1, 2, 3)}
    names = {p.name for p in (output / "a").iterdir()}
    expected |= {"input.png", "bicubic.png", "grid.png", "l2.svg", "loss.svg"}
    assert names == expected | {"latents.npz", "results.csv"}
    rows = read_rows(output)
    assert [(r["image"], r["restart"]) for r in rows] == [
        (name, str(k)) for name in ("a.png", "b.JPG", "wide.bmp") for k in (1, 2, 3)
    ]
    target = images.load_image(tmp_path / "in" / "a.png")
    for row in rows[:3]:
        hr = images.load_image(output / "a" / f"hr_0{row['restart']}.png")
        lr = images.load_image(output / "a" / f"lr_0{row['restart']}.png")
        assert hr.shape == (8, 8, 3)
        assert np.abs(lr - operator(hr)).max() <= 0.5 / 255 + 1e-6
        assert float(row["l2_saved"]) == pytest.approx(np.mean((operator(hr) - target) ** 2))
        assert row["status"] == "missed eps" and row["seed"] == "0"
        assert 0 <= int(row["best_step"]) < 3

    # The latents give the pictures again.
    module, params = pulse_jax.load(generator)
    with np.load(output / "a" / "latents.npz") as file:
        latents = dict(file)
    assert latents.pop("generator") == network_digest(params)
    assert len(latents["style"]) == 3
    again = jax.jit(jax.vmap(lambda latents: module.synthesize(params, latents, {})))(latents)
    for k, image in enumerate(again, 1):
        png = images.load_image(output / "a" / f"hr_0{k}.png")
        assert np.abs(png - image.clip(0, 1)).max() <= 0.5 / 255 + 1e-5

    grid = images.load_image(output / "a" / "grid.png")
    first = images.load_image(output / "a" / "hr_01.png")
    assert np.array_equal(grid[:8, 18:26], first)  # after the input and its bicubic enlargement
    assert np.array_equal(grid[:8, :8], images.resize_nearest(target, 2))

    config = json.loads((output / "config.json").read_text())
    assert (config["--operator"], config["--seeds"], config["slots"]) == ("area", "0", 4)
    assert config["SHA-256 of the generator"] == checkpoint.digest(params)
    with (output / "timings.csv").open(newline="") as file:
        timings = list(csv.DictReader(file))
    figures = [tuple(int(t[name]) for name in ("side", "restarts", "steps")) for t in timings]
    assert figures == [(2, 3, 9), (4, 6, 18)]
    assert "notes.txt" in capsys.readouterr().out


def test_pictures_are_searched_in_turn():
    """Eight; then the next ones."""
    order = restarts.in_turn([(picture, k) for picture in range(10) for k in (1, 2)])
    first = [(picture, k) for k in (1, 2) for picture in range(8)]
    assert order == [*first, (8, 1), (9, 1), (8, 2), (9, 2)]


def test_success_counts_what_was_saved(run_linear, tmp_path):
    write_picture(tmp_path / "in" / "a.png")
    rows = read_rows(run_linear(f"--input_dir={tmp_path / 'in'}"))
    middle = sorted(float(row["l2_saved"]) for row in rows)[1]
    eps = f"--eps={middle * 1.001}"
    rows = read_rows(run_linear(f"--input_dir={tmp_path / 'in'}", eps, output="again"))
    for row in rows:
        met = float(row["l2_saved"]) <= middle * 1.001
        assert row["status"] == ("converged" if met else "missed eps")
    assert {row["status"] for row in rows} == {"converged", "missed eps"}


def test_a_restart_depends_on_seed_pixels_and_number_alone(run, tmp_path):
    write_picture(tmp_path / "in" / "a.png", seed=1)
    write_picture(tmp_path / "in" / "b.png", seed=2)
    write_picture(tmp_path / "alone" / "z.png", seed=2)
    both = run(f"--input_dir={tmp_path / 'in'}", output="both")
    alone = run(f"--input_dir={tmp_path / 'alone'}", "--restarts=2", output="alone_out")
    other = run(f"--input_dir={tmp_path / 'alone'}", seed=7, output="other")
    for name in ("hr_01.png", "hr_02.png"):
        assert contents(both / "b")[name] == contents(alone / "z")[name]
        assert contents(other / "z")[name] != contents(alone / "z")[name]
    assert contents(both / "b")["hr_01.png"] != contents(both / "b")["hr_02.png"]
    assert contents(both / "b")["hr_01.png"] != contents(both / "a")["hr_01.png"]


def test_an_unset_seed_is_drawn_told_and_recorded(run, tmp_path, capsys, monkeypatch):
    write_picture(tmp_path / "in" / "a.png")
    folder = f"--input_dir={tmp_path / 'in'}"
    monkeypatch.setattr(secrets, "randbelow", lambda bound: bound - 1)
    drawn = run(folder, seed=None, output="drawn")
    assert "seed 4294967295" in capsys.readouterr().out
    assert json.loads((drawn / "config.json").read_text())["--seeds"] == str(2**32 - 1)
    again = run(folder, seed=2**32 - 1, output="again")
    assert contents(drawn / "a") == contents(again / "a")


def test_the_flags_of_the_reference(run, tmp_path):
    write_picture(tmp_path / "in" / "a.png")
    reference = "-duplicates 2 -batch_size 2 -seed 5 -loss_str 100*L2+0.05*GEOCROSS+0.1*L1 -eps 0.5"
    reference += (
        " -noise_type fixed -num_trainable_noise_layers 2 -tile_latent -bad_noise_layers 0.2"
    )
    reference += " -opt_name sgdm -learning_rate 0.1 -steps 2 -lr_schedule linear1cycle"
    output = run("-input_dir", str(tmp_path / "in"), *reference.split(), "-save_intermediate")
    names = {p.relative_to(output / "a").as_posix() for p in (output / "a").rglob("*.png")}
    steps = {f"a_{k}_0{step}.png" for k in (1, 2) for step in (0, 1)}
    assert names == {f"{kind}/{name}" for kind in ("HR", "LR") for name in steps} | {
        *("hr_01.png", "hr_02.png", "lr_01.png", "lr_02.png"),
        *("input.png", "bicubic.png", "grid.png"),
    }
    assert (output / "a/HR/a_2_01.png").read_bytes() == (output / "a/hr_02.png").read_bytes()
    with np.load(output / "a" / "latents.npz") as file:
        assert file["style"].shape == (2, 1, 5)
        assert not file["noise_0"].any() and file["noise_1"].any() and not file["noise_2"].any()


def test_intermediate_images_of_one_restart_have_the_names_of_the_reference(run_linear, tmp_path):
    write_picture(tmp_path / "in" / "a.png")
    output = run_linear(
        f"--input_dir={tmp_path / 'in'}", "--restarts=1", "--steps=12", "--save_intermediate"
    )
    names = sorted(p.name for p in (output / "a" / "HR").iterdir())
    assert names == [f"a_{step:02d}.png" for step in range(12)]


def test_larger_pictures_are_brought_to_the_input_size(run, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png", side=12)
    output = run(f"--input_dir={tmp_path / 'in'}", "--input_size=4", "--operator=area")
    assert "a.png: downscaled from 12 to 4 pixels (area)" in capsys.readouterr().out
    target = pulse_jax.operators.area(3)(images.load_image(tmp_path / "in" / "a.png"))
    hr = images.load_image(output / "a" / "hr_01.png")
    error = np.mean((pulse_jax.operators.area(2)(hr) - target) ** 2)
    assert float(read_rows(output)[0]["l2_saved"]) == pytest.approx(error)


def test_pictures_of_any_size_and_shape_are_arguments(run_linear, tmp_path, capsys):
    """They come from anywhere; the page says what was done to each, and how to do it again."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (21, 30, 3), np.uint8)).save(tmp_path / "photo.png")
    write_picture(tmp_path / "in" / "a.png", seed=1, side=10)
    named = str(tmp_path / "photo.png"), "--steps=1", str(tmp_path / "in")
    output = run_linear(*named, "--crop=center", "--input_size=4", "--operator=lanczos")
    told = capsys.readouterr().out
    done = "cropped to 21×21 pixels at 4,0, then downscaled from 21 to 4 pixels (lanczos)"
    assert f"photo.png: {done}" in told
    page = (output / "index.html").read_text()
    assert f"The picture was {done}." in page
    assert f"<code>pulse_jax {named[0]} {named[2]} --" in page
    with Image.open(named[0]) as picture:  # Pillow rounds, and clips between its two passes
        small = picture.crop((4, 0, 25, 21)).resize((4, 4), Image.Resampling.LANCZOS)
    found = np.asarray(Image.open(output / "photo" / "input.png"), int)
    assert np.abs(found - np.asarray(small, int)).max() <= 2
    assert {row["image"] for row in read_rows(output)} == {"photo.png", "a.png"}

    dots = shutil.copy(named[0], tmp_path / "...png")  # whose stem is the folder above
    output = run_linear(str(dots), "--crop=20,13,4", "--steps=1", output="corner")
    corner = np.asarray(Image.open(named[0]))[13:17, 20:24]
    assert np.array_equal(np.asarray(Image.open(output / "...png" / "input.png")), corner)


def test_a_recipe_is_a_set_of_defaults(run_linear, tmp_path):
    def settings(*flags, output):
        folder = run_linear(f"--input_dir={tmp_path / 'in'}", "--restarts=1", *flags, output=output)
        config = json.loads((folder / "config.json").read_text())
        return [config[f"--{name}"] for name in ("opt_name", "stop_at_eps", "equal_start")]

    write_picture(tmp_path / "in" / "a.png")
    assert settings(output="a") == ["adam", False, False]  # `run` asks for the original's
    assert settings("--recipe=fast", output="b") == ["lbfgs", True, True]
    assert settings("--recipe=fast", "--opt_name=sgd", output="c") == ["sgd", True, True]


def test_stop_at_eps(run_linear, tmp_path):
    write_picture(tmp_path / "in" / "a.png")
    output = run_linear(f"--input_dir={tmp_path / 'in'}", "--steps=40", "--eps=1", "--stop_at_eps")
    assert [row["steps"] for row in read_rows(output)] == ["1", "1", "1"]


@pytest.mark.parametrize(("given", "slots"), [("auto", 2), ("3", 3)])
def test_batch_size(run_linear, tmp_path, given, slots):
    write_picture(tmp_path / "in" / "a.png")
    output = run_linear(f"--input_dir={tmp_path / 'in'}", f"--batch_size={given}")
    assert json.loads((output / "config.json").read_text())["slots"] == slots


@pytest.mark.parametrize(
    ("number", "pictures", "cores", "found"),
    [(1, 1, 8, (2, 1)), (8, 1, 16, (4, 2)), (8, 4, 16, (16, 2)), (3, 1, 1, (1, 2))],
)
def test_cores_are_as_many_as_have_restarts(number, pictures, cores, found, monkeypatch, unchecked):
    """But two even for one, whose bytes are then those that it has among others."""
    monkeypatch.setattr(jax, "local_devices", lambda: cores * [SimpleNamespace(platform="cpu")])
    settings, generator = pulse_jax.Settings(restarts=number), SimpleNamespace(resolution=64)
    run = SimpleNamespace(settings=settings, generator=generator, pictures=pictures * [None])
    devices, slots = restarts.choose_slots(run, None)
    assert (len(devices), slots) == found


@pytest.mark.parametrize(("given", "most", "least"), [("auto", 2, 1), ("3", 3, 3)])
def test_devices_are_as_many_as_fit_also_with_batch_size(
    run_linear, tmp_path, monkeypatch, given, most, least
):
    asked = []

    def fit_slots(*others, devices, **options):
        asked.append((others[-1], options["least"]))
        return devices, 1

    monkeypatch.setattr(restarts, "SMALL", 0)
    monkeypatch.setattr(restarts, "fit_slots", fit_slots)
    write_picture(tmp_path / "in" / "a.png")
    run_linear(f"--input_dir={tmp_path / 'in'}", f"--batch_size={given}")
    assert asked == [(most, least)]


def test_pictures_of_one_stem_keep_apart(run_linear, tmp_path):
    write_picture(tmp_path / "in" / "a.png", seed=1)
    write_picture(tmp_path / "in" / "a.bmp", seed=2)
    write_picture(tmp_path / "in" / "a.png.bmp", seed=3)
    output = run_linear(f"--input_dir={tmp_path / 'in'}")
    firsts = [contents(output / name)["hr_01.png"] for name in ("a.png", "a.bmp", "a.png.bmp")]
    assert len(set(firsts)) == 3


def test_a_restart_that_is_not_finite_is_told_and_spares_the_others(
    run, tmp_path, monkeypatch, traced_alone
):
    write_picture(tmp_path / "in" / "a.png")
    folder = f"--input_dir={tmp_path / 'in'}"
    whole = run(folder, output="whole")

    keys = restarts.restart_keys
    broken = jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32))
    monkeypatch.setattr(restarts, "restart_keys", lambda *a: keys(*a).at[1].set(broken))
    normal = jax.random.normal

    def normal_or_nan(key, shape=(), dtype=float):
        bad = (
            jax.random.key_data(key) == jax.random.key_data(jax.random.split(broken, 6)[0])
        ).all()
        return jnp.where(bad, jnp.nan, normal(key, shape, dtype))

    monkeypatch.setattr(jax.random, "normal", normal_or_nan)
    jax.clear_caches()  # starts have been traced with the other, and the trace is kept on disk
    output = run(folder, f"--cache_dir={tmp_path / 'cache'}", output="broken")
    assert [r["status"] for r in read_rows(output)] == ["missed eps", "not finite", "missed eps"]
    assert not (output / "a" / "hr_02.png").exists()
    for name in ("hr_01.png", "hr_03.png"):
        assert contents(output / "a")[name] == contents(whole / "a")[name]


def test_bad_pictures_are_told_and_the_others_done(run, tmp_path, capsys):
    folder = tmp_path / "in"
    write_picture(folder / "good.png")
    good = (folder / "good.png").read_bytes()
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "text.jpg").write_text("no picture")
    write_picture(folder / "odd.png", side=3)
    write_picture(folder / "large.png", side=16)
    Image.new("RGB", (4, 5)).save(folder / "oblong.png")
    Image.new("RGB", (9, 7)).save(folder / "wide.png")
    with pytest.raises(SystemExit) as exit:
        run(f"--input_dir={folder}")
    assert exit.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    lines = {Path(s.split(": ")[1]).name: s for s in lines if s.startswith("pulse_jax: ")}
    names = "empty", "cut", "odd", "large", "oblong", "wide"
    assert lines.keys() == {f"{n}.png" for n in names} | {"text.jpg"}
    fitting = "sides of 2, 4, 8 pixels fit"  # bicubic can't come down to 1
    oblong = f"4×5 pixels and isn't square; {fitting}; --crop=center takes a square of it, or "
    assert lines["oblong.png"].endswith(f"{oblong}--crop=face a face")
    wide = f"{oblong.replace('4×5', '9×7')}--crop=face a face, and --input_size=SIDE brings that"
    assert wide in lines["wide.png"]
    for name, side in (("odd.png", 3), ("large.png", 16)):
        assert f"{side} pixels" in lines[name] and "--input_size" in lines[name]
        assert fitting in lines[name]
    assert {row["image"] for row in read_rows(tmp_path / "out")} == {"good.png"}
    assert (tmp_path / "out" / "good" / "hr_03.png").exists()


def test_what_is_not_there_is_told_and_the_others_done(run_linear, tmp_path, capsys):
    write_picture(tmp_path / "good.png")
    (tmp_path / "empty").mkdir()
    names = [str(tmp_path / name) for name in ("nowhere.png", "good.png", "empty", "nowhere")]
    with pytest.raises(SystemExit) as exit:
        run_linear(*names, f"--input_dir={tmp_path / 'none'}")
    assert exit.value.code == 1
    captured = capsys.readouterr()
    lines = [s for s in captured.err.splitlines() if s.startswith("pulse_jax: ")]
    missing = "can't be read: No such file or directory"
    none = "holds no image that can be read, such as a PNG or a JPEG"
    assert sorted(lines) == [
        f"pulse_jax: {tmp_path / 'empty'}: {none}",
        f"pulse_jax: {tmp_path / 'none'}: {missing}",
        f"pulse_jax: {names[0]}: {missing}",
        f"pulse_jax: {names[3]}: {missing}",
    ]
    assert "1 picture done, 4 failures; open " in captured.out.splitlines()[-1]
    assert {row["image"] for row in read_rows(tmp_path / "out")} == {"good.png"}


def test_the_sizes_that_fit_depend_on_the_operator_and_the_picture(run, tmp_path, capsys):
    folder = f"--input_dir={tmp_path / 'in'}"
    write_picture(tmp_path / "in" / "a.png", side=4)
    assert "sides of 8 pixels fit" in fails(run, capsys, folder, "--operator=grey")
    assert "sides of 2 pixels fit" in fails(run, capsys, folder, "--operator=area:4")
    line = fails(run, capsys, folder, "--input_size=1")
    assert "at a side of 1 pixel, --operator=bicubic" in line
    assert "sides of 2, 4, 8 pixels fit" in line
    line = fails(run, capsys, folder, "--input_size=3")
    assert "--input_size=3 does not divide the generator's 8; sides of 2, 4, 8 pixels fit" in line
    line = fails(run, capsys, folder, "--input_size=8")
    assert "--input_size=8 is more than its 4 pixels; sides of 2, 4 pixels fit" in line


def test_what_is_told_of_pictures(run_linear, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png")
    grey = np.random.default_rng(0).integers(30, 338, (4, 4)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "in" / "dark.tif")
    rgba = Image.open(tmp_path / "in" / "a.png")
    rgba.putalpha(0)
    rgba.save(tmp_path / "in" / "alpha.png")
    run_linear(f"--input_dir={tmp_path / 'in'}", "--steps=1", "--restarts=1")
    captured = capsys.readouterr()
    lines = [s for s in captured.out.splitlines() if s.startswith(str(tmp_path / "in"))]
    assert len(lines) == 3 and "Warning" not in captured.err
    assert "alpha.png: its alpha channel is 0 everywhere" in lines[0]
    assert f"dark.tif: its values from {grey.min()} to {grey.max()} are less" in lines[1]
    assert "dark.tif is faint" in lines[2]


@pytest.mark.parametrize("value_range", ["auto", "30,400"])
def test_the_range_of_values_can_be_given(run, tmp_path, value_range):
    counts = np.arange(100, 420, 20, np.int32).reshape(4, 4)
    (tmp_path / "in").mkdir()
    Image.fromarray(counts).save(tmp_path / "in" / "a.tif")
    flags = f"--input_dir={tmp_path / 'in'}", "--steps=1", "--restarts=1"
    output = run(*flags, f"--value_range={value_range}")
    low, high = (100, 400) if value_range == "auto" else (30, 400)
    found = images.load_image(output / "a" / "input.png")
    expected = (counts[..., None] - low) / (high - low)
    np.testing.assert_allclose(found, expected.repeat(3, axis=-1), rtol=0, atol=0.5 / 255 + 1e-6)


def test_faint_pictures_are_told_before_the_search(run, tmp_path, capsys):
    bright = np.random.default_rng(0).uniform(0.2, 0.8, (4, 4, 3))
    (tmp_path / "in").mkdir()
    variance = {}
    for name, contrast in (("bright", 1), ("faint", 0.05), ("flat", 0)):
        pixels = np.rint(255 * (0.5 + contrast * (bright - 0.5))) / 255
        images.save_image(tmp_path / "in" / f"{name}.png", pixels)
        variance[name] = pixels.var(axis=(0, 1)).mean()
    output = run(f"--input_dir={tmp_path / 'in'}", "--steps=1")
    lines = capsys.readouterr().out.splitlines()
    told = {"faint": "is faint: ", "flat": "has one colour throughout"}
    faint = [i for i, line in enumerate(lines) if any(word in line for word in told.values())]
    for i, (name, words) in zip(faint, told.items(), strict=True):
        assert lines[i].startswith(f"{tmp_path / 'in' / name}.png {words}")
    assert f"variance of {variance['faint']:.2g}," in lines[faint[0]] and "0.001" in lines[faint[0]]
    started = next(i for i, line in enumerate(lines) if "seed 0" in line)
    assert max(faint) < started
    for row in read_rows(output):
        over = variance[row["image"][:-4]]
        relative = float(row["l2_saved"]) / over if over else np.inf
        assert float(row["l2_relative"]) == pytest.approx(relative, rel=1e-5)
    page = (output / "index.html").read_text()
    assert "l2 relative" in page and f">{float(read_rows(output)[0]['l2_relative']):#.3g}<" in page


def test_a_run_without_results_leaves_the_folder_to_another(run, tmp_path, capsys):
    write_picture(tmp_path / "in" / "large.png", side=16)
    folder = f"--input_dir={tmp_path / 'in'}"
    assert "large.png: its side of 16 pixels" in fails(run, capsys, folder)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text('{"--input_size": null, "slots": 1}')
    output = run(folder, "--input_size=4")
    assert json.loads((output / "config.json").read_text())["slots"] == 4


def test_a_picture_that_cannot_be_saved_spares_the_others(run_linear, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png", seed=1)
    write_picture(tmp_path / "in" / "b.png", seed=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("a file where the folder should be")
    line = fails(run_linear, capsys, f"--input_dir={tmp_path / 'in'}", "--save_intermediate")
    assert str(tmp_path / "out" / "a") in line
    assert (tmp_path / "out" / "b" / "hr_03.png").exists()
    assert (tmp_path / "out" / "b" / "HR" / "b_3_02.png").exists()
    assert {row["image"] for row in read_rows(tmp_path / "out")} == {"a.png", "b.png"}


def test_a_table_that_cannot_be_written_spares_the_pictures(run, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png")
    (tmp_path / "out" / "results.csv").mkdir(parents=True)
    assert "results.csv" in fails(run, capsys, f"--input_dir={tmp_path / 'in'}")
    assert (tmp_path / "out" / "a" / "hr_03.png").exists()


def test_results_of_other_settings_are_left_alone(run, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png")
    output = run(f"--input_dir={tmp_path / 'in'}")
    before = contents(output / "a")
    line = fails(run, capsys, f"--input_dir={tmp_path / 'in'}", "--eps=0.5")
    assert "--output_dir" in line and "--eps was 0.001, not 0.5" in line
    write_picture(tmp_path / "in" / "a.png", seed=1)
    line = fails(run, capsys, f"--input_dir={tmp_path / 'in'}")
    assert f"{output / 'a'} holds results of another picture" in line
    assert contents(output / "a") == before


def test_a_folder_that_another_run_writes_to_is_left_alone(run, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png")
    flags = [f"--input_dir={tmp_path / 'in'}"]
    with held(tmp_path / "out"):
        line = fails(run, capsys, *flags)
        assert f"--output_dir={tmp_path / 'out'}: another run is writing there" in line
        assert not any((tmp_path / "out").iterdir())
    run(*flags)


def test_pictures_that_come_later_are_searched_as_many_at_once_as_there_is_use_for(
    run_linear, tmp_path
):
    write_picture(tmp_path / "in" / "a.png", seed=1)
    flags = f"--input_dir={tmp_path / 'in'}", "--batch_size=auto", "--restarts=1"
    for picture, slots in (("a", 1), ("b", 2)):
        write_picture(tmp_path / "in" / f"{picture}.png", seed=ord(picture))
        output = run_linear(*flags)
        assert json.loads((output / "config.json").read_text())["slots"] == slots


def test_the_same_command_does_what_is_left(run, tmp_path, capsys, monkeypatch):
    for name, seed in (("a.png", 1), ("b.png", 2)):
        write_picture(tmp_path / "in" / name, seed=seed)
    flags = f"--input_dir={tmp_path / 'in'}", "--batch_size=1"
    whole = run(*flags, output="whole", seed=None)

    class Stopped(Exception):
        pass

    stream = pulse_jax.stream

    def stopping(*arguments, **options):
        """One after the other, of a, b, a, b, a, and then no more."""
        yield from itertools.islice(stream(*arguments, **options), 5)
        raise Stopped

    seed = int(json.loads((whole / "config.json").read_text())["--seeds"])
    monkeypatch.setattr(secrets, "randbelow", lambda bound: seed)
    monkeypatch.setattr(pulse_jax, "stream", stopping)
    with pytest.raises(Stopped):
        run(*flags, output="cut", seed=None)
    monkeypatch.setattr(pulse_jax, "stream", stream)
    monkeypatch.setattr(secrets, "randbelow", lambda bound: seed + 1)
    cut = tmp_path / "cut"
    assert contents(cut / "a") == contents(whole / "a")
    names = {f"{kind}_0{k}.png" for kind in ("hr", "lr") for k in (1, 2)}
    assert {p.name for p in (cut / "b").iterdir()} == names | {"parts"}
    run(*flags, output="cut", seed=None)
    assert "5 of 6 restarts had been done before: 1 to go" in capsys.readouterr().out
    assert contents(cut / "b") == contents(whole / "b")
    for name in ("results.csv", "config.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_bad_input_leaves_the_earlier_configuration(run, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png")
    before = (run(f"--input_dir={tmp_path / 'in'}") / "config.json").read_bytes()
    fails(run, capsys, "--input_dir=nowhere")
    assert (tmp_path / "out" / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--input_dir=nowhere", ["nowhere"]),
        ("--input_dir={empty}", ["{empty}: holds no image"]),
        ("--input_dir=~nosuch_of_that_name", ["~nosuch_of_that_name"]),
        ("--generator=nothing", ["pulse_jax: --generator=nothing: "]),
        ("--generator=" + 300 * "x", [300 * "x"]),
        ("--operator=cube", ["--operator=cube", "bicubic"]),
        ("--scheme=cube", ["--scheme=cube", "rescale"]),
        ("--opt_name=adamw", ["--opt_name=adamw", "adamax"]),
        ("--lr_schedule=cosine", ["--lr_schedule=cosine", "linear1cycle"]),
        ("--noise_type=pink", ["--noise_type=pink", "trainable"]),
        ("--eps=-0.1", ["--eps=-0.1"]),
        ("--eps=nan", ["--eps=nan"]),
        ("--eps=small", ["--eps=small is not a number"]),
        ("--eps=", ["--eps= is not a number"]),
        ("--steps=0", ["--steps=0"]),
        ("--steps=2.5", ["--steps=2.5 is not a whole number"]),
        ("--save_video=maybe", ["--save_video=maybe is not true or false"]),
        ("--restarts=0", ["--restarts=0"]),
        ("--batch_size=0", ["--batch_size=0"]),
        ("--learning_rate=0", ["--learning_rate=0"]),
        ("--seed=-1", ["--seeds=-1"]),
        ("--seeds=3:3", ["--seeds=3:3 is not 1 to 1000000 numbers, as in 0,1,2 or 0:3"]),
        (f"--seeds=0:{10**14}", [f"--seeds=0:{10**14} is not 1 to 1000000 numbers"]),
        ("--value_range=5", ["--value_range=5", "LOW,HIGH"]),
        ("--value_range=3,1", ["--value_range=3,1", "LOW below HIGH"]),
        ("--loss_str=100*L3", ["--loss_str=100*L3", "'L3'"]),
        ("--loss_str=many*L2", ["--loss_str=many*L2", "'many'"]),
        ("--loss_str=0*L2", ["--loss_str=0*L2"]),
        ("--bad_noise_layers=1,2", ["--bad_noise_layers=1,2"]),
        ("--num_trainable_noise_layers=-1", ["--num_trainable_noise_layers=-1"]),
        ("--output_dir=", ["--output_dir=: must not be empty"]),
        ("--cache_dir=", ["--cache_dir=: must not be empty"]),
        *(
            (f"--{flag}=~nosuch/x", [f"--{flag}=~nosuch/x: no home is known for ~nosuch"])
            for flag in ("output_dir", "cache_dir", "generator", "init_from")
        ),
        ("--operator=mask:~nosuch/x", ["--operator=mask:~nosuch/x: ", "is known for ~nosuch"]),
        ("--output_dir={file}", ["--output_dir={file}"]),
        ("--output_dir={file}/in/it", ["--output_dir={file}/in/it"]),
        ("--unknown=3", ["unknown"]),
        ("restarts=4", ["'restarts=4' is no flag", "no such file"]),
        ("restarts=" + 300 * "4", ["4' is no flag"]),  # longer than a name can be
        ("", ["a word is empty"]),
        ("--crop=middle", ["--crop=middle is not center, face or X,Y,SIDE"]),
        ("--crop=face", ["--crop=face: give the side", "--input_size="]),
        ("--landmarks=here.json", ["--landmarks=here.json is for --crop=face"]),
        ("--crop=1,2,0", ["--crop=1,2,0: SIDE must be at least 1"]),
        ("--crop=3,0,2", ["a.png", "4×4 pixels; --crop=center takes the"]),
    ],
)
def test_bad_flags_end_in_one_line(run, tmp_path, capsys, argument, named):
    write_picture(tmp_path / "in" / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    places = {name: tmp_path / name for name in ("empty", "file")}
    line = fails(run, capsys, f"--input_dir={tmp_path / 'in'}", argument.format(**places))
    for text in named:
        assert text.format(**places) in line
    assert not list(tmp_path.glob("out/*/hr_*.png"))


@pytest.mark.parametrize("name", ["ffhq", "FFHQ1024 "])
def test_names_that_are_near_are_listed(run, capsys, name):
    assert "did you mean ffhq" in fails(run, capsys, f"--generator={name}")


@pytest.mark.parametrize("door", [command, convert])
def test_the_version(door, capsys):
    with pytest.raises(SystemExit) as exit:
        door.parse(["here", "--version"])
    assert not exit.value.code
    assert capsys.readouterr().out.split()[1:] == [pulse_jax.__version__]


def test_the_help_has_whole_sentences_in_groups(capsys):
    with pytest.raises(SystemExit) as exit:
        command.parse(["pulse_jax", "--help"])
    assert not exit.value.code
    told = capsys.readouterr().out
    groups = re.split(r"^(\S.*):\n", told.partition("The flags that most")[2], flags=re.MULTILINE)
    first = re.findall(r"^    --(\w+)", groups[0], re.MULTILINE)
    assert len(first) == 10 and {"input_dir", "output_dir", "generator", "restarts"} <= set(first)
    assert groups[1::2] == [*command.HEADINGS[1:], command.PROCESSES]
    own = command.FLAGS.get_key_flags_for_module(command)
    names = re.findall(r"^    --(\w+)", told, re.MULTILINE)
    assert sorted(names) == sorted({flag.name for flag in own} - set(command.ALIASES))
    for flag in own:
        sentences = re.sub(r"^<.*>: ", "", flag.help)
        assert re.fullmatch(r"[A-Z].* .*\.", sentences) or flag.name in command.ALIASES
        assert " ".join(sentences.split()) in " ".join(told.split()) or flag.name in command.ALIASES
    assert max(map(len, told.splitlines())) <= 100


def test_one_picture_is_told_as_one(run, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png")
    output = run(f"--input_dir={tmp_path / 'in'}", "--restarts=1")
    told = capsys.readouterr().out
    assert "1 picture × 1 restart\n" in told
    assert told.endswith(f"1 picture done; open {output / 'index.html'} to see the results\n")
    assert "1 picture, 0 of 1 restart converged" in (output / "index.html").read_text()


def test_the_module_runs_from_another_folder(generator, compiled, tmp_path):
    write_picture(tmp_path / "input" / "a.png")
    arguments = [f"--generator={generator}", f"--cache_dir={compiled}", "--input_dir=input"]
    arguments += ["--recipe=original", "--steps=1", "--restarts=1"]
    result = run_module("pulse_jax", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "a" / "hr_01.png").exists()
    assert "Traceback" not in result.stderr and "Warning" not in result.stderr


def test_a_grey_picture_is_coloured(run, tmp_path):
    write_picture(tmp_path / "in" / "colour.png", side=8)
    write_picture(tmp_path / "in" / "grey.png", side=8, seed=1, mode="L")
    output = run(f"--input_dir={tmp_path / 'in'}", "--operator=grey")
    grey = pulse_jax.operators.grey()
    for row in read_rows(output):
        target = grey(images.load_image(tmp_path / "in" / row["image"]))
        folder = output / row["image"].removesuffix(".png")
        hr = images.load_image(folder / f"hr_0{row['restart']}.png")
        assert np.ptp(hr, axis=-1).max() > 0.01  # has colours
        assert float(row["l2_saved"]) == pytest.approx(np.mean((grey(hr) - target) ** 2))


def test_what_is_in_the_hole_of_a_mask_does_not_count(run, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png", side=8)
    picture = images.load_image(tmp_path / "in" / "a.png")
    picture[2:6, 2:6] = 0.9
    images.save_image(tmp_path / "in" / "b.png", picture)
    hole = np.zeros((8, 8), np.uint8)
    hole[2:6, 2:6] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    output = run(f"--input_dir={tmp_path / 'in'}", "--operator=mask:0.5")
    of_file = f"--operator=mask:{tmp_path / 'hole.png'}"
    again = run(f"--input_dir={tmp_path / 'in'}", of_file, output="again")
    assert contents(output / "a") == contents(output / "b") == contents(again / "a")
    Image.fromarray(255 - hole).save(tmp_path / "hole.png")
    of_file = of_file, f"--output_dir={again}"
    line = fails(run, capsys, f"--input_dir={tmp_path / 'in'}", *of_file)
    assert f"other settings: SHA-256 of {tmp_path / 'hole.png'} was" in line
    Image.fromarray(255 * np.ones_like(hole)).save(tmp_path / "hole.png")
    line = fails(run, capsys, f"--input_dir={tmp_path / 'in'}", *of_file)
    assert f"{of_file[0]}: it makes 0 of every image" in line
    row, hr = read_rows(output)[0], images.load_image(output / "a" / "hr_01.png")
    error = np.where(hole[..., None], 0, hr - picture)
    assert float(row["l2_saved"]) == pytest.approx(np.mean(error**2))


def test_a_downscaler_takes_what_is_left_of_the_factor(run, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png", side=12)
    degraded = f"--input_dir={tmp_path / 'in'}", "--operator=blur:1,area"
    output = run(*degraded, "--input_size=4")
    assert "a.png: downscaled from 12 to 4 pixels (area)" in capsys.readouterr().out
    target = pulse_jax.operators.area(3)(images.load_image(tmp_path / "in" / "a.png"))
    operator = pulse_jax.operators.parse("blur:1,area:2")(2)
    hr = images.load_image(output / "a" / "hr_01.png")
    error = np.mean((operator(hr) - target) ** 2)
    assert float(read_rows(output)[0]["l2_saved"]) == pytest.approx(error)


def test_factors_that_do_not_fit_the_picture_are_told(run, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png")
    line = fails(run, capsys, f"--input_dir={tmp_path / 'in'}", "--operator=grey")
    assert "--operator=grey: its factors multiply to 1, and 2 is needed" in line
    assert "a.png: at a side of 4 pixels, " in line


def test_a_scheme_in_another_space(run, tmp_path):
    write_picture(tmp_path / "in" / "a.png")
    flags = ["--opt_name=adam", "--scheme=geodesic", "--lr_schedule=fixed"]
    flags += [f"--input_dir={tmp_path / 'in'}", "--space=w_full", "--joint_sphere"]
    rows = read_rows(run(*flags))
    assert rows == read_rows(run(*flags, output="again"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["--scheme"] == "geodesic"


def test_layers_that_share_a_part_of_their_styles(run, tmp_path, capsys):
    """By their names the parts are kept apart in the file, from which a search goes on."""
    write_picture(tmp_path / "in" / "a.png")
    flags = [f"--input_dir={tmp_path / 'in'}", "--style_spread=0.5"]
    output = run(*flags, output="first")
    config = json.loads((output / "config.json").read_text())
    assert config["--loss_str"] == "100*L2"  # without GEOCROSS
    with np.load(output / "a" / "latents.npz") as file:
        shapes = {name: file[name].shape for name in ("common", "own")}
    assert shapes == {"common": (3, 1, 5), "own": (3, 4, 5)}
    again = read_rows(run(*flags, f"--init_from={output}", output="again"))
    for before, after in zip(read_rows(output), again, strict=True):
        assert float(after["l2"]) <= 1.0001 * float(before["l2"])
    flags[1] = "--style_spread=0.7"
    told = fails(run, capsys, *flags, f"--init_from={output}")
    assert "has searched --style_spread=0.5, not 0.7" in told


@pytest.mark.parametrize(
    ("flags", "scheme"),
    [
        ([], "rescale"),
        (["--opt_name=adam"], "rescale"),
        (["--opt_name=adam", "--scheme=tangent_update"], "tangent_update"),
    ],
)
def test_the_default_scheme_suits_the_optimizer(flags, scheme):
    with flagsaver.flagsaver():
        command.parse(["pulse_jax", *flags])
        names = ("opt_name", "scheme")
        settings = pulse_jax.Settings.from_json({n: command.FLAGS[n].value for n in names})
        assert settings.chosen_scheme == scheme


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--scheme=soft_shell:x"], "--scheme=soft_shell:x: the parameter of soft_shell"),
        (
            ["--scheme=geodesic", "--opt_name=lbfgs"],
            "--scheme=geodesic: the scheme geodesic doesn't",
        ),
        (["--scheme=rescale:2"], "rescale takes no parameter, got '2'"),
    ],
)
def test_schemes_that_do_not_work_are_told(run, tmp_path, capsys, flags, told):
    write_picture(tmp_path / "in" / "a.png")
    assert told in fails(run, capsys, f"--input_dir={tmp_path / 'in'}", *flags)
