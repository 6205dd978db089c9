"""The page of a run: what it shows, that it needs nothing else, how it looks in a browser."""

import base64
import html
import html.parser
import io
import json
import re
import shlex
import shutil
import subprocess
import urllib.parse
import zipfile
from functools import partial

import numpy as np
import pytest
from absl.testing import flagsaver
from command_helpers import contents, fails, read_rows, write_picture
from PIL import Image

from pulse_jax import __main__ as command
from pulse_jax import images
from pulse_jax.upsampling import curves, report, results

NAMES = ("a.png", "<img src=x onerror=alert(1)> & é.png")


@pytest.fixture
def run(run):
    return partial(run, "--steps=12", "--restarts=4", generator="experiment_helpers:linear")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """For what the first test that takes `output` has made."""
    return tmp_path_factory.mktemp("report") / "kept"


@pytest.fixture
def output(run, tmp_path, monkeypatch, kept):
    """Of two pictures, the first of them dark; of each, restart 2 is not finite."""
    if kept.exists():
        shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
        return tmp_path / "out"
    for seed, name in enumerate(NAMES):
        write_picture(tmp_path / "in" / name, seed=seed)
    path = tmp_path / "in" / NAMES[0]
    images.save_image(path, images.load_image(path) / 6)
    with monkeypatch.context() as patch:
        save_restart = results.save_restart

        def break_second(picture, restart, row, hr, lr, latents):
            if restart.number == 2:
                row |= {"l2": np.nan, "l2_saved": np.nan, "loss": np.nan, "status": "not finite"}
                row["l2_relative"] = np.nan
                hr = lr = hr * np.nan
            save_restart(picture, restart, row, hr, lr, latents)

        patch.setattr(results, "save_restart", break_second)
        output = run(f"--input_dir={tmp_path / 'in'}", "--save_video")
    shutil.copytree(tmp_path, kept)
    return output


def finite_rows(output, picture):
    """Of a picture, the best first."""
    rows = [row for row in read_rows(output) if row["image"] == picture and row["restart"] != "2"]
    return sorted(rows, key=lambda row: float(row["l2_saved"]))


