"""What a run has come to, in a few lines, as the command prints them."""

from collections.abc import Iterator
from pathlib import Path

from pulse_jax.files import counted, figure, one_line
from pulse_jax.search import STATUS
from pulse_jax.upsampling.pictures import Picture
from pulse_jax.upsampling.results import is_apart, rank, verdict
from pulse_jax.upsampling.run import Results
from pulse_jax.upsampling.settings import Settings


def summary(results: Results, output: Path) -> Iterator[str]:
    """A line for each picture, and one for all. `output`: the folder that holds the results."""
    for picture in results.pictures:
        if picture.rows:
            yield one_line(line(picture, results.settings))
    whole = [p for p in results.pictures if len(p.rows) == results.settings.results]
    met = [p for p in whole if not (p.error or p.lost or is_apart(p))]
    done = f"{counted(len(met), 'picture')} done"
    if (seeds := len(results.settings.seeds or ())) > 1:
        of_each = f"{counted(len(results.pictures) // seeds, 'picture')} × {seeds} seeds"
        done = f"{of_each}: {len(met)} of {len(results.pictures)} done"
    failed = f", {counted(len(results.failures), 'failure')}" if results.failures else ""
    if results.pictures:
        page = output / "index.html"
        page = page if page.is_file() else output
        yield f"{done}{failed}; open {page} to see the results"


def line(picture: Picture, settings: Settings) -> str:
    """How many restarts have converged, or that all failed, and how far the best is."""
    seed = f", seed {picture.seed}" if len(settings.seeds or ()) > 1 else ""
    if settings.noise is not None:
        return f"{picture.name}{seed}: {verdict(picture.rows[1])}"
    rows = sorted(picture.rows.values(), key=rank)
    met = sum(row["status"] == STATUS[0] for row in rows)
    came_to = f"{met} of {len(rows)} converged"
    if picture.lost:
        came_to = f"{len(rows)} of {len(rows)} failed"
    best = rows[0]["l2_saved"]
    above = best - settings.eps
    missed = f", {figure(above)} above --eps={settings.eps:g}" if above > 0 else ""
    return f"{picture.name}{seed}: {came_to}, best l2 {figure(best)}{missed}"
