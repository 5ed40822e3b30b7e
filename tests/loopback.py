"""A web server on the loopback address that serves files, counts what it sends, and misbehaves on request."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SO_SNDBUF, SOL_SOCKET

import requests

Fault = Callable[["Handler", int], bool | None]
BLOCK = 1 << 16


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of files below the server's directory; other methods only where a fault answers them."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def setup(self) -> None:
        self.request.setsockopt(SOL_SOCKET, SO_SNDBUF, BLOCK)  # what the kernel holds back counts as sent
        super().setup()

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        with self.server.lock:
            self.server.requests[path] += 1
            attempt = self.server.requests[path]
            self.server.times.setdefault(path, []).append(time.monotonic())
            self.server.agents.add(self.headers.get("User-Agent", ""))
            self.server.open.append(path)
            self.server.most_open = max(self.server.most_open, len(self.server.open))
        try:
            fault = self.server.faults.get(path)
            # A fault that returns True has had its say, and the file is served as if nothing were.
            if fault is None or fault(self, attempt):
                self.serve(path)
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the client has gone
        finally:
            with self.server.lock:
                self.server.open.remove(path)

    def serve(self, path: str) -> None:
        file = self.server.root / path
        if not file.is_file():
            return self.answer(404)
        self.send_response(200)
        self.send_header("Content-Length", str(file.stat().st_size))
        self.end_headers()
        with file.open("rb") as content:
            while data := content.read(BLOCK):
                self.send(data)

    do_HEAD = do_POST = do_PUT = do_GET

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, data: bytes) -> None:
        if self.command == "HEAD":
            return
        self.wfile.write(data)
        with self.server.lock:
            self.server.sent[self.path.lstrip("/")] += len(data)
            self.server.blocks += 1
        while self.server.blocks >= self.server.stop_at:
            time.sleep(0.001)
        if self.server.pause:
            time.sleep(self.server.pause)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer. Underscores in the names of headers are hyphens."""
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.send(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Serves the directory `root`. `faults` by path take the handler and the number of the request for that path."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.lock = root, threading.Lock()
        self.faults: dict[str, Fault] = {}
        self.requests: Counter[str] = Counter()  # by path
        self.sent: Counter[str] = Counter()  # bytes of bodies, by path
        self.agents: set[str] = set()
        self.times: dict[str, list[float]] = {}  # of the requests
        self.open: list[str] = []  # paths of the requests being answered
        self.most_open = 0
        self.pause = 0.0  # seconds after each block
        self.blocks = 0  # sent so far, at most `BLOCK` bytes each
        self.stop_at = math.inf  # number of blocks after which nothing is sent until this grows
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        pass  # clients are killed here


@contextmanager
def serve(root: Path) -> Iterator[Server]:
    with Server(root) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def status(code: int, times: int = 10**6, **headers: str) -> Fault:
    """Answers the first `times` requests with a status, later ones as usual."""
    return lambda handler, number: number > times or handler.answer(code, b"", **headers)


def body(content: bytes, **headers: str) -> Fault:
    return lambda handler, _: handler.answer(200, content, **headers)


def breaks_off(times: int = 10**6) -> Fault:
    """Sends half of what it announced, so many times, then as usual."""

    def fault(handler: Handler, number: int) -> bool:
        if number > times:
            return True
        content = (handler.server.root / handler.path.lstrip("/")).read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.send(content[: len(content) // 2])
        handler.close_connection = True
        return False

    return fault


def drips(handler: Handler, _: int) -> None:
    """Sends a byte a second, for longer than anybody waits."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    for _ in range(100):
        handler.send(b"x")
        time.sleep(1)


def drips_headers(handler: Handler, _: int) -> None:
    """Sends a byte of a header five times a second, for longer than anybody waits."""
    handler.send_response(200)
    handler.flush_headers()
    for byte in b"X: " + b"x" * 100:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.2)


def announces(size: int) -> Fault:
    """Says that a body of so many bytes will come."""

    def fault(handler: Handler, _: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(size))
        handler.end_headers()
        handler.send(bytes(BLOCK))
        handler.close_connection = True

    return fault


def unannounced(content: bytes) -> Fault:
    """Sends a body without its length, which ends with the connection."""

    def fault(handler: Handler, _: int) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.send(content)

    return fault


def redirects(location: str) -> Fault:
    return status(302, Location=location)


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3 server with the bucket `team`, in which everybody may write; its address. Needs requirements-team.txt."""
    from moto.server import ThreadedMotoServer

    thread = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    thread.start()
    url = "http://{}:{}".format(*thread.get_host_and_port())
    try:
        assert requests.put(f"{url}/team", timeout=60).ok
        yield url
    finally:
        thread.stop()
