"""OpenAI's responses: in the background, by id, again from any event, and over WebSocket."""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256
from typing import Any

import aiohttp
import pytest

from fakes.client import Stream, get
from fakes.machine import until
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, chunked, plain
from tidegate.core.runs.ledger import Entry
from tidegate.core.settings import Token

PATH = "/v1/responses"
MIB = 1024 * 1024


def event(kind: str, **values: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n".encode()


def response(status: str, identity: str = "resp_theirs") -> dict[str, Any]:
    return {"id": identity, "object": "response", "status": status, "output": []}


# As llama.cpp sends it: without sequence numbers.
CREATED = event("response.created", response=response("in_progress"))
DONE = event("response.completed", response=response("completed"))


def delta(text: str) -> bytes:
    return event("response.output_text.delta", item_id="msg_1", delta=text)


WORDS = [delta(word) for word in ("a ", "b ", "c ")]


def sends(*events: bytes, last: bool = True):
    """A play: answers each request with these events; without `last` it then hangs."""

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(HEAD, chunked(*events))
            if not last:
                await peer.hang()
                return
            await peer.send(LAST)

    return play


async def ask(rig: Rig, path: str = "", body: object = None, method: str = "", **headers: str):
    method = method or ("GET" if body is None else "POST")
    asked = get(rig.base_url, PATH + path, body, method=method, headers=headers)
    return await asyncio.wait_for(asked, DEADLINE_S)


def told(answer: Stream) -> Any:
    return json.loads(answer.body)


async def begin(rig: Rig, **values: object) -> str:
    """A background response's id."""
    answer = await ask(rig, "", {"model": "m", "input": "hi", "background": True, **values})
    assert answer.status == 200, answer.body
    assert told(answer)["status"] in {"queued", "in_progress"}
    return str(told(answer)["id"])


async def ended(rig: Rig, identity: str) -> dict[str, Any]:
    """The response as it is when its run is over."""
    await rig.idle()
    return told(await ask(rig, f"/{identity}"))


def numbered(stream: Stream) -> list[int]:
    return [json.loads(each.data)["sequence_number"] for each in stream.events]


# --- in the background ----------------------------------------------------------------------------


async def test_a_background_response_has_our_id_and_goes_on_alone(rigs, raw_upstream) -> None:
    """It is queued at first, and completed when it is asked for later."""
    rig = await rigs(await raw_upstream(sends(CREATED, *WORDS, DONE)))
    identity = await begin(rig)
    assert identity.startswith("resp_")
    assert identity != "resp_theirs"
    found = await ended(rig, identity)
    assert (found["id"], found["status"], found["background"]) == (identity, "completed", True)


async def test_a_replay_is_the_same_bytes_each_time(rigs, raw_upstream) -> None:
    """From the beginning or behind any event, for several readers at once."""
    rig = await rigs(await raw_upstream(sends(CREATED, *WORDS, DONE)))
    identity = await begin(rig, stream=False)
    await rig.idle()
    whole = await ask(rig, f"/{identity}?stream=true")
    assert numbered(whole) == [0, 1, 2, 3, 4]
    again = await asyncio.gather(*(ask(rig, f"/{identity}?stream=true") for _ in range(2)))
    assert {bytes(each.body) for each in again} == {bytes(whole.body)}
    for after in range(5):
        rest = await ask(rig, f"/{identity}?stream=true&starting_after={after}")
        assert numbered(rest) == list(range(after + 1, 5))
        assert bytes(whole.body).endswith(bytes(rest.body))


@pytest.mark.parametrize("after", ["5", "99", "-2", "x", "1e3", "9" * 30])
async def test_a_place_that_is_none_is_refused(rigs, raw_upstream, after: str) -> None:
    """Beyond the end, before the beginning, no number."""
    rig = await rigs(await raw_upstream(sends(CREATED, *WORDS, DONE)))
    identity = await begin(rig)
    await rig.idle()
    assert (await ask(rig, f"/{identity}?stream=true&starting_after={after}")).status == 400


@pytest.mark.parametrize("query", ["stream=yes", "stream=", "starting_after=x"])
async def test_a_question_that_is_not_understood_is_refused(rigs, raw_upstream, query: str) -> None:
    """Nothing is guessed of what a reader wants, streamed or not."""
    rig = await rigs(await raw_upstream(sends(CREATED, DONE)))
    answer = await get(rig.base_url, f"/v1/responses/resp_none?{query}")
    assert answer.status == 400
    assert query.partition("=")[0] in answer.json()["error"]["message"]


async def test_the_creator_of_a_stream_may_leave_and_come_back(rigs, raw_upstream) -> None:
    """Its events go on from the one it had last."""
    gate = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD, chunked(CREATED, *WORDS))
        await gate.wait()
        await peer.send(chunked(DONE), LAST)

    rig = await rigs(await raw_upstream(play))
    body = {"model": "m", "input": "hi", "background": True, "stream": True}
    creator = await Stream.open(rig.base_url, PATH, body)
    first, *_ = await creator.read_events(4)
    identity = json.loads(first.data)["response"]["id"]
    await creator.vanish()
    gate.set()
    rest = await ask(rig, f"/{identity}?stream=true&starting_after=3")
    assert [each.name for each in rest.events] == ["response.completed"]


