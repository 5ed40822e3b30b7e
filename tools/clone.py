"""A clone of the repository to run the pipeline in, without DVC's cache and under stated circumstances."""

import argparse
import json
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
from contextlib import contextmanager
from pathlib import Path

from landmarks import stage
from landmarks.stage import UserError

import psutil
import yaml

RESULTS = ("metrics", "plots")  # what git keeps of the outs
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
KERNELS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_CBWR", "OPENBLAS_CORETYPE")
ELSEWHERE = "ein Ördner, elsewhere"
# What each value of a factor puts into the environment. `workers` is compute.workers, `folder` the name of the clone;
# with one thread there is one core as well.
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
    """HEAD of a repository below `parent`, with the packages of this Python and no cache or setting of DVC."""

    def __init__(self, source: Path, parent: Path, **factors: str) -> None:
        self.source, self.root, self.command = source, parent / factors.get("folder", "copy"), [sys.executable]
        self.environment = {name: os.environ[name] for name in os.environ if not name.startswith(("DVC_", "GIT_"))}
        for name in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG"):
            self.environment[f"DVC_{name}_DIR"] = str(parent / name)
        for factor, value in factors.items():
            self.environment |= FACTORS[factor][value]
        if factors.get("threads") == "1" and shutil.which("taskset"):
            self.command = ["taskset", "--cpu-list", "0", sys.executable]
        subprocess.run(["git", "clone", "--quiet", str(source), str(self.root)], check=True)
        (self.root / ".venv").symlink_to(sys.prefix, target_is_directory=True)  # dvc.yaml looks for Python there first
        self.set("compute.workers", int(factors.get("workers", 0)))

    def set(self, key: str, value: object) -> None:
        """Changes params.yaml."""
        params = self.root / "params.yaml"
        values = block = yaml.safe_load(params.read_text(encoding="utf-8"))
        *names, last = key.split(".")
        for name in names:
            block = block[name]
        block[last] = value
        params.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    def settle(self, settings: list[tuple[str, str]]) -> None:
        """Changes params.yaml as `-S KEY=VALUE` says; a relative data.root is one of the source's."""
        for key, value in settings:
            path = self.source / value
            self.set(key, str(path.resolve()) if key == "data.root" and path.exists() else yaml.safe_load(value))

    def forget(self) -> None:
        """Removes the committed results, for what is there already, and right, would not be made again."""
        for result in ("dvc.lock", *RESULTS):
            stage.remove(self.root / result)

    def run(self) -> None:
        """The whole pipeline, from nothing. Raises `UserError` when it fails."""
        self.forget()
        repro = [*self.command, "-m", "dvc", "repro", "--no-run-cache"]
        if subprocess.run(repro, cwd=self.root, env=self.environment, check=False).returncode:
            raise UserError(f"the run in {self.root} failed, see above")

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "core.quotepath=off", *arguments]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=True).stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("-c", "user.name=verify", "-c", "user.email=", "commit", "--quiet", "--message", "the first run")

    def differences(self) -> list[str]:
        """A line for every out in dvc.lock, and every file in metrics/ and plots/, that is not as at HEAD."""
        lines = []
        before = yaml.safe_load(self.git("show", "HEAD:dvc.lock"))["stages"]
        after = yaml.safe_load((self.root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
        for name in sorted(before.keys() | after.keys()):
            old, new = (
                {out["path"]: out for out in stages.get(name, {}).get("outs", [])} for stages in (before, after)
            )
            found = [path for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path)]
            lines += [f"{name}: {path} differs{self.members(old.get(path), new.get(path))}" for path in found]
            if not found and before.get(name) != after.get(name):
                lines.append(f"{name}: its command, dependencies or parameters differ from those in dvc.lock")
        return lines + self.git("status", "--porcelain", "--", *RESULTS).splitlines()

    def members(self, old: dict | None, new: dict | None) -> str:
        """The files that differ between two states of a directory, if a cache has the lists."""
        lists = []
        for out in (old, new):
            md5 = (out or {}).get("md5", "-")
            paths = [root / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}" for root in (self.source, self.root)]
            path = next(filter(Path.is_file, paths), None)
            if path is None or not md5.endswith(".dir"):
                return ""
            lists.append({entry["relpath"]: entry["md5"] for entry in json.loads(path.read_text(encoding="utf-8"))})
        names = lists[0].keys() | lists[1].keys()
        return ": " + ", ".join(sorted(name for name in names if lists[0].get(name) != lists[1].get(name)))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder, which stays, to be looked at, when a run fails or differs."""
    folder = Path(tempfile.mkdtemp(prefix="verify-"))
    try:
        yield folder
    except UserError:
        raise
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


class Repro:
    """A `dvc repro` that runs in a clone. `begun` has each stage that it has begun, with the second when."""

    def __init__(self, clone: Clone) -> None:
        self.root, self.begun, self.said = clone.root, [(STARTING, time.monotonic())], []
        self.process = subprocess.Popen(
            [*clone.command, "-m", "dvc", "repro"],
            cwd=clone.root,
            env=clone.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        for line in self.process.stdout:
            self.said.append(line.rsplit("\r", 1)[-1])
            if found := re.match(r"Running stage '(.+)':", line):
                self.begun.append((found[1], time.monotonic()))

    def is_at(self, order: list[str], number: int, second: float) -> bool:
        """Whether it has come to that second of stage `number` of `order`, or is just past that stage."""
        name, start = self.begun[-1]
        past = order.index(name) - number
        return past >= 0 and time.monotonic() - start >= (min(second, 1.0) if past else second)

    def wait(self) -> int:
        self.process.wait()
        self.reader.join()
        return self.process.returncode

    def kill(self) -> str:
        """Kills it and all it has started; returns the stage that was running. Raises `UserError` if one survives."""
        running = self.begun[-1][0]
        os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()
        time.sleep(1)
        for process in psutil.process_iter(["cwd", "cmdline"]):
            if process.info["cwd"] == str(self.root):
                raise UserError(f"{running} was killed, and this one lives: {' '.join(process.info['cmdline'])}")
        return running

    def seconds(self) -> dict[str, float]:
        """How long each stage took, with what DVC had to do for it, in order."""
        ends = [*(start for _, start in self.begun[1:]), time.monotonic()]
        return {name: end - start for (name, start), end in zip(self.begun, ends, strict=True)}


def pair(text: str) -> tuple[str, str]:
    """KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is not KEY=VALUE")
    return key, value
