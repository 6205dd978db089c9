"""What the command costs beside its search, and when it has a first result.

    python experiments/benchmark_command.py --recipes=fast --faces=4 --slots=2 --repeats=6
    python experiments/benchmark_command.py --mode=start --recipes=fast --faces=1

- whole, the default, measures the time of `pulse_jax.upsample`, which is all that the command does
  once it has been imported, over the time of its search alone. Both have the same pictures,
  restarts, devices, slots, steps and results. All has been compiled before: the command finds it in
  its cache, as another process would, and the search has it at hand. The goal is at most 1.05. With
  the flags above, there are 14 searches of 32 restarts, which take six seconds each on two cores;
  by default, of 128. --slots are those of each device.
- start measures the seconds until a process of the command has written its first result, over the
  seconds of a process that does `import jax`. An earlier process has compiled what it needs. The
  command chooses the slots. The goal is 5 seconds on two cores. This process holds an accelerator
  too, and with XLA_PYTHON_CLIENT_PREALLOCATE=false it leaves memory to the others.

Inputs are freshly drawn faces that the generator has never seen. What is compared is timed in
turns, and figures, also ratios, are medians over the turns. The range of n turns holds the true
median of a ratio with probability 1 − 2^(1−n), which is 97% for six.

Prints a table and writes it to MODE.csv, and the settings to MODE.json. Each command takes minutes
on two cores. Other work on the machine spoils all but the ratios.
"""

import contextlib
import dataclasses
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import bench, door
from common.bench import RECIPES, draw_inputs, search_all, set_up, warm_up
from common.timing import in_turns, ratio

import jax
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax.console import used_cache
from pulse_jax.generators import checkpoint
from pulse_jax.images import save_image
from pulse_jax.upsampling.restarts import in_turn, make_draw
from pulse_jax.upsampling.results import Restart

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(bench)
MODES = ("whole", "start")
flags.DEFINE_enum("mode", "whole", MODES, "This is measured.")


def main():
    jax.config.update("jax_enable_compilation_cache", True)  # as in the command
    return bench.measure(dict(zip(MODES, (whole, start), strict=True))[FLAGS.mode])


@contextlib.contextmanager
def command_inputs(name, recipe, restarts):
    """(setup, settings, folder) of the command: it upsamples the folder's `pictures`."""
    setup = set_up(name, recipe)
    with tempfile.TemporaryDirectory(dir=bench.workdir()) as made:
        folder = Path(made)
        (folder / "pictures").mkdir()
        for number, picture in enumerate(draw_inputs(setup)[1]):
            save_image(folder / "pictures" / f"{number:03d}.png", picture)
        if not setup.trained:
            name = str(folder / "generator")
            checkpoint.save(name, generator=(setup.network, setup.params))
        own = {
            "generator": name,
            "restarts": restarts,
            "steps": FLAGS.steps,
            "seeds": (FLAGS.seed,),
        }
        yield setup, dataclasses.replace(RECIPES[recipe], **own), folder


def whole(name, restarts):
    for recipe in FLAGS.recipes:
        with command_inputs(name, recipe, restarts) as (setup, settings, folder):
            settings = dataclasses.replace(settings, batch_size=FLAGS.slots)
            yield {"generator": name, "recipe": recipe, **time_whole(setup, settings, folder)}


def time_whole(setup, settings, folder):
    numbers, devices, done = itertools.count(), jax.local_device_count(), {}

    def command():
        jax.clear_caches()  # as in another process
        output = folder / f"results{next(numbers)}"
        done["command"] = pulse_jax.upsample(folder / "pictures", output, settings)

    def prepare():
        warm_up(setup, start, FLAGS.slots, len(jobs), devices)

    def alone():
        done["alone"] = search_all(setup, start, len(jobs), FLAGS.slots, devices)

    with used_cache(bench.workdir() / "cache"):
        command()
        jobs = command_jobs(done["command"])
        start = command_start(setup, settings, jobs)
        alone()
        check_same(jobs, done["alone"])
        seconds, _, search_seconds = in_turns(FLAGS.repeats, command, prepare, alone)
    return {
        "restarts": len(jobs),
        "devices": devices,
        "slots": FLAGS.slots,
        "mean steps": done["alone"].step.mean(dtype=float),
        "command s": np.median(seconds),
        "search s": np.median(search_seconds),
        **ratio("command / search", seconds, search_seconds),
    }


def command_jobs(results):
    """The command's restarts, in the order in which it searches for them."""
    for failure in results.failures:
        raise ValueError(failure)
    settings, pictures = results.settings, results.pictures
    pairs = itertools.product(range(len(pictures)), range(1, settings.restarts + 1))
    return [Restart(pictures[i], number, settings.steps) for i, number in in_turn(pairs)]


def command_start(setup, settings, jobs):
    """`start` of `stream`, at the command's starting points."""
    targets = np.stack([job.picture.target for job in jobs])
    draw, init = make_draw(setup.generator, settings), jax.jit(jax.vmap(setup.search.init))
    return lambda numbers: (targets[numbers], init(*draw([jobs[number] for number in numbers])))


def check_same(jobs, state):
    """Raises ValueError if a search is not that of the command's restarts."""
    rows = [job.picture.rows[job.number] for job in jobs]
    theirs = [[row["l2"], row["best_step"], row["steps"]] for row in rows]
    ours = np.stack([state.best.l2, state.best.step, state.step], axis=1)
    if not np.array_equal(theirs, ours, equal_nan=True):
        raise ValueError("the search alone has other results than the command")


def start(name, restarts):
    for recipe in FLAGS.recipes:
        with command_inputs(name, recipe, restarts) as (_, settings, folder):
            yield {"generator": name, "recipe": recipe, **time_start(settings, folder)}


def time_start(settings, folder):
    command = [sys.executable, "-m", "pulse_jax", *settings.as_flags()]
    command += [f"--input_dir={folder / 'pictures'}", f"--cache_dir={folder / 'cache'}"]
    numbers = itertools.count()

    def first_result():
        output = folder / f"results{next(numbers)}"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with door.child([*command, f"--output_dir={output}"], **quiet) as process:
            ended = False
            while not any(output.glob("*/hr_*.png")):
                if ended:
                    raise ValueError("the command has ended without a result")
                time.sleep(0.01)
                ended = process.poll() is not None
            process.kill()

    def import_jax():
        with door.child([sys.executable, "-c", "import jax"]) as process:
            if process.wait():
                raise ValueError("jax can't be imported")

    compiling = [*command, f"--output_dir={folder / 'first'}"]
    with door.child(compiling, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        told = process.communicate()[1].decode()
    if process.returncode:
        raise ValueError(told)
    seconds, import_seconds = in_turns(FLAGS.repeats, first_result, import_jax)
    return {
        "restarts": FLAGS.faces * settings.restarts,
        "first result s": np.median(seconds),
        "import jax s": np.median(import_seconds),
        **ratio("first result / import jax", seconds, import_seconds),
    }


if __name__ == "__main__":
    door.run(main)
