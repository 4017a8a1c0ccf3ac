"""Measures what one chunk costs in the core: framing and recording, without a socket in sight.

    python bench/chunk.py

Prints the best of several passes, in microseconds: a busy computer only ever makes a pass slower.
"""
# ruff: noqa: A005  (no module imports this file, nor the module of that name that Python 3.13 dropped)

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tidegate.core.formats.sse import SseFramer
from tidegate.core.runs.ledger import Ledger
from tidegate.core.runs.run import Run, RunRequest
from tidegate.core.runs.state import Trigger
from tidegate.core.settings import Limits

PASSES = 7
CHUNKS = 20_000
ANSWER_CHUNKS = 20

_EVENT = (
    b'data: {"id":"chatcmpl-0000000000000001","object":"chat.completion.chunk",'
    b'"created":1790000000,"model":"tide","system_fingerprint":"fp_00000000000000000001",'
    b'"choices":[{"index":0,"delta":%b,"finish_reason":%b}]}\n\n'
)
ROLE = _EVENT % (b'{"role":"assistant","content":""}', b"null")
TEXT = _EVENT % (b'{"content":"00000001 and"}', b"null")
STOP = _EVENT % (b"{}", b'"stop"')
DONE = b"data: [DONE]\n\n"
ANSWER = [ROLE, *[TEXT] * (ANSWER_CHUNKS - 2), STOP, DONE]


def main() -> None:
    """Print a line for each way in which chunks can arrive."""
    events = [TEXT] * CHUNKS
    text = b"".join(events)
    odd = len(TEXT) * 2 // 3
    blocks = [b"".join([TEXT] * 20)] * (CHUNKS // 20)
    shifted = [text[at : at + len(TEXT)] for at in range(odd, len(text), len(TEXT))]
    rows: list[tuple[str, Callable[[], object], int]] = [
        ("framing, one event a read", lambda: frame(events), CHUNKS),
        ("framing, 20 events a read", lambda: frame(blocks), CHUNKS),
        ("framing, every event cut in two", lambda: frame([text[:odd], *shifted]), CHUNKS),
        ("framing and run, one event a read", lambda: record(events), CHUNKS),
        ("framing and run, 20 events a read", lambda: record(blocks), CHUNKS),
    ]
    for what, work, count in rows:
        print(f"{what:<36}{best_s(work) / count * 1e6:8.3f} us a chunk")
    answers = CHUNKS // ANSWER_CHUNKS
    whole = best_s(lambda: record_all([ANSWER] * answers)) / answers
    print(f"{'a run of 20 chunks, birth to release':<36}{whole * 1e6:8.3f} us a run")


def frame(reads: Sequence[bytes]) -> None:
    """Run only the framing."""
    framer = SseFramer()
    for data in reads:
        framer.feed(data)


def record(reads: Sequence[bytes]) -> None:
    """Record a whole run, with its account in a ledger that has a limit."""
    ledger = Ledger(limit_bytes=1 << 30)
    account = ledger.open()
    run = Run(
        run_id="run",
        owner="bench",
        request=RunRequest("tide"),
        body=b"{}",
        limits=Limits(),
        account=account,
        now_s=0.0,
        created=0.0,
    )
    run.begin_attempt("stub", "tide", 0.0)
    for data in reads:
        run.feed(data, 0.0)
    run.feed_end(0.0)
    run.end(Trigger.COMPLETE, None, None, 0.0, 0.0)
    run.release()
    account.close()


def record_all(answers: Sequence[Sequence[bytes]]) -> None:
    """Record many short runs, one after the other."""
    for answer in answers:
        record(answer)


def best_s(work: Callable[[], object]) -> float:
    """Return the shortest of some passes, in seconds."""
    passes = []
    for _ in range(PASSES):
        started_s = time.perf_counter()
        work()
        passes.append(time.perf_counter() - started_s)
    return min(passes)


if __name__ == "__main__":
    main()
