"""`make photos`: from a folder to a DVC experiment, here with a pipeline that only copies its parameters."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from landmarks import params
from tools import photos

import pandas as pd
import pytest
import yaml
from conftest import ROOT, drawing, jpeg, user_error

RECIPES = yaml.load((ROOT / "recipes.yaml").read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506 - as in photos
ODD = "It's (1), 50 % [x] {y} #z: a=b \\ ${HOME} é"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Pictures of two landmarks in a folder with an odd name."""
    folder = tmp_path / ODD
    for name in ("a/0.jpg", "b/1.jpg"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(jpeg(drawing()))
    return folder


def test_make_passes_the_folder_and_the_arguments_on(root: Path) -> None:
    command = [
        "make",
        "--dry-run",
        "--no-print-directory",
        "photos",
        f"ROOT={root}",
        "ARGS=--recipe small -S train.repeats=3",
    ]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = ["-m", "tools.photos", str(root), "--recipe", "small", "-S", "train.repeats=3"]
    assert shlex.split(printed.splitlines()[-1])[1:] == expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_valid(recipe: str, root: Path, tmp_path: Path) -> None:
    from dvc.utils.hydra import apply_overrides  # what `dvc exp run -S` calls

    file = shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    arguments = photos.settings(root, RECIPES[recipe], ["train.repeats=3"], params.load(file).ablations)
    assert set(arguments[::2]) == {"-S"}
    apply_overrides(file, arguments[1::2])
    p = params.load(file)
    assert p.data == params.Data(source="folder", root=str(root), only=None, version=None)
    assert (p.filter.top_k, p.train.repeats, p.filter.skip_top, p.ablations) == ("all", 3, 0, {})


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/my/pictures", "photos-pictures"),
        ("/my/It's 50 %, ..@{x}.lock", "photos-It-s-50-x-lock"),
        ("/", "photos"),
        ("/写真", "photos-写真"),
        ("/" + "x" * 200, f"photos-{'x' * 43}"),
    ],
)
def test_the_experiment_is_named_after_the_folder(folder: str, name: str) -> None:
    assert photos.free_name(Path(folder), {"other": 1}) == name
    taken = dict.fromkeys([name.casefold(), f"{name}-2".casefold(), "other"], 1)
    assert [photos.free_name(Path(folder), taken) for _ in range(2)] == [f"{name}-3", f"{name}-4"]
    subprocess.run(["git", "check-ref-format", f"refs/exps/{name}"], check=True)


