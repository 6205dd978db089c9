"""Do posterior samples hold what they promise? And do a search's restarts?

    python experiments/calibration.py --preset=full

Truths are drawn from the prior of a linear decoder, and noise of a known width is added to their
small pictures. Each picture's posterior is sampled by independent chains from the prior, of which
the last points count. The samples are calibrated if the truth could be one of them. There are three
measures (see `pulse_jax.calibration`):

- Simulation-based calibration: the ranks of the truth among its samples, by log density and by four
  random projections of the image. The p-value is of all five together.
- Expected coverage with random reference points (TARP), in all pixels at once.
- Δcal, the samples' variance over the squared error of their mean. Below 1 the error bars are too
  short. Brackets hold it with 95%.

`hmc` and `geodesic_hmc` pass, on the Gaussian and on the spheres. The ranks find out the others: a
noise that is taken to be half or twice as wide, Langevin's sampler with a large step, and PULSE's
restarts taken as samples, whose error bars are too short.

Writes table.csv and calibration.png, with the shares of truths that regions of each credibility
hold. --inputs is the number of truths, --restarts that of samples for each, and no generator is
loaded. --preset=quick takes 64 truths with 15 samples and half a minute on one core, and full 256
and a minute.
"""

import warnings
from functools import partial

from common import harness
from common.linear import linear_decoder
from common.ranks import draw

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax import calibration, likelihoods, operators, posterior, samplers

FLAGS = flags.FLAGS
PRESETS = {"quick": {"inputs": 64, "restarts": 15}, "full": {"inputs": 256, "restarts": 15}}
SIGMA = 0.1  # of the noise, in [0, 1]
OPERATOR = operators.area(2)
DECODER, BASIS = linear_decoder(4, 8)
TRANSITIONS = 100
METHODS = (
    "hmc",
    "geodesic_hmc",
    "hmc, noise taken as half",
    "hmc, noise taken as twice",
    "langevin, large step",
    "PULSE's restarts",
)
COLUMNS = "ranks (SBC)", "coverage (TARP)"


def main(folder):
    for name, told in (("inputs", "TARP"), ("restarts", "Δcal")):
        if (given := FLAGS[name].value) < 2:
            raise ValueError(f"--{name}={given}: {told} takes at least 2")
    cells = {name: folder.arrays(name, partial(simulate, name)) for name in METHODS}
    results = {name: judge(**cell) for name, cell in cells.items()}
    folder.table("table.csv", [line(name, *result) for name, result in results.items()])
    shares = {name: np.column_stack([r[:, 0], c]) for name, (r, c, _) in results.items()}
    folder.figure("calibration.png", draw(shares, ("rank of the log density", COLUMNS[1])))


def simulate(name):
    """Truths and samples: their images (N, 48), (N, draws, 48) and log densities."""
    width = {"half": 0.5, "twice": 2.0}.get(name.rpartition(" ")[2], 1.0)
    prior = "gaussian" if name.startswith("hmc") else "spheres"
    right, taken = (
        posterior.build(DECODER, OPERATOR, likelihoods.gaussian(s * SIGMA), prior=prior)
        for s in (1.0, width)
    )
    keys = jax.random.split(jax.random.key(FLAGS.seed), 4)
    truths = jax.vmap(right.sample)(jax.random.split(keys[0], FLAGS.inputs))
    clean = jax.vmap(right.degraded, (None, 0))(BASIS, truths)
    noise_keys = jax.random.split(keys[1], FLAGS.inputs)
    pictures = jax.vmap(right.likelihood.sample)(noise_keys, clean)
    number = FLAGS.inputs * FLAGS.restarts
    starts = jax.vmap(right.sample)(jax.random.split(keys[2], number))
    targets = jnp.repeat(pictures, FLAGS.restarts, axis=0)
    if name in ("langevin, large step", "PULSE's restarts"):
        found = (search(name, targets, starts[0]), ())
    else:
        found = last_points(keys[3], taken, targets, starts)

    def measure(positions, pictures):
        images = jax.vmap(right.image, (None, 0))(BASIS, positions)
        values = jax.vmap(right.loglikelihood, (None, 0, 0))(BASIS, pictures, positions)
        logdensity = values + jax.vmap(right.logprior)(positions)
        return np.asarray(images).reshape(len(images), -1), np.asarray(logdensity)

    images, logdensity = measure(truths, pictures)
    drawn_images, drawn_logdensity = measure(found, targets)
    shape = FLAGS.inputs, FLAGS.restarts
    return {
        "truths": images,
        "draws": drawn_images.reshape(*shape, -1),
        "logdensity of truths": logdensity,
        "logdensity of draws": drawn_logdensity.reshape(shape),
    }


def last_points(key, density, targets, starts):
    """Of chains from these starts, one for each target."""
    kernel = samplers.geodesic_hmc if density.prior == "spheres" else samplers.hmc
    sampler = kernel(density.loglikelihood, 0.05)

    @jax.jit
    @jax.vmap
    def run(key, target, start):
        def transition(state, key):
            return sampler.step(key, BASIS, target, state)[0], None

        state = sampler.init(BASIS, target, start)
        return jax.lax.scan(transition, state, jax.random.split(key, TRANSITIONS))[0].position

    return run(jax.random.split(key, len(targets)), targets, starts)


def search(name, targets, latents):
    """Where Langevin's sampler is after its steps, and the best points of PULSE's."""
    if name == "langevin, large step":
        loss = likelihoods.NegativeLogLikelihood(likelihoods.gaussian(SIGMA), eps=SIGMA**2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is measured here
            base = pulse_jax.SAMPLERS["langevin"](0.01, 1.0, jax.random.key(FLAGS.seed))
        optimizer = pulse_jax.SCHEMES["geodesic"](base)
    else:
        loss = pulse_jax.Loss(geocross=0, eps=SIGMA**2)
        optimizer = harness.optimizer_of("original")
    built = pulse_jax.build(DECODER, OPERATOR, loss, optimizer)
    state = jax.vmap(built.init, (0, None))(latents, {})
    state, _ = pulse_jax.run(built, BASIS, targets, state, FLAGS.steps)
    return state.latents if name == "langevin, large step" else state.best.latents


def judge(truths, draws, **logdensity):
    """Ranks (N, 5), expected coverage (N,) and Δcal."""
    rng = np.random.default_rng((FLAGS.seed, 1))
    directions = rng.standard_normal((truths.shape[1], 4))
    ranks = calibration.ranks(
        rng,
        np.column_stack([logdensity["logdensity of truths"], truths @ directions]),
        np.concatenate([logdensity["logdensity of draws"][..., None], draws @ directions], -1),
    )
    coverage = calibration.tarp(rng, truths, draws)
    return ranks, coverage, calibration.delta_cal(truths, draws)


def line(name, ranks, coverage, delta):
    return {
        "samples": name,
        **{
            f"p-value of {column}": f"{calibration.uniformity(shares):.2g}"
            for column, shares in zip(COLUMNS, (ranks, coverage), strict=True)
        },
        "Δcal": f"{delta.value:.2f} [{delta.low:.2f}, {delta.high:.2f}]",
    }


if __name__ == "__main__":
    harness.run(main, PRESETS)
