"""Networks and sampling of guided-diffusion, against its own numbers. Networks are tiny, random."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA, golden, relative_error

from pulse_jax.generators import checkpoint, official
from pulse_jax.generators.diffusion import schedules, solvers
from pulse_jax.generators.official import read, read_network

GUIDED = DATA / "modern" / "guided"


def nhwc(images):
    return np.asarray(images).transpose(0, 2, 3, 1)


def compiled(function, arrays, dtype):
    """`check(x, t, names, bound)` of `function(x, t)` and its gradient for x."""

    @jax.jit
    def run(x, t):
        value, pull = jax.vjp(lambda x: function(x, t), x)
        return value, *pull(jnp.asarray(nhwc(arrays["cotangent"]), dtype))

    def check(x, t, names, bound):
        with jax.enable_x64(dtype == np.float64):
            results = run(jnp.asarray(nhwc(arrays[x]), dtype), jnp.asarray(t, dtype))
        for result, name in zip(results, names, strict=True):
            assert result.dtype == dtype
            assert relative_error(result, nhwc(arrays[name])) <= bound, name

    return check


def network_of(name, dtype):
    """The model in a file, its ε as a function of x and t, and the numbers of guided-diffusion."""
    model, params = read_network(GUIDED / f"{name}.pt")
    params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params["network"])
    return (
        model,
        lambda x, t: model.network.apply({"params": params}, x, t)[..., :3],
        golden(f"modern/guided/{name}"),
    )


ALL = ["adm_convresample", "adm_legacy_order", "adm_new_order"]
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [
        ("adm_legacy_order", np.float64, 1e-9),
        *(pytest.param(name, np.float64, 1e-9, marks=slow) for name in ALL if "legacy" not in name),
        *(
            pytest.param(name, np.float32, 2e-5, marks=[slow, pytest.mark.optimised])
            for name in ALL
        ),
    ],
)
def test_networks_and_their_gradients(name, dtype, bound):
    _, network, arrays = network_of(name, dtype)
    check = compiled(network, arrays, dtype)
    for i in range(2):
        check("x", arrays[f"t{i}"], (f"eps{i}", f"grad_x{i}"), bound)


def respacings(name):
    """The respacings of a file and whether x_0 is clipped, with our texts of their solvers."""
    for key in golden(f"modern/guided/{name}"):
        if key.endswith("_image"):
            prefix = key.removesuffix("_image")
            respacing, clipped = prefix.split("_")
            spacing = "leading" if respacing.startswith("ddim") else "linspace"
            steps = respacing.removeprefix("ddim")
            yield prefix, f"ddim:{steps}:{spacing}", clipped == "clip"


@pytest.mark.parametrize("name", ALL)
def test_times_are_those_of_its_respacings(name):
    model, _ = read_network(GUIDED / f"{name}.pt")
    arrays = golden(f"modern/guided/{name}")
    for prefix, text, _ in respacings(name):
        times = solvers.parse(text).times(model.schedule)
        np.testing.assert_array_equal(times[::-1], arrays[f"{prefix}_timestep_map"])
        alphas = model.schedule.alphas_cumprod()[times.astype(int)[::-1]]
        np.testing.assert_allclose(
            alphas, arrays[f"{prefix}_alphas_cumprod"], rtol=1e-12, atol=1e-16
        )


@pytest.mark.parametrize(
    ("name", "prefix", "dtype", "bound"),
    [
        ("adm_new_order", "ddim3_clip", np.float64, 1e-8),
        *(
            pytest.param(name, prefix, np.float64, 1e-8, marks=slow)
            for name in ALL
            for prefix, *_ in respacings(name)
            if (name, prefix) != ("adm_new_order", "ddim3_clip")
        ),
        *(
            pytest.param(name, prefix, np.float32, 1e-3, marks=[slow, pytest.mark.optimised])
            for name, prefix in zip(ALL, ["10_clip", "ddim10_noclip", "ddim10_clip"], strict=True)
        ),
    ],
)
def test_images_and_their_gradients(name, prefix, dtype, bound):
    model, network, arrays = network_of(name, dtype)
    ((text, clipped),) = [found[1:] for found in respacings(name) if found[0] == prefix]
    schedule, solve = dataclasses.replace(model.schedule, clip_sample=clipped), solvers.parse(text)
    check = compiled(lambda z, _: solve(network, [z], schedule), arrays, dtype)
    check("z", 0, (f"{prefix}_image", f"{prefix}_grad_z"), bound)


def test_rescaled_times():
    schedule = schedules.GuidedSchedule(num_train_timesteps=500, rescale_timesteps=True)
    seen = []

    def network(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t, ordered=True)
        return 0 * x

    solvers.parse("ddim:5")(network, [jnp.ones((1, 1, 1, 1))], schedule)
    jax.effects_barrier()
    assert seen == [998.0, 798.0, 598.0, 398.0, 198.0]


# --- Files. ---


@pytest.fixture
def file(tmp_path):
    """A copy of a file, without its flags."""
    return shutil.copy(GUIDED / "adm_legacy_order.pt", tmp_path / "model.pt")


def test_the_network_follows_from_shapes_and_few_flags(file):
    file.with_suffix(".json").write_text('{"image_size": 16, "num_head_channels": 8}')
    model, params = read_network(file)
    expected, expected_params = read_network(GUIDED / "adm_legacy_order.pt")
    assert model == expected
    jax.tree.map(np.testing.assert_array_equal, params, expected_params)
    file.with_suffix(".json").write_text('{"image_size": 16, "num_heads": 4}')
    assert read_network(file)[0] == expected


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (None, "shapes don't tell its image_size: write it into model.json"),
        ({"image_size": 16}, "shapes don't tell its heads: write .* into model.json"),
        ({"num_channels": 64}, "num_channels = 64 is not supported, only 32 .*model.json"),
        ({"num_res_blocks": 2}, "num_res_blocks = 2 is not supported, only 1"),
        ({"learn_sigma": False}, "learn_sigma = False is not supported, only True"),
        ({"resblock_updown": False}, "resblock_updown = False"),
        ({"use_scale_shift_norm": False}, "use_scale_shift_norm = False"),
        ({"class_cond": True}, "class_cond = True"),
        ({"channel_mult": "1,2"}, "channel_mult is .*1.0, 2.0"),
        ({"channel_mult": "one"}, "channel_mult in model.json are no numbers: 'one'"),
        ({"image_size": 16, "attention_resolutions": "16"}, "attention_resolutions are .*16"),
        ({"image_size": 15, "num_head_channels": 8}, "15"),
        ({"image_size": "16"}, "image_size must be a whole number, got '16'"),
        ({"image_size": 16, "num_head_channels": 7}, "heads of 7 channels don't divide"),
        ({"image_size": 16, "num_heads": 0}, "num_heads must be a whole number above 0, got 0"),
        ({"noise_schedule": "sigmoid"}, "noise_schedule must be linear or cosine, got 'sigmoid'"),
        ({"diffusion_steps": 10**9}, "diffusion_steps must be from 21 to 100000"),
        ([], "model.json can't be read: no JSON object"),
    ],
)
def test_flags_that_do_not_fit(file, flags, told):
    if flags is not None:
        if isinstance(flags, dict) and not {"image_size", "num_heads"} & flags.keys():
            flags = {"image_size": 16, "num_head_channels": 8} | flags
        file.with_suffix(".json").write_text(json.dumps(flags))
    assert_refused(file, told)


@pytest.mark.parametrize(
    ("entry", "value", "told"),
    [
        ("out.2.weight", None, "lacks out.2.weight"),
        ("middle_block.0.in_layers.2.weight", None, "lacks mid_block_resnets_0_conv1_weight"),
        ("middle_block.0.in_layers.2.weight", np.zeros((3, 3), np.float32), "conv1_weight is"),
        ("middle_block.3.weight", np.zeros(3), "'middle_block.3.weight' has no place"),
        ("output_blocks.9999.0.weight", np.zeros(3), "don't form"),
        ("input_blocks.0.0.weight", np.zeros((16, 3, 3, 3)), "num_channels = 32"),
        ("label_emb.weight", np.zeros((3, 8), np.float32), "class_cond = False"),
        ("epoch", 3, "other things than the tensors"),
    ],
)
def test_state_dicts_that_do_not_fit(entry, value, told, monkeypatch):
    tree = read(GUIDED / "adm_legacy_order.pt") | {entry: value}
    if value is None:
        del tree[entry]
    monkeypatch.setattr(official, "read", lambda path: tree)
    assert_refused(GUIDED / "adm_legacy_order.pt", told)


def assert_refused(path, told):
    with pytest.raises(ValueError, match=told) as raised:
        read_network(path)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_a_saved_model_is_the_same(tmp_path):
    model, params = read_network(GUIDED / "adm_convresample.pt")
    assert model.schedule.rescale_timesteps and model.schedule.beta_schedule == "squaredcos_cap_v2"
    checkpoint.save(tmp_path / "guided", generator=(model, params))
    assert checkpoint.read_network(tmp_path / "guided")[0] == model
