"""What the experiments have in common.

Scripts import it before JAX. A variable of the environment that JAX can't take then ends them in
one line.
"""

import sys
from pathlib import Path

from pulse_jax.console import variables_told

with variables_told(Path(sys.argv[0]).stem):
    import jax  # noqa: F401
