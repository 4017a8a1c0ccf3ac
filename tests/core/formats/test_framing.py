"""What is asked of a block of events, whichever way they are divided."""

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.formats import CHAT, OLLAMA_CHAT
from tidegate.core.formats.base import Format
from tidegate.core.formats.foreign_json import is_json
from tidegate.core.formats.framing import NDJSON, SSE, Framing

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
    assert list(framing.each(block)) == events


def test_the_first_events_cost_nothing_for_the_rest() -> None:
    """What comes behind an event that is looked at is not even searched for its end."""
    events = SSE.each(b"data: a\n\ndata: b\n\ndata: without an end")
    assert [next(events), next(events)] == [b"data: a\n\n", b"data: b\n\n"]


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
    rb'{"a":"\ud83g"}',
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


PAYLOADS = st.sampled_from([
    b"[1", b"2]", b"3,4", b'"a', b'b"', b"{}", b"[]", b"", b" ", b"1", b"[DONE]", b" [DONE]",
    b"null", rb'{"a":"\ud83d"}', b'{"a":"\xff"}', b'{"a":"\xc3\xa9"}', b"data: {}", b"{},{}",
    b"],[", b"\xef\xbb\xbf{}",
])  # fmt: skip
LINE_ENDS = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"])


@st.composite
def streams(draw, form: Format) -> bytes:
    """Events of all kinds, with line ends of all kinds, some over several lines."""
    stream = b""
    for _ in range(draw(st.integers(1, 8))):
        end = draw(LINE_ENDS)
        if form.framing is NDJSON:
            stream += draw(PAYLOADS) + (b"\r\n" if end == b"\r" else end)
            continue
        lines = draw(st.lists(PAYLOADS, min_size=1, max_size=3))
        prefix = draw(st.sampled_from([b"data: ", b"data: ", b"data:"]))
        stream += draw(st.sampled_from([b"", b"", b"event: x" + end, b": c" + end, end]))
        stream += b"".join(prefix + line + draw(LINE_ENDS) for line in lines)
        stream += draw(st.sampled_from([b"", b"", b",2]" + end, b"id: 1" + end])) + end
    return stream


@FORMS
@given(data=st.data())
def test_each_event_is_judged_by_itself(form: Format, data: st.DataObject) -> None:
    """Whatever comes beside it in one read, and wherever the read was cut."""
    stream = data.draw(streams(form))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6).map(sorted))
    framer = form.framing.framer()
    for start, end in pairwise([0, *cuts, len(stream)]):
        block, events = framer.feed(stream[start:end])
        judge_alone(form, block, events, framer.payloads)
    judge_alone(form, *framer.finish(), ())


def judge_alone(form: Format, block: bytes, events: int, payloads: Sequence[bytes]) -> None:
    """The verdict over a block is that over each of its events, as a client reads it."""
    framing = form.framing
    if not events:
        return
    each = framing.split(block)
    assert len(each) == events
    good = []
    for event in each:
        said = client_reads(event) if framing is SSE else event
        good.append(is_json(said) or (framing is SSE and said.strip() == b"[DONE]"))
    expected = good.index(False) if False in good else events
    if payloads:
        assert [said.strip() for said in payloads] == [framing.data(one).strip() for one in each]
    assert form.whole_events(block, events, payloads) == expected
    assert form.whole_events(block, events) == expected
    assert [form.whole_events(event, 1) == 1 for event in each] == good
    numbered = SSE.split(framing.numbered(block, 5))
    assert [event.split(b"\n")[0] for event in numbered] == [
        b"id: %d" % (5 + i) for i in range(events)
    ]
    assert framing.last(block, 3) == each[-3:]


def client_reads(event: bytes) -> bytes:
    """The data of one event, as the standard has it read."""
    values = []
    for line in event.splitlines():
        name, _, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" "))
    return b"\n".join(values)


@pytest.mark.parametrize(
    ("form", "block", "whole"),
    [
        (CHAT, b"data: [1\n\ndata: 2]\n\ndata: 3,4\n\n", 0),
        (CHAT, b'data: "a\n\ndata: b"\n\ndata: 1,2\n\n', 0),
        (CHAT, b"data: [1\n,2]\n\n", 0),
        (CHAT, b"data: [1\r,2]\n\n", 0),
        (CHAT, b"data: {}\n\ndata: [1\n,2]\n\n", 1),
        (OLLAMA_CHAT, b"[1\n2]\n3,4\n", 0),
        (OLLAMA_CHAT, b"data: {}\n", 0),
        (OLLAMA_CHAT, b"{}\n[DONE]\n", 1),
        (CHAT, rb'data: {"a":"\ud83d"}' + b"\n\n" + rb'data: {"a":"\ude00"}' + b"\n\n", 2),
        (OLLAMA_CHAT, rb'{"a":"\ud83d"}' + b"\n" + rb'{"a":"\ude00"}' + b"\n", 2),
    ],
)
def test_two_halves_of_a_value_are_none(form: Format, block: bytes, whole: int) -> None:
    """Nor is a value in what a client takes for two lines; half a character is one."""
    assert form.whole_events(block, len(form.framing.split(block))) == whole


@pytest.mark.parametrize(
    ("block", "events"),
    [
        (b"data: a\r\n\r\ndata: b\n\n", 2),
        (b"data: a\r\rdata: b\n\n", 2),
        (b"data: a\n\ndata: b\r\rdata: c\r\n\r\n", 3),
        (b"data: a\r\n\r\n", 1),
        (b"data: a\n\r\ndata: b\n\n", 2),
    ],
)
def test_each_event_has_a_number_whatever_ends_its_lines(block: bytes, events: int) -> None:
    """Of a block with all three line ends none is forgotten."""
    assert SSE.numbered(block, 3).count(b"id: ") == events


def test_an_answer_gets_on_by_any_event_of_a_block() -> None:
    """A keep-alive behind a word takes nothing from it; keep-alives alone bring nothing further."""
    word = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    empty = b'data: {"choices":[{"delta":{}}]}\n\n'
    assert CHAT.gets_on(word)
    assert CHAT.gets_on(empty + word)
    assert CHAT.gets_on(word + empty)
    assert not CHAT.gets_on(empty + empty)
