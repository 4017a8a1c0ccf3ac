"""Upstreams whose bytes are cut anywhere, or are garbage: always an honest end, and nothing stays.

A whole answer is sent up to every byte of it, and mutated in seeded ways. What the client may take
for whole is worked out here from the upstream's bytes alone, without the gateway's own framing.
"""

from __future__ import annotations

import asyncio
import json
import random
import re

import pytest

from fakes.client import Stream, get
from fakes.upstream import WORDS
from fakes.wire import wire_for
from gateway.gateway_rig import LAST, Peer, Rig, chunked
from gateway.relay.test_every_fault import STREAMED, Form

ON_EVERY_ROAD = True
pytestmark = pytest.mark.long

AT_ONCE = 64
MUTANTS = 400  # of each format
LIMITS = {"first_output_s": 3.0, "idle_s": 3.0, "total_s": 20.0}
MOST_S = 60.0
_CHUNK = re.compile(rb"([0-9a-f]+)\r\n")


def whole_answer(form: Form) -> bytes:
    """Head and body of "ok", each event in a chunk of its own."""
    wire = wire_for(form.path, "m")
    events = [*wire.opening(), *map(wire.word, WORDS), *wire.finish(), *wire.done()]
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {wire.content_type}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    return head.encode() + chunked(*events) + LAST


def body_of(sent: bytes) -> bytes:
    """The body bytes that a well-formed, perhaps unfinished, answer has brought."""
    _, _, rest = sent.partition(b"\r\n\r\n")
    body = b""
    while found := _CHUNK.match(rest):
        size = int(found[1], 16)
        body += rest[found.end() : found.end() + size]
        rest = rest[found.end() + size + 2 :]
    return body


def may_be_whole(form: Form, sent: bytes) -> bool:
    """Whether the upstream's bytes have an end in them: a marker, or why it stopped."""
    body = body_of(sent)
    if form.is_ollama:
        *lines, last = body.split(b"\n")
        return any(b'"done":true' in line for line in [*lines, last if is_json(last) else b""])
    events = body.split(b"\n\n")[:-1]
    ends = (form.marker(), b'"finish_reason":"stop"', b'"stop_reason":"end_turn"')
    return any(end in event for event in events for end in ends)


def is_json(line: bytes) -> bool:
    """Whether a line is whole though its end is missing."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


async def ask_all(rig: Rig, form: Form, count: int) -> dict[int, Stream]:
    """Asks for each model "0", "1", …; some at a time, and never longer than their limits."""
    gate = asyncio.Semaphore(AT_ONCE)
    answers: dict[int, Stream] = {}

    async def ask(number: int) -> None:
        async with gate:
            request = get(rig.base_url, form.path, form.body(f"n{number}n", stream=True))
            answers[number] = await asyncio.wait_for(request, MOST_S)

    await asyncio.gather(*(ask(number) for number in range(count)))
    return answers


def player(answers: list[bytes]):
    """An upstream that answers model "n7n" with the seventh, and hangs up."""

    async def play(peer: Peer) -> None:
        request = await peer.request()
        found = re.search(rb'"n(\d+)n"', request)
        assert found is not None
        await peer.send(answers[int(found[1])])

    return play


def judge(form: Form, sent: bytes, answer: Stream, *, well_formed: bool) -> str:
    """What is wrong with what the client saw; empty if nothing is."""
    body = bytes(answer.body)
    if answer.status != 200:
        return "" if form.is_error(answer.json()) else f"{answer.status} without an error: {body!r}"
    if is_told(form, body):
        if well_formed and form.marker() in body:
            return "an error and a marker"
        return "whole, but told as broken" if well_formed and may_be_whole(form, sent) else ""
    if form.marker() in body and form.marker() not in sent:
        return "a marker that was not sent"
    if well_formed and not may_be_whole(form, sent):
        return f"a part looks whole: {body[-200:]!r}"
    return "" if answer.clean else "neither an end nor an error"


def is_told(form: Form, body: bytes) -> bool:
    """Whether the stream ends in an error of its format."""
    try:
        return form.tells_error(body)
    except (ValueError, KeyError, TypeError, IndexError):
        return False  # a marker, or an event that was mutated


def check(form: Form, sent: list[bytes], answers: dict[int, Stream], *, well_formed: bool) -> None:
    wrong = [
        f"{number}: {said}"
        for number, answer in answers.items()
        if (said := judge(form, sent[number], answer, well_formed=well_formed))
    ]
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize("form", STREAMED, ids=lambda form: form.path)
async def test_a_cut_at_every_byte(rigs, raw_upstream, form: Form) -> None:
    """Wherever it is cut, the answer is whole only if the upstream had said its end."""
    whole = whole_answer(form)
    sent = [whole[:size] for size in range(len(whole) + 1)]
    rig = await rigs(await raw_upstream(player(sent)), **LIMITS)
    check(form, sent, await ask_all(rig, form, len(sent)), well_formed=True)


@pytest.mark.parametrize("form", STREAMED, ids=lambda form: form.path)
async def test_garbage(rigs, raw_upstream, form: Form) -> None:
    """Bytes flipped, lost, doubled and made up: an answer, or an error, in time; nothing else."""
    dice = random.Random(form.path)
    whole = whole_answer(form)
    sent = [mutate(whole, dice) for _ in range(MUTANTS)]
    rig = await rigs(await raw_upstream(player(sent)), **LIMITS)
    check(form, sent, await ask_all(rig, form, len(sent)), well_formed=False)


def mutate(whole: bytes, dice: random.Random) -> bytes:
    """One to four changes, in the body mostly, for a broken head ends it early."""
    data = bytearray(whole)
    body = whole.index(b"\r\n\r\n") + 4
    for _ in range(dice.randint(1, 4)):
        first = 0 if dice.random() < 0.2 else body
        at = dice.randrange(min(first, len(data) - 1), len(data))
        match dice.randrange(6):
            case 0:
                data[at] = dice.randrange(256)
            case 1:
                del data[at : at + dice.randint(1, 40)]
            case 2:
                data[at:at] = dice.randbytes(dice.randint(1, 40))
            case 3:
                data[at:at] = data[at : at + dice.randint(1, 200)]
            case 4:
                data[at:at] = dice.choice([b"\n", b"\r\n\r\n", b"0\r\n\r\n", b"\x00", b": x\n\n"])
            case _:
                data[at:] = dice.randbytes(dice.randint(0, 200))
    return bytes(data)
