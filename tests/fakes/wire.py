"""What each wire format's events look like, for the scripted upstream: one small class a format.

A script says "opening, three words, finish, marker"; the format says how that is written. The
events are as the vendors' servers send them, cut down to what clients look at.
"""

import json
from collections.abc import Iterator
from typing import Any, ClassVar


def dumps(value: object) -> bytes:
    """JSON as a server writes it: no blanks."""
    return json.dumps(value, separators=(",", ":")).encode()


def chunk(finish: str | None = None, **delta: object) -> bytes:
    """One event of a chat completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "scripted",
        "choices": [choice],
    }
    return b"data: " + dumps(body) + b"\n\n"


DONE = b"data: [DONE]\n\n"
ARGUMENTS = '{"city":"Paris"}'
PIECES = ('{"city"', ':"Pa', 'ris"}')  # the same, as it is streamed


class Chat:
    """OpenAI's chat completions."""

    content_type = "text/event-stream"
    streams_unasked = False
    half = b'data: {"choices":[{"index":0,"del'
    malformed = b'data: {"choices":[{"index":0,"delta":{"content":"bad}\n\n'
    comment = b": still here\n\n"

    def __init__(self, model: str) -> None:
        self.model = model

    def opening(self) -> list[bytes]:
        """What comes before the first output."""
        return [chunk(role="assistant", content="")]

    def word(self, text: str) -> bytes:
        """One piece of output."""
        return chunk(content=text)

    def tool(self) -> list[bytes]:
        """A call of get_weather, in pieces."""
        call = {"index": 0, "id": "call_1", "type": "function"}
        first = {**call, "function": {"name": "get_weather", "arguments": ""}}
        rest = [{"index": 0, "function": {"arguments": piece}} for piece in PIECES]
        return [chunk(tool_calls=[each]) for each in (first, *rest)]

    def finish(self, reason: str = "stop") -> list[bytes]:
        """Why it ends."""
        return [chunk(finish="tool_calls" if reason == "tool" else reason)]

    def keep_alives(self) -> list[bytes]:
        """Events that say nothing."""
        return [chunk(), chunk(role="assistant", content="")]

    def usage(self) -> list[bytes]:
        """The count of tokens that a client asked for."""
        counts = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
        body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1}
        return [b"data: " + dumps({**body, "choices": [], "usage": counts}) + b"\n\n"]

    def done(self) -> list[bytes]:
        """The terminal marker."""
        return [DONE]

    def error(self) -> list[bytes]:
        """An error in the stream."""
        inner = {"message": "the fake is overloaded", "type": "server_error", "code": 503}
        return [b"data: " + dumps({"error": inner}) + b"\n\n"]

    def whole(self, *, tool: bool = False) -> object:
        """The answer in one piece."""
        message: dict[str, Any] = {"role": "assistant", "content": "one two three"}
        if tool:
            function = {"name": "get_weather", "arguments": ARGUMENTS}
            calls = [{"id": "call_1", "type": "function", "function": function}]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        finish = "tool_calls" if tool else "stop"
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": self.model,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4},
        }

    def refusal(self, status: int, message: str, code: str | None = "fake") -> object:
        """An error as a whole answer."""
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": message, "type": kind, "param": None, "code": code}
        return {"error": error}


class Completions(Chat):
    """OpenAI's older completions."""

    half = b'data: {"choices":[{"index":0,"te'

    def _event(self, text: str, finish: str | None = None) -> bytes:
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": self.model}
        return b"data: " + dumps({**head, "choices": [choice]}) + b"\n\n"

    def opening(self) -> list[bytes]:
        return []

    def word(self, text: str) -> bytes:
        return self._event(text)

    def tool(self) -> list[bytes]:
        return [self._event("get_weather")]

    def finish(self, reason: str = "stop") -> list[bytes]:
        return [self._event("", "stop" if reason == "tool" else reason)]

    def keep_alives(self) -> list[bytes]:
        return [self._event("")]

    def whole(self, *, tool: bool = False) -> object:
        choice = {"index": 0, "text": "one two three", "finish_reason": "stop", "logprobs": None}
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": self.model}
        usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
        return {**head, "choices": [choice], "usage": usage}


