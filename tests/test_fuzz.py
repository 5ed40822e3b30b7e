"""Odd inputs of every kind, made by hypothesis: each gives at most one line, and nothing is written elsewhere.

By default the same few hundred every time; `make fuzz` sets FUZZ=5000, the number of random ones of each kind.
"""

import faulthandler
import io
import os
import struct
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from landmarks import images, params, sources
from landmarks.images import Picture, Unfit
from landmarks.scan import printable
from landmarks.stage import UserError
from stages import download

import pytest
import yaml
from conftest import ROOT, drawing, jpeg, sum_up, user_error
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL.Image import registered_extensions

pytestmark = pytest.mark.slow

TRIED: Counter[str] = Counter()
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
VALUES = yaml.safe_load(TEXT)


def fuzz(share: float, *strategies: st.SearchStrategy, **named: st.SearchStrategy) -> Callable:
    """Runs a test with `share` times the usual number of examples."""
    many = int(os.environ.get("FUZZ", "0"))
    chosen = settings(
        max_examples=max(10, int((many or 200) * share)),
        derandomize=not many,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    def decorate(test: Callable) -> Callable:
        return chosen(given(*strategies, **named)(test))

    return decorate


@pytest.fixture(scope="module", autouse=True)
def report() -> Iterator[None]:
    """Says how many inputs were tried."""
    yield
    print(f"\n{sum(TRIED.values())} odd inputs: {', '.join(f'{n} {kind}' for kind, n in sorted(TRIED.items()))}")


@contextmanager
def one_line(kind: str) -> Iterator[None]:
    """Accepts a `UserError` of one line and no other exception; counts the input."""
    TRIED[kind] += 1
    try:
        yield
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000


@contextmanager
def new_directory() -> Iterator[Path]:
    """Changes into a new directory; fails if something appears beside it."""
    before = Path.cwd()
    with TemporaryDirectory() as outer:
        inner = Path(outer, "inner")
        inner.mkdir()
        os.chdir(inner)
        try:
            yield inner
        finally:
            faulthandler.cancel_dump_traceback_later()
            os.chdir(before)
        assert [path.name for path in Path(outer).iterdir()] == ["inner"]


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """A file of which some bytes are replaced, missing or repeated."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("replace", "cut", "end", "repeat"))):
            case "replace":
                new = draw(st.binary(min_size=1, max_size=8))
                data[start : start + len(new)] = new
            case "cut":
                del data[start : start + draw(st.integers(1, 64))]
            case "end":
                del data[start:]
            case "repeat":
                data[start:start] = data[start : start + 64]
    return bytes(data)


# --- params.yaml ---------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.binary()
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
LINES = [
    *("seed: 2019-99-99", "seed: !!python/object/apply:os.system ['touch /tmp/owned']", "seed: !!int x", "? [a]\n: b"),
    *("seed: &a [*a]", "seed: *b", "<<: [1]", "seed: 1" + "0" * 5000, "[" * 3000, "{a: " * 3000, "seed: 0b", "\x00"),
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{n}: &{n} [{f'*{p}, ' * 9}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)),
    *(
        "seed: !!timestamp x",
        "seed: !!float x",
        "seed: !!binary x",
        "seed: !!set {a, b}",
        "=: =",
        "seed: 1:60:x",
        "- - -",
    ),
]


@fuzz(
    1, st.sampled_from([*VALUES, *(f"{k}.{key}" for k, v in VALUES.items() if isinstance(v, dict) for key in v)]), TREES
)
def test_values_of_params_yaml(key: str, value: object) -> None:
    values = yaml.safe_load(TEXT)
    *names, last = key.split(".")
    block = values[names[0]] if names else values
    block[last] = value
    with new_directory() as here, one_line("values of params.yaml"):
        (here / "params.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        params.load(here / "params.yaml")


@fuzz(
    1,
    damaged(st.just(TEXT.encode()))
    | st.binary()
    | st.text().map(str.encode)
    | TREES.map(lambda t: yaml.safe_dump(t).encode()),
)
def test_bytes_of_params_yaml(data: bytes) -> None:
    with new_directory() as here, one_line("bytes of params.yaml"):
        (here / "params.yaml").write_bytes(data)
        params.load(here / "params.yaml")


@pytest.mark.parametrize("text", LINES, ids=range(len(LINES)))
def test_known_odd_yaml(text: str) -> None:
    TRIED["params.yaml known to be odd"] += 1
    with new_directory() as here, user_error("params.yaml: "):
        (here / "params.yaml").write_text(text, encoding="utf-8")
        params.load(here / "params.yaml")
    assert not Path("/tmp/owned").exists()


# --- CSV files -----------------------------------------------------------------------------------------------------

CELLS = st.text(st.sampled_from("ab01/.,;\"'\n\r\t\0é\ufeff "), max_size=6) | st.text(max_size=6)


@st.composite
def tables(draw: st.DrawFn, columns: tuple[str, ...]) -> bytes:
    """A CSV that has those columns, or nearly, with any cells."""
    head = draw(st.permutations(columns) | st.lists(st.sampled_from([*columns, "", "x"]), max_size=5))
    rows = draw(
        st.lists(st.lists(CELLS, min_size=len(head), max_size=len(head)) | st.lists(CELLS, max_size=5), max_size=5)
    )
    quote = draw(st.sampled_from([str, lambda cell: '"' + cell.replace('"', '""') + '"']))
    lines = [",".join(head), *(",".join(map(quote, row)) for row in rows)]
    return draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines).encode("utf-8", "surrogatepass")


@fuzz(1, damaged(tables(("id", "landmark_id", "file"))))
def test_images_csv(data: bytes) -> None:
    with new_directory() as here, one_line("images.csv"):
        (here / "root").mkdir()
        (here / "root/images.csv").write_bytes(data)
        with sources.open_source(
            params.Data(source="folder", root="root", only=None, version=None),
            DOWNLOAD,
            seed=0,
            workers=1,
            scratch=here / "scratch",
        ) as source:
            wanted = source.index()
            list(source.pictures(wanted[~wanted["id"].isin(source.fetch(wanted))]))


DOWNLOAD = params.Download(**VALUES["download"] | {"retries": 0, "timeout": 1.0, "max_megabytes": 1e-4})
# None of them leaves this machine.
URLS = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(
            ["", "http://127.0.0.1:1", "http://[::1]:1/", "http://[", "ftp://x/", "data:,", "//", "file:///etc/"]
        ),
        CELLS,
    ),
)


@fuzz(0.3, st.lists(URLS, min_size=1, max_size=4))
def test_urls_of_the_index_of_v1(urls: list[str]) -> None:
    with new_directory() as here, one_line("URLs"):
        rows = [f'{number},"{url.replace(chr(34), "")}",x' for number, url in enumerate(urls)]
        (here / "train.csv").write_bytes("\n".join(["id,url,landmark_id", *rows]).encode("utf-8", "replace"))
        with sources.open_source(
            params.Data(source="gldv1", root="train.csv", only=None, version=None),
            DOWNLOAD,
            seed=0,
            workers=1,
            scratch=here / "scratch",
        ) as source:
            wanted = source.index()
            assert set(source.fetch(wanted)) == set(wanted["id"])


@fuzz(
    0.3,
    st.sampled_from(["", "a://", "file://", "memory://", "zip://", "github://", "reference://", "local::"]),
    CELLS,
)
def test_data_root(scheme: str, rest: str) -> None:
    root = scheme + rest
    assume(root)
    for name in ("folder", "gldv1", "gldv2"):
        with new_directory() as here, one_line("data.root"):
            data = params.Data(source=name, root=root, only=None, version=None)
            with sources.open_source(data, DOWNLOAD, seed=0, workers=1, scratch=here / "scratch") as source:
                source.index()


# --- Folders of pictures -------------------------------------------------------------------------------------------

VISIBLE = ["tower", "Pa$$age", "NA", "0012", "My\u00a0Pictures", "caf\u00e9", "a.jpg"]
HIDDEN = [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", "lost+found"]
STEMS = ["1", "IMG 2", "3.04\u202fPM", "\u0442\u0435\u0441\u0442", "._1", ".5"]
UNSTORABLE = ["\udcff", "a\nb", "a\rb"]
DECODABLE = ["jpg", "JPEG", "jpe", "jfif", "png", "Gif", "webp", "bmp", "tif", "TIFF", "avif", "HEIC", "heif", "ppm"]
UNREADABLE = ["cr2", "SVG", "psd", "txt", "mp4"]
SAVED = {
    ending: images.encode(drawing(width=64, height=64), registered_extensions()[f".{ending.lower()}"])
    for ending in DECODABLE
}

DIRECTORIES = st.lists(st.sampled_from(VISIBLE + HIDDEN), max_size=3).map("/".join)
FILES_BELOW = st.tuples(DIRECTORIES, st.sampled_from(STEMS + UNSTORABLE), st.sampled_from(DECODABLE + UNREADABLE))
TARGETS = ["", ".", "..", "../..", "../../outside", "../tower", "0.jpg", "../tower/0.jpg", "../../outside/1.jpg"]
LINKS = st.tuples(
    st.just("tower") | st.sampled_from(VISIBLE) | DIRECTORIES,
    st.sampled_from(["up", "1.jpg", "2.jpg", "a.jpg", ".link"]),
    st.sampled_from(TARGETS),
)


@fuzz(1, st.lists(FILES_BELOW, max_size=8), st.lists(LINKS, min_size=1, max_size=4), st.booleans())
def test_folders_of_pictures(files: list, links: list, listed: bool) -> None:
    """Every real picture is used once, classes are visible folders, and every file is either used or skipped."""
    TRIED["folders of pictures"] += 1
    with new_directory() as here:
        (here / "outside").mkdir()
        (here / "outside/1.jpg").write_bytes(SAVED["jpg"])
        root = here / "root"
        root.mkdir()
        wanted = set()
        for directory, *_ in links:
            (root / directory).mkdir(parents=True, exist_ok=True)
        for directory, stem, ending in [("tower", "0", "jpg"), *files]:
            path = root / directory / f"{stem}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(SAVED.get(ending, b"x"))
            hidden = any(part in HIDDEN or part.startswith(".") for part in path.relative_to(root).parts)
            if directory and not hidden and ending in DECODABLE and stem not in UNSTORABLE:
                wanted.add(path)
        for directory, name, target in links:
            with suppress(FileExistsError):
                (root / directory / name).symlink_to(target or root)
        entries = [Path(top, name) for top, _, names in os.walk(root) for name in names]
        if listed:
            rows = [f"{n},x,{path.relative_to(root)}" for n, path in enumerate(sorted(wanted)[::2])]
            (root / "images.csv").write_text("\n".join(["id,landmark_id,file", *rows]), encoding="utf-8")
        data = params.Data(source="folder", root="root", only=None, version=None)
        faulthandler.dump_traceback_later(120, exit=True)  # where a loop of links has no end
        with sources.open_source(data, DOWNLOAD, seed=0, workers=1, scratch=here / "scratch") as source:
            index, skipped = source.index(), source.skipped()
            assert source.fetch(index) == {}
            for picture in source.pictures(index):
                images.decode(picture.picture)
            used = [root / file for file in index["file"]]
            assert len({(path.stat().st_dev, path.stat().st_ino) for path in used}) == len(used), "each once"
            assert listed or set(used) >= wanted, "all of them"
            assert listed or not set(index["landmark_id"]) & {*HIDDEN, ".link"}, "classes are visible"
            assert not any(mark in name for name in index["id"] for mark in UNSTORABLE), "a table can hold the names"
            names = {printable(str(path.relative_to(root))) for path in entries}
            assert names <= {*index["file"], *skipped["id"]}, "found = used + skipped"
            assert not set(index["file"]) & set(skipped["id"])
            for name, reason in zip(skipped["id"], skipped["reason"], strict=True):
                assert not reason.startswith("unsupported") or name.endswith(tuple(UNREADABLE)), (name, reason)


# --- Tars of Google Landmarks v2 -----------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        "a/b/c/abc.jpg",
        "../../../abc.jpg",
        "/tmp/abc.jpg",
        "abc",
        "",
        "a" * 200,
        "abc/",
        "ab\nc.jpg",
        "ünï.jpg",
        ".",
        "..",
    ]
) | st.text(max_size=12)
KINDS = st.sampled_from(
    [
        *(getattr(tarfile, f"{n}TYPE") for n in ("REG", "AREG", "LNK", "SYM", "CHR", "BLK", "DIR", "FIFO")),
        b"S",
        b"x",
        b"g",
        b"L",
        b"?",
    ]
)
PICTURE = jpeg(drawing(width=64, height=64))[:90]


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    """A tar of any members, in any of the three formats."""
    buffer = io.BytesIO()
    kind = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=buffer, mode="w", format=kind, errors="replace") as tar:
        for _ in range(draw(st.integers(0, 5))):
            info = tarfile.TarInfo(draw(NAMES))
            info.type, info.linkname, info.mode = draw(KINDS), draw(NAMES), draw(st.integers(0, 0o7777))
            data = draw(st.sampled_from([PICTURE, b"", b"17 path=../../x.jpg\n", bytes(3000)]))
            info.size = len(data) if info.isreg() or draw(st.booleans()) else 0
            try:
                tar.addfile(info, io.BytesIO(data))
            except ValueError:  # a name that this format has no room for
                continue
    return buffer.getvalue()


@fuzz(
    0.5,
    damaged(tars()),
    st.none() | damaged(tables(("id", "author", "license", "title"))),
    st.none() | damaged(tables(("id", "landmark_id"))),
)
def test_tars_and_tables_of_v2(tar: bytes, credits: bytes | None, index: bytes | None) -> None:
    with new_directory() as here, one_line("data sets of v2"):
        root = here / "root"
        for directory in ("train", "md5sum/train", "metadata"):
            (root / directory).mkdir(parents=True)
        (root / "train/images_000.tar").write_bytes(tar)
        sum_up(root, "images_000")
        rows = [
            f"{name},{landmark}" for landmark in "xyz" for name in (f"abc{landmark}", f"b{landmark}", f"c{landmark}")
        ]
        (root / "metadata/train.csv").write_bytes(
            "\n".join(["id,landmark_id", "abc,x", *rows]).encode() if index is None else index
        )
        if credits is not None:
            (root / "metadata/train_attribution.csv").write_bytes(credits)
        values = yaml.safe_load(TEXT)
        values["data"] = {"source": "gldv2", "root": "root", "only": None, "version": None}
        values["filter"] |= {"top_k": 2, "skip_top": 0, "min_images": 3}
        values["download"]["min_success"] = 0.0
        (here / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        try:
            download.main()
        finally:
            assert {path.name for path in here.iterdir()} <= {"root", "params.yaml", "data", ".scratch"}
            assert not list(here.glob("**/*.jpg"))


# --- Pictures ------------------------------------------------------------------------------------------------------


def exif() -> bytes:
    """A picture that is to be turned, with a broken EXIF block after that."""
    block = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHHIII", 8, 2, 0x112, 3, 1, 6, 0, 0x8769, 4, 1, 2**31)
    data = jpeg(drawing())
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


FILES = [
    images.encode(drawing(width=80, height=70).convert(mode), kind)
    for kind, modes in {
        "JPEG": ("RGB", "L", "CMYK"),
        "PNG": ("RGBA", "P", "1", "I;16"),
        "GIF": ("P",),
        "WEBP": ("RGB",),
        "BMP": ("RGB", "P"),
        "TIFF": ("RGB", "LAB", "F", "I;16"),
        "AVIF": ("RGB",),
        "HEIF": ("RGB",),
        "PPM": ("RGB",),
        "ICO": ("RGB",),
        "EPS": ("RGB",),
        "PCX": ("RGB",),
    }.items()
    for mode in modes
]


@fuzz(1.5, damaged(st.sampled_from([*FILES, exif()])) | st.binary())
def test_pictures(data: bytes) -> None:
    TRIED["pictures"] += 1
    try:
        images.check_header(data)
        image = images.decode(data)
        assert image.mode == "RGB" and min(image.size) >= images.MIN_SIDE
        shrunk, image = images.shrink(Picture("a", "b", data), 64)
        assert 0 <= images.perceptual_hash(image) < 2**64
        assert images.decode(shrunk.picture).size == image.size
    except Unfit as unfit:
        assert str(unfit) in ("empty", "no picture", "huge", "broken", "narrow", "small")
