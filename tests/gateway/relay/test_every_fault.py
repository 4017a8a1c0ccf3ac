"""Every fault of an upstream, in every format: what the client sees, and that nothing stays.

No fault may look like success. A stream that broke ends with its format's own error event and
without its terminal marker; what failed before the first output has a status and an error in its
format's own shape; everything else is whole, byte for byte. `Rig.finish` counts what is left.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import pytest

from fakes.client import Stream, get
from fakes.upstream import SCRIPTS, ScriptedUpstream
from fakes.wire import WORDS, wire_for
from gateway.gateway_rig import Rig

ON_EVERY_ROAD = True
pytestmark = pytest.mark.long

WHOLE, BROKEN = "whole", "broken"
SILENT = "silent"  # 504, once plain_s is over
LIMITS = {
    "first_output_s": 0.5,
    "idle_s": 0.4,
    "total_s": 8.0,
    "hold_s": 5.0,
    "keepalive_s": 5.0,
}
MOST_S = 20.0  # what all limits of one request add up to here, with room for a busy machine


@dataclass(frozen=True)
class Form:
    """One route, and how its answers are judged."""

    path: str
    streams: bool = True

    @property
    def is_ollama(self) -> bool:
        return self.path.startswith("/api/")

    def body(self, model: str, *, stream: bool) -> dict[str, object]:
        """A request as small as it can be."""
        body: dict[str, object] = {"model": model, "messages": [], "input": "x", "prompt": "x"}
        return {**body, "stream": stream} if self.streams else body

    def is_error(self, value: object) -> bool:
        """Whether it is an error in the shape that this format's clients read."""
        if not isinstance(value, dict):
            return False
        error = value.get("error")
        if self.is_ollama:
            return isinstance(error, str) and bool(error)
        if not isinstance(error, dict) or not error.get("message"):
            return False
        if self.path.startswith("/v1/messages"):
            return value.get("type") == "error" and isinstance(error.get("type"), str)
        return True

    def whole_stream(self, model: str) -> bytes:
        """What "ok" is, byte for byte."""
        wire = wire_for(self.path, model)
        events = [*wire.opening(), *map(wire.word, WORDS), *wire.finish(), *wire.done()]
        return b"".join(events)

    def marker(self) -> bytes:
        """What only a whole stream has."""
        return {
            "/v1/responses": b"event: response.completed",
            "/v1/messages": b"event: message_stop",
            "/api/chat": b'"done":true',
            "/api/generate": b'"done":true',
        }.get(self.path, b"data: [DONE]")

    def tells_error(self, body: bytes) -> bool:
        """Whether a stream ends in the events on which this format's clients raise."""
        if self.is_ollama:
            return self.is_error(json.loads(body.rstrip().rpartition(b"\n")[2]))
        events = [event for event in body.split(b"\n\n") if event]
        last = json.loads(events[-1].rpartition(b"data: ")[2])
        if self.path != "/v1/responses":
            return self.is_error(last)
        flat = json.loads(events[-2].rpartition(b"data: ")[2])
        failed = last["response"]["status"] == "failed" and bool(last["response"]["error"])
        return flat["type"] == "error" and last["type"] == "response.failed" and failed


STREAMED = [
    Form("/v1/chat/completions"),
    Form("/v1/completions"),
    Form("/v1/responses"),
    Form("/v1/messages"),
    Form("/api/chat"),
    Form("/api/generate"),
]
PLAIN = [
    Form("/v1/messages/count_tokens", streams=False),
    Form("/v1/embeddings", streams=False),
    Form("/v1/rerank", streams=False),
    Form("/v1/images/generations", streams=False),
    Form("/api/embed", streams=False),
    Form("/api/show", streams=False),
]

