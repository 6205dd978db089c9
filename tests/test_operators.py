"""Operators: the reference's numbers, and the laws every linear operator obeys."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from helpers import both_precisions, golden, relative_error
from PIL import Image

from pulse_jax import images
from pulse_jax.operators import (
    DOWNSCALERS,
    OPERATORS,
    area,
    bicubic,
    blur,
    compose,
    discard_unseen,
    grey,
    lanczos,
    mask,
    motion,
    parse,
    psf,
    shown,
    variance,
)

BICUBIC = golden("bicubic")
HOLE = np.random.default_rng(7).uniform(size=(32, 24)) < 0.3
KERNEL = np.random.default_rng(8).uniform(size=(5, 4))
SPATIAL = {
    "bicubic": bicubic(4),
    "area": area(4),
    "lanczos": lanczos(4),
    "blur": blur(1.3),
    "motion": motion(9.5, 20),
    "motion down": motion(7, -110),
    "psf": psf(KERNEL),
    "psf, area": compose(psf(KERNEL[:3, :3]), area(2)),
    "blur, bicubic": compose(blur(0.7), bicubic(2)),
    "motion, area, lanczos": compose(motion(4, 45), area(2), lanczos(2)),
}
ALL = SPATIAL | {
    "mask": mask(0.5),
    "mask of an array": mask(HOLE),
    "grey": grey(),
    "mask, grey, bicubic": compose(mask(HOLE), grey(), bicubic(2)),
    "nothing": compose(),
}
every_operator = pytest.mark.parametrize("operator", ALL.values(), ids=ALL)
every_spatial_operator = pytest.mark.parametrize("operator", SPATIAL.values(), ids=SPATIAL)
every_downscaler = pytest.mark.parametrize("name", DOWNSCALERS)
in_both_precisions = both_precisions(1e-5, 1e-10)


def random(shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@every_operator
def test_the_variance_is_the_l2_of_the_best_image_of_one_colour(operator):
    picture = random((32 // operator.factor, 24 // operator.factor, 3), seed=1)
    picture = discard_unseen(operator, picture)
    flat = [operator(jnp.ones((32, 24, 3)) * np.eye(3, dtype=np.float32)[c]) for c in range(3)]
    flat = np.float64(flat).reshape(3, -1)
    colour, *_ = np.linalg.lstsq(flat.T, np.float64(picture).ravel(), rcond=1e-5)
    l2 = np.mean((colour @ flat - picture.ravel()) ** 2)
    assert variance(operator, picture) == pytest.approx(l2, rel=1e-4)
    if operator.name in ("bicubic", "area", "lanczos", "blur"):
        assert l2 == pytest.approx(picture.var(axis=(0, 1)).mean(), rel=1e-4)


@in_both_precisions
@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16, 32])
def test_bicubic_equals_the_reference(factor, x64, dtype, bound):
    x, cotangent, y, gradient = (
        BICUBIC[f"f{factor}_{name}"].transpose(0, 2, 3, 1) for name in ("x", "cot", "y64", "grad_x")
    )

    @jax.jit
    def compute(x, cotangent):
        lr, vjp = jax.vjp(jax.vmap(bicubic(factor)), x)
        return lr, *vjp(cotangent)

    with jax.enable_x64(x64):
        lr, pullback = compute(x.astype(dtype), cotangent.astype(dtype))
    assert lr.dtype == pullback.dtype == dtype
    assert relative_error(lr, y) <= bound
    assert relative_error(pullback, gradient) <= bound


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5])
def test_bicubic_is_pillows_or_half_a_pixel_off(factor):
    """Where a picture is from 0 to 1 across, a pixel's value is the place that it shows."""
    across = np.arange(12.0 * factor)
    x = np.broadcast_to(across / across.size, (12 * factor, 12 * factor)).astype(np.float32)
    pillow = np.asarray(Image.fromarray(x).resize((12, 12), Image.BICUBIC))
    off = 0.5 / across.size * (factor % 2)
    lr = bicubic(factor)(x[..., None])[..., 0]
    np.testing.assert_allclose(lr[4:-4, 4:-4], pillow[4:-4, 4:-4] + off, atol=1e-6)


