"""What the readers of all formats share: modules and entries by name, and checks of shapes."""

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Shaped

from pulse_jax.files import one_line
from pulse_jax.generators.official.unpickle import Instance
from pulse_jax.generators.style_network import StyleNetwork
from pulse_jax.images import CHANNELS

Layer = dict[str, Any]
"""Parameters by their names: arrays, or such a dict again."""
Network = TypeVar("Network", bound=StyleNetwork)


def blaming(path: Path, error: Exception) -> ValueError:
    """One line with the file's name, for what may fail anywhere in a file of another make."""
    reason = one_line(error)[:300]
    if not isinstance(error, ValueError):
        reason = f"not laid out as expected ({type(error).__name__}: {reason})"
    return ValueError(f"{path}: {reason}")


class Entries:
    """A file's arrays by name. Each can be taken once. Errors name the `program` that wrote them.

    If `shared`, small arrays can have several names, up to 16 MB in all.

    Raises ValueError for more entries, or longer names, than networks have.
    """

    def __init__(self, program: str, arrays: dict[Any, Any], shared: bool = False) -> None:
        self.program, self.arrays = program, dict(arrays)
        self.spare = 2**24 if shared else 0  # bytes
        self.taken: dict[int, tuple[str, np.ndarray]] = {}
        if len(arrays) > 1000:
            raise ValueError(f"{program}'s networks have fewer entries than {len(arrays)}")
        if not all(type(name) is str and len(name) <= 200 for name in arrays):
            raise ValueError(f"an entry has no name that {program} gives")

    def take(self, name: str, ndim: int) -> np.ndarray:
        """The array of that name, with `ndim` axes.

        Raises ValueError if there is none, if it is empty or has an axis above 4096, as in no
        network, or if it has been taken already. So a network's arrays take no more memory than
        those of its file.
        """
        value, what = self.arrays.pop(name, None), f"{self.program}'s {name!r}"
        if type(value) is not np.ndarray or value.ndim != ndim:
            raise ValueError(f"{what} is missing, or no tensor with {ndim} axes")
        if not all(0 < size <= 4096 for size in value.shape):
            raise ValueError(f"{what} has shape {value.shape}, which no network has")
        again = id(value) in self.taken
        self.spare -= value.nbytes if again else 0
        if again and self.spare < 0:
            raise ValueError(f"{what} is the same array as {self.taken[id(value)][0]!r}")
        self.taken[id(value)] = name, value  # kept, so that no other array gets its id
        return value

    def drop(self, pattern: str) -> None:
        """Leave out entries whose names start with `pattern`, of no use to our networks."""
        self.arrays = {k: v for k, v in self.arrays.items() if not re.match(pattern, k)}

    def numbers(self, pattern: str) -> list[int]:
        """The numbers that the group in `pattern` matches at the start of names."""
        matches = (re.match(pattern, name) for name in self.arrays)
        return [int(match[1]) for match in matches if match]

    def sides(self, pattern: str) -> Iterable[int]:
        """4, 8, … up to the largest of the `numbers`."""
        return (4 * 2**k for k in range(max([4, *self.numbers(pattern)]).bit_length() - 2))

    def layers(self, pattern: str) -> range:
        """0, 1, … as many as there are `numbers`, at least one."""
        return range(max(1, len(self.numbers(pattern))))

    def check_filters(self, pattern: str, taps: tuple[float, ...]) -> None:
        """Take the resampling filters. Raises ValueError if one isn't `taps` ⊗ `taps`."""
        ours = np.outer(taps, taps)
        for name in [name for name in self.arrays if re.search(pattern, name)]:
            theirs = self.arrays.pop(name)
            same = type(theirs) is np.ndarray and theirs.size == ours.size
            if not (same and np.array_equal(np.squeeze(theirs), ours)):
                raise ValueError(f"{self.program}'s {name!r} is not {taps} along both axes")

    def check_all_taken(self) -> None:
        """Raises ValueError, naming one, if there are entries left."""
        if self.arrays:
            raise ValueError(f"{self.program}'s {min(self.arrays)!r} has no place in the network")


