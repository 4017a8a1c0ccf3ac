"""Readings of real processes, by the real sampler."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from unittest import mock

import psutil
import pytest

from tidegate.core.settings import MIB
from tidegate.machine.cgroup import Cgroup
from tidegate.machine.sample import Sample, SampleError, Sampler, machine_bytes

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


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
    """A process that ended between two readings is left out, whichever process has its pid now."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.pid in sampler.read([child.pid]).rss
    child.communicate(b"\n")
    assert sampler.read([child.pid]).rss == {}
    assert sampler.read([os.getpid()]).rss.keys() == {os.getpid()}


@linux_only
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


@linux_only
def test_a_part_that_cannot_be_read_is_said_and_the_rest_is_good(tmp_path: Path) -> None:
    """Our processes are sampled though the group's file is nonsense; mended, it counts again."""
    (tmp_path / "memory.current").write_text("nonsense")
    (tmp_path / "memory.stat").write_text("inactive_file 0\n")
    with closing(Sampler(Cgroup(tmp_path, 2))) as sampler:
        read = sampler.read([os.getpid()])
        assert read.rss[os.getpid()] > 0
        assert read.cgroup_bytes is None
        assert read.available_bytes
        assert len(read.failures) == 1
        assert "memory.current" in read.failures[0]
        assert "not a number" in read.failures[0]
        (tmp_path / "memory.current").write_text("4096\n")
        mended = sampler.read([os.getpid()])
        assert (mended.cgroup_bytes, mended.failures) == (4096, ())


@linux_only
def test_an_open_sampler_needs_no_descriptor() -> None:
    """With every descriptor of the process taken the next sample is as good as the last."""
    code = (
        "import os, resource\n"
        "from tidegate.machine.sample import Sampler\n"
        "me, sampler = os.getpid(), Sampler()\n"
        "sampler.read([me])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))\n"
        "try:\n"
        "    while True: os.dup(0)\n"
        "except OSError: pass\n"
        "read = sampler.read([me, os.getppid()])\n"
        "print(read.rss[me] > 0, (read.available_bytes or 0) > 0, read.failures)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True True ('statm of /proc/")
    assert "Too many open files" in done.stdout
    assert done.stdout.count("Too many") == 1


@linux_only
def test_a_pid_that_is_used_again_is_read_anew(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead's descriptor shows no other process; from the next reading on, the living counts."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert sampler.read([child.pid]).rss
    child.communicate(b"\n")
    opened: list[Path] = []
    real_open = os.open

    def open_another(path: Path, flags: int) -> int:
        opened.append(path)
        return real_open("/proc/self/statm", flags)

    monkeypatch.setattr(os, "open", open_another)
    assert sampler.read([child.pid]).rss == {}
    assert opened == []
    assert sampler.read([child.pid]).rss[child.pid] > 0
    assert opened == [Path(f"/proc/{child.pid}/statm")]


@linux_only
def test_a_process_that_dies_between_open_and_read_is_absent(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file was there, and then it says that there is no such process."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    real_pread = os.pread

    def die_first(fd: int, most: int, offset: int) -> bytes:
        if child.poll() is None:
            child.communicate(b"\n")
        return real_pread(fd, most, offset)

    monkeypatch.setattr(os, "pread", die_first)
    read = sampler.read([child.pid])
    assert (read.rss, read.failures) == ({}, ())


@linux_only
def test_a_process_that_ended_and_is_not_buried_holds_nothing(sampler: Sampler) -> None:
    """Its parent has not asked for it yet: it has a pid and no memory, and no unshared part."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert sampler.read([child.pid]).rss == {child.pid: 0}
    assert sampler.uss_bytes(child.pid) is None
    child.wait()
    assert sampler.uss_bytes(child.pid) is None


@linux_only
def test_the_unshared_part_grows_with_what_is_our_own(sampler: Sampler) -> None:
    """Memory that no other process maps is what would be free again if the process ended."""
    before = sampler.uss_bytes(os.getpid())
    with mmap.mmap(-1, 64 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"x" * len(held))
        after = sampler.uss_bytes(os.getpid())
    assert before is not None
    assert after is not None
    assert 48 * MIB < after - before < 80 * MIB
    assert before < sampler.read([os.getpid()]).used_bytes


def test_psutil_reads_where_linux_does_not(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other platform's way gives the same figures, and no unshared part."""
    here = sampler.read([os.getpid()])
    machine_bytes.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    there = sampler.read([os.getpid(), 2**22 + 1])
    assert there.rss.keys() == {os.getpid()}
    assert there.failures == ()
    assert abs(there.used_bytes - here.used_bytes) < 32 * MIB
    assert there.available_bytes
    assert sampler.uss_bytes(os.getpid()) is None
    assert machine_bytes() == psutil.virtual_memory().total


@linux_only
def test_the_machines_memory_is_known_once_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is not remembered, a figure is: later no descriptor is needed for it."""
    machine_bytes.cache_clear()
    with monkeypatch.context() as broken:
        broken.setattr(os, "open", mock.Mock(side_effect=OSError(errno.EMFILE, "too many")))
        with pytest.raises(SampleError, match="meminfo of /proc: too many"):
            machine_bytes()
    known = machine_bytes()
    monkeypatch.setattr(os, "open", mock.Mock(side_effect=OSError(errno.EMFILE, "too many")))
    assert machine_bytes() == known > 0


@linux_only
def test_psutil_is_not_loaded_on_linux() -> None:
    """It would be a quarter of the watchdog's memory."""
    code = (
        "import os, sys\n"
        "from tidegate.machine import budget, pressure, sample\n"
        "budget.find(None); sample.Sampler().read([os.getpid()]); sample.machine_bytes()\n"
        "print('psutil' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_sampler_follows_its_group(tmp_path: Path) -> None:
    """A budget that comes from another group after a reload is sampled there."""
    for name, text in (("a", "1"), ("b", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "memory.current").write_text(text)
        (tmp_path / name / "memory.stat").write_text("")
    with closing(Sampler(Cgroup(tmp_path / "a", 2))) as sampler:
        assert sampler.read([]).cgroup_bytes == 1
        sampler.cgroup = Cgroup(tmp_path / "b", 2)
        assert sampler.read([]).cgroup_bytes == 2
        sampler.cgroup = None
        assert sampler.read([]).cgroup_bytes is None


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


@pytest.mark.parametrize(
    ("cgroup", "used"), [(None, 130), (110, 130), (130, 130), (150, 150)], ids=str
)
def test_a_journal_in_memory_is_counted_once(cgroup: int | None, used: int) -> None:
    """It is in no process; a control group counts it among what its processes wrote."""
    sample = Sample(rss={1: 60, 2: 40}, cgroup_bytes=cgroup, available_bytes=None)
    assert sample.used_with(30) == used
    assert sample.used_bytes == max(100, cgroup or 0)
