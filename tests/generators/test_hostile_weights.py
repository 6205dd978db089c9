"""Hostile files of weights: what is made of them takes no more memory than the files allow.

The reader's own bounds are tested in test_unpickle.py. Here each program's network is attacked at
every place that a file's content has.
"""

import functools
import io
import pickle
import sys
import tracemalloc
import types

import jax
import numpy as np
import pytest
from helpers import DATA

from pulse_jax.generators import official, stylegan3
from pulse_jax.generators.official import parameters, read, read_network
from pulse_jax.generators.official.parameters import persistent_modules
from pulse_jax.generators.official.unpickle import Instance

BOUND = 2**24  # an honest network of the tests takes less than 4 MB

# Small in a file, since it holds one tuple many times; whoever walks it meets ten million numbers.
NESTED = 0
for _ in range(7):
    NESTED = (NESTED,) * 10
TEXT = "x" * 10**6


def persistent(**state):
    return Instance("Generator", {"_parameters": {}, "_buffers": {}, "_modules": {}} | state)


@pytest.fixture
def attack(monkeypatch, tmp_path):
    """Read a network from a tree, or from a file's bytes; returns the message of the refusal.

    Fails if that takes much memory, or says much. The shapes and filters that a network should
    have are computed once for all attacks that leave its settings alone.
    """
    shapes = {}

    def eval_shape(init, *inputs):
        if init.__self__ not in shapes:
            shapes[init.__self__] = original(init, *inputs)
        return dict(shapes[init.__self__])

    original = jax.eval_shape
    monkeypatch.setattr(parameters.jax, "eval_shape", eval_shape)
    monkeypatch.setattr(stylegan3, "lowpass", functools.cache(stylegan3.lowpass))

    def attack(tree, traced=True):
        path = tmp_path / "network.pkl"
        if isinstance(tree, bytes):
            path.write_bytes(tree)
        else:
            monkeypatch.setattr(official, "read", lambda path: tree)
        if traced:
            tracemalloc.start()
        try:
            read_network(path)
            message = ""
        except ValueError as error:
            message = str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < BOUND, (peak, message)
        assert len(message) < len(str(path)) + 400 and "\n" not in message
        return message.removeprefix(f"{path}: ")

    return attack


def network_of(name):
    """A file's content, and what of it is read."""
    tree = read(DATA / name)
    match tree:
        case (_, _, network):
            return network
        case {"G_ema": root}:
            return {"G_ema": root}
        case {"g_ema": _}:
            return {name: tree[name] for name in ("g_ema", "latent_avg")}


def places(tree):
    """Where a value stands in a tree, as (what has it, key): one of each name, and of each list."""
    found, pending = {}, [tree]
    while pending:
        value = pending.pop()
        value = value.state if type(value) is Instance else value
        if type(value) is dict:
            for name, part in value.items():
                found.setdefault(name, (value, name))
                pending.append(part)
        elif type(value) is list and value:
            found.setdefault(f"list at {next(reversed(found))}", (value, 0))
            pending += value
        elif type(value) is tuple:
            pending += value
    return found


NETWORKS = ["sg1_tf.pkl", "sg2_tf.pkl", "rosinality.pt"]
NETWORKS += [pytest.param(n, marks=pytest.mark.slow) for n in ("sg2ada_fp16cfg.pkl", "sg3R.pkl")]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_value_of_a_file(name, attack):
    tree = network_of(name)
    assert attack(tree, traced=False) == ""  # here the shapes are computed
    found = places(tree)
    assert len(found) >= 20
    for holder, key in found.values():
        original = holder[key]
        for value in (NESTED, TEXT):
            holder[key] = value
            if not attack(tree):  # what nobody reads
                break
        holder[key] = original
    assert attack(tree) == ""


# What is at one place.


def test_a_nested_setting_in_a_file_of_500_bytes(attack, monkeypatch):
    def rebuild(meta):
        """What a persistent module is pickled as a call of."""

    persistence = types.ModuleType("torch_utils.persistence")
    rebuild.__module__, rebuild.__qualname__ = persistence.__name__, "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = rebuild
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, persistence.__name__, persistence)

    class Pickler(pickle.Pickler):
        def reducer_override(self, value):
            if type(value) is not Instance:
                return NotImplemented
            return rebuild, ({"class_name": value.name, "state": value.state},)

    root = persistent(_modules={"synthesis": persistent()}, c_dim=NESTED)
    file = io.BytesIO()
    Pickler(file, protocol=2).dump({"G_ema": root})
    assert len(file.getvalue()) <= 500
    assert attack(file.getvalue()) == (
        "c_dim is neither a number nor a short text, nor a short list of them"
    )


def test_names(attack):
    tree = network_of("sg2_tf.pkl")
    variables = tree.state["variables"]
    for name in (NESTED, 1, b"x", None):
        variables.append((name, 1))
        assert attack(tree) == f"a variable's name is a {type(name).__name__}"
        variables.pop()
    variables.append((TEXT, 1))
    assert "name" in attack(tree)

    for holder in ("_parameters", "_buffers", "_modules"):  # one text, at a thousand places
        inner = persistent()
        tree = persistent(_modules={"synthesis": persistent(_modules=dict.fromkeys("abc", inner))})
        inner.state[holder][TEXT] = persistent()
        assert "is no module's or parameter's name" in attack({"G_ema": tree})
        inner.state[holder][b"x"] = inner.state[holder].pop(TEXT)
        assert "b'x' is no module's or parameter's name" in attack(tree)
    assert attack({TEXT: 1, TEXT + "y": 2}).startswith("holds no generator, but the entries 'xxx")


def test_one_array_at_all_places(attack):
    tree = network_of("rosinality.pt")
    state = tree["g_ema"]
    for i in range(1, 9):
        state[f"style.{i}.weight"] = state["style.1.weight"]
    assert "weight' is the same array as 'style.1.weight'" in attack(tree)


@pytest.mark.parametrize("shape", [(0, 2**40), (2**13, 1)])
def test_arrays_of_shapes_that_no_network_has(shape, attack):
    tree = network_of("rosinality.pt")
    tree["g_ema"]["style.1.weight"] = np.empty(shape, np.float32)
    assert "which no network has" in attack(tree)


def test_settings_that_ask_for_any_size(attack):
    tree = network_of("sg3R.pkl")
    settings = persistent_modules(tree["G_ema"])["synthesis"]
    for name, value in {
        "filter_size": 10**6,
        "lrelu_upsampling": 10**6,
        "margin_size": 10**12,
        "first_cutoff": float("nan"),
        "num_critical": 1 << 10**6,
        "conv_kernel": np.empty((0, 2**40)),
    }.items():
        given = settings["_init_kwargs"].get(name)
        settings["_init_kwargs"][name] = value
        assert name in attack(tree)
        settings["_init_kwargs"][name] = given
        if given is None:
            del settings["_init_kwargs"][name]
    settings["img_resolution"] = 2**40
    assert "img_resolution = 1099511627776 is no number from 4 to 4096" in attack(tree)
