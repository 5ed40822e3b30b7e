"""The parts of benchmarks/ that decide what is measured and what is written down."""

from benchmarks import ablations, pixels, unknown

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


def test_pictures_of_landmarks_that_were_left_out_are_spread_evenly() -> None:
    rows = [(f"{landmark}-{n:03d}", landmark) for landmark in "abcd" for n in range(150)] + [("e-0", "e")]
    index = pd.DataFrame(rows, columns=["id", "landmark_id"])
    chosen = unknown.left_out(index, ["a"])
    assert chosen["landmark_id"].value_counts().to_dict() == {"b": 50, "c": 50, "d": 50, "e": 1}
    assert chosen["id"].is_monotonic_increasing
    with user_error("has no landmark that the filter left out"):
        unknown.left_out(index, set("abcde"))
