"""Reads memory: of our processes, of the control group, and what the machine has left.

On Linux a process's resident memory comes from `statm` through a descriptor that is kept open:
1.3 microseconds a reading, where psutil's full figures take 20 milliseconds. A kept descriptor
also cannot be fooled by a pid that was given to another process, and still reads when the process
has no descriptor left. Elsewhere psutil reads.

A part that cannot be read is said in the sample, and the rest is still good. A process that lives
and cannot be read keeps its last figure: the level must not fall because of a failing reading.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tidegate.machine import meminfo, procfile
from tidegate.machine.cgroup import Cgroup, CgroupMeter

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class SampleError(Exception):
    """No figure of our own memory could be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One reading of memory, in bytes. A process that is gone is absent from `rss`."""

    rss: dict[int, int]
    cgroup_bytes: int | None  # what counts against the cgroup's limit, if one limits us
    available_bytes: int | None  # of the machine; None when it won't say
    failures: tuple[str, ...] = ()  # what could not be read, in words

    @property
    def used_bytes(self) -> int:
        """Return what an out-of-memory killer would count: the larger of the two figures."""
        return self.used_with(0)

    def used_with(self, journal_bytes: int) -> int:
        """Return the same where a journal lies in memory.

        It is in no process, and a control group counts it already.
        """
        return max(sum(self.rss.values()) + journal_bytes, self.cgroup_bytes or 0)


@dataclass(slots=True)
class Sampler:
    """Reads samples. `close` closes its descriptors; reading again opens them again."""

    cgroup: Cgroup | None = None
    _rss_files: dict[int, procfile.KeptFile] = field(default_factory=dict)
    _last_rss: dict[int, int] = field(default_factory=dict)
    _cgroup_meter: CgroupMeter | None = None
    _available: meminfo.AvailableMeter = field(default_factory=meminfo.AvailableMeter)

    def read(self, pids: Collection[int]) -> Sample:
        """Read the memory of `pids` and of the machine now. Raises SampleError."""
        self._forget([pid for pid in {*self._rss_files, *self._last_rss} if pid not in pids])
        failures: list[str] = []
        rss = self._read_rss(pids, failures)
        used_bytes = self._read_cgroup(failures)
        if failures and not rss and used_bytes is None:
            raise SampleError(f"cannot read memory figures: {'; '.join(failures)}")
        try:
            available_bytes = self._available.read()
        except procfile.UnreadableFigure as error:
            available_bytes = None
            failures.append(str(error))
        return Sample(
            rss=rss,
            cgroup_bytes=used_bytes,
            available_bytes=available_bytes,
            failures=tuple(failures),
        )

    def uss_bytes(self, pid: int) -> int | None:
        """Read what would be free if `pid` ended, by Linux's `smaps_rollup`; None if unreadable.

        Not for every second: the kernel walks all mappings while the process waits for its next
        page, 11 ms and up to 74 ms at 400 MB. psutil's figure is not asked elsewhere, for on
        Macs without a screen `memory_full_info` has been seen to wait for ever.
        """
        if sys.platform != "linux":
            return None
        try:
            text = procfile.read_whole(Path(f"/proc/{pid}/smaps_rollup"))
            clean_kib = procfile.value_of(text, b"Private_Clean:")
            dirty_kib = procfile.value_of(text, b"Private_Dirty:")
        except (OSError, ValueError):
            return None
        if clean_kib is None or dirty_kib is None:
            return None  # the process has ended and is not yet reaped
        return (clean_kib + dirty_kib) * 1024

    def close(self) -> None:
        """Close every kept descriptor."""
        self._forget([*self._rss_files, *self._last_rss])
        self._available.close()
        if self._cgroup_meter is not None:
            self._cgroup_meter.close()

    def _read_rss(self, pids: Collection[int], failures: list[str]) -> dict[int, int]:
        rss: dict[int, int] = {}
        for pid in pids:
            try:
                read = self._rss(pid)
            except procfile.UnreadableFigure as error:
                failures.append(str(error))
                read = self._last_rss.get(pid)
            if read is not None:
                rss[pid] = self._last_rss[pid] = read
        return rss

    def _rss(self, pid: int) -> int | None:
        """Read the resident bytes; None when the process is gone. Raises UnreadableFigure."""
        if sys.platform != "linux":
            return _rss_by_psutil(pid)
        if pid not in self._rss_files:
            self._rss_files[pid] = procfile.KeptFile(Path(f"/proc/{pid}/statm"))
        file = self._rss_files[pid]
        try:
            # Not `parse`: what a stale descriptor showed is over, and the process that has the pid
            # now is another. The next reading opens anew, for it may be the next worker.
            return procfile.number(file.read().split()[1]) * _PAGE_BYTES
        except (FileNotFoundError, ProcessLookupError):
            self._forget([pid])
            return None
        except (OSError, ValueError, IndexError) as error:
            raise procfile.UnreadableFigure(procfile.describe(file.path, error)) from error

    def _read_cgroup(self, failures: list[str]) -> int | None:
        meter = self._cgroup_meter
        if meter is not None and meter.cgroup != self.cgroup:
            meter.close()
            meter = self._cgroup_meter = None
        if self.cgroup is None:
            return None
        if meter is None:
            meter = self._cgroup_meter = CgroupMeter(self.cgroup)
        try:
            return meter.read()
        except procfile.UnreadableFigure as error:
            failures.append(str(error))
            return None

    def _forget(self, pids: Collection[int]) -> None:
        for pid in pids:
            self._last_rss.pop(pid, None)
            if file := self._rss_files.pop(pid, None):
                file.close()


@cache
def machine_bytes() -> int:
    """Return the machine's memory in bytes, read once: later calls cannot fail.

    Raises SampleError.
    """
    try:
        return meminfo.total_bytes()
    except procfile.UnreadableFigure as error:
        raise SampleError(str(error)) from error


def _rss_by_psutil(pid: int) -> int | None:
    import psutil  # noqa: PLC0415 - elsewhere than on Linux

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return None
    except (OSError, RuntimeError, psutil.Error) as error:
        raise procfile.UnreadableFigure(f"memory of process {pid}: {error}") from error
