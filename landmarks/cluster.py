"""Work on several machines, by Dask distributed (requirements-cluster.txt): `compute.cluster`, docs/cluster.md.

`imap` is all that a stage uses. The process of the stage is the driver. Tasks are pickled code: whoever reaches a
scheduler, a worker or a driver can run programs as its user.
"""

import asyncio
import hashlib
import importlib.metadata
import multiprocessing
import os
import platform
import ssl
import subprocess
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

from landmarks import stage
from landmarks.stage import UserError
from landmarks.stage.errors import explain
from landmarks.stage.imports import ROOT
from landmarks.stage.signals import interrupt_on_termination

from tqdm import tqdm

try:
    import dask

    # Errors are one line: no logs of Dask.
    loggers = ("distributed", "distributed.client", "tornado.application", "asyncio")
    dask.config.set({"logging": dict.fromkeys(loggers, "critical"), "distributed.client.direct-to-workers": True})
    dask.config.set({"distributed.scheduler.allowed-failures": 9})  # workers that end in a task, killed or not
    import distributed
    from distributed import core, protocol, utils
    from distributed.exceptions import WorkerStartTimeoutError

    warnings.filterwarnings("ignore", module="distributed")
except ImportError as error:
    text = f"{error.name} is missing; pip install --no-deps -r requirements-cluster.txt"
    raise UserError(f"compute.cluster: {text}") from None

TASKS = 4  # submitted tasks per worker; more would only take memory
SECONDS = 30  # how long to wait for a scheduler, and for a silent worker
START_SECONDS = 120  # how long to wait for the first worker, which imports torch, maybe from a slow disk
DRIVER_SECONDS = 300  # how long a worker waits for an answer of the driver
CLOSE_SECONDS = 10  # how long a worker that ends waits for its task; Slurm and Kubernetes kill it after 30
CERTIFICATE = "cluster.pem"  # in the repository: certificate and private key of all machines of a tls:// cluster
START = f"start the scheduler, or correct the address or {CERTIFICATE}"
OTHER_BITS = "its processor or GPU computes other bits; use the same kind"  # a reason
PACKAGES = (
    *("torch", "numpy", "pillow", "pillow-heif", "timm", "pydantic", "distributed", "dask", "cloudpickle"),
    *("pandas", "pyarrow", "safetensors", "dvclive"),  # of the files that a training leaves
)
LOCAL: dict[str, Any] = {"dashboard_address": "127.0.0.1:0"}  # Dask's web page, for this machine only


