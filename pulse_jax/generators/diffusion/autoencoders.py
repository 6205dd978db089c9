"""Decoders of latent diffusion models: diffusers' VQModel, AutoencoderKL and AutoencoderTiny.

Each takes the diffusion model's variable x (n, h, w, c), undoes its scaling, z = x / scaling_factor
+ shift_factor, and decodes z to images (n, H, W, 3), nominally in [−1, 1]. `decode` takes z itself.
The fields are the keys of diffusers' config.json, with its defaults.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from pulse_jax.generators.diffusion.blocks import Attention, Conv, Images, Resnet, group_norm
from pulse_jax.generators.layers import nearest_conv2d

UP_BLOCKS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}  # with attention or not
EPS = 1e-6


class _Decoder(nn.Module):
    """What VQModel and AutoencoderKL have in common: a U-Net's second half, without times."""

    block_out_channels: tuple[int, ...]
    up_block_types: tuple[str, ...]
    layers_per_block: int
    norm_num_groups: int
    out_channels: int
    mid_block_add_attention: bool

    @nn.compact
    def __call__(self, z: Images) -> Images:
        groups = self.norm_num_groups

        def resnet(name: str, features: int) -> Resnet:
            return Resnet(features, (groups, groups), EPS, name=name)

        def attention(name: str) -> Attention:
            return Attention(None, groups, EPS, name=name)

        *_, features = self.block_out_channels
        h = Conv(features, name="conv_in")(z)
        h = resnet("mid_block_resnets_0", features)(h)
        if self.mid_block_add_attention:
            h = attention("mid_block_attentions_0")(h)
        h = resnet("mid_block_resnets_1", features)(h)
        last = len(self.block_out_channels) - 1
        for i, features in enumerate(self.block_out_channels[::-1]):
            for j in range(self.layers_per_block + 1):
                h = resnet(f"up_blocks_{i}_resnets_{j}", features)(h)
                if UP_BLOCKS[self.up_block_types[i]]:
                    h = attention(f"up_blocks_{i}_attentions_{j}")(h)
            if i < last:
                name = f"up_blocks_{i}_upsamplers_0_conv"
                h = Conv(features, convolve=nearest_conv2d, name=name)(h)
        h = nn.silu(group_norm(groups, EPS, "conv_norm_out")(h))
        return Conv(self.out_channels, name="conv_out")(h)


class _Published(nn.Module):
    """What diffusers' decoders have in common: each of their levels but the last doubles sides."""

    out_channels: int = 3

    @property
    def levels(self) -> int:
        raise NotImplementedError

    @property
    def factor(self) -> int:
        """How many times the sides grow."""
        return 2 ** (self.levels - 1)

    def image_channels(self, latents: int) -> int:
        """The channels of the images."""
        return self.out_channels


class _Autoencoder(_Published):
    """What VQModel and AutoencoderKL have in common, besides a scale of their latents."""

    block_out_channels: tuple[int, ...] = (64,)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    scaling_factor: float = 0.18215

    @property
    def levels(self) -> int:
        return len(self.block_out_channels)

    def make_decoder(self) -> _Decoder:
        """The part after the first convolution. Raises ValueError for blocks of other types."""
        for kind in self.up_block_types:
            if kind not in UP_BLOCKS:
                known = ", ".join(UP_BLOCKS)
                raise ValueError(f"up_block_types must be among {known}, got {kind!r}")
        if len(self.up_block_types) != len(self.block_out_channels):
            raise ValueError("up_block_types and block_out_channels are not as many")
        return _Decoder(
            self.block_out_channels,
            self.up_block_types,
            self.layers_per_block,
            self.norm_num_groups,
            self.out_channels,
            self.mid_block_add_attention,
            name="decoder",
        )


class VQModel(_Autoencoder):
    """The decoder of a VQ-GAN. Each pixel of z becomes the nearest of the code vectors.

    The gradient passes this step as if it weren't there (straight through). Without `quantize`,
    `decode` leaves it out.
    """

    latent_channels: int = 3
    num_vq_embeddings: int = 256
    vq_embed_dim: int | None = None

    def __call__(self, x: Images) -> Images:
        return self.decode(x / self.scaling_factor)

    @nn.compact
    def decode(self, z: Images, quantize: bool = True) -> Images:
        shape = self.num_vq_embeddings, self.vq_embed_dim or self.latent_channels
        codes = nn.Embed(*shape, name="quantize_embedding").embedding
        if quantize:
            z = z + lax.stop_gradient(_nearest_codes(z, codes) - z)
        z = Conv(self.latent_channels, 1, name="post_quant_conv")(z)
        return self.make_decoder()(z)


def _nearest_codes(z: Images, codes: Array) -> Images:
    """The code vector that is nearest to each pixel."""
    products = jnp.einsum("nhwd,cd->nhwc", z, codes, precision="highest")
    return codes[jnp.argmin(jnp.sum(codes**2, axis=-1) - 2 * products, axis=-1)]


class AutoencoderKL(_Autoencoder):
    """The decoder of a variational autoencoder."""

    latent_channels: int = 4
    use_post_quant_conv: bool = True
    shift_factor: float | None = None

    def __call__(self, x: Images) -> Images:
        return self.decode(x / self.scaling_factor + (self.shift_factor or 0.0))

    @nn.compact
    def decode(self, z: Images) -> Images:
        if self.use_post_quant_conv:
            z = Conv(self.latent_channels, 1, name="post_quant_conv")(z)
        return self.make_decoder()(z)


class AutoencoderTiny(_Published):
    """A small decoder that stands in for a large one: 3×3 convolutions and ReLUs."""

    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_channels: int = 4
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    @property
    def levels(self) -> int:
        return len(self.num_decoder_blocks)

    def __call__(self, x: Images) -> Images:
        return self.decode(x / self.scaling_factor + self.shift_factor)

    @nn.compact
    def decode(self, z: Images) -> Images:
        h = Conv(self.decoder_block_out_channels[0], name="decoder_layers_0")(3 * jnp.tanh(z / 3))
        h = nn.relu(h)
        number, last = 2, len(self.num_decoder_blocks) - 1  # diffusers numbers ReLUs too
        for level, (blocks, features) in enumerate(
            zip(self.num_decoder_blocks, self.decoder_block_out_channels, strict=True)
        ):
            for _ in range(blocks):
                x = h
                for i in (0, 2, 4):
                    x = Conv(features, name=f"decoder_layers_{number}_conv_{i}")(
                        x if i == 0 else nn.relu(x)
                    )
                h, number = nn.relu(x + h), number + 1
            if level < last:
                name = f"decoder_layers_{number + 1}"
                h = Conv(features, convolve=nearest_conv2d, use_bias=False, name=name)(h)
                number += 2
        return 2 * Conv(self.out_channels, name=f"decoder_layers_{number}")(h) - 1


class DepthToSpace(nn.Module):
    """A decoder without parameters: each pixel's channels become a square of `factor`² pixels.

    Channel (i · factor + j) · 3 + c is colour c of the pixel in row i and column j of the square.
    So a network can work at a lower resolution. Noise in its latents is noise in the image.
    """

    factor: int

    def image_channels(self, latents: int) -> int:
        """The channels of the images, from those of the latents."""
        return latents // self.factor**2

    def __call__(self, x: Images) -> Images:
        n, h, w, _ = x.shape
        x = x.reshape(n, h, w, self.factor, self.factor, -1).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(n, h * self.factor, w * self.factor, -1)
