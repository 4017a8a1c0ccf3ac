"""An upstream's pool: its address, its slots and their queue, its connections."""

from __future__ import annotations

import asyncio
import socket
from unittest.mock import Mock

import pytest

from fakes.machine import until
from gateway.gateway_rig import DEADLINE_S, Heard, Peer, plain
from gateway.pool_rig import answers, closed, none_left, pool_of
from tidegate import __version__
from tidegate.core.errors import UpstreamError
from tidegate.core.settings import HeaderSource, Limits, Upstream
from tidegate.core.upstreams.blame import FAULT_OF_CODE, VERDICTS, Held
from tidegate.gateway.upstreams.fetch import fetch
from tidegate.gateway.upstreams.pool import (
    MAX_IDLE,
    MAX_MODELS_NOTED,
    MAX_NAME_NOTED,
    ModelFigures,
    UpstreamPool,
)

ON_BOTH_LOOPS = True
VERSION = __version__.encode()


def unused_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


# --- the address ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "line", "host", "shown"),
    [
        ("http://10.0.0.2:8080", "/v1/x", "10.0.0.2:8080", "http://10.0.0.2:8080"),
        ("http://box/", "/v1/x", "box", "http://box/"),
        ("https://api.example.com/v1", "/v1/x", "api.example.com", "https://api.example.com/v1"),
        ("https://h/deep/api/", "/deep/api/x", "h", "https://h/deep/api/"),
        ("http://[::1]:8080", "/v1/x", "[::1]:8080", "http://[::1]:8080"),
        ("unix:/run/x.sock", "/v1/x", "localhost", "unix:/run/x.sock"),
        ("unix:/run/x.sock:/demo", "/demo/x", "localhost", "unix:/run/x.sock:/demo"),
    ],
)
async def test_an_address_gives_path_host_and_name(
    url: str, line: str, host: str, shown: str
) -> None:
    """A bare host means /v1."""
    pool = pool_of(url)
    head = pool.request_head("POST", "/x", 3, stream=True).decode()
    assert head.startswith(f"POST {line} HTTP/1.1\r\nHost: {host}\r\n")
    assert pool.status().url == shown


async def test_a_head_holds_what_is_ours_and_nothing_else() -> None:
    """Our name and key, what is accepted, and how long the body is."""
    head = pool_of("http://h", "sk-1").request_head("POST", "/chat/completions", 12, stream=False)
    assert head == (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n"
        b"User-Agent: tidegate/%b\r\nAuthorization: Bearer sk-1\r\nAccept: application/json\r\n"
        b"Content-Type: application/json\r\nContent-Length: 12\r\n\r\n" % VERSION
    )
    head = pool_of("http://h").request_head("GET", "/models", 0, stream=True, more="A: b\r\n")
    assert head == (
        b"GET /v1/models HTTP/1.1\r\nHost: h\r\nUser-Agent: tidegate/%b\r\n"
        b"Accept: text/event-stream\r\nA: b\r\n\r\n" % VERSION
    )


async def test_what_a_request_sends_and_accepts_can_be_said() -> None:
    """Another content type and another Accept stand in the usual ones' places."""
    head = pool_of("http://h").request_head(
        "POST", "/x", 3, stream=True, content_type="text/plain", accept="application/x-ndjson"
    )
    assert b"\r\nContent-Type: text/plain\r\n" in head
    assert b"\r\nAccept: application/x-ndjson\r\n" in head


async def test_heads_that_follow_one_another_share_only_how_they_begin() -> None:
    """How a kind of request begins is written once; its lines and its length are its own."""
    pool = pool_of("http://h", "sk-1")

    def head(path: str = "/x", size: int = 1, more: str = "", **options: bool) -> bytes:
        options.setdefault("stream", True)
        return pool.request_head("POST", path, size, more=more, **options)  # type: ignore[arg-type]

    first = head(more="A: b\r\n")
    assert head(size=22) == first.replace(b"A: b\r\n", b"").replace(b"Length: 1\r", b"Length: 22\r")
    assert head(path="/y", more="A: b\r\n") == first.replace(b"/x", b"/y")
    assert b"Accept: application/json\r\n" in head(stream=False)
    assert head(at_root=True).startswith(b"POST /x HTTP/1.1\r\nHost: h\r\n")
    assert head(more="A: b\r\n") == first


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://h", "/api/chat"),
        ("http://h/", "/api/chat"),
        ("http://h/v1", "/api/chat"),
        ("http://h/proxy/v1/", "/proxy/api/chat"),
        ("http://h/deep", "/deep/api/chat"),
        ("unix:/run/x.sock", "/api/chat"),
        ("unix:/run/x.sock:/demo/v1", "/demo/api/chat"),
    ],
)
async def test_a_path_may_count_from_where_the_server_begins(url: str, path: str) -> None:
    """Ollama's own API stands beside its /v1, wherever a proxy has put the two."""
    head = pool_of(url).request_head("POST", "/api/chat", 2, stream=True, at_root=True)
    assert head.startswith(f"POST {path} HTTP/1.1\r\n".encode())


