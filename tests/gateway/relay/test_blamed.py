"""Who is blamed, and what is done next: a whole gateway, callers, and upstreams that misbehave."""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256

import pytest
from msgspec.structs import replace

from fakes.client import Stream, get, open_chat
from fakes.client import chat as unlimited_chat
from fakes.machine import until
from fakes.upstream import OK, ScriptedUpstream
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, chunked, plain
from tidegate.core.runs.limits import next_expiry
from tidegate.core.settings import LimitOverrides, Model, Token, Upstream
from tidegate.core.upstreams.blame import Held

ANNE, BERT = "tg-anne", "tg-bert"
TOKENS = [Token(name=key, sha256=sha256(key.encode()).hexdigest()) for key in (ANNE, BERT)]
BOTH = {"both": ["box/m", "box1/ok"]}
BROKEN = plain(b'{"error":{"message":"no pictures here","code":500}}', b"500 X")
WHOLE = HEAD + chunked(*OK) + LAST


async def chat(
    rig: Rig, model: str, *, key: str = "", say: str = "", stream: bool = True
) -> Stream:
    """Asks and reads all of the answer, which comes in time or not at all."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    asked = unlimited_chat(rig.base_url, model, stream=stream, headers=headers, padding=say)
    return await asyncio.wait_for(asked, DEADLINE_S)


def upstream_of(rig: Rig) -> str:
    """Where the newest run was answered."""
    return rig.relay().run.attempt.upstream


async def picky(peer: Peer) -> None:
    """500 to what holds a picture, else an answer."""
    while True:
        await peer.send(BROKEN if b"picture" in await peer.request() else WHOLE)


async def whole(peer: Peer) -> None:
    """An answer to whatever is asked."""
    while True:
        await peer.request()
        await peer.send(WHOLE)


async def json_only(peer: Peer) -> None:
    """A plain answer to whatever is asked."""
    while True:
        await peer.request()
        await peer.send(plain(b'{"choices":[]}'))


async def silent(peer: Peer) -> None:
    """Nothing at all."""
    await peer.hang()


# --- one caller's mistake -------------------------------------------------------------------------


async def test_one_caller_s_picture_sends_nobody_s_prompts_to_the_cloud(rigs, raw_upstream) -> None:
    """However often it is asked, the next caller's prompt goes home."""
    home = await raw_upstream(picky)
    cloud = ScriptedUpstream().start()
    try:
        rig = await rigs(home, Upstream(name="box1", url=cloud.url), models=BOTH, tokens=TOKENS)
        for _ in range(6):
            answer = await chat(rig, "both", key=ANNE, say="picture")
            assert answer.status == 200
            assert upstream_of(rig) == "box1"
        await chat(rig, "both", key=BERT, say="a word")
        assert upstream_of(rig) == "box"
        assert rig.pool("box").state == "ok"
    finally:
        await rig.gateway.close()
        cloud.stop()


@pytest.mark.parametrize(
    "asked",
    [[(ANNE, "picture"), (BERT, "picture")], [(ANNE, "picture"), (ANNE, "another picture")]],
    ids=["two callers", "two bodies"],
)
async def test_what_different_requests_meet_is_the_upstream_s_fault(
    rigs, raw_upstream, asked: list[tuple[str, str]]
) -> None:
    """Three 500s in a row, of two callers or to two bodies, set the model aside."""
    rig = await rigs(
        await raw_upstream(picky), await raw_upstream(whole), models=BOTH, tokens=TOKENS
    )
    for key, say in (*asked, asked[0]):
        await chat(rig, "both", key=key, say=say)
    assert not rig.pool("box").health.may_ask("m", rig.gateway.loop.time())
    await chat(rig, "both", key=BERT, say="a word")
    assert upstream_of(rig) == "box1"


