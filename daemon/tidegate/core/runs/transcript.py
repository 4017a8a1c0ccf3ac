"""The events of an answer as they are kept, and what they say of how it ends."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from tidegate.core.errors import LedgerFull
from tidegate.core.formats.base import TAIL_EVENTS, Format, Meaning, Rewrite, may_say_any, stronger
from tidegate.core.formats.counting import NO_COUNTS
from tidegate.core.formats.framing import RAW
from tidegate.core.records.usage import NO_USAGE, TokenUsage
from tidegate.core.runs.deflated import Packed
from tidegate.core.runs.ledger import Account, Entry
from tidegate.core.runs.window import Part, Window
from tidegate.core.secret import Secret

TROUBLE = (b"error", b"failed")  # one of these is in every event that reports an error
_NO_CHOICES: frozenset[int] = frozenset()


class Transcript:
    """Records events in the window, and charges them.

    What the window can't hold any more is asked, before it goes, how it bears on the end.
    """

    __slots__ = (
        "_account",
        "_finished",
        "_format",
        "_judged_seq",
        "_opening",
        "_said",
        "_usage",
        "_verdict",
        "rewrite",
        "window",
    )

    def __init__(self, form: Format, window: Window, account: Account) -> None:
        self.window = window
        self.rewrite: Rewrite | None = None  # what stands in the events otherwise than it came
        self._format = form
        self._account = account
        self._said = Meaning.OPENING  # what events said that the window could not hold
        self._finished = _NO_CHOICES  # of several, those that said why they end
        self._opening = NO_COUNTS  # what its first events told of its tokens
        self._usage = NO_USAGE  # what was told of them that the window does not hold
        self._judged_seq = -1  # up to where it was last asked how the answer ended
        self._verdict = Meaning.OPENING  # and what that was

    def append(self, block: bytes, events: int, secret: Secret) -> bytes:
        """Add whole events, with `secret` hidden where they report an error; returns what it added.

        Raises LedgerFull when there is no room.
        """
        form, window = self._format, self.window
        if secret and may_say_any(TROUBLE, block):
            block = self._without_key(block, secret)
        if self.rewrite is not None:
            block, events = self.rewrite(block, events, window.next_seq)
            if not events:
                return b""
        if form.choices > 1 and len(self._finished) < form.choices:
            self._finished |= form.finished_choices(block)
        held_bytes = window.held_bytes
        window.append(block, events)
        if window.held_bytes != held_bytes:
            self._account.set(Entry.WINDOW, window.held_bytes)
        if window.first_seq and window.next_seq - window.first_seq < TAIL_EVENTS:
            self._said = stronger(self._said, form.verdict(form.framing.split(block)))
            self._note_usage(form.usage(form.framing.last(block, TAIL_EVENTS), self._opening))
        return block

    def begin(self, block: bytes) -> None:
        """Take note of what the first events say that is of use at the end."""
        self._opening = self._format.opening_counts(block)

    def _without_key(self, block: bytes, secret: Secret) -> bytes:
        """Hide the key that the upstream was sent, where the block reports an error."""
        form = self._format
        return b"".join(
            secret.hide_bytes(event) if form.meaning(event) is Meaning.ERROR else event
            for event in form.framing.split(block)
        )

    def append_ours(self, events: list[bytes]) -> bytes:
        """Add events of our own, behind the upstream's; returns them as one block."""
        block = b"".join(events)
        self.window.append(block, len(events))
        with suppress(LedgerFull):  # charged all the same; how it ended must reach the reader
            self._account.set(Entry.WINDOW, self.window.held_bytes)
        return block

    def count_plain(self, body: bytes) -> None:
        """Take note of what a whole answer took in tokens."""
        self._usage = self._format.usage_of(body, streamed=False)

    def keep_plain(self, body: bytes) -> None:
        """Keep a whole answer for its owner to ask for again, as long as there is room."""
        self.window.append(body, 1)
        try:
            self._account.set(Entry.WINDOW, self.window.held_bytes)
        except LedgerFull:
            self.shrink(0)

    def shrink(self, keep_bytes: int) -> None:
        """Drop the oldest events, for memory; what they say about the end is kept."""
        window = self.window
        if window.held_bytes > keep_bytes:
            self._said = self.verdict()
            self._usage = self.usage()
            window.trim(keep_bytes)
            self._account.set(Entry.WINDOW, window.held_bytes)

    def loose(self, most_bytes: int) -> list[bytes]:
        """Find what may be packed of an answer that is over; see `Window.loose`."""
        found = self.window.loose(most_bytes)
        self._account.set(Entry.WINDOW, self.window.held_bytes)
        return found

    def pack(self, found: Iterable[Packed]) -> int:
        """Keep what `loose` found as it is deflated; returns the bytes that are free now."""
        before = self.window.held_bytes
        self.window.pack(found)
        self._account.set(Entry.WINDOW, self.window.held_bytes)
        return before - self.window.held_bytes

    def restore(self, parts: Iterable[Part]) -> None:
        """Hold what the window of an answer that is over gave as `parts`, and charge it."""
        self.window.restore(parts)
        with suppress(LedgerFull):  # charged all the same, as it was before
            self._account.set(Entry.WINDOW, self.window.held_bytes)

    def verdict(self) -> Meaning:
        """Say how the answer ended, as far as it has come: see `Format.verdict`."""
        if self._judged_seq == self.window.next_seq:
            return self._verdict
        form = self._format
        said = stronger(self._said, form.verdict(self.window.last_events(TAIL_EVENTS)))
        if said is Meaning.OPENING and len(self._finished) >= form.choices > 1:
            said = Meaning.FINISH
        self._judged_seq, self._verdict = self.window.next_seq, said
        return said

    def lacks_only_end(self) -> bool:
        """Say whether it has told why it ends, so that only the terminal marker is to come."""
        form = self._format
        if form.needs_end:
            return False
        said_nothing_yet = self._said is Meaning.OPENING and form.choices == 1
        if said_nothing_yet and self._judged_seq != self.window.next_seq:
            goes_on = form.meaning(self.last_event) is Meaning.OUTPUT  # nearly always
            if goes_on:
                return False
        return self.verdict() is Meaning.FINISH

    def has_told_error(self) -> bool:
        """Say whether the upstream's own error stands in the stream, whole."""
        if self.verdict() is not Meaning.ERROR:
            return False
        return not self._format.is_error_open(self.last_event)

    def usage(self) -> TokenUsage:
        """Find what the answer took in tokens, where its upstream says so, as far as it has come.

        It costs some microseconds, and is asked when the answer is over.
        """
        if self.rewrite is not None and self.rewrite.usage is not NO_USAGE:
            return self.rewrite.usage
        if self.window.framing is not RAW:
            self._note_usage(
                self._format.usage(self.window.last_events(TAIL_EVENTS), self._opening)
            )
        return self._usage

    def _note_usage(self, found: TokenUsage) -> None:
        """Keep the newest; what says nothing of the output may be the opening alone."""
        if found.output is not None or self._usage is NO_USAGE:
            self._usage = found

    @property
    def last_event(self) -> bytes:
        """The newest event that is kept."""
        return b"".join(self.window.last_events(1))
