"""Packages that an extra installs, imported when they are needed."""

import importlib
from typing import Any

TAKES_BLACKJAX = 'posterior samples take blackjax: pip install "pulse_jax[posterior]"'


def blackjax(module: str) -> Any:
    """A module of blackjax. Raises ImportError, which says how to install it."""
    try:
        return importlib.import_module(f"blackjax.{module}")
    except ImportError as error:
        raise ImportError(TAKES_BLACKJAX) from error
