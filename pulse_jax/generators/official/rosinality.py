"""StyleGAN 2 of rosinality's stylegan2-pytorch."""

from typing import Any

from pulse_jax.generators.official.parameters import (
    Entries,
    Layer,
    hwio,
    style_network,
    unwrapped,
)
from pulse_jax.generators.stylegan2 import DOUBLED, StyleGAN2


def from_rosinality(state: dict[Any, Any], average: Any = None) -> tuple[StyleGAN2, dict[str, Any]]:
    """The state dict of a generator of stylegan2-pytorch, its `g_ema`.

    `average` is the mean of the style vectors. Converted checkpoints have one, and those of the
    trainer don't.
    Raises ValueError for an entry that is missing or unknown.
    """
    entries = Entries("stylegan2-pytorch", unwrapped(state))
    take = entries.take

    def dense(name: str) -> Layer:
        return {"kernel": take(f"{name}.weight", 2).T, "bias": take(f"{name}.bias", 1)}

    def to_rgb(name: str) -> Layer:
        return {
            "kernel": hwio(take(f"{name}.conv.weight", 5)[0]),
            "bias": take(f"{name}.bias", 4).reshape(-1),
            "style": dense(f"{name}.conv.modulation"),
        }

    def conv(name: str) -> Layer:
        return {
            "kernel": hwio(take(f"{name}.conv.weight", 5)[0]),
            "bias": take(f"{name}.activate.bias", 1),
            "style": dense(f"{name}.conv.modulation"),
            "noise_strength": take(f"{name}.noise.weight", 1).reshape(()),
        }

    synthesis = {
        "const": take("input.input", 4).transpose(0, 2, 3, 1),
        "4x4_conv": conv("conv1"),
        "4x4_to_rgb": to_rgb("to_rgb1"),
    }
    for k in entries.layers(r"to_rgbs\.(\d+)\.bias$"):
        side = f"{8 * 2**k}x{8 * 2**k}"
        synthesis[f"{side}_conv_up"] = conv(f"convs.{2 * k}")
        synthesis[f"{side}_conv"] = conv(f"convs.{2 * k + 1}")
        synthesis[f"{side}_to_rgb"] = to_rgb(f"to_rgbs.{k}")
    layers = entries.layers(r"style\.(\d+)\.weight$")
    mapping = [dense(f"style.{i + 1}") for i in layers]
    entries.drop(r"noises\.")
    entries.check_filters(r"\.(blur|upsample)\.kernel$", DOUBLED)
    entries.check_all_taken()
    if average is not None:
        average = Entries("stylegan2-pytorch", {"latent_avg": average}).take("latent_avg", 1)
    return style_network(StyleGAN2, synthesis, mapping, average)
