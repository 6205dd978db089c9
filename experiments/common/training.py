"""What the trainers share: flags, the loop that saves and stops, and figures."""

import contextlib
import csv
import functools
import json
import sys
import time
from collections import deque
from pathlib import Path

from common import door, metrics, reader
from common.data import checksums

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import flags
from tqdm import tqdm

from pulse_jax.console import logged_to_streams, noted_signals
from pulse_jax.files import difference, expanded, read_json, write
from pulse_jax.generators import checkpoint

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "output_dir", None, "The state, the samples and the generator are written into this folder."
)
flags.DEFINE_integer("resolution", 64, "The images have this side.", **door.SIDE)
flags.DEFINE_integer(
    "images", 250_000, "The run trains on this many images, from its start.", 1, 2**31 - 1
)
flags.DEFINE_integer(
    "batch_size", 16, "Each step takes this many images, on all devices together.", 4
)
flags.DEFINE_integer(
    "quality_images", 512, "The samples' quality is measured on this many images.", 64
)
flags.DEFINE_string(
    "reader", None, "The reader is in this file. Without it, it is reader.npz in the output folder."
)
flags.DEFINE_integer(
    "reader_steps", 2000, "The reader is trained in this many steps, if it isn't there yet.", 1
)
flags.DEFINE_enum(
    "export_dtype", "float32", ["float32", "bfloat16"], "Kernels in generator/ have this type."
)
flags.DEFINE_float(
    "save_minutes", 5.0, "This many minutes pass from one saved state to the next.", 0
)
flags.DEFINE_float(
    "stop_minutes", None, "The run saves its state and stops this many minutes after its start.", 0
)
flags.DEFINE_bool(
    "finish",
    False,
    "With --stop_minutes, the run ends then, and its learning rate falls towards that end.",
)
flags.DEFINE_integer("seed", 0, "All that is random depends on this number.", **door.SEED)

# What a run may go on with otherwise than it began.
OPEN = "output_dir", "images", "save_minutes", "stop_minutes", "finish", "export_dtype"
IN_FLIGHT = 4  # steps that the host may be ahead of the devices
RECENT = 100  # steps whose metrics a row averages
RANDOM = "start", "data", "steps", "quality", "reader", "teacher"  # each has a key of its own


def random_key(use):
    return jax.random.fold_in(jax.random.key(FLAGS.seed), RANDOM.index(use))


def stopwatch():
    """A function that tells the minutes since now."""
    began = time.perf_counter()
    return lambda: (time.perf_counter() - began) / 60


def claim(path, module):
    """Write the flags that a run must keep, which are the key flags of its script.

    Raises ValueError if its folder is of a run with others, and for flags that can't go together.
    """
    if FLAGS.finish and not FLAGS.stop_minutes:
        raise ValueError("--finish takes --stop_minutes")
    own = FLAGS.get_key_flags_for_module(module)
    config = {flag.name: flag.value for flag in own if flag.name not in OPEN}
    config |= checksums("data_dir")
    earlier = read_json(path) if path.is_file() else config
    if told := difference(earlier, config):
        raise ValueError(f"--output_dir={path.parent} holds a run of {told}")
    write(path, json.dumps(config, indent=2) + "\n")


