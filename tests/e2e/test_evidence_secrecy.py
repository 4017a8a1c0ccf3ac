"""What a real gateway writes down and shows of itself holds no user's words and no keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fakes.canaries import forms
from fakes.client import Stream, get, open_chat
from fakes.gateway import Gateway, StartGateway
from fakes.upstream import chunk
from gateway.gateway_rig import HEAD, LAST, Peer, RawUpstream, chunked, plain

LIMIT_S = 20.0  # for all answers that come at once
PROMPT = "CANARY prompt: what is wrong with me?"
ANSWER = "CANARY answer, it is nothing!"
CONFIG_KEY = "sk-CANARY-key-of-the-config-0123456789"
OTHER_KEY = "sk-CANARY-that-is-a-plain-word"
WRONG_TOKEN = "CANARY-token-that-is-not-valid"
HEADER = "CANARY-in-a-header-of-the-client"
QUERY = "CANARY-in-a-query"


async def repeat(peer: Peer) -> None:
    """An upstream that repeats all that it hears, wherever it can."""
    while True:
        request = await peer.request()
        said = f"{PROMPT} {ANSWER} {CONFIG_KEY}"
        error = {"error": {"message": said, "code": said, "type": PROMPT, "param": ANSWER}}
        body = json.dumps(error).encode()
        if b'"stream' not in request.partition(b"\r\n\r\n")[2]:
            await peer.send(plain(b'{"data":[{"id":"answer"}]}'))
        elif b"fail-400" in request:
            await peer.send(plain(body, f"400 {said}".encode(), f"X-Said: {said}".encode()))
        elif b"fail-500" in request:
            await peer.send(plain(body, f"500 {said}".encode()))
        elif b"fail-event" in request:
            words = chunk(content=ANSWER), b"data: " + body + b"\n\n"
            await peer.send(HEAD + chunked(*words) + LAST)
        elif b"fail-label" in request:
            await peer.send(plain(json.dumps({"error": {"code": OTHER_KEY}}).encode(), b"400 X"))
        elif b"fail-garbage" in request:
            await peer.send(f"{said}\r\n\r\n{said}".encode())
            return
        else:
            await peer.send(HEAD + chunked(chunk(role="assistant"), chunk(content=ANSWER)))
            await peer.hang()


@pytest.fixture
async def repeating() -> AsyncIterator[RawUpstream]:
    """That upstream, running."""
    upstream = await RawUpstream(repeat).start()
    yield upstream
    await upstream.stop()


def shown_by(gateway: Gateway) -> dict[str, str]:
    """Everything that may be passed on to find a fault: bundles, decisions, status, the log."""
    texts = {"status": json.dumps(gateway.status(), ensure_ascii=False)}
    for path in [*gateway.state_dir.glob("bundles/*"), *gateway.state_dir.glob("decisions*")]:
        texts[path.name] = f"{path.name}\n{path.read_text()}"
    return texts | {"log": gateway.log.read_text()}


async def ask_all(gateway: Gateway, token: str) -> list[Stream]:
    """Requests that fail in every way, and two that go on."""
    headers = {"Authorization": f"Bearer {token}", "X-Custom": HEADER, "User-Agent": HEADER}
    messages = [{"role": "user", "content": PROMPT}]
    wrong = {"Authorization": f"Bearer {WRONG_TOKEN}"}
    await get(gateway.base_url, f"/v1/models?key={QUERY}", headers=wrong)
    fails = (
        "cloud/fail-400",
        "cloud/fail-500",
        "cloud/fail-event",
        "cloud/fail-garbage",
        "other/fail-label",
    )
    models = (*fails, "cloud/answer", f"cloud/{PROMPT} as a name")
    streams = [
        await open_chat(gateway.base_url, model, headers=headers, messages=messages)
        for model in models
    ]
    async with asyncio.timeout(LIMIT_S):
        for stream in streams[5:]:
            await stream.read_events(2)
        for stream in streams[:5]:
            await stream.read_all()
    return streams[5:]


async def test_no_evidence_holds_a_canary(gateway: StartGateway, repeating: RawUpstream) -> None:
    """Prompts, answers, keys and tokens are in no bundle, decision, status or log, in no form."""
    upstreams = [
        f'[[upstream]]\nname = "{name}"\nurl = "{repeating.url}"\napi_key_env = "{name.upper()}"\n'
        for name in ("cloud", "other")
    ]
    keys = {"CLOUD": CONFIG_KEY, "OTHER": OTHER_KEY}
    running = await asyncio.to_thread(gateway, "".join(upstreams), env=keys)
    made = await asyncio.to_thread(running.command, "token", "new", "laptop")
    token = made.stdout.strip()
    assert len(token) > 20
    await ask_all(running, token)
    bundled = await asyncio.to_thread(running.command, "bundle", "--json")
    assert bundled.returncode == 0, bundled.stderr
    written = json.loads(bundled.stdout)
    texts = await asyncio.to_thread(shown_by, running)

    path = Path(written["path"])
    read = json.loads(texts[path.name].partition("\n")[2])
    # It is evidence: the runs are there, with all that may be told of them.
    states = {run["state"] for run in read["runs"]}
    assert states >= {"failed", "streaming"}, read["runs"]
    assert read["workers"]["worker 1"]["ledger"]["window"] > 0
    assert read["settings"]["upstream"][0]["api_key_env"] is True
    assert read["decisions"]

    for canary in (PROMPT, ANSWER, CONFIG_KEY, WRONG_TOKEN, HEADER, QUERY, token, token[8:]):
        for form in forms(canary):
            for name, text in texts.items():
                assert form not in text, f"{canary} as {form} is in {name}"

    # An upstream may call its error by the key that it was given.
    assert any("refused with 400" in text for text in texts.values())
    for form in forms(OTHER_KEY):
        assert not any(form in text for text in texts.values())
