"""Images and sound: forms in, bytes and typed events out, and no broken answer that looks whole."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import ClientSession, FormData

from fakes.client import Stream, get, parse_events
from fakes.machine import until
from gateway.gateway_rig import DEADLINE_S, LAST, Peer, Rig, chunked, plain
from gateway.gateway_rig import HEAD as EVENTS_HEAD
from tidegate.core.runs.ledger import Entry, Ledger
from tidegate.core.runs.state import RunState
from tidegate.core.settings import MIB, Limits
from tidegate.gateway.relay.handover import pack, unpack

ON_BOTH_LOOPS = True
SPEECH = "/v1/audio/speech"
SOUND = bytes(range(256)) * 16
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: %d\r\n\r\n" % len(SOUND)
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nConnection: close\r\n\r\n"
TWO = {"both": ["box/big", "box1/big"]}


def sends(*pieces: bytes, hang: bool = True):
    """A play: answers one request with these pieces; then it hangs, or closes."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)
        if hang:
            await peer.hang()

    return play


async def resets(peer: Peer) -> None:
    await peer.request()
    peer.reset()


def sends_then(first: bytes, rest: bytes, *, hang: bool = True):
    """A play that sends the rest when `go` is set, and the event."""
    go = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(first)
        await go.wait()
        await peer.send(rest)
        if hang:
            await peer.hang()

    return play, go


async def speak(rig: Rig, model: str = "m", **more: Any) -> Stream:
    return await get(rig.base_url, SPEECH, {"model": model, "input": "hello", **more})


# --- sound ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "hang", "length"),
    [
        ((SIZED + SOUND,), True, len(SOUND)),
        ((CHUNKED + chunked(SOUND[:999], SOUND[999:]) + LAST,), True, None),
        ((CHUNKED, chunked(SOUND[:1]), chunked(SOUND[1:]), LAST), True, None),
        ((UNTIL_CLOSE, SOUND), False, None),
        ((SIZED.replace(b"audio/mpeg", b"application/octet-stream") + SOUND,), True, len(SOUND)),
    ],
    ids=["sized", "chunked", "in-pieces", "until-close", "octets"],
)
async def test_a_speech_arrives_as_it_was_made(
    rigs, raw_upstream, pieces: tuple[bytes, ...], hang: bool, length: int | None
) -> None:
    """Every byte, the content type, the length where it is known; nothing is kept of it."""
    rig: Rig = await rigs(await raw_upstream(sends(*pieces, hang=hang)))
    answer = await speak(rig)
    assert (answer.status, bytes(answer.body), answer.clean) == (200, SOUND, True)
    expected = "application/octet-stream" if b"octet" in pieces[0] else "audio/mpeg"
    assert answer.headers["content-type"] == expected
    assert answer.headers.get("content-length") == (str(length) if length else None)
    assert answer.headers["x-run-id"].startswith("run_")
    await rig.idle()
    assert rig.gateway.registry.finished_count == 0
    assert rig.held_bytes == 0


async def test_sound_is_heard_while_it_is_made(rigs, raw_upstream) -> None:
    """The first bytes are the client's before the last ones exist."""
    play, go = sends_then(CHUNKED + chunked(SOUND), chunked(SOUND) + LAST)
    rig = await rigs(await raw_upstream(play))
    stream = await Stream.open(rig.base_url, SPEECH, {"model": "m"})
    pieces = stream.pieces()
    assert await anext(pieces) == SOUND
    assert rig.relay().run.state is RunState.STREAMING
    go.set()
    assert b"".join([piece async for piece in pieces]) == SOUND
    assert stream.clean


@pytest.mark.parametrize(
    ("first", "rest", "hang"),
    [
        (CHUNKED + chunked(SOUND), b"", False),
        (CHUNKED + chunked(SOUND), b"1000\r\nhalf a chunk", False),
        (CHUNKED + chunked(SOUND), b"this is no chunk\r\n", True),
        (SIZED + SOUND[:100], b"", False),
        (SIZED + SOUND[:100], SOUND[100:-1], False),
        (CHUNKED + chunked(SOUND), b"", True),
    ],
    ids=["cut", "cut-inside", "garbage", "too-short", "one-byte-short", "idle"],
)
async def test_what_broke_off_breaks_the_connection(
    rigs, raw_upstream, first: bytes, rest: bytes, hang: bool
) -> None:
    """There is no other way to say it: never a clean end."""
    play, go = sends_then(first, rest, hang=hang)
    rig = await rigs(await raw_upstream(play), idle_s=0.3)
    stream = await Stream.open(rig.base_url, SPEECH, {"model": "m"})
    await stream.head()
    run = rig.relay().run
    go.set()
    await stream.read_all()
    assert stream.status == 200
    assert not stream.clean
    assert run.state in {RunState.FAILED, RunState.EXPIRED}


