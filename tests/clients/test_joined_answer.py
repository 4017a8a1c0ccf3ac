"""openai-python begins an answer of a genuine llama.cpp server, and others join it."""

import asyncio
import json
from typing import Any

import aiohttp
import openai

from fakes.client import get, parse_events
from fakes.llama import MODEL, LlamaServer
from fakes.machine import until
from fakes.scenario import toml

QUESTION: Any = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell me of the tide."}],
    "stream": True,
    "extra_body": {"ignore_eos": True},
}


async def test_a_real_answer_is_joined_and_resumed(gateway, llama_server: LlamaServer) -> None:
    """Two readers join a real answer half-way, one is killed and resumes; all have all of it."""
    base_url = gateway(toml(("llama", llama_server.url))).base_url
    async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none") as client:
        response = await client.chat.completions.with_raw_response.create(
            **QUESTION, max_tokens=1500
        )
        path = f"{base_url}/v1/runs/{response.headers['x-run-id']}/stream"
        stream = response.parse()
        own = [await anext(stream) for _ in range(50)]
        joined = asyncio.create_task(over_websocket(path))
        resumed = asyncio.create_task(over_sse_with_a_break(path))
        own += [chunk async for chunk in stream]
        *messages, last = await joined
        replayed = await resumed
    assert last == {"state": "completed", "reason": None}
    assert [message["data"].encode() for message in messages] == replayed
    assert replayed[-1] == b"[DONE]"
    chunks = [json.loads(data) for data in replayed[:-1]]
    assert [c["choices"][0]["delta"].get("content") for c in chunks if c["choices"]] == [
        c.choices[0].delta.content for c in own if c.choices
    ]


async def over_websocket(path: str) -> list[dict[str, Any]]:
    """Every message of a run."""
    async with aiohttp.ClientSession() as session, session.ws_connect(path) as socket:
        return [json.loads(message.data) async for message in socket]


async def over_sse_with_a_break(path: str) -> list[bytes]:
    """Every event of a run, read over two connections, of which the first one is reset."""
    async with aiohttp.ClientSession() as session:
        async with session.get(path) as first:
            body = b""
            while len(parse_events(body)) < 30:
                body += await first.content.readany()
            assert first.connection is not None
            assert first.connection.transport is not None
            first.connection.transport.abort()
        seen = parse_events(body)
        async with session.get(path, headers={"Last-Event-ID": str(seen[-1].id)}) as second:
            seen += parse_events(await second.read())
    assert [event.id for event in seen] == [str(seq) for seq in range(len(seen))]
    return [event.data for event in seen]


async def test_a_cancelled_answer_frees_the_slot(gateway, llama_server: LlamaServer) -> None:
    """A client that closes its stream half-way frees the slot of the server within a second."""
    running = gateway(toml(("llama", llama_server.url), limits="disconnect_grace_s = 0.0"))
    async with openai.AsyncOpenAI(base_url=f"{running.base_url}/v1", api_key="none") as client:
        response = await client.chat.completions.with_raw_response.create(
            **QUESTION, max_tokens=100_000
        )
        stream = response.parse()
        for _ in range(10):
            await anext(stream)
        assert llama_server.busy_slots() == 1
        await stream.close()
        await until(lambda: llama_server.busy_slots() == 0, 1, "the slot is free", 0.05)
        shown = await get(running.base_url, f"/v1/runs/{response.headers['x-run-id']}")
        state: Any = shown.json()
        assert state["state"] == "cancelled"
