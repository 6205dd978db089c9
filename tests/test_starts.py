"""Starts of searches: great circles between results, neighbours of them, latents from files."""

import json
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_helpers import contents, fails, read_rows, write_picture
from experiment_helpers import linear

import pulse_jax
from pulse_jax import images, starts
from pulse_jax.files import npz
from pulse_jax.generators.digests import network_digest

GENERATOR = "experiment_helpers:linear"


@pytest.fixture
def run(run):
    return partial(run, "--steps=12", generator=GENERATOR)


def latents(seed, radius=None):
    """Three spheres of vectors and one of a map."""
    keys = jax.random.split(jax.random.key(seed))
    found = {
        "style": jax.random.normal(keys[0], (3, 16)),
        "noise": jax.random.normal(keys[1], (1, 4, 4)),
    }
    return found if radius is None else jax.tree.map(lambda x: radius * unit(x), found)


def flat(leaf):
    return np.asarray(leaf, np.float64).reshape(leaf.shape[0], -1)


def unit(leaf):
    scale = np.linalg.norm(flat(leaf), axis=-1).reshape(-1, *[1] * (leaf.ndim - 1))
    return leaf / scale


def angles(a, b):
    """Between the points of two leaves, one for each sphere."""
    a, b = flat(unit(a)), flat(unit(b))
    return 2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1))


def test_a_walk_stays_on_the_spheres_and_is_even():
    a, b = latents(0, radius=4.0), latents(1, radius=4.0)
    walk = pulse_jax.interpolate(a, b, 9)
    for name in a:
        frames = walk[name]
        assert frames.shape == (9, *a[name].shape)
        assert np.array_equal(frames[0], a[name]) and np.array_equal(frames[-1], b[name])
        for frame in frames:
            np.testing.assert_allclose(np.linalg.norm(flat(frame), axis=-1), 4, rtol=1e-6)
        steps = [angles(x, y) for x, y in pairwise(frames)]
        np.testing.assert_allclose(steps, np.tile(angles(a[name], b[name]) / 8, (8, 1)), rtol=1e-5)


def test_norms_change_evenly():
    a, b = latents(0), latents(1)
    walk = pulse_jax.interpolate(a, b, 5)
    for name in a:
        norms = [np.linalg.norm(flat(leaf), axis=-1) for leaf in walk[name]]
        expected = np.linspace(norms[0], norms[-1], 5)
        np.testing.assert_allclose(norms, expected, rtol=1e-5)
        assert np.array_equal(walk[name][-1], b[name])


def test_degenerate_walks_are_finite():
    x = jnp.ones((1, 4))
    for a, b in ((x, x), (x, -x), (x, 0 * x), (0 * x, x), (0 * x, 0 * x)):
        walk = np.asarray(pulse_jax.interpolate(a, b, 4))
        assert np.isfinite(walk).all()
        assert np.array_equal(walk[0], a) and np.array_equal(walk[-1], b)


def test_walks_that_make_no_sense():
    with pytest.raises(ValueError, match="frames must be at least 2, for both ends, got 1"):
        pulse_jax.interpolate(latents(0), latents(1), 1)
    with pytest.raises(ValueError, match="same shapes"):
        pulse_jax.interpolate(jnp.ones((1, 4)), jnp.ones((1, 5)), 3)


@pytest.mark.parametrize("angle", [0.1, 1.5, np.pi - 0.1])
def test_neighbours_are_at_the_angle(angle):
    found = latents(0)
    moved = pulse_jax.vary(jax.random.key(1), found, angle)
    other = pulse_jax.vary(jax.random.key(2), found, angle)
    for name in found:
        np.testing.assert_allclose(angles(found[name], moved[name]), angle, rtol=1e-5)
        np.testing.assert_allclose(
            np.linalg.norm(flat(moved[name]), axis=-1),
            np.linalg.norm(flat(found[name]), axis=-1),
            rtol=1e-6,
        )
        assert (angles(moved[name], other[name]) > 0.05).all()  # directions are random


def test_directions_are_even():
    """The mean of many neighbours is the point, shortened by the cosine."""
    x = jnp.array([[1.0, 2.0, 2.0]])
    keys = jax.random.split(jax.random.key(0), 4000)
    moved = jax.vmap(lambda key: pulse_jax.vary(key, x, 1.0))(keys)
    np.testing.assert_allclose(moved.mean(0), np.cos(1.0) * x, atol=0.1)


