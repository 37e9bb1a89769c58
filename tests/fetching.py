"""Servers on 127.0.0.1, made-up names and clocks: what the tests of downloads share."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PICTURE = random.Random(1).randbytes(5000)
MB = 1_000_000
PUBLIC, OTHER = "93.184.216.34", "93.184.216.35"


class Site:
    """A server whose answers are functions of its handler, by path; it notes requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.connections = 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                site.connections += 1
                super().setup()

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                site.requests.append((self.path, headers))
                site.answers[self.path](self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients that hang up
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,)).start()

    def url(self, path: str = "/a.jpg", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def serve(
        self, path: str = "/a.jpg", body: bytes = PICTURE, status: int = 200, **headers: str
    ) -> str:
        """Serve this; underscores in names of headers are hyphens. Gives the URL."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            if "content_length" not in headers:
                handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        self.answers[path] = answer
        return self.url(path)

    def in_turn(self, path: str, *paths: str) -> str:
        """Answer a path as others would, one after another, the last again and again."""
        turns = list(paths)

        def answer(handler: BaseHTTPRequestHandler) -> None:
            self.answers[turns.pop(0) if len(turns) > 1 else turns[0]](handler)

        self.answers[path] = answer
        return self.url(path)

    def speak_tls(self, context: ssl.SSLContext) -> None:
        """From now on, to connections that are made."""
        plain = self._server.get_request

        def get_request() -> tuple[socket.socket, object]:
            connection, where = plain()
            return context.wrap_socket(connection, server_side=True), where

        self._server.get_request = get_request

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = time.time()
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def raw(answer: Callable[[socket.socket], None]) -> str:
    """A server that says what it likes to each connection. Gives its URL."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server:
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    with suppress(OSError):
                        answer(connection)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/a.jpg"


def refusing() -> str:
    """The URL of a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}/"
