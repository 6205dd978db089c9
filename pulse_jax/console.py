"""How the console scripts begin, whatever starts them and whatever they print to."""

import contextlib
import importlib
import logging
import math
import os
import re
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from pulse_jax import quotas

Given = TypeVar("Given")


def upsample() -> NoReturn:
    """The script `pulse_jax`."""
    _start("pulse_jax", "pulse_jax.__main__")


def align() -> NoReturn:
    """The script `pulse_jax_align`."""
    _start("pulse_jax_align", "pulse_jax.align.__main__")


def convert() -> NoReturn:
    """The script `pulse_jax_convert`."""
    _start("pulse_jax_convert", "pulse_jax.convert")


def put_back() -> NoReturn:
    """The script `pulse_jax_put_back`."""
    _start("pulse_jax_put_back", "pulse_jax.put_back")


def web() -> NoReturn:
    """The script `pulse_jax_web`."""
    _start("pulse_jax_web", "pulse_jax.web.__main__")


def make_output_safe() -> None:
    """Provide that no work ends because its messages can't be printed.

    A character that the terminal lacks becomes an escape. What goes to a closed stream, to a pipe
    whose reader has gone, or to a full disk is dropped.
    """
    # Otherwise, the next file would get the number of a closed stream, and XLA's messages.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name) or os.fdopen(number, "w", closefd=False)
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
        setattr(sys, name, _Output(stream))


def described(headings: Iterable[str], groups: Mapping[str, str], flags: Any) -> str:
    """The help of absl's flags. `groups` gives the heading of each flag by its name."""
    lines: list[str] = []
    for heading in headings:
        lines += [f"{heading}:", ""]
        for flag in (flags[name] for name, group in groups.items() if group == heading):
            # absl puts the choices of an enumeration before the text: "<fast|original>: …".
            choices, _, text = flag.help.rpartition(">: ")
            default = "" if flag.default is None else f"={flag.default}"
            indent = 8 * " "
            filled = textwrap.fill(text, 92, initial_indent=indent, subsequent_indent=indent)
            lines += [f"    --{flag.name}{default}{choices and f' {choices}>'}", filled, ""]
    return "\n".join(lines)


def parsed(
    script: str,
    told: str,
    flags: Any,
    argv: list[str],
    headings: Sequence[str] = ("Flags",),
    groups: Mapping[str, str] | None = None,
    *,
    more: str = "",
) -> list[str]:
    """The words of a command line that are no flags; `flags`, absl's, get their values.

    --help shows what is `told` of the script, its flags as in `described`, and `more`; it and
    --version end the process. So does an error, with one line: a wrong flag, a word or a value that
    is empty, as where a shell's variable isn't set, and a word such as restarts=4 that is no file.
    """
    import pulse_jax

    flags.set_gnu_getopt()  # flags may follow other words
    if {"-h", "-help", "--help"} & set(argv):
        groups = groups or dict.fromkeys(flags, headings[0])
        print(told, described(headings, groups, flags), sep="\n")
        print(more, end="")
        sys.exit(0)
    if "--version" in argv:
        print(script, pulse_jax.__version__)
        sys.exit(0)
    _, *words = read(script, flags, argv)
    for word in words:
        if not word:
            sys.exit(f"{script}: a word is empty, and names no file")
        if "=" in word and not os.path.exists(os.path.expanduser(word)):
            sys.exit(f"{script}: {word!r} is no flag, and there is no such file or folder")
    return words


def read(script: str, flags: Any, argv: Sequence[str]) -> list[str]:
    """Give absl's `flags` their values. Returns the words that are no flags, and argv[0] before.

    One line ends the process if that can't be, or if a text is empty, as of an unset variable.
    """
    from absl.flags import Error

    try:
        words = flags(argv)
    except Error as error:
        sys.exit(f"{script}: {_misread(error, flags)}")
    for name in flags:
        if flags[name].present and flags[name].value == "":
            sys.exit(f"{script}: --{name}=: must not be empty")
    return list(words)


def _misread(error: Exception, flags: Any) -> str:
    """An error of absl about its `flags`, in one line that says what a value should have been."""
    from pulse_jax.files import one_line

    # Python's words about int(), float() and booleans follow the flag and its value.
    python = r"(?:invalid literal|could not convert|\('Non-boolean)"
    found = re.match(rf"flag --(\w+)=(.*): {python}", told := one_line(error))
    if found is None:
        return told
    kinds = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    name, value = found.groups()
    return f"--{name}={value} is not {kinds[flags[name].flag_type()]}"


