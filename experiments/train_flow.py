"""Train a flow: a network that leads noise to images along straight lines.

Flow matching (Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003): with noise
z ~ N(0, I), an image x and a level s in (0, 1), the network v sees (1 − s) x + s z and learns the
velocity z − x, by mean squares. A sample starts at z, at level 1, and follows v to level 0. So all
of the data are learnt, without an adversary, and a generator is z → image: what a search takes.

    python experiments/train_flow.py --output_dir=runs/flow
    pulse_jax --generator=runs/flow/generator --solver=flow:8

The network is diffusers' `UNet2DModel`. It learns from drawn faces, from a photograph's crops
(--data), or from a folder of images (--data_dir). Levels are drawn as the logistic function of a
standard normal number, as in Stable Diffusion 3 (arXiv 2403.03206), since the middle is hardest.

Every few minutes, a run writes `state/`, from which it goes on; samples; a row of metrics.csv, with
the loss and the quality of samples as train_stylegan.py has it; and `generator/`, which the search
takes as --generator. --stop_minutes and --finish end it by the clock. At a side of 32, one CPU core
learns from 40 images a second.
"""

import sys
from functools import partial
from typing import Any, NamedTuple

from common import data, door, pool, training
from common.training import random_key

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from pulse_jax import images
from pulse_jax.files import expanded
from pulse_jax.generators.diffusion import DiffusionModel, diffusion_generator
from pulse_jax.generators.diffusion.autoencoders import DepthToSpace
from pulse_jax.generators.diffusion.schedules import FlowSchedule
from pulse_jax.generators.diffusion.unet import UNet2DModel

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(training)
flags.adopt_module_key_flags(pool)
flags.DEFINE_enum("data", "faces", ["faces", *data.PHOTOGRAPHS], "The flow learns from these.")
flags.DEFINE_string("data_dir", None, "The flow learns from the images in this folder instead.")
flags.DEFINE_list(
    "channels", "32,64,128", "The layers have this many channels at the full side, a half, …."
)
flags.DEFINE_integer(
    "layers_per_block", 1, "There are this many residual blocks on the way down, at each side.", 1
)
flags.DEFINE_integer(
    "fold",
    2,
    "Squares of this side become one pixel of the network, with a channel for each of their "
    "values, which makes it several times as fast.",
    1,
)
flags.DEFINE_integer("solver_steps", 8, "Samples take this many steps of the solver.", 1, 1000)
flags.DEFINE_float("learning_rate", 1e-3, "Adam has this learning rate.")
flags.DEFINE_integer("ema_images", 10_000, "The averaged network has this half-life, in images.", 1)

WARM_UP = 200  # steps
GROUPS = 8  # of a norm
HEAD = 32  # channels of a head of attention, which the least side has


class TrainState(NamedTuple):
    params: Any
    average: Any  # exponential moving average of the parameters
    optimizer: optax.OptState
    step: jax.Array


def main():
    minutes = training.stopwatch()
    output = expanded(FLAGS.output_dir, "--output_dir").absolute()
    output.mkdir(parents=True, exist_ok=True)
    network = make_network()
    model = DiffusionModel(network, FlowSchedule(), DepthToSpace(FLAGS.fold))
    start, step = make_step(network)
    training.claim(output / "config.json", sys.modules[__name__])
    with training.saved_states(output) as manager:
        first = manager.latest_step() or 0
        if first >= training.last_step():
            return output
        batch, quality = data_set(output)
        state = jax.jit(start)(first_params(network))
        if first:
            state = training.restored(manager, first, state)
        samples = make_samples(model)

        def train(i, state, rate):
            return step(state, batch(i), rate * min(1, (i + 1) / WARM_UP))

        def report(state, row, final):
            found = training.all_batches(partial(samples, state.average))
            training.append_row(output / "metrics.csv", row | quality(found))
            rows = [found[k : k + 8] for k in range(0, 64, 8)]
            images.save_image(output / f"samples_{row['images']:08d}.png", images.grid(rows))
            training.export(output / "generator", generator=(model, {"network": state.average}))

        training.run(manager, minutes, first, state, train, ("loss",), report)
    return output


