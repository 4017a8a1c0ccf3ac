"""The scripted upstream itself: each format, each script, the control plane; no gateway between.

What a format must look like is written out here and not taken from the fake's own classes, so that
a mistake there does not agree with itself.
"""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.client import Stream, get, parse_events
from fakes.machine import until
from fakes.upstream import ScriptedUpstream

TESTS = Path(__file__).parents[1]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
OLLAMA_CHAT, GENERATE = "/api/chat", "/api/generate"
STREAMED = [CHAT, COMPLETIONS, RESPONSES, MESSAGES, OLLAMA_CHAT, GENERATE]
WITH_TOOLS = [CHAT, RESPONSES, MESSAGES, OLLAMA_CHAT]
TEXT = "one two three"
MARKERS = {
    CHAT: b"data: [DONE]\n\n",
    COMPLETIONS: b"data: [DONE]\n\n",
    RESPONSES: b"event: response.completed\n",
    MESSAGES: b"event: message_stop\n",
    OLLAMA_CHAT: b'"done":true',
    GENERATE: b'"done":true',
}


async def ask(
    upstream: ScriptedUpstream, path: str, model: str, *, stream: bool = True, **values: object
) -> Stream:
    """One request on a connection of its own, read to the end."""
    body = {"model": model, "stream": stream, **values}
    return await asyncio.wait_for(get(upstream.url, path, body), 20)


async def begun(upstream: ScriptedUpstream, path: str, model: str, **values: object) -> Stream:
    """One request of which nothing has been read."""
    return await Stream.open(upstream.url, path, {"model": model, "stream": True, **values})


async def raw(upstream: ScriptedUpstream, path: str, model: str, *, stream: bool = True) -> bytes:
    """All bytes of an answer after which the connection is closed."""
    asked = await Stream.open(upstream.url, path, {"model": model, "stream": stream})
    try:
        return await asyncio.wait_for(asked.reader.read(), 10)
    finally:
        await asked.close()


def items(path: str, body: bytes | bytearray) -> list[Any]:
    """The JSON values of a stream, in order."""
    if path.startswith("/api/"):
        return [json.loads(line) for line in bytes(body).splitlines() if line.strip()]
    return [json.loads(event.data) for event in parse_events(bytes(body)) if event.data[:1] == b"{"]


def text_of(path: str, values: list[Any]) -> str:
    """The words of a stream's values."""
    said = []
    for value in values:
        match path:
            case "/v1/chat/completions":
                said += [choice["delta"].get("content") for choice in value["choices"]]
            case "/v1/completions":
                said += [choice["text"] for choice in value["choices"]]
            case "/v1/responses":
                said.append(value.get("delta"))
            case "/v1/messages":
                said.append(value.get("delta", {}).get("text"))
            case "/api/chat":
                said.append(value["message"]["content"])
            case "/api/generate":
                said.append(value["response"])
    return "".join(filter(None, said))


def whole_text(path: str, value: Any) -> str:
    """The words of an answer in one piece."""
    match path:
        case "/v1/chat/completions":
            return str(value["choices"][0]["message"]["content"])
        case "/v1/completions":
            return str(value["choices"][0]["text"])
        case "/v1/responses":
            return str(value["output"][0]["content"][0]["text"])
        case "/v1/messages":
            return str(value["content"][0]["text"])
        case "/api/chat":
            return str(value["message"]["content"])
    return str(value["response"])


def error_of(path: str, value: Any) -> str:
    """The message of an error in the shape that this format has."""
    if path.startswith("/api/"):
        return str(value["error"])
    if path == MESSAGES:
        assert value["type"] == "error"
    assert value["error"]["type"]
    return str(value["error"]["message"])


# --- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STREAMED)
@pytest.mark.parametrize("model", ["ok", "box"])
async def test_a_stream_of_each_format(
    scripted_upstream: ScriptedUpstream, path: str, model: str
) -> None:
    """Three words in JSON values, one terminal marker at the very end, a clean end of the body."""
    answer = await ask(scripted_upstream, path, model)
    assert (answer.status, answer.clean) == (200, True)
    ndjson = path.startswith("/api/")
    kind = "application/x-ndjson" if ndjson else "text/event-stream"
    assert answer.headers["content-type"] == kind
    assert text_of(path, items(path, answer.body)) == TEXT
    last = bytes(answer.body).splitlines(keepends=True)[-1 if ndjson else -3 :]
    assert answer.body.count(MARKERS[path]) == 1
    assert MARKERS[path] in b"".join(last)


