"""A client's WebSocket: what it makes us hold is charged, bounded and given up in time."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from typing import Any

import pytest

from fakes.machine import until
from gateway.gateway_rig import DEADLINE_S, HEAD, Peer, Rig, chunked
from tidegate.core.http.frames import Opcode, frame, unmasked
from tidegate.core.runs.ledger import Entry
from tidegate.core.settings import Token
from tidegate.gateway.server.websocket import WebSocket

ON_BOTH_LOOPS = True
KIB = 1024
MIB = 1024 * KIB
MASK = b"\x11\x22\x33\x44"
CREATED = b'event: response.created\ndata: {"type":"response.created","response":{"id":"r"}}\n\n'
DONE = b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r"}}\n\n'


def sent(opcode: int, data: bytes, *, fin: bool = True) -> bytes:
    """A client's frame."""
    size = len(data)
    head = struct.pack("!BBQ", opcode | (0x80 if fin else 0), 0xFF, size)
    return head + MASK + unmasked(data, MASK)


def create(**values: object) -> bytes:
    return json.dumps({"type": "response.create", "model": "m", "input": "hi", **values}).encode()


KEYS = ("one-key", "another-key")
TOKENS = [Token(name=key, sha256=sha256(key.encode()).hexdigest()) for key in KEYS]


def key(number: int) -> dict[str, str]:
    """The header of one of two owners."""
    return {"Authorization": f"Bearer {KEYS[number]}"}


class Wire:
    """A WebSocket at the level of its bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
        await self.writer.drain()

    async def frame(self) -> tuple[int, bytes]:
        """The next frame; raises IncompleteReadError when the connection is gone."""
        first, size = await self.reader.readexactly(2)
        if size > 125:
            size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8))
        return first & 15, await self.reader.readexactly(size)

    async def told(self) -> Any:
        """The next message."""
        async with asyncio.timeout(DEADLINE_S):
            while (found := await self.frame())[0] != Opcode.TEXT:
                assert found[0] == Opcode.PING, found
                await self.send(sent(Opcode.PONG, found[1]))
        return json.loads(found[1])

    async def closed(self) -> tuple[int, str]:
        """The code and the reason of the close frame that comes next."""
        async with asyncio.timeout(DEADLINE_S):
            opcode, data = await self.frame()
        assert opcode == Opcode.CLOSE, (opcode, data)
        return int.from_bytes(data[:2]), data[2:].decode()


@asynccontextmanager
async def wire(
    rig: Rig, path: str = "/v1/responses", *, receive_bytes: int = 0, **headers: str
) -> AsyncIterator[Wire]:
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", rig.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=2**16)
    fields = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
        assert b"xtensions" not in head
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def sockets(rig: Rig) -> list[WebSocket]:
    """The open ones, which the gateway itself only counts and goes through."""
    return list(rig.gateway.sockets._open)


def ledger_bytes(rig: Rig, entry: Entry) -> int:
    return rig.gateway.registry.ledger.entries[entry]


async def answers(peer: Peer) -> None:
    """An upstream that completes whatever it is asked."""
    while True:
        await peer.request()
        await peer.send(HEAD, chunked(CREATED, DONE), b"0\r\n\r\n")


async def arrived(rig: Rig, size: int, entry: Entry = Entry.MESSAGE) -> None:
    await until(lambda: ledger_bytes(rig, entry) >= size, DEADLINE_S, f"{size} bytes are charged")


async def nothing_arriving(rig: Rig) -> None:
    await until(lambda: not ledger_bytes(rig, Entry.MESSAGE), DEADLINE_S, "nothing is arriving")


# --- a message in the making --------------------------------------------------------------------


@pytest.mark.parametrize("is_cut", [False, True], ids=["one frame", "fragments"])
async def test_a_message_is_charged_while_it_arrives(rigs, raw_upstream, is_cut: bool) -> None:
    """With every read, until it is whole; then it is the request's body."""
    rig = await rigs(await raw_upstream(answers))
    message = create(input="x" * MIB)
    whole = sent(Opcode.TEXT, message)
    if is_cut:
        half = len(message) // 2
        whole = sent(Opcode.TEXT, message[:half], fin=False)
        whole += sent(Opcode.PING, b"?") + sent(Opcode.CONTINUATION, message[half:])
    async with wire(rig) as client:
        for at in range(0, len(whole) - 1, 200 * KIB):
            await client.send(whole[at : at + 200 * KIB][: len(whole) - 1 - at])
            await arrived(rig, min(at + 200 * KIB, len(whole) - 1) - 100)
        await client.send(whole[-1:])
        if is_cut:
            assert await client.frame() == (Opcode.PONG, b"?")
        while (await client.told())["type"] != "response.completed":
            pass
        assert not ledger_bytes(rig, Entry.MESSAGE)
    await until(lambda: not ledger_bytes(rig, Entry.BODY), DEADLINE_S, "it is forgotten")


