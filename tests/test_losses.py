"""Losses: the reference's numbers, and what happens at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import both_precisions, golden, relative_error

from pulse_jax.losses import Loss, geocross, l1, l2
from pulse_jax.operators import bicubic

G = golden("loss")
G |= {k: v.transpose(0, 2, 3, 1) for k, v in G.items() if v.ndim == 4}  # NCHW -> NHWC
EPS = [G[f"eps{i}"].item() for i in range(3)]
in_both_precisions = both_precisions(1e-5, 1e-10)


def batch_sum(loss):
    """The reference's loss of a batch: the sum over its samples."""
    return lambda *batch: jnp.sum(jax.vmap(loss)(*batch))


@in_both_precisions
@pytest.mark.parametrize("i", range(3))
@pytest.mark.parametrize(("loss", "name"), [(l2, "L2"), (l1, "L1")])
def test_pixel_losses_equal_the_reference(loss, name, i, x64, dtype, bound):
    with jax.enable_x64(x64):
        lr, target = jnp.asarray(G["gen_lr"], dtype), jnp.asarray(G["ref"], dtype)
        total = batch_sum(lambda lr, target: loss(lr, target, EPS[i]))
        value, gradient = jax.jit(jax.value_and_grad(total))(lr, target)
    assert value.dtype == gradient.dtype == dtype
    assert relative_error(value, G[f"{name}_eps{i}"]) <= bound
    assert relative_error(gradient, G[f"{name}_eps{i}_grad_gen_lr"]) <= bound


@in_both_precisions
def test_geocross_equals_the_reference(x64, dtype, bound):
    with jax.enable_x64(x64):
        styles = jnp.asarray(G["latent"], dtype)
        values = jax.jit(jax.vmap(geocross))(styles)
        gradient = jax.jit(jax.grad(batch_sum(geocross)))(styles)
    assert values.dtype == gradient.dtype == dtype
    assert relative_error(values, G["GEOCROSS_per_sample"]) <= bound
    assert relative_error(gradient, G["GEOCROSS_grad_latent"]) <= bound


def test_geocross_of_equal_styles_equals_the_reference():
    with jax.enable_x64(True):
        row = jnp.asarray(G["latent"][:, :1], jnp.float64)
        total = batch_sum(lambda row: geocross(jnp.tile(row, (18, 1))))
        value, gradient = jax.jit(jax.value_and_grad(total))(row)
    assert relative_error(value, G["GEOCROSS_tiled"]) <= 1e-10
    assert relative_error(gradient, G["GEOCROSS_tiled_grad_row"]) <= 1e-10


def test_geocross_is_the_squared_angle_for_any_layers_and_size():
    u, v = np.eye(7, dtype=np.float32)[:2]
    styles = 3 * np.stack([u, np.cos(0.3) * u + np.sin(0.3) * v, np.cos(1.5) * u - np.sin(1.5) * v])
    expected = 7 * 2 * (0.3**2 + 1.5**2 + 1.8**2) / 9 / 8
    assert relative_error(geocross(styles), expected) <= 1e-5


def test_geocross_of_one_style_is_0():
    value, gradient = jax.value_and_grad(geocross)(jnp.ones((1, 5)))
    assert value == G["GEOCROSS_one_layer"] == 0
    assert not gradient.any()


@pytest.mark.parametrize("length", [0.0, 1.0])
def test_geocross_has_a_finite_gradient_where_styles_coincide(length):
    assert np.isfinite(jax.jit(jax.grad(geocross))(jnp.full((3, 5), length))).all()


@in_both_precisions
@pytest.mark.parametrize(
    ("j", "weights"),
    [(0, {}), (1, {"l2": 0.0, "l1": 10.0, "geocross": 0.1}), (2, {"geocross": 0.0})],
)
def test_weighted_sums_equal_the_reference(j, weights, x64, dtype, bound):
    loss, operator = Loss(**weights, eps=EPS[0]), bicubic(G["factor"].item())
    total = batch_sum(lambda image, target, styles: loss(operator(image), target, styles))
    with jax.enable_x64(x64):
        batch = [jnp.asarray(G[name], dtype) for name in ("gen", "ref", "latent")]
        value, (to_image, to_styles) = jax.jit(jax.value_and_grad(total, (0, 2)))(*batch)
    assert value.dtype == dtype
    assert relative_error(value, G[f"total{j}"]) <= bound
    if j == 0:
        assert relative_error(to_image, G["total0_grad_gen"]) <= bound
    if j < 2:
        assert relative_error(to_styles[:, 0], G[f"total{j}_grad_latent_row0"]) <= bound


def test_a_loss_without_geocross_needs_no_styles():
    lr, target = np.full((2, 2, 3), 0.25, np.float32), np.zeros((2, 2, 3), np.float32)
    assert Loss().needs_styles
    assert not Loss(geocross=0.0).needs_styles
    assert Loss(l1=2.0, geocross=0.0)(lr, target, None) == 100 / 16 + 2 * 10 / 4


def test_the_gradient_is_whole_at_eps_and_0_below():
    target = np.zeros((2, 2, 3), np.float32)
    for lr, share in [(0.25, 2 * 0.25 / 12), (0.125, 0.0)]:
        gradient = jax.grad(l2)(jnp.full((2, 2, 3), lr), target, 0.25**2)
        np.testing.assert_allclose(gradient, share, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"eps": -1e-3}, "-0.001"),
        ({"eps": float("nan")}, "nan"),
        ({"l2": float("inf")}, "inf"),
        ({"l1": -1.0}, "the weight of l1 must be from 0 to 1e\\+15, got -1.0"),
        ({"geocross": float("nan")}, "nan"),
        ({"l2": 0.0, "geocross": 0.0}, "other than 0"),
        ({"others": ((1.0, "huber"),)}, r"others\[0\] must have a function of .*, got 'huber'"),
    ],
)
def test_bad_losses(unchecked, arguments, told):
    with pytest.raises(ValueError, match=told):
        Loss(**arguments)


def test_bad_shapes(unchecked):
    with pytest.raises(ValueError, match=r"\(4, 4, 1\).*\(4, 4, 3\)"):
        l2(np.zeros((4, 4, 3)), np.zeros((4, 4, 1)))
    for loss in (l2, l1):
        with pytest.raises(ValueError, match=r"floats in \[0, 1\], not of uint8"):
            loss(np.zeros((4, 4, 3)), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\(2, 18, 512\)"):
        geocross(np.zeros((2, 18, 512)))
