"""The system's unit under a real systemd: its own user, the whole sandbox, nothing taken out."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.private_systemd import on_private_computer

pytestmark = pytest.mark.long


def inside(case: str) -> dict[str, Any]:
    """What the case saw."""
    return on_private_computer("inside_system.py", case)


def test_it_lives_in_its_sandbox() -> None:
    """It streams, is recycled, loses a worker and is reloaded, and may write only where it must."""
    seen = inside("life")
    shown = seen["status"]
    assert (shown["ActiveState"], shown["SubState"]) == ("active", "running")
    assert (shown["User"], shown["NotifyAccess"], shown["WatchdogUSec"]) == (
        "tidegate",
        "main",
        "1min",
    )
    assert " of 1024 MB, 0 runs, up under 1 min" in shown["StatusText"]
    assert shown["NFileDescriptorStore"] == "2"

    assert seen["process"] == {
        "NoNewPrivs": "1",
        "Seccomp": "2",
        "CapEff": "0" * 16,
        "CapBnd": "0" * 16,
    }
    allowed = [path for path, error in seen["writes"].items() if not error]
    assert allowed == ["/var/lib/tidegate/x"]
    assert seen["writes"]["/var/lib/x"] == "Read-only file system"
    assert seen["environment"] == []  # the worker hears nothing of the manager
    assert seen["keys"] == ["Bearer sk-canary-7"]
    assert seen["memory"]["used_bytes"] > seen["memory"]["base_bytes"] > 10_000_000

    assert seen["streamed_over_recycle"]
    assert seen["stream"] == "whole"
    pids = {seen[name]["MainPID"] for name in ("start", "after_kill", "after_bad_reload")}
    assert len(pids) == 1
    assert seen["after_kill"]["NRestarts"] == "0"
    assert seen["after_bad_reload"]["ActiveState"] == "active"
    assert seen["healthz"] == "200"
    assert (seen["stop"]["Result"], seen["stop"]["ExecMainStatus"]) == ("success", "0")
    judge_journal(seen["journal"])
    judge_kept(seen["kept_over_kill"], ["completed"], used=1)

    end = seen["bad_config"]
    assert (end["ExecMainStatus"], end["NRestarts"], end["Result"]) == ("78", "0", "exit-code")
    assert end["StatusText"].startswith("failed: /etc/tidegate/config.toml:1: nonsense")
    assert seen["slow_start"]["ActiveState"] == "active"  # in twice its TimeoutStartSec


def judge_journal(entries: list[list[str]]) -> None:
    """Each event is one line with its priority; the time is the journal's own."""
    assert all(text.startswith(("watchdog ", "worker ")) for _, text in entries)
    assert not any("<" in text.split(" ")[0] or "canary" in text for _, text in entries)

    def priority(words: str) -> str:
        return next(priority for priority, text in entries if words in text)

    assert priority("is ready: http://127.0.0.1:8433/v1, http://localhost/v1 over ") == "6"
    assert priority("worker 2 is lost: killed by SIGKILL") == "4"
    assert priority("reload refused, nothing has changed") == "3"


def judge_kept(kept: dict[str, Any], states: list[str], used: int) -> None:
    """Answers are in memory, their rows on the disk, both for the service's user alone."""
    assert [state for _, state, _ in kept["runs"]] == states
    assert {place for place, _, _ in kept["runs"]} == {"journal"}
    assert (kept["journal"]["keep"], kept["journal"]["place"]) == ("answers", "memory")
    assert (kept["history"]["keep"], kept["used"]) == ("rows", used)
    assert not kept["journal"]["paused"]
    assert not kept["history"]["paused"]
    assert kept["modes"] == {
        "/run/tidegate/journal": "700 tidegate",
        "/run/tidegate/journal/runs.db": "600 tidegate",
        "/var/lib/tidegate/history": "700 tidegate",
        "/var/lib/tidegate/history/history.db": "600 tidegate",
    }


def test_no_connection_is_refused() -> None:
    """Neither a restart nor a crash closes a port; a stop drains for as long as it may."""
    seen = inside("restarts")
    assert seen["start"]["NFileDescriptorStore"] == "2"
    assert set(seen["restart"]) == {"tcp 200", "unix 200"}
    assert seen["restart_s"] < 30
    assert "tidegate is stopping" in seen["stream_at_restart"]
    judge_kept(seen["kept_over_restart"], ["cancelled"], used=1)
    assert seen["kept_over_crash"]["runs"] == seen["kept_over_restart"]["runs"]
    assert seen["after_restart"]["NFileDescriptorStore"] == "2"

    # A client that was being answered when the process was killed has lost that answer, no other.
    assert not [outcome for outcome in seen["crash"] if "connect " in outcome]
    assert seen["after_crash"]["NRestarts"] == "1"
    assert seen["after_crash"]["NFileDescriptorStore"] == "2"
    assert seen["one_address"]["NFileDescriptorStore"] == "1"
    assert seen["unix_gone"] == "connect No such file or directory"

    draining = seen["while_draining"]
    assert draining["TimeoutStopUSec"] == "2s"
    assert (draining["ActiveState"], draining["SubState"]) == ("deactivating", "stop-sigterm")
    assert draining["StatusText"].startswith("draining, ")
    assert draining["streams"]
    assert seen["drained_s"] > 7.5
    assert "tidegate is stopping" in seen["stream_at_stop"]
    assert (seen["stop"]["Result"], seen["stop"]["ExecMainStatus"]) == ("success", "0")
    assert seen["stop"]["NFileDescriptorStore"] == "0"


def test_the_first_connection_starts_it() -> None:
    """A socket unit's sockets stand above `listen`; a crash loop ends and says why."""
    seen = inside("activation")
    assert (seen["before"], seen["first"]) == ("inactive", "200")
    assert seen["after"]["ActiveState"] == "active"
    assert seen["after"]["NFileDescriptorStore"] == "0"  # they are systemd's already
    assert seen["listen"] == ["127.0.0.1:8433", "unix:/run/tidegate/http.sock"]
    for address in seen["listen"]:
        assert any(f"{address} was opened by the service manager (http)" in x for x in seen["log"])
    assert not [outcome for outcome in seen["restart"] if "connect " in outcome]

    loop = seen["loop"]
    assert (loop["ActiveState"], loop["ExecMainStatus"]) == ("failed", "75")
    assert loop["StatusText"] == (
        "failed: 5 workers in a row died before they were ready; the last: exited (3)"
    )
    assert any(p == "2" and "giving up: 5 workers" in text for p, text in seen["loop_log"])


def test_what_hangs_is_replaced_by_what_watches_it() -> None:
    """systemd restarts a watchdog that hangs or fails; a worker is the watchdog's affair."""
    seen = inside("hung")
    again = seen["watchdog"]["again"]
    assert again["MainPID"] != seen["watchdog"]["former"]["MainPID"]
    assert again["NRestarts"] == "1"
    assert seen["worker"]["MainPID"] == again["MainPID"]
    assert seen["worker"]["NRestarts"] == "1"
    assert any("no heartbeat for" in text for text in seen["log"])
    assert any("in serve" in text for text in seen["log"])  # where the watchdog stood
    ends = [line for line in seen["ends"] if "Failed with result" in line]
    # What hangs systemd ends; what fails three times in a row ends itself, to be started again.
    assert ends == [
        f"tidegate.service: Failed with result '{why}'." for why in ("watchdog", "exit-code")
    ]
    assert any(p == "3" and "ArithmeticError: a defect" in text for p, text in seen["last_log"])
