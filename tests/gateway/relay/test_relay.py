"""One answer on its way: what is held back, the first output, and every end."""

from __future__ import annotations

import asyncio
import gc
import weakref
from itertools import count

import pytest

from fakes.client import Stream, open_chat, words
from fakes.machine import until
from fakes.upstream import DONE, ERROR, FINISH, OK, ROLE, ScriptedUpstream, numbered
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, RawUpstream, chunked, plain
from gateway.pool_rig import let_go, none_left
from gateway.relay.relay_rig import BOTH, ERROR_BODY, WORD, chat, errors, sends, told, whole
from tidegate.core.formats.base import COMMENT as KEEP_ALIVE
from tidegate.core.runs import limits as clock
from tidegate.core.runs.attempt import HOLD_BYTES, HOLD_EVENTS
from tidegate.core.runs.ledger import RECORD_BYTES, Entry
from tidegate.core.runs.run import Run
from tidegate.core.runs.state import RunState
from tidegate.core.runs.transcript import Transcript
from tidegate.core.runs.window import Window
from tidegate.core.settings import LimitOverrides, Upstream
from tidegate.gateway.relay.failover import Failover
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.subscriber import StreamSubscriber
from tidegate.gateway.upstreams.connection import UpstreamConnection

ON_BOTH_LOOPS = True


# --- what is held, and when the status is sent ----------------------------------------------------


async def test_after_the_hold_a_late_output_is_a_whole_answer(rigs, raw_upstream) -> None:
    """The status goes out, keep-alives follow, and then what was held, all of it."""
    upstream = await raw_upstream(sends(HEAD + chunked(ROLE), chunked(*OK[1:]) + LAST, wait_s=0.4))
    rig = await rigs(upstream, hold_s=0.1, keepalive_s=0.1)
    stream = await open_chat(rig.base_url, "m")
    await stream.head()
    assert rig.relay().run.state is RunState.CONNECTING
    await stream.read_all()
    assert bytes(stream.body).replace(KEEP_ALIVE, b"") == b"".join(OK)
    assert bytes(stream.body).count(KEEP_ALIVE) >= 1
    assert stream.clean


@pytest.mark.long
async def test_after_the_hold_a_failure_is_an_error_event(rigs, raw_upstream) -> None:
    """Whatever it is, an answer of the upstream's own included: the 200 is out."""
    late = [
        sends(HEAD + chunked(ROLE), LAST, wait_s=0.3),
        sends(b"", plain(ERROR_BODY, b"400 X"), wait_s=0.3),
        sends(b"", plain(ERROR_BODY, b"503 X"), wait_s=0.3),
        sends(b"", plain(b"{}", b"202 Accepted"), wait_s=0.3),
        sends(b"", plain(b"{}"), wait_s=0.3),
        sends(b"", b"HTTP/1.1 204 No Content\r\n\r\n", wait_s=0.3),
        sends(b"", wait_s=0.3, hang=False),
    ]
    for play in late:
        rig = await rigs(await raw_upstream(play), hold_s=0.05)
        stream = await open_chat(rig.base_url, "m")
        await stream.head()
        assert stream.status == 200
        await stream.read_all()
        assert 'upstream "box"' in told(stream)
        assert rig.relay().run.state is RunState.FAILED


async def test_after_the_hold_it_can_still_fail_over(rigs, raw_upstream) -> None:
    """Until the first output nothing is lost."""
    first = await raw_upstream(sends(HEAD + chunked(ROLE), hang=False, wait_s=0.3))
    second = await raw_upstream(whole)
    rig = await rigs(first, second, models=BOTH, hold_s=0.05)
    stream = await open_chat(rig.base_url, "both")
    await stream.head()
    assert not second.peers
    await stream.read_all()
    assert bytes(stream.body) == b"".join(OK)


EMPTY = b'data: {"choices":[],"padding":"' + b"." * 9000 + b'"}\n\n'


