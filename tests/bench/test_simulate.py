"""The simulator: its short form holds, and a broken promise does not pass."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

PAGE, MIB = 4096, 2**20
BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with what it stands on."""
    monkeypatch.syspath_prepend(str(BENCH))
    import simulate as module

    return module


def row(
    simulate: ModuleType, *, leaks: bool = False, limit_h: float | None = None, **told: object
) -> object:
    from simulated.scenarios import Scenario
    from simulated.world import Told

    scenario = Scenario(name="it", leaks=leaks, is_alarming=leaks, detect_within_h=limit_h)
    return simulate.Row(scenario=scenario, rule=simulate.OURS, seeds=[Told(hours=168.0, **told)])


def broken(simulate: ModuleType, *rows: object, quick: bool = True) -> list[str]:
    return [promise for promise, fault in simulate.judge(list(rows), quick=quick) if fault]


def test_the_short_form_holds() -> None:
    """Every scenario for hours, and every mishap, with the shipped rules in charge."""
    done = subprocess.run(
        [sys.executable, BENCH / "simulate.py", "--quick", "--processes", "1"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BROKEN" not in done.stdout
    assert "five rises" in done.stdout


def test_broken_promises_are_seen(simulate: ModuleType) -> None:
    """Each of them: a false alarm, a late one, a missed one, a cut, a recycle, a flap, too few."""
    assert broken(simulate, row(simulate)) == []
    assert broken(simulate, row(simulate, alarms_h=[3.0])) == ["no false alarm in 1 healthy weeks"]
    assert broken(simulate, row(simulate), quick=False) == ["no false alarm in 1 healthy weeks"]
    assert broken(simulate, row(simulate, recycles=1)) == ["healthy workers are left alone"]
    assert "no leak cuts a stream" in broken(simulate, row(simulate, leaks=True, cut=1))
    assert broken(simulate, row(simulate, flaps=1)) == ["no level falls within its dwell"]
    told = "it is told within 8 h"
    for alarms_h, bad in (([7.0], []), ([8.5], [told]), ([], [told])):
        late = row(simulate, leaks=True, limit_h=8.0, alarms_h=alarms_h)
        assert broken(simulate, late) == bad
    early = row(simulate, leaks=True, alarms_h=[-2.0, 7.0])
    assert broken(simulate, early) == ["no false alarm in 0 healthy weeks"]


def test_a_guard_that_flinches_is_seen(
    simulate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rule that knows no dwell, and one that takes a gap for a hang, promises break."""
    from simulated import mishaps
    from tidegate.core.fleet import lifecycle
    from tidegate.core.memory import levels

    monkeypatch.setattr(levels, "_level", lambda mark, alone, _: levels.replace(mark, level=alone))
    assert mishaps.storm() is not None
    monkeypatch.setattr(lifecycle, "_moved", lambda fleet, gap_s, now_s: fleet)
    assert mishaps.naps() is not None


def test_recordings_are_played_as_they_are(simulate: ModuleType, tmp_path: Path) -> None:
    """A worker's first minutes are those recorded; of a minute in one piece its least remains."""
    from simulated import recorded
    from simulated.worker import Habits

    rss = [100 * PAGE + n % 7 * PAGE for n in range(200)]
    ledger = [n % 5 * PAGE for n in range(200)]
    recording = {"about": "a try", "period_s": 1, "rss_bytes": rss, "ledger_bytes": ledger}
    (tmp_path / "try.json").write_text(json.dumps(recording))
    played = recorded.load(tmp_path)

    worker = recorded.Replayed(Habits(), Random(1), played)
    for n in range(200):
        worker.advance(1.0, 0.0, leaks=False)
        assert (worker.rss_bytes, worker.ledger_bytes) == (rss[n], ledger[n])
        assert worker.least == (rss[n], ledger[n])
    for _ in range(50):
        worker.advance(60.0, 0.0, leaks=False)
        least = worker.least
        assert least.rss_bytes == 100 * PAGE
        assert least.rss_bytes - least.ledger_bytes == 96 * PAGE
        assert worker.rss_bytes in rss
    with pytest.raises(FileNotFoundError):
        recorded.load(tmp_path / "none")


def test_a_recorded_worker_leaks_on_top(simulate: ModuleType) -> None:
    """What leaks is resident and in no ledger, whatever else is played."""
    from simulated import recorded
    from simulated.worker import Habits

    sound = recorded.Replayed(Habits(), Random(1), recorded.load())
    leaking = recorded.Replayed(Habits(leak_per_h=3.0), Random(1), recorded.load())
    for worker in (sound, leaking):
        for _ in range(120):
            worker.advance(60.0, 5.0, leaks=True)
    assert leaking.least.ledger_bytes == sound.least.ledger_bytes
    assert leaking.least.rss_bytes - sound.least.rss_bytes == pytest.approx(6 * MIB, abs=PAGE)


def test_seeds_repeat(simulate: ModuleType) -> None:
    """The same seed is the same life, another one is not."""
    from simulated.scenarios import healthy
    from simulated.worker import Worker
    from simulated.world import World

    def life(seed: int) -> int:
        world = World(healthy()[5].shortened(3.0), seed)
        world.run()
        assert isinstance(world.serving, Worker)
        return world.serving.rss_bytes

    assert life(1) == life(1)
    assert life(1) != life(2)
