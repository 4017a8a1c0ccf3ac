"""What the service manager and the terminal are told: that tidegate serves, reloads, and ends."""

from __future__ import annotations

import time
from collections.abc import Callable

from tidegate.core.protocol.status import Status
from tidegate.core.protocol.worker import Ready
from tidegate.machine.heap import heap_trimmer
from tidegate.managers.systemd.notify import Notifier
from tidegate.watchdog.control.status import status_line
from tidegate.watchdog.workers.generations import Generations

BARRIER_S = 1.0  # for the last messages to be read
EXTEND_S = 15.0  # asked of systemd on every tick of a start or drain: more than a few late ticks

Banner = Callable[[Ready, list[str]], None]


class Readiness:
    """Tell each change of state once, and the status once a second."""

    def __init__(self, notifier: Notifier, generations: Generations, banner: Banner | None) -> None:
        """Begin. `banner` is for the terminal; None after an upgrade: all has been told before."""
        self._notifier = notifier
        self._generations = generations
        self._banner = banner
        self._is_reloading = False  # the service manager waits for the end of a reload

    def __repr__(self) -> str:
        return f"<Readiness has_served={self.has_served}>"

    @property
    def has_served(self) -> bool:
        """Tell whether the service manager was told that tidegate serves."""
        return self._banner is None

    def serving(self, ready: Ready, addresses: list[str], status: Status) -> None:
        """Tell that the first worker serves, with the addresses really bound; once."""
        if self._banner is not None:
            banner, self._banner = self._banner, None
            self._notifier.ready()
            self._notifier.status(status_line(status))
            banner(ready, addresses)
            heap_trimmer()()  # a megabyte of what the imports left behind

    def reloading(self) -> None:
        """Announce a reload; the service manager takes it between READY and STOPPING."""
        if self.has_served and not self._is_reloading:
            self._notifier.reloading(time.monotonic())
            self._is_reloading = True

    def reloaded(self) -> None:
        """End what was announced, whatever became of it."""
        if self._is_reloading and not self._generations.fleet.stopping:
            self._notifier.ready()
        self._is_reloading = False

    def send_status(self, status: Status, *, is_parked: bool) -> None:
        """Tell the status, and ask for time while a start or a drain goes on.

        How long a start may take is ours to say.
        """
        self._notifier.flush()
        self._notifier.status(status_line(status))
        is_starting = not self.has_served and not is_parked
        if self._generations.fleet.stopping or is_starting:
            self.ask_for_time()

    def ask_for_time(self) -> None:
        """Have the service manager wait longer for the start or the end."""
        self._notifier.extend_timeout(EXTEND_S)

    def ended(self, text: str) -> None:
        """Tell how it ended, and that it ends."""
        self._notifier.status(text)
        self._notifier.stopping()
        self._notifier.barrier(BARRIER_S)

    def report_failure(self) -> None:
        """Tell that the loop itself failed: a service manager that watches sees it as a hang."""
        self._notifier.status("failed: a defect of tidegate itself, see its log")
        self._notifier.trigger()
        self._notifier.barrier(BARRIER_S)
