"""The parts of benchmarks/ that decide what is measured and what is written down."""

import json
import subprocess
from pathlib import Path

from benchmarks import ablations, backbones, pixels, torture, unknown, verify

import numpy as np
import pandas as pd
import yaml
from conftest import drawing, user_error

GREY = np.array([120, 110, 100], dtype=np.uint8)


def test_pixels_are_taken_away_and_brought_back_cell_by_cell() -> None:
    image = drawing(0, 112, 112)
    order = np.random.default_rng(0).permutation(49)
    steps = pixels.versions(image, GREY, order, (7, 7))
    deletion, insertion = steps[: pixels.STEPS + 1], steps[pixels.STEPS + 1 :]
    picture = np.asarray(image)
    assert (deletion[0] == picture).all() and (insertion[-1] == picture).all()
    assert (deletion[-1] == GREY).all() and not (insertion[0] == picture).all()
    gone = [(step == GREY).all(2) for step in deletion]
    assert [mask.mean().round(3) for mask in gone] == [round(n / 7, 3) for n in range(8)]
    first = np.zeros((7, 7), dtype=bool)
    first.flat[order[:7]] = True
    assert (gone[1] == np.kron(first, np.ones((16, 16), dtype=bool))).all(), "the first seven cells of the order"
    assert (insertion[1][gone[1]] == picture[gone[1]]).all() and (insertion[1] == insertion[0])[~gone[1]].all()


def test_a_section_is_added_or_replaced_and_the_others_stay() -> None:
    text = ablations.with_section("# Title\n\nIntroduction.\n", "Sample", "| a |")
    assert text == "# Title\n\nIntroduction.\n\n## Sample\n\n| a |\n"
    text = ablations.with_section(text, "Photographs", "| b |")
    assert ablations.with_section(text, "Sample", "| c |") == (
        "# Title\n\nIntroduction.\n\n## Sample\n\n| c |\n\n## Photographs\n\n| b |\n"
    )


def test_what_a_tail_adds_is_counted_picture_by_picture() -> None:
    predictions = pd.DataFrame({"split": ["val", *["test"] * 8], "label": 1, "predicted": [0, *[1, 0] * 4]})
    named = backbones.right(pd.concat([predictions.assign(model=name) for name in ("abn", "baseline")]))
    assert named["abn"].tolist() == named["baseline"].tolist() == [1, 0] * 4
    more = {"abn": np.ones(8, dtype=int), "baseline": named["baseline"]}
    added = backbones.gained(more, named)
    assert added[0] == "0.00" and added[1] == "0.00 to 0.00" and added[2] == "50.00"
    assert 0 < float(added[3].split()[0]) < 50 < float(added[3].split()[2]) < 100
    assert backbones.gained(more, None) == [""] * 4


def test_pictures_of_landmarks_that_were_left_out_are_spread_evenly() -> None:
    rows = [(f"{landmark}-{n:03d}", landmark) for landmark in "abcd" for n in range(150)] + [("e-0", "e")]
    index = pd.DataFrame(rows, columns=["id", "landmark_id"])
    chosen = unknown.left_out(index, ["a"])
    assert chosen["landmark_id"].value_counts().to_dict() == {"b": 50, "c": 50, "d": 50, "e": 1}
    assert chosen["id"].is_monotonic_increasing
    with user_error("has no landmark that the filter left out"):
        unknown.left_out(index, set("abcde"))


def lock(md5: str, alpha: float = 1.0) -> str:
    """A dvc.lock with a stage that has a directory and a file as outs."""
    outs = [{"path": "models/abn", "md5": f"{md5}.dir"}, {"path": "plain", "md5": "b" * 32}]
    stages = {"train": {"cmd": "x", "outs": outs}, "plot": {"cmd": "x", "params": {"params.yaml": {"alpha": alpha}}}}
    return yaml.safe_dump({"schema": "2.0", "stages": stages})


def listing(root: Path, md5: str, **files: str) -> None:
    """What DVC's cache knows of a directory."""
    path = root / ".dvc/cache/files/md5" / md5[:2] / f"{md5[2:]}.dir"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([{"relpath": name, "md5": md5} for name, md5 in files.items()]), encoding="utf-8")


def test_what_differs_from_the_committed_results_is_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "metrics").mkdir(parents=True)
    (source / "params.yaml").write_text("compute: {workers: 0}\n", encoding="utf-8")
    (source / "metrics/results.json").write_text("{}\n", encoding="utf-8")
    (source / "dvc.lock").write_text(lock("c" * 32), encoding="utf-8")
    (source / ".gitignore").write_text("/.dvc/\n/.venv\n", encoding="utf-8")
    commit = ["-c", "user.name=t", "-c", "user.email=t", "commit", "--quiet", "--message", "x"]
    for command in (["init", "--quiet"], ["add", "--all"], commit):
        subprocess.run(["git", *command], cwd=source, check=True)
    clone = verify.Clone(source, tmp_path / "place", threads="1", folder=verify.ELSEWHERE, workers="4")
    assert clone.environment["OMP_NUM_THREADS"] == "1" and clone.root.name == verify.ELSEWHERE
    assert yaml.safe_load((clone.root / "params.yaml").read_text(encoding="utf-8")) == {"compute": {"workers": 4}}
    assert clone.differences() == []

    (clone.root / "dvc.lock").write_text(lock("d" * 32, alpha=0.5), encoding="utf-8")
    (clone.root / "metrics/results.json").write_text("{1}\n", encoding="utf-8")
    (clone.root / "plots").mkdir()
    (clone.root / "plots/new.png").touch()
    listing(source, "c" * 32, design="1", weights="2")
    listing(clone.root, "d" * 32, design="1", weights="3")
    assert clone.differences() == [
        "plot: its command, dependencies or parameters differ from those in dvc.lock",
        "train: models/abn differs: weights",
        " M metrics/results.json",
        "?? plots/",
    ]


def test_the_matrix_has_every_value_of_every_factor() -> None:
    for number, (factor, values) in enumerate(verify.FACTORS.items()):
        assert {row[number] for row in verify.MATRIX} == set(values), factor


def test_kills_are_spread_over_the_stages_by_their_length() -> None:
    seconds = {torture.STARTING: 2.0, "long": 90.0, "short": 8.0}
    moments = torture.moments(seconds, 200, seed=0)
    assert moments == sorted(moments) and moments == torture.moments(seconds, 200, seed=0)
    assert all(0 <= second <= list(seconds.values())[number] for number, second in moments)
    assert 160 < sum(number == 1 for number, _ in moments) < 198 and len(moments) == 200
