"""The clients: people who read, who vanish, who never read, who come back, who cancel.

Mostly the original fault: model calls that hang until their time limit, first attempts that never
end although another one has answered. A player is one client with one aim; a new one enters
`rate` times a second, chosen by weight, and at most `MOST_AT_ONCE` are there at a time, for the
computer is shared. Each says how it ended, and what must never happen is in `BROKEN`.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field

from fakes.client import Stream, chat_body, numbers, parse_events
from soak.excuses import Excuses

MOST_AT_ONCE = 150
PLAYER_LIMIT_S = 60.0  # every limit of the config is below 10 s, every pause we cause below 15 s
TAIL_BYTES = 8192
_FINISHED = re.compile(rb'"finish_reason":"\w+"')
KEPT_ODDITIES = 30

# How an answer may end. The first ones are what a gateway owes its clients.
WHOLE = "whole"
TOLD = "ended with an error event"
REFUSED = "answered with an error status"
VANISHED = "vanished, by us"
WITH_WORKER = "cut when we killed the worker"
RELEASED = "gone after our sweep of finished runs"
SILENT = "a silent clean end"
CUT = "cut without a word"
GAP = "a gap or a repeat"
LOST = "a run that was lost"
HUNG = "no end within the limit"
BROKEN = (SILENT, CUT, GAP, LOST, HUNG)

# What the player of this task saw last, for the story of one that ended badly.
_last_seen: ContextVar[str] = ContextVar("last_seen", default="nothing")
Player = Callable[["Load"], Awaitable[str]]


@dataclass(eq=False)
class Load:
    """Starts players while it is on; `rest` waits until the last one has gone."""

    base_url: str
    token: str
    rate: float
    excuses: Excuses
    dice: random.Random
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (player, how it ended)
    statuses: Counter[int] = field(default_factory=Counter)
    oddities: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_ODDITIES))
    streams: int = 0
    _players: set[asyncio.Task[None]] = field(default_factory=set)
    _is_on: bool = False
    _entrance: asyncio.Task[None] | None = None

    def go(self) -> None:
        """Let players enter."""
        self._is_on = True
        self._entrance = asyncio.create_task(self._enter())

    async def rest(self) -> None:
        """Let no client enter any more, and wait until all have gone."""
        self._is_on = False
        if self._entrance is not None:
            await self._entrance
            self._entrance = None
        if self._players:
            await asyncio.wait(self._players)
        await asyncio.sleep(0)

    @property
    def playing(self) -> int:
        """Return how many clients there are."""
        return len(self._players)

    @property
    def by_end(self) -> Counter[str]:
        """Count how often each kind of end was seen."""
        ends: Counter[str] = Counter()
        for (_, end), count in self.outcomes.items():
            ends[end] += count
        return ends

    async def _enter(self) -> None:
        """Start a player every 1 / rate seconds; a late one is left out, not made up for."""
        names, weights = list(PLAYERS), [weight for weight, _ in PLAYERS.values()]
        while self._is_on:
            if len(self._players) < MOST_AT_ONCE:
                name = self.dice.choices(names, weights)[0]
                task = asyncio.create_task(self._play(name, PLAYERS[name][1]))
                self._players.add(task)
                task.add_done_callback(self._players.discard)
            await asyncio.sleep(self.dice.expovariate(self.rate))

    async def _play(self, name: str, play: Player) -> None:
        began_s = time.monotonic()
        _last_seen.set("nothing")
        try:
            async with asyncio.timeout(PLAYER_LIMIT_S):
                end = await play(self)
        except TimeoutError:
            end = HUNG
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            _last_seen.set(f"{_last_seen.get()}, then {error!r} in place of a head")
            end = CUT
        if end in (CUT, LOST) and self.excuses.killed(began_s, time.monotonic()):
            end = WITH_WORKER
        if end == LOST and self.excuses.swept(began_s, time.monotonic()):
            end = RELEASED
        self.outcomes[name, end] += 1
        if end in BROKEN:
            took_s = time.monotonic() - began_s
            when = time.strftime("%H:%M:%S")
            seen = _last_seen.get()
            self.oddities.append(f"{when} {name}: {end} after {took_s:.1f} s; last seen: {seen}")

    # --- what players are made of ----------------------------------------------------------------

    async def open(
        self, path: str, body: object = None, *, receive_buffer: int = 0, **headers: str
    ) -> Stream:
        """Ask for something, with the token."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent.setdefault("authorization", f"Bearer {self.token}")
        stream = await Stream.open(
            self.base_url, path, body, headers=sent, receive_buffer=receive_buffer
        )
        Stream.opened.remove(stream)  # it is for tests that fail, and would grow here
        self.streams += 1
        return stream

    async def chat(
        self,
        model: str,
        *,
        stream: bool = True,
        receive_buffer: int = 0,
        padding: str = "",
        **headers: str,
    ) -> Stream:
        """Ask for an answer."""
        body = chat_body(model, stream=stream, **({"user": padding} if padding else {}))
        return await self.open(
            "/v1/chat/completions", body, receive_buffer=receive_buffer, **headers
        )

    async def finish(self, stream: Stream) -> str:
        """Read to the end; how that was."""
        try:
            await stream.read_rest()
            return self.judge(stream)
        finally:
            await stream.close()

    def judge(self, stream: Stream) -> str:
        """Judge how an answer ended that was read to its end."""
        self.statuses[stream.status] += 1
        run, size = stream.headers.get("x-run-id"), len(stream.body)
        _last_seen.set(f"{stream.status} {run} {size} bytes ...{bytes(stream.body[-200:])!r}")
        if not stream.clean:
            return CUT
        if stream.status != 200:
            return REFUSED
        if not stream.headers.get("content-type", "").startswith("text/event-stream"):
            return WHOLE
        return how_it_ended(bytes(stream.body[-TAIL_BYTES:]))


