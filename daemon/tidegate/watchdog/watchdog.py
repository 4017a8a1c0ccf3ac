"""The watchdog: it must outlive everything, so it is small and boring.

One `selectors` loop, no asyncio, no HTTP. It owns the listening sockets, the pid file, the
config and the conversation with the service manager; it starts workers, ends those that hang,
and judges memory from outside. `core.fleet.lifecycle` decides what becomes of workers, and the
supervisor does what it says and writes a line about it. The loop waits for nothing but its next
event, and a fault of its own costs that event alone (`faults`).

The parts it turns between, in the order they are built: `listeners` (the sockets), `generations`
(the processes), `readiness` (what the service manager is told), `control` and `commands` (the
command line), `reload` and `parking` (the config), `overview` (what it tells of itself),
`evidence` (what is kept of trouble), `guard` (memory), `supervisor` and `dispatcher` (what is
decided, and the workers' messages), `upgrader` (the next version).
"""

from __future__ import annotations

import functools
import logging
import signal
import time

from tidegate import __version__
from tidegate.core.fleet import events
from tidegate.core.fleet import lifecycle as life
from tidegate.core.notices.outbox import Seen
from tidegate.core.protocol.status import Status
from tidegate.logs import handler as log
from tidegate.managers.launchd import activation
from tidegate.watchdog import signals
from tidegate.watchdog.control.server import ControlClient
from tidegate.watchdog.faults import CLOCK, EXIT, PAUSE_S, SAMPLE, TICK, WAIT
from tidegate.watchdog.parts import Parts, Setup
from tidegate.watchdog.repairs import Observation

_log = logging.getLogger(__name__)


