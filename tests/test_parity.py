"""Whole runs of PULSE: the original program's numbers at every step.

The golden runs are its own `PULSE.forward` in float64, on a batch of two images with a small
StyleGAN of 64 pixels. These settings reproduce them, some of them against our better judgement:
- a restart for each image of the batch, and losses summed over them (the reference's L2, GEOCROSS
  and TOTAL are sums over its batch), each L2 clamped at eps before;
- eps 2e-3, 100 L2 + 0.05 GEOCROSS, bicubic downscaling;
- the first 5 noise maps searched, the last one zero, the others as drawn; with `tile`, one style
  vector for all layers;
- the scheme `rescale` around adam, sgd or sgdm, and a learning rate of 0.4 in `linear1cycledrop`;
- its image is the last one that was measured, before the last step, not the best one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA, as_dtype, golden, relative_error

import pulse_jax
from pulse_jax.generators.official import from_pulse, read
from pulse_jax.losses import geocross

pytestmark = pytest.mark.optimised

RUNS = {"adam": "adam", "tile": "adam", "sgd": "sgd", "sgdm": "sgdm"}
STEPS, EPS = 100, 2e-3
INIT = golden("pulse_e2e_init")
GOLDEN = {name: golden(f"pulse_e2e_{name}") for name in RUNS}
NETWORK, WEIGHTS = from_pulse(read(DATA / "pulse_e2e_synthesis_zip.pt"))
PARAMS = WEIGHTS | {"latent_fit": {"mean": INIT["gaussian_mean"], "std": INIT["gaussian_std"]}}
OPERATOR = pulse_jax.operators.bicubic(8)
# Slow: descent without momentum, which is a case of it, and one style that all layers share.
every_run = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("sgd", "tile"))) for n in RUNS]
)


def start(name):
    """The run's generator, and its initial latents and frozen noise maps for both images."""
    generator = pulse_jax.style_generator(NETWORK, tile_latent=name == "tile")
    arrays = {f"noise_{i}": INIT[f"noise{i}_init"] for i in range(NETWORK.num_layers)}
    arrays["style"] = INIT["latent_init"][:, : 1 if name == "tile" else None]
    names = jax.eval_shape(generator.sample, jax.random.key(0))
    return generator, *({k: arrays[k] for k in part} for part in names)


@functools.cache
def search(name, dtype, steps):
    """The first steps of a run: what was measured at each step, all latents, the best iterates."""
    generator, *sample = start(name)
    schedule = pulse_jax.SCHEDULES["linear1cycledrop"](0.4, STEPS)
    optimizer = pulse_jax.SCHEMES["rescale"](pulse_jax.OPTIMIZERS[RUNS[name]](schedule))
    loss = pulse_jax.Loss(l2=100, geocross=0.05, eps=EPS)
    search = pulse_jax.build(generator, OPERATOR, loss, optimizer)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def spread(params, latents):
        return geocross(generator.styles(params, latents, {}))

    with jax.enable_x64(dtype == "float64"):
        inputs = PARAMS, INIT["ref_lr"].transpose(0, 2, 3, 1), sample
        params, target, (latents, frozen) = as_dtype(inputs, dtype)
        state = jax.tree.map(np.asarray, jax.jit(jax.vmap(search.init))(latents, frozen))
        path, infos = [latents], []
        for step in range(steps):
            state, info = pulse_jax.run(search, params, target, state, step + 1, chunk=1)
            state = jax.tree.map(np.asarray, state)  # as for the first step: compiled once
            path.append(state.latents)
            infos.append(jax.tree.map(lambda leaf, step=step: leaf[:, step], info))
        info = jax.tree.map(lambda *steps: np.stack(steps), *infos)
        path = jax.tree.map(lambda *steps: np.stack(steps), *path)
        measured = {"l2": info.l2, "loss": info.loss}
        measured["geocross"] = spread(params, jax.tree.map(lambda x: x[:-1], path))
        return jax.tree.map(np.asarray, (measured, path, state.best))


@functools.cache
def images(name):
    """A function of parameters, latents and noise maps: both images, and downscaled, NCHW."""
    generator, *_ = start(name)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def images(params, latents, frozen):
        image = generator.synthesize(params, latents, frozen)
        return image.transpose(2, 0, 1), OPERATOR(image).transpose(2, 0, 1)

    return images


def render(name, latents):
    """Both images of a run and their downscaled versions, NCHW."""
    *_, frozen = start(name)
    with jax.enable_x64(True):
        inputs = as_dtype((PARAMS, latents, frozen), "float64")
        return images("tile" if name == "tile" else "adam")(*inputs)


def clamped_sum(l2):
    return np.maximum(l2, EPS).sum(-1)


@every_run
@pytest.mark.parametrize(
    ("dtype", "steps", "bound"),
    [
        ("float64", STEPS, 1e-6),
        pytest.param("float32", 10, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_losses_equal_the_reference_at_every_step(name, dtype, steps, bound):
    (measured, _, _), reference = search(name, dtype, steps), GOLDEN[name]
    assert measured["loss"].dtype == dtype
    assert relative_error(clamped_sum(measured["l2"]), reference["step_L2"][:steps]) <= bound
    for ours, theirs in [("geocross", "step_GEOCROSS"), ("loss", "step_TOTAL")]:
        assert relative_error(measured[ours].sum(1), reference[theirs][:steps]) <= bound


@every_run
def test_iterates_equal_the_reference(name):
    (measured, path, _), reference = search(name, "float64", STEPS), GOLDEN[name]
    assert relative_error(measured["l2"], reference["l2_per_sample_unclamped"]) <= 1e-6
    for step, theirs in [(1, "after1"), (10, "after10"), (50, "after50"), (STEPS, "final")]:
        assert relative_error(path["style"][step], reference[f"latent_{theirs}"]) <= 1e-6
    for i in range(5):
        assert relative_error(path[f"noise_{i}"][STEPS], reference[f"noise{i}_final"]) <= 1e-6
    last_image, _ = render(name, {k: latents[STEPS - 1] for k, latents in path.items()})
    assert relative_error(last_image, reference["last_image"]) <= 1e-6


@every_run
def test_best_iterates_equal_the_reference(name):
    """The reference compares sums over its batch: the same where both images peak together."""
    (*_, best), reference = search(name, "float64", STEPS), GOLDEN[name]
    assert relative_error(clamped_sum(best.l2), reference["min_l2"]) <= 1e-6
    assert relative_error(best.loss.sum(), reference["min_loss"]) <= 1e-6
    if name != "tile":  # there GEOCROSS is 0, and all iterates within eps are the best
        _, best_lr = render(name, best.latents)
        assert relative_error(best_lr, reference["best_lr"]) <= 1e-6


@every_run
def test_learning_rates_equal_the_reference(name):
    with jax.enable_x64(True):
        rates = pulse_jax.SCHEDULES["linear1cycledrop"](0.4, STEPS)(jnp.arange(STEPS))
    assert relative_error(rates, GOLDEN[name]["lr"]) <= 1e-14
