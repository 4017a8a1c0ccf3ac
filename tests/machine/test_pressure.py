"""Pressure: figures from recorded files and the real kernel, signals through real files."""

from __future__ import annotations

import base64
import ctypes
import os
import select
import selectors
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes.failing_calls import open_descriptors
from tidegate.machine import pressure
from tidegate.machine.pressure import Pressure, PressureMeter, PressureWatch

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="signals are Linux's")
MACHINES = Path(__file__).parent / "machines"
TRIGGER = b"some 200000 2000000\0"


# --- figures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "is_high"),
    [
        (Pressure(), False),
        (Pressure(some_avg10=0.0), False),
        (Pressure(some_avg10=10.0), False),
        (Pressure(some_avg10=10.01), True),
        (Pressure(some_avg10=100.0), True),
        (Pressure(level=1), False),
        (Pressure(level=2), True),
        (Pressure(level=4), True),
        (Pressure(some_avg10=3.0, level=1), False),
    ],
)
def test_what_is_high(read: Pressure, is_high: bool) -> None:
    """More than a tenth of the last ten seconds, or a warning of macOS; the unknown is not high."""
    assert pressure.is_high(read) is is_high


def test_the_larger_of_our_groups_and_the_machines_counts(tmp_path: Path) -> None:
    """A neighbour's shortage is ours too, and ours need not be the machine's."""
    assert PressureMeter(MACHINES / "debian-12-service").read() == Pressure(some_avg10=12.5)
    (tmp_path / "proc/pressure").mkdir(parents=True)
    (tmp_path / "proc/pressure/memory").write_text("some avg10=7.25 avg60=0.00\n")
    assert PressureMeter(tmp_path).read() == Pressure(some_avg10=7.25)


@pytest.mark.parametrize("name", ["lxc", "docker-v1", "raspberry-pi-no-memory-controller"])
def test_a_kernel_without_figures_tells_none(name: str) -> None:
    """What is not there is no failure, on no reading."""
    meter = PressureMeter(MACHINES / name)
    assert meter.read() == meter.read() == Pressure()


@pytest.mark.parametrize(
    "text",
    ["", "\n", "full avg10=3.00\n", "some\n", "some avg10=\n", "some avg10=nan\n", "some avg10=inf",
     "some avg10=-1\n", "some avg10=101\n", "some avg60=20.0\n", "\x00\x01"],
)  # fmt: skip
def test_figures_that_cannot_be_understood_are_logged(tmp_path: Path, text: str) -> None:
    """They are no pressure, and the file is named; what is mended is read again."""
    file = tmp_path / "proc/pressure/memory"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    meter = PressureMeter(tmp_path)
    read = meter.read()
    assert read.some_avg10 is None
    assert len(read.failures) == 1
    assert "memory of" in read.failures[0]
    file.write_text("some avg10=11.00 avg60=0.00 avg300=0.00 total=0\n")
    assert pressure.is_high(meter.read())
    meter.close()


@pytest.mark.skipif(not Path("/proc/pressure/memory").exists(), reason="a kernel without figures")
def test_the_real_kernels_figures_are_read() -> None:
    """A share between nothing and everything, through descriptors that are kept."""
    meter = PressureMeter()
    meter.read()
    before = len(open_descriptors())
    for _ in range(100):
        share = meter.read().some_avg10
        assert share is not None
        assert 0 <= share <= 100
    assert len(open_descriptors()) == before
    meter.close()


def _sysctl(level: int, fails: int = 0) -> Any:
    """A C function of macOS's signature that knows one name."""
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.c_int),
        ctypes.POINTER(ctypes.c_size_t),
        ctypes.c_void_p,
        ctypes.c_size_t,
    )

    def answer(name: bytes, old: object, size: object, new: object, new_size: int) -> int:
        assert name == b"kern.memorystatus_vm_pressure_level"
        assert size[0] == ctypes.sizeof(ctypes.c_int)
        assert (new, new_size) == (None, 0)
        old[0] = level
        return fails

    return prototype(answer)


def test_macos_level_comes_through_a_c_call(tmp_path: Path) -> None:
    """The level is asked by name, and a warning counts as pressure."""
    meter = PressureMeter(tmp_path, read_level=pressure.level_reader(_sysctl(4)))
    assert meter.read() == Pressure(level=4)
    assert pressure.is_high(meter.read())