async def test_large_events_and_a_done_marker_do_no_harm(rigs, raw_upstream) -> None:
    """An event of 1 MiB is numbered as any other; "[DONE]" stays what it is."""
    large = delta("x" * 2**20)
    rig = await rigs(await raw_upstream(sends(CREATED, large, DONE + b"data: [DONE]\n\n")))
    identity = await begin(rig)
    assert (await ended(rig, identity))["status"] == "completed"
    stream = await ask(rig, f"/{identity}?stream=true&starting_after=0")
    assert len(json.loads(stream.events[0].data)["delta"]) == 2**20
    assert json.loads(stream.events[1].data)["sequence_number"] == 2


# --- how it ends ----------------------------------------------------------------------------------


async def test_cancel_may_be_repeated(rigs, raw_upstream) -> None:
    """The upstream is let go, and the response is cancelled, for whoever asks later."""
    rig = await rigs(await raw_upstream(sends(CREATED, *WORDS, last=False)), close_flush_s=0.1)
    identity = await begin(rig)
    await until(lambda: rig.relay().run.window.next_seq, DEADLINE_S, "it has begun")
    for _ in range(2):
        answer = await ask(rig, f"/{identity}/cancel", method="POST")
        assert (answer.status, told(answer)["status"]) == (200, "cancelled")
        await asyncio.sleep(0.3)  # longer than close_flush_s
    assert (await ended(rig, identity))["error"] is None


async def test_an_upstream_that_dies_makes_a_failed_response(rigs, raw_upstream) -> None:
    """The flat error, response.failed, and nothing behind it; asked for, it says so."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD, chunked(CREATED, *WORDS))
        peer.reset()

    rig = await rigs(await raw_upstream(play))
    identity = await begin(rig)
    found = await ended(rig, identity)
    assert (found["id"], found["status"]) == (identity, "failed")
    assert found["error"]["code"] == "upstream_disconnected"
    stream = await ask(rig, f"/{identity}?stream=true&starting_after=3")
    assert [each.name for each in stream.events] == ["error", "response.failed"]
    assert numbered(stream) == [4, 5]
    assert isinstance(json.loads(stream.events[0].data)["message"], str)


async def test_total_s_makes_a_failed_response(rigs, raw_upstream) -> None:
    """A limit is no wish of the caller's."""
    rig = await rigs(await raw_upstream(sends(CREATED, *WORDS, last=False)), total_s=0.3)
    found = await ended(rig, await begin(rig))
    assert (found["status"], found["error"]["code"]) == ("failed", "total_s")


