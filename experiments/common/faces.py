"""Drawn faces: a procedural data set of portraits, in pure JAX.

![64 examples](../../checkpoints/faces.png), made by

    python experiments/draw_faces.py --count=64 --size=128

What is in it. Square portraits, framed like an aligned photograph: the eyes are always at nearly
the same place and the head takes about 70% of the height. The head is a surface in depth, which
turns and nods: it is found by marching along the lines of sight, and lit by a lamp and a sky, with
cast shadows, dimmed hollows, light scattered under the skin and a film of gloss. On it are pores,
freckles and lines; eyes between lids, with catch-lights; lips; hair, brows and beards of strands;
glasses. Behind it, out of focus: a wall, lights, a window or leaves.

A face is a function of its attributes alone (`Attributes`), and a resolution-free one. Shapes are
signed distances, antialiased over a pixel; textures are hashed noise on the face's own coordinates,
of which what a pixel can't hold fades out. So a face drawn small is nearly the average of the same
face drawn large.

How it is sampled. Every attribute is drawn independently of all the others. Numbers are uniform
over their range (`RANGES`): skin tone, for one, runs evenly from very light to very dark. Hair
style, clothing and background are uniform over their kinds; half the faces wear glasses and half
have facial hair, in kinds that are equally likely (`KINDS`). No attribute stands for sex, age or
origin.

What it isn't good for. The faces are drawings: they identify nobody, and no count, correlation or
error rate found with them says anything about real faces or about models of real faces.

    images, attributes = jax.jit(jax.vmap(face, (0, None)), static_argnums=1)(keys, 128)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Attributes(NamedTuple):
    """What a face is drawn from: scalars in `RANGES`, or the number of a kind in `KINDS`."""

    skin: jax.Array  # 0 very light .. 1 very dark
    undertone: jax.Array  # -1 rosy .. 1 golden
    freckles: jax.Array
    blush: jax.Array
    lines: jax.Array  # of the forehead, of laughter, under the eyes
    texture: jax.Array  # seeds pores, hairs, folds and blurred lights
    head_width: jax.Array
    jaw: jax.Array  # -1 narrow .. 1 square
    cheeks: jax.Array  # -1 hollow .. 1 full
    nose_width: jax.Array
    nose_length: jax.Array
    yaw: jax.Array  # turn of the head, radians
    pitch: jax.Array  # nod of the head, radians
    tilt: jax.Array  # roll of the head, radians
    light_x: jax.Array  # where the light is: left .. right
    light_y: jax.Array  # above .. level
    light_warmth: jax.Array  # -1 bluish .. 1 golden
    light_hardness: jax.Array  # -1 an overcast sky .. 1 a lamp
    eye_colour: jax.Array  # brown, hazel, green, blue, grey
    eye_open: jax.Array
    eye_slant: jax.Array
    gaze: jax.Array
    brow_height: jax.Array
    brow_angle: jax.Array  # -1 worried .. 1 stern
    brow_weight: jax.Array
    smile: jax.Array  # -1 frown .. 1 smile
    mouth_open: jax.Array  # closed below 0
    lip_fullness: jax.Array
    lip_colour: jax.Array  # bare .. painted
    hair_style: jax.Array
    hair_colour: jax.Array  # black, brown, auburn, ginger, blond, grey, white
    hair_part: jax.Array  # side and place of the parting
    hair_length: jax.Array
    facial_hair: jax.Array
    glasses: jax.Array
    frame_colour: jax.Array
    clothing: jax.Array
    clothing_hue: jax.Array
    clothing_value: jax.Array
    background: jax.Array
    background_hue: jax.Array
    background_turn: jax.Array  # second hue relative to the first
    background_value: jax.Array
    background_angle: jax.Array


UNIT = ("skin", "freckles", "blush", "lines", "texture", "eye_colour", "lip_colour")
UNIT += ("hair_colour", "frame_colour", "clothing_hue", "background_hue")
RANGES = dict.fromkeys(Attributes._fields, (-1.0, 1.0)) | dict.fromkeys(UNIT, (0.0, 1.0))
RANGES |= {"yaw": (-0.5, 0.5), "pitch": (-0.12, 0.12), "tilt": (-0.08, 0.08)}
RANGES |= {"smile": (-0.5, 1.0)}
RANGES |= {"background_angle": (-np.pi, np.pi)}


class Style(NamedTuple):
    """Style of hair."""

    width: float  # half of the silhouette's
    top: float
    bottom: float
    soft: float  # roundness of the ends
    flare: float
    hairline: float  # at the parting
    fall: float  # of the hairline to the sides
    opening: float  # half width, for the face
    wavy: float
    curl: float
    blur: float  # of the silhouette
    parted: float  # 1: strands run from a parting, 0: back from the brow


HAIR = {
    "bald": Style(0.50, -0.74, -0.10, 0.05, 0.0, -0.50, 0.2, 0.40, 0.0, 0.0, 0.00, 0.0),
    "cropped": Style(0.487, -0.745, 0.04, 0.02, 0.0, -0.46, 0.3, 0.43, 0.0, 0.0, 0.025, 0.0),
    "side parted": Style(0.52, -0.82, 0.06, 0.02, 0.0, -0.48, 0.5, 0.42, 0.1, 0.0, 0.01, 1.0),
    "swept up": Style(0.51, -0.90, 0.02, 0.02, -0.1, -0.42, 0.05, 0.41, 0.2, 0.0, 0.02, 0.0),
    "bob": Style(0.60, -0.84, 0.50, 0.14, 0.10, -0.25, 0.06, 0.37, 0.05, 0.0, 0.0, 0.6),
    "long": Style(0.58, -0.83, 1.30, 0.10, 0.12, -0.52, 0.75, 0.38, 0.15, 0.0, 0.0, 1.0),
    "wavy": Style(0.63, -0.86, 0.86, 0.20, 0.15, -0.50, 0.6, 0.38, 1.0, 0.0, 0.01, 1.0),
    "curly": Style(0.66, -0.90, 0.42, 0.30, 0.05, -0.40, 0.3, 0.40, 0.5, 1.0, 0.03, 0.5),
    "afro": Style(0.76, -0.96, 0.26, 0.45, 0.0, -0.42, 0.15, 0.42, 0.0, 1.0, 0.05, 0.0),
    "bun": Style(0.49, -0.755, 0.10, 0.02, 0.0, -0.47, 0.22, 0.42, 0.0, 0.0, 0.01, 0.0),
}
KINDS = {  # equally likely, but half the faces have no facial hair and half no glasses
    "hair_style": tuple(HAIR),
    "facial_hair": ("none",) * 4 + ("stubble", "moustache", "goatee", "beard"),
    "glasses": ("none",) * 2 + ("round", "square"),
    "clothing": ("crew neck", "v-neck", "collar", "stripes"),
    "background": ("plain", "bokeh", "window", "outdoors"),
}
RANGES = {name: span for name, span in RANGES.items() if name not in KINDS}


def palette(colours):
    """RGB in [0, 1] from hexadecimal colours."""
    return np.array([list(bytes.fromhex(c)) for c in colours.split()], np.float32) / 255


SKIN = palette("f6d9c8 e8bd9f cf9b74 a87050 7a4c36 50342a")
HAIR_COLOUR = palette("1a1617 322219 573a28 6e3a24 a2582e b98d58 d9c094 8d8b8b d8d4cf")
EYE_COLOUR = palette("3a2216 6a4426 78683a 567a50 4a769c 8494a0")
FRAME_COLOUR = palette("1e1c20 5a3020 a8844c 842a32 283e70")
LIP_PAINT = np.array([0.60, 0.13, 0.17], np.float32)
EYE = 0.205  # distance of the eyes from the middle


# --- Primitives: images are (3, size, size), so that the pixels are the fast axis ---------------


def ellipse(x, y, rx, ry):
    """Signed distance to an ellipse at the origin, to first order: f / |∇f|."""
    k0 = jnp.sqrt((x / rx) ** 2 + (y / ry) ** 2 + 1e-8)
    k1 = jnp.sqrt((x / rx**2) ** 2 + (y / ry**2) ** 2 + 1e-8)
    return k0 * (k0 - 1) / k1


def box(x, y, rx, ry, r):
    """Signed distance to a box of half sides rx, ry with corners rounded at radius r."""
    qx, qy = jnp.abs(x) - rx + r, jnp.abs(y) - ry + r
    outside = jnp.sqrt(jnp.maximum(qx, 0) ** 2 + jnp.maximum(qy, 0) ** 2 + 1e-8)
    return outside + jnp.minimum(jnp.maximum(qx, qy), 0) - r


def segment(x, y, ax, ay, bx, by):
    """Distance to the line from a to b."""
    dx, dy = bx - ax, by - ay
    t = jnp.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy + 1e-8), 0, 1)
    return jnp.sqrt((x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2 + 1e-8)


def both(a, b, r):
    """Intersection of two distances, rounded over r (a smooth maximum)."""
    h = jnp.maximum(r - jnp.abs(a - b), 0)
    return jnp.maximum(a, b) + h * h / (4 * r)


def root(x):
    """√x, and 0 below 0 with a derivative of 0, where that of √0 would make others NaN."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def smooth(t, lo=0.0, hi=1.0):
    """0 below lo, 1 above hi, a cubic between."""
    t = jnp.clip((t - lo) / (hi - lo), 0, 1)
    return t * t * (3 - 2 * t)