def make_network():
    """Raises ValueError for channels that don't fit."""
    channels = door.whole_numbers("channels")
    for number in channels:
        if number % HEAD:
            raise ValueError(f"--channels={number} must be a multiple of {HEAD}")
    plain = len(channels) - 1
    if FLAGS.resolution % (FLAGS.fold * 2**plain):
        raise ValueError(
            f"--resolution={FLAGS.resolution} is no multiple of {FLAGS.fold * 2**plain}, by which "
            f"--fold={FLAGS.fold} and {len(channels)} levels of --channels divide it"
        )
    values = 3 * FLAGS.fold**2
    return UNet2DModel(
        sample_size=FLAGS.resolution // FLAGS.fold,
        in_channels=values,
        out_channels=values,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
        layers_per_block=FLAGS.layers_per_block,
        norm_num_groups=GROUPS,
        attention_head_dim=HEAD,
    )


def folded(x):
    """What `DepthToSpace` unfolds to images (N, H, W, 3)."""
    n, height, width, _ = x.shape
    f = FLAGS.fold
    x = x.reshape(n, height // f, f, width // f, f, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height // f, width // f, -1)


def data_set(output):
    """`batch(i)`: images in [−1, 1] of step i, and `quality(samples)` as in `training`."""
    if FLAGS.data == "faces" and not FLAGS.data_dir:
        pool.check()
        known = pool.stored(output)
        return lambda i: 2 * pool.batch(known, i)[1] - 1, pool.make_quality(known, output)
    if FLAGS.data_dir:
        source = data.folder(expanded(FLAGS.data_dir, "--data_dir"), FLAGS.resolution)
    else:
        source = data.photograph(FLAGS.data, FLAGS.resolution)
    draw, data_key = jax.jit(source.draw, static_argnums=2), random_key("data")

    def batch(i):
        return draw(source.train, jax.random.fold_in(data_key, i), FLAGS.batch_size)[0]

    def pictures_of(part):
        key = random_key("quality")

        def some(i):
            return (draw(part, jax.random.fold_in(key, i), FLAGS.batch_size)[0] + 1) / 2

        return training.all_batches(some)

    train = pictures_of(source.train)
    return batch, training.make_quality(output, train, partial(pictures_of, source.held_out))


def first_params(network):
    """Kernels from N(0, 1 / inputs), scales 1, biases 0.

    They are drawn by NumPy: to compile the module's own draws of so many leaves takes minutes.
    """
    rng = np.random.default_rng([FLAGS.seed % 2**32, training.RANDOM.index("start")])

    def draw(path, leaf):
        match path[-1].key:
            case "kernel":
                scale = np.float32(1 / np.sqrt(np.prod(leaf.shape[:-1])))
                return scale * rng.standard_normal(leaf.shape, np.float32)
            case "scale":
                return np.ones(leaf.shape, np.float32)
            case "bias":
                return np.zeros(leaf.shape, np.float32)

    x, t = jnp.zeros((1, *network.noise_shape)), jnp.zeros(1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, t)["params"]
    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_step(network):
    """`start(params) → state`, and `step(state, x, rate) → state, losses`."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    times = FlowSchedule().num_train_timesteps

    def loss(params, x, key):
        x = folded(x)
        level_key, noise_key = jax.random.split(key)
        levels = jax.nn.sigmoid(jax.random.normal(level_key, (len(x),)))
        noise, s = jax.random.normal(noise_key, x.shape), levels[:, None, None, None]
        found = network.apply({"params": params}, (1 - s) * x + s * noise, times * levels)
        return jnp.mean((found - (noise - x)) ** 2)

    def start(params):
        average = jax.tree.map(jnp.copy, params)
        return TrainState(params, average, optimizer.init(params), jnp.int32(0))

    @partial(jax.jit, donate_argnums=0)
    def step(state, x, rate):
        key = jax.random.fold_in(random_key("steps"), state.step)
        found, gradient = jax.value_and_grad(loss)(state.params, x, key)
        state = training.updated(state, gradient, optimizer, rate)
        average = training.averaged(state.average, state.params, state.step)
        return state._replace(average=average), {"loss": found}

    return start, step


def make_samples(model):
    """`samples(params, i)`: images in [0, 1], batch i of those whose quality is measured."""
    generator = diffusion_generator(model, f"flow:{FLAGS.solver_steps}")

    @jax.jit
    def samples(params, i):
        keys = jax.random.split(jax.random.fold_in(random_key("quality"), i), FLAGS.batch_size)
        latents, frozen = jax.vmap(generator.sample)(keys)
        return jax.vmap(generator.synthesize, (None, 0, 0))({"network": params}, latents, frozen)

    return samples


if __name__ == "__main__":
    flags.mark_flag_as_required("output_dir")
    door.run(main)