def test_area_is_the_mean_of_each_box():
    x = random((24, 12, 3))
    expected = [
        [x[i : i + 4, j : j + 4].mean((0, 1)) for j in range(0, 12, 4)] for i in range(0, 24, 4)
    ]
    assert relative_error(area(4)(x), expected) <= 1e-6


def test_no_operator_is_left_out():
    assert set(OPERATORS) <= {name for f in ALL.values() for name in f.name.split(",")}


@every_downscaler
def test_a_downscaler_has_its_factor_and_name(name):
    operator = DOWNSCALERS[name](4)
    assert (operator.name, operator.factor) == (name, 4)
    assert operator(random((24, 16, 3))).shape == (6, 4, 3)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_lanczos_equals_pillow_on_the_reflected_image(factor):
    x, border = random((8 * factor, 6 * factor)), 3 * factor
    larger = Image.fromarray(np.pad(x, border, mode="reflect"))
    expected = np.asarray(larger.resize((12, 14), Image.LANCZOS))[3:-3, 3:-3]
    with jax.enable_x64(True):
        lr = lanczos(factor)(x[..., None].astype(float))[..., 0]
    assert relative_error(lr, expected) <= 2e-7


@pytest.mark.parametrize("sigma", [0.1, 0.6, 2, 3.3])
def test_blur_equals_scipy(sigma):
    x = random((20, 17, 2)).astype(float)
    expected = scipy.ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="mirror", truncate=4)
    with jax.enable_x64(True):
        assert relative_error(blur(sigma)(x), expected) <= 1e-12


@pytest.mark.parametrize("shape", [(5, 7), (4, 6), (1, 3)])
def test_psf_equals_scipy(shape):
    x, kernel = random((20, 17, 2)).astype(float), random(shape).astype(float)
    # SciPy's middle of even sides is the same one, of the kernel that is turned around.
    expected = scipy.ndimage.convolve(x, (kernel / kernel.sum())[..., None], mode="mirror")
    with jax.enable_x64(True):
        assert relative_error(psf(kernel)(x), expected) <= 1e-7


def test_motion_is_the_mean_along_its_line():
    x = random((16, 16, 3))
    middle = np.s_[4:12, 4:12]

    def moved(down, right):  # what lies so far from each pixel in the middle
        return x[4 + down : 12 + down, 4 + right : 12 + right]

    row = np.mean([moved(0, k) for k in (-2, -1, 0, 1, 2)], axis=0)
    column = np.mean([moved(k, 0) for k in (-1, 0, 1)], axis=0)
    rising = np.mean([moved(-k, k) for k in (-1, 0, 1)], axis=0)
    halves = (moved(0, -2) / 2 + moved(0, -1) + x[middle] + moved(0, 1) + moved(0, 2) / 2) / 4
    assert relative_error(motion(5, 0)(x)[middle], row) <= 1e-6
    assert relative_error(motion(5, 180)(x)[middle], row) <= 1e-6
    assert relative_error(motion(3, 90)(x)[middle], column) <= 1e-6
    assert relative_error(motion(3 * np.sqrt(2), 45)(x)[middle], rising) <= 1e-6
    assert relative_error(motion(4, 0)(x)[middle], halves) <= 1e-6
    assert relative_error(motion(1, 30)(x), x) <= 1e-6
    # Between pixels: at arctan ½, one step to the right is half a pixel up.
    slope = np.degrees(np.arctan(0.5))
    along = (moved(0, 1) + moved(-1, 1) + moved(0, -1) + moved(1, -1)) / 2 + x[middle]
    assert relative_error(motion(3 * np.sqrt(1.25), slope)(x)[middle], along / 3) <= 1e-6


