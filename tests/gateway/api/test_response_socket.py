"""Responses over WebSocket: one answer after another, what is kept, and how errors are told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from fakes.machine import until
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, chunked, plain, scoped
from gateway.responses_rig import (
    CREATED,
    DONE,
    PATH,
    WORDS,
    ask,
    event,
    response,
    sends,
    told,
)
from tidegate.core.runs.ledger import Entry

MIB = 1024 * 1024


def create(**values: object) -> str:
    return json.dumps({"type": "response.create", "model": "m", "input": "hi", **values})


async def turn(socket: aiohttp.ClientWebSocketResponse) -> list[dict[str, Any]]:
    """The messages of one answer, to its last."""
    told = []
    while True:
        told.append(json.loads((await socket.receive(DEADLINE_S)).data))
        if told[-1]["type"] in {"response.completed", "response.failed", "error"}:
            return told


class Talk:
    """A WebSocket for a test, which is closed behind it."""

    def __init__(self, rig: Rig, **options: Any) -> None:
        self._url, self._options = rig.base_url + PATH, options

    async def __aenter__(self) -> aiohttp.ClientWebSocketResponse:
        self._session = aiohttp.ClientSession()
        try:
            self.socket = await self._session.ws_connect(self._url, **self._options)
        except BaseException:
            await self._session.close()
            raise
        return self.socket

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()
        await self._session.close()


async def test_a_websocket_has_one_answer_after_another(rigs, raw_upstream) -> None:
    """Each event is a message; each answer is a run, in the order of the questions."""
    rig = await rigs(await raw_upstream(sends(CREATED, *WORDS, DONE + b"data: [DONE]\n\n")))
    async with Talk(rig) as socket:
        for _ in range(3):
            await socket.send_str(create())
        for _ in range(3):
            kinds = [each["type"] for each in await turn(socket)]
            assert kinds == [
                "response.created",
                *["response.output_text.delta"] * 3,
                "response.completed",
            ]
    assert rig.gateway.registry.total == 3
    assert told(await ask(rig, "/resp_theirs"))["status"] == "completed"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "bad_request"),
        ("[]", "bad_request"),
        ("{}", "unknown_type"),
        ('{"type":"response.cancel"}', "unknown_type"),
        ('{"type":7}', "unknown_type"),
        ('{"type":"response.create"}', "bad_request"),
        (create(model="box/x", stream_options=1, input="\ud800"), None),
    ],
)
async def test_a_message_that_is_none_is_refused_and_the_next_is_answered(
    rigs, raw_upstream, message: str, code: str | None
) -> None:
    """With its status and the error object that an answer over HTTP would have."""
    rig = await rigs(await raw_upstream(sends(CREATED, *WORDS, DONE)))
    async with Talk(rig) as socket:
        await socket.send_str(message)
        *_, last = await turn(socket)
        if code is not None:
            assert (last["type"], last["status"]) == ("error", 400)
            assert last["error"]["code"] == code
        await socket.send_str(create())
        assert (await turn(socket))[-1]["type"] == "response.completed"


async def test_a_token_counts_at_each_question(rigs, raw_upstream) -> None:
    """On a connection that was let in before, one that is revoked or for less now asks no model."""
    rig = await rigs(
        await raw_upstream(sends(CREATED, *WORDS, DONE)),
        tokens=[scoped("tg-one"), scoped("tg-two")],
    )
    async with Talk(rig, headers={"Authorization": "Bearer tg-one"}) as socket:
        for tokens, expected in (
            ([scoped("tg-one")], "response.completed"),
            ([scoped("tg-two")], "invalid_api_key"),
            ([scoped("tg-one", "read")], "scope_not_allowed"),
            ([scoped("tg-one")], "response.completed"),
        ):
            rig.tokens = tokens
            rig.reload(rig.settings)
            await socket.send_str(create())
            *_, last = await turn(socket)
            assert expected == last.get("error", {}).get("code", last["type"])
    assert rig.gateway.registry.total == 2


async def test_an_upstreams_refusal_has_its_status(rigs, raw_upstream) -> None:
    """In its own words."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(b'{"error":{"message":"no","code":"theirs"}}', b"422 No"))

    rig = await rigs(await raw_upstream(play))
    async with Talk(rig) as socket:
        await socket.send_str(create())
        assert await turn(socket) == [
            {"type": "error", "status": 422, "error": {"message": "no", "code": "theirs"}}
        ]


