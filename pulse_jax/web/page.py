"""The page, made with Gradio: a form, what comes of it, and the run's own page below."""

import contextlib
import tempfile
import time
import zipfile
from abc import ABCMeta
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, urljoin

import gradio as gr
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from starlette.background import BackgroundTask

from pulse_jax.files import expanded, one_line
from pulse_jax.generators import checkpoint
from pulse_jax.upsampling.settings import RECIPES
from pulse_jax.web.desk import (
    BYTES,
    CROPS,
    OPERATORS,
    RESTARTS,
    Desk,
    Form,
    View,
    size_of,
    square_at,
)
from pulse_jax.web.task import Shown

TITLE = "pulse_jax"
INTRO = """# pulse_jax
One small picture becomes many large ones, all of which downscale to it. They are inventions: none
shows what was really there, and none identifies anybody. Pictures and results stay on this server
until its owner removes them."""
CHOOSE = "A click on a result chooses it. It can then be varied, refined, and put back."
CROP_LABELS = "whole picture", "middle", "each face", "square by hand"
ABOUT = """*Vary* searches for others near the chosen image. *Refine* goes on from it until its
l2, the mean squared difference from the picture once it is downscaled, is a tenth. *Put back* shows
it in the photograph, if a square was cut out of one."""
# Whatever a library's page refers to, the browser loads from here or not at all.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'"
)
STYLE = """
#results img, #picture img, #cut { image-rendering: pixelated; }
#picture .image-frame img { width: 100%; height: 100%; object-fit: contain; }
#cut div { width: 8rem; aspect-ratio: 1; background-repeat: no-repeat; }
#results .grid-wrap { padding-top: 2.25rem; }
#results .thumbnail-lg, #results .thumbnail-lg img { aspect-ratio: auto; height: auto; }
#results .caption-label { position: static; max-width: none; border: 0; text-align: center;
  white-space: normal; }
#results .grid-container { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
#run iframe { width: 100%; height: 80vh; border: 0; }
#ways button { white-space: nowrap; padding-inline: .5rem; }
#photograph img { max-width: 100%; max-height: 80vh; }
footer { display: none !important; }
"""
Updates: TypeAlias = Iterator[tuple[Any, ...]]  # of the page, in the order of its outputs
FONT = ["system-ui", "sans-serif"]  # which are on the visitor's machine


def uploaded(component: gr.Image, payload: Any) -> str | None:
    """The path of an upload, whatever it holds. Raises gr.Error for any other file."""
    if payload is None or not payload.path:
        return None
    if not Path(payload.path).resolve().is_relative_to(Path(component.GRADIO_CACHE).resolve()):
        raise gr.Error("this picture wasn't uploaded")
    return str(payload.path)


# Gradio would open a picture, and tell of a bad one in its own words. For a class statement, its
# metaclass would write a file beside this one.
Picture = ABCMeta.__new__(type(gr.Image), "Image", (gr.Image,), {"preprocess": uploaded})


class Headed:
    """An application whose answers say what a browser may load."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def headed(message: Any) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY.encode())
                message = message | {"headers": [*message.get("headers", ()), header]}
            await send(message)

        await self.app(scope, receive, headed)


def make_app(desk: Desk) -> Headed:
    """The server's application: the page, and the results of its searches."""
    app = FastAPI(openapi_url=None)
    app.mount("/results", StaticFiles(directory=desk.results))
    app.get("/download/{name}.zip")(make_download(desk.results))
    page = make_page(desk)
    page.has_launched = True  # else Gradio takes any file of the server that a request names
    app = gr.mount_gradio_app(
        app,
        page,
        path="/",
        max_file_size=BYTES,
        ssr_mode=False,
        theme=gr.themes.Default(font=FONT, font_mono=["monospace"]).set(
            block_info_text_color="*neutral_600"  # Gradio's is hard to read on white
        ),
        css=STYLE,
        footer_links=[],
    )
    return Headed(app)