@pytest.mark.parametrize("path", STREAMED)
async def test_a_path_without_v1_is_the_same(
    scripted_upstream: ScriptedUpstream, path: str
) -> None:
    """Some servers have no /v1."""
    short = await ask(scripted_upstream, path.removeprefix("/v1"), "ok")
    assert short.body == (await ask(scripted_upstream, path, "ok")).body


async def test_events_of_responses(scripted_upstream: ScriptedUpstream) -> None:
    """Each event says its name twice and its number; they come in the order OpenAI has them."""
    answer = await ask(scripted_upstream, RESPONSES, "ok")
    values = items(RESPONSES, answer.body)
    assert [value["type"] for value in values] == [event.name for event in answer.events]
    assert [value["sequence_number"] for value in values] == list(range(len(values)))
    assert [value["type"].removeprefix("response.") for value in values] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    response = values[-1]["response"]
    assert (response["status"], response["usage"]["output_tokens"]) == ("completed", 3)
    assert whole_text(RESPONSES, response) == TEXT


async def test_events_of_messages(scripted_upstream: ScriptedUpstream) -> None:
    """They come in the order Anthropic has them, with the reason to end in the last but one."""
    answer = await ask(scripted_upstream, MESSAGES, "ok")
    values = items(MESSAGES, answer.body)
    assert [value["type"] for value in values] == [event.name for event in answer.events]
    assert [event.name for event in answer.events] == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert values[-2]["delta"]["stop_reason"] == "end_turn"


@pytest.mark.parametrize("path", [OLLAMA_CHAT, GENERATE])
async def test_ollama_streams_unasked(scripted_upstream: ScriptedUpstream, path: str) -> None:
    """Only "stream": false makes it one answer; the last line counts what was said."""
    answer = await get(scripted_upstream.url, path, {"model": "ok"})
    values = items(path, answer.body)
    assert [value["done"] for value in values] == [False, False, False, True]
    assert values[-1]["done_reason"] == "stop"
    assert values[-1]["eval_count"] == 3
    assert values[-1]["eval_duration"] > 0


@pytest.mark.parametrize("path", STREAMED)
async def test_a_whole_answer_of_each_format(
    scripted_upstream: ScriptedUpstream, path: str
) -> None:
    """One JSON value with the same words."""
    answer = await ask(scripted_upstream, path, "ok", stream=False)
    assert (answer.status, answer.clean) == (200, True)
    assert answer.headers["content-type"] == "application/json"
    assert whole_text(path, answer.json()) == TEXT


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_tokens_are_counted_when_asked(
    scripted_upstream: ScriptedUpstream, path: str
) -> None:
    """One more event, with no choices, right before the marker; otherwise none."""
    options = {"include_usage": True}
    answer = await ask(scripted_upstream, path, "ok", stream_options=options)
    values = items(path, answer.body)
    assert (values[-1]["choices"], values[-1]["usage"]["completion_tokens"]) == ([], 3)
    assert answer.events[-1].data == b"[DONE]"
    assert all(value["choices"] for value in values[:-1])
    assert b"usage" not in (await ask(scripted_upstream, path, "ok")).body


def streamed_call(path: str, values: list[Any]) -> tuple[str, list[str]]:
    """The name of the tool that a stream calls, and the pieces of its arguments."""
    if path == CHAT:
        deltas = [value["choices"][0]["delta"] for value in values]
        calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", [])]
        return calls[0]["name"], [call["arguments"] for call in calls[1:]]
    if path == RESPONSES:
        added = next(value for value in values if value["type"] == "response.output_item.added")
        kind = "response.function_call_arguments.delta"
        return added["item"]["name"], [v["delta"] for v in values if v["type"] == kind]
    if path == MESSAGES:
        start = next(value for value in values if value["type"] == "content_block_start")
        deltas = [value["delta"] for value in values if value["type"] == "content_block_delta"]
        return start["content_block"]["name"], [delta["partial_json"] for delta in deltas]
    [call] = [call["function"] for v in values for call in v["message"].get("tool_calls", [])]
    return call["name"], [json.dumps(call["arguments"])]


