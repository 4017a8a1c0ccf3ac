"""Upstreams and their models, as a worker reports them and people see them."""

from __future__ import annotations

from msgspec import Struct


class ModelAside(Struct, frozen=True, kw_only=True):
    """A model that is left alone for a while, at an upstream of which not all are."""

    model: str
    left_s: float
    why: str  # "failures" | "retry-after"


class UpstreamRefusal(Struct, frozen=True, kw_only=True):
    """What an upstream refuses until the config is changed."""

    model: str = ""  # which one is missing; empty: it is the key
    text: str


class UpstreamStatus(Struct, frozen=True, kw_only=True):
    """One upstream as the worker sees it."""

    name: str
    url: str
    state: str  # "ok" | "failing" | "set aside" | "unknown"
    active: int = 0
    queued: int = 0
    connections: int = 0
    last_error: str | None = None
    aside: list[ModelAside] = []  # some of them at most
    refusals: list[UpstreamRefusal] = []  # the same


class ModelState(Struct, frozen=True, kw_only=True):
    """One model of an upstream. What is not known is null."""

    name: str
    loaded: bool | None = None
    first_output_s: float | None = None  # how long the last answer took to begin
    per_s: float | None = None  # how fast it came
    unit: str = "tokens/s"  # or "events/s"
    aside_s: float | None = None  # for how much longer it is left alone
    aside_why: str = ""  # "failures" | "trial" | "retry-after"


class UpstreamModels(Struct, frozen=True, kw_only=True):
    """One upstream and what it has, as `tidegate models` shows it."""

    name: str
    url: str
    kind: str | None  # "ollama", "llama.cpp", "lm studio", "vllm" or "other"
    state: str  # "ok" | "failing" | "set aside" | "unreachable" | "unknown"
    aside_s: float | None = None  # for how much longer it is set aside
    on_trial: bool = False  # it is set aside, and one request tries it
    last_error: str | None = None
    models: list[ModelState] = []
    total: int = 0  # models it has; no more than asked for are told


class ModelAlias(Struct, frozen=True, kw_only=True):
    """A name from the config, and what it stands for."""

    name: str
    targets: list[str]  # "upstream/model"
    levels: list[list[str]] = []  # the same, each with its equals
