"""What the page is told each second: of whom, how often, and what it costs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from fakes.client import Stream, get, open_chat
from fakes.machine import until
from gateway.gateway_rig import DEADLINE_S, Rig, scoped
from tidegate.core.protocol.news import Deed, MemoryPoint
from tidegate.core.protocol.status import MemoryState
from tidegate.core.protocol.worker import News
from tidegate.core.runs.ledger import Entry
from tidegate.core.settings import MIB
from tidegate.gateway.page import live

MEMORY = MemoryState(
    budget_bytes=1024 * MIB, used_bytes=69 * MIB, ledger_bytes=4 * MIB, unexplained_bytes=5 * MIB
)
POINTS = [MemoryPoint(1000.0 + 10 * n, 60 * MIB + n, MIB, 2 * MIB) for n in range(3)]
SWEPT = Deed(at=1005.0, kind="sweep", text="swept 31 stale answers, 118 MiB back")
LEVEL = Deed(at=1006.0, kind="level", text="memory level 1, was 0")


def news(**changes: Any) -> News:
    known: dict[str, Any] = {
        "state": "serving",
        "memory": MEMORY,
        "flat_s": 6 * 86400.0,
        "listen": ["0.0.0.0:8433"],
    }
    return News(**(known | changes))


def answer_news(rig: Rig, *told: News) -> list[float]:
    """Stand in for the watchdog, which tells `told` in turn; returns since when it is asked."""
    asked: list[float] = []
    waiting = list(told)

    def answer(since: float) -> None:
        asked.append(since)
        rig.gateway.loop.call_soon(rig.gateway.feed.on_news, waiting.pop(0) if waiting else news())

    rig.gateway.ask_news = answer
    return asked


async def watch(rig: Rig, key: str = "", **options: Any) -> Stream:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    stream = await Stream.open(rig.base_url, "/v1/live", headers=headers, **options)
    return await asyncio.wait_for(stream.head(), DEADLINE_S)


async def read(stream: Stream, count: int) -> list[tuple[str, Any]]:
    """The first events, by name."""
    await asyncio.wait_for(stream.read_events(count), DEADLINE_S)
    blocks = bytes(stream.body).decode().split("\n\n")[:count]
    found = []
    for block in blocks:
        name, data = block.split("\n", 1)
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def leave(rig: Rig, *streams: Stream) -> None:
    for stream in streams:
        await stream.vanish()
    await until(lambda: not rig.gateway.feed.watchers, DEADLINE_S, "no page is watched")  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second takes a twentieth."""
    monkeypatch.setattr(live, "EVERY_S", 0.05)


async def test_samples_come_first_and_then_an_overview_each_second(rigs, scripted_upstream) -> None:
    """With what the watchdog knows, split into base, explained and unexplained."""
    rig = await rigs(scripted_upstream, models={"m": ["box/ok"]})
    answer_news(rig, news(points=POINTS, deeds=[SWEPT, LEVEL]))
    stream = await watch(rig)
    assert stream.headers["content-type"].startswith("text/event-stream")
    (first, samples), (second, overview), (third, _) = await read(stream, 3)
    assert (first, second, third) == ("samples", "overview", "overview")
    assert samples["rows"] == [
        [point.at, point.used, point.used - 3 * MIB, MIB, 2 * MIB] for point in POINTS
    ]
    assert [mark["text"] for mark in samples["marks"]] == [SWEPT.text]
    assert overview["health"] == {
        "state": "healthy",
        "sentence": "Healthy. 69 of 1,024 MiB, flat for 6 days, no answers running.",
    }
    memory = overview["memory"]
    parts = ("base_bytes", "explained_bytes", "unexplained_bytes")
    assert sum(memory[part] for part in parts) == memory["used_bytes"] == 69 * MIB
    assert [each["text"] for each in overview["decisions"]] == [LEVEL.text, SWEPT.text]
    assert [each["name"] for each in overview["upstreams"]] == ["box"]
    assert overview["aliases"][0]["name"] == "m"
    assert overview["addresses"]["reachable"] is True
    await leave(rig, stream)


async def test_what_is_new_comes_once(rigs, scripted_upstream) -> None:
    """A point and a mark, as the watchdog tells of them; it is asked for newer ones only."""
    rig = await rigs(scripted_upstream)
    newer = MemoryPoint(1030.0, 61 * MIB, MIB, MIB)
    lost = Deed(at=1031.0, kind="restart", text="worker 1 was lost: signal 9")
    again = news(points=[POINTS[-1], newer], deeds=[SWEPT, lost])
    asked = answer_news(rig, news(points=POINTS, deeds=[SWEPT]), again, again)
    stream = await watch(rig)
    found = await read(stream, 8)
    assert [data[0] for name, data in found if name == "sample"] == [1030.0]
    assert [data["text"] for name, data in found if name == "mark"] == [lost.text]
    assert asked[:2] == [0.0, min(POINTS[-1].at, SWEPT.at)]
    await leave(rig, stream)


async def test_nothing_is_gathered_while_no_page_is_open(rigs, scripted_upstream) -> None:
    """The watchdog is not asked, no task is left, and nothing is charged."""
    rig = await rigs(scripted_upstream)
    asked = answer_news(rig)
    stream = await watch(rig)
    await read(stream, 2)
    assert rig.gateway.registry.ledger.entries[Entry.RECORD] >= live.WATCHER_BYTES
    await leave(rig, stream)
    await until(lambda: not rig.held_bytes, DEADLINE_S, "nothing is charged")
    await asyncio.sleep(3 * live.EVERY_S)
    times = len(asked)
    await asyncio.sleep(5 * live.EVERY_S)
    assert len(asked) == times


