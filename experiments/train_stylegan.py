"""Train a StyleGAN 2 from scratch, on drawn faces or on a folder of images.

    python experiments/train_stylegan.py --output_dir=runs/faces64
    python experiments/train_stylegan.py --output_dir=runs/mine --data_dir=my_images

An interrupted run goes on with the same command, bit for bit as if it had not been interrupted.
Every few minutes it writes a grid of samples, a row of metrics.csv and `generator/`, which the
search takes as --generator. Two cores see some 25 images a second: heads after 10 thousand images,
faces after 50 thousand, half an hour, and good ones after 120 thousand.
"""

import csv
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import app, flags, logging
from faces import face
from PIL import Image, ImageOps
from tqdm import tqdm

from pulse_jax import images
from pulse_jax.generators import checkpoint, fit_latents
from pulse_jax.generators.stylegan2 import Discriminator, StyleGAN2

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for the state, the samples and the generator.")
flags.DEFINE_string("data_dir", None, "A folder of images; without it, faces are drawn.")
flags.DEFINE_integer("resolution", 64, "Side of the images.", lower_bound=8)
flags.DEFINE_list("channels", "128,128,96,64,32", "Channels at side 4, 8, …, resolution.")
flags.DEFINE_integer("latent_size", 128, "Coordinates of z and w.", lower_bound=1)
flags.DEFINE_integer("mapping_layers", 4, "Dense layers from z to w.", lower_bound=1)
flags.DEFINE_integer("images", 250_000, "Images to train on, from the start of the run.", 1)
flags.DEFINE_integer("batch_size", 16, "Images in a step.", lower_bound=1)
flags.DEFINE_float("learning_rate", 2.5e-3, "Of Adam, for both networks.")
flags.DEFINE_float("noise_rate", 0.0, "Learning rate of the noise strengths, as a share of it.")
flags.DEFINE_float("r1_gamma", 0.3, "Weight of the gradient penalty on real images.")
flags.DEFINE_integer("r1_interval", 16, "Steps from one gradient penalty to the next.", 1)
flags.DEFINE_float("mixing", 0.9, "Share of images whose layers take two styles.")
flags.DEFINE_integer("ema_images", 10_000, "Half-life of the averaged generator, in images.", 1)
flags.DEFINE_integer("save_steps", 500, "Steps from one saved state to the next.", 1)
flags.DEFINE_integer("seed", 0, "Of everything random.")


class TrainState(NamedTuple):
    params: Any  # {"generator", "discriminator"}
    average: Any  # exponential moving average of the generator's
    optimizer: optax.OptState
    step: jax.Array
    key: jax.Array