def fill(distance, pixel, blur=0.0):
    """Coverage of a pixel by the shape where distance < 0."""
    width = 1.5 * pixel + blur
    return smooth(0.5 - distance / width)


def blob(x, y, rx, ry):
    """A bump of height one: nearly exp(-r²/2), at the cost of a product."""
    t = jnp.maximum(1 - ((x / rx) ** 2 + (y / ry) ** 2) / 8, 0) ** 2
    return t * t


def wave(t):
    """Nearly sin(t), from two parabolas a period."""
    t = t / (2 * np.pi)
    t = 2 * (t - jnp.round(t))
    return 4 * t * (1 - jnp.abs(t))


def noise(x, y, seed, period=None):
    """Value noise, -1..1: random at integer points, smooth between.

    `period` is what a unit spans in pixels. What a pixel can't hold fades out.
    """
    ix, iy = jnp.floor(x), jnp.floor(y)
    fx, fy = x - ix, y - iy
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    hx = ix.astype(jnp.int32).astype(jnp.uint32) * np.uint32(0x8DA6B343)
    hy = iy.astype(jnp.int32).astype(jnp.uint32) * np.uint32(0xD8163841) + seed

    def at(i, j):
        h = (hx + np.uint32(i * 0x8DA6B343)) ^ (hy + np.uint32(j * 0xD8163841 % 2**32))
        h = (h ^ (h >> 15)) * np.uint32(0x2C1B3C6D)
        h = (h ^ (h >> 13)) * np.uint32(0x297A2D39)
        return (h >> 8).astype(jnp.int32).astype(jnp.float32)

    top, bottom = at(0, 0), at(0, 1)
    top, bottom = top + (at(1, 0) - top) * fx, bottom + (at(1, 1) - bottom) * fx
    value = (top + (bottom - top) * fy) * 2.0**-23 - 1
    return value if period is None else value * smooth(period, 0.8, 2.4)


def over(canvas, colour, alpha):
    """Lays a colour ((3,) or an image) over the canvas with opacity alpha."""
    colour = colour[:, None, None] if colour.ndim == 1 else colour
    return canvas + (colour - canvas) * alpha


def ramp(stops, t):
    """Colour at t in [0, 1] on a polyline through evenly spaced colours."""
    at = np.linspace(0, 1, len(stops))
    return jnp.stack([jnp.interp(t, at, channel) for channel in stops.T])


def hsv(h, s, v):
    """Colour of a hue (in turns), saturation and value."""
    k = (jnp.array([5.0, 3.0, 1.0]) + 6 * h) % 6
    return v - v * s * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def rgb(*channels):
    """A colour that multiplies an image."""
    return jnp.array(channels)[:, None, None]


# --- Light ---------------------------------------------------------------------------------------


class Light(NamedTuple):
    way: tuple  # unit vector to the lamp
    half: tuple  # between the lamp and the viewer
    key: jax.Array  # colours (3, 1, 1), linear
    fill: jax.Array
    hard: jax.Array  # 0..1


def make_light(a):
    """A lamp above and in front, to the left or right; the harder it is, the darker the sky."""
    d = jnp.array([0.85 * a.light_x, -0.50 + 0.35 * a.light_y, 0.80])
    d = d / jnp.linalg.norm(d)
    h = d + jnp.array([0.0, 0.0, 1.0])
    h = h / jnp.linalg.norm(h)
    hard = 0.5 + 0.5 * a.light_hardness
    warm = a.light_warmth * jnp.array([0.10, 0.0, -0.16])
    key = (0.66 + 0.26 * hard) * (1 + warm)
    ambient = (0.36 - 0.20 * hard) * (1 - 0.7 * warm)
    return Light(tuple(d), tuple(h), key[:, None, None], ambient[:, None, None], hard)


