"""The picture of docs/web.md comes from one command."""

import shutil

import pytest
from experiment_helpers import run_experiment
from PIL import Image


@pytest.mark.slow
def test_the_page_is_shown_after_a_search(tmp_path):
    pytest.importorskip("playwright", reason="a browser is driven by Playwright")
    pytest.importorskip("gradio", reason="the page takes the extra web")
    if shutil.which("chromium") is None:
        pytest.skip("there is no Chromium")
    flags = "--output=shown.png", "--width=500", "--height=900", "--dark"
    result = run_experiment("web_picture", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "shown.png") as shown:
        assert shown.size == (500, 900)
        colours = shown.convert("RGB").quantize(32).getcolors()
    assert max(count for count, _ in colours) < 0.9 * 500 * 900  # it isn't empty
