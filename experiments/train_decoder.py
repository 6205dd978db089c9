"""Can a generator of drawn faces be learnt from the attributes that they are drawn from?

A face is a function of its attributes, and these can be read as Gaussian variables z
(`faces.attributes_of`). So the generator z → face can be learnt by regression: no adversary is
needed, all of the data are covered, and each coordinate of z has a meaning. The result is a
StyleGAN 2 like any other, but for its mapping network, which sees attributes.

The distance of pixels alone learns colours and large shapes, and hardly what takes few pixels:
after 186 thousand images, a reader of attributes found nothing of the true gaze, smile or eyes in
the results. With --perceptual_weight, what such a reader sees in an image counts too, against what
it sees in the true face. It is another reader than the one that judges the quality.

What z doesn't tell, such as where each hair lies, comes out blurred. With --discriminator, that of
another generator, maybe of smaller images, joins in and sharpens it. The distance of pixels is then
on the images from half the side down alone.

Cheap first: at half the side an image costs a fifth. Each stage starts from the ones before, and
takes layers from generators that know faces at its side. This is how `decoder64` was trained, on
one CPU core; its card has what came of it:

    start="python experiments/train_decoder.py --batch_size=8 --learning_rate=1.5e-3"
    half="--resolution=32 --channels=128,128,96,64"
    $start $half --output_dir=runs/pixels32 --start_from=faces64 --stop_minutes=52 --finish
    $start --output_dir=runs/pixels64 --start_from=runs/pixels32/generator,faces64 \\
        --discriminator=faces64 --stop_minutes=62 --finish
    $start $half --output_dir=runs/first32 --start_from=runs/pixels32/generator \\
        --perceptual_weight=1 --stop_minutes=32
    $start --output_dir=runs/first64 --discriminator=runs/pixels64/generator \\
        --start_from=runs/first32/generator,runs/pixels64/generator,faces64 \\
        --perceptual_weight=4 --reader_steps=8000 --stop_minutes=58 --finish
    $start $half --output_dir=runs/second32 --start_from=runs/first32/generator \\
        --perceptual_weight=1 --reader_steps=8000 --stop_minutes=52 --finish
    $start --output_dir=runs/second64 --discriminator=runs/first64/generator \\
        --start_from=runs/second32/generator,runs/first64/generator \\
        --perceptual_weight=4 --reader_steps=8000 --stop_minutes=62 --finish
    $start $half --output_dir=runs/third32 --start_from=runs/second32/generator \\
        --perceptual_weight=1 --reader_steps=8000 --stop_minutes=50 --finish
    $start --output_dir=runs/decoder64 --discriminator=runs/second64/generator \\
        --start_from=runs/third32/generator,runs/second64/generator \\
        --perceptual_weight=4 --reader_steps=8000 --stop_minutes=64 --finish

And this was `decoder128`, which has one block more than `decoder64`. Its second stage has no noise,
so that sharpness has to come from elsewhere:

    whole="--resolution=128 --channels=128,128,96,64,32,16 --reader_steps=8000"
    $start $whole --output_dir=runs/first128 --start_from=runs/decoder64/generator,faces128 \\
        --discriminator=faces128 --pool_images=16384 --perceptual_weight=4 \\
        --stop_minutes=104 --finish
    $start $whole --output_dir=runs/decoder128 --start_from=runs/first128/generator \\
        --discriminator=runs/first128/generator --noise_rate=0 --pool_images=32768 --seed=1 \\
        --perceptual_weight=5 --stop_minutes=53

The last run went on twice, with an edited config.json: with --perceptual_weight=4 and
--regression_weight=10 for 12 minutes, and with --regression_weight=4 for 43 minutes and --finish.

`decoder256` has a block more again. It begins with a third stage of `decoder128`, which went on
from the state of the second, and with its discriminator of images half as large:

    $start $whole --output_dir=runs/third128 --start_from=runs/first128/generator \\
        --discriminator=runs/first128/generator --noise_rate=0 --pool_images=32768 --seed=1 \\
        --perceptual_weight=4 --regression_weight=4 --r1_gamma=0.0002 --stop_minutes=45 --finish
    $start --resolution=256 --channels=128,128,96,64,32,16,16 --output_dir=runs/decoder256 \\
        --start_from=runs/third128/generator --discriminator=runs/third128/generator \\
        --noise_rate=0 --pool_images=12288 --seed=1 --reader_steps=8000 --perceptual_weight=4 \\
        --regression_weight=5 --r1_gamma=0.0002 --ema_images=1000 --stop_minutes=178 --finish

The last run had --regression_weight=16 and --r1_gamma=0.0005 for its first 2,960 images, and
--ema_images=3000 for its first 4,128, by hand in config.json. It ended after 70 minutes, and went
on for 108 more. Each time, --finish was given for the last six alone.

--stop_minutes and --finish end a stage by the clock; an interrupted one goes on with the same
command. Stages of the same side can share their --pool. One core computes 60 images of 32 pixels a
second, 12 of 64 with the discriminator, 8 of 128, or 3 of 256.

Every few minutes, a run writes `state/`, from which it goes on; faces that it was not trained on,
and below them what it makes of their attributes; a row of metrics.csv, with the peak
signal-to-noise ratio and the energy of the Laplacian (over the faces') of these, and the quality of
samples as train_stylegan.py has it; and `generator/`, which the search takes as --generator.
"""

