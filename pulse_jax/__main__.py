"""Upsample a folder of small pictures: for each, several high-resolution ones that downscale to it.

    pulse_jax                                    # the examples of the bundled generator
    pulse_jax --input_dir=small --output_dir=large --restarts=16

The flags of PULSE's run.py go by their own names; what differs is said at the flag.
"""

import csv
import importlib.metadata
import io
import json
import math
import platform
import secrets
import sys
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from PIL import Image
from tqdm import tqdm

import pulse_jax
from pulse_jax import images
from pulse_jax.files import one_line, write
from pulse_jax.generators import NOISE_TYPES, checkpoint, style_generator
from pulse_jax.generators.plug_in import is_plug_in, plug_in
from pulse_jax.losses import Loss, l2
from pulse_jax.search import STATUS

FLAGS = flags.FLAGS
flags.DEFINE_string("input_dir", None, "Folder of square pictures; default: the examples.")
flags.DEFINE_string("output_dir", "runs", "Folder for the results.")
flags.DEFINE_string("cache_dir", "~/.cache/pulse_jax", "Folder for compiled programs.")
flags.DEFINE_string(
    "generator",
    "faces64",
    "A bundled or published one's name, a folder or file that holds one, or module:callable.",
)
flags.DEFINE_enum("operator", "bicubic", list(pulse_jax.OPERATORS), "How pictures are downscaled.")
flags.DEFINE_enum("scheme", "rescale", list(pulse_jax.SCHEMES), "How latents keep to the sphere.")
flags.DEFINE_integer("input_size", None, "First bring larger pictures to this side.", 1)
flags.DEFINE_integer("restarts", 8, "Results for each picture.", lower_bound=1)
flags.DEFINE_alias("duplicates", "restarts")
flags.DEFINE_integer("batch_size", 8, "Restarts that are searched at once.", lower_bound=1)
flags.DEFINE_integer(
    "seed", None, "Of everything random; default: a new one, which is told.", 0, 2**32 - 1
)
flags.DEFINE_string(
    "loss_str",
    "100*L2+0.05*GEOCROSS",
    "Weighted sum of L2, L1 and GEOCROSS; default without style vectors: 100*L2.",
)
flags.DEFINE_float(
    "eps",
    1e-3,
    "Mean squared error, of values from 0 to 1, that is good enough to stop lowering.",
    0,
)
flags.DEFINE_enum(
    "noise_type", "trainable", NOISE_TYPES, "Noise maps: none, drawn once, or searched as well."
)
flags.DEFINE_integer("num_trainable_noise_layers", 5, "How many of them are searched.", 0)
flags.DEFINE_string("bad_noise_layers", None, "Those without noise, as in 3.17; default: the last.")
flags.DEFINE_bool("tile_latent", False, "Search one style for all layers instead of one for each.")
flags.DEFINE_enum("opt_name", "adam", list(pulse_jax.OPTIMIZERS), "Optimiser.")
flags.DEFINE_float("learning_rate", 0.4, "Largest learning rate.")
flags.DEFINE_integer("steps", 100, "Steps of each restart.", lower_bound=1)
flags.DEFINE_enum(
    "lr_schedule", "linear1cycledrop", list(pulse_jax.SCHEDULES), "Course of the learning rate."
)
flags.DEFINE_bool("stop_at_eps", False, "Stop a batch once all its restarts have met --eps.")
flags.DEFINE_bool("save_intermediate", False, "Also write the best image so far at every step.")


@dataclass(eq=False)
class Picture:
    """A picture to upsample, and what has been found for it so far."""

    path: Path
    target: np.ndarray  # (h, h, 3) in [0, 1]
    folder: Path  # for its results
    rows: list = field(default_factory=list)  # of results.csv, one for each restart done
    images: list = field(default_factory=list)  # those for the overview
    latents: list = field(default_factory=list)  # name → array, one for each restart done
    error: str = ""  # why its results can't be saved

    @property
    def side(self):
        return len(self.target)


def main():
    """The console script: flags in, files out."""
    for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__]):
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # what --help lists
    try:
        app.run(run, flags_parser=parse)
    except KeyboardInterrupt:
        sys.exit("pulse_jax: interrupted; the results so far are saved")