def test_the_version_changes_with_the_pictures(root: Path) -> None:
    first = photos.version(root)
    (root / "notes.txt").touch()
    assert photos.version(root) == first
    os.utime(root / "a/0.jpg", (1, 1))
    versions = {first, photos.version(root)}
    if os.geteuid():  # root may read everything
        (root / "a/0.jpg").chmod(0)
        assert photos.version(root) not in versions
        (root / "a/0.jpg").chmod(0o644)
    (root / "a/0.jpg").rename(root / "a/2.jpg")
    versions.add(photos.version(root))
    (root / "c").write_bytes(jpeg(drawing()))
    (root / "images.csv").write_text("id,landmark_id,file\n0,a,c\n1,a,missing.jpg\n", encoding="utf-8")
    versions.add(photos.version(root))
    os.utime(root / "c", (1, 1))
    versions.add(photos.version(root))
    ids = root / "ids.txt"
    for text in ("0", "0\n1"):
        ids.write_text(text, encoding="utf-8")
        versions.add(photos.version(root, str(ids)))
    assert len(versions) == 7


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "a.cr2").touch()
    with user_error(r"ROOT: missing; make photos ROOT="):
        photos.main([""])
    with user_error("nowhere is not a directory"):
        photos.main([str(tmp_path / "nowhere")])
    with user_error(r"has neither an images.csv nor a directory per class; add one \(1 unsupported .cr2\)"):
        photos.main([str(tmp_path)])
    with user_error(r"caf\\xe9 has characters that params.yaml cannot hold"):
        photos.main([str(tmp_path / os.fsdecode(b"caf\xe9"))])
    with user_error("recipes.yaml: no recipe none; choose from photos, small"):
        photos.main([str(tmp_path), "--recipe", "none"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("photos: {a: 'b}", "^recipes.yaml: not YAML"),
        ("", "^recipes.yaml: must have a name for each recipe"),
        ("photos: {a: [1, 2]}", "^recipes.yaml: photos: each value must be one text"),
    ],
    ids=["no YAML", "empty", "a list"],
)
def test_mistakes_in_the_recipes(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with user_error(message):
        photos.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("filter.top_k=1", "^filter.top_k: 1 is wrong"),
        ("data.root=data", "^data.root: data overlaps data/downloaded"),
        ("filter.top=1", "^ARGS: .*'filter.top'; give -S KEY=VALUE"),
        ("filter.top_k", "^ARGS: .*'filter.top_k'; give -S KEY=VALUE"),
        ("data.version=${nokey}", "^ARGS: .*nokey.*; give -S KEY=VALUE"),
        ("train.epochs=range(1,3)", "^ARGS: .*RangeSweep.*; give -S KEY=VALUE"),
    ],
)
def test_wrong_settings_change_nothing(
    setting: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    with user_error(message):
        photos.changed(["data.source=folder", "train.epochs=2", setting])
    assert (tmp_path / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()


@pytest.mark.parametrize("name", ["/data/Zürich", "/日本", "/b\\", r"/x\'y", r"/\${x}", r"/\\${x} 'q'", r"/a b\c"])
def test_any_folder_can_be_a_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert photos.changed(["data.source=folder", f"data.root={photos.quote(name)}"]).data.root == name


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.source=gldv2", "ARGS: ROOT sets data.source and data.root; leave them out"),
        ("data.root=/elsewhere", "ARGS: ROOT sets data.source and data.root; leave them out"),
        ("data.only=/no/list.txt", r"data\.only: /no/list\.txt: no such file"),
        ("backbone.weights=/no.safetensors", r"backbone\.weights: /no\.safetensors: no such file"),
    ],
)
def test_settings_that_would_fail_later_change_nothing(
    setting: str, message: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (ROOT / "params.yaml").read_bytes()
    monkeypatch.chdir(ROOT)
    with user_error(message):
        photos.main([str(root), "-S", setting])
    assert (ROOT / "params.yaml").read_bytes() == before


PIPELINE = """
stages:
  read: {cmd: cp params.yaml copied, params: [data], outs: [copied]}
  train: {cmd: echo done > trained, params: [train], outs: [trained]}
"""


@pytest.mark.slow
def test_each_run_is_an_experiment_that_runs_what_changed(root: Path, tmp_path: Path) -> None:
    """For a user whom git does not know, in a repository with changes."""
    here = tmp_path / "repository"
    here.mkdir()
    for name in ("params.yaml", "recipes.yaml"):
        shutil.copyfile(ROOT / name, here / name)
    (here / "data").mkdir()
    rows = pd.DataFrame({"model": ["baseline", "abn"], "split": "val", "label": 0, "predicted": [1, 0]})
    rows.to_parquet(here / "data/predictions.parquet")
    (here / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    environment = {name: os.environ[name] for name in os.environ if not name.startswith(("DVC_", "GIT_"))}
    environment |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment |= {"GIT_CONFIG_NOSYSTEM": "1", "DVC_SITE_CACHE_DIR": str(tmp_path / "site"), "DVC_NO_ANALYTICS": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    dvc = (sys.executable, "-m", "dvc")
    tool = (sys.executable, "-m", "tools.photos")
    run("git", "init", "--quiet")
    run(*dvc, "init", "--quiet")
    run(*dvc, "repro", "--quiet")
    run("git", "add", "--all")
    run("git", "-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "--message", "x")

    version = photos.version(root)
    first = run(*tool, str(root), "-S", "train.batch_size=32")
    name = "photos-It-s-1-50-x-y-z-a-b-HOME-é"
    words = shlex.split(first.splitlines()[0])
    assert words[:6] == ["dvc", "exp", "run", "--name", name, "-S"]
    assert words[6] == f"data.version={version}" and words[7:9] == ["-S", "~ablations.alpha-0"]
    assert words[-2:] == ["-S", "train.batch_size=32"]
    assert "Running stage 'read'" in first and "Running stage 'train'" in first
    assert f"Its report: {here / 'report.html'}" in first
    assert first.splitlines()[-2].endswith("is abn: landmarks predict PHOTO --model abn")
    (root / "a/new.jpg").write_bytes(jpeg(drawing(1)))
    second = run(*tool, str(root))
    assert f"experiment {name}-2 is done" in second
    assert "Running stage 'read'" in second and "Running stage 'train'" not in second
    inside = here / "pictures"
    shutil.copytree(root, inside)
    refused = subprocess.run(
        [*tool, str(inside)], cwd=here, env=environment, capture_output=True, text=True, check=False
    )
    assert refused.stderr.startswith(f"photos: ROOT: {inside} is in the repository")
    shutil.rmtree(inside)
    other = shutil.copytree(root, tmp_path / "other")
    run(*tool, str(other), "--recipe", "small")
    assert sorted(run(*dvc, "exp", "list", "--name-only").split()) == [name, f"{name}-2", "photos-other"]
    shown = run(*dvc, "exp", "show", "--csv")
    assert ODD in shown and str(other) in shown
    (here / "dvc.yaml").write_text(PIPELINE.replace("cp params.yaml copied", "exit 1"), encoding="utf-8")
    failed = subprocess.run([*tool, str(root)], cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode and "photos: params.yaml may have the settings of this run" in failed.stderr
    assert "Its report" not in failed.stdout
    run("git", "stash")
    run(*dvc, "checkout", "--allow-missing")
    assert "Running" not in run(*dvc, "repro") and run("git", "status", "--porcelain") == "", "as the docs say"
    assert (here / "copied").read_bytes() == (ROOT / "params.yaml").read_bytes()
