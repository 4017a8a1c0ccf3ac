"""Usage: passed where the client asked for it, asked for and taken out again where it did not.

How many tokens an answer took is known afterwards, also where its window holds nothing of it.
"""

import asyncio
import json

import pytest

from fakes.client import chat, get
from fakes.upstream import DONE, FINISH, ROLE, numbered
from gateway.gateway_rig import HEAD, LAST, Peer, chunked, plain
from tidegate.core.records.usage import NO_USAGE, TokenUsage
from tidegate.core.runs.ledger import Entry
from tidegate.core.settings import MIB, Upstream

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":40}}\n\n'
WORDS = [numbered(number) for number in range(12)]


def counting(seen: list[dict[str, object]]):
    """An upstream that counts tokens where it is asked to."""

    async def play(peer: Peer) -> None:
        request = await peer.request()
        body = json.loads(request.partition(b"\r\n\r\n")[2])
        seen.append(body)
        asked = (body.get("stream_options") or {}).get("include_usage")
        await peer.send(HEAD + chunked(ROLE, *WORDS, FINISH))
        await peer.send(chunked(*([USAGE] if asked else []), DONE) + LAST)
        await peer.hang()

    return play


async def test_usage_that_the_client_asked_for_is_passed_on(rigs, raw_upstream) -> None:
    """Every byte, the chunk without choices included, whatever the config says."""
    seen: list[dict[str, object]] = []
    upstream = await raw_upstream(counting(seen))
    rig = await rigs(Upstream(name="box", url=upstream.url, ask_usage=True))
    options = {"include_usage": True, "other": 1.50}
    answer = await chat(rig.base_url, "m", stream_options=options)
    assert bytes(answer.body) == b"".join([ROLE, *WORDS, FINISH, USAGE, DONE])
    assert seen[0]["stream_options"] == options


async def test_usage_that_only_the_config_asks_for_is_taken_out_again(rigs, raw_upstream) -> None:
    """The client sees what it would have seen; the speed is known in tokens."""
    seen: list[dict[str, object]] = []
    upstream = await raw_upstream(counting(seen))
    rig = await rigs(Upstream(name="box", url=upstream.url, ask_usage=True))
    answer = await chat(rig.base_url, "m", stream_options={"other": 1})
    assert bytes(answer.body) == b"".join([ROLE, *WORDS, FINISH, DONE])
    assert seen[0]["stream_options"] == {"other": 1, "include_usage": True}
    assert rig.pool().figures["m"].unit == "tokens/s"
    assert rig.relay().run.transcript.usage() == TokenUsage(2, 40)
    assert rig.relay().run.window.next_seq == len(WORDS) + 3


async def test_nothing_is_asked_where_the_config_does_not_say_so(rigs, raw_upstream) -> None:
    """By default a request passes as it is."""
    seen: list[dict[str, object]] = []
    rig = await rigs(await raw_upstream(counting(seen)))
    answer = await chat(rig.base_url, "m")
    assert bytes(answer.body) == b"".join([ROLE, *WORDS, FINISH, DONE])
    assert "stream_options" not in seen[0]
    assert rig.pool().figures["m"].unit == "events/s"
    assert rig.relay().run.transcript.usage() == NO_USAGE


async def test_usage_is_known_when_its_event_had_to_go(rigs, raw_upstream) -> None:
    """While memory is short a window keeps nothing that its readers have."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(ROLE, *WORDS, FINISH, USAGE))
        await asyncio.sleep(0.1)
        await peer.send(chunked(*WORDS, DONE) + LAST)
        await peer.hang()

    rig = await rigs(await raw_upstream(play))
    account = rig.gateway.registry.ledger.open()
    rig.facts(ledger_limit_bytes=10 * MIB)
    account.set(Entry.WINDOW, 9 * MIB)
    assert (await chat(rig.base_url, "m")).clean
    run = rig.relay().run
    assert run.window.first_seq > len(WORDS)
    assert run.transcript.usage() == TokenUsage(2, 40)
    account.close()


@pytest.mark.parametrize("words", [3, 3000])
async def test_what_a_message_says_at_its_start_is_known_at_its_end(
    rigs, raw_upstream, words: int
) -> None:
    """Whether the window still holds the start or not."""

    def event(kind: str, **values: object) -> bytes:
        data = json.dumps({"type": kind, **values}).encode()
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    told = {"input_tokens": 5, "cache_read_input_tokens": 8, "output_tokens": 1}
    text = {"type": "text_delta", "text": "word " * 20}
    start = event("message_start", message={"id": "m", "usage": told})
    finish = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9})

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(start))
        for _ in range(words):
            await peer.send(chunked(event("content_block_delta", index=0, delta=text)))
        await peer.send(chunked(finish, event("message_stop")) + LAST)
        await peer.hang()

    rig = await rigs(await raw_upstream(play), window_bytes=128 * 1024)
    body = {"model": "m", "max_tokens": 9, "stream": True, "messages": []}
    assert (await get(rig.base_url, "/v1/messages", body)).clean
    run = rig.relay().run
    assert (run.window.first_seq > 0) is (words == 3000)
    assert run.transcript.usage() == TokenUsage(13, 9, 8)


async def test_a_plain_answer_is_counted_before_it_is_gone(rigs, raw_upstream) -> None:
    """Nothing of its body is kept."""
    body = json.dumps({"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 40}})

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(body.encode()))
        await peer.hang()

    rig = await rigs(await raw_upstream(play))
    relays = []
    rig.gateway.registry.on_add = relays.append
    answer = await get(rig.base_url, "/v1/chat/completions", {"model": "m", "messages": []})
    assert answer.status == 200
    assert relays[0].run.transcript.usage() == TokenUsage(2, 40)
