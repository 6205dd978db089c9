"""Folders of diffusers: all the forms that they have, and files that are damaged or hostile."""

import json
import pickle
import shutil
import tracemalloc

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import DATA

from pulse_jax.generators import checkpoint
from pulse_jax.generators.diffusion.autoencoders import AutoencoderTiny
from pulse_jax.generators.diffusion.schedules import FlowSchedule, NoiseSchedule, ScoreSchedule
from pulse_jax.generators.official import diffusers

MODERN = DATA / "modern"
WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"


@pytest.fixture(scope="module")
def eval_shape():
    """The shapes of a module's parameters are traced once for all files."""
    original, known = jax.eval_shape, {}

    def eval_shape(init, *inputs):
        if getattr(init, "__name__", "") != "init":
            return original(init, *inputs)
        if init.__self__ not in known:
            known[init.__self__] = original(init, *inputs)
        return known[init.__self__]

    return eval_shape


@pytest.fixture
def flow(tmp_path, monkeypatch, eval_shape):
    """A copy of a pipeline without an index."""
    monkeypatch.setattr(jax, "eval_shape", eval_shape)
    return shutil.copytree(MODERN / "flow", tmp_path / "flow")


def change(path, **values):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | values))


def same(params, others):
    return checkpoint.digest(params) == checkpoint.digest(others)


# --- Forms. ---


def test_old_names_of_attention_and_missing_settings(tmp_path):
    """As diffusers before 0.12 wrote them, here in the folder of the pipeline itself."""
    model, params = checkpoint.load_network(MODERN / "ddpm_pipeline")
    old = shutil.copytree(MODERN / "ddpm_oldnames", tmp_path / "old")
    shutil.copy(MODERN / "ddpm_pipeline" / "model_index.json", old)
    scheduler = {"_class_name": "DDPMScheduler", "variance_type": "fixed_small"}
    (old / "scheduler_config.json").write_text(json.dumps(scheduler))
    found, found_params = checkpoint.load_network(old)
    assert found == model
    assert same(found_params, params)


def test_old_names_of_a_decoder():
    folders = MODERN / "kl", MODERN / "kl_oldnames"
    one, other = (diffusers._read_module(at, diffusers.DECODERS, None, 4) for at in folders)
    assert one[0] == other[0] and same(one[1], other[1])


def test_half_precision_and_files_by_name(flow):
    """A file is read with the settings beside it, and the scheduler of its pipeline."""
    path = flow / "unet" / WEIGHTS
    arrays = safetensors.numpy.load_file(path)
    half = {name: array.astype("f2") for name, array in arrays.items()}
    other = path.with_name("diffusion_pytorch_model.fp16.safetensors")
    safetensors.numpy.save_file(half, other)
    model, params = checkpoint.load_network(other)
    assert model.schedule == FlowSchedule()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("f4")}
    kernel = arrays["conv_in.weight"].astype("f2").astype("f4").transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["network"]["conv_in"]["kernel"], kernel)


def test_a_latent_pipeline(flow):
    """Its decoder makes the images, here eight times as large."""
    change(flow / "unet" / CONFIG, in_channels=4, out_channels=4)
    path = flow / "unet" / WEIGHTS
    arrays = safetensors.numpy.load_file(path)
    arrays["conv_in.weight"] = np.ones((12, 4, 3, 3), np.float32)
    arrays["conv_out.weight"] = np.ones((4, 12, 3, 3), np.float32)
    arrays["conv_out.bias"] = np.zeros(4, np.float32)
    safetensors.numpy.save_file(arrays, path)
    shutil.copytree(MODERN / "tiny", flow / "vae")
    model, params = checkpoint.load_network(flow)
    assert isinstance(model.decoder, AutoencoderTiny)
    assert set(params) == {"network", "decoder"}
    generator, params = checkpoint.load(flow, solver="flow:1")
    assert (generator.resolution, generator.channels) == (128, 3)
    latents, frozen = jax.eval_shape(generator.sample, jax.random.key(0))
    assert latents["noise_0"].shape == (1, 16, 16, 4)
    image = jax.eval_shape(generator.synthesize, params, latents, frozen)
    assert image.shape == (128, 128, 3)

    shutil.rmtree(flow / "vae")
    (flow / "model_index.json").write_text(json.dumps({"unet": [], "vae": []}))
    with pytest.raises(ValueError, match=r"^\S+vae/config.json: can't be read: No such file"):
        checkpoint.load_network(flow)


