"""Finished runs are handed over whole, from one generation to the other."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp
import msgspec
import pytest

from fakes.client import Stream, chat, get
from fakes.upstream import FINISH, OK, ROLE, numbered
from gateway.gateway_rig import DEADLINE_S, Rig, two_generations
from tidegate.core.errors import LedgerFull
from tidegate.core.runs.ledger import Ledger
from tidegate.core.runs.run import Run, RunRequest
from tidegate.core.runs.state import Trigger
from tidegate.core.settings import Limits
from tidegate.gateway.relay.handover import Peer as OtherGeneration
from tidegate.gateway.relay.handover import pack, unpack


def finished_run(*events: bytes, window_bytes: int = 4 * 1024 * 1024) -> Run:
    run = Run(
        run_id="run_1",
        owner="me",
        request=RunRequest("m"),
        body=b"{}",
        limits=Limits(window_bytes=window_bytes),
        account=Ledger().open(),
        now_s=100.0,
        created=time.time() - 20,
    )
    run.begin_attempt("box", "m", 100.0)
    for event in events:
        run.feed(event, 101.0)
    run.end(Trigger.FAIL, "it broke", "code", 102.0, time.time() - 10)
    return run


def replay(run: Run) -> bytes:
    block, cursor = run.window.read(run.window.cursor(run.window.first_seq))
    replayed = b""
    while block:
        replayed += block
        block, cursor = run.window.read(cursor)
    return replayed


# --- packing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "events",
    [
        (),
        (ROLE, numbered(0), FINISH),
        (b'data: {"x": "\xc3\xa9"}\n\n', b'event: odd\ndata: {"a":\ndata: 1}\n\n'),
        tuple(event.replace(b"\n", b"\r\n") for event in OK),
        tuple(numbered(n, 1000) for n in range(500)),
    ],
)
def test_a_run_that_is_handed_over_is_the_same(events: tuple[bytes, ...]) -> None:
    """Bytes, cursors, state, reason, owner and age; and every byte is in the other's ledger."""
    run = finished_run(*events)
    ledger = Ledger()
    other = unpack(pack(run), ledger, Limits(), 5000.0)
    assert replay(other) == replay(run)
    for name in ("id", "owner", "request", "state", "reason", "created", "ended", "is_over"):
        assert getattr(other, name) == getattr(run, name)
    assert (other.window.first_seq, other.window.next_seq) == (0, run.window.next_seq)
    assert other.ended_s == pytest.approx(4990.0, abs=1)
    assert [attempt.upstream for attempt in other.attempts] == ["box"]
    assert ledger.total_bytes == other.account.total_bytes >= len(replay(other))
    other.account.close()
    assert ledger.total_bytes == 0


def test_an_evicted_beginning_stays_evicted() -> None:
    """The first seq is kept, and events are numbered on from there."""
    run = finished_run(*(numbered(n, 1000) for n in range(500)), window_bytes=150_000)
    other = unpack(pack(run), Ledger(), Limits(), 0.0)
    assert other.window.first_seq == run.window.first_seq > 0
    assert other.window.next_seq == 500
    middle = run.window.first_seq + 3
    assert other.window.read(other.window.cursor(middle))[0].startswith(numbered(middle, 1000))


def good() -> dict[str, Any]:
    return json.loads(pack(finished_run(ROLE, numbered(0))))


@pytest.mark.parametrize(
    "change",
    [
        {"state": "streaming"},
        {"state": "queued"},
        {"state": "nonsense"},
        {"state": None},
        {"events": "not base64!"},
        {"events": "QUJD"},
        {"events": None},
        {"first_seq": -1},
        {"first_seq": 1},
        {"first_seq": 3, "next_seq": 2},
        {"next_seq": 3},
        {"next_seq": 10**30},
        {"created": "yesterday"},
        {"upstreams": [1]},
        {"id": 5},
    ],
)
def test_what_is_no_run_is_refused_and_charged_to_nobody(change: dict[str, Any]) -> None:
    """Whatever the other side sends."""
    ledger = Ledger()
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        unpack(json.dumps(good() | change).encode(), ledger, Limits(), 0.0)
    assert (ledger.total_bytes, ledger.accounts) == (0, frozenset())


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"id":"x"}'])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    """Before an account is opened."""
    ledger = Ledger()
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        unpack(data, ledger, Limits(), 0.0)
    assert ledger.accounts == frozenset()


def test_a_run_without_room_is_refused_and_charged_to_nobody() -> None:
    """A full ledger takes no runs from elsewhere."""
    ledger = Ledger(limit_bytes=1000)
    with pytest.raises(LedgerFull):
        unpack(pack(finished_run(ROLE)), ledger, Limits(), 0.0)
    assert (ledger.total_bytes, ledger.accounts) == (0, frozenset())


# --- two generations ------------------------------------------------------------------------------


async def ask(rig: Rig, path: str, method: str = "GET") -> Stream:
    return await asyncio.wait_for(get(rig.base_url, path, method=method), DEADLINE_S)


async def test_a_finished_run_goes_over_and_is_read_there(rigs, scripted_upstream) -> None:
    """Once; taking it twice changes nothing, and the former one has let go of it."""
    draining, serving = await two_generations(rigs, scripted_upstream)
    answer = await chat(draining.base_url, "ok")
    await draining.idle()
    relay = draining.relay()
    other = OtherGeneration(serving.peer_socket, Limits())
    for _ in range(2):
        assert await other.hand_over(relay.run)
    draining.gateway.registry.handed_over(relay)
    other.close()
    assert draining.held_bytes == 0
    assert serving.gateway.registry.finished_count == 1
    for rig in (serving, draining):
        replayed = await ask(rig, f"/v1/runs/{answer.run_id}/stream")
        assert [event.data for event in replayed.events] == [e.data for e in answer.events]
        assert replayed.clean


async def test_what_the_other_one_sends_is_checked(rigs, scripted_upstream, tmp_path) -> None:
    """Garbage is a 400, no room is a 503; neither is an error of ours."""
    rig = await rigs(scripted_upstream, peer=True)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(rig.peer_socket)) as session:
        for body, status in (
            (b"{}", 400),
            (json.dumps(good() | {"next_seq": 9}).encode(), 400),
            (json.dumps(good()).encode(), 200),
        ):
            async with session.post("http://x/v1/adopt", data=body) as response:
                assert response.status == status
        rig.facts(ledger_limit_bytes=100)
        async with session.post("http://x/v1/adopt", data=pack(finished_run(ROLE))) as response:
            assert response.status == 503
    assert rig.gateway.registry.ledger.total_bytes == 0
