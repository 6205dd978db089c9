"""The web page: what its form may ask for, and searches one after another, each on its own."""

import itertools
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from command_helpers import read_rows, write_picture
from experiment_helpers import linear
from PIL import ExifTags, Image

import pulse_jax
from pulse_jax import images
from pulse_jax.files import figure, load_arrays, read_json
from pulse_jax.upsampling import crops
from pulse_jax.upsampling.pictures import Picture
from pulse_jax.web import __main__ as command
from pulse_jax.web import desk as desks
from pulse_jax.web import task as tasks
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
    monkeypatch.setattr(tasks, "upsample", held.upsample)
    monkeypatch.setattr(desks, "INTERVAL", 0.01)
    yield held
    held.go.set()


def last(views):
    return list(views)[-1]


def test_a_form_becomes_settings():
    usual = pulse_jax.Settings.generator
    form = Form("p.png", usual, "area", "original", 3, "square", " 1,2,8 ", 8)
    expected = pulse_jax.RECIPES["original"]
    assert form.settings([usual]) == pulse_jax.Settings(
        opt_name=expected.opt_name,
        stop_at_eps=False,
        equal_start=False,
        operator="area",
        restarts=3,
        crop=(1, 2, 8),
        input_size=8,
    )
    whole = Form("p.png", usual, crop="whole", input_size=None).settings([usual])
    assert whole == pulse_jax.Settings()


