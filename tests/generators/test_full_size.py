"""A search with the largest official networks, at 1024×1024 and with random weights, on a CPU."""

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import jax
import numpy as np
import pytest

import pulse_jax
from pulse_jax.generators import style_generator
from pulse_jax.generators.stylegan import StyleGAN
from pulse_jax.generators.stylegan2 import StyleGAN2

NETWORKS = {
    "StyleGAN": StyleGAN(1024, (512, 512, 512, 512, 256, 128, 64, 32, 16)),
    "StyleGAN 2, config F": StyleGAN2(1024, (512, 512, 512, 512, 512, 256, 128, 64, 32)),
}
STEPS = 3


def random_params(network):
    """Initial weights, with noise at full strength, so that all that is searched does something."""

    @jax.jit
    def init(key):
        z = np.zeros((1, network.latent_size), np.float32)
        noise = [np.zeros((1, *shape), np.float32) for shape in network.noise_shapes]
        fit = {"mean": z[0], "std": z[0] + 1}
        return network.init(key, z, noise)["params"] | {"latent_fit": fit}

    def strengthen(path, leaf):
        return leaf + 1 if path[-1].key == "noise_strength" else leaf

    return jax.tree_util.tree_map_with_path(strengthen, init(jax.random.key(0)))


def measure(name):
    """Search one restart, for a target that the network can make. Returns what there is to see."""
    generator, params = style_generator(NETWORKS[name]), random_params(NETWORKS[name])
    operator = pulse_jax.operators.bicubic(factor=32)
    adam = pulse_jax.OPTIMIZERS["adam"](pulse_jax.SCHEDULES["fixed"](0.01, steps=STEPS))
    rescaled = pulse_jax.SCHEMES["rescale"](adam)
    search = pulse_jax.build(generator, operator, pulse_jax.Loss(), rescaled)
    synthesize = jax.jit(generator.synthesize)
    target = operator(synthesize(params, *generator.sample(jax.random.key(1))))
    samples = jax.vmap(generator.sample)(jax.random.key(2)[None])
    start = jax.vmap(search.init)(*samples)
    seconds = []
    for _ in ("with compilation", "without"):
        began = time.process_time()  # of all cores
        state, info = pulse_jax.run(search, params, target, start, steps=STEPS)
        loss = np.asarray(info.loss[0])
        seconds.append(time.process_time() - began)
    best = jax.tree.map(lambda leaf: leaf[0], (state.best.latents, state.frozen))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "size": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "target": np.asarray(target),
        "image": np.asarray(synthesize(params, *best)),
        "loss": loss,
        "latents": jax.tree.map(np.asarray, (start.latents, state.latents)),
        "seconds": seconds,
        "peak": peak / (2**30 if sys.platform == "darwin" else 2**20),  # GiB
    }


def norms(latents):
    """Of the spheres of each restart."""
    return np.linalg.norm(latents.reshape(*latents.shape[:2], -1), axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_search_at_full_size(name, monkeypatch):
    """In a process of its own, so that the memory is that of this search."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        result = pool.submit(measure, name).result()
    first, again = result["seconds"]
    print(
        f"{name}: {result['size'] / 1e6:.1f} million weights, {result['peak']:.1f} GiB; in seconds "
        f"of one core: a step {again / STEPS:.1f}, compiling {first - again:.0f}; {result['loss']}"
    )
    assert result["peak"] < 5
    assert result["target"].shape == (32, 32, 3)
    assert result["image"].shape == (1024, 1024, 3)
    assert np.isfinite(result["image"]).all()
    assert result["image"].std() > 0.1
    assert np.isfinite(result["loss"]).all()
    assert result["loss"][-1] < result["loss"][0]
    before, after = result["latents"]
    for leaf in after:  # all that is searched moved, on its sphere
        assert np.abs(after[leaf] - before[leaf]).max() > 1e-3
        np.testing.assert_allclose(norms(after[leaf]), norms(before[leaf]), rtol=1e-5)