def how_it_ended(tail: bytes) -> str:
    """Say how the answer ended, by the last bytes of a stream that had a clean end."""
    if b"data: [DONE]" in tail:
        return WHOLE
    last = parse_events(tail[tail.find(b"data:") :])[-1:]
    if last and last[0].error is not None:
        return TOLD
    if last and _FINISHED.search(last[0].data):  # the upstream forgot [DONE], and only that
        return WHOLE
    return SILENT


# --- the players ---------------------------------------------------------------------------------


def reads(*models: str, stream: bool = True) -> Player:
    """Ask one of these models and read to the end."""

    async def play(load: Load) -> str:
        return await load.finish(await load.chat(load.dice.choice(models), stream=stream))

    return play


async def counts(load: Load) -> str:
    """Read a paced answer and check that no event is missing or comes twice."""
    stream = await load.chat("box/numbered:40:25")
    end = await load.finish(stream)
    if stream.status != 200:
        return end
    seen = numbers([event for event in stream.events if event.error is None])
    return end if seen == list(range(40 if end == WHOLE else len(seen))) else GAP


async def vanishes(load: Load) -> str:
    """Vanish after a few events."""
    stream = await load.chat(load.dice.choice(["box/stuck:200", "two/bulk:2000", "both"]))
    try:
        await stream.read_events(load.dice.randint(1, 30))
    finally:
        await stream.vanish()
    return VANISHED


async def vanishes_at_once(load: Load) -> str:
    """Vanish before the head of the answer."""
    stream = await load.chat("box/wait:1000")
    await asyncio.sleep(load.dice.random() * 0.2)
    await stream.vanish()
    return VANISHED


async def never_reads(load: Load) -> str:
    """Stay connected and read nothing, for longer than it is waited for."""
    stream = await load.chat("two/bulk:3000", receive_buffer=16 * 1024)
    await asyncio.sleep(5)
    await stream.vanish()
    return VANISHED


async def reads_slowly(load: Load) -> str:
    """Read slowly, and expect to be served at that pace."""
    stream = await load.chat("two/bulk:1000", receive_buffer=16 * 1024)
    try:
        async for _ in stream.pieces():
            await asyncio.sleep(0.02)
        return load.judge(stream)
    finally:
        await stream.close()


async def comes_back(load: Load) -> str:
    """Leave while the answer goes on, and come back for the rest of it."""
    stream = await load.chat("box/numbered:60:20", x_on_disconnect="continue")
    try:
        await stream.head()
        if stream.status != 200:
            return await load.finish(stream)
        had = len(await stream.read_events(load.dice.randint(1, 20)))
        if stream.over:  # it ended early, and we know how
            return load.judge(stream)
    finally:
        await stream.vanish()
    _last_seen.set(f"run {stream.run_id} up to event {had - 1}")
    await asyncio.sleep(load.dice.random())
    rest = await load.open(f"/v1/runs/{stream.run_id}/stream?starting_after={had - 1}")
    end = await load.finish(rest)
    if rest.status == 204:  # it had everything, within the read that brought the last event too
        return how_it_ended(bytes(stream.body[-TAIL_BYTES:]))
    if rest.status != 200:
        return end if end == CUT else LOST
    seen = numbers([event for event in rest.events if event.error is None])
    until = 60 if end == WHOLE else had - 1 + len(seen)
    return end if seen == list(range(had - 1, until)) else GAP


