"""Soak a real tidegate in the original fault's load, and say whether anything grew.

    make soak                    some 6 minutes
    SOAK_HOURS=8 make soak       a night
    make soak ARGS='--leak 64'   the proof that it can fail: workers that leak 64 KiB a second

Exit code 0: nothing grew and nobody was cut off in silence. 1: something did, and what it was is
the last thing printed. Figures, log and picture are left under build/soak.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fakes.gateway import Gateway
from soak import report
from soak.daemon import Daemon
from soak.excuses import Excuses
from soak.faults import Faults
from soak.judge import KIB, QUARTERS, Rest, Sample, Verdict, judge, judge_end
from soak.load import BROKEN, Load
from soak.plot import draw
from soak.sampler import Sampler
from soak.upstream import Upstream

BUILD = Path(__file__).resolve().parents[2] / "build" / "soak"
WINDOWS_A_QUARTER = 8
PRINTED_LINES = 60  # however long it takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long each act is, in seconds, without the rests between them (some 10 s each)."""

    warm_s: float
    quarter_s: float
    harsh_rounds: int
    fault_every_s: float
    print_every_s: float

    @property
    def window_s(self) -> float:
        """Of which the least memory counts."""
        return self.quarter_s / WINDOWS_A_QUARTER


def plan(hours: float) -> Plan:
    """Of the time, 15 % to warm up (a minute at least), 4 x 15 % measured, the rest harsh."""
    total_s = hours * 3600
    return Plan(
        warm_s=max(60.0, total_s * 0.15),
        quarter_s=total_s * 0.15,
        harsh_rounds=max(1, round(total_s * 0.2 / 90)),  # a round takes some 90 s
        fault_every_s=max(4.0, min(60.0, total_s * 0.15 / 10)),
        print_every_s=max(20.0, total_s / PRINTED_LINES),
    )


def main() -> int:
    """Soak, print, judge."""
    arguments = _arguments()
    BUILD.mkdir(parents=True, exist_ok=True)
    stem = BUILD / time.strftime("%Y%m%d-%H%M%S")
    # Not under build: the path of a Unix socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir=arguments.folder))
    try:
        return asyncio.run(soak(arguments, folder, stem))
    finally:
        with suppress(OSError):
            shutil.copy(folder / "log", stem.with_suffix(".log"))
        shutil.rmtree(folder, ignore_errors=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="soak", description=__doc__.splitlines()[0] if __doc__ else None
    )
    hours = float(os.environ.get("SOAK_HOURS", "0.085"))
    parser.add_argument("--hours", type=float, default=hours, help="default: SOAK_HOURS")
    parser.add_argument("--rate", type=float, default=12.0, help="new clients a second")
    parser.add_argument("--seed", type=int, default=1, help="of clients and faults")
    parser.add_argument(
        "--leak", type=int, default=0, metavar="KIB", help="let workers leak KiB a second"
    )
    parser.add_argument("--folder", type=Path, help="where its directories go; must be short")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep the pair of the worker")
    return parser.parse_args()


async def soak(arguments: argparse.Namespace, folder: Path, stem: Path) -> int:
    """The whole soak."""
    acts = plan(arguments.hours)
    upstreams = [Upstream(), Upstream()]
    daemon = Daemon(folder, upstreams[0].url, upstreams[1].url, arguments.leak * KIB)
    gateway, token = await asyncio.to_thread(daemon.start)
    excuses = Excuses()
    load = Load(gateway.base_url, token, arguments.rate, excuses, random.Random(arguments.seed))
    printed_s = -acts.print_every_s

    def show(sample: Sample) -> None:
        nonlocal printed_s
        if sample.at_s >= printed_s + acts.print_every_s:
            printed_s = sample.at_s
            print(report.line(sample, load.playing), flush=True)

    sampler = Sampler(gateway, token, show)
    faults = Faults(
        gateway, daemon, upstreams, excuses, random.Random(arguments.seed + 1),
        lambda: sampler.now_s,
    )  # fmt: skip
    print(f"{acts}\nworker {gateway.worker_pid()}, log {gateway.log}\n{report.HEAD}", flush=True)
    watching = asyncio.create_task(sampler.watch())
    try:
        idle, rests, after = await _play(acts, load, faults, sampler)
        code = await asyncio.to_thread(gateway.stop)
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        for upstream in upstreams:
            upstream.kill()
        gateway.kill()
        report.keep(stem.with_suffix(".json"), sampler.samples, [], faults.happened)
        if sampler.samples:
            draw(stem.with_suffix(".png"), sampler.samples, faults.happened, _title(arguments))
    return _conclude(
        arguments, stem, gateway, load, faults, sampler, idle, rests, after, acts, code
    )


