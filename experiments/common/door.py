"""The way into a script: its flags, and bad input in one line."""

import os
import sys
from pathlib import Path

from absl import app, logging

from pulse_jax.console import check_devices
from pulse_jax.files import one_line


def run(main):
    """Parse the flags and call `main()`, which returns where it has written, if anywhere.

    The last line of output says where that is. What can't be ends in one line with the script's
    name, and with exit status 1: a word that is no flag, the ValueErrors and OSErrors of `main`,
    and devices that JAX can't use. A reader of the output that closes it, such as `head`, ends the
    script too.
    """
    name = Path(sys.argv[0]).stem

    def entered(argv):
        logging.set_verbosity(logging.WARNING)  # Orbax tells its steps
        try:
            if len(argv) > 1:
                raise ValueError(f"{argv[1]!r} is no flag")
            if (place := _told(main)) is not None:
                print(one_line(f"{place} has the results"))
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes what is left as it ends, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
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
        check_devices()
        raise
