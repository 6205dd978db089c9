"""How many slots and devices memory holds."""

from types import SimpleNamespace

import jax
import pytest
from search_helpers import LINEAR, MATRIX, TARGETS, start, take

from pulse_jax.capacity import fit_slots
from pulse_jax.driver import advance


def test_slots_are_as_many_as_fit():
    one = TARGETS[0], take(start(1), 0)
    memories = 0, 1e6, 2e6, 1e12  # large beside the weights, so that few sizes are tried
    slots = [fit_slots(LINEAR, MATRIX, *one, 1000, memory=memory)[1] for memory in memories]
    assert slots == sorted(slots)
    assert slots[0] == 1 < slots[1] < slots[2] < slots[3] == 1000


@pytest.mark.parametrize(
    ("memory", "fit"), [(900, (4, 2)), (800, (4, 2)), (600, (3, 2)), (200, (1, 2)), (100, (1, 1))]
)
def test_devices_of_a_cpu_share_its_memory(memory, fit, monkeypatch, unchecked):
    """They become fewer before their slots do, on which bytes depend. Two slots take 200."""
    needed = lambda *parts: 100 * parts[4] / len(parts[5])  # noqa: E731
    monkeypatch.setattr("pulse_jax.capacity._needed_bytes", needed)
    cores = 4 * [SimpleNamespace(platform="cpu")]
    devices, slots = fit_slots(LINEAR, MATRIX, *2 * (None,), 2, devices=cores, memory=memory)
    assert (len(devices), slots) == fit
    again = fit_slots(
        LINEAR, MATRIX, *2 * (None,), slots, least=slots, devices=cores, memory=memory
    )
    assert (len(again[0]), again[1]) == fit  # a run that goes on has its slots given


def test_slots_where_the_system_does_not_tell_its_memory(monkeypatch):
    """As on Windows."""
    monkeypatch.delattr("os.sysconf")
    assert fit_slots(LINEAR, MATRIX, TARGETS[0], take(start(1), 0), 2)[1] == 2


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an accelerator has its own memory")
def test_slots_are_as_many_as_fit_into_half_of_a_quota(monkeypatch, unchecked):
    monkeypatch.setattr("pulse_jax.quotas.memory", lambda: 800.0)
    monkeypatch.setattr("pulse_jax.capacity._needed_bytes", lambda *others: 100.0 * others[4])
    cores = [SimpleNamespace(platform="cpu")]
    assert fit_slots(LINEAR, MATRIX, *2 * (None,), 64, devices=cores) == (cores, 4)


def test_slots_are_fewer_where_a_program_does_not_compile(monkeypatch):
    """As a TPU's compiler has it."""

    def lower(step, params, targets, *others, **options):
        def compile():
            if len(targets) > 4:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in hbm")
            return advance.lower(step, params, targets, *others, **options).compile()

        return SimpleNamespace(compile=compile)

    one = TARGETS[0], take(start(1), 0)
    monkeypatch.setattr("pulse_jax.capacity.advance", SimpleNamespace(lower=lower))
    assert fit_slots(LINEAR, MATRIX, *one, 64, memory=1e12)[1] == 4