async def never_comes_back(load: Load) -> str:
    """Ask for an answer to be kept, and forget it."""
    stream = await load.chat("box/numbered:30:20", x_on_disconnect="continue")
    try:
        await stream.read_events(3)
    finally:
        await stream.vanish()
    return VANISHED


async def cancels(load: Load) -> str:
    """Cancel the run, and read the confirmation."""
    stream = await load.chat(load.dice.choice(["box/stuck:100", "box/numbered:200:20"]))
    await stream.read_events(3)
    if stream.status == 200 and not stream.over:
        answer = await load.open(f"/v1/runs/{stream.run_id}/cancel", {})
        await answer.read_all()
        await answer.close()
    return await load.finish(stream)


async def sends_much(load: Load) -> str:
    """Send a request of 2 MB, as one with pictures is."""
    return await load.finish(await load.chat("box/ok", padding="x" * 2_000_000))


async def sends_too_much(load: Load) -> str:
    """Send a request above the limit; it may be refused while it is still being sent."""
    stream = await load.chat("box/ok", padding="x" * 5_000_000)
    try:
        return await load.finish(stream)
    except (asyncio.IncompleteReadError, ConnectionError):
        return REFUSED


async def has_no_right(load: Load) -> str:
    """Send a token that is not known."""
    body = chat_body("box/ok")
    stream = await load.open("/v1/chat/completions", body, authorization="Bearer tg-unknown")
    return await load.finish(stream)


async def asks_nonsense(load: Load) -> str:
    """Send a body that is no request."""
    return await load.finish(await load.open("/v1/chat/completions", [1, 2, 3]))


async def looks_around(load: Load) -> str:
    """List runs and models, as a dashboard does."""
    path = load.dice.choice(["/v1/runs", "/v1/models", "/healthz", "/readyz"])
    return await load.finish(await load.open(path))


async def talks_garbage(load: Load) -> str:
    """Send bytes that are no HTTP, or half a head and then nothing."""
    stream = await load.open("/healthz")
    await stream.read_all()
    stream.writer.write(load.dice.choice([b"\x16\x03\x01 nothing\r\n\r\n", b"POST /v1/chat HTTP"]))
    with suppress(ConnectionError):
        await stream.reader.read()
    await stream.close()
    return REFUSED


PLAYERS: dict[str, tuple[float, Player]] = {
    "reads, and the model hangs": (20, reads("box/stuck:200", "box/stuck:50", "box/silent")),
    "first attempt never ends": (12, reads("both", "mute-first")),
    "counts": (16, counts),
    "reads much": (6, reads("two/bulk:300", "two/bulk:1000")),
    "another upstream takes over": (5, reads("busy-first", "narrow-first")),
    "queues": (5, reads("narrow/wait:300", "narrow/numbered:10:30")),
    "vanishes": (10, vanishes),
    "vanishes at once": (3, vanishes_at_once),
    "never reads": (3, never_reads),
    "reads slowly": (3, reads_slowly),
    "comes back": (6, comes_back),
    "never comes back": (3, never_comes_back),
    "cancels": (4, cancels),
    "plain": (5, reads("box/json", "box/slow-json:300", "box/status:429", stream=False)),
    "plain, and the model hangs": (2, reads("box/slow-json:30000", "box/silent", stream=False)),
    "sends much": (2, sends_much),
    "sends too much": (0.5, sends_too_much),
    "upstream cuts": (6, reads("box/drop:20", "box/reset:20", "box/no-terminal:5")),
    "upstream talks garbage": (3, reads("box/garbage", "box/big-head", "box/error-first")),
    "upstream is odd": (
        4,
        reads("box/crlf", "box/one-byte", "box/finish-no-done", "box/error-middle"),
    ),
    "upstream comments for ever": (1, reads("box/comments", "box/gap:500")),
    "upstream's event is huge": (0.5, reads("box/huge-event")),
    "has no right": (1, has_no_right),
    "asks nonsense": (1, asks_nonsense),
    "looks around": (3, looks_around),
    "talks garbage": (1, talks_garbage),
}
