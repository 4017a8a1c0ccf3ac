"""What the relay must know of Anthropic's messages."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import spelling
from tidegate.core.formats import COUNT_TOKENS, MESSAGES
from tidegate.core.formats.anthropic import PING
from tidegate.core.formats.base import OUTPUT, About, ErrorText, Meaning
from tidegate.core.formats.framing import SSE
from tidegate.core.upstreams.blame import VERDICTS, fault_of_answer


def event(kind: str, **values: object) -> bytes:
    data = json.dumps({"type": kind, **values}).encode()
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def block(kind: str, **values: object) -> bytes:
    return event("content_block_start", index=0, content_block={"type": kind, **values})


def delta(kind: str, **values: object) -> bytes:
    return event("content_block_delta", index=0, delta={"type": kind, **values})


START = event("message_start", message={"id": "msg_1", "content": [], "usage": {}})
FINISH = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 15})
STOP = event("message_stop")
ERROR = event("error", error={"type": "overloaded_error", "message": "Overloaded"})

ROWS = [
    (START, Meaning.OPENING),
    (PING, Meaning.KEEP_ALIVE),
    (event("ping"), Meaning.KEEP_ALIVE),
    (block("text", text=""), Meaning.OPENING),
    (block("thinking", thinking="", signature=""), Meaning.OPENING),
    (block("text", text="a"), Meaning.OUTPUT),
    (block("thinking", thinking="hm"), Meaning.OUTPUT),
    (block("redacted_thinking", data="Eqw"), Meaning.OUTPUT),
    (block("tool_use", id="toolu_1", name="f", input={}), Meaning.OUTPUT),
    (block("server_tool_use", id="srvtoolu_1", name="web_search", input={}), Meaning.OUTPUT),
    (block("web_search_tool_result", tool_use_id="srvtoolu_1", content=[]), Meaning.OUTPUT),
    (block("code_execution_tool_result", content={}), Meaning.OUTPUT),
    (block("mcp_tool_use", id="mcptoolu_1", name="f"), Meaning.OUTPUT),
    (block("what_comes_next"), Meaning.OUTPUT),
    (event("content_block_start", index=0), Meaning.OUTPUT),
    (delta("text_delta", text="a"), Meaning.OUTPUT),
    (delta("thinking_delta", thinking="hm"), Meaning.OUTPUT),
    (delta("signature_delta", signature="EqQB"), Meaning.OUTPUT),
    (delta("input_json_delta", partial_json=""), Meaning.KEEP_ALIVE),
    (delta("input_json_delta", partial_json='{"a":'), Meaning.OUTPUT),
    (delta("text_delta", text=""), Meaning.KEEP_ALIVE),
    (delta("thinking_delta", thinking=""), Meaning.KEEP_ALIVE),
    (delta("thinking_delta", thinking="hm"), Meaning.OUTPUT),
    (event("message_stop", delta=5), Meaning.DONE),
    (event("error", delta="x", error={"type": "overloaded_error"}), Meaning.ERROR),
    (delta("citations_delta", citation={"type": "page_location"}), Meaning.OUTPUT),
    (event("content_block_stop", index=0), Meaning.OUTPUT),
    (FINISH, Meaning.FINISH),
    *[
        (event("message_delta", delta={"stop_reason": reason}), Meaning.FINISH)
        for reason in ("max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal")
    ],
    (event("message_delta", delta={"stop_reason": None}), Meaning.OUTPUT),
    (event("message_delta", delta={}, usage={"output_tokens": 1}), Meaning.OUTPUT),
    (STOP, Meaning.DONE),
    (b'data: {"type":"message_stop"}\n\n', Meaning.DONE),
    (b'data:{"type":"message_stop"}\r\n\r\n', Meaning.DONE),
    (ERROR, Meaning.ERROR),
    (b'data: {"type":"error"}\n\n', Meaning.ERROR),
    (event("an_event_of_tomorrow"), Meaning.OUTPUT),
    (b"event: message_stop\ndata: {}\n\n", Meaning.OTHER),
    (b"data: not json\n\n", Meaning.OTHER),
    (b"data: []\n\n", Meaning.OTHER),
    (b'data: {"type":7}\n\n', Meaning.OTHER),
    (b"data: \xff\n\n", Meaning.OTHER),
    (b"data: " + b"[" * 100_000 + b"\n\n", Meaning.OTHER),
]


@pytest.mark.parametrize(("raw", "meaning"), ROWS, ids=range(len(ROWS)))
def test_each_kind_of_event_is_told_from_the_others(raw: bytes, meaning: Meaning) -> None:
    """An empty block is no output, a stop_reason is an end, and what is no event is not judged."""
    assert MESSAGES.meaning(raw) is meaning


@given(st.binary(max_size=200))
def test_no_event_is_too_strange(raw: bytes) -> None:
    """Whatever an upstream sends, looking at it never fails."""
    assert isinstance(MESSAGES.meaning(raw), Meaning)
    assert isinstance(MESSAGES.meaning(b'data: {"type":"' + raw + b'"}\n\n'), Meaning)


# --- how an answer ended --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ([START, delta("text_delta", text="a"), FINISH, STOP], Meaning.DONE),
        ([START, delta("text_delta", text="a"), FINISH], Meaning.FINISH),
        ([START, delta("text_delta", text="a"), FINISH, PING, STOP, PING], Meaning.DONE),
        ([START, delta("text_delta", text="a")], Meaning.OPENING),
        ([START, delta("text_delta", text="message_stop")], Meaning.OPENING),
        ([START, event("content_block_stop", index=0)], Meaning.OPENING),
        ([FINISH, delta("text_delta", text="a")], Meaning.OPENING),
        ([START, delta("text_delta", text="a"), ERROR], Meaning.ERROR),
        ([ERROR, STOP], Meaning.ERROR),
        ([FINISH, ERROR, STOP], Meaning.ERROR),
        ([START, PING], Meaning.OPENING),
        ([], Meaning.OPENING),
    ],
    ids=range(12),
)
def test_how_an_answer_ended_is_seen_in_its_last_events(events: list[bytes], end: Meaning) -> None:
    """A stop_reason that output came after ended nothing; an error outweighs every end."""
    assert MESSAGES.verdict(events) is end


@given(
    spelling.event(SSE, {"type": "message_stop"}, "message_stop"),
    st.sampled_from([b"", PING, FINISH, delta("text_delta", text="true \\ message")]),
    st.sampled_from([b"", PING]),
)
def test_no_spelling_of_the_end_is_missed(stop: bytes, before: bytes, after: bytes) -> None:
    """Blanks, order, doubled keys, escapes, no event line: the answer is seen to be whole."""
    assert MESSAGES.may_end(before + stop + after)
    assert MESSAGES.verdict(SSE.split(before + stop + after)) is Meaning.DONE


def test_the_end_is_not_looked_for_in_every_block() -> None:
    """Text passes unread, be it in another script."""
    assert not MESSAGES.may_end(delta("text_delta", text="grüße 漢字 'stop'"))
    assert not MESSAGES.may_end(PING)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("overloaded_error", 529),
        ("rate_limit_error", 429),
        ("timeout_error", 504),
        ("invalid_request_error", 400),
        ("authentication_error", 401),
        ("permission_error", 403),
        ("not_found_error", 404),
        ("request_too_large", 413),
        ("api_error", 502),
        ("an_error_of_tomorrow", 502),
    ],
)
def test_an_error_that_opens_a_stream_has_a_status(kind: str, status: int) -> None:
    """The one that it would have had as an answer; its words are passed on."""
    data = {"type": "error", "error": {"type": kind, "message": "secret"}}
    told = MESSAGES.told_error(event(kind="error", error=data["error"]))
    assert (told.status, json.loads(told.body)) == (status, data)
    assert told.label == f" ({kind})"


def test_overload_is_worth_another_try_and_a_mistake_is_not() -> None:
    """What the status of an error in a stream is for."""
    mistake = event("error", error={"type": "invalid_request_error", "message": "m"})
    for told, goes_on in ((ERROR, True), (mistake, False)):
        error = MESSAGES.told_error(told)
        fault = fault_of_answer(error.status, error.body, names_ours=True, is_told=True)
        assert VERDICTS[fault].goes_on is goes_on


@pytest.mark.parametrize("form", [MESSAGES, COUNT_TOKENS])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (408, "api_error"),
        (409, "api_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_our_own_error_is_one_that_clients_raise_on(form, status: int, kind: str) -> None:
    """The same object as an answer and as an event; the event is one that ends a stream."""
    error = ErrorText(status, 'upstream "box" idle', "timeout_error", "idle_s")
    body = {"type": "error", "error": {"type": kind, "message": 'upstream "box" idle'}}
    assert json.loads(form.error_body(error)) == body
    [raw] = form.error_events(error, About(STOP, "msg_1", "m", 0.0))
    assert SSE.event_name(raw) == "error"
    assert json.loads(SSE.data(raw)) == body
    assert form.meaning(raw) is Meaning.ERROR
    assert form.whole_events(raw, 1) == 1


# --- requests -------------------------------------------------------------------------------------


def test_what_is_asked_for() -> None:
    """A stream only where it is asked for, and never a stream of a token count."""
    asked = MESSAGES.parse_request(b'{"model":"m","max_tokens":1,"stream":true}', "")
    assert (asked.model, asked.stream) == ("m", True)
    assert MESSAGES.parse_request(b'{"model":"m"}', "").stream is False
    assert COUNT_TOKENS.parse_request(b'{"model":"m","stream":true}', "").stream is False


def test_a_keep_alive_is_no_output() -> None:
    """Ours is Anthropic's own, and an upstream's is known by its type or its name."""
    assert MESSAGES.keep_alive is PING
    for ping in (PING, b"event: ping\ndata: {}\n\n", b'data: {"type":"ping"}\n\n'):
        assert MESSAGES.meaning(ping) not in OUTPUT
        assert not MESSAGES.gets_on(ping)
