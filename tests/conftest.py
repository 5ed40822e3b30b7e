"""What several test files share: generated pictures, small models, and the check of a user's mistake."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from landmarks import models, networks, release, weight_files
from landmarks.images import Picture, encode
from landmarks.models import Design
from landmarks.params import Abn, Augment, Backbone, Train
from landmarks.stage import UserError
from tools.clone import Clone, Repro

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
os.environ |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "SHELL": "/bin/sh"}
os.environ.pop("TQDM_DISABLE", None)


@cache
def params_yaml() -> dict:
    return yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def default_values() -> dict:
    """The values of the repository's params.yaml, for a test to change. Parsing them takes 12 ms."""
    return deepcopy(params_yaml())


def shared(name: str) -> pytest.MarkDecorator:
    """Skips a test if the real data called `name` are missing."""
    return pytest.mark.skipif(not (SHARED / name).exists(), reason=f"needs {SHARED / name}, which is not here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files start first, because pytest-xdist runs a file in one process."""
    items.sort(key=lambda item: item.path.stem not in ("test_pipeline", "test_team"))


@contextmanager
def user_error(match: str) -> Iterator[None]:
    """Expects a `UserError` of one line that matches the pattern `match`."""
    with pytest.raises(UserError, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)


def drawing(seed: int = 0, width: int = 96, height: int = 80) -> Image.Image:
    """An RGB picture of soft random blots. The seed alone decides what it shows, not the size."""
    blots = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    return encode(image, "JPEG", quality=quality)


def pictures(count: int) -> list[Picture]:
    """Pictures of four landmarks, in id order; every second one has a mask."""
    return [
        Picture(f"id-{n:04d}", f"landmark-{n % 4}", jpeg(drawing(n)), encode(Image.new("L", (96, 80), n), "PNG"))
        if n % 2
        else Picture(f"id-{n:04d}", f"landmark-{n % 4}", jpeg(drawing(n)))
        for n in range(count)
    ]


def train(dropout: float) -> Train:
    """The block `train` for a short training of a small model."""
    return Train(
        repeats=1,
        epochs=2,
        batch_size=4,
        optimizer="adamw",
        learning_rate=0.01,
        weight_decay=0.01,
        hidden=64,
        dropout=dropout,
    )


def abn(**changes: float | str) -> Abn:
    """The default attention block of params.yaml with `changes`."""
    return Abn(
        **{"alpha": 0.25, "beta": 1.0, "branch": "study", "attention": "residual", "objective": "branches"} | changes
    )


def design(
    block: Abn | None = None,
    classes: int = 3,
    seed: int = 0,
    dropout: float = 0.0,
    shape: tuple[int, int, int] = (8, 2, 2),
    hidden: int = 64,
    tail: Backbone | None = None,
) -> Design:
    """The design of a small model; by default of tiny features, 8 channels of 2 x 2."""
    landmarks = [f"landmark-{k}" for k in range(classes)]
    return Design(landmarks=landmarks, shape=shape, hidden=hidden, dropout=dropout, abn=block, seed=seed, tail=tail)


RESULTS = {"accuracy": 0.5, "accuracy_ci95": [0.4, 0.6], "top5": 1.0, "macro_recall": 0.5}


VGG = Backbone(name="vgg16", weights="random", layer="conv3", tail="none")
LITE = Backbone(name="tf_efficientnet_lite0", weights="random", layer="level4", tail="none")
BACKBONES = [pytest.param(VGG, id="vgg16"), pytest.param(LITE, id="timm")]


VIEWS = Augment(
    views=2, rotation=45.0, eval_rotation=0.0, crop=32, scale=(0.7, 1.0), brightness=0.25, flip=True
)  # most tests draw views like these


def tailed(base: Backbone) -> Backbone:
    """The same backbone with a trained tail."""
    return base.model_copy(update={"tail": "trained"})


@cache
def random_weights(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The same weights of a network in every test; drawing them takes half a second."""
    return weight_files.fetch(name, "random", seed)


def model_folder(
    folder: Path, block: Abn | None = None, source: str = "sample", base: Backbone = VGG, **unknown: float
) -> Path:
    """A model folder of random weights for three landmarks, whose input is 64 pixels.

    Features are standardised, so that other pictures get other answers. `unknown` changes that entry of release.json.
    """
    settings = default_values()
    settings |= {"data": {"source": source}, "abn": block and block.model_dump()}
    settings["augment"]["crop"] = 64
    settings["backbone"] = base.model_dump()
    full = random_weights(base.name)
    trunk = networks.Trunk(full, base)
    inputs = torch.stack([torch.from_numpy(np.array(drawing(n, 64, 64))) for n in range(8)])
    features = trunk(inputs).float()
    tail = base if base.tail == "trained" else None
    head = design(block, shape=tuple(features.shape[1:]), hidden=32, tail=tail)
    model = models.build(head.model_copy(update={"landmarks": ["a-1", "b-2", "c-3"]}))
    if tail:
        networks.load(model.tail[0], full)
        seen = model.tail[:-1](features)
        model.tail[-1].running_mean, model.tail[-1].running_var = seen.mean((0, 2, 3)), seen.var((0, 2, 3))
    model.mean, model.std = features.mean((0, 2, 3)).view(-1, 1, 1), features.std((0, 2, 3)).view(-1, 1, 1) + 1e-6
    folder.parent.mkdir(parents=True, exist_ok=True)
    models.save(model, folder)
    save_file(networks.trunk_weights(full, base), folder / "backbone.safetensors")
    (folder / "classes.csv").write_text("label,landmark_id,name\n0,a-1,\n1,b-2,Bridge\n2,c-3,\n", encoding="utf-8")
    confidence = np.linspace(0.3, 1, 40)
    content = release.facts(
        folder.name,
        settings,
        release.calibrate_rejection(confidence, confidence, 0.05) | {"threshold": 0.0} | unknown,
        {"val": RESULTS, "test": RESULTS},
    )
    release.write(folder, content, release.card(content, 3, {"train": 30, "val": 40, "test": 40}, together=True))
    return folder


def write_tar(root: Path, name: str, members: Iterable[tuple[str, bytes] | tarfile.TarInfo]) -> None:
    """Writes a tar of Google Landmarks v2 and its MD5 file. Members' names are ids, or paths if they have a slash."""
    for directory in ("train", "md5sum/train"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / f"train/{name}.tar", "w", errors="surrogateescape") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                key, data = member
                info = tarfile.TarInfo(key if "/" in key else f"{key[0]}/{key[1]}/{key[2]}/{key}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    sum_up(root, name)


def sum_up(root: Path, name: str) -> None:
    """Writes the MD5 file of a tar."""
    digest = hashlib.md5((root / f"train/{name}.tar").read_bytes()).hexdigest()
    (root / f"md5sum/train/md5.{name}.txt").write_text(f"{digest}  {name}.tar\n", encoding="ascii")


FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module", autouse=True)
def settings_of_torch() -> Iterator[None]:
    """Undoes at the end of a test file what `prepare_training` has changed in this process."""
    functions, threads = (functional.conv2d, functional.linear), torch.get_num_threads()
    yield
    functional.conv2d, functional.linear = functions
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Debian's Chromium, driven by Playwright. Skips the test if one of them is missing."""
    reason = "needs Playwright: pip install --no-deps -r requirements-demo.txt"
    sync_api = pytest.importorskip("playwright.sync_api", reason=reason)
    if not (chromium := shutil.which("chromium")):
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    sync_api.expect.set_options(timeout=20_000)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


# --- The whole pipeline with tiny settings, run once for all tests

PROFILE = {
    "filter.skip_top": 27,
    "filter.top_k": 3,
    "augment.views": 1,
    "augment.crop": 64,
    "backbone.weights": "random",
    "backbone.layer": "conv3",
    "train.epochs": 1,
    "train.hidden": 16,
    "compute.workers": 2,  # tests look for worker processes, also on one core
}


def out_hashes(root: Path) -> dict[str, str]:
    """The hash of each output file of a clone."""
    files = [path for out in ("data", "models", "metrics", "plots") for path in (root / out).rglob("*")]
    files.append(root / "report.html")
    digests = {}
    for path in sorted(filter(Path.is_file, files)):
        with path.open("rb") as file:
            digests[path.relative_to(root).as_posix()] = hashlib.file_digest(file, "blake2b").hexdigest()
    return digests


class Project(Clone):
    """A clone of the repository in which the pipeline has run."""

    first_outs: dict[str, str]
    seconds: dict[str, float]  # how long each stage took

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs Python with these arguments."""
        command, environment = [*self.python, *arguments], self.environment | environment
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)

    def dvc(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "dvc", *arguments, **environment)

    def results(self) -> dict:
        return json.loads((self.root / "metrics/results.json").read_text(encoding="utf-8"))

    def lock(self) -> dict:
        return yaml.safe_load((self.root / "dvc.lock").read_text(encoding="utf-8"))

    def outs(self) -> dict[str, str]:
        """All output files with their hashes."""
        return out_hashes(self.root)

    def restore(self) -> None:
        """Restores the state after the first run."""
        self.git("checkout", "--quiet", ".")
        runs = self.root / ".dvc/cache/runs"  # DVC would take the outs of a later run
        shutil.rmtree(runs, ignore_errors=True)
        shutil.copytree(self.root.parent / "runs", runs)
        if self.outs() != self.first_outs:
            assert self.dvc("checkout", "--force").returncode == 0


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Runs `dvc repro` once for all tests, with the uncommitted changes of the repository."""
    project = Project(ROOT, tmp_path_factory.mktemp("pipeline"))
    listed = subprocess.run(
        ["git", "ls-files", "-cmoz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (project.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, project.root / name)
        else:
            (project.root / name).unlink(missing_ok=True)
    for key, value in PROFILE.items():
        project.set(key, value)
    project.remove_results()
    project.commit()
    with Repro(project) as repro:
        assert repro.wait() == 0, "".join(repro.output)
    project.seconds = repro.seconds()
    project.commit()
    project.first_outs = project.outs()
    shutil.copytree(project.root / ".dvc/cache/runs", project.root.parent / "runs")
    yield project
    shutil.rmtree(project.root.parent)


@pytest.fixture
def project(finished: Project) -> Iterator[Project]:
    """The clone after a run; every change of a test is undone. A process that a failed test has left is killed."""
    yield finished
    finished.kill()
    finished.git("clean", "--quiet", "--force", "-d")
    finished.restore()


def stages_run(done: subprocess.CompletedProcess[str]) -> list[str]:
    return re.findall(r"^Running stage '(.+)':", done.stdout, re.MULTILINE)
