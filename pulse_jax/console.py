"""The console scripts: how they begin, whatever starts them and whatever they print to."""

import contextlib
import importlib
import os
import signal
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO


def upsample() -> None:
    """The script `pulse_jax`."""
    _start("pulse_jax", "pulse_jax.__main__")


def convert() -> None:
    """The script `pulse_jax_convert`."""
    _start("pulse_jax_convert", "pulse_jax.convert")


def make_output_safe() -> None:
    """From here on, no work ends because its messages can't be printed.

    A character that the terminal lacks comes as an escape. What nobody can read is dropped: of a
    stream that is closed, a pipe whose reader has gone, a full disk.
    """
    # The number of a closed stream would else be the next file's, which would get XLA's messages.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name) or os.fdopen(number, "w", closefd=False)
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
        setattr(sys, name, _Output(stream))


def described(flags: Iterable[Any], headings: Mapping[str, str]) -> str:
    """What flags of absl do, for --help: those with a text, each after the heading at its name."""
    lines = []
    for flag in flags:
        if flag.name in headings:
            lines += [f"{headings[flag.name]}:", ""]
        # absl puts the choices of an enumeration before the text: "<fast|original>: …".
        choices, _, text = flag.help.rpartition(">: ")
        if text:
            default = "" if flag.default is None else f"={flag.default}"
            indent = 8 * " "
            filled = textwrap.fill(text, 92, initial_indent=indent, subsequent_indent=indent)
            lines += [f"    --{flag.name}{default}{choices and f' {choices}>'}", filled, ""]
    return "\n".join(lines)


def check_devices() -> None:
    """Raises ValueError, in one line, if JAX can't use the devices that it is told to use."""
    import jax  # not before `_start` has provided for Ctrl-C

    from pulse_jax.files import one_line

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter if JAX has no CUDA at all
        asked = jax.config.values["jax_platforms"]
        told = f"JAX_PLATFORMS={asked}" if asked else "JAX"
        reason = f": {one_line(error)[:300]}" if str(error) else ""
        raise ValueError(f"{told}: no such device can be used here{reason}") from error


def _start(script: str, module: str) -> None:
    make_output_safe()
    try:
        with _silent_interrupts():  # the imports take seconds
            command = importlib.import_module(module)
    except ValueError as error:  # JAX's, which names the variable: JAX_ENABLE_X64=yess
        sys.exit(f"{script}: {error}")
    command.main()


@contextlib.contextmanager
def _silent_interrupts() -> Iterator[None]:
    """Ctrl-C ends the process at once, without the traceback that Python would show."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, as in the background
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Output:
    """A text stream that drops what can't be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            with open(os.devnull, "w") as nowhere:  # where what is still in its buffer goes, too
                os.dup2(nowhere.fileno(), self._stream.fileno())
