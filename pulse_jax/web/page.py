"""The page, made with Gradio: a form, what comes of it, and the run's own page below."""

import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from starlette.background import BackgroundTask

from pulse_jax.generators import checkpoint
from pulse_jax.upsampling.settings import RECIPES
from pulse_jax.web.desk import BYTES, CROPS, OPERATORS, RESTARTS, Desk, Form, View, square_at

TITLE = "pulse_jax"
INTRO = """# pulse_jax
One small picture becomes many large ones, all of which downscale to it. They are inventions: none
shows what was really there, and none identifies anybody."""
CROP_LABELS = "whole picture", "middle", "each face", "square by hand"
# Whatever a library's page refers to, the browser loads from here or not at all.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'"
)
STYLE = """
#results img, #picture img { image-rendering: pixelated; }
#results .grid-container { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
#run iframe { width: 100%; height: 80vh; border: 0; }
footer { display: none !important; }
"""
FONT = ["system-ui", "sans-serif"]  # which are on the visitor's machine


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
    app = gr.mount_gradio_app(
        app,
        make_page(desk),
        path="/",
        allowed_paths=[str(desk.results)],
        max_file_size=BYTES,
        ssr_mode=False,
        theme=gr.themes.Default(font=FONT, font_mono=["monospace"]),
        css=STYLE,
        footer_links=[],
    )
    return Headed(app)


def make_download(results: Path) -> Callable[[str], FileResponse]:
    """A function that answers with all that a search has written, as a zip archive."""

    def download(name: str) -> FileResponse:
        folder = results / name
        if folder.resolve().parent != results.resolve() or not folder.is_dir():
            raise HTTPException(404)
        with tempfile.NamedTemporaryFile(suffix=".zip", delete=False) as file:
            pack(folder, Path(file.name))
        remove = BackgroundTask(Path(file.name).unlink)
        return FileResponse(file.name, filename=f"{name}.zip", background=remove)

    return download


def pack(folder: Path, archive: Path) -> None:
    """Write all files of a folder into an archive, also while a search adds to them."""
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".tmp":
                packed.write(path, path.relative_to(folder.parent))


def make_page(desk: Desk) -> gr.Blocks:
    """The page, on which each visitor's searches go to the desk."""

    def start(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        for view in desk.search(str(request.session_hash), Form(*values)):
            yield shown(view)

    def stop(request: gr.Request) -> None:
        desk.stop(str(request.session_hash))

    def point(path: str, crop: str, square: str, event: gr.SelectData) -> Any:
        x, y = event.index
        return square_at(path, x, y, square) if crop == "square" else gr.skip()

    with gr.Blocks(
        analytics_enabled=False, title=TITLE, fill_width=True, delete_cache=(3600, 86400)
    ) as page:
        gr.Markdown(INTRO)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                picture = gr.Image(
                    label="Picture",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=280,
                    elem_id="picture",
                )
                generator = gr.Dropdown(
                    list(desk.generators), value=desk.generators[0], label="Generator"
                )
                crop = gr.Radio(
                    list(zip(CROP_LABELS, CROPS, strict=True)),
                    value="center",
                    label="Crop",
                )
                square = gr.Textbox(
                    value="",
                    label="X,Y,SIDE",
                    info="The square's left and upper edge and its side, in pixels. A click into "
                    "the picture puts its middle there.",
                    visible=False,
                )
                input_size = gr.Number(
                    value=8,
                    precision=0,
                    label="Input size",
                    info="Larger pictures are first brought to this side. Empty leaves them as "
                    "they are.",
                )
                recipe = gr.Radio(list(RECIPES), value="fast", label="Recipe")
                restarts = gr.Slider(
                    1, RESTARTS, 8, step=1, label="Restarts", info="A picture gets so many results."
                )
                operator = gr.Dropdown(
                    list(OPERATORS),
                    value="bicubic",
                    label="Operator",
                    info="The picture is assumed to have been degraded so.",
                )
            with gr.Column(scale=2, min_width=320):
                with gr.Row():
                    begin = gr.Button("Upsample", variant="primary")
                    cancel = gr.Button("Stop", variant="stop", interactive=False)
                told = gr.Markdown(elem_id="told")
                results = gr.Gallery(
                    label="Results", columns=4, format="png", elem_id="results", interactive=False
                )
        run = gr.HTML(elem_id="run")
        if found := examples(desk.generators):
            gr.Examples(found, [picture, generator, crop, input_size], examples_per_page=4)

        inputs = [picture, generator, operator, recipe, restarts, crop, square, input_size]
        outputs = [told, results, run, begin, cancel]
        # The desk has a queue of its own, in which a visitor sees the place.
        begin.click(start, inputs, outputs, concurrency_limit=None, show_progress="hidden")
        cancel.click(stop, queue=False)
        page.unload(stop)
        crop.change(lambda chosen: gr.update(visible=chosen == "square"), crop, square, queue=False)
        picture.select(point, [picture, crop, square], square, queue=False, show_progress="hidden")
    return page


def shown(view: View) -> tuple[Any, ...]:
    """A view as the page shows it: text, gallery, the run's page, and which buttons work."""
    told = escape(view.told, quote=False)
    run = "" if view.folder is None else embedded(view.folder.name)
    buttons = gr.update(interactive=view.ended), gr.update(interactive=not view.ended)
    return f"**{told}**" if view.failed else told, list(view.images), run, *buttons


def embedded(name: str) -> str:
    """The page of a search's results, with a link to it and one to all of its files."""
    return (
        f'<p><a href="results/{name}/index.html" target="_blank">Open these results alone</a> · '
        f'<a href="download/{name}.zip" download>Download everything</a></p>'
        f'<iframe title="Results" src="results/{name}/index.html"></iframe>'
    )


def examples(generators: Sequence[str]) -> list[list[Any]]:
    """The pictures that come with generators, and what to choose for them."""
    folders = {name: checkpoint.bundled().get(name, Path(name)) / "examples" for name in generators}
    return [
        [str(path), name, "whole", _side(path)]
        for name, folder in folders.items()
        for path in sorted(folder.glob("*.png"))
    ]


def _side(path: Path) -> int:
    with Image.open(path) as image:
        return image.width
