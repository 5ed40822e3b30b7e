"""The frame around every stage."""

import os
import subprocess
import sys
from pathlib import Path

from landmarks import stage
from landmarks.stage import UserError

import pytest
from conftest import ROOT


def fill(path: Path, text: str, directory: bool) -> None:
    """Makes `path` a file of that text, or a directory with such a file in it."""
    if directory:
        path.mkdir()
        path /= "inside"
    path.write_text(text, encoding="utf-8")


def content(path: Path) -> dict[str, str]:
    """The files at or below `path`."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {file.name: file.read_text(encoding="utf-8") for file in files}


@pytest.mark.parametrize("new", [False, True], ids=["new file", "new directory"])
@pytest.mark.parametrize("old", [False, True], ids=["old file", "old directory"])
def test_an_output_is_replaced_when_it_is_whole(tmp_path: Path, old: bool, new: bool) -> None:
    path, expected = tmp_path / "out", tmp_path / "expected"
    fill(path, "old", old)
    fill(expected, "new", new)
    with stage.whole(path) as part:
        fill(part, "new", new)
        assert "old" in content(path).values()
    assert path.is_dir() is new and list(content(path).values()) == ["new"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["expected", "out"]


@pytest.mark.parametrize("directory", [False, True], ids=["file", "directory"])
@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt])
def test_an_output_stays_when_the_block_fails(tmp_path: Path, directory: bool, error: type[BaseException]) -> None:
    path = tmp_path / "out"
    fill(path, "old", directory)
    before = content(path)
    with pytest.raises(error), stage.whole(path) as part:
        fill(part, "half of the new", directory)
        raise error
    assert content(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_is_not_mixed_in(tmp_path: Path) -> None:
    with stage.whole(tmp_path / "out") as part:
        left = part
        part.mkdir()
    left.mkdir()
    (left / "stale").touch()
    with stage.whole(tmp_path / "out") as part:
        part.mkdir()
        (part / "fresh").touch()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["fresh"]


def test_missing_directories_are_made(tmp_path: Path) -> None:
    with stage.whole(tmp_path / "a/b/out") as part:
        part.touch()
    assert (tmp_path / "a/b/out").is_file()


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    stage.remove(tmp_path / "link")
    assert [file.name for file in tmp_path.iterdir()] == ["real"]
    stage.remove(tmp_path / "nothing")


def test_work_in_progress_is_found_again_by_the_same_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.write_text("data", encoding="utf-8")

    def left(name: str = "train", alpha: float = 1.0) -> list[str]:
        """What an interrupted run finds; it leaves a file of its own."""
        with pytest.raises(KeyboardInterrupt), stage.scratch(name, {"alpha": alpha}, [data]) as scratch:
            names = [file.name for file in scratch.iterdir()]
            (scratch / f"{name}-{alpha}").touch()
            raise KeyboardInterrupt
        return names

    assert left() == [] and left() == ["train-1.0"]
    assert left("other") == [] and left() == ["train-1.0"], "stages are apart"
    assert left(alpha=0.5) == [] and left() == [], "of other settings, and removed by them"
    data.write_text("changed", encoding="utf-8")
    assert left() == [] and left() == ["train-1.0"]
    with stage.scratch("train", {"alpha": 1.0}, [data]) as scratch:
        assert scratch.is_relative_to(Path(".scratch/train"))
    assert [path.name for path in Path(".scratch").iterdir()] == ["other"], "nothing is left of what was done"


def run(body: str) -> subprocess.CompletedProcess[str]:
    """Runs a stage of its own, outside DVC, whose main has that body."""
    code = f"import sys\nfrom landmarks import stage\nsys.argv = ['some/my_stage.py']\ndef main():\n    {body}\n"
    code += "stage.run(main)\n"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_a_stage_prints_its_summary() -> None:
    done = run("return '3 pictures'")
    assert (done.returncode, done.stdout, done.stderr) == (0, "my-stage: 3 pictures\n", "")


def test_a_users_mistake_is_one_line() -> None:
    done = run("raise stage.UserError('abn.alpha: too large')")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "my-stage: abn.alpha: too large\n")


def test_our_mistake_keeps_its_traceback() -> None:
    done = run("raise ValueError('a bug')")
    assert done.returncode == 1 and "Traceback" in done.stderr and "a bug" in done.stderr