def test_a_level_that_is_not_told_is_none() -> None:
    """An older macOS does not know the name; elsewhere it is not asked for."""
    assert pressure.level_reader(_sysctl(4, fails=-1))() is None
    if sys.platform != "darwin":
        assert pressure.level_reader()() is None


# --- signals ------------------------------------------------------------------------------------


@contextmanager
def watching(environ: dict[str, str]) -> Iterator[tuple[PressureWatch, selectors.BaseSelector]]:
    """A watch that is registered as the watchdog does it."""
    watch = pressure.watch_from(environ)
    assert watch is not None
    with selectors.DefaultSelector() as selector:
        selector.register(watch, selectors.EVENT_READ)
        yield watch, selector
        selector.unregister(watch)
    watch.close()


def environment(path: object, words: bytes | None = TRIGGER) -> dict[str, str]:
    """What systemd sets."""
    found = {"MEMORY_PRESSURE_WATCH": str(path)}
    if words is not None:
        found["MEMORY_PRESSURE_WRITE"] = base64.b64encode(words).decode()
    return found


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A FIFO to watch."""
    path = tmp_path / "pressure.fifo"
    os.mkfifo(path)
    return path


@linux_only
@pytest.mark.parametrize("words", [None, b"", TRIGGER, os.urandom(4096)])
def test_a_fifo_signals(fifo: Path, words: bytes | None) -> None:
    """What a process writes is pressure, once; our own words coming back are none."""
    with watching(environment(fifo, words)) as (watch, selector):
        assert bool(selector.select(0)) is bool(words)
        assert not watch.consume()
        for _ in range(3):
            assert not selector.select(0)
            with fifo.open("wb", buffering=0) as other:  # and ends, which is no end of the watch
                other.write(b"x")
            assert selector.select(5)
            assert watch.consume()
            assert not watch.consume()


@linux_only
def test_a_signal_behind_our_own_words_is_heard(fifo: Path) -> None:
    """Both may be read in one piece."""
    with watching(environment(fifo)) as (watch, selector):
        with fifo.open("wb", buffering=0) as other:
            other.write(b"x")
        assert selector.select(5)
        assert watch.consume()


@linux_only
def test_a_flood_is_read_piece_by_piece(tmp_path: Path) -> None:
    """One call reads no more than its bound, and the rest stays readable."""
    path = tmp_path / "pressure.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with watching(environment(path)) as (watch, selector):
            peer, _ = server.accept()
            with peer:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                flood = b"x" * (100 * 1024)
                sender = threading.Thread(target=peer.sendall, args=(flood,))
                sender.start()
                turns = 0
                while sender.is_alive() or selector.select(0):
                    turns += bool(selector.select(0.1)) and watch.consume()
                sender.join()
                assert turns >= 2


@linux_only
def test_a_socket_is_told_the_trigger_and_signals(tmp_path: Path) -> None:
    """The words arrive decoded; each message is pressure; when the peer goes, it is over for good.

    A stream at its end is readable for ever: it must not keep the loop turning.
    """
    path = tmp_path / "pressure.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with watching(environment(path)) as (watch, selector):
            peer, _ = server.accept()
            assert peer.recv(100) == TRIGGER
            assert not selector.select(0)
            peer.send(b"short")
            assert selector.select(5)
            assert watch.consume()
            assert not selector.select(0)
            peer.send(b"last words")
            peer.close()
            assert selector.select(5)
            assert watch.consume()
            assert not selector.select(0.05)
            assert not watch.consume()


def may_trigger() -> bool:
    """Whether this kernel lets us set up a trigger."""
    try:
        watch = pressure.watch_from({})
    except pressure.PressureError:
        return False
    if watch is not None:
        watch.close()
    return watch is not None


@pytest.mark.skipif(not may_trigger(), reason="the kernel takes no trigger from us")
@pytest.mark.parametrize(
    "environ", [{}, {"MEMORY_PRESSURE_WATCH": ""}, environment("/proc/pressure/memory")]
)
def test_the_kernels_file_takes_the_trigger(environ: dict[str, str]) -> None:
    """Named by the manager or found by ourselves, it is watched and silent while nothing is short.

    /proc/pressure refuses a trigger without a byte for it to overwrite, so one that was written
    wholly and accepted was right.
    """
    with watching(environ) as (watch, _):
        assert "pressure" in watch.source
    if environ.get("MEMORY_PRESSURE_WATCH"):
        with pytest.raises(pressure.PressureError, match="cannot write"):
            pressure.watch_from(environment("/proc/pressure/memory", TRIGGER.rstrip(b"\0")))


class KernelsEpoll:
    """An epoll on a kernel's file: what it has to tell is told once, at the first look."""

    def __init__(self, *masks: int) -> None:
        self.masks = list(masks)
        self.dropped: list[int] = []

    def register(self, fd: int, mask: int) -> None:
        pass

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        return [(0, self.masks.pop(0))] if self.masks else []

    def unregister(self, fd: int) -> None:
        self.dropped.append(fd)

    def close(self) -> None:
        pass