@pytest.mark.parametrize(
    "change, told",
    [
        ({"generator": "os:getcwd"}, "generator=os:getcwd is none of faces64"),
        ({"operator": "mask:/etc/passwd"}, "operator=mask:/etc/passwd is none of bicubic"),
        ({"recipe": "slow"}, "recipe=slow is none of fast"),
        ({"crop": "left"}, "crop=left is none of whole"),
        ({"crop": "square", "square": "1,2"}, "X,Y,SIDE=1,2: three whole numbers of pixels"),
        ({"crop": "square", "square": "-1,0,8"}, "X,Y,SIDE=-1,0,8: three whole numbers of"),
        ({"crop": "square", "square": "0,0,0"}, "crop=0,0,0: SIDE must be at least 1"),
        ({"crop": "face"}, "crop=face: give the side"),
        ({"restarts": 33}, "restarts=33: must be at least 1 and at most 32"),
        ({"recipe": "posterior", "restarts": 1}, "restarts=1: must be at least 2, since one chain"),
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
    monkeypatch.undo()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)  # Pillow refuses twice as many
    told = "small.png is too large: 50 megapixels are the most"
    assert last(desk.search("a", Form(picture, LINEAR))).told == told
    Path(picture).unlink()
    told = "small.png is gone from the server: drop it once more"
    assert last(desk.search("a", Form(picture, LINEAR))).told == told
    assert not any(desk.results.iterdir())


def test_a_click_is_the_middle_of_a_square_within_the_picture(tmp_path):
    path = str(tmp_path / "wide.png")
    Image.new("RGB", (60, 40)).save(path)
    assert square_at(path, 30, 20, "") == "20,10,20"
    assert square_at(path, 59, 1, "0,0,30") == "30,0,30"
    assert square_at(path, 10, 10, "0,0,99") == "0,0,40"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # browsers show it turned, 40 wide and 60 high
    Image.new("RGB", (60, 40)).save(path, exif=exif)
    assert square_at(path, 20, 59, "") == "10,40,20"


def test_the_page_shows_no_image_large_at_first_and_the_square_and_takes_any_file(desk):
    pytest.importorskip("gradio", reason="the page takes the extra web")
    from pulse_jax.web import page

    def gallery(*images):
        return page.shown(desks.View("", images), lambda path, _: path.name)[1]

    settings = pulse_jax.Settings()
    one = tasks.Shown(tasks.Task(Path(), Path(), settings), "a", "restart", 1, Path("b"), 0.5)
    assert gallery().constructor_args == {"value": [], "selected_index": None}
    assert "selected_index" not in gallery(one)
    path = desk.pictures / "a (1).png"
    Image.new("RGB", (60, 40)).save(path)
    told = page.cut_out(str(path), "0,20,20")
    assert (
        "%20%281%29.png); background-position: 0.0% 100.0%; background-size: 300.0% 200.0%" in told
    )
    assert all(
        page.cut_out(str(path), bad) == "" for bad in ("", "1,2", "50,0,20", "0,0,0", "a,b,c")
    )
    (picture,) = [b for b in page.make_page(desk).blocks.values() if b.elem_id == "picture"]
    again = type(picture)(**picture.constructor_args)  # as Gradio makes it after an update
    assert again.get_block_name() == "image"
    no_picture = Path(picture.GRADIO_CACHE, "no picture")
    for each in (picture, again):
        assert each.preprocess(each.data_model(path=str(no_picture))) == str(no_picture)


def test_visitors_reach_no_files_of_the_server(desk, tmp_path, monkeypatch):
    """Only those that were uploaded, and their own searches."""
    pytest.importorskip("gradio", reason="the page takes the extra web")
    from fastapi.testclient import TestClient

    from pulse_jax.web import page

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    write_picture(tmp_path / "secret.png")
    client = TestClient(page.make_app(desk), raise_server_exceptions=False)

    def square_of(path, **others):
        given = [{"path": str(path), **others}, "square", "0,0,2"]
        answer = client.post("/gradio_api/run/show_square", json={"data": given})
        return answer.json()["data"][0] if answer.status_code == 200 else None

    with (tmp_path / "secret.png").open("rb") as file:
        (upload,) = client.post("/gradio_api/upload", files={"files": file}).json()
    meta = {"_type": "gradio.FileData"}
    assert "background-image" in square_of(upload, meta=meta)["value"]
    assert square_of(tmp_path / "secret.png", meta=meta) is None
    assert square_of(tmp_path / "secret.png") is None
    (desk.results / "own").mkdir()
    assert client.get("/download/own.zip").status_code == 200
    for name in ("..", "%2e%2e%2fpictures", "%00", "nothing"):
        assert client.get(f"/download/{name}.zip").status_code == 404


def test_an_archive_that_does_not_fit_the_disk_is_removed(desk, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="the page takes the extra web")
    from pulse_jax.web import page

    def full(folder, archive):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "pack", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (desk.results / "own").mkdir()
    with pytest.raises(OSError):
        page.make_download(desk.results)("own")
    assert not list(tmp_path.glob("*.zip"))


def test_the_input_size_follows_the_generator(tmp_path):
    pytest.importorskip("gradio", reason="the page takes the extra web")
    from pulse_jax.web import page

    made = page.make_page(desks.Desk(tmp_path, ["decoder64", "decoder128", LINEAR]))
    labelled = {getattr(block, "label", None): key for key, block in made.blocks.items()}
    assert made.blocks[labelled["Input size"]].value == 8
    chosen = labelled["Generator"], "input"
    (follow,) = [function.fn for function in made.fns.values() if chosen in function.targets]
    assert follow("decoder64") == 8 and follow("decoder128") == 16
    assert not isinstance(follow(LINEAR), int)  # it has no examples, so the size stays


@pytest.fixture
def noted(monkeypatch):
    """All images of what is under way, as they are shown after each chunk, whatever it takes."""
    noted, note = [], tasks.Task.note

    def and_note(task, progress):
        note(task, progress)
        images = {one: images_of(one) for one in task.images() if not one.ended}
        noted.append({one: (one.l2, one.caption, *files) for one, files in images.items()})

    def images_of(one):
        return images.load_image(one.path), load_arrays(one.path.with_suffix(".npz"))

    monkeypatch.setattr(tasks, "INTERVAL", 0.0)
    monkeypatch.setattr(tasks, "SHARE", np.inf)
    monkeypatch.setattr(tasks.Task, "note", and_note)
    return noted


def test_results_improve_and_are_varied_refined_and_put_back(desk, tmp_path, monkeypatch, noted):
    """Of a photograph with two faces, one face's result is gone on with."""
    face = np.array([[20.0, 20], [30, 20], [25, 25], [21, 31], [29, 31]])
    monkeypatch.setattr(crops, "find_faces", lambda picture: [face, face + np.array([30, 5])])
    monkeypatch.setattr(crops, "check_detector", lambda: None)
    write_picture(tmp_path / "photo.png", 80)
    form = Form(str(tmp_path / "photo.png"), LINEAR, "bicubic", "original", 2, "face", "", 4)
    with pytest.raises(ValueError, match="no image is chosen yet: click one"):
        desk.put_back("a")
    views = list(desk.search("a", form))
    assert not any(view.ended for view in views[:-1]) and views[-1].ended
    view = views[-1]
    assert view.told.count("converged") == 2 and not view.failed and view.chosen is None
    (folder,) = view.folders
    assert (folder / "index.html").is_file() and folder.parent.parent == desk.results
    wanted = {folder / f"photo_{i}" / f"hr_0{n}.png" for i in (1, 2) for n in (1, 2)}
    assert {one.path for one in view.images} == wanted
    rows = {(row["image"], int(row["restart"])): row for row in read_rows(folder)}
    for one in view.images:
        assert one.l2 == float(rows[f"{one.name}.png", one.number]["l2_saved"])
    for name in ("photo_1", "photo_2"):
        own = [one for one in view.images if one.name == name]
        best = min(own, key=lambda one: one.l2)
        assert [one for one in own if one.caption.startswith(f"★ {name}, restart")] == [best]
    assert not list(folder.glob("*/so_far"))

    # The images so far were the same ones, with latents that make them, and became better.
    (chosen,) = [one for one in view.images if one.name == "photo_2" and one.number == 2]
    course = [now[chosen] for now in noted if chosen in now]
    errors = [error for error, *_ in course]  # below eps, the lowest loss is the best
    assert all(later <= max(earlier, 1e-3) for earlier, later in itertools.pairwise(errors))
    error, caption, image, latents = course[0]
    assert not all(np.array_equal(image, later) for _, _, later, _ in course)
    assert caption == f"photo_2, restart 2, l2 so far {figure(error)}"
    generator, params = linear()
    made = generator.synthesize(params, {"style": latents["style"][0]}, {})
    np.testing.assert_allclose(np.clip(made, 0, 1), image, atol=0.6 / 255)

    # What is put back is the chosen one.
    assert desk.choose("a", view.images.index(chosen)) is chosen
    path, told = desk.put_back("a")
    assert told == f"{chosen.caption}; put back, l2 {figure(chosen.picture.rows[2]['l2_put_back'])}"
    whole = chosen.picture.put_back(images.load_image(chosen.path))
    assert np.array_equal(np.asarray(Image.open(path)), images.to_uint8(whole))

    # Variations begin near it, a refinement at it, and both are beside what was there before.
    del noted[:]
    view = last(desk.vary("a", 10, 3))
    assert view.chosen is chosen and not view.failed and len(view.images) == 7
    varied = view.images[4:]
    assert {one.caption.removeprefix("★ ")[:17] for one in varied} == {
        f"vary 2, restart {n}" for n in (1, 2, 3)
    }
    first = chosen.picture.latents()["style"][1]
    latents = varied[0].picture.latents()["style"]
    assert len({point.tobytes() for point in latents}) == 3
    assert varied[0].path.parent == folder.with_name("2_vary") / "photo"
    quads = [one.picture.origin.quad for one in (chosen, varied[0])]
    assert np.array_equal(*quads)
    starts = load_arrays(folder.with_name("2_vary") / "start.npz")
    assert np.array_equal(starts["style"], first[None])
    config = read_json(folder.with_name("2_vary") / "config.json")
    assert (config["--vary"], config["--pick"], config["--restarts"]) == (10, 1, 3)
    view = last(desk.refine("a"))
    assert len(view.images) == 8 and [path.name[0] for path in view.folders] == ["1", "2", "3"]
    refined = view.images[7]
    assert refined.l2 < chosen.l2 and refined.caption.startswith("refine 3, restart 1, l2 ")
    for degrees, restarts, told in ((0, 3, "degrees=0"), (10, 99, "restarts=99: must be")):
        view = last(desk.vary("a", degrees, restarts))
        assert view.failed and view.told.startswith(told) and len(view.images) == 8
    desk.leave("a")
    assert last(desk.refine("a")).told == "no image is chosen yet: click one"


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
    assert desk.is_busy("a") and desk.is_busy("b") and not desk.is_busy("c")
    desk.stop("b")  # still waits
    assert last(second).told == "Stopped before it began."
    assert not next(first).ended
    desk.stop("a")
    assert last(first).told == "stopped" and not desk.is_busy("a")
    desk.stop("a")  # there is nothing any more
    assert len(held.pictures) == 1


def test_a_double_click_is_one_search(desk, picture, held):
    first, second = (desk.search("a", Form(picture, LINEAR)) for _ in range(2))
    next(first), next(second)
    held.go.set()
    assert last(first) == last(second) and not desk.is_busy("a")
    assert len(list(desk.pictures.iterdir())) == len(held.pictures) == 1


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
    monkeypatch.setattr(tasks, "upsample", lambda *_, **__: 1 / 0)
    view = last(desk.search("a", Form(picture, LINEAR)))
    assert view.failed and view.told == "The search failed. The server's log says why."
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("status", ["met", "not met"])
def test_the_line_of_a_posterior_is_explained(desk, picture, monkeypatch, status):
    """The page has no flags, and no use for draws with which a run of the command would go on."""
    parts = []

    def upsample(pictures, folder, settings, *_, **__):
        row = {"status": status, "rhat": 1.013, "ess": 300.0, "l2_saved": 0.1, "draws": 200}
        rows = {1: row}
        parts.append(folder / "parts")
        parts[0].mkdir(parents=True)
        drawn = Picture(
            "small.png", np.zeros((4, 4, 3), np.float32), 1.0, "", folder=folder, rows=rows
        )
        return pulse_jax.Results((drawn,), (), settings, "")

    monkeypatch.setattr(tasks, "upsample", upsample)
    told = last(desk.search("a", Form(picture, LINEAR, recipe="posterior"))).told
    line, meaning = told.split("\n\n")
    apart = "" if status == "met" else "the chains have not met, so its maps must not be used: "
    assert line == f"small.png: {apart}R-hat 1.01, ESS 300"
    assert not parts[0].exists()
    assert "R-hat compares chains" in meaning and "ESS is the effective sample size" in meaning


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


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Run the command without its page, whose folders of uploads `serve.folders` lists."""

    def make_app(desk):
        serve.folders.append(Path(os.environ["GRADIO_TEMP_DIR"]))
        (serve.folders[-1] / "picture.png").touch()

    run = SimpleNamespace(run=lambda sockets: None)
    server = SimpleNamespace(Config=lambda app, **options: app, Server=lambda config: run)
    monkeypatch.setitem(sys.modules, "uvicorn", server)
    monkeypatch.setitem(sys.modules, "pulse_jax.web.page", SimpleNamespace(make_app=make_app))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # the tests' cache stays
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")  # so that it is restored

    def serve(*flags):
        places = f"--output_dir={tmp_path / 'web'}", f"--cache_dir={tmp_path / 'cache'}"
        monkeypatch.setattr(sys, "argv", ["pulse_jax_web", "--port=0", *places, *flags])
        command.main()

    serve.folders = []
    return serve


def test_a_server_keeps_uploads_in_a_folder_of_its_own_until_it_ends(serve):
    for _ in range(2):
        serve()
    first, second = serve.folders
    assert first != second and not first.exists() and not second.exists()


@pytest.mark.parametrize(
    "flag, told",
    [
        ("--output_dir=~nosuch", "--output_dir=~nosuch: no home is known for ~nosuch"),
        ("--cache_dir=~nosuch", "--cache_dir=~nosuch: no home is known for ~nosuch"),
        ("--generators=faces64,~nosuch/x", "--generators=~nosuch/x: no home is known for ~nosuch"),
        ("--generators=faces64,nothing", "--generators=nothing: it is no file"),
    ],
)
def test_what_cannot_be_found_is_told_before_the_page_is_served(serve, flag, told):
    with pytest.raises(SystemExit) as exit:
        serve(flag)
    assert str(exit.value).startswith(f"pulse_jax_web: {told}") and not serve.folders


def test_without_gradio_a_line_tells_how_to_install_it(monkeypatch):
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")  # so that it is restored
    monkeypatch.setattr(sys, "argv", ["pulse_jax_web"])
    for name in ("gradio", "uvicorn"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r'pip install "pulse_jax\[web\]"'):
        command.main()


def test_the_page_begins_with_the_commands_default():
    first, *others = command.bundled()
    assert first == pulse_jax.Settings().generator and others == sorted(others) and others


def test_an_address_that_is_taken_is_told_in_one_line():
    with command.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--host=127.0.0.1, --port={port} can't be listened"):
            command.listen("127.0.0.1", port)
