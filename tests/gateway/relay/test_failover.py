"""From target to target: what is followed by the next one, what is waited for, what is told."""

from __future__ import annotations

import asyncio

import pytest

from fakes.client import open_chat
from fakes.machine import until
from fakes.upstream import ERROR, OK, ROLE
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, chunked, plain
from gateway.pool_rig import let_go
from gateway.relay.relay_rig import BOTH, ERROR_BODY, WORD, always, chat, sends, told, whole
from tidegate.core.runs.ledger import Entry
from tidegate.core.runs.state import RunState
from tidegate.core.settings import LimitOverrides, Model, Upstream

ON_BOTH_LOOPS = True


# --- before the first output ----------------------------------------------------------------------


async def refuse(peer: Peer) -> None:
    peer.reset()


@pytest.mark.parametrize(
    ("play", "why"),
    [
        (refuse, ""),
        (sends(hang=False), "closed the connection before an answer"),
        (sends(HEAD[:20], hang=False), "closed the connection before an answer"),
        (sends(HEAD, hang=False), "closed the connection"),
        (sends(HEAD + chunked(ROLE) + LAST), "ended the stream before"),
        (sends(HEAD + chunked(ROLE, ROLE), hang=False), "closed the connection"),
        (sends(HEAD + chunked(ERROR) + LAST), "reported an error (503)"),
        (sends(HEAD + chunked(ROLE, ERROR)), "reported an error (503)"),
        (sends(HEAD + LAST), "ended the stream before"),
        (sends(plain(b"{}")), "without a stream"),
        (sends(plain(b"{}", b"202 Accepted")), "without a stream"),
        (sends(b"HTTP/1.1 204 No Content\r\n\r\n"), "without a stream"),
        *[(sends(plain(ERROR_BODY, b"%d X" % status)), f"answered {status}")
          for status in (408, 429, 500, 502, 503, 504, 507, 529, 600, 999)],
    ],
)  # fmt: skip
async def test_a_failure_goes_on_to_the_next_target(rigs, raw_upstream, play, why: str) -> None:
    """Nothing of the first attempt reaches the client, and nothing of it is held."""
    first, second = await raw_upstream(play), await raw_upstream(whole)
    rig: Rig = await rigs(first, second, models=BOTH)
    answer = await chat(rig.base_url, "both")
    assert (answer.status, bytes(answer.body)) == (200, b"".join(OK))
    run = rig.relay().run
    assert [attempt.upstream for attempt in run.attempts] == ["box", "box1"]
    assert why in str(run.attempts[0].outcome)
    assert run.attempts[0].held_bytes == 0
    assert run.account.entries[Entry.HELD] == run.account.entries[Entry.PARTIAL] == 0
    assert (rig.pool("box").state, rig.pool("box1").state) == ("failing", "ok")
    await let_go(rig.pool("box"))


@pytest.mark.parametrize("status", [400, 409, 413, 422, 451])
async def test_a_mistake_of_the_caller_is_passed_on_untouched(
    rigs, raw_upstream, status: int
) -> None:
    """Body, type and status are the upstream's own; no other target is asked."""
    body = b'{ "error" :  "as it was" }'
    first = await raw_upstream(
        always(plain(body, b"%d X" % status, b"X-Request-Id: r1", b"X-Other: no"))
    )
    second = await raw_upstream(whole)
    rig = await rigs(first, second, models=BOTH)
    for stream in (True, False):
        answer = await chat(rig.base_url, "both", stream=stream)
        assert (answer.status, bytes(answer.body)) == (status, body)
        assert answer.headers["x-upstream-request-id"] == "r1"
        assert answer.headers["x-request-id"] == answer.headers["x-run-id"]
        assert "x-other" not in answer.headers
    assert not second.peers


async def test_the_last_target_s_own_words_are_passed_on(rigs, raw_upstream) -> None:
    """With no target left to ask, 429 and its Retry-After are what the client gets."""
    first = await raw_upstream(sends(plain(b"{}", b"500 X")))
    second = await raw_upstream(sends(plain(ERROR_BODY, b"429 X", b"Retry-After: 77")))
    rig = await rigs(first, second, models=BOTH)
    answer = await chat(rig.base_url, "both")
    assert (answer.status, bytes(answer.body)) == (429, ERROR_BODY)
    assert answer.headers["retry-after"] == "77"
    assert rig.relay().run.reason.startswith('upstream "box1" answered 429 (c), ')


