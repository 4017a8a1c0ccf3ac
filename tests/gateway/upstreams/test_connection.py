"""One connection to an upstream: what it makes of the bytes that come, whatever they are."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from fakes.machine import until
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Heard, Peer, chunked, plain
from gateway.pool_rig import none_left, pool_of
from tidegate.core.errors import UpstreamError
from tidegate.gateway.upstreams import connection as connection_module
from tidegate.gateway.upstreams.connection import MAX_HEAD_BYTES, UpstreamConnection
from tidegate.gateway.upstreams.pool import UpstreamPool

ON_BOTH_LOOPS = True
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def ask(raw_upstream, *answer: bytes, hang: bool = True) -> tuple[Heard, UpstreamPool]:
    """Asks once; the upstream sends `answer`, a piece a write, and then hangs or closes."""

    async def play(peer: Peer) -> None:
        await peer.request()
        for piece in answer:
            await peer.send(piece)
            await asyncio.sleep(0.001)
        if hang:
            await peer.hang()

    pool = pool_of((await raw_upstream(play)).url)
    heard = Heard()
    (await pool.connect()).send(ASK, heard)
    await heard.over()
    return heard, pool


async def take_kept(pool: UpstreamPool) -> UpstreamConnection:
    """Waits for an idle connection, and takes it."""
    taken: list[UpstreamConnection] = []

    def takes() -> bool:
        taken.extend(filter(None, [pool.take_idle()]))
        return bool(taken)

    await until(takes, DEADLINE_S, "the connection is kept")
    return taken[0]


# --- bodies and their ends -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        plain(b"hello"),
        HEAD + chunked(b"he", b"llo") + LAST,
        HEAD + b"2;name=value\r\nhe\r\n" + chunked(b"llo") + b"0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n" + plain(b"hello"),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_a_framed_body_is_told_once_and_the_connection_is_kept(
    raw_upstream, answer: bytes, size: int
) -> None:
    """Content-Length, chunks, trailers and heads before the head, cut anywhere."""
    pieces = [answer[i : i + size] for i in range(0, len(answer), size)]
    heard, pool = await ask(raw_upstream, *pieces)
    assert heard.said[0] == ("head", 200)
    assert heard.body == b"hello"
    assert [said[0] for said in heard.said].count("head") == 1
    assert heard.said[-1] == ("end",)
    assert "a" not in heard.headers
    kept = pool.take_idle()
    assert kept is not None
    assert kept.is_usable
    kept.abort()
    await none_left(pool)


async def test_a_closed_connection_is_freed_without_the_garbage_collector(raw_upstream) -> None:
    """It and its parser hold each other no longer, so nothing waits for a collection."""
    heard, pool = await ask(raw_upstream, HEAD + chunked(b"hel"), hang=False)
    assert heard.said[-1][0] == "lost"
    connection = await pool.connect()
    connection.send(ASK, Heard())
    left = weakref.ref(connection)
    gc.collect()
    gc.disable()
    try:
        connection.abort()
        del connection
        await none_left(pool)
        await until(lambda: left() is None, DEADLINE_S, "it is freed")
    finally:
        gc.enable()


async def test_a_body_without_framing_ends_with_the_connection(raw_upstream) -> None:
    """Only there is a close an end."""
    heard, pool = await ask(raw_upstream, b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", hang=False)
    assert heard.body == b"hello"
    assert heard.said[-1] == ("end",)
    await none_left(pool)


@pytest.mark.parametrize("answer", [plain(b"hello")[:-1], HEAD + chunked(b"hello")])
async def test_a_framed_body_that_stops_is_lost(raw_upstream, answer: bytes) -> None:
    """A close in the middle is no end."""
    heard, pool = await ask(raw_upstream, answer, hang=False)
    assert heard.said[-1] == ("lost", "closed the connection", True)
    await none_left(pool)


async def test_a_reset_is_told_as_one(raw_upstream) -> None:
    """Also of a body that any close would end."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await until(lambda: heard.body == b"hello", DEADLINE_S, "it was read")
        peer.reset()

    pool = pool_of((await raw_upstream(play)).url)
    heard = Heard()
    (await pool.connect()).send(ASK, heard)
    await heard.over()
    assert heard.said[-1] == ("lost", "reset the connection", True)
    await none_left(pool)


async def test_a_close_before_any_byte_says_so(raw_upstream) -> None:
    """`answered` is what a retry depends on."""
    heard, pool = await ask(raw_upstream, hang=False)
    assert heard.said == [("lost", "closed the connection", False)]
    await none_left(pool)


async def test_connection_close_is_obeyed(raw_upstream) -> None:
    """Such a connection is not kept."""
    heard, pool = await ask(raw_upstream, plain(b"hello", b"200 OK", b"Connection: close"))
    assert heard.said[-1] == ("end",)
    assert pool.take_idle() is None
    await none_left(pool)


