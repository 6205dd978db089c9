"""StyleGAN 2 of NVIDIA's PyTorch programs: stylegan2-ada-pytorch, and stylegan3 with the same."""

import math
from typing import Any

import numpy as np

from pulse_jax.generators.official.parameters import (
    Entries,
    Layer,
    expect,
    expect_square,
    hwio,
    persistent_modules,
    persistent_state,
    plain,
    style_network,
)
from pulse_jax.generators.official.unpickle import Instance
from pulse_jax.generators.stylegan2 import SMOOTHING, StyleGAN2


def from_ada(root: Instance) -> tuple[StyleGAN2, dict[str, Any]]:
    """A generator of stylegan2-ada-pytorch, a persistent module.

    The program uses its 3×3 kernels as they are. Our networks divide kernels by sqrt(fan_in), so
    these are multiplied by it here, in float64. Layers that were trained in float16 are computed
    like the others. Raises ValueError for a setting that our networks don't have, and for an entry
    that is missing or unknown.
    """
    modules = persistent_modules(root)
    entries = Entries("stylegan2-ada-pytorch", persistent_state(modules))
    take = entries.take

    def expect_of(name: str, **standard: Any) -> None:
        expect(modules.get(name, {}), standard, f"{name}.".lstrip("."))

    def dense(name: str) -> Layer:
        return {"kernel": take(f"{name}.weight", 2).T, "bias": take(f"{name}.bias", 1)}

    def fully_connected(name: str) -> Layer:
        expect_of(name, activation="lrelu", bias_gain=0.01)
        return dense(name)

    def to_rgb(name: str) -> Layer:
        expect_of(name, conv_clamp=clamp)
        return {
            "kernel": hwio(take(f"{name}.weight", 4)),
            "bias": take(f"{name}.bias", 1),
            "style": dense(f"{name}.affine"),
        }

    def conv(name: str, up: int = 1) -> Layer:
        expect_of(name, up=up, use_noise=True, activation="lrelu")
        layer = to_rgb(name)
        fan_in = math.prod(layer["kernel"].shape[:3])
        return layer | {
            "kernel": layer["kernel"] * np.sqrt(np.float64(fan_in)),
            "noise_strength": take(f"{name}.noise_strength", 0),
        }

    embed = None
    if "mapping.embed" in modules:
        expect_of("mapping.embed", activation="linear", bias_gain=1)
        embed = dense("mapping.embed")
    expect_of("", c_dim=0 if embed is None else len(embed["kernel"]))
    for name in ("img_resolution", "init_res"):  # init_res: of a program derived from this one
        expect_square(modules[""].get(name), name)
    sides = list(entries.sides(r"synthesis\.b(\d+)\."))
    for side in sides:
        expect_of(f"synthesis.b{side}", architecture="skip")
    clamp = plain(modules.get("synthesis.b4.conv1", {}).get("conv_clamp"), "conv_clamp")

    synthesis: Layer = {"const": take("synthesis.b4.const", 3).transpose(1, 2, 0)[None]}
    for side in sides:
        ours, theirs = f"{side}x{side}", f"synthesis.b{side}"
        if side > 4:
            synthesis[f"{ours}_conv_up"] = conv(f"{theirs}.conv0", up=2)
        synthesis[f"{ours}_conv"] = conv(f"{theirs}.conv1")
        synthesis[f"{ours}_to_rgb"] = to_rgb(f"{theirs}.torgb")
    layers = entries.layers(r"mapping\.fc(\d+)\.weight$")
    mapping = [fully_connected(f"mapping.fc{i}") for i in layers]
    average = take("mapping.w_avg", 1)
    entries.drop(r"synthesis\.b\d+\.conv[01]\.noise_const$")
    entries.check_filters(r"\.resample_filter$", SMOOTHING)
    entries.check_all_taken()
    clamp = None if clamp is None else float(clamp)
    return style_network(StyleGAN2, synthesis, mapping, average, embed, conv_clamp=clamp)
