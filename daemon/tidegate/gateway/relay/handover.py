"""What two generations of the worker say to each other over their Unix sockets.

While a recycle is under way neither worker knows the other's runs. Each asks the other here, on
behalf of the caller, and relays what it hears; finished runs are handed over whole, as plain data,
so that they outlive their worker.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import AsyncIterator, Callable

import msgspec
from msgspec import Struct

from tidegate.core import scopes
from tidegate.core.errors import LedgerFull, UpstreamError
from tidegate.core.formats import BY_PATH, CHAT
from tidegate.core.records.journal import JournaledRun
from tidegate.core.runs.attempt import AttemptRecord
from tidegate.core.runs.ledger import Account, Entry, Ledger
from tidegate.core.runs.run import Run, RunRequest
from tidegate.core.runs.state import RunState
from tidegate.core.runs.summary import RunSummary
from tidegate.core.settings import Limits, Upstream
from tidegate.gateway.upstreams.fetch import fetch
from tidegate.gateway.upstreams.pool import UpstreamPool

log = logging.getLogger("tidegate.handover")

PEER_NAME = "<generation>"  # the caller's name when the other generation asks for a client
OWNER_HEADER = "x-tidegate-owner"
SCOPE_HEADER = "x-tidegate-scope"
ASK_LIMIT_S = 5.0
HIGH_WATER_BYTES = 256 * 1024
_ID_HEADERS = ("x-run-id", "x-request-id", "request-id")

Action = Callable[[], None]


class _List(Struct):
    data: list[RunSummary]


class HandedRun(Struct, frozen=True, kw_only=True):
    """A finished run as plain data: all that a later reader may ask for."""

    id: str
    owner: str
    model: str
    state: str
    reason: str | None
    upstreams: list[str]  # one per attempt
    created: float
    ended: float
    first_seq: int
    next_seq: int
    path: str = CHAT.path  # its format's
    streamed: bool = True
    background: bool = False
    stored: bool = True
    response_id: str | None = None
    upstream_response_id: str | None = None
    upstream_model: str = ""
    code: str | None = None
    events: str  # the window's bytes in base64: they are UTF-8 only if the upstream was honest


_encode = msgspec.json.Encoder().encode
_decode_list = msgspec.json.Decoder(_List).decode
_decode_run = msgspec.json.Decoder(HandedRun).decode


def pack(run: Run) -> bytes:
    """A finished run, ready to be handed over."""
    window = run.window
    return _encode(
        HandedRun(
            id=run.id,
            owner=run.owner,
            model=run.request.model,
            state=run.state.value,
            reason=run.reason,
            upstreams=[attempt.upstream for attempt in run.attempts],
            created=run.created,
            ended=run.ended or run.created,
            first_seq=window.first_seq,
            next_seq=window.next_seq,
            path=run.format.path,
            streamed=run.request.streamed,
            background=run.request.background,
            stored=run.request.stored,
            response_id=run.response_id,
            upstream_response_id=run.upstream_response_id,
            upstream_model=run.attempts[-1].model if run.attempts else "",
            code=run.error_code,
            events=base64.b64encode(window.read_all(window.start)).decode("ascii"),
        )
    )


def unpack(data: bytes, ledger: Ledger, limits: Limits, now_s: float) -> Run:
    """The run on the other side. Raises msgspec.MsgspecError, LedgerFull, ValueError."""
    handed = _decode_run(data)
    account = ledger.open()
    now = time.time()
    kept = JournaledRun(
        id=handed.id,
        owner=handed.owner,
        token="",
        path=handed.path,
        model=handed.model,
        upstream_model=handed.upstream_model,
        upstreams=tuple(handed.upstreams),
        state=handed.state,
        reason=handed.reason,
        code=handed.code,
        created=handed.created,
        ended=handed.ended,
        first_seq=handed.first_seq,
        next_seq=handed.next_seq,
        response_id=handed.response_id,
        upstream_response_id=handed.upstream_response_id,
        streamed=handed.streamed,
        background=handed.background,
        stored=handed.stored,
    )
    try:
        return revive(
            kept,
            base64.b64decode(handed.events, validate=True),
            account,
            limits,
            began_s=now_s - max(0.0, now - handed.created),
            ended_s=now_s - max(0.0, now - handed.ended),
        )
    except (LedgerFull, ValueError):
        account.close()
        raise


def revive(
    kept: JournaledRun,
    events: bytes,
    account: Account,
    limits: Limits,
    *,
    began_s: float,
    ended_s: float,
    surely: bool = False,
) -> Run:
    """Make a run that is over of what was kept of it. Raises ValueError where that is untrue.

    Raises LedgerFull where there is no room; `surely`, it is charged all the same.
    """
    run = Run(
        run_id=kept.id,
        owner=kept.owner,
        request=RunRequest(
            kept.model,
            streamed=kept.streamed,
            background=kept.background,
            stored=kept.stored,
        ),
        body=b"",
        limits=limits,
        account=account,
        now_s=began_s,
        created=kept.created,
        format=BY_PATH.get(kept.path, CHAT),
    )
    run.reason, run.error_code, run.ended = kept.reason, kept.code, kept.ended
    run.response_id, run.upstream_response_id = kept.response_id, kept.upstream_response_id
    model = kept.upstream_model or kept.model
    attempts = [
        AttemptRecord(number, upstream, model, began_s, ended_s=ended_s)
        for number, upstream in enumerate(kept.upstreams, 1)
    ]
    if attempts:
        attempts[-1].outcome = kept.reason or kept.state
    try:
        run.adopt(
            state=RunState(kept.state),
            attempts=attempts,
            events=events,
            first_seq=kept.first_seq,
            next_seq=kept.next_seq,
            ended_s=ended_s,
        )
    except LedgerFull:
        if not surely:
            raise
    return run


class Peer:
    """The other generation, asked on behalf of a caller: an owner, and what its token is for.

    One of a version before scopes reads only the owner, and shows what belongs to that.
    """

    def __init__(self, socket_path: str, limits: Limits) -> None:
        self.socket_path = socket_path
        self._pool = UpstreamPool(
            Upstream(name="the other generation", url=f"unix:{socket_path}"), limits, None
        )

    async def ask(
        self, method: str, path: str, owner: str, scope: str = scopes.USE
    ) -> tuple[int, bytes]:
        """Status and body. Raises UpstreamError."""
        more = _asked_by(owner, scope)
        return await fetch(self._pool, path, ASK_LIMIT_S, method=method, more=more)

    async def runs(self, owner: str, scope: str = scopes.USE) -> list[RunSummary]:
        """Its runs; none when it cannot be asked, for it may just have gone."""
        try:
            status, body = await self.ask("GET", "/runs", owner, scope)
            return _decode_list(body).data if status == 200 else []
        except (UpstreamError, msgspec.MsgspecError) as error:
            log.warning("the other generation could not be asked for its runs: %s", error)
            return []

    async def hand_over(self, run: Run) -> bool:
        """Gives it a finished run; whether it took it. Raises UpstreamError when it is gone."""
        status, _ = await fetch(self._pool, "/adopt", ASK_LIMIT_S, method="POST", body=pack(run))
        return status == 200

    async def open_stream(self, path: str, owner: str, account: Account) -> PeerStream:
        """The answer to GET `path`, as it comes; what it holds is charged. Raises UpstreamError."""
        stream = PeerStream(account)
        try:
            connection = await self._pool.connect()
        except BaseException:
            stream.close()
            raise
        head = self._pool.request_head("GET", path, 0, stream=True, more=_asked_by(owner))
        stream.start(connection.abort, connection.pause, connection.resume)
        connection.send(head, stream)
        try:
            async with asyncio.timeout(ASK_LIMIT_S):
                await stream.begun()
        except TimeoutError:
            stream.close()
            raise UpstreamError("did not answer") from None
        except BaseException:
            stream.close()
            raise
        return stream

    def close(self) -> None:
        """Closes every connection."""
        self._pool.close()


def _asked_by(owner: str, scope: str = scopes.USE) -> str:
    more = "" if scope == scopes.USE else f"{SCOPE_HEADER}: {scope}\r\n"
    return f"{OWNER_HEADER}: {owner}\r\n{more}"


class PeerStream:
    """An exchange whose body is read piece by piece, with back-pressure."""

    def __init__(self, account: Account) -> None:
        """`account` is closed with it."""
        self._account = account
        self._passed_bytes = 0  # the piece that its reader has in hand
        self.status = 0
        self.ids: dict[str, str] = {}  # headers that name the run
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._over: str | None = None  # "" at a clean end, else what broke
        self._changed = asyncio.Event()
        self._abort: Action = _nothing
        self._pause: Action = _nothing
        self._resume: Action = _nothing

    def start(self, abort: Action, pause: Action, resume: Action) -> None:
        """What it may do to its connection."""
        self._abort, self._pause, self._resume = abort, pause, resume

    async def begun(self) -> None:
        """Waits for the status. Raises UpstreamError."""
        while not self.status:
            if self._over is not None:
                raise UpstreamError(self._over or "closed the connection")
            self._changed.clear()
            await self._changed.wait()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body. Raises UpstreamError when it breaks off."""
        while True:
            if self._pieces:
                piece = b"".join(self._pieces)
                self._pieces.clear()
                self._held_bytes, self._passed_bytes = 0, len(piece)
                self._resume()
                yield piece
            elif self._over is not None:
                if self._over:
                    raise UpstreamError(self._over)
                return
            else:
                self._changed.clear()
                await self._changed.wait()

    def close(self) -> None:
        """Reads no further."""
        self._account.close()
        if self._over is None:
            self._abort()

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.ids = {name: headers[name] for name in _ID_HEADERS if name in headers}
        self._changed.set()

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > HIGH_WATER_BYTES:
            self._pause()
        try:
            self._account.set(Entry.OUTBOUND, self._held_bytes + self._passed_bytes)
        except LedgerFull as full:
            self._over = str(full)
            self._abort()
        self._changed.set()

    def on_end(self) -> None:
        self._over = ""
        self._changed.set()

    def on_lost(self, reason: str, *, answered: bool) -> None:
        self._over = reason
        self._changed.set()


def _nothing() -> None:
    """Before the connection is there."""
