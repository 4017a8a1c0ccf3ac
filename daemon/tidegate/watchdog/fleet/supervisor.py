"""What `core.fleet.lifecycle` decides of workers, performed."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from tidegate.core.fleet import events
from tidegate.core.protocol.status import Restart
from tidegate.watchdog.control.commands import Commands
from tidegate.watchdog.control.overview import Overview
from tidegate.watchdog.control.server import OUR_FAULT
from tidegate.watchdog.control.status import Totals
from tidegate.watchdog.ending import Ending
from tidegate.watchdog.faults import Faults
from tidegate.watchdog.guard.chronicle import Chronicle
from tidegate.watchdog.guard.evidence import Evidence
from tidegate.watchdog.reload import Reloader
from tidegate.watchdog.runtime_dir import RuntimeDir
from tidegate.watchdog.workers.generations import Generations

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Supervisor:
    """Take what happens to workers, and have the parts do what lifecycle decides about it.

    `stop` drains them and ends the watchdog.
    """

    generations: Generations
    reloader: Reloader
    overview: Overview
    commands: Commands
    evidence: Evidence
    runtime_dir: RuntimeDir
    totals: Totals
    chronicle: Chronicle
    faults: Faults
    send_state: Callable[[], object]
    ending: Ending
    stop: Callable[[], object]

    def do(self, event: events.Event) -> list[events.Effect]:
        """Let lifecycle decide, and perform what it says.

        The state updates go out first: a worker that is told to drain already knows its successor,
        and when a client is told that the new generation serves, it knows the one that drains.

        A transition is applied whole or not at all: if the decision fails, the state is as it was;
        an effect that fails keeps no other from being done, and lifecycle is told of it.
        """
        effects = self.generations.step(event, time.monotonic())
        if effects:
            self.faults.attempt("telling the workers", self.send_state)
        for effect in effects:
            if not self.faults.attempt("an effect", functools.partial(self._perform, effect)):
                self._undone(effect)
        return effects

    def _perform(self, effect: events.Effect) -> None:
        match effect:
            case events.Spawn(number):
                self.faults.attempt("the runtime directory", self.runtime_dir.look)
                config, bound = self.reloader.for_new_worker()
                limit_bytes = self.overview.first_ledger_limit_bytes(number)
                self.generations.start(number, config, bound, limit_bytes)
            case events.Drain(number, limit_s, successor):
                self.generations.drain(number, limit_s, successor)
                if successor is not None:
                    reason = self.generations.fleet.recycle or "replaced"
                    self.totals.add_recycle(reason)
                    took_over = f"worker {successor} took over from worker {number}"
                    self.chronicle.note("recycle", f"recycled ({reason}): {took_over}")
                    self.commands.taken_over()
            case events.Kill(number, reason, stacks, notice):
                if stacks:
                    gather = functools.partial(self.evidence.gather_now, "kill", reason)
                    self.faults.attempt("evidence", gather)
                self.generations.end(number, reason, stacks=stacks, notice=notice)
            case events.Replace(number, reason, delay_s):
                self._replace(number, reason, delay_s)
            case events.Recycled(error):
                self._recycled(error)
            case events.ClockGap(gap_s):
                _log.info("the clock stood still for %.0f s; all deadlines start afresh", gap_s)
            case events.GiveUp(reason):
                self.ending.give_up(reason)
                self.stop()
            case events.Over():
                self.ending.over()
            case events.Refuse():
                pass  # the caller of `do` reads it from the effects

    def _replace(self, number: int, reason: str, delay_s: float) -> None:
        code = self.generations.exit_code(number)
        self.totals.add_restart(Restart(at=time.time(), reason=reason, exit=code))
        self.chronicle.note("restart", f"worker {number} was lost: {reason}")
        wait = "at once" if delay_s == 0 else f"in {delay_s:.1f} s"
        _log.warning("worker %d is lost: %s; a new one starts %s", number, reason, wait)

    def _recycled(self, error: str | None) -> None:
        if error is None:
            _log.info("recycled: the former worker is gone")
        else:
            _log.error("recycle failed, the former worker goes on: %s", error)
        self.commands.recycled(error)
        if error is not None:
            self.reloader.recycle_failed(error)

    def _undone(self, effect: events.Effect) -> None:
        """Tell lifecycle what could not be performed: it must not stand as if it had been."""
        why = "by a fault of tidegate's own"
        match effect:
            case events.Spawn(number):
                self.generations.kill_soon(number)
                self.do(events.Exited(number, f"cannot be started, {why}"))
            case events.Drain(number):
                self.do(events.Fail(number, f"cannot be told to drain, {why}"))
            case events.Kill(number):
                self.generations.kill_soon(number)
            case events.GiveUp():
                self.ending.over()
            case events.Recycled():
                tell = functools.partial(self.commands.recycled, OUR_FAULT)
                self.faults.attempt("telling of a recycle", tell)
            case _:
                pass  # it was only to be told
