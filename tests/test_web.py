"""The web page: what its form may ask for, and searches one after another, each on its own."""

import sys
import threading
import time
from pathlib import Path

import pytest
from command_helpers import write_picture
from PIL import Image

import pulse_jax
from pulse_jax.web import __main__ as command
from pulse_jax.web import desk as desks
from pulse_jax.web.desk import Desk, Form, square_at

ROOT = Path(__file__).parents[1]
LINEAR = "experiment_helpers:linear"  # 32×32 pixels


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path / "web", [LINEAR], queue=1)
    yield made
    made.close()


@pytest.fixture
def picture(tmp_path):
    write_picture(tmp_path / "given" / "small.png")
    return str(tmp_path / "given" / "small.png")


@pytest.fixture
def held(monkeypatch):
    """Searches that end when they are let go, or stopped. Their settings are noted."""

    class Held:
        def __init__(self):
            self.go, self.begun, self.pictures = threading.Event(), threading.Event(), []

        def upsample(self, pictures, folder, settings, progress, *, stop):
            self.pictures += pictures
            self.begun.set()
            while not (self.go.is_set() or stop()):
                time.sleep(0.01)
            return pulse_jax.Results((), (), settings, "stopped" if stop() else "")

    held = Held()
    monkeypatch.setattr(desks, "upsample", held.upsample)
    monkeypatch.setattr(desks, "INTERVAL", 0.01)
    yield held
    held.go.set()


def last(views):
    return list(views)[-1]


def test_a_form_becomes_settings():
    form = Form("p.png", "faces64", "area", "original", 3, "square", " 1,2,8 ", 8)
    expected = pulse_jax.RECIPES["original"]
    assert form.settings(["faces64"]) == pulse_jax.Settings(
        opt_name=expected.opt_name,
        stop_at_eps=False,
        equal_start=False,
        operator="area",
        restarts=3,
        crop=(1, 2, 8),
        input_size=8,
    )
    whole = Form("p.png", "faces64", crop="whole", input_size=None).settings(["faces64"])
    assert whole == pulse_jax.Settings()


@pytest.mark.parametrize(
    "change, told",
    [
        ({"generator": "os:getcwd"}, "generator=os:getcwd is none of faces64"),
        ({"operator": "mask:/etc/passwd"}, "operator=mask:/etc/passwd is none of bicubic"),
        ({"recipe": "slow"}, "recipe=slow is none of fast"),
        ({"crop": "left"}, "crop=left is none of whole"),
        ({"crop": "square", "square": "1,2"}, "crop=1,2 is not center, face or X,Y,SIDE"),
        ({"crop": "face"}, "crop=face: give the side"),
        ({"restarts": 33}, "restarts=33: must be at least 1 and at most 32"),
        ({"recipe": "posterior", "restarts": 1}, "restarts=1: whether chains have met"),
    ],
)
def test_what_the_page_does_not_offer_is_refused(change, told):
    with pytest.raises(ValueError) as error:
        Form("p.png", "faces64")._replace(**change).settings(["faces64"])
    assert str(error.value).startswith(told) and "\n" not in str(error.value)


def test_pictures_that_are_missing_or_too_large_are_told(desk, picture, monkeypatch):
    assert "no picture yet" in last(desk.search("a", Form(None, LINEAR))).told
    monkeypatch.setattr(desks, "PIXELS", 15)
    view = last(desk.search("a", Form(picture, LINEAR)))
    assert view.failed and view.told.startswith("small.png has 4×4 pixels")
    monkeypatch.setattr(desks, "BYTES", 10)
    assert "small.png has 0.0 MiB" in last(desk.search("a", Form(picture, LINEAR))).told
    assert not any(desk.results.iterdir())


def test_a_click_is_the_middle_of_a_square_within_the_picture(tmp_path):
    path = str(tmp_path / "wide.png")
    Image.new("RGB", (60, 40)).save(path)
    assert square_at(path, 30, 20, "") == "20,10,20"
    assert square_at(path, 59, 1, "0,0,30") == "30,0,30"
    assert square_at(path, 10, 10, "0,0,99") == "0,0,40"


