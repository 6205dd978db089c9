"""Numbers that flags may have."""

import math


def check(values):
    """Raises ValueError for a flag whose number isn't finite: absl's bounds let nan through."""
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name}={value}: not finite")
