"""The command on other systems: with other outputs, devices and settings of JAX, other Pythons."""

import errno
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import jax
import pytest
from command_helpers import fails, read_rows, write_picture

from pulse_jax import console, files, quotas

ROOT = Path(__file__).parents[1]
PYTHONPATH = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
UPSAMPLE = "from pulse_jax.console import upsample; upsample()"
CONVERT = "from pulse_jax.console import convert; convert()"


def python(code, *arguments, shell='"$@"', **variables):
    """Python in a process of its own, as `shell` runs it."""
    return subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": PYTHONPATH} | variables,
        capture_output=True,
        text=True,
        errors="replace",
    )


@pytest.fixture
def flags(compiled, tmp_path):
    """Of a small search, which compiles in no time."""
    write_picture(tmp_path / "in" / "a.png")
    folders = [f"--input_dir={tmp_path / 'in'}", f"--output_dir={tmp_path / 'out'}"]
    folders += [f"--cache_dir={compiled}", "--generator=experiment_helpers:linear"]
    return [*folders, "--recipe=original", "--restarts=1", "--steps=5", "--seed=0"]


# --- What it prints to. ---

TALK = """
import sys
from pulse_jax.console import make_output_safe
make_output_safe()
with open(sys.argv[1], "w") as file:
    for stream in (sys.stdout, sys.stderr):
        print(9 * "Köln × €\\n", file=stream, flush=True)
    file.write("all the work")
sys.exit(3)
"""


@pytest.mark.parametrize(
    "shell",
    [
        '"$@" >&-',
        '"$@" 2>&-',
        '"$@" <&- >&- 2>&-',
        '"$@" >/dev/full 2>/dev/full',
        '"$@" 2>&1 | head -1; exit ${PIPESTATUS[0]}',
        '"$@" | true; exit ${PIPESTATUS[0]}',
    ],
)
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_no_output_ends_the_work(tmp_path, shell, encoding):
    path = tmp_path / "work"
    result = python(TALK, path, shell=shell, PYTHONIOENCODING=encoding)
    assert result.returncode == 3
    assert path.read_text() == "all the work"
    assert "Error" not in result.stdout + result.stderr


def test_what_the_terminal_lacks_is_escaped(tmp_path):
    result = python(TALK, tmp_path / "work", PYTHONIOENCODING="ascii")
    assert result.stdout == result.stderr == 9 * "K\\xf6ln \\xd7 \\u20ac\n" + "\n"


def test_a_search_that_nobody_listens_to(flags, tmp_path):
    shell = '"$@" 2>&- | true; exit ${PIPESTATUS[0]}'
    result = python(UPSAMPLE, *flags, shell=shell, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len(read_rows(tmp_path / "out")) == 1
    assert (tmp_path / "out" / "index.html").is_file()


# --- What starts it. ---


@pytest.mark.parametrize("code", [UPSAMPLE, CONVERT])
def test_an_interrupt_during_the_imports_is_silent(tmp_path, code):
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT); raise ImportError"
    (tmp_path / "jax.py").write_text(interrupt)
    result = python(code, PYTHONPATH=os.pathsep.join((str(tmp_path), PYTHONPATH)))
    assert (result.stdout, result.stderr) == ("", "")
    assert result.returncode in (-signal.SIGINT, 128 + signal.SIGINT)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with console.noted_signals() as noted:
            os.kill(os.getpid(), signal.SIGINT)
        assert not noted
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


without_gpu = pytest.mark.skipif(jax.default_backend() == "gpu", reason="it works here")


@pytest.mark.parametrize(
    ("code", "variable"),
    [
        (UPSAMPLE, "JAX_PLATFORMS=cpuu"),
        pytest.param(UPSAMPLE, "JAX_PLATFORMS=cuda", marks=without_gpu),
        pytest.param(CONVERT, "JAX_PLATFORMS=cuda", marks=without_gpu),
        (CONVERT, "JAX_ENABLE_X64=yess"),
    ],
)
def test_variables_of_jax_are_told_as_such(code, variable):
    name, value = variable.split("=")
    result = python(code, "--output_dir=out" if code is UPSAMPLE else "none", **{name: value})
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("pulse_jax") and name in line and value in line


