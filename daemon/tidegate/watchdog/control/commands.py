"""What the command line asks over control.sock, and which clients still wait for an answer.

Some verbs are answered at once, some when the workers have answered, some when a recycle or a
stop has come so far. Each client is answered once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from tidegate.core.protocol.control import ControlReply, ControlRequest, TestedReceiver
from tidegate.core.protocol.status import Status
from tidegate.core.protocol.worker import (
    AskBeat,
    Forget,
    ListModels,
    ListRuns,
    ListUsage,
    Sweep,
    Swept,
)
from tidegate.core.records.usage import GROUPS
from tidegate.watchdog.control.pending import Answer, PendingRequests
from tidegate.watchdog.control.server import OUR_FAULT, ControlClient, ControlServer
from tidegate.watchdog.workers.generations import Generations
from tidegate.watchdog.workers.process import WorkerHandle

_log = logging.getLogger(__name__)


class KeptClients(Struct, frozen=True, kw_only=True):
    """Connections to the control socket that wait for an answer, by what they wait for."""

    until_takeover: list[int] = []
    until_recycled: list[int] = []
    until_upgraded: list[tuple[int, bool]] = []  # and whether until the former worker is gone

    @property
    def descriptors(self) -> list[int]:
        """List the descriptors of all of them."""
        upgraded = [fd for fd, _ in self.until_upgraded]
        return [*self.until_takeover, *self.until_recycled, *upgraded]


class Daemon(Protocol):
    """What the command line may ask of the watchdog."""

    def take_status(self) -> Status:
        """Read the status as it is now."""

    def recycle(self) -> str | None:
        """Start the next generation; return why it was refused, or None."""

    def reload(self, client: ControlClient | None) -> None:
        """Take up the config, and answer `client` when that is done."""

    def upgrade(self) -> None:
        """Become the program that is on the disk now."""

    def stop(self) -> None:
        """Drain and end."""

    def bundle(self, client: ControlClient) -> None:
        """Write a bundle of evidence, and let `Commands.bundled` answer `client`."""

    def test_receivers(self, client: ControlClient, name: str | None) -> None:
        """Send a test to that receiver, or to every one; `Commands.tested` answers `client`."""


FRESH_S = 0.2  # a heartbeat that is no older is true still
BEAT_LIMIT_S = 0.5  # a loop that turns beats at once; `status` waits no longer for one that hangs


@dataclass(slots=True)
class _Beats:
    """A client that waits for the status, and the workers that first give a heartbeat."""

    client: ControlClient
    deadline_s: float
    generations: set[int] = field(default_factory=set)


class Commands:
    """Answer the clients of the control socket, each once."""

    def __init__(
        self, daemon: Daemon, generations: Generations, control: ControlServer, reply_s: float
    ) -> None:
        self._daemon = daemon
        self._generations = generations
        self._control = control
        self._pending = PendingRequests(reply_s)
        self._beats: dict[int, _Beats] = {}  # by request; a client of `status` waits
        self._until_takeover: list[ControlClient] = []
        self._until_recycled: list[ControlClient] = []
        self._until_upgraded: list[
            tuple[ControlClient, bool]
        ] = []  # and whether until it is recycled
        self._until_stopped: list[ControlClient] = []

    def __repr__(self) -> str:
        return f"<Commands {self._pending} waiting={len(self._long_waiting())}>"

    def on_request(self, client: ControlClient, request: ControlRequest) -> None:
        """Carry out a client's request, and answer now or later."""
        match request.verb:
            case "status":
                self._ask_beats(client)
            case "runs":
                number = self._pending.next_number()
                order = ListRuns(request=number, all=request.all)
                self._ask_workers("runs", client, order, self._generations.ready())
            case "usage":
                self._ask_usage(client, request)
            case "forget":
                self._ask_to_forget(client, request)
            case "models":
                number = self._pending.next_number()
                first = self._generations.ready()[:1]  # a draining one's knowledge is older
                self._ask_workers("models", client, ListModels(request=number), first)
            case "sweep":
                number, finished = self._pending.next_number(), request.finished
                sweep = Sweep(request=number, finished=finished, reason="asked for")
                self._ask_workers("sweep", client, sweep, self._generations.ready())
            case "recycle":
                if error := self._daemon.recycle():
                    self._control.answer(client, error)
                elif request.wait:
                    self._until_recycled.append(client)
                else:
                    self._until_takeover.append(client)
            case "reload":
                self._daemon.reload(client)
            case "upgrade":
                self._until_upgraded.append((client, request.wait))
                self._daemon.upgrade()
            case "stop":
                self._stop(client, wait=request.wait)
            case "bundle":
                self._daemon.bundle(client)
            case "notify-test":
                self._daemon.test_receivers(client, request.to)
            case verb:
                self._control.answer(client, f'"{verb}" is not a verb that this tidegate knows')

    def _ask_usage(self, client: ControlClient, request: ControlRequest) -> None:
        """Ask the worker that serves; what the other one finishes it writes to the same file."""
        if request.by not in GROUPS:
            error = f'"{request.by}" is no way to sum up usage; there are {", ".join(GROUPS)}'
            self._control.answer(client, error)
            return
        since = max(0.0, time.time() - request.since_s)
        order = ListUsage(request=self._pending.next_number(), by=request.by, since=since)
        ready = [worker for worker in self._generations.ready() if worker.remembers]
        self._ask_who_remembers("usage", client, order, ready[:1])

    def _ask_to_forget(self, client: ControlClient, request: ControlRequest) -> None:
        """Have all forget; one of an older version holds what it has until it is gone."""
        ready = self._generations.ready()
        former = [str(worker.number) for worker in ready if not worker.remembers]
        if former and len(former) < len(ready):
            error = (
                f"worker {' and '.join(former)} is of an older version, cannot forget, and "
                "finishes its answers; try again when `tidegate status` no longer shows it"
            )
            self._control.answer(client, error)
            return
        order = Forget(request=self._pending.next_number(), run=request.run)
        self._ask_who_remembers("forget", client, order, [] if former else ready)

    def _ask_who_remembers(
        self,
        verb: str,
        client: ControlClient,
        order: ListUsage | Forget,
        workers: list[WorkerHandle],
    ) -> None:
        if workers or not self._generations.ready():
            self._ask_workers(verb, client, order, workers)
        else:
            error = f"the worker is of an older version and knows no {verb}; `tidegate recycle`"
            self._control.answer(client, error)

    def _stop(self, client: ControlClient, *, wait: bool) -> None:
        _log.info("stop asked for by the command line")
        if wait:
            self._until_stopped.append(client)
        else:
            self._control.answer(client, None)
        if not self._generations.fleet.stopping:
            self._daemon.stop()

    # --- status: a worker's last heartbeat may be old ---------------------------------------------

    def _ask_beats(self, client: ControlClient) -> None:
        """Answer with the truth now: workers whose last heartbeat is older first give a new one."""
        now_s = time.monotonic()
        number = self._pending.next_number()
        awaited = _Beats(client, now_s + BEAT_LIMIT_S)
        self._beats[number] = awaited
        for worker in self._generations.stale(now_s, FRESH_S):
            awaited.generations.add(worker.number)
            self._generations.send(worker, AskBeat(request=number))
        self._answer_if_complete(number)

    def on_heartbeat(self, generation: int, request: int) -> None:
        """Note that a worker gave the heartbeat that it was asked for."""
        if (awaited := self._beats.get(request)) is not None:
            awaited.generations.discard(generation)
            self._answer_if_complete(request)

    def next_s(self) -> float | None:
        """Tell when `answer_late` has something to do; monotonic seconds."""
        return min((each.deadline_s for each in self._beats.values()), default=None)

    def answer_late(self, now_s: float) -> None:
        """Answer without a worker that hangs: its heartbeat's age tells of it."""
        for number, awaited in list(self._beats.items()):
            if now_s >= awaited.deadline_s:
                del self._beats[number]
                self._send_status(awaited.client)

    def _answer_if_complete(self, number: int) -> None:
        if self._beats[number].generations:
            return
        client = self._beats[number].client
        del self._beats[number]
        self._send_status(client)

    def _send_status(self, client: ControlClient) -> None:
        try:
            status = self._daemon.take_status()
        except Exception:
            self._control.answer(client, OUR_FAULT)
            raise
        self._control.reply(
            client, ControlReply(ok=True, result=msgspec.Raw(msgspec.json.encode(status)))
        )

    def _ask_workers(
        self,
        verb: str,
        client: ControlClient,
        order: Sweep | ListRuns | ListModels | ListUsage | Forget,
        workers: list[WorkerHandle],
    ) -> None:
        if not workers:
            self._control.answer(client, "no worker is ready; see `tidegate status`")
            return
        awaited = {worker.number for worker in workers}
        self._pending.add(order.request, verb, client, awaited, time.monotonic())
        for worker in workers:
            self._generations.send(worker, order)

    @property
    def is_quiet(self) -> bool:
        """Tell whether no client waits but those that may wait for long."""
        return self._pending.is_empty and self._control.is_quiet(self._long_waiting())

    def kept(self) -> KeptClients:
        """List the clients that an upgrade keeps. One that hung up meanwhile has no descriptor."""
        upgraded = [(client.sock.fileno(), wait) for client, wait in self._until_upgraded]
        return KeptClients(
            until_takeover=_open(self._until_takeover),
            until_recycled=_open(self._until_recycled),
            until_upgraded=[(fd, wait) for fd, wait in upgraded if fd >= 0],
        )

    def resume(self, kept: KeptClients) -> None:
        """Go on with the clients that an upgrade left."""
        again = self._control.resume
        self._until_takeover += map(again, kept.until_takeover)
        self._until_recycled += map(again, kept.until_recycled)
        self._until_upgraded += ((again(fd), wait) for fd, wait in kept.until_upgraded)

    def upgrade_recycles(self) -> None:
        """Note that the recycle which ends the upgrade is under way."""
        for client, wait in self._until_upgraded:
            (self._until_recycled if wait else self._until_takeover).append(client)
        self._until_upgraded.clear()

    def upgrade_failed(self, error: str) -> None:
        """Answer that the upgrade failed and nothing has changed."""
        self._answer_all([client for client, _ in self._until_upgraded], error)
        self._until_upgraded.clear()

    def _long_waiting(self) -> list[ControlClient]:
        upgraded = [client for client, _ in self._until_upgraded]
        return self._until_recycled + self._until_takeover + self._until_stopped + upgraded

    # --- what clients wait for ----------------------------------------------------------------

    def on_answer(self, number: int, answer: Answer) -> None:
        """Take in the answer of generation `number` to a request."""
        if isinstance(answer, Swept) and answer.runs:
            _log.info("worker %d swept %d runs, %d bytes", number, answer.runs, answer.bytes)
        if reply := self._pending.on_answer(number, answer):
            self._control.reply(*reply)

    def worker_gone(self, number: int) -> None:
        """Note that generation `number` will answer no more."""
        for request in list(self._beats):
            self.on_heartbeat(number, request)
        self._reply_all(self._pending.forget(number))

    def give_up_waiting(self, now_s: float) -> None:
        """Answer the clients whose wait for a worker is over its limit."""
        self._reply_all(self._pending.expire(now_s))

    def bundled(self, client: ControlClient) -> Callable[[Path | None], None]:
        """Return what to call when the bundle for `client` is written, or (None) could not be."""

        def answer(path: Path | None) -> None:
            if path is None:
                self._control.answer(client, "the bundle could not be written; the log says why")
                return
            size = 0
            with suppress(OSError):  # it was taken away already
                size = path.stat().st_size
            result = msgspec.Raw(msgspec.json.encode({"path": str(path), "bytes": size}))
            self._control.reply(client, ControlReply(ok=True, result=result))

        return answer

    def tested(self, client: ControlClient) -> Callable[[list[TestedReceiver] | str], None]:
        """Return what to call with what receivers answered to a test, or why none was asked."""

        def answer(found: list[TestedReceiver] | str) -> None:
            if isinstance(found, str):
                self._control.answer(client, found)
            else:
                result = msgspec.Raw(msgspec.json.encode({"receivers": found}))
                self._control.reply(client, ControlReply(ok=True, result=result))

        return answer

    def taken_over(self) -> None:
        """Answer that the new generation serves."""
        self._answer_all(self._until_takeover, None)

    def recycled(self, error: str | None) -> None:
        """Answer that the former generation is gone, or (`error`) that the new one never served."""
        self._answer_all(self._until_takeover, error)
        self._answer_all(self._until_recycled, error)

    def stopped(self) -> None:
        """Answer that everything has ended."""
        self._answer_all(self._until_stopped, None)

    def _reply_all(self, replies: list[tuple[ControlClient, ControlReply]]) -> None:
        for client, reply in replies:
            self._control.reply(client, reply)

    def _answer_all(self, clients: list[ControlClient], error: str | None) -> None:
        for client in clients:
            self._control.answer(client, error)
        clients.clear()


def _open(clients: Iterable[ControlClient]) -> list[int]:
    """List the descriptors of the clients that still wait."""
    return [fd for client in clients if (fd := client.sock.fileno()) >= 0]
