"""Published generators by name: downloads are complete or told in one line, and go on."""

import hashlib
import http.server
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from pulse_jax.generators import published
from pulse_jax.generators.published import PUBLISHED, Model, fetch, folder

DATA = np.random.default_rng(0).bytes(1_000_000)
PAGE = (Path(__file__).parents[2] / "docs" / "generators.md").read_text()


class Server(http.server.ThreadingHTTPServer):
    """Serves DATA at any address, and does what it is told wrong."""

    status = 200
    ranges = True  # whether it understands Range
    shift = 0  # of the range that it sends, from the one asked for
    most = None  # bytes of a range that it sends
    announce = True  # the length
    content_type = "application/octet-stream"
    cut = None  # break off after so many bytes

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []  # the Range of each request
        self.sent = []  # the length of each answer

    def handle_error(self, *_):
        """Some clients here hang up early."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        status, start = self.server.status, 0
        if asked and self.server.ranges and status == 200:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) + self.server.shift
            status = 206 if start < len(DATA) else 416
        body = DATA[start:] if status in (200, 206) else b"<html>sorry</html>"
        self.send_response(status)
        self.send_header("Content-Type", self.server.content_type)
        if status == 206:
            body = body[: self.server.most]
            span = f"bytes {start}-{start + len(body) - 1}/{len(DATA)}"
            self.send_header("Content-Range", span)
        if self.server.announce:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[: self.server.cut]
        self.server.sent.append(len(body))
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


@pytest.fixture
def server(home, monkeypatch):
    """A server, and a published generator "local" that it has."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        publish(monkeypatch, f"http://127.0.0.1:{server.server_port}/pretrained/weights.pkl")
        yield server
        server.shutdown()
        thread.join()


def publish(monkeypatch, url, **others):
    model = Model("bytes", 8, "none", url, "weights.pkl", "CC0", "https://example.org", **others)
    monkeypatch.setitem(PUBLISHED, "local", model)


def files():
    return sorted(path.name for path in folder("local").iterdir())


def refused(name="local"):
    """The message with which a generator isn't fetched: one line, with the way to do it by hand."""
    with pytest.raises(ValueError) as error:
        fetch(name, progress=False)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{name}: ")
    model = PUBLISHED[name]
    assert message.endswith(f"save {model.url} as {folder(name) / model.file}")
    return message


def test_downloads_whole_files_once(server, home):
    path = fetch("local", progress=False)
    assert path == home / ".cache/pulse_jax/generators/local/weights.pkl"
    assert path.read_bytes() == DATA
    assert files() == ["weights.pkl"]
    assert fetch("local") == path
    assert server.asked == [None]


def test_shows_a_bar_if_asked(server, capfd):
    fetch("local")
    assert "weights.pkl: 100%" in capfd.readouterr().err


def test_is_silent_otherwise(server, capfd):
    fetch("local", progress=False)
    assert capfd.readouterr() == ("", "")


def test_goes_on_with_a_download_that_was_broken_off(server, capfd):
    server.cut = 300_000
    assert "broke off after" in refused()
    assert files() == ["weights.pkl.part"]
    kept = (folder("local") / "weights.pkl.part").stat().st_size
    assert 200_000 < kept <= 300_000
    server.cut = None
    assert fetch("local").read_bytes() == DATA
    assert files() == ["weights.pkl"]
    assert server.asked == [None, f"bytes={kept}-"]
    assert server.sent[1] == len(DATA) - kept
    assert f"{kept // 1000}k/1.00M" in capfd.readouterr().err  # where the bar starts


def test_a_part_of_the_rest_is_not_the_rest(server):
    server.cut, server.most = 300_000, 100_000
    refused()
    kept = (folder("local") / "weights.pkl.part").stat().st_size
    assert f"broke off after {kept + 100_000} of 1000000 bytes" in refused()
    server.cut = server.most = None
    assert fetch("local", progress=False).read_bytes() == DATA
    assert server.asked == [None, f"bytes={kept}-", f"bytes={kept + 100_000}-"]


def test_without_a_length_nobody_knows_whether_a_file_is_complete(server):
    server.announce = False
    assert "doesn't tell the file's length" in refused()
    assert files() == []


@pytest.mark.parametrize("wrong", [{"ranges": False}, {"shift": 7}, {"shift": len(DATA)}])
def test_starts_over_where_the_server_does_not_go_on(server, wrong):
    """It ignores the range, sends another one, or says that there is none such."""
    server.cut = 300_000
    refused()
    server.cut = None
    vars(server).update(wrong)
    assert fetch("local", progress=False).read_bytes() == DATA
    assert server.asked[-1] is None or not server.ranges