async def test_a_broken_model_is_set_aside_alone(rigs, raw_upstream) -> None:
    """Other models of its upstream are asked as ever; status and models name the one."""
    first = await raw_upstream(lambda peer: _answer_503_to(peer, b'"bad"'))
    second = await raw_upstream(picky)
    rig = await rigs(
        first, second, models={"bad": ["box/bad", "box1/ok"], "good": ["box/good", "box1/ok"]}
    )
    for _ in range(3):
        await chat(rig, "bad")
    await chat(rig, "good")
    assert upstream_of(rig) == "box"
    await chat(rig, "bad")
    assert upstream_of(rig) == "box1"
    status = rig.pool("box").status()
    assert [(each.model, each.why) for each in status.aside] == [("bad", "failures")]
    assert status.state == "ok"
    ((box, _), _) = rig.gateway.catalog.describe(10)
    assert {model.name: model.aside_why for model in box.models} == {"good": "", "bad": "failures"}
    metrics = (await get(rig.base_url, "/metrics")).body.decode()
    assert 'tidegate_upstream_set_aside{upstream="box"} 0.0' in metrics
    assert 'tidegate_upstream_models_set_aside{upstream="box"} 1.0' in metrics


async def _answer_503_to(peer: Peer, word: bytes) -> None:
    while True:
        bad = word in await peer.request()
        await peer.send(plain(b'{"error":{"message":"no"}}', b"503 X") if bad else WHOLE)


async def test_what_cannot_be_reached_is_set_aside_with_all_its_models(rigs, raw_upstream) -> None:
    """Also those that no client has asked for yet."""
    models = {"one": ["box/one", "box1/ok"], "two": ["box/two", "box1/ok"]}
    there = Upstream(name="box1", url=(await raw_upstream(picky)).url)
    rig = await rigs(Upstream(name="box", url="http://127.0.0.1:9"), there, models=models)
    for _ in range(3):
        await chat(rig, "one")
    assert rig.pool("box").state == "set aside"
    await chat(rig, "two")
    assert len(rig.relay().run.attempts) == 1


