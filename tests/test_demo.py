"""The page in a real browser: Debian's Chromium, driven by Playwright. Skipped if one of them is missing.

With SCREENSHOT=docs/demo.png in the environment, the models in models/released/ give a new picture for docs/serving.md.
"""

import html
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from landmarks import images, similar
from landmarks.images import encode

import numpy as np
import pytest
from conftest import ROOT, abn, drawing, jpeg, model_folder, user_error
from PIL import Image

pytestmark = pytest.mark.slow

if not find_spec("gradio"):  # importing it would take each process three seconds
    pytest.skip("needs Gradio: pip install --no-deps -r requirements-demo.txt", allow_module_level=True)
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs Playwright: pip install --no-deps -r requirements-demo.txt"
)


def free_port() -> int:
    """A port that is free, and that the system gives to nobody who asks for any port."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with suppress(OSError), socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, of which baseline knows no photo, and two examples."""
    root = tmp_path_factory.mktemp("release")
    model_folder(root / "baseline", threshold=0.999)
    abn_folder = model_folder(root / "abn", abn())
    with similar.writer(abn_folder / similar.FILE) as write:
        vectors = np.random.default_rng(0).normal(size=(8, 256)).astype(np.float16)
        shown = [images.thumbnail(drawing(0)), *[None] * 7]
        rows = zip(vectors, shown, strict=True)
        write([similar.Row(f"<b>{n}", "b-2", vector, picture) for n, (vector, picture) in enumerate(rows)])
    examples = abn_folder / "examples"
    examples.mkdir()
    for n in range(2):
        (examples / f"{n}.jpg").write_bytes(jpeg(drawing(n, 320, 240)))
    return root


def start(*models: Path, port: int, **variables: str) -> subprocess.Popen:
    """Starts `python -m landmarks serve` and waits until it answers."""
    command = [sys.executable, "-m", "landmarks", "serve", "--port", str(port), "--models", *map(str, models)]
    proxies = {"http_proxy": "http://127.0.0.1:9", "all_proxy": "socks5://127.0.0.1:9"}  # nothing answers there
    environment = os.environ | proxies | dict.fromkeys(("no_proxy", "NO_PROXY"), "") | variables
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10).close()
            return server
        except OSError:
            assert server.poll() is None, server.stdout.read()
            time.sleep(0.1)
    server.kill()
    raise AssertionError("the page does not answer")


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page. Other users cannot read the uploads, and none stays when its terminal is closed."""
    port, temporary = free_port(), tmp_path_factory.mktemp("temporary")
    server = start(folder / "baseline", folder / "abn", port=port, TMPDIR=str(temporary))
    assert list(temporary.glob("landmarks-*")) and not any(path.stat().st_mode & 0o77 for path in temporary.iterdir())
    yield f"http://127.0.0.1:{port}"
    server.send_signal(signal.SIGHUP)
    assert server.wait(60) == 0
    assert not list(temporary.iterdir())


@pytest.fixture
def page(browser: "sync_api.Browser", address: str) -> "Iterator[sync_api.Page]":
    """The open page. A request to another server is blocked and fails the test."""
    page, elsewhere = browser.new_page(viewport={"width": 1280, "height": 900}), []

    def local(route: "sync_api.Route") -> None:
        if route.request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    page.route("**/*", local)
    visit(page, address)
    yield page
    page.close()
    assert elsewhere == []


def visit(page: "sync_api.Page", address: str, example: int = 0) -> None:
    """Opens the page and clicks on an example until its map appears."""
    page.goto(address)
    for _ in range(30):
        page.locator("#examples button img").nth(example).click()
        try:
            return page.locator("#map-1 img").wait_for(timeout=2000)
        except sync_api.TimeoutError:
            continue
    raise AssertionError("a click on an example shows nothing")


def upload(page: "sync_api.Page", name: str, data: bytes) -> None:
    page.locator("#photo input[type=file]").set_input_files([{"name": name, "mimeType": "image/*", "buffer": data}])


def drawn(page: "sync_api.Page") -> str:
    """The address of the picture with abn's map."""
    return page.locator("#map-1 img").get_attribute("src")


def test_a_photo_is_answered_by_both_models(page: "sync_api.Page") -> None:
    before = drawn(page)
    upload(page, "mine.jpg", jpeg(drawing(5, 400, 300)))
    sync_api.expect(page.locator("#map-1 img")).not_to_have_attribute("src", before)
    page.locator("#map-0 img").wait_for()
    sync_api.expect(page.locator("#verdict-1")).to_contain_text("It looks like")
    sync_api.expect(page.locator("#verdict-0")).to_contain_text("none of the known landmarks")
    for name in ("a-1", "Bridge (b-2)", "c-3"):
        sync_api.expect(page.locator("#bars-1")).to_contain_text(name)


