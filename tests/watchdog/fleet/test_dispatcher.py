"""What workers say reaches the parts that it concerns."""

from __future__ import annotations

import json
import os
import signal

import pytest

from watchdog.daemon_rig import Daemon, wait_until

pytestmark = pytest.mark.processes


def test_each_generation_knows_the_other_at_once(daemon: Daemon) -> None:
    """When `--no-wait` returns, both have been told where the other is and what it is doing."""
    # No tick comes in between that could have told them.
    daemon.start("--drain-s", "20", timing={"tick_s": 60.0, "gap_s": 300.0})
    assert daemon.ask("recycle", wait=False).ok
    new = daemon.directory / "worker-2.sock"
    wait_until(lambda: f"worker 1 drains and knows of {new}" in daemon.log(), "it heard of it")
    facts = json.loads(daemon.get("/facts"))
    assert facts["peer_socket"] == str(daemon.directory / "worker-1.sock")
    assert facts["peer_active"] == {"box": 1}


def test_totals_outlive_a_worker(daemon: Daemon) -> None:
    """Runs counted by one generation are still counted when another serves."""
    daemon.start()
    daemon.get()
    daemon.get()
    wait_until(lambda: daemon.status()["runs"]["total"] == 2, "both are counted")
    assert daemon.ask("recycle").ok
    daemon.get()
    wait_until(lambda: daemon.status()["runs"]["total"] == 3, "the third is added")


def test_worker_that_talks_nonsense_is_replaced(daemon: Daemon) -> None:
    """A line that is no message costs the worker its place."""
    daemon.start()
    daemon.get("/garbage")
    wait_until(lambda: daemon.status()["generation"] == 2, "the replacement serves")


@pytest.mark.long
def test_stuck_worker_channel_never_blocks(daemon: Daemon) -> None:
    """A worker that reads nothing while it is asked a thousand times keeps no other waiting."""
    daemon.start(timing={"beat_limit_s": 60.0, "reply_s": 0.1})
    os.kill(daemon.worker()["pid"], signal.SIGSTOP)
    for _ in range(40):
        assert daemon.ask("sweep").error == "worker 1 did not answer sweep within 0.1 s"
    assert daemon.status()["generation"] == 1


def test_failing_upstream_is_degraded(daemon: Daemon) -> None:
    """The state is degraded while an upstream fails."""
    daemon.start("--upstream", "failing")
    wait_until(lambda: daemon.status()["state"] == "degraded", "it says so")
    assert daemon.status()["upstreams"][0]["name"] == "box"
