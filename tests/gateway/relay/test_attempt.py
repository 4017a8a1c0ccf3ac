"""One try at an upstream: the request that it is sent, its own words, and what stays of them."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from fakes.client import Stream, get, open_chat
from fakes.machine import until
from fakes.upstream import DONE, OK, ROLE, chunk
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, chunked, plain
from gateway.relay.relay_rig import always, chat, sends, whole
from tidegate.core.protocol.lines import MAX_LINE_BYTES
from tidegate.core.protocol.worker import RunList, encode
from tidegate.core.runs.ledger import RECORD_BYTES, Entry
from tidegate.core.runs.state import RunState
from tidegate.gateway.relay.summaries import summarise

ON_BOTH_LOOPS = True


# --- the request's body ---------------------------------------------------------------------------


def large_question(stream: bool) -> bytes:
    """8 MiB for an alias, so that the model's name is replaced in it."""
    text = b"x" * (8 * 1024 * 1024)
    head = b'{"model":"big","stream":%b,' % (b"true" if stream else b"false")
    return head + b'"messages":[{"role":"user","content":"' + text + b'"}]}'


async def ask_largely(rig: Rig, body: bytes) -> Stream:
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    stream = Stream(reader, writer)
    Stream.opened.append(stream)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    await writer.drain()
    return stream


async def test_a_body_is_charged_until_its_upstream_has_taken_it(rigs, raw_upstream) -> None:
    """Also behind the first output, after which no further attempt needs it."""
    may_read = asyncio.Event()
    read = b""

    async def play(peer: Peer) -> None:
        nonlocal read
        peer.writer.transport.pause_reading()
        await peer.send(HEAD + chunked(*OK[:-1]))
        await may_read.wait()
        peer.writer.transport.resume_reading()
        read = await peer.request()
        await peer.send(chunked(OK[-1]) + LAST)
        await peer.hang()

    rig = await rigs(await raw_upstream(play), models={"big": ["box/other"]})
    body = large_question(stream=True)
    stream = await ask_largely(rig, body)
    entries = rig.gateway.registry.ledger.entries
    await until(
        lambda: (
            rig.gateway.registry.active_count == 1 and rig.relay().run.state is RunState.STREAMING
        ),
        DEADLINE_S,
        "the answer has begun",
    )
    assert rig.relay().run.body == b""
    assert len(body) <= entries[Entry.BODY] <= len(body) + 512 * 1024
    may_read.set()
    await until(lambda: not entries[Entry.BODY], DEADLINE_S, "all is sent, and not charged")
    await asyncio.wait_for(stream.read_all(), DEADLINE_S)
    assert told_whole(stream)
    assert read.partition(b"\r\n\r\n")[2] == body.replace(b'"big"', b'"other"')


def told_whole(stream: Stream) -> bool:
    return stream.clean and stream.body.endswith(DONE)


async def test_a_failover_sends_the_body_again_from_its_beginning(rigs, raw_upstream) -> None:
    """The first upstream read a part of it and broke; the second one has all of it."""
    read = b""

    async def breaks(peer: Peer) -> None:
        await peer.reader.readexactly(100_000)
        peer.reset()

    async def reads(peer: Peer) -> None:
        nonlocal read
        read = await peer.request()
        await peer.send(HEAD + chunked(*OK) + LAST)
        await peer.hang()

    rig = await rigs(
        await raw_upstream(breaks),
        await raw_upstream(reads),
        models={"big": ["box/first", "box1/second"]},
    )
    body = large_question(stream=True)
    stream = await ask_largely(rig, body)
    await asyncio.wait_for(stream.read_all(), DEADLINE_S)
    assert told_whole(stream)
    assert read.partition(b"\r\n\r\n")[2] == body.replace(b'"big"', b'"second"')
    assert rig.gateway.registry.ledger.entries[Entry.BODY] == 0