@linux_only
@pytest.mark.parametrize(
    ("masks", "took", "drops"),
    [((), True, 0), ((2,), True, 0), ((8 | 2,), True, 1), ((8,), False, 1), ((16,), False, 1)],
)
def test_a_kernels_signal_is_not_lost_to_the_first_look(
    masks: tuple[int, ...], took: bool, drops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The selector's own look takes the kernel's event away: readable is what counts.

    Seen on Linux 6.18: at every real event the inner epoll was readable and then had nothing to
    tell. A group that was removed says so on every look, and is dropped.
    """
    reader, writer = os.pipe()
    inner = KernelsEpoll(*masks)
    monkeypatch.setattr(select, "epoll", lambda: inner)
    watch = PressureWatch("a test", reader, own_bytes=b"", is_kernels=True)
    assert watch.consume() is took
    assert len(inner.dropped) == drops
    watch.close()
    os.close(writer)


@linux_only
def test_dev_null_switches_it_off() -> None:
    """The service manager's word for: do not watch."""
    assert pressure.watch_from({"MEMORY_PRESSURE_WATCH": "/dev/null"}) is None


@linux_only
@pytest.mark.parametrize(
    ("environ", "why"),
    [
        (environment("relative/path"), "not an absolute path"),
        (environment("/no/such/file"), "No such file"),
        (environment("/dev/zero"), "neither"),
        (environment("/proc"), "neither"),
        (environment("/" + "x" * 300), "name too long"),
        (environment("/a\0b"), "not an absolute path"),
        ({"MEMORY_PRESSURE_WATCH": "/dev/zero", "MEMORY_PRESSURE_WRITE": "*"}, "not base64"),
        ({"MEMORY_PRESSURE_WATCH": "/dev/zero", "MEMORY_PRESSURE_WRITE": "YQ"}, "not base64"),
        ({"MEMORY_PRESSURE_WATCH": "/dev/zero", "MEMORY_PRESSURE_WRITE": "\u00e9"}, "not base64"),
        (environment("/dev/zero", b"x" * 4097), "more than 4096 bytes"),
    ],
)
def test_what_cannot_be_followed_is_said(environ: dict[str, str], why: str) -> None:
    """Bad values are one kind of error that says what is wrong; nothing stays open."""
    before = open_descriptors()
    with pytest.raises(pressure.PressureError, match=why):
        pressure.watch_from(environ)
    assert open_descriptors() == before


@linux_only
def test_a_plain_file_is_no_kernels_file(tmp_path: Path) -> None:
    """It never signals anything, so it is refused rather than waited for."""
    (tmp_path / "file").write_text("")
    with pytest.raises(pressure.PressureError, match="cannot wait"):
        pressure.watch_from(environment(tmp_path / "file"))


@linux_only
def test_a_socket_that_no_process_answers_does_not_block(tmp_path: Path) -> None:
    """Refused when no process listens, and when its queue is full: at once, in words."""
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        with pytest.raises(pressure.PressureError, match="refused"):
            pressure.watch_from(environment(path))
        server.listen(0)
        with watching(environment(path)), pytest.raises(pressure.PressureError):
            pressure.watch_from(environment(path))
