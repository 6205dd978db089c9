"""Train a StyleGAN 2 from scratch: on drawn faces, on a photograph's crops, or on your own images.

    python experiments/train_stylegan.py --output_dir=runs/faces64
    python experiments/train_stylegan.py --output_dir=runs/galaxies64 --data=galaxies
    python experiments/train_stylegan.py --output_dir=runs/mine --data_dir=my_images

An interrupted run goes on with the same command. Ctrl-C and SIGTERM have it save its state before
it ends. The result is the same, bit for bit, on as many devices (on a GPU with
XLA_FLAGS=--xla_gpu_deterministic_ops=true). config.json holds the flags that must be as before.
With --stop_minutes, a run saves its state and stops after that time, or up to a minute later. With
--finish, that is also its end, towards which the learning rate falls. Every few minutes and when it
stops, a run writes

- `state/`, from which it goes on;
- a grid of samples of the averaged generator;
- a row of metrics.csv: means of the losses over the last steps; ada_p, the augmentation's strength;
  the rate; and how far samples are from the data, as the `frechet` distance, `precision` and
  `recall` (see common/metrics.py). Their features are those of a network that reads drawn faces, or
  for other data fixed wavelets. floor.csv has the same of held-out images, the best there is;
- `generator/`, which the search takes as --generator.

All local devices share a batch. --start_from goes on from a trained generator and discriminator,
maybe on other data, which takes fewer images than a start from nothing. For images of twice the
side, only the details are new (see common/grow.py). Most of the bundled generators were made in
this way on two cores, in 25 to 80 minutes each (see their model cards):

    python experiments/train_stylegan.py --output_dir=runs/faces64 --start_from=EARLIER
    python experiments/train_stylegan.py --output_dir=runs/faces128 --start_from=faces64 \\
        --resolution=128 --channels=128,128,96,64,32,16
    python experiments/train_stylegan.py --output_dir=runs/tissue64 --start_from=faces64 \\
        --data=tissue --path_weight=0

Two cores see 15 to 22 images of 64 pixels a second, or some 10 of 128. For one GPU:

    common="--dtype=bfloat16 --batch_size=64 --export_dtype=bfloat16 --quality_images=2048"
    python experiments/train_stylegan.py $common --output_dir=runs/faces64 \\
        --channels=160,160,128,64,32 --images=1_500_000
    python experiments/train_stylegan.py $common --output_dir=runs/faces128 --resolution=128 \\
        --channels=256,256,256,128,64,32 --latent_size=256 --learning_rate=2e-3 --images=1_000_000
    python experiments/train_stylegan.py $common --output_dir=runs/galaxies64 --data=galaxies \\
        --channels=160,160,128,64,32 --images=3_000_000 --stop_minutes=6 --finish

The last one made the bundled galaxies64, from 1,415,808 images in 6 minutes on one H200, without
augmentation (ada_p = 0). Samples had a frechet of 0.072, a precision of 0.70 and a recall of 0.83,
and the floor's frechet was 0.069. The other two have not been run to their end.
"""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from common import data, door, style_training, training
from common.augment import adapted, augment
from common.grow import grown
from common.style_training import random_noise
from common.training import random_key

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pulse_jax import images
from pulse_jax.files import counted, expanded
from pulse_jax.generators import checkpoint
from pulse_jax.generators.stylegan2 import Discriminator, StyleGAN2

