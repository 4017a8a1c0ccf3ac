"""A repair of a running tidegate, from its cause to its end: status, HTTP, metrics and log."""

from __future__ import annotations

import json
import urllib.request

import pytest

from fakes.gateway import Gateway, StartGateway
from fakes.machine import wait_until


def repairs(running: Gateway) -> dict[str, dict[str, object]]:
    with urllib.request.urlopen(f"{running.base_url}/repairs", timeout=10) as answer:
        return {each["id"]: each for each in json.loads(answer.read())["data"]}


@pytest.mark.long
def test_a_refused_config_is_a_repair_until_it_is_mended(gateway: StartGateway) -> None:
    """It outlives a recycle with its beginning, and closes by itself."""
    running = gateway()
    good = running.config.read_text()
    assert repairs(running) == {}
    running.config.write_text(good + "nonsense = 1\n")
    wait_until(lambda: "config-refused" in repairs(running), 40, "it opens")
    opened = repairs(running)["config-refused"]
    assert opened["severity"] == "warning"
    assert "nonsense" in str(opened["cause"])
    assert "tidegate check" in str(opened["fix"])
    running.ask("recycle", 60.0)
    wait_until(lambda: repairs(running).get("config-refused") == opened, 20, "it is still open")
    assert "config-refused" in running.command("status").stdout
    with urllib.request.urlopen(f"{running.base_url}/metrics", timeout=10) as answer:
        assert 'tidegate_repairs{severity="warning"} 1.0' in answer.read().decode()

    running.config.write_text(good)
    wait_until(lambda: not repairs(running), 40, "it closes")
    running.wait_logged("repair config-refused is no longer needed")
    text = running.log.read_text()
    assert text.count("repair config-refused: ") == 1
    assert text.count("repair config-refused is no longer needed") == 1