def dot(a, b):
    """Dot product of vectors, each a tuple of three images."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def mirror(light, normal, sharp):
    """How much of the lamp a surface reflects to the viewer (Blinn and Phong)."""
    return jnp.maximum(dot(normal, light.half), 0) ** sharp


def unit(x, y, z):
    r = jax.lax.rsqrt(x * x + y * y + z * z + 1e-8)
    return x * r, y * r, z * r


def shade(light, colour, normal, shadow=1.0, occlusion=1.0, wrap=0.2, gloss=0.0):
    """A surface's picture in lamp and sky, from its colour as displayed in full light.

    Light is added up linearly. The lamp reaches round by `wrap` (per channel, for skin), and
    `gloss` is a reflection to add.
    """
    colour = colour[:, None, None] if colour.ndim == 1 else colour
    lambert = jnp.maximum((dot(normal, light.way) + wrap) / (1 + wrap), 0)
    sky = (0.75 - 0.35 * normal[1]) * occlusion
    linear = colour * colour * (light.key * lambert * shadow + light.fill * sky)
    linear = linear + light.key * gloss * (0.2 + 0.8 * shadow)
    return jnp.sqrt(1.2 * linear / (1 + 0.2 * linear) + 1e-6)


# --- The head, a surface in depth ----------------------------------------------------------------


class Grid(NamedTuple):
    """Pixel centres. The frame is [-1, 1]², x to the right, y down, z to the viewer."""

    page: tuple  # x, y
    x: jax.Array  # upright with the head; 0 is its axis
    y: jax.Array
    u: jax.Array  # on the face: turned with the head, 0 on the nose ridge
    v: jax.Array
    inside: jax.Array  # signed distance to the head
    normal: tuple  # of the head
    shadow: jax.Array  # the lamp's light that comes past nose and brow
    open: jax.Array  # the sky's light that comes into hollows
    light: Light
    seed: jax.Array
    pixel: float  # width


def turned(a, x, y, z):
    """Coordinates of the head from those of the page."""
    cos, sin = jnp.cos(a.yaw), jnp.sin(a.yaw)
    x, z = x * cos - z * sin, x * sin + z * cos
    cos, sin = jnp.cos(a.pitch), jnp.sin(a.pitch)
    return x, y * cos - z * sin, z * cos + y * sin


def relief(a, x, y):
    """Height of the features over the smooth head."""
    w = jnp.sqrt(x * x + 1e-5)
    wide = 1 + 0.25 * a.nose_width
    tip = 0.235 + 0.025 * a.nose_length
    lift = 0.02 * a.smile

    def bump(cx, cy, rx, ry, height):
        return height * blob(w - cx, y - cy, rx, ry)

    below = jnp.where(y < tip, 0.056, 0.046)  # the nose ends more steeply than it begins
    return (
        bump(0, 0.12, 0.042 * wide, 0.13, 0.085)  # bridge of the nose
        + bump(0, tip, 0.060 * wide, below, 0.105)
        + bump(0.076 * wide, tip + 0.016, 0.036, 0.034, 0.045)  # wings
        + bump(0.16, -0.13, 0.15, 0.05, 0.035)  # brow
        + bump(EYE - 0.02, -0.01, 0.10, 0.075, -0.075)  # sockets
        + bump(EYE, 0.0, 0.075, 0.055, 0.050)  # eyeballs
        + bump(0.28, 0.16 - lift, 0.12, 0.09, 0.03 + 0.02 * a.cheeks + 0.012 * a.smile)  # cheeks
        + bump(0.30, 0.36, 0.10, 0.10, 0.018 * a.cheeks - 0.012)
        + bump(0, 0.40, 0.10, 0.030, 0.030)  # lips
        + bump(0, 0.468, 0.085, 0.030, 0.036)
        + bump(0, 0.345, 0.016, 0.035, -0.012)  # groove above
        + bump(0, 0.53, 0.11, 0.030, -0.028)  # hollow below
        + bump(0.185, 0.43 - lift, 0.04, 0.05, -0.018)  # corners
        + bump(0, 0.61, 0.12, 0.07, 0.05)  # chin
    )


def skull(a, y):
    """Half width, half depth and middle depth of the smooth head at heights y."""
    low = smooth(y, -0.05, 0.70)
    rx = (0.475 + 0.04 * a.head_width) * (1 - (0.23 - 0.09 * a.jaw) * low)
    return rx, 0.54 - 0.12 * low, 0.16 * low - 0.06


def surface(a, x, y, z):
    """Nearly the signed distance to the head, in its coordinates."""
    rx, rz, middle = skull(a, y)
    q = ((y + 0.05) / jnp.where(y < -0.05, 0.67, 0.73)) ** 2
    flat = jnp.where(y < -0.05, 0.75, 0.5)
    k = (x / rx) ** 2 + ((z - middle) / rz) ** 2 + q * (flat + (1 - flat) * q)
    return 0.45 * (jnp.sqrt(k + 1e-6) - 1) - relief(a, x, y) * smooth(z, 0.0, 0.35)


def silhouette(a, x, y):
    """Signed distance on the page: the surface's where a line of sight is nearest to the axis."""
    rx, rz, middle = skull(a, y)
    cos, sin = jnp.cos(a.yaw), jnp.sin(a.yaw)
    z = x * cos * sin * (1 / rx**2 - 1 / rz**2) + cos * middle / rz**2
    z = z / (sin * sin / rx**2 + cos * cos / rz**2)
    return surface(a, *turned(a, x, y, z))


def make_grid(a, size):
    """Pixel positions on the page and on the turned head, found by marching along z."""
    at = (jnp.arange(size) + 0.5) * (2 / size) - 1
    px, py = at[None, :], at[:, None]
    cos, sin = jnp.cos(a.tilt), jnp.sin(a.tilt)
    # Turn and nod move the features: most of it back, so that the eyes stay.
    x = px * cos + (py - 0.2) * sin + 0.36 * jnp.sin(a.yaw)
    y = (py - 0.2) * cos - px * sin + 0.2 + 0.40 * jnp.sin(a.pitch)
    light = make_light(a)

    def gap(point, t=0.0, way=(0.0, 0.0, 1.0)):
        return surface(a, *turned(a, *(p + t * d for p, d in zip(point, way, strict=True))))

    z = 0.70 * root(1 - (x / 0.62) ** 2 - ((y + 0.05) / 0.8) ** 2)
    z = jax.lax.fori_loop(0, 5, lambda _, z: z - gap((x, y, z)), z)
    point = x, y, z
    # The slope, from steps along each axis.
    around = jax.vmap(lambda way: gap(point, 0.004, way))(jnp.eye(4, 3))
    nx, ny, nz = (around[:3] - around[3]) / 0.004
    normal = unit(nx, ny, jnp.maximum(nz, 0))

    def lit(i, shadow):
        t = 0.06 + 0.09 * i
        return jnp.minimum(shadow, 0.5 + gap(point, t, light.way) / t * (1.5 + 3 * light.hard))

    # The lamp's light comes past nose and brow, the sky's into hollows.
    shadow = 0.25 + 0.75 * smooth(jax.lax.fori_loop(0, 3, lit, jnp.ones_like(x)))
    hollow = 0.25 + 0.75 * smooth(gap(point, 0.10, normal), -0.02, 0.085)
    u, v, _ = turned(a, *point)
    inside = silhouette(a, x, y)
    u, v = (jnp.where(inside < 0.04, w, 9.0) for w in (u, v))  # no features beside the head
    seed = (a.texture * 2**23).astype(jnp.uint32) * np.uint32(0x9E3779B1)
    return Grid((px, py), x, y, u, v, inside, normal, shadow, hollow, light, seed, 2 / size)


