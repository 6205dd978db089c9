"""Latent spaces are compared: each is searched from its own samples, by the recipe asked for."""

import numpy as np
import pytest
from experiment_helpers import complaints, read_table, run_experiment, save_small_generator

FLAGS = "--generator=small", "--factor=2", "--inputs=2", "--restarts=2", "--steps=4", "--workdir=w"


@pytest.mark.slow
def test_spaces_are_compared_with_w(tmp_path):
    """With fast, w begins with equal styles; no step is taken where eps is met at once.

    GEOCROSS is lower where layers share more.
    """
    save_small_generator(tmp_path / "small")
    spaces = "--spaces=w,w spread 0.3,w spread 0.7"
    flags = *FLAGS, spaces, "--recipe=fast", "--eps=1"
    result = run_experiment("latent_space", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {
        name: read_table(tmp_path / "w" / "cells" / f"{name}.csv")
        for name in ("w", "w spread 0.3", "w spread 0.7")
    }
    assert all(len(own) == 4 for own in rows.values())
    spread = [np.mean([float(row["GEOCROSS"]) for row in own]) for own in rows.values()]
    assert spread[0] < 1e-3 < spread[1] < spread[2]
    table = read_table(tmp_path / "w" / "table.csv")
    assert [line[""] for line in table] == list(rows)
    assert table[0]["realism − w"].split()[0] == "0"
    assert table[1]["realism − w"].split()[0] != "0"


def test_arguments_that_can_not_be_are_told(tmp_path):
    save_small_generator(tmp_path / "small")
    ends = {
        "--eps=nan": "--eps=nan: not finite",
        "--eps=inf": "--eps=inf: not finite",
        "--eps=1e-300": "--eps=1e-300: 0 in float32",
        "full": "'full' is no flag",
        "--spaces=w,v --workdir=v": "--spaces=v is none of w; ",
    }
    lines = complaints("latent_space", *ends, always=FLAGS, cwd=tmp_path)
    for line, told in zip(lines, ends.values(), strict=True):
        assert line.startswith(f"latent_space: {told}")
    assert not (tmp_path / "w" / "config.json").exists()


def test_flags_of_the_other_ablation_are_unknown(tmp_path):
    save_small_generator(tmp_path / "small")
    flags = "--variants=none --spaces=v"
    told = ["latent_space: Unknown command line flag 'variants'"]
    assert complaints("latent_space", flags, always=FLAGS, cwd=tmp_path) == told


@pytest.mark.parametrize("script", ["latent_space", "evaluate_generator"])
def test_a_recipe_is_that_of_a_search(script, tmp_path):
    """With posterior, which draws samples, they searched as with fast."""
    save_small_generator(tmp_path / "small")
    told = [f"{script}: flag --recipe=posterior: value should be one of <fast|original>"]
    assert complaints(script, "--recipe=posterior", always=FLAGS, cwd=tmp_path) == told
    assert not (tmp_path / "w").exists()
