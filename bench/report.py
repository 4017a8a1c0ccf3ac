"""The figures of all rounds as tables: medians of the quiet rounds, and ratios to nginx."""

from __future__ import annotations

from statistics import median
from typing import Any

from peers import FAST
from rounds import Round
from targets import Summary, ready_s

MIB = 1024 * 1024

# Column titles, the figure, what it is multiplied by, and its format.
_Column = tuple[str, str, float, str]
SPEED: list[_Column] = [
    ("req/s", "answers_per_s", 1, ",.0f"),
    ("chunks/s", "events_per_s", 1, ",.0f"),
    ("CPU us/req", "cpu_us_per_answer", 1, ",.1f"),
    ("CPU s/M chunks", "cpu_s_per_million_events", 1, ",.1f"),
    ("gateway busy", "gateway_busy", 1, ".0%"),
    ("harness busy", "harness_busy", 1, ".0%"),
    ("RSS MiB", "rss_bytes", 1 / MIB, ".1f"),
    ("ready s", "ready_s", 1, ".2f"),
    ("foreign", "foreign", 1, ".0%"),
    ("errors", "errors", 1, ".0f"),
]
PACED: list[_Column] = [
    ("chunks/s", "events_per_s", 1, ",.0f"),
    ("CPU s/M chunks", "cpu_s_per_million_events", 1, ",.1f"),
    ("delay p50 us", "delay_p50_us", 1, ",.0f"),
    ("delay p99 us", "delay_p99_us", 1, ",.0f"),
    ("added p50 us", "added_p50_us", 1, ",.0f"),
    ("added p99 us", "added_p99_us", 1, ",.0f"),
    ("streams", "streams", 1, ",.0f"),
    ("KiB/stream", "bytes_per_stream", 1 / 1024, ".1f"),
    ("gateway busy", "gateway_busy", 1, ".0%"),
    ("RSS MiB", "rss_bytes", 1 / MIB, ".1f"),
    ("foreign", "foreign", 1, ".0%"),
    ("errors", "errors", 1, ".0f"),
]
MEMORY: list[_Column] = [
    ("parent RSS", "parent_rss_bytes", 1 / MIB, ".1f"),
    ("own", "parent_private_bytes", 1 / MIB, ".1f"),
    ("worker RSS", "worker_rss_bytes", 1 / MIB, ".1f"),
    ("own", "worker_private_bytes", 1 / MIB, ".1f"),
    ("KiB/idle stream", "bytes_per_stream_since_idle", 1 / 1024, ".1f"),
    ("since warm", "bytes_per_stream_since_warm", 1 / 1024, ".1f"),
    ("peak", "peak_bytes", 1 / MIB, ".1f"),
    ("after burst", "after_burst_bytes", 1 / MIB, ".1f"),
    ("settled", "settled_bytes", 1 / MIB, ".1f"),
    ("of idle", "settled_over_idle", 1, ".0%"),
    ("after s", "settled_after_s", 1, ".1f"),
    ("burst s", "burst_s", 1, ".1f"),
    ("CPU s", "burst_cpu_s", 1, ".2f"),
    ("foreign", "foreign", 1, ".0%"),
    ("ready s", "ready_s", 1, ".2f"),
    ("errors", "errors", 1, ".0f"),
]
CONNECTIONS: list[_Column] = [
    ("req/s", "answers_per_s", 1, ",.0f"),
    ("CPU us/req", "cpu_us_per_answer", 1, ",.1f"),
    ("on a kept one", "kept_cpu_us_per_answer", 1, ",.1f"),
    ("us/connection", "us_per_connection", 1, ",.1f"),
    ("gateway busy", "gateway_busy", 1, ".0%"),
    ("harness busy", "harness_busy", 1, ".0%"),
    ("foreign", "foreign", 1, ".0%"),
    ("errors", "errors", 1, ".0f"),
]
CROWD: list[_Column] = [
    ("answered p50 ms", "answer_p50_us", 1 / 1000, ",.1f"),
    ("p99 ms", "answer_p99_us", 1 / 1000, ",.1f"),
    ("max ms", "answer_max_us", 1 / 1000, ",.1f"),
    ("foreign", "foreign", 1, ".0%"),
    ("errors", "errors", 1, ".0f"),
]
# A page has room for less. The workload comes first, then the same as above.
PAGE = [
    ("W1", "W1 req/s", "answers_per_s", 1, ",.0f"),
    ("W1b", "W1b req/s", "answers_per_s", 1, ",.0f"),
    ("W1b", "W1b CPU us/req", "cpu_us_per_answer", 1, ",.0f"),
    ("W4", "W4 req/s", "answers_per_s", 1, ",.0f"),
    ("W4", "W4 CPU us/req", "cpu_us_per_answer", 1, ",.0f"),
    ("W3", "CPU s/M paced chunks", "cpu_s_per_million_events", 1, ",.0f"),
    ("C", "us/connection", "us_per_connection", 1, ",.0f"),
    ("K", "1,000 at once, p99 ms", "answer_p99_us", 1 / 1000, ",.0f"),
    ("M", "idle MiB", "worker_rss_bytes", 1 / MIB, ",.0f"),
    ("M", "KiB/idle stream", "bytes_per_stream_since_warm", 1 / 1024, ",.1f"),
]
RATIOS = {
    "answers_per_s": "req/s",
    "cpu_us_per_answer": "CPU a request",
    "cpu_s_per_million_events": "CPU a chunk",
    "burst_cpu_s": "CPU of the burst",
}


