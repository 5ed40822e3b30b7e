"""A local web page: drop a photo, and see each model's answer and attention map.

Needs Gradio (requirements-demo.txt). The page loads everything from 127.0.0.1.
"""

import html
import os
import re
from base64 import b64encode
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from landmarks import images
from landmarks.images import Unfit
from landmarks.serving import overlay, recognizer
from landmarks.serving.recognizer import Answer, Recognizer
from landmarks.similar import Gallery, Neighbour
from landmarks.stage import UserError

from PIL import Image

HOST = "127.0.0.1"
UPLOADS = TemporaryDirectory(prefix="landmarks-")  # other users cannot read it; removed when this process ends
# Gradio reads these. Without the first two, it sends usage data, and asks a hub for files.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": UPLOADS.name}
for proxy in ("all_proxy", "http_proxy", "https_proxy"):  # the page asks this machine only
    os.environ.pop(proxy, None)
    os.environ.pop(proxy.upper(), None)
try:
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ImportError as error:
    raise UserError(f"serve: {error.name} is missing; pip install --no-deps -r requirements-demo.txt") from None

MEGABYTES = 20  # of an upload
HOUR = 3600  # seconds
TOP = 5  # landmarks shown
SIMILAR = 5  # training pictures shown
OPACITY = 0.6  # of the map, initially
REASONS = {
    "broken": "is not a readable picture",
    "empty": "is empty",
    "huge": f"is too large: at most {images.MAX_PIXELS // 1_000_000} megapixels",
    "narrow": f"is too narrow: one side is more than {images.MAX_ASPECT} times the other",
    "small": f"is too small: at least {images.MIN_SIDE} pixels each way",
}
STYLE = """
footer {display: none !important}
#similar figure {display: inline-block; width: 160px; margin: 8px; vertical-align: top; overflow-wrap: anywhere}
"""


class Seen(NamedTuple):
    """What the page remembers of a photo, to redraw it when the slider moves."""

    image: Image.Image
    answers: list[Answer]


def look(models: list[Recognizer], path: Path) -> Seen:
    """Every model's answer. Raises `Unfit` if the file is not a usable picture."""
    data = recognizer.read_bytes(path)
    answers = [model.answer([model.view(data)])[0] for model in models]
    return Seen(overlay.decode(data), answers)


def plain(text: str) -> str:
    """Markdown that shows exactly this text."""
    return re.sub(r"([!-/:-@[-`{-~])", r"\\\1", text)


def apology(name: str, unfit: Unfit) -> str:
    """Markdown: why a file has no answer, and which formats do."""
    reason = REASONS.get(str(unfit), f"cannot be read ({unfit})")
    return f"Sorry, **{plain(name)}** {reason}. Accepted formats: {', '.join(images.FORMATS)}."


def picture(seen: Seen, column: int, opacity: float) -> Image.Image:
    """The photo with the map of the model at `column`; without a map, only its surroundings are darkened."""
    answer = seen.answers[column]
    return overlay.draw(seen.image, answer.map, answer.box, opacity)


def verdict(model: Recognizer, answer: Answer) -> str:
    """Markdown: the best landmark, or that the photo probably shows none of them."""
    if model.known(answer):
        return f"It looks like **{plain(title(model.best(answer, 1)[0]))}**."
    return f"Probably **none of the known landmarks**: the best is below {100 * model.threshold:.1f} %. Otherwise:"


def similar_pictures(gallery: Gallery, answer: Answer) -> str:
    """HTML: the most similar training pictures with landmark, distance and id."""
    figures = []
    for other in gallery.nearest(answer.vector, SIMILAR):
        data = other.thumbnail and b64encode(other.thumbnail).decode()
        image = f'<img src="data:image/jpeg;base64,{data}" alt="">' if data else ""
        lines = [title(other), f"distance {other.distance:.3f}", other.id]
        figures.append(f"<figure>{image}<figcaption>{'<br>'.join(map(html.escape, lines))}</figcaption></figure>")
    return f"<h3>The most similar training pictures</h3>{''.join(figures)}"


def title(guess: recognizer.Guess | Neighbour) -> str:
    return f"{guess.name} ({guess.landmark_id})" if guess.name else guess.landmark_id


