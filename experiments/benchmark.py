"""What the search costs, and what it finds in a second.

    python experiments/benchmark.py --restarts=1,8,32
    python experiments/benchmark.py --generators=stylegan256 --restarts=4 --against_torch
    python experiments/benchmark.py --generators=stylegan1024 --restarts=1 --against_torch
    python experiments/benchmark.py --generators=stylegan1024 --restarts=16 --against_torch \
        --dtypes=float32,bfloat16  # on a GPU
    python experiments/benchmark.py --mode=scaling --restarts=1,8,16,32,64,128,256
    python experiments/benchmark.py --mode=slots
    python experiments/benchmark.py --mode=cores --recipes=fast --repeats=6
    python experiments/benchmark.py --mode=recipes
    python experiments/benchmark.py --mode=command --recipes=fast --faces=4 --slots=2 --repeats=6
    python experiments/benchmark.py --mode=start --recipes=fast --faces=1

- steps, the default, measures the rate of steps with so many restarts at once. An evaluation is one
  restart's image and gradient. "share of matrix rate" compares with products of square matrices of
  the same type (3072² on a CPU, 8192² elsewhere). It counts the operations of the original
  networks, even if ours need fewer. Other columns have the time of the search's compiled chunk over
  that of as many bare compiled steps, and what the chunk takes in memory and to compile. For
  trained generators, there are the restarts that a search has accepted in a second, and how much
  the error of their images, in float32 and 8 bits, exceeds what the search has seen.
  --against_torch (pip install -e ".[bench]") is for StyleGAN 1 and the recipe "original". It adds
  the time of the same steps in eager PyTorch, in float32 on the same device, over ours. Images and
  errors are checked to be equal before.
- scaling measures time and memory of more and more restarts. The seconds of a round of --slots
  restarts should stay the same, and so should the memory.
- slots compares the restarts accepted in a second if a slot goes to the next one as soon as it is
  free, and if batches of as many wait for their slowest.
- cores measures the time of a search on one device with --slots slots over that of the same search
  with two slots on each core of a CPU, as the command has it.
- recipes measures restarts accepted in a second, and how good their images are: the discriminator's
  score, which the true faces have too, GEOCROSS, and diversity, the mean difference of two restarts
  of one input, with the same noise maps.
- command measures the time of `pulse_jax.upsample`, which is all that the command does once it has
  been imported, over the time of its search alone. Both have the same pictures, restarts, devices,
  slots, steps and results. All has been compiled before: the command finds it in its cache, as
  another process would, and the search has it at hand. The goal is at most 1.05. With the flags
  above, there are 14 searches of 32 restarts, which take six seconds each on two cores; by default,
  of 128.
- start measures the seconds until a process of the command has written its first result, over the
  seconds of a process that does `import jax`. An earlier process has compiled what it needs. The
  command chooses the slots. The goal is 5 seconds on two cores. This process holds an accelerator
  too, and with XLA_PYTHON_CLIENT_PREALLOCATE=false it leaves memory to the others.

Inputs are freshly drawn faces that the generator has never seen. A restart is accepted if its
image, as an 8-bit file holds it, downscales to the input with a mean squared error of at most 1e-3.
Searches aim at 0.8e-3, as the command does. Seconds are those of the search alone. What is compared
is timed in turns, and figures, also ratios, are medians over the turns. The range of n turns holds
the true median of a ratio with probability 1 − 2^(1−n), which is 97% for six.

Prints a table and writes it to MODE.csv, and the settings to MODE.json. Each command takes minutes
on two cores, or for 1024² a quarter of an hour. Other work on the machine spoils all but the
ratios.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from common import door
from common.faces import album
from common.metrics import as_saved, diversity, realism, with_noise_of_first
from common.timing import in_turns, matrix_product, matrix_side, on_cpu, peak_memory, ratio

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import pulse_jax
from pulse_jax.console import use_cores, used_cache
from pulse_jax.driver import advance
from pulse_jax.files import expanded, write
from pulse_jax.generators import checkpoint
from pulse_jax.generators.stylegan import FUSED_FROM, StyleGAN
from pulse_jax.images import save_image
from pulse_jax.losses import geocross
from pulse_jax.upsampling.bar import process_memory
from pulse_jax.upsampling.restarts import in_turn, make_draw
from pulse_jax.upsampling.results import Restart, as_csv

EPS = 1e-3  # largest mean squared error of an accepted restart
LOSS = pulse_jax.Loss(eps=0.8 * EPS)
CHUNK = 5  # steps in a compiled chunk, as `stream` has them
CHANNELS = (512, 512, 512, 512, 256, 128, 64, 32, 16)  # of the official StyleGAN


ORIGINAL, FAST = (pulse_jax.RECIPES[name] for name in ("original", "fast"))
RECIPES = {
    "original": ORIGINAL,
    "original_stopping": dataclasses.replace(ORIGINAL, stop_at_eps=True),
    "fast_free_start": dataclasses.replace(FAST, equal_start=False),
    "fast": FAST,
}

FLAGS = flags.FLAGS
MODES = ("steps", "scaling", "slots", "cores", "recipes", "command", "start")
flags.DEFINE_enum("mode", "steps", MODES, "This is measured.")
flags.DEFINE_list(
    "generators",
    "faces64",  # whose figures docs/costs.md has
    "These bundled generators, or folders that hold one, are measured. In steps, command and "
    "start, stylegan256 and the like are StyleGAN 1 with the official channels and random weights.",
)
flags.DEFINE_list(
    "recipes",
    list(RECIPES),
    f"Of {', '.join(RECIPES)}, these are measured. Ratios are to the first.",
)
flags.DEFINE_list("dtypes", "float32", "In steps, activations are float32 or bfloat16.")
flags.DEFINE_list(
    "restarts",
    "8",
    "So many are searched: at once in steps, in all in scaling, else for each face.",
)
flags.DEFINE_integer(
    "slots",
    8,
    "So many restarts are searched at once, but for steps and start. In command, it is so many on "
    "each device.",
    lower_bound=1,
)
flags.DEFINE_integer("faces", 16, "This many faces are freshly drawn.", lower_bound=1)
flags.DEFINE_integer("steps", 100, "Each restart makes at most this many steps.", lower_bound=1)
flags.DEFINE_integer("repeats", 5, "This many turns are timed.", lower_bound=1)
flags.DEFINE_bool("against_torch", False, "Steps are compared with PyTorch's.")
flags.DEFINE_integer(
    "seed", 1000, "Faces and restarts depend on this number. It must be no trainer's."
)
flags.DEFINE_string("workdir", "runs/benchmark", "The results are written into this folder.")


def main():
    use_cores()  # `search` takes one of them, but for what is measured of the command
    # Elsewhere compiling is measured, or happens before.
    jax.config.update("jax_enable_compilation_cache", FLAGS.mode == "command")
    for recipe in FLAGS.recipes:
        if recipe not in RECIPES:
            raise ValueError(f"--recipes={recipe} is none of {', '.join(RECIPES)}")
    for dtype in FLAGS.dtypes:
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"--dtypes={dtype} is neither float32 nor bfloat16")
    for count in FLAGS.restarts:
        if not (count.isdecimal() and int(count)):
            raise ValueError(f"--restarts={count} must be at least 1")
    workdir = expanded(FLAGS.workdir, "--workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    measures = (steps, scaling, slots, cores, recipes, command, start)
    measure = dict(zip(MODES, measures, strict=True))[FLAGS.mode]
    rows = []
    for name in FLAGS.generators:
        for restarts in map(int, FLAGS.restarts):
            for row in measure(name, restarts):
                rows.append(row)
                show(row, with_header=len(rows) == 1)
                write(workdir / f"{FLAGS.mode}.json", json.dumps(configuration(), indent=2) + "\n")
                write(workdir / f"{FLAGS.mode}.csv", as_csv(rows))
    return workdir


def configuration():
    packages = ["jax", "jaxlib", "flax", "optax", "numpy"] + ["torch"] * FLAGS.against_torch
    own = FLAGS.get_key_flags_for_module(sys.modules[__name__])
    return {
        "flags": {flag.name: flag.value for flag in own},
        "devices": [device.device_kind for device in jax.devices()],
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def show(row, with_header):
    """A row of a Markdown table."""

    def text(value):
        if not isinstance(value, float):
            return str(value)
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"

    if with_header:
        print("|".join(["", *row, ""]) + "\n" + "|".join(["", *["---"] * len(row), ""]))
    print("|".join(["", *map(text, row.values()), ""]), flush=True)


# --- What is searched, and how. ---


class Setup(NamedTuple):
    network: Any
    trained: bool
    generator: pulse_jax.Generator
    exact: pulse_jax.Generator  # the same in float32
    params: Any
    operator: Any
    search: pulse_jax.Search
    stop_at_eps: bool


def learning_rates():
    return pulse_jax.SCHEDULES["linear1cycledrop"](0.4, FLAGS.steps)


@functools.cache
def set_up(name, recipe, dtype=None):
    """A search, from the names of a generator and a recipe."""
    random = re.fullmatch(r"stylegan(\d+)", name)
    if random:
        network, params = random_stylegan(int(random[1]))
    else:
        network, params = checkpoint.load_network(checkpoint.find(name, "--generators"))
    settings = RECIPES[recipe]
    base = pulse_jax.OPTIMIZERS[settings.opt_name](learning_rates())
    optimizer = pulse_jax.SCHEMES["rescale"](base)
    exact = pulse_jax.style_generator(network, equal_start=settings.equal_start)
    generator = pulse_jax.style_generator(network, equal_start=settings.equal_start, dtype=dtype)
    operator = pulse_jax.operators.bicubic(min(32, network.resolution // 8))
    search = pulse_jax.build(generator, operator, LOSS, optimizer)
    return Setup(
        network, not random, generator, exact, params, operator, search, settings.stop_at_eps
    )


def random_stylegan(resolution):
    """StyleGAN with the official channels. Every weight is drawn from N(0, 1)."""
    network = StyleGAN(resolution, CHANNELS[: resolution.bit_length() - 2])
    size = network.latent_size
    noise = [jnp.zeros((1, *shape)) for shape in network.noise_shapes]
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size)), noise)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    fit = {"mean": np.zeros(size, np.float32), "std": np.ones(size, np.float32)}
    return network, params | {"latent_fit": fit}


def step_operations(network):
    """Multiplications and additions of one step, in the 3×3 convolutions of the original networks.

    The gradient costs as much as the image. StyleGAN convolves what has been enlarged, but from
    side 128 up transposes a 4×4 kernel with stride 2; StyleGAN 2 does so with its 3×3 kernel.
    """
    total, before = 0, 0
    for k, channels in enumerate(network.channels):
        side = 4 * 2**k
        taps_up = 9 / 4
        if isinstance(network, StyleGAN):
            taps_up = 16 / 4 if side >= FUSED_FROM else 9
        total += 2 * side**2 * channels * (9 * channels + taps_up * before)
        before = channels
    return 2 * total


def draw_inputs(setup):
    """Faces (F, R, R, 3) that were never seen, and what they downscale to, as files hold them."""
    keys = jax.random.split(jax.random.key(FLAGS.seed), FLAGS.faces)
    truth = as_saved(album(keys, setup.generator.resolution))
    return truth, as_saved(jax.jit(jax.vmap(setup.operator))(truth))


def make_start(setup, targets):
    """`start` of `stream`. Restart n is for target n and depends on the seed and n alone."""
    key, targets = jax.random.key(FLAGS.seed + 1), jnp.asarray(targets)

    @jax.jit
    def start(numbers):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        return targets[numbers], jax.vmap(setup.search.init)(
            *jax.vmap(setup.generator.sample)(keys)
        )

    return start


def search(setup, start, restarts, slots, steps=None, devices=1):
    """Yields the restarts that have ended with a chunk: their numbers and states.

    There are so many `slots` on each of the first `devices`.
    """
    for now in pulse_jax.stream(
        setup.search,
        setup.params,
        start,
        restarts,
        steps or FLAGS.steps,
        slots=slots,
        chunk=CHUNK,
        stop_at_eps=setup.stop_at_eps,
        devices=jax.local_devices()[:devices],
    ):
        ended = np.flatnonzero(now.done)
        if ended.size:
            yield now.numbers[ended], jax.tree.map(lambda x, r=ended: np.asarray(x)[r], now.state)


def search_all(setup, start, restarts, slots, devices=1):
    """The final states of all restarts, in their order."""
    found = search(setup, start, restarts, slots, devices=devices)
    numbers, states = zip(*found, strict=True)
    order = np.argsort(np.concatenate(numbers))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[order], *states)


def warm_up(setup, start, slots, restarts=None, devices=1):
    """Compile what a search needs, also where slots are filled again, if it has the restarts."""
    most = 2 * slots * devices
    for _ in search(setup, start, min(most, restarts or most), slots, 1, devices):
        pass


def evaluations(state):
    """How many images with gradients all restarts have computed together."""
    return int(np.asarray(state.step).sum())


def render(setup, latents, frozen):
    """Images (N, R, R, 3) as files hold them, computed a few at a time."""

    @jax.jit
    def draw(params, samples):
        return jax.lax.map(lambda z: setup.exact.synthesize(params, *z), samples, batch_size=8)

    return as_saved(draw(setup.params, (latents, frozen)))


def errors(setup, images, targets):
    """Mean squared errors of the downscaled images (N, R, R, 3), by the exact operator: (N,)."""
    downscaled = np.asarray(jax.jit(jax.vmap(setup.operator))(images))
    return np.mean((downscaled - targets) ** 2, axis=(1, 2, 3))


# --- The modes: each yields rows for one generator and one number of restarts. ---


def steps(name, restarts):
    for recipe, dtype in itertools.product(FLAGS.recipes, FLAGS.dtypes):
        setup = set_up(name, recipe, None if dtype == "float32" else dtype)
        comparable = isinstance(setup.network, StyleGAN) and recipe == "original"
        timed = time_steps(setup, restarts, dtype, FLAGS.against_torch and comparable)
        found = search_figures(setup, restarts) if setup.trained else {}
        row = {"generator": name, "restarts": restarts, "dtype": dtype, "recipe": recipe}
        yield row | {"accepted/s": "", "l2 added": ""} | timed | found


def search_figures(setup, slots):
    """Figures of one search, with a restart for each face, or more to fill the slots."""
    restarts = slots * -(-FLAGS.faces // slots)
    _, inputs = draw_inputs(setup)
    targets = np.resize(inputs, (restarts, *inputs.shape[1:]))
    start = make_start(setup, targets)
    warm_up(setup, start, slots)
    began = time.perf_counter()
    state = search_all(setup, start, restarts, slots)
    seconds = time.perf_counter() - began
    l2 = errors(setup, render(setup, state.best.latents, state.frozen), targets)
    return {
        "accepted/s": (l2 <= EPS).sum() / seconds,
        "l2 added": float(np.median(l2 - state.best.l2)),
    }


def time_steps(setup, restarts, dtype, against_torch):
    side = setup.generator.resolution // setup.operator.factor
    start = make_start(setup, np.full((restarts, side, side, 3), 0.5, np.float32))
    mesh = Mesh(jax.local_devices()[:1], "slots")
    params = jax.device_put(setup.params, NamedSharding(mesh, P()))
    targets, state = jax.device_put(start(np.arange(restarts)), NamedSharding(mesh, P("slots")))
    bare_state = jax.tree.map(jnp.copy, state)
    ends = 2**30, -np.inf  # no restart gets there

    began = time.perf_counter()
    chunk = advance.lower(
        setup.search.step, params, targets, state, *ends, length=CHUNK, mesh=mesh
    ).compile()
    compiling = time.perf_counter() - began
    bare_step = jax.jit(jax.vmap(setup.search.step, (None, 0, 0)))

    def in_chunk():
        nonlocal state
        state, info = chunk(setup.search.step, params, targets, state, *ends)
        return np.asarray(info.l2)

    def bare():
        nonlocal bare_state
        for _ in range(CHUNK):
            bare_state, _ = bare_step(params, targets, bare_state)
        jax.block_until_ready(bare_state)

    functions = [in_chunk, matrix_product(dtype), bare]
    if against_torch:
        functions.append(torch_steps(setup, state, targets))
    first = [function() for function in functions]  # compiles them
    if against_torch:
        check_equal(
            "errors", first[-1], first[0], 1e-3 if dtype == "float32" and on_cpu() else 5e-2
        )

    before = evaluations(state)
    seconds, product_seconds, bare_seconds, *torch_seconds = in_turns(FLAGS.repeats, *functions)
    count = (evaluations(state) - before) / FLAGS.repeats
    products = count * step_operations(setup.network) / (2 * matrix_side() ** 3)
    figures = {
        "evaluations/s": np.median(count / seconds),
        "share of matrix rate": np.median(products * product_seconds / seconds),
        "chunk / bare steps": np.median(seconds / bare_seconds),
        "memory MB": peak_memory(chunk) / 1e6,
        "compile s": compiling,
    }
    if FLAGS.against_torch:
        figures |= dict.fromkeys(["torch / ours", "range"], "")
    return figures | (ratio("torch / ours", torch_seconds[0], seconds) if against_torch else {})


def torch_steps(setup, state, targets):
    """A function that does a chunk's steps in PyTorch and returns the errors (restarts, steps)."""
    import torch  # needed for nothing else
    import torch_stylegan

    torch.set_default_device("cpu" if on_cpu() else "cuda")
    latents, frozen, targets = jax.tree.map(np.asarray, (state.latents, state.frozen, targets))
    rates = np.asarray(learning_rates()(np.arange(CHUNK * (FLAGS.repeats + 1))))
    theirs = torch_stylegan.Search(setup.params, latents, frozen, targets, LOSS, rates)
    synthesize = jax.jit(jax.vmap(setup.exact.synthesize, (None, 0, 0)))
    images = synthesize(setup.params, latents, frozen)
    # An accelerator's float32 convolutions round to fewer bits, in both programs.
    check_equal("images", theirs.images(), images, 1e-4 if on_cpu() else 2e-2)
    return lambda: np.stack([theirs.step() for _ in range(CHUNK)], axis=1)