class Elements(html.parser.HTMLParser):
    """All elements of a page: (tag, attributes)."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def values(self, *names):
        return [x[name] for _, x in self.found for name in names if x.get(name)]


def decoded(source):
    kind, _, content = source.partition(";base64,")
    assert kind in ("data:image/png", "data:image/webp", "data:video/mp4")
    return base64.b64decode(content)


def test_the_page_is_complete_in_itself(output):
    page = (output / "index.html").read_text(encoding="utf-8")
    elements = Elements(page)
    shown = {decoded(source) for source in elements.values("src", "data-lr")}
    for folder in (output / NAMES[0][:-4], output / NAMES[1][:-4]):
        kept = [p for p in folder.iterdir() if p.suffix in (".png", ".webp", ".mp4")]
        assert {p.read_bytes() for p in kept if p.name != "grid.png"} <= shown
        assert (folder / "l2.svg").read_text().split("</style>")[1] in page
    links = [link for link in elements.values("href") if not link.startswith("#")]
    assert all((output / urllib.parse.unquote(link)).is_dir() for link in links)
    text = re.sub(r'"data:[^"]*"|"http://www\.w3\.org/2000/svg"', "", page)  # the latter is a name
    text = text.replace("url(#stretch)", "")
    assert len(links) == 2 and "://" not in text and "url(" not in text and "@import" not in text
    assert ("img", {"src": "x"}) not in elements.found and "onerror=alert(1)&gt;" in page
    for name, value in json.loads((output / "config.json").read_text()).items():
        assert f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" in page


def test_restarts_come_best_first_and_what_is_not_finite_last(output):
    elements = Elements((output / "index.html").read_text(encoding="utf-8"))
    names = [x["data-name"] for _, x in elements.found if "data-file" in x]
    for i, picture in enumerate(sorted(NAMES)):
        best_first = [f"restart {row['restart']}" for row in finite_rows(output, picture)]
        assert names[5 * i : 5 * i + 5] == ["input", *best_first, "bicubic"]
    assert sum("disabled" in attributes for _, attributes in elements.found) == 2


def test_the_page_of_a_long_run_refers_to_its_files(run, output, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "EMBEDDED", 1000)
    run(f"--input_dir={tmp_path / 'in'}", "--save_video")
    elements = Elements((output / "index.html").read_text(encoding="utf-8"))
    sources = elements.values("src", "data-lr")
    assert len(sources) == 2 * (4 + 2 * 3)
    for source in sources:
        assert (output / urllib.parse.unquote(source)).is_file()
    lazy = [x.get("loading") for tag, x in elements.found if tag == "img" and x.get("src")]
    assert set(lazy) == {"lazy"}


def test_what_a_word_means_is_told_where_it_stands(output):
    page = (output / "index.html").read_text(encoding="utf-8")
    elements = Elements(page)
    meanings = {x["id"] for _, x in elements.found if "popover" in x}
    asked = elements.values("popovertarget")
    assert set(asked) == meanings
    assert min(asked.count(word) for word in ("restart", "l2", "status", "eps")) >= 2
    assert "It is 0.001 in this run" in page and "100*L2+0.05*GEOCROSS" in page
    assert "The results are inventions." in page


def test_dark_pictures_have_a_stretch(output):
    elements = Elements((output / "index.html").read_text(encoding="utf-8"))
    sections = [x for tag, x in elements.found if x.get("class") in ("picture", "stretch")]
    assert [x.get("data-folder", "stretch") for x in sections] == [NAMES[1][:-4], "a", "stretch"]


def test_the_command_repeats_the_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_picture(tmp_path / "in" / "a.png")
    output = run(f"--input_dir={tmp_path / 'in'}", "--restarts=2", "--lr_schedule=fixed", seed=None)
    page = (output / "index.html").read_text(encoding="utf-8")
    words = shlex.split(html.unescape(re.search("<code>(.*)</code>", page)[1]))
    assert words[0] == "pulse_jax" and words[-1] == "--output_dir=repeated"
    assert "--lr_schedule=fixed" in words and "--batch_size=4" in words
    with flagsaver.flagsaver():
        command.run(command.parse([*words, f"--cache_dir={tmp_path / 'cache'}"]))
    assert contents(tmp_path / "repeated" / "a") == contents(output / "a")


def test_pictures_that_failed_are_on_the_page_with_the_reason(run, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png", seed=1)
    write_picture(tmp_path / "in" / "b.png", seed=2)
    (tmp_path / "in" / "<b>.png").write_bytes(b"")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").write_text("a file where the folder should be")
    with pytest.raises(SystemExit):
        run(f"--input_dir={tmp_path / 'in'}")
    told = [line[11:] for line in capsys.readouterr().err.splitlines() if "pulse_jax: " in line]
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<h2>2 failures</h2>" in page and "1 picture, " in page
    assert len(told) == 2 and all(f"<li>{html.escape(line)}</li>" in page for line in told)
    fails(run, capsys, f"--input_dir={tmp_path / 'in'}", "--eps=2")  # and stays as it is
    assert (tmp_path / "out" / "index.html").read_text(encoding="utf-8") == page


def test_curves():
    values = np.full((3, 5), np.nan)
    values[0] = [1, 0.1, 0.01, 1e-3, 1e-4]
    values[1, :2] = [2, 0.5]
    drawing = curves.draw(values, "l2", best=0, goal=1e-3)
    lines = drawing.split("<polyline")[1:]
    points = [
        [p.split(",") for p in line.split('points="')[1].split('"')[0].split()] for line in lines
    ]
    assert [len(line) for line in points] == [2, 0, 5] and 'class="best"' in lines[-1]
    heights = [float(y) for _, y in points[-1]]
    assert np.ptp(np.diff(heights)) < 0.2 and heights[0] < heights[-1]  # a logarithmic axis
    assert f'class="goal" d="M48 {heights[3]:.1f}' in drawing
    assert curves.draw(np.pad(values, ((0, 0), (0, 9)), constant_values=np.nan), "l2", 0, 1e-3) == (
        drawing
    )
    for empty in (values[2:], np.zeros((1, 1)), np.ones((2, 1))):
        assert "nan" not in curves.draw(empty, "loss", best=0)


# --- In a browser. ---

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome here")
# What a person would try; the page's title then tells what came of it.
VISIT = """<script>
addEventListener("load", async () => {
  const picture = document.querySelector(".picture"), told = {};
  const images = [...document.images].filter(image => !image.closest("details"));
  const find = selector => picture.querySelector(selector);
  const choose = (select, value) => {
    select.value = value;
    select.dispatchEvent(new Event("change"));
  };
  told.packs = [...document.querySelectorAll(".pack")].map(button => button.checkVisibility());
  told.broken = images.filter(image => !image.naturalWidth).length;
  told.overflow = document.documentElement.scrollWidth - innerWidth;
  told.shown = find("span.right").textContent;
  const [slider, left] = [find("input"), find("img.left")];
  told.clips = [getComputedStyle(left).clipPath];
  slider.value = 20;
  slider.dispatchEvent(new Event("input"));
  told.clips.push(getComputedStyle(left).clipPath);
  slider.focus();
  told.focus = document.activeElement === slider;

  const [best, second] = picture.querySelectorAll("[data-lr]");
  second.click();
  told.second = second.dataset.name;
  told.label = find("span.right").textContent;
  told.result = find("img.right").src === second.querySelector("img").src;
  told.lr = find(".lr").src === second.dataset.lr;
  told.pressed = [...picture.querySelectorAll("[aria-pressed=true]")].map(b => b.dataset.name);
  told.download = find(".download").download;
  told.source = find(".download").href;
  slider.value = 0;
  choose(find("select.left"), 1);
  told.against = find("img.left").src === best.querySelector("img").src;
  told.clips.push(getComputedStyle(left).clipPath);

  const full = document.querySelector("dialog"), stage = find(".stage"), home = stage.parentNode;
  find(".fullview").click();
  told.full = [full.open, full.contains(stage), left.getBoundingClientRect().width];
  stage.querySelector(".fullview").click();  // closes it
  await new Promise(resolve => full.addEventListener("close", resolve));
  told.back = home.firstElementChild === stage;

  find("[popovertarget=l2]").click();
  told.meaning = document.getElementById("l2").matches(":popover-open");
  document.getElementById("l2").hidePopover();
  const dark = document.querySelector(".stretch");
  const filter = () => getComputedStyle(dark.closest(".picture").querySelector(".input")).filter;
  told.stretch = [filter()];
  dark.click();
  told.stretch.push(filter());

  const bytes = new Uint8Array(await (await pack([picture])).arrayBuffer());
  told.zip = btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""));
  const bar = document.querySelector("nav");
  told.hidden = [...document.querySelectorAll("section")].map(section => {
    location.hash = section.id;
    const heading = section.firstElementChild;
    return bar.getBoundingClientRect().bottom - heading.getBoundingClientRect().top;
  });
  scrollTo(0, 0);

  told.columns = {};
  for (const head of document.querySelectorAll("th")) for (const order of ["up", "down"]) {
    head.firstChild.click();
    told.columns[head.textContent + " " + order] =
      [head.ariaSort, ...[...document.querySelectorAll("tbody tr")].map(
        row => row.cells[head.cellIndex].dataset.value)];
  }
  const difference = find(".difference");
  difference.style = "position: fixed; z-index: 9; left: 0; top: 0; width: 80px";
  difference.classList.add("pixels");
  document.body.append(difference);
  told.background = getComputedStyle(document.body).backgroundColor;
  document.title = JSON.stringify(told);
});
</script>"""


def browse(page, folder, width, dark, visit=VISIT):
    """(what the visit told, a screenshot) of a page in a window."""
    page = page.with_name("visited.html")
    content = page.with_name("index.html").read_text(encoding="utf-8")
    page.write_text(content.replace(' loading="lazy"', "") + visit, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += ["--hide-scrollbars", f"--window-size={width},1400", "--virtual-time-budget=10000"]
    options += [f"--user-data-dir={folder / 'profile'}", "--force-device-scale-factor=1"]
    options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    shot = folder / f"{width}_{'dark' if dark else 'light'}.png"
    command = [BROWSER, *options, f"--screenshot={shot}", "--dump-dom", page.as_uri()]
    # On a busy machine, the browser's own clock may run out before the page has packed its results.
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        title = done.stdout.split("<title>")[1].split("</title>")[0]
        if title.startswith("{"):
            break
    return json.loads(html.unescape(title)), Image.open(shot).convert("RGB")


@in_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_a_visit(output, tmp_path, width, dark):
    told, shot = browse(output / "index.html", tmp_path, width, dark)
    first = sorted(NAMES)[0]
    best, second = (f"restart {row['restart']}" for row in finite_rows(output, first)[:2])
    assert told["broken"] == 0 and told["overflow"] <= 0
    assert (told["shown"], told["second"], told["label"]) == (best, second, second)
    assert told["result"] and told["lr"] and told["focus"] and told["pressed"] == [second]
    # The share of the left image that is cut off: all, as long as nobody asks for it.
    assert [clip.split()[1] for clip in told["clips"]] == ["100%", "80%", "50%"]
    assert told["against"] and told["meaning"] and told["back"] and told["packs"] == 3 * [True]
    opened, within, size = told["full"]
    assert opened and within and size > 0.75 * width
    assert told["stretch"][0] == "none" and "brightness" in told["stretch"][1]
    assert max(told["hidden"]) <= 0  # no heading is behind the bar
    for name, (state, *values) in told["columns"].items():
        upwards = name.endswith("up")
        assert state == ("ascending" if upwards else "descending")
        if name.split()[0] in ("l2", "loss"):
            assert values[-2:] == ["nan", "nan"]
            numbers = [float(value) for value in values[:-2]]
            assert numbers == sorted(numbers, reverse=not upwards) and len(set(numbers)) > 1
    assert told["columns"]["picture up"][1] != told["columns"]["picture down"][1]
    brightness = np.mean([int(x) for x in told["background"][4:-1].split(",")])
    assert brightness < 60 if dark else brightness > 200

    # What is downloaded, one and all.
    folder = output / first[:-4]
    file = f"hr_{int(second.split()[1]):02d}.png"
    assert told["download"] == f"{folder.name}_{file}"
    assert decoded(told["source"]) == (folder / file).read_bytes()
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(told["zip"]))) as archive:
        assert archive.testzip() is None
        found = {name: archive.read(name) for name in archive.namelist()}
    kept = [*folder.glob("hr_*.png"), folder / "input.png", folder / "bicubic.png"]
    assert found == {f"{folder.name}/{path.name}": path.read_bytes() for path in kept}

    # The difference as it is seen is that of the files, times 8.
    number = int(second.split()[1])
    lr = images.load_image(folder / f"lr_{number:02d}.png")
    expected = np.minimum(8 * np.abs(lr - images.load_image(folder / "input.png")), 1)
    for i in range(4):
        for j in range(4):
            seen = shot.getpixel((20 * j + 10, 20 * i + 10))
            assert np.abs(np.array(seen) / 255 - expected[i, j]).max() < 0.02


@in_browser
def test_a_page_that_may_not_read_the_files_beside_it_offers_no_downloads_of_all(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(report, "EMBEDDED", 1000)
    write_picture(tmp_path / "in" / "a.png")
    page = run(f"--input_dir={tmp_path / 'in'}") / "index.html"
    visit = """<script>addEventListener("load", () => {
      const found = selector => [...document.querySelectorAll(selector)];
      const shown = selector => found(selector).map(x => x.checkVisibility());
      document.title = JSON.stringify([shown(".pack"), shown(".download")]);
    });</script>"""
    assert browse(page, tmp_path, 400, False, visit)[0] == [[False, False], [True]]
