"""From a request to a run, and back to its creator: what is refused, what waits, what is told."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from fakes.client import Stream, chat, get, open_chat
from fakes.machine import until
from fakes.upstream import DONE, OK, ScriptedUpstream
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, chunked, plain
from tidegate.core.formats.base import COMMENT as KEEP_ALIVE
from tidegate.core.runs.ledger import Entry
from tidegate.core.settings import Upstream
from tidegate.gateway.server.ids import new_id


def error_of(stream: Stream) -> dict[str, str]:
    """The error of an answer that is one."""
    assert stream.status >= 400
    assert stream.clean
    error = json.loads(stream.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def post(rig: Rig, body: bytes, *fields: str) -> Stream:
    """A request with exactly this body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    stream = Stream(reader, writer)
    Stream.opened.append(stream)
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: 127.0.0.1", *fields]
    writer.write(
        "\r\n".join([*lines, f"Content-Length: {len(body)}"]).encode() + b"\r\n\r\n" + body
    )
    return await asyncio.wait_for(stream.read_all(), DEADLINE_S)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"{}",
        b'{"model":1}',
        b'{"model":null}',
        b'{"model":"m","stream":"yes"}',
        b'{"model":"m"}x',
        b"\xff\xfe",
        b'{"model":"\xff"}',
        b"[" * 100_000,
        b'{"model":' + b'{"a":' * 50_000,
    ],
)
async def test_what_is_no_request_is_a_400(rigs, scripted_upstream, body: bytes) -> None:
    """With a sentence, no run, and a connection that goes on."""
    rig = await rigs(scripted_upstream)
    answer = await post(rig, body)
    assert answer.status == 400
    assert error_of(answer)["code"] == "bad_request"
    assert answer.headers.get("connection") != "close"
    assert (rig.gateway.registry.total, rig.held_bytes) == (0, 0)


async def test_what_we_do_not_understand_is_passed_on(rigs, scripted_upstream) -> None:
    """Absurd values, duplicate keys and unknown ones are the upstream's to judge, byte for byte."""
    rig = await rigs(scripted_upstream)
    body = b'{ "model" : "json", "n": -1, "max_tokens": 9223372036854775808, "n":1e999, "x":[] }'
    assert (await post(rig, body)).status == 200
    assert scripted_upstream.requests[-1].body == body


async def test_only_the_model_is_rewritten(rigs, scripted_upstream) -> None:
    """Every other value keeps its bytes, in its order."""
    rig = await rigs(scripted_upstream, models={"m": ["box/json"]})
    await post(rig, b'{"b":1.50, "model":"m", "a":{"c" : [1e3]}}')
    assert scripted_upstream.requests[-1].body == b'{"b":1.50,"model":"json","a":{"c" : [1e3]}}'


@pytest.mark.parametrize("policy", ["maybe", "cancel;x", "continue,cancel"])
async def test_an_unknown_policy_is_refused(rigs, scripted_upstream, policy: str) -> None:
    """x-on-disconnect has two values."""
    rig = await rigs(scripted_upstream)
    answer = await post(rig, b'{"model":"ok","stream":true}', f"x-on-disconnect: {policy}")
    assert error_of(answer)["code"] == "bad_on_disconnect"
    assert rig.held_bytes == 0


async def test_only_a_stream_can_continue(rigs, scripted_upstream) -> None:
    """A plain answer could not be fetched later."""
    rig = await rigs(scripted_upstream)
    answer = await post(rig, b'{"model":"ok"}', "x-on-disconnect: continue")
    assert "needs stream: true" in error_of(answer)["message"]


async def test_a_body_that_never_fits_into_memory_is_too_large(rigs, scripted_upstream) -> None:
    """413 names the setting, announced or not; one that only does not fit now may come again."""
    rig = await rigs(scripted_upstream, max_body_bytes=1 << 25)
    rig.facts(ledger_limit_bytes=1 << 20)
    body = b'{"model":"ok","x":"' + b"x" * (1 << 19) + b'"}'
    answer = await post(rig, body)
    assert (answer.status, error_of(answer)["code"]) == (413, "body_too_large")
    assert "memory.budget" in error_of(answer)["message"]
    assert "retry-after" not in answer.headers
    packed = gzip.compress(body)
    answer = await post(rig, packed, "Content-Encoding: gzip")
    assert (answer.status, error_of(answer)["code"]) == (413, "body_too_large")
    other = rig.gateway.registry.ledger.open()
    other.set(Entry.BODY, 400_000)
    answer = await post(rig, body[: 1 << 18])
    assert (answer.status, error_of(answer)["code"]) == (503, "memory_limit")
    assert answer.headers["retry-after"] == "5"
    other.close()