class Responses(Chat):
    """OpenAI's responses; events are numbered in the order in which they are made."""

    half = b'event: response.output_text.delta\ndata: {"type":"response.output_te'
    malformed = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta\n\n'
    message_id = "msg_1"

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.number = 0
        self.text = ""
        self.called = False

    def _event(self, kind: str, **values: object) -> bytes:
        body = {"type": kind, "sequence_number": self.number, **values}
        self.number += 1
        return f"event: {kind}\n".encode() + b"data: " + dumps(body) + b"\n\n"

    def _response(self, status: str, output: list[object] | None = None) -> dict[str, object]:
        usage = {"input_tokens": 1, "output_tokens": 3, "total_tokens": 4}
        return {
            "id": "resp_up1",
            "object": "response",
            "created_at": 1,
            "status": status,
            "model": self.model,
            "output": output or [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "incomplete_details": None,
            "usage": usage if status == "completed" else None,
        }

    def _message(self, status: str, text: str) -> dict[str, object]:
        part = {"type": "output_text", "text": text, "annotations": []}
        content = [part] if text else []
        head = {"id": self.message_id, "type": "message", "role": "assistant"}
        return {**head, "status": status, "content": content}

    def _call(self, status: str, arguments: str) -> dict[str, object]:
        head = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "get_weather"}
        return {**head, "status": status, "arguments": arguments}

    def opening(self) -> list[bytes]:
        return [
            self._event("response.created", response=self._response("in_progress")),
            self._event("response.in_progress", response=self._response("in_progress")),
        ]

    def _place(self) -> dict[str, object]:
        return {"item_id": self.message_id, "output_index": 0, "content_index": 0}

    def word(self, text: str) -> bytes:
        first = b""
        if not self.text:
            item = self._message("in_progress", "")
            part = {"type": "output_text", "text": "", "annotations": []}
            first = self._event("response.output_item.added", output_index=0, item=item)
            first += self._event("response.content_part.added", **self._place(), part=part)
        self.text += text
        return first + self._event(
            "response.output_text.delta", **self._place(), delta=text, logprobs=[]
        )

    def tool(self) -> list[bytes]:
        self.called = True
        place: dict[str, object] = {"item_id": "fc_1", "output_index": 0}
        item = self._call("in_progress", "")
        done = self._call("completed", ARGUMENTS)
        name = "response.function_call_arguments"
        return [
            self._event("response.output_item.added", output_index=0, item=item),
            *(self._event(f"{name}.delta", **place, delta=piece) for piece in PIECES),
            self._event(f"{name}.done", **place, name="get_weather", arguments=ARGUMENTS),
            self._event("response.output_item.done", output_index=0, item=done),
        ]

    def finish(self, reason: str = "stop") -> list[bytes]:
        if not self.text:
            return []
        text = self.text
        part = {"type": "output_text", "text": text, "annotations": []}
        item = self._message("completed", text)
        return [
            self._event("response.output_text.done", **self._place(), text=text, logprobs=[]),
            self._event("response.content_part.done", **self._place(), part=part),
            self._event("response.output_item.done", output_index=0, item=item),
        ]

    def keep_alives(self) -> list[bytes]:
        return [self._event("keepalive")]

    def usage(self) -> list[bytes]:
        return []

    def done(self) -> list[bytes]:
        output: list[object] = []
        if self.called:
            output = [self._call("completed", ARGUMENTS)]
        elif self.text:
            output = [self._message("completed", self.text)]
        return [self._event("response.completed", response=self._response("completed", output))]

    def error(self) -> list[bytes]:
        error = {"code": "server_error", "message": "the fake is overloaded"}
        failed = {**self._response("failed"), "error": error}
        return [
            self._event("error", **error, param=None),
            self._event("response.failed", response=failed),
        ]

    def whole(self, *, tool: bool = False) -> object:
        output: list[object] = [self._message("completed", "one two three")]
        if tool:
            output = [self._call("completed", ARGUMENTS)]
        return self._response("completed", output)


