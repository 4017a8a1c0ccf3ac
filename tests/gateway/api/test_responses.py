"""OpenAI's responses: in the background, by id, and again from any event."""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256
from typing import Any

import pytest

from fakes.client import Stream, get
from fakes.machine import until
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, chunked, plain, two_generations
from gateway.responses_rig import (
    CREATED,
    DONE,
    PATH,
    WORDS,
    ask,
    delta,
    event,
    response,
    sends,
    told,
)
from tidegate.core.settings import Token

MIB = 1024 * 1024


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
    """The upstream is let go, and the response is shown as cancelled from then on."""
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
    rig.relay().run.transcript.shrink(0)
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
    """Byte for byte; its events are not kept, and it cannot be cancelled."""
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
    """And asked of that upstream; an id that is not known here is passed on untouched."""
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


async def test_a_live_response_is_found_through_the_other_generation(rigs, raw_upstream) -> None:
    """In both directions: as it is, its events, cancelled, deleted."""
    both = await two_generations(
        rigs, await raw_upstream(listing(sends(CREATED, *WORDS, last=False)))
    )
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
    former, latter = await two_generations(rigs, await raw_upstream(listing(play)))
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
