"""What the page shows at one moment: one value, made of what the gateway and the watchdog know."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from tidegate.core.http.host import is_own_listener
from tidegate.core.problems import Repair
from tidegate.core.protocol.news import Deed
from tidegate.core.protocol.worker import News
from tidegate.core.records.history import RunRow
from tidegate.core.upstreams.summary import ModelAlias, ModelState, UpstreamModels
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.summaries import summarise
from tidegate.gateway.server.auth import Caller

MOST_ACTIVE = 100
MOST_FINISHED = 20
MOST_MODELS = 200  # over all upstreams
MOST_DEEDS = 30


class PageHealth(Struct, frozen=True):
    """How it is: a word and a sentence."""

    state: str
    sentence: str


class PageMemory(Struct, frozen=True, kw_only=True):
    """Memory against the budget, in bytes; `used` is base, explained and unexplained."""

    level: int
    mode: str
    budget_bytes: int
    used_bytes: int
    base_bytes: int
    explained_bytes: int
    unexplained_bytes: int
    growth_bytes_per_h: int | None
    limit_in_s: float | None


class PageRun(Struct, frozen=True, kw_only=True):
    """A run that is under way, or one of the last that are over. Times are Unix seconds."""

    id: str
    state: str
    token: str
    model: str
    upstream: str | None
    created: float
    ended: float | None = None
    reason: str | None = None
    bytes: int = 0
    subscribers: int = 0
    events: int = 0
    per_s: float | None = None  # events, over the last second
    first_output_s: float | None = None
    output_tokens: int | None = None
    mine: bool = False


class PageRuns(Struct, frozen=True):
    """The runs that the caller may see."""

    active: list[PageRun]
    active_total: int
    finished: list[PageRun]


class PageUpstream(Struct, frozen=True, kw_only=True):
    """An upstream with its models. Its figures are the median of its models'."""

    name: str
    kind: str | None
    state: str
    active: int
    max_concurrent: int
    queued: int
    last_error: str | None
    aside_s: float | None
    first_output_s: float | None
    per_s: float | None
    unit: str
    models: list[ModelState]
    models_total: int


class PageAddresses(Struct, frozen=True):
    """Where clients find it."""

    port: int
    host_name: str
    lan: list[str]
    reachable: bool  # from other computers


class PageOverview(Struct, frozen=True, kw_only=True):
    """All of it, as `/v1/live` sends it."""

    version: str
    generation: int
    at: float
    health: PageHealth
    scope: str
    tokens: bool
    memory: PageMemory
    runs: PageRuns
    upstreams: list[PageUpstream]
    aliases: list[ModelAlias]
    repairs: list[Repair]
    decisions: list[Deed]
    addresses: PageAddresses


def page_memory(news: News) -> PageMemory:
    """Split what is used: what the ledger explains, what it does not, and the rest, the base."""
    memory = news.memory
    grown = memory.ledger_bytes + memory.unexplained_bytes
    return PageMemory(
        level=memory.level,
        mode=memory.mode,
        budget_bytes=memory.budget_bytes,
        used_bytes=memory.used_bytes,
        base_bytes=max(0, memory.used_bytes - grown),
        explained_bytes=memory.ledger_bytes,
        unexplained_bytes=memory.unexplained_bytes,
        growth_bytes_per_h=memory.growth_bytes_per_h,
        limit_in_s=memory.limit_in_s,
    )


def active_run(
    relay: Relay, caller: Caller, former_events: int | None, names: Mapping[str, str]
) -> PageRun:
    """Show a run under way; `former_events` is how many it had a second ago."""
    run, summary = relay.run, summarise(relay, names)
    events = summary.next_seq
    return PageRun(
        id=summary.id,
        state=summary.state,
        token=summary.token or "",
        model=summary.model,
        upstream=summary.upstream,
        created=summary.created,
        bytes=summary.bytes,
        subscribers=summary.subscribers,
        events=events,
        per_s=None if former_events is None else float(events - former_events),
        mine=run.owner == caller.owner,
    )


def finished_run(row: RunRow) -> PageRun:
    """Show a run that is over, as the history has it."""
    return PageRun(
        id=row.id,
        state=row.outcome,
        token=row.token,
        model=row.asked,
        upstream=row.upstream or None,
        created=row.began,
        ended=row.ended,
        reason=row.code or None,
        bytes=row.answer_bytes,
        first_output_s=row.first_output_s,
        output_tokens=row.usage.output,
    )


def page_upstreams(
    described: Iterable[UpstreamModels], busy: Mapping[str, tuple[int, int, int]]
) -> list[PageUpstream]:
    """Show upstreams; `busy` has for each how many it answers, may answer at once, and wait."""
    shown = []
    for each in described:
        active, at_once, queued = busy.get(each.name, (0, 0, 0))
        begun = [model.first_output_s for model in each.models if model.first_output_s is not None]
        fast = [model for model in each.models if model.per_s is not None]
        shown.append(
            PageUpstream(
                name=each.name,
                kind=each.kind,
                state=each.state,
                active=active,
                max_concurrent=at_once,
                queued=queued,
                last_error=each.last_error,
                aside_s=each.aside_s,
                first_output_s=_median(begun),
                per_s=_median([model.per_s or 0.0 for model in fast]),
                unit=fast[0].unit if fast else "tokens/s",
                models=each.models,
                models_total=each.total,
            )
        )
    return shown


def _median(values: list[float]) -> float | None:
    """Give the middle one of them; the module `statistics` would cost a worker half a megabyte."""
    values = sorted(values)
    middle = len(values) // 2
    if not values:
        return None
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def find_addresses(listen: Sequence[str]) -> PageAddresses:
    """Find where clients reach it, by the addresses that it listens at.

    Which ones this computer has in its network is asked of the routing table alone: a datagram
    socket that is connected sends nothing.
    """
    ports = [int(each.rpartition(":")[2]) for each in listen if not each.startswith("unix:")]
    reachable = not all(map(is_own_listener, listen))
    return PageAddresses(
        port=ports[0] if ports else 0,
        host_name=socket.gethostname(),
        lan=_lan_addresses() if reachable else [],
        reachable=reachable,
    )


def _lan_addresses() -> list[str]:
    found = []
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far, 9))
                address = probe.getsockname()[0]
        except OSError:
            continue
        if not ipaddress.ip_address(address).is_loopback and not address.startswith("fe80"):
            found.append(address)
    return found
