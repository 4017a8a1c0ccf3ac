"""What an upstream says may repeat the request: it reaches the caller alone."""

from __future__ import annotations

import json
import logging

import pytest

from fakes.client import chat
from gateway.gateway_rig import HEAD, LAST, Peer, Play, Rigs, chunked, plain

CANARY = "CANARY-the-prompt-and-Bearer-sk-1"
BODY = json.dumps({"error": {"message": f"bad input: {CANARY}", "code": "bad_input"}}).encode()


def sends(answer: bytes) -> Play:
    """Answers every request with this."""

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(answer)

    return play


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (plain(BODY, b"400 X"), 400),
        (plain(BODY, b"500 X"), 500),
        (HEAD + chunked(b"data: " + BODY + b"\n\n") + LAST, 502),
    ],
)
async def test_an_upstreams_words_stay_with_their_caller(
    rigs: Rigs, raw_upstream, caplog: pytest.LogCaptureFixture, said: bytes, status: int
) -> None:
    """The caller reads them; reasons, the log and the upstream's status only name the error."""
    caplog.set_level(logging.DEBUG)
    rig = await rigs(await raw_upstream(sends(said)))
    answer = await chat(rig.base_url, "m")
    assert answer.status == status
    assert CANARY in bytes(answer.body).decode()
    run = rig.relay().run
    assert run.reason is not None
    assert "bad_input" in run.reason
    shown = [run.reason, caplog.text, str(rig.gateway.catalog.statuses()), str(run.attempts)]
    assert not any(CANARY in text for text in shown)


async def test_a_ring_of_gateways_ends(rigs: Rigs, raw_upstream) -> None:
    """A request that came through four of them is refused, and says what is wrong."""
    rig = await rigs(await raw_upstream(sends(plain(b"{}"))))
    answer = await chat(rig.base_url, "m", headers={"x-tidegate-hops": "4"})
    assert answer.status == 508
    assert b"leads back here" in answer.body