async def test_nothing_begins_while_memory_is_shed(rigs, scripted_upstream) -> None:
    """503 with Retry-After while the watchdog says so, whatever the level is."""
    rig = await rigs(scripted_upstream)
    rig.facts(level=3, shed="memory level 3")
    answer = await chat(rig.base_url, "ok")
    assert (answer.status, error_of(answer)["code"]) == (503, "memory_limit")
    assert int(answer.headers["retry-after"]) <= 120
    rig.facts(level=3)
    assert (await chat(rig.base_url, "ok")).status == 200


def test_run_ids_are_not_guessed() -> None:
    """128 bits each, and no two are the same."""
    ids = {new_id("run") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(run_id) == 4 + 32 and run_id.startswith("run_") for run_id in ids)


# --- places and the queue -------------------------------------------------------------------------


class Turnstile:
    """An upstream that lets one answer go at a time, and counts how many are in it."""

    def __init__(self) -> None:
        self.at_once = self.most = 0
        self.order: list[str] = []
        self.gate = asyncio.Semaphore(0)

    async def play(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            self.order.append(json.loads(request.partition(b"\r\n\r\n")[2])["model"])
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            await self.gate.acquire()
            self.at_once -= 1
            await peer.send(HEAD + chunked(*OK) + LAST)


async def test_more_than_it_takes_wait_their_turn(rigs, raw_upstream) -> None:
    """max_concurrent at once, first come first served; all are answered in the end."""
    turnstile = Turnstile()
    upstream = await raw_upstream(turnstile.play)
    rig = await rigs(Upstream(name="box", url=upstream.url, max_concurrent=2))
    streams = []
    for number in range(6):
        streams.append(await open_chat(rig.base_url, f"m{number}"))
        await until(
            lambda n=number: rig.gateway.registry.total == n + 1,  # type: ignore[misc]
            DEADLINE_S,
            "it arrived",
        )
    status = rig.pool().status()
    assert (status.active, status.queued) == (2, 4)
    for number in range(2, 6):
        turnstile.gate.release()
        await until(
            lambda n=number: turnstile.order[n:] == [f"m{n}"],  # type: ignore[misc]
            DEADLINE_S,
            "the next one has its turn",
        )
    turnstile.gate.release()
    turnstile.gate.release()
    for stream in streams:
        assert bytes((await stream.read_all()).body) == b"".join(OK)
    assert turnstile.most == 2
    assert sorted(turnstile.order[:2]) == ["m0", "m1"]


async def test_a_full_queue_is_a_503(rigs, raw_upstream) -> None:
    """With Retry-After; the requests that wait already go on waiting."""
    turnstile = Turnstile()
    upstream = await raw_upstream(turnstile.play)
    rig = await rigs(Upstream(name="box", url=upstream.url, max_concurrent=1), max_queued=1)
    first = await open_chat(rig.base_url, "m")
    second = await open_chat(rig.base_url, "m")
    await until(lambda: rig.pool().status().queued, DEADLINE_S, "the queue is full")
    for stream in (True, False):
        answer = await chat(rig.base_url, "m", stream=stream)
        assert (answer.status, error_of(answer)["code"]) == (503, "queue_full")
        assert int(answer.headers["retry-after"]) <= 120
    turnstile.gate.release()
    turnstile.gate.release()
    for stream in (first, second):
        assert (await stream.read_all()).body[-len(DONE) :] == DONE


async def test_a_busy_upstream_is_no_failing_one(rigs, raw_upstream) -> None:
    """That its queue is full says nothing bad about it."""
    turnstile = Turnstile()
    upstream = await raw_upstream(turnstile.play)
    rig = await rigs(Upstream(name="box", url=upstream.url, max_concurrent=1), max_queued=0)
    turnstile.gate.release()
    await chat(rig.base_url, "m")
    assert rig.pool().state == "ok"
    first = await open_chat(rig.base_url, "m")
    await until(lambda: rig.pool().active, DEADLINE_S, "it is busy")
    assert (await chat(rig.base_url, "m")).status == 503
    assert (rig.pool().state, rig.pool().last_error) == ("ok", None)
    turnstile.gate.release()
    await first.read_all()


async def test_a_place_at_an_equal_is_better_than_a_full_queue(rigs, raw_upstream) -> None:
    """It is asked."""
    turnstile = Turnstile()
    upstream, other = await raw_upstream(turnstile.play), await raw_upstream(Turnstile().play)
    other.play = scripted_ok
    rig = await rigs(
        Upstream(name="box", url=upstream.url, max_concurrent=1),
        Upstream(name="box1", url=other.url),
        models={"both": [["box/m", "box1/m"]]},
        max_queued=0,
    )
    first = await open_chat(rig.base_url, "both")
    await until(lambda: rig.pool().active, DEADLINE_S, "it is busy")
    assert bytes((await chat(rig.base_url, "both")).body) == b"".join(OK)
    turnstile.gate.release()
    await first.read_all()


async def scripted_ok(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(HEAD + chunked(*OK) + LAST)


@pytest.mark.parametrize("hold_s", [5.0, 0.05])
async def test_waiting_too_long_is_told(rigs, raw_upstream, hold_s: float) -> None:
    """queue_s: a 503 that names it, or an error event where the status is out already."""
    turnstile = Turnstile()
    upstream = await raw_upstream(turnstile.play)
    rig = await rigs(
        Upstream(name="box", url=upstream.url, max_concurrent=1),
        queue_s=0.4,
        hold_s=hold_s,
        keepalive_s=0.1,
    )
    first = await open_chat(rig.base_url, "m")
    await until(lambda: rig.pool().active, DEADLINE_S, "it is busy")
    answer = await asyncio.wait_for(chat(rig.base_url, "m"), DEADLINE_S)
    assert b"queue_s = 0.4 s" in answer.body
    if hold_s == 5.0:
        assert (answer.status, error_of(answer)["code"]) == (503, "queue_s")
        assert "retry-after" in answer.headers
    else:
        assert answer.events[-1].error is not None
        assert KEEP_ALIVE in answer.body  # a queued client is not left in silence
    assert rig.pool().status().queued == 0
    turnstile.gate.release()
    await first.read_all()


# --- plain answers --------------------------------------------------------------------------------


async def test_a_plain_answer_comes_whole_with_its_own_bytes(rigs, raw_upstream) -> None:
    """Status, type and body are the upstream's; the run has an id all the same."""
    body = b'{"choices" : []}\n'

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(body, b"201 Made", b"X-Request-Id: 7", b"Set-Cookie: a=b"))
        await peer.hang()

    rig = await rigs(await raw_upstream(play))
    answer = await chat(rig.base_url, "m", stream=False)
    assert (answer.status, bytes(answer.body)) == (201, body)
    assert answer.headers["x-upstream-request-id"] == "7"
    assert answer.headers["x-run-id"].startswith("run_")
    assert answer.headers["x-request-id"] == answer.headers["request-id"]
    assert answer.headers["x-request-id"] == answer.headers["x-run-id"]
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_large_plain_answer_has_a_bound(rigs, raw_upstream, framing: str) -> None:
    """max_body, however it is framed; nothing of it stays."""

    async def play(peer: Peer) -> None:
        await peer.request()
        head = {
            "length": b"Content-Length: 10000000\r\n",
            "chunked": b"Transfer-Encoding: chunked\r\n",
            "close": b"",
        }
        await peer.send(b"HTTP/1.1 200 OK\r\n" + head[framing] + b"\r\n")
        for _ in range(100):
            piece = b"x" * 100_000
            await peer.send(chunked(piece) if framing == "chunked" else piece)

    rig = await rigs(await raw_upstream(play), max_body_bytes=1_000_000)
    answer = await chat(rig.base_url, "m", stream=False)
    assert answer.status == 502
    assert error_of(answer)["code"] == "answer_too_large"
    await until(lambda: not rig.gateway.registry.ledger.accounts, DEADLINE_S, "no byte is held")


async def test_a_plain_answer_cut_short_is_no_answer(rigs, raw_upstream) -> None:
    """502, never half a body."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(b"x" * 100)[:-1])

    rig = await rigs(await raw_upstream(play))
    answer = await chat(rig.base_url, "m", stream=False)
    assert answer.status == 502
    assert "closed the connection" in error_of(answer)["message"]


async def test_a_plain_answer_waits_for_total_s_only(rigs, raw_upstream) -> None:
    """It is its own first output; total_s is a 504 by name."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.hang()

    rig = await rigs(await raw_upstream(play), first_output_s=0.05, idle_s=0.05, total_s=0.6)
    answer = await asyncio.wait_for(chat(rig.base_url, "m", stream=False), DEADLINE_S)
    assert answer.status == 504
    assert "total_s = 0.6 s" in error_of(answer)["message"]


async def test_an_endless_error_is_cut(rigs, raw_upstream) -> None:
    """Of an error's body we take 256 KiB, and let go of an upstream that sends more."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 400 X\r\n\r\n")
        while True:
            await peer.send(b"x" * 65536)

    upstream = await raw_upstream(play)
    rig = await rigs(upstream)
    for stream in (True, False):
        answer = await asyncio.wait_for(chat(rig.base_url, "m", stream=stream), DEADLINE_S)
        assert answer.status == 400
        assert "too large to pass on" in error_of(answer)["message"]  # half of it is no JSON
    await until(lambda: not upstream.open_connections, DEADLINE_S, "it is let go")


async def test_a_client_that_reads_no_plain_answer_is_dropped(rigs, raw_upstream) -> None:
    """After stall_s; what it did not read is given back."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(b'"' + b"x" * 8_000_000 + b'"'))
        await peer.hang()

    rig = await rigs(await raw_upstream(play), stall_s=1.0)
    stream = await open_chat(rig.base_url, "m", stream=False, receive_buffer=16 * 1024)
    ledger = rig.gateway.registry.ledger
    await until(lambda: ledger.statistics()["outbound"] > 1_000_000, DEADLINE_S, "it is outbound")
    await until(lambda: not ledger.accounts, DEADLINE_S, "it is dropped")
    assert not (await stream.read_all()).clean


# --- the creator ----------------------------------------------------------------------------------


async def test_a_cancelled_creator_without_a_status_gets_one(rigs, raw_upstream) -> None:
    """409, and not to be tried again; streamed or plain."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.hang()

    rig = await rigs(await raw_upstream(play))
    for stream in (True, False):
        client = await open_chat(rig.base_url, "m", stream=stream)
        await until(lambda: rig.gateway.registry.active_count, DEADLINE_S, "it is there")
        run = rig.relay().run
        shown = await get(rig.base_url, f"/v1/runs/{run.id}/cancel", method="POST")
        assert shown.json()["state"] == "cancelled"  # type: ignore[index]
        answer = await client.read_all()
        assert (answer.status, error_of(answer)["code"]) == (409, "cancelled")
        assert answer.headers["x-should-retry"] == "false"


async def test_a_failed_answer_is_not_kept_when_no_reader_waits_for_it(rigs, raw_upstream) -> None:
    """The upstream's error body goes with the creator that it was for."""
    go_on = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await go_on.wait()
        await peer.send(plain(b"x" * 100_000, b"400 X"))
        await peer.hang()

    rig = await rigs(await raw_upstream(play), disconnect_grace_s=60.0)
    client = await open_chat(rig.base_url, "m")
    await until(lambda: rig.gateway.registry.active_count, DEADLINE_S, "it is there")
    relay = rig.relay()
    await client.vanish()
    await until(lambda: not relay.subscribers, DEADLINE_S, "its creator has gone")
    go_on.set()
    await until(lambda: relay.run.is_over, DEADLINE_S, "it has failed")
    assert relay.answer is None


async def test_a_client_that_is_gone_before_its_run_begins_leaves_none(
    rigs, scripted_upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run is registered that would never end."""
    from tidegate.gateway.api import create

    def gone(*_: object) -> None:
        raise ConnectionResetError("the client is gone")

    rigs.road = "ordinary"  # there a run begins in the very read that brought its request
    rig = await rigs(scripted_upstream)
    monkeypatch.setattr(create, "ResponseWriter", gone)
    stream = await open_chat(rig.base_url, "ok")
    await asyncio.wait_for(stream.reader.read(), DEADLINE_S)
    registry = rig.gateway.registry
    assert (registry.active_count, rig.held_bytes) == (0, 0)
    rig.errors.clear()  # this client is not really gone, which is worth a line


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("ended", [LAST, b""], ids=["ended", "cut"])
async def test_of_several_choices_one_finish_reason_ends_nothing(
    rigs, raw_upstream, n: int, ended: bytes
) -> None:
    """Where one choice is asked for it is the end; where there are two, only the marker is."""
    events = OK[:-1]  # up to the finish_reason, without the marker

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(*events) + ended)

    rig = await rigs(await raw_upstream(play))
    answer = await chat(rig.base_url, "m", n=n)
    assert answer.clean
    if n == 1:
        assert bytes(answer.body) == b"".join(events)
    else:
        assert [each.raw for each in answer.events[:-1]] == events
        assert answer.events[-1].error is not None
