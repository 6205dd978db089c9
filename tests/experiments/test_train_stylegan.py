"""The trainer: what it writes, that a resumed run is the uninterrupted one, and so on all devices.

No test runs in this process, since the scripts and the command define flags of the same names.
"""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_helpers import write_picture
from experiment_helpers import run_code

import pulse_jax
from pulse_jax import images
from pulse_jax.generators import checkpoint

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "train_stylegan.py"
TINY = ["--resolution=8", "--channels=6,4", "--latent_size=5", "--mapping_layers=1"]
OFTEN = [
    "--batch_size=4",
    "--r1_interval=4",
    "--path_weight=2",
    "--path_interval=2",
    "--ada_images=64",
]


def python(*arguments, cwd, **environment):
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "experiments")))
    command, environment = [sys.executable, *arguments], os.environ | environment
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.optimised  # otherwise, the average of equal weights is off by an ulp
@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path):
    command = [SCRIPT, "--data=galaxies", "--images=24", "--quality_images=64", *TINY, *OFTEN]
    for name, flag in (
        ("whole", "--save_minutes=9"),
        ("parts", "--stop_minutes=0"),  # after a single step
        ("parts", "--stop_minutes=0"),
        ("parts", "--export_dtype=bfloat16"),
        ("parts", "--stop_minutes=0"),  # it has ended: nothing is done
    ):
        result = python(*command, flag, f"--output_dir={name}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr

    def rows(path):
        with (tmp_path / path).open(newline="") as file:
            return list(csv.DictReader(file))

    whole, parts = rows("whole/metrics.csv"), rows("parts/metrics.csv")
    assert [float(row["images"]) for row in parts] == [4, 8, 24]
    last = parts[-1]
    assert all(np.isfinite(float(value)) for value in last.values())
    assert 0 < float(last["ada_p"]) < 0.5 and float(last["path_length"]) > 0
    for name in ("path_length", "ada_p", "frechet", "precision", "recall"):
        assert last[name] == whole[-1][name]
    (floor,) = rows("parts/floor.csv")
    assert 0 < float(floor["frechet"]) < float(last["frechet"])
    samples = [tmp_path / name / "samples_00000024.png" for name in ("whole", "parts")]
    assert samples[0].read_bytes() == samples[1].read_bytes()
    assert images.load_image(samples[1]).shape == (8 * 9 - 1, 8 * 9 - 1, 3)

    (_, exact), (_, rounded) = (
        checkpoint.load_network(tmp_path / name / "generator") for name in ("whole", "parts")
    )
    rounded_there = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.bfloat16(x).astype(x.dtype) if path[-1].key == "kernel" else x, exact
    )
    assert checkpoint.digest(rounded_there) == checkpoint.digest(rounded)
    command[2] = "--images=4"
    start = ["--output_dir=more", "--start_from=whole/generator", "--learning_rate=0"]
    result = python(*command, *start, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    _, same = checkpoint.load_network(tmp_path / "more" / "generator")
    assert checkpoint.digest(same) == checkpoint.digest(exact)
    result = python(*command, "--output_dir=less", *start[1:], "--latent_size=6", cwd=tmp_path)
    assert result.returncode == 1 and "--start_from=whole/generator is" in result.stderr

    grow = ["--output_dir=large", start[1], "--resolution=16", "--channels=6,4,8"]
    result = python(*command, *grow, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert checkpoint.load_network(tmp_path / "large" / "generator")[0].resolution == 16

    generator, params = pulse_jax.load(tmp_path / "parts" / "generator")
    image = generator.synthesize(params, *generator.sample(jax.random.key(0)))
    assert image.shape == (8, 8, 3) and np.isfinite(image).all()
    score, weights = pulse_jax.load_discriminator(tmp_path / "parts" / "generator")
    assert np.isfinite(score(weights, jnp.stack([image] * 4))).all()


@pytest.mark.slow
def test_four_devices_give_the_result_of_one(tmp_path):
    """Losses of three steps, one of each kind; Adam makes ±1 of the smallest gradients."""
    code = f"""
import json, jax, numpy as np, train_stylegan as t
t.FLAGS(["", "--output_dir=", "--data=tissue", *{TINY}, *{OFTEN}, "--batch_size=16"])
t.settle()
source = t.data_set()
networks = t.StyleGAN2(8, (6, 4), 5, 1), t.Discriminator((6, 4))
found, devices = [], jax.devices()
for devices in (devices[:1], devices):
    replicated, sharded = t.shardings(devices)
    steps, start = t.make_steps(*networks, replicated, sharded)
    state = jax.jit(start, out_shardings=replicated)(jax.random.key(0))
    rows = []
    for i in range(3):
        real, _ = source.draw(source.train, jax.random.key(i), 16)
        real = jax.device_put(real, sharded)
        state, losses = steps[t.step_kind(i)](state, real, np.float32(1))
        rows.append({{name: float(x) for name, x in losses.items()}})
    assert len(state.step.devices()) == len(devices)
    found.append(rows)
assert len(devices) == 4
json.dump(found, open("losses.json", "w"))
"""
    result = python("-c", code, cwd=tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert result.returncode == 0, result.stderr
    one, four = json.loads((tmp_path / "losses.json").read_text())
    assert "r1" in one[0] and "path_penalty" in one[1] and set(one[2]) < set(one[1])
    for a, b, bound in zip(one, four, (1e-5, 1e-2, 1e-2), strict=True):
        for name in set(a) - {"real_sign"}:
            assert b[name] == pytest.approx(a[name], rel=bound, abs=1e-5), name


@pytest.mark.slow
def test_faces_are_compiled_once(tmp_path):
    """For steps, reader, floor and figures: a face that counts how often it is traced."""
    code = f"""
import jax, train_stylegan as t
from common import faces
traced = []
def face(key, size):
    traced.append(size)
    return jax.random.uniform(key, (size, size, 3)), faces.sample_attributes(key)
faces.face = face
t.FLAGS(["", "--output_dir=run", "--images=8", "--reader_steps=3",
    *{TINY}, *{OFTEN}, "--quality_images=64"])
t.main()
assert traced == [8], traced
"""
    result = python("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Compiled")
    assert {"reader.npz", "floor.csv", "metrics.csv"} < {
        p.name for p in (tmp_path / "run").iterdir()
    }


def test_schedules_and_bad_settings(tmp_path):
    code = """
import json, pathlib, shutil, sys, types, jax
from common import door, style_training, training
import train_stylegan as t
def at(*flags):
    t.FLAGS.unparse_flags()
    for name in t.FLAGS:
        t.FLAGS[name].unparse()
    t.FLAGS(["", "--output_dir=run", *flags])
at()
t.settle()
kinds = [t.step_kind(i) for i in range(32)]
rates = [training.rate_factor(x, 99) for x in (0, 0.8, 0.9, 1)]
at("--finish", "--stop_minutes=10")
rates += [training.rate_factor(*x) for x in ((0.5, 9), (0.95, 3), (1, 11))]
at("--data=galaxies", "--r1_gamma=1")
t.settle()
settings = [t.FLAGS.r1_gamma, t.FLAGS.path_weight, t.FLAGS.ada_images]
at("--mapping_rate=10", "--noise_rate=0.5")
networks = {"mapping": 1.0, "synthesis": {"conv": 1.0, "noise_strength": 1.0}}, {"conv": 1.0}
params = dict(zip(("generator", "discriminator"), networks))
optimizer = style_training.make_optimizer(0.0, t.FLAGS.mapping_rate)
updates, _ = optimizer.update(params, optimizer.init(params))
complaints = []
bad = "--batch_size=6", "--path_interval=32", "--channels=6,4", "--data_dir=nowhere", "--finish"
bad += ("--start_from=~nosuch/x",)
for flags in bad:
    at(flags)
    try:
        t.main()
    except (ValueError, OSError) as error:
        complaints.append(str(error))
for flags in (["--data=tissue"], ["--data=tissue", "--images=9"], ["--data=galaxies"]):
    at(*flags)
    try:
        training.claim(pathlib.Path("claimed.json"), t)
    except ValueError as error:
        complaints.append(str(error))
at()
sys.argv = ["train_stylegan.py", "--data_dir=pictures", "--output_dir=other"]
training.last_step = lambda: 0  # it has only to read its data
for _ in range(2):
    try:
        door.run(t.main)
    except SystemExit as end:
        complaints.append(f"exit status {end.code}")
    shutil.copy("pictures/whole.png", "pictures/damaged.png")
def killed(*_):
    raise KeyboardInterrupt
saved = []
manager = types.SimpleNamespace(
    directory=".", save=lambda *_, **__: saved.append("a state"), wait_until_finished=lambda: None
)
at()
training.last_step = lambda: 1
try:
    step = lambda i, state, rate: (state, {})
    training.run(manager, training.stopwatch(), 0, {}, step, (), killed)
except KeyboardInterrupt:
    complaints.append(f"{saved} at a kill in the last report")
updates = jax.tree.map(lambda x: round(float(x), 4), updates)
found = [kinds, rates, settings, updates, complaints]
json.dump(found, open("found.json", "w"))
"""
    write_picture(tmp_path / "pictures" / "whole.png")
    (tmp_path / "pictures" / "damaged.png").write_bytes(b"")
    result = run_code(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "damaged.png" in line]
    assert result.stdout == f"{tmp_path / 'other'} has the results\n"
    assert line.startswith("train_stylegan: ") and "pictures/damaged.png: can't be read" in line
    kinds, rates, settings, updates, complaints = json.loads((tmp_path / "found.json").read_text())
    assert [i for i, kind in enumerate(kinds) if kind == "r1"] == [0, 16]
    assert [i for i, kind in enumerate(kinds) if kind == "path"] == [4, 12, 20, 28]
    np.testing.assert_allclose(rates, [1, 1, 0.55, 0.1, 0.55, 0.325, 0.1])
    assert settings == [1, 0, 100_000]
    generator = {"mapping": 10, "synthesis": {"conv": 1, "noise_strength": 0.5}}
    assert updates == {"generator": generator, "discriminator": {"conv": 1}}
    for complaint, start in zip(
        complaints,
        (
            "--batch_size=6 must be a multiple of 4, for groups of images and 1 device",
            "--path_interval=32 and --r1_interval=16 would meet in a step",
            "2 channel counts (6, 4) don't fit resolution 64",
            "nowhere: ",
            "--finish takes --stop_minutes",
            "--start_from=~nosuch/x: no home is known for ~nosuch",
            "--output_dir=. holds a run of other settings: data was tissue, not galaxies",
            "exit status 1",
            f"exit status train_stylegan: --output_dir={tmp_path / 'other'} holds a run of other "
            "settings: SHA-256 of --data_dir was ",
            "[] at a kill in the last report",
        ),
        strict=True,
    ):
        assert complaint.startswith(start) and "\n" not in complaint


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_has_the_next_step_saved(tmp_path, number):
    code = f"""
import signal, types
from common import training

training.FLAGS(["train_x", "--images=160"])
saved = []
manager = types.SimpleNamespace(
    directory=".", save=lambda i, **_: saved.append(i), wait_until_finished=lambda: None
)

def step(i, state, rate):
    if i == 3:
        signal.raise_signal({int(number)})
    return state, {{}}

try:
    training.run(manager, training.stopwatch(), 2, {{}}, step, (), report=None)
except SystemExit as end:
    print(saved, end.code)
"""
    result = run_code(code, cwd=tmp_path)
    assert result.stdout == f"[4] {128 + number}\n", result.stderr
    told = ": stopped after 64 of 160 images; the same command goes on from here"
    assert any(line.endswith(told) for line in result.stderr.splitlines())
