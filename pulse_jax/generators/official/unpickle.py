"""Reads PyTorch files, without torch and without running what they name.

A pickle is a program that may call anything it can name. Here it may name the rows of one table,
`_GLOBALS`, and each stands for something inert: a storage type, a dict, a view of an array.
"""

import io
import os
import pickle
import pickletools
import struct
import sys
import zipfile
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pulse_jax.files import one_line

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def read(path):
    """The object in a file of `torch.save`, with numpy arrays in place of its tensors.

    Reads the zip format and the one before torch 1.6, whatever device the tensors were saved from.
    Tensors that share a storage share memory, with their offsets and strides kept: the arrays need
    no more memory than the file, reading them up to three times that. Names outside a fixed list
    are refused; nothing that a file names is imported or called. Raises ValueError, one line with
    the file and the reason, for whatever can't be read.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            zipped = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
            file.seek(0)
            return _read_zip(file, size) if zipped else _read_legacy(file, size)
    except Exception as error:
        raise ValueError(f"{path}: {one_line(error)[:300]}") from error


def _read_zip(file, limit):
    if not zipfile.is_zipfile(file):
        raise ValueError("truncated: the zip file's table of contents is missing")
    with zipfile.ZipFile(file) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in infos if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("not a PyTorch file: it has no single data.pkl")
        folder = pickles[0].removesuffix("data.pkl")

        def member(name):
            info = infos.get(folder + name)
            if info is None or info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name!r} is missing or compressed")
            if info.compress_size > limit:
                raise ValueError(f"truncated: {name!r} exceeds the file")
            return archive.open(info)

        byte_order = "little"
        if folder + "byteorder" in infos:
            byte_order = member("byteorder").read().decode()
        if byte_order not in ("little", "big"):
            raise ValueError("unknown byte order")
        tree, storages = _unpickle(io.BytesIO(member("data.pkl").read()), limit)
        for key, storage in storages.items():
            with member(f"data/{key}") as data:
                _fill(storage, key, data, byte_order)
                if data.read(1):
                    raise ValueError(f"storage {key!r} is longer than its tensors say")
    return tree


def _read_legacy(file, limit):
    file = io.BytesIO(file.read())  # a read past its end allocates nothing, whatever a pickle says
    try:
        magic, _ = _unpickle(file, limit)
    except Exception:
        magic = None
    if magic != _LEGACY_MAGIC:
        raise ValueError("not a PyTorch file")
    version, _ = _unpickle(file, limit)
    if version != _LEGACY_VERSION:
        raise ValueError("unknown version of PyTorch's legacy format")
    _unpickle(file, limit)  # the writer's word sizes: the storage types say all
    tree, storages = _unpickle(file, limit)
    keys, _ = _unpickle(file, limit)
    if sorted(keys) != sorted(storages):
        raise ValueError("the file's storages are not those of its tensors")
    for key in keys:
        storage, (count,) = storages[key], struct.unpack("<q", file.read(8))
        if count != storage.numel:
            raise ValueError(
                f"storage {key!r} has {count} elements, its tensors say {storage.numel}"
            )
        _fill(storage, key, file, "little")
    return tree


def _unpickle(file, limit):
    """The object pickled at the file's position, and its storages by key, still to be filled."""
    start = file.tell()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            # The unpickler allocates its memo up to the largest index; honest ones count from 0.
            if opcode.name.endswith("PUT") and argument > count:
                raise ValueError(f"memo index {argument}")
    except ValueError as error:
        raise pickle.UnpicklingError("truncated or malformed pickle") from error
    size = file.tell() - start
    file.seek(start)
    unpickler = _Unpickler(io.BytesIO(file.read(size)), limit)
    return unpickler.load(), unpickler.storages


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, limit):
        super().__init__(file)
        self.limit = limit  # on the bytes of all storages: the size of the file that holds them
        self.storages = {}

    def find_class(self, module, name):
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"refused to load {f'{module}.{name}'!r}")
        return _GLOBALS[module, name]

    def persistent_load(self, pid):
        _, storage_type, key, _location, numel, *view = pid
        if not (type(storage_type) is type(key) is str and storage_type in _STORAGES):
            raise pickle.UnpicklingError("malformed storage")
        if view not in ([], [None]):
            raise pickle.UnpicklingError(f"storage {key!r} is a view of another")
        _check_sizes(numel)
        dtype = np.dtype(_STORAGES[storage_type])
        if key not in self.storages:
            self.limit -= numel * dtype.itemsize
            if self.limit < 0:
                raise pickle.UnpicklingError(f"truncated: storage {key!r} exceeds the file")
            self.storages[key] = _Storage(np.empty(numel * dtype.itemsize, np.uint8), dtype)
        storage = self.storages[key]
        if (storage.numel, storage.dtype) != (numel, dtype):
            raise pickle.UnpicklingError(f"storage {key!r} has two sizes or types")
        return storage


class _Storage(NamedTuple):
    data: np.ndarray  # its bytes
    dtype: np.dtype

    @property
    def numel(self):
        return self.data.size // self.dtype.itemsize


def _fill(storage, key, file, byte_order):
    if file.readinto(storage.data) != storage.data.size:
        raise ValueError(f"truncated: storage {key!r} is incomplete")
    if byte_order != sys.byteorder:
        storage.data.view(f"u{storage.dtype.itemsize}").byteswap(inplace=True)


def _check_sizes(*sizes):
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise pickle.UnpicklingError("a size, offset or stride is not a natural number")


class _StateDict(dict):
    """An OrderedDict. Its attributes, such as a state dict's `_metadata`, are dropped."""

    __slots__ = ()

    def __init__(self):
        super().__init__()

    def __setstate__(self, state):
        pass


class _Function:
    """A function that a pickle may call but not change."""

    __slots__ = ("call",)

    def __init__(self, call):
        self.call = call

    def __call__(self, *args):
        return self.call(*args)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("malformed pickle: a function with a state")


def _tensor(storage, offset, size, stride, *_):
    """A view of a storage. `offset` and `stride` count elements."""
    if not isinstance(storage, _Storage) or len(size) != len(stride):
        raise pickle.UnpicklingError("malformed tensor")
    _check_sizes(offset, *size, *stride)
    if 0 in size:
        return np.empty(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.numel:
        raise pickle.UnpicklingError(f"a tensor exceeds its storage of {storage.numel} elements")
    item = storage.dtype.itemsize
    strides = [step * item for step in stride]
    return np.ndarray(size, storage.dtype, storage.data, offset * item, strides)


# All that a pickle may name.
_GLOBALS = {
    ("collections", "OrderedDict"): _StateDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(lambda tensor, *_: tensor),
    **{("torch", name): name for name in _STORAGES},
}
