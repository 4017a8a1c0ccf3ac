"""Ollama's own API: lines instead of events, a head that waits, many Ollamas as one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import ClientSession

from fakes.client import Stream, get, parse_events
from fakes.machine import until
from gateway.backend_rig import LLAMA_CPP, NOT_FOUND, OLLAMA, Fake
from gateway.gateway_rig import DEADLINE_S, LAST, Peer, Rig, chunked, plain
from tidegate.core.runs.state import RunState
from tidegate.core.settings import Token, Upstream

ON_BOTH_LOOPS = True
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def line(**values: object) -> bytes:
    return json.dumps({"model": "m", "created_at": "t", **values}).encode() + b"\n"


# What /api/chat and /api/generate stream.
CHAT = [
    line(message={"role": "assistant", "content": word}, done=False) for word in ("a ", "b ", "c")
] + [line(message={"role": "assistant", "content": ""}, done=True, done_reason="stop")]
GENERATE = [line(response=word, done=False) for word in ("a ", "b ", "c")] + [
    line(response="", done=True, done_reason="stop", eval_count=3)
]
ERROR = b'{"error":"model runner has unexpectedly stopped"}\n'
ROUTES = {"/api/chat": CHAT, "/api/generate": GENERATE}
BOTH = pytest.mark.parametrize("path", list(ROUTES))
TWO = {"both": ["box/big", "box1/big"]}


def sends(*pieces: bytes, hang: bool = True):
    """A play: answers each request with these pieces."""

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(*pieces)
            if hang:
                await peer.hang()

    return play


def dies(*pieces: bytes):
    """A play: sends these pieces and closes the connection."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)

    return play


class Asked:
    """A play that keeps what it was asked, and answers with `answer`."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.requests: list[bytes] = []

    async def play(self, peer: Peer) -> None:
        while True:
            self.requests.append(await peer.request())
            await peer.send(self.answer)

    @property
    def body(self) -> Any:
        """The last request's."""
        return json.loads(self.requests[-1].partition(b"\r\n\r\n")[2])


async def ask(rig: Rig, path: str, model: str = "m", headers: Any = None, **more: Any) -> Stream:
    return await get(rig.base_url, path, {"model": model, **more}, headers=headers)


# --- answers --------------------------------------------------------------------------------------


@BOTH
async def test_it_streams_unless_told_not_to(rigs, raw_upstream, path: str) -> None:
    """Every line as it was, under Ollama's content type; the request as it was as well."""
    lines = ROUTES[path]
    asked = Asked(HEAD + chunked(*lines) + LAST)
    rig: Rig = await rigs(await raw_upstream(asked.play))
    answer = await ask(rig, path, keep_alive="5m")
    assert (answer.status, bytes(answer.body), answer.clean) == (200, b"".join(lines), True)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert asked.requests[0].startswith(b"POST " + path.encode() + b" HTTP/1.1\r\n")
    assert b"\r\nAccept: application/x-ndjson\r\n" in asked.requests[0]
    assert asked.body == {"model": "m", "keep_alive": "5m"}
    assert rig.relay().run.state is RunState.COMPLETED


@pytest.mark.parametrize("base", ["", "/v1", "/v1/"])
async def test_its_api_begins_at_the_root(rigs, raw_upstream, base: str) -> None:
    """Behind whatever base URL the upstream's other API has."""
    asked = Asked(HEAD + chunked(*CHAT) + LAST)
    upstream = await raw_upstream(asked.play)
    rig = await rigs(Upstream(name="box", url=upstream.url + base))
    assert (await ask(rig, "/api/chat")).status == 200
    assert asked.requests[0].startswith(b"POST /api/chat ")


@BOTH
async def test_one_answer_where_no_stream_is_wanted(rigs, raw_upstream, path: str) -> None:
    """The upstream's own object, untouched."""
    body = b'{ "model": "m", "done": true }'
    rig = await rigs(await raw_upstream(Asked(plain(body)).play))
    answer = await ask(rig, path, stream=False)
    assert (answer.status, bytes(answer.body)) == (200, body)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("reason", ["load", "unload"])