async def _play(
    acts: Plan, load: Load, faults: Faults, sampler: Sampler
) -> tuple[Rest, list[Rest], Rest]:
    """Idle, warm-up, four measured quarters with a rest after each, the harsh act, and the end."""

    async def busy(seconds: float) -> None:
        load.go()
        faults.go(acts.fault_every_s)
        await asyncio.sleep(seconds)

    async def rest(what: str) -> Rest:
        sampler.quarter = None
        await faults.rest()
        await load.rest()
        return await sampler.rest(what)

    idle = await sampler.rest("idle")
    await busy(acts.warm_s)
    rests = [await rest("warm")]
    for quarter in range(QUARTERS):
        sampler.quarter = quarter
        await busy(acts.quarter_s)
        rests.append(await rest(f"after quarter {quarter + 1}"))
    load.go()
    for _ in range(acts.harsh_rounds):
        await faults.harsh()
    return idle, rests, await rest("at the end")


def _conclude(
    arguments: argparse.Namespace,
    stem: Path,
    gateway: Gateway,
    load: Load,
    faults: Faults,
    sampler: Sampler,
    idle: Rest,
    rests: list[Rest],
    after: Rest,
    acts: Plan,
    code: int,
) -> int:
    """Print the tables and what is wrong; the exit code."""
    everything = [idle, *rests, after]
    report.keep(stem.with_suffix(".json"), sampler.samples, everything, faults.happened)
    _record(arguments, stem, sampler)
    verdicts = judge(sampler.samples, rests, acts.window_s) + judge_end(idle, after)
    troubles, loud = report.read_log(gateway.log)
    print("\nAt rest (ledger in bytes)\n" + report.rests_table(everything))
    print("\nQuarters under load, and rests\n" + report.verdicts_table(verdicts))
    print("\nClients\n" + report.players_table(load) + "\n\n" + report.outcomes_table(load))
    print("\nWarnings and errors in the log, most frequent first")
    print("\n".join(f"{count:>8} {what}" for what, count in loud.most_common(25)))
    missing = sum(sample.worker_rss_bytes is None for sample in sampler.samples)
    print(
        f"\n{load.streams} requests, {len(faults.happened)} faults, {len(sampler.samples)} samples"
        f" ({missing} without an answer, while a worker was stopped or replaced),"
        f" highest level {max(sample.level for sample in sampler.samples)}"
    )
    wrong = _wrong(verdicts, load, faults, sampler, everything, troubles, code)
    print(f"written: {stem}.json, .png and .log")
    for what in wrong:
        print(f"FAILED: {what}")
    print("Nothing grew." if not wrong else f"{len(wrong)} findings.")
    return 1 if wrong else 0


def _wrong(
    verdicts: list[Verdict],
    load: Load,
    faults: Faults,
    sampler: Sampler,
    rests: list[Rest],
    troubles: list[str],
    code: int,
) -> list[str]:
    """Every reason to fail, in words."""
    wrong = []
    for verdict in verdicts:
        if not verdict.is_good:
            values = " -> ".join(report.figure(v, verdict.unit) for v in verdict.values)
            why = verdict.why_not or f"grew: {values} {verdict.unit}"
            wrong.append(f"{verdict.what}: {why}")
    wrong += [f"{rest.what}: {rest.oddity}" for rest in rests if rest.oddity]
    ends = load.by_end
    wrong += [f"{ends[end]} clients saw {end}" for end in BROKEN if ends[end]]
    wrong += [f"  {oddity}" for oddity in load.oddities]
    wrong += [f"refused: {what}" for what in faults.refused]
    wrong += [f"not sampled: {what}" for what in sampler.failures[:10]]
    wrong += [f"in the log: {what}" for what in troubles[:10]]
    if code != 0:
        wrong.append(f"it ended with exit code {code}")
    return wrong


def _record(arguments: argparse.Namespace, stem: Path, sampler: Sampler) -> None:
    """Keep the longest life as a recording, which the simulator takes as noise."""
    python = f"Python {platform.python_version()}, {platform.system()}"
    about = f"{_title(arguments)}, {time.strftime('%B %Y')}, {python}"
    path = arguments.record or stem.with_suffix(".recording.json")
    recording = report.recording(sampler.samples, about)
    path.write_text(json.dumps(recording, separators=(",", ":")) + "\n")


def _title(arguments: argparse.Namespace) -> str:
    leak = f", leaking {arguments.leak} KiB/s" if arguments.leak else ""
    return f"soak of {arguments.hours:g} h, {arguments.rate:g} clients a second{leak}"


if __name__ == "__main__":
    sys.exit(main())
