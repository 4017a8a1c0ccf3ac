"""The heartbeat that goes out: when it is sent, and how its failures are told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from fakes.machine import until
from fakes.receiver import Receiver, receiving
from tidegate.core.settings import OutwardHeartbeat
from tidegate.gateway.outward_heartbeat import HeartbeatSender

TOKEN = "CANARY9d1f7a3c5e8b"
OFTEN = OutwardHeartbeat(every_s=0.05)
LIMIT_S = 10.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


class Rig:
    """A sender, and whether its worker is ready."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.sender = HeartbeatSender(lambda: self.reasons)
        self.task = asyncio.create_task(self.sender.run())

    async def heard(self, receiver: Receiver, count: int) -> None:
        """Waits until it was heard so often."""
        await until(lambda: len(receiver.heard) >= count, LIMIT_S, f"it is heard {count} times")


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    yield made
    made.task.cancel()
    await asyncio.gather(made.task, return_exceptions=True)
    made.sender.close()


async def test_it_is_a_get_with_all_that_its_address_says(rig: Rig, receiver: Receiver) -> None:
    """Path and query as they were written, from the first moment on, over one connection."""
    rig.sender.configure(OFTEN, f"{receiver.url}/v1/push/{TOKEN}?status=up&msg=OK")
    await rig.heard(receiver, 3)
    [(method, target, agent)] = {
        (each.method, each.target, each.headers["User-Agent"]) for each in receiver.heard
    }
    assert (method, target) == ("GET", f"/v1/push/{TOKEN}?status=up&msg=OK")
    assert agent.startswith("tidegate/")
    assert TOKEN not in repr(rig.sender)


async def test_it_is_silent_while_the_worker_is_not_ready(rig: Rig, receiver: Receiver) -> None:
    """From the next one on, and until it is ready again."""
    rig.reasons = ["no upstream can be reached"]
    rig.sender.configure(OFTEN, receiver.url)
    await asyncio.sleep(0.3)
    assert receiver.heard == []
    rig.reasons = []
    await rig.heard(receiver, 1)
    rig.reasons = ["draining"]
    await asyncio.sleep(0.1)
    count = len(receiver.heard)
    await asyncio.sleep(0.3)
    assert len(receiver.heard) == count


async def test_a_reload_counts_at_once(rig: Rig, receiver: Receiver) -> None:
    """Another address or pace; none ends it. The same changes nothing."""
    with receiving() as other:
        rig.sender.configure(OutwardHeartbeat(every_s=3600.0), receiver.url)
        await rig.heard(receiver, 1)
        rig.sender.configure(OutwardHeartbeat(every_s=3600.0), receiver.url)
        rig.sender.configure(OutwardHeartbeat(every_s=3600.0), other.url)
        await rig.heard(other, 1)
        rig.sender.configure(OFTEN, other.url)
        await rig.heard(other, 3)
        rig.sender.configure(OFTEN, None)
        await asyncio.sleep(0.1)
        count = len(other.heard)
        await asyncio.sleep(0.3)
        assert len(other.heard) == count
        assert len(receiver.heard) == 1


async def test_trouble_is_logged_once_and_that_it_is_over(
    rig: Rig, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is; with no part of the address."""
    caplog.set_level(logging.INFO, logger="tidegate")
    receiver.status = 403
    rig.sender.configure(OFTEN, f"{receiver.url}/{TOKEN}")
    await rig.heard(receiver, 3)
    receiver.stop()
    await asyncio.sleep(0.3)
    receiver.status = 200
    receiver.start()
    await until(lambda: len(caplog.messages) > 1, LIMIT_S, "it arrives again")
    assert caplog.messages == [
        "the heartbeat does not arrive: it answered 403",
        "the heartbeat arrives again",
    ]


async def test_one_that_never_answers_is_given_up(
    rig: Rig, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the next is due; its connection is gone then."""
    receiver.is_silent = True
    rig.sender.configure(OFTEN, receiver.url)
    await rig.heard(receiver, 3)
    assert caplog.messages == ["the heartbeat does not arrive: did not answer within 0.05 s"]
    rig.sender.configure(OFTEN, None)
    await until(lambda: not receiver._open, LIMIT_S, "its connections are gone")


async def test_a_fault_in_a_library_ends_nothing(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is sent all the same."""
    rig.sender.configure(OFTEN, receiver.url)
    await rig.heard(receiver, 1)
    with monkeypatch.context() as broken:
        broken.setattr("tidegate.gateway.outward_heartbeat.fetch", lambda *_, **__: 1 / 0)
        await asyncio.sleep(0.2)
    count = len(receiver.heard)
    await rig.heard(receiver, count + 1)
