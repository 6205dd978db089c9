"""Files of weights: the published formats read right, hostile and broken ones refused."""

import bz2
import copyreg
import gzip
import io
import json
import lzma
import pickle
import re
import struct
import tarfile
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA

from pulse_jax.generators.official.unpickle import Instance, read

SHAPES = json.loads((DATA / "pulse_shapes.json").read_text())


# Files written without torch: the opcodes of a pickle's parts, and the containers.


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
LOAD_FROM_BYTES = named("torch.storage", "_load_from_bytes")
RECONSTRUCT = named("numpy.core.multiarray", "_reconstruct")
ENCODE = named("_codecs", "encode")
LOSS = named("training.loss", "StyleGANLoss")  # a class that the reader doesn't know


def storage(key, numel, kind="FloatStorage", location="cuda:0"):
    parts = plain("storage"), named("torch", kind), plain(key), plain(location), plain(numel)
    return b"(" + b"".join(parts) + b"tQ"


def tensor(storage, offset, size, stride):
    view = plain(offset), plain(size), plain(stride)
    return called(REBUILD, storage, *view, plain(False), called(ORDERED_DICT))


def array(data, shape, dtype="f4", order="<", fortran=b"\x89"):
    """A numpy array whose bytes `data` pushes."""
    dtype = called(named("numpy", "dtype"), plain(dtype), b"K\x00K\x01")
    dtype += b"(K\x03" + plain(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = called(RECONSTRUCT, named("numpy", "ndarray"), plain((0,)), plain("b"))
    return empty + b"(K\x01" + plain(shape) + dtype + fortran + data + b"tb"


def binbytes(data):
    return b"B" + struct.pack("<I", len(data)) + data


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


def legacy(body, **storages):
    data = [struct.pack("<q", data.size) + data.tobytes() for data in storages.values()]
    return HEADER + program(body) + pickle.dumps(list(storages), 2) + b"".join(data)


def write_legacy(path, body, **storages):
    path.write_bytes(legacy(body, **storages))
    return path


def write_pickle(path, body):
    path.write_bytes(program(body))
    return path


def write_storage(path, body):
    """An ordinary pickle, with the body in the bytes of a tensor's storage."""
    return write_pickle(path, called(LOAD_FROM_BYTES, binbytes(legacy(body))))


both_formats = pytest.mark.parametrize("write", [write_zip, write_legacy])
all_formats = pytest.mark.parametrize(
    "write", [write_zip, write_legacy, write_pickle, write_storage]
)


def refused(path):
    """The message with which a file is refused: one line that names it."""
    with pytest.raises(ValueError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message and len(message) < 500
    return message.removeprefix(f"{path}: ")


def peak_memory(function, path):
    tracemalloc.start()
    try:
        function(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


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


@pytest.mark.parametrize(
    ("name", "latent_size", "const"),
    [("sg1_tf", 40, 315.5859213308431), ("sg2_tf", 32, 385.4982041940093)],
)
def test_networks_of_tensorflow(name, latent_size, const):
    networks = read(DATA / f"{name}.pkl")
    assert type(networks) is tuple
    assert [network.name for network in networks] == ["dnnlib.tflib.network.Network"] * 3
    assert [network.state["name"] for network in networks] == ["G", "D", "Gs"]
    state = networks[2].state
    assert state["static_kwargs"]["latent_size"] == latent_size
    (_, lod), (_, average) = state["variables"]
    assert type(lod) is np.ndarray and lod.shape == () and average.shape == (32,)
    variables = dict(state["components"]["synthesis"].state["variables"])
    assert all(value.dtype == np.float32 for value in variables.values())
    assert np.sum(variables["4x4/Const/const"], dtype=np.float64) == pytest.approx(const, 1e-12)


@pytest.mark.parametrize(
    ("name", "resolution"), [("sg2ada", 64), ("sg2ada_fp16cfg", 32), ("sg3T", 64), ("sg3R", 32)]
)
def test_modules_of_nvidia(name, resolution):
    tree = read(DATA / f"{name}.pkl")
    network = tree["G_ema"]
    assert type(network) is Instance and network.name == "Generator"
    assert type(network.state["_init_kwargs"]) is dict  # an EasyDict
    assert network.state["_init_kwargs"]["img_resolution"] == resolution
    mapping = network.state["_modules"]["mapping"]
    assert mapping.name == "MappingNetwork"
    average = mapping.state["_buffers"]["w_avg"]
    assert average.shape == (network.state["w_dim"],) and average.dtype == np.float32
    weight = mapping.state["_modules"]["fc0"].state["_parameters"]["weight"]
    assert weight.shape == (network.state["w_dim"], network.state["z_dim"])


def test_training_checkpoint():
    tree = read(DATA / "rosinality_train.pt")
    assert list(tree) == ["g", "d", "g_ema", "g_optim", "d_optim", "args", "ada_aug_p"]
    assert (tree["args"].name, tree["args"].state["latent"]) == ("argparse.Namespace", 32)
    weights = read(DATA / "rosinality.pt")["g_ema"]
    assert list(tree["g_ema"]) == list(weights)
    assert {type(value) for value in tree["g_ema"].values()} == {np.ndarray}


PLAIN = {
    "text": "naïve 😀",
    "bytes": b"\x00\xff",
    "no bytes": b"",
    "numbers": [0, -1, 255, 70_000, 2**40, -(2**70), 1.5, float("inf"), True, False],
    "nested": ({}, [], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {None: {1: [b"x"]}}),
}
ARRAYS = {
    "C": np.arange(6, dtype=np.float32).reshape(2, 3),
    "Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.array([1, -2, 300], ">i2"),
    "bool": np.array([True, False]),
    "half": np.ones((1, 2, 3, 4), np.float16),
    "empty": np.zeros((0, 3), np.uint8),
    "scalar": np.array(3),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(protocol, tmp_path):
    sets = {"set": {7}, "frozenset": frozenset([7])}
    scalars = {"float32": np.float32(1.5), "int64": np.int64(-3), "bool_": np.bool_(True)}
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps(PLAIN | sets | ARRAYS | scalars, protocol))
    tree = read(path)
    assert {name: tree[name] for name in PLAIN} == PLAIN
    assert [list(tree[name]) for name in sets] == [[7], [7]]
    for name, value in (ARRAYS | scalars).items():
        assert type(tree[name]) is np.ndarray
        assert (tree[name].shape, tree[name].dtype) == (value.shape, value.dtype)
        np.testing.assert_array_equal(tree[name], value)


def test_strings_of_python_2(tmp_path):
    data = np.float32([[0, 1, -2.5], [3, np.pi, 0]])
    string = b"T" + struct.pack("<i", data.nbytes) + data.tobytes()
    body = b"}" + b"U\x05caf\xe9s" + array(string, (2, 3)) + b"s"
    body += b"U\x01n" + b"I12345678901\n" + b"s"
    tree = read(write_pickle(tmp_path / "old.pkl", body))
    assert list(tree) == ["cafés", "n"] and tree["n"] == 12345678901
    np.testing.assert_array_equal(tree["cafés"], data)


def test_tensors_in_an_ordinary_pickle(tmp_path):
    data = np.arange(12, dtype=np.float16)
    blob = legacy(storage("17", 12, "HalfStorage"), **{"17": data})
    body = called(
        named("torch._utils", "_rebuild_parameter"),
        tensor(called(LOAD_FROM_BYTES, binbytes(blob)), 1, (2, 3), (1, 4)),
        plain(True),
        called(ORDERED_DICT),
    )
    value = read(write_pickle(tmp_path / "module.pkl", body))
    assert type(value) is np.ndarray and value.dtype == np.float16
    np.testing.assert_array_equal(value, [[1, 5, 9], [2, 6, 10]])


@pytest.mark.parametrize("made", [b")R", b")\x81", b")}\x92", plain((1, {"a": 2})) + b"R"])
@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (b"", {}),
        (plain({"pl_weight": 2}) + b"b", {"pl_weight": 2}),
        (plain((None, {"slot": 1})) + b"b", {"slot": 1}),
        (plain((1, 2, 3)) + b"b", {}),
        (plain("items") + b"b", {}),
        (plain(1) + b"a" + plain("key") + plain(2) + b"s(NNe(NNu", {}),
    ],
)
@pytest.mark.parametrize("write", [write_zip, write_legacy, write_pickle])
def test_objects_of_unknown_classes_are_inert(write, made, state, expected, tmp_path):
    value = read(write(tmp_path / "loss.pkl", LOSS + made + state))
    assert type(value) is Instance
    assert (value.name, value.state) == ("training.loss.StyleGANLoss", expected)


def test_containers_may_contain_themselves(tmp_path):
    path = tmp_path / "cycle.pkl"
    value = read(write_pickle(path, b"]q\x00h\x00a"))
    assert value[0] is value
    value = read(write_pickle(path, b"}q\x00K\x01h\x00s"))
    assert value[1] is value
    value = read(write_pickle(path, LOSS + b")\x81q\x00}K\x01h\x00sb"))
    assert value.state[1] is value
    assert read(write_pickle(path, b"(" + b"]q\x00(h\x00tq\x01ah\x01" + b"t"))  # a tuple


def test_nesting_without_end(tmp_path):
    path = tmp_path / "deep.pkl"
    for body in (
        b")" + b"\x85" * 100_000,
        b"]" * 60_000 + b"a" * 59_999,
        b"}N" * 30_000 + b"}" + b"s" * 30_000,
        (LOSS + b"q\x000" + b"h\x00)\x81}N" * 15_000 + b"N" + b"sb" * 15_000),
    ):
        assert read(write_pickle(path, body)) is not None
    assert "out of place" in refused(write_pickle(path, b"})" + b"\x85" * 100_000 + b"Ns"))


def write_numpy(path, data, **_):
    path.write_bytes(pickle.dumps(data, 4))
    return path


def write_python_2(path, data, **_):
    string = b"T" + struct.pack("<i", data.nbytes) + data.tobytes()
    return write_pickle(path, array(string, data.shape))


def write_module(path, data, **_):
    blob = binbytes(legacy(storage("0", data.size), **{"0": data}))
    return write_pickle(path, tensor(called(LOAD_FROM_BYTES, blob), 0, data.shape, (1,)))


def write_torch(write):
    def written(path, data):
        body = tensor(storage("0", data.size), 0, data.shape, (1,))
        return write(path, body, **{"0": data})

    return written


@pytest.mark.parametrize(
    "write",
    [write_torch(write_zip), write_torch(write_legacy), write_numpy, write_python_2, write_module],
)
def test_memory_of_honest_files(write, tmp_path):
    data = np.random.default_rng(0).standard_normal(5_000_000, np.float32)
    path = write(tmp_path / "large", data)
    np.testing.assert_array_equal(read(path), data)
    assert peak_memory(read, path) < 2.1 * path.stat().st_size


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
        "EXT": b"\x82\x4d" + folder + b"\x85R",
        "BUILD": partial + b"(" + mkdir + b"(" + folder + b"t}Ntb)R",
    }


