"""Readings of real processes, by the real sampler."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tidegate.core.settings import MIB
from tidegate.guard.cgroup import Cgroup
from tidegate.guard.sample import SampleError, Sampler


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    """A sampler whose descriptors are given back."""
    made = Sampler()
    yield made
    made.close()


def test_it_reads_what_psutil_reads(sampler: Sampler) -> None:
    """Our own RSS by the kept descriptor is what psutil sees, give or take."""
    read = sampler.read([os.getpid()]).rss[os.getpid()]
    assert abs(read - psutil.Process().memory_info().rss) < 8 * MIB


def test_growth_is_seen(sampler: Sampler) -> None:
    """The second reading through the same descriptor is a new one."""
    before = sampler.read([os.getpid()])
    with mmap.mmap(-1, 64 * MIB) as held:  # of its own, whatever the heap has free
        held.write(b"x" * len(held))
        after = sampler.read([os.getpid()])
    assert after.used_bytes - before.used_bytes > 48 * MIB


def test_gone_process_is_absent(sampler: Sampler) -> None:
    """A process that ended between two readings is left out, whoever has its pid now."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.pid in sampler.read([child.pid]).rss
    child.communicate(b"\n")
    assert sampler.read([child.pid]).rss == {}
    assert sampler.read([os.getpid()]).rss.keys() == {os.getpid()}


@pytest.mark.skipif(sys.platform != "linux", reason="statm is Linux's")
def test_descriptors_are_kept_and_given_back(sampler: Sampler) -> None:
    """A hundred readings use one descriptor, and it is closed when the process is left out."""
    own = Path("/proc/self/fd")
    sampler.read([])  # the machine's own figures have one too
    before = len(list(own.iterdir()))
    for _ in range(100):
        sampler.read([os.getpid()])
    assert len(list(own.iterdir())) == before + 1
    sampler.read([])
    assert len(list(own.iterdir())) == before


def test_cgroup_counts_when_it_is_larger(tmp_path: Path) -> None:
    """What counts against the cgroup's limit is used memory, page cache apart."""
    (tmp_path / "memory.current").write_text(f"{1 << 40}")
    (tmp_path / "memory.stat").write_text("inactive_file 1024\n")
    sampler = Sampler(Cgroup(tmp_path, 2))
    assert sampler.read([]).used_bytes == (1 << 40) - 1024


def test_unreadable_figures_are_said(tmp_path: Path) -> None:
    """A cgroup that vanished is one kind of error that the caller can survive."""
    with pytest.raises(SampleError, match=r"memory\.current"):
        Sampler(Cgroup(tmp_path, 2)).read([])
