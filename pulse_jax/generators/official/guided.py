"""OpenAI's guided-diffusion: state dicts, and the flags of its program as JSON beside them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pulse_jax.files import json_object
from pulse_jax.generators.diffusion import DiffusionModel
from pulse_jax.generators.diffusion.schedules import GuidedSchedule
from pulse_jax.generators.diffusion.unet import UNet2DModel
from pulse_jax.generators.official.diffusers import named_params
from pulse_jax.generators.official.parameters import expect, plain

# Flags that shapes don't tell, and whose defaults in the authors' program count without a file.
_DEFAULTS = {
    "use_new_attention_order": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
    "clip_denoised": True,
}
# The sides of images of networks whose levels are these multiples of the first one's channels.
_SIDES: dict[tuple[float, ...], int] = {
    (1, 2, 3, 4): 64,
    (1, 1, 2, 3, 4): 128,
    (1, 1, 2, 2, 4, 4): 256,
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}

State = dict[str, np.ndarray]


def is_guided(tree: Any) -> bool:
    """Whether that is a state dict of guided-diffusion's U-Net."""
    return type(tree) is dict and {"input_blocks.0.0.weight", "time_embed.0.weight"} <= tree.keys()


def from_guided(state: Any, path: Path) -> tuple[DiffusionModel, dict[str, Any]]:
    """The model in the state dict of a file, whose flags are in the .json of the same name.

    Nearly all of the network follows from names and shapes, and flags that contradict them are
    refused. `num_head_channels`, or `num_heads`, has to be given. So has `image_size`, unless the
    multiples of channels are those that the program has for a size. Other flags have the program's
    defaults. Raises ValueError for a flag that is missing or not supported, and for an entry that
    is missing, unknown or of another shape.
    """
    if len(state) > 4000 or not all(
        type(name) is str and type(array) is np.ndarray for name, array in state.items()
    ):
        raise ValueError("holds other things than the tensors of one network")
    found = path.with_suffix(".json")
    flags = _flags(found) if found.is_file() else {}
    layout = _Layout(state)
    try:
        expect(flags, layout.flags())
        network = layout.network(flags, found)
        given = _DEFAULTS | {name: plain(flags[name], name) for name in _DEFAULTS if name in flags}
        schedule = _schedule(given)
    except ValueError as error:
        raise ValueError(f"{error}" + f" (flags: {found.name})" * found.is_file()) from error
    in_each_head = not given["use_new_attention_order"]
    arrays = dict(layout.renamed(network.attention_head_dim if in_each_head else None))
    x = jax.ShapeDtypeStruct((1, *network.noise_shape), jnp.result_type(float))
    labels = (jax.ShapeDtypeStruct((1,), np.int32),) if network.classes else ()
    params = named_params(network, arrays, x, jax.ShapeDtypeStruct((), x.dtype), *labels)
    return DiffusionModel(network, schedule), {"network": params}


def _flags(path: Path) -> dict[str, Any]:
    """The flags in a file."""
    try:
        flags = json_object(path, largest=2**20)
    except ValueError as error:
        raise ValueError(f"{path.name} can't be read: {error}") from error
    for name in ("attention_resolutions", "channel_mult"):  # texts such as "16,8", or numbers
        if name in flags:
            text = str(plain(flags[name], name)).strip("[]")
            try:
                flags[name] = [float(part) for part in text.split(",") if part.strip()]
            except ValueError:
                raise ValueError(f"{name} in {path.name} are no numbers: {text!r:.60}") from None
    return flags


def _schedule(flags: dict[str, Any]) -> GuidedSchedule:
    """What the flags say about noise."""
    steps, noise = flags["diffusion_steps"], flags["noise_schedule"]
    kinds = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    if noise not in kinds:
        raise ValueError(f"noise_schedule must be linear or cosine, got {noise!r}")
    if type(steps) is not int or not 21 <= steps <= 10**5:
        raise ValueError(f"diffusion_steps must be from 21 to 100000, got {steps!r}")
    return GuidedSchedule(
        num_train_timesteps=steps,
        beta_start=0.1 / steps,
        beta_end=20 / steps,
        beta_schedule=kinds[noise],
        prediction_type="sample" if flags["predict_xstart"] else "epsilon",
        clip_sample=bool(flags["clip_denoised"]),
        rescale_timesteps=bool(flags["rescale_timesteps"]),
    )


