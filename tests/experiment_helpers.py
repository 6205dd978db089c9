"""Experiments in small: generators that compile fast, and a run in a process of its own."""

import csv
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import pulse_jax
from pulse_jax.generators import checkpoint
from pulse_jax.generators.stylegan2 import Discriminator, StyleGAN2

ROOT = Path(__file__).parents[1]


def save_small_generator(folder, seed=0):
    """A StyleGAN 2 of 8×8 pixels and its discriminator, with random weights."""
    network = StyleGAN2(resolution=8, channels=(6, 4), latent_size=8, mapping_layers=1)
    noise = [jnp.zeros((1, *shape)) for shape in network.noise_shapes]
    judge, image = Discriminator(channels=(6, 4)), jnp.zeros((1, 8, 8, 3))
    rng = np.random.default_rng(seed)

    def weights(module, *inputs):
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
        return jax.tree.map(lambda x: np.float32(0.3 * rng.standard_normal(x.shape)), shapes)

    fit = {"latent_fit": {"mean": np.zeros(8, np.float32), "std": np.ones(8, np.float32)}}
    generator = network, weights(network, jnp.zeros((1, 8)), noise) | fit
    checkpoint.save(folder, generator=generator, discriminator=(judge, weights(judge, image)))


def linear():
    """A plug-in, `--generator=experiment_helpers:linear`: 32×32 pixels, linear in its styles."""

    def sample(key):
        return {"style": jax.random.normal(key, (2, 8))}, {}

    def synthesize(params, latents, frozen):
        return 0.5 + jnp.einsum("ld,ldhwc->hwc", latents["style"], params["basis"])

    def styles(params, latents, frozen):
        return latents["style"]

    basis = 0.05 * np.random.default_rng(0).standard_normal((2, 8, 32, 32, 3), np.float32)
    return pulse_jax.Generator(32, sample, synthesize, styles), {"basis": basis}


def run_experiment(name, *arguments, cwd):
    """An experiment, in a process of its own, since their flags have the same names.

    What one has compiled, the others find.
    """
    return run_python(ROOT / "experiments" / f"{name}.py", *arguments, cwd=cwd)


# A process that runs code of experiments, one piece after another, and tells what each prints and
# whether it ends well. It imports them anew, and takes back the flags that they define.
SHARED = """
import contextlib, io, json, os, sys, traceback
from absl import flags
experiments, answers, main = sys.argv[1], sys.stdout, sys.modules["__main__"]

for line in sys.stdin:
    folder, code = json.loads(line)
    os.chdir(folder)
    sys.path[0], status = folder, 0
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            status = 1
    print(json.dumps([status, out.getvalue(), err.getvalue()]), file=answers, flush=True)
    sys.modules["__main__"] = main
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    own = {name for name in files if (files[name] or "").startswith((folder, experiments))}
    for flag in [f for f in flags.FLAGS if flags.FLAGS.find_module_defining_flag(f) in own]:
        delattr(flags.FLAGS, flag)
    for name in own:
        del sys.modules[name]
"""


@functools.cache
def shared():
    """That process, for all tests. It has one device, whatever ran in it before."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-c", SHARED, ROOT / "experiments"]
    one = environment(JAX_NUM_CPU_DEVICES="1")
    return subprocess.Popen(command, env=one, text=True, **pipes)


def run_code(code, cwd):
    """Code that imports experiments, as `python -c` runs it, but in a process for all tests."""
    process = shared()
    print(json.dumps([str(cwd), code]), file=process.stdin, flush=True)
    return subprocess.CompletedProcess(code, *json.loads(process.stdout.readline()))


ENDS = """
import importlib, json, sys
from absl.testing import flagsaver
from common import door

script = sys.modules["__main__"] = importlib.import_module(name)
ends = []
for words in given:
    sys.argv = [f"{name}.py", *always, *words.split()]
    try:
        with flagsaver.flagsaver():
            if hasattr(script, "harness"):
                script.harness.run(script.main, script.PRESETS)
            door.run(script.main)
    except SystemExit as end:
        ends.append(end.code)
print(json.dumps(ends))
"""


def complaints(name, *flags, cwd, always=()):
    """What an experiment ends with for each of these flags: a line about what can't be, or None.

    Each is a flag, or several with spaces between. The flags that it gets `always` go before.
    """
    inputs = f"name, always, given = {name!r}, {always!r}, {flags!r}"
    result = run_code(inputs + ENDS, cwd)
    assert result.returncode == 0, result.stderr
    ends = json.loads(result.stdout.splitlines()[-1])
    assert len(ends) == len(flags)
    return ends


def environment(**variables):
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "experiments", ROOT / "tests")))
    return os.environ | {"PYTHONPATH": paths, "MPLBACKEND": "agg"} | variables


def run_python(*arguments, cwd):
    command = [sys.executable, *arguments]
    streams = {"capture_output": True, "text": True}
    return subprocess.run(command, cwd=cwd, env=environment(), **streams)


def read_table(path):
    """The rows of a CSV file, all text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
