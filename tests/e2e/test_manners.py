"""Manners on the wire: when the status is sent, how answers end, who is waited for and how long."""

import asyncio

import pytest

from fakes.client import chat, get, numbers, open_chat, words
from fakes.gateway import Gateway
from fakes.machine import until
from fakes.scenario import toml, wait_idle
from fakes.upstream import OK, ScriptedUpstream

KEEPALIVE = b": tidegate\n"


async def test_a_clean_answer_keeps_its_bytes(running: Gateway) -> None:
    """Every event's bytes are the upstream's; the head says what proxies must not do."""
    for model in ("ok", "one-byte"):
        answer = await chat(running.base_url, model)
        assert bytes(answer.body) == b"".join(OK)
        assert answer.clean
    crlf = await chat(running.base_url, "crlf")
    assert bytes(crlf.body) == b"".join(OK).replace(b"\n", b"\r\n")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in answer.headers
    assert b"\nid:" not in answer.body


async def test_a_plain_answer_is_passed_on(gateway, scripted_upstream: ScriptedUpstream) -> None:
    """What is no stream comes whole, however long it takes: only total_s applies to it."""
    running = gateway(
        toml(("box", scripted_upstream.url), limits="first_output_s = 0.3\nidle_s = 0.3")
    )
    answer = await chat(running.base_url, "slow-json:1000", stream=False)
    assert (answer.status, answer.clean) == (200, True)
    assert answer.json()["choices"][0]["message"]["content"] == "one two three"  # type: ignore[index]


@pytest.mark.parametrize(
    "model",
    ["drop:3", "reset:3", "no-terminal:3", "huge-event"],
)
async def test_a_broken_answer_never_ends_like_a_whole_one(
    running: Gateway, upstream: ScriptedUpstream, model: str
) -> None:
    """Death in the middle is an error event that names the upstream, and no marker after it."""
    answer = await chat(running.base_url, model)
    assert answer.status == 200
    *whole, last = answer.events
    assert numbers(whole) == list(range(len(whole) - 1))
    assert last.error is not None
    assert 'upstream "box"' in last.error["message"]
    assert {"message", "type", "param", "code"} <= set(last.error)
    assert b"[DONE]" not in answer.body
    shown = (await get(running.base_url, f"/v1/runs/{answer.run_id}")).json()
    assert shown["state"] == "failed"  # type: ignore[index]
    reason, _, advice = last.error["message"].partition("; ")
    assert shown["reason"] == reason  # type: ignore[index]
    assert advice
    await until(lambda: upstream.open_connections == 0, 6, "the upstream was let go")


async def test_an_error_in_the_middle_is_passed_on_and_nothing_is_added(running: Gateway) -> None:
    """The upstream's own error event stays the last one, and the run has failed."""
    answer = await chat(running.base_url, "error-middle")
    assert answer.events[-1].error is not None
    assert "overloaded" in answer.events[-1].error["message"]
    assert b"[DONE]" not in answer.body
    shown = (await get(running.base_url, f"/v1/runs/{answer.run_id}")).json()
    assert shown["state"] == "failed"  # type: ignore[index]


async def test_a_finish_reason_is_an_end(running: Gateway) -> None:
    """An upstream that forgets the marker has answered all the same."""
    answer = await chat(running.base_url, "finish-no-done")
    assert answer.clean
    assert words(answer.events) == ["one ", "two ", "three"]
    shown = (await get(running.base_url, f"/v1/runs/{answer.run_id}")).json()
    assert shown["state"] == "completed"  # type: ignore[index]


@pytest.mark.parametrize(
    ("model", "statuses"),
    [
        ("status:400", {400}),
        ("status:401", {401, 502}),
        ("status:404", {404}),
        ("status:413", {413}),
        ("status:422", {422}),
        ("status:429", {429}),
        ("status:500", {500, 502}),
        ("status:503", {503, 502}),
        ("error-first", {500, 502, 503}),
        ("garbage", {502}),
        ("big-head", {502}),
    ],
)
async def test_before_the_first_output_a_failure_is_a_status(
    running: Gateway, model: str, statuses: set[int]
) -> None:
    """Nothing was committed yet, so the client gets a true status and an error body, no stream."""
    answer = await chat(running.base_url, model)
    assert answer.status in statuses, bytes(answer.body)
    assert answer.json()["error"]["message"]  # type: ignore[index]
    assert answer.clean
    await wait_idle_but_for_finished(running)


