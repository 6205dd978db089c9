"""Searches that an earlier process has traced, so that a later one begins sooner.

JAX keeps compiled programs in a folder, and finds them by what was traced. Tracing then takes most
of the time to the first result. So what was traced is kept there too, and is found by all that it
depends on.
"""

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from pulse_jax.driver import advance
from pulse_jax.files import write
from pulse_jax.generators import checkpoint
from pulse_jax.search import SearchInfo, SearchState
from pulse_jax.upsampling.configuration import jax_settings
from pulse_jax.upsampling.parts import SMALL, Run

Leaves = list[Array]
CHECKSUM = hashlib.sha256().digest_size  # bytes, at the beginning of a file
PACKAGES = "flax", "jax", "jaxlib", "optax"


def kept(run: Run) -> Callable[..., tuple[SearchState, SearchInfo]]:
    """`driver.advance` for a run, with the same bytes, traced only if it never was before.

    What is traced depends on the run's configuration but for its seed, on the generator's
    `spec.json`, on the source of this package, on the `PACKAGES` that trace, on the device, and on
    JAX's settings. This is `advance` itself where that depends on more, as with parts that plug in
    or several processes, where slots aren't `SMALL`, so that finding how many fit has traced it,
    and where JAX keeps no programs.
    """
    folder = jax.config.values["jax_compilation_cache_dir"]
    large = run.slots * run.generator.resolution**2 > SMALL
    if large or run.settings.plug_ins() or jax.process_count() > 1:
        return advance
    spec = checkpoint.find(run.settings.generator) / "spec.json"
    if not (spec.is_file() and folder):
        return advance
    known = hashlib.sha256(spec.read_bytes())
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        known.update(file.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    device = jax.devices()[0]
    around = versions | {"platform": device.platform, "kind": device.device_kind}
    for values in run.config | {"--seeds": None}, around, jax_settings():
        known.update(json.dumps(values, sort_keys=True, default=str).encode())

    def program(
        step: Any, params: Any, targets: Any, state: Any, *numbers: Any, length: int, mesh: Mesh
    ) -> tuple[SearchState, SearchInfo]:
        if mesh.size > 1:  # what is kept is for one device
            return advance(step, params, targets, state, *numbers, length=length, mesh=mesh)
        numbers = tuple(map(jnp.asarray, numbers))
        leaves, tree = jax.tree.flatten((state, step, params, targets, numbers))
        own, of_state = jax.tree.flatten(state)

        def flat(own: Leaves, others: Leaves) -> Leaves:
            state, *arguments, numbers = jax.tree.unflatten(tree, [*own, *others])
            moved = advance(*arguments, state, *numbers, length=length, mesh=mesh)
            return jax.tree.leaves(moved)

        traced = _Traced(Path(folder), f"{known.hexdigest()} {length}", flat)
        found = _call(traced, own, leaves[len(own) :])
        moved = jax.tree.unflatten(of_state, found[: len(own)])
        return moved, SearchInfo(*found[len(own) :])

    return program


@dataclass(frozen=True)
class _Traced:
    """A function of leaves. It equals others of the same name."""

    folder: Path
    name: str
    function: Callable[..., Leaves] = field(compare=False)

    def exported(self, *arguments: Leaves) -> jax.export.Exported:
        """What it was traced to for arguments of these types."""
        types = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
        name = hashlib.sha256(f"{self.name} {types}".encode()).hexdigest()
        path = self.folder / f"pulse_jax-{name}-traced"
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            checksum, stored = content[:CHECKSUM], content[CHECKSUM:]
            if hashlib.sha256(stored).digest() == checksum:  # or else it is damaged
                return jax.export.deserialize(bytearray(stored))
        made = jax.export.export(jax.jit(self.function))(*types)
        with contextlib.suppress(OSError):  # then the next process traces it, too
            stored = bytes(made.serialize())
            write(path, hashlib.sha256(stored).digest() + stored)
        return made


@partial(jax.jit, static_argnames="traced", donate_argnames="own")
def _call(traced: _Traced, own: Leaves, others: Leaves) -> Leaves:
    return traced.exported(own, others).call(own, others)
