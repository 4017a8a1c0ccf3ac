"""The contenders: no gateway at all, nginx, and tidegate, each in front of the same stub.

Each starts fresh in a directory of its own, stays on its core with everything it starts, and is
ended by its process id.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import machine
from tools import Stub, pinned

READY_LIMIT_S = 30.0
STOP_LIMIT_S = 45.0  # tidegate lets answers go on for 30 s
TIDEGATE = Path(sys.executable).parent / "tidegate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A gateway that answers at `port`; without a process it is the stub itself."""

    name: str
    port: int
    pid: int | None = None
    ready_s: float = 0.0  # from its start to the first 200 on /healthz
    token: str = ""
    sweep: list[str] | None = None  # the command that releases finished answers

    def workers(self) -> list[int]:
        """Return the processes that relay."""
        return [] if self.pid is None else machine.descendants(self.pid)

    def cpu_s(self) -> float:
        """Read the processor time of all its processes, in seconds."""
        if self.pid is None:
            return 0.0
        return sum(machine.cpu_s(pid) for pid in (self.pid, *self.workers()))

    def rss_bytes(self) -> int:
        """Read the resident memory of the processes that relay."""
        return sum(machine.rss_bytes(pid) for pid in self.workers())


Start = Callable[[Stub, int, Path], AbstractContextManager[Peer]]


@contextmanager
def start_direct(stub: Stub, core: int, folder: Path) -> Iterator[Peer]:
    """Start nothing in between: the harness measures itself."""
    yield Peer(name="direct", port=stub.port)


@contextmanager
def start_nginx(stub: Stub, core: int, folder: Path) -> Iterator[Peer]:
    """Start nginx: one worker, no buffering of answers, connections to the stub kept."""
    port = free_port()
    config = folder / "nginx.conf"
    # Root would otherwise hand the worker to a user who may not exist and cannot write here.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(f"""{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_requests 100000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream stub {{
        server 127.0.0.1:{stub.port};
        keepalive 64;
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /healthz {{ return 200; }}
        location / {{
            proxy_pass http://stub;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 3600s;
        }}
    }}
}}
""")
    command = pinned(core, "nginx", "-p", folder, "-c", config, "-e", folder / "error.log")
    with run_gateway(command, port, folder / "nginx.log") as (pid, ready_s):
        yield Peer(name="nginx", port=port, pid=pid, ready_s=ready_s)


@contextmanager
def start_tidegate(stub: Stub, core: int, folder: Path) -> Iterator[Peer]:
    """Start tidegate as people run it: defaults, tokens, answers recorded, the guard acting."""
    from tidegate.config import tokens  # noqa: PLC0415  (the other peers run without tidegate)

    port = free_port()
    config, state_dir, runtime_dir = folder / "config.toml", folder / "state", folder / "run"
    config.write_text(f"""listen = "127.0.0.1:{port}"
[[upstream]]
name = "stub"
url = "http://127.0.0.1:{stub.port}"
""")
    for directory in (state_dir, runtime_dir):
        directory.mkdir(mode=0o700)
    token = tokens.new(state_dir / "tokens", "bench")
    places = ["--config", config, "--state-dir", state_dir, "--runtime-dir", runtime_dir]
    command = pinned(core, TIDEGATE, "run", *places)
    with run_gateway(command, port, folder / "tidegate.log") as (pid, ready_s):
        yield Peer(
            name="tidegate",
            port=port,
            pid=pid,
            ready_s=ready_s,
            token=token,
            sweep=[str(part) for part in (TIDEGATE, "sweep", "--finished", *places)],
        )


STARTS: dict[str, Start] = {
    "direct": start_direct,
    "nginx": start_nginx,
    "tidegate": start_tidegate,
}


def why_missing(name: str) -> str | None:
    """Say why this peer cannot run here, or None."""
    if name == "nginx" and shutil.which("nginx") is None:
        return "nginx is not installed"
    if name == "tidegate" and not TIDEGATE.exists():
        return f"{TIDEGATE} does not exist"
    return None


def free_port() -> int:
    """Find a loopback port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_gateway(command: list[str], port: int, log: Path) -> Iterator[tuple[int, float]]:
    """Start a gateway, wait until it is ready, and end it and its children after the block."""
    started_s = time.monotonic()
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process,
    ):
        try:
            yield process.pid, _wait_ready(process, port, started_s, log)
        finally:
            _stop(process)


def _wait_ready(process: subprocess.Popen[bytes], port: int, started_s: float, log: Path) -> float:
    while process.poll() is None and time.monotonic() - started_s < READY_LIMIT_S:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_LIMIT_S)
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return time.monotonic() - started_s
        except (OSError, http.client.HTTPException):
            pass  # Not yet.
        finally:
            connection.close()
        time.sleep(0.002)
    tail = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{process.args!r} is not ready on port {port}:\n{tail}")


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
