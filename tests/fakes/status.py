"""What `status` says of a tidegate that has nothing to do."""

from typing import Any

from tidegate.core.protocol.status import MemoryState, RunCounts, Status, SweptState, WatchdogState


def idle(pid: int = 1, **others: Any) -> Status:
    """It serves without a worker and an upstream; `others` are its members that are not so."""
    members: dict[str, Any] = {
        "state": "serving",
        "version": "1",
        "uptime_s": 1.0,
        "generation": None,
        "listen": [],
        "workers": [],
        "worker": None,
        "watchdog": WatchdogState(pid=pid, rss_bytes=1),
        "memory": MemoryState(),
        "runs": RunCounts(active=0, finished=0, total=0),
        "swept": SweptState(runs=0, bytes=0, last_reason=None),
        "recycles": 0,
        "restarts": [],
        "upstreams": [],
    }
    return Status(**members | others)
