"""`tidegate run` with nothing replaced: what it leaves behind, and what it takes up by itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest

from fakes.gateway import Gateway, StartGateway
from fakes.machine import is_alive, wait_until
from fakes.unconfigured import without_config

BOX = '[[upstream]]\nname = "box"\nurl = "http://127.0.0.1:9"\n'


@pytest.fixture
def unmade() -> Iterator[Gateway]:
    """A gateway of a user who has a folder for the config, and nothing in it."""
    with without_config(has_folder=True) as running:
        yield running


@pytest.fixture
def started(gateway: StartGateway) -> Gateway:
    """A gateway with an empty config."""
    running: Gateway = gateway()
    return running


def sockets(running: Gateway) -> set[str]:
    return {path.name for path in running.runtime_dir.iterdir()}


def upstreams(running: Gateway) -> list[str]:
    return [upstream["name"] for upstream in running.status()["upstreams"]]


def test_a_config_that_appears_is_taken_up_and_one_that_goes_is_missed(
    unmade: Gateway,
) -> None:
    """A first config needs no restart; without it the defaults are back, and the log says so."""
    running = unmade
    missing = f"no config file at {running.config}; the defaults are in force"
    shown = f"{running.config} (none there; defaults)"
    wait_until(lambda: shown in running.log.read_text(), 10, "the banner says so")
    assert running.log.read_text().count(missing) == 1
    by_default = upstreams(running)
    assert "box" not in by_default

    running.config.write_text(BOX)
    wait_until(lambda: upstreams(running) == ["box"], 10, "the new config is in force")

    running.config.write_text("nonsense = 1")
    wait_until(lambda: "reload refused" in running.log.read_text(), 10, "it is refused")
    assert upstreams(running) == ["box"]

    running.config.unlink()
    wait_until(lambda: running.log.read_text().count(missing) == 2, 10, "its end is said")
    wait_until(lambda: "box" not in upstreams(running), 10, "the defaults are in force")


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_a_stopped_worker_does_not_outlive_a_killed_watchdog(started: Gateway) -> None:
    """kill -9 of the watchdog ends the worker at once, even one that cannot run."""
    worker = psutil.Process(started.worker_pid())
    worker.send_signal(signal.SIGSTOP)
    wait_until(lambda: worker.status() == psutil.STATUS_STOPPED, 5, "the worker is stopped")
    started.expected_exit = -signal.SIGKILL
    started.process.kill()
    started.process.wait(10)
    wait_until(lambda: not is_alive(worker), 5, "the worker is gone")


def recycled(running: Gateway) -> None:
    running.ask("recycle", 60.0)


def bereaved(running: Gateway) -> None:
    former = running.worker_pid()
    psutil.Process(former).kill()
    wait_until(
        lambda: (running.status()["worker"] or {"pid": former})["pid"] != former, 20, "replaced"
    )


@pytest.mark.parametrize("befall", [recycled, bereaved, lambda running: None])
def test_a_stop_leaves_nothing_in_the_runtime_directory(
    started: Gateway, befall: Callable[[Gateway], None]
) -> None:
    """No socket, no pid file: neither of the last worker nor of one before it."""
    assert sockets(started) == {"control.sock", "tidegate.pid", "worker-1.sock"}
    befall(started)
    assert len(sockets(started)) == 3
    assert started.stop() == 0
    assert sockets(started) == set()


def test_what_a_killed_tidegate_left_is_no_hindrance(started: Gateway) -> None:
    """A stale control socket, worker sockets and pid file are replaced, and then go as usual."""
    started.remember()
    started.process.kill()
    started.process.wait(10)
    assert sockets(started) == {"control.sock", "tidegate.pid", "worker-1.sock"}
    (started.runtime_dir / "worker-7.sock").touch()
    with started.log.open("ab") as output:
        started.process = subprocess.Popen(
            started.process.args, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    started.wait_ready()
    assert started.status()["watchdog"]["pid"] == started.pid
    assert started.stop() == 0
    assert sockets(started) == set()