# --- Parts: each takes the canvas and lays itself over it ----------------------------------------


def skin_colour(a):
    """The colour as displayed in full light."""
    return ramp(SKIN, a.skin) * (1 + 0.05 * a.undertone * jnp.array([0.0, 0.6, -1.2]))


def hair_colour(a):
    """The colour as displayed in full light."""
    return ramp(HAIR_COLOUR, a.hair_colour)


SKIN_WRAP = np.array([0.42, 0.24, 0.18], np.float32)[:, None, None]  # red light goes furthest


def background(a, g):
    """A wall, lights in the dark, a window or leaves under a sky, all out of focus."""
    x, y = g.page
    one = hsv(a.background_hue, 0.30, 0.60 + 0.22 * a.background_value)
    two = hsv(a.background_hue + 0.12 * a.background_turn, 0.42, 0.36 + 0.18 * a.background_value)
    turn = jnp.cos(a.background_angle), jnp.sin(a.background_angle)
    t = turn[0] * x + turn[1] * y
    plain = over(one[:, None, None], two, smooth(t, -1.3, 1.3))
    plain = plain * (1 + 0.025 * noise(2.5 * x, 2.5 * y, g.seed))

    lights = jnp.zeros_like(x + y)
    for i in range(7):
        c = noise(jnp.float32([i, i, i]), jnp.float32([7, 8, 9]), g.seed)
        r = 0.17 + 0.07 * c[2]
        d = jnp.sqrt((x - 1.1 * c[0]) ** 2 + (y + 0.25 - 0.8 * c[1]) ** 2 + 1e-8) / r
        lights = lights + (0.30 + 0.2 * c[2]) * smooth(1.12 - d, 0, 0.24) * (0.75 + 0.25 * d)
    bokeh = over(0.62 * plain, one * jnp.array([1.25, 1.15, 0.95]), jnp.minimum(lights, 0.85))
    pane = box(x - 0.55 * turn[0], y + 0.35, 0.52, 0.75, 0.05)
    bars = jnp.abs(x - 0.55 * turn[0])
    glow = fill(pane, g.pixel, 0.10) * (1 - 0.6 * fill(bars - 0.04, g.pixel, 0.06))
    window = over(0.8 * plain, 0.35 * one + 0.62, 0.85 * glow)
    leaves = noise(2.4 * x + 1.8 * y, 2.4 * y - 1.8 * x, g.seed) + 0.5 * noise(7 * x, 7 * y, g.seed)
    leaf = hsv(0.24 + 0.1 * a.background_turn, 0.42, 0.42 + 0.12 * a.background_value)
    green = leaf[:, None, None] * (1 + 0.3 * leaves)
    sky = 0.35 * one + jnp.array([0.50, 0.56, 0.62])
    edge = smooth(y + 0.35 * turn[0] * x + 0.35 + 0.5 * turn[1] + 0.22 * leaves, -0.35, 0.35)
    outdoors = over(jnp.broadcast_to(sky[:, None, None], plain.shape), green, edge)
    kinds = (plain, bokeh, window, outdoors)
    canvas = jnp.select([a.background == i for i in range(4)], kinds)
    return canvas * (1 - 0.16 * (x * x + y * y) / 2)


def wears(a, style):
    """Whether the hair is of this style."""
    return a.hair_style == list(HAIR).index(style)


class Hair(NamedTuple):
    shape: jax.Array  # signed distance to the silhouette
    opening: jax.Array  # to the face's opening in it
    cover: jax.Array  # opacity in front of the head
    hangs: jax.Array  # over the brow: 1, or grows back from it: 0
    short: jax.Array  # ears are seen
    picture: jax.Array


def comb(a, g, style, u, v, z, facing):
    """Locks and finer strands, about -1..1, that run from a parting or the crown; or curls."""
    part = 0.22 * a.hair_part * style.parted
    swept = wears(a, "swept up") * 0.5 * (v + 0.45) * jnp.where(a.hair_part < 0, -1, 1)
    crown = 0.25 + 0.35 * style.parted * jnp.clip((v + 0.15) / (style.top + 0.15), 0, 1)
    across = jnp.arctan2(u - part + swept, jnp.abs(z) + crown)
    across = across + 0.06 * style.wavy * wave(9 * v + 3 * u)
    along = v + 0.25 * style.parted * jnp.abs(u - part)
    fine = jnp.maximum(facing, 0.3) / g.pixel
    locks = noise(9 * across, 1.3 * along, g.seed)
    locks = locks + 0.6 * noise(24 * across, 2.2 * along, g.seed, fine / 32)
    strands = noise(60 * across, 3 * along, g.seed, fine / 75)
    strands = strands + noise(130 * across, 5 * along, g.seed, fine / 160)

    tufts = noise(9 * u + 5 * v, 9 * v - 5 * u, g.seed)
    rings = noise(12 * u - 5 * v, 12 * v + 5 * u, g.seed + 1)
    coils = noise(23 * u + 12 * v, 23 * v - 12 * u, g.seed, fine / 26)
    curls = jnp.clip(0.5 * tufts - 0.8 + 2.0 * jnp.abs(rings + 0.7 * coils), -1, 1)
    curls = curls * smooth(fine / 16, 0.5, 1.6)
    return locks + (curls - locks) * style.curl, strands * (1 - 0.7 * style.curl)