async def test_the_sixty_fifth_page_is_refused(rigs, scripted_upstream, monkeypatch) -> None:
    """With a 503 that says what to do; as soon as one leaves there is room."""
    monkeypatch.setattr(live, "MOST_WATCHERS", 3)
    rig = await rigs(scripted_upstream)
    answer_news(rig)
    streams = [await watch(rig) for _ in range(3)]
    refused = await get(rig.base_url, "/v1/live")
    assert (refused.status, json.loads(refused.body)["error"]["code"]) == (503, "too_many_pages")
    assert refused.headers["retry-after"]
    await streams.pop().vanish()
    feed: Any = rig.gateway.feed
    await until(lambda: feed.watchers == 2, DEADLINE_S, "one has left")
    streams.append(await watch(rig))
    assert streams[-1].status == 200
    await leave(rig, *streams)


async def test_each_sees_what_its_token_may(rigs, scripted_upstream) -> None:
    """A client its own answers; a reading token everyone's, none of them its own to cancel."""
    keys = {"a": scoped("tg-a", name="a"), "b": scoped("tg-b", name="b")}
    tokens = [*keys.values(), scoped("tg-r", "read"), scoped("tg-o", "owner")]
    rig = await rigs(scripted_upstream, tokens=tokens)
    answer_news(rig)
    chats = [
        await open_chat(
            rig.base_url, "numbered:500:20", headers={"Authorization": f"Bearer tg-{name}"}
        )
        for name in keys
    ]
    seen: dict[str, Any] = {}
    for key in ("a", "b", "r", "o"):
        stream = await watch(rig, f"tg-{key}")
        overview = (await read(stream, 2))[1][1]
        seen[key] = (
            overview["scope"],
            overview["runs"]["active_total"],
            overview["runs"]["active"],
        )
        await stream.vanish()
    assert [seen[key][:2] for key in seen] == [("use", 1), ("use", 1), ("read", 2), ("owner", 2)]
    assert [run["token"] for run in seen["a"][2]] == ["a"]
    assert seen["a"][2][0]["mine"] is True
    assert {run["token"] for run in seen["r"][2]} == {"a", "b"}
    assert not any(run["mine"] for run in seen["r"][2])
    assert (await get(rig.base_url, "/v1/live")).status == 401
    for each in chats:
        await each.vanish()
    await leave(rig)


async def test_a_draining_worker_ends_the_stream_properly(rigs, scripted_upstream) -> None:
    """So that the page comes back, to the one that serves then; the connection closes with it."""
    rig = await rigs(scripted_upstream)
    answer_news(rig)
    stream = await watch(rig)
    await read(stream, 2)
    rig.gateway.stop_accepting()
    await asyncio.wait_for(stream.read_rest(), DEADLINE_S)
    assert stream.clean
    assert stream.headers["connection"] == "close"


async def test_a_page_whose_token_is_gone_is_told_no_more(rigs, scripted_upstream) -> None:
    """Nor is one that came without a token, once there is any."""
    for tokens, key in (([], ""), ([scoped("tg-a", name="a")], "tg-a")):
        rig = await rigs(scripted_upstream, tokens=tokens)
        answer_news(rig)
        stream = await watch(rig, key)
        await read(stream, 3)
        rig.gateway.registry.token_names = {"another": "b"}  # as a reload sets it
        await asyncio.wait_for(stream.read_rest(), DEADLINE_S)
        assert stream.clean
        await leave(rig, stream)


async def test_what_was_gathered_is_let_go_of(rigs, scripted_upstream) -> None:
    """When the last page is closed; the next one is told all of it again."""
    rig = await rigs(scripted_upstream)
    asked = answer_news(rig, news(points=POINTS, deeds=[SWEPT]))
    stream = await watch(rig)
    await read(stream, 3)
    await leave(rig, stream)
    feed: Any = rig.gateway.feed
    await until(feed._ticker.done, DEADLINE_S, "it gathers no more")
    held = (feed._points, feed._deeds, feed._made, feed._finished, feed._events)
    assert not any(map(len, held))
    answer_news(rig, news(points=POINTS, deeds=[SWEPT]))
    again = await watch(rig)
    samples = (await read(again, 1))[0][1]
    assert (len(samples["rows"]), len(samples["marks"])) == (len(POINTS), 1)
    assert asked[0] == 0.0
    await leave(rig, again)


async def test_a_page_that_reads_nothing_is_cut(rigs, scripted_upstream, monkeypatch) -> None:
    """After `STALL_S`, and all the while what waits for it is bounded."""
    monkeypatch.setattr(live, "STALL_S", 0.3)
    monkeypatch.setattr(live, "EVERY_S", 0.001)
    rig = await rigs(scripted_upstream, models={f"model-{n}": ["box/ok"] for n in range(300)})
    answer_news(rig)
    stream = await watch(rig, receive_buffer=4096)
    most = 0

    def is_cut() -> bool:
        nonlocal most
        most = max(most, rig.held_bytes)
        return not rig.gateway.feed.watchers  # type: ignore[attr-defined]

    await until(is_cut, DEADLINE_S, "it is cut")
    assert most < MIB
    await leave(rig, stream)


async def test_without_a_watchdog_that_tells_anything_it_still_shows_what_it_knows(
    rigs, scripted_upstream
) -> None:
    """A former watchdog is not asked what it does not know."""
    rig = await rigs(scripted_upstream)
    stream = await watch(rig)
    (_, samples), (_, overview) = await read(stream, 2)
    assert samples["rows"] == []
    assert overview["health"]["state"] == "healthy"
    await leave(rig, stream)
