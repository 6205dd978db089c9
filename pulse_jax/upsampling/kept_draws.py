"""What a picture's chains have drawn: in memory, and on disk while they are under way."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from pulse_jax.files import load_arrays, npz, write
from pulse_jax.types import AnyArray

LARGEST = 2**28  # values in an array of a picture: of its images, or of its Jacobians
POSITION = "position_"


class Plan(NamedTuple):
    """How often each chain draws, and which draws are kept: those of numbers that these divide.

    What a doubled plan keeps of the earlier draws, the one before has kept too.
    """

    draws: int
    thinning: int  # for positions, whose images are shown
    stride: int  # for images that the maps are made from; it divides `thinning`

    def doubled(self, values: int) -> "Plan":
        """The plan for twice as many draws. `values`: of an image of each chain."""
        fits = 2 * self.draws * values <= self.stride * LARGEST
        return Plan(2 * self.draws, 2 * self.thinning, self.stride if fits else 2 * self.stride)

    def kept(self, name: str, first: int, number: int) -> list[int]:
        """Of so many draws after the `first`, those of which the array of this name is kept."""
        position = name.startswith(POSITION)
        every = self.stride if name == "images" else self.thinning if position else 1
        return [i for i in range(number) if (first + i + 1) % every == 0]


def make_plan(draws: int, thinning: int, values: int) -> Plan:
    """A plan that keeps each draw's image, if all fit into memory. `values`: as in `doubled`."""
    strides = (n for n in range(1, thinning) if thinning % n == 0)
    fitting = (n for n in strides if values * draws <= n * LARGEST)
    return Plan(draws, thinning, next(fitting, thinning))


class KeptDraws:
    """All draws so far: what is measured of each, and the images and positions that are kept.

    `shapes`: of the arrays of one draw of one chain. In what follows, they are (chains, draws,
    ...). Positions are called `POSITION`….
    """

    def __init__(self, plan: Plan, chains: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.plan, self.chains, self.shapes = plan, chains, shapes
        self.made = 0  # draws of each chain
        self.chunks: list[dict[str, np.ndarray]] = []
        self.saved = 0  # chunks

    def note(self, arrays: Mapping[str, AnyArray]) -> None:
        """Add a chunk of draws, of which all arrays are given."""
        number = arrays["l2"].shape[1]
        self.chunks.append(
            {
                name: np.asarray(array)[:, self.plan.kept(name, self.made, number)]
                for name, array in arrays.items()
            }
        )
        self.made += number

    def all(self, name: str) -> Shaped[np.ndarray, "chains draws ..."]:
        """What is kept under this name."""
        return np.concatenate([chunk[name] for chunk in self.chunks], axis=1)

    def double(self) -> None:
        """Double the plan."""
        before, first = self.plan, 0
        self.plan = before.doubled(self._values)
        for chunk in self.chunks:
            self._thin(chunk, first, before)
            first += chunk["l2"].shape[1]

    @property
    def _values(self) -> int:
        return self.chains * int(np.prod(self.shapes["images"]))

    def _thin(self, chunk: dict[str, np.ndarray], first: int, before: Plan) -> None:
        """Leave of a chunk what the plan keeps, which was kept by the one `before`."""
        number = chunk["l2"].shape[1]
        for name, array in chunk.items():
            still = set(self.plan.kept(name, first, number))
            had = before.kept(name, first, number)
            chunk[name] = array[:, [k for k, i in enumerate(had) if i in still]]

    def save(self, folder: Path, row: str) -> None:
        """Write what is new into a file of its own. `row`: what it is of."""
        if new := self.chunks[self.saved :]:
            first = self.made - sum(chunk["l2"].shape[1] for chunk in new)
            joined = {name: np.concatenate([chunk[name] for chunk in new], 1) for name in new[0]}
            write(_path(folder, first), npz(joined | {"row": row}))
        self.saved = len(self.chunks)

    def read(self, folder: Path, total: int) -> None:
        """Take up so many draws that were saved, none of which is across two plans.

        Raises ValueError for a file of a version that kept other arrays, or of other shapes.
        """
        plans = [self.plan]
        while plans[-1].draws < total:
            plans.append(plans[-1].doubled(self._values))
        self.plan = plans[-1]
        while self.made < total:
            path = _path(folder, self.made)
            chunk = numbers(path)
            number = max(1, np.size(chunk.get("l2", ())) // self.chains)
            plan = next(plan for plan in plans if self.made < plan.draws)  # by which it was kept
            shapes = {
                name: (self.chains, len(plan.kept(name, self.made, number)), *shape)
                for name, shape in self.shapes.items()
            }
            check_shapes(path, chunk, shapes)
            self._thin(chunk, self.made, plan)
            self.chunks.append(chunk)
            self.made += number
        self.saved = len(self.chunks)


def _path(folder: Path, first: int) -> Path:
    return folder / f"draws_{first:06d}.npz"


def numbers(path: Path) -> dict[str, np.ndarray]:
    """The arrays of numbers in a file. Raises ValueError if it can't be read."""
    return {name: array for name, array in load_arrays(path).items() if array.dtype.kind in "biuf"}


def check_shapes(
    path: Path, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ValueError if a file holds other arrays, or of other shapes, than this run keeps."""
    if {name: array.shape for name, array in arrays.items()} != shapes:
        told = f"of another run or version; remove {path.parent} to begin anew"
        raise ValueError(f"{path}: {told}")
