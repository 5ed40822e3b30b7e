"""A released model at work: photos in, answers out. Needs a model folder (landmarks/release.py) and nothing else.

A photo goes the way of the pipeline's validation pictures, through the same functions: shrunk, its centre cut out, the
trunk, rounded to float16, the head. So the answer for a picture of the data set is that of data/predictions.parquet.
"""

import csv
import glob
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from landmarks import augment, determinism, images, models, release
from landmarks.images import Picture, Unfit
from landmarks.networks import Trunk
from landmarks.params import Backbone
from landmarks.stage import UserError

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

BATCH = 16  # photos per forward pass
ENDINGS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of images.FORMATS

P = TypeVar("P", bound=Path | None)
Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the photo's width and height


class View(NamedTuple):
    """What the network sees of a photo: its input, uint8 [S, S, 3], and where on the upright photo that is."""

    pixels: np.ndarray
    box: Box


class Answer(NamedTuple):
    """What a model says of a photo: the classes' probabilities [K], and the map in 0..1 [H, W] of what `box` shows."""

    scores: np.ndarray
    map: np.ndarray | None
    box: Box


class Guess(NamedTuple):
    landmark_id: str
    name: str  # empty where none is known
    confidence: float


class Recognizer:
    """The model of a folder. Raises `UserError` if that is no model folder, or a broken one."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        self.facts = release.read(folder)
        self.device = determinism.pick_device(device)
        try:
            self.trunk = Trunk(load_file(folder / "backbone.safetensors"), Backbone(**self.facts["backbone"]))
            self.model = models.load(folder)
            with (folder / "classes.csv").open(newline="", encoding="utf-8") as file:
                self.names = {row["landmark_id"]: row.get("name") or "" for row in csv.DictReader(file)}
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder}: a file of the model is not there, or broken ({reason}); copy it anew") from None
        self.trunk.to(self.device)
        self.model.to(self.device).eval()
        self.landmarks = self.model.design.landmarks
        self.threshold = self.facts["unknown"]["threshold"]

    @property
    def has_map(self) -> bool:
        return self.model.design.abn is not None

    def view(self, data: bytes) -> View:
        """What the network sees of an encoded photo. Raises `Unfit` as `images.decode` does."""
        prepared = self.facts["preprocessing"]
        shrunk, _ = images.shrink(Picture("", "", data), prepared["short_side"])
        image = images.decode(shrunk.picture)
        width, height = image.size
        rng = np.random.default_rng(0)  # an upright view draws nothing of consequence
        centre = augment.centre_view(rng, picture=("", width, height), rotation=0)
        pixels = np.asarray(augment.apply(image, centre, prepared["crop"]))
        left, top = centre.left, centre.top
        right, bottom = left + centre.side, top + centre.side
        return View(pixels, (left / width, top / height, right / width, bottom / height))

    @torch.inference_mode()
    def answer(self, views: list[View]) -> list[Answer]:
        """The answers for one batch of views, whatever its size.

        Not filled up to a batch as `features.forward` does, for a single photo would take many times as long: the last
        bits of a sum may then differ from the pipeline's, before they are rounded to float16.
        """
        pixels = torch.from_numpy(np.stack([view.pixels for view in views])).to(self.device)
        features = self.trunk(pixels).float()
        output = self.model(features)
        scores = self.model.probabilities(output).cpu().double().numpy()  # MPS has no double
        maps = [None] * len(views) if output.map is None else output.map[:, 0].cpu().numpy()
        return [Answer(*row) for row in zip(scores, maps, (view.box for view in views), strict=True)]

    def recognise(self, photos: Iterable[P]) -> Iterator[tuple[P, Answer | Unfit]]:
        """Streams the answer for each photo, in order, or why there is none; None is a photo that is missing.

        Decodes photos while the trunk is at work on earlier ones.
        """
        photos = iter(photos)

        def read(path: Path | None) -> View:
            if path is None:
                raise Unfit("missing")
            try:
                return self.view(path.read_bytes())
            except OSError as error:
                raise Unfit((error.strerror or str(error)).lower()) from None

        with ThreadPoolExecutor() as pool:

            def submit() -> list[tuple[P, Future[View]]]:
                return [(path, pool.submit(read, path)) for path in islice(photos, BATCH)]

            ahead = submit()
            while ahead:
                jobs, ahead = ahead, submit()
                fit = [job.result() for _, job in jobs if not job.exception()]
                answers = iter(self.answer(fit) if fit else [])
                for path, job in jobs:
                    error = job.exception()
                    if error is not None and not isinstance(error, Unfit):
                        raise error
                    yield path, error or next(answers)

    def known(self, answer: Answer) -> bool:
        """Whether a photo seems to show one of the landmarks at all; see `release.threshold`."""
        return round(float(answer.scores.max()), release.DIGITS) >= self.threshold

    def best(self, answer: Answer, count: int) -> list[Guess]:
        """The `count` most probable landmarks, the most probable first."""
        order = np.argsort(-answer.scores, kind="stable")[:count]
        ids = [self.landmarks[label] for label in order]
        return [
            Guess(name, self.names.get(name, ""), float(answer.scores[k])) for name, k in zip(ids, order, strict=True)
        ]


def find(arguments: Iterable[str]) -> Iterator[Path]:
    """The photos that files, folders (at any depth, by their endings) and globs stand for, sorted within each.

    A name that stands for nothing is passed on as it is, and fails when it is read.
    """
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            yield from pictures(path)
        elif path.exists() or not glob.has_magic(argument):
            yield path
        else:
            found = sorted(Path(name) for name in glob.iglob(argument, recursive=True))
            yield from (file for file in found if file.is_file()) if found else [path]


def pictures(folder: Path) -> list[Path]:
    """The files with the ending of a picture below `folder`, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
