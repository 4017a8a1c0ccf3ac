"""Which models there are, where a request for one goes, and what a reload leaves alone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
import trustme

from fakes.client import chat, get, open_chat
from fakes.upstream import OK
from gateway.backend_rig import LM_STUDIO, OLLAMA, Fake
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, chunked, plain
from gateway.pool_rig import none_left
from tidegate.core.settings import (
    HeaderSource,
    LimitOverrides,
    Limits,
    Model,
    Settings,
    Upstream,
)
from tidegate.core.upstreams.blame import Held
from tidegate.core.upstreams.summary import ModelAlias, ModelState
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.upstreams import catalog as models_module
from tidegate.gateway.upstreams.catalog import Catalog

CERTIFICATES = [trustme.CA().cert_pem.bytes().decode() for _ in range(2)]


def catalog(*upstreams: str, models: dict[str, list[str]] | None = None) -> Catalog:
    return Catalog(
        Settings(
            upstreams=[Upstream(name=name, url=f"http://{name}:1") for name in upstreams],
            models=[Model(name=name, targets=targets) for name, targets in (models or {}).items()],
        ),
        {},
        "unix:/nowhere:/demo",
    )


def targets(of: Catalog, model: str) -> list[tuple[str, str]]:
    return [(target.pool.name, target.model) for target in of.route(model)]


class Library:
    """An upstream with a list of models."""

    def __init__(self, *models: str, answer: bytes | None = None) -> None:
        data = [{"id": model, "owned_by": "lib", "created": 7} for model in models]
        self.list = answer or plain(json.dumps({"object": "list", "data": data}).encode())
        self.asked = 0

    async def play(self, peer: Peer) -> None:
        while True:
            if (await peer.request()).startswith(b"GET /v1/models "):
                self.asked += 1
                await peer.send(self.list)
            else:
                await peer.send(HEAD + chunked(*OK) + LAST)


# --- the rules ------------------------------------------------------------------------------------


async def test_an_alias_goes_to_its_targets_in_order() -> None:
    """A model's name may hold slashes; an alias counts before anything else."""
    known = catalog("a", "b", models={"fast": ["b/x/y:z", "a/m"], "a/m": ["b/other"]})
    assert targets(known, "fast") == [("b", "x/y:z"), ("a", "m")]
    assert targets(known, "a/m") == [("b", "other")]


async def test_an_upstream_can_be_addressed() -> None:
    """upstream/model; the rest is the upstream's own name for it."""
    known = catalog("a", "b")
    assert targets(known, "b/org/model") == [("b", "org/model")]


async def test_an_unknown_model_goes_unchanged_to_the_only_upstream() -> None:
    """Whatever it is called, slashes included."""
    known = catalog("a")
    for name in ("m", "org/model", "", "é", "/"):
        assert targets(known, name) == [("a", name)]


async def test_with_several_upstreams_an_unknown_model_is_a_404_that_names_the_choices() -> None:
    """And not more than twenty of them."""
    known = catalog("a", "b", models={f"m{n}": ["a/x"] for n in range(30)})
    with pytest.raises(Refused) as caught:
        known.route("nope")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert "m0, m1" in caught.value.message
    assert "and 10 more" in caught.value.message
    assert "nope" not in caught.value.message


async def test_each_target_has_the_limits_of_its_place() -> None:
    """The general ones, the upstream's over them, the alias's over those."""
    known = Catalog(
        Settings(
            limits=Limits(idle_s=1, total_s=2, hold_s=3),
            upstreams=[
                Upstream(name="a", url="http://a", limits=LimitOverrides(idle_s=10, total_s=20)),
                Upstream(name="b", url="http://b"),
            ],
            models=[Model(name="m", targets=["a/x", "b/x"], limits=LimitOverrides(idle_s=100.0))],
        ),
        {},
        "",
    )
    assert [(t.limits.idle_s, t.limits.total_s, t.limits.hold_s) for t in known.route("m")] == [
        (100, 20, 3),
        (100, 2, 3),
    ]
    assert known.route("a/x")[0].limits.idle_s == 10


