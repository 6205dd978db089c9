"""What benchmarks of the search share: flags, what is searched, and their tables.

A benchmark has modes, which are functions that yield rows for one generator and one number of
restarts:

    def main():
        return bench.measure({"steps": steps, "slots": slots}[FLAGS.mode])

    if __name__ == "__main__":
        door.run(main)

Its folder holds MODE.csv, and MODE.json with the settings and versions.
"""

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from common import door, table
from common.faces import album
from common.metrics import as_saved

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax.console import use_cores
from pulse_jax.files import expanded, write
from pulse_jax.generators import checkpoint
from pulse_jax.generators.stylegan import StyleGAN
from pulse_jax.upsampling.results import as_csv

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
flags.DEFINE_list(
    "generators",
    "faces64",  # whose figures docs/costs.md has
    "These bundled generators, or folders that hold one, are measured. stylegan256 and the like "
    "are StyleGAN 1 with the official channels and random weights, where no trained one is needed.",
)
flags.DEFINE_list(
    "recipes",
    list(RECIPES),
    f"Of {', '.join(RECIPES)}, these are measured. Ratios are to the first.",
)
flags.DEFINE_list(
    "restarts", "8", "So many are searched for each face, unless the mode says otherwise."
)
flags.DEFINE_integer(
    "slots", 8, "So many are searched at once, unless the mode says otherwise.", lower_bound=1
)
flags.DEFINE_integer("faces", 16, "This many faces are freshly drawn.", lower_bound=1)
flags.DEFINE_integer("steps", 100, "Each restart makes at most this many steps.", lower_bound=1)
flags.DEFINE_integer("repeats", 5, "This many turns are timed.", lower_bound=1)
flags.DEFINE_integer(
    "seed", 1000, "Faces and restarts depend on this number. It must be no trainer's.", **door.SEED
)
flags.DEFINE_string(
    "workdir", None, "The results are written into this folder. Without it, it is runs/SCRIPT."
)


def workdir():
    """The folder of the results, which is made."""
    name = Path(sys.argv[0]).stem
    folder = expanded(FLAGS.workdir or f"runs/{name}", "--workdir")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def measure(mode):
    """Print and write the rows that `mode(generator, restarts)` yields. Returns where they are."""
    use_cores()  # `search` takes one of them, if it isn't given more
    for recipe in FLAGS.recipes:
        if recipe not in RECIPES:
            raise ValueError(f"--recipes={recipe} is none of {', '.join(RECIPES)}")
    counts = door.whole_numbers("restarts")
    folder, rows = workdir(), []
    for name in FLAGS.generators:
        for restarts in counts:
            for row in mode(name, restarts):
                if not rows:
                    print(table.heading(row))
                print(table.line(row), flush=True)
                rows.append(row)
                settings = json.dumps(configuration(), indent=2) + "\n"
                write(folder / f"{FLAGS.mode}.json", settings)
                write(folder / f"{FLAGS.mode}.csv", as_csv(rows))
    return folder


def configuration():
    packages = ["jax", "jaxlib", "flax", "optax", "numpy", *{"torch"}.intersection(sys.modules)]
    own = FLAGS.get_key_flags_for_module(sys.modules["__main__"])
    return {
        "flags": {flag.name: flag.value for flag in own},
        "devices": [device.device_kind for device in jax.devices()],
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


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
