"""The worker process: a gateway on an event loop, and a line to the watchdog.

Started as `python -m tidegate.gateway.worker --channel FD`. It learns everything from the first
message, `Configure`; it serves, obeys, and sends a heartbeat once a second from the loop that
serves, so that one which hangs is silent. When the line breaks, the watchdog is gone and so is the
worker's reason to exist: it leaves at once. It hears no signal that is meant for the watchdog.
After it is ready it imports nothing, so that the files beneath it may be replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

from tidegate.core.memory.report import StepReport
from tidegate.core.protocol.worker import (
    PROTOCOL,
    AskBeat,
    AskNews,
    ConfigChanged,
    Configure,
    Configured,
    Draining,
    Failed,
    Forget,
    Forgotten,
    Heartbeat,
    Inspect,
    ListModels,
    ListRuns,
    ListUsage,
    ModelList,
    News,
    Ready,
    Reclaim,
    Reclaimed,
    RunList,
    StartDraining,
    StateUpdate,
    Sweep,
    Swept,
    UsageList,
)
from tidegate.gateway import config_watch
from tidegate.gateway.api import routes
from tidegate.gateway.drain import GatewayDrain
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.heap_upkeep import HeapUpkeep
from tidegate.gateway.outward_heartbeat import HeartbeatSender
from tidegate.gateway.relay.evictor import Heap
from tidegate.gateway.snapshot import inspect
from tidegate.gateway.stores.store_thread import StoreUnavailable
from tidegate.gateway.watchdog_line import WatchdogLine
from tidegate.logs import handler as log_lines
from tidegate.machine.heap import resident_meter, volunteer_for_oom
from tidegate.machine.signals import ignore_all, write_stacks_when_asked

log = logging.getLogger("tidegate.worker")

HEARTBEAT_S = 1.0
CONFIGURE_LIMIT_S = 10.0
FAILED_S = 0.1  # for the last message, which says why it cannot serve


class Worker:
    """One generation: a gateway, its heartbeat, and what the watchdog orders."""

    def __init__(self, line: WatchdogLine, configure: Configure) -> None:
        self._line = line
        self._configure = configure
        self._resident_bytes = resident_meter()
        self._gateway = Gateway(
            configure.generation, configure.peer_socket, routes, self._resident_bytes
        )
        self._heap = HeapUpkeep(
            self._gateway.registry, self._gateway.server.table, self._resident_bytes
        )
        self._gateway.evictor.heap = Heap(
            self._resident_bytes, self._heap.free_bytes, self._heap.trim
        )
        self._sender = HeartbeatSender(self._gateway.why_not_ready)
        self._reclaiming = asyncio.Lock()
        self._drain = GatewayDrain(self._gateway)
        self._over = asyncio.Event()

    async def serve(self) -> None:
        """Serve from the first setting to the last answer."""
        gateway, first = self._gateway, self._configure
        self._apply(first)
        gateway.parked = first.parked
        if first.tells_news:
            gateway.ask_news = lambda since: self._line.send(AskNews(since=since))
        gateway.registry.ledger.limit_bytes = first.ledger_limit_bytes
        gateway.meet(first.other_socket)
        self._sender.configure(first.settings.heartbeat, first.heartbeat_url)
        await gateway.open()
        await gateway.accept_clients([socket.socket(fileno=each.fd) for each in first.listeners])
        self._heap.start()
        catalog = gateway.catalog
        self._line.send(
            Ready(
                pid=os.getpid(),
                found=catalog.found,
                model=catalog.first_model,
                beats_when_asked=True,
                remembers=True,
            )
        )
        self._line.send(self._heartbeat())  # so that `status` knows of it as soon as it serves
        async with asyncio.TaskGroup() as tasks:
            chores = [
                tasks.create_task(self._beat()),
                tasks.create_task(self._obey(tasks)),
                tasks.create_task(self._watch_config(first.config_file)),
                tasks.create_task(self._sender.run()),
            ]
            await self._over.wait()
            for chore in chores:
                chore.cancel()
        self._sender.close()
        await gateway.close(self._drain.farewell, self._drain.goodbye_s)
        self._line.send(self._heartbeat())  # the last word on what was swept and served

    # --- the heartbeat ------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Send a heartbeat once a second; how late that was is the loop's lag."""
        while True:
            planned_s = time.monotonic() + HEARTBEAT_S
            await asyncio.sleep(HEARTBEAT_S)
            self._gateway.loop_lag_s = max(0.0, time.monotonic() - planned_s)
            self._line.send(self._heartbeat())
            self._heap.look(time.monotonic())

    def _heartbeat(self, request: int = 0) -> Heartbeat:
        registry = self._gateway.registry
        journal, history = self._gateway.stores.states()
        return Heartbeat(
            request=request,
            rss_bytes=self._resident_bytes(),
            ledger_bytes=registry.ledger.total_bytes,
            loop_lag_ms=round(self._gateway.loop_lag_s * 1000, 3),
            runs_active=registry.active_count,
            runs_finished=registry.finished_count,
            runs_total=registry.total,
            swept_runs=registry.swept.runs,
            swept_bytes=registry.swept.bytes,
            swept_last_reason=registry.swept.last,
            connections=self._gateway.server.table.open_connections,
            most_connections=self._gateway.server.table.most_connections,
            allocator=self._heap.allocator,
            at_limit=self._gateway.evictor.at_limit,
            upstreams=self._gateway.catalog.statuses(),
            journal=journal,
            history=history,
        )

    # --- what the watchdog says ---------------------------------------------------------------

    async def _obey(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            message = await self._line.inbox.get()
            match message:
                case StateUpdate():
                    self._gateway.on_state_update(message)
                case Configure():
                    self._line.send(self._reconfigure(message))
                    await self._listen_for_peers(message.peer_socket)
                case News():
                    self._gateway.feed.on_news(message)
                case AskBeat():
                    self._line.send(self._heartbeat(message.request))
                case Sweep():
                    self._line.send(await self._sweep(message))
                case Reclaim():
                    tasks.create_task(self._reclaim(message))
                case Inspect():
                    self._line.send(inspect(self._gateway.registry, message.request))
                case ListRuns() | ListUsage() | Forget():
                    tasks.create_task(self._answer(message))
                case ListModels():
                    upstreams, aliases = self._gateway.catalog.describe(message.limit)
                    answer = ModelList(
                        request=message.request, upstreams=upstreams, aliases=aliases
                    )
                    self._line.send(answer)
                case StartDraining():
                    if self._drain.order(message):
                        tasks.create_task(self._drain_until_over())

    async def _answer(self, message: ListRuns | ListUsage | Forget) -> None:
        """Answer what the stores may be asked for, which may take some seconds."""
        try:
            match message:
                case ListRuns():
                    self._line.send(await self._list_runs(message))
                case ListUsage():
                    self._line.send(await self._list_usage(message))
                case Forget():
                    self._line.send(await self._forget(message))
        except Exception:  # it must not end us; the command is told that there was no answer
            log.exception("what was asked of the stores could not be answered")

    async def _list_runs(self, message: ListRuns) -> RunList:
        registry = self._gateway.registry
        total = registry.active_count + registry.finished_count
        runs = registry.newest(None, message.limit)
        if message.all:
            try:
                runs = await self._gateway.recall.listed_whole(message.limit)
                total = max(total, len(runs))
            except StoreUnavailable as error:
                log.warning("only what is in memory is listed: %s", error)
        return RunList(request=message.request, runs=runs, total=total)

    async def _list_usage(self, message: ListUsage) -> UsageList:
        gateway = self._gateway
        try:
            lines = await gateway.recall.usage(
                message.by, message.since, None, gateway.settings.models
            )
        except StoreUnavailable as error:
            return UsageList(request=message.request, lines=[], error=str(error))
        return UsageList(request=message.request, lines=lines)

    async def _forget(self, message: Forget) -> Forgotten:
        try:
            runs = await self._gateway.recall.forget_whole(message.run)
        except StoreUnavailable as error:
            return Forgotten(request=message.request, runs=0, error=str(error))
        return Forgotten(request=message.request, runs=runs)

    def _apply(self, message: Configure) -> None:
        """Go by these settings. Raises ValueError."""
        self._gateway.configure(
            message.settings,
            message.tokens,
            message.secrets,
            message.headers,
            message.authorities,
            places=message.store_places,
        )

    def _reconfigure(self, message: Configure) -> Configured:
        try:
            self._apply(message)
        except ValueError as error:
            return Configured(request=message.request, error=str(error))
        self._sender.configure(message.settings.heartbeat, message.heartbeat_url)
        self._gateway.parked = message.parked
        if message.parked is None:
            self._gateway.refresh_models_soon()
        return Configured(request=message.request)

    async def _listen_for_peers(self, path: str) -> None:
        """Listen anew: the runtime directory may have been made anew, or be another one."""
        try:
            await self._gateway.listen_for_peers(path)
        except OSError as error:
            log.error("the other generation will not reach this one: %s", error)

    async def _reclaim(self, order: Reclaim) -> None:
        """Carry out one order after the other; what a step could not do must not end us."""
        reports: list[StepReport] = []
        async with self._reclaiming:
            try:
                reports = await self._gateway.evictor.carry_out(order)
            except Exception:
                log.exception("relief failed (%s)", ", ".join(order.steps))
        self._line.send(Reclaimed(request=order.request, steps=reports))

    async def _sweep(self, message: Sweep) -> Swept:
        """Sweep everything that is due, in bites, so that streams go on in between."""
        runs = freed = 0
        reasons: dict[str, int] = {}
        while True:
            swept = self._gateway.registry.sweep(
                asyncio.get_running_loop().time(), finished=message.finished
            )
            if not swept.runs:
                return Swept(request=message.request, runs=runs, bytes=freed, reasons=reasons)
            runs += swept.runs
            freed += swept.bytes
            for kind, count in swept.reasons.items():
                reasons[kind] = reasons.get(kind, 0) + count
            await asyncio.sleep(0)

    async def _drain_until_over(self) -> None:
        self._gateway.stop_accepting()
        self._line.send(Draining())
        await self._drain.until_over()
        self._over.set()

    async def _watch_config(self, config_file: str | None) -> None:
        """Tell the watchdog when the config file may have changed."""
        if config_file is None:
            return
        async for _ in config_watch.changes(Path(config_file)):
            self._line.send(ConfigChanged())


def main(argv: list[str] | None = None) -> int:
    """Run a worker to its end."""
    # By hand: argparse would stay in memory, which is 0.8 MiB.
    match sys.argv[1:] if argv is None else argv:
        case ["--channel", descriptor] if descriptor.isdecimal():
            pass
        case _:
            sys.stderr.write("started by the watchdog, as: tidegate-worker --channel FD\n")
            return os.EX_USAGE
    log_lines.setup("worker")
    _die_with_parent()
    volunteer_for_oom()  # the watchdog must outlive us, and can replace us
    ignore_all()
    write_stacks_when_asked()
    channel = socket.socket(fileno=int(descriptor))
    with _new_loop_runner() as runner:
        return runner.run(_run(channel))


async def _run(channel: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    channel.setblocking(False)
    _, line = await loop.create_unix_connection(WatchdogLine, sock=channel)
    try:
        async with asyncio.timeout(CONFIGURE_LIMIT_S):
            first = await line.inbox.get()
    except TimeoutError:
        log.error("the watchdog sent no settings within %g s", CONFIGURE_LIMIT_S)
        return 1
    if not isinstance(first, Configure) or first.protocol != PROTOCOL:
        line.send(Failed(reason=f"this worker speaks protocol {PROTOCOL}"))
        return 1
    log_lines.setup(f"worker {first.generation}")
    try:
        await Worker(line, first).serve()
    except (OSError, ValueError) as error:
        log.error("cannot serve: %s", error)
        line.send(Failed(reason=str(error)))
        await asyncio.sleep(FAILED_S)  # the message is on its way; the watchdog then ends us
        return 1
    return 0


def _new_loop_runner() -> asyncio.Runner:
    """Run uvloop where its clock is right: on a Mac it runs on while the computer sleeps."""
    if sys.platform == "linux":
        import uvloop  # noqa: PLC0415

        return asyncio.Runner(loop_factory=uvloop.new_event_loop)
    return asyncio.Runner()


def _die_with_parent() -> None:
    """Have Linux kill us when the watchdog dies, should the end of file go unnoticed."""
    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
