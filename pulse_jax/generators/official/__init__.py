"""Published weights in the formats of the programs that wrote them, read without those programs."""

from pulse_jax.generators.official.pulse import from_pulse
from pulse_jax.generators.official.unpickle import read

__all__ = ["from_pulse", "read"]
