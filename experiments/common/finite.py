"""Numbers that flags may have."""

from pulse_jax.types import misfit


def check(values):
    """Raises ValueError for a number that float32 can't hold: absl's bounds let nan through."""
    for name, value in values.items():
        if isinstance(value, float) and (told := misfit(value)):
            raise ValueError(f"--{name}={value}: {told}")