@pytest.mark.parametrize("whole", [True, False])
async def test_for_a_client_of_http_1_0_the_connection_is_the_end(
    rigs, raw_upstream, whole: bool
) -> None:
    """It knows no chunks: closed means whole, so what broke off is reset."""
    play, go = sends_then(CHUNKED + chunked(SOUND), LAST if whole else b"", hang=whole)
    rig = await rigs(await raw_upstream(play))
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    body = b'{"model":"m"}'
    writer.write(
        b"POST %b HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
        % (SPEECH.encode(), len(body), body)
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"chunked" not in head
    assert await reader.readexactly(len(SOUND)) == SOUND
    go.set()
    if whole:
        assert await reader.read() == b""
    else:
        with pytest.raises(ConnectionResetError):
            await reader.read()
    writer.close()


@pytest.mark.parametrize(
    "play",
    [
        resets,
        sends(CHUNKED, hang=False),
        sends(plain(b'{"error":{"message":"busy"}}', b"503 X")),
        sends(plain(b'{"error":{"message":"busy","code":503}}')),
    ],
    ids=["reset", "head-only", "503", "error-in-200"],
)
async def test_before_the_first_sound_the_next_one_is_asked(rigs, raw_upstream, play) -> None:
    """A failure that no client was told of is none."""
    second = await raw_upstream(sends(SIZED + SOUND))
    rig = await rigs(await raw_upstream(play), second, models=TWO)
    answer = await speak(rig, "both")
    assert (answer.status, bytes(answer.body)) == (200, SOUND)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (plain(b'{"error":{"message":"no such voice"}}', b"400 X"), 400),
        (plain(b'{"error":{"message":"no such voice","code":400}}'), 400),
        (plain(b'{"url":"somewhere"}'), 200),
        (plain(b"<html>", b"502 X"), 502),
        (b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 0\r\n\r\n", 200),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
    ],
    ids=["refused", "refused-in-200", "json", "html", "nothing", "204"],
)
async def test_what_is_no_sound_comes_whole(rigs, raw_upstream, answer: bytes, status: int) -> None:
    """With its own status and words."""
    rig = await rigs(await raw_upstream(sends(answer)))
    heard = await speak(rig)
    assert (heard.status, heard.clean or status == 204) == (status, True)


async def test_a_client_that_goes_cancels(rigs, raw_upstream) -> None:
    """Before the first sound as in the middle of it."""
    for pieces in ((), (CHUNKED + chunked(SOUND),)):
        upstream = await raw_upstream(sends(*pieces))
        rig = await rigs(upstream)
        stream = await Stream.open(rig.base_url, SPEECH, {"model": "m"})
        await until(lambda upstream=upstream: upstream.peers, DEADLINE_S, "it is asked")
        if pieces:
            await stream.head()
        await stream.vanish()
        await until(lambda upstream=upstream: upstream.peers[0].gone, DEADLINE_S, "it is let go")
        assert rig.relay().run.state is RunState.CANCELLED
        assert rig.relay().run.window.held_bytes == 0


