"""Convert generators of other programs into folders that load at once.

    pulse_jax_convert stylegan2-ffhq-config-f.pkl    # into ./stylegan2-ffhq-config-f
    pulse_jax_convert network.pkl --output=cats --dtype=bfloat16
    pulse_jax_convert ffhq1024                       # a published one, which is downloaded first

A source is a file or folder that `pulse_jax --generator` takes, or the name of a published
generator. A published one goes to the user's cache, where `--generator=ffhq1024` finds it. The
latent fit is computed, unless the source has one, as PULSE's does. Several sources are converted
one by one. If one can't be converted, a line says why, and the others go on.
"""

if __name__ == "__main__":  # before the imports, which take seconds, and of which JAX's may fail
    from pulse_jax import console

    console.convert()  # doesn't return

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from pulse_jax.console import (
    check_devices,
    ended_in_one_line,
    one_by_one,
    parsed,
)
from pulse_jax.files import expanded, one_line
from pulse_jax.generators import checkpoint, official, published
from pulse_jax.generators.diffusion import DiffusionModel
from pulse_jax.generators.style_network import StyleNetwork
from pulse_jax.types import Params

TEMPORARY = ".*.tmp"


def main() -> None:
    """The console script: sources in, folders out."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells its steps
    values, sources = parse(sys.argv)
    taken = set[Path]()

    def one(source: str) -> None:
        folder = choose_folder(source, output, several=len(sources) > 1)
        if folder in taken:
            raise ValueError(f"{source}: {folder} is taken by a source of the same name")
        taken.add(folder)
        convert(source, folder, values.dtype)

    with ended_in_one_line("pulse_jax_convert"):
        check_devices()
        output = values.output and expanded(values.output, "--output")
        if not one_by_one("pulse_jax_convert", sources, one):
            sys.exit(1)


def parse(argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags' values and the sources. An error ends the command with one line."""
    values = flags.FlagValues()  # not those of the other commands in this process
    flags.DEFINE_string(
        "output",
        None,
        "The generator is written into this folder. Each of several sources gets a folder in it. "
        "Without the flag, it is a new folder in the current one, with the source's name.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "bfloat16"],
        "Kernels have this type on disk. With bfloat16, they take half of the space, and images "
        "differ by some 8-bit steps.",
        flag_values=values,
    )
    generators = (
        f"  {name}: {model.domain}, {model.architecture}, {model.licence}\n"
        for name, model in published.PUBLISHED.items()
    )
    more = f"Published generators:\n{''.join(generators)}"
    sources = parsed("pulse_jax_convert", __doc__, values, argv, more=more)
    if not sources:
        sys.exit("pulse_jax_convert: give a file, a folder or the name of a published generator")
    return values, sources


def choose_folder(source: str, output: Path | None, several: bool) -> Path:
    """Where a source's generator goes: see the flag --output."""
    if output is None and source in published.PUBLISHED:
        return published.folder(source)
    path = Path(os.path.abspath(expanded(source)))
    name = path.stem if os.path.isfile(path) else path.name
    if output is None:
        return Path(name)
    return output / (name if several else "")


def convert(source: str | Path, folder: str | Path, dtype: str = "float32") -> None:
    """Write the generator that `source` names into `folder`, for `checkpoint.load`.

    `source` is a path or name that `checkpoint.find` takes, or a published generator's name.
    `folder` is new or empty, or the published generator's own. It may also be one that this
    function has made, which is then replaced. It stays as it is until all of the new is written.
    On disk, the networks' kernels have the type `dtype`, "float32" or "bfloat16". All else is
    float32, and `load` makes float32 of the kernels too. Prints what was found and written.

    Raises ValueError, in one line, if the source can't be found, downloaded or read, or if the
    folder can't be written or holds anything else.
    """
    folder, model = Path(folder), published.PUBLISHED.get(str(source))
    if model is None or folder != published.folder(str(source)):
        _check_free(folder)
    if model is None:
        path = checkpoint.find(source)
    else:
        print(f"{source}: {model.page}, {model.licence}")
        path = published.fetch(str(source))
    # A folder may hold what it was converted to before.
    read = checkpoint.read_network if model is None else official.read_network
    module, params = read(path)
    names = "mapping", "synthesis", "network", "decoder"
    networks = {name: params[name] for name in names if name in params}
    count = sum(leaf.size for leaf in jax.tree.leaves(networks))
    print(
        f"{source}: {type(module).__name__}, {module.resolution}×{module.resolution} pixels, "
        f"{count:,} parameters, {_latents(module)}"
    )
    if isinstance(module, StyleNetwork):
        params = checkpoint.with_latent_fit(module, params)

    # Nearly all is in the kernels, and the rest needs its digits.
    def stored(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        return np.asarray(leaf).astype(dtype if path[-1].key == "kernel" else np.float32)

    _write(folder, module, jax.tree_util.tree_map_with_path(stored, params))
    files = [path for path in (folder / "generator").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    print(f"{source}: {size:.3g} MB of {dtype} in {folder}")


def _latents(module: StyleNetwork | DiffusionModel) -> str:
    """What a generator is a function of, in words."""
    if isinstance(module, StyleNetwork):
        return f"z {module.z_size}, w {module.num_layers} × {module.latent_size}"
    kind = type(module.schedule).__name__ if module.schedule else "no schedule"
    return f"noise {' × '.join(map(str, module.network.noise_shape))}, {kind}"


def _check_free(folder: Path) -> None:
    """Raises ValueError if the folder may not be written."""
    try:
        there = list(folder.iterdir()) if folder.exists() else []
        free = all(path.match(TEMPORARY) for path in there) or _is_converted(folder)
    except OSError as error:
        raise ValueError(f"{folder}: {one_line(error)}") from error
    if not free:
        raise ValueError(f"{folder} exists and isn't a converted generator: give another --output")


def _is_converted(folder: Path) -> bool:
    """Whether `convert` has made a folder. One of a trainer also has a discriminator."""
    try:
        return json.loads((folder / "spec.json").read_bytes()).keys() == {"generator"}
    except (OSError, ValueError, AttributeError):
        return False


def _write(folder: Path, module: StyleNetwork | DiffusionModel, params: Params) -> None:
    """Save the generator in a temporary folder, then move it into place."""
    temporary = folder / f".{os.getpid()}.tmp"
    spec, weights = folder / "spec.json", folder / "generator"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(TEMPORARY):  # by a process that was killed
            shutil.rmtree(left)
        checkpoint.save(temporary, generator=(module, params))
        spec.unlink(missing_ok=True)  # without it there is no generator
        if weights.exists():
            shutil.rmtree(weights)
        os.replace(temporary / "generator", weights)
        os.replace(temporary / "spec.json", spec)
    except Exception as error:  # Orbax raises what it likes
        raise ValueError(f"{folder}: can't be written: {one_line(error)[:300]}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # if it was made in vain, and is empty