def whole_call(path: str, value: Any) -> tuple[str, Any]:
    """The tool that an answer in one piece calls, and its arguments."""
    match path:
        case "/v1/chat/completions":
            call = value["choices"][0]["message"]["tool_calls"][0]["function"]
            return call["name"], json.loads(call["arguments"])
        case "/v1/responses":
            call = value["output"][0]
            return call["name"], json.loads(call["arguments"])
        case "/v1/messages":
            return value["content"][0]["name"], value["content"][0]["input"]
    call = value["message"]["tool_calls"][0]["function"]
    return call["name"], call["arguments"]


@pytest.mark.parametrize("path", WITH_TOOLS)
async def test_a_call_of_a_tool(scripted_upstream: ScriptedUpstream, path: str) -> None:
    """Its arguments come in pieces where the format has pieces, and whole in a whole answer."""
    answer = await ask(scripted_upstream, path, "tools")
    name, pieces = streamed_call(path, items(path, answer.body))
    assert (name, json.loads("".join(pieces))) == ("get_weather", {"city": "Paris"})
    assert len(pieces) == (1 if path == OLLAMA_CHAT else 3)
    assert answer.clean
    assert MARKERS[path] in answer.body
    whole = await ask(scripted_upstream, path, "tools", stream=False)
    assert whole_call(path, whole.json()) == ("get_weather", {"city": "Paris"})


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/messages/count_tokens", "input_tokens"),
        ("/v1/embeddings", "data"),
        ("/v1/rerank", "results"),
        ("/v1/images/generations", "data"),
        ("/api/embed", "embeddings"),
        ("/api/show", "capabilities"),
    ],
)
async def test_what_is_never_a_stream(
    scripted_upstream: ScriptedUpstream, path: str, field: str
) -> None:
    """One JSON value, also when a stream is asked for; a refusal in its family's shape."""
    for stream in (True, False):
        answer = await ask(scripted_upstream, path, "ok", stream=stream)
        assert answer.status == 200
        assert answer.json()[field]  # type: ignore[index]
    refused = await ask(scripted_upstream, path, "status:429:2")
    assert refused.headers["retry-after"] == "2"
    family = MESSAGES if path.startswith(MESSAGES) else path
    assert error_of(family, refused.json()) == "the fake says 429"


async def test_speech_is_bytes(scripted_upstream: ScriptedUpstream) -> None:
    """They are no text at all."""
    answer = await ask(scripted_upstream, "/v1/audio/speech", "ok", stream=False)
    assert answer.headers["content-type"] == "audio/mpeg"
    assert answer.clean
    with pytest.raises(UnicodeDecodeError):
        answer.body.decode()


@pytest.mark.parametrize(("model", "status"), [("ok", 200), ("status:503", 503)])
async def test_a_form_names_its_model(
    scripted_upstream: ScriptedUpstream, model: str, status: int
) -> None:
    """A transcription is asked for with a form; the model's name in it is the script."""
    form = (
        '--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        "Content-Type: audio/wav\r\n\r\nRIFF\r\n"
        f'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n--b--\r\n'
    )

    def post() -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", scripted_upstream.port, timeout=10)
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        connection.request("POST", "/v1/audio/transcriptions", form, headers)
        response = connection.getresponse()
        said = json.loads(response.read())
        connection.close()
        return response.status, said

    answered, said = await asyncio.to_thread(post)
    assert answered == status
    assert ("text" in said) is (status == 200)
    assert scripted_upstream.requests[0].model == model


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/models", "data"),
        ("/models", "data"),
        ("/api/tags", "models"),
        ("/api/ps", "models"),
        ("/api/version", "version"),
    ],
)
async def test_lists(scripted_upstream: ScriptedUpstream, path: str, field: str) -> None:
    """What an upstream is asked about itself has an answer."""
    answer = await get(scripted_upstream.url, path)
    assert answer.status == 200
    assert field in answer.json()  # type: ignore[operator]


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STREAMED)
async def test_a_status(scripted_upstream: ScriptedUpstream, path: str) -> None:
    """The status asked for, an error in the format's shape, Retry-After only where it was asked."""
    patient = await ask(scripted_upstream, path, "status:429:2")
    assert (patient.status, patient.headers["retry-after"]) == (429, "2")
    assert error_of(path, patient.json()) == "the fake says 429"
    assert "retry-after" not in (await ask(scripted_upstream, path, "status:429")).headers


