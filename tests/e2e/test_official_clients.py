"""The official OpenAI clients, for Python and for Node, against a genuine llama.cpp server."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from fakes.client import get, parse_events
from fakes.llama import MODEL, LlamaServer
from fakes.machine import until
from fakes.scenario import NODE_MODULES, toml
from fakes.upstream import ScriptedUpstream

MESSAGES: Any = [{"role": "user", "content": "Tell me of the tide."}]
ENDLESS = {"ignore_eos": True}
NODE_CLIENT = Path(__file__).with_name("openai_client.cjs")


@pytest.fixture
async def client(gateway, llama_server: LlamaServer) -> AsyncIterator[openai.AsyncOpenAI]:  # type: ignore[no-untyped-def]
    """openai-python, pointed at a gateway in front of llama.cpp."""
    running = gateway(toml(("llama", llama_server.url), limits="disconnect_grace_s = 0.0"))
    async with openai.AsyncOpenAI(
        base_url=f"{running.base_url}/v1", api_key="none", max_retries=0
    ) as opened:
        yield opened


def origin(client: openai.AsyncOpenAI) -> str:
    return str(client.base_url).removesuffix("/v1/")


async def test_python_streams(client: openai.AsyncOpenAI) -> None:
    """A stream arrives in pieces, with usage when it was asked for, and knows its run."""
    response = await client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=MESSAGES,
        stream=True,
        max_tokens=50,
        stream_options={"include_usage": True},
        extra_body=ENDLESS,
    )
    chunks = [chunk async for chunk in response.parse()]
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 20
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 50
    shown = (await get(origin(client), f"/v1/runs/{response.headers['x-run-id']}")).json()
    assert shown["state"] == "completed"  # type: ignore[index]


async def test_python_asks_plainly(client: openai.AsyncOpenAI) -> None:
    """An answer that is no stream, and the list of models."""
    answer = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=20, extra_body=ENDLESS
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content
    assert MODEL in [model.id async for model in client.models.list()]


async def test_python_cancels_half_way(
    client: openai.AsyncOpenAI, llama_server: LlamaServer
) -> None:
    """A client that closes its stream frees the slot of the server within a second."""
    stream = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, max_tokens=100_000, extra_body=ENDLESS
    )
    for _ in range(10):
        await anext(stream)
    assert llama_server.busy_slots() == 1
    await stream.close()
    await until(lambda: llama_server.busy_slots() == 0, 1, "the slot is free", 0.05)


async def test_python_raises_on_a_broken_answer(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """An upstream that dies in the middle is an error with its reason, not a short answer."""
    running = gateway(toml(("box", scripted_upstream.url)))
    async with openai.AsyncOpenAI(
        base_url=f"{running.base_url}/v1", api_key="none", max_retries=0
    ) as client:
        for model in ("drop:5", "no-terminal:5"):
            stream = await client.chat.completions.create(
                model=model, messages=MESSAGES, stream=True
            )
            with pytest.raises(openai.APIError, match='upstream "box"'):
                await asyncio.wait_for(drain(stream), 10)
        with pytest.raises(openai.BadRequestError, match="the fake says 400"):
            await client.chat.completions.create(model="status:400", messages=MESSAGES, stream=True)


async def drain(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_a_real_answer_is_joined_and_resumed(
    client: openai.AsyncOpenAI,
) -> None:
    """Two readers join a real answer half-way, one is killed and resumes; all have all of it."""
    base_url = origin(client)
    response = await client.chat.completions.with_raw_response.create(
        model=MODEL, messages=MESSAGES, stream=True, max_tokens=1500, extra_body=ENDLESS
    )
    run = response.headers["x-run-id"]
    stream = response.parse()
    own = [await anext(stream) for _ in range(50)]

    async def over_websocket() -> list[dict[str, Any]]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{base_url}/v1/runs/{run}/stream") as socket,
        ):
            return [json.loads(message.data) async for message in socket]

    async def over_sse_with_a_break() -> list[bytes]:
        path = f"{base_url}/v1/runs/{run}/stream"
        async with aiohttp.ClientSession() as session:
            async with session.get(path) as first:
                body = b""
                while len(parse_events(body)) < 30:
                    body += await first.content.readany()
                assert first.connection is not None
                assert first.connection.transport is not None
                first.connection.transport.abort()
            seen = parse_events(body)
            headers = {"Last-Event-ID": str(seen[-1].id)}
            async with session.get(path, headers=headers) as second:
                seen += parse_events(await second.read())
        assert [event.id for event in seen] == [str(seq) for seq in range(len(seen))]
        return [event.data for event in seen]

    joined = asyncio.create_task(over_websocket())
    resumed = asyncio.create_task(over_sse_with_a_break())
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


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(
    not (NODE_MODULES / "openai").is_dir(),
    reason="openai for Node is not installed: npm install --prefix .venv/node openai",
)
async def test_node_does_the_same(
    gateway, llama_server: LlamaServer, scripted_upstream: ScriptedUpstream
) -> None:
    """Streams, asks plainly, lists models, raises on a broken answer, and cancels half-way."""
    running = gateway(
        toml(
            ("llama", llama_server.url),
            ("box", scripted_upstream.url),
            limits="disconnect_grace_s = 0.0",
        )
    )
    done = await asyncio.to_thread(
        subprocess.run,
        ["node", str(NODE_CLIENT), f"{running.base_url}/v1", f"llama/{MODEL}"],
        env=os.environ | {"NODE_PATH": str(NODE_MODULES)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["streamed"] > 20
    assert said["finish"] == "length"
    assert said["plain"] == "length"
    assert any(MODEL in model for model in said["models"])
    assert 'upstream "box"' in said["broken"]
    assert said["cancelled"] is True
    await until(lambda: llama_server.busy_slots() == 0, 1.5, "the slot is free", 0.05)
