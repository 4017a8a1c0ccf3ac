"""A client that goes away takes its upstream with it: on every route, in every state.

An upstream that no client waits for any more would keep a GPU busy in vain, for half an hour as has
been reported elsewhere. One second after the grace its connection is gone.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from fakes.client import Stream
from fakes.machine import until
from fakes.upstream import ScriptedUpstream
from gateway.gateway_rig import DEADLINE_S, Rig
from gateway.pool_rig import let_go
from gateway.relay.test_every_fault import PLAIN, STREAMED, Form

ON_EVERY_ROAD = True
GRACE_S = 0.1
SPEECH = Form("/v1/audio/speech", streams=False)

# Where a stream can stand when its client goes: nothing answered, a head, an opening, an answer
# under way, one that is waited for because the upstream said so, and one whose model is loading.
WAITING = ["status:429:5", "loading:99"]
STREAMING = ["silent", "headers-then-silent", "wait:60000", "stall:2", *WAITING]
WHOLE = ["silent", *WAITING]


@pytest.fixture(scope="module")
def upstream():
    """One for all."""
    running = ScriptedUpstream().start()
    yield running
    running.stop()


async def leave(rig: Rig, form: Form, script: str, *, stream: bool, upstream) -> float:
    """Asks, goes away when the upstream has been asked, and returns how long the rest took."""
    asked = len(upstream.requests)
    client = await Stream.open(rig.base_url, form.path, form.body(script, stream=stream))
    await until(lambda: len(upstream.requests) > asked, DEADLINE_S, "the upstream is asked")
    await asyncio.sleep(0.05)
    run = rig.relay().run
    gone_s = time.monotonic()
    await client.vanish()
    await until(lambda: run.is_over, DEADLINE_S, "the run is over")
    # What it answered already may lie idle; nothing may be under way.
    await until(lambda: not upstream.active, DEADLINE_S, "the upstream is let go")
    await let_go(rig.pool())
    took_s = time.monotonic() - gone_s
    assert (run.state.value, run.reason) == ("cancelled", "cancelled: client disconnected")
    assert rig.pool().active == 0
    return took_s


async def leave_all(rigs, upstream, form: Form, scripts: list[str], *, stream: bool) -> None:
    rig = await rigs(upstream, disconnect_grace_s=GRACE_S)
    for script in scripts:
        took_s = await leave(rig, form, script, stream=stream, upstream=upstream)
        if took_s >= GRACE_S + 1.0:  # it may have met a busy moment
            took_s = await leave(rig, form, script, stream=stream, upstream=upstream)
        assert took_s < GRACE_S + 1.0, script


@pytest.mark.parametrize("form", STREAMED, ids=lambda form: form.path)
async def test_a_stream_ends_with_its_client(rigs, upstream, form: Form) -> None:
    """Before the head, behind it, while held, in the middle, and while it waits to come again."""
    await leave_all(rigs, upstream, form, STREAMING, stream=True)


@pytest.mark.parametrize("form", [*STREAMED, *PLAIN, SPEECH], ids=lambda form: form.path)
async def test_a_whole_answer_ends_with_its_client(rigs, upstream, form: Form) -> None:
    """No other client can read it."""
    await leave_all(rigs, upstream, form, WHOLE, stream=False)


@pytest.mark.parametrize("form", STREAMED, ids=lambda form: form.path)
async def test_who_says_continue_is_not_waited_for(rigs, upstream, form: Form) -> None:
    """The answer goes on to its end, and is there for a client that comes back."""
    rig = await rigs(upstream, disconnect_grace_s=0.05)
    headers = {"x-on-disconnect": "continue"}
    body = form.body("gap:600", stream=True)
    client = await Stream.open(rig.base_url, form.path, body, headers=headers)
    await client.head()
    run = rig.relay().run
    await client.vanish()
    await until(lambda: run.is_over, DEADLINE_S, "the run is over")
    assert run.state.value == "completed"
    again = await Stream.open(rig.base_url, f"/v1/runs/{run.id}/stream")
    await again.read_all()
    assert (again.status, again.clean) == (200, True)
    assert len(again.events) == run.window.next_seq
    await again.close()


async def test_a_background_response_goes_on_without_anybody(rigs, upstream) -> None:
    """No client has to be there at all; a cancel ends it, and its upstream."""
    rig = await rigs(upstream, disconnect_grace_s=0.0)
    body = {"model": "stall:2", "input": "x", "background": True}
    created = await Stream.open(rig.base_url, "/v1/responses", body)
    await created.read_all()
    await created.close()
    run = rig.relay().run
    await until(lambda: run.window.next_seq > 2, DEADLINE_S, "it streams")
    await asyncio.sleep(0.3)
    assert not run.is_over
    path = f"/v1/responses/{run.response_id}/cancel"
    cancelled = await Stream.open(rig.base_url, path, method="POST")
    await cancelled.read_all()
    await cancelled.close()
    assert cancelled.json()["status"] == "cancelled"  # type: ignore[index]
    await until(lambda: not upstream.open_connections, DEADLINE_S, "the upstream is let go")