def test_what_is_left_of_another_file_is_not_gone_on_with(server):
    """A part longer than the file: it isn't a part of it."""
    folder("local").mkdir(parents=True)
    (folder("local") / "weights.pkl.part").write_bytes(bytes(len(DATA) + 1))
    assert fetch("local", progress=False).read_bytes() == DATA


def test_an_interruption_leaves_nothing_that_is_taken_for_the_file(server, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(published.tqdm, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch("local", progress=False)
    assert files() == ["weights.pkl.part"]
    assert fetch("local", progress=False).read_bytes() == DATA


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_checks_the_digest_if_one_is_published(server, monkeypatch, algorithm):
    url = PUBLISHED["local"].url
    publish(monkeypatch, url, digest=f"{algorithm}:{'0' * 32}")
    assert f"its digest isn't {algorithm}:000" in refused()
    assert files() == []
    publish(monkeypatch, url, digest=f"{algorithm}:{hashlib.new(algorithm, DATA).hexdigest()}")
    assert fetch("local", progress=False).read_bytes() == DATA


def test_tells_what_the_server_says(server):
    server.status = 404
    assert "the server says 404 Not Found; or save" in refused()
    assert files() == []


def test_an_error_of_the_server_costs_nothing_of_what_is_there(server):
    server.cut = 300_000
    refused()
    server.status, server.cut = 503, None
    assert "503 Service Unavailable" in refused()
    server.status = 200
    assert fetch("local", progress=False).read_bytes() == DATA
    assert sum(server.sent) < 1.5 * len(DATA)


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/json"])
def test_a_message_is_not_the_file(server, kind):
    server.content_type = kind
    assert f"the server sends {kind} in its place" in refused()
    assert files() == []


def test_a_folder_is_fetched_file_by_file(server, monkeypatch):
    """The small ones first. A server may send settings as text."""
    url = PUBLISHED["local"].url
    publish(monkeypatch, url, others=("unet/config.json", "model_index.json"))
    server.content_type = "text/plain"
    assert "the server sends text/plain in its place" in refused()
    assert files() == ["model_index.json", "unet"]
    server.content_type = "application/octet-stream"
    assert fetch("local", progress=False) == folder("local")
    assert (folder("local") / "unet" / "config.json").read_bytes() == DATA
    assert len(server.asked) == 4


def test_tells_that_there_is_no_connection(server, monkeypatch):
    publish(monkeypatch, "http://127.0.0.1:1/weights.pkl")
    message = refused()
    assert "Connection refused" in message
    assert len(message) < 300
    path = folder("local") / "weights.pkl"
    path.write_bytes(DATA)  # by hand
    assert fetch("local") == path


def test_tells_of_a_folder_that_cannot_be_made(server, home):
    (home / ".cache").write_text("")
    assert "Not a directory" in refused() or "File exists" in refused()


def test_needs_pooch_for_downloads_alone(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert 'pip install "pulse_jax[convert]"' in refused()
    folder("local").mkdir(parents=True)
    (folder("local") / "weights.pkl").write_bytes(DATA)
    assert fetch("local").read_bytes() == DATA


def test_google_drive_is_for_browsers(home):
    by_hand = [name for name, model in PUBLISHED.items() if model.by_hand]
    assert len(by_hand) == 5
    for name in by_hand:
        assert "browsers only" in refused(name)
    assert not any(home.iterdir())


def test_an_unknown_name_is_told_with_the_known_ones():
    near = r"no published generator 'ffhq2048'; did you mean ffhq1024 or "
    with pytest.raises(ValueError, match=near):
        fetch("ffhq2048")
    with pytest.raises(ValueError, match=r"no published generator 'zebra': they are ffhq1024, "):
        fetch("zebra")


def test_the_table_in_the_documentation_is_this_one():
    _, _, below = PAGE.partition("| name | domain | side | architecture | file | licence |\n")
    table, _, _ = below.partition("\n\n")
    rows = [row.split(" | ") for row in re.findall(r"^\| `(.*) \|$", table, re.MULTILINE)]
    assert [row[0].rstrip("`") for row in rows] == list(PUBLISHED)
    for (_, *cells), model in zip(rows, PUBLISHED.values(), strict=True):
        assert cells == [
            model.domain,
            str(model.resolution),
            model.architecture,
            f"[{model.file}]({model.url})",
            f"[{model.licence}]({model.page})",
        ]


def test_names_files_and_addresses_agree():
    for name, model in PUBLISHED.items():
        assert name.endswith(str(model.resolution))
        assert model.resolution in (64, 256, 512, 1024)
        assert re.fullmatch(r"https://\S+", model.url)
        if not model.by_hand:
            assert model.url.endswith(f"/{model.file}")
        assert model.file not in model.others
    assert len({model.url for model in PUBLISHED.values()}) == len(PUBLISHED)
