"""Convolutions and resampling against XLA's own, written as the definitions say."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative_error
from jax import lax

from pulse_jax.generators import layers

TAPS = (0.1, 0.2, 0.3, 0.5)  # no symmetry hides a filter that is turned round
BINOMIAL = np.array([1, 3, 3, 1]) / 4


def correlate(x, kernel, padding, stride=1, dilation=1, groups=1):
    """XLA's convolution; `dilation` inserts zeros into `x`."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (padding, padding),
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def filtered(x, taps, padding, dilation=1):
    kernel = np.outer(taps, taps)[:, :, None, None]
    kernel = jnp.asarray(np.tile(kernel, x.shape[-1]), x.dtype)
    return correlate(x, kernel, padding, dilation=dilation, groups=x.shape[-1])


def nearest(x, kernel):
    return correlate(x.repeat(2, axis=1).repeat(2, axis=2), kernel, (1, 1))


def transposed(x, kernel):
    return correlate(x, kernel[::-1, ::-1], (2, 3), dilation=2)


def strided(x, kernel):
    return correlate(x[:, :-1, :-1], kernel, (0, 0), stride=2)


# name: (ours, the definition, shape of x, shape of the kernel or of a filter's factor)
LAYERS = {
    f"conv2d {size}x{size} {padding}": (
        lambda x, kernel, padding=padding: layers.conv2d(x, kernel, padding),
        lambda x, kernel, padding=padding: correlate(x, kernel, padding),
        (2, 6, 4, 3),
        (size, size, 3, 5),
    )
    for size, padding in [(3, (1, 1)), (2, (1, 1)), (2, (0, 0)), (1, (0, 0)), (3, (0, 2))]
} | {
    "nearest_conv2d": (layers.nearest_conv2d, nearest, (2, 3, 4, 3), (3, 3, 3, 5)),
    "transposed_conv2d": (layers.transposed_conv2d, transposed, (2, 3, 4, 3), (3, 3, 3, 5)),
    "strided_conv2d": (layers.strided_conv2d, strided, (2, 8, 6, 3), (3, 3, 3, 5)),
    "blur": (
        lambda x, scale: scale * layers.blur(x, TAPS, (2, 0)),
        lambda x, scale: scale * filtered(x, TAPS, (2, 0)),
        (2, 5, 4, 3),
        (),
    ),
    "upsample": (
        lambda x, scale: scale * layers.upsample(x),
        lambda x, scale: scale * filtered(x, BINOMIAL, (2, 2), dilation=2),
        (2, 5, 4, 3),
        (),
    ),
}
every_layer = pytest.mark.parametrize(
    ("ours", "definition", "x_shape", "kernel_shape"), LAYERS.values(), ids=LAYERS
)


def normal(seed, *shapes):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape) for shape in shapes]


def value_gradients_and_penalty(layer):
    """A layer's value, the gradients of a loss, and those of the loss's squared x-gradient."""

    def loss(x, kernel):
        y = layer(x, kernel)
        return jnp.sum(y**3), y

    def penalty(x, kernel):  # R1 in the training of a discriminator
        return jnp.sum(jax.grad(loss, has_aux=True)(x, kernel)[0] ** 2)

    def everything(x, kernel):
        gradients, y = jax.grad(loss, argnums=(0, 1), has_aux=True)(x, kernel)
        return y, gradients, jax.grad(penalty, argnums=(0, 1))(x, kernel)

    return jax.jit(everything)


@every_layer
def test_value_gradients_and_second_derivatives(ours, definition, x_shape, kernel_shape):
    with jax.enable_x64(True):
        inputs = normal(0, x_shape, kernel_shape)
        actual = jax.tree.leaves(value_gradients_and_penalty(ours)(*inputs))
        expected = jax.tree.leaves(value_gradients_and_penalty(definition)(*inputs))
    assert len(actual) == 5
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == np.float64
        assert relative_error(a, b) <= 1e-13