async def test_a_message_has_body_s_whatever_comes_in_between(rigs, raw_upstream) -> None:
    """Pings are answered and do not stretch it: it is told which limit it was."""
    rig = await rigs(await raw_upstream(answers), body_s=0.6)
    async with wire(rig) as client:
        await client.send(sent(Opcode.TEXT, create(), fin=False))
        told = None
        async with asyncio.timeout(DEADLINE_S):
            while told is None:
                await client.send(
                    sent(Opcode.PING, b"?"), sent(Opcode.CONTINUATION, b" ", fin=False)
                )
                opcode, data = await client.frame()
                told = None if opcode == Opcode.PONG else json.loads(data)
        assert (told["status"], told["error"]["code"]) == (408, "body_timeout")
        code, reason = await closed_behind_pongs(client)
        assert code == 1008
        assert "limits.body_s" in reason
    await nothing_arriving(rig)


async def closed_behind_pongs(client: Wire) -> tuple[int, str]:
    async with asyncio.timeout(DEADLINE_S):
        while (found := await client.frame())[0] == Opcode.PONG:
            pass
    assert found[0] == Opcode.CLOSE
    return int.from_bytes(found[1][:2]), found[1][2:].decode()


async def test_a_part_of_a_header_has_no_longer(rigs, raw_upstream) -> None:
    """It is a message that has begun."""
    rig = await rigs(await raw_upstream(answers), body_s=0.3)
    async with wire(rig) as client:
        await client.send(b"\x81")
        assert (await client.told())["error"]["code"] == "body_timeout"


async def test_each_message_has_its_own_time(rigs, raw_upstream) -> None:
    """Many whole ones, one after the other, are never late; nor is one that asks nothing."""
    rig = await rigs(await raw_upstream(answers), body_s=0.4)
    async with wire(rig) as client:
        began_s = rig.gateway.loop.time()
        message = sent(Opcode.TEXT, create())
        await client.send(message[:1])
        while rig.gateway.loop.time() < began_s + 1.0:
            await client.send(message[1:] + message[:1])  # there is always one that has begun
            while (await client.told())["type"] != "response.completed":
                pass
        await client.send(message[1:])
        assert (await client.told())["type"] == "response.created"


@pytest.mark.parametrize("limit_bytes", [0, 4 * MIB])
async def test_a_message_that_can_never_fit_is_refused_by_its_header(
    rigs, raw_upstream, limit_bytes: int
) -> None:
    """413 and 1009, with the setting that says so; nothing of it is held."""
    rig = await rigs(await raw_upstream(answers), max_body_bytes=3 * MIB)
    rig.facts(ledger_limit_bytes=limit_bytes)
    setting = "memory.budget" if limit_bytes else "limits.max_body"
    async with wire(rig) as client:
        await client.send(sent(Opcode.TEXT, b"x" * (4 * MIB))[:1000])
        told = await client.told()
        assert (told["status"], told["error"]["code"]) == (413, "body_too_large")
        assert setting in told["error"]["message"]
        code, reason = await client.closed()
        assert code == 1009
        assert setting in reason
        assert not ledger_bytes(rig, Entry.MESSAGE)


async def test_one_owners_messages_have_half_of_what_clients_may_send(rigs, raw_upstream) -> None:
    """The one that is too much is refused; those of another owner go on, and so does one alone."""
    upstream = await raw_upstream(answers)
    rig = await rigs(upstream)
    rig.facts(ledger_limit_bytes=8 * MIB)  # 4 for what clients send, 2 for one owner
    body = create(input="x" * (3 * MIB - 200))
    part = sent(Opcode.TEXT, body)
    async with wire(rig) as first, wire(rig) as second:
        await first.send(part[: 1500 * KIB])
        await arrived(rig, 1500 * KIB)
        await second.send(part[: 1000 * KIB])
        told = await second.told()
        assert (told["status"], told["error"]["code"]) == (503, "memory_limit")
        assert "from this client" in told["error"]["message"]
        assert (await second.closed())[0] == 1013
        await first.send(part[1500 * KIB :])
        assert (await first.told())["type"] == "response.created"


