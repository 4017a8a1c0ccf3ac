"""The light answers of a registry: those under way, and those that are kept to be read again.

A kept answer is a plain tuple of texts, numbers and bytes: it costs little, and the garbage
collector leaves such tuples alone. When it is asked for, a run is made of it; and of a run that was
packed and tells no more than that, such an answer.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import NamedTuple

import msgspec

from tidegate.core.errors import LedgerFull
from tidegate.core.formats import BY_PATH
from tidegate.core.records.journal import JournaledRun
from tidegate.core.runs.deflated import Packed, is_worth
from tidegate.core.runs.ledger import Entry, Ledger
from tidegate.core.runs.run import Run
from tidegate.core.runs.state import RunState
from tidegate.core.runs.summary import RunSummary
from tidegate.core.runs.window import Part
from tidegate.core.settings import Limits
from tidegate.gateway.relay.handover import revive
from tidegate.gateway.relay.light import LightRun

# What a kept answer costs beside its bytes: the tuple and what is in it, its places in two dicts
# and among the deadlines. Measured with tracemalloc over 10,000, rounded up.
KEPT_BYTES = 1024
PART_BYTES = 144  # and a part of its window
_COMPLETED = RunState.COMPLETED.value


class KeptAnswer(NamedTuple):
    """A whole stream that was sent. It is kept as a tuple of its fields."""

    id: str
    owner: str
    model: str  # as the client calls it
    upstream: str
    upstream_model: str  # as that upstream calls it
    path: str  # its format's
    keep_s: float
    created: float  # Unix seconds
    ended: float
    began_s: float  # the event loop's
    ended_s: float
    request_id: str | None  # the upstream's own name for it
    request_bytes: int
    next_seq: int  # 0: it is no stream, and is not kept
    events: bytes  # empty where there are parts
    parts: tuple[Part, ...] = ()  # of a window that may be packed

    @classmethod
    def of(cls, run: Run) -> KeptAnswer | None:
        """Give a run that is over as such an answer; None where more can be asked of it."""
        request, attempts = run.request, run.attempts
        is_plain = (
            run.state is RunState.COMPLETED
            and run.delivered
            and request.streamed
            and request.stored
            and not request.background
            and run.response_id is run.reason is None
            and len(attempts) == 1
            and attempts[0].tries == 1
            and BY_PATH.get(run.format.path) is run.format
            and run.window.first_seq == 0
        )
        if not is_plain or not run.window.held_bytes:
            return None
        (attempt,) = attempts
        return cls(
            id=run.id,
            owner=run.owner,
            model=request.model,
            upstream=attempt.upstream,
            upstream_model=attempt.model,
            path=run.format.path,
            keep_s=run.limits.keep_finished_s,
            created=run.created,
            ended=run.ended or run.created,
            began_s=attempt.started_s,
            ended_s=run.ended_s or attempt.started_s,
            request_id=attempt.request_id,
            request_bytes=run.request_bytes,
            next_seq=run.window.next_seq,
            events=b"",
            parts=run.window.parts(),
        )

    @property
    def held_bytes(self) -> int:
        """What the ledger is charged."""
        if not self.parts:
            return KEPT_BYTES + sys.getsizeof(self.events)
        return KEPT_BYTES + sum(PART_BYTES + sys.getsizeof(data) for data, _, _ in self.parts)

    @property
    def due_s(self) -> float:
        """When it has been kept for long enough."""
        return self.ended_s + self.keep_s

    def journaled(self, token: str = "", first_seq: int = 0) -> JournaledRun:
        """Give what is kept of it, as of any other run; its events from `first_seq` on."""
        # By position, as thousands a second are made: in the order of its fields.
        return JournaledRun(
            self.id,
            self.owner,
            token,
            self.path,
            self.model,
            self.upstream_model,
            (self.upstream,),
            _COMPLETED,
            None,
            None,
            self.created,
            self.ended,
            first_seq,
            self.next_seq,
            None,
            None,
            True,
            False,
            True,
        )

    def summary(self, names: Mapping[str, str]) -> RunSummary:
        """Show it as listings do; `names` are those of the tokens, by owner."""
        return RunSummary(
            id=self.id,
            state=RunState.COMPLETED.value,
            reason=None,
            model=self.model,
            upstream=self.upstream,
            attempts=1,
            created=self.created,
            ended=self.ended,
            first_seq=0,
            next_seq=self.next_seq,
            bytes=self.held_bytes,
            subscribers=0,
            token=names.get(self.owner),
        )


_Fields = tuple[object, ...]  # of a KeptAnswer: the collector lets go of plain tuples only


class LightAnswers:
    """Counts, charges and finds them."""

    def __init__(self, ledger: Ledger) -> None:
        self.running: OrderedDict[LightRun, None] = OrderedDict()  # the oldest first
        self._ledger = ledger
        self._account = ledger.light
        self._owners: OrderedDict[str, str] = OrderedDict()  # of kept answers, by run; oldest first
        self._of_owner: dict[str, dict[str, _Fields]] = {}

    def __len__(self) -> int:
        """Count those that are kept."""
        return len(self._owners)

    # --- under way ------------------------------------------------------------------------------

    def begin(self, light: LightRun) -> None:
        """Hold one that begins. Raises LedgerFull when there is no room for its body."""
        try:
            self._charge(Entry.BODY, light.held_bytes)
        except LedgerFull:
            self._charge(Entry.BODY, -light.held_bytes)
            raise
        self.running[light] = None

    def end(self, light: LightRun) -> None:
        """Let go of one that is answered, or becomes a run."""
        if light in self.running:
            del self.running[light]
            self._charge(Entry.BODY, -light.held_bytes)

    def promote(self, before_s: float = float("inf")) -> None:
        """Make runs of those that began before `before_s`."""
        for light in list(self.running):
            if light.asked_s > before_s:
                return
            if not light.is_over:
                light.promote()

    @property
    def has_room(self) -> bool:
        """Whether what takes the place of something larger is surely kept."""
        return not self._ledger.is_tight

    # --- kept -----------------------------------------------------------------------------------

    def keep(self, answer: KeptAnswer) -> None:
        """Keep an answer that has been sent. Raises LedgerFull, and then it is not kept."""
        self._owners[answer.id] = answer.owner
        self._of_owner.setdefault(answer.owner, {})[answer.id] = tuple(answer)
        try:
            self._charge(Entry.WINDOW, answer.held_bytes)
        except LedgerFull:
            self.drop(answer.id)
            raise

    def drop(self, run_id: str) -> int:
        """Let an answer go; returns the bytes that are free now."""
        answer = self._take(run_id)
        return 0 if answer is None else answer.held_bytes

    def oldest(self, before_s: float = float("inf")) -> str | None:
        """Find the answer that has been kept for longest, if it ended before `before_s`."""
        for run_id, owner in self._owners.items():
            answer = KeptAnswer._make(self._of_owner[owner][run_id])
            return run_id if answer.ended_s < before_s else None
        return None

    def revive(self, run_id: str, owner: str | None, limits: Limits) -> Run | None:
        """Make a run of a kept answer, as it was; None if `owner` has none of that id."""
        is_theirs = owner is None or self._owners.get(run_id) == owner
        answer = self._take(run_id) if is_theirs else None
        if answer is None:
            return None
        kept = answer.journaled()
        run = revive(
            kept._replace(next_seq=0) if answer.parts else kept,
            answer.events,
            self._ledger.open_surely(),
            msgspec.structs.replace(limits, keep_finished_s=answer.keep_s),
            began_s=answer.began_s,
            ended_s=answer.ended_s,
            surely=True,  # as it was before
        )
        if answer.parts:
            run.transcript.restore(answer.parts)
        run.attempt.request_id = answer.request_id
        run.delivered = True
        return run

    def loose(self, run_id: str) -> list[bytes]:
        """Find what may be packed of an answer: its events, unless they are."""
        fields = self._of_owner.get(self._owners.get(run_id, ""), {}).get(run_id)
        events = b"" if fields is None else KeptAnswer._make(fields).events
        return [events] if is_worth(len(events)) else []

    def pack(self, run_id: str, found: Iterable[Packed]) -> int:
        """Keep the events that `loose` found as they are deflated; returns the bytes freed."""
        for events, small in found:
            if small is not None and self.loose(run_id) == [events]:
                theirs = self._of_owner[self._owners[run_id]]
                answer = KeptAnswer._make(theirs[run_id])
                parts = ((small, len(events), answer.next_seq),)
                packed = answer._replace(events=b"", parts=parts)
                theirs[run_id] = tuple(packed)
                freed_bytes = answer.held_bytes - packed.held_bytes
                self._charge(Entry.WINDOW, -freed_bytes)
                return freed_bytes
        return 0

    def __contains__(self, run_id: str) -> bool:
        """Say whether that answer is kept."""
        return run_id in self._owners

    def newest(self, owner: str | None, limit: int, names: Mapping[str, str]) -> list[RunSummary]:
        """List summaries, newest first."""
        if owner is None:
            ids = islice(reversed(self._owners.items()), limit)
            kept = [self._of_owner[whose][run_id] for run_id, whose in ids]
        else:
            kept = list(islice(reversed(self._of_owner.get(owner, {}).values()), limit))
        return [KeptAnswer._make(fields).summary(names) for fields in kept]

    def _take(self, run_id: str) -> KeptAnswer | None:
        owner = self._owners.pop(run_id, None)
        if owner is None:
            return None
        theirs = self._of_owner[owner]
        answer = KeptAnswer._make(theirs.pop(run_id))
        if not theirs:
            del self._of_owner[owner]
        self._charge(Entry.WINDOW, -answer.held_bytes)
        return answer

    def _charge(self, entry: Entry, more_bytes: int) -> None:
        self._account.set(entry, self._account.entries[entry] + more_bytes)
