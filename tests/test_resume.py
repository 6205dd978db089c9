"""Long runs: cut off, interrupted, killed or short of memory, they end as if nothing had been."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_helpers import contents, fails, read_rows, write_picture
from PIL import Image

import pulse_jax
from pulse_jax import progress
from pulse_jax.files import attempt, load_arrays, npz
from pulse_jax.upsampling import restarts, results
from pulse_jax.upsampling.pictures import Picture
from pulse_jax.upsampling.results import Restart, take_up, take_up_restart

ROOT = Path(__file__).parents[1]
PYTHONPATH = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
GENERATOR = "experiment_helpers:linear"


@pytest.fixture
def folder(tmp_path):
    for name, seed in (("a.png", 1), ("b.png", 2)):
        write_picture(tmp_path / "in" / name, seed=seed)
    return f"--input_dir={tmp_path / 'in'}"


@pytest.fixture
def run(run):
    """With a generator that compiles in no time, and the same program for most tests."""
    return partial(run, "--steps=12", generator=GENERATOR)


def files(output):
    """All of a run but the times, and each one's bytes."""
    paths = [path for path in output.rglob("*") if path.is_file() and path.name != "timings.csv"]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}


def cut_off_after(looks, monkeypatch, how):
    """The next search ends after so many chunks with `how()`."""
    stream = pulse_jax.stream

    def cut_off(*arguments, **options):
        for number, slots in enumerate(stream(*arguments, **options), 1):
            yield slots
            if number == looks:
                how()

    monkeypatch.setattr(pulse_jax, "stream", cut_off)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def eager(monkeypatch):
    """What is under way is saved after each chunk, if the chunk before has been written."""
    monkeypatch.setattr(restarts, "PATIENCE", 0.0)
    monkeypatch.setattr(restarts, "SHARE", np.inf)


class PowerCut(Exception):
    pass


def power_cut():
    raise PowerCut


def adam_in_bfloat16(schedule):
    """An optimiser that plugs in, with a state of a type that NumPy's files don't know."""
    return optax.adam(schedule, mu_dtype=jnp.bfloat16)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--opt_name=sgdm", "--lr_schedule=fixed", "--save_video"],
        ["--opt_name=lbfgs", "--save_intermediate", "--stop_at_eps"],
        ["--opt_name=test_resume:adam_in_bfloat16"],
    ],
    ids=["adam", "sgdm", "lbfgs", "bfloat16"],
)
def test_what_is_under_way_goes_on_from_its_last_state(run, folder, monkeypatch, tmp_path, flags):
    whole = run(folder, *flags, output="whole")
    eager(monkeypatch)
    with monkeypatch.context() as patch:
        cut_off_after(2, patch, power_cut)
        with pytest.raises(PowerCut):
            run(folder, *flags, output="cut")
    cut = tmp_path / "cut"
    assert list(cut.glob("*/parts/*.npz")) and not (cut / "results.csv").exists()
    run(folder, *flags, output="cut")
    assert files(cut) == files(whole)
    steps = [int(table(output / "timings.csv")[0]["steps"]) for output in (whole, cut)]
    assert steps[1] < steps[0]


