"""What the relay must know of chat completions: output, ends, errors, the model's name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from tidegate.core.formats import CHAT, COMPLETIONS
from tidegate.core.formats.base import (
    OUTPUT,
    About,
    ErrorText,
    Meaning,
    error_label,
    with_values,
)
from tidegate.core.formats.openai import DONE


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def delta(**values: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": values}]})


ROWS = [
    (delta(role="assistant"), Meaning.OPENING),
    (delta(role="assistant", content=""), Meaning.OPENING),
    (delta(role="assistant", content=None), Meaning.OPENING),
    (event({"choices": [{"index": 0}]}), Meaning.KEEP_ALIVE),
    (delta(content="a"), Meaning.OUTPUT),
    (delta(role="assistant", content="a"), Meaning.OUTPUT),
    (delta(reasoning_content="hm"), Meaning.OUTPUT),
    (delta(tool_calls=[{"index": 0, "function": {"name": "f"}}]), Meaning.OUTPUT),
    (event({"choices": [{"text": "a"}]}), Meaning.OUTPUT),
    (event({"choices": [{"text": ""}]}), Meaning.KEEP_ALIVE),
    (event({"choices": [{"delta": {}, "finish_reason": "stop"}]}), Meaning.FINISH),
    (event({"choices": [{"delta": {"content": "a"}, "finish_reason": "length"}]}), Meaning.FINISH),
    (event({"choices": [], "usage": {"total_tokens": 1}}), Meaning.OPENING),
    (event({"error": {"message": "no"}}), Meaning.ERROR),
    (event({"error": "no"}), Meaning.ERROR),
    (event({"error": {}, "choices": [{"delta": {"content": "a"}}]}), Meaning.OUTPUT),
    (event({"error": "", "choices": [{"delta": {}, "finish_reason": "stop"}]}), Meaning.FINISH),
    (event({"choices": []}), Meaning.KEEP_ALIVE),
    (event({"choices": [], "usage": None}), Meaning.KEEP_ALIVE),
    (event({"type": "keepalive"}), Meaning.KEEP_ALIVE),
    (b"event: ping\ndata: {}\n\n", Meaning.KEEP_ALIVE),
    (event({"error": {"message": "no"}, "choices": "x"}), Meaning.ERROR),
    (b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n', Meaning.OUTPUT),
    (b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"x":"\\ude00"}\n\n', Meaning.FINISH),
    (delta(tool_calls=[]), Meaning.KEEP_ALIVE),
    (delta(reasoning="", refusal=None, content=""), Meaning.KEEP_ALIVE),
    (delta(refusal="no"), Meaning.OUTPUT),
    (delta(audio={"id": "a"}), Meaning.OUTPUT),
    (event({"choices": [{"text": "", "logprobs": {"tokens": []}}]}), Meaning.KEEP_ALIVE),
    (event({"choices": [{"text": "the prompt, echoed"}]}), Meaning.OUTPUT),
    (event({"choices": [{"text": "a", "finish_reason": ""}]}), Meaning.OUTPUT),
    (event({"choices": [{"text": "a", "finish_reason": "length"}]}), Meaning.FINISH),
    (event({"error": None, "choices": [{"delta": {"content": "a"}}]}), Meaning.OUTPUT),
    (DONE, Meaning.DONE),
    (b"data:[DONE]\r\n\r\n", Meaning.DONE),
    (b"data: not json\n\n", Meaning.OTHER),
    (b"data: [1,2]\n\n", Meaning.OTHER),
    (b"data: \xff\xfe\n\n", Meaning.OTHER),
    (b'data: {"choices":"x"}\n\n', Meaning.OTHER),
    (b"data: " + b"[" * 100_000 + b"\n\n", Meaning.OTHER),
]


@pytest.mark.parametrize(("raw", "meaning"), ROWS, ids=range(len(ROWS)))
def test_each_kind_of_event_is_told_from_the_others(raw: bytes, meaning: Meaning) -> None:
    """A role is no output, a finish_reason is an end, and what is no chunk is not judged."""
    assert CHAT.meaning(raw) is meaning


@pytest.mark.parametrize(
    ("raw", "begun"),
    [
        (delta(role="assistant"), False),
        (event({"choices": [], "usage": None}), False),
        (event({"progress": 0.5}), True),
        (delta(content="a"), True),
        (event({"choices": [{"delta": {}, "finish_reason": "stop"}]}), True),
        (DONE, True),
        (b"data: not json\n\n", True),
    ],
)
def test_when_the_answer_has_begun(raw: bytes, begun: bool) -> None:
    """A chunk without choices is no output; an event that is no chunk may be the answer."""
    assert (CHAT.meaning(raw) in OUTPUT) is begun


@given(st.binary(max_size=200))
def test_no_event_is_too_strange(raw: bytes) -> None:
    """Whatever an upstream sends, looking at it never fails."""
    assert CHAT.meaning(raw) in Meaning
    assert isinstance(CHAT.meaning(raw), Meaning)
    assert len(error_label(raw)) <= 43


@pytest.mark.parametrize(
    ("body", "label"),
    [
        (b'{"error":{"message":"too busy","code":1}}', " (1)"),
        (b'{"error":{"message":"m","type":"overloaded_error","code":null}}', " (overloaded_error)"),
        (event({"error": {"type": "server_error"}}), " (server_error)"),
        (b'{"type":"rate_limit"}', " (rate_limit)"),
        (b'{"error":{"code":"the prompt, say: Bearer sk-1"}}', ""),
        (b'{"error":{"code":"sk-proj-4fJ9aQ"}}', ""),
        (b'{"error":{"code":"' + b"x" * 41 + b'"}}', ""),
        (b'{"error":"the prompt"}', ""),
        (b"<html>busy</html>", ""),
        (b"\xff", ""),
    ],
)
def test_an_error_is_named_without_the_upstreams_words(body: bytes, label: str) -> None:
    """A message may repeat the request: only a code or type that is a plain word is taken."""
    assert error_label(body) == label


def test_our_own_error_is_one_that_clients_raise_on() -> None:
    """The event has OpenAI's error object, with all four members."""
    error = ErrorText(504, 'upstream "box" idle', "timeout_error", "idle_s")
    [raw] = CHAT.error_events(error, About(b"", "", "m", 0.0))
    assert CHAT.meaning(raw) is Meaning.ERROR
    assert json.loads(raw[6:])["error"] == {
        "message": 'upstream "box" idle',
        "type": "timeout_error",
        "param": None,
        "code": "idle_s",
    }


