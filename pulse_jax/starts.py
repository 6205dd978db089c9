"""Where searches start: latents of earlier results, points around them and between them.

Latents are pytrees as a `Generator` samples them: axis 0 of a leaf counts spheres.
"""

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray, PyTree

from pulse_jax import sphere
from pulse_jax.files import kept_dtype, load_arrays
from pulse_jax.generators import Generator
from pulse_jax.generators.digests import network_digest
from pulse_jax.types import Frozen, Latents, Params

GENERATOR = "generator"  # where files with latents hold its `network_digest`
# Files with latents hold these names too; the last is an argument of `numpy.savez`.
RESERVED = GENERATOR, "row", "curve", "file"


def interpolate(a: Latents, b: Latents, frames: int) -> Latents:
    """Walk the great circles from latents a to latents b. Axis 0 of the result counts `frames`.

    The walk crosses each sphere along its geodesic, evenly in angle (slerp), and includes both
    ends. Where two points differ in norm, the norm changes evenly. Between opposite points lie many
    great circles. Then none is chosen, and all frames but the last stay at a.

    Raises ValueError for fewer than 2 frames or latents of different shapes.
    """
    if frames < 2:
        raise ValueError(f"frames must be at least 2, for both ends, got {frames}")
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"both ends must have the same shapes, got {shapes[0]} and {shapes[1]}")

    return _walk(a, b, frames)


@functools.partial(jax.jit, static_argnames="frames")
def _walk(a: Latents, b: Latents, frames: int) -> Latents:
    def between(
        x: Float[Array, "*point"], y: Float[Array, "*point"], t: Float[Array, ""]
    ) -> Float[Array, "*point"]:
        of_x, of_y = _norm(x), _norm(y)
        ratio = jnp.where(of_x > 0, of_y / jnp.where(of_x > 0, of_x, 1), 1)
        direction = sphere.log(x, y / jnp.where(ratio > 0, ratio, 1))
        return jnp.where(t < 1, (1 + t * (ratio - 1)) * sphere.exp(x, t * direction), y)

    def of_leaf(
        x: Float[Array, "n *point"], y: Float[Array, "n *point"]
    ) -> Float[Array, "frames n *point"]:
        spheres = jax.vmap(between, in_axes=(0, 0, None))
        return jax.vmap(spheres, in_axes=(None, None, 0))(x, y, jnp.linspace(0, 1, frames))

    return jax.tree.map(of_leaf, a, b)


@jax.jit
def vary(key: PRNGKeyArray, latents: Latents, angle: float | Float[Array, ""]) -> Latents:
    """Neighbours of latents: each point is turned on its sphere by `angle`, in radians.

    The direction is random, and all directions are equally likely: a point x becomes
    exp_x(R·angle·u), where u is uniform on the unit sphere of the tangents at x. On a sphere of
    radius 0 nothing moves.
    """

    def turn(key: PRNGKeyArray, x: Float[Array, "*point"]) -> Float[Array, "*point"]:
        towards = sphere.tangent(x, jax.random.normal(key, x.shape))
        length = _norm(towards)
        unit = towards / jnp.where(length > 0, length, 1)
        return sphere.exp(x, angle * _norm(x) * unit)

    leaves, structure = jax.tree.flatten(latents)
    keys = jax.random.split(key, len(leaves))
    turned = [
        jax.vmap(turn)(jax.random.split(key, len(leaf)), leaf)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, turned)


def by_name(latents: PyTree, frozen: PyTree) -> dict[str, Any]:
    """All arrays of both trees by their keys. A tree that is one array has its own name as key.

    Raises ValueError for a key that both trees have, and for one of `RESERVED`.
    """
    latents, frozen = _by_name(latents, "latents"), _by_name(frozen, "frozen")
    for name in latents:
        if name in frozen:
            raise ValueError(f"{name!r} is both in its latents and in what is frozen")
    for name in RESERVED:
        if name in latents | frozen:
            raise ValueError(f"{name!r} can't be the name of a latent: results use it")
    return latents | frozen


def load_latents(
    path: str | Path, generator: Generator, params: Params | None = None
) -> tuple[Latents, Frozen]:
    """(latents, frozen) of all restarts in a `latents.npz`. Axis 0 of each leaf counts restarts.

    `generator` decides what is frozen and what isn't, whatever it was when the latents were found.
    With `params`, this also checks that the latents were found with the same networks. Files of
    older versions don't say it, and then a line on stderr tells so.

    Raises ValueError, with the file's name, if the file can't be read, or if its latents have other
    shapes or belong to other networks.
    """
    start, networks = read_latents(path, generator)
    if params is not None:
        check_networks(path, networks, network_digest(params))
        if networks is None:
            print(f"{path} doesn't say which generator it is of", file=sys.stderr)
    return start


def read_latents(
    path: str | Path, generator: Generator
) -> tuple[tuple[Latents, Frozen], str | None]:
    """What `load_latents` returns, and the digest of the networks, or None if the file lacks it."""
    arrays = load_arrays(path)
    trees = jax.eval_shape(generator.sample, jax.random.key(0))
    wanted = by_name(*trees)
    for name, leaf in wanted.items():
        shape = arrays[name].shape[1:] if name in arrays else None
        if shape != leaf.shape:
            had = f"{shape} in it" if name in arrays else "not in it"
            raise ValueError(f"{path}: {name} is {had}, and {leaf.shape} in this generator")
        if arrays[name].dtype.kind != kept_dtype(leaf.dtype).kind:
            told = f"{name} is of {arrays[name].dtype}, and of {leaf.dtype} in this generator"
            raise ValueError(f"{path}: {told}")
    counts = {arrays[name].shape[:1] for name in wanted}
    if len(counts) > 1 or () in counts:
        raise ValueError(f"{path}: its arrays aren't of the same number of restarts")

    def fill(tree: PyTree, root: str) -> PyTree[np.ndarray]:
        names = _by_name(tree, root)
        leaves = [arrays[name].astype(leaf.dtype) for name, leaf in names.items()]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    networks = str(arrays[GENERATOR]) if GENERATOR in arrays else None
    return (fill(trees[0], "latents"), fill(trees[1], "frozen")), networks


def check_networks(path: str | Path, found: str | None, wanted: str) -> None:
    """Raises ValueError if latents were found with other networks than those at hand."""
    if found is not None and found != wanted:
        raise ValueError(
            f"{path}: is of another generator, whose networks' SHA-256 is {found[:8]}…, not "
            f"{wanted[:8]}…"
        )


def _by_name(tree: PyTree, root: str) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keystr = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {keystr(path) or root: leaf for path, leaf in leaves}


def _norm(x: Float[Array, "..."]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.sum(x**2))  # of all axes
