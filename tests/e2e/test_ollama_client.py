"""Ollama's own Python client through the gateway: as with an Ollama, and never half as whole."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.gateway import gateways
from fakes.scenario import ROOT, toml
from fakes.upstream import ScriptedUpstream

PROGRAM = Path(__file__).with_name("ollama_client.py")
PYTHON = ROOT / ".venv" / "clients" / "bin" / "python"
WORDS = ["one ", "two ", "three", ""]


@pytest.fixture(scope="module")
def heard(upstream: ScriptedUpstream) -> Iterator[dict[str, dict[str, Any]]]:
    """What came of everything that the client asked for."""
    if not list((PYTHON.parents[1] / "lib").glob("python*/site-packages/ollama")):
        pytest.skip("not in .venv/clients: ollama (.ci/run installs it)")
    limits = "idle_s = 1.0\nhold_s = 0.2\nkeepalive_s = 0.2"
    with gateways() as start:
        running = start(toml(("box", upstream.url), limits=limits))
        done = subprocess.run(
            [PYTHON, PROGRAM, running.base_url],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        yield {line["name"]: line for line in lines}


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("list", ["scripted:latest"]),
        ("ps", ["scripted:latest"]),
        ("chat", "one two three"),
        ("chat-stream", WORDS),
        ("generate", "one two three"),
        ("generate-stream", WORDS),
        ("tools", [["get_weather", {"city": "Paris"}]]),
        ("embed", [[0.5, -0.25]]),
        ("wait", WORDS),
    ],
)
def test_it_is_served_as_by_an_ollama(
    heard: dict[str, dict[str, Any]], name: str, result: object
) -> None:
    """Lists, answers and streams of them, a call of a tool, and a long silence before the first."""
    assert heard[name].get("result") == result, heard[name]


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [
        ("refused", 404, "404"),
        ("busy", 503, "503"),
        ("error-first", 502, "overloaded"),
        ("error-middle", -1, "overloaded"),
        ("drop", -1, "closed the connection in the middle"),
        ("end", -1, "before the answer was complete"),
        ("stall", -1, "idle for 1 s"),
        ("pull", 404, "not passed on"),
        ("pull-stream", 404, "not passed on"),
        ("create", 404, "not passed on"),
        ("copy", 404, "not passed on"),
        ("delete", 404, "not passed on"),
    ],
)
def test_it_raises_its_own_error(
    heard: dict[str, dict[str, Any]], name: str, status: int, why: str
) -> None:
    """With the status where there is one (-1: within a stream), and the reason as a sentence."""
    said = heard[name]
    assert said.get("status") == status, said
    assert why in said["error"]
