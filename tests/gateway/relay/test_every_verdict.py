"""Whose fault it is, through a whole gateway: every fault in every format, and what follows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from fakes.upstream import ScriptedUpstream
from gateway.gateway_rig import Rig
from gateway.relay.test_every_fault import PLAIN, STREAMED, Form, ask
from tidegate.core.settings import LimitOverrides, Model, Upstream
from tidegate.core.upstreams.blame import VERDICTS, Fault, Held
from tidegate.gateway.upstreams.pool import UpstreamPool

ON_EVERY_ROAD = True
pytestmark = pytest.mark.long

DEAD = "http://127.0.0.1:9"  # where nothing listens
NONE = None  # cannot be played in this way
LIMITS = {"first_output_s": 0.6, "plain_s": 0.6, "idle_s": 0.6, "hold_s": 8.0}


@dataclass(frozen=True)
class Cell:
    """How a fault is played, and which status it is at the last target: streamed, and plain."""

    script: str
    streamed: int | None
    whole: int | None


CELLS: dict[Fault, list[Cell]] = {
    Fault.FULL: [Cell("ok", 503, 503)],
    Fault.UNREACHED: [Cell("ok", 502, 502)],
    Fault.HUNG_UP: [Cell("eof", 502, 502), Cell("abort", 502, 502)],
    Fault.CUT: [Cell("drop:0", 502, 502), Cell("garbage", 502, 502)],
    Fault.ENDED: [Cell("no-terminal:0", 502, NONE)],
    Fault.SILENT: [Cell("silent", 504, 504), Cell("headers-then-silent", 504, 504)],
    Fault.DOWN: [Cell(f"status:{code}", code, code) for code in (502, 503, 504, 507, 520, 529)],
    Fault.CRASHED: [Cell("html:500", 500, 500)],
    Fault.BROKEN: [Cell("status:500", 500, 500)],
    Fault.BUSY: [Cell("status:408", 408, 408), Cell("status:429", 429, 429)],
    Fault.OUR_KEY: [Cell(f"status:{code}", 502, 502) for code in (401, 402, 403)],
    Fault.OUR_QUOTA: [Cell("no-quota", 429, 429)],
    Fault.OUR_MODEL: [Cell("no-model", 502, 502), Cell("status:404", 502, 502)],
    Fault.NO_ROUTE: [Cell("no-route", 404, 404), Cell("status:405", 405, 405)],
    Fault.TOO_LONG: [Cell("context-length", 400, 400)],
    Fault.GARBLED: [Cell("gzip", 502, 502), Cell("status:600", 502, 502)],
    Fault.TOLD: [Cell("error-middle", 200, NONE)],
    Fault.MISLED: [Cell("redirect", 502, 502)],
    Fault.CONTENT: [Cell("moderation", 403, 403), Cell("content-filter", 400, 400)],
    Fault.CALLER: [Cell(f"status:{code}", code, code) for code in (400, 409, 413, 422)],
}
PLAYED = [
    (fault, cell, f"up{number}-{place}")
    for number, (fault, cells) in enumerate(CELLS.items())
    for place, cell in enumerate(cells)
]


@pytest.fixture(autouse=True)
def _soon_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The try once more follows at once, so that a busy machine has the limits for itself."""
    monkeypatch.setattr("tidegate.gateway.relay.failover.ONCE_MORE_S", 0.01)


def test_every_fault_is_played() -> None:
    """The table of verdicts and the one of this file have the same rows."""
    assert set(CELLS) == set(VERDICTS)


def _upstream(fault: Fault, name: str, url: str) -> Upstream:
    """One of its own for each fault, so that what is held against it can be told."""
    if fault is Fault.UNREACHED:
        return Upstream(name=name, url=DEAD)
    if fault is Fault.FULL:
        limits = LimitOverrides(max_queued=0)
        return Upstream(name=name, url=url, max_concurrent=1, limits=limits)
    return Upstream(name=name, url=url)


async def _rig_for_all(rigs, upstream: ScriptedUpstream) -> Rig:
    """Each fault alone, and with another target behind it; the one that is full is occupied."""
    upstream.tried.clear()
    models = [Model(name=f"alone-{name}", targets=[f"{name}/{c.script}"]) for _, c, name in PLAYED]
    models += [
        Model(name=f"both-{name}", targets=[f"{name}/{c.script}", "good/ok"])
        for _, c, name in PLAYED
    ]
    ups = [_upstream(fault, name, upstream.url) for fault, _, name in PLAYED]
    good = Upstream(name="good", url=upstream.url)
    rig: Rig = await rigs(*ups, good, models=models, **LIMITS)
    (full,) = (name for fault, _, name in PLAYED if fault is Fault.FULL)
    pool = rig.pool(full)
    pool.take_slot(_Occupant())
    return rig


class _Occupant:
    """Has a slot and keeps it."""

    def on_slot(self, pool: UpstreamPool) -> None:
        raise AssertionError


def _held(pool: UpstreamPool, script: str) -> Held:
    """What is held against it after one failure, which has no effect yet that could be seen."""
    known = pool.health._known(script)
    breaker = known and known.breaker
    if pool.health.whole._failures:
        return Held.UPSTREAM
    if breaker is not None and breaker._failures:
        return Held.TARGET
    if breaker is not None and breaker._suspicions:
        return Held.SUSPECTED
    return Held.NOTHING if breaker is None else Held.ALIVE


@pytest.mark.parametrize("form", STREAMED + PLAIN, ids=lambda form: form.path)
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "plain"])
async def test_every_cell_is_what_happens(
    rigs, scripted_upstream: ScriptedUpstream, form: Form, streamed: bool
) -> None:
    """Whether the next target answers, what is held against the first, and the last one's status.

    One table for every format: they differ in nothing but the shape of the error.
    """
    if streamed and not form.streams:
        return
    rig = await _rig_for_all(rigs, scripted_upstream)
    played = [
        (fault, name, cell.script, status)
        for fault, cell, name in PLAYED
        if (status := cell.streamed if streamed else cell.whole) is not None
    ]

    async def play(fault: Fault, name: str, script: str, status: int) -> str:
        if form.is_ollama and fault is Fault.TOLD:
            return ""  # its error line ends the stream in another way; see test_every_fault
        alone, verdict = await ask(rig, form, f"alone-{name}", stream=streamed), VERDICTS[fault]
        held = _held(rig.pool(name), script)
        both = await ask(rig, form, f"both-{name}", stream=streamed)
        wrong = []
        if alone.status != status:
            wrong.append(f"alone {alone.status}, {bytes(alone.body)[:200]!r}")
        if status != 200 and not form.is_error(alone.json()):
            wrong.append("no error in the shape of its format")
        if both.status != (200 if verdict.goes_on else status):
            wrong.append(f"with another {both.status}")
        if held is not verdict.held and not (verdict.held is Held.NOTHING and held is Held.ALIVE):
            wrong.append(f"held {held}")
        refusals = list(rig.pool(name).health.refusals())
        if bool(refusals) is not verdict.is_ours:
            wrong.append(f"refusals {refusals}")
        return f"{fault} {script}: {'; '.join(wrong)}" if wrong else ""

    said = await asyncio.gather(*(play(*each) for each in played))
    full = next(name for fault, _, name in PLAYED if fault is Fault.FULL)
    rig.pool(full).release_slot()
    wrong = [each for each in said if each]
    assert not wrong, "\n".join(wrong)
