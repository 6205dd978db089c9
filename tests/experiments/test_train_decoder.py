"""The trainer of decoders: what it learns, writes, takes over and refuses.

Faces here are quick to compile: the skin tone is their brightness, glasses a bright row. No test
runs in this process, since the scripts define flags of the same names.
"""

import json

import jax
import numpy as np
import pytest
from experiment_helpers import run_code
from test_train_stylegan import python

import pulse_jax
from pulse_jax.generators import checkpoint

SCRIPT = """
import json, jax, jax.numpy as jnp, numpy as np
from common import faces
def draw(a, size):
    row = (a.glasses > 0) & (jnp.arange(size) < size // 2)
    return jnp.broadcast_to((a.skin + row[:, None, None]) / 2, (size, size, 3))
faces.draw = draw
from common import pool, training
import train_decoder as t
def at(*flags):
    t.FLAGS.unparse_flags()
    for name in t.FLAGS:
        t.FLAGS[name].unparse()
    small = "--latent_size=5 --mapping_layers=2 --mapping_width=6 --pool_images=64 --pool=pool"
    t.FLAGS(["", *small.split(), "--reader_steps=3", "--quality_images=64", *flags])
"""


@pytest.mark.optimised  # otherwise, the average of equal weights is off by an ulp
@pytest.mark.slow
def test_stages_and_a_resumed_run(tmp_path):
    code = """
def run(name, *flags):
    at(f"--output_dir={name}", *flags)
    t.main()
eight = "--resolution=8", "--channels=6,4", "--batch_size=8"
run("whole", *eight, "--images=64", "--save_minutes=9")
run("parts", *eight, "--images=64", "--stop_minutes=0")
run("parts", *eight, "--images=64")
large = "--resolution=16", "--channels=6,4,6", "--start_from=whole/generator", "--batch_size=4"
run("large", *large, "--images=4", "--learning_rate=0")
run("sharp", *large, "--images=8", "--discriminator=large_judge", "--perceptual_weight=1")
"""
    judge = """
from pulse_jax.generators import checkpoint
from pulse_jax.generators.stylegan2 import Discriminator
module = Discriminator((6, 4, 6))
params = module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
checkpoint.save("large_judge", discriminator=(module, params))
"""
    result = python("-c", SCRIPT + judge + code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    whole, parts, large, sharp = (
        checkpoint.load_network(tmp_path / name / "generator")
        for name in ("whole", "parts", "large", "sharp")
    )
    assert checkpoint.digest(whole[1]) == checkpoint.digest(parts[1])
    assert whole[0].attribute_kinds == (10, 8, 4, 4, 4) and whole[0].z_size == 68
    # Of twice the side, the image is at first that of the smaller one, enlarged.
    assert not large[1]["synthesis"]["16x16_to_rgb"]["kernel"].any()
    for name in ("mapping", "8x8_conv"):
        one, other = (p.get(name, p["synthesis"].get(name)) for _, p in (whole, large))
        assert checkpoint.digest(one) == checkpoint.digest(other)
    header, row = (tmp_path / "sharp" / "metrics.csv").read_text().split()
    figures = dict(zip(header.split(","), map(float, row.split(",")), strict=True))
    assert (
        figures["images"] == 8
        and figures["perceptual"] > 0
        and np.isfinite(list(figures.values())).all()
    )
    teacher, judge = (np.load(tmp_path / "sharp" / f"{name}.npz") for name in ("teacher", "reader"))
    with teacher, judge:  # are two networks
        assert all((teacher[name] != judge[name]).any() for name in judge if "kernel" in name)
    assert checkpoint.digest(sharp[1]) != checkpoint.digest(large[1])
    assert pulse_jax.load_discriminator(tmp_path / "sharp" / "generator")
    assert (tmp_path / "sharp" / "samples_00000008.png").is_file()
    for space in ("w", "z"):
        generator, params = pulse_jax.load(tmp_path / "sharp" / "generator", space=space)
        image = generator.synthesize(params, *generator.sample(jax.random.key(0)))
        assert image.shape == (16, 16, 3)


@pytest.mark.slow
def test_it_learns_what_attributes_say(tmp_path):
    """From z alone: the error on faces that it hasn't seen falls to a fraction."""
    code = """
at("--resolution=8", "--channels=8,8", "--learning_rate=0.01", "--pool_images=256")
generator = t.make_generator()
start, steps = t.make_steps(generator, None)
state = start(jax.random.key(0))
known = pool.stored(None)
errors = []
for i in range(150):
    state, losses = steps["plain"](state, *pool.batch(known, i), np.float32(1), None)
    errors.append(float(losses["coarse_l1"]))
z, true = pool.held_out(0)
found = t.synthesize(generator, state.params["generator"], z, jax.random.key(2))
spread = np.abs(true - true.mean(axis=0)).mean()
errors = errors[0], errors[-1], float(jnp.abs(found - true).mean() / spread)
json.dump(errors, open("errors.json", "w"))
"""
    result = python("-c", SCRIPT + code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, last, held_out = json.loads((tmp_path / "errors.json").read_text())
    assert last < first / 3 and held_out < 0.6


def test_layers_that_are_taken_over(tmp_path):
    """Those of the first generator that has them, if the sizes fit."""
    code = """
from pulse_jax.generators import checkpoint
def constant(value, *flags):
    at(*flags)
    network = t.make_generator()
    noise = [jnp.zeros((1, *shape)) for shape in network.noise_shapes]
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 68)), noise)["params"]
    return network, jax.tree.map(lambda x: np.full(x.shape, value, np.float32), shapes)
for name, value, *flags in (
    ("small", 1, "--resolution=8", "--channels=6,4"),
    ("large", 2, "--resolution=16", "--channels=6,4,6"),
):
    checkpoint.save(name, generator=constant(value, *flags))
_, own = constant(3, "--resolution=16", "--channels=6,4,5")
found = []
for names in ([], ["small", "large"], ["large", "small"]):
    synthesis = t.taken_over(t.layers(names), own)["synthesis"]
    for layer in ("8x8_conv", "16x16_to_rgb"):
        kernels = synthesis[layer]["kernel"], synthesis[layer]["style"]["bias"]
        found.append([float(x.mean()) for x in kernels])
at("--noise_rate=0")
synthesis = t.taken_over(t.layers(["small"]), own)["synthesis"]
found.append(float(synthesis["8x8_conv"]["noise_strength"]))
json.dump(found, open("found.json", "w"))
"""
    result = run_code(SCRIPT + code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    # With 5 channels at side 16, not 6, that side's ToRGB is new. Without noise, so are strengths.
    assert found == [[3, 3], [3, 3], [1, 1], [0, 3], [2, 2], [0, 3], 3]


def test_a_discriminator_of_smaller_images_joins_in(tmp_path):
    """It judges large images as it judged small ones; where it can't, its sizes are refused."""
    code = """
from pulse_jax.generators import checkpoint
from pulse_jax.generators.stylegan2 import Discriminator
small, large = Discriminator((6, 4)), Discriminator((6, 4, 4))
images = np.repeat(np.random.default_rng(0).random((8, 4, 4, 3), np.float32), 2, (1)).repeat(2, 2)
params = jax.jit(small.init)(jax.random.key(0), images)["params"]
checkpoint.save("small", discriminator=(small, params))
at("--resolution=16", "--discriminator=small")
grown = t.trained(large, jax.random.key(1))
whole = images.repeat(2, 1).repeat(2, 2)
found = [jax.jit(f.apply)({"params": p}, 2 * x - 1).tolist() for f, p, x in (
    (small, params, images), (large, grown, whole))]
complaints = []
for channels in (6, 4, 5), (6, 5, 5), (5, 4):
    t.FLAGS.resolution = 4 * 2 ** (len(channels) - 1)
    try:
        t.trained(Discriminator(channels), jax.random.key(1))
    except ValueError as error:
        complaints.append(str(error))
json.dump([found, complaints], open("found.json", "w"))
"""
    result = run_code(SCRIPT + code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (small, large), complaints = json.loads((tmp_path / "found.json").read_text())
    assert np.corrcoef(small, large)[0, 1] > 0.9
    told = "--discriminator=small: its sizes are others than --resolution and --channels give"
    assert complaints == [told] * 3


def test_batches_and_bad_settings(tmp_path):
    code = """
at("--resolution=8", "--batch_size=16")
latents = np.arange(64.0)[:, None]
pictures = np.arange(64, dtype=np.uint8)[:, None, None, None] * np.ones((16, 16, 3), np.uint8)
epochs = [[pool.batch((latents, pictures), i) for i in range(k, k + 4)] for k in (0, 4)]
orders = [np.concatenate([z for z, _ in batches])[:, 0] for batches in epochs]
for z, x in epochs[0]:
    assert x.shape == (16, 8, 8, 3) and (x * 255 == z[..., None, None]).all()
complaints = []
bad = "batch_size=6", "batch_size=48", "finish", "channels=6,4"
paths = "start_from=~nosuch/x", "start_from=nothing", "discriminator=~nosuch/x"
for flag in (*bad, *paths, "discriminator=faces128"):
    at("--output_dir=run", f"--{flag}")
    try:
        t.main()
    except ValueError as error:
        complaints.append(str(error))
json.dump([[list(o) for o in orders], complaints], open("found.json", "w"))
"""
    result = run_code(SCRIPT + code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    orders, complaints = json.loads((tmp_path / "found.json").read_text())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(64)) and orders[0] != orders[1]
    for complaint, start in zip(
        complaints,
        (
            "--batch_size=6 must be a multiple of 4",
            "--pool_images=64 must be a multiple of --batch_size=48",
            "--finish takes --stop_minutes",
            "2 channel counts (6, 4) don't fit resolution 64",
            "--start_from=~nosuch/x: no home is known for ~nosuch",
            "--start_from=nothing: it is no file",
            "--discriminator=~nosuch/x: no home is known for ~nosuch",
            "--discriminator=faces128: its sizes are others than",
        ),
        strict=True,
    ):
        assert complaint.startswith(start) and "\n" not in complaint