@pytest.mark.parametrize(
    ("script", "statuses"),
    [
        ("times:2:503", [503, 503, 200, 200]),
        ("times:1:429:1", [429, 200, 200]),
        ("status-once:500", [500, 200, 200]),
        ("loading:2", [503, 503, 200]),
        ("flapping:2:500", [500, 500, 200, 200, 500, 500, 200]),
    ],
)
async def test_scripts_that_count(
    scripted_upstream: ScriptedUpstream, script: str, statuses: list[int]
) -> None:
    """They count the requests of one name, in whatever format, from when it was told."""
    for _ in range(2):
        scripted_upstream.play("box", script)
        paths = [STREAMED[number % len(STREAMED)] for number in range(len(statuses))]
        answers = [await ask(scripted_upstream, path, "box") for path in paths]
        assert [answer.status for answer in answers] == statuses


async def test_loading_is_said_as_llama_cpp_says_it(scripted_upstream: ScriptedUpstream) -> None:
    """With a number as its code, in every format."""
    for path in STREAMED:
        scripted_upstream.play("box", "loading:1")
        error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
        assert (await ask(scripted_upstream, path, "box")).json() == {"error": error}


@pytest.mark.parametrize("path", STREAMED)
@pytest.mark.parametrize(
    ("script", "word"), [("context-length", "too long"), ("content-filter", "filtered")]
)
async def test_a_prompt_that_is_not_taken(
    scripted_upstream: ScriptedUpstream, path: str, script: str, word: str
) -> None:
    """A 400 that no other upstream would answer otherwise; OpenAI's has a code that says which."""
    answer = await ask(scripted_upstream, path, script)
    assert answer.status == 400
    assert word in error_of(path, answer.json())
    if path == CHAT:
        codes = {"context-length": "context_length_exceeded", "content-filter": "content_filter"}
        assert answer.json()["error"]["code"] == codes[script]  # type: ignore[index]


def streamed_error(path: str, value: Any) -> str:
    """The message of an error event; that of a response is flat."""
    return str(value["message"]) if path == RESPONSES else error_of(path, value)


@pytest.mark.parametrize("path", STREAMED)
@pytest.mark.parametrize("script", ["error-first", "error-middle"])
async def test_an_error_in_a_stream(
    scripted_upstream: ScriptedUpstream, path: str, script: str
) -> None:
    """A 200 with the format's error event, first or behind words, and no terminal marker."""
    answer = await ask(scripted_upstream, path, script)
    assert (answer.status, answer.clean) == (200, True)
    assert MARKERS[path] not in answer.body
    values = items(path, answer.body)
    if path == RESPONSES:
        assert values.pop()["response"]["status"] == "failed"
    assert "overloaded" in streamed_error(path, values.pop())
    assert bool(values) is (script == "error-middle")


@pytest.mark.parametrize("path", STREAMED)
async def test_an_error_in_a_200(scripted_upstream: ScriptedUpstream, path: str) -> None:
    """A whole answer that is an error, whether or not a stream was asked for."""
    for stream in (True, False):
        answer = await ask(scripted_upstream, path, "error-in-200", stream=stream)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert "overloaded" in error_of(path, answer.json())


@pytest.mark.parametrize("code", [502, 200])
async def test_a_page(scripted_upstream: ScriptedUpstream, code: int) -> None:
    """HTML, as a proxy answers."""
    answer = await ask(scripted_upstream, CHAT, f"html:{code}")
    assert (answer.status, answer.headers["content-type"]) == (code, "text/html")
    assert answer.body.startswith(b"<html>")


async def test_a_redirect(scripted_upstream: ScriptedUpstream) -> None:
    """It leads to itself."""
    answer = await ask(scripted_upstream, MESSAGES, "redirect")
    assert (answer.status, answer.headers["location"]) == (307, MESSAGES)


