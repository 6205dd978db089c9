"""The notebook: a document of its format, whose cells run one after another."""

import base64
import io
import json
import re
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

import pulse_jax

PATH = Path(__file__).parents[2] / "experiments" / "tour.ipynb"
CELLS = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def pictures(cell):
    """The stored pictures of a cell."""
    stored = [output["data"]["image/png"] for output in cell["outputs"] if "data" in output]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in stored]


def test_it_is_a_notebook_with_its_pictures():
    notebook = json.loads(PATH.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    assert PATH.stat().st_size < 3e6
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert len(code) + sum(cell["cell_type"] == "markdown" for cell in CELLS) == len(CELLS)
    for number, cell in enumerate(code, 1):  # all were run once, from top to bottom
        assert cell["execution_count"] == number
        source = "".join(cell["source"])
        draws = bool(re.search(r"^(show\(|figure, )", source, re.MULTILINE))
        assert len(pictures(cell)) == draws, source
    for picture in (picture for cell in code for picture in pictures(cell)):
        low, high = picture.convert("L").getextrema()
        assert min(picture.size) >= 100 and high - low > 100  # something is in it


def test_what_it_names_exists():
    for code in CODE:
        compile(code, "tour", "exec")
    assert set(re.findall(r"pulse_jax\.(\w+)", "\n".join(CODE))) <= set(dir(pulse_jax))
    prose = "".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        assert (PATH.parent / link).is_file()


@pytest.mark.slow
def test_its_cells_run(capsys):
    """As in a notebook: in one namespace, and the last expression of a cell is shown."""
    matplotlib.use("agg")
    names, shown = {}, []
    for code in CODE:
        lines = code.rstrip().split("\n")
        if lines[-1].startswith("show("):
            lines[-1] = f"shown = {lines[-1]}"
        exec("\n".join(lines), names)
        if "shown" in names:
            shown.append(names.pop("shown"))
    assert all(isinstance(picture, Image.Image) for picture in shown) and len(shown) == 6
    table = names["table"]
    assert table["none"][1] > 0.02 and table["rescale"][1] < 1e-5  # off the sphere
    assert max(l2 for l2, _ in table.values()) < 0.02
    assert len(capsys.readouterr().out.splitlines()) == 3
