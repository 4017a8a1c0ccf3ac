"""Evidence of a running watchdog, whose workers never answer for their inside."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fakes.machine import wait_until
from tidegate.core.protocol.control import ControlReply
from watchdog.daemon_rig import HANGS, LIMIT_S, Daemon

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def bundles(daemon: Daemon) -> list[dict[str, Any]]:
    """Those with a name are whole."""
    paths = sorted((daemon.directory / "bundles").glob("*.json"))
    return [json.loads(path.read_text()) for path in paths]


def test_a_worker_that_says_nothing_is_shown_from_outside(daemon: Daemon) -> None:
    """Who asked is answered after a second, with the path."""
    daemon.start()
    answer = daemon.result("bundle")
    [read] = bundles(daemon)
    assert Path(answer["path"]).stat().st_size == answer["bytes"] > 1000
    assert read["workers"] == {"worker 1": "no answer within 1 s"}
    assert any(line.startswith("VmRSS") for line in read["processes"]["worker 1"]["status"])
    assert read["status"]["state"] == "serving"
    assert daemon.status()["guard"]["bundles"] == 1


def test_the_status_is_answered_while_a_bundle_is_under_way(daemon: Daemon) -> None:
    """The loop waits for no worker."""
    daemon.start()
    replies: list[ControlReply] = []
    asking = threading.Thread(target=lambda: replies.append(daemon.ask("bundle")))
    asking.start()
    answered_before = 0
    while not replies:
        assert daemon.ask("status").ok
        answered_before += not replies
    asking.join()
    assert replies[0].ok
    assert answered_before > 1


def test_a_hung_worker_leaves_evidence_before_it_is_ended(daemon: Daemon) -> None:
    """Its process, as the kernel saw it while it was still there."""
    daemon.start(timing=HANGS)
    pid = daemon.worker()["pid"]
    daemon.get("/hang")
    wait_until(lambda: bundles(daemon), LIMIT_S, "a bundle is written")
    read = bundles(daemon)[0]
    assert read["why"][0]["kind"] == "kill"
    process = read["processes"]["worker 1"]
    assert process["pid"] == pid
    assert any(line.startswith("State:") for line in process["status"])
    wait_until(lambda: daemon.worker()["pid"] != pid, LIMIT_S, "another worker serves")


def test_a_state_directory_that_cannot_be_written_is_no_reason_to_stop(daemon: Daemon) -> None:
    """The command line is told, the log says why, and the daemon serves."""
    daemon.start()
    (daemon.directory / "bundles").write_text("in the way")
    reply = daemon.ask("bundle")
    assert not reply.ok
    assert reply.error is not None
    assert "the log says why" in reply.error
    daemon.wait_logged("no evidence (bundle) could be written")
    assert daemon.get() == "1"


def test_decisions_are_logged_from_the_first_one_on(daemon: Daemon) -> None:
    """In the state directory, for its owner alone."""
    daemon.start()
    log = daemon.directory / "decisions.jsonl"
    wait_until(log.exists, LIMIT_S, "the first decision is written")
    wait_until(lambda: log.read_bytes().endswith(b"\n"), LIMIT_S, "its line is whole")
    assert json.loads(log.read_text().splitlines()[0])["inputs"]["limits"]["budget_bytes"] == 2**29
    assert log.stat().st_mode & 0o077 == 0
