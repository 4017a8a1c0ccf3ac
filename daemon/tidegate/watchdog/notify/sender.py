"""The process that sends one message, from outside: it is never waited for, and it is ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence, Set
from contextlib import ExitStack, suppress
from typing import BinaryIO

import msgspec

from tidegate.core.decoding import Undecodable
from tidegate.core.notices.notice import NoticeMessage, Outcome, decode_outcome
from tidegate.logs import handler
from tidegate.machine.nameless_file import nameless_file
from tidegate.watchdog.workers.process import child_environment

SEND_COMMAND = (sys.executable, "-m", "tidegate.watchdog.notify.send")
LIMIT_S = 20.0  # an interpreter, TLS and a slow receiver; Apprise takes two of it on a Raspberry Pi
CANCEL_LIMIT_S = 1.0
_OUTPUT_BYTES = 4096


class Sender:
    """One such process. It is over when `outcome` gives something, or after `cancel`."""

    def __init__(
        self, command: Sequence[str], message: NoticeMessage, secret: Set[str], now_s: float
    ) -> None:
        """Start it, without the variables `secret`. Raises OSError."""
        self._deadline_s = now_s + LIMIT_S
        self._is_late = False
        with ExitStack() as unless_started:
            self._output = unless_started.enter_context(nameless_file())
            with nameless_file() as payload:
                payload.write(msgspec.json.encode(message))
                payload.seek(0)
                self._process = _start(command, payload, self._output, secret)
            unless_started.pop_all()

    def __repr__(self) -> str:
        return f"<Sender pid={self.pid}>"

    @property
    def pid(self) -> int:
        """Return its process id, which stays ours until it has been reaped."""
        return self._process.pid

    @property
    def due_s(self) -> float | None:
        """Tell when it has to be looked at, if it does not end before; monotonic seconds."""
        return None if self._is_late else self._deadline_s

    def outcome(self, now_s: float) -> Outcome | None:
        """Tell what became of the message; None while its process lives. Ends it at its limit."""
        code = self._process.poll()
        if code is None:
            if now_s >= self._deadline_s and not self._is_late:
                self._is_late = True
                self._process.kill()
            return None
        with self._output as output:
            output.seek(0)
            written = output.read(_OUTPUT_BYTES)
        if self._is_late:
            return Outcome(ok=False, answer=f"it took longer than {LIMIT_S:g} s")
        try:
            return decode_outcome(written)
        except Undecodable:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            return Outcome(ok=False, answer=f"the process that sends it ended with {how}")

    def cancel(self) -> None:
        """End it."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # it hangs in the kernel, and ends when it can
            self._process.wait(CANCEL_LIMIT_S)
        self._output.close()


def _start(
    command: Sequence[str], payload: BinaryIO, output: BinaryIO, secret: Set[str]
) -> subprocess.Popen[bytes]:
    environ = child_environment(os.environ, secret)
    environ.pop(handler.FILE_VARIABLE, None)  # it writes no log
    return subprocess.Popen(  # noqa: S603  (our own command)
        list(command),
        stdin=payload,
        stdout=output,
        stderr=subprocess.DEVNULL,  # a traceback may have the address in it
        env=environ,
    )
