"""Generators on disk: a folder with `spec.json` (the architecture) and Orbax folders (the weights)."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from pulse_jax.generators import fit_latents, official, style_generator
from pulse_jax.generators.stylegan import StyleGAN
from pulse_jax.generators.stylegan2 import Discriminator, StyleGAN2

ARCHITECTURES = {"stylegan": StyleGAN, "stylegan2": StyleGAN2, "discriminator": Discriminator}


def bundled():
    """The generators that come with the package: name → folder."""
    package = Path(__file__).parents[1]
    folder = package / "checkpoints"  # where a wheel puts them
    if not folder.is_dir():
        folder = package.parent / "checkpoints"  # a checkout's
    return {spec.parent.name: spec.parent for spec in sorted(folder.glob("*/spec.json"))}


def load(name_or_path, **latent_space):
    """A generator and its parameters: `(Generator, params)`.

    `name_or_path`: a bundled generator's name, a folder written by `save`, or a folder with PULSE's `synthesis.pt`
    and `gaussian_fit.pt` or `mapping.pt`. `latent_space`: arguments of `style_generator`. Raises ValueError if
    there is no such generator, or part of it is missing or damaged.
    """
    network, params = load_network(name_or_path)
    return style_generator(network, **latent_space), params


def load_network(name_or_path):
    """The Flax module of a generator, and its parameters, `latent_fit` among them."""
    folder = find(name_or_path)
    if (folder / "synthesis.pt").is_file():
        return _load_pulse(folder)
    return _read(folder, "generator")


def load_discriminator(name_or_path):
    """The discriminator that a generator was trained against: (score, params).

    `score(params, images)`: images (N, R, R, 3) in [0, 1] → logits (N,), higher for more realistic. One of its
    features is how much the images of a batch differ, so compare batches of like make-up.
    """
    module, params = _read(find(name_or_path), "discriminator")
    return lambda params, images: module.apply({"params": params}, 2 * images - 1), params


def find(name_or_path):
    """The folder of a generator, from a bundled one's name or a path. Raises ValueError if there is none."""
    known = bundled()
    folder = known.get(str(name_or_path), Path(name_or_path))
    if not any((folder / name).is_file() for name in ("spec.json", "synthesis.pt")):
        raise ValueError(
            f"generator {str(name_or_path)!r}: neither a folder with a spec.json or synthesis.pt "
            f"nor one of the bundled {', '.join(known)}"
        )
    return folder


def save(folder, **networks):
    """Write networks as `name=(module, params)`, such as generator and discriminator, into `folder`.

    The weights go into an Orbax folder each, the architectures into `spec.json`, written last.
    """
    folder = Path(folder).absolute()
    names = {module: name for name, module in ARCHITECTURES.items()}
    spec = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for name, (module, params) in networks.items():
            params = jax.tree.map(np.asarray, params)
            checkpointer.save(folder / name, params, force=True)
            fields = [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")]
            spec[name] = {"architecture": names[type(module)]} | {f: getattr(module, f) for f in fields}
            spec[name]["sha256"] = digest(params)
    temporary = folder / "spec.json.part"
    temporary.write_text(json.dumps(spec, indent=2) + "\n")
    os.replace(temporary, folder / "spec.json")


def digest(params):
    """SHA-256 over the names, shapes, types and values of a tree of parameters, in hexadecimal."""
    result = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        leaf = np.asarray(leaf)
        result.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}\n".encode())
        result.update(leaf.tobytes())
    return result.hexdigest()


def _read(folder, name):
    """One network of a folder written by `save`: (module, params)."""
    try:
        spec = json.loads((folder / "spec.json").read_text())[name]
        expected = spec.pop("sha256")
        module = ARCHITECTURES[spec.pop("architecture")]
        spec["channels"] = tuple(spec["channels"])
        module = module(**spec)
        with ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore((folder / name).absolute())
    except Exception as error:  # Orbax, JSON and the modules raise what they like
        raise ValueError(f"generator {folder}: its {name} can't be read: {_reason(error)}") from error
    if digest(params) != expected:
        raise ValueError(f"generator {folder}: its {name} is damaged, the sha256 is another")
    return module, params


def _reason(error):
    """What went wrong, in one line."""
    text = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {text[0]}" if isinstance(error, KeyError) else text[0]


def _load_pulse(folder):
    """The folder that PULSE downloads to: state dicts, and the fit or the mapping network to compute it from."""
    mapping, fit = folder / "mapping.pt", folder / "gaussian_fit.pt"
    state = official.read_torch(mapping) if mapping.is_file() else None
    network, params = official.from_pulse(official.read_torch(folder / "synthesis.pt"), state)
    if fit.is_file():
        params["latent_fit"] = dict(official.read_torch(fit))
    elif state is not None:
        params["latent_fit"] = fit_latents(network, params, jax.random.key(0))
    else:
        raise ValueError(f"generator {folder}: needs gaussian_fit.pt or mapping.pt beside synthesis.pt")
    return network, params
