"""The settings, as values. One validated `Settings` serves both processes.

Only the watchdog reads the file (`tidegate.config`); a worker receives these very values, so
that two generations can never differ. Sizes are bytes here ("4MiB" in the file), times are
seconds. Every default carries its reason, and every setting says when a change of it counts.

What stands at its default is not sent, and what is not known is not read: so a worker that drains
under a watchdog of another version understands it. What the file says beyond them is an error all
the same (`config.convert`).
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from tidegate.core import scopes

KIB = 1024
MIB = 1024 * KIB

# Official clients give up after 600 s. What could still be answered by another target must have
# time for that before they do.
PLAIN_S = 600.0
PLAIN_BEFORE_OTHERS_S = 240.0


class Effect(Enum):
    """When a change counts. The values are what people read."""

    AT_ONCE = "at once"
    NEW_ANSWERS = "for answers that begin from now on"
    NEW_WORKER = "with a new worker"
    RESTART = "with a restart"


# The type of a setting with when a change of it counts: Later is for answers that begin from now
# on. A table has no effect of its own; what comes or goes with an entry of a list counts as that.
_T = TypeVar("_T")
AtOnce = Annotated[_T, Meta(extra={"effect": Effect.AT_ONCE})]
Later = Annotated[_T, Meta(extra={"effect": Effect.NEW_ANSWERS})]
NewWorker = Annotated[_T, Meta(extra={"effect": Effect.NEW_WORKER})]


class Token(Struct, frozen=True, kw_only=True):
    """A client's key as it is stored: never the key itself."""

    name: str
    sha256: str  # hex, 64 characters: `core.scopes.stored_hash` of the key
    created: str = ""  # RFC 3339
    scope: str = scopes.USE


class Limits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Every wait and every buffer of a run. An upstream or a model may override each of them."""

    connect_s: Later[float] = 5.0  # TCP and TLS; a LAN host answers in milliseconds or is gone
    first_output_s: Later[float] = 300.0  # a large model on a slow disk needs minutes to load
    # For a whole answer that is no stream; None: PLAIN_S, or PLAIN_BEFORE_OTHERS_S.
    plain_s: Later[float | None] = None
    idle_s: Later[float] = 120.0  # between two events of one answer; keep-alives do not count
    total_s: Later[float] = 3600.0  # no honest answer takes longer than an hour
    grace_s: Later[float] = 30.0  # after total_s a run is swept whatever state it is in
    hold_s: Later[float] = 10.0  # how long the status waits for the first output
    keepalive_s: Later[float] = 15.0  # proxies and browsers give up after 30 to 60 s of silence
    stall_s: Later[float] = 120.0  # a subscriber that makes no progress
    disconnect_grace_s: Later[float] = 2.0  # after the last subscriber has gone; 0 cancels at once
    keep_finished_s: Later[float] = 600.0  # how long a finished answer can still be resumed
    close_flush_s: Later[float] = 5.0  # how long a close waits for the last bytes to be read
    header_s: AtOnce[float] = 10.0  # a request's head
    body_s: AtOnce[float] = 60.0  # a request's body
    queue_s: Later[float] = 300.0  # waiting for a slot of an upstream
    max_queued: Later[int] = 64  # requests waiting for one upstream
    max_connections: AtOnce[int] = 4096  # clients connected at once; the oldest idle one goes first
    window_bytes: Later[int] = field(default=4 * MIB, name="window")  # events kept per run
    max_body_bytes: Later[int] = field(default=32 * MIB, name="max_body")  # request or plain answer

    def at_target(self, *, is_last: bool) -> Limits:
        """Give these limits as they hold for one target, with `plain_s` filled in."""
        if self.plain_s is not None:
            return self
        return _with_plain(self, PLAIN_S if is_last else PLAIN_BEFORE_OTHERS_S)


@lru_cache(maxsize=256)  # runs share them; an upstream has two, a model with limits of its own too
def _with_plain(limits: Limits, plain_s: float) -> Limits:
    return msgspec.structs.replace(limits, plain_s=plain_s)


class LimitOverrides(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The limits that one upstream or one model sets differently; None leaves them as they are."""

    connect_s: Later[float | None] = None
    first_output_s: Later[float | None] = None
    plain_s: Later[float | None] = None
    idle_s: Later[float | None] = None
    total_s: Later[float | None] = None
    grace_s: Later[float | None] = None
    hold_s: Later[float | None] = None
    keepalive_s: Later[float | None] = None
    stall_s: Later[float | None] = None
    disconnect_grace_s: Later[float | None] = None
    keep_finished_s: Later[float | None] = None
    queue_s: Later[float | None] = None
    max_queued: Later[int | None] = None
    window_bytes: Later[int | None] = field(default=None, name="window")
    max_body_bytes: Later[int | None] = field(default=None, name="max_body")

    def over(self, limits: Limits) -> Limits:
        """Give `limits` with every override that is set."""
        changed = {n: v for n in self.__struct_fields__ if (v := getattr(self, n)) is not None}
        if not changed:
            return limits
        return Limits(**{n: changed.get(n, getattr(limits, n)) for n in limits.__struct_fields__})