async def test_a_large_answer_waits_in_one_copy_that_is_charged(rigs, raw_upstream) -> None:
    """A client that does not read it holds its bytes once, and a slice in its transport."""
    answer = b'{"data":"' + b"y" * (8 * 1024 * 1024) + b'"}'
    rig = await rigs(await raw_upstream(always(plain(answer))), models={"big": ["box/other"]})
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.transport.pause_reading()
    body = b'{"model":"big","messages":[]}'
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    writer.write(b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    entries = rig.gateway.registry.ledger.entries
    await until(lambda: bool(entries[Entry.OUTBOUND]), DEADLINE_S, "it is being written")
    assert len(answer) <= entries[Entry.OUTBOUND] <= len(answer) + 512 * 1024
    (connection,) = rig.gateway.server.connections
    assert connection.transport.get_write_buffer_size() <= 256 * 1024
    writer.transport.resume_reading()
    whole = await asyncio.wait_for(reader.read(), DEADLINE_S)
    assert whole.partition(b"\r\n\r\n")[2] == answer
    writer.close()
    await rig.idle()
    assert entries[Entry.OUTBOUND] == 0


# --- what an upstream says of itself --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["compressed", "endless"])
async def test_a_refusal_that_nobody_could_read_is_told_in_our_words(
    rigs, raw_upstream, kind: str
) -> None:
    """Half a JSON text, or one that is still compressed, would break the caller's library."""
    body = json.dumps({"error": {"message": "x" * 400_000}}).encode()
    more = ""
    if kind == "compressed":
        body, more = gzip.compress(body), "Content-Encoding: gzip\r\n"
    head = (
        f"HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"x-request-id: theirs\r\n{more}\r\n"
    )
    rig = await rigs(await raw_upstream(sends(head.encode(), body)))
    answer = await chat(rig.base_url, "m", stream=False)
    assert answer.status == 400
    error = json.loads(answer.body)["error"]
    assert error["message"].startswith('upstream "box" refused with 400')
    assert "compressed or too large" in error["message"]
    assert answer.headers["x-upstream-request-id"] == "theirs"
    assert answer.headers["content-type"] == "application/json"


async def test_an_error_in_the_middle_does_not_tell_the_key(rigs, raw_upstream) -> None:
    """The key is hidden where the upstream reports an error, and nowhere else is a word changed."""
    word = chunk(content="how to use ollama")
    error = b'data: {"error":{"message":"wrong key: ollama"}}\n\n'
    rig = await rigs(
        await raw_upstream(sends(HEAD + chunked(ROLE, word, error) + LAST)),
        secrets={"box": "ollama"},
    )
    answer = await chat(rig.base_url, "m")
    assert word in answer.body
    assert b"wrong key: ***" in answer.body
    replay = await get(rig.base_url, f"/v1/runs/{answer.run_id}/stream")
    assert b"wrong key: ***" in replay.body
    assert b"wrong key: ollama" not in replay.body


# --- what stays of heads --------------------------------------------------------------------------


async def test_heads_are_charged_while_they_are_kept(rigs, raw_upstream) -> None:
    """Those of the client that are passed on and those of the upstream go with the answer's end."""
    go_on = asyncio.Event()
    long = b"x-ratelimit-long: " + b"y" * 40_000

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD[:-2] + long + b"\r\n\r\n" + chunked(*OK[:-1]))
        await go_on.wait()
        await peer.send(chunked(OK[-1]) + LAST)
        await peer.hang()

    rig = await rigs(await raw_upstream(play))
    entries = rig.gateway.registry.ledger.entries
    stream = await open_chat(rig.base_url, "m")
    await stream.read_events(1)
    assert entries[Entry.RECORD] > RECORD_BYTES + 35_000
    go_on.set()
    await asyncio.wait_for(stream.read_rest(), DEADLINE_S)
    await rig.idle()
    assert entries[Entry.RECORD] == RECORD_BYTES
    assert rig.gateway.registry.finished_count == 1


async def test_a_models_name_that_is_a_novel_is_refused(rigs, raw_upstream) -> None:
    """It would stay with its run, in no account, and make lines that the watchdog cannot read."""
    rig = await rigs(await raw_upstream(whole))
    answer = await chat(rig.base_url, "m" * 1025)
    assert answer.status == 400
    assert "1024 characters" in json.loads(answer.body)["error"]["message"]
    assert (await chat(rig.base_url, "\x01" * 1024)).status == 200
    listed = [summarise(rig.relay(), {"": "n" * 64})] * 1000
    assert len(encode(RunList(request=1, runs=listed, total=1000))) < MAX_LINE_BYTES
