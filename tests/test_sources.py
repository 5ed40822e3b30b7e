"""Sources: `open_source`, indexes, folders and Google Landmarks v2 in a directory."""

import os
import tarfile
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath

from landmarks import params, stage
from landmarks.images import Picture, Unfit
from landmarks.serving import recognizer
from landmarks.sources import Source, open_source
from landmarks.sources.index import read_index
from landmarks.sources.sample import Sample
from stages import download
from stages import filter as filter_stage

import pandas as pd
import pytest
import yaml
from conftest import ROOT, SHARED, drawing, shared, user_error

MIRROR = SHARED / "gldv2-mirror"
SCRATCH = Path(".scratch")
DOWNLOAD = params.load(ROOT / "params.yaml").download


def opened(name: str, root: Path | str | None, scratch: Path = SCRATCH) -> AbstractContextManager[Source]:
    data = params.Data(source=name, root=None if root is None else str(root), version=None)
    return open_source(data, DOWNLOAD, seed=3, workers=1, scratch=scratch)


def fetch(source: Source, wanted: pd.DataFrame | None = None) -> list[Picture]:
    """All wanted pictures that do not fail, in id order."""
    wanted = source.index() if wanted is None else wanted
    failures = source.fetch(wanted)
    return list(source.pictures(wanted[~wanted["id"].isin(failures)]))


# --- open_source and read_index ----------------------------------------------------------------------------------


def test_the_sample_needs_no_root() -> None:
    with opened("sample", None) as source:
        assert source == Sample(3, workers=1)


@pytest.mark.parametrize(("name", "wrong"), [("folder", "file"), ("gldv2", "file"), ("gldv1", "directory")])
def test_root_must_be_a_file_or_a_directory_as_the_source_needs(tmp_path: Path, name: str, wrong: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    with user_error(rf"data\.root: missing; data\.source {name} needs "), opened(name, None):
        pass
    for path in (tmp_path / "nothing", tmp_path / wrong):
        with user_error(rf"data\.root: {path} is not .*; correct the path"), opened(name, path, tmp_path):
            pass


@pytest.mark.parametrize(("name", "root"), [("folder", "pictures"), ("gldv1", "index.csv"), ("gldv2", ".")])
def test_a_relative_root_is_relative_to_the_repository_even_in_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, root: str
) -> None:
    """`dvc exp run --temp` runs stages in a copy, with DVC_ROOT set to the repository."""
    (tmp_path / "pictures/tower").mkdir(parents=True)
    drawing().save(tmp_path / "pictures/tower/a.jpg")
    (tmp_path / "index.csv").write_text("id,url,landmark_id\na,http://x.invalid/a,1\n", encoding="utf-8")
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata/train.csv").write_text("id,url,landmark_id\na,x,1\n", encoding="utf-8")
    copy = tmp_path / ".dvc/tmp/exps/tmp1"
    copy.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for place in (tmp_path, copy):
        monkeypatch.chdir(place)
        with opened(name, root, stage.repository() / ".scratch") as source:
            assert len(source.index()) == 1
    assert len([path for path in (tmp_path / ".scratch").glob("*") if path.is_dir()]) == (name != "folder")


def test_a_scheme_without_its_package_is_an_error(tmp_path: Path) -> None:
    with user_error(r"data\.root: nfs5://server/x: "), opened("gldv2", "nfs5://server/x", tmp_path):
        pass


