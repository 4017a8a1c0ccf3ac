"""The built-in demo: an answer on a machine without any model, and a stream that hangs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import ClientSession

from fakes.client import chat, open_chat, words
from fakes.machine import until
from fakes.upstream import DONE
from gateway.gateway_rig import DEADLINE_S, Rig
from tidegate.core.runs.state import RunState
from tidegate.gateway.api import demo
from tidegate.gateway.upstreams import catalog


@pytest.fixture
async def rig(rigs, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A gateway without upstreams on a machine without models; the demo speaks quickly."""
    no_servers: Any = ()
    monkeypatch.setattr(catalog, "WELL_KNOWN", no_servers)
    monkeypatch.setattr(demo, "_WORD_S", 0.001)
    return await rigs(peer=True, keep_finished_s=600.0)


async def test_the_demo_streams_its_text(rig: Rig) -> None:
    """Like any other upstream: role, words, finish_reason, marker; and it is the first model."""
    assert rig.gateway.catalog.first_model == "demo"
    answer = await asyncio.wait_for(chat(rig.base_url, "demo"), DEADLINE_S)
    assert (answer.status, answer.clean) == (200, True)
    assert "".join(words(answer.events)) == demo.TEXT
    assert answer.events[-1].raw == DONE
    assert json.loads(answer.events[-2].data)["choices"][0]["finish_reason"] == "stop"


async def test_the_demo_answers_in_one_piece_too(rig: Rig) -> None:
    """With a usage that adds up."""
    answer = await asyncio.wait_for(chat(rig.base_url, "demo", stream=False), DEADLINE_S)
    whole = json.loads(answer.body)
    assert whole["choices"][0]["message"]["content"] == demo.TEXT
    assert whole["usage"]["total_tokens"] == len(demo.TEXT.split())


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_the_demo_says_that_it_speaks_one_format_only(rig: Rig, path: str) -> None:
    """A user of another client is told that a model is missing, not that the address is wrong."""
    asked = {"model": "demo", "messages": [], "input": "Hello!", "max_tokens": 1}
    async with ClientSession() as session, session.post(rig.base_url + path, json=asked) as answer:
        assert answer.status == 404
        assert "chat completions only" in (await answer.json())["error"]["message"]


async def test_another_model_is_not_the_demo(rig: Rig) -> None:
    """Without any real upstream there is nowhere to send it: the choices are named."""
    answer = await chat(rig.base_url, "gpt-9")
    assert answer.status == 404
    message = json.loads(answer.body)["error"]["message"]
    assert "ask for one of: demo, or address" in message


async def test_the_stuck_demo_is_ended_by_the_sweep_alone(rig: Rig) -> None:
    """Cancelled or past its limit it goes on; swept it is told why and gone."""
    stream = await open_chat(rig.base_url, "demo:stuck")
    await stream.read_events(41)
    relay = rig.relay()
    assert (relay.run.limits.total_s, relay.run.limits.grace_s) == (10.0, 5.0)
    relay.cancel("cancelled by client")
    assert relay.run.state is RunState.STREAMING
    registry = rig.gateway.registry
    registry.sweep(rig.gateway.loop.time() + 15.1)
    await asyncio.wait_for(stream.read_rest(), DEADLINE_S)
    error = stream.events[-1].error
    assert error is not None
    assert "swept: stuck" in error["message"]
    assert stream.clean
    await until(lambda: not registry.ledger.accounts, DEADLINE_S, "nothing of it is held")
    await until(lambda: not rig.inner.table.busy_connections, DEADLINE_S, "the demo knows it")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_the_demo_takes_it_along(rig: Rig, stream: bool) -> None:
    """It ends at once."""
    client = await open_chat(rig.base_url, "demo" if stream else "demo:stuck", stream=stream)
    await until(lambda: rig.inner.table.busy_connections, DEADLINE_S, "it is asked")
    await client.vanish()
    if not stream:
        rig.relay().force_end("swept")  # the stuck demo has no other end
    await until(lambda: not rig.inner.table.busy_connections, DEADLINE_S, "it has stopped")
