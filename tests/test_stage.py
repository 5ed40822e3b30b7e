"""The frame around every stage."""

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from landmarks import artifacts, stage
from landmarks.stage import UserError, signals
from landmarks.stage.errors import explain

import psutil
import pytest
from conftest import ROOT, user_error


def fill(path: Path, text: str, directory: bool) -> None:
    """Writes a file `path` with this text, or a directory `path` with such a file in it."""
    if directory:
        path.mkdir()
        path /= "inside"
    path.write_text(text, encoding="utf-8")


def content(path: Path) -> dict[str, str]:
    """The files at or below `path`."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {file.name: file.read_text(encoding="utf-8") for file in files}


@pytest.mark.parametrize("directory", [False, True], ids=["file", "directory"])
def test_an_output_is_replaced_when_it_is_complete(
    tmp_path: Path, directory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = artifacts.MODELS / "abn"
    path.parent.mkdir(parents=True)
    fill(path, "old", directory)
    with stage.atomic_output(path) as part:
        fill(part, "new", directory)
        assert "old" in content(path).values()
    assert path.is_dir() is directory and list(content(path).values()) == ["new"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("old", "new"), [(False, True), (True, False), (True, True)], ids=str)
def test_a_file_replaces_only_a_file_and_a_directory_only_an_out(tmp_path: Path, old: bool, new: bool) -> None:
    fill(tmp_path / "mine", "mine", old)
    with pytest.raises(OSError, match="mine") as caught, stage.atomic_output(tmp_path / "mine") as part:
        fill(part, "new", new)
    assert f"{tmp_path / 'mine'}: " in str(explain(caught.value))
    assert list(content(tmp_path / "mine").values()) == ["mine"] and list(tmp_path.iterdir()) == [tmp_path / "mine"]


def test_a_users_target_is_new_or_a_replaceable_file(tmp_path: Path) -> None:
    photo, other, new = tmp_path / "photo.jpg", tmp_path / "other", tmp_path / "new/folder/file"
    for path in (photo, other):
        path.write_bytes(b"x")
    for name, target in (("link", photo), ("dangling", tmp_path / "nothing"), ("device", Path(os.devnull))):
        (tmp_path / name).symlink_to(target)
    os.link(photo, tmp_path / "hard")
    stage.check_targets([new], [photo])
    assert new.parent.is_dir() and not new.exists()
    for name in ("photo.jpg", "link", "hard", "new/../photo.jpg"):
        with user_error(f"{name}: is a file that this command reads"):
            stage.check_targets([tmp_path / name], [photo], force=True)
    for path in (tmp_path, tmp_path / "dangling", tmp_path / "device", Path(os.devnull), Path(), Path("/")):
        with user_error("is a folder, a link or no regular file"):
            stage.check_targets([path], [], force=True)
    with user_error("other: exists; name another file or add --force"):
        stage.check_targets([new, other], [photo])
    stage.check_targets([new, other], [photo], force=True)


@pytest.mark.parametrize("directory", [False, True], ids=["file", "directory"])
@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt])
def test_an_output_stays_when_the_block_fails(tmp_path: Path, directory: bool, error: type[BaseException]) -> None:
    path = tmp_path / "out"
    fill(path, "old", directory)
    before = content(path)
    with pytest.raises(error), stage.atomic_output(path) as part:
        fill(part, "half of the new", directory)
        raise error
    assert content(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_a_killed_run_are_not_mixed_in(tmp_path: Path) -> None:
    with stage.atomic_output(tmp_path / "out") as part:
        left = part
        part.mkdir()
    left.mkdir()
    (left / "stale").touch()
    with stage.atomic_output(tmp_path / "out") as part:
        part.mkdir()
        (part / "fresh").touch()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["fresh"]


def test_missing_directories_are_created(tmp_path: Path) -> None:
    with stage.atomic_output(tmp_path / "a/b/out") as part:
        part.touch()
    assert (tmp_path / "a/b/out").is_file()


def test_removing_a_link_keeps_its_target(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    stage.remove(tmp_path / "link")
    assert [file.name for file in tmp_path.iterdir()] == ["real"]
    stage.remove(tmp_path / "nothing")


def test_only_the_same_run_finds_its_work_in_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.write_text("data", encoding="utf-8")

    def left(name: str = "train", alpha: float = 1.0) -> list[str]:
        """The files that an interrupted run finds; it adds one."""
        with pytest.raises(KeyboardInterrupt), stage.scratch(name, {"alpha": alpha}, [data]) as scratch:
            names = [file.name for file in scratch.iterdir()]
            (scratch / f"{name}-{alpha}").touch()
            raise KeyboardInterrupt
        return names

    assert left() == [] and left() == ["train-1.0"]
    assert left("other") == [] and left() == ["train-1.0"], "each stage has its own"
    assert left(alpha=0.5) == [] and left() == [], "another setting starts afresh and removes the old files"
    data.write_text("changed", encoding="utf-8")
    assert left() == [] and left() == ["train-1.0"]
    with stage.scratch("train", {"alpha": 1.0}, [data]) as scratch:
        assert scratch.is_relative_to(Path(".scratch/train"))
    assert list(Path(".scratch/train").iterdir()) == [], "nothing is left of what was done"


SCRATCH = """
import sys
from pathlib import Path
from landmarks import artifacts, stage
with stage.scratch("train", {"alpha": sys.argv[1]}, []) as scratch:
    print(sorted(path.name for path in scratch.iterdir()), flush=True)
    (scratch / "checkpoint").touch()
    sys.stdin.read()
    assert (scratch / "checkpoint").exists()
