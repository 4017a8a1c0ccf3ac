"""The messages between the watchdog and a worker: one JSON message per line.

The channel is one socketpair; end of file means that the other side died. Both sides come from
the same installation, except during an upgrade: `PROTOCOL` is the first thing checked. A message
is a small frozen value with a `type`; `encode` and the two decoders are the only border.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from tidegate.core.decoding import Decoder
from tidegate.core.memory.report import Allocator, StepReport
from tidegate.core.problems import Repair
from tidegate.core.protocol.news import Deed, MemoryPoint
from tidegate.core.protocol.status import MemoryState
from tidegate.core.protocol.stores import StoreState
from tidegate.core.records.usage import UsageLine
from tidegate.core.runs.summary import RunSummary
from tidegate.core.settings import Settings, Token
from tidegate.core.upstreams.summary import ModelAlias, UpstreamModels, UpstreamStatus

PROTOCOL = 1


class Message(Struct, frozen=True, kw_only=True, tag_field="type"):
    """A line on the channel. Its tag is written out: a class may be renamed, a line may not."""


# --- values inside messages ---------------------------------------------------------------


class Listener(Struct, frozen=True, kw_only=True):
    """A listening socket that the worker inherits."""

    fd: int
    address: str  # "127.0.0.1:8433" or "unix:/path"


class StorePlaces(Struct, frozen=True, kw_only=True):
    """Directories for what outlives a worker. None: there is none of that kind."""

    memory: str | None = None  # in the runtime directory, where that is in memory
    disk: str | None = None  # in the state directory


# --- from the watchdog ----------------------------------------------------------------------


class Configure(Message, frozen=True, kw_only=True, tag="configure"):
    """Settings for a worker. First message of all, and again on each reload (`request` > 0)."""

    protocol: int = PROTOCOL
    request: int = 0
    generation: int
    settings: Settings
    tokens: list[Token]
    secrets: dict[str, str]  # upstream name -> API key; never logged, never shown
    headers: dict[str, dict[str, str]] = {}  # upstream name -> secret headers; as little shown
    authorities: dict[str, str] = {}  # `ca_file` -> its certificates
    listeners: list[Listener] = []  # only in the first one
    peer_socket: str = ""  # where this generation listens for the other one
    other_socket: str | None = None  # where the other one listens, if there is one
    config_file: str | None = None  # which the worker looks at for changes
    parked: str | None = None  # why nothing is served; health routes say so
    ledger_limit_bytes: int = 0  # until the first StateUpdate; only in the first one; 0: no limit
    store_places: StorePlaces = StorePlaces()
    tells_news: bool = False  # the watchdog knows `AskNews`
    heartbeat_url: str | None = None  # asked while it is ready; as secret as a key

    def __repr__(self) -> str:
        return f"<Configure request={self.request} generation={self.generation}>"  # no secrets


class GuardFigures(Struct, frozen=True, kw_only=True):
    """What the watchdog measured, for /metrics. Sizes are bytes, times seconds."""

    budget_bytes: int = 0
    used_bytes: int = 0
    unexplained_bytes: int = 0
    growth_bytes_per_h: float | None = None
    limit_in_s: float | None = None
    alarms: int = 0
    watchdog_rss_bytes: int = 0
    tick_delay_s: float = 0.0
    sample_failures: int = 0


class StateUpdate(Message, frozen=True, kw_only=True, tag="facts"):
    """What the watchdog knows and the worker goes by or shows. Once a second."""

    level: int
    ledger_limit_bytes: int  # 0: no limit
    squeeze: bool = False  # windows and watermarks are half as large while this holds
    shed: str | None = None  # why new runs are refused, if they are
    recycles: dict[str, int] = {}  # by reason
    guard: GuardFigures = GuardFigures()
    peer_socket: str | None = None  # the other generation's, while there is one
    peer_active: dict[str, int] = {}  # its requests under way, by upstream, as it last beat
    repairs: list[Repair] = []  # open problems, for clients over HTTP


class Sweep(Message, frozen=True, kw_only=True, tag="sweep"):
    """Release what is stale now; `finished` also releases answers kept for resuming."""

    request: int
    finished: bool = False
    reason: str


class Reclaim(Message, frozen=True, kw_only=True, tag="relieve"):
    """Give memory back by these steps, in this order. Sent on every tick while a level holds."""

    request: int
    steps: list[str]  # values of `core.runs.eviction.ReclaimStep`
    stale_after_s: float  # what no reader has touched for so long is stale
    most: int = 50  # runs that may lose something, over all steps
    reason: str  # "memory level 2": what readers and the log are told


class Inspect(Message, frozen=True, kw_only=True, tag="inspect"):
    """Ask for what a bundle of evidence shows of a worker's inside. No text of any run."""

    request: int