def plain(value: Any, name: str) -> Any:
    """A file's setting: None, a bool, a number, a short text, or a list of at most 16 of them.

    Raises ValueError, naming it, for anything else. An object that a file nests in itself is small,
    but comparing or printing it may never end.
    """
    if type(value) is np.ndarray and value.ndim == 1 and value.size <= 16:
        value = value.tolist()
    if type(value) not in (list, tuple):
        return _scalar(value, name)
    if len(value) > 16:
        raise ValueError(f"{name} is a list of {len(value)}, which no network has")
    return [_scalar(item, name) for item in value]


def _scalar(value: Any, name: str) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    match value:
        case None | bool() | float():
            return value
        case int() if value.bit_length() <= 64:
            return value
        case str() if len(value) <= 64:
            return value
    raise ValueError(f"{name} is neither a number nor a short text, nor a short list of them")


def expect(settings: dict[Any, Any], standard: dict[str, Any], where: str = "") -> None:
    """Raises ValueError, naming it, if one of `settings` has another value than in `standard`."""
    for name, value in standard.items():
        if name in settings:
            theirs = plain(settings[name], f"{where}{name}")
            if theirs != plain(value, name):
                raise ValueError(f"{where}{name} = {theirs!r} is not supported, only {value!r}")


def expect_square(size: Any, name: str) -> None:
    """Raises ValueError, naming it, if a file's size is a list of two that differ."""
    size = plain(size, name)
    if type(size) is list and len(set(size)) > 1:
        sides = "×".join(map(str, size))
        raise ValueError(f"the network isn't square, which it must be: its {name} is {sides}")


# What wrappers put before each name of a state dict: DataParallel, torch.compile.
_WRAPPER = r"(?:(?:module|_orig_mod)\.){0,4}"