async def test_a_slow_listener_slows_the_upstream_and_loses_nothing(rigs, raw_upstream) -> None:
    """32 MB through a window of a quarter of a MiB."""
    piece = SOUND * 64
    most = 0

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        for _ in range(128):
            await peer.send(chunked(piece))
        await peer.send(LAST)
        await peer.hang()

    rig = await rigs(await raw_upstream(play), window_bytes=MIB // 4)
    stream = await Stream.open(rig.base_url, SPEECH, {"model": "m"}, receive_buffer=16_384)
    await stream.head()
    run = rig.relay().run
    await until(lambda: run.paused_s is not None, DEADLINE_S, "the upstream waits")
    async for _ in stream.pieces():
        most = max(most, run.account.entries[Entry.WINDOW])
        stream.body.clear()
    assert stream.clean
    assert sum(stream.chunks) == 128 * len(piece)
    assert most < MIB


async def test_a_listener_who_hears_nothing_is_dropped(rigs, raw_upstream) -> None:
    """By stall_s, as every reader; what it kept is given back."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        while True:
            await peer.send(chunked(SOUND * 64))

    rig = await rigs(await raw_upstream(play), stall_s=0.3)
    stream = await Stream.open(rig.base_url, SPEECH, {"model": "m"}, receive_buffer=16_384)
    await stream.head()
    await until(lambda: rig.relay().run.is_over, DEADLINE_S, "it is over")
    await stream.read_all()
    assert not stream.clean


async def test_total_s_ends_a_speech_that_never_ends(rigs, raw_upstream) -> None:
    """However busily it goes on."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        while True:
            await peer.send(chunked(SOUND))
            await asyncio.sleep(0.01)

    rig = await rigs(await raw_upstream(play), total_s=0.5)
    stream = await Stream.open(rig.base_url, SPEECH, {"model": "m"})
    await stream.head()
    run = rig.relay().run
    await stream.read_all()
    assert (stream.status, stream.clean) == (200, False)
    assert run.error_code == "total_s"


async def test_a_cancelled_speech_breaks_off_and_cannot_be_resumed(rigs, raw_upstream) -> None:
    """It is a run like any other, but has no events to go on from."""
    rig = await rigs(await raw_upstream(sends(CHUNKED + chunked(SOUND))))
    stream = await Stream.open(rig.base_url, SPEECH, {"model": "m"})
    run_id = (await stream.head()).run_id
    assert (await get(rig.base_url, f"/v1/runs/{run_id}/stream")).status == 400
    cancelled = await get(rig.base_url, f"/v1/runs/{run_id}/cancel", {})
    assert cancelled.json()["state"] == "cancelled"  # type: ignore[index]
    await stream.read_all()
    assert not stream.clean


# --- typed events ---------------------------------------------------------------------------------


def event(kind: str, **values: object) -> bytes:
    data = json.dumps({"type": kind, **values}).encode()
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


STREAMS = {
    "/v1/images/generations": [
        event("image_generation.partial_image", b64_json="iVBOR"),
        event("image_generation.completed", b64_json="iVBOR"),
    ],
    "/v1/audio/transcriptions": [
        event("transcript.text.delta", delta="a"),
        event("transcript.text.done", text="a"),
    ],
    SPEECH: [event("speech.audio.delta", audio="SUQz"), event("speech.audio.done", usage={})],
}
EACH = pytest.mark.parametrize("path", list(STREAMS))
ASKING = {"stream": True, "stream_format": "sse"}


@EACH
@pytest.mark.parametrize("more", [b"", b"data: [DONE]\n\n"], ids=["", "marker"])
async def test_events_pass_as_they_come(rigs, raw_upstream, path: str, more: bytes) -> None:
    """With their bytes unchanged, the marker included where there is one; a run to resume."""
    events = [*STREAMS[path], *([more] if more else [])]
    play, go = sends_then(EVENTS_HEAD + chunked(events[0]), chunked(*events[1:]) + LAST)
    rig = await rigs(await raw_upstream(play))
    stream = await Stream.open(rig.base_url, path, {"model": "m", **ASKING})
    assert [each.raw for each in await stream.read_events(1)] == events[:1]
    go.set()
    await stream.read_rest()
    assert (bytes(stream.body), stream.clean) == (b"".join(events), True)
    assert rig.relay().run.state is RunState.COMPLETED
    replay = await get(rig.base_url, f"/v1/runs/{stream.run_id}/stream?starting_after=0")
    assert [each.name for each in parse_events(bytes(replay.body))][:1] == [
        parse_events(events[1])[0].name
    ]


@pytest.mark.parametrize(
    ("number", "rest", "whole"), [(1, b"", True), (2, LAST, True), (2, b"", False)]
)
async def test_one_of_two_images_is_no_answer(
    rigs, raw_upstream, number: int, rest: bytes, whole: bool
) -> None:
    """A connection that is lost behind a finished image has lost the others."""
    events = STREAMS["/v1/images/generations"]
    play, go = sends_then(EVENTS_HEAD + chunked(*events), rest, hang=False)
    rig = await rigs(await raw_upstream(play))
    stream = await Stream.open(
        rig.base_url, "/v1/images/generations", {"model": "m", "n": number, "stream": True}
    )
    await stream.head()
    go.set()
    await stream.read_rest()
    assert [each.raw for each in stream.events[:2]] == events
    assert (stream.events[-1].error is None) is whole


@EACH
@pytest.mark.parametrize("rest", [LAST, b""], ids=["ended", "cut"])
async def test_events_that_broke_off_end_in_an_error(
    rigs, raw_upstream, path: str, rest: bytes
) -> None:
    """However cleanly the upstream ended: what is not completed is broken."""
    first = STREAMS[path][0]
    play, go = sends_then(EVENTS_HEAD + chunked(first), rest, hang=False)
    rig = await rigs(await raw_upstream(play))
    stream = await Stream.open(rig.base_url, path, {"model": "m", **ASKING})
    await stream.head()
    go.set()
    await stream.read_rest()
    *before, last = stream.events
    assert [each.raw for each in before] == [first]
    assert last.error is not None
    assert last.error["type"] == "upstream_error"


@EACH
async def test_a_run_of_events_can_be_handed_over(rigs, raw_upstream, path: str) -> None:
    """The other generation reads it as what it is, a speech as well."""
    events = STREAMS[path]
    rig = await rigs(await raw_upstream(sends(EVENTS_HEAD + chunked(*events) + LAST)))
    await get(rig.base_url, path, {"model": "m", **ASKING})
    run = rig.relay().run
    other = unpack(pack(run), Ledger(), Limits(), 0.0)
    assert (other.state, other.format.framing) == (RunState.COMPLETED, run.format.framing)
    assert other.window.last_events(2) == events
    other.release()


@EACH
async def test_an_error_event_at_once_is_a_status(rigs, raw_upstream, path: str) -> None:
    """As for every stream."""
    said = event("error", error={"type": "rate_limit_exceeded", "message": "m"})
    rig = await rigs(await raw_upstream(sends(EVENTS_HEAD + chunked(said) + LAST)))
    assert (await get(rig.base_url, path, {"model": "m", **ASKING})).status == 429


# --- forms ----------------------------------------------------------------------------------------


class Heard:
    """A play that keeps the request, and answers with `answer`."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.head = self.body = b""

    async def play(self, peer: Peer) -> None:
        while True:
            self.head, _, self.body = (await peer.request()).partition(b"\r\n\r\n")
            await peer.send(self.answer)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/images/edits",
        "/v1/images/variations",
    ],
)
async def test_a_form_passes_with_its_model_s_real_name(rigs, raw_upstream, path: str) -> None:
    """The alias is replaced inside the form; the file keeps its bytes, the head its boundary."""
    heard = Heard(plain(b'{"text":"hello"}'))
    rig = await rigs(await raw_upstream(heard.play), models={"fast": ["box/large-v3"]})
    form = FormData()
    form.add_field("file", SOUND, filename='a"; name="model".wav', content_type="audio/wav")
    form.add_field("model", "fast")
    form.add_field("response_format", "json")
    async with (
        ClientSession() as session,
        session.post(rig.base_url + path, data=form) as answer,
    ):
        assert (answer.status, await answer.json()) == (200, {"text": "hello"})
    content_type = next(
        line for line in heard.head.split(b"\r\n") if line.lower().startswith(b"content-type:")
    )
    boundary = content_type.partition(b"boundary=")[2].strip(b'"')
    assert heard.body.count(b"--" + boundary) == 4
    assert b"\r\n\r\nlarge-v3\r\n--" in heard.body
    assert b"fast" not in heard.body
    assert SOUND in heard.body


async def test_a_form_may_ask_for_a_stream(rigs, raw_upstream) -> None:
    """`stream` is a field of it; the answer comes as events."""
    events = STREAMS["/v1/audio/transcriptions"]
    heard = Heard(EVENTS_HEAD + chunked(*events) + LAST)
    rig = await rigs(await raw_upstream(heard.play))
    form = FormData({"model": "m", "stream": "true"})
    form.add_field("file", SOUND, filename="a.wav")
    async with (
        ClientSession() as session,
        session.post(f"{rig.base_url}/v1/audio/transcriptions", data=form) as answer,
    ):
        assert answer.content_type == "text/event-stream"
        assert await answer.read() == b"".join(events)
    assert b"\r\nAccept: text/event-stream" in heard.head


@pytest.mark.parametrize("content_type", ["text/plain; charset=utf-8", "application/x-subrip"])
async def test_a_transcription_is_in_whatever_form_was_asked_for(
    rigs, raw_upstream, content_type: str
) -> None:
    """Plain text and subtitles are no JSON, and need not be."""
    body = b"1\n00:00:00,000 --> 00:00:01,000\nhello\n"
    answer = plain(body).replace(b"application/json", content_type.encode())
    rig = await rigs(await raw_upstream(sends(answer)))
    got = await get(rig.base_url, "/v1/audio/transcriptions", {"model": "m"})
    assert (bytes(got.body), got.headers["content-type"]) == (body, content_type)


async def test_a_form_that_breaks_off_is_refused_before_anybody_is_asked(
    rigs, raw_upstream
) -> None:
    """400, with the reason in a sentence."""
    upstream = await raw_upstream(sends())
    rig = await rigs(upstream)
    headers = {"Content-Type": "multipart/form-data; boundary=abc"}
    async with (
        ClientSession() as session,
        session.post(
            f"{rig.base_url}/v1/audio/transcriptions", data=b"--abc\r\n", headers=headers
        ) as answer,
    ):
        assert answer.status == 400
        assert "breaks off" in (await answer.json())["error"]["message"]
    assert not upstream.peers
