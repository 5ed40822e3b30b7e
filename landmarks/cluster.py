"""Work on several machines, by Dask distributed (requirements-cluster.txt): `compute.cluster`, docs/cluster.md.

    python -m landmarks scheduler tcp://127.0.0.1:8786    one, near the machine that runs `dvc repro`
    python -m landmarks worker tcp://127.0.0.1:8786       one per machine or GPU

`imap` is all that a stage uses. Tasks are pickled code: whoever reaches the scheduler can run programs as its user.
"""

import asyncio
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from landmarks import stage
from landmarks.stage import UserError
from landmarks.stage.imports import ROOT

import numpy as np

try:
    import dask

    # Errors are one line: no logs of Dask. A worker that is silent for half a minute is given up.
    dask.config.set({"logging": {"distributed": "critical"}, "distributed.scheduler.worker-ttl": "30s"})
    import distributed
except ImportError as error:
    command = "pip install --no-deps -r requirements-cluster.txt"
    raise UserError(f"compute.cluster: {error.name} is missing; {command}, or set it to null") from None

TASKS = 4  # submitted tasks per worker; more would only take memory
SECONDS = 30  # until a scheduler that does not answer, or a run without workers, is given up
CERTIFICATE = "cluster.pem"  # in the repository: certificate and private key of all machines of a tls:// cluster
REJECTED = "rejected"  # topic of the events that tell the driver why a worker is rejected
PACKAGES = ("torch", "numpy", "pillow", "pillow-heif", "timm", "pydantic", "distributed", "dask", "cloudpickle")
LOCAL = {"dashboard_address": "127.0.0.1:0"}  # Dask's web page, for this machine only


def facts() -> dict[str, str]:
    """What all machines must have in common: versions, and a hash of each file of this package."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    files = sorted((ROOT / "landmarks").rglob("*.py"))
    code = {file.relative_to(ROOT).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()[:8] for file in files}
    return {"Python": platform.python_version(), **versions, **code}


FACTS = facts()  # when this process loaded the code


class Rejected(Exception):
    """A worker differs from the driver. The message says in what."""


class Function(distributed.WorkerPlugin):
    """A function that is sent to each worker once, also to those that join later.

    `make` returns the function; `check` is an argument and the array that the function returns for it.
    """

    def __init__(self, make: Callable[[], Callable], check: tuple[Any, np.ndarray]) -> None:
        self.make, self.item, self.answer, self.facts = make, check[0], digest(check[1]), FACTS

    async def setup(self, worker: distributed.Worker) -> None:
        """Makes the function. A worker that differs from the driver tells it why, and ends."""
        try:
            self.function = await asyncio.to_thread(self.checked)
        except Exception as error:
            self.function = reschedule
            reason = str(error) if isinstance(error, Rejected | UserError) else repr(error)
            worker.rejection = f"rejected: {reason}"
            worker.log_event(REJECTED, f"worker {worker.address} {worker.rejection}")
            worker.loop.call_later(1, worker.close)

    def checked(self) -> Callable:
        """The function. Raises `Rejected` if code, versions or the result of the check differ from the driver's."""
        for name, here in FACTS.items():
            there = self.facts.get(name)
            if there != here:
                raise Rejected(f"{name} is {here} there, but {there} here; install the same, and restart the worker")
        function = self.make()
        if digest(function(self.item)) != self.answer:
            raise Rejected("its processor or GPU computes other bits; use the same kind")
        return function


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def reschedule(item: object) -> None:
    """The function of a rejected worker."""
    raise distributed.Reschedule


def call(name: str, item: object) -> np.ndarray:
    """The task: applies the function `name` of the worker."""
    return distributed.get_worker().plugins[name].function(item)


class Cleanup(distributed.SchedulerPlugin):
    """Removes the function of a driver from scheduler and workers when it ends, even by kill -9."""

    def remove_client(self, scheduler: distributed.Scheduler, client: str) -> None:
        if client in scheduler.worker_plugins:
            scheduler.loop.add_callback(scheduler.unregister_worker_plugin, None, name=client)


def imap(
    address: str, make: Callable[[], Callable[[Any], np.ndarray]], items: Iterable, check: tuple[Any, np.ndarray]
) -> Iterator[np.ndarray]:
    """Yields `make()(item)` for each of `items`, in order, computed by the workers of `address` (`compute.cluster`).

    Each worker calls `make` once. Its function must return the same bits as this machine's: `check` is an argument and
    the result. At most `TASKS` items per worker are submitted. Tasks of lost workers run again elsewhere.

    Raises `UserError` if the scheduler or all workers are lost.
    """
    with connect(address) as client:
        cluster = Cluster(client, address)
        cluster.start(Function(make, check))
        waiting: deque[distributed.Future] = deque()
        for number, item in enumerate(items):
            while len(waiting) >= TASKS * max(1, cluster.workers()):
                yield cluster.result(waiting.popleft())
            waiting.append(client.submit(call, client.id, item, key=f"{client.id}-{number}", pure=False))
        while waiting:
            yield cluster.result(waiting.popleft())