class Watchdog:
    """Run the loop, and do what the command line and signals ask. `serve` starts it."""

    def __init__(self, setup: Setup) -> None:
        """Build its parts. Raises ListenError for the control socket."""
        self.parts = Parts(setup, self, self._on_signals)
        self._setup = setup
        self._is_launchds = activation.is_job()
        self._next_tick_s = time.monotonic()

    # --- from the beginning to the end ------------------------------------------------------------

    def serve(self) -> int:
        """Begin, turn until it is over, and clean up; return the exit code."""
        self._begin()
        return self._run()

    def _begin(self) -> None:
        inherited = self._setup.inherited
        if inherited is None or not self.parts.upgrader.resume(inherited):
            self.parts.generations.clear()
            self.parts.parking.begin()

    def _run(self) -> int:
        """Turn until it is over, and clean up; return the exit code."""
        parts = self.parts
        while not parts.ending.is_over(is_reaped=not len(parts.generations)):
            self._turn()
            if (why := parts.faults.fatal) is not None:
                parts.ending.give_up(why)
                break
        return self._end()

    def _turn(self) -> None:
        """Wait for the next events, and handle each: a fault in one costs that one."""
        parts = self.parts
        attempt, stirred = parts.faults.attempt, []
        if not attempt(WAIT, lambda: stirred.extend(parts.selector.select(self._wait_s()))):
            time.sleep(PAUSE_S)
        for key, mask in stirred:
            parts.faults.handle(key.data, mask)
        attempt(EXIT, parts.dispatcher.reap)
        attempt(CLOCK, self._keep_time)
        if not attempt("the upgrade", parts.upgrader.turn):
            attempt("the upgrade, given up", parts.upgrader.give_up)

    def _end(self) -> int:
        parts = self.parts
        for close in (
            parts.commands.stopped,
            parts.teller.close,
            parts.generations.close,
            parts.listeners.close,
            parts.control.close,
            parts.signals.close,
            parts.selector.close,
            parts.memory.close,
            parts.memory_guard.close,
            parts.evidence.close,
            parts.pressure.close,
            self._report_end,
            parts.notifier.close,
        ):
            parts.faults.attempt("the end", close)
        _log.info("ended with exit code %d", parts.ending.exit_code)
        return parts.ending.exit_code

    def _report_end(self) -> None:
        self.parts.readiness.ended(self.parts.ending.text)

    # --- the loop's clock -----------------------------------------------------------------

    def _wait_s(self) -> float:
        parts = self.parts
        others = (
            parts.generations.next_kill_s(),
            parts.generations.fleet.spawn_at_s,
            parts.notifier.ping_at_s,
            parts.evidence.next_s(),
            parts.commands.next_s(),
            parts.teller.next_s(),
        )
        due = (self._next_tick_s, *(due_s for due_s in others if due_s is not None))
        least_s = PAUSE_S if parts.faults.is_fresh else 0.0
        return max(least_s, min(due) - time.monotonic())

    def _keep_time(self) -> None:
        """Do what is due: the end of a hung worker, a restart, a ping, and the tick."""
        parts = self.parts
        attempt, now_s = parts.faults.attempt, time.monotonic()
        fleet = parts.generations.fleet
        attempt("the end of a worker that hangs", lambda: parts.generations.kill_due(now_s))
        attempt("evidence", lambda: parts.evidence.tick(now_s))
        attempt("a status", lambda: parts.commands.answer_late(now_s))
        if not attempt("a notice on its way", lambda: parts.teller.turn(now_s, time.time())):
            attempt("a notice, given up", parts.teller.give_up)
        if now_s >= self._next_tick_s:
            delay_s = now_s - self._next_tick_s
            self._next_tick_s = now_s + self._setup.timing.tick_s
            self._tick(now_s, delay_s)
        elif fleet.spawn_at_s is not None and now_s >= fleet.spawn_at_s:
            attempt(TICK, lambda: parts.do(events.Tick()))
        attempt("the service manager's watchdog", lambda: self._keep_alive(now_s))

    def _keep_alive(self, now_s: float) -> None:
        """Tell the service manager that all is well, if it is."""
        parts = self.parts
        is_well = life.is_healthy(parts.generations.fleet, now_s, self._setup.timing)
        is_well = (is_well or parts.parking.reason is not None) and parts.faults.fatal is None
        parts.notifier.keep_alive(now_s, is_well=is_well)

    def _tick(self, now_s: float, delay_s: float) -> None:
        """Do what is due once a second. What fails of it keeps nothing else from being done."""
        parts = self.parts
        attempt = parts.faults.attempt
        attempt("the runtime directory", parts.runtime_dir.look)
        attempt(TICK, lambda: parts.do(events.Tick()))
        attempt("the limits of commands", lambda: parts.commands.give_up_waiting(now_s))
        if not attempt("a reload", lambda: parts.reloader.tick(now_s)):
            attempt("a reload, given up", parts.reloader.abandon)
        attempt("late commands", parts.control.drop_late)
        attempt("the recycle after an upgrade", parts.upgrader.tick)
        attempt("the next try of a parked config", lambda: parts.parking.tick(now_s))
        if parts.reloader.config is not None:
            attempt(SAMPLE, lambda: parts.memory_guard.tick(now_s, delay_s))
        attempt("the repairs", lambda: self._look_for_repairs(now_s))
        if not attempt("what is told", lambda: self._tell(now_s)):
            attempt("what is told, given up", parts.teller.give_up)
        attempt("the service manager", self._send_status)

    def _send_status(self) -> None:
        parts = self.parts
        parts.readiness.send_status(parts.status(), is_parked=parts.parking.reason is not None)

    def _look_for_repairs(self, now_s: float) -> None:
        """Look for what has to be fixed."""
        parts = self.parts
        config = parts.reloader.config
        beats = [worker.beat for worker in parts.generations if worker.beat]
        fullest = max(beats, key=lambda beat: beat.connections, default=None)
        seen = Observation(
            status=parts.status(),
            now=time.time(),
            parked=parts.parking.reason,
            refused_config=parts.reloader.refused,
            refused_upgrade=parts.upgrader.refused,
            lost_lines=log.lost(),
            free_bytes=parts.repair_monitor.free_bytes(now_s),
            connections=fullest.connections if fullest else 0,
            most_connections=fullest.most_connections if fullest else 0,
            max_connections=config.settings.limits.max_connections if config else 0,
            configured_budget_bytes=config.settings.memory.budget_bytes if config else None,
            max_body_bytes=config.settings.limits.max_body_bytes if config else 0,
            fits_bytes=parts.memory.largest_body_bytes,
            is_watched=parts.notifier.is_watched,
            stop_limit_s=config.settings.drain.stop_limit_s if config else 0.0,
            stop_s=self._stop_s(),
            fault=parts.faults.recent,
            runtime_dir=parts.runtime_dir.place if parts.runtime_dir.is_elsewhere else None,
            runtime_dir_trouble=parts.runtime_dir.trouble,
        )
        parts.repair_monitor.look(seen)

    def _tell(self, now_s: float) -> None:
        """Tell the owner what is new."""
        parts = self.parts
        seen = Seen(
            repairs=parts.repair_monitor.open(),
            restarts=parts.totals.restarts,
            recycles=parts.totals.recycles,
            version=__version__,
        )
        parts.teller.tick(seen, now_s, time.time())

    # --- what the command line may ask, see `commands.Daemon` ----------------------------------

    def take_status(self) -> Status:
        """Read memory, and make the status as it is now."""
        self.parts.memory.read(self.parts.generations)
        return self.parts.status()

    def recycle(self) -> str | None:
        """Start the next generation because a client asked; return why it was refused, or None."""
        error = self.parts.recycle("asked")
        if error is None:
            self.parts.evidence.gather("recycle", "asked for")
        return error

    def bundle(self, client: ControlClient) -> None:
        """Write a bundle of evidence because `client` asked for one."""
        self.parts.evidence.gather("bundle", "asked for", self.parts.commands.bundled(client))

    def test_receivers(self, client: ControlClient, name: str | None) -> None:
        """Send a test to that receiver, or to every one, and answer `client` what they say."""
        self.parts.teller.test(name, self.parts.commands.tested(client))

    def reload(self, client: ControlClient | None) -> None:
        """Take up the config as it is now; a parked daemon begins with it."""
        if self.parts.reloader.config is None:
            self.parts.control.answer(client, self.parts.parking.begin())
        else:
            self.parts.reloader.start(client)

    def upgrade(self) -> None:
        """Become the program that is on the disk now, unless its preflight fails."""
        self.parts.upgrader.start()

    def stop(self) -> None:
        """Drain and end; the second time, end at once."""
        parts = self.parts
        parts.faults.attempt("the end of an upgrade", parts.upgrader.cancel)
        parts.readiness.ask_for_time()
        parts.parking.stop()
        parts.faults.attempt("the listening sockets", parts.listeners.refuse_newcomers)
        parts.do(events.Stop(limit_s=self._stop_s()))

    def _stop_s(self) -> float:
        """Return how long answers may go on at a stop: as configured, if the manager lets us."""
        config = self.parts.reloader.config
        limit_s = config.settings.drain.stop_limit_s if config else 0.0
        if self._is_launchds:
            return activation.fitting_stop_s(limit_s, activation.exit_timeout_s())
        return limit_s

    # --- signals ----------------------------------------------------------------------------------

    def _on_signals(self, numbers: list[int]) -> None:
        """Act on stops first; of other signals once is enough."""
        stops = [number for number in numbers if number in signals.STOPS]
        for number in [*stops, *sorted(set(numbers) - signals.STOPS)]:
            self.parts.faults.attempt(
                signals.name_of(number), functools.partial(self._act_on, number)
            )

    def _act_on(self, number: int) -> None:
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
