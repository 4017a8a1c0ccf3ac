"""A line of the log for each run that is over: who asked for what, who answered, what it took.

Never a word of a request or an answer. What completes faster than a person could read is counted,
so that a flood of requests costs no flood of lines; what went wrong is always handed on, and the
log itself counts what repeats.
"""

from __future__ import annotations

import asyncio
import json
import logging

from tidegate.core.records.history import RunRow
from tidegate.core.records.usage import TokenUsage
from tidegate.core.runs.state import RunState
from tidegate.core.text import count
from tidegate.logs.pace import Pace

log = logging.getLogger("tidegate.runs")

MOST_A_SECOND = 10  # completed runs that have a line each
_COMPLETED = RunState.COMPLETED.value


class RunLog:
    """Tells the log of runs that are over."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.tells_all = True  # those that completed, too
        self._loop = loop
        self._since_s = float("-inf")
        self._told = 0  # since then
        self._left_out = 0
        self._pace = Pace()  # of the lines that say how many
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<RunLog told={self._told} left_out={self._left_out}>"

    def note(self, row: RunRow, reason: str | None) -> None:
        """Take note of a run that is over; `reason` says why it did not complete."""
        if row.outcome != _COMPLETED:
            why = failure(row, reason)
            log.info("%s", f"{why}; {about(row)}" if self.tells_all else why)
        elif self.tells_all:
            self._completed(row)

    def _completed(self, row: RunRow) -> None:
        now_s = self._loop.time()
        if now_s - self._since_s >= 1.0:
            self._since_s, self._told = now_s, 0
        if self._told < MOST_A_SECOND:
            self._told += 1
            log.info("%s", f"run {row.id} {_COMPLETED}: {about(row)}")
            return
        self._left_out += 1
        self._pace.grew(now_s)
        if self._timer is None:
            self._timer = self._loop.call_at(max(now_s + 1.0, self._pace.due_s), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        if now_s < self._pace.due_s:  # more came meanwhile
            self._timer = self._loop.call_at(self._pace.due_s, self._on_timer)
        else:
            self._tell_left_out()
            self._pace.logged(now_s)

    def _tell_left_out(self) -> None:
        if self._left_out:
            log.info("%s", f"{self._left_out} more runs completed, too fast to tell of each")
            self._left_out = 0

    def close(self) -> None:
        """Tell what is not told yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell_left_out()


def failure(row: RunRow, reason: str | None) -> str:
    """Say how a run ended that did not complete, and why."""
    why = (reason or "").removeprefix(f"{row.outcome}: ")  # which is said already
    code = f" ({row.code})" if row.code and row.code != row.outcome else ""
    return f"run {row.id} {row.outcome}{code}: {why or 'for no known reason'}"


def about(row: RunRow) -> str:
    """Say who asked for what, who answered, and what it took."""
    whose = _quoted(row.token) if row.token else "a client without a token"
    target = _quoted(f"{row.upstream}/{row.model}") if row.upstream else "no upstream"
    parts = [
        f"{whose} asked for {_quoted(row.asked)} -> {target}",
        f"{row.format}, {'streamed' if row.streamed else 'plain'}",
        count(row.attempts, "attempt"),
    ]
    if row.first_output_s is not None:
        parts.append(f"first output after {row.first_output_s:.2f} s")
    parts += [f"{row.duration_s:.2f} s in all", tokens(row.usage), f"{row.answer_bytes} bytes"]
    return ", ".join(parts)


def tokens(usage: TokenUsage) -> str:
    """Say how many tokens there were, as far as the upstream told."""
    if usage.input is None and usage.output is None:
        return "tokens unknown"
    sent = "an unknown number of" if usage.input is None else str(usage.input)
    came = "an unknown number" if usage.output is None else str(usage.output)
    cached = f" ({usage.cached} cached)" if usage.cached else ""
    thought = f" ({usage.reasoning} thought)" if usage.reasoning else ""
    return f"{sent} tokens in{cached}, {came} out{thought}"


def _quoted(name: str) -> str:
    """Write a name: it ends where its quotes do, whatever is in it."""
    return json.dumps(name, ensure_ascii=False)
