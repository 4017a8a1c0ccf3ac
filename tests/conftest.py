"""Fixtures for all tests: a running gateway, a scripted upstream, a genuine llama.cpp server."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from fakes import llama
from fakes.gateway import StartGateway, gateways
from fakes.upstream import ScriptedUpstream

TESTS = Path(__file__).parent

# With this set a skipped test is a failed one: the machine is known to have everything.
REQUIRE_ALL = os.environ.get("TIDEGATE_TEST_REQUIRE_ALL") == "1"

RUN_LONG = REQUIRE_ALL or os.environ.get("TIDEGATE_TEST_LONG") == "1"

# `make test` runs these, without what starts processes, and one end-to-end smoke test.
QUICK = {"core", "config", "machine", "logs", "managers", "gateway", "watchdog", "doctor", "cli"}

SMOKE = TESTS / "e2e" / "test_resume.py"

# Where everything runs, a test of real processes may fail by chance on a busy machine, but not
# twice, and not many may. It is named in the summary. What needs neither clock nor process has no
# such excuse.
STEADY = {"core", "config"}
MOST_UNSTEADY = 3

# How long all of them should take, in seconds. Longer is told and no failure, for a busy machine is
# none: what hangs is ended by the limit of its own test.
EXPECTED_S = float(os.environ.get("TEST_LIMIT_S", "inf"))
BEGAN_S = time.monotonic()

# How long an example takes is the machine's affair: it may be busy.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make test` need not read what it will not run."""
    if config.option.markexpr != "quick" or collection_path.is_dir():
        return None
    room = collection_path.relative_to(TESTS).parts[0]
    return room in {"bench", "clients", "e2e", "hostile", "system"} and collection_path != SMOKE


def pytest_report_header() -> list[str]:
    """What is left out without being skipped."""
    return [] if RUN_LONG else ["the gateway is tested on one event loop; make test-all takes both"]


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test` runs; where everything runs, what uses processes has a second try."""
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        room = item.path.relative_to(TESTS).parts[0]
        is_quick = room in QUICK or item.path.parent == TESTS
        if "smoke" in marks or (is_quick and not marks & {"long", "processes"}):
            item.add_marker("quick")
        if RUN_LONG and room not in STEADY:
            item.add_marker(pytest.mark.flaky(reruns=1, rerun_except="Timeout"))
        if not RUN_LONG and "long" in marks:
            item.add_marker(pytest.mark.skip(reason="takes minutes: make test-all"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Turn skips into failures where everything is required."""
    outcome: Any = yield
    report = outcome.get_result()
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but everything is required here: {report.longrepr}"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Too many that passed only at the second try are a failure."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    unsteady = len(reporter.stats.get("rerun", ())) if reporter else 0
    if unsteady > MOST_UNSTEADY and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"\n{unsteady} tests needed a second try, more than {MOST_UNSTEADY}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell when the tests took longer than they should."""
    took_s = time.monotonic() - BEGAN_S
    if took_s > EXPECTED_S:
        terminalreporter.section("slow", yellow=True)
        terminalreporter.line(f"the tests took {took_s:.1f} s, expected: {EXPECTED_S:g} s")


@pytest.fixture
def gateway() -> Iterator[StartGateway]:
    """Start real gateways: `gateway(toml, env=…, flags=…)`, stopped and checked afterwards."""
    with gateways() as start:
        yield start


@pytest.fixture
def scripted_upstream() -> Iterator[ScriptedUpstream]:
    """An upstream that does what the model's name says."""
    upstream = ScriptedUpstream().start()
    try:
        yield upstream
    finally:
        upstream.stop()


@pytest.fixture(scope="session")
def llama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[llama.LlamaServer]:
    """The genuine llama.cpp server on a tiny random model."""
    if missing := llama.missing_packages():
        pytest.skip(f"the llama.cpp server needs: pip install {' '.join(missing)}")
    server = llama.start(tmp_path_factory.mktemp("llama"))
    try:
        yield server
    finally:
        server.stop()
