"""Which files below a folder are pictures: each once, without hidden entries, with any ending that can be decoded."""

import os
from collections import Counter
from pathlib import Path

from landmarks import images
from landmarks.scan import printable, scan

import pytest
from conftest import drawing
from PIL import Image


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name, encoding="utf-8")


def test_each_real_file_counts_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(tmp_path, "outside/1.jpg", "outside/deep/2.jpg", "root/tower/a.jpg", "root/tower/b.jpg", "root/.store/c.jpg")
    (root / "tower/self").symlink_to(".")
    (root / "tower/up").symlink_to("..")
    (root / "arch").symlink_to(tmp_path / "outside")
    (root / "gate").symlink_to(tmp_path / "outside")
    (root / "arch/back").symlink_to(root)
    (root / "a.jpg").symlink_to("tower/a.jpg")
    os.link(root / "tower/b.jpg", root / "tower/z.jpg")
    (root / "tower/broken.jpg").symlink_to("nothing.jpg")
    (root / "tower/circle.jpg").symlink_to("circle.jpg")
    (root / "tower/stored.jpg").symlink_to("../.store/c.jpg")
    found = scan(root)
    assert found.pictures == ["arch/1.jpg", "arch/deep/2.jpg", "tower/a.jpg", "tower/b.jpg", "tower/stored.jpg"]
    assert found.skipped == {
        ".store/c.jpg": "hidden",
        "a.jpg": "repeated",
        "arch/back": "repeated",
        "gate": "repeated",
        "tower/self": "repeated",
        "tower/up": "repeated",
        "tower/z.jpg": "repeated",
    }
    assert found.unreadable == {
        "tower/broken.jpg": "no such file or directory",
        "tower/circle.jpg": "too many levels of symbolic links",
    }


def test_hidden_and_system_entries_are_skipped_and_counted(tmp_path: Path) -> None:
    hidden = [
        *(".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/tower/._a.jpg", "tower/._a.jpg", "tower/.hidden/b.jpg"),
        *("tower/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "tower/Thumbs.db", "tower/DESKTOP.INI", "tower/.DS_Store"),
        *("$RECYCLE.BIN/c.jpg", "System Volume Information/d.jpg", "lost+found/e.jpg", "#recycle/f.jpg", "Icon\r"),
    ]
    touch(tmp_path, "tower/a.jpg", *hidden)
    (tmp_path / ".link").symlink_to("tower")
    assert scan(tmp_path) == (["tower/a.jpg"], dict.fromkeys(sorted([*hidden, ".link"]), "hidden"), {})


@pytest.mark.parametrize("name", ["A.JPG", "a.jpe", "a.JFIF", "a.gif", "a.avif", "a.webp", "a.bmp", "a.tif", "a.HEIC"])
def test_what_is_listed_can_be_decoded(tmp_path: Path, name: str) -> None:
    drawing().save(tmp_path / name)
    assert scan(tmp_path).pictures == [name]
    assert images.decode((tmp_path / name).read_bytes()).size == (96, 80)


def test_a_name_is_one_line_of_any_table() -> None:
    assert printable("Icon\r/\x1b[1m\udcff\u6771") == r"Icon\x0d/\x1b[1m\xff" "\u6771"


def test_every_ending_belongs_to_a_format_that_is_decoded() -> None:
    assert {".ppm", ".pgm", ".heif", ".hif", ".mpo", ".apng", ".jpeg", ".tiff"} < images.ENDINGS
    assert {Image.registered_extensions()[ending] for ending in images.ENDINGS} == {*images.FORMATS, "MPO"}


def test_other_files_are_named_by_their_ending(tmp_path: Path) -> None:
    touch(tmp_path, "a.CR2", "b.cr2", "c.svg", "d.psd", "e", "f.2019", "g.with blank", "h.jpg.part")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = scan(tmp_path)
    assert found.pictures == []
    assert Counter(found.skipped.values()) == {
        "unsupported .cr2": 2,
        "unsupported .svg": 1,
        "unsupported .psd": 1,
        "unsupported .part": 1,
        "unknown ending": 3,
        "not a file": 1,
    }


def test_a_heic_photo_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right
    drawing(width=160, height=80).save(tmp_path / "a.heic", exif=exif.tobytes(), quality=95)
    upright = images.decode((tmp_path / "a.heic").read_bytes())
    assert upright.size == (80, 160)
    expected = drawing(width=160, height=80).transpose(Image.Transpose.ROTATE_270).getpixel((40, 20))
    assert max(abs(a - b) for a, b in zip(upright.getpixel((40, 20)), expected, strict=True)) < 12