async def test_failover_keeps_the_id(rigs, raw_upstream) -> None:
    """Until the first output; the next upstream's own name stays unknown."""
    bad = await raw_upstream(sends(CREATED))
    good = await raw_upstream(sends(CREATED.replace(b"theirs", b"other"), *WORDS, DONE))
    rig = await rigs(bad, good, models={"m": ["box/m", "box1/m"]})
    identity = await begin(rig)
    found = await ended(rig, identity)
    assert (found["id"], found["status"]) == (identity, "completed")


async def test_after_failover_a_response_is_known_by_the_id_its_reader_saw(
    rigs, raw_upstream
) -> None:
    """Not by that of the upstream that failed before its first word."""
    bad = await raw_upstream(sends(CREATED.replace(b"theirs", b"first")))
    good = await raw_upstream(sends(CREATED, *WORDS, DONE))
    rig = await rigs(bad, good, models={"m": ["box/m", "box1/m"]})
    await ask(rig, "", {"model": "m", "input": "hi", "stream": True})
    assert (await ask(rig, "/resp_first")).status == 404
    assert told(await ask(rig, "/resp_theirs"))["status"] == "completed"


async def test_deleting_ends_what_is_running(rigs, raw_upstream) -> None:
    """Its reader is told; afterwards there is no such response."""
    rig = await rigs(await raw_upstream(sends(CREATED, *WORDS, last=False)))
    identity = await begin(rig)
    reader = await Stream.open(rig.base_url, f"{PATH}/{identity}?stream=true")
    await reader.read_events(4)
    answer = await ask(rig, f"/{identity}", method="DELETE")
    assert told(answer) == {"id": identity, "object": "response", "deleted": True}
    await asyncio.wait_for(reader.read_rest(), DEADLINE_S)
    assert [each.name for each in reader.events[-2:]] == ["error", "response.failed"]
    for method in ("GET", "DELETE"):
        assert (await ask(rig, f"/{identity}", method=method)).status == 404


async def test_what_is_no_longer_held_is_said_to_be_gone(rigs, raw_upstream) -> None:
    """410, not another status that would be untrue."""
    rig = await rigs(await raw_upstream(sends(CREATED, *WORDS, DONE)))
    identity = await begin(rig)
    await rig.idle()
    rig.relay().run.shrink(0)
    answer = await ask(rig, f"/{identity}")
    assert (answer.status, told(answer)["error"]["code"]) == (410, "response_evicted")


# --- whose it is, and which -----------------------------------------------------------------------


async def test_another_keys_response_does_not_exist(rigs, raw_upstream) -> None:
    """Whatever is asked of it."""
    keys = [Token(name=name, sha256=digest(name)) for name in ("tg-one", "tg-two")]
    rig = await rigs(await raw_upstream(sends(CREATED, *WORDS, DONE)), tokens=keys)
    body = {"model": "m", "input": "hi", "background": True}
    identity = told(await ask(rig, "", body, **{"x-api-key": "tg-one"}))["id"]
    await rig.idle()
    asked = (("", "GET"), ("?stream=true", "GET"), ("/cancel", "POST"), ("", "DELETE"))
    for path, method in (*asked, ("/input_items", "GET")):
        answer = await ask(rig, f"/{identity}{path}", method=method, **{"x-api-key": "tg-two"})
        assert answer.status == 404, (path, method)
        assert told(answer)["error"]["code"] == "response_not_found"


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