# --- oddities that are whole ----------------------------------------------------------------------


@pytest.mark.parametrize("path", STREAMED)
async def test_odd_streams(scripted_upstream: ScriptedUpstream, path: str) -> None:
    """One byte a chunk, CRLF, members doubled: other bytes or other chunks, the same words."""
    plain = bytes((await ask(scripted_upstream, path, "ok")).body)
    bytewise = await ask(scripted_upstream, path, "one-byte")
    assert set(bytewise.chunks) == {1}
    assert bytes(bytewise.body) == plain.replace(b'"ok"', b'"one-byte"')
    crlf = await ask(scripted_upstream, path, "crlf")
    assert crlf.body.count(b"\n") == crlf.body.count(b"\r\n") == plain.count(b"\n")
    assert text_of(path, items(path, crlf.body)) == TEXT
    odd = await ask(scripted_upstream, path, "odd-fields")
    assert text_of(path, items(path, odd.body)) == TEXT
    values = re.findall(rb"\{ .* \}", bytes(odd.body))
    assert len(values) == len(items(path, plain))
    for value in values:
        members = json.loads(value, object_pairs_hook=list)
        assert members[0][0] in [name for name, _ in members[1:]]
    assert items(path, odd.body)[-1].keys() == items(path, plain)[-1].keys()


@pytest.mark.parametrize("path", STREAMED)
@pytest.mark.parametrize(("script", "words"), [("numbered:50:1", 50), ("bulk:200", 200)])
async def test_numbered_streams(
    scripted_upstream: ScriptedUpstream, path: str, script: str, words: int
) -> None:
    """Each word is its own number, in every format; in bulk, events are of a kilobyte."""
    answer = await ask(scripted_upstream, path, script)
    assert answer.clean
    numbers = re.findall(r"\d+", text_of(path, items(path, answer.body)))
    assert numbers == list(map(str, range(words)))
    assert MARKERS[path] in answer.body
    assert script != "bulk:200" or len(answer.body) >= 200_000


@pytest.mark.parametrize("stream", [True, False])
async def test_heads_before_the_head(scripted_upstream: ScriptedUpstream, stream: bool) -> None:
    """100 and 103 come first."""
    asked = await begun(scripted_upstream, CHAT, "continue", stream=stream)
    statuses = []
    for _ in range(3):
        asked.status = 0
        statuses.append((await asked.head()).status)
    assert statuses == [100, 103, 200]
    await asked.close()


async def test_trailers(scripted_upstream: ScriptedUpstream) -> None:
    """They stand behind the last chunk."""
    asked = await begun(scripted_upstream, CHAT, "trailers")
    seen = await asyncio.wait_for(asked.reader.readuntil(b"x-tail: 1\r\n"), 10)
    assert seen.endswith(b"\r\n0\r\nx-tail: 1\r\n")
    await asked.close()


