"""Where pictures come from: a folder, Google Landmarks v2, and what is wrong with them."""

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from landmarks.images import Picture
from landmarks.sources import Source, open_source, read_index
from landmarks.sources.sample import Sample

import pandas as pd
import pytest
from conftest import SHARED, drawing, jpeg, shared, user_error

MIRROR = SHARED / "gldv2-mirror"


def fetch(source: Source, wanted: pd.DataFrame | None = None) -> list[Picture]:
    """All wanted pictures of all parts, in id order."""
    parts = source.parts(source.index() if wanted is None else wanted)
    return sorted(picture for part, rows in parts.items() for picture in source.fetch(part, rows))


# --- open_source and read_index ----------------------------------------------------------------------------------


def test_the_sample_needs_no_root() -> None:
    assert open_source("sample", None, 3) == Sample(3)


@pytest.mark.parametrize("name", ["folder", "gldv2"])
def test_root_must_be_a_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with user_error(rf"data\.root: missing; data\.source {name}"):
        open_source(name, None, 0)
    for wrong in ("nothing", "file"):
        with user_error(rf"data\.root: {tmp_path / wrong} is no directory"):
            open_source(name, str(tmp_path / wrong), 0)


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
        ("id,landmark_id\na,1\nb,2\na,3\n", "id a is there more than once"),
        ("id,landmark_id\na,1\n,2\n", "a row without id"),
        ("id,landmark_id\na,\n", "a row without landmark_id"),
        ("id,landmark_id\na,1\nb\n", "[Cc]olumn"),
    ],
    ids=["missing", "empty", "header", "no column", "repeated", "no id", "no class", "short row"],
)
def test_a_wrong_index(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "index.csv"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with user_error(rf"index\.csv: .*{message}"):
        read_index(path, ["id", "landmark_id"])


# --- folder --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, one of them with pictures in directories of its own, and files that are no pictures."""
    for n, name in enumerate(["tower/2.jpg", "tower/1.JPEG", "arch/old/a.png", "arch/old/er/b.jpg"]):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing(n).save(path)
    (tmp_path / "pictures/tower/notes.txt").write_text("no picture", encoding="utf-8")
    drawing().save(tmp_path / "pictures/loose.jpg")
    return tmp_path / "pictures"


def test_a_directory_is_a_class(folder: Path) -> None:
    source = open_source("folder", str(folder), 0)
    index = source.index()
    assert index["id"].tolist() == ["arch/old/a.png", "arch/old/er/b.jpg", "tower/1.JPEG", "tower/2.jpg"]
    assert index["landmark_id"].tolist() == ["arch", "arch", "tower", "tower"]
    assert fetch(source) == [
        Picture(row.id, row.landmark_id, (folder / row.id).read_bytes()) for row in index.itertuples()
    ]


def test_only_what_is_wanted_is_fetched(folder: Path) -> None:
    source = open_source("folder", str(folder), 0)
    wanted = source.index().iloc[[1, 3]]
    assert [picture.id for picture in fetch(source, wanted)] == wanted["id"].tolist()


def test_images_csv_wins_over_directories(folder: Path) -> None:
    (folder / "images.csv").write_text("landmark_id,id,file\n07,z,tower/1.JPEG\n07,b,loose.jpg\n", encoding="utf-8")
    source = open_source("folder", str(folder), 0)
    assert source.index().to_dict("list") == {"id": ["b", "z"], "landmark_id": ["07", "07"]}
    assert [p.picture for p in fetch(source)] == [(folder / f).read_bytes() for f in ("loose.jpg", "tower/1.JPEG")]


def test_a_listed_file_that_is_not_there(folder: Path) -> None:
    (folder / "images.csv").write_text("id,landmark_id,file\na,1,tower/9.jpg\n", encoding="utf-8")
    with user_error(r"tower/9\.jpg: no such file"):
        fetch(open_source("folder", str(folder), 0))


def test_images_csv_without_files(folder: Path) -> None:
    (folder / "images.csv").write_text("id,landmark_id\na,1\n", encoding="utf-8")
    with user_error(r"images\.csv: .*file"):
        open_source("folder", str(folder), 0)


def test_a_folder_without_classes(tmp_path: Path) -> None:
    drawing().save(tmp_path / "loose.jpg")
    with user_error(r"data\.root: .* neither an images\.csv nor a directory per class"):
        open_source("folder", str(tmp_path), 0)


# --- Google Landmarks v2 -------------------------------------------------------------------------------------------

NAMES = [f"{digit}f{digit}0{digit * 12}" for digit in "0123"]


def member(name: str) -> str:
    return f"{name[0]}/{name[1]}/{name[2]}/{name}.jpg"


def sum_up(root: Path, tar: str) -> None:
    """Writes the MD5 file of a tar."""
    digest = hashlib.md5((root / "train" / f"{tar}.tar").read_bytes()).hexdigest()
    (root / "md5sum/train" / f"md5.{tar}.txt").write_text(f"{digest}  {tar}.tar\n", encoding="ascii")


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """Two tars of two pictures each in the official layout; the index lists one more. The first tar
    also has a directory and a link that are named like pictures of the second.
    """
    root, files = tmp_path / "gldv2", tmp_path / "files"
    for directory in (root / "metadata", root / "train", root / "md5sum/train"):
        directory.mkdir(parents=True)
    for n, name in enumerate(NAMES):
        path = files / member(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(drawing(n)))
    rows = [f"{name},http://example.invalid/{name}.jpg,{n // 2 + 5}" for n, name in enumerate([*NAMES, "ffff"])]
    (root / "metadata/train.csv").write_text("\n".join(["id,url,landmark_id", *rows, ""]), encoding="utf-8")
    for tar, names in {"images_000": NAMES[:2], "images_001": NAMES[2:]}.items():
        with tarfile.open(root / "train" / f"{tar}.tar", "w") as archive:
            if tar == "images_000":
                for name, kind in ((NAMES[2], tarfile.DIRTYPE), (NAMES[3], tarfile.SYMTYPE)):
                    odd = tarfile.TarInfo(member(name))
                    odd.type, odd.linkname = kind, "/etc/hostname"
                    archive.addfile(odd)
            for name in names:
                archive.add(files / member(name), member(name))
        sum_up(root, tar)
    return root


def test_gldv2_lists_every_row(mirror: Path) -> None:
    index = open_source("gldv2", str(mirror), 0).index()
    assert index.to_dict("list") == {"id": [*NAMES, "ffff"], "landmark_id": ["5", "5", "6", "6", "7"]}


def test_gldv2_gives_the_wanted_pictures_that_are_there(mirror: Path) -> None:
    source = open_source("gldv2", str(mirror), 0)
    assert list(source.parts(source.index())) == ["images_000", "images_001"]
    expected = [Picture(name, str(n // 2 + 5), jpeg(drawing(n))) for n, name in enumerate(NAMES)]
    assert fetch(source) == expected
    assert fetch(source, source.index().iloc[[1, 2]]) == expected[1:3]


def damage(change: Callable[[Path], object], tar: str = "train/images_001.tar") -> Callable[[Path], None]:
    return lambda root: change(root / tar)


def cut(path: Path, sum_again: bool) -> None:
    """Cuts a tar in the middle of a picture."""
    path.write_bytes(path.read_bytes()[:2000])
    if sum_again:
        sum_up(path.parents[1], path.stem)


MD5_FILE = "md5sum/train/md5.images_001.txt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage(lambda path: path.write_bytes(path.read_bytes() + b"x")), r"images_001\.tar: MD5 is [0-9a-f]{32}, not"),
        (damage(lambda path: path.write_text("0" * 32 + "  images_001.tar\n"), MD5_FILE), r"MD5 is .*, not 0{32}"),
        (damage(lambda path: path.write_text(""), MD5_FILE), r"md5\.images_001\.txt: not an MD5 file"),
        (damage(lambda path: path.write_bytes(b"\xff\xfe"), MD5_FILE), r"md5\.images_001\.txt: not an MD5 file"),
        (damage(Path.unlink, MD5_FILE), r"md5\.images_001\.txt: .*no such file"),
        (damage(lambda path: cut(path, sum_again=False)), r"images_001\.tar: (truncated|MD5)"),
        (damage(lambda path: cut(path, sum_again=True)), r"images_001\.tar: truncated"),
        (damage(lambda path: path.write_bytes(b"")), r"images_001\.tar: (truncated|MD5)"),
        (damage(lambda path: path.write_bytes(b"no tar at all" * 100)), r"images_001\.tar: (truncated|MD5)"),
        (damage(Path.unlink, "metadata/train.csv"), r"metadata/train\.csv: .*no such file"),
    ],
    ids=[
        *("changed tar", "other sum", "empty sum", "binary sum", "no sum", "cut", "cut and summed", "empty tar"),
        *("no tar", "no index"),
    ],
)
def test_a_damaged_mirror(mirror: Path, change: Callable[[Path], None], message: str) -> None:
    change(mirror)
    with user_error(message):
        fetch(open_source("gldv2", str(mirror), 0))


def test_a_mirror_without_tars(mirror: Path) -> None:
    for path in (mirror / "train").iterdir():
        path.unlink()
    source = open_source("gldv2", str(mirror), 0)
    with user_error("train: no tars"):
        source.parts(source.index())


@shared("gldv2-mirror")
def test_real_pictures_are_the_same_from_tars_and_from_class_directories(tmp_path: Path) -> None:
    tars = open_source("gldv2", str(MIRROR), 0)
    index = tars.index()
    assert len(index) == 3882
    from_tars = {picture.id: picture for picture in fetch(tars)}
    assert len(from_tars) == 2392
    assert len({picture.landmark_id for picture in from_tars.values()}) == 27

    landmark = dict(zip(index["id"], index["landmark_id"], strict=True))
    for tar in sorted((MIRROR / "train").glob("*.tar")):
        with tarfile.open(tar) as archive:
            for entry in filter(tarfile.TarInfo.isfile, archive):
                name = PurePosixPath(entry.name)
                path = tmp_path / landmark[name.stem] / name.name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(archive.extractfile(entry).read())
    from_folder = {
        PurePosixPath(picture.id).stem: picture for picture in fetch(open_source("folder", str(tmp_path), 0))
    }
    assert from_folder.keys() == from_tars.keys()
    for name, picture in from_folder.items():
        assert picture[1:] == from_tars[name][1:]
