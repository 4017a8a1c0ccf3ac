"""Every run that a gateway answers is told in the log once, and without a word of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import msgspec
import pytest

from fakes.client import chat, get, open_chat
from fakes.machine import until
from fakes.upstream import DONE, FINISH, ROLE, ScriptedUpstream
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, chunked, plain, scoped
from gateway.records.records_rig import leave_behind, new_places, under_way
from gateway.relay.relay_rig import WORD
from tidegate.core.settings import Upstream

ON_EVERY_ROAD = True

CANARY = "CANARY-in-the-prompt"
KEY = "tg-abcdefghijklmnopqrstuvwxyz"
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":26,"completion_tokens":290}}\n\n'
WHOLE = json.dumps({"choices": [], "usage": {"prompt_tokens": 26, "completion_tokens": 290}})


def sends(*answers: bytes):
    """Answers each request with the next of these, and with the last one from then on."""

    async def play(peer: Peer) -> None:
        left = list(answers)
        while True:
            await peer.request()
            await peer.send(left.pop(0) if len(left) > 1 else left[0])

    return play


def written(folder: Path) -> bytes:
    """All that is in the files there."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture):
    """Gives what the log tells of runs that are over."""
    caplog.set_level(logging.DEBUG, "tidegate")

    def told(rig: Rig) -> list[str]:
        rig.gateway.recorder.flush()
        return [
            record.getMessage()
            for record in caplog.records
            if record.name in {"tidegate.runs", "tidegate.registry"}
        ]

    return told


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_one_line(rigs, raw_upstream, lines, stream: bool) -> None:
    """With what its client and its upstream are called, and what it took."""
    streamed = HEAD + chunked(ROLE, WORD, FINISH, USAGE, DONE) + LAST
    rig = await rigs(
        await raw_upstream(sends(streamed if stream else plain(WHOLE.encode()))),
        tokens=[scoped(KEY, name="phone")],
        models={"fast": ["box/m"]},
    )
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": "fast", "messages": [{"role": "user", "content": CANARY}], "stream": stream}
    answer = await get(rig.base_url, "/v1/chat/completions", body, headers=headers)
    assert answer.status == 200
    await rig.idle()
    [line] = lines(rig)
    how = "streamed" if stream else "plain"
    asked = f'"phone" asked for "fast" -> "box/m", chat completion, {how}, 1 attempt'
    assert line.startswith(f"run {answer.run_id} completed: {asked}, ")
    assert ("first output after" in line) is stream
    assert f"26 tokens in, 290 out, {len(answer.body)} bytes" in line
    assert CANARY not in line
    assert KEY not in line


async def test_a_failure_is_one_line_with_its_reason(rigs, raw_upstream, lines) -> None:
    """Where the upstream's own words are not in it: they may repeat the prompt."""
    body = json.dumps({"error": {"message": CANARY, "code": "no_luck"}}).encode()
    rig = await rigs(await raw_upstream(sends(plain(body, b"500 X"))))
    answer = await chat(rig.base_url, "m")
    assert answer.status == 500
    await rig.idle()
    [line] = lines(rig)
    assert line.startswith(f"run {answer.run_id} failed (upstream_500): ")
    assert 'upstream "box"' in line
    assert 'a client without a token asked for "m" -> "box/m"' in line
    assert "tokens unknown" in line
    assert CANARY not in line


async def test_a_client_that_leaves_is_one_line(rigs, raw_upstream, lines) -> None:
    """The answer that it did not want is cancelled."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(ROLE, WORD))
        await peer.hang()

    rig = await rigs(await raw_upstream(play))
    stream = await open_chat(rig.base_url, "m")
    await stream.read_events(2)
    await stream.vanish()
    await until(lambda: lines(rig), DEADLINE_S, "its end is told")
    [line] = lines(rig)
    assert " cancelled (disconnect_grace_s): client disconnected; a client without " in line
    assert "tokens unknown" in line


async def test_a_retry_and_the_other_upstream_are_counted(rigs, raw_upstream, lines) -> None:
    """The one that answered is named."""
    bad = await raw_upstream(sends(plain(b"{}", b"503 X")))
    good = await raw_upstream(sends(HEAD + chunked(ROLE, WORD, FINISH, DONE) + LAST))
    rig = await rigs(
        Upstream(name="bad", url=bad.url),
        Upstream(name="good", url=good.url),
        models={"fast": ["bad/a", "good/b"]},
    )
    assert (await chat(rig.base_url, "fast")).clean
    await rig.idle()
    [line] = lines(rig)
    assert '"fast" -> "good/b", chat completion, streamed, 2 attempts' in line


async def test_log_requests_counts_at_once(rigs, raw_upstream, lines) -> None:
    """Without it only what went wrong is told, as one short line."""
    good = HEAD + chunked(ROLE, WORD, FINISH, DONE) + LAST
    rig = await rigs(await raw_upstream(sends(good, good, plain(b"{}", b"500 X"))))
    rig.reload(msgspec.structs.replace(rig.settings, log_requests=False))
    assert (await chat(rig.base_url, "m")).clean
    assert (await chat(rig.base_url, "m")).clean
    answer = await chat(rig.base_url, "m")
    assert answer.status == 500
    await rig.idle()
    [line] = lines(rig)
    assert line.startswith(f"run {answer.run_id} failed (upstream_500): ")
    assert "asked for" not in line


async def test_what_a_dead_worker_left_is_told_once(
    rigs, scripted_upstream: ScriptedUpstream, tmp_path: Path, lines
) -> None:
    """By the one that comes after it, which ended it."""
    places = new_places(tmp_path)
    run = under_way([ROLE, WORD], token="phone")
    await leave_behind(places, run, [ROLE, WORD])
    rig = await rigs(scripted_upstream, places=places)
    await until(lambda: lines(rig), DEADLINE_S, "it is told")
    again = await rigs(scripted_upstream, places=places)
    assert (await get(again.base_url, f"/v1/runs/{run.id}")).status == 200
    [line] = lines(again)
    assert line.startswith(f'run {run.id} failed (worker_died): its worker died; "phone" asked for')
    assert rig.gateway.tally.requests.total() + again.gateway.tally.requests.total() == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_prompt_in_the_place_of_a_name_is_written_nowhere(
    rigs, raw_upstream, tmp_path: Path, lines, stream: bool
) -> None:
    """Neither told nor kept; a name that the config has is, blanks and all."""
    places = new_places(tmp_path)
    streamed = HEAD + chunked(ROLE, WORD, FINISH, USAGE, DONE) + LAST
    rig = await rigs(
        await raw_upstream(sends(streamed if stream else plain(WHOLE.encode()))),
        places=places,
        models={"the fast one": ["box/m"]},
    )
    prompt = f"{CANARY} why does it hurt"
    for model in ("the fast one", f"box/{prompt}", f"box/{KEY}"):
        body = {"model": model, "messages": [], "stream": stream}
        assert (await get(rig.base_url, "/v1/chat/completions", body)).status == 200
    await rig.idle()
    told = "".join(lines(rig))
    assert '"the fast one" -> "box/m"' in told
    assert f'"(a name of {len(prompt) + 4} characters)"' in told
    await rig.gateway.stores.flush(DEADLINE_S)
    kept = written(tmp_path)
    assert b"the fast one" in kept
    for word in (CANARY, KEY):
        assert word not in told
        assert word.encode() not in kept
