"""Sphere schemes: how a search keeps latents where a high-dimensional Gaussian has its mass.

Style vectors (L, d) lie on L spheres and a noise map (1, H, W) on one, as `types.Latents` says.

A scheme turns a base optimiser from optax into one that knows the spheres: `scheme(base)`, or
`scheme(base, parameter)` where it has one. Below, z is one point, d the number of its coordinates,
R its norm at the start, g the gradient, u what the base makes of it, and P = I − zzᵀ/R² the
projection to the tangent plane. Norms don't drift, since every step ends with R as it was.

Any optimiser can be the base, with three exceptions. Schemes that take u for a tangent
(`TANGENT_STEPS`) don't go with one that returns to an earlier point (`lbfgs`). Samplers only go
with schemes that leave their distribution as it is (`SUITED`). Schemes that carry a momentum along
must know it by its name. A base is recognised by the state that it makes. If it doesn't fit,
ValueError is raised when the scheme is applied to it.

Adam can stop short of a minimum if its gradient isn't tangent, since its u may be radial where P g
isn't 0. With tangent gradients, or with `sphere_adam`, it doesn't.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path
from jaxtyping import Float, PyTree

from pulse_jax import plug_in, sphere
from pulse_jax.optimizers import LangevinState, LBFGSState, PCNState, Scalar, plugged_in
from pulse_jax.plug_in import is_plug_in
from pulse_jax.types import AnyArray, Latents, check_kind, misfit

Optimizer: TypeAlias = optax.GradientTransformation
State: TypeAlias = PyTree  # of a base
Point: TypeAlias = Float[AnyArray, "*point"]
Points: TypeAlias = Float[AnyArray, "n *point"]
Carry: TypeAlias = Callable[[Point, Point, Point], Point]  # (from a point, to another, a tangent)
Norms: TypeAlias = Float[AnyArray, "n *ones"]  # of points, each with as many axes as a point has

# First moments of a gradient, in the states of Adam's family and of SGD, and mean squares of it.
MOMENTA = "mu", "trace"
SQUARES = "nu", "nu_max", "sum_of_squares", "e_g", "e_x"


class SphereOptimizer(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # is untyped
    """A base optimiser with a scheme."""


def _scheme(function: Callable[..., Optimizer]) -> Callable[..., SphereOptimizer]:
    """A scheme, from a function of a base to an optimiser. It checks the base beforehand."""
    name = function.__name__

    @functools.wraps(function)
    def scheme(base: Optimizer, *parameters: float, **named: float) -> SphereOptimizer:
        for parameter in (*parameters, *named.values()):
            _check_parameter(name, parameter)
        check_kind(base, optax.GradientTransformation, f"{name} takes an optimiser of optax")
        base = optax.with_extra_args_support(base)
        some = jnp.zeros((2, 3))
        try:
            state = jax.eval_shape(base.init, some)
        except Exception:
            pass  # it only takes latents of certain names, which `init` checks
        else:
            _check_state(name, state, some)

        def init(params: PyTree) -> State:
            state = base.init(params)
            _check_state(name, state, params)
            return state

        looking = optax.GradientTransformationExtraArgs(init, base.update)
        return SphereOptimizer(*function(looking, *parameters, **named))

    return scheme


def _check_state(name: str, state: State, params: PyTree) -> None:
    """Whether a base that makes this state for these latents goes with a scheme."""
    kinds = tuple(kind for kind, _ in SUITED.values())
    for part in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kinds)):
        for sampler, (kind, schemes) in SUITED.items():
            if isinstance(part, kind) and name not in schemes:
                raise ValueError(
                    f"the scheme {name} doesn't go with {sampler}, take {' or '.join(schemes)}"
                )
    if name not in CARRY:
        return
    shapes = {path: leaf.shape for path, leaf in tree_leaves_with_path(params)}
    for path, leaf in tree_leaves_with_path(state):
        if {getattr(key, "name", None) for key in path} & {*MOMENTA, *SQUARES}:
            continue
        for i in range(len(path) + 1):
            shape = shapes.get(path[i:])
            if shape and leaf.shape[-len(shape) :] == shape:
                field = keystr(path[max(0, i - 1) : i], simple=True)
                raise ValueError(
                    f"{name} carries the momentum of {' and '.join(MOMENTA)} along; this optimiser "
                    f"also keeps {field!r} of the latents' shape, maybe a momentum: take geodesic"
                )


@_scheme
def none(base: Optimizer) -> Optimizer:
    """z + u. No sphere: the control of an ablation, which drifts to where images aren't real."""
    return base


# --- Penalties: z + u, with a term in the objective that draws z to where Gaussians are. ---