async def test_an_answer_that_breaks_off_says_so(rigs, raw_upstream) -> None:
    """By one message, so that a client that asks again reads the answer to its new question."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD, chunked(CREATED, *WORDS))
        peer.reset()

    rig = await rigs(await raw_upstream(play))
    async with Talk(rig) as socket:
        await socket.send_str(create())
        *words, failed = await turn(socket)
        assert failed["type"] == "response.failed"
        assert failed["response"]["status"] == "failed"
        assert all(each["type"] != "error" for each in words)
        await socket.send_str(create())
        assert (await turn(socket))[0]["type"] == "response.created"


FLAT = event("error", code="server_error", message="theirs", param=None)
FAILED = event("response.failed", response=response("failed"))


@pytest.mark.parametrize(
    ("after", "last"),
    [
        ([FLAT + FAILED], "response.failed"),
        ([FLAT, FAILED], "response.failed"),
        ([FLAT], "response.failed"),
        ([FLAT, WORDS[0], FAILED], "response.failed"),
        ([FLAT, DONE], "error"),
        ([FLAT + DONE], "error"),
    ],
)
async def test_what_an_upstream_fails_with_is_one_message(
    rigs, raw_upstream, after: list[bytes], last: str
) -> None:
    """However its events are cut into reads; and an error is none the less one for a completion."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD, chunked(CREATED, *WORDS))
        for piece in after:
            await peer.send(chunked(piece))
            await asyncio.sleep(0.02)  # a read of its own
        await peer.send(LAST)

    rig = await rigs(await raw_upstream(play))
    async with Talk(rig) as socket:
        for _ in range(2):
            await socket.send_str(create())
            kinds = [each["type"] for each in await turn(socket)]
            assert kinds == ["response.created", *["response.output_text.delta"] * 3, last]


async def test_a_websocket_that_goes_takes_its_run_along(rigs, raw_upstream) -> None:
    """And what waited behind it is in no account."""
    rig = await rigs(await raw_upstream(sends(CREATED, *WORDS, last=False)))
    async with Talk(rig) as socket:
        for _ in range(3):
            await socket.send_str(create())
        for _ in range(4):
            await socket.receive(DEADLINE_S)
    await rig.idle()
    assert rig.relay().run.state.value == "cancelled"


async def test_too_many_that_wait_are_refused(rigs, raw_upstream) -> None:
    """What is waiting is bounded."""
    rig = await rigs(await raw_upstream(sends(CREATED, *WORDS, last=False)))
    async with Talk(rig) as socket:
        for _ in range(20):
            await socket.send_str(create())
        while "status" not in (last := json.loads((await socket.receive(DEADLINE_S)).data)):
            pass
    assert (last["status"], last["error"]["code"]) == (429, "too_many_waiting")


async def test_a_message_larger_than_a_body_may_be_ends_the_connection(rigs, raw_upstream) -> None:
    """With the code that means that."""
    rig = await rigs(await raw_upstream(sends(DONE)), max_body_bytes=10_000)
    async with Talk(rig) as socket:
        await socket.send_str(create(input="x" * 20_000))
        (told,) = await turn(socket)
        assert (told["status"], told["error"]["code"]) == (413, "body_too_large")
        closed = await socket.receive(DEADLINE_S)
        assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, 1009)


class Stateless:
    """An upstream that keeps no responses: it answers each request with its own number."""

    def __init__(self, *items: bytes, output: bytes = b"[]", end: str = "completed") -> None:
        self.asked: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self._items, self._output, self._end = items, output, end

    async def play(self, peer: Peer) -> None:
        while True:
            body = (await peer.request()).partition(b"\r\n\r\n")[2]
            self.raw.append(body)
            self.asked.append(json.loads(body))
            identity = f"resp_{len(self.asked)}"
            if "previous_response_id" in self.asked[-1]:
                # As llama.cpp does: its codes are numbers.
                told = b'{"error":{"code":400,"message":"no previous_response_id","type":"x"}}'
                await peer.send(plain(told, b"400 Bad Request"))
                continue
            done = event("response.completed", response={"id": identity, "output": []})
            done = done.replace(b"completed", self._end.encode())
            items = [
                b'data: {"type":"response.output_item.done","item":%b}\n\n' % item
                for item in self._items
            ]
            done = done.replace(b'"output": []', b'"output":' + self._output)
            await peer.send(HEAD, chunked(CREATED, WORDS[0], *items, done), LAST)


