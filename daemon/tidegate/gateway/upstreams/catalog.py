"""Which models there are, and where a request for one goes.

The list is answered from memory, since some clients give it ten seconds and some validate a URL
with it; it is refreshed in the background, and with it what is loaded. Without any upstream in the
config, the usual ports of this computer are asked, and a built-in demo model makes the first
request work on a machine with no model at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from itertools import islice

from msgspec import Struct

from tidegate.core.errors import UpstreamError
from tidegate.core.formats.base import MAX_MODEL_CHARS
from tidegate.core.formats.foreign_json import JsonReader, UnreadableJson
from tidegate.core.settings import LimitOverrides, Limits, Model, Settings, Upstream
from tidegate.core.upstreams.address import WELL_KNOWN
from tidegate.core.upstreams.health import Aside
from tidegate.core.upstreams.summary import ModelAlias, ModelState, UpstreamModels, UpstreamStatus
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.upstreams.choice import Target
from tidegate.gateway.upstreams.fetch import fetch
from tidegate.gateway.upstreams.pool import MAX_NAME_NOTED, MAX_OBJECTS, ModelFigures, UpstreamPool
from tidegate.gateway.upstreams.probe import Backend, BackendProbe

log = logging.getLogger("tidegate.models")

REFRESH_S = 30.0
PROBE_S = 3.0  # how soon an upstream that is back is noticed; asked only while one is in doubt
ASK_LIMIT_S = 5.0
DISCOVERY_LIMIT_S = 0.5  # a server on this computer answers in milliseconds, or is not there
MAX_NAMES_SHOWN = 20
MOST_ROUTES = 256  # that are remembered: clients choose the names
MAX_LISTED = 5000  # models of an upstream; OpenRouter has some 500
# Anthropic refuses every request without one, also the one for its list; others do not mind it.
_ANTHROPIC_VERSION = "anthropic-version: 2023-06-01\r\n"
LATEST = ":latest"  # how Ollama calls a model that is asked for without a tag

DEMO = "tidegate"  # the built-in upstream's name
STUCK = "demo:stuck"
# To watch a sweep with: it streams, hangs, and its own end never takes place.
_DEMO_MODELS = [
    Model(name="demo", targets=[f"{DEMO}/demo"]),
    Model(
        name=STUCK,
        targets=[f"{DEMO}/{STUCK}"],
        limits=LimitOverrides(total_s=10.0, grace_s=5.0),
    ),
]


class ListedModel(Struct, frozen=True):
    """An entry of an upstream's list; what we do not know of it is not passed on."""

    id: str
    created: int = 0
    owned_by: str = ""


class _List(Struct):
    data: list[ListedModel]


_read = JsonReader(_List)


def _list(body: bytes) -> list[ListedModel]:
    """Read what a list names, as far as it is of use. Raises Unreadable."""
    if body.count(b"{") > MAX_OBJECTS:
        raise UnreadableJson("it is too long")
    named = (model for model in _read(body).data if len(model.id) <= MAX_MODEL_CHARS)
    return list(islice(named, MAX_LISTED))


_NO_FIGURES = ModelFigures()


