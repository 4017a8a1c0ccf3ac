"""What tidegate is to reach, and whether it did in this run.

Speed is judged beside nginx in the same run, everything else by itself. Requests a second are
compared where both gateways fill their core. Where nginx waits for the harness, or for neighbours,
its figure is too low and would flatter the others: then processor time is compared instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from rounds import Round

MIB = 1024 * 1024
FULL = 0.85  # of a core
Summary = dict[str, dict[str, Round]]  # by workload and contender


@dataclass(frozen=True, slots=True)
class Found:
    """The figure that a target is about, and what should be known beside it."""

    figure: float
    beside: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A limit that the figure must keep to; `stretch` is what would be better still."""

    workload: str
    what: str
    limit: float
    stretch: float | None = None
    is_least: bool = False  # the figure must be at least the limit; otherwise at most
    form: str = ".2f"
    find: Callable[[Summary, str], Found | None]

    def asked(self) -> str:
        """Write the limit, and the stretch in brackets."""
        stretch = "" if self.stretch is None else f" ({self.stretch:{self.form}})"
        return f"{'≥' if self.is_least else '≤'} {self.limit:{self.form}}{stretch}"

    def is_met(self, figure: float, limit: float) -> bool:
        """Compare."""
        return figure >= limit if self.is_least else figure <= limit


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target, what was found of it, and what that means."""

    target: Target
    found: Found | None

    @property
    def word(self) -> str:
        """Say met or missed."""
        target, found = self.target, self.found
        if found is None:
            return "not measured"
        if not target.is_met(found.figure, target.limit):
            return "missed"
        if target.stretch is not None and target.is_met(found.figure, target.stretch):
            return "met, stretch too"
        return "met"


def judge(summary: Summary) -> list[Verdict]:
    """Judge what was measured by every target."""
    return [Verdict(target, target.find(summary, target.workload)) for target in TARGETS]


def table(verdicts: list[Verdict]) -> str:
    """Write targets beside figures, those that were not measured left out."""
    rows = [["", "target (stretch)", "asked", "found", "", ""]]
    for verdict in verdicts:
        if verdict.found is not None:
            target, found = verdict.target, verdict.found
            figure = f"{found.figure:{target.form}}"
            rows.append(
                [target.workload, target.what, target.asked(), figure, verdict.word, found.beside]
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    met = sum(verdict.word.startswith("met") for verdict in verdicts)
    lines.append(f"{met} of {len(rows) - 1} targets met")
    return "\n".join(line.rstrip() for line in lines)


def _both(summary: Summary, workload: str) -> tuple[Round, Round] | None:
    """Return tidegate's figures and nginx's."""
    peers = summary.get(workload, {})
    return (peers["tidegate"], peers["nginx"]) if {"tidegate", "nginx"} <= peers.keys() else None


def _of_nginx(figure: str) -> Callable[[Summary, str], Found | None]:
    """Compare a figure with nginx's."""

    def find(summary: Summary, workload: str) -> Found | None:
        both = _both(summary, workload)
        if both is None or not both[0].get(figure) or not both[1].get(figure):
            return None
        return Found(both[0][figure] / both[1][figure], _noise(*both))

    return find


def _speed_of_nginx(summary: Summary, workload: str) -> Found | None:
    """Compare speed with nginx's, by what is true here: requests a second, or processor time."""
    both = _both(summary, workload)
    if both is None or not all(each.get("cpu_us_per_answer") for each in both):
        return None
    ours, nginx = both
    by_rate = ours["answers_per_s"] / nginx["answers_per_s"]
    by_cpu = nginx["cpu_us_per_answer"] / ours["cpu_us_per_answer"]
    noise = _noise(*both)
    if all(each["gateway_busy"] > max(FULL, each["harness_busy"]) for each in both):
        return Found(by_rate, f"by req/s; by CPU {by_cpu:.2f} {noise}")
    return Found(by_cpu, f"by CPU; by req/s, of cores not full, {by_rate:.2f} {noise}")


def _noise(*contenders: Round) -> str:
    return "" if all(each["quiet_rounds"] for each in contenders) else "(no quiet round)"


def _own(figure: str, factor: float = 1) -> Callable[[Summary, str], Found | None]:
    """Return a figure of tidegate by itself."""

    def find(summary: Summary, workload: str) -> Found | None:
        ours = summary.get(workload, {}).get("tidegate", {})
        value = ours.get(figure)
        return None if value is None else Found(value * factor, _noise(ours))

    return find


def ready_s(summary: Summary, peer: str) -> float | None:
    """Return the median time of a contender from its start to its first answer."""
    found = [peers[peer]["ready_s"] for peers in summary.values() if peer in peers]
    return median(found) if any(found) else None


def _ready(summary: Summary, workload: str) -> Found | None:
    found = ready_s(summary, "tidegate")
    return None if found is None else Found(found)


_CPU_PER_CHUNK = "cpu_s_per_million_events"
TARGETS = [
    Target(
        workload="W1",
        what="speed, of nginx's",
        limit=0.7,
        stretch=0.8,
        is_least=True,
        find=_speed_of_nginx,
    ),
    Target(
        workload="W1b",
        what="speed, of nginx's",
        limit=0.4,
        stretch=0.48,
        is_least=True,
        find=_speed_of_nginx,
    ),
    Target(
        workload="W3",
        what="CPU a chunk, of nginx's",
        limit=1.4,
        stretch=1.3,
        find=_of_nginx(_CPU_PER_CHUNK),
    ),
    Target(
        workload="W4",
        what="speed, of nginx's",
        limit=0.3,
        stretch=0.38,
        is_least=True,
        find=_speed_of_nginx,
    ),
    Target(
        workload="C",
        what="a new connection, us of CPU",
        limit=80,
        form=".0f",
        find=_own("us_per_connection"),
    ),
    Target(
        workload="K",
        what="1,000 at once, answered p99, ms",
        limit=160,
        form=".0f",
        find=_own("answer_p99_us", 1 / 1000),
    ),
    Target(
        workload="M",
        what="worker, idle, MiB",
        limit=46,
        form=".1f",
        find=_own("worker_rss_bytes", 1 / MIB),
    ),
    Target(
        workload="M",
        what="watchdog, resident, MiB",
        limit=20,
        form=".1f",
        find=_own("parent_rss_bytes", 1 / MIB),
    ),
    Target(
        workload="M",
        what="watchdog, private, MiB",
        limit=13,
        form=".1f",
        find=_own("parent_private_bytes", 1 / MIB),
    ),
    Target(
        workload="M",
        what="a waiting stream, KiB",
        limit=10,
        form=".1f",
        find=_own("bytes_per_stream_since_idle", 1 / 1024),
    ),
    Target(
        workload="M",
        what="burst, CPU, of nginx's",
        limit=2,
        find=_of_nginx("burst_cpu_s"),
    ),
    Target(
        workload="M",
        what="worker after the burst, of idle",
        limit=1.1,
        find=_own("settled_over_idle"),
    ),
    Target(workload="all", what="start to ready, s", limit=0.6, find=_ready),
]
