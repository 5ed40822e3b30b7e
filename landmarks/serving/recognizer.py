"""A released model in use: photos in, answers out. It needs a model folder (landmarks/release.py) and nothing else.

A photo is processed like a validation picture, by the same functions: shrink, cut out the centre, trunk, classifier.
Only the rotation `augment.eval_rotation` is left out. If that is 0, the answer for a picture of the data set is the one
in data/predictions.parquet.
"""

import csv
import glob
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from landmarks import augment, determinism, images, models, release, similar
from landmarks.artifacts import DIGITS
from landmarks.images import Picture, Unfit
from landmarks.networks import Trunk
from landmarks.params import Backbone
from landmarks.scan import is_hidden, scan
from landmarks.stage import UserError, count_reasons
from landmarks.stage.errors import explain, reason

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

BATCH = 16  # photos per forward pass

P = TypeVar("P", bound=Path | None)
Box = tuple[float, float, float, float]  # left, top, right, bottom, as fractions of the photo's width and height


class View(NamedTuple):
    """What the network sees of a photo: its input, uint8 [S, S, 3], and where that is on the upright photo."""

    pixels: np.ndarray
    box: Box


class Answer(NamedTuple):
    """A model's answer for a photo: the classes' probabilities [K], the attention map in 0..1 [H, W] of `box`, and the
    vector [C] to find similar pictures."""

    scores: np.ndarray
    map: np.ndarray | None
    box: Box
    vector: np.ndarray


class Guess(NamedTuple):
    landmark_id: str
    name: str  # empty if unknown
    confidence: float


class Recognizer:
    """The model of a folder. Raises `UserError` if the folder is no model folder, or a broken one."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        self.folder, self.facts = folder, release.read(folder)
        self.device = determinism.pick_device(device, "--device")
        try:
            self.trunk = Trunk(load_file(folder / "backbone.safetensors"), Backbone(**self.facts["backbone"]))
            self.model = models.load(folder)
            with (folder / "classes.csv").open(newline="", encoding="utf-8") as file:
                self.names = {row["landmark_id"]: row.get("name") or "" for row in csv.DictReader(file)}
            self.threshold = float(self.facts["unknown"]["threshold"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, csv.Error) as error:
            if explain(error) and not isinstance(error, OSError):  # too little memory
                raise
            raise self.broken(error) from None
        self.trunk.to(self.device)
        self.model.to(self.device).eval()
        self.landmarks = self.model.design.landmarks

    def broken(self, error: Exception) -> UserError:
        return UserError(f"{self.folder}: a file of the model is missing or broken ({error!s:.200}); copy it again")

    @property
    def has_map(self) -> bool:
        return self.model.design.abn is not None

    @property
    def has_gallery(self) -> bool:
        return (self.folder / similar.FILE).exists()

    @cached_property
    def gallery(self) -> similar.Gallery:
        """The training pictures of the folder. Raises `UserError` if they are missing or broken."""
        if not self.has_gallery:
            text = "has no training pictures; set package.similar to ids or pictures, and run `dvc repro`"
            raise UserError(f"{self.folder} {text}")
        try:
            return similar.Gallery(self.folder / similar.FILE, self.names)
        except (OSError, ValueError, KeyError) as error:
            raise self.broken(error) from None

    def view(self, data: bytes) -> View:
        """What the network sees of an encoded photo, as release.json says. Raises `Unfit` as `images.decode` does."""
        prepared = self.facts["preprocessing"]
        shrunk, _ = images.shrink(Picture("", "", data), prepared["short_side"])
        image = images.decode(shrunk.picture)  # like the pipeline's pictures, it may have become a JPEG
        width, height = image.size
        centre = augment.centre_view(("", width, height), scale=prepared["centre_scale"])
        pixels = np.asarray(augment.apply(image, centre, prepared["crop"]))
        left, top = centre.left, centre.top
        right, bottom = left + centre.side, top + centre.side
        return View(pixels, (left / width, top / height, right / width, bottom / height))

    @torch.inference_mode()
    def answer(self, views: list[View]) -> list[Answer]:
        """The answers for one batch of views of any size.

        The batch is not padded as in `features.forward`, because a single photo would take many times as long. The last
        bits of the sums may therefore differ from the pipeline's; rounding to float16 removes most of this.
        """
        pixels = torch.from_numpy(np.stack([view.pixels for view in views])).to(self.device)
        features = self.trunk(pixels)
        output = self.model(features.float())
        scores = self.model.probabilities(output).cpu().double().numpy()  # MPS has no double
        maps = [None] * len(views) if output.map is None else output.map[:, 0].cpu().numpy()
        vectors = similar.pool(features.cpu().numpy())
        return [Answer(*row) for row in zip(scores, maps, (view.box for view in views), vectors, strict=True)]

    def recognise(self, photos: Iterable[P]) -> Iterator[tuple[P, Answer | Unfit]]:
        """Streams each photo, in order, with its answer or the reason why there is none. None is a missing photo.

        Threads decode the next photos while the network works on a batch.
        """
        photos = iter(photos)

        def read(path: Path | None) -> View | Unfit:
            try:
                return self.view(read_bytes(path)) if path else Unfit("missing")
            except Unfit as unfit:
                return unfit

        with ThreadPoolExecutor() as pool:

            def submit() -> list[tuple[P, Future[View | Unfit]]]:
                return [(path, pool.submit(read, path)) for path in islice(photos, BATCH)]

            ahead = submit()
            try:
                while ahead:
                    jobs, ahead = ahead, submit()
                    views = [(path, job.result()) for path, job in jobs]
                    fit = [view for _, view in views if isinstance(view, View)]
                    answers = iter(self.answer(fit) if fit else [])
                    for path, view in views:
                        yield path, view if isinstance(view, Unfit) else next(answers)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C, no further photo is decoded

    def known(self, answer: Answer) -> bool:
        """Whether the photo seems to show one of the landmarks; see `release.threshold`."""
        return round(float(answer.scores.max()), DIGITS) >= self.threshold

    def best(self, answer: Answer, count: int) -> list[Guess]:
        """The `count` most probable landmarks, in descending order."""
        labels = np.argsort(-answer.scores, kind="stable")[:count]
        pairs = [(self.landmarks[label], float(answer.scores[label])) for label in labels]
        return [Guess(name, self.names.get(name, ""), confidence) for name, confidence in pairs]


def read_bytes(path: Path) -> bytes:
    """The content of a photo's file. Raises `Unfit` if it cannot be read, or is a pipe that might never end."""
    try:
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode):
            os.listdir(path)  # an error for one that may not be read
            raise Unfit("has no pictures")
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > images.MAX_BYTES:
            raise Unfit("huge" if stat.S_ISREG(facts.st_mode) else "not a file")
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise Unfit(reason(error) or "huge") from None


