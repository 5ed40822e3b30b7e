"""The parts of studies/ that decide what is measured and what is written down."""

from studies import ablations, backbones, pixels, unknown

import numpy as np
import pandas as pd
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