@_scheme
def gaussian_prior(base: Optimizer, weight: float = 1e-3) -> Optimizer:
    """A penalty weight · ‖z‖²/2, as in Bora, Jalal, Price and Dimakis (ICML 2017).

    With weight 1 it is minus the logarithm of the Gaussian's density. PULSE argues against it,
    since the density is highest at 0, far from the Gaussian's mass.
    """
    return _penalised(base, lambda z: weight * jnp.sum(z**2) / 2)


@_scheme
def radial_prior(base: Optimizer, weight: float = 1e-3) -> Optimizer:
    """A penalty weight · (r²/2 − (d − 1) ln r), r = ‖z‖: of a Gaussian's radius, which is χ_d.

    It is lowest at r = √(d − 1), where the mass is, while `gaussian_prior` is lowest at 0, where
    the density is. It suits latents that should be likely rather than bound.
    """

    def penalty(z: Point) -> Scalar:
        square = jnp.sum(z**2) + 1e-9
        return weight * (square - (z.size - 1) * jnp.log(square)) / 2

    return _penalised(base, penalty)


@_scheme
def soft_shell(base: Optimizer, weight: float = 1e-3) -> Optimizer:
    """A penalty weight · (‖z‖ − √d)². The smaller the weight, the thicker the shell it allows."""

    def penalty(z: Point) -> Scalar:
        return weight * (jnp.sqrt(jnp.sum(z**2) + 1e-9) - math.sqrt(z.size)) ** 2

    return _penalised(base, penalty)


def _penalised(base: Optimizer, penalty: Callable[[Point], Scalar]) -> Optimizer:
    def total(params: Latents) -> Scalar:
        return optax.tree.sum(jax.tree.map(jax.vmap(penalty), params))

    def update(
        updates: Latents,
        state: State,
        params: Latents | None = None,
        *,
        value: float | Scalar | None = None,
        value_fn: Callable[[Latents], Scalar] | None = None,
        **extra_args: Any,
    ) -> tuple[Latents, State]:
        _check_point(params)
        added, gradient = jax.value_and_grad(total)(params)
        updates = optax.tree.add(updates, gradient)
        extra_args["grad"] = updates
        if value is not None:
            extra_args["value"] = value + added
        if value_fn is not None:
            extra_args["value_fn"] = lambda z: value_fn(z) + total(z)
        return base.update(updates, state, params, **extra_args)

    def init(params: Latents) -> State:
        _check_spheres(params)
        return base.init(params)

    return optax.GradientTransformationExtraArgs(init, update)


# --- A step of the base in the ambient space, then back. ---


@_scheme
def ball(base: Optimizer) -> Optimizer:
    """z' = y min(1, R/‖y‖), y = z + u: as latents are kept in Bojanowski et al. (ICML 2018).

    The ball is convex. Inside it, images tend to the average one.
    """
    return optax.chain(base, _keep(lambda y, radius: y * jnp.minimum(1, radius / _norms(y))))


@_scheme
def rescale(base: Optimizer) -> Optimizer:
    """z' = R y/‖y‖, y = z + u: the scheme of PULSE (arXiv 2003.03808), and the default.

    Gradients aren't projected, and the moments of the base know nothing of the sphere. As in the
    reference ‖y‖ is √(Σy² + 1e-9), so that 0 is safe: a vector that starts at 0 stays within 4e-5.
    """
    return optax.chain(base, _onto_sphere())


@_scheme
def rescale_every(base: Optimizer, period: float = 10) -> Optimizer:
    """`rescale` after each `period`-th step, or only at the end, if that is the number of steps.

    In between, iterates are off the sphere, and a search's best may be one of them. The scheme
    shows what constraining each step is worth.
    """
    if period != int(period) or period < 1:
        raise ValueError(f"the period of rescale_every must be an integer ≥ 1, got {period}")
    last = _onto_sphere()
    return optax.chain(
        base, optax.conditionally_transform(last, lambda step: (step + 1) % int(period) == 0)
    )


