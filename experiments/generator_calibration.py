"""Do posterior samples hold what they promise where the generator is a real one?

    python experiments/generator_calibration.py --preset=full

As calibration.py, with a bundled generator in place of a linear decoder, where whole independent
posteriors would cost too much. Truths are drawn from the generator's own prior, with styles that
share a part (`style_spread`), and noise of a known width is added to their small pictures. A chain
passes through each truth at a random place (`pulse_jax.calibration.through_truth`), so that the
truth's rank among its draws is exactly uniform if the sampler and the density are right. A fault
shows as far as the chain moves. Ranks are of the log density, of the misfit, which is the mean
squared difference of the downscaled image and the picture, and of four random projections of the
image.

The restarts of a search, by the fast recipe without GEOCROSS, are taken as samples for comparison.
They are independent of each other and of the truth, and so have a Δcal too: their variance over the
squared error of their mean, with its interval of 95%.

Writes table.csv, and calibration.png with the shares of truths below each rank. --inputs is the
number of truths, and --restarts that of draws for each. --preset=full takes 64 truths with 15
draws, and an hour and a half of one core; an interrupted run goes on with the same command.
"""

from functools import partial

from common import harness
from common.ranks import draw

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax import calibration, likelihoods, operators, posterior, samplers
from pulse_jax.chains import placements

FLAGS = flags.FLAGS
flags.DEFINE_float("style_spread", 0.5, "Layers share their styles but for this part.", 0, 1)
flags.DEFINE_float("noise", 0.03, "The noise has this width, for values from 0 to 1.", 0)
flags.DEFINE_float("step_size", 0.05, "The leapfrogs of a chain are this long, in radians.", 0)
flags.DEFINE_integer("thinning", 4, "A chain makes this many transitions for each draw.", 1)
PRESETS = {"quick": {"inputs": 8, "restarts": 7}, "full": {"inputs": 64, "restarts": 15}}
AT_ONCE = 8  # truths in one cell
RESTARTS = "restarts of a search"
TAKEN = {"half": 0.5, "twice": 2.0}  # of the noise's width
METHODS = (
    "hmc",
    "geodesic_hmc",
    "hmc, noise taken as half",
    "hmc, noise taken as twice",
    RESTARTS,
)
PROJECTIONS = 4


def main(folder):
    for name, told in (("inputs", "a test of ranks"), ("restarts", "Δcal")):
        if (given := FLAGS[name].value) < 2:
            raise ValueError(f"--{name}={given}: {told} takes at least 2")
    generator, params = pulse_jax.load(FLAGS.generator, style_spread=FLAGS.style_spread)
    rows, drawn = [], {}
    for method in METHODS:
        simulate = make_simulate(method, generator, params)
        firsts = range(0, FLAGS.inputs, AT_ONCE)
        cells = [folder.arrays(f"{method} {i:03d}", partial(simulate, i)) for i in firsts]
        found = {name: np.concatenate([cell[name] for cell in cells]) for name in cells[0]}
        drawn[method] = ranks(found)
        row = {"samples": method, "p-value of ranks": calibration.uniformity(drawn[method])}
        delta = ""
        if method == RESTARTS:
            value, low, high = calibration.delta_cal(found["truths"], found["draws"])
            delta = f"{value:.2f} [{low:.2f}, {high:.2f}]"
        stay = is_truth(found["truths"], found["draws"]).all(1).mean()
        row |= {"draws per truth moved": moved(found), "chains that stay": float(stay)}
        rows.append(row | {"Δcal": delta})
    folder.table("table.csv", rows)
    shares = {name: columns[:, 1:3] for name, columns in drawn.items()}
    titles = "rank of the misfit", "rank of a random projection"
    folder.figure("calibration.png", draw(shares, titles))


