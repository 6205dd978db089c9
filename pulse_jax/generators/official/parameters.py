"""What the readers of all formats share: modules and entries by name, shapes checked at the end."""

import re

import jax
import numpy as np


class Entries:
    """A file's arrays by name, each taken once; `program` says in errors whose they are."""

    def __init__(self, program, arrays):
        self.program, self.arrays = program, dict(arrays)

    def take(self, name, ndim):
        """The array of that name. Raises ValueError if there is none, or not with `ndim` axes."""
        value = self.arrays.pop(name, None)
        if getattr(value, "ndim", None) != ndim:
            raise ValueError(f"{self.program}'s {name!r} is missing, or no tensor with {ndim} axes")
        return value

    def drop(self, pattern):
        """Leave out the names that start with `pattern`: what our networks have no use for."""
        self.arrays = {k: v for k, v in self.arrays.items() if not re.match(pattern, k)}

    def numbers(self, pattern):
        """What the group in `pattern` matches, at the start of a name, as numbers."""
        matches = (re.match(pattern, name) for name in self.arrays)
        return [int(match[1]) for match in matches if match]

    def sides(self, pattern):
        """4, 8, … up to the largest of the `numbers`."""
        return (4 * 2**k for k in range(max([4, *self.numbers(pattern)]).bit_length() - 2))

    def layers(self, pattern):
        """0, 1, … as many as there are `numbers`, at least one."""
        return range(max(1, len(self.numbers(pattern))))

    def check_filters(self, pattern, taps):
        """Take the resampling filters. Raises ValueError if one isn't `taps` ⊗ `taps`."""
        for name in [name for name in self.arrays if re.search(pattern, name)]:
            if not np.array_equal(np.squeeze(self.arrays.pop(name)), np.outer(taps, taps)):
                raise ValueError(f"{self.program}'s {name!r} is not {taps} along both axes")

    def check_all_taken(self):
        """Raises ValueError, naming one, if there are entries left."""
        if self.arrays:
            raise ValueError(f"{self.program}'s {min(self.arrays)!r} has no place in the network")


def expect(settings, standard, where=""):
    """Raises ValueError, naming it, if one of `settings` has another value than in `standard`."""
    for name, value in standard.items():
        if name in settings and not np.array_equal(settings[name], value):
            raise ValueError(f"{where}{name} = {settings[name]!r} is not supported, only {value!r}")


def hwio(weight):
    """PyTorch's order of a kernel's axes, OIHW, into ours."""
    return weight.transpose(2, 3, 1, 0)


def persistent_modules(root):
    """The instance dicts of a persistent PyTorch module and of all inside it, by dotted names.

    The root's name is "", others are like "synthesis.b4.conv1". Raises ValueError for more modules,
    levels or parts than networks have: in a file, a module can contain itself.
    """
    modules, pending = {}, [((), root.state)]
    while pending:
        path, state = pending.pop()
        parts = [state[part] for part in ("_parameters", "_buffers", "_modules")]
        if len(modules) == 1000 or len(path) > 8 or any(len(part) > 100 for part in parts):
            raise ValueError(f"too many modules, or parts of one, at {'.'.join(path)!r}")
        modules[".".join(path)] = state
        for name, module in parts[-1].items():
            if not re.fullmatch(r"\w{1,64}", name):
                raise ValueError(f"{name[:64]!r} is no module's name")
            pending.append(((*path, name), module.state))
    return modules


def persistent_state(modules):
    """The parameters and buffers of `persistent_modules`, like "synthesis.b4.conv1.weight"."""
    return {
        f"{path}.{name}".removeprefix("."): value
        for path, module in modules.items()
        for part in ("_parameters", "_buffers")
        for name, value in module[part].items()
        if value is not None
    }


def style_network(architecture, synthesis, mapping=(), average=None, **fields):
    """A network of that architecture and its parameters; its sizes are those of the arrays."""
    channels = [layer["bias"].size for name, layer in synthesis.items() if name.endswith("_conv")]
    params = {"synthesis": synthesis}
    if mapping:
        params["mapping"] = {f"dense_{i}": layer for i, layer in enumerate(mapping)}
        fields["mapping_layers"] = len(mapping)
        fields["z_size"], fields["mapping_width"] = mapping[0]["kernel"].shape
    if average is not None:
        params["latent_average"] = average
    latent_size = synthesis["4x4_conv"]["style"]["kernel"].shape[0]
    return architecture(2 * 2 ** len(channels), tuple(channels), latent_size, **fields), params


def checked(module, params):
    """`params` as float32 arrays of their own, if their shapes are those of `module`.

    `params` has any of the parts "synthesis" and "mapping", `module`'s parameters, "latent_fit" and
    "latent_average". Raises ValueError, naming the entry, for a part that lacks one, has one too
    many, or one of another shape.
    """
    latent = jax.ShapeDtypeStruct((1, module.z_size), np.float32)
    noise = [jax.ShapeDtypeStruct((1, *shape), np.float32) for shape in module.noise_shapes]
    expected = jax.eval_shape(module.init, jax.random.key(0), latent, noise)["params"]
    vector = jax.ShapeDtypeStruct((module.latent_size,), np.float32)
    expected |= {"latent_fit": {"mean": vector, "std": vector}, "latent_average": vector}
    expected = {part: expected[part] for part in params}

    def check(path, value, like):
        if value.shape != like.shape:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name} has shape {value.shape}, the others imply {like.shape}")
        return np.array(value, np.float32, order="C")

    return jax.tree_util.tree_map_with_path(check, params, expected)
