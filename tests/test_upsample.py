"""`upsample`, the command as a function: settings in, results out; many seeds; nothing waits."""

import ast
import csv
import dataclasses
import json
import subprocess
import sys
import threading
import typing
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from command_helpers import contents, write_picture
from experiment_helpers import linear
from PIL import Image

import pulse_jax
from pulse_jax import images, losses, operators
from pulse_jax.search import SearchState
from pulse_jax.upsampling import by_seed, restarts, results
from pulse_jax.upsampling.pictures import Picture
from pulse_jax.upsampling.results import Restart
from pulse_jax.upsampling.settings import RECIPES, Settings
from pulse_jax.upsampling.summary import summary
from pulse_jax.upsampling.writer import Writer

ROOT = Path(__file__).parents[1]
SETTINGS = dataclasses.replace(
    RECIPES["original"],
    generator="experiment_helpers:linear",
    steps=12,
    restarts=3,
    batch_size=4,
    seeds=(0,),
)


@pytest.fixture
def folder(tmp_path):
    for name, seed in (("a.png", 1), ("b.png", 2)):
        write_picture(tmp_path / "in" / name, seed=seed)
    return tmp_path / "in"


def test_results_are_those_of_the_command(run, folder, tmp_path):
    flags = [f"--input_dir={folder}", "--steps=12"]
    output = run(*flags, generator="experiment_helpers:linear")
    written = pulse_jax.upsample(folder, tmp_path / "own", SETTINGS)
    assert not written.failures and not written.stopped
    for name in ("results.csv", "index.html", "config.json"):
        assert (tmp_path / "own" / name).read_bytes() == (output / name).read_bytes()
    for name in ("a", "b"):
        assert contents(tmp_path / "own" / name) == contents(output / name)

    # In memory, from arrays.
    arrays = [images.load_image(path) for path in sorted(folder.iterdir())]
    kept = pulse_jax.upsample(arrays, None, SETTINGS)
    for picture, one in zip(written.pictures, kept.pictures, strict=True):
        assert [row["l2_saved"] for row in one.rows.values()] == [
            row["l2_saved"] for row in picture.rows.values()
        ]
        for number, image in picture.images().items():
            assert np.array_equal(images.to_uint8(one.images()[number]), images.to_uint8(image))
        own, saved = one.latents(), picture.latents()
        assert own.keys() <= saved.keys()
        assert all(np.array_equal(own[name], saved[name]) for name in own)


def test_progress_is_told_and_a_run_can_be_stopped(folder, tmp_path):
    told, shown = [], []

    def progress(now):
        told.append(now)
        shown.append(now.underway())

    stopped = pulse_jax.upsample(
        folder, tmp_path / "out", SETTINGS, progress, stop=lambda: len(told) == 2
    )
    assert [progress.made for progress in told] == [0, 20]
    assert shown[0] == () and len(shown[1]) == 4  # one for each slot
    generator, params = linear()
    for one in shown[1]:  # the best of five steps
        image = generator.synthesize(params, one.latents, {})
        np.testing.assert_allclose(np.clip(image, 0, 1), one.image, atol=0.6 / 255)
        measured = losses.l2(operators.bicubic(8)(image), one.picture.target)
        assert one.l2 == pytest.approx(float(measured), rel=1e-4)
        assert one.picture in stopped.pictures and one.number in (1, 2, 3)
    assert stopped.stopped == "stopped when 0 of 6 restarts were done" and not stopped.rows

    def raises(progress):
        raise LookupError("the caller's own")

    with pytest.raises(LookupError, match="the caller's own"):
        pulse_jax.upsample(folder, tmp_path / "out", SETTINGS, raises)
    whole = pulse_jax.upsample(folder, tmp_path / "out", SETTINGS)
    assert len(whole.rows) == 6
    assert [row["l2"] for row in pulse_jax.upsample(folder, None, SETTINGS).rows] == [
        row["l2"] for row in whole.rows
    ]


