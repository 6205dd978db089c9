"""What a search costs with diffusion, consistency and flow models, by solver and steps.

    python experiments/diffusion_costs.py --preset=full
    python experiments/diffusion_costs.py --preset=full --against_diffusers

The networks have the layers that published ones have, with random weights and fewer channels:
--width at a side of 64, and half as many at 256. An evaluation is one restart's image and gradient,
in the compiled loop of a search. For each solver, the table has

- the passes through the network that an evaluation takes: for each of a solver's calls, one for the
  image, one to compute it anew for the gradient if there are several calls, and the gradient;
- evaluations/s;
- the share of the rate of square matrix products (3072² on a CPU, 8192² elsewhere), which is how
  fast the passes are done. It counts those of the network alone. It can be above 1 where XLA finds
  that a pass has been done before;
- memory: that of the compiled loop, and over that of the family's first solver;
- the seconds that it takes to compile.

With --against_diffusers (pip install -e ".[bench]") the same search, of a network of DDPM kind at
64², is made in PyTorch with diffusers, which has saved the pipeline that ours reads. Its images and
errors are checked to be equal before. The table has the time of its steps over that of ours: as a
programmer would write them, where memory grows with the solver's steps, and with PyTorch's
checkpoints around each call, as ours has them. The goal is 1.5.

What is compared is timed in turns, and figures, also ratios, are medians over the turns. Writes
table.csv and, with --against_diffusers, against_diffusers.csv. The same command goes on with what
is missing. --preset=quick takes a minute on two cores, and full, with --against_diffusers, ten.
Other work on the machine spoils all but the ratios.
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from common import harness
from common.timing import extent, in_turns, matrix_product, matrix_side, peak_memory

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import pulse_jax
from pulse_jax.driver import advance
from pulse_jax.generators.diffusion import (
    DiffusionModel,
    diffusion_generator,
    schedules,
    solvers,
)
from pulse_jax.generators.diffusion.autoencoders import DepthToSpace, VQModel
from pulse_jax.generators.diffusion.edm import EDMPrecond
from pulse_jax.generators.diffusion.unet import UNet2DModel

FLAGS = flags.FLAGS
flags.DEFINE_list("families", None, "These are measured. Without it, the preset chooses.")
flags.DEFINE_integer(
    "width", None, "Networks have this many channels at 64². Without it, the preset chooses.", 32
)
flags.DEFINE_integer(
    "layers", None, "They have this many blocks at each side. Without it, the preset chooses.", 1
)
flags.DEFINE_integer(
    "repeats", None, "This many turns are timed. Without it, the preset chooses.", 1
)
flags.DEFINE_bool("against_diffusers", False, "The search is made with diffusers, too.")
CHUNK = 2  # steps in a compiled loop
FACTOR = 8
RATE = 1.0  # of the gradient descent that is compared


def main(folder):
    for name in FLAGS.families:
        if name not in FAMILIES:
            raise ValueError(f"--families={name} is none of {', '.join(FAMILIES)}")
    if FLAGS.width % 64:
        raise ValueError(f"--width={FLAGS.width} must be a multiple of 64")
    rows = []
    for name in FLAGS.families:
        make, solvers_of = FAMILIES[name]
        for solver in solvers_of:
            cell = f"{name}_{solver}".replace(" ", "_").replace(":", "_")
            found = folder.rows(cell, partial(cost, make, solver))
            rows += [{"family": name, **row} for row in found]
    folder.table("table.csv", with_relative_memory(rows))
    if FLAGS.against_diffusers:
        compared = [
            row
            for steps in COMPARED
            for row in folder.rows(f"against_diffusers_{steps}", partial(compare, steps))
        ]
        folder.table("against_diffusers.csv", compared)


def with_relative_memory(rows):
    """The rows, with the memory over that of the family's first solver."""
    first = {row["family"]: row["memory MB"] for row in reversed(rows)}
    return [row | {"over the first": row["memory MB"] / first[row["family"]]} for row in rows]


# --- Networks, as published ones are, with --width channels or fewer. ---


def ddpm(side):
    """As google/ddpm-celebahq-256 is, or at 64² with four levels."""
    w = FLAGS.width // (1 if side == 64 else 2)
    widths = (w, w, 2 * w, 4 * w) if side == 64 else (w, w, 2 * w, 2 * w, 4 * w, 4 * w)
    return DiffusionModel(UNet2DModel(**ddpm_config(side, widths)), schedules.NoiseSchedule())


def ddpm_config(side, widths):
    """The settings of a network that has attention at the side of 16."""
    attention = [side >> level == 16 for level in range(len(widths))]
    return {
        "sample_size": side,
        "block_out_channels": widths,
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attention[::-1]),
        "layers_per_block": FLAGS.layers,
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    }


