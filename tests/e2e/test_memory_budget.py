"""The budget holds under a flood, and the streams that are being read do not notice."""

from __future__ import annotations

import os
import re
import sys

import pytest

from fakes.memory_flood import BUDGET_MIB, MIB, Played, Size, play
from fakes.scaled_gateway import scaled_gateways

FULL = int(os.environ.get("TIDEGATE_TEST_SCALE", "100")) >= 1000
SIZE = Size(left=500, blind=200, load_limit_s=60.0) if FULL else Size(left=100, blind=40)
MEASURED = re.compile(r"step (\w+) freed (\d+) of (\d+) bytes promised, (\d+) runs, in (\d+) ms")

pytestmark = [
    pytest.mark.alone,
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc"),
]


@pytest.fixture(scope="module")
def guarded() -> Played:
    """The scene with a guard that acts."""
    with scaled_gateways() as start:
        return play(start, "enforce", SIZE)


@pytest.fixture(scope="module")
def observed() -> Played:
    """The same scene with a guard that only says what it would do."""
    with scaled_gateways() as start:
        return play(start, "observe", SIZE)


@pytest.mark.timeout(300)
def test_resident_memory_never_passes_the_budget(guarded: Played) -> None:
    """Read from outside twenty times a second, all processes together stay below it."""
    assert guarded.readings > 100
    assert guarded.peak_bytes <= BUDGET_MIB * MIB, f"{guarded.peak_bytes / MIB:.0f} MiB"


@pytest.mark.timeout(300)
def test_observing_alone_lets_it_pass_the_budget(observed: Played) -> None:
    """The same load is too much when nothing is done, and the guard says what it would do."""
    assert observed.peak_bytes > BUDGET_MIB * MIB, f"{observed.peak_bytes / MIB:.0f} MiB"
    assert any("sweep" in words for words in observed.would)
    assert "observing only; it would" in observed.log
    assert all(step["runs"] == 0 for step in observed.steps.values())
    assert observed.left["refused"] == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["guarded", "observed"])
def test_who_reads_loses_nothing(mode: str, request: pytest.FixtureRequest) -> None:
    """Every byte of every answer that is being read arrives, in order, to its proper end."""
    played: Played = request.getfixturevalue(mode)
    assert played.live["troubles"] == []
    assert played.live["exact"] == SIZE.live


@pytest.mark.timeout(300)
def test_what_each_step_freed_is_told(guarded: Played) -> None:
    """What a step took away is in the log and in the status, and the two agree."""
    acted = {name: step for name, step in guarded.steps.items() if step["runs"]}
    assert acted, guarded.steps
    for name, step in acted.items():
        assert step["freed_bytes"] > 0
        assert step["promised_bytes"] > 0
        lines = [line for line in MEASURED.findall(guarded.log) if line[0] == name]
        assert sum(int(freed) for _, freed, _, _, _ in lines) == pytest.approx(
            step["freed_bytes"], abs=MIB * step["times"]
        )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["guarded", "observed"])
def test_the_level_comes_back_by_itself(mode: str, request: pytest.FixtureRequest) -> None:
    """When the flood is over and its answers have expired it is 0 again, with the same worker."""
    played: Played = request.getfixturevalue(mode)
    assert played.settled_s is not None, played.levels
    assert played.status["memory"]["ledger_bytes"] == 0
    assert played.status["generation"] == 1
    assert played.status["restarts"] == []


@pytest.mark.timeout(300)
def test_the_level_rises_where_nothing_is_done(guarded: Played, observed: Played) -> None:
    """Where the guard acts, the ledger's own limit may keep the flood below every level."""
    assert max(observed.levels) >= 4, observed.levels
    assert max(guarded.levels) < max(observed.levels), guarded.levels


@pytest.mark.timeout(300)
def test_who_is_refused_is_told_when_to_come_again(guarded: Played) -> None:
    """Every 503 has a Retry-After, and no connection is refused."""
    assert guarded.left["retry_after"] == guarded.left["refused"]
    assert guarded.left["unreachable"] == 0