@contextlib.contextmanager
def ended_in_one_line(script: str) -> Iterator[None]:
    """A ValueError and Ctrl-C end the process, and one line says why."""
    from pulse_jax.files import one_line

    try:
        yield
    except ValueError as error:
        sys.exit(f"{script}: {one_line(error)}")
    except KeyboardInterrupt:
        sys.exit(f"{script}: interrupted")


def one_by_one(script: str, given: Iterable[Given], function: Callable[[Given], None]) -> bool:
    """Call a function on each. If it raises ValueError, a line says so, and the others go on.

    Returns whether it raised none.
    """
    from pulse_jax.files import one_line

    failed = False
    for one in given:
        try:
            function(one)
        except ValueError as error:
            failed = True
            print(f"{script}: {one_line(error)}", file=sys.stderr)
    return not failed


@contextlib.contextmanager
def logged_to_streams(prefix: str, wording: Callable[[str], str]) -> Iterator[None]:
    """Print what the package logs, in this `wording`. Warnings and errors go to stderr."""
    from absl import logging as absl_logging
    from tqdm import tqdm  # whose bar would be torn

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno < logging.WARNING:
                tqdm.write(wording(record.getMessage()))
            else:
                tqdm.write(f"{prefix}{wording(record.getMessage())}", file=sys.stderr)

    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax tells its steps
    logger, handler = logging.getLogger("pulse_jax"), Handler()
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """A list that gets the number of the first SIGINT or SIGTERM. A second one acts as usual."""
    noted: list[int] = []

    def handle(number: int, _: Any) -> None:
        noted.append(number)
        reset()
        logging.getLogger("pulse_jax").warning("finishing the step")

    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in earlier.items():
        if handler != signal.SIG_IGN:  # as in the background of a script, which Ctrl-C is not for
            signal.signal(number, handle)

    def reset() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    try:
        yield noted
    finally:
        reset()


@contextlib.contextmanager
def used_cache(cache: str | Path) -> Iterator[None]:
    """Keep compiled programs in a folder, even those that compile quickly, since they are many.

    If that fails, it only costs time, and one line says so for all programs. That holds for a user
    without a home, too. Raises ValueError for the home of another that isn't known.
    """
    import jax

    from pulse_jax.files import expanded, one_line

    failed = False

    def tell(reason: object) -> None:
        told = f"--cache_dir={cache} can't be used: {one_line(reason)}"
        logging.getLogger("pulse_jax").warning(told)

    def show(message: Warning | str, *others: Any, **options: Any) -> None:
        nonlocal failed
        _, of_cache, told = str(message).partition("persistent compilation cache entry for ")
        if not of_cache:
            shown(message, *others, **options)
        elif not failed:
            failed = True
            tell(told.partition(": ")[2])  # after the program's name

    with warnings.catch_warnings():
        shown, warnings.showwarning = warnings.showwarning, show
        try:
            folder = expanded(cache, "--cache_dir")
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            tell(error)
        except ValueError:
            if Path(cache).parts[0] != "~":
                raise
            tell("no home is known for ~")
        else:
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        yield


def use_cores() -> None:
    """Make each core of the CPU that this process may use a device of JAX's.

    XLA gives a convolution of few channels no more than one core, so restarts are spread over
    several devices. A number that the user has set, by JAX_NUM_CPU_DEVICES or XLA_FLAGS, stays. So
    does what there is where JAX runs already. Raises ValueError if the number is below 1.
    """
    import jax  # not before `_start` has provided for Ctrl-C

    chosen = jax.config.values["jax_num_cpu_devices"]
    if chosen == 0 or chosen < -1:  # of 0, JAX would speak of something else; -1 is its default
        raise ValueError(f"JAX_NUM_CPU_DEVICES={chosen} must be at least 1")
    if chosen > 0 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):  # JAX runs already
        # A part of a core is used, too.
        jax.config.update("jax_num_cpu_devices", math.ceil(min(cores or 1, quotas.cores())))


@contextlib.contextmanager
def variables_told(script: str) -> Iterator[None]:
    """A context in which JAX is imported. A variable that it can't take ends the process.

    One line says so, and names the variable: JAX calls it jax_num_cpu_devices, say.
    """
    try:
        yield
    except ValueError as error:
        told = str(error)
        for name, value in os.environ.items():
            if name.startswith("JAX_") and name in told.upper():
                told = f"{name}={value}: {told}"
        sys.exit(f"{script}: {told}")


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


def _start(script: str, module: str) -> NoReturn:
    make_output_safe()
    with _silent_interrupts(), variables_told(script):  # the imports take seconds
        command = importlib.import_module(module)
    sys.exit(command.main())


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
            with open(os.devnull, "w") as nowhere:  # where the rest of its buffer goes, too
                os.dup2(nowhere.fileno(), self._stream.fileno())