import sys
from functools import partial
from typing import Any, NamedTuple

from common import door, faces, metrics, pool, reader, style_training, training
from common.pool import halved
from common.style_training import random_noise
from common.training import random_key

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax.traverse_util import flatten_dict, unflatten_dict

from pulse_jax import images
from pulse_jax.files import expanded
from pulse_jax.generators import checkpoint
from pulse_jax.generators.stylegan2 import Discriminator, StyleGAN2

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(style_training)
flags.adopt_module_key_flags(pool)
flags.DEFINE_list(
    "start_from", [], "Layers are taken over from these generators, where they have the same sizes."
)
flags.DEFINE_string(
    "discriminator",
    None,
    "The discriminator of this generator joins in. It may have been trained on smaller images.",
)
flags.DEFINE_integer(
    "mapping_width", 256, "Each layer of the mapping network has this many units.", lower_bound=1
)
flags.DEFINE_float("learning_rate", 2e-3, "Adam has this learning rate.")
flags.DEFINE_float(
    "noise_rate",
    0.1,
    "Noise strengths learn at this share of the learning rate. With 0, there is no noise.",
    0,
)
flags.DEFINE_float(
    "r1_gamma", 0.001, "The gradient penalty has this weight, as in train_stylegan.py.", 0
)
flags.DEFINE_float(
    "regression_weight", 32.0, "The regression has this weight, beside the discriminator.", 0
)
flags.DEFINE_float(
    "perceptual_weight",
    0.0,
    "What a reader of attributes sees in the images, against what it sees in the faces, has this "
    "weight. It is another reader than the one that judges their quality.",
    0,
)
flags.DEFINE_integer(
    "ema_images", 3_000, "The averaged generator has this half-life, in images.", 1
)

# Times the hundredth of the rate at which StyleGAN's mapping network learns: about as fast as a
# network whose weights are stored as they count. At ten, it hardly learns what attributes mean.
MAPPING_RATE = 1000.0
KINDS = tuple(map(len, faces.KINDS.values()))
LEVELS = 4  # of the images' pyramid
WARM_UP = 200  # steps
SHOWN = 32
LOSSES = "l1", "coarse_l1"
ADVERSARIAL = (*style_training.ADVERSARIAL, "r1")


class TrainState(NamedTuple):
    params: Any  # {"generator"}, and in the second stage {"discriminator"}
    average: Any  # exponential moving average of the generator's
    optimizer: optax.OptState
    step: jax.Array


