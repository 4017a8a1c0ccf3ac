"""Questions to two workers, and the one reply each of them ends in."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import msgspec
import pytest
from msgspec.structs import replace

from tidegate.core.protocol.worker import Forgotten, RunList, Swept, UsageList
from tidegate.core.records.usage import UsageLine
from tidegate.core.runs.summary import RunSummary
from tidegate.watchdog.control.pending import PendingRequests
from tidegate.watchdog.control.server import ControlClient


@pytest.fixture
def client() -> Iterator[ControlClient]:
    """A client that asks."""
    ours, theirs = socket.socketpair()
    yield ControlClient(ours, 0.0)
    ours.close()
    theirs.close()


@pytest.fixture
def requests(client: ControlClient) -> PendingRequests:
    """Request 7 is open to workers 1 and 2 since second 100, for five seconds."""
    made = PendingRequests(5.0)
    made.add(7, "sweep", client, {1, 2}, 100.0)
    return made


def swept(runs: int, request: int = 7) -> Swept:
    return Swept(request=request, runs=runs, bytes=10 * runs, reasons={"stuck": runs})


def run(name: str, created: float) -> RunSummary:
    return RunSummary(
        id=name, state="completed", reason=None, model="m", upstream="box", attempts=1,
        created=created, ended=created, first_seq=0, next_seq=1, bytes=1, subscribers=0,
    )  # fmt: skip


def test_last_answer_makes_the_reply(requests: PendingRequests, client: ControlClient) -> None:
    """Both answers are added up, and the request is closed."""
    assert requests.on_answer(1, swept(1)) is None
    reply = requests.on_answer(2, swept(2))
    assert reply is not None
    assert reply[0] is client
    assert msgspec.json.decode(reply[1].result) == {
        "runs": 3,
        "bytes": 30,
        "reasons": {"stuck": 3},
    }
    assert requests.expire(1000.0) == []


def test_stray_answers_are_ignored(requests: PendingRequests) -> None:
    """Twice from one worker, from a stranger, or to no request: nothing happens."""
    for generation, answer in [(1, swept(1)), (1, swept(1)), (3, swept(1)), (2, swept(1, 0))]:
        assert requests.on_answer(generation, answer) is None
    assert requests.on_answer(2, swept(1)) is not None


def test_silence_is_named(requests: PendingRequests) -> None:
    """Up to the limit nothing; then those who were silent, by name."""
    assert requests.expire(105.0) == []
    ((_, reply),) = requests.expire(105.1)
    assert reply.error == "worker 1 and worker 2 did not answer sweep within 5 s"


def test_death_before_the_answer_is_said(requests: PendingRequests) -> None:
    """With no worker left to answer the wait is over at once."""
    assert requests.forget(1) == []
    ((_, reply),) = requests.forget(2)
    assert reply.error == "worker 2 ended before it answered sweep"


def test_death_after_the_others_answer_keeps_that(requests: PendingRequests) -> None:
    """What one worker said is not lost because the other one ended."""
    requests.on_answer(1, swept(4))
    ((_, reply),) = requests.forget(2)
    assert reply.ok


def test_run_in_both_lists_is_one_run(client: ControlClient) -> None:
    """A run that was handed over in this moment is listed once, the newest run first."""
    made = PendingRequests(5.0)
    made.add(8, "runs", client, {1, 2}, 0.0)
    made.on_answer(1, RunList(request=8, runs=[run("a", 1.0), run("b", 2.0)], total=2))
    reply = made.on_answer(2, RunList(request=8, runs=[run("b", 2.0), run("c", 3.0)], total=2))
    assert reply is not None
    listed = msgspec.json.decode(reply[1].result)
    assert [one["id"] for one in listed["data"]] == ["c", "b", "a"]
    assert listed["total"] == 3


@pytest.mark.parametrize("first", ["memory", "journal"])
def test_a_run_in_memory_and_in_the_journal_is_the_one_in_memory(
    client: ControlClient, first: str
) -> None:
    """Both workers read the files, and one of them may still hold it."""
    other = "memory" if first == "journal" else "journal"
    made = PendingRequests(5.0)
    made.add(8, "runs", client, {1, 2}, 0.0)
    for number, place in ((1, first), (2, other)):
        listed = [replace(run("a", 1.0), place=place)]
        reply = made.on_answer(number, RunList(request=8, runs=listed, total=1))
    assert reply is not None
    [one] = msgspec.json.decode(reply[1].result)["data"]
    assert one["place"] == "memory"


def test_what_both_forgot_is_not_counted_twice(client: ControlClient) -> None:
    """They have the same files; what only one held is in its own count."""
    made = PendingRequests(5.0)
    made.add(8, "forget", client, {1, 2}, 0.0)
    made.on_answer(1, Forgotten(request=8, runs=3))
    reply = made.on_answer(2, Forgotten(request=8, runs=5))
    assert reply is not None
    assert msgspec.json.decode(reply[1].result) == {"runs": 5}


def test_what_one_could_not_forget_is_the_answer(client: ControlClient) -> None:
    """Not that it is forgotten, although the other did."""
    made = PendingRequests(5.0)
    made.add(8, "forget", client, {1, 2}, 0.0)
    made.on_answer(1, Forgotten(request=8, runs=0, error="the journal is paused"))
    reply = made.on_answer(2, Forgotten(request=8, runs=5))
    assert reply is not None
    assert (reply[1].ok, reply[1].error) == (False, "the journal is paused")


def test_to_forget_takes_its_time(client: ControlClient) -> None:
    """Every byte of it is overwritten, and a disk may be slow."""
    made = PendingRequests(5.0)
    made.add(8, "forget", client, {1}, 100.0)
    assert made.expire(150.0) == []
    ((_, reply),) = made.expire(150.1)
    assert reply.error == "worker 1 did not answer forget within 50 s"


def test_usage_and_why_there_is_none(client: ControlClient) -> None:
    """As the worker gave it, whatever is unknown of it."""
    line = UsageLine(
        key="laptop", runs=2, failed=0, unknown=1, input=3, output=4, cached=0, reasoning=0,
        seconds=1.0, bytes=9, last=7.0,
    )  # fmt: skip
    for error in (None, "the history cannot be read: locked"):
        made = PendingRequests(5.0)
        made.add(8, "usage", client, {1}, 0.0)
        reply = made.on_answer(1, UsageList(request=8, lines=[line], error=error))
        assert reply is not None
        assert reply[1].error == error
    made.add(9, "usage", client, {1}, 0.0)
    reply = made.on_answer(1, UsageList(request=9, lines=[line]))
    assert reply is not None
    [told] = msgspec.json.decode(reply[1].result)["data"]
    assert (told["key"], told["unknown"], told["cost"]) == ("laptop", 1, None)
