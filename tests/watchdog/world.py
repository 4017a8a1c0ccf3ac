"""A watchdog's loop in a world of its own: its time is virtual, its workers are objects.

Whenever the loop waits and nothing is ready, the clock goes on to what is due next. So the real
limits pass in no time, the same way each time, and no process is started. Its sockets are real.
"""

from __future__ import annotations

import functools
import json
import math
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from tidegate.config import LoadedConfig
from tidegate.core.fleet.lifecycle import Timing
from tidegate.core.protocol import worker as msg
from tidegate.core.protocol.control import ControlReply, ControlRequest
from tidegate.core.protocol.lines import ChannelError
from tidegate.core.protocol.stores import StoreState
from tidegate.core.runs.summary import RunSummary
from tidegate.core.upstreams.summary import UpstreamModels, UpstreamStatus
from tidegate.machine import pressure, sample
from tidegate.watchdog.workers import generations
from tidegate.watchdog.workers.channel import Channel
from tidegate.watchdog.workers.process import Adopted, WorkerHandle
from watchdog import run_watchdog
from watchdog.loop_rig import Loop, own_signals

FIRST_S = 1000.0  # what the clock says at the start
LIMIT_S = 3600.0  # of virtual time, for any condition
ROUNDING_S = 1e-6  # a wait ends behind its deadline, never just before it
NO_PID = 1 << 22  # above the highest that Linux gives to a process
RSS_BYTES = 20 << 20
REAL = Timing()


class Worker(Adopted):
    """A scripted worker, and the process that it would be. What is told to it is in `told`."""

    def __init__(self, world: World, number: int, sock: socket.socket) -> None:
        super().__init__(NO_PID + number)
        self.number = number
        self.hangs = False
        self.signals: list[signal.Signals] = []
        self.told: list[msg.FromWatchdog] = []
        self.runs = 0
        self.journal: StoreState | None = None
        self._world = world
        self._sock = sock
        self._channel = Channel(sock)
        self._next_beat_s = self._end_s = math.inf

    def poll(self) -> int | None:
        """How it ended, if it has."""
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Only SIGKILL does anything to it."""
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.exit(-number)

    def exit(self, code: int) -> None:
        """Its process ends."""
        if self.returncode is None:
            self.returncode = code
            self._channel.close()

    @property
    def due_s(self) -> float:
        """When it acts next by itself."""
        is_idle = self.hangs or self.returncode is not None
        return math.inf if is_idle else min(self._next_beat_s, self._end_s)

    def last(self, kind: type[Any]) -> Any:
        """The last of its orders of that kind."""
        return next(each for each in reversed(self.told) if isinstance(each, kind))

    def say(self, message: msg.Message) -> None:
        """Tell the watchdog."""
        self._channel.send(message)

    def say_raw(self, line: bytes) -> None:
        """Write what may be no message."""
        self._sock.send(line)

    def act(self) -> None:
        """Do what it was told, and what is due."""
        if self.hangs or self.returncode is not None:
            return
        try:
            for line in self._channel.receive():
                self._on_message(msg.decode_from_watchdog(line))
        except ChannelError:
            self.exit(0)
        if self._world.now_s >= self._next_beat_s:
            self._beat()
        if self._world.now_s >= self._end_s:
            self.exit(0)

    def _on_message(self, message: msg.FromWatchdog) -> None:
        is_first = not self.told
        self.told.append(message)
        match message:
            case msg.Configure() if is_first:
                self._begin()
            case msg.Configure(request=request, settings=settings):
                error = "no" if settings.allowed_hosts == ["refuse.me"] else None
                if settings.allowed_hosts != ["never.answer"]:
                    self.say(msg.Configured(request=request, error=error))
            case msg.AskBeat(request=request):
                self._beat(request)
            case msg.Sweep(request=request) if not self._world.mute:
                self.say(msg.Swept(request=request, runs=1, bytes=1 << 20))
            case msg.ListUsage(request=request):
                self.say(msg.UsageList(request=request, lines=[]))
            case msg.Forget(request=request):
                self.say(msg.Forgotten(request=request, runs=self.number))
            case msg.ListRuns(request=request):
                run = RunSummary(
                    id=f"run-{self.number}", state="completed", reason=None, model="m",
                    upstream="box", attempts=1, created=float(self.number), ended=2.0,
                    first_seq=0, next_seq=1, bytes=1, subscribers=0,
                )  # fmt: skip
                self.say(msg.RunList(request=request, runs=[run], total=1))
            case msg.ListModels(request=request):
                box = UpstreamModels(name=f"box{self.number}", url="u", kind=None, state="ok")
                self.say(msg.ModelList(request=request, upstreams=[box], aliases=[]))
            case msg.StartDraining(limit_s=limit_s):
                self.say(msg.Draining())
                self._end_s = self._world.now_s + min(self._world.drain_s, limit_s)

    def _begin(self) -> None:
        if self.number >= self._world.fail_from:
            self.say(msg.Failed(reason="told to fail"))
            self.exit(1)
        elif self.number < self._world.slow_from:
            is_new = not self._world.former
            self.say(msg.Ready(pid=self.pid, beats_when_asked=is_new, remembers=is_new))
            self._beat()

    def _beat(self, request: int = 0) -> None:
        self._next_beat_s = self._world.now_s + self._world.beat_s
        upstream = UpstreamStatus(
            name="box", url="http://127.0.0.1:1", state=self._world.upstream, active=1
        )
        self.say(
            msg.Heartbeat(
                request=request, rss_bytes=RSS_BYTES, ledger_bytes=0, loop_lag_ms=0.1,
                runs_active=0, runs_finished=self.runs, runs_total=self.runs, swept_runs=0,
                swept_bytes=0, upstreams=[upstream], journal=self.journal,
            )
        )  # fmt: skip


class Selector(selectors.DefaultSelector):
    """Waits in virtual time."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready, now or as soon as a worker makes it so."""
        world = self._world
        end_s = world.now_s + (timeout + ROUNDING_S if timeout else 0.0)
        while True:
            for worker in world.workers.values():
                worker.act()
            ready = super().select(0)
            if ready or world.now_s >= end_s:
                return ready
            world.now_s = min([end_s, *(worker.due_s for worker in world.workers.values())])