class Messages(Chat):
    """Anthropic's messages."""

    half = b'event: content_block_delta\ndata: {"type":"content_block_del'
    malformed = b'event: content_block_delta\ndata: {"type":"content_block_delta\n\n'

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.open = False

    def _event(self, name: str, **values: object) -> bytes:
        return f"event: {name}\n".encode() + b"data: " + dumps({"type": name, **values}) + b"\n\n"

    def _head(self) -> dict[str, object]:
        return {"id": "msg_1", "type": "message", "role": "assistant", "model": self.model}

    def opening(self) -> list[bytes]:
        message = {
            **self._head(),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
        return [self._event("message_start", message=message), self._event("ping")]

    def word(self, text: str) -> bytes:
        first = b""
        if not self.open:
            block = {"type": "text", "text": ""}
            first = self._event("content_block_start", index=0, content_block=block)
            self.open = True
        delta = {"type": "text_delta", "text": text}
        return first + self._event("content_block_delta", index=0, delta=delta)

    def tool(self) -> list[bytes]:
        self.open = True
        block = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in PIECES]
        return [
            self._event("content_block_start", index=0, content_block=block),
            *(self._event("content_block_delta", index=0, delta=delta) for delta in deltas),
        ]

    def finish(self, reason: str = "stop") -> list[bytes]:
        stop = {"stop": "end_turn", "tool": "tool_use"}.get(reason, reason)
        delta = {"stop_reason": stop, "stop_sequence": None}
        usage = {"output_tokens": 3}
        block = [self._event("content_block_stop", index=0)] if self.open else []
        return [*block, self._event("message_delta", delta=delta, usage=usage)]

    def keep_alives(self) -> list[bytes]:
        return [self._event("ping")]

    def usage(self) -> list[bytes]:
        return []

    def done(self) -> list[bytes]:
        return [self._event("message_stop")]

    def error(self) -> list[bytes]:
        inner = {"type": "overloaded_error", "message": "the fake is overloaded"}
        return [self._event("error", error=inner)]

    def whole(self, *, tool: bool = False) -> object:
        content: list[object] = [{"type": "text", "text": "one two three"}]
        if tool:
            call = {"id": "toolu_1", "name": "get_weather", "input": json.loads(ARGUMENTS)}
            content = [{"type": "tool_use", **call}]
        return {
            **self._head(),
            "content": content,
            "stop_reason": "tool_use" if tool else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 3},
        }

    def refusal(self, status: int, message: str, code: str | None = "fake") -> object:
        kinds = {429: "rate_limit_error", 503: "overloaded_error", 529: "overloaded_error"}
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}


class Ollama(Chat):
    """Ollama's chat: one JSON value a line."""

    content_type = "application/x-ndjson"
    streams_unasked = True
    half = b'{"model":"scripted","created_at":"2026-11-01T00:00:00Z","mess'
    malformed = b'{"model":"scripted","message":{"role":"assistant","content":"bad}\n'
    comment = b"\n"

    def _line(self, done: bool, **values: object) -> bytes:
        head = {"model": self.model, "created_at": "2026-11-01T00:00:00Z"}
        return dumps({**head, **values, "done": done}) + b"\n"

    def _said(self, text: str) -> dict[str, object]:
        return {"message": {"role": "assistant", "content": text}}

    def opening(self) -> list[bytes]:
        return []

    def word(self, text: str) -> bytes:
        return self._line(False, **self._said(text))

    def tool(self) -> list[bytes]:
        function = {"name": "get_weather", "arguments": json.loads(ARGUMENTS)}
        message = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
        return [self._line(False, message=message)]

    def finish(self, reason: str = "stop") -> list[bytes]:
        return []

    def keep_alives(self) -> list[bytes]:
        return [self.word("")]

    def usage(self) -> list[bytes]:
        return []

    def done(self) -> list[bytes]:
        counts = {"eval_count": 3, "eval_duration": 1_000_000, "prompt_eval_count": 1}
        return [self._line(True, **self._said(""), done_reason="stop", **counts)]

    def error(self) -> list[bytes]:
        return [dumps({"error": "the fake is overloaded"}) + b"\n"]

    def whole(self, *, tool: bool = False) -> object:
        said = self._said("one two three")
        if tool:
            said = json.loads(self.tool()[0])
        counts = {"done_reason": "stop", "eval_count": 3, "eval_duration": 1_000_000}
        return {**json.loads(self._line(True)), **said, "done": True, **counts}

    def refusal(self, status: int, message: str, code: str | None = "fake") -> object:
        return {"error": message}