async def test_messages_that_do_not_grow_go_when_clients_have_sent_too_much(
    rigs, raw_upstream, monkeypatch
) -> None:
    """Those that grow go on."""
    monkeypatch.setattr("tidegate.gateway.server.sockets.STALLED_S", 0.3)
    rig = await rigs(await raw_upstream(answers), tokens=TOKENS)
    rig.facts(ledger_limit_bytes=8 * MIB)
    part = sent(Opcode.TEXT, create(input="x" * (3 * MIB)))
    async with wire(rig, **key(0)) as stalled, wire(rig, **key(1)) as grows:
        (one, _) = sockets(rig)
        await stalled.send(part[: 1500 * KIB])
        await arrived(rig, 1500 * KIB)
        await until(
            lambda: rig.gateway.loop.time() > one.grew_s + 0.4, DEADLINE_S, "it has stalled"
        )
        await grows.send(part)
        assert (await grows.told())["type"] == "response.created"
        told = await stalled.told()
        assert (told["status"], told["error"]["code"]) == (503, "memory_limit")
        assert (await stalled.closed())[0] == 1013


async def test_when_nothing_can_go_the_message_that_is_too_much_is_refused(
    rigs, raw_upstream
) -> None:
    """And no more than is allowed is held at any time."""
    rig = await rigs(await raw_upstream(answers), tokens=TOKENS)
    rig.facts(ledger_limit_bytes=8 * MIB)
    part = sent(Opcode.TEXT, create(input="x" * (3 * MIB)))
    async with wire(rig, **key(0)) as one, wire(rig, **key(1)) as other:
        await one.send(part[: 2500 * KIB])
        await arrived(rig, 2500 * KIB)
        await other.send(part[: 2500 * KIB])
        assert (await other.told())["error"]["code"] == "memory_limit"
        assert (await other.closed())[0] == 1013
        assert ledger_bytes(rig, Entry.MESSAGE) <= 4 * MIB
        await one.send(part[2500 * KIB :])
        assert (await one.told())["type"] == "response.created"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (sent(Opcode.TEXT, b"\xff"), 1007),
        (b"\x81\x01x", 1002),  # not masked
        (b"\xc1\x80" + MASK, 1002),  # compressed, as it was never agreed to
        (sent(Opcode.CONTINUATION, b"x"), 1002),
        (sent(Opcode.CLOSE, b"\x03\xe8\xff"), 1007),
        (sent(Opcode.CLOSE, b"\x00\x01"), 1002),
        (sent(Opcode.CLOSE, b"\x0f\xa0bye"), 4000),
        (sent(Opcode.CLOSE, b""), 1000),
    ],
)
async def test_what_is_no_websocket_ends_it(rigs, raw_upstream, data: bytes, code: int) -> None:
    """With the code that says why; a close is answered with its own."""
    rig = await rigs(await raw_upstream(answers))
    async with wire(rig) as client:
        await client.send(data)
        assert (await client.closed())[0] == code
        if code != 1000:
            await client.send(sent(Opcode.CLOSE, b""))
        async with asyncio.timeout(DEADLINE_S):
            with suppress(ConnectionResetError):  # what came behind the fault was not read
                assert await client.reader.read() == b""
    await until(lambda: not sockets(rig), DEADLINE_S, "it is gone")


async def test_a_compressed_bomb_is_never_inflated(rigs, raw_upstream) -> None:
    """The extension is not agreed to, whichever client asks for it."""
    rig = await rigs(await raw_upstream(answers))
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    async with wire(rig, **offer) as client:
        await client.send(b"\xc1\xfe\x10\x00" + MASK + bytes(4096))
        assert (await client.closed())[0] == 1002


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Sec-WebSocket-Key": "\xe9" * 24}, 400),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Connection": "close"}, 400),
    ],
)
async def test_a_handshake_that_is_none_has_a_status(
    rigs, raw_upstream, headers: dict[str, str], status: int
) -> None:
    """And an error of the format's."""
    rig = await rigs(await raw_upstream(answers))
    with pytest.raises(AssertionError) as refused:
        async with wire(rig, **headers):
            pass
    assert f"HTTP/1.1 {status} " in str(refused.value)
    assert not sockets(rig)


# --- a client that reads nothing ------------------------------------------------------------------


async def test_pings_are_not_read_while_their_answers_are_not(rigs, raw_upstream) -> None:
    """A client that asks and never reads makes us hold a bounded amount, which is counted."""
    rig = await rigs(await raw_upstream(answers), keepalive_s=60.0)
    flood = sent(Opcode.PING, b"x" * 125) * 500
    async with wire(rig, receive_bytes=4096) as client:
        (held,) = sockets(rig)
        transport = client.writer.transport
        # What has left us is in the gateway's socket or its kernel: it stops when both are full.
        async with asyncio.timeout(DEADLINE_S):
            while not transport.get_write_buffer_size():
                client.writer.write(flood)
                await asyncio.sleep(0)
        await arrived(rig, 1, Entry.OUTBOUND)
        await until(lambda: held.arriving_bytes > 0, DEADLINE_S, "it waits for what it wrote")
        assert held.arriving_bytes <= 300 * KIB
        assert 0 < held.account.entries[Entry.OUTBOUND] <= 200 * KIB
        assert held.client.outbound_bytes == held.account.entries[Entry.OUTBOUND]