def make_download(results: Path) -> Callable[[str], FileResponse]:
    """A function that answers with all that a search has written, as a zip archive."""

    def download(name: str) -> FileResponse:
        there = (path for path in results.iterdir() if path.name == name and path.is_dir())
        if (folder := next(there, None)) is None:
            raise HTTPException(404)
        with tempfile.NamedTemporaryFile(suffix=".zip", delete=False) as file:
            archive = Path(file.name)
        try:
            pack(folder, archive)
        except OSError:  # the disk is full, which the archive makes no better
            archive.unlink()
            raise
        remove = BackgroundTask(archive.unlink)
        return FileResponse(archive, filename=f"{name}.zip", background=remove)

    return download


def pack(folder: Path, archive: Path) -> None:
    """Write all files of a folder into an archive, also while a search adds to them."""
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".tmp":
                with contextlib.suppress(FileNotFoundError):  # a result has taken its place
                    packed.write(path, path.relative_to(folder.parent))


def make_page(desk: Desk) -> gr.Blocks:
    """The page, on which each visitor's searches go to the desk."""
    answers, found = Answers(desk), examples(desk.generators)
    with gr.Blocks(
        analytics_enabled=False, title=TITLE, fill_width=True, delete_cache=(3600, 86400)
    ) as page:
        gr.Markdown(INTRO)
        run = gr.HTML(elem_id="run", render=False)  # below both columns
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                form = make_form(desk.generators, {name: side for _, name, _, side in found})
            with gr.Column(scale=2, min_width=320):
                make_results(form, run, answers)
        run.render()
        if found:
            filled = [form[name] for name in ("picture", "generator", "crop", "input_size")]
            gr.Examples(found, filled, examples_per_page=4)
        page.unload(answers.leave)
    return page


