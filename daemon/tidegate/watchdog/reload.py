"""The config in force, and the one on its way to replace it.

A reload validates first: what is wrong with the new config changes nothing. Then the serving
worker has to take it over within a limit; if the listening sockets change, a new generation
starts with them instead, and its readiness is the answer.

One reload is under way at a time. Clients that ask meanwhile are answered by the next one, which
begins as soon as it is over and serves all of them: so no client waits for more than two. A file
that changed is only looked at: what is as it was, or wrong in the same way, is not told again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from tidegate.config import ConfigError, LoadedConfig
from tidegate.config.changes import compare, summary
from tidegate.core.protocol.reload import Reloaded, ReloadRefusal, SettingChange, Why
from tidegate.core.settings import Effect
from tidegate.core.text import count
from tidegate.managers.sockets import BoundSocket, ListenError
from tidegate.watchdog.control.reload_replies import ReloadReplies
from tidegate.watchdog.control.server import OUR_FAULT, ControlClient, ControlServer
from tidegate.watchdog.faults import Faults
from tidegate.watchdog.listeners import Listeners
from tidegate.watchdog.readiness import Readiness
from tidegate.watchdog.workers.generations import Generations
from tidegate.watchdog.workers.process import WorkerHandle

_log = logging.getLogger(__name__)


class Reload(Struct, frozen=True, kw_only=True, eq=False):
    """One new config on its way: what it needs, and which clients wait for it."""

    config: LoadedConfig
    bound: list[BoundSocket]
    changes: list[SettingChange]
    clients: list[ControlClient]  # that asked for it
    asked: bool  # by a person: they are told also of what did not change
    recycle: str | None = None  # why a new generation starts with it; else the serving one takes it
    awaits: WorkerHandle | None = None  # that has to confirm it
    request: int = 0  # which it confirms
    deadline_s: float | None = None  # monotonic


class Reloader:
    """Keep the config in force; take up a new one whole or not at all. `tick` it every second."""

    def __init__(
        self,
        *,
        load: Callable[[], LoadedConfig],
        stand_in: Callable[[str], LoadedConfig],
        listeners: Listeners,
        generations: Generations,
        control: ControlServer,
        readiness: Readiness,
        recycle: Callable[[str], str | None],
        on_config: Callable[[LoadedConfig], None],
        limit_s: float,
        faults: Faults,
    ) -> None:
        """Prepare. `recycle` starts a generation or says why not; `on_config` follows a config.

        `stand_in` makes what a parked daemon runs on, from the reason. `limit_s` is what a worker
        has to take a config over.
        """
        self.config: LoadedConfig | None = None  # None until the first one was found good
        self._load = load
        self._stand_in = stand_in
        self._listeners = listeners
        self._generations = generations
        self._replies = ReloadReplies(control)
        self._readiness = readiness
        self._recycle = recycle
        self._on_config = on_config
        self._limit_s = limit_s
        self._faults = faults
        self._reload: Reload | None = None
        self._clients: list[ControlClient] = []  # that asked while it was under way
        self._asked = False  # a person did, if only by a signal
        self._changed = False  # the file changed meanwhile
        self.refused: str | None = None  # what the file as it is now was refused for
        self._postponed = False  # until the recycle that is under way is over
        self._request = 0

    def __repr__(self) -> str:
        return f"<Reloader under_way={self._reload is not None}>"

    def begin(self) -> None:
        """Read the first config and open its sockets. Raises ConfigError or ListenError."""
        self._begin_with(_read(self._load, self._faults))

    def park(self, reason: str) -> None:
        """Begin with nothing but the reason why. Raises ListenError."""
        self._begin_with(self._stand_in(reason))

    def _begin_with(self, config: LoadedConfig) -> None:
        self._listeners.use(self._listeners.open(config.settings.listen))
        self.config = config
        self._on_config(config)

    @property
    def is_under_way(self) -> bool:
        """Tell whether a new config is on its way."""
        return self._reload is not None

    def resume(self, former: LoadedConfig) -> None:
        """Go on after an upgrade, with the sockets that are open.

        What the file says now is taken up as ever: once a worker or a parked daemon looks at it.
        """
        self.config = former
        self._on_config(former)

    def for_new_worker(self) -> tuple[LoadedConfig, list[BoundSocket]]:
        """Give what a worker that starts now has to begin with: the config and its open sockets."""
        if self._reload is not None and self._reload.recycle is not None:
            return self._reload.config, self._reload.bound
        assert self.config is not None, "no worker is started without a config"
        return self.config, self._listeners.bound

    # --- what begins a reload -------------------------------------------------------------------

    def start(self, client: ControlClient | None) -> None:
        """Take up what the file says, and answer `client`; None where a signal asked."""
        if client is not None:
            self._clients.append(client)
        self._asked = True
        self._begin_next()

    def look_again(self) -> None:
        """Take up what the file says, if that has changed."""
        self._changed = True
        self._begin_next()

    def _begin_next(self) -> None:
        """Serve all that asked so far; a reload that is under way is followed by this."""
        if self._reload is not None or not (self._asked or self._changed):
            return
        clients, asked = self._clients, self._asked
        self._clients, self._asked, self._changed = [], False, False
        if not self._faults.attempt("a reload", lambda: self._try_to_serve(clients, asked=asked)):
            self.abandon(clients)

    def abandon(self, clients: Sequence[ControlClient] = ()) -> None:
        """Drop all, by a fault of ours: clients that wait are told, and the next reload is new."""
        reload, self._reload = self._reload, None
        waiting = [*clients, *self._clients, *(reload.clients if reload is not None else ())]
        self._clients, self._asked, self._changed = [], False, False
        try:
            if reload is not None:
                self._listeners.discard(reload.bound)
            self._readiness.reloaded()
        finally:
            self._replies.refuse(waiting, ReloadRefusal(Why.WORKER, OUR_FAULT))

    def _try_to_serve(self, clients: list[ControlClient], *, asked: bool) -> None:
        if self._generations.fleet.stopping:
            self._replies.refuse(clients, ReloadRefusal(Why.BUSY, "tidegate is stopping"))
            return
        if asked:
            self._readiness.reloading()
        try:
            config = _read(self._load, self._faults)
        except ConfigError as error:
            self._refuse(clients, ReloadRefusal(Why.CONFIG, str(error)), asked=asked)
            return
        if config == self.config and not asked:
            self.refused = None
            return
        self._readiness.reloading()
        self._take_up(config, clients, asked=asked)

    def _take_up(self, config: LoadedConfig, clients: list[ControlClient], *, asked: bool) -> None:
        """Bring a good config into force: by the serving worker, or a new one if need be."""
        assert self.config is not None, "there is a config to replace"
        if error := self._why_not_now(config):
            self._postponed = True
            self._refuse(clients, ReloadRefusal(Why.BUSY, error), asked=asked)
            return
        try:
            bound = self._listeners.open(config.settings.listen)
        except ListenError as error:
            self._refuse(clients, ReloadRefusal(Why.ADDRESS, str(error)), asked=asked)
            return
        moves = set(bound) != set(self._listeners.bound)
        reload = Reload(
            config=config,
            bound=bound,
            changes=[]
            if self._is_parked
            else compare(self.config, config, listen=self._when(moves)),
            clients=clients,
            asked=asked,
            recycle="unparked" if self._is_parked else "listen" if moves else None,
        )
        if reload.recycle is None:
            self._start_with_serving(reload)
        else:
            self._reload = reload
            self._start_with_recycle(reload.recycle)

    def _why_not_now(self, config: LoadedConfig) -> str | None:
        """Say what a new worker would wait for, if the addresses change and one is needed."""
        assert self.config is not None
        same = self._listeners.are_given or config.settings.listen == self.config.settings.listen
        if same or not self._is_recycling or self._serving is None:
            return None
        former = self._generations.draining
        runs = former.beat.runs_active if former and former.beat else 0
        by = f" (worker {former.number} has {count(runs, 'answer')} to finish)" if former else ""
        return (
            f"`listen` needs a new worker, and a recycle is under way{by}; "
            "the new config is taken up by itself when that is over"
        )

    @property
    def _is_recycling(self) -> bool:
        fleet = self._generations.fleet
        return fleet.recycle is not None or len(fleet.generations) > 1

    def _when(self, moves: bool) -> Effect:
        """Tell when a change of `listen` takes effect."""
        if self._listeners.are_given:
            return Effect.RESTART
        return Effect.NEW_WORKER if moves else Effect.AT_ONCE

    @property
    def _is_parked(self) -> bool:
        return self.config is not None and self.config.parked is not None

    @property
    def _serving(self) -> WorkerHandle | None:
        """Return the serving worker; not one that is dead, though that was not noticed yet."""
        serving = self._generations.serving
        return serving if serving is not None and serving.process.poll() is None else None

    def _start_with_recycle(self, reason: str) -> None:
        """Recycle to start with it; without a serving worker the next one starts with it anyway."""
        if self._serving is None:
            return
        if error := self._recycle(reason):
            self._finish(ReloadRefusal(Why.BUSY, f"this needs a new worker, and {error}"))

    def _start_with_serving(self, reload: Reload) -> None:
        serving = self._serving
        self._request += 1
        self._reload = msgspec.structs.replace(
            reload,
            awaits=serving,
            request=self._request,
            deadline_s=time.monotonic() + self._limit_s,
        )
        if serving is None:
            self._finish(None)  # the next worker starts with it
        else:
            self._generations.reconfigure(serving, reload.config, self._request)

    # --- what may end a reload ------------------------------------------------------------------

    def confirmed(self, worker: WorkerHandle, request: int, error: str | None) -> None:
        """Note that a worker took a config over, or (`error`) would not."""
        reload = self._reload
        refused = None if error is None else f"worker {worker.number} refuses it: {error}"
        if reload is not None and reload.awaits is worker and reload.request == request:
            self._finish(None if refused is None else ReloadRefusal(Why.WORKER, refused))
        elif refused is not None:
            _log.error("the config is in force, and %s", refused)
        elif (
            request and self.config is not None and (reload is None or reload.awaits is not worker)
        ):
            # It was given up on, and took over what has been refused meanwhile.
            self._generations.reconfigure(worker, self.config, 0)

    def became_ready(self, worker: WorkerHandle) -> None:
        """Note that a worker serves, with the new config or one that was replaced meanwhile."""
        if self._starts_with_reload(worker):
            self._finish(None)
        elif self._reload is not None and self._reload.recycle is not None:
            self._start_with_recycle(self._reload.recycle)
        elif self.config is not None:
            self._generations.spread(self.config)

    def worker_gone(self, worker: WorkerHandle) -> None:
        """Note that a process ended, which may have had to answer."""
        how = worker.how_it_ended()
        if self._reload is not None and self._reload.awaits is worker:
            self._finish(
                ReloadRefusal(
                    Why.WORKER,
                    f"the worker ended before it answered: {how}; the next one tries again",
                )
            )
        elif self._starts_with_reload(worker):
            self._finish(
                ReloadRefusal(Why.WORKER, f"the new worker did not start: {how}; the log says why")
            )

    def recycle_failed(self, error: str) -> None:
        """Note that the generation which was to start with the new config never served."""
        if self._reload is not None and self._reload.recycle is not None:
            self._finish(ReloadRefusal(Why.WORKER, error))

    def leave(self) -> None:
        """End the reload for an upgrade that takes over: it reads the config anew."""
        clients = [*(self._reload.clients if self._reload else ()), *self._clients]
        self._clients = []
        self._replies.refuse(
            clients, ReloadRefusal(Why.BUSY, "an upgrade came first; it reads the config anew")
        )
        self._readiness.reloaded()

    def tick(self, now_s: float) -> None:
        """End a wait at its limit, and go on with what had to wait for a recycle."""
        deadline_s = self._reload.deadline_s if self._reload else None
        if deadline_s is not None and now_s > deadline_s:
            late = f"the worker did not answer within {self._limit_s:g} s"
            self._finish(
                ReloadRefusal(Why.WORKER, f"{late}; `tidegate recycle` replaces one that hangs")
            )
        if self._postponed and not self._is_recycling:
            self._postponed = False
            self.look_again()
        if self._reload is None and self.config is not None:
            self._generations.spread(self.config)  # should that have failed

    def _starts_with_reload(self, worker: WorkerHandle) -> bool:
        reload = self._reload
        return reload is not None and reload.recycle is not None and worker.config is reload.config

    def _finish(self, refusal: ReloadRefusal | None) -> None:
        """Finish the reload that is under way; the next may begin."""
        reload = self._reload
        assert reload is not None, "there is a reload to finish"
        self._reload = None
        if not self._faults.attempt("the end of a reload", lambda: self._end(reload, refusal)):
            self.abandon(reload.clients)
        self._begin_next()

    def _end(self, reload: Reload, refusal: ReloadRefusal | None) -> None:
        if refusal is None:
            self._put_in_force(reload)
        else:
            self._listeners.discard(reload.bound)
            self._refuse(reload.clients, refusal, asked=True)

    def _put_in_force(self, reload: Reload) -> None:
        """Apply it whole, whatever fails of it: half of a config would be neither."""
        was_parked = self._is_parked
        self.config = reload.config
        self.refused, self._postponed = None, False
        if reload.awaits is not None:
            reload.awaits.config = reload.config
        for step in (
            lambda: self._listeners.use(reload.bound),
            lambda: self._generations.spread(reload.config),
            lambda: self._on_config(reload.config),
            lambda: _log_done(reload, self._listeners.addresses),
            self._readiness.reloaded,
        ):
            self._faults.attempt("a new config", step)
        result = Reloaded(
            changes=reload.changes,
            generation=self._new_generation(reload),
            unparked=was_parked and reload.config.parked is None,
            warnings=reload.config.warnings,
        )
        self._replies.done(reload.clients, result, asked=reload.asked)

    def _new_generation(self, reload: Reload) -> int | None:
        serving = self._generations.serving
        return serving.number if reload.recycle is not None and serving is not None else None

    # --- what is told of it ---------------------------------------------------------------------

    def _refuse(
        self, clients: Sequence[ControlClient], refusal: ReloadRefusal, *, asked: bool
    ) -> None:
        """Refuse what the file says; a parked daemon's worker tells that reason."""
        is_news = refusal.text not in (self.refused, self.config.parked if self.config else None)
        self.refused = refusal.text
        if asked or is_news:
            _log.error("reload refused, nothing has changed: %s", refusal.text)
        self._readiness.reloaded()
        self._replies.refuse(clients, refusal)
        if self._is_parked and is_news and self._reload is None:
            stand_in = self._stand_in(refusal.text)
            bound = self._listeners.bound
            self._start_with_serving(
                Reload(config=stand_in, bound=bound, changes=[], clients=[], asked=False)
            )


def _read(load: Callable[[], LoadedConfig], faults: Faults) -> LoadedConfig:
    """Read the config. Raises ConfigError, also for a fault of ours over what it says."""
    try:
        return load()
    except ConfigError:
        raise
    except Exception as error:
        faults.note("reading the config", error)
        raise ConfigError(
            "the config cannot be judged, by a fault of tidegate's own "
            f"({type(error).__name__}); the log has the stack"
        ) from error


def _log_done(reload: Reload, addresses: Sequence[str]) -> None:
    if reload.config.parked is not None:
        return
    moved = f"; listening on {', '.join(addresses)}" if reload.recycle is not None else ""
    text = summary(reload.changes)
    if any(change.effect is Effect.RESTART for change in reload.changes):
        text += "; `listen` counts with a restart: the service manager opened the sockets"
    _log.info("config reloaded: %s%s", text, moved)
