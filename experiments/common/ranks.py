"""A figure of ranks that should be uniform."""

import matplotlib.pyplot as plt
import numpy as np


def draw(shares, titles):
    """Shares of truths below each rank: of each sampler (N, 2) in `shares`, a panel a title."""
    figure, axes = plt.subplots(
        1, 2, figsize=(9.5, 4.2), layout="constrained", sharex=True, sharey=True
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.plot([0, 1], [0, 1], color="k", lw=0.8, ls=":")
        axis.set(xlabel=title, aspect="equal", xlim=(0, 1), ylim=(0, 1))
    for name, columns in shares.items():
        for axis, column in zip(axes, columns.T, strict=True):
            axis.step(np.sort(column), (np.arange(len(column)) + 1) / len(column), label=name)
    axes[0].set_ylabel("share of truths below it")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right", fontsize="small")
    return figure