async def test_loading_and_unloading_are_answers_of_one_line(
    rigs, raw_upstream, reason: str
) -> None:
    """No word, and yet whole."""
    last = line(response="", done=True, done_reason=reason)
    rig = await rigs(await raw_upstream(sends(HEAD + chunked(last))))
    answer = await ask(rig, "/api/generate", keep_alive=0)
    assert (bytes(answer.body), answer.clean) == (last, True)
    assert rig.relay().run.state is RunState.COMPLETED


async def test_the_end_is_seen_in_the_line_and_not_in_the_body_s_end(rigs, raw_upstream) -> None:
    """However the line spells it, the client has its end while the upstream dawdles."""
    last = b'{"message":{"content":"a"}, "done" :\ttrue }\r\n'
    rig = await rigs(await raw_upstream(sends(HEAD + chunked(*CHAT[:2], last))))
    answer = await ask(rig, "/api/chat")
    assert (bytes(answer.body), answer.clean) == (b"".join(CHAT[:2]) + last, True)


async def test_a_last_line_without_its_end_is_whole(rigs, raw_upstream) -> None:
    """Some servers leave it out; the client gets it."""
    pieces = [*CHAT[:3], CHAT[3].rstrip()]
    rig = await rigs(await raw_upstream(sends(HEAD + chunked(*pieces) + LAST)))
    assert bytes((await ask(rig, "/api/chat")).body) == b"".join(CHAT)


@pytest.mark.parametrize("cut", [1, 7, 40])
async def test_lines_arrive_whole_wherever_they_were_cut(rigs, raw_upstream, cut: int) -> None:
    """Each chunk that a client gets ends with a line."""
    whole = b"".join(CHAT)
    pieces = [whole[i : i + cut] for i in range(0, len(whole), cut)]
    rig = await rigs(await raw_upstream(sends(HEAD, *[chunked(piece) for piece in pieces])))
    answer = await ask(rig, "/api/chat")
    assert bytes(answer.body) == whole
    sizes = [sum(answer.chunks[: i + 1]) for i in range(len(answer.chunks))]
    assert all(whole[:size].endswith(b"\n") for size in sizes)


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings", "/api/show"])
async def test_what_is_one_answer_never_streams(rigs, raw_upstream, path: str) -> None:
    """It is routed by its model, and passed on."""
    asked = Asked(plain(b'{"embeddings":[[0.5]]}'))
    upstream = await raw_upstream(asked.play)
    rig = await rigs(upstream, models={"fast": ["box/big"]})
    answer = await ask(rig, path, "fast", input="x")
    assert (answer.status, answer.json()) == (200, {"embeddings": [[0.5]]})
    assert asked.body == {"model": "big", "input": "x"}


# --- waiting --------------------------------------------------------------------------------------


async def test_while_a_model_loads_the_head_is_held_back(rigs, raw_upstream) -> None:
    """However long it takes: between lines nothing can be said, so nothing is."""
    go = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        await peer.send(HEAD + chunked(*CHAT) + LAST)

    rig = await rigs(await raw_upstream(play), hold_s=0.05, keepalive_s=0.05)
    stream = await Stream.open(rig.base_url, "/api/chat", {"model": "m"})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.6):  # ten times both limits
            await stream.reader.readexactly(1)
    go.set()
    await stream.read_all()
    assert bytes(stream.body) == b"".join(CHAT)


