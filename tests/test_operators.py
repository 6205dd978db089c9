"""Operators: the reference's numbers, and the laws every linear operator obeys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden, relative_error

from pulse_jax.operators import OPERATORS, area, bicubic

BICUBIC = golden("bicubic")
every_operator = pytest.mark.parametrize(
    "operator", [f(4) for f in OPERATORS.values()], ids=OPERATORS
)
both_precisions = pytest.mark.parametrize(
    ("x64", "dtype", "bound"), [(False, "float32", 1e-5), (True, "float64", 1e-10)]
)


def random(shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@both_precisions
@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16, 32])
def test_bicubic_equals_the_reference(factor, x64, dtype, bound):
    x, cotangent, y, gradient = (
        BICUBIC[f"f{factor}_{name}"].transpose(0, 2, 3, 1) for name in ("x", "cot", "y64", "grad_x")
    )
    operator = jax.vmap(bicubic(factor))
    with jax.enable_x64(x64):
        lr, vjp = jax.vjp(operator, jnp.asarray(x, dtype))
        (pullback,) = vjp(jnp.asarray(cotangent, dtype))
    assert lr.dtype == pullback.dtype == dtype
    assert relative_error(lr, y) <= bound
    assert relative_error(pullback, gradient) <= bound


def test_area_is_the_mean_of_each_box():
    x = random((24, 12, 3))
    expected = [
        [x[i : i + 4, j : j + 4].mean((0, 1)) for j in range(0, 12, 4)] for i in range(0, 24, 4)
    ]
    assert relative_error(area(4)(x), expected) <= 1e-6


@every_operator
@both_precisions
def test_adjoint(operator, x64, dtype, bound):
    with jax.enable_x64(x64):
        x, y = jnp.asarray(random((32, 24, 3)), dtype), jnp.asarray(random((8, 6, 3), 1), dtype)
        forward, backward = operator(x), operator.adjoint(y)
        (transpose,) = jax.linear_transpose(operator, x)(y)
        assert (forward.shape, backward.shape) == (y.shape, x.shape)
        assert forward.dtype == backward.dtype == dtype
        assert relative_error(jnp.vdot(x, backward), jnp.vdot(forward, y)) <= bound
        assert relative_error(backward, transpose) <= bound


@every_operator
def test_linear_and_keeps_constants(operator):
    x, y = random((32, 24, 3)), random((32, 24, 3), 1)
    assert relative_error(operator(2 * x - 3 * y), 2 * operator(x) - 3 * operator(y)) <= 1e-5
    assert (
        relative_error(operator(np.full((32, 24, 3), 0.7, np.float32)), np.full((8, 6, 3), 0.7))
        <= 1e-6
    )


@every_operator
def test_channels_do_not_mix(operator):
    x = random((16, 16, 3))
    apart = jnp.concatenate([operator(x[..., c : c + 1]) for c in range(3)], -1)
    np.testing.assert_allclose(operator(x), apart, rtol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("factor", [0, -2, 2.0, "8", True])
def test_bad_factors(name, factor):
    with pytest.raises(ValueError, match=repr(factor)):
        OPERATORS[name](factor)


@every_operator
def test_bad_images(operator):
    with pytest.raises(ValueError, match="32×30"):
        operator(np.zeros((32, 30, 3), np.float32))
    with pytest.raises(ValueError, match="vmap"):
        operator(np.zeros((2, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        operator(np.zeros((32, 32, 3), np.uint8))


def test_bicubic_refuses_a_side_within_its_padding():
    with pytest.raises(ValueError, match="larger than 12 pixels, got 8"):
        bicubic(8)(np.zeros((16, 8, 3), np.float32))
    assert bicubic(8)(np.zeros((16, 16, 3), np.float32)).shape == (2, 2, 3)
