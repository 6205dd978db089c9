"""What a posterior's draws say, as files: maps of the mean, the deviation and quantiles."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from pulse_jax.files import write
from pulse_jax.images import save_image

QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}
LEAST = 256  # pixels: the side of a drawn deviation
# Dark is little and light is much, evenly for the eye: the colours of viridis, in ninths.
COLOURS = np.array(
    [
        (68, 1, 84),
        (72, 40, 120),
        (62, 74, 137),
        (49, 104, 142),
        (38, 130, 142),
        (31, 158, 137),
        (53, 183, 121),
        (110, 206, 88),
        (181, 222, 43),
        (253, 231, 37),
    ]
)


def summarise(images: Float[np.ndarray, "n r r c"]) -> dict[str, Float[np.ndarray, "r r c"]]:
    """Mean, standard deviation and quantiles of each value, as float32 and not clipped."""

    def of(row: Float[np.ndarray, "n r c"]) -> dict[str, Float[np.ndarray, "r c"]]:
        quantiles = np.quantile(row, list(QUANTILES.values()), axis=0)
        moments = {"mean": row.mean(0, np.float64), "std": row.std(0, np.float64)}
        return moments | dict(zip(QUANTILES, quantiles, strict=True))

    # Row by row, since each takes copies of its values, in double precision.
    rows = [of(row) for row in images.swapaxes(0, 1)]
    return {name: np.stack([row[name] for row in rows]).astype(np.float32) for name in rows[0]}


def save(folder: Path, name: str, values: Float[np.ndarray, "r r c"]) -> None:
    """Write a map as float32, and as a PNG to look at. Raises OSError."""
    content = io.BytesIO()
    np.save(content, values)
    write(folder / f"{name}.npy", content.getvalue())
    if name == "std":
        write(folder / "std.png", draw_deviation(values))
    else:
        save_image(folder / f"{name}.png", values)


def draw_deviation(std: Float[np.ndarray, "r r c"]) -> bytes:
    """A PNG: each pixel's deviation, the root of the mean square of its channels, and a scale."""
    values = np.sqrt(np.mean(std.astype(np.float64) ** 2, axis=-1))
    top = round_up(float(values.max()))
    zoom = -(-LEAST // len(values))
    side = zoom * len(values)
    gap, bar = side // 32, side // 16
    font = ImageFont.load_default(side // 20)
    sheet = Image.new("RGB", (side + gap + bar + side // 5, side), "white")
    sheet.paste(Image.fromarray(coloured(values / top).repeat(zoom, 0).repeat(zoom, 1)), (0, 0))
    height = side - 2 * gap
    scale = coloured(np.linspace(1, 0, height)[:, None].repeat(bar, 1))
    sheet.paste(Image.fromarray(scale), (side + gap, gap))
    pen = ImageDraw.Draw(sheet)
    for share in (0, 0.5, 1):
        y, x = gap + (1 - share) * (height - 1), side + gap + bar
        pen.line((x, y, x + gap // 2, y), "black")
        pen.text((x + gap, y), f"{share * top:.3g}", "black", font, anchor="lm")
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    return png.getvalue()


def coloured(shares: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Colours of values from 0 to 1."""
    places = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(shares, places, channel) for channel in COLOURS.T]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, … times a power of ten, as the end of a scale; 1 for 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next((n * power for n in (1, 2, 5) if n * power >= value), 10 * power))
