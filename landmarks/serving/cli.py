"""The command line: `landmarks --help`. docs/serving.md lists the exit statuses.

Each command imports its own slow modules.
"""

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landmarks import artifacts
from landmarks.stage import UserError
from landmarks.stage.errors import explain
from landmarks.stage.signals import interrupt_on_termination

if TYPE_CHECKING:
    from landmarks.serving.recognizer import Answer, Recognizer
    from landmarks.similar import Neighbour

ROOT = Path(__file__).resolve().parents[2]  # the repository, which has models/released/
VERSION = "1.1.0"  # of this command and of the package
EXAMPLES = """examples:
  landmarks predict photo.jpg                    the five most probable landmarks
  landmarks predict holiday/ --overlay maps/     a folder; draws the attention map over each photo
  landmarks predict 'trip/**/*.jpg' --json       one line of JSON per photo
  landmarks predict photo.jpg --similar 5        also the most similar training pictures
  landmarks export --onnx landmarks.onnx         the model as one file, for other programs
  landmarks submit photos/ --out submission.csv  answers in the format of the challenge
  landmarks score submission.csv solution.csv    the challenge's score of such answers
  landmarks push OWNER/NAME                      the model to the Hugging Face hub
  landmarks serve                                a page to drop photos on, at http://127.0.0.1:7860

`landmarks COMMAND --help` describes a command.
"""


# Options that more than one command has.
OPTIONS: dict[str, dict[str, Any]] = {
    "--device": {
        "default": "auto",
        "choices": ("auto", "cpu", "cuda", "mps"),
        "help": "where to compute (default: auto)",
    },
    "--model": {
        "default": "abn",
        "help": "a model folder, the name of one in models/released/, or hf://OWNER/NAME (default: abn)",
    },
    "--force": {
        "action": "store_true",
        "help": "replace files that exist, but never a photo or another file that is read",
    },
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="landmarks",
        description="Recognise landmarks with a model that `make reproduce` trained.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(
        run: Callable[[argparse.Namespace], int | None], text: str, epilog: str, *options: str
    ) -> argparse.ArgumentParser:
        """Adds the command `run`, which may return an exit status.

        `text` is its help; `epilog` follows the list of its options, which include these of `OPTIONS`.
        """
        layout = argparse.RawDescriptionHelpFormatter
        description = f"{text[0].upper()}{text[1:]}."
        name = run.__name__
        command = commands.add_parser(name, help=text, description=description, epilog=epilog, formatter_class=layout)
        command.set_defaults(run=run)
        for option in options:
            command.add_argument(option, **OPTIONS[option])
        return command

    command = add(
        predict,
        "name the landmark on photos",
        "A photo that cannot be read gives one line on stderr; the other photos follow, and the exit status is 1.\n"
        "JSON, one line per photo: file, and error or guesses (landmark_id, name, confidence), known (false: probably\n"
        "none of the known landmarks), box (what the network saw: left, top, right, bottom as fractions of the\n"
        "photo's width and height), map (rows of the attention map of that box, 0..1; null without attention), and\n"
        "with --similar also similar (id, landmark_id, name, distance from 0, the same picture, to 2).\n\n"
        "example:\n"
        "  landmarks predict photo.jpg --model baseline --top 3",
        *OPTIONS,
    )
    command.add_argument("photos", nargs="+", metavar="PHOTO", help="a file, a folder or a glob")
    command.add_argument("--top", type=number(1), default=5, metavar="N", help="landmarks to name (default: 5)")
    near = "show the N most similar training pictures; the model folder must have them (package.similar)"
    command.add_argument("--similar", type=number(1), metavar="N", help=near)
    drawn = "write each photo with its attention map to DIR, as PNG"
    command.add_argument("--overlay", type=Path, metavar="DIR", help=drawn)
    command.add_argument("--json", action="store_true", help="one line of JSON per photo instead of a table")

    command = add(
        export,
        "write trunk, attention and classifier as one file for other programs",
        "The file's metadata say how to prepare a picture.\n\n"
        "example:\n"
        "  landmarks export --onnx landmarks.onnx --model baseline",
        *OPTIONS,
    )
    written = "write ONNX to FILE (default: the model's name with .onnx, in this directory)"
    command.add_argument("--onnx", nargs="?", const="", required=True, metavar="FILE", help=written)

    command = add(
        submit,
        "answer pictures in the format of the challenge",
        "Writes one row `id,landmarks` per picture, sorted by id; landmarks is `landmark_id confidence`, or empty if\n"
        "none is recognised or the picture is missing. An interrupted run continues where it stopped.\n\n"
        "example:\n"
        "  landmarks submit test.csv --pictures test/ --out submission.csv",
        *OPTIONS,
    )
    source = "a folder of pictures (an id is a name without its ending), or a CSV with a column id"
    command.add_argument("index", type=Path, metavar="INDEX_OR_FOLDER", help=source)
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="the CSV to write")
    where = "where the pictures of a CSV are, at any depth (default: beside it)"
    command.add_argument("--pictures", type=Path, metavar="DIR", help=where)

    command = add(
        score,
        "score a submission against the challenge's solution",
        "Prints Global Average Precision (0 to 1) of the public pictures, the private ones and both together.\n"
        "SOLUTION has the columns id, landmarks and Usage, as published with Google Landmarks v2.\n\n"
        "example:\n"
        "  landmarks score submission.csv recognition_solution_v2.1.csv",
    )
    command.add_argument("submission", type=Path, metavar="SUBMISSION", help="a CSV that `landmarks submit` wrote")
    command.add_argument("solution", type=Path, metavar="SOLUTION", help="the official solution, a CSV")

    command = add(
        push,
        "upload a model to the Hugging Face hub",
        "Creates a private model repository, or adds a commit to an existing one. Uploads the model, its settings and\n"
        "results, and the ids and names of its landmarks, but no pictures. Log in first: hf auth login\n\n"
        "example:\n"
        "  landmarks push OWNER/NAME && landmarks predict photo.jpg --model hf://OWNER/NAME",
        "--model",
    )
    command.add_argument("repository", metavar="OWNER/NAME", help="the repository on the hub")

    command = add(
        serve,
        "show a page to drop photos on",
        "Needs Gradio: pip install --no-deps -r requirements-demo.txt\n\n"
        "example:\n"
        "  landmarks serve --port 8000 --models baseline abn",
        "--device",
    )
    free_one = "the port on 127.0.0.1 (default: the first free one from 7860)"
    command.add_argument("--port", type=number(1, 65535), help=free_one)
    shown, several = ["baseline", "abn"], "the models to show side by side (default: baseline abn)"
    command.add_argument("--models", nargs="+", default=shown, metavar="MODEL", help=several)

    needed = "Needs Dask: pip install --no-deps -r requirements-cluster.txt. See docs/cluster.md.\n\nexample:\n"
    command = add(
        scheduler,
        "connect the pipeline with the workers of several machines",
        f"{needed}  landmarks scheduler tls://10.0.0.1:8786",
    )
    default = "tcp://127.0.0.1:8786"
    listens = f"where it listens; whoever reaches a tcp:// address can run programs as you (default: {default})"
    command.add_argument("address", nargs="?", default=default, type=scheduler_address, metavar="ADDRESS", help=listens)

    command = add(
        worker, "compute for the pipeline on another machine", f"{needed}  landmarks worker tls://10.0.0.1:8786"
    )
    command.add_argument(
        "address",
        type=scheduler_address,
        metavar="ADDRESS",
        help="the scheduler's address, tcp://HOST:PORT or tls://HOST:PORT",
    )
    return top


