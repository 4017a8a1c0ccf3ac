"""Claude Code, as its users have it: with a token, and with another service's key beside it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from clients.stage import environment
from fakes.gateway import Gateway, StartGateway
from fakes.llama import MODEL, LlamaServer
from fakes.scenario import NODE_MODULES, toml
from fakes.upstream import ScriptedUpstream

CLAUDE = NODE_MODULES / ".bin" / "claude"
LIMIT_S = 120.0
FOREIGN = "sk-ant-api03-" + "x" * 80  # what a user of the cloud has in the environment
# The model is random and would never end by itself: a vowel ends its answer.
UNTIL_A_VOWEL = json.dumps({"stop_sequences": list("aeiou")})
# Without tools and its usual words: the model's tokens are bytes, and it has room for 4,096.
BRIEFLY = ("--system-prompt", "Be brief.", "--tools", "")

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@dataclass
class Outside:
    """A proxy for all that is not on this computer: it lets nothing through and keeps the tries."""

    url: str
    tries: list[bytes] = field(default_factory=list)


@pytest.fixture
def outside() -> Iterator[Outside]:
    """It, running; nothing may have been tried in the end."""
    server = socket.create_server(("127.0.0.1", 0))
    found = Outside(f"http://127.0.0.1:{server.getsockname()[1]}")

    def refuse() -> None:
        while True:
            client, _ = server.accept()
            with client:
                client.settimeout(5)
                said = client.recv(1000)
                if not said:
                    return
                found.tries.append(said)

    thread = threading.Thread(target=refuse)
    thread.start()
    try:
        yield found
    finally:
        socket.create_connection(server.getsockname()).close()
        thread.join()
        server.close()
    assert found.tries == []


@dataclass
class Claude:
    """The command, in a home of its own, told of this gateway alone."""

    gateway: Gateway
    outside: Outside
    home: Path

    def ask(self, model: str, *flags: str, **keys: str) -> tuple[int, dict[str, Any]]:
        """Its exit code, and what it says in JSON."""
        done = subprocess.run(
            [
                str(CLAUDE), "--print", "hi", "--model", model, "--output-format", "json",
                "--no-session-persistence", "--strict-mcp-config", *flags,
            ],
            cwd=self.home,
            env=environment(str(self.home)) | self.variables(model) | keys,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )  # fmt: skip
        assert done.stdout, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return done.returncode, said

    def variables(self, model: str) -> dict[str, str]:
        """What makes it ask here and nowhere else. It has a smaller model for small questions."""
        return {
            "PATH": os.environ["PATH"],
            "TMPDIR": str(self.home),
            "ANTHROPIC_BASE_URL": self.gateway.base_url,
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
            "CLAUDE_CODE_MAX_RETRIES": "0",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "DISABLE_TELEMETRY": "1",
            "HTTP_PROXY": self.outside.url,
            "HTTPS_PROXY": self.outside.url,
            "NO_PROXY": "127.0.0.1,localhost",
        }


@pytest.fixture
def claude(
    gateway: StartGateway,
    llama_server: LlamaServer,
    scripted_upstream: ScriptedUpstream,
    outside: Outside,
    tmp_path: Path,
) -> Claude:
    """It, before a gateway with the genuine server and a scripted one."""
    if not CLAUDE.exists() or shutil.which("node") is None:
        pytest.skip("not in .venv/node: @anthropic-ai/claude-code (.ci/run installs it)")
    running = gateway(toml(("genuine", llama_server.url), ("box", scripted_upstream.url)))
    return Claude(running, outside, tmp_path)


@pytest.mark.parametrize("beside", ["nothing", "a key", "a token"])
def test_it_is_let_in_with_a_token_and_answered_by_the_genuine_server(
    claude: Claude, beside: str
) -> None:
    """Alone, with a key of the cloud in the other header, or the other way round."""
    token = claude.gateway.command("token", "new", "laptop").stdout.strip()
    keys = {
        "nothing": {"ANTHROPIC_AUTH_TOKEN": token},
        "a key": {"ANTHROPIC_AUTH_TOKEN": token, "ANTHROPIC_API_KEY": FOREIGN},
        "a token": {"ANTHROPIC_AUTH_TOKEN": "of-another-gateway", "ANTHROPIC_API_KEY": token},
    }[beside]
    code, said = claude.ask(
        f"genuine/{MODEL}", *BRIEFLY, CLAUDE_CODE_EXTRA_BODY=UNTIL_A_VOWEL, **keys
    )
    assert (code, said["is_error"], said["terminal_reason"]) == (0, False, "completed"), said
    assert said["usage"]["output_tokens"] > 0
    [run, *_] = claude.gateway.ask("runs")["data"]
    assert (run["state"], run["upstream"]) == ("completed", "genuine")


def test_with_all_its_tools_and_words(claude: Claude, scripted_upstream: ScriptedUpstream) -> None:
    """As it asks by default: 48 KiB, with its own features named in a header."""
    token = claude.gateway.command("token", "new", "laptop").stdout.strip()
    keys = {"ANTHROPIC_AUTH_TOKEN": token, "ANTHROPIC_API_KEY": FOREIGN}
    code, said = claude.ask("box/ok", **keys)
    assert (code, said["result"]) == (0, "one two three"), said
    asked = scripted_upstream.seen("ok")[-1]
    assert len(asked.body) > 30_000
    assert asked.headers["anthropic-beta"].startswith("claude-code-")
    assert asked.headers["user-agent"].startswith("tidegate/")
    assert "tg-" not in str(asked.headers)


def test_without_a_valid_token_it_says_so(claude: Claude) -> None:
    """And tells its user the gateway's own words."""
    claude.gateway.command("token", "new", "laptop")
    keys = {"ANTHROPIC_AUTH_TOKEN": "wrong", "ANTHROPIC_API_KEY": FOREIGN}
    code, said = claude.ask("box/ok", *BRIEFLY, **keys)
    assert (code, said["is_error"], said["api_error_status"]) == (1, True, 401), said
    assert "the token is not valid" in said["result"]
