"""Lines of JSON for the control socket and the channel, and how to send them to a real watchdog."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from pathlib import Path

from tidegate.core.protocol.worker import (
    ConfigChanged,
    Configure,
    Draining,
    Failed,
    Heartbeat,
    ListRuns,
    Message,
    Ready,
    RunList,
    StateUpdate,
    Sweep,
    Swept,
    encode,
)
from tidegate.core.settings import Settings

WORDS = [
    *(b'"type":', b'"verb":"status",', b"null", b"true", b"1e999", b"-1", b"[]", b"{}", b'"'),
    *(b"\\ud800", b"\\u0000", b"\xed\xa0\x80", b"\xff\xfe", b"[" * 3_000, b'{"a":' * 3_000),
    *(b"9" * 5_000, b"9" * 25, b"-9223372036854775809", b"NaN", b"0.1e-5000", b"//", b"\x00"),
]
# Questions that change nothing; a changed one that becomes "stop" would be obeyed.
ASKED = [
    *(json.dumps({"verb": verb}).encode() for verb in ("status", "runs", "models", "repairs")),
    b'{"verb":"nonsense","wait":false,"finished":true}',
    b'{"verb": "status", "wait": true, "finished": false}',
]
FORBIDDEN = (b"stop", b"recycle", b"upgrade", b"restart", b"reload", b"bundle", b"sweep")

WAIT_S = 10.0


def whole(message: Message) -> bytes:
    """A message without the end of its line."""
    return encode(message).rstrip(b"\n")


FROM_WORKER = [
    *map(
        whole,
        (
            Ready(pid=1, found=[], model="m"),
            Heartbeat(
                rss_bytes=1, ledger_bytes=1, loop_lag_ms=0.5, runs_active=1, runs_finished=2,
                runs_total=3, swept_runs=0, swept_bytes=0, swept_last_reason=None,
            ),
            Swept(request=1, runs=1, bytes=1, reasons={"stuck": 1}),
            RunList(request=1, runs=[], total=0),
            ConfigChanged(),
            Draining(),
            Failed(reason="it rains"),
        ),
    )
]  # fmt: skip
FROM_WATCHDOG = [
    *map(
        whole,
        (
            Configure(generation=1, settings=Settings(), tokens=[], secrets={}, listeners=[],
                      peer_socket="/run/x", config_file=None, request=1),
            StateUpdate(level=0, ledger_limit_bytes=1),
            ListRuns(request=1, limit=10),
            Sweep(request=1, reason="asked"),
        ),
    )
]  # fmt: skip


class Control:
    """A real watchdog's control socket."""

    def __init__(self, runtime_dir: Path) -> None:
        self._path = str(runtime_dir / "control.sock")

    def connect(self) -> socket.socket:
        """A connection. Where the queue before the watchdog is full, it is tried again."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(WAIT_S)
        deadline_s = time.monotonic() + WAIT_S
        while True:
            try:
                sock.connect(self._path)
            except BlockingIOError:
                assert time.monotonic() < deadline_s, "the queue stays full"
                time.sleep(0.01)
            else:
                return sock

    def tell(self, line: bytes) -> bytes:
        """Send it, close the sending side, and return what came until the other side closed."""
        came = b""
        with self.connect() as sock, suppress(ConnectionError, BrokenPipeError):
            sock.sendall(line)
            sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(65536):
                came += data
        return came