@_scheme
def reparametrise(base: Optimizer) -> Optimizer:
    """z = R v/‖v‖ with v free: the base moves v by the gradient R/‖v‖ P g.

    Under optimisers other than gradient flow, v grows, and steps turn it by less and less. So the
    learning rate decays by itself (as in weight normalisation, Salimans and Kingma, NeurIPS 2016).
    """

    def init(params: Latents) -> tuple[Latents, Latents, State]:
        radii = _radii(params)
        return params, radii, base.init(params)

    def update(
        updates: Latents,
        state: tuple[Latents, Latents, State],
        params: Latents | None = None,
        *,
        value_fn: Callable[[Latents], Scalar] | None = None,
        **extra_args: Any,
    ) -> tuple[Latents, tuple[Latents, Latents, State]]:
        _check_point(params)
        free, radii, base_state = state

        def onto(free: Latents) -> Latents:
            return jax.tree.map(lambda v, radius: v * (radius / _norms(v)), free, radii)

        def pull(z: Points, g: Points, v: Points, radius: Norms) -> Points:
            return jax.vmap(sphere.tangent)(z, g) * (radius / _norms(v))

        gradient = jax.tree.map(pull, params, updates, free, radii)
        extra_args["grad"] = gradient
        if value_fn is not None:
            extra_args["value_fn"] = lambda v: value_fn(onto(v))
        step, base_state = base.update(gradient, base_state, free, **extra_args)
        free = optax.apply_updates(free, step)
        return optax.tree.sub(onto(free), params), (free, radii, base_state)

    return optax.GradientTransformationExtraArgs(init, update)


# --- Steps in the tangent plane (Absil, Mahony and Sepulchre, 2008). ---


@_scheme
def tangent_gradient(base: Optimizer) -> Optimizer:
    """The base is given P g; then as `rescale`. Its u isn't tangent if it scales coordinates."""
    return optax.chain(_link(sphere.tangent), base, _onto_sphere())


@_scheme
def tangent_update(base: Optimizer) -> Optimizer:
    """z' = R y/‖y‖, y = z + P u: Riemannian descent by retraction, on the base's own gradient."""
    return optax.chain(base, _link(sphere.tangent), _onto_sphere())


@_scheme
def geodesic(base: Optimizer) -> Optimizer:
    """z' = cos(‖t‖/R) z + R sin(‖t‖/R) t/‖t‖, t = P u, u from P g: the exponential map.

    A step turns z by ‖t‖/R, however large that is. Momentum isn't transported.
    """
    return _geodesic(base)


@_scheme
def geodesic_projected(base: Optimizer) -> Optimizer:
    """`geodesic`, with the base's momentum carried by projection: m' = P_z' m.

    With `sphere_adam` this is Riemannian Adam (Bécigneul and Ganea, "Riemannian adaptive
    optimization methods", ICLR 2019), as geoopt computes it.
    """
    return _geodesic(base, lambda _, point, m: sphere.tangent(point, m))


@_scheme
def geodesic_parallel(base: Optimizer) -> Optimizer:
    """`geodesic`, with the base's momentum carried in parallel, which keeps its length.

    m' = m − ⟨z', m⟩/(R² + ⟨z, z'⟩) (z + z').
    """
    return _geodesic(base, sphere.transport)


@_scheme
def fixed_angle(base: Optimizer) -> Optimizer:
    """`geodesic` with the base given R P g/‖P g‖, so that every gradient counts the same.

    With `sgd` each step turns z by the learning rate, in radians, whatever the loss's unit.
    """

    def unit(z: Point, g: Point) -> Point:
        t = sphere.tangent(z, g)
        largest = jnp.max(jnp.abs(t))
        t = t / jnp.where(largest > 0, largest, 1)  # a small gradient's square would be 0
        square = jnp.sum(t**2)
        return jnp.sqrt(jnp.sum(z**2) / jnp.where(square > 0, square, 1)) * t

    return optax.chain(_link(unit), _geodesic(base))


