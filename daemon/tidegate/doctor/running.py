"""Checks the running tidegate by its own status, and whether there is one, or two."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from tidegate.core.decoding import Decoder, Undecodable
from tidegate.core.problems import Problem, Severity
from tidegate.core.protocol.control import ControlRequest
from tidegate.core.protocol.status import Status
from tidegate.doctor.findings import finding
from tidegate.machine.processes import Neighbour
from tidegate.watchdog.control import client
from tidegate.watchdog.control.client import NotRunning
from tidegate.watchdog.pid_file import PID_FILE_NAME

ANSWER_S = 5.0  # the watchdog answers this by itself and at once


class RunningDaemon(Struct, frozen=True, kw_only=True):
    """The running tidegate's status, or why there is none."""

    status: Status | None = None
    silent: bool = False  # the socket is served, without an answer or with one of no known form


def check_running(
    daemon: RunningDaemon,
    installed: str,
    others: Sequence[Neighbour] = (),
    runtime_dir: Path | None = None,
    own_pid: int | None = None,
) -> Iterator[Problem]:
    """Check the running tidegate.

    `installed` is the version of this program, `others` every tidegate of this computer, `own_pid`
    the process id of the one in question, where it does not say so itself.
    """
    status = daemon.status
    if daemon.silent:
        yield finding(
            "daemon-silent",
            f"a tidegate is there and did not answer within {ANSWER_S:g} s, or not in a form that "
            "this version understands",
            "see `tidegate logs`; then: tidegate restart, or tidegate service restart",
        )
    elif status is None:
        yield finding(
            "daemon-not-running",
            f"no tidegate runs with the runtime directory {runtime_dir}{_elsewhere(others)}",
            "run: tidegate service start, or tidegate start; one that runs elsewhere is found with "
            "--runtime-dir, as the user whose it is",
        )
    else:
        yield from _check_status(status, installed)
    known = status.watchdog.pid if status else own_pid
    strangers = [str(each.pid) for each in others if each.pid != known]
    if len(strangers) + (known is not None) > 1:
        yield finding(
            "two-tidegates",
            f"more than one tidegate runs on this computer; processes: {', '.join(strangers)}",
            "stop the one that is not meant: tidegate stop, or tidegate service uninstall, as the "
            "user whose it is",
        )


def _elsewhere(others: Sequence[Neighbour]) -> str:
    return f"; process {others[0].pid} is one that runs elsewhere" if len(others) == 1 else ""


def _check_status(status: Status, installed: str) -> Iterator[Problem]:
    because = f": {status.reason}" if status.reason else ""
    if status.state == "parked":
        yield finding(
            "daemon-parked",
            f"tidegate is parked and serves nothing{because}",
            "fix the config; `tidegate check` says when it is good, and it begins by itself",
        )
    elif status.state in {"starting", "draining", "stopping"}:
        yield finding(
            "daemon-not-ready",
            f"tidegate is {status.state} and serves no client yet, or no more",
            "wait a moment and run doctor again; if it stays so: tidegate logs",
        )
    elif status.state == "degraded" and not status.repairs:
        yield finding(
            "daemon-degraded",
            f"tidegate serves, but not all is well{because}",
            "see: tidegate status",
        )
    for repair in status.repairs:
        if repair.id != "parked":  # which is told above
            yield Problem(
                id=repair.id,
                severity=Severity(repair.severity),
                cause=repair.cause,
                fix=repair.fix,
            )
    if status.version != installed:
        yield finding(
            "daemon-other-version",
            f"version {status.version} runs, and {installed} is installed",
            "run: tidegate upgrade",
        )


def ask(runtime_dir: Path, limit_s: float = ANSWER_S) -> RunningDaemon:
    """Ask the running tidegate for its status; one that is not there gives an empty answer."""
    try:
        reply = client.ask(runtime_dir, ControlRequest(verb="status"), limit_s)
        return RunningDaemon(status=Decoder(Status).decode(reply.result))
    except NotRunning:
        return RunningDaemon()
    except (TimeoutError, Undecodable):
        return RunningDaemon(silent=True)


def pid_in(runtime_dir: Path) -> int | None:
    """Return the process id in the pid file, if that process is still there."""
    try:
        pid = int((runtime_dir / PID_FILE_NAME).read_text())
        os.kill(pid, 0)
    except PermissionError:
        return pid
    except (OSError, ValueError):
        return None
    return pid
