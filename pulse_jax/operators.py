"""Degradations D of one image: all that is known about it is y = D(x). Those here are linear.

An operator is a pair of pure functions, the map and its adjoint, which is JAX's transpose of the
map. Downscaling and Gaussian blur are separable: D(x) = A x Bᵀ per channel. They are computed so,
as two matrix products, which include the border rule. Where a kernel reaches over the border, the
image is reflected about its outermost pixels, which aren't repeated. `compose` applies one operator
after the other, and `parse` reads a composition from a line of text.
"""

import functools
import inspect
import math
import numbers
import reprlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Integer

from pulse_jax import plug_in
from pulse_jax.files import counted, expanded
from pulse_jax.images import LUMA, load_kernel, load_mask
from pulse_jax.plug_in import is_plug_in
from pulse_jax.products import product
from pulse_jax.static import Static, argument, compiled
from pulse_jax.types import AnyArray, Degraded, Image, check_kind

LARGEST = 100_000  # no image has so many pixels a side that a larger factor or blur could be meant


class Operator(NamedTuple):
    """A linear map D of one image, called like a function: `operator(image)`.

    `apply`: D. `adjoint`: Dᵀ, with ⟨D x, y⟩ = ⟨x, Dᵀ y⟩.

    Both raise ValueError for anything but one floating-point image. `apply` also does so if
    `factor` doesn't divide a side, or if a side isn't larger than what has to be reflected.
    """

    name: str
    factor: int
    apply: Callable[[Image], Degraded]
    adjoint: Callable[[Degraded], Image]

    def __call__(self, image: Image) -> Degraded:
        return self.apply(image)


