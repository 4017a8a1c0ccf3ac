"""How many tokens an answer took, read from what its upstream says of it, in every spelling."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.formats import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    IMAGES,
    MESSAGES,
    OLLAMA_CHAT,
    OLLAMA_EMBED,
    OLLAMA_GENERATE,
    RERANK,
    RESPONSES,
    SPEECH,
    SPEECH_EVENTS,
    TRANSCRIPTIONS,
    base,
)
from tidegate.core.formats.counting import MOST_BYTES
from tidegate.core.records.usage import NO_USAGE, TokenUsage

OPENAI = {
    "prompt_tokens": 20,
    "completion_tokens": 30,
    "total_tokens": 50,
    "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 12, "accepted_prediction_tokens": 0},
}
RESPONSE = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens": 30,
    "output_tokens_details": {"reasoning_tokens": 12},
    "total_tokens": 50,
}
ANTHROPIC = {
    "input_tokens": 5,
    "cache_creation_input_tokens": 7,
    "cache_read_input_tokens": 8,
    "cache_creation": {"ephemeral_5m_input_tokens": 7},
    "output_tokens": 30,
    "service_tier": "standard",
}
ALL = TokenUsage(20, 30, 8, 12)


def sse(*said: object, name: str = "") -> bytes:
    """Events, each with this data."""
    line = f"event: {name}\n" if name else ""
    return b"".join(f"{line}data: {json.dumps(each)}\n\n".encode() for each in said)


def chat(*last: object) -> bytes:
    """A stream of chat chunks that ends so."""
    words = [{"choices": [{"index": 0, "delta": {"content": f"w{n}"}}]} for n in range(20)]
    return sse(*words, *last) + b"data: [DONE]\n\n"


def message(start: object, delta: object) -> bytes:
    """A message with these usages at its start and its end."""
    return b"".join(
        [
            sse({"type": "message_start", "message": {"id": "m", "usage": start}}),
            sse({"type": "ping"}),
            *[sse({"type": "content_block_delta", "delta": {"text": "w"}}) for _ in range(20)],
            sse({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": delta}),
            sse({"type": "message_stop"}),
        ]
    )


def lines(*said: object) -> bytes:
    """Lines of Ollama's."""
    return b"".join(json.dumps(each).encode() + b"\n" for each in said)


# --- every format, streamed and whole -------------------------------------------------------------

WORD = {"model": "m", "message": {"role": "assistant", "content": "w"}, "done": False}
LAST = {"model": "m", "done": True, "prompt_eval_count": 26, "eval_count": 290}
STREAMS = [
    (CHAT, chat({"choices": [], "usage": OPENAI}), ALL),
    (COMPLETIONS, chat({"choices": [], "usage": OPENAI}), ALL),
    # Mistral tells it beside the reason, Groq in a member of its own, Moonshot in the choice.
    (CHAT, chat({"choices": [{"finish_reason": "stop"}], "usage": OPENAI}), ALL),
    (CHAT, chat({"choices": [], "x_groq": {"id": "r", "usage": OPENAI}}), ALL),
    (CHAT, sse({"choices": [{"finish_reason": "stop", "usage": OPENAI}]}), ALL),
    # vLLM and xAI count on with each event, others say null before the last.
    (CHAT, chat({"choices": [], "usage": {"completion_tokens": 1}}, {"usage": OPENAI}), ALL),
    (CHAT, chat({"usage": OPENAI}, {"choices": [], "usage": None}), ALL),
    (CHAT, chat({"choices": []}), NO_USAGE),
    (MESSAGES, message(ANTHROPIC, {"output_tokens": 30}), TokenUsage(20, 30, 8)),
    (MESSAGES, message({"input_tokens": 5, "output_tokens": 1}, ANTHROPIC), TokenUsage(20, 30, 8)),
    (MESSAGES, message(ANTHROPIC, {"input_tokens": 0, "output_tokens": 30}), TokenUsage(20, 30, 8)),
    (MESSAGES, message({"input_tokens": 9}, {"input_tokens": 5, "output_tokens": 2}), (5, 2)),
    (MESSAGES, message({"input_tokens": 5, "output_tokens": 1}, None), TokenUsage(5, None)),
    (MESSAGES, message(None, {"output_tokens": 3}), TokenUsage(None, 3)),
    (RESPONSES, sse({"type": "response.completed", "response": {"usage": RESPONSE}}), ALL),
    (RESPONSES, sse({"type": "response.created", "response": {"usage": None}}), NO_USAGE),
    (IMAGES, sse({"type": "image_generation.completed", "usage": RESPONSE}), ALL),
    (TRANSCRIPTIONS, sse({"type": "transcript.text.done", "usage": RESPONSE}), ALL),
    (TRANSCRIPTIONS, sse({"usage": {"type": "duration", "seconds": 3}}), NO_USAGE),
    (SPEECH_EVENTS, sse({"type": "speech.audio.done", "usage": RESPONSE}), ALL),
    (OLLAMA_CHAT, lines(WORD, LAST), TokenUsage(26, 290)),
    (OLLAMA_GENERATE, lines(WORD, LAST | {"context": [1] * 9000}), TokenUsage(26, 290)),
    (OLLAMA_CHAT, lines(WORD, {"done": True, "eval_count": 290}), TokenUsage(None, 290)),
    (OLLAMA_CHAT, lines(WORD, WORD), NO_USAGE),
]
BODIES = [
    (CHAT, {"choices": [], "usage": OPENAI}, ALL),
    (MESSAGES, {"type": "message", "usage": ANTHROPIC}, TokenUsage(20, 30, 8)),
    (RESPONSES, {"object": "response", "output": [], "usage": RESPONSE}, ALL),
    (EMBEDDINGS, {"usage": {"prompt_tokens": 9, "total_tokens": 9}}, TokenUsage(9)),
    (EMBEDDINGS, {"usage": {"total_tokens": 9}}, TokenUsage(9)),
    (RERANK, {"results": [], "usage": {"total_tokens": 9}}, TokenUsage(9)),
    (CHAT, {"choices": [], "usage": {"total_tokens": 9}}, NO_USAGE),
    (IMAGES, {"data": [], "usage": RESPONSE}, ALL),
    (OLLAMA_CHAT, LAST, TokenUsage(26, 290)),
    (OLLAMA_EMBED, {"embeddings": [], "prompt_eval_count": 7}, TokenUsage(7)),
    (COUNT_TOKENS, {"input_tokens": 14}, NO_USAGE),  # it is the answer, and took none
]


