"""README and docs/: their code runs, their links lead somewhere, their commands and flags exist."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import pulse_jax
from pulse_jax import __main__ as command
from pulse_jax import convert, put_back
from pulse_jax.align import __main__ as align
from pulse_jax.generators import checkpoint
from pulse_jax.web import __main__ as web

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
CARDS = sorted(ROOT.glob("checkpoints/*/README.md"))
LINEAR = "experiment_helpers:linear"
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
every_page_and_card = pytest.mark.parametrize(
    "page", [*PAGES, *CARDS], ids=lambda page: f"{page.parent.name}/{page.name}"
)


EXPERIMENTS = sorted(ROOT.glob("experiments/**/*.py"))
DEFINED = re.compile(r'DEFINE_\w+\(\s*"(\w+)"')
# A program with its arguments, which may go on in the next line of a text.
COMMAND = re.compile(
    r"\b(pulse_jax|pulse_jax_align|pulse_jax_convert|pulse_jax_put_back|pulse_jax_web|\w+\.py)((?:\s+(?!\S*(?:python|pulse_jax))[\w.:$/=,*+-]+)+)"
)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def prose(page):
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def run_python(page, quick=True):
    """One block after another, in one namespace, with few steps; returns the namespace.

    If `quick`, with a linear generator in place of a bundled one, which takes long to compile.
    """
    names = {}
    for code in blocks(page, "python"):
        code = code.replace("steps=100", "steps=2").replace("restarts=4", "restarts=2, steps=2")
        code = code.replace("transitions=100", "transitions=2").replace("draws=200", "draws=4")
        if quick:
            code = re.sub(r'load\("decoder\d+".*\)', f'load("{LINEAR}")', code)
            code = code.replace("Settings(", f'Settings(generator="{LINEAR}", ')
        exec(code, names)
    return names


@pytest.fixture
def small(quick, tmp_path, monkeypatch):
    """A current folder with small.png, an eighth of the generator's side."""
    folder = checkpoint.find(pulse_jax.Settings.generator)
    with Image.open(folder / "examples" / "face_01.png") as picture:
        picture.resize((4, 4) if quick else (16, 16)).save(tmp_path / "small.png")
    monkeypatch.chdir(tmp_path)


@every_page
def test_its_blocks_are_of_languages_that_are_tested(page):
    languages = re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)[::2]
    assert set(languages) <= {"bash", "bibtex", "python", "text"}
    assert page.read_text().count("```") == 2 * len(languages)


def test_the_readme_leads_to_all_pages_in_its_table():
    listed = re.findall(r"^\| \[docs/(\w+\.md)\]\(docs/\1\) \|", README.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in PAGES if page != README)


@every_page_and_card
def test_extras_are_installed_from_the_clone(page):
    """The package is on no index, where another of its name might be."""
    assert 'install "pulse_jax[' not in prose(page).partition("## Modules")[0]
    assert not any('install "pulse_jax[' in code for code in blocks(page, "bash"))


def test_the_tables_of_the_public_names_say_what_each_is():
    text = (DOCS / "api.md").read_text()
    assert re.findall(r"^\| `\w+` \| (.*: \||\w+\(.*\) \|)$", text, re.MULTILINE) == []


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 1000
    (library,) = blocks(README, "python")
    assert len(library.splitlines()) <= 10


@pytest.mark.parametrize(
    "quick", [pytest.param(False, marks=pytest.mark.slow, id="whole"), pytest.param(True, id="")]
)
def test_the_readmes_python_runs(small, capsys, quick):
    names = run_python(README, quick)
    assert names["image"].ndim == 3 and (quick or names["image"].shape == (128, 128, 3))
    assert len(capsys.readouterr().out.splitlines()) == len(names["results"].rows) == 2


@pytest.mark.parametrize(
    "quick", [pytest.param(False, marks=pytest.mark.slow, id="whole"), pytest.param(True, id="")]
)
def test_the_librarys_python_runs(small, quick):
    names = run_python(DOCS / "library.md", quick)
    assert len(names["pictures"]) == 16 and names["info"].l2.shape == (16, 2)
    for leaf, one in zip(*map(jax.tree.leaves, (names["walk"], names["one"])), strict=True):
        assert leaf.shape == (16, *one.shape)
    for leaf, one in zip(*map(jax.tree.leaves, (names["near"], names["one"])), strict=True):
        assert leaf.shape == one.shape


@pytest.mark.parametrize("quick", [True])
def test_the_posteriors_python_runs(small):
    pytest.importorskip("blackjax")
    names = run_python(DOCS / "posterior.md")
    assert names["faces"].shape == (8, 4, 32, 32, 3) and names["std"].shape == (32, 32, 3)


def test_the_example_of_a_fault_runs(capsys):
    run_python(DOCS / "upstream.md")
    assert jax.__version__ in capsys.readouterr().out