def hair(a, g):
    """A dome on a flaring cylinder about the head's axis, with an opening for the face."""
    style = Style(*jnp.asarray(list(HAIR.values()), jnp.float32)[a.hair_style])
    short = style.bottom < 0.2
    x = g.x / (1 + style.flare * jnp.maximum(g.y + 0.15, 0))
    x = x + 0.03 * style.wavy * wave(8 * g.y + 2 * g.x + 6 * a.texture) * smooth(g.y, -0.5, 0.2)
    rx, ry = style.width + 0.04 * a.head_width, -0.15 - style.top
    up = jnp.clip(-(g.y + 0.15) / ry, 0, 2)
    nx, ny = x / rx, -up
    nz = root(1 - nx * nx - ny * ny)
    normal = unit(nx, ny, jnp.maximum(nz, 0.05))
    u, v, z = turned(a, g.x, g.y, 0.55 * nz)
    locks, strands = comb(a, g, style, u, v, z, normal[2])

    # Short hair ends at the temples, in sideburns and at the nape.
    trimmed = 0.04 + jnp.clip(-z, 0, 0.1) - 1.2 * jnp.clip(z - 0.06, 0, 0.25) - 0.01 * strands
    end = jnp.where(short, trimmed, style.bottom + 0.1 * a.hair_length - 0.03 * locks)
    shape = both(ellipse(x, up * root(up) * ry, rx, ry), g.y - end, 2 * style.soft)
    bun = ellipse(g.x - 0.1 * jnp.sin(a.yaw), g.y + 0.80, 0.20, 0.15)
    shape = jnp.where(wears(a, "bun"), jnp.minimum(shape, bun), shape)
    shape = shape + 0.004 * strands + 0.02 * style.curl * locks

    part = 0.22 * a.hair_part
    reach = jnp.sqrt((u - part) ** 2 + 0.004)
    line = style.hairline + style.fall * reach * reach / (0.3 + reach)
    hangs = smooth(style.parted, 0.0, 0.5)
    ragged = 0.010 * strands + (0.005 + 0.015 * jnp.maximum(hangs, style.curl)) * locks
    sides = jnp.abs(u) - style.opening - 0.05 * smooth(v, -0.1, 0.3)
    opening = jnp.maximum(both(sides, line - v, 0.2) + ragged, 0.02 - z)
    cover = fill(shape, g.pixel, style.blur) * fill(-opening, g.pixel, 0.085 - 0.07 * hangs)
    cover = cover * jnp.where(wears(a, "cropped"), 0.84 + 0.12 * strands, 1) * ~wears(a, "bald")

    # Hairs reflect in a band, where they bend across the light (Kajiya and Kay).
    side = style.parted * jnp.clip(2 * (u - part), -1, 1) * smooth(up, 0.3, 1.0)
    nx, ny, nz = normal
    along = unit(side - ny * nx, 1 - ny * ny, -ny * nz)
    bend = dot(along, g.light.half) + 0.10 * strands + 0.06 * locks
    shine = jnp.maximum(1 - bend * bend, 0) ** 12 * smooth(dot(normal, g.light.way), -0.2, 0.8)
    colour = hair_colour(a)[:, None, None]
    gloss = (0.04 + 0.10 * colour**2) * shine * (1 - 0.6 * style.curl) * (1 + 0.6 * strands)
    deep = 1 - 0.25 * style.curl * smooth(-locks, 0, 1.2)
    tone = 1 + 0.16 * locks + 0.14 * strands
    picture = shade(g.light, colour * tone, normal, deep, deep, 0.4, gloss)
    parting = blob(u - part, 0.0, 0.009, 1.0) * smooth(up, 0.45, 0.7) * smooth(z, 0.0, 0.2)
    picture = over(picture, 0.75 * skin_colour(a), 0.7 * parting * (style.parted == 1))
    return Hair(shape, opening, jnp.clip(cover, 0, 1), hangs, short, picture)


def back_hair(canvas, a, g, h):
    """The hair behind the head, in its shadow."""
    return over(canvas, 0.6 * h.picture, fill(h.shape, g.pixel) * ~wears(a, "bald"))


def body(canvas, a, g, h):
    """Neck in the shadow of the chin, and clothes."""
    light, pixel = g.light, g.pixel
    x, y = g.x - 0.16 * a.yaw, g.page[1]
    half = 0.235 + 0.02 * a.jaw + 0.28 * smooth(y, 0.72, 1.15)
    nx = jnp.clip(x / half, -1, 1)
    normal = unit(nx, 0.1, jnp.sqrt(1.02 - nx * nx))
    chin = ellipse(g.x + 0.35 * light.way[0], g.y + 0.30 * light.way[1] + 0.05, 0.40, 0.73)
    cast = 1 - 0.85 * fill(chin, pixel, 0.16 - 0.10 * light.hard)
    occlusion = 0.35 + 0.65 * smooth(y, 0.5, 0.95)
    skin = shade(light, skin_colour(a), normal, cast, occlusion, SKIN_WRAP)
    neck = both(jnp.abs(x) - half, 0.2 - y, 0.1)
    canvas = over(canvas, skin, fill(neck, pixel))

    cloth = hsv(a.clothing_hue, 0.45, 0.50 + 0.32 * a.clothing_value)
    shoulders = ellipse(x, y - 1.32, 1.12, 0.58)
    v_neck = (jnp.abs(x) * 1.5 + y - 1.04) / 1.8
    open_neck = (a.clothing == 1) | (a.clothing == 2)
    opening = jnp.where(open_neck, v_neck, ellipse(x, y - 0.73, 0.29, 0.15))
    garment = both(shoulders, -opening, 0.03)
    run = y + 0.55 * jnp.abs(x)  # folds hang from the shoulders
    folds = noise(4 * x, 2.5 * run, g.seed) + 0.5 * noise(9 * x, 5 * run, g.seed)
    weave = noise(60 * x, 60 * y, g.seed, 1 / (60 * pixel))
    rise = jnp.clip((1.32 - y) / 0.56, 0, 1)
    normal = unit(0.9 * x + 0.30 * folds, -0.8 * rise * rise - 0.15 * folds, 0.75)
    under = 1 - 0.55 * blob(x, y - 0.70, 0.30, 0.14)
    stripe = smooth(wave(24 * (y - 0.15 * x * x) + 0.4 * folds), -0.4, 0.4) * (a.clothing == 3)
    pale = 0.5 + 0.5 * cloth
    dyed = over(cloth[:, None, None] * (1 + 0.05 * weave), pale, 0.6 * stripe)
    picture = shade(light, dyed, normal, under, under)
    canvas = over(canvas, picture, fill(garment, pixel))
    rim = fill(jnp.abs(opening - 0.025) - 0.02, pixel) * fill(shoulders, pixel)
    canvas = over(canvas, 0.85 * picture, 0.8 * rim * ~open_neck)
    flap = jnp.maximum(jnp.abs(v_neck - 0.05) - 0.055, jnp.abs(y - 0.85) - 0.12)
    collar = shade(light, pale, normal, under, under)
    return over(canvas, collar, fill(flap, pixel) * (a.clothing == 2))


def ears(canvas, a, g, h):
    """The nearer ear on the turned head, and the farther one behind it. Long hair covers them."""
    sign = jnp.where(g.x < 0, -1.0, 1.0)
    seen = -sign * jnp.sin(a.yaw)  # how far this ear is turned to the viewer
    out = sign * g.x - (0.465 + 0.04 * a.head_width) * jnp.cos(a.yaw) - 0.08 * seen
    wide = 0.055 + 0.06 * seen
    v = g.y - 0.07
    lean = (out + 0.15 * v) / wide
    ear = ellipse(lean * wide, v, wide, 0.135 - 0.02 * smooth(v, 0, 0.1))
    inner = blob(lean + 0.1, v - 0.005, 0.38, 0.055)
    rim = blob(ear + 0.018, 0.0, 0.012, 1.0)
    normal = unit(sign * (0.5 + 0.7 * lean), 2 * v, 0.9)
    open_ = 1 - 0.5 * inner + 0.1 * rim
    colour = skin_colour(a) * jnp.array([1.0, 0.92, 0.90])
    picture = shade(g.light, colour, normal, open_, open_, SKIN_WRAP, 0.03 * rim)
    hidden = fill(g.inside + 0.40 * jnp.maximum(seen, 0), g.pixel, 0.02)
    attached = smooth(lean, -0.95, -0.3)
    hidden = jnp.maximum(hidden, (1 - attached) * fill(g.inside, g.pixel))
    hidden = jnp.maximum(hidden, h.cover * ~h.short)
    return over(canvas, picture, fill(ear, g.pixel) * (1 - hidden))