# What a script comes to: streamed, and as a whole answer. A number is a status with an error in the
# format's shape; 400 and its like are the upstream's own words.
ROWS: dict[str, tuple[object, object]] = {
    "ok": (WHOLE, WHOLE),
    "one-byte": (WHOLE, WHOLE),
    "continue": (WHOLE, WHOLE),
    "trailers": (WHOLE, WHOLE),
    "http10": (WHOLE, WHOLE),
    "blank-lines": (WHOLE, WHOLE),
    "loading:1": (WHOLE, WHOLE),
    "times:1:429:1": (WHOLE, WHOLE),
    "slow-json:200": (WHOLE, WHOLE),
    "status:429": (429, 429),
    "status:429:999": (429, 429),
    "status:429:1": (429, 429),
    "times:1:500": (WHOLE, WHOLE),  # a 500 at the last target is asked once more
    "times:2:500": (500, 500),
    "status:408": (408, 408),
    "status:500": (500, 500),
    "status:502": (502, 502),
    "status:503": (503, 503),
    "status:529": (529, 529),
    "status:401": (502, 502),  # the key is the gateway's own
    "status:402": (502, 502),
    "status:403": (502, 502),
    "status:404": (404, 404),  # the client chose the name
    "no-model": (404, 404),
    "no-route": (404, 404),
    "no-quota": (429, 429),
    "moderation": (403, 403),
    "status:413": (413, 413),
    "status:422": (422, 422),
    "context-length": (400, 400),
    "content-filter": (400, 400),
    "redirect": (502, 502),
    "html:502": (502, 502),
    "html:200": (502, 502),
    "eof": (502, 502),
    "abort": (502, 502),
    "garbage": (502, 502),
    "big-head": (502, 502),
    "gzip": (502, 502),
    "silent": (504, SILENT),
    "headers-then-silent": (504, SILENT),
    "comments": (BROKEN, SILENT),
    "keep-alives:0": (504, None),
    "keep-alives:2": (BROKEN, None),
    "json": (502, WHOLE),
    "error-in-200": (None, None),  # see below: the error's own status
    "error-first": (None, None),
    "drop:2": (BROKEN, 502),
    "reset:2": (BROKEN, 502),
    "stall:2": (BROKEN, SILENT),
    "no-terminal:2": (BROKEN, 502),
    "malformed:2": (BROKEN, 502),
    "error-middle": (BROKEN, 502),
    "huge-event": (BROKEN, 502),
    "huge-line:5": (BROKEN, None),
    "too-short": (None, 502),
    "http10-cut:2": (None, 502),
}


@pytest.fixture(scope="module")
def upstream():
    """One for all rows; each asks it anew."""
    running = ScriptedUpstream().start()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _soon_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The try once more follows at once, so that a busy machine has the limits for itself."""
    monkeypatch.setattr("tidegate.gateway.relay.failover.ONCE_MORE_S", 0.01)


async def played(rigs, upstream: ScriptedUpstream, **limits: float) -> Rig:
    upstream.tried.clear()
    return await rigs(upstream, **(LIMITS | limits))


async def ask(rig: Rig, form: Form, script: str, *, stream: bool) -> Stream:
    """Asks and reads to the end, whatever that is; nothing may take longer than its limits."""
    body = form.body(script, stream=stream)
    return await asyncio.wait_for(get(rig.base_url, form.path, body), MOST_S)


async def judge_all(rig: Rig, form: Form, scripts: list[str], *, stream: bool) -> None:
    """Plays all of them at once, and tells of each that was not as it must be."""

    async def play(script: str) -> str:
        try:
            answer = await ask(rig, form, script, stream=stream)
            (judge_stream if stream else judge_whole)(rig, form, script, answer)
        except Exception as error:
            return f"{script}: {type(error).__name__} {error}"
        return ""

    wrong = [said for said in await asyncio.gather(*map(play, scripts)) if said]
    assert not wrong, "\n".join(wrong)


def judge_stream(rig: Rig, form: Form, script: str, answer: Stream) -> None:
    outcome = ROWS[script][0]
    if form.is_ollama and script == "json":
        outcome = WHOLE  # one line is a stream of its own
    body = bytes(answer.body)
    if outcome == WHOLE:
        assert (answer.status, answer.clean) == (200, True)
        assert script == "json" or body == form.whole_stream(script)
    elif outcome == BROKEN and answer.status == 200:
        assert form.marker() not in body
        assert form.tells_error(body)
    else:
        assert answer.status >= 400 if outcome == BROKEN else answer.status == outcome, answer
        assert form.is_error(answer.json()), body
    relay = rig.gateway.registry.find(answer.headers["x-run-id"], None)
    assert relay is not None
    if script in LIMITED:
        assert relay.run.error_code == LIMITED[script]
    assert (relay.run.state.value == "completed") is (outcome == WHOLE), relay.run.state
    assert answer.headers["x-request-id"] == answer.headers["request-id"]


def judge_whole(rig: Rig, form: Form, script: str, answer: Stream) -> None:
    outcome = ROWS[script][1]
    assert answer.clean
    assert "request-id" in answer.headers
    if outcome == WHOLE:
        assert answer.status == 200
        assert answer.json() == wire_for(form.path, script).whole()
    else:
        assert answer.status == outcome, answer
        assert form.is_error(answer.json()), bytes(answer.body)


# Which limit must have come up, for what keeps an upstream's connection busy and says nothing.
LIMITED = {
    "comments": "idle_s",
    "stall:2": "idle_s",
    "keep-alives:0": "first_output_s",
    "keep-alives:2": "idle_s",
}
# An upstream that says when to come again is waited for within the first output's limit.
PATIENT = ("loading", "times", "status:429:")


@pytest.mark.parametrize("form", STREAMED, ids=lambda form: form.path)
async def test_a_stream(rigs, upstream: ScriptedUpstream, form: Form) -> None:
    """Whole and byte for byte, or an error that its clients raise on; never a part as a whole."""
    scripts = [script for script, (outcome, _) in ROWS.items() if outcome is not None]
    patient = [script for script in scripts if script.startswith(PATIENT)]
    rig = await played(rigs, upstream, first_output_s=6.0)
    await judge_all(rig, form, patient, stream=True)
    await rig.gateway.close()  # or its idle connections are waited for at the end
    rig = await played(rigs, upstream)
    await judge_all(rig, form, [each for each in scripts if each not in patient], stream=True)


@pytest.mark.parametrize("form", STREAMED + PLAIN, ids=lambda form: form.path)
async def test_a_whole_answer(rigs, upstream: ScriptedUpstream, form: Form) -> None:
    """The upstream's own bytes, or an error with a status; half of one is none."""
    rig = await played(rigs, upstream, first_output_s=6.0)  # a model may load for so long
    scripts = [row for row, (_, outcome) in ROWS.items() if outcome not in {None, SILENT}]
    await judge_all(rig, form, scripts, stream=False)


