"""The results of several seeds: a table by seed, means over seeds, and a figure."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pulse_jax.files import figure
from pulse_jax.search import STATUS

COLUMNS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "converged": lambda row: row["status"] == STATUS[0],
    "l2_saved": lambda row: row["l2_saved"],
    "l2_relative": lambda row: row["l2_relative"],
    "loss": lambda row: row["loss"],
    "steps": lambda row: row["steps"],
}
LEFT, PANEL, LINE = 120, 170, 20  # pixels: of the names, and of each column and line
STYLE = """
.seeds { font: 11px system-ui, sans-serif; color: #1c1b19; }
.seeds text { fill: currentColor; }
.seeds .faint { opacity: 0.65; }
.seeds circle { fill: #8a8781; }
.seeds .mean { fill: #2f6fde; stroke: #2f6fde; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  .seeds { color: #e8e6e1; }
  .seeds .mean { fill: #7fa8f8; stroke: #7fa8f8; }
}
"""


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the restarts of each seed, and below them the mean over seeds with its interval.

    The interval is Student's, of 95%. If new sets of as many seeds were drawn again and again, 19
    of 20 intervals would hold the mean of all seeds. An interval takes at least two seeds.
    """
    seeds = sorted({row["seed"] for row in rows})
    found = []
    for seed in seeds:
        own = [row for row in rows if row["seed"] == seed]
        means = {name: float(np.mean([of(row) for row in own])) for name, of in COLUMNS.items()}
        found.append({"seed": seed, "restarts": len(own)} | means)
    by_column = {name: np.array([line[name] for line in found]) for name in COLUMNS}
    means = {name: float(values.mean()) for name, values in by_column.items()}
    halves = {name: half_width(values) for name, values in by_column.items()}
    for name, sign in (("mean", 0), ("low", -1), ("high", 1)):
        ends = {column: means[column] + sign * halves[column] for column in COLUMNS}
        found.append({"seed": name, "restarts": len(rows)} | (ends if sign else means))
    return found


def half_width(values: np.ndarray) -> float:
    """Half the width of Student's 95% interval of a mean; NaN for a single value."""
    from scipy import stats  # here, since importing it takes a third of a second

    count = len(values)
    if count < 2:
        return math.nan
    return float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count))


def draw(table: Sequence[Mapping[str, Any]]) -> str:
    """A figure of a `table`, in SVG: a dot for each seed, and the mean of all with its interval."""
    *lines, mean, low, high = table
    panels = {"converged": "share that converged", "l2_saved": "mean l2", "steps": "mean steps"}
    height = LINE * (len(lines) + 1) + 34
    parts = []
    for k, (column, title) in enumerate(panels.items()):
        values = [line[column] for line in lines]
        ends = [end[column] for end in (low, high) if math.isfinite(end[column])]
        least, most = min([*values, *ends]), max([*values, *ends])
        left, room = LEFT + k * PANEL, PANEL - 24

        def x(value: float, least: float = least, most: float = most, left: int = left) -> float:
            return left + (PANEL - 24) * ((value - least) / (most - least) if most > least else 0.5)

        parts.append(f'<text x="{left}" y="14">{title}</text>')
        parts.append(f'<text x="{left}" y="{height - 6}" class="faint">{figure(least)}</text>')
        end = f'<text x="{left + room}" y="{height - 6}" class="faint" text-anchor="end">'
        parts.append(f"{end}{figure(most)}</text>" if most > least else "")
        for i, value in enumerate(values):
            parts.append(f'<circle cx="{x(value):.1f}" cy="{_middle(i)}" r="3.5"/>')
        y = _middle(len(lines))
        if ends:
            interval = f"M{x(ends[0]):.1f} {y}H{x(ends[1]):.1f}"
            parts.append(f'<path class="mean" d="{interval}"/>')
        parts.append(f'<circle class="mean" cx="{x(mean[column]):.1f}" cy="{y}" r="4.5"/>')
    names = [f"seed {line['seed']}" for line in lines] + ["mean, 95%"]
    for i, name in enumerate(names):
        parts.append(f'<text x="{LEFT - 12}" y="{_middle(i) + 4}" text-anchor="end">{name}</text>')
    width = LEFT + PANEL * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="seeds" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="results by seed"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _middle(line: int) -> int:
    return 24 + LINE * line + LINE // 2
