"""Reads this process's own memory, resident and kept by the allocators, and gives free pages back.

Resident memory is read through a descriptor that stays open (1.3 us a reading on Linux). Python's
resident memory seldom falls by itself after a burst; `malloc_trim` gives the free pages back, and
runs in a thread because it walks the heap.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tidegate.core.memory.report import Allocator

OOM_SCORE_ADJ = 500  # of -1000 to 1000: before the watchdog, and before what says nothing of itself


def resident_meter() -> Callable[[], int]:
    """Make a function that returns this process's resident bytes. Both raise OSError."""
    if sys.platform == "linux":
        fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        return lambda: int(os.pread(fd, 128, 0).split()[1]) * page_bytes
    import psutil  # noqa: PLC0415 - not needed on Linux, where it would cost 3 MiB

    process = psutil.Process()
    return lambda: int(process.memory_info().rss)


def heap_trimmer() -> Callable[[], None]:
    """Make a function that gives free heap pages back to the system, where that is possible.

    ctypes lets go of the interpreter's lock during the call, so the event loop goes on, until it
    allocates: malloc's own lock is held meanwhile. Measured: 2 to 27 ms after bursts of runs;
    at 400 MB with 47,500 holes 44 to 76 ms, of which an allocation in another thread waited
    34 to 66 ms. So not more often than it gives back something.
    """
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # not glibc: macOS gives pages back by itself
        return lambda: None

    def trim() -> None:
        malloc_trim(0)

    return trim


class _Mallinfo2(ctypes.Structure):
    """glibc's `struct mallinfo2`, ten times size_t."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )

    hblkhd: int
    uordblks: int
    fordblks: int


def allocator_meter() -> Callable[[], Allocator]:
    """Make a function that returns what the allocators hold.

    malloc's figures are glibc's from 2.33 on and zeros elsewhere: those of the older `mallinfo`
    are ints and wrong above 2 GiB. It walks every free piece of every arena while no other thread
    can allocate: 20 to 50 us measured after bursts of runs, but 3 ms and once 8 ms at 400 MB with
    47,500 holes. So on an event loop once in 10 s, or from a thread.

    What is free counts as free after a trim too, although its pages are gone by then: how much is
    still resident of it, only the resident bytes tell.
    """
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return lambda: Allocator(pymalloc_blocks=sys.getallocatedblocks())
    mallinfo2.argtypes = ()
    mallinfo2.restype = _Mallinfo2

    def read() -> Allocator:
        info = mallinfo2()
        return Allocator(
            pymalloc_blocks=sys.getallocatedblocks(),
            malloc_in_use_bytes=info.uordblks,
            malloc_free_bytes=info.fordblks,
            malloc_mapped_bytes=info.hblkhd,
        )

    return read


def volunteer_for_oom(file: Path = Path("/proc/self/oom_score_adj")) -> int | None:
    """Ask the kernel to kill this process first when memory is out; the score in force.

    Raises a score that is lower, for which no privilege is needed, and leaves a higher one. None
    where there is no such file, or it may not be written.
    """
    try:
        fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        score = int(os.pread(fd, 32, 0))
        if score < OOM_SCORE_ADJ:
            os.write(fd, b"%d\n" % OOM_SCORE_ADJ)
            score = OOM_SCORE_ADJ
    except (OSError, ValueError):
        return None
    else:
        return score
    finally:
        with suppress(OSError):
            os.close(fd)