# --- Damaged and hostile files. ---

NESTED = "[" * 10**5
SIZES = {"block_out_channels": [32768, 32768], "sample_size": 4096}
BAD_SETTINGS = [
    ({"_class_name": "UNet2DConditionModel"}, "describes a 'UNet2DConditionModel', not a UNet2D"),
    ({"act_fn": "mish"}, "act_fn = 'mish' is not supported, only 'silu'"),
    ({"down_block_types": ["DownBlock2D", "KDownBlock2D"]}, "got 'KDownBlock2D'"),
    ({"down_block_types": ["DownBlock2D"]}, "down_block_types are 1 for 2 block_out_channels"),
    ({"sample_size": None}, "sample_size = None is not supported"),
    ({"sample_size": [16, 32]}, "the network isn't square, which it must be: its sample_size"),
    ({"sample_size": 15}, "sample_size = 15 must be a multiple of 2, up to 4096"),
    ({"layers_per_block": 10**4}, "has 144 entries for 10000 layers in each block"),
    ({"layers_per_block": 10**9}, "layers_per_block = 1000000000 is not supported"),
    ({"norm_eps": float("nan")}, "norm_eps = nan is not supported"),
    ({"time_embedding_type": "learned"}, "time_embedding_type must be positional or fourier, got"),
    ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift must be default or scale"),
    ({"upsample_type": None}, "upsample_type = None is not supported"),
    ({"norm_num_groups": 5}, ""),
    ({"norm_num_groups": 0}, ""),
    ({"block_out_channels": [[12]]}, "block_out_channels is neither a number nor a short text"),
    (SIZES, "where the settings lead to"),
    ({"attention_head_dim": 5}, ""),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_settings_that_no_network_here_has(flow, settings, message):
    change(flow / "unet" / CONFIG, **settings)
    assert message in refused(flow, flow / "unet")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "for a 'EDMEulerScheduler' have no solver here"),
        ({"_class_name": "DDIMScheduler", "timestep_type": "continuous"}, "timestep_type = 'cont"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_max": 0}, "sigma is from 0.01 to 0"),
        ({"_class_name": ["x"]}, "have no solver here"),
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting = True is not supported"),
        ({"shift": 0}, "shift must be above 0, got 0"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps = 'many' is not supported"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be from 2 to 100000, got 0"),
    ],
)
def test_schedules_that_have_no_solver(flow, settings, message):
    path = flow / "scheduler" / "scheduler_config.json"
    change(path, **settings)
    assert message in refused(flow, path)


@pytest.mark.parametrize(
    ("settings", "schedule"),
    [
        ({"_class_name": "DDPMScheduler"}, NoiseSchedule()),
        (
            {"_class_name": "PNDMScheduler"},
            NoiseSchedule(clip_sample=False, set_alpha_to_one=False),
        ),
        ({"_class_name": "EulerDiscreteScheduler"}, NoiseSchedule(clip_sample=False)),
        ({"_class_name": "UniPCMultistepScheduler", "clip_sample": True}, NoiseSchedule()),
        (
            {"_class_name": "HeunDiscreteScheduler"},
            NoiseSchedule(beta_start=0.00085, beta_end=0.012, clip_sample=False),
        ),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_max": 348}, ScoreSchedule(sigma_max=348)),
    ],
)
def test_what_a_scheduler_leaves_out_is_its_own_default(tmp_path, settings, schedule):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(settings))
    assert diffusers._schedule(tmp_path) == schedule


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule must be one of linear, scaled_linear, "),
        ({"prediction_type": "flow"}, "prediction_type must be one of epsilon, v_prediction, "),
        ({"rescale_betas_zero_snr": True}, "goes with v_prediction or sample"),
        ({"beta_end": 1.5}, "not in (0, 1)"),
        ({"beta_end": 0.5}, "nothing but ε is left at the last of the times"),
        ({"clip_sample_range": 0.0}, "clip_sample_range must be above 0, got 0.0"),
    ],
)
def test_noise_schedules_that_make_no_sense(settings, message):
    with pytest.raises(ValueError) as error:
        NoiseSchedule(**settings)
    assert message in str(error.value)