"""


def scratch_in(root: Path, alpha: str) -> subprocess.Popen[str]:
    """A process that uses a scratch directory below `root` until its stdin ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", SCRATCH, alpha], cwd=root, env=environment, text=True, **pipes)


def test_runs_at_the_same_time_keep_their_work_and_the_same_run_waits(tmp_path: Path) -> None:
    """One run per process, as `dvc queue start -j 4` has them."""
    first = scratch_in(tmp_path, "1")
    assert first.stdout.readline() == "[]\n"
    other = scratch_in(tmp_path, "0.5")
    assert other.stdout.readline() == "[]\n"
    waiting = [scratch_in(tmp_path, "1") for _ in range(2)]
    for process in waiting:
        assert re.fullmatch(r"\.scratch/train/\w+: waiting for another run that uses it\n", process.stderr.readline())
    for process in (first, other, *waiting):
        process.stdin.close()
    assert [process.wait(60) for process in (first, other, *waiting)] == [0] * 4
    assert list((tmp_path / ".scratch/train").iterdir()) == []


def test_a_waiting_run_resumes_the_work_of_an_interrupted_one(tmp_path: Path) -> None:
    first = scratch_in(tmp_path, "1")
    assert first.stdout.readline() == "[]\n"
    waiting = scratch_in(tmp_path, "1")
    waiting.stderr.readline()
    first.kill()
    first.communicate()
    assert waiting.stdout.readline() == "['checkpoint']\n"
    waiting.communicate()
    assert waiting.returncode == 0


def test_a_copy_of_the_repository_shares_its_scratch_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / ".dvc/tmp/exps/standalone/tmp1/inner"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with stage.scratch("train", {}, []) as scratch:
        assert scratch.is_relative_to(tmp_path / ".scratch")
    monkeypatch.chdir(tmp_path)
    assert stage.repository() == Path()


def code(body: str) -> str:
    """A script that runs a stage whose main has this body."""
    start = "import sys\nfrom landmarks import stage\nsys.argv = ['some/my_stage.py']\ndef main():\n"
    return f"{start}{textwrap.indent(body, '    ')}\nstage.run(main)\n"


ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}


def run(body: str) -> subprocess.CompletedProcess[str]:
    """Runs `code(body)` outside DVC."""
    return subprocess.run(
        [sys.executable, "-c", code(body)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def test_a_stage_prints_its_summary() -> None:
    done = run("return '3 pictures'")
    assert (done.returncode, done.stdout, done.stderr) == (0, "my-stage: 3 pictures\n", "")


def test_a_terminal_may_lack_characters_of_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "PYTHONIOENCODING", "latin-1")
    done = run(r"return '\u6771\u4eac'")
    assert (done.returncode, done.stdout, done.stderr) == (0, "my-stage: \\u6771\\u4eac\n", "")


def test_a_mistake_of_the_user_is_one_line() -> None:
    done = run("raise stage.UserError('abn.alpha: too large')")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "my-stage: abn.alpha: too large\n")


def test_a_bug_keeps_its_traceback() -> None:
    done = run("raise ValueError('a bug')")
    assert done.returncode == 1 and "Traceback" in done.stderr and "a bug" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "open('/proc/version', 'r+')" if os.geteuid() else "open('/', 'w')",
            r"/.*: (permission denied|is a directory)",
        ),
        ("raise OSError(28, 'said by a library', 'data/out')", "data/out: no space left on device; make room"),
        ("raise OSError(13, 'x', '/root/pictures')", "/root/pictures: permission denied; give yourself access"),
        ("raise OSError(30, 'x', 'data/out')", "data/out: read-only file system; make it writable"),
        ("raise OSError('512 requested and 0 written')", "512 requested and 0 written"),
        ("raise MemoryError", r"not enough memory .*compute\.workers"),
        ("import numpy\nnumpy.ones(2**50)", r"not enough memory .*compute\.workers"),
        ("import torch\ntorch.ones(2**50)", r"not enough memory .*compute\.workers"),
    ],
    ids=["directory", "full", "denied", "read-only", "half written", "memory", "numpy", "torch"],
)
def test_a_failure_of_the_machine_is_one_line(body: str, message: str) -> None:
    done = run(body)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"my-stage: {message}.*\n", done.stderr), done.stderr