class Growth(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The periods by which a leak is told from a plateau. Tests scale them to seconds."""

    bucket_s: AtOnce[float] = 300.0  # of each the minimum counts; the window is 48 of them, 4 h
    skip_s: AtOnce[float] = 7200.0  # a worker's first hours, while caches and arenas fill
    confirm_s: AtOnce[float] = 1800.0  # between the three hits that make an alarm


class Memory(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the worker may hold, and whether the watchdog acts on it or only says so."""

    budget_bytes: AtOnce[int | None] = field(default=None, name="budget")  # None is "auto"
    mode: AtOnce[str] = "enforce"  # or "observe": says what it would have done
    recycles_per_hour: AtOnce[int] = 3
    recycle_after_s: AtOnce[float] = 0.0  # a worker's age at which the next takes over; 0: never
    growth: Growth = Growth()


class DrainLimits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How long streams may go on when their worker is on its way out."""

    stop_limit_s: AtOnce[float] = 30.0
    recycle_limit_s: AtOnce[float] = 3630.0  # longer than any run: a recycle cuts no stream


class Auth(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the tokens are, and whether an open address may be served without one."""

    tokens_file: AtOnce[str] = "tokens"  # in the state directory; made by `tidegate token new`
    allow_without_token: AtOnce[bool] = False  # lets what others can reach serve without tokens


API_KEY_HEADERS = ("authorization", "x-api-key")


class HeaderSource(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the value of a header is kept that is as secret as a key; one of the two is set."""

    env: str | None = None
    file: str | None = None


class Upstream(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An LLM server that answers are streamed from."""

    name: Later[str]
    url: Later[str]  # "http://127.0.0.1:8080", "https://api.example.com/v1", "unix:/path"
    api_key_env: Later[str | None] = None
    api_key_file: Later[str | None] = None
    # One of API_KEY_HEADERS; None: what its host is known for.
    api_key_header: Later[str | None] = None
    # Sent with every request, see `core.http.header`.
    headers: Later[dict[str, str | HeaderSource]] = {}
    ca_file: Later[str | None] = None  # trusted instead of the system's authorities, for https
    max_concurrent: Later[int] = 0  # 0: no limit of ours
    # Counts tokens of streams whose client did not ask; some refuse it.
    ask_usage: Later[bool] = False
    limits: LimitOverrides = LimitOverrides()


class Price(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a million tokens cost, in the owner's own currency. None: no cost is shown."""

    input: AtOnce[float | None] = field(default=None, name="in")
    output: AtOnce[float | None] = field(default=None, name="out")
    cached: AtOnce[float | None] = None  # of the input, what was cached; None: as the rest of it


class Model(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An alias: a name that clients ask for, and the upstream models that can answer it."""

    name: Later[str]
    # "upstream/model", tried in this order before the first output. A list among them holds equals,
    # of which the first with a free slot is asked.
    targets: Later[list[str | list[str]]]
    limits: LimitOverrides = LimitOverrides()
    price: Price = Price()

    @property
    def levels(self) -> list[list[str]]:
        """The targets, each with its equals."""
        return [[each] if isinstance(each, str) else each for each in self.targets]

    @property
    def all_targets(self) -> list[str]:
        """The targets of all levels, in order."""
        return [target for level in self.levels for target in level]


class Journal(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of answers beside the worker, so that they survive its death."""

    # "answers", "ends" (no text) or "off"; "auto": answers where they stay in memory, else ends.
    keep: AtOnce[str] = "auto"
    # "memory", which is the runtime directory, or "disk", the state directory; "auto": memory where
    # the runtime directory is in memory.
    place: AtOnce[str] = "auto"
    every_s: AtOnce[float] = 1.0  # how much of a running answer a crash may cost
    keep_s: AtOnce[float] = 86400.0  # so long an answer can be read again
    max_bytes: AtOnce[int] = field(default=32 * MIB, name="max")  # some 2,900 of 1,000 tokens


KEPT_OF_ANSWERS = ("auto", "answers", "ends", "off")
JOURNAL_PLACES = ("auto", "memory", "disk")


class History(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row a run, never text: who used what, how much of it, and how it ended."""

    keep_s: AtOnce[float] = 30 * 86400.0
    max_rows: AtOnce[int] = 100_000  # some 30 MB; 0: no history


class Notify(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A receiver of what tidegate tells about itself. Of the three addresses one is set.

    An address in the file is as secret as a key: `config.load` takes it out of the settings.
    """

    name: AtOnce[str] = "notify"
    url: AtOnce[str | None] = None  # "ntfy://…", "https://…", or what Apprise knows
    url_file: AtOnce[str | None] = None
    url_env: AtOnce[str | None] = None
    min_severity: AtOnce[str] = "warning"  # a value of `core.problems.Severity`
    quiet: AtOnce[str | None] = None  # "22:00-07:00", local time: only errors are told then


class OutwardHeartbeat(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is asked every so often while tidegate is ready: its silence is told by another."""

    url: AtOnce[str | None] = None  # taken out of the settings as that of `Notify` is
    url_file: AtOnce[str | None] = None
    url_env: AtOnce[str | None] = None
    every_s: AtOnce[float] = 60.0  # what Uptime Kuma expects by itself


MOST_RECEIVERS = 8  # each has 32 notices to itself, and they are sent one after the other


class Server(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How clients are served."""

    fast_lane: AtOnce[bool] = True  # the most frequent requests are answered past aiohttp


class Settings(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The whole configuration file."""

    listen: NewWorker[list[str]] = field(default_factory=lambda: ["127.0.0.1:8433"])
    allowed_hosts: AtOnce[list[str]] = []
    allowed_origins: AtOnce[list[str]] = []  # of pages elsewhere that may use this server
    server: Server = Server()
    limits: Limits = Limits()
    memory: Memory = Memory()
    journal: Journal = Journal()
    history: History = History()
    notify: AtOnce[list[Notify]] = []
    heartbeat: OutwardHeartbeat = OutwardHeartbeat()
    log_requests: AtOnce[bool] = True  # a line for each run that is over, without text
    drain: DrainLimits = DrainLimits()
    auth: Auth = Auth()
    upstreams: Later[list[Upstream]] = field(default_factory=list, name="upstream")
    models: Later[list[Model]] = field(default_factory=list, name="model")
