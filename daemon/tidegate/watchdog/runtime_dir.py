"""Where the running tidegate can be found: its runtime directory, and what stands in for it.

logind removes a user's runtime directory at logout, and cleaners remove what looks old. A watchdog
whose control socket has no name can be neither asked nor stopped, and no new worker could open its
own. So it looks at each tick, makes the directory anew where its parent allows that, and else
serves from `run` in the state directory, where the command line looks second. From there it goes
back as soon as it can.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tidegate.config.places import STANDS_IN_NAME, PlacesError, fallback_dir, make_private
from tidegate.machine.private_file import open_own
from tidegate.managers.sockets import ListenError
from tidegate.watchdog.control.client import SOCKET_NAME
from tidegate.watchdog.control.server import ControlServer
from tidegate.watchdog.pid_file import AlreadyRunning, PidFile

GO_BACK_EVERY_S = 30.0
_log = logging.getLogger(__name__)


class RuntimeDir:
    """Keep control socket and pid file where they can be found. `look` at it every second."""

    def __init__(
        self,
        first: Path,
        state_dir: Path,
        pid_file: PidFile,
        control: ControlServer,
        on_move: Callable[[Path], None],
    ) -> None:
        """Begin. `first` is where the configuration has it; `on_move` takes the workers along."""
        self.place = pid_file.path.parent
        self.trouble: str | None = None  # why it is not where it should be
        self._first = first
        self._fallback = fallback_dir(state_dir)
        self._pid_file = pid_file
        self._control = control
        self._on_move = on_move
        self._back_s = 0.0  # not before

    def __repr__(self) -> str:
        return f"<RuntimeDir {self.place}>"

    @property
    def is_elsewhere(self) -> bool:
        """Tell whether another directory stands in for the one that is configured."""
        return self.place != self._first

    @property
    def is_whole(self) -> bool:
        """Tell whether the command line finds it, and another start is refused."""
        return self._control.is_there and self._pid_file.is_in_place

    def look(self, now_s: float | None = None) -> None:
        """See that all is there, and put it back."""
        now_s = time.monotonic() if now_s is None else now_s
        if self.is_whole and (self.place == self._first or now_s < self._back_s):
            return
        self._back_s = now_s + GO_BACK_EVERY_S
        failed = []
        for place in dict.fromkeys((self._first, self._fallback)):
            if self.is_whole and place == self.place:
                break  # it cannot go back yet
            try:
                self._settle(place)
            except (PlacesError, ListenError, AlreadyRunning, OSError) as error:
                failed.append(str(error))
            else:
                break
        was, self.trouble = self.trouble, "; ".join(failed) or None
        if self.trouble is not None and was is None:
            _log.error("the runtime directory cannot be made anew: %s", self.trouble)

    def _settle(self, place: Path) -> None:
        make_private(place)
        self._pid_file.renew(place / self._pid_file.path.name)
        self._control.renew(place / SOCKET_NAME)
        former, self.place = self.place, place
        with suppress(OSError):
            (self._fallback / STANDS_IN_NAME).unlink(missing_ok=True)
        if place != self._first:
            fd = open_own(place / STANDS_IN_NAME, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                os.write(fd, os.fsencode(self._first))
            finally:
                os.close(fd)
        if former != place:
            with suppress(OSError):  # it went with its directory
                (former / SOCKET_NAME).unlink(missing_ok=True)
        _log.warning("the runtime directory was gone or moved; it is %s now", place)
        self._on_move(place)
