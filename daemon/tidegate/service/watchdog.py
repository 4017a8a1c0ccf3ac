"""The watchdog: it must outlive everything, so it is small and boring.

One `selectors` loop, no asyncio, no HTTP. It owns the listening sockets, the pid file, the
config and the conversation with the service manager; it starts workers, ends those that hang,
and judges memory from outside. `core.lifecycle` and `core.watermark` decide; this file does what
they say and writes a line about it. It waits for nothing but its next happening.
"""

from __future__ import annotations

import faulthandler
import functools
import logging
import os
import random
import resource
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tidegate import __version__
from tidegate.config import ConfigError, LoadedConfig
from tidegate.core import lifecycle as life
from tidegate.core import message as msg
from tidegate.core import watermark
from tidegate.core.lifecycle import State, Timing
from tidegate.core.settings import MIB
from tidegate.guard.heap import heap_trimmer
from tidegate.service import launchd, listen, log, status
from tidegate.service.channel import ChannelError
from tidegate.service.control import SOCKET_NAME, Client, ControlServer
from tidegate.service.listen import Bound, ListenError
from tidegate.service.memory import MemoryBook
from tidegate.service.process import WORKER_COMMAND, AlreadyRunning, PidFile, Worker, spawn
from tidegate.service.question import Questions
from tidegate.service.systemd import Notifier

PID_FILE_NAME = "tidegate.pid"
PARK_RETRY_S = 5.0  # a parked daemon looks so often whether the config was mended
EXTEND_S = 15.0  # asked of systemd on every tick of a drain: more than a few late ticks
SWEEP_LEVEL = 2
LAST_TICKS = 3  # level 5 so many samples in a row: the sweeps had their chance
UNREAPABLE_S = 5.0  # a process that SIGKILL cannot end hangs in the kernel; we go without it
DEFAULT_TIMING = Timing()
_log = logging.getLogger(__name__)


def run(
    *,
    load: Callable[[], LoadedConfig],
    runtime_dir: Path,
    state_dir: Path,
    log_file: Path | None,
    park: bool = False,
    banner: Callable[[msg.Ready, list[str]], None],
    worker_command: Sequence[str] = WORKER_COMMAND,
    timing: Timing = DEFAULT_TIMING,
) -> int:
    """Be the watchdog until told to stop; the exit code.

    0 stopped as asked · 75 try again: another one runs, an address is taken, or workers die
    before they are ready · 78 the configuration or a directory is bad, and will be next time.
    `banner` is called once, when the first worker is ready, with the addresses really bound.
    """
    try:
        log.setup("watchdog", log_file)
    except OSError as error:
        log.setup("watchdog")
        _log.error("cannot write the log file: %s", error)
        return os.EX_CONFIG
    faulthandler.enable()  # the service manager's SIGABRT leaves our stacks in the log
    _forbid_core_dumps()
    pid_file = PidFile(runtime_dir / PID_FILE_NAME)
    try:
        pid_file.hold()
    except AlreadyRunning as error:
        _log.error("%s", error)
        return os.EX_TEMPFAIL
    except OSError as error:
        _log.error("cannot lock the pid file: %s", error)
        return os.EX_CONFIG
    try:
        watchdog = Watchdog(
            load=load,
            runtime_dir=runtime_dir,
            park=park or launchd.is_job(),
            banner=banner,
            worker_command=worker_command,
            timing=timing,
        )
        return watchdog.serve()
    finally:
        pid_file.release()


def _forbid_core_dumps() -> None:
    """A core dump would hold people's prompts."""
    if resource.getrlimit(resource.RLIMIT_CORE) == (0, 0):
        return
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:  # a sandbox may forbid even that
        _log.warning("core dumps cannot be switched off: %s", error)


@dataclass(slots=True)
class _Reload:
    """A new config on its way to the workers."""

    request: int
    loaded: LoadedConfig
    bound: list[Bound]
    client: Client | None
    generation: int | None  # who has to confirm it; None: a new generation starts with it
    deadline_s: float | None

    @property
    def by_recycle(self) -> bool:
        return self.generation is None