@pytest.mark.optimised
@every_layer
def test_every_convolution_of_an_input_gradient_is_in_canonical_form(
    ours, definition, x_shape, kernel_shape
):
    def loss(x, kernel):
        return jnp.sum(ours(x, kernel) ** 2)

    x, kernel = normal(0, x_shape, kernel_shape)
    program = jax.jit(jax.value_and_grad(loss)).lower(x, kernel).compile().as_text()
    convolutions = re.findall(r"dim_labels=(\w+->\w+)", program)
    assert set(convolutions) <= {"b01f_01io->b01f"}
    if kernel.size > 15:  # a 1×1 kernel becomes a matrix product, a filter a sum
        assert len(convolutions) >= 2


@pytest.mark.parametrize("name", ["conv2d 3x3 (1, 1)", "blur"])
def test_forward_mode_is_refused(name):
    ours, _, x_shape, kernel_shape = LAYERS[name]
    x, kernel = map(jnp.asarray, normal(0, x_shape, kernel_shape))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: ours(x, kernel), (x,), (x,))


@pytest.mark.parametrize(("size", "padding"), [(3, (1, 1)), (2, (1, 1)), (1, (0, 0)), (3, (0, 2))])
def test_both_forms_of_the_kernel_gradient_agree(size, padding):
    forms = {
        "any platform": lambda x, g: layers._as_convolution(x, g, padding),
        "cpu": lambda x, g: layers._as_products(x, g, size, padding),
    }
    cotangent_shape = (2, *(n + sum(padding) - size + 1 for n in (6, 4)), 5)
    x, cotangent, kernel = normal(1, (2, 6, 4, 3), cotangent_shape, (size, size, 3, 5))

    def definition(x, cotangent):
        return jax.vjp(lambda kernel: correlate(x, kernel, padding), kernel)[1](cotangent)[0]

    @jax.jit(static_argnums=0)
    def derivatives(form, x, cotangent):
        def penalty(x, cotangent):
            return jnp.sum(form(x, cotangent) ** 3)

        return form(x, cotangent), *jax.grad(penalty, argnums=(0, 1))(x, cotangent)

    with jax.enable_x64(True):
        expected = derivatives(definition, x, cotangent)
        for name, form in forms.items():
            for a, b in zip(derivatives(form, x, cotangent), expected, strict=True):
                assert relative_error(a, b) <= 1e-13, name


def test_each_platform_gets_its_form_of_the_kernel_gradient():
    x, cotangent = jnp.ones((2, 6, 4, 3)), jnp.ones((2, 6, 4, 5))
    traced = jax.jit(lambda x, g: layers._kernel_gradient(x, g, 3, (1, 1))).trace(x, cotangent)
    cpu, gpu = (traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda"))
    assert "while" in cpu and "stablehlo.convolution" not in cpu
    assert "while" not in gpu and "stablehlo.convolution" in gpu


def test_equalised_weights_are_stored_large_and_used_small():
    x = np.eye(200, dtype=np.float32)
    dense = layers.Dense(300, gain=2.0, lr_multiplier=0.01, bias_init=3.0)
    params = jax.jit(dense.init)(jax.random.key(0), x)["params"]
    assert np.std(params["kernel"]) == pytest.approx(100, rel=0.02)
    y = jax.jit(dense.apply)({"params": params}, x)
    assert np.mean(y) == pytest.approx(0.03, abs=3e-3)
    assert np.std(y) == pytest.approx(2 / np.sqrt(200), rel=0.02)


def test_leaky_relu():
    x = jnp.array([-2.0, -0.0, 0.0, 3.0])
    assert relative_error(layers.leaky_relu(x, 1.5), [-0.6, 0, 0, 4.5]) <= 1e-6
    slopes = jax.vmap(jax.grad(lambda x: layers.leaky_relu(x, 1.5)))(x)
    assert relative_error(slopes, [0.3, 0.3, 0.3, 1.5]) <= 1e-6