def test_what_is_done_when_a_run_in_memory_is_stopped_is_there(folder):
    told = []
    found = pulse_jax.upsample(folder, None, SETTINGS, told.append, stop=lambda: len(told) == 4)
    assert found.stopped == "stopped when 4 of 6 restarts were done" and not found.failures
    assert sum(len(picture.images()) for picture in found.pictures) == len(found.rows) == 4


def test_a_run_that_is_stopped_when_all_is_done_is_whole(folder):
    told = []
    found = pulse_jax.upsample(
        folder, None, SETTINGS, told.append, stop=lambda: bool(told) and told[-1].ended == 6
    )
    assert len(found.rows) == 6 and not found.stopped


def test_pictures_that_end_together_are_written_in_their_order(tmp_path, monkeypatch):
    names = [f"{number}.png" for number in range(8)]
    for number, name in enumerate(names):
        write_picture(tmp_path / "in" / name, seed=number)
    written = []
    monkeypatch.setattr(results, "finish", lambda picture, *_: written.append(picture.name))
    settings = dataclasses.replace(SETTINGS, restarts=1)
    pulse_jax.upsample(tmp_path / "in", tmp_path / "out", settings)
    assert written[:8] == names


def test_a_failure_that_the_writer_notes_meanwhile_is_kept():
    picture = Picture("a.png", np.zeros((1, 1, 3), np.float32), 0.0, "")

    def noted_by_another_thread(picture):
        picture.error = "disk full"

    results.save(picture, noted_by_another_thread)
    assert picture.error == "disk full"


def test_what_cannot_be_upsampled_is_told_and_spares_the_others(folder):
    (folder / "c.png").write_bytes(b"")
    odd = np.zeros((4, 4, 3), np.float32) + 2
    found = pulse_jax.upsample([folder / "a.png", folder / "c.png", odd], None, SETTINGS)
    assert [picture.name for picture in found.pictures] == ["a.png"]
    assert len(found.failures) == 2 and "c.png" in found.failures[0]
    assert found.failures[1] == "picture 03: it has values outside [0, 1]"


def test_what_is_no_picture_is_told_once(unchecked):
    for given, told in (
        (np.zeros((4, 4)), "(4, 4) of float64"),
        (np.zeros((0, 0, 3)), "(0, 0, 3) of float64"),
        (np.zeros((4, 4, 3), np.uint8), "(4, 4, 3) of uint8"),
        (Image.new("RGB", (4, 4)), "(4, 4, 3) of uint8"),
        (5, "() of int64"),
    ):
        found = pulse_jax.upsample(given, None, SETTINGS)
        assert not found.pictures
        line = f"picture 01: a picture is an array (h, w, 3) of floats, not {told}"
        assert found.failures == (line,)
    with pytest.raises(ValueError, match=r"generator=experiment_helpers:linear has no examples"):
        pulse_jax.upsample(None, None, SETTINGS)