async def test_an_earlier_target_s_words_are_not_the_last_one_s(rigs, raw_upstream) -> None:
    """What is told is what ended it: the second one hung up."""
    first = await raw_upstream(sends(plain(ERROR_BODY, b"429 X", b"Retry-After: 7")))
    second = await raw_upstream(sends(hang=False))
    rig = await rigs(first, second, models=BOTH)
    answer = await chat(rig.base_url, "both")
    assert answer.status == 502
    assert "retry-after" not in answer.headers
    assert 'upstream "box1" closed' in told(answer)


async def test_redirects_are_not_followed(rigs, raw_upstream) -> None:
    """Nor tried elsewhere: it is a mistake in the config."""
    first = await raw_upstream(sends(plain(b"{}", b"307 X", b"Location: http://h/")))
    second = await raw_upstream(whole)
    rig = await rigs(first, second, models=BOTH)
    answer = await chat(rig.base_url, "both")
    assert answer.status == 502
    assert "redirects are not followed" in told(answer)
    assert not second.peers


async def test_a_late_first_output_goes_on_to_the_next_target(rigs, raw_upstream) -> None:
    """first_output_s, with a role and comments in the meantime, which are no output."""
    first = await raw_upstream(sends(HEAD + chunked(ROLE), *[chunked(b": x\n\n")] * 9, wait_s=0.02))
    second = await raw_upstream(whole)
    limits = LimitOverrides(first_output_s=0.3)
    rig = await rigs(Upstream(name="box", url=first.url, limits=limits), second, models=BOTH)
    answer = await chat(rig.base_url, "both")
    assert bytes(answer.body) == b"".join(OK)
    run = rig.relay().run
    assert run.attempts[0].outcome == 'upstream "box" sent no output for 0.3 s'
    await until(lambda: first.peers[0].gone, DEADLINE_S, "the first one is let go")


async def test_without_another_target_a_late_first_output_is_a_504(rigs, raw_upstream) -> None:
    """The reason names the limit and the upstream."""
    rig = await rigs(await raw_upstream(sends(HEAD + chunked(ROLE))), first_output_s=0.2)
    answer = await chat(rig.base_url, "m")
    assert answer.status == 504
    assert told(answer).startswith('upstream "box" sent no output for 0.2 s; if its model takes')
    assert rig.relay().run.state is RunState.EXPIRED


@pytest.mark.long
async def test_waiting_for_a_place_is_not_waiting_for_output(rigs, raw_upstream) -> None:
    """A run that fails over to a busy upstream waits there for its turn, holding nothing."""
    busy = asyncio.Event()

    async def play(peer: Peer) -> None:
        request = await peer.request()
        await peer.send(HEAD + chunked(*OK[:2]))
        if b"occupy" in request:
            await busy.wait()
        await peer.send(chunked(*OK[2:]) + LAST)
        await peer.hang()

    first = await raw_upstream(sends(HEAD + chunked(ROLE)))
    second = await raw_upstream(play)
    rig = await rigs(
        Upstream(name="box", url=first.url),
        Upstream(name="box1", url=second.url, max_concurrent=1),
        models=BOTH,
        first_output_s=1.0,
        queue_s=60.0,
    )
    occupant = await open_chat(rig.base_url, "box1/occupy")
    await occupant.read_events(2)
    waiting = await open_chat(rig.base_url, "both")
    await until(lambda: rig.pool("box1").status().queued, DEADLINE_S, "it waits for its turn")
    run = rig.relay().run
    assert run.account.entries[Entry.HELD] == run.account.entries[Entry.PARTIAL] == 0
    await asyncio.sleep(1.2)  # first_output_s and more
    assert not run.is_over, run.reason
    busy.set()
    for stream in (occupant, waiting):
        await stream.read_all()
        assert bytes(stream.body) == b"".join(OK)


