"""The challenge's score: by hand, in the official order, and one line for a file that does not fit."""

from pathlib import Path

from landmarks.serving.cli import main
from landmarks.serving.score import global_average_precision, read_solution, read_submission, score

import pytest
from conftest import user_error

# Ten queries, of which "i" and "j" show no landmark; "c" shows two, "e" is answered wrongly, and so is "i".
SOLUTION = """id,landmarks,Usage
a,1,Public
b,2,Private
c,3 4,Public
d,5,Private
e,6,Public
f,7,Private
g,8,Public
h,9,Private
i,,Public
j,,Private
x,,Ignored
"""
SUBMISSION = """id,landmarks
a,1 0.9
b,2 0.8
i,5 0.7
c,4 0.6
e,9 0.5
d,5 0.4
f,7 0.3
g,
x,1 0.99
"""


def write(folder: Path, submission: str = SUBMISSION, solution: str = SOLUTION) -> tuple[Path, Path]:
    paths = folder / "submission.csv", folder / "solution.csv"
    for path, text in zip(paths, (submission, solution), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def gap(folder: Path, submission: str, solution: str = SOLUTION) -> float:
    answers, truth = write(folder, submission, solution)
    table = read_solution(truth)
    return global_average_precision(read_submission(answers), table[table["Usage"] != "Ignored"])


def test_an_example_by_hand(tmp_path: Path) -> None:
    by_hand = (1 / 1 + 2 / 2 + 3 / 4 + 4 / 6 + 5 / 7) / 8  # of eight pictures with a landmark
    assert gap(tmp_path, SUBMISSION) == pytest.approx(by_hand, abs=1e-12)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in score(*write(tmp_path)).splitlines()[2:]]
    assert rows == [
        ["Public", "5", "4", "4", f"{(1 + 2 / 3) / 4:.6f}"],
        ["Private", "5", "4", "3", f"{(1 + 1 + 1) / 4:.6f}"],
        ["all", "10", "8", "7", f"{by_hand:.6f}"],
    ]


def test_two_pictures_without_a_landmark_and_seven_answers(tmp_path: Path) -> None:
    right = [1, 1, 0, 1, 1, 1, 0]
    answers = "id,landmarks\n" + "".join(f"q{n},{n if ok else 99} {1 - n / 10}\n" for n, ok in enumerate(right))
    truth = "id,landmarks,Usage\n" + "".join(f"q{n},{n if n < 8 else ''},Private\n" for n in range(10))
    assert gap(tmp_path, answers, truth) == pytest.approx(0.5479166, abs=1e-7)


def test_equal_confidences_are_ranked_by_id(tmp_path: Path) -> None:
    truth = "id,landmarks,Usage\na,1,Public\nb,2,Public\n"
    assert gap(tmp_path, "id,landmarks\nb,2 0.5\na,9 0.5\n", truth) == 1 / 2 / 2
    assert gap(tmp_path, "id,landmarks\nb,9 0.5\na,1 0.5\n", truth) == 1 / 2


def test_nothing_answered_and_nothing_to_answer(tmp_path: Path) -> None:
    assert gap(tmp_path, "id,landmarks\na,\n") == 0
    assert score(*write(tmp_path, "id,landmarks\n", "id,landmarks,Usage\na,,Public\n")).count("nan") == 3


@pytest.mark.parametrize(
    ("submission", "solution", "message"),
    [
        ("id,landmarks\nz,1 0.5\n", SOLUTION, r"submission\.csv: id z is not in .*solution\.csv"),
        ("id,landmarks\na,1 0.5\na,\n", SOLUTION, r"submission\.csv: id a appears more than once"),
        ("id,landmarks\na,1\n", SOLUTION, r"submission\.csv: id a has '1'; it must be one landmark_id and its conf"),
        ("id,landmarks\na,1 0.5 2 0.4\n", SOLUTION, r"submission\.csv: id a has '1 0\.5 2 0\.4'"),
        ("id,landmarks\na,1 nan\n", SOLUTION, r"submission\.csv: id a has '1 nan'"),
        ("id,landmarks\na,1 0.5,\n", SOLUTION, r"submission\.csv: the rows have more fields than the header"),
        ("id,landmarks\na,1 0.5\nb,2 0.5,\n", SOLUTION, r"submission\.csv: not a CSV \(.*Expected 2 fields in line 3"),
        ("name,landmarks\na,1 0.5\n", SOLUTION, r"submission\.csv: no column id; it needs a header with id,landmarks"),
        ("", SOLUTION, r"submission\.csv: not a CSV"),
        (SUBMISSION, SUBMISSION, r"solution\.csv: no column Usage"),
        (SUBMISSION, "id,landmarks,Usage\na,1,Test\n", r"solution\.csv: id a has Usage 'Test'"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path: Path, submission: str, solution: str, message: str) -> None:
    with user_error(message):
        score(*write(tmp_path, submission, solution))


@pytest.mark.parametrize("ending", ["gz", "zip", "xz", "bz2", "zst"])
def test_an_archive_is_no_csv(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"submission.csv.{ending}").write_bytes(b"\x1f\x8b\x08\x00 broken \xff")
    with user_error(rf"submission\.csv\.{ending}: "):
        read_submission(tmp_path / f"submission.csv.{ending}")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submission, solution = map(str, write(tmp_path))
    assert main(["score", submission, solution]) == 0
    assert capsys.readouterr().out == f"{score(*write(tmp_path))}\n"
    assert main(["score", str(tmp_path / "none.csv"), solution]) == 1
    assert capsys.readouterr().err == f"landmarks: {tmp_path / 'none.csv'}: no such file or directory\n"