def header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def pickled(tree):
    return pickle.dumps(tree, protocol=2)


F32 = {"dtype": "F32", "data_offsets": [0, 4]}
BAD_WEIGHTS = {
    "truncated": lambda data: data[:-100],
    "an endless header": lambda data: (2**40).to_bytes(8, "little") + b'{"' + data[10:],
    "a deep header": lambda data: (10**5).to_bytes(8, "little") + b'{"a":' + NESTED.encode(),
    "a size without data": lambda data: header(a=F32 | {"shape": [2**40]}),
    "more axes than numpy has": lambda data: header(a=F32 | {"shape": [1] * 100}) + bytes(4),
    "a pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
    "a page": lambda data: b"<html>not found</html>",
    "nothing": lambda data: b"",
    "numbers by name": lambda data: pickled({"conv_in.weight": 1}),
    "a list": lambda data: pickled([1]),
    "code": lambda data: b"\x80\x02cos\nsystem\n(U\x04trueR.",
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_damaged_weights(flow, kind):
    path = flow / "unet" / WEIGHTS
    path.write_bytes(BAD_WEIGHTS[kind](path.read_bytes()))
    refused(flow, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_in.weight": None}, "lacks conv_in_weight"),
        ({"more.weight": np.ones(1, "f4")}, "'more_weight' has no place in the network"),
        ({"conv_in.bias": np.ones(13, "f4")}, "conv_in_bias is float32 (13,), where the settings"),
        ({"conv_in.bias": np.ones(12, "i4")}, "conv_in_bias is int32 (12,), where the settings"),
        ({f"{i}.weight": np.ones(1, "f4") for i in range(4000)}, "networks have fewer entries"),
    ],
)
def test_entries_that_do_not_fit(flow, changes, message):
    path = flow / "unet" / WEIGHTS
    arrays = safetensors.numpy.load_file(path) | changes
    arrays = {name: array for name, array in arrays.items() if array is not None}
    safetensors.numpy.save_file(arrays, path)
    assert message in refused(flow, path)


def test_weights_of_a_type_that_numpy_lacks(flow):
    path = flow / "unet" / WEIGHTS
    entry = {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}
    path.write_bytes(header(a=entry) + bytes(1))
    assert "tensors of float8_e4m3fn: save it with float16 or float32" in refused(flow, path)


def test_weights_that_are_not_finite(flow):
    path = flow / "unet" / WEIGHTS
    arrays = safetensors.numpy.load_file(path)
    arrays["conv_in.bias"][3] = np.nan
    safetensors.numpy.save_file(arrays, path)
    assert "network/conv_in/bias has values that are not finite" in refused(flow, flow)


@pytest.mark.parametrize(
    "text", ["", "[1]", NESTED, '{"_class_name":' + NESTED, "\x00", " " * 2**21]
)
def test_damaged_settings(flow, text):
    path = flow / "unet" / CONFIG
    path.write_text(text)
    assert "can't be read" in refused(flow, path)


def test_missing_weights(flow):
    (flow / "unet" / WEIGHTS).unlink()
    assert refused(flow, flow / "unet").startswith("has none of diffusion_pytorch_model.safe")


def refused(folder, named):
    """The message of the refusal, in one line that begins with a path, from little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as error:
            checkpoint.load_network(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert message.startswith(str(named)), message
    assert peak < 2**24, peak
    assert "\n" not in message and len(message) < len(str(named)) + 400
    return message.removeprefix(f"{named}: ")
