"""index.html of a run, a page on which to sort and compare its results. It needs no network.

Its pictures are in it, so that it can be moved and sent, as long as they have at most `EMBEDDED`
bytes in all. The page of a longer run refers to the files beside it, and the browser loads those
that one scrolls to: with thousands of pictures in it, it would hardly open.
"""

import base64
import string
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pulse_jax.files import counted, figure, one_line, write
from pulse_jax.generators.reader import undetermined
from pulse_jax.search import STATUS
from pulse_jax.upsampling import curves, video
from pulse_jax.upsampling.pictures import MAPS, Picture
from pulse_jax.upsampling.results import MET, PUT_BACK, Row, rank, verdict

SHOWN = [name for name in MAPS if name != "std"]  # beside the input; it has a scale
EMBEDDED = 64 * 2**20
DARK = 0.15  # half of a dark picture's values are below
TYPES = {".png": "image/png", ".webp": "image/webp", ".mp4": "video/mp4"}
PARTS = Path(__file__).parent / "page"
PAGE, PICTURE = (
    string.Template((PARTS / name).read_text(encoding="utf-8"))
    for name in ("page.html", "picture.html")
)
STYLE, SCRIPT = ((PARTS / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
STRETCH = '<label><input type="checkbox" class="stretch"> Stretch dark tones</label>'


class Kind(NamedTuple):
    """What a page says of the results of a search, or of samples."""

    results: str  # what they are called
    caution: str
    intro: str  # to the results of a picture
    columns: Mapping[str, str]  # heading of a column → column of results.csv
    terms: Mapping[str, str]  # what a term means, shown where one asks for it


L2 = (
    "The result goes through --operator=$operator, as the input has. l2 is the mean squared "
    "difference of the two, for values from 0 to 1. At 0 they are equal. At 0.001 the root of the "
    "mean square is 8 of 255."
)
L2_PUT_BACK = (
    "The result was put back into the photograph and blended with it at the rim. This is the l2 of "
    "what is then cut out and downscaled once more."
)
SEARCH = Kind(
    "restarts",
    """<strong>The results are inventions.</strong> Downscaled again, a result that has
<button class="term" popovertarget="status">converged</button> equals its input up to
<button class="term" popovertarget="eps">eps</button>, but so would countless other images. No
result shows what was really there, and none identifies anybody.""",
    """<p class="faint"><button class="term" popovertarget="restart">Restarts</button>, best first:
number, <button class="term" popovertarget="l2">l2</button>, and whether it
<button class="term" popovertarget="status">converged</button></p>""",
    {
        "picture": "image",
        "seed": "seed",
        "restart": "restart",
        "class": "label",
        "l2": "l2_saved",
        "l2 relative": "l2_relative",
        "l2 put back": "l2_put_back",
        "loss": "loss",
        "best step": "best_step",
        "steps": "steps",
        "status": "status",
    },
    {
        "restart": "A restart is one search, from a starting point of its own. Restarts of the "
        "same input end in different images.",
        "l2": L2,
        "l2 relative": "The l2 as a share of the input's own variance: near 1, a flat image would "
        "fit as well.",
        "l2 put back": L2_PUT_BACK,
        "eps": "eps is the l2 that is good enough. It is $eps in this run, and --eps sets it.",
        "loss": "The loss is what the search lowers: $loss_str. L2 pulls the result towards the "
        "input, and GEOCROSS keeps its style alike at all scales, as real images have it.",
        "best step": "The search found this image, its best, at this step.",
        "steps": "The number of steps that the search made.",
        "status": "A restart has converged if the l2 of its image, as it is saved, is at most eps. "
        "One that missed eps shows the image that came nearest. One that is not finite has no "
        "image.",
    },
)
SAMPLES = Kind(
    "draws",
    """<strong>The draws are inventions.</strong> They are what the generator holds possible, given
the input and its noise. For a picture that it would never make, the
<button class="term" popovertarget="deviation">deviation</button> is too small. No draw shows what
was really there, and none identifies anybody.""",
    """<p class="faint">The mean,
the <button class="term" popovertarget="quantiles">quantiles</button>, and
<button class="term" popovertarget="draw">draws</button> with their
<button class="term" popovertarget="l2">l2</button>: a click shows one large.</p>""",
    {
        "picture": "image",
        "seed": "seed",
        "draw": "restart",
        "chain": "chain",
        "l2": "l2_saved",
        "l2 put back": "l2_put_back",
        "log density": "log_density",
        "acceptance": "acceptance_rate",
        "status": "status",
    },
    {
        "draw": "A draw is an image that the posterior holds as likely as the others. These are "
        "some of all draws, evenly from each chain.",
        "chain": "A chain goes from draw to draw. All chains of a picture have the same posterior, "
        "and began far apart.",
        "l2": L2,
        "l2 put back": L2_PUT_BACK,
        "log density": "The logarithm of prior times likelihood, --noise=$noise.",
        "acceptance": "The share of the chain's proposals that were accepted.",
        "status": "Chains have met if the largest R-hat is at most 1.05. Otherwise they tell "
        "different things, and the mean, the deviation and the quantiles mean nothing.",
        "R-hat": "R-hat compares chains with each other and with themselves, rank-normalised and "
        "split. At 1 nothing tells them apart. It is the largest of the log density, of 20 random "
        "projections of the image, and of its attributes, if they are read.",
        "ESS": "ESS is the effective sample size: so many independent draws would tell as much. It "
        "is the smallest of the same statistics, in the bulk and in the tails.",
        "deviation": "The standard deviation of each pixel over all draws, for values from 0 to 1. "
        "It is that of the generator's images.",
        "attributes": "What a small network reads off each draw. It knows the drawn faces that the "
        "generator has learnt from, and errs now and then.",
        "quantiles": "In one of twenty draws, a value is below its quantile q05; in one of twenty, "
        "it is above q95; q50 is the median.",
    },
)


def save(
    output: Path,
    pictures: Sequence[Picture],
    config: Mapping[str, Any],
    failures: Sequence[str],
    command: str,
) -> None:
    """Write the page of a run into its folder, about all restarts that are done.

    `config`: the run's settings. `failures`: a line for each picture that failed. `command`: the
    line that repeats it. Raises OSError.
    """
    kind = SEARCH if config["--noise"] is None else SAMPLES
    shown = [picture for picture in pictures if picture.rows and not picture.error]
    several = len({picture.seed for picture in pictures}) > 1
    numbered = [(i, row) for i, p in enumerate(shown) for _, row in sorted(p.rows.items())]
    rows = [row for _, row in numbered]
    columns, terms = columns_and_terms(kind, rows, several)
    source, link = addresses(output, shown)
    restarts = config["--restarts"]
    told = (
        converged(rows, len(shown) * restarts)
        if kind is SEARCH
        else [f"the chains of {sum(p.rows[1]['status'] == MET for p in shown)} have met"]
    )
    page = PAGE.substitute(
        style=STYLE + curves.STYLE,
        script=SCRIPT,
        title=text(f"{config['--generator']}, seed{'s' * several} {config['--seeds']}"),
        summary=", ".join((counted_pictures(shown), *told)),
        caution=kind.caution,
        results=kind.results,
        failed=failed(failures),
        pictures="\n".join(
            section(i, picture, kind, restarts, several, source, link)
            for i, picture in enumerate(shown)
        ),
        columns=", ".join(term(name) for name in columns if name in terms),
        head="".join(map(heading, columns)),
        rows="\n".join(table_row(i, row, columns.values()) for i, row in numbered),
        command=text(command),
        settings="\n".join(
            f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>"
            for name, value in config.items()
        ),
        terms=definitions(terms, config),
    )
    write(output / "index.html", page)


def columns_and_terms(
    kind: Kind, rows: Sequence[Row], several: bool
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The columns of the table that rows have, and the terms of these and of no column."""
    # Where there are no classes, or nothing was cut out.
    needless = {"label", "l2_put_back"} - {name for row in rows for name in row}
    needless |= set() if several else {"seed"}
    columns = {name: column for name, column in kind.columns.items() if column not in needless}
    terms = {
        name: told for name, told in kind.terms.items() if kind.columns.get(name) not in needless
    }
    return columns, terms


def addresses(
    output: Path, pictures: Sequence[Picture]
) -> tuple[Callable[[Path], str], Callable[[Path], str]]:
    """How the page refers to a file to show it, by its content if all fit, and to open it."""
    files = [path for p in pictures for path in p.place.iterdir() if path.suffix in TYPES]
    used = [path for path in files if path.name != "grid.png"]  # it holds the others once more
    embed = sum(path.stat().st_size for path in used) <= EMBEDDED

    def source(path: Path) -> str:
        if not embed:
            return link(path)
        content = base64.b64encode(path.read_bytes()).decode()
        return f"data:{TYPES[path.suffix]};base64,{content}"

    def link(path: Path) -> str:
        return escape(urllib.parse.quote(bytes(path.relative_to(output))))

    return source, link


def counted_pictures(pictures: Sequence[Picture]) -> str:
    """How many there are, and of how many seeds each, if all have the same ones."""
    names, seeds = ({getattr(p, key) for p in pictures} for key in ("name", "seed"))
    if len(seeds) > 1 and len(names) * len(seeds) == len(pictures):
        return f"{counted(len(names), 'picture')} × {len(seeds)} seeds"
    return counted(len(pictures), "picture")


def text(value: Any) -> str:
    """Text for a page. What can't be shown, as in the name of a file, becomes escapes."""
    return escape(one_line(value))


def paragraph(told: str, kind: str = "faint") -> str:
    return f'<p class="wide {kind}">{text(told)}</p>'


def converged(rows: Sequence[Row], total: int) -> Iterator[str]:
    """How many of `total` restarts have converged and, if not all are, how many are done."""
    if len(rows) < total:
        yield f"{len(rows)} of {counted(total, 'restart')} done so far"
    met = sum(row["status"] == STATUS[0] for row in rows)
    yield f"{met} of {counted(len(rows), 'restart')} converged"


def failed(failures: Sequence[str]) -> str:
    """Why pictures have no results, if there are such pictures."""
    if not failures:
        return ""
    items = "".join(f"<li>{text(failure)}</li>" for failure in failures)
    heading = f"<h2>{counted(len(failures), 'failure')}</h2>"
    return f'<section class="failed">{heading}<ul>{items}</ul></section>'


def term(name: str) -> str:
    """A word that tells what it means when it is clicked or touched."""
    return f'<button class="term" popovertarget="{identifier(name)}">{name}</button>'


def definitions(terms: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """What terms mean in this run; each is hidden until it is asked for."""
    values = {name: config[f"--{name}"] for name in ("eps", "loss_str", "operator", "noise")}
    meanings = {name: string.Template(told).substitute(values) for name, told in terms.items()}
    return "\n".join(
        f'<div popover id="{identifier(name)}">{text(told)}</div>'
        for name, told in meanings.items()
    )


def identifier(name: str) -> str:
    return name.replace(" ", "-")


def section(
    index: int,
    picture: Picture,
    kind: Kind,
    restarts: int,
    several: bool,
    source: Callable[[Path], str],
    link: Callable[[Path], str],
) -> str:
    """A picture's part: the wipe, the comparison with the input, all restarts, the curves."""
    folder = picture.place
    rows = sorted(picture.rows.values(), key=rank)
    if kind is SEARCH:
        came_to = ", ".join(converged(rows, restarts))
        if picture.lost:
            came_to = f"{len(rows)} of {counted(len(rows), 'restart')} failed"
        told = f"{came_to}, best l2 {figure(rows[0]['l2_saved'])}"
        maps, figures = "", courses(folder)
    else:
        rows = [row for _, row in sorted(picture.rows.items())]
        told, maps = verdict(rows[0]), "".join(map_button(folder, name, source) for name in SHOWN)
        figures = deviation(folder, rows[0], source) + attributes(picture.shares())
    films = [folder / film for film in video.NAMES if (folder / film).is_file()]
    colour = picture.target[..., :3]
    dark = np.median(colour) < DARK
    return PICTURE.substitute(
        index=index,
        name=text(f"{picture.name}, seed {picture.seed}" if several else picture.name),
        summary=told,
        intro=kind.intro,
        figures=figures,
        prepared=paragraph(f"The picture was {picture.prepared}.") if picture.prepared else "",
        unlike=paragraph(f"This picture is {picture.unlike}.", "missed") if picture.unlike else "",
        gain=f"{1 / max(np.quantile(colour, 0.99), 1 / 255):.3g}",
        stretch=STRETCH if dark else "",
        input=source(folder / "input.png"),
        bicubic=source(folder / "bicubic.png"),
        restarts=maps + "".join(thumbnail(folder, row, source) for row in rows),
        put_back=put_back(folder / PUT_BACK, rows[0], source),
        film=film(films[0], source) if films else "",
        link=link(folder),
        folder=text(f"seed_{picture.seed}/{folder.name}" if several else folder.name),
    )


def courses(folder: Path) -> str:
    """The searches step by step."""
    return f"""<div class="figures">
{drawing(folder / "l2.svg")}
{drawing(folder / "loss.svg")}
</div>
<p class="faint">The searches step by step: {term("l2")}, with
{term("eps")} as a dashed line, and the
{term("loss")}.</p>"""


def deviation(folder: Path, row: Row, source: Callable[[Path], str]) -> str:
    """The deviation, and whether the chains have met."""
    warning = "" if row["status"] == MET else " The maps must not be used."
    status = f'<span class="{row["status"]}">The chains have {row["status"]}.{warning}</span>'
    figures = f"{term('R-hat')} {row['rhat']:.2f}, {term('ESS')} {row['ess']:.0f}"
    image = f'<img alt="deviation" loading="lazy" src="{source(folder / "std.png")}">'
    caption = f"<figcaption>The {term('deviation')} of each pixel</figcaption>"
    return f"""<p>{status} {figures}</p>
<figure class="deviation">{image}{caption}</figure>"""


def attributes(shares: Mapping[str, Mapping[str, float]]) -> str:
    """Which attributes the picture leaves open, and the share of draws with each kind."""
    if not shares:
        return ""
    left_open = undetermined(shares)
    told = f"The picture doesn't determine: {left_open}." if left_open else "All draws agree."
    rows = "".join(
        f"<tr><td>{text(name.replace('_', ' '))}</td><td>{kinds_told(kinds)}</td></tr>"
        for name, kinds in shares.items()
    )
    return f"""<p>{text(told)}</p>
<details><summary>The {term("attributes")} of the draws</summary>
<table class="attributes"><tbody>{rows}</tbody></table></details>"""


def kinds_told(kinds: Mapping[str, float]) -> str:
    """The kinds that there are and their shares, the most frequent first."""
    found = sorted(kinds.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{text(kind)} {share:.0%}" for kind, share in found if share)


def map_button(folder: Path, name: str, source: Callable[[Path], str]) -> str:
    """The button of a map, which it shows large. The mean can be compared with the input."""
    path, lr = folder / f"{name}.png", folder / f"lr_{name}.png"
    compared = f' data-lr="{source(lr)}"' if lr.is_file() else ""
    image = f'<img alt="" loading="lazy" src="{source(path)}">'
    return f'<button data-name="{name}" data-file="{path.name}"{compared}>{image}{name}</button>\n'


def drawing(path: Path) -> str:
    """A figure without its style, which the page has once."""
    return path.read_text(encoding="utf-8").replace(f"<style>{curves.STYLE}</style>", "")


def thumbnail(folder: Path, row: Row, source: Callable[[Path], str]) -> str:
    """A restart's button: its image, which it shows large, its l2 and its status."""
    number = int(row["restart"])
    hr, lr = (folder / f"{kind}_{number:02d}.png" for kind in ("hr", "lr"))
    status = row["status"]
    noun, told = "draw" if "chain" in row else "restart", f"{number}: {figure(row['l2_saved'])}"
    if noun == "restart":  # of draws, it is told of all together
        told += f'<br><span class="{status}">{status}</span>'
    if not hr.is_file():
        return f'<button disabled><span class="none">no image</span>{told}</button>\n'
    image = f'<img alt="" loading="lazy" src="{source(hr)}">'
    data = f'data-name="{noun} {number}" data-file="{hr.name}" data-lr="{source(lr)}"'
    return f"<button {data}>{image}{told}</button>\n"


def put_back(path: Path, best: Row, source: Callable[[Path], str]) -> str:
    """The photograph with the best result, if the picture was cut out of one."""
    if not path.is_file():
        return ""
    image = f'<img alt="the photograph with the best result" loading="lazy" src="{source(path)}">'
    told = f"Put back into the photograph, with an l2 of {figure(best['l2_put_back'])}"
    return f"<details><summary>{told}</summary>{image}</details>"


def film(path: Path, source: Callable[[Path], str]) -> str:
    if path.suffix == ".mp4":
        shown = f'<video controls loop muted preload="none" src="{source(path)}"></video>'
    else:
        shown = f'<img alt="the restarts, step by step" loading="lazy" src="{source(path)}">'
    return f"<details><summary>The search as a video</summary>{shown}</details>"


def heading(name: str) -> str:
    kind = "" if name in ("picture", "status") else ' class="number"'
    return f"<th{kind}><button>{name}</button></th>"


def table_row(index: int, row: Row, columns: Iterable[str]) -> str:
    cells = []
    for column in columns:
        value = text(row[column])
        if column == "image":
            cells.append(f'<td data-value="{value}"><a href="#picture-{index}">{value}</a></td>')
        elif column == "status":
            cells.append(f'<td data-value="{value}" class="{value}">{value}</td>')
        else:
            cells.append(f'<td data-value="{value}" class="number">{figure(row[column])}</td>')
    return f"<tr>{''.join(cells)}</tr>"
