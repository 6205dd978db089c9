"""Train a StyleGAN 2 from scratch, on drawn faces or on a folder of images.

    python experiments/train_stylegan.py --output_dir=runs/faces64
    python experiments/train_stylegan.py --output_dir=runs/mine --data_dir=my_images

The same command goes on where an interrupted run stopped, with the same bits as if it had not been.
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
from absl import app, flags
from tqdm import tqdm

from experiments.faces import face
from pulse_jax import images
from pulse_jax.generators.stylegan2 import Discriminator, StyleGAN2

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Where checkpoints, sample grids and metrics.csv go.")
flags.DEFINE_string("data_dir", None, "A folder of images; without it, faces are drawn.")
flags.DEFINE_integer("resolution", 64, "Side of the images.", lower_bound=8)
flags.DEFINE_list("channels", "128,128,96,64,32", "Channels at side 4, 8, …, resolution.")
flags.DEFINE_integer("latent_size", 128, "Coordinates of z and w.", lower_bound=1)
flags.DEFINE_integer("mapping_layers", 4, "Dense layers from z to w.", lower_bound=1)
flags.DEFINE_integer("images", 300_000, "Train on this many images, counted from the start.")
flags.DEFINE_integer("batch_size", 16, "Images per step.", lower_bound=1)
flags.DEFINE_float("learning_rate", 2.5e-3, "Of Adam, for both networks.")
flags.DEFINE_float("r1_gamma", 1.0, "Weight of the gradient penalty on real images.")
flags.DEFINE_integer("r1_interval", 16, "Steps between gradient penalties.", lower_bound=1)
flags.DEFINE_float("mixing", 0.9, "Share of images whose layers take two styles.")
flags.DEFINE_integer("ema_images", 10_000, "Half-life of the averaged generator, in images.")
flags.DEFINE_integer("save_steps", 500, "Steps between checkpoints and sample grids.")
flags.DEFINE_integer("seed", 0, "Of everything random.")


class TrainState(NamedTuple):
    params: Any  # {"generator", "discriminator"}
    average: Any  # exponential moving average of the generator's
    optimizer: optax.OptState
    step: jax.Array
    key: jax.Array


def make_step(generator, discriminator, optimizer):
    """`step(state, real) → state, metrics`; both networks learn at once, from one forward pass of the generator."""

    def losses(params, real, key, regularise):
        fake = generate(generator, params["generator"], key, len(real), FLAGS.mixing)

        def judge(params, images):
            return discriminator.apply({"params": params}, images)

        frozen = jax.lax.stop_gradient
        generator_loss = jax.nn.softplus(-judge(frozen(params["discriminator"]), fake)).mean()
        real_logits = judge(params["discriminator"], real)
        fake_logits = judge(params["discriminator"], frozen(fake))
        discriminator_loss = jax.nn.softplus(-real_logits).mean() + jax.nn.softplus(fake_logits).mean()
        total = generator_loss + discriminator_loss
        metrics = {
            "generator_loss": generator_loss,
            "discriminator_loss": discriminator_loss,
            "real_logit": real_logits.mean(),
            "fake_logit": fake_logits.mean(),
        }
        if regularise:  # lazy R1: a rare penalty with a weight to match
            gradient = jax.grad(lambda x: judge(params["discriminator"], x).sum())(real)
            penalty = (gradient**2).sum(axis=(1, 2, 3)).mean()
            total += FLAGS.r1_gamma / 2 * FLAGS.r1_interval * penalty
        return total, metrics

    @jax.jit(static_argnames="regularise", donate_argnums=0)
    def step(state, real, regularise):
        key, step_key = jax.random.split(state.key)
        gradients, metrics = jax.grad(losses, has_aux=True)(state.params, real, step_key, regularise)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        seen = (state.step + 1) * len(real)
        decay = 0.5 ** (len(real) / jnp.minimum(FLAGS.ema_images, 0.1 * seen + 1))
        average = optax.incremental_update(params["generator"], state.average, 1 - decay)
        return TrainState(params, average, optimizer_state, state.step + 1, key), metrics

    return step


def generate(generator, params, key, count, mixing):
    """`count` images from random latents; with probability `mixing` the layers from a random one on take a second style."""
    z_key, mix_key, cut_key, noise_key = jax.random.split(key, 4)
    z = jax.random.normal(z_key, (2 * count, generator.latent_size))
    w = generator.apply({"params": params}, z, method="mapping").reshape(2, count, 1, -1)
    cut = jax.random.randint(cut_key, (count, 1, 1), 1, generator.num_layers)
    cut = jnp.where(jax.random.uniform(mix_key, (count, 1, 1)) < mixing, cut, generator.num_layers)
    w = jnp.where(jnp.arange(generator.num_layers)[:, None] < cut, w[0], w[1])
    noise = random_noise(generator, noise_key, count)
    return generator.apply({"params": params}, w, noise, method="synthesis")


def random_noise(generator, key, count):
    keys = jax.random.split(key, len(generator.noise_shapes))
    return [jax.random.normal(k, (count, *s)) for k, s in zip(keys, generator.noise_shapes, strict=True)]


def drawn_faces(size, count, seed):
    """An endless stream of batches, [-1, 1], by step, so that a resumed run goes on with the next one."""
    draw = jax.jit(lambda keys: 2 * jax.vmap(face, (0, None))(keys, size)[0] - 1)

    def batch(step):
        return draw(jax.random.split(jax.random.fold_in(jax.random.key(seed), step), count))

    return batch


def main(_):
    channels = tuple(int(c) for c in FLAGS.channels)
    generator = StyleGAN2(FLAGS.resolution, channels, FLAGS.latent_size, FLAGS.mapping_layers)
    discriminator = Discriminator(channels)
    optimizer = optax.adam(FLAGS.learning_rate, b1=0.0, b2=0.99)
    batch = drawn_faces(FLAGS.resolution, FLAGS.batch_size, FLAGS.seed)
    output = Path(FLAGS.output_dir).absolute()

    state = initial_state(generator, discriminator, optimizer, jax.random.key(FLAGS.seed))
    manager = ocp.CheckpointManager(
        output / "state", options=ocp.CheckpointManagerOptions(max_to_keep=2)
    )
    if manager.latest_step() is not None:
        state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
    step = make_step(generator, discriminator, optimizer)

    grid_key = jax.random.key(1)
    sample = jax.jit(lambda params: generate(generator, params, grid_key, 64, 0.0))
    first, last = int(state.step), FLAGS.images // FLAGS.batch_size
    start = time.perf_counter()
    for i in tqdm(range(first, last), initial=first, total=last, unit="step", smoothing=0.01):
        state, metrics = step(state, batch(i), regularise=i % FLAGS.r1_interval == 0)
        if (i + 1) % FLAGS.save_steps == 0 or i + 1 == last:
            manager.save(i + 1, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
            pictures = (np.asarray(sample(state.average)) + 1) / 2
            images.save_image(output / f"samples_{(i + 1) * FLAGS.batch_size:08d}.png", images.grid(pictures.reshape(8, 8, *pictures.shape[1:])))
            rate = (i + 1 - first) * FLAGS.batch_size / (time.perf_counter() - start)
            log(output / "metrics.csv", {"images": (i + 1) * FLAGS.batch_size, "images_per_second": rate} | {k: float(v) for k, v in metrics.items()})


def initial_state(generator, discriminator, optimizer, key):
    key, generator_key, discriminator_key = jax.random.split(key, 3)
    size = generator.resolution
    z = jnp.zeros((1, generator.latent_size))
    noise = random_noise(generator, key, 1)
    params = {
        "generator": generator.init(generator_key, z, noise)["params"],
        "discriminator": discriminator.init(discriminator_key, jnp.zeros((1, size, size, 3)))["params"],
    }
    average = jax.tree.map(jnp.copy, params["generator"])
    return TrainState(params, average, optimizer.init(params), jnp.zeros((), jnp.int32), key)


def log(path, row):
    """Append a row to a CSV file, with a header if it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    flags.mark_flag_as_required("output_dir")
    app.run(main)
