"""Several workers on the loopback address: the same features, and what happens if something is lost or differs."""

import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

from landmarks import augment, features, images, networks
from landmarks.serving.cli import main

import cluster_tasks
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, VGG, VIEWS, pictures, random_weights, user_error
from machines import Machines

pytest.importorskip("distributed", reason="needs requirements-cluster.txt, see docs/cluster.md")
from landmarks import cluster

from distributed.exceptions import WorkerStartTimeoutError

COUNT, CROP = 200, 32


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    machines = Machines(tmp_path)
    yield machines
    machines.end()


def wait(address: str, items: int, seconds: float = 0.2) -> Iterator[tuple[int, int]]:
    """Tasks that wait: yields the number of each and the process that ran it."""
    return cluster.imap(address, partial(cluster_tasks.waiting, seconds), range(items), {})


class Work:
    """Four row groups of pictures, their index, and a trunk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        images.write_shards(directory, pictures(COUNT), COUNT)
        table = pd.DataFrame({"id": [p.id for p in pictures(COUNT)], "width": 96, "height": 80, "split": "train"})
        self.index = augment.draw(table, VIEWS, seed=1)
        self.weights = random_weights("vgg16", 1)
        self.trunk = networks.Trunk(self.weights, VGG)

    @cached_property
    def here(self) -> bytes:
        """The features, computed by this process."""
        return np.concatenate(list(features.extract(self.trunk, self.directory, self.index, CROP))).tobytes()

    def on(self, address: str, done: int = 0) -> list[np.ndarray]:
        """The features after the first `done` rows, computed by a cluster."""
        kept, left = networks.trunk_weights(self.weights, VGG), self.index.iloc[done:]
        extract = features.extract_on_cluster
        return list(extract(address, self.trunk, kept, VGG, self.directory, left, CROP, "float32"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("shards"))


def test_without_a_cluster_dask_is_not_imported() -> None:
    stages = "stages.download, stages.extract_features, stages.train, stages.train_repeats"
    code = f"import sys, {stages}; print('distributed' in sys.modules, 'dask' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_nothing_left_needs_no_cluster(work: Work) -> None:
    assert work.on("tcp://127.0.0.1:1", len(work.index)) == []


@pytest.mark.slow
def test_workers_give_the_same_features(work: Work) -> None:
    whole = work.on("local:2")
    assert [len(part) for part in whole] == [128, 128, 128, 16]
    assert np.concatenate(whole).tobytes() == work.here


@pytest.mark.slow
@pytest.mark.parametrize("event", [signal.SIGKILL, signal.SIGSTOP])
def test_tasks_of_a_lost_worker_run_elsewhere(
    machines: Machines, event: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that hangs is given up: by the scheduler, and by the driver that fetches a result."""
    monkeypatch.setattr(cluster, "SECONDS", 10)
    address = machines.schedule(silent=10)
    for _ in range(2):
        machines.work(address)
    found = wait(address, 30)
    begun = list(islice(found, 8))
    machines.processes[1].send_signal(event)
    assert [number for number, _ in [*begun, *found]] == list(range(30))
    assert {process for _, process in begun} == {process.pid for process in machines.processes[1:]}


