"""The runtime directory of a real tidegate is removed while it serves."""

from __future__ import annotations

import os
import shutil
import signal
from typing import Any

from fakes.gateway import Gateway, StartGateway
from fakes.machine import wait_until
from tidegate.watchdog.control.client import NotRunning


def finds(running: Gateway) -> Any:
    """The status, once it can be asked again."""
    try:
        return running.status()
    except NotRunning:
        return None


def serving(running: Gateway) -> int | None:
    """The worker that serves, if there is one."""
    status = finds(running)
    return status["worker"]["pid"] if status and status["worker"] else None


def test_it_is_made_anew(gateway: StartGateway) -> None:
    """Asking, a recycle, the next worker and a stop work as before; a second start is refused."""
    running = gateway()
    former = running.worker_pid()
    shutil.rmtree(running.runtime_dir)
    wait_until(lambda: finds(running), 60, "it can be asked")
    status = running.status()
    assert status["worker"]["pid"] == former
    sock = running.runtime_dir / f"worker-{status['generation']}.sock"
    wait_until(sock.is_socket, 10, "the worker listens for the other generation again")
    assert (running.runtime_dir / "tidegate.pid").read_text() == f"{running.pid}\n"
    assert "already running" in running.command("run").stderr
    os.kill(former, signal.SIGKILL)
    wait_until(lambda: serving(running) not in (former, None), 30, "another worker serves")
    running.ask("recycle")
    shutil.rmtree(running.runtime_dir)
    os.kill(running.worker_pid_of_process(), signal.SIGKILL)  # in the same moment
    wait_until(lambda: finds(running) and running.is_ready(), 60, "a worker serves again")
    assert running.command("stop").returncode == 0
    assert running.process.wait(30) == 0


def test_where_it_cannot_be_made_the_state_directory_serves(gateway: StartGateway) -> None:
    """The command line looks there second; a repair says so; it goes back when it can."""
    running = gateway()
    shutil.rmtree(running.runtime_dir)
    running.runtime_dir.write_text("in the way")
    stand_in = running.state_dir / "run"
    wait_until((stand_in / "control.sock").is_socket, 60, "it serves from elsewhere")
    told = running.command("status", "--json")
    assert told.returncode == 0, told.stderr
    wait_until(
        lambda: "runtime-directory-gone" in running.command("status", "--json").stdout,
        30,
        "a repair",
    )
    former = int(running.worker_pid_of_process())
    os.kill(former, signal.SIGKILL)
    wait_until(running.is_ready, 30, "another worker serves")
    assert running.command("recycle").returncode == 0
    assert running.command("upgrade").returncode == 0
    running.runtime_dir.unlink()
    wait_until(lambda: finds(running), 60, "it is back")
    assert not (stand_in / "control.sock").exists()
    assert running.command("stop").returncode == 0
    assert running.process.wait(30) == 0
