"""The config in force, and the one on its way to replace it.

A reload validates first: what is wrong with the new config changes nothing. Then the serving
worker has to take it over within a limit; if the listening sockets change, a new generation
starts with them instead, and its readiness is the answer. One reload is under way at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from msgspec import Struct

from tidegate.config import ConfigError, LoadedConfig
from tidegate.service.control import Client, ControlServer
from tidegate.service.generations import Generations
from tidegate.service.listen import Bound, ListenError
from tidegate.service.listeners import Listeners
from tidegate.service.process import Worker
from tidegate.service.systemd import Notifier

_log = logging.getLogger(__name__)


class Reload(Struct, frozen=True, kw_only=True, eq=False):
    """One new config on its way."""

    config: LoadedConfig
    bound: list[Bound]
    client: Client | None  # who asked for it
    awaits: Worker | None = None  # who has to confirm it; None: a new generation starts with it
    request: int = 0  # which it confirms
    deadline_s: float | None = None

    @property
    def by_recycle(self) -> bool:
        """Whether a new generation starts with it."""
        return self.awaits is None


class Reloader:
    """Reads the config at the start, and again whenever it may have changed."""

    def __init__(
        self,
        *,
        load: Callable[[], LoadedConfig],
        stand_in: Callable[[str], LoadedConfig],
        listeners: Listeners,
        generations: Generations,
        control: ControlServer,
        notifier: Notifier,
        recycle: Callable[[str], str | None],
        on_config: Callable[[LoadedConfig], None],
        limit_s: float,
    ) -> None:
        """`recycle` starts a new generation or says why not; `on_config` follows a new config.

        `stand_in` makes what a parked daemon runs on, from the reason.
        """
        self.config: LoadedConfig | None = None  # None until the first one was found good
        self._load = load
        self._stand_in = stand_in
        self._listeners = listeners
        self._generations = generations
        self._control = control
        self._notifier = notifier
        self._recycle = recycle
        self._on_config = on_config
        self._limit_s = limit_s
        self._reload: Reload | None = None
        self._again = False  # the file changed once more meanwhile
        self._request = 0

    def __repr__(self) -> str:
        return f"<Reloader under_way={self._reload is not None}>"

    def begin(self) -> None:
        """Read the first config and open its sockets. Raises ConfigError or ListenError."""
        self._begin_with(self._load())

    def park(self, reason: str) -> None:
        """Begin with nothing but the reason why. Raises ListenError."""
        self._begin_with(self._stand_in(reason))

    def _begin_with(self, config: LoadedConfig) -> None:
        self._listeners.use(self._listeners.open(config.settings.listen))
        self.config = config
        self._on_config(config)

    def look_again(self) -> None:
        """Parked: start when the config has been mended, tell of another mistake."""
        assert self.config is not None, "a parked daemon has a config that says so"
        try:
            self._load()
        except ConfigError as error:
            if str(error) == self.config.parked:
                return
        if self._reload is None:
            self.start(None)

    @property
    def is_under_way(self) -> bool:
        """Whether a new config is on its way."""
        return self._reload is not None

    def resume(self, former: LoadedConfig) -> None:
        """Go on after an upgrade, with the sockets that are open.

        The file is read anew. Should it have become bad in this very moment, `former` stays.
        """
        try:
            self.config = self._load()
        except ConfigError as error:
            _log.error("the config stays as it was: %s", error)
            self.config = former
        self._on_config(self.config)

    def for_new_worker(self) -> tuple[LoadedConfig, list[Bound]]:
        """What a worker that starts now has to begin with."""
        if self._reload is not None and self._reload.by_recycle:
            return self._reload.config, self._reload.bound
        assert self.config is not None, "no worker is started without a config"
        return self.config, self._listeners.bound

    def start(self, client: Client | None) -> None:
        """Replace the config by what the file says now."""
        if self._reload is not None:
            self._again = self._again or client is None
            self._control.answer(client, "a reload is under way")
            return
        if self._is_serving:
            self._notifier.reloading(time.monotonic())
        try:
            config = self._load()
            bound = self._listeners.open(config.settings.listen)
        except (ConfigError, ListenError) as error:
            self._refuse(client, str(error))
            return
        if self._is_parked:
            self._start_with_recycle(config, bound, client, "unparked")
        elif bound != self._listeners.bound:
            self._start_with_recycle(config, bound, client, "listen")
        else:
            self._start_with_serving(config, client)

    @property
    def _is_parked(self) -> bool:
        return self.config is not None and self.config.parked is not None

    def _refuse(self, client: Client | None, error: str) -> None:
        """What the file says now cannot be used; a parked daemon's worker tells that reason."""
        self._tell(client, error)
        if self._is_parked:
            self._start_with_serving(self._stand_in(error), None)

    def _start_with_recycle(
        self, config: LoadedConfig, bound: list[Bound], client: Client | None, reason: str
    ) -> None:
        self._reload = Reload(config=config, bound=bound, client=client)
        if self._is_parked and self._generations.serving is None:
            return  # the one that is to say why starts just now; then, or at its death, ours does
        if error := self._recycle(reason):
            self._finish(f"this needs a new worker, which cannot start now: {error}")

    def _start_with_serving(self, config: LoadedConfig, client: Client | None) -> None:
        serving = self._generations.serving
        self._request += 1
        self._reload = Reload(
            config=config,
            bound=self._listeners.bound,
            client=client,
            awaits=serving,
            request=self._request,
            deadline_s=time.monotonic() + self._limit_s,
        )
        if serving is None:
            self._finish(None)  # the next worker starts with it
        else:
            self._generations.reconfigure(serving, config, self._request)

    # --- what may end a reload ------------------------------------------------------------------

    def confirmed(self, worker: Worker, request: int, error: str | None) -> None:
        """A worker took a config over, or (`error`) would not."""
        reload = self._reload
        if reload is not None and reload.awaits is worker and reload.request == request:
            self._finish(error)

    def became_ready(self, worker: Worker) -> None:
        """A worker serves: with the new config, or with one that was replaced meanwhile."""
        if self._starts_with_reload(worker):
            self._finish(None)
        elif self._reload is not None and self._reload.by_recycle and worker.config.parked:
            if error := self._recycle("unparked"):
                self._finish(f"this needs a new worker, which cannot start now: {error}")
        elif self.config is not None and worker.config is not self.config:
            worker.config = self.config
            self._request += 1
            self._generations.reconfigure(worker, self.config, self._request)

    def worker_gone(self, worker: Worker) -> None:
        """A process ended that may have had to answer."""
        if self._reload is not None and self._reload.awaits is worker:
            self._finish(f"the worker ended before it answered: {worker.how_it_ended()}")
        elif self._starts_with_reload(worker):
            self._finish(f"the new worker did not start: {worker.how_it_ended()}")

    def recycle_failed(self, error: str) -> None:
        """The generation that was to start with the new config never served."""
        if self._reload is not None and self._reload.by_recycle:
            self._finish(error)

    def give_up_waiting(self, now_s: float) -> None:
        """Every wait has its limit."""
        deadline_s = self._reload.deadline_s if self._reload else None
        if deadline_s is not None and now_s > deadline_s:
            self._finish(f"the worker did not answer within {self._limit_s:g} s")

    def _starts_with_reload(self, worker: Worker) -> bool:
        reload = self._reload
        return reload is not None and reload.by_recycle and worker.config is reload.config

    def _finish(self, error: str | None) -> None:
        """The reload under way came to its end."""
        reload = self._reload
        assert reload is not None, "there is a reload to finish"
        self._reload = None
        if error is None:
            self.config = reload.config
            if reload.awaits is not None:
                reload.awaits.config = reload.config
            if draining := self._generations.draining:  # a revoked token ends there as well
                self._generations.reconfigure(draining, reload.config, 0)
            self._listeners.use(reload.bound)
            self._on_config(reload.config)
        else:
            self._listeners.discard(reload.bound)
        self._tell(reload.client, error)
        if self._again:
            self._again = False
            self.start(None)

    @property
    def _is_serving(self) -> bool:
        """What systemd hears of a reload is true only between READY and STOPPING."""
        return self._generations.serving is not None and not self._generations.fleet.stopping

    def _tell(self, client: Client | None, error: str | None) -> None:
        if error is None and self._is_parked:
            pass  # the mistake has been told; the worker now knows it too
        elif error is None:
            addresses = ", ".join(self._listeners.addresses)
            _log.info("config reloaded; listening on %s", addresses)
        else:
            _log.error("reload refused, nothing has changed: %s", error)
        if self._is_serving:
            self._notifier.ready()
        self._control.answer(client, error)
