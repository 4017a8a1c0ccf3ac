"""openai-python reads what an answer's worker left, and takes it for no whole answer."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from fakes.upstream import ROLE, numbered
from gateway.gateway_rig import Rig
from gateway.records.records_rig import leave_behind, new_places, under_way
from gateway.responses_rig import CREATED, WORDS


def client_of(rig: Rig) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{rig.base_url}/v1", api_key="none", max_retries=0)


async def test_an_interrupted_stream_raises(rigs, scripted_upstream, tmp_path) -> None:
    """After the chunks that were kept; it does not come to an end."""
    events = [ROLE, *(numbered(n) for n in range(5))]
    places, run = new_places(tmp_path), under_way(events)
    await leave_behind(places, run, events)
    rig = await rigs(scripted_upstream, places=places)
    contents: list[str | None] = []
    async with client_of(rig) as client:
        stream: Any = await client.get(
            f"/runs/{run.id}/stream",
            cast_to=ChatCompletionChunk,
            stream=True,
            stream_cls=openai.AsyncStream[ChatCompletionChunk],
        )

        async def read() -> None:
            async for chunk in stream:
                contents.append(chunk.choices[0].delta.content)  # noqa: PERF401

        with pytest.raises(openai.APIError, match="the worker died at event 6"):
            await read()
    assert contents[1:] == [f"{n} " for n in range(5)]


async def test_an_interrupted_response_is_failed(rigs, scripted_upstream, tmp_path) -> None:
    """Whether it is fetched or read from an event on."""
    events = [CREATED, *WORDS]
    places = new_places(tmp_path)
    run = under_way(events, path="/responses", response_id="resp_5", background=True)
    await leave_behind(places, run, events)
    rig = await rigs(scripted_upstream, places=places)
    async with client_of(rig) as client:
        response = await client.responses.retrieve("resp_5")
        assert response.status == "failed"
        assert response.error is not None
        assert "the worker died at event 4" in response.error.message
        stream = await client.responses.retrieve("resp_5", stream=True, starting_after=0)
        *words, error, last = [event async for event in stream]
    assert [event.type for event in words] == ["response.output_text.delta"] * 3
    assert (error.type, last.type) == ("error", "response.failed")
