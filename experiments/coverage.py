"""Do error bars hold on a real generator, in chains that never saw the truth?

    python experiments/coverage.py --preset=full

Chains begin at draws of the prior that are near the picture. They are warmed up and drawn from as
by the command, but noise maps that a search doesn't move are zero. Half of the truths are drawn by
the generator itself, with styles that share a part (`style_spread`), so that its prior is the right
one. The others are pictures that it didn't draw. With these the same measures tell how wrong the
generator is as a prior. Noise of a known width is added to all small pictures. There are four
measures (see `pulse_jax.calibration`):

- The ranks of the truth among its draws, by four random projections of the image.
- Expected coverage with random reference points (TARP), in all pixels at once.
- Δcal, the draws' variance over the squared error of their mean. Below 1 the error bars are too
  short. Brackets hold it with 95%. Draws of a chain are alike, and it takes them for as many as
  their effective sample size says, of twenty projections of the image together.
- Reliability, where the generator comes with a reader: of the faces for which glasses, a kind of
  hair or any other attribute is said to be 70% likely, seven in ten should have it. All kinds
  count. Where two are about equally likely, one of them is right, so that the middle of the scale
  tells little. Predictions of one face depend on each other, and brackets allow for that.

For the other measures, draws count as independent. They nearly are if the chains have met, and a
column has the median of the R-hats. Writes table.csv, reliability.csv and coverage.png, with the
shares of truths below each rank.

--inputs is the number of truths of each kind, --restarts that of chains for each, and --draws that
of their transitions after the warm-up, of which every --thinning-th is kept. --steps sets how long
the warm-up is, as in the command. --preset=full takes 64 truths of each kind and seven hours of one
core. An interrupted run goes on with the same command. Quick takes three minutes, and says nothing
but that it runs.
"""

from functools import cache, partial

from common import harness
from common.ranks import draw

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax import calibration, chains, diagnostics, likelihoods, operators, posterior
from pulse_jax.generators import checkpoint

FLAGS = flags.FLAGS
flags.DEFINE_float("style_spread", 0.5, "Layers share their styles but for this part.", 0, 1)
flags.DEFINE_float("noise", 0.03, "The noise has this width, for values from 0 to 1.", 0)
flags.DEFINE_integer(
    "draws",
    None,
    "Each chain makes this many transitions after the warm-up. Without it, the preset chooses.",
    4,
)
flags.DEFINE_integer("thinning", 10, "Every so many transitions, a draw is kept.", 1)
PRESETS = {
    "quick": {"inputs": 4, "restarts": 4, "steps": 10, "draws": 20, "thinning": 5},
    "full": {"inputs": 64, "restarts": 4, "steps": 50, "draws": 240},
}
OWN, OTHERS = "drawn by the generator", "others"
PROJECTIONS = 4


def main(folder):
    if FLAGS.inputs < 2:
        raise ValueError(f"--inputs={FLAGS.inputs}: TARP takes at least 2")
    if FLAGS.restarts < 2:
        raise ValueError(f"--restarts={FLAGS.restarts}: R-hat takes at least 2")
    if FLAGS.draws % FLAGS.thinning:
        raise ValueError(f"--draws={FLAGS.draws} is no multiple of --thinning={FLAGS.thinning}")
    if FLAGS.draws < 4 * FLAGS.thinning:
        raise ValueError(
            f"--draws={FLAGS.draws} --thinning={FLAGS.thinning}: an effective sample size takes at "
            "least 4 draws of a chain"
        )
    found = {}
    sample = make_sample()
    for kind in (OWN, OTHERS):
        numbers = range(FLAGS.inputs)
        cells = [folder.arrays(f"{kind} {i:03d}", partial(sample, kind, i)) for i in numbers]
        found[kind] = {name: np.stack([cell[name] for cell in cells]) for name in cells[0]}
    judged = {kind: judge(arrays) for kind, arrays in found.items()}
    folder.table("table.csv", [{"truths": kind} | line for kind, (line, _) in judged.items()])
    if reader := checkpoint.load_reader(FLAGS.generator):
        rows = [
            {"truths": kind} | row
            for kind, arrays in found.items()
            for row in reliability(reader[0], arrays["read of truth"], arrays["read of draws"])
        ]
        folder.table("reliability.csv", rows)
    shares = {kind: columns for kind, (_, columns) in judged.items()}
    titles = "rank of a random projection", "coverage (TARP)"
    folder.figure("coverage.png", draw(shares, titles))