async def wait_idle_but_for_finished(running) -> None:  # type: ignore[no-untyped-def]
    await until(lambda: running.status()["runs"]["active"] == 0, 5, "no run is active", 0.2)


async def test_the_status_is_held_until_the_first_output(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """A role is no output: the head comes with the first word, both in one go."""
    running = gateway(toml(("box", scripted_upstream.url), limits="hold_s = 20.0"))
    stream = await open_chat(running.base_url, "wait:700")
    await until(lambda: scripted_upstream.seen("wait:700"), 5, "the upstream was asked")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.reader.read(1), 0.3)
    await stream.read_all()
    assert stream.status == 200
    assert bytes(stream.body) == b"".join(OK)
    await stream.close()


async def test_after_the_hold_keepalives_fill_the_silence(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """The head comes after hold_s, comments follow, and failing over is possible all the while."""
    other = ScriptedUpstream().start()
    try:
        running = gateway(
            toml(
                ("slow", scripted_upstream.url),
                ("quick", other.url),
                limits="hold_s = 0.2\nkeepalive_s = 0.1\nfirst_output_s = 1.0",
                rest='\n[[model]]\nname = "both"\ntargets = ["slow/silent", "quick/ok"]\n',
            )
        )
        stream = await open_chat(running.base_url, "both")
        await asyncio.wait_for(stream.head(), 5)
        assert stream.status == 200
        assert other.requests == [] or not other.seen("ok")
        await stream.read_rest()
        await stream.close()
        assert bytes(stream.body).count(KEEPALIVE) >= 3
        assert bytes(stream.body).replace(KEEPALIVE, b"") == b"".join(OK)
        again = await get(running.base_url, f"/v1/runs/{stream.run_id}/stream")
        assert KEEPALIVE not in again.body
    finally:
        other.stop()


async def test_keepalives_do_not_reset_the_idle_clock(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """Neither our comments nor the upstream's count as progress: idle_s ends the answer."""
    running = gateway(
        toml(("box", scripted_upstream.url), limits="keepalive_s = 0.1\nidle_s = 0.8")
    )
    for model in ("stuck:1", "comments"):
        answer = await asyncio.wait_for(chat(running.base_url, model), 10)
        last = answer.events[-1].error
        assert last is not None
        assert "idle for 0.8 s" in last["message"]
        assert bytes(answer.body).count(KEEPALIVE) >= 3
        assert b"still here" not in answer.body
    shown = (await get(running.base_url, f"/v1/runs/{answer.run_id}")).json()
    assert shown["state"] == "expired"  # type: ignore[index]


@pytest.mark.parametrize(
    ("first", "limits"),
    [
        ("status:500", ""),
        ("status:503", ""),
        ("status:408", ""),
        ("error-first", ""),
        ("garbage", ""),
        ("drop:0", ""),
        ("silent", "first_output_s = 0.5"),
        ("headers-then-silent", "first_output_s = 0.5"),
        ("wait:60000", "first_output_s = 0.5"),
    ],
)
async def test_a_failure_before_the_first_output_fails_over(
    gateway, scripted_upstream: ScriptedUpstream, first: str, limits: str
) -> None:
    """The next upstream answers, whole and alone; the first one is let go."""
    other = ScriptedUpstream().start()
    try:
        running = gateway(
            toml(
                ("one", scripted_upstream.url),
                ("two", other.url),
                limits=limits,
                rest=f'\n[[model]]\nname = "both"\ntargets = ["one/{first}", "two/ok"]\n',
            )
        )
        answer = await chat(running.base_url, "both")
        assert answer.status == 200
        assert bytes(answer.body) == b"".join(OK)
        shown = (await get(running.base_url, f"/v1/runs/{answer.run_id}")).json()
        assert shown["upstream"] == "two"  # type: ignore[index]
        assert shown["attempts"] >= 2  # type: ignore[index]
        await until(lambda: scripted_upstream.active == 0, 3, "the first upstream was let go")
        assert other.seen("ok")[0].finished
    finally:
        other.stop()


@pytest.mark.parametrize("code", [400, 413, 422])
async def test_a_mistake_of_the_client_does_not_fail_over(
    gateway, scripted_upstream: ScriptedUpstream, code: int
) -> None:
    """What another upstream would refuse too is passed on untouched."""
    other = ScriptedUpstream().start()
    try:
        running = gateway(
            toml(
                ("one", scripted_upstream.url),
                ("two", other.url),
                rest=f'\n[[model]]\nname = "both"\ntargets = ["one/status:{code}", "two/ok"]\n',
            )
        )
        answer = await chat(running.base_url, "both")
        assert answer.status == code
        assert answer.json()["error"]["message"] == f"the fake says {code}"  # type: ignore[index]
        assert not other.seen("ok")
    finally:
        other.stop()


async def test_a_stale_connection_is_not_the_upstreams_fault(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """A kept-alive connection that closes under the next request is replaced without a word."""
    running = gateway(toml(("box", scripted_upstream.url)))
    for _ in range(6):
        answer = await chat(running.base_url, "close-reused")
        assert answer.status == 200
        assert bytes(answer.body) == b"".join(OK)
    assert scripted_upstream.connections >= 2


async def test_a_slow_reader_gets_everything_and_holds_little(
    running: Gateway, upstream: ScriptedUpstream
) -> None:
    """The upstream waits for it: the ledger stays small, and not one event is lost."""
    megabytes = 24
    model = f"bulk:{megabytes * 1000}"
    stream = await open_chat(running.base_url, model, receive_buffer=16 * 1024)
    await stream.read_events(10)
    (seen,) = upstream.seen(model)

    held = []
    before = -1
    while seen.sent_bytes != before:  # until the upstream can send no more
        before = seen.sent_bytes
        held.append(running.status()["memory"]["ledger_bytes"])
        await asyncio.sleep(0.5)
    assert seen.sent_bytes < megabytes * 1_000_000 / 2
    assert max(held) < 8 * 1024 * 1024
    await stream.read_rest()
    await stream.close()
    assert numbers(stream.events) == list(range(megabytes * 1000))
    assert stream.events[-1].data == b"[DONE]"


async def test_a_client_that_never_reads_is_dropped(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """Without progress for stall_s it goes, its upstream is let go, and no byte stays."""
    running = gateway(
        toml(
            ("box", scripted_upstream.url),
            limits=(
                "stall_s = 1.0\nclose_flush_s = 0.5\ndisconnect_grace_s = 0.2\n"
                "keep_finished_s = 0.0"
            ),
        )
    )
    stream = await open_chat(running.base_url, "bulk:60000", receive_buffer=16 * 1024)
    await until(lambda: scripted_upstream.seen("bulk:60000"), 5, "the upstream was asked")
    await until(lambda: scripted_upstream.active == 0, 8, "the upstream was let go")
    assert not scripted_upstream.seen("bulk:60000")[0].finished
    await wait_idle(running, scripted_upstream)
    await stream.vanish()


@pytest.mark.parametrize("stage", ["waiting for headers", "streaming", "plain"])
async def test_a_client_that_goes_away_takes_its_upstream_along(
    gateway, scripted_upstream: ScriptedUpstream, stage: str
) -> None:
    """With no grace the upstream is let go within a second, at whatever stage."""
    running = gateway(
        toml(("box", scripted_upstream.url), limits="disconnect_grace_s = 0.0\nhold_s = 60.0")
    )
    model = {"waiting for headers": "silent", "streaming": "stuck:10", "plain": "slow-json:60000"}
    name = model[stage]
    stream = await open_chat(running.base_url, name, stream=stage != "plain")
    if stage == "streaming":
        await stream.read_events(5)
    await until(lambda: scripted_upstream.seen(name), 5, "the upstream was asked")
    await stream.vanish()
    await until(lambda: scripted_upstream.active == 0, 1.5, "the upstream was let go")


async def test_a_run_that_is_to_continue_goes_on_without_readers(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """`x-on-disconnect: continue`: the answer is there in full when its reader comes back."""
    running = gateway(toml(("box", scripted_upstream.url), limits="disconnect_grace_s = 0.0"))
    stream = await open_chat(
        running.base_url, "numbered:100:5", headers={"x-on-disconnect": "continue"}
    )
    await stream.read_events(10)
    run = stream.run_id
    await stream.vanish()
    await until(lambda: scripted_upstream.seen("numbered:100:5")[0].finished, 10, "it went on")
    again = await get(running.base_url, f"/v1/runs/{run}/stream")
    assert numbers(again.events) == list(range(100))
