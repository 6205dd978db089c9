"""Upsample a folder of small pictures: for each, several high-resolution ones that downscale to it.

    pulse_jax                                    # the examples of the bundled generator
    pulse_jax --input_dir=small --output_dir=large --restarts=16

The flags of PULSE's run.py work under their own names.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import secrets
import shlex
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax.experimental import multihost_utils
from tqdm import tqdm

import pulse_jax
from pulse_jax import batch, images, operators, report, results, schemes, starts
from pulse_jax.console import check_devices, described, make_output_safe
from pulse_jax.files import counted, expanded, held, one_line, read_json, write
from pulse_jax.generators import NOISE_TYPES, SPACES, checkpoint, style_generator
from pulse_jax.generators.digests import network_digest
from pulse_jax.generators.plug_in import is_plug_in, plug_in, source_digest
from pulse_jax.losses import Loss
from pulse_jax.progress import Progress, compilation_told
from pulse_jax.results import Picture, Restart, attempt, save
from pulse_jax.search import STATUS, fitting_slots, is_out_of_memory

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "input_dir",
    None,
    "The square pictures in this folder are upsampled. Without it, the generator's examples are.",
)
flags.DEFINE_string("output_dir", "runs", "The results are written into this folder.")
flags.DEFINE_string(
    "generator",
    "faces64",
    "This generator makes the images: a bundled or published one's name, a folder or file that "
    "holds one, or module:callable of your own.",
)
flags.DEFINE_integer("input_size", None, "Larger pictures are first brought to this side.", 1)
flags.DEFINE_integer(
    "restarts",
    8,
    "Each picture gets this many results. The flag is also called --duplicates.",
    lower_bound=1,
)
flags.DEFINE_alias("duplicates", "restarts")
flags.DEFINE_float(
    "eps",
    1e-3,
    "A result is good enough if the mean squared difference between the picture and the result, "
    "downscaled, is at most this, for values from 0 to 1.",
    0,
)
flags.DEFINE_integer("steps", 100, "Each restart makes at most this many steps.", lower_bound=1)
flags.DEFINE_enum(
    "recipe",
    "fast",
    list(pulse_jax.RECIPES),
    "A recipe sets the defaults of other flags: "
    + "; ".join(
        f"{name} sets {', '.join(f'--{flag}={value}' for flag, value in values.items())}"
        for name, values in pulse_jax.RECIPES.items()
    )
    + ".",
)
flags.DEFINE_integer(
    "seed",
    None,
    "All that is random depends on this number. Without it, a new one is drawn and told.",
    0,
    2**32 - 1,
)
flags.DEFINE_string(
    "batch_size",
    "auto",
    "This many restarts are searched at once on each device. With auto, it is what fits into "
    "memory, up to 8 on a CPU, else up to 256 or 16 megapixels.",
)

flags.DEFINE_string(
    "operator",
    "bicubic",
    "Pictures are taken to have been degraded in this way, from left to right, as in "
    "blur:2,bicubic. A downscaler takes what is left of the factor. The choices are "
    f"{', '.join(pulse_jax.OPERATORS)}.",
)
flags.DEFINE_string(
    "value_range",
    None,
    "In grey pictures of more than 8 bits, LOW,HIGH are the values that are black and white. With "
    "auto, they are each picture's lowest and highest. Without it, the file says them.",
)

flags.DEFINE_string(
    "init_from",
    None,
    "Restarts begin at earlier results instead of at random. This is a latents.npz, its folder, or "
    "the output folder of a run, from which each picture takes the results of its own name.",
)
flags.DEFINE_integer(
    "pick",
    None,
    "All restarts begin at the earlier result of this number. Without it, each begins at its own.",
    1,
)
flags.DEFINE_float(
    "vary",
    0.0,
    "Each restart begins this many degrees away from the earlier result, in a random direction.",
    0,
    180,
)

flags.DEFINE_bool(
    "resume",
    True,
    "A run goes on with the results that the output folder holds. With --noresume, it must hold "
    "none.",
)
flags.DEFINE_bool(
    "save_intermediate", False, "The best image so far is also written, at every step."
)
flags.DEFINE_bool("save_video", False, "A video of each picture's searches is also written.")
flags.DEFINE_string("cache_dir", "~/.cache/pulse_jax", "Compiled programs are kept in this folder.")

flags.DEFINE_string(
    "loss_str",
    "100*L2+0.05*GEOCROSS",
    "The search lowers this weighted sum of L2, L1 and GEOCROSS. For generators without style "
    "vectors, the default is 100*L2.",
)
flags.DEFINE_enum(
    "opt_name",
    None,
    [*pulse_jax.OPTIMIZERS, *pulse_jax.SAMPLERS],
    "This optimiser lowers the loss. The samplers go with --lr_schedule=fixed --nostop_at_eps: "
    f"they are {' and '.join(pulse_jax.SAMPLERS)}.",
)
flags.DEFINE_float("temperature", 0.01, "A sampler has this temperature, in units of the loss.", 0)
flags.DEFINE_string(
    "scheme",
    None,
    "This keeps latents where they belong, on their spheres. The default is geodesic for langevin, "
    f"else rescale. The choices are {', '.join(pulse_jax.SCHEMES)}.",
)
flags.DEFINE_float("learning_rate", 0.4, "The learning rate is at most this.")
flags.DEFINE_enum(
    "lr_schedule",
    "linear1cycledrop",
    list(pulse_jax.SCHEDULES),
    "The learning rate takes this course.",
)
flags.DEFINE_bool("stop_at_eps", None, "A restart ends as soon as it has met --eps.")

flags.DEFINE_enum(
    "noise_type",
    "trainable",
    NOISE_TYPES,
    "Noise maps are left out (zero), drawn once (fixed), searched as well (trainable), or searched "
    "with a mean of 0 (normalised).",
)
flags.DEFINE_integer(
    "num_trainable_noise_layers", 5, "The noise maps of this many layers are searched.", 0
)
flags.DEFINE_string(
    "bad_noise_layers",
    None,
    "Layers of these numbers get no noise, as in 3.17. Without it, the last one gets none.",
)
flags.DEFINE_bool("tile_latent", False, "All layers share one style, which is searched.")
flags.DEFINE_bool("equal_start", None, "A restart begins with the same style in all layers.")
flags.DEFINE_enum(
    "space",
    "w",
    SPACES,
    "Styles are searched whitened by coordinate (w), whitened by their whole covariance (w_full), "
    "or as the mapping network's input (z).",
)
flags.DEFINE_bool("joint_sphere", False, "The styles of all layers are searched on one sphere.")
flags.DEFINE_bool(
    "exact_radius", False, "A restart begins at norm √d, instead of at that of its Gaussian sample."
)
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "The generator computes with this type."
)

flags.DEFINE_bool(
    "distributed", False, "The work is shared with other processes that write to the same folder."
)
flags.DEFINE_string(
    "coordinator_address", None, "Process 0 is at this host:port. Most clusters tell it themselves."
)
flags.DEFINE_integer(
    "num_processes", None, "There are this many processes. Most clusters tell it themselves.", 1
)
flags.DEFINE_integer(
    "process_id", None, "This process has this number. Most clusters tell it themselves.", 0
)

# What --help says before the flags that begin here.
HEADINGS = {
    "input_dir": "The flags that most people need, each with its default",
    "operator": "How pictures are read and degraded",
    "init_from": "Where restarts begin, if not at random",
    "resume": "What is kept",
    "loss_str": "How restarts are searched",
    "noise_type": "What is searched, for StyleGANs",
    "distributed": "Several processes",
}
STYLE_FLAGS = ("noise_type", "num_trainable_noise_layers", "bad_noise_layers", "tile_latent")
STYLE_FLAGS += ("equal_start", "space", "joint_sphere", "exact_radius", "dtype")
PROCESS = ("coordinator_address", "num_processes", "process_id")
# Beside the flags, what changes bytes: JAX's configuration, and variables that its libraries read.
CONFIGURATION = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable")
CONFIGURATION += ("jax_random_seed_offset", "jax_default_matmul_precision")
VARIABLES = ("LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
# What the results don't depend on.
INDIFFERENT = ("output_dir", "cache_dir", "resume", "distributed", *PROCESS)


def main():
    """The console script: flags in, files out."""
    try:
        app.run(run, flags_parser=parse)
    except KeyboardInterrupt:
        sys.exit("pulse_jax: interrupted; the same command does the rest")


def parse(argv):
    """absl's parser, with errors in one line."""
    if {"-h", "-help", "--help"} & set(argv):
        own = FLAGS.get_key_flags_for_module(sys.modules[__name__])
        own = [flag for flag in own if flag.name != "duplicates"]  # told at --restarts
        print(__doc__, described(own, HEADINGS), sep="\n")
        sys.exit(0)
    if "--version" in argv:
        print("pulse_jax", pulse_jax.__version__)
        sys.exit(0)
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"pulse_jax: {one_line(error)}")
    if len(rest) > 1:
        sys.exit(f"pulse_jax: {rest[1]!r} is no flag; pictures are named by --input_dir")
    for name, value in pulse_jax.RECIPES[FLAGS.recipe].items():
        FLAGS.set_default(name, value)
    _, suited = schemes.SUITED.get(FLAGS.opt_name, (None, ["rescale"]))
    FLAGS.set_default("scheme", suited[0])
    return rest


