"""The command line: what it prints, where, and with which exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

from landmarks import images
from landmarks.serving import cli, overlay
from landmarks.serving.cli import VERSION, main

import pytest
from conftest import ROOT, abn, drawing, jpeg, model_folder
from PIL import Image


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(model_folder(tmp_path_factory.mktemp("release") / "abn", abn()))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for n in range(3):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(drawing(n)))
    return tmp_path


Captured = pytest.CaptureFixture[str]


def test_a_table(model: str, photos: Path, capsys: Captured) -> None:
    assert main(["predict", str(photos), "--model", model, "--top", "2"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and len(lines) == 9
    assert lines[0] == str(photos / "0.jpg") and lines[1].startswith("  1  ") and lines[2].startswith("  2  ")
    assert "%  b-2  Bridge" in out


def test_what_is_skipped_in_a_folder_is_counted(model: str, photos: Path, capsys: Captured, tmp_path: Path) -> None:
    (photos / "loop").symlink_to(".")
    (photos / "__MACOSX").mkdir()
    for name in ("__MACOSX/._0.jpg", "._1.jpg", "a.cr2"):
        (photos / name).write_bytes(b"x")
    drawing().save(photos / "3.HEIC")
    for command in (["predict", str(photos), "--json"], ["submit", str(photos), "--out", str(tmp_path / "out/a.csv")]):
        assert main([*command, "--model", model]) == 0
        out, err = capsys.readouterr()
        assert f"landmarks: {photos}: skipped 2 hidden, 1 repeated, 1 unsupported .cr2\n" in err
        assert len(out.splitlines()) == 4 if command[0] == "predict" else "4 rows" in out


def test_json(model: str, photos: Path, capsys: Captured) -> None:
    assert main(["predict", str(photos / "*.jpg"), "--model", model, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["file"] for entry in found] == [str(photos / f"{n}.jpg") for n in range(3)]
    for entry in found:
        confidence = [guess["confidence"] for guess in entry["guesses"]]
        assert confidence == sorted(confidence, reverse=True) and sum(confidence) == pytest.approx(1, abs=1e-5)
        assert entry["known"] is True and len(entry["box"]) == 4
        assert [len(row) for row in entry["map"]] == [7] * 7


def test_none_of_the_known_landmarks(tmp_path: Path, photos: Path, capsys: Captured) -> None:
    model = str(model_folder(tmp_path / "strict", threshold=0.999))
    assert main(["predict", str(photos / "0.jpg"), "--model", model]) == 0
    assert "probably none of the known landmarks (best below 99.9 %)" in capsys.readouterr().out
    assert main(["predict", str(photos / "0.jpg"), "--model", model, "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["known"] is False and entry["map"] is None


def test_a_broken_file_is_one_line_and_the_rest_goes_on(model: str, photos: Path, capsys: Captured) -> None:
    (photos / "1.jpg").write_text("no picture")
    assert main(["predict", str(photos), "nowhere.jpg", "--model", model]) == 1
    out, err = capsys.readouterr()
    assert str(photos / "0.jpg") in out and str(photos / "2.jpg") in out and str(photos / "1.jpg") not in out
    assert err.splitlines() == [
        f"landmarks: {photos / '1.jpg'}: broken",
        "landmarks: nowhere.jpg: no such file or directory",
    ]
    assert main(["predict", str(photos / "1.jpg"), "--model", model, "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"file": str(photos / "1.jpg"), "error": "broken"}


def test_a_folder_of_overlays_does_not_hide_a_released_model(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    monkeypatch.setattr(cli, "ROOT", photos / "repository")
    Path("abn").mkdir()
    assert cli.folder("abn") == Path("abn")
    released = photos / "repository/models/released/abn"
    released.mkdir(parents=True)
    assert cli.folder("abn") == released
    Path("abn/release.json").touch()
    assert cli.folder("abn") == Path("abn")


def test_odd_files_are_one_line_each(model: str, photos: Path, capsys: Captured) -> None:
    """A pipe that nobody writes to, a line break and a name for whose overlay there is no room."""
    os.mkfifo(photos / "pipe.jpg")
    for name in ("a\nb.jpg", "x" * 255, "y" * 250 + ".png"):
        (photos / name).write_bytes(jpeg(drawing()) * (name[0] != "a"))
    names = ["pipe.jpg", "a\nb.jpg", "x" * 255, "y" * 250 + ".png", "0.jpg"]
    command = ["predict", *(str(photos / name) for name in names), "--model", model, "--overlay", str(photos / "maps")]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert [line.rpartition(": ")[2] for line in err.splitlines()] == ["not a file", "empty", "file name too long"]
    assert out.count(".jpg\n  1  ") == 1 and len(list((photos / "maps").iterdir())) == 2


def test_overlays(model: str, photos: Path) -> None:
    (photos / "more").mkdir()
    (photos / "more/0.png").write_bytes((photos / "0.jpg").read_bytes())
    assert main(["predict", str(photos), "--model", model, "--overlay", str(photos / "new/maps")]) == 0
    drawn = sorted((photos / "new/maps").iterdir())
    assert [path.name for path in drawn] == ["0-2.png", "0.png", "1.png", "2.png"], "none is lost to another"
    assert all(Image.open(path).format == "PNG" for path in drawn)


def test_an_overlay_of_a_large_photo_is_shrunk() -> None:
    """Only JPEG files are decoded at reduced size."""
    image = Image.new("RGB", (6000, 3000), "white")
    for kind in ("PNG", "JPEG"):
        width, height = overlay.decode(images.encode(image, kind)).size
        assert width == 2 * height and 2 <= height / overlay.SHORT_SIDE < 4


@pytest.mark.slow
def test_stdout_may_be_closed(model: str, photos: Path) -> None:
    command = [sys.executable, "-m", "landmarks", "predict", str(photos), "--model", model]
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_dask_is_missing() -> None:
    code = "import sys; sys.modules['dask'] = None; from landmarks.serving import cli; cli.main(['scheduler'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    command = "pip install --no-deps -r requirements-cluster.txt"
    assert done.stderr == f"landmarks: compute.cluster: dask is missing; {command}\n"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "COMMAND"),
        (["predict"], 2, "PHOTO"),
        (["predict", "x.jpg", "--top", "0"], 2, "--top: must be 1 or more"),
        (["serve", "--port", "70000"], 2, "--port: must be 1 to 65535"),
        (["export"], 2, "--onnx"),
        (["submit", "x"], 2, "--out"),
        (["predict", "x.jpg", "--model", "nowhere"], 1, "release.json: missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes(arguments: list[str], status: int, message: str, capsys: Captured) -> None:
    try:
        found = main(arguments)
    except SystemExit as left:
        found = left.code
    out, err = capsys.readouterr()
    assert found == status and message in err and "Traceback" not in err and out == ""


def test_mistakes_with_a_model(model: str, photos: Path, tmp_path: Path, capsys: Captured) -> None:
    baseline = str(model_folder(tmp_path / "baseline"))
    assert main(["predict", str(photos), "--model", baseline, "--overlay", str(tmp_path / "maps")]) == 1
    assert "has no attention map" in capsys.readouterr().err
    assert main(["predict", str(photos), "--model", model, "--overlay", str(photos / "0.jpg")]) == 1
    assert "0.jpg: file exists" in capsys.readouterr().err
    assert main(["submit", str(tmp_path / "nowhere"), "--out", "x.csv", "--model", model]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export --onnx {} --force", "is a folder"),
        ("export --onnx . --force", "is a folder"),
        ("export --onnx {}/0.jpg", "0.jpg: exists; name another file or add --force"),
        ("export --onnx {model}/classes.csv --force", "classes.csv: is a file that this command reads"),
        ("predict {}/1.jpg --overlay {}", "1.png: exists; name another file or add --force"),
        ("predict {} --overlay {}", "1.png: is a file that this command reads"),
        ("predict {} --overlay {} --force", "1.png: is a file that this command reads"),
        ("predict {} --overlay {}/links --force", "0.png: is a file that this command reads"),
        ("predict {} --overlay {}/0.jpg", "file exists"),
        ("submit {}/index.csv --out {}/index.csv --force", "index.csv: is a file that this command reads"),
        ("submit {}/index.csv --out {}/link.csv --force", "link.csv: is a file that this command reads"),
        ("submit {}/index.csv --out {}/0.jpg --force", "0.jpg: is a file that this command reads"),
        ("submit {}/index.csv --out {}/2.jpg", "2.jpg: exists; name another file or add --force"),
        ("submit {}/index.csv --out /dev/null --force", "no regular file"),
        ("submit {}/index.csv --out {}/answers.csv --force", "answers.csv: is a folder, a link"),
    ],
)
def test_no_file_of_the_user_is_lost(
    model: str, photos: Path, capsys: Captured, command: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    drawing(7).save(photos / "1.png")
    (photos / "index.csv").write_text("id\n0\n", encoding="utf-8")
    (photos / "link.csv").symlink_to("index.csv")
    (photos / "answers.csv").symlink_to("notes.txt")  # like /dev/stdout, where that is a file
    (photos / "notes.txt").touch()
    (photos / "links").mkdir()
    (photos / "links/0.png").symlink_to("../0.jpg")
    before = everything(photos), everything(Path(model))
    arguments = command.replace("{}", str(photos)).replace("{model}", model).split()
    assert main([*arguments, "--model", model]) == 1
    out, err = capsys.readouterr()
    assert message in err.splitlines()[-1] and out == ""
    assert (everything(photos), everything(Path(model))) == before


def test_force_replaces_a_file(model: str, photos: Path) -> None:
    for name in ("maps/0.png", "a.csv"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_text("old")
    command = ["predict", str(photos / "0.jpg"), "--overlay", str(photos / "maps"), "--model", model]
    assert main(command) == 1 and main([*command, "--force"]) == 0
    assert Image.open(photos / "maps/0.png").format == "PNG"
    command = ["submit", str(photos), "--out", str(photos / "a.csv"), "--model", model]
    (photos / "maps/0.png").unlink()
    assert main(command) == 1 and main([*command, "--force"]) == 0
    assert (photos / "a.csv").read_text(encoding="utf-8").startswith("id,landmarks\n0,")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str)
def test_names_that_stdout_cannot_show_do_not_stop_the_rest(
    model: str, tmp_path: Path, settings: dict[str, str]
) -> None:
    for name in ("\u6771\u4eac.jpg", os.fsdecode(b"caf\xe9.jpg"), "last.jpg"):
        (tmp_path / name).write_bytes(jpeg(drawing()))

    commands = [["predict", "."], ["predict", ".", "--json"], ["submit", ".", "--out", os.fsdecode(b"out/\xe9.csv")]]
    code = "import sys; from landmarks.serving.cli import main\n"
    code += f"for command in {commands}:\n"
    code += f"    assert main([*command, '--model', {model!r}]) == 0; print('# end')"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONCOERCECLOCALE": "0"} | settings
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    text, lines, *_ = done.stdout.split(b"# end\n")
    assert text.count(b".jpg\n  1  ") == 3
    assert len([json.loads(line) for line in lines.splitlines()]) == 3
    (written,) = (tmp_path / "out").iterdir()
    rows = written.read_text(encoding="utf-8").splitlines()
    assert [row.partition(",")[0] for row in rows] == ["id", r"caf\xe9", "last", "\u6771\u4eac"]


def test_ctrl_c_is_one_line(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, model: str) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.Image.open", interrupted)
    assert main(["predict", str(photos / "0.jpg"), "--model", model]) == 130
    assert capsys.readouterr() == ("", "landmarks: interrupted\n")


@pytest.mark.parametrize("command", [[], ["predict"], ["export"], ["submit"], ["score"], ["serve"]])
def test_help_has_examples(command: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0 and "xample" in out and "  landmarks " in out


@pytest.mark.slow
def test_from_any_directory_with_the_folder_and_the_code_alone(model: str, photos: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "landmarks", *arguments]
        return subprocess.run(command, cwd=photos, env=environment, capture_output=True, text=True, check=False)

    assert run("--version").stdout == f"landmarks {VERSION}\n"
    done = run("predict", "0.jpg", "--model", model)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("0.jpg\n  1  ")
    assert sorted(path.name for path in photos.iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]