@pytest.mark.parametrize("identity", ["resp_theirs", "a.b:c-d", "bGl0ZQ==", "x~+y"])
async def test_a_whole_response_is_found_by_its_upstreams_id(
    rigs, raw_upstream, identity: str
) -> None:
    """Byte for byte; its events are nobody's, and it cannot be cancelled."""
    body = json.dumps(response("completed", identity), indent=1).encode() + b"\n\n"

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(body))

    rig = await rigs(await raw_upstream(play))
    await ask(rig, "", {"model": "m", "input": "hi"})
    assert bytes((await ask(rig, f"/{identity}")).body) == body
    assert rig.held_bytes >= len(body)
    for path, method in (("?stream=true", "GET"), ("/cancel", "POST")):
        answer = await ask(rig, f"/{identity}{path}", method=method)
        assert (answer.status, told(answer)["error"]["code"]) == (400, "not_background")
    items = await ask(rig, f"/{identity}/input_items")
    assert (items.status, told(items)["error"]["code"]) == (404, "input_items_not_kept")


async def test_an_id_that_was_given_twice_is_the_newer_answers(rigs, raw_upstream) -> None:
    """An upstream that counts its answers begins anew when it starts anew."""
    texts = iter((b"first", b"second"))

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(b'{"id":"resp_1","object":"response","text":"%b"}' % next(texts)))

    rig = await rigs(await raw_upstream(play))
    for _ in range(2):
        await ask(rig, "", {"model": "m", "input": "hi"})
    assert told(await ask(rig, "/resp_1"))["text"] == "second"