def make_sample():
    """`sample(kind, i)`: truth i of a kind and its draws, as images (d,) and (draws, d), what is
    read off these, and R-hat."""
    generator, params = pulse_jax.load(FLAGS.generator, style_spread=FLAGS.style_spread)
    likelihood = likelihoods.gaussian(FLAGS.noise)
    density = posterior.build(generator, operators.bicubic(FLAGS.factor), likelihood)
    reader = checkpoint.load_reader(FLAGS.generator)
    others = cache(partial(harness.held_out, generator.resolution))
    if FLAGS.images is not None:
        others()  # so that what is wrong with them is told before the work
    shape = generator.resolution, generator.resolution, generator.channels
    directions = jax.random.normal(jax.random.key(0), (20, *shape))

    whole, split = chains.placements(FLAGS.restarts)
    params = jax.device_put(params, whole)

    @jax.jit
    def images(params, positions):  # (chains, n, ...)
        return jax.vmap(partial(jax.lax.map, partial(density.image, params)))(positions)

    @jax.jit
    def read(images):
        if reader is None:
            return jnp.zeros((len(images), 0))
        return reader[0].apply({"params": reader[1]}, jnp.clip(images, 0, 1))

    def sample(kind, number):
        # Another seed than that of the others' faces, whose keys would be among these.
        keys = jax.random.split(jax.random.fold_in(jax.random.key(FLAGS.seed + 1), number), 5)
        if kind == OWN:
            position = jax.tree.map(lambda x: x[None, None], density.sample(keys[0]))
            truth = images(params, position)[0, 0]
        else:
            truth = others()[number]
        picture = density.likelihood.sample(keys[1], density.operator(np.asarray(truth)))
        inputs = params, jax.device_put(picture, whole)
        chain_keys = jax.device_put(jax.random.split(keys[2], FLAGS.restarts), split)
        starts = jax.device_put(chains.starts(chain_keys, density, *inputs), split)
        state, sampler = chains.warm_up(keys[3], density, *inputs, starts, transitions=FLAGS.steps)
        _, positions, _ = chains.draw(keys[4], sampler, *inputs, state, FLAGS.draws)
        drawn = np.asarray(images(params, positions))  # (chains, draws, R, R, C)
        rhat = diagnostics.rhat(np.tensordot(drawn, directions, ((2, 3, 4), (1, 2, 3)))).max()
        drawn = drawn.reshape(-1, *shape)
        kept = np.arange(len(drawn)) % FLAGS.thinning == FLAGS.thinning - 1
        return {
            "truth": np.asarray(truth, np.float16).ravel(),
            "draws": np.asarray(drawn[kept], np.float16).reshape(kept.sum(), -1),
            "read of truth": np.asarray(read(jnp.asarray(truth)[None]))[0],
            "read of draws": np.asarray(read(drawn[kept])),
            "R-hat": np.asarray(rhat),
        }

    return sample


def judge(found):
    """A line of the table, and the ranks (N, 2) of a projection and of TARP."""
    rng = np.random.default_rng((FLAGS.seed, 1))
    truths, draws = (found[name].astype(np.float32) for name in ("truth", "draws"))
    directions = rng.standard_normal((truths.shape[-1], PROJECTIONS), np.float32)
    ranks = calibration.ranks(rng, truths @ directions, draws @ directions)
    coverage = calibration.tarp(rng, truths, draws)
    value, low, high = calibration.delta_cal(truths, draws, effective(rng, draws))
    line = {
        "p-value of ranks": calibration.uniformity(ranks),
        "p-value of coverage": calibration.uniformity(coverage),
        "Δcal": f"{value:.2f} [{low:.2f}, {high:.2f}]",
        "R-hat": float(np.median(found["R-hat"])),
    }
    return line, np.column_stack([ranks[:, 0], coverage])


def effective(rng, draws):
    """The effective sample size (N,) of draws (N, draws, d), in all of an image together.

    1 over it is the mean over projections. Chains don't know of each other, so that there are at
    least as many as chains.
    """
    directions = rng.standard_normal((draws.shape[-1], 20), np.float32)
    values = (draws @ directions).reshape(len(draws), FLAGS.restarts, -1, 20)
    sizes = diagnostics.diagnose(np.moveaxis(values, 0, 2)).ess_bulk
    return 1 / (1 / np.maximum(sizes, FLAGS.restarts)).mean(axis=1)


def reliability(reader, truths, draws):
    """How often a truth shows what has about the same share of its draws, in rows: all kinds of all
    attributes together. `truths` (N, D) and `draws` (N, draws, D) are as read."""

    def shares(read):  # of each kind of each attribute, in a row
        return [share for kinds in reader.shares(read).values() for share in kinds.values()]

    said = np.array([shares(drawn) for drawn in draws])
    shown = np.array([shares(truth[None]) for truth in truths]) == 1
    found = calibration.reliability(said, shown)
    return [
        {"said to be": stated, "is": f"{observed:.2f} [{low:.2f}, {high:.2f}]", "count": count}
        for count, stated, observed, low, high in zip(*map(np.ndarray.tolist, found), strict=True)
    ]


if __name__ == "__main__":
    harness.run(main, PRESETS)
