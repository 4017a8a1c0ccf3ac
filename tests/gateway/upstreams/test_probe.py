"""What an upstream is found to run, and which of its models it says are loaded."""

from __future__ import annotations

import asyncio

import pytest

from gateway.backend_rig import (
    LLAMA_CPP,
    LM_STUDIO,
    NOT_FOUND,
    OLLAMA,
    ROUTER,
    UNEXPECTED,
    Fake,
    Routes,
    as_json,
    models,
)
from gateway.gateway_rig import Peer, plain
from gateway.pool_rig import none_left
from tidegate.core.settings import Limits, Upstream
from tidegate.gateway.upstreams import probe as probe_module
from tidegate.gateway.upstreams.pool import UpstreamPool
from tidegate.gateway.upstreams.probe import MOST_PROBES, Backend, BackendProbe


class Look:
    """A probe that looks at a fake, as a refresh does."""

    def __init__(self, fake: Fake, url: str) -> None:
        self.fake = fake
        self.pool = UpstreamPool(Upstream(name="box", url=url), Limits(), None)
        self.probe = BackendProbe()

    async def __call__(self) -> tuple[Backend | None, set[str] | None]:
        answer = self.fake.routes.get("/v1/models", {"data": []})
        listed = {model["id"]: model["owned_by"] for model in answer["data"]}
        await self.probe.look(self.pool, listed, as_json(answer))
        loaded = self.probe.loaded
        return self.probe.kind, None if loaded is None else set(loaded)

    async def close(self) -> None:
        self.pool.close()
        await none_left(self.pool)


@pytest.fixture
async def looking(raw_upstream):
    """Makes a Look at a fake with these routes."""
    made: list[Look] = []

    async def make(routes: Routes, otherwise: bytes = NOT_FOUND, path: str = "") -> Look:
        fake = Fake(routes, otherwise)
        made.append(Look(fake, (await raw_upstream(fake.play)).url + path))
        return made[-1]

    yield make
    for look in made:
        await look.close()


@pytest.mark.parametrize(
    ("routes", "otherwise", "kind", "loaded"),
    [
        (OLLAMA, NOT_FOUND, Backend.OLLAMA, {"qwen3:8b"}),
        (OLLAMA | {"/api/ps": {"models": []}}, NOT_FOUND, Backend.OLLAMA, set()),
        ({"/api/tags": OLLAMA["/api/tags"]}, NOT_FOUND, Backend.OLLAMA, None),
        (LM_STUDIO, UNEXPECTED, Backend.LM_STUDIO, {"phi"}),
        (LLAMA_CPP, NOT_FOUND, Backend.LLAMA_CPP, {"tiny"}),
        (LLAMA_CPP | {"/health": plain(b"{}", b"503 X")}, NOT_FOUND, Backend.LLAMA_CPP, set()),
        (LLAMA_CPP | {"/health": NOT_FOUND}, NOT_FOUND, Backend.LLAMA_CPP, None),
        (LLAMA_CPP | {"/v1/models": ROUTER}, NOT_FOUND, Backend.LLAMA_CPP, {"a"}),
        ({"/v1/models": models("big", owner="vllm")}, NOT_FOUND, Backend.VLLM, {"big"}),
        ({"/v1/models": models("gpt")}, NOT_FOUND, Backend.OTHER, None),
        ({"/v1/models": models("gpt")}, UNEXPECTED, Backend.OTHER, None),
        ({"/v1/models": models("gpt")}, plain(b"<html>"), Backend.OTHER, None),
        ({"/v1/models": models("gpt")}, plain(b"\xff" + b"[" * 9000), Backend.OTHER, None),
        ({"/v1/models": models("gpt")}, plain(b"{}", b"401 X"), Backend.OTHER, None),
        # Only a status that is a table is llama.cpp's.
        ({"/v1/models": models("m", owner="llamacpp", status="up")}, NOT_FOUND, Backend.LLAMA_CPP,
         None),
    ],
    ids=[
        "ollama", "ollama, none loaded", "ollama, tags alone", "lm studio", "llama.cpp",
        "llama.cpp, loading", "llama.cpp, no health", "llama.cpp, router", "vllm", "cloud",
        "error with 200", "page", "garbage", "closed", "strange status",
    ],
)  # fmt: skip
async def test_each_engine_is_known_by_its_words(
    looking, routes: Routes, otherwise: bytes, kind: Backend, loaded: set[str] | None
) -> None:
    """Its kind, and what is loaded; where it does not say so, that is not known."""
    look = await looking(routes, otherwise)
    assert await look() == (kind, loaded)


async def test_a_path_before_v1_is_kept(looking) -> None:
    """Behind a proxy Ollama's own routes stand beside its /v1."""
    routes = {f"/proxy{path}": answer for path, answer in OLLAMA.items()}
    look = await looking(routes, path="/proxy/v1")
    assert await look() == (Backend.OLLAMA, {"qwen3:8b"})


async def test_a_cloud_is_probed_once(looking) -> None:
    """However often its list is refreshed; and with the list's own words not even once."""
    cloud = await looking({"/v1/models": models("gpt")})
    for _ in range(5):
        await cloud()
    assert set(cloud.fake.asked.values()) == {1}
    router = await looking({"/v1/models": ROUTER})
    for _ in range(5):
        await router()
    assert not router.fake.asked


async def test_a_known_engine_is_asked_its_own_route_alone(looking) -> None:
    """Each time, for what is loaded changes."""
    look = await looking(OLLAMA)
    await look()
    look.fake.asked.clear()
    look.fake.routes["/api/ps"] = {"models": [{"name": "llama3:latest"}]}
    assert await look() == (Backend.OLLAMA, {"llama3:latest"})
    assert dict(look.fake.asked) == {"/api/ps": 1}


async def test_what_does_not_answer_is_probed_a_few_times(looking) -> None:
    """A server that is starting gets another chance, and one that never answers is left alone."""
    look = await looking({"/v1/models": models("m")}, plain(b"{}", b"503 X"))
    for _ in range(MOST_PROBES - 1):
        assert await look() == (None, None)
    look.fake.routes |= OLLAMA
    assert (await look())[0] is Backend.OLLAMA
    dead = await looking({"/v1/models": models("m")}, plain(b"{}", b"503 X"))
    for _ in range(2 * MOST_PROBES):
        await dead()
    assert dead.fake.asked["/api/version"] == MOST_PROBES


async def test_another_server_in_its_place_is_found_out(looking) -> None:
    """Where the list no longer tells of the former backend, it is probed anew."""
    look = await looking(LLAMA_CPP)
    assert await look() == (Backend.LLAMA_CPP, {"tiny"})
    look.fake.routes = dict(OLLAMA)
    assert await look() == (Backend.OLLAMA, {"qwen3:8b"})
    look.fake.routes = dict(LLAMA_CPP)
    assert await look() == (Backend.LLAMA_CPP, {"tiny"})


async def test_a_look_has_its_limit(raw_upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """A route that hangs is given up, and nothing is known; what was known is not shown on."""
    hangs = asyncio.Event()

    class Hanging(Fake):
        async def play(self, peer: Peer) -> None:
            await (peer.hang() if hangs.is_set() else super().play(peer))

    fake = Hanging(OLLAMA)
    look = Look(fake, (await raw_upstream(fake.play)).url)
    assert await look() == (Backend.OLLAMA, {"qwen3:8b"})
    look.pool.close_idle()
    hangs.set()
    monkeypatch.setattr(probe_module, "LOOK_LIMIT_S", 0.1)
    assert await look() == (Backend.OLLAMA, None)
    await look.close()