class Cluster:
    """A connection to a scheduler, whose failures are `UserError`."""

    def __init__(self, client: distributed.Client, address: str) -> None:
        self.client, self.address = client, address

    def start(self, function: Function) -> None:
        """Waits for a worker, and sends `function` to all of them."""
        self.client.subscribe_topic(REJECTED, lambda event: print(f"compute.cluster: {event[1]}", file=sys.stderr))
        with suppress(TimeoutError):
            self.client.wait_for_workers(1, timeout=SECONDS)
        with self.errors():
            self.client.register_plugin(function, name=self.client.id)

    def result(self, future: distributed.Future) -> np.ndarray:
        """Waits for a result."""
        while True:
            try:
                with self.errors(future):
                    return future.result(timeout=SECONDS)
            except TimeoutError:  # a long task, or a worker that hangs: the scheduler gives its tasks to others
                if not self.workers():
                    text = f"{self.address} has no worker; run `python -m landmarks worker ADDRESS`, then this again"
                    raise UserError(f"compute.cluster: {text}") from None

    def workers(self) -> int:
        """The number of workers."""
        with self.errors():
            return len(self.client.nthreads())

    @contextmanager
    def errors(self, future: distributed.Future | None = None) -> Iterator[None]:
        """Turns Dask's errors into `UserError`. An exception that a task, `future`, has raised stays as it is."""
        try:
            yield
        except distributed.KilledWorker as error:
            text = f"the same {error.allowed_failures + 1} workers have ended in one task; give them more memory"
            raise UserError(f"compute.cluster: {text}") from None
        except (OSError, distributed.CancelledError, distributed.client.ClosedClientError) as error:
            if future and (future.status == "error" or isinstance(error, TimeoutError)):
                raise
            text = f"the scheduler at {self.address} was lost; start it and its workers, then this again"
            raise UserError(f"compute.cluster: {text}") from None


@contextmanager
def connect(address: str) -> Iterator[distributed.Client]:
    """Connects to a scheduler, or starts one with workers on this machine. Raises `UserError` if nobody answers."""
    with ExitStack() as held:
        if address.startswith("local:"):
            address = held.enter_context(local_workers(int(address.removeprefix("local:"))))
        try:
            options = {"timeout": SECONDS, "security": security(address), "direct_to_workers": True}
            client = held.enter_context(distributed.Client(address, set_as_default=False, **options))
        except OSError as error:
            raise unreachable(address, error) from None
        yield client


def unreachable(address: str, error: OSError) -> UserError:
    """Why the scheduler at `address` cannot be used."""
    while isinstance(error.__cause__, OSError):  # Dask reports the last attempt in its own words
        error = error.__cause__
    text = f"no scheduler that this machine can use answers at {address} ({error})"
    return UserError(f"compute.cluster: {text}; start `python -m landmarks scheduler` or correct the address")


@contextmanager
def local_workers(number: int) -> Iterator[str]:
    """The address of a scheduler in this process with `number` workers on this machine, which share its cores and GPUs.

    All of it ends with this process.
    """
    import torch
    from joblib import cpu_count  # respects CPU affinity and container limits

    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    threads = str(max(1, cpu_count() // number))
    with distributed.LocalCluster(n_workers=0, host="127.0.0.1", **LOCAL) as cluster, ExitStack() as processes:
        code = f"from landmarks import cluster, features, stage; stage.exit_with_parent({os.getpid()}); cluster.work"
        command = [sys.executable, "-c", f"{code}({cluster.scheduler_address!r})"]
        for n in range(number):
            gpu = gpus.split(",")[n % len(gpus.split(","))]
            environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": gpu}
            process = subprocess.Popen(command, env=os.environ | environment, start_new_session=True)
            processes.callback(process.wait)
            processes.callback(process.kill)
        yield cluster.scheduler_address


def security(address: str) -> distributed.Security | None:
    """The certificate of a tls:// address. Raises `UserError` without one."""
    if not address.startswith("tls://"):
        return None
    path = stage.repository() / CERTIFICATE
    if not path.is_file():
        raise UserError(f"{path}: not found; docs/cluster.md has the command that makes it")
    roles = {f"tls_{role}_{part}": str(path) for role in ("client", "scheduler", "worker") for part in ("cert", "key")}
    return distributed.Security(tls_ca_file=str(path), require_encryption=True, **roles)


def schedule(address: str) -> None:
    """Runs a scheduler that listens at `address`, until it is interrupted."""

    async def run() -> None:
        protocol, _, place = address.partition("://")
        host, _, port = place.rpartition(":")
        options = {"host": host, "port": int(port), "protocol": protocol, "security": security(address)}
        async with distributed.Scheduler(**options, **LOCAL) as scheduler:
            scheduler.add_plugin(Cleanup())
            print(f"scheduler at {scheduler.address}", flush=True)
            await scheduler.finished()

    asyncio.run(run())


def work(address: str) -> None:
    """Runs a worker of the scheduler at `address` until that ends. Raises `UserError` if a driver rejects it."""

    async def run() -> str | None:
        options = {"nthreads": 1, "memory_limit": 0, "death_timeout": SECONDS, "security": security(address)}
        async with distributed.Worker(address, **options, **LOCAL) as worker:
            print(f"worker {worker.address} of {address}", flush=True)
            await worker.finished()
            return getattr(worker, "rejection", None)

    try:
        rejection = asyncio.run(run())
    except TimeoutError as error:
        raise unreachable(address, error) from None
    if rejection:
        raise UserError(rejection)