@all_formats
@pytest.mark.parametrize("opcode", calls(""))
def test_hostile_pickles_execute_nothing(write, opcode, tmp_path):
    folder = tmp_path / "created"
    body = calls(folder)[opcode]
    copyreg.add_extension("os", "mkdir", 0x4D)
    try:
        reason = refused(write(tmp_path / "hostile.pt", body))
        assert reason.startswith("refused ") and not folder.exists()
        pickle.loads(program(body))  # an unguarded reader does
        assert folder.exists()
    finally:
        copyreg.remove_extension("os", "mkdir", 0x4D)


@pytest.mark.parametrize("start", [b"", MAGIC, HEADER, HEADER + program(b"}")])
def test_every_pickle_of_a_legacy_file_is_guarded(start, tmp_path):
    path = tmp_path / "hostile.pt"
    path.write_bytes(start + program(calls(tmp_path / "created")["REDUCE"]))
    refused(path)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(
    "name",
    [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("builtins", "Exception"),
        ("subprocess", "Popen"),
        ("functools", "partial"),
        ("copyreg", "_reconstructor"),
        ("collections", "UserDict"),
        ("argparse", "FileType"),
        ("__main__", "main"),
        ("", "eval"),
        ("numpy", "load"),
        ("numpy", "ndarray.tofile"),
        ("numpy.core.multiarray", "array"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes.__globals__"),
        ("torch", "FloatStorage.__class__"),
        ("torch._utils", "os.system"),
        ("collections", "OrderedDict.fromkeys"),
        ("pulse_jax.generators.official.unpickle", "read"),
    ],
)
def test_names_around_the_allowed_ones_are_refused(name, tmp_path):
    stacked = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in name) + b"\x93"
    for body in (named(*name), stacked):
        message = refused(write_pickle(tmp_path / "hostile.pt", body))
        assert message == f"refused to load '{'.'.join(name)}'"


