"""Codex over WebSocket, as its users have it: what a second turn needs, and what ends a turn."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from clients.stage import environment
from fakes import llama
from fakes.llama import MODEL, LlamaServer
from fakes.scenario import NODE_MODULES, toml

CODEX = NODE_MODULES / ".bin" / "codex"
LIMIT_S = 200.0
CONTEXT = 24 * 1024  # tokens: the model's are bytes, and Codex says much before the first question
ANSWER = 24
CONFIG = """
model = "{model}"
model_provider = "tide"
model_context_window = 100000

[model_providers.tide]
name = "tidegate"
base_url = "{base_url}/v1"
wire_api = "responses"
supports_websockets = true
request_max_retries = 0
stream_max_retries = 0
"""

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def roomy_llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """The genuine llama.cpp server, with room for what Codex says."""
    if missing := llama.missing_packages():
        pytest.skip(f"the llama.cpp server needs: pip install {' '.join(missing)}")
    folder = tmp_path_factory.mktemp("llama")
    server = llama.start(folder, context=CONTEXT, slots=1, answer=ANSWER)
    try:
        yield server
    finally:
        server.stop()


class Codex:
    """Its app server, which the CLI and the editors' extensions talk to."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._last = 0
        self._ask("initialize", clientInfo={"name": "test", "title": "test", "version": "0"})
        self._send({"method": "initialized"})
        started = self._ask(
            "thread/start",
            cwd=str(folder),
            approvalPolicy="never",
            sandbox="read-only",
            baseInstructions="Be brief.",
        )
        self._thread = started["thread"]["id"]

    def turn(self, text: str) -> dict[str, Any]:
        """Say something, and return how the turn ended."""
        said = [{"type": "text", "text": text}]
        self._ask("turn/start", threadId=self._thread, input=said)
        turn: dict[str, Any] = self._wait("turn/completed")["turn"]
        return turn

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        self._send({"id": self._last, "method": method, "params": params})
        while True:
            said = self._read()
            if said.get("id") == self._last:
                result: dict[str, Any] = said["result"]
                return result

    def _wait(self, method: str) -> dict[str, Any]:
        while True:
            said = self._read()
            if said.get("method") == method:
                params: dict[str, Any] = said["params"]
                return params

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "codex has ended"
        said: dict[str, Any] = json.loads(line)
        return said


@contextmanager
def codex(base_url: str, folder: Path) -> Iterator[Codex]:
    """One that is told of this gateway alone, in a home of its own."""
    if not CODEX.exists() or shutil.which("node") is None:
        pytest.skip("not in .venv/node: @openai/codex (.ci/run installs it)")
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(CONFIG.format(model=MODEL, base_url=base_url))
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [str(CODEX), "app-server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=folder,
            env=environment(str(home)) | {"CODEX_HOME": str(home), "PATH": os.environ["PATH"]},
            text=True,
            start_new_session=True,  # the command is a script that starts the program
        )
    limit = threading.Timer(LIMIT_S, os.killpg, (process.pid, signal.SIGKILL))
    limit.start()
    try:
        yield Codex(process, folder)
    finally:
        limit.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_two_turns_on_a_server_that_keeps_nothing(
    gateway, roomy_llama: LlamaServer, tmp_path: Path
) -> None:
    """The second brings new input alone, and has an answer to all of it."""
    base_url = gateway(toml(("genuine", roomy_llama.url))).base_url
    with codex(base_url, tmp_path) as client:
        prompts = []
        for text in ("Tell me of the tide.", "And of the moon?"):
            turn = client.turn(text)
            assert turn["status"] == "completed", turn
            prompts.append(turn)
    answers = [item["text"] for turn in prompts for item in turn["items"] if "text" in item]
    assert len(answers) == 2
    assert all(answers)
