"""Many devices and many processes: eight virtual ones on the CPU, two processes over loopback."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_chains import needs_blackjax

from pulse_jax.generators import checkpoint
from pulse_jax.generators.stylegan2 import StyleGAN2

pytestmark = pytest.mark.optimised

ROOT = Path(__file__).parents[1]
# For the weights, which are drawn once: XLA takes seconds to optimise the program that does it.
LIGHT = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}

# Prints the names of XLA's instructions between devices, in a search on eight of them.
COLLECTIVES = """
import re, sys
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import pulse_jax
from pulse_jax.driver import advance

generator, params = pulse_jax.load(sys.argv[1])
adam = pulse_jax.SCHEMES["rescale"](pulse_jax.OPTIMIZERS["adam"](0.1))
search = pulse_jax.build(generator, pulse_jax.operators.area(2), pulse_jax.Loss(), adam)
mesh = Mesh(jax.devices(), "slots")
keys = jax.random.split(jax.random.key(0), mesh.size)
state = jax.vmap(search.init)(*jax.vmap(generator.sample)(keys))
split = NamedSharding(mesh, P("slots"))
targets, state = jax.device_put((jnp.zeros((mesh.size, 4, 4, 3)), state), split)
program = advance.lower(search.step, params, targets, state, 9, 0.0, length=3, mesh=mesh)
text = program.compile().as_text()
names = "all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
print(mesh.size, sorted(set(re.findall(names, text))))
"""

# Prints how many programs searches on one and on two devices compile, when slots are filled again.
PROGRAMS = """
import jax
import pulse_jax
from search_helpers import LINEAR, MATRIX, TARGETS, start

targets, states = jax.device_put((TARGETS, start(5)))
fill = jax.jit(lambda numbers: jax.tree.map(lambda x: x[numbers], (targets, states)))
compiled = []

def note(event, *_, **__):
    compiled.extend([event] * event.endswith("backend_compile_duration"))

jax.monitoring.register_event_duration_secs_listener(note)
for devices in (1, 2):
    jax.clear_caches()
    compiled.clear()
    for _ in pulse_jax.stream(LINEAR, MATRIX, fill, 5, 5, slots=1, devices=jax.devices()[:devices]):
        pass
    print(len(compiled))
"""

# Searches on two devices that aren't taken for a CPU's, with states that another device holds.
ELSEWHERE = """
from types import SimpleNamespace

import jax
import pulse_jax
from pulse_jax import driver
from search_helpers import LINEAR, MATRIX, TARGETS, start

placements = driver.placements
*two, third = jax.devices()
mesh, *_ = placements(two)
accelerator = SimpleNamespace(size=2, devices=SimpleNamespace(flat=[SimpleNamespace(platform="")]))
driver.placements = lambda devices: (accelerator, *placements(devices)[1:])

def program(*arguments, length, mesh, real=mesh):
    return pulse_jax.driver.advance(*arguments, length=length, mesh=real)

given = jax.device_put((TARGETS, start(5)), third)
fill = lambda numbers: jax.tree.map(lambda x: x[numbers], given)
turns = pulse_jax.stream(LINEAR, MATRIX, fill, 5, 5, slots=1, devices=two, program=program)
print(sum(now.done.sum() for now in turns))
"""

# Searches on two devices from targets and states that each of three holds, and says for which of
# these the results are those of arrays on the host.
HELD = """
import jax
import pulse_jax
from search_helpers import LINEAR, MATRIX, TARGETS, same_bytes, start

def search(targets, states):
    two = jax.devices()[:2]
    return pulse_jax.run(LINEAR, MATRIX, targets, states, 5, slots=1, devices=two)

expected = search(TARGETS, start(5))
for device in jax.devices():
    print(same_bytes(search(TARGETS, jax.device_put(start(5), device)), expected))
    print(same_bytes(search(jax.device_put(TARGETS, device), start(5)), expected))
"""

# Prints how many programs the transitions of a warm-up on all devices take, and those of the draws.
WARM_UP = """
import jax
from pulse_jax import chains
from test_chains import MATRIX, TARGET, density, starts

made, (whole, split) = density(), chains.placements(4)
inputs = jax.device_put((MATRIX, TARGET), whole)
positions = jax.tree.map(lambda leaf: leaf.reshape(4, 1, *leaf.shape[1:]), starts(made, 4))
positions = jax.device_put(positions, split)
key = jax.random.key(2)
state, sampler = chains.warm_up(key, made, *inputs, positions, transitions=2)
for _ in range(2):
    state, _, _ = chains.draw(key, sampler, *inputs, state, 2)
print(chains._tune._cache_size(), chains.draw._cache_size())
"""

# Prints the scores of three images by one device, and by two, of which one then has none to score.
SCORES = """
import jax
import numpy as np
from pulse_jax.upsampling.familiarity import make_score

images = np.random.default_rng(0).random((3, 64, 64, 3), np.float32)
for devices in (1, 2):
    print(make_score("decoder64", devices=jax.devices()[:devices])(images))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a small random StyleGAN 2 and two pictures."""
    folder = tmp_path_factory.mktemp("devices")
    network = StyleGAN2(8, (8, 4), latent_size=5, mapping_layers=1)
    noise = [jnp.zeros((1, *shape)) for shape in network.noise_shapes]
    init = jax.jit(network.init, compiler_options=LIGHT)
    params = init(jax.random.key(0), jnp.zeros((1, 5)), noise)["params"]
    fit = {"mean": np.zeros(5, np.float32), "std": np.ones(5, np.float32)}
    checkpoint.save(folder / "generator", generator=(network, params | {"latent_fit": fit}))
    (folder / "in").mkdir()
    for seed in (0, 1):
        pixels = np.random.default_rng(seed).integers(60, 200, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "in" / f"{seed}.png")
    return folder


def start(folder, output, *flags, devices=1):
    """A process that searches five restarts of each picture, on so many virtual devices."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-m", "pulse_jax", "--generator=generator", "--input_dir=in"]
    command += [f"--output_dir={output}", "--cache_dir=cache", "--seed=3", "--batch_size=1"]
    command += ["--recipe=original", "--restarts=5", "--operator=area", *flags]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(*processes, code=0):
    for process in processes:
        _, errors = process.communicate(timeout=1800)  # it hangs
        assert process.returncode == code, errors


