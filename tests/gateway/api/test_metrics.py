"""What Prometheus reads is what was counted."""

from __future__ import annotations

import platform
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.records.rows import row
from tidegate import __version__
from tidegate.core.histogram import Histogram
from tidegate.core.labels import by_label
from tidegate.core.protocol.stores import StoreState
from tidegate.core.protocol.worker import GuardFigures
from tidegate.gateway.api.metrics import CONTENT_TYPE, MetricsView, render
from tidegate.gateway.records.tally import RunTally


def view() -> MetricsView:
    relay = Histogram([0.001, 0.01])
    for seconds in (0.0005, 0.001, 0.002, 5.0):
        relay.observe(seconds)
    first = Histogram([1])
    first.observe(0.5)
    return MetricsView(
        ledger_bytes=123_456_789_012,
        resident_bytes={"worker": 40, "watchdog": 12},
        memory_level=2,
        runs={"streaming": 3, "completed": 7},
        swept_bytes={"stuck": 1000},
        recycles={"growth": 1},
        relay=relay,
        first_output={'odd "name"\\\n': first},
        seconds=first,
        requests={('odd "name"\\\n', "chat completion", "failed"): 3},
        tokens={("box", "input"): 26},
        loop_lag_s=0.25,
        connections={"busy": 4},
        upstream_active={"box": 2},
        upstream_aside={"box": 1},
        repairs={"warning": 2},
        reclaimed_bytes={"stale": 4096},
        reclaim_seconds={"stale": 0.125},
        guard=GuardFigures(
            budget_bytes=900,
            used_bytes=800,
            unexplained_bytes=70,
            growth_bytes_per_h=6.0,
            limit_in_s=3600.0,
            alarms=5,
            tick_delay_s=0.5,
            sample_failures=4,
        ),
        stores={
            "journal": StoreState(
                keep="answers", place="memory", bytes=4096, writes=7, dropped_bytes=11
            ),
            "history": StoreState(keep="rows", place="disk", bytes=8192, writes=5),
        },
    )


def test_a_scrape_shows_every_number_of_the_view() -> None:
    """Read back by Prometheus's own parser, names, labels and values are those of the view."""
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(render(view()).decode())
        for sample in family.samples
    }
    odd = 'odd "name"\\\n'
    assert samples == {
        ("tidegate_ledger_bytes",): 123_456_789_012,
        ("tidegate_resident_bytes", "worker"): 40,
        ("tidegate_resident_bytes", "watchdog"): 12,
        ("tidegate_memory_level",): 2,
        ("tidegate_runs", "streaming"): 3,
        ("tidegate_runs", "completed"): 7,
        ("tidegate_swept_bytes_total", "stuck"): 1000,
        ("tidegate_recycles_total", "growth"): 1,
        ("tidegate_relay_seconds_bucket", "0.001"): 2,
        ("tidegate_relay_seconds_bucket", "0.01"): 3,
        ("tidegate_relay_seconds_bucket", "+Inf"): 4,
        ("tidegate_relay_seconds_count",): 4,
        ("tidegate_relay_seconds_sum",): pytest.approx(5.0035),
        ("tidegate_first_output_seconds_bucket", "1.0", odd): 1,
        ("tidegate_first_output_seconds_bucket", "+Inf", odd): 1,
        ("tidegate_first_output_seconds_count", odd): 1,
        ("tidegate_first_output_seconds_sum", odd): 0.5,
        ("tidegate_run_seconds_bucket", "1.0"): 1,
        ("tidegate_run_seconds_bucket", "+Inf"): 1,
        ("tidegate_run_seconds_count",): 1,
        ("tidegate_run_seconds_sum",): 0.5,
        ("tidegate_requests_total", "chat completion", "failed", odd): 3,
        ("tidegate_tokens_total", "input", "box"): 26,
        ("tidegate_journal_bytes",): 4096,
        ("tidegate_journal_writes_total",): 7,
        ("tidegate_journal_dropped_bytes_total",): 11,
        ("tidegate_history_bytes",): 8192,
        ("tidegate_history_writes_total",): 5,
        ("tidegate_history_dropped_bytes_total",): 0,
        ("tidegate_build_info", platform.python_version(), __version__): 1,
        ("tidegate_loop_lag_seconds",): 0.25,
        ("tidegate_connections", "busy"): 4,
        ("tidegate_upstream_active", "box"): 2,
        ("tidegate_upstream_set_aside", "box"): 1,
        ("tidegate_repairs", "note"): 0,
        ("tidegate_repairs", "warning"): 2,
        ("tidegate_repairs", "error"): 0,
        ("tidegate_relief_bytes_total", "stale"): 4096,
        ("tidegate_relief_seconds_total", "stale"): 0.125,
        ("tidegate_memory_budget_bytes",): 900,
        ("tidegate_memory_used_bytes",): 800,
        ("tidegate_memory_unexplained_bytes",): 70,
        ("tidegate_memory_growth_bytes_per_hour",): 6,
        ("tidegate_memory_limit_seconds",): 3600,
        ("tidegate_memory_alarms_total",): 5,
        ("tidegate_guard_tick_delay_seconds",): 0.5,
        ("tidegate_guard_sample_failures_total",): 4,
    }