# --- asking the upstreams -------------------------------------------------------------------------


async def test_a_listed_model_goes_where_it_is(rigs, raw_upstream) -> None:
    """And the list that clients see has the aliases first, each name once."""
    first, second = Library("common", "only/first"), Library("common", "second")
    rig = await rigs(
        await raw_upstream(first.play),
        await raw_upstream(second.play),
        models={"alias": ["box1/second"]},
        peer=True,
    )
    known = rig.gateway.catalog
    assert targets(known, "only/first") == [("box", "only/first")]
    assert targets(known, "second") == [("box1", "second")]
    assert targets(known, "common") == [("box", "common")]
    listed = json.loads((await get(rig.base_url, "/v1/models")).body)
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["alias", "common", "only/first", "second"]
    assert listed["data"][1] == {"id": "common", "object": "model", "created": 7, "owned_by": "lib"}
    for name in ("only/first", "only%2Ffirst"):
        assert (
            json.loads((await get(rig.base_url, f"/v1/models/{name}")).body)["id"] == "only/first"
        )
    assert (await get(rig.base_url, "/v1/models/none")).status == 404


async def test_anthropics_list_is_asked_for_as_it_wants(rigs, raw_upstream) -> None:
    """Where the key goes as x-api-key the list is asked for with a version, elsewhere without."""
    heads: list[bytes] = []

    async def play(peer: Peer) -> None:
        while True:
            head = await peer.request()
            if head.startswith(b"GET /v1/models "):
                heads.append(head)
            await peer.send(plain(b'{"data":[{"type":"model","id":"claude"}],"has_more":false}'))

    url = (await raw_upstream(play)).url
    both = [
        Upstream(name="a", url=url, api_key_header="x-api-key"),
        Upstream(name="b", url=url, api_key_header="authorization"),
    ]
    rig = await rigs(*both, peer=True)
    assert sorted(b"anthropic-version" in head for head in heads) == [False, True]
    assert targets(rig.gateway.catalog, "claude") == [("a", "claude")]


@pytest.mark.parametrize(
    "answer",
    [
        plain(b'{"data":[{"id":"\xff"}]}'),
        plain(b'{"data":' + b"[" * 200_000),
        plain(b'{"data":[' + b'{"id":' * 100_000),
        plain(b"\xff\xfe"),
        plain(b"[]"),
        plain(b"{}"),
        plain(b"no", b"500 X"),
        plain(b"no", b"401 X"),
        b"garbage\r\n\r\n",
        HEAD + chunked(b"x" * 60_000) * 100,
        b"",
    ],
    ids=range(11),
)
async def test_a_strange_list_disturbs_nothing(rigs, raw_upstream, answer: bytes) -> None:
    """It is no list; the gateway starts, and requests go where they would."""

    async def play(peer: Peer) -> None:
        while True:
            if (await peer.request()).startswith(b"GET"):
                await peer.send(answer)
                return
            await peer.send(HEAD + chunked(*OK) + LAST)

    rig = await rigs(await raw_upstream(play), peer=True)
    assert rig.gateway.catalog.models() == []
    assert bytes((await chat(rig.base_url, "m")).body) == b"".join(OK)


async def test_of_an_endless_list_only_so_many_models_are_kept(rigs, raw_upstream) -> None:
    """And none whose name could not be asked for; one of nothing but entries is not read."""
    library = Library(*(f"m{n}" for n in range(6000)), "n" * 2000)
    rig = await rigs(await raw_upstream(library.play), peer=True)
    names = [model["id"] for model in rig.gateway.catalog.models()]
    assert names == [f"m{n}" for n in range(5000)]
    library.list = plain(b'{"data":[' + b",".join([b'{"id":"a"}'] * 100_001) + b"]}")
    await rig.gateway.catalog.refresh()
    assert len(rig.gateway.catalog.models()) == 5000