def find(arguments: Iterable[str]) -> Iterator[Path]:
    """The photos of files, folders (at any depth, by file ending) and globs, sorted within each argument.

    Folders and globs give each file once; `**` follows no links. A folder that cannot be read, or an argument without a
    photo, is yielded unchanged, and fails when it is read.
    """
    for argument in arguments:
        path = Path(argument)
        while path.name == "**":
            path = path.parent
        if argument and os.path.isdir(path):  # unlike `Path.is_dir`, without an error for a path that one may not enter
            yield from pictures(path) or [path]
        elif os.path.exists(path) or not glob.has_magic(argument):
            yield path
        else:
            found: list[Path] = []
            if any("**" in part and part != "**" for part in path.parts):
                raise UserError(f"{argument}: ** must be the whole name of a folder, as in trip/**/*.jpg")
            for name in Path(path.anchor).glob(str(path.relative_to(path.anchor))):
                if any(is_hidden(part) and part not in argument for part in name.parts):
                    continue
                if os.path.isfile(name):
                    found.append(name)
                elif "**" not in path.parts:
                    found += pictures(name)
            once: dict[object, Path] = {}  # of several paths of a file, the shortest
            for name in sorted(found, key=lambda name: (len(str(name)), name), reverse=True):
                facts = name.stat() if os.path.exists(name) else None
                once[(facts.st_dev, facts.st_ino) if facts else name] = name
            yield from sorted(once.values()) or [path]


def pictures(folder: Path) -> list[Path]:
    """The pictures below `folder`, and what cannot be read, sorted; see `scan`. Counts skipped files on stderr."""
    found = scan(folder)
    if found.skipped:
        print(f"landmarks: {folder}: skipped {count_reasons(found.skipped.values())}", file=sys.stderr)
    return [folder / name for name in sorted([*found.pictures, *found.unreadable])]
