r"""Half an emoji, as JSON may spell it (`\ud83d`), ends no stream and refuses no request.

A text that was cut has one: an upstream's, between two tokens; a client's, at a length. It passes
as it came, in both directions, on every route.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from fakes.client import Stream, get, parse_events
from fakes.upstream import ScriptedUpstream
from fakes.wire import WORDS, Chat, wire_for
from gateway.gateway_rig import DEADLINE_S, LAST, Peer, Rig, chunked, plain
from tidegate.core.formats.foreign_json import is_json
from tidegate.core.settings import Upstream

ON_EVERY_ROAD = True
STREAMED = [
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat",
    "/api/generate",
]  # fmt: skip
PLAIN = ["/v1/embeddings", "/v1/rerank", "/v1/messages/count_tokens", "/api/embed", "/api/show"]
# An emoji over two events, halves in the wrong order, and text that only looks like one.
TEXT = r"a\ud83d|\ude00b|\ude00\ud83d\\ud83d \u00e9"
HEADS = {
    "text/event-stream": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n",
    "application/x-ndjson": b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n",
}


class Keeps:
    """A play that keeps what it was asked, and answers each request with `answer`."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.bodies: list[bytes] = []

    async def play(self, peer: Peer) -> None:
        while True:
            self.bodies.append((await peer.request()).partition(b"\r\n\r\n")[2])
            await peer.send(self.answer)


def stream_of(wire: Chat, *, error: bool = False) -> list[bytes]:
    """The events of an answer, or of an error in one, with halves in every text of it."""
    words = [wire.word(f"half{number}") for number in range(len(WORDS))]
    events = [*wire.opening(), *words, *(wire.error() if error else wire.finish() + wire.done())]
    for number, half in enumerate(TEXT.split("|")):
        events = [each.replace(b"half%d" % number, half.encode()) for each in events]
    return [each.replace(b"overloaded", rb"overloaded \ud83d") for each in events]


async def ask(rig: Rig, path: str, body: bytes) -> Stream:
    """A request with exactly this body, and its whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    stream = Stream(reader, writer)
    Stream.opened.append(stream)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return await asyncio.wait_for(stream.read_all(), DEADLINE_S)


def request(model: str, *, stream: bool) -> bytes:
    """A request with halves in a text, in a name, and in what is not looked at."""
    told = TEXT.replace("|", "").encode()
    more = b'"stream":true,' if stream else b'"stream":false,'
    return (
        b'{"model":"%b",%b "messages": [{"role":"user","content":"%b"}] ,"input":"%b",'
        b'"prompt":"\\ud83d","max_tokens":5,"x":{"\\ude00":1e400}}'
    ) % (model.encode(), more, told, told)


@pytest.mark.parametrize("path", STREAMED)
@pytest.mark.parametrize("cut", [0, 7, 1000])
async def test_a_stream_passes_as_it_came(rigs, raw_upstream, path: str, cut: int) -> None:
    """Each event alone, all of them in one read, or in pieces; and the answer is whole."""
    wire = wire_for(path, "m")
    events = stream_of(wire)
    pieces = events if not cut else [b"".join(events)]
    if cut == 7:
        pieces = [pieces[0][at : at + 7] for at in range(0, len(pieces[0]), 7)]
    keeps = Keeps(HEADS[wire.content_type] + chunked(*pieces) + LAST)
    rig = await rigs(await raw_upstream(keeps.play))
    asked = request("m", stream=True)
    answer = await ask(rig, path, asked)
    assert (answer.status, bytes(answer.body), answer.clean) == (200, b"".join(events), True)
    assert rig.relay().run.state.value == "completed"
    assert keeps.bodies == [asked]
    replay = parse_events(bytes((await get(rig.base_url, f"/v1/runs/{answer.run_id}/stream")).body))
    assert b"".join(event.data for event in replay).count(rb"\ud83d") == b"".join(events).count(
        rb"\ud83d"
    )


@pytest.mark.parametrize("path", STREAMED + PLAIN)
async def test_a_request_keeps_its_bytes_when_its_model_changes(
    rigs, raw_upstream, path: str
) -> None:
    """Whatever is replaced in it, the halves arrive as they were sent."""
    whole = json.dumps(wire_for(path, "m").whole()).encode()[:-1] + rb', "y": "\ud83d"}'
    keeps = Keeps(plain(whole))
    upstream = Upstream(name="box", url=(await raw_upstream(keeps.play)).url, ask_usage=True)
    rig = await rigs(upstream, models={"m": ["box/other"]})
    asked = request("m", stream=False)
    answer = await ask(rig, path, asked)
    assert (answer.status, bytes(answer.body)) == (200, whole)
    [sent] = keeps.bodies
    assert json.loads(sent) == {**json.loads(asked), "model": "other"}
    for part in (asked[asked.index(b'[{"role"') : asked.index(b"] ,")], b'{"\\ude00":1e400}'):
        assert part in sent


@pytest.mark.parametrize("path", STREAMED)
async def test_an_error_passes_as_it_came(rigs, raw_upstream, path: str) -> None:
    """As a status of its own, as the first event of a stream, and behind half an answer."""
    wire = wire_for(path, "m")
    refusal = json.dumps(wire.refusal(400, "no \ud83d")).encode()
    broken = stream_of(wire, error=True)
    first = [each.replace(b"overloaded", rb"overloaded \ud83d") for each in wire.error()]
    answers = [
        plain(refusal, b"400 Bad Request"),
        HEADS[wire.content_type] + chunked(*first) + LAST,
        HEADS[wire.content_type] + chunked(*broken) + LAST,
    ]
    for answer in answers:
        rig = await rigs(await raw_upstream(Keeps(answer).play))
        told = await ask(rig, path, request("m", stream=True))
        assert rb"\ud83d" in told.body
        if told.status != 200:
            assert is_json(bytes(told.body))
        assert rig.relay().run.state.value == "failed"
        await rig.gateway.close()


async def test_a_background_response_keeps_them(rigs, raw_upstream) -> None:
    """Its events are numbered anew, and say what they said."""
    events = stream_of(wire_for("/v1/responses", "m"))
    keeps = Keeps(HEADS["text/event-stream"] + chunked(*events) + LAST)
    rig = await rigs(await raw_upstream(keeps.play))
    asked = request("m", stream=True).replace(b'"x":', b'"background":true,"x":')
    answer = await ask(rig, "/v1/responses", asked)
    texts = [json.loads(event.data) for event in parse_events(bytes(answer.body))]
    deltas = [each["delta"] for each in texts if each["type"] == "response.output_text.delta"]
    assert deltas == [json.loads(f'"{half}"') for half in TEXT.split("|")]
    assert [each["sequence_number"] for each in texts] == list(range(len(texts)))
    shown = await get(rig.base_url, f"/v1/responses/{texts[0]['response']['id']}")
    assert shown.json()["status"] == "completed"  # type: ignore[index]
    assert rb"\ud83d" in shown.body


async def test_halves_as_bytes_are_no_text(rigs) -> None:
    """What is not UTF-8 remains malformed: no client could read it."""
    upstream = ScriptedUpstream().start()
    try:
        rig = await rigs(upstream)
        asked = b'{"model":"\xed\xa0\x80","stream":true}'
        answer = await ask(rig, "/v1/chat/completions", asked)
        assert answer.status == 400
    finally:
        upstream.stop()
