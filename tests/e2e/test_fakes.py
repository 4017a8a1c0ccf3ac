"""The fakes themselves: what a scenario relies on is checked without a gateway in between."""

import asyncio
import re

import pytest

from fakes.client import Stream, chat, get, numbers, open_chat, parse_events, without_ids, words
from fakes.machine import until
from fakes.upstream import OK, SCRIPTS, ScriptedUpstream


@pytest.mark.parametrize("model", ["ok", "one-byte"])
async def test_a_whole_answer(scripted_upstream: ScriptedUpstream, model: str) -> None:
    """The bytes are those of the script, and the body ends cleanly."""
    answer = await chat(scripted_upstream.url, model)
    assert answer.status == 200
    assert bytes(answer.body) == b"".join(OK)
    assert answer.clean
    assert words(answer.events) == ["one ", "two ", "three"]
    (seen,) = scripted_upstream.seen(model)
    await until(lambda: seen.finished, 5, "the fake knows that it is done")
    assert seen.headers["content-type"] == "application/json"


async def test_numbers_are_counted(scripted_upstream: ScriptedUpstream) -> None:
    """A numbered answer is read back as its numbers, in one go or in two."""
    stream = await open_chat(scripted_upstream.url, "numbered:50:1")
    await stream.read_events(10)
    assert not stream.over
    await stream.read_rest()
    assert numbers(stream.events) == list(range(50))
    await stream.close()


@pytest.mark.parametrize(
    ("model", "clean"), [("drop:3", False), ("reset:3", False), ("no-terminal:3", True)]
)
async def test_a_broken_answer(
    scripted_upstream: ScriptedUpstream, model: str, clean: bool
) -> None:
    """Whether the body ended as its framing says is seen, and half an event is no event."""
    answer = await chat(scripted_upstream.url, model)
    assert numbers(answer.events) == [0, 1, 2]
    assert answer.clean is clean


@pytest.mark.parametrize("model", ["stuck:200", "silent", "headers-then-silent", "comments"])
async def test_a_client_that_goes_away_is_noticed(
    scripted_upstream: ScriptedUpstream, model: str
) -> None:
    """Whatever it was doing, the upstream knows that and when its client went."""
    stream = await open_chat(scripted_upstream.url, model)
    await until(lambda: scripted_upstream.seen(model), 5, "the request arrived")
    assert scripted_upstream.active == 1
    await stream.vanish()
    await until(lambda: scripted_upstream.active == 0, 5, "the client's absence is seen")
    assert scripted_upstream.seen(model)[0].gone_s is not None
    await until(lambda: scripted_upstream.open_connections == 0, 5, "the connection is gone")


async def test_a_client_that_does_not_read_stops_the_upstream(
    scripted_upstream: ScriptedUpstream,
) -> None:
    """What is sent to a client that reads nothing is bounded by the kernel's buffers."""
    stream = await open_chat(scripted_upstream.url, "bulk:50000", receive_buffer=16384)
    await until(lambda: scripted_upstream.seen("bulk:50000"), 5, "the request arrived")
    (seen,) = scripted_upstream.seen("bulk:50000")
    before = -1
    while seen.sent_bytes != before:
        before = seen.sent_bytes
        await asyncio.sleep(0.1)
    assert 0 < seen.sent_bytes < 20_000_000
    await stream.vanish()


async def test_failures_before_an_answer(scripted_upstream: ScriptedUpstream) -> None:
    """A status is the status asked for, with its headers; "once" means once."""
    answer = await chat(scripted_upstream.url, "status:429:7")
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")
    assert (await chat(scripted_upstream.url, "status-once:500")).status == 500
    assert (await chat(scripted_upstream.url, "status-once:500")).status == 200


async def test_an_unplugged_computer_refuses(scripted_upstream: ScriptedUpstream) -> None:
    """After that nothing listens there, and open answers break off."""
    stream = await open_chat(scripted_upstream.url, "stuck:1")
    await stream.read_events(1)
    scripted_upstream.refuse()
    await stream.read_rest()
    assert not stream.clean
    with pytest.raises(ConnectionError):
        await Stream.open(scripted_upstream.url, "/v1/models")
    await stream.close()


async def test_get_is_answered(scripted_upstream: ScriptedUpstream) -> None:
    """A health or models question gets an empty list."""
    assert (await get(scripted_upstream.url, "/v1/models")).json() == {
        "object": "list",
        "data": [],
        "status": "ok",
    }


def test_events_are_parsed() -> None:
    """Ids and names are read, comments are no events, an unfinished tail is left out."""
    body = b": hi\n\nid: 4\ndata: a\n\n: hi\ndata: b\r\n\r\nevent: x\ndata: c\ndata: d\n\ndata: un"
    events = parse_events(body)
    assert [(event.id, event.name, event.data) for event in events] == [
        ("4", "message", b"a"),
        (None, "message", b"b"),
        (None, "x", b"c\nd"),
    ]
    assert without_ids(b"retry: 500\nid: 4\ndata: a\n\nid: 5\ndata: b\n\n") == (
        b"data: a\n\ndata: b\n\n"
    )


def test_every_script_is_described() -> None:
    """The list at the top of the fake names each behaviour, and no other."""
    from fakes import upstream

    table = (upstream.__doc__ or "").partition("whole answers and streams")[2]
    rows = [line for line in table.splitlines() if line.startswith("  ")]
    names = [name for row in rows for name in re.split(r"  +", row.strip())[:-1]]
    described = {re.split(r"[:\[]", name)[0] for name in names}
    assert described == set(SCRIPTS)
