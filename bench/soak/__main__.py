"""Soak a real tidegate in the original fault's load, and say whether anything grew.

    make soak                    some 6 minutes
    SOAK_HOURS=8 make soak       a night
    make soak ARGS=--silence     335 s of silence, openai-node with its default settings
    make soak ARGS='--leak 64'   the proof that it can fail: workers that leak 64 KiB a second

Exit code 0: nothing grew and no client was cut off in silence. 1: something did, and what it was is
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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fakes.gateway import Gateway
from soak import report, silence
from soak.daemon import Daemon
from soak.excuses import Excuses
from soak.faults import Faults
from soak.judge import KIB, QUARTERS, Rest, Sample, Verdict, judge, judge_end
from soak.load import BROKEN, Load
from soak.plot import draw
from soak.sampler import Sampler
from soak.upstream import Upstream

BUILD = Path(__file__).resolve().parents[2] / "build" / "soak"
WINDOW_S = 20.0  # a trim lies in each of them
MOST_WINDOWS = 8  # a quarter
PRINTED_LINES = 60  # however long it takes
MOST_SHOWN = 10  # of what may repeat itself


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
        """Return the length of a window, of which the least memory counts."""
        windows = min(MOST_WINDOWS, max(2, int(self.quarter_s / WINDOW_S)))
        return self.quarter_s / windows


def plan(hours: float) -> Plan:
    """Divide the time: 15 % to warm up (a minute at least), 4 x 15 % measured, the rest harsh."""
    total_s = hours * 3600
    return Plan(
        warm_s=max(60.0, total_s * 0.15),
        quarter_s=total_s * 0.15,
        harsh_rounds=max(1, round(total_s * 0.2 / 90)),  # a round takes some 90 s
        fault_every_s=max(4.0, min(60.0, total_s * 0.15 / 10)),
        print_every_s=max(20.0, total_s / PRINTED_LINES),
    )


def main() -> int:
    """Run the soak, print it and judge it."""
    arguments = _arguments()
    if arguments.silence:
        return silence.main()
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
    parser.add_argument(
        "--silence", action="store_true", help="instead: 335 s without a word, with real clients"
    )
    parser.add_argument("--folder", type=Path, help="where its directories go; must be short")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep the pair of the worker")
    return parser.parse_args()


@dataclass(eq=False)
class Soak:
    """One soak: everything that takes part, and what was seen of it."""

    acts: Plan
    gateway: Gateway
    load: Load
    faults: Faults
    sampler: Sampler
    upstreams: list[Upstream]
    idle: Rest | None = None
    rests: list[Rest] = field(default_factory=list)  # of the worker that is measured
    after: Rest | None = None
    exit_code: int | None = None

    async def play(self) -> None:
        """Play idle, warm-up, four measured quarters with rests between, the harsh act, the end."""
        watching = asyncio.create_task(self.sampler.watch())
        try:
            self.idle = await self.sampler.rest("idle")
            await self._busy(self.acts.warm_s)
            self.rests.append(await self._rest("warm"))
            for quarter in range(QUARTERS):
                self.sampler.quarter = quarter
                await self._busy(self.acts.quarter_s)
                self.rests.append(await self._rest(f"after quarter {quarter + 1}"))
            self.load.go()
            for _ in range(self.acts.harsh_rounds):
                await self.faults.harsh()
            self.after = await self._rest("at the end")
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        self.exit_code = await asyncio.to_thread(self.gateway.stop)

    def clear_up(self) -> None:
        """End whatever still runs."""
        for upstream in self.upstreams:
            upstream.kill()
        self.gateway.kill()

    async def _busy(self, seconds: float) -> None:
        self.load.go()
        self.faults.go(self.acts.fault_every_s)
        await asyncio.sleep(seconds)

    async def _rest(self, what: str) -> Rest:
        self.sampler.quarter = None
        await self.faults.rest()
        await self.load.rest()
        return await self.sampler.rest(what)

    # --- what came of it -------------------------------------------------------------------------

    @property
    def all_rests(self) -> list[Rest]:
        """Return all rests, with the first and the last one, which are of other workers."""
        return [rest for rest in (self.idle, *self.rests, self.after) if rest is not None]

    def conclude(self) -> list[str]:
        """Print the tables; every reason to fail, in words."""
        assert self.idle is not None
        assert self.after is not None
        samples = self.sampler.samples
        verdicts = judge(samples, self.rests, self.acts.window_s)
        verdicts += judge_end(self.idle, self.after)
        troubles, loud = report.read_log(self.gateway.log)
        print("\nAt rest (ledger in bytes)\n" + report.rests_table(self.all_rests))
        print("\nQuarters under load, and rests\n" + report.verdicts_table(verdicts))
        print("\nClients\n" + report.players_table(self.load))
        print("\n" + report.outcomes_table(self.load))
        print("\nWarnings and errors in the log, most frequent first")
        print("\n".join(f"{count:>8} {what}" for what, count in loud.most_common(25)))
        missing = sum(sample.worker_rss_bytes is None for sample in samples)
        print(
            f"\n{self.load.streams} requests, {len(self.faults.happened)} faults,"
            f" {len(samples)} samples ({missing} without an answer of a worker that was stopped"
            f" or replaced), highest level {max(sample.level for sample in samples)}"
        )
        return self._wrong(verdicts, troubles)

    def _wrong(self, verdicts: list[Verdict], troubles: list[str]) -> list[str]:
        wrong = []
        for verdict in verdicts:
            if not verdict.is_good:
                values = " -> ".join(report.figure(v, verdict.unit) for v in verdict.values)
                why = verdict.why_not or f"grew: {values} {verdict.unit}"
                wrong.append(f"{verdict.what}: {why}")
        ends = self.load.by_end
        wrong += [f"{rest.what}: {rest.oddity}" for rest in self.all_rests if rest.oddity]
        wrong += [f"{ends[end]} clients saw {end}" for end in BROKEN if ends[end]]
        wrong += [f"  {oddity}" for oddity in self.load.oddities]
        wrong += [f"refused: {what}" for what in self.faults.refused]
        wrong += [f"not sampled: {what}" for what in self.sampler.failures[:MOST_SHOWN]]
        wrong += [f"in the log: {what}" for what in troubles[:MOST_SHOWN]]
        if self.exit_code != 0:
            wrong.append(f"it ended with exit code {self.exit_code}")
        return wrong


async def soak(arguments: argparse.Namespace, folder: Path, stem: Path) -> int:
    """Put everything together, play, and say what came of it; the exit code."""
    upstreams = [Upstream(), Upstream()]
    daemon = Daemon(folder, upstreams[0].url, upstreams[1].url, arguments.leak * KIB)
    gateway, token = await asyncio.to_thread(daemon.start)
    acts = plan(arguments.hours)
    excuses = Excuses()
    load = Load(gateway.base_url, token, arguments.rate, excuses, random.Random(arguments.seed))
    sampler = Sampler(gateway, token, _printer(acts.print_every_s, load))
    faults = Faults(
        gateway=gateway,
        daemon=daemon,
        upstreams=upstreams,
        excuses=excuses,
        dice=random.Random(arguments.seed + 1),
        clock=lambda: sampler.now_s,
    )
    whole = Soak(acts, gateway, load, faults, sampler, upstreams)
    print(f"{acts}\nlog: {gateway.log}\n{report.HEAD}", flush=True)
    try:
        await whole.play()
    finally:
        whole.clear_up()
        _keep(arguments, stem, whole)
    wrong = whole.conclude()
    print(f"written: {stem}.json, .png and .log")
    for what in wrong:
        print(f"FAILED: {what}")
    print(
        f"{len(wrong)} findings." if wrong else "Nothing grew, and no client was left in silence."
    )
    return 1 if wrong else 0


def _printer(every_s: float, load: Load) -> Callable[[Sample], None]:
    """Make a function that prints a sample now and then."""
    next_s = 0.0

    def show(sample: Sample) -> None:
        nonlocal next_s
        if sample.at_s >= next_s:
            next_s = sample.at_s + every_s
            print(report.line(sample, load.playing), flush=True)

    return show


def _keep(arguments: argparse.Namespace, stem: Path, whole: Soak) -> None:
    """Keep everything that was measured, a picture of it, and the recording for the simulator."""
    samples, happened = whole.sampler.samples, whole.faults.happened
    report.keep(stem.with_suffix(".json"), samples, whole.all_rests, happened)
    if samples:
        draw(stem.with_suffix(".png"), samples, happened, _title(arguments))
        _record(arguments, stem, whole.sampler)


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