@pytest.mark.slow
def test_late_workers_share_the_work(machines: Machines) -> None:
    address = machines.schedule()
    machines.work(address)
    found = wait(address, 40)
    first = list(islice(found, 5))
    machines.work(address)
    assert {process for _, process in first} == {machines.processes[1].pid}
    assert machines.processes[2].pid in {process for _, process in found}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "event", "message"),
    [
        (0, signal.SIGKILL, "start the scheduler"),
        (0, signal.SIGSTOP, "the scheduler does not answer; start the scheduler"),
        (1, signal.SIGKILL, "has no worker; run `python -m landmarks worker"),
    ],
    ids=["scheduler ends", "scheduler hangs", "worker ends"],
)
def test_losing_all_of_it_is_one_line(
    machines: Machines, lost: int, event: signal.Signals, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers end with their scheduler."""
    monkeypatch.setattr(cluster, "SECONDS", 10)
    address = machines.schedule()
    machines.work(address)
    found = wait(address, 30)
    next(found)
    machines.processes[lost].send_signal(event)
    with user_error(rf"compute\.cluster: {address}.*{message}"):
        list(found)
    if lost == 0 and event == signal.SIGKILL:
        assert machines.processes[1].wait(30) == 0
        assert machines.processes[1].stdout.read() == f"worker ended: {address} has closed the connection\n"


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_nothing_on_the_scheduler(machines: Machines) -> None:
    address = machines.schedule()
    machines.work(address, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="5s")  # to the driver that has ended
    code = f"""
import test_cluster
for number, _ in test_cluster.wait({address!r}, 1000):
    print(number, flush=True)
"""
    assert machines.start(code=code) == "0\n"
    machines.processes[-1].kill()
    assert [number for number, _ in wait(address, 3)] == [0, 1, 2]
    with cluster.connect(address, {}) as (client, _):
        left, end = 1, time.monotonic() + 30
        while left and time.monotonic() < end:
            left = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
        assert left == 0
    assert machines.processes[1].poll() is None, "the worker waits for the next run"


DIFFERENT = {
    "cluster.FACTS['torch'] = '1.0'": r"its torch is 1\.0, the driver's \d.*; install the same",
    "cluster.FACTS['landmarks/features.py'] = '0'": r"its landmarks/features\.py is 0, the driver's \w{8}",
    "sys.modules['landmarks.features'] = None; cluster.FACTS['timm'] = '0'": r"its timm is 0, the driver's \d",
    "features.decode_group = lambda *arguments: 255 - decode(*arguments)": "its processor or GPU computes other",
}


@pytest.mark.slow
def test_workers_that_differ_are_rejected(
    machines: Machines, work: Work, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker starts when all have ended. It computes the rest of a run, from the middle of a row group."""
    monkeypatch.setattr(cluster, "SECONDS", 120)
    address = machines.schedule()
    code = "import sys; from landmarks import cluster, features; decode = features.decode_group"
    others = [machines.start(code=f"{code}; {prepare}; cluster.work('{address}')") for prepare in DIFFERENT]
    rejected = machines.processes[1:]
    with machines.replaced(len(others), lambda: machines.start("worker", address)):
        rest = work.on(address, 201)
    assert [len(part) for part in rest] == [55, 128, 16]
    assert np.concatenate(rest).tobytes() == work.here[-sum(part.nbytes for part in rest) :]
    said = capfd.readouterr().err
    for other, message, process in zip(others, DIFFERENT.values(), rejected, strict=True):
        assert re.search(rf"^compute\.cluster: worker {other} rejected: {message}", said, re.MULTILINE)
        assert re.search(f"rejected: {message}", process.stdout.read())
    assert machines.processes[-1].poll() is None


@pytest.mark.slow
def test_workers_call_functions_of_the_driver(machines: Machines) -> None:
    """An error in a function is one of the task. So is a failure of the worker's machine, in one line."""
    address = machines.schedule()
    worker = machines.work(address, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="5s")  # of its tasks of an ended driver
    assert list(cluster.imap(address, cluster_tasks.asking, ["a", "abc"], {"length": len})) == [1, 3]
    with pytest.raises(ZeroDivisionError):
        list(cluster.imap(address, cluster_tasks.asking, ["a"], {"length": lambda _: 1 / 0}))
    with user_error(rf"worker {worker}: missing-0: no such file or directory"):
        list(cluster.imap(address, cluster_tasks.failing, range(3), {}))
    assert [number for number, _ in wait(address, 3, 0)] == [0, 1, 2]


def certificate(folder: Path) -> None:
    """Runs the command of docs/cluster.md."""
    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    command = re.search(r"^openssl req .*$", text, re.MULTILINE)[0]
    folder.mkdir(exist_ok=True)
    subprocess.run(shlex.split(command), cwd=folder, check=True, capture_output=True)


@pytest.mark.slow
def test_tls(machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate(tmp_path)
    address = machines.start("scheduler", "tls://127.0.0.1:0")
    machines.work(address)
    monkeypatch.chdir(tmp_path)
    assert [number for number, _ in wait(address, 3, 0)] == [0, 1, 2]
    (tmp_path / "other").mkdir()
    monkeypatch.chdir("other")
    with user_error(r"cluster\.pem: not found; docs/cluster\.md has the command"):
        list(wait(address, 3))
    Path("cluster.pem").write_text("text")
    with user_error(r"cluster\.pem: no certificate with its private key; docs/cluster\.md"):
        list(wait(address, 3))
    certificate(Path())
    with user_error(rf"compute\.cluster: {address}: .*certificate verify failed"):
        list(wait(address, 3))
    machines.folder = Path.cwd()
    assert "certificate verify failed" in machines.start("worker", address)


@pytest.mark.slow
def test_nobody_answers(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SECONDS", 3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with user_error(f"compute.cluster: {address}: the scheduler does not answer; start the scheduler"):
            list(wait(address, 1))
    monkeypatch.setattr(cluster, "SECONDS", 4)
    monkeypatch.setattr(cluster, "START_SECONDS", 1)
    reason = "(refused|Timed out.*)"  # depends on where the last attempt ends
    with user_error(
        rf"compute\.cluster: tcp://127\.0\.0\.1:1: .*{reason}; start the scheduler, or correct the address"
    ):
        list(wait("tcp://127.0.0.1:1", 1))
    monkeypatch.setattr(cluster, "SECONDS", 30)  # a scheduler that answers may be slow
    with user_error(r"compute\.cluster: tcp://\S+ has no worker; run `python -m landmarks worker ADDRESS`"):
        list(wait(machines.schedule(), 1))


@pytest.mark.parametrize(
    ("address", "advice"),
    [("local:2", "close other programs"), ("tcp://127.0.0.1:1", "run `python -m landmarks worker ADDRESS`")],
)
def test_the_advice_if_all_workers_have_ended(address: str, advice: str) -> None:
    with user_error(f"compute.cluster: {address} has no worker; {advice}, then this again"), cluster.explained(address):
        raise WorkerStartTimeoutError(0, 1, 30)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8786",
        "tcp://127.0.0.1",
        "http://127.0.0.1:8786",
        "tcp://127.0.0.1:65536",
        "tcp://::1:8786",
        "tcp://a..b:1",
    ],
)
def test_a_wrong_address_of_a_worker(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["worker", address])
    assert "ADDRESS: must be tcp://HOST:PORT or tls://HOST:PORT" in capsys.readouterr().err


def test_a_port_that_is_not_free(machines: Machines) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        line = machines.start("scheduler", f"tcp://127.0.0.1:{server.getsockname()[1]}")
    assert "Address already in use; give a free port of an address of this machine" in line


@pytest.mark.slow
def test_the_address_of_a_worker_is_not_one_of_a_scheduler(machines: Machines) -> None:
    worker = machines.work(machines.schedule())
    reason = f"{worker}: not the address of a scheduler, but of a worker; start the scheduler, or correct the address"
    with user_error(f"compute.cluster: {reason}"):
        list(wait(worker, 1))
    assert reason in machines.start("worker", worker)


def test_another_kind_of_server_is_no_scheduler() -> None:
    """Dask takes the greeting of a mail or ssh server for the length of a message."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: server.accept()[0].sendall(b"SSH-2.0-OpenSSH_9.9\r\n"))
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with user_error(f"compute.cluster: {address}: not the address of a scheduler; start the scheduler"):
            list(wait(address, 1))


@contextmanager
def blocked_task(machines: Machines, address: str) -> Iterator[Future[list[int]]]:
    """A run of one task, which waits until the block ends. It returns the process of the worker that ends the task."""
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(lambda: list(cluster.imap(address, cluster_tasks.blocked, [0], {})))
        finally:
            (machines.folder / "released").touch()


def wait_for_task(machines: Machines, number: int) -> None:
    """Waits until `number` workers have begun the task."""
    started, end = machines.folder / "started", time.monotonic() + 120
    while not started.exists() or len(set(started.read_text().split())) < number:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_task_survives_the_end_of_several_workers(machines: Machines) -> None:
    """Each of five workers ends in the middle of it."""
    address = machines.schedule()
    code = f"from landmarks import cluster; cluster.CLOSE_SECONDS = 0.5; cluster.work({address!r})"
    with blocked_task(machines, address) as found:
        for number in range(1, 7):
            machines.start(code=code)
            wait_for_task(machines, number)
            if number < 6:
                machines.processes[-1].terminate()
                machines.processes[-1].wait(60)
    assert found.result() == [machines.processes[-1].pid]


@pytest.mark.slow
def test_a_task_in_which_workers_are_killed_is_given_up(machines: Machines) -> None:
    code = "from landmarks import cluster; cluster.dask.config.set({'distributed.scheduler.allowed-failures': 1})"
    address = machines.start(code=f"{code}; cluster.schedule('tcp://127.0.0.1:0')")
    with blocked_task(machines, address) as found:
        for number in (1, 2):
            machines.work(address)
            wait_for_task(machines, number)
            machines.processes[-1].kill()
        with user_error("compute.cluster: 2 workers have ended in the same task; give them more memory"):
            found.result()
