"""Networks that grow to twice their side, and at first compute the same.

A generator that knows faces at 64 pixels only has to learn details for 128. So it gets new layers
that add nothing at first, and its discriminator gets new ones that first make images smaller:

    G'(w, noise) = upsample(G(w, noise))        D'(x) = D(x blurred, and each second pixel of it)

This is progressive growing (Karras et al., ICLR 2018) without its fading in, since skip connections
let new layers come in by themselves.
"""

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pulse_jax.generators.layers import SQRT2

SIGNED = 6  # channels that hold the three colours and their negatives


def grown(small, large, side):
    """Parameters of StyleGAN 2's networks for twice `side`, from those for `side`.

    `small` and `large` have "generator" and "discriminator". `small` is what is known. `large` is a
    start for the larger networks, whose other layers are kept. Raises ValueError if these have
    fewer than 6 channels at their full side.
    """
    small, large = flatten_dict(small), flatten_dict(large)
    new = f"{2 * side}x{2 * side}"
    from_rgb, conv, conv_down, skip = (
        ("discriminator", f"{new}_{name}") for name in ("from_rgb", "conv", "conv_down", "skip")
    )
    channels = large[*from_rgb, "kernel"].shape[-1]
    if channels < SIGNED:
        raise ValueError(f"{channels} channels at side {2 * side} are too few to grow: {SIGNED}")
    old = ("discriminator", f"{side}x{side}_from_rgb")
    kernel, bias = small.pop((*old, "kernel")), small.pop((*old, "bias"))

    # Leaky ReLUs let the colours x through as pairs of ±x: leaky(x) − leaky(−x) = 1.2 x.
    signs = np.concatenate([np.eye(3), -np.eye(3)], axis=1)
    recovered = signs.T / (1.2 * SQRT2)
    known = {
        from_rgb: signs,
        conv: recovered @ signs,
        conv_down: SQRT2 * recovered @ kernel[0, 0] / np.sqrt(3),  # over √2, as a sum of two
    }
    for layer, weights in known.items():
        large[*layer, "kernel"] = _with_centre(large[*layer, "kernel"], weights)
    large[*conv_down, "bias"] = SQRT2 * bias
    for layer in (skip, ("generator", "synthesis", f"{new}_to_rgb")):
        large[*layer, "kernel"] = jnp.zeros_like(large[*layer, "kernel"])
    return unflatten_dict(large | small)


def _with_centre(kernel, weights):
    """An equalised kernel whose first outputs are the first inputs times `weights`, and only that.

    It is as stored: `equalised_kernel` divides by the root of the number of terms of an output.
    """
    inputs, outputs = weights.shape
    centre = kernel.shape[0] // 2
    kernel = kernel.at[..., :outputs].set(0)
    scale = np.sqrt(np.prod(kernel.shape[:3]))
    return kernel.at[centre, centre, :inputs, :outputs].set(scale * weights)
