"""Asking the running watchdog over its control socket."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tidegate.core.decoding import Undecodable
from tidegate.core.protocol.control import ControlReply, ControlRequest, decode_reply
from tidegate.core.protocol.lines import MAX_LINE_BYTES, ChannelError, LineSplitter

SOCKET_NAME = "control.sock"
_READ_BYTES = 64 * 1024
RETRY_S = 0.05


class NotRunning(Exception):
    """No watchdog answers at the control socket."""


def ask(runtime_dir: Path, request: ControlRequest, timeout_s: float) -> ControlReply:
    """Ask the running watchdog.

    Raises NotRunning, TimeoutError when no answer comes, or Undecodable for one that is none.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            _connect(sock, str(runtime_dir / SOCKET_NAME), timeout_s)
            sock.sendall(msgspec.json.encode(request) + b"\n")
            line = next(_lines(sock), None)
        except TimeoutError:
            raise
        except ChannelError as error:
            raise Undecodable(str(error)) from error
        except OSError as error:
            raise NotRunning(f"{runtime_dir / SOCKET_NAME}: {error.strerror or error}") from error
    if line is None:
        raise NotRunning("tidegate ended before it answered")
    return decode_reply(line)


def _connect(sock: socket.socket, path: str, timeout_s: float) -> None:
    """Connect within the limit. Raises TimeoutError, or OSError when no watchdog listens.

    A Unix socket with a time limit is told at once, by EAGAIN, that the other side's queue is full.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                raise TimeoutError("its queue stays full") from None
            time.sleep(RETRY_S)
        else:
            return


def _lines(sock: socket.socket) -> Iterator[bytes]:
    splitter = LineSplitter(MAX_LINE_BYTES)
    while data := sock.recv(_READ_BYTES):
        yield from splitter.feed(data)
