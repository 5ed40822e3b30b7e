"""Trainings and the files that they leave, on this machine or on the workers of a cluster."""

import hashlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from landmarks import answers, artifacts, determinism, models, stage
from landmarks.models import Baseline
from landmarks.params import Abn, Backbone, Train
from landmarks.stage.signals import exit_with_parent
from landmarks.training import prepare_training, trainer

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from landmarks.cluster import Driver

CHUNK = 1 << 24  # bytes of a file that travel to a worker at a time
SPAWN = multiprocessing.get_context("spawn")  # without the threads of the parent
ALIVE_SECONDS = 5  # between a worker's looks at whether the driver is still there


class Job(NamedTuple):
    """All that decides the result of a training, except `artifacts.TRAINING`. `device` is the type of a device."""

    backbone: Backbone
    train: Train
    abn: Abn | None
    seed: int
    device: str


Files = dict[str, bytes]  # by relative path
# A function that trains. It creates the first path, a folder for the result. The second is for temporary files.
Run = Callable[[Job, Path, Path], None]


def train_row(job: Job, out: Path, scratch: Path) -> None:
    """A row of the results table: writes the folders `model` and `log`, with all answers, and the file `summary`.

    Continues from the checkpoint in `scratch`.
    """
    out.mkdir()
    model, metrics = train(job, log=out / "log", checkpoint=scratch / "checkpoint.pt")
    models.save(model, out / "model")
    answer = partial(answers.answers, seed=job.seed)
    judge(job, model, answer).to_parquet(out / "log" / artifacts.ANSWERS, index=False)
    summary = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
    (out / "summary").write_text(summary, encoding="utf-8")


def train_repeat(job: Job, out: Path, scratch: Path) -> None:
    """A repeat with another seed: writes only the predictions. Continues from the checkpoint in `scratch`."""
    model, _ = train(job, log=scratch / "log", checkpoint=scratch / "checkpoint.pt")
    out.mkdir()
    judge(job, model, answers.predictions).to_parquet(out / artifacts.ANSWERS, index=False)


def train_step(job: Job, out: Path, scratch: Path) -> None:
    """The first step of a training: writes the model after it, to see whether a machine computes the same bits."""
    views = artifacts.read_labelled_views()
    few = views[views["view"] == 0].groupby("split").head(job.train.batch_size)
    short = job.train.model_copy(update={"epochs": 1})
    model, _ = train(job, log=scratch / "log", index=few, train=short)
    models.save(model, out)


def train(job: Job, **arguments: Any) -> tuple[Baseline, dict[str, float]]:  # noqa: ANN401
    """`training.trainer` with the earlier stages' outs, which are below the current directory."""
    prepare_training()
    device = determinism.pick_device(job.device)
    return trainer(job.backbone, job.train, device)(abn=job.abn, seed=job.seed, **arguments)


def judge(
    job: Job, model: Baseline, answer: Callable[[Baseline, np.ndarray, pd.DataFrame], pd.DataFrame]
) -> pd.DataFrame:
    """What the model answers for validation and test pictures."""
    features, views = artifacts.read_features(), artifacts.read_labelled_views()
    model.to(determinism.pick_device(job.device))
    return pd.concat([answer(model, features, views[views["split"] == split]) for split in ("val", "test")])


def write(files: Files, out: Path) -> None:
    """Writes the files that `Run` produced on a worker."""
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)


# --- On the workers of a cluster


def train_on_cluster(address: str, run: Run, jobs: dict[str, Job], keep: Callable[[str, Files], None]) -> None:
    """Trains on the workers of the cluster at `address`, each one training at a time.

    Calls `keep`, in another thread, as soon as a training is finished, with its key and the files that `run` has
    written. A worker that sees the driver's files, such as on a shared disk, reads them. Any other worker gets a copy.
    """
    from landmarks import cluster  # imported here because it needs Dask

    def read(path: Path, start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(CHUNK)

    first = probe(list(jobs.values()))
    with tempfile.TemporaryDirectory() as folder:
        answer = digest(run_in(Path(), train_step, first, Path(folder)))
    inputs = {path: identity(path) for path in artifacts.TRAINING}
    make = partial(remote_trainer, Path.cwd(), inputs, run, first, answer)
    functions: dict[str, Callable] = {"read": read, "keep": keep, "is_alive": lambda: None}
    for _ in stage.progress(len(jobs), "trainings", items=cluster.imap(address, make, jobs.items(), functions)):
        pass


def probe(jobs: list[Job]) -> Job:
    """The job whose first step is compared: one with attention, if there is any, because it also has convolutions."""
    return next((job for job in jobs if job.abn), jobs[0])


def run_in(root: Path, run: Run, job: Job, folder: Path) -> Files:
    """Trains with the data of the repository `root`; returns the files. `folder` is empty."""
    os.chdir(root)
    out = folder / "out"
    run(job, out, folder)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def digest(files: Files) -> str:
    return hashlib.sha256(files["model.safetensors"]).hexdigest()


def identity(path: Path) -> tuple[int, int] | None:
    """Size and time of a file, or None if this user sees none. Two machines see the same one on a shared disk."""
    try:
        found = path.stat()
    except OSError:  # also if this user may not look there
        return None
    return found.st_size, found.st_mtime_ns


def remote_trainer(
    root: Path, inputs: dict[Path, tuple[int, int] | None], run: Run, first: Job, answer: str, driver: "Driver"
) -> Callable[[tuple[str, Job]], None]:
    """On a worker: a function that trains and sends the files to the driver.

    Raises `UserError` if the model after the first step has another digest than `answer`.
    """
    from landmarks import cluster

    own = tempfile.TemporaryDirectory(dir=driver.worker.local_directory)  # removed with the function, or by Dask
    if any(identity(root / path) != inputs[path] for path in inputs):
        root = Path(own.name)
        for path in inputs:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            with (root / path).open("wb") as file:
                while content := driver.read(path, file.tell()):
                    file.write(content)

    def train_here(run: Run, job: Job) -> Files:
        with (
            tempfile.TemporaryDirectory(dir=own.name) as folder,
            # In its own process, a training changes no settings of torch for later ones, and can be killed.
            ProcessPoolExecutor(1, SPAWN, exit_with_parent, (os.getpid(),)) as pool,
        ):
            done = pool.submit(run_in, root, run, job, Path(folder))
            try:
                while not wait([done], ALIVE_SECONDS).done:
                    driver.is_alive()
            except BaseException:
                for process in multiprocessing.active_children():
                    process.kill()
                raise
        if cluster.facts() != cluster.FACTS:  # the process may have loaded other code than that of the driver
            raise stage.UserError(f"worker {driver.worker.address}: its code was changed; restart it")
        return done.result()

    if digest(train_here(train_step, first)) != answer:
        raise stage.UserError(cluster.OTHER_BITS)
    return lambda item: driver.keep(item[0], train_here(run, item[1]))
