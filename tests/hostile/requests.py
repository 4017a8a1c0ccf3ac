"""Requests of every kind that the gateway knows, as raw bytes: what is changed to attack it."""

from __future__ import annotations

import json

from fakes.client import chat_body

BOUNDARY = b"edge"


def request(start: bytes, *lines: bytes, body: bytes | None = None) -> bytes:
    """A request of HTTP/1.1 to 127.0.0.1; its length is said if it has a body."""
    length = (b"Content-Length: %d" % len(body),) if body is not None else ()
    head = b"\r\n".join((start + b" HTTP/1.1", b"Host: 127.0.0.1", *lines, *length))
    return head + b"\r\n\r\n" + (body or b"")


def post(path: bytes, value: object, *lines: bytes) -> bytes:
    """A POST of JSON."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return request(b"POST " + path, b"Content-Type: application/json", *lines, body=body)


def form(*fields: tuple[bytes, bytes, bytes]) -> bytes:
    """A form with these fields: name, what stands behind it in its head, and content."""
    parts = b"".join(
        b"--%b\r\nContent-Disposition: form-data; name=%b%b\r\n\r\n%b\r\n"
        % (BOUNDARY, name, more, content)
        for name, more, content in fields
    )
    return parts + b"--" + BOUNDARY + b"--\r\n"


MESSAGES = [{"role": "user", "content": "hello"}]
FORM = form((b"model", b"", b"m"), (b"file", b'; filename="a.wav"', b"RIFF\x00\xff\r\n--edg"))
MULTIPART = b"Content-Type: multipart/form-data; boundary=" + BOUNDARY
UPGRADE = (
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
CHAT = post(b"/v1/chat/completions", chat_body("m"))

HEADS = [
    request(b"GET /"),
    request(b"GET /healthz", b"Connection: close"),
    request(b"HEAD /readyz"),
    request(b"OPTIONS /v1/models", b"Origin: http://127.0.0.1"),
    request(b"GET /v1/models/a%2Fb?x=1", b"Authorization: Bearer tg-1", b"x-api-key: k"),
    request(b"GET /v1/runs/run_0/stream?starting_after=3", b"Last-Event-ID: 7"),
    request(b"DELETE /v1/responses/resp_1", b"Sec-Fetch-Site: same-origin"),
    request(b"GET /v1/responses", *UPGRADE, b"Sec-WebSocket-Protocol: a, b"),
    request(
        b"GET /v1/runs/run_0/stream", *UPGRADE, b"Sec-WebSocket-Extensions: permessage-deflate"
    ),
    CHAT,
    request(b"POST /v1/chat/completions", b"Transfer-Encoding: chunked")
    + b"2\r\n{}\r\n0\r\nTrailer: x\r\n\r\n",
    request(b"GET /metrics") + request(b"GET /healthz"),
    post(
        b"/v1/messages",
        {"model": "m", "messages": MESSAGES, "max_tokens": 1},
        b"Expect: 100-continue",
    ),
]
HEAD_WORDS = [
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 18446744073709551616\r\n"),
    *(b"Host: evil.example\r\n", b"Origin: null\r\n", b"Connection: keep-alive, Upgrade\r\n"),
    *(b"Content-Encoding: gzip\r\n", b"Expect: 100-continue\r\n", b"X: " + b"y" * 9000),
    *(b"x-tidegate-owner: a\r\n", b"x-tidegate-hops: 9\r\n", b"x-on-disconnect: continue\r\n"),
    *(b" HTTP/2.0", b" HTTP/0.9", b"http://evil.example/", b"/../", b"%00", b"\r\n folded: x"),
    *(b"Cookie: " + b"a=b;" * 500, b"\xc3\xa9", b"a: b\r\n" * 130),
]

BODIES = [
    CHAT,
    post(b"/v1/chat/completions", {**chat_body("m", stream=False), "stream_options": {"x": 1}}),
    post(b"/v1/completions", {"model": "m", "prompt": ["a", "b"], "stream": True}),
    post(b"/v1/responses", {"model": "m", "input": "hi", "background": True, "store": True}),
    post(b"/v1/responses", {"model": "m", "input": [], "previous_response_id": "resp_1"}),
    post(b"/v1/messages", {"model": "m", "messages": MESSAGES, "max_tokens": 1, "stream": True}),
    post(b"/v1/messages/count_tokens", {"model": "m", "messages": MESSAGES}),
    post(b"/v1/embeddings", {"model": "m", "input": "x"}),
    post(b"/v1/rerank", {"model": "m", "query": "x", "documents": ["a"]}),
    post(b"/api/chat", {"model": "m", "messages": MESSAGES, "options": {"num_ctx": 1}}),
    post(b"/api/generate", {"model": "m", "prompt": "x", "stream": False}),
    post(b"/api/show", {"model": "m"}),
    request(b"POST /v1/audio/transcriptions", MULTIPART, body=FORM),
    request(b"POST /v1/images/edits", MULTIPART, body=FORM),
    post(
        b"/v1/chat/completions", b'{"model":"m","messages":[{"content":"\\ud83d"}],"stream":true}'
    ),
    request(b"POST /v1/chat/completions", b"Transfer-Encoding: chunked")
    + b'14\r\n{"model":"m","messag\r\n8\r\nes":[]}\n\r\n0\r\n\r\n',
]
BODY_WORDS = [
    *(b'"stream":true,', b'"model":', b'"model":null,', b'"model":"box/m",', b'"background":true,'),
    *(b"[" * 2000, b'{"a":' * 500, b"\\ud800", b"\\u0000", b'"\xff"', b"\xef\xbb\xbf", b"null"),
    *(b"--edge\r\n", b"--edge--\r\n", b"Content-Disposition: form-data; name=model\r\n\r\n"),
    *(b"0\r\n\r\n", b"fffffffff\r\n", b"1;x=y\r\n", b"NaN", b"Infinity", b"//", b"1" * 5000),
]


def lengthen(sent: bytes) -> bytes:
    """The same with its Content-Length true, so that what was changed in the body is looked at."""
    head, end, body = sent.partition(b"\r\n\r\n")
    if not end:
        return sent
    lines = head.split(b"\r\n")
    named = [at for at, line in enumerate(lines) if line.lower().startswith(b"content-length:")]
    for at in named[:1]:
        lines[at] = b"Content-Length: %d" % len(body)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
