"""The download stage against a real web server on the loopback address that misbehaves in every known way."""

import gzip
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from landmarks import images, params
from landmarks.determinism import stream
from landmarks.sources import gldv1, retry
from landmarks.sources.store import Store
from landmarks.stage import UserError
from stages import download
from stages import filter as filter_stage

import aiohttp
import loopback
import numpy as np
import pandas as pd
import pytest
import requests
import yaml
from conftest import ROOT, SHARED, default_values, drawing, jpeg, shared, sum_up, user_error, write_tar
from loopback import Fault, Server
from PIL import Image

pytestmark = pytest.mark.slow

# Landmark 10 has 9 pictures, 11 has 8, ... 15 has 4; the filter keeps 11, 12 and 13: 21 pictures.
ROWS = [
    (hashlib.sha256(f"{landmark}/{number}".encode()).hexdigest()[:16], str(landmark))
    for landmark in range(10, 16)
    for number in range(19 - landmark)
]
PICTURES = {name: jpeg(drawing(seed)) for seed, (name, _) in enumerate(ROWS)}
KEPT = sorted(name for name, landmark in ROWS if landmark in ("11", "12", "13"))
TARS = [f"images_{number:03d}" for number in range(3)]
TAR, SUM = "train/images_001.tar", "md5sum/train/md5.images_001.txt"


