"""What an earlier process has traced isn't traced again."""

import importlib.util

import jax
import pytest
from command_helpers import contents, write_picture

from pulse_jax.upsampling import traced


class Traced(Exception):
    """The step of a search."""


def test_a_later_process_traces_no_step_and_makes_the_same_bytes(run, tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers")
    write_picture(tmp_path / "in" / "a.png")
    picture, find = f"--input_dir={tmp_path / 'in'}", importlib.util.find_spec
    with monkeypatch.context() as without:
        without.setattr(importlib.util, "find_spec", lambda n: n != "flatbuffers" and find(n))
        expected = contents(run(picture, output="plain") / "a")
    assert contents(run(picture, output="first") / "a") == expected
    jax.clear_caches()  # as in another process

    def advance(*arguments, **options):
        raise Traced

    monkeypatch.setattr(traced, "advance", advance)
    assert contents(run(picture, output="again") / "a") == expected
    run(picture, output="other", seed=1)
    for flags in (["--learning_rate=0.3"], ["--noise_type=zero"], ["--batch_size=3"]):
        with pytest.raises(Traced):
            run(picture, *flags, output="changed")
    monkeypatch.setattr(traced, "__file__", str(tmp_path / "another" / "source.py"))
    with pytest.raises(Traced):
        run(picture, output="changed")
