"""Lines out of bytes, however they arrive: on the worker's channel and on the control socket."""

from __future__ import annotations

from collections.abc import Iterator

MAX_LINE_BYTES = 4 * 1024 * 1024  # a listing of 1,000 runs is 0.5 MiB; beyond this it is garbage


class ChannelError(Exception):
    """The other side is gone, or does not send lines."""


class LineSplitter:
    """Split bytes into lines, however they arrive. Holds at most one unfinished line."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES, unfinished: bytes = b"") -> None:
        self._unfinished = bytearray(unfinished)
        self._max_line_bytes = max_line_bytes

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that `data` completes, without their ends. Raises ChannelError."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole = bytes(self._unfinished) + line if self._unfinished else line
            self._unfinished.clear()
            self._check(len(whole))
            yield whole
        self._unfinished += rest
        self._check(len(self._unfinished))

    @property
    def unfinished(self) -> bytes:
        """Return the part of a line that waits for the rest."""
        return bytes(self._unfinished)

    def _check(self, length: int) -> None:
        if length > self._max_line_bytes:
            raise ChannelError(f"a line of more than {self._max_line_bytes} bytes")
