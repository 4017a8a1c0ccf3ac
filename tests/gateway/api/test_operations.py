"""What people, probes and Prometheus ask about the gateway itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from fakes.client import chat, get, open_chat
from gateway.gateway_rig import DEADLINE_S, RawUpstream, Rig, plain
from tidegate import __version__
from tidegate.core.protocol.worker import GuardFigures
from tidegate.core.settings import Token


async def ready(rig: Rig) -> tuple[int, list[str]]:
    answer = await asyncio.wait_for(get(rig.base_url, "/readyz"), DEADLINE_S)
    body = json.loads(answer.body)
    assert body["status"] == ("ready" if answer.status == 200 else "not ready")
    return answer.status, body["reasons"]


async def test_one_sentence_for_a_person(rigs, scripted_upstream) -> None:
    """Its version, and where the API is."""
    rig = await rigs(scripted_upstream, models={"m": ["box/ok"]})
    answer = await get(rig.base_url, "/")
    assert answer.body.decode().startswith(f"tidegate {__version__} is up, with 1 model;")
    assert answer.body.count(b"\n") == 1


async def test_every_reason_not_to_be_ready_is_named(rigs, raw_upstream) -> None:
    """Alive all the while."""

    async def play(peer: Any) -> None:
        await peer.request()

    upstream: RawUpstream = await raw_upstream(play)
    rig = await rigs(upstream)
    assert await ready(rig) == (200, [])
    rig.facts(level=2)
    assert await ready(rig) == (200, [])
    rig.facts(level=3, shed="memory level 3")
    assert await ready(rig) == (503, ["memory level 3"])
    await upstream.stop()
    await rig.gateway.catalog.refresh()
    assert await ready(rig) == (503, ["no upstream can be reached", "memory level 3"])
    rig.gateway.server.draining = True
    assert await ready(rig) == (
        503,
        ["draining", "no upstream can be reached", "memory level 3"],
    )
    assert (await get(rig.base_url, "/healthz")).status == 200


async def test_an_answer_makes_an_upstream_reachable_again(rigs, scripted_upstream) -> None:
    """It need not wait for the next look."""
    rig = await rigs(scripted_upstream)
    rig.pool().unreached("is gone")
    assert (await ready(rig))[0] == 503
    await chat(rig.base_url, "ok")
    assert await ready(rig) == (200, [])


async def test_health_needs_no_token_and_metrics_do(rigs, scripted_upstream) -> None:
    """Probes have no token; numbers need one."""
    rig = await rigs(scripted_upstream, tokens=[Token(name="x", sha256="0" * 64)])
    for path, status in (("/", 200), ("/healthz", 200), ("/readyz", 200), ("/metrics", 401)):
        assert (await get(rig.base_url, path)).status == status


async def test_a_scrape_counts_what_happened(rigs, scripted_upstream) -> None:
    """Under the promised names, in base units."""
    rig = await rigs(scripted_upstream)
    rig.gateway.resident_bytes = lambda: 12345
    answers = 0
    while not rig.gateway.registry.relay_seconds.count:  # of many chunks some are timed
        await chat(rig.base_url, "numbered:40:1")
        answers += 1
    stream = await open_chat(rig.base_url, "stuck:2")
    await stream.read_events(3)
    rig.facts(level=1, guard=GuardFigures(watchdog_rss_bytes=777), recycles={"growth": 2})
    answer = await get(rig.base_url, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    ledger_bytes = samples["tidegate_ledger_bytes",]  # with the connection of the scrape itself
    assert ledger_bytes > rig.held_bytes > 2000
    assert ledger_bytes - rig.gateway.registry.ledger.total_bytes < 4096
    assert samples["tidegate_resident_bytes", "worker"] == 12345
    assert samples["tidegate_resident_bytes", "watchdog"] == 777
    assert samples["tidegate_memory_level",] == 1
    assert samples["tidegate_runs", "streaming"] == 1
    assert samples["tidegate_runs", "completed"] == answers
    assert samples["tidegate_recycles_total", "growth"] == 2
    assert samples["tidegate_upstream_active", "box"] == 1
    assert samples["tidegate_first_output_seconds_count", "box"] == answers + 1
    assert samples["tidegate_relay_seconds_count",] >= 1
    assert 0 < samples["tidegate_relay_seconds_sum",] < 1
    assert "tidegate_loop_lag_seconds" in {name for name, *_ in samples}


async def test_anthropic_s_clients_find_what_they_read_in_the_list(rigs, raw_upstream) -> None:
    """Beside OpenAI's members, and only for a client that says which version it speaks."""
    created = iter([1_700_000_000, 10**18])

    async def play(peer: Any) -> None:
        while True:
            await peer.request()
            model = {"id": "m", "object": "model", "created": next(created, 0)}
            await peer.send(plain(json.dumps({"object": "list", "data": [model]}).encode()))

    rig = await rigs(await raw_upstream(play))
    says = {"anthropic-version": "2023-06-01"}
    for at in ("2023-11-14T22:13:20Z", "1970-01-01T00:00:00Z"):
        await rig.gateway.catalog.refresh()
        listed = (await get(rig.base_url, "/v1/models", headers=says)).json()
        assert isinstance(listed, dict)
        assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("m", "m", False)
        [model] = listed["data"]
        assert (model["type"], model["display_name"], model["created_at"]) == ("model", "m", at)
        assert (await get(rig.base_url, "/v1/models/m", headers=says)).json() == model
    plainly = (await get(rig.base_url, "/v1/models")).json()
    assert isinstance(plainly, dict)
    assert "type" not in plainly["data"][0]
    assert "has_more" not in plainly
