"""The shipped units under a real systemd, which runs in namespaces of its own."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.private_systemd import beside_user_manager

UNITS = ["tidegate.service", "tidegate-user.service"]


def inside(case: str, unit: str) -> dict[str, Any]:
    """What the case saw."""
    return beside_user_manager("inside.py", case, unit)


@pytest.mark.parametrize("unit", [pytest.param(UNITS[0], marks=pytest.mark.long), UNITS[1]])
def test_unit_lives_and_stops(unit: str) -> None:
    """`start` returns when it serves, the status is true, pings arrive, reload and stop work."""
    seen = inside("life", unit)
    assert (seen["start"]["ActiveState"], seen["start"]["SubState"]) == ("active", "running")
    assert "worker 1 is ready" in seen["log"]
    assert " of 1024 MB, 0 runs, up under 1 min" in seen["status"]
    assert seen["pings"]["MainPID"] == seen["start"]["MainPID"]
    assert seen["pings"]["NRestarts"] == "0"
    assert (seen["stop"]["Result"], seen["stop"]["ExecMainStatus"]) == ("success", "0")
    assert "Traceback" not in seen["log"]


def test_hung_watchdog_is_restarted_by_systemd() -> None:
    """A watchdog that is stopped misses its pings: Result=watchdog, then it is started again."""
    seen = inside("hung", "tidegate.service")
    assert seen["again"]["MainPID"] != seen["former"]["MainPID"]
    assert seen["again"]["NRestarts"] == "1"


@pytest.mark.long
def test_hung_worker_is_not_systemds_affair() -> None:
    """A worker that is stopped is replaced by the watchdog; systemd sees nothing of it."""
    seen = inside("worker", "tidegate.service")
    assert seen["after"]["NRestarts"] == "0"
    assert seen["after"]["ActiveState"] == "active"
    assert "no heartbeat for" in seen["log"]


def test_bad_config_is_not_restarted() -> None:
    """Exit code 78 is final: systemd does not start it again."""
    seen = inside("bad", "tidegate.service")
    assert seen["end"]["ExecMainStatus"] == "78"
    assert seen["end"]["NRestarts"] == "0"
    assert seen["end"]["Result"] == "exit-code"


def test_names_that_look_like_syntax_arrive_as_they_are() -> None:
    """Spaces, quotes, `$`, `%`, `;` and backslashes in a job's words are no syntax to systemd."""
    seen = inside("words", "tidegate-user.service")
    assert seen["words"] == seen["meant"]


def test_no_connection_is_refused_over_a_restart_or_a_crash() -> None:
    """systemd keeps the listening socket meanwhile, and lets go of it after a stop."""
    seen = inside("restart", "tidegate-user.service")
    assert seen["refused"] == []
    assert seen["connected"] > 100
    assert seen["restarted"]["NFileDescriptorStore"] == "1"
    assert seen["stopped"]["NFileDescriptorStore"] == "0"
