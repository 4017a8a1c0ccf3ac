"""What Prometheus reads.

The counters are plain numbers that their owners keep anyway; nothing of prometheus_client is
touched between two scrapes. A scrape reads one `MetricsView` and writes it down.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tidegate import __version__
from tidegate.core.histogram import Histogram
from tidegate.core.problems import Severity
from tidegate.core.protocol.stores import StoreState
from tidegate.core.protocol.worker import GuardFigures

_Key = TypeVar("_Key", bound=tuple[str, ...])
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsView:
    """Everything a scrape shows. Sizes are bytes, times seconds."""

    ledger_bytes: int
    resident_bytes: Mapping[str, int]  # by process: "worker", "watchdog"
    memory_level: int
    runs: Mapping[str, int]  # by state
    swept_bytes: Mapping[str, int]  # by reason, since the start
    recycles: Mapping[str, int]  # by reason, since the start
    relay: Histogram
    first_output: Mapping[str, Histogram]  # by upstream
    seconds: Histogram  # of runs, from the request to the end
    requests: Mapping[tuple[str, str, str], int]  # by upstream, format and outcome
    tokens: Mapping[tuple[str, str], int]  # by upstream and direction
    loop_lag_s: float
    connections: Mapping[str, int] = field(default_factory=dict)  # by state
    upstream_active: Mapping[str, int] = field(default_factory=dict)  # by upstream
    upstream_aside: Mapping[str, int] = field(default_factory=dict)  # 1: set aside for its failures
    models_aside: Mapping[str, int] = field(default_factory=dict)  # by upstream
    repairs: Mapping[str, int] = field(default_factory=dict)  # open ones, by severity
    reclaimed_bytes: Mapping[str, int] = field(default_factory=dict)  # by step, since the start
    reclaim_seconds: Mapping[str, float] = field(default_factory=dict)
    guard: GuardFigures = field(default_factory=GuardFigures)
    stores: Mapping[str, StoreState] = field(default_factory=dict)  # "journal", "history"


def render(view: MetricsView) -> bytes:
    """Render the answer to a scrape, of the type `CONTENT_TYPE`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ViewCollector(view))
    return generate_latest(registry)


class _ViewCollector(Collector):
    """Hands one view to prometheus_client."""

    def __init__(self, view: MetricsView) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        view = self._view
        yield _gauge("ledger_bytes", "Bytes that runs retain.", view.ledger_bytes)
        yield _gauges(
            "resident_bytes", "Resident memory of a process.", "process", view.resident_bytes
        )
        yield _gauge("memory_level", "Memory level, 0 is normal.", view.memory_level)
        yield _gauges("runs", "Runs by state.", "state", view.runs)
        yield _counters("swept_bytes", "Bytes released by sweeps.", "reason", view.swept_bytes)
        yield _counters("recycles", "Workers replaced.", "reason", view.recycles)
        yield _histograms("relay_seconds", "Time a chunk spends here.", None, {"": view.relay})
        yield _histograms(
            "first_output_seconds",
            "Time until an upstream's first output.",
            "upstream",
            view.first_output,
        )
        kinds = ("upstream", "format", "outcome")
        yield _counters_by("requests", "Runs that are over.", kinds, view.requests)
        yield _histograms("run_seconds", "From a request to its end.", None, {"": view.seconds})
        directions = ("upstream", "direction")
        yield _counters_by("tokens", "Tokens as upstreams count.", directions, view.tokens)
        yield _gauge("loop_lag_seconds", "How late the event loop turned.", view.loop_lag_s)
        yield _gauges("connections", "Client connections by state.", "state", view.connections)
        yield _gauges(
            "upstream_active",
            "Requests under way at an upstream.",
            "upstream",
            view.upstream_active,
        )
        yield _gauges(
            "upstream_set_aside",
            "1 while an upstream is set aside for its failures.",
            "upstream",
            view.upstream_aside,
        )
        yield _gauges(
            "upstream_models_set_aside",
            "Models of an upstream that are left alone for a while.",
            "upstream",
            view.models_aside,
        )
        severities = {severity.value: 0 for severity in Severity} | dict(view.repairs)
        yield _gauges("repairs", "Open problems by severity.", "severity", severities)
        yield _counters("relief_bytes", "Bytes freed for memory.", "step", view.reclaimed_bytes)
        yield _counters("relief_seconds", "Time taken by relief.", "step", view.reclaim_seconds)
        yield from _guard(view.guard)
        for name, state in view.stores.items():
            yield from _store(name, state)
        yield _build_info()


def _guard(guard: GuardFigures) -> Iterator[Metric]:
    """Render what the watchdog measured; a figure that it does not have yet is left out."""
    yield _gauge("memory_budget_bytes", "What all processes may use.", guard.budget_bytes)
    yield _gauge("memory_used_bytes", "What a killer would count.", guard.used_bytes)
    yield _gauge("memory_unexplained_bytes", "Held, but by no run.", guard.unexplained_bytes)
    if guard.growth_bytes_per_h is not None:
        yield _gauge(
            "memory_growth_bytes_per_hour", "Growth that no run explains.", guard.growth_bytes_per_h
        )
    if guard.limit_in_s is not None:
        yield _gauge("memory_limit_seconds", "Until it is full at that growth.", guard.limit_in_s)
    yield _counter("memory_alarms", "Growth confirmed.", guard.alarms)
    yield _gauge("guard_tick_delay_seconds", "How late the watchdog ticked.", guard.tick_delay_s)
    yield _counter("guard_sample_failures", "Samples not whole.", guard.sample_failures)


def _store(name: str, state: StoreState) -> Iterator[Metric]:
    """Render the journal, or the history."""
    yield _gauge(f"{name}_bytes", f"What the {name}'s files take.", state.bytes)
    yield _counter(f"{name}_writes", f"Writes of the {name}.", state.writes)
    yield _counter(f"{name}_dropped_bytes", f"What the {name} could not take.", state.dropped_bytes)


def _build_info() -> Metric:
    family = GaugeMetricFamily("tidegate_build_info", "Always 1.", labels=["version", "python"])
    family.add_metric([__version__, platform.python_version()], 1)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"tidegate_{name}", text, value=value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"tidegate_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"tidegate_{name}", text, value=value)


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    return _counters_by(name, text, [label], {(key,): value for key, value in values.items()})


def _counters_by(
    name: str, text: str, labels: Sequence[str], values: Mapping[_Key, float]
) -> Metric:
    family = CounterMetricFamily(f"tidegate_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _histograms(name: str, text: str, label: str | None, values: Mapping[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(
        f"tidegate_{name}", text, labels=None if label is None else [label]
    )
    for key, histogram in values.items():
        family.add_metric(
            [] if label is None else [key], histogram.buckets(), sum_value=histogram.sum_s
        )
    return family
