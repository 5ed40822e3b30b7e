"""Outputs that are complete or absent, and a directory for work in progress."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from landmarks.stage.imports import running_code


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` (file or directory); it replaces `path` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    remove(part)
    try:
        yield part
        if path.is_dir() or part.is_dir():  # only a file can replace a file in one step
            remove(path)
        part.replace(path)
    finally:
        remove(part)


@contextmanager
def scratch(name: str, settings: dict, inputs: Iterable[Path]) -> Iterator[Path]:
    """Yields a directory for work in progress of the stage `name`, with the files that an interrupted run left there.

    Only runs with the same `settings` (JSON values), contents of `inputs` and code (`running_code`) share a directory.
    Directories of other runs of the stage are removed, and this one is removed when the block succeeds.
    """
    key = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
    for path in [*inputs, *running_code()]:
        with path.open("rb") as file:
            key.update(hashlib.file_digest(file, "blake2b").digest())
    directory = Path(".scratch", name, key.hexdigest())
    directory.mkdir(parents=True, exist_ok=True)
    for other in sorted(directory.parent.iterdir()):
        if other != directory:
            remove(other)
    yield directory
    remove(directory.parent)


def remove(path: Path) -> None:
    """Removes a file or a directory tree if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