def make_simulate(method, generator, params):
    """`simulate(first)`: truths and draws of a cell, as images (N, d), (N, draws, d), their log
    densities, and pictures."""
    operator = operators.bicubic(FLAGS.factor)
    prior = "spheres" if method == "geodesic_hmc" else "gaussian"
    share = TAKEN.get(method.rpartition(" ")[2], 1.0)
    right, taken = (
        posterior.build(generator, operator, likelihoods.gaussian(s * FLAGS.noise), prior=prior)
        for s in (1.0, share)
    )
    kernel = samplers.geodesic_hmc if prior == "spheres" else samplers.hmc
    sampler = kernel(taken.loglikelihood, min(1, share) * FLAGS.step_size)

    @jax.jit
    def chains(params, keys, targets, truths):
        return jax.vmap(
            lambda key, target, truth: calibration.through_truth(
                key, sampler, params, target, truth, FLAGS.restarts, FLAGS.thinning
            )
        )(keys, targets, truths)

    def restarts(first, targets):
        search = harness.build(generator, operator, harness.optimizer_of("fast"), geocross=0)
        found = harness.search_all(
            generator,
            params,
            operator,
            search,
            targets,
            stop_at_eps=True,
            seed=FLAGS.seed + 1 + first,  # or restarts of each cell would begin at the same points
        ).state.best.latents
        shape = len(targets), FLAGS.restarts
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found), ()

    @jax.jit
    def measure(params, pictures, positions):
        def one(picture, position):
            logdensity = right.loglikelihood(params, picture, position) + right.logprior(position)
            return right.image(params, position).ravel(), logdensity

        return jax.lax.map(lambda pair: one(*pair), (pictures, positions), batch_size=8)

    def simulate(first):
        numbers = np.arange(first, min(first + AT_ONCE, FLAGS.inputs))
        key = jax.random.key(FLAGS.seed)
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3))(numbers)
        truths = jax.vmap(right.sample)(keys[:, 0])
        clean = jax.vmap(right.degraded, (None, 0))(params, truths)
        pictures = jax.vmap(right.likelihood.sample)(keys[:, 1], clean)
        if method == RESTARTS:
            positions = restarts(first, np.asarray(pictures))
        else:
            whole, split = placements(len(numbers))
            inputs = jax.device_put((keys[:, 2], pictures, truths), split)
            positions = jax.device_get(chains(jax.device_put(params, whole), *inputs))
        true, density = measure(params, pictures, truths)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), positions)
        repeated = np.repeat(pictures, FLAGS.restarts, axis=0)
        images, densities = measure(params, repeated, flat)
        shape = len(numbers), FLAGS.restarts
        return {
            "pictures": np.asarray(pictures),
            "truths": np.asarray(true, np.float16),
            "draws": np.asarray(images.reshape(*shape, -1), np.float16),
            "logdensity of truths": np.asarray(density),
            "logdensity of draws": np.asarray(densities.reshape(shape)),
        }

    return simulate


def ranks(found):
    """(N, 2 + PROJECTIONS) of the log density, the misfit and random projections of the image.

    A draw that is the truth itself, where the chain hasn't moved yet, has its values up to rounding
    only. It gets them exactly, since ranks of equal values are random.
    """
    rng = np.random.default_rng((FLAGS.seed, 1))
    truths, draws = (found[name].astype(np.float32) for name in ("truths", "draws"))
    directions = rng.standard_normal((truths.shape[-1], PROJECTIONS), np.float32)
    density, densities = found["logdensity of truths"], found["logdensity of draws"]
    misfit, misfits = (
        np.asarray(misfits_of(found["pictures"], x)) for x in (truths[:, None], draws)
    )
    values = np.column_stack([density, misfit, truths @ directions])
    drawn = np.concatenate([np.stack([densities, misfits], -1), draws @ directions], axis=-1)
    drawn = np.where(is_truth(truths, draws)[..., None], values[:, None], drawn)
    return calibration.ranks(rng, values, drawn)


@jax.jit
def misfits_of(pictures, images):
    """Mean squared differences (N, k) of downscaled images (N, k, d) from pictures (N, h, w, C)."""
    operator, (_, height, width, channels) = operators.bicubic(FLAGS.factor), pictures.shape

    def misfit(picture, image):
        whole = image.reshape(FLAGS.factor * height, FLAGS.factor * width, channels)
        return jnp.mean((operator(whole) - picture) ** 2)

    return jax.vmap(jax.vmap(misfit, (None, 0)))(pictures, images)


def is_truth(truths, draws):
    """Which draws (N, draws) are the truth itself, up to rounding of their images."""
    return np.abs(draws - truths[:, None]).max(-1) < 2e-3


def moved(found):
    """Mean distance of a draw's pixels to the truth's, over that of two truths: how far a fault of
    the sampler would show."""
    truths, draws = (found[name].astype(np.float32) for name in ("truths", "draws"))
    apart = np.sqrt(np.mean((draws - truths[:, None]) ** 2))
    return float(apart / np.sqrt(np.mean((np.roll(truths, 1, axis=0) - truths) ** 2)))


if __name__ == "__main__":
    harness.run(main, PRESETS)
