"""diffusers' `UNet2DModel` as a Flax module: networks of DDPM, ADM and NCSN++ kind."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int

from pulse_jax.generators.diffusion.blocks import (
    Attention,
    Conv,
    FourierFeatures,
    Images,
    Resnet,
    TimeEmbedding,
    angles_of_time,
    fir_down,
    frequencies,
    group_norm,
    halved,
    halved_below,
    mean_of_4,
    nearest,
)
from pulse_jax.generators.layers import nearest_conv2d, upsample

Embedding = Float[Array, "_ e"]

# What these settings may be. diffusers has other kinds, which no published network has.
KINDS = {
    "time_embedding_type": ("positional", "fourier"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
}

# Whether the blocks of a type have attention, and whether they are those of NCSN++, with a second
# path that carries an image.
DOWN_BLOCKS = {
    "DownBlock2D": (False, False),
    "AttnDownBlock2D": (True, False),
    "ResnetDownsampleBlock2D": (False, False),
    "SkipDownBlock2D": (False, True),
    "AttnSkipDownBlock2D": (True, True),
}
UP_BLOCKS = {
    "UpBlock2D": (False, False),
    "AttnUpBlock2D": (True, False),
    "ResnetUpsampleBlock2D": (False, False),
    "SkipUpBlock2D": (False, True),
    "AttnSkipUpBlock2D": (True, True),
}


class UNet2DModel(nn.Module):
    """The network of a diffusion, consistency or flow model.

    `apply({"params": params}, x, t)` takes images or latents x (n, h, w, in_channels), and a time t
    for all of them or (n,), one for each. It returns (n, h, w, out_channels). With
    `num_class_embeds` it also takes the classes `labels` (n,). What x, t and the result mean is a
    matter of the schedule that the network was trained with.

    The fields are the keys of diffusers' config.json, with the defaults of diffusers, and a type of
    block for each level: see `DOWN_BLOCKS`, `UP_BLOCKS` and `KINDS`. Raises ValueError for another
    type, and for a `sample_size` that can't be halved so often.
    """

    sample_size: int
    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    num_class_embeds: int | None = None
    layers_per_block: int = 2

    def __post_init__(self) -> None:
        for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            types = getattr(self, name)
            if unknown := [type_ for type_ in types if type_ not in known]:
                raise ValueError(f"{name} must be among {', '.join(known)}, got {unknown[0]!r}")
            if len(types) != len(self.block_out_channels):
                levels = len(self.block_out_channels)
                raise ValueError(f"{name} are {len(types)} for {levels} block_out_channels")
        for name, kinds in KINDS.items():
            if (kind := getattr(self, name)) not in kinds:
                raise ValueError(f"{name} must be {' or '.join(kinds)}, got {kind!r:.60}")
        multiple = 2 ** (len(self.block_out_channels) - 1)
        if not 0 < self.sample_size <= 4096 or self.sample_size % multiple:
            told = f"a multiple of {multiple}, up to 4096"
            raise ValueError(f"sample_size = {self.sample_size} must be {told}")
        super().__post_init__()

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """The height, width and channels of what the network takes."""
        return self.sample_size, self.sample_size, self.in_channels

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.num_class_embeds or 0

    @nn.compact
    def __call__(
        self, x: Images, t: Float[Array, "*times"], labels: Int[Array, "n"] | None = None
    ) -> Images:
        if self.center_input_sample:
            x = 2 * x - 1
        t = jnp.atleast_1d(jnp.asarray(t))
        emb = self._embed(t, labels).astype(x.dtype)
        image, skip = x, None
        h = Conv(self.block_out_channels[0], name="conv_in")(x)
        stack = [h]
        for level in range(len(self.block_out_channels)):
            h, image, pushed = self._down(level, h, image, emb)
            stack += pushed
        h = self._middle(h, emb)
        for level in range(len(self.block_out_channels)):
            popped = [stack.pop() for _ in range(self.layers_per_block + 1)]
            h, skip = self._up(level, h, skip, popped, emb)
        norm = group_norm(_groups(self, h.shape[-1]), self.norm_eps, "conv_norm_out")
        h = Conv(self.out_channels, name="conv_out")(nn.silu(norm(h)))
        if skip is not None:
            h = h + skip
        return h / t[:, None, None, None] if self.time_embedding_type == "fourier" else h

    def _embed(self, t: Float[Array, "times"], labels: Int[Array, "n"] | None) -> Embedding:
        """The embedding of times and classes."""
        features: Any
        first = self.block_out_channels[0]
        if self.time_embedding_type == "fourier":
            features = FourierFeatures(2 * first, name="time_proj")(t)
        else:
            sin, cos = angles_of_time(t, frequencies(first // 2, self.freq_shift))
            both = [cos, sin] if self.flip_sin_to_cos else [sin, cos]
            features = jnp.concatenate(both, axis=-1)
        width = self.time_embedding_dim or 4 * first
        emb = TimeEmbedding(width, name="time_embedding")(features)
        if self.num_class_embeds is not None:
            if labels is None:
                raise ValueError("a network with classes takes labels")
            emb = emb + nn.Embed(self.num_class_embeds, width, name="class_embedding")(labels)
        return emb

    def _down(
        self, level: int, h: Images, image: Images, emb: Embedding
    ) -> tuple[Images, Images, list[Array]]:
        """The features, the image of the second path, and what the up blocks will need."""
        kind, features = self.down_block_types[level], self.block_out_channels[level]
        attention, skip = DOWN_BLOCKS[kind]
        name, divisor, pushed = f"down_blocks_{level}", math.sqrt(2) if skip else 1.0, []
        for i in range(self.layers_per_block):
            h = self._resnet(f"{name}_resnets_{i}", features, h.shape[-1], divisor)(h, emb)
            if attention:
                h = self._attention(f"{name}_attentions_{i}", divisor)(h)
            pushed.append(h)
        if level == len(self.block_out_channels) - 1:
            return h, image, pushed
        if skip:
            more: dict[str, Any] = {"resample": fir_down, "shortcut": True}
            h = self._resnet(f"{name}_resnet_down", features, features, divisor, **more)(h, emb)
            image = fir_down(image)
            h = h + Conv(features, 1, name=f"{name}_skip_conv")(image)
        elif _resamples_in_resnet(kind, self.downsample_type):
            more = {"resample": mean_of_4}
            h = self._resnet(f"{name}_downsamplers_0", features, features, **more)(h, emb)
        else:
            convolve = halved if self.downsample_padding else halved_below
            h = Conv(features, convolve=convolve, name=f"{name}_downsamplers_0_conv")(h)
        return h, image, [*pushed, h]

    def _middle(self, h: Images, emb: Embedding) -> Images:
        features, divisor = h.shape[-1], self.mid_block_scale_factor
        h = self._resnet("mid_block_resnets_0", features, features, divisor)(h, emb)
        if self.add_attention:
            groups = self.attn_norm_num_groups
            if groups is None and self.resnet_time_scale_shift == "default":
                groups = _groups(self, features)
            size, name = self.attention_head_dim, "mid_block_attentions_0"
            h = Attention(size, groups, self.norm_eps, divisor, name=name)(h)
        return self._resnet("mid_block_resnets_1", features, features, divisor)(h, emb)

    def _up(
        self, level: int, h: Images, image: Images | None, popped: list[Array], emb: Embedding
    ) -> tuple[Images, Images | None]:
        """The features, and the image of the second path."""
        kind, features = self.up_block_types[level], self.block_out_channels[-1 - level]
        attention, skip = UP_BLOCKS[kind]
        name, divisor = f"up_blocks_{level}", math.sqrt(2) if skip else 1.0
        for i, before in enumerate(popped):
            # As diffusers computes it, where a bracket is missing. Weights were trained so.
            odd = 4 * h.shape[-1] + before.shape[-1]
            counted = odd if skip and attention else h.shape[-1] + before.shape[-1]
            h = jnp.concatenate([h, before], axis=-1)
            h = self._resnet(f"{name}_resnets_{i}", features, counted, divisor)(h, emb)
            if attention and not skip:
                h = self._attention(f"{name}_attentions_{i}", divisor)(h)
        if attention and skip:
            h = self._attention(f"{name}_attentions_0", divisor)(h)
        if skip and image is not None:
            image = upsample(image)
        if level == len(self.block_out_channels) - 1:
            return h, image
        if skip:
            norm = group_norm(_groups(self, features), self.norm_eps, f"{name}_skip_norm")
            shown = Conv(self.out_channels, name=f"{name}_skip_conv")(nn.silu(norm(h)))
            image = shown if image is None else image + shown
            more: dict[str, Any] = {"resample": upsample, "shortcut": True}
            h = self._resnet(f"{name}_resnet_up", features, features, divisor, **more)(h, emb)
        elif _resamples_in_resnet(kind, self.upsample_type):
            more = {"resample": nearest}
            h = self._resnet(f"{name}_upsamplers_0", features, features, **more)(h, emb)
        else:
            h = Conv(features, convolve=nearest_conv2d, name=f"{name}_upsamplers_0_conv")(h)
        return h, image

    def _resnet(
        self, name: str, features: int, before: int, divisor: float = 1.0, **more: Any
    ) -> Resnet:
        """From `before` channels to `features`."""
        groups = _groups(self, before), _groups(self, features)
        scale_shift = self.resnet_time_scale_shift == "scale_shift"
        return Resnet(
            features, groups, self.norm_eps, scale_shift, divisor=divisor, name=name, **more
        )

    def _attention(self, name: str, divisor: float) -> Attention:
        groups = self.norm_num_groups or 32
        return Attention(self.attention_head_dim, groups, self.norm_eps, divisor, name=name)


def _groups(model: UNet2DModel, channels: int) -> int:
    """The groups of a norm of so many channels. Without a number, it is as NCSN++ has it."""
    return model.norm_num_groups or min(channels // 4, 32)


def _resamples_in_resnet(kind: str, resampling: str) -> bool:
    """Whether a whole resnet changes the sides after a block, instead of one convolution."""
    return kind.startswith("Resnet") or (kind.startswith("Attn") and resampling == "resnet")