class Generate(Ollama):
    """Ollama's generate."""

    half = b'{"model":"scripted","created_at":"2026-11-01T00:00:00Z","resp'
    malformed = b'{"model":"scripted","response":"bad}\n'

    def _said(self, text: str) -> dict[str, object]:
        return {"response": text}


class Plain(Chat):
    """Everything that is one answer: embeddings, rerank, images, token counts."""

    answers: ClassVar[dict[str, object]] = {
        "/embeddings": {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
            "model": "scripted",
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
        },
        "/rerank": {"results": [{"index": 0, "relevance_score": 0.5}]},
        "/images/generations": {"created": 1, "data": [{"b64_json": "aGk="}]},
        "/images/edits": {"created": 1, "data": [{"b64_json": "aGk="}]},
        "/images/variations": {"created": 1, "data": [{"b64_json": "aGk="}]},
        "/audio/transcriptions": {"text": "one two three"},
        "/audio/translations": {"text": "one two three"},
        "/messages/count_tokens": {"input_tokens": 3},
        "/api/embed": {"model": "scripted", "embeddings": [[0.5, -0.25]]},
        "/api/embeddings": {"embedding": [0.5, -0.25]},
        "/api/show": {"details": {"family": "scripted"}, "capabilities": ["completion"]},
    }

    def __init__(self, model: str, path: str) -> None:
        super().__init__(model)
        self.path = path

    def whole(self, *, tool: bool = False) -> object:
        return self.answers[self.path]

    def refusal(self, status: int, message: str, code: str | None = "fake") -> object:
        if self.path.startswith("/api/"):
            return Ollama(self.model).refusal(status, message, code)
        if self.path.startswith("/messages"):
            return Messages(self.model).refusal(status, message, code)
        return super().refusal(status, message, code)


STREAMING: dict[str, type[Chat]] = {
    "/chat/completions": Chat,
    "/completions": Completions,
    "/responses": Responses,
    "/messages": Messages,
    "/api/chat": Ollama,
    "/api/generate": Generate,
}


def wire_for(path: str, model: str) -> Chat:
    """How a request to `path` is answered."""
    path = path.partition("?")[0].removeprefix("/v1")
    if path in Plain.answers:
        return Plain(model, path)
    return STREAMING.get(path, Chat)(model)


# --- the pieces of chat completions, for comparing their bytes -----------------------------------

EVENT_BYTES = 1000  # of "bulk" and "stuck"
PAGE_EVENTS = 20
HALF_AN_EVENT = Chat.half

[ROLE] = Chat("scripted").opening()
[FINISH] = Chat("scripted").finish()
[ERROR] = Chat("scripted").error()
WORDS = ("one ", "two ", "three")
OK = [ROLE, *(chunk(content=word) for word in WORDS), FINISH, DONE]


def numbered(number: int, size: int = 0, wire: Chat | None = None) -> bytes:
    """A word that is its own number, padded to `size` bytes."""
    wire = wire or Chat("scripted")
    event = wire.word(f"{number} ")
    return event if len(event) >= size else wire.word(f"{number} " + "." * (size - len(event)))


def pages(kilobytes: int, wire: Chat | None = None) -> Iterator[bytes]:
    """Numbered events of 1000 bytes, twenty at a time, which is what makes a large answer quick."""
    events = kilobytes * 1000 // EVENT_BYTES
    for first in range(0, events, PAGE_EVENTS):
        last = min(first + PAGE_EVENTS, events)
        yield b"".join(numbered(number, EVENT_BYTES, wire) for number in range(first, last))
