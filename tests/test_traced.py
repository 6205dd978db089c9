"""What an earlier process has traced isn't traced again."""

import functools
import importlib.metadata
from pathlib import Path

import jax
import pytest
from command_helpers import contents, write_picture

from pulse_jax.upsampling import traced


class Traced(Exception):
    """The step of a search."""


@pytest.fixture
def run(run, tmp_path):
    """The command with a picture."""
    write_picture(tmp_path / "in" / "a.png")
    return functools.partial(run, f"--input_dir={tmp_path / 'in'}")


@pytest.fixture
def no_trace(monkeypatch):
    """As in another process, in which the step may not be traced."""

    def advance(*arguments, **options):
        raise Traced

    def begin():
        jax.clear_caches()
        monkeypatch.setattr(traced, "advance", advance)

    return begin


def test_a_later_process_traces_no_step_and_makes_the_same_bytes(
    run, no_trace, tmp_path, monkeypatch
):
    with monkeypatch.context() as plain:
        plain.setattr(traced, "kept", lambda _: traced.advance)
        expected = contents(run(output="plain") / "a")
    assert contents(run(output="first") / "a") == expected
    no_trace()
    assert contents(run(output="again") / "a") == expected
    run(output="other", seed=1)
    for flags in (["--learning_rate=0.3"], ["--noise_type=zero"], ["--batch_size=3"]):
        with pytest.raises(Traced):
            run(*flags, output="changed")
    with jax.default_matmul_precision("high"), pytest.raises(Traced):
        run(output="changed")
    version = importlib.metadata.version
    with monkeypatch.context() as newer:
        newer.setattr(importlib.metadata, "version", lambda n: "9" if n == "optax" else version(n))
        with pytest.raises(Traced):
            run(output="changed")
    monkeypatch.setattr(traced, "__file__", str(tmp_path / "another" / "source.py"))
    with pytest.raises(Traced):
        run(output="changed")


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-9], lambda b: b[:-1] + b"?"])
def test_a_damaged_file_is_as_none(damage, run, no_trace):
    run(output="first")
    paths = [*Path(jax.config.values["jax_compilation_cache_dir"]).glob("pulse_jax-*-traced")]
    assert paths
    for path in paths:  # other tests' too, which share the folder
        path.write_bytes(damage(path.read_bytes()))
    no_trace()
    with pytest.raises(Traced):
        run(output="again")