def run(_):
    logging.set_verbosity(logging.WARNING)  # Orbax tells its steps
    with contextlib.ExitStack() as at_end:
        upsample(at_end)


def upsample(at_end):
    """All of a run. From where its output folder is held, `at_end` lets it go."""
    output = expanded(FLAGS.output_dir)
    try:
        connect()
        check_devices()
        at_end.enter_context(used_cache(expanded(FLAGS.cache_dir)))
        at_end.enter_context(compilation_told())
        value_range = parse_range(FLAGS.value_range)
        degradation = told(make_degradation)
        generator, params = make_generator()
        check_start()
        loss, optimizer_for = make_loss(generator), make_optimizer()
        pictures, failures = read_pictures(
            output, generator, network_digest(params), degradation, value_range
        )
        if not pictures:
            sys.exit(1)  # why has been told
        earlier = open_output(output, at_end)
        seed = choose_seed(earlier)
        optimizer = optimizer_for(seed)
        searches = {}  # side of the pictures → operator, search
        for side in sorted({picture.side for picture in pictures}):
            operator = degradation(generator.resolution // side)
            searches[side] = operator, pulse_jax.build(generator, operator, loss, optimizer)
        config = configure(output, earlier, seed, generator, params, searches, pictures)
    except (ValueError, OSError) as error:
        sys.exit(f"pulse_jax: {one_line(error)}")
    counts = f"{counted(len(pictures), 'picture')} × {counted(FLAGS.restarts, 'restart')}"
    print(f"{FLAGS.generator}, seed {config['seed']}: {counts}")

    for picture in pictures:
        save(picture, results.take_up)
    usable = [picture for picture in pictures if not picture.error]
    share = [(i, k) for i in range(len(usable)) for k in range(1, FLAGS.restarts + 1)]
    share = batch.in_turn(share[jax.process_index() :: jax.process_count()])
    share = [Restart(usable[i], k, FLAGS.steps) for i, k in share]
    jobs = [job for job in share if job.number not in job.picture.rows]
    for job in jobs:
        save(job.picture, results.take_up_restart, job)
    if len(jobs) < len(share):
        done = counted(len(share) - len(jobs), "restart")
        print(f"{done} of {len(share)} done before: {len(jobs)} to go")
    stopped, timings = "", []
    try:
        with batch.noted_signals() as signals:
            timings = search_pictures(jobs, generator, params, searches, config, output, signals)
        if signals:
            done = sum(len(picture.rows) for picture in usable)
            total = counted(len(usable) * FLAGS.restarts, "restart")
            stopped = f"stopped when {done} of {total} were done"
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        stopped = f"out of memory with one restart at once: {one_line(error)[:200]}"
    if jax.process_count() > 1 and not stopped:
        multihost_utils.sync_global_devices("results")
    if jax.process_index() == 0:
        for picture in pictures:
            save(picture, results.take_up)  # what other processes have done
            finish(picture, generator, stopped)
            if (
                len(picture.rows) < FLAGS.restarts and not stopped
            ):  # told by the process that failed
                picture.error = picture.error or f"{picture.folder}: not all restarts are saved"
    failures += [picture.error for picture in pictures if picture.error]
    if jax.process_index() == 0:
        failures += conclude(output, pictures, failures, timings, config)
        summarise(pictures, failures, output)
    if stopped:
        print(f"pulse_jax: {stopped}; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + signals[0] if signals else 1)
    if failures:
        sys.exit(1)


def finish(picture, generator, stopped=False):
    """Write what is about all restarts of a picture, once they are done, or none follows."""
    if len(picture.rows) == FLAGS.restarts:
        save(picture, results.finish, generator.resolution, FLAGS.eps)
    elif stopped and picture.rows:
        save(picture, results.overview, generator.resolution, FLAGS.eps)


def conclude(output, pictures, failures, timings, config):
    """Write what is about all pictures; `failures`: of theirs. Returns what fails here."""
    rows = [row for picture in pictures for _, row in sorted(picture.rows.items())]
    told = []
    for name, table in (("results.csv", rows), ("timings.csv", timings)):
        if table:
            told.append(attempt(write, output / name, results.as_csv(table)))
    told.append(attempt(report.save, output, pictures, failures, config, repetition(config)))
    results.clear_temporary(output)
    return [line for line in told if line]


def repetition(config):
    """The command that makes the results once more, in another folder."""
    own = FLAGS.get_key_flags_for_module(sys.modules[__name__])
    apart = {*INDIFFERENT, "seed", "batch_size"}
    given = [flag for flag in own if not flag.using_default_value and flag.name not in apart]
    words = [flag.serialize() for flag in given]
    words += [f"--seed={config['seed']}", f"--batch_size={config['slots']}"]
    return shlex.join(["pulse_jax", *words, "--output_dir=repeated"])


def search_pictures(jobs, generator, params, searches, config, output, signals):
    """Search for all restarts, size by size, and save them; returns rows for timings.csv.

    Where a signal has been noted, it returns with the current chunk.
    """
    timings = []
    draw = batch.make_draw(generator, FLAGS)
    slots = config["slots"] * jax.local_device_count()
    with Progress(jobs, FLAGS.steps, FLAGS.stop_at_eps, slots) as progress:
        for side, (operator, search) in searches.items():
            sized = [job for job in jobs if job.picture.side == side]
            if not sized:
                continue
            found = batch.search_all(
                sized,
                config["slots"],
                generator=generator,
                params=params,
                operator=operator,
                search=search,
                draw=draw,
                settings=FLAGS,
                stop=lambda: bool(signals),
            )
            began, steps = time.perf_counter(), 0
            for slots, made, done in found:
                steps += made
                progress.note(made, done, batch.memory())
                if jax.process_count() == 1:
                    for job in done:
                        finish(job.picture, generator)
                if slots < config["slots"]:  # memory ran out
                    config["slots"] = slots
                    attempt(write_config, output, config)
            seconds = time.perf_counter() - began
            timings.append(
                {"side": side, "restarts": len(sized), "steps": steps, "seconds": seconds}
            )
            if signals:
                break
    return timings


def connect():
    """Join the other processes, if `--distributed`."""
    given = {name: FLAGS[name].value for name in PROCESS if FLAGS[name].value is not None}
    if not FLAGS.distributed:
        for name in given:
            raise ValueError(f"--{name}={given[name]} is for --distributed")
        return
    try:
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"--distributed: {one_line(error)}") from error


@contextlib.contextmanager
def used_cache(cache):
    """Keep compiled programs in a folder, even the quickest to compile: they are many.

    If that fails, which only costs time, it is told in a line, once for all programs.
    """

    def tell(reason):
        tqdm.write(f"--cache_dir={cache} can't be used: {one_line(reason)}", file=sys.stderr)

    def show(message, *others, **options):
        nonlocal failed
        _, of_cache, told = str(message).partition("persistent compilation cache entry for ")
        if not of_cache:
            shown(message, *others, **options)
        elif not failed:
            failed = True
            tell(told.partition(": ")[2])  # after the program's name

    failed = False
    with warnings.catch_warnings():
        shown, warnings.showwarning = warnings.showwarning, show
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            tell(error)
        else:
            jax.config.update("jax_compilation_cache_dir", str(cache))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        yield


def told(function, *arguments):
    """Call it, and print in a line each what is to be told of the pictures that it reads."""
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", images.ImageWarning)
        result = function(*arguments)
    for note in noted:
        print(note.message)
    return result


def parse_range(text):
    """What `load_image` takes, from --value_range."""
    if text in (None, "auto"):
        return text
    try:
        low, high = (float(value) for value in text.split(","))
        if math.isfinite(high - low) and low < high:
            return low, high
    except ValueError:
        pass
    raise ValueError(f"--value_range={text}: neither auto nor LOW,HIGH, with LOW below HIGH")


def make_degradation():
    """That of `--operator`, a function from the factor to the operator."""
    try:
        return operators.parse(FLAGS.operator)
    except ValueError as error:
        raise ValueError(f"--operator={FLAGS.operator}: {error}") from error


def make_generator():
    """That of `--generator`, and its parameters; a StyleGAN with the flags' latent space."""
    if is_plug_in(FLAGS.generator):
        for name in STYLE_FLAGS:
            if FLAGS[name].value != FLAGS[name].default:
                raise ValueError(f"--{name} is for StyleGANs: {FLAGS.generator} has no such thing")
        return plug_in(FLAGS.generator)
    network, params = checkpoint.load_network(FLAGS.generator, FLAGS.space)
    generator = style_generator(
        network,
        noise_type=FLAGS.noise_type,
        trainable_noise_layers=FLAGS.num_trainable_noise_layers,
        zero_noise_layers=parse_layers(FLAGS.bad_noise_layers, len(network.noise_shapes)),
        tile_latent=FLAGS.tile_latent,
        equal_start=FLAGS.equal_start,
        space=FLAGS.space,
        joint_sphere=FLAGS.joint_sphere,
        exact_radius=FLAGS.exact_radius,
        dtype=None if FLAGS.dtype == "float32" else FLAGS.dtype,
    )
    return generator, params


def make_loss(generator):
    """That of `--loss_str`. By default it lacks GEOCROSS if there are no styles to compare."""
    if generator.styles is None and FLAGS["loss_str"].using_default_value:
        FLAGS.loss_str = "100*L2"  # config.json tells it too
    loss = parse_loss(FLAGS.loss_str, FLAGS.eps)
    if generator.styles is None and loss.needs_styles:
        raise ValueError(
            f"--loss_str={FLAGS.loss_str}: GEOCROSS compares style vectors, and {FLAGS.generator} "
            f"has none"
        )
    return loss


def parse_loss(text, eps):
    """A `Loss` from the reference's notation: 100*L2+0.05*GEOCROSS."""
    weights = {"l2": 0.0, "l1": 0.0, "geocross": 0.0}
    if not math.isfinite(eps):
        raise ValueError(f"--eps={eps}: not finite")
    try:
        for term in text.split("+"):
            weight, _, name = term.rpartition("*")
            weights[name.strip().lower()] += float(weight or 1)
        # Aim a little lower: clipping and rounding to 8 bits may raise the error of what is saved.
        return Loss(**weights, eps=0.8 * eps)
    except KeyError:
        raise ValueError(f"--loss_str={text}: {name!r} is none of L2, L1, GEOCROSS") from None
    except ValueError as error:
        raise ValueError(f"--loss_str={text}: {error}") from None


def parse_layers(text, layers):
    """Layer numbers from the reference's notation, 3.17, those that exist; None stays None."""
    if text is None:
        return None
    try:
        numbers = {int(number) for number in text.split(".") if number}
    except ValueError:
        raise ValueError(f"--bad_noise_layers={text}: not numbers with dots between") from None
    missing = numbers - set(range(layers))
    if missing:
        print(f"--bad_noise_layers={text}: there is no layer {max(missing)}, but {layers} in all")
    return numbers - missing


def make_optimizer():
    """That of the flags, which are checked here, as a function of the seed."""
    try:
        schedule = pulse_jax.SCHEDULES[FLAGS.lr_schedule](FLAGS.learning_rate, FLAGS.steps)
    except ValueError as error:
        raise ValueError(f"--learning_rate={FLAGS.learning_rate}: {error}") from error
    try:
        scheme = schemes.parse(FLAGS.scheme)
    except ValueError as error:
        raise ValueError(f"--scheme={FLAGS.scheme}: {error}") from error
    name = FLAGS.opt_name
    if name == "pcn" and not 0 < FLAGS.learning_rate <= 1:
        raise ValueError(f"--learning_rate={FLAGS.learning_rate}: that of pcn is in (0, 1]")

    def make(seed):
        if name not in pulse_jax.SAMPLERS:
            return scheme(pulse_jax.OPTIMIZERS[name](schedule))
        # Each restart's noise also depends on where it starts.
        key = jax.random.key(seed)
        return scheme(pulse_jax.SAMPLERS[name](schedule, FLAGS.temperature, key))

    try:
        make(0)
    except ValueError as error:
        raise ValueError(f"--opt_name={name}, --scheme={FLAGS.scheme}: {error}") from error
    return make


def read_pictures(output, generator, networks, degradation, value_range):
    """The pictures that can be used, and a line, printed too, for each that can't.

    `networks`: the digest of the generator's.
    """
    if FLAGS.input_dir is None:
        folder = checkpoint.bundled().get(FLAGS.generator, expanded(FLAGS.generator))
        folder /= "examples"
        if not folder.is_dir():
            raise ValueError(f"--generator={FLAGS.generator} has no examples: give --input_dir")
    else:
        folder = expanded(FLAGS.input_dir)
    paths, skipped = images.list_images(folder)
    for path in skipped:
        print(one_line(f"skipped {path}: not a picture"))
    # The folder of a picture's results keeps its suffix, where its name would else be taken.
    taken = Counter(path.stem for path in paths)
    taken.update([*results.OF_THE_RUN, *(path.name for path in paths)])
    pictures, unsigned = [], []

    def read(path):
        target = read_target(path, generator.resolution, degradation, value_range)
        name = path.name if taken[path.stem] > 1 else path.stem
        variance = operators.variance(degradation(generator.resolution // len(target)), target)
        if variance <= FLAGS.eps:
            faint = (
                f"with its variance of {variance:.2g}, an image of one colour would converge too"
            )
            print(
                one_line(f"{path} is faint: {faint}; a smaller --eps than {FLAGS.eps:g} asks more")
            )
        start = None
        if FLAGS.init_from is not None:
            start, signed = read_start(name, generator, networks)
            unsigned.extend([] if signed else [path])
        pictures.append(Picture(path, target, variance, output / name, networks, start))

    failures = [complaint for path in paths if (complaint := attempt(read, path))]
    if unsigned:
        told = f"--init_from={FLAGS.init_from} doesn't tell the generator that it is of"
        print(f"{told}: taken for {FLAGS.generator}'s")
    return pictures, failures


def check_start():
    """That the flags about it go together, for all pictures."""
    if not math.isfinite(FLAGS.vary):
        raise ValueError(f"--vary={FLAGS.vary}: not finite")
    for name in ("pick", "vary"):
        if FLAGS[name].value and FLAGS.init_from is None:
            raise ValueError(f"--{name}={FLAGS[name].value} is for --init_from")
    if FLAGS.init_from is not None and not expanded(FLAGS.init_from).exists():
        raise ValueError(f"--init_from={FLAGS.init_from}: no such file or folder")
    if FLAGS.pick and not FLAGS.vary and FLAGS.restarts > 1:
        raise ValueError(
            f"--pick={FLAGS.pick}: all --restarts={FLAGS.restarts} would be the same; "
            f"take --restarts=1, or --vary"
        )
    if FLAGS.init_from is None:
        return
    given = expanded(FLAGS.init_from).absolute()
    configs = [folder / "config.json" for folder in (given, *given.parents[:2])]
    config = next((path for path in configs if path.is_file()), None)
    space = read_json(config).get("--space", FLAGS.space) if config else FLAGS.space
    if space != FLAGS.space:
        told = f"--init_from={FLAGS.init_from} has searched"
        raise ValueError(f"{told} --space={space}, not {FLAGS.space}")


def read_start(name, generator, networks):
    """(latents, frozen) of the restarts that `--init_from` has for a picture.

    And whether their file tells that they are of these `networks`.
    """
    given = expanded(FLAGS.init_from)
    choices = [given / "latents.npz", given / name / "latents.npz"] if given.is_dir() else [given]
    path = next((choice for choice in choices if choice.is_file()), choices[-1])
    start, found = starts.read_latents(path, generator)
    starts.check_networks(path, found, networks)
    count = len(jax.tree.leaves(start)[0])
    if count < (FLAGS.pick or FLAGS.restarts):
        flag = f"--pick={FLAGS.pick}" if FLAGS.pick else f"--restarts={FLAGS.restarts}"
        there = counted(count, "restart")
        raise ValueError(f"{flag}: {path} holds {there}; with --pick all start from one")
    return start, found is not None


def read_target(path, resolution, degradation, value_range):
    """A picture (h, h, 3) whose side divides the generator's; `--input_size` brings it to one.

    It is downscaled as `--operator` downscales, or with bicubic if that doesn't.
    """
    image = told(images.load_image, path, value_range)
    height, width, _ = image.shape
    size = FLAGS.input_size or height
    if height != width:
        fitting = fitting_sides(resolution, degradation)
        raise ValueError(f"{path}: {width}×{height} pixels, not square{fitting}")
    if height % size:
        fitting = fitting_sides(resolution, degradation, height)
        side = counted(height, "pixel")
        raise ValueError(f"{path}: --input_size={size} does not divide its {side}{fitting}")
    if resolution % size:
        fitting = fitting_sides(resolution, degradation)
        raise ValueError(
            f"{path}: its side of {size} pixels does not divide the generator's {resolution}"
            f"{fitting}; --input_size brings larger pictures to one that does"
        )
    links = [link.partition(":")[0] for link in FLAGS.operator.split(",")]
    name = next((link for link in links if link in operators.DOWNSCALERS), "bicubic")
    try:
        if size < height:
            print(one_line(f"{path}: brought from {height} to {counted(size, 'pixel')} ({name})"))
            image = np.clip(operators.DOWNSCALERS[name](height // size)(jnp.asarray(image)), 0, 1)
        return operators.discard_unseen(degradation(resolution // size), np.asarray(image))
    except ValueError as error:
        fitting = fitting_sides(resolution, degradation)
        raise ValueError(f"{path}: --operator={FLAGS.operator}: {error}{fitting}") from error


@functools.cache
def fitting_sides(resolution, degradation, whole=0):
    """The end of a message: which sides pictures can have; of those, which divide `whole`."""
    image = jax.ShapeDtypeStruct((resolution, resolution, 3), np.float32)

    def fits(side):
        try:
            jax.eval_shape(degradation(resolution // side).apply, image)
            return True
        except ValueError:
            return False

    divisors = [side for side in range(1, resolution + 1) if resolution % side == 0]
    sides = [str(side) for side in divisors if whole % side == 0 and fits(side)]
    return f"; sides of {', '.join(sides)} pixels fit" if sides else ""


def open_output(output, at_end):
    """Hold the output folder, and read its config.json, {} if it has no results.

    Raises ValueError if the folder can't be used, or another run does.
    """
    try:
        if jax.process_index() == 0:
            at_end.enter_context(held(output))
    except ValueError as error:
        raise ValueError(f"--output_dir={output}: {error}") from error
    except OSError as error:
        raise ValueError(f"--output_dir={output} can't be written: {one_line(error)}") from error
    path = output / "config.json"
    try:
        has_results = any(any(output.glob(f"*/{kind}")) for kind in ("results.csv", "parts/*"))
        return read_json(path) if has_results and path.is_file() else {}
    except OSError as error:
        raise ValueError(f"--output_dir={output} can't be read: {one_line(error)}") from error


def choose_seed(earlier):
    """That of the flags, of an earlier run, or a new one; for all processes that of the first."""
    seed = secrets.randbelow(2**32) if FLAGS.seed is None else FLAGS.seed
    return agreed(earlier.get("seed", seed))


def agreed(number):
    """What process 0 has."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.uint32(number)))


def configure(output, earlier, seed, generator, params, searches, pictures):
    """All that the results depend on, also written to config.json.

    What the folder has had `earlier` must agree; the number of slots, where it is left open, is as
    before while a search is under way. Raises ValueError, naming the difference.
    """
    own = FLAGS.get_key_flags_for_module(sys.modules[__name__])
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")
    config = {f"--{flag.name}": flag.value for flag in own if flag.name not in INDIFFERENT}
    config["SHA-256 of the generator"] = checkpoint.digest(params)
    for link in FLAGS.operator.split(","):
        name, _, file = link.partition(":")
        if name == "mask" and Path(file).is_file():
            config[f"SHA-256 of {file}"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    if is_plug_in(FLAGS.generator):
        config["SHA-256 of the plug-in"] = source_digest(FLAGS.generator)
    config["device"] = jax.devices()[0].device_kind
    config |= {name.upper(): jax.config.values[name] for name in CONFIGURATION}
    config |= {name: os.environ.get(name) for name in VARIABLES}
    config["XLA_FLAGS"] = xla_flags()
    config["pulse_jax"] = pulse_jax.__version__
    config |= {name: importlib.metadata.version(name) for name in packages}
    if earlier and not FLAGS.resume:
        raise ValueError(f"--noresume: --output_dir={output} holds results already")
    for name, value in config.items():
        if earlier and earlier.get(name) != value:
            told = f"other settings: {name} was {earlier.get(name)}, not {value}"
            if name not in earlier:
                told = f"an older version, which didn't note {name}"
            raise ValueError(f"--output_dir={output} holds results of {told}")
    slots = earlier.get("slots") if any(output.glob("*/parts/*")) else None
    slots = agreed(slots or choose_slots(generator, params, searches, pictures))
    FLAGS.seed = seed  # from here on, what restarts are drawn with
    config |= {"seed": seed, "slots": slots}
    write_config(output, config)
    return config


def xla_flags():
    """Those of the variable XLA_FLAGS that may change bytes: not where XLA tells what it does.

    Nor, as with devices that are there, how many a CPU is divided into.
    """
    without = ("--xla_dump_", "--xla_force_host_platform_device_count=")
    given = os.environ.get("XLA_FLAGS", "").split()
    return " ".join(flag for flag in given if not flag.startswith(without)) or None


def write_config(output, config):
    if jax.process_index() == 0:
        try:
            write(output / "config.json", json.dumps(config, indent=2) + "\n")
        except OSError as error:
            raise ValueError(
                f"--output_dir={output} can't be written: {one_line(error)}"
            ) from error


def choose_slots(generator, params, searches, pictures):
    """The number that `--batch_size` gives; auto: what fits, no more than needed or worthwhile.

    A CPU gains nothing from more than a few, and its first results come later. Few slots of a small
    generator fit anywhere: the second that it takes to find that out is saved.
    """
    if FLAGS.batch_size != "auto":
        if not (FLAGS.batch_size.isdecimal() and int(FLAGS.batch_size)):
            raise ValueError(f"--batch_size={FLAGS.batch_size}: neither auto nor at least 1")
        return int(FLAGS.batch_size)
    on_cpu = jax.default_backend() == "cpu"
    worthwhile = 8 if on_cpu else min(256, max(1, 2**24 // generator.resolution**2))
    needed = -(-FLAGS.restarts * len(pictures) // jax.device_count())
    most = min(needed, worthwhile)
    if most * generator.resolution**2 <= 8 * 64**2:
        return most
    search = searches[pictures[0].side][1]  # sizes hardly matter: the generator takes the memory
    state = jax.eval_shape(lambda key: search.init(*generator.sample(key)), jax.random.key(0))
    target = jax.ShapeDtypeStruct(pictures[0].target.shape, np.float32)
    return fitting_slots(search, params, target, state, most, chunk=batch.chunk(FLAGS))


def summarise(pictures, failures, output):
    """A line for each picture, and one for all."""
    for picture in pictures:
        rows = picture.rows.values()
        if not rows:
            continue
        best = min((float(row["l2_saved"]) for row in rows), key=lambda x: (math.isnan(x), x))
        met = sum(row["status"] == STATUS[0] for row in rows)
        missed = f", {best - FLAGS.eps:.2g} above --eps={FLAGS.eps:g}" if best > FLAGS.eps else ""
        counts = f"{met} of {len(rows)} converged"
        print(one_line(f"{picture.path.name}: {counts}, best l2 {best:.2e}{missed}"))
    done = [p for p in pictures if len(p.rows) == FLAGS.restarts and not p.error]
    failed = f", {counted(len(failures), 'failure')}" if failures else ""
    page = output / "index.html"
    page = page if page.is_file() else output
    print(f"{counted(len(done), 'picture')} done{failed}; open {page} to see the results")


if __name__ == "__main__":
    make_output_safe()
    main()
