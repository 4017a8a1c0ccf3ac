"""Reads what `systemctl show` prints of the service; nothing else does.

It tells what is in force, drop-ins and all, and not what a file says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tidegate.managers.base import UnitLimits, UnitState, exit_text

# What is asked for. The last row is judged by the doctor alone.
PROPERTIES = (
    "LoadState,ActiveState,SubState,MainPID,UnitFileState,FragmentPath,DropInPaths,Result,"
    "StatusText,NRestarts,ExecMainCode,ExecMainStatus,ExecStart,InvocationID,Environment,"
    "EnvironmentFiles,TimeoutStopUSec,WatchdogUSec,MemoryMax,MemoryHigh,LimitNOFILE,"
    "Type,NotifyAccess,Restart,OOMPolicy,NeedDaemonReload"
)
_SPAN_S = {
    "y": 365.25 * 86400.0,
    "month": 30.44 * 86400.0,
    "w": 7 * 86400.0,
    "d": 86400.0,
    "h": 3600.0,
    "min": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
}
_ACTIVE = {"active", "reloading", "activating", "deactivating"}
_RUNNING = {"active", "reloading"}
_EXITED = "1"  # CLD_EXITED: the process ended by itself, and not by a signal


def parse(text: str) -> dict[str, str]:
    """Read the lines `Name=value`."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def state(shown: Mapping[str, str]) -> UnitState:
    """Read how the service is from its properties."""
    active = shown.get("ActiveState", "inactive")
    if shown.get("LoadState") not in {"loaded", "masked"}:
        return UnitState(installed=False)
    is_masked = shown["LoadState"] == "masked"
    return UnitState(
        installed=True,
        enabled=shown.get("UnitFileState") in {"enabled", "enabled-runtime", "linked"},
        active=active in _ACTIVE,
        running=active in _RUNNING,
        word="masked" if is_masked else f"{active} ({shown.get('SubState', '')})",
        pid=int(shown.get("MainPID") or 0) or None,
        said=shown.get("StatusText", ""),
        result=ending(shown),
        exit_code=exit_code(shown),
        restarts=int(shown.get("NRestarts") or 0),
        file=Path(shown["FragmentPath"]) if shown.get("FragmentPath") else None,
        drop_ins=[Path(each) for each in shown.get("DropInPaths", "").split()],
        command=_argv(shown.get("ExecStart", "")),
        limits=_limits(shown),
    )


def span_s(text: str) -> float | None:
    """Read "1min 30s" as seconds; None for "infinity" and for what is not a time."""
    parts = re.findall(r"([\d.]+)(y|month|w|d|h|min|s|ms|us)\b", text)
    return sum(float(number) * _SPAN_S[unit] for number, unit in parts) if parts else None


def _limits(shown: Mapping[str, str]) -> UnitLimits:
    memory = [
        int(shown[name]) for name in ("MemoryMax", "MemoryHigh") if shown.get(name, "").isdigit()
    ]
    files = shown.get("LimitNOFILE", "")
    return UnitLimits(
        stop_s=span_s(shown.get("TimeoutStopUSec", "")),
        watchdog_s=span_s(shown.get("WatchdogUSec", "")) or None,
        memory_bytes=min(memory, default=None),
        open_files=int(files) if files.isdigit() else None,
    )


def exit_code(shown: Mapping[str, str]) -> int | None:
    """Return the exit code of the last process, if that ended by itself."""
    exited = shown.get("ExecMainCode") == _EXITED
    return int(shown.get("ExecMainStatus") or 0) if exited else None


def ending(shown: Mapping[str, str]) -> str | None:
    """Return systemd's word for how it failed, and what it means; None: it has not."""
    result = shown.get("Result", "success")
    code = exit_code(shown)
    if result == "success":
        return None
    if result == "exit-code" and code is not None:
        return exit_text(code)
    known = {
        "timeout": "timeout: it was not ready, or did not stop, in time",
        "watchdog": "watchdog: it was silent for too long",
        "start-limit-hit": "start-limit-hit: it failed too often in a short time",
        "oom-kill": "oom-kill: the kernel ran out of memory",
        "signal": f"ended by signal {shown.get('ExecMainStatus')}",
        "resources": "resources: systemd could not set up what the unit asks for",
        "protocol": "protocol: it ended before it was ready",
    }
    return known.get(result, result)


def _argv(exec_start: str) -> str:
    """Return the command line in `{ path=… ; argv[]=… ; ignore_errors=… }`."""
    found = re.search(r"argv\[\]=(.*?) ; ignore_errors=", exec_start)
    return found[1] if found else ""