def _geodesic(base: Optimizer, carry: Carry | None = None) -> Optimizer:
    def init(params: Latents) -> tuple[Latents, State]:
        return _radii(params), base.init(params)

    def update(
        updates: Latents,
        state: tuple[Latents, State],
        params: Latents | None = None,
        **extra_args: Any,
    ) -> tuple[Latents, tuple[Latents, State]]:
        _check_point(params)
        radii, base_state = state
        tangent, move = jax.vmap(sphere.tangent), jax.vmap(sphere.exp)
        gradient = jax.tree.map(tangent, params, updates)
        step, base_state = base.update(gradient, base_state, params, **extra_args)

        def arrive(z: Points, u: Points, radius: Norms) -> Points:
            y = move(z, tangent(z, u))
            return y * (radius / _norms(y))

        points = jax.tree.map(arrive, params, step, radii)
        if carry is not None:
            base_state = _carry(carry, base_state, params, points)
        return optax.tree.sub(points, params), (radii, base_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _carry(carry: Carry, state: State, start: Latents, end: Latents) -> State:
    """A base's state with its first moments carried from start to end."""
    starts, ends = dict(tree_leaves_with_path(start)), dict(tree_leaves_with_path(end))

    def move(path: tuple[Any, ...], leaf: Any) -> Any:
        for i, key in enumerate(path, 1):
            if getattr(key, "name", None) in MOMENTA and path[i:] in starts:
                return jax.vmap(carry)(starts[path[i:]], ends[path[i:]], leaf)
        return leaf

    return tree_map_with_path(move, state)


SCHEMES: dict[str, Callable[..., SphereOptimizer]] = {
    function.__name__: function
    for function in (
        rescale,
        none,
        gaussian_prior,
        radial_prior,
        soft_shell,
        ball,
        rescale_every,
        reparametrise,
        tangent_gradient,
        tangent_update,
        geodesic,
        geodesic_projected,
        geodesic_parallel,
        fixed_angle,
    )
}
# They take the base's step for a tangent, or the start of a geodesic, at the present point.
TANGENT_STEPS = (
    "tangent_update",
    "geodesic",
    "geodesic_projected",
    "geodesic_parallel",
    "fixed_angle",
)
# They carry a momentum along.
CARRY = "geodesic_projected", "geodesic_parallel"
# For bases that don't go with all schemes: their states, and the schemes that they go with, of
# which the first is the command's default. The samplers' are those that a test proves to be
# unbiased.
SUITED = {
    "lbfgs": (LBFGSState, [name for name in SCHEMES if name not in TANGENT_STEPS]),
    "langevin": (LangevinState, ["geodesic", "tangent_update"]),
    "pcn": (PCNState, ["rescale", "none"]),
}
PARAMETERS = "gaussian_prior", "radial_prior", "soft_shell", "rescale_every"


def parse(text: str) -> Callable[[Optimizer], SphereOptimizer]:
    """The scheme of a command line: "rescale", or "rescale_every:20" with its parameter.

    A scheme of your own is written as my_module:my_scheme. It is called as my_scheme(base), with
    arguments as my_scheme(base, 0.5) (see `plug_in`), and returns an optax transformation.

    Raises ValueError for an unknown name, for a parameter that isn't a number above 0 or isn't
    asked for, and for a scheme of your own that isn't found. The scheme raises it if your own
    returns something else.
    """
    if is_plug_in(text, SCHEMES):
        plug_in.find(text)
        return functools.partial(_foreign, text)
    name, colon, parameter = text.partition(":")
    if name not in SCHEMES:
        raise ValueError(f"{name!r} is none of {', '.join(SCHEMES)} and no module:callable")
    if not colon:
        return SCHEMES[name]
    if name not in PARAMETERS:
        raise ValueError(f"{name} takes no parameter, got {parameter!r}")
    try:
        number = float(parameter)
    except ValueError:
        number = math.nan
    _check_parameter(name, number, parameter)
    return lambda base: SCHEMES[name](base, number)


def _foreign(text: str, base: Optimizer) -> SphereOptimizer:
    """A base with a scheme that plugs in."""
    made = plugged_in(text, optax.with_extra_args_support(base))
    return SphereOptimizer(*optax.with_extra_args_support(made))


def _check_parameter(name: str, number: float, given: float | str | None = None) -> None:
    if not 0 < number < math.inf:
        given = number if given is None else given
        raise ValueError(f"the parameter of {name} must be a number above 0, got {given!r}")
    if told := misfit(number):
        raise ValueError(f"the parameter {number} of {name} is {told}")


# --- Links of these chains. ---


def _keep(project: Callable[[Points, Norms], Points]) -> Optimizer:
    """The last link, which moves the point y to project(y, R), where R is its norm in `init`."""

    def update(
        updates: Latents, radii: Latents, params: Latents | None = None, **extra_args: Any
    ) -> tuple[Latents, Latents]:
        _check_point(params)
        return (
            jax.tree.map(lambda u, z, radius: project(z + u, radius) - z, updates, params, radii),
            radii,
        )

    return optax.GradientTransformationExtraArgs(_radii, update)


def _onto_sphere() -> Optimizer:
    return _keep(lambda y, radius: y * (radius / _norms(y)))


def _link(function: Callable[[Point, Point], Point]) -> Optimizer:
    """A link that rewrites updates by a `function(point, update)` of one sphere."""

    def update(updates: Latents, params: Latents | None = None) -> Latents:
        _check_point(params)
        return jax.tree.map(jax.vmap(function), params, updates)

    return optax.stateless(update)


def _radii(params: Latents) -> Latents:
    _check_spheres(params)
    return jax.tree.map(_norms, params)


def _norms(x: Points) -> Norms:
    """√(Σx² + 1e-9) over all axes but the first."""
    return jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim)), keepdims=True) + 1e-9)


def _check_spheres(params: Latents) -> None:
    for leaf in jax.tree.leaves(params):
        if leaf.ndim < 2:
            raise ValueError(f"latents must be (spheres, coordinates ...), got shape {leaf.shape}")


def _check_point(params: Latents | None) -> None:
    if params is None:
        raise ValueError("a scheme needs the point: call update(gradient, state, params)")