class ListRuns(Message, frozen=True, kw_only=True, tag="listruns"):
    """Ask for the newest runs of every owner. Only one that `remembers` is asked for `all`."""

    request: int
    limit: int = 1000
    all: bool = False  # those of which only the journal or the history knows, too


class ListUsage(Message, frozen=True, kw_only=True, tag="listusage"):
    """Ask what was used, by what the history knows. Only a worker that `remembers` is asked."""

    request: int
    by: str = "token"  # one of `core.records.usage.GROUPS`
    since: float = 0.0  # Unix seconds


class Forget(Message, frozen=True, kw_only=True, tag="forget"):
    """Forget a run, or all that are over. Only a worker that `remembers` is asked."""

    request: int
    run: str | None = None  # None: all


class ListModels(Message, frozen=True, kw_only=True, tag="listmodels"):
    """Ask for the upstreams and their models."""

    request: int
    limit: int = 2000  # over all upstreams: with names of 200 characters well below a line's limit


class AskBeat(Message, frozen=True, kw_only=True, tag="askbeat"):
    """Ask for a heartbeat out of turn. Only a worker that said in `Ready` that it can is asked."""

    request: int


class News(Message, frozen=True, kw_only=True, tag="news"):
    """Answer to AskNews. Only what is newer than what was asked for is listed, oldest first."""

    state: str  # as in `tidegate status`
    reason: str | None = None  # why it is parked or degraded
    memory: MemoryState
    flat_s: float  # for how long no growth was confirmed
    listen: list[str] = []  # where clients connect
    points: list[MemoryPoint] = []
    deeds: list[Deed] = []


class StartDraining(Message, frozen=True, kw_only=True, tag="startdraining"):
    """Accept nothing new, finish what is in flight, exit 0; end what is left at the limit."""

    limit_s: float
    reason: str  # "stop" | "recycle"
    successor_socket: str | None = None  # where finished runs are handed


# --- from a worker -----------------------------------------------------------------------------


class Ready(Message, frozen=True, kw_only=True, tag="ready"):
    """The worker can serve."""

    protocol: int = PROTOCOL
    pid: int
    found: list[str] = []  # upstreams discovered on this computer, "Ollama at http://…"
    model: str = "demo"  # a model that answers, for the first curl line
    beats_when_asked: bool = False  # it knows `AskBeat`
    remembers: bool = False  # it knows `ListUsage`, `Forget` and `ListRuns.all`


class Heartbeat(Message, frozen=True, kw_only=True, tag="heartbeat"):
    """The worker's loop turned. RSS and ledger are read in the same callback."""

    request: int = 0  # of the AskBeat that it answers; 0: it came in its turn
    rss_bytes: int
    ledger_bytes: int
    loop_lag_ms: float
    runs_active: int
    runs_finished: int
    runs_total: int
    swept_runs: int  # since this generation started
    swept_bytes: int
    swept_last_reason: str | None = None
    connections: int = 0  # clients
    most_connections: int = 0  # of them; fewer than the setting where descriptors are few
    allocator: Allocator = Allocator()
    at_limit: StepReport | None = None  # what the ledger's own limit took, since the start
    upstreams: list[UpstreamStatus] = []
    journal: StoreState | None = None
    history: StoreState | None = None


