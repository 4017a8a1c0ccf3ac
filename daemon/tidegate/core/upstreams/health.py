"""How an upstream and each of its models fare, as requests and questions of ours have shown.

Three things are kept apart. Whether the upstream can be reached at all: one breaker for all of its
models. How requests for one model fare: a breaker for each, so that a picture which one model
cannot read, or a model that is broken, takes nothing from the others. And what the upstream asked
for itself: a model for which it said `Retry-After` is left alone for that long, which no success,
refresh or probe shortens.

Beside them stands what only its owner can mend: a refused key, a model that is not there. It is
shown until there is a good answer.

Times are seconds on the caller's clock; what should be logged is returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tidegate.core.upstreams.blame import Held
from tidegate.core.upstreams.breaker import Breaker, Witness

MOST_MODELS = 256  # whose state is remembered; names come from clients, and there is no end of them
MOST_NAME = 200  # characters; some servers answer to any name, and a name may be a novel
MOST_HELD_S = 120.0  # what an upstream may ask for itself; a longer wait is the caller's to keep


class Aside(NamedTuple):
    """A model that is left alone now. `left_s` is for how much longer."""

    model: str
    left_s: float
    on_trial: bool
    was_asked_for: bool  # by the upstream itself, with Retry-After


class TargetRefusal(NamedTuple):
    """A refusal for a reason that lies in the config: the owner has to know."""

    model: str  # "": it is the key, so it holds for every model
    text: str


class _Model:
    """One model of the upstream."""

    __slots__ = ("answered_s", "breaker", "held_status", "held_until_s", "refusal")

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.held_until_s = 0.0  # it said when to come again
        self.held_status = 429  # with which status
        self.answered_s: float | None = None  # when its last plain answer was whole
        self.refusal: str | None = None

    def is_worth_keeping(self, now_s: float) -> bool:
        """Say whether to forget it would let requests through, or close a repair."""
        is_held = self.held_until_s > now_s
        return is_held or not self.breaker.is_closed or self.refusal is not None


class Health:
    """Keeps how one upstream and its models fare."""

    def __init__(self) -> None:
        self.whole = Breaker()  # of all models: whether it can be reached at all
        self.state = "unknown"  # "ok", "failing" or "unknown", as the last request or look found it
        self.last_error: str | None = None
        self.reachable: bool | None = None  # None: not tried yet
        self._key_refusal: str | None = None
        self._models: dict[str, _Model] = {}  # the one used last is the last

    def __repr__(self) -> str:
        return f"<Health {self.state} whole={self.whole.state} models={len(self._models)}>"

    # --- may it be asked ----------------------------------------------------------------------

    def may_ask(self, model: str, now_s: float) -> bool:
        """Say whether a request for `model` should go here while there is another target for it."""
        known = self._known(model)
        if known is None:
            return self.whole.may_pass(now_s)
        is_held = known.held_until_s > now_s
        return not is_held and self.whole.may_pass(now_s) and known.breaker.may_pass(now_s)

    def is_in_order(self, model: str, now_s: float) -> bool:
        """Say whether nothing at all is held against it, so that a request is no trial."""
        known = self._known(model)
        if known is not None and not (known.breaker.is_closed and known.held_until_s <= now_s):
            return False
        return self.whole.is_closed

    def held_s(self, model: str, now_s: float) -> float:
        """Count the seconds for which the upstream wants no requests for `model`; 0: none."""
        known = self._known(model)
        return 0.0 if known is None else max(0.0, known.held_until_s - now_s)

    def held_status(self, model: str) -> int:
        """Give the status with which it said so."""
        known = self._known(model)
        return 429 if known is None else known.held_status

    def due_s(self, model: str) -> float:
        """Say when a request may try it again; 0 when one may pass now."""
        known = self._known(model)
        of_model = known.breaker.due_s if known is not None else None
        return max(self.whole.due_s or 0.0, of_model or 0.0)

    def admit(self, model: str, now_s: float) -> bool:
        """Let a request pass; returns whether it is the trial of what is set aside.

        One that passes early, for want of another place, is none.
        """
        known = self._known(model)
        breakers = [self.whole] if known is None else [self.whole, known.breaker]
        was_closed = all(breaker.is_closed for breaker in breakers)
        passes = [breaker.admit(now_s) for breaker in breakers]
        return not was_closed and all(passes)

    # --- how a request fared ------------------------------------------------------------------

    def succeeded(self, model: str, now_s: float, *, is_plain: bool = False) -> bool:
        """Note a whole answer; True where it was set aside until now."""
        known = self._note(model, now_s)
        if is_plain:
            known.answered_s = now_s
        self._key_refusal = known.refusal = None
        return self._alive(known.breaker)

    def began(self, model: str, now_s: float) -> bool:
        """Note a first output. Only a whole answer makes good for former failures."""
        known = self._note(model, now_s)
        self._key_refusal = known.refusal = None
        if not (self.whole.is_closed and known.breaker.is_closed):
            return self.alive(model, now_s)
        self._is_well()
        return False

    def alive(self, model: str, now_s: float) -> bool:
        """Note an answer that may be a refusal: it does its work. True where it was set aside."""
        return self._alive(self._note(model, now_s).breaker)

    def _alive(self, breaker: Breaker) -> bool:
        was_aside = not (self.whole.is_closed and breaker.is_closed)
        self.whole.succeeded()
        breaker.succeeded()
        self._is_well()
        return was_aside

    def failed(
        self, model: str, reason: str, held: Held, now_s: float, witness: Witness | None = None
    ) -> str | None:
        """Note a failure, and what is held against whom; returns what to log, if anything."""
        if held is Held.ALIVE:
            self.alive(model, now_s)
        self.state, self.last_error = "failing", reason
        match held:
            case Held.UPSTREAM:
                return self._fail(self.whole, "", reason, now_s, None)
            case Held.TARGET | Held.SUSPECTED:
                if not self.whole.is_closed:
                    self.whole.succeeded()  # it could be reached
                known = self._note(model, now_s)
                suspected = witness if held is Held.SUSPECTED else None
                return self._fail(known.breaker, model, reason, now_s, suspected)
            case _:
                return None

    def gave_up(self, model: str, now_s: float) -> None:
        """Note that a trial's client went away, so that the next request may try at once."""
        self.whole.gave_up(now_s)
        if (known := self._known(model)) is not None:
            known.breaker.gave_up(now_s)

    def hold(self, model: str, wait_s: float, status: int, now_s: float) -> None:
        """Note that the upstream said when to come again, with this status."""
        known = self._note(model, now_s)
        known.held_until_s = max(known.held_until_s, now_s + min(wait_s, MOST_HELD_S))
        known.held_status = status

    def refuse(self, model: str, text: str, now_s: float) -> None:
        """Note a refusal that only a change of the config mends; of the key where `model` is ""."""
        if model:
            self._note(model, now_s).refusal = text
        else:
            self._key_refusal = text

    def answered_since(self, model: str, since_s: float) -> bool:
        """Say whether a plain answer of `model` was whole since then: it is slow, and not dead."""
        known = self._known(model)
        return known is not None and known.answered_s is not None and known.answered_s >= since_s

    # --- what a look from outside found -------------------------------------------------------

    def reached(self, now_s: float, *, is_well: bool) -> None:
        """Note an answer to a question of ours: what is set aside may be tried at once.

        `is_well`: it was the answer that was hoped for. It promises nothing for a request.
        """
        self.reachable = True
        self.whole.reached(now_s)
        for known in self._models.values():
            known.breaker.reached(now_s)
        models_pass = all(known.breaker.is_closed for known in self._models.values())
        if is_well and self.whole.is_closed and models_pass:
            self.state, self.last_error = "ok", None

    def unreached(self, reason: str, now_s: float) -> list[str]:
        """Note that it did not even answer that; what was only suspected is then its fault."""
        self.reachable, self.state, self.last_error = False, "failing", reason
        return self.confirm(reason, now_s)

    def confirm(self, reason: str, now_s: float) -> list[str]:
        """Set aside what was suspected, now that a probe failed too; returns what to log."""
        suspects = [(name, m.breaker) for name, m in self._models.items() if m.breaker.is_suspect]
        for _, breaker in suspects:
            breaker.confirm(now_s)
        return [_said(name, breaker, reason) for name, breaker in suspects]

    @property
    def wants_probe(self) -> bool:
        """Whether a look at it would decide something: is it back, is a suspicion true."""
        if not self.whole.is_closed:
            return True
        return any(known.breaker.is_suspect for known in self._models.values())

    # --- what is shown ------------------------------------------------------------------------

    @property
    def is_aside(self) -> bool:
        """Whether nothing that is known of it may be asked."""
        if not self.whole.is_closed:
            return True
        models = self._models.values()
        return bool(models) and all(not known.breaker.is_closed for known in models)

    def aside(self, now_s: float) -> Iterator[Aside]:
        """List the models that are left alone now, if not all of them are."""
        for name, known in self._models.items():
            breaker = known.breaker
            if known.held_until_s > now_s:
                yield Aside(name, known.held_until_s - now_s, False, True)
            elif not breaker.is_closed:
                left_s = max(0.0, (breaker.due_s or 0.0) - now_s)
                yield Aside(name, left_s, breaker.state == "half-open", False)

    def refusals(self) -> Iterator[TargetRefusal]:
        """List what only a change of the config can fix."""
        if self._key_refusal is not None:
            yield TargetRefusal("", self._key_refusal)
        for name, known in self._models.items():
            if known.refusal is not None:
                yield TargetRefusal(name, known.refusal)

    # --- inside -------------------------------------------------------------------------------

    def _is_well(self) -> None:
        self.state, self.last_error, self.reachable = "ok", None, True

    def _fail(
        self, breaker: Breaker, model: str, reason: str, now_s: float, witness: Witness | None
    ) -> str | None:
        former = (breaker.state, breaker.due_s)
        breaker.failed(now_s, witness)
        is_news = breaker.state == "open" and (breaker.state, breaker.due_s) != former
        return _said(model, breaker, reason) if is_news and breaker.due_s != now_s else None

    def _known(self, model: str) -> _Model | None:
        return self._models.get(model[:MOST_NAME])

    def _note(self, model: str, now_s: float) -> _Model:
        """Make the model's entry the newest."""
        name = model[:MOST_NAME]
        known = self._models.pop(name, None) or _Model()
        self._models[name] = known
        if len(self._models) > MOST_MODELS:
            rest = (n for n, m in self._models.items() if m is not known)
            idle = (n for n in rest if not self._models[n].is_worth_keeping(now_s))
            del self._models[next(idle, next(iter(self._models)))]
        return known


def _said(model: str, breaker: Breaker, reason: str) -> str:
    what = f"its model {model} is" if model else "it is"
    return f"{what} set aside for {breaker.aside_s:g} s: {reason}"
