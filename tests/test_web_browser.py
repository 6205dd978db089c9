"""The web page as its visitors see it: the command in a process of its own, and Chromium."""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from command_helpers import write_picture

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
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    yield process.stdout.readline().split(" is the page")[0], tmp_path / "web", process
    process.terminate()
    assert process.wait(60) is not None


def waits(condition, seconds=120):
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


@pytest.mark.slow
def test_a_visitor_gets_results_and_everything_to_download(browser, server, tmp_path):
    address, output, _ = server
    write_picture(tmp_path / "given" / "photo.png", 40)
    page, requests = browser.new_page(viewport={"width": 1400, "height": 1000}), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    upsample, stop = (page.get_by_role("button", name=name) for name in ("Upsample", "Stop"))
    upsample.click()
    page.get_by_text("there is no picture yet").wait_for()
    fill(page, tmp_path / "given" / "photo.png")
    page.get_by_label("square by hand").check()
    page.locator("#picture img").click()
    waits(lambda: page.get_by_label("X,Y,SIDE").input_value().endswith(",20"))
    upsample.click()
    page.locator("#run iframe").wait_for(timeout=120_000)
    assert "of 4 converged" in page.locator("#told").inner_text()
    assert page.locator("#results img").count() == 4 and stop.is_disabled()
    (folder,) = (output / "results").iterdir()
    assert len(list(folder.glob("photo/hr_*.png"))) == 4
    frame = page.frame_locator("#run iframe")
    frame.get_by_text("The results are inventions.").wait_for()
    with page.expect_download() as download:
        page.get_by_text("Download everything").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert f"{folder.name}/photo/put_back.png" in archive.namelist()
    own = (address, "data:", "blob:")
    assert [url for url in requests if not url.startswith(own)] == []
    if kept := os.environ.get("PULSE_JAX_SCREENSHOTS"):
        for width in (400, 1400):
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size({"width": width, "height": 1000})
                page.screenshot(path=Path(kept) / f"web_{width}_{scheme}.png", full_page=True)
    for path in ("/download/...zip", "/download/none.zip", "/results/../pictures", "/results/"):
        assert page.request.get(address + path).status == 404, path
    page.close()


@pytest.mark.slow
def test_stopping_and_closing_the_page_end_a_search_and_keep_its_results(browser, server, tmp_path):
    address, output, process = server
    write_picture(tmp_path / "given" / "photo.png", 40)

    def begun(count):
        """So many searches have a result."""
        found = {path.parent for path in (output / "results").glob("*/photo/hr_*.png")}
        return len(found) == count

    def begin():
        page = browser.new_page()
        page.goto(address)
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
    done = [len(list(p.glob("photo/hr_*.png"))) for p in (output / "results").iterdir()]
    assert all(0 < count < 32 for count in done)
    process.terminate()
    assert process.wait(60) is not None
    assert all((p / "index.html").is_file() for p in (output / "results").iterdir())
    third.close()