@pytest.mark.parametrize("module", ["pulse_jax", "pulse_jax.convert", "pulse_jax.align"])
@pytest.mark.parametrize("variable", ["JAX_NUM_CPU_DEVICES=two", "JAX_ENABLE_X64=yess"])
def test_modules_tell_variables_of_jax_in_one_line(module, variable):
    result = python("", shell=f'{variable} "$1" -m {module}')
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{module.replace('.', '_')}: {variable}: ")


# --- Where compiled programs are kept. ---


@pytest.mark.skipif(sys.platform != "linux", reason="a folder in which nobody can write")
def test_a_cache_that_cannot_be_written_costs_one_line(flags, tmp_path):
    result = python(UPSAMPLE, *flags, "--cache_dir=/proc")
    assert result.returncode == 0
    told = [line for line in result.stderr.splitlines() if "cache" in line or "Warning" in line]
    assert len(told) == 1 and told[0].startswith("pulse_jax: --cache_dir=/proc can't be used: "), (
        told
    )
    assert "No such file" in told[0]


def test_a_file_in_the_place_of_the_cache_costs_one_line(run, tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png")
    (tmp_path / "cache").write_text("")
    folders = f"--input_dir={tmp_path / 'in'}", f"--cache_dir={tmp_path / 'cache'}"
    run(*folders, generator="experiment_helpers:linear")
    told = capsys.readouterr().err
    assert told.count("cache_dir") == 1
    assert f"pulse_jax: --cache_dir={tmp_path / 'cache'} can't be used: File exists" in told


@pytest.mark.skipif(sys.platform == "win32", reason="homes are told by other variables")
def test_who_has_no_home_keeps_no_programs(monkeypatch, caplog):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 2)  # as in a container of a user's own
    with console.used_cache("~/.cache/pulse_jax"):
        assert jax.config.jax_compilation_cache_dir != "~/.cache/pulse_jax"
    line = "--cache_dir=~/.cache/pulse_jax can't be used: no home is known for ~"
    assert caplog.messages == [line]


def test_other_warnings_are_shown_as_ever():
    with console.used_cache(Path("/proc")), pytest.warns(UserWarning, match="of something else"):
        warnings.warn("of something else", stacklevel=1)


# --- What changes bytes. ---


@pytest.fixture
def done(run, tmp_path):
    """A run to be resumed, in a function of flags."""
    write_picture(tmp_path / "in" / "a.png")
    run = partial(run, f"--input_dir={tmp_path / 'in'}", generator="experiment_helpers:linear")
    run()
    return run


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
        ("jax_random_seed_offset", 1),
        ("jax_default_matmul_precision", "bfloat16"),
        ("jax_disable_most_optimizations", False),  # it is True in the tests
    ],
)
def test_a_resume_under_another_configuration_is_refused(done, capsys, name, value):
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        line = fails(done, capsys)
    finally:
        jax.config.update(name, before)
    assert f"{name.upper()} was {before}, not {value}" in line
    done()


@pytest.mark.parametrize("name", ["XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE"])
def test_a_resume_under_other_variables_is_refused(done, capsys, monkeypatch, name):
    before = os.environ.get(name)
    monkeypatch.setenv(name, "--some=1 --other=2")
    assert f"{name} was {before}, not --some=1 --other=2" in fails(done, capsys)


