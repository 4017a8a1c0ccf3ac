"""What a client of control.sock and a worker may send: a real watchdog outlives all of it."""

from __future__ import annotations

import json
import random
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from tidegate.watchdog.control.client import SOCKET_NAME
from tidegate.watchdog.control.server import MAX_IGNORED_BYTES, MAX_REQUEST_BYTES
from watchdog.daemon_rig import Daemon

pytestmark = pytest.mark.processes

REQUEST = b'{"verb":"status"}'
TOO_LONG = f"a line of more than {MAX_REQUEST_BYTES} bytes"


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
    ("data", "why"),
    [
        (b'{"verb":"status","x":' + b"9" * 5000 + b"}\n", TOO_LONG),
        (b"x" * (MAX_REQUEST_BYTES + 1), TOO_LONG),
        (b"x" * 2_000_000 + b"\n", TOO_LONG),
        (b"\n" * 2_000_000, "truncated"),
        (b"\xff\n" + b"x" * 100_000, "malformed"),
        (b'{"verb":"status"}', "the end of the line is missing"),
    ],
    ids=("digits", "no-end", "megabytes", "empty-lines", "noise", "cut"),
)
def test_what_is_no_request_is_answered_in_one_line(daemon: Daemon, data: bytes, why: str) -> None:
    """The client can send all of it, and then reads what is wrong with it."""
    daemon.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(daemon.directory / SOCKET_NAME))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as answers:
            (answer,) = answers.readlines()
    reply = json.loads(answer)
    assert reply["ok"] is False
    assert reply["error"].startswith("not a request: ")
    assert why in reply["error"]


def test_a_client_that_goes_on_after_its_answer_is_dropped(daemon: Daemon) -> None:
    """What comes behind a line that is none is read away up to a bound."""
    daemon.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(daemon.directory / SOCKET_NAME))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            sock.sendall(b"x" * (4 * MAX_IGNORED_BYTES))
        assert TOO_LONG in sock.recv(4096).decode()
    assert daemon.status()["state"] == "serving"
