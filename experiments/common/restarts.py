"""Searches of the same pictures that are compared: a row for each restart, a line for each search.

Rows are dicts, those of an input one after another. Intervals hold with 95%. Means are over inputs
(Student). For the share that met an l2, an input with K restarts counts as one trial (Wilson).
"""

from common.metrics import bracketed, diversity, mean_interval, mean_share, paired

import matplotlib.pyplot as plt
import numpy as np

from pulse_jax import images

BOUNDS = 1e-3, 2e-3  # of l2
SCORE = "realism"  # of a generator with a discriminator


def evaluations(found):
    """Evaluations until an iterate met the first bound, or all that were made: (N, K)."""
    close = np.asarray(found.info.l2) <= BOUNDS[0]
    counts = np.where(close.any(1), close.argmax(1) + 1, close.shape[1])
    return counts.reshape(found.l2.shape)


def measure(found, score):
    """A row of figures for each restart. The diversity is that of its input."""
    single = [name for name, values in found.items() if values.ndim == 2]
    for i, batch in enumerate(found["images"]):
        scores, spread = score(batch) if score else None, float(diversity(batch))
        for k in range(len(batch)):
            row = {"input": i, "restart": k} | {name: found[name][i, k] for name in single}
            judged = {} if scores is None else {SCORE: float(scores[k])}
            yield row | judged | {"diversity": spread}


def by_input(rows, name):
    """Means over the restarts of each input: (N,)."""
    return _by_input(rows, [row[name] for row in rows])


def met(rows, bound):
    """Shares of the restarts of each input that met an l2: (N,)."""
    return _by_input(rows, [row["l2"] <= bound for row in rows])


def _by_input(rows, values):
    restarts = 1 + rows[-1]["restart"]
    return np.asarray(values, float).reshape(-1, restarts).mean(axis=1)


def line(name, rows, columns, reference):
    """A line of the table: the rows of a name, compared with those of the reference."""
    own = rows[name]
    figures = {"": name}
    for bound in BOUNDS:
        figures[f"success@{bound:g}"] = bracketed(*mean_share(met(own, bound)))
    for column in columns:
        figures[column] = bracketed(*mean_interval(by_input(own, column)))
    if reference in rows:
        other = rows[reference]
        shares = (met(both, BOUNDS[0]) for both in (own, other))
        figures[f"success@{BOUNDS[0]:g} − {reference}"] = bracketed(*paired(*shares))
        for column in columns:
            pair = by_input(own, column), by_input(other, column)
            figures[f"{column} − {reference}"] = bracketed(*paired(*pair))
    return figures


def draw_pictures(truth, inputs, shown):
    """A picture of each search's first restart, for the first inputs."""
    count, factor = min(6, len(truth)), truth.shape[1] // inputs.shape[1]
    enlarged = [images.resize_nearest(picture, factor) for picture in inputs[:count]]
    lines = {"face": truth[:count], "input": enlarged}
    lines |= {name: batch[:count, 0] for name, batch in shown.items()}
    figure, axes = plt.subplots(
        len(lines), count, figsize=(1.1 * count + 2.2, 1.1 * len(lines)), squeeze=False
    )
    for row, (name, pictures) in zip(axes, lines.items(), strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(np.clip(picture, 0, 1))
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.tight_layout(pad=0.3)
    return figure