def main():
    minutes = training.stopwatch()
    settle()
    output = expanded(FLAGS.output_dir, "--output_dir").absolute()
    output.mkdir(parents=True, exist_ok=True)
    generator = make_generator()
    discriminator = Discriminator(generator.channels)
    start, steps = make_steps(generator, discriminator)
    training.claim(output / "config.json", sys.modules[__name__])
    with training.saved_states(output) as manager:
        first = manager.latest_step() or 0
        if first >= training.last_step():
            return output
        known = pool.stored(output)
        state = jax.jit(start)(random_key("start"))
        if first:
            state = training.restored(manager, first, state)
        teacher = None
        if FLAGS.perceptual_weight:
            teacher = reader.stored(
                output / "teacher.npz",
                pool.make_labelled(known),
                random_key("teacher"),
                FLAGS.reader_steps,
            )
        quality, samples = pool.make_quality(known, output), make_samples(generator)
        latents, true = pool.held_out(0)
        render = jax.jit(lambda params: synthesize(generator, params, latents, random_key("start")))

        def step(i, state, rate):
            kind = "r1" if FLAGS.discriminator and i % FLAGS.r1_interval == 0 else "plain"
            rate *= min(1, (i + 1) / WARM_UP)
            return steps[kind](state, *pool.batch(known, i), rate, teacher)

        def report(state, row, final):
            found = np.asarray(render(state.average))
            sampled = training.all_batches(partial(samples, state.average))
            energies = [metrics.laplacian_energy(x).mean() for x in (found, true)]
            row |= {
                "psnr": metrics.psnr(found, true).mean(),
                "laplacian": energies[0] / energies[1],
            }
            training.append_row(output / "metrics.csv", row | quality(sampled))
            rows = [x[k : k + 8] for k in range(0, SHOWN, 8) for x in (true, found)]
            path = output / f"samples_{row['images']:08d}.png"
            images.save_image(path, images.grid(rows))
            networks = {"generator": (generator, state.average)}
            if FLAGS.discriminator:
                networks["discriminator"] = discriminator, state.params["discriminator"]
            style_training.export(output / "generator", final, **networks)

        names = LOSSES + (("perceptual",) if teacher else ())
        names += ADVERSARIAL if FLAGS.discriminator else ()
        training.run(manager, minutes, first, state, step, names, report)
    return output


def make_generator():
    """Raises ValueError if the flags of its sizes don't fit each other."""
    generator = StyleGAN2(
        FLAGS.resolution,
        door.whole_numbers("channels"),
        FLAGS.latent_size,
        FLAGS.mapping_layers,
        z_size=faces.LATENTS,
        mapping_width=FLAGS.mapping_width,
        attribute_kinds=KINDS,
    )
    generator.check_sizes()
    return generator


def settle():
    """Raises ValueError for flags that can't be."""
    unit = Discriminator.group_size
    if FLAGS.batch_size % unit:
        raise ValueError(f"--batch_size={FLAGS.batch_size} must be a multiple of {unit}")
    pool.check()


def distances(x, y):
    """Mean absolute differences of two batches, at their side and at halves of it."""
    found = [jnp.abs(x - y).mean()]
    while len(found) < LEVELS:
        x, y = halved(x), halved(y)
        found.append(jnp.abs(x - y).mean())
    return found


def make_steps(generator, discriminator):
    """`start(key) → state`; of each kind, `step(state, z, faces, rate, teacher) → state, losses`.

    The generator's loss is the distance of the images to the faces (twice at the full side), or
    with a discriminator the non-saturating logistic loss and the weighted distance without that at
    the full side; there both networks learn from the same images. Rarely, R1 joins in. With a
    teacher, a reader's weights, what it sees counts too.
    """
    optimizer = style_training.make_optimizer(0.0 if FLAGS.discriminator else 0.9, MAPPING_RATE)
    given = layers(FLAGS.start_from)
    if FLAGS.discriminator:
        judges = trained(discriminator, random_key("start"))

    def discriminate(params, images):
        return discriminator.apply({"params": params}, images)

    def losses(params, z, real, key, kind, teacher):
        fake = synthesize(generator, params["generator"], z, key)
        full, *coarse = distances(fake, real)
        found = {"l1": full, "coarse_l1": sum(coarse)}
        seen = 0.0
        if teacher is not None:
            found["perceptual"] = reader.perceptual_distance(teacher, real, fake)
            seen = FLAGS.perceptual_weight * found["perceptual"]
        if not FLAGS.discriminator:
            return 2 * full + sum(coarse) + seen, found
        adversarial, metrics, _ = style_training.adversarial_loss(
            discriminate, params["discriminator"], 2 * real - 1, 2 * fake - 1, kind == "r1"
        )
        return adversarial + FLAGS.regression_weight * sum(coarse) + seen, found | metrics

    def step(state, z, real, rate, teacher, kind):
        key = jax.random.fold_in(random_key("steps"), state.step)
        gradient, found = jax.grad(losses, has_aux=True)(state.params, z, real, key, kind, teacher)
        state = training.updated(state, gradient, optimizer, rate)
        average = training.averaged(state.average, state.params["generator"], state.step)
        return state._replace(average=average), found

    def start(key):
        generator_key, noise_key = jax.random.split(key)
        noise = random_noise(generator, noise_key, 1)
        own = generator.init(generator_key, jnp.zeros((1, faces.LATENTS)), noise)["params"]
        params = {"generator": taken_over(given, own)}
        if FLAGS.discriminator:
            params["discriminator"] = judges
        average = jax.tree.map(jnp.copy, params["generator"])
        return TrainState(params, average, optimizer.init(params), jnp.int32(0))

    kinds = ("plain", "r1") if FLAGS.discriminator else ("plain",)
    return start, {kind: jax.jit(partial(step, kind=kind), donate_argnums=0) for kind in kinds}


