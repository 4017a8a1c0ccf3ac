"""The official clients, each in every situation, against a running gateway.

The short form, curl and openai-python, is part of every run of the tests; TIDEGATE_TEST_LONG=1 or
CI runs the whole. What is not installed is said.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from clients.cells import COLUMNS, DRIVERS, SITUATIONS, Driver
from clients.matrix import AT_ONCE, PAGE, VERSIONS, fixed_part, results, table
from clients.stage import Outcome, missing, stage
from fakes.llama import LlamaServer

Running = dict[str, Future[Outcome]]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest, llama_server: LlamaServer) -> Iterator[Running]:
    """All drivers that this run of the tests asks for, two at a time."""
    chosen = [
        item.callspec.params["driver"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.path == request.path
        and hasattr(item, "callspec")
        and not item.get_closest_marker("skip")
    ]
    with stage(llama_server.url) as standing:
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            yield {
                driver.name: pool.submit(standing.run, driver)
                for driver in chosen
                if not missing(driver)
            }
        finally:
            pool.shutdown(cancel_futures=True)


def each_driver() -> list[object]:
    """Those that are slow or rarely there run where everything is required."""
    return [
        pytest.param(driver, id=driver.name, marks=() if driver.is_short else pytest.mark.long)
        for driver in DRIVERS
    ]


@pytest.mark.parametrize("driver", each_driver())
def test_a_client_gets_through_every_situation(driver: Driver, request) -> None:
    """Each cell of this client goes well."""
    if absent := missing(driver):
        pytest.skip(f"{absent} (.ci/run installs it)")
    running: Running = request.getfixturevalue("running")
    failures = running[driver.name].result().failures()
    assert not failures, "\n".join(
        f"--- {cell.column}, {cell.situation}\n{cell.error}" for cell in failures
    )


def test_the_matrix(running: Running, capsys) -> None:
    """Every cell of the clients that ran has an outcome; the table is printed."""
    went = results(future.result() for future in running.values())
    with capsys.disabled():
        print(f"\n{table(went)}")
    ran = [driver for driver in DRIVERS if driver.name in running]
    assert set(went) == {
        (column.key, cell) for driver in ran for column in driver.columns for cell in column.cells
    }


def test_a_cell_without_a_reason_is_run() -> None:
    """Reasons are given for situations that there are, and nothing is both left out and run."""
    for column in COLUMNS:
        assert set(column.without) | set(column.partly) <= set(SITUATIONS), column.key
        assert not set(column.without) & set(column.partly), column.key
    assert len({column.key for column in COLUMNS}) == len(COLUMNS)


def test_the_page_shows_the_cells_there_are() -> None:
    """docs/clients.md has the same cells and reasons; only its versions and date are its own."""
    kept, _, versions = PAGE.read_text().partition(VERSIONS)
    assert kept == fixed_part(), "write it again: python -m clients.matrix --write"
    assert versions.strip()
