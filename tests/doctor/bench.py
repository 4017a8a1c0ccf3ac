"""What the tests of the doctor examine: a computer of values, with one thing wrong at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fakes.upstream import ScriptedUpstream
from tidegate import config
from tidegate.config import ConfigError, LoadedConfig
from tidegate.config.places import Places
from tidegate.core.problems import Problem
from tidegate.core.protocol.status import MemoryState, RunCounts, Status, SweptState, WatchdogState
from tidegate.core.settings import MIB, Settings, Upstream
from tidegate.doctor import computer, services, upstreams
from tidegate.managers.job import Scope
from tidegate.managers.systemd import show

GIB = 1024 * MIB

# As `systemctl show` of 252 prints it for the unit that `tidegate service install` writes.
GOOD_UNIT = """\
Type=notify
Restart=on-failure
NotifyAccess=main
TimeoutStopUSec=45s
WatchdogUSec=1min
MemoryHigh=infinity
MemoryMax=infinity
LimitNOFILE=524288
OOMPolicy=continue
Result=success
LoadState=loaded
ActiveState=active
FragmentPath=/etc/systemd/system/tidegate.service
DropInPaths=
NeedDaemonReload=no
"""
# As `launchctl print` shows a job, shortened.
GOOD_JOB = """\
system/dev.tidegate.tidegate = {
\tactive count = 1
\tpath = /Library/LaunchDaemons/dev.tidegate.tidegate.plist
\tstate = running
\tspawn type = interactive (4)
\texit timeout = 45
\truns = 1
}
"""
AWAKE = " sleep                0\n displaysleep         10\n"


@dataclass
class Bench:
    """One place to provoke a finding in."""

    root: Path
    upstream: ScriptedUpstream
    monkeypatch: pytest.MonkeyPatch

    @property
    def places(self) -> Places:
        """Two good directories and no config."""
        for name in ("state", "run"):
            (self.root / name).mkdir(mode=0o700, exist_ok=True)
        return Places(
            config_file=self.root / "config.toml",
            config_named=True,
            state_dir=self.root / "state",
            runtime_dir=self.root / "run",
            log_file=self.root / "state" / "tidegate.log",
        )

    def load(self, toml: str, **environ: str) -> LoadedConfig | ConfigError:
        """What the config file with this text is."""
        self.places.config_file.write_text(toml)
        try:
            return config.load(self.places.config_file, self.places.state_dir, environ)
        except ConfigError as error:
            return error

    def probe(self, model: str | None, key: str | None = None, **rest: Any) -> upstreams.Probe:
        """What the scripted upstream does when it is asked for this model."""
        box = Upstream(name="box", url=self.upstream.url)
        return upstreams.probe(box, key, wanted=model, **rest)

    def asked(self, model: str | None, **rest: Any) -> list[Problem]:
        """Its finding."""
        found = self.probe(model, **rest).problem
        return [found] if found else []


def unit(scope: Scope = Scope.SYSTEM, *, linger: bool = True, **changed: str) -> services.Service:
    """A good unit, but for what is changed."""
    shown = show.parse(GOOD_UNIT) | changed
    return services.Service(scope=scope, shown=shown, linger=linger, user="ann")


def job(
    scope: Scope = Scope.SYSTEM, *, printed: str = GOOD_JOB, pmset: str = AWAKE
) -> services.Service:
    """A good job of launchd, but for what is changed."""
    return services.Service(scope=scope, printed=printed, pmset=pmset)


def judged(service: services.Service, settings: Settings | None = None) -> list[Problem]:
    """What is found of one service, with a budget of 1 GiB."""
    return list(services.check_services([service], settings or Settings(), GIB))


def memory(**changed: Any) -> list[Problem]:
    """What is found of a computer with 8 GiB, but for what is changed."""
    base = {
        "budget_bytes": GIB,
        "total_bytes": 8 * GIB,
        "available_bytes": 6 * GIB,
        "swap_bytes": GIB,
        "overcommit": 0,
    }
    return list(computer.check_memory(computer.ComputerMemory(**(base | changed))))


def running(state: str = "serving", **changed: Any) -> Status:
    """A status."""
    base: dict[str, Any] = {
        "state": state,
        "version": "1.0",
        "uptime_s": 60.0,
        "generation": 1,
        "listen": ["127.0.0.1:8433"],
        "workers": [],
        "worker": None,
        "watchdog": WatchdogState(pid=1000, rss_bytes=0),
        "memory": MemoryState(),
        "runs": RunCounts(active=0, finished=0, total=0),
        "swept": SweptState(runs=0, bytes=0, last_reason=None),
        "recycles": 0,
        "restarts": [],
        "upstreams": [],
    }
    return Status(**(base | changed))


def disk(free_bytes: int, files: int = 1_000_000) -> Callable[[Path], os.statvfs_result]:
    """A file system with so much room."""
    blocks = free_bytes // 4096
    values = (4096, 4096, blocks * 2, blocks, blocks, files * 2, files, files, 0, 255)
    return lambda _path: os.statvfs_result(values)
