"""What `/v1/usage` adds up is what the upstreams said, whatever the format and the way."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes.client import get
from fakes.machine import until
from gateway.api.test_response_socket import Talk, create, turn
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, chunked, plain, scoped
from gateway.responses_rig import CREATED, WORDS, event, response
from tidegate.core.protocol.worker import StorePlaces
from tidegate.core.records.usage import TokenUsage
from tidegate.core.settings import Model, Price, Upstream

ON_EVERY_ROAD = True


def sse(*said: object) -> bytes:
    return b"".join(f"data: {json.dumps(each)}\n\n".encode() for each in said)


def chat(usage: TokenUsage, *, stream: bool, asked: bool) -> bytes:
    counts = {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
    if not stream:
        message = {"role": "assistant", "content": "one"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return json.dumps(
            {"object": "chat.completion", "choices": [choice], "usage": counts}
        ).encode()
    word = {"choices": [{"index": 0, "delta": {"content": "one"}, "finish_reason": None}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    counted = [{"choices": [], "usage": counts}] if asked else []
    return sse(word, end, *counted) + b"data: [DONE]\n\n"


def message(usage: TokenUsage, *, stream: bool, asked: bool) -> bytes:
    assert usage.input is not None
    assert usage.cached is not None
    before = {"input_tokens": usage.input - usage.cached, "cache_read_input_tokens": usage.cached}
    after = {"output_tokens": usage.output}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
    if not stream:
        return json.dumps(head | {"stop_reason": "end_turn", "usage": before | after}).encode()
    text = {"type": "text_delta", "text": "one"}
    return b"".join(
        [
            event("message_start", message=head | {"usage": before | {"output_tokens": 1}}),
            event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            event("content_block_delta", index=0, delta=text),
            event("content_block_stop", index=0),
            event("message_delta", delta={"stop_reason": "end_turn"}, usage=after),
            event("message_stop"),
        ]
    )


def responses(usage: TokenUsage, *, stream: bool, asked: bool) -> bytes:
    counts = {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
    whole = response("completed") | {"usage": counts}
    if not stream:
        return json.dumps(whole).encode()
    return b"".join([CREATED, *WORDS, event("response.completed", response=whole)])


def ollama(usage: TokenUsage, *, stream: bool, asked: bool) -> bytes:
    said = {"model": "m", "message": {"role": "assistant", "content": "one"}}
    counts = {"prompt_eval_count": usage.input, "eval_count": usage.output}
    lines = [said | {"done": False}] if stream else []
    return b"".join(
        json.dumps(line).encode() + b"\n" for line in [*lines, said | {"done": True} | counts]
    )


# The path, the format's name, how its answers are written, and what it can tell of.
FORMATS: dict[str, tuple[str, str, Callable[..., bytes], tuple[str, ...]]] = {
    "chat": ("/v1/chat/completions", "chat completion", chat, TokenUsage._fields),
    "message": ("/v1/messages", "message", message, ("input", "output", "cached")),
    "response": ("/v1/responses", "response", responses, TokenUsage._fields),
    "ollama": ("/api/chat", "chat", ollama, ("input", "output")),
}


class Counting:
    """An upstream that takes other numbers of tokens each time, and remembers them."""

    def __init__(self) -> None:
        self.sums: dict[str, Counter[str]] = {}  # by the format's name
        self._number = count(1)

    async def play(self, peer: Peer) -> None:
        while True:
            head, _, body = (await peer.request()).partition(b"\r\n\r\n")
            path = head.split()[1].decode()
            asked = json.loads(body)
            _, name, write, told = next(f for f in FORMATS.values() if path == f[0])
            n = next(self._number)
            usage = TokenUsage(100 * n, 10 * n + 7, 3 * n, n)
            stream = bool(asked.get("stream", path.startswith("/api/")))
            options = asked.get("stream_options") or {}
            is_asked = bool(options.get("include_usage"))
            answer = write(usage, stream=stream, asked=is_asked)
            if not stream or name != "chat completion" or is_asked:
                sums = self.sums.setdefault(name, Counter())
                sums.update({field: getattr(usage, field) for field in told})
            if not stream:
                await peer.send(plain(answer))
            elif path.startswith("/api/"):
                lines = HEAD.replace(b"text/event-stream", b"application/x-ndjson")
                await peer.send(lines + chunked(answer) + LAST)
            else:
                await peer.send(HEAD + chunked(answer) + LAST)


async def told(rig: Rig, query: str = "by=format&since=1h", **headers: str) -> list[dict[str, Any]]:
    """What `/v1/usage` says."""
    answer = await get(rig.base_url, f"/v1/usage?{query}", headers=headers)
    assert answer.status == 200, bytes(answer.body)
    data: list[dict[str, Any]] = answer.json()["data"]  # type: ignore[index,assignment]
    return data


async def ask(rig: Rig, form: str, **values: object) -> None:
    """One answer, whole."""
    path = FORMATS[form][0]
    body = {"model": "m", "messages": [], "input": "hi", "max_tokens": 9, **values}
    answer = await get(rig.base_url, path, body)
    assert (answer.status, answer.clean) == (200, True), bytes(answer.body)


@pytest.fixture
def places(tmp_path: Path) -> StorePlaces:
    """Where the history lies."""
    return StorePlaces(disk=str(tmp_path))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("way", ["streamed", "plain"])
async def test_streamed_and_plain_answers(
    rigs, raw_upstream, places: StorePlaces, form: str, way: str
) -> None:
    """Every token that was told is in the sum, in metrics too, and no other."""
    counting = Counting()
    upstream = await raw_upstream(counting.play)
    rig = await rigs(upstream, places=places)
    options = {"stream_options": {"include_usage": True}} if form == "chat" else {}
    for _ in range(5):
        streamed = way == "streamed"
        await ask(rig, form, stream=streamed, **(options if streamed else {}))
    [line] = await told(rig)
    name = FORMATS[form][1]
    assert (line["key"], line["runs"], line["failed"], line["unknown"]) == (name, 5, 0, 0)
    assert {field: line[field] for field in counting.sums[name]} == counting.sums[name]
    scrape = (await get(rig.base_url, "/metrics")).body.decode()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(scrape)
        for sample in family.samples
    }
    assert samples["tidegate_requests_total", name, "completed", "box"] == 5
    assert samples["tidegate_run_seconds_count",] == 5
    assert samples["tidegate_history_writes_total",] >= 1
    assert samples["tidegate_history_bytes",] > 0
    assert samples["tidegate_journal_dropped_bytes_total",] == 0
    for field, tokens in counting.sums[name].items():
        assert samples["tidegate_tokens_total", field, "box"] == tokens


async def test_a_count_that_only_the_config_asked_for(
    rigs, raw_upstream, places: StorePlaces
) -> None:
    """It is taken out of the answer, and not out of the sum."""
    counting = Counting()
    upstream = await raw_upstream(counting.play)
    rig = await rigs(Upstream(name="box", url=upstream.url, ask_usage=True), places=places)
    for _ in range(3):
        await ask(rig, "chat", stream=True)
    [line] = await told(rig)
    assert {field: line[field] for field in TokenUsage._fields} == counting.sums["chat completion"]


async def test_what_is_not_told_is_unknown(rigs, raw_upstream, places: StorePlaces) -> None:
    """Not 0, and no guess."""
    counting = Counting()
    rig = await rigs(await raw_upstream(counting.play), places=places)
    for _ in range(3):
        await ask(rig, "chat", stream=True)
    [line] = await told(rig)
    assert (line["runs"], line["unknown"], line["input"], line["output"]) == (3, 3, 0, 0)


async def test_responses_in_the_background_and_over_a_websocket(
    rigs, raw_upstream, places: StorePlaces
) -> None:
    """Streamed or not, each counts once, however often it is fetched again."""
    counting = Counting()
    rig = await rigs(await raw_upstream(counting.play), places=places)
    for stream in (False, True):
        body = {"model": "m", "input": "hi", "background": True, "stream": stream}
        answer = await get(rig.base_url, "/v1/responses", body)
        assert answer.status == 200
    await rig.idle()
    for listed in (await get(rig.base_url, "/v1/runs")).json()["data"]:
        assert (await get(rig.base_url, f"/v1/runs/{listed['id']}/stream")).status in {200, 204}
    async with Talk(rig) as socket:
        for _ in range(3):
            await socket.send_str(create())
            assert (await turn(socket))[-1]["type"] == "response.completed"
    await until(lambda: rig.gateway.tally.requests.total() == 5, DEADLINE_S, "all are counted")
    [line] = await told(rig)
    assert (line["key"], line["runs"], line["unknown"]) == ("response", 5, 0)
    assert {field: line[field] for field in TokenUsage._fields} == counting.sums["response"]


async def test_a_token_sees_its_own_use_and_who_looks_after_all_sees_everyone_s(
    rigs, raw_upstream, places: StorePlaces
) -> None:
    """By name; costs are made of the prices of what was asked for."""
    counting = Counting()
    rig = await rigs(
        await raw_upstream(counting.play),
        places=places,
        tokens=[
            scoped("tg-phone", name="phone"),
            scoped("tg-desk", name="desk"),
            scoped("tg-see", "read"),
        ],
        models=[Model(name="fast", targets=["box/m"], price=Price(input=1000.0, output=0.0))],
    )
    phone, desk, see = ({"Authorization": f"Bearer tg-{name}"} for name in ("phone", "desk", "see"))
    for headers, model in ((phone, "fast"), (phone, "fast"), (desk, "m")):
        body = {"model": model, "messages": []}
        answer = await get(rig.base_url, "/v1/chat/completions", body, headers=headers)
        assert answer.status == 200
    [mine] = await told(rig, "by=token", **phone)
    assert (mine["key"], mine["runs"], mine["input"], mine["cost"]) == ("phone", 2, 300, 0.3)
    [theirs] = await told(rig, **desk)
    assert (theirs["key"], theirs["runs"], theirs["cost"]) == ("chat completion", 1, None)
    everyone = {line["key"]: line["runs"] for line in await told(rig, "by=token", **see)}
    assert everyone == {"phone": 2, "desk": 1}
    assert (await told(rig, "by=token&since=0", **see)) == []
    for query, code in (("by=owner", "bad_by"), ("since=soon", "bad_since")):
        refused = await get(rig.base_url, f"/v1/usage?{query}", headers=see)
        assert (refused.status, refused.json()["error"]["code"]) == (400, code)
    assert (await get(rig.base_url, "/v1/usage")).status == 401


async def test_without_a_history_it_says_so(rigs, raw_upstream) -> None:
    """503 with the reason; nothing else suffers."""
    rig = await rigs(await raw_upstream(Counting().play))
    await ask(rig, "chat", stream=True)
    answer = await get(rig.base_url, "/v1/usage")
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (503, "history_unavailable")
    assert "history" in error["message"]