def head(canvas, a, g, h):
    """Skin: blushes, freckles, pores, lines; a scattering surface with a film of gloss."""
    u, v, w = g.u, g.v, jnp.abs(g.u)
    colour = skin_colour(a)[:, None, None]
    blotch = noise(7 * u, 7 * v, g.seed) + 0.5 * noise(15 * u, 15 * v, g.seed)
    pores = noise(55 * u, 55 * v, g.seed, 1 / (55 * g.pixel))
    fine = noise(120 * u, 120 * v, g.seed, 1 / (120 * g.pixel))
    rosy = (0.05 + 0.24 * a.blush) * blob(w - 0.29, v - 0.20, 0.11, 0.08)
    rosy = rosy + 0.10 * blob(u, v - 0.24, 0.08, 0.05) + 0.015 * blotch
    colour = colour * (1 - rosy * rgb(0.0, 0.55, 0.45))
    spots = wave(58 * u + 3 * blotch) * wave(55 * v + 3 * wave(11 * u)) + 0.5 * pores
    spots = smooth(spots, 0.1, 0.8) * smooth(0.05 / g.pixel, 0.8, 2.4)
    spread = smooth(a.freckles, 0.4, 1.0) * blob(w - 0.17, v - 0.18, 0.15, 0.09)
    colour = colour * (1 - spots * spread * rgb(0.14, 0.24, 0.29))

    smile_line = segment(w, v, 0.115, 0.26, 0.215, 0.43)
    old = smooth(a.lines, 0.2, 1.0)
    creases = (0.10 + 0.18 * smooth(a.smile, -0.2, 1) + 0.2 * old) * blob(smile_line, 0, 0.014, 1)
    forehead = blob(wave(42 * (v + 0.03 * wave(7 * u))) - 1, 0.0, 0.25, 1.0) * blob(
        u, v + 0.34, 0.20, 0.055
    )
    bags = blob(ellipse(w - EYE, v + 0.005, 0.125, 0.095), 0, 0.012, 1) * smooth(v, 0.02, 0.07)
    crow = blob(w - 0.36, v - 0.01, 0.02, 0.03) * wave(110 * v) ** 2
    creases = creases + old * (0.25 * forehead + 0.15 * crow) + (0.06 + 0.22 * old) * bags
    detail = 0.35 * pores + 0.25 * fine
    occlusion = g.open * (1 - creases)
    shadow = g.shadow * (1 - creases) * (1 + 0.06 * detail)
    sheen = blob(u, v + 0.28, 0.3, 0.12) + blob(u, v - 0.15, 0.07, 0.16)
    gloss = 0.035 * mirror(g.light, g.normal, 8)
    gloss = gloss + (0.05 + 0.10 * sheen) * mirror(g.light, g.normal, 40)
    gloss = gloss * (1 + 0.6 * detail) * (0.7 + 0.6 * a.skin)
    rim = (1 - g.normal[2]) ** 3
    gloss = gloss + 0.05 * rim * smooth(dot(g.normal, g.light.way), -0.3, 0.6)
    picture = shade(g.light, colour, g.normal, shadow, occlusion, SKIN_WRAP, gloss)
    return over(canvas, picture, fill(g.inside, g.pixel))


def mouth(canvas, a, g, h):
    """Lips around a curved line, which opens on teeth."""
    half = 0.165 + 0.025 * a.smile
    across = jnp.clip((g.u / half) ** 2, 0, 4)
    arc = 1 - across
    gap = 0.060 * jnp.maximum(a.mouth_open, 0) * arc
    curve = jnp.where(a.smile > 0, 0.055, 0.028) * a.smile
    v = g.v - 0.432 - curve * (0.40 - across)
    full = 0.040 + 0.013 * a.lip_fullness
    bow = 1 - 0.28 * blob(g.u, 0.0, 0.03, 1.0)
    upper, lower = 0.95 * full * arc * bow + 0.4 * gap, 1.2 * full * arc + 0.9 * gap
    steep = 1 / jnp.sqrt(1 + (0.3 * g.u / half) ** 2)
    edge = jnp.maximum(-v - upper, v - lower) * steep
    lips = fill(edge, g.pixel, 0.010)

    skin = skin_colour(a)
    bare = skin * jnp.array([0.88, 0.66, 0.64])
    colour = bare + (0.3 * skin + 0.75 * LIP_PAINT - bare) * a.lip_colour
    # The upper lip faces down, the lower one up and then down.
    turn = jnp.where(v < 0, 0.55, 1.1 * jnp.clip((v - 0.5 * lower) / (lower + 0.01), -0.6, 0.6))
    nx, ny, nz = g.normal
    normal = unit(nx, ny + turn, nz)
    grooves = noise(48 * g.u, 6 * v, g.seed, 1 / (48 * g.pixel))
    gloss = (0.08 + 0.12 * a.lip_colour) * mirror(g.light, normal, 24) * (1 + 0.5 * grooves)
    tone = colour[:, None, None] * (1 + 0.06 * grooves)
    picture = shade(g.light, tone, normal, 0.3 + 0.7 * g.shadow, g.open, SKIN_WRAP, gloss)
    canvas = over(canvas, picture, 0.92 * lips)

    line = jnp.maximum(-v - 0.4 * gap, v - 0.9 * gap) - 0.006
    ends = jnp.abs(g.u) - half
    dark = fill(jnp.maximum(line, ends), g.pixel, 0.006)
    canvas = over(canvas, 0.22 * bare * jnp.array([1.0, 0.6, 0.6]), 0.88 * dark)
    teeth = jnp.maximum(-v - 0.4 * gap + 0.004, v - 0.40 * gap)
    shown = smooth(a.mouth_open, 0.1, 0.3) * fill(jnp.maximum(teeth, ends + 0.035), g.pixel)
    gaps = blob(wave(60 * g.u) - 1, 0.0, 0.12, 1.0) * smooth(0.05 / g.pixel, 1.5, 4)
    enamel = (0.93 - 0.35 * across - 0.12 * gaps) * (0.72 + 0.28 * g.light.hard)
    return over(canvas, rgb(0.96, 0.94, 0.89) * enamel, shown)


