"""PULSE in JAX: many high-resolution pictures that downscale to one of low resolution."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from pulse_jax.api import *  # noqa: F403
else:
    # The imports take seconds: the console scripts are ready for Ctrl-C first (see `console`).
    def __getattr__(name: str) -> Any:
        """A module, or a public name of `api`, imported when it is first asked for."""
        if name == "__all__" or not name.startswith("_"):
            if importlib.util.find_spec(f"pulse_jax.{name}"):
                return importlib.import_module(f"pulse_jax.{name}")
            api = importlib.import_module("pulse_jax.api")
            if hasattr(api, name):
                return globals().setdefault(name, getattr(api, name))
        raise AttributeError(f"module 'pulse_jax' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *importlib.import_module("pulse_jax.api").__all__})