def test_each_seed_has_the_bytes_that_it_has_alone(folder, tmp_path):
    seeds = dataclasses.replace(SETTINGS, seeds=(3, 0, 7))
    several = pulse_jax.upsample(folder, tmp_path / "several", seeds)
    assert [(p.seed, p.name) for p in several.pictures] == [
        (seed, name) for seed in (3, 0, 7) for name in ("a.png", "b.png")
    ]
    for seed in (3, 7):
        alone = tmp_path / f"alone_{seed}"
        pulse_jax.upsample(folder, alone, dataclasses.replace(SETTINGS, seeds=(seed,)))
        for name in ("a", "b"):
            assert contents(tmp_path / "several" / f"seed_{seed}" / name) == contents(alone / name)
    with (tmp_path / "several" / "seeds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "3", "7", "mean", "low", "high"]
    losses = [float(row["loss"]) for row in rows]
    own = [row["loss"] for row in several.rows if row["seed"] == 3]
    assert losses[1] == pytest.approx(np.mean(own))
    assert losses[3] == pytest.approx(np.mean(losses[:3])) and losses[4] < losses[3] < losses[5]
    page = (tmp_path / "several" / "index.html").read_text()
    assert "seeds 3,0,7" in page and "a.png, seed 7" in page
    assert "2 pictures × 3 seeds, " in page
    *_, told = summary(several, tmp_path / "several")
    assert told.startswith("2 pictures × 3 seeds: 6 of 6 done; open ")
    assert (tmp_path / "several" / "seeds.svg").read_text().count("<circle") == 3 * 4


def test_the_interval_over_seeds_is_students():
    rows = [
        {"seed": k, "status": "converged", "l2_saved": x, "l2_relative": x, "loss": x, "steps": 1}
        for k, x in enumerate((1.0, 2.0, 4.0))
    ]
    *_, mean, low, high = by_seed.table(rows)
    # t(0.975, 2) = 4.3027, the standard deviation of (1, 2, 4) is 1.5275.
    assert mean["loss"] == pytest.approx(7 / 3)
    assert high["loss"] - mean["loss"] == pytest.approx(4.3027 * 1.5275 / 3**0.5, rel=1e-4)
    assert mean["loss"] - low["loss"] == pytest.approx(high["loss"] - mean["loss"])
    assert mean["converged"] == low["converged"] == 1


def test_the_search_goes_on_while_files_are_written(folder, tmp_path, monkeypatch):
    """The writer waits for the search, which could not go on if it waited for the writer."""
    searched = threading.Event()
    save_restart = results.save_restart

    def patient(*arguments):
        assert searched.wait(60)
        save_restart(*arguments)

    monkeypatch.setattr(results, "save_restart", patient)
    ended = []

    def progress(now):
        ended.append(now.ended)
        if now.ended == now.restarts:
            searched.set()

    found = pulse_jax.upsample(folder, tmp_path / "out", SETTINGS, progress)
    assert ended[-1] == 6 and not found.failures
    assert len(list((tmp_path / "out").glob("*/hr_*.png"))) == 6


def test_what_is_under_way_is_saved_less_often_where_that_takes_long(monkeypatch):
    now, tasks = [0.0], []

    def slow(*_):
        now[0] += 3.0

    class Later(Writer):
        def __call__(self, *task):
            tasks.append(task)

    monkeypatch.setattr(restarts.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(restarts, "save", slow)
    picture = Picture("a.png", np.zeros((1, 1, 3), np.float32), 0.0, "")
    job = Restart(picture, 1, 5, curve=np.zeros((2, 5), np.float32))
    nothing = jnp.zeros(1)
    state = SearchState(nothing, (), nothing, nothing, nothing)
    saving = restarts.Saving(Later())
    assert not saving.is_due()
    now[0] = 1.0
    assert saving.is_due()
    saving.save([(0, job)], state)
    now[0] = 400.0
    assert not saving.is_due()  # what was given last isn't written yet
    ((write, *arguments),) = tasks
    write(*arguments)  # for 3 seconds
    now[0] = 1.0 + 3.0 / 0.02 - 1
    assert not saving.is_due()
    now[0] += 2
    assert saving.is_due()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"crop": "middle"}, "crop=middle is not center, face or X,Y,SIDE"),
        ({"restarts": 0}, "restarts=0: must be at least 1"),
        ({"eps": float("nan")}, "eps=nan: not finite"),
        ({"seeds": ()}, "seeds=: names nothing"),
        ({"seeds": (1, -1)}, f"seeds=1,-1: must be at least 0 and at most {2**32 - 1}"),
        ({"seeds": (1, 2, 1)}, "seeds=1,2,1: has a number twice"),
        ({"restarts": 10**14}, f"restarts={10**14}: must be at least 1 and at most 1000000"),
        ({"steps": 2**31}, f"steps={2**31}: must be at least 1 and at most {2**31 - 1}"),
        ({"draws": 10**14, "noise": 0.1}, f"draws={10**14}: must be at least 4 and at most"),
        ({"restarts": 1, "noise": 0.1}, "restarts=1: must be at least 2, since one chain"),
        ({"init_from": ""}, "init_from=: must not be empty"),
        ({"vary": 1.0}, "vary=1.0 is for init_from=PATH"),
        ({"opt_name": "adamw"}, "opt_name=adamw: 'adamw' is none of sgd, sgdm"),
        ({"opt_name": "lbfgs", "scheme": "geodesic"}, "the scheme geodesic doesn't go with lbfgs"),
        ({"loss_str": "L3"}, "loss_str=L3: 'L3' is none of L2, L1, GEOCROSS"),
        ({"operator": "cube"}, "operator=cube: 'cube' is none of bicubic"),
        (
            {"operator": "blur:1e12"},
            "operator=blur:1e12: sigma must be at most 100000, got 1000000000000.0",
        ),
        ({"learning_rate": 0.0}, "learning_rate=0.0: learning rate must be above 0 and at most"),
        ({"loss_str": "-1*L2"}, "weight of L2 must be a number from 0 to 1e+15, got '-1'"),
        (
            {"loss_str": "L2+1e-50*L1"},
            "loss_str=L2+1e-50*L1: the weight 1e-50 of l1 is 0 in",
        ),
        ({"noise": "student_t:1e-50"}, "noise=student_t:1e-50: sigma 1e-50 is 0 in float32"),
        ({"noise": "unknown_sigma:1e-50:1"}, "noise=unknown_sigma:1e-50:1: least 1e-50 is 0 in"),
        ({"scheme": "soft_shell:1e99", "opt_name": "adam"}, "soft_shell is infinite in float32"),
        ({"loss_str": "L2+1e30*L1"}, "weight of L1 must be a number from 0 to 1e+15, got '1e30'"),
        ({"batch_size": 10**9}, "batch_size=1000000000: must be at least 1 and at most 1000000"),
        ({"solver": "heun:1000000000"}, "there are from 1 to 100000 steps, not 1000000000"),
        ({"restarts": 2.5}, "restarts=2.5 is not a whole number"),
        ({"restarts": "4"}, "restarts='4' is not a whole number"),
        ({"restarts": True}, "restarts=True is not a whole number"),
        ({"steps": None}, "steps=None is not a whole number"),
        ({"eps": "0.1"}, "eps='0.1' is not a number"),
        ({"eps": np.float32("nan")}, "eps=nan: not finite"),
        ({"stop_at_eps": 1}, "stop_at_eps=1 is not true or false"),
        ({"save_video": "no"}, "save_video='no' is not true or false"),
        ({"operator": None}, "operator=None is not text"),
        ({"seeds": 0}, "seeds=0 is not 1 to 1000000 numbers, as in 0,1,2 or 0:3"),
        ({"seeds": (0.5,)}, "seeds=0.5 is not 1 to 1000000 numbers"),
        ({"batch_size": 2.0}, "batch_size=2.0 is not auto or a number of at least 1"),
        ({"crop": (0, 0)}, "crop=0,0 is not center, face or X,Y,SIDE"),
        ({"crop": "middle"}, "crop=middle is not center, face or X,Y,SIDE"),
        ({"value_range": (1, 0)}, "value_range=1,0 is not auto or LOW,HIGH, with LOW below HIGH"),
        ({"learning_rate": 10**400}, "0 is not a number"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_they_are_made(unchecked, given, told):
    with pytest.raises(ValueError) as error:
        Settings(**given)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e30, 1e300, 1e-300, 1e-40])
