"""Reads whether memory is short on this computer, whichever process took it.

Three sources: the kernel's pressure figures (the share of the last 10 s in which some task waited
for memory), macOS's pressure level, and a signal: systemd's memory-pressure protocol, or without
one a trigger of our own. Figures and level are read on every sample; a signal becomes
readable between two samples, and its receiver remembers it for as long as it should count.

Pressure is not a ratio of our budget, and another process may be its cause.
"""

from __future__ import annotations

import binascii
import ctypes
import os
import select
import socket
import stat
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tidegate.machine import cgroup, procfile

HIGH_SOME_AVG10 = 10.0  # per cent of the last 10 s
WARN_LEVEL = 2  # macOS: 1 normal, 2 warning, 4 critical
_LEVEL_NAME = b"kern.memorystatus_vm_pressure_level"

# Shortage for 200 ms of 2 s. Without privileges the kernel takes whole multiples of 2 s only. The
# byte at the end belongs to it: /proc/pressure overwrites the last one, whatever it is.
OWN_TRIGGER = b"some 200000 2000000\0"
MOST_TRIGGER_BYTES = 4096  # what a pipe takes at once
_PIECE_BYTES = 4096
_MOST_PIECES = 16  # read at a time; the rest stays readable


class PressureError(Exception):
    """What a service manager says of memory pressure cannot be followed. The text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """One reading of memory pressure. None is what this machine does not tell."""

    some_avg10: float | None = None  # per cent; the larger of our control group's and the machine's
    level: int | None = None  # macOS
    failures: tuple[str, ...] = ()  # what could not be read, in words


def is_high(pressure: Pressure) -> bool:
    """Tell whether memory is so short that we should give some back."""
    return (pressure.some_avg10 or 0.0) > HIGH_SOME_AVG10 or (pressure.level or 0) >= WARN_LEVEL


class PressureMeter:
    """Reads the pressure figures, through kept descriptors. `close` it when done."""

    def __init__(
        self, root: Path = Path("/"), read_level: Callable[[], int | None] | None = None
    ) -> None:
        self._files = [procfile.KeptFile(path) for path in _pressure_files(root)]
        self._read_level = level_reader() if read_level is None else read_level

    def read(self) -> Pressure:
        """Read the pressure now. Raises nothing; a file that is not there is not read again."""
        shares: list[float] = []
        failures: list[str] = []
        for file in list(self._files):
            try:
                shares.append(_some_avg10(file.read()))
            except (OSError, ValueError) as error:
                if procfile.is_absent(error):
                    self._files.remove(file)
                else:
                    failures.append(procfile.describe(file.path, error))
        return Pressure(
            some_avg10=max(shares, default=None),
            level=self._read_level(),
            failures=tuple(failures),
        )

    def close(self) -> None:
        """Close the descriptors."""
        for file in self._files:
            file.close()


def level_reader(
    sysctlbyname: Callable[..., int] | None = None,
) -> Callable[[], int | None]:
    """Make a function that returns macOS's pressure level, and None where there is none.

    `sysctlbyname` is the C library's, with the arguments of its manual page.
    """
    if sysctlbyname is None:
        if sys.platform != "darwin":
            return lambda: None
        sysctlbyname = ctypes.CDLL(None).sysctlbyname
    ask = sysctlbyname

    def read() -> int | None:
        level = ctypes.c_int(0)
        size = ctypes.c_size_t(ctypes.sizeof(level))
        try:
            failed = ask(_LEVEL_NAME, ctypes.byref(level), ctypes.byref(size), None, 0)
        except OSError:
            return None
        return None if failed else level.value

    return read


def _pressure_files(root: Path) -> list[Path]:
    """Return our control group's file and the machine's. Version 1 has no pressure of its own."""
    groups, _ = cgroup.find(root)
    own = [group.path / "memory.pressure" for group in groups if group.version == 2][:1]
    return [*own, root / "proc/pressure/memory"]


def _some_avg10(text: bytes) -> float:
    """Read "some avg10=0.12 avg60=..." of the first line, in per cent. Raises ValueError."""
    words = text.split(maxsplit=2)
    if len(words) < 2 or words[0] != b"some" or not words[1].startswith(b"avg10="):
        raise ValueError("no pressure figures")
    share = float(words[1].removeprefix(b"avg10="))
    if not 0 <= share <= 100:
        raise ValueError(f"a share of {share} per cent")
    return share


# --- signals ------------------------------------------------------------------------------------


class PressureWatch:
    """Becomes readable when its source says that memory is short. Register it with a selector.

    The descriptor that is registered is that of an inner epoll. For a kernel's file it must be:
    the event is EPOLLPRI, which `selectors` cannot ask for. For all it is what lets a source that
    has ended be dropped without the selector's knowledge, instead of being readable for ever.
    """

    def __init__(self, source: str, fd: int, *, own_bytes: bytes, is_kernels: bool) -> None:
        """Take `fd` over, also when it raises OSError."""
        self.source = source  # what signals, in words
        self._fd = fd
        self._own_bytes = own_bytes  # what we wrote into a FIFO and shall read again
        self._is_kernels = is_kernels
        try:
            self._epoll = select.epoll()
        except OSError:
            _close(fd)
            raise
        try:
            self._epoll.register(fd, select.EPOLLPRI if is_kernels else select.EPOLLIN)
        except OSError:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<PressureWatch {self.source}>"

    def fileno(self) -> int:
        """Return the descriptor to register for reading."""
        return self._epoll.fileno()

    def consume(self) -> bool:
        """Consume the signal when it is readable, and tell whether there was one."""
        try:
            mask = next((mask for _, mask in self._epoll.poll(0)), 0)
        except OSError:
            return False  # it stays readable
        if not self._is_kernels:
            return bool(mask) and self._read()
        if mask & (select.EPOLLERR | select.EPOLLHUP):
            self._drop()  # the control group is gone
            return bool(mask & select.EPOLLPRI)
        # The kernel's event is over once it was polled, and the outer selector's look at this
        # epoll is such a poll: an empty answer now does not mean that nothing happened.
        return True

    def close(self) -> None:
        """Close the descriptors. Unregister it from the selector before."""
        with suppress(OSError):
            self._epoll.close()
        fd, self._fd = self._fd, -1
        _close(fd)

    def _read(self) -> bool:
        """Read and discard, within bounds; whether there was more than our own words."""
        said = False
        for _ in range(_MOST_PIECES):
            try:
                piece = os.read(self._fd, _PIECE_BYTES)
            except BlockingIOError:
                break
            except OSError:
                self._drop()
                break
            if not piece:
                self._drop()
                break
            said |= bool(piece.removeprefix(self._own_bytes))
            self._own_bytes = b""
        return said

    def _drop(self) -> None:
        """Close the source, which has ended."""
        fd, self._fd = self._fd, -1
        with suppress(OSError):
            self._epoll.unregister(fd)
        _close(fd)


def watch_from(environ: Mapping[str, str], root: Path = Path("/")) -> PressureWatch | None:
    """Watch what $MEMORY_PRESSURE_WATCH names; where it is not set, set our own trigger if we may.

    None when there is nothing to watch, or it is switched off. Raises PressureError. Never blocks.
    The protocol: https://systemd.io/PRESSURE/
    """
    if not hasattr(select, "epoll"):
        return None  # neither systemd nor the kernel's triggers
    watched = environ.get("MEMORY_PRESSURE_WATCH", "")
    if not watched:
        return _own_watch(root)
    if watched == "/dev/null":
        return None
    if not watched.startswith("/") or "\0" in watched:
        raise PressureError(f"MEMORY_PRESSURE_WATCH is not an absolute path: {watched[:200]!r}")
    return _watch(Path(watched), _to_write(environ.get("MEMORY_PRESSURE_WRITE", "")))


def _to_write(encoded: str) -> bytes:
    try:
        data = binascii.a2b_base64(encoded, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise PressureError(f"MEMORY_PRESSURE_WRITE is not base64: {error}") from error
    if len(data) > MOST_TRIGGER_BYTES:
        raise PressureError(f"MEMORY_PRESSURE_WRITE has more than {MOST_TRIGGER_BYTES} bytes")
    return data


def _own_watch(root: Path) -> PressureWatch | None:
    """Set a trigger on our group's figures or the machine's: before Linux 6.5 a privilege."""
    for path in _pressure_files(root):
        with suppress(PressureError):  # the figures are read once a second anyway
            return _watch(path, OWN_TRIGGER)
    return None


def _watch(path: Path, trigger: bytes) -> PressureWatch:
    """Open the path, write the trigger, and watch. Raises PressureError."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind == stat.S_IFSOCK:
            fd = _connected(path)
        elif kind in {stat.S_IFIFO, stat.S_IFREG}:
            # For writing too, although a FIFO is only read: so its end is never seen.
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        else:
            raise PressureError(f"{path}: neither a file of the kernel, a FIFO nor a socket")
    except OSError as error:
        raise PressureError(f"{path}: {error.strerror or error}") from error
    try:
        if trigger and os.write(fd, trigger) != len(trigger):
            raise PressureError(f"{path}: took only a part of what was to be written")
    except (OSError, PressureError) as error:
        _close(fd)
        if isinstance(error, PressureError):
            raise
        raise PressureError(f"{path}: cannot write to it: {error.strerror or error}") from error
    try:
        return PressureWatch(
            f"memory pressure of {path}",
            fd,
            own_bytes=trigger if kind == stat.S_IFIFO else b"",
            is_kernels=kind == stat.S_IFREG,
        )
    except OSError as error:
        raise PressureError(f"{path}: cannot wait for it: {error.strerror or error}") from error


def _connected(path: Path) -> int:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(str(path))  # of this family it is done, or fails, at once
        return sock.detach()
    finally:
        sock.close()


def _close(fd: int) -> None:
    if fd >= 0:
        with suppress(OSError):
            os.close(fd)
