"""Estimates from a picture's draws: maps, shares, thinned draws, and how far chains have met."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from pulse_jax import diagnostics
from pulse_jax.files import npz, write
from pulse_jax.generators.reader import Reader
from pulse_jax.images import save_image
from pulse_jax.losses import l2
from pulse_jax.posterior import Position, Posterior
from pulse_jax.starts import GENERATOR, by_name
from pulse_jax.types import Params
from pulse_jax.upsampling import maps, results
from pulse_jax.upsampling.kept_draws import POSITION, KeptDraws
from pulse_jax.upsampling.pictures import Picture
from pulse_jax.upsampling.results import APART, MET, Restart
from pulse_jax.upsampling.settings import Settings

LARGEST_RHAT = 1.05  # of chains that have met, of all statistics

# Compiled for one image at a time, as for a search, and once for all pictures of a side.
image_of = jax.jit(Posterior.image)


@dataclass(frozen=True)
class Estimates:
    """What all draws so far say of a picture."""

    picture: Picture
    settings: Settings
    density: Posterior
    params: Params
    kept: KeptDraws
    structure: Any  # of a position
    statistics: Sequence[str]  # their names
    reader: Reader | None  # which reads the last of the statistics off an image

    def finish(self) -> None:
        """Write the results of all draws so far, or keep them in memory.

        Images that aren't finite are left out of the maps, whose chains then haven't met. Raises
        ValueError if none is.
        """
        picture, statistics = self.picture, self.kept.all("statistics")
        images = self.kept.all("images")
        images = images.reshape(-1, *images.shape[2:])
        finite = np.isfinite(images).all((1, 2, 3))
        if not finite.any():
            raise ValueError("none of the draws' images is finite")
        images = images if finite.all() else images[finite]  # which copies them
        figures = diagnostics.diagnose(statistics)
        judged = judge(figures)
        found, shares = maps.summarise(images), {}
        if self.reader:
            number = len(self.reader.names)
            read = statistics[..., -number:].reshape(-1, number)
            shares = self.reader.shares(read)
        degrade, latents = jax.jit(self.density.operator), []
        for number, position in enumerate(self._shown(), 1):
            hr = results.eight_bits(image_of(self.density, self.params, position))
            lr = np.asarray(degrade(hr))
            latents.append(by_name(*self.density.split(position)))
            picture.rows[number] = self._record(number, hr, lr) | judged
            if picture.folder is None:
                picture.kept[number] = hr, latents[-1]
            else:
                results.save_images(picture, number, hr, lr)
        if picture.folder is None:
            picture.kept_maps, picture.kept_shares = found, shares
        else:
            lr_mean = results.eight_bits(degrade(found["mean"]))
            self._write_whole(found, lr_mean, latents, figures, shares)

    def _write_whole(
        self,
        found: dict[str, Float[np.ndarray, "r r c"]],
        lr_mean: Float[np.ndarray, "h h c"],
        latents: list[dict[str, np.ndarray]],
        figures: diagnostics.Diagnostics,
        shares: dict[str, dict[str, float]],
    ) -> None:
        """Write what is about all draws. results.csv comes last, and says that all is done."""
        picture = self.picture
        for name, values in found.items():
            maps.save(picture.place, name, values)
        save_image(picture.place / "lr_mean.png", lr_mean)
        results.save_grid(picture, self.density.generator.resolution)
        joined = {name: np.stack([arrays[name] for arrays in latents]) for name in latents[0]}
        write(picture.place / "latents.npz", npz(joined | {GENERATOR: picture.networks}))
        table = tabulate(self.statistics, self.kept.all("statistics"), figures)
        write(picture.place / "diagnostics.csv", results.as_csv(table))
        if shares:
            rows = [
                {"attribute": name, "kind": kind, "share": share}
                for name, kinds in shares.items()
                for kind, share in kinds.items()
            ]
            write(picture.place / "attributes.csv", results.as_csv(rows))
        rows = [row for _, row in sorted(picture.rows.items())]
        write(picture.place / "results.csv", results.as_csv(rows))
        if not results.is_apart(picture):
            results.clear(picture)

    def _record(
        self, number: int, hr: Float[np.ndarray, "r r c"], lr: Float[np.ndarray, "h h c"]
    ) -> dict[str, Any]:
        """A row of results.csv, of a thinned draw. Raises ValueError as `put_back` does."""
        picture = self.picture
        turn, chain = divmod(number - 1, self.settings.restarts)
        draw = (turn + 1) * self.kept.plan.thinning - 1
        l2_saved = float(l2(lr, picture.target))
        put_back = {} if picture.origin is None else {"l2_put_back": picture.l2_put_back(hr)}
        return results.identity(Restart(picture, number, 0)) | {
            "chain": chain + 1,
            "draw": draw + 1,
            "draws": self.kept.made,
            "l2": float(self.kept.all("l2")[chain, draw]),
            "l2_saved": l2_saved,
            "l2_relative": picture.relative(l2_saved),
            "log_density": float(self.kept.all("statistics")[chain, draw, 0]),
            "acceptance_rate": float(self.kept.all("acceptance_rate")[chain].mean()),
            "divergent": int(self.kept.all("is_divergent")[chain].sum()),
            "evaluations": int(self.kept.all("evaluations")[chain].sum()),
            **put_back,
        }

    def _shown(self) -> list[Position]:
        """The thinned draws' positions: of the first time of each chain, then of the next."""
        names = [name for name in self.kept.shapes if name.startswith(POSITION)]
        leaves = [self.kept.all(name) for name in names]
        count = self.settings.results
        flat = [leaf.swapaxes(0, 1).reshape(count, *leaf.shape[2:]) for leaf in leaves]
        return [
            jax.tree.unflatten(self.structure, [leaf[i] for leaf in flat]) for i in range(count)
        ]


def tabulate(
    names: Sequence[str],
    statistics: Float[np.ndarray, "chains draws statistics"],
    figures: diagnostics.Diagnostics,
) -> list[dict[str, Any]]:
    """The rows of diagnostics.csv, one for each statistic of the draws."""
    # In float64: one running sum of large log densities would lose the digits of their deviation.
    values = statistics.astype(np.float64)
    columns = {"mean": values.mean((0, 1)), "std": values.std((0, 1))} | figures._asdict()
    return [
        {"statistic": name} | {column: float(x[i]) for column, x in columns.items()}
        for i, name in enumerate(names)
    ]


def judge(figures: diagnostics.Diagnostics) -> dict[str, Any]:
    """Whether chains have met, in the columns of results.csv: the worst of all statistics."""
    rhat = float(figures.rhat.max())
    ess = float(np.minimum(figures.ess_bulk, figures.ess_tail).min())
    return {"rhat": rhat, "ess": ess, "status": MET if rhat <= LARGEST_RHAT else APART}
