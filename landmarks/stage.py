"""The frame around every stage: one-line errors, outputs that are whole or absent, progress bars.

Guarantees: a user's mistake prints one line and exits with 1; what DVC removed to make room for the failed run is put
back as dvc.lock records it; an output appears under its name only when it is complete.
"""

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm


class UserError(Exception):
    """A mistake that the user can mend; its text names the key or file, and the way out."""


def run(main: Callable[[], str]) -> None:
    """Runs a stage's `main`, prints the summary line that it returns, and exits.

    A `UserError` becomes one line on stderr and exit status 1, Ctrl-C one with status 130. Anything else is our bug and
    keeps its traceback.
    """
    name = Path(sys.argv[0]).stem.replace("_", "-")
    try:
        print(f"{name}: {main()}")
    except UserError as error:
        restore_outs()
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        restore_outs()
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)


def restore_outs() -> None:
    """Puts back the outs that `dvc repro` removes before it runs a stage, from the cache. No-op outside DVC."""
    address = os.environ.get("DVC_STAGE")
    if not address:
        return
    from dvc.repo import Repo  # slow to import, and needed only here

    with Repo(os.environ.get("DVC_ROOT")) as repo:
        for stage in repo.index.stages:
            if stage.addressing == address:
                for out in stage.outs:
                    if out.use_cache and not out.exists and out.hash_info and not out.changed_cache():
                        out.checkout(force=True)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place only if the block succeeds (file or directory)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    remove(part)
    try:
        yield part
        remove(path)
        part.rename(path)
    finally:
        remove(part)


@contextmanager
def scratch(name: str, settings: dict, inputs: Iterable[Path]) -> Iterator[Path]:
    """Yields a directory for work in progress of the stage `name`, with what an interrupted run has left there.

    It is that of a run with the same settings (what JSON can hold), input files and code of this package; those of
    other runs of the stage are removed. So is this one, when the block succeeds.
    """
    key = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
    for path in [*inputs, *sorted(Path(__file__).parent.glob("*.py"))]:
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
    """Removes a file or a directory tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def progress(total: int | None, unit: str, name: str = "") -> tqdm:
    """A progress bar with a rate and what is left, on stderr; bytes (unit "B") in kilo, mega, giga."""
    scale = unit == "B"
    unit = unit if scale else f" {unit}"
    return tqdm(desc=name or None, total=total, unit=unit, unit_scale=scale, dynamic_ncols=True, mininterval=1)


def tally(reasons: Iterable[str]) -> str:
    """How many of each there are, for a summary line: "2 broken, 1 small"."""
    return ", ".join(f"{number} {reason}" for reason, number in sorted(Counter(reasons).items()))
