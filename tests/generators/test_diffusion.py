"""Diffusion, consistency and flow models of diffusers, against the numbers of diffusers itself.

Networks are tiny, with random weights. A network with a sampler of its own is tested in it.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA, as_dtype, golden, relative_error

import pulse_jax
from pulse_jax.generators import checkpoint
from pulse_jax.generators.diffusion import diffusion_generator
from pulse_jax.generators.diffusion.autoencoders import DepthToSpace
from pulse_jax.generators.diffusion.blocks import angles_of_time, frequencies
from pulse_jax.generators.diffusion.schedules import NoiseSchedule
from pulse_jax.generators.diffusion.solvers import parse
from pulse_jax.generators.official.diffusers import DECODERS, _read_module, from_diffusers

MODERN = DATA / "modern"


def nhwc(images):
    return np.asarray(images).transpose(0, 2, 3, 1)


def arrays_of(name):
    return golden(f"modern/{name}")


@functools.cache
def pipeline(folder):
    return from_diffusers(MODERN / folder)


def assert_equals(function, inputs, cotangent, expected, dtype, bound):
    """A function's value and its gradient for each of the inputs, in NHWC, are those given."""
    with jax.enable_x64(dtype == "float64"):
        *inputs, cotangent = as_dtype([nhwc(a) for a in (*inputs, cotangent)], dtype)

        def product(inputs):
            image = function(*inputs)
            return jnp.vdot(image, cotangent), image

        gradients, image = jax.jit(jax.grad(product, has_aux=True))(inputs)
    assert image.dtype == dtype
    for actual, array in zip((image, *gradients), expected, strict=False):
        assert relative_error(actual, nhwc(array)) <= bound


def applied(folder, dtype, **labels):
    """The network of a pipeline as a function of x and t."""
    model, params = pipeline(folder)
    with jax.enable_x64(dtype == "float64"):
        params = as_dtype(params["network"], dtype)
    return lambda x, t: model.network.apply({"params": params}, x, t, **labels)


# --- Networks. ---


def network_run(folder, dtype):
    """The arrays of a network's run, and the network."""
    arrays = arrays_of(f"{folder.removesuffix('_pipeline')}_net")
    labels = {"labels": jnp.asarray(arrays["class_labels"])} if "class_labels" in arrays else {}
    return arrays, applied(folder, dtype, **labels)


@pytest.mark.parametrize("folder", ["ncsnpp", pytest.param("class_cond", marks=pytest.mark.slow)])
def test_networks_at_a_time_for_each_image(folder):
    arrays, network = network_run(folder, "float64")
    with jax.enable_x64(True):
        x, t = jnp.asarray(nhwc(arrays["x"]), float), jnp.asarray(arrays["t_mixed"])
        y = jax.jit(network)(x, t)
    assert relative_error(y, nhwc(arrays["y_mixed"])) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("folder", "bound"),
    [
        ("class_cond", 2e-5),
        ("ncsnpp", 2e-4),
        ("ddpm_pipeline", 2e-5),
        ("consistency_pipeline", 2e-4),
    ],
)
def test_networks_and_their_gradients(folder, bound, dtype):
    arrays, network = network_run(folder, dtype)
    for key in ("t0", "t1"):
        assert_equals(
            lambda x, key=key: network(x, jnp.asarray(arrays[key], dtype)),
            [arrays["x"]],
            arrays["cotangent"],
            [arrays[f"y_{key}"], arrays[f"grad_x_{key}"]],
            dtype,
            1e-9 if dtype == "float64" else bound,
        )


def test_positional_features_are_exact_in_float32():
    """Formed in one part, the angles cost 6e-5."""
    arrays = arrays_of("ddpm_net")
    t = jnp.stack([arrays["t0"], arrays["t1"]]).astype("f4")
    features = jnp.concatenate(angles_of_time(t, frequencies(6, 1)), axis=-1)
    assert np.abs(np.asarray(features) - arrays["time_proj"]).max() <= 2e-7
    t = np.linspace(0, 1000, 4001, dtype=np.float32)
    sin, cos = jax.jit(lambda t: angles_of_time(t, frequencies(64)))(t)
    expected = t[:, None].astype(float) * frequencies(64)
    assert np.abs(sin - np.sin(expected)).max() <= 2e-7
    assert np.abs(cos - np.cos(expected)).max() <= 2e-7