def test_latents_come_back_from_a_file(tmp_path):
    generator, _ = linear()
    found, frozen = jax.vmap(generator.sample)(jax.random.split(jax.random.key(0), 3))
    path = tmp_path / "latents.npz"
    np.savez(path, **starts.by_name(found, frozen))
    again, still = pulse_jax.load_latents(path, generator)
    assert np.array_equal(again["style"], found["style"]) and still == {}
    other = generator._replace(sample=lambda key: ({"style": jnp.zeros((2, 9))}, {}))
    with pytest.raises(
        ValueError, match=r"style is \(2, 8\) in it, and \(2, 9\) in this generator"
    ):
        pulse_jax.load_latents(path, other)
    np.savez(path, style=np.asarray(found["style"], np.float16))
    assert pulse_jax.load_latents(path, generator)[0]["style"].dtype == found["style"].dtype
    whole = {"style": np.zeros((3, 2, 8), np.float32), "noise": np.zeros((3, 1, 4), np.float32)}
    two = generator._replace(sample=lambda key: ({n: x[0] for n, x in whole.items()}, {}))
    for damaged, told in (
        ({"noise": whole["noise"][:2]}, "aren't of the same number of restarts"),
        ({"noise": np.zeros((3, 1, 4), int)}, "noise is of int64, and of float32"),
        ({"noise": np.full((3, 1, 4), "a")}, "noise is of <U1, and of float32"),
    ):
        np.savez(path, **whole | damaged)
        with pytest.raises(ValueError, match=rf"latents\.npz: .*{told}"):
            pulse_jax.load_latents(path, two)
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"latents\.npz: can't be read"):
        pulse_jax.load_latents(path, generator)