@pytest.mark.parametrize("angle", [0, 25, 45, 90, 100, 170])
def test_motion_blurs_a_point_to_its_length_and_angle(angle):
    point = np.zeros((41, 41, 1), np.float32)
    point[20, 20] = 1
    line = np.asarray(motion(15, angle)(point))[..., 0]
    down, right = np.mgrid[-20:21, -20:21]
    spread = np.array([[np.sum(line * a * b) for a in (right, -down)] for b in (right, -down)])
    lengths, directions = np.linalg.eigh(spread)
    assert np.sqrt(12 * lengths[1]) == pytest.approx(15, rel=0.03)
    assert lengths[0] <= 0.3  # no wider than the interpolation makes it
    found = np.degrees(np.arctan2(*directions[::-1, 1])) % 180
    assert abs((found - angle + 90) % 180 - 90) <= 1


def test_the_border_reflects_without_its_outermost_pixels():
    x = random((12, 12, 3))
    larger = np.pad(x, ((6, 6), (6, 6), (0, 0)), mode="reflect")
    for operator in (blur(1), motion(7, 30)):
        assert relative_error(operator(x), operator(larger)[6:-6, 6:-6]) <= 1e-6


def test_mask_keeps_what_is_outside_of_its_hole():
    x = random((32, 24, 3))
    assert np.array_equal(mask(HOLE)(x), x * ~HOLE[..., None])
    expected = x.copy()
    expected[8:24, 6:18] = 0
    assert np.array_equal(mask(0.5)(x), expected)
    x[10, 10] = np.nan
    assert np.isfinite(mask(0.5)(x)).all()


def test_grey_is_the_luma_of_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    luma = np.asarray(Image.fromarray(pixels).convert("L"), np.float32)
    y = np.asarray(grey()((pixels / 255).astype(np.float32)))
    assert np.array_equal(y[..., 0], y[..., 1]) and np.array_equal(y[..., 0], y[..., 2])
    assert np.abs(255 * y[..., 0] - luma).max() <= 0.51


def test_composition_goes_from_left_to_right():
    x = random((32, 24, 3))
    operator = compose(mask(HOLE), blur(1), area(4))
    assert (operator.name, operator.factor) == ("mask,blur,area", 4)
    assert np.array_equal(operator(x), area(4)(blur(1)(mask(HOLE)(x))))


@every_operator
@in_both_precisions
def test_adjoint(operator, x64, dtype, bound):
    side = np.array((32, 24)) // operator.factor
    x, y = random((32, 24, 3)).astype(dtype), random((*side, 3), 1).astype(dtype)

    @jax.jit
    def compute(x, y):
        (pulled_back,) = jax.vjp(operator, x)[1](y)
        (transpose,) = jax.linear_transpose(operator, x)(y)
        return operator(x), operator.adjoint(y), pulled_back, transpose

    with jax.enable_x64(x64):
        forward, backward, pulled_back, transpose = compute(x, y)
    assert (forward.shape, backward.shape) == (y.shape, x.shape)
    assert forward.dtype == backward.dtype == dtype
    assert relative_error(np.vdot(x, backward), np.vdot(forward, y)) <= bound
    assert relative_error(backward, pulled_back) <= bound
    assert relative_error(backward, transpose) <= bound


@every_operator
def test_linear(operator):
    x, y = random((32, 24, 3)), random((32, 24, 3), 1)
    assert relative_error(operator(2 * x - 3 * y), 2 * operator(x) - 3 * operator(y)) <= 1e-5


@every_spatial_operator
def test_spatial_operators_keep_constants_and_channels(operator):
    y = operator(np.full((32, 24, 3), 0.7, np.float32))
    np.testing.assert_allclose(y, np.full_like(y, 0.7), rtol=1e-6)
    x = random((16, 16, 3))
    apart = jnp.concatenate([operator(x[..., c : c + 1]) for c in range(3)], -1)
    np.testing.assert_allclose(operator(x), apart, rtol=1e-6)


