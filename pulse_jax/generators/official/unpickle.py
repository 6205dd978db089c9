"""Reads published weight files without running what they name.

A pickle is a program: its opcodes may import anything and call it. Here Python runs none. The
standard library's `pickletools` splits a pickle into opcodes, and `_Machine` gives each a meaning
of its own, which is to build plain data. A name in a file is only compared with the tables of this
module. The few functions that weights need are the rows of `_FUNCTIONS`, written below; a class
stands for inert `Instance`s; any other name ends the reading.

Classes are told by their names: one begins with a capital, and isn't Python's own. So a training
checkpoint may hold objects of its program, while all functions and the whole standard library, thus
`torch.load`, `os.system` and `subprocess.Popen`, are refused. That is to warn the user of the file:
none of them could do anything here.
"""

import io
import math
import os
import pickle
import pickletools
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from pulse_jax.files import one_line

_ZIP_MAGIC = b"PK\x03\x04"

# What else people have in place of weights, by its first bytes, and what to do.
_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer to the weights: fetch them with `git lfs pull`, "
    "or download the file itself",
    b"\x1f\x8b": "compressed by gzip: unpack it with `gunzip`",
    b"BZh": "compressed by bzip2: unpack it with `bunzip2`",
    b"\xfd7zXZ": "compressed by xz: unpack it with `unxz`",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard: unpack it with `unzstd`",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it with `7z x`",
    b"Rar!": "a RAR archive: unpack it with `unrar x`",
    b"\x89HDF": "an HDF5 file: give the .pt or .pkl file of the program that trained the network",
}
_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_LEGACY_VERSION = 1001

_STORAGES = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": jnp.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}
_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}

# What opcodes push: a fixed value, or the one they carry. (INT is text, and is Python 2's for
# large numbers.)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


class Instance:
    """An object of a class that a file names: the class's name and the object's state, a dict."""

    __slots__ = ("name", "state")

    def __init__(self, name: str, state: dict[Any, Any]) -> None:
        self.name = name
        self.state = state


def read(path: str | Path) -> Any:
    """What a file of weights holds, as plain dicts, lists, tuples, strings, numbers and arrays.

    Reads, told by content, the files of `torch.save` (zip, and the format before torch 1.6,
    whatever device the tensors were saved from) and ordinary pickles from protocol 2 on, those of
    Python 2 included. Tensors and numpy's arrays and scalars become numpy arrays, which share
    memory where the file says so and may be read-only; ordered dicts and EasyDicts become dicts,
    sets become lists, and objects of other classes `Instance`s. The same object may be at several
    places, and within itself.

    The module's docstring says which names are refused. Weights take up to twice the file's size in
    memory, three times as protocol 2 writes them; hostile files are stopped near three times and
    some 16 MB. Raises ValueError, one line with the file and the reason, for whatever can't be
    read.
    """
    try:
        with _Bounded(path) as file:
            start, budget = file.peek(), _Budget(file.size)
            if start.startswith(_ZIP_MAGIC):
                return _read_zip(file, budget)
            if start.startswith(_LEGACY_MAGIC):
                return _read_legacy(file, budget)
            if start.startswith(pickle.PROTO):
                return _Machine(file, budget).run()
            raise ValueError(_foreign(start))
    except Exception as error:
        raise ValueError(f"{path}: {one_line(error)[:300]}") from error


def _foreign(start: bytes) -> str:
    """What a file that begins so is, if neither a PyTorch file nor a pickle, and what to do."""
    if not start:
        return "empty: download or copy it again"
    for magic, told in _FOREIGN.items():
        if start.startswith(magic):
            return told
    if start[8:10] == b'{"' and start[4:8] == bytes(4):  # a length, and JSON
        return (
            "a safetensors file, which lacks the network's architecture: put its config.json "
            "beside it, or give the .pt or .pkl file of the program that trained it"
        )
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it with `tar -xf`"
    text = start.decode("utf-8-sig", "replace").strip()
    if text.startswith("<"):
        return "a web page saved in place of the weights: download the file itself"
    told, line = (
        "neither a PyTorch file nor a pickle of protocol 2 or later",
        text[:40].split("\n")[0],
    )
    if line.isprintable() and "\ufffd" not in line:  # a server's words, perhaps
        told += f", but text that begins with {line!r}"
    return told


