"""An upstream in a process of its own, so that it can be killed, stopped and started again.

    python -m soak.upstream PORT

Prints its port, and ends when its stdin does, whatever becomes of the process that started it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

from fakes.upstream import ScriptedUpstream

FORGET_EVERY_S = 5.0  # the fake remembers all requests with their bodies; they are not read here


class Upstream:
    """A running one. Its port stays the same when it is started again."""

    def __init__(self) -> None:
        self.port = 0
        self._start()

    @property
    def url(self) -> str:
        """Return the upstream's base URL."""
        return f"http://127.0.0.1:{self.port}"

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "soak.upstream", str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """Kill it, as if the computer had been unplugged."""
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def start_again(self) -> None:
        """Start it after `kill`, on the same port."""
        self._start()

    def stall(self) -> None:
        """Have it accept and answer nothing; what has begun stands still."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it answer again after `stall`."""
        self._process.send_signal(signal.SIGCONT)


def main() -> None:
    """Serve until stdin ends."""
    upstream = ScriptedUpstream(port=int(sys.argv[1])).start()
    print(upstream.port, flush=True)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    while True:
        time.sleep(FORGET_EVERY_S)
        upstream.requests.clear()


def _leave_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