def parse(argv):
    """absl's parser, with errors in one line."""
    if {"-h", "-help", "--help"} & set(argv):
        print(__doc__, FLAGS.main_module_help(), sep="\n")
        sys.exit(0)
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"pulse_jax: {one_line(error)}")
    if len(rest) > 1:
        sys.exit(f"pulse_jax: {rest[1]!r} is no flag; pictures are named by --input_dir")
    return rest


def run(_):
    logging.set_verbosity(logging.WARNING)  # Orbax tells its steps
    seed = secrets.randbelow(2**32) if FLAGS.seed is None else FLAGS.seed
    output = Path(FLAGS.output_dir).expanduser()
    try:
        generator, params = make_generator()
        loss, optimizer = make_loss(generator), make_optimizer()
        pictures, failures = read_pictures(output, generator.resolution)
        prepare(output, configuration(seed, params))
    except (ValueError, OSError) as error:
        sys.exit(f"pulse_jax: {one_line(error)}")
    print(f"{FLAGS.generator}, seed {seed}: {len(pictures)} pictures × {FLAGS.restarts} restarts")

    batches = {side: list(batched(pictures, side)) for side in sorted({p.side for p in pictures})}
    steps = FLAGS.steps * sum(map(len, batches.values()))
    timings = []
    with tqdm(total=steps, unit="step", disable=not steps) as progress:
        for side, sized in batches.items():
            operator = pulse_jax.OPERATORS[FLAGS.operator](generator.resolution // side)
            search = make_search(generator, params, operator, loss, optimizer, seed, progress)
            for batch in sized:
                timings.append(search(batch))
                rows = [row for picture in pictures for row in picture.rows]
                for name, table in (("results.csv", rows), ("timings.csv", timings)):
                    complaint = attempt(write, output / name, as_csv(table))
                    failures += [complaint] if complaint else []
    failures += [picture.error for picture in pictures if picture.error]
    summarise(pictures, failures, output)
    if failures:
        sys.exit(1)


def attempt(function, *arguments):
    """Call it; if that can't read or write a file, print and return why, in one line."""
    try:
        function(*arguments)
        return ""
    except ValueError as error:
        complaint = one_line(error)
    except OSError as error:
        complaint = f"{error.filename2 or error.filename}: {one_line(error)}"
    tqdm.write(f"pulse_jax: {complaint}", file=sys.stderr)
    return complaint


def make_generator():
    """That of `--generator`, and its parameters; a StyleGAN with the flags' latent space."""
    if is_plug_in(FLAGS.generator):
        for name in ("noise_type", "num_trainable_noise_layers", "bad_noise_layers", "tile_latent"):
            if FLAGS[name].value != FLAGS[name].default:
                raise ValueError(f"--{name} is for StyleGANs: {FLAGS.generator} has no such thing")
        return plug_in(FLAGS.generator)
    network, params = checkpoint.load_network(FLAGS.generator)
    generator = style_generator(
        network,
        noise_type=FLAGS.noise_type,
        trainable_noise_layers=FLAGS.num_trainable_noise_layers,
        zero_noise_layers=parse_layers(FLAGS.bad_noise_layers, len(network.noise_shapes)),
        tile_latent=FLAGS.tile_latent,
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
    try:
        schedule = pulse_jax.SCHEDULES[FLAGS.lr_schedule](FLAGS.learning_rate, FLAGS.steps)
    except ValueError as error:
        raise ValueError(f"--learning_rate={FLAGS.learning_rate}: {error}") from error
    return pulse_jax.SCHEMES[FLAGS.scheme](pulse_jax.OPTIMIZERS[FLAGS.opt_name](schedule))


def read_pictures(output, resolution):
    """The pictures that can be used, and a line, printed too, for each that can't."""
    if FLAGS.input_dir is None:
        folder = checkpoint.bundled().get(FLAGS.generator, Path(FLAGS.generator).expanduser())
        folder /= "examples"
        if not folder.is_dir():
            raise ValueError(f"--generator={FLAGS.generator} has no examples: give --input_dir")
    else:
        folder = Path(FLAGS.input_dir).expanduser()
    paths, skipped = images.list_images(folder)
    for path in skipped:
        print(f"skipped {path}: not a picture")
    # Where pictures differ in their suffix alone, the folders of their results keep it.
    unique = len({path.stem for path in paths}) == len(paths)
    pictures, failures = [], []

    def read(path):
        target = read_target(path, resolution)
        pictures.append(Picture(path, target, output / (path.stem if unique else path.name)))

    failures = [complaint for path in paths if (complaint := attempt(read, path))]
    return pictures, failures


def read_target(path, resolution):
    """A picture (h, h, 3) whose side divides the generator's; `--input_size` brings it to one."""
    image = images.load_image(path)
    height, width, _ = image.shape
    if height != width:
        raise ValueError(f"{path}: {width}×{height} pixels, not square")
    size = FLAGS.input_size or height
    if height % size:
        raise ValueError(f"{path}: --input_size={size} does not divide its {height} pixels")
    if resolution % size:
        raise ValueError(
            f"{path}: its side of {size} pixels does not divide the generator's {resolution}; "
            f"--input_size brings larger pictures to one that does"
        )
    operator = pulse_jax.OPERATORS[FLAGS.operator]
    try:
        if size < height:
            print(f"{path}: brought from {height} to {size} pixels ({FLAGS.operator})")
            image = np.clip(operator(height // size)(jnp.asarray(image)), 0, 1)
        whole = jax.ShapeDtypeStruct((resolution, resolution, 3), jnp.float32)
        jax.eval_shape(operator(resolution // size).apply, whole)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return np.asarray(image)


def batched(pictures, side):
    """(picture, restart) pairs of one size, in lists of at most `--batch_size`."""
    pairs = [(p, k) for p in pictures if p.side == side for k in range(1, FLAGS.restarts + 1)]
    return [pairs[i : i + FLAGS.batch_size] for i in range(0, len(pairs), FLAGS.batch_size)]


def make_search(generator, params, operator, loss, optimizer, seed, progress):
    """A function that searches a batch of pairs, writes the results and returns the timing."""
    search = pulse_jax.build(generator, operator, loss, optimizer)
    draw = jax.jit(lambda keys: jax.vmap(search.init)(*jax.vmap(generator.sample)(keys)))
    synthesize = jax.jit(jax.vmap(generator.synthesize, (None, 0, 0)))
    degrade = jax.jit(jax.vmap(operator))

    def render(state):
        """The best images as 8-bit files hold them, and these downscaled."""
        hrs = synthesize(params, state.best.latents, state.frozen)
        hrs = np.rint(255 * np.clip(hrs, 0, 1)) / np.float32(255)  # NaN stays
        return hrs, np.asarray(degrade(hrs))

    def search_batch(batch):
        began, steps = time.perf_counter(), 0

        def on_chunk(_, state):
            nonlocal steps
            progress.update(int(state.step[0]) - steps)
            steps = int(state.step[0])
            if FLAGS.save_intermediate:
                for pair, hr, lr in zip(batch, *render(state), strict=False):  # padding is last
                    save(pair[0], save_intermediate, *pair, steps - 1, hr, lr)

        for picture, k in batch:
            if k == 1:
                save(picture, clear, picture.folder)
        # Padded, so that one compilation serves all batches.
        padded = batch + batch[-1:] * (FLAGS.batch_size - len(batch))
        state, _ = pulse_jax.run(
            search,
            params,
            np.stack([picture.target for picture, _ in padded]),
            draw(jnp.stack([restart_key(seed, picture.target, k) for picture, k in padded])),
            FLAGS.steps,
            chunk=1 if FLAGS.save_intermediate else 10,
            stop_at_eps=FLAGS.stop_at_eps,
            on_chunk=on_chunk,
        )
        progress.update(FLAGS.steps - steps)  # those not taken, after an early stop
        hrs, lrs = render(state)
        latents = by_name(state.frozen, "frozen") | by_name(state.best.latents, "latents")
        for row, (picture, k) in enumerate(batch):
            picture.latents.append({name: value[row] for name, value in latents.items()})
            picture.rows.append(record(picture, k, seed, state.best, row, lrs[row]))
            save(picture, save_restart, picture, k, hrs[row], lrs[row])
        return {
            "side": batch[0][0].side,
            "restarts": len(batch),
            "slots": FLAGS.batch_size,
            "steps": steps,
            "seconds": time.perf_counter() - began,
        }

    return search_batch


def by_name(tree, name):
    """The arrays of a tree by their keys; one that is the whole tree by `name`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keystr = jax.tree_util.keystr
    return {keystr(path, simple=True, separator="/") or name: np.asarray(x) for path, x in leaves}


def restart_key(seed, target, restart):
    """A key from the seed, the picture's 8-bit pixels and the restart's number alone."""
    pixels = zlib.crc32(images.to_uint8(target).tobytes())
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), pixels), restart)


def record(picture, restart, seed, best, slot, lr):
    """A row of results.csv. Success is measured on the image as saved: clipped, with 8 bits."""
    l2_saved = float(l2(lr, picture.target))
    return {
        "image": picture.path.name,
        "restart": restart,
        "seed": seed,
        "l2": float(best.l2[slot]),
        "l2_saved": l2_saved,
        "loss": float(best.loss[slot]),
        "best_step": int(best.step[slot]),
        "status": STATUS[int(pulse_jax.status(l2_saved, FLAGS.eps))],
    }


def save(picture, function, *arguments):
    """Write something of a picture; the first failure is its last, and spares the others."""
    picture.error = picture.error or attempt(function, *arguments)


def clear(folder):
    """Make a picture's folder, without the results of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("hr_*.png", "lr_*.png", "HR/*.png", "LR/*.png"):
        for path in folder.glob(pattern):
            path.unlink()


def save_restart(picture, restart, hr, lr):
    """A restart's image, also downscaled again; with the last one the overview and the latents."""
    if np.isfinite(hr).all():
        images.save_image(picture.folder / f"hr_{restart:02d}.png", hr)
        images.save_image(picture.folder / f"lr_{restart:02d}.png", lr)
        picture.images.append(hr)
    if restart == FLAGS.restarts:
        save_overview(picture, len(hr))
        arrays = {name: np.stack([z[name] for z in picture.latents]) for name in picture.latents[0]}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write(picture.folder / "latents.npz", buffer.getvalue())
        picture.images.clear()
        picture.latents.clear()


def save_overview(picture, size):
    """grid.png: the input, its bicubic enlargement, the results."""
    enlarged = images.resize_nearest(picture.target, size // picture.side)
    smooth = Image.fromarray(images.to_uint8(picture.target)).resize((size, size), Image.BICUBIC)
    row = [enlarged, np.asarray(smooth) / 255, *picture.images]
    images.save_image(picture.folder / "grid.png", images.grid([row]))


def save_intermediate(picture, restart, step, hr, lr):
    """The best image so far, named as in the reference: HR/NAME_00.png and LR/NAME_00.png."""
    name = picture.folder.name if FLAGS.restarts == 1 else f"{picture.folder.name}_{restart}"
    for kind, image in (("HR", hr), ("LR", lr)):
        if np.isfinite(image).all():
            (picture.folder / kind).mkdir(exist_ok=True)
            images.save_image(picture.folder / kind / f"{name}_{step:02d}.png", image)


def prepare(output, configuration):
    """The output folder with config.json, and the folder for compiled programs."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        write(output / "config.json", json.dumps(configuration, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"--output_dir={output} can't be written: {one_line(error)}") from error
    cache = Path(FLAGS.cache_dir).expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # only costs time
        print(f"--cache_dir={cache} can't be used: {one_line(error)}", file=sys.stderr)
    else:
        jax.config.update("jax_compilation_cache_dir", str(cache))


def configuration(seed, params):
    """What the results depend on."""
    packages = ["jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow"]
    versions = {name: importlib.metadata.version(name) for name in packages}
    own = FLAGS.get_key_flags_for_module(sys.modules[__name__])
    return {
        "flags": {flag.name: flag.value for flag in own},
        "seed": seed,
        "slots": FLAGS.batch_size,
        "generator": {"name": FLAGS.generator, "sha256": checkpoint.digest(params)},
        "devices": [str(device) for device in jax.devices()],
        "python": platform.python_version(),
        "versions": {"pulse_jax": pulse_jax.__version__} | versions,
    }


def summarise(pictures, failures, output):
    """A line for each picture, and one for all."""
    for picture in pictures:
        best = min((row["l2_saved"] for row in picture.rows), key=lambda x: (math.isnan(x), x))
        met = sum(row["status"] == STATUS[0] for row in picture.rows)
        missed = f", {best - FLAGS.eps:.2g} above --eps={FLAGS.eps:g}" if best > FLAGS.eps else ""
        counts = f"{met} of {FLAGS.restarts} converged"
        print(f"{picture.path.name}: {counts}, best l2 {best:.2e}{missed}")
    saved = sum(not picture.error for picture in pictures)
    failed = f", {len(failures)} failures" if failures else ""
    print(f"{saved} pictures done{failed}; results in {output}")


def as_csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    main()