CORES = """
import os, sys
os.sched_getaffinity = lambda process: set(range(int(sys.argv[1])))
from pulse_jax import console, quotas
quotas.cores = lambda: float(sys.argv[2])
console.use_cores()
import jax
print(jax.device_count())
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system doesn't tell cores")
@pytest.mark.parametrize(
    ("cores", "quota", "variables", "devices"),
    [
        (1, "inf", {}, 1),
        (5, "inf", {}, 5),
        (5, "1.5", {}, 2),
        (5, "2", {"JAX_NUM_CPU_DEVICES": "3"}, 3),
        (5, "inf", {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, 1),
    ],
)
def test_each_core_is_a_device(cores, quota, variables, devices):
    variables = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | variables
    assert python(CORES, str(cores), quota, **variables).stdout == f"{devices}\n"


@pytest.mark.parametrize(
    ("groups", "limits", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "1000 100000"}, 0.01),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "100000 100000"}, 1),
        ("5:cpu,cpuacct:/host", {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"}, 2.5),
        ("5:cpu:/", {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, math.inf),
        ("5:cpuset:/\n0::/", {}, math.inf),
        (None, {}, math.inf),
        ("0::/a", {"a/memory.max": "4000000", "memory.max": "max"}, 4e6),
        ("5:memory:/host", {"memory.limit_in_bytes": "9000"}, 9000),
    ],
)
def test_the_quota_is_that_of_the_control_groups(tmp_path, groups, limits, quota):
    """Of version 2, and of 1, where a container sees its own group in place of the host's."""
    top = tmp_path / "sys/fs/cgroup"
    for name, content in limits.items():
        version_1 = "cfs" in name or "limit" in name
        path = top / (name.partition(".")[0] if version_1 else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(f"{groups}\n")
    kind = quotas.memory if "memory" in str(limits) else quotas.cores
    assert kind(tmp_path) == quota


@pytest.mark.parametrize("number", ["0", "-3"])
def test_no_device_is_refused(number):
    result = python(CORES, "5", "inf", JAX_NUM_CPU_DEVICES=number, JAX_PLATFORMS="cpu")
    assert f"ValueError: JAX_NUM_CPU_DEVICES={number} must be at least 1" in result.stderr


def test_the_cores_stay_as_they_are_where_jax_runs():
    devices = jax.devices()
    console.use_cores()
    assert jax.devices() == devices


def test_flags_of_xla_that_change_nothing_do_not_matter(done, monkeypatch):
    flags = "--xla_force_host_platform_device_count=2 --xla_dump_to=/tmp/a --xla_dump_hlo_as_text"
    monkeypatch.setenv("XLA_FLAGS", f"{flags} {os.environ['XLA_FLAGS']}")
    done()


def test_results_of_a_version_that_noted_less_are_left_alone(done, capsys):
    path = done() / "config.json"
    config = json.loads(path.read_text())
    del config["JAX_ENABLE_X64"]
    path.write_text(json.dumps(config))
    line = fails(done, capsys)
    assert "holds results of an older version, which didn't note JAX_ENABLE_X64" in line


def test_a_plug_in_that_has_changed_is_another(run, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write_picture(tmp_path / "in" / "a.png")
    path = tmp_path / "plug_in_that_changes.py"
    path.write_text("from experiment_helpers import linear as make\n")
    folder = f"--input_dir={tmp_path / 'in'}"
    run = partial(run, folder, generator="plug_in_that_changes:make")
    run()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert config["SHA-256 of plug_in_that_changes"] == sha256
    path.write_text("from experiment_helpers import linear as make  # changed\n")
    line = fails(run, capsys)
    assert f"SHA-256 of plug_in_that_changes was {sha256}, not " in line


# --- What Python lacks on Windows. ---

WINDOWS = f"""
import os, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
del os.sysconf
{UPSAMPLE}
"""


def test_a_search_without_what_windows_lacks(flags, tmp_path):
    """Nor does it read or write text in whatever encoding the system has."""
    result = python(WINDOWS, *flags, "--steps=30", PYTHONWARNDEFAULTENCODING="1")
    assert result.returncode == 0, result.stderr
    assert len(read_rows(tmp_path / "out")) == 1
    own = [line for line in result.stderr.splitlines() if f"{ROOT / 'pulse_jax'}" in line]
    assert not own


def test_files_are_synced_with_leave_to_write_them(tmp_path, monkeypatch):
    """Windows refuses it else."""
    fcntl = pytest.importorskip("fcntl")

    def fsync(number):
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(os, "fsync", fsync)
    files.write(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
