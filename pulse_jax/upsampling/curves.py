"""Figures of a picture's searches by step, in SVG, which needs no library and fits into a page."""

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT = 300, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 20, 24
# Inside a page these rules are the page's, so all are about .curves.
STYLE = """
.curves { font: 11px system-ui, sans-serif; color: #1c1b19; }
.curves text { fill: currentColor; }
.curves .grid { stroke: currentColor; opacity: 0.15; }
.curves .goal { stroke: currentColor; opacity: 0.6; stroke-dasharray: 4 3; }
.curves polyline { fill: none; stroke: #8a8781; opacity: 0.55; stroke-linejoin: round; }
.curves .best { stroke: #2f6fde; stroke-width: 2; opacity: 1; }
@media (prefers-color-scheme: dark) {
  .curves { color: #e8e6e1; }
  .curves .best { stroke: #7fa8f8; }
}
"""


def draw(
    values: Float[np.ndarray, "restarts steps"], name: str, best: int, goal: float | None = None
) -> str:
    """A quantity of each restart by step, on a logarithmic axis; one restart stands out.

    `values` that are NaN or aren't positive aren't shown. `best` is the number of the restart that
    stands out. A line marks the value `goal`.
    """
    values = np.where(np.isfinite(values) & (values > 0), values, np.nan).astype(float)
    reached = np.flatnonzero(~np.isnan(values).all(axis=0))
    values = values[:, : reached.max(initial=0) + 1]
    marks = [*values[~np.isnan(values)], *([goal] if goal else [])] or [1]
    low, high = math.log10(min(marks)) - 0.05, math.log10(max(marks)) + 0.05
    steps = values.shape[1]

    def x(step: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(1, steps - 1)

    def y(value: float) -> float:
        share = (math.log10(value) - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def text(x: float, y: float, content: object, anchor: str) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{content}</text>'

    def line(value: float, kind: str) -> str:
        return f'<path class="{kind}" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>'

    parts = [text(LEFT, 12, f"{name} by step, the best restart in blue", "start")]
    for value in _ticks(low, high):
        parts += [line(value, "grid"), text(LEFT - 4, y(value) + 4, f"{value:g}", "end")]
    for step in {0, steps - 1}:
        parts.append(text(x(step), HEIGHT - 8, step, "middle" if step == 0 else "end"))
    for i in sorted(range(len(values)), key=lambda i: i == best):  # the best on top
        points = [f"{x(k):.1f},{y(v):.1f}" for k, v in enumerate(values[i]) if not math.isnan(v)]
        kind = ' class="best"' if i == best else ""
        parts.append(f'<polyline{kind} points="{" ".join(points)}"/>')
    if goal:
        parts += [line(goal, "goal"), text(WIDTH - RIGHT, y(goal) - 4, "eps", "end")]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="curves" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{name} of each restart by step"><style>{STYLE}</style>'
        f"{''.join(parts)}</svg>\n"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round values between two powers of ten: 1, 10, … or, where they are few, 1, 2, 5, 10, …."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    choices: list[Iterable[int]] = [(1,), (1, 3), (1, 2, 5), range(1, 10)]
    for digits in choices:
        values = [digit * 10.0**k for k in decades for digit in digits]
        ticks = [value for value in values if low <= math.log10(value) <= high]
        if len(ticks) >= 3:
            break
    return ticks
