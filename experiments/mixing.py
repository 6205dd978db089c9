"""How soon do a sampler's chains meet?

    python experiments/mixing.py --preset=full

Each picture's posterior is sampled by Hamiltonian Monte Carlo as in the command, by the same with
longer trajectories, on the spheres, and by preconditioned Crank–Nicolson (`pcn`), which takes no
gradients and whose step is tuned until a quarter of the proposals is accepted. Pictures are drawn
from the prior, by a linear decoder and by a generator, and have noise of a known width. Chains
begin at draws of the prior that are near the picture, and are warmed up; those of `pcn` begin where
those of `hmc` end.

For each decoder and sampler, table.csv has medians over the pictures: the largest R-hat and the
least effective sample size (ESS) of twenty random projections of the image, what ESS a thousand
evaluations of a chain and a second buy, how far a projection jumps in a thousand evaluations, and
after how many evaluations of a chain, warm-up included, the R-hat is at most 1.05. An evaluation is
of the likelihood, or of it with its gradient. Squared jumps from draw to draw are summed, and
divided by twice the variance, so that an independent draw counts as 1. The ESS of chains that have
not met is too good; jumps are known sooner.

priors.csv compares the Gaussian prior with the uniform one on spheres: the largest difference of
the projections' means in Monte Carlo errors, the root mean square of these differences, which is 1
if there is none, and the ratio of the pixels' mean deviations.

--inputs is the number of pictures, --restarts that of chains, and --evaluations what each chain has
after the warm-up. --steps sets how long that is, as in the command. --preset=full takes eight
pictures with eight chains and about a day of one core. An interrupted run goes on with the same
command. Quick takes one picture and some minutes, and its chains are too short to meet.
"""

import math
import time
from functools import partial

from common import harness
from common.linear import linear_decoder

import jax
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax import chains, diagnostics, likelihoods, operators, posterior, samplers

FLAGS = flags.FLAGS
flags.DEFINE_float("style_spread", 0.5, "Layers share their styles but for this part.", 0, 1)
flags.DEFINE_float("noise", 0.03, "The noise has this width, for values from 0 to 1.", 0)
flags.DEFINE_integer("evaluations", 16000, "Each chain makes so many after the warm-up.", 320)
PRESETS = {
    "quick": {"inputs": 1, "restarts": 4, "steps": 10, "evaluations": 320},
    "full": {"inputs": 8, "restarts": 8},
}
LEAPFROGS = {"hmc": 8, "hmc, 16 leapfrogs": 16, "hmc, 32 leapfrogs": 32, "geodesic_hmc": 8}
SAMPLERS = *LEAPFROGS, "pcn"
PROJECTIONS = 20
ACCEPTED = 0.25  # of the proposals of pcn
TUNED, ROUND = 30, 10  # times that its step is changed, and transitions for each
LARGEST_RHAT = 1.05
CHUNK = 320  # evaluations of a chain at a time


def main(folder):
    if FLAGS.restarts < 2:
        raise ValueError(f"--restarts={FLAGS.restarts}: R-hat takes at least 2")
    generator = pulse_jax.load(FLAGS.generator, style_spread=FLAGS.style_spread)
    linear = linear_decoder(8, 256)
    decoders = {"linear decoder": (*linear, 2), "generator": (*generator, FLAGS.factor)}
    rows, priors = [], []
    for decoder, (generator, params, factor) in decoders.items():
        operator = operators.bicubic(factor)
        found = [{} for _ in range(FLAGS.inputs)]  # of each picture
        for i, cells in enumerate(found):
            for name in SAMPLERS:
                inputs = name, i, generator, params, operator, cells
                cells[name] = folder.arrays(f"{decoder} {i:03d} {name}", partial(sample, *inputs))
        for name in SAMPLERS:
            measured = [measure(cells[name]) for cells in found]
            medians = {key: float(np.median([m[key] for m in measured])) for key in measured[0]}
            rows.append({"decoder": decoder, "sampler": name} | medians)
        for i, cells in enumerate(found):
            priors.append({"decoder": decoder, "picture": i} | compare(cells))
    folder.table("table.csv", rows)
    folder.table("priors.csv", priors)