class Watchdog:
    """The loop and all it owns. `serve` runs it."""

    def __init__(
        self,
        *,
        load: Callable[[], LoadedConfig],
        runtime_dir: Path,
        park: bool,
        banner: Callable[[msg.Ready, list[str]], None],
        worker_command: Sequence[str],
        timing: Timing,
    ) -> None:
        self._load = load
        self._runtime_dir = runtime_dir
        self._park = park
        self._banner: Callable[[msg.Ready, list[str]], None] | None = banner
        self._command = worker_command
        self._policy = life.Policy(timing=timing, gives_up=not park)
        self._timing = timing
        self._fleet = life.Fleet()
        self._workers: dict[int, Worker] = {}
        self._configs: dict[int, LoadedConfig] = {}  # what each worker was last told
        self._loaded: LoadedConfig | None = None
        self._adopted = listen.adopt_passed(os.environ, os.getpid())
        if launchd.is_job():
            self._adopted += launchd.adopt_activated()
        self._bound: list[Bound] = []
        self._retired: list[Bound] = []  # listened on until the former generation drains
        self._parked: str | None = None
        self._reload: _Reload | None = None
        self._reload_again = False
        self._questions = Questions(timing.reply_s)
        self._recycle_waiters: list[tuple[Client, bool]] = []
        self._stop_waiters: list[Client] = []
        self._requests = 0
        self._totals = status.Totals()
        self._memory = MemoryBook()
        self._last_ticks = 0
        self._refused_recycle: str | None = None
        self._started_s = time.monotonic()
        self._next_tick_s = self._started_s
        self._next_ping_s = self._started_s
        self._next_load_s = self._started_s
        self._over_at_s: float | None = None
        self._exit_code = os.EX_OK
        self._notifier = Notifier()
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._wakeup_writer = socket.socketpair()

    def serve(self) -> int:
        """Begin, turn until it is over, and clear up; the exit code."""
        try:
            self._control = ControlServer(
                self._runtime_dir / SOCKET_NAME, self._selector, self._asked, time.monotonic
            )
        except OSError as error:
            _log.error("cannot listen on %s: %s", self._runtime_dir / SOCKET_NAME, error)
            return os.EX_CONFIG
        for left_over in self._runtime_dir.glob("worker-*.sock"):
            left_over.unlink(missing_ok=True)
        self._catch_signals()
        self._begin()
        while not self._is_over():
            for key, mask in self._selector.select(self._wait_s()):
                key.data(mask)
            self._reap()
            self._keep_time()
        return self._end()

    def _begin(self) -> str | None:
        """Read the config, open the sockets, start the first worker; why not, if it failed."""
        try:
            self._loaded = self._load()
            self._bound = self._adopted or self._open(self._loaded.settings.listen)
        except (ConfigError, ListenError) as error:
            self._loaded = None
            return self._cannot_begin(error)
        self._parked = None
        self._apply_settings(self._loaded)
        self._do(life.Begin())
        return None

    def _cannot_begin(self, error: ConfigError | ListenError) -> str:
        if str(error) != self._parked:  # a parked daemon tries again and again
            _log.error("%s", error)
        if self._park:
            self._parked = str(error)
            self._next_load_s = time.monotonic() + PARK_RETRY_S
        else:
            temporary = isinstance(error, ListenError) and not isinstance(error, listen.BadAddress)
            self._exit_code = os.EX_TEMPFAIL if temporary else os.EX_CONFIG
            self._over_at_s = time.monotonic()
        return str(error)

    def _end(self) -> int:
        for client in self._stop_waiters:
            self._control.reply(client, msg.ControlReply(ok=True))
        for worker in self._workers.values():  # only those that even SIGKILL did not end
            self._forget(worker)
        for bound in self._bound + self._retired:
            bound.close()
        self._control.close()
        signal.set_wakeup_fd(-1)
        self._wakeup.close()
        self._wakeup_writer.close()
        self._selector.close()
        self._memory.close()
        self._notifier.status("stopped" if self._exit_code == os.EX_OK else "failed")
        self._notifier.close()
        _log.info("ended with exit code %d", self._exit_code)
        return self._exit_code

    # --- the loop's clock -----------------------------------------------------------------

    def _is_over(self) -> bool:
        if self._over_at_s is None:
            return False
        return not self._workers or time.monotonic() > self._over_at_s + UNREAPABLE_S

    def _wait_s(self) -> float:
        due = [self._next_tick_s]
        due += [w.kill_at_s for w in self._workers.values() if w.kill_at_s is not None]
        if self._fleet.spawn_at_s is not None:
            due.append(self._fleet.spawn_at_s)
        if self._notifier.ping_every_s is not None:
            due.append(self._next_ping_s)
        return max(0.0, min(due) - time.monotonic())

    def _keep_time(self) -> None:
        """Do what is due: the end of a hung worker, a restart, a ping, and the tick."""
        now_s = time.monotonic()
        for worker in self._workers.values():
            worker.kill_if_due(now_s)
        if now_s >= self._next_tick_s:
            self._next_tick_s = now_s + self._timing.tick_s
            self._tick(now_s)
        elif self._fleet.spawn_at_s is not None and now_s >= self._fleet.spawn_at_s:
            self._do(life.Tick())
        if self._notifier.ping_every_s is not None and now_s >= self._next_ping_s:
            self._next_ping_s = now_s + self._notifier.ping_every_s
            if self._parked is not None or life.vouches(self._fleet, now_s, self._timing):
                self._notifier.alive()

    def _tick(self, now_s: float) -> None:
        """Once a second."""
        self._do(life.Tick())
        self._give_up_waiting(now_s)
        self._control.drop_late()
        if self._parked is not None and now_s >= self._next_load_s:
            self._begin()
        if self._loaded is not None:
            self._take_sample(now_s)
        self._notifier.flush()
        self._notifier.status(status.status_line(self._status()))
        if self._fleet.stopping:
            self._notifier.extend_timeout(EXTEND_S)

    # --- a sample's journey: read, judge, tell the worker, act ------------------------------

    def _take_sample(self, now_s: float) -> None:
        """Read what the workers hold, judge which level that is, tell them, and act on it."""
        reading = self._memory.read(self._workers.values())
        if reading is None:
            self._tell_facts()  # of the level that was
            return
        verdict = self._memory.judge(reading, now_s)
        self._tell_facts()
        if not self._memory.enforces:
            return
        if self._memory.mark.level >= SWEEP_LEVEL:
            self._sweep_explained()
        if verdict.recycle:
            self._recycle_unexplained(verdict)
        self._last_ticks = self._last_ticks + 1 if verdict.is_last else 0
        if self._last_ticks >= LAST_TICKS:
            self._last_ticks = 0
            self._cut_one()

    def _sweep_explained(self) -> None:
        """On every tick while the level holds."""
        for worker in self._ready_workers():
            if not worker.channel.unsent_bytes:
                reason = f"level {self._memory.mark.level}"
                self._send(worker, msg.Sweep(request=0, finished=True, reason=reason))

    def _recycle_unexplained(self, verdict: watermark.Verdict) -> None:
        """A sweep would free nothing of it. A refusal that repeats is said once."""
        error = self._recycle("memory", planned=True)
        unexplained = verdict.unexplained_bytes // MIB
        if error is None:
            _log.warning("recycling: the ledger does not explain %d MiB", unexplained)
        elif error != self._refused_recycle:
            _log.warning("no recycle for %d MiB unexplained: %s", unexplained, error)
        self._refused_recycle = error

    def _cut_one(self) -> None:
        """The last resort: the draining generation, or else the serving one."""
        victim = self._fleet.in_state(State.DRAINING) or self._fleet.in_state(State.SERVING)
        if victim is not None:
            self._do(life.Condemn(victim.number, "memory is at the last level"))

    def _tell_facts(self) -> None:
        """Tell the workers where they stand. One that does not read is told nothing new."""
        state = self._status()
        for worker in self._ready_workers():
            if worker.channel.unsent_bytes:
                continue
            facts = msg.Facts(
                state=state.state,
                level=state.memory.level,
                ledger_limit_bytes=self._memory.ledger_limit_bytes(),
                budget_bytes=state.memory.budget_bytes,
                used_bytes=state.memory.used_bytes,
                recycles=self._totals.recycles,
                restarts=self._totals.restart_count,
                swept_runs=self._totals.swept_runs,
                swept_bytes=self._totals.swept_bytes,
                watchdog_rss_bytes=state.watchdog.rss_bytes,
                peer_socket=self._other_socket(worker.number),
            )
            self._send(worker, facts)

    # --- decide, then do ----------------------------------------------------------------------

    def _do(self, event: life.Event) -> list[life.Effect]:
        """Let `core.lifecycle` decide, and perform what it says."""
        now_s = time.monotonic()
        jitter = random.random()  # noqa: S311  (spreads restarts, keeps no secret)
        self._fleet, effects = life.step(self._fleet, event, now_s, self._policy, jitter)
        for effect in effects:
            self._perform(effect, now_s)
        return effects

    def _perform(self, effect: life.Effect, now_s: float) -> None:
        match effect:
            case life.Spawn(number):
                self._spawn(number)
            case life.Drain(number, limit_s, successor):
                self._drain(number, limit_s, successor)
            case life.Kill(number, reason, stacks):
                _log.warning("worker %d ends: %s", number, reason)
                worker = self._workers.get(number)
                if worker is not None:
                    worker.condemned = reason
                    worker.begin_end(now_s, self._timing.kill_wait_s, stacks=stacks)
            case life.Replace(number, reason, delay_s):
                self._replace(number, reason, delay_s)
            case life.Recycled(error):
                self._recycled(error)
            case life.ClockGap(gap_s):
                _log.info("the clock stood still for %.0f s; all deadlines start afresh", gap_s)
            case life.GiveUp(reason):
                _log.critical("giving up: %s", reason)
                self._exit_code = os.EX_TEMPFAIL
                self._stop()
            case life.Over():
                self._over_at_s = now_s
            case life.Refuse():
                pass  # whoever asked reads it from the effects

    def _spawn(self, number: int) -> None:
        pending = self._reload if self._reload and self._reload.by_recycle else None
        loaded = pending.loaded if pending else self._loaded
        bound = pending.bound if pending else self._bound
        assert loaded is not None, "no worker is started without a config"
        fds = [b.sock.fileno() for b in bound]
        try:
            worker = spawn(self._command, number, self._socket_path(number), fds)
        except OSError as error:
            _log.error("cannot start worker %d: %s", number, error)
            self._do(life.Exited(number, f"cannot be started: {error}"))
            return
        _log.info("worker %d starts, pid %d", number, worker.pid)
        self._workers[number] = worker
        self._selector.register(
            worker.channel, selectors.EVENT_READ, functools.partial(self._turn, worker)
        )
        listeners = [msg.Listener(fd=b.sock.fileno(), address=b.address) for b in bound]
        self._send(worker, self._configure(number, loaded, listeners=listeners))
        self._configs[number] = loaded

    def _drain(self, number: int, limit_s: float, successor: int | None) -> None:
        order = msg.StartDraining(
            limit_s=limit_s,
            reason="stop" if successor is None else "recycle",
            successor_socket=None if successor is None else str(self._socket_path(successor)),
        )
        _log.info("worker %d drains, for at most %.0f s (%s)", number, limit_s, order.reason)
        if worker := self._workers.get(number):
            self._send(worker, order)
        if successor is not None:
            self._totals.add_recycle(self._fleet.recycle or "replaced")
            for client, waits in self._recycle_waiters:
                if not waits:
                    self._control.reply(client, msg.ControlReply(ok=True))
            self._recycle_waiters = [(c, waits) for c, waits in self._recycle_waiters if waits]

    def _replace(self, number: int, reason: str, delay_s: float) -> None:
        worker = self._workers.get(number)
        code = worker.popen.returncode if worker else None
        self._totals.add_restart(status.Restart(at=time.time(), reason=reason, exit=code))
        wait = "at once" if delay_s == 0 else f"in {delay_s:.1f} s"
        _log.warning("worker %d is lost (%s); a new one starts %s", number, reason, wait)

    def _recycled(self, error: str | None) -> None:
        if error is None:
            _log.info("recycled: the former worker is gone")
        else:
            _log.error("recycle failed, the former worker goes on: %s", error)
        for client, _ in self._recycle_waiters:
            self._control.reply(client, msg.ControlReply(ok=error is None, error=error))
        self._recycle_waiters = []
        if error is not None and self._reload and self._reload.by_recycle:
            self._finish_reload(error)

    def _recycle(self, reason: str, *, planned: bool) -> str | None:
        """Start the next generation; why it was refused, or None."""
        effects = self._do(life.Recycle(reason, planned))
        return next((e.error for e in effects if isinstance(e, life.Refuse)), None)

    def _stop(self) -> None:
        """Drain and end; the second time, end at once."""
        self._notifier.stopping()
        self._notifier.extend_timeout(EXTEND_S)
        limit_s = self._loaded.settings.drain.stop_limit_s if self._loaded else 0.0
        self._parked = None
        self._do(life.Stop(limit_s=limit_s))

    # --- workers ----------------------------------------------------------------------------

    def _turn(self, worker: Worker, mask: int) -> None:
        """A worker's channel can be read or written."""
        if mask & selectors.EVENT_WRITE:
            worker.channel.flush()
            self._watch(worker)
        if mask & selectors.EVENT_READ and not self._hear(worker):
            self._selector.unregister(worker.channel)  # its exit follows, or its beat is missed

    def _hear(self, worker: Worker) -> bool:
        """Take in all that a worker said; False when it will say no more."""
        try:
            for line in worker.channel.receive():
                self._heard(worker, msg.decode_from_worker(line))
        except ChannelError:
            return False
        except msgspec.MsgspecError as error:
            self._do(life.Condemn(worker.number, f"it says what we do not understand: {error}"))
            return False
        return True

    def _heard(self, worker: Worker, said: msg.FromWorker) -> None:
        number = worker.number
        match said:
            case msg.Heartbeat():
                self._totals.add_beat(worker.beat, said)
                worker.beat = said
                self._do(life.Beat(number))
            case msg.Ready():
                self._became_ready(worker, said)
            case msg.Configured(request=request, error=error):
                if self._reload and (self._reload.request, self._reload.generation) == (
                    request,
                    number,
                ):
                    self._finish_reload(error)
            case msg.Swept() | msg.RunList():
                self._answered(number, said)
            case msg.ConfigChanged():
                self._start_reload(None)
            case msg.Draining():
                worker.accepts = False
                self._close_retired()
            case msg.Failed(reason=reason):
                _log.error("worker %d cannot go on: %s", number, reason)
                worker.last_words = reason

    def _became_ready(self, worker: Worker, ready: msg.Ready) -> None:
        if ready.protocol != msg.PROTOCOL:
            reason = f"it speaks protocol {ready.protocol}, we speak {msg.PROTOCOL}"
            self._do(life.Condemn(worker.number, reason))
            return
        self._memory.read(self._workers.values())
        worker.base_bytes = self._memory.rss_bytes(worker.pid)
        _log.info("worker %d is ready, %d MiB", worker.number, (worker.base_bytes or 0) // MIB)
        self._do(life.BecameReady(worker.number))
        config = self._configs[worker.number]
        if self._reload and self._reload.by_recycle and config is self._reload.loaded:
            self._finish_reload(None)
        elif config is not self._loaded and self._loaded is not None:
            # The config was reloaded while this worker was starting with the former one.
            self._configs[worker.number] = self._loaded
            self._send(worker, self._configure(worker.number, self._loaded, request=self._number()))
        if self._banner is not None:
            self._notifier.ready()
            self._notifier.status(status.status_line(self._status()))
            self._banner(ready, self._addresses())
            self._banner = None
            heap_trimmer()()  # a megabyte of what the imports left behind

    def _reap(self) -> None:
        """See which processes are gone. Their last words are heard first."""
        for worker in list(self._workers.values()):
            if worker.popen.poll() is None:
                continue
            self._hear(worker)
            reason = worker.how_it_ended()
            _log.info("worker %d is gone: %s", worker.number, reason)
            if self._reload and self._reload.generation == worker.number:
                self._finish_reload(f"the worker ended before it answered: {reason}")
            if self._reload and self._configs.get(worker.number) is self._reload.loaded:
                self._finish_reload(f"the new worker did not start: {reason}")
            self._do(life.Exited(worker.number, reason))
            self._forget(worker)
            self._close_retired()

    def _forget(self, worker: Worker) -> None:
        with suppress(KeyError):  # its end of file came before
            self._selector.unregister(worker.channel)
        self._workers.pop(worker.number, None)
        self._configs.pop(worker.number, None)
        worker.close()
        self._reply_all(self._questions.forget(worker.number))

    def _send(self, worker: Worker, message: msg.Message) -> None:
        if not worker.channel.send(message):
            _log.warning("worker %d takes no messages", worker.number)
        self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        """Wait for room only while something waits to be sent."""
        mask = selectors.EVENT_READ
        if worker.channel.unsent_bytes:
            mask |= selectors.EVENT_WRITE
        with suppress(KeyError):  # its end of file came before
            self._selector.modify(worker.channel, mask, functools.partial(self._turn, worker))

    # --- config -------------------------------------------------------------------------------

    def _start_reload(self, client: Client | None) -> None:
        """Validate first; what is wrong changes nothing."""
        if self._loaded is None:
            self._reply(client, self._begin())
            return
        if self._reload is not None:
            self._reload_again = self._reload_again or client is None
            self._reply(client, "a reload is under way")
            return
        self._notifier.reloading(time.monotonic())
        opened: list[Bound] = []
        try:
            loaded = self._load()
            bound = self._bound
            if not self._adopted and loaded.settings.listen != self._loaded.settings.listen:
                bound = self._open(loaded.settings.listen, opened)
        except (ConfigError, ListenError) as error:
            self._reloaded(client, str(error))
            return
        self._reload = _Reload(self._number(), loaded, bound, client, None, None)
        if bound is not self._bound:
            if error_text := self._recycle("listen", planned=False):
                self._finish_reload(f"`listen` cannot change now: {error_text}")
            return
        serving = self._fleet.in_state(State.SERVING)
        if serving is None:
            self._finish_reload(None)  # the next worker starts with it
            return
        self._reload.generation = serving.number
        self._reload.deadline_s = time.monotonic() + self._timing.configured_s
        request = self._reload.request
        self._send(
            self._workers[serving.number],
            self._configure(serving.number, loaded, request=request),
        )

    def _finish_reload(self, error: str | None) -> None:
        """The reload under way came to its end."""
        reload = self._reload
        assert reload is not None, "there is a reload to finish"
        self._reload = None
        unused = [b for b in reload.bound if b not in self._bound]
        if error is None:
            unused = []
            self._retired += [b for b in self._bound if b not in reload.bound]
            self._loaded, self._bound = reload.loaded, reload.bound
            if reload.generation is not None:
                self._configs[reload.generation] = reload.loaded
            self._apply_settings(reload.loaded)
            self._close_retired()
        for bound in unused:
            bound.close()
        self._reloaded(reload.client, error)
        if self._reload_again:
            self._reload_again = False
            self._start_reload(None)

    def _reloaded(self, client: Client | None, error: str | None) -> None:
        if error is None:
            _log.info("config reloaded; listening on %s", ", ".join(self._addresses()))
        else:
            _log.error("reload refused, nothing has changed: %s", error)
        self._notifier.ready()
        self._reply(client, error)

    def _apply_settings(self, loaded: LoadedConfig) -> None:
        """What the watchdog itself follows of the settings."""
        settings = loaded.settings
        self._policy = life.Policy(
            timing=self._timing,
            recycle_limit_s=settings.drain.recycle_limit_s,
            recycles_per_hour=settings.memory.recycles_per_hour,
            gives_up=not self._park,
        )
        self._memory.apply(settings.memory)
        for warning in loaded.warnings:
            _log.warning("config: %s", warning)

    def _open(self, addresses: list[str], opened: list[Bound] | None = None) -> list[Bound]:
        """Sockets for `addresses`, those we have already included. Raises ListenError."""
        bound: list[Bound] = []
        fresh: list[Bound] = [] if opened is None else opened
        try:
            for address in addresses:
                known = next((b for b in self._bound if b.configured == address), None)
                if known is None:
                    known = listen.bind(address)
                    fresh.append(known)
                bound.append(known)
        except ListenError:
            for socket_opened in fresh:
                socket_opened.close()
            raise
        return bound

    def _close_retired(self) -> None:
        """Close what nobody accepts from any more."""
        serving = self._fleet.in_state(State.SERVING)
        others = [w for n, w in self._workers.items() if serving is None or n != serving.number]
        if any(worker.accepts for worker in others):
            return
        for bound in self._retired:
            _log.info("no longer listening on %s", bound.address)
            bound.close()
        self._retired = []

    # --- the command line ---------------------------------------------------------------------

    def _asked(self, client: Client, request: msg.ControlRequest) -> None:
        match request.verb:
            case "status":
                result = msgspec.Raw(msgspec.json.encode(self._status()))
                self._control.reply(client, msg.ControlReply(ok=True, result=result))
            case "runs":
                self._ask_workers("runs", client, msg.ListRuns(request=self._number()))
            case "sweep":
                order = msg.Sweep(
                    request=self._number(), finished=request.finished, reason="asked for"
                )
                self._ask_workers("sweep", client, order)
            case "recycle":
                if error := self._recycle("asked", planned=False):
                    self._reply(client, error)
                else:
                    self._recycle_waiters.append((client, request.wait))
            case "reload":
                self._start_reload(client)
            case "stop":
                _log.info("stop asked for by the command line")
                if request.wait:
                    self._stop_waiters.append(client)
                else:
                    self._reply(client, None)
                if not self._fleet.stopping:
                    self._stop()
            case verb:
                self._reply(client, f'"{verb}" is no verb that this tidegate knows')

    def _ask_workers(self, verb: str, client: Client, order: msg.Sweep | msg.ListRuns) -> None:
        workers = self._ready_workers()
        if not workers:
            self._reply(client, "no worker is ready; see `tidegate status`")
            return
        awaited = {worker.number for worker in workers}
        self._questions.ask(order.request, verb, client, awaited, time.monotonic())
        for worker in workers:
            self._send(worker, order)

    def _answered(self, number: int, answer: msg.Swept | msg.RunList) -> None:
        if isinstance(answer, msg.Swept) and answer.runs:
            _log.info("worker %d swept %d runs, %d bytes", number, answer.runs, answer.bytes)
        if reply := self._questions.answered(number, answer):
            self._control.reply(*reply)

    def _give_up_waiting(self, now_s: float) -> None:
        """Every wait has its limit."""
        self._reply_all(self._questions.expire(now_s))
        reload = self._reload
        if reload and reload.deadline_s is not None and now_s > reload.deadline_s:
            self._finish_reload(f"the worker did not answer within {self._timing.configured_s:g} s")

    def _reply_all(self, replies: list[tuple[Client, msg.ControlReply]]) -> None:
        for client, reply in replies:
            self._control.reply(client, reply)

    def _reply(self, client: Client | None, error: str | None) -> None:
        if client is not None:
            self._control.reply(client, msg.ControlReply(ok=error is None, error=error))

    # --- signals ------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        """A signal only wakes the loop, which then reads its number."""
        for end in (self._wakeup, self._wakeup_writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._signalled)

    def _signalled(self, _mask: int) -> None:
        numbers = self._wakeup.recv(4096)
        for number in numbers:
            if number in {signal.SIGTERM, signal.SIGINT}:
                _log.info("%s: stopping", signal.Signals(number).name)
                self._stop()
        if signal.SIGHUP in numbers:
            self._start_reload(None)

    # --- what is known ------------------------------------------------------------------------

    def _status(self) -> status.Status:
        """The truth now, as `tidegate status --json` shows it."""
        now_s = time.monotonic()
        serving = self._fleet.in_state(State.SERVING)
        workers = [self._worker_state(worker, now_s) for worker in self._workers.values()]
        beats = [w.beat for w in reversed(self._workers.values()) if w.beat is not None]
        upstreams = status.merge_upstreams([beat.upstreams for beat in beats])
        restarts = list(self._totals.restarts)
        return status.Status(
            state=status.name_state(
                self._fleet,
                parked=self._parked is not None,
                level=self._memory.mark.level,
                upstreams=upstreams,
                since_restart_s=time.time() - restarts[-1].at if restarts else None,
            ),
            version=__version__,
            uptime_s=now_s - self._started_s,
            generation=serving.number if serving else None,
            listen=self._addresses(),
            workers=workers,
            worker=next((w for w in workers if serving and w.generation == serving.number), None),
            watchdog=status.WatchdogState(
                pid=os.getpid(), rss_bytes=self._memory.rss_bytes(os.getpid()) or 0
            ),
            memory=self._memory.state(),
            runs=status.RunCounts(
                active=sum(beat.runs_active for beat in beats),
                finished=sum(beat.runs_finished for beat in beats),
                total=self._totals.runs,
            ),
            swept=status.SweptState(
                runs=self._totals.swept_runs,
                bytes=self._totals.swept_bytes,
                last_reason=self._totals.swept_last_reason,
            ),
            recycles=sum(self._totals.recycles.values()),
            restarts=restarts,
            upstreams=upstreams,
            reason=self._parked,
        )

    def _worker_state(self, worker: Worker, now_s: float) -> status.WorkerState:
        generation = self._fleet.by_number(worker.number)
        state = generation.state if generation else State.GONE
        return status.WorkerState(
            pid=worker.pid,
            generation=worker.number,
            state=state.value,
            rss_bytes=self._memory.rss_bytes(worker.pid) or 0,
            loop_lag_ms=worker.beat.loop_lag_ms if worker.beat else 0.0,
            heartbeat_age_s=now_s - generation.beat_s if generation else 0.0,
        )

    def _ready_workers(self) -> list[Worker]:
        """The serving worker first, then the draining one."""
        found = (self._fleet.in_state(State.SERVING), self._fleet.in_state(State.DRAINING))
        return [w for g in found if g is not None if (w := self._workers.get(g.number))]

    def _addresses(self) -> list[str]:
        return [bound.address for bound in self._bound]

    def _socket_path(self, number: int) -> Path:
        return self._runtime_dir / f"worker-{number}.sock"

    def _other_socket(self, number: int) -> str | None:
        """Where the other generation listens for this one, while it is ready."""
        others = [worker for worker in self._ready_workers() if worker.number != number]
        return str(others[0].socket_path) if others else None

    def _configure(
        self,
        number: int,
        loaded: LoadedConfig,
        *,
        request: int = 0,
        listeners: list[msg.Listener] | None = None,
    ) -> msg.Configure:
        return msg.Configure(
            request=request,
            generation=number,
            settings=loaded.settings,
            tokens=loaded.tokens,
            secrets=loaded.secrets,
            listeners=listeners or [],
            peer_socket=str(self._socket_path(number)),
            other_socket=self._other_socket(number),
            config_file=str(loaded.path) if loaded.path else None,
        )

    def _number(self) -> int:
        """A new number for a question; 0 stands for what expects no answer."""
        self._requests += 1
        return self._requests