def test_names_of_python_2_are_refused(tmp_path):
    body = called(named("__builtin__", "eval"), plain("1"))
    assert refused(write_pickle(tmp_path / "old.pkl", body)) == "refused to load 'builtins.eval'"


@pytest.mark.parametrize("state", [{"call": 1}, (None, {"call": 1}), (None, {"__class__": 1})])
@pytest.mark.parametrize(
    "target",
    [
        REBUILD,
        ORDERED_DICT,
        LOSS,
        tensor(storage("0", 1), 0, (), ()),
        array(binbytes(b"1234"), ()),
        b"]",
        plain("text"),
    ],
    ids=["function", "dict's class", "class", "tensor", "array", "list", "text"],
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
        (0, (10**6, 10**6), (0, 0), "too much memory"),
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
    assert "not PyTorch's" in refused(path)


def tarred(content):
    file, member = io.BytesIO(), tarfile.TarInfo("weights.pt")
    member.size = len(content)
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zipped(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights.pkl", content)
    return file.getvalue()


PICKLE = pickle.dumps({"a": 1}, 2)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 360\n"
SAFETENSORS = struct.pack("<Q", 15) + b'{"a":{"dtype":1' + bytes(9)
FOREIGN = {  # content → what is said of it
    b"": "empty: download or copy it again",
    b"<!DOCTYPE html><title>Sign in</title>": "a web page saved in place of the weights: download ",
    b"\xef\xbb\xbf\r\n <?xml version='1.0'?><Error/>": "a web page saved in place of the weights",
    POINTER: "a Git LFS pointer to the weights: fetch them with `git lfs pull`",
    gzip.compress(PICKLE): "compressed by gzip: unpack it with `gunzip`",
    bz2.compress(PICKLE): "compressed by bzip2: unpack it with `bunzip2`",
    lzma.compress(PICKLE): "compressed by xz: unpack it with `unxz`",
    b"\x28\xb5\x2f\xfd\x20": "compressed by Zstandard: unpack it with `unzstd`",
    tarred(PICKLE): "a tar archive: unpack it with `tar -xf`",
    zipped(PICKLE): "a zip archive, but not PyTorch's: unpack it",
    zipped(PICKLE)[:-30]: "truncated, .*: download or copy it again",
    PICKLE[:-2]: "truncated or malformed pickle: download or copy it again",
    SAFETENSORS: "a safetensors file, which lacks the network's architecture: put its config.json",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file: give the .pt or .pkl file",
    b"404: Not Found\n": "neither .* later, but text that begins with '404: Not Found'$",
    b"\x89PNG\r\n\x1a\n": "neither a PyTorch file nor a pickle of protocol 2 or later$",
    b"\xff" * 1000: "neither a PyTorch file nor a pickle of protocol 2 or later$",
    pickle.dumps({"a": 1}, 0): "neither a PyTorch file nor a pickle of protocol 2 or later, but",
}


@pytest.mark.parametrize("content", FOREIGN, ids=lambda content: FOREIGN[content][:20])
def test_other_files_are_named_and_refused(content, tmp_path):
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    assert re.match(FOREIGN[content], refused(path))


def test_what_is_no_file_is_refused(tmp_path):
    assert refused(tmp_path / "absent.pt") == "No such file or directory"
    refused(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("gaussian_fit.pt", "sg1_torch_mapping512_strided_zip.pt"),
        *("sg1_torch_r128_mapping_legacy.pt", "sg1_torch_r128_mapping_zip.pt"),
        *("sg2_tf.pkl", "sg3R.pkl"),
    ],
)
def test_truncated_files_are_refused(name, tmp_path):
    content, path = (DATA / name).read_bytes(), tmp_path / "truncated.pt"
    ends = {*range(0, len(content), 997), *range(30), *range(len(content) - 5, len(content))}
    for end in ends:
        path.write_bytes(content[:end])
        assert "truncated" in refused(path) or end < 5


# Arrays of numpy.


EIGHT = binbytes(b"12345678")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (array(EIGHT, (3,)), "isn't that of its bytes"),
        (array(EIGHT, (1,)), "isn't that of its bytes"),
        (array(EIGHT, (2, 0)), "isn't that of its bytes"),
        (array(EIGHT, (2**62,)), "isn't that of its bytes"),
        (array(EIGHT, (-2,)), "out of range"),
        (array(EIGHT, (-1, -2)), "out of range"),
        (array(EIGHT, (2.0,)), "out of range"),
        (array(EIGHT, (2**64,)), "out of range"),
        (array(EIGHT, (1,) * 70 + (2,)), "out of range"),
        (array(EIGHT, 2), "out of place"),
        (array(EIGHT, [2]), "out of place"),
        (array(plain([1, 2]), (2,)), "out of place"),
        (array(plain("ł" * 8), (2,)), "malformed pickle"),
        (array(EIGHT, (1,), "O8", "|"), "other things than numbers"),
        (array(EIGHT, (1,), "O"), "other things than numbers"),
        (array(EIGHT, (1,), "V8"), "other things than numbers"),
        (array(EIGHT, (1,), "f4,O"), "other things than numbers"),
        (array(EIGHT, (1,), "U2"), "other things than numbers"),
        (array(EIGHT, (1,), ["f4"]), "out of place"),
        (array(EIGHT, (1,), "f4", "O,"), "unknown byte order"),
        (array(EIGHT, (1,), "f4", "(2,)"), "unknown byte order"),
        (array(EIGHT, (1,), "f4", ""), "unknown byte order"),
        (array(EIGHT, (2,)).replace(b"K\x00tb", b"K\x00t0"), "isn't that of its bytes"),
        (called(RECONSTRUCT) + plain((1, (2,), "f4", False, b"")) + b"b", "isn't that of"),
        (called(RECONSTRUCT) + plain(({}, {})) + b"b", "malformed pickle"),
        (called(named("numpy.core.multiarray", "scalar"), plain("f4"), EIGHT), "isn't that of"),
        (called(named("numpy", "dtype")), "malformed pickle"),
    ],
)
def test_malformed_arrays_are_refused(body, reason, tmp_path):
    assert reason in refused(write_pickle(tmp_path / "array.pkl", body))