async def test_a_flood_of_tiny_frames_lets_others_through(rigs, raw_upstream) -> None:
    """It is answered some frames at a time."""
    rig = await rigs(await raw_upstream(answers))
    turns: list[int] = []
    async with wire(rig) as client, wire(rig) as other:
        (first, _) = sockets(rig)
        wrote: Callable[[bytes], bool] = first.write
        first.write = lambda frames: (turns.append(1), wrote(frames))[1]  # type: ignore[method-assign]
        await client.send((b"\x89\x80" + MASK) * 20_000 + sent(Opcode.TEXT, create()))
        await other.send(sent(Opcode.TEXT, create()))
        while (await other.told())["type"] != "response.completed":
            pass
        assert len(turns) < 20_000
        async with asyncio.timeout(DEADLINE_S):
            while (await client.frame())[0] == Opcode.PONG:
                pass


async def test_a_reader_that_reads_nothing_is_counted_at_every_message(rigs, raw_upstream) -> None:
    """In the run's account, also while it waits; then it is dropped, and its upstream with it."""
    big = b'data: {"type":"response.output_text.delta","delta":"%b"}\n\n' % (b"x" * 4000)

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD, chunked(CREATED))
        while True:
            await peer.send(chunked(big))

    rig = await rigs(await raw_upstream(play), stall_s=1.0)
    async with wire(rig, receive_bytes=4096) as client:
        (held,) = sockets(rig)
        await client.send(sent(Opcode.TEXT, create()))
        await arrived(rig, 64 * KIB, Entry.OUTBOUND)
        run = rig.relay().run
        assert run.account.entries[Entry.OUTBOUND] == held.client.outbound_bytes > 0
        assert held.account.entries[Entry.OUTBOUND] == 0
        assert held.client.outbound_bytes <= 128 * KIB
        await until(lambda: not sockets(rig), DEADLINE_S, "it was dropped")
        await until(lambda: run.is_over, DEADLINE_S, "its run is over")
    assert run.state.value == "cancelled"


async def test_errors_that_are_not_read_are_counted(rigs, raw_upstream) -> None:
    """In the socket's own account; nothing more is read meanwhile, and then it is dropped."""
    rig = await rigs(await raw_upstream(answers), stall_s=1.0)
    flood = sent(Opcode.TEXT, b"{}") * 12_000
    async with wire(rig, receive_bytes=32 * KIB) as client:
        (held,) = sockets(rig)
        client.writer.write(flood)
        await arrived(rig, 64 * KIB, Entry.OUTBOUND)
        assert held.account.entries[Entry.OUTBOUND] == held.client.outbound_bytes <= 200 * KIB
        await until(lambda: not sockets(rig), DEADLINE_S, "it was dropped")


@pytest.mark.long
async def test_a_slow_reader_is_not_taken_for_a_dead_one(rigs, raw_upstream) -> None:
    """It comes to its pings late, and has all of a long answer in order."""
    words = [
        b'data: {"type":"response.output_text.delta","delta":"%d %b"}\n\n' % (n, b"x" * 4000)
        for n in range(400)
    ]

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD, chunked(CREATED, *words, DONE), b"0\r\n\r\n")

    rig = await rigs(await raw_upstream(play), keepalive_s=0.2, stall_s=20.0)
    async with wire(rig, receive_bytes=4096) as client:
        await client.send(sent(Opcode.TEXT, create()))
        assert (await client.told())["type"] == "response.created"
        for n in range(400):
            assert (await client.told())["delta"].startswith(f"{n} ")
            if not n % 20:
                await asyncio.sleep(0.1)
        assert (await client.told())["type"] == "response.completed"


async def test_a_client_that_answers_no_ping_is_gone(rigs, raw_upstream) -> None:
    """Where nothing else is said; a client that answers stays."""
    rig = await rigs(await raw_upstream(answers), keepalive_s=0.2)
    async with wire(rig) as deaf, wire(rig) as there:
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(6):
                assert await there.frame() == (Opcode.PING, b"")
                await there.send(sent(Opcode.PONG, b""))
            assert set(await deaf.reader.read()) <= set(frame(Opcode.PING, b""))
        assert len(sockets(rig)) == 1


def test_a_frame_of_the_rig_is_one_of_ours() -> None:
    """What the tests send is what the gateway's own frames are, but for the mask."""
    assert sent(Opcode.TEXT, b"x" * 70_000)[14:] == unmasked(
        frame(Opcode.TEXT, b"x" * 70_000)[10:], MASK
    )