def test_a_finished_run_keeps_its_times(run, folder):
    times = (run(folder) / "timings.csv").read_bytes()
    assert (run(folder) / "timings.csv").read_bytes() == times


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_the_step(
    run, folder, monkeypatch, tmp_path, capsys, request, number
):
    whole = run(folder, output="whole")
    at_first = signal.getsignal(number)
    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, before)  # in the background of a script it is ignored
    request.addfinalizer(lambda: signal.signal(number, at_first))
    with monkeypatch.context() as patch:
        cut_off_after(1, patch, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as exit:
            run(folder)
    assert exit.value.code == 128 + number
    assert "the same command goes on from here" in capsys.readouterr().err
    assert signal.getsignal(number) == before
    (steps,) = {int(json.loads(str(np.load(p)["row"]))["steps"]) for p in parts(tmp_path / "out")}
    assert steps == 10  # the signal came in the second chunk
    assert files(run(folder)) == files(whole)


@pytest.mark.parametrize("how", ["signal", "out of memory"])
def test_what_is_done_when_a_run_ends_early_is_on_the_page_and_in_the_table(
    run, folder, monkeypatch, tmp_path, capsys, how
):
    flags = folder, "--batch_size=1", "--save_video"
    whole = run(*flags, output="whole")

    def stop():
        if how == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no")

    with monkeypatch.context() as patch:
        cut_off_after(7 * 3 + 1, patch, stop)  # frames are of two steps: in the fourth restart
        with pytest.raises(SystemExit) as exit:
            run(*flags)
    told, output = capsys.readouterr(), tmp_path / "out"
    assert exit.value.code == (130 if how == "signal" else 1)
    assert f"0 pictures done; open {output / 'index.html'}" in told.out
    reason = "stopped when 3 of 6 restarts were done" if how == "signal" else "out of memory"
    assert f"pulse_jax: {reason}" in told.err
    done = [(row["image"], row["restart"]) for row in read_rows(output)]
    assert done == [("a.png", "1"), ("a.png", "2"), ("b.png", "1")]
    assert read_rows(output) == [row for row in read_rows(whole) if row["restart"] in "12"][:3]
    page = (output / "index.html").read_text(encoding="utf-8")
    assert "2 pictures, 3 of 6 restarts done so far, 0 of 3 restarts converged" in page
    assert "a.png<small>2 of 3 restarts done so far" in page
    assert page.count('data-name="restart ') == 3 and page.count("<polyline") == 2 * 3
    assert not list(output.glob("*/results.csv"))  # no picture counts as done
    assert files(run(*flags)) == files(whole)


def parts(output):
    return list(output.glob("*/parts/*.npz"))


def test_the_state_of_another_picture_is_not_taken_up(run, folder, monkeypatch, tmp_path, capsys):
    eager(monkeypatch)
    with monkeypatch.context() as patch:
        cut_off_after(1, patch, power_cut)
        with pytest.raises(PowerCut):
            run(folder)
    write_picture(tmp_path / "in" / "a.png", seed=5)
    line = fails(run, capsys, folder)
    assert f"{tmp_path / 'out' / 'a'} holds results of another picture" in line
    assert {row["image"] for row in read_rows(tmp_path / "out")} == {"b.png"}


def test_parts_of_another_version_are_told_with_their_files(
    run, folder, monkeypatch, tmp_path, capsys
):
    """The other picture is searched. Without the parts, the run goes on."""
    with monkeypatch.context() as patch:
        cut_off_after(3, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(SystemExit):
            run(folder, "--restarts=4")
    capsys.readouterr()
    parts = tmp_path / "out" / "a" / "parts"
    done, begun = parts / "000002.npz", parts / "000003.npz"
    arrays = load_arrays(begun)
    text, fewer = arrays | {"000": arrays["000"].astype(str)}, dict(arrays)
    fewer.pop(f"{len(arrays) - 3:03d}")  # of the state: "row" and "curve" are none of it
    for other in (arrays | {"000": arrays["000"][None]}, text, fewer):
        begun.write_bytes(npz(other))
        told = f"{begun}: of another run or version; remove it to begin this restart anew"
        assert told in fails(run, capsys, folder, "--restarts=4")
        assert {row["image"] for row in read_rows(tmp_path / "out")} == {"a.png", "b.png"}
        assert not (parts.parent / "results.csv").exists()
    begun.unlink()
    arrays = load_arrays(done)
    latents = next(name for name in arrays if name not in ("row", "curve"))
    for other in (arrays | {"curve": arrays["curve"][:, 1:]}, arrays | {latents: None}):
        done.write_bytes(npz({name: array for name, array in other.items() if array is not None}))
        told = f"{done}: unlike 000001.npz beside it; remove one of them to begin its restart anew"
        assert told in fails(run, capsys, folder, "--restarts=4")
    done.unlink()
    assert len(read_rows(run(folder, "--restarts=4"))) == 8


def test_without_resume_results_are_left_alone(run, folder, capsys):
    before = files(run(folder))
    line = fails(run, capsys, folder, "--noresume")
    assert "--output_dir" in line and "holds results already" in line
    assert files(run(folder, "--resume")) == before


def test_what_was_killed_before_its_tables_gets_them(run, folder, tmp_path):
    output = run(folder)
    before = files(output)
    (output / "results.csv").unlink()
    (output / "index.html").unlink()
    (output / "a" / "parts").mkdir()  # killed while clearing up
    (output / "b" / ".results.csv.1.tmp").write_text("")
    assert files(run(folder)) == before
    assert not (output / "a" / "parts").exists()


def test_a_run_that_could_not_save_a_thing_goes_on(run, folder):
    """As on a full disk, which has room for folders."""
    output = run(folder)
    before = files(output)
    for name in ("a", "b"):
        shutil.rmtree(output / name)
        (output / name / "parts").mkdir(parents=True)
    assert files(run(folder)) == before


def test_a_damaged_table_is_told_and_the_others_go_on(run, folder, capsys):
    output = run(folder)
    table, other = output / "a" / "results.csv", files(output / "b")
    before = table.read_bytes()
    for damaged, told in (
        (b"a,b\n1\n", f"{table}: can't be read: a row has more cells"),
        (b"\xff\xfe\0", f"{table}: can't be read: 'utf-8' codec"),
        (b"a\n" + 200_000 * b"1", f"{table}: can't be read: field larger than field limit"),
        (before.replace(b"restart", b"number", 1), f"{table.parent}: its results can't be read"),
        (before.rstrip() + b",1\n", f"{table}: can't be read: a row has more cells"),
        (b"", f"{table}: can't be read: it has 0 results, and 3 were written"),
        (before[: before.rstrip().rindex(b"\n") + 1], f"{table}: can't be read: it has 2 results"),
    ):
        table.write_bytes(damaged)
        assert told in fails(run, capsys, folder)
        assert table.read_bytes() == damaged and files(output / "b") == other
    table.write_bytes(before)
    (output / "config.json").unlink()
    line = fails(run, capsys, folder, "--learning_rate=0.3")
    assert f"{table.parent} holds results, and {output / 'config.json'}, which tells" in line
    assert not (output / "config.json").exists()


def test_tables_of_an_earlier_version_get_the_new_column(run, folder):
    output = run(folder)
    before = table(output / "results.csv")
    for path in output.glob("*/results.csv"):
        rows = [{k: v for k, v in row.items() if k != "l2_relative"} for row in table(path)]
        path.write_text(results.as_csv(rows))
    assert table(run(folder) / "results.csv") == before


def test_half_the_slots_where_memory_runs_out(run, folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(restarts, "PATIENCE", np.inf)  # all of it is done again, with fewer slots
    two = run(folder, "--batch_size=2", output="two")
    stream = pulse_jax.stream

    def limited(*arguments, slots, **options):
        for number, now in enumerate(stream(*arguments, slots=slots, **options)):
            if slots > 2 and number:  # what a GPU and what a CPU says
                told = {8: "RESOURCE_EXHAUSTED: no", 4: "INTERNAL: Error: Out of memory allocating"}
                raise jax.errors.JaxRuntimeError(told[slots])
            yield now

    monkeypatch.setattr(pulse_jax, "stream", limited)
    output = run(folder, "--batch_size=8")
    told = capsys.readouterr().err
    assert "out of memory: going on with 4 restarts at once" in told
    assert "going on with 2 restarts at once" in told and "bytes may differ" in told
    for name in ("a", "b"):
        assert contents(output / name) == contents(two / name)
    assert json.loads((output / "config.json").read_text())["slots"] == 2


# The command, with 250 MB more than it has when a search begins.
LIMITED = """
import resource
from pathlib import Path
from types import SimpleNamespace
from pulse_jax import __main__
from pulse_jax.upsampling import restarts

search_all = restarts.search_all

def limited(*arguments, **options):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + 250_000_000
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    yield from search_all(*arguments, **options)

restarts.search_all = limited
__main__.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it")
def test_memory_that_does_run_out(folder, compiled, tmp_path):
    flags = [
        f"--generator={GENERATOR}",
        f"--cache_dir={compiled}",
        "--batch_size=16384",
        "--seed=0",
    ]
    flags += [folder, f"--output_dir={tmp_path / 'out'}", "--steps=10", "--restarts=2"]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, *flags], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "out of memory: going on with 8192 restarts at once" in result.stderr
    assert len(read_rows(tmp_path / "out")) == 4


def test_fewer_devices_of_a_cpu_where_memory_runs_out(run, folder, monkeypatch, capsys):
    monkeypatch.setattr(restarts, "choose_slots", lambda run, before: (3 * jax.devices()[:1], 1))
    stream, had = pulse_jax.stream, []

    def limited(*arguments, devices, **options):
        had.append(len(devices))
        if len(devices) > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        yield from stream(*arguments, devices=devices, **options)

    monkeypatch.setattr(pulse_jax, "stream", limited)
    output = run(folder, "--batch_size=1")
    assert had == [3, 1] and len(read_rows(output)) == 6
    assert "pulse_jax: out of memory: going on with 1 device\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("devices", "platform", "told"),
    [(2, "cpu", "one restart at once"), (2, "gpu", "one restart on each of 2 devices at once")],
)
def test_memory_for_no_restart_is_told(
    run, folder, monkeypatch, capsys, unchecked, devices, platform, told
):
    def exhausted(*arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 bytes")
        yield

    monkeypatch.setattr(pulse_jax, "stream", exhausted)
    chosen = devices * [SimpleNamespace(platform=platform)], 1
    monkeypatch.setattr(restarts, "choose_slots", lambda run, before: chosen)
    with pytest.raises(SystemExit) as exit:
        run(folder, "--batch_size=1")
    assert exit.value.code == 1
    assert f"out of memory with {told}: RESOURCE" in capsys.readouterr().err


def test_the_folder_of_a_picture_does_not_matter(run, tmp_path):
    """Permuted, renamed and fewer pictures, other numbers of restarts: the same bytes."""
    for seed in range(4):
        write_picture(tmp_path / "in" / f"{seed}.png", seed=seed)
    whole = run(f"--input_dir={tmp_path / 'in'}", output="whole")
    for trial, (order, count) in enumerate([([3, 1, 0, 2], 3), ([2, 0], 5), ([1], 1)]):
        inputs = tmp_path / f"in{trial}"
        for place, seed in enumerate(order):
            write_picture(inputs / f"{place}.bmp", seed=seed)
        flags = f"--input_dir={inputs}", f"--restarts={count}"
        output = run(*flags, output=f"out{trial}")
        for place, seed in enumerate(order):
            for k in range(1, min(count, 3) + 1):
                name = f"hr_{k:02d}.png"
                assert contents(output / str(place))[name] == contents(whole / str(seed))[name]


def test_what_is_left_is_told_after_the_first_chunks(run, folder, monkeypatch, capsys):
    monkeypatch.setattr(progress, "MEASURED", 0.0)
    run(folder, "--steps=40")
    assert " to go, " in capsys.readouterr().out


# The command, saving what is under way after each chunk.
EAGER = """
from pulse_jax import __main__
from pulse_jax.upsampling import restarts
restarts.PATIENCE, restarts.SHARE = 0.0, float("inf")
__main__.main()
"""


def start(compiled, inputs, output):
    """A run in a process of its own, of some seconds."""
    flags = [f"--generator={GENERATOR}", f"--cache_dir={compiled}", f"--input_dir={inputs}"]
    flags += [f"--output_dir={output}", "--seed=3", "--batch_size=2", "--restarts=3"]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", EAGER, *flags, "--steps=600", "--save_video"]
    with output.with_suffix(".log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, 20])
def test_a_run_that_is_killed_again_and_again(compiled, tmp_path, kills):
    """At random moments, so that it loses its compiled programs, its tables, half a file."""
    for name, seed in (("a.png", 1), ("b.png", 2)):
        write_picture(tmp_path / "in" / name, seed=seed)
    arguments = compiled, tmp_path / "in"
    start(*arguments, tmp_path / "first").wait()  # compiles
    began = time.monotonic()
    assert start(*arguments, tmp_path / "whole").wait() == 0
    lasts = time.monotonic() - began
    whole = files(tmp_path / "whole")
    assert files(tmp_path / "first") == whole

    moments = random.Random(kills)
    attempt = killed = 0
    while killed < kills:
        output = tmp_path / f"killed{attempt}"
        process = start(*arguments, output)
        time.sleep(lasts * moments.uniform(0.1, 0.9))
        process.kill()
        if process.wait() == 0:  # it had ended
            assert files(output) == whole
            attempt += 1
            continue
        killed += 1
        for path in output.rglob("*"):
            if path.is_file() and not path.name.endswith(".tmp"):
                check_whole(path)
    process = start(*arguments, output)
    assert process.wait() == 0
    assert files(output) == whole


def check_whole(path):
    if path.suffix in (".png", ".webp"):
        Image.open(path).load()
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            dict(arrays)
    elif path.suffix == ".json":
        json.loads(path.read_text())
    else:
        assert path.read_text().endswith("\n")


def test_a_part_that_is_none_is_told_with_its_name(tmp_path):
    """As one that was edited, or of another program. The files of a posterior have no curve."""
    target = np.zeros((2, 2, 3), np.float32)
    picture = Picture("a.png", target, 0.0, "", folder=tmp_path)
    row = {"checksum": picture.checksum, "steps": 2}
    part = {"row": json.dumps(row), "curve": np.zeros((2, 5)), "000": np.ones(3)}
    restart = Restart(picture, 1, 5)
    restart.part.parent.mkdir()

    def complaint(**changes):
        content = {name: x for name, x in (part | changes).items() if x is not None}
        restart.part.write_bytes(npz(content))
        told = attempt(take_up, picture, 1) or attempt(take_up_restart, picture, restart)
        return told.removeprefix(f"{restart.part}: ")

    assert complaint() == "" and restart.steps == 2
    np.testing.assert_array_equal(restart.state, [part["000"]])
    for changes in (
        {"row": None},
        {"row": "none"},
        {"row": "3"},
        {"row": json.dumps(row | {"status": "converged"}), "curve": None},
        {"curve": None},
        {"curve": np.zeros((2, 4))},
        {"000": None, "001": np.ones(3)},
    ):
        assert complaint(**changes) == "can't be read: it holds no part of a search", changes