class _Bounded(io.BufferedReader):
    """A file of which at most `limit` bytes are read at once, whatever a pickle declares."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(io.FileIO(path))
        self.limit = self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(-1 if size is None else min(size, self.limit))


class _Budget:
    """What reading a file of `size` bytes may cost, in bytes. Weights need far less."""

    def __init__(self, size: int) -> None:
        self.memory = 3 * size + 2**24
        self.views = 4 * size + 2**24  # the arrays, as if each were float32 and had its own memory

    def spend(self, memory: int = 0, views: int = 0) -> None:
        self.memory -= memory
        self.views -= views
        if self.memory < 0 or self.views < 0:
            raise pickle.UnpicklingError("it would take too much memory for a file of its size")


def _read_zip(file: _Bounded, budget: _Budget) -> Any:
    if not zipfile.is_zipfile(file):
        raise ValueError(
            "truncated, the zip file's table of contents is missing: download or copy it again"
        )
    file.limit = 2**20  # the table of contents: zipfile makes ten times as much of it
    with zipfile.ZipFile(file) as archive:
        file.limit = file.size
        infos = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in infos if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip archive, but not PyTorch's: unpack it")
        folder = pickles[0].removesuffix("data.pkl")

        def member(name: str) -> IO[bytes]:
            info = infos.get(folder + name)
            if not info or info.compress_type != zipfile.ZIP_STORED or info.header_offset < 0:
                raise ValueError(f"{name!r} is missing, compressed or out of place")
            budget.spend(memory=info.compress_size)
            return archive.open(info)

        byte_order = "little"
        if folder + "byteorder" in infos:
            byte_order = member("byteorder").read().decode()
        if byte_order not in ("little", "big"):
            raise ValueError("unknown byte order")
        storages: dict[str, _Storage] = {}
        tree = _Machine(io.BytesIO(member("data.pkl").read()), budget, storages).run()
        for key, storage in storages.items():
            with member(f"data/{key}") as data:
                storage.fill(data, byte_order)
                if data.read(1):
                    raise ValueError(f"storage {key!r} is longer than its tensors say")
    return tree


def _read_legacy(stream: BinaryIO, budget: _Budget) -> Any:
    """The format before torch 1.6: pickles, then the storages that one of them refers to."""
    storages: dict[str, _Storage] = {}
    machine = _Machine(stream, budget, storages)
    magic = stream.read(len(_LEGACY_MAGIC))
    version, _word_sizes, tree, keys = (machine.run() for _ in range(4))
    if magic != _LEGACY_MAGIC or _typed(version, int) != _LEGACY_VERSION:
        raise pickle.UnpicklingError("unknown version of PyTorch's legacy format")
    if sorted(_typed(key, str) for key in _typed(keys, list)) != sorted(storages):
        raise pickle.UnpicklingError("the file's storages are not those of its tensors")
    for key in keys:
        if int.from_bytes(stream.read(8), "little", signed=True) != storages[key].numel:
            raise pickle.UnpicklingError(f"truncated: storage {key!r} has another size")
        storages[key].fill(stream, "little")
    return tree


class _Storage:
    """The memory that tensors are views of. It's filled when the pickle has been read."""

    __slots__ = ("data", "dtype", "key", "numel")

    def __init__(self, key: str, dtype: np.dtype[Any], numel: int) -> None:
        self.key, self.dtype, self.numel = key, dtype, numel
        self.data = np.empty(numel * dtype.itemsize, np.uint8)

    def fill(self, stream: Any, byte_order: str) -> None:
        if stream.readinto(self.data) != self.data.size:
            raise pickle.UnpicklingError(f"truncated: storage {self.key!r} is incomplete")
        if byte_order != sys.byteorder:
            self.data.view(f"u{self.dtype.itemsize}").byteswap(inplace=True)


class _Name:
    """A name in a file: of a class, or of a function among `_FUNCTIONS`."""

    __slots__ = ("name",)

    def __init__(self, module: Any, name: Any) -> None:
        self.name = f"{_short(module)}.{_short(name)}"
        for new, old in _RENAMED.items():
            if self.name.startswith(new):
                self.name = old + self.name.removeprefix(new)
        standard = self.name.partition(".")[0] in sys.stdlib_module_names
        is_class = self.name.rpartition(".")[2].lstrip("_")[:1].isupper() and not standard
        if not (is_class or self.name in _FUNCTIONS or self.name in _CLASSES):
            raise pickle.UnpicklingError(f"refused to load {self.name!r}")


class _Unbuilt:
    """An array of numpy, or its type. A pickle creates it first, then builds its `value`."""

    __slots__ = ("build", "value")

    def __init__(self, build: Callable[..., Any]) -> None:
        self.build = build
        self.value: Any = self


