"""Differentiable augmentation, for discriminators that see few images many times.

As in Karras et al., "Training generative adversarial networks with limited data", NeurIPS 2020
(ADA), the discriminator sees real and generated images through random transformations, each of
which is applied with probability p. If p is below about 0.8, they don't leak into what is
generated. p rises while the discriminator is too sure of the real images, and falls while it isn't.
"""

import jax
import jax.numpy as jnp
import numpy as np

MAX_P = 0.8
GREY = np.full((3, 3), 1 / 3, np.float32)  # projection onto the grey axis
# The cross product with the unit vector along it, which generates turns of the hue.
HUE = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], np.float32) / np.sqrt(3, dtype=np.float32)


def augment(key, batch, p):
    """Images (N, R, R, 3) in [-1, 1], each transformed in its own way.

    Each of these has probability p, a scalar in [0, 1]: one of the square's symmetries; a
    translation by up to an eighth of the side, in whole pixels and with reflection; brightness,
    contrast, saturation and hue, distributed as in the paper; a square of half the side set to 0.
    All are exact, since nothing is interpolated.
    """
    keys = iter(jax.random.split(key, 13))
    count, side = batch.shape[:2]

    def chosen(values, identity):
        """`values`, or with probability 1 − p what changes nothing."""
        on = jax.random.uniform(next(keys), (count,)) < p
        return jnp.where(on.reshape(-1, *[1] * (values.ndim - 1)), values, identity)

    batch = turned(batch, chosen(jax.random.randint(next(keys), (count,), 0, 8), 0))

    reach = side // 8
    shift = chosen(jax.random.randint(next(keys), (count, 2), -reach, reach + 1), 0)
    batch = translated(batch, shift)

    def normal():
        return jax.random.normal(next(keys), (count, 1, 1))

    brightness = chosen(0.2 * normal(), 0)
    contrast = chosen(2 ** (0.5 * normal()), 1)
    saturation = chosen(2 ** normal(), 1)
    turn = jax.random.uniform(next(keys), (count, 1, 1), minval=-np.pi, maxval=np.pi)
    turn = chosen(turn, 0)
    colourful = jnp.cos(turn) * (jnp.eye(3) - GREY) + jnp.sin(turn) * HUE
    matrix = contrast * (GREY + saturation * colourful)  # (N, 3, 3)
    # In full precision: an accelerator would round the colours.
    batch = jnp.einsum("nij,nyxj->nyxi", matrix, batch, precision="highest")
    batch += (contrast * brightness)[..., None]

    return batch * cutout_mask(next(keys), count, side, p)


def turned(batch, element):
    """Each image under one of the square's eight symmetries, numbered from 0, the identity.

    The number's lowest bit mirrors left and right, the second top and bottom, the third the
    diagonal.
    """
    element = element[:, None, None, None]
    batch = jnp.where((element & 1) > 0, batch[:, :, ::-1], batch)
    batch = jnp.where((element & 2) > 0, batch[:, ::-1], batch)
    return jnp.where((element & 4) > 0, batch.swapaxes(1, 2), batch)


def translated(batch, shift):
    """Pixel (y, x) of each image taken from (y, x) + shift (N, 2), reflected at the borders."""
    side = batch.shape[1]
    index = jnp.abs(jnp.arange(side) + shift[..., None])  # (N, 2, R)
    index = jnp.minimum(index, 2 * (side - 1) - index)
    # As products, since the derivative of a lookup is a slow scatter on a GPU.
    pick = jax.nn.one_hot(index, side, dtype=batch.dtype)
    return jnp.einsum("nyi,nxj,nijc->nyxc", pick[:, 0], pick[:, 1], batch, precision="highest")


def cutout_mask(key, count, side, p):
    """Masks (N, R, R, 1): 0 in a square of half the side around a random pixel, or 1 throughout."""
    on_key, key = jax.random.split(key)
    on = jax.random.uniform(on_key, (count, 1)) < p
    centre = jax.random.randint(key, (2, count, 1), 0, side)
    rows, columns = jnp.abs(jnp.arange(side) - centre) < side // 4  # (N, R) each
    inside = (rows & on)[:, :, None] & columns[:, None]
    return 1.0 - inside[..., None]


def adapted(p, real_logits, images, target):
    """p after a batch. It moves by len(batch) / `images`, and up if E[sign D(real)] > `target`.

    Equation 1 of the paper, whose target is 0.6 and whose p goes from 0 to 1 in 500,000 images.
    """
    sure = jnp.sign(real_logits).mean() - target
    return jnp.clip(p + jnp.sign(sure) * len(real_logits) / images, 0, MAX_P)