async def test_little_of_what_says_nothing_is_held(rigs, raw_upstream) -> None:
    """However much of it comes before an answer, that still begins with its first output."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        for _ in range(3 * HOLD_EVENTS):
            await peer.send(chunked(ROLE, EMPTY, EMPTY))
        await peer.send(chunked(*OK) + LAST)

    rig = await rigs(await raw_upstream(play))
    stream = await open_chat(rig.base_url, "m")
    await stream.read_all()
    assert bytes(stream.body).endswith(b"".join(OK[1:]))
    assert len(stream.events) <= HOLD_EVENTS + len(OK)
    assert len(stream.body) <= HOLD_BYTES + 2 * len(EMPTY) + len(b"".join(OK))
    assert rig.relay().run.state is RunState.COMPLETED


# --- after the first output -----------------------------------------------------------------------


async def test_an_answer_that_lacks_only_its_end_is_completed(
    rigs, raw_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before any other limit; readers, a replay and the record all have the marker."""
    monkeypatch.setattr(clock, "END_WITHIN_S", 0.3)
    words = [numbered(number) for number in range(8)]

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(ROLE))
        for word in words:
            await peer.send(chunked(word))
            await asyncio.sleep(0.1)
        await peer.send(chunked(FINISH))
        await peer.hang()

    upstream = await raw_upstream(play)
    rig = await rigs(upstream, idle_s=100.0, hold_s=0.05)
    answer = await asyncio.wait_for(chat(rig.base_url, "m"), DEADLINE_S)
    whole = b"".join([ROLE, *words, FINISH, DONE])
    assert (bytes(answer.body), answer.clean) == (whole, True)
    run = rig.relay().run
    assert (run.state, run.reason, run.attempt.outcome) == (RunState.COMPLETED, None, "completed")
    assert run.window.next_seq == len(words) + 3
    await until(lambda: upstream.peers[0].gone, DEADLINE_S, "the upstream is let go of")


@pytest.mark.parametrize(
    ("rest", "hang", "why"),
    [
        ((), False, "closed the connection in the middle of the answer"),
        ((LAST,), True, "ended the stream before the answer was complete"),
        ((b"zz\r\n",), True, "not HTTP"),
        ((chunked(b"data: " + b"x" * 5_000_000),), True, "more than 4194304 bytes"),
        ((chunked(b"data: cut off"), LAST), True, "ended the stream before"),
        ((), True, "idle for 0.3 s"),
    ],
    ids=["close", "end", "garbage", "huge event", "half an event", "silence"],
)
async def test_death_in_the_middle_is_told_and_never_mended(
    rigs, raw_upstream, rest: tuple[bytes, ...], hang: bool, why: str
) -> None:
    """One error event, no marker, no other target: two answers are never spliced."""
    first = await raw_upstream(sends(HEAD + chunked(ROLE, WORD), *rest, hang=hang, wait_s=0.05))
    second = await raw_upstream(whole)
    rig = await rigs(first, second, models=BOTH, idle_s=0.3 if "idle" in why else 30.0)
    answer = await chat(rig.base_url, "both")
    assert words(answer.events) == ["word "]
    message = told(answer)
    assert why in message
    assert 'upstream "box"' in message
    reason, _, advice = message.partition("; ")
    assert rig.relay().run.reason == reason
    assert advice or "ended the stream" in why
    assert not second.peers
    await let_go(rig.pool())


@pytest.mark.parametrize(
    ("rest", "hang"),
    [
        ((LAST,), True),
        ((), False),
        ((), True),
        ((chunked(b": bye\n\n"), LAST), True),
    ],
    ids=["end", "close", "silence", "comment"],
)
async def test_an_error_of_the_upstream_s_is_told_once(
    rigs, raw_upstream, rest: tuple[bytes, ...], hang: bool
) -> None:
    """Its own error event stands in the stream: however it goes on, there is no second one."""
    upstream = await raw_upstream(sends(HEAD + chunked(ROLE, WORD, ERROR), *rest, hang=hang))
    rig = await rigs(upstream, idle_s=0.3)
    answer = await chat(rig.base_url, "m")
    assert told(answer) == "the fake is overloaded"
    run = rig.relay().run
    assert run.state in {RunState.FAILED, RunState.EXPIRED}
    assert run.window.next_seq == 3