class _Machine:
    """Gives each opcode of the pickle at a stream's position its meaning: to build plain data.

    Nothing is imported, called or set by a name from the file, and none of the methods that Python
    has for pickling is called. A value is used after a check of its very type. What it contains is
    not walked, since that may be nested without end.
    """

    def __init__(
        self, stream: BinaryIO, budget: _Budget, storages: dict[str, _Storage] | None = None
    ) -> None:
        self.stream, self.budget, self.storages = stream, budget, storages

    def run(self) -> Any:
        """The pickled object. The stream is left behind its pickle."""
        try:
            return self._run()
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            reason = "truncated or malformed pickle: download or copy it again"
            raise pickle.UnpicklingError(reason) from error

    def _run(self) -> Any:
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}
        push, pop = stack.append, stack.pop

        def take(count: int | None = None) -> list[Any]:
            """The topmost `count` values, or those above the mark."""
            start = marks.pop() if count is None else len(stack) - count
            if start < 0:
                raise IndexError
            values = stack[start:]
            del stack[start:]
            return values

        argument: Any
        for opcode, argument, _ in pickletools.genops(self.stream):
            self.budget.spend(memory=128)  # about what an object and its place in the memo need
            match opcode.name:
                case "BINGET" | "LONG_BINGET":
                    value = memo[argument]
                    push(value.value if type(value) is _Unbuilt else value)
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case name if name in _VALUES:
                    self.budget.spend(memory=sys.getsizeof(argument))
                    push(argument)
                case name if name in _CONSTANTS:
                    push(_CONSTANTS[name])
                case "EMPTY_LIST" | "EMPTY_SET":
                    push([])
                case "EMPTY_DICT":
                    push({})
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                    push(tuple(take(int(name[-1]))))
                case "TUPLE" | "FROZENSET":
                    push(tuple(take()))
                case "APPEND" | "APPENDS" | "ADDITEMS" as name:
                    _extend(take(1 if name == "APPEND" else None), stack[-1])
                case "SETITEM" | "SETITEMS" as name:
                    _set_items(take(2 if name == "SETITEM" else None), stack[-1])
                case "GLOBAL":
                    push(_Name(*argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    push(_Name(*take(2)))
                case "REDUCE" | "NEWOBJ":
                    push(self._call(*take(2)))
                case "NEWOBJ_EX":
                    push(self._call(*take(3)))
                case "BUILD":
                    push(self._build(*take(2)))
                case "BINPERSID" if self.storages is not None:
                    push(self._find_storage(pop(), self.storages))
                case "POP":
                    pop()
                case "POP_MARK":
                    take()
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return pop()
                case name:
                    raise pickle.UnpicklingError(f"refused the opcode {name}")

    def _call(self, function: Any, arguments: Any, _keywords: Any = None) -> Any:
        # No function takes more than 8, and to pass a million again and again would take hours.
        name, arguments = _typed(function, _Name).name, _typed(arguments, tuple)[:8]
        return _FUNCTIONS[name](self, *arguments) if name in _FUNCTIONS else Instance(name, {})

    def _build(self, target: Any, state: Any) -> Any:
        if type(target) is _Unbuilt:
            target.value = target.build(*_typed(state, tuple)[:5])
            return target.value
        if type(target) is Instance:
            parts = state[:2] if type(state) is tuple else (state,)  # a tuple: attributes, slots
            target.state = next((part for part in parts if type(part) is dict), {})
        else:
            _typed(target, dict)  # of an OrderedDict's attributes, nothing is kept
        return target

    def _find_storage(self, persistent_id: Any, storages: dict[str, _Storage]) -> _Storage:
        _, kind, key, _location, numel, *view = _typed(persistent_id, tuple)[:6]
        if _typed(kind, _Name).name not in _STORAGES:
            raise pickle.UnpicklingError(f"unknown type of storage {kind.name!r}")
        if any(part is not None for part in view):
            raise pickle.UnpicklingError("a storage is a view of another")
        dtype = np.dtype(_STORAGES[kind.name])
        _check_sizes(numel)
        if _short(key) not in storages:
            self.budget.spend(memory=numel * dtype.itemsize)
            storages[key] = _Storage(key, dtype, numel)
        storage = storages[key]
        if (storage.numel, storage.dtype) != (numel, dtype):
            raise pickle.UnpicklingError(f"storage {key!r} has two sizes or types")
        return storage

    # The functions that pickles call.

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
        """A view of a storage. `offset` and `stride` count elements."""
        numel, dtype = _typed(storage, _Storage).numel, storage.dtype
        _check_sizes(offset, *_typed(size, tuple))
        _check_sizes(offset, *_typed(stride, tuple))
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 in size:
            return np.empty(size, dtype)
        if last >= numel:
            raise pickle.UnpicklingError(f"a tensor exceeds its storage of {numel} elements")
        item = dtype.itemsize
        self.budget.spend(views=math.prod(size) * max(item, 4))
        strides = [step * item for step in stride]
        return np.ndarray(size, dtype, storage.data, offset * item, strides)

    def storage(self, data: Any) -> Any:
        """A storage in an ordinary pickle is a legacy file of its own."""
        if self.storages is not None:
            raise pickle.UnpicklingError("a storage within a storage")
        return _read_legacy(io.BytesIO(_typed(data, bytes)), self.budget)

    def dtype(self, code: Any, *_: Any) -> _Unbuilt:
        def build(_version: Any, order: Any, *_: Any) -> np.dtype[Any]:
            if order not in ("<", ">", "=", "|"):
                raise pickle.UnpicklingError("unknown byte order")
            return np.dtype(code).newbyteorder(order)

        if _typed(code, str) not in _DTYPES:
            raise pickle.UnpicklingError("an array of other things than numbers")
        return _Unbuilt(build)

    def array(self, _version: Any, shape: Any, dtype: Any, fortran: Any, data: Any) -> Any:
        """A numpy array, as a view of its bytes."""
        data = self.encode(data)
        _check_sizes(*_typed(shape, tuple))
        if not isinstance(dtype, np.dtype) or math.prod(shape) * dtype.itemsize != len(data):
            raise pickle.UnpicklingError("an array's shape or type isn't that of its bytes")
        self.budget.spend(views=math.prod(shape) * max(dtype.itemsize, 4))
        return np.ndarray(shape, dtype, data, order="F" if fortran else "C")

    def encode(self, data: Any, *_: Any) -> bytes | bytearray:
        """The bytes that a pickle of protocol 2 has as a string."""
        if type(data) is not str:
            return _typed(data, bytes, bytearray)
        self.budget.spend(memory=len(data))
        return data.encode("latin-1")

    def persistent(self, meta: Any) -> Instance:
        """An object of NVIDIA's torch_utils.persistence. The source text beside it is dropped."""
        name, state = _typed(meta, dict)["class_name"], meta["state"]
        return Instance(_short(name), _typed(state, dict))


def _typed(value: Any, *types: type) -> Any:
    if type(value) not in types:
        raise pickle.UnpicklingError(f"malformed pickle: a {type(value).__name__} out of place")
    return value


def _short(text: Any) -> str:
    if len(_typed(text, str)) > 200:
        raise pickle.UnpicklingError("malformed pickle: a name of more than 200 characters")
    return text


def _check_sizes(*sizes: Any) -> None:
    if len(sizes) > 9 or not all(type(size) is int and 0 <= size < 2**63 for size in sizes):
        raise pickle.UnpicklingError("a size, offset or stride is out of range")


def _extend(items: list[Any], target: Any) -> None:
    if type(target) is not Instance:  # whose class may be a list's
        _typed(target, list).extend(items)


def _set_items(items: list[Any], target: Any) -> None:
    for key in items[::2]:
        # Hashes of tuples recurse, and those of larger numbers can be made all the same.
        if _typed(key, *_KEYS) and type(key) is int and key.bit_length() > 60:
            raise pickle.UnpicklingError("malformed pickle: a key out of range")
    if type(target) is not Instance:
        _typed(target, dict).update(zip(items[::2], items[1::2], strict=True))


_KEYS = (str, int, bytes, bool, type(None), _Name)

# All that a pickle may call.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "builtins.bytes": lambda machine: b"",
    "builtins.frozenset": lambda machine, items=(): items,
    "builtins.set": lambda machine, items=(): items,
    "_codecs.encode": _Machine.encode,
    "collections.OrderedDict": lambda machine: {},
    "dnnlib.util.EasyDict": lambda machine: {},
    "numpy.dtype": _Machine.dtype,
    "numpy.core.multiarray._reconstruct": lambda machine, *_: _Unbuilt(machine.array),
    "numpy.core.multiarray.scalar": lambda machine, dtype, data: machine.array(
        None, (), dtype, False, data
    ),
    "numpy.core.numeric._frombuffer": lambda machine, data, dtype, shape, order: machine.array(
        None, shape, dtype, order == "F", data
    ),
    "torch._utils._rebuild_parameter": lambda machine, tensor, *_: tensor,
    "torch._utils._rebuild_tensor_v2": _Machine.tensor,
    "torch.storage._load_from_bytes": _Machine.storage,
    "torch_utils.persistence._reconstruct_persistent_obj": _Machine.persistent,
}

# What it may name besides. Called or created, it's an Instance.
_CLASSES = {"argparse.Namespace", "numpy.ndarray", "torch.device"}

# Modules of numpy 2 and of Python 2.
_RENAMED = {"numpy._core.": "numpy.core.", "__builtin__.": "builtins."}
