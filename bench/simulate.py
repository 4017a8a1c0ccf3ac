"""Months of a worker's life in minutes: what is called a leak, when, and what it costs whom.

    python bench/simulate.py            # the whole table, some 3 minutes on two cores
    python bench/simulate.py --quick    # a look, some seconds

The shipped growth rule, memory policy and lifecycle run on virtual workers, beside the rules that
others go by. Afterwards the promises are looked at one by one, and the exit code is 1 if one is
broken.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from simulated import mishaps
from simulated.plain import restarted, watched
from simulated.scenarios import WEEK_H, Scenario, healthy, leaking
from simulated.world import Told, World

OURS = "tidegate"
LIMIT = "80 % of the budget"
HEALTHY_SEEDS, LEAK_SEEDS = 19, 10
# Said with every table, so that no reader takes it for more.
NOT_PROMISED = (
    "a leak of 3 MiB/h under a load that breathes is told within 8 h. One that begins as the load "
    "falls first fills what runs gave back, and then grows unevenly: 2 of 40 took up to 9.7 h",
    "a leak under 1.5 MiB/h is told. It is recycled when what it holds is in the way",
)
QUICK_HEALTHY_H, QUICK_LEAK_H = 14.0, 12.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One seed of one scenario, by all rules."""

    scenario: Scenario
    seed: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """All seeds of a scenario by one rule."""

    scenario: Scenario
    rule: str
    seeds: list[Told]

    @property
    def weeks(self) -> float:
        """Return how long all of them lived together."""
        return sum(told.hours for told in self.seeds) / WEEK_H

    @property
    def alarms(self) -> int:
        """Count how often the owner would have been called."""
        return sum(len(told.alarms_h) for told in self.seeds)

    @property
    def false_alarms(self) -> int:
        """Count the alarms with no leak under way."""
        if not self.scenario.is_alarming:
            return self.alarms
        return sum(at_h < 0 for told in self.seeds for at_h in told.alarms_h)

    @property
    def detected_h(self) -> list[float | None]:
        """Return, of each seed, how long after its beginning the leak was told."""
        if not self.scenario.is_alarming:
            return []
        return [next((h for h in told.alarms_h if h >= 0), None) for told in self.seeds]

    @property
    def recycles(self) -> int:
        """Count the workers that were replaced on purpose, or by the system."""
        return sum(told.recycles + len(told.kills) for told in self.seeds)

    @property
    def cut(self) -> int:
        """Count the streams that ended with their worker."""
        return sum(told.cut for told in self.seeds)


def main() -> int:
    """Run the simulation, print the table and the promises."""
    arguments = _arguments()
    rows = _simulate(_jobs(quick=arguments.quick), arguments.processes)
    print(table(rows))
    broken = 0
    for promise, fault in [*judge(rows, quick=arguments.quick), *mishaps.judge()]:
        broken += fault is not None
        print(f"  {promise}: {'holds' if fault is None else f'BROKEN: {fault}'}")
    print(*(f"  NOT promised: {what}" for what in NOT_PROMISED), sep="\n")
    return 1 if broken else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="hours rather than weeks, few seeds")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    return parser.parse_args()


def _jobs(*, quick: bool) -> list[Job]:
    jobs: list[Job] = []
    for scenario in [*healthy(), *leaking()]:
        seeds = LEAK_SEEDS if scenario.leaks else HEALTHY_SEEDS
        if quick:
            late = scenario.leak_from_h[1] > 0
            hours = QUICK_LEAK_H if scenario.leaks else QUICK_HEALTHY_H
            seeds = 0 if late else 1
        lived = scenario.shortened(hours) if quick else scenario
        jobs += [Job(scenario=lived, seed=seed) for seed in range(seeds)]
    return jobs


def _simulate(jobs: list[Job], processes: int) -> list[Row]:
    seeds: dict[tuple[str, str], list[Told]] = {}
    with multiprocessing.Pool(processes) as pool:
        for job, told in zip(jobs, pool.imap(_one, jobs), strict=True):
            for rule, each in told.items():
                seeds.setdefault((job.scenario.name, rule), []).append(each)
    scenarios = {job.scenario.name: job.scenario for job in jobs}
    return [Row(scenario=scenarios[name], rule=rule, seeds=s) for (name, rule), s in seeds.items()]


def _one(job: Job) -> dict[str, Told]:
    scenario, seed = job.scenario, job.seed
    return {
        OURS: World(scenario, seed).run(),
        **watched(scenario, seed),
        LIMIT: restarted(scenario, seed),
    }


# --- what came out --------------------------------------------------------------------------------

HEAD = ("scenario", "rule", "seeds", "weeks", "alarms", "false", "median h", "worst h",
        "recycles", "cut")  # fmt: skip


def table(rows: Iterable[Row]) -> str:
    """Write the table: every scenario by every rule."""
    lines = [HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n < 2 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    found = [h for h in row.detected_h if h is not None]
    missed = len(row.detected_h) - len(found)
    worst = f"{missed} not found" if missed else f"{max(found):.1f}" if found else ""
    return (
        row.scenario.name,
        row.rule,
        str(len(row.seeds)),
        f"{row.weeks:.1f}",
        str(row.alarms),
        str(row.false_alarms),
        f"{statistics.median(found):.1f}" if found else "",
        worst,
        str(row.recycles),
        str(row.cut),
    )


def judge(rows: list[Row], *, quick: bool) -> Iterable[tuple[str, str | None]]:
    """Yield each promise, and how it was broken, if it was."""
    ours = [row for row in rows if row.rule == OURS]
    well = [row for row in ours if not row.scenario.is_alarming]
    weeks, false = sum(row.weeks for row in well), [r for r in ours if r.false_alarms]
    yield (
        f"no false alarm in {weeks:.0f} healthy weeks",
        f"{sum(r.false_alarms for r in false)}: {', '.join(r.scenario.name for r in false)}"
        if false
        else "fewer than 200 weeks were simulated"
        if not quick and weeks < 200
        else None,
    )
    disturbed = [r.scenario.name for r in well if r.recycles or r.cut]
    yield "healthy workers are left alone", ", ".join(disturbed) or None
    for row in ours:
        limit_h = row.scenario.detect_within_h
        if limit_h is None:
            continue
        late = [h for h in row.detected_h if h is None or h > limit_h]
        yield f"{row.scenario.name} is told within {limit_h:g} h", f"{late}" if late else None
    cut = [row.scenario.name for row in ours if row.cut]
    yield "no leak cuts a stream", ", ".join(cut) or None
    flapped = [row.scenario.name for row in ours if any(told.flaps for told in row.seeds)]
    yield "no level falls within its dwell", ", ".join(flapped) or None


if __name__ == "__main__":
    sys.exit(main())