# --- what an upstream must not do ----------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"\x16\x03\x01 this is TLS\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        HEAD + b"zz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_lost(raw_upstream, answer: bytes) -> None:
    """One answer, one reason, and the connection goes."""
    heard, pool = await ask(raw_upstream, answer)
    assert heard.said[-1] == ("lost", "sent what is not HTTP", True)
    await none_left(pool)


async def test_what_came_before_broken_framing_counts(raw_upstream) -> None:
    """In the same read or in one before: the cut never shows."""
    heard, pool = await ask(raw_upstream, HEAD + chunked(b"hel", b"lo") + b"zz\r\n")
    assert heard.said[0] == ("head", 200)
    assert heard.body == b"hello"
    assert heard.said[-1] == ("lost", "sent what is not HTTP", True)
    await none_left(pool)


@pytest.mark.parametrize("status", [b"000", b"099", b"199"])
@pytest.mark.parametrize("size", [1, 10_000])
async def test_a_body_before_the_answer_is_no_part_of_it(
    raw_upstream, status: bytes, size: int
) -> None:
    """An early head has none, whatever its fields say and the parser believes."""
    answer = plain(b"EVIL", status + b" Odd") + plain(b"hello")
    pieces = [answer[i : i + size] for i in range(0, len(answer), size)]
    heard, pool = await ask(raw_upstream, *pieces)
    assert heard.said[0] == ("head", 200)
    assert heard.body == b"hello"
    assert heard.said[-1] == ("end",)
    pool.close()
    await none_left(pool)