def number(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is an integer from `low` to `high`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < low or (high and value > high):
            raise argparse.ArgumentTypeError(f"must be {low} to {high}" if high else f"must be {low} or more")
        return value

    return integer


def scheduler_address(text: str) -> str:
    """The type of an argument that is the address of a scheduler."""
    from landmarks.params import ADDRESS

    if not re.fullmatch(ADDRESS, text):
        raise argparse.ArgumentTypeError("must be tcp://HOST:PORT or tls://HOST:PORT, with a port up to 65535")
    return text


def folder(model: str) -> Path:
    """The model folder called `model`: a path, a name in models/released/, or hf://OWNER/NAME, which is fetched."""
    if model.startswith("hf://"):
        from landmarks.serving import hub

        return hub.fetch(model)
    path, released = Path(model), ROOT / artifacts.RELEASED / model
    # A folder that is no model, such as one of overlays, does not hide a released model of the same name.
    return path if (path / "release.json").exists() or (path.is_dir() and not released.is_dir()) else released


def load(model: str, device: str) -> "Recognizer":
    from landmarks.serving.recognizer import Recognizer

    return Recognizer(folder(model), device)


def check_targets(args: argparse.Namespace, targets: Iterable[Path], reads: Iterable[Path]) -> None:
    """Raises `UserError` if writing `targets` would lose a file. `reads` and the model are never replaced."""
    from landmarks import stage

    stage.check_targets(targets, [*reads, *folder(args.model).iterdir()], args.force)


def predict(args: argparse.Namespace) -> int:
    from landmarks.images import Unfit
    from landmarks.scan import printable
    from landmarks.serving import recognizer

    model = load(args.model, args.device)
    if args.overlay and not model.has_map:
        raise UserError(f"--overlay: {args.model} has no attention map; choose another --model")
    gallery = model.gallery if args.similar else None
    status = 0
    photos, taken = list(recognizer.find(args.photos)), dict[str, int]()
    overlays: dict[Path, Path] = {}
    if args.overlay:
        overlays = {path: args.overlay / f"{free_name(path.stem, taken)}.png" for path in dict.fromkeys(photos)}
        check_targets(args, overlays.values(), photos)
    for path, answer in model.recognise(photos):
        if isinstance(answer, Unfit):
            print(f"landmarks: {printable(str(path))}: {answer}", file=sys.stderr)
            status = 1
        elif args.overlay:
            try:
                draw(path, answer, overlays[path])
            except (Unfit, OSError) as error:  # such as a name that is too long
                print(f"landmarks: {printable(explain(error) or f'{path}: {error}')}", file=sys.stderr)
                status = 1
        near = [] if gallery is None or isinstance(answer, Unfit) else gallery.nearest(answer.vector, args.similar)
        if args.json:
            print(json.dumps({"file": str(path)} | as_dict(model, answer, args.top, near)), flush=True)
        elif not isinstance(answer, Unfit):
            print(as_table(model, path, answer, args.top, near), flush=True)
    return status


def as_dict(model: "Recognizer", answer: "Answer | Exception", top: int, near: "list[Neighbour]") -> dict:
    """The fields of a photo's line of JSON, except its name. `near` are the similar pictures, if any are wanted."""
    if isinstance(answer, Exception):
        return {"error": str(answer)}
    guesses = [
        guess._asdict() | {"confidence": round(guess.confidence, artifacts.DIGITS)} for guess in model.best(answer, top)
    ]
    attention_map = None if answer.map is None else [[round(float(value), 4) for value in row] for row in answer.map]
    entry = {"guesses": guesses, "known": model.known(answer), "box": answer.box, "map": attention_map}
    others = [{key: value for key, value in other._asdict().items() if key != "thumbnail"} for other in near]
    return entry | ({"similar": others} if near else {})


def as_table(model: "Recognizer", path: Path, answer: "Answer", top: int, near: "list[Neighbour]") -> str:
    """A photo's lines: its name, then rank, confidence, id and name of each landmark, then the similar pictures."""
    from landmarks import scan

    lines = [scan.printable(str(path))]
    if not model.known(answer):
        limit = f"{100 * model.threshold:.1f} %"
        lines.append(f"     probably none of the known landmarks (best below {limit}); otherwise")
    guesses = model.best(answer, top)
    width = max(len(guess.landmark_id) for guess in guesses)
    for rank, guess in enumerate(guesses, 1):
        line = f"{rank:3}  {100 * guess.confidence:5.1f} %  {guess.landmark_id:{width}}  {guess.name}"
        lines.append(line.rstrip())
    if near:
        lines.append("     similar training pictures and their distances")
    for rank, other in enumerate(near, 1):
        landmark = f"{other.landmark_id}  {other.name}".rstrip()
        lines.append(f"{rank:3}  {other.distance:7.3f}  {landmark}  {other.id}")
    return "\n".join(re.sub(scan.CONTROL, "?", line) for line in lines)  # a model's names are not trusted


def draw(path: Path, answer: "Answer", out: Path) -> None:
    """Writes the photo with its attention map."""
    from landmarks import stage
    from landmarks.serving import overlay

    image = overlay.decode(path.read_bytes())
    with stage.atomic_output(out) as part:
        overlay.draw(image, answer.map, answer.box).save(part, "PNG")


def free_name(stem: str, taken: dict[str, int]) -> str:
    """`stem`, or the first of `stem-2`, `stem-3`... that is not in `taken`, in any letter case; adds it to `taken`.

    The keys of `taken` are names in lower case, the values the last number tried, at first 1.
    """
    name, key = stem, stem.casefold()
    while name.casefold() in taken:
        taken[key] += 1
        name = f"{stem}-{taken[key]}"
    taken[name.casefold()] = 1
    return name


def export(args: argparse.Namespace) -> None:
    from landmarks.serving import onnx_export

    path = Path(args.model) if args.model.startswith("hf://") else folder(args.model).resolve()
    out = Path(args.onnx or f"{path.name}.onnx")
    model = load(args.model, args.device)
    check_targets(args, [out], [])
    onnx_export.write(model, out)
    print(f"landmarks: {out}, {out.stat().st_size / 1e6:.0f} MB")


def submit(args: argparse.Namespace) -> None:
    from landmarks.serving import submission

    photos = submission.photos(args.index, args.pictures)
    model = load(args.model, args.device)
    check_targets(args, [args.out], [args.index, *filter(None, photos.values())])
    print(f"landmarks: {submission.write(model, photos, args.out, args.force)}")


def score(args: argparse.Namespace) -> None:
    from landmarks.serving import score as challenge

    print(challenge.score(args.submission, args.solution))


def push(args: argparse.Namespace) -> None:
    from landmarks.serving import hub

    print(f"landmarks: {hub.push(folder(args.model), args.repository)}")


def serve(args: argparse.Namespace) -> None:
    folders = [folder(name) for name in args.models]  # before the import, which takes the hub's client offline
    from landmarks.serving import demo

    interrupt_on_termination()  # so that the uploads are removed
    demo.serve([load(name, args.device) for name in args.models], folders, args.port)


def scheduler(args: argparse.Namespace) -> None:
    from landmarks import cluster

    cluster.schedule(args.address)


def worker(args: argparse.Namespace) -> None:
    from landmarks import cluster, features, jobs  # noqa: F401  # if it imported them later, it would seem to hang

    cluster.work(args.address)


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be in any encoding
    try:
        status = args.run(args) or 0
        if sys.stdout:  # it may be closed
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("landmarks: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not (text := explain(error)):
            raise
        print(f"landmarks: {text}", file=sys.stderr)
        return 1