def test_a_figure_that_the_watchdog_does_not_have_is_left_out() -> None:
    """Not 0, which would be a figure: growth is known after hours, and may be none."""
    text = render(replace(view(), guard=GuardFigures())).decode()
    assert "memory_growth" not in text
    assert "memory_limit_seconds" not in text
    assert "\ntidegate_memory_alarms_total 0.0\n" in text


def test_every_metric_says_what_it_is() -> None:
    """Each has its help and its type, and the content type names the format they are in."""
    text = render(view()).decode()
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) == text.count("# HELP") == 34
    assert all(name.startswith("tidegate_") for name in names)
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_no_number_of_names_makes_a_scrape_large() -> None:
    """2,000 upstreams have been named: it stays some hundred lines, and some milliseconds."""
    tally = RunTally()
    names = [f"box{number}" for number in range(2000)]
    for name in names:
        for outcome in ("completed", "failed"):
            tally.count(row(upstream=name, outcome=outcome))
    counted = replace(
        view(),
        seconds=tally.seconds,
        requests=tally.requests,
        tokens=tally.tokens,
        upstream_active=by_label((name, 1) for name in names),
        upstream_aside=by_label((name, 0) for name in names),
        models_aside=by_label((name, 2) for name in names),
    )
    samples = [
        sample
        for family in text_string_to_metric_families(render(counted).decode())
        for sample in family.samples
    ]
    assert len({(sample.name, *sample.labels.values()) for sample in samples}) == len(samples)
    assert len([sample for sample in samples if "upstream" in sample.labels]) <= 200
    runs = [sample.value for sample in samples if sample.name == "tidegate_requests_total"]
    assert sum(runs) == 4000
    asleep = [s.value for s in samples if s.name == "tidegate_upstream_models_set_aside"]
    assert sum(asleep) == 4000


def test_a_scrape_adds_nothing_of_its_own() -> None:
    """Two scrapes of one view are the same bytes."""
    assert render(view()) == render(view())


def test_a_duration_at_a_bound_belongs_below_it() -> None:
    """Upper ends are inclusive, as Prometheus has it, and buckets are cumulative."""
    histogram = Histogram([1, 2])
    for seconds in (0, 1, 1.5, 2, 2.5):
        histogram.observe(seconds)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 4), ("+Inf", 5)]
    assert (histogram.count, histogram.sum_s) == (5, 7)


@pytest.mark.parametrize("bounds", [[], [2, 1], [1, 1]])
def test_bounds_that_do_not_ascend_are_refused(bounds: list[float]) -> None:
    """A histogram with nonsense bounds can't be made."""
    with pytest.raises(ValueError, match="ascend"):
        Histogram(bounds)
