"""The Nth system call fails: each call of a piece of code in turn, in every way that calls fail.

The calls are really made when they are not the one that fails, so that the rest of the code sees
a real machine. `os.close` frees its descriptor even when it fails, as Linux does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

SHORT = -1  # no error: half of the bytes
ERRORS = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EIO,
    errno.EAGAIN,
    errno.EINTR,
    errno.EACCES,
    errno.EPERM,
    SHORT,
)
MOST_CALLS = 200


class FailingCalls:
    """Counts the calls and makes the one of number `fail_at` fail; 0 fails none."""

    def __init__(self, fail_at: int, code: int) -> None:
        self.fail_at = fail_at
        self.code = code
        self.count = 0

    def _turn(self, *, can_be_short: bool = False) -> bool:
        """Whether this call is to be cut short. Raises OSError when it is to fail."""
        self.count += 1
        if self.count != self.fail_at:
            return False
        if self.code == SHORT:
            return can_be_short
        raise OSError(self.code, os.strerror(self.code))

    def _plain(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            return call(*args, **kwargs)

        return made

    def _reading(self, call: Callable[..., bytes]) -> Callable[..., bytes]:
        def made(*args: Any) -> bytes:
            short = self._turn(can_be_short=True)
            data = call(*args)
            return data[: len(data) // 2] if short else data

        return made

    def _writing(self, call: Callable[..., int]) -> Callable[..., int]:
        def made(fd: int, data: bytes) -> int:
            return call(fd, data[: len(data) // 2] if self._turn(can_be_short=True) else data)

        return made

    def _closing(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def made(fd: int) -> None:
            call(fd)
            self._turn()

        return made

    @contextmanager
    def armed(self) -> Iterator[FailingCalls]:
        """While this lasts, calls are counted."""
        turn = self._turn

        class Socket(socket.socket):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                if kwargs.get("fileno") is None:  # else it is no call, and `accept` was one
                    turn()
                super().__init__(*args, **kwargs)

            def connect(self, address: Any) -> None:
                turn()
                super().connect(address)

        real_epoll = select.epoll

        class Epoll:
            def __init__(self) -> None:
                turn()
                self._real = real_epoll()

            def register(self, fd: int, mask: int) -> None:
                turn()
                self._real.register(fd, mask)

            def unregister(self, fd: int) -> None:
                turn()
                self._real.unregister(fd)

            def poll(self, timeout_s: float) -> list[tuple[int, int]]:
                turn()
                return self._real.poll(timeout_s)

            def fileno(self) -> int:
                return self._real.fileno()

            def close(self) -> None:
                self._real.close()
                turn()

        patches = [
            mock.patch.object(os, "open", self._plain(os.open)),
            mock.patch.object(os, "stat", self._plain(os.stat)),
            mock.patch.object(os, "read", self._reading(os.read)),
            mock.patch.object(os, "pread", self._reading(os.pread)),
            mock.patch.object(os, "write", self._writing(os.write)),
            mock.patch.object(os, "close", self._closing(os.close)),
            mock.patch.object(socket, "socket", Socket),
            mock.patch.object(select, "epoll", Epoll),
            mock.patch.object(ctypes, "CDLL", self._plain(ctypes.CDLL)),
        ]
        for patch in patches:
            patch.start()
        try:
            yield self
        finally:
            for patch in reversed(patches):
                patch.stop()


def open_descriptors() -> set[str]:
    """The descriptors of this process."""
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


def fail_each(
    code: int, prepare: Callable[[], Any], act: Callable[[Any], None], clear: Callable[[Any], None]
) -> int:
    """Runs prepare, act and clear anew for every N until `act` makes fewer than N calls.

    Only the calls of `act` count. How many it made; raises what `act` raises, and AssertionError
    when a descriptor is left after `clear`.
    """
    for fail_at in range(1, MOST_CALLS):
        prepared = prepare()
        before = open_descriptors()
        calls = FailingCalls(fail_at, code)
        with calls.armed():
            act(prepared)
        clear(prepared)
        left = open_descriptors() - before
        assert not left, f"call {fail_at} failing with {code} leaves {left}"
        if calls.count < fail_at:
            return calls.count
    raise AssertionError(f"more than {MOST_CALLS} calls")