@pytest.mark.parametrize("form", STREAMED + PLAIN, ids=lambda form: form.path)
async def test_a_whole_answer_that_does_not_come(rigs, upstream, form: Form) -> None:
    """plain_s ends the wait in every format, and is named beside the upstream."""
    rig = await played(rigs, upstream, plain_s=0.5)
    for script, (_, outcome) in ROWS.items():
        if outcome == SILENT:
            answer = await ask(rig, form, script, stream=False)
            assert answer.status == 504, (script, bytes(answer.body))
            assert form.is_error(answer.json())
            assert b'upstream \\"box\\" sent no whole answer within plain_s = 0.5 s' in answer.body


@pytest.mark.parametrize("form", STREAMED, ids=lambda form: form.path)
@pytest.mark.parametrize("breakage", ["cut", "end", "http10-cut"])
async def test_a_stream_cut_behind_every_event(
    rigs, upstream: ScriptedUpstream, form: Form, breakage: str
) -> None:
    """Whole when it was whole or had said why it ends; otherwise an error, before or in it."""
    wire = wire_for(form.path, "x")
    opening = len(wire.opening())
    everything = opening + len([wire.word(word) for word in WORDS])
    everything += len(wire.finish()) + len(wire.done())
    rig = await played(rigs, upstream)
    for events in range(everything + 1):
        answer = await ask(rig, form, f"{breakage}:{events}", stream=True)
        body = bytes(answer.body)
        had_reason = form.path not in {"/v1/responses"} and not form.is_ollama
        is_complete = events == everything or (had_reason and events >= everything - 1)
        if is_complete:
            assert answer.status == 200
            assert (form.marker() in body) is (events == everything)
            assert b"error" not in body.replace(b'"error":null', b"")
        elif answer.status == 200:
            assert events > opening
            assert form.marker() not in body
            assert form.tells_error(body)
        else:
            assert answer.status in {502, 504}
            assert form.is_error(answer.json())


