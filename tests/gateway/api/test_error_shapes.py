"""Whatever goes wrong, on whatever route: its answer is an error as its clients read one."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest

from fakes.client import Stream, get
from fakes.upstream import ScriptedUpstream
from gateway.gateway_rig import DEADLINE_S, Rig, scoped
from tidegate.core import formats
from tidegate.core.runs.ledger import Entry
from tidegate.gateway.upstreams import catalog

KEY = "tg-" + "k" * 40
LOOKS, NEWER, WRONG = "tg-looks", "tg-newer", "tg-wrong"
TOKENS = [scoped(KEY), scoped(LOOKS, "read"), scoped(NEWER, "audit")]
ANTHROPIC_PYTHON = Path(__file__).parents[3] / ".venv" / "clients" / "bin" / "python"
ASKING = [f"/v1{form.path}" if not form.at_root else form.path for form in formats.ALL]
ASKING += ["/rerank", "/v1/reranking"]
LOOKING = ["/v1/models", "/v1/runs", "/v1/runs/run_1", "/v1/responses/resp_1", "/api/tags"]
LOOKING += ["/api/ps", "/api/version"]
BODY: dict[str, Any] = {
    "model": "ok", "messages": [], "input": "x", "prompt": "x", "stream": True, "max_tokens": 5,
}  # fmt: skip


def is_error(path: str, value: Any) -> bool:
    """Whether it has the shape that this route's clients read, and says something."""
    error = value.get("error")
    if path.startswith("/api/"):
        return set(value) == {"error"} and isinstance(error, str) and bool(error)
    if path.startswith("/v1/messages"):
        said = isinstance(error, dict) and bool(error.get("message")) and bool(error.get("type"))
        return said and value.get("type") == "error"
    return set(error) == {"message", "type", "param", "code"} and bool(error["message"])


Send = Callable[[Rig, str, str], Awaitable[Stream]]


class Fault(NamedTuple):
    """What is wrong, and the status that tells it."""

    status: int
    send: Send  # the rig, a method and a path
    prepare: Callable[[Rig], None] = lambda rig: None
    reading: bool = True  # whether it can go wrong where nothing is sent


