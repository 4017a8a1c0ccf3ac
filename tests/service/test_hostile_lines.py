"""What a client of control.sock and a worker may send: a real watchdog outlives all of it."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from tidegate.service.control import SOCKET_NAME

from .conftest import Daemon, wait_until

REQUEST = b'{"verb":"status"}'


def send(directory: Path, data: bytes) -> bytes:
    """What comes back, up to the end of file."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(directory / SOCKET_NAME))
        with suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                answer += piece
    return answer


def test_lines_that_are_none(daemon: Daemon) -> None:
    """Not UTF-8, too deep, too long, no request, nothing at all: the next client is answered."""
    daemon.start()
    rng = random.Random(8)
    lines = [
        b'{"verb":"\xff"}\n', b'{"verb":"\xed\xa0\x80"}\n', b'{"verb":"\\ud800"}\n', b"\n", b"\0\n",
        b"[" * 4000 + b"\n", b'{"verb":' * 500 + b"\n", b"9" * 4000 + b"\n", b"\xff" * 100_000,
        b'{"verb":1}\n', b"null\n", b'{"verb":"status","finished":9}\n', b"GET / HTTP/1.1\r\n\r\n",
    ]  # fmt: skip
    for _ in range(300):
        at, byte = rng.randrange(len(REQUEST)), rng.randrange(256)
        lines.append(REQUEST[:at] + bytes([byte]) + REQUEST[at + 1 :] + b"\n")
    for line in lines:
        send(daemon.directory, line)
    assert daemon.status()["watchdog"]["pid"] == daemon.pid
    assert "fault" not in daemon.log()


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"failed","reason":"\xff"}\n',
        b"[" * 10_000 + b"\n",
        b"\xff\n",
        b"9" * 5000 + b"\n",
    ],
    ids=lambda line: str(line[:12]),
)
def test_a_worker_that_says_what_is_no_line(daemon: Daemon, line: bytes) -> None:
    """It is replaced; the watchdog stays."""
    daemon.start("--garbage", line.hex())
    first = daemon.worker()["pid"]
    daemon.get("/garbage")
    wait_until(lambda: daemon.worker()["pid"] != first, "another worker serves")
    daemon.wait_logged("it says what we do not understand")
