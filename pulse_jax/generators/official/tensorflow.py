"""NVIDIA's TensorFlow pickles: the network Gs of StyleGAN or StyleGAN 2, ADA's included."""

from typing import Any

from pulse_jax.generators.official.parameters import (
    Entries,
    Layer,
    Network,
    expect,
    expect_square,
    plain,
    style_network,
)
from pulse_jax.generators.official.unpickle import Instance
from pulse_jax.generators.stylegan import StyleGAN
from pulse_jax.generators.stylegan2 import StyleGAN2

# The settings that change what a network computes, as our networks have them.
_BOTH = {
    "normalize_latents": True,
    "mapping_lrmul": 0.01,
    "mapping_nonlinearity": "lrelu",
    "nonlinearity": "lrelu",
    "use_noise": True,
}
_STYLEGAN = _BOTH | {
    "use_wscale": True,
    "const_input_layer": True,
    "use_pixel_norm": False,
    "use_instance_norm": True,
    "use_styles": True,
    "fused_scale": "auto",
    "blur_filter": [1, 2, 1],
}
_STYLEGAN2 = _BOTH | {"architecture": "skip", "resample_kernel": [1, 3, 3, 1]}


def from_tensorflow(network: Instance) -> tuple[StyleGAN | StyleGAN2, dict[str, Any]]:
    """The network Gs of NVIDIA's TensorFlow programs.

    As with ours, kernels are HWIO, and (in, out) in dense layers. Raises ValueError for a setting
    that our networks don't have, and for an entry that is missing or unknown.
    """
    components = network.state["components"]
    if not {"mapping", "synthesis"} <= components.keys():
        function = plain(network.state["build_func_name"], "build_func_name")
        raise ValueError(f"a network built by {function!r} is no StyleGAN")
    arrays: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    parts = {f"{part}/": components[part] for part in ("mapping", "synthesis")}
    for prefix, part in ({"": network} | parts).items():
        settings.update(part.state["static_kwargs"].items())
        for name, value in part.state["variables"]:
            if type(name) is not str:  # a tuple, say, whose hash may take for ever
                raise ValueError(f"a variable's name is a {type(name).__name__}")
            arrays[prefix + name] = value

    if classes := plain(settings.get("label_size"), "label_size"):
        raise ValueError(f"the network is conditional: label_size = {classes!r}")
    for name in ("lod", "synthesis/lod"):
        if lod := plain(arrays.pop(name, 0), name):
            raise ValueError(f"the network was still growing when it was saved: lod = {lod}")
    expect_square(settings.get("resolution"), "resolution")
    if "synthesis/4x4/Const/StyleMod/weight" in arrays:
        expect(settings, _STYLEGAN)
        return _stylegan(Entries("StyleGAN", arrays))
    expect(settings, _STYLEGAN2)
    clamp = plain(settings.get("conv_clamp"), "conv_clamp")
    return _stylegan2(Entries("StyleGAN 2", arrays), clamp)


def _stylegan(entries: Entries) -> tuple[StyleGAN, Layer]:
    take = entries.take

    def layer(name: str) -> Layer:
        kernel = {} if name.endswith("Const") else {"kernel": take(f"{name}/weight", 4)}
        return kernel | {
            "bias": take(f"{name}/bias", 1),
            "noise_strength": take(f"{name}/Noise/weight", 1),
            "style": _dense(entries, f"{name}/StyleMod"),
        }

    synthesis: Layer = {
        "const": take("synthesis/4x4/Const/const", 4).transpose(0, 2, 3, 1),
        "to_rgb": {
            "kernel": take("synthesis/ToRGB_lod0/weight", 4),
            "bias": take("synthesis/ToRGB_lod0/bias", 1),
        },
    }
    entries.drop(r"synthesis/ToRGB_lod\d")  # of smaller sides, for growth
    for side in entries.sides(r"synthesis/(\d+)x"):
        ours, theirs = f"{side}x{side}", f"synthesis/{side}x{side}"
        if side == 4:
            synthesis[f"{ours}_const"] = layer(f"{theirs}/Const")
            synthesis[f"{ours}_conv"] = layer(f"{theirs}/Conv")
        else:
            synthesis[f"{ours}_conv_up"] = layer(f"{theirs}/Conv0_up")
            synthesis[f"{ours}_conv"] = layer(f"{theirs}/Conv1")
    return _with_mapping(entries, StyleGAN, synthesis, norm_epsilon=1e-8)


def _stylegan2(entries: Entries, clamp: Any) -> tuple[StyleGAN2, Layer]:
    take = entries.take

    def to_rgb(name: str) -> Layer:
        return {
            "kernel": take(f"{name}/weight", 4),
            "bias": take(f"{name}/bias", 1),
            "style": {
                "kernel": take(f"{name}/mod_weight", 2),
                "bias": take(f"{name}/mod_bias", 1) + 1,
            },
        }

    def conv(name: str) -> Layer:
        return to_rgb(name) | {"noise_strength": take(f"{name}/noise_strength", 0)}

    def conv_up(name: str) -> Layer:
        layer = conv(name)  # the program flips it before its transposed convolution
        return layer | {"kernel": layer["kernel"][::-1, ::-1]}

    synthesis: Layer = {"const": take("synthesis/4x4/Const/const", 4).transpose(0, 2, 3, 1)}
    for side in entries.sides(r"synthesis/(\d+)x"):
        ours, theirs = f"{side}x{side}", f"synthesis/{side}x{side}"
        if side == 4:
            synthesis[f"{ours}_conv"] = conv(f"{theirs}/Conv")
        else:
            synthesis[f"{ours}_conv_up"] = conv_up(f"{theirs}/Conv0_up")
            synthesis[f"{ours}_conv"] = conv(f"{theirs}/Conv1")
        synthesis[f"{ours}_to_rgb"] = to_rgb(f"{theirs}/ToRGB")
    clamp = None if clamp is None else float(clamp)
    return _with_mapping(entries, StyleGAN2, synthesis, conv_clamp=clamp)


def _with_mapping(
    entries: Entries, architecture: type[Network], synthesis: Layer, **fields: Any
) -> tuple[Network, Layer]:
    numbers = entries.layers(r"mapping/Dense(\d+)/weight$")
    mapping = [_dense(entries, f"mapping/Dense{i}") for i in numbers]
    average = entries.take("dlatent_avg", 1)
    entries.drop(r"synthesis/noise\d")
    entries.check_all_taken()
    return style_network(architecture, synthesis, mapping, average, **fields)


def _dense(entries: Entries, name: str) -> Layer:
    return {"kernel": entries.take(f"{name}/weight", 2), "bias": entries.take(f"{name}/bias", 1)}
