"""Whether samples repeat the training data."""

import json

from experiment_helpers import complaints
from test_train_stylegan import python


def test_copies_are_told_from_held_out_crops(tmp_path):
    code = """
import json, memorisation, numpy as np
samples, crops = np.array([0.1, 0.2, 0.9]), np.array([0.5, 0.6, 0.7, 0.8])
json.dump(memorisation.summarise(samples, crops), open("lines.json", "w"))
"""
    result = python("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    of_samples, of_crops = json.loads((tmp_path / "lines.json").read_text())
    assert of_samples["share nearer than all crops"] == 2 / 3
    assert of_samples["nearest"] == 0.1 and of_crops["share nearer than all crops"] == 0
    assert of_samples["mean − that of crops"].startswith("-0.25 [")


def test_a_missing_photograph_is_told(tmp_path):
    (line,) = complaints("memorisation", "--generator=tissue64 --workdir=w", cwd=tmp_path)
    assert line.startswith("memorisation: --data or --data_dir says")
