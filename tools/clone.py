"""A clone of the repository to run the pipeline in, without DVC's cache and under given conditions."""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from landmarks import params, stage
from landmarks.stage import UserError

import psutil
import yaml

RESULTS = ("metrics", "plots")  # what git keeps of the outs
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
KERNELS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_CBWR", "OPENBLAS_CORETYPE")
ELSEWHERE = "ein Ördner, elsewhere"
# The environment variables of each value of a factor. `workers` is compute.workers, `folder` the name of the clone.
# threads=1 also limits the run to one core.
FACTORS: dict[str, dict[str, dict[str, str]]] = {
    "threads": {number: dict.fromkeys(THREADS, number) for number in ("1", "2")},
    "workers": {"1": {}, "4": {}},
    "kernels": {
        "avx2": dict(zip(KERNELS, ("AVX2", "avx2", "AVX2", "Haswell"), strict=True))
        | {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"},
        "avx512": dict(zip(KERNELS, ("DEFAULT", "avx512", "AVX512", "SkylakeX"), strict=True))
        | {"NPY_ENABLE_CPU_FEATURES": "X86_V4"},
    },
    "folder": {"copy": {}, ELSEWHERE: {}},
    "TZ": {zone: {"TZ": zone} for zone in ("UTC0", "XXX-13:45")},
    "LC_ALL": {name: {"LC_ALL": name} for name in ("C", "tr_TR.UTF-8")},
    "PYTHONHASHSEED": {seed: {"PYTHONHASHSEED": seed} for seed in ("0", "random")},
}
STARTING = "dvc itself"


class Clone:
    """HEAD of a repository in a folder below `parent`, with the packages of this Python and its own DVC settings."""

    def __init__(self, source: Path, parent: Path, **factors: str) -> None:
        self.source, self.root, self.python = source, parent / factors.get("folder", "copy"), [sys.executable]
        self.environment = {name: os.environ[name] for name in os.environ if not name.startswith(("DVC_", "GIT_"))}
        for name in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG"):
            self.environment[f"DVC_{name}_DIR"] = str(parent / name)
        self.environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "SHELL": "/bin/sh", "DVC_NO_ANALYTICS": "1"}
        for who in ("AUTHOR", "COMMITTER"):
            self.environment |= {f"GIT_{who}_NAME": "clone", f"GIT_{who}_EMAIL": "clone@clone.invalid"}
        for factor, value in factors.items():
            self.environment |= FACTORS[factor][value]
        if factors.get("threads") == "1" and shutil.which("taskset"):
            self.python = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), sys.executable]
        git = ["git", "-c", "core.hooksPath=/dev/null", "clone", "--template=", "--quiet"]  # none of the user's hooks
        if subprocess.run([*git, str(source), str(self.root)], check=False).returncode:
            raise UserError(f"{source}: git cannot clone it, see above; run this in a clone of the repository")
        (self.root / ".venv").symlink_to(sys.prefix, target_is_directory=True)  # dvc.yaml looks for Python there first
        self.set("compute.workers", int(factors.get("workers", 0)))

    def set(self, key: str, value: object) -> None:
        """Changes params.yaml."""
        path = self.root / "params.yaml"
        values = block = params.read_yaml(path.read_bytes())
        *names, last = key.split(".")
        for name in names:
            block = block[name]
        block[last] = value
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    def apply(self, settings: list[tuple[str, str]]) -> None:
        """Changes params.yaml as `-S KEY=VALUE` does. Relative paths are relative to the source repository.

        Raises `UserError` for a setting that params.yaml cannot have.
        """
        paths = ("data.root", "data.only", "backbone.weights")
        for key, value in settings:
            path = self.source / value
            try:
                parsed = params.read_yaml(value)
                self.set(key, str(path.resolve()) if key in paths and path.exists() else parsed)
            except (KeyError, TypeError, yaml.YAMLError):
                raise UserError(f"-S {key}={value}: give a key of params.yaml and a value in YAML") from None
        file = self.root / "params.yaml"
        try:
            params.load(file)
        except UserError as error:
            raise UserError(f"-S {str(error).removeprefix(f'{file}: ')}") from None

    def remove_results(self) -> None:
        """Removes the committed results; otherwise DVC would not compute those that are up to date."""
        for result in ("dvc.lock", *RESULTS):
            stage.remove(self.root / result)

    def reproduce(self) -> None:
        """Runs the whole pipeline without any earlier result. Raises `UserError` when it fails."""
        self.remove_results()
        repro = [*self.python, "-m", "dvc", "repro", "--no-run-cache"]
        try:
            status = subprocess.run(repro, cwd=self.root, env=self.environment, check=False).returncode
        except BaseException:
            self.kill()  # the stage, whose folder is removed next
            raise
        if status:
            raise UserError(f"the run in {self.root} failed, see above")

    def git(self, *arguments: str) -> str:
        """Runs git in the clone; returns its output."""
        command = ["git", "-c", "core.quotepath=off", *arguments]
        return subprocess.check_output(command, cwd=self.root, env=self.environment, text=True)

    def commit(self) -> None:
        """Commits everything, also the results of a run."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "results")

    def processes(self) -> dict[int, str]:
        """The command lines of all processes that work in the clone, by process number."""
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # it ends meanwhile, or is another user's
                if process.cwd() == str(self.root):
                    found[process.pid] = " ".join(process.cmdline())
        return found

    def kill(self) -> None:
        """Kills all processes that work in the clone."""
        for number in self.processes():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def differences(self) -> list[str]:
        """One line for each out in dvc.lock, and each file in metrics/ and plots/, that differs from HEAD."""
        lines = []
        before = yaml.safe_load(self.git("show", "HEAD:dvc.lock"))["stages"]
        after = yaml.safe_load((self.root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
        for name in sorted(before.keys() | after.keys()):
            old, new = ({out["path"]: out for out in lock.get(name, {}).get("outs", [])} for lock in (before, after))
            changed = [path for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path)]
            lines += [f"{name}: {path} differs" for path in changed]
            if not changed and before.get(name) != after.get(name):
                lines.append(f"{name}: its command, dependencies or parameters differ from those in dvc.lock")
        return lines + self.git("status", "--porcelain", "--", *RESULTS).splitlines()

    def check_differences(self) -> None:
        """Prints the differences from HEAD and raises `UserError` if there are any."""
        if lines := self.differences():
            print(*lines, sep="\n", flush=True)
            raise UserError(f"{len(lines)} differences, listed above; the run stays in {self.root}")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder. If a `UserError` leaves a run in it, it stays, so that the run can be inspected."""
    folder = Path(tempfile.mkdtemp(prefix="verify-")).resolve()  # as psutil names it
    keep = False
    try:
        yield folder
    except UserError:
        keep = any(folder.iterdir())
        raise
    finally:
        if not keep:
            shutil.rmtree(folder)


