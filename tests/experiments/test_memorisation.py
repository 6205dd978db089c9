"""Whether samples repeat the training data."""

import json

import numpy as np
import pytest
from experiment_helpers import complaints, run_code

from pulse_jax.images import save_image

CODE = """
import json, memorisation, numpy as np, shutil
from common import door
samples, crops = np.array([0.1, 0.2, 0.9]), np.array([0.5, 0.6, 0.7, 0.8])
lines = memorisation.summarise(samples, crops)
memorisation.FLAGS(["", "--data_dir=data", "--images=held_out", "--inputs=2"])
nearest, crops = memorisation.against(8)
distances = nearest(crops)["distance"].tolist()
memorisation.harness.fingerprint = str  # instead of reading a generator
before = memorisation.harness.configuration()
shutil.copy("data/a.png", "data/b.png")
now = memorisation.harness.configuration()
changed = [name for name in now if now[name] != before[name]]
json.dump([lines, distances, door.failed, changed], open("found.json", "w"))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What CODE finds in folders that hold damaged images, too, and what it says on stderr."""
    folder = tmp_path_factory.mktemp("memorisation")
    pictures = np.random.default_rng(0).random((3, 8, 8, 3))
    for name, i in {"data/a": 0, "data/c": 1, "held_out/a": 1, "held_out/c": 2}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        save_image(folder / f"{name}.png", pictures[i])
    save_image(folder / "data" / "d.png", np.zeros((8, 9, 3)))
    for place in ("data", "held_out"):
        (folder / place / "b.png").write_bytes(b"")
    result = run_code(CODE, cwd=folder)
    assert result.returncode == 0, result.stderr
    return *json.loads((folder / "found.json").read_text()), result.stderr


def test_copies_are_told_from_held_out_crops(found):
    (of_samples, of_crops), *_ = found
    assert of_samples["share nearer than all crops"] == 2 / 3
    assert of_samples["nearest"] == 0.1 and of_crops["share nearer than all crops"] == 0
    assert of_samples["mean − that of crops"].startswith("-0.25 [")


def test_a_damaged_image_keeps_none_of_the_others(found):
    _, (copy, other), failed, _, told = found
    assert copy == 0 and other > 0 and failed
    damaged, other_size, held_out = told.splitlines()
    assert "data/b.png: can't be read" in damaged and "held_out/b.png: can't be read" in held_out
    assert "data/d.png is no colour picture of 8×8 pixels" in other_size


def test_a_mended_image_is_another_setting(found):
    *_, changed, _ = found
    assert changed == ["SHA-256 of --data_dir"]


def test_a_missing_photograph_is_told(tmp_path):
    (line,) = complaints("memorisation", "--generator=tissue64 --workdir=w", cwd=tmp_path)
    assert line.startswith("memorisation: --data or --data_dir says")