def consistency(side):
    """As openai/diffusers-cd_imagenet64_l2 and diffusers-cd_bedroom256_l2 are, without classes."""
    w = FLAGS.width // (1 if side == 64 else 2)
    widths = (w, 2 * w, 3 * w, 4 * w) if side == 64 else (w, w, 2 * w, 2 * w, 4 * w, 4 * w)
    attention = [side >> level <= 32 for level in range(len(widths))]
    down = ("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attention)
    up = ("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in attention[::-1])
    network = UNet2DModel(
        side,
        widths,
        tuple(down),
        tuple(up),
        layers_per_block=FLAGS.layers,
        attention_head_dim=64,
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
    )
    return DiffusionModel(network, schedules.ConsistencySchedule())


def flow(side):
    """As train_flow.py has it: squares of 2×2 pixels are one."""
    w = FLAGS.width // 2
    network = UNet2DModel(
        side // 2,
        (w, 2 * w, 4 * w),
        ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        in_channels=12,
        out_channels=12,
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=32,
    )
    return DiffusionModel(network, schedules.FlowSchedule(), DepthToSpace(2))


def edm(side):
    """DDPM++, as EDM's for FFHQ at 64."""
    network = EDMPrecond(side, 3, "SongUNet", FLAGS.width, (1, 2, 2, 2), FLAGS.layers, (16,))
    return DiffusionModel(network, schedules.EDMSchedule())


def latent(side):
    """As CompVis/ldm-celebahq-256 is: latents of a quarter of the side, and a VQ decoder."""
    w = FLAGS.width
    network = UNet2DModel(
        side // 4,
        (w, 2 * w, 3 * w, 4 * w),
        ("DownBlock2D", *["AttnDownBlock2D"] * 3),
        (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
        layers_per_block=FLAGS.layers,
        attention_head_dim=32,
    )
    decoder = VQModel(
        block_out_channels=(w // 2, w, 2 * w),
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=FLAGS.layers,
    )
    return DiffusionModel(network, schedules.NoiseSchedule(clip_sample=False), decoder)


# A family's network, and the solvers that are measured. "linear" is BIRD's.
FAMILIES = {
    "ddpm 64": (partial(ddpm, 64), ("ddim:1", "ddim:10", "ddim:10:linear")),
    "consistency 64": (partial(consistency, 64), ("consistency:1", "consistency:2")),
    "flow 64": (partial(flow, 64), ("flow:1", "flow:8", "flow:8:linear")),
    "edm 64": (partial(edm, 64), ("one_step:2.5", "heun:9")),
    "ddpm 256": (partial(ddpm, 256), ("ddim:1", "ddim:4")),
    "consistency 256": (partial(consistency, 256), ("consistency:1",)),
    "latent 256": (partial(latent, 256), ("ddim:1", "ddim:10")),
}
PRESETS = {
    "quick": {
        "families": ["ddpm 64", "flow 64"],
        "width": 64,
        "layers": 1,
        "restarts": 1,
        "repeats": 3,
    },
    "full": {
        "families": list(FAMILIES),
        "width": 64,
        "layers": 2,
        "restarts": 1,
        "repeats": 3,
    },
}
COMPARED = 1, 4  # steps of DDIM

# --- The search that is measured. ---


class Loop(NamedTuple):
    """A compiled loop of CHUNK steps, and what it is called with."""

    program: Any
    inputs: tuple[Any, ...]
    compiling: float  # seconds

    def __call__(self):
        """Do its steps, from the same state each time. Returns the errors (restarts, CHUNK)."""
        step, params, targets, state, ends = self.inputs
        _, info = self.program(step, params, targets, jax.tree.map(jnp.copy, state), *ends)
        return np.asarray(info.l2)


def compiled(generator, params, optimizer, target=None):
    """The `Loop` of a search for images that are grey, or those of `target`."""
    operator = pulse_jax.operators.area(FACTOR)
    loss = pulse_jax.losses.parse("100*L2", 0.0)
    search = pulse_jax.build(generator, operator, loss, optimizer)
    keys = jax.random.split(jax.random.key(FLAGS.seed), FLAGS.restarts)
    state = jax.jit(lambda keys: jax.vmap(search.init)(*jax.vmap(generator.sample)(keys)))(keys)
    side = generator.resolution // FACTOR
    targets = jnp.full((FLAGS.restarts, side, side, 3), 0.5) if target is None else target
    mesh = Mesh(jax.local_devices()[:1], "slots")
    params = jax.device_put(params, NamedSharding(mesh, P()))
    targets, state = jax.device_put((targets, state), NamedSharding(mesh, P("slots")))
    ends = 2**30, -np.inf  # no restart gets there
    began = time.perf_counter()
    lowered = advance.lower(search.step, params, targets, state, *ends, length=CHUNK, mesh=mesh)
    program = lowered.compile()
    inputs = search.step, params, targets, state, ends
    return Loop(program, inputs, time.perf_counter() - began)


def cost(make, solver):
    """The one row of a model and a solver."""
    model = make()
    generator = diffusion_generator(model, solver)
    optimizer = pulse_jax.SCHEMES["rescale"](optax.adam(0.1))
    loop = compiled(generator, random_params(model), optimizer)
    product = matrix_product()
    loop(), product()
    seconds, product_seconds = in_turns(FLAGS.repeats, loop, product)
    passes = passes_of(solver, model.schedule)
    evaluations = CHUNK * FLAGS.restarts
    products = evaluations * passes * operations(model.network) / (2 * matrix_side() ** 3)
    yield {
        "solver": solver,
        "passes": passes,
        "evaluations/s": np.median(evaluations / seconds),
        "share of matrix rate": np.median(products * product_seconds / seconds),
        "compile s": loop.compiling,
        "memory MB": peak_memory(loop.program) / 1e6,
    }


def random_params(model):
    """Weights as they are drawn at first, which is quicker in NumPy."""
    rng = np.random.default_rng(FLAGS.seed)

    def draw(leaf):
        scale = 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return scale * rng.standard_normal(leaf.shape, np.float32)

    network, decoder = model.network, model.decoder
    x = jnp.zeros((1, *network.noise_shape))
    shapes = {"network": jax.eval_shape(network.init, jax.random.key(0), x, jnp.ones(()))}
    if decoder is not None:
        shapes["decoder"] = jax.eval_shape(decoder.init, jax.random.key(0), x)
    return {part: jax.tree.map(draw, tree.get("params", {})) for part, tree in shapes.items()}


def passes_of(solver, schedule):
    """How often an evaluation goes through the network, forwards or backwards.

    It does once for the image, and once backwards, unless the solver's Jacobian is linear. Of
    several steps, what the way back needs is computed anew.
    """
    parsed = solvers.parse(solver)
    linear = isinstance(parsed, solvers.LinearJacobian)
    inner = parsed.solver if linear else parsed
    match inner:
        case solvers.Heun():
            calls = 2 * inner.steps - 1
        case solvers.OneStep():
            calls = 1
        case _:
            calls = inner.steps
    anew = calls > 1 and (not linear or getattr(schedule, "clip_sample", False))
    return calls * (1 + anew + (not linear))


def operations(network):
    """Multiplications and additions of one pass, as XLA counts them."""
    x = jnp.zeros((1, *network.noise_shape))
    params = jax.eval_shape(network.init, jax.random.key(0), x, jnp.ones(()))
    return jax.jit(network.apply).lower(params, x, jnp.ones(())).cost_analysis()["flops"]


# --- Beside diffusers. ---


def compare(steps):
    """The one row of so many steps of DDIM: the time of diffusers' search over ours."""
    import torch_diffusers  # it needs PyTorch, as nothing else here does

    w = FLAGS.width
    pipeline = torch_diffusers.pipeline(ddpm_config(64, (w, w, 2 * w, 4 * w)))
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        generator, params = pulse_jax.load(Path(folder), solver=f"ddim:{steps}")
    rng = np.random.default_rng(FLAGS.seed)
    target = rng.random((FLAGS.restarts, 8, 8, 3), np.float32)
    loop = compiled(generator, params, pulse_jax.SCHEMES["rescale"](optax.sgd(RATE)), target)
    noise = np.asarray(loop.inputs[3].latents["noise_0"])[:, 0]

    def theirs(recompute):
        search = torch_diffusers.Search(pipeline, steps, noise, target, FACTOR, RATE, recompute)
        return np.stack([search.step() for _ in range(CHUNK)], axis=1)

    plain, recomputing = partial(theirs, False), partial(theirs, True)
    ours = loop()
    for found in (plain(), recomputing()):
        # A rounding in the network is much larger in the image, and larger still after a step.
        for step, tolerance in ((0, 1e-3), (1, 5e-2)):
            difference = np.abs(found - ours)[:, step].max() / ours[:, step].max()
            if not difference <= tolerance:
                raise ValueError(f"diffusers' errors differ from ours by {difference:.1e}")
    seconds, plain_seconds, recomputing_seconds = in_turns(FLAGS.repeats, loop, plain, recomputing)
    yield {
        "solver": f"ddim:{steps}",
        "ours, evaluations/s": np.median(CHUNK * FLAGS.restarts / seconds),
        "diffusers / ours": np.median(plain_seconds / seconds),
        "range": extent(plain_seconds / seconds),
        "with checkpoints / ours": np.median(recomputing_seconds / seconds),
        "range of these": extent(recomputing_seconds / seconds),
    }


if __name__ == "__main__":
    harness.run(main, PRESETS)
