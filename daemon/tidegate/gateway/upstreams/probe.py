"""What an upstream runs, and which of its models it has in memory.

Every backend lists its models at /models, and each says in its own way which are loaded. What it is
is learned from that list where it tells, else from one probe: a cloud must not be asked for
Ollama's routes twice a minute for months. A backend's own route is asked only of that backend, with
a short limit, and whatever goes wrong there only means that nothing is known.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TypeVar

from msgspec import Struct

from tidegate.core.errors import UpstreamError
from tidegate.core.formats.foreign_json import JsonReader, UnreadableJson
from tidegate.gateway.upstreams.fetch import fetch
from tidegate.gateway.upstreams.pool import MAX_OBJECTS, UpstreamPool

LOOK_LIMIT_S = 2.0  # for all questions of one look: these routes answer from memory
MOST_PROBES = 3  # one is enough where it is answered; a server that starts may leave it unanswered

_Answer = TypeVar("_Answer", bound=Struct)


class Backend(Enum):
    """A server whose ways are known; OTHER has been probed and is none of them."""

    OLLAMA = "ollama"
    LLAMA_CPP = "llama.cpp"
    LM_STUDIO = "lm studio"
    VLLM = "vllm"
    OTHER = "other"


# What these write as the owner of each model in their lists.
_TOLD_BY_OWNER = {"llamacpp": Backend.LLAMA_CPP, "vllm": Backend.VLLM}


class BackendProbe:
    """One upstream's, remembered from look to look."""

    def __init__(self) -> None:
        self.kind: Backend | None = None
        self.loaded: frozenset[str] | None = None  # None: not known
        self._probes = 0

    def __repr__(self) -> str:
        return f"<BackendProbe {self.kind} loaded={self.loaded}>"

    async def look(self, pool: UpstreamPool, listed: dict[str, str], body: bytes) -> None:
        """Ask what is loaded, and once what it is.

        `listed` are the models with their owners as they stand in `body`, the list just got.
        """
        try:
            async with asyncio.timeout(LOOK_LIMIT_S):
                await self._find_out(pool, set(listed.values()))
                self.loaded = await self._ask_loaded(pool, frozenset(listed), body)
        except (UpstreamError, TimeoutError):
            self.loaded = None

    async def names(self, pool: UpstreamPool) -> list[str]:
        """Ask for Ollama's own list, for one that has no other."""
        if self.kind is not Backend.OLLAMA:
            return []
        try:
            tags = await _ask(pool, "/api/tags", _Ollamas, LOOK_LIMIT_S)
        except UpstreamError:
            return []
        return [model.name for model in tags.models] if tags else []

    # --- what it is ---------------------------------------------------------------------------

    async def _find_out(self, pool: UpstreamPool, owners: set[str]) -> None:
        told = next((kind for owner, kind in _TOLD_BY_OWNER.items() if owner in owners), None)
        if told is None and owners and self.kind in _TOLD_BY_OWNER.values():
            self.kind = None  # something else listens there now
        self.kind = told or self.kind
        if self.kind is None and self._probes < MOST_PROBES:
            self._probes += 1
            self.kind = await _probe(pool)

    # --- what is loaded -----------------------------------------------------------------------

    async def _ask_loaded(
        self, pool: UpstreamPool, names: frozenset[str], body: bytes
    ) -> frozenset[str] | None:
        match self.kind:
            case Backend.OLLAMA:
                running = await _ask(pool, "/api/ps", _Ollamas)
                return frozenset(model.name for model in running.models) if running else None
            case Backend.LM_STUDIO:
                all_models = await _ask(pool, "/api/v0/models", _LmStudios)
                return all_models.loaded if all_models else None
            case Backend.LLAMA_CPP:
                return await _loaded_by_llama_cpp(pool, names, body)
            case Backend.VLLM:
                return names  # it lists nothing else
            case _:
                return None


async def _probe(pool: UpstreamPool) -> Backend:
    """Find its kind, by which routes answer in whose words. UpstreamError where none does."""
    if await _ask(pool, "/api/version", _Version):
        return Backend.OLLAMA
    if await _ask(pool, "/api/v0/models", _LmStudios):
        return Backend.LM_STUDIO
    # A proxy may let nothing else through. llama.cpp has this route too, with "data" beside it.
    tags = await _ask(pool, "/api/tags", _Ollamas)
    return Backend.OLLAMA if tags and tags.data is None else Backend.OTHER


async def _loaded_by_llama_cpp(
    pool: UpstreamPool, names: frozenset[str], body: bytes
) -> frozenset[str] | None:
    """A router tells of each model; a single one is loaded when the server is healthy."""
    listed = _decode(body, _LlamaCpps)
    if listed and any(model.status for model in listed.data):
        return frozenset(m.id for m in listed.data if m.status and m.status.value == "loaded")
    status, _ = await fetch(pool, "/health", LOOK_LIMIT_S, at_root=True)
    if status == 503:  # "Loading model"
        return frozenset()
    return names if status == 200 else None


async def _ask(
    pool: UpstreamPool, path: str, kind: type[_Answer], limit_s: float = LOOK_LIMIT_S
) -> _Answer | None:
    """Ask for an answer in that shape; None where it has another, UpstreamError for no answer.

    LM Studio answers 200 with an error to routes that it does not know: only the shape tells.
    """
    status, body = await fetch(pool, path, limit_s, at_root=True)
    if status >= 500:
        raise UpstreamError(f"answered {status}")
    return _decode(body, kind) if status == 200 else None


def _decode(body: bytes, kind: type[_Answer]) -> _Answer | None:
    if body.count(b"{") > MAX_OBJECTS:
        return None
    try:
        return JsonReader(kind)(body)
    except UnreadableJson:
        return None


# --- their words ----------------------------------------------------------------------------------


class _Version(Struct, frozen=True):
    """Ollama's /api/version."""

    version: str


class _Ollama(Struct, frozen=True):
    name: str


class _Ollamas(Struct, frozen=True):
    """Ollama's /api/tags and /api/ps."""

    models: list[_Ollama]
    data: object = None


class _LmStudio(Struct, frozen=True):
    id: str
    state: str  # "loaded" | "not-loaded"


class _LmStudios(Struct, frozen=True):
    """LM Studio's /api/v0/models."""

    data: list[_LmStudio]

    @property
    def loaded(self) -> frozenset[str]:
        return frozenset(model.id for model in self.data if model.state == "loaded")


class _LlamaCppStatus(Struct, frozen=True):
    value: str  # "unloaded" | "loading" | "loaded" | "sleeping" | …


class _LlamaCpp(Struct, frozen=True):
    id: str
    status: _LlamaCppStatus | None = None


class _LlamaCpps(Struct, frozen=True):
    """llama.cpp's /v1/models; only a router says how each model is."""

    data: list[_LlamaCpp]
