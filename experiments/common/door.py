"""The way into a script: its flags, and bad input in one line."""

import os
import sys
from pathlib import Path

from absl import app, logging

from pulse_jax import console
from pulse_jax.files import one_line

# The bounds of --seed. JAX's keys have 32 bits, so that 2³² would be another 0.
SEED = {"lower_bound": 0, "upper_bound": 2**32 - 1}

failed = False  # some of what `one_by_one` was given


def one_by_one(given, function):
    """Call a function on each. What it can't take is told in a line, and the others go on.

    `run` then ends with exit status 1.
    """
    global failed
    failed |= not console.one_by_one(Path(sys.argv[0]).stem, given, function)


def run(main):
    """Parse the flags and call `main()`, which returns where it has written, if anywhere.

    The last line of output says where that is. What can't be ends in one line with the script's
    name, and with exit status 1: a word that is no flag, the ValueErrors and OSErrors of `main`,
    and devices that JAX can't use. So do Ctrl-C, and a run whose `one_by_one` couldn't take all. A
    reader of the output that closes it, such as `head`, ends the script too.
    """
    name = Path(sys.argv[0]).stem

    def entered(argv):
        global failed
        failed = False
        logging.set_verbosity(logging.WARNING)  # Orbax tells its steps
        try:
            if len(argv) > 1:
                raise ValueError(f"{argv[1]!r} is no flag")
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

    app.run(entered)


def _told(main):
    """What `main` returns. Raises ValueError if it has failed since JAX can't use its devices."""
    try:
        return main()
    except (RuntimeError, AssertionError):  # as in `check_devices`
        console.check_devices()
        raise
