"""What a WebSocket's next request goes on from: former input, answer, new input."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tidegate.core.formats import conversation
from tidegate.core.formats.conversation import Turn


def asked(**fields: Any) -> bytes:
    return json.dumps({"type": "response.create", "model": "m", **fields}).encode()


def request(message: bytes, former: Turn | None = None) -> Turn:
    return conversation.request(conversation.read(message).fields, former)


def item_done(item: bytes) -> bytes:
    return b'data: {"type":"response.output_item.done","item":%b}\n\n' % item


def done(output: bytes) -> bytes:
    return b'data: {"type":"response.completed","response":{"id":"r","output":%b}}\n\n' % output


def answered(turn: Turn, *items: bytes, output: bytes = b"[]") -> Turn:
    for item in items:
        assert turn.add_item(item_done(item))
    turn.finish("r", done(output))
    return turn


ITEM = b'{"role":"assistant","content":"half \\ud83d"}'
USER = '{"type":"message","role":"user","content":'


@pytest.mark.parametrize(
    ("first", "items", "output", "second", "whole"),
    [
        ('"hi"', [ITEM], b"[]", "[1]", f'[{USER}"hi"}},{ITEM.decode()},[1][0]]'),
        ("[1, 2]", [ITEM, b"3"], b"[9]", "[4]", f"[1, 2,{ITEM.decode()},3,4]"),
        ("[1]", [], b"[2 , 3]", "[4]", "[1,2 , 3,4]"),  # no event told of the items
        ("[1]", [], b"[]", "[4]", "[1,4]"),
        ("[ ]", [], b"[]", "[ ]", "[]"),
        ("[]", [b"2"], b"[]", "[ ]", "[2]"),
        ("[1]", [b"2"], b"[]", "null", "[1,2]"),
        ("[1]", [b"2"], b"[]", '"more \\ud83d"', f'[1,2,{USER}"more \\ud83d"}}]'),
    ],
)
def test_a_request_goes_on_from_what_is_held(
    first: str, items: list[bytes], output: bytes, second: str, whole: str
) -> None:
    """Input and answer stand before the new input, byte for byte; the id is gone."""
    head = '{"type":"response.create","model":"m",'
    former = answered(request((head + f'"input":{first}}}').encode()), *items, output=output)
    more = head + f'"previous_response_id":"r","store":false,"input":{second},"tools":[]}}'
    turn = request(more.encode(), former)
    whole = whole.replace("[1][0]", "1")
    assert turn.body[turn.start : -1].decode() == whole
    fields = json.loads(turn.body)
    assert set(fields) == {"model", "store", "stream", "tools", "input"}
    assert fields["stream"] is True


def test_it_goes_on_and_on() -> None:
    """The third request has all that came before."""
    turn = answered(request(asked(input="a")), b'"A"')
    for text, item in (("b", b'"B"'), ("c", b'"C"')):
        turn = answered(request(asked(input=text, previous_response_id="r"), turn), item)
    said = [each if isinstance(each, str) else each["content"] for each in _input(turn)]
    assert said == ["a", "A", "b", "B", "c"]
    assert turn.held_bytes >= len(turn.body) + 3


def _input(turn: Turn) -> list[Any]:
    whole: list[Any] = json.loads(turn.body)["input"]
    return whole


def test_a_request_of_its_own_keeps_every_value() -> None:
    """But for what means nothing over HTTP; what it does not say is not made up."""
    turn = request(asked(input="x", background=True, generate=True, half="\ud83d", store=None))
    assert b'"half":"\\ud83d"' in turn.body.replace(b": ", b":")
    assert set(json.loads(turn.body)) == {"model", "half", "store", "stream", "input"}
    assert "input" not in json.loads(request(asked()).body)
    assert request(asked()).start == 0


@pytest.mark.parametrize(
    "message",
    [b"", b"{", b"[]", b"7", b'"x"', b'{"type":}', asked(previous_response_id=7)],
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    """With a sentence."""
    with pytest.raises(ValueError, match=r"JSON|text"):
        conversation.read(message)


def test_an_input_that_is_none_goes_on_from_nothing() -> None:
    """It could not be put behind anything."""
    former = answered(request(asked(input="a")), b"1")
    for given in ({}, 7, True):
        with pytest.raises(ValueError, match="list of items"):
            request(asked(input=given, previous_response_id="r"), former)


def test_other_events_are_no_items() -> None:
    """Nor is the name of the event where it is a text in an answer."""
    turn = request(asked(input="a"))
    for event in (
        b"data: [DONE]\n\n",
        b'data: {"type":"response.output_text.delta","delta":"response.output_item.done"}\n\n',
        b'data: {"type":"x","delta":"\\"response.output_item.done\\""}\n\n',
        b'data: {"type":"response.output_item.done"}\n\n',
        b'data: "response.output_item.done"\n\n',
    ):
        assert not turn.add_item(event)
    assert turn.items == []
