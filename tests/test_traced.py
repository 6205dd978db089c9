"""What an earlier process has traced isn't traced again."""

import functools
import importlib.metadata

import jax
import pytest
from command_helpers import contents, write_picture
from experiment_helpers import save_small_generator

import pulse_jax
from pulse_jax.generators.stylegan2 import Discriminator, StyleGAN2
from pulse_jax.upsampling import familiarity, traced
from pulse_jax.upsampling.settings import Settings


class Traced(Exception):
    """A network."""


@pytest.fixture(autouse=True, scope="module")
def in_memory():
    """Not here: these tests are about what is kept in a folder."""


@pytest.fixture
def run(run, tmp_path):
    """The command with a picture."""
    write_picture(tmp_path / "in" / "a.png")
    return functools.partial(run, f"--input_dir={tmp_path / 'in'}")


@pytest.fixture
def no_trace(monkeypatch):
    """As in another process, in which no network may be traced: not for steps, nor for images."""

    def trace(*arguments, **options):
        raise Traced

    def begin():
        jax.clear_caches()
        for network in StyleGAN2, Discriminator:
            monkeypatch.setattr(network, "apply", trace)

    return begin


def test_a_later_process_traces_no_network_and_makes_the_same_bytes(
    run, no_trace, tmp_path, monkeypatch
):
    save_small_generator(tmp_path / "generator")
    own = {"4": {"pictures": 9, "largest l2": 1, "mean score": 0, "deviation of scores": 1}}
    monkeypatch.setattr(familiarity, "read", lambda settings: own)
    run = functools.partial(run, generator=tmp_path / "generator")
    with monkeypatch.context() as plain:
        plain.setattr(traced, "keep", lambda *_: traced.IN_MEMORY)
        folder = run(output="plain") / "a"
    expected, scores = contents(folder), (folder / familiarity.SCORES).read_bytes()
    assert contents(run(output="first") / "a") == expected
    no_trace()
    assert contents(run(output="again") / "a") == expected
    assert (tmp_path / "again" / "a" / familiarity.SCORES).read_bytes() == scores
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


def test_a_process_compiles_nothing_twice(tmp_path, monkeypatch):
    """Also for parts that plug in, of which nothing is kept in the folder."""
    settings = Settings(generator="experiment_helpers:linear", steps=2, restarts=2, seeds=(0,))
    write_picture(tmp_path / "a.png")
    again, compiled = [], []

    def note(event, seconds, fun_name="", **_):
        if again and event.endswith("backend_compile_duration"):
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        first = pulse_jax.upsample(tmp_path / "a.png", tmp_path / "first", settings)
        again.append(True)
        pulse_jax.upsample(tmp_path / "a.png", tmp_path / "again", settings)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert first.rows and not compiled
    assert contents(tmp_path / "first" / "a") == contents(tmp_path / "again" / "a")


def test_a_damaged_file_is_as_none(run, no_trace, tmp_path):
    cache = tmp_path / "cache"  # others' files stay whole
    run = functools.partial(run, f"--cache_dir={cache}")
    run(output="first")
    kept = {path: path.read_bytes() for path in cache.glob("pulse_jax-*-traced")}
    assert kept
    no_trace()
    run(output="again")
    for damage in (lambda b: b"", lambda b: b[:-9], lambda b: b[:-1] + b"?"):
        for path, content in kept.items():
            path.write_bytes(damage(content))
        no_trace()
        with pytest.raises(Traced):
            run(output="damaged")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_compilation_cache", False),
        ("jax_compilation_cache_dir", None),
        ("jax_default_device", "cpu"),
    ],
)
def test_nothing_is_kept_where_jax_keeps_nothing_or_runs_elsewhere(name, value):
    assert traced.keep(Settings(), {}).folder
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        assert traced.keep(Settings(), {}) is traced.IN_MEMORY
    finally:
        jax.config.update(name, before)