class Repro:
    """A running `dvc repro` in a clone. `begun` lists the stages that have started, each with its start in seconds."""

    def __init__(self, clone: Clone, *arguments: str) -> None:
        self.clone, self.begun = clone, [(STARTING, time.monotonic())]
        self.output: list[str] = []
        self.process = subprocess.Popen(
            [*clone.python, "-m", "dvc", "repro", *arguments],
            cwd=clone.root,
            env=clone.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def __enter__(self) -> "Repro":
        return self

    def __exit__(self, *error: object) -> None:
        """Ends it if it still runs: Ctrl-C does not reach it, because it has a session of its own."""
        if self.process.poll() is None:
            self.stop()

    def read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.output.append(line.rsplit("\r", 1)[-1])
            if found := re.match(r"Running stage '(.+)':", line):
                self.begun.append((found[1], time.monotonic()))

    def is_at(self, order: list[str], number: int, second: float) -> bool:
        """Whether it has reached this second of stage `number` of `order`, or a later stage."""
        name, start = self.begun[-1]
        past = order.index(name) - number
        return past >= 0 and time.monotonic() - start >= (min(second, 1.0) if past else second)

    def wait(self) -> int:
        """Waits for the end; returns the exit status."""
        self.process.wait()
        self.reader.join()
        return self.process.returncode

    def text(self) -> str:
        """The end of its output, in one line and without warnings."""
        lines = (line for line in self.output if not line.startswith("WARNING"))
        return " ".join("".join(lines).split())[-500:]

    def finish(self) -> None:
        """Waits for the end. Raises `UserError` if it fails."""
        if self.wait():
            raise UserError(f"dvc repro in {self.clone.root} failed: {self.text()}")

    def stop(self, number: signal.Signals = signal.SIGKILL) -> str:
        """Sends a signal to it and to all that it has started; returns the stage that was running.

        Raises `UserError` if a process is still there 30 seconds after DVC has ended.
        """
        running = self.begun[-1][0]
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        self.wait()
        end = time.monotonic() + 30
        while survivors := self.clone.processes():
            if time.monotonic() > end:
                raise UserError(
                    f"{running} was sent {number.name}, but this is still running: {min(survivors.items())[1]}"
                )
            time.sleep(0.1)
        return running

    def seconds(self) -> dict[str, float]:
        """How long each stage took, with DVC's own work for it, in order."""
        ends = [*(start for _, start in self.begun[1:]), time.monotonic()]
        return {name: end - start for (name, start), end in zip(self.begun, ends, strict=True)}


def pair(text: str) -> tuple[str, str]:
    """Parses KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is not KEY=VALUE")
    return key, value
