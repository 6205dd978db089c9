"""Upsample a folder of small pictures: for each, several high-resolution ones that downscale to it.

    pulse_jax                                    # the bundled examples
    pulse_jax --input_dir=small --output_dir=large --restarts=16

Every flag of the reference's run.py is taken, with its meaning.
"""

import csv
import importlib.metadata
import io
import json
import os
import platform
import secrets
import sys
import time
import zlib
from collections import Counter
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
from pulse_jax.generators import NOISE_TYPES, checkpoint, style_generator
from pulse_jax.losses import Loss, l2
from pulse_jax.search import STATUS

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "input_dir", None, "Folder of square pictures; by default the generator's examples."
)
flags.DEFINE_string("output_dir", "runs", "Folder for the results.")
flags.DEFINE_string(
    "cache_dir",
    "~/.cache/pulse_jax",
    "Folder for compiled programs, so that the next run starts fast.",
)
flags.DEFINE_string("generator", "faces64", "A bundled generator, or a folder that holds one.")
flags.DEFINE_enum("operator", "bicubic", list(pulse_jax.OPERATORS), "How pictures are downscaled.")
flags.DEFINE_enum(
    "scheme", "rescale", list(pulse_jax.SCHEMES), "How latents are kept on the sphere."
)
flags.DEFINE_integer("input_size", None, "Bring larger pictures to this side first.", lower_bound=1)
flags.DEFINE_integer("restarts", 8, "Results for each picture.", lower_bound=1)
flags.DEFINE_alias("duplicates", "restarts")
flags.DEFINE_integer("batch_size", 8, "Restarts that are searched at once.", lower_bound=1)
flags.DEFINE_integer(
    "seed", None, "Of everything random; drawn and told if not given.", 0, 2**32 - 1
)
flags.DEFINE_string("loss_str", "100*L2+0.05*GEOCROSS", "Weighted sum of L2, L1 and GEOCROSS.")
flags.DEFINE_float("eps", 1e-3, "A result with a mean squared error up to this is a success.", 0)
flags.DEFINE_enum("noise_type", "trainable", NOISE_TYPES, "What the noise maps are.")
flags.DEFINE_integer("num_trainable_noise_layers", 5, "Noise maps that are searched.", 0)
flags.DEFINE_string(
    "bad_noise_layers", None, "Layers without noise, as in 3.17; by default the generator's last."
)
flags.DEFINE_bool("tile_latent", False, "Search one style for all layers instead of one for each.")
flags.DEFINE_enum("opt_name", "adam", list(pulse_jax.OPTIMIZERS), "Optimiser.")
flags.DEFINE_float("learning_rate", 0.4, "Its largest learning rate.")
flags.DEFINE_integer("steps", 100, "Steps of each restart.", lower_bound=1)
flags.DEFINE_enum("lr_schedule", "linear1cycledrop", list(pulse_jax.SCHEDULES), "Learning rate.")
flags.DEFINE_bool("stop_at_eps", False, "Stop a batch once all its restarts have met eps.")
flags.DEFINE_bool("save_intermediate", False, "Write the best image so far after every step.")


@dataclass
class Picture:
    """A picture to upsample, and what has been found for it, by restart."""

    path: Path
    name: str  # of its folder in the output
    target: np.ndarray  # (h, w, 3) in [0, 1]
    results: dict = field(default_factory=dict)  # (image, downscaled image), if they are finite
    latents: dict = field(default_factory=dict)  # name → array, searched and frozen ones
    rows: dict = field(default_factory=dict)  # of results.csv

    @property
    def side(self):
        return self.target.shape[0]


def main():
    """The console script: flags in, files out."""
    for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__]):
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # what --help lists
    app.run(run, flags_parser=parse)


def parse(argv):
    """absl's parser, with errors in one line."""
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"pulse_jax: {one_line(error)}")
    if len(rest) > 1:
        sys.exit(f"pulse_jax: {rest[1]!r} is no flag; pictures are named by --input_dir")
    return rest


