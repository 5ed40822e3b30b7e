"""A scheduler and workers on the loopback address, each started as a user starts them."""

import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from landmarks.stage.imports import ROOT

PATIENCE = 120  # seconds until a process must have printed its first line


class Machines:
    """The processes, which run in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, list[subprocess.Popen]()

    def start(self, *arguments: str, code: str = "", **environment: str) -> str:
        """Starts `landmarks scheduler` or `worker`, or `code`; returns its address, or else the line that it prints."""
        command = [sys.executable, *(["-c", code] if code else ["-m", "landmarks"]), *arguments]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | environment
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=self.folder, env=environment, **pipes)
        self.processes.append(process)
        assert select.select([process.stdout], [], [], PATIENCE)[0], "it has printed nothing"
        line = process.stdout.readline()
        found = re.match(r"(?:scheduler at|worker) (\S+)", line)
        return found[1] if found else line

    def schedule(self, silent: int = 30) -> str:
        """Starts a scheduler that gives up workers that are `silent` for so many seconds."""
        code = f"from landmarks import cluster; cluster.SECONDS = {silent}; cluster.schedule('tcp://127.0.0.1:0')"
        return self.start(code=code)

    def work(self, address: str, **environment: str) -> str:
        """Starts a worker for tasks that need no PyTorch, without which it starts five times as fast."""
        return self.start(code=f"from landmarks import cluster; cluster.work({address!r})", **environment)

    @contextmanager
    def replaced(self, number: int, start: Callable[[], object]) -> Iterator[None]:
        """Within it, the last `number` processes must end. Then `start` starts another one."""
        processes = self.processes[-number:]
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(lambda: ([process.wait(PATIENCE) for process in processes], start()))
            yield
            other.result()

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