def trained(discriminator, key):
    """--discriminator's parameters, which may be of a smaller side than --resolution.

    A block beyond that side begins as its skip alone, which passes all channels on. So the whole
    judges an image much as what is given judges the half of it. Raises ValueError for other sizes.
    """
    folder = checkpoint.find(FLAGS.discriminator, "--discriminator")
    given = flatten_dict(checkpoint.load_discriminator(folder)[1])
    image = jnp.zeros((1, FLAGS.resolution, FLAGS.resolution, 3))
    own = flatten_dict(jax.jit(discriminator.init)(key, image)["params"])
    (from_rgb,) = {name for name, _ in given if name.endswith("_from_rgb")}
    found, unused = {}, set(given)
    for (name, kind), leaf in own.items():
        path = (from_rgb if name.endswith("_from_rgb") else name), kind
        if path in given:
            unused.discard(path)
            found[name, kind] = jnp.asarray(given[path])
        elif name.endswith("_skip"):  # its sum with zeros is halved, in variance
            inputs, outputs = leaf.shape[2:]
            found[name, kind] = jnp.sqrt(2 * inputs) * jnp.eye(inputs, outputs)[None, None]
        else:
            found[name, kind] = jnp.zeros_like(leaf) if name.endswith("_conv_down") else leaf
    if unused or jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, own):
        told = "its sizes are others than --resolution and --channels give"
        raise ValueError(f"--discriminator={FLAGS.discriminator}: {told}")
    return unflatten_dict(found)


def layers(names):
    """Parameters of generators, flat; where several have one, the first's."""
    found = {}
    for name in reversed(names):
        _, params = checkpoint.read_network(checkpoint.find(name, "--start_from"))
        found |= flatten_dict(params)
    if not FLAGS.noise_rate:  # strengths stay where they begin, which is 0
        found = {path: leaf for path, leaf in found.items() if path[-1] != "noise_strength"}
    return found


def taken_over(given, own):
    """`own` parameters, but those `given`, flat, that fit; a ToRGB beyond them adds nothing."""
    own = flatten_dict(own)
    for name, leaf in own.items():
        if name in given and given[name].shape == leaf.shape:
            own[name] = jnp.asarray(given[name])
        elif given and name[-2].endswith("_to_rgb") and name[-1] == "kernel":
            own[name] = jnp.zeros_like(leaf)
    return unflatten_dict(own)


def synthesize(generator, params, z, key):
    """Images in [0, 1] of attributes z."""
    noise = random_noise(generator, key, len(z))
    return (generator.apply({"params": params}, z, noise) + 1) / 2


def make_samples(generator):
    """`samples(params, i)`: images in [0, 1], batch i of those whose quality is measured."""
    key = random_key("quality")

    @jax.jit
    def samples(params, i):
        z_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
        z = jax.random.normal(z_key, (FLAGS.batch_size, faces.LATENTS))
        return synthesize(generator, params, z, noise_key)

    return samples


if __name__ == "__main__":
    flags.mark_flag_as_required("output_dir")
    door.run(main)
