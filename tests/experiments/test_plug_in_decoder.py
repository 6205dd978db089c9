"""The example of a generator that is no GAN: a linear decoder, searched by the command."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from plug_in_decoder import make

from pulse_jax.generators import checkpoint

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_its_samples_have_the_mean_and_the_spread_of_faces():
    generator, params = make(faces=100, side=16, d=50)
    latents, frozen = jax.vmap(generator.sample)(jax.random.split(jax.random.key(1), 2000))
    images = jax.vmap(generator.synthesize, (None, 0, 0))(params, latents, frozen)
    x = np.asarray(images).reshape(2000, -1)
    spread = (params["axes"] ** 2).sum(axis=0)
    assert np.abs(x.mean(axis=0) - params["mean"]).max() <= 5 * np.sqrt(spread.max() / 2000)
    assert np.abs(x.var(axis=0).sum() / spread.sum() - 1) <= 0.1
    products = params["axes"] @ params["axes"].T  # the axes are orthogonal
    assert np.abs(products - np.diag(np.diag(products))).max() <= 1e-3 * products.max()


@pytest.mark.slow
def test_the_command_upsamples_with_it(tmp_path):
    examples = checkpoint.find("faces64") / "examples"
    arguments = ["--generator=plug_in_decoder:make", f"--input_dir={examples}", "--seed=0"]
    arguments += [f"--output_dir={tmp_path / 'out'}", f"--cache_dir={tmp_path / 'cache'}"]
    subprocess.run(
        [sys.executable, "-m", "pulse_jax", *arguments],
        cwd=ROOT / "experiments",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        converged = [row["status"] == "converged" for row in csv.DictReader(file)]
    assert len(converged) == 32 and sum(converged) >= 16
