"""Readers of published weights, in the formats of the programs that wrote them."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pulse_jax.generators.diffusion import DiffusionModel
from pulse_jax.generators.official.ada import from_ada
from pulse_jax.generators.official.diffusers import from_diffusers, is_diffusers
from pulse_jax.generators.official.edm import from_edm
from pulse_jax.generators.official.guided import from_guided, is_guided
from pulse_jax.generators.official.parameters import (
    blaming,
    checked,
    persistent_modules,
    persistent_state,
    unwrapped,
)
from pulse_jax.generators.official.pulse import from_pulse
from pulse_jax.generators.official.rosinality import from_rosinality
from pulse_jax.generators.official.stylegan3 import from_stylegan3
from pulse_jax.generators.official.tensorflow import from_tensorflow
from pulse_jax.generators.official.unpickle import Instance, read
from pulse_jax.generators.style_network import StyleNetwork

__all__ = ["from_pulse", "is_diffusers", "read", "read_network"]


def read_network(path: str | Path) -> tuple[StyleNetwork | DiffusionModel, dict[str, Any]]:
    """The generator in one file of published weights, and its parameters.

    The content tells which program wrote the file. It may be a folder of diffusers, or a file in
    one (see `from_diffusers`). Other files are those of StyleGAN, StyleGAN 2 or its ADA in
    TensorFlow, stylegan2-ada-pytorch, stylegan3, rosinality's stylegan2-pytorch, EDM, or
    guided-diffusion, whose flags are read from the .json of the same name. If the file holds
    several networks, the generator's moving average is read. PULSE's synthesis.pt may have any
    name, and mapping.pt and gaussian_fit.pt are read from the same folder.

    A StyleGAN's parameters are float32 arrays in "mapping" and "synthesis". If the file has them,
    there are also "latent_average" (d,), the mean of the style vectors, for
    `style_network.truncate`, and PULSE's "latent_fit". Constant noise maps are left out, since a
    search has its own. The file's size bounds the time and memory that this takes, as in `read`.

    Raises ValueError, in one line with the path, if the file can't be read, if it holds no such
    generator or one with weights that aren't finite, or if these modules can't compute it.
    """
    module, params = _read_network(Path(path))
    for place, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(leaf).all():  # as after a training that diverged
            name = jax.tree_util.keystr(place, simple=True, separator="/")
            raise ValueError(f"{path}: {name} has values that are not finite")
    return module, params


def _read_network(path: Path) -> tuple[StyleNetwork | DiffusionModel, dict[str, Any]]:
    if is_diffusers(path):
        return from_diffusers(path)
    tree = read(path)
    if type(tree) is dict:
        tree = unwrapped(tree)
    pulse = {}
    if type(tree) is dict and "blocks.4x4.const" in tree:
        others = {name: path.with_name(f"{name}.pt") for name in ("mapping", "gaussian_fit")}
        pulse = {name: read(other) for name, other in others.items() if other.is_file()}
    try:
        if pulse:
            return from_pulse(tree, **pulse)
        if is_guided(tree):
            return from_guided(tree, path)
        module, params = _convert(tree)
        if isinstance(module, DiffusionModel):
            return module, params
        return module, checked(module, params)
    except Exception as error:  # a tree of another make may fail anywhere
        raise blaming(path, error) from error


def _convert(tree: Any) -> tuple[StyleNetwork | DiffusionModel, dict[str, Any]]:
    match tree:
        case (_, _, Instance(name="dnnlib.tflib.network.Network") as network):
            return from_tensorflow(network)
        case Instance(name="dnnlib.tflib.network.Network"):
            return from_tensorflow(tree)
        case {"G_ema": Instance() as root} | {"ema": Instance() as root} | (Instance() as root):
            return _from_module(root)
        case {"g_ema": Instance() as root}:
            return _from_module(root, tree.get("latent_avg"))
        case {"g_ema": dict() as state} if "input.input" in unwrapped(state):
            return from_rosinality(state, tree.get("latent_avg"))
        case {"input.input": _}:
            return from_rosinality(tree)
    raise ValueError(f"holds no generator, but {_content(tree)}")


def _from_module(
    root: Instance, average: Any = None
) -> tuple[StyleNetwork | DiffusionModel, dict[str, Any]]:
    """The generator that was pickled as a PyTorch module. Its parts tell which program it is of."""
    modules = persistent_modules(root) if "_modules" in root.state else {}
    if "synthesis.input" in modules:
        return from_stylegan3(root)
    if "synthesis" in modules:
        return from_ada(root)
    if "model.enc" in modules:
        return from_edm(root)
    if "convs" in modules:
        return from_rosinality(persistent_state(modules), average)
    raise ValueError(f"holds no generator, but a {root.name!r}")


def _content(tree: Any) -> str:
    """What a file holds instead of a generator, and what would help."""
    if type(tree) is not dict:
        return f"a {type(tree).__name__}"
    for name, content in _OF_PULSE.items():
        if name in tree:
            return content
    for name, average in {"G": "G_ema", "g": "g_ema"}.items():
        if name in tree and average not in tree:
            return f"the generator {name!r} without its moving average, {average!r}"
    if not tree.keys() & {"G_ema", "g_ema"} and tree.keys() & {"D", "d"}:
        return "a discriminator"
    states = [name for name, value in tree.items() if _is_state_dict(value)]
    if states or _is_state_dict(tree):
        return (
            f"state dicts ({_listed(states or tree)}), which lack the network's architecture: "
            "save the network itself, as by pickle.dump(G_ema, file)"
        )
    return f"the entries {_listed(tree)}"


_OF_PULSE = {
    "blocks.4x4.const": "PULSE's synthesis network, without gaussian_fit.pt or mapping.pt",
    "dense0.weight": "PULSE's mapping network",
    "std": "PULSE's latent fit",
}


def _is_state_dict(value: Any) -> bool:
    values = value.values() if type(value) is dict else ()
    return len(values) > 0 and all(type(v) is np.ndarray for v in values)


def _listed(names: Iterable[Any]) -> str:
    """The first five names, shortened."""
    return ", ".join(f"{name!r:.40}" for name in islice(names, 5))