def last_step():
    return -(-FLAGS.images // FLAGS.batch_size)


@contextlib.contextmanager
def saved_states(output):
    """Orbax's manager of the states in the output folder, out of which other runs are kept."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with (
        door.alone(output, "--output_dir"),
        ocp.CheckpointManager(output / "state", options=options) as manager,
    ):
        yield manager


def restored(manager, step, state):
    """The state that was saved after a step; `state` has its shapes."""
    return manager.restore(step, args=ocp.args.StandardRestore(state))


def run(manager, minutes, first, state, step, names, report):
    """Train from step `first` to the last, or as far as the time allows. Save every few minutes.

    `step(i, state, rate) → state, losses` gets a factor of the learning rate. Before each save,
    `report(state, row, final)` gets a row for metrics.csv, which says where the run is, and has the
    mean of each loss in `names` over the last steps that have it. So a run that is killed in its
    last report isn't taken for a finished one: it trains its last steps again. SIGINT and SIGTERM
    have the next step saved, without a report, and end the process.
    """
    script = Path(sys.argv[0]).stem
    last, recent, saved = last_step(), deque(maxlen=RECENT), (first, minutes())
    with logged_to_streams(f"{script}: ", str), noted_signals() as signals:
        for i in tqdm(range(first, last), initial=first, total=last, unit="step", mininterval=1):
            rate = np.float32(rate_factor(i / last, minutes()))
            state, losses = step(i, state, rate)
            recent.append(losses)
            if len(recent) >= IN_FLIGHT:
                jax.block_until_ready(recent[-IN_FLIGHT])
            now = minutes()
            stop = i + 1 == last or (FLAGS.stop_minutes is not None and now >= FLAGS.stop_minutes)
            due = stop or now - saved[1] >= FLAGS.save_minutes
            if not (due or signals):
                continue

            jax.block_until_ready(state)
            if stop or not signals:  # it takes up to a minute, which a signal may not leave
                rate = (i + 1 - saved[0]) * FLAGS.batch_size / (60 * (minutes() - saved[1]))
                row = {"images": (i + 1) * FLAGS.batch_size, "minutes": now}
                row |= {"images_per_second": rate} | means(names, recent)
                report(state, row, stop)
            checkpoint.check_room(Path(manager.directory), state)
            manager.save(i + 1, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
            saved = i + 1, minutes()
            if stop:
                return
            if signals:
                told = f"stopped after {(i + 1) * FLAGS.batch_size} of {FLAGS.images} images"
                told += "; the same command goes on from here"
                tqdm.write(f"{script}: {told}", file=sys.stderr)
                sys.exit(128 + signals[0])


def rate_factor(done, minutes):
    """The factor of the learning rate: 1, then falling to 0.1 over the run's last fifth."""
    if FLAGS.finish:
        done = max(done, minutes / FLAGS.stop_minutes)
    return 0.1 + 0.9 * min(1, max(0, (1 - done) / 0.2))


def means(names, rows):
    """The means over the rows that have a name, or NaN if none has."""
    found = {name: [float(row[name]) for row in rows if name in row] for name in names}
    return {name: float(np.mean(values)) if values else np.nan for name, values in found.items()}


def append_row(path, row):
    """Add a row to a CSV file, with a header if the file is new."""
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def all_batches(batch):
    """Images `batch(i)` of as many batches as quality is measured on, as 8-bit files hold them."""
    count = -(-FLAGS.quality_images // FLAGS.batch_size)
    return np.concatenate([metrics.as_saved(batch(i)) for i in range(count)])


def make_quality(output, train, held_out, labelled=None):
    """`quality(samples)` → figures of a generator's images (N, R, R, 3) in [0, 1].

    They are compared with as many of the training data. So are the held-out ones of `held_out()`
    before, for floor.csv. `labelled(key, i)` gives faces and their attributes, from which the
    reader learns. Images are then compared in its features, or else in those of fixed wavelets.
    """
    features = metrics.frechet_features
    if labelled:
        path = expanded(FLAGS.reader, "--reader") if FLAGS.reader else output / "reader.npz"
        weights = reader.stored(path, labelled, random_key("reader"), FLAGS.reader_steps)
        features = functools.partial(reader.features, weights)
    true = features(train)

    def quality(samples):
        found = features(samples)
        precision, recall = metrics.precision_recall(true, found)
        distance = float(metrics.frechet(true, found))
        return {"frechet": distance, "precision": precision, "recall": recall}

    if not (output / "floor.csv").is_file():
        pictures = held_out()
        append_row(output / "floor.csv", {"images": len(pictures), **quality(pictures)})
    return quality


def updated(state, gradient, optimizer, rate):
    """A state after one more step, but for its average. `rate` is a factor of --learning_rate."""
    updates, optimizer_state = optimizer.update(gradient, state.optimizer)
    updates = jax.tree.map(lambda u: -FLAGS.learning_rate * rate * u, updates)
    params = optax.apply_updates(state.params, updates)
    return state._replace(params=params, optimizer=optimizer_state, step=state.step + 1)


def averaged(average, params, step):
    """The moving average of parameters after a step. Early on, it is over a tenth of all steps."""
    memory = jnp.minimum(FLAGS.ema_images, 0.1 * step * FLAGS.batch_size + 1)
    return optax.incremental_update(params, average, 1 - 0.5 ** (FLAGS.batch_size / memory))


def export(folder, **networks):
    """Save networks, each (module, params), for the search, their kernels with --export_dtype."""

    def stored(path, leaf):  # nearly all is in the kernels, and the rest needs its digits
        return leaf.astype(FLAGS.export_dtype) if path[-1].key == "kernel" else leaf

    checkpoint.save(
        folder,
        **{
            name: (module, jax.tree_util.tree_map_with_path(stored, params))
            for name, (module, params) in networks.items()
        },
    )
