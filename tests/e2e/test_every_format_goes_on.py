"""A recycle and an upgrade in the middle of answers of every format: each is whole, byte for byte.

The streams stay with the worker that has them; a reader who comes back to a run, or to a response
in the background, reads it through the new worker from where they stopped.
"""

from __future__ import annotations

import asyncio
import signal

import pytest

from fakes.client import Stream, get, replay
from fakes.gateway import Gateway
from fakes.machine import until
from fakes.scenario import toml
from fakes.scripts import numbered
from fakes.upstream import ScriptedUpstream
from fakes.wire import wire_for

WORDS, EACH_MS = 60, 60
STREAMED = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
)
WHOLE = ("/v1/embeddings", "/v1/rerank", "/v1/images/generations", "/api/embed")
MODEL = f"numbered:{WORDS}:{EACH_MS}"
SLOW = f"slow-json:{WORDS * EACH_MS}"
EACH = 8  # streams of each format: 48 in all


def body(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "messages": [], "input": "x", "prompt": "x", **more}


def whole(path: str) -> bytes:
    """What such a stream is from its beginning to its end."""
    wire = wire_for(path, MODEL)
    events = [*wire.opening(), *(numbered(n, 0, wire) for n in range(WORDS))]
    return b"".join([*events, *wire.finish(), *wire.done()])


async def change(running: Gateway, way: str) -> None:
    """Have a new worker serve, while the former one drains."""
    if way == "recycle":
        await asyncio.to_thread(running.ask, "recycle", 60.0, wait=False)
    else:
        running.process.send_signal(signal.SIGUSR2)
    await until(lambda: running.status()["generation"] == 2, 30, "the new worker serves")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", ["recycle", "upgrade"])
async def test_answers_of_every_format_are_whole(
    gateway, scripted_upstream: ScriptedUpstream, way: str
) -> None:
    """Streams, whole answers and a response in the background, begun before and read to the end."""
    running = gateway(toml(("box", scripted_upstream.url)))
    url, pid = running.base_url, running.pid
    opened = [
        (path, await Stream.open(url, path, body(MODEL, stream=True)))
        for path in STREAMED
        for _ in range(EACH)
    ]
    readers = [asyncio.create_task(stream.read_all()) for _, stream in opened]
    waiting = {path: asyncio.create_task(get(url, path, body(SLOW))) for path in WHOLE}
    started = await get(
        url, "/v1/responses", body(MODEL, stream=False, background=True, store=True)
    )
    response_id = started.json()["id"]  # type: ignore[index]
    await until(lambda: len(scripted_upstream.seen(MODEL)) > len(opened), 30, "all are streaming")

    await change(running, way)
    resumed = await replay(url, opened[0][1].headers["x-run-id"])

    await asyncio.gather(*readers)
    for path, stream in opened:
        assert stream.clean, path
        assert bytes(stream.body) == whole(path), path
        await stream.close()
    for path, task in waiting.items():
        answer = await task
        assert (answer.status, answer.clean) == (200, True), path
        assert answer.json() == wire_for(path, SLOW).whole(), path
    assert b"".join(event.data for event in resumed.events).count(b"chatcmpl") > 0
    shown = await get(url, f"/v1/responses/{response_id}")
    assert shown.json()["status"] == "completed"  # type: ignore[index]
    status = running.status()
    assert (status["watchdog"]["pid"], status["restarts"]) == (pid, [])
