"""The keys of launchd.plist(5) and their types, as far as tidegate might use them.

launchd ignores what it does not know, and a value of the wrong type, in silence. So `complaints`
is stricter than launchd: what is not in the table is an error, however deep it lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LIMITS: dict[str, Any] = dict.fromkeys(
    (
        "Core", "CPU", "Data", "FileSize", "MemoryLock", "NumberOfFiles", "NumberOfProcesses",
        "ResidentSetSize", "Stack",
    ),
    int,
)  # fmt: skip

SOCKET: dict[str, Any] = {
    "SockType": {"stream", "dgram", "seqpacket"},
    "SockPassive": bool,
    "SockNodeName": str,
    "SockServiceName": (str, int),
    "SockFamily": {"IPv4", "IPv6", "IPv4v6", "Unix"},
    "SockProtocol": {"TCP", "UDP"},
    "SockPathName": str,
    "SockPathMode": int,
    "SockPathOwner": int,
    "SockPathGroup": int,
}

KEYS: dict[str, Any] = {
    "Label": str,
    "Program": str,
    "ProgramArguments": [str],
    "UserName": str,
    "GroupName": str,
    "InitGroups": bool,
    "EnvironmentVariables": {...: str},
    "WorkingDirectory": str,
    "Umask": (int, str),
    "RunAtLoad": bool,
    "KeepAlive": (
        bool,
        {
            "SuccessfulExit": bool,
            "Crashed": bool,
            "PathState": {...: bool},
            "OtherJobEnabled": {...: bool},
        },
    ),
    "ThrottleInterval": int,
    "ExitTimeOut": int,
    "ProcessType": {"Background", "Standard", "Adaptive", "Interactive"},
    "Nice": int,
    "LowPriorityIO": bool,
    "AbandonProcessGroup": bool,
    "SoftResourceLimits": LIMITS,
    "HardResourceLimits": LIMITS,
    "StandardInPath": str,
    "StandardOutPath": str,
    "StandardErrorPath": str,
    "Sockets": {...: ([SOCKET], SOCKET)},
    "LimitLoadToSessionType": (str, [str]),
    "SessionCreate": bool,
}


def complaints(plist: Mapping[str, Any]) -> list[str]:
    """What launchd would not understand of a property list, each with the way to it."""
    found = _complaints(plist, KEYS, "")
    if not isinstance(plist.get("Label"), str):
        found.append("Label: missing")
    if not plist.get("ProgramArguments") and not plist.get("Program"):
        found.append("ProgramArguments: missing")
    return found


def _complaints(value: Any, wanted: Any, path: str) -> list[str]:
    """`wanted` is a type, a set of words, one list item, a table, or a tuple of any of these."""
    if isinstance(wanted, tuple):
        each = [_complaints(value, one, path) for one in wanted]
        return [] if [] in each else max(each, key=lambda found: found[0].count("."))
    if isinstance(wanted, set):
        return [] if value in wanted else [f"{path}: {value!r} is none of {sorted(wanted)}"]
    if isinstance(wanted, list):
        if not isinstance(value, list):
            return [f"{path}: {type(value).__name__}, not an array"]
        items = enumerate(value)
        return [text for n, item in items for text in _complaints(item, wanted[0], f"{path}.{n}")]
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            return [f"{path}: {type(value).__name__}, not a dictionary"]
        return [
            text
            for key, item in value.items()
            for text in _entry(item, wanted.get(key, wanted.get(...)), f"{path}.{key}".lstrip("."))
        ]
    # A bool is an int to Python, and an element of its own in a property list.
    return [] if type(value) is wanted else [f"{path}: {type(value).__name__}"]


def _entry(value: Any, wanted: Any, path: str) -> list[str]:
    return [f"{path}: unknown"] if wanted is None else _complaints(value, wanted, path)