@pytest.mark.parametrize(
    "endless",
    [
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 103 Hints\r\nX: y\r\n\r\n" * 10,
        HEAD + b"0\r\nTrailer: ",
        HEAD + b"5;extension=",
    ],
    ids=["header", "heads", "trailer", "chunk extension"],
)
async def test_what_has_no_end_has_a_bound(raw_upstream, endless: bytes) -> None:
    """The parser keeps what is no body as long as it comes: we count, and break off."""
    sent = 0

    async def play(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        more = endless if endless.endswith(b"\n") else b"y" * 4096
        await peer.send(endless)
        while sent < 64 * MAX_HEAD_BYTES:
            await peer.send(more)
            sent += len(more)
            await asyncio.sleep(0)

    pool = pool_of((await raw_upstream(play)).url)
    heard = Heard()
    (await pool.connect()).send(ASK, heard)
    await heard.over()
    assert heard.said[-1][0] == "lost"
    assert f"more than {MAX_HEAD_BYTES} bytes" in heard.said[-1][1]
    assert sent < 64 * MAX_HEAD_BYTES
    await none_left(pool)


async def test_a_large_head_in_one_piece_is_refused_too(raw_upstream) -> None:
    """Whole or in pieces, the bound is one."""
    fields = b"".join(b"X-%d: %b\r\n" % (i, b"y" * 1000) for i in range(70))
    heard, pool = await ask(raw_upstream, b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n")
    assert heard.said[-1][0] == "lost"
    await none_left(pool)


@pytest.mark.parametrize("behind", [plain(b"EVIL", b"500 Evil"), b"GARBAGE", HEAD[:30]])
async def test_bytes_behind_an_answer_are_nobodys(raw_upstream, behind: bytes) -> None:
    """They neither change that answer nor begin the next one: the connection goes."""
    heard, pool = await ask(raw_upstream, plain(b"hello") + behind)
    assert heard.said == [("head", 200), ("body", b"hello"), ("end",)]
    assert pool.take_idle() is None
    await none_left(pool)


async def test_an_early_hint_behind_an_answer_does_not_hide_it(raw_upstream) -> None:
    """The answer before it was whole, and is told as that."""
    behind = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    heard, pool = await ask(raw_upstream, plain(b"hello") + behind)
    assert heard.said == [("head", 200), ("body", b"hello"), ("end",)]
    assert pool.take_idle() is None
    await none_left(pool)


async def test_an_idle_connection_that_speaks_is_closed(raw_upstream) -> None:
    """No request asked for it."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(b"hello"))
        await until(lambda: heard.is_over, DEADLINE_S, "it was read")
        await peer.send(plain(b"unasked"))
        await peer.hang()

    heard = Heard()
    pool = pool_of((await raw_upstream(play)).url)
    (await pool.connect()).send(ASK, heard)
    await none_left(pool)
    assert heard.said[-1] == ("end",)
    assert pool.take_idle() is None


# --- using it again ----------------------------------------------------------


async def test_a_connection_answers_one_exchange_after_the_other(raw_upstream) -> None:
    """Nothing of the former answer is in the next one."""

    async def play(peer: Peer) -> None:
        for number in range(3):
            await peer.request()
            await peer.send(plain(b"%d" % number, b"200 OK", b"X-%d: y" % number))
        await peer.hang()

    upstream = await raw_upstream(play)
    pool = pool_of(upstream.url)
    connection = await pool.connect()
    for number in range(3):
        heard = Heard()
        assert connection.is_usable
        connection.send(ASK, heard)
        assert not connection.is_usable
        await heard.over()
        assert heard.body == b"%d" % number
        assert [name for name in heard.headers if name.startswith("x-")] == [f"x-{number}"]
        assert pool.take_idle() is connection
    assert connection.is_reused
    assert len(upstream.peers) == 1
    connection.abort()
    await none_left(pool)


@pytest.mark.parametrize(
    ("announced", "kept_s"),
    [
        (b"timeout=3", 2.0),
        (b"max=5, timeout=60", 4.0),
        (b"max=5", 4.0),
        (b"timeout=\xb2", 4.0),  # a digit to str, and no number
        (b"timeout=-3", 4.0),
    ],
)
async def test_it_lies_idle_a_second_less_than_was_announced(
    raw_upstream, announced: bytes, kept_s: float
) -> None:
    """And never longer than 4 s: llama.cpp announces 5 and closes at 4.5."""
    heard, pool = await ask(raw_upstream, plain(b"x", b"200 OK", b"Keep-Alive: " + announced))
    assert heard.said[-1] == ("end",)
    connection = await take_kept(pool)
    now_s = asyncio.get_running_loop().time()
    assert kept_s - 1.0 < connection.idle_until_s - now_s <= kept_s
    connection.abort()
    await none_left(pool)


async def test_what_closes_too_soon_is_not_kept_at_all(raw_upstream) -> None:
    """A second is no time to find out that a connection is gone."""
    heard, pool = await ask(raw_upstream, plain(b"x", b"200 OK", b"Keep-Alive: timeout=1"))
    assert heard.said[-1] == ("end",)
    assert pool.take_idle() is None
    await none_left(pool)


# --- letting go ----------------------------------------------------------


async def let_go_after_body(raw_upstream, *rest: bytes) -> tuple[UpstreamPool, Heard]:
    """An exchange that has all it wants with the first piece of the body."""

    class Satisfied(Heard):
        def on_body(self, data: bytes) -> None:
            super().on_body(data)
            connection.let_go()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(b"all"))
        await until(lambda: heard.body == b"all", DEADLINE_S, "it was read")
        await peer.send(*rest)
        await peer.hang()

    heard = Satisfied()
    pool = pool_of((await raw_upstream(play)).url)
    connection: UpstreamConnection = await pool.connect()
    connection.send(ASK, heard)
    await until(lambda: heard.body == b"all", DEADLINE_S, "it was read")
    return pool, heard


async def test_an_end_that_follows_soon_keeps_the_connection(raw_upstream) -> None:
    """What comes in between is thrown away, and the exchange hears nothing more."""
    pool, heard = await let_go_after_body(raw_upstream, chunked(b"more"), LAST)
    connection = await take_kept(pool)
    assert heard.said == [("head", 200), ("body", b"all")]
    assert connection._linger is None  # seen from outside only after the second it would take
    connection.abort()
    await none_left(pool)


async def test_an_end_that_does_not_come_is_not_waited_for(
    raw_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After LINGER_S the connection goes."""
    monkeypatch.setattr(connection_module, "LINGER_S", 0.1)
    pool, heard = await let_go_after_body(raw_upstream)
    await none_left(pool)
    assert heard.said == [("head", 200), ("body", b"all")]


async def sends_all(peer: Peer) -> None:
    """A play: a whole answer in one write."""
    await peer.request()
    await peer.send(HEAD + chunked(b"all") + LAST)
    await peer.hang()


async def test_letting_go_with_the_end_at_hand_keeps_it_at_once(raw_upstream) -> None:
    """The terminal marker and the end of the body in one read."""

    class Satisfied(Heard):
        def on_body(self, data: bytes) -> None:
            super().on_body(data)
            connection.let_go()

    heard = Satisfied()
    pool = pool_of((await raw_upstream(sends_all)).url)
    connection = await pool.connect()
    connection.send(ASK, heard)
    assert await take_kept(pool) is connection
    connection.abort()
    await none_left(pool)


async def test_after_an_abort_the_exchange_hears_nothing(raw_upstream) -> None:
    """Not even that the connection was lost."""

    class Fickle(Heard):
        def on_head(self, status: int, headers: dict[str, str]) -> None:
            super().on_head(status, headers)
            connection.abort()

    heard = Fickle()
    pool = pool_of((await raw_upstream(sends_all)).url)
    connection = await pool.connect()
    connection.send(ASK, heard)
    await none_left(pool)
    assert heard.said == [("head", 200)]


async def test_pausing_stops_the_upstream_and_resuming_loses_nothing(raw_upstream) -> None:
    """Bytes wait in the kernel, not here."""
    body = b"0123456789" * 4_000_000
    sent = 0

    async def play(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 65536):
            await peer.send(body[start : start + 65536])
            sent = start

    pool = pool_of((await raw_upstream(play)).url)
    heard = Heard()
    connection = await pool.connect()
    connection.send(ASK, heard)
    connection.pause()
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.05)
    assert sent < len(body) // 2
    assert len(heard.body) < 1024 * 1024
    connection.resume()
    await heard.over()
    assert heard.body == body
    connection.abort()
    await none_left(pool)


async def test_an_upstream_that_hangs_up_at_once_is_said_to(raw_upstream) -> None:
    """A forwarder in front of nothing accepts and resets: an error by name, not a fault of ours."""

    async def play(peer: Peer) -> None:
        peer.reset()

    pool = pool_of((await raw_upstream(play)).url)
    for _ in range(50):
        heard = Heard()
        try:
            connection = await pool.connect()
        except UpstreamError:
            continue
        connection.send(ASK, heard)
        await heard.over()
        assert heard.said[-1][0] == "lost"
    await none_left(pool)


# --- bodies that are sent ------------------------------------------------------------------------


class Slow:
    """An upstream that reads nothing of a request before it is told to."""

    def __init__(self) -> None:
        self.may_read = asyncio.Event()
        self.read = b""

    async def play(self, peer: Peer) -> None:
        peer.writer.transport.pause_reading()
        await self.may_read.wait()
        peer.writer.transport.resume_reading()
        self.read = await peer.request()
        await peer.send(plain(b"hello"))
        await peer.hang()


def large_body(size: int) -> list[bytes | memoryview]:
    """In pieces, as it is where another model's name stands in it."""
    whole = b"".join(b"%07d " % number for number in range(size // 8))
    view = memoryview(whole)
    return [b"first", view[:100], b"", view[100 : size // 2], b"in between", view[size // 2 :]]


async def test_of_a_body_that_is_not_read_little_waits_in_the_transport(raw_upstream) -> None:
    """A slice at most, for some transports copy it; read later, it is whole and in order."""
    slow, sent = Slow(), []
    pool = pool_of((await raw_upstream(slow.play)).url)
    connection, heard = await pool.connect(), Heard()
    body = large_body(16 * 1024 * 1024)
    size = sum(map(len, body))
    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size
    connection.send(head, heard, body, lambda: sent.append(True))
    for _ in range(20):
        await asyncio.sleep(0.01)
        # No pool and no ledger is told: the kernel may take the next slice at any moment.
        waiting = connection._transport.get_write_buffer_size()
        assert 0 < waiting <= connection_module.SLICE_BYTES
    assert not sent
    slow.may_read.set()
    await heard.over()
    assert slow.read == head + b"".join(body)
    assert sent == [True]
    kept = pool.take_idle()
    assert kept is connection
    kept.abort()
    await none_left(pool)


async def test_what_is_sent_at_once_is_told_before_send_returns(raw_upstream) -> None:
    """A request as most are."""
    sent: list[bool] = []

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(b"hello"))
        await peer.hang()

    pool = pool_of((await raw_upstream(play)).url)
    heard = Heard()
    head = b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n"
    (await pool.connect()).send(head, heard, [b"wor", b"ld"], lambda: sent.append(True))
    assert sent == [True]
    await heard.over()
    pool.close()
    await none_left(pool)


async def test_a_connection_is_not_kept_whose_upstream_answered_before_it_had_all(
    raw_upstream,
) -> None:
    """What follows would be taken for the rest of the body."""

    async def play(peer: Peer) -> None:
        peer.writer.transport.pause_reading()
        await peer.send(plain(b'{"error":"too large"}', b"413 Too Large"))
        await peer.hang()

    pool = pool_of((await raw_upstream(play)).url)
    connection, heard = await pool.connect(), Heard()
    connection.send(ASK, heard, large_body(16 * 1024 * 1024))
    await heard.over()
    assert heard.said[0] == ("head", 413)
    assert heard.said[-1] == ("end",)
    assert pool.take_idle() is None
    await none_left(pool)


async def test_a_body_is_let_go_of_with_its_connection(raw_upstream) -> None:
    """Nothing of what was not sent is held on."""
    slow = Slow()
    pool = pool_of((await raw_upstream(slow.play)).url)
    connection, heard = await pool.connect(), Heard()
    body = bytearray(16 * 1024 * 1024)
    connection.send(ASK, heard, [memoryview(body)])
    connection.abort()
    await none_left(pool)
    del connection
    await until(lambda: _may_grow(body), DEADLINE_S, "the transport has let go of it too")
    slow.may_read.set()


def _may_grow(body: bytearray) -> bool:
    try:
        body.append(0)  # which fails as long as there is a view of it
    except BufferError:
        return False
    return True