class Catalog:
    """The upstreams and their models, for one state of the settings."""

    def __init__(
        self,
        settings: Settings,
        secrets: Mapping[str, str],
        demo_url: str,
        headers: Mapping[str, dict[str, str]] | None = None,
        authorities: Mapping[str, str] | None = None,
    ) -> None:
        """`headers` are those of each upstream that are as secret as its key; `authorities` are
        certificates, by the name of their `ca_file`.
        """
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._secrets = secrets
        self._headers = headers or {}
        self._authorities = authorities or {}
        self._demo_url = demo_url
        self._aliases = {model.name: model for model in settings.models}
        self._pools: dict[str, UpstreamPool] = {}
        self._listed: dict[str, list[ListedModel]] = {}
        self._probes: dict[str, BackendProbe] = {}
        self._routes: dict[str, list[Target]] = {}  # found since what is known last changed
        self._is_discovering = not settings.upstreams
        # What listens there is this gateway itself, and would be asked by itself for ever.
        self._own_ports = {address.rpartition(":")[2] for address in settings.listen}
        self._titles: dict[str, str] = {}  # of upstreams that are in no config
        for upstream in settings.upstreams:
            self._pools[upstream.name] = self._new_pool(upstream)
        if self._is_discovering:
            self._aliases.update({model.name: model for model in _DEMO_MODELS})
            self._pools[DEMO] = self._new_pool(Upstream(name=DEMO, url=demo_url))

    def adopt(self, former: Catalog) -> None:
        """Keep the pools of upstreams that did not change: their slots and connections stay."""
        for name, pool in former._pools.items():
            mine = self._pools.get(name)
            if (
                mine is not None
                and mine.upstream == pool.upstream
                and former._belongings(pool.upstream) == self._belongings(pool.upstream)
            ):
                pool.limits = mine.limits
            elif not (self._is_discovering and former._is_discovering and name != DEMO):
                pool.close_idle()
                continue
            self._pools[name] = pool
            self._listed[name] = former._listed.get(name, [])
            self._probes[name] = former._probe_of(name)
        self._routes.clear()
        if self._is_discovering and former._is_discovering:
            self._titles = dict(former._titles)

    # --- asking the upstreams -------------------------------------------------------------

    async def refresh(self) -> None:
        """Ask every upstream for its models, and which are loaded.

        Looks for upstreams where none is configured.
        """
        if self._is_discovering:
            await asyncio.gather(*(self._discover(*known) for known in WELL_KNOWN))
        pools = [pool for name, pool in self._pools.items() if name != DEMO]
        await asyncio.gather(*(self._guarded(pool, self._look(pool)) for pool in pools))

    async def probe(self) -> None:
        """Ask those of whom it would decide something: set aside, or suspected of a fault."""
        pools = [pool for name, pool in self._pools.items() if name != DEMO]
        doubtful = [pool for pool in pools if pool.health.wants_probe]
        asked = (self._guarded(pool, self._ask(pool, ASK_LIMIT_S)) for pool in doubtful)
        await asyncio.gather(*asked)

    async def _discover(self, title: str, name: str, url: str) -> None:
        if name in self._pools or url.rpartition(":")[2] in self._own_ports:
            return
        pool = self._new_pool(Upstream(name=name, url=url))
        if await self._ask(pool, DISCOVERY_LIMIT_S) is not None and name in self._listed:
            self._pools[name] = pool
            self._routes.clear()
            self._titles[name] = title
            log.info("found %s at %s", title, url)
        else:
            pool.close()

    async def _guarded(self, pool: UpstreamPool, look: Awaitable[object]) -> None:
        """Keep one upstream's exception that upstream's: the others are asked and serve."""
        try:
            await look
        except Exception as error:
            log.exception("upstream %s: internal error while it was asked", pool.name)
            pool.unreached(f'upstream "{pool.name}" cannot be asked: {type(error).__name__}')

    async def _look(self, pool: UpstreamPool) -> None:
        probe = self._probe_of(pool.name)
        body = await self._ask(pool, ASK_LIMIT_S)
        if body is None:
            probe.loaded = None
            return
        owners = {model.id: model.owned_by for model in self._listed.get(pool.name, ())}
        await probe.look(pool, owners, body)
        if not owners and (names := await probe.names(pool)):
            self._listed[pool.name] = [ListedModel(name) for name in names]
            self._routes.clear()

    async def _ask(self, pool: UpstreamPool, limit_s: float) -> bytes | None:
        """Ask for its list, None for nothing; a list is kept as long as no newer one comes."""
        try:
            more = _ANTHROPIC_VERSION if pool.key_header == "x-api-key" else ""
            status, body = await fetch(pool, "/models", limit_s, more=more)
        except UpstreamError as error:
            pool.unreached(f'upstream "{pool.name}" {error}')
            return None
        is_list = False
        if status == 200:
            with suppress(UnreadableJson):
                self._listed[pool.name] = _list(body)
                self._routes.clear()
                is_list = True
        elif status >= 500:
            pool.confirm(f'upstream "{pool.name}" answered {status} to a request for its models')
        pool.reached(is_well=is_list)
        return body

    # --- answering clients ----------------------------------------------------------------

    def models(self) -> list[dict[str, object]]:
        """List the models as OpenAI does: aliases first, then what the upstreams have."""
        listed: dict[str, dict[str, object]] = {}
        for name in self._shown_aliases():
            listed[name] = _entry(name, 0, "tidegate")
        for upstream, models in self._listed.items():
            for model in models:
                owner = model.owned_by or upstream
                listed.setdefault(model.id, _entry(model.id, model.created, owner))
        return list(listed.values())

    def _shown_aliases(self) -> list[str]:
        """List the aliases; of the demo's only the one that answers, and while nothing else does.

        The others can be asked all the same.
        """
        has_real = any(models for name, models in self._listed.items() if name != DEMO)
        hidden = {STUCK, "demo"} if has_real else {STUCK}
        return [n for n in self._aliases if not (self._is_discovering and n in hidden)]

    @property
    def found(self) -> list[str]:
        """The upstreams, for people: "Ollama at http://…", and which of them does not answer."""
        return [
            f"{self._titles.get(name, name)} at {pool.status().url}"
            f"{' (does not answer)' if pool.reachable is False else ''}"
            for name, pool in self._pools.items()
            if name != DEMO
        ]

    @property
    def first_model(self) -> str:
        """A model that answers, for a first request."""
        for name in self._settings.models:
            return name.name
        for upstream, models in self._listed.items():
            if models and upstream != DEMO:
                return models[0].id
        return "demo" if self._is_discovering else "MODEL"

    def route(self, model: str) -> list[Target]:
        """Say where a request for `model` may go, in order. Raises Refused naming the choices."""
        route = self._routes.get(model)
        if route is None:
            route = self._new_route(model)
            if len(self._routes) >= MOST_ROUTES:
                self._routes.clear()
            self._routes[model] = route
        return route

    def _new_route(self, model: str) -> list[Target]:
        alias = self._aliases.get(model)
        if alias is not None:
            return [
                self._target(upstream, name, alias, level)
                for level, equals in enumerate(alias.levels)
                for upstream, _, name in (target.partition("/") for target in equals)
            ]
        upstream, slash, rest = model.partition("/")
        if slash and upstream in self._pools:
            return [self._target(upstream, rest, None)]
        if found := self._find(model) or self._find(model + LATEST):
            return [found]
        real = [name for name in self._pools if name != DEMO]
        if len(real) == 1:
            return [self._target(real[0], model, None)]
        names = [str(entry["id"]) for entry in self.models()]
        shown = ", ".join(names[:MAX_NAMES_SHOWN]) or "none is known yet"
        more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
        raise Refused(
            404,
            f"there is no model of that name; ask for one of: {shown}{more},"
            " or address an upstream as upstream/model",
            "model_not_found",
            param="model",
        )

    def _find(self, model: str) -> Target | None:
        """Find the first upstream that lists `model`."""
        for name, models in self._listed.items():
            if any(listed.id == model for listed in models):
                return self._target(name, model, None)
        return None

    def is_stuck_demo(self, model: str) -> bool:
        """Tell whether this is the demo whose end is switched off on purpose."""
        return self._is_discovering and model == STUCK

    def ollama_pools(self) -> list[UpstreamPool]:
        """Find the upstreams that speak Ollama's own API, as far as is known."""
        return [p for p in self._pools.values() if self._probe_of(p.name).kind is Backend.OLLAMA]

    def ollama_aliases(self) -> dict[str, tuple[str, str]]:
        """Find aliases that lead to one of these first, with its name and that of its model."""
        aliases = {}
        for name, alias in self._aliases.items():
            upstream, _, model = alias.all_targets[0].partition("/")
            if self._probe_of(upstream).kind is Backend.OLLAMA:
                aliases[name] = (upstream, model)
        return aliases

    @property
    def loaded(self) -> dict[str, frozenset[str] | None]:
        """Tell by upstream the models that it has in memory; None: not known."""
        return {name: self._probe_of(name).loaded for name in self._pools if name != DEMO}

    def describe(self, most: int) -> tuple[list[UpstreamModels], list[ModelAlias]]:
        """Show upstreams, `most` models of them in all, and aliases, for `tidegate models`.

        The built-in upstream is not among them: it is a demonstration and has no model of an owner.
        """
        described = []
        for name, pool in self._pools.items():
            if name != DEMO:
                models = self._model_states(pool)
                described.append(self._describe(pool, models[:most], len(models)))
                most -= min(most, len(models))
        aliases = [
            ModelAlias(name=alias.name, targets=alias.all_targets, levels=alias.levels)
            for alias in map(self._aliases.__getitem__, self._shown_aliases())
        ]
        return described, aliases

    def _describe(self, pool: UpstreamPool, models: list[ModelState], total: int) -> UpstreamModels:
        kind, state = self._probe_of(pool.name).kind, pool.state
        aside_s, on_trial = self._aside(pool) if pool.health.is_aside else (None, False)
        if aside_s is None and pool.reachable is False:
            state = "unreachable"
        return UpstreamModels(
            name=pool.name,
            url=pool.status().url,
            kind=kind.value if kind else None,
            state=state,
            aside_s=aside_s,
            on_trial=on_trial,
            last_error=pool.last_error,
            models=models,
            total=total,
        )

    def _aside(self, pool: UpstreamPool) -> tuple[float, bool]:
        """Tell for how many seconds nothing of it is asked, and whether one request tries."""
        health, now_s = pool.health, self._loop.time()
        if not health.whole.is_closed:
            left_s = max(0.0, (health.whole.due_s or 0.0) - now_s)
            return left_s, health.whole.state == "half-open"
        aside = list(health.aside(now_s))
        return min(each.left_s for each in aside), any(each.on_trial for each in aside)

    def _model_states(self, pool: UpstreamPool) -> list[ModelState]:
        """List those it lists, and those it answered for without listing them."""
        is_gone = pool.health.is_aside or pool.reachable is False  # what it had, it may have lost
        loaded = None if is_gone else self._probe_of(pool.name).loaded
        names = dict.fromkeys(model.id for model in self._listed.get(pool.name, ()))
        aside = {each.model: each for each in pool.health.aside(self._loop.time())}
        states = []
        for name in names | dict.fromkeys(pool.figures) | dict.fromkeys(aside):
            figures = pool.figures.get(name, _NO_FIGURES)
            left = aside.get(name)
            state = ModelState(
                name=name[:MAX_NAME_NOTED],
                loaded=None if loaded is None else name in loaded,
                first_output_s=figures.first_output_s,
                per_s=figures.per_s,
                unit=figures.unit,
                aside_s=None if left is None else left.left_s,
                aside_why="" if left is None else _why_aside(left),
            )
            states.append(state)
        return states

    def pools(self) -> list[UpstreamPool]:
        """List all upstreams."""
        return list(self._pools.values())

    def statuses(self) -> list[UpstreamStatus]:
        """Show all upstreams as `status` does."""
        return [pool.status() for pool in self._pools.values()]

    @property
    def can_serve(self) -> bool:
        """Some upstream can be reached, as far as is known."""
        return any(pool.reachable is not False for pool in self._pools.values())

    def close(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            pool.close()

    def _target(self, upstream: str, model: str, alias: Model | None, level: int = 0) -> Target:
        pool = self._pools[upstream]
        limits = pool.limits if alias is None else alias.limits.over(pool.limits)
        is_named = alias is not None and upstream != DEMO  # the demo's is in no config
        return Target(pool, model, limits, level, names_ours=is_named)

    def _probe_of(self, upstream: str) -> BackendProbe:
        return self._probes.setdefault(upstream, BackendProbe())

    def _new_pool(self, upstream: Upstream) -> UpstreamPool:
        limits: Limits = upstream.limits.over(self._settings.limits)
        return UpstreamPool(upstream, limits, *self._belongings(upstream))

    def _belongings(self, upstream: Upstream) -> tuple[str | None, dict[str, str], str | None]:
        """Gather what is no setting: its key, its secret headers, whom it is to be trusted by."""
        return (
            self._secrets.get(upstream.name),
            self._headers.get(upstream.name, {}),
            None if upstream.ca_file is None else self._authorities.get(upstream.ca_file, ""),
        )


def _why_aside(aside: Aside) -> str:
    if aside.was_asked_for:
        return "retry-after"
    return "trial" if aside.on_trial else "failures"


def _entry(name: str, created: int, owner: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}
