"""What clients can make tidegate hold, tried against a real one beside honest readers.

`make attacks` plays every attack at every budget, for longer, and prints what it saw.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

from fakes.scenario import ROOT

SECONDS = 8.0
SCENES = [
    *((200, name) for name in ("heads", "messages", "uploads", "dead sockets", "dead readers")),
    (512, "all"),
]

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc"),
    pytest.mark.long,
]


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`bench/attacks.py`, which is no part of what is installed."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("attacks")


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("budget_mib", "name"), SCENES)
def test_an_attack_on_memory_harms_no_honest_reader(
    attacks: ModuleType, budget_mib: int, name: str
) -> None:
    """Within the budget, every honest answer whole, no worker ended, and calm soon afterwards."""
    scene = attacks.Scene(
        name=name,
        clients=attacks.ATTACKS[name],
        budget_mib=budget_mib,
        honest=8,
        seconds=SECONDS,
    )
    outcome = attacks.play(scene)
    assert outcome.peak_bytes > outcome.base_bytes, "the attack was felt"
    assert sum(sum(counts.values()) for counts in outcome.told.values()), "and answered"
    assert not outcome.faults, outcome
