"""335 seconds without a word, before the first output and in the middle: does a client get it all?

    make soak ARGS=--silence     some 6 minutes, nothing shortened

Node's own HTTP client gives up after 300 s without a byte, which is how cold loads of large models
fail. Every client has its default settings; the gateway has its own, but for the two limits that
say how long an upstream may be silent. Exit code 0: every client had its whole answer.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from fakes.client import chat, words
from fakes.gateway import gateways
from fakes.upstream import ScriptedUpstream

SILENCE_S = 335
CONFIG = """
[limits]
first_output_s = 900.0
idle_s = 900.0
[[upstream]]
name = "box"
url = "{url}"
"""
NODE = """
const { OpenAI } = require("openai");
const client = new OpenAI({ baseURL: process.argv[1], apiKey: "none" });
(async () => {
  let text = "", finish = null;
  const stream = await client.chat.completions.create({
    model: process.argv[2], messages: [{ role: "user", content: "?" }], stream: true });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    finish = chunk.choices[0]?.finish_reason ?? finish;
  }
  console.log(JSON.stringify({ text, finish }));
})().catch((error) => { console.log(String(error)); process.exit(1); });
"""


def main(silence_s: int = SILENCE_S) -> int:
    """Wait, print what each client had, and say whether it was all."""
    models = {"before": f"wait:{silence_s * 1000}", "middle": f"gap:{silence_s * 1000}"}
    upstream = ScriptedUpstream().start()
    try:
        with gateways() as start:
            running = start(CONFIG.format(url=upstream.url))
            results = asyncio.run(_ask_all(running.base_url, models))
    finally:
        upstream.stop()
    for name, (is_whole, said) in results.items():
        print(f"{'whole ' if is_whole else 'BROKEN'}  {name}: {said}")
    return 0 if all(is_whole for is_whole, _ in results.values()) else 1


async def _ask_all(base_url: str, models: dict[str, str]) -> dict[str, tuple[bool, str]]:
    results: dict[str, tuple[bool, str]] = {}

    async def ask(where: str, model: str) -> None:
        started_s = time.monotonic()
        whole, said = await _node(base_url, model)
        took_s = time.monotonic() - started_s
        results[f"openai-node, silence {where}"] = whole, f"{said} after {took_s:.0f} s"

    async def ask_raw(where: str, model: str) -> None:
        answer = await chat(base_url, model)
        said = f"{words(answer.events)}"
        whole = answer.clean and answer.body.endswith(b"data: [DONE]\n\n")
        results[f"plain HTTP, silence {where}"] = whole, said

    async with asyncio.TaskGroup() as group:
        for where, model in models.items():
            group.create_task(ask(where, model))
            group.create_task(ask_raw(where, model))
    return results


async def _node(base_url: str, model: str) -> tuple[bool, str]:
    """Start the official client for Node; it needs `openai` in NODE_PATH or .venv/node."""
    modules = Path(sys.prefix) / "node" / "node_modules"
    environ = {"NODE_PATH": str(modules), **os.environ}
    process = await asyncio.create_subprocess_exec(
        "node", "-e", NODE, f"{base_url}/v1", model, stdout=asyncio.subprocess.PIPE, env=environ
    )
    out, _ = await process.communicate()
    said = out.decode().strip()
    return process.returncode == 0 and '"finish":"stop"' in said, said


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else SILENCE_S))
