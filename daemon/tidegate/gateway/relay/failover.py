"""From target to target until one answers: whose turn it is, what is waited for, what comes next.

Before the first output a failure goes on to the next target; after it, two answers are never
spliced together.
"""

from __future__ import annotations

import asyncio
import logging
import math

from tidegate.core.errors import UpstreamError
from tidegate.core.formats.base import ErrorText
from tidegate.core.runs.advice import advise
from tidegate.core.runs.limits import Expiry, fits_hold, has_time
from tidegate.core.runs.state import RunState, Trigger
from tidegate.core.upstreams.blame import VERDICTS
from tidegate.gateway.relay.attempt import Attempt, AttemptHost
from tidegate.gateway.relay.failure import Failure
from tidegate.gateway.upstreams.choice import Target, TargetRoute
from tidegate.gateway.upstreams.connection import UpstreamConnection
from tidegate.gateway.upstreams.pool import UpstreamPool
from tidegate.gateway.upstreams.reply import Answer

log = logging.getLogger("tidegate.relay")

ONCE_MORE_S = 0.3  # after a 500 or a reset: what only stumbled is up again by then

_BEHIND = (
    "the targets behind it are asked only when it fails (put equals into an inner list of targets)"
)


class Failover:
    """The targets of one run, and the way through them. Times are the event loop's, in seconds."""

    __slots__ = (
        "_again", "_asked_again", "_caller", "_has_waited", "_host", "_loop", "_route",
        "_run", "_waiting",
    )  # fmt: skip

    def __init__(
        self,
        host: AttemptHost,
        targets: list[Target],
        loop: asyncio.AbstractEventLoop,
        caller: str,
    ) -> None:
        """`caller` tells clients apart, where a request may be at fault and not its upstream."""
        self._host = host
        self._run = host.run
        self._loop = loop
        self._caller = caller
        self._route = TargetRoute(targets)
        self._waiting: list[Target] = []  # in whose queues it stands
        self._has_waited = False  # for the first of those that wanted to be left alone
        self._asked_again = False  # the last target, after a 500 or a reset
        self._again: asyncio.TimerHandle | None = None  # when that one may be asked

    def has_more(self) -> bool:
        return self._route.has_more(self._loop.time())

    def begin(self) -> None:
        """Go for the next target: at once, or when one of its equals has a slot."""
        now_s = self._loop.time()
        self._again = self._host.attempt = None
        equals = self._route.choose(now_s)
        if not equals:
            self._wait_until_told(now_s)
            return
        for target in equals:
            if target.pool.is_free:
                target.pool.take_slot(self)
                self._try(target)
                return
        self._wait_for_slot(equals)

    def _try(self, target: Target) -> None:
        """There is a slot for the run at this target."""
        self._route.remove(target)
        attempt = self._host.attempt = Attempt(self._host, self, target, self._loop)
        self._run.limits = target.limits.at_target(is_last=not self.has_more())
        attempt.open()
        self._host.look_again()

    def go_on(self, target: Target, connection: UpstreamConnection, asked_s: float) -> Attempt:
        """Go on with a request that `target` was sent at `asked_s`, and has a slot for."""
        self._route.remove(target)
        attempt = self._host.attempt = Attempt(self._host, self, target, self._loop)
        self._run.limits = target.limits.at_target(is_last=not self.has_more())
        attempt.go_on(connection, asked_s)
        self._host.look_again()
        return attempt

    # --- waiting --------------------------------------------------------------------------------

    def _wait_for_slot(self, equals: list[Target]) -> None:
        """Stands in the queues of all equals, and goes where a slot is free first."""
        busy = []
        for pool in dict.fromkeys(each.pool for each in equals):
            here = [each for each in equals if each.pool is pool]
            try:
                pool.take_slot(self, here[0].limits.max_queued)
            except UpstreamError as error:
                most = f"limits.max_queued = {here[0].limits.max_queued}"
                busy.append(f'upstream "{pool.name}" {error} ({most})')
            else:
                self._waiting += here
        if not self._waiting:
            self._on_no_slot(equals, "; ".join(busy), "queue_full", Trigger.FAIL)
            return
        # A run that waits for several waits as long as the most patient of them allows.
        self._run.limits = max((each.limits for each in self._waiting), key=lambda it: it.queue_s)
        self._run.wait_for_slot(self._loop.time())
        self._host.look_again()

    def on_slot(self, pool: UpstreamPool) -> None:
        """Try here, where a slot is free; what waits behind this run at the equals moves up."""
        target = next(each for each in self._waiting if each.pool is pool)
        self._leave_queues(but=pool)
        self._try(target)

    def _leave_queues(self, but: UpstreamPool | None = None) -> None:
        pools = {each.pool for each in self._waiting}
        self._waiting = []
        for pool in pools:
            if pool is not but:
                pool.leave_queue(self)

    def _on_no_slot(self, equals: list[Target], reason: str, code: str, trigger: Trigger) -> None:
        """All equals are full, or were for too long: the end, for to be busy is no failure.

        The next level may be another owner's computer. Only what failed meanwhile is followed by
        it, as if it had been set aside before.
        """
        now_s = self._loop.time()
        self._leave_queues()
        self._route.remove(*equals)
        if not self._route.has_more(now_s):
            self._host.end(trigger, reason, code)
        elif any(each.may_be_asked(now_s) for each in equals):
            self._host.end(trigger, f"{reason}; {_BEHIND}", code)
        else:
            log.info("run %s: %s and is set aside; trying the next target", self._run.id, reason)
            self.begin()

    def _wait_until_told(self, now_s: float) -> None:
        """Every target said when to come again: that is waited for if it is soon, or told."""
        run, target = self._run, self._route.first_held(now_s)
        assert target is not None, "a run has a target"
        wait_s = target.held_s(now_s)
        in_time = now_s + wait_s < run.queued_s + run.limits.queue_s
        if not self._has_waited and in_time and fits_hold(run, now_s, wait_s):
            self._has_waited = True
            self._again = self._loop.call_later(wait_s, self.begin)
            self._host.look_again()
            return
        seconds = math.ceil(wait_s)
        status = target.pool.health.held_status(target.model)
        reason = f'upstream "{target.pool.name}" wants to hear nothing for {seconds} s more'
        kind = "rate_limit_error" if status == 429 else "server_error"
        error = ErrorText(status, advise(reason, "upstream_429"), kind, f"upstream_{status}")
        body = run.format.error_body(error)
        headers = (("Retry-After", str(seconds)),)
        self._host.answer = Answer(status, "application/json", body, headers)
        self._host.end(Trigger.FAIL, reason, f"upstream_{status}")

    # --- what follows ---------------------------------------------------------------------------

    def settle(self, attempt: Attempt, failure: Failure) -> None:
        """Hold the fault against its owner, and go on: once more, elsewhere, or to the end."""
        run, verdict, now_s = self._run, VERDICTS[failure.fault], self._loop.time()
        has_begun = run.state not in {RunState.QUEUED, RunState.CONNECTING}
        has_more = self.has_more()
        may_ask_again = verdict.once_more and not (has_begun or has_more or self._asked_again)
        if may_ask_again and has_time(run, now_s, ONCE_MORE_S):
            self._asked_again = True
            attempt.ask_again_in(ONCE_MORE_S, failure.reason)
            return
        attempt.judge(failure, self._caller)
        attempt.let_go()
        if verdict.goes_on and has_more and not has_begun:
            run.end_attempt(failure.reason, now_s)
            log.info("run %s: %s; trying the next target", run.id, failure.reason)
            self.begin()
            return
        self._host.answer = failure.answer
        self._host.end(failure.trigger, failure.reason, failure.code)

    def expire(self, expiry: Expiry) -> None:
        """End what has reached a limit that is said of the upstream."""
        if self._waiting and expiry.limit == "queue_s":
            equals = self._waiting
            names = " and ".join(dict.fromkeys(f'"{each.pool.name}"' for each in equals))
            plural = "s" if len({each.pool for each in equals}) > 1 else ""
            reason = f"upstream{plural} {names} {expiry.reason}"
            self._on_no_slot(equals, reason, expiry.limit, expiry.trigger)
        elif self._host.attempt is not None:
            self._host.attempt.expire(expiry)
        else:
            self._host.end(expiry.trigger, expiry.reason, expiry.limit)

    def let_go(self) -> None:
        """Leave no connection, slot, timer or task of the upstream's side behind."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._host.attempt is not None:
            self._host.attempt.let_go()
        self._leave_queues()