async def test_a_failure_to_load_has_a_true_status_after_any_wait(rigs, raw_upstream) -> None:
    """What a head held back is good for."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.3)
        await peer.send(plain(b'{"error":"out of memory"}', b"500 X"))

    rig = await rigs(await raw_upstream(play), hold_s=0.05, keepalive_s=0.05)
    answer = await ask(rig, "/api/chat")
    assert (answer.status, answer.json()) == (500, {"error": "out of memory"})


async def test_a_silence_in_the_middle_stays_one(rigs, raw_upstream) -> None:
    """No keep-alive, and no harm."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(*CHAT[:1]))
        await asyncio.sleep(0.3)
        await peer.send(chunked(*CHAT[1:]) + LAST)

    rig = await rigs(await raw_upstream(play), hold_s=0.05, keepalive_s=0.05)
    assert bytes((await ask(rig, "/api/chat")).body) == b"".join(CHAT)


# --- errors ---------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("stream", [True, False])
async def test_the_upstream_s_refusal_is_passed_on_untouched(
    rigs, raw_upstream, path: str, stream: bool
) -> None:
    """Status and words."""
    body = b'{"error" : "model \'m\' not found"}'
    rig = await rigs(await raw_upstream(sends(plain(body, b"404 X"))))
    answer = await ask(rig, path, stream=stream)
    assert (answer.status, bytes(answer.body)) == (404, body)


@pytest.mark.parametrize(
    ("play", "why"),
    [
        (dies(), "closed the connection before an answer"),
        (dies(HEAD), "closed the connection"),
        (dies(HEAD, chunked(line(message={"content": ""}, done=False))), "closed the connection"),
        (sends(HEAD + LAST), "ended the stream before"),
        (sends(plain(b"<html>", b"502 X")), "answered 502"),
        (dies(HEAD, chunked(b"not json\n")), "not JSON"),
    ],
    ids=range(6),
)
async def test_an_error_before_the_first_word_is_ollama_s_error(
    rigs, raw_upstream, play, why: str
) -> None:
    """A status, and one object whose error is a sentence."""
    rig = await rigs(await raw_upstream(play))
    answer = await ask(rig, "/api/chat")
    assert answer.status == 502
    body = answer.json()
    assert isinstance(body, dict)
    assert list(body) == ["error"]
    assert why in body["error"]


@pytest.mark.parametrize(
    ("rest", "hang", "why"),
    [
        (b"", False, "closed the connection in the middle"),
        (LAST, True, "ended the stream before the answer was complete"),
        (chunked(b'{"message":{"content":'), False, "closed the connection in the middle"),
        (chunked(b"not json\n") + LAST, True, "not JSON"),
        (chunked(b"{},{}\n") + LAST, True, "not JSON"),
        (b"", True, "idle for 0.3 s"),
    ],
    ids=range(6),
)
async def test_an_error_in_the_middle_is_a_line_that_clients_raise_on(
    rigs, raw_upstream, rest: bytes, hang: bool, why: str
) -> None:
    """Behind the words that came, and with no `done`."""
    go = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(*CHAT[:2]))
        await go.wait()
        await peer.send(rest)
        if hang:
            await peer.hang()

    rig = await rigs(await raw_upstream(play), idle_s=0.3)
    answer = await Stream.open(rig.base_url, "/api/chat", {"model": "m"})
    await answer.head()
    go.set()
    await answer.read_all()
    *words, last = bytes(answer.body).splitlines(keepends=True)
    assert words == CHAT[:2]
    assert list(json.loads(last)) == ["error"]
    assert why in json.loads(last)["error"]
    assert rig.relay().run.state in {RunState.FAILED, RunState.EXPIRED}


async def test_the_upstream_s_own_error_line_stands_once(rigs, raw_upstream) -> None:
    """What the upstream has told its client is not told again."""
    rig = await rigs(await raw_upstream(sends(HEAD + chunked(*CHAT[:2], ERROR) + LAST)))
    answer = await ask(rig, "/api/chat")
    assert bytes(answer.body) == b"".join(CHAT[:2]) + ERROR
    assert rig.relay().run.state is RunState.FAILED


