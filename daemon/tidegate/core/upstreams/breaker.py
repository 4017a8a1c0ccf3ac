"""Whether a target that keeps failing is asked, or left alone for a while.

A failing target costs every request the wait for its failure. After a few in a row it is set
aside; when its time is over, or as soon as it is seen to be back, one request is let through as a
trial, and what becomes of that one decides. Only requests count: a backend can be dead while its
health check still answers.

A failure without a `Witness` is the target's own. One with a witness may be the mistake of the
request: llama.cpp answers 500 to a picture, and client libraries ask three times. It counts only
when another caller or another body met it too, or when a probe fails as well.

One table says what happens (state x trigger, every cell filled). A request that began before the
target was set aside is not told from the trial: what it met is news of the same target.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

FAILURES_TO_OPEN = 3  # one is chance, two may be one client's doing; a restart rarely breaks three
FIRST_ASIDE_S = 5.0  # a crashed server's manager has it back in a few seconds
MOST_ASIDE_S = 15.0  # nothing that is back stays idle for longer, even where no probe sees it
# A model that has to be loaded answers its trial after minutes: it is not hurried, but one that is
# never heard of again must not shut the target out. Meanwhile one request at a time gets through.
TRIAL_S = 15.0
ENOUGH_WITNESSES = 2  # callers, or bodies


class Witness(NamedTuple):
    """The request that met a failure: its caller, and a digest of its body."""

    caller: str
    body: int


class BreakerState(Enum):
    """Where a breaker stands."""

    __hash__ = object.__hash__  # Enum's own is written in Python, and costs 0.3 us each time

    CLOSED = "closed"  # requests pass
    OPEN = "open"  # set aside
    HALF_OPEN = "half-open"  # one request is on trial


class BreakerTrigger(Enum):
    """What can happen to a breaker."""

    __hash__ = object.__hash__

    ASKED_EARLY = "asked early"  # may a request pass, before the time is over
    ASKED_DUE = "asked when due"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    FAILED_ENOUGH = "failed enough"  # and it was the last of `FAILURES_TO_OPEN` in a row
    GAVE_UP = "gave up"  # the client went away before anything was learned
    REACHED = "reached"  # a question of ours was answered


class BreakerAct(Enum):
    """What a cell of the table asks for."""

    NOTHING = "nothing"
    PASS = "pass"  # noqa: S105  (the request may go on)
    TRY = "try"  # it may go on, as the trial
    SET_ASIDE = "set aside"
    SET_ASIDE_LONGER = "set aside longer"
    LET_NEXT_TRY = "let next try"
    RESET = "reset"


_CLOSED = BreakerState.CLOSED  # a member is searched for in its class, each time
# Short names for the table alone.
_State, _Trigger, _Act = BreakerState, BreakerTrigger, BreakerAct
TABLE: dict[tuple[BreakerState, BreakerTrigger], tuple[BreakerState, BreakerAct]] = {
    (_State.CLOSED, _Trigger.ASKED_EARLY): (_State.CLOSED, _Act.PASS),
    (_State.CLOSED, _Trigger.ASKED_DUE): (_State.CLOSED, _Act.PASS),
    (_State.CLOSED, _Trigger.SUCCEEDED): (_State.CLOSED, _Act.RESET),
    (_State.CLOSED, _Trigger.FAILED): (_State.CLOSED, _Act.NOTHING),
    (_State.CLOSED, _Trigger.FAILED_ENOUGH): (_State.OPEN, _Act.SET_ASIDE),
    (_State.CLOSED, _Trigger.GAVE_UP): (_State.CLOSED, _Act.NOTHING),
    (_State.CLOSED, _Trigger.REACHED): (_State.CLOSED, _Act.NOTHING),
    (_State.OPEN, _Trigger.ASKED_EARLY): (_State.OPEN, _Act.NOTHING),
    (_State.OPEN, _Trigger.ASKED_DUE): (_State.HALF_OPEN, _Act.TRY),
    (_State.OPEN, _Trigger.SUCCEEDED): (_State.CLOSED, _Act.RESET),
    # A crowd that was under way fails one by one: that is one fault, not many.
    (_State.OPEN, _Trigger.FAILED): (_State.OPEN, _Act.NOTHING),
    (_State.OPEN, _Trigger.FAILED_ENOUGH): (_State.OPEN, _Act.NOTHING),
    (_State.OPEN, _Trigger.GAVE_UP): (_State.OPEN, _Act.NOTHING),
    (_State.OPEN, _Trigger.REACHED): (_State.OPEN, _Act.LET_NEXT_TRY),
    (_State.HALF_OPEN, _Trigger.ASKED_EARLY): (_State.HALF_OPEN, _Act.NOTHING),
    (_State.HALF_OPEN, _Trigger.ASKED_DUE): (_State.HALF_OPEN, _Act.TRY),  # the last is forgotten
    (_State.HALF_OPEN, _Trigger.SUCCEEDED): (_State.CLOSED, _Act.RESET),
    (_State.HALF_OPEN, _Trigger.FAILED): (_State.OPEN, _Act.SET_ASIDE_LONGER),
    (_State.HALF_OPEN, _Trigger.FAILED_ENOUGH): (_State.OPEN, _Act.SET_ASIDE_LONGER),
    (_State.HALF_OPEN, _Trigger.GAVE_UP): (_State.OPEN, _Act.LET_NEXT_TRY),
    (_State.HALF_OPEN, _Trigger.REACHED): (_State.HALF_OPEN, _Act.NOTHING),  # the trial will tell
}


class Breaker:
    """Stops asking a target, or a whole upstream, that keeps failing; on the caller's clock."""

    __slots__ = (
        "_aside_s",
        "_bodies",
        "_callers",
        "_due_s",
        "_failures",
        "_is_probed",
        "_state",
        "_suspicions",
    )

    def __init__(self) -> None:
        self._state = BreakerState.CLOSED
        self._failures = 0  # in a row, that are its own beyond doubt
        self._suspicions = 0  # in the same row, that may be a request's mistake
        self._callers: set[str] = set()  # who met those
        self._bodies: set[int] = set()
        self._is_probed = False  # since the last failure, and found well
        self._aside_s = 0.0  # how long it is set aside this time
        self._due_s: float | None = None

    def __repr__(self) -> str:
        return f"<Breaker {self.state} failures={self._failures} due_s={self._due_s}>"

    @property
    def state(self) -> str:
        """ "closed", "open" or "half-open"."""
        return self._state.value

    @property
    def is_closed(self) -> bool:
        """Whether every request may pass."""
        return self._state is _CLOSED

    @property
    def is_suspect(self) -> bool:
        """Whether one more reason, a failing probe, would set it aside, and none has looked yet."""
        enough = self._failures + self._suspicions >= FAILURES_TO_OPEN
        return self.is_closed and enough and not (self._is_enough or self._is_probed)

    @property
    def due_s(self) -> float | None:
        """When the next request may pass, as a trial; None while all may."""
        return self._due_s

    @property
    def aside_s(self) -> float:
        """For how long it is set aside this time; 0 while closed."""
        return self._aside_s

    def may_pass(self, now_s: float) -> bool:
        """Say whether `admit` would let a request pass; changes nothing."""
        return TABLE[self._state, self._asked(now_s)][1] in {BreakerAct.PASS, BreakerAct.TRY}

    def admit(self, now_s: float) -> bool:
        """Let a request pass, or not. A True while it is set aside makes that one the trial."""
        act = self._step(self._asked(now_s))
        if act is BreakerAct.TRY:
            self._due_s = now_s + TRIAL_S
        return act in {BreakerAct.PASS, BreakerAct.TRY}

    def succeeded(self) -> None:
        """Note that a request was answered."""
        if not (self._failures or self._suspicions) and self._state is _CLOSED:
            return  # nearly always: there is nothing to make good for
        if self._step(BreakerTrigger.SUCCEEDED) is BreakerAct.RESET:
            self._failures = self._suspicions = 0
            self._callers.clear()
            self._bodies.clear()
            self._aside_s, self._due_s = 0.0, None

    def failed(self, now_s: float, witness: Witness | None = None) -> None:
        """Note a failure: of the target, or, with a witness, of what may be the request's doing."""
        self._is_probed = False
        if witness is None:
            self._failures = min(self._failures + 1, FAILURES_TO_OPEN)
        else:
            self._suspicions = min(self._suspicions + 1, FAILURES_TO_OPEN)
            if len(self._callers) < ENOUGH_WITNESSES:
                self._callers.add(witness.caller)
            if len(self._bodies) < ENOUGH_WITNESSES:
                self._bodies.add(witness.body)
            if self._state is BreakerState.HALF_OPEN and not self._is_corroborated:
                self.gave_up(now_s)  # one request's own mistake is no trial
                return
        self._fail(now_s)

    def confirm(self, now_s: float) -> None:
        """Note that a probe failed too, so that what was suspected is the target's own fault."""
        self._failures = min(self._failures + self._suspicions, FAILURES_TO_OPEN)
        self._suspicions = 0
        self._fail(now_s)

    def gave_up(self, now_s: float) -> None:
        """Note that the trial's client went away, which says nothing: the next may try at once."""
        if self._step(BreakerTrigger.GAVE_UP) is BreakerAct.LET_NEXT_TRY:
            self._due_s = now_s

    def reached(self, now_s: float) -> None:
        """Note that a probe was answered: the next request may try it at once."""
        self._is_probed = True
        if self._step(BreakerTrigger.REACHED) is BreakerAct.LET_NEXT_TRY:
            self._due_s = now_s

    @property
    def _is_corroborated(self) -> bool:
        """Whether different requests have met what one alone could have brought about."""
        return ENOUGH_WITNESSES in {len(self._callers), len(self._bodies)}

    @property
    def _is_enough(self) -> bool:
        suspicions = self._suspicions if self._is_corroborated else 0
        return self._failures + suspicions >= FAILURES_TO_OPEN

    def _fail(self, now_s: float) -> None:
        act = self._step(BreakerTrigger.FAILED_ENOUGH if self._is_enough else BreakerTrigger.FAILED)
        if act is BreakerAct.SET_ASIDE:
            self._set_aside(now_s, FIRST_ASIDE_S)
        elif act is BreakerAct.SET_ASIDE_LONGER:
            self._set_aside(now_s, min(2 * self._aside_s, MOST_ASIDE_S))

    def _set_aside(self, now_s: float, aside_s: float) -> None:
        self._aside_s, self._due_s = aside_s, now_s + aside_s

    def _asked(self, now_s: float) -> BreakerTrigger:
        early = self._due_s is not None and now_s < self._due_s
        return BreakerTrigger.ASKED_EARLY if early else BreakerTrigger.ASKED_DUE

    def _step(self, trigger: BreakerTrigger) -> BreakerAct:
        self._state, act = TABLE[self._state, trigger]
        return act