def facial_hair(canvas, a, g, h):
    """Stubble, moustache, goatee or beard: hairs that grow down and outward, thin at the edge."""
    u, v, w = g.u, g.v, jnp.abs(g.u)
    lips = ellipse(u, v - 0.44, 0.185, 0.065)
    cheek = 0.40 - 0.36 * smooth(w, 0.10, 0.46) - v  # below the cheek line
    chin = both(cheek, -lips, 0.05)
    moustache = ellipse(w - 0.085, v - 0.352 - 0.40 * w * w, 0.125, 0.034)
    goatee = jnp.minimum(moustache, both(ellipse(u, v - 0.57, 0.15, 0.13), -lips, 0.04))
    whole = jnp.minimum(chin, moustache)
    kind = a.facial_hair
    shape = jnp.where(kind == 2, moustache, jnp.where(kind == 3, goatee, whole))
    fan = u - 0.10 * wave(6 * u) * v
    one = noise(60 * fan, 14 * v, g.seed, 1 / (60 * g.pixel))
    two = noise(120 * fan, 26 * v, g.seed, 1 / (120 * g.pixel))
    tufts = noise(16 * fan, 6 * v, g.seed)
    hairs = 0.6 * one + 0.6 * two + 0.4 * tufts
    density = smooth(-shape + 0.03 * hairs, -0.03, 0.08)
    full = jnp.clip(density * (1.05 + 0.3 * hairs), 0, 0.97)
    short = noise(100 * u, 60 * v, g.seed, 1 / (100 * g.pixel))
    stubble = smooth(-shape, -0.05, 0.09) * (0.34 + 0.22 * short + 0.08 * one)
    alpha = jnp.where(kind == 1, stubble, full) * (kind > 0)
    nx, ny, nz = g.normal
    normal = unit(nx + 0.25 * hairs, ny, nz)
    base = hair_colour(a)[:, None, None] * (1 + 0.22 * hairs)
    gloss = 0.03 * mirror(g.light, normal, 10)
    picture = shade(g.light, base, normal, g.shadow, 0.8 * g.open, 0.3, gloss)
    return over(canvas, picture, alpha * fill(g.inside - 0.012 * (kind == 4), g.pixel))


def nostrils(canvas, a, g, h):
    wide = 1 + 0.25 * a.nose_width
    v = g.v - 0.268 - 0.025 * a.nose_length
    hole = ellipse(jnp.abs(g.u) - 0.042 * wide, v + 0.25 * (jnp.abs(g.u) - 0.042), 0.026, 0.012)
    return over(canvas, 0.28 * skin_colour(a), 0.75 * fill(hole, g.pixel, 0.018))


def eyes(canvas, a, g, h):
    """Balls with iris, pupil and catch-light between lids that have a thickness and lashes."""
    sign = jnp.where(g.u < 0, -1.0, 1.0)
    q = jnp.abs(g.u) - EYE
    v = g.v + 0.10 * a.eye_slant * q - 0.004
    half = 0.108
    t = q / half
    lean = 1 - 0.25 * t  # the upper lid is highest towards the nose
    arc = 1 - t * t
    steep = jax.lax.rsqrt(1 + (0.95 * t) ** 2)
    raised = 0.056 + 0.016 * a.eye_open - 0.008 * smooth(a.smile)
    low_ = 0.036 - 0.010 * smooth(a.smile)
    up = (-v - raised * arc * lean) * steep
    low = (v - low_ * arc * (1 + 0.2 * t)) * steep
    inside = jnp.maximum(up, low)
    opening = fill(inside, g.pixel)
    skin = skin_colour(a)
    ends = fill(jnp.abs(q) - 0.115, g.pixel, 0.07)
    crease = blob(up - 0.034, 0.0, 0.0085, 1.0) * ends
    lid = blob(up - 0.016, 0.0, 0.010, 1.0) * ends  # catches light
    canvas = canvas * (1 - 0.45 * crease + 0.10 * lid)
    under = blob(low - 0.022, 0.0, 0.010, 1.0) * ends
    canvas = canvas * (1 + 0.05 * under)

    ball = unit(0.9 * sign * t + g.normal[0], 8 * v, 1.0)
    cast = 1 - 0.60 * smooth(up, -0.045, 0.0) - 0.25 * smooth(jnp.abs(t), 0.5, 1.0)
    white = rgb(0.93, 0.91, 0.89) * (1 - 0.1 * smooth(jnp.abs(t), 0.5, 1) * rgb(0, 1, 1))
    sclera = shade(g.light, white, ball, cast * (0.45 + 0.55 * g.shadow), cast, 0.5)
    ix, iy = q * sign - 0.034 * a.gaze, v + 0.010
    r = jnp.sqrt(ix * ix + iy * iy + 1e-8)
    fibre = noise(4 * jnp.arctan2(iy, ix), 14 * r, g.seed, 0.011 / g.pixel)
    glow = smooth(
        dot((ix / 0.05, iy / 0.05, 0.0), (-g.light.way[0], -g.light.way[1], 0)), -0.6, 0.9
    )
    tone = 0.70 + 0.55 * glow + 0.22 * fibre - 0.5 * smooth(r, 0.038, 0.052)
    iris = shade(
        g.light, ramp(EYE_COLOUR, a.eye_colour)[:, None, None] * tone, ball, cast, cast, 0.6
    )
    sclera = over(sclera, iris, fill(r - 0.050, g.pixel, 0.006))
    sclera = over(sclera, jnp.array([0.03, 0.025, 0.03]), fill(r - 0.021, g.pixel, 0.004))
    spark = jnp.sqrt(
        (ix - 0.030 * g.light.way[0]) ** 2 + (iy + 0.014 - 0.030 * g.light.way[1]) ** 2 + 1e-8
    )
    sclera = over(sclera, jnp.ones(3), 0.92 * fill(spark - 0.0125, g.pixel, 0.004))
    canvas = over(canvas, sclera, opening)
    tear = fill(ellipse(q + half - 0.012, v - 0.004, 0.014, 0.010), g.pixel, 0.01)
    canvas = over(canvas, 0.8 * skin * jnp.array([1.0, 0.7, 0.68]), 0.6 * tear * opening)
    spikes = 0.5 + 0.5 * noise(60 * t + 14 * v, 0 * v, g.seed, half / (60 * g.pixel))
    lash = jnp.maximum(jnp.abs(up - 0.003) - 0.007 - 0.007 * spikes, jnp.abs(q) - half - 0.006)
    dark = 0.16 * skin * jnp.array([1.0, 0.8, 0.75])
    canvas = over(canvas, dark, 0.92 * fill(lash, g.pixel))
    rim = jnp.maximum(jnp.abs(low) - 0.004, jnp.abs(q) - half)
    return over(canvas, 0.45 * skin * jnp.array([1.0, 0.75, 0.7]), 0.6 * fill(rim, g.pixel))