@pytest.mark.parametrize(
    ("url", "header", "line"),
    [
        ("http://h", None, b"Authorization: Bearer sk-1"),
        ("http://h", "x-api-key", b"x-api-key: sk-1"),
        ("https://api.anthropic.com/v1", None, b"x-api-key: sk-1"),
        ("https://API.Anthropic.com", None, b"x-api-key: sk-1"),
        ("https://api.anthropic.com.h/v1", None, b"Authorization: Bearer sk-1"),
        ("https://api.anthropic.com/v1", "authorization", b"Authorization: Bearer sk-1"),
    ],
)
async def test_the_key_goes_where_the_upstream_looks_for_it(
    url: str, header: str | None, line: bytes
) -> None:
    """As a Bearer token, or as x-api-key where that is set or the host is known for it."""
    upstream = Upstream(name="box", url=url, api_key_header=header)
    lines = UpstreamPool(upstream, Limits(), "sk-1").request_head("GET", "/x", 0, stream=False)
    assert [each for each in lines.split(b"\r\n") if b"sk-1" in each] == [line]


async def test_fixed_headers_go_along_and_secret_ones_hide_themselves() -> None:
    """With every request, behind Host; a User-Agent of the config's stands for ours."""
    headers = {"X-Title": "at home", "user-agent": "mine/1", "X-Gate": HeaderSource(env="GATE")}
    upstream = Upstream(name="box", url="http://h", headers=headers)
    pool = UpstreamPool(upstream, Limits(), "sk-key-1", {"X-Gate": "open sesame"})
    head = pool.request_head("GET", "/models", 0, stream=False).decode()
    assert head.split("\r\n")[1:6] == [
        "Host: h",
        "X-Title: at home",
        "user-agent: mine/1",
        "X-Gate: open sesame",
        "Authorization: Bearer sk-key-1",
    ]
    assert "User-Agent" not in head
    assert pool.secret.hide("open sesame, sk-key-1, at home") == "***, ***, at home"


@pytest.mark.parametrize("url", ["http://" + "a" * 64, "http://user:sesame@h", "http://h:٣", "x"])
async def test_an_upstream_that_cannot_be_used_is_there_and_says_why(url: str) -> None:
    """It is made, is failing with the reason, and each request to it fails like any other."""
    pool = pool_of(url)
    assert (pool.state, pool.reachable) == ("failing", False)
    assert 'upstream "box" cannot be used as it is configured: its url must' in str(pool.last_error)
    for ask in (pool.connect(), fetch(pool, "/models", 1.0)):
        with pytest.raises(UpstreamError, match="its url must") as caught:
            await ask
        assert VERDICTS[FAULT_OF_CODE[caught.value.code]].goes_on
    with pytest.raises(UpstreamError, match="its url must"):
        pool.request_head("GET", "/models", 0, stream=False)
    assert "sesame" not in repr(pool.status())


