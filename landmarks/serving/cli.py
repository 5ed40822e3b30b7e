"""The command line: `landmarks --help`, or `python -m landmarks --help`.

Exit status: 0 on success, 1 if something could not be read or done (one line on stderr each), 2 for wrong arguments,
130 after Ctrl-C. Each command imports its own slow modules.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from landmarks.stage import UserError

if TYPE_CHECKING:
    from landmarks.serving.recognizer import Answer, Recognizer

ROOT = Path(__file__).resolve().parents[2]  # release/ is there
VERSION = "1.1.0"  # of the package, too
EXAMPLES = """examples:
  python -m landmarks predict photo.jpg                    the five most probable landmarks
  python -m landmarks predict holiday/ --overlay maps/     a folder, with the attention map over each photo
  python -m landmarks predict 'trip/**/*.jpg' --json       a line of JSON per photo
  python -m landmarks export --onnx landmarks.onnx         the model as one file, for other programs
  python -m landmarks submit photos/ --out submission.csv  answers in the format of the challenge
  python -m landmarks serve                                a page to drop photos on, at http://127.0.0.1:7860
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="landmarks",
        description="Recognise landmarks with a model that `make reproduce` trained.",
        epilog=EXAMPLES + "\n`landmarks COMMAND --help` says more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(run: Callable[[argparse.Namespace], int], text: str, epilog: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            run.__name__,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    def add_model(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--model", default="abn", help="a model folder, or the name of one in release/ (default: abn)"
        )
        command.add_argument(
            "--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="where to compute (default: auto)"
        )

    command = add(
        predict,
        "name the landmark on photos",
        "A photo that cannot be read is one line on stderr; the rest goes on, and the exit status is 1.\n"
        "JSON, a line per photo: file, and error or guesses (landmark_id, name, confidence), known (false: probably\n"
        "none of the known landmarks), box (what the network saw: left, top, right, bottom as shares of the photo's\n"
        "width and height), map (rows of attention in that box, 0..1; null for a model without).\n\n"
        "examples:\n"
        "  python -m landmarks predict photo.jpg --model baseline --top 3\n"
        "  python -m landmarks predict holiday/ --overlay maps/",
    )
    command.add_argument("photos", nargs="+", metavar="PHOTO", help="a file, a folder or a glob")
    add_model(command)
    command.add_argument("--top", type=positive, default=5, metavar="N", help="landmarks to name (default: 5)")
    command.add_argument(
        "--overlay", type=Path, metavar="DIR", help="write each photo with its attention map there, PNG"
    )
    command.add_argument("--json", action="store_true", help="a line of JSON per photo instead of a table")

    command = add(
        export,
        "write trunk, attention and classifier as one file for other programs",
        "The file's metadata say how to prepare a picture. Example:\n"
        "  python -m landmarks export --onnx landmarks.onnx --model baseline",
    )
    command.add_argument(
        "--onnx",
        nargs="?",
        const="",
        required=True,
        metavar="FILE",
        help="as ONNX, to FILE (default: the model's name with .onnx, here)",
    )
    add_model(command)

    command = add(
        submit,
        "answer pictures in the format of the challenge",
        "Writes a row `id,landmarks` per picture in the order of ids; landmarks is `landmark_id confidence`, or empty\n"
        "where none is recognised or there is no picture. A run that was stopped goes on where it was. Examples:\n"
        "  python -m landmarks submit photos/ --out submission.csv\n"
        "  python -m landmarks submit test.csv --pictures test/ --out submission.csv",
    )
    command.add_argument(
        "index",
        type=Path,
        metavar="INDEX_OR_FOLDER",
        help="a folder of pictures, whose names without endings are the ids, or a CSV with a column id",
    )
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="the CSV to write")
    command.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="where the pictures of a CSV are, at any depth (default: beside it)",
    )
    add_model(command)

    command = add(
        serve,
        "show a page to drop photos on",
        "Needs Gradio: pip install --no-deps -r requirements-demo.txt. Example:\n"
        "  python -m landmarks serve --port 8000 --models baseline abn",
    )
    command.add_argument("--port", type=port, help="of 127.0.0.1 (default: the first free one from 7860 on)")
    command.add_argument(
        "--models",
        nargs="+",
        default=["baseline", "abn"],
        metavar="MODEL",
        help="to show beside each other (default: baseline abn)",
    )
    command.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="where to compute (default: auto)"
    )
    return top


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def port(text: str) -> int:
    number = int(text)
    if not 0 < number < 65536:
        raise argparse.ArgumentTypeError("must be 1 to 65535")
    return number