def test_an_index_is_read_as_text_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,url,landmark_id\n"00b",x,007\n"00a","y, z",7\n', encoding="utf-8")
    rows = read_index(tmp_path / "a.csv", ["id", "landmark_id"])
    assert rows.to_dict("list") == {"id": ["00a", "00b"], "landmark_id": ["7", "007"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("", "[Ee]mpty"),
        ("id,landmark_id\n", "no rows"),
        ("id,landmark\na,1\n", "landmark_id"),
        ("id,landmark_id\na,1\nb,2\na,3\n", "id a is repeated"),
        ("id,landmark_id\na,1\n,2\n", "a row without id"),
        ("id,landmark_id\na,\n", "a row without landmark_id"),
        ("id,landmark_id\na,1\nb\n", "[Cc]olumn"),
    ],
    ids=["missing", "empty", "header", "no column", "repeated", "no id", "no class", "short row"],
)
def test_a_malformed_index_is_an_error(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "index.csv"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with user_error(rf"index\.csv: .*{message}"):
        read_index(path, ["id", "landmark_id"])


# --- folder --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, one with subdirectories, and files that are not pictures."""
    for n, name in enumerate(["tower/2.jpg", "tower/1.JPEG", "arch/old/a.png", "arch/old/er/b.jpg"]):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing(n).save(path)
    (tmp_path / "pictures/tower/notes.txt").write_text("no picture", encoding="utf-8")
    drawing().save(tmp_path / "pictures/loose.jpg")
    return tmp_path / "pictures"


def test_a_directory_is_a_class(folder: Path) -> None:
    with opened("folder", folder) as source:
        index = source.index()
        assert index["id"].tolist() == ["arch/old/a.png", "arch/old/er/b.jpg", "tower/1.JPEG", "tower/2.jpg"]
        assert index["landmark_id"].tolist() == ["arch", "arch", "tower", "tower"]
        assert fetch(source) == [
            Picture(row.id, row.landmark_id, (folder / row.id).read_bytes()) for row in index.itertuples()
        ]


def test_only_wanted_pictures_are_fetched(folder: Path) -> None:
    with opened("folder", folder) as source:
        wanted = source.index().iloc[[1, 3]]
        assert [picture.id for picture in fetch(source, wanted)] == wanted["id"].tolist()


def test_images_csv_takes_precedence_over_directories(folder: Path) -> None:
    (folder / "images.csv").write_text("landmark_id,id,file\n07,z,tower/1.JPEG\n07,b,loose.jpg\n", encoding="utf-8")
    with opened("folder", folder) as source:
        assert source.index()[["id", "landmark_id"]].to_dict("list") == {"id": ["b", "z"], "landmark_id": ["07", "07"]}
        assert [p.picture for p in fetch(source)] == [(folder / f).read_bytes() for f in ("loose.jpg", "tower/1.JPEG")]


def test_a_file_of_gigabytes_is_huge_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "tower").mkdir()
    with (tmp_path / "tower/1.jpg").open("wb") as file:
        file.truncate(3 << 30)
    with opened("folder", tmp_path) as source:
        assert source.fetch(source.index()) == {"tower/1.jpg": "huge"}
    with pytest.raises(Unfit, match="huge"):
        recognizer.read_bytes(tmp_path / "tower/1.jpg")


def test_a_file_whose_name_no_table_can_hold_is_skipped(folder: Path) -> None:
    good = "My\u00a0Pictures/Screenshot 3.04.05\u202fPM.png"
    for name in (os.fsencode(good), b"tower/\xff.jpg", b"tower/a\nb.jpg", b"caf\xe9/1.jpg"):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        drawing().save(path, "PNG")
    with opened("folder", folder) as source:
        assert good in source.index()["id"].tolist() and set(source.index()["landmark_id"]) == {
            "arch",
            "tower",
            "My\u00a0Pictures",
        }
        skipped = source.skipped().set_index("id")["reason"].to_dict()
    assert skipped == {
        "caf\\xe9/1.jpg": "name not UTF-8",
        "loose.jpg": "not in a class folder",
        r"tower/a\x0ab.jpg": "line break in the name",
        "tower/notes.txt": "unsupported .txt",
        "tower/\\xff.jpg": "name not UTF-8",
    }


def test_a_listed_file_that_cannot_be_read(folder: Path) -> None:
    lines = ["a,1,tower/9.jpg", "b,1,tower", "c,1,tower/1.JPEG", f"d,1,{folder}/loose.jpg", ""]
    (folder / "images.csv").write_text("\n".join(["id,landmark_id,file", *lines]), encoding="utf-8")
    with opened("folder", folder) as source:
        assert source.fetch(source.index()) == {"a": "no such file or directory", "b": "not a file"}
        assert [picture.id for picture in fetch(source)] == ["c", "d"]
        assert source.skipped().set_index("id")["reason"].to_dict() == {
            "arch/old/a.png": "not in images.csv",
            "arch/old/er/b.jpg": "not in images.csv",
            "tower/2.jpg": "not in images.csv",
            "tower/notes.txt": "unsupported .txt",
        }


