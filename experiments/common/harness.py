"""What the experiments share: settings, held-out images, searches, tables and figures.

An experiment is made of cells, such as one scheme each, that compute the rows of a table:

    def main(folder):
        rows = [row for name in FLAGS.schemes for row in folder.rows(name, partial(measure, name))]
        folder.figure("ablation.png", draw(rows))

    if __name__ == "__main__":
        harness.run(main, {"quick": {"inputs": 4}, "full": {"inputs": 32}})

Its folder holds config.json (all flags and versions), a file of rows or arrays for each cell,
timings.csv and what it draws. The same command goes on with the cells that are missing.
--config=config.json --workdir=ANOTHER computes the same rows again.
"""

import csv
import importlib.metadata
import json
import platform
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from common import door, table
from common.data import checksums, read_all
from common.faces import album
from common.metrics import as_saved, render, with_noise_of_first

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax import images
from pulse_jax.console import check_devices, use_cores
from pulse_jax.files import counted, difference, expanded, npz, read_json, write
from pulse_jax.generators import checkpoint
from pulse_jax.plug_in import is_plug_in, number, source_digest
from pulse_jax.upsampling.results import as_csv

FLAGS = flags.FLAGS
flags.DEFINE_enum("preset", "quick", ["quick", "full"], "The preset sets how much is measured.")
flags.DEFINE_string(
    "workdir",
    None,
    "The results are written into this folder. Without it, it is runs/SCRIPT_PRESET.",
)
flags.DEFINE_string(
    "config", None, "The settings are taken from this config.json of an earlier run."
)
flags.DEFINE_string(
    "generator",
    "faces64",  # whose figures docs/results.md has; the command's default is another
    "This generator is searched: a bundled or published one's name, or a path.",
)
flags.DEFINE_string(
    "images", None, "The held-out images are in this folder. Without it, faces are freshly drawn."
)
flags.DEFINE_integer(
    "inputs", None, "This many held-out images are taken. Without it, the preset chooses.", 1
)
flags.DEFINE_integer(
    "restarts", None, "Each image is searched this many times. Without it, the preset chooses.", 1
)
flags.DEFINE_integer("steps", 100, "Each restart makes at most this many steps.", 1)
flags.DEFINE_integer("factor", 8, "Images are downscaled by this factor.", 1)
flags.DEFINE_float("eps", 1e-3, "A restart succeeds if its mean squared error is at most this.", 0)
flags.DEFINE_integer("slots", 16, "This many restarts are searched at once.", 1)
flags.DEFINE_integer(
    "seed",
    1000,
    "The images and restarts depend on this number. It must be no trainer's.",
    **door.SEED,
)

SEARCHES = [name for name, recipe in pulse_jax.RECIPES.items() if recipe.noise is None]
PLACES = "workdir", "config"  # settings that change no row
WEIGHTS = "SHA-256 of the generator"
PACKAGES = "jax", "jaxlib", "flax", "optax", "numpy", "scikit-image"


def run(experiment, presets):
    """Parse the flags, open the folder and call `experiment(folder)`.

    `presets` has flags and their values by the preset's name. A flag that is given comes first.
    """

    def main():
        use_cores()
        check_devices()
        settle(presets)
        door.check_numbers()  # those of --config, too
        name = Path(sys.argv[0]).stem
        path = expanded(FLAGS.workdir or f"runs/{name}_{FLAGS.preset}", "--workdir")
        with door.alone(path, "--workdir"):
            folder = Folder(path)
            experiment(folder)
            folder.write_timings()
        return path

    door.run(main)


def settle(presets):
    """Give flags the values of --config or of the preset, if the command line has none."""
    values = presets[FLAGS.preset]
    if FLAGS.config:
        try:
            values = read_json(expanded(FLAGS.config)).get("flags", {})
        except ValueError as error:
            raise ValueError(f"--config={error}") from error
    for name in values:
        if name not in FLAGS:
            raise ValueError(f"--config={FLAGS.config} is of another script: it has --{name}")
    for name, value in values.items():
        if FLAGS[name].using_default_value and name not in PLACES:
            FLAGS[name].value = value


def check_not_empty(name):
    """Raises ValueError if the list that a flag gives is empty."""
    if not FLAGS[name].value:
        raise ValueError(f"--{name}= names nothing")