LIMITED = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "write",
    [
        "out.write_bytes(bytes(10**6))",
        "import numpy\n    numpy.save(out.open('wb'), numpy.ones(10**6))",
        "import numpy\n    numpy.lib.format.open_memmap(out, 'w+', float, (10**6,))",
        "import pandas\n    pandas.DataFrame({'a': range(10**6)}).to_csv(out)",
        "import pandas\n    pandas.DataFrame({'a': range(10**6)}).to_parquet(out)",
        "import torch, safetensors.torch\n    safetensors.torch.save_file({'a': torch.ones(10**6)}, out)",
        "from PIL import Image\n    Image.new('RGB', (999, 999)).save(out, 'BMP')",
    ],
    ids=["bytes", "npy", "memory map", "csv", "parquet", "safetensors", "picture"],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, write: str) -> None:
    """A limit on file sizes simulates a full disk."""
    done = run(
        f"{LIMITED}from pathlib import Path\n"
        f"with stage.atomic_output(Path({str(tmp_path / 'out')!r})) as out:\n    {write}"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch("my-stage: .*\n", done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []


POOL = """import os, time
from joblib import delayed
def show():
    os.write(1, f"{os.getpid()}\\n".encode())  # in one piece, as several processes write
show()
def work(n):
    show()
    ACT
for _ in stage.run_in_processes(2, (delayed(work)(n) for n in range(4))):
    pass
"""


def start_pool(act: str, workers: int = 2) -> tuple[subprocess.Popen[str], list[int]]:
    """Starts a stage whose workers run `act`; returns it and the ids of its process and of `workers` workers."""
    stage = subprocess.Popen(
        [sys.executable, "-c", code(POOL.replace("ACT", act))],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return stage, [int(stage.stdout.readline()) for _ in range(1 + workers)]


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB", "lower train.batch_size, or set compute.device to cpu"),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory", "or set compute.workers to 1"),
    ],
)
def test_the_advice_names_the_memory_that_ran_out(text: str, advice: str) -> None:
    line = explain(RuntimeError(text))
    assert line.startswith(f"not enough memory ({text}); close other programs") and line.endswith(advice)


def test_no_room_for_temporary_files() -> None:
    error = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    assert explain(error).startswith("no temporary file can be written; make room in /tmp, or set TMPDIR")


def all_gone(processes: list[int]) -> bool:
    """Whether the processes end within a minute."""
    for _ in range(600):
        if not any(map(lives, processes)):
            return True
        time.sleep(0.1)
    return False


def lives(process: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whom", "status", "message"),
    [
        (signal.SIGINT, os.killpg, 130, "interrupted"),
        (signal.SIGINT, os.kill, 130, "interrupted"),
        (signal.SIGTERM, os.kill, 143, "terminated"),
        (signal.SIGKILL, os.kill, -9, None),
    ],
    ids=["Ctrl-C", "Ctrl-C for the stage alone", "SIGTERM", "kill -9"],
)
def test_no_worker_outlives_its_stage(
    number: signal.Signals, whom: Callable[[int, int], None], status: int, message: str | None
) -> None:
    stage, processes = start_pool("time.sleep(60)")
    whom(stage.pid, number)
    _, stderr = stage.communicate(timeout=30)
    assert stage.returncode == status
    lines = [line for line in stderr.splitlines() if "resource_tracker" not in line and "warnings.warn" not in line]
    assert lines == [f"my-stage: {message}"] or not message, "apart from warnings of joblib's own helper process"
    assert all_gone(processes)


@pytest.mark.slow
def test_a_killed_worker_is_one_line_that_names_the_setting() -> None:
    stage, processes = start_pool("time.sleep(60)")
    os.kill(processes[1], signal.SIGKILL)
    _, stderr = stage.communicate(timeout=30)
    assert stage.returncode == 1 and re.fullmatch(r"my-stage: a worker .*compute\.workers.*\n", stderr), stderr
    assert all_gone(processes)


@pytest.mark.slow
def test_too_little_memory_in_a_worker_is_one_line() -> None:
    stage, processes = start_pool("bytes(2**62)", workers=1)  # always a MemoryError
    _, stderr = stage.communicate(timeout=30)
    assert stage.returncode == 1 and re.fullmatch(r"my-stage: not enough memory .*compute\.workers.*\n", stderr), stderr
    assert all_gone(processes)


@pytest.mark.slow
def test_a_leftover_semaphore_of_a_broken_pool_adds_no_line() -> None:
    body = """from joblib import delayed
from joblib.externals.loky.backend import resource_tracker
list(stage.run_in_processes(2, (delayed(int)(n) for n in range(2))))
resource_tracker.register("/loky-left-by-a-test", "semlock")
raise MemoryError
"""
    command = [sys.executable, "-c", code(body)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"my-stage: not enough memory .*\n", done.stderr), done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_deferred_signal_arrives_after_the_workers_have_started(number: signal.Signals) -> None:
    events: list[str] = []
    before = {n: signal.signal(n, lambda *_: events.append("signal")) for n in signals.SIGNAL_OUTCOMES}
    try:
        with signals.deferred_signals():
            os.kill(os.getpid(), number)
            time.sleep(0.1)
            events.append("started")
        assert events == ["started", "signal"]
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
