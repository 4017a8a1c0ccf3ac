"""What the relay must know of Ollama's own API."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import spelling
from tidegate.core.formats import OLLAMA_CHAT, OLLAMA_EMBED, OLLAMA_GENERATE, OLLAMA_SHOW
from tidegate.core.formats.base import About, ErrorText, Meaning
from tidegate.core.formats.framing import NDJSON


def line(**values: object) -> bytes:
    return json.dumps({"model": "m", "created_at": "t", **values}).encode() + b"\n"


def message(*, done: bool = False, **values: object) -> bytes:
    return line(message={"role": "assistant", "content": "", **values}, done=done)


LAST = line(message={"role": "assistant", "content": ""}, done=True, eval_count=290)
ERROR = b'{"error":"model runner has unexpectedly stopped"}\n'

ROWS = [
    (message(), Meaning.KEEP_ALIVE),
    (message(tool_calls=[]), Meaning.KEEP_ALIVE),
    (message(tool_calls=None, images=None, thinking=""), Meaning.KEEP_ALIVE),
    (message(content="a"), Meaning.OUTPUT),
    (message(thinking="hm"), Meaning.OUTPUT),
    (message(tool_calls=[{"function": {"name": "f", "arguments": {}}}]), Meaning.OUTPUT),
    (message(images=["iVBOR"]), Meaning.OUTPUT),
    (LAST, Meaning.DONE),
    (message(content="a", done=True), Meaning.DONE),
    (message(tool_calls=[{"function": {"name": "f"}}], done=True), Meaning.DONE),
    (line(error="no", message="m"), Meaning.ERROR),
    (line(done=True, message="m"), Meaning.DONE),
    (line(response="", done=False), Meaning.KEEP_ALIVE),
    (line(response="a", done=False), Meaning.OUTPUT),
    (line(response="", thinking="hm", done=False), Meaning.OUTPUT),
    (line(completed=0, total=9, done=False), Meaning.KEEP_ALIVE),
    (line(completed=1, total=9, done=False), Meaning.OUTPUT),
    (line(image="iVBOR", done=True), Meaning.DONE),
    (line(response="", done=True, done_reason="load"), Meaning.DONE),
    (line(response="", done=True, done_reason="unload"), Meaning.DONE),
    (line(response="", done=True, done_reason="length", context=[1, 2]), Meaning.DONE),
    (ERROR, Meaning.ERROR),
    (b'{"error":{"message":"no"}}\n', Meaning.ERROR),
    (line(error="gone", done=True), Meaning.ERROR),
    (line(error="", response="a", done=False), Meaning.OUTPUT),
    (line(error=None, response="a", done=False), Meaning.OUTPUT),
    (b'{"status":"pulling manifest"}\n', Meaning.OTHER),
    (b"{}\n", Meaning.OTHER),
    (b"not json\n", Meaning.OTHER),
    (b"[]\n", Meaning.OTHER),
    (b'{"done":"true"}\n', Meaning.OTHER),
    (b'{"response":"\xff"}\n', Meaning.OTHER),
    (b"[" * 100_000 + b"\n", Meaning.OTHER),
]


@pytest.mark.parametrize(("raw", "meaning"), ROWS, ids=range(len(ROWS)))
def test_each_kind_of_line_is_told_from_the_others(raw: bytes, meaning: Meaning) -> None:
    """An empty message is no output, `done` is the end, and what is no answer is not judged."""
    for form in (OLLAMA_CHAT, OLLAMA_GENERATE):
        assert form.meaning(raw) is meaning
        assert form.meaning(raw[:-1] + b"\r\n") is meaning


@given(st.binary(max_size=200))
def test_no_line_is_too_strange(raw: bytes) -> None:
    """Whatever an upstream sends, looking at it never fails."""
    assert isinstance(OLLAMA_CHAT.meaning(raw), Meaning)
    assert isinstance(OLLAMA_CHAT.meaning(b'{"message":{"content":"' + raw + b'"}}\n'), Meaning)


@pytest.mark.parametrize(
    ("lines", "end"),
    [
        ([message(content="a"), LAST], Meaning.DONE),
        ([message(content="a")], Meaning.OPENING),
        ([message(content='"done":true')], Meaning.OPENING),
        ([message(content="a"), ERROR], Meaning.ERROR),
        ([LAST, ERROR], Meaning.ERROR),
        ([line(response="", done=True, done_reason="load")], Meaning.DONE),
        ([message()], Meaning.OPENING),
        ([], Meaning.OPENING),
    ],
    ids=range(8),
)
def test_how_an_answer_ended_is_seen_in_its_last_lines(lines: list[bytes], end: Meaning) -> None:
    """Only `done` ends one: there is no other marker, and text that spells it is text."""
    assert OLLAMA_CHAT.verdict(lines) is end


@given(
    spelling.event(NDJSON, {"model": "m", "message": {"content": ""}, "done": True}),
    st.sampled_from([b"", message(content="a"), message(content="\\")]),
)
def test_no_spelling_of_the_end_is_missed(last: bytes, before: bytes) -> None:
    """Blanks, order, doubled keys, escapes: the answer is seen to be whole."""
    assert OLLAMA_CHAT.may_end(before + last)
    assert OLLAMA_CHAT.verdict(NDJSON.split(before + last)) is Meaning.DONE


def test_the_end_is_not_looked_for_in_every_block() -> None:
    """A word passes unread."""
    assert not OLLAMA_CHAT.may_end(message(content="a", done=False))


def test_an_error_that_opens_a_stream_is_passed_on_in_its_own_words() -> None:
    """It has no type, so its status is that of a broken upstream, which is worth another try."""
    told = OLLAMA_CHAT.told_error(ERROR)
    assert (told.status, told.body, told.label) == (502, ERROR.rstrip(), "")


@pytest.mark.parametrize(
    ("body", "is_error"),
    [
        (b'{"error":"model not found"}', True),
        (b'{"error":"","response":"a"}', False),
        (b'{"response":"a","done":true}', False),
        (b"[]", False),
        (b"not json", False),
    ],
)
def test_an_error_in_a_whole_answer_is_found(body: bytes, is_error: bool) -> None:
    """Behind a status of success."""
    assert (OLLAMA_CHAT.error_in(body) is not None) is is_error


def test_our_own_error_is_one_that_clients_raise_on() -> None:
    """The same object as an answer and as a line."""
    error = ErrorText(504, 'upstream "box" idle', "timeout_error", "idle_s")
    assert json.loads(OLLAMA_CHAT.error_body(error)) == {"error": 'upstream "box" idle'}
    [raw] = OLLAMA_CHAT.error_events(error, About(b"", "", "m", 0.0))
    assert raw == OLLAMA_CHAT.error_body(error) + b"\n"
    assert OLLAMA_CHAT.meaning(raw) is Meaning.ERROR
    assert OLLAMA_CHAT.whole_events(raw, 1) == 1


def test_it_streams_unless_told_not_to() -> None:
    """As Ollama does; an embedding and a description never do."""
    for form in (OLLAMA_CHAT, OLLAMA_GENERATE):
        assert form.parse_request(b'{"model":"m"}', "").stream is True
        assert form.parse_request(b'{"model":"m","stream":null}', "").stream is True
        assert form.parse_request(b'{"model":"m","stream":false}', "").stream is False
    for form in (OLLAMA_EMBED, OLLAMA_SHOW):
        assert form.parse_request(b'{"model":"m","stream":true}', "").stream is False


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"m"}', "m"),
        (b'{"name":"m"}', "m"),
        (b'{"name":"n","model":"m"}', "m"),
        (b'{"name":"m","model":""}', "m"),
    ],
)
def test_a_model_is_described_by_either_name(body: bytes, model: str) -> None:
    """As Ollama itself takes it; an answer is asked for by the one only."""
    assert OLLAMA_SHOW.parse_request(body, "").model == model


@pytest.mark.parametrize("body", [b"{}", b'{"name":7}', b"[]", b"not json", b"\xff"])
def test_without_a_model_nothing_is_described(body: bytes) -> None:
    """The caller is told so."""
    with pytest.raises(ValueError, match="request"):
        OLLAMA_SHOW.parse_request(body, "")
    with pytest.raises(ValueError, match="request"):
        OLLAMA_CHAT.parse_request(b'{"name":"m"}', "")


def test_nothing_can_be_said_while_a_model_loads() -> None:
    """There is no keep-alive among lines, so the head is held back."""
    assert OLLAMA_CHAT.keep_alive is None