def brows(canvas, a, g, h):
    q = (jnp.abs(g.u) - EYE - 0.01) / 0.145  # -1 at the nose .. 1 at the temple
    middle = -0.150 - 0.028 * a.brow_height - 0.026 * (1 - q * q) - 0.022 * a.brow_angle * q
    thick = (0.024 + 0.011 * a.brow_weight) * (1 - 0.45 * smooth(q, -0.6, 1.2))
    hairs = noise(22 * q + 30 * (g.v - middle), 26 * (g.v - middle), g.seed, 0.007 / g.pixel)
    coarse = noise(9 * q + 14 * (g.v - middle), 14 * (g.v - middle), g.seed)
    shape = both(jnp.abs(g.v - middle) - thick, (jnp.abs(q) - 1) * 0.145, 0.07)
    density = smooth(-shape + 0.006 * coarse, -0.014, 0.014) * (0.84 + 0.25 * hairs)
    colour = (
        hair_colour(a)[:, None, None] * (0.72 + 0.15 * hairs) + 0.08 * skin_colour(a)[:, None, None]
    )
    picture = shade(g.light, colour, g.normal, g.shadow, g.open, 0.3)
    return over(canvas, picture, jnp.clip(density, 0, 0.95))


def glasses(canvas, a, g, h):
    """Frames before the face: they turn with it, shade the skin and reflect the light."""
    depth = 0.50

    def frame(x, y):
        u, v = (x - depth * jnp.sin(a.yaw)) / jnp.cos(a.yaw), y - depth * jnp.sin(a.pitch) - 0.012
        q = jnp.abs(u) - EYE
        lens = jnp.where(
            a.glasses == 1, jnp.sqrt(q * q + v * v + 1e-8) - 0.155, box(q, v, 0.165, 0.12, 0.05)
        )
        bridge = jnp.maximum(jnp.abs(v + 0.045 - 2 * u * u) - 0.011, q + 0.15)
        return u, v, lens, jnp.minimum(jnp.abs(lens) - 0.015, bridge)

    u, v, lens, rims = frame(g.x, g.y)
    side = jnp.where(g.x < 0, -1.0, 1.0)
    hinge = side * 0.365 * jnp.cos(a.yaw) + (depth - 0.03) * jnp.sin(a.yaw)
    ear = side * 0.47 * jnp.cos(a.yaw) - 0.05 * jnp.sin(a.yaw)
    temple = segment(g.x, g.y, hinge, -0.03, ear, 0.0) - 0.012
    rims = jnp.minimum(rims, jnp.maximum(temple, side * (hinge - ear) - 0.02))
    there = (a.glasses > 0).astype(jnp.float32)
    way = g.light.way
    cast = frame(g.x + 0.05 * way[0] / way[2], g.y + 0.05 * way[1] / way[2])[3]
    face_ = fill(g.inside, g.pixel)
    canvas = canvas * (1 - 0.38 * there * face_ * fill(cast, g.pixel, 0.03) * rgb(0.85, 1, 1))
    streak = smooth(wave(9 * (u * 0.8 + v) + 3 * a.light_x), 0.55, 0.95) * (0.6 - 3 * v)
    canvas = over(canvas, jnp.ones(3), there * fill(lens, g.pixel) * (0.03 + 0.10 * streak))
    normal = unit(2 * u, 3 * v, jnp.ones_like(u))
    gloss = 0.08 * mirror(g.light, normal, 16)
    picture = shade(g.light, ramp(FRAME_COLOUR, a.frame_colour), normal, gloss=gloss)
    return over(canvas, picture, there * fill(rims, g.pixel))


def front_hair(canvas, a, g, h):
    """Hair in front of the head, and its shadow on the skin."""
    way, soft = g.light.way, 0.10 - 0.05 * g.light.hard
    cast = fill(both(-h.opening - 0.035 + 0.05 * way[1], h.shape, 0.05), g.pixel, soft)
    cast = (0.1 + 0.35 * h.hangs) * cast * fill(g.inside, g.pixel) * ~wears(a, "bald")
    return over(canvas * (1 - cast * rgb(0.8, 1, 1)), h.picture, h.cover)


# --- The data set --------------------------------------------------------------------------------


def sample_attributes(key) -> Attributes:
    """Independent attributes: uniform over `RANGES`, kinds over `KINDS`."""
    draws = jax.random.uniform(key, (len(Attributes._fields),))

    def value(name, t):
        if name in KINDS:
            return kind_of(KINDS[name], (t * len(KINDS[name])).astype(jnp.int32))
        lo, hi = RANGES[name]
        return lo + (hi - lo) * t

    return Attributes(*map(value, Attributes._fields, draws))


NUMBERS = tuple(name for name in RANGES if name != "texture")
LATENTS = len(NUMBERS) + sum(map(len, KINDS.values()))


def attributes_of(z, texture) -> Attributes:
    """The attributes that standard normal coordinates z (`LATENTS`,) stand for.

    They are distributed as `sample_attributes` has them. The `NUMBERS` come first: each is the
    normal distribution function of its coordinate, over its range. Then each of `KINDS` has as many
    coordinates as entries, and the largest counts. `texture` in [0, 1] is a seed, not a quantity,
    and so it has no coordinate.
    """
    values = {"texture": texture}
    for name, t in zip(NUMBERS, jax.scipy.special.ndtr(z[: len(NUMBERS)]), strict=True):
        lo, hi = RANGES[name]
        values[name] = lo + (hi - lo) * t
    ends = len(NUMBERS) + np.cumsum([0, *map(len, KINDS.values())])
    for (name, kinds), first, last in zip(KINDS.items(), ends, ends[1:], strict=False):
        values[name] = kind_of(kinds, jnp.argmax(z[first:last]))
    return Attributes(**values)


def kind_of(kinds, entry):
    """The number of a kind from that of an entry in `KINDS`, where several may be "none"."""
    return jnp.maximum(entry - max(kinds.count("none") - 1, 0), 0)


PARTS = back_hair, body, head, mouth, facial_hair, nostrils, eyes, brows, glasses, front_hair, ears


def draw(attributes: Attributes, size: int) -> jax.Array:
    """The portrait (size, size, 3), float32 in [0, 1]. The face is the same at every size."""
    grid = make_grid(attributes, size)
    combed = hair(attributes, grid)
    canvas = background(attributes, grid)

    # In a loop, or the compiler would compute each part anew wherever the next ones use it.
    parts = [lambda canvas, part=part: part(canvas, attributes, grid, combed) for part in PARTS]
    canvas = jax.lax.fori_loop(
        0, len(parts), lambda i, canvas: jax.lax.switch(i, parts, canvas), canvas
    )
    return jnp.clip(canvas, 0, 1).transpose(1, 2, 0)


def face(key, size: int) -> tuple[jax.Array, Attributes]:
    """One face and its attributes, from the key alone."""
    attributes = sample_attributes(key)
    return draw(attributes, size), attributes


def album(keys, size: int) -> np.ndarray:
    """The faces (N, size, size, 3) of as many keys.

    They are drawn one by one: a face takes long to compile, and so one program serves any number.
    """
    return np.stack([compiled_face(key, size)[0] for key in keys])


compiled_face = jax.jit(face, static_argnames="size")
