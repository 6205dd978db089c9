"""PULSE's files: synthesis.pt, mapping.pt and gaussian_fit.pt, state dicts of StyleGAN."""

from collections.abc import Sequence
from typing import Any

from pulse_jax.generators.official.parameters import (
    Entries,
    Layer,
    checked,
    hwio,
    style_network,
    unwrapped,
)
from pulse_jax.generators.stylegan import SMOOTHING, StyleGAN


def from_pulse(
    synthesis: Any, mapping: Any = None, gaussian_fit: Any = None
) -> tuple[StyleGAN, dict[str, Any]]:
    """A generator from PULSE's state dicts: synthesis.pt, mapping.pt and gaussian_fit.pt.

    Resolution, channels, latent size and depth follow from the names and shapes. The parameters are
    float32 NumPy arrays in "synthesis" and, for dicts that are given, in "mapping" and
    "latent_fit", which has "mean" and "std". Raises ValueError, naming the entry, if one is
    missing, unknown or of the wrong shape.
    """
    state: dict[Any, Any] = {}
    for part in (synthesis, mapping or {}, gaussian_fit or {}):
        if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
            raise ValueError(f"PULSE's files hold state dicts, not a {type(part).__name__}")
        state |= unwrapped(part)
    entries = Entries("PULSE", state)
    take = entries.take

    def dense(name: str) -> Layer:
        return {"kernel": take(f"{name}.weight", 2).T, "bias": take(f"{name}.bias", 1)}

    def conv(name: str) -> Layer:
        return {"kernel": hwio(take(f"{name}.weight", 4)), "bias": take(f"{name}.bias", 1)}

    def layer(start: Layer, epilogue: str) -> Layer:
        return start | {
            "noise_strength": take(f"{epilogue}.noise.weight", 1),
            "style": dense(f"{epilogue}.style_mod.lin"),
        }

    arrays: Layer = {
        "const": take("blocks.4x4.const", 4).transpose(0, 2, 3, 1),
        "to_rgb": conv("torgb"),
    }
    for side in entries.sides(r"blocks\.(\d+)x"):
        ours, theirs = f"{side}x{side}", f"blocks.{side}x{side}"
        if side == 4:
            bias = {"bias": take(f"{theirs}.bias", 1)}
            arrays[f"{ours}_const"] = layer(bias, f"{theirs}.epi1")
            arrays[f"{ours}_conv"] = layer(conv(f"{theirs}.conv"), f"{theirs}.epi2")
        else:
            arrays[f"{ours}_conv_up"] = layer(conv(f"{theirs}.conv0_up"), f"{theirs}.epi1")
            arrays[f"{ours}_conv"] = layer(conv(f"{theirs}.conv1"), f"{theirs}.epi2")
    numbers: Sequence[int] = entries.layers(r"dense(\d+)\.weight$") if mapping is not None else ()
    module, params = style_network(StyleGAN, arrays, [dense(f"dense{i}") for i in numbers])
    if gaussian_fit is not None:
        params["latent_fit"] = {"mean": take("mean", 1), "std": take("std", 1)}
    entries.check_filters(r"\.intermediate\.kernel$", SMOOTHING)
    entries.check_all_taken()
    return module, checked(module, params)
