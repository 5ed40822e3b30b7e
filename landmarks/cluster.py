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
import ssl
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from landmarks import stage
from landmarks.stage import UserError
from landmarks.stage.errors import explain
from landmarks.stage.imports import ROOT

import numpy as np
from tqdm import tqdm

try:
    import dask

    # Errors are one line: no logs of Dask.
    loggers = ("distributed", "distributed.client", "tornado.application", "asyncio")
    dask.config.set({"logging": dict.fromkeys(loggers, "critical")})
    import distributed
    from distributed.comm import connect as connect_to
except ImportError as error:
    text = f"{error.name} is missing; pip install --no-deps -r requirements-cluster.txt"
    raise UserError(f"compute.cluster: {text}") from None

TASKS = 4  # submitted tasks per worker; more would only take memory
SECONDS = 30  # until something that does not answer is given up: a scheduler, a worker, a run without workers
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
rejections: list[str] = []  # why this process, a worker, was rejected


class Function(distributed.WorkerPlugin):
    """A function that is sent to each worker once, also to those that join later.

    `make` returns the function; `check` is an argument and the array that the function returns for it.
    """

    def __init__(self, make: Callable[[], Callable], check: tuple[Any, np.ndarray]) -> None:
        self.function: Callable = make
        self.make, self.item, self.answer, self.facts = make, check[0], digest(check[1]), FACTS

    async def setup(self, worker: distributed.Worker) -> None:
        """Makes the function. A worker that differs from the driver tells it why, and ends."""
        try:
            self.function = await asyncio.to_thread(self.checked)
        except Exception as error:
            self.function = reschedule
            rejections.append(f"rejected: {explain(error) or repr(error)}")
            line = f"worker {worker.address} {rejections[0]}"
            worker.loop.call_later(0.5, worker.log_event, REJECTED, line)  # by then the driver listens
            worker.loop.call_later(1, worker.close)

    def checked(self) -> Callable:
        """The function. Raises `UserError` if code, versions or the result of the check differ from the driver's."""
        for name, here in FACTS.items():
            there = self.facts.get(name)
            if there != here:
                raise UserError(f"its {name} is {here}, the driver's {there}; install the same, and restart it")
        function = self.make()
        if digest(function(self.item)) != self.answer:
            raise UserError("its processor or GPU computes other bits; use the same kind")
        return function


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def reschedule(item: object) -> np.ndarray:
    """The function of a rejected worker."""
    raise distributed.Reschedule


def call(name: str, item: object) -> np.ndarray:
    """The task: applies the function `name` of the worker."""
    return cast(Function, distributed.get_worker().plugins[name]).function(item)


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
    the result. At most `TASKS` items per worker are submitted. Tasks of lost workers run again elsewhere. Raises
    `UserError` if the scheduler or all workers are lost.
    """
    with connect(address) as (client, address):
        waiting: deque[distributed.Future] = deque()
        with explained(address):
            client.subscribe_topic(REJECTED, lambda event: tqdm.write(f"compute.cluster: {event[1]}", sys.stderr))
            client.wait_for_workers(1, timeout=SECONDS)
            client.register_plugin(Function(make, check), name=client.id)
        for number, item in enumerate(items):
            with explained(address):
                while len(waiting) >= TASKS * max(1, len(client.nthreads())):
                    yield result(waiting.popleft(), client)
                waiting.append(client.submit(call, client.id, item, key=f"{client.id}-{number}", pure=False))
        with explained(address):
            while waiting:
                yield result(waiting.popleft(), client)


def result(future: distributed.Future, client: distributed.Client) -> np.ndarray:
    """Waits for the result of a task."""
    while True:
        try:
            return future.result(timeout=SECONDS)
        except TimeoutError:  # a long task, or a worker that hangs: the scheduler gives its tasks to others
            client.wait_for_workers(1, timeout=1)


@contextmanager
def explained(
    address: str, fix: str = f"start the scheduler, or correct the address or {CERTIFICATE}"
) -> Iterator[None]:
    """Turns Dask's errors into `UserError`. `fix` is what to do if the connection fails."""
    try:
        yield
    except distributed.KilledWorker as error:
        text = f"{error.allowed_failures + 1} workers have ended in the same task; give them more memory"
    except TimeoutError:  # of `wait_for_workers`
        text = f"{address} has no worker; run `python -m landmarks worker ADDRESS`, then this again"
    except (OSError, RuntimeError, distributed.CancelledError, distributed.client.ClosedClientError) as error:
        cause: BaseException = error
        while cause.__cause__:  # Dask's own words do not say why
            cause = cause.__cause__
        if isinstance(error, RuntimeError) and not isinstance(cause, OSError):
            raise
        text = f"{address}: {str(cause) or error}; {fix}"
    else:
        return
    raise UserError(f"compute.cluster: {text}")