class _Layout:
    """What names and shapes tell of a network: its levels, from the largest side down."""

    def __init__(self, state: State) -> None:
        self.state = state
        blocks = self._numbers(r"output_blocks\.(\d{1,4})\.")
        last = [k for k in blocks if self._upsampler(k)]  # entries of a level, but for the top one
        self.layers = last[0] if last else max(blocks)  # in each level, and one more going up
        self.levels = len(last) + 1
        if self.layers < 1 or len(blocks) != self.levels * (self.layers + 1):
            raise ValueError(f"its {len(blocks)} output_blocks don't form {self.levels} levels")
        self.first = self._size("input_blocks.0.0.weight")
        level = [1 + i * (self.layers + 1) for i in range(self.levels)]
        self.widths = [self._size(f"input_blocks.{k}.0.out_layers.3.weight") for k in level]
        self.attention = [f"input_blocks.{k}.1.qkv.weight" in state for k in level]
        self.updown = any("in_layers" in self._upsampler(k) for k in last)
        embedding = self._size("input_blocks.1.0.emb_layers.1.weight")
        self.scale_shift = embedding == 2 * self.widths[0]

    def _numbers(self, pattern: str) -> list[int]:
        return sorted({int(m[1]) for name in self.state if (m := re.match(pattern, name))}) or [0]

    def _upsampler(self, k: int) -> str:
        """The name of an array of the up-sampler in an output block, or nothing."""
        for member in (1, 2):
            for part in ("in_layers.0.weight", "conv.weight"):
                if (name := f"output_blocks.{k}.{member}.{part}") in self.state:
                    return name
        return ""

    def _size(self, name: str, axis: int = 0) -> int:
        if name not in self.state:
            raise ValueError(f"lacks {name}")
        if self.state[name].ndim <= axis:
            raise ValueError(f"{name} has shape {self.state[name].shape}")
        size: int = self.state[name].shape[axis]
        return size

    def flags(self) -> dict[str, Any]:
        """The flags that names and shapes tell."""
        return {
            "num_channels": self.first,
            "num_res_blocks": self.layers,
            "use_scale_shift_norm": self.scale_shift,
            "resblock_updown": self.updown,
            "class_cond": "label_emb.weight" in self.state,
            "learn_sigma": self._size("out.2.weight") > self._size("input_blocks.0.0.weight", 1),
            "num_heads_upsample": -1,
        }

    def network(self, flags: dict[str, Any], path: Path) -> UNet2DModel:
        """The network, with what the flags tell besides. `path`: where they could be."""
        if self.widths[0] != self.first:
            begins = self.widths[0] / self.first
            raise ValueError(f"channel_mult begins with {begins:g}, and only 1 is supported")
        multiples = tuple(width / self.first for width in self.widths)
        if flags.get("channel_mult") and tuple(flags["channel_mult"]) != multiples:
            raise ValueError(f"channel_mult is {flags['channel_mult']}, and {multiples} in shapes")
        side = plain(flags.get("image_size", _SIDES.get(multiples)), "image_size")
        if side is None:
            raise ValueError(f"shapes don't tell its image_size: write it into {path.name}")
        if type(side) is not int:
            raise ValueError(f"image_size must be a whole number, got {side!r}")
        sides = [side / 2**i for i, has in enumerate(self.attention) if has]
        there = [side / 2**i for i in range(self.levels)]
        asked = [s for s in there if s in flags.get("attention_resolutions", sides)]
        if sorted(asked) != sorted(sides):
            raise ValueError(f"attention_resolutions are {asked}, and {sides} in shapes")
        kind = "ResnetXsampleBlock2D" if self.updown else "XBlock2D"
        kinds = ["AttnXBlock2D" if has else kind for has in self.attention]
        classes = self._size("label_emb.weight") if "label_emb.weight" in self.state else None
        resampling = "resnet" if self.updown else "conv"
        return UNet2DModel(
            side,
            tuple(self.widths),
            tuple(kind.replace("X", "Down") for kind in kinds),
            tuple(kind.replace("X", "Up") for kind in kinds[::-1]),
            in_channels=self._size("input_blocks.0.0.weight", 1),
            out_channels=self._size("out.2.weight"),
            time_embedding_dim=self._size("time_embed.0.weight"),
            downsample_type=resampling,
            upsample_type=resampling,
            attention_head_dim=self._head_size(flags, path),
            attn_norm_num_groups=32,
            resnet_time_scale_shift="scale_shift" if self.scale_shift else "default",
            num_class_embeds=classes,
            layers_per_block=self.layers,
        )

    def _head_size(self, flags: dict[str, Any], path: Path) -> int:
        """The channels of each head, which are the same everywhere."""
        size, heads = (plain(flags.get(n, -1), n) for n in ("num_head_channels", "num_heads"))
        attended = [w for w, has in zip(self.widths, self.attention, strict=True) if has]
        widths = {*attended, self.widths[-1]}
        if size == heads == -1:
            told = 'write {"num_head_channels": 64}, or what it is, into'
            raise ValueError(f"shapes don't tell its heads: {told} {path.name}")
        for name, number in (("num_head_channels", size), ("num_heads", heads)):
            if type(number) is not int or (number < 1 and number != -1):
                raise ValueError(f"{name} must be a whole number above 0, got {number!r}")
        sizes = {width // heads for width in widths} if size == -1 else {size}
        if len(sizes) > 1:
            raise ValueError(f"num_heads = {heads} makes heads of several sizes: {sorted(sizes)}")
        (size,) = sizes
        if size < 1 or any(width % size for width in widths):
            raise ValueError(f"heads of {size} channels don't divide {sorted(widths)}")
        return int(size)

    def renamed(self, head_size: int | None) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays by the names of diffusers.

        In the file, q, k and v follow each other in each head of `head_size` channels, or without
        one all heads of q come first.
        """
        left = dict(self.state)
        for theirs, ours in _ENDS.items():
            for leaf in ("weight", "bias"):
                if f"{theirs}.{leaf}" in left:
                    yield f"{ours}.{leaf}", left.pop(f"{theirs}.{leaf}")
        for theirs, ours in self._prefixes():
            yield from self._member(theirs, ours, left, head_size)
        if left:
            raise ValueError(f"{min(left)!r:.100} has no place in the network")

    def _prefixes(self) -> Iterator[tuple[str, str]]:
        """The names of resnets, attentions and samplers in the file, and those of diffusers."""
        for level in range(self.levels):
            for i in range(self.layers + 1):
                k = 1 + level * (self.layers + 1) + i
                down, up = f"down_blocks_{level}", f"up_blocks_{level}"
                if i < self.layers:
                    yield f"input_blocks.{k}.0", f"{down}_resnets_{i}"
                    yield f"input_blocks.{k}.1", f"{down}_attentions_{i}"
                elif level < self.levels - 1:
                    yield f"input_blocks.{k}.0", f"{down}_downsamplers_0"
                yield f"output_blocks.{k - 1}.0", f"{up}_resnets_{i}"
                last = i == self.layers and level < self.levels - 1
                attended = self.attention[::-1][level]
                if attended:
                    yield f"output_blocks.{k - 1}.1", f"{up}_attentions_{i}"
                if last:
                    yield f"output_blocks.{k - 1}.{1 + attended}", f"{up}_upsamplers_0"
        yield "middle_block.0", "mid_block_resnets_0"
        yield "middle_block.1", "mid_block_attentions_0"
        yield "middle_block.2", "mid_block_resnets_1"

    def _member(
        self, theirs: str, ours: str, left: State, head_size: int | None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays of a resnet, an attention or a sampler, which are taken from `left`."""
        names = [name for name in left if name.startswith(f"{theirs}.")]
        for name in names:
            part, _, leaf = name.removeprefix(f"{theirs}.").rpartition(".")
            array = left.pop(name)
            if part in _RESNET:
                yield f"{ours}.{_RESNET[part]}.{leaf}", array
            elif part in ("op", "conv"):
                yield f"{ours}_conv.{leaf}", array
            elif part == "norm":
                yield f"{ours}.group_norm.{leaf}", array
            elif part == "proj_out":
                yield f"{ours}.to_out_0.{leaf}", array.reshape(array.shape[:2])
            elif part == "qkv":
                heads = (3, -1) if head_size is None else (-1, 3, head_size)
                parts = array.reshape(*heads, *array.shape[1:2])
                for i, letter in enumerate("qkv"):
                    own = parts[i] if head_size is None else parts[:, i]
                    yield f"{ours}.to_{letter}.{leaf}", own.reshape(-1, *array.shape[1:2])
            else:
                left[name] = array