async def test_an_error_line_at_once_is_a_status(rigs, raw_upstream) -> None:
    """Nothing of a stream has been sent."""
    rig = await rigs(await raw_upstream(sends(HEAD + chunked(ERROR) + LAST)))
    answer = await ask(rig, "/api/chat")
    assert (answer.status, answer.json()) == (502, json.loads(ERROR))


@pytest.mark.parametrize(
    ("body", "status"), [({}, 400), ({"model": 7}, 400), ({"model": "m", "stream": "no"}, 400)]
)
async def test_a_bad_request_is_told_in_ollama_s_words(
    rigs, raw_upstream, body: object, status: int
) -> None:
    """One object whose error is a sentence, on every route under /api."""
    rig = await rigs(await raw_upstream(sends()))
    for path in ROUTES:
        answer = await get(rig.base_url, path, body)
        said = answer.json()
        assert answer.status == status
        assert isinstance(said, dict)
        assert isinstance(said["error"], str)


# --- failover, cancel, resume ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "play",
    [
        dies(),
        dies(HEAD, chunked(line(message={"content": ""}, done=False))),
        sends(HEAD + chunked(ERROR) + LAST),
        sends(plain(b'{"error":"busy"}', b"503 X")),
    ],
    ids=range(4),
)
async def test_before_the_first_word_the_next_one_is_asked(rigs, raw_upstream, play) -> None:
    """Its model's name stands in the request; the client sees one whole answer."""
    asked = Asked(HEAD + chunked(*CHAT) + LAST)
    rig = await rigs(await raw_upstream(play), await raw_upstream(asked.play), models=TWO)
    answer = await ask(rig, "/api/chat", "both")
    assert (answer.status, bytes(answer.body)) == (200, b"".join(CHAT))
    assert asked.body == {"model": "big"}


@BOTH
async def test_a_client_that_goes_cancels(rigs, raw_upstream, path: str) -> None:
    """Also while the model loads, when nothing has been answered."""
    for head in (b"", HEAD + chunked(ROUTES[path][0])):
        upstream = await raw_upstream(sends(*([head] if head else [])))
        rig = await rigs(upstream)
        stream = await Stream.open(rig.base_url, path, {"model": "m"})
        await until(lambda upstream=upstream: upstream.peers, DEADLINE_S, "it is asked")
        if head:
            await stream.head()
        await stream.vanish()
        await until(lambda upstream=upstream: upstream.peers[0].gone, DEADLINE_S, "it is let go")
        assert rig.relay().run.state is RunState.CANCELLED


async def test_an_answer_can_go_on_without_its_client(rigs, raw_upstream) -> None:
    """x-on-disconnect: continue; it is there when the client comes back."""
    go = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(CHAT[0]))
        await go.wait()
        await peer.send(chunked(*CHAT[1:]) + LAST)

    rig = await rigs(await raw_upstream(play))
    headers = {"x-on-disconnect": "continue"}
    stream = await Stream.open(rig.base_url, "/api/chat", {"model": "m"}, headers=headers)
    run_id = (await stream.head()).run_id
    await stream.vanish()
    await until(lambda: not rig.relay().subscribers, DEADLINE_S, "it has gone")
    await asyncio.sleep(0.2)  # four times the grace
    go.set()
    await rig.idle()
    replay = await get(rig.base_url, f"/v1/runs/{run_id}/stream")
    assert [event.data + b"\n" for event in parse_events(bytes(replay.body))] == CHAT


