"""Checks what the service manager really holds tidegate to: by its answers, never by a file.

A drop-in, an older unit, a plist that was loaded before it was changed: what is in force and what
lies on the disk differ just when something is wrong. The judging is pure: it takes what
`systemctl show`, `launchctl print` and `pmset -g` print. `read` is what fetches that.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping

from msgspec import Struct

from tidegate.core import descriptors
from tidegate.core.http.url import parse_url
from tidegate.core.problems import Problem
from tidegate.core.settings import MIB, Settings
from tidegate.doctor.findings import finding
from tidegate.managers.base import NO_CREDENTIALS, ManagerError, exit_text
from tidegate.managers.commands import CallError, call, environment
from tidegate.managers.job import Scope
from tidegate.managers.launchd import printed
from tidegate.managers.launchd.control import Launchd
from tidegate.managers.systemd import show
from tidegate.managers.systemd.control import Systemd, is_booted
from tidegate.managers.systemd.unit import CREDENTIALS

STOP_MARGIN_S = 5.0  # what a stop takes beside the answers that it lets finish
LIMIT_S = 8.0
_SECTION = "[Service]"


class Service(Struct, frozen=True, kw_only=True):
    """What was read from one manager. `unreadable` says why there is nothing."""

    scope: Scope
    shown: dict[str, str] = {}  # of systemd
    printed: str = ""  # of launchd
    pmset: str = ""
    linger: bool = True
    user: str = ""
    unreadable: str | None = None

    @property
    def is_loaded(self) -> bool:
        """Tell whether the manager knows tidegate."""
        return bool(self.printed) or self.shown.get("LoadState") == "loaded"


def check_services(
    services: list[Service], settings: Settings, budget_bytes: int
) -> Iterator[Problem]:
    """Check the service of every manager.

    One that cannot be asked is a finding only where no other has the service.
    """
    is_loaded = any(service.is_loaded for service in services)
    for service in services:
        if service.unreadable and not is_loaded:
            yield finding(
                "service-unreadable",
                f"the {service.scope.value}'s service manager could not be asked: "
                f"{service.unreadable}",
                "log in as the user whose service it is, or run `sudo tidegate doctor`",
                service.scope.value,
            )
        elif service.shown.get("LoadState") == "loaded":
            yield from check_systemd(service, settings, budget_bytes)
        elif service.printed:
            yield from check_launchd(service, settings)
    if not is_loaded and not any(service.unreadable for service in services):
        yield finding(
            "service-none",
            "no service manager starts tidegate: it is gone after a restart of this computer",
            "run: tidegate service install",
        )


def check_systemd(service: Service, settings: Settings, budget_bytes: int) -> Iterator[Problem]:
    """Check what `systemctl show` says is in force."""
    shown = service.shown
    edit = _edit(service.scope)
    yield from _check_failed(shown, service.scope)
    if shown.get("UnitFileState") == "disabled":
        yield finding(
            "service-not-enabled",
            "systemd knows it and does not start it with the computer",
            f"run: {_systemctl(service.scope, 'enable')}",
        )
    if shown.get("NeedDaemonReload") == "yes":
        yield finding(
            "service-reload-needed",
            "the unit on the disk was changed and systemd still uses the former one",
            f"run: {_systemctl(service.scope, 'daemon-reload', '')}",
        )
    if drop_ins := shown.get("DropInPaths", ""):
        yield finding(
            "service-drop-ins",
            f"the unit is changed by {', '.join(drop_ins.split())}",
            f"nothing, if that is meant; to see the whole: {_systemctl(service.scope, 'cat')}",
        )
    yield from _check_stopping(
        show.span_s(shown.get("TimeoutStopUSec", "")),
        settings,
        f"{edit} TimeoutStopSec={settings.drain.stop_limit_s + 15:.0f}",
    )
    yield from _check_protocol(shown, edit)
    yield from _check_resources(shown, settings, budget_bytes, edit)
    if service.scope is Scope.USER and not service.linger:
        yield finding(
            "service-linger",
            f"it ends when {service.user} logs out, and does not start with the computer",
            f"run: sudo loginctl enable-linger {service.user}",
        )


def _check_failed(shown: Mapping[str, str], scope: Scope) -> Iterator[Problem]:
    """Check that systemd has not given up, nor is between two starts; say what ended the last."""
    is_given_up = shown.get("ActiveState") == "failed"
    if not is_given_up and shown.get("SubState") != "auto-restart":
        return
    code = show.exit_code(shown)
    how = exit_text(code) if code else show.ending(shown) or "failed"
    fix = "see `tidegate logs`, correct what it says"
    if code == NO_CREDENTIALS:
        fix = f"run: sudo install -d -m 700 {CREDENTIALS}"
    yield finding(
        "service-failed",
        f"systemd has given it up: {how}" if is_given_up else f"systemd starts it again: {how}",
        f"{fix}; then: {_systemctl(scope, 'restart')}",
    )


def _check_protocol(shown: Mapping[str, str], edit: str) -> Iterator[Problem]:
    """Check what tidegate can tell systemd, and what systemd does when it hangs or ends."""
    if not shown.get("Type", "notify").startswith("notify"):
        yield finding(
            "service-not-notify",
            f"Type={shown['Type']}: systemd takes it for started before it serves",
            f"{edit} Type=notify",
        )
    elif shown.get("NotifyAccess") == "none":
        yield finding(
            "service-not-heard",
            "NotifyAccess=none: systemd does not hear it, and ends it as if it had not started",
            f"{edit} NotifyAccess=main",
        )
    # While it does not run, systemd 252 shows none, whatever the unit says.
    runs = shown.get("ActiveState", "active") == "active"
    if runs and not show.span_s(shown.get("WatchdogUSec", "")):
        yield finding(
            "service-no-watchdog",
            "systemd does not watch it: a hung tidegate stays hung",
            f"{edit} WatchdogSec=60",
        )
    if shown.get("Restart") == "no":
        yield finding(
            "service-restart",
            "Restart=no: systemd does not start it again when it fails",
            f"{edit} Restart=on-failure",
        )
    if shown.get("OOMPolicy") in {"stop", "kill"}:
        yield finding(
            "service-oom-policy",
            f"OOMPolicy={shown['OOMPolicy']}: when the kernel kills a worker for memory, systemd "
            "ends all of it instead of leaving the next worker to the watchdog",
            f"{edit} OOMPolicy=continue",
        )


def _check_resources(
    shown: Mapping[str, str], settings: Settings, budget_bytes: int, edit: str
) -> Iterator[Problem]:
    for name in ("MemoryMax", "MemoryHigh"):
        limit = shown.get(name, "")
        if limit.isdigit() and budget_bytes > int(limit):
            yield finding(
                "service-memory-limit",
                f"{name} is {int(limit) // MIB} MiB, less than the budget of "
                f"{budget_bytes // MIB} MiB: the kernel acts before tidegate does",
                f"{edit} {name}={budget_bytes * 5 // 4 // MIB}M, or a smaller memory.budget",
                name,
            )
    files = shown.get("LimitNOFILE", "")
    wanted = settings.limits.max_connections
    there_are = descriptors.connection_bounds(int(files)).clients if files.isdigit() else wanted
    if there_are < wanted:
        enough = descriptors.needed(wanted)
        yield finding(
            "service-open-files",
            f"LimitNOFILE is {files}, enough for {there_are} clients; limits.max_connections is "
            f"{wanted} and needs {enough}",
            f"{edit} LimitNOFILE={enough}, or a smaller limits.max_connections",
        )


def _check_stopping(stop_s: float | None, settings: Settings, fix: str) -> Iterator[Problem]:
    """Check the time for a stop; `stop_s` None: the manager waits for ever, or does not say."""
    limit_s = settings.drain.stop_limit_s
    if stop_s is not None and stop_s < limit_s + STOP_MARGIN_S:
        yield finding(
            "service-stop-limit",
            f"the service manager kills it {stop_s:g} s after a stop, and drain.stop_limit_s is "
            f"{limit_s:g} s: answers are cut without a word",
            f"{fix}, or a smaller drain.stop_limit_s",
        )


# --- macOS ---------------------------------------------------------------------------------------


def check_launchd(service: Service, settings: Settings) -> Iterator[Problem]:
    """Check what `launchctl print` and `pmset -g` say."""
    again = "run: tidegate service install" + (
        " --system" if service.scope is Scope.SYSTEM else " --user"
    )
    yield from _check_stopping(printed.number(service.printed, "exit timeout"), settings, again)
    # As in "interactive (4)".
    kind = (printed.value(service.printed, "spawn type") or "interactive").partition(" ")[0]
    if kind not in {"interactive", "adaptive"}:
        yield finding(
            "launchd-throttled",
            f'launchd runs it as "{kind}": its timers and its disk are slowed down (App Nap)',
            f"{again}, which sets ProcessType to Interactive",
        )
    neighbours = [each.name for each in settings.upstreams if parse_url(each.url).is_neighbour]
    if service.scope is Scope.USER and neighbours:
        yield finding(
            "launchd-agent-network",
            f"since macOS 15 an agent may not reach {', '.join(neighbours)} on the local network "
            "before it is allowed to",
            "allow it under System Settings, Privacy & Security, Local Network; or run: "
            "sudo tidegate service install --system",
        )
    if sleeps_after_min(service.pmset):
        yield finding(
            "mac-sleeps",
            f"this Mac sleeps after {sleeps_after_min(service.pmset)} min, and serves nothing then",
            "run: sudo pmset -c sleep 0",
        )


def sleeps_after_min(pmset: str) -> int:
    """Read the minutes from `pmset -g`; 0 when it does not sleep, or something prevents it."""
    found = re.search(r"^\s*sleep\s+(\d+)(.*)$", pmset, re.MULTILINE)
    return int(found[1]) if found and "prevented" not in found[2] else 0


# --- asking ---------------------------------------------------------------------------------------


def read(platform: str = sys.platform, uid: int | None = None) -> list[Service]:
    """Ask both the system's manager and this user's. Empty where there is none of that kind."""
    uid = os.geteuid() if uid is None else uid
    if platform == "darwin":
        return [_read_launchd(scope, uid) for scope in Scope]
    if not is_booted():
        return []
    found = [_read_systemd(scope, uid) for scope in Scope]
    # Root seldom has a manager of its own, and needs none.
    return [each for each in found if uid != 0 or each.scope is Scope.SYSTEM or not each.unreadable]


def _read_systemd(scope: Scope, uid: int) -> Service:
    manager = Systemd(scope, uid=uid, answer_s=LIMIT_S)
    try:
        shown = manager.show()
    except ManagerError as error:
        return Service(scope=scope, unreadable=str(error))
    return Service(scope=scope, shown=shown, linger=manager.lingers(), user=manager.user)


def _read_launchd(scope: Scope, uid: int) -> Service:
    try:
        text = Launchd(scope, uid=uid, answer_s=LIMIT_S).show() or ""
    except ManagerError as error:
        return Service(scope=scope, unreadable=str(error))
    try:
        pmset = call(["pmset", "-g"], environment(), LIMIT_S).out
    except CallError:
        pmset = ""
    return Service(scope=scope, printed=text, pmset=pmset)


def _systemctl(scope: Scope, verb: str, unit: str = " tidegate") -> str:
    return (
        f"systemctl --user {verb}{unit}" if scope is Scope.USER else f"sudo systemctl {verb}{unit}"
    )


def _edit(scope: Scope) -> str:
    return f"`{_systemctl(scope, 'edit')}`: {_SECTION} and"
