"""Sources: `open_source`, indexes, folders and Google Landmarks v2 in a directory."""

import os
import shutil
import sys
import tarfile
import time
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath

from landmarks import artifacts, images, params, stage
from landmarks.images import Picture, Unfit
from landmarks.serving import recognizer
from landmarks.sources import Source, open_source, remote, restrict
from landmarks.sources.index import BLOCK, read_index
from landmarks.sources.sample import Sample
from stages import download
from stages import filter as filter_stage
from stages import split as split_stage

import pandas as pd
import pytest
import yaml
from conftest import ROOT, SHARED, default_values, drawing, jpeg, shared, user_error, write_tar

MIRROR = SHARED / "gldv2-mirror"
SCRATCH = Path(".scratch")
DOWNLOAD = params.load(ROOT / "params.yaml").download


def opened(name: str, root: Path | str | None, scratch: Path = SCRATCH) -> AbstractContextManager[Source]:
    data = params.Data(source=name, root=None if root is None else str(root), only=None, version=None)
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


def test_other_columns_of_an_index_may_have_line_breaks(tmp_path: Path) -> None:
    """Also in a file that is read in several blocks."""
    lines = [f'{number},7,"first line\n\nsecond, {number}"' for number in range(700_000)]
    (tmp_path / "a.csv").write_text("\n".join(["id,landmark_id,note", *lines]), encoding="utf-8")
    assert (tmp_path / "a.csv").stat().st_size > 1.5 * BLOCK
    rows = read_index(tmp_path / "a.csv", ["id", "landmark_id"])
    assert len(rows) == len(lines) and set(rows["landmark_id"]) == {"7"}


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
        ('id,landmark_id\na,"tow\rer"\n', "a control character, such as a line break, in landmark_id"),
        ("id,landmark_id\na,tow\x1b[2Jer\n", "a control character, such as a line break, in landmark_id"),
        ("id,landmark_id\na,tow\x9ber\n", "a control character, such as a line break, in landmark_id"),
    ],
    ids=[
        "missing",
        "empty",
        "header",
        "no column",
        "repeated",
        "no id",
        "no class",
        "short row",
        "line break",
        "escape",
        "C1",
    ],
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
        r"tower/a\x0ab.jpg": "control character in the name",
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


@pytest.mark.parametrize("file", ["../root.txt", "tower/../../b.jpg", "/etc/hostname"])
def test_a_listed_file_outside_of_the_folder_is_an_error(folder: Path, file: str) -> None:
    (folder / "images.csv").write_text(f"id,landmark_id,file\na,1,{file}\n", encoding="utf-8")
    with user_error(rf"images\.csv: file {file} is not below .*; move it there"), opened("folder", folder):
        pass


def test_images_csv_without_a_file_column_is_an_error(folder: Path) -> None:
    (folder / "images.csv").write_text("id,landmark_id\na,1\n", encoding="utf-8")
    with user_error(r"images\.csv: .*file"), opened("folder", folder) as source:
        fetch(source)


def test_a_folder_without_classes_is_an_error(tmp_path: Path) -> None:
    drawing().save(tmp_path / "loose.jpg")
    with user_error(r"data\.root: .* neither an images\.csv nor a directory per class"), opened("folder", tmp_path):
        pass


def test_a_name_in_two_encodings_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, "train/Caf\u00e9/a.png", "test/Cafe\u0301/b.png", "test/Cafe/c.png")
    with user_error("class Caf\u00e9 is there in two encodings of its letters"), opened("folder", tmp_path):
        pass


