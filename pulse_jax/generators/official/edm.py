"""EDM of NVIDIA, and one-step students of it such as SiD, in the pickles of EDM's program."""

import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pulse_jax.generators.diffusion import DiffusionModel
from pulse_jax.generators.diffusion.edm import FILTERS, EDMPrecond
from pulse_jax.generators.diffusion.schedules import EDMSchedule
from pulse_jax.generators.official.diffusers import fields, named_params
from pulse_jax.generators.official.parameters import (
    Entries,
    expect,
    persistent_modules,
    persistent_state,
)
from pulse_jax.generators.official.unpickle import Instance

# Arguments that files needn't have, as in the authors' program.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": {
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
    },
    "DhariwalUNet": {
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
    },
}
# Parts of a block, by our names for them.
_RESNET = {
    "norm1": "norm0",
    "conv1": "conv0",
    "time_emb_proj": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "conv_shortcut": "skip",
}
_MAPPING = {
    "map_layer.linear_1": "map_layer0",
    "map_layer.linear_2": "map_layer1",
    "map_label": "map_label",
}


def from_edm(root: Instance) -> tuple[DiffusionModel, dict[str, Any]]:
    """A denoiser of EDM's program, a persistent module of class `EDMPrecond`.

    Layers that were trained in float16 are computed like the others. Augmentation is left out, as
    in the authors' sampler. Raises ValueError for another class or a setting that our networks
    don't have, and for an entry that is missing, unknown or of another shape.
    """
    if root.name != "EDMPrecond":
        raise ValueError(f"a network of class {root.name!r:.60} is not supported, only EDMPrecond")
    modules = persistent_modules(root)
    model = root.state["_modules"]["model"]
    kind = model.name
    if kind not in _DEFAULTS:
        raise ValueError(f"a network of class {kind!r:.60} is no {' or '.join(_DEFAULTS)}")
    given = root.state["_init_kwargs"] | model.state["_init_kwargs"]
    expect(given, {"decoder_type": "standard"})
    config = _DEFAULTS[kind] | given | {"model_type": kind}
    config["sigma_data"] = root.state.get("sigma_data", 0.5)
    network = EDMPrecond(**fields(EDMPrecond, config))
    entries = Entries("EDM", persistent_state(modules), shared=True)
    if network.num_blocks * len(network.channel_mult) > len(entries.arrays):  # before it is traced
        raise ValueError(f"has {len(entries.arrays)} entries for {network.num_blocks} blocks")
    arrays = dict(_renamed(network, modules, entries))
    entries.drop(r"model\.map_augment\.")
    entries.check_filters(r"\.resample_filter$", FILTERS[network.resample_filter][-1])
    entries.check_all_taken()
    x = jax.ShapeDtypeStruct((1, *network.noise_shape), jnp.result_type(float))
    labels = (jax.ShapeDtypeStruct((1,), np.int32),) if network.classes else ()
    sigma = jax.ShapeDtypeStruct((), x.dtype)
    params = named_params(network, arrays, x, sigma, *labels)
    return DiffusionModel(network, EDMSchedule()), {"network": params}


def _renamed(
    network: EDMPrecond, modules: dict[str, Any], entries: Entries
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays by our names. Each axis is as in the file."""

    def both(ours: str, theirs: str, ndim: int) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{ours}.weight", entries.take(f"{theirs}.weight", ndim)
        if f"{theirs}.bias" in entries.arrays:
            yield f"{ours}.bias", entries.take(f"{theirs}.bias", 1)

    for ours, theirs in _MAPPING.items():
        if f"model.{theirs}" in modules:
            yield from both(ours, f"model.{theirs}", 2)
    if "model.map_noise.freqs" in entries.arrays:  # ours are those of ln σ, theirs of a quarter
        yield "map_noise.weight", entries.take("model.map_noise.freqs", 1) / 4
    for path, state in modules.items():
        name = re.fullmatch(r"model\.(?:(enc|dec)\.(\w+)|(out_norm|out_conv))", path)
        if name is None:
            continue
        ours = name[3] or f"{name[1]}_{name[2]}"
        if "conv0" in state["_modules"]:
            yield from _block(network, ours, path, modules, entries)
        else:
            yield from both(ours, path, 1 if ours.endswith("norm") else 4)


def _block(
    network: EDMPrecond, ours: str, path: str, modules: dict[str, Any], entries: Entries
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of one block, whose settings must be those that the network's lead to."""
    take = entries.take
    standard: dict[str, Any] = {"adaptive_scale": network.is_adm}
    standard["skip_scale"] = 1 if network.is_adm else math.sqrt(0.5)
    for part, theirs in _RESNET.items():
        if f"{path}.{theirs}.weight" in entries.arrays:
            ndim = 1 if "norm" in part else 2 if part == "time_emb_proj" else 4
            yield f"{ours}.{part}.weight", take(f"{path}.{theirs}.weight", ndim)
            yield f"{ours}.{part}.bias", take(f"{path}.{theirs}.bias", 1)
    if f"{path}.qkv.weight" in entries.arrays:
        weight, bias = take(f"{path}.qkv.weight", 4), take(f"{path}.qkv.bias", 1)
        standard["num_heads"] = network.heads(len(bias) // 3)
        for i, letter in enumerate("qkv"):  # those of a channel are neighbours
            yield f"{ours}_attention.to_{letter}.weight", weight[i::3, :, 0, 0]
            yield f"{ours}_attention.to_{letter}.bias", bias[i::3]
        yield f"{ours}_attention.to_out_0.weight", take(f"{path}.proj.weight", 4)[:, :, 0, 0]
        yield f"{ours}_attention.to_out_0.bias", take(f"{path}.proj.bias", 1)
        yield f"{ours}_attention.group_norm.weight", take(f"{path}.norm2.weight", 1)
        yield f"{ours}_attention.group_norm.bias", take(f"{path}.norm2.bias", 1)
    expect(modules[path], standard, f"{path}.")
    expect(modules[f"{path}.norm0"], {"eps": network.eps}, f"{path}.norm0.")
