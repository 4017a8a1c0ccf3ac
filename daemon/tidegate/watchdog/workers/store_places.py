"""Where workers keep what outlives them, and how much of the budget that may be."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from tidegate.core.memory.levels import journal_limit_bytes
from tidegate.core.protocol.worker import StorePlaces
from tidegate.core.settings import KIB, MIB, Settings
from tidegate.machine import budget
from tidegate.machine.mounts import is_in_memory

_log = logging.getLogger(__name__)
SHARE_OF_PLACE = 4
LEAST_BYTES = 256 * KIB  # as the setting's own


def find_places(runtime_dir: Path, state_dir: Path) -> StorePlaces:
    """Find the places: the runtime directory only where it is in memory.

    Where both are one directory they have one name, however they were named.
    """
    if not is_in_memory(runtime_dir):
        return StorePlaces(disk=str(state_dir))
    with suppress(OSError):
        if runtime_dir.samefile(state_dir):
            state_dir = runtime_dir
    return StorePlaces(memory=str(runtime_dir), disk=str(state_dir))


def fitted(settings: Settings, places: StorePlaces) -> Settings:
    """Return `settings` with a journal that leaves room to others, where it is in memory.

    What lies there goes with no worker, so ending one would not help against it; and where other
    programs keep their files beside it, as in /run, they need some too.
    """
    journal = settings.journal
    if places.memory is None or journal.place == "disk" or journal.keep == "off":
        return settings
    most_bytes = journal_limit_bytes(budget.find(settings.memory.budget_bytes).bytes)
    with suppress(OSError, ValueError):
        there = os.statvfs(places.memory)
        if size_bytes := there.f_blocks * there.f_frsize:  # 0: it has no limit
            most_bytes = min(most_bytes, max(LEAST_BYTES, size_bytes // SHARE_OF_PLACE))
    if journal.max_bytes <= most_bytes:
        return settings
    shown = (most_bytes / MIB, journal.max_bytes // MIB)
    _log.info(
        "the journal takes at most %.1f MiB of memory, not %d: the rest is for others", *shown
    )
    return replace(settings, journal=replace(journal, max_bytes=most_bytes))
