"""Generators on disk: a folder with `spec.json` (architectures) and Orbax folders (weights).

What other programs have published is read too, from the file as it is.
"""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float
from tqdm import tqdm

from pulse_jax.files import check_free, expanded, near, one_line, read_json, write
from pulse_jax.generators import Generator, fit_latents, official, published, style_generator
from pulse_jax.generators.diffusion import DiffusionModel, diffusion_generator
from pulse_jax.generators.diffusion.autoencoders import (
    AutoencoderKL,
    AutoencoderTiny,
    DepthToSpace,
    VQModel,
)
from pulse_jax.generators.diffusion.edm import EDMPrecond
from pulse_jax.generators.diffusion.schedules import (
    ConsistencySchedule,
    EDMSchedule,
    FlowSchedule,
    GuidedSchedule,
    NoiseSchedule,
    ScoreSchedule,
)
from pulse_jax.generators.diffusion.unet import UNet2DModel
from pulse_jax.generators.digests import digest as digest
from pulse_jax.generators.plug_in import plug_in
from pulse_jax.generators.reader import Reader
from pulse_jax.generators.style_network import StyleNetwork
from pulse_jax.generators.stylegan import StyleGAN
from pulse_jax.generators.stylegan2 import Discriminator, StyleGAN2
from pulse_jax.generators.stylegan3 import StyleGAN3
from pulse_jax.plug_in import is_plug_in
from pulse_jax.types import AnyArray, Params

ORBAX_FILES = 2**20  # bytes that an Orbax folder may take beside its arrays

# What spec.json holds: modules, and what a diffusion model consists of besides.
ARCHITECTURES: dict[str, type[Any]] = {
    "stylegan": StyleGAN,
    "stylegan2": StyleGAN2,
    "stylegan3": StyleGAN3,
    "discriminator": Discriminator,
    "reader": Reader,
    "diffusion": DiffusionModel,
    "unet2d": UNet2DModel,
    "edm": EDMPrecond,
    "noise_schedule": NoiseSchedule,
    "guided_schedule": GuidedSchedule,
    "consistency_schedule": ConsistencySchedule,
    "flow_schedule": FlowSchedule,
    "edm_schedule": EDMSchedule,
    "score_schedule": ScoreSchedule,
    "vq_decoder": VQModel,
    "kl_decoder": AutoencoderKL,
    "tiny_decoder": AutoencoderTiny,
    "depth_to_space": DepthToSpace,
}


def bundled() -> dict[str, Path]:
    """The generators that come with the package: name → folder."""
    package = Path(__file__).parents[1]
    folder = package / "checkpoints"  # where a wheel puts them
    if not folder.is_dir():
        folder = package.parent / "checkpoints"  # a checkout's
    return {spec.parent.name: spec.parent for spec in sorted(folder.glob("*/spec.json"))}


def load(
    name_or_path: str | Path, *, solver: str | None = None, **latent_space: Any
) -> tuple[Generator, Params]:
    """A generator and its parameters.

    `name_or_path` is one of these:

    - the name of a bundled generator, or of a published one that `pulse_jax_convert` has put into
      the user's cache;
    - a folder written by `save`;
    - a published file of any name, whose content tells which program wrote it (see
      `official.read_network`). Beside PULSE's `synthesis.pt`, `gaussian_fit.pt` or `mapping.pt` is
      read from the same folder;
    - a folder with PULSE's files, or a pipeline's of diffusers;
    - `my_package.my_module:make`, a callable that returns (Generator, params) (see `plug_in`).

    Where a StyleGAN's files hold no latent fit, it is computed from the mapping network, and a line
    on stderr says so. `latent_space` are arguments of `style_generator`. `solver` is that
    of `diffusion_generator`.

    Raises ValueError, in one line with the file's or folder's name, if there is no such generator,
    if part of it is missing or damaged, or if an argument is given that it has no use for.
    """
    if is_plug_in(name_or_path):
        for name in [*latent_space, *(["solver"] if solver else [])]:
            raise ValueError(f"generator={name_or_path} has its own latents, without {name}")
        return plug_in(str(name_or_path))
    network, params = load_network(name_or_path, latent_space.get("space", "w"))
    try:
        if isinstance(network, DiffusionModel):
            for name in latent_space:
                raise ValueError(f"{name} is for StyleGANs, and this is a diffusion model")
            return diffusion_generator(network, solver), params
        if solver is not None:
            raise ValueError(f"solver={solver} is for diffusion models, and this is a StyleGAN")
    except ValueError as error:
        raise ValueError(f"generator={name_or_path}: {error}") from error
    return style_generator(network, **latent_space), params


