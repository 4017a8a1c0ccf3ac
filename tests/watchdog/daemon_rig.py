"""A running watchdog for the process tests, with every period scaled down and nothing left over."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from fakes.machine import wait_until
from tidegate.core.protocol.control import ControlReply, ControlRequest
from tidegate.watchdog.control import client

HERE = Path(__file__).parent
LIMIT_S = 30.0  # for any condition, on a machine that others use too
# What happens is scaled to a tenth or so; what must not happen has its real limit or more, for
# on a busy machine a healthy worker may say nothing for seconds.
TIMING = {
    "tick_s": 0.1,
    "start_limit_s": LIMIT_S,
    "kill_wait_s": 0.5,
    "drain_margin_s": 0.5,
    "backoff_first_s": 0.05,
    "reply_s": LIMIT_S,
    "configured_s": LIMIT_S,
}
HANGS = {"beat_limit_s": 1.5}  # for tests in which a worker is to be found hanging


class Daemon:
    """One watchdog with scripted workers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config.json"
        self.ready_file = directory / "ready"
        self.error_file = directory / "stderr"
        self.log_file: Path | None = None
        self.settings: dict[str, Any] = {
            "listen": ["127.0.0.1:0"],
            "memory": {"budget": 512 * 1024 * 1024},
            "drain": {"stop_limit_s": 2.0, "recycle_limit_s": 20.0},
        }
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, **settings: Any) -> None:
        self.settings |= settings
        beside = self.config.with_name("config.json.new")
        beside.write_text(json.dumps(self.settings))
        beside.replace(self.config)  # no process reads one that is half written

    def start(
        self,
        *worker: str,
        park: bool = False,
        until_ready: bool = True,
        timing: dict[str, float] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> Daemon:
        if not self.config.exists():
            self.write()
        plan = {
            "config": str(self.config),
            "runtime_dir": str(self.directory),
            "ready_file": str(self.ready_file),
            "worker": list(worker),
            "timing": TIMING | (timing or {}),
            "park": park,
            "log_file": str(self.log_file) if self.log_file else None,
        }
        with self.error_file.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "run_watchdog.py"), json.dumps(plan)],
                stderr=errors,
                env=os.environ | self.environment,
                pass_fds=pass_fds,
            )
        if until_ready:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        try:
            wait_until(self.ready_file.exists, LIMIT_S, "the first worker is ready")
        except AssertionError as late:
            raise AssertionError(f"{late}; log: {self.log()}") from None
        wait_until(self.ready_file.read_text, LIMIT_S, "the banner is whole")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = json.loads(self.ready_file.read_text())["addresses"][0].rpartition(":")
        return host, int(port)

    def log(self) -> str:
        text = self.error_file.read_text() if self.error_file.exists() else ""
        return text + (
            self.log_file.read_text() if self.log_file and self.log_file.exists() else ""
        )

    def wait_logged(self, text: str) -> None:
        """Lines are written by a thread, so they may come after what they tell of."""
        wait_until(lambda: text in self.log(), LIMIT_S, f"the log says {text!r}")

    def ask(self, verb: str, timeout_s: float = 20.0, **fields: bool) -> ControlReply:
        return client.ask(self.directory, ControlRequest(verb=verb, **fields), timeout_s)

    def result(self, verb: str, **fields: bool) -> Any:
        reply = self.ask(verb, **fields)
        assert reply.ok, reply.error
        return msgspec.json.decode(reply.result)

    def status(self) -> dict[str, Any]:
        return self.result("status")

    def worker(self) -> dict[str, Any]:
        """The serving worker, once there is one."""
        return wait_until(lambda: self.status()["worker"], LIMIT_S, "a worker serves")

    def get(self, path: str = "/", address: tuple[str, int] | None = None) -> str:
        """The generation that answers; "" when the connection was accepted and then lost."""
        with socket.create_connection(address or self.address, timeout=LIMIT_S) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            answer = b""
            with suppress(ConnectionResetError):
                while data := client.recv(4096):
                    answer += data
        return answer.partition(b"\r\n\r\n")[2].decode()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(LIMIT_S)

    def end(self) -> None:
        """SIGKILL whatever is left; workers follow by their channel's end."""
        if self.process is None:
            return
        workers = {int(n) for n in re.findall(r"starts, pid (\d+)", self.log())}
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(LIMIT_S)
        for pid in workers:
            if is_alive(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        wait_until(
            lambda: not any(is_alive(pid) for pid in workers), LIMIT_S, "all workers are gone"
        )


def is_alive(pid: int) -> bool:
    """Whether our fake worker of that pid runs; a zombie does not, nor does a stranger."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and b"fake_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
