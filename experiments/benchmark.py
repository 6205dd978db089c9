"""What the search costs, and what it finds in a second.

    python experiments/benchmark.py --restarts=1,8,32
    python experiments/benchmark.py --generators=stylegan256 --restarts=4 --against_torch
    python experiments/benchmark.py --generators=stylegan1024 --restarts=1 --against_torch
    python experiments/benchmark.py --generators=stylegan1024 --restarts=16 --against_torch \\
        --dtypes=float32,bfloat16  # on a GPU
    python experiments/benchmark.py --mode=scaling --restarts=1,8,16,32,64,128,256
    python experiments/benchmark.py --mode=slots
    python experiments/benchmark.py --mode=cores --recipes=fast --repeats=6
    python experiments/benchmark.py --mode=recipes

- steps, the default, measures the rate of steps with --restarts at once. An evaluation is one
  restart's image and gradient. "share of matrix rate" compares with products of square matrices of
  the same type (3072² on a CPU, 8192² elsewhere). It counts the operations of the original
  networks, even if ours need fewer. Other columns have the time of the search's compiled chunk over
  that of as many bare compiled steps, and what the chunk takes in memory and to compile. For
  trained generators, there are the restarts that a search has accepted in a second, and how much
  the error of their images, in float32 and 8 bits, exceeds what the search has seen.
  --against_torch (pip install -e ".[bench]") is for StyleGAN 1 and the recipe "original". It adds
  the time of the same steps in eager PyTorch, in float32 on the same device, over ours. Images and
  errors are checked to be equal before.
- scaling measures time and memory of more and more --restarts, in all. A round is --slots of them.
  Its seconds should stay the same, and so should the memory.
- slots compares the restarts accepted in a second if a slot goes to the next one as soon as it is
  free, and if batches of as many wait for their slowest.
- cores measures the time of a search on one device with --slots slots over that of the same search
  with two slots on each core of a CPU, as the command has it.
- recipes measures restarts accepted in a second, and how good their images are: the discriminator's
  score, which the true faces have too, GEOCROSS, and diversity, the mean difference of two restarts
  of one input, with the same noise maps.

Inputs are freshly drawn faces that the generator has never seen. A restart is accepted if its
image, as an 8-bit file holds it, downscales to the input with a mean squared error of at most 1e-3.
Searches aim at 0.8e-3, as the command does. Seconds are those of the search alone. What is compared
is timed in turns, and figures, also ratios, are medians over the turns. The range of n turns holds
the true median of a ratio with probability 1 − 2^(1−n), which is 97% for six.

Prints a table and writes it to MODE.csv, and the settings to MODE.json. Each command takes minutes
on two cores, or for 1024² a quarter of an hour. Other work on the machine spoils all but the
ratios.
"""

import functools
import itertools
import math
import sys
import time

from common import bench, door
from common.bench import (
    CHUNK,
    EPS,
    LOSS,
    RECIPES,
    draw_inputs,
    learning_rates,
    make_start,
    search,
    search_all,
    set_up,
    warm_up,
)
from common.metrics import diversity, realism, render, with_noise_of_first
from common.timing import in_turns, matrix_product, matrix_side, on_cpu, peak_memory, ratio

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pulse_jax.driver import advance
from pulse_jax.generators.stylegan import FUSED_FROM, StyleGAN
from pulse_jax.losses import geocross
from pulse_jax.upsampling.bar import process_memory

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(bench)
MODES = ("steps", "scaling", "slots", "cores", "recipes")
flags.DEFINE_enum("mode", "steps", MODES, "This is measured.")
flags.DEFINE_list("dtypes", "float32", "In steps, activations are float32 or bfloat16.")
flags.DEFINE_bool("against_torch", False, "Steps are compared with PyTorch's.")


def main():
    jax.config.update("jax_enable_compilation_cache", False)  # compiling is measured
    for dtype in FLAGS.dtypes:
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"--dtypes={dtype} is neither float32 nor bfloat16")
    modes = dict(zip(MODES, (steps, scaling, slots, cores, recipes), strict=True))
    return bench.measure(modes[FLAGS.mode])


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


def evaluations(state):
    """How many images with gradients all restarts have computed together."""
    return int(np.asarray(state.step).sum())


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
    l2 = errors(setup, render(setup.exact, setup.params, state.best.latents, state.frozen), targets)
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
    images = render(setup.exact, setup.params, state.best.latents, state.frozen)
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
    images = render(setup.exact, setup.params, latents, state.frozen)
    accepted = errors(setup, images, targets) <= EPS
    styles_of = jax.jit(jax.vmap(setup.generator.styles, (None, 0, 0)))
    styles = styles_of(setup.params, latents, state.frozen)
    alike = render(setup.exact, setup.params, *with_noise_of_first(latents, state.frozen))
    groups = [x[kept] for x, kept in zip(by_face(alike), by_face(accepted), strict=True)]
    return {
        "accepted": accepted.mean(),
        "evaluations / accepted": evaluations(state) / accepted.sum(),
        "score": score(images)[accepted].mean(dtype=float),
        "GEOCROSS": np.asarray(jax.vmap(geocross)(styles))[accepted].mean(dtype=float),
        "diversity": float(np.mean([diversity(group) for group in groups if len(group) > 1])),
    }


if __name__ == "__main__":
    door.run(main)
