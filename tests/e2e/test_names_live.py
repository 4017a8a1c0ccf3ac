"""Who comes in by what name, as curl asks a real tidegate; and the last token of an open one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from fakes.gateway import Gateway, gateways
from fakes.scenario import toml
from fakes.upstream import ScriptedUpstream

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/142.0.0.0 Safari/537.36"
HOME = ("nas", "host.docker.internal", "tidegate.lan", "nas.home.arpa", "chat.localhost")


@pytest.fixture
def gateway(upstream: ScriptedUpstream) -> Iterator[Gateway]:
    """One whose tokens and addresses are this test's alone."""
    with gateways() as start:
        yield start(toml(("box", upstream.url)))


def curl(running: Gateway, name: str, *options: str, path: str = "/v1/models") -> int:
    """The status, by a name that leads to the gateway."""
    done = subprocess.run(
        [
            "curl", "--silent", "--max-time", "20", "--noproxy", "*", "--output", "/dev/null",
            "--write-out", "%{http_code}", "--resolve", f"{name}:{running.port}:127.0.0.1",
            *options, f"http://{name}:{running.port}{path}",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )  # fmt: skip
    return int(done.stdout)


def token_of(running: Gateway, name: str) -> str:
    made = running.command("token", "new", name)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def listen(running: Gateway, host: str, upstream: ScriptedUpstream) -> None:
    """Write the address into the config; it counts with a reload."""
    text = f'listen = "{host}:{running.port}"\n{toml(("box", upstream.url))}'
    beside = running.config.with_name("config.toml.new")
    beside.write_text(text)
    beside.replace(running.config)


def test_a_container_and_a_home_get_in_and_a_page_does_not(gateway: Gateway) -> None:
    """Without a token by the names that only a home's resolver knows; with one by any."""
    ask = ("--header", "Content-Type: application/json", "--data")
    body = '{"model": "ok", "messages": []}'
    for name in HOME:
        assert curl(gateway, name) == 200, name
        assert curl(gateway, name, *ask, body, path="/v1/chat/completions") == 200, name
        assert curl(gateway, name, "--user-agent", CHROME) == 403, name
        assert curl(gateway, name, "--header", f"Origin: http://{name}:{gateway.port}") == 403, name
    assert curl(gateway, "llm.example.com") == 403
    key = ("--header", f"x-api-key: {token_of(gateway, 'laptop')}")
    for name in (*HOME, "llm.example.com"):
        assert curl(gateway, name, *key) == 200, name
        assert curl(gateway, name, *key, *ask, body, path="/v1/chat/completions") == 200, name
        assert curl(gateway, name, *key, "--user-agent", CHROME) == 200, name
        assert curl(gateway, name, "--header", "x-api-key: tg-wrong") == 401, name
        assert curl(gateway, name) == (401 if name in HOME else 403), name


def test_the_last_token_of_an_open_address_stays_in_force(
    gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    """A refused revoke changes nothing, in the file or in the one that runs; the fixes it names
    are fixes."""
    laptop = token_of(gateway, "laptop")
    listen(gateway, "0.0.0.0", upstream)
    assert gateway.command("reload").returncode == 0
    file = gateway.state_dir / "tokens"

    def is_refused() -> None:
        before = file.read_bytes(), file.stat().st_ino
        refused = gateway.command("token", "revoke", "laptop")
        assert refused.returncode == 1, refused.stderr
        assert "0.0.0.0" in refused.stderr
        assert "nothing has changed" in refused.stderr
        assert (file.read_bytes(), file.stat().st_ino) == before
        assert curl(gateway, "nas") == 401
        assert curl(gateway, "nas", "--header", f"x-api-key: {laptop}") == 200

    for _ in range(2):
        is_refused()
    phone = token_of(gateway, "phone")
    assert gateway.command("token", "revoke", "laptop").returncode == 0
    assert curl(gateway, "nas", "--header", f"x-api-key: {laptop}") == 401
    assert curl(gateway, "nas", "--header", f"x-api-key: {phone}") == 200

    listen(gateway, "127.0.0.1", upstream)
    assert gateway.command("reload").returncode == 0
    assert gateway.command("token", "revoke", "phone").returncode == 0
    assert curl(gateway, "nas") == 200