def run(_):
    logging.set_verbosity(logging.WARNING)  # Orbax tells its steps
    output = Path(FLAGS.output_dir)
    seed = secrets.randbelow(2**32) if FLAGS.seed is None else FLAGS.seed
    try:
        network, params = checkpoint.load_network(FLAGS.generator)
        generator = style_generator(
            network,
            noise_type=FLAGS.noise_type,
            trainable_noise_layers=FLAGS.num_trainable_noise_layers,
            zero_noise_layers=parse_layers(FLAGS.bad_noise_layers),
            tile_latent=FLAGS.tile_latent,
        )
        schedule = pulse_jax.SCHEDULES[FLAGS.lr_schedule](FLAGS.learning_rate, FLAGS.steps)
        optimizer = pulse_jax.SCHEMES[FLAGS.scheme](pulse_jax.OPTIMIZERS[FLAGS.opt_name](schedule))
        loss = parse_loss(FLAGS.loss_str, FLAGS.eps)
        prepare_folder(output, configuration(seed, params))
        pictures, failures = read_pictures(generator.resolution)
    except ValueError as error:
        sys.exit(f"pulse_jax: {one_line(error)}")
    use_compilation_cache()
    print(f"{FLAGS.generator}, seed {seed}: {len(pictures)} pictures × {FLAGS.restarts} restarts")

    sides = sorted({picture.side for picture in pictures})
    batches = {side: list(batched(side, pictures)) for side in sides}
    done, timings = [], []
    total = sum(map(len, batches.values())) * FLAGS.steps
    with tqdm(total=total, unit="step", disable=not total) as progress:
        for side in sides:
            operator = pulse_jax.OPERATORS[FLAGS.operator](generator.resolution // side)
            search_batch = make_search(generator, params, operator, loss, optimizer, seed, progress)
            for batch in batches[side]:
                timings.append(search_batch(batch))
                for picture in {p.name: p for p, _ in batch}.values():
                    if len(picture.rows) < FLAGS.restarts:
                        continue  # the rest is in the next batch
                    try:
                        save(picture, output, generator.resolution)
                        done.append(picture)
                    except (ValueError, OSError) as error:
                        failures.append(one_line(error))
                        progress.write(f"pulse_jax: {failures[-1]}", file=sys.stderr)
                if done:
                    rows = [picture.rows[k] for picture in done for k in sorted(picture.rows)]
                    write(output / "results.csv", table(rows))
                write(output / "timings.csv", table(timings))
    summarise(done, failures, output)
    if failures:
        sys.exit(1)


def parse_loss(text, eps):
    """A `Loss` from the reference's notation: 100*L2+0.05*GEOCROSS."""
    weights = {}
    for term in text.split("+"):
        weight, _, name = term.rpartition("*")
        name = name.strip().lower()
        try:
            weights[name] = weights.get(name, 0) + float(weight or 1)
        except ValueError:
            raise ValueError(
                f"--loss_str={text}: {term!r} is not of the form weight*TERM"
            ) from None
    if unknown := weights.keys() - {"l2", "l1", "geocross"}:
        raise ValueError(f"--loss_str={text}: {min(unknown).upper()!r} is none of L2, L1, GEOCROSS")
    return Loss(**({"l2": 0, "l1": 0, "geocross": 0} | weights), eps=eps)


def parse_layers(text):
    """Layer numbers from the reference's notation, 3.17; None stays None."""
    try:
        return None if text is None else [int(layer) for layer in text.split(".") if layer]
    except ValueError:
        raise ValueError(
            f"--bad_noise_layers={text}: not layer numbers with dots between"
        ) from None


def read_pictures(resolution):
    """The pictures that can be used, and a line, printed too, for each that can't."""
    folder = FLAGS.input_dir
    if folder is None:
        folder = checkpoint.find(FLAGS.generator) / "examples"
        if not folder.is_dir():
            raise ValueError(f"--generator={FLAGS.generator} has no examples: give --input_dir")
    paths, skipped = images.list_images(folder)
    for path in skipped:
        print(f"skipped {path}: not a picture")
    stems = Counter(path.stem.lower() for path in paths)
    pictures, failures = [], []
    for path in paths:
        # Two pictures that differ in their suffix alone keep it.
        name = path.stem if stems[path.stem.lower()] == 1 else path.name
        try:
            pictures.append(Picture(path, name, read_target(path, resolution)))
        except ValueError as error:
            failures.append(one_line(error))
            print(f"pulse_jax: {failures[-1]}", file=sys.stderr)
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
        operator(resolution // size)(jnp.zeros((resolution, resolution, 3)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return np.asarray(image)


def batched(side, pictures):
    """(picture, restart) pairs of one size, in lists of at most `--batch_size`."""
    pairs = [(p, k) for p in pictures if p.side == side for k in range(1, FLAGS.restarts + 1)]
    return [pairs[i : i + FLAGS.batch_size] for i in range(0, len(pairs), FLAGS.batch_size)]


def make_search(generator, params, operator, loss, optimizer, seed, progress):
    """A function that searches (picture, restart) pairs and notes the results in the pictures."""
    search = pulse_jax.build(generator, operator, loss, optimizer)
    draw = jax.jit(lambda keys: jax.vmap(search.init)(*jax.vmap(generator.sample)(keys)))
    synthesize = jax.jit(jax.vmap(generator.synthesize, (None, 0, 0)))
    degrade = jax.jit(jax.vmap(operator))

    def render(state):
        """The best images as 8-bit files hold them, and their downscaled versions."""
        pictures = synthesize(params, state.best.latents, state.frozen)
        pictures = np.rint(255 * np.clip(pictures, 0, 1)) / 255  # NaN stays
        return pictures, degrade(pictures)

    def search_batch(batch):
        began, steps = time.perf_counter(), 0

        def on_chunk(_, state):
            nonlocal steps
            progress.update(int(state.step[0]) - steps)
            steps = int(state.step[0])
            if FLAGS.save_intermediate:
                save_intermediate(batch, steps - 1, *render(state))

        padded = batch + batch[-1:] * (FLAGS.batch_size - len(batch))
        state, _ = pulse_jax.run(
            search,
            params,
            jnp.stack([picture.target for picture, _ in padded]),
            draw(jnp.stack([restart_key(seed, picture.target, k) for picture, k in padded])),
            FLAGS.steps,
            chunk=1 if FLAGS.save_intermediate else 10,
            stop_at_eps=FLAGS.stop_at_eps,
            on_chunk=on_chunk,
        )
        progress.update(FLAGS.steps - steps)  # not taken, after an early stop
        pngs, lrs = render(state)
        latents = {name: np.asarray(v) for name, v in (state.best.latents | state.frozen).items()}
        for row, (picture, k) in enumerate(batch):
            l2_saved = float(l2(lrs[row], picture.target))
            code = int(pulse_jax.status(l2_saved, FLAGS.eps))
            picture.rows[k] = {
                "image": picture.path.name,
                "restart": k,
                "seed": seed,
                "l2": float(state.best.l2[row]),
                "l2_saved": l2_saved,
                "loss": float(state.best.loss[row]),
                "best_step": int(state.best.step[row]),
                "status": STATUS[code],
            }
            if np.isfinite(l2_saved):
                picture.results[k] = pngs[row], np.asarray(lrs[row])
            picture.latents[k] = {name: value[row] for name, value in latents.items()}
        return {
            "side": batch[0][0].side,
            "restarts": len(batch),
            "slots": FLAGS.batch_size,
            "steps": steps,
            "seconds": time.perf_counter() - began,
        }

    return search_batch


def restart_key(seed, target, restart):
    """A key from the seed, the picture's pixels and the restart's number, and nothing else."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(target.tobytes()))
    return jax.random.fold_in(key, restart)


def save(picture, output, resolution):
    """The files of one picture: each restart, also downscaled again, an overview, the latents."""
    folder = output / picture.name
    folder.mkdir(parents=True, exist_ok=True)
    for k, (image, lr) in sorted(picture.results.items()):
        images.save_image(folder / f"hr_{k:02d}.png", image)
        images.save_image(folder / f"lr_{k:02d}.png", lr)
    enlarged = images.resize_nearest(picture.target, resolution // picture.side)
    smooth = Image.fromarray(images.to_uint8(picture.target)).resize(
        (resolution,) * 2, Image.BICUBIC
    )
    overview = [enlarged, np.asarray(smooth) / 255]
    overview += [image for _, (image, _) in sorted(picture.results.items())]
    images.save_image(folder / "grid.png", images.grid([overview]))
    restarts = sorted(picture.latents)
    arrays = {
        name: np.stack([picture.latents[k][name] for k in restarts]) for name in picture.latents[1]
    }
    buffer = io.BytesIO()
    np.savez(buffer, restart=restarts, **arrays)
    write(folder / "latents.npz", buffer.getvalue())


def save_intermediate(batch, step, pngs, lrs):
    """The best images so far, as the reference names them: OUT/NAME/HR/NAME_00.png, and LR."""
    for (picture, k), image, lr in zip(batch, pngs, lrs, strict=False):  # padding is last
        name = picture.name if FLAGS.restarts == 1 else f"{picture.name}_{k}"
        file = f"{name}_{step:0{len(str(FLAGS.steps - 1))}d}.png"
        for kind, pixels in (("HR", image), ("LR", lr)):
            if np.isfinite(pixels).all():
                folder = Path(FLAGS.output_dir) / picture.name / kind
                folder.mkdir(parents=True, exist_ok=True)
                images.save_image(folder / file, pixels)


def prepare_folder(output, configuration):
    """Make the output folder, with config.json. Raises ValueError if it can't be written to."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        write(output / "config.json", json.dumps(configuration, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"--output_dir={output} can't be written: {error.strerror}") from error


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


def use_compilation_cache():
    """Keep compiled programs in `--cache_dir`; a folder that can't be used only costs time."""
    folder = Path(FLAGS.cache_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"--cache_dir={FLAGS.cache_dir} can't be used: {one_line(error)}", file=sys.stderr)
    else:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def summarise(pictures, failures, output):
    """A line for each picture, and one for all."""
    for picture in pictures:
        rows = picture.rows.values()
        best = min(
            (row["l2_saved"] for row in rows if np.isfinite(row["l2_saved"])), default=np.nan
        )
        converged = sum(row["status"] == STATUS[0] for row in rows)
        miss = "" if converged else f", misses --eps={FLAGS.eps:g} by {best - FLAGS.eps:.2g}"
        print(f"{picture.name}: {converged} of {len(rows)} converged, best l2 {best:.2e}{miss}")
    failed = f", {len(failures)} failed" if failures else ""
    print(f"{len(pictures)} pictures done{failed}; results in {output}")


def table(rows):
    """Rows as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write(path, content):
    """Write text or bytes so that the file is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def one_line(error):
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
