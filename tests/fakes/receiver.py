"""A scripted receiver of notices: ntfy, a webhook or a heartbeat's other end, over real sockets."""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from typing import Any


@dataclass(frozen=True)
class Heard:
    """One request."""

    method: str
    target: str
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        """What a webhook got."""
        return json.loads(self.body)


@dataclass
class Receiver:
    """What it heard, and how it answers from now on."""

    port: int = 0
    heard: list[Heard] = field(default_factory=list)
    status: int = 200
    body: bytes = b"ok"
    headers: dict[str, str] = field(default_factory=dict)
    is_silent: bool = False  # takes requests and never answers
    echoes: bool = False  # repeats what it was sent in its answer
    _server: http.server.ThreadingHTTPServer | None = None
    _open: set[socket.socket] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Where it is, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def notices(self) -> list[dict[str, Any]]:
        """Every notice that webhooks got, in order."""
        posts = [each.json for each in self.heard if each.method == "POST"]
        return [notice for post in posts for notice in post["notices"]]

    @property
    def told(self) -> list[tuple[str, str]]:
        """The same, in short."""
        return [(each["id"], each["state"]) for each in self.notices]

    def start(self, tls: ssl.SSLContext | None = None) -> None:
        """Come up, at the former port if there was one."""
        receiver = self

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None:
                """A client that hangs up is no affair of the test's."""

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                receiver._open.add(self.connection)

            def finish(self) -> None:
                receiver._open.discard(self.connection)
                super().finish()

            def do_POST(self) -> None:
                receiver.answer(self)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        """Answer one request as it is scripted."""
        length = int(handler.headers.get("Content-Length", 0))
        body = handler.rfile.read(length)
        self.heard.append(Heard(handler.command, handler.path, handler.headers, body))
        if self.is_silent:
            with suppress(OSError):
                handler.rfile.read(1)
            return
        said = f"{handler.path} {handler.headers}".encode() if self.echoes else self.body
        handler.send_response(self.status)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(said)))
        handler.end_headers()
        handler.wfile.write(said)

    def stop(self) -> None:
        """Go away with every connection; a new one is refused from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """One that is up."""
    made = Receiver()
    made.start(tls)
    try:
        yield made
    finally:
        made.stop()


def dead_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
