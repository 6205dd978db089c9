"""All experiments anew: their commands are the pages' own, and one that fails spares the rest."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from experiment_helpers import ENDS, run_code

from pulse_jax.generators import checkpoint

ROOT = Path(__file__).parents[2]


def test_the_commands_are_those_of_the_pages(tmp_path):
    code = """
import all as script

for pages in [], ["--pages=results,galaxies64"]:
    script.FLAGS(["all", "--list", *pages])
    script.main()
    print("---")
"""
    result = run_code(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    listed, of_two, _ = result.stdout.split("---\n")
    commands = [line.partition(": ")[2] for line in of_two.splitlines()]
    assert "python experiments/soap_bubble.py --preset=full" in commands
    crops = "--images=runs/galaxies_held_out --inputs=45"  # on two lines in the card
    assert any(crops in command for command in commands)
    assert all(command.startswith("python experiments/") for command in commands)
    assert not list(tmp_path.iterdir())
    for name in checkpoint.bundled():  # the commands of its card's pictures, too
        for picture in "samples", "search":
            assert f"--output=runs/{name}_{picture}.png\n" in listed


def test_bad_pages_are_told_instead_of_running_all(tmp_path):
    bad = ["--pages=costs,nowhere", "--pages=", "faces64"]
    result = run_code(f"name, always, given = 'all', ['--list'], {bad}" + ENDS, cwd=tmp_path)
    (line,) = result.stdout.splitlines()  # so nothing was listed
    nowhere, none, stray = json.loads(line)
    assert nowhere.startswith("all: --pages=nowhere is none of results, costs, ")
    assert none == "all: --pages= names nothing" and stray == "all: 'faces64' is no flag"


def repeat(folder, scripts, pages):
    """A copy of all.py runs scripts that pages of its own name. Returns what it has come to."""
    for name in "experiments", "docs", "there":
        (folder / name).mkdir()
    shutil.copy(ROOT / "experiments" / "all.py", folder / "experiments")
    for name, code in scripts.items():
        (folder / "experiments" / f"{name}.py").write_text(code)
    for name in "results", "costs", "photographs", "generators":
        (folder / "docs" / f"{name}.md").write_text(f"```bash\n{pages.get(name, '')}\n```\n")
    command = [sys.executable, folder / "experiments" / "all.py"]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "experiments")))}
    there = folder / "there"
    result = subprocess.run(command, cwd=there, env=paths, capture_output=True, text=True)
    return result, {path.name: path.read_text() for path in (there / "runs" / "all").iterdir()}


def test_one_that_fails_is_told_and_the_others_run(tmp_path):
    scripts = {"bad": "raise SystemExit('no')", "good": "import sys; print(sys.argv[1:])"}
    pages = {
        "results": "python experiments/bad.py",
        "generators": "python experiments/train_it.py",
        "costs": "pip install x\npython experiments/good.py \\\n    --a='b c'",
    }
    result, logs = repeat(tmp_path, scripts, pages)
    assert result.returncode == 1
    assert "all: results 1 failed; runs/all/ has what they printed" in result.stderr
    assert logs == {"results_1.txt": "no\n", "costs_1.txt": "['--a=b c']\n"}


def test_who_ends_it_ends_what_it_runs(tmp_path):
    ending = "import os, signal, time; print(os.getpid(), flush=True)\n"
    ending += "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60); print('done')"
    pages = {"results": "python experiments/ending.py\npython experiments/ending.py"}
    result, logs = repeat(tmp_path, {"ending": ending}, pages)
    assert result.returncode == 1 and result.stderr == "all: interrupted\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(logs["results_1.txt"]), 0)
    assert list(logs) == ["results_1.txt"]