@pytest.mark.parametrize("path", STREAMED)
async def test_http_1_0(scripted_upstream: ScriptedUpstream, path: str) -> None:
    """No length and no chunks: the body is over when the connection is, whole or not."""
    plain = bytes((await ask(scripted_upstream, path, "ok")).body)
    head, _, body = (await raw(scripted_upstream, path, "http10")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200")
    assert body == plain.replace(b'"ok"', b'"http10"')
    _, _, part = (await raw(scripted_upstream, path, "http10-cut:2")).partition(b"\r\n\r\n")
    assert 0 < len(part) < len(body)
    assert MARKERS[path] not in part


@pytest.mark.parametrize("path", STREAMED)
async def test_odd_whole_answers(scripted_upstream: ScriptedUpstream, path: str) -> None:
    """Blank lines before it, one byte a write, JSON instead of a stream and the reverse."""
    blank = await ask(scripted_upstream, path, "blank-lines", stream=False)
    assert blank.body.startswith(b"\n\n\n{")
    assert whole_text(path, blank.json()) == TEXT
    assert whole_text(path, (await ask(scripted_upstream, path, "json")).json()) == TEXT
    streamed = await ask(scripted_upstream, path, "sse", stream=False)
    assert text_of(path, items(path, streamed.body)) == TEXT
    bytewise = await ask(scripted_upstream, path, "one-byte", stream=False)
    assert whole_text(path, bytewise.json()) == TEXT


async def test_compression_that_was_not_asked_for(scripted_upstream: ScriptedUpstream) -> None:
    """It is announced, and what is inside is the answer."""
    answer = await ask(scripted_upstream, CHAT, "gzip", stream=False)
    assert answer.headers["content-encoding"] == "gzip"
    assert whole_text(CHAT, json.loads(gzip.decompress(answer.body))) == TEXT


# --- waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STREAMED)
async def test_a_first_word_that_is_waited_for(
    scripted_upstream: ScriptedUpstream, path: str
) -> None:
    """The head is there before the first word, and the rest follows no earlier than was said."""
    for script in ("wait:200", "gap:200", "slow-json:200"):
        began_s = asyncio.get_running_loop().time()
        answer = await ask(scripted_upstream, path, script)
        assert asyncio.get_running_loop().time() - began_s >= 0.19
        assert answer.clean
        assert MARKERS[path] in answer.body


@pytest.mark.parametrize("path", STREAMED)
@pytest.mark.parametrize(
    ("script", "words"), [("stall:2", 2), ("stuck:20", 20), ("preamble:40", 0)]
)
async def test_a_stream_that_stops(
    scripted_upstream: ScriptedUpstream, path: str, script: str, words: int
) -> None:
    """What was promised comes, in values of this format, and the connection stays open."""
    asked = await begun(scripted_upstream, path, script)
    least_bytes = 0 if words else 40_000
    body, seen = b"", -1
    async with asyncio.timeout(10):
        async for piece in asked.pieces():
            body += piece
            seen = len(text_of(path, items(path, body)).split(" ")) - 1
            if seen >= words and len(body) > least_bytes and body.endswith(b"\n"):
                break
    assert re.findall(r"\d+", text_of(path, items(path, body))) == list(map(str, range(words)))
    assert (scripted_upstream.open_connections, scripted_upstream.active) == (1, 1)
    await asked.vanish()


# --- breakage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STREAMED)
async def test_cut_behind_every_event(scripted_upstream: ScriptedUpstream, path: str) -> None:
    """So many events and then nothing: without the body's end ("cut"), or with it ("end")."""
    whole = await ask(scripted_upstream, path, "box")
    for events in range(len(whole.chunks) + 1):
        for script, clean in (("cut", False), ("end", True)):
            scripted_upstream.play("box", f"{script}:{events}")
            answer = await ask(scripted_upstream, path, "box")
            assert (answer.status, answer.clean) == (200, clean)
            assert answer.body == whole.body[: sum(whole.chunks[:events])]
            assert (MARKERS[path] in answer.body) is (events == len(whole.chunks))


@pytest.mark.parametrize("path", STREAMED)
async def test_cut_inside_the_terminal_marker(
    scripted_upstream: ScriptedUpstream, path: str
) -> None:
    """At whatever byte: what came is a beginning of the whole."""
    whole = await ask(scripted_upstream, path, "box")
    before, last_bytes = len(whole.chunks) - 1, whole.chunks[-1]
    for more_bytes in (1, last_bytes // 2, last_bytes - 1):
        scripted_upstream.play("box", f"cut:{before}:{more_bytes}")
        answer = await ask(scripted_upstream, path, "box")
        assert not answer.clean
        assert answer.body == whole.body[: more_bytes - last_bytes]


@pytest.mark.parametrize("path", STREAMED)
async def test_cut_inside_a_word(scripted_upstream: ScriptedUpstream, path: str) -> None:
    """Two words, half an event, and the connection is closed, or reset."""
    answer = await ask(scripted_upstream, path, "drop:2")
    assert not answer.clean
    end = b"\n" if path.startswith("/api/") else b"\n\n"
    words, _, half = bytes(answer.body).rpartition(end)
    assert text_of(path, items(path, words + end)) == "0 1 "
    assert half
    asked = await begun(scripted_upstream, path, "reset:2")
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(asked.reader.read(), 10)
    await asked.close()


@pytest.mark.parametrize("path", STREAMED)
async def test_streams_without_their_marker(scripted_upstream: ScriptedUpstream, path: str) -> None:
    """The body ends as it should, the answer does not."""
    bare = await ask(scripted_upstream, path, "no-terminal:2")
    assert text_of(path, items(path, bare.body)) == "0 1 "
    reasoned = await ask(scripted_upstream, path, "finish-no-done")
    assert text_of(path, items(path, reasoned.body)) == TEXT
    for answer in (bare, reasoned):
        assert answer.clean
        assert MARKERS[path] not in answer.body
    reason = {CHAT: b'"finish_reason":"stop"', COMPLETIONS: b'"finish_reason":"stop"',
              MESSAGES: b'"stop_reason":"end_turn"'}.get(path, b"")  # fmt: skip
    assert reason in reasoned.body
    assert not reason or reason not in bare.body


@pytest.mark.parametrize("path", STREAMED)
async def test_an_event_that_is_no_json(scripted_upstream: ScriptedUpstream, path: str) -> None:
    """One of them, behind two words; the rest is as it should be."""
    answer = await ask(scripted_upstream, path, "malformed:2")
    assert answer.clean
    assert MARKERS[path] in answer.body
    lines = [line for line in bytes(answer.body).split(b"\n") if b"{" in line]
    broken = []
    for number, line in enumerate(lines):
        try:
            json.loads(line.removeprefix(b"data: "))
        except ValueError:
            broken.append(number)
    assert len(broken) == 1
    before = b"\n\n".join(lines[: broken[0]]) + b"\n\n"
    assert text_of(path, items(path, before)) == "0 1 "
    whole = await ask(scripted_upstream, path, "malformed", stream=False)
    with pytest.raises(json.JSONDecodeError):
        whole.json()


@pytest.mark.parametrize("path", STREAMED)
async def test_a_huge_line(scripted_upstream: ScriptedUpstream, path: str) -> None:
    """One event of so many megabytes, and a proper end."""
    answer = await ask(scripted_upstream, path, "huge-line:2")
    assert answer.clean
    assert max(map(len, bytes(answer.body).split(b"\n"))) > 2_000_000
    assert MARKERS[path] in answer.body


async def test_an_event_without_end(scripted_upstream: ScriptedUpstream) -> None:
    """More than 4 MiB come without a line's end."""
    asked = await begun(scripted_upstream, CHAT, "huge-event")
    await asyncio.wait_for(asked.reader.readuntil(b"data: xx"), 10)
    seen = 0
    async with asyncio.timeout(20):
        while seen <= 4 * 1024 * 1024:
            piece = await asked.reader.read(65536)
            assert b"\n" not in piece
            seen += len(piece)
    await asked.vanish()


@pytest.mark.parametrize("path", STREAMED)
async def test_lengths_that_are_wrong(scripted_upstream: ScriptedUpstream, path: str) -> None:
    """Fewer bytes than were announced and the connection closed; or more, and it stays open."""
    short = await ask(scripted_upstream, path, "too-short", stream=False)
    assert not short.clean
    assert 0 < len(short.body) < int(short.headers["content-length"])
    asked = await begun(scripted_upstream, path, "too-long", stream=False)
    assert whole_text(path, (await asked.read_all()).json()) == TEXT
    assert await asyncio.wait_for(asked.reader.readexactly(8), 10) == b"and more"
    await asked.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", STREAMED)
async def test_nothing_at_all(scripted_upstream: ScriptedUpstream, path: str, stream: bool) -> None:
    """The connection ends instead of an answer: closed, or reset."""
    assert await raw(scripted_upstream, path, "eof", stream=stream) == b""
    asked = await begun(scripted_upstream, path, "abort", stream=stream)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(asked.reader.read(), 10)


async def test_what_is_no_http(scripted_upstream: ScriptedUpstream) -> None:
    """Bytes without a status line, or a head that no client would hold."""
    assert not (await raw(scripted_upstream, CHAT, "garbage")).startswith(b"HTTP")
    asked = await begun(scripted_upstream, CHAT, "big-head")
    with pytest.raises(asyncio.LimitOverrunError):
        await asyncio.wait_for(asked.reader.readuntil(b"\r\n\r\n"), 10)
    await asked.vanish()


async def test_a_kept_connection_that_closes(scripted_upstream: ScriptedUpstream) -> None:
    """The first request on it is answered, the second finds the end of file."""
    asked = await begun(scripted_upstream, CHAT, "close-reused", stream=False)
    assert (await asked.read_all()).status == 200
    body = b'{"model":"close-reused"}'
    asked.writer.write(b"POST %b HTTP/1.1\r\nContent-Length: 24\r\n\r\n" % CHAT.encode() + body)
    assert await asyncio.wait_for(asked.reader.read(), 10) == b""
    assert len(scripted_upstream.seen("close-reused")) == 2
    await asked.close()


@pytest.mark.parametrize("path", STREAMED)
async def test_a_whole_answer_that_breaks(scripted_upstream: ScriptedUpstream, path: str) -> None:
    """What breaks a stream breaks an answer in one piece as well."""
    for script in ("drop:2", "reset:2", "cut:2", "end:2", "no-terminal:2", "error-middle"):
        answer = await ask(scripted_upstream, path, script, stream=False)
        assert answer.status == 200, script
        assert not answer.clean, script
        assert len(answer.body) < int(answer.headers["content-length"]), script


# --- the control plane ----------------------------------------------------------------------------


async def control(upstream: ScriptedUpstream, body: object = None) -> Any:
    answer = await get(upstream.url, "/control", body)
    assert answer.status == 200
    return answer.json()


async def status_of(upstream: ScriptedUpstream, model: str) -> int:
    return (await ask(upstream, CHAT, model)).status


async def test_a_name_is_told_what_to_do(scripted_upstream: ScriptedUpstream) -> None:
    """From then on it does that, also when its name is a script; null gives it back to its name."""
    assert await status_of(scripted_upstream, "box") == 200
    for model in ("box", "status:500"):
        await control(scripted_upstream, {"model": model, "script": "status:503"})
        assert await status_of(scripted_upstream, model) == 503
    assert await status_of(scripted_upstream, "other") == 200
    for model, status in (("box", 200), ("status:500", 500)):
        told = await control(scripted_upstream, {"model": model, "script": None})
        assert model not in told["told"]
        assert await status_of(scripted_upstream, model) == status


async def test_all_names_are_told_what_to_do(scripted_upstream: ScriptedUpstream) -> None:
    """Except those that were told something of their own."""
    scripted_upstream.play("box", "status:502")
    await control(scripted_upstream, {"all": "status:503"})
    statuses = [await status_of(scripted_upstream, model) for model in ("box", "a", "ok")]
    assert statuses == [502, 503, 503]
    await control(scripted_upstream, {"all": None})
    assert await status_of(scripted_upstream, "a") == 200


async def test_what_is_no_script_is_not_taken(scripted_upstream: ScriptedUpstream) -> None:
    """A slip of the pen is an error, and changes nothing."""
    answer = await get(scripted_upstream.url, "/control", {"model": "box", "script": "statsu:503"})
    assert answer.status == 400
    with pytest.raises(ValueError, match="statsu:503"):
        scripted_upstream.play("box", "statsu:503")
    assert scripted_upstream.told == {}


async def test_what_was_asked_is_counted(scripted_upstream: ScriptedUpstream) -> None:
    """Requests for each name, connections and answers that are open now; it counts not itself."""
    for _ in range(2):
        await status_of(scripted_upstream, "box")
    scripted_upstream.play("box", "status:503")
    await status_of(scripted_upstream, "box")
    asked = await begun(scripted_upstream, MESSAGES, "silent")
    await until(lambda: scripted_upstream.seen("silent"), 5, "the request arrived")
    await until(lambda: scripted_upstream.open_connections == 1, 5, "the others are closed")
    seen = await control(scripted_upstream)
    assert seen["requests"] == {"box": 3, "silent": 1}
    assert seen["told"] == {"box": "status:503"}
    assert (seen["active"], seen["open_connections"]) == (1, 2)  # one is the question's own
    await asked.vanish()
    await until(lambda: scripted_upstream.active == 0, 5, "the client's absence is seen")


async def test_it_runs_by_hand() -> None:
    """It says where it is, answers there, and ends when it is interrupted."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fakes.upstream", cwd=TESTS, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    try:
        url = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
        answer = await get(url, MESSAGES, {"model": "ok", "stream": True})
        assert MARKERS[MESSAGES] in answer.body
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
