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
from conftest import ROOT, abn, drawing, jpeg, model_folder, user_error
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
        assert re.match(
            rf"landmarks: {REPOSITORY} could not be uploaded \(.*401.*\); check .*`hf auth login`", last_line(done)
        )
        done = landmarks(tmp_path, server.url, "predict", "photo.jpg", "--model", "hf://team/nothing")
        assert done.returncode == 1 and "hf://team/nothing could not be fetched (" in last_line(done)
        remote.publish("README.md", b"# Another model")
        done = landmarks(tmp_path, server.url, "predict", "photo.jpg", "--model", f"hf://{REPOSITORY}")
        assert done.returncode == 1 and f"hf://{REPOSITORY} has no release.json; `landmarks push`" in last_line(done)
    done = landmarks(tmp_path, "http://127.0.0.1:9", *push)
    assert done.returncode == 1 and f"{REPOSITORY} could not be uploaded (" in last_line(done)


def test_a_hub_that_names_a_path_as_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with serve(tmp_path) as server:
        remote = Hub(server)
        for name in hub.FILES:
            remote.publish(name, b"theirs", "../../../../mine")
        done = landmarks(tmp_path, server.url, "predict", "photo.jpg", "--model", f"hf://{REPOSITORY}")
    assert done.returncode == 1 and "the hub publishes no hash of README.md; do not use" in last_line(done)
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["towers", "no owner/towers", "a/b/c", "../towers", "team/..", "hf://team/towers", "t/"]
)
def test_a_wrong_name_reaches_no_server(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert main(["push", name, "--model", str(model_folder(tmp_path / "towers"))]) == 1
    assert f"landmarks: {name}: not the name of a repository; it must be OWNER/NAME" in capsys.readouterr().err
    for address in (f"hf://{name}", f"hf://team/towers@../{name}"):
        assert main(["predict", "photo.jpg", "--model", address]) == 1
        assert f"--model: {address}: must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", hub.FILES)
def test_an_incomplete_model_is_not_pushed(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_folder(tmp_path / "towers")
    (model / name).unlink()
    assert main(["push", REPOSITORY, "--model", str(model)]) == 1
    assert capsys.readouterr().err == (
        f"landmarks: {model / name}: missing; `make reproduce` writes models to models/released/\n"
    )


def test_a_fetched_model_gets_a_new_header(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "towers")
    expected = hub.card(folder, REPOSITORY)
    (folder / "README.md").write_text(hub.card(folder, "somebody/else"), encoding="utf-8")
    assert hub.card(folder, REPOSITORY) == expected


@pytest.mark.parametrize("text", ["", "no title", "---\nlicense: mit\n---\n"])
def test_a_card_without_a_title(tmp_path: Path, text: str) -> None:
    folder = model_folder(tmp_path / "towers")
    (folder / "README.md").write_text(text, encoding="utf-8")
    with user_error(r"README\.md: must begin with a title"):
        hub.card(folder, REPOSITORY)


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
