"""Pipelines of diffusers: folders of `config.json` and weights, for networks, decoders, schedules.

Keys that a config.json lacks, as older ones do, have the defaults of diffusers.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import linen as nn

from pulse_jax.files import json_object, one_line
from pulse_jax.generators.diffusion import DiffusionModel
from pulse_jax.generators.diffusion.autoencoders import AutoencoderKL, AutoencoderTiny, VQModel
from pulse_jax.generators.diffusion.schedules import (
    ConsistencySchedule,
    FlowSchedule,
    NoiseSchedule,
    Schedule,
    ScoreSchedule,
)
from pulse_jax.generators.diffusion.unet import UNet2DModel
from pulse_jax.generators.official.parameters import (
    blaming,
    expect,
    expect_square,
    hwio,
    plain,
    shapes_of,
)
from pulse_jax.generators.official.unpickle import read

LARGEST = 2**20  # bytes of settings
# Files of weights in a folder, the first of which is read.
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
NETWORKS: dict[str, type[nn.Module]] = {"UNet2DModel": UNet2DModel}
DECODERS: dict[str, type[nn.Module]] = {
    "VQModel": VQModel,
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderTiny": AutoencoderTiny,
}
# Settings that our modules don't have, with the one value that they compute.
_STANDARD: dict[str, dict[str, Any]] = {
    "UNet2DModel": {
        "act_fn": "silu",
        "class_embed_type": None,
        "mid_block_type": "UNetMidBlock2D",
        "num_train_timesteps": None,
    },
    "VQModel": {"act_fn": "silu", "norm_type": "group", "lookup_from_codebook": False},
    "AutoencoderKL": {"act_fn": "silu", "latents_mean": None, "latents_std": None},
    "AutoencoderTiny": {
        "act_fn": "relu",
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
        "latent_magnitude": 3,
    },
}


class _Scheduler(NamedTuple):
    """What a network for one of diffusers' schedulers was trained for."""

    schedule: type[Any]
    standard: dict[str, Any]  # settings that must have this value
    defaults: Mapping[str, Any] = types.MappingProxyType({})  # where they aren't the schedule's


_DISCRETE = {
    "thresholding": False,
    "timestep_type": "discrete",
    "trained_betas": None,
    "use_flow_sigmas": False,
}
_SCHEDULERS = {
    r"(DDPM|DDIM)(Parallel)?Scheduler": _Scheduler(NoiseSchedule, _DISCRETE),
    # These have no clip.
    "PNDMScheduler": _Scheduler(
        NoiseSchedule, _DISCRETE, {"clip_sample": False, "set_alpha_to_one": False}
    ),
    r"(LMS|Euler|EulerAncestral)DiscreteScheduler|(DPMSolver(Single|Multi)|DEISMulti|UniPCMulti)"
    "stepScheduler": _Scheduler(NoiseSchedule, _DISCRETE, {"clip_sample": False}),
    r"(Heun|KDPM2|KDPM2Ancestral)DiscreteScheduler": _Scheduler(
        NoiseSchedule,
        _DISCRETE,
        {"clip_sample": False, "beta_start": 0.00085, "beta_end": 0.012},
    ),
    "CMStochasticIterativeScheduler": _Scheduler(ConsistencySchedule, {"s_noise": 1}),
    "FlowMatchEulerDiscreteScheduler": _Scheduler(
        FlowSchedule,
        {
            "invert_sigmas": False,
            "shift_terminal": None,
            "stochastic_sampling": False,
            "use_beta_sigmas": False,
            "use_dynamic_shifting": False,
            "use_exponential_sigmas": False,
            "use_karras_sigmas": False,
        },
    ),
    "ScoreSdeVeScheduler": _Scheduler(ScoreSchedule, {}),
}
# Names of attention's parts before diffusers 0.12.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def is_diffusers(path: Path) -> bool:
    """Whether a folder holds a pipeline or one of its U-Nets, or a file is such a U-Net's."""
    if path.is_dir():
        parts = ("model_index.json", "config.json", "unet/config.json")
        return any((path / part).is_file() for part in parts)
    try:
        return json_object(path.with_name("config.json"), LARGEST)["_class_name"] in NETWORKS
    except Exception:  # no such file, or of another program
        return False


def from_diffusers(path: Path) -> tuple[DiffusionModel, dict[str, Any]]:
    """The model in a folder, or that of a file of weights, and its parameters.

    The folder is a pipeline's, with a U-Net, a scheduler, and for latent models an autoencoder, or
    it is the U-Net's own. In old pipelines, a part may be in the folder of the pipeline itself.
    Without a scheduler, the model has no schedule.

    Raises ValueError, in one line with the file's or folder's name, if a part is missing or can't
    be read, or has a setting that our networks don't have.
    """
    folder = path if path.is_dir() else path.parent
    root = folder.parent if folder.name == "unet" else folder
    index = root / "model_index.json"
    parts = _config(index) if index.is_file() else {}
    schedule = _schedule(root)
    unet = root / "unet" if (root / "unet").is_dir() else root
    params: dict[str, Any] = {}
    weights = None if path.is_dir() else path
    network, params["network"] = _read_module(unet, NETWORKS, weights)
    decoder = None
    for part in ("vqvae", "vae"):
        if part in parts or (root / part).is_dir():
            channels = network.in_channels
            decoder, params["decoder"] = _read_module(root / part, DECODERS, None, channels)
    return DiffusionModel(network, schedule, decoder), params