async def test_a_run_of_lines_is_resumed_as_events(rigs, raw_upstream) -> None:
    """Numbered, over SSE as over WebSocket, from any place; the error line is one of them."""
    rig = await rigs(await raw_upstream(dies(HEAD, chunked(*CHAT[:3]))))
    answer = await ask(rig, "/api/chat")
    lines = bytes(answer.body).splitlines()
    assert len(lines) == 4
    url = f"/v1/runs/{answer.run_id}/stream"
    for after in (-1, 0, 2):
        replay = await get(rig.base_url, f"{url}?starting_after={after}")
        assert replay.headers["content-type"].startswith("text/event-stream")
        events = parse_events(bytes(replay.body))
        assert [event.data for event in events] == lines[after + 1 :]
        assert [event.id for event in events] == [str(i) for i in range(after + 1, 4)]
        async with (
            ClientSession() as session,
            session.ws_connect(f"{rig.base_url}{url}?starting_after={after}") as socket,
        ):
            messages = [json.loads(message.data) async for message in socket]
        *told, last = messages
        assert [message["data"].encode() for message in told] == lines[after + 1 :]
        assert [message["seq"] for message in told] == list(range(after + 1, 4))
        assert last["state"] == "failed"


# --- many as one ----------------------------------------------------------------------------------


def ollama(*names: str, loaded: tuple[str, ...] = (), version: str = "0.12.3") -> Fake:
    data = [{"id": name, "owned_by": "library"} for name in names]
    return Fake(
        {
            **OLLAMA,
            "/v1/models": {"object": "list", "data": data},
            "/api/version": {"version": version},
            "/api/tags": {"models": [{"name": n, "size": len(names)} for n in names]},
            "/api/ps": {"models": [{"name": n, "size_vram": 5} for n in loaded]},
        }
    )


async def test_all_ollamas_answer_as_one(rigs, raw_upstream) -> None:
    """Of two models of one name the first one's counts; what is no Ollama is left out."""
    one = ollama("a:latest", "b:1", loaded=("b:1",))
    two = ollama("b:1", "c:1", "d:1", loaded=("c:1",), version="0.99.0")
    rig = await rigs(
        *[await raw_upstream(each.play) for each in (one, two, Fake(LLAMA_CPP))], peer=True
    )
    tags = (await get(rig.base_url, "/api/tags")).json()
    assert tags == {
        "models": [
            {"name": "a:latest", "size": 2},
            {"name": "b:1", "size": 2},
            {"name": "c:1", "size": 3},
            {"name": "d:1", "size": 3},
        ]
    }
    loaded = (await get(rig.base_url, "/api/ps")).json()
    assert loaded == {"models": [{"name": "b:1", "size_vram": 5}, {"name": "c:1", "size_vram": 5}]}
    assert (await get(rig.base_url, "/api/version")).json() == {"version": "0.12.3"}


async def test_aliases_that_lead_to_an_ollama_are_listed_as_its_models(rigs, raw_upstream) -> None:
    """A client that chooses from the list finds them; what is not there is not made up."""
    one, two = ollama("a:latest"), ollama("b:1", "a:1")
    rig = await rigs(
        *[await raw_upstream(each.play) for each in (one, two, Fake(LLAMA_CPP))],
        models={
            "small": ["box/a", "box1/a:1"],
            "big": ["box1/b:1"],
            "gone": ["box/z"],
            "other": ["box2/tiny"],
            "b:1": ["box1/a:1"],
        },
        peer=True,
    )
    listed = (await get(rig.base_url, "/api/tags")).json()["models"]
    assert [each["name"] for each in listed] == ["small", "big", "b:1", "a:latest", "a:1"]
    assert listed[0] == {"name": "small", "model": "small", "size": 1}
    loaded = (await get(rig.base_url, "/api/ps")).json()
    assert loaded == {"models": []}


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps"])
async def test_what_is_no_text_in_a_list_is_mended(rigs, raw_upstream, path: str) -> None:
    """A list of an Ollama that is not UTF-8 ends in JSON that is, with the others' models."""
    one, two = ollama("a:1"), ollama("b:1", loaded=("b:1",))
    rig = await rigs(*[await raw_upstream(each.play) for each in (one, two)], peer=True)
    one.routes[path] = plain(
        b'{"models":[{"name":"a:\xff","details":{"family":"\xe2\x82"}},{"name":"\\ud83d","n":1e400}]}'
    )
    one.routes["/api/version"] = plain(b'{"version":"0.1\xff"}')
    answer = await get(rig.base_url, path)
    assert answer.status == 200
    assert [each["name"] for each in answer.json()["models"]] == ["a:\ufffd", "\ufffd", "b:1"]
    assert b'"n":1e400' in answer.body
    assert (await get(rig.base_url, "/api/version")).json() == {"version": "0.1\ufffd"}


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps", "/api/version"])
@pytest.mark.parametrize("status", [b"200 OK", b"500 Broken", b"404 Not Found"])
async def test_an_error_that_is_no_text_is_ollama_s_own(
    rigs, raw_upstream, path: str, status: bytes
) -> None:
    """Where every Ollama fails, in whatever words, its clients read an error or an empty list."""
    one = ollama("a:1")
    rig = await rigs(await raw_upstream(one.play), peer=True)
    one.routes[path] = plain(b'{"error":"caf\xe9 \xff"}', status)
    answer = await get(rig.base_url, path)
    said = answer.json()
    assert (answer.status, set(said)) in [(502, {"error"}), (200, {"models"})]


