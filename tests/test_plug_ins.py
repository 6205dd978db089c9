"""Schemes, optimisers, operators and loss terms of a user's own, in the library and the command."""

import csv
import html
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import pulse_jax
from pulse_jax import images, losses, operators, optimizers, plug_in, schemes
from pulse_jax.files import read_json

SOURCE = """
import jax
import jax.numpy as jnp
import optax

import pulse_jax

def shell(base, power=1.0):
    def update(updates, state, params=None, **extra):
        updates, state = base.update(updates, state, params, **extra)
        def onto(u, z):
            axes = tuple(range(1, z.ndim))
            norm = lambda x: jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))
            return (z + u) * (norm(z) / norm(z + u)) ** power - z
        return jax.tree.map(onto, updates, params), state
    return optax.GradientTransformationExtraArgs(base.init, update)

def nesterov(schedule, momentum):
    return optax.sgd(schedule, momentum=momentum, nesterov=True)

def gamma(exponent=2.2):
    return lambda image: jnp.clip(image, 1e-3, 1) ** exponent

def half():
    return lambda image: image[::2, ::2] + 0.0

def rounded():
    return lambda image: jnp.round(image)

def mixed(channels):
    return lambda image: image[::2, ::2] @ jnp.full((channels, channels), 1 / channels)

def huber(delta):
    return lambda lr, target: jnp.mean(optax.huber_loss(lr, target, delta=delta))

def dark_alone():
    return lambda lr, target: jnp.where(target.mean() < 0.5, 0.0, jnp.nan) * jnp.sum(lr)

def linear():
    def sample(key):
        return jax.random.normal(key, (1, 12)), ()
    axes = jax.random.normal(jax.random.key(0), (12, 192)) / 20
    def synthesize(params, latents, frozen):
        return (0.5 + latents[0] @ params).reshape(8, 8, 3)
    return pulse_jax.Generator(8, sample, synthesize), axes

def highpass():
    return lambda image: image - image.mean((0, 1), keepdims=True)

def exits(*arguments):
    raise SystemExit(0)

def no_factor():
    return pulse_jax.operators.Operator("mine", 0, lambda image: image, None)

def wrong_factor():
    return pulse_jax.operators.Operator("mine", 2, lambda x: x, lambda x: x)

def whole_numbers():
    return pulse_jax.operators.Operator("mine", 1, lambda x: x.astype(int), lambda x: x)

def of_the_host():
    return lambda image: jax.pure_callback(lambda x: x, image, image)

def no_gradient():
    return lambda image: image + jnp.sqrt(image - image)

def calls_back():
    def apply(image):
        jax.debug.callback(fails)
        return image
    return apply

class Wordless(Exception):
    def __str__(self):
        raise RuntimeError

def wordless():
    raise Wordless

def to_bytes():
    return lambda image: (255 * image).astype(jnp.uint8)

def product():
    return lambda lr, target: jnp.dot(lr, target)

def large_alone():
    return lambda image: image if image.shape[0] == 128 else 1 / 0

def grows(schedule):
    return optax.GradientTransformation(lambda z: (), lambda u, state, z=None: (u, (0, *state)))

def fails(*arguments):
    raise RuntimeError("no such thing")

def nothing(*arguments):
    return None

number = 3
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A folder, the current one, with a module whose name no other test has."""
    name = f"parts_{abs(hash(str(tmp_path))):x}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_what_is_a_plug_in():
    assert all(map(plug_in.is_plug_in, ["a:b", "a.b:c", "a:b:2.5", "a:b:x.png:1e-3"]))
    assert not any(map(plug_in.is_plug_in, ["rescale", "rescale_every:20", "blur:2", "a:"]))
    assert not plug_in.is_plug_in("mask:hole", operators.OPERATORS)


def test_a_file_named_like_a_built_in_part_plugs_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not plug_in.is_plug_in("motion:thirds", operators.OPERATORS)
    (tmp_path / "motion.py").write_text("def thirds():\n    return lambda image: image / 3\n")
    try:
        operator = operators.parse("motion:thirds,motion:1:0")(1)
        np.testing.assert_allclose(operator(np.ones((4, 4, 3), np.float32)), 1 / 3, rtol=1e-6)
    finally:
        sys.modules.pop("motion")


