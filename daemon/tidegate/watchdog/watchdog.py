"""The watchdog: it must outlive everything, so it is small and boring.

One `selectors` loop, no asyncio, no HTTP. It owns the listening sockets, the pid file, the
config and the conversation with the service manager; it starts workers, ends those that hang,
and judges memory from outside. `core.lifecycle` decides what becomes of workers, and this file
does what it says and writes a line about it. It waits for nothing but its next happening, and a
fault of its own costs that happening alone (`faults`).

The parts it turns between: `generations` (the processes), `listeners` (the sockets), `reload`
(the config), `guardian` (memory), `evidence` (what is kept of trouble), `command` (the command
line), `overview` (what it tells of itself).
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tidegate import __version__
from tidegate.config import ConfigError, LoadedConfig
from tidegate.core.fleet import events
from tidegate.core.fleet import lifecycle as life
from tidegate.core.fleet.lifecycle import Timing
from tidegate.core.protocol import worker as msg
from tidegate.core.protocol.status import Restart, Status
from tidegate.core.settings import MIB
from tidegate.logs import handler as log
from tidegate.machine import pressure
from tidegate.machine.signals import hold_early, write_stacks_when_asked
from tidegate.managers import sockets
from tidegate.managers.launchd import activation
from tidegate.managers.sockets import Bound, ListenError
from tidegate.managers.systemd.notify import Notifier
from tidegate.watchdog import signals
from tidegate.watchdog.control import status
from tidegate.watchdog.control.client import SOCKET_NAME
from tidegate.watchdog.control.commands import Commands
from tidegate.watchdog.control.overview import Overview
from tidegate.watchdog.control.server import OUR_FAULT, Client, ControlServer
from tidegate.watchdog.faults import CLOCK, EXIT, PAUSE_S, SAMPLE, TICK, WAIT, Faults, Handler
from tidegate.watchdog.guard.book import MemoryBook
from tidegate.watchdog.guard.decision_log import DecisionLog
from tidegate.watchdog.guard.evidence import Evidence
from tidegate.watchdog.guard.guard import Guardian
from tidegate.watchdog.listeners import Listeners
from tidegate.watchdog.pid_file import AlreadyRunning, PidFile
from tidegate.watchdog.readiness import Readiness
from tidegate.watchdog.reload import Reloader
from tidegate.watchdog.repairs import Caretaker, Seen
from tidegate.watchdog.runtime_dir import Home
from tidegate.watchdog.signals import Signals
from tidegate.watchdog.upgrade import upgrade
from tidegate.watchdog.upgrade.state import Estate, UpgradeError
from tidegate.watchdog.upgrade.upgrade import Upgrade
from tidegate.watchdog.workers.generations import Generations
from tidegate.watchdog.workers.process import (
    WORKER_COMMAND,
    Worker,
    allow_many_descriptors,
    forbid_core_dumps,
)

PID_FILE_NAME = "tidegate.pid"
PARK_RETRY_S = 5.0  # a parked daemon looks so often whether the config was mended

UNREAPABLE_S = 5.0  # a process that SIGKILL cannot end hangs in the kernel; we go without it
# What a disk or a computer that is short of something says; any other error will stay.
_PASSING = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
DEFAULT_TIMING = Timing()
_log = logging.getLogger(__name__)


def run(
    *,
    load: Callable[[], LoadedConfig],
    stand_in: Callable[[str], LoadedConfig],
    runtime_dir: Path,
    state_dir: Path,
    log_file: Path | None,
    park: bool = False,
    banner: Callable[[msg.Ready, list[str]], None],
    worker_command: Sequence[str] = WORKER_COMMAND,
    timing: Timing = DEFAULT_TIMING,
) -> int:
    """Be the watchdog until told to stop; the exit code.

    0 stopped as asked · 75 try again: another one runs, an address is taken, the disk is full, or
    workers die before they are ready · 78 the configuration or a directory is bad, and will be
    next time.
    `banner` is called once, when the first worker is ready, with the addresses really bound.
    """
    if upgrade.is_rehearsal(os.environ):
        return _rehearse(load)
    hold_early()
    try:
        log.setup("watchdog", log_file)
    except OSError as error:
        log.setup("watchdog")
        _log.error("cannot write the log file: %s", error)
        return _exit_code(error)
    write_stacks_when_asked()
    forbid_core_dumps()
    allow_many_descriptors()
    try:
        estate = upgrade.inherited(os.environ)
    except UpgradeError as error:  # not in the rehearsal, yet now: a start from nothing is left
        _log.critical("%s", error)
        return os.EX_TEMPFAIL
    first_runtime_dir = runtime_dir
    if estate and estate.runtime_dir is not None:  # which may stand in for another one
        runtime_dir = Path(estate.runtime_dir)
    pid_file = PidFile(runtime_dir / PID_FILE_NAME, estate.pid_fd if estate else -1)
    try:
        pid_file.hold()
    except AlreadyRunning as error:
        _log.error("%s", error)
        return os.EX_TEMPFAIL
    except OSError as error:
        _log.error("cannot lock the pid file: %s", error)
        return _exit_code(error)
    try:
        watchdog = Watchdog(
            load=load,
            stand_in=stand_in,
            runtime_dir=runtime_dir,
            first_runtime_dir=first_runtime_dir,
            state_dir=state_dir,
            pid_file=pid_file,
            estate=estate,
            park=park or activation.is_job(),
            banner=banner,
            worker_command=worker_command,
            timing=timing,
        )
        return _serve(watchdog)
    except ListenError as error:
        _log.error("%s", error)
        return _exit_code(error.__cause__)
    finally:
        pid_file.release()


def _exit_code(error: BaseException | None) -> int:
    """Whether it may be over when we are started again."""
    passes = isinstance(error, OSError) and error.errno in _PASSING
    return os.EX_TEMPFAIL if passes else os.EX_CONFIG


def _serve(watchdog: Watchdog) -> int:
    try:
        return watchdog.serve()
    except Exception:
        _log.exception("the watchdog itself failed")
        watchdog.report_failure()
        return os.EX_SOFTWARE


def _rehearse(load: Callable[[], LoadedConfig]) -> int:
    """Say on stderr why this program could not take over, if so; the exit code."""
    try:
        estate = upgrade.rehearse(os.environ)
        if estate.config is not None and estate.config.parked is None:
            load()  # one that is parked may be helped by the other version
    except (UpgradeError, ConfigError) as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    return os.EX_OK


def _passed_sockets() -> list[Bound]:
    """What the service manager opened for us. Raises ListenError."""
    passed = sockets.adopt_passed(os.environ, os.getpid())
    return passed + activation.adopt_activated() if activation.is_job() else passed


class Watchdog:
    """The loop. `serve` runs it."""

    def __init__(
        self,
        *,
        load: Callable[[], LoadedConfig],
        stand_in: Callable[[str], LoadedConfig],
        runtime_dir: Path,
        first_runtime_dir: Path | None = None,
        state_dir: Path,
        pid_file: PidFile,
        estate: Estate | None,
        park: bool,
        banner: Callable[[msg.Ready, list[str]], None],
        worker_command: Sequence[str],
        timing: Timing,
    ) -> None:
        """Raises ListenError for the control socket and for what the service manager passed."""
        self._park = park
        self._is_launchds = activation.is_job()
        self._pid_file = pid_file
        self._estate = estate  # what an upgrade left, until it is taken up
        self._timing = timing
        self._faults = Faults()
        self._selector = selectors.DefaultSelector()
        self._signals = Signals(self._selector, self._signalled)
        self._notifier = Notifier()
        self._memory = MemoryBook()
        self._totals = estate.totals if estate else status.Totals()
        self._listeners = Listeners(_passed_sockets(), self._notifier)
        self._generations = Generations(
            command=worker_command,
            runtime_dir=runtime_dir,
            policy=life.Policy(timing=timing, gives_up=not park),
            selector=self._selector,
            on_said=self._heard,
            on_event=self._do,
            faults=self._faults,
            first_limit_bytes=lambda number: self._overview.first_ledger_limit_bytes(number),  # noqa: PLW0108
        )
        has_served = estate is not None and estate.serves
        self._readiness = Readiness(
            self._notifier, self._generations, None if has_served else banner
        )
        self._control = ControlServer(
            runtime_dir / SOCKET_NAME,
            self._selector,
            lambda client, request: self._commands.asked(client, request),  # noqa: PLW0108
            time.monotonic,
            estate.control_fd if estate else None,
        )
        self._home = Home(
            first_runtime_dir or runtime_dir, state_dir, pid_file, self._control, self._moved
        )
        self._commands = Commands(self, self._generations, self._control, timing.reply_s)
        self._reloader = Reloader(
            load=load,
            stand_in=stand_in,
            listeners=self._listeners,
            generations=self._generations,
            control=self._control,
            readiness=self._readiness,
            recycle=lambda reason: self._recycle(reason, planned=False),
            on_config=self._follow,
            limit_s=timing.configured_s,
            faults=self._faults,
        )
        self._overview = Overview(
            generations=self._generations,
            listeners=self._listeners,
            memory=self._memory,
            totals=self._totals,
            guard_state=lambda: self._guardian.state(),  # noqa: PLW0108
            repairs=lambda: self._caretaker.open(),  # noqa: PLW0108
            started_s=estate.started_s if estate else time.monotonic(),
        )
        self._evidence = Evidence(
            generations=self._generations,
            state_dir=state_dir,
            status=self._status,
            config=lambda: self._reloader.config,
        )
        self._guardian = Guardian(
            book=self._memory,
            generations=self._generations,
            evidence=self._evidence,
            decisions=DecisionLog(state_dir),
            tell_facts=self._tell_facts,
            do=self._do,
        )
        self._caretaker = Caretaker(state_dir, estate.repairs if estate else None)
        self._pressure = self._watch_pressure()
        self._cannot: str | None = None  # why nothing has begun
        self._upgrade: Upgrade | None = None  # one that is under way
        self._refused_upgrade: str | None = None  # why the last one was
        self._wants_recycle = False  # to end an upgrade, as soon as no other is under way
        self._next_tick_s = self._next_load_s = time.monotonic()
        self._over_at_s: float | None = None
        self._exit_code = os.EX_OK
        self._why: str | None = None  # it gives up

    def serve(self) -> int:
        """Begin, turn until it is over, and clear up; the exit code."""
        if self._estate is None:
            self._generations.clear()
            self._begin()
        else:
            self._resume(self._estate)
        return self._run()

    def _run(self) -> int:
        """Turn until it is over, and clear up; the exit code."""
        while not self._is_over():
            self._turn()
            if (why := self._faults.fatal) is not None:
                _log.critical("giving up: %s", why)
                self._why, self._exit_code = why, os.EX_TEMPFAIL
                break
        return self._end()

    def _turn(self) -> None:
        """Wait for the next happenings, and handle each: a fault in one costs that one."""
        attempt, stirred = self._faults.attempt, []
        if not attempt(WAIT, lambda: stirred.extend(self._selector.select(self._wait_s()))):
            time.sleep(PAUSE_S)
        for key, mask in stirred:
            self._faults.handle(key.data, mask)
        attempt(EXIT, self._reap)
        attempt(CLOCK, self._keep_time)
        if not attempt("the upgrade", self._go_on_upgrading):
            attempt("the upgrade, given up", self._give_up_upgrading)

    def _begin(self) -> str | None:
        """Read the config, open the sockets, start the first worker; why not, if it failed."""
        try:
            self._reloader.begin()
        except (ConfigError, ListenError) as error:
            return self._cannot_begin(error)
        self._cannot = None
        self._do(events.Begin())
        return None

    def _cannot_begin(self, error: ConfigError | ListenError) -> str:
        is_news = str(error) != self._cannot  # a parked daemon tries again and again
        self._cannot = str(error)
        if is_news:
            _log.error("%s", error)
        if self._park:
            self._next_load_s = time.monotonic() + PARK_RETRY_S
            if isinstance(error, ConfigError):
                self._begin_parked(is_news=is_news)
        else:
            temporary = isinstance(error, ListenError) and not isinstance(error, sockets.BadAddress)
            self._exit_code = os.EX_TEMPFAIL if temporary else os.EX_CONFIG
            self._over_at_s = time.monotonic()
        return str(error)

    def _begin_parked(self, *, is_news: bool) -> None:
        """Have a worker say why nothing is served, at the usual address if that is free."""
        assert self._cannot is not None, "there is a reason to park"
        try:
            self._reloader.park(self._cannot)
        except ListenError as error:
            if is_news:
                _log.error("parked, and cannot say so over HTTP: %s", error)
            return
        self._do(events.Begin())

    @property
    def _parked(self) -> str | None:
        """Why nothing is served, if that is so."""
        config = self._reloader.config
        return self._cannot if config is None else config.parked

    def _follow(self, config: LoadedConfig) -> None:
        """What the watchdog itself follows of a config that came into force."""
        settings = config.settings
        self._generations.policy = life.Policy(
            timing=self._timing,
            recycle_limit_s=settings.drain.recycle_limit_s,
            recycles_per_hour=settings.memory.recycles_per_hour,
            gives_up=not self._park,
        )
        self._memory.apply(settings.memory)
        if config.parked is not None:
            _log.warning("parked until the config is mended; /readyz says why")
        elif config.path is None:
            _log.info("no config file at %s; the defaults are in force", config.place)
        for warning in config.warnings:
            _log.warning("config: %s", warning)

    def _end(self) -> int:
        for close in (
            self._commands.stopped,
            self._generations.close,
            self._listeners.close,
            self._control.close,
            self._signals.close,
            self._selector.close,
            self._memory.close,
            self._guardian.close,
            self._evidence.close,
            self._unwatch_pressure,
            self._say_goodbye,
            self._notifier.close,
        ):
            self._faults.attempt("the end", close)
        _log.info("ended with exit code %d", self._exit_code)
        return self._exit_code

    def _say_goodbye(self) -> None:
        self._readiness.ended(self._last_words())

    def _last_words(self) -> str:
        if self._exit_code == os.EX_OK:
            return "stopped"
        return f"failed: {self._why or self._cannot}"

    def report_failure(self) -> None:
        """The loop itself failed."""
        self._readiness.report_failure()

    # --- the loop's clock -----------------------------------------------------------------

    def _is_over(self) -> bool:
        if self._over_at_s is None:
            return False
        return not len(self._generations) or time.monotonic() > self._over_at_s + UNREAPABLE_S

    def _wait_s(self) -> float:
        generations = self._generations
        others = (
            generations.next_kill_s(),
            generations.fleet.spawn_at_s,
            self._notifier.ping_at_s,
            self._evidence.next_s(),
            self._commands.next_s(),
        )
        due = (self._next_tick_s, *(due_s for due_s in others if due_s is not None))
        least_s = PAUSE_S if self._faults.is_fresh else 0.0
        return max(least_s, min(due) - time.monotonic())

    def _keep_time(self) -> None:
        """Do what is due: the end of a hung worker, a restart, a ping, and the tick."""
        attempt, now_s = self._faults.attempt, time.monotonic()
        fleet = self._generations.fleet
        attempt("the end of a worker that hangs", lambda: self._generations.kill_due(now_s))
        attempt("evidence", lambda: self._evidence.tick(now_s))
        attempt("a status", lambda: self._commands.answer_late(now_s))
        if now_s >= self._next_tick_s:
            delay_s = now_s - self._next_tick_s
            self._next_tick_s = now_s + self._timing.tick_s
            self._tick(now_s, delay_s)
        elif fleet.spawn_at_s is not None and now_s >= fleet.spawn_at_s:
            attempt(TICK, lambda: self._do(events.Tick()))
        attempt("the service manager's watchdog", lambda: self._vouch(now_s))

    def _vouch(self, now_s: float) -> None:
        """Tell the service manager that all is well, if it is."""
        is_well = life.is_healthy(self._generations.fleet, now_s, self._timing)
        is_well = (is_well or self._parked is not None) and self._faults.fatal is None
        self._notifier.keep_alive(now_s, is_well=is_well)

    def _tick(self, now_s: float, delay_s: float) -> None:
        """Once a second, and so much later. What fails of it keeps nothing else from being done."""
        attempt = self._faults.attempt
        attempt("the runtime directory", self._home.look)
        attempt(TICK, lambda: self._do(events.Tick()))
        attempt("the limits of commands", lambda: self._commands.give_up_waiting(now_s))
        if not attempt("a reload", lambda: self._reloader.tick(now_s)):
            attempt("a reload, given up", self._reloader.abandon)
        attempt("late commands", self._control.drop_late)
        if self._wants_recycle:
            attempt("the recycle after an upgrade", self._recycle_for_upgrade)
        if self._parked is not None and now_s >= self._next_load_s:
            attempt("the next try of a parked config", lambda: self._try_again(now_s))
        if self._reloader.config is not None:
            attempt(SAMPLE, lambda: self._guardian.tick(now_s, delay_s))
        attempt("the repairs", lambda: self._care(now_s))
        attempt("the service manager", self._tell_manager)

    def _moved(self, place: Path) -> None:
        self._generations.move(place)

    def _tell_manager(self) -> None:
        self._readiness.tell(self._status(), is_parked=self._parked is not None)

    def _care(self, now_s: float) -> None:
        """Look for what somebody should mend."""
        config = self._reloader.config
        beats = [worker.beat for worker in self._generations if worker.beat]
        fullest = max(beats, key=lambda beat: beat.connections, default=None)
        seen = Seen(
            status=self._status(),
            now=time.time(),
            parked=self._parked,
            refused_config=self._reloader.refused,
            refused_upgrade=self._refused_upgrade,
            lost_lines=log.lost(),
            free_bytes=self._caretaker.free_bytes(now_s),
            connections=fullest.connections if fullest else 0,
            most_connections=fullest.most_connections if fullest else 0,
            max_connections=config.settings.limits.max_connections if config else 0,
            configured_budget_bytes=config.settings.memory.budget_bytes if config else None,
            max_body_bytes=config.settings.limits.max_body_bytes if config else 0,
            fits_bytes=self._memory.largest_body_bytes,
            is_watched=self._notifier.is_watched,
            stop_limit_s=config.settings.drain.stop_limit_s if config else 0.0,
            stop_s=self._stop_s(),
            fault=self._faults.recent,
            runtime_dir=self._home.place if self._home.is_elsewhere else None,
            homeless=self._home.trouble,
        )
        self._caretaker.look(seen)

    def _try_again(self, now_s: float) -> None:
        """Parked: the config may have been mended."""
        self._next_load_s = now_s + PARK_RETRY_S
        if self._generations.fleet.stopping:
            return
        if self._reloader.config is None:
            self._begin()
        else:
            self._reloader.look_again()

    def _status(self) -> Status:
        return self._overview.now(None if self._generations.fleet.stopping else self._parked)

    def _tell_facts(self) -> None:
        """Tell the workers where they stand. One that does not read is told nothing new."""
        seen = self._status()
        for worker in self._generations.ready():
            if not worker.channel.unsent_bytes:
                self._generations.send(worker, self._overview.facts(worker.number, seen))

    def _watch_pressure(self) -> pressure.PressureWatch | None:
        """Listen to whoever tells us that memory is short, if somebody does."""
        try:
            watch = pressure.watch_from(os.environ)
        except pressure.PressureError as error:
            _log.warning("memory pressure is not signalled: %s", error)
            return None
        if watch is not None:
            handler = Handler("memory pressure", self._pressed, self._unwatch_pressure)
            self._selector.register(watch, selectors.EVENT_READ, handler)
        return watch

    def _unwatch_pressure(self) -> None:
        """Listen no more; the figures are read once a second anyway."""
        watch, self._pressure = self._pressure, None
        if watch is not None:
            with suppress(KeyError, ValueError, RuntimeError):  # the selector is closed
                self._selector.unregister(watch)
            watch.close()

    def _pressed(self, _mask: int) -> None:
        assert self._pressure is not None
        if self._pressure.took():
            self._memory.pressed(time.monotonic(), self._pressure.source)

    # --- decide, then do ----------------------------------------------------------------------

    def _do(self, event: events.Event) -> list[events.Effect]:
        """Let `core.lifecycle` decide, and perform what it says.

        The facts go out first: whoever is told to drain already knows its successor, and when
        somebody hears that the new generation serves, it knows the one that drains.

        A transition is applied whole or not at all: if the decision fails, the state is as it was;
        an effect that fails keeps no other from being done, and lifecycle hears what it amounts to.
        """
        effects = self._generations.step(event, time.monotonic())
        if effects:
            self._faults.attempt("telling the workers", self._tell_facts)
        for effect in effects:
            if not self._faults.attempt("an effect", functools.partial(self._perform, effect)):
                self._undone(effect)
        return effects

    def _undone(self, effect: events.Effect) -> None:
        """What could not be performed must not stand in the state as if it had been."""
        why = "by a fault of tidegate's own"
        match effect:
            case events.Spawn(number):
                self._generations.kill_soon(number)
                self._do(events.Exited(number, f"cannot be started, {why}"))
            case events.Drain(number):
                self._do(events.Fail(number, f"cannot be told to drain, {why}"))
            case events.Kill(number):
                self._generations.kill_soon(number)
            case events.GiveUp():
                self._over_at_s = time.monotonic()
            case events.Recycled():
                tell = functools.partial(self._commands.recycled, OUR_FAULT)
                self._faults.attempt("telling of a recycle", tell)
            case _:
                pass  # it was only to be told

    def _perform(self, effect: events.Effect) -> None:
        match effect:
            case events.Spawn(number):
                self._faults.attempt("the runtime directory", self._home.look)
                self._generations.start(number, *self._reloader.for_new_worker())
            case events.Drain(number, limit_s, successor):
                self._generations.drain(number, limit_s, successor)
                if successor is not None:
                    self._totals.add_recycle(self._generations.fleet.recycle or "replaced")
                    self._commands.taken_over()
            case events.Kill(number, reason, stacks, notice):
                if stacks:
                    gather = functools.partial(self._evidence.gather_now, "kill", reason)
                    self._faults.attempt("evidence", gather)
                self._generations.end(number, reason, stacks=stacks, notice=notice)
            case events.Replace(number, reason, delay_s):
                self._replace(number, reason, delay_s)
            case events.Recycled(error):
                self._recycled(error)
            case events.ClockGap(gap_s):
                _log.info("the clock stood still for %.0f s; all deadlines start afresh", gap_s)
            case events.GiveUp(reason):
                self._why, self._exit_code = reason, os.EX_TEMPFAIL
                _log.critical("giving up: %s", reason)
                self.stop()
            case events.Over():
                self._over_at_s = time.monotonic()
            case events.Refuse():
                pass  # whoever asked reads it from the effects

    def _replace(self, number: int, reason: str, delay_s: float) -> None:
        code = self._generations.exit_code(number)
        self._totals.add_restart(Restart(at=time.time(), reason=reason, exit=code))
        wait = "at once" if delay_s == 0 else f"in {delay_s:.1f} s"
        _log.warning("worker %d is lost (%s); a new one starts %s", number, reason, wait)

    def _recycled(self, error: str | None) -> None:
        if error is None:
            _log.info("recycled: the former worker is gone")
        else:
            _log.error("recycle failed, the former worker goes on: %s", error)
        self._commands.recycled(error)
        if error is not None:
            self._reloader.recycle_failed(error)

    def _recycle(self, reason: str, *, planned: bool) -> str | None:
        """Start the next generation; why it was refused, or None."""
        effects = self._do(events.Recycle(reason, planned))
        return next((e.error for e in effects if isinstance(e, events.Refuse)), None)

    # --- what the command line may want, see `command.Daemon` -----------------------------------

    def take_status(self) -> Status:
        """The truth now: memory too is read for it."""
        self._memory.read(self._generations)
        return self._status()

    def recycle(self) -> str | None:
        """Start the next generation because somebody asked; why it was refused, or None."""
        error = self._recycle("asked", planned=False)
        if error is None:
            self._evidence.gather("recycle", "asked for")
        return error

    def bundle(self, client: Client) -> None:
        """Write a bundle of evidence because somebody asked for one."""
        self._evidence.gather("bundle", "asked for", self._commands.bundled(client))

    def reload(self, client: Client | None) -> None:
        """Take up the config as it is now; a parked daemon begins with it."""
        if self._reloader.config is None:
            self._control.answer(client, self._begin())
        else:
            self._reloader.start(client)

    def upgrade(self) -> None:
        """Become the program that is on the disk now, unless its rehearsal fails."""
        if self._upgrade is not None:
            return
        if self._generations.fleet.stopping:
            self._commands.upgrade_failed("tidegate is stopping")
            return
        _log.info("upgrade: %s is tried", " ".join(upgrade.command()))
        try:
            self._upgrade = Upgrade(self._leave_behind())
        except UpgradeError as error:
            self._upgrade_failed(error)

    def stop(self) -> None:
        """Drain and end; the second time, end at once."""
        if self._upgrade is not None:
            self._faults.attempt("the end of an upgrade", self._cancel_upgrade)
        self._readiness.ask_for_time()
        self._cannot = None
        self._faults.attempt("the listening sockets", self._listeners.refuse_newcomers)
        self._do(events.Stop(limit_s=self._stop_s()))

    def _cancel_upgrade(self) -> None:
        cancelled, self._upgrade = self._upgrade, None
        self._commands.upgrade_failed("tidegate is stopping")
        if cancelled is not None:
            cancelled.cancel()

    def _stop_s(self) -> float:
        """How long answers may go on at a stop: what the config says, if the manager lets us."""
        config = self._reloader.config
        limit_s = config.settings.drain.stop_limit_s if config else 0.0
        if self._is_launchds:
            return activation.fitting_stop_s(limit_s, activation.exit_timeout_s())
        return limit_s

    # --- what workers and the system say ----------------------------------------------------------

    def _heard(self, worker: Worker, said: msg.FromWorker) -> None:
        match said:
            case msg.Heartbeat():
                self._do(events.Beat(worker.number))
                former, worker.beat = worker.beat, said
                self._totals.add_beat(former, said)
                self._guardian.heard(worker, former, said)
                if worker is self._generations.serving:
                    self._memory.heard(worker, said, time.monotonic())
                if said.request:
                    self._commands.beaten(worker.number, said.request)
            case msg.Ready():
                if not self._faults.attempt(
                    "a new worker", lambda: self._became_ready(worker, said)
                ):
                    why = "that it is ready was lost, by a fault of tidegate's own"
                    self._do(events.Fail(worker.number, why))  # it says so only once
            case msg.Configured(request=request, error=error):
                self._reloader.confirmed(worker, request, error)
            case msg.Swept() | msg.RunList() | msg.ModelList():
                self._commands.answered(worker.number, said)
            case msg.Relieved():
                self._guardian.relieved(worker, said)
            case msg.Inspected():
                self._evidence.heard(worker, said)
            case msg.ConfigChanged():
                self._reloader.look_again()
            case msg.Draining():
                worker.accepts = False
            case msg.Failed(reason=reason):
                _log.error("worker %d cannot go on: %s", worker.number, reason)
                worker.last_words = reason

    def _became_ready(self, worker: Worker, ready: msg.Ready) -> None:
        if ready.protocol != msg.PROTOCOL:
            reason = f"it speaks protocol {ready.protocol}, we speak {msg.PROTOCOL}"
            self._do(events.Fail(worker.number, reason))
            return
        attempt = self._faults.attempt
        attempt("measuring a worker", lambda: self._measure_new(worker, ready))
        _log.info("worker %d is ready, %d MiB", worker.number, (worker.base_bytes or 0) // MIB)
        self._do(events.BecameReady(worker.number))
        attempt("a reload", lambda: self._reloader.became_ready(worker))
        attempt("the first words", lambda: self._tell_first(worker, ready))

    def _measure_new(self, worker: Worker, ready: msg.Ready) -> None:
        worker.ready_s = time.monotonic()
        worker.beats_when_asked = ready.beats_when_asked
        self._memory.read(self._generations)
        worker.base_bytes = self._memory.rss_bytes(worker.pid)

    def _tell_first(self, worker: Worker, ready: msg.Ready) -> None:
        """That we serve, once: to the service manager and on the terminal."""
        if worker.config.parked is None and not self._generations.fleet.stopping:
            self._readiness.serving(ready, self._listeners.addresses, self._status())

    def _reap(self) -> None:
        """See which processes are gone, and which sockets nobody accepts from any more."""
        for worker in self._generations.gone():
            number = worker.number
            self._tell_gone(lambda: self._reloader.worker_gone(worker))  # noqa: B023  (called now)
            self._tell_gone(lambda: self._guardian.worker_gone(number))  # noqa: B023
            self._tell_gone(lambda: self._evidence.worker_gone(number))  # noqa: B023
            self._do(events.Exited(number, worker.how_it_ended()))
            self._generations.forget(worker)
            self._tell_gone(lambda: self._commands.worker_gone(number))  # noqa: B023
        if not self._generations.former_accepts():
            self._listeners.close_retired()

    def _tell_gone(self, tell: Callable[[], object]) -> None:
        self._faults.attempt("telling of a worker's exit", tell)

    def _signalled(self, numbers: list[int]) -> None:
        """Stops first; of others it is enough to hear one."""
        stops = [number for number in numbers if number in signals.STOPS]
        for number in [*stops, *sorted(set(numbers) - signals.STOPS)]:
            self._faults.attempt(signals.name_of(number), functools.partial(self._obey, number))

    def _obey(self, number: int) -> None:
        """Do what a signal means here."""
        if number in signals.STOPS:
            _log.info("%s: stopping", signals.name_of(number))
            self.stop()
        elif number == signal.SIGHUP:
            self.reload(None)
        elif number == signal.SIGUSR2:
            self.upgrade()
        elif number != signal.SIGCHLD:  # which has woken the loop
            _log.info("%s means nothing to tidegate", signals.name_of(number))

    # --- the upgrade, see `upgrade` ---------------------------------------------------------------

    def _go_on_upgrading(self) -> None:
        """After its rehearsal, as soon as nobody is being answered: become the new program."""
        if self._upgrade is None:
            return
        is_quiet = self._commands.is_quiet and not self._reloader.is_under_way
        try:
            if self._upgrade.is_due(time.monotonic(), is_quiet=is_quiet) and self._signals.hold():
                _log.info("upgrade: the new program takes over")
                self._notifier.alive()
                self._reloader.leave()
                notify = self._notifier.environment()
                log.settle()
                upgrade.become(self._upgrade.words, self._leave_behind(), notify)
        except UpgradeError as error:
            self._signals.release()
            self._upgrade_failed(error)

    def _give_up_upgrading(self) -> None:
        self._signals.release()
        self._upgrade_failed(UpgradeError("a fault of tidegate's own; its log has the stack"))

    def _upgrade_failed(self, error: UpgradeError) -> None:
        self._upgrade = None
        self._refused_upgrade = str(error)
        _log.error("upgrade refused, nothing has changed: %s", error)
        self._commands.upgrade_failed(f"the upgrade was refused, nothing has changed: {error}")

    def _leave_behind(self) -> Estate:
        return Estate(
            started_s=self._overview.started_s,
            serves=self._readiness.has_served,
            fleet=self._generations.fleet,
            workers=self._generations.kept(),
            listeners=self._listeners.kept(),
            pid_fd=self._pid_file.fd,
            control_fd=self._control.fileno(),
            runtime_dir=str(self._home.place),
            clients=self._commands.kept(),
            config=self._reloader.config,
            totals=self._totals,
            alarms=self._memory.alarms,
            steps=self._memory.steps,
            repairs=self._caretaker.since(),
        )

    def _resume(self, estate: Estate) -> None:
        """Take up what the former program left, and replace its worker."""
        self._estate = None
        _log.info("version %s goes on where %s left off", __version__, estate.version)
        self._memory.resume(estate.alarms, estate.steps)
        self._listeners.resume(estate.listeners)
        self._commands.resume(estate.clients)
        if estate.config is None:
            self._generations.clear()
            self._begin()
            return
        self._generations.adopt(estate.fleet, estate.workers, estate.config)
        self._reloader.resume(estate.config)
        self._wants_recycle = True

    def _recycle_for_upgrade(self) -> None:
        """Start a worker of this version; again on the next tick while another recycle goes on."""
        if self._recycle("upgrade", planned=False) is None:
            self._wants_recycle = False
            self._commands.upgrade_recycles()
