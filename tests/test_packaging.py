"""The package is installed in each way that people use, and must find its bundled generators."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUNDLED = sorted(spec.parent.name for spec in ROOT.glob("checkpoints/*/spec.json"))
LOAD_BUNDLED = f"""
import pulse_jax
print(pulse_jax.__file__)
for name in {BUNDLED}:
    pulse_jax.load(name)
"""


def run(*command, cwd):
    environment = os.environ | {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def output(*command, cwd):
    result = run(*command, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the sources, so that building leaves nothing in the real ones."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ["setup.cfg", "pyproject.toml", "README.md"]:
        shutil.copy(ROOT / name, folder)
    for name in ["pulse_jax", "checkpoints", "experiments", "tests"]:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation"]
    output(sys.executable, "-m", "pip", "wheel", *options, checkout, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture
def environment(tmp_path):
    """A virtual environment that shares the packages of the running one, all but pulse_jax."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    # Python ignores .pth files in a folder that it got from a .pth file; so an editable
    # installation of pulse_jax that is being tested can't be found here.
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_a_generator_is_bundled():
    assert "faces64" in BUNDLED


def test_the_wheel_leaves_out_the_pictures_of_model_cards_alone(checkout, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"pulse_jax/{name}" for name in files(checkout / "pulse_jax")}
    bundled = files(checkout / "checkpoints")
    pictures = {name for name in bundled if name.endswith(".png") and "/examples/" not in name}
    assert "faces64/search.png" in pictures and "faces64/examples/face_01.png" not in pictures
    expected |= {f"pulse_jax/checkpoints/{name}" for name in bundled - pictures}
    assert names == expected


def test_the_wheel_is_described_by_the_readme(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    assert "Description-Content-Type: text/markdown" in metadata
    assert (ROOT / "README.md").read_text() in metadata


def test_a_plain_checkout_finds_its_generators(checkout):
    found = output(sys.executable, "-c", LOAD_BUNDLED, cwd=checkout)
    assert Path(found.strip()) == checkout / "pulse_jax" / "__init__.py"


@pytest.mark.parametrize(
    "editable",
    [pytest.param(True, marks=pytest.mark.slow, id="editable"), pytest.param(False, id="wheel")],
)
def test_an_installation_finds_its_generators_from_any_folder(
    request, environment, tmp_path, checkout, editable
):
    options = ["--no-deps", "--no-build-isolation", "--ignore-installed"]
    what = ["-e", checkout] if editable else [request.getfixturevalue("wheel")]
    pip = [sys.executable, "-m", "pip", "--python", environment]
    output(*pip, "install", *options, *what, cwd=tmp_path)
    found = Path(output(environment, "-c", LOAD_BUNDLED, cwd=tmp_path).strip())
    assert found.is_relative_to(checkout if editable else environment.parents[1])

    result = run(environment.parent / "pulse_jax", "--input_dir=missing", cwd=tmp_path)
    assert result.returncode != 0
    assert "missing" in result.stderr and "Traceback" not in result.stderr


def test_importing_leaves_what_is_slow_to_import_for_later():
    code = (
        "import sys\nfrom pulse_jax import *\n"
        "print([name for name in ('orbax', 'pooch', 'torch') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