def test_fortran_order(tmp_path):
    data = np.arange(6, dtype=np.float32)
    body = array(binbytes(data.tobytes()), (2, 3), fortran=b"\x88")
    value = read(write_pickle(tmp_path / "f.pkl", body))
    np.testing.assert_array_equal(value, data.reshape(2, 3, order="F"))


def test_an_array_is_an_array_wherever_it_is(tmp_path):
    # Once put into the memo, before its data are known; later taken from there.
    body = array(EIGHT, (2,)).replace(b"R(K\x01", b"Rq\x4d(K\x01")
    first, second = read(write_pickle(tmp_path / "memo.pkl", b"(" + body + b"h\x4dt"))
    assert type(first) is np.ndarray and first is second
    unbuilt = read(write_pickle(tmp_path / "memo.pkl", called(RECONSTRUCT)))
    assert not isinstance(unbuilt, np.ndarray | dict | list)


# Bombs.


HASHES = b"".join(
    b"\x8a\x0b" + ((2**61 - 1) * n).to_bytes(11, "little") + b"N" for n in range(1, 9)
)


@pytest.mark.parametrize(
    "body",
    [
        b")" + b"]" * 200_000,
        b")" + b"}q\x00" * 200_000,
        b")" + b"\x94" * 200_000,
        LOSS + b"q\x000" + b"h\x00)\x81" * 60_000,
        plain("x" * 10**6) + b"\x85q\x010" + (ENCODE + b"h\x01R") * 99,
        array(binbytes(bytes(10**6)) + b"q\x01", (10**6,), "i1")
        + array(b"h\x01", (10**6,), "i1") * 99,
    ],
    ids=["lists", "dicts", "memo", "instances", "copies of bytes", "views of bytes"],
)
def test_bombs_are_stopped(body, tmp_path):
    path = write_pickle(tmp_path / "bomb.pkl", body)
    told = []
    peak = peak_memory(lambda path: told.append(refused(path)), path)
    assert peak < 3 * path.stat().st_size + 2**24
    assert "too much memory" in told[0]


