"""docs/team.md: every command of the page is run, in its order, by Ann, Ben or somebody who has no clone."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tools import report_change

import pandas as pd
import pytest
import yaml
from conftest import ROOT, Project, drawing, out_hashes
from loopback import s3_server, serve
from loopback_hub import Hub
from loopback_hub import environment as hub_environment

PAGE = (ROOT / "docs/team.md").read_text(encoding="utf-8")
BLOCKS = [
    (section.split("\n")[0].strip("# "), number, code)
    for section in re.split(r"^##? ", PAGE, flags=re.MULTILINE)[1:]
    for number, code in enumerate(re.findall(r"^```\w*\n(.*?)^```", section, re.MULTILINE | re.DOTALL))
]
WHO = {  # of each block of a section; `new` is somebody with a new clone, `none` somebody without
    "Working together": ["ann"],
    "Share results": ["ann", "ben"],
    "Other remotes": ["ann", "ann", "new"],
    "A shared cache": ["new"],
    "Share experiments": ["ann", "ben"],
    "Sweeps": ["ann", "ann"],
    "Review": ["ann"],
    "Merge": ["ann", "ann"],
    "Pass on a model": ["ann", "none", "none", "ann"],
    "Search": ["ann"],
    "Clean up": ["ann"],
    "Look around": ["ann"],
    "Before a commit": ["ann"],
    "Installation with uv": ["new"],
}
PACKAGES = {  # of requirements-team.txt, without which a section is skipped
    "Working together": "dvc_s3",
    "Other remotes": "dvc_s3",
    "Search": "optuna",
    "Look around": "nbclient",
    "Before a commit": "pre_commit",
    "Installation with uv": "uv",
}


@contextmanager
def ssh_server() -> Iterator[int]:
    """A server for ssh that lets everybody in; its port."""
    import asyncssh

    class Open(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

    async def listen() -> asyncssh.SSHAcceptor:
        key = asyncssh.generate_private_key("ssh-ed25519")
        return await asyncssh.listen("127.0.0.1", 0, server_factory=Open, server_host_keys=[key], sftp_factory=True)

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    yield asyncio.run_coroutine_threadsafe(listen(), loop).result().get_port()
    loop.call_soon_threadsafe(loop.stop)


class Team:
    """Ann, who has run the pipeline, Ben, and what they share."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.project, self.folder = project, folder
        self.ann, self.ben, self.origin = folder / "ann", folder / "ben/landmarks", folder / "landmarks.git"
        self.replaced = {
            "git@git.example.com:team/landmarks.git": str(self.origin),
            "/mnt/team/landmarks": str(folder / "web/landmarks"),
            "/mnt/team/cache": str(project.root / ".dvc/cache"),
            "make .venv/installed\nsource .venv/bin/activate": f"ln -s {sys.prefix} .venv",
        }
        self.ben.parent.mkdir()
        (folder / "none").mkdir()
        self.clone(project.root, self.ann)
        self.bash(f"git init --quiet --bare --initial-branch main {self.origin}", folder)
        # One commit, because `dvc gc` reads the pipeline of each.
        self.bash("git checkout --quiet --orphan start && git commit --quiet --message Start", self.ann)
        self.bash("git branch --move --force main", self.ann)
        self.bash("git remote remove origin && git tag --list | xargs --no-run-if-empty git tag --delete", self.ann)
        self.bash(f"git remote add origin {self.origin} && git push origin main", self.ann)
        self.bash("dvc cache dir --local /mnt/team/cache && dvc checkout", self.ann)

    def clone(self, source: Path, folder: Path) -> Path:
        subprocess.run(["git", "clone", "--quiet", source, folder], check=True)
        (folder / ".venv").symlink_to(sys.prefix)
        return folder

    def place(self, who: str) -> Path:
        """The directory in which somebody works; before his first command, Ben has no clone."""
        if who == "new":
            return self.clone(self.origin, self.folder / f"new-{len(list(self.folder.iterdir()))}")
        ben = self.ben if self.ben.exists() else self.ben.parent
        return {"ann": self.ann, "ben": ben, "none": self.folder / "none"}[who]

    def bash(self, code: str, directory: Path, **variables: str) -> str:
        """Runs commands, or Python, with the addresses of the test in place of the page's; returns what they print."""
        for written, real in self.replaced.items():
            code = code.replace(written, real)
        package = directory if (directory / "dvc.yaml").exists() else self.ann
        path = f"{sys.prefix}/bin:{os.environ['PATH']}"
        environment = self.project.environment | {"PATH": path, "PYTHONPATH": str(package)} | variables
        command = (
            [sys.executable, "-c", code] if code.startswith("import ") else ["bash", "-euo", "pipefail", "-c", code]
        )
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def team(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    team = Team(finished, tmp_path_factory.mktemp("team"))
    with ExitStack() as servers:
        web = servers.enter_context(serve(team.folder / "web"))
        team.replaced["https://data.example.com"] = web.url
        team.servers = servers
        yield team
    shutil.rmtree(team.folder)


def test_every_block_is_run_by_somebody() -> None:
    counts = {heading: sum(block[0] == heading for block in BLOCKS) for heading, *_ in BLOCKS}
    assert counts == {heading: len(names) for heading, names in WHO.items()}


Check = Callable[[Team, Path, str], None]  # gets the directory, and what was printed
CHECKS: dict[tuple[str, int], Check] = {}


def after(heading: str, number: int = 0) -> Callable[[Check], Check]:
    """What must be true after a block of the page."""
    return lambda check: CHECKS.setdefault((heading, number), check)


@after("Share results", 1)
def a_new_clone_has_all_results_and_nothing_ran(team: Team, place: Path, output: str) -> None:
    assert "Running stage" not in output and "up to date" in output and "| abn |" in output
    assert out_hashes(team.ben) == team.project.first_outs
    assert team.bash("git status --porcelain", team.ben) == ""


@after("Other remotes", 2)
@after("A shared cache")
def everything_is_there(team: Team, place: Path, output: str) -> None:
    assert out_hashes(place) == team.project.first_outs
    assert "Running stage" not in team.bash("dvc repro", place)


@after("Share experiments")
def the_experiment_ran_only_what_it_changes(team: Team, place: Path, output: str) -> None:
    assert re.findall("^Running stage '(.+)'", output, re.MULTILINE) == ["package"]
    assert team.bash("git status --porcelain", place) == ""


@after("Share experiments", 1)
def it_is_in_bens_clone(team: Team, place: Path, output: str) -> None:
    assert yaml.safe_load((place / "params.yaml").read_text())["package"]["false_alarm_rate"] == 0.01
    facts = json.loads((place / "models/released/abn/release.json").read_text())
    assert facts["unknown"]["false_alarm_rate"] == 0.01
    assert "few-alarms" in team.bash("git ls-remote --heads origin", place)
    assert "Running stage" not in team.bash("dvc repro", place)


@after("Sweeps")
def all_experiments_succeed(team: Team, place: Path, output: str) -> None:
    end, names = time.monotonic() + 800, {"alpha-1", "alpha-2", "alarms-1", "alarms-2"}
    refs = "git for-each-ref --format='%(refname:lstrip=-1)' refs/exps"  # costs less than `dvc queue status`
    while not names <= set(team.bash(refs, place).split()) and time.monotonic() < end:
        time.sleep(0.5)
    while "Queued" in (status := team.bash("dvc queue status", place)) or "Running" in status:
        assert time.monotonic() < end, status
        time.sleep(1)
    assert status.count("Success") == 4, team.bash("dvc queue logs alpha-1", place)
    before = team.project.results()
    for name, block in {"alpha-1": "abn", "alpha-2": "abn", "alarms-1": None, "alarms-2": None}.items():
        ref = team.bash(f"git for-each-ref refs/exps --format='%(refname)' | grep /{name}$", place).strip()
        results = json.loads(team.bash(f"git show {ref}:metrics/results.json", place))
        assert [model for model in before if results[model] != before[model]] == ([block] if block else [])


@after("Review")
def the_report_says_what_differs(team: Team, place: Path, output: str) -> None:
    assert "| abn.alpha | 1 | 0.25 | -0.75 |" in output and "| abn ece | " in output
    assert "](dvc_plots/curves.png)" in output and (place / "dvc_plots/curves.png").read_bytes().startswith(b"\x89PNG")


@after("Merge", 1)
def both_changes_are_in(team: Team, place: Path, output: str) -> None:
    assert re.findall("^Running stage '(.+)'", output, re.MULTILINE) == ["package"]
    values = yaml.safe_load((place / "params.yaml").read_text())
    assert (values["abn"]["alpha"], values["package"]["false_alarm_rate"]) == (0.25, 0.01)
    assert "up to date" in team.bash("dvc status", place) and team.bash("git status --porcelain", place) == ""


@after("Pass on a model", 1)
def the_model_is_complete_and_answers(team: Team, place: Path, output: str) -> None:
    assert output.count(".jpg") == len(list((place / "abn/examples").iterdir())) > 0
    released = out_hashes(team.ann)
    for folder, name in {"abn": "abn", "abn-1.0.0": "abn", "baseline": "baseline"}.items():
        (place / "copy/models").mkdir(parents=True)
        shutil.copytree(place / folder, place / "copy/models/released" / name)
        copied = out_hashes(place / "copy")
        assert copied and copied.items() <= released.items()
        shutil.rmtree(place / "copy")


@after("Search")
def a_trial_is_an_experiment(team: Team, place: Path, output: str) -> None:
    table = output.partition("best validation accuracy")[2].partition("\n")[2]
    assert "search-0" in table


@after("Clean up")
def only_the_outs_of_removed_experiments_are_gone(team: Team, place: Path, output: str) -> None:
    assert re.search(r"Removed \d+ objects", output), output
    listed = team.bash("dvc exp list --all-commits --name-only", place).split()
    assert "alpha-2" in listed and "alarms-1" not in listed
    team.bash("dvc exp apply alpha-2 && dvc status && git restore . && dvc checkout", place)
    assert "Running stage" not in team.bash("dvc repro", place)


@after("Look around")
def the_notebook_has_tables_and_pictures(team: Team, place: Path, output: str) -> None:
    cells = json.loads((place / "notebooks/tour.ipynb").read_text())["cells"]
    shown = [set(made["data"]) for cell in cells for made in cell.get("outputs", []) if "data" in made]
    assert sum("image/png" in kinds for kinds in shown) == 3 and sum("text/html" in kinds for kinds in shown) == 2
    team.bash("git restore notebooks", place)


@after("Before a commit")
def lint_and_large_files_are_refused(team: Team, place: Path, output: str) -> None:
    assert output.count("Passed") == 4
    (place / "data.bin").write_bytes(bytes(2_000_000))
    (place / "tools/unused.py").write_text("import os\n")
    refused = team.bash("git add --force data.bin tools && ! git commit --message data 2>&1", place)
    assert "data.bin (1954 KB) exceeds 1500 KB" in refused and "`os` imported but unused" in refused


@after("Installation with uv")
def the_environment_is_there(team: Team, place: Path, output: str) -> None:
    assert (place / ".venv/installed").is_file() and (place / ".venv/bin/landmarks").is_file()


def prepare(team: Team, heading: str, number: int, place: Path) -> dict[str, str]:
    """What the page takes for granted before a block; returns environment variables."""
    match heading, number:
        case "Other remotes", 0:
            team.replaced["https://s3.example.com"] = team.servers.enter_context(s3_server())
            return {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
        case "Other remotes", 1:
            port = team.servers.enter_context(ssh_server())
            team.replaced["ssh://server.example.com/mnt/data"] = f"ssh://127.0.0.1:{port}{team.folder}/ssh"
        case "Sweeps", 0:  # from a plain shell: DVC's command, but not the environment's Python
            link = team.folder / "bin/dvc"
            link.parent.mkdir()
            link.symlink_to(f"{sys.prefix}/bin/dvc")
            return {"PATH": f"{link.parent}:{os.defpath}", "PYTHONPATH": ""}
        case "Review", 0:
            team.bash("dvc exp apply alpha-1", place)
        case "Merge", 1:
            team.bash("git commit --all --message 'Less attention'", place)
        case "Pass on a model", 3:
            server = team.servers.enter_context(serve(place))
            Hub(server)
            drawing().save(place / "photo.jpg")
            return hub_environment(team.folder / "hub", server.url)
        case "Search", 0:
            team.replaced["studies.search 20"] = "studies.search 1"
        case "Installation with uv", 0:
            (place / ".venv").unlink()
            team.replaced["uv pip install -r"] = "uv pip install --dry-run -r"  # gigabytes
            return {"VIRTUAL_ENV": str(place / ".venv")}
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(("heading", "number", "code"), BLOCKS, ids=[f"{block[0]} {block[1]}" for block in BLOCKS])
def test_block(team: Team, heading: str, number: int, code: str) -> None:
    if heading in PACKAGES:
        pytest.importorskip(PACKAGES[heading], reason="needs requirements-team.txt, see docs/team.md")
    place = team.place(WHO[heading][number])
    output = team.bash(code, place, **prepare(team, heading, number, place))
    check = CHECKS.get((heading, number))
    if check:
        check(team, team.place("ben") if WHO[heading][number] == "ben" else place, output)


@pytest.mark.parametrize(
    ("file", "schema"), [(".github/workflows/test.yml", "github-workflows"), (".gitlab-ci.yml", "gitlab-ci")]
)
def test_files_for_continuous_integration_are_valid(file: str, schema: str) -> None:
    pytest.importorskip("check_jsonschema", reason="needs requirements-team.txt, see docs/team.md")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", ROOT / file]
    command += ["--data-transform", "gitlab-ci"] if schema == "gitlab-ci" else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = (ROOT / file).read_text(encoding="utf-8")
    assert "make test" in text and "-m tools.report_change" in text


@pytest.mark.parametrize("path", [".cache/pip/wheel", "curves.png", "report.md"])
def test_git_ignores_what_continuous_integration_writes(path: str) -> None:
    """Otherwise tests would commit it in every clone that they make."""
    assert subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT, check=False).returncode == 0


def test_a_report_has_test_metrics_and_the_curves_that_changed() -> None:
    differences = {
        "abn.test.accuracy": {"old": 0.5, "new": 0.75, "diff": 0.25},
        "abn.val.accuracy": {"old": 0.5, "new": 0.75, "diff": 0.25},
        "abn.test.accuracy_ci95": {"old": [0.4, 0.6], "new": [0.7, 0.8]},
        "abn.test.attention.energy": {"old": 0.5, "new": 0.75, "diff": 0.25},
    }
    lines = report_change.table("metric", report_change.test_metrics(differences))
    assert lines[2:] == ["| abn accuracy | 0.5 | 0.75 | +0.25 |", ""]
    assert report_change.table("parameter", {}) == []
    new = {"data.root": {"old": None, "new": "photos"}}
    assert report_change.table("parameter", new)[2] == "| data.root |  | photos |  |"
    seed = {"seed": {"old": 20190000, "new": 20190101, "diff": 101}}
    assert report_change.table("parameter", seed)[2] == "| seed | 20190000 | 20190101 | +101 |"
    before = pd.DataFrame({"model": ["abn", "baseline"], "epoch": 1, "accuracy": [0.1, 0.2]})
    now = pd.DataFrame({"model": ["abn", "baseline", "new"], "epoch": 1, "accuracy": [0.3, 0.2, 0.4]})
    curves = report_change.changed_curves(before, now, "main")
    assert curves["model"].tolist() == ["abn (main)", "abn", "new"]


def test_a_report_shows_new_and_removed_models() -> None:
    differences = {
        "new.test.accuracy": {"old": None, "new": 0.0},
        "new.test.accuracy_ci95": {"old": None, "new": "[0.0, 0.1]"},
        "gone.test.accuracy": {"old": 0.5, "new": None},
    }
    lines = report_change.table("metric", report_change.test_metrics(differences))
    assert lines[2:] == ["| gone accuracy | 0.5 |  |  |", "| new accuracy |  | 0 |  |", ""]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "report-change: nothing: git knows no such revision; fetch it, or name another"),
        (["HEAD^{tree}"], "report-change: HEAD^{tree}: git knows no such revision; fetch it, or name another"),
    ],
)
def test_a_mistake_in_a_report_is_one_line(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "tools.report_change", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"{message}\n")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["params.yaml", "metrics/results.json"])
def test_a_report_needs_intact_files(project: Project, file: str) -> None:
    """Otherwise DVC reports that all values were removed."""
    (project.root / file).write_text("<<<<<<< HEAD\n", encoding="utf-8")
    done = project.run("-m", "tools.report_change", "HEAD")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "failed to load" in done.stderr and "'workspace'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["many"], "argument TRIALS: invalid integer value: 'many'"),
        (["0"], "argument TRIALS: must be 1 or more"),
        (["1", "a", "b"], "unrecognized arguments: b"),
        (["1", "notes.txt"], "search: notes.txt: not a record of trials; name another file"),
        (["1", "."], "search: .: is a directory"),
    ],
)
def test_a_mistake_in_a_search_changes_no_file(tmp_path: Path, arguments: list[str], message: str) -> None:
    pytest.importorskip("optuna", reason="needs requirements-team.txt, see docs/team.md")
    (tmp_path / "notes.txt").write_text("one line")
    command = [sys.executable, "-m", "studies.search", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode and message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["one line"]
