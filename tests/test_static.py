"""Functions that equal those made alike, and searches that therefore share what is compiled."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
from beartype import beartype
from experiment_helpers import run_code

from pulse_jax.static import Static

# Prints how often a search's program has been compiled, after builds of equal and of other parts.
# In another process, as users have it: without checks of signatures.
ALIKE = """
import jax, numpy as np, optax
import pulse_jax
from pulse_jax.operators import area, blur, compose, mask
from pulse_jax.driver import advance

holes = np.random.default_rng(0).uniform(size=(2, 8, 8)) < 0.3
sample = pulse_jax.load(folder)[0].sample
samples = jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0)))
before = advance._cache_size()

def langevin(rate):
    return pulse_jax.SAMPLERS["langevin"](rate, 0.1, jax.random.key(3))

def search(rate=0.1, base=optax.adam, share=0.5, hole=0):
    generator, params = pulse_jax.load(folder)
    operator = compose(mask(share), mask(holes[hole]), blur(0.5), area(4))
    optimizer = base(pulse_jax.SCHEDULES["linear1cycledrop"](rate, 20))
    optimizer = pulse_jax.SCHEMES["geodesic"](optimizer)
    search = pulse_jax.build(generator, operator, pulse_jax.Loss(), optimizer)
    state = jax.jit(jax.vmap(search.init))(*samples)
    _, info = pulse_jax.run(search, params, np.ones((2, 2, 3), np.float32), state, 5)
    print(advance._cache_size() - before, f"{info.loss[0, 0]:.3f}", end=" ")

for change in {}, {}, {"hole": 1}, {"rate": 0.2}, {"share": 0.25}, {"base": langevin}:
    search(**change)
    search(**change)
"""


def test_searches_built_alike_share_what_is_compiled(generator, tmp_path):
    """Also with other masks, and samplers with equal keys; not with another learning rate."""
    result = run_code(f"folder = {str(generator)!r}" + ALIKE, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = result.stdout.split()
    assert found[::2] == [*"111111223344"]
    losses = found[1::2]
    assert losses[::2] == losses[1::2]
    assert losses[0] == losses[2] != losses[4]  # of the other mask


def test_a_weakly_typed_array_is_another():
    """It leaves bfloat16 as it is, where a float32 doesn't."""

    def times(a):
        return Static(lambda x: x * a)

    strong, weak = jnp.float32(2), jnp.asarray(2.0)
    assert times(strong) == times(jnp.float32(2)) and times(strong) != times(weak)


def test_a_function_equals_those_made_alike():
    def make(value, other=None):
        def function(x):
            return helper(x) + len(other or ())

        def helper(x):
            return x * value

        return Static(function)

    alike = [(2.0,), (np.arange(3),), (jax.random.key(0),), ((1, make(1)),), (2.0, (1, "a"))]
    alike += [(jnp.ones(2, jnp.bfloat16),)]
    for arguments in alike:
        assert make(*arguments) == make(*arguments)
        assert hash(make(*arguments)) == hash(make(*arguments))
    made = [make(*x) for x in (*alike, (2,), (True,), (np.arange(3.0),), (jax.random.key(1),))]
    assert all((a == b) == (a is b) for a in made for b in made)
    # What may change in between equals itself alone, and so do functions that can be redefined.
    changing = [1]
    assert make(1, changing) == make(1, changing) != make(1, [1])
    namespace = {"__name__": "__main__"}
    exec("def make(x):\n    return lambda: x", namespace)
    assert Static(namespace["make"](1)) != Static(namespace["make"](1))


def test_a_check_of_its_signature_makes_no_other_function():
    def make(value):
        @jaxtyping.jaxtyped(typechecker=beartype)
        def function(x: int) -> int:
            return x + value

        return function

    assert Static(make(1)) == Static(make(1)) != Static(make(2))
