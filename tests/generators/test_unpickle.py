"""PyTorch files: the published formats read right, hostile and broken ones refused."""

import json
import pickle
import struct
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA

from pulse_jax.generators.official import read

SHAPES = json.loads((DATA / "pulse_shapes.json").read_text())


# Torch files written without torch: the opcodes of a pickle's parts, and the two containers.


def plain(value):
    return pickle.dumps(value, protocol=2)[2:-1]


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def called(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


def mapped(**values):
    return b"}" + b"".join(plain(key) + value + b"s" for key, value in values.items())


ORDERED_DICT = named("collections", "OrderedDict")
REBUILD = named("torch._utils", "_rebuild_tensor_v2")


def storage(key, numel, kind="FloatStorage", location="cuda:0"):
    parts = plain("storage"), named("torch", kind), plain(key), plain(location), plain(numel)
    return b"(" + b"".join(parts) + b"tQ"


def tensor(storage, offset, size, stride):
    view = plain(offset), plain(size), plain(stride)
    return called(REBUILD, storage, *view, plain(False), called(ORDERED_DICT))


def program(body):
    return b"\x80\x02" + body + b"."


def write_zip(path, body, byteorder=None, compression=zipfile.ZIP_STORED, **storages):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program(body))
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data.tobytes())
        if byteorder is not None:
            archive.writestr("archive/byteorder", byteorder)
    return path


MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
HEADER = MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)


def write_legacy(path, body, **storages):
    data = [struct.pack("<q", data.size) + data.tobytes() for data in storages.values()]
    keys = pickle.dumps(list(storages), 2)
    path.write_bytes(HEADER + program(body) + keys + b"".join(data))
    return path


both_formats = pytest.mark.parametrize("write", [write_zip, write_legacy])


def refused(path):
    """The message with which a file is refused: one line that names it."""
    with pytest.raises(ValueError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# What can be read.


@pytest.mark.parametrize("name", SHAPES)
def test_golden_files_are_the_same_in_both_formats(name):
    zipped = read(DATA / f"{name}_zip.pt")
    legacy = read(DATA / f"{name}_legacy.pt")
    assert {key: list(value.shape) for key, value in zipped.items()} == SHAPES[name]
    assert list(zipped) == list(legacy)
    for key, value in zipped.items():
        assert value.dtype == legacy[key].dtype == np.float32
        np.testing.assert_array_equal(value, legacy[key])


def test_gaussian_fit_of_pulse():
    fit = read(DATA / "gaussian_fit.pt")
    assert list(fit) == ["mean", "std"]
    # The file ends with: count, the 512 numbers of std, count, the 512 numbers of mean.
    content = (DATA / "gaussian_fit.pt").read_bytes()
    np.testing.assert_array_equal(fit["mean"], np.frombuffer(content[-2048:], "<f4"))
    np.testing.assert_array_equal(
        fit["std"], np.frombuffer(content[-2048 - 8 - 2048 : -2056], "<f4")
    )


@both_formats
def test_views_keep_offset_and_strides(write, tmp_path):
    a, b = np.arange(20, dtype=np.float32), np.zeros(0, np.float32)
    body = mapped(
        columns=tensor(storage("0", 20), 3, (2, 3), (1, 7)),
        broadcast=tensor(storage("0", 20), 4, (3, 2), (0, 1)),
        scalar=tensor(storage("0", 20), 19, (), ()),
        empty=tensor(storage("1", 0), 0, (0, 4), (4, 1)),
    )
    tree = read(write(tmp_path / "views.pt", body, **{"0": a, "1": b}))
    np.testing.assert_array_equal(tree["columns"], [[3, 10, 17], [4, 11, 18]])
    np.testing.assert_array_equal(tree["broadcast"], [[4, 5]] * 3)
    assert tree["scalar"].shape == () and tree["scalar"] == 19
    assert tree["empty"].shape == (0, 4)
    assert np.shares_memory(tree["columns"], tree["broadcast"])


@both_formats
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("DoubleStorage", np.float64),
        ("FloatStorage", np.float32),
        ("HalfStorage", np.float16),
        ("BFloat16Storage", jnp.bfloat16),
        ("LongStorage", np.int64),
        ("IntStorage", np.int32),
        ("ShortStorage", np.int16),
        ("CharStorage", np.int8),
        ("ByteStorage", np.uint8),
        ("BoolStorage", np.bool_),
    ],
)
def test_every_type_of_storage(write, kind, dtype, tmp_path):
    data = np.array([1, 0, 1, 1, 77], dtype)
    body = tensor(storage("7", 5, kind), 1, (4,), (1,))
    value = read(write(tmp_path / "typed.pt", body, **{"7": data}))
    assert value.dtype == dtype
    np.testing.assert_array_equal(value, data[1:])


