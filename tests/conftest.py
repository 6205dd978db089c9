"""What all tests run with, and the command in this process with a small generator."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from absl.testing import flagsaver

# What pulse_jax's functions are passed and return is checked against their signatures, where an
# int will do for a float. The hook must come before anything imports pulse_jax.
CHECK = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook("pulse_jax", CHECK)

from pulse_jax.generators import checkpoint  # noqa: E402
from pulse_jax.generators.stylegan2 import StyleGAN2  # noqa: E402

# On a GPU or TPU float32 products are otherwise rounded to TF32 or bfloat16, and the bounds on
# float32 errors wouldn't hold.
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(autouse=True)
def effort(request):
    """How much XLA optimises, which takes longer than what it saves in most tests.

    Tests of numbers that others have computed, of the compiled program and of equal bytes have the
    mark `optimised`: XLA compiles for them what it compiles for users.
    """
    light = request.node.get_closest_marker("optimised") is None
    if jax.config.values["jax_disable_most_optimizations"] != light:
        jax.config.update("jax_disable_most_optimizations", light)
        jax.clear_caches()  # they don't know of it


@pytest.fixture
def unchecked():
    """For a test of what users are told, who have no hook that checks signatures before."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def generator(tmp_path_factory):
    """A folder with a StyleGAN 2 of 8×8 pixels and random weights."""
    folder = tmp_path_factory.mktemp("generator")
    network = StyleGAN2(resolution=8, channels=(6, 4), latent_size=5, mapping_layers=1)
    noise = [jnp.zeros((1, *shape)) for shape in network.noise_shapes]
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 5)), noise)["params"]
    strengths = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 0.1 * ("noise_strength" in str(path)), params
    )
    fit = {"mean": np.zeros(5, np.float32), "std": np.ones(5, np.float32)}
    checkpoint.save(folder, generator=(network, strengths | {"latent_fit": fit}))
    return folder


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A folder for compiled programs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def run(request, compiled, tmp_path):
    """Run the command in this process, with few steps; returns the output folder."""
    from pulse_jax import __main__ as command  # its flags are in the way of other commands

    def run(*arguments, output="out", seed=0, generator=None):
        folder = tmp_path / output
        generator = generator or request.getfixturevalue("generator")
        defaults = ["--recipe=original", "--restarts=3", "--batch_size=4", "--steps=3"]
        defaults += [] if seed is None else [f"--seed={seed}"]
        folders = [f"--generator={generator}", f"--output_dir={folder}", f"--cache_dir={compiled}"]
        with flagsaver.flagsaver():
            command.run(command.parse(["pulse_jax", *folders, *defaults, *arguments]))
        return folder

    return run
