"""`tidegate status` for people: one sentence, then what needs them; all there is when asked.

Reasons and errors come from upstreams and clients, so they are made printable first. A colour only
repeats what a word says, and there is none where NO_COLOR is set.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from tidegate.cli.show.printable import printable
from tidegate.cli.show.screen import count_text, duration_text, new_console, size_text
from tidegate.core.problems import Repair
from tidegate.core.protocol.status import (
    MemoryState,
    ReceiverState,
    Restart,
    Status,
    SweptState,
    UpstreamState,
    WorkerState,
)
from tidegate.core.protocol.stores import StoreState
from tidegate.core.sentence import DEGRADED, HEALTHY, PARKED, HealthSentence, tell_health
from tidegate.core.upstreams.summary import ModelAside

_LEVELS = ("normal", "tidy", "squeeze", "shed", "hard shed", "last")
_LAGS_S = 10.0  # what waits so long to be written is worth a line
_CALM = {"ok": "ok", "unknown": "not asked yet"}  # states of an upstream
_COLOURS = {HEALTHY: "bold green", DEGRADED: "bold yellow", PARKED: "bold red"}


def show_status(status: Status, console: Console | None = None, *, verbose: bool = False) -> None:
    """Print how it is: the sentence, and what is wrong; with `verbose` one screen of all."""
    console = console or new_console()
    for part in status_parts(status, verbose=verbose):
        console.print(part)
    if not verbose:
        console.print(Text("tidegate status --verbose shows all of it.", style="dim"))


def status_parts(status: Status, *, verbose: bool = False) -> Iterable[RenderableType]:
    """Write the sentence, where it is, and a table of what is wrong, or of all."""
    health = _health(status)
    yield Text(printable(health.sentence), style=_COLOURS.get(health.state, "bold"))
    where = ", ".join(status.listen) or "nowhere"
    age = duration_text(status.uptime_s)
    line = f"tidegate {status.version}, {status.state}, up {age}, listening at {where}"
    yield Text(printable(line))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=10)
    grid.add_column(overflow="fold")
    rows = list(_status_rows(status) if verbose else _needed_rows(status))
    for name, lines in rows:
        for n, line in enumerate(lines):
            grid.add_row("" if n else f"  {name}", _coloured(printable(line)))
    if rows:
        yield grid


def _health(status: Status) -> HealthSentence:
    reason = status.reason and "; ".join(status.reason.splitlines())
    if status.state == "parked":
        reason = "its config cannot be used."
    return tell_health(
        status.state, reason, status.memory, flat_s=status.flat_s, running=status.runs.active
    )


def _coloured(line: str) -> Text:
    """Colour the word that says that something is wrong, where a line begins with one."""
    text = Text(line)
    for words, style in (("error for", "red"), ("warning for", "yellow")):
        if line.startswith(words):
            text.stylize(style, 0, line.index(" "))
    _, colon, state = line.partition(": ")
    for word in ("failing", "unreachable", "set aside"):
        if colon and state.startswith(word):
            begin = len(line) - len(state)
            text.stylize("red", begin, begin + len(word))
    return text


def _needed_rows(status: Status) -> Iterable[tuple[str, list[str]]]:
    """Choose what the sentence does not say and a person may want to act on, or to see at once."""
    memory = status.memory
    if status.state == "parked" and status.reason:
        yield "Because", status.reason.splitlines()
    if status.repairs:
        yield "Repairs", [line for each in status.repairs for line in _repair_lines(each)]
    if memory.level or memory.shedding or memory.refused or memory.would or memory.pressure:
        yield "Memory", list(_urgent_memory(memory))
    for name, store in (("Journal", status.journal), ("History", status.history)):
        if store is not None and (troubles := list(_store_troubles(store))):
            yield name, troubles
    if wrong := [each for each in status.notify if each.error]:
        yield "Notify", [_receiver_text(receiver) for receiver in wrong]
    yield "Upstreams", list(_upstream_lines(status.upstreams)) or ["none"]


def _upstream_lines(upstreams: list[UpstreamState]) -> Iterable[str]:
    """Write a line for each upstream with trouble, and one for all that are well."""
    for upstream in upstreams:
        if upstream.state not in _CALM or upstream.aside:
            yield _upstream_text(upstream)
    for state, words in _CALM.items():
        names = [
            f"{each.name} ({each.active} active, {each.queued} queued)"
            if each.active or each.queued
            else each.name
            for each in upstreams
            if each.state == state and not each.aside
        ]
        if names:
            yield f"{words}: {', '.join(names)}"


def _urgent_memory(memory: MemoryState) -> Iterable[str]:
    yield f"level {memory.level}: {_level_text(memory)}"
    yield from _memory_decisions(memory)


def _status_rows(status: Status) -> Iterable[tuple[str, list[str]]]:
    memory = status.memory
    if status.reason:
        yield "Because", status.reason.splitlines()
    if status.repairs:
        yield "Repairs", [line for each in status.repairs for line in _repair_lines(each)]
    by = f", started by {status.manager}" if status.manager else ""
    yield "Watchdog", [f"pid {status.watchdog.pid}, {size_text(status.watchdog.rss_bytes)}{by}"]
    yield "Workers", [_worker_text(worker) for worker in status.workers] or ["none"]
    yield "Memory", list(_memory_lines(memory))
    runs = status.runs
    yield "Runs", [f"{runs.active} active, {runs.finished} kept for resuming, {runs.total} in all"]
    for name, store in (("Journal", status.journal), ("History", status.history)):
        if store is not None:  # a worker of an older version has none
            yield name, list(_store_lines(store))
    yield "Swept", _swept_lines(status.swept)
    yield "Recycles", [str(status.recycles)]
    yield "Restarts", [_restart_text(restart) for restart in status.restarts[-3:]] or ["none"]
    if status.notify:
        yield "Notify", [_receiver_text(receiver) for receiver in status.notify]
    yield "Upstreams", [_upstream_text(upstream) for upstream in status.upstreams] or ["none"]


def _repair_lines(repair: Repair) -> Iterable[str]:
    age = duration_text(max(0.0, time.time() - repair.since))
    yield f"{repair.severity} for {age}: {repair.cause}"
    yield f"  {repair.fix} ({repair.id})"


def _memory_lines(memory: MemoryState) -> Iterable[str]:
    yield (
        f"{_of(memory.used_bytes, memory.budget_bytes)}, level {memory.level}: "
        f"{_level_text(memory)}"
    )
    yield (
        f"{size_text(memory.ledger_bytes)} of it in runs, "
        f"{size_text(memory.unexplained_bytes)} unexplained"
        + (f" ({memory.cause})" if memory.cause in {"slack", "unaccounted"} else "")
    )
    yield f"budget: {memory.budget_source}" if memory.budget_source else "budget not known yet"
    if memory.growth_bytes_per_h is not None:
        until = "" if memory.limit_in_s is None else f", full in {duration_text(memory.limit_in_s)}"
        yield f"growth: {size_text(memory.growth_bytes_per_h)} an hour{until}"
    yield from _memory_decisions(memory)
    for step in memory.steps:
        if step.runs or step.freed_bytes:
            skipped = ", of no use lately" if step.skipped else ""
            yield f"step {step.step}: {size_text(step.freed_bytes)} freed{skipped}"


def _level_text(memory: MemoryState) -> str:
    return (
        _LEVELS[min(memory.level, len(_LEVELS) - 1)]
        + (" (observing only)" if memory.mode == "observe" else "")
        + (", the system is short of memory" if memory.pressure else "")
    )


def _memory_decisions(memory: MemoryState) -> Iterable[str]:
    for words in (memory.shedding and f"new runs are refused: {memory.shedding}", memory.refused):
        if words:
            yield words
    if memory.would:
        yield f"it would {memory.would}"


def _store_lines(store: StoreState) -> Iterable[str]:
    """Write "answers, in memory: 1.2 MiB, 310 runs, the oldest 3 h 2 min old"."""
    if store.keep == "off":
        yield "off"
    else:
        what = {"rows": "a row a run"}.get(store.keep, store.keep)
        oldest = ""
        if store.runs and store.oldest is not None:
            oldest = f", the oldest {duration_text(max(0.0, time.time() - store.oldest))} old"
        where = "in memory" if store.place == "memory" else "on disk"
        yield f"{what}, {where}: {size_text(store.bytes)}, {count_text(store.runs, 'run')}{oldest}"
    yield from _store_troubles(store)


def _store_troubles(store: StoreState) -> Iterable[str]:
    if store.paused:
        yield f"paused: {store.paused}"
    if store.lag_s >= _LAGS_S:
        late = f"{size_text(store.waiting_bytes)} have waited for {duration_text(store.lag_s)}"
        yield f"{late} to be written"
    if store.dropped_bytes:
        yield f"{size_text(store.dropped_bytes)} could not be kept since the worker started"
    if store.set_aside:
        yield f"a damaged file was put aside: {store.set_aside}"


def _worker_text(worker: WorkerState) -> str:
    return (
        f"pid {worker.pid}, generation {worker.generation}, {worker.state}, "
        f"{size_text(worker.rss_bytes)}, heartbeat {worker.heartbeat_age_s:.1f} s ago, "
        f"loop lag {worker.loop_lag_ms:.0f} ms"
    )


def _swept_lines(swept: SweptState) -> list[str]:
    if not swept.runs:
        return ["nothing so far"]
    lines = [f"{count_text(swept.runs, 'run')}, {size_text(swept.bytes)}"]
    return [*lines, f"last: {swept.last_reason}"] if swept.last_reason else lines


def _restart_text(restart: Restart) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(restart.at))
    return f"{when}  {restart.reason}"


def _upstream_text(upstream: UpstreamState) -> str:
    text = f"{upstream.name}: {upstream.state}, {upstream.active} active, {upstream.queued} queued"
    if upstream.aside and upstream.state != "set aside":
        text += f"; set aside: {', '.join(map(_aside_text, upstream.aside))}"
    return f"{text}; last error: {upstream.last_error}" if upstream.last_error else text


def _receiver_text(receiver: ReceiverState) -> str:
    waiting = f", {count_text(receiver.waiting, 'notice')} waiting" if receiver.waiting else ""
    return f"{receiver.name}: {receiver.error or 'ok'}{waiting}"


def _aside_text(aside: ModelAside) -> str:
    asked = " as it asked" if aside.why == "retry-after" else ""
    return f"{aside.model} for {duration_text(aside.left_s + 0.999)}{asked}"  # never "0 s"


def _of(used: int, budget: int) -> str:
    return f"{size_text(used)} of {size_text(budget)}" if budget else size_text(used)