def test_a_search_leaves_what_the_command_leaves(desk, picture):
    form = Form(picture, LINEAR, restarts=2, crop="whole", input_size=None)
    views = list(desk.search("a", form))
    assert not any(view.ended for view in views[:-1]) and views[-1].ended
    view = views[-1]
    assert "converged" in view.told and len(view.images) == 2 and not view.failed
    assert view.folder.parent == desk.results and (view.folder / "index.html").is_file()
    assert all(str(view.folder) in path and "l2" in told for path, told in view.images)
    losses = [float(told.rpartition(" ")[2]) for _, told in view.images]
    assert losses == sorted(losses)


def test_what_a_run_refuses_is_told_without_the_servers_folders(desk, picture):
    view = last(desk.search("a", Form(picture, LINEAR, input_size=3)))
    assert view.failed and view.ended and view.told.startswith("small.png: input_size=3 does not")


def test_two_visitors_wait_for_each_other_and_have_folders_of_their_own(desk, picture, held):
    first, second, third = (desk.search(visitor, Form(picture, LINEAR)) for visitor in "abc")
    next(first)
    assert held.begun.wait(10)
    assert next(second).told == "Waiting behind 1 other."
    assert last(third).told == "the queue is full, with 1 waiting: try again later"
    held.go.set()
    assert last(first).ended and last(second).ended
    one, other = held.pictures
    assert one.name == other.name == "small.png" and one.parent != other.parent
    assert one.is_relative_to(desk.pictures) and other.is_relative_to(desk.pictures)


def test_a_visitor_stops_the_own_search_alone(desk, picture, held):
    first, second = (desk.search(visitor, Form(picture, LINEAR)) for visitor in "ab")
    next(first), next(second)
    assert held.begun.wait(10)
    desk.stop("b")  # still waits
    assert last(second).told == "Stopped before it began."
    assert not next(first).ended
    desk.stop("a")
    assert last(first).told == "stopped"
    desk.stop("a")  # there is nothing any more
    assert len(held.pictures) == 1


def test_a_closed_page_stops_its_search(desk, picture, held):
    views = desk.search("a", Form(picture, LINEAR))
    next(views)
    assert held.begun.wait(10)
    views.close()
    held.begun.clear()
    next(other := desk.search("b", Form(picture, LINEAR)))
    assert held.begun.wait(10)  # the first one has made room
    held.go.set()
    assert last(other).ended


def test_a_search_has_only_so_much_time(tmp_path, picture, held):
    desk = Desk(tmp_path / "web", [LINEAR], seconds=0)
    assert last(desk.search("a", Form(picture, LINEAR))).told == "all 0 s were taken: stopped"
    desk.close()


def test_a_bug_is_told_in_one_line(desk, picture, monkeypatch, caplog):
    monkeypatch.setattr(desks, "upsample", lambda *_, **__: 1 / 0)
    view = last(desk.search("a", Form(picture, LINEAR)))
    assert view.failed and view.told == "The search failed. The server's log says why."
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--port=99999"], "port"),
        (["picture.png"], "'picture.png' is no flag"),
    ],
)
def test_flags_are_refused_in_one_line(flags, told):
    with pytest.raises(SystemExit) as exit:
        command.parse(["pulse_jax_web", *flags])
    assert told in str(exit.value) and "\n" not in str(exit.value)


def test_without_gradio_a_line_tells_how_to_install_it(monkeypatch):
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # so that it is restored
    monkeypatch.setattr(sys, "argv", ["pulse_jax_web"])
    for name in ("gradio", "uvicorn"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r'pip install "pulse_jax\[web\]"'):
        command.main()


def test_an_address_that_is_taken_is_told_in_one_line():
    with command.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--host=127.0.0.1, --port={port} can't be listened"):
            command.listen("127.0.0.1", port)