def save(root: Path, *names: str) -> None:
    """Saves a different picture under each name."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        drawing(number).save(root / name)


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("Training", "dev", "Testing"), ("train2017", "val_2")])
def test_folders_of_a_split_are_given_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    save(tmp_path, *(f"{name}/{landmark}/1.jpg" for name in names for landmark in ("arch", "tower")), "test/loose.jpg")
    (tmp_path / names[0] / "arch/notes.txt").touch()
    with opened("folder", tmp_path) as source:
        index = source.index()
        expected = {"train": "train", "dev": "val", "val": "val", "valid": "val", "test": "test"}
        for row in index.itertuples():
            folder, landmark, _ = row.id.split("/")
            plain = folder.lower().rstrip("_0127").removesuffix("ing")
            assert (row.landmark_id, row.split) == (landmark, expected[plain])
        assert len(index) == 2 * len(names) and len(fetch(source)) == len(index)
        skipped = source.skipped().set_index("id")
        assert skipped["reason"].to_dict() == {
            f"{names[0]}/arch/notes.txt": "unsupported .txt",
            "test/loose.jpg": "not in a class folder",
        }
        assert skipped["landmark_id"].tolist() in (["arch", ""], ["", "arch"])


def test_folders_of_a_split_beside_others_are_an_error(folder: Path) -> None:
    save(folder, "train/arch/1.jpg", "test/arch/1.jpg")
    with (
        user_error(r"data\.root: .* has folders of a split, test, train, and others, such as arch; move one"),
        opened("folder", folder),
    ):
        pass


def test_the_split_column_of_images_csv(folder: Path) -> None:
    rows = ["id,landmark_id,file,split", "b,7,loose.jpg,VALIDATION", "a,7,tower/2.jpg,train"]
    (folder / "images.csv").write_text("\n".join(rows), encoding="utf-8")
    with opened("folder", folder) as source:
        assert source.index()[["id", "split"]].to_dict("list") == {"id": ["a", "b"], "split": ["train", "val"]}
    (folder / "images.csv").write_text("\n".join([*rows, "c,7,tower/1.JPEG,"]), encoding="utf-8")
    with user_error(r"images\.csv: split '' is none of train, val, test; correct it"), opened("folder", folder):
        pass


def test_cvat_export(tmp_path: Path) -> None:
    """The ImageNet format: class folders, one for pictures without a label, and lists of classes and pictures."""
    save(tmp_path, *(f"{name}/{name}_{n}.jpg" for name in ("arch", "tower") for n in range(2)), "no_label/1.jpg")
    (tmp_path / "synsets.txt").write_text("arch\ntower\n", encoding="utf-8")
    (tmp_path / "train.txt").write_text("arch/0.jpg 0\ntower/0.jpg 1\n", encoding="utf-8")
    with opened("folder", tmp_path) as source:
        assert source.index()["landmark_id"].tolist() == ["arch", "arch", "tower", "tower"]
        assert list(source.index().columns) == ["id", "landmark_id", "file"]
        skipped = source.skipped().set_index("id")["reason"].to_dict()
    texts = dict.fromkeys(["synsets.txt", "train.txt"], "unsupported .txt")
    assert skipped == {"no_label/1.jpg": "not in a class folder", **texts}


def run_stages(here: Path, root: Path, **changes: dict) -> list[str]:
    """The summaries of download, filter and split for a folder of pictures, in the current directory `here`."""
    values = default_values()
    values["filter"] |= {"skip_top": 0, "top_k": "all", "min_images": 4}
    for block, keys in ({"data": {"source": "folder", "root": str(root)}} | changes).items():
        values[block] |= keys
    (here / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return [download.main(), filter_stage.main(), split_stage.main()]


def test_a_roboflow_export_keeps_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gate` has no test pictures, `lone` too few of all, and a test picture of `arch` is a copy."""
    numbers = {"train": range(6), "valid": range(6, 8), "test": range(8, 10)}
    names = [
        f"{split}/{landmark}/IMG_{n}_jpg.rf.{n:032x}.jpg"
        for landmark in ("arch", "gate", "tower")
        for split, them in numbers.items()
        for n in them
    ]
    save(tmp_path / "export", *(name for name in names if "test/gate" not in name), "train/lone/1_jpg.rf.0.jpg")
    shutil.copy(tmp_path / "export" / names[0], tmp_path / "export/test/arch/copy_jpg.rf.0.jpg")
    for name in ("README.dataset.txt", "README.roboflow.txt"):
        (tmp_path / "export" / name).touch()
    monkeypatch.chdir(tmp_path)
    downloaded, filtered, text = run_stages(tmp_path, tmp_path / "export")
    assert downloaded.startswith(
        "29 pictures of 3 classes, 0 failed, 2 skipped (2 unsupported .txt), from an index of 30"
    )
    assert filtered.endswith(", other classes left out: 1 (pictures: 1); 1 class with fewer than 4 pictures: lone (1)")
    assert text == (
        "17 train, 6 val, 6 test, as given (1 test drawn from train); "
        "2 near-duplicates are in different splits, set split.given: redraw to keep them together"
    )
    table = pd.read_parquet(artifacts.SPLIT)
    given = table["id"].str.partition("/")[0].replace("valid", "val")
    moved = table[table["split"] != given]
    assert moved["landmark_id"].tolist() == ["gate"] and moved["split"].tolist() == ["test"]
    assert run_stages(tmp_path, tmp_path / "export", split={"given": "redraw"})[2].endswith(
        "; 1 near-duplicates kept together"
    )
    assert list(pd.read_parquet(artifacts.SPLIT).columns) == list(table.columns)


def test_a_class_that_its_unusable_pictures_make_too_small_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "root", *(f"{name}/{n}.jpg" for name in ("arch", "gate", "tower") for n in range(15)))
    for n in range(12):
        (tmp_path / f"root/gate/{n}.jpg").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    downloaded, filtered, text = run_stages(tmp_path, tmp_path / "root")
    assert downloaded.startswith("45 pictures of 3 classes")
    assert filtered == (
        "kept 30 pictures of 2 classes, dropped 15 (12 broken, 3 class too small), "
        "other classes left out: 0 (pictures: 0); 1 class with fewer than 4 pictures: gate (3)"
    )
    assert text.startswith("22 train, 4 val, 4 test; ")
    assert artifacts.read_classes()["landmark_id"].tolist() == ["arch", "tower"]
    assert len(list(images.read_columns(artifacts.FILTERED, "id"))) == 30
    with user_error(r"filter\.min_images: 0 classes .* at least 16 pictures"):
        run_stages(tmp_path, tmp_path / "root", filter={"min_images": 16})
    with user_error(r"filter\.min_images: class gate has 3 pictures, .* \(pictures dropped: 12 broken\)"):
        run_stages(tmp_path, tmp_path / "root", filter={"top_k": 3})
    for n in range(15):
        (tmp_path / f"root/arch/{n}.jpg").write_bytes(b"x")
    with user_error(r"filter\.min_images: 1 classes .* \(pictures dropped: 27 broken\)"):
        run_stages(tmp_path, tmp_path / "root")


