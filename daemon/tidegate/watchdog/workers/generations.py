"""Every generation twice: as `core.fleet.lifecycle` knows it, and as the process that it is.

`step` lets lifecycle decide; `start`, `drain` and `end` are what its decisions do to processes.
A worker's message goes to `on_message`, and what else happens to a worker to `on_event`; nothing is
decided here.
"""

from __future__ import annotations

import functools
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from msgspec import Struct

from tidegate.config import LoadedConfig
from tidegate.core.decoding import Undecodable
from tidegate.core.fleet import events
from tidegate.core.fleet import lifecycle as life
from tidegate.core.fleet.lifecycle import GenerationState
from tidegate.core.protocol import worker as msg
from tidegate.core.protocol.lines import ChannelError
from tidegate.core.protocol.worker import Heartbeat
from tidegate.core.settings import Settings
from tidegate.managers.sockets import BoundSocket
from tidegate.watchdog.faults import Faults, Handler
from tidegate.watchdog.workers.channel import Channel
from tidegate.watchdog.workers.process import Adopted, Spawn, WorkerHandle
from tidegate.watchdog.workers.store_places import find_places, fitted

_log = logging.getLogger(__name__)


class KeptWorker(Struct, frozen=True, kw_only=True):
    """A worker as an upgrade keeps it; the worker notices nothing."""

    number: int
    pid: int
    fd: int  # of the channel
    socket_path: str
    accepts: bool
    unsent: bytes = b""  # of the channel
    unfinished: bytes = b""
    beat: Heartbeat | None = None
    beats_when_asked: bool = False
    remembers: bool = False
    known: Settings | None = None  # what its own version could say; None: the config in force
    base_bytes: int | None = None
    ready_s: float | None = None
    condemned: str | None = None
    kill_at_s: float | None = None


def jitter() -> float:
    """Draw from [0, 1) what spreads restarts; `random` would bring hashlib along."""
    return int.from_bytes(os.urandom(2)) / 65536