def test_latents_of_bfloat16_come_back_from_a_file(tmp_path):
    generator, _ = linear()
    found = {"style": jax.random.normal(jax.random.key(0), (3, 2, 8), jnp.bfloat16)}
    generator = generator._replace(sample=lambda key: ({"style": found["style"][0]}, {}))
    (tmp_path / "latents.npz").write_bytes(npz(found))
    again, _ = pulse_jax.load_latents(tmp_path / "latents.npz", generator)
    assert again["style"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(again["style"], found["style"])


def test_latents_of_another_generator_are_refused(tmp_path, capsys):
    generator, params = linear()
    params["latent_fit"] = {"mean": np.zeros(8)}
    arrays = starts.by_name(*jax.vmap(generator.sample)(jax.random.split(jax.random.key(0), 3)))
    path = tmp_path / "latents.npz"
    np.savez(path, **arrays, generator=network_digest(params))
    pulse_jax.load_latents(path, generator, params)
    pulse_jax.load_latents(path, generator, params | {"latent_fit": {"mean": np.full(8, 1e-7)}})
    assert not capsys.readouterr().err
    other = params | {"basis": -params["basis"]}
    with pytest.raises(ValueError, match=r"latents\.npz: is of another generator"):
        pulse_jax.load_latents(path, generator, other)
    pulse_jax.load_latents(path, generator)
    np.savez(path, **arrays)
    pulse_jax.load_latents(path, generator, other)
    assert capsys.readouterr().err == f"{path} doesn't say which generator it is of\n"


# --- The command. ---


@pytest.fixture
def first(run, tmp_path):
    """A run of two pictures, to go on from."""
    for name, seed in (("a.png", 1), ("b.png", 2)):
        write_picture(tmp_path / "in" / name, seed=seed)
    return run(f"--input_dir={tmp_path / 'in'}", output="first")


def test_a_search_goes_on_from_a_result(run, first, tmp_path):
    """From the whole run: each restart of each picture where it ended. Then from one of them."""
    folder = f"--input_dir={tmp_path / 'in'}"
    again = run(folder, f"--init_from={first}", output="again")
    before = {(r["image"], r["restart"]): float(r["l2"]) for r in read_rows(first)}
    after = {(r["image"], r["restart"]): float(r["l2"]) for r in read_rows(again)}
    assert before.keys() == after.keys()
    assert all(after[restart] <= before[restart] * 1.0001 for restart in before)
    with np.load(first / "a" / "latents.npz") as ended, np.load(again / "a" / "latents.npz") as new:
        for k in range(3):
            assert (angles(ended["style"][k], new["style"][k]) < 1).all()
    write_picture(tmp_path / "one" / "a.png", seed=1)
    flags = f"--input_dir={tmp_path / 'one'}", f"--init_from={first / 'a' / 'latents.npz'}"
    picked = run(*flags, "--pick=3", "--restarts=1", output="picked")
    assert contents(picked / "a")["hr_01.png"] == contents(again / "a")["hr_03.png"]


def test_variations_of_a_result(run, first, tmp_path):
    """Without steps to speak of, they are at the angle from it, each in its own direction."""
    write_picture(tmp_path / "one" / "a.png", seed=1)
    flags = f"--input_dir={tmp_path / 'one'}", f"--init_from={first / 'a'}", "--pick=2", "--vary=20"
    output = run(*flags, "--steps=1", output="varied")
    with np.load(first / "a" / "latents.npz") as file:
        picked = file["style"][1]
    with np.load(output / "a" / "latents.npz") as file:
        varied = file["style"]
    for style in varied:
        np.testing.assert_allclose(np.rad2deg(angles(picked, style)), 20, rtol=1e-4)
    assert len({style.tobytes() for style in varied}) == 3
    generator, params = linear()
    image = generator.synthesize(params, {"style": varied[0]}, {})
    png = images.load_image(output / "a" / "hr_01.png")
    assert np.abs(png - image.clip(0, 1)).max() <= 0.5 / 255 + 1e-5


def test_results_of_another_start_are_left_alone(run, first, tmp_path, capsys):
    flags = f"--input_dir={tmp_path / 'in'}", f"--init_from={first}"
    output = run(*flags, output="out")
    before = contents(output / "a")
    with np.load(first / "a" / "latents.npz") as file:
        arrays = dict(file)
    np.savez(first / "a" / "latents.npz", **arrays | {"style": -arrays["style"]})
    line = fails(run, capsys, *flags)
    assert f"{output / 'a'} holds results of another picture or start" in line
    assert contents(output / "a") == before


def test_results_of_another_generator_start_nothing(run, first, tmp_path, capsys):
    """Those of older versions, which don't tell of which they are, do, with one line for all."""
    flags = f"--input_dir={tmp_path / 'in'}", f"--init_from={first}"
    for name in ("a", "b"):
        with np.load(first / name / "latents.npz") as file:
            arrays = dict(file)
        wanted = arrays.pop("generator")
        np.savez(first / name / "latents.npz", **arrays, generator="0123456789abcdef")
    with pytest.raises(SystemExit):
        run(*flags, output="out")
    told = capsys.readouterr().err
    assert told.count("latents.npz: is of another generator") == 2
    assert told.count(f"SHA-256 is 01234567…, not {str(wanted)[:8]}…") == 2
    assert not (tmp_path / "out").exists()
    for name in ("a", "b"):
        np.savez(first / name / "latents.npz", **arrays)
    run(*flags, output="out")
    assert capsys.readouterr().out.count("doesn't say which generator it is of") == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--pick=2"], "--pick=2 is for --init_from"),
        (["--vary=20"], "--vary=20.0 is for --init_from"),
        (["--vary=nan"], "--vary=nan: not finite"),
        (["--vary=200"], "--vary=200"),
        (["--init_from=nowhere"], "--init_from=nowhere: no such file or folder"),
        (["--init_from={first}", "--pick=2"], "--pick=2: all --restarts=3 would be the same"),
        (
            ["--init_from={first}/a", "--pick=4", "--vary=9"],
            "--pick=4: {first}/a/latents.npz holds 3",
        ),
        (["--init_from={first}/a", "--restarts=4"], "--restarts=4: {first}/a/latents.npz holds 3"),
        (["--init_from={first}/config.json"], "{first}/config.json: can't be read"),
        (["--init_from={first}"], "{first} has searched --space=z, not w"),
        (["--init_from={first}/a"], "{first}/a has searched --space=z, not w"),
        (["--init_from={first}"], "{first} has searched --style_spread=0.3, not None"),
        (["--init_from={first}"], "{first}/config.json: can't be read: no JSON object"),
    ],
)
def test_bad_starts_are_told(run, tmp_path, capsys, flags, told):
    first = tmp_path / "first"
    (first / "a").mkdir(parents=True)
    settings = {"--space": "z" if "z, not w" in told else "w"}
    if "style_spread" in told:
        settings["--style_spread"] = 0.3
    config = [] if told.endswith("no JSON object") else settings
    (first / "config.json").write_text(json.dumps(config))
    np.savez(first / "a" / "latents.npz", style=np.ones((3, 2, 8), np.float32))
    write_picture(tmp_path / "in" / "a.png", seed=1)
    flags = [flag.format(first=first) for flag in flags]
    assert told.format(first=first) in fails(run, capsys, f"--input_dir={tmp_path / 'in'}", *flags)
