"""index.html of a run: a page to look at results in, sort and compare them. It needs no network.

Its pictures are in it, so that it can be moved and sent, as long as they have at most `EMBEDDED`
bytes in all. The page of a longer run refers to the files beside it, and the browser loads those
that one scrolls to: with thousands of pictures in it, it would hardly open.
"""

import base64
import string
import urllib.parse
from html import escape
from pathlib import Path

from pulse_jax import curves, video
from pulse_jax.files import counted, one_line, write
from pulse_jax.results import rank
from pulse_jax.search import STATUS

EMBEDDED = 64 * 2**20
TYPES = {".png": "image/png", ".webp": "image/webp", ".mp4": "video/mp4"}
TEMPLATE = string.Template((Path(__file__).parent / "report.html").read_text(encoding="utf-8"))
PICTURE = string.Template("""\
<section class="picture" id="picture-$index">
<h2>$name<small>$summary</small></h2>
<div>
<div class="wipe">
<img class="below" alt="" loading="lazy">
<img class="above pixels" alt="input" loading="lazy" src="$input">
<span class="left">input</span><span class="right"></span>
<input type="range" value="50" step="0.5" aria-label="share of the result behind the input">
</div>
<div class="compare pixels">
<figure><img class="copy" alt="input" loading="lazy"><figcaption>input</figcaption></figure>
<figure>
<img class="lr" alt="result, downscaled" loading="lazy"><figcaption>downscaled result</figcaption>
</figure>
<figure>
<div class="difference">
<img class="lr" alt="their difference" loading="lazy"><img class="copy" alt="" loading="lazy">
</div>
<figcaption>difference × 8</figcaption>
</figure>
</div>
</div>
<div class="details">
<div class="restarts">
<button data-name="bicubic"><img alt="" loading="lazy" src="$bicubic">bicubic</button>
$restarts
</div>
<div class="figures">
$l2
$loss
</div>
$film
<a href="$link/">$folder/</a>
</div>
</section>""")
# Heading of a column → column of results.csv.
COLUMNS = {
    "picture": "image",
    "restart": "restart",
    "l2": "l2_saved",
    "l2 relative": "l2_relative",
    "loss": "loss",
    "best step": "best_step",
    "steps": "steps",
    "status": "status",
}


def save(output, pictures, config):
    """Write the page of a run into its folder, about the pictures of which all restarts are done.

    `config`: the run's settings. Raises OSError.
    """
    done = [p for p in pictures if p.rows and (p.folder / "results.csv").is_file()]
    files = [path for picture in done for path in picture.folder.iterdir() if path.suffix in TYPES]
    shown = [path for path in files if path.name != "grid.png"]  # it holds the others once more
    embed = sum(path.stat().st_size for path in shown) <= EMBEDDED

    def source(path):
        if not embed:
            return link(path)
        content = base64.b64encode(path.read_bytes()).decode()
        return f"data:{TYPES[path.suffix]};base64,{content}"

    def link(path):
        return escape(urllib.parse.quote(bytes(path.relative_to(output))))

    rows = [row for picture in done for _, row in sorted(picture.rows.items())]
    met = sum(row["status"] == STATUS[0] for row in rows)
    shown = f"{counted(len(done), 'picture')}, {met} of {counted(len(rows), 'restart')} converged"
    page = TEMPLATE.substitute(
        style=curves.STYLE,
        title=text(f"pulse_jax: {config['--generator']}"),
        summary=shown,
        pictures="\n".join(section(i, picture, source, link) for i, picture in enumerate(done)),
        head="".join(map(heading, COLUMNS)),
        rows="\n".join(
            table_row(i, row)
            for i, picture in enumerate(done)
            for _, row in sorted(picture.rows.items())
        ),
        settings="\n".join(
            f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>"
            for name, value in config.items()
        ),
    )
    write(output / "index.html", page)


def text(value):
    """For a page; what can't be shown, in the name of a file, as escapes."""
    return escape(one_line(value))


def section(index, picture, source, link):
    """Of one picture: the wipe, the comparison with the input, all restarts, the curves."""
    folder = picture.folder
    rows = sorted(picture.rows.values(), key=rank)
    met = sum(row["status"] == STATUS[0] for row in rows)
    films = [folder / name for name in video.NAMES if (folder / name).is_file()]
    return PICTURE.substitute(
        index=index,
        name=text(picture.path.name),
        summary=f"{met} of {len(rows)} converged, best l2 {figure(rows[0]['l2_saved'])}",
        input=source(folder / "input.png"),
        bicubic=source(folder / "bicubic.png"),
        restarts="".join(thumbnail(folder, row, source) for row in rows),
        l2=drawing(folder / "l2.svg"),
        loss=drawing(folder / "loss.svg"),
        film=film(films[0], source) if films else "",
        link=link(folder),
        folder=text(folder.name),
    )


def drawing(path):
    """A figure without its style, which the page has once."""
    return path.read_text(encoding="utf-8").replace(f"<style>{curves.STYLE}</style>", "")


def thumbnail(folder, row, source):
    """A restart's button: its image, which it shows large, its l2 and its status."""
    number = int(row["restart"])
    hr, lr = (folder / f"{kind}_{number:02d}.png" for kind in ("hr", "lr"))
    status = row["status"]
    told = f'{number}: {figure(row["l2_saved"])}<br><span class="{status}">{status}</span>'
    if not hr.is_file():
        return f'<button disabled><span class="none">no image</span>{told}</button>\n'
    image = f'<img alt="" loading="lazy" src="{source(hr)}">'
    return f'<button data-name="restart {number}" data-lr="{source(lr)}">{image}{told}</button>\n'


def film(path, source):
    if path.suffix == ".mp4":
        shown = f'<video controls loop muted preload="none" src="{source(path)}"></video>'
    else:
        shown = f'<img alt="the restarts, step by step" loading="lazy" src="{source(path)}">'
    return f"<details><summary>The search as a video</summary>{shown}</details>"


def heading(name):
    kind = "" if name in ("picture", "status") else ' class="number"'
    return f"<th{kind}><button>{name}</button></th>"


def table_row(index, row):
    cells = []
    for column in COLUMNS.values():
        value = text(row[column])
        if column == "image":
            cells.append(f'<td data-value="{value}"><a href="#picture-{index}">{value}</a></td>')
        elif column == "status":
            cells.append(f'<td data-value="{value}" class="{value}">{value}</td>')
        else:
            cells.append(f'<td data-value="{value}" class="number">{figure(row[column])}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def figure(value):
    """A number as tables show it: whole, or with three digits."""
    number = float(value)
    return f"{int(number)}" if number.is_integer() else f"{number:#.3g}"
