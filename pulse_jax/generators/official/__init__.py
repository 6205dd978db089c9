"""Published weights in the formats of the programs that wrote them, read without those programs."""

from pulse_jax.files import one_line
from pulse_jax.generators.official.ada import from_ada
from pulse_jax.generators.official.parameters import checked, persistent_modules
from pulse_jax.generators.official.pulse import from_pulse
from pulse_jax.generators.official.rosinality import from_rosinality
from pulse_jax.generators.official.stylegan3 import from_stylegan3
from pulse_jax.generators.official.tensorflow import from_tensorflow
from pulse_jax.generators.official.unpickle import Instance, read

__all__ = ["from_pulse", "read", "read_network"]

# What else files hold, by an entry that tells.
_OTHERS = {
    "blocks.4x4.const": "PULSE's synthesis network, without gaussian_fit.pt or mapping.pt",
    "dense0.weight": "PULSE's mapping network",
    "std": "PULSE's latent fit",
    "D": "a discriminator",
    "d": "a discriminator",
}


def read_network(path):
    """The generator in one file of published weights: (Flax module, params).

    Which program wrote the file is told from what is in it: those of StyleGAN, StyleGAN 2 and its
    ADA in TensorFlow, stylegan2-ada-pytorch, stylegan3, or rosinality's stylegan2-pytorch. Of a
    file's networks it is the moving average of the generator. `params` are float32 arrays:
    {"mapping", "synthesis"} and, if the file has it, "latent_average" (d,), the mean of the style
    vectors, for `style_network.truncate`. Constant noise maps are left out: a search has its own.
    Raises ValueError, in one line with the path, for a file that can't be read, holds no such
    generator, or one that these modules can't compute.
    """
    tree = read(path)
    try:
        module, params = _convert(tree)
        return module, checked(module, params)
    except Exception as error:  # a tree of another make may fail anywhere
        reason = one_line(error)[:300]
        if not isinstance(error, ValueError):
            reason = f"not laid out as expected ({type(error).__name__}: {reason})"
        raise ValueError(f"{path}: {reason}") from error


def _convert(tree):
    match tree:
        case (_, _, Instance(name="dnnlib.tflib.network.Network") as network):
            return from_tensorflow(network)
        case {"G_ema": Instance() as root}:
            alias_free = "synthesis.input" in persistent_modules(root)
            return from_stylegan3(root) if alias_free else from_ada(root)
        case {"g_ema": dict()}:
            return from_rosinality(tree)
        case Instance():
            content = f"a {tree.name!r} alone"
        case dict():
            known = (content for name, content in _OTHERS.items() if name in tree)
            content = next(known, f"the entries {list(tree)[:5]}")
        case _:
            content = f"a {type(tree).__name__}"
    raise ValueError(f"holds no generator, but {content}")
