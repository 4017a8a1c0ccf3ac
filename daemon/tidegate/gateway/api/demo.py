"""The built-in demo upstream: a text at a human pace, and a stream that hangs.

It is an HTTP server like any other upstream, on this generation's Unix socket, so that a demo
answer takes the very way that a real one takes.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

import msgspec

from tidegate.core.errors import LedgerFull
from tidegate.core.formats import CHAT
from tidegate.core.formats.base import RequestInfo
from tidegate.core.formats.openai import DONE
from tidegate.core.runs.ledger import Entry, Ledger
from tidegate.core.runs.state import Trigger
from tidegate.core.settings import MIB
from tidegate.gateway import web
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.server.body import read_body
from tidegate.gateway.server.errors import SERVER_ERROR, Refused
from tidegate.gateway.upstreams.catalog import STUCK

_WORD_S = 0.06  # about as fast as one reads
_STUCK_WORDS = 40
_MAX_BODY_BYTES = 32 * MIB

TEXT = (
    "Hello from tidegate. There is no model behind this answer, only a short text, streamed at "
    "the pace of a small model so that you can see every part of the gateway at work. Each "
    "answer is a run: it has an id, you will find it in the x-run-id header, and while it grows "
    "anybody who holds your key can join it, leave it, and come back to it without losing a "
    "word. Every byte that a run keeps is written down in a ledger, and every way a run can end "
    "gives all of them back. If you would like to see one that does not end by itself, ask for "
    "the model demo:stuck. It begins like any other, then falls silent for ever, and even its "
    "time limit is switched off. Fifteen seconds after its start the sweep finds it, tells you "
    "so, and takes back its memory. To hear from a real model, start one on this computer, "
    "Ollama or llama.cpp or LM Studio for instance, or name one in the config file."
)


class StuckRelay(Relay):
    """A relay with a planted fault: its end never takes place, and only the sweep is left."""

    _is_swept = False

    def end(self, trigger: Trigger, reason: str | None, code: str | None) -> None:
        """Do nothing, as an end that hangs would, before the sweep."""
        if self._is_swept:
            super().end(trigger, reason, code)

    def force_end(self, reason: str) -> None:
        """End the run after all."""
        self._is_swept = True
        super().force_end(reason)

    def check(self, now_s: float) -> None:
        """Look at the clocks once: what they find comes to nothing."""
        super().check(now_s)


async def chat_completions(request: web.BaseRequest, ledger: Ledger) -> web.StreamResponse:
    """Answer as OpenAI's chat completions do, with one choice."""
    info = await _request_info(request, ledger)
    if not info.stream:
        if info.model == STUCK:
            await asyncio.Event().wait()
        return web.json_response(body=_whole(info.model))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    words = TEXT.split(" ")
    stuck = info.model == STUCK
    await response.write(_event(info.model, {"role": "assistant", "content": ""}, None))
    for number, word in enumerate(words[:_STUCK_WORDS] if stuck else words):
        await asyncio.sleep(_WORD_S)
        text = f" {word}" if number else word
        await response.write(_event(info.model, {"content": text}, None))
    if stuck:
        await asyncio.Event().wait()  # until the gateway goes away
    await response.write(_event(info.model, {}, "stop") + DONE)
    return response


async def _request_info(request: web.BaseRequest, ledger: Ledger) -> RequestInfo:
    """Read the request for its model and its stream; let go of the body. Raises Refused."""
    account = ledger.open()
    try:
        body = await read_body(
            request,
            max_bytes=_MAX_BODY_BYTES,
            deadline_s=5.0,
            charge=partial(account.set, Entry.HELD),
        )
        return CHAT.parse_request(body, "")
    except LedgerFull as full:
        raise Refused(503, str(full), full.code, type=SERVER_ERROR) from None
    finally:
        account.close()


def other_format() -> Refused:
    """Tell a client of another format that the gateway is not what is missing."""
    return Refused(
        404,
        "the demo model speaks OpenAI's chat completions only, and formats are not translated; for"
        " this one start a model that speaks it, or name one in the config file",
        "format_not_spoken",
    )


def _event(model: str, delta: dict[str, str], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {
        "id": "chatcmpl-demo",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
    }
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _whole(model: str) -> bytes:
    message = {"role": "assistant", "content": TEXT}
    words = len(TEXT.split())
    return msgspec.json.encode(
        {
            "id": "chatcmpl-demo",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 0, "completion_tokens": words, "total_tokens": words},
        }
    )