def test_a_folder_above_the_classes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, *(f"root/pictures/{name}/{n}.jpg" for name in ("arch", "tower") for n in range(9)))
    monkeypatch.chdir(tmp_path)
    with user_error(r"data\.root: all pictures are of one class, pictures; name the folder that has the class folders"):
        run_stages(tmp_path, tmp_path / "root")


def test_a_locale_that_changes_names_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    with user_error(r"LC_ALL: .*; export LC_ALL=C\.UTF-8"), opened("folder", tmp_path):
        pass


def test_a_path_with_two_colons(tmp_path: Path) -> None:
    """To fsspec, they separate file systems."""
    (tmp_path / "a::b").mkdir()
    write_tar(tmp_path / "a::b", "images_000", [("a" * 16, jpeg(drawing()))])
    (tmp_path / "a::b/metadata").mkdir()
    (tmp_path / "a::b/metadata/train.csv").write_text(f"id,url,landmark_id\n{'a' * 16},,1\n", encoding="utf-8")
    with opened("gldv2", tmp_path / "a::b", tmp_path / "scratch") as source:
        assert [picture.id for picture in fetch(source)] == ["a" * 16]


def test_reading_a_file_survives_a_pause(tmp_path: Path) -> None:
    """A process may be suspended, and a disk may stall; a server that is as slow is a timeout."""
    (tmp_path / "file").write_bytes(b"text")
    root = remote.Root(str(tmp_path), DOWNLOAD.model_copy(update={"timeout": 0.01}), seed=0)
    file = remote.Stream(root, "file")
    time.sleep(0.05)
    assert file.read(4) == b"text"


# --- data.only -----------------------------------------------------------------------------------------------------

INDEX = pd.DataFrame({"id": ["a", "b c", "d", "e"], "landmark_id": ["1", "1", "2", "2"]})


@pytest.mark.parametrize(
    ("text", "ids", "absent"),
    [
        ("e\r\na\r\n\r\ne\r\n", ["a", "e"], 0),
        ("\ufeffb c\nz\nd", ["b c", "d"], 1),
        ("landmark_id,images\n2,e d\n1,a\n9,x y z\n", ["a", "d", "e"], 3),
        ("\ufefflandmark_id,images\r\n1,a\r\n", ["a"], 0),
    ],
    ids=["lines", "bom", "train_clean.csv", "windows"],
)
def test_only_the_ids_of_a_list_are_used(tmp_path: Path, text: str, ids: list[str], absent: int) -> None:
    (tmp_path / "list").write_bytes(text.encode())
    rows, missing = restrict(INDEX, str(tmp_path / "list"))
    assert rows["id"].tolist() == ids and rows["landmark_id"].tolist() == [*INDEX.set_index("id")["landmark_id"][ids]]
    assert missing == absent and rows.index.tolist() == list(range(len(ids)))
    assert restrict(INDEX, None)[0] is INDEX


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or directory; it needs an id per line"),
        (b"\xff\xfe", "can't decode"),
        (b"landmark_id,images\n1,a,b\n", "expected 2 columns"),
        (b"x\ny\n", "no id in .* .2. is in the data, whose first id is a"),
        (b"", "no id in .* .0."),
    ],
    ids=["missing", "binary", "columns", "others", "empty"],
)
def test_a_wrong_list_of_ids_is_an_error(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    with user_error(rf"^data\.only: .*{message}"):
        restrict(INDEX, str(tmp_path / "list"))


def test_the_stage_uses_the_list_and_counts_absent_ids(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder, *(f"{name}/n{n}.jpg" for name in ("arch", "tower") for n in range(8)))
    ids = [f"{name}/n{n}.jpg" for name in ("arch", "tower") for n in range(8)]
    (tmp_path / "list").write_text("\n".join([*ids, "tower/gone.jpg"]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    data = {"source": "folder", "root": str(folder), "only": "list"}
    assert run_stages(tmp_path, folder, data=data)[0].endswith(
        ", from an index of 16 in 2 classes; ids of data.only that are not in it: 1"
    )
    assert pd.read_parquet(artifacts.DOWNLOADED / "index.parquet")["id"].tolist() == ids


def test_classes_may_have_the_names_of_splits(folder: Path) -> None:
    for name in ("train/1.jpg", "test/1.jpg", "val/old/1.jpg"):
        (folder / name).parent.mkdir(parents=True)
        drawing().save(folder / name)
    with opened("folder", folder) as source:
        assert set(source.index()["landmark_id"]) == {"arch", "tower", "train", "test", "val"}


def test_the_summaries_account_for_every_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = default_values()
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
        "1 unsupported .txt), other classes left out: 1 (pictures: 1)"
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
