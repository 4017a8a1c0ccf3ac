"""What belongs to an upstream and is in no config reaches a real worker, and goes on with it."""

from __future__ import annotations

import asyncio
import signal
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from fakes.client import chat
from fakes.gateway import StartGateway
from fakes.machine import stop_listening, until
from fakes.scenario import toml
from fakes.upstream import OK, ScriptedUpstream
from gateway.gateway_rig import HEAD, LAST, chunked, plain

AUTHORITY = trustme.CA()


@pytest.fixture
async def gate() -> AsyncIterator[tuple[int, list[str]]]:
    """A server behind a certificate of our own: its port, and the heads of what it was asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("localhost").configure_cert(context)
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                heads.append(head)
                length = int(head.lower().partition("content-length: ")[2].split("\r\n")[0] or 0)
                await reader.readexactly(length)
                is_answer = head.startswith("POST")
                writer.write(HEAD + chunked(*OK) + LAST if is_answer else plain(b'{"data":[]}'))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], heads
    finally:
        await stop_listening(server)


async def test_headers_and_certificates_outlive_a_reload_a_recycle_and_an_upgrade(
    gateway: StartGateway, gate: tuple[int, list[str]], tmp_path: Path
) -> None:
    """Every request has them, that for the models too; a reload takes up what the files say."""
    port, heads = gate
    secret, certificates = tmp_path / "gate.secret", tmp_path / "ca.pem"
    secret.touch(0o600)
    secret.write_text("open sesame one\n")
    AUTHORITY.cert_pem.write_to_path(str(certificates))
    running = await asyncio.to_thread(
        gateway,
        f"""[[upstream]]
name = "gate"
url = "https://localhost:{port}"
ca_file = "{certificates}"
[upstream.headers]
X-Title = "at home"
X-File = {{ file = "{secret}" }}
X-Env = {{ env = "GATE" }}
""",
        env={"GATE": "from the environment"},
    )

    async def ask(word: str) -> None:
        heads.clear()
        answer = await chat(running.base_url, "m")
        assert (answer.status, bytes(answer.body)) == (200, b"".join(OK))
        for line in ("X-Title: at home", f"X-File: {word}", "X-Env: from the environment"):
            assert f"\r\n{line}\r\n" in heads[-1]

    assert all("\r\nUser-Agent: tidegate/" in head and "X-File: open" in head for head in heads)
    assert heads
    await ask("open sesame one")
    secret.write_text("open sesame two\n")
    done = await asyncio.to_thread(running.ask, "reload")
    assert [change["key"] for change in done["changes"]] == ["value of X-File of gate"]
    assert "sesame" not in str(done)
    await ask("open sesame two")
    await asyncio.to_thread(running.ask, "recycle", wait=False)
    await ask("open sesame two")
    running.process.send_signal(signal.SIGUSR2)
    await until(lambda: running.status()["generation"] == 3, 60, "the upgrade's worker serves")
    await ask("open sesame two")

    # Another authority: the upstream fails, says why, and is back with the right one.
    trustme.CA().cert_pem.write_to_path(str(certificates))
    await asyncio.to_thread(running.ask, "reload")
    assert (await chat(running.base_url, "m")).status == 502
    await until(lambda: running.status()["upstreams"][0]["state"] == "failing", 30, "it is told")
    assert "certificate" in running.status()["upstreams"][0]["last_error"]
    AUTHORITY.cert_pem.write_to_path(str(certificates))
    await asyncio.to_thread(running.ask, "reload")
    await ask("open sesame two")
    assert "sesame" not in running.log.read_text()


async def test_an_upstream_whose_certificates_tls_refuses_is_failing_and_the_others_serve(
    gateway: StartGateway, scripted_upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """The check sees the form of a certificate alone; what is in it costs that upstream alone."""
    body = b"no certificate" * 20
    der = b"\x30\x82" + len(body).to_bytes(2, "big") + body
    pem = f"-----BEGIN CERTIFICATE-----\n{b64encode(der).decode()}\n-----END CERTIFICATE-----\n"
    (tmp_path / "ca.pem").write_text(pem)
    running = await asyncio.to_thread(
        gateway,
        toml(("box", scripted_upstream.url), ("bad", "https://localhost:1"))
        + f'ca_file = "{tmp_path / "ca.pem"}"\n'
        + '[[model]]\nname = "x"\ntargets = ["bad/ok", "box/ok"]\n',
    )
    assert (await chat(running.base_url, "x")).clean
    refused = await chat(running.base_url, "bad/ok")
    assert refused.status == 502
    assert b"ca_file" in refused.body
    await until(lambda: bool(running.status()["repairs"]), 30, "a repair is open")
    status = running.status()
    assert [(each["name"], each["state"]) for each in status["upstreams"]] == [
        ("box", "ok"),
        ("bad", "failing"),
    ]
    assert "the certificates of its ca_file cannot be used" in status["upstreams"][1]["last_error"]
    [repair] = [each for each in status["repairs"] if "bad" in each["id"]]
    assert "ca_file" in repair["cause"]
    assert status["restarts"] == []