# What depends on the data; a flag that is given goes first.
#
# r1_gamma is for one pixel and a batch of one: the weight is r1_gamma · R² / batch, the rule of
# stylegan2-ada. Its factor, 0.0002, is for networks of 512 channels; 0.001 makes the 0.3 that has
# served faces64 at a batch of 16.
#
# Path length regularisation (path_weight) serves the search. It asks for images that change evenly
# with the style, which sparse bright spots on black don't.
#
# The noise strengths, from 0 on, learn at a share `noise_rate` of the rate. At the full rate,
# speckle stands in for details of a face that the generator would otherwise learn.
#
# The mapping network learns at StyleGAN's hundredth of the rate times `mapping_rate`. That
# hundredth is for tens of millions of images; in the first hundred thousand it hardly moves.
#
# ada_target: of E[sign D(real)]; 0 leaves out augmentation, which endless faces have no need of.
#
# Those of galaxies are what the bundled galaxies64 was trained with.
DATA = {
    "faces": {"r1_gamma": 0.001, "path_weight": 2.0, "noise_rate": 0.1, "mapping_rate": 10.0}
    | {"ada_target": 0.0},
    "galaxies": {"r1_gamma": 0.004, "path_weight": 0.0, "noise_rate": 1.0, "mapping_rate": 1.0}
    | {"ada_target": 0.6, "ada_images": 100_000},
    "tissue": {"r1_gamma": 0.001, "path_weight": 2.0, "noise_rate": 1.0, "mapping_rate": 10.0}
    | {"ada_target": 0.6},
}
DATA["folder"] = DATA["tissue"]

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(style_training)
flags.DEFINE_enum(
    "data", "faces", ["faces", *data.PHOTOGRAPHS], "The generator learns from these images."
)
flags.DEFINE_string(
    "data_dir", None, "The generator learns from the images in this folder instead."
)
flags.DEFINE_string(
    "start_from",
    None,
    "Training starts from this generator, of the same sizes or of half the side.",
)
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Convolutions compute with this type."
)
flags.DEFINE_float("learning_rate", 2.5e-3, "Adam has this learning rate, for both networks.")
flags.DEFINE_float(
    "noise_rate",
    None,
    "Noise strengths learn at this share of the learning rate. Without it, DATA says which.",
)
flags.DEFINE_float(
    "mapping_rate",
    None,
    "The mapping network learns at this many hundredths of the learning rate. Without "
    "it, DATA says how many.",
    0,
)
flags.DEFINE_float(
    "r1_gamma",
    None,
    "The gradient penalty on real images has this weight. Without it, DATA says which.",
)
flags.DEFINE_float(
    "path_weight",
    None,
    "Path lengths have this weight, and 0 leaves them out. Without it, DATA says which.",
    0,
)
flags.DEFINE_integer("path_interval", 8, "Path lengths are measured once in this many steps.", 1)
flags.DEFINE_float(
    "ada_target", None, "Augmentation is adapted to this target. Without it, DATA says which.", 0
)
flags.DEFINE_integer(
    "ada_images",
    500_000,
    "The strength of augmentation takes at least this many images from 0 to 1.",
    1,
)
flags.DEFINE_float("mixing", 0.9, "In this share of images, the layers take two styles.")
flags.DEFINE_integer(
    "ema_images", 10_000, "The averaged generator has this half-life, in images.", 1
)

KINDS = "plain", "path", "r1"  # of steps
LOSSES = *style_training.ADVERSARIAL, "real_sign", "r1", "path_penalty"


class TrainState(NamedTuple):
    params: Any  # {"generator", "discriminator"}
    average: Any  # exponential moving average of the generator's
    optimizer: optax.OptState
    step: jax.Array
    path_length: jax.Array  # moving mean
    ada_p: jax.Array


def main():
    minutes = training.stopwatch()
    settle()
    output = expanded(FLAGS.output_dir, "--output_dir").absolute()
    output.mkdir(parents=True, exist_ok=True)
    channels = door.whole_numbers("channels")
    generator = StyleGAN2(FLAGS.resolution, channels, FLAGS.latent_size, FLAGS.mapping_layers)
    generator.check_sizes()
    discriminator = Discriminator(channels)
    replicated, sharded = shardings(jax.local_devices())
    source = data_set()
    steps, start = make_steps(generator, discriminator, replicated, sharded)
    training.claim(output / "config.json", sys.modules[__name__])

    # Compiled once, for all uses: of drawn faces, that takes as long as a step's.
    @functools.partial(jax.jit, out_shardings=sharded)
    def draw(pictures, key, i):
        """Batch i of a key's: images, and the attributes of faces."""
        return source.draw(pictures, jax.random.fold_in(key, i), FLAGS.batch_size)

    with ThreadPoolExecutor() as pool, training.saved_states(output) as manager:
        first, last = manager.latest_step() or 0, training.last_step()
        if first >= last:
            return output
        source = source._replace(
            train=jax.device_put(source.train, replicated),
            held_out=jax.device_put(source.held_out, replicated),
        )
        data_key = random_key("data")
        first_batch = pool.submit(draw, source.train, data_key, first)
        started = pool.submit(jax.jit(start, out_shardings=replicated), random_key("start"))
        side = FLAGS.resolution
        real = jax.ShapeDtypeStruct((FLAGS.batch_size, side, side, 3), np.float32)
        arguments = jax.eval_shape(start, random_key("start")), real, np.float32(1)
        kinds = {step_kind(i) for i in range(first, last)}
        compiled = {kind: pool.submit(steps[kind].lower(*arguments).compile) for kind in kinds}
        state = started.result()
        if first:
            state = training.restored(manager, first, state)
        first_batch.result()
        quality, samples = make_quality(source, draw, generator, output)
        steps = {kind: future.result() for kind, future in compiled.items()}
        print(f"Compiled, and measured the data, in {60 * minutes():.0f} s.", flush=True)

        def step(i, state, rate):
            return steps[step_kind(i)](state, draw(source.train, data_key, i)[0], rate)

        def report(state, row, final):
            row |= {"path_length": float(state.path_length), "ada_p": float(state.ada_p)}
            pictured = training.all_batches(functools.partial(samples, state.average))
            training.append_row(output / "metrics.csv", row | quality(pictured))
            sheet = images.grid(pictured[:64].reshape(8, 8, *pictured.shape[1:]))
            images.save_image(output / f"samples_{row['images']:08d}.png", sheet)
            style_training.export(
                output / "generator",
                final,
                generator=(generator, state.average),
                discriminator=(discriminator, state.params["discriminator"]),
            )

        training.run(manager, minutes, first, state, step, LOSSES, report)
    return output


