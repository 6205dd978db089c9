"""All experiments anew: their commands are the pages' own, and one that fails spares the rest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from experiment_helpers import run_experiment

from pulse_jax.generators import checkpoint

ROOT = Path(__file__).parents[2]


def test_the_commands_are_those_of_the_pages(tmp_path):
    result = run_experiment("all", "--list", "--pages=results,galaxies64", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    commands = [line.partition(": ")[2] for line in result.stdout.splitlines()]
    assert "python experiments/soap_bubble.py --preset=full" in commands
    crops = "--images=runs/galaxies_held_out --inputs=45"  # on two lines in the card
    assert any(crops in command for command in commands)
    assert all(command.startswith("python experiments/") for command in commands)
    assert not list(tmp_path.iterdir())


def test_the_commands_of_a_card_s_pictures_are_among_them(tmp_path):
    listed = run_experiment("all", "--list", cwd=tmp_path).stdout
    for name in checkpoint.bundled():
        for picture in "samples", "search":
            assert f"--output=runs/{name}_{picture}.png\n" in listed


@pytest.mark.parametrize(
    "argument, told",
    [
        ("--pages=costs,nowhere", "--pages=nowhere is none of results, costs, "),
        ("--pages=", "--pages= names nothing"),
        ("faces64", "'faces64' is no flag"),
    ],
)
def test_bad_pages_are_told_instead_of_running_all(tmp_path, argument, told):
    result = run_experiment("all", "--list", argument, cwd=tmp_path)
    assert result.returncode == 1 and f"all: {told}" in result.stderr
    assert not result.stdout


def test_one_that_fails_is_told_and_the_others_run(tmp_path):
    scripts, docs, there = tmp_path / "experiments", tmp_path / "docs", tmp_path / "there"
    for folder in (scripts, docs, there):
        folder.mkdir()
    shutil.copy(ROOT / "experiments" / "all.py", scripts)
    (scripts / "bad.py").write_text("raise SystemExit('no')")
    (scripts / "good.py").write_text("import sys; print(sys.argv[1:])")
    (docs / "results.md").write_text("```bash\npython experiments/bad.py\n```\n")
    (docs / "photographs.md").touch()
    (docs / "generators.md").write_text("```bash\npython experiments/train_it.py\n```\n")
    (docs / "costs.md").write_text(
        "```bash\npip install x\npython experiments/good.py \\\n    --a='b c'\n```\n"
    )
    command = [sys.executable, scripts / "all.py"]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "experiments")))}
    result = subprocess.run(command, cwd=there, env=paths, capture_output=True, text=True)
    assert result.returncode == 1
    assert "all: results 1 failed; runs/all/ has what they printed" in result.stderr
    logs = {path.name: path.read_text() for path in (there / "runs" / "all").iterdir()}
    assert logs == {"results_1.txt": "no\n", "costs_1.txt": "['--a=b c']\n"}
