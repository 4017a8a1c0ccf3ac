"""What is asked of a block of events, whichever way they are divided."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.formats import CHAT, OLLAMA_CHAT
from tidegate.core.formats.base import Format
from tidegate.core.framing import NDJSON, SSE, Framing

TEXT = st.text(max_size=20)


def written(framing: Framing, values: list[object], end: bytes = b"\n") -> bytes:
    """Events that say these values, as an upstream sends them."""
    payloads = [json.dumps(value).encode() for value in values]
    if framing is NDJSON:
        return b"".join(payload + end for payload in payloads)
    return b"".join(b"data: " + payload + end * 2 for payload in payloads)


BOTH = pytest.mark.parametrize("framing", [SSE, NDJSON], ids=["sse", "ndjson"])
ENDS = pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])


@BOTH
@ENDS
@given(values=st.lists(TEXT, min_size=1, max_size=12), most=st.integers(1, 12))
def test_a_block_is_made_of_its_events(
    framing: Framing, end: bytes, values: list[object], most: int
) -> None:
    """Divided and joined it is the same; the last of them are the last of them."""
    block = written(framing, values, end)
    events = framing.split(block)
    assert b"".join(events) == block
    assert [json.loads(framing.data(event)) for event in events] == values
    assert framing.last(block, most) == events[-most:]


@BOTH
@ENDS
@given(values=st.lists(TEXT, min_size=1, max_size=12))
def test_a_block_is_numbered_as_server_sent_events(
    framing: Framing, end: bytes, values: list[object]
) -> None:
    """Each event after its id, whatever it was before."""
    numbered = framing.numbered(written(framing, values, end), 7)
    events = SSE.split(numbered)
    assert [json.loads(SSE.data(event)) for event in events] == values
    assert [event.split(b"\n")[0] for event in events] == [
        b"id: %d" % (7 + i) for i in range(len(values))
    ]
    unnumbered = framing.as_sse(written(framing, values, end))
    assert [json.loads(SSE.data(event)) for event in SSE.split(unnumbered)] == values


def test_a_line_that_json_allows_stays_one_event() -> None:
    """A CR between two tokens is blank to JSON, and would be a line end to SSE."""
    block = b'{"a":\r1,\r\r"b":2}\r\n'
    for events in (NDJSON.numbered(block, 0), NDJSON.as_sse(block)):
        [event] = SSE.split(events)
        assert json.loads(SSE.data(event)) == {"a": 1, "b": 2}


def test_what_the_two_are_called() -> None:
    """A line has no name; its content type is Ollama's."""
    assert NDJSON.event_name(b"{}\n") == "message"
    assert SSE.event_name(b"event: x\ndata: {}\n\n") == "x"
    assert NDJSON.content_type == "application/x-ndjson"
    assert "application/x-ndjson; charset=utf-8".startswith(NDJSON.accepted)


# --- events that a client's parser would die of ---------------------------------------------------


FORMS = pytest.mark.parametrize("form", [CHAT, OLLAMA_CHAT], ids=["sse", "ndjson"])
BROKEN = [
    b'{"a":',
    b"{'a':1}",
    b"undefined",
    b'{"a":1}}',
    b'{"a":"\xff"}',
    b'"\xed\xa0\x80"',
    b"NaN",
    b"{},{}",
    b"1],[2",
    b"",
    b"[" * 100_000,
]


def event_of(form: Format, payload: bytes) -> bytes:
    return payload + b"\n" if form.framing is NDJSON else b"data: " + payload + b"\n\n"


@FORMS
@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("at", range(4))
def test_the_first_malformed_event_is_found(form: Format, broken: bytes, at: int) -> None:
    """Wherever it stands, those before it count and those behind it do not."""
    good = event_of(form, b'{"a":[1,2],"b":"\\u00e9"}')
    events = [good] * at + [event_of(form, broken)] + [good] * (3 - at)
    assert form.whole_events(b"".join(events), len(events)) == at
    assert form.whole_events(good * 4, 4) == 4


@pytest.mark.parametrize(
    "event",
    [
        b'data:{"a":1}\n\n',
        b'data: {"a":1}\r\n\r\n',
        b'data: {"a":1}\r\r',
        b'event: x\ndata: {"a":1}\n\n',
        b'data: {"a":1}\nevent: x\n\n',
        b'data: {"a":\ndata: 1}\n\n',
        b"data: [DONE]\n\n",
        b"data:[DONE]\r\n\r\n",
        b"data:   [DONE]  \n\n",
    ],
)
def test_every_spelling_of_a_whole_event_is_one(event: bytes) -> None:
    """Alone and among others."""
    plain = b'data: {"b":2}\n\n'
    assert CHAT.whole_events(event, 1) == 1
    for events in ([plain, event], [event, plain], [event, event]):
        assert CHAT.whole_events(b"".join(events), 2) == 2


@FORMS
@given(values=st.lists(TEXT, min_size=1, max_size=9))
def test_what_json_can_say_is_never_malformed(form: Format, values: list[object]) -> None:
    """Any value in any number of events."""
    block = written(form.framing, values)
    assert form.whole_events(block, len(values)) == len(values)
