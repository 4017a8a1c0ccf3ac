"""`tidegate run` in odd surroundings: descriptors that are closed, keys in its environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from fakes.gateway import StartGateway
from fakes.machine import free_port, wait_until
from tidegate.core.protocol.control import ControlRequest
from tidegate.watchdog.control.client import NotRunning, ask

KEY = "sk-canary-3141592653"


@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "0<&-", "0<&- 1>&- 2>&-"])
def test_it_serves_with_its_descriptors_closed(tmp_path: Path, closed: str) -> None:
    """It serves, upgrades and stops; 0, 1 and 2 of it and its worker are no sockets."""
    (tmp_path / "config.toml").write_text(f'listen = "127.0.0.1:{free_port()}"\n')
    places = f"--config {tmp_path}/config.toml --state-dir {tmp_path}/s --runtime-dir {tmp_path}/r"
    command = f"exec {sys.executable} -m tidegate run {places} {closed}"
    process = subprocess.Popen(["/bin/sh", "-c", command], stdout=-1, stderr=-1)
    try:

        def serves() -> bool:
            assert process.poll() is None, process.communicate()
            try:
                reply = ask(tmp_path / "r", ControlRequest(verb="status"), 20)
            except NotRunning:
                return False
            return b'"state":"serving"' in bytes(reply.result)

        wait_until(serves, 30, "it serves")
        assert ask(tmp_path / "r", ControlRequest(verb="upgrade", wait=False), 60).ok
        wait_until(serves, 30, "it serves after an upgrade")
        for pid in (process.pid, *children(process.pid)):
            for fd in range(3):
                assert "socket" not in str(Path(f"/proc/{pid}/fd/{fd}").readlink()), (pid, fd)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("on_terminal", [True, False])
def test_the_banner_is_for_a_terminal_and_a_log_has_one_line(
    tmp_path: Path, on_terminal: bool
) -> None:
    """With what a person pastes on the one, and where it serves in the other."""
    (tmp_path / "config.toml").write_text(f'listen = "127.0.0.1:{free_port()}"\n')
    log = tmp_path / "log"
    read_fd, write_fd = os.openpty() if on_terminal else os.pipe()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tidegate", "run", "--log-file", str(log)),
            *("--config", str(tmp_path / "config.toml"), "--state-dir", str(tmp_path / "s")),
            *("--runtime-dir", str(tmp_path / "r")),
        ],
        stdout=write_fd,
    )
    told = b""
    try:
        os.close(write_fd)
        os.set_blocking(read_fd, False)

        def has_told() -> bool:
            nonlocal told
            with suppress(BlockingIOError):
                told += os.read(read_fd, 4096)
            return (b"Try it" in told) if on_terminal else "is ready: http" in log.read_text()

        wait_until(lambda: log.exists() and has_told(), 30, "it is told that it serves")
        assert ("is ready: http" in log.read_text(), "Try it" in log.read_text()) == (
            not on_terminal,
            False,
        )
        assert (told == b"") is not on_terminal
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(30)
        os.close(read_fd)


def children(pid: int) -> list[int]:
    """Of a process."""
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_key_is_in_no_workers_environment(gateway: StartGateway) -> None:
    """Not while parked, not after a reload that names it, not after an upgrade or a death."""
    running = gateway("oops = [", env={"CLOUD_KEY": KEY}, flags=("--park",), until_ready=False)

    def worker() -> int | None:
        """The one that serves; None while there is none, for another one takes its place."""
        try:
            found = running.status()["worker"]
        except NotRunning:
            return None
        return found["pid"] if found else None

    def environment() -> bytes:
        """Of a worker that served before and after it was read; else empty."""
        if (pid := worker()) is None:
            return b""
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return b""
        return environ if worker() == pid else b""

    def check(but: int | None = None) -> None:
        seen = [b""]

        def has_other() -> bool:
            seen.append(environment() if worker() != but else b"")
            return bool(seen[-1])

        wait_until(has_other, 30, "a worker that stays")
        assert KEY.encode() not in seen[-1]
        assert b"PATH=" in seen[-1]

    check()
    upstream = '[[upstream]]\nname = "cloud"\nurl = "http://127.0.0.1:9"\n'
    listen = f'listen = "127.0.0.1:{running.port}"\n'
    running.config.write_text(listen + upstream)
    wait_until(lambda: running.status()["state"] != "parked", 30, "it serves")
    check()
    running.config.write_text(f'{listen}{upstream}api_key_env = "CLOUD_KEY"\n')
    running.ask("reload")
    check()
    running.ask("upgrade")
    check()
    former = running.worker_pid()
    os.kill(former, 9)
    check(but=former)


@pytest.mark.skipif(sys.platform != "linux", reason="another process's limits are set")
def test_a_bound_that_few_descriptors_lower_is_a_repair_when_it_is_reached(
    gateway: StartGateway,
) -> None:
    """The worker has room for 96 clients, whatever the setting says: 90 are nine tenths of that."""
    running = gateway()
    psutil.Process(running.worker_pid()).rlimit(psutil.RLIMIT_NOFILE, (256, 256))
    listen = f'listen = "127.0.0.1:{running.port}"\n'
    running.config.write_text(listen + "[limits]\nmax_connections = 4000\n")
    running.ask("reload")
    with ExitStack() as clients:
        for _ in range(90):
            client = socket.create_connection(("127.0.0.1", running.port), timeout=30)
            clients.enter_context(client)
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        wait_until(lambda: running.status()["repairs"], 30, "a repair is open")
        (found,) = running.status()["repairs"]
    assert found["id"] == "connections-full"
    assert "90 of 96" in found["cause"]
    assert "limits.max_connections is 4000" in found["cause"]
    assert "open files to 8256" in found["fix"]
