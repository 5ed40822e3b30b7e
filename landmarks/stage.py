"""The frame around every stage: one-line errors, outputs that are whole or absent, progress bars.

Guarantees: a mistake of the user's or a failure of the machine prints one line and ends with a status above 0; what
DVC removed to make room for the failed run is put back as dvc.lock records it; an output appears under its name only
when it is complete; a stage does not outlive the DVC that runs it.
"""

import errno
import gc
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable"),
}
MORE_MEMORY = "close other programs, or set compute.workers to 1"


class UserError(Exception):
    """A mistake that the user can mend; its text names the key or file, and the way out.

    In one line, whatever a library or a file says in it.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class Terminated(SystemExit):
    """SIGTERM."""


def run(main: Callable[[], str]) -> None:
    """Runs a stage's `main`, prints the summary line that it returns, and exits.

    A `UserError`, a full or read-only disk, and want of memory become one line on stderr and exit status 1, Ctrl-C one
    with status 130, SIGTERM one with 143. Anything else is our bug and keeps its traceback.
    """
    name = os.environ.get("DVC_STAGE") or Path(sys.argv[0]).stem.replace("_", "-")
    for number in ENDS:
        signal.signal(number, hear)
    if os.environ.get("DVC_STAGE"):
        end_with_parent(os.getppid())
    before = sources()
    try:
        summary = main()
        check_unchanged(before)
        gc.freeze()  # or Python looks through all of torch's objects once more at its end: half a second
        return print(f"{name}: {summary}")
    except (Exception, KeyboardInterrupt, Terminated) as error:
        ended = heard[0] if heard else signal.SIGINT if isinstance(error, KeyboardInterrupt) else None
        _, status, text = ENDS[ended] if ended else (None, 1, explain(error))
        restore_outs()
        if text is None:
            raise
    print(f"{name}: {text}", file=sys.stderr)
    sys.exit(status)


def interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The excepthook of a stage: Ctrl-C while its modules are being loaded, before `run`, is one line as well."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    restore_outs()
    print("interrupted", file=sys.stderr)


if os.environ.get("DVC_STAGE"):
    sys.excepthook = interrupted


# What a signal raises, the exit status, and what is said.
ENDS = {signal.SIGINT: (KeyboardInterrupt, 130, "interrupted"), signal.SIGTERM: (Terminated, 143, "terminated")}
heard: list[int] = []


def hear(number: int, _: object) -> None:
    """Makes of a signal an exception, so that pools end their processes and half-written outs are removed.

    It is kept in `heard`, for a pool whose workers die of the same signal may raise another exception in its place.
    """
    heard.append(number)
    for other in ENDS:  # DVC passes Ctrl-C on, so that it comes twice
        signal.signal(other, signal.SIG_IGN)
    threading.excepthook = lambda _: None  # a pool's thread may stumble over what was taken from it
    raise ENDS[number][0]


def sources() -> dict[Path, bytes]:
    """What decides what a stage makes, besides its inputs: params.yaml, and our modules as far as they are loaded."""
    ours = re.compile(r"(landmarks|stages|__main__)\b")
    loaded = {getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if ours.match(name)}
    paths = [Path("params.yaml"), *sorted(Path(os.path.relpath(file)) for file in loaded if file)]
    return {path: path.read_bytes() for path in paths if path.is_file()}


def check_unchanged(before: dict[Path, bytes]) -> None:
    """Raises `UserError` if `sources` were edited while a stage ran: it would be recorded with what it did not use.

    For DVC reads parameters and code again when a stage has ended, and writes them into dvc.lock and its run cache. Of
    params.yaml only the keys matter that dvc.yaml lists for the stage. No-op outside DVC.
    """
    address = os.environ.get("DVC_STAGE")
    for path in [path for path, content in before.items() if address and path.read_bytes() != content]:
        if path.name == "params.yaml":
            import yaml

            name, _, key = address.partition("@")
            entry = yaml.safe_load(Path("dvc.yaml").read_bytes())["stages"][name]
            keys = [listed.replace("${key}", key) for listed in entry.get("do", entry).get("params", [])]
            old, new = (yaml.safe_load(content) for content in (before[path], path.read_bytes()))
            changed = [listed for listed in keys if dig(old, listed) != dig(new, listed)]
        else:
            changed = [path.name]
        if changed:
            raise UserError(f"{path}: {changed[0]} was changed while the stage ran; run it again")


def dig(values: object, key: str) -> object:
    """The value of a dotted key, None if there is none."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def end_with_parent(parent: int) -> None:
    """Ends this process soon after `parent`: a DVC that was killed must not leave a stage that goes on writing outs."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def workers(count: int, jobs: Iterable[tuple]) -> Iterator:
    """Streams the results of `jobs` (of joblib's `delayed`), in order as they come, from so many processes (0: one per
    core), which end with this one.
    """
    from joblib import Parallel  # slow to import, and two stages need it

    # An end is one line. joblib counts what was given up, and where a pool breaks between removing a semaphore and
    # saying so, its helper process warns of that.
    warnings.filterwarnings("ignore", r"\d+ tasks which were still being processed")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]))
    parallel = Parallel(count or -1, return_as="generator", initializer=end_with_parent, initargs=(os.getpid(),))
    # Ctrl-C reaches every process of a terminal; what to do about it is the parent's business. Workers inherit what is
    # blocked here, so that they do not hear it from their first moment on. The helper process that Python starts with
    # the first worker would unblock it, so that one is started before.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with later():
            return parallel(jobs)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def later() -> Iterator[None]:
    """A signal is heard after the block: a worker whose start is broken off would say so with a traceback.

    Blocking it does not do, for another thread may take it, and Python then handles it in the main one.
    """
    caught: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in ENDS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def explain(error: Exception) -> str | None:
    """What went wrong and what to do, in one line, if it is the user's or the machine's fault; None if it is ours."""
    text = " ".join(str(error).split())
    rust = re.search(r"\(os error (\d+)\)", text)  # safetensors wraps the system's error in one of its own
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, BrokenExecutor):
        return f"a worker process was killed, most likely for want of memory; {MORE_MEMORY}"
    if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", text):
        return f"not enough memory ({text or 'no more was to be had'}); {MORE_MEMORY}"
    if isinstance(error, OSError) or rust:
        number = int(rust[1]) if rust else getattr(error, "errno", None)
        where = getattr(error, "filename", None)
        parts = [str(where) if where else None, os.strerror(number).lower() if number else text]
        return ": ".join(filter(None, parts)) + (f"; {ADVICE[number]}" if number in ADVICE else "")
    return None


def restore_outs() -> None:
    """Puts back the outs that `dvc repro` removes before it runs a stage, from the cache. No-op outside DVC.

    A second Ctrl-C is not heard meanwhile. What cannot be put back is made again by the next run.
    """
    address = os.environ.get("DVC_STAGE")
    if not address:
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    from dvc.exceptions import DvcException  # slow to import, and needed only here
    from dvc.repo import Repo

    try:
        with Repo(os.environ.get("DVC_ROOT")) as repo:
            for stage in repo.index.stages:
                if stage.addressing == address:
                    for out in stage.outs:
                        if out.use_cache and not out.exists and out.hash_info and not out.changed_cache():
                            out.checkout(force=True)
    except (DvcException, OSError) as error:
        print(f"the last outs could not be put back ({' '.join(str(error).split())})", file=sys.stderr)


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
