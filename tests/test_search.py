"""The search of one restart: best iterates, what the optimiser is passed, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import relative_error
from search_helpers import (
    AREA,
    GENERATOR,
    INF,
    MATRIX,
    NAN,
    TARGET,
    TARGETS,
    every_network,
    same_bytes,
    start,
    style_search,
    take,
)

from pulse_jax import SCHEMES, Generator, Loss, build, operators, run, status
from pulse_jax.generators.stylegan2 import StyleGAN2
from pulse_jax.search import STATUS


@every_network
def test_the_whole_flow(network):
    s = style_search(network)
    state, info = run(s.search, s.params, TARGET, s.state, steps=10)
    assert info.l2.shape == info.loss.shape == info.grad_norm.shape == (4, 10)
    assert (state.step == 10).all()

    result = state.best
    assert (result.l2 < info.l2[:, 0]).all()
    np.testing.assert_array_equal(result.l2, info.l2.min(1))  # none has met eps
    np.testing.assert_array_equal(result.step, info.l2.argmin(1))
    synthesize = jax.jit(jax.vmap(s.generator.synthesize, (None, 0, 0)))
    lrs = jax.vmap(operators.bicubic(2))(synthesize(s.params, result.latents, state.frozen))
    assert relative_error(jnp.mean((lrs - TARGET) ** 2, (1, 2, 3)), result.l2) <= 1e-5


def test_a_restart_that_is_not_finite_leaves_the_others_alone():
    s = style_search(StyleGAN2)
    broken = s.state.latents | {"style": s.state.latents["style"].at[2, 0, 0].set(NAN)}
    expected = run(s.search, s.params, TARGET, s.state, steps=10)
    actual = run(s.search, s.params, TARGET, s.state._replace(latents=broken), steps=10)
    assert same_bytes(take(actual, [0, 1, 3]), take(expected, [0, 1, 3]))
    assert np.isnan(actual[1].l2[2]).all()
    assert status(actual[0].best.l2, s.search.eps).tolist() == [1, 1, 2, 1]


# --- Which iterate is the best. ---

# (l2 at each step, loss at each step, best step, its status), with eps = 1.
SCRIPTS = {
    "lowest l2 as long as none meets eps": ([3, 2, 2.5], [1, 9, 0], 1, "missed eps"),
    "lowest loss among those that meet it": ([3, 0.9, 0.5, 0.8], [0, 5, 4, 3], 3, "converged"),
    "lower loss outside eps": ([0.9, 2, 0.8], [5, 0, 6], 0, "converged"),
    "higher loss once eps is met": ([1.5, 0.9], [1, 5], 1, "converged"),
    "eps itself meets it": ([0.5, 1, 2], [2, 1, 0], 1, "converged"),
    "the first of equals within eps": ([0.5, 0.4], [1, 1], 0, "converged"),
    "the first of equals outside eps": ([2, 2], [1, 0], 0, "missed eps"),
    "nan first": ([NAN, 2, NAN, 3], [NAN, 0, NAN, 0], 1, "missed eps"),
    "nan last": ([0.5, NAN], [1, NAN], 0, "converged"),
    "inf first": ([INF, 2], [INF, 0], 1, "missed eps"),
    "a loss of nan": ([2, 0.5, 3], [1, NAN, 0], 0, "missed eps"),
    "a loss of -inf": ([0.5, 0.4], [1, -INF], 0, "converged"),
    "nothing finite": ([NAN, INF], [NAN, INF], 0, "not finite"),
}


class ScriptedLoss:
    eps, needs_styles = 1.0, True

    def __call__(self, lr, target, styles):
        return styles


def test_the_best_iterate():
    """Each restart reads its l2 and loss from a script in its latents, next to the time.

    What isn't finite is there as a number, since latents that aren't would end the restart.
    """
    as_number = {"nan": 1e9, "posinf": 2e9, "neginf": -2e9}

    def now(latents):
        x = latents["script"][:, latents["time"][0, 0].astype(int)]
        return jnp.where(x == 1e9, NAN, jnp.where(jnp.abs(x) == 2e9, x * INF, x))

    def tick(updates, state, params=None):
        return jax.tree.map(jnp.zeros_like, updates) | {"time": jnp.ones((1, 1))}, state

    generator = Generator(
        1,
        sample=None,
        synthesize=lambda params, latents, frozen: jnp.sqrt(now(latents)[0]).reshape(1, 1, 1),
        styles=lambda params, latents, frozen: now(latents)[1],
    )
    clock = optax.GradientTransformation(lambda params: optax.EmptyState(), tick)
    search = build(generator, lambda image: image, ScriptedLoss(), clock)

    steps = max(len(l2s) for l2s, *_ in SCRIPTS.values())
    scripts = np.full((len(SCRIPTS), 2, steps), NAN)
    for row, (l2s, losses, *_) in zip(scripts, SCRIPTS.values(), strict=True):
        row[:, : len(l2s)] = l2s, losses
    latents = {
        "script": jnp.asarray(np.nan_to_num(scripts, **as_number), jnp.float32),
        "time": jnp.zeros((len(SCRIPTS), 1, 1)),
    }
    state, info = run(
        search, None, jnp.zeros((1, 1, 1)), jax.vmap(search.init)(latents, None), steps
    )
    np.testing.assert_array_equal(info.loss, scripts[:, 1])
    result = state.best
    for i, (name, (l2s, losses, step, outcome)) in enumerate(SCRIPTS.items()):
        assert (result.step[i], result.latents["time"][i, 0, 0]) == (step, step), name
        assert STATUS[status(result.l2[i], search.eps)] == outcome, name
        expected = (INF, INF) if outcome == "not finite" else (l2s[step], losses[step])
        np.testing.assert_allclose((result.l2[i], result.loss[i]), expected, 1e-6, err_msg=name)


# --- Optimisers and errors. ---


def test_the_optimizer_is_passed_the_objective():
    def update(updates, state, params, *, value, grad, value_fn):
        return updates, (value, grad, value_fn(params), value_fn({"style": params["style"] + 1}))

    recorder = optax.GradientTransformationExtraArgs(lambda params: None, update)
    search = build(GENERATOR, AREA, Loss(), recorder)
    step, initial = jax.jit(search.step), take(start(1, search), 0)
    state, info = step(MATRIX, TARGETS[0], initial)
    value, grad, again, elsewhere = state.optimizer
    assert value == info.loss
    assert relative_error(again, value) <= 1e-6
    assert relative_error(optax.tree.norm(grad), info.grad_norm) <= 1e-6

    moved = initial._replace(latents={"style": initial.latents["style"] + 1})
    assert relative_error(elsewhere, step(MATRIX, TARGETS[0], moved)[1].loss) <= 1e-6


def test_an_optimizer_with_a_line_search():
    search = build(GENERATOR, AREA, Loss(), SCHEMES["rescale"](optax.lbfgs()))
    initial = start(3, search)
    state, info = run(search, MATRIX, TARGETS[:3], initial, steps=10)
    assert (state.best.l2 < 0.05 * info.l2[:, 0]).all()
    radii = [np.linalg.norm(s.latents["style"], axis=-1) for s in (state, initial)]
    assert relative_error(*radii) <= 1e-5


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"generator": (GENERATOR, {})}, r"generator must be a Generator, got \(Generator"),
        ({"operator": "bicubic"}, "operator must be an Operator or a function .*, got 'bicubic'"),
        ({"operator": operators.bicubic}, r"got bicubic, which makes one: bicubic\(factor"),
        ({"operator": operators.grey}, r"an image, got grey, which makes one: grey\(\)"),
        ({"operator": operators.parse("area")}, r"for \(8, 8, 3\), make raised TypeError"),
        ({"operator": operators.area(3)}, "area: factor 3 does not divide the generator's side 8"),
        ({"operator": AREA._replace(factor=5)}, "factor 5 does not divide the generator's side 8"),
        ({"operator": AREA._replace(factor=0)}, "factor must be an integer of at least 1, got 0"),
        (
            {"operator": AREA._replace(apply=lambda image: image)},
            r"area has factor 4, but makes \(8, 8, 3\) of \(8, 8, 3\)",
        ),
        (
            {"operator": AREA._replace(apply=lambda image: (255 * AREA(image)).astype(int))},
            "area makes int32 of an image, not floats",
        ),
        ({"operator": lambda image: image > 0.5}, "<lambda> makes bool of an image, not floats"),
        ({"operator": operators.psf(np.ones((17, 1)))}, r"psf, for \(8, 8, 3\), raised ValueError"),
        (
            {"operator": AREA._replace(apply=lambda image: None)},
            "area must return an image, got None",
        ),
        ({"operator": lambda image: None}, "an image; <lambda> must return one, got None"),
        ({"loss": Loss}, "loss must be a Loss, .*, got <class"),
        ({"loss": "100*L2"}, r"loss must be a Loss, .*, got '100\*L2'"),
        ({"optimizer": optax.adam}, "optimizer must be one of optax, got <function"),
    ],
)
def test_parts_of_another_kind_are_refused_at_once(unchecked, part, told):
    parts = {"generator": GENERATOR, "operator": AREA, "loss": Loss(), "optimizer": optax.sgd(0.1)}
    with pytest.raises(ValueError, match=told):
        build(**parts | part)


def test_a_loss_of_styles_needs_a_generator_with_styles():
    generator = GENERATOR._replace(styles=None)
    with pytest.raises(ValueError, match="GEOCROSS alone compares style vectors"):
        build(generator, AREA, Loss(l2=0, geocross=0.05), optax.sgd(0.1))

    class Spread:
        eps, needs_styles = 1e-3, True

        def __call__(self, lr, target, styles):
            return jnp.var(styles)

    with pytest.raises(ValueError, match="compares style vectors"):
        build(generator, AREA, Spread(), optax.sgd(0.1))
    search = build(generator, AREA, Loss(geocross=0), optax.sgd(0.1))
    _, info = run(search, MATRIX, TARGETS[:2], start(2, search), steps=1)
    np.testing.assert_allclose(info.loss, 100 * info.l2, rtol=1e-6)