async def test_an_error_before_the_marker_is_a_failure(rigs, raw_upstream) -> None:
    """The marker is passed on as it came, but the run has not completed."""
    rig = await rigs(await raw_upstream(sends(HEAD + chunked(ROLE, WORD, ERROR, DONE) + LAST)))
    answer = await chat(rig.base_url, "m")
    assert errors(answer) == ["the fake is overloaded"]
    assert rig.relay().run.state is RunState.FAILED


@pytest.mark.parametrize(
    ("rest", "hang"),
    [((LAST,), True), ((), False), ((chunked(b": bye\n\n"),), False)],
    ids=["end", "close", "comment and close"],
)
async def test_a_finish_reason_is_an_end_and_no_marker_is_invented(
    rigs, raw_upstream, rest: tuple[bytes, ...], hang: bool
) -> None:
    """Whatever ends the body after it: the answer was whole."""
    upstream = await raw_upstream(sends(HEAD + chunked(ROLE, WORD, FINISH), *rest, hang=hang))
    rig = await rigs(upstream)
    answer = await chat(rig.base_url, "m")
    assert bytes(answer.body) == ROLE + WORD + FINISH
    assert answer.clean
    assert rig.relay().run.state is RunState.COMPLETED


async def test_usage_behind_the_finish_reason_is_waited_for(rigs, raw_upstream) -> None:
    """A finish_reason ends nothing by itself."""
    usage = b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n'
    upstream = await raw_upstream(
        sends(HEAD + chunked(ROLE, WORD, FINISH), chunked(usage), chunked(DONE), wait_s=0.1)
    )
    rig = await rigs(upstream)
    answer = await chat(rig.base_url, "m")
    assert bytes(answer.body) == ROLE + WORD + FINISH + usage + DONE


