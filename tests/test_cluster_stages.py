"""The stages download, train and train-repeats on workers of the loopback address: the same outs as without."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from landmarks import artifacts

import loopback
import psutil
import pytest
import yaml
from conftest import ROOT, user_error
from loopback import Server
from machines import Machines
from test_download import SUM, TAR, TARS, Workplace
from test_download import expected as expected  # a fixture
from test_download import mirror as mirror
from test_download import server as server
from test_train_repeats import Workspace, outs
from test_train_repeats import workspace as workspace

pytest.importorskip("distributed", reason="needs requirements-cluster.txt, see docs/cluster.md")
pytestmark = pytest.mark.slow

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    machines = Machines(tmp_path_factory.mktemp("machines"))
    yield machines
    machines.end()


@pytest.fixture(scope="module")
def address(machines: Machines) -> str:
    """A scheduler with two workers. They are less patient with a server, and with a driver that has ended."""
    address = machines.schedule()
    code = "from landmarks.sources import retry; retry.FIRST_WAIT = 0.1"
    code = f"{code}; from landmarks import cluster, jobs; cluster.work('{address}')"
    for _ in range(2):
        machines.start(code=code, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="3s")
    return address


@pytest.fixture
def v2(tmp_path: Path, server: Server, address: str) -> Workplace:
    workplace = Workplace(tmp_path / "v2", "gldv2")
    workplace.set("data", root=server.url)
    workplace.set("compute", cluster=address)
    return workplace


# --- download


@pytest.mark.parametrize("remotely", [True, False], ids=["server", "directory"])
def test_workers_download_the_same(v2: Workplace, server: Server, expected: dict[str, str], remotely: bool) -> None:
    """Transient errors are retried. Each tar is read once."""
    server.faults[TAR] = loopback.breaks_off(2)
    v2.set("data", root=server.url if remotely else os.path.relpath(server.root, v2.root))
    assert v2.run() == "21 pictures of 3 classes, 0 failed, from an index of 39 in 6 classes"
    assert v2.raw() == expected
    assert [server.requests[f"train/{tar}.tar"] for tar in TARS] == ([1, 3, 1] if remotely else [0, 0, 0])


@pytest.mark.parametrize(
    ("path", "fault", "message"),
    [
        (TAR, loopback.status(500), r"train/images_001\.tar: HTTP 500 after 3 attempts; run it again"),
        (TAR, loopback.status(404), r"train/images_001\.tar: no such file, but its MD5 file exists"),
        (SUM, loopback.body(b"0" * 32), r"images_001\.tar: .*MD5 is .*, not 0{32}.* after 3 attempts"),
    ],
    ids=["500", "missing", "wrong sum"],
)
def test_an_error_of_a_download_is_the_same_line(
    v2: Workplace, server: Server, expected: dict[str, str], path: str, fault: loopback.Fault, message: str
) -> None:
    """The next run goes on, also after a wrong MD5, whose pictures are not kept."""
    v2.set("download", retries=2)
    server.faults[path] = fault
    with user_error(message):
        v2.run()
    server.faults.clear()
    v2.run()
    assert v2.raw() == expected


def test_a_worker_without_the_data_is_rejected(
    machines: Machines,
    v2: Workplace,
    mirror: Path,
    expected: dict[str, str],
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It sees another folder there. Another worker goes on."""
    address = machines.schedule()
    code = "from fsspec.implementations.local import LocalFileSystem; from landmarks import cluster"
    lost = "LocalFileSystem.open = lambda _, path, *others: open(f'{path}.lost')"
    other = machines.start(code=f"{code}; {lost}; cluster.work('{address}')")
    v2.set("compute", cluster=address)
    v2.set("data", root=str(mirror))
    monkeypatch.setattr("landmarks.cluster.SECONDS", 120)
    with machines.replaced(1, lambda: machines.work(address)):
        v2.run()
    assert v2.raw() == expected
    line = f"compute.cluster: worker {other} rejected: data.root: {mirror} is not on its machine; mount it there"
    assert line in capfd.readouterr().err
    assert machines.processes[-2].returncode == 1


# --- train-repeats


def test_workers_train_the_same_repeats(workspace: Workspace, address: str) -> None:
    workspace.run(3)
    here = outs()
    shutil.rmtree(artifacts.REPEATS)
    workspace.values["compute"]["cluster"] = address
    assert workspace.run(3) == "4 trained, 0 kept"
    assert outs() == here


def test_features_travel_to_workers_without_them(
    workspace: Workspace, machines: Machines, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The copy is removed with the worker, also if SIGTERM ends it while it trains."""
    workspace.run(2)
    here = outs()
    shutil.rmtree(artifacts.REPEATS)
    address, folder = machines.schedule(), tmp_path_factory.mktemp("copies")
    code = "import faulthandler, signal; faulthandler.register(signal.SIGUSR1)"
    code += "; from landmarks import cluster, jobs; jobs.identity = lambda _: None; jobs.CHUNK = 1000"
    machines.start(code=f"{code}; cluster.work('{address}')", TMPDIR=str(folder))
    workspace.values["compute"]["cluster"] = address
    assert workspace.run(2) == "2 trained, 0 kept"
    assert outs() == here
    for path in artifacts.TRAINING:
        assert [copy.read_bytes() for copy in folder.rglob(f"*/{path}")] == [path.read_bytes()]
    worker, driver = machines.processes[-1], start_long_driver(workspace)
    while not (child := training(psutil.Process(worker.pid))):
        assert driver.poll() is None
        time.sleep(0.1)
    worker.terminate()
    try:
        worker.wait(30)  # Slurm and Kubernetes kill it after 30 seconds
    except subprocess.TimeoutExpired:
        worker.send_signal(signal.SIGUSR1)  # shows what its threads do
        time.sleep(1)
        worker.kill()
        raise AssertionError(worker.stdout.read()) from None
    assert not list(folder.rglob("features.npy")) and not child.is_running()
    driver.kill()
    driver.wait()


def start_long_driver(workspace: Workspace) -> subprocess.Popen[str]:
    """Starts train-repeats with longer trainings in a process of its own."""
    workspace.values["train"] |= {"epochs": 100, "repeats": 2}
    Path("params.yaml").write_text(yaml.safe_dump(workspace.values), encoding="utf-8")
    command = [sys.executable, "-m", "stages.train_repeats"]
    return subprocess.Popen(command, env=ENVIRONMENT, text=True)


def training(worker: psutil.Process) -> psutil.Process | None:
    """The process in which a worker trains, if there is one."""
    for child in worker.children():
        with suppress(psutil.NoSuchProcess):  # ended meanwhile, or a zombie
            if "spawn_main" in " ".join(child.cmdline()):
                return child
    return None


def test_finished_repeats_survive_the_end_of_the_driver(workspace: Workspace, machines: Machines) -> None:
    """Workers end the trainings in flight: here one that stands still, and would not end by itself."""
    address = machines.schedule()
    machines.start("worker", address, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="3s")
    workspace.values["compute"]["cluster"] = address
    driver = start_long_driver(workspace)
    worker = psutil.Process(machines.processes[-1].pid)
    while not list(artifacts.REPEATS.glob("*/*/fingerprint")) or not (child := training(worker)):
        assert driver.poll() is None
        time.sleep(0.1)
    child.suspend()
    driver.kill()
    driver.wait()
    child.wait(60)
    done = subprocess.run(driver.args, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "train-repeats: 1 trained, 1 kept\n"