def test_no_number_is_beyond_what_it_means(unchecked, value):
    fields = {f.name: {f.type, *typing.get_args(f.type)} for f in dataclasses.fields(Settings)}
    names = {name for name, types in fields.items() if float in types}
    assert names == {"eps", "vary", "noise", "learning_rate", "style_spread"}
    for name in names - ({"noise"} if value == 1e30 else set()):  # which any σ above 0 is
        with pytest.raises(ValueError) as error:
            Settings(**{name: value})
        assert str(error.value).startswith(f"{name}={value}: ") and "\n" not in str(error.value)


def test_settings_come_back_from_json_and_flags():
    settings = Settings(
        seeds=(3, 4),
        batch_size=2,
        bad_noise_layers=(3, 17),
        value_range=(30.0, 337.0),
        crop=(5, 0, 32),
        stop_at_eps=False,
        loss_str="100*L2",
    )
    assert Settings.from_json(settings.as_json()) == settings
    assert settings.as_flags() == [
        *("--seeds=3,4", "--batch_size=2", "--crop=5,0,32", "--value_range=30,337"),
        *("--loss_str=100*L2", "--nostop_at_eps", "--bad_noise_layers=3.17"),
    ]
    assert Settings.from_json({"seeds": "0:3", "value_range": "auto", "batch_size": "auto"}) == (
        Settings(seeds=(0, 1, 2), value_range="auto")
    )
    for values in ((0.1234567, 1234567.0), (0, 1 / 3)):
        exact = Settings(value_range=values)
        assert Settings.from_json(exact.as_json()) == exact
    for name, text in (("seeds", "one"), ("value_range", "5,2"), ("bad_noise_layers", "1,2")):
        with pytest.raises(ValueError, match=f"{name}={text} is not "):
            Settings.from_json({name: text})