class Workplace:
    """A directory to run the download stage in, with the repository's params.yaml except for a few values."""

    def __init__(self, root: Path, source: str) -> None:
        root.mkdir(exist_ok=True)
        self.root, self.params = root, default_values()
        self.params["filter"] |= {"skip_top": 1, "top_k": 3, "min_images": 3}
        self.params["download"] |= {"timeout": 30}
        self.set("data", source=source)

    def set(self, block: str, **values: object) -> None:
        self.params[block] |= values
        (self.root / "params.yaml").write_text(yaml.safe_dump(self.params, sort_keys=False), encoding="utf-8")

    def run(self) -> str:
        """Runs the stage here; returns its summary line."""
        before = Path.cwd()
        os.chdir(self.root)
        try:
            return download.main()
        finally:
            os.chdir(before)

    def raw(self) -> dict[str, str]:
        """The hash of every file in data/downloaded."""
        return {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted((self.root / "data/downloaded").glob("*"))
        }

    def pictures(self) -> dict[str, images.Picture]:
        return {
            picture.id: picture
            for group in images.row_groups(self.root / "data/downloaded")
            for picture in group.read()
        }

    def failures(self) -> dict[str, str]:
        table = pd.read_csv(self.root / "data/downloaded/failures.csv", dtype=str, keep_default_na=False)
        assert table["id"].is_monotonic_increasing and list(table) == ["id", "landmark_id", "reason"]
        return dict(zip(table["id"], table["reason"], strict=True))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the waits between attempts."""
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.02)


def write_mirror(root: Path) -> Path:
    """Google Landmarks v2 with all `PICTURES` in three tars."""
    for start, tar in enumerate(TARS):
        write_tar(root, tar, list(PICTURES.items())[start :: len(TARS)])
    (root / "metadata").mkdir()
    lines = [f"{name},http://example.invalid/{name}.jpg,{landmark}" for name, landmark in ROWS]
    (root / "metadata/train.csv").write_text("\n".join(["id,url,landmark_id", *lines, ""]), encoding="utf-8")
    return root


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return write_mirror(tmp_path / "mirror")


@pytest.fixture
def server(mirror: Path) -> Iterator[Server]:
    with loopback.serve(mirror) as server:
        yield server


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """data/downloaded when nothing goes wrong: read from the directory."""
    workplace = Workplace(tmp_path_factory.mktemp("expected"), "gldv2")
    workplace.set("data", root=str(write_mirror(workplace.root / "mirror")))
    assert workplace.run() == "21 pictures of 3 classes, 0 failed, from an index of 39 in 6 classes"
    return workplace.raw()


@pytest.fixture
def v2(tmp_path: Path, server: Server) -> Workplace:
    workplace = Workplace(tmp_path / "v2", "gldv2")
    workplace.set("data", root=server.url)
    return workplace


# --- Google Landmarks v2 -------------------------------------------------------------------------------------------


def test_only_the_kept_classes_are_stored(v2: Workplace, server: Server) -> None:
    assert v2.run() == "21 pictures of 3 classes, 0 failed, from an index of 39 in 6 classes"
    assert {name: picture.picture for name, picture in v2.pictures().items()} == {key: PICTURES[key] for key in KEPT}
    assert len(pd.read_parquet(v2.root / "data/downloaded/index.parquet")) == len(ROWS)
    assert v2.failures() == {}
    assert all("landmark" in agent for agent in server.agents)


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_writes_the_same_bytes(v2: Workplace, expected: dict[str, str], workers: int) -> None:
    v2.set("download", workers=workers)
    v2.run()
    assert v2.raw() == expected


def test_several_tars_are_read_at_a_time(v2: Workplace, server: Server) -> None:
    v2.set("download", workers=2)
    together = []

    def look_around(*_: object) -> bool:
        deadline = time.monotonic() + 20
        while max(together, default=0) < 2 and len(server.open) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        together.append(len(server.open))
        return True

    server.faults |= {f"train/{tar}.tar": look_around for tar in TARS}
    v2.run()
    assert max(together) == 2


@pytest.mark.parametrize(
    "fault",
    [loopback.status(500, 2), loopback.status(429, 1, Retry_After="0"), loopback.breaks_off(2)],
    ids=["500", "429", "breaks off"],
)
@pytest.mark.parametrize("path", [TAR, SUM, "metadata/train.csv"])
def test_transient_errors_are_retried(
    v2: Workplace, server: Server, expected: dict[str, str], path: str, fault: Fault
) -> None:
    server.faults[path] = fault
    v2.run()
    assert v2.raw() == expected
    assert server.requests[path] > 1


def test_retry_after_is_honoured(v2: Workplace, server: Server) -> None:
    server.faults[TAR] = loopback.status(429, 1, Retry_After="1")
    v2.run()
    first, second = server.times[TAR]
    assert second - first >= 1


@pytest.mark.parametrize(
    ("path", "fault", "message"),
    [
        (TAR, loopback.status(500), r"train/images_001\.tar: HTTP 500 after 3 attempts; run it again"),
        (TAR, loopback.breaks_off(), r"train/images_001\.tar: broken off after 3 attempts"),
        (TAR, loopback.drips, r"train/images_001\.tar: timeout after 3 attempts"),
        (TAR, loopback.status(404), r"train/images_001\.tar: no such file, but its MD5 file exists"),
        (TAR, loopback.body(b"<html>" * 1000), r"train/images_001\.tar: truncated or damaged tar .* after 3 attempts"),
        (TAR, loopback.redirects("file:///etc/hostname"), r"train/images_001\.tar: neither http nor https; "),
        (TAR, loopback.redirects("/" + TAR), r"train/images_001\.tar: too many redirects; "),
        (TAR, loopback.status(429, Retry_After="86400"), r"train/images_001\.tar: HTTP 429; "),
        (SUM, loopback.body(b"0" * 32 + b"  images_001.tar"), r"images_001\.tar: .*MD5 is .*, not 0{32}.* after 3"),
        (SUM, loopback.status(404), r"md5\.images_001\.txt: no such file; every tar needs its MD5 file"),
        (SUM, loopback.body(b"<html>"), r"md5\.images_001\.txt: not an MD5 file"),
        ("metadata/train.csv", loopback.status(404), r"metadata/train\.csv: no such file"),
        ("metadata/train.csv", loopback.body(b"<html>\n</html>\n"), r"metadata/train\.csv: .*it needs id, landmark_id"),
        ("metadata/train.csv", loopback.breaks_off(), r"metadata/train\.csv: broken off after 3 attempts"),
    ],
    ids=[
        *("tar 500", "tar breaks off", "tar drips", "no tar", "html for tar", "redirect to file", "endless redirect"),
        *("retry after a day", "wrong sum", "no sum", "html for sum", "no index", "html for index", "index breaks off"),
    ],
)
def test_a_permanent_error_is_one_line_and_the_next_run_resumes(
    v2: Workplace, server: Server, expected: dict[str, str], path: str, fault: Fault, message: str
) -> None:
    v2.set("download", retries=2, timeout=2 if fault is loopback.drips else 30)
    server.faults[path] = fault
    with user_error(message):
        v2.run()
    assert v2.raw() == {}
    server.faults.clear()
    v2.run()
    assert v2.raw() == expected


def test_the_data_may_be_in_a_bucket(mirror: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    """With the environment variable of docs/google-landmarks.md."""
    pytest.importorskip("moto", reason="needs requirements-team.txt, see docs/team.md")
    workplace = Workplace(tmp_path / "place", "gldv2")
    with loopback.s3_server() as url:
        files = [file for file in mirror.rglob("*") if file.is_file()]
        objects = {f"mirror/{file.relative_to(mirror)}": file.read_bytes() for file in files}
        for path, data in [("", b""), *objects.items()]:  # first the bucket
            public = {"x-amz-acl": "public-read"}
            assert requests.put(f"{url}/public/{path}", data=data, headers=public, timeout=60).ok
        for folder, status in (("mirror", 0), ("nothing", 1)):
            workplace.set("data", root=f"s3://public/{folder}")
            process = start_stage(workplace, FSSPEC_S3=json.dumps({"anon": True, "endpoint_url": url}))
            error = process.communicate(timeout=120)[1]
            assert process.returncode == status, error
    assert workplace.raw() == expected
    assert "s3://public/nothing/metadata/train.csv: no such file" in error.splitlines()[-1]


def test_a_server_without_tars_is_an_error(v2: Workplace, server: Server) -> None:
    shutil.rmtree(server.root / "train")
    shutil.rmtree(server.root / "md5sum")
    with user_error(r"train: no tars; data\.root must be the data set's top directory"):
        v2.run()


def test_an_unreachable_server_is_an_error(v2: Workplace) -> None:
    v2.set("data", root="http://127.0.0.1:1")
    with user_error(r"metadata/train\.csv: no connection after 4 attempts"):
        v2.run()


def test_a_denied_tar_is_not_skipped(v2: Workplace, server: Server, expected: dict[str, str]) -> None:
    server.faults |= {TAR: loopback.status(403), SUM: loopback.status(403)}
    with user_error(r"md5\.images_001\.txt: HTTP 403; correct data\.root"):
        v2.run()
    beyond = [f"images_{number:03d}" for number in range(3, 40)]
    server.faults = {f"train/{tar}.tar": loopback.status(403) for tar in beyond}
    server.faults |= {f"md5sum/train/md5.{tar}.txt": loopback.status(403) for tar in beyond}
    server.faults["metadata/train_attribution.csv"] = loopback.status(403)
    v2.run()
    assert v2.raw() == expected


def test_an_md5_file_that_trickles_is_a_timeout(v2: Workplace, server: Server) -> None:
    server.faults[SUM] = loopback.drips
    v2.set("download", retries=1, timeout=2)
    with user_error(r"md5\.images_001\.txt: timeout after 2 attempts; run it again"):
        v2.run()


def test_headers_that_trickle_are_a_timeout(v2: Workplace, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MAX_REDIRECTS", 1)
    server.faults[SUM] = loopback.drips_headers
    v2.set("download", retries=1, timeout=2)
    with user_error(r"md5\.images_001\.txt: timeout after 2 attempts; run it again"):
        v2.run()


@pytest.mark.parametrize("url", ["http://[broken", "http://127.0.0.1:99999", "http://a..b/x", "http://" + "x" * 70])
def test_a_malformed_url_is_an_error(v2: Workplace, url: str) -> None:
    v2.set("data", root=url)
    with user_error(r"/metadata/train\.csv: no valid URL; correct data\.root"):
        v2.run()


def test_a_blocked_scratch_folder_is_an_error(v2: Workplace) -> None:
    (v2.root / ".scratch").touch()
    with user_error(r"\.scratch/download/gldv2-\w+: .*; make room, or remove the folder"):
        v2.run()


def test_a_tar_without_an_md5_file_is_an_error(mirror: Path, tmp_path: Path) -> None:
    (mirror / "train/aaa.tar").symlink_to("nowhere")
    workplace = Workplace(tmp_path / "place", "gldv2")
    workplace.set("data", root=str(mirror))
    with user_error(r"md5\.aaa\.txt: no such file; every tar needs its MD5 file"):
        workplace.run()


def test_a_gap_in_the_numbers_of_tars_is_skipped(v2: Workplace, server: Server, expected: dict[str, str]) -> None:
    for path in ("train/{}.tar", "md5sum/train/md5.{}.txt"):
        (server.root / path.format("images_001")).rename(server.root / path.format("images_009"))
    sum_up(server.root, "images_009")
    v2.run()
    assert v2.raw() == expected


def odd(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(f"0/0/0/{name}.jpg")
    member.type, member.linkname = kind, "/etc/hostname"
    return member


def header(name: str, value: str) -> tarfile.TarInfo:
    """An empty file with an extended header and a long name."""
    member = tarfile.TarInfo("0/0/0/" + "z" * 190 + ".jpg")
    member.pax_headers = {name: value}
    return member


@pytest.mark.parametrize("remotely", [True, False], ids=["server", "directory"])
@pytest.mark.parametrize(
    "members",
    [
        [(f"../{KEPT[0]}.jpg", b"evil"), (f"/{KEPT[0]}/../../x.jpg", b"evil"), ("../x", b"evil")],
        [odd(KEPT[0], tarfile.SYMTYPE), odd(KEPT[1], tarfile.LNKTYPE), odd(KEPT[2], tarfile.DIRTYPE)],
        [("f" * 16, jpeg(drawing(99)))],
        [(f"0/0/0/x\n{KEPT[0]}\ny.jpg", b"evil"), ("0/0/0/\udcff\udcfe.jpg", b"evil")],
        [header("comment", "x" * 300_000), header("GNU.long", "y" * 1000)],
    ],
    ids=["outside", "links", "not in the index", "unprintable", "long headers"],
)
def test_other_members_of_a_tar_are_ignored(
    v2: Workplace, server: Server, expected: dict[str, str], members: list, remotely: bool
) -> None:
    """They precede all pictures of the first tar."""
    write_tar(server.root, TARS[0], [*members, *list(PICTURES.items())[0 :: len(TARS)]])
    v2.set("data", root=server.url if remotely else str(server.root))
    v2.run()
    assert v2.raw() == expected
    assert not list(v2.root.parent.rglob("x.jpg")) and not list(v2.root.parent.rglob("x"))


@pytest.mark.parametrize("again", [0, 2], ids=["in one tar", "in two tars"])
def test_the_first_of_equal_ids_is_stored(v2: Workplace, server: Server, expected: dict[str, str], again: int) -> None:
    own = list(PICTURES.items())
    name = next(name for name, _ in own[0 :: len(TARS)] if name in KEPT)
    write_tar(server.root, TARS[again], [*own[again :: len(TARS)], (name, jpeg(drawing(99)))])
    v2.run()
    assert v2.raw() == expected


@pytest.mark.parametrize("breaks_off", [True, False])
def test_bytes_of_a_failed_read_do_not_stay(
    v2: Workplace, server: Server, expected: dict[str, str], breaks_off: bool
) -> None:
    """The first answer has other bytes in a picture, and then breaks off or has the wrong MD5."""
    right = (server.root / TAR).read_bytes()
    picture = next(content for name, content in list(PICTURES.items())[1 :: len(TARS)] if name in KEPT)
    wrong = right.replace(picture, picture[:-20] + bytes(18) + picture[-2:])
    assert wrong != right

    def damaged(handler: loopback.Handler, number: int) -> bool:
        if number == 1:
            handler.answer(200, wrong[:-10] if breaks_off else wrong, Content_Length=str(len(right)))
            time.sleep(0.3)  # otherwise the client drops what it has not read yet
            handler.close_connection = True
        return number > 1

    server.faults[TAR] = damaged
    v2.run()
    assert v2.raw() == expected


def test_a_missing_or_too_large_picture_is_a_failure(v2: Workplace, server: Server) -> None:
    own = [item for item in list(PICTURES.items())[0 :: len(TARS)] if item[0] in KEPT]
    write_tar(server.root, TARS[0], [(own[0][0], bytes(3_000_000)), *own[2:]])
    v2.set("download", max_megabytes=2)
    assert v2.run().startswith("19 pictures of 3 classes, 2 failed (1 missing, 1 over 2 MB), ")
    assert v2.failures() == {own[0][0]: "over 2 MB", own[1][0]: "missing"}


def test_too_few_pictures_are_an_error(v2: Workplace, server: Server) -> None:
    write_tar(server.root, TARS[0], [])
    v2.set("download", min_success=0.9)
    with user_error(r"download\.min_success: only 14 of 21 pictures were fetched, less than 90% \(7 missing\)"):
        v2.run()
    v2.set("download", min_success=0.5)
    v2.set("filter", min_images=6)
    with user_error(r"filter\.min_images: class 1[123] has \d pictures"):
        v2.run()
    assert v2.raw() == {}


def test_a_finished_download_is_not_fetched_again(v2: Workplace, server: Server, expected: dict[str, str]) -> None:
    v2.run()
    requests = sum(server.requests.values())
    for top_k in (2, 3):
        v2.set("filter", top_k=top_k)
        v2.run()
    assert sum(server.requests.values()) == requests
    assert v2.raw() == expected
    v2.set("filter", top_k=4)
    v2.run()
    assert len(v2.pictures()) == 26
    assert sum(server.requests.values()) == requests + len(TARS)


def test_finished_pictures_survive_a_failed_run_for_more(
    v2: Workplace, server: Server, expected: dict[str, str]
) -> None:
    """No tar is in flight when the last one fails."""
    v2.run()
    v2.set("filter", top_k=4)
    v2.set("download", retries=0, workers=1)
    server.faults[f"train/{TARS[-1]}.tar"] = loopback.status(500)
    with user_error(r"images_002\.tar: HTTP 500"):
        v2.run()
    v2.set("filter", top_k=3)
    requests = server.requests.copy()
    v2.run()
    assert v2.raw() == expected and server.requests == requests


def test_pictures_of_a_failed_run_for_more_are_checked(v2: Workplace, server: Server) -> None:
    """The second run gets other bytes of a new picture, and then nothing more."""
    v2.run()
    more = [name for name, landmark in ROWS if landmark == "14"]
    name, content = next(item for item in list(PICTURES.items())[1 :: len(TARS)] if item[0] in more)
    right = (server.root / TAR).read_bytes()
    wrong = right.replace(content, content[:-20] + bytes(18) + content[-2:])
    assert wrong != right

    def damaged(handler: loopback.Handler, _: int) -> None:
        handler.answer(200, wrong[:-10], Content_Length=str(len(right)))
        time.sleep(0.3)  # otherwise the client drops what it has not read yet
        handler.close_connection = True

    server.faults[TAR] = damaged
    v2.set("filter", top_k=4)
    v2.set("download", retries=0)
    with user_error(r"images_001\.tar: broken off"):
        v2.run()
    server.faults.clear()
    v2.run()
    assert v2.pictures()[name].picture == content


def test_a_changed_directory_is_read_again(mirror: Path, tmp_path: Path) -> None:
    workplace = Workplace(tmp_path / "place", "gldv2")
    workplace.set("data", root=str(mirror))
    workplace.run()
    own = dict(list(PICTURES.items())[0 :: len(TARS)])
    changed = next(name for name in own if name in KEPT)
    write_tar(mirror, TARS[0], (own | {changed: jpeg(drawing(99))}).items())
    workplace.run()
    assert {name: picture.picture for name, picture in workplace.pictures().items()} == {
        key: PICTURES[key] for key in KEPT
    } | {changed: jpeg(drawing(99))}


@pytest.mark.parametrize("remotely", [True, False], ids=["server", "directory"])
def test_pictures_have_author_licence_and_title_where_known(v2: Workplace, server: Server, remotely: bool) -> None:
    lines = [f'{KEPT[0]},http://x,"Doe, Jane",CC BY 2.0,"A ""tower""\nat dusk"', f"{KEPT[1]},http://x,,,", "0,,A,B,C"]
    lines += ["too,short", f"{KEPT[3]},,J\u00fcrgen,,"]
    text = "\n".join(["id,url,author,license,title", *lines, ""])
    (server.root / "metadata/train_attribution.csv").write_text(text, encoding="latin-1")
    v2.set("data", root=server.url if remotely else str(server.root))
    v2.run()
    pictures = v2.pictures()
    assert pictures[KEPT[0]][4:] == ("Doe, Jane", "CC BY 2.0", 'A "tower"\nat dusk')
    assert pictures[KEPT[1]][4:] == ("", "", "")
    assert pictures[KEPT[2]][4:] == (None, None, None)
    assert pictures[KEPT[3]][4:] == ("J\ufffdrgen", "", "")


@pytest.mark.parametrize("remotely", [True, False], ids=["server", "directory"])
def test_landmarks_have_names_where_known(v2: Workplace, server: Server, remotely: bool) -> None:
    start = "http://commons.wikimedia.org/wiki/Category:"
    lines = [f"11,{start}Ajanta_Caves", f'12,"{start}Ch%C3%A2teau_d\'If,_Marseille"', "too,many,columns", "99,x"]
    lines.append(f"13,{start}A%1b%5B31mB%00%0aC")
    text = "\n".join(["landmark_id,category", *lines, ""])
    (server.root / "metadata/train_label_to_category.csv").write_text(text, encoding="utf-8")
    v2.set("data", root=server.url if remotely else str(server.root))
    v2.run()
    named = pd.read_csv(v2.root / "data/downloaded/names.csv", dtype=str, keep_default_na=False)
    assert named.to_dict("list") == {
        "landmark_id": ["11", "12", "13"],
        "name": ["Ajanta Caves", "Ch\u00e2teau d'If, Marseille", "A [31mB C"],
    }


def test_a_stray_quote_costs_only_some_names(v2: Workplace, server: Server) -> None:
    """It swallows the lines up to the next quote, here 2 MB of them."""
    lines = [
        f"{KEPT[0]},,A,B,C",
        f'{KEPT[1]},,"A,B,C',
        *["f" * 100] * 20_000,
        f'{KEPT[2]},,"A",B,C',
        f"{KEPT[3]},,D,E,F",
    ]
    text = "\n".join(["id,url,author,license,title", *lines, ""])
    (server.root / "metadata/train_attribution.csv").write_text(text, encoding="utf-8")
    v2.run()
    pictures = v2.pictures()
    assert (pictures[KEPT[0]].author, pictures[KEPT[2]].author, pictures[KEPT[3]].author) == ("A", None, "D")


def test_a_malformed_file_of_names_is_an_error(v2: Workplace, server: Server) -> None:
    (server.root / "metadata/train_label_to_category.csv").write_text("id,name\n", encoding="utf-8")
    with user_error(r"train_label_to_category\.csv: .* it needs landmark_id, category"):
        v2.run()


@shared("gldv2-mirror")
def test_real_photographs_over_http(tmp_path: Path) -> None:
    workplaces = []
    with loopback.serve(SHARED / "gldv2-mirror") as server:
        server.faults[TAR] = loopback.breaks_off(1)
        server.faults["train/images_004.tar"] = loopback.status(503, 1)
        for name, root in (("server", server.url), ("directory", str(server.root))):
            workplaces.append(Workplace(tmp_path / name, "gldv2"))
            workplaces[-1].set("data", root=root)
            workplaces[-1].set("filter", skip_top=0, top_k=27)
            assert workplaces[-1].run().startswith("2392 pictures of 27 classes, 0 failed, from an index of 3882 in ")
    assert workplaces[0].raw() == workplaces[1].raw()


# --- Google Landmarks v1 -------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Server]:
    """A server with all `PICTURES` and the index that lists them."""
    root = tmp_path / "site"
    root.mkdir()
    for name, picture in PICTURES.items():
        (root / f"{name}.jpg").write_bytes(picture)
    with loopback.serve(root) as server:
        write_index(server)
        yield server


def write_index(server: Server, **urls: str) -> None:
    """Lists every picture with its URL, or the one given for its id."""
    lines = [f'"{name}","{urls.get(name, f"{server.url}/{name}.jpg")}",{landmark}' for name, landmark in ROWS]
    (server.root / "train.csv").write_text("\n".join(['"id","url","landmark_id"', *lines, ""]), encoding="utf-8")


@pytest.fixture
def v1(tmp_path: Path, site: Server) -> Workplace:
    workplace = Workplace(tmp_path / "v1", "gldv1")
    workplace.set("data", root=str(site.root / "train.csv"))
    return workplace


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("remotely", [True, False], ids=["URL", "path"])
def test_pictures_come_from_their_urls(
    v1: Workplace, site: Server, expected: dict[str, str], workers: int, remotely: bool
) -> None:
    v1.set("data", root=f"{site.url}/train.csv" if remotely else str(site.root / "train.csv"))
    v1.set("download", workers=workers)
    assert v1.run() == "21 pictures of 3 classes, 0 failed, from an index of 39 in 6 classes"
    assert v1.raw() == expected
    assert site.most_open <= workers
    assert {path for path in site.requests if path.endswith(".jpg")} == {f"{name}.jpg" for name in KEPT}
    assert all("landmark" in agent for agent in site.agents)


def test_workers_limits_the_requests_at_a_time(v1: Workplace, site: Server) -> None:
    site.pause = 0.3
    v1.set("download", workers=5)
    v1.run()
    assert site.most_open == 5


BOMB = images.encode(Image.new("1", (20_000, 20_000)), "PNG")
FAULTS: dict[str, tuple[Fault, str]] = {
    "404": (loopback.status(404), "HTTP 404"),
    "410": (loopback.status(410), "HTTP 410"),
    "500": (loopback.status(500), "HTTP 500"),
    "403": (loopback.status(403), "HTTP 403"),
    "breaks off": (loopback.breaks_off(), "broken off"),
    "drips": (loopback.drips, "timeout"),
    "html": (loopback.body(b"<html>This page has moved</html>"), "no picture"),
    "empty": (loopback.body(b""), "empty"),
    "2 GB by its header": (loopback.announces(2_000_000_000), "over 4 MB"),
    "5 MB without announcement": (loopback.unannounced(bytes(5_000_000)), "over 4 MB"),
    "decompression bomb": (loopback.body(BOMB), "huge"),
    "endless redirect": (lambda handler, _: handler.answer(302, Location=handler.path), "too many redirects"),
    "redirect to file": (loopback.redirects("file:///etc/hostname"), "neither http nor https"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_dead_link_is_recorded_with_its_reason(v1: Workplace, site: Server, name: str) -> None:
    fault, reason = FAULTS[name]
    site.faults[f"{KEPT[4]}.jpg"] = fault
    v1.set("download", retries=1, max_megabytes=4, timeout=3 if name == "drips" else 30)
    assert v1.run().startswith(f"20 pictures of 3 classes, 1 failed (1 {reason}), ")
    assert v1.failures() == {KEPT[4]: reason}
    transient = name in ("500", "breaks off", "drips")
    if "redirect" not in name:
        assert site.requests[f"{KEPT[4]}.jpg"] == (2 if transient else 1), "only transient errors are retried"


def test_headers_of_a_picture_that_trickle_are_a_timeout(
    v1: Workplace, site: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "MAX_REDIRECTS", 1)
    site.faults[f"{KEPT[4]}.jpg"] = loopback.drips_headers
    v1.set("download", retries=1, timeout=2)
    v1.run()
    assert v1.failures() == {KEPT[4]: "timeout"}


def test_the_handler_of_ctrl_c_is_restored(v1: Workplace) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        v1.run()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_all_dead_links_together(v1: Workplace, site: Server) -> None:
    dead = dict(zip([name for name, _ in ROWS[::3]], FAULTS.values(), strict=True))  # a third of each class
    site.faults |= {f"{name}.jpg": fault for name, (fault, _) in dead.items()}
    v1.set("download", retries=1, max_megabytes=4, min_success=0.5, timeout=4)
    v1.set("filter", skip_top=0, top_k=6, min_images=3)
    assert v1.run().startswith(
        "26 pictures of 6 classes, 13 failed (1 HTTP 403, 1 HTTP 404, 1 HTTP 410, 1 HTTP 500, 1 broken off, 1 empty, "
        "1 huge, 1 neither http nor https, 1 no picture, 2 over 4 MB, 1 timeout, 1 too many redirects), "
    )
    assert v1.failures() == {name: reason for name, (_, reason) in dead.items()}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("None", "no valid URL"),
        ("", "no valid URL"),
        ("http://[broken", "no valid URL"),
        ("http://" + "x" * 70 + ".invalid/a.jpg", "no valid URL"),
        ("//127.0.0.1/a.jpg", "no valid URL"),
        ("ftp://127.0.0.1/a.jpg", "neither http nor https"),
        ("ws://127.0.0.1/a.jpg", "neither http nor https"),
        ("file:///etc/hostname", "neither http nor https"),
        ("http://127.0.0.1:1/a.jpg", "no connection"),
    ],
)
def test_an_invalid_url_is_recorded_with_its_reason(v1: Workplace, site: Server, url: str, reason: str) -> None:
    write_index(site, **{KEPT[4]: url})
    v1.set("download", retries=0)
    v1.run()
    assert v1.failures() == {KEPT[4]: reason}


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("a%2Cb%7e%c3%A9.jpg?x=%2F%40&y=a+b", "a%2Cb%7e%c3%A9.jpg?x=%2F%40&y=a+b"),
        ("%2e%2E/x%20.jpg", "%2e%2E/x%20.jpg"),
        ("50%_é |%2C.jpg", "50%25_%C3%A9%20%7C%2C.jpg"),
    ],
)
def test_a_url_is_sent_as_it_is_written(v1: Workplace, site: Server, written: str, sent: str) -> None:
    write_index(site, **{KEPT[4]: f"{site.url}/{written}"})
    site.faults[sent] = loopback.body(PICTURES[KEPT[4]])
    v1.run()
    assert site.requests[sent] == 1 and v1.failures() == {}


@pytest.mark.parametrize("source", ["gldv1", "gldv2"])
def test_rows_without_a_landmark_are_skipped_and_counted(
    tmp_path: Path, site: Server, mirror: Path, source: str
) -> None:
    """They are more than the pictures of any landmark. One of them has no URL either."""
    index = site.root / "train.csv" if source == "gldv1" else mirror / "metadata/train.csv"
    place = Workplace(tmp_path / "place", source)
    place.set("data", root=str(index if source == "gldv1" else mirror))
    place.run()
    pictures = place.pictures()
    odd = ["None", "", "none", "nan", "NaN", "NULL", " None", "n/a", '""', *["None"] * 5]
    with index.open("a", encoding="utf-8") as file:
        file.writelines(f"x{n:02d},{'None' if n else ''},{landmark}\n" for n, landmark in enumerate(odd))
    assert place.run() == (
        "21 pictures of 3 classes, 0 failed, 14 skipped (14 no landmark_id), from an index of 39 in 6 classes"
    )
    assert place.failures() == {f"x{n:02d}": "no landmark_id" for n in range(14)}
    assert place.pictures() == pictures
    index.write_text("id,url,landmark_id\na,None,None\n", encoding="utf-8")
    with user_error("train.csv: no row has a landmark_id"):
        place.run()


@pytest.mark.parametrize("remotely", [True, False], ids=["URL", "path"])
@pytest.mark.parametrize("encoding", [{}, {"Content_Encoding": "gzip"}])
def test_the_index_may_be_compressed(
    v1: Workplace, site: Server, expected: dict[str, str], remotely: bool, encoding: dict[str, str]
) -> None:
    path = site.root / "train.csv.gz"
    path.write_bytes(gzip.compress((site.root / "train.csv").read_bytes()))
    site.faults["train.csv.gz"] = loopback.body(path.read_bytes(), **encoding)
    v1.set("data", root=f"{site.url}/train.csv.gz" if remotely else str(path))
    v1.run()
    assert v1.raw() == expected


@pytest.mark.parametrize(
    "fault",
    [loopback.status(500, 2), loopback.status(429, 1, Retry_After="0"), loopback.breaks_off(2)],
    ids=["500", "429", "breaks off"],
)
def test_transient_errors_of_a_picture_are_retried(
    v1: Workplace, site: Server, expected: dict[str, str], fault: Fault
) -> None:
    site.faults[f"{KEPT[4]}.jpg"] = fault
    v1.run()
    assert v1.raw() == expected


def test_retry_after_pauses_the_whole_host(v1: Workplace, site: Server) -> None:
    """The others are on the same host by another name, which counts as another host."""
    write_index(site, **{name: f"http://localhost:{site.server_port}/{name}.jpg" for name in KEPT[3:]})
    site.faults[f"{KEPT[0]}.jpg"] = loopback.status(429, 1, Retry_After="8")
    v1.set("download", workers=1)
    v1.run()
    asked = site.times[f"{KEPT[0]}.jpg"][0]
    resumed = [site.times[f"{name}.jpg"][-1] for name in KEPT[:3]]
    assert min(resumed) - asked >= 8
    assert all(site.times[f"{name}.jpg"][0] < min(resumed) for name in KEPT[3:]), "the other host is not delayed"


def test_a_host_that_asks_for_a_day_is_given_up_until_the_next_run(
    v1: Workplace, site: Server, expected: dict[str, str]
) -> None:
    site.faults[f"{KEPT[4]}.jpg"] = loopback.status(429, 1, Retry_After="86400")
    v1.set("download", workers=1)
    with user_error("only 4 of 21 pictures were fetched, .*17 HTTP 429"):
        v1.run()
    assert sum(path.endswith(".jpg") for path in site.requests) == 5
    v1.run()
    assert v1.raw() == expected


@pytest.mark.parametrize("status", [404, 429])
def test_pictures_of_a_host_that_asks_for_a_day_are_asked_for_in_the_next_run(
    v1: Workplace, site: Server, status: int
) -> None:
    """Also if the stage succeeds without them. A 404 says nothing about the others."""
    names = sorted(name for name, landmark in ROWS if landmark != "10")
    site.faults[f"{names[4]}.jpg"] = loopback.status(status, 1, Retry_After="86400")
    v1.set("download", workers=1, min_success=0.1)
    v1.set("filter", top_k="all")
    v1.run()
    assert v1.failures() == dict.fromkeys(names[4:] if status == 429 else names[4:5], f"HTTP {status}")
    v1.run()
    assert v1.failures() == ({} if status == 429 else {names[4]: "HTTP 404"})


def two_hosts(v1: Workplace, site: Server, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Puts 15 pictures on a host of their own. Returns their names, and those of the 24 others. Hosts are impatient."""
    apart = KEPT[6:]
    write_index(site, **{name: f"http://localhost:{site.server_port}/{name}.jpg" for name in apart})
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.5)
    v1.set("download", workers=2, retries=0, min_success=0.05)
    v1.set("filter", min_images=3, top_k="all", skip_top=0)
    return apart, [name for name, _ in ROWS if name not in apart]


