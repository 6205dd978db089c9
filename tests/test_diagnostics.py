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