@pytest.mark.parametrize(("kind", "dtype"), [("FloatStorage", ">f4"), ("ShortStorage", ">i2")])
def test_big_endian_zip(kind, dtype, tmp_path):
    data = np.array([1, -2, 300], dtype)
    body = tensor(storage("0", 3, kind), 0, (3,), (1,))
    value = read(write_zip(tmp_path / "big.pt", body, byteorder="big", **{"0": data}))
    assert value.dtype.isnative
    np.testing.assert_array_equal(value, [1, -2, 300])


@both_formats
def test_parameters_and_attributes_of_a_state_dict(write, tmp_path):
    parameter = called(
        named("torch._utils", "_rebuild_parameter"),
        tensor(storage("0", 2), 0, (2,), (1,)),
        plain(True),
        called(ORDERED_DICT),
    )
    attributes = plain({"_metadata": {"": {"version": 1}}, "items": None})
    body = called(ORDERED_DICT) + plain("weight") + parameter + b"s" + attributes + b"b"
    tree = read(write(tmp_path / "state.pt", body, **{"0": np.float32([5, 6])}))
    assert {name: value.tolist() for name, value in tree.items()} == {"weight": [5, 6]}


def test_memory_is_bounded_by_the_file(tmp_path):
    data = np.zeros(1_000_000, np.float32)
    body = tensor(storage("0", data.size), 0, (1000, 1000), (1, 1000))
    for write in (write_zip, write_legacy):
        path = write(tmp_path / "large.pt", body, **{"0": data})
        tracemalloc.start()
        tree = read(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert tree.shape == (1000, 1000)
        assert peak <= 3 * data.nbytes


# What is refused.


def calls(folder):
    """Programs that create a folder, by the opcode that makes the call."""
    mkdir, folder = named("os", "mkdir"), str(folder)
    expression = plain(f"__import__('os').mkdir({folder!r})")
    folder = plain(folder)
    # A tuple made from map(mkdir, [folder]) runs over it; a partial takes its function from BUILD.
    lazy = named("builtins", "map") + b"(" + mkdir + b"(" + folder + b"lt\x81"
    partial = called(named("functools", "partial"), named("builtins", "print"))
    return {
        "REDUCE": called(mkdir, folder),
        "eval": called(named("builtins", "eval"), expression),
        "exec of Python 2": called(named("__builtin__", "eval"), expression),
        "STACK_GLOBAL": called(b"\x8c\x02os\x8c\x05mkdir\x93", folder),
        "INST": b"(" + folder + b"ios\nmkdir\n",
        "OBJ": b"(" + named("os", "mkdir") + folder + b"o",
        "NEWOBJ": named("builtins", "tuple") + b"(" + lazy + b"t\x81",
        "NEWOBJ_EX": named("builtins", "tuple") + b"(" + lazy + b"t}\x92",
        "BUILD": partial + b"(" + mkdir + b"(" + folder + b"t}Ntb)R",
    }


@both_formats
@pytest.mark.parametrize("opcode", calls(""))
def test_hostile_pickles_execute_nothing(write, opcode, tmp_path):
    folder = tmp_path / "created"
    body = calls(folder)[opcode]
    reason = "refused the opcode" if opcode == "INST" else "refused to load"
    assert reason in refused(write(tmp_path / "hostile.pt", body))
    assert not folder.exists()
    pickle.loads(program(body))  # an unguarded reader does
    assert folder.exists()


@pytest.mark.parametrize("start", [b"", MAGIC, HEADER, HEADER + program(b"}")])
def test_every_pickle_of_a_legacy_file_is_guarded(start, tmp_path):
    path = tmp_path / "hostile.pt"
    path.write_bytes(start + program(calls(tmp_path / "created")["REDUCE"]))
    refused(path)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(
    "name",
    [
        ("torch", "load"),
        ("torch", "FloatStorage.__class__"),
        ("torch._utils", "os.system"),
        ("collections", "OrderedDict.fromkeys"),
        ("pulse_jax.generators.official.unpickle", "read"),
    ],
)
def test_names_around_the_allowed_ones_are_refused(name, tmp_path):
    stacked = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in name) + b"\x93"
    for body in (named(*name), stacked):
        message = refused(write_zip(tmp_path / "hostile.pt", body))
        assert message == f"refused to load '{'.'.join(name)}'"


