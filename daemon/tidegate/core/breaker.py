"""Whether an upstream that keeps failing is asked, or left alone for a while.

A failing upstream costs every request the wait for its failure. After a few in a row it is set
aside; when its time is over one request is let through as a trial, and what becomes of that one
decides. Only requests count: an engine can be dead while its health check still answers.

One table says what happens (state x happening, every cell filled). A request that began before the
upstream was set aside is not told from the trial: what it met is news of the same upstream.
"""

from __future__ import annotations

from enum import Enum

FAILURES_TO_OPEN = 3  # one is chance, two may be one client's doing; a restart rarely breaks three
FIRST_ASIDE_S = 5.0  # a crashed server's manager has it back in a few seconds
MOST_ASIDE_S = 60.0  # nobody waits longer than a minute for an upstream that is back
# A model that has to be loaded answers its trial after minutes: it is not hurried, but one that is
# never heard of again must not shut the upstream out. Meanwhile one request a minute gets through.
TRIAL_S = 60.0


class State(Enum):
    """Where it stands."""

    CLOSED = "closed"  # requests pass
    OPEN = "open"  # set aside
    HALF_OPEN = "half-open"  # one request is on trial


class Happening(Enum):
    """What can happen."""

    ASKED_EARLY = "asked early"  # may a request pass, before the time is over
    ASKED_DUE = "asked when due"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    FAILED_ENOUGH = "failed enough"  # and it was the last of `FAILURES_TO_OPEN` in a row
    GAVE_UP = "gave up"  # the client went away before anything was learned


class Act(Enum):
    """What a cell of the table asks for."""

    NOTHING = "nothing"
    PASS = "pass"  # noqa: S105  (the request may go on)
    TRY = "try"  # it may go on, as the trial
    SET_ASIDE = "set aside"
    SET_ASIDE_LONGER = "set aside longer"
    LET_NEXT_TRY = "let next try"
    RESET = "reset"


TABLE: dict[tuple[State, Happening], tuple[State, Act]] = {
    (State.CLOSED, Happening.ASKED_EARLY): (State.CLOSED, Act.PASS),
    (State.CLOSED, Happening.ASKED_DUE): (State.CLOSED, Act.PASS),
    (State.CLOSED, Happening.SUCCEEDED): (State.CLOSED, Act.RESET),
    (State.CLOSED, Happening.FAILED): (State.CLOSED, Act.NOTHING),
    (State.CLOSED, Happening.FAILED_ENOUGH): (State.OPEN, Act.SET_ASIDE),
    (State.CLOSED, Happening.GAVE_UP): (State.CLOSED, Act.NOTHING),
    (State.OPEN, Happening.ASKED_EARLY): (State.OPEN, Act.NOTHING),
    (State.OPEN, Happening.ASKED_DUE): (State.HALF_OPEN, Act.TRY),
    (State.OPEN, Happening.SUCCEEDED): (State.CLOSED, Act.RESET),
    # A crowd that was under way fails one by one: that is one fault, not many.
    (State.OPEN, Happening.FAILED): (State.OPEN, Act.NOTHING),
    (State.OPEN, Happening.FAILED_ENOUGH): (State.OPEN, Act.NOTHING),
    (State.OPEN, Happening.GAVE_UP): (State.OPEN, Act.NOTHING),
    (State.HALF_OPEN, Happening.ASKED_EARLY): (State.HALF_OPEN, Act.NOTHING),
    (State.HALF_OPEN, Happening.ASKED_DUE): (State.HALF_OPEN, Act.TRY),  # the last is forgotten
    (State.HALF_OPEN, Happening.SUCCEEDED): (State.CLOSED, Act.RESET),
    (State.HALF_OPEN, Happening.FAILED): (State.OPEN, Act.SET_ASIDE_LONGER),
    (State.HALF_OPEN, Happening.FAILED_ENOUGH): (State.OPEN, Act.SET_ASIDE_LONGER),
    (State.HALF_OPEN, Happening.GAVE_UP): (State.OPEN, Act.LET_NEXT_TRY),
}


class Breaker:
    """One upstream's. Times are seconds on whatever clock the caller uses."""

    __slots__ = ("_aside_s", "_due_s", "_failures", "_state", "_tried_s")

    def __init__(self) -> None:
        self._state = State.CLOSED
        self._failures = 0  # in a row, while closed
        self._aside_s = 0.0  # how long it is set aside this time
        self._due_s: float | None = None
        self._tried_s = 0.0  # when the trial began

    def __repr__(self) -> str:
        return f"<Breaker {self.state} failures={self._failures} due_s={self._due_s}>"

    @property
    def state(self) -> str:
        """ "closed", "open" or "half-open"."""
        return self._state.value

    @property
    def is_closed(self) -> bool:
        """Whether every request may pass."""
        return self._state is State.CLOSED

    @property
    def due_s(self) -> float | None:
        """When the next request may pass, as a trial; None while all may."""
        return self._due_s

    @property
    def aside_s(self) -> float:
        """For how long it is set aside this time; 0 while closed."""
        return self._aside_s

    def admit(self, now_s: float) -> bool:
        """Whether a request may pass. A True while it is set aside makes that one the trial."""
        early = self._due_s is not None and now_s < self._due_s
        act = self._step(Happening.ASKED_EARLY if early else Happening.ASKED_DUE)
        if act is Act.TRY:
            self._tried_s, self._due_s = now_s, now_s + TRIAL_S
        return act in {Act.PASS, Act.TRY}

    def succeeded(self) -> None:
        """A request was answered."""
        if self._step(Happening.SUCCEEDED) is Act.RESET:
            self._failures, self._aside_s, self._due_s = 0, 0.0, None

    def failed(self, now_s: float) -> None:
        """A request met a fault of the upstream."""
        self._failures = min(self._failures + 1, FAILURES_TO_OPEN)
        enough = self._failures == FAILURES_TO_OPEN
        act = self._step(Happening.FAILED_ENOUGH if enough else Happening.FAILED)
        if act is Act.SET_ASIDE:
            self._set_aside(now_s, FIRST_ASIDE_S)
        elif act is Act.SET_ASIDE_LONGER:
            self._set_aside(now_s, min(2 * self._aside_s, MOST_ASIDE_S))

    def gave_up(self) -> None:
        """The trial's client went away, which says nothing: the next may try at once."""
        if self._step(Happening.GAVE_UP) is Act.LET_NEXT_TRY:
            self._due_s = self._tried_s

    def _set_aside(self, now_s: float, aside_s: float) -> None:
        self._aside_s, self._due_s = aside_s, now_s + aside_s

    def _step(self, happening: Happening) -> Act:
        self._state, act = TABLE[self._state, happening]
        return act
