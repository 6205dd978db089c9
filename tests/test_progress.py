"""What is said while one waits: about compilation, and about the time that is left."""

import threading

import jax
import pytest

from pulse_jax.console import logged_to_streams
from pulse_jax.progress import Course, Progress, steps_left
from pulse_jax.upsampling import bar
from pulse_jax.upsampling.bar import COMPILED, FOUND, LOWERED, Bar, compilation_told


@pytest.fixture
def patience(monkeypatch):
    """A function that lets the patience with all programs that are still awaited end."""
    timers = []

    class Timer:
        def __init__(self, _, tell):
            self.tell = tell

        def start(self):
            timers.append(self)

        def cancel(self):
            timers.remove(self)

    monkeypatch.setattr(threading, "Timer", Timer)
    return lambda: [timer.tell() for timer in timers]


def test_a_compilation_is_told_once_and_only_if_it_is_one(patience, capsys):
    with logged_to_streams("", str), compilation_told():
        jax.monitoring.record_event_duration_secs(LOWERED, 0.1)
        jax.monitoring.record_event(FOUND)  # in the cache
        patience()
        jax.monitoring.record_event_duration_secs(LOWERED, 0.1)
        jax.monitoring.record_event_duration_secs(COMPILED, 0.1)  # in no time
        patience()
        assert capsys.readouterr().out == ""
        for times in (1, 0):
            jax.monitoring.record_event_duration_secs(LOWERED, 0.1)
            patience()
            assert capsys.readouterr().out.count("compiling for this machine") == times
    jax.monitoring.record_event_duration_secs(LOWERED, 0.1)  # is no longer listened to


def test_jax_announces_compilations_as_expected(patience, caplog):
    caplog.set_level("INFO", logger="pulse_jax")  # JAX may tell what it finds
    with compilation_told():
        jax.jit(lambda x: patience() or x + 1)(1.0)  # traced before it is lowered
        assert not caplog.messages
        lowered = jax.jit(lambda x: x + 2).lower(1.0)
        patience()
        assert len(caplog.messages) == 1
        lowered.compile()


@pytest.mark.parametrize(
    ("most", "restarts", "made", "ended", "left"),
    [
        (3160, 32, 40, 0, 3160),  # nothing is known
        (2800, 31, 200, 1, 2800),  # no more than there could be
        (2000, 24, 240, 8, 720),  # 30 each
        (120, 2, 1080, 30, 72),
    ],
)
def test_what_is_left_is_judged_by_restarts_that_have_ended(most, restarts, made, ended, left):
    assert steps_left(most, restarts, made, ended) == left


def watched(monkeypatch, stops):
    """Of eight restarts, of at most 100 steps, what is shown of the time after each chunk."""
    clock = iter([100.0, 101.0, 103.0, 105.0, 107.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    course = Course(8, 800, stops, slots=3)
    monkeypatch.setattr(bar, "memory", lambda: 1e9)
    with logged_to_streams("", str), Bar() as shown:
        for made, ended in ((30, []), (10, [10]), (40, [20, 20]), (50, [20, 30]), (50, [20] * 3)):
            course.note(made, len(ended), sum(100 - steps for steps in ended))
            shown(course.progress)
            yield shown.bar.postfix, shown.bar.n, shown.bar.total
    assert course.most == 800 - 180 - (800 - 160)


def test_the_time_left(monkeypatch, capsys):
    shown = list(watched(monkeypatch, stops=True))
    # Five have ended in 130 steps: 3 × 130 / 5 steps are left. The last 50 took 2 seconds, and what
    # came before was compiled on the way: steps, the first images, and the first that took over.
    assert shown[1:4] == [
        (None, 40, 40 + 670),
        (None, 80, pytest.approx(80 + 133.3, 1e-3)),
        ("about 3 s to go", 130, 130 + 78),
    ]
    assert capsys.readouterr().out == "about 3 s to go, 1.0 GB in use\n"


def test_the_time_left_where_all_steps_are_made(monkeypatch, capsys):
    *compiling, first, _ = [left for left, *_ in watched(monkeypatch, stops=False)]
    assert compiling == [None] * 3 and first == "about 3 s to go"
    assert capsys.readouterr().out.count(" to go") == 1


def test_no_time_is_told_of_what_has_hardly_been_measured(monkeypatch):
    clock = iter([100.0, 100.1, 100.9, 101.1])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    course, told = Course(8, 800, False, slots=8), []
    for _ in range(4):
        course.note(40, 0, 0)
        told.append(course.progress.seconds)
    assert told == [None, None, None, pytest.approx(640 * 1.1 / 120)]


def test_the_bar_is_full_when_all_restarts_have_ended_and_no_sooner():
    with Bar() as shown:
        for ended, made, percentage in ((31, 1998, " 99%|"), (32, 2000, "100%|")):
            shown(Progress(32, ended, made, 2000 - made, None))
            assert str(shown.bar).startswith(percentage)
