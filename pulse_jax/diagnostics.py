"""Whether many chains have met: R-hat and effective sample sizes, by blackjax.

    print(diagnose(statistic(draws)))

`pip install "pulse_jax[posterior]"` installs blackjax.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from pulse_jax.extras import blackjax
from pulse_jax.types import AnyArray


class Diagnostics(NamedTuple):
    """Whether chains have met, for each statistic (Vehtari et al., Bayesian Analysis 16, 2021).

    Quantiles of chains that have not met describe nothing: above an R-hat of 1.01, or 1.05 for a
    picture to look at, draw more.
    """

    rhat: Float[np.ndarray, "*statistics"]  # rank-normalised, of split chains, bulk or tail
    ess_bulk: Float[np.ndarray, "*statistics"]  # independent draws that would tell as much
    ess_tail: Float[np.ndarray, "*statistics"]  # of the quantiles 5% and 95%


def diagnose(values: Float[AnyArray, "chains draws *statistics"]) -> Diagnostics:
    """R-hat and effective sample sizes of each statistic of the draws, by blackjax.

    A statistic that is NaN in any draw has NaN for all. One that never changes has an R-hat of NaN,
    and effective sample sizes of 0. Raises ValueError for fewer than two chains or four draws.
    """
    names = "rhat", "ess_bulk", "ess_tail"
    return Diagnostics(*(_figures(name, values) for name in names))


def rhat(values: Float[AnyArray, "chains draws *statistics"]) -> Float[np.ndarray, "*statistics"]:
    """The R-hat of `diagnose` alone, which is found sooner. Raises ValueError as that does."""
    return _figures("rhat", values)


def _figures(
    name: str, values: Float[AnyArray, "chains draws *statistics"]
) -> Float[np.ndarray, "*statistics"]:
    values = np.asarray(values)
    chains, draws = values.shape[:2] if values.ndim > 1 else (values.size, 0)
    if chains < 2 or draws < 4:
        found = f"{chains} and {draws}"
        raise ValueError(f"diagnostics take 2 chains and 4 draws at least, got {found}")
    # blackjax leaves out the last of an odd number of draws, and axes of one statistic.
    missing = np.isnan(values).any((0, 1))
    if values.dtype == np.float64:  # JAX rounds to float32; no figure changes with a shift
        values = values - np.median(values, (0, 1))
    found = jax.jit(getattr(blackjax("diagnostics"), name))(values)
    return np.where(missing, np.nan, np.reshape(found, missing.shape))
