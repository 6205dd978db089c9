"""Programs that an earlier process has traced, so that a later one begins sooner.

JAX keeps compiled programs in a folder, and finds them by what was traced. Tracing then takes most
of the time to the first result. So what was traced is kept there too, and is found by all that it
depends on.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.export
from jax import Array
from jax.sharding import Mesh

from pulse_jax.driver import advance
from pulse_jax.files import write
from pulse_jax.generators import checkpoint
from pulse_jax.search import SearchInfo, SearchState
from pulse_jax.static import compiled
from pulse_jax.upsampling.configuration import jax_settings
from pulse_jax.upsampling.settings import Settings

Leaves = list[Array]
CHECKSUM = hashlib.sha256().digest_size  # bytes, at the beginning of a file


@dataclass(frozen=True)
class Keep:
    """What compiles a run's functions, with the same bytes as `jax.jit`.

    In a folder, it keeps what was traced, and in a process what was compiled. Both serve later runs
    with functions that are made alike. Without a folder, only the latter is kept.
    """

    folder: Path | None = None
    known: str = ""  # a digest of what the functions depend on, beside their arguments' types

    def __call__(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled function of dicts of arrays. No other function of a run has its name."""
        if self.folder is None:
            return compiled(function)
        return partial(_call, _Traced(self.folder, f"{self.known} {name}", function))

    def advance(
        self,
        step: Any,
        params: Any,
        targets: Any,
        state: Any,
        *numbers: Any,
        length: int,
        mesh: Mesh,
    ) -> tuple[SearchState, SearchInfo]:
        """`driver.advance`."""
        if self.folder is None:
            return advance(step, params, targets, state, *numbers, length=length, mesh=mesh)
        leaves, tree = jax.tree.flatten((state, step, params, targets, numbers))
        own, of_state = jax.tree.flatten(state)

        def flat(own: Leaves, others: Leaves) -> Leaves:
            state, *arguments, numbers = jax.tree.unflatten(tree, [*own, *others])
            moved = advance(*arguments, state, *numbers, length=length, mesh=mesh)
            return jax.tree.leaves(moved)

        name = f"{self.known} advance {length} {mesh.size}"
        found = _call_with(_Traced(self.folder, name, flat), own, leaves[len(own) :])
        moved = jax.tree.unflatten(of_state, found[: len(own)])
        return moved, SearchInfo(*found[len(own) :])


IN_MEMORY = Keep()


def keep(settings: Settings, config: Mapping[str, Any]) -> Keep:
    """A `Keep` for a run, where JAX keeps programs, too.

    What is traced depends on the run's configuration but for its seed, which has the versions of
    what traces, on the generator's `spec.json`, on the source of this package, on the platform, and
    on JAX's settings. Where that depends on more, as with parts that plug in, several processes or
    another default device, nothing is kept in the folder.
    """
    of_jax = jax_settings()
    folder = of_jax["jax_enable_compilation_cache"] and of_jax["jax_compilation_cache_dir"]
    more = settings.plug_ins() or jax.process_count() > 1 or of_jax["jax_default_device"]
    if more or not folder:
        return IN_MEMORY
    spec = checkpoint.find(settings.generator) / "spec.json"
    if not spec.is_file():
        return IN_MEMORY
    known = hashlib.sha256(spec.read_bytes())
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        known.update(file.read_bytes())
    for values in {**config, "--seeds": None}, jax.devices()[0].platform, of_jax:
        known.update(json.dumps(values, sort_keys=True, default=str).encode())
    return Keep(Path(folder), known.hexdigest())


@dataclass(frozen=True)
class _Traced:
    """A function of arrays in trees. It equals others of the same name."""

    folder: Path
    name: str
    function: Callable[..., Any] = field(compare=False)

    def __call__(self, *arguments: Any) -> Any:
        return self.exported(*arguments).call(*arguments)

    def exported(self, *arguments: Any) -> jax.export.Exported:
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


@partial(jax.jit, static_argnames="traced")
def _call(traced: _Traced, *arguments: Any) -> Any:
    return traced(*arguments)


@partial(jax.jit, static_argnames="traced", donate_argnames="own")
def _call_with(traced: _Traced, own: Leaves, others: Leaves) -> Leaves:
    moved: Leaves = traced(own, others)
    return moved
