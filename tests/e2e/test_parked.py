"""A parked tidegate: up although its config is bad; it says why, and serves once that is mended."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request

from fakes.gateway import StartGateway
from fakes.machine import free_port, wait_until

GOOD = "allowed_hosts = []\n"
BAD = "nonsense = 1\n"


def get(base_url: str, path: str, body: dict[str, object] | None = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(base_url + path, data)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def test_every_route_says_why_and_mending_the_file_ends_it(gateway: StartGateway) -> None:
    """Health routes tell the reason, everything else is 503; the file's change is enough."""
    port = free_port()
    running = gateway(
        BAD,
        flags=("--park",),
        env={"TIDEGATE_LISTEN": f"127.0.0.1:{port}"},
        until_ready=False,
    )
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: get(url, "/healthz")[0] == 200, 30, "the parked worker answers")
    assert "nonsense" in json.loads(get(url, "/healthz")[1])["parked"]
    status, text = get(url, "/readyz")
    assert status == 503
    assert "nonsense" in json.loads(text)["reasons"][0]
    status, text = get(url, "/")
    assert status == 503
    assert "nonsense" in text
    body = {"model": "m", "messages": [], "stream": True}
    for path, data in (
        ("/v1/chat/completions", body),
        ("/v1/messages", body),
        ("/v1/models", None),
        ("/metrics", None),
        ("/nowhere", None),
    ):
        status, text = get(url, path, data)
        assert status == 503, path
        assert "parked until its configuration is mended" in text
    assert running.status()["state"] == "parked"
    assert "nonsense" in running.status()["reason"]

    running.config.write_text("other = 2\n")  # another mistake is another reason
    wait_until(lambda: "other" in get(url, "/readyz")[1], 30, "it is told")
    running.config.write_text(GOOD)
    wait_until(lambda: get(url, "/readyz")[0] == 200, 30, "it serves")
    status, text = get(url, "/v1/chat/completions", {"model": "demo", "messages": []})
    assert (status, running.status()["state"] != "parked") == (200, True)
    assert running.status()["reason"] is None
    running.wait_logged("is ready: ")


def test_taken_address_leaves_it_parked_until_it_is_free(gateway: StartGateway) -> None:
    """It cannot say so over HTTP, and is up all the same; a reload that fails changes nothing."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        running = gateway(
            BAD,
            flags=("--park",),
            env={"TIDEGATE_LISTEN": f"127.0.0.1:{port}"},
            until_ready=False,
        )
        wait_until(lambda: "cannot say so over HTTP" in running.log.read_text(), 30, "it is told")
        assert running.status()["state"] == "parked"
        assert "nonsense" in running.command("reload").stderr
    running.config.write_text(GOOD)
    assert running.command("reload").returncode == 0
    wait_until(lambda: get(f"http://127.0.0.1:{port}", "/readyz")[0] == 200, 30, "it serves")