class Generations:
    """The workers, oldest first. `close` gives back what is left of them."""

    def __init__(
        self,
        *,
        command: Sequence[str],
        runtime_dir: Path,
        state_dir: Path,
        policy: life.RestartPolicy,
        selector: selectors.BaseSelector,
        on_message: Callable[[WorkerHandle, msg.FromWorker], None],
        on_event: Callable[[events.Event], object],
        faults: Faults,
        spawn: Spawn,
    ) -> None:
        self.fleet = life.Fleet()
        self.policy = policy
        self._command = command
        self._runtime_dir = runtime_dir
        self._state_dir = state_dir
        self._store_places = find_places(runtime_dir, state_dir)
        self._selector = selector
        self._on_message = on_message
        self._on_event = on_event
        self._faults = faults
        self._spawn = spawn
        self._workers: dict[int, WorkerHandle] = {}

    def __repr__(self) -> str:
        return f"<Generations {[(g.number, g.state.value) for g in self.fleet.generations]}>"

    def __iter__(self) -> Iterator[WorkerHandle]:
        """Yield every process that has not been reaped, also one that was written off."""
        return iter(list(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    # --- what a former watchdog left ------------------------------------------------------------

    def clear(self) -> None:
        """Remove the sockets of workers whose watchdog was killed: those workers are gone."""
        for left_over in self._runtime_dir.glob("worker-*.sock"):
            with suppress(OSError):  # the next worker of that number tries it too
                left_over.unlink()

    def kept(self) -> list[KeptWorker]:
        """List what an upgrade leaves of the workers, which notice nothing of it."""
        return [
            KeptWorker(
                number=worker.number,
                pid=worker.pid,
                fd=worker.channel.fileno(),
                socket_path=str(worker.socket_path),
                accepts=worker.accepts,
                unsent=worker.channel.unsent,
                unfinished=worker.channel.unfinished,
                beat=worker.beat,
                beats_when_asked=worker.beats_when_asked,
                remembers=worker.remembers,
                known=worker.known,
                base_bytes=worker.base_bytes,
                ready_s=worker.ready_s,
                condemned=worker.condemned,
                kill_at_s=worker.kill_at_s,
            )
            for worker in self
        ]

    def adopt(self, fleet: life.Fleet, kept: Sequence[KeptWorker], config: LoadedConfig) -> None:
        """Go on with the workers that an upgrade left; `config` is what they were last told."""
        self.fleet = fleet
        for each in kept:
            channel = Channel(socket.socket(fileno=each.fd), each.unsent, each.unfinished)
            worker = WorkerHandle(
                number=each.number,
                process=Adopted(each.pid),
                channel=channel,
                socket_path=Path(each.socket_path),
                config=config,
                accepts=each.accepts,
                beat=each.beat,
                beats_when_asked=each.beats_when_asked,
                remembers=each.remembers,
                known=each.known or config.settings,
                base_bytes=each.base_bytes,
                ready_s=each.ready_s,
                condemned=each.condemned,
                kill_at_s=each.kill_at_s,
            )
            self._add(worker)

    def _add(self, worker: WorkerHandle) -> None:
        self._workers[worker.number] = worker
        self._selector.register(worker.channel, selectors.EVENT_READ, self._handler(worker))
        self._watch(worker)

    def _handler(self, worker: WorkerHandle) -> Handler:
        return Handler(
            "a worker's channel",
            functools.partial(self._turn, worker),
            functools.partial(self._give_up, worker),
        )

    def _give_up(self, worker: WorkerHandle) -> None:
        """Replace a worker that we cannot talk to."""
        self._unwatch(worker)
        self._on_event(events.Fail(worker.number, "its channel failed, by a fault of tidegate's"))

    def _unwatch(self, worker: WorkerHandle) -> None:
        with suppress(KeyError, ValueError):  # its end of file came before
            self._selector.unregister(worker.channel)

    # --- which is which -------------------------------------------------------------------------

    @property
    def serving(self) -> WorkerHandle | None:
        """Return the worker that new connections come to."""
        return self._in_state(GenerationState.SERVING)

    @property
    def draining(self) -> WorkerHandle | None:
        """Return the worker that only finishes what it has."""
        return self._in_state(GenerationState.DRAINING)

    def ready(self) -> list[WorkerHandle]:
        """List the serving one first, then the draining one."""
        return [worker for worker in (self.serving, self.draining) if worker is not None]

    def stale(self, now_s: float, fresh_s: float) -> list[WorkerHandle]:
        """List the ready ones that last beat over `fresh_s` ago and can be asked to beat."""
        return [
            worker
            for worker in self.ready()
            if worker.beats_when_asked
            and not worker.channel.unsent_bytes
            and (known := self.fleet.by_number(worker.number)) is not None
            and now_s - known.beat_s > fresh_s
        ]

    def peer(self, number: int) -> WorkerHandle | None:
        """Return the other generation as that one sees it, while it is ready."""
        return next((worker for worker in self.ready() if worker.number != number), None)

    def former_accepts(self) -> bool:
        """Tell whether a worker other than the serving one still takes connections."""
        return any(worker.accepts for worker in self if worker is not self.serving)

    def _in_state(self, state: GenerationState) -> WorkerHandle | None:
        generation = self.fleet.in_state(state)
        return self._workers.get(generation.number) if generation else None

    # --- decided by lifecycle, done here --------------------------------------------------------

    def step(self, event: events.Event, now_s: float) -> list[events.Effect]:
        """Take the event in; return what has to be done about it."""
        self.fleet, effects = life.step(self.fleet, event, now_s, self.policy, jitter())
        return effects

    def start(
        self, number: int, config: LoadedConfig, bound: Sequence[BoundSocket], limit_bytes: int
    ) -> None:
        """Start a worker with these sockets, and tell it its config.

        `limit_bytes` is what its ledger may hold until its first state update; 0 is no limit.
        """
        path = self._socket_path(number)
        try:
            worker = self._spawn(
                self._command, number, path, config, [each.sock.fileno() for each in bound]
            )
        except OSError as error:
            _log.error("cannot start worker %d: %s", number, error)
            self._on_event(events.Exited(number, f"cannot be started: {error}"))
            return
        _log.info("worker %d starts, pid %d", number, worker.pid)
        self._add(worker)
        listeners = [msg.Listener(fd=b.sock.fileno(), address=b.address) for b in bound]
        self.send(
            worker, self._configure(worker, config, listeners=listeners, limit_bytes=limit_bytes)
        )

    def reconfigure(self, worker: WorkerHandle, config: LoadedConfig, request: int) -> None:
        """Tell a worker a new config; it answers with `request`.

        One of a former version is sent tokens and keys, and keeps its settings: a value in them
        that it cannot read would end it, and every stream with it.
        """
        if worker.known is not None:
            config = replace(config, settings=worker.known)
        self.send(worker, self._configure(worker, config, request=request))

    def spread(self, config: LoadedConfig) -> None:
        """Have every worker that serves or drains know the config in force.

        One may have become ready while another was asked; and a revoked token ends everywhere.
        """
        for worker in self.ready():
            if worker.config is not config:
                self.reconfigure(worker, config, 0)
                worker.config = config

    def drain(self, number: int, limit_s: float, successor: int | None) -> None:
        """Tell a worker to finish what it has, and who takes over its finished runs."""
        order = msg.StartDraining(
            limit_s=limit_s,
            reason="stop" if successor is None else "recycle",
            successor_socket=None if successor is None else str(self._socket_path(successor)),
        )
        _log.info("worker %d drains, for at most %.0f s (%s)", number, limit_s, order.reason)
        if worker := self._workers.get(number):
            self.send(worker, order)

    def end(self, number: int, reason: str, *, stacks: bool, notice: bool = False) -> None:
        """End a worker's process; with `stacks` it may first write where it stands.

        With `notice` its readers get their error events, as far as that time allows.
        """
        _log.warning("worker %d ends: %s", number, reason)
        if worker := self._workers.get(number):
            worker.condemned = reason
            if notice:
                self.send(worker, msg.StartDraining(limit_s=0.0, reason=reason))
            wait_s = self.policy.timing.kill_wait_s
            worker.begin_end(time.monotonic(), wait_s, stacks=stacks)

    def kill_soon(self, number: int) -> None:
        """End a worker's process at the next turn, and ask it nothing."""
        if (worker := self._workers.get(number)) is not None and worker.kill_at_s is None:
            worker.kill_at_s = time.monotonic()

    def exit_code(self, number: int) -> int | None:
        """Return how a worker's process ended, if it has; negative for a signal."""
        worker = self._workers.get(number)
        return worker.process.returncode if worker else None

    # --- the channel to each of them --------------------------------------------------------------

    def send(self, worker: WorkerHandle, message: msg.Message) -> None:
        """Send a message; a worker that has stopped reading gets it later or never."""
        if not worker.channel.send(message):
            _log.warning("worker %d does not read its messages", worker.number)
        self._watch(worker)

    def _turn(self, worker: WorkerHandle, mask: int) -> None:
        """Read or write a worker's channel."""
        if mask & selectors.EVENT_WRITE:
            worker.channel.flush()
            self._watch(worker)
        if mask & selectors.EVENT_READ and not self._receive(worker):
            self._unwatch(worker)  # its exit follows, or its beat is missed

    def _receive(self, worker: WorkerHandle) -> bool:
        """Take in all that a worker sent; return False when it will send no more."""
        try:
            for line in worker.channel.receive():
                message = msg.decode_from_worker(line)
                self._faults.attempt(
                    "a worker's line", functools.partial(self._on_message, worker, message)
                )
        except ChannelError:
            return False
        except Undecodable as error:
            why = f"its message cannot be understood: {error}"
            self._on_event(events.Fail(worker.number, why))
            return False
        return True

    def _watch(self, worker: WorkerHandle) -> None:
        """Wait for room only while something waits to be sent."""
        mask = selectors.EVENT_READ
        if worker.channel.unsent_bytes:
            mask |= selectors.EVENT_WRITE
        with suppress(KeyError):  # its end of file came before
            self._selector.modify(worker.channel, mask, self._handler(worker))

    def move(self, place: Path) -> None:
        """Have the workers listen and keep answers there; those of an older version cannot."""
        self._runtime_dir = place
        self._store_places = find_places(place, self._state_dir)
        for worker in self.ready():
            worker.socket_path = self._socket_path(worker.number)
            self.reconfigure(worker, worker.config, 0)

    def _configure(
        self,
        worker: WorkerHandle,
        config: LoadedConfig,
        *,
        request: int = 0,
        listeners: Sequence[msg.Listener] = (),
        limit_bytes: int = 0,
    ) -> msg.Configure:
        peer = self.peer(worker.number)
        # A parked one keeps nothing: what there is was kept by rules that cannot be read now.
        places = self._store_places if config.parked is None else msg.StorePlaces()
        return msg.Configure(
            request=request,
            generation=worker.number,
            settings=fitted(config.settings, places),
            tokens=config.tokens,
            secrets=config.secrets,
            headers=config.headers,
            authorities=config.authorities,
            listeners=list(listeners),
            peer_socket=str(worker.socket_path),
            other_socket=str(peer.socket_path) if peer else None,
            config_file=str(config.place),
            parked=config.parked,
            heartbeat_url=config.heartbeat_url,
            ledger_limit_bytes=limit_bytes,
            store_places=places,
            tells_news=True,
        )

    def _socket_path(self, number: int) -> Path:
        return self._runtime_dir / f"worker-{number}.sock"

    # --- their ends -------------------------------------------------------------------------------

    def next_kill_s(self) -> float | None:
        """Tell when the next worker is due that was given time for its stacks."""
        return min((w.kill_at_s for w in self if w.kill_at_s is not None), default=None)

    def kill_due(self, now_s: float) -> None:
        """End those whose time for their stacks is over."""
        for worker in self:
            worker.kill_if_due(now_s)

    def gone(self) -> list[WorkerHandle]:
        """List those whose process is gone, after taking in their last messages."""
        ended = [worker for worker in self if worker.process.poll() is not None]
        for worker in ended:
            self._faults.attempt(
                "a worker's last messages", functools.partial(self._receive, worker)
            )
            _log.info("worker %d %s", worker.number, worker.exit_text)
        return ended

    def forget(self, worker: WorkerHandle) -> None:
        """Give back what is left of a worker."""
        self._unwatch(worker)
        self._workers.pop(worker.number, None)
        worker.close()

    def close(self) -> None:
        """Give back those that even SIGKILL did not end."""
        for worker in self:
            self.forget(worker)
