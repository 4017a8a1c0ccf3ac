"""A real gateway for tests: `tidegate run` with its process tree, directories and log."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from fakes.machine import family, free_port, is_alive, wait_until
from tidegate.core.protocol.control import ControlRequest
from tidegate.watchdog.control.client import ask

READY_LIMIT_S = 30.0
STOP_LIMIT_S = 30.0


@dataclass
class Gateway:
    """A running `tidegate run` with a process tree, directories and a log of its own."""

    process: subprocess.Popen[bytes]
    base_url: str
    config: Path
    state_dir: Path
    runtime_dir: Path
    log: Path
    expect_traceback: bool = False
    expected_exit: int = 0
    ever: set[psutil.Process] = field(default_factory=set)  # every process that was seen of it

    @classmethod
    def of(
        cls,
        process: subprocess.Popen[bytes],
        folder: Path,
        port: int,
        config: str = "config.toml",
    ) -> Gateway:
        """It has all that is its own in `folder`, under the usual names."""
        return cls(
            process,
            f"http://127.0.0.1:{port}",
            folder / config,
            folder / "state",
            folder / "run",
            folder / "log",
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.base_url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """The watchdog."""
        return self.process.pid

    def ask(self, verb: str, timeout_s: float = 30.0, **values: bool) -> dict[str, Any]:
        """What the command line asks over control.sock. Fails when it is refused."""
        reply = ask(self.runtime_dir, ControlRequest(verb=verb, **values), timeout_s)
        assert reply.ok, reply.error
        answer: Any = msgspec.json.decode(reply.result)
        return answer if isinstance(answer, dict) else {"result": answer}

    def status(self) -> dict[str, Any]:
        """`tidegate status --json`."""
        self.remember()
        return self.ask("status")

    def worker_pid(self) -> int:
        """The serving worker, once there is one: it may just be replaced."""
        found: list[int] = []

        def has_one() -> bool:
            worker = self.status()["worker"]
            if worker is not None:
                found.append(int(worker["pid"]))
            return bool(found)

        wait_until(has_one, 30, "a worker serves")
        return found[0]

    def remember(self) -> None:
        """Notes the processes of now, so that none of them can stay behind unseen."""
        self.ever.update(family(self.pid))

    def worker_pid_of_process(self) -> int:
        """The youngest child of the watchdog, whether or not it can be asked."""
        return max(psutil.Process(self.pid).children(), key=lambda each: each.create_time()).pid

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`tidegate ARGUMENTS` against this gateway."""
        return subprocess.run(
            [
                sys.executable, "-m", "tidegate", *arguments,
                "--config", str(self.config),
                "--state-dir", str(self.state_dir),
                "--runtime-dir", str(self.runtime_dir),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )  # fmt: skip

    def is_ready(self) -> bool:
        """Whether /readyz says 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def wait_ready(self) -> None:
        """Waits until it can serve; shows the log when it ends instead."""
        deadline_s = time.monotonic() + READY_LIMIT_S
        while not self.is_ready():
            ended = self.process.poll()
            assert ended is None, f"ended with {ended}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline_s, f"not ready:\n{self.log.read_text()}"
            time.sleep(0.02)
        self.remember()

    def wait_logged(self, text: str) -> None:
        """A thread writes the log, so a line may come after what it tells of."""
        wait_until(lambda: text in self.log.read_text(), 10, f"the log says {text!r}")

    def stop(self) -> int:
        """Stops it as a service manager would; returns the exit code."""
        self.remember()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_LIMIT_S)

    def finish(self) -> None:
        """Stops it, and checks that it went as it should."""
        assert self.stop() == self.expected_exit, self.log.read_text()[-4000:]
        wait_until(lambda: not any(map(is_alive, self.ever)), 5, "no process of it is left")
        text = self.log.read_text()
        assert self.expect_traceback or "Traceback" not in text, text[-8000:]

    def kill(self) -> None:
        """Ends whatever is left of it, by pid."""
        for process in self.ever | set(family(self.pid)):
            if is_alive(process):
                process.kill()
        self.process.wait(10)


PROGRAM = ("-m", "tidegate")


def _launch(
    folder: Path,
    toml: str,
    port: int,
    env: dict[str, str],
    *flags: str,
    program: Sequence[str] = PROGRAM,
) -> Gateway:
    config = folder / "config.toml"
    config.write_text(f'listen = "127.0.0.1:{port}"\n{toml}')
    log = folder / "log"
    command = [
        sys.executable, *program, "run", *flags,
        "--config", str(config),
        "--state-dir", str(folder / "state"),
        "--runtime-dir", str(folder / "run"),
    ]  # fmt: skip
    scrubbed = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TIDEGATE_", "NOTIFY_", "WATCHDOG_", "LISTEN_"))
    }
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, env=scrubbed | env
        )
    return Gateway.of(process, folder, port)


StartGateway = Callable[..., Gateway]


@contextmanager
def gateways() -> Iterator[StartGateway]:
    """Starts real gateways: `start(toml, env=…, flags=…)`, each stopped and checked at the end.

    Then no process of theirs may be left, the exit must be as expected (0), and their logs must
    hold no traceback.
    """
    started: list[Gateway] = []
    # Not pytest's own folder: its path is too long for a Unix socket.
    root = Path(tempfile.mkdtemp(prefix="tg-"))

    def start(
        toml: str = "",
        *,
        env: dict[str, str] | None = None,
        flags: tuple[str, ...] = (),
        until_ready: bool = True,
        after: Gateway | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> Gateway:
        """`after` is one that has ended, whose directories the new one has; `program` a fake."""
        folder = root / str(len(started)) if after is None else after.config.parent
        folder.mkdir(exist_ok=after is not None)
        running = _launch(folder, toml, free_port(), env or {}, *flags, program=program)
        started.append(running)
        if until_ready:
            running.wait_ready()
        return running

    try:
        yield start
        for running in started:
            running.finish()
    finally:
        for running in started:
            running.kill()
        shutil.rmtree(root, ignore_errors=True)
