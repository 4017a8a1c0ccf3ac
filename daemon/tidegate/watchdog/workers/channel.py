"""The line between the watchdog and a worker: one message per line over a socketpair.

`LineSplitter` is only arithmetic and serves both sides. `Channel` is the watchdog's: it never
waits. What a stuck worker does not read is kept up to a bound; beyond it a message is refused,
and the missing heartbeat then ends that worker.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

from tidegate.core.protocol.lines import MAX_LINE_BYTES, ChannelError, LineSplitter
from tidegate.core.protocol.worker import Message, encode

# State updates are 300 bytes a second and are skipped while others wait, so only a settings message
# and a few requests ever stand here.
MAX_UNSENT_BYTES = MAX_LINE_BYTES
_READ_BYTES = 64 * 1024
_READS_PER_TURN = 64  # 4 MiB: a whole listing, yet one worker cannot keep the loop for itself


class Channel:
    """Hold the watchdog's end. Give it a connected stream socket; `close` it when done.

    `unsent` and `unfinished` are what an earlier one on the same socket had left.
    """

    def __init__(self, sock: socket.socket, unsent: bytes = b"", unfinished: bytes = b"") -> None:
        sock.setblocking(False)
        self._sock = sock
        self._unsent = bytearray(unsent)
        self._splitter = LineSplitter(unfinished=unfinished)

    def __repr__(self) -> str:
        return f"<Channel fd={self.fileno()} unsent={len(self._unsent)}>"

    def fileno(self) -> int:
        """Return the descriptor, for the selector."""
        return self._sock.fileno()

    @property
    def unsent_bytes(self) -> int:
        """Count what waits until the other side reads."""
        return len(self._unsent)

    @property
    def unsent(self) -> bytes:
        """Return what waits until the other side reads."""
        return bytes(self._unsent)

    @property
    def unfinished(self) -> bytes:
        """Return the part of a line that has been read."""
        return self._splitter.unfinished

    def send(self, message: Message) -> bool:
        """Send a message, or keep it to be sent; return False when there is no room."""
        line = encode(message)
        if len(self._unsent) + len(line) > MAX_UNSENT_BYTES:
            return False
        self._unsent += line
        self.flush()
        return True

    def flush(self) -> None:
        """Send what can be sent now."""
        try:
            while self._unsent:
                sent = self._sock.send(self._unsent)
                del self._unsent[:sent]
        except BlockingIOError:
            return
        except OSError:  # it died; reading finds that, and the loop acts on it there
            self._unsent.clear()

    def receive(self) -> Iterator[bytes]:
        """Yield the lines that are here now. Raises ChannelError at the end of file."""
        for _ in range(_READS_PER_TURN):
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                raise ChannelError(str(error)) from error
            if not data:
                raise ChannelError("end of file")
            yield from self._splitter.feed(data)

    def close(self) -> None:
        """Give the descriptor back. The worker sees the end of file and exits."""
        self._sock.close()