def bicubic(factor: int) -> Operator:
    """Bicubic downscaling by a factor k ≥ 1, as PULSE's `BicubicDownSample` computes it.

    Separable, stride k, with 4k taps: the cubic convolution kernel of Keys (1981), a = −½,
        w(t) = 3/2|t|³ − 5/2|t|² + 1          for |t| ≤ 1
        w(t) = −1/2|t|³ + 5/2|t|² − 4|t| + 2  for 1 < |t| ≤ 2
    at t = (i + ½)/k − 2, i = 0 … 4k − 1, divided by their sum. Reflect padding of ⌊3k/2⌋ pixels
    before and ⌈3k/2⌉ after. The values keep their unit and may overshoot its range. Away from the
    border it is Pillow's BICUBIC for even k. For odd k, all lies half a pixel of the image farther
    up and left than there, so that k = 1 isn't the identity. Raises ValueError for a bad k.
    """
    _check_factor(factor)
    t = np.abs((np.arange(4 * factor) + 0.5) / factor - 2)
    inner, outer = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    taps = np.where(t <= 1, inner, outer)
    # The reference's taps are float32 whatever the image is; the rounding shows (4e-9) in float64.
    taps = (taps / taps.sum()).astype(np.float32)
    return _correlation("bicubic", factor, 3 * factor // 2, taps)


def lanczos(factor: int) -> Operator:
    """Lanczos downscaling by a factor k ≥ 1, antialiased, as Pillow's LANCZOS.

    Separable, stride k: the kernel w(t) = sinc(t) sinc(t/3), |t| < 3, at the distances between the
    centres of old and new pixels in units of the new ones, divided by its sum (Duchon, 1979). At
    the border the image is reflected, where Pillow leaves out what is missing. The values may
    overshoot their range; k = 1 is the identity. Raises ValueError for a bad k.
    """
    _check_factor(factor)
    before = 5 * factor // 2
    t = (np.arange(6 * factor) - before + 0.5) / factor - 0.5
    taps = np.sinc(t) * np.sinc(t / 3)
    return _correlation("lanczos", factor, before, taps / taps.sum())


def area(factor: int) -> Operator:
    """Area downscaling by a factor k ≥ 1: the mean of each k × k box.

    Raises ValueError for a bad k.
    """
    _check_factor(factor)
    return _correlation("area", factor, 0, np.full(factor, 1 / factor))


def blur(sigma: float) -> Operator:
    """Gaussian blur with a standard deviation of `sigma` > 0 pixels.

    Separable: exp(−i²/2σ²) at |i| ≤ 4σ, rounded, divided by its sum. Raises ValueError for a bad
    sigma.
    """
    if not (_is_number(sigma) and sigma > 0):
        raise ValueError(f"sigma must be a number above 0, got {sigma!r}")
    if sigma > LARGEST:
        raise ValueError(f"sigma must be at most {LARGEST}, got {sigma!r}")
    radius = int(4 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return _correlation("blur", 1, radius, taps / taps.sum())


def motion(length: float, angle: float) -> Operator:
    """Motion blur: the mean along a line of `length` ≥ 1 pixels through each pixel.

    `angle` is in degrees, anticlockwise from the right. The line is followed in steps of one pixel
    along the axis that it is closer to, and interpolated linearly across it. The last steps count
    in part. Raises ValueError for a bad length or angle.
    """
    if not (_is_number(length) and length >= 1):
        raise ValueError(f"length must be a number of at least 1, got {length!r}")
    if not _is_number(angle):
        raise ValueError(f"angle must be a number, got {angle!r}")
    across, down = math.cos(math.radians(angle)), -math.sin(math.radians(angle))
    flat = abs(across) >= abs(down)
    reach = length * max(abs(across), abs(down)) / 2
    radius = math.ceil(reach)

    def taps() -> Iterator[tuple[int, int, float]]:
        """(rows down, columns to the right, weight) of each."""
        steps = np.arange(-radius, radius + 1)
        weights = np.clip(reach + 0.5 - np.abs(steps), 0, 1)
        weights /= weights.sum()
        aside = np.round(steps * (down / across if flat else across / down), 9)  # of tan 45°: 1
        for step, weight, whole in zip(steps, weights, np.floor(aside), strict=True):
            part = aside[step + radius] - whole
            for offset, share in ((whole, 1 - part), (whole + 1, part)):
                if weight * share > 0:
                    place = (int(offset), int(step)) if flat else (int(step), int(offset))
                    yield *place, float(weight * share)

    def apply(image: Image) -> Image:
        height, width, _ = image.shape
        _check_side("motion", min(height, width), radius)
        border = (radius, radius)
        padded = jnp.pad(image, (border, border, (0, 0)), mode="reflect")
        shifted: Iterator[Any] = (
            weight * padded[radius + i : radius + i + height, radius + j : radius + j + width]
            for i, j, weight in taps()
        )
        return sum(shifted)

    return _operator("motion", 1, apply)


def psf(kernel: Float[AnyArray, "h w"]) -> Operator:
    """Convolution with a point-spread function: the image of a point, of any shape.

    It is divided by its sum, and kept in float32. Its centre is the pixel (h // 2, w // 2), which
    is the middle if sides are odd. It is computed by FFT. Raises ValueError for values that aren't
    finite and for a sum that isn't finite and above 0, or is so by rounding alone.
    """
    values = np.asarray(kernel, np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"a kernel has two axes, not the shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("the kernel has values that are not finite")
    with np.errstate(over="ignore"):
        total, rounding = values.sum(), 1e-7 * np.abs(values).sum()  # of float32
    if not rounding < total < np.inf:
        raise ValueError(f"the kernel's sum must be finite and above 0, got {total:g}")

    def apply(kernel: Float[AnyArray, "rows columns"], image: Image) -> Image:
        border, inside = [], []
        for size, taps in zip(image.shape[:2], kernel.shape, strict=True):
            after = taps // 2
            before = taps - 1 - after
            _check_side("psf", size, after)
            border.append((before, after))
            inside.append(slice(taps - 1, taps - 1 + size))
        padded = jnp.pad(image, (*border, (0, 0)), mode="reflect")
        sides = padded.shape[:2]
        kernel = jnp.asarray(kernel, image.dtype)
        spectrum = jnp.fft.rfft2(padded, axes=(0, 1)) * jnp.fft.rfft2(kernel, sides)[..., None]
        return jnp.fft.irfft2(spectrum, sides, axes=(0, 1))[tuple(inside)].astype(image.dtype)

    return _operator("psf", 1, apply, (values / total).astype(np.float32))


def mask(hole: float | Bool[AnyArray, "H W"]) -> Operator:
    """Inpainting: pixels in the hole become 0, and the others keep their values.

    `hole` is an array that is True in the hole. Or it is a number between 0 and 1, for a hole in
    the middle with this share of the image's sides. Pixels in the hole are 0 in y too, so they
    count as without error in a mean over all pixels, such as an l2. Raises ValueError for any other
    hole. The operator raises it for an image whose sides aren't the array's.
    """
    share = np.ndim(hole) == 0
    if share and not (_is_number(hole) and 0 < hole < 1):
        raise ValueError(f"a hole's share of the sides lies between 0 and 1, got {hole!r}")
    if not share and (np.ndim(hole) != 2 or np.asarray(hole).dtype != bool):
        shape, dtype = np.shape(hole), np.asarray(hole).dtype
        raise ValueError(f"a hole is a boolean array (H, W), got {shape} of {dtype}")

    def middle(size: int) -> Bool[np.ndarray, "size"]:
        return np.abs(np.arange(size) + 0.5 - size / 2) < hole * size / 2

    def apply_share(image: Image) -> Image:
        height, width, _ = image.shape
        inside = jnp.asarray(middle(height))[:, None] & middle(width)
        return jnp.where(inside[..., None], 0, image)

    def apply_array(inside: Bool[AnyArray, "H W"], image: Image) -> Image:
        height, width, _ = image.shape
        if inside.shape != (height, width):
            given = "×".join(map(str, inside.shape))
            raise ValueError(f"the mask has {given} pixels, and the image {height}×{width}")
        return jnp.where(inside[..., None], 0, image)

    if share:
        return _operator("mask", 1, apply_share)
    return _operator("mask", 1, apply_array, np.array(hole))


def grey() -> Operator:
    """The luma of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B, in all three channels.

    A fourth channel, alpha, stays as it is.
    """

    def apply(image: Image) -> Image:
        if image.shape[-1] not in (3, 4):
            told = "grey takes an image of three channels, or four with alpha"
            raise ValueError(f"{told}, got shape {image.shape}")
        colour, alpha = image[..., :3], image[..., 3:]
        luma = (jnp.asarray(LUMA, image.dtype) * colour).sum(-1, keepdims=True)
        return jnp.concatenate([luma, luma, luma, alpha], axis=-1)

    return _operator("grey", 1, apply)


def compose(*operators: Operator) -> Operator:
    """One operator after the other, the first first: D = Dₙ … D₂ D₁, Dᵀ = D₁ᵀ D₂ᵀ … Dₙᵀ.

    Raises ValueError for what is no `Operator`, such as `bicubic` without its factor.
    """
    for operator in operators:
        check_kind(operator, Operator, "compose takes Operators")

    def in_turn(*functions_and_image: Any) -> Any:
        *functions, image = functions_and_image
        return functools.reduce(lambda x, function: function(x), functions, image)

    return Operator(
        ",".join(operator.name for operator in operators),
        math.prod(operator.factor for operator in operators),
        argument(in_turn, *(argument(operator.apply) for operator in operators)),
        argument(in_turn, *(argument(operator.adjoint) for operator in operators[::-1])),
    )


DOWNSCALERS: dict[str, Callable[[int], Operator]] = {
    "bicubic": bicubic,
    "area": area,
    "lanczos": lanczos,
}
PROBE = 128  # side of an image that shows how much smaller a user's operator makes it
OPERATORS: dict[str, Callable[..., Operator]] = DOWNSCALERS | {
    "blur": blur,
    "motion": motion,
    "psf": psf,
    "mask": mask,
    "grey": grey,
}
# Operators whose parameter may be, or is, what a file holds.
FILES: dict[str, Callable[[str], Any]] = {"mask": load_mask, "psf": load_kernel}


def parse(text: str) -> Callable[[int], Operator]:
    """Operators from a line such as `blur:2,bicubic:4`, to be composed from left to right.

    Each is a name of `OPERATORS`, followed by its parameters after colons. These are numbers, or
    for `mask` also the path of a picture with as many pixels as the image, white in the hole, and
    for `psf` the path of a kernel: .npy, FITS, or a grey TIFF. One of your own, such as
    my_module:gamma:2.2, is called as gamma(2.2) (see `plug_in`). It returns a function of one image
    (H, W, 3), which may be nonlinear, or an `Operator`.

    Returns `make(factor) → Operator`. All factors multiply to `factor`, and a downscaler without
    one takes what is left. A factor's operator is made once, so that what is compiled for it can be
    used again. Raises ValueError for what can't be read, and `make` does if the factors don't fit.
    """
    links = [_parse_link(link) for link in text.split(",")]
    given = math.prod(link.factor for link in links if isinstance(link, Operator))
    open_links = sum(not isinstance(link, Operator) for link in links)
    if open_links > 1:
        raise ValueError("only one downscaler can be without its factor")

    @functools.cache
    def make(factor: int) -> Operator:
        left, rest = divmod(factor, given)
        if rest or (left > 1 and not open_links):
            raise ValueError(f"its factors multiply to {given}, and {factor} is needed")
        return compose(*(link if isinstance(link, Operator) else link(left) for link in links))

    return make


def plug_ins(text: str) -> list[str]:
    """The operators of a line that are a user's own."""
    return [link for link in text.split(",") if is_plug_in(link, OPERATORS)]


def check_operator(operator: object, shape: tuple[int, int, int]) -> None:
    """Raises ValueError for what is neither an `Operator` nor a function of an image of this shape.

    Such are `bicubic` without its factor, and an `Operator` whose factor doesn't divide a side, or
    whose image has another side. They can be called, and would fail where the search runs. What
    makes integers of an image has no gradient, and its search would go nowhere.
    """
    told = "operator must be an Operator or a function of an image"
    check_kind(operator, Callable, told)
    image = jax.ShapeDtypeStruct(shape, np.float32)
    if isinstance(operator, Operator):
        _check_factor(operator.factor)
        if shape[0] % operator.factor:
            told = f"factor {operator.factor} does not divide the generator's side {shape[0]}"
            raise ValueError(f"{operator.name}: {told}")
        made = plug_in.guarded(
            f"{operator.name}, for {shape},", jax.eval_shape, operator.apply, image
        )
        check_kind(made, jax.ShapeDtypeStruct, f"{operator.name} must return an image")
        side = shape[0] // operator.factor
        if made.shape[:2] != (side, side):
            told = f"{operator.name} has factor {operator.factor}, but makes {made.shape}"
            raise ValueError(f"{told} of {shape}")
        _check_floats(operator.name, made.dtype)
        return
    name = getattr(operator, "__name__", reprlib.repr(operator))
    if operator in OPERATORS.values():
        call = f"{name}({', '.join(inspect.signature(OPERATORS[name]).parameters)})"
        raise ValueError(f"{told}, got {name}, which makes one: {call}")
    found = plug_in.guarded(f"{told}; for {shape}, {name}", jax.eval_shape, operator, image)
    check_kind(found, jax.ShapeDtypeStruct, f"{told}; {name} must return one")
    _check_floats(name, found.dtype)


def is_flat(operator: Operator, shape: tuple[int, int, int]) -> bool:
    """Whether D has no gradient at an image of random pixels, as one that rounds hasn't.

    Raises ValueError for one that JAX can't differentiate.
    """

    def energy(image: Float[Array, "H W C"]) -> Float[Array, ""]:
        return jnp.sum(operator(image) ** 2)

    image = jax.random.uniform(jax.random.key(0), shape)
    named = f"the gradient of operator={operator.name}"
    traced = plug_in.guarded(named, jax.jit(jax.grad(energy)).lower, image)
    return not bool(traced.compile()(image).any())


def discard_unseen(
    operator: Operator, picture: Float[AnyArray, "h w c"]
) -> Float[np.ndarray, "h w c"]:
    """A picture without what no D(x) shows.

    Pixels that are 0 in every D(x), as in the hole of a mask, become 0. If every D(x) is grey,
    colour becomes grey. So any picture can be the y that is searched for.
    """
    height, width, channels = picture.shape
    seen, is_grey = _seen(operator, (height, width, channels))
    return np.where(seen, np.asarray(grey()(picture)) if is_grey else picture, 0)


def shown(operator: Operator, shape: tuple[int, int, int]) -> Bool[np.ndarray, "h w c"]:
    """Which values of a picture of this shape are data, each counted once.

    Those of pixels that are 0 in every D(x) are none. If every D(x) is grey, its three channels
    hold each value three times, and the first one counts.
    """
    seen, is_grey = _seen(operator, shape)
    return seen & np.array([True, not is_grey, not is_grey, True])[: shape[2]]


def _seen(
    operator: Operator, shape: tuple[int, int, int]
) -> tuple[Bool[np.ndarray, "h w 1"], bool]:
    """Which pixels aren't 0 in every D(x), and whether every D(x) is grey."""
    height, width, channels = shape
    image_shape = height * operator.factor, width * operator.factor, channels
    # Noise, since a high-pass hides an image of one colour. And its negative, for one that rounds.
    noise = np.asarray(np.random.default_rng(0).random(image_shape), np.float32)
    seen, other = np.asarray(operator(noise)), np.asarray(operator(1 - noise))
    is_grey = channels > 1 and np.allclose(seen[..., :3], seen[..., :1], atol=1e-6)
    return ((seen != 0) | (other != 0)).any(-1, keepdims=True), is_grey


def variance(operator: Operator, picture: Float[AnyArray, "h w c"]) -> float:
    """The variance of a picture y as D shows it: the l2 of the best image of one colour.

    It is the mean of (y − c s)² for the best colour c, where s = D(1) is of an image of ones. If
    s = 1, as for downscalers and blur, that is the variance of the pixels, each channel's about its
    own mean. The unit is that of an l2, squared values. If D isn't linear, the best of 256 greys is
    taken for each channel.
    """
    height, width, channels = picture.shape
    white = np.ones((height * operator.factor, width * operator.factor, channels), np.float32)
    apply = compiled(operator.apply)
    shown = np.asarray(apply(white), np.float64)
    if not np.allclose(apply(white / 2), shown / 2, atol=1e-4):
        greys = (np.asarray(apply(white * np.float32(level / 255))) for level in range(256))
        return float(np.min([((picture - y) ** 2).mean((0, 1)) for y in greys], axis=0).mean())
    energy = (shown**2).sum((0, 1))
    colour = (shown * picture).sum((0, 1)) / np.where(energy > 0, energy, 1)
    return float(np.mean((picture - colour * shown) ** 2))


def _parse_link(text: str) -> Operator | Callable[[int], Operator]:
    """An operator or, if a downscaler's factor is left out, its function."""
    if is_plug_in(text, OPERATORS):
        return _foreign(text)
    name, *values = text.split(":")
    if name not in OPERATORS:
        raise ValueError(f"{name!r} is none of {', '.join(OPERATORS)} and no module:callable")
    if name in DOWNSCALERS and not values:
        return DOWNSCALERS[name]
    wanted = inspect.signature(OPERATORS[name]).parameters
    if len(values) != len(wanted) or "" in values:
        takes = ":".join([name, *map(str.upper, wanted)])
        raise ValueError(f"{text!r} should be {takes}")
    parameters: list[Any] = [plug_in.number(value) for value in values]
    if name in FILES and isinstance(parameters[0], str):
        parameters = [FILES[name](str(expanded(parameters[0])))]
    return OPERATORS[name](*parameters)


def _foreign(text: str) -> Operator:
    """An operator that plugs in. How much smaller it makes an image is found from shapes."""
    made = plug_in.call(text)
    told = plug_in.called(text)
    if not callable(made):
        raise ValueError(f"{told} returned a {type(made).__name__}, not a function of an image")

    def apply(image: Image) -> Any:
        return plug_in.guarded(f"what {told} returned", made, image)

    if isinstance(made, Operator):
        _check_factor(made.factor)

        def checked_apply(image: Image) -> Degraded:
            small = apply(image)
            height, width, channels = image.shape
            if np.shape(small) != (height / made.factor, width / made.factor, channels):
                makes = f"makes {np.shape(small)} of an image {image.shape}"
                raise ValueError(f"{told} says that its factor is {made.factor}, but {makes}")
            _check_floats(f"what {told} returned", small.dtype)
            return small

        return made._replace(apply=checked_apply)

    image, found = _probed(apply)
    shape = getattr(found, "shape", None)
    if not (shape and len(shape) == 3 and shape[0] == shape[1] and shape[2] == image.shape[2]):
        raise ValueError(f"what {told} returned makes {shape} of an image {image.shape}")
    _check_floats(f"what {told} returned", found.dtype)
    factor, rest = divmod(PROBE, shape[0] or PROBE + 1)
    if rest:
        raise ValueError(
            f"what {told} returned turns {PROBE} pixels into {shape[0]}, by no whole factor"
        )
    return _operator(text, factor, apply)


def _probed(apply: Callable[[Any], Any]) -> tuple[jax.ShapeDtypeStruct, Any]:
    """The shapes of an image that a user's operator takes, and of what it makes of that.

    Most take colours. Some are of grey images only, or of four channels, as their generator is.
    Raises the first ValueError if it takes none of these.
    """
    errors = []
    for channels in (3, 1, 4):
        image = jax.ShapeDtypeStruct((PROBE, PROBE, channels), np.float32)
        try:
            return image, jax.eval_shape(apply, image)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _operator(
    name: str, factor: int, apply: Callable[..., Degraded], *arrays: AnyArray
) -> Operator:
    """An `Operator` of apply(*arrays, image), with the checks of the image that all share."""
    apply = argument(apply)

    def check(image: AnyArray) -> None:
        if image.ndim != 3:
            raise ValueError(f"{name} takes one image (H, W, C), got shape {image.shape}; vmap it")
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise ValueError(f"{name} takes a floating-point image, got {image.dtype}")

    def checked_apply(*arrays_and_image: AnyArray) -> Degraded:
        *_, image = arrays_and_image
        check(image)
        height, width, _ = image.shape
        if height % factor or width % factor:
            raise ValueError(
                f"{name}: factor {factor} does not divide the image's {height}×{width}"
            )
        return _compiled(apply, *arrays_and_image)

    def adjoint(*arrays_and_image: AnyArray) -> Image:
        *arrays, image = arrays_and_image
        check(image)
        height, width, channels = image.shape
        shape = (height * factor, width * factor, channels)
        return _transposed(apply, jax.ShapeDtypeStruct(shape, image.dtype), *arrays, image)

    return Operator(name, factor, argument(checked_apply, *arrays), argument(adjoint, *arrays))


# Compiled, since one call has dozens of operations.
@jax.jit
def _compiled(apply: Callable[..., Degraded], *arrays_and_image: AnyArray) -> Degraded:
    return apply(*arrays_and_image)


@functools.partial(jax.jit, static_argnums=1)
def _transposed(
    apply: Callable[..., Degraded], like: jax.ShapeDtypeStruct, *arrays_and_image: AnyArray
) -> Image:
    *arrays, image = arrays_and_image
    return jax.linear_transpose(functools.partial(apply, *arrays), like)(image)[0]


def _correlation(name: str, factor: int, before: int, taps: Float[np.ndarray, "taps"]) -> Operator:
    """The separable correlation with stride `factor`, where the border reflects.

    The first of the taps meets the pixel that lies `before` pixels before the first.
    """
    after = len(taps) - factor - before

    def matrix(size: int, dtype: DTypeLike) -> Float[Array, "rows {size}"]:
        """The matrix of one axis."""
        row, pixel = jnp.arange(size // factor)[:, None], jnp.arange(size)

        def weight(place: Integer[Array, "columns"]) -> Float[Array, "rows columns"]:
            """The weight of the tap that meets a place, which may be beyond the border."""
            tap = place - row * factor + before
            known = (tap >= 0) & (tap < len(taps))
            return jnp.where(known, jnp.asarray(taps, dtype)[jnp.where(known, tap, 0)], 0)

        mirrored = jnp.where(pixel > 0, weight(-pixel), 0)
        mirrored += jnp.where(pixel < size - 1, weight(2 * (size - 1) - pixel), 0)
        return weight(pixel) + mirrored

    along = functools.partial(product, Static(matrix))

    def apply(image: Float[Array, "H W C"]) -> Degraded:
        height, width, channels = image.shape
        for size in (height, width):
            _check_side(name, size, max(before, after))
        image = along(image.reshape(height, -1), height).reshape(-1, width, channels)
        image = along(image.swapaxes(0, 1).reshape(width, -1), width)
        return image.reshape(width // factor, -1, channels).swapaxes(0, 1)

    return _operator(name, factor, apply)


def _check_side(name: str, size: int, reflected: int) -> None:
    if size <= reflected:
        raise ValueError(
            f"{name} needs sides larger than {counted(reflected, 'pixel')}, got {size}"
        )


def _check_factor(factor: Any) -> None:
    if isinstance(factor, bool) or not isinstance(factor, int | np.integer) or factor < 1:
        raise ValueError(f"factor must be an integer of at least 1, got {factor!r}")
    if factor > LARGEST:
        raise ValueError(f"factor must be at most {LARGEST}, got {factor!r}")


def _check_floats(told: str, dtype: DTypeLike) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{told} makes {dtype} of an image, not floats")


def _is_number(x: Any) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool) and math.isfinite(x)
