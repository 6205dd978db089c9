"""What tells generators apart: checksums of their parameters."""

import hashlib
from typing import Any

import jax
import numpy as np


def digest(params: Any) -> str:
    """SHA-256 over the names, shapes, types and values of a tree of parameters, in hexadecimal."""
    result = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        leaf = np.asarray(leaf)
        result.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}\n".encode())
        result.update(leaf.tobytes())
    return result.hexdigest()


def network_digest(params: Any) -> str:
    """`digest` without the latent fit, which is rounded differently when it is computed anew."""
    if isinstance(params, dict):
        params = {name: tree for name, tree in params.items() if name != "latent_fit"}
    return digest(params)