def facts() -> dict[str, str]:
    """What all machines must have in common: versions, and a hash of each file of this package."""
    found = {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    for file in sorted((ROOT / "landmarks").rglob("*.py")):
        found[file.relative_to(ROOT).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    return found


FACTS = facts()  # of the code that this process has loaded
rejections: list[str] = []  # why this process, a worker, was rejected


class Driver:
    """On a worker: the driver. Its methods are the `functions` that the stage gives to `imap`."""

    def __init__(self, address: str, worker: distributed.Worker) -> None:
        self.address, self.worker = address, worker

    def __getattr__(self, name: str) -> Callable:
        def ask(*arguments: object) -> object:
            send, data = self.worker.rpc(self.address).call, protocol.to_serialize(arguments)
            try:
                return utils.sync(self.worker.loop, send, callback_timeout=DRIVER_SECONDS, name=name, arguments=data)
            except OSError as error:  # also a TimeoutError
                raise UserError(f"the driver, {self.address}: {explain(error)}") from None

        return ask


@lru_cache(2)  # runs at the same time
def prepared(run: str, address: str, worker: distributed.Worker) -> Callable[[int], Any]:
    """A function that processes an item of a run, whose driver is at `address`, by its number.

    A worker that cannot make it says why, and ends. Only a worker with the driver's code unpickles an item.
    """
    if rejections:
        raise distributed.Reschedule
    driver = Driver(address, worker)
    try:
        theirs = driver.facts()
        for name, here in FACTS.items():
            if here != (there := theirs.get(name)):
                raise UserError(f"its {name} is {here}, the driver's {there}; install the same, and restart it")
        process = driver.make()(driver)
        return lambda number: process(driver.item(number))
    except Exception as error:
        reason = f"rejected: {explain(error) or repr(error)}"
        driver.reject(f"worker {worker.address} {reason}")  # an error if the driver has ended
        rejections.append(reason)
        worker.loop.add_callback(worker.close_gracefully)
        raise distributed.Reschedule from None


def run_task(run: str, address: str, number: int) -> object:
    """The task: processes an item of a run."""
    worker = distributed.get_worker()
    try:
        return prepared(run, address, worker)(number)
    except Exception as error:
        if (text := explain(error)) is None:
            raise
        text = text if isinstance(error, UserError) else f"worker {worker.address}: {text or repr(error)}"
    raise UserError(text)  # outside of `except`, so that it has no context, which could not always be pickled


def imap(address: str, make: Callable, items: Iterable, functions: dict[str, Callable]) -> Iterator[Any]:
    """Yields `make(driver)(item)` for each of `items`, in order, computed by the workers of `address`.

    Each worker calls `make` before its first task of this run; an error rejects the worker. `driver` has the methods
    `functions`, which this process runs, in several threads. At most `TASKS` items per worker are submitted: to the
    scheduler, a task is a number, and its worker fetches the item. Tasks of lost workers run again elsewhere. Raises
    `UserError` if the scheduler or all workers are lost.
    """
    submitted: dict[int, Any] = {}
    functions = functions | {"facts": lambda: FACTS, "make": lambda: make, "item": submitted.__getitem__}
    functions["reject"] = lambda line: tqdm.write(f"compute.cluster: {line}", sys.stderr)
    with connect(address, functions) as (client, driver):
        waiting: list[distributed.Future] = []

        def results(limit: int) -> Iterator[Any]:
            while len(waiting) >= limit:
                with explained(address):
                    try:
                        found = waiting[0].result(timeout=SECONDS)
                    except TimeoutError:  # a long task, or a worker that hangs: the scheduler gives its tasks to others
                        client.nthreads(callback_timeout=SECONDS)  # an error if the scheduler hangs
                        client.wait_for_workers(1, timeout=SECONDS)  # an error if all workers have ended
                        continue
                del waiting[0], submitted[next(iter(submitted))]
                yield found

        for number, item in enumerate(items):
            submitted[number] = item
            with explained(address):
                waiting.append(client.submit(run_task, client.id, driver, number, key=f"{client.id}-{number}"))
                workers = len(client.nthreads(callback_timeout=SECONDS))
            yield from results(TASKS * max(1, workers))
        yield from results(1)


@contextmanager
def explained(address: str, fix: str = START) -> Iterator[None]:
    """Turns Dask's errors into `UserError`. `fix` is what to do if the connection fails."""
    try:
        yield
        return
    except distributed.KilledWorker as error:
        text = f"{error.allowed_failures + 1} workers have ended in the same task; give them more memory"
    except WorkerStartTimeoutError:
        start = "close other programs" if address.startswith("local:") else "run `python -m landmarks worker ADDRESS`"
        text = f"{address} has no worker; {start}, then this again"
    except TimeoutError:
        text = f"{address}: the scheduler does not answer; {fix}"
    except (OSError, RuntimeError, distributed.CancelledError, distributed.client.ClosedClientError) as error:
        cause: BaseException = error
        while cause.__cause__:  # Dask's own words do not say why
            cause = cause.__cause__
        if isinstance(error, RuntimeError) and not isinstance(cause, OSError):
            raise
        text = f"{address}: {str(cause) or error}; {fix}"
    raise UserError(f"compute.cluster: {text}")


@contextmanager
def connect(address: str, functions: dict[str, Callable]) -> Iterator[tuple[distributed.Client, str]]:
    """Connects to a scheduler, or starts one with workers on this machine.

    Also yields the address at which workers call `functions`.
    """

    async def answer(name: str, arguments: tuple) -> object:
        return protocol.to_serialize(await asyncio.to_thread(functions[name], *arguments))

    async def listen() -> core.Server:
        server = core.Server({"call": answer}, needs_workdir=False)
        await server.listen(host, **options["security"].get_listen_args("worker"))
        return server

    with ExitStack() as held:
        kind, _, number = address.partition(":")
        place = held.enter_context(local_workers(int(number))) if kind == "local" else address
        options: dict[str, Any] = {"timeout": SECONDS, "security": security(place), "set_as_default": False}
        with explained(address):
            host = asyncio.run(own_host(place, options["security"]))
            client = held.enter_context(distributed.Client(place, **options))
            client.wait_for_workers(1, timeout=START_SECONDS)
        server = client.sync(listen)
        held.callback(client.sync, server.close)
        yield client, server.address


async def own_host(address: str, security: distributed.Security) -> str:
    """This machine's address on the network interface that leads to a scheduler, such as tcp://10.0.0.2.

    Raises `OSError` if no scheduler answers at `address`.
    """
    async with asyncio.timeout(SECONDS + 1):  # that of `connect` does not cover the handshake
        try:
            comm = await distributed.comm.connect(address, timeout=SECONDS, **security.get_connection_args("worker"))
        except MemoryError:  # the greeting of another kind of server, taken for a length
            raise OSError("not the address of a scheduler") from None
        found = await core.send_recv(comm, op="identity")
        await comm.close()
    if found["type"] != "Scheduler":
        raise OSError(f"not the address of a scheduler, but of a {found['type'].lower()}")
    return comm.local_address.rpartition(":")[0]


@contextmanager
def local_workers(number: int) -> Iterator[str]:
    """The address of a scheduler in this process, whose `number` workers share this machine, and end with it."""
    import torch
    from joblib import cpu_count  # respects CPU affinity and container limits

    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(max(1, cpu_count() // number))}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # a thread that waits leaves the core to another worker
    options = LOCAL | {"host": "127.0.0.1", "scheduler_kwargs": {"worker_ttl": SECONDS}}
    with distributed.LocalCluster(n_workers=0, **options) as cluster, ExitStack() as processes:
        command = [sys.executable, "-m", "landmarks", "worker", cluster.scheduler_address]
        for gpu in (gpus.split(",") * number)[:number]:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
            processes.callback(processes.enter_context(process).kill)
        yield cluster.scheduler_address


def security(address: str) -> distributed.Security:
    """The certificate of a tls:// address. Raises `UserError` without one."""
    if not address.startswith("tls://"):
        return distributed.Security()
    path = stage.repository() / CERTIFICATE
    try:
        ssl.create_default_context().load_cert_chain(path)
    except OSError as error:  # also of ssl
        reason = "not found" if isinstance(error, FileNotFoundError) else "no certificate with its private key"
        raise UserError(f"{path.absolute()}: {reason}; docs/cluster.md has the command that makes it") from None
    names = ("tls_ca_file", "tls_client_cert", "tls_scheduler_cert", "tls_worker_cert")  # which has the key, too
    return distributed.Security(require_encryption=True, **dict.fromkeys(names, str(path)))


def run(address: str, main: Coroutine, fix: str = START) -> None:
    """Runs a scheduler or a worker until it ends. Ctrl-C, SIGTERM and a closed terminal let it remove its files."""
    interrupt_on_termination()
    with explained(address, fix):
        asyncio.run(main)


def schedule(address: str) -> None:
    """Runs a scheduler that listens at `address`, until it is interrupted."""
    options = LOCAL | {"worker_ttl": SECONDS, "security": security(address)}

    async def serve() -> None:
        async with distributed.Scheduler(host=address, **options) as scheduler:
            print(f"scheduler at {scheduler.address}", flush=True)
            await scheduler.finished()

    run(address, serve(), "give a free port of an address of this machine")


def work(address: str) -> None:
    """Runs a worker of the scheduler at `address` until that ends. Raises `UserError` if a driver rejects it."""
    options = LOCAL | {"nthreads": 1, "memory_limit": 0, "security": security(address)}
    os.environ["TQDM_DISABLE"] = "1"  # in its processes: only the driver shows progress

    async def serve() -> None:
        options["host"] = await own_host(address, options["security"])  # first, because a worker hides why it fails
        worker = await distributed.Worker(address, **options)
        try:
            print(f"worker {worker.address} of {address}", flush=True)
            await worker.finished()
        finally:
            try:
                async with asyncio.timeout(2 * CLOSE_SECONDS):  # `close` applies its own timeout to each of its steps
                    await worker.close(timeout=CLOSE_SECONDS)
            finally:
                for process in multiprocessing.active_children():  # Python would wait for a training that still runs
                    process.kill()

    run(address, serve())
    if rejections:
        raise UserError(rejections[0])
    print(f"worker ended: {address} has closed the connection")