async def test_a_suspicion_is_looked_into(rigs, raw_upstream, monkeypatch) -> None:
    """Three times one picture, and the upstream does not even list its models: it is broken."""
    monkeypatch.setattr("tidegate.gateway.gateway.PROBE_S", 0.05)
    is_well = True

    async def play(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if request.startswith(b"GET "):
                await peer.send(plain(b'{"data":[]}', b"200 OK" if is_well else b"500 X"))
            else:
                await peer.send(BROKEN)

    rig = await rigs(await raw_upstream(play), await raw_upstream(picky), models=BOTH, peer=True)
    health = rig.pool("box").health
    for _ in range(3):
        await chat(rig, "both", say="picture")
    await until(lambda: not health.wants_probe, DEADLINE_S, "it was looked at")
    assert health.may_ask("m", rig.gateway.loop.time())
    is_well = False
    await chat(rig, "both", say="picture")
    loop = rig.gateway.loop
    await until(lambda: list(health.aside(loop.time())), DEADLINE_S, "it is set aside")


# --- what is back ---------------------------------------------------------------------------------


async def test_an_upstream_that_is_back_is_asked_as_soon_as_a_probe_reaches_it(
    rigs, raw_upstream, monkeypatch
) -> None:
    """Long before its time is over."""
    monkeypatch.setattr("tidegate.gateway.gateway.PROBE_S", 0.05)
    monkeypatch.setattr("tidegate.core.upstreams.breaker.FIRST_ASIDE_S", 3600.0)
    monkeypatch.setattr("tidegate.core.upstreams.breaker.MOST_ASIDE_S", 3600.0)
    home = ScriptedUpstream().start()
    there = await raw_upstream(picky)
    rig = await rigs(
        Upstream(name="box", url=home.url), Upstream(name="box1", url=there.url),
        models=BOTH, peer=True,
    )  # fmt: skip
    try:
        home.refuse()
        for _ in range(3):
            await chat(rig, "both")
        assert rig.pool("box").state == "set aside"
        again = ScriptedUpstream(port=home.port).start()
        try:
            may_ask = rig.pool("box").health.may_ask
            await until(lambda: may_ask("m", rig.gateway.loop.time()), DEADLINE_S, "it was reached")
            await chat(rig, "both")
            assert upstream_of(rig) == "box"
            assert rig.pool("box").state == "ok"
        finally:
            await rig.gateway.close()
            again.stop()
    finally:
        home.stop()


# --- when to come again ---------------------------------------------------------------------------


def limited(*fields: bytes, first: int = 1_000_000):
    """A play: 429 with these fields to the first so many requests of all connections."""
    asked = 0

    async def play(peer: Peer) -> None:
        nonlocal asked
        while True:
            await peer.request()
            asked += 1
            if asked <= first:
                await peer.send(plain(b'{"error":{"message":"slow down"}}', b"429 X", *fields))
            else:
                await peer.send(WHOLE)

    return play


@pytest.mark.parametrize("stream", [True, False])
async def test_a_wait_that_does_not_fit_is_passed_on_as_it_came(
    rigs, raw_upstream, stream: bool
) -> None:
    """Twelve seconds are more than hold_s: the 429 with its header, and no 200 with an error."""
    upstream = await raw_upstream(limited(b"Retry-After: 12"))
    rig = await rigs(upstream, hold_s=5.0)
    answer = await chat(rig, "m", stream=stream)
    assert answer.status == 429
    assert answer.headers["retry-after"] == "12"
    assert answer.json() == {"error": {"message": "slow down"}}


async def test_a_wait_that_fits_is_waited_for(rigs, raw_upstream) -> None:
    """And then the answer is whole."""
    rig = await rigs(await raw_upstream(limited(b"Retry-After: 1", first=1)), hold_s=30.0)
    assert bytes((await chat(rig, "m")).body) == b"".join(OK)
    assert rig.relay().run.attempt.tries == 2


@pytest.mark.parametrize("said", [b"60", b"9" * 5000, b"Sun, 06 Nov 2044 08:49:37 GMT"])
async def test_who_said_when_to_come_again_is_not_asked_before(
    rigs, raw_upstream, said: bytes
) -> None:
    """The next target answers at once; alone, 429 tells what is left; no refresh shortens it."""
    first = await raw_upstream(limited(b"Retry-After: " + said))
    second = await raw_upstream(picky)
    rig = await rigs(first, second, models=BOTH)
    for attempts in (2, 1, 1):
        await chat(rig, "both")
        assert len(rig.relay().run.attempts) == attempts
    rig.pool("box").reached(is_well=True)
    answer = await chat(rig, "box/m")
    assert answer.status == 429
    assert 50 <= int(answer.headers["retry-after"]) <= (60 if said == b"60" else 120)
    error = json.loads(answer.body)["error"]
    assert error["message"].startswith('upstream "box" wants to hear nothing for')
    assert not rig.relay().run.attempts
    assert rig.pool("box").status().aside[0].why == "retry-after"


async def test_when_all_want_to_be_left_alone_the_shortest_time_is_told(rigs, raw_upstream) -> None:
    """429, in the shape of the format, and no upstream is asked."""
    first = await raw_upstream(limited(b"Retry-After: 90"))
    second = await raw_upstream(limited(b"Retry-After: 40"))
    rig = await rigs(first, second, models=BOTH)
    answer = await chat(rig, "both")
    assert (answer.status, answer.headers["retry-after"]) == (429, "40")
    asked = len(first.peers) + len(second.peers)
    body = {"model": "both", "messages": [], "max_tokens": 1}
    again = await asyncio.wait_for(get(rig.base_url, "/v1/messages", body), DEADLINE_S)
    assert again.status == 429
    assert int(again.headers["retry-after"]) <= 40
    assert again.json()["error"]["type"] == "rate_limit_error"  # type: ignore[index,call-overload]
    assert len(first.peers) + len(second.peers) == asked


async def test_a_short_time_that_others_were_told_is_waited_for(rigs, raw_upstream) -> None:
    """The second request does not ask before; it fits into its hold_s, so it waits."""
    rig = await rigs(await raw_upstream(limited(b"Retry-After: 1", first=1)), hold_s=0.0)
    assert (await chat(rig, "m")).status == 429
    rig.reload(_with_hold(rig, 30.0))
    assert bytes((await chat(rig, "m")).body) == b"".join(OK)
    assert rig.relay().run.attempt.tries == 1


def _with_hold(rig: Rig, hold_s: float):
    return replace(rig.settings, limits=replace(rig.settings.limits, hold_s=hold_s))


@pytest.mark.parametrize("said", [b"soon", b"-5", b"1e9", b"", b"Sun, 99 Nov 2026 08:49:37 GMT"])
async def test_a_strange_retry_after_holds_nothing_up(rigs, raw_upstream, said: bytes) -> None:
    """It is passed on, and the upstream is asked again by the next request."""
    rig = await rigs(await raw_upstream(limited(b"Retry-After: " + said, first=1)))
    assert (await chat(rig, "m")).status == 429
    assert (await chat(rig, "m")).status == 200


async def test_a_client_that_goes_while_it_waits_leaves_nothing(rigs, raw_upstream) -> None:
    """Whether the first target or none has said when to come again."""
    rig = await rigs(await raw_upstream(limited(b"Retry-After: 9")), hold_s=30.0)
    for _ in range(2):
        client = await open_chat(rig.base_url, "m")
        total = rig.gateway.registry.total
        await until(lambda t=total: rig.gateway.registry.total >= t, DEADLINE_S, "it is there")
        await until(lambda: rig.gateway.registry.active_count, DEADLINE_S, "it waits")
        await client.vanish()
        await until(lambda: not rig.gateway.registry.active_count, DEADLINE_S, "it is gone")


# --- once more ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("script", ["times:1:500", "times:2:500"])
async def test_one_500_at_the_last_target_is_asked_once_more(
    rigs, scripted_upstream: ScriptedUpstream, script: str, stream: bool
) -> None:
    """And only once; with another target left that one is asked instead."""
    rig = await rigs(
        scripted_upstream, scripted_upstream, models={"both": [f"box/{script}", "box1/ok"]}
    )
    answer = await chat(rig, f"box/{script}", stream=stream)
    assert answer.status == (200 if script == "times:1:500" else 500)
    assert len(scripted_upstream.seen(script)) == 2
    scripted_upstream.tried.clear()
    assert (await chat(rig, "both", stream=stream)).status == 200
    assert len(scripted_upstream.seen(script)) == 3
    assert len(scripted_upstream.seen("ok")) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_told_of_the_try_once_more_is_what_came_of_it(
    rigs, raw_upstream, monkeypatch, stream: bool
) -> None:
    """A 500 and then nothing: both are named, and the time is that of both."""
    monkeypatch.setattr("tidegate.gateway.relay.failover.ONCE_MORE_S", 0.01)
    asked = 0

    async def play(peer: Peer) -> None:
        nonlocal asked
        while True:
            await peer.request()
            asked += 1
            if asked == 1:
                await peer.send(BROKEN)
            else:
                await peer.hang()

    rig = await rigs(await raw_upstream(play), first_output_s=1.0, plain_s=1.0)
    answer = await chat(rig, "m", stream=stream)
    assert (answer.status, asked) == (504, 2)
    message = answer.json()["error"]["message"]  # type: ignore[index,call-overload]
    assert message.startswith('upstream "box" answered 500, ')
    what = "output for 1 s" if stream else "whole answer within plain_s = 1 s"
    assert f" after the request; asked again, it sent no {what} in all; " in message


# --- a plain answer -------------------------------------------------------------------------------


async def test_a_silent_target_is_left_in_time_and_blamed(rigs, raw_upstream) -> None:
    """plain_s fails over, and three times of it set the target aside."""
    home, there = await raw_upstream(silent), await raw_upstream(json_only)
    limits = LimitOverrides(plain_s=0.2)
    rig = await rigs(
        Upstream(name="box", url=home.url, limits=limits), Upstream(name="box1", url=there.url),
        models=BOTH,
    )  # fmt: skip
    for _ in range(3):
        assert (await chat(rig, "both", stream=False)).status == 200
    reason = 'upstream "box" sent no whole answer within plain_s = 0.2 s'
    assert (rig.pool("box").state, rig.pool("box").last_error) == ("set aside", reason)
    await until(lambda: all(peer.gone for peer in home.peers), DEADLINE_S, "each was let go")


@pytest.mark.long
async def test_a_slow_target_that_answers_others_is_not_blamed(rigs, raw_upstream) -> None:
    """A plain answer that came within the time says that it is at work."""

    async def play(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if b"large" in request:
                await peer.hang()
                return
            await peer.send(plain(b'{"choices":[]}'))

    rig = await rigs(await raw_upstream(play), plain_s=1.0)
    for _ in range(3):
        large = asyncio.ensure_future(chat(rig, "m", say="large", stream=False))
        await until(lambda: rig.gateway.registry.active_count, DEADLINE_S, "it is under way")
        assert (await chat(rig, "m", stream=False)).status == 200
        assert (await large).status == 504
    assert not rig.pool().health.is_aside


# --- equals ---------------------------------------------------------------------------------------


class Desk:
    """An upstream that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()

    async def play(self, peer: Peer) -> None:
        while True:
            await peer.request()
            self.asked += 1
            await self.may_answer.wait()
            await peer.send(WHOLE)


async def desks(rigs, raw_upstream, number: int, targets, **limits) -> tuple[Rig, list[Desk]]:
    """A gateway before so many desks with one place each: "a", "b", …."""
    made = [Desk() for _ in range(number)]
    ups = [
        Upstream(name="abc"[place], url=(await raw_upstream(desk.play)).url, max_concurrent=1)
        for place, desk in enumerate(made)
    ]
    rig = await rigs(*ups, models=[Model(name="m", targets=targets)], **limits)
    return rig, made


async def test_the_first_equal_with_a_free_place_is_asked(rigs, raw_upstream) -> None:
    """Two requests, two machines: each has one."""
    rig, (a, b) = await desks(rigs, raw_upstream, 2, [["a/x", "b/x"]])
    for _ in range(2):
        await open_chat(rig.base_url, "m")
    await until(lambda: (a.asked, b.asked) == (1, 1), DEADLINE_S, "both are at work")
    a.may_answer.set()
    b.may_answer.set()
    await rig.idle()


async def test_a_busy_level_sends_nothing_to_the_next(rigs, raw_upstream) -> None:
    """What waits for home waits for home, and the cloud sees none of it."""
    rig, (a, b, cloud) = await desks(rigs, raw_upstream, 3, [["a/x", "b/x"], "c/x"])
    streams = [await open_chat(rig.base_url, "m") for _ in range(5)]
    await until(lambda: rig.gateway.registry.total == 5, DEADLINE_S, "all have come")
    await until(lambda: (a.asked, b.asked) == (1, 1), DEADLINE_S, "both are at work")
    assert [rig.pool(name).status().queued for name in "abc"] == [3, 3, 0]
    a.may_answer.set()
    b.may_answer.set()
    for stream in streams:
        await stream.read_all()
        assert bytes(stream.body) == b"".join(OK)
    assert cloud.asked == 0
    assert a.asked + b.asked == 5


async def test_whichever_equal_is_free_first_takes_the_longest_waiting(rigs, raw_upstream) -> None:
    """The others' queues are left, and the order of coming is kept."""
    rig, (a, b) = await desks(rigs, raw_upstream, 2, [["a/x", "b/x"]])
    streams = [await open_chat(rig.base_url, "m")]
    for number in range(2, 5):
        streams.append(await open_chat(rig.base_url, "m"))
        await until(lambda n=number: rig.gateway.registry.total == n, DEADLINE_S, "it has come")
    await until(lambda: rig.pool("a").status().queued == 2, DEADLINE_S, "two wait")
    third, fourth = (relay.run for relay in rig.gateway.registry.active()[2:])
    b.may_answer.set()
    await until(lambda: third.is_over and fourth.is_over, DEADLINE_S, "the free one took both")
    assert [run.attempt.upstream for run in (third, fourth)] == ["b", "b"]
    assert third.ended_s <= fourth.ended_s
    assert [rig.pool(name).status().queued for name in "ab"] == [0, 0]
    a.may_answer.set()
    await rig.idle()


async def test_a_level_that_stays_busy_is_told_after_queue_s(rigs, raw_upstream) -> None:
    """All of its queues are left, the reason names each, and the next level is not asked."""
    targets = [["a/x", "b/x"], "c/x"]
    rig, (a, b, cloud) = await desks(rigs, raw_upstream, 3, targets, queue_s=0.3)
    cloud.may_answer.set()
    for _ in range(2):
        await open_chat(rig.base_url, "m")
    await until(lambda: (a.asked, b.asked) == (1, 1), DEADLINE_S, "both are at work")
    for behind in (True, False):
        answer = await chat(rig, "m")
        assert answer.status == 503
        assert "retry-after" in answer.headers
        message = answer.json()["error"]["message"]  # type: ignore[index,call-overload]
        assert message.startswith('upstreams "a" and "b" had no free place within queue_s = 0.3 s')
        assert "raise limits.queue_s or the upstream's max_concurrent" in message
        assert ("asked only when it fails" in message) is behind
        assert [rig.pool(name).status().queued for name in "ab"] == [0, 0]
        rig.reload(_with_targets(rig, [["a/x", "b/x"]]))
    assert cloud.asked == 0
    a.may_answer.set()
    b.may_answer.set()
    await rig.idle()


def _with_targets(rig: Rig, targets):
    return replace(rig.settings, models=[Model(name="m", targets=targets)])


@pytest.mark.parametrize("queue_s", [60.0, 0.5])
async def test_a_full_home_sends_no_prompt_to_the_cloud(rigs, raw_upstream, queue_s: float) -> None:
    """One is answered, one waits, and of three more none leaves the house, streamed or not."""
    limits = {"max_queued": 1, "queue_s": queue_s}
    rig, (home, cloud) = await desks(rigs, raw_upstream, 2, ["a/x", "b/x"], **limits)
    cloud.may_answer.set()
    first = await open_chat(rig.base_url, "m")
    await until(lambda: home.asked == 1, DEADLINE_S, "home is busy")
    waiting = await open_chat(rig.base_url, "m")
    await until(lambda: rig.pool("a").status().queued == 1, DEADLINE_S, "its queue is full")
    answers = await asyncio.gather(*(chat(rig, "m", stream=each) for each in (True, True, False)))
    for answer in answers:
        assert answer.status == 503
        assert "retry-after" in answer.headers
        error = answer.json()["error"]
        if queue_s == 0.5:  # a busy machine may be slow enough for a place in the queue
            assert error["code"] in {"queue_full", "queue_s"}  # type: ignore[index,call-overload]
            continue
        assert error["code"] == "queue_full"  # type: ignore[index,call-overload]
        message = error["message"]  # type: ignore[index,call-overload]
        assert message.startswith(
            'upstream "a" is busy: 1 active, 1 waiting (limits.max_queued = 1); '
            "the targets behind it are asked only when it fails (put equals into an inner list"
        )
        assert message.endswith("raise limits.max_queued or the upstream's max_concurrent")
    if queue_s == 0.5:
        await waiting.read_all()
        assert waiting.status == 503
        assert b"queue_s = 0.5 s" in waiting.body
    assert (home.asked, cloud.asked, rig.pool("a").state) == (1, 0, "unknown")
    home.may_answer.set()
    for stream in (first,) if queue_s == 0.5 else (first, waiting):
        await stream.read_all()
        assert bytes(stream.body) == b"".join(OK)
    assert cloud.asked == 0


async def test_a_level_is_full_only_when_all_of_its_equals_are(rigs, raw_upstream) -> None:
    """Where one of them has room in its queue, that one is waited for."""
    made = [Desk(), Desk(), Desk()]
    urls = [(await raw_upstream(desk.play)).url for desk in made]
    none = LimitOverrides(max_queued=0)
    rig = await rigs(
        Upstream(name="a", url=urls[0], max_concurrent=1, limits=none),
        Upstream(name="b", url=urls[1], max_concurrent=1),
        Upstream(name="c", url=urls[2]),
        models=[Model(name="m", targets=[["a/x", "b/x"], "c/x"])],
    )
    streams = [await open_chat(rig.base_url, "m") for _ in range(3)]
    await until(lambda: rig.pool("b").status().queued == 1, DEADLINE_S, "one waits")
    assert rig.pool("a").status().queued == 0
    for desk in made:
        desk.may_answer.set()
    for stream in streams:
        await stream.read_all()
    assert made[2].asked == 0


async def test_who_waits_for_what_fails_meanwhile_goes_on(rigs, raw_upstream) -> None:
    """A home that was set aside while it was waited for has failed, and is not merely busy."""
    rig, (home, cloud) = await desks(rigs, raw_upstream, 2, ["a/x", "b/x"])
    cloud.may_answer.set()
    first = await open_chat(rig.base_url, "m")
    await until(lambda: home.asked == 1, DEADLINE_S, "home is busy")
    waiting = await open_chat(rig.base_url, "m")
    await until(lambda: rig.pool("a").status().queued == 1, DEADLINE_S, "one waits")
    for _ in range(3):
        rig.pool("a").failed("x", "broken", Held.TARGET)
    relay = rig.gateway.registry.active()[1]
    expiry = next_expiry(relay.run)
    assert expiry is not None
    assert expiry.limit == "queue_s"
    relay.expire(expiry)
    await waiting.read_all()
    assert bytes(waiting.body) == b"".join(OK)
    assert (home.asked, cloud.asked) == (1, 1)
    home.may_answer.set()
    await first.read_all()


async def test_an_equal_that_fails_is_followed_by_its_equal(rigs, raw_upstream) -> None:
    """Only then the next level is asked; one that is set aside is passed by."""
    dead = Upstream(name="a", url="http://127.0.0.1:9")
    others = [Upstream(name=name, url=(await raw_upstream(picky)).url) for name in "bc"]
    rig = await rigs(dead, *others, models=[Model(name="m", targets=[["a/x", "b/x"], "c/x"])])
    for attempts in (2, 2, 2, 1):
        await chat(rig, "m")
        tried = [attempt.upstream for attempt in rig.relay().run.attempts]
        assert tried == ["a", "b"][-attempts:]


async def test_two_models_of_one_upstream_may_be_equals(rigs, raw_upstream) -> None:
    """Who waits for both stands in its queue once."""
    rig, (a,) = await desks(rigs, raw_upstream, 1, [["a/x", "a/y"]])
    for _ in range(2):
        await open_chat(rig.base_url, "m")
    await until(lambda: rig.pool("a").status().queued == 1, DEADLINE_S, "one waits")
    a.may_answer.set()
    await rig.idle()
    assert a.asked == 2


async def test_a_client_that_goes_leaves_every_queue(rigs, raw_upstream) -> None:
    """Its turn goes to the next one, wherever it would have come."""
    rig, (a, b) = await desks(rigs, raw_upstream, 2, [["a/x", "b/x"]])
    for _ in range(2):
        await open_chat(rig.base_url, "m")
    await until(lambda: (a.asked, b.asked) == (1, 1), DEADLINE_S, "both are at work")
    client = await open_chat(rig.base_url, "m")
    await until(lambda: rig.pool("b").status().queued, DEADLINE_S, "it waits")
    await client.vanish()
    await until(
        lambda: not (rig.pool("a").status().queued or rig.pool("b").status().queued),
        DEADLINE_S,
        "it waits no longer",
    )
    a.may_answer.set()
    b.may_answer.set()
    await rig.idle()


# --- our own mistakes -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 402, 403])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_refused_key_is_ours_and_is_said_to_be(
    rigs, raw_upstream, status: int, stream: bool
) -> None:
    """502 that names where the key is, never the key; shown until there is a good answer."""
    refuses = True

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            said = b'{"error":{"message":"Incorrect API key provided: sk-secret","code":"bad_key"}}'
            await peer.send(plain(said, b"%d X" % status) if refuses else WHOLE)

    url = (await raw_upstream(play)).url
    cloud = Upstream(name="cloud", url=url, api_key_env="CLOUD_KEY")
    rig = await rigs(cloud, secrets={"cloud": "sk-secret"})
    answer = await chat(rig, "m", stream=stream)
    assert answer.status == 502
    assert answer.headers["x-should-retry"] == "false"
    message = answer.json()["error"]["message"]  # type: ignore[index,call-overload]
    assert message.startswith('upstream "cloud" ')
    assert "the key of this gateway" in message or "this gateway's key" in message
    assert "(api_key_env CLOUD_KEY)" in message
    assert b"sk-secret" not in answer.body
    (refusal,) = rig.pool("cloud").status().refusals
    assert (refusal.model, "(api_key_env CLOUD_KEY)" in refusal.text) == ("", True)
    refuses = False
    assert (await chat(rig, "m")).status == 200
    assert rig.pool("cloud").status().refusals == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fields", "should_retry"),
    [([], "false"), ([b"Retry-After: 1"], "false"), ([b"x-should-retry: true"], "true")],
)
async def test_an_account_without_credit_is_ours_and_told_as_it_came(
    rigs, raw_upstream, stream: bool, fields: list[bytes], should_retry: str
) -> None:
    """The 429 is passed on, calls for no retry, and is a repair; the next target answers."""
    asked = 0
    said = b'{"error":{"message":"You exceeded your current quota","code":"insufficient_quota"}}'

    async def play(peer: Peer) -> None:
        nonlocal asked
        while True:
            await peer.request()
            asked += 1
            await peer.send(plain(said, b"429 X", *fields))

    cloud = Upstream(name="cloud", url=(await raw_upstream(play)).url, api_key_env="CLOUD_KEY")
    there = await raw_upstream(whole if stream else json_only)
    rig = await rigs(
        cloud, Upstream(name="box", url=there.url),
        models={"both": ["cloud/m", "box/m"]}, secrets={"cloud": "sk-secret"}, hold_s=30.0,
    )  # fmt: skip
    answer = await chat(rig, "cloud/m", stream=stream)
    assert (answer.status, bytes(answer.body), asked) == (429, said, 1)
    assert answer.headers["x-should-retry"] == should_retry
    (refusal,) = rig.pool("cloud").status().refusals
    assert refusal.text == (
        "has no credit left for the owner of this gateway's key (api_key_env CLOUD_KEY)"
    )
    assert not rig.pool("cloud").health.is_aside
    assert (await chat(rig, "both", stream=stream)).status == 200
    assert len(there.peers) == 1


async def test_a_target_that_is_missing_is_ours_and_a_made_up_name_is_not(
    rigs, scripted_upstream: ScriptedUpstream
) -> None:
    """Through an alias 502 and a repair; a name of the client's own is its own 404."""
    rig = await rigs(scripted_upstream, models={"fast": ["box/no-model"]})
    answer = await chat(rig, "fast")
    assert answer.status == 502
    message = answer.json()["error"]["message"]  # type: ignore[index,call-overload]
    assert 'upstream "box" has no model "no-model"' in message
    (refusal,) = rig.pool().status().refusals
    assert refusal.model == "no-model"
    for name in ("no-model", "box/no-model"):
        answer = await chat(rig, name)
        assert answer.status == 404
        assert answer.json()["error"]["code"] == "model_not_found"  # type: ignore[index,call-overload]