def main(_):
    logging.set_verbosity(logging.WARNING)  # Orbax tells its steps
    output = Path(FLAGS.output_dir).absolute()
    channels = tuple(int(c) for c in FLAGS.channels)
    generator = StyleGAN2(FLAGS.resolution, channels, FLAGS.latent_size, FLAGS.mapping_layers)
    discriminator = Discriminator(channels)
    optimizer = make_optimizer()
    batch = folder_batches(FLAGS.data_dir) if FLAGS.data_dir else face_batches()
    step = make_step(generator, discriminator, optimizer)
    sample = jax.jit(lambda params: generate(generator, params, jax.random.key(1), 64, 0.0))

    start = jax.jit(lambda key: initial_state(generator, discriminator, optimizer, key))
    state = start(jax.random.key(FLAGS.seed))
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(output / "state", options=options) as manager:
        if manager.latest_step() is not None:
            state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
        first, last = int(state.step), -(-FLAGS.images // FLAGS.batch_size)
        began = time.perf_counter()
        for i in tqdm(range(first, last), initial=first, total=last, unit="step", smoothing=0.01):
            state, metrics = step(state, batch(i), regularise=i % FLAGS.r1_interval == 0)
            if (i + 1) % FLAGS.save_steps and i + 1 < last:
                continue
            manager.save(i + 1, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
            seen = (i + 1) * FLAGS.batch_size
            rate = (i + 1 - first) * FLAGS.batch_size / (time.perf_counter() - began)
            row = {"images": seen, "images_per_second": rate, **metrics}
            append_row(output / "metrics.csv", {name: float(value) for name, value in row.items()})
            pictures = (np.asarray(sample(state.average)) + 1) / 2
            sheet = images.grid(pictures.reshape(8, 8, *pictures.shape[1:]))
            images.save_image(output / f"samples_{seen:08d}.png", sheet)
            export(output / "generator", generator, discriminator, state)


def make_optimizer():
    """Adam; the noise strengths, from 0 on, learn at another rate.

    Drawn faces hold nothing random. At the full rate, speckle stands in for the details that the
    generator would otherwise learn. Photographs may want some.
    """

    def is_noise_strength(path, _):
        return path[-1].key == "noise_strength"

    return optax.chain(
        optax.adam(FLAGS.learning_rate, b1=0.0, b2=0.99),
        optax.masked(
            optax.scale(FLAGS.noise_rate),
            lambda params: jax.tree_util.tree_map_with_path(is_noise_strength, params),
        ),
    )


def make_step(generator, discriminator, optimizer):
    """`step(state, real, regularise) → state, metrics`; both networks learn from the same fakes.

    Non-saturating logistic loss, and a gradient penalty R1 = γ/2 E|∇D(x)|² on real images, taken
    rarely with a weight to match (StyleGAN 2, section 3.1, but for its correction of Adam's rates).
    """

    def losses(params, real, key, regularise):
        frozen = jax.lax.stop_gradient

        def judge(params, images):
            return discriminator.apply({"params": params}, images)

        fake = generate(generator, params["generator"], key, len(real), FLAGS.mixing)
        fooled = judge(frozen(params["discriminator"]), fake)
        real_logits = judge(params["discriminator"], real)
        fake_logits = judge(params["discriminator"], frozen(fake))
        metrics = {
            "generator_loss": jax.nn.softplus(-fooled).mean(),
            "discriminator_loss": jax.nn.softplus(-real_logits).mean()
            + jax.nn.softplus(fake_logits).mean(),
            "real_logit": real_logits.mean(),
            "fake_logit": fake_logits.mean(),
        }
        total = metrics["generator_loss"] + metrics["discriminator_loss"]
        if regularise:
            gradient = jax.grad(lambda x: judge(params["discriminator"], x).sum())(real)
            penalty = (gradient**2).sum(axis=(1, 2, 3)).mean()
            total += FLAGS.r1_gamma / 2 * FLAGS.r1_interval * penalty
        return total, metrics

    @jax.jit(static_argnames="regularise", donate_argnums=0)
    def step(state, real, regularise):
        key, step_key = jax.random.split(state.key)
        gradient, metrics = jax.grad(losses, has_aux=True)(state.params, real, step_key, regularise)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer)
        params = optax.apply_updates(state.params, updates)
        seen = (state.step + 1) * len(real)
        # Early on, a short memory: a tenth of what has been seen.
        decay = 0.5 ** (len(real) / jnp.minimum(FLAGS.ema_images, 0.1 * seen + 1))
        average = optax.incremental_update(params["generator"], state.average, 1 - decay)
        return TrainState(params, average, optimizer_state, state.step + 1, key), metrics

    return step


def generate(generator, params, key, count, mixing):
    """Images (count, R, R, 3) in [-1, 1] from random latents.

    With probability `mixing`, the layers from a random one on take a second style.
    """
    z_key, mix_key, cut_key, noise_key = jax.random.split(key, 4)
    z = jax.random.normal(z_key, (2 * count, generator.latent_size))
    w = generator.apply({"params": params}, z, method="mapping").reshape(2, count, 1, -1)
    cut = jax.random.randint(cut_key, (count, 1, 1), 1, generator.num_layers)
    mixed = jax.random.uniform(mix_key, (count, 1, 1)) < mixing
    first = jnp.arange(generator.num_layers)[:, None] < jnp.where(mixed, cut, generator.num_layers)
    noise = random_noise(generator, noise_key, count)
    return generator.apply({"params": params}, jnp.where(first, *w), noise, method="synthesis")


def random_noise(generator, key, count):
    keys = jax.random.split(key, len(generator.noise_shapes))
    shapes = [(count, *shape) for shape in generator.noise_shapes]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def initial_state(generator, discriminator, optimizer, key):
    key, generator_key, discriminator_key = jax.random.split(key, 3)
    z, noise = jnp.zeros((1, generator.latent_size)), random_noise(generator, key, 1)
    image = jnp.zeros((1, generator.resolution, generator.resolution, 3))
    params = {
        "generator": generator.init(generator_key, z, noise)["params"],
        "discriminator": discriminator.init(discriminator_key, image)["params"],
    }
    average = jax.tree.map(jnp.copy, params["generator"])
    return TrainState(params, average, optimizer.init(params), jnp.zeros((), jnp.int32), key)


def face_batches():
    """Batches of drawn faces in [-1, 1] by step, so that a resumed run goes on with the next."""

    @jax.jit
    def batch(step):
        key = jax.random.fold_in(jax.random.key(FLAGS.seed), step)
        keys = jax.random.split(key, FLAGS.batch_size)
        return 2 * jax.vmap(face, (0, None))(keys, FLAGS.resolution)[0] - 1

    return batch


def folder_batches(folder):
    """The same from a folder of images, cropped to squares, mirrored at random, kept in memory."""
    side = (FLAGS.resolution, FLAGS.resolution)
    paths, _ = images.list_images(folder)
    pictures = [Image.fromarray(images.to_uint8(images.load_image(path))) for path in paths]
    data = np.stack([ImageOps.fit(p, side, Image.Resampling.LANCZOS) for p in pictures])

    def batch(step):
        random = np.random.default_rng((FLAGS.seed, step))
        chosen = data[random.integers(len(data), size=FLAGS.batch_size)]
        mirrored = random.random((FLAGS.batch_size, 1, 1, 1)) < 0.5
        return jnp.asarray(np.where(mirrored, chosen[:, :, ::-1], chosen), jnp.float32) / 127.5 - 1

    return batch


def export(folder, generator, discriminator, state):
    """The averaged generator with its latent fit, and the discriminator, for the search."""
    fit = fit_latents(generator, state.average, jax.random.key(0))
    checkpoint.save(
        folder,
        generator=(generator, state.average | {"latent_fit": fit}),
        discriminator=(discriminator, state.params["discriminator"]),
    )


def append_row(path, row):
    """Add a row to a CSV file, with a header if the file is new."""
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    flags.mark_flag_as_required("output_dir")
    app.run(main)
