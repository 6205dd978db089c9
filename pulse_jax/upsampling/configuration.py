"""config.json: all that the bytes of a run's results depend on, compared with earlier results."""

import importlib.metadata
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

import pulse_jax
from pulse_jax.files import difference, expanded, file_digest, one_line, read_json, write
from pulse_jax.generators import checkpoint
from pulse_jax.generators.reader import Reader
from pulse_jax.operators import FILES
from pulse_jax.plug_in import source_digest
from pulse_jax.types import Params
from pulse_jax.upsampling.settings import Settings

# What changes bytes besides the settings: JAX's configuration, and what its libraries read.
JAX = (
    *("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable"),
    *("jax_random_seed_offset", "jax_default_matmul_precision", "jax_disable_most_optimizations"),
)
VARIABLES = ("LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
RESULTS = "results.csv", "parts/*"  # one of these lies where a picture has results
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")


def describe(
    settings: Settings, params: Params, reader: tuple[Reader, Params] | None
) -> dict[str, Any]:
    """What the bytes of results depend on, besides their pictures and the number of slots.

    `reader`: what reads attributes off a posterior's draws, by which chains are judged, too.
    """
    found = {f"--{name}": value for name, value in settings.as_json().items()}
    found["SHA-256 of the generator"] = checkpoint.digest(params)
    if settings.noise is not None:
        found["SHA-256 of the reader"] = reader and checkpoint.digest(reader[1])
    for link in settings.operator.split(","):
        name, _, file = link.partition(":")
        if name in FILES and expanded(file).is_file():
            found[f"SHA-256 of {file}"] = file_digest(expanded(file))
    for text in settings.plug_ins():
        found[f"SHA-256 of {text.partition(':')[0]}"] = source_digest(text)
    found["device"] = jax.devices()[0].device_kind
    of_jax = jax_settings()
    found |= {name.upper(): of_jax[name] for name in JAX}
    found |= {name: os.environ.get(name) for name in VARIABLES}
    found["XLA_FLAGS"] = _xla_flags()
    found["pulse_jax"] = pulse_jax.__version__
    packages = PACKAGES if settings.noise is None else (*PACKAGES, "blackjax")
    return found | {name: importlib.metadata.version(name) for name in packages}


def jax_settings() -> dict[str, Any]:
    """JAX's configuration, with what a context has changed, as `jax.enable_x64` does."""
    return {
        name: getattr(jax.config, name, value)  # some settings are no attributes, and no contexts
        for name, value in jax.config.values.items()
    }


def _xla_flags() -> str | None:
    """The flags of the variable XLA_FLAGS that may change bytes.

    These aren't the ones for XLA's dumps, nor for the number of devices that a CPU is divided into,
    as the number of other devices doesn't count either.
    """
    without = ("--xla_dump_", "--xla_force_host_platform_device_count=")
    given = os.environ.get("XLA_FLAGS", "").split()
    return " ".join(flag for flag in given if not flag.startswith(without)) or None


def read(output: Path) -> dict[str, Any]:
    """The configuration of the results that a folder holds, or {} if it holds none.

    Raises ValueError if it can't be read.
    """
    path = output / "config.json"
    places = "*", "seed_*/*"
    try:
        has_results = any(any(output.glob(f"{at}/{kind}")) for at in places for kind in RESULTS)
        return read_json(path) if has_results and path.is_file() else {}
    except OSError as error:
        raise ValueError(f"output_dir={output} can't be read: {one_line(error)}") from error


def is_under_way(output: Path) -> bool:
    """Whether a folder holds restarts whose picture isn't complete."""
    return any(any(output.glob(f"{at}/parts/*")) for at in ("*", "seed_*/*"))


def check(
    output: Path, places: Iterable[Path], earlier: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Raises ValueError, with the difference, if a folder's results have other settings.

    `places` are the folders of this run's pictures. If one holds results, their settings must be
    known.
    """
    most = "--max_draws"  # to which a run goes on
    if most in earlier and (earlier[most] or 0) <= (now[most] or 0):
        earlier = {**earlier, most: now[most]}
    if earlier and (told := difference(earlier, now)):
        raise ValueError(f"output_dir={output} holds results of {told}; give another folder")
    for place in () if earlier else places:
        if any(any(place.glob(kind)) for kind in RESULTS):
            missing = f"{output / 'config.json'}, which tells of their settings, is missing"
            raise ValueError(f"{place} holds results, and {missing}")


def save(output: Path, config: Mapping[str, Any]) -> None:
    """Write it. Raises ValueError if it can't be written."""
    try:
        write(output / "config.json", json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"output_dir={output} can't be written: {one_line(error)}") from error
