"""Generators on disk: a folder with `spec.json` (architectures) and Orbax folders (weights)."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from pulse_jax.files import one_line, write
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

    `name_or_path`: a bundled generator's name, a folder written by `save`, or a folder with PULSE's
    `synthesis.pt` and `gaussian_fit.pt` or `mapping.pt` (from which the fit is then computed).
    `latent_space`: arguments of `style_generator`. Raises ValueError, in one line with the folder's
    name, if there is no such generator or part of it is missing or damaged.
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

    `score(params, images)`: images (N, R, R, 3) in [0, 1] → logits (N,), higher for more realistic.
    One of its features is how much the images of a batch differ, in groups of 4: compare batches of
    like make-up, with N a multiple of 4 or less than it. Raises ValueError as `load` does.
    """
    module, params = _read(find(name_or_path), "discriminator")
    return lambda params, images: module.apply({"params": params}, 2 * images - 1), params


def find(name_or_path):
    """The folder of a generator, a bundled one's name or a path, `~` allowed.

    Raises ValueError, in one line, if there is none or the system refuses the path.
    """
    known = bundled()
    folder = known.get(str(name_or_path), Path(os.path.expanduser(name_or_path)))
    try:
        found = any((folder / name).is_file() for name in ("spec.json", "synthesis.pt"))
    except OSError as error:  # a name too long, a folder that can't be entered
        raise ValueError(f"generator {str(name_or_path)!r}: {one_line(error)}") from error
    if not found:
        raise ValueError(
            f"generator {str(name_or_path)!r}: neither a folder with a spec.json or synthesis.pt "
            f"nor one of the bundled {', '.join(known)}"
        )
    return folder


def save(folder, **networks):
    """Write networks, given as `name=(module, params)`, into `folder`.

    The weights go into an Orbax folder each. `spec.json`, written last, holds the architectures and
    the SHA-256 of every file. `load` reads the `generator`, whose parameters include `latent_fit`,
    `load_discriminator` the `discriminator`.
    """
    folder = Path(folder).absolute()
    names = {module: name for name, module in ARCHITECTURES.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        for name, (_, params) in networks.items():
            checkpointer.save(folder / name, jax.tree.map(np.asarray, params), force=True)
    spec = {}
    for name, (module, _) in networks.items():
        (folder / name / "commit_success.txt").unlink(missing_ok=True)  # it tells where we are
        entry = {"architecture": names[type(module)]}
        for field in dataclasses.fields(module):
            if field.name not in ("parent", "name"):
                entry[field.name] = getattr(module, field.name)
        files = sorted(path for path in (folder / name).rglob("*") if path.is_file())
        entry["files"] = {f.relative_to(folder).as_posix(): _sha256(f.read_bytes()) for f in files}
        spec[name] = entry | {"sha256": _sha256(json.dumps(entry).encode())}
    write(folder / "spec.json", json.dumps(spec, indent=2) + "\n")


def digest(params):
    """SHA-256 over the names, shapes, types and values of a tree of parameters, in hexadecimal."""
    result = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        leaf = np.asarray(leaf)
        result.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}\n".encode())
        result.update(leaf.tobytes())
    return result.hexdigest()


def _sha256(data):
    return hashlib.sha256(data).hexdigest()


def _read(folder, name):
    """One network of a folder written by `save`: (module, params)."""
    try:
        entry = json.loads((folder / "spec.json").read_text())[name]
        if entry.pop("sha256") != _sha256(json.dumps(entry).encode()):
            raise ValueError("spec.json is damaged")
        # Before Orbax looks at them: it meets a bad file with tracebacks on stderr.
        for file, sha256 in entry.pop("files").items():
            path = folder / file
            if not path.is_file() or _sha256(path.read_bytes()) != sha256:
                raise ValueError(f"{file} is missing or damaged")
        module = ARCHITECTURES[entry.pop("architecture")]
        module = module(**entry | {"channels": tuple(entry["channels"])})
        with ocp.StandardCheckpointer() as checkpointer:
            return module, checkpointer.restore((folder / name).absolute())
    except Exception as error:  # Orbax, JSON and the modules raise what they like
        reason = one_line(error)[:300]
        if isinstance(error, KeyError):
            reason = f"spec.json has no known {reason}"
        raise ValueError(f"generator {folder}: can't read its {name}: {reason}") from error


def _load_pulse(folder):
    """The folder that PULSE downloads to: state dicts, and the latent fit or what to fit it to."""
    synthesis, mapping, fit = (
        official.read(path) if path.is_file() else None
        for path in (folder / f"{name}.pt" for name in ("synthesis", "mapping", "gaussian_fit"))
    )
    if mapping is None and fit is None:
        raise ValueError(f"generator {folder}: needs gaussian_fit.pt or mapping.pt")
    try:
        network, params = official.from_pulse(synthesis, mapping, fit)
    except ValueError as error:
        raise ValueError(f"generator {folder}: {error}") from error
    if fit is None:
        params["latent_fit"] = fit_latents(network, params, jax.random.key(0))
    return network, params
