"""StyleGAN 3 of NVIDIA's PyTorch program stylegan3."""

from typing import Any

import numpy as np

from pulse_jax.generators.official.parameters import (
    Entries,
    Layer,
    expect,
    expect_square,
    hwio,
    image_channels,
    mapping_fields,
    mapping_params,
    persistent_modules,
    persistent_state,
    plain,
)
from pulse_jax.generators.official.unpickle import Instance
from pulse_jax.generators.stylegan3 import StyleGAN3

# Their settings of the synthesis network, with our names and with limits. A file mustn't ask for
# any size, since filters are designed and each of their taps is traced.
_SETTINGS: dict[str, tuple[str, float, float]] = {
    "num_critical": ("critical_layers", 1, 32),
    "first_cutoff": ("first_cutoff", 0.01, 4096),
    "first_stopband": ("first_stopband", 0.01, 4096),
    "last_stopband_rel": ("last_stopband", 0.01, 4096),
    "margin_size": ("margin", 0, 256),
    "output_scale": ("output_scale", 0.01, 4096),
    "conv_kernel": ("kernel_size", 1, 9),
    "filter_size": ("filter_size", 1, 8),
    "lrelu_upsampling": ("lrelu_upsampling", 1, 2),
    "use_radial_filters": ("radial_filters", 0, 1),
}


def from_stylegan3(root: Instance) -> tuple[StyleGAN3, dict[str, Any]]:
    """A generator of stylegan3, a persistent module.

    The filters are designed from the settings, and compared with the file's. Layers that
    were trained in float16 are computed like the others. Raises ValueError for a setting that our
    networks don't have, for a layer or filter that isn't what the settings lead to, and for an
    entry that is missing or unknown.
    """
    modules = persistent_modules(root)
    entries = Entries("stylegan3", persistent_state(modules))
    take = entries.take

    def expect_of(name: str, **standard: Any) -> None:
        expect(modules.get(name, {}), standard, f"{name}.".lstrip("."))

    def dense(name: str, **standard: Any) -> Layer:
        expect_of(name, **standard)
        return {"kernel": take(f"{name}.weight", 2).T, "bias": take(f"{name}.bias", 1)}

    def conv(name: str) -> Layer:
        expect_of(name, conv_clamp=clamp)
        return {
            "kernel": hwio(take(f"{name}.weight", 4)),
            "bias": take(f"{name}.bias", 1),
            "style": dense(f"{name}.affine", activation="linear", bias_gain=1),
            "input_magnitude": take(f"{name}.magnitude_ema", 0),
        }

    settings = modules["synthesis"]
    expect_square(settings["img_resolution"], "img_resolution")
    expect_square(modules["synthesis.input"].get("size"), "input.size")
    given = settings["_init_kwargs"]
    fields = {
        ours: _number(given[name], name, *bounds)
        for name, (ours, *bounds) in _SETTINGS.items()
        if name in given
    }
    resolution = _number(settings["img_resolution"], "img_resolution", 4, 4096)
    names = settings["layer_names"]
    if len(names) > 32:
        raise ValueError(f"{len(names)} layers are more than any network has")
    *convs, last = (f"synthesis.{plain(name, 'a layer name')}" for name in names)
    clamp = plain(modules[last].get("conv_clamp"), "conv_clamp")
    synthesis: Layer = {
        "input": {
            "frequencies": take("synthesis.input.freqs", 2),
            "phases": take("synthesis.input.phases", 1),
            "transform": take("synthesis.input.transform", 2),
            "kernel": take("synthesis.input.weight", 2).T,
            "style": dense("synthesis.input.affine", activation="linear", bias_gain=1),
        },
        **{f"conv_{i}": conv(name) for i, name in enumerate(convs)},
        "to_rgb": conv(last),
    }
    layers = [
        dense(f"mapping.fc{i}", activation="lrelu", bias_gain=0.01)
        for i in entries.layers(r"mapping\.fc(\d+)\.weight$")
    ]
    embed = None
    if "mapping.embed" in modules:
        embed = dense("mapping.embed", activation="linear", bias_gain=1)
    expect_of("", c_dim=0 if embed is None else len(embed["kernel"]))
    mapping = mapping_params(layers, embed)
    sizes: dict[str, Any] = mapping_fields(mapping)
    module = StyleGAN3(
        resolution,
        tuple(synthesis[f"conv_{i}"]["bias"].size for i in range(len(convs))),
        synthesis["to_rgb"]["style"]["kernel"].shape[0],
        **sizes,
        image_channels=image_channels(synthesis["to_rgb"]),
        conv_clamp=None if clamp is None else float(clamp),
        **fields,
    )
    module.check_sizes()
    resamplings = module.resamplings
    if (up := max(resampling.up for resampling in resamplings)) > 8:  # each phase is traced
        raise ValueError(f"a layer upsamples by {up}, which no network does")

    expect(settings, {name: getattr(module, ours) for name, (ours, *_) in _SETTINGS.items()})
    size, rate, bandwidth, _ = module.signals[0]
    expect_of("synthesis.input", size=[size, size], sampling_rate=rate, bandwidth=bandwidth)
    for name, (size, up, up_filter, down, down_filter, padding) in zip(
        convs, resamplings, strict=True
    ):
        standard = {"up_factor": up, "down_factor": down, "padding": padding * 2}
        expect_of(name, out_size=[size, size], **standard)
        for part, ours in {"up_filter": up_filter, "down_filter": down_filter}.items():
            if ours.size > 1:
                theirs = take(f"{name}.{part}", ours.ndim)
                if theirs.shape != ours.shape or np.abs(theirs - ours).max() > 1e-6 * ours.max():
                    raise ValueError(f"{name}.{part} isn't the filter that the settings lead to")
    params: Layer = {"mapping": mapping, "synthesis": synthesis}
    params["latent_average"] = take("mapping.w_avg", 1)
    entries.check_all_taken()
    return module, params


def _number(value: Any, name: str, least: float, most: float) -> Any:
    value = plain(value, name)
    if not (isinstance(value, int | float) and least <= value <= most):
        raise ValueError(f"{name} = {value!r} is no number from {least} to {most}")
    return value
