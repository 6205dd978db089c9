"""Latent spaces are compared: each is searched from its own samples, by the recipe asked for."""

import numpy as np
import pytest
from experiment_helpers import read_table, run_experiment, save_small_generator

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


@pytest.mark.parametrize(
    "argument, told",
    [("--spaces=w,v", "--spaces=v is none of w; "), ("full", "latent_space: 'full' is no flag")],
)
def test_an_argument_that_names_nothing_is_told(tmp_path, argument, told):
    save_small_generator(tmp_path / "small")
    result = run_experiment("latent_space", *FLAGS, argument, cwd=tmp_path)
    assert result.returncode == 1 and told in result.stderr


@pytest.mark.parametrize(
    "flag, told", [("--eps=nan", "not finite"), ("--eps=1e-300", "0 in float32")]
)
def test_a_number_that_cannot_be_is_told(tmp_path, flag, told):
    save_small_generator(tmp_path / "small")
    result = run_experiment("latent_space", *FLAGS, flag, cwd=tmp_path)
    assert result.returncode == 1 and f"latent_space: {flag}: {told}" in result.stderr
    assert not (tmp_path / "w" / "config.json").exists()
