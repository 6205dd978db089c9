"""What all tests run with, and the command in this process with a small generator."""

import gc
import importlib.machinery
import os
import signal
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from absl.testing import flagsaver
from jax._src import compiler

# What pulse_jax's functions are passed and return is checked against their signatures. The hook
# must come before anything imports pulse_jax.
jaxtyping.install_import_hook("pulse_jax", "signatures.check")


class Unchecked:
    """Finds the module in which so many small functions are called that checks take minutes."""

    @staticmethod
    def find_spec(name, path, target=None):
        if name == "pulse_jax.generators.official.unpickle":
            return importlib.machinery.PathFinder.find_spec(name, path, target)


sys.meta_path.insert(0, Unchecked)

# Garbage is looked for after more new objects than 700: traces are made of many.
gc.set_threshold(100_000)

# In the background of a shell, interrupts are ignored, also by the processes that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On a GPU or TPU float32 products are otherwise rounded to TF32 or bfloat16, and the bounds on
# float32 errors wouldn't hold.
jax.config.update("jax_default_matmul_precision", "highest")


# To compile takes most of the time. So what a run of pytest has compiled is kept in a folder for
# all of its processes. One that finds a file half written compiles for itself, as JAX does.
if "PYTEST_XDIST_WORKER" not in os.environ:
    folder = tempfile.TemporaryDirectory(prefix="pulse_jax_tests_", ignore_cleanup_errors=True)
    os.environ["PULSE_JAX_TESTS"] = folder.name
COMPILED = Path(os.environ["PULSE_JAX_TESTS"])
for name, value in {
    "jax_compilation_cache_dir": str(COMPILED),
    "jax_persistent_cache_min_compile_time_secs": 0,
}.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)

# And XLA does as little as it can in most tests; it has more switches for that than JAX knows.
LIGHT = "jax_disable_most_optimizations"
LIGHT_FLAGS = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
GIVEN_FLAGS = os.environ.get("XLA_FLAGS", "").split()
get_compile_options = getattr(compiler, "get_compile_options", None)  # JAX's own business


def compile_options(*arguments, **options):
    made = get_compile_options(*arguments, **options)
    if jax.config.values[LIGHT]:
        made.env_option_overrides += LIGHT_FLAGS.items()
    return made


def compile_lightly(light):
    """Or as for users; in this process and in those that it starts."""
    jax.config.update(LIGHT, light)
    jax.clear_caches()  # they don't know of it
    more = [f"--{flag}={value}".lower() for flag, value in LIGHT_FLAGS.items()] if light else []
    flags = [*GIVEN_FLAGS, *more]
    os.environ |= {LIGHT.upper(): str(light), "XLA_FLAGS": " ".join(flags)}


if get_compile_options:
    compiler.get_compile_options = compile_options
jax.jit(lambda: 0)()  # from here on, XLA looks at its flags in this process no more
compile_lightly(True)  # what test files compute as they are imported, too


programs = []  # since they were forgotten


def note(event, *_, **__):
    if event.endswith("backend_compile_duration"):
        programs.append(None)


jax.monitoring.register_event_duration_secs_listener(note)


def is_light(item):
    """Whether it hasn't the mark `optimised`.

    That is for tests of the compiled program, of what compilers get wrong, and of numbers that
    others have computed, in float32 or over many steps: XLA compiles for them what users get.
    """
    return item.get_closest_marker("optimised") is None


def pytest_collection_modifyitems(items):
    """Those with the mark come first, since what is compiled is forgotten in between."""
    items.sort(key=is_light)


def pytest_collection_finish():
    """Garbage isn't looked for in what has been imported, since that stays."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before the fixtures, which may compile."""
    if is_light(item) != jax.config.values[LIGHT]:
        compile_lightly(is_light(item))


@pytest.fixture(autouse=True, scope="module")
def forget():
    """What files have compiled, now and then, since a process can hold only some thousands."""
    yield
    if len(programs) > 1000:
        jax.clear_caches()
        programs.clear()


@pytest.fixture
def traced_alone():
    """For a test that changes what is traced: it takes no trace of others, and leaves none."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def unchecked():
    """For a test of what users are told, who have no hook that checks signatures before."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True, scope="module")
def in_memory():
    """What runs have traced stays in the process, but in test_traced.py, which has its own fixture.

    So settings that change no program take no new trace, and none is written, read and lowered.
    """
    from pulse_jax.upsampling import traced

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traced, "keep", lambda *_: traced.IN_MEMORY)
        yield


@pytest.fixture(scope="session")
def generator(tmp_path_factory):
    """A folder with a StyleGAN 2 of 8×8 pixels and random weights."""
    # Not above, since the process that only hands out tests imports this file, too.
    from pulse_jax.generators import checkpoint
    from pulse_jax.generators.stylegan2 import StyleGAN2

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
def compiled():
    """The folder of compiled programs."""
    return COMPILED


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