async def raw(rig: Rig, head: list[str], body: bytes = b"") -> Stream:
    """A request as it is written here, and its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    stream = Stream(reader, writer)
    Stream.opened.append(stream)
    if not any(line.lower().startswith("host:") for line in head):
        head = [*head, "Host: localhost"]
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
    return await asyncio.wait_for(stream.read_all(), DEADLINE_S)


def with_key(*lines: str, body: bytes | None = None) -> Send:
    """Send this with a valid key."""
    return sends(f"x-api-key: {KEY}", *lines, body=body)


def sends(*lines: str, body: bytes | None = None, method: str = "", more: str = "") -> Send:
    """Send this; a body that is asked for is whole and good unless it is given here."""

    async def send(rig: Rig, its_method: str, path: str) -> Stream:
        content = body
        if content is None:
            content = json.dumps(BODY).encode() if its_method == "POST" else b""
        length = [] if any("content-length" in line.lower() for line in lines) else [
            f"Content-Length: {len(content)}"
        ]  # fmt: skip
        return await raw(
            rig, [f"{method or its_method} {path}{more} HTTP/1.1", *lines, *length], content
        )

    return send


def sheds(rig: Rig) -> None:
    rig.facts(shed="memory is short")


def parks(rig: Rig) -> None:
    rig.gateway.parked = "the config is broken"


def fills_the_book(rig: Rig) -> None:
    ledger = rig.gateway.registry.ledger
    ledger.limit_bytes = 1 << 20
    ledger.open().set(Entry.WINDOW, ledger.limit_bytes)


def breaks(rig: Rig) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    rig.gateway.catalog.route = fail  # type: ignore[method-assign,assignment]


FAULTS: dict[str, Fault] = {
    "no key": Fault(401, sends()),
    "a wrong key": Fault(401, sends("x-api-key: tg-wrong")),
    "two keys": Fault(401, sends("x-api-key: a", "Authorization: Bearer b")),
    "a token that only looks": Fault(403, sends(f"x-api-key: {LOOKS}"), reading=False),
    "a token of a newer version": Fault(403, sends(f"x-api-key: {NEWER}")),
    "another host": Fault(403, sends("Host: example.com")),
    "no host": Fault(400, with_key("Host: a b")),
    "another site": Fault(403, with_key("Origin: http://evil.example"), reading=False),
    "another method": Fault(405, sends(f"x-api-key: {KEY}", method="PATCH")),
    "nothing there": Fault(404, sends(f"x-api-key: {KEY}", more="/nothing/here")),
    "parked": Fault(503, with_key(), parks),
    "parked, and nothing there": Fault(
        503, sends(f"x-api-key: {KEY}", more="/nothing/here"), parks
    ),
    "no JSON": Fault(400, with_key(body=b'{"model":'), reading=False),
    "no model": Fault(400, with_key(body=b"{}"), reading=False),
    "an unknown model": Fault(404, with_key(body=b'{"model":"x"}'), reading=False),
    "too large": Fault(413, with_key("Content-Length: 9000"), reading=False),
    "compressed": Fault(415, with_key("Content-Encoding: br"), reading=False),
    "not what it says": Fault(400, with_key("Content-Encoding: gzip"), reading=False),
    "an expectation": Fault(
        417, with_key("Expect: a miracle", "Content-Length: 900"), reading=False
    ),
    "late": Fault(408, with_key("Content-Length: 900"), reading=False),
    "shedding": Fault(503, with_key(), sheds, reading=False),
    "no room": Fault(503, with_key(), fills_the_book, reading=False),
    "a ring": Fault(508, with_key("x-tidegate-hops: 9"), reading=False),
    "a bad wish": Fault(400, with_key("x-on-disconnect: stay"), reading=False),
    "a mistake of ours": Fault(500, with_key(), breaks, reading=False),
}


@pytest.fixture
def upstream():
    running = ScriptedUpstream().start()
    yield running
    running.stop()


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_route_tells_every_fault_in_its_own_shape(rigs, upstream, fault: str) -> None:
    """Refused by auth, for the body, parked, short of memory, or for a fault of our own."""
    row = FAULTS[fault]
    rig: Rig = await rigs(
        upstream, upstream, tokens=TOKENS, body_s=0.3, max_body_bytes=5000, header_s=5.0
    )
    row.prepare(rig)
    routes = [("POST", path) for path in ASKING]
    if row.reading:
        routes += [("GET", path) for path in LOOKING]

    async def play(method: str, path: str) -> str:
        answer = await row.send(rig, method, path)
        if fault == "nothing there" and path == "/v1/models":
            return ""  # behind it is a model's name
        good = answer.status == row.status and is_error(path, json.loads(answer.body))
        return "" if good else f"{method} {path}: {answer.status} {bytes(answer.body)!r}"

    wrong = [said for said in await asyncio.gather(*(play(*route) for route in routes)) if said]
    rig.gateway.parked = None
    for account in list(rig.gateway.registry.ledger.accounts):
        account.close()
    if fault == "a mistake of ours":
        assert rig.errors
        rig.errors.clear()
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "like"),
    [
        ("/v1", "/v1/x"),
        ("/v1/nothing", "/v1/x"),
        ("/v1/messagesx", "/v1/x"),
        ("/nothing", "/v1/x"),
        ("/v1/messages/batches", "/v1/messages"),
        ("/v1/messages/x?beta=true", "/v1/messages"),
        ("/api", "/api/x"),
        ("/api/pull", "/api/x"),
        ("/api/nothing?a=/v1/messages", "/api/x"),
        ("/apix", "/v1/x"),
    ],
)
async def test_a_path_that_is_not_there(rigs, upstream, path: str, like: str) -> None:
    """It is told as what is beside it would tell it."""
    rig = await rigs(upstream)
    for answer in (await get(rig.base_url, path), await get(rig.base_url, path, BODY)):
        assert answer.status == 404
        assert is_error(like, answer.json())


@pytest.mark.parametrize("path", [path for path in ASKING if path != "/v1/chat/completions"])
async def test_the_demo_refuses_in_the_shape_that_was_asked(
    rigs, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A client of another format reads why, in one piece and as a stream."""
    no_servers: Any = ()
    monkeypatch.setattr(catalog, "WELL_KNOWN", no_servers)
    rig = await rigs(peer=True)
    for stream in (True, False):
        answer = await get(rig.base_url, path, {**BODY, "model": "demo", "stream": stream})
        assert answer.status == 404
        assert is_error(path, answer.json()), bytes(answer.body)
        assert "chat completions only" in bytes(answer.body).decode()


