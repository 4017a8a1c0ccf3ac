"""An upstream behind TLS: verified, reused, and refused when its name or its issuer is wrong."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trustme

from fakes.client import Stream, chat
from fakes.machine import stop_listening
from fakes.upstream import OK
from gateway.gateway_rig import HEAD, LAST, Rigs, chunked
from tidegate.core.settings import Settings, Upstream

ON_BOTH_LOOPS = True


@asynccontextmanager
async def tls_upstream(name: str, authority: trustme.CA) -> AsyncIterator[tuple[int, list[int]]]:
    """Answers every request over TLS as `name`; yields its port and the requests by connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    served: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(0)
        number = len(served) - 1
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                await reader.readexactly(length)
                served[number] += head.startswith(b"POST")
                writer.write(HEAD + chunked(*OK) + LAST)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], served
    finally:
        await stop_listening(server)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """An issuer that this process trusts, as a computer trusts those it came with."""
    authority = trustme.CA()
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    return authority


async def test_an_answer_comes_over_tls_and_the_connection_is_kept(
    rigs: Rigs, authority: trustme.CA
) -> None:
    """Two requests, one handshake for both, and the same bytes as without TLS."""
    async with tls_upstream("localhost", authority) as (port, served):
        rig = await rigs(Upstream(name="box", url=f"https://localhost:{port}"))
        before = len(served)
        for _ in range(2):
            answer = await chat(rig.base_url, "any")
            assert (answer.status, bytes(answer.body)) == (200, b"".join(OK))
        assert sum(served) == 2
        assert len(served) - before <= 1
        await rigs.finish()


async def answer_over(rigs: Rigs, port: int, pem: str) -> Stream:
    """What a client is told whose upstream has these certificates as its `ca_file`."""
    upstream = Upstream(name="box", url=f"https://localhost:{port}", ca_file="ca.pem")
    rig = await rigs()
    rig.gateway.configure(Settings(upstreams=[upstream]), [], {}, {}, {"ca.pem": pem})
    return await chat(rig.base_url, "any")


@pytest.mark.parametrize("named", ["root", "issuer", "several"])
async def test_an_authority_of_ones_own_is_trusted(rigs: Rigs, named: str) -> None:
    """A root, an issuer that is none, or one among several."""
    root = trustme.CA()
    issuer = root.create_child_ca()
    pem = {"root": root, "issuer": issuer, "several": root}[named].cert_pem.bytes().decode()
    if named == "several":
        pem = trustme.CA().cert_pem.bytes().decode() + pem
    async with tls_upstream("localhost", issuer) as (port, served):
        answer = await answer_over(rigs, port, pem)
        assert (answer.status, bytes(answer.body)) == (200, b"".join(OK))
        assert sum(served) == 1
        await rigs.finish()


async def test_with_an_authority_of_ones_own_no_other_is_trusted(
    rigs: Rigs, authority: trustme.CA
) -> None:
    """Not even those that the computer trusts."""
    async with tls_upstream("localhost", authority) as (port, served):
        answer = await answer_over(rigs, port, trustme.CA().cert_pem.bytes().decode())
        assert answer.status == 502
        assert b"certificate" in answer.body
        assert sum(served) == 0
        await rigs.finish()


@pytest.mark.parametrize(
    "pem", ["", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"]
)
async def test_certificates_that_cannot_be_used_trust_nothing(
    rigs: Rigs, authority: trustme.CA, pem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """That upstream fails and says why; it does not fall back to the computer's authorities."""
    async with tls_upstream("localhost", authority) as (port, served):
        answer = await answer_over(rigs, port, pem)
        assert answer.status == 502
        assert b"ca_file" in answer.body
        assert sum(served) == 0
        assert "cannot be used as it is configured" in caplog.text
        rigs.started[-1].errors.clear()
        await rigs.finish()


@pytest.mark.parametrize("fault", ["name", "issuer"])
async def test_an_upstream_that_cannot_prove_its_name_gets_no_request(
    rigs: Rigs, authority: trustme.CA, fault: str
) -> None:
    """A wrong name or an unknown issuer: 502, naming the upstream and what is wrong."""
    name = "other.example" if fault == "name" else "localhost"
    issuer = authority if fault == "name" else trustme.CA()
    async with tls_upstream(name, issuer) as (port, served):
        rig = await rigs(Upstream(name="box", url=f"https://localhost:{port}"))
        answer = await chat(rig.base_url, "any")
        assert answer.status == 502
        assert b'upstream \\"box\\"' in answer.body
        assert b"certificate" in answer.body
        assert sum(served) == 0
        await rigs.finish()