def _read_module(
    folder: Path, classes: dict[str, type[nn.Module]], weights: Path | None, latents: int = 0
) -> tuple[Any, dict[str, Any]]:
    """The network in a folder, and its parameters, from the given file or the usual one.

    A decoder is one of so many `latents`.
    """
    path = folder / "config.json"
    config = _config(path)
    if weights is None:
        found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
        if not found:
            raise ValueError(f"{folder}: has none of {', '.join(WEIGHTS)}")
        weights = found[0]
    arrays = _arrays(weights)
    try:
        kind = config.get("_class_name")
        if kind not in classes:
            raise ValueError(f"describes a {kind!r:.60}, not a {' or '.join(classes)}")
        expect(config, _STANDARD[kind])
        module: Any = classes[kind](**fields(classes[kind], config))
    except Exception as error:
        raise blaming(path, error) from error
    try:
        tiny = isinstance(module, AutoencoderTiny)
        depth = sum(module.num_decoder_blocks) if tiny else module.layers_per_block
        if depth > len(arrays):  # before each layer is traced
            raise ValueError(f"has {len(arrays)} entries for {depth} layers in each block")
        kind = jnp.result_type(float)  # parameters have this type at first
        if latents:
            inputs: tuple[Any, ...] = (jax.ShapeDtypeStruct((1, 8, 8, latents), kind),)
        else:
            x = jax.ShapeDtypeStruct((1, *module.noise_shape), kind)
            labels = (jax.ShapeDtypeStruct((1,), np.int32),) if module.classes else ()
            inputs = (x, jax.ShapeDtypeStruct((), kind), *labels)
        return module, named_params(module, arrays, *inputs)
    except Exception as error:
        raise blaming(weights, error) from error


def _config(path: Path) -> dict[str, Any]:
    """The settings in a file."""
    try:
        return json_object(path, LARGEST)
    except ValueError as error:
        raise ValueError(f"{path}: can't be read: {error}") from error


def fields(kind: type, config: dict[str, Any]) -> dict[str, Any]:
    """The settings that are fields of a class. Raises ValueError for one of another type."""
    hints, values = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in config and field.name not in ("parent", "name"):
            value = plain(config[field.name], field.name)
            if field.name == "sample_size":
                expect_square(value, field.name)
                value = value[0] if type(value) is list else value
            value = tuple(value) if type(value) is list else value
            if not _fits(value, hints[field.name]):
                raise ValueError(f"{field.name} = {value!r:.60} is not supported")
            values[field.name] = value
        elif field.default is dataclasses.MISSING and field.name not in ("parent", "name"):
            raise ValueError(f"lacks {field.name}")
    return values


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type, and no larger than any network has it."""
    if typing.get_origin(kind) is tuple:
        return type(value) is tuple and all(_fits(v, typing.get_args(kind)[0]) for v in value)
    if isinstance(kind, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(kind))
    if kind is int:
        return type(value) is int and 0 <= value <= 2**15
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return value is None if kind is types.NoneType else type(value) is kind


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The tensors in a file of weights by their names."""
    with path.open("rb") as file:
        start = file.read(10)
    if start[8:] != b'{"':  # how the header of safetensors begins
        arrays = read(path)
    else:
        try:
            arrays = safetensors.numpy.load_file(path)
        except AttributeError as error:  # NumPy's, of a type that it lacks
            told = f"can't read its tensors of {error.name}: save it with float16 or float32"
            raise ValueError(f"{path}: {told}") from error
        except Exception as error:
            raise ValueError(f"{path}: {one_line(error)[:300]}") from error
    if type(arrays) is not dict or not all(
        type(name) is str and type(array) is np.ndarray for name, array in arrays.items()
    ):
        raise ValueError(f"{path}: holds no tensors by name")
    if len(arrays) > 4000:
        raise ValueError(f"{path}: networks have fewer entries than {len(arrays)}")
    return arrays


def named_params(module: nn.Module, arrays: dict[str, np.ndarray], *inputs: Any) -> dict[str, Any]:
    """The parameters of a module in float32, if the tensors have its names and shapes.

    Names are the same but for separators, and `weight` at their end. An autoencoder's encoder is
    left out.
    """
    entries = {}
    for name, array in arrays.items():
        if not re.match(r"encoder\.|quant_conv\.", name):
            for old, new in _OLD.items():
                name = re.sub(rf"(?<=\.){old}(?=\.\w+$)", new, name)
            entries[name.replace(".", "_")] = array

    def take(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> np.ndarray:
        *parts, leaf = (key.key for key in path)
        name = "_".join([*parts, "bias" if leaf == "bias" else "weight"])
        if name not in entries:
            raise ValueError(f"lacks {name}")
        array = entries.pop(name)
        if leaf == "kernel":  # theirs has outputs first
            array = hwio(array) if array.ndim == 4 else array.T
        if array.shape != like.shape or not jnp.issubdtype(array.dtype, jnp.floating):
            told = f"{array.dtype} {array.shape}, where the settings lead to {like.shape}"
            raise ValueError(f"{name} is {told}")
        return np.array(array, np.float32, order="C")

    params: dict[str, Any] = jax.tree_util.tree_map_with_path(take, shapes_of(module, *inputs))
    if entries:
        raise ValueError(f"{min(entries)!r:.100} has no place in the network")
    return params


def _schedule(root: Path) -> Schedule | None:
    """What the scheduler of a pipeline tells, or None if there is none."""
    path = root / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        path = root / "scheduler_config.json"
        if not path.is_file():
            return None
    config = _config(path)
    try:
        kind = config.get("_class_name")
        for pattern, (schedule, standard, defaults) in _SCHEDULERS.items():
            if type(kind) is str and re.fullmatch(pattern, kind):
                expect(config, standard)
                return schedule(**fields(schedule, {**defaults, **config}))
        raise ValueError(f"networks for a {kind!r:.60} have no solver here")
    except Exception as error:
        raise blaming(path, error) from error