def test_a_silent_host_is_given_up_until_the_next_run(
    v1: Workplace, site: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other host still answers when the first timeouts are over."""
    silent, others = two_hosts(v1, site, monkeypatch)
    answer = threading.Event()
    site.faults |= {f"{name}.jpg": lambda *_: not time.sleep(0.4) for name in others}
    site.faults |= {f"{name}.jpg": lambda *_: answer.wait(60) for name in silent}
    v1.set("download", timeout=3)
    v1.run()
    assert len(asked := [name for name in silent if site.requests[f"{name}.jpg"]]) < 10
    assert v1.failures() == dict.fromkeys(silent, "timeout")
    answer.set()
    v1.run()
    assert set(v1.failures()) < set(asked)


def test_no_host_is_given_up_if_none_answers(v1: Workplace, site: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when this machine is offline after the pictures of the other host: these are asked for as often as always."""
    silent, others = two_hosts(v1, site, monkeypatch)

    def break_off(handler: loopback.Handler, _: int) -> None:
        while not all(site.sent[f"{name}.jpg"] for name in others):
            time.sleep(0.01)
        time.sleep(0.2)
        handler.close_connection = True

    site.faults |= {f"{name}.jpg": break_off for name in silent}
    v1.run()
    assert v1.failures() == dict.fromkeys(silent, "broken off")
    assert all(site.requests[f"{name}.jpg"] for name in silent)


def test_the_filter_counts_pictures_that_were_not_fetched(
    v1: Workplace, site: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.faults |= {f"{name}.jpg": loopback.status(404) for name in KEPT}
    v1.set("download", min_success=0.0)
    v1.set("filter", top_k="all", min_images=6)
    v1.run()
    monkeypatch.chdir(v1.root)
    with user_error(r"filter\.min_images: 0 classes .* \(pictures dropped: 21 HTTP 404\)"):
        filter_stage.main()


def test_waiting_for_a_slot_is_no_timeout(v1: Workplace, site: Server, expected: dict[str, str]) -> None:
    site.pause = 0.3  # 6.3 seconds in all
    v1.set("download", workers=1, timeout=5, retries=0)
    v1.run()
    assert v1.raw() == expected


@pytest.mark.parametrize("fault", [loopback.status(407), loopback.status(403), loopback.body(b"<html>Log in</html>")])
def test_a_bad_network_has_no_lasting_effect(
    v1: Workplace, site: Server, expected: dict[str, str], fault: Fault
) -> None:
    site.faults |= {f"{name}.jpg": fault for name in KEPT}
    with user_error(r"download\.min_success: only 0 of 21 pictures"):
        v1.run()
    site.faults.clear()
    v1.run()
    assert v1.raw() == expected


def test_a_failed_stage_retries_transient_failures_in_the_next_run(v1: Workplace, site: Server) -> None:
    gone, down = f"{KEPT[0]}.jpg", f"{KEPT[1]}.jpg"
    site.faults |= {gone: loopback.status(404), down: loopback.status(500)}
    v1.set("download", retries=0, min_success=0.95)
    with user_error(
        r"download\.min_success: only 19 of 21 pictures were fetched, less than 95% \(1 HTTP 404, 1 HTTP 500\)"
    ):
        v1.run()
    requests = site.requests.copy()
    del site.faults[down]
    v1.run()
    assert site.requests - requests == {down: 1}
    assert v1.failures() == {KEPT[0]: "HTTP 404"}


def test_a_finished_download_sends_no_requests(v1: Workplace, site: Server) -> None:
    down = f"{KEPT[1]}.jpg"
    site.faults |= {f"{KEPT[0]}.jpg": loopback.status(404), down: loopback.status(500)}
    v1.set("download", retries=0)
    v1.run()
    before, requests = v1.raw(), site.requests.copy()
    for top_k in (2, 3):
        v1.set("filter", top_k=top_k)
        v1.run()
    assert site.requests == requests and v1.raw() == before
    v1.set("download", retries=1)  # allows another attempt
    v1.run()
    assert site.requests - requests == {down: 1}


@pytest.mark.parametrize("source", ["gldv1", "gldv2"])
def test_a_changed_size_limit_applies_to_stored_pictures(
    tmp_path: Path, site: Server, server: Server, source: str
) -> None:
    large = jpeg(drawing(1)) + bytes(1_500_000)
    (site.root / f"{KEPT[0]}.jpg").write_bytes(large)
    write_tar(server.root, TARS[0], [(KEPT[0], large)])
    workplace = Workplace(tmp_path / "place", source)
    workplace.set("data", root=str(site.root / "train.csv") if source == "gldv1" else server.url)
    workplace.set("download", min_success=0.1)
    workplace.set("filter", min_images=3)
    for limit in (1, 2, 1):
        workplace.set("download", max_megabytes=limit)
        workplace.run()
        assert (KEPT[0] in workplace.pictures()) is (limit == 2)
        assert workplace.failures().get(KEPT[0]) == (None if limit == 2 else "over 1 MB")


# --- Interruptions -------------------------------------------------------------------------------------------------

KILLS = 6


def start_stage(workplace: Workplace, **variables: str) -> "subprocess.Popen[str]":
    command, environment = [sys.executable, "-m", "stages.download"], os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.Popen(command, cwd=workplace.root, env=environment, stderr=subprocess.PIPE, text=True)


def kill_repeatedly(workplace: Workplace, server: Server, blocks: int) -> int:
    """Runs the stage until it ends by itself, but kills it (SIGKILL) up to `KILLS` times. Returns the number of kills.

    Each kill comes after a random number of blocks, up to `blocks`. The server then sends nothing more, so a stage
    that still needs data cannot end before it is killed.
    """
    rng = stream(0, "kills", workplace.root.name)
    for kills in range(KILLS + 1):
        server.stop_at = math.inf if kills == KILLS else server.blocks + int(rng.integers(1, blocks + 1))
        process = start_stage(workplace)
        while process.poll() is None and server.blocks < server.stop_at:
            time.sleep(0.001)
        ended = process.poll() is not None
        process.kill()
        process.communicate()
        if ended:
            assert process.returncode == 0
            server.stop_at = math.inf
            return kills
    raise AssertionError


@pytest.fixture
def noise() -> Callable[[int], bytes]:
    """Pictures of about 100 kB."""
    return lambda seed: jpeg(Image.fromarray(np.random.default_rng(seed).integers(0, 255, (280, 280, 3), np.uint8)), 95)


def test_a_v2_download_killed_repeatedly_gives_the_same_result(
    mirror: Path, tmp_path: Path, noise: Callable[[int], bytes]
) -> None:
    own = list(PICTURES)
    for start, tar in enumerate(TARS):
        ballast = [(f"{n:016d}", noise(n)) for n in range(4)]
        wanted = [(name, noise(1000 + own.index(name))) for name in own[start :: len(TARS)]]
        members = [*ballast, *wanted]
        write_tar(mirror, tar, [members[n] for n in stream(0, tar).permutation(len(members))])
    size = (mirror / TAR).stat().st_size
    with loopback.serve(mirror) as server:
        workplaces = [Workplace(tmp_path / name, "gldv2") for name in ("whole", "killed")]
        for workplace in workplaces:
            workplace.set("data", root=server.url)
            workplace.set("download", workers=1)
        workplaces[0].run()
        once = sum(server.sent.values())
        kills = kill_repeatedly(workplaces[1], server, blocks=2 * size // loopback.BLOCK)
        again = sum(server.sent.values()) - 2 * once
    assert kills >= 2
    assert workplaces[1].raw() == workplaces[0].raw()
    assert again < kills * size


def test_a_v1_download_killed_repeatedly_gives_the_same_result(v1: Workplace, site: Server, tmp_path: Path) -> None:
    site.faults |= {f"{KEPT[0]}.jpg": loopback.status(404), f"{KEPT[1]}.jpg": loopback.status(500)}
    workplaces = [v1, Workplace(tmp_path / "killed", "gldv1")]
    for workplace in workplaces:
        workplace.set("data", root=str(site.root / "train.csv"))
        workplace.set("filter", skip_top=0, top_k=6)
        workplace.set("download", workers=2, retries=1)
    v1.run()
    once = sum(site.requests.values())
    site.pause = 0.05
    kills = kill_repeatedly(workplaces[1], site, blocks=2 * site.requests.total() // KILLS)
    again = sum(site.requests.values()) - 2 * once
    assert kills >= KILLS // 2
    assert workplaces[1].raw() == workplaces[0].raw()
    assert again <= 2 * kills  # the requests in flight


@pytest.mark.parametrize("source", ["gldv1", "gldv2"])
def test_ctrl_c_ends_the_stage_with_one_line(tmp_path: Path, site: Server, server: Server, source: str) -> None:
    asked, path = (site, f"{KEPT[0]}.jpg") if source == "gldv1" else (server, TAR)
    workplace = Workplace(tmp_path / "interrupted", source)
    workplace.set("data", root=str(site.root / "train.csv") if source == "gldv1" else server.url)
    workplace.set("download", timeout=30)
    answer = threading.Event()
    asked.faults[path] = lambda *_: answer.wait(60)
    process = start_stage(workplace)
    while not asked.requests[path]:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    answer.set()
    assert process.returncode == 130 and "Traceback" not in stderr
    assert stderr.splitlines()[-1] == "download: interrupted"


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
@pytest.mark.parametrize("fetching", [True, False])
def test_failures_of_an_interrupted_run_are_tried_again(
    tmp_path: Path, error: type[BaseException], fetching: bool
) -> None:
    """Those that are permanent are not. A run that ends before it fetches, such as by a typo, changes nothing."""
    with pytest.raises(error), Store(tmp_path) as store:
        store.fail("a", "http://x/a", "no connection", 4)
        store.fail("b", "http://x/b", "HTTP 404", None)
        store.fetching = fetching
        raise error
    kept = [("b", "http://x/b")] if fetching else [("a", "http://x/a"), ("b", "http://x/b")]
    with Store(tmp_path) as store:
        assert sorted(store.failures()) == kept


def test_a_typo_after_a_download_keeps_its_failures(v1: Workplace, site: Server) -> None:
    site.faults[f"{KEPT[0]}.jpg"] = loopback.status(500)
    v1.set("download", retries=0)
    v1.run()
    requests = site.requests.copy()
    v1.set("filter", top_k=99)
    with user_error(r"filter\.top_k: 1 \+ 99 classes wanted"):
        v1.run()
    v1.set("filter", top_k=3)
    v1.run()
    assert site.requests == requests


def test_a_killed_run_loses_at_most_the_pictures_of_an_open_transaction(tmp_path: Path) -> None:
    """A finished tar has all of its pictures. The first store is one with a write-ahead log."""
    program = f"""
import os, sys
from pathlib import Path
from landmarks.sources.store import Store, Tar
store = Store(Path({str(tmp_path)!r}), float(sys.argv[1]))
store.add("a" + sys.argv[1], "x", b"1")
if "finish" in sys.argv:
    store.finish(Tar("x", "md5"), ["a"])
store.add("b" + sys.argv[1], "x", b"2")
os._exit(0)
"""
    for arguments in (["0"], ["60"], ["99", "finish"]):
        subprocess.run(
            [sys.executable, "-c", program, *arguments], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
    with Store(tmp_path, 60) as store:
        assert sorted(name for name, _ in store.pictures()) == ["a0", "a99", "b0"]
        assert store.tars()["x"].done


def test_a_second_download_waits_for_the_first(v2: Workplace) -> None:
    key = hashlib.sha256(v2.params["data"]["root"].encode()).hexdigest()[:12]
    with Store(v2.root / f".scratch/download/gldv2-{key}"):
        second = subprocess.Popen(
            [sys.executable, "-m", "stages.download"],
            cwd=v2.root,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        said = second.stderr.readline()
        assert said == f".scratch/download/gldv2-{key}: waiting for another run that uses it\n"
        assert second.poll() is None
    assert second.communicate(timeout=60) and second.returncode == 0


# --- The parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", 0),
        ("7", 7),
        ("soon", 0),
        ("Mon, 99 Jan 99999999999 00:00:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 2.516e11),
    ],
)
def test_retry_after(value: str, seconds: float) -> None:
    answers = {
        status: aiohttp.ClientResponseError(None, (), status=status, headers={"Retry-After": value})
        for status in (429, 503, 404)
    }
    assert retry.retry_after(answers[429]) == pytest.approx(seconds, rel=0.01)
    assert retry.retry_after(answers[503]) == pytest.approx(seconds, rel=0.01)
    assert retry.retry_after(answers[404]) == 0, "it is permanent"
    assert retry.retry_after(TimeoutError()) == 0


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://a.example/x", "a.example"),
        ("https://A.example:443/y?z", "a.example"),
        ("http://user@a.example:80", "a.example"),
        ("http://a.example:8080/x", "a.example:8080"),
        ("http://[broken", ""),
        ("http://a.example:99999", ""),
        ("x", ""),
    ],
)
def test_a_host_has_one_name(url: str, name: str) -> None:
    assert gldv1.host(url) == name


def test_waits_double_up_to_a_limit_and_have_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT", 1.0)
    error = TimeoutError()
    pauses = np.array(
        [[retry.seconds_before_retry(error, attempt, 12, stream(0, n)) for attempt in range(12)] for n in range(50)]
    )
    assert (np.diff(np.log2(pauses.mean(0)[:9])) > 0.7).all() and len(np.unique(pauses[:, :10])) == 500
    assert (pauses[:, 0] >= 0.5).all() and (pauses[:, 10:] >= retry.LONGEST_WAIT / 2).all()
    assert pauses.max() <= 1.5 * retry.LONGEST_WAIT
    assert params.load(ROOT / "params.yaml").download.retries < 12