# --- Solvers. ---

BOUNDS = {"float64": 1e-8, "float32": 1e-3}
DDIM_RUNS = {
    **{
        f"{spacing}_{clip}_{steps}": "ddpm_ddim_epsilon"
        for spacing in ("leading", "trailing")
        for clip in ("clip", "noclip")
        for steps in (1, 3, 10)
    },
    **dict.fromkeys(
        [
            *("v_trailing_clip_3", "v_trailing_noclip_3", "v_trailing_clip_10"),
            *("v_trailing_noclip_10", "v_trailing_1", "v_zerosnr", "sample_leading"),
            *("linspace", "scaled_linear_offset1", "cosine"),
        ],
        "ddpm_ddim_other",
    ),
}
FAST = {("trailing_clip_3", "float64")}


def ddim_run(key):
    """The arrays of a run, its solver and schedule."""
    arrays = arrays_of(DDIM_RUNS[key])
    config = json.loads(str(arrays[f"{key}_config"]))
    schedule = pipeline("ddpm_pipeline")[0].schedule
    names = {field.name for field in dataclasses.fields(NoiseSchedule)} & config.keys()
    schedule = dataclasses.replace(schedule, **{name: config[name] for name in names})
    spacing = config.get("timestep_spacing", "leading")
    return arrays, parse(f"ddim:{config['num_inference_steps']}:{spacing}"), schedule


@pytest.mark.parametrize("key", DDIM_RUNS)
def test_times_of_ddim(key):
    arrays, solver, schedule = ddim_run(key)
    np.testing.assert_array_equal(solver.times(schedule), arrays[f"{key}_timesteps"])
    linear = NoiseSchedule().alphas_cumprod()
    assert relative_error(linear, arrays["alphas_cumprod_linear"]) <= 1e-13


@pytest.mark.parametrize(
    ("key", "dtype"),
    [
        pytest.param(key, dtype, marks=[] if (key, dtype) in FAST else [pytest.mark.slow])
        for key in DDIM_RUNS
        for dtype in BOUNDS
    ],
)
def test_ddim_and_its_gradient(key, dtype):
    arrays, solver, schedule = ddim_run(key)
    network = applied("ddpm_pipeline", dtype)
    assert_equals(
        lambda z: solver(network, [z], schedule),
        [arrays["z"]],
        arrays["cotangent"],
        [arrays[f"{key}_image"], arrays[f"{key}_grad_z"]],
        dtype,
        BOUNDS[dtype],
    )


def consistency_run(clip, steps):
    """A run's arrays, the names of its own, the noises, its solver and schedule."""
    arrays, key = arrays_of("consistency_sampler"), f"{('onestep', 'twostep')[steps - 1]}_{clip}"
    schedule = pipeline("consistency_pipeline")[0].schedule
    schedule = dataclasses.replace(schedule, clip_denoised=clip == "clip")
    solver, noises = parse(f"consistency:{steps}"), [arrays["z"], arrays["noise2"]][:steps]
    assert relative_error(solver.levels(schedule), arrays[f"{key}_sigmas"][:steps]) <= 1e-13
    return arrays, key, noises, solver, schedule


def flow_run(shift, steps):
    """A run's arrays, the names of its own, its solver and schedule."""
    arrays, key = arrays_of("flow_sampler"), f"shift{shift}_{steps}"
    schedule = dataclasses.replace(pipeline("flow")[0].schedule, shift=float(shift))
    solver = parse(f"flow:{steps}")
    assert relative_error(solver.levels(schedule), arrays[f"{key}_sigmas"]) <= 1e-13
    return arrays, key, solver, schedule


def test_images_of_consistency_and_flow():
    """The gradients take as long again to compile, and are in the slow tests."""
    arrays, key, noises, solver, schedule = consistency_run("clip", 2)
    assert_image("consistency_pipeline", solver, noises, schedule, arrays[f"{key}_image"])
    arrays, key, solver, schedule = flow_run(3, 4)
    assert_image("flow", solver, [arrays["z"]], schedule, arrays[f"{key}_image"])