async def test_a_list_is_kept_while_no_newer_one_comes(rigs, raw_upstream) -> None:
    """An upstream that is off for a while keeps its models, and is said to be off."""
    library = Library("m")
    upstream = await raw_upstream(library.play)
    rig = await rigs(upstream, peer=True)
    library.list = plain(b"no", b"503 X")
    await rig.gateway.catalog.refresh()
    assert [model["id"] for model in rig.gateway.catalog.models()] == ["m"]
    assert rig.gateway.catalog.can_serve
    await upstream.stop()
    rig.pool().close_idle()
    await rig.gateway.catalog.refresh()
    assert [model["id"] for model in rig.gateway.catalog.models()] == ["m"]
    assert not rig.gateway.catalog.can_serve
    assert rig.pool().state == "failing"


async def test_a_model_that_moves_is_found_where_it_is_now(rigs, raw_upstream) -> None:
    """Where a request went before is remembered until a list, or the settings, say otherwise."""
    first, second = Library("m"), Library("other")
    rig = await rigs(await raw_upstream(first.play), await raw_upstream(second.play), peer=True)
    known = rig.gateway.catalog
    assert known.route("m") is known.route("m")
    assert targets(known, "m") == [("box", "m")]
    first.list, second.list = second.list, first.list
    await known.refresh()
    assert targets(known, "m") == [("box1", "m")]
    limits = msgspec.structs.replace(rig.settings.limits, total_s=77.0)
    rig.reload(msgspec.structs.replace(rig.settings, limits=limits))
    assert [target.limits.total_s for target in rig.gateway.catalog.route("m")] == [77.0]


async def test_names_that_clients_make_up_are_not_remembered_for_ever() -> None:
    known = catalog("box")
    for number in range(3 * models_module.MOST_ROUTES):
        assert targets(known, f"m{number}") == [("box", f"m{number}")]
    assert len(known._routes) <= models_module.MOST_ROUTES