def test_schemes(parts):
    z = jax.random.normal(jax.random.key(0), (3, 8))
    gradient = jax.random.normal(jax.random.key(1), (3, 8))
    found = []
    for text in (f"{parts}:shell", "rescale", f"{parts}:shell:0.5"):
        optimizer = schemes.parse(text)(optax.sgd(0.1))
        assert isinstance(optimizer, schemes.SphereOptimizer)
        updates, _ = optimizer.update(gradient, optimizer.init(z), z, value=0.0)
        found.append(z + updates)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    assert np.abs(found[2] - found[1]).max() > 1e-3


def test_optimizers(parts):
    z, gradient = jnp.ones((1, 4)), jnp.arange(4.0)[None]
    own = optimizers.parse(f"{parts}:nesterov:0.9")(0.1)
    known = optax.sgd(0.1, momentum=0.9, nesterov=True)
    ends = [o.update(gradient, o.init(z), z)[0] for o in (own, known)]
    np.testing.assert_array_equal(*ends)


def test_operators(parts):
    image = np.random.default_rng(0).random((8, 8, 3), np.float32)
    made = operators.parse(f"{parts}:gamma:2,{parts}:half,bicubic")(4)
    assert made.factor == 4
    expected = operators.bicubic(2)((image**2)[::2, ::2])
    np.testing.assert_allclose(made(image), expected, atol=1e-6)
    assert operators.parse(f"{parts}:gamma")(1)(image).shape == image.shape


@pytest.mark.parametrize("channels", [1, 4])
def test_operators_of_other_channels(parts, channels):
    """Of grey images, or of as many channels as the generator has."""
    made = operators.parse(f"{parts}:mixed:{channels}")(2)
    image = np.random.default_rng(0).random((8, 8, channels), np.float32)
    expected = image[::2, ::2].mean(-1, keepdims=True).repeat(channels, -1)
    np.testing.assert_allclose(made(image), expected, atol=1e-6)


def test_loss_terms(parts):
    lr, target = np.random.default_rng(0).random((2, 4, 4, 3), np.float32)
    loss = losses.parse(f"10*L2+2*{parts}:huber:0.1", 1e-3)
    expected = 10 * losses.l2(lr, target, 1e-3) + 2 * optax.huber_loss(lr, target, delta=0.1).mean()
    assert float(loss(lr, target, None)) == pytest.approx(float(expected), rel=1e-6)
    assert loss == losses.parse(f"10*L2+2*{parts}:huber:0.1", 1e-3)  # shares what is compiled
    assert loss != losses.parse(f"10*L2+2*{parts}:huber:0.2", 1e-3)
    assert losses.terms("1e+1*L2+a:b:1e+3+L1") == [("1e+1", "L2"), ("", "a:b:1e+3"), ("", "L1")]


@pytest.mark.parametrize("name", ["highpass", "rounded", "gamma"])
def test_a_picture_of_an_own_operator_stays_as_it_is(parts, name):
    operator = operators.parse(f"{parts}:{name}")(1)
    picture = np.random.default_rng(0).random((8, 8, 3), np.float32)
    np.testing.assert_array_equal(operators.discard_unseen(operator, picture), picture)


@pytest.mark.parametrize(
    ("setting", "text", "told"),
    [
        ("scheme", "cube", "'cube' is none of rescale, "),
        ("scheme", "{}:missing", "has no missing"),
        ("scheme", "no_module_here:x", "ModuleNotFoundError"),
        ("opt_name", "{}:number", "number is a int, which can't be called"),
        ("operator", "{}:fails:2", "fails(2) raised RuntimeError: no such thing"),
        ("operator", "{}:exits,bicubic", "exits() raised SystemExit: 0"),
        ("operator", "{}:mixed:2,bicubic", "mixed(2) returned raised TypeError: "),
        ("loss_str", "L2+{}:exits", "exits() raised SystemExit: 0"),
        ("operator", "{}:no_factor,bicubic", "factor must be an integer of at least 1, got 0"),
        ("operator", "{}:to_bytes,bicubic", "to_bytes() returned makes uint8 of an image"),
        ("operator", "{}:nothing,bicubic", "nothing() returned a NoneType, not a function"),
        ("loss_str", "100*L2+{}:nothing:1", "nothing(1) returned a NoneType, not a function"),
        (
            "loss_str",
            "L2+nan*{0}:huber:1",
            "weight of {0}:huber:1 must be a number from 0 to 1e+15, got 'nan'",
        ),
        ("loss_str", "0*{}:huber:1", "a loss needs a term with a weight other than 0"),
        ("operator", "{}:wordless,bicubic", "wordless() raised Wordless: Wordless"),
        ("loss_str", "L2+{}:huber", "missing 1 required positional argument"),
    ],
)
def test_bad_ones_are_told_with_the_setting(parts, setting, text, told):
    text = text.format(parts)
    with pytest.raises(ValueError) as error:
        pulse_jax.Settings(**{setting: text})
    message = str(error.value)
    assert message.startswith(f"{setting}={text}: ") and "\n" not in message
    assert told.format(parts) in message