@pytest.mark.parametrize(("form", "answer", "usage"), STREAMS)
def test_what_a_stream_took(form: base.Format, answer: bytes, usage: TokenUsage) -> None:
    """The last events say it, of a message the first one as well."""
    assert form.usage_of(answer, streamed=True) == TokenUsage(*usage)


@pytest.mark.parametrize(("form", "answer", "usage"), BODIES)
def test_what_a_whole_answer_took(form: base.Format, answer: object, usage: TokenUsage) -> None:
    """Its body says it."""
    assert form.usage_of(json.dumps(answer).encode(), streamed=False) == usage


def test_sound_says_nothing() -> None:
    """Whatever its bytes happen to be."""
    assert SPEECH.usage_of(b'\xff"usage"\x00{', streamed=False) == NO_USAGE


@pytest.mark.parametrize("ending", [b"\r\n", b"\r"])
def test_other_line_ends_hide_nothing(ending: bytes) -> None:
    """An event ends at any of them."""
    answer = chat({"choices": [], "usage": OPENAI}).replace(b"\n", ending)
    assert CHAT.usage_of(answer, streamed=True) == ALL


# --- who counts otherwise -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # DeepSeek
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_cache_hit_tokens": 4}, (9, 2, 4)),
        # xAI counts what was thought beside the output
        (OPENAI | {"total_tokens": 62}, (20, 42, 8, 12)),
        # LiteLLM passes Anthropic's members on, which are part of the input there
        ({"prompt_tokens": 9, "completion_tokens": 2, "cache_read_input_tokens": 4}, (9, 2, 4)),
        # Moonshot
        ({"prompt_tokens": 9, "completion_tokens": 2, "cached_tokens": 4}, (9, 2, 4)),
        # Perplexity
        ({"prompt_tokens": 9, "completion_tokens": 2, "reasoning_tokens": 1}, (9, 2, None, 1)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, (0, 0)),
    ],
)
def test_other_upstreams(usage: object, expected: tuple[int | None, ...]) -> None:
    """What they call it, and what they count as part of what."""
    told = CHAT.usage_of(json.dumps({"usage": usage}).encode(), streamed=False)
    assert told == TokenUsage(*expected)


@pytest.mark.parametrize(
    ("timings", "usage"),
    [
        ({"prompt_n": 5, "cache_n": 15, "predicted_n": 30}, TokenUsage(20, 30, 15)),
        ({"prompt_n": 5, "predicted_n": 30}, TokenUsage(None, 30)),  # older: how much it had
        ({"prompt_ms": 1.5}, NO_USAGE),
    ],
)
def test_llama_cpp_tells_without_being_asked(timings: object, usage: TokenUsage) -> None:
    """Its last chunk has the timings; where there is a usage, that counts."""
    last = {"choices": [{"finish_reason": "stop", "delta": {}}], "timings": timings}
    assert CHAT.usage_of(chat(last), streamed=True) == usage
    assert CHAT.usage_of(chat(last | {"usage": OPENAI}), streamed=True) == ALL