@pytest.mark.parametrize("form", STREAMED, ids=lambda form: form.path)
async def test_an_error_that_opens_a_stream_is_a_status(rigs, upstream, form: Form) -> None:
    """An overload says so with a status that clients retry on, in words of the upstream's own."""
    rig = await played(rigs, upstream)
    for script in ("error-first", "error-in-200"):
        for stream in (True, False):
            answer = await ask(rig, form, script, stream=stream)
            assert answer.status in {502, 503, 529}, (script, stream)
            assert form.is_error(answer.json())
            assert b"overloaded" in answer.body


@pytest.mark.parametrize("form", STREAMED, ids=lambda form: form.path)
async def test_a_connection_that_died_of_idleness_is_no_fault(rigs, upstream, form: Form) -> None:
    """The second request finds its reused connection dead, and no client hears of it."""
    rig = await played(rigs, upstream)
    for _ in range(3):
        answer = await ask(rig, form, "close-reused", stream=True)
        assert bytes(answer.body) == form.whole_stream("close-reused")
        assert len(rig.relay().run.attempts) == 1


@pytest.mark.parametrize("form", STREAMED + PLAIN, ids=lambda form: form.path)
async def test_a_failing_target_is_passed_by(rigs, upstream, form: Form) -> None:
    """Whatever fails before the first output, the next target answers, whole."""
    scripts = ["status:500", "status:429:1", "eof", "abort", "garbage", "html:503", "silent"]
    if form.streams:
        scripts += ["error-first", "headers-then-silent", "malformed:0", "keep-alives:0"]
    names = {f"m{number}": [f"box/{script}", "box1/ok"] for number, script in enumerate(scripts)}
    upstream.tried.clear()
    rig = await rigs(upstream, upstream, models=names, plain_s=0.5, **LIMITS)
    for name, targets in names.items():
        answer = await ask(rig, form, name, stream=form.streams)
        assert answer.status == 200, (targets, bytes(answer.body))
        if form.streams:
            assert form.marker() in answer.body
            run = rig.relay().run
            assert run.attempts[-1].upstream == "box1"
            assert all(attempt.held_bytes == 0 for attempt in run.attempts)
            shown = await get(rig.base_url, f"/v1/runs/{run.id}")
            tries = shown.json()["attempt_list"]  # type: ignore[index]
            assert tries[-1]["outcome"] == "completed"


@pytest.mark.parametrize("form", STREAMED, ids=lambda form: form.path)
async def test_odd_but_whole_streams_are_seen_to_be_whole(rigs, upstream, form: Form) -> None:
    """CRLF, members doubled and out of order, blanks: an answer is complete all the same."""
    rig = await played(rigs, upstream)
    for script in ("crlf", "odd-fields", "tools", "finish-no-done", "open-end"):
        answer = await ask(rig, form, script, stream=True)
        is_unsaid = form.path == "/v1/responses" or form.is_ollama  # all that ends it is its marker
        if script in {"finish-no-done", "open-end"} and is_unsaid:
            assert form.tells_error(bytes(answer.body))
            continue
        assert answer.status == 200
        assert rig.relay().run.state.value == "completed", script
        assert answer.clean
        if script == "open-end":
            assert bytes(answer.body) == form.whole_stream(script)
            replay = await get(rig.base_url, f"/v1/runs/{answer.run_id}/stream")
            assert form.marker() in replay.body
            assert rig.pool().status().state == "ok"


def test_every_script_is_tried_somewhere() -> None:
    """A new fault of the upstream is not forgotten here."""
    elsewhere = {
        "numbered", "bulk", "stuck", "preamble", "wait", "gap", "status-once", "flapping",
        "cut", "end", "crlf", "odd-fields", "tools", "finish-no-done", "open-end", "sse",
        "too-long", "close-reused",
    }  # fmt: skip
    here = {row.partition(":")[0] for row in ROWS}
    assert set(SCRIPTS) == here | elsewhere


@pytest.mark.parametrize("form", STREAMED + PLAIN, ids=lambda form: form.path)
async def test_more_than_was_announced_is_nobody_s(rigs, upstream, form: Form) -> None:
    """The answer is what its length says; the connection is not used again."""
    rig = await played(rigs, upstream)
    for _ in range(2):
        answer = await ask(rig, form, "too-long", stream=False)
        assert answer.json() == wire_for(form.path, "too-long").whole()