def page(models: list[Recognizer], examples: list[Path]) -> "gr.Blocks":
    """The page, with `models` side by side and `examples` to click on.

    Below them are similar training pictures, compared by the first model whose folder has some.
    """
    galleries = ((column, model.gallery) for column, model in enumerate(models) if model.has_gallery)
    comparing = next(galleries, None)  # reads it, so a broken file is an error before the page opens

    def show(path: str | None, opacity: float) -> list:
        """The message, what the page remembers, each model's verdict, picture and bars, and the similar pictures."""
        nothing = [None] * (3 * len(models) + 1)
        if not path:  # the user removed the file
            return ["", None, *nothing]
        try:
            seen = look(models, Path(path))
        except Unfit as unfit:
            return [apology(Path(path).name, unfit), None, *nothing]
        cells: list = ["", seen]
        for column, (model, answer) in enumerate(zip(models, seen.answers, strict=True)):
            bars = {title(guess): guess.confidence for guess in model.best(answer, TOP)}
            cells += [verdict(model, answer), picture(seen, column, opacity), bars]
        if comparing is None:
            return [*cells, None]
        column, gallery = comparing
        return [*cells, similar_pictures(gallery, seen.answers[column])]

    def click(event: gr.SelectData, opacity: float) -> list:
        return show(str(examples[event.index]), opacity)

    def slide(seen: Seen | None, opacity: float) -> list:
        return [None if seen is None else picture(seen, column, opacity) for column in range(len(models))]

    # Photos and maps of visitors are deleted within two hours, and when the server ends.
    with gr.Blocks(title="Landmarks", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as blocks:
        synthetic = any(model.facts["params"]["data"]["source"] == "sample" for model in models)
        known = " The models know only synthetic landmarks, no real ones." if synthetic else ""
        gr.Markdown(f"# Which landmark is it?\nDrop a photo, and see what each model recognises.{known}")
        remembered = gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                file = gr.File(label=f"A photo, up to {MEGABYTES} MB", height=150, elem_id="photo")
                message = gr.Markdown(elem_id="message")
                slider = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity of the map", elem_id="opacity")
                if examples:
                    gallery = gr.Gallery(
                        [str(path) for path in examples],
                        label="Or one of these test pictures",
                        columns=2,
                        height="auto",
                        allow_preview=False,
                        buttons=[],
                        elem_id="examples",
                    )
            cells = []
            for column, model in enumerate(models):
                with gr.Column(scale=2, min_width=260):
                    gr.Markdown(f"### {plain(model.facts['name'])}")
                    cells += [
                        gr.Markdown(min_height=50, elem_id=f"verdict-{column}"),
                        gr.Image(label="where it looks", format="png", buttons=["fullscreen"], elem_id=f"map-{column}"),
                        gr.Label(label="confidence", num_top_classes=TOP, elem_id=f"bars-{column}"),
                    ]
        cells.append(gr.HTML(elem_id="similar"))
        file.change(show, [file, slider], [message, remembered, *cells], api_visibility="private")
        slider.change(slide, [remembered, slider], cells[1:-1:3], api_visibility="private", show_progress="hidden")
        if examples:
            gallery.select(click, slider, [message, remembered, *cells], api_visibility="private")
    return blocks


def serve(models: list[Recognizer], folders: list[Path], port: int | None) -> None:
    """Serves the page on 127.0.0.1 until Ctrl-C; the examples are from the first folder that has any."""
    found = [folder / "examples" for folder in folders if (folder / "examples").is_dir()]
    examples = recognizer.pictures(found[0]) if found else []
    # The browser's own fonts: others would be loaded from the internet.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    blocks = page(models, examples)
    try:
        blocks.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            ssr_mode=False,
            max_file_size=f"{MEGABYTES}mb",
            allowed_paths=[str(path.parent.resolve()) for path in examples[:1]],
            footer_links=[],
            theme=theme,
            css=STYLE,
            # Otherwise a web site could give its own name this address, and read the answers.
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]},
        )
    except OSError:
        raise UserError(f"--port: {port or 'every port from 7860'} is taken or forbidden; give another") from None
