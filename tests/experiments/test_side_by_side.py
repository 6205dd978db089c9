"""Generators of unlike kinds, compared on the same small pictures."""

import pytest
from experiment_helpers import complaints, read_table, run_experiment

from pulse_jax import images


def test_what_can_not_be_compared_is_told(tmp_path):
    ends = {
        "--generators=": "--generators= names nothing",
        "--generators=faces63": "--generators=faces63: it is no file",
        "--restarts=1": "--restarts=1: diversity takes at least 2",
    }
    each = (f"{flag} --workdir={number}" for number, flag in enumerate(ends))
    lines = complaints("side_by_side", *each, cwd=tmp_path)
    for line, told in zip(lines, ends.values(), strict=True):
        assert line.startswith("side_by_side: ") and told in line


@pytest.mark.slow
def test_each_generator_has_a_row_and_its_results(tmp_path):
    """The decoder makes blurred faces of its own side, which are far from drawn ones."""
    names = ["decoder64", "plug_in_decoder:make:200:64:50"]
    sizes = ["--inputs=2", "--restarts=2", "--train_steps=5", "--workdir=results"]
    result = run_experiment("side_by_side", f"--generators={','.join(names)}", *sizes, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = read_table(tmp_path / "results" / "table.csv")
    assert [row["generator"] for row in rows] == [*names, "drawn faces"]
    sharp, blurred = (float(row["sharpness"].split()[0]) for row in rows[:2])
    assert sharp > 1.5 * blurred
    picture = images.load_image(tmp_path / "results" / "pictures.png")
    assert picture.shape[0] > 2 * 64