@pytest.mark.parametrize("parse", [schemes.parse, optimizers.parse])
def test_what_a_callable_returns_is_looked_at(parts, parse):
    with pytest.raises(ValueError, match=r"nothing\(\) returned a NoneType, not an optax"):
        parse(f"{parts}:nothing")(optax.sgd(0.1) if parse is schemes.parse else 0.1)


def test_the_command_takes_them_all(parts, run, tmp_path):
    """A nonlinear degradation: the result, through it, is the picture; and sources are kept."""
    (tmp_path / "in").mkdir()
    space = np.linspace(0.15, 0.35, 4)
    picture = np.broadcast_to((space[:, None] + space)[..., None] / 2, (4, 4, 3))
    Image.fromarray(np.uint8(255 * picture)).save(tmp_path / "in" / "a.png")
    flags = [
        f"--input_dir={tmp_path / 'in'}",
        f"--operator={parts}:gamma:2.2,bicubic",
        f"--scheme={parts}:shell",
        f"--opt_name={parts}:nesterov:0.9",
        f"--loss_str=100*L2+0.1*{parts}:huber:0.1",
        *("--steps=60", "--learning_rate=0.05", "--lr_schedule=fixed", "--eps=0.005"),
    ]
    folder = run(*flags, generator=f"{parts}:linear")
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = min(float(row["l2_saved"]) for row in rows)
    hr = np.asarray(Image.open(folder / "a" / "hr_01.png"), np.float32) / 255
    small = np.asarray(Image.open(tmp_path / "in" / "a.png"), np.float32) / 255
    lr = operators.bicubic(2)(np.clip(hr, 1e-3, 1) ** 2.2)
    assert float(np.mean((lr - small) ** 2)) == pytest.approx(float(rows[0]["l2_saved"]), rel=1e-3)
    assert best < 0.7 * float(np.var(small)) or best < 0.005
    assert f"SHA-256 of {parts}" in read_json(folder / "config.json")

    # With another source, what is there isn't gone on with.
    config = folder / "config.json"
    before = json.loads(config.read_text())
    before[f"SHA-256 of {parts}"] = "0" * 64
    config.write_text(json.dumps(before))
    with pytest.raises(SystemExit, match=f"SHA-256 of {parts} was 0000"):
        run(*flags, generator=f"{parts}:linear")


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--loss_str=L2+{}:product", "a step of the search raised TypeError: dot_general"),
        ("--opt_name={}:grows", "leaves a state of other shapes"),
        ("--scheme={}:fails", "fails() raised RuntimeError: no such thing"),
        ("--operator={}:wrong_factor", "is 2, but makes (8, 8, 3) of an image (8, 8, 3)\n"),
        ("--operator={}:of_the_host,bicubic", ":of_the_host,bicubic raised ValueError: Pure call"),
        ("--operator={}:calls_back,bicubic", "a callback of a part raised RuntimeError: no such"),
        ("--operator={}:large_alone,bicubic", "large_alone() returned raised ZeroDivisionError"),
    ],
)
def test_parts_that_do_not_fit_end_in_one_line(parts, run, tmp_path, capsys, flag, told):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).save(tmp_path / "in" / "a.png")
    try:
        run(f"--input_dir={tmp_path / 'in'}", flag.format(parts), generator=f"{parts}:linear")
        pytest.fail("it went through")
    except SystemExit as end:
        lines = f"{end}\n{capsys.readouterr().err}"
    assert told in lines and "Traceback" not in lines


def test_an_operator_that_makes_integers_is_told(parts, unchecked):
    with pytest.raises(
        ValueError, match=r"whole_numbers\(\) returned makes int32 of an image, not"
    ):
        operators.parse(f"{parts}:whole_numbers")(1)(jnp.zeros((8, 8, 3)))


