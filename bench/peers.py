"""A gateway that is measured: its processes, how it is started, and how it is ended.

It stays on its core with everything it starts, and is ended by its process id.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import machine

READY_LIMIT_S = 120.0  # LiteLLM imports for 17 s, and longer with neighbours
STOP_LIMIT_S = 45.0  # tidegate lets answers go on for 30 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is asked of a contender.

    A gateway that takes 20 ms for a request is asked for less, or its queue would be measured, for
    an hour.
    """

    warm: int = 200  # requests before anything is counted
    windows: int = 1  # what the time that is counted is multiplied by
    paced: int = 500  # streams of 20 chunks a second
    held: int = 1000  # streams that wait
    hold_ms: int = 4000  # for how long
    burst: int = 2000  # streams of 300 KB at once
    crowds: int = 5  # times that 1,000 connect at once


class NotReadyError(Exception):
    """A gateway did not start; the message has the end of what it wrote."""


FAST = Size()
SLOW = Size(warm=1000, paced=100, held=500, hold_ms=8000, burst=0, crowds=2)
SLOWEST = Size(warm=64, windows=6, paced=20, held=300, hold_ms=40_000, burst=0, crowds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A gateway that answers at `port`; without a process it is the stub itself."""

    name: str
    port: int
    pid: int | None = None
    ready_s: float = 0.0  # from its start to the first 200 on /healthz
    token: str = ""
    headers: str = ""  # what else a request needs, each line with its end
    is_rewritten: bool = False  # it writes the JSON of answers anew
    size: Size = FAST
    sweep: list[str] | None = None  # the command that releases finished answers

    def processes(self) -> list[int]:
        """Return all its processes, its parent first."""
        return [] if self.pid is None else [self.pid, *machine.descendants(self.pid)]

    def workers(self) -> list[int]:
        """Return the processes that relay: its children, or itself if it has none."""
        processes = self.processes()
        return processes[1:] or processes

    def cpu_s(self) -> float:
        """Read the processor time of all its processes, in seconds."""
        return sum(map(machine.cpu_s, self.processes()))

    def rss_bytes(self) -> int:
        """Read the resident memory of the processes that relay."""
        return sum(map(machine.rss_bytes, self.workers()))


def free_port() -> int:
    """Find a loopback port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_gateway(
    command: list[str], port: int, log: Path, path: str = "/healthz"
) -> Iterator[tuple[int, float]]:
    """Start a gateway, wait until `path` is answered with 200, and end it after the block."""
    started_s = time.monotonic()
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process,
    ):
        try:
            _wait_ready(process, port, path, started_s, log)
            yield process.pid, time.monotonic() - started_s
        finally:
            _stop(process)


def _wait_ready(
    process: subprocess.Popen[bytes], port: int, path: str, started_s: float, log: Path
) -> None:
    while process.poll() is None and time.monotonic() - started_s < READY_LIMIT_S:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_LIMIT_S)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass  # Not yet.
        finally:
            connection.close()
        time.sleep(0.002)
    tail = log.read_text(errors="replace")[-2000:]
    raise NotReadyError(f"{process.args!r} is not ready on port {port}:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    children = machine.descendants(process.pid)
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        print(f"{process.args!r} does not stop and is killed", file=sys.stderr)
        children += machine.descendants(process.pid)
        process.kill()
        process.wait()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