def load_network(
    name_or_path: str | Path, space: str = "w"
) -> tuple[StyleNetwork | DiffusionModel, dict[str, Any]]:
    """The network of a generator, and its parameters.

    Those of a StyleGAN include the latent fit that a space needs. Raises ValueError as `load` does,
    and for a space that needs a mapping network if there is none.
    """
    network, params = read_network(find(name_or_path))
    if isinstance(network, DiffusionModel):
        return network, params
    if space != "w" and "mapping" not in params:
        raise ValueError(f"generator={name_or_path} has no mapping network: space must be w")
    if space == "z":
        return network, params
    if "latent_fit" not in params:
        hint = f"computing its latent fit; `pulse_jax_convert {name_or_path}` would store it"
        print(f"{name_or_path}: {hint}", file=sys.stderr)
    elif space == "w_full" and "factor" not in params["latent_fit"]:
        print(f"{name_or_path}: computing the covariance of its styles", file=sys.stderr)
    return network, with_latent_fit(network, params, full=space == "w_full")


def read_network(path: Path) -> tuple[Any, dict[str, Any]]:
    """The network at a path that `find` has found. A StyleGAN may lack a latent fit."""
    if (path / "spec.json").is_file():
        return _read(path, "generator")
    synthesis = path / "synthesis.pt"
    return official.read_network(synthesis if synthesis.is_file() else path)


def with_latent_fit(
    network: StyleNetwork, params: dict[str, Any], full: bool = False
) -> dict[str, Any]:
    """`params` with a latent fit. Without one, it is fitted to a million of the network's styles.

    If `full`, the fit includes a factor of the covariance. A bar runs on stderr if that is a
    terminal.
    """
    if "latent_fit" in params and ("factor" in params["latent_fit"] or not full):
        return params
    progress = functools.partial(tqdm, desc="latent fit", leave=False, disable=None)
    mapping = {"mapping": params["mapping"]}
    fit = fit_latents(network, mapping, jax.random.key(0), progress=progress, full=full)
    return params | {"latent_fit": fit}


def load_discriminator(
    name_or_path: str | Path,
) -> tuple[Callable[[Params, Float[AnyArray, "n side side 3"]], Float[Array, "n"]], Params]:
    """The discriminator that a generator was trained against: (score, params).

    `score(params, images)` turns images in [0, 1] into logits, which are higher for more realistic
    images. They also depend on how much the images of a batch differ, in groups of 4. So only
    compare batches of like make-up, with a multiple of 4 images or with fewer than 4. Raises
    ValueError as `load` does.
    """
    module, params = _read(find(name_or_path), "discriminator")

    def score(params: Params, images: Float[AnyArray, "n side side 3"]) -> Float[Array, "n"]:
        logits: Any = module.apply({"params": params}, jnp.asarray(2 * images - 1))
        return logits

    return score, params


def load_reader(name_or_path: str | Path) -> tuple[Reader, Params] | None:
    """The reader that comes with a generator, which tells what its images show, if there is one.

    `reader.apply({"params": params}, images)` turns images (n, R, R, 3) in [0, 1] into coordinates.
    Raises ValueError as `load` does.
    """
    if not comes_with(name_or_path, "reader"):
        return None
    module, params = _read(find(name_or_path), "reader")
    return module, params


def comes_with(name_or_path: str | Path, network: str) -> bool:
    """Whether a generator's folder holds this network, too: a "discriminator" or a "reader".

    Raises ValueError as `find` does, and for a damaged `spec.json`.
    """
    if is_plug_in(name_or_path):
        return False
    spec = find(name_or_path) / "spec.json"
    return spec.is_file() and network in read_json(spec)


def entry_digest(name_or_path: str | Path, network: str) -> str:
    """The SHA-256 of what `spec.json` says of a network and its files, or "" if it has none.

    Raises ValueError as `comes_with` does.
    """
    if not comes_with(name_or_path, network):
        return ""
    return _sha256(json.dumps(read_json(find(name_or_path) / "spec.json")[network]).encode())


def find(name_or_path: str | Path, flag: str = "generator") -> Path:
    """The folder or file of a generator, from its name or a path, which may begin with `~`.

    Raises ValueError, in one line, if there is none or the system refuses the path. The line names
    the `flag` that gives it.
    """
    name = str(name_or_path)
    given = f"{flag}={name}"
    if name in bundled():
        return bundled()[name]
    of_published = name in published.PUBLISHED
    path = published.folder(name) if of_published else expanded(name, flag)
    try:
        names = ("spec.json", "synthesis.pt")
        found = path.is_file() or any((path / name).is_file() for name in names)
        found = found or official.is_diffusers(path)
    except OSError as error:  # a name too long, a folder that can't be entered
        raise ValueError(f"{given}: {one_line(error)}") from error
    if not found and of_published:
        raise ValueError(f"{given} isn't here yet: run `pulse_jax_convert {name}`")
    if not found:
        raise ValueError(
            f"{given}: it is no file, no folder with a spec.json, synthesis.pt or "
            f"model_index.json, "
            f"none of the bundled {', '.join(bundled())}, and no published one's name"
            f"{near(name, [*bundled(), *published.PUBLISHED])}"
        )
    return path