@pytest.mark.parametrize(
    "body",
    [
        b"\x8e" + struct.pack("<Q", 2**50),
        b"\x8e" + struct.pack("<Q", 2**64 - 1),
        b"\x8d" + struct.pack("<Q", 2**50),
        b"\x96" + struct.pack("<Q", 2**50),
        b"B\xff\xff\xff\xff",
        b"X\xff\xff\xff\xff",
        b"T\xff\xff\xff\x7f",
        b"T\xff\xff\xff\xff",
        b"\x8b\xff\xff\xff\x7f",
        b"\x95" + struct.pack("<Q", 2**50),
        b"I" + b"9" * 10**6 + b"\n",
    ],
)
def test_declared_sizes_take_no_memory(body, tmp_path):
    path = write_pickle(tmp_path / "bomb.pkl", body + bytes(10**6))
    assert "malformed pickle" in refused(path)
    assert peak_memory(refused, path) < 4 * 10**6


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"}(" + HASHES + b"u", "a key out of range"),  # all have one hash
        (b"}]Ns", "out of place"),
        (b"}}Ns", "out of place"),
        (b"}))\x86Ns", "out of place"),
        (b"}(NNNu", "malformed pickle"),
        (b"]NNs", "out of place"),
        (b"}Na", "out of place"),
        (b"N)R", "out of place"),
        (plain("os.mkdir") + b")R", "out of place"),
        (LOSS + b"NR", "out of place"),
        (b"h\x07", "malformed pickle"),
        (b"0", "malformed pickle"),
        (b"u", "malformed pickle"),
        (b"\x87", "malformed pickle"),
        (b"K\x01K\x02\x93", "out of place"),
        (b"\xff", "malformed pickle"),
        (b"c" + b"A" * 201 + b"\nB\n", "200 characters"),
        (storage("0", 1), "refused the opcode BINPERSID"),
        (b"P0\n", "refused the opcode PERSID"),
        (called(LOAD_FROM_BYTES, binbytes(program(b"N"))), "malformed pickle"),
        (called(LOAD_FROM_BYTES, plain("text")), "out of place"),
        (tensor(plain("text"), 0, (), ()), "out of place"),
    ],
)
def test_malformed_pickles_are_refused(body, reason, tmp_path):
    assert reason in refused(write_pickle(tmp_path / "malformed.pkl", body))


