"""Whether chains have met."""

import sys

import numpy as np
import pytest
from test_chains import needs_blackjax

from pulse_jax import diagnostics


@needs_blackjax
def test_diagnostics_tell_chains_that_have_met():
    values = np.random.default_rng(0).standard_normal((4, 500, 2), np.float32)
    met = diagnostics.diagnose(values)
    assert met.rhat.max() < 1.01 and met.ess_bulk.min() > 1500 and met.ess_tail.min() > 1000
    values[0, :, 1] += 3
    apart = diagnostics.diagnose(values)
    assert apart.rhat[0] < 1.01 and apart.rhat[1] > 1.3 and apart.ess_bulk[1] < 50


@needs_blackjax
def test_each_statistic_has_its_figures():
    """Also if it is the only one of an axis, is large, or is NaN in the last draw alone."""
    values = np.random.default_rng(0).standard_normal((4, 101, 1, 2))
    values[0, -1, 0, 1] = np.nan
    found, shifted = (diagnostics.diagnose(x) for x in (values, values + 1e9))
    for figure, other in zip(found, shifted, strict=True):
        assert figure.shape == (1, 2) and figure.dtype == np.float32
        assert np.isnan(figure).tolist() == [[False, True]]
        np.testing.assert_allclose(other, figure, rtol=1e-3)
    np.testing.assert_array_equal(diagnostics.rhat(values), found.rhat)
    never = diagnostics.diagnose(np.ones((4, 100)))
    assert np.isnan(never.rhat) and never.ess_bulk == never.ess_tail == 0


@pytest.mark.parametrize(
    ("shape", "told"),
    [((1, 100), "1 and 100"), ((4, 3), "4 and 3"), ((100,), "100 and 0"), ((), "1 and 0")],
)
def test_diagnostics_of_too_little(unchecked, shape, told):
    for diagnose in (diagnostics.diagnose, diagnostics.rhat):
        with pytest.raises(ValueError, match=f"got {told}"):
            diagnose(np.zeros(shape))


def test_without_blackjax(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "blackjax"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "blackjax", None)
    with pytest.raises(ImportError, match=r'pip install "pulse_jax\[posterior\]"'):
        diagnostics.diagnose(np.zeros((4, 10)))