class Asking:
    """A request whose answer may take a while."""

    def __init__(self, world: World, line: bytes) -> None:
        self._world = world
        self._sock = world.connect()
        self._sock.sendall(line)
        self._got = bytearray()

    @property
    def is_answered(self) -> bool:
        """Whether the whole answer is here."""
        with suppress(BlockingIOError):
            self._got += self._sock.recv(1 << 20)
        return self._got.endswith(b"\n")

    def reply(self) -> ControlReply:
        """Turn until it is answered."""
        self._world.until(lambda: self.is_answered, "an answer")
        self._sock.close()
        return msgspec.json.decode(self._got, type=ControlReply)


class World(Loop):
    """A watchdog and its workers; the test says what these do. The config is as in daemon_rig."""

    def __init__(self, directory: Path) -> None:
        self.now_s = FIRST_S
        self.workers: dict[int, Worker] = {}
        self.drain_s = 0.0  # how long a worker drains, if it may
        self.fail_from = self.slow_from = math.inf  # the first generation that never is ready
        self.beat_s = 1.0
        self.mute = False  # to a sweep
        self.former = False  # workers of a version that cannot be asked to beat
        self.upstream = "ok"
        self.config = directory / "config.json"
        self.settings: dict[str, Any] = {
            "listen": ["127.0.0.1:0"],
            "memory": {"budget": 512 << 20},
            "drain": {"stop_limit_s": 2.0, "recycle_limit_s": 20.0},
        }
        self._directory = directory

    def start(self, *, park: bool = False, timing: Timing = REAL, serves: bool = True) -> None:
        """Begin; until a worker serves, unless it is not to."""
        super().__init__(
            self._directory,
            timing,
            stand_in=functools.partial(run_watchdog.stand_in, self.config, ["127.0.0.1:0"]),
            park=park,
            spawn=self.spawn,
            make_selector=lambda: Selector(self),
        )
        self.load = functools.partial(run_watchdog.load, self.config)
        if not self.config.exists():
            self.write()
        if serves:
            self.begin()
        else:
            self.begin_alone()

    def write(self, **settings: Any) -> None:
        """Change the config file."""
        self.settings |= settings
        self.config.write_text(json.dumps(self.settings))

    def spawn(
        self, _: Sequence[str], number: int, path: Path, config: LoadedConfig, __: Sequence[int]
    ) -> WorkerHandle:
        """A worker that is no process."""
        ours, theirs = socket.socketpair()
        self.workers[number] = worker = Worker(self, number, theirs)
        return WorkerHandle(number, worker, Channel(ours), path, config)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Turn until it comes true."""
        over_s = self.now_s + LIMIT_S
        while not condition():
            assert self.now_s < over_s, f"never: {what}; {self.faults!r}"
            assert not self.faults.total, self.faults
            self.turn()

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        over_s = self.now_s + seconds
        self.until(lambda: self.now_s >= over_s, "time passes")

    def sleep(self, seconds: float) -> None:
        """Let time pass in which nothing at all happens."""
        self.now_s += seconds

    def run(self) -> int:
        """Turn until it has ended; the exit code."""
        ending = self.watchdog.parts.ending
        generations = self.watchdog.parts.generations
        self.until(lambda: ending.is_over(is_reaped=not len(generations)), "it ends")
        return int(ending.exit_code)

    def signal(self, number: signal.Signals) -> None:
        """A signal to the watchdog."""
        signal.raise_signal(number)
        self.turn()

    def asking(self, verb: str, **fields: Any) -> Asking:
        """A request whose answer is not waited for."""
        request = ControlRequest(verb=verb, **fields)
        return Asking(self, msgspec.json.encode(request) + b"\n")

    def status(self) -> dict[str, Any]:
        """What `status` says."""
        return self.result("status")

    def result(self, verb: str) -> dict[str, Any]:
        """What is answered to a verb that succeeds."""
        reply = self.ask(verb)
        assert reply.ok, reply.error
        return dict(msgspec.json.decode(reply.result))

    def end(self) -> None:
        """Give all back."""
        for worker in self.workers.values():
            worker.exit(0)
        self.close()


def _read(_: sample.Sampler, pids: Sequence[int]) -> sample.Sample:
    """A machine with room for everything."""
    rss = dict.fromkeys(pids, RSS_BYTES)
    return sample.Sample(rss=rss, cgroup_bytes=None, available_bytes=1 << 40)


@contextmanager
def made(directory: Path) -> Iterator[World]:
    """A world, with its clock in the place of the real one."""
    world = World(directory)
    with own_signals(), ExitStack() as patches:
        for owner, name, instead in (
            (time, "monotonic", lambda: world.now_s),
            (generations, "jitter", lambda: 0.0),
            (sample.Sampler, "read", _read),
            (pressure, "is_high", lambda _: False),
        ):
            patches.enter_context(mock.patch.object(owner, name, instead))
        try:
            yield world
        finally:
            if hasattr(world, "watchdog"):
                world.end()
