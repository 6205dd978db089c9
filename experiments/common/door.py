"""The way into a script: its flags, and bad input in one line."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from absl import app, flags, logging

from pulse_jax import console
from pulse_jax.capacity import is_out_of_memory
from pulse_jax.files import held, one_line
from pulse_jax.types import misfit
from pulse_jax.upsampling.notation import MANY

FLAGS = flags.FLAGS

# The bounds of --seed. JAX's keys have 32 bits, so that 2³² would be another 0.
SEED = {"lower_bound": 0, "upper_bound": 2**32 - 1}

# The bounds of the side of square images, of which a batch must fit into memory.
SIDE = {"lower_bound": 8, "upper_bound": 4096}

failed = False  # some of what `one_by_one` was given


def one_by_one(given, function):
    """Call a function on each. What it can't take is told in a line, and the others go on.

    `run` then ends with exit status 1.
    """
    global failed
    failed |= not console.one_by_one(Path(sys.argv[0]).stem, given, function)


@contextlib.contextmanager
def alone(folder, flag):
    """Keep other runs out of the folder that a flag gives, as `held` does."""
    with contextlib.ExitStack() as at_end:
        try:
            at_end.enter_context(held(folder))
        except ValueError as error:
            raise ValueError(f"{flag}={folder}: {error}") from error
        yield


@contextlib.contextmanager
def child(command, **streams):
    """A process of `subprocess.Popen` that ends with the context. SIGTERM acts as Ctrl-C in it."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with subprocess.Popen(command, **streams) as process:
            try:
                yield process
            finally:
                process.terminate()
                process.wait()
    finally:
        signal.signal(signal.SIGTERM, earlier)


def check_numbers():
    """Raises ValueError for a number that float32 can't hold, or that is more than can be meant.

    absl's bounds let nan through, and whole numbers of any size where there is no upper one.
    """
    for flag in (FLAGS[name] for name in FLAGS):
        told = misfit(flag.value) if isinstance(flag.value, float) else ""
        if flag.flag_type() == "int" and flag.parser.upper_bound is None:
            told = f"must be at most {MANY}" if (flag.value or 0) > MANY else ""
        if told:
            raise ValueError(f"--{flag.name}={flag.value}: {told}")


def whole_numbers(name):
    """Those that a flag lists. Raises ValueError for what is none, or more than can be meant."""
    for text in FLAGS[name].value:
        if not (text.isdecimal() and 0 < int(text) <= MANY):
            raise ValueError(f"--{name}={text} is no whole number from 1 to {MANY}")
    return tuple(map(int, FLAGS[name].value))


def run(main):
    """Parse the flags and call `main()`, which returns where it has written, if anywhere.

    The last line of output says where that is. What can't be ends in one line with the script's
    name, and with exit status 1: a word that is no flag, a value that isn't of its flag's kind or
    is empty, a number that can't be meant, the ValueErrors and OSErrors of `main`, memory that
    doesn't suffice, and devices that JAX can't use. So do Ctrl-C, and a run whose `one_by_one`
    couldn't take all. A reader of the output that closes it, such as `head`, ends the script too.
    """
    name = Path(sys.argv[0]).stem

    def entered(argv):
        global failed
        failed = False
        logging.set_verbosity(logging.WARNING)  # Orbax tells its steps
        try:
            if len(argv) > 1:
                raise ValueError(f"{argv[1]!r} is no flag")
            check_numbers()
            if (place := _told(main)) is not None:
                print(one_line(f"{place} has the results"))
            sys.stdout.flush()
            if failed:
                sys.exit(1)
        except BrokenPipeError:
            # Python flushes what is left as it ends, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(f"{name}: interrupted")
        except ValueError as error:
            sys.exit(f"{name}: {one_line(error)}")
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            sys.exit(one_line(f"{name}: {place}{one_line(error)}"))

    app.run(entered, flags_parser=lambda argv: console.read(name, FLAGS, argv))


def _told(main):
    """What `main` returns. Raises ValueError if it has failed for want of memory or devices."""
    try:
        return main()
    except MemoryError as error:
        raise ValueError(f"out of memory: {one_line(error)}") from error
    except (RuntimeError, AssertionError) as error:  # as in `check_devices`
        if is_out_of_memory(error):
            raise ValueError(f"out of memory: {one_line(error)[:200]}") from error
        console.check_devices()
        raise