@pytest.mark.parametrize("operator", [*SPATIAL.values(), grey()], ids=[*SPATIAL, "grey"])
def test_an_image_of_many_is_the_same_to_the_byte_at_every_place(operator):
    """Where a result comes out in a batch must not show: a run that goes on has other batches."""
    image = np.random.default_rng(3).uniform(size=(64, 64, 3)).astype(np.float32)
    small = operator(image)

    def pulled_back(image, cotangent):
        return jnp.vdot(operator(image), cotangent)

    images, cotangents = (jnp.repeat(x[None], 8, axis=0) for x in (image, small))
    forward = np.asarray(jax.jit(jax.vmap(operator))(images))
    gradient = np.asarray(jax.jit(jax.vmap(jax.grad(pulled_back)))(images, cotangents))
    for batch in (forward, gradient):
        np.testing.assert_array_equal(batch, batch[:1].repeat(8, axis=0))


@every_downscaler
@pytest.mark.parametrize("factor", [0, -2, 2.0, "8", True])
def test_bad_factors(unchecked, name, factor):
    with pytest.raises(ValueError, match=repr(factor)):
        DOWNSCALERS[name](factor)


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        *((blur, (sigma,)) for sigma in (0, -1, np.nan, np.inf, "2", True)),
        *((motion, (length, 0)) for length in (0, 0.5, np.inf, "2", True)),
        *((motion, (3, angle)) for angle in (np.nan, np.inf, "2", True)),
        *((mask, (share,)) for share in (0, 1, -0.5, np.nan, "half", True)),
    ],
)
def test_bad_parameters(unchecked, make, bad):
    with pytest.raises(ValueError, match=f"got ({'|'.join(map(repr, bad))})"):
        make(*bad)


def test_bad_masks(unchecked):
    for hole in (HOLE.astype(float), HOLE[0], HOLE[..., None]):
        with pytest.raises(ValueError, match=re.escape(f"{hole.shape} of {hole.dtype}")):
            mask(hole)
    with pytest.raises(ValueError, match="mask has 32×24 pixels, and the image 24×32"):
        mask(HOLE)(random((24, 32, 3)))