async def test_any_fault_while_connecting_is_the_upstreams(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a resolver or a TLS library raises besides OSError costs that upstream alone."""

    async def fails(*arguments: object, **more: object) -> None:
        raise UnicodeError("label too long")

    loop = Mock(wraps=asyncio.get_running_loop(), create_connection=fails)
    with monkeypatch.context() as other_loop:
        other_loop.setattr(asyncio, "get_running_loop", lambda: loop)
        pool = pool_of("http://h")
    with pytest.raises(UpstreamError, match="cannot be reached at http://h: UnicodeError"):
        await pool.connect()
    assert "internal error while connecting" in caplog.text


# --- its health -----------------------------------------------------------------------------------


async def test_three_failures_in_a_row_set_it_aside(caplog: pytest.LogCaptureFixture) -> None:
    """Said once with its reason, and once when it is back."""
    caplog.set_level("INFO", "tidegate.upstream")
    pool = pool_of("http://h")
    states = [pool.state]
    for _ in range(5):
        pool.failed("m", "answered 503", Held.TARGET)
        states.append(pool.state)
    assert states == ["unknown", "failing", "failing", *["set aside"] * 3]
    assert not pool.health.may_ask("m", asyncio.get_running_loop().time())
    pool.succeeded("m")
    assert (pool.state, pool.last_error) == ("ok", None)
    pool.succeeded("m")
    assert caplog.messages == [
        "upstream box: its model m is set aside for 5 s: answered 503",
        "upstream box answers again, asked for m",
    ]


async def test_a_failed_trial_sets_it_aside_for_longer(caplog: pytest.LogCaptureFixture) -> None:
    """Which is a line of its own."""
    pool = pool_of("http://h")
    for _ in range(3):
        pool.failed("m", "cannot be reached", Held.UPSTREAM)
    pool.reached(is_well=True)
    assert pool.health.admit("m", asyncio.get_running_loop().time())
    assert (pool.health.whole.state, pool.state) == ("half-open", "set aside")
    pool.failed("m", "hung up", Held.UPSTREAM)
    assert caplog.messages[1:] == ["upstream box: it is set aside for 10 s: hung up"]


async def test_a_failure_that_is_not_its_fault_does_not_count() -> None:
    """It is shown, and the breaker hears nothing of it."""
    pool = pool_of("http://h")
    for _ in range(5):
        pool.failed("m", "answered 429")
    assert (pool.state, pool.last_error) == ("failing", "answered 429")
    assert pool.health.may_ask("m", asyncio.get_running_loop().time())


async def test_being_reached_says_nothing_about_requests() -> None:
    """A server that lists its models may be dead for requests, and the other way round."""
    pool = pool_of("http://h")
    for _ in range(5):
        pool.unreached("is gone")
    assert (pool.state, pool.reachable, pool.health.is_aside) == ("failing", False, False)
    pool.reached(is_well=True)
    assert (pool.state, pool.reachable, pool.last_error) == ("ok", True, None)
    for _ in range(3):
        pool.failed("m", "answered 503", Held.TARGET)
    pool.reached(is_well=True)
    assert (pool.state, pool.reachable, pool.last_error) == ("set aside", True, "answered 503")


async def test_the_last_figures_of_each_model_are_kept() -> None:
    """Time and speed come separately, and the newest of each counts."""
    pool = pool_of("http://h")
    pool.note_first_output("a", 3.0)
    pool.note_speed("a", 50.0, "tokens/s")
    pool.note_first_output("a", 0.2)
    pool.note_speed("b", 9.0, "events/s")
    assert pool.figures == {
        "a": ModelFigures(0.2, 50.0, "tokens/s"),
        "b": ModelFigures(None, 9.0, "events/s"),
    }


async def test_figures_are_bounded() -> None:
    """The model that was used longest ago goes; a name that is no name is not kept."""
    pool = pool_of("http://h")
    for number in range(MAX_MODELS_NOTED):
        pool.note_first_output(f"m{number}", 1.0)
    pool.note_speed("m0", 1.0, "tokens/s")
    pool.note_first_output("one more", 1.0)
    pool.note_first_output("x" * (MAX_NAME_NOTED + 1), 1.0)
    assert len(pool.figures) == MAX_MODELS_NOTED
    assert "m0" in pool.figures
    assert "m1" not in pool.figures


async def test_the_status_tells_what_happened() -> None:
    """Unknown at first, then as the last attempt went."""
    pool = pool_of("http://h")
    assert (pool.status().state, pool.reachable) == ("unknown", None)
    pool.failed("m", "it burns")
    assert (pool.status().state, pool.status().last_error) == ("failing", "it burns")
    pool.succeeded("m")
    assert (pool.status().state, pool.status().last_error, pool.reachable) == ("ok", None, True)


# --- connections ----------------------------------------------------------------------------------


async def test_a_refused_connection_names_the_upstream_and_leaves_nothing() -> None:
    """However often it is tried: an upstream that is off for days must not fill the memory."""
    pool = pool_of(unused_url())
    for _ in range(20):
        with pytest.raises(UpstreamError, match="cannot be reached at http://127") as caught:
            await pool.connect()
    assert caught.value.code == "connect_failed"
    assert pool.status().connections == 0


async def test_a_missing_socket_leaves_nothing(tmp_path) -> None:
    """The same over a Unix socket."""
    pool = pool_of(f"unix:{tmp_path}/no.sock")
    for _ in range(20):
        with pytest.raises(UpstreamError, match="cannot be reached"):
            await pool.connect()
    assert pool.status().connections == 0


async def test_a_connection_that_is_not_accepted_has_a_limit() -> None:
    """A full backlog answers nothing: connect_s ends it, by name."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = deaf.getsockname()
        fill = [socket.socket() for _ in range(4)]
        try:
            for sock in fill:
                sock.setblocking(False)
                sock.connect_ex(address)
            pool = pool_of(f"http://127.0.0.1:{address[1]}", connect_s=0.2)
            with pytest.raises(UpstreamError, match=r"connect_s = 0\.2 s") as caught:
                await pool.connect()
            assert caught.value.code == "connect_timeout"
            assert pool.status().connections == 0
        finally:
            for sock in fill:
                sock.close()


async def test_a_cancelled_connect_leaves_nothing(raw_upstream) -> None:
    """At whatever moment."""

    async def play(peer: Peer) -> None:
        await peer.hang()

    upstream = await raw_upstream(play)
    pool = pool_of(upstream.url)
    for turns in range(8):
        task = asyncio.ensure_future(pool.connect())
        for _ in range(turns):
            await asyncio.sleep(0)
        if not task.cancel():
            (await task).abort()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            task.result().abort()
    await none_left(pool)
    await until(lambda: not upstream.open_connections, DEADLINE_S, "the upstream sees that too")


async def kept(pool: UpstreamPool, count: int) -> None:
    """`count` connections at once, all idle again."""
    all_heard = []
    for _ in range(count):
        all_heard.append(Heard())
        connection = await pool.connect()
        connection.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", all_heard[-1])
    for heard in all_heard:
        await heard.over()


async def test_idle_connections_are_bounded(raw_upstream) -> None:
    """Of a burst only MAX_IDLE are kept."""
    upstream = await raw_upstream(answers)
    pool = pool_of(upstream.url)
    await kept(pool, MAX_IDLE + 6)
    await until(lambda: pool.status().connections == MAX_IDLE, DEADLINE_S, "the others are closed")
    await closed(pool)


async def test_an_idle_connection_is_closed_in_time(
    raw_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by itself, when no request asks for one: an upstream that never closes keeps nothing."""
    monkeypatch.setattr("tidegate.gateway.upstreams.connection.IDLE_S", 0.1)
    upstream = await raw_upstream(answers)
    pool = pool_of(upstream.url)
    await kept(pool, 3)
    assert pool.status().connections == 3
    await none_left(pool)
    await until(lambda: not upstream.open_connections, DEADLINE_S, "the upstream sees that")
    await kept(pool, 1)
    await none_left(pool)


async def test_a_connection_that_was_closed_is_not_handed_out(raw_upstream) -> None:
    """The upstream hung up in the meantime: the next one is tried."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(b"{}"))

    pool = pool_of((await raw_upstream(play)).url)
    await kept(pool, 2)
    await none_left(pool)
    assert pool.take_idle() is None


async def test_closing_idle_ones_leaves_those_in_use(raw_upstream) -> None:
    """An answer under way goes on."""

    async def play(peer: Peer) -> None:
        if b"slow" in await peer.request():
            await asyncio.sleep(0.1)
            await peer.send(plain(b"late"))
        else:
            await peer.send(plain(b"{}"))
        await peer.hang()

    pool = pool_of((await raw_upstream(play)).url)
    await kept(pool, 1)
    heard = Heard()
    (await pool.connect()).send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", heard)
    pool.close_idle()
    await heard.over()
    assert heard.body == b"late"
    await closed(pool)


# --- slots and their queue ------------------------------------------------------------------------


class Guest:
    """Waits for a slot."""

    def __init__(self, number: int, served: list[int]) -> None:
        self.number = number
        self.served = served

    def on_slot(self, pool: UpstreamPool) -> None:
        self.served.append(self.number)


async def test_whoever_waits_longest_is_next() -> None:
    """First come, first served, and no request overtakes the queue."""
    pool = pool_of("http://h", most=2, max_queued=10)
    served: list[int] = []
    guests = [Guest(number, served) for number in range(6)]
    assert [pool.take_slot(guest) for guest in guests] == [True, True] + [False] * 4
    pool.release_slot()
    assert served == [2]
    pool.leave_queue(guests[3])
    pool.release_slot()
    assert served == [2, 4]
    pool.release_slot()
    pool.release_slot()
    assert served == [2, 4, 5]
    assert (pool.active, pool.status().queued) == (1, 0)
    pool.release_slot()
    assert pool.active == 0


async def test_a_full_queue_says_so() -> None:
    """The bound is max_queued, and the error tells how it stands."""
    pool = pool_of("http://h", most=1, max_queued=1)
    assert pool.take_slot(Guest(0, []))
    assert not pool.take_slot(Guest(1, []))
    with pytest.raises(UpstreamError, match="1 active, 1 waiting") as caught:
        pool.take_slot(Guest(2, []))
    assert caught.value.code == "queue_full"
    assert (pool.active, pool.status().queued) == (1, 1)


async def test_without_a_limit_nobody_waits() -> None:
    """max_concurrent = 0."""
    pool = pool_of("http://h")
    assert all(pool.take_slot(Guest(number, [])) for number in range(100))
    for _ in range(100):
        pool.release_slot()
    assert pool.active == 0


async def test_two_generations_share_the_slots() -> None:
    """What the other one has under way counts; when it ends, the one that waits here goes on."""
    called: list[int] = []
    pool = pool_of("http://h", most=2)
    pool.share(2)
    assert not pool.take_slot(Guest(0, called))
    pool.share(1)
    assert called == [0]
    assert not pool.take_slot(Guest(1, called))
    pool.share(0)
    assert (called, pool.active) == ([0, 1], 2)
