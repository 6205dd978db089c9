"""Make the picture of docs/web.md: the web page after a search, as Chromium shows it.

    pip install playwright && playwright install chromium
    python experiments/web_picture.py --output=docs/figures/web.png

The page's first example, which is one of the command's default generator, is upsampled with what
the form begins with. The best result is chosen. It takes as long as the command, and each time it
finds other images, for the page has no seed.
"""

import shutil
import subprocess
import sys
import tempfile

from common import door

from absl import flags
from playwright.sync_api import sync_playwright

from pulse_jax.files import expanded

FLAGS = flags.FLAGS
flags.DEFINE_string("output", "runs/web.png", "The picture is written into this file.")
flags.DEFINE_integer("width", 1200, "The page is so many pixels wide.", lower_bound=300)
flags.DEFINE_integer("height", 1150, "So many pixels of its height are shown.", lower_bound=300)
flags.DEFINE_bool("dark", False, "The page is dark.")
LONGEST = 600_000  # milliseconds


def main():
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pulse_jax.web", "--port=0", f"--output_dir={folder}"]
        with door.child(command, stdout=subprocess.PIPE, text=True) as server:
            address = server.stdout.readline().split()[0]
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=shutil.which("chromium"), args=["--no-sandbox"]
                )
                take_picture(browser, address)
                browser.close()
    return FLAGS.output


def take_picture(browser, address):
    """Search on the page at this address, and write what it shows."""
    page = browser.new_page(
        viewport={"width": FLAGS.width, "height": FLAGS.height},
        color_scheme="dark" if FLAGS.dark else "light",
    )
    page.set_default_timeout(LONGEST)
    page.goto(address)
    page.locator("tbody tr").first.click()  # of the examples
    page.locator("#picture img").wait_for()
    page.get_by_role("button", name="Upsample").click()
    page.locator("#run iframe").wait_for()
    page.locator("#results button", has_text="★").click()
    page.get_by_text("Chosen:").wait_for()
    path = expanded(FLAGS.output, "--output")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path)


if __name__ == "__main__":
    door.run(main)
