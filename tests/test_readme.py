"""The README: its code runs, its links lead somewhere, its flags exist."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import pulse_jax
from pulse_jax import __main__ as command
from pulse_jax.generators import checkpoint

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_its_blocks_are_of_languages_that_are_tested():
    assert set(re.findall(r"```(\w+)\n", README)) == {"bash", "bibtex", "python"}
    assert README.count("```") == 2 * sum(map(len, map(blocks, ("bash", "bibtex", "python"))))


@pytest.mark.slow
def test_its_code_runs(tmp_path, monkeypatch):
    """One block after another, in one namespace."""
    shutil.copy(checkpoint.find("faces64") / "examples" / "face_01.png", tmp_path / "small.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks("python"):
        exec(code.replace("steps=100", "steps=2"), names)
    assert names["pictures"].shape == (16, 64, 64, 3)
    assert names["info"].l2.shape == (16, 2)
    assert names["walk"]["style"].shape == (16, *names["one"]["style"].shape)
    assert names["near"]["style"].shape == names["one"]["style"].shape


@pytest.mark.slow
def test_its_commands_run(tmp_path):
    """As they stand, in a copy of the repository, but that other packages are those of this Python.

    The tests are only collected, and what follows the installation has fewer steps and restarts.
    """
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("pulse_jax", "checkpoints", "docs", "experiments", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "pulse_jax" not in path.name:
            (packages / path.name).symlink_to(path)
    environment = os.environ | {
        "HOME": str(tmp_path),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say yes
        "PYTHONPATH": str(packages),
        "PYTEST_ADDOPTS": "--collect-only --quiet",
    }
    quick = tmp_path / "pulse_jax.sh"
    quick.write_text('exec .venv/bin/pulse_jax --restarts=3 --loss_str=100*L2 "$@" --steps=6\n')
    for script in blocks("bash"):
        script = re.sub("^pulse_jax ", "bash pulse_jax.sh ", script, flags=re.MULTILINE)
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "runs" / "index.html").is_file()
    for run in ("first", "near", "finer"):
        assert (tmp_path / run / "face_04" / "hr_03.png").is_file()


def test_it_names_the_public_api():
    in_code = set(re.findall(r"`(\w+)`", README))
    assert set(pulse_jax.__all__) <= in_code, set(pulse_jax.__all__) - in_code
    for name in pulse_jax.__all__:
        value = getattr(pulse_jax, name)
        assert isinstance(value, dict | tuple) or inspect.getdoc(value)


def test_its_links_lead_to_files():
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", prose)
    assert len(links) > 5
    for link in links:
        assert (ROOT / link).exists(), link


def test_its_flags_exist():
    others = {"help", "data_dir", "preset", "config", "mode", "recipes", "faces", "variants"}
    others |= {"repeats", "workdir", "factor", "inputs", "xla_gpu_deterministic_ops"}
    flags = set(re.findall(r"--([a-z_]+)", README)) - others
    assert {"input_dir", "output_dir", "eps", "seed"} <= flags
    assert flags <= set(command.FLAGS)
