"""Upsample small pictures: for each, several high-resolution ones that downscale to it.

    pulse_jax                                    # the examples of the default generator
    pulse_jax photo.png more/ --output_dir=large --restarts=16

The flags of PULSE's run.py work under their own names.
"""

if __name__ == "__main__":  # before the imports, which take seconds, and of which JAX's may fail
    from pulse_jax import console

    console.upsample()  # doesn't return

import contextlib
import dataclasses
import re
import sys
from typing import Any

import jax
from absl import app, flags

from pulse_jax.console import (
    check_devices,
    logged_to_streams,
    noted_signals,
    parsed,
    use_cores,
    used_cache,
)
from pulse_jax.files import expanded, one_line
from pulse_jax.upsampling.bar import Bar, compilation_told
from pulse_jax.upsampling.notation import MANY
from pulse_jax.upsampling.run import upsample
from pulse_jax.upsampling.settings import HEADINGS, KEPT, MOST, RECIPES, Settings, kind
from pulse_jax.upsampling.summary import summary

FLAGS = flags.FLAGS
PROCESSES = "Several processes"
PROCESS = "coordinator_address", "num_processes", "process_id"
# The headings of the flags that aren't settings.
GROUPS = {
    "input_dir": MOST,
    "output_dir": MOST,
    "recipe": MOST,
    "resume": KEPT,
    "cache_dir": KEPT,
    "distributed": PROCESSES,
    **dict.fromkeys(PROCESS, PROCESSES),
}
ALIASES = {"duplicates": "restarts", "chains": "restarts", "seed": "seeds"}

flags.DEFINE_string(
    "input_dir",
    None,
    "The pictures in this folder are upsampled. Pictures and folders can also be named without the "
    "flag. If none are named, the generator's examples are upsampled.",
)
flags.DEFINE_string("output_dir", "runs", "The results are written into this folder.")
flags.DEFINE_enum(
    "recipe",
    "fast",
    list(RECIPES),
    "A recipe sets the defaults of other flags. With original, they are "
    f"{' '.join(RECIPES['original'].as_flags())}. With posterior, they are "
    f"{' '.join(RECIPES['posterior'].as_flags())}.",
)
flags.DEFINE_bool(
    "resume",
    True,
    "A run goes on with the results that the output folder holds. With --noresume, the folder must "
    "hold none.",
)
flags.DEFINE_string("cache_dir", "~/.cache/pulse_jax", "Compiled programs are kept in this folder.")
flags.DEFINE_bool(
    "distributed", False, "The work is shared with other processes that write to the same folder."
)
flags.DEFINE_string(
    "coordinator_address", None, "Process 0 is at this host:port. Most clusters tell it themselves."
)
flags.DEFINE_integer(
    "num_processes",
    None,
    "There are this many processes. Most clusters tell it themselves.",
    1,
    MANY,
)
flags.DEFINE_integer(
    "process_id", None, "This process has this number. Most clusters tell it themselves.", 0, MANY
)


def define(field: dataclasses.Field[Any]) -> None:
    """Define the flag of a setting. `Settings` checks its values."""
    name, default, told = field.name, field.default, field.metadata["told"]
    if field.metadata["notation"] is not None or field.metadata["choices"]:
        text = Settings().as_json()[name]
        if field.metadata["choices"]:
            flags.DEFINE_enum(name, text, field.metadata["choices"], told)
        else:
            flags.DEFINE_string(name, text, told)
        return
    kinds: dict[Any, Any] = {str: flags.DEFINE_string, int: flags.DEFINE_integer}
    kinds |= {float: flags.DEFINE_float, bool: flags.DEFINE_bool}
    kinds[kind(field)](name, default, told)


for _field in dataclasses.fields(Settings):
    define(_field)
for _alias, _name in ALIASES.items():
    flags.DEFINE_alias(_alias, _name)


def main() -> None:
    """The console script: flags in, files out."""
    try:
        app.run(run, flags_parser=parse)
    except KeyboardInterrupt:
        sys.exit("pulse_jax: interrupted; the same command does the rest")


def parse(argv: list[str]) -> list[str]:
    """The words that are no flags. An error ends the command with one line."""
    groups = GROUPS | {f.name: f.metadata["group"] for f in dataclasses.fields(Settings)}
    words = parsed("pulse_jax", __doc__, FLAGS, argv, (*HEADINGS, PROCESSES), groups)
    usual = Settings().as_json()
    for name, value in RECIPES[FLAGS.recipe].as_json().items():
        if value != usual[name]:
            FLAGS.set_default(name, value)
    return words


def run(words: list[str]) -> None:
    """Upsample the pictures that are named, as the flags say."""
    named = [*filter(None, [FLAGS.input_dir]), *words]
    with contextlib.ExitStack() as at_end:
        at_end.enter_context(logged_to_streams("pulse_jax: ", dashed))
        try:
            use_cores()
            connect()
            check_devices()
            # Absolute before the settings import parts, which may change the current folder.
            output = expanded(FLAGS.output_dir, "--output_dir").absolute()
            at_end.enter_context(used_cache(FLAGS.cache_dir))
            at_end.enter_context(compilation_told())
            names = [field.name for field in dataclasses.fields(Settings)]
            settings = Settings.from_json({name: FLAGS[name].value for name in names})
            signals = at_end.enter_context(noted_signals())
            with Bar() as bar:
                results = upsample(
                    named or None,
                    output,
                    settings,
                    bar,
                    resume=FLAGS.resume,
                    stop=lambda: bool(signals),
                )
        except (ValueError, OSError) as error:
            sys.exit(f"pulse_jax: {dashed(one_line(error))}")
        if jax.process_index() == 0:
            for told in summary(results, output):
                print(told)
        if results.stopped:
            told = f"pulse_jax: {results.stopped}; the same command goes on from here"
            print(told, file=sys.stderr)
            sys.exit(128 + signals[0] if signals else 1)
        if results.failures or results.unmet:
            sys.exit(1)


def connect() -> None:
    """Join the other processes, if `--distributed`."""
    given: dict[str, Any] = {
        name: FLAGS[name].value for name in PROCESS if FLAGS[name].value is not None
    }
    if not FLAGS.distributed:
        for name in given:
            raise ValueError(f"{name}={given[name]} is for --distributed")
        return
    try:
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"--distributed: {one_line(error)}") from error


def dashed(told: str) -> str:
    """A message with settings named as flags: --eps=0.1 where the library says eps=0.1."""
    names = "|".join(name for name in FLAGS if name.isidentifier())
    return re.sub(rf"(?<![\w-])({names})=", r"--\1=", told)