class Folder:
    """Where an experiment's results lie. Raises ValueError if it holds those of other settings."""

    def __init__(self, path):
        self.path, self.timings = path, []
        settings, config, cells = configuration(), path / "config.json", path / "cells"
        cells.mkdir(parents=True, exist_ok=True)
        earlier = read_json(config) if any(cells.iterdir()) else settings
        told = difference(earlier["flags"], settings["flags"]) or difference(earlier, settings)
        if told:
            raise ValueError(f"--workdir={path} has results of {told}")
        write(config, json.dumps(settings, indent=2) + "\n")

    def rows(self, cell, compute):
        """The rows of one cell, as dicts: those of an earlier run, or else `compute()`.

        They are always read from the file, so that the floats, integers and strings are the same
        either way.
        """
        path = self.path / "cells" / f"{cell}.csv"
        if not path.is_file():
            began = time.perf_counter()
            rows = [dict(row) for row in compute()]
            self.timings.append({"cell": cell, "seconds": time.perf_counter() - began})
            write(path, as_csv(rows))
        with path.open(newline="", encoding="utf-8") as file:
            return [{k: number(v) for k, v in row.items()} for row in csv.DictReader(file)]

    def arrays(self, cell, compute):
        """The arrays of one cell, by name: those of an earlier run, or else `compute()`."""
        path = self.path / "cells" / f"{cell}.npz"
        if not path.is_file():
            began = time.perf_counter()
            content = npz(compute())
            self.timings.append({"cell": cell, "seconds": time.perf_counter() - began})
            write(path, content)
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    def table(self, name, rows):
        """Write a table as CSV, and print it in Markdown."""
        write(self.path / name, as_csv(rows))
        print(table.heading(rows[0]), *map(table.line, rows), sep="\n", flush=True)

    def figure(self, name, figure):
        """Write a figure of matplotlib, at 150 dots an inch."""
        temporary = self.path / f".{name}"
        figure.savefig(
            temporary, dpi=150, format=name.rpartition(".")[2], metadata={"Software": None}
        )
        temporary.replace(self.path / name)

    def picture(self, name, rows):
        """Write rows of images (H, W, 3) as one grid."""
        images.save_image(self.path / name, images.grid(rows))

    def write_timings(self):
        """Write the seconds of the cells that this run has computed into a file of their own."""
        if self.timings:
            write(self.path / "timings.csv", as_csv(self.timings))


def configuration():
    """All settings, and what else the numbers depend on."""
    own = [sys.modules["__main__"], sys.modules[__name__]]
    found = [flag for module in own for flag in FLAGS.get_key_flags_for_module(module)]
    values = {flag.name: flag.value for flag in found if flag.name not in PLACES}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "script": Path(sys.argv[0]).stem,
        "flags": values,
        WEIGHTS: fingerprint(FLAGS.generator),
        "SHA-256 of plug-ins": sources(),
        **checksums("images", "data_dir"),
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "versions": versions
        | {"python": platform.python_version(), "pulse_jax": pulse_jax.__version__},
    }


def sources():
    """The checksum of each file that a generator or a scheme of a user's own comes from."""
    variants = FLAGS.variants if "variants" in FLAGS else None
    named = [FLAGS.generator, *(variants or [])]
    own = [text for text in named if is_plug_in(text, pulse_jax.SCHEMES)]
    return {text.partition(":")[0]: source_digest(text) for text in own}


def fingerprint(name, flag="--generator"):
    """A checksum of the weights as stored, which needs no latent fit. A plug-in has none.

    Raises ValueError, which names the `flag`, if there is no such generator.
    """
    if is_plug_in(name):
        return None
    return checkpoint.digest(checkpoint.read_network(checkpoint.find(name, flag))[1])


# --- Images and searches. ---


