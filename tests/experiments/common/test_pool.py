"""The pool of drawn faces: kept, drawn on where a run was cut off, and drawn by one run alone.

No test runs in this process, since the module defines flags.
"""

import json

import pytest
from experiment_helpers import run_code


def test_a_pool_that_was_cut_off_is_drawn_on(tmp_path):
    code = """
import json, numpy as np
from common import faces, pool

pool.FLAGS(["", "--pool_images=160", "--pool=pool"])
drawn = []

def draw(key, side):
    if len(drawn) == 2:
        drawn.append("cut off")
        raise KeyboardInterrupt
    drawn.append(float(pool.jax.random.uniform(key)))
    shape = pool.CHUNK, side, side, 3
    return np.full((pool.CHUNK, faces.LATENTS), drawn[-1]), np.full(shape, 99 * drawn[-1])

pool.draw = draw
try:
    pool.stored(None)
except KeyboardInterrupt:
    latents, kept = pool.stored(None)
values = np.repeat(drawn[:2] + drawn[3:], pool.CHUNK)[:160]
np.testing.assert_array_equal(latents[:, -1], np.float32(values))
np.testing.assert_array_equal(kept[:, 0, 0, 0], np.uint8(99 * values))
files = sorted(path.name for path in pool.expanded("pool").iterdir())
print(json.dumps([drawn.index("cut off"), len(drawn), len({*drawn}), files]))
"""
    result = run_code(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    # One more would have been drawn twice.
    assert json.loads(result.stdout) == [2, 4, 4, ["faces.npy", "latents.npy"]]


@pytest.mark.parametrize("lost", ["other_side", "no_faces"])
def test_latents_go_on_only_with_their_faces(tmp_path, lost):
    """As of a pool of another side, or one cut off between the moves of its two files."""
    code = f"""
import numpy as np
from common import faces, pool

pool.FLAGS(["", "--pool_images=160", "--pool=pool"])
drawn = 0

def draw(key, side):
    global drawn
    drawn += 1
    if drawn == 2:
        raise KeyboardInterrupt
    return np.ones((pool.CHUNK, faces.LATENTS)), np.ones((pool.CHUNK, side, side, 3))

pool.draw = draw
try:
    pool.stored(None)
except KeyboardInterrupt:
    if "{lost}" == "no_faces":
        (pool.expanded("pool") / ".faces_0.npy").unlink()
    else:
        pool.FLAGS.resolution = 2 * pool.SIDE
    print(pool.stored(None)[1].min())
"""
    result = run_code(code, cwd=tmp_path)
    assert result.stdout == "1\n", result.stderr


def test_a_pool_without_room_is_not_begun(tmp_path):
    """A file that is mapped into memory ends the process with SIGBUS, where its disk is full."""
    code = """
import shutil
from unittest import mock
from common import pool

pool.FLAGS(["", "--pool_images=160", "--pool=pool"])
# Undone at the end, since other tests have this process.
with mock.patch.object(shutil, "disk_usage", return_value=mock.Mock(free=10**6)):
    try:
        pool.stored(None)
    except OSError as error:
        print(error.strerror, error.filename)
"""
    result = run_code(code, cwd=tmp_path)
    told = "No space left on device: up to 2.41 MB are needed, and 1 MB are free pool\n"
    assert result.stdout == told, result.stderr


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    code = """
from pathlib import Path
from common import pool, training
from pulse_jax.files import held

pool.FLAGS(["", "--pool_images=160", "--pool=pool"])
states = training.saved_states(Path("run"))
for folder, enter in ("pool", lambda: pool.stored(None)), ("run", states.__enter__):
    with held(Path(folder)):
        try:
            enter()
        except ValueError as error:
            print(error, sorted(Path(folder).iterdir()))
"""
    result = run_code(code, cwd=tmp_path)
    told = "--pool=pool: another run is writing there []\n"
    told += "--output_dir=run: another run is writing there []\n"
    assert result.stdout == told, result.stderr


def test_a_run_keeps_the_pool_in_its_own_output_folder(tmp_path):
    code = """
from pathlib import Path
from common import pool, training

pool.FLAGS(["", "--pool_images=64", "--resolution=8", "--pool=run"])
with training.saved_states(Path("run").absolute()):
    print(len(pool.stored(Path("run").absolute())[0]))
"""
    result = run_code(code, cwd=tmp_path)
    assert result.stdout == "64\n", result.stderr
