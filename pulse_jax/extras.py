"""Packages that an extra installs, imported when they are needed."""

import importlib
from typing import Any


def blackjax(module: str) -> Any:
    """A module of blackjax. Raises ImportError, which says how to install it."""
    try:
        return importlib.import_module(f"blackjax.{module}")
    except ImportError as error:
        install = 'pip install "pulse_jax[posterior]"'
        raise ImportError(f"posterior samples take blackjax: {install}") from error
