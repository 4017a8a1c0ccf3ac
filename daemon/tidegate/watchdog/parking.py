"""The beginning, and being parked: what is done while the config cannot be used.

A daemon that parks has a worker tell the reason over HTTP, and tries again; any other ends.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from tidegate.config import ConfigError
from tidegate.managers.sockets import BadAddress, ListenError
from tidegate.watchdog.reload import Reloader
from tidegate.watchdog.workers.generations import Generations

PARK_RETRY_S = 5.0  # a parked daemon looks so often whether the config was mended
_log = logging.getLogger(__name__)


class Parking:
    """Begin with the config, or know why nothing is served. `tick` it every second."""

    def __init__(
        self,
        *,
        parks: bool,
        reloader: Reloader,
        generations: Generations,
        start_worker: Callable[[], object],
        end: Callable[[str, int], object],
    ) -> None:
        """Prepare. `start_worker` starts the first one; `end` ends the watchdog: why, exit code."""
        self._parks = parks
        self._reloader = reloader
        self._generations = generations
        self._start_worker = start_worker
        self._end = end
        self._cannot: str | None = None  # why nothing has begun
        self._next_load_s = time.monotonic()

    def __repr__(self) -> str:
        return f"<Parking reason={self.reason!r}>"

    @property
    def reason(self) -> str | None:
        """Say why nothing is served, if that is so."""
        config = self._reloader.config
        return self._cannot if config is None else config.parked

    def begin(self) -> str | None:
        """Read the config, open the sockets, start the first worker; return why that failed."""
        try:
            self._reloader.begin()
        except (ConfigError, ListenError) as error:
            return self._cannot_begin(error)
        self._cannot = None
        self._start_worker()
        return None

    def _cannot_begin(self, error: ConfigError | ListenError) -> str:
        is_news = str(error) != self._cannot  # a parked daemon tries again and again
        self._cannot = str(error)
        if is_news:
            _log.error("%s", error)
        if self._parks:
            self._next_load_s = time.monotonic() + PARK_RETRY_S
            if isinstance(error, ConfigError):
                self._park(self._cannot, is_news=is_news)
        else:
            temporary = isinstance(error, ListenError) and not isinstance(error, BadAddress)
            self._end(self._cannot, os.EX_TEMPFAIL if temporary else os.EX_CONFIG)
        return self._cannot

    def _park(self, reason: str, *, is_news: bool) -> None:
        """Have a worker say why nothing is served, at the usual address if that is free."""
        try:
            self._reloader.park(reason)
        except ListenError as error:
            if is_news:
                _log.error("parked, and cannot say so over HTTP: %s", error)
            return
        self._start_worker()

    def tick(self, now_s: float) -> None:
        """Try again while parked: the config may have been mended."""
        if self.reason is None or now_s < self._next_load_s:
            return
        self._next_load_s = now_s + PARK_RETRY_S
        if self._generations.fleet.stopping:
            return
        if self._reloader.config is None:
            self.begin()
        else:
            self._reloader.look_again()

    def stop(self) -> None:
        """Forget why nothing has begun: nothing is to begin any more."""
        self._cannot = None