def assert_image(folder, solver, noises, schedule, expected):
    network = applied(folder, "float64")
    with jax.enable_x64(True):
        noises = [jnp.asarray(nhwc(noise), float) for noise in noises]
        image = jax.jit(lambda noises: solver(network, noises, schedule))(noises)
    assert relative_error(image, nhwc(expected)) <= 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("clip", ["clip", "noclip"])
def test_consistency_and_its_gradients(clip, steps, dtype):
    """For the noise of the second step too."""
    arrays, key, noises, solver, schedule = consistency_run(clip, steps)
    expected = [arrays[f"{key}_image"], arrays[f"{key}_grad_z"]]
    if key == "twostep_noclip":
        expected += [arrays[f"{key}_grad_noise2"]]
    network = applied("consistency_pipeline", dtype)
    assert_equals(
        lambda *noises: solver(network, noises, schedule),
        noises,
        arrays["cotangent"],
        expected,
        dtype,
        BOUNDS[dtype],
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("shift", "steps"), [(1, 1), (1, 4), (1, 8), (3, 4)])
def test_flow_and_its_gradient(shift, steps, dtype):
    arrays, key, solver, schedule = flow_run(shift, steps)
    network = applied("flow", dtype)
    assert_equals(
        lambda z: solver(network, [z], schedule),
        [arrays["z"]],
        arrays["cotangent"],
        [arrays[f"{key}_image"], arrays[f"{key}_grad_z"]],
        dtype,
        BOUNDS[dtype],
    )


# --- Decoders. ---


@functools.cache
def decoder(folder):
    channels = {"vq": 3, "kl": 4, "tiny": 4}[folder]
    return _read_module(MODERN / folder, DECODERS, None, channels)


@pytest.mark.parametrize(
    ("folder", "dtype"),
    [
        ("vq", "float64"),
        ("tiny", "float64"),
        pytest.param("kl", "float64", marks=pytest.mark.slow),
        *(pytest.param(n, "float32", marks=pytest.mark.slow) for n in ("vq", "kl", "tiny")),
    ],
)
def test_decoders_and_their_gradients(folder, dtype):
    """Without the scaling of latents, as the autoencoders have it, and with it where given."""
    arrays = arrays_of(folder)
    module, params = decoder(folder)
    with jax.enable_x64(dtype == "float64"):
        params = as_dtype(params, dtype)
    names = {
        "vq": ("latent", "quantized_image", "quantized_grad"),
        "kl": ("z_diffusion", "scaled_image", "scaled_grad"),
        "tiny": ("latent", "image", "grad"),
    }
    latent, image, gradient = (arrays[name] for name in names[folder])
    method = "decode" if folder == "vq" else "__call__"
    assert_equals(
        lambda z: module.apply({"params": params}, z, method=method),
        [latent],
        arrays["cotangent"],
        [image, gradient],
        dtype,
        1e-9 if dtype == "float64" else 2e-5,
    )


# --- Generators. ---


def test_a_pipeline_is_a_generator(tmp_path):
    """From its folder, from the file of its network, and from what was saved of it."""
    folder = MODERN / "flow"
    model, params = pipeline("flow")
    checkpoint.save(tmp_path, generator=(model, params))
    for source in (folder / "unet" / "diffusion_pytorch_model.safetensors", tmp_path):
        same, same_params = checkpoint.load_network(source)
        assert same == model
        assert checkpoint.digest(same_params) == checkpoint.digest(params)

    generator, params = pulse_jax.load(tmp_path, solver="flow:2")
    assert (generator.resolution, generator.channels, generator.styles) == (16, 3, None)
    latents, frozen = generator.sample(jax.random.key(0))
    assert frozen == {} and list(latents) == ["noise_0"]
    image = jax.jit(generator.synthesize)(params, latents, frozen)
    solver, network = parse("flow:2"), applied("flow", "float32")
    x = jax.jit(lambda x: solver(network, [x], model.schedule))(latents["noise_0"])
    assert relative_error(image, (x[0] + 1) / 2) <= 1e-5


