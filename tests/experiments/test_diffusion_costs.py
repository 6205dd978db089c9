"""What diffusion models cost: a row for each solver, and the same search in diffusers."""

import importlib.util
import math

import pytest
from experiment_helpers import complaints, read_table, run_experiment
from test_benchmark import python

SMALL = "--families=flow 64", "--width=64", "--layers=1", "--repeats=1", "--workdir=results"


def test_a_family_that_is_none_is_told_in_one_line(tmp_path):
    family = "--families=gan 64"
    (line,) = complaints("diffusion_costs", "--width=64", always=[family], cwd=tmp_path)
    assert line.startswith(f"diffusion_costs: {family} is none of ddpm 64, ") and "\n" not in line


@pytest.mark.slow
def test_each_family_makes_images_of_its_side():
    code = """
import diffusion_costs as costs, jax
costs.FLAGS(["costs", "--width=64", "--layers=1"])
for name, (make, (solver, *_)) in costs.FAMILIES.items():
    model = make()
    generator = costs.diffusion_generator(model, solver)
    sample = jax.eval_shape(generator.sample, jax.random.key(0))
    image = jax.eval_shape(generator.synthesize, costs.random_params(model), *sample)
    assert image.shape == (int(name.split()[1]),) * 2 + (3,), name
"""
    python("-c", code)


@pytest.mark.slow
def test_each_solver_has_a_row(tmp_path):
    result = run_experiment("diffusion_costs", *SMALL, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = read_table(tmp_path / "results" / "table.csv")
    assert [row.pop("solver") for row in rows] == ["flow:1", "flow:8", "flow:8:linear"]
    assert [row.pop("family") for row in rows] == ["flow 64"] * 3
    assert [row["passes"] for row in rows] == ["2", "24", "8"]
    assert all(0 < float(value) < math.inf for row in rows for value in row.values())
    memory = [float(row["over the first"]) for row in rows]
    assert memory[0] == 1 and memory[1] < 1.5  # it doesn't grow with the steps


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("diffusers"), reason="diffusers isn't installed")
def test_the_search_with_diffusers_is_ours():
    """`compare` raises ValueError if errors differ. The network is a tiny one."""
    code = """
import diffusion_costs as costs
costs.FLAGS(["costs", "--width=64", "--layers=1", "--restarts=2", "--repeats=1"])
config, costs.FACTOR = costs.ddpm_config, 2
down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
small = {"down_block_types": down, "up_block_types": up, "sample_size": 16}
costs.ddpm_config = lambda side, widths: config(side, (32, 32)) | small
for steps in (1, 3):
    print(list(costs.compare(steps)))
"""
    assert "diffusers / ours" in python("-c", code)
