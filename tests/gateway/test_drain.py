"""What a generation waits for before it leaves, for how long, and what its readers are told."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest

from fakes.machine import until
from tidegate.core.errors import UpstreamError
from tidegate.core.protocol.worker import StartDraining
from tidegate.gateway import drain as drain_module
from tidegate.gateway.drain import GatewayDrain

LIMIT_S = 10.0  # what must happen at all has this long on a busy machine


class Successor:
    """The other generation: takes what it is given, unless it is gone."""

    socket_path = "/run/next"

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.is_gone = False
        self.asked = 0

    async def hand_over(self, run: str) -> bool:
        self.asked += 1
        if self.is_gone:
            raise UpstreamError("cannot be reached")
        self.taken.append(run)
        return True


class Rig:
    """A drain of a gateway that has as much to do as the test says."""

    def __init__(self) -> None:
        self.table = SimpleNamespace(open_connections=0, busy_connections=0)
        self.kept: list[SimpleNamespace] = []
        self.active = 0
        self.peer: Successor | None = None
        self.server = SimpleNamespace(table=self.table)
        self.drain = GatewayDrain(self)
        self.registry = self

    @property
    def active_count(self) -> int:
        return self.active

    @property
    def finished_count(self) -> int:
        return len(self.kept)

    def each_finished(self) -> list[SimpleNamespace]:
        return list(self.kept)

    def handed_over(self, relay: SimpleNamespace) -> None:
        self.kept.remove(relay)

    def begin(self, reason: str, limit_s: float = LIMIT_S) -> asyncio.Task[None]:
        assert self.drain.order(StartDraining(limit_s=limit_s, reason=reason))
        return asyncio.create_task(self.drain.until_over())


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(drain_module, "POLL_S", 0.005)
    return Rig()


async def still_waits(drained: asyncio.Task[None]) -> bool:
    await asyncio.sleep(0.03)
    return not drained.done()


async def test_a_stop_waits_for_runs_and_requests_and_not_for_idle_connections(rig: Rig) -> None:
    """Nor for finished runs: there is no generation to take them."""
    rig.active = rig.table.busy_connections = 1
    rig.table.open_connections = 2
    rig.kept = [SimpleNamespace(run="a", subscribers=0)]
    drained = rig.begin("stop")
    assert await still_waits(drained)
    rig.active = 0
    assert await still_waits(drained)
    rig.table.busy_connections = 0
    await asyncio.wait_for(drained, LIMIT_S)
    assert rig.drain.farewell == "cancelled: tidegate is stopping"


async def test_a_recycle_waits_for_idle_connections_until_it_becomes_a_stop(rig: Rig) -> None:
    """The last order counts, and it alone says when the time is over."""
    rig.table.open_connections = 1
    drained = rig.begin("recycle")
    assert await still_waits(drained)
    assert not rig.drain.order(StartDraining(limit_s=5.0, reason="stop"))
    await asyncio.wait_for(drained, LIMIT_S)
    assert rig.drain.farewell == "cancelled: tidegate is stopping"
    assert 5.0 < rig.drain.goodbye_s <= 5.0 + drain_module.GOODBYE_S


async def test_what_is_left_at_the_limit_is_cut_and_told(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """And the last words have their second all the same."""
    rig.active = 3
    with caplog.at_level(logging.INFO):
        await asyncio.wait_for(rig.begin("recycle", limit_s=0.02), LIMIT_S)
    assert caplog.records[-1].getMessage() == "drained, 3 runs cut"
    assert caplog.records[-1].levelno == logging.WARNING
    assert rig.drain.farewell == "cancelled: recycle"
    assert rig.drain.goodbye_s == pytest.approx(drain_module.GOODBYE_S)


async def test_a_recycle_hands_finished_runs_over_but_for_those_that_are_read(rig: Rig) -> None:
    """A run whose reader has gone follows."""
    rig.peer = Successor()
    read = SimpleNamespace(run="read", subscribers=1)
    rig.kept = [SimpleNamespace(run="a", subscribers=0), read]
    drained = rig.begin("recycle")
    await until(lambda: rig.kept == [read], LIMIT_S, "the first is handed over")
    read.subscribers = 0
    await asyncio.wait_for(drained, LIMIT_S)
    assert rig.peer.taken == ["a", "read"]


async def test_a_successor_that_is_gone_is_told_of_once_and_asked_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When none comes, the worker leaves after HAND_OVER_LIMIT_S."""
    monkeypatch.setattr(drain_module, "HAND_OVER_AGAIN_S", 0.01)
    monkeypatch.setattr(drain_module, "HAND_OVER_LIMIT_S", 0.2)
    rig.peer = Successor()
    rig.peer.is_gone = True
    rig.kept = [SimpleNamespace(run="a", subscribers=0)]
    await asyncio.wait_for(rig.begin("recycle"), LIMIT_S)
    assert rig.peer.asked > 1
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == ["finished runs cannot be handed over now: cannot be reached"]
