"""studies/: what is measured, and how it is written to the pages."""

import json
import re
from functools import partial

from landmarks import params
from landmarks.training import train_model
from studies import ablations, backbones, experiments, pictures, pixels, unknown

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, drawing, user_error
from scipy.special import softmax

GREY = np.array([120, 110, 100], dtype=np.uint8)


def test_pixels_are_removed_and_restored_cell_by_cell() -> None:
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
    text = experiments.with_section("# Title\n\nIntroduction.\n", "Sample", "| a |")
    assert text == "# Title\n\nIntroduction.\n\n## Sample\n\n| a |\n"
    text = experiments.with_section(text, "Photographs", "| b |")
    assert experiments.with_section(text, "Sample", "| c |") == (
        "# Title\n\nIntroduction.\n\n## Sample\n\n| c |\n\n## Photographs\n\n| b |\n"
    )


def committed(page: str) -> dict[str, str]:
    """The sections of a committed page that a study wrote."""
    _, *sections = re.split(r"^## ", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = dict(section.split("\n", 1) for section in sections)
    return {heading: body.strip() for heading, body in named.items() if "- Command: " in body}


@pytest.mark.parametrize("study", [backbones.STUDY, ablations.STUDY], ids=["backbones", "ablations"])
def test_the_committed_tables_have_the_rows_and_columns_of_the_study(study: experiments.Study) -> None:
    sections = committed(study.page.name)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    made = re.findall(rf'-m studies\.{study.page.stem} (?:"(.+?)"|(\w+))', makefile)
    assert sorted(sections) == sorted(quoted or word for quoted, word in made)
    for body in sections.values():
        for caption, columns in study.tables.items():
            found = re.search(rf"^### {caption}\n\n\| (.*) \|\n.*\n((?:\|.*\n?)+)", body, re.MULTILINE)
            if caption == "What the trained tail adds" and backbones.TRAINED not in body:
                assert not found, "a table without values"
                continue
            assert found and found[1].split(" | ") == [*study.key, *columns]
            names = [tuple(line[2:].split(" | ")[: len(study.key)]) for line in found[2].splitlines()]
            assert names == [name for name in study.rows if name in names]


def test_a_table_has_only_rows_with_values() -> None:
    cells = [str(number) for number in range(sum(map(len, backbones.TABLES.values())))]
    frozen = [*cells[:6], *[""] * 4, *cells[10:]]
    rows = {("vgg16 conv4, trained tail",): cells, ("vgg16 conv4",): frozen}
    lines = experiments.write_tables(backbones.STUDY, rows).splitlines()
    assert [line for line in lines if line.startswith("| vgg16")] == [
        "| vgg16 conv4 | 0 | 1 | 2 | 3 | 4 | 5 |",
        "| vgg16 conv4, trained tail | 0 | 1 | 2 | 3 | 4 | 5 |",
        "| vgg16 conv4, trained tail | 6 | 7 | 8 | 9 |",
        "| vgg16 conv4 | 10 | 11 | 12 | 13 | 14 |",
        "| vgg16 conv4, trained tail | 10 | 11 | 12 | 13 | 14 |",
        "| vgg16 conv4 | 15 | 16 | 17 | 18 |",
        "| vgg16 conv4, trained tail | 15 | 16 | 17 | 18 |",
    ]


def test_the_cells_of_a_row_are_the_committed_results() -> None:
    """params.yaml has the settings of one row of the page. Without masks there is no energy."""
    results = json.loads((ROOT / "metrics/results.json").read_text(encoding="utf-8"))
    section = committed("ablations.md")["Sample"]
    parts = re.findall(r"^\| conv4 \| residual \| 1 \| (.*) \|$", section, re.MULTILINE)  # of two tables
    cells = [cell for part in parts for cell in part.split(" | ")]
    row = ("conv4", "residual", "1")
    assert len(cells) == 8 and ablations.measure(row, results, None, None) == cells
    results["abn"]["test"]["attention"]["energy"]["map"] = None
    assert ablations.measure(row, results, None, None) == [*cells[:5], "", *cells[6:]]


def test_what_a_tail_adds_is_counted_picture_by_picture() -> None:
    predictions = pd.DataFrame({"split": ["val", *["test"] * 8], "label": 1, "predicted": [0, *[1, 0] * 4]})
    named = backbones.correct_pictures(pd.concat([predictions.assign(model=name) for name in ("abn", "baseline")]))
    assert named["abn"].tolist() == named["baseline"].tolist() == [1, 0] * 4
    more = {"abn": np.ones(8, dtype=int), "baseline": named["baseline"]}
    added = backbones.gain(more, named)
    assert added[0] == "0.00" and added[1] == "0.00 to 0.00" and added[2] == "50.00"
    assert 0 < float(added[3].split()[0]) < 50 < float(added[3].split()[2]) < 100
    assert backbones.gain(more, None) == [""] * 4


def test_pictures_of_landmarks_that_were_left_out_are_spread_evenly() -> None:
    rows = [(f"{landmark}-{n:03d}", landmark) for landmark in "abcd" for n in range(150)] + [("e-0", "e")]
    index = pd.DataFrame(rows, columns=["id", "landmark_id"])
    chosen = unknown.left_out(index, ["a"])
    assert chosen["landmark_id"].value_counts().to_dict() == {"b": 50, "c": 50, "d": 50, "e": 1}
    assert chosen["id"].is_monotonic_increasing
    with user_error("has no landmark that the filter left out"):
        unknown.left_out(index, set("abcde"))


def test_a_subset_has_as_many_training_pictures_of_every_landmark() -> None:
    """All views of a picture, the same pictures and more for a higher number, and all pictures of other splits."""
    table = pd.DataFrame({"id": [f"{n:03}" for n in range(60)], "label": np.arange(60) % 3})
    table["split"] = np.where(np.arange(60) < 45, "train", "test")
    views = pd.concat([table.assign(view=view, row=np.arange(60) + 60 * view) for view in range(2)])
    few, more, every = (pictures.subset(views, number, 1) for number in (5, 10, 0))
    for found, number in ((few, 5), (more, 10), (every, 15)):
        assert (found[found["split"] == "train"].groupby(["label", "view"]).size() == number).all()
        assert (found["split"] == "test").sum() == 30
    assert set(few["row"]) < set(more["row"]) < set(every["row"]) == set(views["row"])
    half = pictures.every_second(every)
    assert set(half["row"]) == set(views.loc[views["label"] != 1, "row"]) and set(half["label"]) == {0, 1}


def test_every_score_ranks_known_above_unknown_landmarks() -> None:
    """Classes are points far apart; unknown landmarks lie elsewhere, and both branches are unsure about them."""
    rng = np.random.default_rng(0)
    labels, axes = np.arange(90) % 3, np.eye(8)

    def group(targets: np.ndarray, certainty: float) -> unknown.Evidence:
        x = 3 * axes[targets] + rng.normal(0, 0.3, (len(targets), 8))
        logits = [certainty * np.eye(6)[targets][:, :3] + rng.normal(0, 0.3, (len(targets), 3)) for _ in range(2)]
        return unknown.Evidence(*logits, np.mean([softmax(part, 1) for part in logits], 0), x, x, x)

    train, val = group(labels, 5), group(labels, 5)
    queries = val, group(labels, 5), group(labels + 3, 1)
    reference, *singles = (unknown.single_scores(train, labels, query) for query in queries)
    known, other = (unknown.scores(single, reference) for single in singles)
    for name in known:
        assert np.isfinite(known[name]).all() and np.isfinite(other[name]).all()
        if name.split(",")[0] not in ("PCA residual", "nearest class mean", "10th nearest neighbour"):
            assert known[name].mean() > other[name].mean(), name


def test_too_few_training_views_are_an_error() -> None:
    x = np.eye(9)
    few = unknown.Evidence(x, x, x, x, x, x)
    with user_error("augment.views: at least 10 training views are needed"):
        unknown.single_scores(few, np.arange(9) % 3, few)


@pytest.mark.slow
def test_each_third_of_the_classes_is_unknown_once() -> None:
    rng = np.random.default_rng(0)
    rows = [(label, split) for label in range(6) for split in ["train"] * 8 + ["val"] * 4 + ["test"] * 4]
    views = pd.DataFrame(rows, columns=["label", "split"]).assign(view=0, row=range(len(rows)))
    array = (rng.normal(0, 0.1, (len(rows), 8, 3, 3)) + np.eye(8)[views["label"]][:, :, None, None]).astype(np.float16)
    p = params.load(ROOT / "params.yaml")
    train = partial(train_model, abn=p.abn, train=p.train, seed=0, device=torch.device("cpu"))
    tables = list(unknown.thirds(train, array, views, 0.05))
    assert len(tables) == 3 and all(len(table) == len(tables[0]) for table in tables)
    assert all(table["area under the ROC curve"].between(0, 100).all() for table in tables)