async def says(socket: aiohttp.ClientWebSocketResponse, **values: object) -> dict[str, Any]:
    """Ask, and return the last message of the answer."""
    await socket.send_str(create(**values))
    while True:
        told = json.loads((await socket.receive(DEADLINE_S)).data)
        if told["type"] in {"response.completed", "response.incomplete", "error"}:
            return told


USER = {"type": "message", "role": "user", "content": "hi"}
ITEM = b'{"type":"message","role":"assistant","content":"half \\ud83d"}'
SAID = {"type": "message", "role": "assistant", "content": "half \ud83d"}


@pytest.mark.parametrize(
    ("items", "output", "end"),
    [
        ((ITEM,), b"[]", "completed"),
        ((), b"[%b]" % ITEM, "completed"),
        ((ITEM,), b"[]", "incomplete"),
    ],
)
async def test_a_request_goes_on_from_the_answer_before_it(
    rigs, raw_upstream, items: tuple[bytes, ...], output: bytes, end: str
) -> None:
    """Where the upstream keeps no responses: it has former input, answer and new input."""
    upstream = Stateless(*items, output=output, end=end)
    rig = await rigs(await raw_upstream(upstream.play))
    async with Talk(rig) as socket:
        answer = await says(socket, store=False)
        assert answer["response"]["id"] == "resp_1"
        for number in (1, 2):
            answer = await says(
                socket, store=False, input=[number], previous_response_id=f"resp_{number}"
            )
            assert answer["response"]["id"] == f"resp_{number + 1}"
        one, two, three = upstream.asked
        assert one["input"] == "hi"
        assert two["input"] == [USER, SAID, 1]
        assert three["input"] == [USER, SAID, 1, SAID, 2]
        assert b"half \\ud83d" in upstream.raw[2]
        kept = rig.gateway.registry.ledger.entries[Entry.BODY]
        assert kept >= len(upstream.raw[2]) + len(ITEM) * bool(items)
    await rig.idle()
    assert rig.gateway.registry.ledger.entries[Entry.BODY] == 0


async def test_a_request_that_is_only_to_be_remembered_asks_no_upstream(rigs, raw_upstream) -> None:
    """It has an id, which the next one goes on from."""
    upstream = Stateless()
    rig = await rigs(await raw_upstream(upstream.play))
    async with Talk(rig) as socket:
        await socket.send_str(create(input=[1, 2], generate=False, store=False, tools=[]))
        created, completed = await turn(socket)
        assert created["type"] == "response.created"
        assert completed["response"]["output"] == []
        assert completed["response"]["status"] == "completed"
        assert completed["response"]["usage"]["total_tokens"] == 0
        identity = completed["response"]["id"]
        assert created["response"]["id"] == identity
        assert not upstream.asked
        again = await says(
            socket, generate=False, store=False, input=[3], previous_response_id=identity
        )
        assert again["response"]["id"] != identity
        await says(socket, store=False, input=[4], previous_response_id=again["response"]["id"])
        assert [each["input"] for each in upstream.asked] == [[1, 2, 3, 4]]
        assert rig.gateway.registry.total == 1


async def test_a_request_to_be_remembered_is_refused_as_any_other(rigs, raw_upstream) -> None:
    """What could not be asked of an upstream is not promised."""
    rig = await rigs(await raw_upstream(Stateless().play), await raw_upstream(Stateless().play))
    async with Talk(rig) as socket:
        assert (await says(socket, generate=False))["status"] == 404  # no such model
        assert (await says(socket, generate=False, input=7, previous_response_id="r"))["error"][
            "code"
        ] == "previous_response_not_found"