def held_out(resolution, seed=None):
    """Images (N, R, R, 3) in [0, 1], with 8 bits, that the generator has never seen.

    These are freshly drawn faces, which for one seed, by default --seed, are the same at every
    resolution. With --images, they are the first of its images, averaged to that side. Those that
    can't be are left out, as by `read_all`. Raises ValueError if there are fewer.
    """
    count = FLAGS.inputs
    if FLAGS.images is None:
        keys = jax.random.split(jax.random.key(FLAGS.seed if seed is None else seed), count)
        return as_saved(album(keys, resolution))

    def read(path):
        picture = images.load_image(path)
        height, width, _ = picture.shape
        if height != width or height % resolution:
            raise ValueError(
                f"{path}: {width}×{height} pixels, not a square multiple of {resolution}"
            )
        return pulse_jax.operators.area(height // resolution)(jnp.asarray(picture))

    pictures = read_all(expanded(FLAGS.images, "--images"), read, count)
    if len(pictures) < count:
        found = counted(len(pictures), "image")
        raise ValueError(f"--images={FLAGS.images} holds {found} that can be taken, not {count}")
    return as_saved(np.stack(pictures))


def degraded(operator, batch):
    """D of each image, exactly."""
    return np.asarray(_degrade(operator, batch))


@partial(jax.jit, static_argnums=0)
def _degrade(operator, batch):
    return jax.vmap(operator)(batch)


def optimizer_of(recipe):
    """The optimiser of one of the command's recipes, for --steps."""
    schedule = pulse_jax.SCHEDULES["linear1cycledrop"](0.4, FLAGS.steps)
    base = pulse_jax.OPTIMIZERS[pulse_jax.RECIPES[recipe].opt_name](schedule)
    return pulse_jax.SCHEMES["rescale"](base)


def build(generator, operator, optimizer=None, geocross=0.05):
    """A search that aims a little below --eps, as the command does; by the original's recipe."""
    optimizer = optimizer or optimizer_of("original")
    loss = pulse_jax.Loss(geocross=geocross, eps=0.8 * FLAGS.eps)
    return pulse_jax.build(generator, operator, loss, optimizer)


class Found(NamedTuple):
    """Results of a search. Axis 0 counts images, and axis 1 the restarts of each."""

    images: np.ndarray  # (N, K, R, R, 3) the best iterates, with 8 bits
    l2: np.ndarray  # (N, K) mean squared error of these, by the exact operator
    state: pulse_jax.SearchState  # leaves (N K, ...)
    info: pulse_jax.SearchInfo  # leaves (N K, steps)
    start: dict  # of latents, leaves (N K, ...)


def search_all(generator, params, operator, search, targets, *, stop_at_eps=False, seed=None):
    """Searches for all targets (N, h, w, 3), --restarts of each, in one compiled program.

    Restart k of image i starts at a sample that depends on the seed, by default --seed, on i and on
    k alone, so that what is compared starts at the same points. Returns `Found`.
    """
    count, restarts = len(targets), FLAGS.restarts
    key = jax.random.fold_in(jax.random.key(FLAGS.seed if seed is None else seed), 1)
    per_image = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(count))
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(
        per_image, np.arange(restarts)
    )
    start = jax.jit(lambda keys: jax.vmap(search.init)(*jax.vmap(generator.sample)(keys)))
    targets = np.repeat(targets, restarts, axis=0)
    slots = -(-min(FLAGS.slots, len(targets)) // jax.local_device_count())
    first = start(keys.ravel())
    state, info = pulse_jax.run(
        search,
        params,
        targets,
        first,
        FLAGS.steps,
        slots=slots,
        stop_at_eps=stop_at_eps,
    )
    results = render(generator, params, state.best.latents, state.frozen)
    l2 = np.mean((degraded(operator, results) - targets) ** 2, axis=(1, 2, 3))
    results = results.reshape(count, restarts, *results.shape[1:])
    return Found(results, l2.reshape(count, restarts), state, info, first.latents)


def with_equal_noise(generator, params, found):
    """The images (N, K, R, R, 3) of `Found` once more, all with their image's first noise maps.

    So the restarts of an image differ by their styles alone.
    """
    by_image = jax.tree.map(
        lambda leaf: np.asarray(leaf).reshape(found.l2.shape + leaf.shape[1:]),
        (found.state.best.latents, found.state.frozen),
    )
    restarts = (jax.tree.map(lambda leaf, i=i: leaf[i], by_image) for i in range(len(found.l2)))
    alike = (with_noise_of_first(*one) for one in restarts)
    return np.stack([render(generator, params, *one) for one in alike])


# --- Figures. ---


def middles(side, columns):
    """Where the middles of so many columns are in an `images.grid` of images of this side."""
    blank = np.ones((side, side, 1), np.float32)
    step = images.grid([[blank, blank]]).shape[1] - side  # of a column and the gap beside it
    return (np.arange(columns) + 0.5) * step
