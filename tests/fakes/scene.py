"""What the scenes of the memory guard are played with: load processes and a meter of our own.

The meter reads resident memory as the system that kills for it would: every process of the daemon,
from outside, twenty times a second.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
EVERY_S = 0.05


def with_tests(environ: dict[str, str]) -> dict[str, str]:
    """An environment in which `fakes` can be imported."""
    paths = [str(TESTS), environ.get("PYTHONPATH", "")]
    return environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def python(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A process of ours that talks over pipes."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=with_tests(dict(os.environ)),
        **options,
    )


@contextmanager
def flood_upstream() -> Iterator[str]:
    """The URL of a cheap upstream in a process of its own; see `fakes.flood`."""
    with python("-m", "fakes.flood", "upstream") as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


class Crowd:
    """The clients of a plan, in a process of their own; see `fakes.flood`."""

    def __init__(self, **plan: object) -> None:
        self.process = python("-m", "fakes.flood", "clients", json.dumps(plan))
        self.lines: queue.Queue[str] = queue.Queue()
        self.phases: set[str] = set()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.phases.add(json.loads(line)["phase"])
            self.lines.put(line)
        self.lines.put("")

    def has_said(self, phase: str) -> bool:
        """Whether it has come so far. Fails when it has ended."""
        assert self.process.poll() is None, f"the clients ended before {phase!r}"
        return phase in self.phases

    def wait(self, phase: str, limit_s: float = 120.0) -> dict[str, Any]:
        """What it says of that phase, when it has come so far."""
        while True:
            line = self.lines.get(timeout=limit_s)
            assert line, f"the clients ended before {phase!r}"
            said: dict[str, Any] = json.loads(line)
            if said["phase"] == phase:
                return said

    def finish(self, limit_s: float = 120.0) -> dict[str, Any]:
        """Lets the streams end; what became of all of them."""
        assert self.process.stdin is not None
        self.process.stdin.write("finish\n")
        self.process.stdin.flush()
        found = self.wait("over", limit_s)
        self.process.wait(10)
        return found


@contextmanager
def crowd(**plan: object) -> Iterator[Crowd]:
    """Clients that are gone at the end, whatever happens."""
    made = Crowd(**plan)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait(10)
        for pipe in (made.process.stdin, made.process.stdout):
            assert pipe is not None
            pipe.close()


def processes(pid: int) -> list[int]:
    """A process and its children, without asking for more than one small file."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return [pid]
    return [pid, *map(int, children.split())]


def resident_bytes(pid: int) -> int:
    """What a process has resident; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError):
        return 0


class Meter:
    """Reads the resident memory of a watchdog and its workers until it is told to stop."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak_bytes = 0
        self.last_bytes = 0
        self.readings = 0
        self.started_s = time.monotonic()
        self.peak_at_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def read(self) -> int:
        """What they have resident now."""
        return sum(map(resident_bytes, processes(self.pid)))

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            self.last_bytes = self.read()
            self.readings += 1
            if self.last_bytes > self.peak_bytes:
                self.peak_bytes = self.last_bytes
                self.peak_at_s = time.monotonic() - self.started_s