def folder(model: str) -> Path:
    """The model folder called `model`: a path, or a name in release/."""
    path = Path(model)
    return path if path.is_dir() else ROOT / "release" / model


def load(args: argparse.Namespace, model: str | None = None) -> "Recognizer":
    from landmarks.serving.recognizer import Recognizer

    return Recognizer(folder(model or args.model), args.device)


def predict(args: argparse.Namespace) -> int:
    from landmarks.images import Unfit
    from landmarks.serving import recognizer

    model = load(args)
    if args.overlay:
        if not model.has_map:
            raise UserError(f"--overlay: {args.model} has no attention map; take another --model")
        make_folder(args.overlay)
    status, taken = 0, set()
    for path, answer in model.recognise(recognizer.find(args.photos)):
        if isinstance(answer, Unfit):
            print(f"landmarks: {path}: {answer}", file=sys.stderr)
            status = 1
        elif args.overlay:
            name = free(path.stem, taken)
            draw(path, answer, args.overlay / f"{name}.png")
        if args.json:
            print(json.dumps({"file": str(path)} | (as_dict(model, answer, args.top))), flush=True)
        elif not isinstance(answer, Unfit):
            print(as_table(model, path, answer, args.top), flush=True)
    return status


def as_dict(model: "Recognizer", answer: "Answer | Exception", top: int) -> dict:
    """What --json says of a photo."""
    if isinstance(answer, Exception):
        return {"error": str(answer)}
    guesses = [guess._asdict() | {"confidence": round(guess.confidence, 6)} for guess in model.best(answer, top)]
    attention_map = None if answer.map is None else [[round(float(value), 4) for value in row] for row in answer.map]
    return {"guesses": guesses, "known": model.known(answer), "box": answer.box, "map": attention_map}


def as_table(model: "Recognizer", path: Path, answer: "Answer", top: int) -> str:
    """A photo's lines: its name, then rank, confidence, id and name of each landmark."""
    lines = [str(path)]
    if not model.known(answer):
        lines.append(f"     probably none of the known landmarks (below {100 * model.threshold:.1f} %); if one, then")
    guesses = model.best(answer, top)
    width = max(len(guess.landmark_id) for guess in guesses)
    lines += [
        f"{rank:3}  {100 * guess.confidence:5.1f} %  {guess.landmark_id:{width}}  {guess.name}".rstrip()
        for rank, guess in enumerate(guesses, 1)
    ]
    return "\n".join(lines)


def draw(path: Path, answer: "Answer", out: Path) -> None:
    """Writes the photo with its map."""
    from landmarks import images, stage
    from landmarks.serving import overlay

    image = images.decode(path.read_bytes(), overlay.SHORT_SIDE)
    with stage.atomic_output(out) as part:
        overlay.draw(image, answer.map, answer.box).save(part, "PNG")


def free(stem: str, taken: set[str]) -> str:
    """`stem`, or `stem-2`, `stem-3`... if that is taken; takes it."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made a folder ({(error.strerror or str(error)).lower()})") from None


def export(args: argparse.Namespace) -> int:
    from landmarks.serving import onnx_export

    out = Path(args.onnx or f"{folder(args.model).name}.onnx")
    onnx_export.write(load(args), out)
    print(f"landmarks: {out}, {out.stat().st_size / 1e6:.0f} MB")
    return 0


def submit(args: argparse.Namespace) -> int:
    from landmarks.serving import submission

    photos = submission.photos(args.index, args.pictures)
    print(f"landmarks: {submission.write(load(args), photos, args.out)}")
    return 0


def serve(args: argparse.Namespace) -> int:
    from landmarks.serving import demo

    demo.serve([load(args, name) for name in args.models], [folder(name) for name in args.models], args.port)
    return 0


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        return args.run(args)
    except UserError as error:
        print(f"landmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("landmarks: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
