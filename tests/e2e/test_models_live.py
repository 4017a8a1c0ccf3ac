"""`tidegate models` against a genuine llama.cpp server, an upstream that is off, and a stop."""

import json
import signal
from typing import Any

from fakes.client import open_chat
from fakes.gateway import Gateway
from fakes.llama import MODEL, LlamaServer
from fakes.machine import free_port, wait_until
from fakes.scenario import toml
from fakes.upstream import ScriptedUpstream

ALIAS = f'[[model]]\nname = "fast"\ntargets = ["llama/{MODEL}", "off/other"]\n'


def asked(running: Gateway) -> dict[str, Any]:
    """What `tidegate models --json` prints."""
    done = running.command("models", "--json")
    assert done.returncode == 0, done.stderr
    listing: dict[str, Any] = json.loads(done.stdout)
    return listing


def test_llama_cpp_is_known_with_what_it_has_loaded(gateway, llama_server: LlamaServer) -> None:  # type: ignore[no-untyped-def]
    """By the words of the genuine server; the one that is off is said to be, and why."""
    off = f"http://127.0.0.1:{free_port()}"
    running = gateway(toml(("llama", llama_server.url), ("off", off), rest=ALIAS))
    listing = asked(running)
    llama, other = listing["data"]
    assert (llama["kind"], llama["state"]) == ("llama.cpp", "ok")
    assert [(model["name"], model["loaded"]) for model in llama["models"]] == [(MODEL, True)]
    assert (other["state"], other["models"], other["kind"]) == ("unreachable", [], None)
    assert "cannot be reached" in other["last_error"]
    targets = [f"llama/{MODEL}", "off/other"]
    levels = [[target] for target in targets]
    assert listing["aliases"] == [{"name": "fast", "targets": targets, "levels": levels}]
    screen = running.command("models").stdout
    assert "llama (llama.cpp): ok" in screen
    assert "off: unreachable" in screen


async def test_it_answers_while_a_stop_waits_for_a_stream(  # type: ignore[no-untyped-def]
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """A draining tidegate still says what its upstreams are."""
    running = gateway(toml(("box", scripted_upstream.url)))
    stream = await open_chat(running.base_url, "numbered:100000:5")
    await stream.read_events(3)
    running.process.send_signal(signal.SIGTERM)
    wait_until(lambda: running.status()["state"] == "draining", 10, "it drains")
    assert [upstream["name"] for upstream in asked(running)["data"]] == ["box"]
    await stream.vanish()
