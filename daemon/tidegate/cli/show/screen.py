"""Prints the answers of a running tidegate for people.

Reasons and errors come from upstreams and clients, so they are made printable first: an escape
sequence in an error text must not reach the terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.cli.show.decode import SweepResult
from tidegate.cli.show.printable import printable
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
from tidegate.core.runs.summary import RunSummary
from tidegate.core.upstreams.summary import ModelAside

_LEVELS = ("normal", "tidy", "squeeze", "shed", "hard shed", "last")
_ROOMY = 130  # columns in which a run is one line
_ID_WIDTH = 36  # "run_" and 32 digits
_LAGS_S = 10.0  # what waits so long to be written is worth a line
_WIDE = 500  # columns without a terminal: a program that reads tables wants no wrapped lines


def swept_text(swept: SweepResult) -> str:
    """Say what was swept: one line, and one more for each reason."""
    if not swept.runs:
        return "Nothing to sweep."
    lines = [f"Swept {_count(swept.runs, 'run')}, {size_text(swept.bytes)}."]
    lines += [f"  {runs}: {printable(reason)}" for reason, runs in swept.reasons.items()]
    return "\n".join(lines)


def show_status(status: Status, console: Console | None = None) -> None:
    """Print the status as one screen."""
    console = console or new_console()
    headline = f"tidegate {status.version} is {status.state}, up {duration_text(status.uptime_s)}"
    console.print(Text(printable(headline), style="bold"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=10)
    grid.add_column(overflow="fold")
    for name, lines in _status_rows(status):
        for n, line in enumerate(lines):
            grid.add_row("" if n else f"  {name}", Text(printable(line)))
    console.print(grid)


def _status_rows(status: Status) -> Iterable[tuple[str, list[str]]]:
    memory = status.memory
    if status.reason:
        yield "Because", status.reason.splitlines()
    if status.repairs:
        yield "Repairs", [line for each in status.repairs for line in _repair_lines(each)]
    yield "Listening", [", ".join(status.listen) or "nowhere"]
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
        f"{_LEVELS[min(memory.level, len(_LEVELS) - 1)]}"
        + (" (observing only)" if memory.mode == "observe" else "")
        + (", the system is short of memory" if memory.pressure else "")
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
    for words in (memory.shedding and f"new runs are refused: {memory.shedding}", memory.refused):
        if words:
            yield words
    if memory.would:
        yield f"it would {memory.would}"
    for step in memory.steps:
        if step.runs or step.freed_bytes:
            skipped = ", of no use lately" if step.skipped else ""
            yield f"step {step.step}: {size_text(step.freed_bytes)} freed{skipped}"


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
        yield f"{what}, {where}: {size_text(store.bytes)}, {_count(store.runs, 'run')}{oldest}"
    if store.paused:
        yield f"paused: {store.paused}"
    if store.lag_s >= _LAGS_S:
        late = f"{size_text(store.waiting_bytes)} have waited for {duration_text(store.lag_s)}"
        yield f"{late} to be written"
    if store.dropped_bytes:
        yield f"{size_text(store.dropped_bytes)} could not be kept since the worker started"
    if store.set_aside:
        yield f"a damaged file was put aside: {store.set_aside}"


def show_runs(
    runs: list[RunSummary], console: Console | None = None, *, everywhere: bool = False
) -> None:
    """Print the runs as a table; newest first, as they come. `everywhere`: with where each is."""
    console = console or new_console()
    if not runs:
        console.print("No runs are known." if everywhere else "No runs are held.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    (_fill_wide if console.width >= _ROOMY else _fill_narrow)(table, runs, everywhere=everywhere)
    console.print(table)


def _fill_wide(table: Table, runs: list[RunSummary], *, everywhere: bool) -> None:
    for name in ("run", "state", "model", "upstream", *(["where"] if everywhere else [])):
        table.add_column(name, overflow="fold")
    for name in ("age", "events", "held", "readers"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for run in runs:
        cells = (
            run.id,
            run.state,
            run.model,
            run.upstream or "-",
            *([run.place] if everywhere else []),
            _run_age_text(run),
            str(run.next_seq),
            size_text(run.bytes),
            str(run.subscribers),
            run.reason or "",
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))


def _fill_narrow(table: Table, runs: list[RunSummary], *, everywhere: bool) -> None:
    """Fill 80 columns: the id stays whole, to be copied, and the reason stands below it."""
    table.add_column("run", overflow="fold", width=_ID_WIDTH)
    table.add_column("state", no_wrap=True)
    table.add_column("model", overflow="fold")
    if everywhere:
        table.add_column("where", no_wrap=True)
    table.add_column("age", justify="right", no_wrap=True)
    for run in runs:
        about = Text(printable(run.id))
        if run.reason:
            about.append(f"\n{printable(run.reason)}", style="dim")
        places = [run.place] if everywhere else []
        age = " ".join(_run_age_text(run).split(" ")[:2])  # the unit that matters most
        cells = (run.state, run.model, *places, age)
        table.add_row(about, *(Text(printable(cell)) for cell in cells))


def _run_age_text(run: RunSummary) -> str:
    return duration_text(max(time.time() - run.created, 0))


def size_text(size: int) -> str:
    """Write a size as "212 MiB": three digits are enough to judge by."""
    if abs(size) < 1024:
        return f"{size} bytes"
    amount, units = size / 1024, ["KiB", "MiB", "GiB"]
    while abs(amount) >= 1000 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.0f} {units[0]}" if abs(amount) >= 100 else f"{amount:.3g} {units[0]}"


def duration_text(seconds: float) -> str:
    """Write a duration as "9 d 4 h": the two units that matter."""
    minutes, whole_seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole_seconds} s" if minutes else f"{whole_seconds} s"


def _worker_text(worker: WorkerState) -> str:
    return (
        f"pid {worker.pid}, generation {worker.generation}, {worker.state}, "
        f"{size_text(worker.rss_bytes)}, heartbeat {worker.heartbeat_age_s:.1f} s ago, "
        f"loop lag {worker.loop_lag_ms:.0f} ms"
    )


def _swept_lines(swept: SweptState) -> list[str]:
    if not swept.runs:
        return ["nothing so far"]
    lines = [f"{_count(swept.runs, 'run')}, {size_text(swept.bytes)}"]
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
    waiting = f", {_count(receiver.waiting, 'notice')} waiting" if receiver.waiting else ""
    return f"{receiver.name}: {receiver.error or 'ok'}{waiting}"


def _aside_text(aside: ModelAside) -> str:
    asked = " as it asked" if aside.why == "retry-after" else ""
    return f"{aside.model} for {duration_text(aside.left_s + 0.999)}{asked}"  # never "0 s"


def _of(used: int, budget: int) -> str:
    return f"{size_text(used)} of {size_text(budget)}" if budget else size_text(used)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def new_console() -> Console:
    """Make a console as wide as the terminal, or 500 columns where the output is no terminal."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(width=_WIDE)