def test_another_model_name_and_every_other_byte_kept() -> None:
    """Only the name changes: numbers, order and unknown members keep their bytes."""
    body = b'{"seed":1.50, "model":"fast","x":{"b":1e400,"a":[ ]} ,"top_p":0.10}'
    changed = b"".join(with_values(body, "", {"model": Raw(b'"big\\"one"')}))
    assert b'"seed":1.50' in changed
    assert b'{"b":1e400,"a":[ ]}' in changed
    assert b'"top_p":0.10' in changed
    assert b'"model":"big\\"one"' in changed
    assert changed.index(b"seed") < changed.index(b"model") < changed.index(b"top_p")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"model":7}',
        b'{"model":"m","stream":"yes"}',
        b'{"model":"\xff"}',
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_no_request_is_refused_with_a_sentence(body: bytes) -> None:
    """A bad body is the caller's fault and is told so; it never crashes."""
    with pytest.raises(ValueError, match="request"):
        CHAT.parse_request(body, "")


def test_what_routing_needs_is_read_and_nothing_else_is_judged() -> None:
    """Unknown and absurd members pass: they are the upstream's affair."""
    parsed = CHAT.parse_request(
        b'{"model":"m","stream":null,"max_tokens":9223372036854775808,"n":-1}', ""
    )
    assert (parsed.model, parsed.stream) == ("m", False)
    assert CHAT.parse_request(b'{"model":"m","stream":true}', "").stream is True


@pytest.mark.parametrize(
    ("tail", "ends"),
    [
        (DONE, True),
        (delta(content="a") + DONE, True),
        (b"data:[DONE]\n\n", True),
        (b"data: [DONE]\r\n\r\n", True),
        (b"data:[DONE]\r\n\r\n", True),
        (b"data: [DONE]\r\r", True),
        (b"data:  [DONE] \n\n", True),
        (b"event: done\ndata: [DONE]\n\n", True),
        (DONE + delta(content="a"), False),
        (delta(content="[DONE]"), False),
        (b"", False),
    ],
)
def test_the_marker_is_recognised_at_the_end_of_a_block(tail: bytes, ends: bool) -> None:
    """Only a marker that stands last ends an answer, and text that spells it does not."""
    assert CHAT.may_end(tail) is ends


# --- several choices ------------------------------------------------------------------------------


def choice(index: int, text: str = "", finish_reason: str | None = None) -> bytes:
    delta = {"content": text} if text else {}
    return event({"choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]})


USAGE = event({"choices": [], "usage": {"completion_tokens": 3}})


@pytest.mark.parametrize(
    ("form", "body", "several"),
    [
        (CHAT, b'{"model":"m"}', False),
        (CHAT, b'{"model":"m","n":1}', False),
        (CHAT, b'{"model":"m","n":null}', False),
        (CHAT, b'{"model":"m","n":0}', False),
        (CHAT, b'{"model":"m","n":-1}', False),
        (CHAT, b'{"model":"m","n":"2"}', False),
        (CHAT, b"not json", False),
        (CHAT, b'{"model":"m","n":2}', True),
        (COMPLETIONS, b'{"model":"m","n":2,"prompt":"a"}', True),
        (COMPLETIONS, b'{"model":"m","prompt":["a"]}', False),
        (COMPLETIONS, b'{"model":"m","prompt":["a","b"]}', True),
        (COMPLETIONS, b'{"model":"m","prompt":[1,2,3]}', False),
        (COMPLETIONS, b'{"model":"m","prompt":[[1,2],[3]]}', True),
        (COMPLETIONS, b'{"model":"m","prompt":[]}', False),
    ],
)
def test_of_several_choices_only_the_marker_is_the_end(form, body: bytes, several: bool) -> None:
    """One of them is finished, the other may just not have been heard of yet."""
    form = form.of_request(body, "")
    one = [choice(0, "a"), choice(0, finish_reason="stop")]
    assert form.verdict(one) is (Meaning.OPENING if several else Meaning.FINISH)
    assert form.verdict([*one, DONE]) is Meaning.DONE
    assert (form.name, form.path) in {(CHAT.name, CHAT.path), (COMPLETIONS.name, COMPLETIONS.path)}


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ([choice(0, "a"), choice(0, "", "stop"), choice(1, "b")], Meaning.OPENING),
        ([choice(0, "a"), choice(0, "", "stop")], Meaning.FINISH),
        ([choice(0, "a"), choice(0, "", "stop"), USAGE], Meaning.FINISH),
        ([choice(0, "a"), choice(0, "", "stop"), choice(1, "b"), DONE], Meaning.DONE),
        ([choice(0, "", "stop"), event({"error": {"code": 500}}), DONE], Meaning.ERROR),
    ],
    ids=range(5),
)
def test_what_comes_after_a_finish_is_not_finished(events: list[bytes], end: Meaning) -> None:
    """Whatever was asked for: text after a finish_reason is another choice's."""
    assert CHAT.verdict(events) is end
