"""What several test files share: golden arrays and the error measure they are compared with."""

from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"


def golden(name):
    """The arrays of `tests/data/<name>.npz`, computed with the original programs."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def relative_error(actual, expected):
    """max |actual - expected| / max |expected|."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return np.abs(actual - expected).max() / np.abs(expected).max()