async def test_what_listens_on_the_usual_ports_is_found(
    rigs, raw_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any upstream in the config; and a reload does not forget it."""
    library = Library("found-model")
    upstream = await raw_upstream(library.play)
    with_none: Any = (("Ollama", "ollama", upstream.url), ("vLLM", "vllm", "http://127.0.0.1:9"))
    monkeypatch.setattr(models_module, "WELL_KNOWN", with_none)
    rig = await rigs(peer=True)
    known = rig.gateway.catalog
    assert known.found == [f"Ollama at {upstream.url}"]
    assert known.first_model == "found-model"
    assert {model["id"] for model in known.models()} == {"found-model"}
    assert known.describe(10)[1] == []
    assert targets(known, "demo:stuck") == [("tidegate", "demo:stuck")]
    assert targets(known, "anything") == [("ollama", "anything")]
    assert bytes((await chat(rig.base_url, "found-model")).body) == b"".join(OK)
    rig.reload(rig.settings)
    assert targets(rig.gateway.catalog, "found-model") == [("ollama", "found-model")]
    assert rig.gateway.catalog.found == known.found


async def test_an_upstream_that_does_not_answer_is_not_called_found(rigs, raw_upstream) -> None:
    """It is named all the same, with what is wrong with it."""
    there = await raw_upstream(Library("m").play)
    gone = Upstream(name="gone", url="http://127.0.0.1:9")
    rig = await rigs(there, gone, peer=True)
    assert rig.gateway.catalog.found == [
        f"box at {there.url}",
        "gone at http://127.0.0.1:9 (does not answer)",
    ]


# --- what is loaded ---------------------------------------------------------------------------


async def test_what_is_loaded_is_learned_with_the_lists(rigs, raw_upstream) -> None:
    """By upstream; one that does not say so is not known, and only Ollama speaks Ollama's API."""
    fakes = [Fake(OLLAMA), Fake(LM_STUDIO), Library("m")]
    rig = await rigs(*[await raw_upstream(fake.play) for fake in fakes], peer=True)
    known = rig.gateway.catalog
    assert known.loaded == {"box": {"qwen3:8b"}, "box1": {"phi"}, "box2": None}
    assert [pool.name for pool in known.ollama_pools()] == ["box"]
    fakes[0].routes = {}
    await known.refresh()
    assert known.loaded["box"] is None


async def test_an_old_ollama_lists_its_models_in_its_own_way(rigs, raw_upstream) -> None:
    """Without a /v1/models its own list counts."""
    routes = {path: answer for path, answer in OLLAMA.items() if path != "/v1/models"}
    rig = await rigs(await raw_upstream(Fake(routes).play), peer=True)
    listed = [model["id"] for model in rig.gateway.catalog.models()]
    assert listed == ["llama3:latest", "qwen3:8b"]


async def test_a_name_without_a_tag_means_the_latest(rigs, raw_upstream) -> None:
    """Where only that one is listed; a model of exactly that name comes first."""
    first, second = Fake(OLLAMA), Library("llama3", "qwen3")
    rig = await rigs(await raw_upstream(first.play), peer=True)
    assert targets(rig.gateway.catalog, "llama3") == [("box", "llama3:latest")]
    assert targets(rig.gateway.catalog, "qwen3") == [("box", "qwen3")]  # the only upstream decides
    both = await rigs(await raw_upstream(first.play), await raw_upstream(second.play), peer=True)
    assert targets(both.gateway.catalog, "llama3") == [("box1", "llama3")]
    assert targets(both.gateway.catalog, "llama3:latest") == [("box", "llama3:latest")]


async def test_a_refresh_only_lets_a_request_try(rigs, raw_upstream) -> None:
    """However often an upstream lists its models or does not, requests alone set it aside."""
    library = Library("m")
    upstream = await raw_upstream(library.play)
    rig = await rigs(upstream, peer=True)
    for _ in range(3):
        rig.pool().failed("m", "answered 503", Held.TARGET)
    health, now_s = rig.pool().health, rig.gateway.loop.time()
    assert not health.may_ask("m", now_s)
    await rig.gateway.catalog.refresh()
    assert (rig.pool().state, rig.pool().last_error) == ("set aside", "answered 503")
    assert health.may_ask("m", rig.gateway.loop.time())
    rig.pool().succeeded("m")
    await upstream.stop()
    rig.pool().close_idle()
    for _ in range(5):
        await rig.gateway.catalog.refresh()
    assert rig.pool().state == "failing"
    assert health.may_ask("m", rig.gateway.loop.time())


async def test_the_description_has_upstreams_models_and_aliases(rigs, raw_upstream) -> None:
    """What is loaded, how each did last, and those that were asked for without being listed."""
    upstreams = [await raw_upstream(fake.play) for fake in (Fake(OLLAMA), Library("a", "b"))]
    rig = await rigs(*upstreams, models={"fast": ["box/qwen3:8b", "box1/a"]}, peer=True)
    rig.pool().note_first_output("qwen3:8b", 0.5)
    rig.pool().note_speed("qwen3:8b", 40.0, "tokens/s")
    rig.pool("box1").note_speed("unlisted", 9.0, "events/s")
    (box, other), aliases = rig.gateway.catalog.describe(100)
    assert (box.name, box.kind, box.state, box.aside_s) == ("box", "ollama", "ok", None)
    assert box.models == [
        ModelState(name="llama3:latest", loaded=False),
        ModelState(name="qwen3:8b", loaded=True, first_output_s=0.5, per_s=40.0),
    ]
    assert [model.name for model in other.models] == ["a", "b", "unlisted"]
    assert (other.kind, other.models[0].loaded, other.models[2].unit) == ("other", None, "events/s")
    assert aliases == [
        ModelAlias(
            name="fast", targets=["box/qwen3:8b", "box1/a"], levels=[["box/qwen3:8b"], ["box1/a"]]
        )
    ]
    (box, other), _ = rig.gateway.catalog.describe(3)
    assert [len(box.models), box.total, len(other.models), other.total] == [2, 2, 1, 3]


async def test_the_description_says_how_each_upstream_is() -> None:
    """Not tried, unreachable, set aside and for how long, or on trial."""
    known = catalog("a")
    pool = known.pools()[0]

    def described() -> tuple[str, float | None, bool]:
        [[upstream], _] = known.describe(10)
        return upstream.state, upstream.aside_s, upstream.on_trial

    assert described() == ("unknown", None, False)
    pool.unreached("gone")
    assert described() == ("unreachable", None, False)
    for _ in range(3):
        pool.failed("m", "gone", Held.UPSTREAM)
    state, aside_s, on_trial = described()
    assert (state, on_trial) == ("set aside", False)
    assert aside_s is not None
    assert 0 < aside_s <= 5.0
    assert pool.health.admit("m", asyncio.get_running_loop().time() + 5.0)
    assert described()[2]


async def test_the_built_in_upstream_is_not_described() -> None:
    """A tidegate without upstreams has only the demonstration's aliases to show."""
    upstreams, aliases = Catalog(Settings(), {}, "unix:/nowhere:/demo").describe(10)
    assert upstreams == []
    assert [alias.name for alias in aliases] == ["demo"]


# --- one upstream's fault -------------------------------------------------------------------------

UNUSABLE = Upstream(name="bad", url="http://" + "a" * 64)  # as an idna codec raises it


async def test_an_upstream_that_cannot_be_used_keeps_no_other_from_serving(
    rigs, raw_upstream, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start and after a reload: it fails with its reason, the others are asked and serve."""
    library = Library("m")
    rig: Rig = await rigs(
        UNUSABLE, await raw_upstream(library.play), models={"x": ["bad/m", "box1/m"]}, peer=True
    )
    for times in (1, 2):
        await rig.gateway.catalog.refresh()
        assert library.asked >= times
        assert rig.pool("box1").state == "ok"
        bad = rig.pool("bad").status()
        assert bad.state == "failing"
        assert "its url must be a host" in str(bad.last_error)
        assert bytes((await chat(rig.base_url, "x")).body) == b"".join(OK)
        assert (await chat(rig.base_url, "bad/m")).status == 502
        rig.reload(msgspec.structs.replace(rig.settings, limits=Limits(total_s=60.0)))
    assert "cannot be used as it is configured" in caplog.text
    rig.errors.clear()


async def test_whatever_goes_wrong_with_one_upstream_the_others_are_asked(
    rigs, raw_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours in the middle of a refresh is told as that upstream's, and nothing stops."""
    libraries = [Library("a"), Library("b")]
    rig: Rig = await rigs(*[await raw_upstream(each.play) for each in libraries])

    def fails(*arguments: object, **more: object) -> bytes:
        raise RuntimeError("a fault")

    monkeypatch.setattr(rig.pool("box"), "request_head", fails)
    await rig.gateway.catalog.refresh()
    assert [each.asked for each in libraries] == [0, 1]
    assert rig.pool("box").status().state == "failing"
    assert rig.pool("box").last_error == 'upstream "box" cannot be asked: RuntimeError'
    assert rig.pool("box1").state == "ok"
    assert [record.getMessage() for record in rig.errors] == [
        "upstream box: internal error while it was asked"
    ]
    rig.errors.clear()


# --- a reload -------------------------------------------------------------------------------------


async def test_a_reload_keeps_what_did_not_change(rigs, scripted_upstream, raw_upstream) -> None:
    """Streams go on, slots are counted on, connections are kept; the rest is new."""

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(HEAD + chunked(*OK) + LAST)

    other = await raw_upstream(play)
    rig: Rig = await rigs(scripted_upstream, other)
    live = await open_chat(rig.base_url, "box/numbered:100:10")
    await live.read_events(5)
    await chat(rig.base_url, "box1/m")
    same, changed = rig.pool("box"), rig.pool("box1")
    replaced = msgspec.structs.replace(rig.settings.upstreams[1], max_concurrent=3)
    rig.reload(
        msgspec.structs.replace(
            rig.settings,
            upstreams=[rig.settings.upstreams[0], replaced],
            limits=msgspec.structs.replace(rig.settings.limits, total_s=60.0),
        )
    )
    assert rig.pool("box") is same
    assert same.active == 1
    assert same.limits.total_s == 60.0
    assert rig.pool("box1") is not changed
    assert rig.relay().run.limits.total_s == 3600.0
    await none_left(changed)  # its idle connection is closed
    await asyncio.wait_for(live.read_rest(), DEADLINE_S)
    assert len(live.events) == 103
    assert bytes((await chat(rig.base_url, "box1/m")).body) == b"".join(OK)


async def test_a_reload_forgets_nothing_of_an_upstream_that_stays(rigs, raw_upstream) -> None:
    """That it is set aside, what it is and what it has loaded; one that changed begins anew."""
    upstreams = [await raw_upstream(Fake(OLLAMA).play) for _ in range(2)]
    rig = await rigs(*upstreams, peer=True)
    for name in ("box", "box1"):
        for _ in range(3):
            rig.pool(name).failed("m", "answered 503", Held.TARGET)
    first, second = rig.settings.upstreams
    changed = msgspec.structs.replace(second, api_key_header="x-api-key")
    rig.reload(msgspec.structs.replace(rig.settings, upstreams=[first, changed]))
    assert [rig.pool(name).state for name in ("box", "box1")] == ["set aside", "unknown"]
    assert rig.gateway.catalog.loaded == {"box": {"qwen3:8b"}, "box1": None}
    [box, _], _ = rig.gateway.catalog.describe(10)
    assert {model.loaded for model in box.models} == {None}  # as far as it can be told now


async def test_a_reload_takes_up_another_value_of_a_header_or_other_certificates(
    rigs, raw_upstream
) -> None:
    """The settings are the same, what they lead to is not; an upstream without them stays."""
    heads: list[bytes] = []

    async def play(peer: Peer) -> None:
        while True:
            heads.append(await peer.request())
            await peer.send(plain(b'{"data":[{"id":"m"}]}'))

    rig: Rig = await rigs(await raw_upstream(play), await raw_upstream(Library().play))
    headers = {"X-Gate": HeaderSource(env="GATE")}
    gated = msgspec.structs.replace(rig.settings.upstreams[0], headers=headers)
    chosen = msgspec.structs.replace(rig.settings, upstreams=[gated, rig.settings.upstreams[1]])
    gateway = rig.gateway
    for value in ("one", "two", "two"):
        before = rig.pool("box"), rig.pool("box1")
        gateway.configure(chosen, [], {}, {"box": {"X-Gate": value}})
        await gateway.catalog.refresh()
        assert f"X-Gate: {value}\r\n".encode() in heads[-1]
    assert (rig.pool("box"), rig.pool("box1")) == before
    secure = msgspec.structs.replace(gated, url="https://localhost:1", ca_file="ca.pem")
    chosen = msgspec.structs.replace(chosen, upstreams=[secure])
    pools = []
    for number in (0, 1, 1):
        gateway.configure(chosen, [], {}, {}, {"ca.pem": CERTIFICATES[number]})
        pools.append(rig.pool("box"))
    assert pools[0] is not pools[1]
    assert pools[1] is pools[2]


@pytest.mark.long
async def test_an_upstream_that_a_reload_removes_finishes_what_it_has(
    rigs, scripted_upstream, raw_upstream
) -> None:
    """New requests no longer find it; its last connection is closed in the end."""
    rig = await rigs(scripted_upstream, await raw_upstream(Library().play))
    live = await open_chat(rig.base_url, "box/numbered:50:10")
    await live.read_events(5)
    removed = rig.pool("box")
    rig.reload(msgspec.structs.replace(rig.settings, upstreams=rig.settings.upstreams[1:]))
    await asyncio.wait_for(live.read_rest(), DEADLINE_S)
    assert len(live.events) == 53
    assert removed.active == 0
    await none_left(removed)
