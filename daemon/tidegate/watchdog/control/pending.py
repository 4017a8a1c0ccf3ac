"""Requests of the command line to the workers, until all have answered or time is up."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from tidegate.core.protocol.control import ControlReply
from tidegate.core.protocol.worker import Forgotten, ModelList, RunList, Swept, UsageList
from tidegate.watchdog.control.server import ControlClient

# What takes longer than `reply_s`, and how many times: each byte that goes is overwritten first,
# 20 s at most for each of two files, perhaps on an SD card.
SLOW_VERBS = {"forget": 10}
Answer = Swept | RunList | ModelList | UsageList | Forgotten


@dataclass(slots=True)
class PendingRequest:
    """One request to some of the ready workers."""

    verb: str
    client: ControlClient
    limit_s: float
    deadline_s: float
    awaited: set[int]  # generations
    answers: list[Answer] = field(default_factory=list)


class PendingRequests:
    """All open requests, by number. Each ends in one reply."""

    def __init__(self, reply_s: float) -> None:
        self._reply_s = reply_s
        self._open: dict[int, PendingRequest] = {}
        self._last_number = 0

    def __repr__(self) -> str:
        return f"<PendingRequests open={len(self._open)}>"

    @property
    def is_empty(self) -> bool:
        """Tell whether no client waits."""
        return not self._open

    def next_number(self) -> int:
        """Return the number of a new request; 0 stands for what expects no reply."""
        self._last_number += 1
        return self._last_number

    def add(
        self, number: int, verb: str, client: ControlClient, awaited: set[int], now_s: float
    ) -> None:
        """Remember that the workers `awaited` were asked."""
        limit_s = self._reply_s * SLOW_VERBS.get(verb, 1)
        self._open[number] = PendingRequest(verb, client, limit_s, now_s + limit_s, awaited)

    def on_answer(
        self, generation: int, answer: Answer
    ) -> tuple[ControlClient, ControlReply] | None:
        """Take an answer in; return the reply, if it was the last one."""
        pending = self._open.get(answer.request)
        if pending is None or generation not in pending.awaited:
            return None
        pending.answers.append(answer)
        pending.awaited.discard(generation)
        if pending.awaited:
            return None
        reply = _reply(pending.answers)
        del self._open[answer.request]  # last: what fails before is told at its limit
        return pending.client, reply

    def forget(self, generation: int) -> list[tuple[ControlClient, ControlReply]]:
        """Reply to what only a worker that is gone had left to answer."""
        replies = []
        for number, pending in list(self._open.items()):
            if generation not in pending.awaited:
                continue
            pending.awaited.discard(generation)
            if pending.awaited:
                continue
            if pending.answers:
                reply = _reply(pending.answers)
            else:
                error = f"worker {generation} ended before it answered {pending.verb}"
                reply = ControlReply(ok=False, error=error)
            replies.append((pending.client, reply))
            del self._open[number]
        return replies

    def expire(self, now_s: float) -> list[tuple[ControlClient, ControlReply]]:
        """Reply to what was not answered in time, naming the workers that were silent."""
        replies = []
        for number, pending in list(self._open.items()):
            if now_s <= pending.deadline_s:
                continue
            del self._open[number]
            silent = " and ".join(f"worker {n}" for n in sorted(pending.awaited)) or "tidegate"
            error = f"{silent} did not answer {pending.verb} within {pending.limit_s:g} s"
            replies.append((pending.client, ControlReply(ok=False, error=error)))
        return replies


def _reply(answers: list[Answer]) -> ControlReply:
    """Make the reply of all answers: what one could not do is the error of all."""
    errors = [a.error for a in answers if isinstance(a, UsageList | Forgotten) and a.error]
    if errors:
        return ControlReply(ok=False, error="; ".join(dict.fromkeys(errors)))
    return ControlReply(ok=True, result=merge(answers))


def merge(answers: list[Answer]) -> msgspec.Raw:
    """Merge the answers of both generations into one result."""
    for answer in answers:
        if isinstance(answer, ModelList):  # one worker alone is asked for it
            upstreams, aliases = answer.upstreams, answer.aliases
            return _raw({"object": "list", "data": upstreams, "aliases": aliases})
        if isinstance(answer, UsageList):  # and for this
            return _raw({"object": "list", "data": answer.lines})
    forgotten = [a.runs for a in answers if isinstance(a, Forgotten)]
    if forgotten:  # by each from its memory, and from files that both have: not to be added up
        return _raw({"runs": max(forgotten)})
    lists = [a for a in answers if isinstance(a, RunList)]
    if lists:
        # A run that was handed over in this moment is in both lists, and so is one that the files
        # know which both workers read; it is one run, and best known where it is in memory.
        listed = [run for answer in lists for run in answer.runs]
        runs = {run.id: run for run in sorted(listed, key=lambda run: run.place == "memory")}
        newest = sorted(runs.values(), key=lambda run: run.created, reverse=True)
        total = sum(answer.total for answer in lists) - (len(listed) - len(runs))
        return _raw({"object": "list", "data": newest, "total": total})
    swept = [a for a in answers if isinstance(a, Swept)]
    reasons: dict[str, int] = {}
    for answer in swept:
        for reason, count in answer.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    counts = {"runs": sum(a.runs for a in swept), "bytes": sum(a.bytes for a in swept)}
    return _raw(counts | {"reasons": reasons})


def _raw(result: dict[str, object]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(result))