def test_similar_training_pictures_are_shown(page: "sync_api.Page") -> None:
    figures = page.locator("#similar figure")
    sync_api.expect(figures).to_have_count(5)
    sync_api.expect(figures.first).to_contain_text(re.compile(r"Bridge \(b-2\)\s*distance \d\.\d{3}\s*<b>\d"))


@pytest.mark.parametrize("name", ["L\u2019Arc", "\u0924\u093e\u091c", "Cafe\u0301", "*a* [b](c) _d_ <e> 1. #f & `g`"])
def test_names_are_shown_as_they_are(name: str) -> None:
    from landmarks.serving import demo

    from markdown_it import MarkdownIt  # Gradio's

    assert html.unescape(MarkdownIt().renderInline(demo.plain(name))) == name


def test_broken_similar_pictures_are_an_error_before_the_page_opens(tmp_path: Path) -> None:
    from landmarks.serving import demo
    from landmarks.serving.recognizer import Recognizer

    broken = model_folder(tmp_path / "m")
    (broken / similar.FILE).write_bytes(b"PAR1")
    with user_error("m: a file of the model is missing or broken"):
        demo.page([Recognizer(broken, "cpu")], [])


def test_the_slider_redraws_the_map(page: "sync_api.Page") -> None:
    before = drawn(page)
    page.locator("#opacity input[type=range]").fill("0")
    sync_api.expect(page.locator("#map-1 img")).not_to_have_attribute("src", before)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("notes.txt", b"no picture", "notes.txt is not a readable picture"),
        ("fake_one.jpg", b"no picture", "fake_one.jpg is not a readable picture"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a readable picture"),
        ("tiny.png", jpeg(drawing(0, 20, 20)), "is too small: at least 64 pixels"),
        ("wide.png", encode(Image.new("1", (80_000, 300)), "PNG"), "is too narrow: one side is more than 40 times"),
    ],
    ids=["text", "false ending", "svg", "small", "wide"],
)
def test_an_unreadable_file_gives_a_message_with_the_accepted_formats(
    page: "sync_api.Page", name: str, data: bytes, said: str
) -> None:
    upload(page, name, data)
    sync_api.expect(page.locator("#message")).to_contain_text(said)
    sync_api.expect(page.locator("#map-1 img")).to_have_count(0)
    assert "Error" not in page.inner_text("body") and "Traceback" not in page.content()
    page.locator("#examples button img").nth(1).click()  # and it goes on
    page.locator("#map-1 img").wait_for()
    sync_api.expect(page.locator("#message")).not_to_contain_text(said)


def test_an_upload_that_is_too_large_is_refused(page: "sync_api.Page") -> None:
    upload(page, "large.jpg", jpeg(drawing()) + bytes(21_000_000))
    toast = page.get_by_test_id("toast-body")
    sync_api.expect(toast).to_contain_text("exceed the maximum allowed size")


def test_it_listens_only_on_this_machine(address: str) -> None:
    port = int(address.rsplit(":", 1)[1])
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=1):
        pass


def test_it_answers_only_to_names_of_this_machine(address: str) -> None:
    """Otherwise a web site could give its own name the address 127.0.0.1, and read the answers."""
    port = int(address.rsplit(":", 1)[1])
    for name, status in (("localhost", 200), ("127.0.0.1", 200), ("evil.example", 400)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/", headers={"Host": f"{name}:{port}"})
        assert connection.getresponse().status == status
        connection.close()


def test_a_port_that_is_taken() -> None:
    from landmarks.serving import demo

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with user_error(f"--port: {port} is taken or forbidden"):
            demo.serve([], [], port)


@pytest.mark.skipif("SCREENSHOT" not in os.environ, reason="makes docs/demo.png, with SCREENSHOT=docs/demo.png")
def test_screenshot(browser: "sync_api.Browser") -> None:
    port = free_port()
    server = start(ROOT / "models/released/baseline", ROOT / "models/released/abn", port=port)
    page = browser.new_page(viewport={"width": 1240, "height": 800}, color_scheme="light")
    visit(page, f"http://127.0.0.1:{port}", example=1)
    page.wait_for_timeout(1500)
    page.screenshot(path=os.environ["SCREENSHOT"])
    server.terminate()
    server.wait(10)