async def test_a_failure_in_the_queue_tells_the_limit(rigs, raw_upstream) -> None:
    """queue_s counts from when the waiting began, also behind a failed attempt."""
    first = await raw_upstream(sends(hang=False, wait_s=0.0))
    second = await raw_upstream(sends())
    rig = await rigs(
        Upstream(name="box", url=first.url),
        Upstream(name="box1", url=second.url, max_concurrent=1),
        models=BOTH,
        queue_s=0.3,
    )
    await open_chat(rig.base_url, "box1/occupy")
    await until(lambda: rig.pool("box1").active, DEADLINE_S, "the second one is busy")
    answer = await chat(rig.base_url, "both")
    assert answer.status == 503
    assert "queue_s = 0.3 s" in told(answer)
    assert rig.pool("box1").status().queued == 0


async def test_a_full_house_is_not_left_for_the_next_target(rigs, raw_upstream) -> None:
    """Who has waited queue_s for one upstream is told so; to be busy is no failure."""
    busy = await raw_upstream(sends())
    free = await raw_upstream(sends(HEAD + chunked(*OK) + LAST))
    rig = await rigs(
        Upstream(name="box", url=busy.url, max_concurrent=1),
        Upstream(name="box1", url=free.url),
        models=BOTH,
        queue_s=0.3,
    )
    await open_chat(rig.base_url, "box/occupy")
    await until(lambda: rig.pool("box").active, DEADLINE_S, "the first one is busy")
    before = rig.pool("box").status().state
    answer = await chat(rig.base_url, "both")
    assert answer.status == 503
    assert told(answer).startswith(
        'upstream "box" had no free place within queue_s = 0.3 s; the targets behind it are asked'
        " only when it fails"
    )
    assert not free.peers
    assert rig.pool("box").status().state == before
    assert rig.pool("box").status().queued == 0


async def test_a_model_has_limits_of_its_own_at_a_shared_upstream(rigs, raw_upstream) -> None:
    """One may wait for a place, the other may not."""
    upstream = await raw_upstream(sends())
    rig = await rigs(
        Upstream(name="box", url=upstream.url, max_concurrent=1),
        models=[
            Model(name="hasty", targets=["box/m"], limits=LimitOverrides(max_queued=0)),
            Model(name="patient", targets=["box/m"]),
        ],
        queue_s=0.3,
    )
    await open_chat(rig.base_url, "patient")
    await until(lambda: rig.pool("box").active, DEADLINE_S, "it is busy")
    assert "is busy: 1 active, 0 waiting" in told(await chat(rig.base_url, "hasty"))
    assert "queue_s = 0.3 s" in told(await chat(rig.base_url, "patient"))


# --- what counts against an upstream ----------------------------------------------------------


async def test_answers_that_break_off_one_after_the_other_set_an_upstream_aside(
    rigs, raw_upstream
) -> None:
    """A first word makes nothing good: an upstream that always dies behind it is failing."""
    first = await raw_upstream(sends(HEAD + chunked(ROLE, WORD), hang=False))
    second = await raw_upstream(whole)
    rig = await rigs(first, second, models=BOTH)
    for _ in range(3):
        assert told(await chat(rig.base_url, "both"))
    assert rig.pool("box").state == "set aside"
    answer = await chat(rig.base_url, "both")
    assert bytes(answer.body) == b"".join(OK)


async def test_who_refuses_with_a_reason_is_alive(rigs, raw_upstream) -> None:
    """A mistake of a caller ends a row of failures as an answer does."""
    answers = [b"503 X", b"503 X", b"400 X", b"503 X", b"503 X"]

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(plain(b"{}", answers.pop(0)))

    rig = await rigs(await raw_upstream(play))
    for status in (503, 503, 400, 503, 503):
        assert (await chat(rig.base_url, "m")).status == status
    assert not rig.pool().health.is_aside


async def test_no_wait_is_begun_that_a_limit_would_cut_short(rigs, raw_upstream) -> None:
    """The upstream's own 429 at once is worth more than a timeout later."""
    upstream = await raw_upstream(sends(plain(ERROR_BODY, b"429 X", b"Retry-After: 20")))
    rig = await rigs(upstream, first_output_s=5.0, hold_s=30.0)
    answer = await asyncio.wait_for(chat(rig.base_url, "m"), 4.0)
    assert (answer.status, bytes(answer.body)) == (429, ERROR_BODY)
    assert not rig.pool().health.is_aside