class Configured(Message, frozen=True, kw_only=True, tag="configured"):
    """Answer to a reload."""

    request: int
    error: str | None = None


class Swept(Message, frozen=True, kw_only=True, tag="swept"):
    """Answer to a sweep."""

    request: int
    runs: int
    bytes: int
    reasons: dict[str, int] = {}


class Reclaimed(Message, frozen=True, kw_only=True, tag="relieved"):
    """Answer to Reclaim, when the last step is over."""

    request: int
    steps: list[StepReport]


class Inspected(Message, frozen=True, kw_only=True, tag="inspected"):
    """Answer to Inspect. Everything in it is bounded, and sizes and names only."""

    request: int
    ledger: dict[str, int]  # bytes by kind of buffer
    runs: list[RunSummary]  # the largest first
    runs_total: int
    types: dict[str, int]  # objects by type, the most frequent first
    stacks: list[str]  # one for each thread and task: where it stands, no values
    tasks: int
    descriptors: int


class RunList(Message, frozen=True, kw_only=True, tag="runlist"):
    """Answer to ListRuns."""

    request: int
    runs: list[RunSummary]
    total: int


class UsageList(Message, frozen=True, kw_only=True, tag="usagelist"):
    """Answer to ListUsage, what was used most first."""

    request: int
    lines: list[UsageLine]
    error: str | None = None  # why the history cannot be read


class Forgotten(Message, frozen=True, kw_only=True, tag="forgotten"):
    """Answer to Forget."""

    request: int
    runs: int
    error: str | None = None


class ModelList(Message, frozen=True, kw_only=True, tag="modellist"):
    """Answer to ListModels."""

    request: int
    upstreams: list[UpstreamModels]
    aliases: list[ModelAlias]


class ConfigChanged(Message, frozen=True, kw_only=True, tag="configchanged"):
    """The config file may have changed; also sent once at the start."""


class AskNews(Message, frozen=True, kw_only=True, tag="asknews"):
    """Ask for what a page shows, while one is open. Only a watchdog that `tells_news` is asked."""

    since: float = 0.0  # Unix seconds


class Draining(Message, frozen=True, kw_only=True, tag="draining"):
    """The worker no longer accepts; what it had accepted goes on."""


class Failed(Message, frozen=True, kw_only=True, tag="failed"):
    """The worker cannot start or go on, and why. It exits next."""

    reason: str


FromWatchdog = (
    Configure
    | StateUpdate
    | Sweep
    | Reclaim
    | AskBeat
    | Inspect
    | ListRuns
    | ListModels
    | ListUsage
    | Forget
    | News
    | StartDraining
)
FromWorker = (
    Ready
    | Heartbeat
    | Configured
    | Swept
    | Reclaimed
    | Inspected
    | RunList
    | ModelList
    | UsageList
    | Forgotten
    | ConfigChanged
    | AskNews
    | Draining
    | Failed
)

_encoder = msgspec.json.Encoder()
_from_watchdog: Decoder[FromWatchdog] = Decoder(FromWatchdog)  # type: ignore[arg-type]
_from_worker: Decoder[FromWorker] = Decoder(FromWorker)  # type: ignore[arg-type]


def encode(message: Message) -> bytes:
    """Encode a message as one line, with its end."""
    return _encoder.encode(message) + b"\n"


def decode_from_watchdog(line: bytes) -> FromWatchdog:
    """Decode a line that a worker received. Raises Undecodable."""
    return _from_watchdog.decode(line)


def decode_from_worker(line: bytes) -> FromWorker:
    """Decode a line that the watchdog received. Raises Undecodable."""
    return _from_worker.decode(line)
