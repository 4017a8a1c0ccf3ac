"""Ollama's own Python client, asked for one thing after the other.

A program of its own, run by a Python that has the client: its argument is the gateway's address.
It prints one JSON line for each thing: its name, and what came of it or the error that was raised.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import ollama

MESSAGES = [{"role": "user", "content": "Tell me of the tide."}]


def main(url: str) -> None:
    """Ask for everything."""
    client = ollama.Client(host=url)

    def chat(model: str) -> list[str]:
        return [part.message.content for part in client.chat(model, MESSAGES, stream=True)]

    def call() -> list[Any]:
        parts = client.chat("tools", MESSAGES, stream=True)
        calls = [each for part in parts for each in part.message.tool_calls or ()]
        return [[each.function.name, dict(each.function.arguments)] for each in calls]

    asked: dict[str, Callable[[], Any]] = {
        "list": lambda: [model.model for model in client.list().models],
        "ps": lambda: [model.model for model in client.ps().models],
        "chat": lambda: client.chat("ok", MESSAGES).message.content,
        "chat-stream": lambda: chat("ok"),
        "generate": lambda: client.generate("ok", "x").response,
        "generate-stream": lambda: [p.response for p in client.generate("ok", "x", stream=True)],
        "tools": call,
        "embed": lambda: list(map(list, client.embed("ok", "x").embeddings)),
        "wait": lambda: chat("wait:1500"),
        "refused": lambda: chat("status:404"),
        "busy": lambda: chat("status:503"),
        "error-first": lambda: chat("error-first"),
        "error-middle": lambda: chat("error-middle"),
        "drop": lambda: chat("drop:2"),
        "end": lambda: chat("no-terminal:2"),
        "stall": lambda: chat("stall:2"),
        "pull": lambda: client.pull("ok"),
        "pull-stream": lambda: list(client.pull("ok", stream=True)),
        "create": lambda: client.create(model="ok", from_="x"),
        "copy": lambda: client.copy("ok", "x"),
        "delete": lambda: client.delete("ok"),
    }
    for name, ask in asked.items():
        said: dict[str, object] = {"name": name}
        try:
            said["result"] = ask()
        except ollama.ResponseError as error:
            said |= {"status": error.status_code, "error": error.error}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
