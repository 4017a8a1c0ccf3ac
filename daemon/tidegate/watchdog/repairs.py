"""What a running tidegate finds wrong with itself, once a second, and keeps as repairs.

Everything that it looks at is at hand in the watchdog anyway, except for the disk, which is asked
once a minute. `find` is a plain function of what was seen; `core.repairs` decides what is open.
What only a look from outside can find (permissions, limits of the service manager, upstreams that
answer but produce nothing) is `tidegate doctor`'s.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from tidegate.core import descriptors
from tidegate.core.fleet.lifecycle import HOUR_S
from tidegate.core.memory.levels import LEAST_BUDGET_BYTES
from tidegate.core.problems import Problem, Repair, Repairs, Severity
from tidegate.core.protocol.status import Status
from tidegate.core.protocol.stores import StoreState
from tidegate.core.settings import MIB
from tidegate.watchdog.control.status import FAILING

DISK_EVERY_S = 60.0
LITTLE_DISK_BYTES = 256 * MIB  # logs and evidence are bounded to less
NO_DISK_BYTES = 16 * MIB
MANY_LOST_WORKERS = 3  # within the hour
UNTOLD_S = 60.0  # that a receiver takes nothing; a shorter outage of it is no affair of ours
FULL_SHARE = 0.9  # of the connections that a worker may have
SOON_S = 24 * HOUR_S  # a leak that fills memory later than this is told, but no warning
_MEND_STORE = "see `tidegate doctor`; once that is right it goes on by itself within a minute"
_REMOVE_STORE = "remove that file when you have no more use for it; all is well without it"
_LEVELS = {Severity.NOTE: logging.INFO, Severity.WARNING: logging.WARNING}
_log = logging.getLogger(__name__)


class Observation(Struct, frozen=True, kw_only=True):
    """What the watchdog knows at one moment."""

    status: Status
    now: float  # Unix seconds
    parked: str | None = None
    refused_config: str | None = None  # the file as it is now
    refused_upgrade: str | None = None
    lost_lines: int = 0  # of the log, not yet told
    free_bytes: int | None = None  # where the state is
    connections: int = 0  # of the worker that has the most
    most_connections: int = 0  # as that worker has it; 0: it does not say
    max_connections: int = 0  # as the config has it
    configured_budget_bytes: int | None = None
    max_body_bytes: int = 0
    fits_bytes: int | None = None  # the largest body that memory ever has room for
    is_watched: bool = True  # by the service manager, where there is one
    stop_limit_s: float = 0.0  # what the config gives answers at a stop
    stop_s: float = 0.0  # what the service manager leaves of it
    runtime_dir: Path | None = None  # what stands in for the one that is configured
    runtime_dir_trouble: str | None = None  # why neither can be used
    fault: str | None = None  # a recent one of the watchdog's own


def find(seen: Observation) -> Iterator[Problem]:
    """Yield everything that is wrong now."""
    yield from _config(seen)
    yield from _upstreams(seen)
    yield from _workers(seen)
    yield from _memory(seen)
    yield from _little_memory(seen)
    yield from _stores(seen.status)
    yield from _machine(seen)
    yield from _receivers(seen)


def _config(seen: Observation) -> Iterator[Problem]:
    if seen.parked is not None:
        yield _error(
            "parked",
            f"nothing is served: {seen.parked}",
            "fix the config file; it is taken up by itself",
        )
    elif seen.refused_config is not None:
        yield _warning(
            "config-refused",
            f"the config file was changed, and the former one is in force: {seen.refused_config}",
            "run `tidegate check` and fix the file; it is taken up by itself",
        )
    if seen.refused_upgrade is not None:
        yield _warning(
            "upgrade-refused",
            f"another version is installed than the one that runs: {seen.refused_upgrade}",
            "fix that and run `tidegate upgrade`",
        )


def _upstreams(seen: Observation) -> Iterator[Problem]:
    for upstream in seen.status.upstreams:
        for refusal in upstream.refusals:
            if refusal.model:
                yield _warning(
                    f"upstream-model:{upstream.name}/{refusal.model}",
                    f"upstream {upstream.name} {refusal.text}",
                    "load that model there, or correct the targets in the config",
                )
            else:
                yield _warning(
                    f"upstream-key:{upstream.name}",
                    f"upstream {upstream.name} {refusal.text}",
                    "correct the key and run `tidegate reload`, or see to its account there",
                )
        if upstream.state == "set aside" or (upstream.state in FAILING and not upstream.refusals):
            yield _warning(
                f"upstream-{upstream.state.replace(' ', '-')}:{upstream.name}",
                f"upstream {upstream.name} is {upstream.state}: {upstream.last_error}",
                "see whether it runs, and `tidegate doctor` what it answers",
            )


def _workers(seen: Observation) -> Iterator[Problem]:
    lost = [each for each in seen.status.restarts if seen.now - each.at < HOUR_S]
    if lost:
        many = len(lost) >= MANY_LOST_WORKERS
        yield Problem(
            id="workers-lost",
            severity=Severity.ERROR if many else Severity.WARNING,
            cause=f"{len(lost)} lost within the hour, the last one: {lost[-1].reason}",
            fix="see `tidegate logs` around that time; `tidegate bundle` is what to report",
        )
    yield from _connections(seen)


def _connections(seen: Observation) -> Iterator[Problem]:
    limit = seen.most_connections or seen.max_connections
    if not limit or seen.connections < FULL_SHARE * limit:
        return
    cause = f"{seen.connections} of {limit} connections are in use"
    raise_it = "raise limits.max_connections"
    if limit < seen.max_connections:
        cause += f"; limits.max_connections is {seen.max_connections}, but descriptors are few"
        raise_it = (
            f"raise the limit of open files to {descriptors.needed(seen.max_connections)} "
            "(LimitNOFILE in a unit, ulimit -Hn elsewhere)"
        )
    yield _warning("connections-full", cause, f"see who connects (`ss -tnp`), or {raise_it}")


def _memory(seen: Observation) -> Iterator[Problem]:
    memory = seen.status.memory
    if memory.shedding:
        yield _error(
            "memory-short",
            f"new runs are refused: {memory.shedding}",
            "see `tidegate status` for what holds it; raise memory.budget if there is more",
        )
    if memory.refused:
        yield _warning(
            "recycle-refused",
            f"a recycle is called for, but {memory.refused}",
            "it is tried again by itself; `tidegate bundle` shows what grows",
        )
    if memory.limit_in_s is not None and memory.limit_in_s < SOON_S:
        yield _warning(
            "memory-grows",
            f"{(memory.growth_bytes_per_h or 0) / MIB:.1f} MiB an hour that no run explains; "
            f"full in {memory.limit_in_s / HOUR_S:.1f} h",
            "a new worker will take over before that; `tidegate bundle` is what to report",
        )


def _little_memory(seen: Observation) -> Iterator[Problem]:
    """Yield what a budget is too small for."""
    budget_mib, least_mib = seen.status.memory.budget_bytes // MIB, LEAST_BUDGET_BYTES // MIB
    if seen.configured_budget_bytes is not None and (
        seen.configured_budget_bytes < LEAST_BUDGET_BYTES
    ):
        yield _warning(
            "budget-small",
            f"memory.budget is {seen.configured_budget_bytes // MIB} MiB and counts as {least_mib} "
            "MiB, the least with which readers are safe from each other",
            f'set memory.budget = "{least_mib}MiB" or more',
        )
    elif 0 < budget_mib < least_mib:
        yield _warning(
            "budget-small",
            f"the system leaves {budget_mib} MiB ({seen.status.memory.budget_source}): a crowd of "
            "slow readers can cost others their answers",
            f"raise that limit to {least_mib} MiB or more",
        )
    if seen.fits_bytes is not None and seen.fits_bytes < seen.max_body_bytes:
        yield _warning(
            "body-never-fits",
            f"requests over {seen.fits_bytes // MIB} MiB never fit into memory and get 413, though "
            f"limits.max_body is {seen.max_body_bytes // MIB} MiB",
            "raise memory.budget, or lower limits.max_body",
        )


def _stores(status: Status) -> Iterator[Problem]:
    """Yield what is wrong with the journal and the history. No stream depends on them."""
    journal, history = status.journal, status.history
    if journal is not None and journal.paused is not None:
        yield _warning(
            "journal-paused",
            f"answers do not outlive their worker just now: {_paused(journal)}",
            _MEND_STORE,
        )
    if history is not None and history.paused is not None:
        yield _warning(
            "history-paused",
            f"what is used is not written down just now: {_paused(history)}",
            _MEND_STORE,
        )
    if journal is not None and journal.set_aside is not None:
        yield Problem(
            id="journal-set-aside",
            severity=Severity.NOTE,
            cause=f"the journal was damaged and begun anew; what it was is {journal.set_aside}",
            fix=_REMOVE_STORE,
        )
    if history is not None and history.set_aside is not None:
        yield Problem(
            id="history-set-aside",
            severity=Severity.NOTE,
            cause=f"the history was damaged and begun anew; what it was is {history.set_aside}",
            fix=_REMOVE_STORE,
        )


def _paused(state: StoreState) -> str:
    if not state.dropped_bytes:
        return str(state.paused)
    return f"{state.paused}; {state.dropped_bytes / 1024:.1f} KiB were not kept so far"


def _machine(seen: Observation) -> Iterator[Problem]:
    if seen.free_bytes is not None and seen.free_bytes < LITTLE_DISK_BYTES:
        text = f"{seen.free_bytes // MIB} MiB are free where state and logs are kept"
        make_room = "make room on that disk, or move it with --state-dir"
        if seen.free_bytes < NO_DISK_BYTES:
            yield _error("disk-full", text, make_room)
        else:
            yield _warning("disk-full", text, make_room)
    if seen.lost_lines:
        yield _warning(
            "log-lines-lost",
            f"{seen.lost_lines} log lines could not be written",
            "see whether the log's disk is full or slow, or its reader has stopped",
        )
    if seen.stop_s < seen.stop_limit_s:
        yield _warning(
            "stop-limit",
            f"drain.stop_limit_s is {seen.stop_limit_s:g}, and launchd leaves a stop "
            f"{seen.stop_s:g} s: answers that take longer are cut",
            f"set drain.stop_limit_s to at most {seen.stop_s:g}, or install the service again",
        )
    if seen.runtime_dir is not None or seen.runtime_dir_trouble is not None:
        where = f"it serves from {seen.runtime_dir}" if seen.runtime_dir else "it cannot be asked"
        yield _warning(
            "runtime-directory-gone",
            f"the runtime directory was removed, {where}: {seen.runtime_dir_trouble}",
            "make it again; it is taken up within a minute. A user who logs out keeps it with "
            "`loginctl enable-linger`",
        )
    if seen.fault is not None:
        yield _warning(
            "watchdog-fault",
            f"a fault of tidegate's own, which goes on: {seen.fault}",
            "`tidegate logs` has the stack; that and `tidegate bundle` are what to report",
        )
    if not seen.is_watched:
        yield Problem(
            id="not-watched",
            severity=Severity.NOTE,
            cause="systemd started it and does not watch it: a hung watchdog would stay",
            fix="set WatchdogSec=60 in the unit, as `tidegate service install` does",
        )


def _receivers(seen: Observation) -> Iterator[Problem]:
    for each in seen.status.notify:
        if each.failing_since is not None and seen.now - each.failing_since >= UNTOLD_S:
            yield _warning(
                f"notify-failing:{each.name}",
                f"{each.name} cannot be told what happens: {each.error}",
                f"see to it, and try it with `tidegate notify test --to {each.name}`",
            )


def _warning(name: str, cause: str, fix: str) -> Problem:
    return Problem(id=name, severity=Severity.WARNING, cause=cause, fix=fix)


def _error(name: str, cause: str, fix: str) -> Problem:
    return Problem(id=name, severity=Severity.ERROR, cause=cause, fix=fix)


class RepairMonitor:
    """Keep the repairs of a running tidegate, and write a line when one comes or goes."""

    def __init__(self, state_dir: Path, since: Mapping[str, float] | None = None) -> None:
        """Begin. `since` is what a former program knew of, see `Repairs`."""
        self._state_dir = state_dir
        self._repairs = Repairs(since)
        self._disk_at_s = float("-inf")
        self._free_bytes: int | None = None

    def __repr__(self) -> str:
        return f"<RepairMonitor {self._repairs!r}>"

    def open(self) -> list[Repair]:
        """List what is open now, the worst first."""
        return self._repairs.open()

    def since(self) -> dict[str, float]:
        """Tell since when each is open, for the program that this one becomes."""
        return {repair.id: repair.since for repair in self.open()}

    def free_bytes(self, now_s: float) -> int | None:
        """Read the room on the state's disk once a minute; None where it cannot be read."""
        if now_s - self._disk_at_s >= DISK_EVERY_S:
            self._disk_at_s = now_s
            try:
                found = os.statvfs(self._state_dir)
            except OSError:
                self._free_bytes = None
            else:
                self._free_bytes = found.f_bavail * found.f_frsize
        return self._free_bytes

    def look(self, seen: Observation) -> None:
        """Find what is wrong, and log what is new about it."""
        opened, closed = self._repairs.observe(find(seen), now_s=time.monotonic(), now=seen.now)
        for repair in opened:
            level = _LEVELS.get(Severity(repair.severity), logging.ERROR)
            _log.log(level, "repair %s: %s; %s", repair.id, repair.cause, repair.fix)
        for repair in closed:
            _log.info("repair %s is no longer needed", repair.id)
