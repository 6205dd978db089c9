"""A search of a diffusion model's noise: the compiled program, and the command."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_helpers import contents, read_rows, write_picture
from helpers import DATA

import pulse_jax
from pulse_jax import SCHEMES, build, operators
from pulse_jax.generators.diffusion import DiffusionModel, diffusion_generator
from pulse_jax.generators.diffusion.autoencoders import AutoencoderTiny
from pulse_jax.generators.diffusion.schedules import FlowSchedule
from pulse_jax.generators.diffusion.unet import UNet2DModel

DDPM, FLOW = DATA / "modern" / "ddpm_pipeline", DATA / "modern" / "flow"
UNET = UNet2DModel(
    8,
    (4, 8),
    ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    ("UpBlock2D", "AttnUpBlock2D"),
    in_channels=2,
    out_channels=2,
    norm_num_groups=2,
    attention_head_dim=4,
    layers_per_block=1,
)
DECODER = AutoencoderTiny(
    decoder_block_out_channels=(4, 4), num_decoder_blocks=(1, 1), latent_channels=2
)


def lowered_search(solver):
    """Ten steps of a search of two restarts, and what they are called with."""
    generator = diffusion_generator(DiffusionModel(UNET, FlowSchedule(), DECODER), solver)
    x, t = jnp.zeros((1, *UNET.noise_shape)), jnp.zeros(())
    shapes = {
        "network": jax.eval_shape(UNET.init, jax.random.key(0), x, t)["params"],
        "decoder": jax.eval_shape(DECODER.init, jax.random.key(0), x)["params"],
    }
    rng = np.random.default_rng(0)  # quicker than the modules' own parameters
    params = jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), shapes)
    loss = pulse_jax.losses.parse("100*L2", 1e-3)
    search = build(generator, operators.area(4), loss, SCHEMES["rescale"](optax.adam(0.1)))
    keys = jax.random.split(jax.random.key(1), 2)
    samples = jax.jit(jax.vmap(generator.sample))(keys)
    state = jax.jit(jax.vmap(search.init))(*samples)

    @jax.jit
    def run(params, target, state):
        def step(state, _):
            state, info = jax.vmap(search.step, (None, None, 0))(params, target, state)
            return state, info.loss

        return jax.lax.scan(step, state, length=10)

    inputs = params, jnp.full((4, 4, 3), 0.4), state
    return run.lower(*inputs), inputs


def test_convolutions_are_in_canonical_form():
    """The form that is fast in a loop. The program is read before XLA's compiler has seen it."""
    lowered, _ = lowered_search("flow:3")
    forms = re.findall(r"stablehlo.convolution.*dim_numbers = (\S.*), window", lowered.as_text())
    assert len(forms) > 30
    assert set(forms) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}


def test_a_single_step_is_not_computed_anew():
    """Several steps take one more pass through the network, in which they are, but for its end."""

    def passes(lowered):
        return lowered.as_text().count("stablehlo.convolution(")

    x, t = jnp.zeros((1, *UNET.noise_shape)), jnp.zeros(())
    params = jax.eval_shape(UNET.init, jax.random.key(0), x, t)
    one = passes(jax.jit(UNET.apply).lower(params, x, t))
    assert one > 10
    difference = passes(lowered_search("flow:2")[0]) - passes(lowered_search("flow:1")[0])
    assert difference == one - 1


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="reads the program of XLA's CPU compiler"
)
def test_a_search_and_its_convolutions():
    """They are in that form in the end too, and the loss falls."""
    lowered, inputs = lowered_search("flow:3")
    program = lowered.compile()
    labels = re.findall(r" convolution\(.*dim_labels=([^, ]+)", program.as_text())
    assert len(labels) > 30
    assert set(labels) == {"b01f_01io->b01f"}
    _, losses = program(*inputs)
    assert np.isfinite(losses).all()
    assert (losses[-1] < losses[0]).all()


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("solver", ["flow:2", "flow:2:linear"])
def test_memory_grows_with_one_network_not_with_the_steps(solver):
    def needed(steps):
        lowered, _ = lowered_search(solver.replace("2", str(steps)))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert needed(16) <= 1.2 * needed(2)


@pytest.fixture
def run(run, tmp_path):
    """The command with a picture, for two restarts of a flow model."""
    write_picture(tmp_path / "in" / "a.png")
    options = [f"--input_dir={tmp_path / 'in'}", "--solver=flow:2", "--restarts=2"]
    return functools.partial(run, *options, "--steps=12", generator=FLOW)


@pytest.mark.slow
def test_a_pipeline_is_searched(run):
    """In the quick tests, a search through the command is that of a denoiser in test_edm.py."""
    output = run()
    assert [row["status"] for row in read_rows(output)] == ["missed eps"] * 2
    config = json.loads((output / "config.json").read_text())
    assert (config["--solver"], config["--loss_str"]) == ("flow:2", "100*L2")
    with np.load(output / "a" / "latents.npz") as file:
        assert file["noise_0"].shape == (2, 1, 16, 16, 3)
    png = pulse_jax.images.load_image(output / "a" / "hr_01.png")
    assert png.shape == (16, 16, 3) and png.std() > 0


@pytest.mark.slow
def test_it_goes_on_where_it_was_cut_off(run, monkeypatch):
    run = functools.partial(run, "--solver=ddim:2", generator=DDPM)
    whole, stream = run(output="whole"), pulse_jax.stream

    def cut_off(*arguments, **options):
        for slots in stream(*arguments, **options):
            yield slots
            raise KeyboardInterrupt

    monkeypatch.setattr(pulse_jax, "stream", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(output="parts")
    monkeypatch.setattr(pulse_jax, "stream", stream)
    assert contents(run(output="parts") / "a") == contents(whole / "a")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--space=z", "--space=z: space is for StyleGANs: "),
        ("--solver=ddim:2", "solver=ddim:2 doesn't go with the model, but flow:8 does"),
        ("--solver=ddim:2:log", "--solver=ddim:2:log: the spacing 'log' is none of trailing"),
        ("--loss_str=100*L2+0.05*GEOCROSS", "GEOCROSS compares style vectors"),
    ],
)
def test_flags_that_it_has_no_use_for(run, argument, message):
    with pytest.raises(SystemExit) as exit:
        run(argument)
    assert message in str(exit.value)


def test_a_stylegan_takes_no_solver(run, generator):
    with pytest.raises(SystemExit) as exit:
        run(generator=generator)
    assert "--solver=flow:2: solver is for diffusion models: " in str(exit.value)