def test_each_noise_is_a_latent_of_its_own():
    model, _ = pipeline("consistency_pipeline")
    assert list(diffusion_generator(model).sample(jax.random.key(0))[0]) == ["noise_0"]
    latents, _ = diffusion_generator(model, "consistency:3").sample(jax.random.key(0))
    assert {name: x.shape for name, x in latents.items()} == {
        f"noise_{i}": (1, 16, 16, 3) for i in range(3)
    }
    assert len({float(x.sum()) for x in latents.values()}) == 3


def test_a_linear_jacobian_leaves_the_network_out():
    """The image is the same. The gradient is that of a network that doesn't depend on x."""
    solver, schedule = parse("ddim:4"), NoiseSchedule(clip_sample=False)
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 1))

    def gradient(solver, network):
        def total(x):
            y = solver(network, [x], schedule)
            return y.sum(), y

        return jax.grad(total, has_aux=True)(x)

    linear, image = gradient(parse("ddim:4:linear"), lambda x, t: jnp.sin(t * x))
    exact, same = gradient(solver, lambda x, t: jnp.sin(t * x))
    np.testing.assert_array_equal(image, same)
    constant, _ = gradient(solver, lambda x, t: jnp.ones_like(x))
    np.testing.assert_allclose(linear, constant, rtol=1e-6)
    assert relative_error(exact, constant) > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "flow:4"}, "solver=flow:4 doesn't go with the model, but ddim:10 does"),
        ({"solver": "ddmi:4"}, "no solver 'ddmi'; did you mean ddim?"),
        ({"solver": "ddim"}, "solvers are written as ddim:STEPS[:SPACING], "),
        ({"solver": "ddim:0"}, "there are from 1 to 100000 steps, not 0"),
        ({"solver": "ddim:two"}, "steps of ddim is no number: 'two'"),
        ({"solver": "ddim:4:log"}, "the spacing 'log' is none of trailing, leading, linspace"),
        ({"solver": "ddim:1001"}, "solver=ddim:1001: there are 1000 times in all, fewer"),
    ],
)
def test_what_a_model_has_no_use_for(arguments, message):
    model, _ = pipeline("ddpm_pipeline")
    with pytest.raises(ValueError) as error:
        diffusion_generator(model, **arguments)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "flow:4"}, "solver=flow:4 doesn't go with the model, but ddim:10 does"),
        ({"space": "w"}, "space is for StyleGANs, and this is a diffusion model"),
    ],
)
def test_an_error_names_the_generator(arguments, message):
    folder = str(MODERN / "ddpm_pipeline")
    with pytest.raises(ValueError) as error:
        pulse_jax.load(folder, **arguments)
    assert str(error.value) == f"generator={folder}: {message}"


def test_a_class_is_drawn_and_frozen():
    model, params = pipeline("class_cond")
    with pytest.raises(ValueError, match="the model tells of no schedule, so a solver must be"):
        diffusion_generator(model)
    generator = diffusion_generator(model, "ddim:1")
    assert generator.classes == 5
    _, frozen = jax.vmap(generator.sample)(jax.random.split(jax.random.key(0), 50))
    assert set(frozen["label"].tolist()) == set(range(5))
    latents, _ = generator.sample(jax.random.key(0))
    synthesize = jax.jit(generator.synthesize)
    images = [synthesize(params, latents, {"label": label}) for label in (0, 0, 1)]
    np.testing.assert_array_equal(images[0], images[1])
    assert relative_error(images[0], images[2]) > 1e-3


def test_a_stylegan_has_no_solver(generator):
    with pytest.raises(ValueError, match=r"solver=ddim:4 is for diffusion models, and this is a"):
        pulse_jax.load(generator, solver="ddim:4")


def test_depth_to_space_makes_squares():
    x = jnp.arange(2 * 3 * 12.0).reshape(1, 2, 3, 12)
    image = DepthToSpace(2).apply({}, x)
    assert image.shape == (1, 4, 6, 3)
    np.testing.assert_array_equal(image[0, 1, 2], x[0, 0, 1, 6:9])
