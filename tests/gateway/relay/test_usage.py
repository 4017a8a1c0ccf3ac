"""Usage: passed where the client asked for it, asked for and taken out again where it did not."""

import json

from fakes.client import chat
from fakes.upstream import DONE, FINISH, ROLE, numbered
from gateway.gateway_rig import HEAD, LAST, Peer, chunked
from tidegate.core.settings import Upstream

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":40}}\n\n'
WORDS = [numbered(number) for number in range(12)]


def counting(seen: list[dict[str, object]]):
    """An upstream that counts tokens where it is asked to."""

    async def play(peer: Peer) -> None:
        request = await peer.request()
        body = json.loads(request.partition(b"\r\n\r\n")[2])
        seen.append(body)
        asked = (body.get("stream_options") or {}).get("include_usage")
        await peer.send(HEAD + chunked(ROLE, *WORDS, FINISH))
        await peer.send(chunked(*([USAGE] if asked else []), DONE) + LAST)
        await peer.hang()

    return play


async def test_usage_that_the_client_asked_for_is_passed_on(rigs, raw_upstream) -> None:
    """Every byte, the chunk without choices included, whatever the config says."""
    seen: list[dict[str, object]] = []
    upstream = await raw_upstream(counting(seen))
    rig = await rigs(Upstream(name="box", url=upstream.url, ask_usage=True))
    options = {"include_usage": True, "other": 1.50}
    answer = await chat(rig.base_url, "m", stream_options=options)
    assert bytes(answer.body) == b"".join([ROLE, *WORDS, FINISH, USAGE, DONE])
    assert seen[0]["stream_options"] == options


async def test_usage_that_only_the_config_asks_for_is_taken_out_again(rigs, raw_upstream) -> None:
    """The client sees what it would have seen; the speed is known in tokens."""
    seen: list[dict[str, object]] = []
    upstream = await raw_upstream(counting(seen))
    rig = await rigs(Upstream(name="box", url=upstream.url, ask_usage=True))
    answer = await chat(rig.base_url, "m", stream_options={"other": 1})
    assert bytes(answer.body) == b"".join([ROLE, *WORDS, FINISH, DONE])
    assert seen[0]["stream_options"] == {"other": 1, "include_usage": True}
    assert rig.pool().figures["m"].unit == "tokens/s"
    assert rig.relay().run.window.next_seq == len(WORDS) + 3


async def test_nothing_is_asked_where_the_config_does_not_say_so(rigs, raw_upstream) -> None:
    """By default a request passes as it is."""
    seen: list[dict[str, object]] = []
    rig = await rigs(await raw_upstream(counting(seen)))
    answer = await chat(rig.base_url, "m")
    assert bytes(answer.body) == b"".join([ROLE, *WORDS, FINISH, DONE])
    assert "stream_options" not in seen[0]
    assert rig.pool().figures["m"].unit == "events/s"