def test_the_example_of_a_generator_runs(tmp_path, monkeypatch):
    code, diffusion = blocks(DOCS / "generators.md", "python")
    (tmp_path / "my_module.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    generator, _ = pulse_jax.load("my_module:make")
    assert generator.resolution == 16
    exec(diffusion, {})
    generator, _ = pulse_jax.load("mine", solver="flow:2")
    assert generator.resolution == 8


def test_the_examples_of_plug_ins_run(tmp_path, monkeypatch):
    (code,) = blocks(DOCS / "plug_ins.md", "python")
    (tmp_path / "my_parts.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    settings = pulse_jax.Settings(
        scheme="my_parts:shell",
        opt_name="my_parts:momentum:0.9",
        operator="my_parts:gamma:2.2,bicubic",
        loss_str="100*L2+10*my_parts:huber:0.05",
    )
    image = jnp.full((8, 8, 3), 0.5)
    lr = settings.degradation()(2)(image)
    np.testing.assert_allclose(lr, 0.5**2.2, rtol=1e-5)
    assert settings.loss()(lr, lr + 0.1, None) > settings.loss()(lr, lr, None)
    z, optimizer = jnp.ones((2, 4)), settings.optimizer()
    gradient = jnp.arange(8.0).reshape(2, 4)
    updates, _ = optimizer.update(gradient, optimizer.init(z), z, value=1.0)
    np.testing.assert_allclose(jnp.sum((z + updates) ** 2, axis=1), 4, rtol=1e-5)


def test_every_page_with_python_is_run():
    with_python = {page.name for page in PAGES if blocks(page, "python")}
    assert with_python == {
        *("README.md", "library.md", "posterior.md", "generators.md", "plug_ins.md", "upstream.md")
    }


def test_the_api_page_is_fresh():
    sys.path.insert(0, str(DOCS))
    try:
        import make_api
    finally:
        sys.path.remove(str(DOCS))
    assert make_api.PAGE.read_text() == make_api.page(), "run python docs/make_api.py"
    _, parts, rest = make_api.page().partition("## Parts by name")
    assert parts and "|  |" not in rest  # everything is described


@pytest.mark.slow
def test_the_readmes_commands_run(tmp_path):
    """As they stand, in a copy of the repository, but that other packages are those of this Python.

    The tests are only collected.
    """
    continued = [script for script in blocks(DOCS / "command.md", "bash") if "init_from" in script]
    assert len(blocks(README, "bash")) == 2 and len(continued) == 1
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("pulse_jax", "checkpoints", "docs", "experiments", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "pulse_jax" not in path.name:
            (packages / path.name).symlink_to(path)
    environment = os.environ | {
        "HOME": str(tmp_path),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say yes
        "PYTHONPATH": str(packages),
        "PYTEST_ADDOPTS": "--collect-only --quiet",
    }
    quick = tmp_path / "pulse_jax.sh"
    quick.write_text('exec .venv/bin/pulse_jax --restarts=3 --loss_str=100*L2 "$@" --steps=6\n')
    for script in [*blocks(README, "bash"), *continued]:
        script = re.sub("^pulse_jax ", "bash pulse_jax.sh ", script, flags=re.MULTILINE)
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "runs" / "index.html").is_file()
    for run in ("first", "near", "finer"):
        assert (tmp_path / run / "face_04" / "hr_03.png").is_file()


def test_the_public_names_are_told():
    in_code = set(re.findall(r"`(\w+)`", (DOCS / "api.md").read_text()))
    assert set(pulse_jax.__all__) <= in_code
    for name in pulse_jax.__all__:
        value = getattr(pulse_jax, name)
        assert isinstance(value, dict | tuple) or inspect.getdoc(value)


def anchors(page):
    """Of its headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page_and_card
def test_its_links_and_pictures_lead_to_files(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_leads_to_every_page():
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(
        re.findall(r"\]\(([^)]+)\)", README.read_text())
    )


def flags_of(program):
    """The flags of a command, or of an experiment and what it imports."""
    if program == "pulse_jax":
        return {*command.FLAGS, "help", "version"}
    if program == "pulse_jax_align":
        return {*align.parse(["pulse_jax_align", "picture"])[0], "help"}
    if program == "pulse_jax_put_back":
        return {*put_back.parse(["pulse_jax_put_back", "folder"])[0], "help"}
    if program == "pulse_jax_web":
        return {*web.parse(["pulse_jax_web"]), "help"}
    if program == "pulse_jax_convert":
        return {*convert.parse(["pulse_jax_convert", "source"])[0], "help"}
    (script,) = ROOT.glob(f"experiments/{program}")
    imported = [p for p in EXPERIMENTS if re.search(rf"\b{p.stem}\b", script.read_text())]
    return {flag for path in (script, *imported) for flag in DEFINED.findall(path.read_text())}


@every_page_and_card
def test_its_commands_exist_with_their_flags(page):
    text = re.sub(r"\\\n\s*", "", page.read_text())  # a backslash continues a line
    for program, arguments in COMMAND.findall(text):
        for flag in re.findall(r"(?<!\S)--(\w+)", arguments):
            known = flags_of(program)
            assert {flag, flag.removeprefix("no")} & known, (program, flag)


@every_page_and_card
def test_the_flags_that_it_speaks_of_exist(page):
    known = {*command.FLAGS, *flags_of("pulse_jax_web"), "help"}.union(
        *(DEFINED.findall(p.read_text()) for p in EXPERIMENTS)
    )
    others = {"xla_cpu_multi_thread_eigen"}
    for flag in set(re.findall(r"`--(\w+)", prose(page))) - others:
        assert {flag, flag.removeprefix("no")} & known, flag