def test_settings_take_numbers_of_numpy_and_paths(unchecked, tmp_path):
    """And what they hold can be written: a run that can't write its settings comes to nothing."""
    given = Settings(
        generator=tmp_path,
        restarts=np.int64(4),
        eps=np.float32(0.25),
        seeds=np.arange(2),
        stop_at_eps=np.bool_(False),
        crop=[0, np.int32(0), 16],
        bad_noise_layers=range(2),
        value_range=(np.float32(0.5), 2),
    )
    plain = Settings(
        generator=str(tmp_path),
        restarts=4,
        eps=0.25,
        seeds=(0, 1),
        stop_at_eps=False,
        crop=(0, 0, 16),
        bad_noise_layers=(0, 1),
        value_range=(0.5, 2.0),
    )
    assert given == plain
    assert json.dumps(given.as_json()) == json.dumps(plain.as_json())
    assert Settings(seeds="0:2", crop="0,0,16", noise="0.03") == (
        Settings(seeds=(0, 1), crop=(0, 0, 16), noise=0.03)
    )


# --- The house. ---


def imports(path):
    """Modules of the package that a file imports, as written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pulse_jax"):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_go_one_way():
    """Door → upsampling → driver → search → its parts → sphere; generators know of no search."""
    package = ROOT / "pulse_jax"
    over = {"search", "driver", "upsampling"}
    above = {
        "types.py": over | {"generators", "losses", "operators", "optimizers", "schemes"},
        "progress.py": over | {"generators", "losses", "operators", "optimizers", "schemes"},
        "sphere.py": over | {"schemes", "optimizers", "losses", "operators"},
        "files.py": over | {"images", "starts", "generators"},
        "images.py": over | {"operators", "losses", "generators"},
        "losses.py": over | {"generators"},
        "operators.py": over | {"generators", "schemes", "optimizers"},
        "optimizers.py": over | {"generators", "schemes", "operators"},
        "schemes.py": over | {"generators", "operators", "losses"},
        "search.py": {"driver", "upsampling", "generators", "starts", "images"},
        "driver.py": {"upsampling", "generators", "starts", "images"},
        "starts.py": over,
    }
    above |= {
        str(path.relative_to(package)): over | {"schemes", "optimizers", "losses"}
        for path in (package / "generators").rglob("*.py")
    }
    for name, forbidden in above.items():
        found = {module.split(".")[1] for module in imports(package / name) if "." in module}
        assert not found & forbidden, (name, found & forbidden)
    for path in package.rglob("*.py"):
        own = set(imports(path))
        if path.name not in ("__main__.py", "convert.py", "put_back.py"):
            assert "pulse_jax.__main__" not in own
            assert not {m for m in own if m.startswith("absl.flags")}, path
            assert "flags" not in {
                alias.name
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ImportFrom) and node.module == "absl"
                for alias in node.names
            }, path


def test_importing_the_package_takes_no_device():
    code = "import pulse_jax; print(pulse_jax.RECIPES['original'].chosen_scheme)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": "", "JAX_PLATFORMS": "nothing"},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "rescale\n", result.stderr
