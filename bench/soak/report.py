"""Prints and keeps a soak: a line now and then, tables at the end, a recording."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soak.judge import MIB, Rest, Sample, Verdict
from soak.load import BROKEN, Load

LINE = "{:>8} {:>4} {:>9} {:>9} {:>9} {:>5} {:>7} {:>6} {:>7} {:>5} {:>8} {:>9}"
HEAD = LINE.format(
    "time", "gen", "rss MiB", "ledger", "watchdog", "level", "players", "active", "kept",
    "fds", "recycles", "restarts",
)  # fmt: skip
TROUBLE = re.compile(rb"Traceback|never retrieved|never awaited|Segmentation|Exception ignored")
_LOUD = re.compile(r"^\S+ (warning|error|critical) ")
_VARIABLE = re.compile(r"run_[0-9a-f]+|/[\w./-]*soak-[\w./-]*|\b\d[\d.]*\b")


def line(sample: Sample, players: int) -> str:
    """Write the line of one moment."""
    return LINE.format(
        clock(sample.at_s),
        _or_dash(sample.generation),
        mib(sample.worker_rss_bytes),
        mib(sample.ledger_bytes),
        mib(sample.watchdog_rss_bytes),
        sample.level,
        players,
        sample.active,
        sample.finished,
        _or_dash(sample.worker_descriptors),
        sample.recycles,
        sample.restarts,
    )


def rests_table(rests: list[Rest]) -> str:
    """Write the table of what was held in each moment without load."""
    form = "{:>8} {:<18} {:>4} {:>9} {:>7} {:>9} {:>4} {:>7} {:>6} {:>9} {:>4} {:>6}"
    head = form.format(
        "time", "", "gen", "rss MiB", "ledger", "runs held", "fds", "threads", "tasks",
        "watchdog", "fds", "after",
    )  # fmt: skip
    rows = [
        form.format(
            clock(rest.at_s),
            rest.what,
            rest.generation,
            mib(rest.worker_rss_bytes),
            rest.ledger_bytes,
            rest.active + rest.finished,
            rest.descriptors,
            rest.threads,
            _or_dash(rest.tasks),
            mib(rest.watchdog_rss_bytes),
            rest.watchdog_descriptors,
            f"{rest.quiet_after_s:.0f} s",
        )
        for rest in rests
    ]
    return "\n".join([head, *rows])


def verdicts_table(verdicts: list[Verdict]) -> str:
    """Write the table of what was judged, by quarters or rests, and the limit of the last one."""
    rows = []
    for verdict in verdicts:
        values = "  ".join(figure(value, verdict.unit) for value in verdict.values)
        limit = figure(verdict.limit, verdict.unit)
        end = "ok" if verdict.is_good else f"FAILED {verdict.why_not or ''}".strip()
        rows.append(f"{verdict.what:<64} {values}  (at most {limit} {verdict.unit}) {end}")
    return "\n".join(rows)


def outcomes_table(load: Load) -> str:
    """Write the table of how every client's story ended."""
    ends = load.by_end
    lines = [f"{count:>8} {end}" for end, count in ends.most_common()]
    lines += [f"{ends[end]:>8} {end}" for end in BROKEN if end not in ends]
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(load.statuses.items()))
    return "\n".join([*lines, f"by status: {statuses}"])


def players_table(load: Load) -> str:
    """Write the table of how each kind of client fared."""
    names = sorted({name for name, _ in load.outcomes})
    rows = []
    for name in names:
        ends = {end: n for (of, end), n in load.outcomes.items() if of == name}
        said = ", ".join(f"{n} {end}" for end, n in sorted(ends.items(), key=lambda e: -e[1]))
        rows.append(f"{name:<30} {said}")
    return "\n".join(rows)


def read_log(log: Path) -> tuple[list[str], Counter[str]]:
    """Find lines that must not be there, and count each kind of warning and error."""
    troubles: list[str] = []
    loud: Counter[str] = Counter()
    with log.open("rb") as lines:
        for raw in lines:
            if TROUBLE.search(raw):
                troubles.append(raw.decode(errors="replace").strip()[:300])
            text = raw.decode(errors="replace")
            if _LOUD.search(text):
                loud[_VARIABLE.sub("#", text.split(None, 1)[-1].strip())[:110]] += 1
    return troubles, loud


def recording(samples: list[Sample], about: str) -> dict[str, Any]:
    """Return the pairs of the worker that lived longest, a second apart.

    Where a sample is missing, for we had stopped the worker, the former one stands: its memory
    did not move either.
    """
    lives: dict[int, list[Sample]] = {}
    for sample in samples:
        if sample.generation is not None and None not in (
            sample.worker_rss_bytes,
            sample.ledger_bytes,
        ):
            lives.setdefault(sample.generation, []).append(sample)
    life = max(lives.values(), key=len)
    pairs: list[Sample] = []
    for sample in life:
        seconds = round(sample.at_s - life[0].at_s)
        pairs += pairs[-1:] * (seconds - len(pairs))
        pairs.append(sample)
    return {
        "about": about,
        "period_s": 1.0,
        "rss_bytes": [sample.worker_rss_bytes for sample in pairs],
        "ledger_bytes": [sample.ledger_bytes for sample in pairs],
    }


def keep(path: Path, samples: list[Sample], rests: list[Rest], happened: list[Any]) -> None:
    """Keep everything that was measured, for a look at it afterwards."""
    seen = {
        "samples": [asdict(sample) for sample in samples],
        "rests": [asdict(rest) for rest in rests],
        "happened": happened,
    }
    path.write_text(json.dumps(seen) + "\n")


def clock(at_s: float) -> str:
    """ "1:02:03" """
    minutes, seconds = divmod(int(at_s), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def mib(size: int | None) -> str:
    """ "12.3", or a dash."""
    return "-" if size is None else f"{size / MIB:.1f}"


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def figure(value: float, unit: str) -> str:
    return f"{value / MIB:.1f}" if unit == "MiB" else f"{value:g}"
