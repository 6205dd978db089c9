"""The command's posterior samples: what it writes, and that they are the posterior's."""

import base64
import csv
import dataclasses
import re
import sys
import tracemalloc
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_helpers import fails, read_rows, write_picture
from experiment_helpers import linear

import pulse_jax
from pulse_jax import chains, diagnostics, images, likelihoods, operators, posterior
from pulse_jax.files import load_arrays, npz
from pulse_jax.generators import checkpoint
from pulse_jax.generators.reader import Reader
from pulse_jax.upsampling import draws, estimates, kept_draws, maps
from pulse_jax.upsampling.parts import build_posterior, completed, make_generator
from pulse_jax.upsampling.pictures import MAPS, read_pictures
from pulse_jax.upsampling.restarts import make_draw
from pulse_jax.upsampling.summary import summary

pytest.importorskip("blackjax")

SIGMA = 0.1
SETTINGS = pulse_jax.Settings(
    generator="experiment_helpers:linear",
    noise=SIGMA,
    restarts=6,
    draws=100,
    steps=20,
    seeds=(0,),
)
GENERATOR = SETTINGS.generator
FLAGS = ["--recipe=posterior", "--batch_size=auto"]


@pytest.fixture
def run(run):
    return partial(run, *FLAGS, generator=GENERATOR)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run, from which tests only read."""
    folder = tmp_path_factory.mktemp("posterior")
    write_picture(folder / "in" / "a.png", seed=1)
    told = []
    shown = []

    def progress(now):
        told.append(now)
        shown.append(now.underway())

    results = pulse_jax.upsample(folder / "in", folder / "out", SETTINGS, progress)
    own = {"results": results, "told": told, "shown": shown}
    return SimpleNamespace(folder=folder, output=folder / "out", **own)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files(output):
    paths = [path for path in output.rglob("*") if path.is_file() and path.name != "timings.csv"]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}


def alike(one, other):
    """Both have the same files, with the same bytes."""
    one, other = files(one), files(other)
    assert [name for name in {*one, *other} if one.get(name) != other.get(name)] == []


def closed_form(target):
    """The mean and the standard deviation of each pixel: all is linear and Gaussian."""
    _, params = linear()
    basis = np.asarray(params["basis"], np.float64).reshape(16, -1)
    small = jax.vmap(operators.bicubic(8))(jnp.asarray(params["basis"]).reshape(16, 32, 32, 3))
    small = np.asarray(small, np.float64).reshape(16, -1)
    precision = np.eye(16) + small @ small.T / SIGMA**2
    z = np.linalg.solve(precision, small @ (target.ravel() - 0.5)) / SIGMA**2
    covariance = np.linalg.inv(precision)
    std = np.sqrt(np.einsum("ip,ij,jp->p", basis, covariance, basis))
    return (0.5 + z @ basis).reshape(32, 32, 3), std.reshape(32, 32, 3)


def test_maps_are_those_of_the_closed_form(whole):
    target = images.load_image(whole.folder / "in" / "a.png")
    mean, std = closed_form(target)
    found = whole.results.pictures[0].maps()
    ess = float(read_rows(whole.output)[0]["ess"])
    assert ess > 60
    errors = (found["mean"] - mean) / std * np.sqrt(ess)
    assert np.abs(errors).max() < 5 and np.sqrt(np.mean(errors**2)) < 1.5
    np.testing.assert_allclose(found["std"].mean(), std.mean(), rtol=0.1)
    np.testing.assert_allclose((found["q50"] - mean).mean(), 0, atol=0.05)
    width = (found["q95"] - found["q05"]).mean() / std.mean()
    assert width == pytest.approx(2 * 1.645, rel=0.12)
    assert all(values.dtype == np.float32 for values in found.values())


def test_what_a_run_writes(whole):
    folder, count = whole.output / "a", 30  # of six chains, five draws each
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *(f"{kind}_{number:02d}.png" for kind in ("hr", "lr") for number in range(1, count + 1)),
        *(f"{name}.{kind}" for name in MAPS for kind in ("npy", "png")),
        *("lr_mean.png", "input.png", "bicubic.png", "grid.png", "latents.npz"),
        *("diagnostics.csv", "results.csv"),
    }  # fmt: skip
    rows = table(folder / "diagnostics.csv")
    assert [row["statistic"] for row in rows[:2]] == ["log density", "projection 1"]
    assert len(rows) == 21
    (picture,) = whole.results.pictures
    worst = max(float(row["rhat"]) for row in rows)
    assert picture.rows[1]["rhat"] == worst
    assert {row["status"] for row in picture.rows.values()} == {
        "met" if worst <= 1.05 else "not met"
    }
    assert [(row["chain"], row["draw"]) for row in picture.rows.values()][::count - 1] == [
        (1, 20), (6, 100)
    ]  # fmt: skip
    assert not whole.results.failures
    assert whole.results.unmet == ([] if worst <= 1.05 else [picture])


def test_latents_make_the_draws(whole):
    generator, params = linear()
    latents = whole.results.pictures[0].latents()["style"]
    for number, image in list(whole.results.pictures[0].images().items())[:3]:
        made = generator.synthesize(params, {"style": latents[number - 1]}, {})
        np.testing.assert_allclose(np.clip(made, 0, 1), image, atol=0.6 / 255)


def test_chains_are_shown_where_they_are(whole):
    """While they are warmed up, and when they draw: the last draw is where a chain ends."""
    generator, params = linear()
    assert [len(chains) for chains in whole.shown] == [0, *[6] * 17, 0]
    for chain, one in enumerate(whole.shown[1], 1):
        made = generator.synthesize(params, one.latents, {})
        np.testing.assert_allclose(np.clip(made, 0, 1), one.image, atol=0.6 / 255)
        assert one.picture is whole.results.pictures[0] and one.number == chain
    last, images = whole.shown[-2], whole.results.pictures[0].images()
    for one in last:
        assert np.array_equal(one.image, images[24 + one.number])
        row = one.picture.rows[24 + one.number]
        assert one.l2 == pytest.approx(row["l2_saved"], rel=1e-4)


def test_the_bar_tells_acceptance_and_rhat(whole):
    told = [progress.told for progress in whole.told if progress.told]
    assert told[:2] == ["0 of 1 picture", "0 of 1 picture, 10 of 70 transitions to warm up"]
    assert told[-2].startswith("0 of 1 picture, 100 of 100 draws, acceptance 0.")
    assert "R-hat" in told[-2] and "R-hat" not in told[8] and told[-1] == "1 of 1 picture"
    assert whole.told[-1].left == 0 and whole.told[-1].made == 170


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("chunks", [3, 6, 9], ids=["starts", "warm-up", "draws"])
def test_a_run_that_is_cut_off_ends_with_the_same_bytes(whole, tmp_path, monkeypatch, chunks):
    monkeypatch.setattr(draws, "PATIENCE", 0.0)
    monkeypatch.setattr(draws, "SHARE", np.inf)
    told = []

    def cut(progress):
        told.append(progress)
        if len(told) == chunks + 2:  # the first is before all, and the last chunk isn't saved
            raise PowerCut

    # The page names the folder of the pictures, so that is the same.
    with pytest.raises(PowerCut):
        pulse_jax.upsample(whole.folder / "in", tmp_path / "cut", SETTINGS, cut)
    assert (tmp_path / "cut" / "a" / "parts" / "state.npz").is_file()
    told.clear()
    pulse_jax.upsample(whole.folder / "in", tmp_path / "cut", SETTINGS, told.append)
    alike(tmp_path / "cut", whole.output)
    assert told[-1].made == 170 - 10 * chunks


def test_a_run_that_is_stopped_goes_on(whole, tmp_path):
    calls = []

    def stop():
        calls.append(None)
        return len(calls) > 9

    first = pulse_jax.upsample(whole.folder / "in", tmp_path / "out", SETTINGS, stop=stop)
    assert first.stopped == "stopped when 0 of 1 picture were done"
    assert list(summary(first, tmp_path / "out"))[-1].startswith("0 pictures done; open ")
    parts = tmp_path / "out" / "a" / "parts"
    for file, names in {"state": ["000", "made"], "draws_000000": ["l2", "images"]}.items():
        path = parts / f"{file}.npz"
        content = path.read_bytes()
        arrays = load_arrays(path)
        for name in names:
            others = {other: array for other, array in arrays.items() if other != name}
            for of_another_version in others, others | {name: arrays[name][None]}:
                path.write_bytes(npz(of_another_version))
                earlier = pulse_jax.upsample(whole.folder / "in", tmp_path / "out", SETTINGS)
                told = f"{path}: of another run or version; remove {parts} to begin anew"
                assert list(earlier.failures) == [told]
        path.write_bytes(content)
    pulse_jax.upsample(whole.folder / "in", tmp_path / "out", SETTINGS)
    alike(tmp_path / "out", whole.output)


def test_chains_draw_on_until_they_have_met(tmp_path, monkeypatch):
    """At once, or in several runs, one of which is stopped: with the same bytes."""
    picture = tmp_path / "a.png"
    write_picture(picture, seed=1)
    settings = replace(SETTINGS, draws=20, max_draws=640)
    monkeypatch.setattr(kept_draws, "LARGEST", 40 * 6 * 32 * 32 * 3)  # images of 40 draws
    told = []
    whole = pulse_jax.upsample(picture, tmp_path / "whole", settings, told.append)
    rows = whole.pictures[0].rows
    assert {row["status"] for row in rows.values()} == {"met"} and len(rows) == 30
    number = rows[1]["draws"]
    assert number in (80, 160, 320, 640)
    assert {row["draw"] for row in rows.values()} == {number * i // 5 for i in range(1, 6)}
    assert not (tmp_path / "whole" / "a" / "parts").exists()
    assert told[-1].made == 70 + number and told[-1].left == 0

    calls, finished = [], []

    def in_its_midst():
        calls.append(None)
        return len(calls) > 2

    finish = estimates.Estimates.finish

    def counted(found):
        finished.append(found.kept.made)
        finish(found)

    monkeypatch.setattr(estimates.Estimates, "finish", counted)
    for most, stop, made in ((None, bool, 20), (40, bool, 40), (640, in_its_midst, 40)):
        part = pulse_jax.upsample(
            picture, tmp_path / "parts", replace(settings, max_draws=most), stop=stop
        )
        assert part.pictures[0].rows[1]["draws"] == made and part.unmet
        assert bool(part.stopped) == (stop is in_its_midst)
    assert part.stopped == "stopped when 0 of 1 picture were done"
    pulse_jax.upsample(picture, tmp_path / "parts", settings)
    alike(tmp_path / "parts", tmp_path / "whole")
    assert finished == [20 * 2**i for i in range(len(finished))]  # each once
    with pytest.raises(ValueError, match="--max_draws was 640, not 40; give another folder"):
        pulse_jax.upsample(picture, tmp_path / "parts", replace(settings, max_draws=40))
    (alone,) = pulse_jax.upsample(picture, None, settings).pictures
    for name, values in whole.pictures[0].maps().items():
        np.testing.assert_array_equal(alone.maps()[name], values)


def test_the_same_in_memory(whole):
    """Also of a picture that is cut out, whose draws are measured where they are put back."""
    photograph = np.pad(images.load_image(whole.folder / "in" / "a.png"), ((1, 2), (3, 0), (0, 0)))
    settings = dataclasses.replace(SETTINGS, crop=(3, 1, 4))
    (picture,) = pulse_jax.upsample(photograph, None, settings).pictures
    for name, values in whole.results.pictures[0].maps().items():
        np.testing.assert_array_equal(picture.maps()[name], values)
    saved = whole.results.pictures[0].images()
    assert all((picture.images()[number] == image).all() for number, image in saved.items())
    errors = {number: row["l2_put_back"] for number, row in picture.rows.items()}
    assert errors == {number: picture.l2_put_back(image) for number, image in saved.items()}


@pytest.mark.parametrize(("operator", "channels"), [("bicubic", 3), ("bicubic,grey", 1)])
def test_a_grey_value_counts_once(operator, channels):
    settings = replace(SETTINGS, operator=operator)
    (generator, params), degrade = linear(), settings.degradation()(8)
    density = build_posterior(generator, params, degrade, settings)
    position = density.sample(jax.random.key(0))
    lr = degrade(density.image(params, position))
    target = degrade(density.image(params, density.sample(jax.random.key(1))))
    expected = likelihoods.gaussian(SIGMA).logpdf(lr[..., :channels], target[..., :channels])
    np.testing.assert_allclose(density.loglikelihood(params, target, position), expected, rtol=1e-5)


def test_an_unknown_sigma_is_that_of_what_a_mask_leaves():
    settings = replace(SETTINGS, operator="mask:0.5", noise="unknown_sigma")
    (generator, params), degrade = linear(), settings.degradation()(1)
    density = build_posterior(generator, params, degrade, settings)
    position = density.sample(jax.random.key(0))
    lr = degrade(density.image(params, position))
    target = degrade(density.image(params, density.sample(jax.random.key(1))))
    seen = np.asarray((lr != 0).any(-1))
    expected = likelihoods.unknown_sigma().logpdf(lr[seen][None], target[seen][None])
    np.testing.assert_allclose(density.loglikelihood(params, target, position), expected, rtol=1e-5)


def test_a_density_that_is_0_everywhere_is_told_with_its_picture(whole, monkeypatch):
    starts = chains.starts
    nowhere = partial(jax.tree.map, lambda leaf: np.nan * leaf)
    monkeypatch.setattr(chains, "starts", lambda *inputs: nowhere(starts(*inputs)))
    results = pulse_jax.upsample(whole.folder / "in", None, SETTINGS)
    told = "a.png: noise=0.1: the density is finite at none of the positions"
    assert list(results.failures) == [told]


def test_more_seeds_change_no_byte_and_compile_nothing(whole, tmp_path):
    compiled = chains.draw, draws.measure, draws.image_of
    before = [function._cache_size() for function in compiled]
    settings = dataclasses.replace(SETTINGS, seeds=(0, 1))
    results = pulse_jax.upsample(whole.folder / "in", tmp_path, settings)
    assert [function._cache_size() for function in compiled] == before
    assert not results.failures and len(results.pictures) == 2
    expected = {name: x for name, x in files(whole.output).items() if name.startswith("a/")}
    found = files(tmp_path / "seed_0")
    assert {name: x for name, x in found.items() if name.startswith("a/")} == expected
    assert all(
        files(tmp_path / "seed_1")[name] != x for name, x in expected.items() if "mean" in name
    )
    assert not (tmp_path / "seeds.csv").exists()


def test_chains_begin_at_earlier_results(whole):
    settings = dataclasses.replace(SETTINGS, init_from=str(whole.output), pick=7, vary=1.0)
    found, failures = read_pictures(
        [whole.folder / "in" / "a.png"],
        settings,
        (generator := linear()[0]),
        whole.results.pictures[0].networks,
        settings.degradation(),
    )
    assert not failures
    start = make_draw(generator, settings)
    density = build_posterior(generator, linear()[1], settings.degradation()(8), settings)
    begun = draws.Chains(found["a"], settings, density, linear()[1], start)
    earlier = whole.results.pictures[0].latents()["style"][6]
    styles = np.asarray(begun.positions[0]["style"])[:, 0]
    assert styles.shape == (6, 2, 8) and len(np.unique(styles[:, 0, 0])) == 6
    cosines = np.sum(styles * earlier, -1) / np.linalg.norm(earlier, axis=-1) ** 2
    np.testing.assert_allclose(cosines, np.cos(np.radians(1)), atol=1e-5)


def test_the_page_shows_maps_and_draws(whole):
    page = (whole.output / "index.html").read_text(encoding="utf-8")
    names = re.findall(r'<button data-name="([^"]+)" data-file="([^"]+)"', page)
    assert names[:5] == [
        *((name, f"{name}.png") for name in ("mean", "q05", "q50", "q95")),
        ("draw 1", "hr_01.png"),
    ]
    assert len(names) == 4 + 30 + 1  # and the bicubic enlargement
    figures = whole.results.pictures[0].rows[1]
    told = f"R-hat {figures['rhat']:.2f}, ESS {figures['ess']:.0f}"
    (summary_line, _) = summary(whole.results, whole.output)
    assert told in page and summary_line.endswith(told if figures["status"] == "met" else "more")
    deviation = base64.b64encode((whole.output / "a" / "std.png").read_bytes()).decode()
    assert f'<img alt="deviation" loading="lazy" src="data:image/png;base64,{deviation}">' in page
    for term in re.findall(r'popovertarget="([^"]+)"', page):
        assert page.count(f'<div popover id="{term}">') == 1, term


def test_a_prime_number_of_draws_takes_chunks(tmp_path, monkeypatch):
    """And if none of the draws has a finite image, the picture fails in one line."""
    write_picture(tmp_path / "a.png", seed=1)
    told = []
    settings = replace(SETTINGS, steps=11, draws=23)
    pulse_jax.upsample(tmp_path / "a.png", None, settings, told.append)
    made = [progress.made for progress in told if progress.told]
    assert np.diff([*dict.fromkeys(made)]).tolist() == [5, 5, 5, 5, 5, 1, 5, 5, 1, 10, 10, 3]
    measure = draws.measure
    monkeypatch.setattr(
        draws,
        "measure",
        lambda *inputs: (found := measure(*inputs)) | {"images": np.nan * found["images"]},
    )
    (picture,) = pulse_jax.upsample(tmp_path / "a.png", None, settings).pictures
    assert picture.error == "none of the draws' images is finite"


def test_chains_that_have_not_met_are_told(run, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png")
    # What compiled for others.
    flags = f"--noise={SIGMA}", "--chains=6", "--draws=4", "--steps=20", "--max_draws=7"
    with pytest.raises(SystemExit) as exit:
        run(f"--input_dir={tmp_path / 'in'}", *flags)
    assert exit.value.code == 1
    output = tmp_path / "out"
    told = capsys.readouterr().out
    assert "a.png: the chains have not met, so its maps must not be used: R-hat" in told
    assert "; to draw on, give --max_draws=8 or more\n" in told
    assert "0 pictures done" in told
    page = (output / "index.html").read_text(encoding="utf-8")
    assert "The chains have not met. The maps must not be used." in page
    assert "the chains of 0 have met" in page
    assert {row["status"] for row in read_rows(output)} == {"not met"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--noise=-1"], "--noise=-1: sigma must be finite and above 0, got -1"),
        (["--noise=gauss"], "--noise=gauss: 'gauss' is no number and none of gaussian"),
        (["--chains=1"], "--restarts=1: must be at least 2, since one chain"),
        (["--eps=0.1"], "--eps=0.1 is for a search, and --noise=0.03 draws samples"),
        (["--opt_name=adam"], "--opt_name=adam is for a search"),
        (["--draws=3"], "--draws=3: must be at least 4"),
        (["--init_from=.", "--pick=2"], "would begin at the same point; take --vary=DEGREES"),
        (["--recipe=fast", "--draws=7"], "--draws=7 is for --noise=SIGMA"),
        (["--recipe=fast", "--max_draws=7"], "--max_draws=7 is for --noise=SIGMA"),
    ],
)
def test_flags_that_cannot_be(run, capsys, flags, message):
    assert message in fails(run, capsys, *flags)


def test_without_blackjax(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "blackjax", None)
    line = fails(run, capsys)
    assert (
        '--noise=0.03: posterior samples take blackjax: pip install "pulse_jax[posterior]"' in line
    )


def test_thinning():
    for count, number in ((8, 200), (6, 100), (3, 4), (64, 10)):
        settings = pulse_jax.Settings(noise=0.1, restarts=count, draws=number)
        plan = kept_draws.make_plan(number, settings.thinning, 1024**2 * count)
        shown = plan.kept("position_000", 0, number)
        assert settings.results == count * len(shown)
        assert settings.results <= max(32, count)
        assert settings.thinning % plan.stride == 0
    strides = [kept_draws.make_plan(1000, 250, 8 * 3 * side**2).stride for side in (64, 1024)]
    assert strides == [1, 125]


def test_a_deviation_has_a_scale_that_ends_in_a_round_number():
    assert [maps.round_up(x) for x in (0.0, 0.013, 0.05, 0.051, 0.9)] == pytest.approx(
        [1, 0.02, 0.05, 0.1, 1]
    )
    np.testing.assert_array_equal(maps.coloured(np.array([[0.0, 1.0]]))[0], maps.COLOURS[[0, -1]])


@pytest.mark.parametrize(("prior", "told"), [("gaussian", 1), ("spheres", 0)])
def test_a_preconditioner_is_missed_only_where_there_would_be_one(prior, told, monkeypatch, caplog):
    monkeypatch.setattr(draws, "LARGEST", 2)
    generator, _ = linear()
    density = posterior.build(generator, operators.bicubic(8), likelihoods.gaussian(1), prior=prior)
    large = {"density": density, "positions": (jnp.zeros((2, 1, 1, 16)), ())}
    picture = SimpleNamespace(name="a", target=np.zeros((4, 4, 3)))
    with caplog.at_level("INFO", "pulse_jax"):
        assert not draws.Chains.preconditions(SimpleNamespace(picture=picture, **large))
    assert caplog.text.count("too large for a preconditioner") == told


def test_maps_take_little_memory_beside_the_draws():
    images = np.random.default_rng(0).random((256, 64, 64, 3), np.float32)
    tracemalloc.start()
    found = maps.summarise(images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < images.nbytes / 4
    np.testing.assert_allclose(found["std"], np.float64(images).std(0), rtol=1e-6)
    np.testing.assert_array_equal(found["q50"], np.median(images, 0))


def test_moments_of_large_log_densities_keep_their_digits():
    density = 1e6 + np.random.default_rng(0).standard_normal((8, 400, 1))
    figures = diagnostics.Diagnostics(*np.ones((3, 1)))
    (row,) = estimates.tabulate(["log density"], np.float32(density), figures)
    assert row["mean"] == pytest.approx(density.mean(), abs=1e-2)
    assert row["std"] == pytest.approx(density.std(), rel=1e-2)


def test_attributes_are_counted_and_judged(tmp_path, monkeypatch):
    """Where a reader comes with the generator, of all draws; the page tells what is left open."""
    reader = Reader((("tone", 1), ("dark_side", ("left", "right", "both"))))
    weights = jax.jit(reader.init)(jax.random.key(3), jnp.zeros((1, 32, 32, 3)))["params"]
    monkeypatch.setattr(checkpoint, "load_reader", lambda name: (reader, weights))
    write_picture(tmp_path / "a.png", seed=1)
    settings = replace(SETTINGS, draws=5, steps=4)
    results = pulse_jax.upsample(tmp_path / "a.png", tmp_path / "out", settings)
    (picture,) = results.pictures
    images = np.stack(list(picture.images().values()))
    assert len(images) == 30  # all draws
    read = np.asarray(jax.jit(reader.apply)({"params": weights}, images))
    expected = np.bincount(read[:, 1:].argmax(1), minlength=3) / 30
    assert picture.shares() == {
        "dark_side": pytest.approx(dict(zip(("left", "right", "both"), expected, strict=True)))
    }
    names = [row["statistic"] for row in table(tmp_path / "out" / "a" / "diagnostics.csv")]
    assert names[21:] == ["tone", "dark_side: left", "dark_side: right", "dark_side: both"]
    page = (tmp_path / "out" / "index.html").read_text()
    best = ("left", "right", "both")[expected.argmax()]
    agreed = expected.max() >= 0.95
    told = f"determine: dark side ({best} in {expected.max():.0%} of draws)"
    assert ("All draws agree." if agreed else told) in page
    (alone,) = pulse_jax.upsample(tmp_path / "a.png", None, settings).pictures
    assert alone.shares() == picture.shares()
    # Draws that another reader has judged are not gone on with.
    monkeypatch.setattr(checkpoint, "load_reader", lambda name: None)
    with pytest.raises(ValueError, match=r"other settings: SHA-256 of the reader was .*, not None"):
        pulse_jax.upsample(tmp_path / "a.png", tmp_path / "out", settings)


def test_the_prior_of_the_recipe_has_layers_share_a_part_of_their_styles(generator):
    """Of a generator without layers, the setting isn't kept, so that no start is refused for it."""
    for name, spread in ((generator, 0.5), (GENERATOR, None)):
        settings = dataclasses.replace(pulse_jax.RECIPES["posterior"], generator=str(name))
        made, _ = make_generator(settings)
        assert completed(settings, made).style_spread == spread


@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_noise_of_which_nothing_is_seen_is_not_drawn(generator, strength):
    """Else the Jacobians of a large generator are too large for a preconditioner, for nothing."""
    settings = dataclasses.replace(pulse_jax.RECIPES["posterior"], generator=str(generator))
    made, params = make_generator(settings)
    for name, layer in params["synthesis"].items():
        if "noise_strength" in layer:
            params["synthesis"][name] = layer | {"noise_strength": np.float32(strength)}
    density = build_posterior(made, params, operators.bicubic(2), settings)
    _, noise = density.sample(jax.random.key(0))
    assert bool(noise) == (strength > 0)