async def test_what_is_not_to_be_stored_is_not_found(rigs, raw_upstream) -> None:
    """And costs nothing when it has been answered."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(json.dumps(response("completed")).encode()))

    rig = await rigs(await raw_upstream(play))
    await ask(rig, "", {"model": "m", "input": "hi", "store": False})
    await rig.idle()
    assert (await ask(rig, "/resp_theirs")).status == 404
    assert rig.held_bytes == 0


async def test_background_needs_to_be_stored(rigs, raw_upstream) -> None:
    """It would never be found again."""
    rig = await rigs(await raw_upstream(sends(DONE)))
    body = {"model": "m", "input": "hi", "background": True, "store": False}
    assert (await ask(rig, "", body)).status == 400


# --- what it goes on from -------------------------------------------------------------------------


async def test_a_former_response_is_named_as_its_upstream_knows_it(rigs, raw_upstream) -> None:
    """And asked of that upstream; what nobody here knows is passed on untouched."""
    asked: list[Any] = []

    async def play(peer: Peer) -> None:
        while True:
            asked.append(json.loads((await peer.request()).partition(b"\r\n\r\n")[2]))
            await peer.send(HEAD, chunked(CREATED, *WORDS, DONE), LAST)

    rig = await rigs(await raw_upstream(play))
    identity = await begin(rig)
    await rig.idle()
    await begin(rig, previous_response_id=identity)
    await rig.idle()
    await begin(rig, previous_response_id="resp_unknown")
    await rig.idle()
    names = [body.get("previous_response_id") for body in asked]
    assert names == [None, "resp_theirs", "resp_unknown"]
    assert all(body["stream"] is True and "background" not in body for body in asked)


async def test_what_has_not_begun_is_nothing_to_go_on_from(rigs, raw_upstream) -> None:
    """To leave its name out would answer another question."""
    rig = await rigs(await raw_upstream(sends(last=False)))
    identity = await begin(rig)
    body = {"model": "m", "input": "hi", "previous_response_id": identity}
    answer = await ask(rig, "", body)
    assert (answer.status, told(answer)["error"]["code"]) == (400, "previous_response_not_found")
    await ask(rig, f"/{identity}", method="DELETE")


# --- two generations ------------------------------------------------------------------------------


async def two(rigs, upstream) -> tuple[Rig, Rig]:
    former, latter = [await rigs(upstream, peer=True) for _ in range(2)]
    former.facts(peer_socket=latter.gateway._peer_socket)
    latter.facts(peer_socket=former.gateway._peer_socket)
    return former, latter


async def test_a_live_response_is_found_through_the_other_generation(rigs, raw_upstream) -> None:
    """In both directions: as it is, its events, cancelled, deleted."""
    both = await two(rigs, await raw_upstream(listing(sends(CREATED, *WORDS, last=False))))
    for here, there in (both, both[::-1]):
        identity = await begin(here)
        await until(lambda rig=here: rig.relay().run.window.next_seq, DEADLINE_S, "it has begun")
        assert told(await ask(there, f"/{identity}"))["status"] == "in_progress"
        reader = await Stream.open(there.base_url, f"{PATH}/{identity}?stream=true")
        await reader.read_events(4)
        answer = await ask(there, f"/{identity}/cancel", method="POST")
        assert told(answer)["status"] == "cancelled"
        await asyncio.wait_for(reader.read_rest(), DEADLINE_S)
        assert reader.events[-1].name == "response.failed"
        assert told(await ask(there, f"/{identity}", method="DELETE"))["deleted"] is True
        assert (await ask(here, f"/{identity}")).status == 404


@pytest.mark.parametrize("background", [True, False])
async def test_a_finished_response_is_handed_over(rigs, raw_upstream, background: bool) -> None:
    """And found by the same id, whether it was made of events or came whole."""
    whole = json.dumps(response("completed"), indent=1).encode()

    async def answer(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(whole))

    play = sends(CREATED, *WORDS, DONE) if background else answer
    former, latter = await two(rigs, await raw_upstream(listing(play)))
    body = {"model": "m", "input": "hi", "background": background}
    identity = told(await ask(former, "", body))["id"]
    await former.idle()
    relay = former.relay()
    before = bytes((await ask(former, f"/{identity}")).body)
    assert await former.gateway.peer.hand_over(relay.run)
    former.gateway.registry.handed_over(relay)
    assert bytes((await ask(latter, f"/{identity}")).body) == before
    assert latter.gateway.registry.find_response(identity, "") is not None


def listing(play):
    """The list of models first, where it is asked for; then `play`."""

    async def listed(peer: Peer) -> None:
        head = await peer.reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            await peer.send(plain(b'{"object":"list","data":[]}'))
            return
        size = int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0])
        body = await peer.reader.readexactly(size)
        taken = [head + body]
        request = peer.request

        async def first() -> bytes:
            return taken.pop() if taken else await request()

        peer.request = first  # type: ignore[method-assign]
        await play(peer)

    return listed


# --- over WebSocket -------------------------------------------------------------------------------


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
    """By one message, so that whoever asks again reads the answer to that."""

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
    """Asks, and returns the last message of the answer."""
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
        rig.gateway.tidy()
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


# --- the upstream's own errors ----------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
async def test_a_flat_error_of_the_upstream_is_followed_by_what_became_of_the_response(
    rigs, raw_upstream, background: bool
) -> None:
    """Its own words stay as they are, and the response is failed, once."""
    flat = event("error", code="server_error", message="it broke", param=None)
    rig = await rigs(await raw_upstream(sends(CREATED, WORDS[0], flat)))
    body = {"model": "m", "input": "hi", "stream": True, "background": background}
    answer = await ask(rig, "", body)
    kinds = [each.name for each in answer.events]
    assert kinds[-2:] == ["error", "response.failed"]
    assert kinds.count("error") == kinds.count("response.failed") == 1
    assert b"it broke" in answer.body
    failed = json.loads(answer.events[-1].data)["response"]
    assert failed["status"] == "failed"
    assert failed["error"]["message"]
    if background:
        assert numbered(answer) == list(range(len(kinds)))


async def test_an_upstream_that_says_all_of_it_is_not_corrected(rigs, raw_upstream) -> None:
    """Its error and its response.failed stand alone."""
    flat = event("error", code="server_error", message="it broke", param=None)
    failed = event("response.failed", response=response("failed"))
    rig = await rigs(await raw_upstream(sends(CREATED, WORDS[0], flat, failed)))
    answer = await ask(rig, "", {"model": "m", "input": "hi", "stream": True})
    assert bytes(answer.body) == CREATED + WORDS[0] + flat + failed