@pytest.mark.parametrize(
    "operator", [*(f(4) for f in DOWNSCALERS.values()), compose(blur(1), area(4))]
)
def test_bad_images(unchecked, operator):
    with pytest.raises(ValueError, match="32×30"):
        operator(np.zeros((32, 30, 3), np.float32))
    with pytest.raises(ValueError, match="vmap"):
        operator(np.zeros((2, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        operator(np.zeros((32, 32, 3), np.uint8))


@pytest.mark.parametrize("make", [*DOWNSCALERS.values(), blur])
def test_numbers_that_no_image_could_bear_are_refused_before_memory_is_taken(make):
    with pytest.raises(ValueError, match="must be at most 100000, got 1000000000000"):
        make(10**12)


def test_images_smaller_than_what_is_reflected():
    with pytest.raises(ValueError, match="bicubic needs sides larger than 12 pixels, got 8"):
        bicubic(8)(np.zeros((16, 8, 3), np.float32))
    assert bicubic(8)(np.zeros((16, 16, 3), np.float32)).shape == (2, 2, 3)
    with pytest.raises(ValueError, match="blur needs sides larger than 8 pixels, got 8"):
        blur(2)(np.zeros((8, 16, 3), np.float32))
    with pytest.raises(ValueError, match="motion needs sides larger than 8 pixels, got 8"):
        motion(16, 0)(np.zeros((16, 8, 3), np.float32))
    with pytest.raises(ValueError, match="grey takes an image of three channels"):
        grey()(np.zeros((8, 8, 1), np.float32))


@pytest.mark.parametrize(
    ("text", "factor", "expected"),
    [
        ("bicubic", 8, bicubic(8)),
        ("area:4", 4, area(4)),
        ("blur:2,bicubic", 4, compose(blur(2), bicubic(4))),
        ("motion:9.5:-30,lanczos:2,area", 8, compose(motion(9.5, -30), lanczos(2), area(4))),
        ("bicubic:2,bicubic", 2, compose(bicubic(2), bicubic(1))),
        ("grey,mask:0.25", 1, compose(grey(), mask(0.25))),
    ],
)
def test_parse(text, factor, expected):
    x = random((32, 32, 3))
    operator = parse(text)(factor)
    assert operator.factor == factor
    assert np.array_equal(operator(x), expected(x))


def test_a_factor_has_one_operator():
    make = parse("blur:2,bicubic")
    assert make(4).apply is make(4).apply is not make(2).apply


def test_a_mask_is_read_from_a_picture(tmp_path, monkeypatch):
    Image.fromarray(np.uint8(255 * HOLE)).save(tmp_path / "hole.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    x = random((32, 24, 3))
    for path in (tmp_path / "hole.png", "~/hole.png"):
        assert np.array_equal(parse(f"mask:{path}")(1)(x), mask(HOLE)(x))
    with pytest.raises(ValueError, match=r"missing\.png"):
        parse(f"mask:{tmp_path / 'missing.png'}")


@pytest.mark.parametrize("kind", ["npy", "fits", "tif"])
def test_a_kernel_is_read_from_a_file(tmp_path, kind):
    kernel, path = KERNEL.astype(np.float32), tmp_path / f"psf.{kind}"
    if kind == "npy":
        np.save(path, kernel)
    elif kind == "fits":
        pytest.importorskip("astropy.io.fits").writeto(path, kernel[::-1])  # the lowest row first
    else:
        Image.fromarray(kernel).save(path)
    x = random((32, 32, 3))
    made = parse(f"psf:{path},area:2")(2)
    assert np.array_equal(made(x), compose(psf(kernel), area(2))(x))


def test_a_kernel_in_a_picture_is_what_its_file_says(tmp_path):
    """Numbers that Pillow reads as others, rounded ones, which are told, and several pictures."""
    path, values = tmp_path / "psf.tif", np.array([[1, 2], [3, 250]], np.uint8)
    large = np.array([[1, 2], [3, 4 * 10**9]], np.uint32)
    Image.fromarray(large.view(np.int32)).save(path)
    kind = b"\x53\x01\x03\0\x01\0\0\0"  # SampleFormat: one short
    path.write_bytes(path.read_bytes().replace(kind + b"\x02", kind + b"\x01"))  # unsigned
    assert np.array_equal(images.load_kernel(path), large)
    picture = Image.fromarray(values)
    picture.save(path, tiffinfo={339: 2})  # signed
    with pytest.warns(images.ImageWarning, match=r"psf\.tif: its 8 bits round the kernel to 256"):
        assert np.array_equal(images.load_kernel(path), values.view(np.int8))
    picture.save(path, save_all=True, append_images=[picture])
    with pytest.raises(ValueError, match=r"psf\.tif: .* it holds 2 pictures, and a kernel is one"):
        images.load_kernel(path)


def test_compose_takes_operators(unchecked):
    with pytest.raises(ValueError, match="compose takes Operators, got <function bic"):
        compose(grey(), bicubic)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (np.ones(3), "it holds (3,) of float64, not a 2-D array of numbers"),
        (np.ones((3, 3), bool), "it holds (3, 3) of bool"),
        (np.full((3, 3), np.nan), "the kernel has values that are not finite"),
        (np.eye(2) - 0.5, "the kernel's sum must be finite and above 0, got 0"),
        ([[1, -1, 1e-12]], "the kernel's sum must be finite and above 0, got 1e-12"),
        (np.full((3, 3), 1e308), "the kernel's sum must be finite and above 0, got inf"),
    ],
)
def test_bad_kernels(unchecked, tmp_path, values, line):
    np.save(tmp_path / "psf.npy", values)
    with pytest.raises(ValueError, match=re.escape(line)):
        parse(f"psf:{tmp_path / 'psf.npy'}")
    with pytest.raises(ValueError, match=r"missing\.npy: can't be read"):
        parse(f"psf:{tmp_path / 'missing.npy'}")
    Image.fromarray(np.ones((3, 3), np.uint8)).convert("P").save(tmp_path / "psf.png")
    with pytest.raises(ValueError, match=r"psf\.png: can't be read: its numbers are colours"):
        parse(f"psf:{tmp_path / 'psf.png'}")
    (tmp_path / "psf.txt").write_text("1 2 1")
    with pytest.raises(ValueError, match=r"psf\.txt: can't be read: not a picture that Pillow can"):
        parse(f"psf:{tmp_path / 'psf.txt'}")
    with pytest.raises(ValueError, match="psf needs sides larger than 4 pixels, got 4"):
        psf(np.ones((9, 9)))(random((4, 4, 3)))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "'' is none of bicubic, area, lanczos, blur, motion, psf, mask, grey"),
        ("blur:1,cube", "'cube' is none of bicubic"),
        ("blur", "'blur' should be blur:SIGMA"),
        ("blur:1:2", "'blur:1:2' should be blur:SIGMA"),
        ("psf:", "'psf:' should be psf:KERNEL"),
        ("motion:3", "'motion:3' should be motion:LENGTH:ANGLE"),
        ("grey:1", "'grey:1' should be grey"),
        ("blur:wide", "got 'wide'"),
        ("blur:nan", "got nan"),
        ("bicubic:2.0", "factor must be an integer of at least 1, got 2.0"),
        ("bicubic:", "'bicubic:' should be bicubic:FACTOR"),
        ("mask:1.5", "got 1.5"),
        ("bicubic,area", "only one downscaler can be without its factor"),
    ],
)
def test_bad_texts(unchecked, text, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        parse(text)


@pytest.mark.parametrize(
    ("text", "given"), [("bicubic:4", 4), ("blur:2", 1), ("area:16", 16), ("area:3,bicubic", 3)]
)
def test_factors_that_do_not_fit(text, given):
    with pytest.raises(ValueError, match=f"factors multiply to {given}, and 8 is needed"):
        parse(text)(8)


@pytest.mark.parametrize(
    ("text", "values"),
    [("bicubic:2", 192), ("blur:1", 192), ("bicubic:2,grey", 64), ("mask:0.5", 144)],
)
def test_values_are_shown_once(text, values):
    operator = parse(text)(2 if ":2" in text else 1)
    found = shown(operator, (8, 8, 3))
    assert found.shape == (8, 8, 3) and found.sum() == values
    assert shown(operator, (8, 8, 4))[..., 3].sum() == (48 if "mask" in text else 64)
    if "grey" not in text:
        assert shown(operator, (8, 8, 1)).sum() == values / 3


def test_what_is_not_seen_is_discarded():
    y = random((16, 16, 3))
    for text in ("bicubic:2", "motion:5:20,area:2", "blur:1"):
        operator = parse(text)(2 if "2" in text[-2:] else 1)
        assert np.array_equal(discard_unseen(operator, y), y)
    for text in ("grey", "grey,blur:1", "bicubic:2,grey", "grey,bicubic:2"):
        operator = parse(text)(2 if "2" in text else 1)
        np.testing.assert_allclose(discard_unseen(operator, y), grey()(y), rtol=1e-6)
    assert np.array_equal(discard_unseen(mask(0.5), y), mask(0.5)(y))
    assert np.array_equal(discard_unseen(compose(area(2), mask(0.5)), y), mask(0.5)(y))
    assert np.array_equal(discard_unseen(compose(mask(0.5), area(2)), y), mask(0.5)(y))
    # The blur carries what is around the hole two pixels (4σ) into it.
    seen = discard_unseen(compose(mask(0.5), blur(0.5)), y)
    assert np.array_equal(seen, mask(4 / 16)(y))