def test_restarts_whose_gradient_is_not_finite_are_told(parts, caplog):
    settings = pulse_jax.Settings(
        generator=f"{parts}:linear",
        operator=f"{parts}:no_gradient,bicubic",
        restarts=2,
        steps=3,
        seeds=(0, 1),
    )
    found = pulse_jax.upsample([np.full((4, 4, 3), 0.3, np.float32)], None, settings)
    told = "restarts failed, since the loss or its gradient wasn't finite"
    lines = [f"01, seed {seed}: 2 of 2 {told}" for seed in (0, 1)]
    assert [m for m in caplog.messages if told in m] == lines
    assert list(found.failures) == [picture.lost for picture in found.pictures] == lines


def test_a_picture_without_a_finite_loss_fails_and_spares_the_others(parts, run, tmp_path, capsys):
    """A run that goes on says the same."""
    (tmp_path / "in").mkdir()
    for name, value in (("bright", 200), ("dark", 90)):
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(tmp_path / "in" / f"{name}.png")
    loss = f"--loss_str=L2+{parts}:dark_alone"
    told = "bright.png: 3 of 3 restarts failed, since the loss or its gradient wasn't finite"
    for _ in range(2):
        with pytest.raises(SystemExit) as exit:
            run(f"--input_dir={tmp_path / 'in'}", loss, generator=f"{parts}:linear")
        assert exit.value.code == 1
        out, err = capsys.readouterr()
        assert [line for line in err.splitlines() if "failed" in line] == [f"pulse_jax: {told}"]
        assert "1 picture done, 1 failure;" in out
        assert "\nbright.png: 3 of 3 failed, best l2 0" in out
        page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        assert f"<li>{html.escape(told)}</li>" in page
        assert "bright.png<small>3 of 3 restarts failed, best l2 0" in page
    run(str(tmp_path / "in" / "dark.png"), loss, generator=f"{parts}:linear")


def test_a_part_that_changes_the_folder_moves_no_results(parts, run, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).save(tmp_path / "in" / "a.png")
    source = f"import os\nfrom {parts} import nesterov\nos.chdir('elsewhere')\n"
    (tmp_path / f"{parts}_elsewhere.py").write_text(source)
    flags = f"--input_dir={tmp_path / 'in'}", "--output_dir=here"
    run(*flags, f"--opt_name={parts}_elsewhere:nesterov:0.9", generator=f"{parts}:linear")
    assert (tmp_path / "here" / "a" / "results.csv").is_file()


def test_an_odd_mask_is_told_by_the_run_alone(parts, caplog, tmp_path, recwarn):
    values = np.zeros((8, 8), np.uint16)
    values[:4] = 1000
    Image.fromarray(values).save(tmp_path / "odd.png")
    operator = f"mask:{tmp_path / 'odd.png'},bicubic"
    settings = pulse_jax.Settings(generator=f"{parts}:linear", operator=operator, steps=1)
    caplog.set_level("INFO")
    pulse_jax.upsample([np.full((4, 4, 3), 0.3, np.float32)], None, settings)
    assert not [w for w in recwarn if issubclass(w.category, images.ImageWarning)]
    assert len([told for told in caplog.messages if "odd.png: its values from 0" in told]) == 1


def test_a_degradation_without_a_gradient_is_told(parts, caplog):
    picture = np.full((4, 4, 3), 0.3, np.float32)
    picture[:2] = 0.7
    settings = pulse_jax.Settings(
        generator=f"{parts}:linear",
        operator=f"{parts}:rounded,bicubic",
        restarts=1,
        steps=1,
        seeds=(0,),
    )
    pulse_jax.upsample([picture], None, settings)
    assert "its gradient is 0 everywhere" in caplog.text


def test_a_generator_without_styles_is_searched_without_geocross(parts):
    generator, params = pulse_jax.load(f"{parts}:linear")
    optimizer = schemes.SCHEMES["rescale"](optax.sgd(0.1))
    with pytest.warns(UserWarning, match="GEOCROSS is left out"):
        search = pulse_jax.build(generator, operators.bicubic(2), pulse_jax.Loss(), optimizer)
    plain = pulse_jax.Loss(geocross=0)
    other = pulse_jax.build(generator, operators.bicubic(2), plain, optimizer)
    target = np.full((4, 4, 3), 0.5, np.float32)
    start = generator.sample(jax.random.key(0))
    infos = [s.step(params, target, s.init(*start))[1] for s in (search, other)]
    assert infos[0] == infos[1]
    with pytest.raises(ValueError, match="GEOCROSS alone"):
        only = pulse_jax.Loss(l2=0, geocross=1)
        pulse_jax.build(generator, operators.bicubic(2), only, optimizer)