async def test_what_is_not_kept_is_not_found(rigs, raw_upstream) -> None:
    """An id of another connection, of an answer before the last, of one that failed."""
    upstream = Stateless()
    rig = await rigs(await raw_upstream(upstream.play))

    async def is_missing(socket: aiohttp.ClientWebSocketResponse, identity: str) -> bool:
        told = await says(socket, store=False, previous_response_id=identity)
        assert (told["type"], told.get("status", 400)) != ("error", 200)
        return told.get("error", {}).get("code") == "previous_response_not_found"

    async with Talk(rig) as socket, Talk(rig) as other:
        await says(socket, store=False)
        assert await is_missing(other, "resp_1")
        assert await is_missing(socket, "resp_none")
        await says(socket, store=False)
        assert await is_missing(socket, "resp_1")
        assert not await is_missing(socket, "resp_2")
    assert len(upstream.asked) == 3


async def test_an_id_of_a_stored_response_is_its_upstreams(rigs, raw_upstream) -> None:
    """Unless the connection holds it; a refusal is told with its code as text."""
    upstream = Stateless()
    rig = await rigs(await raw_upstream(upstream.play))
    async with Talk(rig) as socket:
        told = await says(socket, previous_response_id="resp_of_last_week")
        assert upstream.asked[0]["previous_response_id"] == "resp_of_last_week"
        assert told["status"] == 400
        assert told["error"]["code"] == "400"
        assert rig.gateway.registry.ledger.entries[Entry.BODY] == 0
        await says(socket)
        await says(socket, previous_response_id="resp_2", input=[2])
        assert upstream.asked[2]["input"] == [USER, 2]


async def test_after_an_answer_that_failed_nothing_is_kept(rigs, raw_upstream) -> None:
    """As OpenAI's servers have it."""
    left = [sends(CREATED, *WORDS, FLAT), sends(CREATED, *WORDS, DONE)]

    async def play(peer: Peer) -> None:
        await left.pop()(peer)

    rig = await rigs(await raw_upstream(play))
    async with Talk(rig) as socket:
        await socket.send_str(create(store=False))
        assert (await turn(socket))[-1]["type"] == "response.completed"
        rig.pool().close_idle()
        await socket.send_str(create(store=False, previous_response_id="resp_theirs"))
        assert (await turn(socket))[-1]["type"] == "response.failed"
        told = await says(socket, store=False, previous_response_id="resp_theirs")
        assert told["error"]["code"] == "previous_response_not_found"
        assert rig.gateway.registry.ledger.entries[Entry.BODY] == 0


async def test_what_is_kept_goes_first_when_memory_is_short(rigs, raw_upstream) -> None:
    """The client sends it again."""
    rig = await rigs(await raw_upstream(Stateless().play))
    rig.facts(ledger_limit_bytes=2 * MIB)
    async with Talk(rig) as socket, Talk(rig) as other:
        await says(socket, store=False, input="x" * 700_000)
        assert rig.gateway.registry.ledger.entries[Entry.BODY] >= 700_000
        await says(other, store=False, input="y" * 700_000)
        told = await says(socket, store=False, previous_response_id="resp_1")
        assert told["error"]["code"] == "previous_response_not_found"
        rig.gateway.sockets.forget()
        told = await says(other, store=False, previous_response_id="resp_2")
        assert told["error"]["code"] == "previous_response_not_found"


async def test_what_is_kept_is_forgotten_in_time(rigs, raw_upstream) -> None:
    """After keep_finished_s, as every answer."""
    rig = await rigs(await raw_upstream(Stateless().play), keep_finished_s=0.2)
    async with Talk(rig) as socket:
        await says(socket, store=False)
        entries = rig.gateway.registry.ledger.entries
        await until(lambda: not entries[Entry.BODY], DEADLINE_S, "it is forgotten")
        told = await says(socket, store=False, previous_response_id="resp_1")
        assert told["error"]["code"] == "previous_response_not_found"


async def test_what_grows_too_large_with_what_is_kept_is_refused(rigs, raw_upstream) -> None:
    """By the limit that a request of its own has."""
    rig = await rigs(await raw_upstream(Stateless(ITEM).play), max_body_bytes=2000)
    async with Talk(rig) as socket:
        await says(socket, store=False, input="x" * 1000)
        told = await says(socket, store=False, input="y" * 1000, previous_response_id="resp_1")
        assert (told["status"], told["error"]["code"]) == (413, "body_too_large")
        assert "limits.max_body" in told["error"]["message"]


