"""Drawn faces: a procedural data set of illustrated portraits, in pure JAX.

What is in it. Square portraits on smooth backgrounds, framed like an aligned photograph: the eyes
are always at nearly the same place and the head takes about 70% of the height. A face is a function
of its attributes alone (`Attributes`), and a resolution-free one: shapes are signed distances,
antialiased over one pixel, so the same face can be drawn at any size.

How it is sampled. Every attribute is drawn independently of all the others. Numbers are uniform
over their range (`RANGES`): skin tone, for one, runs evenly from very light to very dark. Hair
style and clothing are uniform over their kinds; half the faces wear glasses and half have facial
hair, in kinds that are equally likely (`KINDS`). No attribute stands for sex, age or origin.

What it isn't good for. The faces are drawings: they identify nobody, and no count, correlation or
error rate found with them says anything about real faces or about models of real faces.

    images, attributes = jax.jit(jax.vmap(face, (0, None)), static_argnums=1)(keys, 64)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Attributes(NamedTuple):
    """What a face is drawn from; scalars, in `RANGES`, or the number of a kind in `KINDS`."""

    skin: jax.Array  # 0 very light .. 1 very dark
    undertone: jax.Array  # -1 rosy .. 1 golden
    freckles: jax.Array
    blush: jax.Array
    head_width: jax.Array
    jaw: jax.Array  # -1 narrow .. 1 square
    nose_width: jax.Array
    yaw: jax.Array  # turn of the head, radians
    tilt: jax.Array  # roll of the head, radians
    light_x: jax.Array  # where the light is: left .. right
    light_y: jax.Array  # above .. level
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
    background_hue: jax.Array
    background_turn: jax.Array  # second hue relative to the first
    background_value: jax.Array
    background_angle: jax.Array


UNIT = ("skin", "freckles", "blush", "eye_colour", "lip_colour", "hair_colour", "frame_colour")
UNIT += ("clothing_hue", "background_hue")
RANGES = dict.fromkeys(Attributes._fields, (-1.0, 1.0)) | dict.fromkeys(UNIT, (0.0, 1.0))
RANGES |= {"yaw": (-0.35, 0.35), "tilt": (-0.07, 0.07), "background_angle": (-np.pi, np.pi)}

# Silhouette: half width, top, bottom, roundness of the ends, flare.
# Opening for the face: hairline at the parting, its fall to the sides, half width.
# Then curls and the blur of the edge.
HAIR = {
    "bald": (0.55, -0.80, -0.10, 0.05, 0.0, -0.50, 0.3, 0.44, 0.0, 0.0),
    "cropped": (0.55, -0.78, -0.02, 0.05, 0.0, -0.50, 0.15, 0.46, 0.0, 0.08),
    "side parted": (0.58, -0.85, 0.04, 0.06, 0.0, -0.52, 0.55, 0.46, 0.0, 0.0),
    "swept up": (0.57, -0.95, -0.04, 0.06, -0.3, -0.45, 0.05, 0.45, 0.25, 0.02),
    "bob": (0.65, -0.87, 0.48, 0.16, 0.1, -0.27, 0.08, 0.42, 0.0, 0.0),
    "long": (0.62, -0.86, 1.20, 0.10, 0.12, -0.58, 0.75, 0.42, 0.0, 0.0),
    "wavy": (0.68, -0.88, 0.82, 0.20, 0.15, -0.54, 0.6, 0.42, 0.7, 0.0),
    "afro": (0.80, -0.97, 0.30, 0.45, 0.0, -0.45, 0.15, 0.43, 1.0, 0.03),
}
KINDS = {  # equally likely, but half the faces have no facial hair and half no glasses
    "hair_style": tuple(HAIR),
    "facial_hair": ("none",) * 4 + ("stubble", "moustache", "goatee", "beard"),
    "glasses": ("none",) * 2 + ("round", "square"),
    "clothing": ("crew neck", "v-neck", "collar", "stripes"),
}
RANGES = {name: span for name, span in RANGES.items() if name not in KINDS}


def palette(colours):
    """RGB in [0, 1] from hexadecimal colours."""
    return np.array([list(bytes.fromhex(c)) for c in colours.split()], np.float32) / 255


SKIN = palette("fadecc edc3a5 d4a07c aa7452 754c36 482e24")
HAIR_COLOUR = palette("221c1e 382620 62402c 7c3c26 b25a2e c69658 e4c890 969290 e2deda")
EYE_COLOUR = palette("3e261a 704828 80703c 548054 487caa 8c9ca8")
FRAME_COLOUR = palette("1e1c20 603422 b08c54 8c2c34 2c4278")
LIP_PAINT = np.array([0.52, 0.10, 0.13], np.float32)


# --- Primitives: images are (3, size, size), so that the pixels are the fast axis ---------------


class Grid(NamedTuple):
    """Pixel centres. The frame is [-1, 1]², x to the right, y down."""

    x: jax.Array  # on the page, upright with the head
    y: jax.Array
    u: jax.Array  # on the face: turned with the head, 0 on the nose ridge
    inside: jax.Array  # signed distance to the head
    normal: tuple  # of the smooth head
    pixel: float  # width


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


def both(a, b, r):
    """Intersection of two distances, rounded over r (a smooth maximum)."""
    h = jnp.maximum(r - jnp.abs(a - b), 0)
    return jnp.maximum(a, b) + h * h / (4 * r)


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


# --- Parts: each takes the canvas and lays itself over it ----------------------------------------


def make_grid(a, size):
    """Pixel positions on the page and on the turned head, an egg with depth."""
    at = (jnp.arange(size) + 0.5) * (2 / size) - 1
    px, py = at[None, :], at[:, None]
    cos, sin = jnp.cos(a.tilt), jnp.sin(a.tilt)
    x = px * cos + (py - 0.2) * sin + 0.28 * a.yaw  # the turn moves the features back to the middle
    y = (py - 0.2) * cos - px * sin + 0.2
    rx = 0.53 + 0.035 * a.head_width
    y0 = y + 0.12  # the head is widest above the eyes
    ry = jnp.where(y0 < 0, 0.64, 0.79)
    taper = 1 - (0.20 - 0.10 * a.jaw) * smooth(y0 / 0.79, -0.1, 1.1)
    nx, ny = x / (rx * taper), y0 / ry
    nz = jnp.sqrt(jnp.maximum(1 - nx * nx - ny * ny, 0.02))
    u = x * jnp.cos(a.yaw) - 0.95 * rx * nz * jnp.sin(a.yaw)
    head = ellipse(x / taper, y0, rx, ry) * taper
    return Grid(x, y, u, head, (nx, ny, nz), 2 / size)


def light(a):
    """Unit vector to the light, from above and in front."""
    d = jnp.array([0.75 * a.light_x, -0.45 + 0.25 * a.light_y, 0.85])
    return d / jnp.linalg.norm(d)


def skin_colour(a):
    return ramp(SKIN, a.skin) * (1 + 0.05 * a.undertone * jnp.array([0.0, 0.6, -1.2]))


def shadow(colour, depth):
    """The colour in a warm shadow of depth (an image)."""
    return colour[:, None, None] * (1 - depth * jnp.array([0.75, 0.95, 1.0])[:, None, None])


def background(a, g):
    one = hsv(a.background_hue, 0.28, 0.68 + 0.17 * a.background_value)
    two = hsv(a.background_hue + 0.12 * a.background_turn, 0.36, 0.52 + 0.17 * a.background_value)
    t = jnp.cos(a.background_angle) * g.x + jnp.sin(a.background_angle) * g.y
    glow = blob(g.x, g.y + 0.2, 0.8, 0.8)
    return over(over(one[:, None, None], two, smooth(t, -1.2, 1.2)), jnp.ones(3), 0.12 * glow)


def hair_shape(a, g):
    """Signed distance of the silhouette, the row of `HAIR` and curl pattern."""
    table = jnp.asarray(list(HAIR.values()), jnp.float32)
    rx, top, bottom, soft, flare, *_, curl, _ = row = table[a.hair_style]
    bottom = bottom + 0.1 * a.hair_length * (bottom > 0.1)
    below = jnp.maximum(g.y + 0.15, 0)
    x = g.x / (1 + flare * below) + 0.02 * curl * wave(9 * g.y + 4 * g.x)
    up = jnp.clip((g.y + 0.15) / (top + 0.15), 0, 2)
    arch = ellipse(x, up * jnp.sqrt(up) * (top + 0.15), rx, top + 0.15)  # rounder than an ellipse
    return both(arch, g.y - bottom, 2 * soft), row


def strands(a, g, curl):
    """Soft relief of the hair, about -1..1: combed lines that turn into curls."""
    lines = wave(17 * (g.u - 0.3 * a.hair_part) * (1 + 0.25 * g.y) + 1.5 * wave(3 * g.y))
    curls = wave(15 * g.u + 2 * wave(5 * g.y)) * wave(14 * g.y + 2 * wave(6 * g.u))
    return lines * (1 - curl) + 1.3 * curls * curl


def hair_tone(a, g, curl):
    """Shaded hair: a lit dome with a highlight band and strands."""
    lx, ly, _ = light(a)
    dome = 0.30 * (lx * g.x + ly * (g.y + 0.1)) / 0.6
    relief = strands(a, g, curl)
    band = g.y + 0.62 - 0.25 * g.x**2 + 0.03 * relief
    shine = blob(band, g.x - 0.5 * lx, 0.09, 0.35)
    tone = 1 + dome + 0.13 * relief
    colour = ramp(HAIR_COLOUR, a.hair_colour)[:, None, None]
    return colour * tone + 0.16 * shine * (0.3 + colour)


def back_hair(canvas, a, g):
    shape, _ = hair_shape(a, g)
    colour = ramp(HAIR_COLOUR, a.hair_colour)
    return over(canvas, 0.6 * colour, fill(shape, g.pixel) * (a.hair_style > 0))


def body(canvas, a, g):
    """Neck in the shadow of the chin, and clothes."""
    x, y = g.x - 0.25 * a.yaw, g.y
    skin = skin_colour(a)
    neck = both(jnp.abs(x) - 0.26 - 0.25 * smooth(y, 0.7, 1.1), 0.2 - y, 0.1)
    side = x * a.light_x
    depth = 0.42 * (1 - smooth(y, 0.62, 0.95)) + 0.12 - 0.4 * side
    canvas = over(canvas, shadow(skin, depth), fill(neck, g.pixel))
    cloth = hsv(a.clothing_hue, 0.42, 0.52 + 0.28 * a.clothing_value)
    shoulders = ellipse(x, y - 1.3, 0.98, 0.56)
    v_neck = (jnp.abs(x) * 1.5 + y - 1.06) / 1.8
    open_neck = (a.clothing == 1) | (a.clothing == 2)
    opening = jnp.where(open_neck, v_neck, ellipse(x, y - 0.72, 0.3, 0.16))
    garment = both(shoulders, -opening, 0.03)
    stripe = smooth(wave(26 * (y - 0.12 * x * x)), -0.5, 0.5) * (a.clothing == 3)
    fold = 0.16 * smooth(jnp.abs(x), 0.25, 0.9) + 0.2 * blob(x, y - 0.7, 0.4, 0.14)
    pale = 0.5 + 0.5 * cloth
    garment_colour = shadow(cloth, fold - 0.25 * side)
    garment_colour = over(garment_colour, pale, 0.6 * stripe)
    canvas = over(canvas, garment_colour, fill(garment, g.pixel))
    flap = jnp.maximum(jnp.abs(v_neck - 0.05) - 0.055, jnp.abs(y - 0.83) - 0.11)
    collar = fill(flap, g.pixel) * (a.clothing == 2)
    rim = fill(jnp.abs(opening - 0.03) - 0.022, g.pixel) * fill(shoulders, g.pixel)
    canvas = over(canvas, 0.75 * cloth, 0.7 * rim * ~open_neck)
    return over(canvas, pale, 0.9 * collar)


def ears(canvas, a, g):
    rx = 0.52 + 0.035 * a.head_width
    side = jnp.abs(g.x + 0.12 * a.yaw) - rx
    ear = ellipse(side, g.y - 0.08, 0.075, 0.135)
    inner = blob(side - 0.02, g.y - 0.07, 0.03, 0.07)
    return over(canvas, shadow(skin_colour(a), 0.12 + 0.35 * inner), fill(ear, g.pixel))


def head(canvas, a, g):
    """The head: an ellipsoid with bumps, Lambert light, ambient occlusion and a hint of gloss."""
    nx, ny, nz = g.normal
    u, v, w = g.u, g.y, jnp.abs(g.u)
    sign = jnp.sign(u)
    wide = 1 + 0.25 * a.nose_width

    def slope(cx, cy, rx, ry, height):
        bump = height * blob(w - cx, v - cy, rx, ry)
        return bump * (w - cx) / rx * sign, bump * (v - cy) / ry

    bumps = (
        slope(0.0, 0.06, 0.05 * wide, 0.15, 0.50),  # bridge of the nose
        slope(0.0, 0.21, 0.085 * wide, 0.06, 0.55),  # tip
        slope(0.24, 0.0, 0.13, 0.10, -0.22),  # sockets
        slope(0.28, 0.24, 0.14, 0.12, 0.16 + 0.06 * a.smile),  # cheeks
        slope(0.0, 0.60, 0.13, 0.08, 0.22),  # chin
        slope(0.0, 0.50, 0.14, 0.04, -0.16),  # under the lip
    )
    nx = nx + sum(b[0] for b in bumps)
    ny = ny + sum(b[1] for b in bumps)
    norm = jax.lax.rsqrt(nx * nx + ny * ny + nz * nz)
    lx, ly, lz = light(a)
    lambert = (nx * lx + ny * ly + nz * lz) * norm
    occlusion = (
        0.10 * blob(w - 0.20, v + 0.07, 0.12, 0.06)  # brow
        + 0.22 * blob(u, v - 0.285, 0.09 * wide, 0.03)  # nose
        + 0.10 * blob(u, v - 0.53, 0.12, 0.03)  # lower lip
        + 0.14 * smooth(g.normal[0] ** 2 + g.normal[1] ** 2, 0.6, 1.1)  # rim
    )
    depth = 0.55 * (0.86 - lambert) * (0.9 + 0.1 * a.skin) + occlusion
    gloss = jnp.maximum(lambert, 0) ** 14
    skin = shadow(skin_colour(a), depth) + 0.07 * gloss
    rosy = 0.28 * a.blush * blob(w - 0.30, v - 0.25, 0.12, 0.09) + 0.10 * blob(
        u, v - 0.22, 0.1, 0.06
    )
    skin = skin * (1 - rosy * jnp.array([0.0, 0.6, 0.5])[:, None, None])
    dots = wave(34 * u + 3 * wave(9 * v)) * wave(32 * v + 3 * wave(11 * u))
    spread = blob(w - 0.2, v - 0.2, 0.11, 0.06) * smooth(a.freckles, 0.4, 1.0)
    skin = skin * (1 - 0.26 * spread * smooth(dots, 0.0, 0.8))
    return over(canvas, skin, fill(g.inside, g.pixel))


def facial_hair(canvas, a, g):
    """Stubble, moustache, goatee or beard, in a shade of the hair."""
    u, v, w = g.u, g.y, jnp.abs(g.u)
    mouth = ellipse(u, v - 0.44, 0.21, 0.085)
    cheek = 0.40 - 0.44 * smooth(w, 0.10, 0.50) - v  # below the cheek line
    chin = both(cheek, -mouth, 0.05)
    moustache = ellipse(w - 0.09, v - 0.345 - 0.35 * w * w, 0.14, 0.042)
    goatee = jnp.minimum(moustache, both(ellipse(u, v - 0.58, 0.17, 0.15), -mouth, 0.04))
    beard = jnp.minimum(both(chin, g.inside - 0.05 * smooth(v, 0.2, 0.5), 0.03), moustache)
    stubble = 0.30 * fill(jnp.minimum(both(chin, g.inside, 0.03), moustache), g.pixel, 0.12)
    colour = ramp(HAIR_COLOUR, a.hair_colour)
    relief = 1 + 0.12 * wave(20 * u) * smooth(v, 0.3, 0.6) - 0.25 * smooth(v, 0.55, 0.8)
    shape = jnp.where(a.facial_hair == 2, moustache, jnp.where(a.facial_hair == 3, goatee, beard))
    alpha = jnp.where(a.facial_hair == 1, stubble, 0.92 * fill(shape, g.pixel, 0.03))
    return over(canvas, colour[:, None, None] * relief, alpha * (a.facial_hair > 0))


def mouth(canvas, a, g):
    """Lips around a curved line, which opens on teeth."""
    skin = skin_colour(a)
    half = 0.19 + 0.03 * a.smile
    across = jnp.clip((g.u / half) ** 2, 0, 4)
    arc = 1 - across
    gap = 0.075 * jnp.maximum(a.mouth_open, 0) * arc
    v = g.y - 0.435 - 0.075 * a.smile * (0.45 - across)
    full = 0.045 + 0.014 * a.lip_fullness
    bow = 1 - 0.30 * blob(g.u, 0.0, 0.035, 1.0)
    upper = -v - 0.9 * full * arc * bow - 0.4 * gap
    lower = v - 1.25 * full * arc - 0.9 * gap
    steep = 1 / jnp.sqrt(1 + (0.2 * g.u / half) ** 2)
    lips = fill(jnp.maximum(upper, lower) * steep, g.pixel)
    bare = skin * jnp.array([0.88, 0.66, 0.64])
    paint = 0.25 * skin + LIP_PAINT
    colour = bare + (paint - bare) * a.lip_colour
    tone = jnp.where(v < 0, 0.82, 1.0) + 0.14 * blob(g.u, v - 0.035 - gap, 0.08, 0.015)
    canvas = over(canvas, colour[:, None, None] * tone, lips)
    line = jnp.maximum(-v - 0.4 * gap, v - 0.9 * gap) - 0.010
    ends = jnp.abs(g.u) - half
    dark = fill(jnp.maximum(line, ends), g.pixel)
    canvas = over(canvas, 0.35 * bare * jnp.array([1.0, 0.6, 0.6]), 0.85 * dark)
    teeth = jnp.maximum(-v - 0.4 * gap + 0.004, v - 0.35 * gap)
    shown = smooth(a.mouth_open, 0.1, 0.3) * fill(jnp.maximum(teeth, ends + 0.03), g.pixel)
    return over(canvas, jnp.array([0.95, 0.93, 0.89]), shown)


def nostrils(canvas, a, g):
    wide = 1 + 0.25 * a.nose_width
    hole = ellipse(jnp.abs(g.u) - 0.045 * wide, g.y - 0.262, 0.026, 0.016)
    wing = blob(jnp.abs(g.u) - 0.095 * wide, g.y - 0.235, 0.018, 0.035)
    canvas = over(canvas, 0.45 * skin_colour(a), 0.25 * wing)
    return over(canvas, 0.35 * skin_colour(a), 0.75 * fill(hole, g.pixel, 0.02))


EYE = 0.235  # distance of the eyes from the nose ridge


def eyes(canvas, a, g):
    """White, iris, pupil and catch-light under an upper lid with lashes."""
    sign = jnp.where(g.u < 0, -1.0, 1.0)
    q = jnp.abs(g.u) - EYE
    v = g.y + 0.10 * a.eye_slant * q
    half = 0.145
    arc = 1 - (q / half) ** 2
    steep = jax.lax.rsqrt(1 + (1.3 * q / half) ** 2)
    raised = 0.090 + 0.022 * a.eye_open
    up = (-v - raised * arc) * steep
    low = (v - 0.062 * arc) * steep
    inside = jnp.maximum(up, low)
    opening = fill(inside, g.pixel)
    skin = skin_colour(a)
    crease = fill(jnp.abs(up - 0.045) - 0.008, g.pixel, 0.02) * fill(
        jnp.abs(q) - 0.13, g.pixel, 0.06
    )
    canvas = over(canvas, 0.55 * skin, 0.55 * crease)
    white = jnp.array([0.96, 0.95, 0.94])[:, None, None] * (1 - 0.30 * smooth(up, -0.07, 0.0))
    canvas = over(canvas, white, opening)
    ix, iy = q * sign - 0.042 * a.gaze, v + 0.012
    radius = jnp.sqrt(ix * ix + iy * iy)
    iris = ramp(EYE_COLOUR, a.eye_colour)
    tone = 0.75 + 0.55 * smooth(iy, -0.06, 0.08) - 0.45 * smooth(radius, 0.06, 0.085)
    canvas = over(canvas, iris[:, None, None] * tone, opening * fill(radius - 0.082, g.pixel))
    canvas = over(canvas, jnp.array([0.04, 0.03, 0.04]), opening * fill(radius - 0.038, g.pixel))
    glint = jnp.sqrt((ix - 0.03 * jnp.sign(a.light_x)) ** 2 + (iy + 0.035) ** 2)
    canvas = over(canvas, jnp.ones(3), 0.95 * opening * fill(glint - 0.022, g.pixel))
    lash = jnp.maximum(jnp.abs(up) - 0.017, jnp.abs(q) - half - 0.01)
    canvas = over(canvas, 0.22 * skin * jnp.array([1.0, 0.8, 0.75]), 0.9 * fill(lash, g.pixel))
    under = jnp.maximum(jnp.abs(low) - 0.006, jnp.abs(q) - half)
    return over(canvas, 0.5 * skin, 0.5 * fill(under, g.pixel))


def brows(canvas, a, g):
    q = (jnp.abs(g.u) - EYE - 0.005) / 0.17  # -1 at the nose .. 1 at the temple
    middle = -0.215 - 0.035 * a.brow_height - 0.035 * (1 - q * q) - 0.04 * a.brow_angle * q
    thick = (0.030 + 0.013 * a.brow_weight) * (1 - 0.3 * q)
    shape = both(jnp.abs(g.y - middle) - thick, (jnp.abs(q) - 1) * 0.17, 0.05)
    colour = 0.75 * ramp(HAIR_COLOUR, a.hair_colour) + 0.1 * skin_colour(a)
    return over(canvas, colour, 0.88 * fill(shape, g.pixel, 0.015))


def front_hair(canvas, a, g):
    """Hair in front of the head: the silhouette less an opening for the face."""
    shape, row = hair_shape(a, g)
    hairline, fall, width, curl, blur = row[5:]
    w = jnp.abs(g.u)
    part = 0.28 * a.hair_part
    reach = jnp.sqrt((g.u - part) ** 2 + 0.004)
    line = hairline + fall * reach * reach / (0.3 + reach) + 0.015 * curl * wave(14 * g.u)
    opening = both(w - width - 0.06 * smooth(g.y, -0.1, 0.3), line - g.y, 0.22)
    hair = both(shape, -opening, 0.02)
    there = a.hair_style > 0
    cast = fill(both(g.inside, -opening - 0.07, 0.02), g.pixel, 0.12) * fill(shape, g.pixel)
    canvas = over(canvas, 0.45 * skin_colour(a), 0.35 * cast * there)
    return over(canvas, hair_tone(a, g, curl), fill(hair, g.pixel, blur) * there)


def glasses(canvas, a, g):
    """Thin frames with a faint reflection."""
    q, v = jnp.abs(g.u) - EYE, g.y - 0.005
    lens = jnp.where(
        a.glasses == 1, jnp.sqrt(q * q + v * v + 1e-8) - 0.19, box(q, v, 0.19, 0.145, 0.06)
    )
    bridge = jnp.maximum(jnp.abs(v + 0.05) - 0.014, q + 0.18)
    temple = jnp.maximum(jnp.abs(v + 0.04) - 0.014, jnp.maximum(-q + 0.18, g.inside))
    frame = jnp.minimum(jnp.abs(lens) - 0.017, jnp.minimum(bridge, temple))
    there = a.glasses > 0
    glare = fill(lens, g.pixel) * smooth(-v - 0.4 * g.u, -0.05, 0.15)
    canvas = over(canvas, jnp.ones(3), 0.10 * glare * there)
    return over(canvas, ramp(FRAME_COLOUR, a.frame_colour), 0.95 * fill(frame, g.pixel) * there)


# --- The data set --------------------------------------------------------------------------------


def sample_attributes(key) -> Attributes:
    """Independent attributes: uniform over `RANGES`, kinds over `KINDS`."""
    draws = jax.random.uniform(key, (len(Attributes._fields),))

    def value(name, t):
        if name in KINDS:
            kinds = KINDS[name]
            repeats = max(kinds.count("none") - 1, 0)
            return jnp.maximum((t * len(kinds)).astype(jnp.int32) - repeats, 0)
        lo, hi = RANGES[name]
        return lo + (hi - lo) * t

    return Attributes(*map(value, Attributes._fields, draws))


def draw(attributes: Attributes, size: int) -> jax.Array:
    """The portrait (size, size, 3), float32 in [0, 1]; the same face at every size."""
    grid = make_grid(attributes, size)
    canvas = background(attributes, grid)
    parts = (
        back_hair,
        body,
        ears,
        head,
        mouth,
        facial_hair,
        nostrils,
        eyes,
        brows,
        glasses,
        front_hair,
    )
    for part in parts:
        canvas = part(canvas, attributes, grid)
    return jnp.clip(canvas, 0, 1).transpose(1, 2, 0)


def face(key, size: int) -> tuple[jax.Array, Attributes]:
    """One face and its attributes; a function of the key alone."""
    attributes = sample_attributes(key)
    return draw(attributes, size), attributes
