"""The record of one try at one upstream, and the preamble that it holds back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from tidegate.core.errors import UpstreamError
from tidegate.core.formats.base import KEEP_ALIVES, OUTPUT, Format, Meaning
from tidegate.core.formats.framing import RAW, Framer
from tidegate.core.formats.sse import SseFramer
from tidegate.core.secret import NO_SECRET, Secret

# What an attempt may hold back while it waits for the first output: enough for any preamble seen,
# little enough that a chatty upstream cannot hide an answer from its reader.
HOLD_EVENTS = 64
HOLD_BYTES = 256 * 1024
# How long after an event that brought the answer further the next ones are taken for such without
# a look: to read each would cost as much as framing it.
LOOK_EVERY_S = 1.0
_IDLE = RAW.framer()  # one for all attempts that are over: it holds nothing
PIECE_BYTES = sys.getsizeof(b"") + 8  # what a held piece costs beside its content


@dataclass(slots=True)
class AttemptRecord:
    """One try at one upstream. Until its first output it holds what it received."""

    number: int
    upstream: str
    model: str
    started_s: float
    framer: Framer = field(default_factory=SseFramer)
    secret: Secret = NO_SECRET  # what it may not repeat where it reports an error
    tries: int = 1  # asked again where that was no failure: told to wait, a dead idle connection
    waits: int = 0  # of these, because the upstream said when to come again
    last_event_s: float = 0.0  # real events only, no keep-alives
    proven_s: float = 0.0  # when one was last seen to be real
    request_id: str | None = None  # the upstream's own name for it
    ended_s: float | None = None
    held: list[bytes] = field(default_factory=list)
    held_events: int = 0
    held_bytes: int = 0
    outcome: str | None = None  # why it ended, for people

    @property
    def charged_bytes(self) -> int:
        """The memory that the held pieces take."""
        return self.held_bytes + PIECE_BYTES * len(self.held)

    def hold(self, form: Format, block: bytes, events: int, learn: Callable[[bytes], None]) -> bool:
        """Keep a preamble back; returns whether the answer has begun with it.

        What says nothing never makes it begin: it is not kept twice in a row, nor once the hold is
        full. Any other preamble that outgrows the hold is let go before its first output. `learn`
        is given the data of each event before the first output. Raises UpstreamError where an event
        reports an error.
        """
        begun = False
        kept: list[bytes] = []
        size = self.held_bytes
        seen = at = 0  # events, and the bytes of them
        for event in form.framing.each(block):
            said = form.meaning(event)
            if said is Meaning.ERROR:
                told = form.told_error(event)
                raise UpstreamError(
                    f"reported an error{told.label}",
                    code="upstream_error_event",
                    body=told.body,
                    status=told.status,
                )
            learn(form.framing.data(event))
            if begun := said in OUTPUT:
                break
            seen, at = seen + 1, at + len(event)
            is_full = self.held_events + len(kept) >= HOLD_EVENTS or size >= HOLD_BYTES
            if said in form.idle_meanings and (is_full or self._repeats(form, event, said, kept)):
                continue
            kept.append(event)
            size += len(event)
            if is_full:
                begun = True
                break
        if len(kept) < seen:  # what was left out is all that has to be copied around
            block = b"".join((*kept, block[at:]))
        if block:
            self.held.append(block)
            self.held_events += events - (seen - len(kept))
            self.held_bytes += len(block)
        return begun

    def _repeats(self, form: Format, event: bytes, said: Meaning, kept: list[bytes]) -> bool:
        """Say whether the event says nothing, as the one before it did."""
        if said is not Meaning.KEEP_ALIVE:
            return False
        if kept:
            before = kept[-1]
        elif self.held:
            before = form.framing.last(self.held[-1], 1)[0]
        else:
            return form.framing.event_name(event) in KEEP_ALIVES  # of no use before anything else
        names = {form.framing.event_name(each) for each in (before, event)}
        return len(names) == 1 and form.meaning(before) is Meaning.KEEP_ALIVE

    def note(self, form: Format, block: bytes, now_s: float) -> None:
        """Let the idle clock begin anew if the block brings the answer further."""
        if now_s - self.proven_s < LOOK_EVERY_S:
            self.last_event_s = now_s
        elif form.gets_on(block):
            self.last_event_s = self.proven_s = now_s

    def take_held(self) -> tuple[bytes, int]:
        """Let go of what was held: the block, and how many events it is."""
        block, events = b"".join(self.held), self.held_events
        self.held.clear()
        self.held_bytes = self.held_events = 0
        return block, events

    def pause_clocks(self, since_s: float, now_s: float, *, is_connecting: bool) -> None:
        """Leave out the time since `since_s`, in which the upstream was not read."""
        self.last_event_s += now_s - max(since_s, self.last_event_s)
        if is_connecting:
            self.started_s += now_s - max(since_s, self.started_s)

    def drop(self, *, again: bool = False) -> None:
        """Let go of every byte; without `again` nothing more comes."""
        self.held.clear()
        self.held_bytes = self.held_events = 0
        self.framer = type(self.framer)() if again else _IDLE
