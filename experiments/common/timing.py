"""What benchmarks share: functions timed in turns, ratios, and a program's memory."""

import time

import jax
import jax.numpy as jnp
import numpy as np


def on_cpu():
    """Whether JAX computes on a CPU."""
    return jax.default_backend() == "cpu"


def matrix_side():
    """Of the products that rates are compared with."""
    return 3072 if on_cpu() else 8192


def in_turns(repeats, *functions):
    """Seconds (functions, repeats) of functions that are called one after the other."""
    seconds = np.zeros((len(functions), repeats))
    for turn in range(repeats):
        for k, function in enumerate(functions):
            began = time.perf_counter()
            function()
            seconds[k, turn] = time.perf_counter() - began
    return seconds


def ratio(name, a, b):
    """Columns for the ratio of two rows of seconds: its median, and its range over the turns."""
    return {name: np.median(a / b), "range": extent(a / b)}


def extent(turns):
    """The least and the largest value of all turns, as text."""
    return f"{min(turns):.3f}–{max(turns):.3f}"


def matrix_product(dtype="float32"):
    """A function that does one product of square matrices: 2 · matrix_side()³ operations."""
    matrix = jax.random.normal(jax.random.key(0), 2 * (matrix_side(),), dtype)
    product = jax.jit(jnp.matmul)
    return lambda: product(matrix, matrix).block_until_ready()


def peak_memory(program):
    """Bytes that a compiled program takes: its arguments, results and temporaries."""
    memory = program.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return peak + memory.temp_size_in_bytes - memory.alias_size_in_bytes
