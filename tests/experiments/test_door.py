"""Scripts end in one line if their input can't be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
from absl import flags
from common import door

flags.DEFINE_enum("ending", "well", ["well", "value", "file", "closed"], "It ends so.")


def main():
    match flags.FLAGS.ending:
        case "value":
            raise ValueError("--ending=value\\nis bad")
        case "file":
            open("nowhere")
        case "closed":
            print("much " * 100_000)
    print("done")
    return "runs/well"


if __name__ == "__main__":
    door.run(main)
"""


def start(folder, *arguments):
    (folder / "script.py").write_text(SCRIPT)
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "experiments")))}
    command = [sys.executable, "script.py", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=paths, **streams)


@pytest.mark.parametrize(
    "argument, told",
    [
        ("stray", "script: 'stray' is no flag\n"),
        ("--ending=value", "script: --ending=value is bad\n"),
        ("--ending=file", "script: nowhere: No such file or directory\n"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path, argument, told):
    process = start(tmp_path, argument)
    assert process.communicate() == ("", told) and process.returncode == 1


def test_who_closes_the_output_ends_the_script(tmp_path):
    process = start(tmp_path, "--ending=closed")
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 1


def test_else_it_ends_well_and_says_where(tmp_path):
    process = start(tmp_path)
    assert process.communicate() == ("done\nruns/well has the results\n", "")
    assert process.returncode == 0