@pytest.mark.parametrize("state", [{"call": 1}, (None, {"call": 1}), (None, {"__class__": 1})])
@pytest.mark.parametrize(
    "target",
    [REBUILD, ORDERED_DICT, tensor(storage("0", 1), 0, (), ())],
    ids=["function", "class", "tensor"],
)
def test_a_pickle_cannot_change_what_it_names(target, state, tmp_path):
    data = {"0": np.float32([3])}
    message = refused(write_zip(tmp_path / "hostile.pt", target + plain(state) + b"b", **data))
    assert "out of place" in message
    body = called(ORDERED_DICT) + plain("x") + tensor(storage("0", 1), 0, (), ()) + b"s"
    assert read(write_zip(tmp_path / "good.pt", body, **data)) == {"x": 3}


@both_formats
@pytest.mark.parametrize(
    ("offset", "size", "stride", "reason"),
    [
        (0, (7,), (1,), "exceeds its storage"),
        (5, (2,), (1,), "exceeds its storage"),
        (0, (2, 3), (4, 1), "exceeds its storage"),
        (6, (), (), "exceeds its storage"),
        (0, (2,), (2**62,), "exceeds its storage"),
        (2**63, (1,), (1,), "out of range"),
        (0, (2**62, 2**62), (0, 0), "too much memory"),
        (-1, (2,), (1,), "out of range"),
        (5, (2,), (-1,), "out of range"),
        (0, (-1,), (1,), "out of range"),
        (0, (2,), (0.5,), "out of range"),
        (0, (2, 2), (1,), "malformed pickle"),
        (0, 2, 1, "malformed pickle"),
        (0, (1,) * 100, (1,) * 100, "out of range"),
    ],
)
def test_tensors_outside_their_storage_are_refused(write, offset, size, stride, reason, tmp_path):
    body = tensor(storage("0", 6), offset, size, stride)
    path = write(tmp_path / "outside.pt", body, **{"0": np.zeros(6, np.float32)})
    assert reason in refused(path)


VIEW = storage("0", 6)[:-2] + plain(("1", 0, 6)) + b"tQ"


@both_formats
@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        (plain(("0" * 24, "float32")), "out of place"),
        (tensor(storage("0", 6), 0, (10**12,), (0,)), "too much memory"),
        (storage("0", 7), "storage '0'"),
        (storage("0", 5), "storage '0'"),
        (storage("0", -6), "out of range"),
        (storage("0", 10**6), "truncated: storage '0'"),
        (storage("0", 2**62), "too much memory"),
        (storage("0", 6) + storage("0", 3, kind="DoubleStorage"), "two sizes or types"),
        (storage("0", 6, kind="Storage"), "unknown type of storage 'torch.Storage'"),
        (VIEW, "is a view of another"),
        (plain("storage") + b"Q", "out of place"),
        (plain([]) + b"r\xff\xff\xff\x7f", "out of place"),  # a memo of 2**31 entries
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_storages_are_refused(write, storage, reason, tmp_path):
    body = tensor(storage, 0, (5,), (1,))
    path = write(tmp_path / "malformed.pt", body, **{"0": np.zeros(6, np.float32)})
    assert reason in refused(path)


def test_missing_storages_are_refused(tmp_path):
    body, data = tensor(storage("1", 6), 0, (6,), (1,)), {"0": np.zeros(6, np.float32)}
    assert "'data/1' is missing" in refused(write_zip(tmp_path / "missing.pt", body, **data))
    assert "storages are not those" in refused(write_legacy(tmp_path / "missing.pt", body, **data))


def test_malformed_zip_members_are_refused(tmp_path):
    body = tensor(storage("0", 6), 0, (6,), (1,))
    data, path = {"0": np.zeros(6, np.float32)}, tmp_path / "malformed.pt"
    assert "byte order" in refused(write_zip(path, body, byteorder="middle", **data))
    assert "compressed" in refused(write_zip(path, body, None, zipfile.ZIP_DEFLATED, **data))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/notes.txt", "")
    assert "not a PyTorch file" in refused(path)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", pickle.dumps({"a": 1}, 0)])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    assert refused(path) == "neither a PyTorch file nor a pickle of protocol 2 or later"
    assert refused(tmp_path / "absent.pt") == "No such file or directory"
    refused(tmp_path)


@pytest.mark.parametrize(
    "name", ["gaussian_fit", "sg1_torch_mapping512_strided_zip", "sg1_torch_r128_mapping_legacy"]
)
def test_truncated_files_are_refused(name, tmp_path):
    content, path = (DATA / f"{name}.pt").read_bytes(), tmp_path / "truncated.pt"
    ends = {*range(0, len(content), 499), *range(300), *range(len(content) - 50, len(content))}
    for end in ends:
        path.write_bytes(content[:end])
        message = refused(path)
        assert "truncated" in message or "buffer of 8 bytes" in message or end < 15, message
