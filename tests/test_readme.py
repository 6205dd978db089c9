"""The README: its code runs, its links lead somewhere, its flags exist."""

import re
import shutil
from pathlib import Path

from pulse_jax import __main__ as command
from pulse_jax.generators import checkpoint

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_its_code_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shutil.copy(checkpoint.find("faces64") / "examples" / "face_01.png", tmp_path / "small.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace("steps=100", "steps=2"), names)
    assert names["pictures"].shape == (16, 64, 64, 3)
    assert names["info"].l2.shape == (16, 2)


def test_its_links_lead_to_files():
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", prose)
    assert len(links) > 5
    for link in links:
        assert (ROOT / link).exists(), link


def test_its_flags_exist():
    of_experiments = {"data_dir", "preset", "config"}
    flags = set(re.findall(r"--([a-z_]+)", README)) - {"help"} - of_experiments
    assert {"input_dir", "output_dir", "eps", "seed"} <= flags
    assert flags <= set(command.FLAGS)
