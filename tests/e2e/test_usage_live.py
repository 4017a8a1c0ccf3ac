"""What a genuine llama.cpp server counts is what `/v1/usage` adds up, in each format it speaks."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.client import get
from fakes.llama import MODEL, LlamaServer
from fakes.scenario import toml

WORDS = 12  # tokens of each answer: its random weights end none by themselves
TALK = {"messages": [{"role": "user", "content": "the tide"}]}
INPUT = ("prompt_tokens", "input_tokens", "cache_read_input_tokens")  # as they call it
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat completion": ("/v1/chat/completions", {**TALK, "max_tokens": WORDS}),
    "completion": ("/v1/completions", {"prompt": "the tide", "max_tokens": WORDS}),
    "message": ("/v1/messages", {**TALK, "max_tokens": WORDS}),
    "response": (
        "/v1/responses",
        {"input": "the tide", "max_output_tokens": WORDS, "store": False},
    ),
}


@pytest.mark.parametrize("form", FORMATS)
async def test_every_token_is_counted(gateway, llama_server: LlamaServer, form: str) -> None:  # type: ignore[no-untyped-def]
    """Whole and streamed, though no client asked for a count, and what came from its cache."""
    running = gateway(toml(("llama", llama_server.url)))
    path, body = FORMATS[form]
    whole = (await get(running.base_url, path, {"model": MODEL, **body})).json()["usage"]
    sent = sum(whole.get(name, 0) for name in INPUT)
    for _ in range(2):
        answer = await get(running.base_url, path, {"model": MODEL, "stream": True, **body})
        assert answer.clean
    listed = (await get(running.base_url, "/v1/usage?by=format")).json()["data"]
    assert [line["key"] for line in listed] == [form]
    [line] = listed
    assert (line["runs"], line["unknown"], line["failed"]) == (3, 0, 0)
    assert (line["input"], line["output"]) == (3 * sent, 3 * WORDS)
    assert 0 < line["cached"] < line["input"]
