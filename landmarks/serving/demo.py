"""A local page: drop a photo, see what each model takes it for and where it looks.

Needs Gradio, which requirements-demo.txt brings. The page and what it loads come from 127.0.0.1 alone.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from landmarks import images
from landmarks.images import Unfit
from landmarks.serving import overlay, recognizer
from landmarks.serving.recognizer import Answer, Recognizer
from landmarks.stage import UserError

from PIL import Image

# Read when Gradio is imported: it would ask its makers for news, and a hub for nothing that is needed here.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
try:
    import gradio as gr
except ImportError as error:
    raise UserError(f"serve: {error.name} is missing; pip install --no-deps -r requirements-demo.txt") from None

MEGABYTES = 20  # of an upload
TOP = 5  # landmarks with a bar
OPACITY = 0.6  # of the map, at first
REASONS = {
    "broken": "is no picture that can be read",
    "empty": "is empty",
    "huge": f"is too large: at most {images.MAX_PIXELS // 1_000_000} megapixels",
    "small": f"is too small: at least {images.MIN_SIDE} pixels each way",
}
STYLE = "footer {display: none !important}"


class Seen(NamedTuple):
    """What the page remembers of a photo while its slider is moved."""

    image: Image.Image
    answers: list[Answer]


def look(models: list[Recognizer], path: Path) -> Seen:
    """Every model's answer. Raises `Unfit` when the file is no picture."""
    data = path.read_bytes()
    answers = [model.answer([model.view(data)])[0] for model in models]
    return Seen(images.decode(data, overlay.SHORT_SIDE), answers)


def apology(name: str, unfit: Unfit) -> str:
    """Markdown: why a file has no answer, and what would have."""
    plain = re.sub(r"([^\w .])", r"\\\1", name)
    return f"Sorry, **{plain}** {REASONS[str(unfit)]}. What works: {', '.join(images.FORMATS)}."


def picture(seen: Seen, column: int, opacity: float) -> Image.Image:
    """The photo with the map of the model at `column`; without one, with a frame around what the network saw."""
    answer = seen.answers[column]
    return overlay.draw(seen.image, answer.map, answer.box, opacity)


def verdict(model: Recognizer, answer: Answer) -> str:
    """Markdown: whether it is a known landmark at all."""
    if model.known(answer):
        return f"It looks like **{title(model.best(answer, 1)[0])}**."
    return f"Probably **none of the known landmarks**: the best is below {100 * model.threshold:.1f} %. If one, then:"


def title(guess: recognizer.Guess) -> str:
    return f"{guess.name} ({guess.landmark_id})" if guess.name else guess.landmark_id


def page(models: list[Recognizer], examples: list[Path]) -> "gr.Blocks":
    """The page, with `models` beside each other, and pictures to click on."""

    def show(path: Path | None, opacity: float) -> list:
        """What the page says of the file, remembers of it, and for each model its verdict, picture and bars."""
        nothing = [None] * 3 * len(models)
        if path is None:  # taken away
            return ["", None, *nothing]
        try:
            seen = look(models, path)
        except Unfit as unfit:
            return [apology(path.name, unfit), None, *nothing]
        cells: list = ["", seen]
        for column, (model, answer) in enumerate(zip(models, seen.answers, strict=True)):
            bars = {title(guess): guess.confidence for guess in model.best(answer, TOP)}
            cells += [verdict(model, answer), picture(seen, column, opacity), bars]
        return cells

    def upload(path: str | None, opacity: float) -> list:
        return show(path and Path(path), opacity)

    def click(event: gr.SelectData, opacity: float) -> list:
        return show(examples[event.index], opacity)

    def slide(seen: Seen | None, opacity: float) -> list:
        return [None if seen is None else picture(seen, column, opacity) for column in range(len(models))]

    with gr.Blocks(title="Landmarks", analytics_enabled=False) as blocks:
        synthetic = any(model.facts["params"]["data"]["source"] == "sample" for model in models)
        known = " They know only landmarks that were drawn for them, no real ones." if synthetic else ""
        gr.Markdown(f"# Which landmark is it?\nDrop a photo, and see what each model takes it for.{known}")
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
                    gr.Markdown(f"### {model.facts['name']}")
                    cells += [
                        gr.Markdown(min_height=50, elem_id=f"verdict-{column}"),
                        gr.Image(label="where it looks", format="png", buttons=["fullscreen"], elem_id=f"map-{column}"),
                        gr.Label(label="confidence", num_top_classes=TOP, elem_id=f"bars-{column}"),
                    ]
        file.change(upload, [file, slider], [message, remembered, *cells], api_visibility="private")
        slider.change(slide, [remembered, slider], cells[1::3], api_visibility="private", show_progress="hidden")
        if examples:
            gallery.select(click, slider, [message, remembered, *cells], api_visibility="private")
    return blocks


def serve(models: list[Recognizer], folders: list[Path], port: int | None) -> None:
    """Serves the page on 127.0.0.1 until Ctrl-C; the examples are those of the first folder that has some."""
    examples = next(filter(None, (recognizer.pictures(folder / "examples") for folder in folders)), [])
    plain = (
        ["system-ui", "sans-serif"],
        ["ui-monospace", "monospace"],
    )  # the browser's own fonts, for others are far away
    blocks = page(models, examples)
    try:
        blocks.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            ssr_mode=False,
            max_file_size=f"{MEGABYTES}mb",
            allowed_paths=[str(path.parent.resolve()) for path in examples[:1]],
            footer_links=[],
            theme=gr.themes.Default(font=plain[0], font_mono=plain[1]),
            css=STYLE,
        )
    except OSError:
        raise UserError(f"--port: {port or 'every one from 7860 on'} is taken; give another") from None