# --- as the official clients raise them -----------------------------------------------------------

RAISED = {
    "no key": "AuthenticationError",
    "another host": "AuthenticationError",  # a valid token would have made up for the name
    "a token that only looks": "PermissionDeniedError",
    "an unknown model": "NotFoundError",
    "no JSON": "BadRequestError",
    "shedding": "InternalServerError",
    "too large": "APIStatusError",
}
ANTHROPIC_RAISES = RAISED | {
    "shedding": "ServiceUnavailableError",
    "too large": "ContentTooLargeError",
}


def options_of(fault: str) -> dict[str, Any]:
    """What a client has to say for this fault to happen."""
    keys = {"no key": WRONG, "another host": WRONG, "a token that only looks": LOOKS}
    return {
        "key": keys.get(fault, KEY),
        "host": "example.com" if fault == "another host" else "localhost",
        "model": "x" if fault == "an unknown model" else 7 if fault == "no JSON" else "ok",
        "text": "x" * 9000 if fault == "too large" else "x",
    }


@pytest.mark.parametrize("fault", RAISED)
async def test_openai_python_raises_what_it_is(rigs, upstream, fault: str) -> None:
    """By its class, with our sentence as its message."""
    rig = await rigs(upstream, upstream, tokens=TOKENS, max_body_bytes=5000)
    if fault == "shedding":
        sheds(rig)
    said = options_of(fault)
    client = openai.AsyncOpenAI(
        base_url=f"{rig.base_url}/v1",
        api_key=said["key"],
        max_retries=0,
        default_headers={"Host": said["host"]},
    )
    try:
        for ask in (
            lambda: client.chat.completions.create(
                model=said["model"], messages=[{"role": "user", "content": said["text"]}]
            ),
            lambda: client.responses.create(model=said["model"], input=said["text"]),
        ):
            with pytest.raises(openai.APIStatusError) as raised:
                await ask()  # type: ignore[no-untyped-call]
            assert type(raised.value).__name__ == RAISED[fault]
            assert isinstance(raised.value.body, dict)
            assert raised.value.body["message"]
    finally:
        await client.close()


ASK_ANTHROPIC = """
import json, sys
import anthropic
said = json.loads(sys.argv[1])
client = anthropic.Anthropic(
    base_url=said["url"], api_key=said["key"], max_retries=0, default_headers={"Host": said["host"]}
)
messages = [{"role": "user", "content": said["text"]}]
for ask in (
    lambda: client.messages.create(model=said["model"], messages=messages, max_tokens=5),
    lambda: client.messages.count_tokens(model=said["model"], messages=messages),
):
    try:
        ask()
    except anthropic.APIStatusError as error:
        print(type(error).__name__, error.body["type"], error.body["error"]["message"])
"""


@pytest.mark.long
@pytest.mark.parametrize("fault", RAISED)
async def test_anthropic_python_raises_what_it_is(rigs, upstream, fault: str) -> None:
    """By its class, with our sentence where it looks for one."""
    if not ANTHROPIC_PYTHON.exists():
        pytest.skip("anthropic is not installed (.ci/run installs it)")
    rig = await rigs(upstream, upstream, tokens=TOKENS, max_body_bytes=5000)
    if fault == "shedding":
        sheds(rig)
    said = json.dumps({"url": rig.base_url, **options_of(fault)})
    asked = await asyncio.to_thread(
        subprocess.run,
        [ANTHROPIC_PYTHON, "-c", ASK_ANTHROPIC, said],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    lines = [line.split(" ", 2) for line in asked.stdout.splitlines()]
    assert len(lines) == 2, asked.stdout
    for kind, outer, message in lines:
        assert kind == ANTHROPIC_RAISES[fault]
        assert outer == "error"
        assert message