def test_a_storage_holds_no_other(tmp_path):
    inner = called(LOAD_FROM_BYTES, binbytes(legacy(b"N")))
    assert refused(write_storage(tmp_path / "nested.pkl", inner)) == "a storage within a storage"
    blob = MAGIC + program(inner)
    path = write_pickle(tmp_path / "nested.pkl", called(LOAD_FROM_BYTES, binbytes(blob)))
    assert refused(path) == "a storage within a storage"


def test_a_zip_file_of_many_members(tmp_path):
    path, members = tmp_path / "many.pt", 60_000
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"")
        archive.filelist *= members
    assert path.stat().st_size > 2**21  # more than is read
    assert peak_memory(refused, path) < 2**24


def test_members_of_a_zip_file_count_once(tmp_path):
    path, size = tmp_path / "overlapping.pt", 2 * 10**6
    body = b"(" + b"".join(storage(f"{n}", size, "ByteStorage") for n in range(50)) + b"t"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program(body))
        archive.writestr("a/data/0", bytes(size))
        for n in range(1, 50):  # all at one place in the file
            info = zipfile.ZipInfo(f"a/data/{n}")
            for slot in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(info, slot, getattr(archive.getinfo("a/data/0"), slot))
            archive.filelist.append(info)
    assert "too much memory" in refused(path)
    assert peak_memory(refused, path) < 3 * size + 2**24
