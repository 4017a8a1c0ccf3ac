"""The journal's values: what is written of a run, what is read back, and how rows hold it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tidegate.core import formats
from tidegate.core.records.history import RunRow
from tidegate.core.records.journal import JournaledRun
from tidegate.core.runs.deflated import deflater
from tidegate.gateway.stores.database import Row

DIED = "worker_died"
_UPSTREAMS = JournaledRun._fields.index("upstreams")
_FLAGS = [JournaledRun._fields.index(name) for name in ("streamed", "background", "stored")]
_WBITS = -15  # of zlib, raw; whatever it was deflated with
_BETWEEN_NAMES = "\n"  # of upstreams, which have none in theirs


class JournalEntry(NamedTuple):
    """What is to be written of one run."""

    run: JournaledRun  # as it is now; first_seq/next_seq: all that is kept after this writing
    events: bytes  # the new whole events; b"" where there are none
    first_seq: int  # of `events`; where it does not follow what is kept, all before is dropped
    event_count: int


class FoundRun(NamedTuple):
    """A run that was read back."""

    run: JournaledRun
    events: bytes  # all that is kept: [run.first_seq, run.next_seq)
    is_alive: bool  # not over, and its writer lives: another generation runs it


class Piece(NamedTuple):
    """A row of `events`, but for the run."""

    first_seq: int
    next_seq: int
    size: int  # of the events
    data: bytes  # the events, deflated


def merge(entries: Sequence[JournalEntry], *, with_events: bool) -> Iterator[JournalEntry]:
    """Join what is to be written of the same run."""
    merged: dict[str, JournalEntry] = {}
    for entry in entries:
        if not with_events:
            entry = JournalEntry(entry.run, b"", 0, 0)  # noqa: PLW2901
        former = merged.get(entry.run.id)
        if former is not None and former.events:
            begins = entry.first_seq if entry.events else entry.run.next_seq
            if former.first_seq + former.event_count == begins:
                entry = JournalEntry(  # noqa: PLW2901
                    entry.run,
                    former.events + entry.events,
                    former.first_seq,
                    former.event_count + entry.event_count,
                )
        merged[entry.run.id] = entry
    return iter(merged.values())


def deflate(events: bytes) -> bytes:
    """Deflate whole events."""
    work = deflater(len(events))
    return work.compress(events) + work.flush()


def row_of(run: JournaledRun) -> tuple[object, ...]:
    """Give a run as a row has it."""
    values: list[object] = list(run)
    values[_UPSTREAMS] = _BETWEEN_NAMES.join(run.upstreams)
    return tuple(values)


def is_alike(run: JournaledRun, former: JournaledRun) -> bool:
    """Tell whether nothing has changed but how far it is."""
    return run == former._replace(first_seq=run.first_seq, next_seq=run.next_seq)


def run_of(row: Row) -> JournaledRun:
    """Give the run of a row that begins with its columns."""
    values = list(row[: len(JournaledRun._fields)])
    names = values[_UPSTREAMS]
    values[_UPSTREAMS] = tuple(names.split(_BETWEEN_NAMES)) if names else ()
    for flag in _FLAGS:
        values[flag] = bool(values[flag])
    return JournaledRun(*values)


def interrupted_row(run: JournaledRun, answer_bytes: int) -> RunRow:
    """Give what the history is told of a run that was interrupted, and was ended here."""
    known = formats.BY_PATH.get(run.path)
    return RunRow(
        id=run.id,
        owner=run.owner,
        token=run.token,
        asked=run.model,
        upstream=run.upstreams[-1] if run.upstreams else "",
        model=run.upstream_model,
        format=known.name if known is not None else run.path,
        streamed=run.streamed,
        outcome=run.state,
        code=run.code or "",
        attempts=len(run.upstreams),
        began=run.created,
        ended=run.created if run.ended is None else run.ended,
        queued_s=0.0,
        first_output_s=None,
        request_bytes=0,
        answer_bytes=answer_bytes,
    )


def join(pieces: Sequence[tuple[int, bytes]], more: bytes) -> tuple[int, bytes]:
    """Join pieces (size, deflated), and events that follow them; the size and the deflated whole.

    Raises ValueError as `inflate` does.
    """
    total = len(more) + sum(size for size, _ in pieces)
    work = deflater(total)
    data = bytearray()
    for size, deflated in pieces:
        data += work.compress(inflate(size, deflated))
    data += work.compress(more)
    data += work.flush()
    return total, bytes(data)


def inflate(size: int, data: bytes) -> bytes:
    """Inflate a piece. Raises ValueError when it is not as it was written."""
    try:
        events = zlib.decompressobj(_WBITS).decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(events) != size:
        raise ValueError(f"{len(events)} bytes where {size} were written")
    return events