def files(folder):
    """Of a run: all but the times, and each one's bytes."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name != "timings.csv"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def alone(folder):
    """What one process gives on one device."""
    wait(start(folder, "alone"))
    return files(folder / "alone")


@pytest.mark.slow
def test_eight_devices_give_the_bytes_of_one(folder, alone):
    wait(start(folder, "eight", devices=8))
    assert files(folder / "eight") == alone
    assert len([name for name in alone if "/hr_" in name]) == 10


@pytest.mark.slow
def test_other_restarts_do_not_change_bytes_on_several_devices(tmp_path):
    """Of a trained generator, whose convolutions are large enough for several threads.

    With two restarts, the second device has nothing to do.
    """

    def search(restarts):
        command = [sys.executable, "-m", "pulse_jax", "--restarts", str(restarts), "--seed=3"]
        command += ["--generator=decoder64", "--steps=4", f"--output_dir={restarts}"]
        command += ["--cache_dir=cache"]
        cores = {"JAX_NUM_CPU_DEVICES": "2", "NPROC": "2", "JAX_PLATFORMS": "cpu"}
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | cores
        picture = checkpoint.find("decoder64") / "examples" / "face_01.png"
        subprocess.run([*command, picture], cwd=tmp_path, env=environment, check=True)
        images = sorted((tmp_path / str(restarts) / "face_01").glob("hr_*.png"))
        return [image.read_bytes() for image in images]

    four = search(4)
    assert len(four) == 4
    assert search(2) == four[:2]


@pytest.mark.slow
def test_chains_on_several_devices_are_taken_up_again(folder):
    """Also those of a warm-up. The process that is cut off is killed after its first state."""
    flags = ["--recipe=posterior", "--noise=0.1", "--chains=4", "--draws=200", "--steps=200"]
    flags += ["--batch_size=auto"]
    wait(start(folder, "whole", *flags, devices=2), code=1)  # so short chains don't meet
    process = start(folder, "cut", *flags, devices=2)
    while process.poll() is None and not any((folder / "cut").glob("*/parts/state.npz")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    wait(start(folder, "cut", *flags, devices=2), code=1)
    assert files(folder / "cut") == files(folder / "whole")


def printed(script, *arguments, devices):
    """What a Python process prints, on so many virtual devices."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
def test_devices_do_not_talk_during_a_search(folder):
    assert printed(COLLECTIVES, folder / "generator", devices=8) == "8 []\n"


@pytest.mark.slow
def test_slots_on_two_devices_take_no_more_programs_than_on_one():
    one, two = printed(PROGRAMS, devices=2).split()
    assert one == two


@pytest.mark.slow
def test_slots_are_filled_again_from_another_device():
    assert printed(ELSEWHERE, devices=3) == "5\n"


@pytest.mark.slow
def test_run_takes_what_any_device_holds():
    assert printed(HELD, devices=3) == 6 * "True\n"


@needs_blackjax
@pytest.mark.slow
def test_chains_on_several_devices_compile_once():
    assert printed(WARM_UP, devices=2) == "1 1\n"


@pytest.mark.slow
def test_scores_are_those_of_one_device():
    one, two = map(json.loads, printed(SCORES, devices=2).splitlines())
    assert one == two and len(set(one)) == 3


def two_processes(folder, output, *flags):
    """Four devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = ["--distributed", f"--coordinator_address={address}", "--num_processes=2"]
    return [
        start(folder, output, *shared, f"--process_id={number}", *flags, devices=4)
        for number in (0, 1)
    ]


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(folder, alone):
    wait(*two_processes(folder, "two"))
    assert files(folder / "two") == alone


@pytest.mark.slow
def test_a_second_run_completes_what_a_killed_process_left(folder):
    """The killed one is process 1, as soon as something of its share is there."""
    slow = "--steps=2000"
    wait(start(folder, "slow", slow))
    first, second = two_processes(folder, "killed", slow)
    output = folder / "killed"
    while not any(number_of(path) % 2 == 0 for path in output.rglob("parts/*.npz")):
        assert first.poll() is None and second.poll() is None
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    first.send_signal(signal.SIGKILL)
    for process in (first, second):
        process.communicate()
    before = files(output)
    assert not (output / "results.csv").exists()
    wait(*two_processes(folder, "killed", slow))
    after = files(output)
    assert after == files(folder / "slow")
    for name, content in before.items():
        assert "/parts/" in name or name.endswith(".tmp") or after[name] == content
    with (output / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 10


def number_of(part):
    """Whose share it is: the restarts of both pictures are dealt out in turn."""
    return (5 * int(part.parents[1].name) + int(part.stem)) % 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--num_processes=2"], "--num_processes=2 is for --distributed"),
        (["--num_processes=9999999999"], "flag --num_processes=9999999999: 9999999999 is not "),
        (["--distributed", "--num_processes=1"], "--distributed: "),
    ],
)
def test_bad_flags_end_in_one_line(folder, flags, told):
    process = start(folder, "bad", *flags)
    _, errors = process.communicate(timeout=1800)
    assert process.returncode == 1
    assert errors.startswith(f"pulse_jax: {told}") and errors.count("\n") == 1, errors
