"""Scripts end in one line if their input can't be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from experiment_helpers import complaints

ROOT = Path(__file__).parents[2]
SCRIPT = """
from common import door

import jax
from absl import flags

ENDINGS = "well", "value", "file", "signal", "memory", "closed", "devices"
flags.DEFINE_enum("ending", "well", ENDINGS, "It ends so.")
flags.DEFINE_integer("count", 1, "So many are made.", 1)
flags.DEFINE_list("sizes", ["1"], "They have these sizes.")
flags.DEFINE_string("text", None, "They say this.")
flags.DEFINE_float("eps", 1e-3, "They are so near.", 0)
flags.DEFINE_integer("seed", 0, "What is random depends on this.", **door.SEED)


def main():
    door.whole_numbers("sizes")
    match flags.FLAGS.ending:
        case "value":
            raise ValueError("--ending=value\\nis bad")
        case "file":
            open("nowhere")
        case "signal":
            raise KeyboardInterrupt
        case "memory":
            raise MemoryError("Unable to allocate 9 TB")
        case "closed":
            print("much " * 100_000)
        case "devices":
            jax.devices()
    print("done")
    return "runs/well"


if __name__ == "__main__":
    door.run(main)
"""


def start(folder, *arguments, **variables):
    (folder / "script.py").write_text(SCRIPT)
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "experiments")))}
    command = [sys.executable, "script.py", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=os.environ | paths | variables, **streams)


def test_what_cannot_be_is_told_in_one_line(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    ends = {
        "stray": "'stray' is no flag",
        "--ending=value": "--ending=value is bad",
        "--ending=file": "nowhere: No such file or directory",
        "--ending=signal": "interrupted",
        "--ending=memory": "out of memory: Unable to allocate 9 TB",
        "--count=100000000000000000000": "--count=100000000000000000000: must be at most 1000000",
        "--count=1e20": "--count=1e20 is not a whole number",
        "--count=-1": "flag --count=-1: -1 is not a positive integer",
        # A seed has 32 bits.
        f"--seed={2**32}": f"flag --seed={2**32}: {2**32} is not an integer in the range "
        f"[0, {2**32 - 1}]",
        "--text=": "--text=: must not be empty",
        "--cuont=2": "Unknown command line flag 'cuont'. Did you mean: count ?",
        "--sizes=4,9999999": "--sizes=9999999 is no whole number from 1 to 1000000",
        "--sizes=4,x": "--sizes=x is no whole number from 1 to 1000000",
        "--eps=nan": "--eps=nan: not finite",
    }
    told = [f"script: {line}" for line in ends.values()]
    assert complaints("script", *ends, cwd=tmp_path) == told


def test_more_faces_than_memory_holds_are_refused(tmp_path):
    line = "draw_faces: --count=9999 faces of --size=4096 have more than 268435456 pixels"
    assert complaints("draw_faces", "--count=9999 --size=4096", cwd=tmp_path) == [line]


@pytest.mark.parametrize("variable", ["JAX_NUM_CPU_DEVICES=two", "JAX_PLATFORMS=nonsense"])
def test_a_variable_that_jax_cannot_take_is_told_in_one_line(tmp_path, variable):
    name, value = variable.split("=")
    process = start(tmp_path, "--ending=devices", **{name: value})
    out, told = process.communicate()
    assert (out, process.returncode) == ("", 1)
    assert told.startswith(f"script: {variable}: ") and told.count("\n") == 1


def test_who_closes_the_output_ends_the_script(tmp_path):
    process = start(tmp_path, "--ending=closed")
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 1


def test_else_it_ends_well_and_says_where(tmp_path):
    process = start(tmp_path)
    assert process.communicate() == ("done\nruns/well has the results\n", "")
    assert process.returncode == 0