@pytest.mark.parametrize("marker", [DONE, b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n"])
async def test_the_marker_ends_the_answer_whatever_the_connection_does(
    rigs, raw_upstream, marker: bytes
) -> None:
    """An upstream that keeps the body open after it holds no client up, and is let go."""
    upstream = await raw_upstream(sends(HEAD + chunked(ROLE, WORD, marker)))
    rig = await rigs(upstream, idle_s=30.0)
    answer = await chat(rig.base_url, "m")
    assert bytes(answer.body) == ROLE + WORD + marker
    assert rig.relay().run.state is RunState.COMPLETED
    assert rig.pool().active == 0
    await until(lambda: upstream.peers[0].gone, DEADLINE_S, "the upstream is let go")


async def test_a_clean_end_keeps_the_connection_for_the_next_run(rigs, raw_upstream) -> None:
    """One connection, many answers."""
    upstream: RawUpstream = await raw_upstream(whole)
    rig = await rigs(upstream)
    for _ in range(5):
        assert bytes((await chat(rig.base_url, "m")).body) == b"".join(OK)
    assert len(upstream.peers) == 1


async def test_a_kept_connection_that_died_is_replaced_once(rigs, raw_upstream) -> None:
    """Not a fault of the upstream; but a fresh connection that dies is one."""
    served = count()

    async def play(peer: Peer) -> None:
        await peer.request()
        if next(served) < 2:
            await peer.send(HEAD + chunked(*OK) + LAST)
            await peer.request()

    upstream = await raw_upstream(play)
    rig = await rigs(upstream)
    for _ in range(2):
        assert bytes((await chat(rig.base_url, "m")).body) == b"".join(OK)
        assert rig.pool().state == "ok"
    answer = await chat(rig.base_url, "m")
    assert answer.status == 502
    assert "before an answer" in told(answer)
    assert len(upstream.peers) == 4  # the last one is the try once more that a reset is worth


async def test_a_kept_connection_that_answers_in_part_is_a_fault(rigs, raw_upstream) -> None:
    """It did not die of idleness: the request was at work. It is asked once more, and not twice."""

    async def play(peer: Peer) -> None:
        if len(upstream.peers) == 1:
            await peer.request()
            await peer.send(HEAD + chunked(*OK) + LAST)
        await peer.request()
        await peer.send(HEAD[:10])

    upstream = await raw_upstream(play)
    rig = await rigs(upstream)
    await chat(rig.base_url, "m")
    answer = await chat(rig.base_url, "m")
    assert answer.status == 502
    assert len(upstream.peers) == 2
    assert rig.pool().state == "failing"


# --- clocks ---------------------------------------------------------------------------------------


async def test_the_idle_clock_runs_from_the_first_output_on(rigs, raw_upstream) -> None:
    """Also where the first output came late, and first_output_s would be long."""
    upstream = await raw_upstream(sends(HEAD + chunked(ROLE), chunked(WORD), wait_s=0.3))
    rig = await rigs(upstream, hold_s=0.05, idle_s=0.3, first_output_s=60.0)
    answer = await asyncio.wait_for(chat(rig.base_url, "m"), DEADLINE_S)
    assert "idle for 0.3 s" in told(answer)


async def test_no_comment_is_progress(rigs, raw_upstream) -> None:
    """Neither the upstream's nor ours move the idle clock."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(ROLE, WORD))
        while True:
            await peer.send(chunked(b": still here\n\n"))
            await asyncio.sleep(0.02)

    rig = await rigs(await raw_upstream(play), idle_s=1.0, keepalive_s=0.05)
    answer = await asyncio.wait_for(chat(rig.base_url, "m"), DEADLINE_S)
    assert "idle for 1 s" in told(answer)
    assert bytes(answer.body).count(KEEP_ALIVE) >= 3
    assert b"still here" not in answer.body
    assert KEEP_ALIVE not in rig.relay().run.window.read(rig.relay().run.window.cursor(0))[0]


async def test_total_s_ends_whatever_goes_on(rigs, raw_upstream) -> None:
    """Steady output is no excuse."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(ROLE))
        for number in count():
            await peer.send(chunked(numbered(number)))
            await asyncio.sleep(0.01)

    rig = await rigs(await raw_upstream(play), total_s=0.4)
    answer = await asyncio.wait_for(chat(rig.base_url, "m"), DEADLINE_S)
    assert told(answer).startswith("took longer than total_s = 0.4 s; ")
    assert rig.relay().run.state is RunState.EXPIRED
    await none_left(rig.pool())


async def test_a_model_s_own_limits_hold_for_its_target(rigs, raw_upstream) -> None:
    """Each attempt has the limits of the place where it is made."""
    first, second = await raw_upstream(sends()), await raw_upstream(sends())
    rig = await rigs(
        Upstream(name="box", url=first.url, limits=LimitOverrides(first_output_s=0.1)),
        Upstream(name="box1", url=second.url, limits=LimitOverrides(first_output_s=0.2)),
        models=BOTH,
    )
    answer = await chat(rig.base_url, "both")
    assert told(answer).startswith('upstream "box1" sent no output for 0.2 s; ')
    assert rig.relay().run.attempts[0].outcome == 'upstream "box" sent no output for 0.1 s'


# --- clients that go ------------------------------------------------------------------------------


async def test_a_cancel_is_verified(rigs, raw_upstream, caplog, monkeypatch) -> None:
    """A connection that does not go when it is given up is closed by force, and the log says so."""
    upstream = await raw_upstream(sends(HEAD + chunked(ROLE, WORD)))
    rig = await rigs(upstream)
    client = await open_chat(rig.base_url, "m")
    await client.read_events(1)
    relay = rig.relay()
    with monkeypatch.context() as patch:
        patch.setattr(UpstreamConnection, "abort", lambda _: None)  # it does not let go
        relay.cancel("cancelled by client")
    await until(lambda: upstream.peers[0].gone, DEADLINE_S, "the upstream has heard")
    assert "closed by force" in caplog.text
    await client.close()
    await none_left(rig.pool())


async def test_without_grace_the_upstream_goes_with_its_client(rigs, raw_upstream) -> None:
    """While connecting, before the head, while held, in the stream, in a plain answer."""
    plays = [sends(), sends(HEAD), sends(HEAD + chunked(ROLE)), sends(HEAD + chunked(ROLE, WORD))]
    for play, stream in [(play, True) for play in plays] + [(sends(), False)]:
        upstream = await raw_upstream(play)
        rig = await rigs(upstream, disconnect_grace_s=0.0)
        client = await open_chat(rig.base_url, "m", stream=stream)
        await until(lambda up=upstream: up.peers, DEADLINE_S, "the upstream was asked")
        await asyncio.sleep(0.05)
        relay = rig.relay()
        await client.vanish()
        await until(lambda up=upstream: up.peers[0].gone, DEADLINE_S, "it was let go")
        assert relay.run.state is RunState.CANCELLED
        assert relay.run.reason == "cancelled: client disconnected"
        assert rig.pool().active == 0


async def test_a_client_that_goes_while_it_waits_leaves_the_queue(rigs, raw_upstream) -> None:
    """Its turn goes to the next one."""
    upstream = await raw_upstream(sends())
    rig = await rigs(Upstream(name="box", url=upstream.url, max_concurrent=1))
    await open_chat(rig.base_url, "m")
    await until(lambda: rig.pool().active, DEADLINE_S, "the first one has the place")
    client = await open_chat(rig.base_url, "m")
    await until(lambda: rig.pool().status().queued, DEADLINE_S, "the second one waits")
    await client.vanish()
    await until(lambda: not rig.pool().status().queued, DEADLINE_S, "it waits no longer")
    assert rig.relay().run.state is RunState.CANCELLED


async def test_who_comes_back_within_the_grace_finds_it_running(rigs, raw_upstream) -> None:
    """And nothing is missing; who leaves again starts the grace anew."""
    go_on = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(ROLE, numbered(0)))
        await go_on.wait()
        await peer.send(chunked(numbered(1), FINISH, DONE) + LAST)
        await peer.hang()

    rig = await rigs(await raw_upstream(play), disconnect_grace_s=2.0)
    client = await open_chat(rig.base_url, "m")
    await client.read_events(2)
    await client.vanish()
    run = rig.relay().run
    await until(lambda: run.readers == 0, DEADLINE_S, "it is abandoned")
    again = await Stream.open(rig.base_url, f"/v1/runs/{run.id}/stream?starting_after=0")
    await again.read_events(1)
    await asyncio.sleep(2.2)  # the grace and more
    assert run.state is RunState.STREAMING
    go_on.set()
    await again.read_rest()
    assert [event.id for event in again.events] == ["1", "2", "3", "4"]
    assert run.state is RunState.COMPLETED


async def test_whoever_is_to_continue_is_not_cancelled(rigs, raw_upstream) -> None:
    """x-on-disconnect: continue, at whatever stage the client went."""
    go_on = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await go_on.wait()
        await peer.send(HEAD + chunked(*OK) + LAST)
        await peer.hang()

    upstream = await raw_upstream(play)
    rig = await rigs(upstream, disconnect_grace_s=0.0)
    client = await open_chat(rig.base_url, "m", headers={"x-on-disconnect": "continue"})
    await until(lambda: upstream.peers, DEADLINE_S, "the upstream was asked")
    run = rig.relay().run
    await client.vanish()
    await until(lambda: run.readers == 0, DEADLINE_S, "the client is gone")
    await asyncio.sleep(0.1)
    go_on.set()
    await until(lambda: run.is_over, DEADLINE_S, "it went on to its end")
    assert (run.state, run.window.next_seq) == (RunState.COMPLETED, len(OK))


# --- pausing --------------------------------------------------------------------------------------


async def flood(peer: Peer) -> None:
    await peer.request()
    await peer.send(HEAD + chunked(ROLE))
    for number in range(20_000):
        await peer.send(chunked(numbered(number, 1000)))
    await peer.send(chunked(FINISH, DONE) + LAST)
    await peer.hang()


@pytest.mark.long
async def test_the_upstream_waits_for_the_reader_that_is_furthest_ahead(rigs, raw_upstream) -> None:
    """One that does not read does not hold up one that does; alone it does; and neither is idle."""
    rig = await rigs(await raw_upstream(flood), idle_s=1.0, disconnect_grace_s=30.0)
    slow = await open_chat(rig.base_url, "m", receive_buffer=16 * 1024)
    await slow.read_events(1)
    run = rig.relay().run
    await until(lambda: run.paused_s is not None, DEADLINE_S, "the upstream is paused")
    held = run.window.next_seq
    assert held < 10_000
    await asyncio.sleep(2.0)  # twice idle_s
    assert run.state is RunState.STREAMING
    quick = await Stream.open(rig.base_url, f"/v1/runs/{run.id}/stream")
    await quick.read_all()
    assert run.state is RunState.COMPLETED
    numbers = [event.id for event in quick.events]
    assert numbers == [str(n) for n in range(int(numbers[0] or 0), 20_003)]
    await slow.read_all()  # the window has moved on without it
    assert "read too slowly" in errors(slow)[-1]


async def test_a_slow_reader_gets_every_byte(rigs, raw_upstream) -> None:
    """Paused and resumed many times; the answer is the upstream's, byte for byte."""
    rig = await rigs(await raw_upstream(flood))
    slow = await open_chat(rig.base_url, "m", receive_buffer=16 * 1024)
    for _ in range(20):
        await slow.read_events(len(slow.events) + 50)
        await asyncio.sleep(0.01)
    await slow.read_rest()
    expected = ROLE + b"".join(numbered(n, 1000) for n in range(20_000)) + FINISH + DONE
    assert bytes(slow.body) == expected


async def test_what_is_outbound_is_given_back_when_it_was_read(rigs, raw_upstream) -> None:
    """A reader that catches up is charged for nothing, also when nothing more comes."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(ROLE, *(numbered(n, 1000) for n in range(1500))))
        await peer.hang()

    rig = await rigs(await raw_upstream(play))
    client = await open_chat(rig.base_url, "m", receive_buffer=16 * 1024)
    await until(lambda: rig.gateway.registry.total, DEADLINE_S, "the run is there")
    account = rig.relay().run.account
    await until(lambda: account.entries[Entry.OUTBOUND], DEADLINE_S, "something is outbound")
    await client.read_events(1501)
    await until(lambda: not account.entries[Entry.OUTBOUND], DEADLINE_S, "nothing is outbound")
    assert not rig.relay().run.is_over


# --- what is left --------------------------------------------------------------------------------


@pytest.mark.parametrize("play", ["whole", "refused", "cut", "cancelled", "failed over"])
async def test_a_released_run_goes_without_the_garbage_collector(rigs, raw_upstream, play) -> None:
    """Nothing of a relay lies in a circle: what outlives a full collection is never looked at."""
    plays = {
        "refused": sends(plain(ERROR_BODY, b"400 X")),
        "cut": sends(HEAD + chunked(ROLE, WORD), hang=False),
        "cancelled": sends(HEAD + chunked(ROLE, WORD)),
    }
    second = await raw_upstream(plays.get(play, whole))
    first = await raw_upstream(sends(plain(ERROR_BODY, b"503 X"), hang=False))
    # A clock that was put off is forgotten when its first moment has come.
    soon = {"hold_s": 0.2, "idle_s": 0.4, "stall_s": 1.0}
    has_two = play == "failed over"
    rig = await (rigs(first, second, models=BOTH, **soon) if has_two else rigs(second, **soon))
    model = "both" if has_two else "m"
    gc.collect()
    gc.disable()
    try:
        stream = await open_chat(rig.base_url, model)
        await until(lambda: rig.gateway.registry.total, DEADLINE_S, "it is there")
        relay = weakref.ref(rig.relay())
        if play == "cancelled":
            await stream.read_events(1)
            rig.relay().cancel("cancelled by client")
        await stream.read_all()
        await stream.close()
        await rig.idle()
        rig.gateway.registry.sweep(rig.gateway.loop.time(), finished=True)
        await until(lambda: relay() is None, DEADLINE_S, "the relay has gone")
    finally:
        gc.enable()


# --- faults of our own ----------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["feed", "feed_end", "begin_attempt"])
async def test_a_fault_of_ours_ends_the_run_and_nothing_else(
    rigs, scripted_upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The client is told, the log has it, the upstream is let go, and the next run is served."""
    from tidegate.core.runs.run import Run

    rig = await rigs(scripted_upstream)
    real = getattr(Run, where)
    calls = count()

    def broken(*arguments: object, **more: object) -> object:
        if next(calls) == (1 if where == "feed" else 0):
            raise ZeroDivisionError
        return real(*arguments, **more)

    monkeypatch.setattr(Run, where, broken)
    model = "finish-no-done" if where == "feed_end" else "numbered:5:20"
    answer = await chat(rig.base_url, model)
    assert errors(answer) == ["internal error of tidegate"]
    assert rig.relay().run.state is RunState.FAILED
    assert rig.pool().active == 0
    assert len(rig.errors) == 1
    rig.errors.clear()
    monkeypatch.undo()
    assert bytes((await chat(rig.base_url, "ok")).body) == b"".join(OK)


@pytest.mark.parametrize("kept", [False, True])
async def test_a_request_that_cannot_be_rewritten_leaves_nothing(
    rigs, scripted_upstream: ScriptedUpstream, kept: bool
) -> None:
    """Whether the connection is fresh or kept: no place, no connection, no run stays behind."""
    rig = await rigs(scripted_upstream, models={"m": ["box/ok"]})
    if kept:
        await chat(rig.base_url, "ok")
        assert rig.pool().status().connections == 1
    body = b'{"model":"m","stream":true,"messages":[],"\xff\xfe":1}'
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
    assert head.startswith(b"HTTP/1.1 400 ")
    writer.close()
    await writer.wait_closed()
    await rig.idle()
    assert rig.pool().active == 0
    await let_go(rig.pool())
    await until(lambda: scripted_upstream.connections >= 1, DEADLINE_S, "the fake knows of it")


async def test_a_run_costs_its_record_and_its_body_while_it_waits(rigs, raw_upstream) -> None:
    """Nothing else is charged; the body goes with the first output, for no attempt can follow."""
    go_on = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await go_on.wait()
        await peer.send(HEAD + chunked(ROLE, WORD))
        await peer.hang()

    rig = await rigs(await raw_upstream(play))
    client = await open_chat(rig.base_url, "m", padding="x" * 10_000)
    await until(lambda: rig.pool().active, DEADLINE_S, "it is under way")
    run = rig.relay().run
    assert run.account.total_bytes == RECORD_BYTES + len(run.body)
    assert len(run.body) > 10_000
    go_on.set()
    await client.read_events(2)
    assert run.account.entries[Entry.BODY] == 0
    assert run.body == b""


async def test_the_sweep_is_the_net_beneath_an_end_that_never_comes(
    rigs, raw_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live, lagging and waiting readers are told why; no byte and no connection stays."""
    upstream = await raw_upstream(flood)
    rig = await rigs(upstream, total_s=1.0, grace_s=0.5, disconnect_grace_s=60.0, close_flush_s=2.0)
    monkeypatch.setattr(Relay, "end", lambda *_, **__: None)
    lagging = await open_chat(rig.base_url, "m", receive_buffer=16 * 1024)
    await lagging.read_events(1)
    run = rig.relay().run
    await until(lambda: run.paused_s is not None, DEADLINE_S, "it lags")
    live = await Stream.open(
        rig.base_url, f"/v1/runs/{run.id}/stream?starting_after={run.window.next_seq - 1}"
    )
    await live.head()
    await until(lambda: run.released, DEADLINE_S, "it was swept")
    assert rig.gateway.registry.find(run.id, None) is None
    await live.read_all()
    await lagging.read_all()
    for stream in (live, lagging):
        assert "swept: stuck" in errors(stream)[-1]
        assert stream.clean
    assert run.state is RunState.EXPIRED
    await until(lambda: not rig.held_bytes, DEADLINE_S, "no byte is held")
    await none_left(rig.pool())


def test_what_each_stream_needs_has_no_dictionary() -> None:
    """There are thousands of them: a dictionary costs each 100 bytes and more."""
    kinds = (
        Failover,
        StreamSubscriber,
        UpstreamConnection,
        Run,
        Window,
        Transcript,
    )
    assert [kind.__name__ for kind in kinds if kind.__dictoffset__] == []
