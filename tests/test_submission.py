"""Answers for the challenge: the format of the rows, their order, complete files, resuming after a kill."""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from landmarks.serving import recognizer, submission
from landmarks.serving.recognizer import Recognizer

import pytest
from conftest import drawing, jpeg, model_folder, user_error

# The challenge's: a header, then an id, a comma, and nothing or a landmark_id, a blank and a confidence.
ROW = re.compile(r'[^,"\s]+,([^,"\s]+ (0\.\d+|1\.0+))?')


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    return Recognizer(model_folder(tmp_path_factory.mktemp("release") / "m"), "cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten photos in the layout of v2, and a file that is no photo."""
    for n in range(10):
        path = tmp_path / f"test/{n}/0/0/{n}00a.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(jpeg(drawing(n)))
    (tmp_path / "test/notes.txt").touch()
    return tmp_path / "test"


def rows(out: Path) -> list[list[str]]:
    header, *lines = out.read_text(encoding="utf-8").splitlines()
    assert header == "id,landmarks"
    assert all(ROW.fullmatch(line) for line in lines)
    return [line.split(",") for line in lines]


def test_a_row_per_picture_in_the_challenges_format(model: Recognizer, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new/submission.csv"
    out.parent.mkdir()
    said = submission.write(model, submission.photos(folder, None), out)
    assert said == f"10 rows in {out}"
    found = rows(out)
    assert [name for name, _ in found] == [f"{n}00a" for n in range(10)]
    answers = [answer for _, answer in model.recognise(recognizer.pictures(folder))]
    for (_, cell), answer in zip(found, answers, strict=True):
        (guess,) = model.best(answer, 1)
        assert cell == f"{guess.landmark_id} {guess.confidence:.6f}"
    assert list(out.parent.iterdir()) == [out]


def test_pictures_without_an_answer_have_empty_rows(
    model: Recognizer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "3/0/0/300a.jpg").write_text("no picture")
    (tmp_path / "index.csv").write_text("id,url\n500a,http://x\nfff,\n300a,\n000a,\n", encoding="utf-8")
    photos = submission.photos(tmp_path / "index.csv", folder)
    assert submission.photos(tmp_path / "index.csv", None) == photos, "beside it, at any depth"
    out = tmp_path / "out.csv"
    assert submission.write(model, photos, out).endswith("(1 broken, 1 missing)")
    assert [name for name, _ in rows(out)] == ["000a", "300a", "500a", "fff"]
    assert [bool(cell) for _, cell in rows(out)] == [True, False, True, False]
    monkeypatch.setattr(model, "threshold", 1.1)
    assert submission.write(model, photos, out, force=True).endswith("(1 broken, 1 missing, 2 not recognised)")
    assert not any(cell for _, cell in rows(out))


def interrupted(model: Recognizer, photos: dict, out: Path, after: int) -> None:
    """Writes until there are `after` answers, as if someone pressed Ctrl-C then."""

    def stopped(paths: Iterable[Path | None], recognise: Callable = model.recognise) -> Iterator:
        yield from islice(recognise(paths), after)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "recognise", stopped)
        submission.write(model, photos, out)


@pytest.mark.parametrize("cut", [0, 5], ids=["between rows", "within a row"])
def test_an_interrupted_run_resumes(
    model: Recognizer, folder: Path, tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognizer, "BATCH", 2)
    photos, out = submission.photos(folder, None), tmp_path / "out.csv"
    interrupted(model, photos, out, after=7)
    assert not out.exists(), "whole or absent"
    (part,) = tmp_path.glob(".out.csv.*.part")
    content = part.read_text(encoding="utf-8")
    if cut:
        part.write_text(content[:-cut], encoding="utf-8")
    done = (part.read_text(encoding="utf-8").count("\n") - 1) // 2 * 2
    assert 0 < done < 8
    asked = []
    monkeypatch.setattr(model, "view", lambda data, view=model.view: asked.append(data) or view(data))
    assert f"{done} of an earlier run" in submission.write(model, photos, out)
    assert len(asked) == 10 - done
    resumed = out.read_text(encoding="utf-8")
    submission.write(model, photos, tmp_path / "whole.csv")
    assert resumed == (tmp_path / "whole.csv").read_text(encoding="utf-8")
    assert not list(tmp_path.glob("*.part"))


def test_a_file_that_appears_during_the_run_stays(
    model: Recognizer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognizer, "BATCH", 2)
    photos, out = submission.photos(folder, None), tmp_path / "out.csv"
    monkeypatch.setattr(model, "view", lambda data, view=model.view: out.write_text("mine") and view(data))
    with user_error(r"out\.csv: exists; name another file or add --force"):
        submission.write(model, photos, out)
    assert out.read_text() == "mine"
    assert "10 of an earlier run" in submission.write(model, photos, out, force=True)


def test_rows_of_other_pictures_are_discarded(
    model: Recognizer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognizer, "BATCH", 2)
    photos, out = submission.photos(folder, None), tmp_path / "out.csv"
    interrupted(model, photos, out, after=7)
    del photos["100a"]
    assert submission.write(model, photos, out) == f"9 rows in {out}"
    assert [name for name, _ in rows(out)] == list(photos)
    assert not list(tmp_path.glob(".*.part"))


def test_rows_of_photos_that_were_missing_are_discarded(
    model: Recognizer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run may name another folder, with the same ids."""
    monkeypatch.setattr(recognizer, "BATCH", 2)
    photos, out = submission.photos(folder, None), tmp_path / "out.csv"
    interrupted(model, dict.fromkeys(photos), out, after=7)
    assert "earlier" not in submission.write(model, photos, out)


def test_mistakes(model: Recognizer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index.csv"
    with user_error(r"index\.csv: no such file"):
        submission.photos(index, None)
    index.write_text("name\nx\n", encoding="utf-8")
    with user_error("not a CSV with a column id"):
        submission.photos(index, None)
    index.write_text("id\n", encoding="utf-8")
    with user_error("no rows"):
        submission.photos(index, None)
    index.write_text("url,id\nhttp://x\n", encoding="utf-8")
    with user_error("a row has no id"):
        submission.photos(index, None)
    index.write_text("id\nx\ny\nx\n", encoding="utf-8")
    with user_error("id x appears more than once"):
        submission.photos(index, None)
    with user_error("is not a folder"):
        submission.photos(index, tmp_path / "nowhere")
    index.write_text("id\nx.jpg\n", encoding="utf-8")
    with user_error("--pictures: .* has no picture whose name is an id of .*index.csv"):
        submission.photos(index, folder)
    with user_error("leave it out"):
        submission.photos(folder, folder)
    with user_error("no pictures"):
        (tmp_path / "empty").mkdir()
        submission.photos(tmp_path / "empty", None)
    photos = submission.photos(folder, None)
    (folder / "000a.png").touch()
    with user_error("have the same id"):
        submission.photos(folder, None)
    (folder / "000a.png").unlink()
    (folder / "private").symlink_to("private")
    for source in (folder, index):
        with user_error(r"test/private: cannot be read; give yourself access, or remove it"):
            submission.photos(source, folder if source == index else None)
    monkeypatch.setattr(model, "landmarks", ["Eiffel Tower"])
    with user_error("landmark_id 'Eiffel Tower'"):
        submission.write(model, photos, tmp_path / "out.csv")
