"""PULSE's files: synthesis.pt, mapping.pt and gaussian_fit.pt, state dicts of StyleGAN."""

import re

import numpy as np

from pulse_jax.generators.official.parameters import checked
from pulse_jax.generators.stylegan import SMOOTHING, StyleGAN

_BLUR = np.outer(SMOOTHING, SMOOTHING)[None, None]


def from_pulse(synthesis, mapping=None, gaussian_fit=None):
    """PULSE's state dicts, of synthesis.pt, mapping.pt and gaussian_fit.pt, as (StyleGAN, params).

    Resolution, channels, latent size and depth follow from the names and shapes. The parameters
    are float32 numpy arrays: {"synthesis": …} and, where the dict is given, {"mapping": …} and
    {"latent_fit": {"mean", "std"}}. Raises ValueError, naming the entry, if one is missing,
    unknown or of the wrong shape.
    """
    state = {}
    for part in (synthesis, mapping or {}, gaussian_fit or {}):
        if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
            raise ValueError(f"PULSE's files hold state dicts, not a {type(part).__name__}")
        state |= part

    def take(name, ndim):
        value = state.pop(name, None)
        if getattr(value, "ndim", None) != ndim:
            raise ValueError(f"PULSE's {name!r} is missing, or no tensor with {ndim} axes")
        return value

    def dense(name):
        return {"kernel": take(f"{name}.weight", 2).T, "bias": take(f"{name}.bias", 1)}

    def conv(name):
        kernel = take(f"{name}.weight", 4).transpose(2, 3, 1, 0)  # OIHW → HWIO
        return {"kernel": kernel, "bias": take(f"{name}.bias", 1)}

    sides = [re.match(r"blocks\.(\d+)x", name) for name in state]
    resolution = max([4, *(int(side[1]) for side in sides if side)])
    const = take("blocks.4x4.const", 4).transpose(0, 2, 3, 1)
    params = {"synthesis": {"const": const, "to_rgb": conv("torgb")}}
    channels = []
    for k in range(resolution.bit_length() - 2):
        side = f"{4 * 2**k}x{4 * 2**k}"
        block = f"blocks.{side}"
        if k == 0:
            layers = {"const": {"bias": take(f"{block}.bias", 1)}, "conv": conv(f"{block}.conv")}
        else:
            layers = {"conv_up": conv(f"{block}.conv0_up"), "conv": conv(f"{block}.conv1")}
            if not np.array_equal(take(f"{block}.conv0_up.intermediate.kernel", 4), _BLUR):
                raise ValueError(f"PULSE's {block!r} has another resampling filter than [1, 2, 1]")
        for (name, layer), epilogue in zip(layers.items(), ("epi1", "epi2"), strict=True):
            params["synthesis"][f"{side}_{name}"] = layer | {
                "noise_strength": take(f"{block}.{epilogue}.noise.weight", 1),
                "style": dense(f"{block}.{epilogue}.style_mod.lin"),
            }
        channels.append(layers["conv"]["bias"].size)
    latent_size = params["synthesis"]["4x4_const"]["style"]["kernel"].shape[0]
    module = StyleGAN(resolution, tuple(channels), latent_size)
    if mapping is not None:
        depth = max(1, sum(name.endswith(".weight") for name in mapping))
        params["mapping"] = {f"dense_{i}": dense(f"dense{i}") for i in range(depth)}
        module = module.clone(mapping_layers=depth)
    if gaussian_fit is not None:
        params["latent_fit"] = {"mean": take("mean", 1), "std": take("std", 1)}
    if state:
        raise ValueError(
            f"PULSE's {min(state)!r} has no place in a StyleGAN of {resolution} pixels"
        )
    return module, checked(module, params)
