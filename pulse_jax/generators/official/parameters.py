"""What the readers of all formats share: entries taken by name, shapes checked at the end."""

import jax
import numpy as np


def checked(module, params):
    """`params` as float32 arrays of their own, if their shapes are those of `module`.

    `params` has any of the parts "synthesis" and "mapping", `module`'s parameters, and
    "latent_fit". Raises ValueError, naming the entry, for a part that lacks one, has one too many,
    or one of another shape.
    """
    latent = jax.ShapeDtypeStruct((1, module.latent_size), np.float32)
    noise = [jax.ShapeDtypeStruct((1, *shape), np.float32) for shape in module.noise_shapes]
    expected = jax.eval_shape(module.init, jax.random.key(0), latent, noise)["params"]
    fit = jax.ShapeDtypeStruct((module.latent_size,), np.float32)
    expected["latent_fit"] = {"mean": fit, "std": fit}
    expected = {part: expected[part] for part in params}

    def check(path, value, like):
        if value.shape != like.shape:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name} has shape {value.shape}, the others imply {like.shape}")
        return np.array(value, np.float32, order="C")

    return jax.tree_util.tree_map_with_path(check, params, expected)
