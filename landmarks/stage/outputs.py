"""Outputs that are complete or absent, and a directory for work in progress."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import methodcaller
from pathlib import Path

from landmarks import artifacts
from landmarks.stage.errors import UserError
from landmarks.stage.imports import running_code
from landmarks.stage.pipeline import repository


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` (file or directory); it replaces `path` only if the block succeeds.

    A file replaces only a file. A directory replaces only an out of the pipeline or an empty directory. Otherwise
    raises `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary_path(path)
    remove(part)
    try:
        yield part
        made = [*artifacts.OUTS, *map(temporary_path, artifacts.OUTS)]
        if part.is_dir() and path.is_dir() and any(path.is_relative_to(out) for out in made):
            remove(path)
        part.replace(path)
    finally:
        remove(part)


def temporary_path(path: Path) -> Path:
    """The temporary path of an output, whose name is at most as long as file systems allow."""
    return path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:249])}.part")


def check_targets(targets: Iterable[Path], reads: Iterable[Path], force: bool = False) -> None:
    """Creates the folders of the files `targets`, which a command will write. Raises `UserError` if they would replace
    something.

    With `force`, regular files may be replaced, except those in `reads`, under whatever name.
    """
    kept = {os.stat(path)[1:3] for path in reads if os.path.exists(path)}  # inode and device
    for path in targets:
        if os.path.lexists(path):
            if path.exists() and os.stat(path)[1:3] in kept:
                raise UserError(f"{path}: is a file that this command reads; name another file")
            if path.is_symlink() or not path.is_file():
                raise UserError(f"{path}: is a folder, a link or no regular file; name another file")
            if not force:
                raise UserError(f"{path}: exists; name another file or add --force")
        path.parent.mkdir(parents=True, exist_ok=True)


def fingerprint(settings: dict, inputs: Iterable[Path]) -> str:
    """A hash of `settings` (JSON values and blocks of params.yaml), the contents of `inputs` and `running_code`."""
    key = hashlib.blake2b(
        json.dumps(settings, sort_keys=True, default=methodcaller("model_dump")).encode(), digest_size=8
    )
    for path in [*inputs, *running_code()]:
        with path.open("rb") as file:
            key.update(hashlib.file_digest(file, "blake2b").digest())
    return key.hexdigest()


@contextmanager
def scratch(name: str, settings: dict, inputs: Iterable[Path], keep: bool = False) -> Iterator[Path]:
    """Yields a directory for work in progress of the stage `name`, with the files that an interrupted run left there.

    Only runs with the same `fingerprint` share a directory. They wait for each other. Other directories of the stage
    are removed unless they are in use, and this one is removed when the block succeeds, unless it is to be kept.
    """
    directory = repository() / ".scratch" / name / fingerprint(settings, inputs)
    with lock(directory):
        for other in sorted({path.with_suffix("") for path in directory.parent.iterdir()} - {directory}):
            with lock(other, wait=False) as unused:
                if unused:
                    remove(other)
        directory.mkdir(exist_ok=True)
        yield directory
        if not keep:
            remove(directory)


@contextmanager
def lock(directory: Path, wait: bool = True) -> Iterator[bool]:
    """Locks `directory` against other processes, by a file beside it. Yields whether this process holds the lock.

    Waits for a process that holds it, and says so, unless `wait` is false. Does not create the directory.
    """
    path = directory.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                print(f"{directory}: waiting for another run that uses it", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not os.fstat(file.fileno()).st_nlink:  # the other process removed the file when it was done
                continue
            try:
                yield True
            finally:
                if not directory.exists():
                    path.unlink(missing_ok=True)
            return


def remove(path: Path) -> None:
    """Removes a file or a directory tree if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
