"""A watchdog's loop in this very process, turned by the test; its workers are real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from tidegate.config import LoadedConfig
from tidegate.core.fleet.lifecycle import Timing
from tidegate.core.protocol.control import ControlReply, ControlRequest
from tidegate.core.settings import DrainLimits, Memory, Settings
from tidegate.watchdog.control.client import SOCKET_NAME
from tidegate.watchdog.parts import Setup
from tidegate.watchdog.pid_file import PID_FILE_NAME, PidFile
from tidegate.watchdog.watchdog import Watchdog

HERE = Path(__file__).parent
Socket = socket.socket  # also while a test has calls of the watchdog fail
LIMIT_S = 12.0
QUICK = Timing(
    tick_s=0.05,
    kill_wait_s=0.1,
    backoff_first_s=0.01,
    backoff_max_s=0.02,
    drain_margin_s=0.2,
    reply_s=0.5,
    configured_s=0.5,
)


class Loop:
    """What a test does with it. `load` may be replaced to be what the config file says."""

    def __init__(self, directory: Path, timing: Timing = QUICK, **others: Any) -> None:
        """A watchdog that has yet to begin; `others` are of its setup."""
        self.directory = directory
        self.load: Callable[[], LoadedConfig] = self.good
        self.ready = False
        self.pid_file = PidFile(directory / PID_FILE_NAME)
        self.pid_file.hold()
        setup: dict[str, Any] = {
            "load": lambda: self.load(),  # noqa: PLW0108  (a test replaces it)
            "stand_in": lambda reason: msgspec.structs.replace(self.good(), parked=reason),  # type: ignore[type-var]
            "runtime_dir": directory,
            "first_runtime_dir": directory,
            "state_dir": directory,
            "passed": [],
            "pid_file": self.pid_file,
            "inherited": None,
            "park": False,
            "banner": self._ready,
            "worker_command": [sys.executable, str(HERE / "fake_worker.py")],
            "timing": timing,
        }
        self.watchdog = Watchdog(Setup(**setup | others))

    def _ready(self, *_: object) -> None:
        self.ready = True

    def good(self) -> LoadedConfig:
        """A config that listens on a free port."""
        return LoadedConfig(
            settings=Settings(
                listen=["127.0.0.1:0"],
                memory=Memory(budget_bytes=512 << 20),
                drain=DrainLimits(stop_limit_s=0.2, recycle_limit_s=5.0),
            ),
            secrets={},
            tokens=[],
            path=self.directory / "config.toml",
            place=self.directory / "config.toml",
            warnings=[],
        )

    def begin(self) -> None:
        """Start, and turn until the first worker serves."""
        self.begin_alone()
        self.until(lambda: self.ready and self.serving is not None, "a worker serves")

    # The parts of `Watchdog.serve`, so that a test can look between two turns. They stay private:
    # whatever else began a watchdog and did not turn it would have none.

    def begin_alone(self) -> None:
        """Start."""
        self.watchdog._begin()

    def turn(self) -> None:
        """Wait for the next events, and handle them."""
        self.watchdog._turn()

    def close(self) -> None:
        """Give back what it holds."""
        self.watchdog._end()
        self.pid_file.release()

    @property
    def serving(self) -> Any:
        """The worker."""
        return self.watchdog.parts.generations.serving

    @property
    def faults(self) -> Any:
        """What went wrong."""
        return self.watchdog.parts.faults

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Turn until it comes true."""
        over_s = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < over_s, f"never: {what}; {self.faults!r}"
            assert self.faults.fatal is None, self.faults.fatal
            self.turn()

    def turns(self, count: int) -> None:
        """So many turns."""
        for _ in range(count):
            self.turn()

    def connect(self) -> socket.socket:
        """To the control socket."""
        sock = Socket(socket.AF_UNIX)
        sock.connect(str(self.directory / SOCKET_NAME))
        sock.setblocking(False)
        return sock

    def ask_raw(self, line: bytes) -> bytes:
        """What is answered to a line; empty if it hung up."""
        with self.connect() as sock:
            sock.sendall(line)
            got = bytearray()
            is_over = False

            def hears() -> bool:
                nonlocal is_over
                with contextlib.suppress(BlockingIOError, ConnectionResetError):
                    data = sock.recv(1 << 20)
                    is_over = not data
                    got.extend(data)
                return is_over or got.endswith(b"\n")

            self.until(hears, f"an answer to {line[:60]!r}")
            return bytes(got)

    def ask(self, verb: str, **fields: Any) -> ControlReply:
        """One request."""
        request = ControlRequest(verb=verb, **fields)
        return msgspec.json.decode(
            self.ask_raw(msgspec.json.encode(request) + b"\n"), type=ControlReply
        )

    def is_well(self) -> None:
        """Asserts that it answers, and that its worker beats."""
        self.until(lambda: self.ask("status").ok, "status is answered")
        # Behind the question: a fault in a worker's line has that worker replaced.
        self.until(lambda: self.serving is not None, "a worker serves")
        worker = self.serving
        beat = worker.beat
        self.until(lambda: self.serving is not worker or worker.beat is not beat, "it beats")

    def end(self) -> None:
        """Stop it, whatever state it is in."""
        for worker in self.watchdog.parts.generations:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            worker.process.wait() if hasattr(worker.process, "wait") else None
        self.close()


@contextmanager
def own_signals() -> Iterator[Callable[[], None]]:
    """This process's signals are as before afterwards; call what it gives once a loop is made."""
    numbers = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    handlers = {number: signal.getsignal(number) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])

    def put_back(numbers: set[int]) -> None:
        for number in numbers:
            handler = handlers[number]
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    try:
        # pytest's own time limit is an alarm
        yield lambda: put_back(numbers - {signal.SIGHUP, signal.SIGCHLD})
    finally:
        put_back(numbers)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def loop(directory: Path, timing: Timing = QUICK) -> Iterator[Loop]:
    """A loop; this process's signals are as before afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            started.append(self)
            super().__init__(*args, **kwargs)

        def __del__(self, *_: Any) -> None:
            """One that a fault had the watchdog forget is no warning: it is ended below."""

    with own_signals() as put_back:
        patch = mock.patch.object(subprocess, "Popen", Popen)
        patch.start()
        made = Loop(directory, timing)
        put_back()
        try:
            yield made
        finally:
            patch.stop()
            made.end()
            for process in started:  # also of those that a fault had the watchdog forget
                if getattr(process, "pid", None) is not None:  # else it was never started
                    process.kill()
                    process.wait()