def settle():
    """Give flags the values that suit the data. Raises ValueError for impossible ones."""
    for name, value in DATA["folder" if FLAGS.data_dir else FLAGS.data].items():
        if FLAGS[name].using_default_value:
            FLAGS[name].value = value
    unit = int(np.lcm(Discriminator.group_size, 2 * jax.local_device_count()))
    if FLAGS.batch_size % unit:
        raise ValueError(
            f"--batch_size={FLAGS.batch_size} must be a multiple of {unit}, for groups of images "
            f"and {counted(jax.local_device_count(), 'device')}"
        )
    intervals = FLAGS.path_interval, FLAGS.r1_interval
    if FLAGS.path_weight and FLAGS.path_interval // 2 % np.gcd(*intervals) == 0:
        raise ValueError(
            f"--path_interval={intervals[0]} and --r1_interval={intervals[1]} would meet in a step"
        )


def data_set():
    if FLAGS.data_dir:
        return data.folder(expanded(FLAGS.data_dir, "--data_dir"), FLAGS.resolution)
    if FLAGS.data == "faces":
        return data.drawn_faces(FLAGS.resolution)
    return data.photograph(FLAGS.data, FLAGS.resolution)


def shardings(devices):
    """The shardings of what all devices hold, and of a batch that they share."""
    mesh = Mesh(np.array(devices), ("data",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def step_kind(i):
    """The step's kind, of `KINDS`. Path lengths come half an interval off, not to meet R1."""
    if i % FLAGS.r1_interval == 0:
        return "r1"
    due = i % FLAGS.path_interval == FLAGS.path_interval // 2
    return "path" if FLAGS.path_weight and due else "plain"


def trained(name_or_path, generator):
    """The weights of a generator and its discriminator, and the side of their images.

    Raises ValueError for other sizes than `generator` has, or without its last layers.
    """
    path = checkpoint.find(name_or_path, "--start_from")
    found, params = checkpoint.read_network(path)
    half = generator.clone(resolution=generator.resolution // 2, channels=generator.channels[:-1])
    if found not in (generator, half):
        raise ValueError(f"--start_from={name_or_path} is {found}, but the flags say {generator}")
    params = {name: leaf for name, leaf in params.items() if name != "latent_fit"}
    _, judge = checkpoint.load_discriminator(path)
    return {"generator": params, "discriminator": judge}, found.resolution


def make_steps(generator, discriminator, replicated, sharded):
    """Functions `step(state, real, rate) → state, metrics` for each of `KINDS`, and `start(key)`.

    Both networks learn from the same fakes. Rarely, with a weight to match, there is a penalty: R1,
    or path length regularisation (StyleGAN 2, sections 3.1 and 3.2, but for the correction of
    Adam's rates).
    """
    optimizer = style_training.make_optimizer(0.0, FLAGS.mapping_rate)
    if FLAGS.start_from:
        given, side = trained(FLAGS.start_from, generator)

    def shared(batch):
        return jax.lax.with_sharding_constraint(batch, sharded)

    def discriminate(params, images):
        return discriminator.apply({"params": params}, images.astype(FLAGS.dtype))

    def losses(params, state, real, key, kind):
        latent_key, real_key, fake_key, path_key = jax.random.split(key, 4)
        latents = draw_latents(generator, params["generator"], latent_key, len(real), FLAGS.mixing)
        fake = shared(synthesize(generator, params["generator"], *latents))
        if FLAGS.ada_target:
            real = shared(augment(real_key, real, state.ada_p))
            fake = shared(augment(fake_key, fake, state.ada_p))
        total, metrics, real_logits = style_training.adversarial_loss(
            discriminate, params["discriminator"], real, fake, kind == "r1"
        )
        metrics["real_sign"] = jnp.sign(real_logits).mean()
        state = state._replace(ada_p=adapted_p(state.ada_p, real_logits))
        if kind == "path":
            lengths = path_lengths(params["generator"], path_key, len(real) // 2)
            # The mean of all at first, then of the last hundred or so.
            share = jnp.maximum(0.01, 1 / (1 + state.step // FLAGS.path_interval))
            measured = jax.lax.stop_gradient(lengths.mean())
            mean = state.path_length + share * (measured - state.path_length)
            metrics["path_penalty"] = ((lengths - mean) ** 2).mean()
            total += FLAGS.path_weight * FLAGS.path_interval * metrics["path_penalty"]
            state = state._replace(path_length=mean)
        return total, (state, metrics)

    def adapted_p(p, real_logits):
        if not FLAGS.ada_target:
            return p
        return adapted(p, real_logits, FLAGS.ada_images, FLAGS.ada_target)

    def path_lengths(params, key, count):
        """|∇_w ⟨G(w), y⟩| for images y of noise: the root mean square over the layers' styles."""
        latent_key, image_key = jax.random.split(key)
        w, noise = draw_latents(generator, params, latent_key, count, FLAGS.mixing)
        y = jax.random.normal(image_key, (count, FLAGS.resolution, FLAGS.resolution, 3))
        y /= FLAGS.resolution

        def product(w):
            return (shared(synthesize(generator, params, w, noise)) * y).sum()

        return jnp.sqrt((jax.grad(product)(w) ** 2).sum(axis=2).mean(axis=1))

    def step(state, real, rate, kind):
        key = jax.random.fold_in(random_key("steps"), state.step)
        derivative = jax.grad(losses, has_aux=True)
        gradient, (state, metrics) = derivative(state.params, state, real, key, kind)
        state = training.updated(state, gradient, optimizer, rate)
        average = training.averaged(state.average, state.params["generator"], state.step)
        return state._replace(average=average), metrics

    def start(key):
        generator_key, discriminator_key, noise_key = jax.random.split(key, 3)
        z, noise = jnp.zeros((1, generator.latent_size)), random_noise(generator, noise_key, 1)
        image = jnp.zeros((1, FLAGS.resolution, FLAGS.resolution, 3))
        params = {
            "generator": generator.init(generator_key, z, noise)["params"],
            "discriminator": discriminator.init(discriminator_key, image)["params"],
        }
        if FLAGS.start_from:
            params = given if side == FLAGS.resolution else grown(given, params, side)
        average = jax.tree.map(jnp.copy, params["generator"])
        zero = jnp.zeros(())
        return TrainState(params, average, optimizer.init(params), jnp.int32(0), zero, zero)

    steps = {
        kind: jax.jit(
            functools.partial(step, kind=kind),
            donate_argnums=0,
            in_shardings=(replicated, sharded, replicated),
            out_shardings=replicated,
        )
        for kind in KINDS
    }
    return steps, start


def draw_latents(generator, params, key, count, mixing):
    """Random style vectors (count, L, d), and noise maps in the convolutions' dtype.

    With probability `mixing`, the layers from a random one on take a second style.
    """
    z_key, mix_key, cut_key, noise_key = jax.random.split(key, 4)
    z = jax.random.normal(z_key, (2 * count, generator.latent_size))
    w = generator.apply({"params": params}, z, method="mapping").reshape(2, count, 1, -1)
    cut = jax.random.randint(cut_key, (count, 1, 1), 1, generator.num_layers)
    mixed = jax.random.uniform(mix_key, (count, 1, 1)) < mixing
    first = jnp.arange(generator.num_layers)[:, None] < jnp.where(mixed, cut, generator.num_layers)
    noise = [x.astype(FLAGS.dtype) for x in random_noise(generator, noise_key, count)]
    return jnp.where(first, *w), noise


def synthesize(generator, params, w, noise):
    return generator.apply({"params": params}, w, noise, method="synthesis")


def make_quality(source, draw, generator, output):
    """`quality(images)` as in `training`, and `samples(params, i)`, a batch in [0, 1]."""
    key = random_key("quality")

    def labelled(key, i):
        faces, attributes = draw(source.train, key, i)
        return (faces + 1) / 2, attributes

    def pictures_of(source):
        return training.all_batches(lambda i: (draw(source, key, i)[0] + 1) / 2)

    @jax.jit
    def samples(params, i):
        latents = draw_latents(
            generator, params, jax.random.fold_in(key, i), FLAGS.batch_size, mixing=0.0
        )
        return (synthesize(generator, params, *latents) + 1) / 2

    of_faces = FLAGS.data == "faces" and not FLAGS.data_dir
    quality = training.make_quality(
        output,
        pictures_of(source.train),
        functools.partial(pictures_of, source.held_out),
        labelled if of_faces else None,
    )
    return quality, samples


if __name__ == "__main__":
    flags.mark_flag_as_required("output_dir")
    door.run(main)