def unwrapped(state: dict[Any, Any]) -> dict[Any, Any]:
    """A state dict without the prefix that wrappers of the network have put before all names."""
    first = next(iter(state), None)
    found = re.match(_WRAPPER, first) if type(first) is str else None
    prefix = found[0] if found else ""
    if prefix and all(type(name) is str and name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def hwio(weight: Shaped[np.ndarray, "o i h w"]) -> Shaped[np.ndarray, "h w i o"]:
    """A kernel with its axes in our order, from PyTorch's."""
    return weight.transpose(2, 3, 1, 0)


def persistent_modules(root: Instance) -> dict[str, Any]:
    """The instance dicts of a PyTorch module and of all inside it, by dotted names.

    The root's name is "", and others are like "synthesis.b4.conv1". A DataParallel counts as what
    it wraps. Raises ValueError for more modules, levels or parts than networks have, since in a
    file a module can contain itself.
    """
    modules: dict[str, Any] = {}
    pending: list[tuple[tuple[str, ...], Any]] = [((), root.state)]
    room = 2000
    while pending:
        path, state = pending.pop()
        parts = [state[part] for part in ("_parameters", "_buffers", "_modules")]
        room -= 1 + sum(len(part) for part in parts)
        if room < 0 or len(path) > 8:
            raise ValueError(f"too many modules, or parts of one, at {'.'.join(path)!r}")
        for name in (name for part in parts for name in part):
            if type(name) is not str or not re.fullmatch(r"\w{1,64}", name):
                raise ValueError(f"{name!r:.66} is no module's or parameter's name")
        modules[".".join(path)] = state
        for name, module in parts[-1].items():
            if module is not None:
                pending.append(((*path, name), module.state))
    if modules[""]["_modules"].keys() == {"module"}:
        return persistent_modules(modules[""]["_modules"]["module"])
    return modules


def persistent_state(modules: dict[str, Any]) -> dict[str, Any]:
    """The parameters and buffers of `persistent_modules`, like "synthesis.b4.conv1.weight"."""
    return {
        f"{path}.{name}".removeprefix("."): value
        for path, module in modules.items()
        for part in ("_parameters", "_buffers")
        for name, value in module[part].items()
        if value is not None
    }


def style_network(
    architecture: type[Network],
    synthesis: Layer,
    mapping: Sequence[Layer] = (),
    average: np.ndarray | None = None,
    embed: Layer | None = None,
    **fields: Any,
) -> tuple[Network, Layer]:
    """A network of that architecture, with the sizes of the arrays, and its parameters.

    Raises ValueError if the learned input isn't square.
    """
    expect_square(synthesis["const"].shape[1:3], "learned input")
    channels = [layer["bias"].size for name, layer in synthesis.items() if name.endswith("_conv")]
    params: Layer = {"synthesis": synthesis}
    if mapping:
        params["mapping"] = mapping_params(mapping, embed)
        fields |= mapping_fields(params["mapping"])
    if average is not None:
        params["latent_average"] = average
    to_rgb = synthesis["to_rgb"] if "to_rgb" in synthesis else synthesis["4x4_to_rgb"]
    fields["image_channels"] = image_channels(to_rgb)
    latent_size = synthesis["4x4_conv"]["style"]["kernel"].shape[0]
    return architecture(2 * 2 ** len(channels), tuple(channels), latent_size, **fields), params


def mapping_params(layers: Sequence[Layer], embed: Layer | None) -> Layer:
    """The parameters of a mapping network, and of its embedding of classes, if there is one."""
    params: Layer = {f"dense_{i}": layer for i, layer in enumerate(layers)}
    return params if embed is None else params | {"embed": embed}


def mapping_fields(params: Layer) -> dict[str, int]:
    """The sizes of a mapping network."""
    inputs, width = params["dense_0"]["kernel"].shape
    classes, label_size = params["embed"]["kernel"].shape if "embed" in params else (0, 0)
    return {
        "mapping_layers": len(params) - ("embed" in params),
        "z_size": inputs - label_size,
        "mapping_width": width,
        "classes": classes,
        "label_size": label_size,
    }


def image_channels(to_rgb: Layer) -> int:
    """How many channels a layer's images have. Raises ValueError if none of the `CHANNELS`."""
    channels: int = to_rgb["bias"].size
    if channels not in CHANNELS:
        raise ValueError(f"its images have {channels} channels, and only 1, 3 and 4 are supported")
    return channels


def checked(module: StyleNetwork, params: Layer) -> Layer:
    """`params` as float32 arrays of their own, if their shapes are those of `module`.

    The parts of `params` may be "synthesis", "mapping", "latent_fit" and "latent_average". Raises
    ValueError, naming the entry, if a part lacks an entry, has one too many, or has one of another
    shape.
    """
    latent = jax.ShapeDtypeStruct((1, module.z_size), np.float32)
    noise = (jax.ShapeDtypeStruct((1, *shape), np.float32) for shape in module.noise_shapes)
    expected = dict(shapes_of(module, latent, tuple(noise)))
    vector = jax.ShapeDtypeStruct((module.latent_size,), np.float32)
    expected |= {"latent_fit": {"mean": vector, "std": vector}, "latent_average": vector}
    expected = {part: expected[part] for part in params}

    def check(path: tuple[Any, ...], value: np.ndarray, like: jax.ShapeDtypeStruct) -> np.ndarray:
        if value.shape != like.shape:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name} has shape {value.shape}, the others imply {like.shape}")
        return np.array(value, np.float32, order="C")

    return jax.tree_util.tree_map_with_path(check, params, expected)


@functools.cache
def shapes_of(module: nn.Module, *inputs: Any) -> Layer:
    """The shapes of a module's parameters, for inputs of these shapes.

    To trace a network takes longer than to read its file, so they are kept.
    """
    params: Layer = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return params
