"""Parts of a user's own: callables that are named as text, module:callable:argument….

    my_module:gamma:2.2

is `gamma(2.2)` of my_module, which Python looks for in the current folder first, as `python -m`
does. Arguments are numbers if they read as numbers, and else text. What a callable returns depends
on where it plugs in: see `generators.plug_in`, `operators.parse`, `schemes.parse`,
`optimizers.parse` and `losses.parse`.
"""

import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pulse_jax.files import one_line

_NAME = re.compile(r"(?P<module>(?:[^\W\d]\w*\.)*[^\W\d]\w*):(?P<callable>[^\W\d]\w*)(?::.*)?")


def is_plug_in(text: object, names: Collection[str] = ()) -> bool:
    """Whether this is written as module:callable, with or without arguments.

    `names` are of parts that aren't plug-ins but take arguments themselves, as mask:FILE does. Such
    a name is a plug-in's only if Python finds a module of this name, such as mask.py.
    """
    named = _NAME.fullmatch(str(text))
    if named is None or named["module"] not in names:
        return named is not None
    _look_in_current_folder()
    return importlib.util.find_spec(named["module"]) is not None


def find(text: str) -> Callable[..., Any]:
    """The callable that a plug-in names, imported but not called.

    Raises ValueError, in one line, if there is none, or whatever its module raises.
    """
    module_name, attribute = text.split(":")[:2]
    _look_in_current_folder()
    module = guarded(f"importing {module_name}", importlib.import_module, module_name)
    if not hasattr(module, attribute):
        raise ValueError(f"{module_name} has no {attribute}")
    made: Any = getattr(module, attribute)
    if not callable(made):
        raise ValueError(f"{attribute} is a {type(made).__name__}, which can't be called")
    return made


def _look_in_current_folder() -> None:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def call(text: str, *first: Any) -> Any:
    """What the callable of a plug-in returns for the arguments of the text, after the `first`.

    Raises ValueError as `find` does, also for whatever the callable raises.
    """
    arguments = text.split(":")[2:]
    return guarded(called(text), find(text), *first, *map(number, arguments))


def called(text: str) -> str:
    """A plug-in's call as messages name it: gamma(2.2)."""
    _, name, *arguments = text.split(":")
    return f"{name}({', '.join(arguments)})"


def number(text: str) -> int | float | str:
    """The number that a text reads as, or else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def guarded(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it. Whatever it raises becomes a ValueError of one line, that `what` raised this."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:  # one that exits would end the run without a word
        reason = f"{type(error).__name__}: {one_line(error)[:300]}"
        raise ValueError(f"{what} raised {reason}") from error


def raised_in_callback(error: Exception) -> str:
    """What a function raised that a compiled program calls back, in one line, or nothing.

    `error` is JAX's, whose text ends with the traceback of that function.
    """
    _, callback, told = str(error).partition("CpuCallback error")
    return one_line(re.split(r"(?m)^ .*\n", told)[-1])[:300] if callback else ""


def source_digest(text: str) -> str | None:
    """SHA-256 of the file that defines the module of a plug-in. None if there is no such file.

    It is of that one file, and not of what the module imports or reads. Raises
    ValueError as `find` does, and OSError if the file can't be read.
    """
    find(text)
    path = getattr(sys.modules[text.partition(":")[0]], "__file__", None)
    if path is None or not os.path.isfile(path):
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