def sample(name, number, generator, params, operator, earlier):
    """What the chains of a sampler draw of a picture, as arrays: projections (chains, n, 20),
    moments of the images, the chains' ends, and costs. `earlier`: cells of other samplers."""
    likelihood = likelihoods.gaussian(FLAGS.noise)
    density = posterior.build(generator, operator, likelihood)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(FLAGS.seed), number), 5)
    clean = degraded(density, params, density.sample(keys[0]))
    whole, split = chains.placements(FLAGS.restarts)
    inputs = jax.device_put((params, likelihood.sample(keys[1], clean)), whole)
    if name == "geodesic_hmc":
        density = posterior.build(generator, operator, likelihood, prior="spheres")
    chain_keys = jax.device_put(jax.random.split(keys[2], FLAGS.restarts), split)
    starts = jax.device_put(chains.starts(chain_keys, density, *inputs), split)
    leapfrogs = LEAPFROGS.get(name, 1)
    if name == "pcn":
        ends = [earlier["hmc"][f"end {i:03d}"] for i in range(len(jax.tree.leaves(starts)))]
        starts = jax.device_put(jax.tree.unflatten(jax.tree.structure(starts), ends), split)
        state, sampler = tune_pcn(keys[3], density, inputs, starts)
        warm = earlier["hmc"]["warm-up"] + TUNED * ROUND
    else:
        state, sampler = chains.warm_up(
            keys[3], density, *inputs, starts, transitions=FLAGS.steps, leapfrogs=leapfrogs
        )
        warm = chains.STARTS * chains.DRAWS
        warm += sum(chains.parts_of_warm_up(FLAGS.steps)) * leapfrogs
        warm += 0 if name == "geodesic_hmc" else clean.size
    state = jax.device_put(state, split)
    transitions, thinning = CHUNK // leapfrogs, max(1, 8 // leapfrogs)
    draw = chains.draw.lower(keys[4], sampler, *inputs, state, transitions).compile()
    found, moments, rates, seconds = [], [], [], 0.0
    for i in range(FLAGS.evaluations // CHUNK):
        began = time.perf_counter()
        key = jax.random.fold_in(keys[4], i)
        state, positions, info = jax.block_until_ready(draw(key, sampler, *inputs, state))
        state = jax.device_put(state, split)  # as what is compiled takes it
        seconds += time.perf_counter() - began
        kept = jax.tree.map(lambda x: x[:, thinning - 1 :: thinning], positions)
        # Waited for, so that the next draws' time isn't that of these images too.
        projections, *of_images = jax.device_get(look(density, params, kept))
        found.append(projections)
        moments.append(of_images)
        rates.append(info.acceptance_rate.mean())
    mean, square = np.mean(np.asarray(moments, np.float64), axis=0)
    return {
        "projections": np.concatenate(found, axis=1),
        "mean": mean.astype(np.float32),
        "std": np.sqrt(np.maximum(square - mean**2, 0)).astype(np.float32),  # against rounding
        "acceptance": np.mean(rates),
        "warm-up": np.array(warm),
        "seconds": np.array(seconds),
        **{
            f"end {i:03d}": x
            for i, x in enumerate(map(np.asarray, jax.tree.leaves(state.position)))
        },
    }


degraded = jax.jit(posterior.Posterior.degraded)


@jax.jit
def look(density, params, positions):
    """Random projections of draws (chains, n, ...), and their images' mean and mean square."""

    def one(position):
        image = density.image(params, position)
        directions = jax.random.normal(jax.random.key(0), (PROJECTIONS, image.size))
        return directions @ image.ravel() / image.size**0.5, image

    projections, images = jax.vmap(partial(jax.lax.map, one))(positions)
    return projections, images.mean((0, 1)), (images**2).mean((0, 1))


def tune_pcn(key, density, inputs, positions):
    """States of chains, and `pcn` with the step of which a share ACCEPTED is accepted."""
    beta = 0.05
    sampler = samplers.pcn(density.loglikelihood, beta)
    state = jax.jit(jax.vmap(sampler.init, (None, None, 0)))(*inputs, positions)
    for i in range(TUNED):
        sampler = samplers.pcn(density.loglikelihood, beta)
        now = jax.random.fold_in(key, i)
        state, _, info = chains.draw(now, sampler, *inputs, state, ROUND)
        gain = (float(info.acceptance_rate.mean()) - ACCEPTED) * 4 / (i + 2) ** 0.5
        beta = min(1.0, beta * math.exp(gain))
    return state, samplers.pcn(density.loglikelihood, beta)


def measure(found):
    """Figures of a sampler's chains, of the slowest projection."""
    values, seconds = found["projections"], float(found["seconds"])
    figures = diagnostics.diagnose(values)
    evaluations = FLAGS.evaluations // CHUNK * CHUNK  # of each chain
    jumps = np.mean(np.diff(values, axis=1) ** 2, axis=(0, 1)) / (2 * values.var((0, 1)))
    ess = float(np.minimum(figures.ess_bulk, figures.ess_tail).min())
    needed = np.inf
    for share in (8, 4, 2, 1):
        part = values[:, : values.shape[1] // share]
        if part.shape[1] >= 8 and diagnostics.rhat(part).max() <= LARGEST_RHAT:
            needed = min(needed, float(found["warm-up"]) + evaluations / share)
    return {
        "acceptance": float(found["acceptance"]),
        "R-hat": float(figures.rhat.max()),
        "ESS": ess,
        "ESS per 1,000 evaluations": 1000 * ess / evaluations,
        "jumps per 1,000 evaluations": float(jumps.min()) * 1000 * values.shape[1] / evaluations,
        "ESS per second": ess / seconds,
        f"evaluations to R-hat {LARGEST_RHAT}": needed,
    }


def compare(cells):
    """How far the posteriors of the two priors are apart."""
    own, other = (cells[name] for name in ("hmc", "geodesic_hmc"))
    means, errors = [], []
    for found in (own, other):
        values = found["projections"]
        means.append(values.mean((0, 1)))
        errors.append(values.std((0, 1)) / np.sqrt(diagnostics.diagnose(values).ess_bulk))
    apart = (means[0] - means[1]) / np.hypot(*errors)
    return {
        "largest difference of means": float(np.abs(apart).max()),
        "root mean square": float(np.sqrt(np.mean(apart**2))),
        "ratio of deviations": float(other["std"].mean() / own["std"].mean()),
    }


if __name__ == "__main__":
    harness.run(main, PRESETS)