async def test_codex_may_say_what_it_has_had(rigs, raw_upstream) -> None:
    """No answer comes to that, which would be taken for the next one's."""
    rig = await rigs(await raw_upstream(Stateless().play))
    async with Talk(rig) as socket:
        await socket.send_str('{"type":"response.processed","response_id":"resp_1"}')
        assert (await says(socket))["type"] == "response.completed"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error":{"code":503,"message":"x"}}', {"code": "503", "message": "x"}),
        (b'{"error":{"code":null,"message":7,"n":7}}', {"code": None, "message": "7", "n": 7}),
        (b'{"error":{"code":{"a":1}}}', {"code": '{"a":1}'}),
        (
            b'{"error":{"code":"\xff\xfe","message":"\xe9"}}',
            {"code": "\ufffd\ufffd", "message": "\ufffd"},
        ),
        (b'{"error":{"message":"\\ud83d"}}', {"message": "\ud83d"}),
    ],
)
async def test_a_refusal_is_told_in_text(
    rigs, raw_upstream, body: bytes, error: dict[str, object]
) -> None:
    """Whatever kind its values are of, and where it is no UTF-8: Codex reads nothing else."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(body, b"422 No"))

    rig = await rigs(await raw_upstream(play))
    async with Talk(rig) as socket:
        await socket.send_str(create())
        assert await turn(socket) == [{"type": "error", "status": 422, "error": error}]


@pytest.mark.parametrize("body", [b'{"error":"\xff no"}', b"\xff no", b'{"\xff":1}', b"[]", b""])
async def test_a_refusal_that_is_no_error_object_is_told_as_one(
    rigs, raw_upstream, body: bytes
) -> None:
    """In valid JSON."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(body, b"422 No"))

    rig = await rigs(await raw_upstream(play))
    async with Talk(rig) as socket:
        await socket.send_str(create())
        (told,) = await turn(socket)
        assert told["status"] == 422
        assert told["error"]["message"] == body.decode(errors="replace")


async def test_codes_in_the_middle_are_text_too(rigs, raw_upstream) -> None:
    """A flat error that stands last is told as any other; a failed response as it came."""
    failed = event("response.failed", response={"id": "r", "error": {"code": 500, "message": "x"}})
    flat = event("error", code=500, message="x", param=None)
    for last in (failed, flat + DONE):
        rig = await rigs(await raw_upstream(sends(CREATED, WORDS[0], last)))
        async with Talk(rig) as socket:
            await socket.send_str(create())
            told = (await turn(socket))[-1]
            error = told.get("error") or told["response"]["error"]
            assert (error["code"], error["message"]) == ("500", "x")
            assert ("status" in told) is (told["type"] == "error")


async def test_half_a_character_passes_both_ways(rigs, raw_upstream) -> None:
    """As the escape that it is."""
    upstream = Stateless(ITEM)
    rig = await rigs(await raw_upstream(upstream.play))
    async with Talk(rig) as socket:
        await socket.send_str(create(input=["cut \ud83d"]))
        texts = []
        while "completed" not in "".join(texts):
            texts.append((await socket.receive(DEADLINE_S)).data)
    assert any("half \\ud83d" in text for text in texts)
    assert b"cut \\ud83d" in upstream.raw[0]


async def test_draining_closes_a_websocket_between_two_answers(rigs, raw_upstream) -> None:
    """It is told to go; an answer under way comes to its end before."""
    gate = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD, chunked(CREATED, *WORDS))
        await gate.wait()
        await peer.send(chunked(DONE), LAST)

    rig = await rigs(await raw_upstream(play))
    async with Talk(rig) as busy, Talk(rig) as idle:
        await busy.send_str(create())
        await busy.receive(DEADLINE_S)
        rig.gateway.stop_accepting()
        assert (await idle.receive(DEADLINE_S)).data == 1001
        gate.set()
        assert (await turn(busy))[-1]["type"] == "response.completed"
        assert (await busy.receive(DEADLINE_S)).data == 1001


async def test_a_page_of_another_site_opens_no_websocket(rigs, raw_upstream) -> None:
    """And without an upgrade there is nothing to get."""
    rig = await rigs(await raw_upstream(sends(DONE)))
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with Talk(rig, headers={"Origin": "http://evil.example"}):
            pass
    assert refused.value.status == 403
    assert (await ask(rig)).status == 405