def test_images_csv_without_a_file_column_is_an_error(folder: Path) -> None:
    (folder / "images.csv").write_text("id,landmark_id\na,1\n", encoding="utf-8")
    with user_error(r"images\.csv: .*file"), opened("folder", folder) as source:
        fetch(source)


def test_a_folder_without_classes_is_an_error(tmp_path: Path) -> None:
    drawing().save(tmp_path / "loose.jpg")
    with user_error(r"data\.root: .* neither an images\.csv nor a directory per class"), opened("folder", tmp_path):
        pass


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("Training", "val"), ("test", "val_2"), ("train",)])
def test_an_exported_split_is_reported(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, split in enumerate(names):
        (tmp_path / split / "tower").mkdir(parents=True)
        drawing(number).save(tmp_path / split / "tower/1.jpg")
    message = rf"folders {', '.join(sorted(names))} of an exported split.* set data\.root to {tmp_path}/[Tt]"
    with user_error(message), opened("folder", tmp_path):
        pass


def test_classes_may_have_the_names_of_splits(folder: Path) -> None:
    for name in ("train/1.jpg", "test/1.jpg", "val/old/1.jpg"):
        (folder / name).parent.mkdir(parents=True)
        drawing().save(folder / name)
    with opened("folder", folder) as source:
        assert set(source.index()["landmark_id"]) == {"arch", "tower", "train", "test", "val"}


def test_the_summaries_account_for_every_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["data"] |= {"source": "folder", "root": str(folder)}
    values["filter"] |= {"skip_top": 0, "top_k": 2, "min_images": 3}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for n in range(3):
        drawing(n).save(folder / f"tower/t{n}.gif")
        drawing(n).save(folder / f"arch/a{n}.jfif", "JPEG")
        (folder / f"arch/.a{n}.jpg").touch()
    (folder / "arch/broken.jpg").write_bytes(b"x")
    (folder / "gate").mkdir()
    drawing(9).save(folder / "gate/1.ppm")
    (folder / "tower/up").symlink_to("..")
    skipped = "3 hidden, 1 not in a class folder, 1 repeated, 1 unsupported .txt"
    assert (
        download.main()
        == f"11 pictures of 2 classes, 0 failed, 6 skipped ({skipped}), from an index of 12 in 3 classes"
    )
    assert filter_stage.main() == (
        "kept 10 pictures of 2 classes, dropped 7 (1 broken, 3 hidden, 1 not in a class folder, 1 repeated, "
        "1 unsupported .txt), left out 1 of 1 other classes"
    )
    assert sum(len(names) for _, _, names in os.walk(folder)) + 1 == 10 + 7 + 1, "and the link"


# --- Google Landmarks v2; test_download.py has the rest -----------------------------------------------------------


@pytest.mark.slow
@shared("gldv2-mirror")
def test_real_pictures_are_the_same_from_tars_and_from_class_directories(tmp_path: Path) -> None:
    with opened("gldv2", MIRROR, tmp_path / "scratch") as source:
        index = source.index()
        assert len(index) == 3882
        from_tars = {picture.id: picture for picture in fetch(source)}
    assert len(from_tars) == 2392
    assert len({picture.landmark_id for picture in from_tars.values()}) == 27

    landmark = dict(zip(index["id"], index["landmark_id"], strict=True))
    for tar in sorted((MIRROR / "train").glob("*.tar")):
        with tarfile.open(tar) as archive:
            for entry in filter(tarfile.TarInfo.isfile, archive):
                name = PurePosixPath(entry.name)
                path = tmp_path / "folder" / landmark[name.stem] / name.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(entry).read())
    with opened("folder", tmp_path / "folder") as source:
        from_folder = {PurePosixPath(picture.id).stem: picture for picture in fetch(source)}
    assert from_folder.keys() == from_tars.keys()
    for name, picture in from_folder.items():
        assert picture[1:] == from_tars[name][1:]