def check_equal(what, theirs, ours, tolerance):
    difference = np.abs(theirs - ours).max() / np.abs(ours).max()
    if not difference <= tolerance:
        sys.exit(f"benchmark: the {what} differ from PyTorch's by {difference:.1e}")


def scaling(name, restarts):
    setup = set_up(name, FLAGS.recipes[0])
    _, inputs = draw_inputs(setup)
    start = make_start(setup, np.resize(inputs, (restarts, *inputs.shape[1:])))
    warm_up(setup, start, FLAGS.slots)
    began, met = time.perf_counter(), 0
    for _, state in search(setup, start, restarts, FLAGS.slots):
        met += int((state.best.l2 <= EPS).sum())
    seconds = time.perf_counter() - began
    rounds = -(-restarts // FLAGS.slots)
    yield {
        "generator": name,
        "recipe": FLAGS.recipes[0],
        "restarts": restarts,
        "rounds": rounds,
        "met eps": met,
        "seconds": seconds,
        "seconds / round": seconds / rounds,
        "process MB": (process_memory() or math.nan) / 1e6,
    }


def slots(name, restarts):
    for recipe in FLAGS.recipes:
        if RECIPES[recipe].stop_at_eps:
            yield {
                "generator": name,
                "recipe": recipe,
                **time_slots(set_up(name, recipe), restarts),
            }


def time_slots(setup, restarts):
    targets = draw_inputs(setup)[1].repeat(restarts, axis=0)
    start = make_start(setup, targets)

    def streamed():
        return search_all(setup, start, len(targets), FLAGS.slots)

    def batched():
        for first in range(0, len(targets), FLAGS.slots):
            size = min(FLAGS.slots, len(targets) - first)
            search_all(setup, lambda numbers, k=first: start(numbers + k), size, FLAGS.slots)

    warm_up(setup, start, FLAGS.slots)
    state = streamed()
    images = render(setup, state.best.latents, state.frozen)
    accepted = (errors(setup, images, targets) <= EPS).sum()
    seconds, batch_seconds = in_turns(FLAGS.repeats, streamed, batched)
    return {
        "restarts": len(targets),
        "slots": FLAGS.slots,
        "mean steps": state.step.mean(dtype=float),
        "accepted/s": np.median(accepted / seconds),
        "accepted/s in batches": np.median(accepted / batch_seconds),
        **ratio("slots / batches", batch_seconds, seconds),
    }


def cores(name, restarts):
    devices = jax.local_device_count()
    for recipe in FLAGS.recipes:
        setup = set_up(name, recipe)
        targets = draw_inputs(setup)[1].repeat(restarts, axis=0)
        search_on = functools.partial(search_all, setup, make_start(setup, targets), len(targets))
        together = functools.partial(search_on, 2, devices)
        alone = functools.partial(search_on, FLAGS.slots)
        state, _ = together(), alone()
        seconds, seconds_alone = in_turns(FLAGS.repeats, together, alone)
        yield {
            "generator": name,
            "recipe": recipe,
            "restarts": len(targets),
            "cores": devices,
            "evaluations/s": np.median(evaluations(state) / seconds),
            **ratio("one device / cores", seconds_alone, seconds),
        }


def recipes(name, restarts):
    setups = [set_up(name, recipe) for recipe in FLAGS.recipes]
    truth, inputs = draw_inputs(setups[0])
    targets = inputs.repeat(restarts, axis=0)
    starts = [make_start(setup, targets) for setup in setups]
    found = {}

    def run(k):
        found[k] = search_all(setups[k], starts[k], len(targets), FLAGS.slots)

    for setup, start in zip(setups, starts, strict=True):
        warm_up(setup, start, FLAGS.slots)
    seconds = in_turns(FLAGS.repeats, *(functools.partial(run, k) for k in range(len(setups))))
    score, rates = realism(name), []
    for k, setup in enumerate(setups):
        figures = judge(setup, found[k], targets, score)
        rates.append(figures["accepted"] * len(targets) / seconds[k])
        yield {
            "generator": name,
            "recipe": FLAGS.recipes[k],
            "restarts": len(targets),
            "accepted/s": np.median(rates[k]),
            **ratio("over the first", rates[k], rates[0]),
            **figures,
            "score of the truth": float(score(truth).mean()),
        }


def judge(setup, state, targets, score):
    """Figures of the accepted restarts. The restarts of a face follow one another."""

    def by_face(array):
        return array.reshape(FLAGS.faces, -1, *array.shape[1:])

    latents = state.best.latents
    images = render(setup, latents, state.frozen)
    accepted = errors(setup, images, targets) <= EPS
    styles_of = jax.jit(jax.vmap(setup.generator.styles, (None, 0, 0)))
    styles = styles_of(setup.params, latents, state.frozen)
    alike = render(setup, *with_noise_of_first(latents, state.frozen))
    groups = [x[kept] for x, kept in zip(by_face(alike), by_face(accepted), strict=True)]
    return {
        "accepted": accepted.mean(),
        "evaluations / accepted": evaluations(state) / accepted.sum(),
        "score": score(images)[accepted].mean(dtype=float),
        "GEOCROSS": np.asarray(jax.vmap(geocross)(styles))[accepted].mean(dtype=float),
        "diversity": float(np.mean([diversity(group) for group in groups if len(group) > 1])),
    }


@contextlib.contextmanager
def command_inputs(name, recipe, restarts):
    """(setup, settings, folder) of the command: it upsamples the folder's `pictures`."""
    setup = set_up(name, recipe)
    with tempfile.TemporaryDirectory(dir=expanded(FLAGS.workdir, "--workdir")) as made:
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


def command(name, restarts):
    for recipe in FLAGS.recipes:
        with command_inputs(name, recipe, restarts) as (setup, settings, folder):
            settings = dataclasses.replace(settings, batch_size=FLAGS.slots)
            yield {"generator": name, "recipe": recipe, **time_command(setup, settings, folder)}


def time_command(setup, settings, folder):
    numbers, devices, done = itertools.count(), jax.local_device_count(), {}

    def whole():
        jax.clear_caches()  # as in another process
        output = folder / f"results{next(numbers)}"
        done["whole"] = pulse_jax.upsample(folder / "pictures", output, settings)

    def prepare():
        warm_up(setup, start, FLAGS.slots, len(jobs), devices)

    def alone():
        done["alone"] = search_all(setup, start, len(jobs), FLAGS.slots, devices)

    with used_cache(expanded(FLAGS.workdir, "--workdir") / "cache"):
        whole()
        jobs = command_jobs(done["whole"])
        start = command_start(setup, settings, jobs)
        alone()
        check_same(jobs, done["alone"])
        seconds, _, search_seconds = in_turns(FLAGS.repeats, whole, prepare, alone)
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
        raise ValueError("--mode=command: the search alone has other results than the command")


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
        process = subprocess.Popen([*command, f"--output_dir={output}"], **quiet)
        ended = False
        while not any(output.glob("*/hr_*.png")):
            if ended:
                raise ValueError("--mode=start: the command has ended without a result")
            time.sleep(0.01)
            ended = process.poll() is not None
        process.kill()
        process.wait()

    compiling = [*command, f"--output_dir={folder / 'first'}"]
    result = subprocess.run(compiling, capture_output=True, text=True)
    if result.returncode:
        raise ValueError(f"--mode=start: {result.stderr}")
    import_jax = [sys.executable, "-c", "import jax"]
    seconds, import_seconds = in_turns(
        FLAGS.repeats, first_result, functools.partial(subprocess.run, import_jax, check=True)
    )
    return {
        "restarts": FLAGS.faces * settings.restarts,
        "first result s": np.median(seconds),
        "import jax s": np.median(import_seconds),
        **ratio("first result / import jax", seconds, import_seconds),
    }


if __name__ == "__main__":
    door.run(main)