@contextmanager
def connect(address: str) -> Iterator[tuple[distributed.Client, str]]:
    """Connects to a scheduler, or starts one with workers on this machine. Yields also its address."""
    with ExitStack() as held:
        if address.startswith("local:"):
            address = held.enter_context(local_workers(int(address.removeprefix("local:"))))
        options = {"timeout": SECONDS, "security": security(address), "direct_to_workers": True}
        with explained(address):
            client = held.enter_context(distributed.Client(address, set_as_default=False, **options))
        yield client, address


@contextmanager
def local_workers(number: int) -> Iterator[str]:
    """The address of a scheduler in this process, whose `number` workers share this machine, and end with it."""
    import torch
    from joblib import cpu_count  # respects CPU affinity and container limits

    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(max(1, cpu_count() // number))}
    options: dict[str, Any] = LOCAL | {"n_workers": 0, "host": "127.0.0.1"}
    with distributed.LocalCluster(**options) as cluster, ExitStack() as processes:
        code = f"from landmarks import cluster, features, stage; stage.exit_with_parent({os.getpid()}); cluster.work"
        command = [sys.executable, "-c", f"{code}({cluster.scheduler_address!r})"]
        for n in range(number):
            environment["CUDA_VISIBLE_DEVICES"] = gpus.split(",")[n % len(gpus.split(","))]
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
            processes.callback(process.wait)
            processes.callback(process.kill)
        yield cluster.scheduler_address


def security(address: str) -> distributed.Security | None:
    """The certificate of a tls:// address. Raises `UserError` without one."""
    if not address.startswith("tls://"):
        return None
    path = stage.repository() / CERTIFICATE
    try:
        ssl.create_default_context().load_cert_chain(path)
    except OSError as error:  # also of ssl
        reason = "not found" if isinstance(error, FileNotFoundError) else "no certificate with its private key"
        raise UserError(f"{path}: {reason}; docs/cluster.md has the command that makes it") from None
    roles = {f"tls_{role}_{part}": str(path) for role in ("client", "scheduler", "worker") for part in ("cert", "key")}
    return distributed.Security(tls_ca_file=str(path), require_encryption=True, **roles)


def schedule(address: str) -> None:
    """Runs a scheduler that listens at `address`, until it is interrupted."""
    options: dict[str, Any] = LOCAL | {"host": address, "worker_ttl": SECONDS}

    async def run() -> None:
        async with distributed.Scheduler(**options, security=security(address)) as scheduler:
            scheduler.add_plugin(Cleanup())
            print(f"scheduler at {scheduler.address}", flush=True)
            await scheduler.finished()

    with explained(address, "give a free port of an address of this machine"):
        asyncio.run(run())


def work(address: str) -> None:
    """Runs a worker of the scheduler at `address` until that ends. Raises `UserError` if a driver rejects it."""
    options: dict[str, Any] = LOCAL | {"nthreads": 1, "memory_limit": 0, "security": security(address)}

    async def run() -> None:
        secure = options["security"].get_connection_args("worker") if options["security"] else {}
        comm = await connect_to(address, timeout=SECONDS, **secure)  # a worker would not say why this fails
        options["host"] = comm.local_address.rpartition(":")[0]  # listens only on the interface that leads there
        await comm.close()
        async with distributed.Worker(address, **options) as worker:
            print(f"worker {worker.address} of {address}", flush=True)
            await worker.finished()

    with explained(address):
        asyncio.run(run())
    if rejections:
        raise UserError(rejections[0])