class Answers:
    """What the desk answers to what a visitor does. Each method is an event of the page."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def start(self, request: gr.Request, *values: Any) -> Updates:
        yield from self._seen(request, self.desk.search(visitor(request), Form(*values)))

    def vary(self, request: gr.Request, degrees: float, restarts: float) -> Updates:
        yield from self._seen(request, self.desk.vary(visitor(request), degrees, restarts))

    def refine(self, request: gr.Request) -> Updates:
        yield from self._seen(request, self.desk.refine(visitor(request)))

    def _seen(self, request: gr.Request, views: Iterator[View]) -> Updates:
        for view in views:
            yield shown(view, partial(address, request, self.desk.results))

    def choose(self, request: gr.Request, event: gr.SelectData) -> tuple[Any, ...]:
        name = visitor(request)
        chosen = self.desk.choose(name, event.index)
        return *panel_of(chosen, True, not self.desk.is_busy(name)), ""

    def put_back(self, request: gr.Request) -> tuple[Any, str]:
        try:
            path, told = self.desk.put_back(visitor(request))
        except (ValueError, OSError) as error:
            return f"**{escape(one_line(error), quote=False)}**", ""
        source = address(request, self.desk.results, path, str(time.time_ns()))
        link = f'<a href="{source}" download>Download this photograph</a>'
        image = f'<img alt="the photograph with the chosen result" src="{source}">'
        return gr.skip(), f"<p>{escape(told)} · {link}</p>{image}"

    def stop(self, request: gr.Request) -> None:
        self.desk.stop(visitor(request))

    def leave(self, request: gr.Request) -> None:
        self.desk.leave(visitor(request))


def make_form(generators: Sequence[str], sides: Mapping[str, int]) -> dict[str, Any]:
    """The fields of `Form`. `sides`: of pictures that suit a generator, where they are known."""
    form: dict[str, Any] = {}
    form["picture"] = Picture(
        label="Picture",
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=280,
        elem_id="picture",
    )
    form["generator"] = gr.Dropdown(
        list(generators),
        value=generators[0],
        label="Generator",
        info="It makes the images, and knows only what it has learnt from.",
    )
    form["crop"] = gr.Radio(
        list(zip(CROP_LABELS, CROPS, strict=True)),
        value="center",
        label="Crop",
        info="This square of the picture is searched for.",
    )
    form["square"] = make_square(form["picture"], form["crop"])
    form["input_size"] = gr.Number(
        value=sides.get(generators[0], 16),
        precision=0,
        label="Input size",
        info="Larger pictures are first brought to this side. Empty leaves them as they are.",
    )
    form["generator"].input(
        lambda chosen: sides.get(chosen, gr.skip()),
        form["generator"],
        form["input_size"],
        queue=False,
    )
    form["recipe"] = gr.Radio(
        list(RECIPES),
        value="fast",
        label="Recipe",
        info="fast and original search for images that fit. posterior draws samples instead, which "
        "tell what the picture leaves open, and takes longer.",
    )
    form["restarts"] = gr.Slider(
        1, RESTARTS, 8, step=1, label="Restarts", info="A picture gets so many results."
    )
    form["operator"] = gr.Dropdown(
        list(OPERATORS),
        value="bicubic",
        label="Operator",
        info="The picture is assumed to have been degraded so.",
    )
    return form


def make_square(picture: gr.Image, crop: gr.Radio) -> gr.Textbox:
    """The field of a square by hand, which a click into the picture fills, and what it cuts out."""
    square = gr.Textbox(
        value="",
        label="X,Y,SIDE",
        info="The square's left and upper edge and its side, in pixels. A click into the picture "
        "puts its middle there.",
        visible=False,
    )
    cut = gr.HTML(elem_id="cut", visible=False)

    def point(path: str | None, crop: str, square: str, event: gr.SelectData) -> Any:
        if path is None or crop != "square":
            return gr.skip()
        x, y = event.index
        try:
            return square_at(path, x, y, square)
        except OSError:  # what is wrong with the picture is told when it is searched for
            return gr.skip()

    def show_square(path: str | None, crop: str, square: str) -> Any:
        shown = cut_out(path, square) if path and crop == "square" else ""
        return gr.update(value=shown, visible=bool(shown))

    given = [picture, crop, square]
    crop.change(lambda chosen: gr.update(visible=chosen == "square"), crop, square, queue=False)
    picture.select(point, given, square, queue=False, show_progress="hidden")
    gr.on(
        [picture.change, crop.change, square.change],
        show_square,
        given,
        cut,
        queue=False,
        show_progress="hidden",
        trigger_mode="always_last",
    )
    return square


def make_results(form: Mapping[str, Any], run: gr.HTML, answers: Answers) -> None:
    """The buttons, what comes of them, and what can be done with a result that is chosen."""
    with gr.Row():
        begin = gr.Button("Upsample", variant="primary", min_width=120)
        cancel = gr.Button("Stop", variant="stop", interactive=False, min_width=120)
    told = gr.Markdown(elem_id="told")
    results = gr.Gallery(
        label="Results",
        columns=4,
        elem_id="results",
        interactive=False,
        buttons=["download", "fullscreen"],  # and none that shares
    )
    chosen = gr.Markdown(elem_id="chosen")
    with gr.Column(visible=False) as panel:
        gr.Markdown(ABOUT)
        with gr.Row(elem_id="ways"):
            vary, refine, back = (
                gr.Button(way, min_width=90) for way in ("Vary", "Refine", "Put back")
            )
        degrees = gr.Slider(
            1,
            90,
            20,
            step=1,
            label="Degrees",
            info="Variations begin this far from the chosen image. At 90 they have nothing in "
            "common with it.",
        )
    photograph = gr.HTML(elem_id="photograph")

    about = [chosen, panel, vary, refine, back]
    outputs = [told, results, run, begin, cancel, *about, photograph]
    # The desk has a queue of its own, in which a visitor sees the place.
    own: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    begin.click(answers.start, [form[name] for name in Form._fields], outputs, **own)
    vary.click(answers.vary, [degrees, form["restarts"]], outputs, **own)
    refine.click(answers.refine, None, outputs, **own)
    back.click(answers.put_back, None, [told, photograph], **own)
    results.select(answers.choose, None, [*about, photograph], queue=False, show_progress="hidden")
    cancel.click(answers.stop, queue=False)


def cut_out(path: str, square: str) -> str:
    """What a square X,Y,SIDE has of an uploaded picture, if it is one of such a picture."""
    try:
        (width, height), (x, y, side) = size_of(path), map(int, square.split(","))
    except (OSError, ValueError):
        return ""
    if not (0 < side <= min(width - x, height - y) and min(x, y) >= 0):
        return ""
    # Percentages of a position are shares of what the picture is larger than the square.
    left, top = (100 * at / max(most - side, 1) for at, most in ((x, width), (y, height)))
    shown = (
        f"background-image: url(gradio_api/file={quote(path)}); "
        f"background-position: {left}% {top}%; "
        f"background-size: {100 * width / side}% {100 * height / side}%"
    )
    return f'<div role="img" aria-label="the square" style="{shown}"></div>'


def visitor(request: gr.Request) -> str:
    """A name for the page from which something is asked."""
    return str(request.session_hash)


def address(request: gr.Request, results: Path, path: Path, version: str) -> str:
    """Where the browser finds a file of the results. Another `version` is loaded anew.

    It is absolute, or Gradio would take it for a file, and copy it each time that it changes.
    """
    page = request.headers.get("referer") or str(request.request.base_url)
    relative = quote(path.relative_to(results).as_posix())
    return urljoin(page, f"results/{relative}?{quote(version)}")


def shown(view: View, link: Callable[[Path, str], str]) -> tuple[Any, ...]:
    """A view as the page shows it: in the order of its outputs."""
    told = escape(view.told, quote=False)
    images = [(link(one.path, f"{one.l2}"), one.caption) for one in view.images]
    # Or a new search would show large what takes the place of an earlier one's image.
    # gr.update would leave the None out.
    gallery = gr.update(value=images) if images else gr.Gallery(value=[], selected_index=None)
    run = embedded(view.folders) if view.folders else ""
    buttons = gr.update(interactive=view.ended), gr.update(interactive=not view.ended)
    about = panel_of(view.chosen, bool(images), view.ended)
    told = f"**{told}**" if view.failed else told
    return told, gallery, run, *buttons, *about, gr.skip() if view.ended else ""


def panel_of(chosen: Shown | None, any_images: bool, idle: bool) -> tuple[Any, ...]:
    """What is told of the chosen image, and what can be done with it, unless a search goes on."""
    if chosen is None:
        return CHOOSE * any_images, gr.update(visible=False), *[gr.update()] * 3
    works = gr.update(interactive=idle)
    back = gr.update(interactive=idle, visible=chosen.task.settings.crop is not None)
    return f"**Chosen: {chosen.caption}**", gr.update(visible=True), works, works, back


def embedded(folders: Sequence[Path]) -> str:
    """The page of a visitor's latest search, with links to all, and one to all of their files."""
    last = folders[-1]
    pages = [
        f'<a href="results/{folder.parent.name}/{folder.name}/index.html" target="_blank">'
        f"{folder.name.replace('_', ': ')}</a>"
        for folder in folders
    ]
    return (
        f"<p>Results alone: {', '.join(pages)} · "
        f'<a href="download/{last.parent.name}.zip" download>Download everything</a></p>'
        f'<iframe title="Results" src="results/{last.parent.name}/{last.name}/index.html"></iframe>'
    )


def examples(generators: Sequence[str]) -> list[list[Any]]:
    """The pictures that come with generators, and what to choose for them."""
    bundled = checkpoint.bundled()
    folders = {name: bundled.get(name, expanded(name)) / "examples" for name in generators}
    return [
        [str(path), name, "whole", _side(path)]
        for name, folder in folders.items()
        for path in sorted(folder.glob("*.png"))
    ]


def _side(path: Path) -> int:
    with Image.open(path) as image:
        return image.width