def summarise(rounds: list[Round]) -> Summary:
    """Take medians by workload and peer; errors are summed, for one is one too many."""
    summary: Summary = {}
    for workload, peer in dict.fromkeys((r["workload"], r["peer"]) for r in rounds):
        of_both = [r for r in rounds if r["workload"] == workload and r["peer"] == peer]
        quiet = [r for r in of_both if not r["noisy"]]
        figures = _medians(quiet or of_both)
        figures["errors"] = sum(r["errors"] for r in of_both)
        figures["quiet_rounds"] = len(quiet)
        figures["rounds"] = len(of_both)
        summary.setdefault(workload, {})[peer] = figures
    for peers in summary.values():
        _compare(peers)
    return summary


def table(workload: str, what: str, peers: dict[str, Round]) -> str:
    """Write one workload: a line for each peer, and what tidegate and its ceiling are of nginx."""
    special = {"W3": PACED, "M": MEMORY, "C": CONNECTIONS, "K": CROWD}
    columns = special.get(workload, SPEED)
    rows = [["", *(title for title, *_ in columns), "quiet"]]
    for peer, figures in peers.items():
        cells = [_cell(figures.get(name), factor, form) for _, name, factor, form in columns]
        rows.append([peer, *cells, f"{figures['quiet_rounds']}/{figures['rounds']}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [f"{workload}: {what}"]
    lines += ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    for peer in ("ceiling", "tidegate"):
        if ratios := peers.get(peer, {}).get("to_nginx"):
            said = ", ".join(f"{RATIOS[name]} {ratio:.2f}" for name, ratio in ratios.items())
            lines.append(f"{peer} / nginx: {said}")
    return "\n".join(lines)


def page(run: dict[str, Any]) -> str:
    """Write a run as README.md has it: when and where, and a line for each contender."""
    about, summary, rounds = run["about"], run["summary"], run["rounds"]
    quiet = sum(not r["noisy"] for r in rounds)
    names = dict.fromkeys(name for peers in summary.values() for name in peers)
    lines = [
        f"{about['at'][:10]}, {about['cores']} cores of {about['processor']}, Linux "
        f"{about['kernel'].split('-')[0]}, Python {about['python']}; medians; "
        f"{quiet} of {len(rounds)} rounds were quiet.",
        "",
        f"| | {' | '.join(title for _, title, *_ in PAGE)} | ready s | errors |",
    ]
    lines.append("|---" * (len(PAGE) + 3) + "|")
    for name in names:
        cells = []
        for workload, _, figure, factor, form in PAGE:
            figures = summary.get(workload, {}).get(name, {})
            cells.append(_cell(figures.get(figure), factor, form))
            if workload == "W3" and figures.get("streams", FAST.paced) != FAST.paced:
                cells[-1] += f" ({figures['streams']:.0f} streams)"
        ready = _cell(ready_s(summary, name), 1, ".2f")
        cells.insert(0, f"{name} {about['versions'][name]}".strip())
        errors = sum(peers[name]["errors"] for peers in summary.values() if name in peers)
        lines.append(f"| {' | '.join(cells)} | {ready} | {errors} |")
    return "\n".join(lines)


def _medians(rounds: list[Round]) -> Round:
    names = dict.fromkeys(name for r in rounds for name in r)
    figures: Round = {}
    for name in names:
        values = [r[name] for r in rounds if _is_figure(r.get(name))]
        if values:
            figures[name] = median(values)
    return figures


def _compare(peers: dict[str, Round]) -> None:
    """Add what each peer adds to the delay without a gateway, and its ratios to nginx."""
    direct, nginx = peers.get("direct"), peers.get("nginx")
    for name, figures in peers.items():
        if direct is not None and name != "direct" and "delay_p50_us" in figures:
            for part in ("p50", "p99"):
                delay, base = figures[f"delay_{part}_us"], direct.get(f"delay_{part}_us", 0.0)
                figures[f"added_{part}_us"] = delay - base
        if nginx is not None and name not in ("direct", "nginx"):
            figures["to_nginx"] = {
                ratio: figures[ratio] / nginx[ratio]
                for ratio in RATIOS
                if figures.get(ratio) and nginx.get(ratio)
            }


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(value * factor, form)