def save(folder: str | Path, **networks: tuple[nn.Module | DiffusionModel, Params]) -> None:
    """Write networks, given as `name=(module, params)`, into `folder`.

    Each network's weights go into an Orbax folder. `spec.json` is written last, and holds the
    architectures and the SHA-256 of every file. `load` reads the `generator`. A StyleGAN's
    parameters include `latent_fit`. `load_discriminator` reads the `discriminator`, and
    `load_reader` the `reader`.
    """
    _save(Path(folder).absolute(), {}, networks)


def add(folder: str | Path, **networks: tuple[nn.Module, Params]) -> None:
    """Write more networks into a folder that `save` has written; the others stay as they are.

    Raises ValueError if there is no such folder.
    """
    folder = Path(folder).absolute()
    _save(folder, read_json(folder / "spec.json"), networks)


def check_room(folder: Path, *trees: Any) -> None:
    """Raises OSError if the disk of a folder doesn't have room for the arrays of some trees.

    It goes before what Orbax writes, which would tell of a full disk in pages of tracebacks.
    """
    check_free(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(trees)) + ORBAX_FILES)


def _save(folder: Path, spec: dict[str, Any], networks: Mapping[str, tuple[Any, Params]]) -> None:
    check_room(folder, *(params for _, params in networks.values()))
    with _checkpointer() as checkpointer:
        for name, (_, params) in networks.items():
            checkpointer.save(folder / name, jax.tree.map(np.asarray, params), force=True)
    for name, (module, _) in networks.items():
        (folder / name / "commit_success.txt").unlink(missing_ok=True)  # it tells where we are
        entry = _described(module)
        files = sorted(path for path in (folder / name).rglob("*") if path.is_file())
        entry["files"] = {f.relative_to(folder).as_posix(): _sha256(f.read_bytes()) for f in files}
        spec[name] = entry | {"sha256": _sha256(json.dumps(entry).encode())}
    write(folder / "spec.json", json.dumps(spec, indent=2) + "\n")


def _described(part: Any) -> dict[str, Any]:
    """The architecture of a module, or of what else has one, and its fields, for JSON."""
    names = {architecture: name for name, architecture in ARCHITECTURES.items()}
    entry: dict[str, Any] = {"architecture": names[type(part)]}
    for field in dataclasses.fields(part):
        if field.name not in ("parent", "name"):
            value = getattr(part, field.name)
            entry[field.name] = _described(value) if type(value) in names else value
    return entry


def _made(entry: Any) -> Any:
    """What `_described` has described."""
    if isinstance(entry, dict):
        fields = {name: _made(value) for name, value in entry.items() if name != "architecture"}
        return ARCHITECTURES[entry["architecture"]](**fields)
    return tuple(map(_made, entry)) if isinstance(entry, list) else entry  # a tuple, in JSON


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp  # here, since importing it takes as long as half of JAX

    return ocp.StandardCheckpointer()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(folder: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """One network of a folder written by `save`."""
    try:
        entry = json.loads((folder / "spec.json").read_bytes())[name]
        if entry.pop("sha256") != _sha256(json.dumps(entry).encode()):
            raise ValueError("spec.json is damaged")
        # This comes first, since Orbax prints tracebacks on stderr for a bad file.
        for file, sha256 in entry.pop("files").items():
            path = folder / file
            if not path.is_file() or _sha256(path.read_bytes()) != sha256:
                raise ValueError(f"{file} is missing or damaged")
        module = _made(entry)
        with _checkpointer() as checkpointer:
            params = checkpointer.restore((folder / name).absolute())
        return module, jax.tree.map(_widened, params)
    except Exception as error:  # Orbax, JSON and the modules raise what they like
        reason = one_line(error)[:300]
        if isinstance(error, KeyError):
            reason = f"spec.json has no known {reason}"
        raise ValueError(f"generator {folder}: can't read its {name}: {reason}") from error


def _widened(leaf: AnyArray) -> AnyArray:
    """An array in float32, with which networks compute: bfloat16 only saves space on disk."""
    return leaf.astype(np.float32) if leaf.dtype == jnp.bfloat16 else leaf
