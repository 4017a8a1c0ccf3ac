"""Every system call of the guard fails once, in every way: nothing worse comes out than is said.

Each test fails the first call, then the second, and so on until there are no more; no descriptor
may be left over, and the next reading is whole again.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fakes.failing_calls import ERRORS, FailingCalls, fail_each
from tidegate.machine import budget, heap, pressure, procfile, sample
from tidegate.machine.cgroup import Cgroup

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the guard of Linux")

DEBIAN = Path(__file__).parent / "machines/debian-12-service"
SERVICE = Cgroup(DEBIAN / "sys/fs/cgroup/system.slice/tidegate.service", 2)
each_error = pytest.mark.parametrize("code", ERRORS)


def nothing(_: Any = None) -> None:
    """Nothing to prepare, nothing to clear."""


@each_error
def test_a_budget_is_always_found(code: int) -> None:
    """With a setting there is a budget whatever fails, and it is never larger than that."""
    whole = budget.find(1 << 40, DEBIAN)

    def act(_: None) -> None:
        found = budget.find(512 << 20, DEBIAN)
        assert 0 < found.bytes <= 512 << 20

    assert fail_each(code, nothing, act, nothing) > 10
    assert budget.find(1 << 40, DEBIAN) == whole


@each_error
def test_a_group_that_cannot_be_read_is_one_kind_of_error(code: int) -> None:
    """Reading what a group uses gives the figure or says that it is unreadable."""

    def act(_: None) -> None:
        with suppress(procfile.UnreadableFigure):
            assert SERVICE.used_bytes() >= 0

    assert fail_each(code, nothing, act, nothing) > 3
    assert SERVICE.used_bytes() == 240 << 20


@each_error
@pytest.mark.parametrize("is_warm", [False, True])
def test_a_sample_says_what_it_lacks_and_the_next_is_whole(code: int, is_warm: bool) -> None:
    """One failing call costs one figure of one sample, and a process keeps its last one."""

    def prepare() -> sample.Sampler:
        sampler = sample.Sampler(SERVICE)
        if is_warm:
            sampler.read([os.getpid()])
        return sampler

    def act(sampler: sample.Sampler) -> None:
        try:
            read = sampler.read([os.getpid()])
        except sample.SampleError:
            read = None
        assert not is_warm or (read is not None and read.rss[os.getpid()] > 0)
        if read is not None and code > 0 and isinstance(read.cgroup_bytes, int):
            assert read.cgroup_bytes == 240 << 20

    def clear(sampler: sample.Sampler) -> None:
        after = sampler.read([os.getpid()])
        assert after.failures == ()
        assert after.cgroup_bytes == 240 << 20
        assert after.available_bytes
        sampler.close()

    if not is_warm:
        assert fail_each(code, prepare, act, clear) > 6
        return
    # A warm sampler's descriptors are open before: count them as its own.
    for fail_at in range(1, 20):
        sampler = prepare()
        with FailingCalls(fail_at, code).armed():
            act(sampler)
        clear(sampler)


@each_error
def test_single_figures_are_there_or_not(code: int) -> None:
    """The unshared part and the machine's memory fail in the way that they say."""

    def act(_: None) -> None:
        sampler = sample.Sampler()
        unshared = sampler.uss_bytes(os.getpid())
        assert unshared is None or unshared >= 0
        sample.machine_bytes.cache_clear()
        with suppress(sample.SampleError):
            assert sample.machine_bytes() > 0

    assert fail_each(code, nothing, act, nothing) > 4


@each_error
def test_pressure_is_read_or_said(code: int) -> None:
    """A meter raises nothing, and the next reading has both figures again."""

    def prepare() -> pressure.PressureMeter:
        return pressure.PressureMeter(DEBIAN)

    def act(meter: pressure.PressureMeter) -> None:
        meter.read()

    def clear(meter: pressure.PressureMeter) -> None:
        assert meter.read() == pressure.Pressure(some_avg10=12.5)
        meter.close()

    assert fail_each(code, prepare, act, clear) == 4


@each_error
def test_a_meter_of_pressure_begins_whatever_fails(code: int) -> None:
    """Looking for the files needs calls too."""

    def act(_: None) -> None:
        meter = pressure.PressureMeter(DEBIAN)
        meter.read()
        meter.close()

    assert fail_each(code, nothing, act, nothing) > 6


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    """A FIFO to watch."""
    path = tmp_path / "pressure.fifo"
    os.mkfifo(path)
    return str(path)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[str]:
    """A stream socket to watch."""
    path = tmp_path / "pressure.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1000)
        yield str(path)


@each_error
@pytest.mark.parametrize("kind", ["fifo", "listening"])
def test_a_signal_is_watched_or_refused_in_words(
    code: int, kind: str, request: pytest.FixtureRequest
) -> None:
    """Opening, writing, registering, reading and closing: each may fail, none leaves anything."""
    environ = {
        "MEMORY_PRESSURE_WATCH": request.getfixturevalue(kind),
        "MEMORY_PRESSURE_WRITE": "c29tZSAyMDAwMDAgMjAwMDAwMAA=",
    }

    def act(_: None) -> None:
        with suppress(pressure.PressureError):
            watch = pressure.watch_from(environ)
            assert watch is not None
            watch.consume()
            watch.consume()
            watch.close()

    assert fail_each(code, nothing, act, nothing) > 6


@each_error
def test_no_trigger_of_our_own_is_no_error(code: int) -> None:
    """Where nothing signals and a trigger cannot be set up, there is nothing to watch."""

    def act(_: None) -> None:
        watch = pressure.watch_from({})
        if watch is not None:
            watch.close()

    fail_each(code, nothing, act, nothing)


@each_error
@pytest.mark.parametrize("make", [heap.allocator_meter, heap.heap_trimmer])
def test_an_allocator_that_cannot_be_asked_is_no_error(
    code: int, make: Callable[[], Callable[[], object]]
) -> None:
    """Without the C library's function there are zeros, and nothing to trim."""

    def act(_: None) -> None:
        make()()

    fail_each(code, nothing, act, nothing)


@each_error
def test_volunteering_fails_quietly(code: int, tmp_path: Path) -> None:
    """A score that cannot be raised is left as it is."""
    file = tmp_path / "oom_score_adj"

    def prepare() -> None:
        file.write_text("0\n")

    def act(_: None) -> None:
        assert heap.volunteer_for_oom(file) in {None, heap.OOM_SCORE_ADJ}

    assert fail_each(code, prepare, act, nothing) == 4


def test_the_harness_sees_a_leak_and_an_error() -> None:
    """A descriptor that is forgotten on the way out is found, and so is an error."""

    def leaks(_: None) -> None:
        with suppress(OSError):
            fd = os.open("/dev/null", os.O_RDONLY)
            os.read(fd, 1)
            os.close(fd)

    def fails(_: None) -> None:
        os.stat("/")  # noqa: PTH116

    with pytest.raises(AssertionError, match="leaves"):
        fail_each(ERRORS[0], nothing, leaks, nothing)
    with pytest.raises(OSError, match="Too many open files"):
        fail_each(ERRORS[0], nothing, fails, nothing)