@pytest.mark.parametrize("broken", [NOT_FOUND, plain(b"<html>"), plain(b'{"models":7}')])
async def test_one_that_answers_badly_is_left_out(rigs, raw_upstream, broken: bytes) -> None:
    """The others answer as if it were not there."""
    one, two = ollama("a:1", version="0.1"), ollama("b:1", loaded=("b:1",), version="0.2")
    rig = await rigs(*[await raw_upstream(each.play) for each in (one, two)], peer=True)
    one.routes.clear()
    one.otherwise = broken
    tags = (await get(rig.base_url, "/api/tags")).json()
    assert tags == {"models": [{"name": "b:1", "size": 1}]}
    assert (await get(rig.base_url, "/api/version")).json() == {"version": "0.2"}
    loaded = (await get(rig.base_url, "/api/ps")).json()
    assert loaded == {"models": [{"name": "b:1", "size_vram": 5}]}


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps", "/api/version"])
async def test_without_any_ollama_it_is_said(rigs, raw_upstream, path: str) -> None:
    """In Ollama's words, and what to do."""
    rig = await rigs(await raw_upstream(Fake(LLAMA_CPP).play), peer=True)
    answer = await get(rig.base_url, path)
    said = answer.json()
    assert answer.status == 502
    assert isinstance(said, dict)
    assert "/v1" in said["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/pull"),
        ("POST", "/api/push"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
        ("POST", "/api/blobs/sha256:29fdb92e"),
        ("HEAD", "/api/blobs/sha256:29fdb92e"),
        ("GET", "/api/pull"),
    ],
)
async def test_what_changes_an_ollama_is_not_passed_on(
    rigs, raw_upstream, method: str, path: str
) -> None:
    """404 in Ollama's words, and no upstream hears of it."""
    fake = ollama("a:1")
    rig = await rigs(await raw_upstream(fake.play), peer=True)
    before = dict(fake.asked)
    body = None if method in {"GET", "HEAD"} else {"model": "a:1", "source": "x" * 100_000}
    stream = await Stream.open(rig.base_url, path, body, method=method)
    await stream.head()
    assert stream.status == 404
    if method != "HEAD":
        said = (await stream.read_all()).json()
        assert isinstance(said, dict)
        assert "not passed on" in said["error"]
    await stream.close()
    assert dict(fake.asked) == before


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_a_client_of_ollama_s_finds_an_answer_at_the_root(
    rigs, raw_upstream, method: str
) -> None:
    """As its clients look before anything else, without a key."""
    tokens = [Token(name="x", sha256="0" * 64)]
    rig = await rigs(await raw_upstream(sends()), tokens=tokens)
    stream = await Stream.open(rig.base_url, "/", method=method)
    assert (await stream.head()).status == 200
    await stream.close()
    assert (await get(rig.base_url, "/api/tags")).status == 401
    assert (await get(rig.base_url, "/api/pull", {})).status == 401
