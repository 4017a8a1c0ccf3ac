"""The computer itself: its clock, its memory, and how many files a process may open.

Each check takes readings as a value; `read` fetches them. What cannot be read is None and is
never a finding.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from tidegate.core import descriptors
from tidegate.core.problems import Problem
from tidegate.core.settings import MIB, Settings
from tidegate.doctor.findings import finding
from tidegate.machine import meminfo as machine
from tidegate.machine import procfile
from tidegate.managers.commands import CallError, call, environment

FIRST_YEAR = 2024  # before this program was made
LAST_YEAR = 2100
JUMP_S = 0.25  # between two clocks within a second; slewing is at most 0.5 ms a second
WATCHED_S = 1.0
LEAST_AVAILABLE = 0.05  # of the computer's memory, as the memory guard has it
LIMIT_S = 5.0


class Clock(Struct, frozen=True, kw_only=True):
    """`drift_s`: how far the wall clock went from the monotonic one while it was watched."""

    unix_s: float
    drift_s: float = 0.0
    synchronised: bool | None = None


class ComputerMemory(Struct, frozen=True, kw_only=True):
    """Bytes; None where it is not known."""

    budget_bytes: int
    total_bytes: int | None = None
    available_bytes: int | None = None
    swap_bytes: int | None = None
    overcommit: int | None = None  # vm.overcommit_memory
    used_bytes: int = 0  # by tidegate already


def check_clock(clock: Clock) -> Iterator[Problem]:
    """Check the clock: TLS, tokens' dates, logs and Retry-After all depend on it."""
    fix = "run: sudo timedatectl set-ntp true"
    if sys.platform == "darwin":
        fix = "System Settings, General, Date & Time: set it automatically"
    year = 1970 + int(clock.unix_s // (365.2425 * 86400))
    if not FIRST_YEAR <= year <= LAST_YEAR:
        cause = f"the clock says it is the year {year}: no upstream's certificate is valid then"
        yield finding("clock-wrong", cause, fix)
    if clock.synchronised is False:
        yield finding("clock-unsynchronised", "this computer's clock is not synchronised", fix)
    if abs(clock.drift_s) > JUMP_S:
        yield finding(
            "clock-jumps",
            f"the clock moved by {clock.drift_s:+.2f} s against the time that passed",
            "see that only one program sets the clock: timedatectl, chronyc tracking",
        )


def check_memory(memory: ComputerMemory) -> Iterator[Problem]:
    """Check that the computer has the memory of the budget."""
    budget, total, available = memory.budget_bytes, memory.total_bytes, memory.available_bytes
    smaller = "set a smaller memory.budget in the config"
    if memory.overcommit == 2:
        yield finding(
            "memory-overcommit",
            "vm.overcommit_memory is 2: starting a worker can fail though memory is free",
            "run: sudo sysctl vm.overcommit_memory=0, and look for it in /etc/sysctl.d",
        )
    if total is not None and budget > total:
        yield finding(
            "budget-exceeds-memory",
            f"the budget is {budget // MIB} MiB, and this computer has {total // MIB} MiB",
            smaller,
        )
        return  # what follows from it needs no words of its own
    if memory.swap_bytes == 0 and total is not None and budget > total // 2:
        yield finding(
            "budget-without-swap",
            f"the budget is {budget // MIB} MiB of {total // MIB} MiB, and there is no swap: "
            "what else runs here can make the kernel kill something",
            f"{smaller}, or add swap",
        )
    still = budget - memory.used_bytes
    if available is not None and (
        available < still or (total is not None and available < LEAST_AVAILABLE * total)
    ):
        yield finding(
            "memory-scarce",
            f"{available // MIB} MiB of memory are available, and tidegate may still take "
            f"{max(still, 0) // MIB} MiB",
            f"end what needs it, or use a smaller model; or {smaller}",
        )


def check_descriptors(hard: int, settings: Settings) -> Iterator[Problem]:
    """Check that enough files can be opened.

    `hard` is what a process may raise its own limit to; tidegate does so at its start.
    """
    wanted, there_are = settings.limits.max_connections, descriptors.connection_bounds(hard).clients
    if there_are < wanted:
        enough = descriptors.needed(wanted)
        yield finding(
            "descriptors-few",
            f"a process may open {hard} files here, enough for {there_are} clients; "
            f"limits.max_connections is {wanted} and needs {enough}",
            f"raise it (ulimit -Hn {enough}, or /etc/security/limits.conf), or set a smaller "
            "limits.max_connections",
        )


# --- reading ----------------------------------------------------------------------------------


def read_clock(watched_s: float = WATCHED_S, sleep: Callable[[float], None] = time.sleep) -> Clock:
    """Watch the wall clock and the monotonic clock for `watched_s` seconds."""
    wall_s, monotonic_s = time.time(), time.monotonic()
    sleep(watched_s)
    drift_s = (time.time() - wall_s) - (time.monotonic() - monotonic_s)
    return Clock(unix_s=time.time(), drift_s=drift_s, synchronised=_is_synchronised())


def _is_synchronised() -> bool | None:
    if sys.platform == "darwin":
        return None
    try:
        done = call(["timedatectl", "show", "-p", "NTPSynchronized"], environment(), LIMIT_S)
    except CallError:
        return None
    return {"NTPSynchronized=yes": True, "NTPSynchronized=no": False}.get(done.out.strip())


def read_memory(budget_bytes: int, used_bytes: int = 0) -> ComputerMemory:
    """Read the computer's memory from the kernel."""
    meter = machine.AvailableMeter()
    try:
        available = meter.read()
        total = machine.total_bytes()
    except procfile.UnreadableFigure:
        return ComputerMemory(budget_bytes=budget_bytes, used_bytes=used_bytes)
    finally:
        meter.close()
    return ComputerMemory(
        budget_bytes=budget_bytes,
        used_bytes=used_bytes,
        total_bytes=total,
        available_bytes=available,
        swap_bytes=_swap_bytes(),
        overcommit=_number(Path("/proc/sys/vm/overcommit_memory")),
    )


def hard_limit() -> int:
    """Return how many descriptors a process may have at most."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def _swap_bytes() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("SwapTotal:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
