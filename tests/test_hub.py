"""Models that travel by the Hugging Face hub, here a server on the loopback address."""

import os
import re
import subprocess
import sys
from pathlib import Path

from landmarks.serving import hub
from landmarks.serving.cli import main

import pytest
import yaml
from conftest import ROOT, abn, drawing, jpeg, model_folder
from loopback import serve
from loopback_hub import COMMIT, REPOSITORY, Hub, environment

pytestmark = pytest.mark.slow


def landmarks(directory: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, because the hub's address is read when its package is imported."""
    command = [sys.executable, "-m", "landmarks", *arguments]
    variables = os.environ | environment(directory / "home", url) | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=directory, env=variables, capture_output=True, text=True, check=False)


def test_a_pushed_model_predicts_elsewhere_and_a_damaged_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_folder(tmp_path / "towers", abn(), source="folder")
    (model / "examples").mkdir()
    (model / "examples/mine.jpg").write_bytes(jpeg(drawing(1)))
    (tmp_path / "photo.jpg").write_bytes(jpeg(drawing(2)))
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "photo.jpg", "--model", "towers"]) == 0
    expected = capsys.readouterr().out
    address = f"hf://{REPOSITORY}"
    predict = ["predict", "photo.jpg", "--model"]
    with serve(tmp_path / "nothing") as server:
        remote = Hub(server)
        done = landmarks(tmp_path, server.url, "push", REPOSITORY, "--model", "towers")
        assert done.stdout == f"landmarks: {address}@{COMMIT}\n", done.stderr
        assert "private" in remote.created[0].values() and set(remote.files) == set(hub.FILES), "no pictures"
        first = landmarks(tmp_path, server.url, *predict, address)
        assert (first.returncode, first.stdout) == (0, expected), first.stderr
    nobody = "http://127.0.0.1:9"
    assert landmarks(tmp_path, nobody, *predict, f"{address}@{COMMIT}").stdout == expected, "from the cache"
    for name in ("model.safetensors", "classes.csv"):
        (file,) = (tmp_path / "home").rglob(name)
        content = file.read_bytes()
        file.resolve().write_bytes(content[:-1] + b"!")
        done = landmarks(tmp_path, nobody, *predict, address)
        assert done.returncode == 1 and re.fullmatch(
            r"landmarks: --model: \S+ does not have the published hash [0-9a-f]+; remove it", last_line(done)
        )
        file.resolve().write_bytes(content)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    model_folder(tmp_path / "towers")
    (tmp_path / "photo.jpg").write_bytes(jpeg(drawing(2)))
    push = ["push", REPOSITORY, "--model", "towers"]
    with serve(tmp_path) as server:
        remote = Hub(server)
        server.faults["api/repos/create"] = lambda handler, _: handler.body() and handler.answer(401)
        done = landmarks(tmp_path, server.url, *push)
        assert done.returncode == 1
        assert re.match(rf"landmarks: {REPOSITORY} could not be uploaded \(.*401.*\); try `hf auth", last_line(done))
        done = landmarks(tmp_path, server.url, "predict", "photo.jpg", "--model", "hf://team/nothing")
        assert done.returncode == 1 and "hf://team/nothing could not be fetched (" in last_line(done)
        remote.publish("README.md", b"# Another model")
        done = landmarks(tmp_path, server.url, "predict", "photo.jpg", "--model", f"hf://{REPOSITORY}")
        assert done.returncode == 1 and f"hf://{REPOSITORY} has no release.json; `landmarks push`" in last_line(done)
    done = landmarks(tmp_path, "http://127.0.0.1:9", "push", "no owner", "--model", "towers")
    assert done.returncode == 1 and "no owner could not be uploaded (" in last_line(done)


@pytest.mark.parametrize(("block", "tags"), [(None, []), (abn(), ["attention-branch-network"])])
def test_the_card_has_the_header_that_the_hub_reads(tmp_path: Path, block: object, tags: list[str]) -> None:
    folder = model_folder(tmp_path / "towers", block)
    _, header, text = hub.card(folder, REPOSITORY).split("---\n", 2)
    content = yaml.safe_load(header)
    assert content["license"] == "other" and content["license_link"].endswith(f"{REPOSITORY}#licences")
    assert content["tags"] == ["landmark-recognition", *tags] and content["pipeline_tag"] == "image-classification"
    metrics = {entry["type"]: entry["value"] for entry in content["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {"accuracy": 0.5, "top5": 1.0, "macro_recall": 0.5}
    assert f"--model hf://{REPOSITORY}`" in text and "## Licences" in text