# --- what is not to be believed -------------------------------------------------------------------

ODD = [None, -1, "12", 1.5, 1e300, True, [], {}, 10**9, 10**400, "\udc00"]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens", "prompt_tokens_details"])
def test_what_is_no_number_is_unknown(name: str, odd: object) -> None:
    """And costs nothing of what is told beside it."""
    told = CHAT.usage_of(json.dumps({"usage": OPENAI | {name: odd}}).encode(), streamed=False)
    expected = {
        "prompt_tokens": TokenUsage(None, 30, None, 12),
        "completion_tokens": TokenUsage(20, None, 8, None),
        "prompt_tokens_details": TokenUsage(20, 30, None, 12),
    }
    assert told == expected[name]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["prompt_eval_count", "eval_count"])
def test_what_is_no_number_on_a_line_is_unknown(name: str, odd: object) -> None:
    """As in a usage."""
    told = OLLAMA_CHAT.usage_of(lines(LAST | {name: odd}), streamed=True)
    assert told == TokenUsage(26, 290)._replace(
        **{"input" if name == "prompt_eval_count" else "output": None}
    )


def test_a_part_is_not_larger_than_the_whole() -> None:
    """Where it claims to be, only the whole is believed."""
    much = {"cached_tokens": 21, "reasoning_tokens": 31}
    usage = {"prompt_tokens": 20, "completion_tokens": 30, **much}
    assert CHAT.usage_of(json.dumps({"usage": usage}).encode(), streamed=False) == (
        20,
        30,
        None,
        None,
    )


@pytest.mark.parametrize("odd", [*ODD, "x", [OPENAI], "usage"])
def test_an_odd_usage_is_none(odd: object) -> None:
    """Whatever stands in its place."""
    for name in ("usage", "response", "message", "x_groq", "choices", "timings"):
        body = json.dumps({"usage": None, "timings": None, name: odd}).encode()
        assert CHAT.usage_of(body, streamed=False) == NO_USAGE


def test_text_that_looks_like_a_usage_is_text() -> None:
    """Only the upstream's own member counts, wherever the words stand."""
    told = json.dumps({"usage": OPENAI})
    content = {"choices": [{"delta": {"content": told, "tool": {"usage": OPENAI}}}]}
    assert CHAT.usage_of(chat(content), streamed=True) == NO_USAGE
    body = json.dumps({"choices": [{"message": {"content": told, "usage": OPENAI}}]}).encode()
    assert CHAT.usage_of(body, streamed=False) == NO_USAGE


def test_a_huge_usage_is_none() -> None:
    """Its members would cost more than it is worth."""
    usage = OPENAI | {f"x{n}": n for n in range(MOST_BYTES // 8)}
    assert CHAT.usage_of(json.dumps({"usage": usage}).encode(), streamed=False) == NO_USAGE
    assert OLLAMA_CHAT.usage_of(lines(LAST | usage), streamed=True) == TokenUsage(26, 290)


@pytest.mark.parametrize(
    "body",
    [
        b'{"usage":' * 10_000,
        b'{"usage":{"a":' * 2000 + b"1" + b"}}" * 2000,
        b'{"usage":{"prompt_tokens":1',
        b'"usage"' * 1000,
        b'{"x":[' + b'{"usage":{"prompt_tokens":1}},' * 100_000 + b"1]}",
    ],
)
def test_what_is_made_to_cost_time_says_nothing(body: bytes) -> None:
    """It is read once, and not deeply."""
    assert CHAT.usage_of(body, streamed=False) == NO_USAGE
    assert CHAT.usage_of(b"data: " + body + b"\n\n", streamed=True) == NO_USAGE


@given(st.binary(max_size=300), st.sampled_from([CHAT, MESSAGES, RESPONSES, OLLAMA_CHAT]))
def test_no_bytes_make_it_fail(data: bytes, form: base.Format) -> None:
    """Whatever came, it is counted or unknown."""
    usage = b'data: {"type":"message_start","usage":{"prompt_tokens":%b}}\n\n' % data
    for answer in (data, b'{"usage":' + data, usage):
        events, _ = form.framing.framer().feed(answer)
        told = form.usage_of(events, streamed=True) + form.usage_of(answer, streamed=False)
        assert all(number is None or 0 <= number < 3 * 10**9 for number in told)
